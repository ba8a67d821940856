//! `postanalytics replay`: the detectors over a file, in event time, without an arena.
//!
//! ```text
//!  reader ──piece of a round──▶ shard 1 … n ──failures of users──▶ correlator
//!     (SPSC queue each)            (SPSC queue each)
//! ```
//!
//! The reader (the calling thread) cuts the input into rounds of lines and sends every shard its part of each, by the routing
//! of live records. A shard observes its part as it would a batch of a filter, and sends the correlator what it found of
//! users, an empty message if nothing. The correlator takes a round from all shards, orders it by position in the input and
//! applies it: so the result does not depend on the number of shards. Whoever finds a queue full waits.
//!
//! Alerts are written at the end, ordered by deciding event.

mod from_server;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub(crate) mod lines;
pub(crate) mod record;

use crate::agent::line::masked_line;
use crate::analytics::alerts::{Alert, Alerts};
use crate::analytics::odd::Odd;
use crate::analytics::settings::Settings;
use crate::analytics::users::{UserFailure, Users};
use crate::analytics::{Analytics, Room, Timing};
use crate::config::detection::DetectionConfig;
use crate::config::flags::{LineFormat, ReplayFlags};
use crate::config::machine::Machine;
use crate::config::plan::KEY_BYTES;
use crate::config::values::GIGABYTE;
use crate::escape::plain_json;
use crate::queue::{Receiver, Sender, queue};
use anyhow::{Context, Result};
use bumpalo::Bump;
use lines::Lines;
use postanalytics_filter::LineFilter;
use postanalytics_protocol::schema::v1::SCHEMA;
use postanalytics_protocol::{BatchBuilder, Source, ValidBatch, shard_of};
use rustix::event::{PollFd, PollFlags, poll};
use std::io::{BufWriter, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Lines of a round: large enough that queues cost nothing, small enough to stay in the cache.
const ROUND_RECORDS: u64 = 1024;
/// Bytes of a shard's part of a round.
const ROUND_BYTES: usize = 4 << 20;
/// Rounds that may wait for a shard, or for the correlator.
const QUEUE_ROUNDS: usize = 8;
/// Bytes that are shown of a line that is no record.
const SHOWN_BYTES: usize = 200;
/// Fingerprints and routing are the same in every run, so that runs can be compared.
const SEED: u64 = 0x7265_706c_6179;

/// A shard's part of a round.
struct Piece {
    /// Positions of its records in the input.
    orders: Vec<u64>,
    body: Vec<u8>,
}

/// What was read.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    lines: u64,
    records: u64,
    unreadable: u64,
    /// Of the first of them: its number, the cause, and its beginning, masked. Empty if there is none.
    pub(crate) first_unreadable: String,
    ahead: u64,
}

/// Runs the command.
pub fn replay(flags: &ReplayFlags) -> Result<()> {
    if let Some(url) = &flags.from_server {
        return from_server::replay(flags, url);
    }
    let config = configuration(flags.config.as_deref())?;
    let begun = Instant::now();
    let (summary, alerts) = find(flags, &config)?;
    let late: u64 = alerts.late;
    let mut out = BufWriter::new(std::io::stdout().lock());
    for alert in &alerts.sorted {
        writeln!(out, "{}", plain_json(serde_json::to_string(&alert.to_json())?))?;
    }
    out.flush()?;
    let seconds = begun.elapsed().as_secs_f64();
    let Summary { lines, records, unreadable, first_unreadable, ahead } = summary;
    let Odd { times, methods, hit_types, paths } = alerts.odd;
    eprintln!(
        "{lines} lines, {records} records, {unreadable} unreadable, {ahead} ahead of their file's clock, {late} late events, odd: {times} \
         times, {methods} methods, {hit_types} types of hits, {paths} long paths, {} keys, {} keys evicted ({} for the room of lists, {} over half of a threshold), {} alerts, \
         {seconds:.3} s, {:.0} lines/s",
        alerts.keys,
        alerts.evicted,
        alerts.evicted_for_lists,
        alerts.evicted_hot,
        alerts.sorted.len(),
        lines as f64 / seconds.max(1e-9)
    );
    if !first_unreadable.is_empty() {
        eprintln!("unreadable first: {first_unreadable}");
    }
    Ok(())
}

