//! Counters of all requests of a shard, for pages: none is asked by a detector.
//!
//! - [`timeline`]: of each application in each minute, with [`latency`] for response times
//! - [`top`]: the most frequent sources, paths and user agents of two quarters of an hour
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
use postanalytics_protocol::RecordView;
use postanalytics_protocol::schema::v1::FLAG_BLOCKED;
use timeline::{Counted, Timeline};
use top::TopList;

/// Length of a generation of the top lists, µs.
const GENERATION_US: u64 = 15 * timeline::MINUTE_US;
/// Candidates of a list.
pub const CANDIDATES: usize = 1024;
/// Bytes of a path or user agent that are shown.
pub const TEXT_BYTES_MAX: usize = 192;
/// Blocks of a sketch: 256 KiB.
const BLOCKS: usize = 4096;

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
            sources: TopList::new(CANDIDATES, 0, BLOCKS),
            paths: TopList::new(CANDIDATES, TEXT_BYTES_MAX, BLOCKS),
            user_agents: TopList::new(CANDIDATES, TEXT_BYTES_MAX, BLOCKS),
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

    /// Counts a request, whose fingerprints are those that [`Self::prefetch`] said.
    #[inline]
    pub fn count<'a>(&mut self, observation: &Observation<'a>, record: &RecordView<'_>, scratch: &'a Bump) {
        let application = observation.application;
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
        let [path, user_agent] = observation.summary_fingerprints;
        now.paths.count(path, application, 0, || observation.template(scratch));
        if !record.user_agent().is_empty() {
            now.user_agents.count(user_agent, application, 0, || record.user_agent());
        }
    }

    /// Brings what [`Self::count`] will look at into the cache. Returns the fingerprints of path and user agent, of this application.
    #[inline]
    pub fn prefetch(&self, observation: &Observation<'_>, user_agent: u64) -> [u64; 2] {
        let now = &self.generations[0];
        // Keyed already: an odd multiple is enough to tell applications apart.
        let of_application = u64::from(observation.application.cast_unsigned()).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let path = observation.target.template_fingerprint ^ of_application;
        let user_agent = user_agent ^ of_application;
        now.sources.prefetch(observation.source_fingerprint);
        now.paths.prefetch(path);
        now.user_agents.prefetch(user_agent);
        [path, user_agent]
    }

    /// Counts a path alone. For tests.
    #[cfg(test)]
    pub fn count_path(&mut self, fingerprint: u64, path: &[u8]) {
        self.generations[0].paths.count(fingerprint, 0, 0, || path);
    }

    /// The generations that hold anything, the newer first.
    pub fn generations(&self) -> impl Iterator<Item = &Generation> {
        self.generations.iter().filter(|generation| generation.since_us > 0)
    }
}

impl Default for Summary {
    fn default() -> Self {
        Self::new()
    }
}
