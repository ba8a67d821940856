//! What is kept of a key: 64 bytes, one line of the cache, and lists in the pool once there are two events to keep.
//!
//! A key of which one event is to be remembered keeps that event whole in its cell. The second one unpacks it: so a key that
//! never comes back, as most spoofed ones, costs its cell and nothing else.
//!
//! ```text
//!  0 key 8 │ 8 clock 8 │ 16 level 8 │ 24 first_us 8 │ 32 first_seq 4 │ 36 seq 4 │ 40 lengths 4 │ 44 network 2 │ 46 plan 2
//! 48 blocks of the four lists, 4 B each; of a single event: its request id; of a key on hold: the number of its alert, 4 B
//!  lengths, from the lowest bit: set, words 11 │ window, entries of four words 9 │ third, words 7 │ evidence, entries 4
//! ```

use super::pool::List;
use crate::analytics::alerts::EVIDENCE_MAX;
use crate::analytics::detectors::{Detector, Event};
use crate::analytics::rules::{COUNTER, SET, WINDOW};
use crate::config::detection::{DISTINCT, EVENTS, WINDOW_EVENTS_MAX};

/// Evidence is the last list of every cell.
pub const EVIDENCE: usize = 3;

/// `lengths` of a cell that holds its first event as it came.
const SINGLE: u32 = u32::MAX;
/// `lengths` of a cell whose key is on hold: it has no list, and the number of its alert.
const HELD: u32 = 1 << 31;

/// See the module. What `level`, `first` and the lists hold is up to the detector; 0 is empty.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(64))]
pub struct Cell {
    /// Fingerprint of the key, 0 if the cell is free.
    pub key: u64,
    /// Largest effective time seen.
    pub clock_us: u64,
    /// Level of a leaky rule, score of a sequential test.
    pub level: i64,
    /// Time of the first event since that was empty.
    pub first_us: u64,
    /// Number of that event, 0 if it is empty.
    pub first_seq: u32,
    /// Events looked at.
    pub seq: u32,
    lengths: u32,
    /// Which share of the table's networks this cell is counted in.
    pub network: u16,
    /// Detector and override.
    pub plan: u16,
    blocks: [u32; 4],
}

const _: () = assert!(size_of::<Cell>() == 64);

/// Where the length of a list stands in `lengths`, and how many bits it has.
const LENGTHS: [(u32, u32); 4] = [(0, 11), (11, 9), (20, 7), (27, 4)];

// What a configuration may ask for is within them: a window may stand in the place of the set as well.
const _: () = {
    const fn fits(place: usize, length: i64) -> bool {
        length >> LENGTHS[place].1 == 0
    }
    assert!(fits(SET, *EVENTS.end() * 4) && fits(SET, *DISTINCT.end()));
    assert!(fits(WINDOW, *EVENTS.end()) && fits(WINDOW, WINDOW_EVENTS_MAX));
    assert!(fits(COUNTER, *DISTINCT.end()) && fits(EVIDENCE, EVIDENCE_MAX as i64 - 1));
};

impl Cell {
    /// A cell that holds an event as it came.
    pub const fn single(event: &Event) -> Self {
        let [high, low] = event.request_id;
        Self {
            key: event.key,
            clock_us: event.time_us,
            level: event.value as i64,
            first_us: event.number,
            first_seq: event.kind,
            seq: 1,
            lengths: SINGLE,
            network: event.network,
            plan: event.plan,
            blocks: [(high >> 32) as u32, high as u32, (low >> 32) as u32, low as u32],
        }
    }

    /// Puts an event in the place of the one that the cell holds. Key, plan and network are the same.
    #[inline]
    pub const fn put_single(&mut self, event: &Event) {
        let [high, low] = event.request_id;
        (self.clock_us, self.level, self.first_us, self.first_seq) =
            (event.time_us, event.value as i64, event.number, event.kind);
        self.blocks = [(high >> 32) as u32, high as u32, (low >> 32) as u32, low as u32];
    }

    /// A cell of which nothing is known.
    pub fn empty(event: &Event) -> Self {
        Self { key: event.key, network: event.network, plan: event.plan, ..Self::default() }
    }

    /// Whether it holds its first event.
    #[inline]
    pub const fn is_single(&self) -> bool {
        self.lengths == SINGLE
    }

