//! Bounded state of keys: a hash table of fixed size, its pool of lists, and a place of probation for new keys when it is full.
//!
//! A key may stand in either of two buckets of 16 cells and is put into the emptier one; so the table fills evenly, and below
//! four fifths of it every key finds room. Above, a new key waits in the probation ring with its first event and enters with
//! its second; if its buckets are full, one of their keys yields, which one is for the caller to say. Flat memory of fixed
//! size, positions instead of pointers, no allocation after [`KeyTable::new`].
//!
//! Whoever owns many addresses of one IPv6 /48 may not take the table: see [`KeyTable::is_network_full`].

pub mod cell;
pub mod pool;

pub use cell::{Cell, EVIDENCE};
pub use pool::{List, Pool};

use super::detectors::Event;
use super::fingerprint::mix;

/// Cells of a bucket.
const BUCKET: usize = 16;
/// Cells of a probation bucket.
const PROBATION_BUCKET: usize = 8;
/// Slots in which the keys of IPv6 networks are counted. Two networks may share one: the bound holds for both together.
const NETWORK_SLOTS: usize = 1 << 15;

/// See the module.
#[derive(Debug)]
pub struct KeyTable {
    /// 16 bits of each key, 0 for a free cell: a bucket's are half a cache line.
    tags: Vec<[u16; BUCKET]>,
    cells: Vec<Cell>,
    /// The lists of the cells.
    pub pool: Pool,
    probation: Vec<[Event; PROBATION_BUCKET]>,
    networks: Vec<u32>,
    live: usize,
    /// New keys lost from probation before their second event.
    pub probation_overwritten: u64,
}

impl KeyTable {
    /// A table for `keys` keys (at least 1024), with 64 bytes of lists for each, and room for a quarter as many in probation.
    pub fn new(keys: usize) -> Self {
        let buckets = keys.max(1024).div_ceil(BUCKET);
        Self {
            tags: vec![[0; BUCKET]; buckets],
            cells: vec![Cell::default(); buckets * BUCKET],
            pool: Pool::new(buckets * BUCKET * 64),
            probation: vec![[Event::default(); PROBATION_BUCKET]; (buckets / 2).max(1)],
            networks: vec![0; NETWORK_SLOTS + 1],
            live: 0,
            probation_overwritten: 0,
        }
    }

    /// Keys in the table.
    pub const fn live(&self) -> usize {
        self.live
    }

    /// Keys that it can hold.
    pub const fn capacity(&self) -> usize {
        self.cells.len()
    }

    /// Whether new keys go to probation.
    #[inline]
    pub const fn is_crowded(&self) -> bool {
        self.live >= self.cells.len() / 5 * 4
    }

    /// The slot in which the keys of an IPv6 /48 are counted; 0 is for those of IPv4, which are not.
    #[inline]
    pub const fn network_slot(network: u64) -> u16 {
        (mix(network) % NETWORK_SLOTS as u64) as u16 + 1
    }

    /// Whether the /64s of the networks of a slot have their share of the table, a 64th.
    #[inline]
    pub fn is_network_full(&self, slot: u16) -> bool {
        slot != 0 && self.networks[usize::from(slot)] as usize >= self.cells.len() / 64
    }

    /// Where a key is.
    #[inline]
    pub fn find(&self, key: u64) -> Option<usize> {
        let (one, other) = self.buckets(key);
        self.find_in(one, key).or_else(|| self.find_in(other, key))
    }

    /// A cell.
    #[inline]
    pub fn cell(&self, position: usize) -> &Cell {
        &self.cells[position]
    }

    /// A cell and the pool.
    #[inline]
    pub fn cell_and_pool(&mut self, position: usize) -> (&mut Cell, &mut Pool) {
        (&mut self.cells[position], &mut self.pool)
    }

    /// Puts a new key in, if one of its buckets has room.
    pub fn insert(&mut self, cell: Cell) -> Option<usize> {
        let (one, other) = self.buckets(cell.key);
        let count = |bucket: usize| self.tags[bucket].iter().filter(|&&tag| tag != 0).count();
        let bucket = if count(one) <= count(other) { one } else { other };
        let place = self.tags[bucket].iter().position(|&tag| tag == 0)?;
        self.tags[bucket][place] = tag(cell.key);
        let position = bucket * BUCKET + place;
        self.cells[position] = cell;
        self.live += 1;
        if cell.network != 0 {
            self.networks[usize::from(cell.network)] += 1;
        }
        Some(position)
    }

    /// The positions among which one must yield to a key: its first bucket.
    pub fn rivals(&self, key: u64) -> std::ops::Range<usize> {
        let first = self.buckets(key).0 * BUCKET;
        first..first + BUCKET
    }

