//! Counters of the whole node: a shared-memory zone with a slot for each worker, which survives a reload.
//!
//! ```text
//!   Zone │ start id │ application ids │ slot 0 │ slot 1 │ … │ slot 255 │
//!   Slot │ owner │ records accepted, acked, given up, lost │ counters, since the zone was made │ the same for each application │
//! ```
//!
//! A slot belongs to one worker at a time and is never set back: the next owner counts on, so what a worker that has ended had
//! counted stays. A worker that was killed leaves its pid behind; whoever looks next counts the records that it had not got rid
//! of as `tnt_errors`, and the slot is free again. Whoever does that may be killed as well: his pid stands in the slot then, and the
//! next one begins anew, for the records are counted in one step, and the death in the step that frees the slot. Everything is
//! atomic: a page may be read while workers count. The counters are relaxed, for nothing hangs on their order; who owns a slot is taken
//! and given up with Acquire and Release ([`owner`]).
//!
//! A killed worker keeps its pid until NGINX's master has taken note of its end, which it does before it forks another: the one in
//! its place counts the death as it begins, if no page was asked before. A worker that shuts down gives its slot back while it
//! lives, so that nobody finds a dead one there.

mod owner;

/// What [`owner`] takes atomics from.
mod atomic {
    pub(super) use std::sync::atomic::{AtomicU64, Ordering};
}

use owner::{Owner, place_of};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// Workers at a time, those that are shutting down included. More of them share the last slot.
const SLOTS: usize = 256;
/// Applications with counters of their own; others are in the totals only.
const APPLICATIONS: usize = 32;

/// What is counted of a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Counter {
    Requests,
    Attacks,
    Blocked,
    BlockedByAcl,
    Abnormal,
    BytesIn,
    BytesOut,
    BytesBlockedIn,
    BytesBlockedOut,
    TntErrors,
    OverlimitsTime,
    /// Requests of which a part was not looked at.
    Incomplete,
    DetectUs,
    /// Records sent to another server because the first went away: both may have stored them.
    MaybeStoredElsewhere,
    /// Workers that ended without saying so.
    Segfaults,
    /// Panics caught in a callback.
    Panics,
}

impl Counter {
    const COUNT: usize = Self::Panics as usize + 1;
    /// Those that are counted by application, too: the first ones.
    const OF_APPLICATION: usize = Self::DetectUs as usize + 1;
}

/// A counter of every kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts([u64; Counter::COUNT]);

impl Counts {
    pub fn of(&self, counter: Counter) -> u64 {
        self.0[counter as usize]
    }

    #[cfg(test)]
    pub fn set(&mut self, counter: Counter, value: u64) {
        self.0[counter as usize] = value;
    }
}

/// What the zone says of the node.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    pub counts: Counts,
    /// By application id, in the order in which they were first seen.
    pub applications: Vec<(i32, Counts)>,
    pub workers: u64,
    /// Of them, those with a client, and those that were to have one and could not.
    pub connected: u64,
    pub failed: u64,
    pub start_id: u64,
}

/// The shared memory. All zero is its state at the beginning.
#[repr(C)]
pub struct Zone {
    start_id: AtomicU64,
    /// An application id as u32, plus 1; 0: free.
    application_ids: [AtomicU64; APPLICATIONS],
    slots: [Slot; SLOTS],
}

/// A line of the processor's cache of its own at the front.
#[repr(C, align(64))]
struct Slot {
    owner: Owner,
    /// A [`ClientState`].
    client: AtomicU32,
    counts: [AtomicU64; Counter::COUNT],
    applications: [[AtomicU64; Counter::OF_APPLICATION]; APPLICATIONS],
}

/// Whether a worker tells postanalytics of its requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum ClientState {
    /// It is not to: no server is named.
    None,
    There,
    Failed,
}

/// A worker's place in the zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotNumber(usize);

impl SlotNumber {
    /// For those that find no place of their own.
    const SHARED: Self = Self(SLOTS - 1);

    pub fn is_shared(self) -> bool {
        self == Self::SHARED
    }
}

impl Zone {
    /// Gives this start of NGINX a number, unless it has one.
    pub fn name_start(&self, start_id: u64) {
        let _ = self.start_id.compare_exchange(0, start_id, Relaxed, Relaxed);
    }

    /// A slot for this worker. `lives` says whether there is a process of that pid.
    pub fn claim(&self, pid: u32, lives: impl Fn(u32) -> bool) -> SlotNumber {
        self.bury(lives);
        let own = &self.slots[..SlotNumber::SHARED.0];
        let claimed = own.iter().position(|slot| slot.owner.claim(pid));
        claimed.map_or(SlotNumber::SHARED, SlotNumber)
    }

