//! Replays the corpora of fuzzing: each input once reached something that no other reached, or broke something.
//!
//! A target whose body panics names the file; `tests/full fuzz` looks for more.

use postanalytics_tests::fuzz::TARGETS;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Bytes of all corpora: what is committed stays small.
const CORPUS_BYTES_MAX: u64 = 1 << 20;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

fn inputs(target: &str) -> Vec<PathBuf> {
    let path = folder().join("corpus").join(target);
    let entries = std::fs::read_dir(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut inputs: Vec<PathBuf> = entries.map(|entry| entry.expect("readable").path()).collect();
    inputs.sort();
    inputs
}

#[test]
fn every_input_is_handled() {
    let mut failed = Vec::new();
    for (target, body) in TARGETS {
        let inputs = inputs(target);
        assert!(inputs.len() >= 3, "the corpus of {target} has {} inputs only", inputs.len());
        for path in inputs {
            let bytes = std::fs::read(&path).expect("readable");
            if std::panic::catch_unwind(|| body(&bytes)).is_err() {
                failed.push(path);
            }
        }
        // Not of any corpus: the shortest inputs.
        (0..=u8::MAX).for_each(|byte| body(&[byte]));
        body(&[]);
    }
    assert!(failed.is_empty(), "what these inputs do is printed above: {failed:#?}");
}

#[test]
fn every_target_is_built_and_small() {
    // `tests/full fuzz` runs what this folder has.
    let sources = std::fs::read_dir(folder().join("fuzz_targets")).expect("readable");
    let mut sources: Vec<String> =
        sources.map(|file| file.expect("readable").file_name().into_string().expect("a name")).collect();
    let mut targets: Vec<String> = TARGETS.iter().map(|(target, _)| format!("{target}.rs")).collect();
    sources.sort();
    targets.sort();
    assert_eq!(sources, targets, "the folder fuzz_targets has what the list TARGETS has");
    let manifest = std::fs::read_to_string(folder().join("Cargo.toml")).expect("readable");
    let mut bytes = 0;
    for (target, _) in TARGETS {
        let source = folder().join("fuzz_targets").join(format!("{target}.rs"));
        let text = std::fs::read_to_string(&source).unwrap_or_else(|error| panic!("{}: {error}", source.display()));
        assert!(text.contains(&format!("postanalytics_tests::fuzz::{target}(data)")), "{}", source.display());
        assert!(manifest.contains(&format!("name = \"{target}\"")), "{target} is not in tests/fuzz/Cargo.toml");
        bytes += inputs(target).iter().map(|path| std::fs::metadata(path).expect("readable").len()).sum::<u64>();
    }
    assert!(bytes <= CORPUS_BYTES_MAX, "the corpora have {bytes} bytes: minimise them (tests/full fuzz does)");
}

/// `tests/full fuzz` with the targets `a`, `b` and `c` in a folder of its own, where no target is run; the lines of its report.
struct FullRun {
    folder: tempfile::TempDir,
}

impl FullRun {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        for path in ["docs", "programs", "tests/fuzz/fuzz_targets", "tests/fuzz/corpus"] {
            std::fs::create_dir_all(folder.path().join(path)).expect("made");
        }
        for target in ["a", "b", "c"] {
            std::fs::write(folder.path().join(format!("tests/fuzz/fuzz_targets/{target}.rs")), "").expect("written");
        }
        std::fs::copy(folder_of_full().join("full"), folder.path().join("tests/full")).expect("copied");
        for program in ["cargo", "rustup", "rustc"] {
            let path = folder.path().join("programs").join(program);
            std::fs::write(&path, "#!/bin/sh\necho stat::number_of_executed_units: 7\n").expect("written");
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("may be run");
        }
        Self { folder }
    }

    /// The exit code, and the first two cells of each line.
    fn fuzz(&self, targets: &str) -> (Option<i32>, Vec<String>) {
        let path = format!("{}:{}", self.folder.path().join("programs").display(), std::env::var("PATH").unwrap_or_default());
        let mut run = Command::new("bash");
        run.arg(self.folder.path().join("tests/full")).arg("fuzz").env("PATH", path).env("FUZZ_TARGETS", targets);
        let output = run.output().expect("bash");
        let report = std::fs::read_to_string(self.folder.path().join("docs/full-run.md")).unwrap_or_default();
        let rows = report.lines().filter(|line| line.starts_with("| fuzz"));
        let cells = |row: &str| row.split(" | ").take(2).collect::<Vec<_>>().join(" | ");
        (output.status.code(), rows.map(cells).collect())
    }
}

fn folder_of_full() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn a_run_of_some_targets_keeps_what_is_told_of_others() {
    let full = FullRun::new();
    let all = "| fuzz | 3 targets, 10 minutes each, 1 at a time";
    let some = |names: &str, count| format!("| fuzz: {names} | {count} targets, 10 minutes each, 1 at a time");
    assert_eq!(full.fuzz(""), (Some(0), vec![all.to_owned()]));
    assert_eq!(full.fuzz("b"), (Some(0), vec![all.to_owned(), some("b", 1)]));
    assert_eq!(full.fuzz("b  a"), (Some(0), vec![all.to_owned(), some("b", 1), some("a b", 2)]));
    assert_eq!(full.fuzz("a"), (Some(0), vec![all.to_owned(), some("b", 1), some("a b", 2), some("a", 1)]));
    assert_eq!(full.fuzz("b"), (Some(0), vec![all.to_owned(), some("a b", 2), some("a", 1), some("b", 1)]));
    // A name that would match all of them as a pattern.
    assert_eq!(full.fuzz(".*").0, Some(2));
    assert_eq!(full.fuzz("c b a"), (Some(0), vec![all.to_owned()]));
}
