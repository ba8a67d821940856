//! A source that fetches page after page.

use super::{COUNTED, Event, Look, decide_leaky_distinct, leaky_progress};
use crate::analytics::keys::{Cell, Pool};
use crate::analytics::observation::{Observation, STATIC};
use crate::analytics::rules::{Firing, State};
use crate::config::detection::Crawl;

pub(super) fn look(observation: &Observation<'_>) -> Option<Look> {
    let looks = observation.is_fetch && !observation.target.is(STATIC);
    looks.then_some(Look { value: observation.target.template_fingerprint, number: 0, kind: COUNTED })
}

pub(super) fn decide(numbers: &Crawl, state: &mut State<'_>, event: &Event, time_us: u64, elapsed_us: u64) -> Option<Firing> {
    let rule = (numbers.events, numbers.leak_us, numbers.distinct_last);
    decide_leaky_distinct(rule, state, event, time_us, elapsed_us)
}

pub(super) fn progress(numbers: &Crawl, cell: &Cell, _: &Pool, now_us: u64) -> i64 {
    leaky_progress(cell, now_us, numbers.events, numbers.leak_us)
}

/// A leaky rule holds at least one event.
pub(super) const fn may_fire_at_once(_: &Crawl) -> bool {
    false
}
