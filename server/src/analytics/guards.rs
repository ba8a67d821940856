//! What keeps detectors from listing whom they must not: asked, in this order, before a listing is made.
//!
//! 1. The allowlist: its addresses are never listed by a detector.
//! 2. Trusted proxies, and sources that send over a fifth of the requests of the last minute while more than ten others are
//!    active: the filter probably sees the address of a proxy instead of the client's. An alert `real_ip_suspect` says so.
//! 3. Listings that have become too many: when over a twentieth of the sources of the last ten minutes (at least 100) is listed,
//!    detectors list nobody more, and it is alarmed.
//!
//! A shard sees its own share only, and takes it for a sample: the hash that spreads the sources gives every shard as many of them. So
//! all requests are those of the source, whom no other shard sees, and as many times those of the others here as there are shards; so many
//! times as many others are active, too. The twentieth is of the shard's own sources, of which there must be 100 over the number of shards;
//! its first listing is never too many, for with few sources a shard the twentieth of one is less than one.
//!
//! Different sources are counted by a HyperLogLog (an error of 3.3 %; nearly exact below some thousand): the limit of a twentieth is as
//! exact as that. It takes keyed fingerprints, or whoever may choose addresses could choose those that look like very many.

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
#[derive(Debug)]
pub struct Guards {
    /// Shards among which the sources are spread, at least one.
    shards: u64,
    recent: RecentSources,
    /// Sources and sessions that detectors have listed, each once, and listings on their way; told by whoever keeps the verdicts.
    pub listed: usize,
    /// Listings that were not made.
    pub objections: Objections,
}

impl Default for Guards {
    fn default() -> Self {
        Self::new(1)
    }
}

impl Guards {
    /// Those of one of so many shards.
    pub fn new(shards: u32) -> Self {
        let (recent, objections) = (RecentSources::default(), Objections::default());
        Self { shards: u64::from(shards.max(1)), recent, listed: 0, objections }
    }

    /// From now on requests of this time are counted.
    pub fn begin(&mut self, arrival_us: u64) {
        self.recent.begin(arrival_us);
    }

    /// Counts a request of a source, by its keyed fingerprint.
    #[inline]
    pub fn count(&mut self, source_fingerprint: u64) {
        self.recent.count(source_fingerprint);
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
        } else if is_proxy || self.seems_proxy(source, hot) {
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
        let may_be_listed = (sources.saturating_mul(LISTED_PERMILLE) / 1000).max(1);
        sources >= SOURCES_MIN.div_ceil(self.shards) && (self.listed + pending) as u64 + 1 > may_be_listed
    }

    fn seems_proxy(&self, source: u64, hot: &HotSources) -> bool {
        let own = hot.count_of(source);
        let all = own + hot.total().saturating_sub(own) * self.shards;
        let others = hot.sources().saturating_sub(1) as u64 * self.shards;
        own * 1000 > all * PROXY_PERMILLE && others > OTHERS_ACTIVE as u64
    }
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
    fn count(&mut self, hash: u64) {
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
    use crate::analytics::fingerprint::Fingerprints;

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

    /// The others of the other seven shards are as many as those here; the source is here alone.
    #[test]
    fn a_shard_of_eight_estimates_all_requests() {
        let suspect = Some(Objection::RealIpSuspect);
        for (own, others, expected) in
            [(24, 12, None), (25, 12, suspect), (4, 2, None), (5, 2, suspect), (1000, 1, None), (1000, 0, None)]
        {
            let (mut guards, mut hot) = (Guards::new(8), HotSources::default());
            hot.begin(START_US);
            (0..own).for_each(|_| hot.count(1));
            (0..others).for_each(|other| hot.count(other + 2));
            assert_eq!(guards.object(false, false, 1, 0, &hot), expected, "{own} beside {others}");
        }
    }

    #[test]
    fn a_twentieth_of_at_least_a_hundred_sources_may_be_listed() {
        let (hot, prints) = (HotSources::default(), Fingerprints::new(7));
        let too_many = Some(Objection::TooMany);
        for (shards, sources, listed, expected) in [
            (1, 90, 50, None),
            (1, 200, 8, None),
            (1, 200, 12, too_many),
            (1, 400, 12, None),
            (1, 400, 24, too_many),
            // A hundred on eight shards; of few the first may be listed although it is over a twentieth.
            (8, 12, 50, None),
            (8, 13, 0, None),
            (8, 13, 1, too_many),
            (8, 90, 3, None),
            (8, 90, 5, too_many),
            (1000, 1, 1, too_many),
        ] {
            let mut guards = Guards { listed, ..Guards::new(shards) };
            let mut count = |source, at_us| {
                guards.begin(at_us);
                guards.count(prints.pair(source, 0));
            };
            // Spread over nine minutes, and one long ago.
            (1000..2000).for_each(|source| count(source, START_US - 20 * SPAN_US));
            (0..sources).for_each(|source| count(source, START_US + source * 9 / sources * SPAN_US));
            assert_eq!(guards.object(false, false, 1, 0, &hot), expected, "{listed} of {sources} on one of {shards}");
        }
    }
}