/// The configuration of a file, or the defaults.
pub fn configuration(path: Option<&Path>) -> Result<DetectionConfig> {
    let Some(path) = path else { return Ok(DetectionConfig::default()) };
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read {}: check the name and that this user may read it", path.display()))?;
    DetectionConfig::parse(&text).map_err(|error| anyhow::anyhow!("{}: {error}", path.display()))
}

/// The alerts of the files.
pub fn find(flags: &ReplayFlags, config: &DetectionConfig) -> Result<(Summary, Found)> {
    // All are opened first, so that a wrong name is an error before the work. A pipe stays open: its first bytes come once.
    let open = |path: &PathBuf| Ok(Some(Lines::open(path)?).filter(|_| !is_regular(path)));
    let pipes = flags.files.iter().map(open).collect::<Result<Vec<_>>>()?;
    run(flags, config, config.ahead_us, |reader| {
        let mut files = flags.files.iter().zip(pipes);
        files.try_for_each(|(path, pipe)| reader.read(pipe.map_or_else(|| Lines::open(path), Ok)?))
    })
}

/// Whether it is a file that can be read twice.
pub(crate) fn is_regular(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.is_file())
}

/// The alerts of what `read` gives the reader.
fn run(
    flags: &ReplayFlags,
    config: &DetectionConfig,
    ahead_us: u64,
    read: impl FnOnce(&mut Reader) -> Result<()>,
) -> Result<(Summary, Found)> {
    let settings = Arc::new(Settings::new(config).context("the names under attack_tools cannot be searched for")?);
    let (mut reader, workers) = start(flags, &settings, ahead_us)?;
    read(&mut reader)?;
    reader.end_round()?;
    let summary = std::mem::take(&mut reader.summary);
    // Shards end when their queue does.
    drop(reader);
    Ok((summary, workers.join()?))
}

/// The threads, and the alerts they will have.
struct Workers {
    shards: Vec<JoinHandle<Analytics>>,
    correlator: JoinHandle<Users>,
}

/// What came out.
#[derive(Debug)]
pub struct Found {
    /// Alerts, ordered by deciding event.
    pub sorted: Vec<Alert>,
    late: u64,
    odd: Odd,
    /// Keys that were live at the end.
    pub(crate) keys: usize,
    /// Keys of which something was forgotten, those lost from probation among them.
    evicted: u64,
    /// Of them, those that yielded for the room of their lists.
    evicted_for_lists: u64,
    /// Of them, those over half of a threshold.
    evicted_hot: u64,
}

impl Workers {
    fn join(self) -> Result<Found> {
        let ended = |_| anyhow::anyhow!("a thread of the replay panicked, see above: this is a defect");
        let mut found =
            Found { sorted: Vec::new(), late: 0, odd: Odd::default(), keys: 0, evicted: 0, evicted_for_lists: 0, evicted_hot: 0 };
        let take = |found: &mut Found, engine: &mut crate::analytics::engine::Engine| {
            found.sorted.append(&mut engine.alerts.take_all());
            found.late += engine.counters.late.iter().sum::<u64>();
            found.keys += engine.table.live();
            found.evicted += engine.counters.keys_evicted + engine.table.probation_overwritten;
            found.evicted_for_lists += engine.counters.keys_evicted_for_lists;
            found.evicted_hot += engine.counters.keys_evicted_hot;
        };
        for shard in self.shards {
            let mut analytics = shard.join().map_err(ended)?;
            found.odd.add(analytics.odd);
            take(&mut found, &mut analytics.engine);
        }
        take(&mut found, &mut self.correlator.join().map_err(ended)?.engine);
        found.sorted.sort_by_key(|alert| (alert.order, alert.detector()));
        Ok(found)
    }
}

