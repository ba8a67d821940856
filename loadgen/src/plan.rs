//! From the command line to a checked plan. Nothing here does I/O; what cannot work is refused with the value and a remedy.

use crate::assertion::{Assertion, Slo};
use crate::attack::AttackSpec;
use crate::attack::campaign::Campaign;
use crate::traffic::{Mix, RECORD_BYTES_MAX, RECORD_BYTES_MIN, SOURCES_MAX};
use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::time::Duration;

/// Records per second where the command line names no mode.
pub const RATE_DEFAULT: u64 = 10_000;
/// Most sessions of one run: a server's own limit on connections is near this.
const CONNECTIONS_MAX: usize = 4096;
/// Most sending threads.
const THREADS_MAX: usize = 256;
/// Fewest distinct sources of `--raw`, which shows what a server does with many.
const RAW_SOURCES_MIN: u32 = 100_000;

const EXAMPLES: &str = "\
Examples:
  loadgen                                            10,000 records/s for 10 s to 127.0.0.1:3313
  loadgen --rate 50k/s --duration 30s --assert 'p99<5ms,tnt_errors=0'
  loadgen --saturate --threads 2 --json result.json
  loadgen --raw --saturate --congestion cubic        pre-built frames: what can the server take?
  loadgen --replay access.log.1.gz --replay access.log --replay-speed max
  loadgen --target 10.0.0.1:3313 --target 10.0.0.2:3313 --rate 50k/s   two servers of one deployment
  loadgen --find-max --slo p99=5ms,p999=20ms         highest rate that keeps both, confirmed three times
  loadgen --find-max --slo p99=2ms --raw --rate 1M/s --json max.json
  loadgen --rate 50k/s --attack brute-force --attack scanner:sources=500,rate=200/s --truth truth.jsonl
                                                     attackers among visitors: are they listed, and how soon?
  loadgen --rate 300k/s --attack credential-stuffing:sources=1000 --assert 'verdict_p99<2ms,attackers_not_listed=0'
  loadgen merge a.json b.json --json both.json       one report of two generators that ran at the same time

Exit codes: 0 all well; 1 an assertion or the reconciliation is broken, or --find-max could confirm no rate; 2 wrong usage; 3 the run could not be made.";

/// Load generator of postanalytics: sends records to a server, measures latency from the intended send time, and reconciles
/// what it generated with what was acknowledged and what the server stored.
#[derive(Debug, Parser)]
#[command(name = "loadgen", version, propagate_version = true, after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub struct Arguments {
    /// Side commands.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The run.
    #[command(flatten)]
    pub run: RunArguments,
}

const MERGE_HELP: &str = "\
Counts and rates are summed and the latency histograms added, so the quantiles are exactly those of all records together. The
server's CPU time, memory and records per CPU second are taken once, from the report with the longest window. Refused: reports of
different targets, without a common time, of the same run, or of --find-max.

Examples:
  loadgen --rate 50k/s --duration 30s --json a.json &  loadgen --rate 50k/s --duration 30s --json b.json; wait
  loadgen merge a.json b.json
  loadgen merge a.json b.json --json both.json --assert 'p99<5ms,generator_bound=false'";

/// Side commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make one report of several generators that ran against one server at the same time
    #[command(after_help = MERGE_HELP)]
    Merge(MergeArguments),
    /// Write shell completions to standard output
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write a manual page (roff) to standard output, or all of them into a folder
    Man {
        /// The subcommand whose page is meant [default: the page of the whole]
        subcommand: Option<String>,
        /// Write all pages into this folder instead: loadgen.1, loadgen-merge.1 and so on
        #[arg(long, value_name = "DIR", conflicts_with = "subcommand")]
        out: Option<PathBuf>,
    },
}

/// Options of `merge`.
#[derive(Clone, Debug, clap::Args)]
pub struct MergeArguments {
    /// Reports that --json wrote, two or more
    #[arg(required = true, num_args = 2.., value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Write the merged report as JSON; `-` is standard output
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Comma-separated conditions on the merged report; exit code 1 if one is broken
    #[arg(long, value_name = "CONDITIONS", value_delimiter = ',', value_parser = Assertion::parse)]
    pub assert: Vec<Assertion>,
}

