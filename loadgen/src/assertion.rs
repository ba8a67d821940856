//! Conditions on the result (`--assert 'p99<5ms,tnt_errors=0'`), so that a script can fail on them.

use crate::attack::witness::AttackSummary;
use crate::plan::{parse_count, parse_duration};
use crate::report::{Quantiles, Report};
use std::fmt;

/// One condition: a metric of the report, a comparison, a value.
#[derive(Clone, Debug, PartialEq)]
pub struct Assertion {
    text: String,
    metric: &'static Metric,
    comparison: Comparison,
    value: f64,
}

/// A number of the report that can be asserted on.
#[derive(Debug)]
struct Metric {
    name: &'static str,
    /// Its values are times in µs and may be written with a unit.
    is_time: bool,
    of: fn(&Report) -> f64,
}

impl Metric {
    fn is_of_attacks(&self) -> bool {
        self.name.starts_with("verdict_") || matches!(self.name, "attackers_not_listed" | "benign_listed")
    }
}

impl PartialEq for Metric {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Comparison {
    Less,
    LessOrEqual,
    Equal,
    GreaterOrEqual,
    Greater,
}

const METRICS: &[Metric] = &[
    Metric { name: "p50", is_time: true, of: |report| report.latency_us.corrected.p50 as f64 },
    Metric { name: "p90", is_time: true, of: |report| report.latency_us.corrected.p90 as f64 },
    Metric { name: "p99", is_time: true, of: |report| report.latency_us.corrected.p99 as f64 },
    Metric { name: "p999", is_time: true, of: |report| report.latency_us.corrected.p999 as f64 },
    Metric { name: "max", is_time: true, of: |report| report.latency_us.corrected.max as f64 },
    Metric { name: "uncorrected_p50", is_time: true, of: |report| report.latency_us.uncorrected.p50 as f64 },
    Metric { name: "uncorrected_p90", is_time: true, of: |report| report.latency_us.uncorrected.p90 as f64 },
    Metric { name: "uncorrected_p99", is_time: true, of: |report| report.latency_us.uncorrected.p99 as f64 },
    Metric { name: "uncorrected_p999", is_time: true, of: |report| report.latency_us.uncorrected.p999 as f64 },
    Metric { name: "uncorrected_max", is_time: true, of: |report| report.latency_us.uncorrected.max as f64 },
    Metric { name: "verdict_p50", is_time: true, of: |report| verdict(report).p50 as f64 },
    Metric { name: "verdict_p99", is_time: true, of: |report| verdict(report).p99 as f64 },
    Metric { name: "verdict_max", is_time: true, of: |report| verdict(report).max as f64 },
    Metric { name: "attackers_not_listed", is_time: false, of: |report| attacks(report).not_listed as f64 },
    Metric { name: "benign_listed", is_time: false, of: |report| attacks(report).benign_listed as f64 },
    Metric { name: "records_generated", is_time: false, of: |report| report.records_generated as f64 },
    Metric { name: "records_acked", is_time: false, of: |report| report.records_acked as f64 },
    Metric { name: "tnt_errors", is_time: false, of: |report| report.tnt_errors as f64 },
    Metric { name: "records_in_doubt", is_time: false, of: |report| report.records_in_doubt as f64 },
    Metric { name: "records_maybe_stored_elsewhere", is_time: false, of: |report| report.records_maybe_stored_elsewhere as f64 },
    Metric { name: "records_unsent", is_time: false, of: |report| report.records_unsent as f64 },
    Metric { name: "records_held_back", is_time: false, of: |report| report.records_held_back as f64 },
    Metric { name: "in_doubt", is_time: false, of: |report| report.records_in_doubt as f64 },
    Metric { name: "records_per_second", is_time: false, of: |report| report.records_per_second },
    Metric { name: "records_per_server_cpu_second", is_time: false, of: |report| report.records_per_server_cpu_second },
    Metric { name: "mean_batch_records", is_time: false, of: |report| report.mean_batch_records },
    Metric { name: "generator_bound", is_time: false, of: |report| f64::from(u8::from(report.generator_bound)) },
    Metric { name: "stored", is_time: false, of: |report| report.server.stored as f64 },
    Metric { name: "duplicate", is_time: false, of: |report| report.server.duplicate as f64 },
    Metric { name: "server_cpu_seconds", is_time: false, of: |report| report.server.cpu_seconds },
    Metric { name: "server_rss_bytes", is_time: false, of: |report| report.server.rss_bytes as f64 },
    Metric { name: "reconciled", is_time: false, of: |report| f64::from(u8::from(report.reconciled)) },
];

/// Zero without attacks, which breaks every condition on a time.
fn verdict(report: &Report) -> Quantiles {
    report.time_to_verdict_us.unwrap_or_default()
}

fn attacks(report: &Report) -> AttackSummary {
    report.attacks.unwrap_or_default()
}

impl Assertion {
    /// Reads one condition. Times take `us`, `ms`, `s`, `m` or `h` (a bare number is µs, as in the report), counts take `k`,
    /// `M` or `G`, and `true` and `false` are 1 and 0.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let at = text.find(['<', '>', '=']).ok_or_else(|| format!("'{text}' compares nothing; write one such as p99<5ms"))?;
        let (name, rest) = (text[..at].trim(), &text[at..]);
        let operators = [
            ("<=", Comparison::LessOrEqual),
            (">=", Comparison::GreaterOrEqual),
            ("==", Comparison::Equal),
            ("<", Comparison::Less),
            (">", Comparison::Greater),
            ("=", Comparison::Equal),
        ];
        let (value, comparison) = operators
            .into_iter()
            .find_map(|(operator, comparison)| rest.strip_prefix(operator).map(|value| (value.trim(), comparison)))
            .ok_or_else(|| format!("'{rest}' is no comparison; write <, <=, =, >= or >"))?;
        let metric = METRICS.iter().find(|metric| metric.name == name).ok_or_else(|| {
            let names: Vec<&str> = METRICS.iter().map(|metric| metric.name).collect();
            format!("no metric is called '{name}'; there are {}", names.join(", "))
        })?;
        let is_bare = value.ends_with(|last: char| last.is_ascii_digit() || last == '.');
        let value = match value {
            _ if metric.is_time && !is_bare => Some(parse_duration(value)?.as_secs_f64() * 1e6),
            "true" => Some(1.0),
            "false" => Some(0.0),
            _ => parse_count(value),
        };
        let value = value.ok_or_else(|| format!("'{text}': there is no number to compare {name} with"))?;
        Ok(Self { text: text.to_owned(), metric, comparison, value })
    }

