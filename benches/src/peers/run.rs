//! The order of a run: for each group of workloads that are compared with each other, everything is started and filled, then
//! measured in turn, run after run (A B C A B C; the fleet A A B B), then proved, then stopped.
//!
//! The proof: records are sent on one connection, so that their order is known, until nothing else is left in the ring;
//! what is then stored is read back and compared with the last records sent, by checksum. It must be as many rows as that system
//! is to keep, and what each has taken since its start, by its own count, must be what was sent.

use crate::peers::clients::Clients;
use crate::peers::connection::{Owes, Sending};
use crate::peers::generator::{Generator, Pace};
use crate::peers::install::Programs;
use crate::peers::measure::Run;
use crate::peers::plan::{Plan, SystemKind, Workload};
use crate::peers::records::{Corpus, Stored};
use crate::peers::schedule::{FLEET_BATCH_MAX, FLEET_CLIENTS, FLEET_LANES, even, fleet};
use crate::peers::systems::{ReadBack, System, discard};
use anyhow::{Context, Result, ensure};
use postanalytics_loadgen::clock::{duration_ns, set_fine_timers};
use postanalytics_loadgen::machine::pin_this_thread;
use std::sync::Arc;

/// Records a message of the batched workloads.
pub const BATCH: usize = 64;
const BATCHED_CONNECTIONS: usize = 4;
const BATCHED_DEPTH: usize = 64;
const SINGLE_CONNECTIONS: usize = 256;
const SINGLE_DEPTH: usize = 8;
const FLEET_DEPTH: usize = 64;
/// Files that an entry of the fleet needs: its connections, or a few for each client, and some.
const FLEET_FILES: u64 = (FLEET_CLIENTS * FLEET_LANES) as u64 + 6 * FLEET_CLIENTS as u64;

/// How records reach a system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// Pre-built messages.
    Raw,
    /// The client crate.
    Client,
}

impl Path {
    /// Its name in the JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Client => "client",
        }
    }
}

/// What one line of the report is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Who.
    pub system: SystemKind,
    /// What.
    pub workload: Workload,
    /// How.
    pub path: Path,
}

/// All that was found out about an entry.
#[derive(Clone, Debug)]
pub struct Finding {
    /// What it is about.
    pub entry: Entry,
    /// The runs.
    pub runs: Vec<Run>,
    /// What it has stored.
    pub read: ReadBack,
    /// What it should have stored.
    pub expected: Stored,
    /// Records sent since its start.
    pub sent: u64,
    /// Connections.
    pub connections: usize,
    /// Mean bytes of a record in its wire form.
    pub wire_bytes_per_record: f64,
    /// What the reader should know.
    pub note: String,
    /// Congestion control of the server's sockets; `None`: unchecked.
    pub congestion: Option<String>,
    /// Why it is not comparable with the others, whatever its figures.
    pub void: Option<String>,
    /// Its version.
    pub version: String,
}

/// What came of all runs.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Of the entries that were finished, in the order measured.
    pub findings: Vec<Finding>,
    /// What went wrong with the others.
    pub failures: Vec<String>,
}

/// Makes all runs. What fails in one group takes nothing from the others.
pub fn run(plan: &Plan, programs: &Programs) -> Result<Outcome> {
    pin_this_thread(Some(plan.generator_cpu)).map_err(anyhow::Error::msg)?;
    set_fine_timers();
    Ok(of_groups(&groups(plan), |entries, outcome| run_group(plan, programs, entries, outcome)))
}

fn of_groups(groups: &[Vec<Entry>], mut run: impl FnMut(&[Entry], &mut Outcome) -> Result<()>) -> Outcome {
    let mut outcome = Outcome::default();
    for entries in groups {
        if let Err(error) = run(entries, &mut outcome) {
            outcome.failures.push(format!("{error:#}"));
        }
        eprint!("\r\x1b[K");
    }
    outcome
}

