//! What one thread measures, and how the threads' figures are merged.
//!
//! Each thread has its own histograms (three significant digits, 1 µs to 60 s): recording takes no shared memory. They are
//! added up once at the end.

use crate::attack::witness::AttackOutcome;
use crate::clock::Schedule;
use hdrhistogram::Histogram;
use std::sync::atomic::{AtomicU64, Ordering};

/// Longest latency told apart, µs; longer ones count as this.
pub const LATENCY_US_MAX: u64 = 60_000_000;
/// A send later than this after its intended time is late.
pub const LATE_US: u64 = 1_000;
/// Steps in which the waiting times of unsent records are taken: they may be billions.
const UNSENT_STEPS: u64 = 10_000;
/// Share of late sends above which the generator, not the server, made the figures.
pub const LATE_SHARE_MAX: f64 = 0.01;

/// A latency histogram in µs.
pub fn latency_histogram() -> Histogram<u64> {
    // Constants within what the crate allows.
    Histogram::new_with_bounds(1, LATENCY_US_MAX, 3).expect("1 µs to 60 s with 3 digits is a valid range")
}

/// Latencies and counts of acknowledged records, of one thread.
#[derive(Clone, Debug)]
pub struct Acked {
    /// From the intended send time to the acknowledgement, µs.
    pub corrected: Histogram<u64>,
    /// From the time the record was handed over to the acknowledgement, µs.
    pub uncorrected: Histogram<u64>,
    /// Records acknowledged within the measured window.
    pub in_window: u64,
}

impl Default for Acked {
    fn default() -> Self {
        Self { corrected: latency_histogram(), uncorrected: latency_histogram(), in_window: 0 }
    }
}

impl Acked {
    /// Takes `count` records with the same latencies.
    pub fn record(&mut self, corrected_us: u64, uncorrected_us: u64, count: u64) {
        for (histogram, latency_us) in [(&mut self.corrected, corrected_us), (&mut self.uncorrected, uncorrected_us)] {
            // Clamped to its bounds, a histogram takes every value.
            let _ = histogram.record_n(latency_us.clamp(1, LATENCY_US_MAX), count);
        }
    }

    /// Takes `count` records that were due and never sent: they will have waited at least so long.
    pub fn record_unsent(&mut self, waited_us: u64, count: u64) {
        let _ = self.corrected.record_n(waited_us.clamp(1, LATENCY_US_MAX), count);
    }

    /// Takes the events `unsent` of a schedule, of so many records each, that were given up at `now_ns`. Only those due
    /// from `from_ns` on count.
    pub fn record_unsent_events(
        &mut self,
        schedule: &Schedule,
        unsent: std::ops::Range<u64>,
        records: u64,
        from_ns: u64,
        now_ns: u64,
    ) {
        let step = ((unsent.end.saturating_sub(unsent.start)) / UNSENT_STEPS).max(1);
        let mut first = unsent.start;
        while first < unsent.end {
            let count = step.min(unsent.end - first);
            // The last of a step waited least.
            let due_ns = schedule.due_ns(first + count - 1);
            if due_ns >= from_ns {
                self.record_unsent(now_ns.saturating_sub(due_ns) / 1000, count.saturating_mul(records));
            }
            first += count;
        }
    }

    /// Adds the figures of another thread.
    pub fn merge(&mut self, other: &Self) {
        // Both have the same bounds, so nothing is refused.
        let _ = self.corrected.add(&other.corrected);
        let _ = self.uncorrected.add(&other.uncorrected);
        self.in_window += other.in_window;
    }
}

/// How a thread kept to its schedule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Records offered, warm-up included.
    pub generated: u64,
    /// Sends within the measured window that had an intended time.
    pub scheduled: u64,
    /// Those of them that were late.
    pub late: u64,
    /// Records that were due and never sent, because this generator did not keep up.
    pub unsent: u64,
    /// Records that were due and never sent, because the server had no room for them.
    pub held_back: u64,
}

impl Sent {
    /// Counts `records` as sent at `now_us` instead of `intended_us` (any one clock).
    pub fn note_lateness(&mut self, intended_us: u64, now_us: u64, records: u64) {
        self.scheduled += records;
        self.late += if now_us.saturating_sub(intended_us) > LATE_US { records } else { 0 };
    }

    /// Adds the figures of another thread.
    pub fn merge(&mut self, other: &Self) {
        self.generated += other.generated;
        self.scheduled += other.scheduled;
        self.late += other.late;
        self.unsent += other.unsent;
        self.held_back += other.held_back;
    }

    /// Whether this generator, not the server, made the figures.
    pub fn is_generator_bound(&self) -> bool {
        self.late_share() > LATE_SHARE_MAX || self.unsent > 0
    }

