//! The result of a run: reconciliation, the JSON contract, the table for people, the latency distribution for plotters.

use crate::attack::witness::AttackSummary;
use crate::find_max::FindMax;
use crate::machine::{GIT_COMMIT, Machine};
use crate::measure::{Outcome, latency_histogram};
use anyhow::{Context, ensure};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use comfy_table::{CellAlignment, Table};
use flate2::read::ZlibDecoder;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer, V2DeflateSerializer};
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};

/// Far more than a histogram of loadgen has unpacked, nine bytes for each of its some 17,000 counts at the most.
const HISTOGRAM_BYTES_MAX: u64 = 1 << 20;

/// What `--json` writes. Scripts rely on these names.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names carry meaning and unit; README has the table")]
pub struct Report {
    pub target: String,
    pub records_generated: u64,
    pub records_acked: u64,
    pub tnt_errors: u64,
    pub records_in_doubt: u64,
    /// Sent again to another server when the first went away: both may have stored them.
    #[serde(default)]
    pub records_maybe_stored_elsewhere: u64,
    pub records_per_second: f64,
    pub records_per_server_cpu_second: f64,
    pub mean_batch_records: f64,
    pub generator_bound: bool,
    pub latency_us: Latencies,
    pub server: Server,
    pub reconciled: bool,
    pub machine: Machine,
    pub git: String,
    /// The measured window by this machine's clock, and its length by the monotonic one.
    pub window_unix_us: UnixWindow,
    pub window_seconds: f64,
    /// Due and never sent: for this generator did not keep up, and for the server had no room.
    pub records_unsent: u64,
    pub records_held_back: u64,
    /// Sends within the window that had an intended time, and those of them that were late.
    pub sends_scheduled: u64,
    pub sends_late: u64,
    pub own_cpu_seconds: f64,
    /// Random names of the runs that this is the report of; one, unless it is merged.
    pub runs: Vec<String>,
    /// Both latency histograms whole, so that reports can be merged exactly.
    pub histogram_us: Histograms,
    /// Only with --attack: from the intended send time of the deciding record until another client has the attacker listed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_to_verdict_us: Option<Quantiles>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attacks: Option<AttackSummary>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub find_max: Option<FindMax>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub merged: Vec<MergedPart>,
}

/// A window in µs of Unix time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as the type says")]
pub struct UnixWindow {
    pub from: u64,
    pub until: u64,
}

/// Histograms as HdrHistogram's V2 compressed form in base64, which its tools read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as the latencies of the same names")]
pub struct Histograms {
    pub corrected: String,
    pub uncorrected: String,
}

/// One report that went into a merged one.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as in that report")]
pub struct MergedPart {
    pub name: String,
    pub records_per_second: f64,
    pub window_seconds: f64,
    pub machine: Machine,
    pub git: String,
}

/// Latency from the intended send time (corrected) and from the hand-over (uncorrected).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as the type says")]
pub struct Latencies {
    pub corrected: Quantiles,
    pub uncorrected: Quantiles,
}

/// Quantiles in µs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "quantiles are named by their digits")]
pub struct Quantiles {
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p999: u64,
    pub max: u64,
}

/// The server's word on this run.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as in the Stats frame")]
pub struct Server {
    pub stored: u64,
    pub duplicate: u64,
    pub cpu_seconds: f64,
    pub rss_bytes: u64,
}

/// A histogram for JSON.
pub fn encode_histogram(histogram: &Histogram<u64>) -> String {
    let mut bytes = Vec::new();
    // Into memory, so nothing can fail; and a text that decodes to nothing would be refused by whoever merges it.
    let _ = V2DeflateSerializer::new().serialize(histogram, &mut bytes);
    BASE64_STANDARD.encode(bytes)
}