    pub fn set_client(&self, slot: SlotNumber, state: ClientState) {
        self.slots[slot.0].client.store(state as u32, Relaxed);
    }

    /// The worker ends as it should.
    pub fn release(&self, slot: SlotNumber) {
        if !slot.is_shared() {
            self.slots[slot.0].owner.release();
        }
    }

    /// Frees the slots of workers that are no more, and counts what they had not got rid of.
    pub fn bury(&self, lives: impl Fn(u32) -> bool) {
        self.bury_as(std::process::id(), lives);
    }

    fn bury_as(&self, own: u32, lives: impl Fn(u32) -> bool) {
        for slot in &self.slots[..SlotNumber::SHARED.0] {
            slot.owner.bury(own, &lives);
        }
    }

    /// The place of an application's counters. `None`: there are too many applications.
    pub fn application(&self, id: i32) -> Option<usize> {
        let wanted = u64::from(id as u32) + 1;
        place_of(&self.application_ids, wanted)
    }

    pub fn add(&self, slot: SlotNumber, application: Option<usize>, counter: Counter, value: u64) {
        if value == 0 {
            return;
        }
        let slot = &self.slots[slot.0];
        slot.counts[counter as usize].fetch_add(value, Relaxed);
        if let Some(place) = application
            && let Some(count) = slot.applications[place].get(counter as usize)
        {
            count.fetch_add(value, Relaxed);
        }
    }

    /// The worker's client took a record.
    pub fn accepted(&self, slot: SlotNumber) {
        self.slots[slot.0].owner.accepted.fetch_add(1, Relaxed);
    }

    /// The server has so many more.
    pub fn acked(&self, slot: SlotNumber, records: usize) {
        self.slots[slot.0].owner.acked.fetch_add(records as u64, Relaxed);
    }

    /// The client has given up so many more, which are counted as errors, too.
    pub fn given_up(&self, slot: SlotNumber, records: u64) {
        self.slots[slot.0].owner.given_up.fetch_add(records, Relaxed);
    }

    /// The sum over all slots.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals { start_id: self.start_id.load(Relaxed), ..Totals::default() };
        let known = self.application_ids.iter().map(|id| id.load(Relaxed)).take_while(|&id| id != 0);
        totals.applications = known.map(|id| ((id - 1) as u32 as i32, Counts::default())).collect();
        for slot in &self.slots {
            totals.counts.0[Counter::Segfaults as usize] += slot.owner.killed();
            totals.counts.0[Counter::TntErrors as usize] += slot.owner.lost.load(Relaxed);
            if slot.owner.is_there() {
                let client = slot.client.load(Relaxed);
                totals.workers += 1;
                totals.connected += u64::from(client == ClientState::There as u32);
                totals.failed += u64::from(client == ClientState::Failed as u32);
            }
            for (sum, count) in totals.counts.0.iter_mut().zip(&slot.counts) {
                *sum += count.load(Relaxed);
            }
            for ((_, sums), counts) in totals.applications.iter_mut().zip(&slot.applications) {
                for (sum, count) in sums.0.iter_mut().zip(counts) {
                    *sum += count.load(Relaxed);
                }
            }
        }
        totals
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zone() -> Box<Zone> {
        // SAFETY: atomics of integers, for which all zero is a value.
        unsafe { Box::<Zone>::new_zeroed().assume_init() }
    }

    #[test]
    fn what_a_dead_worker_counted_stays_and_what_it_held_is_lost() {
        let zone = zone();
        let slot = zone.claim(7, |_| true);
        let application = zone.application(-1);
        zone.add(slot, application, Counter::Requests, 5);
        for _ in 0..6 {
            zone.accepted(slot);
        }
        zone.acked(slot, 3);
        zone.given_up(slot, 1);
        assert_eq!(zone.claim(8, |pid| pid == 7), SlotNumber(1));
        assert_eq!(zone.claim(9, |pid| pid == 8), slot, "7 is dead, its slot is free");
        let totals = zone.totals();
        assert_eq!((totals.counts.of(Counter::Requests), totals.counts.of(Counter::TntErrors)), (5, 2));
        assert_eq!((totals.counts.of(Counter::Segfaults), totals.workers), (1, 2));
        zone.add(slot, application, Counter::Requests, 1);
        zone.accepted(slot);
        zone.acked(slot, 1);
        zone.bury(|pid| pid == 8);
        assert_eq!(zone.totals().counts.of(Counter::TntErrors), 2, "the next one had got rid of all");
        assert_eq!(zone.claim(10, |_| true), slot);
        zone.release(slot);
        zone.bury(|pid| pid == 8);
        let totals = zone.totals();
        assert_eq!((totals.counts.of(Counter::Requests), totals.counts.of(Counter::TntErrors), totals.workers), (6, 2, 1));
        assert_eq!(totals.counts.of(Counter::Segfaults), 2, "7 and 9; 10 ended as it should");
        assert_eq!((totals.applications.len(), totals.applications[0].0), (1, -1));
        assert_eq!(totals.applications[0].1.of(Counter::Requests), 6);
    }