/// Entries that are measured in turn. An error before their proofs is one of all of them, for they were to be compared.
fn run_group(plan: &Plan, programs: &Programs, entries: &[Entry], outcome: &mut Outcome) -> Result<()> {
    let browse = entries.iter().any(|entry| entry.workload == Workload::Detectors);
    let corpus = &if browse { Corpus::browsing() } else { Corpus::new() };
    if entries.iter().any(|entry| entry.workload == Workload::Fleet) {
        plan.raise_file_limit(FLEET_FILES)?;
    }
    let start = |entry: &Entry| Contestant::start(*entry, plan, programs, corpus).with_context(|| entry.title());
    let mut contestants = entries.iter().map(start).collect::<Result<Vec<_>>>()?;
    for run in 0..plan.runs {
        for contestant in &mut contestants {
            eprint!("\r\x1b[Krun {} of {}: {}", run + 1, plan.runs, contestant.entry.title());
            contestant.run(plan, corpus, run).with_context(|| contestant.entry.title())?;
        }
    }
    for contestant in contestants {
        eprint!("\r\x1b[Kproof: {}", contestant.entry.title());
        let title = contestant.entry.title();
        match contestant.finish(plan, programs, corpus).context(title) {
            Ok(finding) => outcome.findings.push(finding),
            Err(error) => outcome.failures.push(format!("{error:#}")),
        }
    }
    Ok(())
}

/// What is measured in turn. The entries of the fleet are measured one after the other: a process may seldom have the files for
/// all of their connections at once.
fn groups(plan: &Plan) -> Vec<Vec<Entry>> {
    let of = |workloads: &[Workload]| -> Vec<Entry> {
        plan.workloads
            .iter()
            .filter(|workload| workloads.contains(workload))
            .flat_map(|workload| entries(plan, *workload))
            .collect()
    };
    let fleet = of(&[Workload::Fleet]).into_iter().map(|entry| vec![entry]);
    let together = [&[Workload::Batched, Workload::BatchedNoindex][..], &[Workload::Detectors], &[Workload::Single]];
    together.into_iter().map(of).filter(|group| !group.is_empty()).chain(fleet).collect()
}

fn entries(plan: &Plan, workload: Workload) -> Vec<Entry> {
    let mut entries = Vec::new();
    for &system in &plan.systems {
        if workload == Workload::BatchedNoindex && system != SystemKind::Tarantool {
            continue;
        }
        entries.push(Entry { system, workload, path: Path::Raw });
        if system == SystemKind::Postanalytics && !plan.no_client {
            entries.push(Entry { system, workload, path: Path::Client });
        }
    }
    entries
}

impl Entry {
    /// A title for people.
    pub fn title(&self) -> String {
        let path = if self.path == Path::Client { " (client crate)" } else { "" };
        format!("{} {}{path}", self.workload.name(), self.system.name())
    }

    const fn size(&self) -> usize {
        if matches!(self.workload, Workload::Single | Workload::Fleet) { 1 } else { BATCH }
    }
}

/// An entry whose system is running.
struct Contestant {
    entry: Entry,
    system: System,
    sender: Sender,
    runs: Vec<Run>,
    connections: usize,
    wire_bytes_per_record: f64,
    expected: Vec<u32>,
}

enum Sender {
    /// `answered`: the connections whose latency can be measured, where flat out nothing is answered.
    Raw {
        flat_out: Box<Generator>,
        answered: Option<Box<Generator>>,
    },
    Clients(Box<Clients>),
}

