//! Failed log-ins of a source at a login endpoint: a burst, ten in ten minutes, or twenty in an hour.

use super::{COUNTED, Event, FAILED, Look, leaky_progress, window_progress};
use crate::analytics::keys::{Cell, Pool};
use crate::analytics::observation::{Observation, Outcome};
use crate::analytics::rules::{Counted, Firing, State, WINDOW};
use crate::config::detection::BruteForce;

pub(super) fn look(observation: &Observation<'_>) -> Option<Look> {
    let is_failure = observation.attempt == Some(Outcome::Failed) && !observation.is_listed && !observation.has_hits;
    is_failure.then_some(Look { kind: COUNTED | FAILED, ..Look::default() })
}

pub(super) fn decide(numbers: &BruteForce, state: &mut State<'_>, _: &Event, time_us: u64, elapsed_us: u64) -> Option<Firing> {
    state.leak(elapsed_us, false);
    state.pour(numbers.burst_leak_us, time_us);
    state.slide(WINDOW, time_us, numbers.medium_window_us.max(numbers.slow_window_us));
    let counted = Counted { time_us, value: 0, number: 0, is_number: false };
    state.count(WINDOW, counted, numbers.medium_events.max(numbers.slow_events));
    if state.overflows(numbers.burst_events, numbers.burst_leak_us) {
        return Some(state.firing(0));
    }
    let medium = state.fires(WINDOW, time_us, numbers.medium_events, numbers.medium_window_us, 0);
    medium.or_else(|| state.fires(WINDOW, time_us, numbers.slow_events, numbers.slow_window_us, 0))
}

pub(super) fn progress(numbers: &BruteForce, cell: &Cell, pool: &Pool, now_us: u64) -> i64 {
    leaky_progress(cell, now_us, numbers.burst_events, numbers.burst_leak_us)
        .max(window_progress(cell, pool, WINDOW, now_us, numbers.medium_events, numbers.medium_window_us))
        .max(window_progress(cell, pool, WINDOW, now_us, numbers.slow_events, numbers.slow_window_us))
}

pub(super) const fn may_fire_at_once(numbers: &BruteForce) -> bool {
    numbers.medium_events == 1 || numbers.slow_events == 1
}