    #[test]
    fn a_burial_that_was_broken_off_is_finished_by_the_next_and_counts_once() {
        // Killed after each of its steps.
        for steps in 0..=3 {
            let zone = zone();
            let slot = zone.claim(7, |_| true);
            zone.set_client(slot, ClientState::There);
            for _ in 0..6 {
                zone.accepted(slot);
            }
            zone.acked(slot, 4);
            let dead = &zone.slots[slot.0].owner;
            if steps > 0 {
                let owner = dead.begin_burial(8, |pid| pid != 7).expect("7 is dead");
                assert_eq!(dead.begin_burial(9, |pid| pid != 7), None, "8 is at it");
                assert_eq!(zone.totals().workers, 0);
                if steps > 1 {
                    dead.count_lost();
                }
                if steps > 2 {
                    dead.end_burial(owner);
                }
            }
            for _ in 0..2 {
                zone.bury_as(9, |pid| pid > 8);
                let totals = zone.totals();
                let found = (totals.counts.of(Counter::TntErrors), totals.counts.of(Counter::Segfaults), totals.workers);
                assert_eq!(found, (2, 1, 0), "killed after step {steps}");
            }
            assert_eq!(zone.claim(9, |pid| pid > 8), slot, "the slot is free");
        }
        // The pid of who was killed at it may be one's own now.
        let zone = zone();
        let slot = zone.claim(7, |_| true);
        assert!(zone.slots[slot.0].owner.begin_burial(8, |_| false).is_some());
        zone.bury_as(8, |_| true);
        assert_eq!((zone.totals().counts.of(Counter::Segfaults), zone.claim(8, |_| true)), (1, slot));
    }

    #[test]
    fn many_that_bury_at_once_count_once() {
        let zone = zone();
        for round in 1..=50 {
            for _ in 0..8 {
                let slot = zone.claim(7, |_| true);
                zone.accepted(slot);
            }
            std::thread::scope(|scope| {
                for own in 8..12 {
                    let zone = &zone;
                    scope.spawn(move || zone.bury_as(own, |pid| pid != 7));
                }
            });
            zone.bury_as(12, |pid| pid != 7);
            let totals = zone.totals();
            let found = (totals.counts.of(Counter::TntErrors), totals.counts.of(Counter::Segfaults), totals.workers);
            assert_eq!(found, (8 * round, 8 * round, 0));
        }
    }

    #[test]
    fn workers_and_applications_beyond_the_table_are_counted_in_the_totals() {
        let zone = zone();
        for pid in 1..SLOTS as u32 {
            assert!(!zone.claim(pid, |_| true).is_shared());
        }
        let shared = zone.claim(9999, |_| true);
        assert!(shared.is_shared());
        for id in 0..APPLICATIONS as i32 {
            assert_eq!(zone.application(id), Some(id as usize));
        }
        let none = zone.application(i32::MAX);
        assert_eq!((none, zone.application(3)), (None, Some(3)));
        zone.add(shared, none, Counter::Attacks, 4);
        zone.release(shared);
        assert_eq!(zone.totals().counts.of(Counter::Attacks), 4);
    }

    #[test]
    fn workers_with_and_without_a_client() {
        let zone = zone();
        for (pid, state) in [(1, ClientState::None), (2, ClientState::There), (3, ClientState::Failed)] {
            zone.set_client(zone.claim(pid, |_| true), state);
        }
        let totals = zone.totals();
        assert_eq!((totals.workers, totals.connected, totals.failed), (3, 1, 1));
        let next = zone.claim(4, |pid| pid != 3);
        zone.set_client(next, ClientState::There);
        let totals = zone.totals();
        assert_eq!((totals.workers, totals.connected, totals.failed), (3, 2, 0), "the next one of a slot says it anew");
    }

    #[test]
    fn a_start_keeps_its_number() {
        let zone = zone();
        zone.name_start(5);
        zone.name_start(6);
        assert_eq!(zone.totals().start_id, 5);
    }
}
