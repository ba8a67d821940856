//! Lists of numbers for keys that need them: blocks of 32 bytes to 16 KiB from one flat region of fixed size.
//!
//! The region is pages of 16 KiB. A page serves blocks of one size while any of them is in use; then it may serve another size.
//! So no pattern of use can leave room that is of no use: where more than a page's worth of blocks of a size lie free on several
//! pages, one of them can be emptied by moving what is on it to the others ([`Pool::page_to_empty`]). For that each block knows
//! the cell that it belongs to. Nothing is ever handed to the system: the region is the bound, and whoever works with keys
//! makes room before it is used up ([`Pool::is_short`]). Positions instead of pointers, so that the region can be copied as it is.

use crate::arena::mapping::{on_huge_pages, prefetch};

/// Words of the smallest block.
const UNIT_WORDS: usize = 4;
/// Words of a line of the cache.
const LINE_WORDS: usize = 8;
/// Sizes: `UNIT_WORDS << class` words.
const CLASSES: usize = 10;
/// Units of a page, which is the largest block.
const PAGE_UNITS: usize = 1 << (CLASSES - 1);
/// Bytes of a page.
pub const PAGE_BYTES: usize = PAGE_UNITS * UNIT_WORDS * 8;
/// Pages that a [`List`] can point at: 8 GiB.
const PAGES_MAX: usize = (1 << 28) / PAGE_UNITS;
/// Pages that an event may need: each of the four lists of its key may grow, each by one size.
const PAGES_RESERVED: usize = 4;
/// Free pages below which room is made, little by little.
const PAGES_LOW: usize = 2 * PAGES_RESERVED;
/// Pages of a size that are compared when one is to be emptied.
const CANDIDATES: usize = 16;
/// Stands for no page, and for no unit of a page.
const NONE: u32 = u32::MAX;

/// A list in a pool: its block, and how many words of it are in use. The default is the empty list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct List {
    /// Unit at which the block begins × 16 + its size + 1; 0 is no block.
    pub block: u32,
    /// Words in the list.
    pub words: u16,
}

impl List {
    const fn new(unit: u32, words: usize, class: usize) -> Self {
        Self { block: block_of(unit, class), words: words as u16 }
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

    /// Of a list that has a block.
    const fn class(self) -> usize {
        (self.block & 15) as usize - 1
    }

    const fn capacity(self) -> usize {
        if self.block == 0 { 0 } else { UNIT_WORDS << self.class() }
    }
}

const fn block_of(unit: u32, class: usize) -> u32 {
    unit << 4 | (class as u32 + 1)
}

/// Blocks of a page.
const fn blocks_of_page(class: usize) -> usize {
    PAGE_UNITS >> class
}

/// A page in use, or, where only `next` counts, one that is free again.
#[derive(Clone, Copy, Debug)]
struct Page {
    /// Neighbours among the pages of its size that have free blocks, or the next free page.
    next: u32,
    previous: u32,
    /// The first of its blocks that is free again; each holds the next in its first word.
    free: u32,
    /// Blocks in use.
    live: u16,
    /// Blocks that were ever used since it serves this size.
    carved: u16,
    class: u8,
}

/// See the module.
#[derive(Debug)]
pub struct Pool {
    words: Vec<u64>,
    /// The word at which unit 0 stands: the first of a line of the cache.
    base: usize,
    pages: Vec<Page>,
    /// The cell of the block that begins at a unit.
    owners: Vec<u32>,
    /// The first page of each size that has free blocks.
    partial: [u32; CLASSES],
    /// Free blocks on those pages.
    free_blocks: [usize; CLASSES],
    /// The first page that is free again.
    free_page: u32,
    free_pages: usize,
    /// Pages that were ever used.
    opened: usize,
    used_words: usize,
    /// The cell that blocks are taken for.
    pub owner: u32,
    /// Entries dropped because the pool was used up: none, as long as room is made whenever it is short.
    pub entries_dropped: u64,
}

impl Pool {
    /// A pool of about `bytes`, a page at least.
    pub fn new(bytes: usize) -> Self {
        let pages = (bytes / PAGE_BYTES).clamp(1, PAGES_MAX);
        let words = on_huge_pages(pages * PAGE_UNITS * UNIT_WORDS + LINE_WORDS, 0);
        let base = words.as_ptr().align_offset(64).min(LINE_WORDS);
        let page = Page { next: NONE, previous: NONE, free: NONE, live: 0, carved: 0, class: 0 };
        Self {
            words,
            base,
            pages: vec![page; pages],
            owners: on_huge_pages(pages * PAGE_UNITS, 0),
            partial: [NONE; CLASSES],
            free_blocks: [0; CLASSES],
            free_page: NONE,
            free_pages: pages,
            opened: 0,
            used_words: 0,
            owner: 0,
            entries_dropped: 0,
        }
    }

