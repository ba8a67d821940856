//! The events file: alerts and verdicts as JSON lines, for whoever follows them.
//!
//! A thread of its own writes it, so that a slow disk stops neither the correlator nor anything else: what the thread does
//! not keep up with is dropped and counted, and so is what cannot be written. The file is opened anew when it is told so, after
//! a rename.
//!
//! A verdict by hand is set on every shard, and each tells it: it is one line all the same.

use super::messages::AlertView;
use crate::analytics::detectors::Detector;
use crate::escape::plain_json;
use crate::logging::LogFile;
use crate::shard::derived::VerdictReport;
use postanalytics_protocol::frames::{Action, Subject, Verdict};
use postanalytics_protocol::routing::address_of_bytes;
use serde::Serialize;
use std::collections::HashMap;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use tracing_subscriber::fmt::MakeWriter;

/// Lines that wait to be written.
const LINES_MAX: usize = 8192;
/// Verdicts by hand that another shard may tell once more, and for how long.
const REPEATS_MAX: usize = 8192;
const REPEAT_US: u64 = 2_000_000;

/// A line.
#[derive(Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// An alert was raised.
    AlertRaised(AlertView),
    /// It is final.
    AlertFinal(AlertView),
    /// A verdict was set or taken back.
    Verdict(VerdictView),
}

/// A verdict as shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct VerdictView {
    /// When it was set.
    pub time: String,
    /// `source` or `session`.
    pub kind: &'static str,
    pub value: String,
    /// `None` for all.
    pub application: Option<i32>,
    /// `graylist`, `denylist`, or `none` when it is taken back.
    pub action: &'static str,
    pub until: String,
    /// The detector that made it, `hand` if none did.
    pub detector: &'static str,
}

impl VerdictView {
    /// As shown.
    pub fn of(report: &VerdictReport) -> Self {
        let verdict = report.verdict;
        let (kind, value) = match verdict.subject {
            Subject::Source(bytes) => ("source", source_text(bytes)),
            Subject::Session(hash) => ("session", format!("{hash:016x}")),
        };
        let detector = Detector::ALL.iter().find(|one| **one as u16 + 1 == verdict.detector);
        Self {
            time: crate::analytics::alerts::time_text(report.at_us),
            kind,
            value,
            application: verdict.application,
            action: match verdict.action {
                None => "none",
                Some(Action::Graylist) => "graylist",
                Some(Action::Denylist) => "denylist",
            },
            until: crate::analytics::alerts::time_text(verdict.until_us),
            detector: detector.map_or("hand", |one| one.name()),
        }
    }
}

fn source_text(bytes: [u8; 16]) -> String {
    let source = postanalytics_protocol::Source::of(address_of_bytes(bytes));
    crate::analytics::alerts::source_text(source.key(), false)
}

/// See the module.
#[derive(Debug)]
pub struct EventsFile {
    lines: SyncSender<String>,
    thread: JoinHandle<()>,
    counts: Arc<Counts>,
    /// Lines that found no room.
    dropped: u64,
    /// The last line about a subject and application, of those that every shard tells.
    told: HashMap<(Subject, Option<i32>), VerdictReport>,
}

/// What the thread did.
#[derive(Debug, Default)]
struct Counts {
    written: AtomicU64,
    failed: AtomicU64,
}

impl EventsFile {
    /// Starts the thread.
    pub fn start(file: LogFile) -> std::io::Result<Self> {
        let (lines, waiting) = sync_channel(LINES_MAX);
        let counts = Arc::new(Counts::default());
        let counted = Arc::clone(&counts);
        let write = move || write_all(&file, &waiting, &counted);
        let thread = std::thread::Builder::new().name("events".to_owned()).spawn(write)?;
        Ok(Self { lines, thread, counts, dropped: 0, told: HashMap::new() })
    }

    /// Lines written.
    pub fn written(&self) -> u64 {
        self.counts.written.load(Ordering::Relaxed)
    }

    /// Lines dropped, because the thread did not keep up or they could not be written.
    pub fn lost(&self) -> u64 {
        self.dropped + self.counts.failed.load(Ordering::Relaxed)
    }

