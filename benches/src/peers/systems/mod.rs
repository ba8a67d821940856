//! The systems that are compared: how each is started, what its messages look like, how it answers, and what it has stored.
//!
//! Equal work: every one receives the same content, keeps the newest rows in a ring, answers for what it has stored, and
//! the peers count records per source. Each runs on one core, without persistence.

pub mod discard;
pub mod postanalytics;
pub mod redis;
pub mod tarantool;

use crate::peers::connection::{Connection, Owes};
use crate::peers::install::Programs;
use crate::peers::messages::Messages;
use crate::peers::plan::{Plan, SystemKind, Workload};
use crate::peers::process::{ServerProcess, SocketSettings};
use crate::peers::records::{Corpus, Stored};
use anyhow::{Context, Result};
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::Path;
use tempfile::TempDir;

/// A running system.
#[derive(Debug)]
pub struct System {
    /// Which.
    pub kind: SystemKind,
    /// Keys that its detectors must hold in the end.
    keys_min: f64,
    /// Its process.
    pub process: ServerProcess,
    /// Where it takes records.
    pub address: SocketAddr,
    /// The other port: our status pages, or the discarding server's port that answers.
    pub other: SocketAddr,
    /// Resident memory before the first record.
    pub resident_bytes_empty: u64,
    /// What could not be set or checked of accepted sockets; empty if all was.
    pub note: String,
    /// Congestion control of accepted sockets, read from one of them; `None`: it could not be.
    pub congestion: Option<String>,
    /// What accepted sockets have instead of what is equal for all.
    pub void: Option<String>,
    folder: TempDir,
}

/// What a system has stored, in its own words.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ReadBack {
    /// The rows that survive.
    pub stored: Stored,
    /// Records taken since the start, by its own count: its counters per source summed up, or our total.
    pub taken: u64,
    /// Bytes of memory for each surviving row.
    pub bytes_per_record: f64,
    /// Resident memory of its process, whatever it is for, for each surviving row.
    pub resident_bytes_per_record: f64,
}

