//! Bounded state of keys: a hash table of fixed size, its pool of lists, and a place of probation for new keys when it is full.
//!
//! A key may stand in either of two buckets of 32 cells; the second is used only when the first is rather full, so the table fills
//! evenly, and below four fifths of it every key finds room. Keys that differ in their lowest 16 bits only, those of the detectors
//! that look at the same source and host, have the same two buckets: what one look-up brings into the cache serves the others. Those
//! of `forced_browsing` and `crawl`, which come together, lie beside each other. Above, a new key waits in the probation ring with its first event and enters with
//! its second; if its buckets are full, one of their keys yields, which one is for the caller to say. Flat memory of fixed
//! size, positions instead of pointers, no allocation after [`KeyTable::new`].
//!
//! Whoever owns many addresses of one IPv6 /48 may not take the table: see [`KeyTable::is_network_full`].

pub mod cell;
pub mod pool;

pub use cell::{Cell, EVIDENCE};
pub use pool::{List, PAGE_BYTES, Pool};

use super::detectors::{Detector, Event};
use super::fingerprint::mix;
use super::rules::SET;
use crate::arena::mapping::{equal_numbers, on_huge_pages, prefetch};

/// Cells of a bucket: their tags are one line of the cache.
const BUCKET: usize = 32;
/// A bucket with fewer keys takes another one although the other bucket may be emptier: most keys are then found in their first.
const FIRST_CHOICE: usize = 24;
/// Cells among which one must yield.
const RIVALS: usize = 16;
/// Cells of a probation bucket.
const PROBATION_BUCKET: usize = 8;
/// Least room for lists: with fewer pages, those of which each size leaves one unfilled would be too large a part.
const POOL_BYTES_MIN: usize = 128 * PAGE_BYTES;
/// Slots in which the keys of IPv6 networks are counted. Two networks may share one: the bound holds for both together.
const NETWORK_SLOTS: usize = 1 << 15;

/// The lower place of each pair of a bucket.
const EVEN_PLACES: u32 = 0x5555_5555;

/// 16 bits of each key of a bucket, 0 for a free cell.
#[derive(Clone, Copy, Debug, Default)]
#[repr(align(64))]
struct Tags([u16; BUCKET]);

/// Two cells that the processor fetches together.
#[derive(Clone, Copy, Debug, Default)]
#[repr(align(128))]
struct Pair([Cell; 2]);

/// See the module.
#[derive(Debug)]
pub struct KeyTable {
    tags: Vec<Tags>,
    cells: Vec<Pair>,
    /// The lists of the cells.
    pub pool: Pool,
    probation: Vec<[Event; PROBATION_BUCKET]>,
    networks: Vec<u32>,
    live: usize,
    /// New keys lost from probation before their second event.
    pub probation_overwritten: u64,
}