/// A histogram from JSON. One of other bounds is refused: adding it would not be exact. So is one that is not packed as ours are: the
/// bounds are looked at before memory is taken for what lies between them.
pub fn decode_histogram(text: &str) -> anyhow::Result<Histogram<u64>> {
    /// Cookie and length stand before what is packed; in that, before digits and bounds, there is a third number.
    const PACKED_FROM: usize = 8;
    const BOUNDS: std::ops::Range<usize> = 12..32;
    let packed = BASE64_STANDARD.decode(text).context("it is no base64")?;
    let own = BASE64_STANDARD.decode(encode_histogram(&latency_histogram()))?;
    let is_packed = packed.get(..4) == own.get(..4);
    let stream = packed.get(PACKED_FROM..).filter(|_| is_packed).context("it is no packed histogram of version 2")?;
    let unpacked = |stream| -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        ZlibDecoder::new(stream).take(HISTOGRAM_BYTES_MAX).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = unpacked(stream).context("it cannot be unpacked")?;
    let (found, wanted) = (bounds_in(bytes.get(BOUNDS)), bounds_in(unpacked(&own[PACKED_FROM..])?.get(BOUNDS)));
    ensure!(found == wanted, "its digits and bounds are {found:?}, those of loadgen are {wanted:?}");
    // The length of the counts, for which memory is taken before they are read.
    let length = bytes.get(4..8).and_then(|length| length.try_into().ok()).map_or(u32::MAX, u32::from_be_bytes);
    ensure!(u64::from(length) <= bytes.len() as u64, "it says to be longer than it is");
    // The least number there is, which the library negates; none of ours is so long.
    ensure!(!bytes.windows(9).any(|window| window == [0xff; 9]), "it has a count that is none");
    Deserializer::new().deserialize(&mut bytes.as_slice()).map_err(|error| anyhow::anyhow!("it cannot be read: {error}"))
}

/// Digits, lowest and highest value, as they stand in a histogram of version 2; none if it ends before them.
fn bounds_in(bytes: Option<&[u8]>) -> Option<(u32, u64, u64)> {
    let (digits, bounds) = bytes?.split_first_chunk()?;
    let (low, high) = bounds.split_first_chunk()?;
    Some((u32::from_be_bytes(*digits), u64::from_be_bytes(*low), u64::from_be_bytes(*high.first_chunk()?)))
}

impl Quantiles {
    /// Of a histogram in µs.
    pub fn of(histogram: &Histogram<u64>) -> Self {
        let at = |quantile| histogram.value_at_quantile(quantile);
        Self { p50: at(0.5), p90: at(0.9), p99: at(0.99), p999: at(0.999), max: histogram.max() }
    }
}

impl Report {
    /// The report of a run, and every law it broke, each in words that name both numbers.
    pub fn new(target: &str, outcome: &Outcome) -> (Self, Vec<String>) {
        let broken = reconcile(outcome);
        let server = outcome.server.unwrap_or_default();
        let uncorrected = &outcome.acked.uncorrected;
        let corrected = if outcome.has_schedule { &outcome.acked.corrected } else { uncorrected };
        let from = outcome.window_from_unix_us;
        let report = Self {
            target: target.to_owned(),
            records_generated: outcome.sent.generated,
            records_acked: outcome.acked_total,
            tnt_errors: outcome.tnt_errors,
            records_in_doubt: outcome.in_doubt,
            records_maybe_stored_elsewhere: outcome.maybe_stored_elsewhere,
            records_per_second: rounded(ratio(outcome.acked.in_window as f64, outcome.window_seconds)),
            records_per_server_cpu_second: rounded(ratio(server.stored_in_window as f64, server.cpu_seconds)),
            mean_batch_records: rounded(outcome.mean_batch_records),
            generator_bound: outcome.sent.is_generator_bound(),
            latency_us: Latencies { corrected: Quantiles::of(corrected), uncorrected: Quantiles::of(uncorrected) },
            server: Server {
                stored: server.stored,
                duplicate: server.duplicate,
                cpu_seconds: server.cpu_seconds,
                rss_bytes: server.rss_bytes,
            },
            reconciled: broken.is_empty(),
            machine: Machine::here(),
            git: GIT_COMMIT.to_owned(),
            window_unix_us: UnixWindow { from, until: from.saturating_add((outcome.window_seconds * 1e6) as u64) },
            window_seconds: outcome.window_seconds,
            records_unsent: outcome.sent.unsent,
            records_held_back: outcome.sent.held_back,
            sends_scheduled: outcome.sent.scheduled,
            sends_late: outcome.sent.late,
            own_cpu_seconds: outcome.own_cpu_seconds,
            runs: vec![format!("{:016x}", fastrand::u64(..))],
            histogram_us: Histograms { corrected: encode_histogram(corrected), uncorrected: encode_histogram(uncorrected) },
            time_to_verdict_us: outcome.attacks.as_ref().map(|attacks| Quantiles::of(&attacks.time_to_verdict)),
            attacks: outcome.attacks.as_ref().map(|attacks| attacks.summary),
            find_max: None,
            merged: Vec::new(),
        };
        (report, broken)
    }

