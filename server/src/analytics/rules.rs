//! The kinds of rules, on the state of one key: leaky bucket, events in a window, distinct values.
//!
//! A window is a list of what it counted, oldest first: {time, value, number of the event among those looked at, plain number}.
//! Times of one key never go back, so a window is sorted. Nothing here knows a detector.

use super::keys::{Cell, EVIDENCE, List, Pool};

/// Where sets of distinct values are kept.
pub const SET: usize = 0;
/// Where windows are kept.
pub const WINDOW: usize = 1;
/// Where detectors that have no third list count the values since the first event.
pub const COUNTER: usize = 2;

/// Words of an entry of a window.
const TIME: usize = 0;
const VALUE: usize = 1;
const SEQ: usize = 2;
const NUMBER: usize = 3;
/// Marks, beside the event's number, that the value is a number.
const IS_NUMBER: u64 = 1 << 32;

/// A rule fired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Firing {
    /// Effective time of the first event since the rule was last empty.
    pub first_us: u64,
    /// Its number among the events looked at.
    pub first_seq: u32,
    /// Different values since.
    pub distinct: u32,
}

/// An event that a window counts.
#[derive(Clone, Copy, Debug)]
pub struct Counted {
    /// Effective time.
    pub time_us: u64,
    /// Fingerprint of its value.
    pub value: u64,
    /// The value as a number.
    pub number: u64,
    /// Whether it is one.
    pub is_number: bool,
}

/// The state of a key while an event is looked at.
#[derive(Debug)]
pub struct State<'a> {
    /// The key's cell.
    pub cell: &'a mut Cell,
    /// Where its lists are.
    pub pool: &'a mut Pool,
}