impl KeyTable {
    /// A table for `keys` keys (at least 1024), with 64 bytes of lists for each and 2 MiB at least, and room for a quarter as many in
    /// probation.
    pub fn new(keys: usize) -> Self {
        let buckets = keys.max(1024).div_ceil(BUCKET);
        Self {
            tags: on_huge_pages(buckets, Tags::default()),
            cells: on_huge_pages(buckets * BUCKET / 2, Pair::default()),
            pool: Pool::new((buckets * BUCKET * 64).max(POOL_BYTES_MIN)),
            probation: on_huge_pages(buckets, [Event::default(); PROBATION_BUCKET]),
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
        self.cells.len() * 2
    }

    /// Whether new keys go to probation.
    #[inline]
    pub const fn is_crowded(&self) -> bool {
        self.live >= self.capacity() / 5 * 4
    }

    /// The slot in which the keys of an IPv6 /48 are counted, by its keyed fingerprint; 0 is for those of IPv4, which are not.
    #[inline]
    pub const fn network_slot(network_fingerprint: u64) -> u16 {
        (network_fingerprint % NETWORK_SLOTS as u64) as u16 + 1
    }

    /// Whether the /64s of the networks of a slot have their share of the table, a 64th.
    #[inline]
    pub fn is_network_full(&self, slot: u16) -> bool {
        slot != 0 && self.networks[usize::from(slot)] as usize >= self.capacity() / 64
    }

    /// Where a key is.
    #[inline]
    pub fn find(&self, key: u64) -> Option<usize> {
        let (one, other) = self.buckets(key);
        self.find_in(one, key).or_else(|| self.find_in(other, key))
    }

    /// Where a key is, looking first where [`Self::likely_position`] said.
    #[inline]
    pub fn find_from(&self, likely: u32, key: u64) -> Option<usize> {
        let is_there = self.cell_at(likely).is_some_and(|cell| cell.key == key);
        if is_there { Some(likely as usize) } else { self.find(key) }
    }

    /// Brings what [`Self::likely_position`] looks at into the cache.
    #[inline]
    pub fn prefetch_tags(&self, key: u64) {
        prefetch(&self.tags[self.first_bucket(key)]);
    }

    /// The same for [`Self::other_likely_position`].
    #[inline]
    pub fn prefetch_other_tags(&self, key: u64) {
        prefetch(&self.tags[self.second_bucket(key)]);
    }

    /// Where a key is if it is in its first bucket, by the tags alone: nearly always right, and no cell is read.
    #[inline]
    pub fn likely_position(&self, key: u64) -> u32 {
        self.likely_in(self.first_bucket(key), key)
    }

    /// The same for the other bucket.
    #[inline]
    pub fn other_likely_position(&self, key: u64) -> u32 {
        self.likely_in(self.second_bucket(key), key)
    }

    #[inline]
    fn likely_in(&self, bucket: usize, key: u64) -> u32 {
        let matches = self.matches(bucket, tag(key));
        if matches == 0 { u32::MAX } else { (bucket * BUCKET) as u32 + matches.trailing_zeros() }
    }

    /// Brings a cell and that of its mate into the cache.
    #[inline]
    pub fn prefetch_cells(&self, likely: u32) {
        if let Some(Pair([one, other])) = self.cells.get(likely as usize / 2) {
            prefetch(one);
            prefetch(other);
        }
    }

    /// Brings the lists into the cache that are looked at when an event comes, if the cell of the key is in the cache.
    #[inline]
    pub fn prefetch_lists(&self, likely: u32, key: u64) {
        if let Some(cell) = self.cell_at(likely).filter(|cell| cell.key == key && cell.has_lists()) {
            self.pool.prefetch(cell.list(SET));
            if !cell.has_all_evidence() {
                self.pool.prefetch_end(cell.list(EVIDENCE));
            }
        }
    }

    #[inline]
    fn cell_at(&self, position: u32) -> Option<&Cell> {
        let position = position as usize;
        self.cells.get(position / 2).map(|Pair(cells)| &cells[position % 2])
    }

    /// The cell of a key that is likely at a position, and the pool, which serves it from now on; none if it is not there.
    #[inline]
    pub fn cell_of(&mut self, likely: u32, key: u64) -> Option<(&mut Cell, &mut Pool)> {
        let position = likely as usize;
        self.pool.owner = likely;
        let Pair(cells) = self.cells.get_mut(position / 2)?;
        Some((&mut cells[position % 2], &mut self.pool)).filter(|(cell, _)| cell.key == key)
    }

    /// A cell.
    #[inline]
    pub fn cell(&self, position: usize) -> &Cell {
        &self.cells[position / 2].0[position % 2]
    }

    /// A cell and the pool, which serves it from now on.
    #[inline]
    pub fn cell_and_pool(&mut self, position: usize) -> (&mut Cell, &mut Pool) {
        self.pool.owner = position as u32;
        (&mut self.cells[position / 2].0[position % 2], &mut self.pool)
    }

    /// Puts a new key in, if one of its buckets has room: beside its mate, if that is there.
    pub fn insert(&mut self, cell: Cell) -> Option<usize> {
        let position = self.place_beside_mate(&cell).or_else(|| self.free_place(&cell))?;
        self.tags[position / BUCKET].0[position % BUCKET] = tag(cell.key);
        self.cells[position / 2].0[position % 2] = cell;
        self.live += 1;
        if cell.network != 0 {
            self.networks[usize::from(cell.network)] += 1;
        }
        Some(position)
    }

    fn place_beside_mate(&self, cell: &Cell) -> Option<usize> {
        let beside = self.find(mate_of(cell)?)? ^ 1;
        (self.tags[beside / BUCKET].0[beside % BUCKET] == 0).then_some(beside)
    }

    fn free_place(&self, cell: &Cell) -> Option<usize> {
        let (one, other) = self.buckets(cell.key);
        let [free_of_one, free_of_other] = [one, other].map(|bucket| self.matches(bucket, 0));
        let count = |free: u32| BUCKET - free.count_ones() as usize;
        let takes_one = count(free_of_one) < FIRST_CHOICE || count(free_of_one) <= count(free_of_other);
        let [first, second] =
            if takes_one { [(one, free_of_one), (other, free_of_other)] } else { [(other, free_of_other), (one, free_of_one)] };
        // Whose mate may come takes a pair that is wholly free; the others fill up those of which no mate will come.
        let has_mate = mate_of(cell).is_some();
        let wanted = |(bucket, free): (usize, u32)| {
            let (even, odd) = (free & EVEN_PLACES, free >> 1 & EVEN_PLACES);
            if has_mate {
                return (bucket, even & odd);
            }
            let halves = free & (even ^ odd | (even ^ odd) << 1);
            let waits = |place: &u32| mate_of(self.cell(bucket * BUCKET + (*place as usize ^ 1))).is_some();
            let free_for_all = (0..BUCKET as u32).filter(|place| halves >> place & 1 == 1).find(|place| !waits(place));
            (bucket, free_for_all.map_or(even & odd, |place| 1 << place))
        };
        let place = |(bucket, places): (usize, u32)| (places != 0).then(|| bucket * BUCKET + places.trailing_zeros() as usize);
        let in_pair = |bucket| place(wanted(bucket));
        in_pair(first).or_else(|| in_pair(second).filter(|_| has_mate)).or_else(|| place(first))
    }

    /// The positions among which one must yield to a key: half of one of its buckets, by a hash of the whole key, so that the keys
    /// of a newcomer do not push each other out.
    pub fn rivals(&self, key: u64) -> std::ops::Range<usize> {
        let (draw, (one, other)) = (mix(key), self.buckets(key));
        let bucket = if draw & 1 == 0 { one } else { other };
        let first = bucket * BUCKET + (draw >> 1) as usize % (BUCKET / RIVALS) * RIVALS;
        first..first + RIVALS
    }

    /// Removes a key and gives its lists back.
    pub fn remove(&mut self, position: usize) {
        let cell = &mut self.cells[position / 2].0[position % 2];
        if cell.key == 0 {
            return;
        }
        clear_lists(cell, &mut self.pool);
        if cell.network != 0 {
            self.networks[usize::from(cell.network)] -= 1;
        }
        *cell = Cell::default();
        self.tags[position / BUCKET].0[position % BUCKET] = 0;
        self.live -= 1;
    }

    /// Makes a page of the pool free by moving lists closer together, if that can be done.
    pub fn move_lists_together(&mut self) -> bool {
        let Some(page) = self.pool.page_to_empty() else { return false };
        for at in 0.. {
            let Some((block, position)) = self.pool.block(page, at) else { break };
            let (cell, pool) = self.cell_and_pool(position);
            let place = list_places(cell).find(|&place| cell.list(place).block == block);
            // A block that is free has the cell that it belonged to.
            if let Some(place) = place {
                let mut list = cell.list(place);
                pool.move_away(&mut list);
                cell.put(place, list);
            }
        }
        self.pool.emptied(page);
        true
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

    /// Forgets the first events of keys of these detectors that are not in the table yet.
    pub fn forget_probation(&mut self, detectors: &[Detector]) {
        let waiting = self.probation.iter_mut().flatten();
        waiting.filter(|event| detectors.contains(&Detector::of_plan(event.plan))).for_each(|event| *event = Event::default());
    }

    #[inline]
    fn buckets(&self, key: u64) -> (usize, usize) {
        (self.first_bucket(key), self.second_bucket(key))
    }

    #[inline]
    fn first_bucket(&self, key: u64) -> usize {
        self.scaled(key)
    }

    #[inline]
    fn second_bucket(&self, key: u64) -> usize {
        self.scaled((key >> 16).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    #[inline]
    const fn scaled(&self, hash: u64) -> usize {
        (((hash >> 32) * self.tags.len() as u64) >> 32) as usize
    }

    /// Which cells of a bucket have a tag.
    #[inline]
    fn matches(&self, bucket: usize, wanted: u16) -> u32 {
        let (rows, _) = self.tags[bucket].0.as_chunks();
        let [low, high] = [&rows[0], &rows[1]].map(|row| equal_numbers(row, wanted));
        low | high << 16
    }

    #[inline]
    fn find_in(&self, bucket: usize, key: u64) -> Option<usize> {
        let mut matches = self.matches(bucket, tag(key));
        while matches != 0 {
            let position = bucket * BUCKET + matches.trailing_zeros() as usize;
            if self.cell(position).key == key {
                return Some(position);
            }
            matches &= matches - 1;
        }
        None
    }
}

/// Gives all lists of a cell back.
pub fn clear_lists(cell: &mut Cell, pool: &mut Pool) {
    if cell.is_single() || cell.alert() != 0 {
        return;
    }
    for place in list_places(cell) {
        let mut list = cell.list(place);
        pool.clear(&mut list);
        cell.put(place, list);
    }
    if Detector::of_plan(cell.plan).keeps_counter() {
        cell.set_counter(0);
    }
}

/// Where a cell has lists: none if it has none, and detectors may keep a plain number in the third place, which has no block.
fn list_places(cell: &Cell) -> impl Iterator<Item = usize> + use<> {
    let (has_lists, keeps_counter) = (cell.has_lists(), Detector::of_plan(cell.plan).keeps_counter());
    (0..=EVIDENCE).filter(move |&place| has_lists && !(keeps_counter && place == super::rules::COUNTER))
}

/// The key that looks at nearly all that this one looks at: that of `crawl` to one of `forced_browsing`, and the other way round.
fn mate_of(cell: &Cell) -> Option<u64> {
    let mates = [Detector::ForcedBrowsing.plan(0), Detector::Crawl.plan(0)];
    mates.contains(&cell.plan).then_some(cell.key ^ u64::from(mates[0] ^ mates[1]))
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
            // Of a source and host one to three keys, which differ in their tags only.
            let keys = |n: u64| (1..=1 + n % 3).map(move |plan| Event { key: event(n).key ^ plan, ..Event::default() });
            while !table.is_crowded() {
                n += 1;
                for event in keys(n) {
                    assert!(table.insert(Cell::single(&event)).is_some(), "{} keys of {}", table.live(), table.capacity());
                }
            }
            assert!((1..=n - (seed << 32)).flat_map(|m| keys((seed << 32) + m)).all(|event| table.find(event.key).is_some()));
        }
    }

    /// Up to four fifths, among keys of other detectors.
    #[test]
    fn nearly_all_mates_lie_beside_each_other() {
        let mut table = KeyTable::new(1 << 16);
        let plans = [Detector::ForcedBrowsing, Detector::Scanner, Detector::Crawl].map(|detector| detector.plan(0));
        let of = |n: u64, plan: u16| Event { key: event(n).key ^ u64::from(plan), plan, ..Event::default() };
        let mut count = 0;
        while !table.is_crowded() {
            for plan in plans.into_iter().filter(|plan| *plan != plans[1] || count % 4 == 0) {
                table.insert(Cell::single(&of(count, plan))).expect("there is room");
            }
            count += 1;
        }
        let place = |n, plan| table.find(of(n, plan).key).expect("it was put in");
        let beside = (0..count).filter(|&n| place(n, plans[0]) == place(n, plans[2]) ^ 1).count() as u64;
        assert!(beside * 100 > count * 97, "{beside} of {count}");
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
    fn probation_forgets_the_detectors_that_changed_and_no_others() {
        let mut table = KeyTable::new(1024);
        let of = |detector: Detector, n| Event { plan: detector.plan(0), ..event(n) };
        for first in [of(Detector::Crawl, 1), of(Detector::Scanner, 2)] {
            assert!(table.probation(&first).is_none());
        }
        table.forget_probation(&[Detector::Crawl]);
        assert!(table.probation(&of(Detector::Crawl, 1)).is_none(), "forgotten");
        assert!(table.probation(&of(Detector::Scanner, 2)).is_some(), "it changed in nothing");
    }

    #[test]
    fn a_network_is_full_at_a_64th() {
        let mut table = KeyTable::new(6400);
        let slot = KeyTable::network_slot(5);
        for n in 0..100 {
            assert!(!table.is_network_full(slot), "{n}");
            table.insert(Cell::single(&Event { network: slot, ..event(n) }));
        }
        assert!(table.is_network_full(slot) && !table.is_network_full(0));
        table.remove(table.find(event(3).key).expect("it is there"));
        assert!(!table.is_network_full(slot));
    }
}