    /// Writes the JSON, with a line end.
    pub fn write_json(&self, out: &mut dyn Write) -> io::Result<()> {
        serde_json::to_writer_pretty(&mut *out, self)?;
        writeln!(out)
    }

    /// The table for people.
    pub fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(comfy_table::presets::UTF8_BORDERS_ONLY);
        table.set_header(["", "corrected", "uncorrected"]);
        let latencies = self.latency_us;
        let quantiles = |of: Quantiles| [("p50", of.p50), ("p90", of.p90), ("p99", of.p99), ("p99.9", of.p999), ("max", of.max)];
        for ((name, corrected), (_, uncorrected)) in
            quantiles(latencies.corrected).into_iter().zip(quantiles(latencies.uncorrected))
        {
            table.add_row([format!("latency {name}"), microseconds(corrected), microseconds(uncorrected)]);
        }
        let mut row = |name: &str, value: String, remark: String| {
            table.add_row([name.to_owned(), value, remark]);
        };
        let seconds = self.window_seconds;
        row("records per second", grouped(self.records_per_second), format!("over {seconds:.2} s"));
        row("mean batch", format!("{:.1} records", self.mean_batch_records), String::new());
        let server_share = 100.0 * ratio(self.server.cpu_seconds, seconds);
        row("server CPU", format!("{:.3} s", self.server.cpu_seconds), format!("{server_share:.1} % of a core"));
        row("records per server-CPU-second", grouped(self.records_per_server_cpu_second), String::new());
        row("server memory", format!("{:.1} MiB", self.server.rss_bytes as f64 / f64::from(1 << 20)), "resident".to_owned());
        let own_share = 100.0 * ratio(self.own_cpu_seconds, seconds);
        row("own CPU", format!("{:.3} s", self.own_cpu_seconds), format!("{own_share:.1} % of a core"));
        row("generated", grouped(self.records_generated as f64), "whole run, with warm-up".to_owned());
        let in_doubt = if self.records_in_doubt > 0 { format!(", {} in doubt", self.records_in_doubt) } else { String::new() };
        if self.records_unsent + self.records_held_back > 0 {
            let held_back = format!("{} held back by the server", grouped(self.records_held_back as f64));
            row("due, never sent", grouped((self.records_unsent + self.records_held_back) as f64), held_back);
        }
        if self.records_maybe_stored_elsewhere > 0 {
            row("sent again elsewhere", grouped(self.records_maybe_stored_elsewhere as f64), "perhaps stored twice".to_owned());
        }
        row("acked + tnt_errors", format!("{} + {}", grouped(self.records_acked as f64), self.tnt_errors), in_doubt);
        row("stored by the server", grouped(self.server.stored as f64), format!("{} duplicates dropped", self.server.duplicate));
        row("reconciled", if self.reconciled { "yes" } else { "NO" }.to_owned(), String::new());
        if let (Some(times), Some(attacks)) = (self.time_to_verdict_us, self.attacks) {
            row("time to verdict p50", verdict_time(times.p50, attacks), "from the deciding record's intended time".to_owned());
            row("time to verdict p99", verdict_time(times.p99, attacks), "until another client has him listed".to_owned());
            row("time to verdict max", verdict_time(times.max, attacks), String::new());
            let of = format!("of {} attackers, {} undecided", attacks.attackers, attacks.undecided);
            row("listed + not listed", format!("{} + {}", grouped(attacks.listed as f64), attacks.not_listed), of);
            row("visitors listed", attacks.benign_listed.to_string(), String::new());
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
    }
}

