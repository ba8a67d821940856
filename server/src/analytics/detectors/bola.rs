//! A source, or a session of it, that walks through the objects of an endpoint: many within a narrow range of numbers, or very
//! many.

use super::{COUNTED, Event, IS_NUMBER, Look, leaky_progress, share_of_window};
use crate::analytics::keys::{Cell, Pool};
use crate::analytics::observation::Observation;
use crate::analytics::rules::{self, Counted, Firing, State, WINDOW};
use crate::config::detection::{Bola, window_events_max};

pub(super) fn look(observation: &Observation<'_>) -> Option<Look> {
    let object = observation.object.filter(|_| !observation.has_hits)?;
    let kind = COUNTED | if object.number.is_some() { IS_NUMBER } else { 0 };
    Some(Look { value: object.fingerprint, number: object.number.unwrap_or(0), kind })
}

pub(super) fn decide(numbers: &Bola, state: &mut State<'_>, event: &Event, time_us: u64, elapsed_us: u64) -> Option<Firing> {
    state.leak(elapsed_us, true);
    if state.cell.level == 0 {
        state.cell.set_counter(0);
    }
    state.slide(WINDOW, time_us, numbers.range_window_us);
    let counted = Counted { time_us, value: event.value, number: event.number, is_number: event.kind & IS_NUMBER != 0 };
    let kept_max = window_events_max(numbers.range_window_us, numbers.events, numbers.leak_us, numbers.distinct_last);
    let is_new_to_range = state.count_distinct(WINDOW, counted, kept_max.max(numbers.range_events));
    let is_new_to_count = state.is_new(event.value, numbers.distinct_last);
    if is_new_to_count {
        state.pour(numbers.leak_us, time_us);
        state.add_one();
    }
    if is_new_to_range && state.is_range(WINDOW, numbers.range_events, numbers.range_spread) {
        return state.fires(WINDOW, time_us, numbers.range_events, numbers.range_window_us, 0);
    }
    let fires = is_new_to_count && state.overflows(numbers.events, numbers.leak_us);
    fires.then(|| state.firing(state.cell.counter()))
}

pub(super) fn progress(numbers: &Bola, cell: &Cell, pool: &Pool, now_us: u64) -> i64 {
    let in_range = rules::range_len_at(pool, cell.list(WINDOW), now_us, numbers.range_window_us, numbers.range_spread);
    leaky_progress(cell, now_us, numbers.events, numbers.leak_us).max(share_of_window(in_range, numbers.range_events))
}

pub(super) const fn may_fire_at_once(numbers: &Bola) -> bool {
    numbers.range_events == 1
}