    /// Removes a key and gives its lists back.
    pub fn remove(&mut self, position: usize) {
        let cell = &mut self.cells[position];
        if cell.key == 0 {
            return;
        }
        if !cell.is_single() {
            clear_lists(cell, &mut self.pool);
        }
        if cell.network != 0 {
            self.networks[usize::from(cell.network)] -= 1;
        }
        *cell = Cell::default();
        self.tags[position / BUCKET][position % BUCKET] = 0;
        self.live -= 1;
    }

    /// Takes a key's first event out of probation, or puts this one there as its first.
    pub fn probation(&mut self, event: &Event) -> Option<Event> {
        let buckets = self.probation.len() as u64;
        let bucket = &mut self.probation[((u128::from(mix(event.key)) * u128::from(buckets)) >> 64) as usize];
        if let Some(at) = bucket.iter().position(|waiting| waiting.key == event.key) {
            return Some(std::mem::take(&mut bucket[at]));
        }
        // Newest first: the last is the oldest, or free.
        self.probation_overwritten += u64::from(bucket[PROBATION_BUCKET - 1].key != 0);
        bucket.rotate_right(1);
        bucket[0] = *event;
        None
    }

    /// Forgets the first events of keys that are not in the table yet.
    pub fn forget_probation(&mut self) {
        self.probation.fill([Event::default(); PROBATION_BUCKET]);
    }

    #[inline]
    fn buckets(&self, key: u64) -> (usize, usize) {
        let count = self.tags.len() as u64;
        let scaled = |hash: u64| (((hash >> 32) * count) >> 32) as usize;
        (scaled(key), scaled(key.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32)))
    }

    #[inline]
    fn find_in(&self, bucket: usize, key: u64) -> Option<usize> {
        let wanted = tag(key);
        let mut matches = 0u32;
        for (place, &tag) in self.tags[bucket].iter().enumerate() {
            matches |= u32::from(tag == wanted) << place;
        }
        while matches != 0 {
            let position = bucket * BUCKET + matches.trailing_zeros() as usize;
            if self.cells[position].key == key {
                return Some(position);
            }
            matches &= matches - 1;
        }
        None
    }
}

/// Gives all lists of a cell back. Detectors may keep a plain number in the third place: it has no block.
pub fn clear_lists(cell: &mut Cell, pool: &mut Pool) {
    for (place, list) in cell.lists.iter_mut().enumerate() {
        if place == super::rules::COUNTER && super::detectors::Detector::of_plan(cell.plan).keeps_counter() {
            list.0 = 0;
        } else {
            pool.clear(list);
        }
    }
}

/// Never 0, which is a free cell.
#[inline]
const fn tag(key: u64) -> u16 {
    let tag = key as u16;
    if tag == 0 { 1 } else { tag }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(n: u64) -> Event {
        Event { key: mix(n + 1), ..Event::default() }
    }

    #[test]
    fn below_four_fifths_every_key_finds_room() {
        for seed in 0..4 {
            let mut table = KeyTable::new(1 << 16);
            let mut n = seed << 32;
            while !table.is_crowded() {
                n += 1;
                assert!(table.insert(Cell::single(&event(n))).is_some(), "{} keys of {}", table.live(), table.capacity());
            }
            assert!((1..=n - (seed << 32)).all(|m| table.find(event((seed << 32) + m).key).is_some()));
        }
    }

    #[test]
    fn what_is_removed_is_gone_and_makes_room() {
        let mut table = KeyTable::new(1024);
        for n in 0..500 {
            table.insert(Cell::single(&event(n)));
        }
        for n in 0..500 {
            let position = table.find(event(n).key).expect("it was put in");
            table.remove(position);
            assert_eq!(table.find(event(n).key), None);
        }
        assert_eq!(table.live(), 0);
    }

    #[test]
    fn probation_gives_the_first_event_back_and_counts_what_it_loses() {
        let mut table = KeyTable::new(1024);
        let first = Event { time_us: 7, ..event(1) };
        assert!(table.probation(&first).is_none());
        assert_eq!(table.probation(&event(1)).map(|event| event.time_us), Some(7));
        assert!(table.probation(&first).is_none(), "it was taken out");
        for n in 0..10_000 {
            table.probation(&event(n + 2));
        }
        assert!(table.probation_overwritten > 9_500);
    }

    #[test]
    fn a_network_is_full_at_a_64th() {
        let mut table = KeyTable::new(6400);
        let slot = KeyTable::network_slot(5);
        for n in 0..100 {
            assert!(!table.is_network_full(slot), "{n}");
            table.insert(Cell { network: slot, ..Cell::single(&event(n)) });
        }
        assert!(table.is_network_full(slot) && !table.is_network_full(0));
        table.remove(table.find(event(3).key).expect("it is there"));
        assert!(!table.is_network_full(slot));
    }
}
