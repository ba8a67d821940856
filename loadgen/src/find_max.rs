//! `--find-max`: the highest rate at which a latency objective holds, found by bisection and confirmed three times.
//!
//! [`search`] is pure: it is given a function that makes a run at a rate and says why the rate does not hold, if it does not.
//! It doubles (or halves) until one rate holds and one does not, bisects the gap down to [`PRECISION`], then wants the highest
//! rate that held to hold three times in a row, and goes down a little whenever it does not.
//!
//! A low rate may miss a latency that a higher one keeps: where records come slowly, they wait for others of their batch. So
//! below [`LOW_RATE`] higher rates are tried before lower ones.
//!
//! A rate holds if every objective does, nothing was refused, lost or in doubt, the sums are right, and this generator kept to
//! its schedule. If it did not, the latencies are not the server's, and nothing is known of the rate: it is tried once more,
//! for a moment in which something else had the CPU would send the whole search down. If it does not keep to it again, the
//! search says that the generator is the bound: the server can do at least what is reported.

use crate::assertion::Slo;
use crate::report::{Quantiles, Report};
use serde::{Deserialize, Serialize};
use std::fmt;

/// The gap between a rate that holds and one that does not, at which bisecting ends.
pub const PRECISION: f64 = 0.05;
/// How often in a row the rate found has to hold.
pub const CONFIRMATIONS: usize = 3;
/// What a rate that was not confirmed is lowered to.
const RETREAT: f64 = 0.95;
/// How often that is done.
const RETREATS_MAX: usize = 8;
/// From this rate on batches fill before their linger ends: what is late is not waiting for company.
const LOW_RATE: u64 = 10_000;
/// Lowest and highest rate tried.
const RATES: std::ops::RangeInclusive<u64> = 10..=1_000_000_000;

/// Why a rate does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// This generator did not keep to its schedule: nothing is known of the server.
    Generator,
    /// Records were refused, lost or are in doubt.
    TntErrors,
    /// The sums are wrong.
    NotReconciled,
    /// A latency objective is broken.
    Slo,
    /// The run failed: a connection broke, or the last acknowledgements did not come.
    RunFailed,
}

/// What a run of the search was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Purpose {
    /// Looking for a rate that holds and one that does not.
    Bracket,
    /// Closing the gap between them.
    Bisect,
    /// Making sure of the result.
    Confirm,
}

/// One run of the search.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as in the report")]
pub struct Step {
    /// Records per second intended.
    pub rate: u64,
    pub purpose: Purpose,
    /// Why the rate does not hold; `None` if it does.
    pub cause: Option<Cause>,
    /// The same in words.
    pub words: String,
    pub records_per_second: f64,
    pub tnt_errors: u64,
    pub latency_us: Quantiles,
}

/// What `--json` has under `find_max`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FindMax {
    /// The objectives, as given.
    pub slo: Vec<String>,
    /// Every run, in order.
    pub steps: Vec<Step>,
    /// The highest rate that held three times in a row, records per second; `None` if there is none.
    pub confirmed_rate: Option<u64>,
    /// Why the next higher rate tried does not hold.
    pub bound_by: Option<Cause>,
    /// The search was ended by a signal.
    pub interrupted: bool,
}

/// Why a search ends early.
#[derive(Debug)]
pub enum End {
    /// A signal.
    Interrupted,
    /// Nothing can be measured.
    Failed(anyhow::Error),
}

/// Searches. `attempt` makes a run at a rate.
pub fn search(first: u64, attempt: &mut dyn FnMut(u64, Purpose) -> Result<Step, End>) -> Result<FindMax, anyhow::Error> {
    let mut search = Search { steps: Vec::new(), attempt };
    let (confirmed_rate, interrupted) = match search.run(first) {
        Ok(confirmed) => (confirmed, false),
        Err(End::Interrupted) => (None, true),
        Err(End::Failed(error)) => return Err(error),
    };
    let steps = search.steps;
    // The last run at a rate counts: an earlier one may have been tried again.
    let is_last = |number: usize| steps[number + 1..].iter().all(|later| later.rate != steps[number].rate);
    let above = steps
        .iter()
        .enumerate()
        .filter(|(number, step)| step.cause.is_some() && confirmed_rate.is_none_or(|rate| step.rate > rate) && is_last(*number));
    let bound_by = above.min_by_key(|(_, step)| step.rate).and_then(|(_, step)| step.cause);
    Ok(FindMax { slo: Vec::new(), steps, confirmed_rate, bound_by, interrupted })
}

