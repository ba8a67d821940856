//! Different payloads among the hits of a source: each hit is an event.

use super::{COUNTED, Event, Look, window_progress};
use crate::analytics::keys::{Cell, Pool};
use crate::analytics::rules::{Counted, Firing, State, WINDOW};
use crate::config::detection::MultiPayload;

/// What a hit is to this detector.
pub const fn look(payload_fingerprint: u64) -> Look {
    Look { value: payload_fingerprint, number: 0, kind: COUNTED }
}

pub(super) fn decide(numbers: &MultiPayload, state: &mut State<'_>, event: &Event, time_us: u64, _: u64) -> Option<Firing> {
    state.slide(WINDOW, time_us, numbers.window_us);
    let counted = Counted { time_us, value: event.value, number: 0, is_number: false };
    let is_new = state.count_distinct(WINDOW, counted, numbers.events);
    is_new.then(|| state.fires(WINDOW, time_us, numbers.events, numbers.window_us, 0)).flatten()
}

pub(super) fn progress(numbers: &MultiPayload, cell: &Cell, pool: &Pool, now_us: u64) -> i64 {
    window_progress(cell, pool, WINDOW, now_us, numbers.events, numbers.window_us)
}

pub(super) const fn may_fire_at_once(numbers: &MultiPayload) -> bool {
    numbers.events == 1
}