    /// What was due and never sent, in words.
    pub fn notes(&self) -> Vec<String> {
        let why = [(self.unsent, "this generator did not keep up"), (self.held_back, "the server had no room for them")];
        let note = |(records, why)| {
            format!("{records} records were due and never sent, for {why}; their waiting is in the corrected latency")
        };
        why.into_iter().filter(|(records, _)| *records > 0).map(note).collect()
    }

    /// Share of late sends.
    pub fn late_share(&self) -> f64 {
        if self.scheduled == 0 { 0.0 } else { self.late as f64 / self.scheduled as f64 }
    }
}

/// Totals for the live line, written by all threads now and then.
#[derive(Debug, Default)]
pub struct Live {
    /// Records offered.
    pub generated: AtomicU64,
    /// Records acknowledged.
    pub acked: AtomicU64,
}

impl Live {
    /// Both totals.
    pub fn totals(&self) -> (u64, u64) {
        (self.generated.load(Ordering::Relaxed), self.acked.load(Ordering::Relaxed))
    }
}

/// Everything a run found out.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// What the sending threads did.
    pub sent: Sent,
    /// Records acknowledged, of the whole run.
    pub acked_total: u64,
    /// Records refused, lost or in doubt, of the whole run.
    pub tnt_errors: u64,
    /// Records in doubt.
    pub in_doubt: u64,
    /// Records sent again to another server, which may be stored by two.
    pub maybe_stored_elsewhere: u64,
    /// Latencies and the count of the measured window.
    pub acked: Acked,
    /// Whether the corrected latency differs from the uncorrected by design.
    pub has_schedule: bool,
    /// Begin of the measured window, Unix time.
    pub window_from_unix_us: u64,
    /// Length of the measured window.
    pub window_seconds: f64,
    /// Records sent by batches sent.
    pub mean_batch_records: f64,
    /// What the server says of the window and of this run's sessions; `None` if it could not be asked.
    pub server: Option<ServerSide>,
    /// CPU time of this process within the window.
    pub own_cpu_seconds: f64,
    /// Why `stored` may cover only part of the run's sessions, if it may.
    pub stored_is_partial: Option<String>,
    /// What the reader should know besides.
    pub notes: Vec<String>,
    /// What came of the attacks, if there were any.
    pub attacks: Option<AttackOutcome>,
    /// What broke a law of the client library or the server; each makes the run fail.
    pub broken: Vec<String>,
}

/// The server's word on a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct ServerSide {
    /// Records stored for the run's sessions.
    pub stored: u64,
    /// Records dropped as duplicates.
    pub duplicate: u64,
    /// CPU time of the server within the window.
    pub cpu_seconds: f64,
    /// Records that the server stored within the window, from whomever: what that CPU time was spent on.
    pub stored_in_window: u64,
    /// Resident memory of the server at the end.
    pub rss_bytes: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merged_figures_are_the_sums() {
        let (mut first, mut second) = (Acked::default(), Acked::default());
        first.record(100, 90, 3);
        second.record(u64::MAX, 0, 1);
        second.in_window = 4;
        first.merge(&second);
        assert_eq!((first.corrected.len(), first.uncorrected.len(), first.in_window), (4, 4, 4));
        assert!(first.corrected.max() >= LATENCY_US_MAX && first.uncorrected.min() <= 1);
    }

    #[test]
    fn what_was_never_sent_counts_with_its_waiting() {
        let schedule = Schedule::new(0, 1_000_000, 1, 1, 0);
        let mut acked = Acked::default();
        acked.record_unsent_events(&schedule, 500_000..1_000_000, 2, 750_000_000, 2_000_000_000);
        let latencies = (acked.corrected.min(), acked.corrected.max());
        assert_eq!((acked.corrected.len(), acked.uncorrected.len()), (500_000, 0));
        assert!((999_000..=1_001_000).contains(&latencies.0) && (1_249_000..=1_252_000).contains(&latencies.1), "{latencies:?}");
        acked.record_unsent_events(&schedule, 7..7, 1, 0, 0);
        assert_eq!(acked.corrected.len(), 500_000);
        let mut sent = Sent { held_back: 3, ..Sent::default() };
        assert!(!sent.is_generator_bound() && sent.notes().len() == 1 && sent.notes()[0].starts_with("3 records"));
        sent.merge(&Sent { unsent: 1, ..Sent::default() });
        assert!(sent.is_generator_bound() && sent.notes().len() == 2);
    }

    #[test]
    fn lateness_is_a_share() {
        let mut sent = Sent::default();
        assert!(sent.late_share().abs() < f64::EPSILON);
        sent.note_lateness(5_000, 6_000, 99);
        sent.note_lateness(5_000, 6_001, 1);
        assert!((sent.late_share() - 0.01).abs() < 1e-9);
    }
}
