//! A source that asks for what is not there: a sequential test (threshold random walk) on whether its templates fail more often
//! than a visitor's would.

use super::{COUNTED, Event, FAILED, Look};
use crate::analytics::keys::{Cell, Pool};
use crate::analytics::observation::{Observation, WEIGHTLESS};
use crate::analytics::rules::{Firing, SET, State};
use crate::config::detection::ForcedBrowsing;

pub(super) fn look(observation: &Observation<'_>) -> Option<Look> {
    if observation.is_listed || observation.has_hits || observation.target.is(WEIGHTLESS) {
        return None;
    }
    let kind = match observation.status {
        // Redirects, time-outs, limits and faults of the server say nothing about the source; nor does no status at all.
        0 | 301..=303 | 307 | 308 | 408 | 429 | 444 | 499..=599 => return None,
        400 | 403 | 404 => COUNTED | FAILED,
        _ => COUNTED,
    };
    Some(Look { value: observation.target.template_fingerprint, number: 0, kind })
}

// Nearly every request comes here, and nearly every one with a template that is known: all else is apart.
#[inline(always)]
pub(super) fn decide(
    numbers: &ForcedBrowsing,
    state: &mut State<'_>,
    event: &Event,
    time_us: u64,
    elapsed_us: u64,
) -> Option<Firing> {
    if elapsed_us < numbers.empty_after_us as u64 && state.holds(event.value) {
        return None;
    }
    count(numbers, state, event, time_us, elapsed_us)
}

#[inline(never)]
fn count(numbers: &ForcedBrowsing, state: &mut State<'_>, event: &Event, time_us: u64, elapsed_us: u64) -> Option<Firing> {
    if elapsed_us >= numbers.empty_after_us as u64 {
        state.clear(SET);
        start_anew(state);
    }
    if !state.remember(event.value, numbers.distinct_last) {
        return None;
    }
    state.begin(time_us);
    state.add_one();
    if event.kind & FAILED != 0 {
        state.cell.level += numbers.failure_micronats;
    } else {
        state.cell.level -= numbers.success_micronats;
    }
    if state.cell.level <= numbers.reset_at_micronats {
        start_anew(state);
    }
    (state.cell.level >= numbers.fires_at_micronats).then(|| state.firing(state.cell.counter()))
}

fn start_anew(state: &mut State<'_>) {
    state.cell.level = 0;
    state.cell.first_seq = 0;
    state.start_counting_anew();
}

/// Falls to nothing over the time after which the state is emptied.
pub(super) fn progress(numbers: &ForcedBrowsing, cell: &Cell, _: &Pool, now_us: u64) -> i64 {
    let idle_us = now_us.saturating_sub(cell.clock_us).min(numbers.empty_after_us as u64) as i128;
    let left = i128::from(numbers.empty_after_us) - idle_us;
    let score = i128::from(cell.level.max(0)) * 1000 / i128::from(numbers.fires_at_micronats);
    (score * left / i128::from(numbers.empty_after_us)) as i64
}

pub(super) const fn may_fire_at_once(numbers: &ForcedBrowsing) -> bool {
    numbers.failure_micronats >= numbers.fires_at_micronats
}
