//! How many different values there were: exactly up to 64, then by a HyperLogLog of 256 registers (an error of 6.5 %).
//!
//! It reports; nothing is decided by it.

use super::fingerprint::mix;

/// See the module. Values are fingerprints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Magnitude {
    values: Vec<u64>,
    registers: Vec<u8>,
}

impl Magnitude {
    const EXACT_MAX: usize = 64;
    const REGISTERS: usize = 256;

    /// Nothing yet, and memory for all that may come.
    pub fn with_room() -> Self {
        Self { values: Vec::with_capacity(Self::EXACT_MAX), registers: Vec::with_capacity(Self::REGISTERS) }
    }

    /// Forgets all, keeps its memory.
    pub fn clear(&mut self) {
        self.values.clear();
        self.registers.clear();
    }

    /// Whether [`Self::estimate`] is exact.
    pub const fn is_exact(&self) -> bool {
        self.registers.is_empty()
    }

    /// Takes a value; returns how many different ones it takes the number to be, `None` if that did not change.
    pub fn add(&mut self, value: u64) -> Option<u64> {
        self.insert(value).then(|| self.estimate())
    }

    /// Takes a value; returns whether it made a difference.
    pub fn insert(&mut self, value: u64) -> bool {
        if self.registers.is_empty() {
            if self.values.contains(&value) {
                return false;
            }
            if self.values.len() < Self::EXACT_MAX {
                self.values.push(value);
                return true;
            }
            self.sketch();
        }
        self.note(value)
    }

    /// How many there were.
    pub fn estimate(&self) -> u64 {
        if self.registers.is_empty() {
            return self.values.len() as u64;
        }
        let count = Self::REGISTERS as f64;
        let sum: f64 = self.registers.iter().map(|&register| 2f64.powi(-i32::from(register))).sum();
        let estimate = 0.7213 / (1.0 + 1.079 / count) * count * count / sum;
        let empty = self.registers.iter().filter(|&&register| register == 0).count();
        (if estimate < 2.5 * count && empty > 0 { count * (count / empty as f64).ln() } else { estimate }) as u64
    }

    /// Goes over from values to registers.
    fn sketch(&mut self) {
        if self.registers.is_empty() {
            self.registers.resize(Self::REGISTERS, 0);
            for position in 0..self.values.len() {
                self.note(self.values[position]);
            }
            self.values.clear();
        }
    }

    fn note(&mut self, value: u64) -> bool {
        let hash = mix(value);
        let register = &mut self.registers[(hash >> 56) as usize];
        let rank = ((hash << 8).leading_zeros() + 1).min(57) as u8;
        let is_larger = rank > *register;
        *register = rank.max(*register);
        is_larger
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Order and repetition change nothing, and up to 64 values the number is exact.
        #[test]
        fn it_is_about_the_set_of_values(values in prop::collection::vec(0u64..300, 0..600)) {
            let of = |values: &mut dyn Iterator<Item = &u64>| {
                let mut magnitude = Magnitude::default();
                values.for_each(|value| {
                    magnitude.insert(*value);
                });
                magnitude.estimate()
            };
            let distinct: std::collections::BTreeSet<u64> = values.iter().copied().collect();
            let estimate = of(&mut values.iter());
            prop_assert_eq!(estimate, of(&mut distinct.iter().rev()));
            let error = if distinct.len() <= 64 { 0 } else { distinct.len() as u64 / 4 };
            prop_assert!(estimate.abs_diff(distinct.len() as u64) <= error, "{} of {}", estimate, distinct.len());
        }
    }
}