    /// Bytes in use.
    pub const fn used_bytes(&self) -> usize {
        self.used_words * 8
    }

    /// Bytes that there are.
    pub const fn bytes(&self) -> usize {
        self.pages.len() * PAGE_BYTES
    }

    /// Whether room is to be made: whatever an event needs now is there as long as [`Self::has_reserve`].
    #[inline]
    pub const fn is_short(&self) -> bool {
        self.free_pages < PAGES_LOW
    }

    /// Whether there are as many free pages as the lists of a key may need for an event.
    pub const fn has_reserve(&self) -> bool {
        self.free_pages >= PAGES_RESERVED
    }

    /// Whether half of the region is in use: what is not needed to decide has to wait.
    #[inline]
    pub const fn is_half_full(&self) -> bool {
        self.used_bytes() * 2 > self.bytes()
    }

    /// Brings the first and the last line of a list into the cache.
    #[inline]
    pub fn prefetch(&self, list: List) {
        self.prefetch_word(list.start());
        // A list that is shorter lies in one line.
        if list.words() > LINE_WORDS {
            self.prefetch_word(list.start() + list.words() - 1);
        }
    }

    /// Brings the line into the cache to which the next entry of a list goes.
    #[inline]
    pub fn prefetch_end(&self, list: List) {
        self.prefetch_word(list.start() + list.words().min(list.capacity().saturating_sub(1)));
    }

