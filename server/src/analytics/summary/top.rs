//! The most frequent of very many values, in fixed memory: a blocked count-min sketch with a map of candidates.
//!
//! ```text
//! candidates   sets of 4: fingerprint, count, error of each; beside them what a value is to be shown as
//! sketch       blocks of 16 counters, one block a value, 4 counters of it: one cache line
//! ```
//!
//! A value is looked for among the candidates of its set. If it is one, its count goes up, exactly. Else the sketch counts it
//! (conservatively: only its smallest counters go up), and if the sketch's estimate is over the least candidate of the set, it
//! takes that one's place, and the sketch is told that one's count. **Laws**: a count is at least the truth and at most too
//! large by its error; a value that is no candidate was seen at most [`TopList::floor`] times.

use crate::arena::mapping::prefetch;

/// Ways of a set.
const WAYS: usize = 4;
/// Counters of a block.
const COUNTERS: usize = 16;

/// Four candidates, one cache line.
#[derive(Clone, Copy, Debug, Default)]
#[repr(align(64))]
struct Set {
    fingerprints: [u64; WAYS],
    counts: [u32; WAYS],
    errors: [u32; WAYS],
}

const _: () = assert!(size_of::<Set>() == 64);

/// What a candidate is shown as.
#[derive(Clone, Copy, Debug, Default)]
struct Label {
    application: i32,
    length: u32,
    number: u64,
}

/// A candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate<'a> {
    /// Application.
    pub application: i32,
    /// What stands for the value, if that is a number.
    pub number: u64,
    /// Its text, cut.
    pub text: &'a [u8],
    /// How often, at most.
    pub count: u32,
    /// It may be less by this.
    pub error: u32,
}

/// See the module.
#[derive(Debug)]
pub struct TopList {
    sets: Vec<Set>,
    labels: Vec<Label>,
    texts: Vec<u8>,
    text_bytes_max: usize,
    sketch: Vec<[u32; COUNTERS]>,
    /// Values counted.
    pub total: u64,
}

impl TopList {
    /// A list of so many candidates with texts of so many bytes, over a sketch of so many blocks; powers of two.
    pub fn new(candidates: usize, text_bytes_max: usize, blocks: usize) -> Self {
        Self {
            sets: vec![Set::default(); candidates / WAYS],
            labels: vec![Label::default(); candidates],
            texts: vec![0; candidates * text_bytes_max],
            text_bytes_max,
            sketch: vec![[0; COUNTERS]; blocks],
            total: 0,
        }
    }

    /// Brings what [`Self::count`] will look at into the cache.
    #[inline]
    pub fn prefetch(&self, fingerprint: u64) {
        prefetch(&self.sets[set_of(fingerprint, self.sets.len())]);
        prefetch(&self.sketch[block_of(fingerprint, self.sketch.len())]);
    }

    /// Counts a value. `fingerprint` tells values apart, application and all; its text is asked for when it is to be shown.
    #[inline]
    pub fn count<'a>(&mut self, fingerprint: u64, application: i32, number: u64, text: impl FnOnce() -> &'a [u8]) {
        self.total += 1;
        // That of a free way is 0.
        let fingerprint = fingerprint.max(1);
        let at = set_of(fingerprint, self.sets.len());
        let set = &mut self.sets[at];
        match set.fingerprints.iter().position(|known| *known == fingerprint) {
            Some(way) => set.counts[way] = set.counts[way].saturating_add(1),
            None => self.count_other(fingerprint, application, number, text),
        }
    }

    #[inline(never)]
    fn count_other<'a>(&mut self, fingerprint: u64, application: i32, number: u64, text: impl FnOnce() -> &'a [u8]) {
        let estimate = self.raise(fingerprint, 1);
        let at = set_of(fingerprint, self.sets.len());
        let set = &self.sets[at];
        let Some(way) = (0..WAYS).min_by_key(|way| set.counts[*way]) else { return };
        let (yielding, count) = (set.fingerprints[way], set.counts[way]);
        if estimate <= count {
            return;
        }
        if count > 0 {
            self.raise_to(yielding, count);
        }
        let set = &mut self.sets[at];
        (set.fingerprints[way], set.counts[way], set.errors[way]) = (fingerprint, estimate, estimate - 1);
        let slot = at * WAYS + way;
        let text = text();
        let text = &text[..text.len().min(self.text_bytes_max)];
        self.labels[slot] = Label { application, length: text.len() as u32, number };
        self.texts[slot * self.text_bytes_max..][..text.len()].copy_from_slice(text);
    }

    /// No value that is no candidate was seen more often.
    pub fn floor(&self) -> u32 {
        self.sets.iter().map(|set| set.counts.iter().copied().min().unwrap_or(0)).max().unwrap_or(0)
    }

    /// The candidates, in no order.
    pub fn candidates(&self) -> impl Iterator<Item = Candidate<'_>> {
        let slots = self.sets.iter().flat_map(|set| (0..WAYS).map(move |way| (set.counts[way], set.errors[way])));
        slots.zip(&self.labels).enumerate().filter(|(_, ((count, _), _))| *count > 0).map(|(slot, ((count, error), label))| {
            let text = &self.texts[slot * self.text_bytes_max..][..label.length as usize];
            Candidate { application: label.application, number: label.number, text, count, error }
        })
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.sets.fill(Set::default());
        self.sketch.fill([0; COUNTERS]);
        self.total = 0;
    }

    /// Counts in the sketch; returns the new estimate.
    fn raise(&mut self, fingerprint: u64, by: u32) -> u32 {
        let places = places(fingerprint);
        let block = &self.sketch[block_of(fingerprint, self.sketch.len())];
        let least = places.iter().map(|place| block[*place]).min().unwrap_or(0);
        let estimate = least.saturating_add(by);
        self.raise_to(fingerprint, estimate);
        estimate
    }

    fn raise_to(&mut self, fingerprint: u64, count: u32) {
        let at = block_of(fingerprint, self.sketch.len());
        for place in places(fingerprint) {
            let counter = &mut self.sketch[at][place];
            *counter = (*counter).max(count);
        }
    }
}