fn start(flags: &ReplayFlags, settings: &Arc<Settings>, ahead_us: u64) -> Result<(Reader, Workers)> {
    let (memory_bytes, memory_limit) = Machine::read().memory_allowed();
    check_keys(flags.keys, memory_bytes, memory_limit)?;
    let keys = (flags.keys / flags.shards.max(1) as usize).max(1024);
    let (mut senders, mut shards, mut failures) = (Vec::new(), Vec::new(), Vec::new());
    for shard in 0..flags.shards {
        let context = || "cannot make the queues: too many open files? See `ulimit -n`".to_owned();
        let (sender, pieces) = queue(QUEUE_ROUNDS).with_context(context)?;
        let (results, failures_of_shard) = queue(QUEUE_ROUNDS).with_context(context)?;
        senders.push(sender);
        failures.push(failures_of_shard);
        let settings = Arc::clone(settings);
        let run = move || {
            let room = Room { keys, alerts: None, hands_on_failures: true, ..Room::default() };
            observe(Analytics::new(settings, room, SEED), pieces, results)
        };
        shards.push(std::thread::Builder::new().name(format!("replay-{shard}")).spawn(run).context("cannot start a thread")?);
    }
    let users = Users::new(Arc::clone(settings), (flags.keys / 4).max(1024), Alerts::unbounded(), SEED);
    let run = move || correlate(users, failures);
    let correlator = std::thread::Builder::new().name("correlator".to_owned()).spawn(run).context("cannot start a thread")?;
    let shard_count = senders.len();
    let reader = Reader {
        format: flags.format,
        filter: (flags.format != LineFormat::EscapedJsonl && !flags.no_filter).then(LineFilter::default),
        ahead_us,
        shards: senders,
        batches: (0..shard_count).map(|_| (BatchBuilder::with_capacity(1024, 1 << 20), Vec::new())).collect(),
        in_round: 0,
        summary: Summary::default(),
        progress: Progress::new(),
    };
    Ok((reader, Workers { shards, correlator }))
}

/// Refuses keys whose state, the correlator's quarter included, does not fit into memory.
fn check_keys(keys: usize, memory_bytes: u64, memory_limit: &str) -> Result<()> {
    let bytes = (keys as u64).saturating_add(keys as u64 / 4).saturating_mul(KEY_BYTES);
    anyhow::ensure!(
        bytes <= memory_bytes,
        "--keys {keys}: their state takes {:.1} GB, more than the {:.1} GB of {memory_limit}; give at most {}",
        bytes as f64 / GIGABYTE as f64,
        memory_bytes as f64 / GIGABYTE as f64,
        memory_bytes / KEY_BYTES / 5 * 4
    );
    Ok(())
}

/// A shard's thread: observes its part of each round.
fn observe(mut analytics: Analytics, mut pieces: Receiver<Piece>, mut results: Sender<Vec<UserFailure>>) -> Analytics {
    let mut scratch = Bump::with_capacity(1 << 20);
    while let Some(piece) = wait(&mut pieces) {
        // Made a moment ago by the reader: it is a valid batch.
        if let Ok(batch) = ValidBatch::parse(SCHEMA, piece.orders.len() as u32, &piece.body) {
            analytics.observe(&batch, Timing { is_replay: true, ..Timing::default() }, &piece.orders, &scratch);
        }
        analytics.listed.clear();
        scratch.reset();
        if send(&mut results, std::mem::take(&mut analytics.failures)).is_err() {
            break;
        }
    }
    analytics
}

/// The correlator's thread: a round of all shards, in the order of the input.
fn correlate(mut users: Users, mut shards: Vec<Receiver<Vec<UserFailure>>>) -> Users {
    let mut round = Vec::new();
    loop {
        for shard in &mut shards {
            let Some(failures) = wait(shard) else { return users };
            round.extend(failures);
        }
        round.sort_unstable_by_key(|failure: &UserFailure| failure.order);
        round.drain(..).for_each(|failure| users.observe(&failure));
    }
}

/// The next message; `None` when the sender is gone and all was received.
fn wait<T>(receiver: &mut Receiver<T>) -> Option<T> {
    let mut is_over = false;
    loop {
        if let Some(message) = receiver.receive() {
            return Some(message);
        }
        if is_over {
            return None;
        }
        let mut wakes = [0; 64];
        let mut readable = [PollFd::new(receiver.wake(), PollFlags::IN)];
        // An interrupted wait is tried again: the queue is looked at in any case.
        let _ = poll(&mut readable, None);
        // 0: the other end is closed, but something may have come just before.
        is_over = matches!(receiver.wake().read(&mut wakes), Ok(0));
    }
}

