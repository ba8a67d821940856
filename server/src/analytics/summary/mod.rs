//! Counters of all requests of a shard, for pages: none is asked by a detector.
//!
//! - [`timeline`]: of each application in each minute, with [`latency`] for response times
//! - [`top`]: the most frequent sources, paths and user agents of two quarters of an hour, none begun over half an hour ago
//! - [`hot`]: whose share of the last minute is large
//! - [`page`]: what a shard copies of them; [`view`]: the pages of all shards merged, as shown
//!
//! All of it adds up: pages of several shards are merged on reading. Flat memory of fixed size, made when the shard starts.

pub mod hot;
pub mod latency;
pub mod page;
pub mod timeline;
pub mod top;
pub mod view;

use super::observation::Observation;
use bumpalo::Bump;
use hot::HotSources;
use postanalytics_protocol::schema::v1::FLAG_BLOCKED;
use timeline::{Counted, Timeline};
use top::TopList;

/// Length of a generation of the top lists, µs.
const GENERATION_US: u64 = 15 * timeline::MINUTE_US;
/// Values of a list, of which a list shows those that it is sure of: 64 KiB. What is more than a 4,096th of all is shown.
pub const CANDIDATES: usize = 4096;
/// Bytes of a path or user agent that are shown.
pub const TEXT_BYTES_MAX: usize = 192;

/// The top lists of a generation.
#[derive(Debug)]
pub struct Generation {
    /// When it began, Unix µs; 0: never.
    pub since_us: u64,
    /// Sources.
    pub sources: TopList,
    /// Paths.
    pub paths: TopList,
    /// User agents.
    pub user_agents: TopList,
}

impl Generation {
    fn new() -> Self {
        Self {
            since_us: 0,
            sources: TopList::new(CANDIDATES, 0),
            paths: TopList::new(CANDIDATES, TEXT_BYTES_MAX),
            user_agents: TopList::new(CANDIDATES, TEXT_BYTES_MAX),
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Summary {
    /// Counters of minutes.
    pub timeline: Timeline,
    /// The generation that counts now, and the one before.
    generations: [Generation; 2],
    /// Shares of the last minute.
    pub hot: HotSources,
}

impl Summary {
    /// Nothing counted.
    pub fn new() -> Self {
        Self { timeline: Timeline::new(), generations: [Generation::new(), Generation::new()], hot: HotSources::default() }
    }

    /// From now on requests of this time are counted. Call once a batch.
    pub fn begin(&mut self, arrival_us: u64) {
        self.timeline.begin(arrival_us);
        self.hot.begin(arrival_us);
        if arrival_us >= self.generations[0].since_us + GENERATION_US {
            self.generations.rotate_right(1);
            let now = &mut self.generations[0];
            now.since_us = arrival_us;
            [&mut now.sources, &mut now.paths, &mut now.user_agents].into_iter().for_each(TopList::clear);
        }
    }

    /// Counts a request.
    #[inline]
    pub fn count<'a>(&mut self, observation: &Observation<'a>, scratch: &'a Bump) {
        let (application, record) = (observation.application, observation.record());
        self.timeline.count(Counted {
            application,
            status: observation.status,
            is_blocked: record.flags() & FLAG_BLOCKED != 0,
            has_hits: observation.has_hits,
            response_us: record.response_us(),
        });
        if observation.has_hits {
            record.hits().for_each(|hit| self.timeline.count_hit(hit.attack_type));
        }
        // Whatever the application: a proxy is in front of all of them.
        self.hot.count(observation.source.key());
        let now = &mut self.generations[0];
        now.sources.count(observation.source_fingerprint, application, observation.source.key(), || &[]);
        let path = observation.target.template_fingerprint ^ of_application(observation);
        now.paths.count(path, application, 0, || observation.template(scratch));
        if !record.user_agent().is_empty() {
            let user_agent = observation.user_agent_fingerprint ^ of_application(observation);
            now.user_agents.count(user_agent, application, 0, || record.user_agent());
        }
    }

    /// Brings what [`Self::count`] will look at into the cache, as far as it does not hang on the path.
    #[inline]
    pub fn prefetch(&self, observation: &Observation<'_>) {
        let now = &self.generations[0];
        now.sources.prefetch(observation.source_fingerprint);
        now.user_agents.prefetch(observation.user_agent_fingerprint ^ of_application(observation));
    }

    /// Counts a path alone. For tests.
    #[cfg(test)]
    pub fn count_path(&mut self, fingerprint: u64, path: &[u8]) {
        self.count_path_of(0, fingerprint, path);
    }

    /// Counts a path of an application alone. For tests.
    #[cfg(test)]
    pub fn count_path_of(&mut self, application: i32, fingerprint: u64, path: &[u8]) {
        self.generations[0].paths.count(fingerprint, application, 0, || path);
    }

    /// The generations that hold anything of the last half hour, the newer first: without traffic nothing clears the others.
    pub fn generations(&self, now_us: u64) -> impl Iterator<Item = &Generation> {
        let begins_us = now_us.saturating_sub(2 * GENERATION_US);
        self.generations.iter().filter(move |generation| generation.since_us > begins_us)
    }
}

/// Tells the fingerprints of path and user agent of different applications apart: they are keyed already, so an odd multiple is enough.
#[inline]
fn of_application(observation: &Observation<'_>) -> u64 {
    u64::from(observation.application.cast_unsigned()).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

impl Default for Summary {
    fn default() -> Self {
        Self::new()
    }
}
