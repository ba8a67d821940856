//! What a Welcome says of the server: its shards, its keys, its limits.

use crate::batcher::BatchLimits;
use crate::bundle::IdentityKey;
use crate::config::Config;
use postanalytics_protocol::frames::{PackageVersion, Welcome};
use postanalytics_protocol::{Source, shard_of};

/// The server as the last Welcome described it.
pub(crate) struct Topology {
    pub(crate) server_id: [u8; 16],
    pub(crate) version: PackageVersion,
    pub(crate) epoch: u64,
    pub(crate) shard_count: u32,
    routing_seed: u64,
    pub(crate) key: IdentityKey,
    pub(crate) limits: BatchLimits,
}

impl Topology {
    pub(crate) fn new(welcome: &Welcome, config: &Config) -> Self {
        let body_bytes_max = welcome.max_body_bytes as usize;
        Self {
            server_id: welcome.server_id,
            version: welcome.package,
            epoch: welcome.epoch,
            shard_count: welcome.shard_count,
            routing_seed: welcome.routing_seed,
            key: IdentityKey::new(&welcome.identity_key),
            limits: BatchLimits {
                body_bytes: config.batch_bytes.min(body_bytes_max),
                body_bytes_max,
                records_max: config.batch_records_max,
            },
        }
    }

    /// Whether a Welcome comes from the same server with the same shards, so that sequences go on.
    pub(crate) fn is_of(&self, welcome: &Welcome) -> bool {
        let shards = (self.shard_count, self.routing_seed) == (welcome.shard_count, welcome.routing_seed);
        shards && (self.server_id, self.epoch) == (welcome.server_id, welcome.epoch)
    }

    /// The lane of a source.
    pub(crate) const fn shard_of(&self, source: Source) -> usize {
        shard_of(source, self.routing_seed, self.shard_count) as usize
    }
}

/// The highest sequence of an (epoch, shard) that a Welcome says is stored; without an entry, none.
pub(crate) fn stored_of(welcome: &Welcome, epoch: u64, shard: u32) -> u64 {
    let entries = welcome.stored.iter().filter(|entry| (entry.epoch, entry.shard) == (epoch, shard));
    entries.map(|entry| entry.sequence).max().unwrap_or(0)
}
