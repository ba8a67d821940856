//! `loadgen merge`: one report of several generators that ran against one server at the same time.
//!
//! Counts and rates are summed, latency histograms are added bucket by bucket, so the merged quantiles are exactly those of all
//! records together. What describes the server as a whole (CPU time, memory, records per CPU second) is taken once, from the
//! report with the longest measured window. Reports that do not belong together are refused: another target, no common time,
//! the same run twice, a search for a maximum.

use crate::measure::latency_histogram;
use crate::report::{Latencies, MergedPart, Quantiles, Report, UnixWindow, decode_histogram, encode_histogram};
use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::io::Read;
use std::path::Path;

/// Largest report read.
const BYTES_MAX: u64 = 64 << 20;

/// Reads a report.
pub fn read(path: &Path) -> Result<Report> {
    let mut text = String::new();
    let file = std::fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let bytes = file.take(BYTES_MAX + 1).read_to_string(&mut text).with_context(|| format!("cannot read {}", path.display()))?;
    if bytes as u64 > BYTES_MAX {
        bail!("{} is longer than {BYTES_MAX} bytes: that is no report", path.display());
    }
    serde_json::from_str(&text).with_context(|| {
        format!("{} is no report that can be merged: it must come from --json of this version of loadgen", path.display())
    })
}

/// Merges reports, each with its name for errors and for the result.
pub fn merge(reports: &[(String, Report)]) -> Result<Report> {
    let [(_, first), ..] = reports else { bail!("there is nothing to merge: give two reports or more") };
    let overlap = check(reports)?;
    let mut merged = Report {
        reconciled: true,
        window_unix_us: overlap,
        merged: Vec::new(),
        runs: Vec::new(),
        machine: first.machine.clone(),
        git: first.git.clone(),
        target: first.target.clone(),
        ..Report::default()
    };
    let (mut corrected, mut uncorrected) = (latency_histogram(), latency_histogram());
    let (mut records, mut batches) = (0.0, 0.0);
    for (name, report) in reports {
        for (sum, text) in
            [(&mut corrected, &report.histogram_us.corrected), (&mut uncorrected, &report.histogram_us.uncorrected)]
        {
            let part = decode_histogram(text).with_context(|| format!("the histogram in {name}"))?;
            sum.add(part).with_context(|| format!("the histogram in {name} does not fit the others"))?;
        }
        merged.records_generated += report.records_generated;
        merged.records_acked += report.records_acked;
        merged.records_unsent += report.records_unsent;
        merged.records_held_back += report.records_held_back;
        merged.tnt_errors += report.tnt_errors;
        merged.records_in_doubt += report.records_in_doubt;
        merged.records_maybe_stored_elsewhere += report.records_maybe_stored_elsewhere;
        merged.records_per_second += report.records_per_second;
        merged.sends_scheduled += report.sends_scheduled;
        merged.sends_late += report.sends_late;
        merged.own_cpu_seconds += report.own_cpu_seconds;
        merged.generator_bound |= report.generator_bound;
        merged.reconciled &= report.reconciled;
        // Each says what was stored for its own sessions.
        merged.server.stored += report.server.stored;
        merged.server.duplicate += report.server.duplicate;
        let in_window = report.records_per_second * report.window_seconds;
        records += in_window;
        batches += if report.mean_batch_records > 0.0 { in_window / report.mean_batch_records } else { 0.0 };
        merged.runs.extend(report.runs.iter().cloned());
        merged.merged.push(MergedPart {
            name: name.clone(),
            records_per_second: report.records_per_second,
            window_seconds: report.window_seconds,
            machine: report.machine.clone(),
            git: report.git.clone(),
        });
    }
    merged.mean_batch_records = if batches > 0.0 { records / batches } else { 0.0 };
    let longest = reports
        .iter()
        .map(|(_, report)| report)
        .reduce(|longest, report| if report.window_seconds > longest.window_seconds { report } else { longest });
    let longest = longest.unwrap_or(first);
    merged.window_seconds = longest.window_seconds;
    merged.records_per_server_cpu_second = longest.records_per_server_cpu_second;
    (merged.server.cpu_seconds, merged.server.rss_bytes) = (longest.server.cpu_seconds, longest.server.rss_bytes);
    merged.latency_us = Latencies { corrected: Quantiles::of(&corrected), uncorrected: Quantiles::of(&uncorrected) };
    merged.histogram_us.corrected = encode_histogram(&corrected);
    merged.histogram_us.uncorrected = encode_histogram(&uncorrected);
    Ok(merged)
}