/// Generated = acked + tnt_errors, and acked ≤ stored ≤ acked + in doubt + sent again to another server.
fn reconcile(outcome: &Outcome) -> Vec<String> {
    let mut broken = outcome.broken.clone();
    let (generated, acked, tnt_errors) = (outcome.sent.generated, outcome.acked_total, outcome.tnt_errors);
    if generated != acked + tnt_errors {
        broken.push(format!(
            "{generated} records were generated here, but {acked} acked + {tnt_errors} tnt_errors = {}",
            acked + tnt_errors
        ));
    }
    match outcome.server {
        None => broken.push(format!("the server could not be asked how much it stored of the {acked} records acked")),
        Some(server) if server.stored < acked && outcome.stored_is_partial.is_some() => broken.push(format!(
            "{} are stored, they say, and {acked} were acked, which proves nothing: {}; where a server had forgotten a session, the \
             client began a new one, and `stored` covers only that, and of servers that are there",
            server.stored,
            outcome.stored_is_partial.as_deref().unwrap_or_default()
        )),
        Some(server)
            if server.stored < acked || server.stored > acked + outcome.in_doubt + outcome.maybe_stored_elsewhere =>
        {
            broken.push(format!(
                "{} records are stored for this run's sessions, but {acked} were acked, {} are in doubt and {} were sent again to \
                 another server",
                server.stored, outcome.in_doubt, outcome.maybe_stored_elsewhere
            ));
        }
        Some(_) => {}
    }
    broken
}

/// Writes a latency distribution as HdrHistogram's plotters read it, in ms.
pub fn write_hgrm(histogram: &Histogram<u64>, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "{:>12} {:>14} {:>10} {:>14}\n", "Value", "Percentile", "TotalCount", "1/(1-Percentile)")?;
    let mut total = 0;
    for step in histogram.iter_quantiles(5) {
        total += step.count_since_last_iteration();
        let (value_ms, quantile) = (step.value_iterated_to() as f64 / 1000.0, step.quantile_iterated_to());
        if quantile < 1.0 {
            writeln!(out, "{value_ms:12.3} {quantile:2.12} {total:10} {:14.2}", 1.0 / (1.0 - quantile))?;
        } else {
            writeln!(out, "{value_ms:12.3} {quantile:2.12} {total:10}")?;
        }
    }
    let (mean_ms, deviation_ms) = (histogram.mean() / 1000.0, histogram.stdev() / 1000.0);
    writeln!(out, "#[Mean    = {mean_ms:12.3}, StdDeviation   = {deviation_ms:12.3}]")?;
    writeln!(out, "#[Max     = {:12.3}, Total count    = {:12}]", histogram.max() as f64 / 1000.0, histogram.len())?;
    writeln!(out, "#[Buckets = {:12}, SubBuckets     = {:12}]", histogram.buckets(), histogram.distinct_values())
}

fn verdict_time(value: u64, attacks: AttackSummary) -> String {
    if attacks.listed == 0 { "none came".to_owned() } else { microseconds(value) }
}