/// Options of a run.
#[derive(Clone, Debug, clap::Args)]
pub struct RunArguments {
    /// Server to send to; repeatable, each source goes to one of them
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:3313")]
    pub target: Vec<String>,
    /// Open loop: so many records a second whatever the server does [default mode, at 10,000/s]
    #[arg(long, value_name = "N/s", value_parser = parse_rate, conflicts_with_all = ["saturate", "replay"])]
    pub rate: Option<u64>,
    /// Closed loop: as many records as are taken
    #[arg(long, conflicts_with = "replay")]
    pub saturate: bool,
    /// Search the highest rate at which every --slo holds, tnt_errors is 0 and this generator is not the bound: doubles from
    /// --rate, bisects to 5 %, confirms three times; --duration and --warmup are those of each run [default there: 5s, 1s]
    #[arg(long, requires = "slo", conflicts_with_all = ["saturate", "replay", "hgrm"])]
    pub find_max: bool,
    /// Comma-separated latency objectives of --find-max, each an upper bound: p99=5ms,p999=20ms
    #[arg(long, value_name = "OBJECTIVES", value_delimiter = ',', value_parser = Slo::parse, requires = "find_max",
          conflicts_with_all = ["saturate", "replay", "hgrm"])]
    pub slo: Vec<Slo>,
    /// Send pre-built frames past the client library, to saturate the server at little cost here; the same frames are sent
    /// lap after lap, so request ids and event times repeat
    #[arg(long, conflicts_with = "replay")]
    pub raw: bool,
    /// Send the lines of an access log (combined or common format, plain or gzip, with or without syslog prefix), each with the
    /// hits that the filter finds in its request line and user agent; repeatable
    #[arg(long, value_name = "FILE")]
    pub replay: Vec<PathBuf>,
    /// Times faster than the log was written, or `max`; a gap of more than a day in the log counts as a day
    #[arg(long, value_name = "X|max", default_value = "max", value_parser = parse_speed, requires = "replay",
          conflicts_with_all = ["rate", "saturate", "raw", "find_max", "attack"])]
    pub replay_speed: Speed,
    /// Measured time; a replay ends with its last line unless this is given [default: 10s]
    #[arg(long, value_parser = parse_duration)]
    pub duration: Option<Duration>,
    /// Time before the measured time, left out of the figures but not of the reconciliation [default: 2s; 0 for a replay]
    #[arg(long, value_parser = parse_duration)]
    pub warmup: Option<Duration>,
    /// Sessions, each a client (or raw) session with a connection to every shard it uses [default: one per thread]
    #[arg(long, value_name = "N")]
    pub connections: Option<usize>,
    /// Sending threads
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub threads: usize,
    /// Records a batch to aim at, up to the client's 1 MiB a batch; with --raw exactly so many [default: 64 with --raw, else
    /// the client's own]
    #[arg(long, value_name = "N")]
    pub batch: Option<usize>,
    /// Mean bytes of a record on the wire
    #[arg(long, value_name = "BYTES", default_value_t = 512)]
    pub record_bytes: usize,
    /// Kind of traffic
    #[arg(long, value_enum, default_value_t = Mix::Browse)]
    pub mix: Mix,
    /// Distinct sources; with --raw at least 100,000
    #[arg(long, value_name = "N", default_value_t = 131_072)]
    pub sources: u32,
    /// Mix attackers into the visitors (repeatable), as KIND or KIND:sources=N,rate=R. Kinds: brute-force, credential-stuffing,
    /// forced-browsing, bola, scanner, probing. N attackers (100), eight at a time and one after the other; R records a second
    /// of all of them [default: so that all are through within the measured time]. Measured is the time to verdict: from the
    /// intended send time of the record that decides, by the detectors' definitions, until another client has the attacker on
    /// its denylist. The server must run with --config FILE that says action = "denylist" for these detectors
    #[arg(long, value_name = "KIND[:OPTIONS]", value_parser = AttackSpec::parse,
          conflicts_with_all = ["saturate", "replay", "raw", "find_max"])]
    pub attack: Vec<AttackSpec>,
    /// Write who attacked, one JSON object a line: attack, source, first_us, deciding_record, deciding_us, records_sent
    #[arg(long, value_name = "FILE", requires = "attack", conflicts_with_all = ["saturate", "replay", "raw", "find_max"])]
    pub truth: Option<PathBuf>,
    /// Seed of the traffic: the same seed gives the same records
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Comma-separated conditions such as 'p99<5ms,tnt_errors=0'; exit code 1 if one is broken
    #[arg(long, value_name = "CONDITIONS", value_delimiter = ',', value_parser = Assertion::parse)]
    pub assert: Vec<Assertion>,
    /// Write the result as JSON; `-` is standard output
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write the corrected latency distribution for HdrHistogram plotters
    #[arg(long, value_name = "FILE")]
    pub hgrm: Option<PathBuf>,
    /// Pin each sending thread, and its clients' threads with it, to one CPU
    #[arg(long)]
    pub pin: bool,
    /// CPUs to pin to, thread after thread [default: the allowed ones, ascending: a server's shards have the last]
    #[arg(long, value_name = "N,N…", value_delimiter = ',', requires = "pin")]
    pub cpus: Vec<usize>,
    /// TCP congestion control, such as cubic; bbr with pacing throttles loopback [default: the system's]
    #[arg(long, value_name = "NAME")]
    pub congestion: Option<String>,
}

