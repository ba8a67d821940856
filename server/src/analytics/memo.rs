//! What was worked out of texts that come again and again, such as paths and user agents: a table of fixed size that forgets.
//!
//! An entry is found by the keyed fingerprint of its text, all 64 bits of it: 8 are said by its place, 56 are compared. A bucket
//! is one line of the cache; in a full one an entry yields that hangs on the newcomer's fingerprint, so that of a few too many texts that
//! come in turn some are still found. What is kept must depend on the text alone.

use crate::arena::mapping::{on_huge_pages, prefetch};

/// Words of a bucket.
const BUCKET_WORDS: usize = 8;
/// Fewest buckets: their number must say eight bits of a fingerprint.
const BUCKETS_MIN: usize = 1 << 8;
/// Marks an entry in use; the caller has the bits below.
const USED: u8 = 1 << 7;

#[derive(Clone, Copy, Debug, Default)]
#[repr(align(64))]
struct Bucket([u64; BUCKET_WORDS]);

/// See the module. An entry has so many words (1, 2, 4 or 8): its fingerprint less the first eight bits, with the marks behind,
/// then what is kept.
#[derive(Debug)]
pub struct Memo<const WORDS: usize> {
    buckets: Vec<Bucket>,
    shift: u32,
}

impl<const WORDS: usize> Memo<WORDS> {
    /// Room for about `entries`.
    pub fn new(entries: usize) -> Self {
        let buckets = (entries * WORDS / BUCKET_WORDS).next_power_of_two().max(BUCKETS_MIN);
        Self { buckets: on_huge_pages(buckets, Bucket::default()), shift: 64 - buckets.trailing_zeros() }
    }

    /// What is known of a text: marks, and the entry, whose first word is the caller's to ignore.
    #[inline]
    pub fn find(&self, fingerprint: u64) -> Option<(u8, &[u64; WORDS])> {
        let Bucket(words) = &self.buckets[(fingerprint >> self.shift) as usize];
        let entries = words.as_chunks().0;
        let entry = entries.iter().find(|entry| (entry[0] ^ fingerprint << 8) < 1 << 8 && entry[0] as u8 & USED != 0)?;
        Some((entry[0] as u8 & !USED, entry))
    }

    /// Keeps what was worked out. The first word of `entry` is not.
    pub fn put(&mut self, fingerprint: u64, marks: u8, mut entry: [u64; WORDS]) {
        let Bucket(words) = &mut self.buckets[(fingerprint >> self.shift) as usize];
        entry[0] = fingerprint << 8 | u64::from(marks | USED);
        let entries: &mut [[u64; WORDS]] = words.as_chunks_mut().0;
        let free = entries.iter().position(|known| known[0] as u8 & USED == 0);
        let place = free.unwrap_or(fingerprint as usize % entries.len());
        entries[place] = entry;
    }

    /// Brings the place of a text into the cache.
    #[inline]
    pub fn prefetch(&self, fingerprint: u64) {
        prefetch(&self.buckets[(fingerprint >> self.shift) as usize]);
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.buckets.fill(Bucket::default());
    }
}

#[cfg(test)]
mod tests {
    use super::super::fingerprint::mix;
    use super::*;

    #[test]
    fn what_is_found_is_what_was_put_and_an_older_yields() {
        let mut memo = Memo::<2>::new(1024);
        for n in 0..100_000u64 {
            assert_eq!(memo.find(mix(n)), None, "{n}");
            memo.put(mix(n), (n % 128) as u8, [0, n]);
            assert_eq!(memo.find(mix(n)).map(|(marks, entry)| (marks, entry[1])), Some(((n % 128) as u8, n)));
        }
        let kept = (0..100_000).filter(|&n| memo.find(mix(n)).is_some()).count();
        assert!((1000..=1024).contains(&kept), "{kept}");
        assert!((0..100).all(|n| memo.find(mix(n)).is_none()));
        // All but the first bit are the same: it is in another bucket.
        memo.put(5, 1, [0, 2]);
        assert_eq!((memo.find(5 | 1 << 63), memo.find(5).map(|(marks, _)| marks)), (None, Some(1)));
        memo.clear();
        assert_eq!((memo.find(5), memo.find(0)), (None, None));
    }
}
