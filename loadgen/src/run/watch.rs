//! The watching thread of a run: when the measured window begins and ends, and the live line until it is over.

use crate::clock::{duration_ns, monotonic_ns, sleep_until};
use crate::measure::Live;
use crate::plan::Plan;
use crate::report::grouped;
use indicatif::{ProgressBar, ProgressDrawTarget};
use std::io::IsTerminal;

const LOOK_INTERVAL_NS: u64 = 100_000_000;
const LINE_INTERVAL_NS: u64 = 500_000_000;
/// How long after the end an open loop that is behind may still send what was due before it.
pub const CATCH_UP_NS: u64 = 1_000_000_000;

/// When a run starts and which part of it is measured, by the monotonic clock.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// First record.
    pub start_ns: u64,
    /// Begin of the measured window.
    pub from_ns: u64,
    /// End of the measured window and of sending; `u64::MAX` if the records decide.
    pub until_ns: u64,
}

impl Timing {
    /// The timing of a plan that starts then.
    pub fn starting_at(start_ns: u64, plan: &Plan) -> Self {
        let from_ns = start_ns.saturating_add(duration_ns(plan.warmup));
        let until_ns = plan.duration.map_or(u64::MAX, |duration| from_ns.saturating_add(duration_ns(duration)));
        Self { start_ns, from_ns, until_ns }
    }

    /// When an open loop gives up sending what was due before the end.
    pub fn catch_up_until_ns(&self) -> u64 {
        self.until_ns.saturating_add(CATCH_UP_NS)
    }

    /// Length of the window, if all ended at `end_ns` at the latest.
    pub fn window_seconds(&self, end_ns: u64) -> f64 {
        self.until_ns.min(end_ns).saturating_sub(self.from_ns) as f64 / 1e9
    }
}

/// What the watching thread saw.
#[derive(Clone, Copy, Debug)]
pub struct Watched<T> {
    /// The snapshot at the begin of the window, if the run lived to see it.
    pub before: Option<T>,
    /// The snapshot at its end, if the run lived to see it.
    pub after: Option<T>,
    /// When the run was seen to be over, if that was before the window's end.
    pub stopped_ns: Option<u64>,
}

/// Watches a run until it is over, taking a snapshot at both ends of the window.
pub fn watch<T>(timing: &Timing, live: &Live, is_over: &dyn Fn() -> bool, snapshot: &mut dyn FnMut() -> T) -> Watched<T> {
    let line = live_line();
    let mut watched = Watched { before: None, after: None, stopped_ns: None };
    let (mut line_ns, mut line_totals) = (timing.start_ns, live.totals());
    loop {
        let now_ns = monotonic_ns();
        if watched.before.is_none() && now_ns >= timing.from_ns {
            watched.before = Some(snapshot());
        }
        if watched.after.is_none() && now_ns >= timing.until_ns {
            watched.after = Some(snapshot());
        }
        if is_over() {
            watched.stopped_ns = (now_ns < timing.until_ns && timing.until_ns != u64::MAX).then_some(now_ns);
            break;
        }
        if now_ns >= line_ns + LINE_INTERVAL_NS {
            let totals = live.totals();
            line.set_message(message(timing, now_ns, totals, line_totals, now_ns - line_ns));
            line.tick();
            (line_ns, line_totals) = (now_ns, totals);
        }
        let boundaries = [timing.from_ns, timing.until_ns].into_iter().filter(|&boundary| boundary > now_ns);
        sleep_until(boundaries.chain([now_ns + LOOK_INTERVAL_NS]).min().unwrap_or(now_ns));
    }
    line.finish_and_clear();
    watched
}

/// A line on the terminal, or none if standard error is not one.
fn live_line() -> ProgressBar {
    let line = ProgressBar::new_spinner();
    line.set_draw_target(if std::io::stderr().is_terminal() {
        ProgressDrawTarget::stderr_with_hz(4)
    } else {
        ProgressDrawTarget::hidden()
    });
    line
}

fn message(timing: &Timing, now_ns: u64, totals: (u64, u64), before: (u64, u64), elapsed_ns: u64) -> String {
    let per_second = |now: u64, before: u64| grouped((now - before) as f64 * 1e9 / elapsed_ns as f64);
    let phase = if now_ns < timing.from_ns {
        "warm-up".to_owned()
    } else if timing.until_ns == u64::MAX {
        format!("{:.0} s", (now_ns - timing.from_ns) as f64 / 1e9)
    } else {
        format!("{:.0} s left", timing.until_ns.saturating_sub(now_ns) as f64 / 1e9)
    };
    format!(
        "{phase} │ {} records/s sent, {} acked │ {} outstanding",
        per_second(totals.0, before.0),
        per_second(totals.1, before.1),
        totals.0.saturating_sub(totals.1)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_of_the_window_are_seen() {
        let start_ns = monotonic_ns();
        let timing = Timing { start_ns, from_ns: start_ns + 5_000_000, until_ns: start_ns + 10_000_000 };
        let mut snapshots = 0;
        let is_over = || monotonic_ns() > timing.until_ns + 1_000_000;
        let watched = watch(&timing, &Live::default(), &is_over, &mut || {
            snapshots += 1;
            snapshots
        });
        assert_eq!((watched.before, watched.after, watched.stopped_ns), (Some(1), Some(2), None));
        assert!((timing.window_seconds(u64::MAX) - 0.005).abs() < 1e-9);
    }

    #[test]
    fn a_run_that_ends_early_says_when() {
        let start_ns = monotonic_ns();
        let timing = Timing { start_ns, from_ns: start_ns, until_ns: start_ns + 3_600_000_000_000 };
        let watched = watch(&timing, &Live::default(), &|| true, &mut || ());
        assert!(watched.before.is_some() && watched.after.is_none() && watched.stopped_ns.is_some());
    }
}
