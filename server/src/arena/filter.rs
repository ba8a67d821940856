//! Which sources a slab may hold: a Bloom filter at the start of each slab, so that a search leaves out slabs without it.
//!
//! A word of 64 bits is chosen by the source's hash, and four bits in it: one cache line an insertion. The hash is the
//! routing hash, whose seed no peer can choose. Its high bits decide the shard, hence are alike for all sources of a shard;
//! only low bits are used here.
//!
//! 2,048 words for a slab of 2 MiB: with 4,000 sources (records of 512 bytes) one slab in a thousand is looked at in vain,
//! with 11,900 (the smallest records that there are) one in fifty. It lies in the slab's own memory: nothing to allocate,
//! to prefault or to count apart, and recycling a slab clears it. Sources whose batch is refused after all stay in it; they
//! cost a look in vain. It never forgets one, so a search misses nothing.

/// Words of a filter.
const WORDS: usize = 2048;
/// Bytes of a filter.
pub(super) const FILTER_BYTES: usize = WORDS * 8;

/// The filter of a slab to which a frame is being added.
#[derive(Debug)]
pub struct SourceFilter<'a> {
    words: &'a mut [[u8; 8]; WORDS],
}

impl<'a> SourceFilter<'a> {
    /// The filter in these bytes, zeros when empty; `None` if they are not just [`FILTER_BYTES`].
    pub(super) fn new(bytes: &'a mut [u8]) -> Option<Self> {
        bytes.as_chunks_mut().0.try_into().ok().map(|words| Self { words })
    }

    /// Adds the source with this routing hash.
    #[inline]
    pub fn insert(&mut self, hash: u64) {
        let (word, bits) = place(hash);
        let bytes = &mut self.words[word];
        *bytes = (u64::from_le_bytes(*bytes) | bits).to_le_bytes();
    }
}

/// Whether a source with this hash may have been added to the filter in `bytes`.
pub(super) fn may_hold(bytes: &[u8], hash: u64) -> bool {
    let (word, bits) = place(hash);
    bytes.as_chunks().0.get(word).is_none_or(|bytes| u64::from_le_bytes(*bytes) & bits == bits)
}

/// Word and bits of a hash.
#[inline]
const fn place(hash: u64) -> (usize, u64) {
    let bits = 1 << (hash & 63) | 1 << (hash >> 6 & 63) | 1 << (hash >> 12 & 63) | 1 << (hash >> 18 & 63);
    ((hash >> 24) as usize % WORDS, bits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use postanalytics_protocol::Source;
    use postanalytics_protocol::routing::hash64;
    use std::net::{IpAddr, Ipv4Addr};

    fn hash(number: u32, seed: u64) -> u64 {
        hash64(Source::of(IpAddr::V4(Ipv4Addr::from(number))), seed)
    }

    /// Share of absent sources that a filter with `present` ones lets pass. Only sources of shard 0 of `shards`.
    fn false_positives(present: usize, shards: u64) -> f64 {
        let mut bytes = vec![0; FILTER_BYTES];
        let mut hashes = (0..).map(|number| hash(number, 99)).filter(|hash| u128::from(*hash) * u128::from(shards) >> 64 == 0);
        let mut filter = SourceFilter::new(&mut bytes).expect("the size");
        let inserted: Vec<u64> = hashes.by_ref().take(present).collect();
        inserted.iter().for_each(|hash| filter.insert(*hash));
        assert!(inserted.iter().all(|hash| may_hold(&bytes, *hash)), "none is forgotten");
        hashes.take(100_000).filter(|hash| may_hold(&bytes, *hash)).count() as f64 / 100_000.0
    }

    #[test]
    fn few_absent_sources_pass() {
        assert_eq!(false_positives(0, 1), 0.0);
        for shards in [1, 2, 16, 64] {
            assert!(false_positives(4_000, shards) < 0.004, "{shards} shards: {}", false_positives(4_000, shards));
            assert!(false_positives(11_900, shards) < 0.04, "{shards} shards: {}", false_positives(11_900, shards));
        }
    }

    #[test]
    fn only_its_own_size_is_a_filter() {
        assert!(SourceFilter::new(&mut [0; 64]).is_none());
        assert!(may_hold(&[0; 64], u64::MAX), "what is no filter rules nothing out");
    }
}
