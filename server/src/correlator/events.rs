//! The events file: alerts and verdicts as JSON lines, for whoever follows them.
//!
//! A thread of its own writes it, so that a slow disk stops neither the correlator nor anything else: what the thread does
//! not keep up with is dropped and counted. The file is opened anew when it is told so, after a rename.

use super::messages::AlertView;
use crate::analytics::detectors::Detector;
use crate::logging::LogFile;
use crate::shard::derived::VerdictReport;
use postanalytics_protocol::frames::{Action, Subject};
use postanalytics_protocol::routing::address_of_bytes;
use serde::Serialize;
use std::io::Write;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use tracing_subscriber::fmt::MakeWriter;

/// Lines that wait to be written.
const LINES_MAX: usize = 8192;

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
    /// Lines handed to the thread.
    pub written: u64,
    /// Lines dropped.
    pub lost: u64,
}

impl EventsFile {
    /// Starts the thread.
    pub fn start(file: LogFile) -> std::io::Result<Self> {
        let (lines, waiting) = sync_channel(LINES_MAX);
        let thread = std::thread::Builder::new().name("events".to_owned()).spawn(move || write_all(&file, &waiting))?;
        Ok(Self { lines, thread, written: 0, lost: 0 })
    }

    /// Hands a line over, if there is room for it.
    pub fn write(&mut self, event: &Event) {
        let is_taken = serde_json::to_string(event).is_ok_and(|mut line| {
            line.push('\n');
            self.lines.try_send(line).is_ok()
        });
        self.written += u64::from(is_taken);
        self.lost += u64::from(!is_taken);
    }

    /// Waits until all is written.
    pub fn finish(self) {
        drop(self.lines);
        let _ = self.thread.join();
    }
}

/// Writes lines for as long as any may come; says once that it cannot, and once that it can again.
fn write_all(file: &LogFile, lines: &Receiver<String>) {
    let mut fails = false;
    for line in lines {
        let outcome = file.make_writer().write_all(line.as_bytes());
        if outcome.is_err() != fails {
            fails = outcome.is_err();
            match outcome {
                Err(error) => tracing::error!(%error, "events cannot be written and are dropped: is the disk full?"),
                Ok(()) => tracing::info!("events are written again"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use postanalytics_protocol::frames::Verdict;

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
        events.write(&Event::Verdict(VerdictView::of(&VerdictReport { verdict, at_us: 1_700_000_000_000_000 })));
        assert_eq!((events.written, events.lost), (1, 0));
        events.finish();
        assert_eq!(
            std::fs::read_to_string(&path).expect("reads"),
            "{\"event\":\"verdict\",\"time\":\"2023-11-14T22:13:20.000000Z\",\"kind\":\"source\",\"value\":\"192.0.2.7\",\
             \"application\":-1,\"action\":\"denylist\",\"until\":\"2023-11-14T22:14:20.000000Z\",\"detector\":\"scanner\"}\n"
        );
    }
}