impl Contestant {
    fn start(entry: Entry, plan: &Plan, programs: &Programs, corpus: &Corpus) -> Result<Self> {
        let connections = match entry.workload {
            Workload::Batched | Workload::BatchedNoindex | Workload::Detectors => BATCHED_CONNECTIONS,
            Workload::Single => SINGLE_CONNECTIONS,
            Workload::Fleet => FLEET_CLIENTS * FLEET_LANES,
        };
        let mut system = System::start(entry.system, plan, programs, entry.workload, connections)?;
        let sizes: Vec<usize> =
            if entry.workload == Workload::Fleet { (1..=FLEET_BATCH_MAX).collect() } else { vec![entry.size()] };
        let messages = Arc::new(System::messages(entry.system, plan, corpus, &sizes)?);
        let wire_bytes_per_record = messages.bytes_per_record(entry.size());
        let depth = match entry.workload {
            Workload::Batched | Workload::BatchedNoindex | Workload::Detectors => BATCHED_DEPTH,
            Workload::Single => SINGLE_DEPTH,
            Workload::Fleet => FLEET_DEPTH,
        };
        let owes = System::owes(entry.system);
        let depth = if owes == Owes::Nothing { usize::MAX } else { depth };
        let sending = Sending { depth, one_a_write: entry.size() == 1, owes };
        let sender = if entry.path == Path::Client {
            Sender::Clients(Box::new(Clients::connect(system.address, plan, entry.workload)?))
        } else {
            // The fleet is measured on the answering port alone.
            let is_silent = entry.system == SystemKind::Discard && entry.workload == Workload::Fleet;
            let open = system.connect(plan, if is_silent { 1 } else { connections })?;
            let flat_out = Box::new(Generator::new(open, Arc::clone(&messages), sending)?);
            let answered = (entry.system == SystemKind::Discard).then(|| {
                let open = (0..connections).map(|_| discard::connect(system.other, plan, true)).collect::<Result<Vec<_>>>()?;
                let sending = Sending { depth: FLEET_DEPTH, owes: Owes::Bytes, ..sending };
                Ok::<_, anyhow::Error>(Box::new(Generator::new(open, Arc::clone(&messages), sending)?))
            });
            Sender::Raw { flat_out, answered: answered.transpose()? }
        };
        system.check_accepted(plan);
        let mut started =
            Self { entry, system, sender, runs: Vec::new(), connections, wire_bytes_per_record, expected: Vec::new() };
        // The ring is full before anything is measured.
        started.fill(plan, corpus)?;
        Ok(started)
    }

    /// Sends in order until nothing else can be left in the ring, and remembers what that was.
    fn fill(&mut self, plan: &Plan, corpus: &Corpus) -> Result<()> {
        let rows = System::rows_max(self.entry.system, plan);
        if rows > 0 {
            self.expected = match &mut self.sender {
                Sender::Raw { flat_out, .. } => flat_out.in_order(rows, self.entry.size())?,
                Sender::Clients(clients) => clients.in_order(corpus, rows)?,
            };
        }
        Ok(())
    }

    fn run(&mut self, plan: &Plan, corpus: &Corpus, run: usize) -> Result<()> {
        let (server, warm_up, length) = (&self.system.process, plan.warm_up, plan.duration);
        let span_ns = duration_ns(warm_up + length);
        let measured = match &mut self.sender {
            Sender::Clients(clients) if self.entry.workload == Workload::Fleet => {
                let full = clients.window(corpus, Some(Clients::fleet_rate()), server, warm_up, length)?;
                Run { third: full.clone(), full }
            }
            Sender::Clients(clients) => {
                let full = clients.window(corpus, None, server, warm_up, length)?;
                let third = clients.window(corpus, Some(full.rate() / 3.0), server, warm_up, length)?;
                Run { full, third }
            }
            Sender::Raw { flat_out, answered } if self.entry.workload == Workload::Fleet => {
                let generator = answered.as_mut().unwrap_or(flat_out);
                let schedule = fleet(run as u64 + 1, generator.connections(), span_ns);
                let full = generator.window(&Pace::Schedule(&schedule), server, warm_up, length)?;
                Run { third: full.clone(), full }
            }
            Sender::Raw { flat_out, answered } => {
                let size = self.entry.size();
                let full = flat_out.window(&Pace::Full(size), server, warm_up, length)?;
                let schedule = even(full.rate() / 3.0, size, flat_out.connections(), span_ns);
                let generator = answered.as_mut().unwrap_or(flat_out);
                let third = generator.window(&Pace::Schedule(&schedule), server, warm_up, length)?;
                Run { full, third }
            }
        };
        self.runs.push(measured);
        Ok(())
    }

