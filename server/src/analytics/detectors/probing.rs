//! Addresses at which a source was hit for trying what attackers try.

use super::{COUNTED, Event, Look, decide_leaky_distinct, leaky_progress};
use crate::analytics::keys::{Cell, Pool};
use crate::analytics::rules::{Firing, State};
use crate::config::detection::Probing;

/// What a request with a hit of these types is to this detector.
pub const fn look(address_fingerprint: u64) -> Look {
    Look { value: address_fingerprint, number: 0, kind: COUNTED }
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
