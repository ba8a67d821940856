//! Users that a source tried without known success: a burst, or ten in ten minutes if at least half of its last attempts
//! failed, for many people may sit behind one address.

use super::{COUNTED, Event, FAILED, Look, SUCCEEDED, leaky_progress, window_progress};
use crate::analytics::keys::{Cell, Pool};
use crate::analytics::observation::{Observation, Outcome};
use crate::analytics::rules::{Counted, Firing, SET, State, WINDOW};
use crate::config::detection::{CredentialStuffing, window_events_max};

/// The last attempts: {time × 2 + failed}, oldest first.
const ATTEMPTS: usize = 2;

pub(super) fn look(observation: &Observation<'_>) -> Option<Look> {
    let outcome = observation.attempt.filter(|_| !observation.is_listed)?;
    let has_user = observation.user() != 0;
    let kind = match outcome {
        Outcome::Failed => FAILED | if has_user { COUNTED } else { 0 },
        Outcome::Unknown => {
            if has_user {
                COUNTED
            } else {
                0
            }
        }
        Outcome::Succeeded => SUCCEEDED,
    };
    Some(Look { value: observation.user(), number: 0, kind })
}

pub(super) fn decide(
    numbers: &CredentialStuffing,
    state: &mut State<'_>,
    event: &Event,
    time_us: u64,
    elapsed_us: u64,
) -> Option<Firing> {
    state.leak(elapsed_us, true);
    state.slide(WINDOW, time_us, numbers.shared_window_us);
    let attempt = time_us << 1 | u64::from(event.kind & FAILED != 0);
    state.with_list(ATTEMPTS, |pool, list| pool.push(list, [attempt], numbers.shared_last_attempts as usize));
    if event.kind & COUNTED == 0 {
        return None;
    }
    let is_new_to_burst = state.is_new(event.value, numbers.burst_distinct_last);
    if is_new_to_burst {
        state.pour(numbers.burst_leak_us, time_us);
    }
    let counted = Counted { time_us, value: event.value, number: 0, is_number: false };
    let kept_max =
        window_events_max(numbers.shared_window_us, numbers.burst_events, numbers.burst_leak_us, numbers.burst_distinct_last);
    let is_new_to_window = state.count_distinct(WINDOW, counted, kept_max.max(numbers.shared_events));
    if is_new_to_burst && state.overflows(numbers.burst_events, numbers.burst_leak_us) {
        return Some(state.firing(state.cell.list(SET).words() as u32));
    }
    let firing =
        is_new_to_window.then(|| state.fires(WINDOW, time_us, numbers.shared_events, numbers.shared_window_us, 0)).flatten();
    firing.filter(|_| {
        let (failed, wanted) = failed_and_wanted(numbers, state.cell, state.pool, time_us);
        failed >= wanted
    })
}

/// How many of the last attempts within the window failed, and of how many that is asked for, both times 100.
fn failed_and_wanted(numbers: &CredentialStuffing, cell: &Cell, pool: &Pool, time_us: u64) -> (i64, i64) {
    let attempts = pool.get(cell.list(ATTEMPTS));
    let recent = attempts.iter().filter(|&&attempt| (attempt >> 1) + numbers.shared_window_us as u64 > time_us);
    let (failed, all) = recent.fold((0, 0), |(failed, all), attempt| (failed + (attempt & 1) as i64, all + 1));
    (failed * 100, numbers.shared_failed_percent * all)
}

pub(super) fn progress(numbers: &CredentialStuffing, cell: &Cell, pool: &Pool, now_us: u64) -> i64 {
    let shared = window_progress(cell, pool, WINDOW, now_us, numbers.shared_events, numbers.shared_window_us);
    let (failed, wanted) = failed_and_wanted(numbers, cell, pool, now_us);
    let shared = if failed < wanted { shared * failed / wanted } else { shared };
    leaky_progress(cell, now_us, numbers.burst_events, numbers.burst_leak_us).max(shared)
}

pub(super) const fn may_fire_at_once(numbers: &CredentialStuffing) -> bool {
    numbers.shared_events == 1
}
