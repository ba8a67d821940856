//! Logs that are rotated, truncated and read again, with real files.

use super::log::{Begin, Log, LogState};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

struct Folder {
    folder: tempfile::TempDir,
    log: PathBuf,
}

impl Folder {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let log = folder.path().join("access.log");
        Self { folder, log }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn open(&self, state: Option<&LogState>) -> Log {
        Log::open(self.log.clone(), state, Begin::Start).expect("opened")
    }
}

fn append(path: &Path, text: &str) {
    File::options().create(true).append(true).open(path).and_then(|mut file| file.write_all(text.as_bytes())).expect("written");
}

/// What is there now, settled or not.
fn read_at(log: &mut Log, now: Instant, settle: bool) -> Vec<String> {
    log.look().expect("looked at");
    let mut lines = Vec::new();
    while let Some(line) = log.next_line(now).expect("read") {
        let text =
            if line.found.is_too_long { "TOO LONG".to_owned() } else { String::from_utf8_lossy(log.text(&line)).into_owned() };
        lines.push(text);
        if settle {
            log.settle(line.serial, line.found.end);
        }
    }
    lines
}

fn read(log: &mut Log) -> Vec<String> {
    read_at(log, Instant::now(), true)
}

#[test]
fn lines_come_whole_and_in_order() {
    let folder = Folder::new();
    append(&folder.log, "one\ntwo\nthr");
    let mut log = folder.open(None);
    assert_eq!(read(&mut log), ["one", "two"]);
    append(&folder.log, "ee\n");
    assert_eq!(read(&mut log), ["three"]);
    assert_eq!(read(&mut log), [""; 0]);
    append(&folder.log, &format!("{}\nfour\n", "x".repeat(super::file::LINE_BYTES_MAX + 1)));
    append(&folder.log, &format!("{}\nfive\n", "x".repeat(3 * super::file::LINE_BYTES_MAX)));
    assert_eq!(read(&mut log), ["TOO LONG", "four", "TOO LONG", "five"]);
    let mut end = Log::open(folder.log.clone(), None, Begin::End).expect("opened");
    assert_eq!(read(&mut end), [""; 0]);
    append(&folder.log, "six\n");
    assert_eq!((read(&mut end), read(&mut log)), (vec!["six".to_owned()], vec!["six".to_owned()]));
}

#[test]
fn the_end_is_that_of_the_last_whole_line() {
    let folder = Folder::new();
    append(&folder.log, &format!("{}\nhalf", "x".repeat(100_000)));
    let mut log = Log::open(folder.log.clone(), None, Begin::End).expect("opened");
    append(&folder.log, " a line\n");
    assert_eq!(read(&mut log), ["half a line"]);
}

#[test]
fn a_renamed_file_is_read_to_its_end() {
    let folder = Folder::new();
    append(&folder.log, "one\n");
    let mut log = folder.open(None);
    assert_eq!(read(&mut log), ["one"]);
    // The server goes on writing to the old file for a while.
    std::fs::rename(&folder.log, folder.path("access.log.1")).expect("renamed");
    append(&folder.path("access.log.1"), "two\n");
    assert_eq!(read(&mut log), ["two"], "no new file yet");
    append(&folder.log, "four\n");
    append(&folder.path("access.log.1"), "three\nhalf");
    assert_eq!(read(&mut log), ["three", "four"]);
    let later = Instant::now() + Duration::from_secs(6);
    assert_eq!(read_at(&mut log, later, true), ["half"], "nobody writes to it any more");
    assert_eq!(log.state().files.len(), 1);
    append(&folder.log, "five\n");
    assert_eq!((read(&mut log), log.gaps), (vec!["five".to_owned()], 0));
}

#[test]
fn a_file_that_was_deleted_after_its_rotation_is_read_all_the_same() {
    let folder = Folder::new();
    append(&folder.log, "one\n");
    let mut log = folder.open(None);
    log.look().expect("looked at");
    for turn in 0..3 {
        std::fs::rename(&folder.log, folder.path("access.log.1")).expect("renamed");
        append(&folder.log, &format!("next {turn}\n"));
        log.look().expect("looked at");
    }
    std::fs::remove_file(folder.path("access.log.1")).expect("removed");
    assert_eq!(read(&mut log), ["one", "next 0", "next 1", "next 2"]);
}