struct Search<'a> {
    steps: Vec<Step>,
    attempt: &'a mut dyn FnMut(u64, Purpose) -> Result<Step, End>,
}

impl Search<'_> {
    fn holds(&mut self, rate: u64, purpose: Purpose) -> Result<bool, End> {
        let mut cause = self.attempted(rate, purpose)?;
        // What is confirmed has to hold three times in a row, so there is no second try.
        if cause == Some(Cause::Generator) && purpose != Purpose::Confirm {
            cause = self.attempted(rate, purpose)?;
        }
        Ok(cause.is_none())
    }

    fn attempted(&mut self, rate: u64, purpose: Purpose) -> Result<Option<Cause>, End> {
        let step = (self.attempt)(rate, purpose)?;
        let cause = step.cause;
        self.steps.push(step);
        Ok(cause)
    }

    fn run(&mut self, first: u64) -> Result<Option<u64>, End> {
        let Some((mut low, mut high)) = self.bracket(first.clamp(*RATES.start(), *RATES.end()))? else { return Ok(None) };
        while (high - low) as f64 > low as f64 * PRECISION && high - low > 1 {
            let middle = low.midpoint(high);
            *(if self.holds(middle, Purpose::Bisect)? { &mut low } else { &mut high }) = middle;
        }
        self.confirm(low)
    }

    /// A rate that holds, and one above it that does not (or the highest of all).
    fn bracket(&mut self, first: u64) -> Result<Option<(u64, u64)>, End> {
        let (mut low, mut high) = (first, first);
        let mut holds = self.holds(first, Purpose::Bracket)?;
        while !holds && low < LOW_RATE && self.is_late() {
            low = (low * 2).min(LOW_RATE);
            holds = self.holds(low, Purpose::Bracket)?;
        }
        if holds {
            while low < *RATES.end() {
                high = (low * 2).min(*RATES.end());
                if !self.holds(high, Purpose::Bracket)? {
                    break;
                }
                low = high;
            }
            return Ok(Some((low, high)));
        }
        while high > *RATES.start() {
            low = (high / 2).max(*RATES.start());
            if self.holds(low, Purpose::Bracket)? {
                return Ok(Some((low, high)));
            }
            high = low;
        }
        Ok(None)
    }

    /// Whether the last rate missed an objective, and nothing else is wrong with it.
    fn is_late(&self) -> bool {
        self.steps.last().is_some_and(|step| step.cause == Some(Cause::Slo))
    }

    fn confirm(&mut self, found: u64) -> Result<Option<u64>, End> {
        let mut rate = found;
        for _ in 0..=RETREATS_MAX {
            let mut held = 0;
            while held < CONFIRMATIONS && self.holds(rate, Purpose::Confirm)? {
                held += 1;
            }
            if held == CONFIRMATIONS {
                return Ok(Some(rate));
            }
            rate = ((rate as f64 * RETREAT) as u64).max(*RATES.start());
        }
        Ok(None)
    }
}

impl Step {
    /// Judges a run's report.
    pub fn judge(rate: u64, purpose: Purpose, report: &Report, slo: &[Slo], broken: &[String]) -> Self {
        let missed: Vec<String> = slo.iter().filter_map(|slo| slo.missed(report)).collect();
        let (cause, words) = if report.generator_bound {
            (
                Some(Cause::Generator),
                "the generator did not keep to its schedule, so the latencies are not the server's".to_owned(),
            )
        } else if report.tnt_errors > 0 {
            (Some(Cause::TntErrors), format!("{} tnt_errors", report.tnt_errors))
        } else if !broken.is_empty() {
            (Some(Cause::NotReconciled), broken.join("; "))
        } else if !missed.is_empty() {
            (Some(Cause::Slo), missed.join(", "))
        } else {
            (None, slo.iter().map(|slo| slo.found(report)).collect::<Vec<_>>().join(", "))
        };
        Self {
            rate,
            purpose,
            cause,
            words,
            records_per_second: report.records_per_second,
            tnt_errors: report.tnt_errors,
            latency_us: report.latency_us.corrected,
        }
    }

