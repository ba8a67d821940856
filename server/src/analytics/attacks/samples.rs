//! The hits that stand for an attack: those with the smallest hashes.
//!
//! Which they are does not depend on the order of hits: those of parts, offered to one another, are those of the whole.

/// Samples of an attack.
pub const SAMPLES_MAX: usize = 16;

/// A hit that stands for others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    /// By which it is chosen: of attack and request.
    pub hash: u64,
    /// The request's id.
    pub request_id: [u64; 2],
    /// When.
    pub time_us: u64,
    /// Key of the source.
    pub source: u64,
    /// Status of the answer.
    pub status: u16,
    /// A filter blocked it.
    pub is_blocked: bool,
    /// The method's text.
    pub method: Box<[u8]>,
    /// The payload, cut.
    pub payload: Box<[u8]>,
}

/// See the module. By hash, smallest first; a hit that comes twice is one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Samples {
    kept: Vec<Sample>,
}

impl Samples {
    /// Whether a hit of this hash would be kept.
    pub fn wants(&self, hash: u64) -> bool {
        (self.kept.len() < SAMPLES_MAX || self.kept.last().is_some_and(|largest| hash < largest.hash))
            && self.kept.binary_search_by_key(&hash, |sample| sample.hash).is_err()
    }

    /// Offers a hit.
    pub fn offer(&mut self, sample: Sample) {
        if !self.wants(sample.hash) {
            return;
        }
        let at = self.kept.partition_point(|kept| kept.hash < sample.hash);
        self.kept.insert(at, sample);
        self.kept.truncate(SAMPLES_MAX);
    }

    /// The samples.
    pub fn iter(&self) -> std::slice::Iter<'_, Sample> {
        self.kept.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn samples(hashes: &[u64]) -> Samples {
        let mut samples = Samples::default();
        hashes.iter().for_each(|hash| samples.offer(Sample { hash: *hash, ..Sample::default() }));
        samples
    }

    proptest! {
        #[test]
        fn they_are_the_smallest_in_any_order_and_division(
            mut hashes in prop::collection::vec(0u64..200, 0..100),
            cut in 0usize..100,
        ) {
            let whole = samples(&hashes);
            let (left, right) = hashes.split_at(cut.min(hashes.len()));
            let mut merged = samples(right);
            samples(left).iter().cloned().for_each(|sample| merged.offer(sample));
            prop_assert_eq!(&merged, &whole);
            hashes.sort_unstable();
            hashes.dedup();
            hashes.truncate(SAMPLES_MAX);
            prop_assert_eq!(whole.iter().map(|sample| sample.hash).collect::<Vec<_>>(), hashes);
        }
    }
}
