//! The sources that take part most, by SpaceSaving (Metwally, Agrawal, El Abbadi, ICDT 2005): a count is at most too large
//! by its error, and every source with more than a share of 1 / [`COUNTERS`] of the hits is among them.

/// Counters of an attack.
pub const COUNTERS: usize = 32;

/// A source and its hits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counter {
    /// Of whom.
    pub value: u64,
    /// How often, at most.
    pub count: u64,
    /// It may be less by this.
    pub error: u64,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct SpaceSaving {
    counters: Vec<Counter>,
}

impl SpaceSaving {
    /// Counts a value `weight` times. Returns the value that lost its counter to it, if one did.
    pub fn add(&mut self, value: u64, weight: u64) -> Option<u64> {
        if let Some(counter) = self.counters.iter_mut().find(|counter| counter.value == value) {
            counter.count += weight;
        } else if self.counters.len() < COUNTERS {
            self.counters.push(Counter { value, count: weight, error: 0 });
        } else if let Some(least) = self.counters.iter_mut().min_by_key(|counter| counter.count) {
            let lost = least.value;
            *least = Counter { value, count: least.count + weight, error: least.count };
            return Some(lost);
        }
        None
    }

    /// Whether a value has a counter.
    pub fn contains(&self, value: u64) -> bool {
        self.counters.iter().any(|counter| counter.value == value)
    }

    /// The `count` largest, largest first.
    pub fn top(&self, count: usize) -> Vec<Counter> {
        let mut top = self.counters.clone();
        top.sort_by_key(|counter| (std::cmp::Reverse(counter.count), counter.value));
        top.truncate(count);
        top
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    proptest! {
        #[test]
        fn counts_are_right_within_their_error_and_no_large_share_is_missed(
            events in prop::collection::vec((0u64..100, 1u64..5), 0..600),
        ) {
            let (mut found, mut exact) = (SpaceSaving::default(), HashMap::<u64, u64>::new());
            for (value, weight) in &events {
                found.add(*value, *weight);
                *exact.entry(*value).or_default() += weight;
            }
            let total: u64 = exact.values().sum();
            for counter in found.top(COUNTERS) {
                let count = exact[&counter.value];
                prop_assert!(counter.count >= count && counter.count - counter.error <= count);
            }
            for (value, count) in exact {
                prop_assert!(count * COUNTERS as u64 <= total || found.contains(value));
            }
        }
    }
}
