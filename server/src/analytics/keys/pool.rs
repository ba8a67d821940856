//! Lists of numbers for keys that need them: blocks of 32 bytes to 16 KiB from one flat region of fixed size.
//!
//! A block that is given back serves its size again; a size that has run out takes a larger block apart. Nothing moves,
//! nothing is ever handed to the system: the region is the bound. When it is used up, a list drops its oldest entry for a new
//! one, and [`Pool::shortages`] counts it. Positions instead of pointers, so that the region can be copied as it is.

use crate::arena::mapping::{on_huge_pages, prefetch};

/// Words of the smallest block.
const UNIT_WORDS: usize = 4;
/// Sizes: `UNIT_WORDS << class` words.
const CLASSES: usize = 10;
/// Units that a [`List`] can point at: 8 GiB.
const UNITS_MAX: usize = 1 << 28;

/// A list in a pool: its block, and how many words of it are in use. The default is the empty list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct List {
    /// Unit at which the block begins × 16 + its size; 0 is no block.
    pub block: u32,
    /// Words in the list.
    pub words: u16,
}

impl List {
    const fn new(unit: u32, words: usize, class: usize) -> Self {
        Self { block: unit << 4 | class as u32, words: words as u16 }
    }

    /// Words in the list.
    pub const fn words(self) -> usize {
        self.words as usize
    }

    /// Whether nothing is in it.
    pub const fn is_empty(self) -> bool {
        self.words == 0
    }

    const fn unit(self) -> u32 {
        self.block >> 4
    }

    const fn start(self) -> usize {
        self.unit() as usize * UNIT_WORDS
    }

    const fn class(self) -> usize {
        (self.block & 15) as usize
    }

