//! Log-ins of a source at a login endpoint that are not known to have succeeded: thirty in thirty seconds, or twenty in ten
//! minutes without a success among them. For endpoints that answer every attempt alike.

use super::{COUNTED, Event, FAILED, Look, SUCCEEDED, share_of_window, window_progress};
use crate::analytics::keys::{Cell, Pool};
use crate::analytics::observation::{Observation, Outcome};
use crate::analytics::rules::{self, Counted, Firing, State, WINDOW};
use crate::config::detection::BruteForceAttempts;

pub(super) fn look(observation: &Observation<'_>) -> Option<Look> {
    if observation.is_listed || observation.has_hits {
        return None;
    }
    let kind = match observation.attempt? {
        Outcome::Failed => COUNTED | FAILED,
        Outcome::Unknown => COUNTED,
        Outcome::Succeeded => SUCCEEDED,
    };
    Some(Look { kind, ..Look::default() })
}

/// `level` is the number of the last success: the second rule counts what came after it.
pub(super) fn decide(numbers: &BruteForceAttempts, state: &mut State<'_>, event: &Event, time_us: u64, _: u64) -> Option<Firing> {
    state.slide(WINDOW, time_us, numbers.fast_window_us.max(numbers.slow_window_us));
    if event.kind & COUNTED == 0 {
        state.cell.level = i64::from(state.cell.seq);
        return None;
    }
    let counted = Counted { time_us, value: 0, number: 0, is_number: false };
    state.count(WINDOW, counted, numbers.fast_events.max(numbers.slow_events));
    let fast = state.fires(WINDOW, time_us, numbers.fast_events, numbers.fast_window_us, 0);
    let success = state.cell.level as u32;
    fast.or_else(|| state.fires(WINDOW, time_us, numbers.slow_events, numbers.slow_window_us, success))
}

pub(super) fn progress(numbers: &BruteForceAttempts, cell: &Cell, pool: &Pool, now_us: u64) -> i64 {
    let success = cell.level as u32;
    let slow = rules::window_len_at(pool, cell.list(WINDOW), now_us, numbers.slow_window_us, success);
    window_progress(cell, pool, WINDOW, now_us, numbers.fast_events, numbers.fast_window_us)
        .max(share_of_window(slow, numbers.slow_events))
}

pub(super) const fn may_fire_at_once(numbers: &BruteForceAttempts) -> bool {
    numbers.fast_events == 1 || numbers.slow_events == 1
}