    #[inline]
    fn prefetch_word(&self, at: usize) {
        if let Some(word) = self.words.get(self.base + at) {
            prefetch(word);
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

    /// Appends an entry. More than `entries_max` never stay: the oldest yields. `false`: there is no room for even one.
    pub fn push<const N: usize>(&mut self, list: &mut List, entry: [u64; N], entries_max: usize) -> bool {
        while list.words() + N > entries_max * N && !list.is_empty() {
            self.drop_front(list, N);
        }
        if list.words() + N > list.capacity() && !self.grow(list, N) {
            self.entries_dropped += 1;
            if list.capacity() < N {
                return false;
            }
            self.drop_front(list, N);
        }
        let end = self.base + list.start() + list.words();
        self.words[end..end + N].copy_from_slice(&entry);
        list.words += N as u16;
        true
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

    /// A block, from the first page of its size that has a free one.
    fn take(&mut self, class: usize) -> Option<u32> {
        let number = if self.partial[class] == NONE { self.open_page(class)? } else { self.partial[class] };
        let page = &mut self.pages[number as usize];
        let within = if page.free == NONE {
            page.carved += 1;
            u32::from(page.carved - 1) << class
        } else {
            page.free
        };
        let unit = number * PAGE_UNITS as u32 + within;
        if page.free == within {
            page.free = self.words[self.base + unit as usize * UNIT_WORDS] as u32;
        }
        page.live += 1;
        let is_full = usize::from(page.live) == blocks_of_page(class);
        self.owners[unit as usize] = self.owner;
        self.free_blocks[class] -= 1;
        self.used_words += UNIT_WORDS << class;
        if is_full {
            self.unlink(number);
        }
        Some(unit)
    }

    fn give_back(&mut self, unit: u32, class: usize) {
        let number = unit / PAGE_UNITS as u32;
        let page = &mut self.pages[number as usize];
        self.words[self.base + unit as usize * UNIT_WORDS] = u64::from(page.free);
        page.free = unit % PAGE_UNITS as u32;
        let was_full = usize::from(page.live) == blocks_of_page(class);
        page.live -= 1;
        let is_empty = page.live == 0;
        self.free_blocks[class] += 1;
        self.used_words -= UNIT_WORDS << class;
        if was_full {
            self.link(number);
        }
        if is_empty {
            self.unlink(number);
            self.free_blocks[class] -= blocks_of_page(class);
            self.close_page(number);
        }
    }

    /// A page for blocks of a size.
    fn open_page(&mut self, class: usize) -> Option<u32> {
        let number = if self.free_page != NONE {
            let number = self.free_page;
            self.free_page = self.pages[number as usize].next;
            number
        } else if self.opened < self.pages.len() {
            self.opened += 1;
            self.opened as u32 - 1
        } else {
            return None;
        };
        self.free_pages -= 1;
        self.pages[number as usize] = Page { next: NONE, previous: NONE, free: NONE, live: 0, carved: 0, class: class as u8 };
        self.free_blocks[class] += blocks_of_page(class);
        self.link(number);
        Some(number)
    }

    const fn close_page(&mut self, number: u32) {
        self.pages.as_mut_slice()[number as usize].next = self.free_page;
        self.free_page = number;
        self.free_pages += 1;
    }

    fn link(&mut self, number: u32) {
        let class = usize::from(self.pages[number as usize].class);
        let first = std::mem::replace(&mut self.partial[class], number);
        if let Some(next) = self.pages.get_mut(first as usize) {
            next.previous = number;
        }
        let page = &mut self.pages[number as usize];
        (page.next, page.previous) = (first, NONE);
    }

    fn unlink(&mut self, number: u32) {
        let Page { next, previous, class, .. } = self.pages[number as usize];
        if let Some(next) = self.pages.get_mut(next as usize) {
            next.previous = previous;
        }
        match self.pages.get_mut(previous as usize) {
            Some(previous) => previous.next = next,
            None => self.partial[usize::from(class)] = next,
        }
    }

    /// A page with few blocks in use, for all of which there is room on other pages of their size. It serves no more: the caller
    /// moves what [`Self::block`] says and tells [`Self::emptied`].
    pub fn page_to_empty(&mut self) -> Option<u32> {
        let mut fewest = (usize::MAX, NONE);
        for class in 0..CLASSES {
            if self.free_blocks[class] < blocks_of_page(class) {
                continue;
            }
            let mut number = self.partial[class];
            for _ in 0..CANDIDATES {
                let Some(page) = self.pages.get(number as usize) else { break };
                fewest = fewest.min((usize::from(page.live) << class, number));
                number = page.next;
            }
        }
        let (_, number) = fewest;
        let Page { class, live, .. } = *self.pages.get(number as usize)?;
        self.unlink(number);
        self.free_blocks[usize::from(class)] -= blocks_of_page(usize::from(class)) - usize::from(live);
        Some(number)
    }

    /// What a list has as its block, and the cell of that list, of one of the blocks of a page, free or not; `None` after the last.
    pub fn block(&self, number: u32, at: u32) -> Option<(u32, usize)> {
        let Page { carved, class, .. } = self.pages[number as usize];
        let unit = number * PAGE_UNITS as u32 + (at << class);
        (at < u32::from(carved)).then(|| (block_of(unit, usize::from(class)), self.owners[unit as usize] as usize))
    }

    /// Moves a list from a page that is to be emptied to another one.
    pub fn move_away(&mut self, list: &mut List) {
        let class = list.class();
        self.owner = self.owners[list.unit() as usize];
        let Some(unit) = self.take(class) else { return };
        let (from, words) = (self.base + list.start(), list.words());
        self.pages[list.unit() as usize / PAGE_UNITS].live -= 1;
        self.used_words -= UNIT_WORDS << class;
        *list = List::new(unit, words, class);
        self.words.copy_within(from..from + words, self.base + list.start());
    }

    /// What was on a page is moved.
    pub fn emptied(&mut self, number: u32) {
        debug_assert_eq!(self.pages[number as usize].live, 0, "each block has an owner");
        self.close_page(number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn empty(pool: &mut Pool, page: u32, lists: &mut [List]) {
        for (block, owner) in (0..).map_while(|at| pool.block(page, at)).collect::<Vec<_>>() {
            if lists[owner].block == block {
                pool.move_away(&mut lists[owner]);
            }
        }
        pool.emptied(page);
    }

    #[test]
    fn a_pool_that_is_used_up_keeps_the_newest_and_counts() {
        let mut pool = Pool::new(PAGE_BYTES);
        let (mut one, mut other) = (List::default(), List::default());
        for value in 1..=6 {
            assert!(pool.push(&mut one, [value], 64), "room for some");
        }
        assert_eq!((pool.get(one), pool.entries_dropped), (&[3, 4, 5, 6][..], 2), "the only page serves another size");
        assert!(pool.push(&mut other, [7], 64));
        pool.clear(&mut one);
        pool.clear(&mut other);
        let mut large = List::default();
        assert!(pool.push(&mut large, [7; 100], 1) && pool.entries_dropped == 2, "the page serves any size again");
        assert!(!pool.push(&mut other, [7], 64) && pool.get(other).is_empty() && pool.entries_dropped == 3);
    }

    /// As many lists as fill the pool, of which all but one of each page go: one list of the largest size needs a page.
    #[test]
    fn pages_of_which_little_is_left_are_emptied() {
        let mut pool = Pool::new(8 * PAGE_BYTES);
        let mut lists = [List::default(); 8 * PAGE_UNITS];
        for (at, list) in lists.iter_mut().enumerate() {
            pool.owner = at as u32;
            assert!(pool.push(list, [at as u64], 64));
        }
        assert_eq!((pool.free_pages, pool.page_to_empty()), (0, None), "nothing is free");
        for (at, list) in lists.iter_mut().enumerate().filter(|(at, _)| at % PAGE_UNITS != 9) {
            assert_eq!(pool.get(*list), [at as u64]);
            pool.clear(list);
        }
        while let Some(page) = pool.page_to_empty() {
            empty(&mut pool, page, &mut lists);
        }
        assert_eq!((pool.free_pages, pool.used_bytes()), (7, 8 * 32));
        for at in (0..lists.len()).filter(|at| at % PAGE_UNITS == 9) {
            assert_eq!(pool.get(lists[at]), [at as u64]);
            assert_eq!(pool.owners[lists[at].unit() as usize], at as u32);
        }
    }

    proptest! {
        #[test]
        fn lists_are_first_in_first_out_and_never_mix(
            steps in proptest::collection::vec((0usize..6, 0u8..8, any::<u64>()), 0..600),
        ) {
            let mut pool = Pool::new(8 * PAGE_BYTES);
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
                    2 => {
                        if let Some(page) = pool.page_to_empty() {
                            empty(&mut pool, page, &mut lists);
                        }
                    }
                    _ => {
                        pool.owner = which as u32;
                        pool.push(&mut lists[which], [value, 1, 2], 40);
                        models[which].push([value, 1, 2]);
                        if models[which].len() > 40 { models[which].remove(0); }
                    }
                }
                for (list, model) in lists.iter().zip(&models) {
                    prop_assert_eq!(pool.entries::<3>(*list), &model[..]);
                }
            }
            prop_assert_eq!(pool.entries_dropped, 0);
            lists.iter_mut().for_each(|list| pool.clear(list));
            prop_assert_eq!((pool.used_bytes(), pool.free_pages), (0, 8));
        }
    }
}
