//! What `build.rs` takes for the commit, in repositories made for it. Needs git, as a build of this repository does.

#[path = "../build.rs"]
#[expect(dead_code, clippy::print_stdout, reason = "its main is for cargo")]
mod build;

use build::{commit, watched};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn git(folder: &Path, arguments: &[&str]) -> String {
    let identity = ["-c", "user.name=Test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false"];
    let output = Command::new("git").arg("-C").arg(folder).args(identity).args(arguments).output().expect("git");
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text").trim().to_owned()
}

#[test]
fn it_is_that_of_the_work_tree_that_has_the_package() {
    let root = tempfile::tempdir().expect("a folder");
    let package = root.path().join("loadgen");
    fs::create_dir(&package).expect("a folder");
    fs::write(package.join("Cargo.toml"), "").expect("a file");
    assert_eq!(commit(&package), None, "no repository");
    git(root.path(), &["init", "--quiet", "--initial-branch=main"]);
    git(root.path(), &["commit", "--quiet", "--allow-empty", "--message=Something else"]);
    assert_eq!(commit(&package), None, "the repository of something else");

    git(root.path(), &["add", "loadgen"]);
    git(root.path(), &["commit", "--quiet", "--message=The package"]);
    let head = git(root.path(), &["rev-parse", "--short=12", "HEAD"]);
    fs::write(package.join("untracked"), "").expect("a file");
    assert_eq!(commit(&package), Some(head.clone()));
    fs::write(package.join("Cargo.toml"), "changed").expect("a file");
    assert_eq!(commit(&package), Some(format!("{head}-dirty")));
}

#[test]
fn a_new_commit_is_noticed_in_work_trees_and_of_packed_branches_too() {
    let root = tempfile::tempdir().expect("a folder");
    let [main, other] = ["main", "other"].map(|name| root.path().join(name));
    git(root.path(), &["init", "--quiet", "--initial-branch=main", "main"]);
    git(&main, &["commit", "--quiet", "--allow-empty", "--message=First"]);
    git(&main, &["worktree", "add", "--quiet", "../other"]);
    let read = |files: &[PathBuf]| -> Vec<String> {
        files.iter().filter(|file| file.is_file()).map(|file| fs::read_to_string(file).expect("a text")).collect()
    };
    for tree in [&main, &other] {
        for is_packed in [false, true] {
            if is_packed {
                git(tree, &["pack-refs", "--all"]);
            }
            let files = watched(tree);
            let before = read(&files);
            git(tree, &["commit", "--quiet", "--allow-empty", "--message=Next"]);
            assert_ne!(read(&files), before, "packed: {is_packed}, {files:?}");
        }
    }
}
