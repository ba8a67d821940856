//! Logs that are rotated, truncated and read again, with real files.

use super::log::{Begin, Log, LogState, unseen_us};
use super::{Agent, has_settled};
use crate::config::flags::{Command, CommandLine};
use clap::Parser;
use postanalytics_client::Counters;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant, SystemTime};

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
        Log::open(self.log.clone(), &[], state, Begin::Start).expect("opened")
    }
}

fn append(path: &Path, text: &str) {
    File::options().create(true).append(true).open(path).and_then(|mut file| file.write_all(text.as_bytes())).expect("written");
}

/// What is there now, settled or not.
fn read_at(log: &mut Log, now: Instant, settle: bool) -> Vec<String> {
    log.look(now).expect("looked at");
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
    let mut end = Log::open(folder.log.clone(), &[], None, Begin::End).expect("opened");
    assert_eq!(read(&mut end), [""; 0]);
    append(&folder.log, "six\n");
    assert_eq!((read(&mut end), read(&mut log)), (vec!["six".to_owned()], vec!["six".to_owned()]));
}

#[test]
fn the_end_is_that_of_the_last_whole_line() {
    let folder = Folder::new();
    append(&folder.log, &format!("{}\nhalf", "x".repeat(100_000)));
    let mut log = Log::open(folder.log.clone(), &[], None, Begin::End).expect("opened");
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

/// The server writes its last lines into the old file when it has been quiet for long, too: silence counts from the new name on.
#[test]
fn lines_between_rename_and_reopen_are_read_after_a_quiet_night() {
    let folder = Folder::new();
    append(&folder.log, "one\n");
    let mut log = folder.open(None);
    assert_eq!(read(&mut log), ["one"]);
    let later = |seconds| Instant::now() + Duration::from_secs(seconds);
    std::fs::rename(&folder.log, folder.path("access.log.1")).expect("renamed");
    append(&folder.log, "");
    assert_eq!(read_at(&mut log, later(3600), true), [""; 0]);
    append(&folder.path("access.log.1"), "two\n");
    assert_eq!(read_at(&mut log, later(3601), true), ["two"]);
    assert_eq!(read_at(&mut log, later(3607), true), [""; 0]);
    assert_eq!((log.state().files.len(), log.gaps), (1, 0));
}

/// The same for who does not wait: a file that was renamed just now is left for the next time.
#[test]
fn who_does_not_wait_finishes_old_files_only() {
    let folder = Folder::new();
    append(&folder.log, "one\n");
    let mut log = folder.open(None);
    assert_eq!(read(&mut log), ["one"]);
    let mut state = log.state();
    std::fs::rename(&folder.log, folder.path("access.log.1")).expect("renamed");
    append(&folder.log, "three\n");
    let once = |state: &mut LogState, later: u64| {
        let mut log = folder.open(Some(state));
        log.end_here().expect("looked at");
        // What comes after the start is not read, however long it takes.
        append(&folder.log, "later\n");
        let mut lines = Vec::new();
        while let Some(line) = log.next_line(Instant::now() + Duration::from_secs(3600)).expect("read") {
            lines.push(String::from_utf8_lossy(log.text(&line)).into_owned());
            log.settle(line.serial, line.found.end);
        }
        while let Some(line) = log.next_rest(SystemTime::now() + Duration::from_secs(later)) {
            lines.push(String::from_utf8_lossy(log.text(&line)).into_owned());
            log.settle(line.serial, line.found.end);
        }
        *state = log.state();
        (lines, log.gaps)
    };
    let owned = |lines: &[&str]| (lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>(), 0);
    assert_eq!(once(&mut state, 0), owned(&["three"]));
    append(&folder.path("access.log.1"), "two\nhalf");
    assert_eq!(once(&mut state, 0), owned(&["two", "later"]));
    assert_eq!((once(&mut state, 6), state.files.len()), (owned(&["later", "half"]), 1));
}

/// Nobody looked while the log was rotated twice: stopped, or without a free descriptor.
#[test]
fn files_that_were_rotated_unseen_are_read() {
    let folder = Folder::new();
    append(&folder.log, "one\n");
    let mut log = folder.open(None);
    assert_eq!(read(&mut log), ["one"]);
    let rotate = |to: &str| std::fs::rename(&folder.log, folder.path(to)).expect("renamed");
    rotate("access.log.2");
    append(&folder.log, "two\n");
    std::fs::copy(folder.path("access.log.2"), folder.path("access.log.9")).expect("copied");
    rotate("access.log.1");
    append(&folder.log, "three\n");
    let later = Instant::now() + Duration::from_secs(60);
    assert_eq!((read_at(&mut log, later, true), log.gaps), (vec!["two".to_owned(), "three".to_owned()], 0));

    // The old file is gone: there may have been more between it and the newest.
    std::fs::remove_file(&folder.log).expect("removed");
    append(&folder.log, "four\n");
    rotate("access.log.3");
    append(&folder.log, "five\n");
    let later = later + Duration::from_secs(60);
    assert_eq!((read_at(&mut log, later, true), log.gaps), (vec!["four".to_owned(), "five".to_owned()], 1));
}

/// Two rotations while the agent did not run, the older file compressed: the newer one is read, whole.
#[test]
fn what_was_rotated_after_a_file_that_is_gone_is_read() {
    let folder = Folder::new();
    append(&folder.log, "one\n");
    let mut log = folder.open(None);
    assert_eq!(read(&mut log), ["one"]);
    let state = log.state();
    drop(log);
    std::fs::remove_file(&folder.log).expect("removed");
    append(&folder.path("access.log.2.gz"), "packed\n");
    append(&folder.path("access.log.1"), "two\n");
    append(&folder.log, "three\n");
    let mut log = folder.open(Some(&state));
    assert_eq!((read(&mut log), log.gaps), (vec!["two".to_owned(), "three".to_owned()], 1));

    // One in which nothing was read yet may have had lines as well.
    let folder = Folder::new();
    append(&folder.log, "");
    let state = folder.open(None).state();
    std::fs::rename(&folder.log, folder.path("access.log.1")).expect("renamed");
    append(&folder.log, "two\n");
    std::fs::remove_file(folder.path("access.log.1")).expect("removed");
    let mut log = folder.open(Some(&state));
    assert_eq!((read(&mut log), log.gaps), (vec!["two".to_owned()], 1));
}

/// Names that begin with the log's are not all its own: another log, rotated and made anew with it, is none of its files.
#[test]
fn other_logs_whose_names_begin_with_the_log_s_are_not_read() {
    let folder = Folder::new();
    let others = ["access.log-api", "access.log.json", "access.log.pos", "access.log-error.1", "access.log-2", "access.log-2.1"];
    let followed = [folder.log.clone(), folder.path("access.log-2")];
    append(&folder.log, "one\n");
    let open = |state: Option<&LogState>| Log::open(folder.log.clone(), &followed, state, Begin::Start).expect("opened");
    let mut log = open(None);
    assert_eq!(read(&mut log), ["one"]);
    let state = log.state();
    let rotate = |to: &str, next: &str| {
        std::fs::rename(&folder.log, folder.path(to)).expect("renamed");
        append(&folder.log, next);
        std::thread::sleep(Duration::from_millis(20));
    };
    for (name, rotated) in
        ["access.log.2", "access.log-20260131", "access.log_2026-01-31T00:00:00Z"].iter().zip(["two", "three", "four"])
    {
        rotate(name, &format!("{rotated}\n"));
    }
    rotate("access.log.old", "five\n");
    for name in others {
        append(&folder.path(name), &format!("of {name}\n"));
    }
    let all = ["two", "three", "four", "five"];
    assert_eq!((read(&mut log), log.gaps), (all.map(str::to_owned).to_vec(), 0));
    let mut log = open(Some(&state));
    assert_eq!((read(&mut log), log.gaps), (all.map(str::to_owned).to_vec(), 0));

    // Nor is it a copy of what was truncated.
    std::fs::copy(&folder.log, folder.path("access.log-api")).expect("copied");
    std::fs::write(&folder.log, "6\n").expect("written");
    assert_eq!((read(&mut log), log.gaps), (vec!["6".to_owned()], 1));

    // What has a longer name is a log of its own, with its own rotated files.
    let followed = [folder.path("access.log-2"), folder.log.clone()];
    let mut second = Log::open(followed[0].clone(), &followed, None, Begin::End).expect("opened");
    std::fs::rename(&followed[0], folder.path("access.log-2.1")).expect("renamed");
    append(&followed[0], "its own, 2\n");
    std::fs::rename(&followed[0], folder.path("access.log-2.0")).expect("renamed");
    append(&followed[0], "its own, 3\n");
    assert_eq!((read(&mut second), second.gaps), (vec!["its own, 2".to_owned(), "its own, 3".to_owned()], 0));
}

/// A name that no rotation is known to give hides what else was rotated: that is not lost silently.
#[test]
fn a_log_that_was_renamed_to_an_unknown_name_unseen_is_a_gap() {
    let folder = Folder::new();
    append(&folder.log, "one\n");
    let mut log = folder.open(None);
    assert_eq!(read(&mut log), ["one"]);
    let state = log.state();
    append(&folder.log, "two\n");
    std::fs::rename(&folder.log, folder.path("access.log.before")).expect("renamed");
    append(&folder.path("access.log.after"), "between\n");
    append(&folder.log, "three\n");
    let mut restarted = folder.open(Some(&state));
    assert_eq!((read(&mut restarted), restarted.gaps), (vec!["two".to_owned(), "three".to_owned()], 1));
    let later = Instant::now() + Duration::from_secs(60);
    assert_eq!((read_at(&mut log, later, true), log.gaps), (vec!["two".to_owned(), "three".to_owned()], 1));
}

/// The clock was ahead when the name was last seen, and was set back while the agent did not run.
#[test]
fn a_clock_that_was_set_back_loses_nothing_silently() {
    let hour_us = 3_600_000_000;
    let folder = Folder::new();
    append(&folder.path("access.log.2"), "read long ago\n");
    std::thread::sleep(Duration::from_millis(20));
    append(&folder.log, "one\n");
    let mut log = folder.open(None);
    assert_eq!(read(&mut log), ["one"]);
    let mut state = log.state();
    state.seen_us += hour_us;
    std::fs::rename(&folder.log, folder.path("access.log.1")).expect("renamed");
    append(&folder.path("access.log.0"), "two\n");
    append(&folder.log, "three\n");
    let mut log = folder.open(Some(&state));
    assert_eq!((read(&mut log), log.gaps), (vec!["two".to_owned(), "three".to_owned()], 0));

    // So much that the newest file seems to be older than the last one: what came between cannot be told.
    let folder = Folder::new();
    append(&folder.path("next"), "three\n");
    std::thread::sleep(Duration::from_millis(20));
    append(&folder.log, "one\n");
    let mut log = folder.open(None);
    assert_eq!(read(&mut log), ["one"]);
    let mut state = log.state();
    state.seen_us += hour_us;
    std::fs::rename(&folder.log, folder.path("access.log.1")).expect("renamed");
    std::fs::rename(folder.path("next"), &folder.log).expect("renamed");
    let mut log = folder.open(Some(&state));
    assert_eq!((read(&mut log), log.gaps), (vec!["three".to_owned()], 1));

    // Truncated, not renamed: the log was made before all of its copies.
    let folder = Folder::new();
    append(&folder.log, "one\n");
    let mut log = folder.open(None);
    assert_eq!(read(&mut log), ["one"]);
    let mut state = log.state();
    for seen_us in [state.seen_us, state.seen_us + hour_us] {
        let _ = std::fs::remove_file(folder.path("access.log.1"));
        std::fs::write(&folder.log, "one\n").expect("written");
        std::thread::sleep(Duration::from_millis(150));
        std::fs::copy(&folder.log, folder.path("access.log.2")).expect("copied");
        std::thread::sleep(Duration::from_millis(20));
        append(&folder.path("access.log.1"), "two\n");
        std::fs::write(&folder.log, "three, longer\n").expect("written");
        state.seen_us = seen_us;
        let mut log = folder.open(Some(&state));
        assert_eq!((read(&mut log), log.gaps), (vec!["two".to_owned(), "three, longer".to_owned()], 0));
        std::fs::remove_file(folder.path("access.log.2")).expect("removed");
    }
}

/// The same while it runs: files that were read to their end have times to come, and are not read again.
#[test]
fn files_of_before_the_clock_was_set_back_are_not_read_again() {
    let second_us = 1_000_000;
    let seen_us = 1_000 * second_us;
    let next_us = seen_us + second_us;
    let unseen = unseen_us(seen_us, next_us, Some(seen_us / 2), next_us).expect("known");
    assert!(unseen.contains(&seen_us) && unseen.contains(&next_us) && !unseen.contains(&(seen_us / 2 + 1)));
    assert!(!unseen.contains(&(seen_us + 3_600 * second_us)), "made and read before the clock was set back by an hour");
    // Another machine's clock, which makes the times of files, may be ahead by as much as it likes if the newest file shows it.
    let ahead_us = seen_us + 3_600 * second_us;
    assert!(unseen_us(seen_us, ahead_us, None, next_us).expect("known").contains(&ahead_us));
    // Set back since the name was last seen: made before it and after.
    let unseen = unseen_us(seen_us, seen_us / 2, Some(seen_us / 4), seen_us / 2).expect("known");
    assert!(unseen.contains(&(seen_us / 3)) && unseen.contains(&(seen_us + 1)) && !unseen.contains(&(seen_us / 5)));
    assert_eq!(unseen_us(seen_us, seen_us / 2, Some(seen_us - 1), seen_us / 2), None);
    assert_eq!(unseen_us(seen_us, seen_us / 2, None, seen_us / 2), None);
}

/// A file that was read to its end is not read again, even if the one after it was never written to.
#[test]
fn a_quiet_log_that_is_rotated_again_is_not_read_again() {
    let folder = Folder::new();
    append(&folder.log, "one\n");
    let mut log = folder.open(None);
    assert_eq!(read(&mut log), ["one"]);
    std::fs::rename(&folder.log, folder.path("access.log.1")).expect("renamed");
    append(&folder.log, "");
    log.look(Instant::now()).expect("looked at");
    append(&folder.path("access.log.1"), "two\n");
    assert_eq!(read(&mut log), ["two"]);
    std::thread::sleep(Duration::from_millis(150));
    let mut later = Instant::now() + Duration::from_secs(6);
    assert_eq!(read_at(&mut log, later, true), [""; 0]);
    let state = log.state();
    assert_eq!(state.files.len(), 1);
    std::fs::rename(folder.path("access.log.1"), folder.path("access.log.2")).expect("renamed");
    std::fs::rename(&folder.log, folder.path("access.log.1")).expect("renamed");
    append(&folder.log, "three\n");
    later += Duration::from_secs(6);
    assert_eq!((read_at(&mut log, later, true), log.gaps), (vec!["three".to_owned()], 0));
    let mut log = folder.open(Some(&state));
    assert_eq!((read(&mut log), log.gaps), (vec!["three".to_owned()], 0));
}

#[test]
fn a_file_that_was_deleted_after_its_rotation_is_read_all_the_same() {
    let folder = Folder::new();
    append(&folder.log, "one\n");
    let mut log = folder.open(None);
    log.look(Instant::now()).expect("looked at");
    for turn in 0..3 {
        std::fs::rename(&folder.log, folder.path("access.log.1")).expect("renamed");
        append(&folder.log, &format!("next {turn}\n"));
        log.look(Instant::now()).expect("looked at");
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
    log.look(Instant::now()).expect("looked at");
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

    // One that was made before, elsewhere.
    let folder = Folder::new();
    append(&folder.path("ready"), "one\n");
    std::thread::sleep(Duration::from_millis(150));
    let mut log = folder.open(None);
    std::fs::rename(folder.path("ready"), &folder.log).expect("renamed");
    assert_eq!((read(&mut log), log.gaps), (vec!["one".to_owned()], 0));
}

#[test]
fn once_fails_if_a_log_cannot_be_read_to_its_end() {
    let folder = Folder::new();
    append(&folder.log, "no line of a log\n");
    let text = |path: PathBuf| path.to_str().expect("a text").to_owned();
    let (log, state) = (text(folder.log.clone()), text(folder.path("agent.json")));
    let arguments = ["postanalytics", "agent", "--once", "--tail", &log, "--state", &state, "--server", "127.0.0.1:1"];
    let Some(Command::Agent(flags)) = CommandLine::parse_from(arguments).command else { panic!("not the agent") };
    let follow = |is_broken: bool| {
        let mut agent = Agent::new(&flags).expect("an agent");
        if is_broken {
            agent.logs[0].break_it();
        }
        let outcome = agent.follow(&AtomicBool::new(false));
        agent.end(outcome)
    };
    let error = follow(true).expect_err("it was not read");
    assert!(format!("{error:#}").contains(&log), "{error:#}");
    follow(false).expect("nothing is wrong with it now");
}

/// Packed lines are none: they would all be malformed, and a cursor would pass them.
#[test]
fn a_compressed_log_is_refused() {
    let folder = Folder::new();
    for magic in [&b"\x1f\x8b\x08\0"[..], b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\0", b"BZh91AY&SY"] {
        std::fs::write(&folder.log, [magic, b"packed\nmore\n"].concat()).expect("written");
        for begin in [Begin::Start, Begin::End] {
            let error = Log::open(folder.log.clone(), &[], None, begin).expect_err("it is compressed").to_string();
            assert!(error.contains("is compressed: unpack it"), "{error}");
        }
        let text = |path: PathBuf| path.to_str().expect("a text").to_owned();
        let (log, state) = (text(folder.log.clone()), text(folder.path("agent.json")));
        let arguments = ["postanalytics", "agent", "--once", "--tail", &log, "--state", &state, "--server", "127.0.0.1:1"];
        let Some(Command::Agent(flags)) = CommandLine::parse_from(arguments).command else { panic!("not the agent") };
        let error = format!("{:#}", Agent::new(&flags).err().expect("it is compressed"));
        assert!(error.contains(&log) && error.contains("is compressed") && !error.contains("check the name"), "{error}");
    }
}

/// A visitor may name a host that looks like three letters of a compressed file; and a file that was packed under the name of a
/// rotated one keeps nobody from reading the others.
#[test]
fn what_only_looks_compressed_is_read_and_a_packed_rotated_file_is_a_gap() {
    let folder = Folder::new();
    append(&folder.log, "BZh first\n");
    let mut log = folder.open(None);
    assert_eq!(read(&mut log), ["BZh first"]);
    let state = log.state();
    drop(log);
    std::fs::remove_file(&folder.log).expect("removed");
    std::fs::write(folder.path("access.log.2"), b"\x1f\x8b\x08packed\n").expect("written");
    append(&folder.path("access.log.1"), "two\n");
    append(&folder.log, "three\n");
    let mut log = folder.open(Some(&state));
    assert_eq!((read(&mut log), log.gaps), (vec!["two".to_owned(), "three".to_owned()], 2));
}

/// Of a client that has ended nothing is left either: its records are lost, and a cursor must not pass them.
#[test]
fn what_a_client_left_when_it_ended_is_not_settled() {
    let lost = Counters { offered: 3, accepted: 3, acked: 1, lost: 2, ..Counters::default() };
    assert!(has_settled(&lost, false) && !has_settled(&lost, true));
    assert!(!has_settled(&Counters { queued: 1, ..lost }, false) && !has_settled(&Counters { in_flight: 1, ..lost }, false));
}