/// How fast a log is replayed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Speed {
    /// As fast as the records are taken.
    Max,
    /// So many times faster than it was written.
    Times(f64),
}

/// Where the records come from and when they are sent.
#[derive(Clone, Debug, PartialEq)]
pub enum Mode {
    /// Open loop at so many records a second.
    Open {
        /// Records per second.
        rate: u64,
    },
    /// Closed loop.
    Saturate,
    /// The lines of logs.
    Replay {
        /// The logs, in order.
        files: Vec<PathBuf>,
        /// How fast.
        speed: Speed,
    },
}

impl Mode {
    /// Whether every record has an intended send time.
    pub fn has_schedule(&self) -> bool {
        matches!(self, Self::Open { .. } | Self::Replay { speed: Speed::Times(_), .. })
    }
}

/// A checked run.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "as the options of the same names")]
pub struct Plan {
    /// The servers.
    pub targets: Vec<String>,
    /// All of them, for people.
    pub target: String,
    pub mode: Mode,
    pub raw: bool,
    pub warmup: Duration,
    /// `None`: until the replay ends.
    pub duration: Option<Duration>,
    pub connections: usize,
    pub threads: usize,
    pub batch: Option<usize>,
    pub record_bytes: usize,
    pub mix: Mix,
    pub sources: u32,
    pub seed: u64,
    pub attacks: Vec<AttackSpec>,
    /// CPUs to pin thread after thread to, empty if threads are not pinned.
    pub cpus: Vec<usize>,
    pub congestion: Option<String>,
}

impl Plan {
    /// Checks the options against each other. `allowed_cpus` are those this process may run on, ascending.
    pub fn from_arguments(arguments: &RunArguments, allowed_cpus: &[usize]) -> Result<Self, String> {
        let mode = if !arguments.replay.is_empty() {
            Mode::Replay { files: arguments.replay.clone(), speed: arguments.replay_speed }
        } else if arguments.saturate {
            Mode::Saturate
        } else {
            Mode::Open { rate: arguments.rate.unwrap_or(RATE_DEFAULT) }
        };
        let is_replay = matches!(mode, Mode::Replay { .. });
        let threads = arguments.threads;
        check(threads, 1, THREADS_MAX, "--threads")?;
        if is_replay && threads > 1 {
            return Err(format!("--threads {threads}: a log is replayed in its order by one thread; leave --threads out"));
        }
        let connections = arguments.connections.unwrap_or(threads);
        check(connections, threads, CONNECTIONS_MAX, "--connections (each thread needs its own)")?;
        if !connections.is_multiple_of(threads) {
            return Err(format!(
                "--connections {connections} is no multiple of --threads {threads}; each thread drives equally many"
            ));
        }
        check(arguments.record_bytes, RECORD_BYTES_MIN, RECORD_BYTES_MAX, "--record-bytes")?;
        let (sources_min, sources) = if arguments.raw { (RAW_SOURCES_MIN, "--sources (with --raw)") } else { (1, "--sources") };
        check(arguments.sources as usize, sources_min as usize, SOURCES_MAX as usize, sources)?;
        if let Some(batch) = arguments.batch {
            check(batch, 1, 65_536, "--batch")?;
        }
        let (duration_default, warmup_default) = match (is_replay, arguments.find_max) {
            (true, _) => (None, 0),
            (_, true) => (Some(Duration::from_secs(5)), 1),
            _ => (Some(Duration::from_secs(10)), 2),
        };
        let duration = arguments.duration.or(duration_default);
        if duration.is_some_and(|duration| duration.is_zero()) {
            return Err("--duration 0: nothing would be measured; give a time such as 10s".to_owned());
        }
        if arguments.raw && arguments.target.len() > 1 {
            return Err("--target is given twice: --raw sends the frames of one server's shards; leave --raw out".to_owned());
        }
        let plan = Self {
            targets: arguments.target.clone(),
            target: arguments.target.join(","),
            mode,
            raw: arguments.raw,
            warmup: arguments.warmup.unwrap_or(Duration::from_secs(warmup_default)),
            duration,
            connections,
            threads,
            batch: arguments.batch,
            record_bytes: arguments.record_bytes,
            mix: arguments.mix,
            sources: arguments.sources,
            seed: arguments.seed,
            attacks: arguments.attack.clone(),
            cpus: if arguments.pin { pinned_cpus(&arguments.cpus, allowed_cpus)? } else { Vec::new() },
            congestion: arguments.congestion.clone(),
        };
        Campaign::new(&plan)?;
        Ok(plan)
    }