    /// A run that failed.
    pub fn failed(rate: u64, purpose: Purpose, error: &anyhow::Error) -> Self {
        Self {
            rate,
            purpose,
            cause: Some(Cause::RunFailed),
            words: format!("{error:#}"),
            records_per_second: 0.0,
            tnt_errors: 0,
            latency_us: Quantiles::default(),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = if self.cause.is_none() { "holds" } else { "does not hold" };
        let purpose = match self.purpose {
            Purpose::Bracket => "bracket",
            Purpose::Bisect => "bisect",
            Purpose::Confirm => "confirm",
        };
        write!(f, "{purpose:<7} {:>13}/s  {verdict}: {}", crate::report::grouped(self.rate as f64), self.words)
    }
}

impl FindMax {
    /// The result in a sentence.
    pub fn summary(&self) -> String {
        let slo = self.slo.join(", ");
        let next = match self.bound_by {
            Some(Cause::Generator) => {
                "; above that this generator is the bound, not the server, which can do at least this: give it more threads, \
                 more CPUs, or another machine, and merge their reports"
            }
            Some(Cause::TntErrors) => "; above that records were refused or lost",
            Some(Cause::NotReconciled) => "; above that the sums are wrong",
            Some(Cause::Slo) => "; above that the objective is broken",
            Some(Cause::RunFailed) => "; above that the run fails",
            None => "",
        };
        match self.confirmed_rate {
            Some(rate) => format!(
                "find-max: {} records/s with {slo}, confirmed {CONFIRMATIONS} times, to {:.0} %{next}",
                crate::report::grouped(rate as f64),
                PRECISION * 100.0
            ),
            None if self.interrupted => "find-max: interrupted, nothing is confirmed".to_owned(),
            None if self.bound_by == Some(Cause::Generator) => {
                format!("find-max: no rate with {slo} could be confirmed; this generator is the bound, not the server")
            }
            None if self.steps.first().is_some_and(|step| step.cause == Some(Cause::Slo) && step.rate < LOW_RATE) => format!(
                "find-max: no rate with {slo} could be confirmed; where records come slowly they wait for others of their batch, up to \
                 the client's linger of 200 ms: give a higher --rate, or fewer --connections"
            ),
            None => format!("find-max: no rate with {slo} could be confirmed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn step(rate: u64, purpose: Purpose, cause: Option<Cause>) -> Step {
        Step { cause, ..Step::judge(rate, purpose, &Report::default(), &[], &[]) }
    }

    /// Searches a server that holds up to a rate.
    fn found(first: u64, cause_at: impl Fn(u64, usize) -> Option<Cause>) -> FindMax {
        let mut runs = 0;
        search(first, &mut |rate, purpose| {
            runs += 1;
            assert!(runs < 200, "the search ends");
            Ok(step(rate, purpose, cause_at(rate, runs)))
        })
        .expect("no run fails")
    }

    proptest! {
        #[test]
        fn the_limit_is_found_from_anywhere(limit in 10u64..900_000_000, first in 1u64..1_000_000_000) {
            let found = found(first, |rate, _| (rate > limit).then_some(Cause::Slo));
            let rate = found.confirmed_rate.expect("it holds at the lowest rate");
            prop_assert!(rate <= limit && rate as f64 >= limit as f64 / (1.0 + PRECISION) - 1.0, "{} of {}", rate, limit);
            prop_assert_eq!(found.bound_by, Some(Cause::Slo));
            let confirmations = &found.steps[found.steps.len() - CONFIRMATIONS..];
            prop_assert!(confirmations.iter().all(|step| step.purpose == Purpose::Confirm && step.rate == rate));
        }
    }

    #[test]
    fn a_generator_that_is_the_bound_is_said_to_be() {
        let found = found(10_000, |rate, _| match rate {
            0..=70_000 => None,
            70_001..=200_000 => Some(Cause::Generator),
            _ => Some(Cause::Slo),
        });
        assert!(found.confirmed_rate.is_some_and(|rate| (66_000..=70_000).contains(&rate)), "{found:?}");
        assert_eq!(found.bound_by, Some(Cause::Generator));
        assert!(found.summary().contains("this generator is the bound"), "{}", found.summary());
    }

    #[test]
    fn a_generator_that_is_late_once_does_not_send_the_search_down() {
        let mut attempts = std::collections::HashMap::new();
        let found = search(10_000, &mut |rate, purpose| {
            let times: &mut u32 = attempts.entry(rate).or_default();
            *times += 1;
            let cause = if rate > 300_000 { Some(Cause::Slo) } else { (*times == 1).then_some(Cause::Generator) };
            Ok(step(rate, purpose, cause))
        })
        .expect("no run fails");
        assert!(found.confirmed_rate.is_some_and(|rate| (285_000..=300_000).contains(&rate)), "{found:?}");
        assert_eq!(found.bound_by, Some(Cause::Slo));
    }

    #[test]
    fn what_holds_once_but_not_three_times_is_not_the_result() {
        // The second confirmation of the first rate found fails.
        let mut confirmations = 0;
        let found = search(1_000, &mut |rate, purpose| {
            confirmations += u32::from(purpose == Purpose::Confirm);
            let fails = rate > 50_000 || confirmations == 2;
            Ok(step(rate, purpose, fails.then_some(Cause::TntErrors)))
        })
        .expect("no run fails");
        let first = found.steps.iter().find(|step| step.purpose == Purpose::Confirm).expect("it was confirmed").rate;
        assert_eq!(found.confirmed_rate, Some((first as f64 * RETREAT) as u64));
        assert_eq!(confirmations, 5);
    }

    #[test]
    fn nothing_holds_or_the_search_is_interrupted() {
        let nothing = found(10_000, |_, _| Some(Cause::Slo));
        assert_eq!((nothing.confirmed_rate, nothing.bound_by, nothing.steps.len()), (None, Some(Cause::Slo), 11));
        let everything = found(10_000, |_, _| None);
        assert_eq!((everything.confirmed_rate, everything.bound_by), (Some(*RATES.end()), None));
        let mut runs = 0;
        let interrupted = search(10_000, &mut |rate, purpose| {
            runs += 1;
            if runs == 3 { Err(End::Interrupted) } else { Ok(step(rate, purpose, None)) }
        })
        .expect("an end, not an error");
        assert!(interrupted.interrupted && interrupted.confirmed_rate.is_none() && interrupted.steps.len() == 2);
        assert!(interrupted.summary().contains("interrupted"));
        assert!(search(1, &mut |_, _| Err(End::Failed(anyhow::anyhow!("no server")))).is_err());
    }

    #[test]
    fn a_low_rate_that_waits_for_its_batches_does_not_send_the_search_down() {
        let slow_or_full = |rate: u64, _| (!(1_500..=50_000).contains(&rate)).then_some(Cause::Slo);
        let found = found(100, slow_or_full);
        assert!(found.confirmed_rate.is_some_and(|rate| (47_500..=50_000).contains(&rate)), "{found:?}");
        assert_eq!(found.bound_by, Some(Cause::Slo));
    }

    #[test]
    fn a_search_that_only_saw_low_rates_says_what_they_wait_for() {
        let late = found(100, |_, _| Some(Cause::Slo));
        assert!(late.summary().contains("give a higher --rate"), "{}", late.summary());
        let rates = late.steps.iter().map(|step| step.rate).collect::<Vec<_>>();
        assert!(rates.starts_with(&[100, 200]) && rates.contains(&LOW_RATE) && rates.ends_with(&[10]), "{rates:?}");
        // Other troubles are not for want of company.
        let lost = found(100, |_, _| Some(Cause::TntErrors));
        assert!(lost.steps.iter().all(|step| step.rate <= 100) && !lost.summary().contains("linger"), "{lost:?}");
    }

    #[test]
    fn a_report_is_judged_generator_first() {
        let slo = [Slo::parse("p99=5ms").expect("an objective")];
        let mut report = Report::default();
        report.latency_us.corrected.p99 = 5_000;
        let judged = |report: &Report, broken: &[String]| Step::judge(1, Purpose::Bisect, report, &slo, broken).cause;
        assert_eq!(judged(&report, &[]), None);
        report.latency_us.corrected.p99 = 5_001;
        assert_eq!(judged(&report, &[]), Some(Cause::Slo));
        assert_eq!(judged(&report, &["stored".to_owned()]), Some(Cause::NotReconciled));
        report.tnt_errors = 1;
        assert_eq!(judged(&report, &[]), Some(Cause::TntErrors));
        report.generator_bound = true;
        assert_eq!(judged(&report, &[]), Some(Cause::Generator));
        // A run that measured nothing proves nothing.
        assert_eq!(judged(&Report::default(), &[]), Some(Cause::Slo));
    }
}
