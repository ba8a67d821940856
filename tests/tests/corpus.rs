//! Replays the corpora of fuzzing: each input once reached something that no other reached, or broke something.
//!
//! A target whose body panics names the file; `tests/full fuzz` looks for more.

use postanalytics_tests::fuzz::TARGETS;
use std::path::{Path, PathBuf};

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
