//! Keyed 64-bit fingerprints: what state is kept under, and what tells values apart.
//!
//! Not cryptographic, but keyed: without the seed nobody can choose values that collide. Two different values are taken for
//! the same with probability 2⁻⁶⁴.
//!
//! **Why keyed.** A path, a user agent or a host is what a stranger sends. Whoever could make two that collide would be counted
//! as another, or not counted at all; whoever could aim at a bucket of a table would push others out of it. The seed is drawn
//! when the server starts and never shown, nor is any fingerprint.

use foldhash::SharedSeed;
use foldhash::quality::SeedableRandomState;
use std::hash::{BuildHasher, Hasher};

/// Makes fingerprints under one seed.
#[derive(Clone, Debug)]
pub struct Fingerprints {
    state: SeedableRandomState,
    seeds: [u64; 3],
}

const ODD: u64 = 0x9e37_79b9_7f4a_7c15;

impl Fingerprints {
    /// The fingerprints of a seed.
    pub fn new(seed: u64) -> Self {
        // The shared part is the same everywhere, so that the same seed gives the same fingerprints in every run.
        static SHARED: SharedSeed = SharedSeed::from_u64(0x706f_7374_616e_616c);
        Self {
            state: SeedableRandomState::with_seed(seed, &SHARED),
            seeds: [mix(seed), mix(seed.wrapping_add(ODD)), mix(seed.wrapping_sub(ODD))],
        }
    }

    /// Of bytes.
    #[inline]
    pub fn bytes(&self, bytes: &[u8]) -> u64 {
        let mut hasher = self.state.build_hasher();
        hasher.write(bytes);
        hasher.finish()
    }

    /// Of two numbers, in this order: two folded multiplications, as foldhash and wyhash make of 16 bytes.
    #[inline]
    pub const fn pair(&self, one: u64, other: u64) -> u64 {
        let [first, second, third] = self.seeds;
        fold(fold(one ^ first, other ^ second) ^ third, ODD)
    }
}

/// The halves of a product of 128 bits, one over the other.
#[inline]
const fn fold(one: u64, other: u64) -> u64 {
    let product = one as u128 * other as u128;
    (product >> 64) as u64 ^ product as u64
}

/// The finaliser of splitmix64.
#[inline]
pub const fn mix(mut x: u64) -> u64 {
    x ^= x >> 30;
    x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^= x >> 27;
    x = x.wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn different_values_differ_and_the_seed_counts() {
        let (one, other) = (Fingerprints::new(1), Fingerprints::new(2));
        let of = |prints: &Fingerprints| -> HashSet<u64> {
            let texts = (0..1000).map(|n| prints.bytes(format!("/{n}").as_bytes()));
            texts.chain((0..100).flat_map(|a| (0..10).map(move |b| prints.pair(a, b)))).collect()
        };
        assert_eq!(of(&one).len(), 2000);
        assert_eq!(of(&one).intersection(&of(&other)).count(), 0);
        assert_eq!(one.bytes(b"x"), Fingerprints::new(1).bytes(b"x"));
    }
}
