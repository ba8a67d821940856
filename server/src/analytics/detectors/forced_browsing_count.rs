//! Templates that are not there, counted: for those whom the sequential test lets go because they also ask for what is there.

use super::{COUNTED, Event, Look, decide_leaky_distinct, leaky_progress};
use crate::analytics::keys::{Cell, Pool};
use crate::analytics::observation::{Observation, STATIC, WEIGHTLESS};
use crate::analytics::rules::{Firing, State};
use crate::config::detection::ForcedBrowsingCount;

pub(super) fn look(observation: &Observation<'_>) -> Option<Look> {
    // Most requests end here.
    if !matches!(observation.status, 400 | 403 | 404) || observation.is_listed || observation.has_hits {
        return None;
    }
    let weighs = !observation.target.is(STATIC | WEIGHTLESS);
    weighs.then_some(Look { value: observation.target.template_fingerprint, number: 0, kind: COUNTED })
}

pub(super) fn decide(
    numbers: &ForcedBrowsingCount,
    state: &mut State<'_>,
    event: &Event,
    time_us: u64,
    elapsed_us: u64,
) -> Option<Firing> {
    let rule = (numbers.events, numbers.leak_us, numbers.distinct_last);
    decide_leaky_distinct(rule, state, event, time_us, elapsed_us)
}

pub(super) fn progress(numbers: &ForcedBrowsingCount, cell: &Cell, _: &Pool, now_us: u64) -> i64 {
    leaky_progress(cell, now_us, numbers.events, numbers.leak_us)
}

/// A leaky rule holds at least one event.
pub(super) const fn may_fire_at_once(_: &ForcedBrowsingCount) -> bool {
    false
}
