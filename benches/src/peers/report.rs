//! The JSON, the table, and whether the run counts.

use crate::peers::measure::{GENERATOR_BOUND_SHARE, median, ratio};
use crate::peers::plan::{Plan, SystemKind, Workload};
use crate::peers::run::{Entry, Finding, Path};
use comfy_table::{CellAlignment, Table, presets};
use postanalytics_loadgen::machine::Machine;
use postanalytics_loadgen::report::grouped;
use serde::Serialize;
use std::fs;

/// What the peers reached on a machine of this kind when the bench was conceived, records per second. One below half of it
/// was not running as it should, and the run does not count.
const REFERENCE: [(SystemKind, Workload, f64); 3] = [
    (SystemKind::Tarantool, Workload::Batched, 142_000.0),
    (SystemKind::Tarantool, Workload::BatchedNoindex, 240_000.0),
    (SystemKind::Redis, Workload::Batched, 241_000.0),
];

/// One entry of the JSON. Scripts rely on these names.
#[derive(Clone, Debug, Serialize)]
#[expect(missing_docs, reason = "the names carry meaning and unit; docs/performance.md has the table")]
pub struct Line {
    pub system: &'static str,
    pub workload: &'static str,
    pub version: String,
    pub records_per_second: f64,
    pub records_per_server_cpu_second: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    pub bytes_per_record: f64,
    pub resident_bytes_per_record: f64,
    pub stored: u64,
    pub checksum: String,
    pub path: &'static str,
    pub checksum_expected: String,
    pub records_sent: u64,
    pub wire_bytes_per_record: f64,
    pub mean_batch_records: f64,
    pub connections: usize,
    pub server_cpu_share: f64,
    pub generator_cpu_share: f64,
    pub generator_bound: bool,
    pub latency_records_per_second: f64,
    pub runs: usize,
    pub void: Option<String>,
    pub note: String,
    pub congestion: String,
    pub congestion_server: Option<String>,
    pub machine: String,
    pub kernel: String,
    pub date: String,
}

/// All lines, in the order measured.
#[derive(Clone, Debug)]
pub struct Report {
    /// The lines.
    pub lines: Vec<Line>,
    quick: bool,
}

impl Report {
    /// The report of what was found out.
    pub fn new(plan: &Plan, machine: &str, findings: &[Finding]) -> Self {
        let (machine, date) = (machine.to_owned(), jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
        let kernel = Machine::here().kernel;
        let line = |finding: &Finding| Line {
            machine: machine.clone(),
            kernel: kernel.clone(),
            date: date.clone(),
            ..line(plan, finding)
        };
        Self { lines: findings.iter().map(line).collect(), quick: plan.quick }
    }

    /// Why the run does not count; empty if it does.
    pub fn void(&self) -> Vec<String> {
        self.lines.iter().filter_map(|line| line.void.clone()).collect()
    }

    /// The table, and what the reader should know.
    pub fn text(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::ASCII_MARKDOWN);
        table.set_header([
            "workload",
            "system",
            "records/s",
            "per server-CPU-s",
            "× Tarantool",
            "% of discard",
            "server core",
            "generator",
            "batch",
            "p50 / p99 / p99.9 µs",
            "at /s",
            "bytes/record (× wire)",
            "rows, checksum",
        ]);
        for line in &self.lines {
            table.add_row(self.row(line));
        }
        for column in table.column_iter_mut().skip(2) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let mut text = table.to_string();
        if let Some(first) = self.lines.first() {
            text += &format!(
                "\n{}, Linux {}, {}; loopback, congestion control {}; one core for the server, one for the generator; medians of {} runs.\n",
                first.machine,
                first.kernel,
                first.date,
                self.congestion(&first.congestion),
                first.runs
            );
        }
        let mut versions: Vec<String> = self.lines.iter().map(|line| format!("{} {}", line.system, line.version)).collect();
        versions.dedup();
        versions.sort();
        versions.dedup();
        text += &format!("{}\n", versions.join(", "));
        for line in self.lines.iter().filter(|line| line.generator_bound) {
            let percent = 100.0 * line.generator_cpu_share;
            text += &format!(
                "generator-bound: {} {} ({}): the generator used {percent:.0} % of its core; records/s is its figure\n",
                line.workload, line.system, line.path
            );
        }
        self.lines.iter().filter(|line| !line.note.is_empty()).for_each(|line| text += &format!("note: {}\n", line.note));
        if self.quick {
            text += "a quick run: it shows that everything works, its figures mean nothing\n";
        }
        self.void().iter().for_each(|reason| text += &format!("VOID: {reason}\n"));
        text
    }