    /// Hands a line over, if there is room for it.
    pub fn write(&mut self, event: &Event) {
        let is_taken = serde_json::to_string(event).is_ok_and(|line| {
            let mut line = plain_json(line);
            line.push('\n');
            self.lines.try_send(line).is_ok()
        });
        self.dropped += u64::from(!is_taken);
    }

    /// Hands a verdict over, unless another shard has just told the same.
    pub fn write_verdict(&mut self, report: &VerdictReport) {
        if !self.is_repeat(report) {
            self.write(&Event::Verdict(VerdictView::of(report)));
        }
    }

    fn is_repeat(&mut self, report: &VerdictReport) -> bool {
        let verdict = report.verdict;
        let key = (verdict.subject, verdict.application);
        // What a detector lists is told by the shard of its source alone. It may be taken back by hand, and again: what was told before
        // it is no more what holds.
        if verdict.detector != 0 && verdict.action.is_some() {
            self.told.remove(&key);
            return false;
        }
        let is_recent = |told: &VerdictReport| told.at_us.abs_diff(report.at_us) < REPEAT_US;
        if self.told.len() >= REPEATS_MAX {
            self.told.retain(|_, told| is_recent(told));
        }
        if self.told.len() >= REPEATS_MAX {
            // Rather a line twice than none.
            self.told.clear();
        }
        let is_repeat = self.told.get(&key).is_some_and(|told| is_recent(told) && is_same(&told.verdict, &verdict));
        // A repeat takes no line's place: whoever renews his listing every second is told of it again.
        if !is_repeat {
            self.told.insert(key, *report);
        }
        is_repeat
    }

    /// Waits until all is written.
    pub fn finish(self) {
        drop(self.lines);
        let _ = self.thread.join();
    }
}

/// Whether two shards that tell these of a subject and application tell the same. Each stamps by the clock of its own turn until when
/// a verdict lasts.
fn is_same(one: &Verdict, other: &Verdict) -> bool {
    let ends_alike = one.action.is_none() || one.until_us.abs_diff(other.until_us) < REPEAT_US;
    (one.action, one.detector) == (other.action, other.detector) && ends_alike
}

/// Writes lines for as long as any may come; says once that it cannot, and once that it can again.
fn write_all(file: &LogFile, lines: &Receiver<String>, counts: &Counts) {
    let (mut fails, mut is_torn) = (false, false);
    for line in lines {
        let outcome = write_line(&mut file.make_writer(), line, &mut is_torn);
        let count = if outcome.is_ok() { &counts.written } else { &counts.failed };
        count.fetch_add(1, Ordering::Relaxed);
        if outcome.is_err() != fails {
            fails = outcome.is_err();
            match outcome {
                Err(error) => tracing::error!(%error, "events cannot be written and are dropped: is the disk full?"),
                Ok(()) => tracing::info!("events are written again"),
            }
        }
    }
}