    /// What was found, if the condition is broken. One on a latency is broken too if no latency was measured, one on attacks if
    /// there was none.
    pub fn broken(&self, report: &Report) -> Option<String> {
        let found = (self.metric.of)(report);
        if self.metric.is_of_attacks() && report.attacks.is_none() {
            return Some("no attack was run: give --attack".to_owned());
        }
        let nobody_decided = |attacks: AttackSummary| attacks.listed + attacks.not_listed == 0;
        if self.metric.name == "attackers_not_listed" && report.attacks.is_some_and(nobody_decided) {
            return Some("no attacker sent what decides: give a longer --duration or a higher rate".to_owned());
        }
        // No latency counts as less than 1 µs, so this is the value of an empty histogram.
        if self.metric.is_time && found < 1.0 {
            return Some("no latency: not one record was measured".to_owned());
        }
        let holds = match self.comparison {
            Comparison::Less => found < self.value,
            Comparison::LessOrEqual => found <= self.value,
            Comparison::Equal => (found - self.value).abs() < 1e-9,
            Comparison::GreaterOrEqual => found >= self.value,
            Comparison::Greater => found > self.value,
        };
        (!holds).then(|| if self.metric.is_time { format!("{:.3} ms", found / 1e3) } else { found.to_string() })
    }
}

/// A latency objective of `--find-max`: `p99=5ms` means at most 5 ms.
#[derive(Clone, Debug, PartialEq)]
pub struct Slo {
    text: String,
    assertion: Assertion,
}