    /// The congestion control that the generator asks for, and whether the servers were seen to have it, too.
    fn congestion(&self, wanted: &str) -> String {
        let is_unchecked = |line: &&Line| line.congestion_server.is_none();
        let mut unchecked: Vec<&str> = self.lines.iter().filter(is_unchecked).map(|line| line.system).collect();
        unchecked.sort_unstable();
        unchecked.dedup();
        match unchecked[..] {
            [] => format!("{wanted} on both sides"),
            _ => format!("{wanted} on the client side only (that of {} is unchecked)", unchecked.join(", ")),
        }
    }

    fn row(&self, line: &Line) -> Vec<String> {
        let of = |system: SystemKind, workload: &str| {
            let found = self.lines.iter().find(|other| other.system == system.name() && other.workload == workload);
            found.map_or(0.0, |other| other.records_per_server_cpu_second)
        };
        let quotient = |whole: f64, digits: usize, factor: f64| {
            if whole > 0.0 {
                format!("{:.*}", digits, factor * line.records_per_server_cpu_second / whole)
            } else {
                "–".to_owned()
            }
        };
        let stored = if line.system == SystemKind::Discard.name() {
            "none, by design".to_owned()
        } else {
            format!("{} ok {}…", grouped(line.stored as f64), &line.checksum[..6])
        };
        let path = if line.path == Path::Client.name() { " (client crate)" } else { "" };
        vec![
            line.workload.to_owned(),
            format!("{}{path}", line.system),
            grouped(line.records_per_second),
            grouped(line.records_per_server_cpu_second),
            quotient(of(SystemKind::Tarantool, line.workload), 1, 1.0),
            quotient(of(SystemKind::Discard, line.workload), 0, 100.0),
            format!("{:.0} %", 100.0 * line.server_cpu_share),
            format!("{:.0} %", 100.0 * line.generator_cpu_share),
            format!("{:.1}", line.mean_batch_records),
            format!("{} / {} / {}", grouped(line.p50_us), grouped(line.p99_us), grouped(line.p999_us)),
            grouped(line.latency_records_per_second),
            format!("{:.0} ({:.2})", line.bytes_per_record, ratio(line.bytes_per_record, line.wire_bytes_per_record)),
            stored,
        ]
    }
}

fn line(plan: &Plan, finding: &Finding) -> Line {
    let (entry, runs) = (finding.entry, &finding.runs);
    let rounded = |value: f64| (value * 1000.0).round() / 1000.0;
    let own_share = median(runs, |run| run.full.own_share());
    let (rate, per_cpu) = (median(runs, |run| run.full.rate()), median(runs, |run| run.full.per_cpu_second()));
    Line {
        system: entry.system.name(),
        workload: entry.workload.name(),
        version: finding.version.clone(),
        records_per_second: rate.round(),
        records_per_server_cpu_second: per_cpu.round(),
        p50_us: median(runs, |run| run.latency_us(0.5)),
        p99_us: median(runs, |run| run.latency_us(0.99)),
        p999_us: median(runs, |run| run.latency_us(0.999)),
        bytes_per_record: rounded(finding.read.bytes_per_record),
        resident_bytes_per_record: rounded(finding.read.resident_bytes_per_record),
        stored: finding.read.stored.rows,
        checksum: format!("{:016x}", finding.read.stored.checksum),
        path: entry.path.name(),
        checksum_expected: format!("{:016x}", finding.expected.checksum),
        records_sent: finding.sent,
        wire_bytes_per_record: rounded(finding.wire_bytes_per_record),
        mean_batch_records: rounded(median(runs, |run| run.full.mean_batch())),
        connections: finding.connections,
        server_cpu_share: rounded(median(runs, |run| run.full.server_share())),
        generator_cpu_share: rounded(own_share),
        generator_bound: own_share > GENERATOR_BOUND_SHARE,
        latency_records_per_second: median(runs, |run| run.third.rate()).round(),
        runs: runs.len(),
        void: finding.void.clone().or_else(|| if plan.quick { None } else { void(entry, rate.min(per_cpu)) }),
        note: finding.note.clone(),
        congestion: plan.congestion.clone(),
        congestion_server: finding.congestion.clone(),
        machine: String::new(),
        kernel: String::new(),
        date: String::new(),
    }
}