/// Writes a line. Where one before it came out half (a disk that is full takes what still fits), that half is ended first.
fn write_line(file: &mut impl Write, mut line: String, is_torn: &mut bool) -> std::io::Result<()> {
    if *is_torn {
        line.insert(0, '\n');
    }
    let mut left = line.as_bytes();
    while !left.is_empty() {
        match file.write(left) {
            Ok(0) => return Err(std::io::ErrorKind::WriteZero.into()),
            Ok(count) => {
                left = &left[count..];
                *is_torn = !left.is_empty();
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_are_lines_of_json() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("events");
        let mut events = EventsFile::start(LogFile::open(&path).expect("opens")).expect("starts");
        let mut bytes = [0; 16];
        bytes[10..].copy_from_slice(&[255, 255, 192, 0, 2, 7]);
        let verdict = Verdict {
            subject: Subject::Source(bytes),
            application: Some(-1),
            action: Some(Action::Denylist),
            until_us: 1_700_000_060_000_000,
            detector: Detector::Scanner as u16 + 1,
        };
        let at_us = 1_700_000_000_000_000;
        events.write_verdict(&VerdictReport { verdict, at_us });
        // Each shard lets it end by the time of its own turn. A removal ends when the shard's listing would have, or by its own time.
        let mut by_hand = |action, at_us, until_us| {
            let verdict = Verdict { action, application: None, detector: 0, until_us, ..verdict };
            events.write_verdict(&VerdictReport { verdict, at_us });
        };
        let until_us = at_us + 3_600_000_000;
        (0..3).for_each(|shard| by_hand(Some(Action::Denylist), at_us + shard, until_us + shard));
        (0..3).for_each(|shard| by_hand(Some(Action::Denylist), at_us + 5 + shard, until_us + REPEAT_US + 5 + shard));
        (0..3).for_each(|shard| by_hand(None, at_us + 10 + shard, until_us * shard));
        by_hand(None, at_us + 10 + REPEAT_US * 2, until_us);
        // Renewed every second.
        (0..4).for_each(|second| {
            let at_us = at_us + REPEAT_US * 3 + second * 1_000_000;
            by_hand(Some(Action::Denylist), at_us, at_us + 60_000_000);
        });
        let counts = Arc::clone(&events.counts);
        events.finish();
        assert_eq!((counts.written.load(Ordering::Relaxed), counts.failed.load(Ordering::Relaxed)), (7, 0));
        let text = std::fs::read_to_string(&path).expect("reads");
        let actions: Vec<&str> = text.lines().skip(1).filter_map(|line| line.split('"').nth(21)).collect();
        let expected = ["denylist", "denylist", "none", "none", "denylist", "denylist"];
        assert_eq!(actions, expected, "one line each, however many shards tell it");
        assert_eq!(
            text.lines().next().expect("a line").to_owned() + "\n",
            "{\"event\":\"verdict\",\"time\":\"2023-11-14T22:13:20.000000Z\",\"kind\":\"source\",\"value\":\"192.0.2.7\",\
             \"application\":-1,\"action\":\"denylist\",\"until\":\"2023-11-14T22:14:20.000000Z\",\"detector\":\"scanner\"}\n"
        );
    }

    #[test]
    fn who_is_listed_again_at_once_and_taken_back_again_is_told_so() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut events = EventsFile::start(LogFile::open(&folder.path().join("events")).expect("opens")).expect("starts");
        let detector = Detector::Scanner as u16 + 1;
        for (at_us, action) in (1..).zip([Some(Action::Denylist), None, Some(Action::Denylist), None]) {
            let verdict = Verdict { subject: Subject::Session(1), application: None, action, until_us: at_us, detector };
            events.write_verdict(&VerdictReport { verdict, at_us });
        }
        let counts = Arc::clone(&events.counts);
        events.finish();
        assert_eq!(counts.written.load(Ordering::Relaxed), 4);
    }

    #[test]
    fn what_a_full_disk_takes_is_lost_and_counted() {
        let mut events = EventsFile::start(LogFile::open(std::path::Path::new("/dev/full")).expect("opens")).expect("starts");
        let verdict = Verdict { subject: Subject::Session(1), application: None, action: None, until_us: 0, detector: 0 };
        events.write_verdict(&VerdictReport { verdict, at_us: 0 });
        let counts = Arc::clone(&events.counts);
        events.finish();
        assert_eq!((counts.written.load(Ordering::Relaxed), counts.failed.load(Ordering::Relaxed)), (0, 1));
    }

    /// Takes so many bytes and then no more.
    struct Disk {
        room: usize,
        text: Vec<u8>,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let count = bytes.len().min(self.room);
            self.room -= count;
            self.text.extend_from_slice(&bytes[..count]);
            if count == 0 { Err(std::io::ErrorKind::StorageFull.into()) } else { Ok(count) }
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn half_a_line_is_not_glued_to_the_next() {
        let (mut disk, mut is_torn) = (Disk { room: 7, text: Vec::new() }, false);
        let mut write = |disk: &mut Disk, line: &str| write_line(disk, line.to_owned(), &mut is_torn).is_ok();
        assert!(write(&mut disk, "one\n") && !write(&mut disk, "two two\n") && !write(&mut disk, "three\n"));
        disk.room = 100;
        assert!(write(&mut disk, "four\n") && write(&mut disk, "five\n"));
        assert_eq!(String::from_utf8_lossy(&disk.text), "one\ntwo\nfour\nfive\n");
    }
}
