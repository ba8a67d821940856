//! What keeps detectors from listing whom they must not: asked, in this order, before a listing is made.
//!
//! 1. The allowlist: its addresses are never listed by a detector.
//! 2. Trusted proxies, and sources that send over a fifth of the requests of the last minute while more than ten others are
//!    active: the filter probably sees the address of a proxy instead of the client's. An alert `real_ip_suspect` says so.
//! 3. Listings that have become too many: when over a twentieth of the sources of the last ten minutes (at least 100) is listed,
//!    detectors list nobody more, and it is alarmed.
//!
//! All of it is about the requests and sources of one shard. Different sources are counted by a HyperLogLog (an error of
//! 3.3 %; nearly exact below some thousand): the limit of a twentieth is as exact as that.

use super::fingerprint::mix;
use super::summary::hot::{HotSources, OTHERS_ACTIVE};

/// Share of the requests, in thousandths, above which a source is taken for a proxy.
const PROXY_PERMILLE: u64 = 200;
/// Share of the sources, in thousandths, that may be listed.
const LISTED_PERMILLE: u64 = 50;
/// Below so many sources there is no share to speak of.
const SOURCES_MIN: u64 = 100;

/// Spans of [`RecentSources`], of a minute each.
const SPANS: usize = 10;
const SPAN_US: u64 = 60_000_000;
const REGISTERS: usize = 1024;

/// Why a detector lists nobody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Objection {
    /// It is on the allowlist.
    Allowed,
    /// It is, or seems to be, a proxy.
    RealIpSuspect,
    /// Too many are listed already.
    TooMany,
}

/// Listings that were not made, by [`Objection`] and beside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Objections {
    /// Allowed.
    pub allowed: u64,
    /// Real IP suspect.
    pub real_ip_suspect: u64,
    /// Too many.
    pub too_many: u64,
    /// None of them: too many listings wait to be made at the moment.
    pub no_room: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Guards {
    recent: RecentSources,
    /// Sources and sessions that detectors have listed, each once, and listings on their way; told by whoever keeps the verdicts.
    pub listed: usize,
    /// Listings that were not made.
    pub objections: Objections,
}

impl Guards {
    /// From now on requests of this time are counted.
    pub fn begin(&mut self, arrival_us: u64) {
        self.recent.begin(arrival_us);
    }

    /// Counts a request of a source, by its key, see `Source::key`.
    #[inline]
    pub fn count(&mut self, source: u64) {
        self.recent.count(source);
    }

    /// Whether a detector must not list a source, by its key; `is_allowed` and `is_proxy` say what the operator has told of it;
    /// `pending` listings were made since `listed` was told.
    pub fn object(
        &mut self,
        is_allowed: bool,
        is_proxy: bool,
        source: u64,
        pending: usize,
        hot: &HotSources,
    ) -> Option<Objection> {
        let objection = if is_allowed {
            Some(Objection::Allowed)
        } else if is_proxy || seems_proxy(source, hot) {
            Some(Objection::RealIpSuspect)
        } else if self.are_too_many(pending) {
            Some(Objection::TooMany)
        } else {
            None
        };
        match objection {
            Some(Objection::Allowed) => self.objections.allowed += 1,
            Some(Objection::RealIpSuspect) => self.objections.real_ip_suspect += 1,
            Some(Objection::TooMany) => self.objections.too_many += 1,
            None => {}
        }
        objection
    }

    /// The one that is about to be listed counts as listed.
    fn are_too_many(&self, pending: usize) -> bool {
        let sources = self.recent.estimate();
        sources >= SOURCES_MIN && ((self.listed + pending) as u64 + 1) * 1000 > sources * LISTED_PERMILLE
    }
}

fn seems_proxy(source: u64, hot: &HotSources) -> bool {
    hot.count_of(source) * 1000 > hot.total() * PROXY_PERMILLE && hot.sources() > OTHERS_ACTIVE + 1
}

/// Counts the different sources of the last ten minutes.
#[derive(Debug)]
struct RecentSources {
    /// Registers of each span, one after the other.
    registers: Vec<u8>,
    numbers: [u64; SPANS],
    now: usize,
}