    /// The CPU of a thread, if threads are pinned.
    pub fn cpu_of(&self, thread: usize) -> Option<usize> {
        (!self.cpus.is_empty()).then(|| self.cpus[thread % self.cpus.len()])
    }
}

fn pinned_cpus(wanted: &[usize], allowed: &[usize]) -> Result<Vec<usize>, String> {
    if allowed.is_empty() {
        return Err("--pin: the system does not say which CPUs are allowed; leave --pin out".to_owned());
    }
    if let Some(cpu) = wanted.iter().find(|cpu| !allowed.contains(cpu)) {
        return Err(format!("--cpus {cpu}: this process may run on CPUs {allowed:?} only; choose among them"));
    }
    // The first ones first: a server on this machine gives the last ones to its shards.
    Ok(if wanted.is_empty() { allowed } else { wanted }.to_vec())
}

fn check(value: usize, least: usize, most: usize, what: &str) -> Result<(), String> {
    if (least..=most).contains(&value) {
        Ok(())
    } else {
        Err(format!("{what} is {value}; it must be between {least} and {most}"))
    }
}

/// `50000`, `50k`, `1.5M`, each with or without `/s`.
pub fn parse_rate(text: &str) -> Result<u64, String> {
    let rate =
        parse_count(text.strip_suffix("/s").unwrap_or(text)).ok_or("write records per second, such as 50000/s or 50k/s")?;
    if (1.0..=1e9).contains(&rate) {
        Ok(rate as u64)
    } else {
        Err(format!("{rate} records/s is not between 1 and 1,000,000,000"))
    }
}

/// A number with an optional k, M or G.
pub fn parse_count(text: &str) -> Option<f64> {
    let (digits, factor) = match text.trim().chars().last()? {
        'k' | 'K' => (&text.trim()[..text.trim().len() - 1], 1e3),
        'M' | 'm' => (&text.trim()[..text.trim().len() - 1], 1e6),
        'G' => (&text.trim()[..text.trim().len() - 1], 1e9),
        _ => (text.trim(), 1.0),
    };
    let value: f64 = digits.replace('_', "").parse().ok()?;
    (value.is_finite() && value >= 0.0).then_some(value * factor)
}

/// `10s`, `500ms`, `250us`, `2m`, `1h`; a bare number is seconds.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let digits_end = text.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits_end);
    let seconds_per_unit = match unit.trim() {
        "" | "s" => 1.0,
        "us" | "µs" => 1e-6,
        "ms" => 1e-3,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        _ => return Err(format!("unit '{unit}' is not known; write us, ms, s, m or h")),
    };
    let value: f64 = number.parse().map_err(|_| format!("'{text}' is no time; write one such as 10s or 500ms"))?;
    Duration::try_from_secs_f64(value * seconds_per_unit).map_err(|error| format!("'{text}': {error}"))
}

