//! Buckets of times: four to each power of two, so that a quantile is at most 12.5 % away from the middle of its bucket.
//!
//! The first holds all below 64 µs, the last all from 268 s on.

/// Buckets.
pub const BUCKETS: usize = 90;
/// Power of two that the second bucket begins at.
const FIRST_BITS: u32 = 6;

/// The bucket of a time.
#[inline]
pub const fn bucket(time_us: u32) -> usize {
    if time_us < 1 << FIRST_BITS {
        return 0;
    }
    let bits = 31 - time_us.leading_zeros();
    let quarter = (time_us >> (bits - 2)) & 3;
    let bucket = 1 + ((bits - FIRST_BITS) * 4 + quarter) as usize;
    if bucket < BUCKETS { bucket } else { BUCKETS - 1 }
}

/// Where a bucket begins, µs.
const fn begin_us(bucket: usize) -> u64 {
    if bucket == 0 {
        return 0;
    }
    let (bits, quarter) = ((bucket as u32 - 1) / 4 + FIRST_BITS, (bucket as u64 - 1) % 4);
    (4 + quarter) << (bits - 2)
}

/// The time that this share of all is not above, µs: the middle of its bucket. 0 if there is none.
pub fn quantile_us(counts: &[u32; BUCKETS], share: f64) -> f64 {
    let total: u64 = counts.iter().map(|count| u64::from(*count)).sum();
    let rank = ((total as f64 * share).ceil() as u64).max(1);
    let mut seen = 0;
    for (bucket, count) in counts.iter().enumerate() {
        seen += u64::from(*count);
        if seen >= rank {
            return (begin_us(bucket) + begin_us(bucket + 1)) as f64 / 2.0;
        }
    }
    0.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_is_in_the_bucket_that_holds_it() {
        for bits in 0..32 {
            for time_us in [(1u32 << bits) - 1, 1 << bits, (1 << bits) + (1 << bits) / 3] {
                let found = bucket(time_us);
                assert!(begin_us(found) <= u64::from(time_us), "{time_us}");
                assert!(found == BUCKETS - 1 || u64::from(time_us) < begin_us(found + 1), "{time_us}");
            }
        }
    }

    #[test]
    fn quantiles_are_near() {
        let mut counts = [0; BUCKETS];
        (1..=10_000u32).for_each(|time| counts[bucket(time * 100)] += 1);
        for (share, exact) in [(0.5, 500_000.0), (0.9, 900_000.0), (0.99, 990_000.0)] {
            let found = quantile_us(&counts, share);
            assert!((found - exact).abs() / exact <= 0.125, "{share}: {found}");
        }
        assert_eq!(quantile_us(&[0; BUCKETS], 0.5), 0.0);
    }
}