    fn finish(mut self, plan: &Plan, programs: &Programs, corpus: &Corpus) -> Result<Finding> {
        self.fill(plan, corpus)?;
        let read = self.system.read_back(corpus)?;
        let rows = read.stored.rows;
        let (expected, sent, connections) = match &self.sender {
            Sender::Raw { flat_out, .. } => {
                (flat_out.messages().last_of(corpus, &self.expected, rows), flat_out.records_total, self.connections)
            }
            Sender::Clients(clients) => (Clients::last_of(corpus, &self.expected, rows), clients.records_total, clients.count()),
        };
        if self.entry.system != SystemKind::Discard {
            let allowed = System::rows_allowed(self.entry.system, plan, self.wire_bytes_per_record);
            ensure!(allowed.contains(&rows), "{rows} rows are stored, {allowed:?} were to be: not the same work");
            ensure!(read.stored == expected, "{:?} are stored, {expected:?} were sent last: not the same work", read.stored);
            ensure!(read.taken == sent, "{} records were taken by its own count, {sent} were sent", read.taken);
        }
        let version = System::version(self.entry.system, programs)?;
        let finding = Finding {
            entry: self.entry,
            runs: self.runs,
            read,
            expected,
            sent,
            connections,
            wire_bytes_per_record: self.wire_bytes_per_record,
            note: self.system.note.clone(),
            congestion: self.system.congestion.clone(),
            void: self.system.void.clone(),
            version,
        };
        drop(self.sender);
        self.system.stop()?;
        Ok(finding)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::plan::tests::plan;
    use clap::ValueEnum;

    fn titles(plan: &Plan) -> Vec<Vec<String>> {
        groups(plan).iter().map(|group| group.iter().map(Entry::title).collect()).collect()
    }

    #[test]
    fn what_is_compared_is_measured_in_turn_and_the_fleet_one_by_one() {
        let found = titles(&plan(Workload::value_variants(), SystemKind::value_variants(), false));
        let [batched, detectors, single, fleet @ ..] = &found[..] else { panic!("{found:?}") };
        let of = |workload: &str| {
            ["postanalytics", "postanalytics (client crate)", "tarantool", "redis", "discard"]
                .map(|name| format!("{workload} {name}"))
        };
        assert_eq!(batched[..5], of("batched"));
        assert_eq!(batched[5..], ["batched_noindex tarantool"], "it is compared with batched");
        assert_eq!((&detectors[..], &single[..]), (&of("detectors")[..], &of("single")[..]));
        assert_eq!(fleet.concat(), of("fleet"));
        assert!(fleet.iter().all(|group| group.len() == 1));
        let few = plan(&[Workload::Single, Workload::BatchedNoindex], &[SystemKind::Postanalytics], true);
        assert_eq!(titles(&few), [["single postanalytics"]], "no group without entries");
    }

    #[test]
    fn whoever_keeps_fewer_rows_than_it_is_to_does_not_the_same_work() {
        let plan = plan(&[], &[], true);
        let allowed = |system| System::rows_allowed(system, &plan, 513.0);
        assert_eq!(allowed(SystemKind::Tarantool), 10_000..=10_000);
        assert_eq!(allowed(SystemKind::Redis), 10_000..=11_000);
        // 64 MiB: 25 slabs of requests, of which 24 are full of records of 513 bytes, in frames of 64 or alone.
        let ours = allowed(SystemKind::Postanalytics);
        let slab = f64::from((2 << 20) - (17 << 10));
        assert!(ours.contains(&((24.0 * slab / 515.0) as u64)) && ours.contains(&((24.0 * slab / 624.0) as u64)), "{ours:?}");
        assert!(!ours.contains(&((12.0 * slab / 515.0) as u64)), "half of it is too few: {ours:?}");
    }

    #[test]
    fn a_group_that_fails_takes_nothing_from_the_others() {
        let groups = groups(&plan(&[Workload::Batched, Workload::Single, Workload::Detectors], &[SystemKind::Redis], true));
        let mut seen = Vec::new();
        let outcome = of_groups(&groups, |entries, _| {
            seen.push(entries[0].title());
            ensure!(entries[0].workload != Workload::Detectors, "it ended");
            Ok(())
        });
        assert_eq!(seen, ["batched redis", "detectors redis", "single redis"]);
        assert_eq!(outcome.failures, ["it ended"]);
    }
}
