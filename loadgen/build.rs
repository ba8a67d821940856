//! Tells the code the commit that it is built from, for reports name it: `POSTANALYTICS_GIT` of the build's environment, or
//! else what git says. Without git, or outside of the repository, it is "unknown", and the build goes on.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const VARIABLE: &str = "POSTANALYTICS_GIT";
/// What the binary is built from. A change there compiles it anew in any case, and may make the work tree dirty.
const SOURCES: [&str; 12] = [
    "build.rs",
    "Cargo.toml",
    "src",
    "../Cargo.lock",
    "../Cargo.toml",
    "../client/Cargo.toml",
    "../client/src",
    "../client/filter/Cargo.toml",
    "../client/filter/rules.toml",
    "../client/filter/src",
    "../protocol/Cargo.toml",
    "../protocol/src",
];

fn main() {
    let package = Path::new(".");
    println!("cargo::rerun-if-env-changed={VARIABLE}");
    for file in watched(package) {
        println!("cargo::rerun-if-changed={}", file.display());
    }
    let given = std::env::var(VARIABLE).ok().filter(|commit| !commit.is_empty());
    let commit = given.or_else(|| commit(package)).unwrap_or_else(|| "unknown".to_owned());
    println!("cargo::rustc-env={VARIABLE}={commit}");
}

/// The commit that is checked out, with `-dirty` if tracked files differ from it.
pub(crate) fn commit(package: &Path) -> Option<String> {
    // An archive may lie unpacked in the repository of something else.
    git(package, &["ls-files", "--error-unmatch", "Cargo.toml"])?;
    let commit = git(package, &["rev-parse", "--short=12", "HEAD"])?;
    let changes = git(package, &["status", "--porcelain", "--untracked-files=no"])?;
    Some(if changes.is_empty() { commit } else { format!("{commit}-dirty") })
}

/// Files and folders whose change may change the commit. Only those that exist: for others cargo would build every time.
pub(crate) fn watched(package: &Path) -> Vec<PathBuf> {
    let branch = git(package, &["symbolic-ref", "--quiet", "HEAD"]);
    // A packed branch has no file before its next commit, which the log of HEAD tells.
    let of_git = ["HEAD", "logs/HEAD"].into_iter().chain(branch.as_deref());
    let of_git = of_git.filter_map(|name| git(package, &["rev-parse", "--git-path", name]));
    let all = SOURCES.into_iter().map(PathBuf::from).chain(of_git.map(PathBuf::from)).map(|file| package.join(file));
    all.filter(|file| file.exists()).collect()
}

/// What git answers, if it is there and all is well.
fn git(folder: &Path, arguments: &[&str]) -> Option<String> {
    // No lock: whoever works with git meanwhile is not to be disturbed.
    let mut command = Command::new("git");
    command.arg("--no-optional-locks").arg("-C").arg(folder).args(arguments).stdin(Stdio::null());
    let output = command.output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_owned())
}