impl State<'_> {
    /// Lets a leaky rule leak; at 0 it is empty, and with it its set and counter.
    #[inline]
    pub fn leak(&mut self, elapsed_us: u64, has_set: bool) {
        self.cell.level = self.cell.level.saturating_sub_unsigned(elapsed_us).max(0);
        if self.cell.level == 0 {
            self.cell.first_seq = 0;
            if has_set {
                self.clear(SET);
            }
        }
    }

    /// Empties a list.
    #[inline]
    pub fn clear(&mut self, place: usize) {
        self.with_list(place, Pool::clear);
    }

    /// Works on a list of the cell.
    #[inline]
    pub fn with_list<R>(&mut self, place: usize, work: impl FnOnce(&mut Pool, &mut List) -> R) -> R {
        let mut list = self.cell.list(place);
        let result = work(self.pool, &mut list);
        self.cell.put(place, list);
        result
    }

    /// Counts an event in a leaky rule.
    #[inline]
    pub fn pour(&mut self, amount_us: i64, time_us: u64) {
        self.begin(time_us);
        self.cell.level = self.cell.level.saturating_add(amount_us);
    }

    /// Counts a value since the first event, where the third list is a plain number.
    #[inline]
    pub const fn add_one(&mut self) {
        self.cell.set_counter(self.cell.counter().saturating_add(1));
    }

    /// The only rule of a detector without windows is empty: nothing was counted, and no evidence is needed.
    #[inline]
    pub fn start_counting_anew(&mut self) {
        self.cell.set_counter(0);
        self.clear(EVIDENCE);
    }

    /// Notes the first event since the rule was empty.
    #[inline]
    pub const fn begin(&mut self, time_us: u64) {
        if self.cell.first_seq == 0 {
            self.cell.first_seq = self.cell.seq;
            self.cell.first_us = time_us;
        }
    }

    /// Whether a leaky rule that holds `events` of `amount_us` fires.
    #[inline]
    pub const fn overflows(&self, events: i64, amount_us: i64) -> bool {
        self.cell.level > events * amount_us
    }

    /// The firing of a leaky rule or a sequential test.
    pub const fn firing(&self, distinct: u32) -> Firing {
        Firing { first_us: self.cell.first_us, first_seq: self.cell.first_seq, distinct }
    }

    /// Puts a value into the set of the last `distinct_max` values. `false`: it is in there already, or there is no room for it: what
    /// is not known is not counted, for it would be counted again and again.
    #[inline]
    pub fn is_new(&mut self, value: u64, distinct_max: i64) -> bool {
        !self.holds(value) && self.remember(value, distinct_max)
    }

    /// Whether the set of the last values holds this one.
    #[inline]
    pub fn holds(&self, value: u64) -> bool {
        self.pool.get(self.cell.list(SET)).contains(&value)
    }

    /// Puts a value into the set of the last `distinct_max` values. `false`: there is no room for it.
    pub fn remember(&mut self, value: u64, distinct_max: i64) -> bool {
        self.with_list(SET, |pool, list| pool.push(list, [value], distinct_max as usize))
    }

    /// Drops what left a window.
    pub fn slide(&mut self, place: usize, time_us: u64, window_us: i64) {
        let window = self.pool.entries::<4>(self.cell.list(place));
        let left = window.iter().take_while(|entry| entry[TIME] + window_us as u64 <= time_us).count();
        if left > 0 {
            self.with_list(place, |pool, list| pool.drop_front(list, left * 4));
        }
    }

    /// Counts an event in a window that keeps `events_max`. `false`: there is no room for it.
    pub fn count(&mut self, place: usize, event: Counted, events_max: i64) -> bool {
        let seq = u64::from(self.cell.seq) | if event.is_number { IS_NUMBER } else { 0 };
        let entry = [event.time_us, event.value, seq, event.number];
        self.with_list(place, |pool, list| pool.push(list, entry, events_max as usize))
    }

    /// Counts an event in a window unless its value is in there.
    pub fn count_distinct(&mut self, place: usize, event: Counted, events_max: i64) -> bool {
        let known = self.pool.entries::<4>(self.cell.list(place)).iter().any(|entry| entry[VALUE] == event.value);
        !known && self.count(place, event, events_max)
    }

    /// Whether `events` were counted within `window_us`, of those after event number `after_seq`.
    pub fn fires(&self, place: usize, time_us: u64, events: i64, window_us: i64, after_seq: u32) -> Option<Firing> {
        let window = self.pool.entries::<4>(self.cell.list(place));
        let inside = |entry: &[u64; 4]| entry[TIME] + window_us as u64 <= time_us || entry[SEQ] as u32 <= after_seq;
        let inside = &window[window.partition_point(inside)..];
        let first = inside.first().filter(|_| inside.len() as i64 >= events)?;
        Some(Firing { first_us: first[TIME], first_seq: first[SEQ] as u32, distinct: inside.len() as u32 })
    }

    /// Whether the last `events` values of a window are numbers within a range of `spread`.
    pub fn is_range(&self, place: usize, events: i64, spread: i64) -> bool {
        let window = self.pool.entries::<4>(self.cell.list(place));
        let Some(tail) = window.len().checked_sub(events as usize).map(|start| &window[start..]) else { return false };
        let Some(reference) = tail.last().map(|entry| entry[NUMBER]) else { return false };
        // Numbers are kept modulo 2^64: the differences of those that are near each other are right.
        let (mut low, mut high) = (0i64, 0i64);
        for entry in tail {
            if entry[SEQ] & IS_NUMBER == 0 {
                return false;
            }
            let difference = entry[NUMBER].wrapping_sub(reference) as i64;
            (low, high) = (low.min(difference), high.max(difference));
        }
        i128::from(high) - i128::from(low) <= i128::from(spread)
    }

    /// The number of the oldest event that any rule still counts.
    pub fn oldest_seq(&self, windows: &[usize]) -> u32 {
        let leaky = if self.cell.first_seq == 0 { u32::MAX } else { self.cell.first_seq };
        let firsts = windows.iter().filter_map(|&place| self.pool.entries::<4>(self.cell.list(place)).first());
        firsts.map(|entry| entry[SEQ] as u32).fold(leaky, u32::min)
    }
}

/// The values of a window.
pub fn window_values(pool: &Pool, list: List) -> impl Iterator<Item = u64> {
    pool.entries::<4>(list).iter().map(|entry| entry[VALUE])
}

/// Entries of a window that are within it at `now_us`, of those after event number `after_seq`.
pub fn window_len_at(pool: &Pool, list: List, now_us: u64, window_us: i64, after_seq: u32) -> i64 {
    let inside = |entry: &&[u64; 4]| entry[TIME] + window_us as u64 > now_us && entry[SEQ] as u32 > after_seq;
    pool.entries::<4>(list).iter().filter(inside).count() as i64
}

/// How many of the last entries of a window, within it at `now_us`, are numbers within a range of `spread`.
pub fn range_len_at(pool: &Pool, list: List, now_us: u64, window_us: i64, spread: i64) -> i64 {
    let window = pool.entries::<4>(list);
    let Some(reference) = window.last().map(|entry| entry[NUMBER]) else { return 0 };
    let (mut low, mut high) = (0i64, 0i64);
    let inside = window.iter().rev().take_while(|entry| {
        let difference = entry[NUMBER].wrapping_sub(reference) as i64;
        (low, high) = (low.min(difference), high.max(difference));
        let is_near = i128::from(high) - i128::from(low) <= i128::from(spread);
        is_near && entry[SEQ] & IS_NUMBER != 0 && entry[TIME] + window_us as u64 > now_us
    });
    inside.count() as i64
}
