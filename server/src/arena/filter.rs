//! Which sources a slab may hold: a Bloom filter at the start of each slab, so that a search leaves out slabs without it.
//!
//! A word of 64 bits is chosen by a hash of the source, and three bits in it: one cache line an insertion. The hash is one
//! multiplication, for it is paid for every record stored; it is not secret, because who finds sources that share bits
//! makes searches look in vain and nothing more.
//!
//! 2,048 words for a slab of 2 MiB: with 4,000 sources (records of 512 bytes) two slabs in a thousand are looked at in
//! vain, with 11,900 (the smallest records that there are) one in fifty. It lies in the slab's own memory: nothing to allocate,
//! to prefault or to count apart, and recycling a slab clears it. Sources whose batch is refused after all stay in it; they
//! cost a look in vain. It never forgets one, so a search misses nothing.

use postanalytics_protocol::Source;

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

    /// Adds a source.
    #[inline]
    pub fn insert(&mut self, source: Source) {
        let (word, bits) = place(source);
        let bytes = &mut self.words[word];
        *bytes = (u64::from_le_bytes(*bytes) | bits).to_le_bytes();
    }
}

/// Whether a source may have been added to the filter in `bytes`.
pub(super) fn may_hold(bytes: &[u8], source: Source) -> bool {
    let (word, bits) = place(source);
    bytes.as_chunks().0.get(word).is_none_or(|bytes| u64::from_le_bytes(*bytes) & bits == bits)
}

/// Word and bits of a source: both halves of a product, folded.
#[inline]
const fn place(source: Source) -> (usize, u64) {
    let product = (source.key() ^ 0x9e37_79b9_7f4a_7c15) as u128 * 0xd6e8_feb8_6659_fd93;
    let hash = product as u64 ^ (product >> 64) as u64;
    ((hash >> 53) as usize, 1 << (hash & 63) | 1 << (hash >> 6 & 63) | 1 << (hash >> 12 & 63))
}

const _: () = assert!(WORDS == 1 << (64 - 53));

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    fn v4(number: u32) -> Source {
        Source::of(IpAddr::V4(Ipv4Addr::from(number)))
    }

    fn v6(number: u32) -> Source {
        Source::of(IpAddr::V6(Ipv6Addr::from(0x2001_0db8 << 96 | u128::from(number) << 64)))
    }

    /// Share of absent sources that a filter with `present` ones lets pass.
    fn false_positives(present: u32, source: &dyn Fn(u32) -> Source) -> f64 {
        let mut bytes = vec![0; FILTER_BYTES];
        let mut filter = SourceFilter::new(&mut bytes).expect("the size");
        (0..present).for_each(|number| filter.insert(source(number)));
        assert!((0..present).all(|number| may_hold(&bytes, source(number))), "none is forgotten");
        (present..present + 100_000).filter(|number| may_hold(&bytes, source(*number))).count() as f64 / 100_000.0
    }

    #[test]
    fn few_absent_sources_pass() {
        // Neighbours, random ones, those of one host number in many networks, and IPv6 networks side by side.
        let kinds: [&dyn Fn(u32) -> Source; 4] = [
            &|number| v4(0x0a00_0000 + number),
            &|number| v4(number.wrapping_mul(0x9e37_79b1)),
            &|number| v4(number << 8 | 1),
            &v6,
        ];
        for (kind, source) in kinds.into_iter().enumerate() {
            assert_eq!(false_positives(0, source), 0.0);
            let (usual, most) = (false_positives(4_000, source), false_positives(11_900, source));
            assert!(usual < 0.006 && most < 0.05, "kind {kind}: {usual} {most}");
        }
    }

    #[test]
    fn only_its_own_size_is_a_filter() {
        assert!(SourceFilter::new(&mut [0; 64]).is_none());
        assert!(
            may_hold(&[0; 64], (0..).map(v4).find(|source| place(*source).0 > 8).expect("most")),
            "what is no filter rules nothing out"
        );
    }
}
