//! Which sources took part in which attacks, beyond those that an attack has counters for.
//!
//! One table of fixed size for all attacks, in sets of eight, the newest of a set first: a pair of attack and source is a
//! fingerprint of 32 bits in one of the sets, the oldest of which is forgotten and counted. A single attack may have it all. That
//! two pairs look alike is rare: whoever asks which of 16,384 attacks a source took part in is told a wrong one once in some 30,000
//! times, if the table is full. Pages ask; nothing is decided by it.

use crate::analytics::fingerprint::mix;

/// Pairs that there is room for, 4 MiB. Of a quarter as many practically all are known, of half as many 99 %, of as many 86 %.
pub const PAIRS: usize = 1 << 20;
const WAYS: usize = 8;

/// See the module.
#[derive(Debug)]
pub struct Partakers {
    sets: Vec<[u32; WAYS]>,
    /// Pairs that yielded. One that comes again is counted again, and its attack may be forgotten itself.
    pub forgotten: u64,
}

impl Partakers {
    /// Room for about `pairs`. Memory is taken when it is needed.
    pub fn with_room(pairs: usize) -> Self {
        Self { sets: vec![[0; WAYS]; pairs.div_ceil(WAYS).max(1)], forgotten: 0 }
    }

    /// A source took part in an attack.
    pub fn remember(&mut self, attack: u64, source: u64) {
        let (at, print) = self.place(attack, source);
        let set = &mut self.sets[at];
        let known = set.iter().position(|known| *known == print);
        self.forgotten += u64::from(known.is_none() && set[WAYS - 1] != 0);
        set[..=known.unwrap_or(WAYS - 1)].rotate_right(1);
        set[0] = print;
    }

    /// Whether it probably did; `false` may also be that it was forgotten.
    pub fn knows(&self, attack: u64, source: u64) -> bool {
        let (at, print) = self.place(attack, source);
        self.sets[at].contains(&print)
    }

    /// The set of a pair and its fingerprint there, which is not 0. The id of an attack is made of keyed fingerprints.
    const fn place(&self, attack: u64, source: u64) -> (usize, u32) {
        let pair = mix(attack ^ mix(source));
        let print = pair as u32;
        let at = ((pair >> 32) * self.sets.len() as u64) >> 32;
        (at as usize, if print == 0 { 1 } else { print })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_are_known_the_oldest_are_forgotten_and_counted() {
        let mut partakers = Partakers::with_room(4096);
        let known =
            |partakers: &Partakers, sources: std::ops::Range<u64>| sources.filter(|&source| partakers.knows(7, source)).count();
        (0..1000).for_each(|source| partakers.remember(7, source));
        (0..1000).for_each(|source| partakers.remember(7, source));
        assert_eq!((known(&partakers, 0..1000), partakers.forgotten), (1000, 0), "a quarter full");
        assert_eq!((known(&partakers, 1000..100_000), partakers.knows(8, 5)), (0, false), "who took no part, or in another");
        (0..100_000).for_each(|source| partakers.remember(7, source));
        assert_eq!(known(&partakers, 0..100_000) as u64 + partakers.forgotten, 100_000);
        assert!(known(&partakers, 99_000..100_000) > 990 && known(&partakers, 0..90_000) < 10);
    }
}
