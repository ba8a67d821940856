//! `postanalytics audit`: what the detectors would have caught in logs, how fast, and the memory that such traffic needs.
//!
//! Two passes over the files. The first is a replay, and gives the alerts. The second knows whom they are about: it counts the
//! requests of those from the first on ([`history`]), and the load of every minute ([`load`]). So memory grows with
//! attackers and sources, not with lines. [`page`] is what a person reads, [`Findings`] what `--json` writes.
//!
//! It judges nothing by itself: alerts are those of a replay with the same configuration.

pub mod history;
pub mod load;
pub mod page;

use crate::config::flags::{AuditFlags, LineFormat, ReplayFlags};
use crate::escape::plain_json;
use crate::replay;
use crate::replay::lines::Lines;
use crate::replay::record;
use anyhow::{Result, bail};
use history::{Attacker, DetectorCount, Histories, Speed};
use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use load::{Load, Needs};
use postanalytics_protocol::{RecordFields, Source};
use serde::Serialize;
use std::collections::HashSet;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

/// Lines between two looks at the progress.
const PROGRESS_LINES: u64 = 8192;

/// Everything that was found, as `--json` writes it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Findings {
    pub files: Vec<String>,
    pub lines: u64,
    pub records: u64,
    /// Lines that are none of this format, or have no address or no time.
    pub unreadable: u64,
    /// Of the first of them: its number, the cause, and its beginning, masked. Empty if there is none.
    pub first_unreadable: String,
    /// Lines dropped because they are more than a day ahead of their file's clock.
    pub ahead: u64,
    pub sources: u64,
    /// Times of the earliest and the latest record, RFC 3339.
    pub from: String,
    pub until: String,
    pub alerts: u64,
    pub attackers: Vec<Attacker>,
    pub detectors: Vec<DetectorCount>,
    /// From an attacker's first request to his first alert.
    pub speed: Option<Speed>,
    pub needs: Needs,
}

/// Runs the command.
pub fn audit(flags: &AuditFlags) -> Result<()> {
    let findings = examine(flags)?;
    let mut out = std::io::stdout().lock();
    if flags.json {
        writeln!(out, "{}", plain_json(serde_json::to_string_pretty(&findings)?))?;
    } else {
        write!(out, "{}", page::render(&findings))?;
    }
    Ok(())
}

/// Both passes.
pub fn examine(flags: &AuditFlags) -> Result<Findings> {
    let replayed = ReplayFlags {
        format: flags.format,
        config: flags.config.clone(),
        shards: flags.shards,
        keys: flags.keys,
        no_filter: false,
        files: flags.files.clone(),
        from_server: None,
        last: String::new(),
        status_token_file: None,
    };
    if let Some(path) = flags.files.iter().find(|path| path.exists() && !replay::is_regular(path)) {
        bail!(
            "{} is no regular file, and an audit reads its logs twice: write it into a file, which may be gzip",
            path.display()
        );
    }
    let config = replay::configuration(flags.config.as_deref())?;
    let progress = Progress::new("looking for attackers");
    let (summary, found) = replay::find(&replayed, &config)?;
    drop(progress);
    let mut second = Second {
        format: flags.format,
        ahead_us: config.ahead_us,
        findings: Findings { first_unreadable: summary.first_unreadable, ..Findings::default() },
        histories: Histories::of(&found.sorted),
        sources: HashSet::new(),
        load: Load::default(),
        progress: Progress::new("counting requests"),
    };
    for path in &flags.files {
        second.read(path)?;
    }
    Ok(second.finish(&flags.files, found.keys))
}

/// The second pass.
struct Second {
    format: LineFormat,
    ahead_us: u64,
    findings: Findings,
    histories: Histories,
    sources: HashSet<u64>,
    load: Load,
    progress: Progress,
}

impl Second {
    /// One file, whose lines are numbered and dropped as a replay does it.
    fn read(&mut self, path: &std::path::Path) -> Result<()> {
        let (mut lines, mut clock_us) = (Lines::open(path)?, None);
        while let Some((line, is_too_long)) = lines.next()? {
            if line.is_empty() && !is_too_long {
                continue;
            }
            self.findings.lines += 1;
            if self.findings.lines.is_multiple_of(PROGRESS_LINES) {
                self.progress.show(self.findings.lines);
            }
            let (format, ahead_us) = (self.format, self.ahead_us);
            let taken = record::read(format, line, None, |fields| {
                let clock = clock_us.get_or_insert(fields.event_us);
                if fields.event_us > clock.saturating_add(ahead_us) {
                    self.findings.ahead += 1;
                    return;
                }
                *clock = fields.event_us.max(*clock);
                self.take(fields);
            });
            self.findings.unreadable += u64::from(taken.is_err());
        }
        Ok(())
    }

    fn take(&mut self, fields: &RecordFields<'_>) {
        let source = Source::of_bytes(&fields.client_ip).key();
        self.findings.records += 1;
        self.sources.insert(source);
        self.load.add(fields);
        self.histories.note(source, fields.user_hash, fields.event_us, self.findings.lines);
    }

    fn finish(mut self, files: &[PathBuf], keys: usize) -> Findings {
        let needs = self.load.needs(keys as u64);
        let (attackers, detectors, speed) = self.histories.finish();
        let (from, until) = self.load.period();
        Findings {
            files: files.iter().map(|file| file.display().to_string()).collect(),
            sources: self.sources.len() as u64,
            from,
            until,
            alerts: detectors.iter().map(|detector| detector.alerts).sum(),
            attackers,
            detectors,
            speed,
            needs,
            ..self.findings
        }
    }
}

/// A line on standard error, if somebody sits there.
struct Progress(ProgressBar);

impl Progress {
    fn new(what: &'static str) -> Self {
        let bar = ProgressBar::new_spinner().with_style(ProgressStyle::default_spinner());
        bar.set_message(what);
        bar.enable_steady_tick(Duration::from_millis(200));
        Self(bar)
    }

    fn show(&self, lines: u64) {
        self.0.set_message(format!("counting requests: {} lines", HumanCount(lines)));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

#[cfg(test)]
mod tests;