impl Default for RecentSources {
    fn default() -> Self {
        Self { registers: vec![0; SPANS * REGISTERS], numbers: [0; SPANS], now: 0 }
    }
}

impl RecentSources {
    fn begin(&mut self, arrival_us: u64) {
        let number = arrival_us / SPAN_US + 1;
        self.now = (number % SPANS as u64) as usize;
        if self.numbers[self.now] < number {
            self.registers[self.now * REGISTERS..][..REGISTERS].fill(0);
            self.numbers[self.now] = number;
        }
    }

    #[inline]
    fn count(&mut self, source: u64) {
        let hash = mix(source);
        let register = &mut self.registers[self.now * REGISTERS + (hash as usize & (REGISTERS - 1))];
        *register = (*register).max((hash.leading_zeros() + 1) as u8);
    }

    fn estimate(&self) -> u64 {
        let newest = self.numbers[self.now];
        let mut all = [0u8; REGISTERS];
        for (span, number) in self.numbers.iter().enumerate() {
            if *number > 0 && number + SPANS as u64 > newest {
                let of_span = &self.registers[span * REGISTERS..][..REGISTERS];
                all.iter_mut().zip(of_span).for_each(|(largest, register)| *largest = (*largest).max(*register));
            }
        }
        let count = REGISTERS as f64;
        let sum: f64 = all.iter().map(|register| 1.0 / (1u64 << register.min(&63)) as f64).sum();
        let estimate = 0.7213 / (1.0 + 1.079 / count) * count * count / sum;
        let empty = all.iter().filter(|register| **register == 0).count();
        // Flajolet et al. 2007: below 2.5 registers the number of empty ones is the better witness.
        (if estimate < 2.5 * count && empty > 0 { count * (count / empty as f64).ln() } else { estimate }).round() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START_US: u64 = 1_700_000_000_000_000;

    #[test]
    fn the_allowlist_comes_first_then_trusted_proxies() {
        let (mut guards, hot) = (Guards::default(), HotSources::default());
        assert_eq!(guards.object(true, true, 1, 0, &hot), Some(Objection::Allowed));
        assert_eq!(guards.object(false, true, 1, 0, &hot), Some(Objection::RealIpSuspect));
        assert_eq!(guards.object(false, false, 1, 0, &hot), None);
        assert_eq!(guards.objections, Objections { allowed: 1, real_ip_suspect: 1, ..Objections::default() });
    }

    /// 20 % is not over 20 %, ten others are not more than ten.
    #[test]
    fn a_fifth_of_all_requests_is_a_proxy_if_others_are_active() {
        for (own, others, expected) in
            [(3, 12, None), (4, 12, Some(Objection::RealIpSuspect)), (4, 10, None), (4, 11, Some(Objection::RealIpSuspect))]
        {
            let (mut guards, mut hot) = (Guards::default(), HotSources::default());
            hot.begin(START_US);
            (0..own).for_each(|_| hot.count(1));
            (0..others).for_each(|other| hot.count(other + 2));
            assert_eq!(guards.object(false, false, 1, 0, &hot), expected, "{own} of {others}");
        }
    }

    #[test]
    fn a_twentieth_of_at_least_a_hundred_sources_may_be_listed() {
        let hot = HotSources::default();
        for (sources, listed, expected) in [
            (90, 50, None),
            (200, 8, None),
            (200, 12, Some(Objection::TooMany)),
            (400, 12, None),
            (400, 24, Some(Objection::TooMany)),
        ] {
            let mut guards = Guards { listed, ..Guards::default() };
            // Spread over nine minutes, and one long ago.
            guards.begin(START_US - 20 * SPAN_US);
            (1000..2000).for_each(|source| guards.count(source));
            for source in 0..sources {
                guards.begin(START_US + source * 9 / sources * SPAN_US);
                guards.count(source);
            }
            assert_eq!(guards.object(false, false, 1, 0, &hot), expected, "{listed} of {sources}");
        }
    }
}
