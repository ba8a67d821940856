//! The most frequent of very many values, in fixed memory: SpaceSaving (Metwally, Agrawal, El Abbadi 2005) in sets of four.
//!
//! ```text
//! sets     one cache line each: fingerprint, count, error of four values
//! labels   beside them: what a value is to be shown as
//! ```
//!
//! A value is looked for in its set. If it is there, its count goes up, exactly. Else it takes the place of the one with the least
//! count, and goes on from that: by so much its count may be too large. A label is written when a place is taken for the first
//! time, and else when its value came [`LABELLED`] times since it took the place: so that what comes once costs one line of the
//! cache, and no text. **Laws**: a count is at least the truth and at most too large by its error; a value that is not
//! shown was seen at most [`TopList::floor`] times.

use crate::arena::mapping::prefetch;

/// Ways of a set.
const WAYS: usize = 4;
/// A value is shown once it came so often since it took its place from another.
const LABELLED: u32 = 8;

/// Four values, one cache line.
#[derive(Clone, Copy, Debug, Default)]
#[repr(align(64))]
struct Set {
    fingerprints: [u64; WAYS],
    counts: [u32; WAYS],
    errors: [u32; WAYS],
}

const _: () = assert!(size_of::<Set>() == 64);

/// What a value is shown as.
#[derive(Clone, Copy, Debug, Default)]
struct Label {
    /// Of the value that it was written for; the place may be another's meanwhile.
    fingerprint: u64,
    number: u64,
    application: i32,
    length: u32,
}

/// A value that is shown.
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
    /// Values counted.
    pub total: u64,
}

impl TopList {
    /// A list of so many values, a power of two, with texts of so many bytes.
    pub fn new(candidates: usize, text_bytes_max: usize) -> Self {
        Self {
            sets: vec![Set::default(); candidates / WAYS],
            labels: vec![Label::default(); candidates],
            texts: vec![0; candidates * text_bytes_max],
            text_bytes_max,
            total: 0,
        }
    }

    /// Brings what [`Self::count`] will look at into the cache.
    #[inline]
    pub fn prefetch(&self, fingerprint: u64) {
        prefetch(&self.sets[set_of(fingerprint, self.sets.len())]);
    }

    /// Counts a value. `fingerprint` tells values apart, application and all; its text is asked for when it is to be shown.
    #[inline]
    pub fn count<'a>(&mut self, fingerprint: u64, application: i32, number: u64, text: impl FnOnce() -> &'a [u8]) {
        self.total += 1;
        // That of a free way is 0.
        let fingerprint = fingerprint.max(1);
        let at = set_of(fingerprint, self.sets.len());
        let set = &mut self.sets[at];
        let way = match set.fingerprints.iter().position(|known| *known == fingerprint) {
            Some(way) => way,
            None => {
                let way = least(&set.counts);
                (set.fingerprints[way], set.errors[way]) = (fingerprint, set.counts[way]);
                way
            }
        };
        let count = set.counts[way].saturating_add(1);
        set.counts[way] = count;
        if count == 1 || count - set.errors[way] == LABELLED {
            let label = Label { fingerprint, number, application, length: 0 };
            self.label(at * WAYS + way, label, text());
        }
    }

    #[inline(never)]
    fn label(&mut self, slot: usize, label: Label, text: &[u8]) {
        let text = &text[..text.len().min(self.text_bytes_max)];
        self.labels[slot] = Label { length: text.len() as u32, ..label };
        self.texts[slot * self.text_bytes_max..][..text.len()].copy_from_slice(text);
    }

    /// No value that is not shown was seen more often.
    pub fn floor(&self) -> u32 {
        // Of what stands nowhere: the least of its set. Of what is not shown: its count.
        let least = self.sets.iter().map(|set| set.counts[least(&set.counts)]);
        let hidden =
            self.slots().filter(|(fingerprint, label, ..)| label.fingerprint != *fingerprint).map(|(_, _, _, count, _)| count);
        least.chain(hidden).max().unwrap_or(0)
    }

    /// The values that are shown, in no order.
    pub fn candidates(&self) -> impl Iterator<Item = Candidate<'_>> {
        let shown = self.slots().filter(|(fingerprint, label, ..)| *fingerprint != 0 && label.fingerprint == *fingerprint);
        shown.map(|(_, label, slot, count, error)| {
            let text = &self.texts[slot * self.text_bytes_max..][..label.length as usize];
            Candidate { application: label.application, number: label.number, text, count, error }
        })
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.sets.fill(Set::default());
        self.labels.fill(Label::default());
        self.total = 0;
    }

    /// {fingerprint, label, position, count, error} of every place.
    fn slots(&self) -> impl Iterator<Item = (u64, &Label, usize, u32, u32)> {
        let ways =
            self.sets.iter().flat_map(|set| (0..WAYS).map(move |way| (set.fingerprints[way], set.counts[way], set.errors[way])));
        ways.zip(&self.labels)
            .enumerate()
            .map(|(slot, ((fingerprint, count, error), label))| (fingerprint, label, slot, count, error))
    }
}

const fn set_of(fingerprint: u64, sets: usize) -> usize {
    (fingerprint >> 40) as usize & (sets - 1)
}

/// The way with the least count.
#[inline]
const fn least(counts: &[u32; WAYS]) -> usize {
    let low = (counts[1] < counts[0]) as usize;
    let high = 2 + (counts[3] < counts[2]) as usize;
    if counts[high] < counts[low] { high } else { low }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analytics::fingerprint::mix;
    use proptest::prelude::*;
    use std::collections::HashMap;

    proptest! {
        /// Even where everything collides: four sets.
        #[test]
        fn counts_are_right_within_their_error(values in prop::collection::vec(0u64..400, 0..3000)) {
            let (mut list, mut exact) = (TopList::new(16, 4), HashMap::<u64, u32>::new());
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
        let mut list = TopList::new(1024, 8);
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
        let mut list = TopList::new(16, 4);
        list.count(mix(1), 0, 1, || b"long text");
        assert_eq!(list.candidates().next().expect("one").text, b"long");
        list.clear();
        assert_eq!((list.candidates().count(), list.total, list.floor()), (0, 0, 0));
    }
}