/// Why a peer's figure voids the run.
fn void(entry: Entry, rate: f64) -> Option<String> {
    let reference = REFERENCE.iter().find(|(system, workload, _)| (*system, *workload) == (entry.system, entry.workload))?.2;
    (rate < reference / 2.0).then(|| {
        format!(
            "{} reached {} records per second, less than half of the {} it is known for: it was not running as it should, or \
             the machine was busy; this run proves nothing",
            entry.title(),
            grouped(rate),
            grouped(reference)
        )
    })
}

/// The machine in a few words; to be asked before this process is pinned.
pub fn machine() -> String {
    let cpu_info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        cpu_info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, model)| model.trim()));
    let memory_info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib =
        memory_info.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    format!("{} CPUs ({}), {} GB", Machine::here().cpus, model.unwrap_or("unknown"), kib.unwrap_or(0).div_ceil(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::measure::{Run, Window};
    use crate::peers::plan::tests::plan;
    use crate::peers::records::Stored;
    use crate::peers::systems::ReadBack;

    #[test]
    fn both_sides_are_claimed_only_where_both_were_seen() {
        let plan = plan(&[Workload::Batched], &[SystemKind::Redis], true);
        let finding = |system, congestion: Option<&str>| Finding {
            entry: Entry { system, workload: Workload::Batched, path: Path::Raw },
            runs: vec![Run { full: Window::default(), third: Window::default() }],
            read: ReadBack::default(),
            expected: Stored::default(),
            sent: 0,
            connections: 1,
            wire_bytes_per_record: 513.0,
            note: String::new(),
            congestion: congestion.map(str::to_owned),
            void: None,
            version: "7".to_owned(),
        };
        let seen = finding(SystemKind::Redis, Some("cubic"));
        let both = Report::new(&plan, "a machine", std::slice::from_ref(&seen));
        assert!(both.text().contains("cubic on both sides"), "{}", both.text());
        let one = Report::new(&plan, "a machine", &[seen, finding(SystemKind::Tarantool, None)]);
        assert!(one.text().contains("cubic on the client side only (that of tarantool is unchecked)"), "{}", one.text());
        let json = serde_json::to_value(&one.lines).expect("JSON");
        assert_eq!((json[0]["congestion_server"].as_str(), json[1]["congestion_server"].as_str()), (Some("cubic"), None));
    }

    #[test]
    fn a_peer_below_half_of_what_it_is_known_for_voids_the_run() {
        for (system, workload, reference) in REFERENCE {
            let entry = Entry { system, workload, path: Path::Raw };
            let (below, half, above) = (reference / 2.0 - 1.0, reference / 2.0, reference / 2.0 + 1.0);
            let reason = void(entry, below).expect("it is too slow");
            assert!(reason.contains(&entry.title()) && reason.contains(&grouped(reference)), "{reason}");
            assert_eq!((void(entry, half), void(entry, above)), (None, None), "{}", entry.title());
        }
        let unknown = [(SystemKind::Postanalytics, Workload::Batched), (SystemKind::Discard, Workload::Batched)];
        for (system, workload) in unknown.into_iter().chain([(SystemKind::Redis, Workload::Single)]) {
            assert_eq!(void(Entry { system, workload, path: Path::Raw }, 0.0), None, "nothing is known of it");
        }
    }
}