    /// That event.
    pub const fn event(&self) -> Event {
        let [a, b, c, d] = self.blocks;
        Event {
            key: self.key,
            time_us: self.clock_us,
            value: self.level as u64,
            number: self.first_us,
            request_id: [(a as u64) << 32 | b as u64, (c as u64) << 32 | d as u64],
            kind: self.first_seq,
            network: self.network,
            plan: self.plan,
        }
    }

    /// The alert that takes further events, plus one; 0 if there is none.
    #[inline]
    pub const fn alert(&self) -> u32 {
        if self.lengths == HELD { self.blocks[0] } else { 0 }
    }

    /// Empties it, but for its clock, until that alert's hold ends. Its lists were given back before.
    pub const fn hold(&mut self, alert: u32) {
        (self.level, self.first_us, self.first_seq) = (0, 0, 0);
        (self.lengths, self.blocks) = (HELD, [alert, 0, 0, 0]);
    }

    /// The hold ended: it is empty.
    pub const fn release(&mut self) {
        (self.lengths, self.blocks) = (0, [0; 4]);
    }

    /// Whether there are lists to look at.
    #[inline]
    pub const fn has_lists(&self) -> bool {
        self.lengths < HELD && self.lengths != 0
    }

    /// Whether as many ids are kept as an alert shows; they are not looked at until it is raised. Of a cell that has lists.
    #[inline]
    pub const fn has_all_evidence(&self) -> bool {
        (self.lengths >> LENGTHS[EVIDENCE].0) as usize == EVIDENCE_MAX - 1
    }

    /// A list. None of a cell that is single or on hold.
    #[inline]
    pub const fn list(&self, place: usize) -> List {
        let (shift, bits) = LENGTHS[place];
        let length = self.lengths >> shift & ((1 << bits) - 1);
        List { block: self.blocks[place], words: (length as usize * self.unit_words(place)) as u16 }
    }

    /// Puts a list back that was changed.
    #[inline]
    pub const fn put(&mut self, place: usize, list: List) {
        let (shift, bits) = LENGTHS[place];
        let length = (list.words as usize / self.unit_words(place)) as u32;
        debug_assert!(length >> bits == 0, "lists are within the bounds of the configuration");
        self.lengths = self.lengths & !(((1 << bits) - 1) << shift) | length << shift;
        self.blocks[place] = list.block;
    }

    /// The plain number that some detectors keep in the place of the third list.
    #[inline]
    pub const fn counter(&self) -> u32 {
        self.blocks[COUNTER]
    }

    /// Sets it.
    #[inline]
    pub const fn set_counter(&mut self, count: u32) {
        self.blocks[COUNTER] = count;
    }

    /// Words that a list's length is counted in.
    #[inline]
    const fn unit_words(&self, place: usize) -> usize {
        match place {
            EVIDENCE => Detector::of_plan(self.plan).evidence_words(),
            WINDOW => 4,
            _ => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_all_lengths_come_back() {
        let mut cell = Cell { plan: Detector::CredentialStuffing as u16, ..Cell::default() };
        for step in [0u16, 1, 5, 15] {
            let lists = [(SET, 1024 / 15 * step), (WINDOW, 500 / 15 * step * 4), (COUNTER, 64 / 15 * step), (EVIDENCE, step * 3)];
            for (place, words) in lists {
                cell.put(place, List { block: u32::from(step) + place as u32, words });
            }
            for (place, words) in lists {
                assert_eq!(cell.list(place), List { block: u32::from(step) + place as u32, words });
            }
            assert!(!cell.is_single() && cell.alert() == 0);
        }
    }

    #[test]
    fn an_event_is_kept_whole() {
        let event = Event {
            key: 1,
            time_us: 2,
            value: u64::MAX - 3,
            number: 4,
            request_id: [0x0102_0304_0506_0708, 0x1112_1314_1516_1718],
            kind: 5,
            network: 6,
            plan: 7,
        };
        assert_eq!(Cell::single(&event).event(), event);
        let mut cell = Cell::empty(&event);
        cell.hold(9);
        assert_eq!((cell.alert(), cell.is_single()), (9, false));
        cell.release();
        assert_eq!((cell.alert(), cell.list(SET)), (0, List::default()));
    }
}