#[test]
fn a_truncated_log_is_read_from_its_start_and_its_copy_to_the_end() {
    let folder = Folder::new();
    append(&folder.log, "one\ntwo\n");
    let mut log = folder.open(None);
    assert_eq!(read(&mut log), ["one", "two"]);
    append(&folder.log, "three\n");
    std::fs::copy(&folder.log, folder.path("access.log.1")).expect("copied");
    File::options().write(true).open(&folder.log).and_then(|file| file.set_len(0)).expect("truncated");
    append(&folder.log, "four\n");
    assert_eq!(read(&mut log), ["three", "four"]);
    // Longer than before at once: only its first bytes tell.
    std::fs::copy(&folder.log, folder.path("access.log.1")).expect("copied");
    std::fs::write(&folder.log, "five and more\nsix and more\n").expect("written");
    assert_eq!((read(&mut log), log.gaps), (vec!["five and more".to_owned(), "six and more".to_owned()], 0));
    // Without a copy nothing can be done but to say so.
    append(&folder.log, "seven\n");
    std::fs::write(&folder.log, "eight\n").expect("written");
    assert_eq!((read(&mut log), log.gaps), (vec!["eight".to_owned()], 1));
}

#[test]
fn a_cursor_neither_loses_nor_doubles() {
    let folder = Folder::new();
    append(&folder.log, "one\ntwo\nthree\n");
    let mut log = folder.open(None);
    log.look().expect("looked at");
    // Of three lines that were read, one is settled.
    let lines: Vec<_> = (0..3).map(|_| log.next_line(Instant::now()).expect("read").expect("a line")).collect();
    log.settle(lines[0].serial, lines[0].found.end);
    let state = log.state();
    drop(log);
    assert_eq!(read(&mut folder.open(Some(&state))), ["two", "three"]);

    // Rotated twice while nobody looked, the old files not being those of other logs or compressed.
    std::fs::rename(&folder.log, folder.path("access.log.2")).expect("renamed");
    std::thread::sleep(Duration::from_millis(20));
    append(&folder.path("access.log.1"), "four\n");
    std::thread::sleep(Duration::from_millis(20));
    append(&folder.path("access.log.0.gz"), "packed\n");
    append(&folder.path("access.logs.1"), "other\n");
    append(&folder.log, "five\n");
    let mut log = folder.open(Some(&state));
    assert_eq!((read(&mut log), log.gaps), (vec!["two", "three", "four", "five"].into_iter().map(str::to_owned).collect(), 0));
    let state = log.state();
    assert_eq!(state.files.len(), 3, "the old ones may still be written to");
    assert_eq!(read(&mut folder.open(Some(&state))), [""; 0]);

    // Copied and truncated while nobody looked.
    let folder = Folder::new();
    append(&folder.log, "one\ntwo\n");
    let mut log = folder.open(None);
    assert_eq!(read(&mut log), ["one", "two"]);
    let state = log.state();
    append(&folder.log, "three\n");
    std::fs::copy(&folder.log, folder.path("access.log-20260131")).expect("copied");
    std::fs::write(&folder.log, "four, longer than all before\n").expect("written");
    let mut log = folder.open(Some(&state));
    assert_eq!((read(&mut log), log.gaps), (vec!["three".to_owned(), "four, longer than all before".to_owned()], 0));

    // Gone for good.
    std::fs::remove_file(folder.path("access.log-20260131")).expect("removed");
    std::fs::write(&folder.log, "five\n").expect("written");
    let mut log = folder.open(Some(&state));
    assert_eq!((read(&mut log), log.gaps), (vec!["five".to_owned()], 1));
}

#[test]
fn a_log_that_is_not_there_yet_is_waited_for() {
    let folder = Folder::new();
    let mut log = folder.open(None);
    assert_eq!(read(&mut log), [""; 0]);
    append(&folder.log, "one\n");
    assert_eq!(read(&mut log), ["one"]);
    std::fs::remove_file(&folder.log).expect("removed");
    assert_eq!(read(&mut log), [""; 0]);
    append(&folder.log, "two\n");
    assert_eq!(read(&mut log), ["two"]);
}