/// Sends, waiting while the queue is full; gives up when the receiver is gone.
fn send<T>(sender: &mut Sender<T>, mut message: T) -> Result<(), ()> {
    loop {
        match sender.send(message) {
            Ok(()) => return Ok(()),
            Err(_) if sender.is_abandoned() => return Err(()),
            Err(back) => message = back,
        }
        std::thread::sleep(Duration::from_micros(100));
    }
}

/// Reads files into rounds.
struct Reader {
    format: LineFormat,
    /// Looks for attacks in lines that do not tell of any.
    filter: Option<LineFilter>,
    ahead_us: u64,
    shards: Vec<Sender<Piece>>,
    /// What each shard will get of this round, and the positions in the input.
    batches: Vec<(BatchBuilder, Vec<u64>)>,
    in_round: u64,
    summary: Summary,
    progress: Progress,
}

impl Reader {
    /// One file, which has a clock of its own.
    fn read(&mut self, mut lines: Lines) -> Result<()> {
        let mut clock_us = None;
        while let Some((line, is_too_long)) = lines.next()? {
            if !line.is_empty() || is_too_long {
                self.line(line, &mut clock_us)?;
            }
        }
        Ok(())
    }

    /// One line, by the clock of what it is from.
    fn line(&mut self, line: &[u8], clock_us: &mut Option<u64>) -> Result<()> {
        self.summary.lines += 1;
        let (order, ahead_us) = (self.summary.lines, self.ahead_us);
        let (batches, summary) = (&mut self.batches, &mut self.summary);
        let taken = record::read(self.format, line, self.filter.as_mut(), |fields| {
            let clock = clock_us.get_or_insert(fields.event_us);
            if fields.event_us > clock.saturating_add(ahead_us) {
                summary.ahead += 1;
                return Ok(());
            }
            *clock = fields.event_us.max(*clock);
            let shard = shard_of(Source::of_bytes(&fields.client_ip), SEED, batches.len() as u32);
            let (batch, orders) = &mut batches[shard as usize];
            batch.push(fields, ROUND_BYTES * 2).map_err(|_| "it is too large to be stored")?;
            orders.push(order);
            summary.records += 1;
            Ok(())
        });
        if let Err(cause) = taken.flatten() {
            self.summary.unreadable += 1;
            if self.summary.first_unreadable.is_empty() {
                self.summary.first_unreadable = first_unreadable(order, cause, line);
            }
        }
        self.in_round += 1;
        if self.in_round >= ROUND_RECORDS || self.batches.iter().any(|(batch, _)| batch.blob().len() > ROUND_BYTES) {
            self.end_round()?;
        }
        Ok(())
    }

    /// Sends every shard its part, an empty one as well: the correlator waits for all.
    fn end_round(&mut self) -> Result<()> {
        for (sender, (batch, orders)) in self.shards.iter_mut().zip(&mut self.batches) {
            let mut body = vec![0; batch.body_bytes()];
            batch.encode_body(&mut body);
            batch.clear();
            let piece = Piece { orders: std::mem::take(orders), body };
            send(sender, piece)
                .map_err(|()| anyhow::anyhow!("a shard of the replay ended early, see above: this is a defect"))?;
        }
        self.in_round = 0;
        self.progress.show(&self.summary);
        Ok(())
    }
}

/// What is said of a line that is no record.
fn first_unreadable(number: u64, cause: &str, line: &[u8]) -> String {
    if line.is_empty() {
        return format!("line {number}: it is longer than {} bytes", lines::LINE_BYTES_MAX);
    }
    let masked = masked_line(line);
    let shown = String::from_utf8_lossy(&masked[..masked.len().min(SHOWN_BYTES)]).escape_debug().to_string();
    format!("line {number}: {cause}: {shown}")
}

/// A line on standard error every second, if somebody sits there.
struct Progress {
    is_shown: bool,
    next: Instant,
}