/// Whether they belong together; the time that all were measuring.
fn check(reports: &[(String, Report)]) -> Result<UnixWindow> {
    let (first_name, first) = &reports[0];
    let mut runs = BTreeSet::new();
    let mut common = first.window_unix_us;
    for (name, report) in reports {
        if report.target != first.target {
            bail!(
                "{first_name} is of the server {} and {name} of {}: only reports of one server, under one name, can be merged",
                first.target,
                report.target
            );
        }
        if report.find_max.is_some() {
            bail!("{name} was written by --find-max, which makes many runs: merge reports of single runs at a rate");
        }
        if report.attacks.is_some() {
            bail!("{name} was written with --attack: the verdicts of several generators cannot be told apart afterwards");
        }
        if report.runs.is_empty() {
            bail!("{name} does not say which run it is of: it must come from --json of this version of loadgen");
        }
        if let Some(run) = report.runs.iter().find(|run| !runs.insert((*run).clone())) {
            bail!("{name} holds run {run}, which another report holds too: its records would be counted twice");
        }
        common.from = common.from.max(report.window_unix_us.from);
        common.until = common.until.min(report.window_unix_us.until);
        if common.from >= common.until {
            let apart_seconds = common.from.abs_diff(common.until) as f64 / 1e6;
            bail!(
                "{name} was measured {apart_seconds:.1} s apart from the others: their rates were never one load; start the \
                 generators together, with the same --warmup and --duration (and compare the machines' clocks)"
            );
        }
    }
    Ok(common)
}