fn ratio(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

/// Two decimals are more than these figures are good for.
fn rounded(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

fn microseconds(value: u64) -> String {
    if value < 10_000 { format!("{value} µs") } else { format!("{:.1} ms", value as f64 / 1000.0) }
}

/// Digits in groups of three.
pub fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) && digits.as_bytes()[index - 1].is_ascii_digit() {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::measure::{Sent, ServerSide};

    fn outcome() -> Outcome {
        let mut outcome = Outcome {
            sent: Sent { generated: 110, scheduled: 100, late: 1, ..Sent::default() },
            acked_total: 100,
            tnt_errors: 10,
            in_doubt: 3,
            has_schedule: true,
            window_seconds: 2.0,
            mean_batch_records: 16.0,
            server: Some(ServerSide { stored: 102, cpu_seconds: 0.5, stored_in_window: 90, ..ServerSide::default() }),
            ..Outcome::default()
        };
        outcome.acked.record(200, 100, 90);
        outcome.acked.in_window = 90;
        outcome
    }

    #[test]
    fn json_has_the_names_of_the_contract() {
        let (report, broken) = Report::new("127.0.0.1:3313", &outcome());
        assert!(broken.is_empty(), "{broken:?}");
        let mut bytes = Vec::new();
        report.write_json(&mut bytes).expect("written");
        let json: serde_json::Value = serde_json::from_slice(&bytes).expect("JSON");
        let keys: Vec<&str> = json.as_object().expect("an object").keys().map(String::as_str).collect();
        let mut wanted = [
            "target",
            "records_generated",
            "records_acked",
            "tnt_errors",
            "records_in_doubt",
            "records_maybe_stored_elsewhere",
            "records_per_second",
            "records_per_server_cpu_second",
            "mean_batch_records",
            "generator_bound",
            "latency_us",
            "server",
            "reconciled",
            "machine",
            "git",
            "window_unix_us",
            "window_seconds",
            "records_unsent",
            "records_held_back",
            "sends_scheduled",
            "sends_late",
            "own_cpu_seconds",
            "runs",
            "histogram_us",
        ];
        wanted.sort_unstable();
        let mut found = keys.clone();
        found.sort_unstable();
        assert_eq!(found, wanted);
        assert_eq!(
            (&json["latency_us"]["corrected"]["p99"], &json["latency_us"]["uncorrected"]["p999"]),
            (&200.into(), &100.into())
        );
        assert_eq!((&json["records_per_second"], &json["records_per_server_cpu_second"]), (&45.0.into(), &180.0.into()));
        assert_eq!(
            (&json["server"]["stored"], &json["reconciled"], &json["generator_bound"]),
            (&102.into(), &true.into(), &false.into())
        );
        assert!(json["machine"]["cpus"].as_u64() > Some(0) && !json["machine"]["kernel"].as_str().unwrap_or("").is_empty());
    }

    #[test]
    fn every_mismatch_names_both_numbers() {
        let broken_by = |change: fn(&mut Outcome)| {
            let mut outcome = outcome();
            change(&mut outcome);
            let (report, broken) = Report::new("t", &outcome);
            assert!(!report.reconciled && broken.len() == 1, "{broken:?}");
            broken[0].clone()
        };
        let text = broken_by(|outcome| outcome.sent.generated = 111);
        assert!(text.contains("111") && text.contains("110"), "{text}");
        let text = broken_by(|outcome| outcome.server = Some(ServerSide { stored: 99, ..ServerSide::default() }));
        assert!(text.contains("99") && text.contains("100"), "{text}");
        broken_by(|outcome| outcome.server = Some(ServerSide { stored: 104, ..ServerSide::default() }));
        let text = broken_by(|outcome| {
            outcome.maybe_stored_elsewhere = 1;
            outcome.server = Some(ServerSide { stored: 105, ..ServerSide::default() });
        });
        assert!(text.contains("1 were sent again"), "{text}");
        let twice =
            Outcome { maybe_stored_elsewhere: 1, server: Some(ServerSide { stored: 104, ..ServerSide::default() }), ..outcome() };
        assert!(Report::new("t", &twice).0.reconciled);
        broken_by(|outcome| outcome.server = None);
        let text = broken_by(|outcome| {
            outcome.server = Some(ServerSide { stored: 9, ..ServerSide::default() });
            outcome.stored_is_partial = Some("the server was restarted".to_owned());
        });
        assert!(text.contains("proves nothing: the server was restarted") && text.contains("covers only"), "{text}");
    }

    #[test]
    fn the_histogram_in_the_report_is_the_one_measured() {
        let mut outcome = outcome();
        for latency_us in (1..70_000_000).step_by(77_777) {
            outcome.acked.record(latency_us, latency_us / 2, latency_us % 7 + 1);
        }
        let (report, _) = Report::new("t", &outcome);
        assert_eq!(decode_histogram(&report.histogram_us.corrected).expect("ours"), outcome.acked.corrected);
        assert_eq!(decode_histogram(&report.histogram_us.uncorrected).expect("ours"), outcome.acked.uncorrected);
        let other = Histogram::new_with_bounds(1, 1_000, 2).expect("good bounds");
        assert!(decode_histogram(&encode_histogram(&other)).expect_err("other bounds").to_string().contains("1000"));
        assert!(decode_histogram("?").is_err() && decode_histogram("").is_err() && decode_histogram("AAAA").is_err());
    }

    /// 92 bytes of text may ask for gigabytes.
    #[test]
    fn a_histogram_takes_no_memory_for_bounds_that_are_not_ours() {
        let huge = "HISTEwAAABwAAAAAAAAAAwAAAAAAAAABAAAAAAOThwA/8AAAAAAAAACAgICAgCChAAAIgICAgICAgICAgGCgAISTAAA=";
        assert!(decode_histogram(huge).expect_err("not packed").to_string().contains("no packed histogram"));
        let own = BASE64_STANDARD.decode(encode_histogram(&latency_histogram())).expect("ours");
        let mut bytes = Vec::new();
        ZlibDecoder::new(&own[8..]).read_to_end(&mut bytes).expect("ours");
        let packed = |bytes: &[u8]| {
            let mut packed = own[..8].to_vec();
            let mut encoder = flate2::write::ZlibEncoder::new(&mut packed, flate2::Compression::default());
            encoder.write_all(bytes).and_then(|()| encoder.try_finish()).expect("into memory");
            drop(encoder);
            BASE64_STANDARD.encode(packed)
        };
        assert_eq!(decode_histogram(&packed(&bytes)).expect("as it was"), latency_histogram());
        let length = std::mem::replace(&mut bytes[7], 0xff);
        bytes[4] = 0xff;
        assert!(decode_histogram(&packed(&bytes)).expect_err("too long").to_string().contains("longer than it is"));
        (bytes[4], bytes[7]) = (0, length);
        bytes[12..16].copy_from_slice(&5u32.to_be_bytes());
        bytes[24..32].copy_from_slice(&(u64::MAX / 2).to_be_bytes());
        assert!(decode_histogram(&packed(&bytes)).expect_err("other bounds").to_string().contains("its digits and bounds"));
        assert!(decode_histogram(&packed(&bytes[..20])).is_err() && decode_histogram(&packed(&vec![0; 8 << 20])).is_err());
    }

    #[test]
    fn without_a_schedule_both_columns_are_the_same() {
        let (report, _) = Report::new("t", &Outcome { has_schedule: false, ..outcome() });
        assert_eq!(report.latency_us.corrected, report.latency_us.uncorrected);
    }

    #[test]
    fn lateness_of_more_than_one_in_a_hundred_is_flagged() {
        let mut late = outcome();
        late.sent.late = 2;
        assert!(Report::new("t", &late).0.generator_bound);
        let mut unsent = outcome();
        unsent.sent.unsent = 1;
        assert!(Report::new("t", &unsent).0.generator_bound);
        // What the server held back is not the generator's doing.
        unsent.sent = Sent { unsent: 0, held_back: 1, ..unsent.sent };
        assert!(!Report::new("t", &unsent).0.generator_bound);
    }

    #[test]
    fn tables_and_distributions_are_for_reading() {
        let outcome = outcome();
        let (report, _) = Report::new("t", &outcome);
        let table = report.table().to_string();
        assert!(table.contains("latency p99.9") && table.contains("100 + 10"), "{table}");
        let mut bytes = Vec::new();
        write_hgrm(&outcome.acked.corrected, &mut bytes).expect("written");
        let text = String::from_utf8(bytes).expect("text");
        assert!(text.contains("0.200") && text.contains("#[Max"), "{text}");
        assert_eq!(
            (grouped(0.0), grouped(999.0), grouped(1_234_567.0)),
            ("0".to_owned(), "999".to_owned(), "1,234,567".to_owned())
        );
    }
}
