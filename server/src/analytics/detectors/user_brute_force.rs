//! Failed log-ins of a user, wherever they come from. Its events come from all shards: the correlator feeds it.

use super::{Event, window_progress};
use crate::analytics::keys::{Cell, Pool};
use crate::analytics::rules::{Counted, Firing, State, WINDOW};
use crate::config::detection::UserBruteForce;

pub(super) fn decide(numbers: &UserBruteForce, state: &mut State<'_>, _: &Event, time_us: u64, _: u64) -> Option<Firing> {
    state.slide(WINDOW, time_us, numbers.window_us);
    state.count(WINDOW, Counted { time_us, value: 0, number: 0, is_number: false }, numbers.events);
    state.fires(WINDOW, time_us, numbers.events, numbers.window_us, 0)
}

pub(super) fn progress(numbers: &UserBruteForce, cell: &Cell, pool: &Pool, now_us: u64) -> i64 {
    window_progress(cell, pool, WINDOW, now_us, numbers.events, numbers.window_us)
}

pub(super) const fn may_fire_at_once(numbers: &UserBruteForce) -> bool {
    numbers.events == 1
}