/// What the reader of a merged report should know: generators that measured longer than all did together.
pub fn remarks(merged: &Report) -> Vec<String> {
    let common_seconds = merged.window_unix_us.until.saturating_sub(merged.window_unix_us.from) as f64 / 1e6;
    let partly = merged.merged.iter().filter(|part| common_seconds < 0.9 * part.window_seconds);
    partly
        .map(|part| {
            format!(
                "{} measured {:.1} s, of which all generators ran {common_seconds:.1} s together: the summed rate is too high for \
                 the rest of the time",
                part.name, part.window_seconds
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::find_max::FindMax;
    use crate::measure::{Acked, Outcome, Sent, ServerSide};
    use proptest::prelude::*;

    /// A report of these samples (corrected, uncorrected, count), with sums that fit them.
    fn report(samples: &[(u64, u64, u64)]) -> Report {
        let mut acked = Acked::default();
        for &(corrected, uncorrected, count) in samples {
            acked.record(corrected, uncorrected, count);
            acked.in_window += count;
        }
        let total = acked.in_window;
        let outcome = Outcome {
            sent: Sent { generated: total, scheduled: total, late: total / 200, ..Sent::default() },
            acked_total: total,
            acked,
            has_schedule: true,
            window_seconds: 2.0,
            window_from_unix_us: 1_000_000,
            mean_batch_records: 8.0,
            server: Some(ServerSide { stored: total, cpu_seconds: 0.5, stored_in_window: 1000, ..ServerSide::default() }),
            ..Outcome::default()
        };
        let (report, broken) = Report::new("127.0.0.1:3313", &outcome);
        assert!(broken.is_empty(), "{broken:?}");
        // As merge() meets it: through JSON.
        let mut bytes = Vec::new();
        report.write_json(&mut bytes).expect("written");
        serde_json::from_slice(&bytes).expect("read back")
    }

    fn named(reports: Vec<Report>) -> Vec<(String, Report)> {
        reports.into_iter().enumerate().map(|(index, report)| (format!("{index}.json"), report)).collect()
    }

    fn refused(change: impl FnOnce(&mut Report)) -> String {
        let (first, mut second) = (report(&[(10, 5, 3)]), report(&[(20, 5, 3)]));
        change(&mut second);
        merge(&named(vec![first, second])).expect_err("they do not belong together").to_string()
    }

    proptest! {
        #[test]
        fn the_merge_of_split_samples_is_the_whole(
            samples in prop::collection::vec((1u64..90_000_000, 1u64..90_000_000, 1u64..1000), 0..200),
            parts in 2usize..5,
            seed in any::<u64>(),
        ) {
            let mut choose = fastrand::Rng::with_seed(seed);
            let mut split = vec![Vec::new(); parts];
            for sample in &samples {
                split[choose.usize(0..parts)].push(*sample);
            }
            let whole = report(&samples);
            let merged = merge(&named(split.iter().map(|part| report(part)).collect())).expect("they belong together");
            prop_assert_eq!(merged.latency_us, whole.latency_us);
            prop_assert_eq!(decode_histogram(&merged.histogram_us.corrected).ok(), decode_histogram(&whole.histogram_us.corrected).ok());
            prop_assert_eq!(decode_histogram(&merged.histogram_us.uncorrected).ok(), decode_histogram(&whole.histogram_us.uncorrected).ok());
            prop_assert_eq!(
                (merged.records_generated, merged.records_acked, merged.server.stored, merged.tnt_errors),
                (whole.records_generated, whole.records_acked, whole.server.stored, 0)
            );
            prop_assert!((merged.records_per_second - whole.records_per_second).abs() < 0.1);
            prop_assert!(merged.reconciled && merged.runs.len() == parts && merged.merged.len() == parts);
        }
    }

    #[test]
    fn what_is_the_servers_is_taken_once() {
        let (first, mut second) = (report(&[(10, 5, 300)]), report(&[(20, 5, 100)]));
        second.window_seconds = 3.0;
        second.server.cpu_seconds = 0.75;
        (second.mean_batch_records, second.records_per_second) = (2.0, 50.0);
        let merged = merge(&named(vec![first, second])).expect("they belong together");
        assert!((merged.server.cpu_seconds - 0.75).abs() < 1e-9 && (merged.window_seconds - 3.0).abs() < 1e-9, "{merged:?}");
        assert!((merged.records_per_second - 200.0).abs() < 1e-9);
        // 300 records in batches of 8, and 150 in batches of 2.
        assert!((merged.mean_batch_records - 450.0 / (300.0 / 8.0 + 75.0)).abs() < 1e-9, "{merged:?}");
        assert!(remarks(&merged).iter().any(|remark| remark.starts_with("1.json measured 3.0 s")), "{:?}", remarks(&merged));
    }

    #[test]
    fn a_merge_can_be_merged() {
        let three = named(vec![report(&[(10, 5, 3)]), report(&[(20, 5, 3)]), report(&[(30, 5, 3)])]);
        let pair = ("pair".to_owned(), merge(&three[..2]).expect("two"));
        let merged = merge(&[pair, three[2].clone()]).expect("three");
        assert_eq!((merged.records_acked, merged.runs.len(), merged.latency_us.corrected.max), (9, 3, 30));
        assert!(merge(&[("all".to_owned(), merged), three[0].clone()]).expect_err("twice").to_string().contains("counted twice"));
    }

    #[test]
    fn what_does_not_belong_together_is_refused_with_the_reason() {
        let text = refused(|second| second.target = "10.0.0.1:3313".to_owned());
        assert!(text.contains("127.0.0.1:3313") && text.contains("10.0.0.1:3313"), "{text}");
        let text = refused(|second| second.window_unix_us = UnixWindow { from: 4_000_000, until: 6_000_000 });
        assert!(text.contains("1.0 s apart") && text.contains("start the generators together"), "{text}");
        assert!(refused(|second| second.find_max = Some(FindMax::default())).contains("--find-max"));
        assert!(refused(|second| second.runs.clear()).contains("which run"));
        assert!(refused(|second| second.histogram_us.corrected = "bm9uc2Vuc2U=".to_owned()).contains("1.json"));
        assert!(merge(&[]).is_err());
        let same = report(&[(10, 5, 3)]);
        assert!(merge(&named(vec![same.clone(), same])).expect_err("twice").to_string().contains("counted twice"));
    }

    #[test]
    fn files_that_are_no_reports_are_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("old.json");
        std::fs::write(&path, "{\"target\":\"x\"}").expect("written");
        assert!(format!("{:#}", read(&path).expect_err("no report")).contains("old.json is no report"));
        assert!(format!("{:#}", read(&folder.path().join("missing")).expect_err("no file")).contains("missing"));
    }
}
