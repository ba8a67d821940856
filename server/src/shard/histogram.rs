//! Latencies in buckets of powers of two, for Prometheus: cumulative there, apart here.

/// Upper bounds of all buckets but the last: 16 µs, doubled each time, up to 8.4 s.
pub const BOUNDS: usize = 20;
/// Numbers of a histogram: its buckets, and the sum.
pub const VALUES: usize = BOUNDS + 2;
const FIRST_US: u64 = 16;

/// See the module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LatencyHistogram {
    /// Counts by bucket; the last is for all beyond.
    counts: [u64; BOUNDS + 1],
    sum_us: u64,
}

impl LatencyHistogram {
    /// Counts a latency `times` times.
    pub fn record(&mut self, latency_us: u64, times: u64) {
        let bucket = (0..BOUNDS).find(|bucket| latency_us <= FIRST_US << bucket).unwrap_or(BOUNDS);
        self.counts[bucket] += times;
        self.sum_us += latency_us * times;
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Their sum, seconds.
    pub fn sum_seconds(&self) -> f64 {
        self.sum_us as f64 / 1e6
    }

    /// Upper bound of each bucket, seconds, and its count.
    pub fn buckets(&self) -> Vec<(f64, u64)> {
        let bound = |bucket: usize| if bucket < BOUNDS { (FIRST_US << bucket) as f64 / 1e6 } else { f64::INFINITY };
        self.counts.iter().enumerate().map(|(bucket, count)| (bound(bucket), *count)).collect()
    }

    /// Adds what another counted.
    pub fn merge(&mut self, other: &Self) {
        self.counts.iter_mut().zip(other.counts).for_each(|(mine, theirs)| *mine += theirs);
        self.sum_us += other.sum_us;
    }

    /// As numbers.
    pub fn values(&self) -> [u64; VALUES] {
        std::array::from_fn(|at| self.counts.get(at).copied().unwrap_or(self.sum_us))
    }

    /// Of such numbers.
    pub fn of_values(values: &[u64]) -> Self {
        let count = |at: usize| values.get(at).copied().unwrap_or(0);
        Self { counts: std::array::from_fn(count), sum_us: count(BOUNDS + 1) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_lie_at_or_below_their_bound() {
        let mut histogram = LatencyHistogram::default();
        [(0, 1), (16, 2), (17, 1), (10_000_000, 3)]
            .into_iter()
            .for_each(|(latency_us, times)| histogram.record(latency_us, times));
        let buckets = histogram.buckets();
        assert_eq!((buckets[0], buckets[1].1, buckets[BOUNDS].1), ((16e-6, 3), 1, 3));
        assert_eq!(LatencyHistogram::of_values(&histogram.values()), histogram);
        let mut twice = histogram;
        twice.merge(&histogram);
        assert_eq!((twice.count(), twice.sum_seconds()), (14, 2.0 * histogram.sum_seconds()));
    }
}
