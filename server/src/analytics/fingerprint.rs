//! Keyed 64-bit fingerprints: what state is kept under, and what tells values apart.
//!
//! Not cryptographic, but keyed: without the seed nobody can choose values that collide. Two different values are taken for
//! the same with a probability of about 2⁻⁶⁴.
//!
//! **Why keyed.** A path, a user agent or a host is what a stranger sends. Whoever could make two that collide would be counted
//! as another, or not counted at all; whoever could aim at a bucket of a table would push others out of it. So every number that
//! goes into a product is first hidden by 64 bits that only this server knows: drawn when it starts, and never shown,
//! nor is any fingerprint.

/// Makes fingerprints under one seed.
#[derive(Clone, Debug)]
pub struct Fingerprints {
    seeds: [u64; 4],
}

const ODD: u64 = 0x9e37_79b9_7f4a_7c15;

impl Fingerprints {
    /// The fingerprints of a seed.
    pub fn new(seed: u64) -> Self {
        // Not of the seed itself, of which 0 would make 0: a product with that says nothing of the text.
        let of = |step: u64| mix(seed.wrapping_add(ODD.wrapping_mul(step)));
        Self { seeds: [of(1), of(2), of(3), of(4)] }
    }

    /// Of bytes: a folded multiplication of 16 of them, as wyhash has it, in two lanes that do not wait for each other. The last
    /// bytes of a longer text are read again rather than padded, so its length goes in as well.
    #[inline]
    pub fn bytes(&self, bytes: &[u8]) -> u64 {
        let [first, second, third, fourth] = self.seeds;
        let (mut one, mut other) = (first, second);
        let (blocks, _) = bytes.as_chunks::<32>();
        for block in blocks {
            let [a, b, c, d] = words(block);
            one = fold(a ^ third, b ^ one);
            other = fold(c ^ fourth, d ^ other);
        }
        if let Some(last) = bytes.last_chunk::<32>() {
            if !bytes.len().is_multiple_of(32) {
                let [a, b, c, d] = words(last);
                one = fold(a ^ third, b ^ one);
                other = fold(c ^ fourth, d ^ other);
            }
        } else {
            let [a, b, c, d] = short(bytes);
            one = fold(a ^ third, b ^ one);
            other = fold(c ^ fourth, d ^ other);
        }
        fold(fold(one ^ second, other ^ third) ^ fourth ^ bytes.len() as u64, ODD)
    }

    /// Of two numbers, in this order: two folded multiplications, as foldhash and wyhash make of 16 bytes.
    #[inline]
    pub const fn pair(&self, one: u64, other: u64) -> u64 {
        let [first, second, third, _] = self.seeds;
        fold(fold(one ^ first, other ^ second) ^ third, ODD)
    }
}

/// The numbers in 32 bytes.
#[inline]
fn words(block: &[u8; 32]) -> [u64; 4] {
    let (words, _) = block.as_chunks::<8>();
    [&words[0], &words[1], &words[2], &words[3]].map(|word| u64::from_le_bytes(*word))
}

/// The numbers in fewer than 32 bytes: all of them, some twice.
#[inline]
fn short(bytes: &[u8]) -> [u64; 4] {
    let word = |word: &[u8; 8]| u64::from_le_bytes(*word);
    if let (Some(first), Some(last)) = (bytes.first_chunk::<16>(), bytes.last_chunk::<16>()) {
        let ((first, _), (last, _)) = (first.as_chunks(), last.as_chunks());
        return [word(&first[0]), word(&first[1]), word(&last[0]), word(&last[1])];
    }
    if let (Some(first), Some(last)) = (bytes.first_chunk::<8>(), bytes.last_chunk::<8>()) {
        return [word(first), word(last), 0, 0];
    }
    if let (Some(first), Some(last)) = (bytes.first_chunk::<4>(), bytes.last_chunk::<4>()) {
        return [u64::from(u32::from_le_bytes(*first)), u64::from(u32::from_le_bytes(*last)), 0, 0];
    }
    // Of one, two or three bytes the first, the middle one and the last are all.
    let at = |at: usize| bytes.get(at).copied().map_or(0, u64::from);
    [at(0) | at(bytes.len() / 2) << 8 | at(bytes.len().saturating_sub(1)) << 16, 0, 0, 0]
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

    /// Every byte counts, wherever it stands, and so does the length: of texts of all lengths up to three blocks.
    #[test]
    fn each_bit_of_a_text_and_its_length_make_a_difference() {
        // The seed of tests and of what is not kept.
        let prints = Fingerprints::new(0);
        let mut seen = HashSet::new();
        for length in 0..100usize {
            let mut text = vec![0u8; length];
            assert!(seen.insert(prints.bytes(&text)), "zeros, {length}");
            for bit in 0..length * 8 {
                text[bit / 8] ^= 1 << (bit % 8);
                assert!(seen.insert(prints.bytes(&text)), "bit {bit} of {length}");
                text[bit / 8] ^= 1 << (bit % 8);
            }
        }
    }

    /// One bit of the text turns each bit of the fingerprint half of the time.
    #[test]
    fn fingerprints_of_neighbours_have_nothing_in_common() {
        for length in [1usize, 3, 5, 9, 15, 17, 31, 33, 70] {
            let mut turned = [0u32; 64];
            let mut of = 0;
            for seed in 0..400 {
                let prints = Fingerprints::new(seed);
                let mut text: Vec<u8> = (0..length as u64).map(|at| mix(seed << 8 | at) as u8).collect();
                let before = prints.bytes(&text);
                let bit = seed as usize * 7 % (length * 8);
                text[bit / 8] ^= 1 << (bit % 8);
                let difference = before ^ prints.bytes(&text);
                turned.iter_mut().enumerate().for_each(|(at, count)| *count += (difference >> at) as u32 & 1);
                of += 1;
            }
            assert!(turned.iter().all(|count| (of * 3 / 10..=of * 7 / 10).contains(count)), "{length}: {turned:?}");
        }
    }
}