    const fn capacity(self) -> usize {
        if self.block == 0 { 0 } else { UNIT_WORDS << self.class() }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Pool {
    words: Vec<u64>,
    /// The word at which unit 0 stands: the first of a line of the cache.
    base: usize,
    /// The first unit that was never used. Unit 0 is none.
    untouched: usize,
    /// The first free block of each size; each holds the next in its first word.
    free: [u32; CLASSES],
    free_words: usize,
    shortages: u64,
}

impl Pool {
    /// A pool of about `bytes`.
    pub fn new(bytes: usize) -> Self {
        let units = (bytes / (UNIT_WORDS * 8)).clamp(2, UNITS_MAX);
        let words = on_huge_pages((units + 2) * UNIT_WORDS, 0);
        let base = words.as_ptr().align_offset(64).min(2 * UNIT_WORDS);
        Self { words, base, untouched: 1, free: [0; CLASSES], free_words: 0, shortages: 0 }
    }

    /// Bytes in use.
    pub const fn used_bytes(&self) -> usize {
        (self.untouched * UNIT_WORDS - self.free_words) * 8
    }

    /// Entries dropped because the pool was used up.
    pub const fn shortages(&self) -> u64 {
        self.shortages
    }

    /// Whether half of the region is in use: what is not needed to decide has to wait.
    #[inline]
    pub const fn is_half_full(&self) -> bool {
        self.used_bytes() * 2 > self.units() * UNIT_WORDS * 8
    }

    /// Brings the first and the last line of a list into the cache.
    #[inline]
    pub fn prefetch(&self, list: List) {
        let start = self.base + list.start();
        for at in [start, start + list.words()] {
            if let Some(word) = self.words.get(at) {
                prefetch(word);
            }
        }
    }

    /// What is in a list.
    #[inline]
    pub fn get(&self, list: List) -> &[u64] {
        let start = self.base + list.start();
        self.words.get(start..start + list.words()).unwrap_or_default()
    }

    /// What is in a list of entries of `N` words.
    #[inline]
    pub fn entries<const N: usize>(&self, list: List) -> &[[u64; N]] {
        self.get(list).as_chunks().0
    }

    /// Appends an entry. More than `entries_max` never stay: the oldest yields.
    pub fn push<const N: usize>(&mut self, list: &mut List, entry: [u64; N], entries_max: usize) {
        while list.words() + N > entries_max * N && !list.is_empty() {
            self.drop_front(list, N);
        }
        if list.words() + N > list.capacity() && !self.grow(list, N) {
            self.shortages += 1;
            if list.capacity() < N {
                return;
            }
            self.drop_front(list, N);
        }
        let end = self.base + list.start() + list.words();
        self.words[end..end + N].copy_from_slice(&entry);
        list.words += N as u16;
    }

    /// Drops the first `words` words; the block goes back when the list is empty.
    pub fn drop_front(&mut self, list: &mut List, words: usize) {
        let left = list.words().saturating_sub(words);
        if left == 0 {
            self.clear(list);
            return;
        }
        let start = self.base + list.start();
        let end = start + list.words();
        self.words.copy_within(end - left..end, start);
        list.words = left as u16;
    }

    /// Empties a list.
    pub fn clear(&mut self, list: &mut List) {
        if list.block != 0 {
            self.give_back(list.unit(), list.class());
            *list = List::default();
        }
    }

    /// Moves a list to a block with room for `more` words. `false`: there is none.
    fn grow(&mut self, list: &mut List, more: usize) -> bool {
        let class = (0..CLASSES).find(|class| UNIT_WORDS << class >= list.words() + more);
        let Some((class, unit)) = class.and_then(|class| Some((class, self.take(class)?))) else { return false };
        let grown = List::new(unit, list.words(), class);
        let (from, words) = (self.base + list.start(), list.words());
        self.words.copy_within(from..from + words, self.base + grown.start());
        if list.block != 0 {
            self.give_back(list.unit(), list.class());
        }
        *list = grown;
        true
    }

    const fn units(&self) -> usize {
        self.words.len() / UNIT_WORDS - 2
    }

    fn take(&mut self, class: usize) -> Option<u32> {
        let units = 1 << class;
        if self.free[class] != 0 {
            let unit = self.free[class];
            self.free[class] = self.words[self.base + unit as usize * UNIT_WORDS] as u32;
            self.free_words -= units * UNIT_WORDS;
            return Some(unit);
        }
        // A block of a line and more begins where a line does.
        if units > 1 && self.untouched % 2 == 1 && self.untouched < self.units() {
            self.untouched += 1;
            self.give_back(self.untouched as u32 - 1, 0);
        }
        if self.untouched + units <= self.units() {
            self.untouched += units;
            return Some((self.untouched - units) as u32);
        }
        // A larger block is taken apart: its first half serves, the other is free.
        if class + 1 == CLASSES {
            return None;
        }
        let unit = self.take(class + 1)?;
        self.give_back(unit + units as u32, class);
        Some(unit)
    }

    fn give_back(&mut self, unit: u32, class: usize) {
        self.words[self.base + unit as usize * UNIT_WORDS] = u64::from(self.free[class]);
        self.free[class] = unit;
        self.free_words += UNIT_WORDS << class;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_pool_that_is_used_up_keeps_the_newest_and_counts() {
        let mut pool = Pool::new(96);
        let (mut one, mut other) = (List::default(), List::default());
        for value in 1..=6 {
            pool.push(&mut one, [value], 64);
        }
        assert_eq!((pool.get(one), pool.shortages()), (&[3, 4, 5, 6][..], 2));
        pool.push(&mut other, [7], 64);
        let mut third = List::default();
        pool.push(&mut third, [8], 64);
        assert_eq!((pool.get(other), pool.get(third), pool.shortages()), (&[7][..], &[][..], 3));
        pool.clear(&mut one);
        pool.push(&mut third, [8], 64);
        assert_eq!(pool.get(third), [8]);
    }

    proptest! {
        #[test]
        fn lists_are_first_in_first_out_and_never_mix(
            steps in proptest::collection::vec((0usize..6, 0u8..8, any::<u64>()), 0..600),
        ) {
            let mut pool = Pool::new(1 << 16);
            let mut lists = [List::default(); 6];
            let mut models: [Vec<[u64; 3]>; 6] = Default::default();
            for (which, step, value) in steps {
                match step {
                    0 => { pool.clear(&mut lists[which]); models[which].clear(); }
                    1 => {
                        pool.drop_front(&mut lists[which], 6);
                        let cut = models[which].len().min(2);
                        models[which].drain(..cut);
                    }
                    _ => {
                        pool.push(&mut lists[which], [value, 1, 2], 40);
                        models[which].push([value, 1, 2]);
                        if models[which].len() > 40 { models[which].remove(0); }
                    }
                }
                for (list, model) in lists.iter().zip(&models) {
                    prop_assert_eq!(pool.entries::<3>(*list), &model[..]);
                }
            }
            prop_assert_eq!(pool.shortages(), 0);
            lists.iter_mut().for_each(|list| pool.clear(list));
            prop_assert_eq!(pool.used_bytes(), 32);
        }
    }
}
