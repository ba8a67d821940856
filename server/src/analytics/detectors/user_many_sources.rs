//! Networks from which log-ins of a user failed. Its events come from all shards: the correlator feeds it.
//!
//! Each rule has a window of its own, for each tells values apart by itself: in the place of a set, and in that of a window.

use super::{Event, window_progress};
use crate::analytics::keys::{Cell, Pool};
use crate::analytics::rules::{Counted, Firing, SET, State, WINDOW};
use crate::config::detection::UserManySources;

pub(super) fn decide(numbers: &UserManySources, state: &mut State<'_>, event: &Event, time_us: u64, _: u64) -> Option<Firing> {
    let counted = Counted { time_us, value: event.value, number: 0, is_number: false };
    state.slide(SET, time_us, numbers.fast_window_us);
    state.slide(WINDOW, time_us, numbers.slow_window_us);
    let is_new_to_fast = state.count_distinct(SET, counted, numbers.fast_events);
    let is_new_to_slow = state.count_distinct(WINDOW, counted, numbers.slow_events);
    let fast = is_new_to_fast.then(|| state.fires(SET, time_us, numbers.fast_events, numbers.fast_window_us, 0));
    let slow = is_new_to_slow.then(|| state.fires(WINDOW, time_us, numbers.slow_events, numbers.slow_window_us, 0));
    fast.flatten().or(slow.flatten())
}

pub(super) fn progress(numbers: &UserManySources, cell: &Cell, pool: &Pool, now_us: u64) -> i64 {
    window_progress(cell, pool, SET, now_us, numbers.fast_events, numbers.fast_window_us).max(window_progress(
        cell,
        pool,
        WINDOW,
        now_us,
        numbers.slow_events,
        numbers.slow_window_us,
    ))
}

pub(super) const fn may_fire_at_once(numbers: &UserManySources) -> bool {
    numbers.fast_events == 1 || numbers.slow_events == 1
}