impl System {
    /// Starts one in a folder of its own, as the workload wants it.
    pub fn start(kind: SystemKind, plan: &Plan, programs: &Programs, workload: Workload, connections: usize) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("postanalytics-peers-").tempdir()?;
        let (address, other) = (crate::peers::process::free_address()?, crate::peers::process::free_address()?);
        let at = Start { plan, folder: folder.path(), workload, address, other, connections };
        let (mut command, ready) = match kind {
            SystemKind::Postanalytics => (postanalytics::command(&at)?, address),
            SystemKind::Tarantool => (tarantool::command(&at, programs)?, address),
            SystemKind::Redis => (redis::command(&at, programs)?, address),
            SystemKind::Discard => (discard::command(&at)?, other),
        };
        programs.environment(&mut command);
        let process = ServerProcess::start(kind.name(), &mut command, plan.server_cpu, ready)?;
        if kind == SystemKind::Postanalytics {
            postanalytics::wait_ready(other)?;
        }
        let set = process.set_congestion(address.port(), &plan.congestion);
        let note =
            set.err().map(|error| format!("{}: accepted sockets have the system's congestion control: {error:#}", kind.name()));
        let resident_bytes_empty = process.resident_bytes()?;
        let keys_min = if workload == Workload::Detectors { postanalytics::keys_min(plan) } else { 0.0 };
        let note = note.unwrap_or_default();
        Ok(Self { kind, keys_min, process, address, other, resident_bytes_empty, note, congestion: None, void: None, folder })
    }

    /// Opens connections to it.
    pub fn connect(&self, plan: &Plan, count: usize) -> Result<Vec<Connection>> {
        let open = |number: usize| match self.kind {
            SystemKind::Postanalytics => postanalytics::connect(self.address, plan, number),
            SystemKind::Tarantool => tarantool::connect(self.address, plan),
            SystemKind::Redis => redis::connect(self.address, plan),
            SystemKind::Discard => discard::connect(self.address, plan, false),
        };
        (0..count).map(open).collect()
    }

    /// Looks what an accepted socket is set to, once there are some.
    pub fn check_accepted(&mut self, plan: &Plan) {
        match self.process.accepted(self.address.port()) {
            Ok(settings) => {
                self.void = unequal(self.kind, &settings, &plan.congestion);
                self.congestion = Some(settings.congestion);
            }
            Err(error) if self.note.is_empty() => {
                self.note = format!("{}: the settings of accepted sockets cannot be read: {error:#}", self.kind.name());
            }
            Err(_) => {}
        }
    }

    /// What a message to it owes.
    pub const fn owes(kind: SystemKind) -> Owes {
        match kind {
            SystemKind::Postanalytics | SystemKind::Tarantool => Owes::One,
            SystemKind::Redis => Owes::PerRecord(redis::ANSWERS_PER_RECORD),
            SystemKind::Discard => Owes::Nothing,
        }
    }

    /// The corpus in its wire form, in messages of these sizes.
    pub fn messages(kind: SystemKind, plan: &Plan, corpus: &Corpus, sizes: &[usize]) -> Result<Messages> {
        match kind {
            SystemKind::Postanalytics | SystemKind::Discard => Messages::build(corpus, sizes, postanalytics::encode),
            SystemKind::Tarantool => Messages::build(corpus, sizes, tarantool::encode),
            SystemKind::Redis => Messages::build(corpus, sizes, |records, out| redis::encode(records, plan.rows, out)),
        }
    }

    /// Most rows that it may keep: so many records sent in order leave nothing else.
    pub fn rows_max(kind: SystemKind, plan: &Plan) -> u64 {
        match kind {
            SystemKind::Postanalytics => postanalytics::rows_max(plan),
            // A trimmed stream may be longer by some nodes.
            SystemKind::Tarantool | SystemKind::Redis => plan.rows + 1_000,
            SystemKind::Discard => 0,
        }
    }

    /// How many rows it may have once so many as [`Self::rows_max`] were sent. One that keeps fewer does less work; `wire_bytes` are
    /// those of a record.
    pub fn rows_allowed(kind: SystemKind, plan: &Plan, wire_bytes: f64) -> RangeInclusive<u64> {
        let fewest = match kind {
            SystemKind::Postanalytics => postanalytics::rows_min(plan, wire_bytes),
            SystemKind::Tarantool => return plan.rows..=plan.rows,
            SystemKind::Redis => plan.rows,
            SystemKind::Discard => 0,
        };
        fewest..=Self::rows_max(kind, plan)
    }

    /// Reads everything back that it has stored.
    pub fn read_back(&self, corpus: &Corpus) -> Result<ReadBack> {
        let resident = self.process.resident_bytes()?;
        let mut read = match self.kind {
            SystemKind::Postanalytics => {
                postanalytics::detectors_were_at_work(self.other, self.keys_min)?;
                postanalytics::read_back(&self.process, self.other)?
            }
            SystemKind::Tarantool => tarantool::read_back(self.address)?,
            SystemKind::Redis => redis::read_back(self.address, corpus)?,
            SystemKind::Discard => return Ok(ReadBack::default()),
        };
        let for_each_row = |bytes: u64| crate::peers::measure::ratio(bytes as f64, read.stored.rows as f64);
        read.resident_bytes_per_record = for_each_row(resident);
        // Ours has its arena from the start, and says what is in use.
        if self.kind != SystemKind::Postanalytics {
            read.bytes_per_record = for_each_row(resident.saturating_sub(self.resident_bytes_empty));
        }
        Ok(read)
    }

    /// Its version.
    pub fn version(kind: SystemKind, programs: &Programs) -> Result<String> {
        match kind {
            SystemKind::Postanalytics => Ok(postanalytics::version()),
            SystemKind::Tarantool => programs.tarantool_version(),
            SystemKind::Redis => programs.redis_version(),
            SystemKind::Discard => Ok(env!("CARGO_PKG_VERSION").to_owned()),
        }
    }

    /// Ends it. Its folder goes with it.
    pub fn stop(self) -> Result<()> {
        let name = self.kind.name();
        self.process.stop().with_context(|| format!("cannot stop {name}"))?;
        drop(self.folder);
        Ok(())
    }
}

/// What a socket has that those of all are to have alike, if it has another.
fn unequal(kind: SystemKind, settings: &SocketSettings, congestion: &str) -> Option<String> {
    (settings.congestion != congestion || !settings.nodelay).then(|| {
        format!(
            "{}: an accepted socket has {settings:?}, not {congestion} and TCP_NODELAY as all others: this run compares nothing",
            kind.name()
        )
    })
}

/// What a system is started with.
#[derive(Clone, Copy, Debug)]
pub struct Start<'a> {
    plan: &'a Plan,
    folder: &'a Path,
    workload: Workload,
    address: SocketAddr,
    other: SocketAddr,
    connections: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_that_are_set_otherwise_void_the_run() {
        let of = |congestion: &str, nodelay| {
            unequal(SystemKind::Redis, &SocketSettings { congestion: congestion.to_owned(), nodelay }, "cubic")
        };
        assert_eq!(of("cubic", true), None);
        assert!(of("bbr", true).is_some_and(|text| text.contains("redis") && text.contains("bbr")));
        assert!(of("cubic", false).is_some());
    }
}