const fn set_of(fingerprint: u64, sets: usize) -> usize {
    (fingerprint >> 40) as usize & (sets - 1)
}

const fn block_of(fingerprint: u64, blocks: usize) -> usize {
    fingerprint as usize & (blocks - 1)
}

/// Four counters of a block, one in each quarter, so that they differ.
const fn places(fingerprint: u64) -> [usize; 4] {
    let bits = (fingerprint >> 24) as usize;
    [bits & 3, 4 | bits >> 2 & 3, 8 | bits >> 4 & 3, 12 | bits >> 6 & 3]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analytics::fingerprint::mix;
    use proptest::prelude::*;
    use std::collections::HashMap;

    proptest! {
        /// Even where everything collides: a few sets, a few blocks.
        #[test]
        fn counts_are_right_within_their_error(values in prop::collection::vec(0u64..400, 0..3000)) {
            let (mut list, mut exact) = (TopList::new(16, 4, 4), HashMap::<u64, u32>::new());
            for value in &values {
                // Small values come often.
                let value = value * value / 400;
                let text = value.to_string();
                list.count(mix(value + 1), (value % 3) as i32, value, || text.as_bytes());
                *exact.entry(value).or_default() += 1;
            }
            prop_assert_eq!(list.total, values.len() as u64);
            let found: Vec<_> = list.candidates().collect();
            for candidate in &found {
                let count = exact[&candidate.number];
                prop_assert!(candidate.count >= count && candidate.count - candidate.error <= count);
                let text = candidate.number.to_string();
                prop_assert_eq!(candidate.text, text.as_bytes());
                prop_assert_eq!(candidate.application, (candidate.number % 3) as i32);
            }
            for (value, count) in &exact {
                prop_assert!(*count <= list.floor() || found.iter().any(|candidate| candidate.number == *value));
            }
        }
    }

    #[test]
    fn the_frequent_are_found_among_very_many() {
        let mut list = TopList::new(1024, 8, 4096);
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..400_000 {
            let value = if random.u32(..10) == 0 { random.u64(..20) } else { 20 + random.u64(..100_000) };
            list.count(mix(value + 1), 0, value, || b"");
        }
        let mut top: Vec<_> = list.candidates().map(|one| (one.count - one.error, one.number)).collect();
        top.sort_unstable_by(|left, right| right.cmp(left));
        let mut numbers: Vec<u64> = top[..20].iter().map(|one| one.1).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (0..20).collect::<Vec<_>>(), "{top:?}");
        assert!(top[..20].iter().all(|one| (1500..2500).contains(&one.0)));
    }

    #[test]
    fn a_cleared_list_is_empty() {
        let mut list = TopList::new(16, 4, 4);
        list.count(mix(1), 0, 1, || b"long text");
        assert_eq!(list.candidates().next().expect("one").text, b"long");
        list.clear();
        assert_eq!((list.candidates().count(), list.total, list.floor()), (0, 0, 0));
    }
}
