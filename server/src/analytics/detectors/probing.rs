//! Addresses at which a source was hit for trying what attackers try.

use super::{COUNTED, Event, Look, decide_leaky_distinct, leaky_progress};
use crate::analytics::keys::{Cell, Pool};
use crate::analytics::observation::Observation;
use crate::analytics::rules::{Firing, State};
use crate::config::detection::Probing;

pub(super) fn look(observation: &Observation<'_>) -> Option<Look> {
    observation.is_probe.then_some(Look { value: observation.address_fingerprint, number: 0, kind: COUNTED })
}

pub(super) fn decide(numbers: &Probing, state: &mut State<'_>, event: &Event, time_us: u64, elapsed_us: u64) -> Option<Firing> {
    let rule = (numbers.events, numbers.leak_us, numbers.distinct_last);
    decide_leaky_distinct(rule, state, event, time_us, elapsed_us)
}

pub(super) fn progress(numbers: &Probing, cell: &Cell, _: &Pool, now_us: u64) -> i64 {
    leaky_progress(cell, now_us, numbers.events, numbers.leak_us)
}

/// A leaky rule holds at least one event.
pub(super) const fn may_fire_at_once(_: &Probing) -> bool {
    false
}