impl Progress {
    fn new() -> Self {
        Self { is_shown: std::io::stderr().is_terminal(), next: Instant::now() + Duration::from_secs(1) }
    }

    fn show(&mut self, summary: &Summary) {
        let now = Instant::now();
        if self.is_shown && now >= self.next {
            self.next = now + Duration::from_secs(1);
            eprint!("\r{} lines, {} records, {} unreadable\r", summary.lines, summary.records, summary.unreadable);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::flags::{Command, CommandLine};
    use clap::Parser;

    fn summary_of(format: &str, text: &str) -> (Summary, Found) {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("log");
        std::fs::write(&file, text).expect("written");
        let arguments = ["postanalytics", "replay", "--keys", "1024", "--format", format, file.to_str().expect("a text")];
        let Some(Command::Replay(flags)) = CommandLine::parse_from(arguments).command else { panic!("no replay") };
        find(&flags, &DetectionConfig::default()).expect("it runs")
    }

    #[test]
    fn keys_that_have_no_room_are_refused() {
        check_keys(1 << 20, 1 << 30, "the machine").expect("200 MB");
        let error = check_keys(1 << 28, 8 << 30, "MemTotal").expect_err("50 GB").to_string();
        assert!(
            error.contains("--keys 268435456") && error.contains("47.5 GB") && error.contains("8.0 GB of MemTotal"),
            "{error}"
        );
        let most: usize = error.rsplit(' ').next().and_then(|most| most.parse().ok()).expect("a number");
        check_keys(most, 8 << 30, "").expect("the most that is said");
        assert!(check_keys(most + 8, 8 << 30, "").is_err());
        for keys in ["0", "1023", "268435457", "99999999999", "18446744073709551615"] {
            for command in ["replay", "audit"] {
                assert!(CommandLine::try_parse_from(["postanalytics", command, "--keys", keys, "log"]).is_err(), "{keys}");
            }
        }
    }

    /// Forty who fail once each are forty, whatever the names of their fields are.
    #[test]
    fn sources_of_json_are_told_apart_and_a_line_without_one_is_none() {
        let line = |names: &str, number: u32| {
            format!("{{{names},\"path\":\"/login\",\"method\":\"POST\",\"status\":401,\"event_us\":{number}}}\n")
        };
        let text: String = (1..=40).map(|number| line(&format!("\"client_ip\":\"192.0.2.{number}\""), number)).collect();
        let (summary, found) = summary_of("jsonl", &text);
        assert_eq!((summary.records, found.sorted.len()), (40, 0), "{:?}", found.sorted);
        let text: String = (1..=40).map(|number| line("\"x\":\"y\"", number)).collect();
        let (summary, found) = summary_of("jsonl", &text);
        assert_eq!((summary.records, summary.unreadable, found.sorted.len()), (0, 40, 0));
        assert!(summary.first_unreadable.starts_with("line 1: it has no address"), "{}", summary.first_unreadable);
    }

    #[test]
    fn the_first_line_that_cannot_be_read_is_shown_masked_with_the_cause() {
        let good = "192.0.2.7 - - [17/May/2015:10:05:03 +0000] \"GET / HTTP/1.1\" 200 5 \"-\" \"-\"\n";
        let long = format!("{}\n", "x".repeat(2 * lines::LINE_BYTES_MAX));
        for (line, cause) in [
            (
                "{\"remote_addr\":\"1.2.3.4\",\"request\":\"GET /?password=hunter22 HTTP/1.1\"}\n",
                "line 2: it is JSON: give --format jsonl: {",
            ),
            (
                "no /?password=hunter22\u{1b} line\n",
                "line 2: it is no line of an access log in the combined or common format: no",
            ),
            (&long, "line 2: it is longer than 1048576 bytes"),
        ] {
            let (summary, _) = summary_of("combined", &format!("{good}{line}nor this\n"));
            assert_eq!((summary.records, summary.unreadable), (1, 2));
            let said = summary.first_unreadable;
            assert!(said.starts_with(cause) && said.len() < 300, "{said}");
            assert!(!said.contains("hunter22") && !said.contains('\u{1b}'), "{said}");
        }
    }
}