impl Slo {
    /// Reads one objective.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let wrong = || format!("'{text}' is no objective; write a latency and its bound, such as p99=5ms or p999=20ms");
        let (name, bound) = text.split_once('=').ok_or_else(wrong)?;
        let assertion = Assertion::parse(&format!("{}<={}", name.trim_end_matches('<').trim(), bound.trim()))?;
        if !assertion.metric.is_time || assertion.value < 1.0 {
            return Err(wrong());
        }
        Ok(Self { text: text.to_owned(), assertion })
    }

    /// The objective and what was found, if it was missed. It is missed too if no latency was measured.
    pub fn missed(&self, report: &Report) -> Option<String> {
        self.assertion.broken(report).map(|_| self.found(report))
    }

    /// The objective and what was found.
    pub fn found(&self, report: &Report) -> String {
        let found_us = (self.assertion.metric.of)(report);
        if found_us <= 0.0 {
            return format!(
                "{} is not known: nothing was acknowledged in the window, so make it longer",
                self.assertion.metric.name
            );
        }
        format!("{} is {:.3} ms of {:.3} ms", self.assertion.metric.name, found_us / 1e3, self.assertion.value / 1e3)
    }
}

impl fmt::Display for Slo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Display for Assertion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_read_and_held_against_a_report() {
        let mut report = Report::default();
        report.latency_us.corrected.p99 = 4_999;
        report.tnt_errors = 2;
        report.records_per_second = 50_000.0;
        report.reconciled = true;
        let broken = |text: &str| Assertion::parse(text).expect("a condition").broken(&report);
        for good in [
            "p99<5ms",
            "p99 <= 4999",
            "p99<0.005s",
            "tnt_errors=2",
            "records_per_second>=50k",
            "reconciled=true",
            "records_in_doubt==0",
        ] {
            assert_eq!(broken(good), None, "{good}");
        }
        assert_eq!(broken("p99<4ms").as_deref(), Some("4.999 ms"));
        assert_eq!(broken("tnt_errors=0").as_deref(), Some("2"));
        for bad in ["", "p99", "p99<", "p99<fast", "p98<1", "p99!5", "p99<5k", "p99<5M", "p99<true", "tnt_errors<5ms"] {
            assert!(Assertion::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn who_did_not_attack_was_not_missed() {
        let mut report = Report::default();
        let broken = |report: &Report, text: &str| Assertion::parse(text).expect("a condition").broken(report);
        for text in ["attackers_not_listed=0", "benign_listed=0", "verdict_p99<2ms"] {
            assert!(broken(&report, text).is_some_and(|found| found.contains("no attack was run")), "{text}");
        }
        report.attacks = Some(AttackSummary::default());
        assert!(broken(&report, "attackers_not_listed=0").is_some_and(|found| found.contains("no attacker sent what decides")));
        assert_eq!(broken(&report, "benign_listed=0"), None);
        report.attacks = Some(AttackSummary { listed: 1, ..AttackSummary::default() });
        assert_eq!(broken(&report, "attackers_not_listed=0"), None);
    }

    #[test]
    fn objectives_are_latencies_and_their_bounds() {
        let mut report = Report::default();
        report.latency_us.corrected.p99 = 5_000;
        let missed = |text: &str| Slo::parse(text).expect("an objective").missed(&report);
        assert_eq!((missed("p99=5ms"), missed("p99<=5ms"), missed("p99=5000")), (None, None, None));
        assert_eq!(missed("p99=4.9ms").as_deref(), Some("p99 is 5.000 ms of 4.900 ms"));
        assert!(missed("p999=1s").is_some_and(|text| text.contains("nothing was acknowledged")), "nothing was measured");
        for bad in ["", "p99", "p99=", "p99<5ms", "p99=0", "p98=5ms", "tnt_errors=0", "records_per_second=5", "p99=5k"] {
            assert!(Slo::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_have_the_units_of_times() {
        let value = |text: &str| Assertion::parse(text).expect("a condition").value;
        for (text, us) in [("5m", 3e8), ("1h", 3.6e9), ("2s", 2e6), ("1.5ms", 1_500.0), ("7us", 7.0), ("7", 7.0)] {
            assert!((value(&format!("p99<{text}")) - us).abs() < 1e-6, "{text}");
        }
        assert!((value("records_acked>5M") - 5e6).abs() < 1e-6);
    }

    #[test]
    fn a_latency_that_nobody_measured_breaks_every_condition_on_it() {
        for text in ["p99<5ms", "p99>=0", "uncorrected_max<1s"] {
            let broken = Assertion::parse(text).expect("a condition").broken(&Report::default());
            assert!(broken.is_some_and(|found| found.contains("no latency")), "{text}");
        }
    }
}
