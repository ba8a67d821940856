//! Statistics of the servers, each summed over its shards.

use postanalytics_protocol::frames::Stats;
use thiserror::Error;

/// Why there are no statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum StatsError {
    /// Not every shard answered in time, of a server that takes records.
    #[error("not every shard of the server answered in time; is it reachable? See Client::status")]
    Timeout,
    /// The client is closed.
    #[error("the client is closed")]
    Closed,
    /// This process was forked from the one that built the client.
    #[error("the client belongs to another process, of which this one is a fork; build a client after fork")]
    Forked,
}

/// What the server says of itself, and of this client's session. Records unless the name says otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServerStats {
    /// Stored of this client's session.
    pub stored: u64,
    /// Received again of this client's session, and dropped.
    pub duplicate: u64,
    /// Refused of this client's session.
    pub rejected: u64,
    /// CPU time of the server process, µs.
    pub cpu_us: u64,
    /// Memory of the server process, bytes.
    pub rss_bytes: u64,
    /// Time since the server started, µs.
    pub uptime_us: u64,
    /// Received by all shards, from anyone.
    pub shard_records_received: u64,
    /// Stored by all shards.
    pub shard_records_stored: u64,
    /// Refused by all shards.
    pub shard_records_rejected: u64,
    /// Received again by all shards.
    pub shard_records_duplicate: u64,
    /// Live in the request logs of all shards.
    pub shard_records_live: u64,
    /// Evicted from the request logs of all shards.
    pub shard_records_evicted: u64,
    /// CPU time of all shards, µs.
    pub shard_cpu_us: u64,
    /// Smallest timeframe of all shards, µs.
    pub shard_timeframe_us: u64,
    /// Number of shards.
    pub shards: u32,
}

impl ServerStats {
    /// Adds what another server says: its numbers, its CPU time and memory; of uptime and timeframe the smallest.
    pub fn add_server(&mut self, other: &Self) {
        let smallest = |one: u64, other: u64, is_first: bool| if is_first { other } else { one.min(other) };
        let is_first = self.shards == 0;
        self.uptime_us = smallest(self.uptime_us, other.uptime_us, is_first);
        self.shard_timeframe_us = smallest(self.shard_timeframe_us, other.shard_timeframe_us, is_first);
        for (sum, add) in [
            (&mut self.stored, other.stored),
            (&mut self.duplicate, other.duplicate),
            (&mut self.rejected, other.rejected),
            (&mut self.cpu_us, other.cpu_us),
            (&mut self.rss_bytes, other.rss_bytes),
            (&mut self.shard_records_received, other.shard_records_received),
            (&mut self.shard_records_stored, other.shard_records_stored),
            (&mut self.shard_records_rejected, other.shard_records_rejected),
            (&mut self.shard_records_duplicate, other.shard_records_duplicate),
            (&mut self.shard_records_live, other.shard_records_live),
            (&mut self.shard_records_evicted, other.shard_records_evicted),
            (&mut self.shard_cpu_us, other.shard_cpu_us),
        ] {
            *sum = sum.saturating_add(add);
        }
        self.shards = self.shards.saturating_add(other.shards);
    }

    /// Adds what one shard says.
    pub(crate) fn add(&mut self, shard: &Stats) {
        self.stored = self.stored.saturating_add(shard.session_records_stored);
        self.duplicate = self.duplicate.saturating_add(shard.session_records_duplicate);
        self.rejected = self.rejected.saturating_add(shard.session_records_rejected);
        // Of the process: every shard says nearly the same.
        self.cpu_us = self.cpu_us.max(shard.process_cpu_us);
        self.rss_bytes = self.rss_bytes.max(shard.process_rss_bytes);
        self.uptime_us = self.uptime_us.max(shard.uptime_us);
        self.shard_records_received = self.shard_records_received.saturating_add(shard.shard_records_received);
        self.shard_records_stored = self.shard_records_stored.saturating_add(shard.shard_records_stored);
        self.shard_records_rejected = self.shard_records_rejected.saturating_add(shard.shard_records_rejected);
        self.shard_records_duplicate = self.shard_records_duplicate.saturating_add(shard.shard_records_duplicate);
        self.shard_records_live = self.shard_records_live.saturating_add(shard.shard_records_live);
        self.shard_records_evicted = self.shard_records_evicted.saturating_add(shard.shard_records_evicted);
        self.shard_cpu_us = self.shard_cpu_us.saturating_add(shard.shard_cpu_us);
        let smallest = if self.shards == 0 { u64::MAX } else { self.shard_timeframe_us };
        self.shard_timeframe_us = smallest.min(shard.shard_timeframe_us);
        self.shards += 1;
    }
}