fn parse_speed(text: &str) -> Result<Speed, String> {
    if text == "max" {
        return Ok(Speed::Max);
    }
    match text.strip_suffix('x').unwrap_or(text).parse::<f64>() {
        Ok(times) if times.is_finite() && times > 0.0 => Ok(Speed::Times(times)),
        _ => Err("write a positive number such as 1 or 60, or max".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn plan(arguments: &[&str]) -> Result<Plan, String> {
        let all = ["loadgen"].iter().chain(arguments);
        let parsed = Arguments::try_parse_from(all).map_err(|error| error.to_string())?;
        Plan::from_arguments(&parsed.run, &[0, 1, 2])
    }

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn defaults_are_an_open_loop() {
        let plan = plan(&[]).expect("defaults are a plan");
        assert_eq!((plan.mode, plan.connections, plan.record_bytes), (Mode::Open { rate: RATE_DEFAULT }, 1, 512));
        assert_eq!((plan.warmup, plan.duration), (Duration::from_secs(2), Some(Duration::from_secs(10))));
        assert!(plan.cpus.is_empty());
    }

    #[test]
    fn rates_and_times_take_units() {
        for (text, rate) in [("50000/s", 50_000), ("50k/s", 50_000), ("1.5M", 1_500_000), ("1_000", 1_000)] {
            assert_eq!(parse_rate(text), Ok(rate), "{text}");
        }
        for (text, us) in [("10s", 10_000_000), ("250us", 250), ("1.5ms", 1_500), ("2m", 120_000_000), ("3", 3_000_000)] {
            assert_eq!(parse_duration(text).map(|time| time.as_micros()), Ok(us), "{text}");
        }
        for bad in ["", "fast", "-1/s", "0", "1e12"] {
            assert!(parse_rate(bad).is_err(), "{bad}");
        }
        assert!(parse_duration("5 parsecs").is_err());
    }

    #[test]
    fn what_cannot_work_is_refused_with_its_value() {
        for (arguments, word) in [
            (&["--threads", "2", "--connections", "1"][..], "is 1"),
            (&["--threads", "2", "--connections", "3"][..], "--connections 3"),
            (&["--record-bytes", "100"][..], "is 100"),
            (&["--rate", "1/s", "--saturate"][..], "cannot be used"),
            (&["--replay", "a.log", "--raw"][..], "cannot be used"),
            (&["--replay", "a.log", "--threads", "2"][..], "--threads 2"),
            (&["--pin", "--cpus", "7"][..], "--cpus 7"),
            (&["--duration", "0"][..], "--duration 0"),
            (&["--assert", "p98<1"][..], "p98"),
            (&["--find-max"][..], "--slo"),
            (&["--slo", "p99=5ms"][..], "--find-max"),
            (&["--find-max", "--slo", "p99"][..], "p99=5ms"),
            (&["--find-max", "--slo", "p99=5ms", "--saturate"][..], "cannot be used"),
            (&["--attack", "bola:sources=60k", "--attack", "bola:sources=60k"][..], "120000 attackers"),
            (&["--attack", "bola", "--raw"][..], "cannot be used"),
            (&["--truth", "t.jsonl"][..], "--attack"),
            (&["--rate", "100/s", "--replay-speed", "2"][..], "--replay-speed"),
            (&["--saturate", "--replay-speed", "2"][..], "--replay-speed"),
            (&["--saturate", "--slo", "p99=5ms"][..], "--slo"),
            (&["--hgrm", "h", "--slo", "p99=5ms"][..], "--slo"),
            (&["--raw", "--truth", "t.jsonl"][..], "--truth"),
            (&["--raw", "--sources", "5"][..], "--sources (with --raw) is 5"),
            (&["--raw", "--target", "a:1", "--target", "b:1"][..], "leave --raw out"),
        ] {
            let error = plan(arguments).expect_err("it cannot work");
            assert!(error.contains(word), "{arguments:?}: {error}");
        }
    }

    #[test]
    fn replay_and_pinning() {
        let plan =
            plan(&["--replay", "a.log", "--replay", "b.gz", "--replay-speed", "60x", "--pin", "--cpus", "1,2"]).expect("a plan");
        assert_eq!(plan.mode, Mode::Replay { files: vec!["a.log".into(), "b.gz".into()], speed: Speed::Times(60.0) });
        assert_eq!((plan.duration, plan.warmup), (None, Duration::ZERO));
        assert_eq!((plan.cpu_of(0), plan.cpu_of(1), plan.cpu_of(2)), (Some(1), Some(2), Some(1)));
    }
}
