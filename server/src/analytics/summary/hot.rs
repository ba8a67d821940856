//! The share of its shard's requests that a source sends, over the last minute.
//!
//! Six spans of ten seconds, each a SpaceSaving of 16 counters: a count is never too low, and too high by at most a sixteenth
//! of its span; what is told is the count less its error, so that nobody is said to send more than he does. A busy span
//! counts one request in eight, eight times.
//!
//! What is counted, and the share that is told, are of the requests of this shard. With several shards a source has a larger share of
//! its shard than of the server, for the shards share the sources: the guards reckon with that, see `analytics::guards`.

use crate::arena::mapping::equal_numbers;

/// Counters of a span.
const COUNTERS: usize = 16;
/// Spans.
const SPANS: usize = 6;
/// Length of a span, µs.
const SPAN_US: u64 = 10_000_000;
/// Requests of a span from which on one in [`WEIGHT`] is counted.
const BUSY: u32 = 8192;
const WEIGHT: u32 = 8;
/// Multiples of this spread evenly, whatever steps they are taken in: no pattern of sources escapes the counting.
const GOLDEN: u32 = 0x9e37_79b1;

/// A share says something while more others than this are active.
pub const OTHERS_ACTIVE: usize = 10;

#[derive(Clone, Copy, Debug, Default)]
struct Span {
    /// Number of the span of time, from 1 on; 0: none.
    number: u64,
    total: u32,
    values: [u64; COUNTERS],
    counts: [u32; COUNTERS],
    errors: [u32; COUNTERS],
    /// The lowest bits of `values`.
    tags: [u16; COUNTERS],
    /// The smallest count, and bit n: it is still that of counter n.
    least: u32,
    at_least: u32,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct HotSources {
    spans: [Span; SPANS],
    now: usize,
}

impl HotSources {
    /// From now on requests of this time are counted.
    pub fn begin(&mut self, arrival_us: u64) {
        let number = arrival_us / SPAN_US + 1;
        self.now = (number % SPANS as u64) as usize;
        if self.spans[self.now].number < number {
            self.spans[self.now] = Span { number, ..Span::default() };
        }
    }

    /// Counts a request of a source, by its key, see `Source::key`.
    #[inline]
    pub fn count(&mut self, source: u64) {
        let span = &mut self.spans[self.now];
        span.total += 1;
        let weight = if span.total <= BUSY {
            1
        } else if span.total.wrapping_mul(GOLDEN) < u32::MAX / WEIGHT {
            WEIGHT
        } else {
            return;
        };
        let mut matches = equal_numbers(&span.tags, source as u16);
        while matches != 0 {
            let at = matches.trailing_zeros() as usize % COUNTERS;
            if span.values[at] == source {
                span.counts[at] += weight;
                span.at_least &= !(1 << at);
                return;
            }
            matches &= matches - 1;
        }
        if span.at_least == 0 {
            span.least = span.counts.iter().copied().min().unwrap_or(0);
            let bits = span.counts.iter().enumerate().map(|(at, count)| u32::from(*count == span.least) << at);
            span.at_least = bits.sum();
        }
        let at = span.at_least.trailing_zeros() as usize % COUNTERS;
        span.at_least &= span.at_least - 1;
        (span.values[at], span.counts[at], span.errors[at]) = (source, span.least + weight, span.least);
        span.tags[at] = source as u16;
    }

    /// Requests of the last minute.
    pub fn total(&self) -> u64 {
        self.live().map(|span| u64::from(span.total)).sum()
    }

    /// Requests of a source in the last minute, at least.
    pub fn count_of(&self, source: u64) -> u64 {
        let of_span =
            |span: &Span| span.values.iter().position(|value| *value == source).map(|at| span.counts[at] - span.errors[at]);
        self.live().filter_map(of_span).map(u64::from).sum()
    }

    /// The largest share of a source, in thousandths; 0 while no more than ten others are active, for then any share is large.
    pub fn hottest_permille(&self) -> u64 {
        if self.sources() <= OTHERS_ACTIVE + 1 {
            return 0;
        }
        let total = self.total();
        let counted = self.live().flat_map(|span| span.values.iter().zip(&span.counts).filter(|(_, count)| **count > 0));
        let largest = counted.map(|(value, _)| self.count_of(*value)).max().unwrap_or(0);
        (largest * 1000).checked_div(total).unwrap_or(0)
    }

    /// How many different sources there were in the last minute, as far as the counters tell: at least as many, or none more than
    /// they can tell apart.
    pub fn sources(&self) -> usize {
        let mut seen = [0u64; COUNTERS * SPANS];
        let mut count = 0;
        for span in self.live() {
            for (value, _) in span.values.iter().zip(&span.counts).filter(|(_, count)| **count > 0) {
                if !seen[..count].contains(value) {
                    seen[count] = *value;
                    count += 1;
                }
            }
        }
        count
    }

    /// The spans of the last minute.
    fn live(&self) -> impl Iterator<Item = &Span> {
        let newest = self.spans[self.now].number;
        self.spans.iter().filter(move |span| span.number > 0 && span.number + SPANS as u64 > newest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const START_US: u64 = 1_700_000_000_000_000;

    proptest! {
        #[test]
        fn nobody_is_said_to_send_more_than_he_does(requests in prop::collection::vec((0u64..3_000_000, 0u64..60), 1..500)) {
            let (mut hot, mut now_us, mut all) = (HotSources::default(), START_US, Vec::new());
            for (pause_us, source) in requests {
                now_us += pause_us;
                hot.begin(now_us);
                hot.count(source + 1);
                all.push((now_us / SPAN_US, source + 1));
            }
            all.retain(|(span, _)| span + SPANS as u64 > now_us / SPAN_US);
            prop_assert_eq!(hot.total(), all.len() as u64);
            for source in 1..=60 {
                let exact = all.iter().filter(|(_, other)| *other == source).count() as u64;
                prop_assert!(hot.count_of(source) <= exact);
            }
        }
    }

    #[test]
    fn a_hot_source_is_seen_busy_or_not() {
        for rounds in [50u64, 50_000] {
            let mut hot = HotSources::default();
            hot.begin(START_US);
            for round in 0..rounds {
                hot.count(1);
                (0..3).for_each(|other| hot.count(2 + (round * 3 + other) % 1000));
            }
            let permille = hot.hottest_permille();
            assert!((180..=260).contains(&permille), "{permille} of {rounds}");
            assert!(hot.sources() > 10);
        }
    }

    #[test]
    fn a_minute_later_all_is_forgotten() {
        let mut hot = HotSources::default();
        hot.begin(START_US);
        hot.count(1);
        hot.begin(START_US + 60_000_000);
        assert_eq!((hot.total(), hot.sources(), hot.hottest_permille()), (0, 0, 0));
    }
}
