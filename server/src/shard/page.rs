//! The statistics page of a shard: written by the shard once a turn, read by anyone at any time.
//!
//! A sequence lock over plain atomics: the version is odd while the shard writes, and a reader that sees it change reads
//! again. So a reader always gets counters of one instant, and the laws between them hold in every reading.

use super::histogram::{LatencyHistogram, VALUES};
use crate::sync::{AtomicU64, Ordering, fence, spin_loop};

macro_rules! shard_stats {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters and gauges of one shard. Counters only grow; laws: `received = stored + rejected + duplicate`,
        /// `stored = live + evicted` (records of the request log).
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct ShardStats { $($(#[$doc])* pub $name: u64,)* }

        impl ShardStats {
            /// Names of the values, in the order of [`Self::values`].
            pub const NAMES: &'static [&'static str] = &[$(stringify!($name)),*];

            /// All values, in order.
            pub fn values(&self) -> [u64; Self::NAMES.len()] {
                [$(self.$name),*]
            }

            fn from_values(values: [u64; Self::NAMES.len()]) -> Self {
                let [$($name),*] = values;
                Self { $($name),* }
            }
        }
    };
}

shard_stats! {
    /// Connections open now.
    connections,
    /// Records of Batch frames that arrived whole, or were refused by their header.
    records_received,
    /// Records committed to the request log.
    records_stored,
    /// Records of batches refused for their content or order.
    records_rejected,
    /// Records of batches that were stored before.
    records_duplicate,
    /// Bytes of places committed to the request log, headers included.
    bytes_stored,
    /// Records in the request log now.
    records_live,
    /// Records whose slab was recycled.
    records_evicted,
    /// Records copied to the attack log.
    attack_records_stored,
    /// Records in the attack log now.
    attack_records_live,
    /// Batch frames stored.
    frames_stored,
    /// Frames whose analysis panicked.
    frames_quarantined,
    /// Error frames sent, of every code.
    errors_sent,
    /// Connections adopted.
    connections_adopted,
    /// Connections closed for unfinished frames: past their deadline, in a recycled slab, or too many of them.
    connections_shed,
    /// Open places in the request log now.
    open_places,
    /// Bytes of open places now.
    open_place_bytes,
    /// Places that were begun and never committed.
    places_void,
    /// Times that a connection had to wait for receive buffers.
    receive_starved,
    /// Sessions known.
    sessions,
    /// Verdicts live.
    verdicts_live,
    /// Verdicts made, by detectors and by hand: new ones, and renewals.
    verdicts_made,
    /// Verdicts that yielded to later ones because the set was full.
    verdicts_displaced,
    /// Alerts raised.
    alerts_raised,
    /// Alerts that were final before their hold ended, for want of room.
    alerts_cut_short,
    /// Events that came too late for the key's clock.
    events_late,
    /// Records that cannot have happened when they say.
    records_time_impossible,
    /// Records of a method that is not known.
    records_method_unknown,
    /// Records with a hit of a type that is not known.
    records_hit_type_unknown,
    /// Records with a path that is longer than is shown.
    records_path_long,
    /// Keys that detectors have state of now.
    keys_live,
    /// Keys that they have room for.
    keys_max,
    /// Keys that yielded to others.
    keys_evicted,
    /// Of them, those that were over half of a threshold.
    keys_evicted_hot,
    /// Of all that yielded, those that did for the room of their lists.
    keys_evicted_for_lists,
    /// Bytes of lists of keys in use.
    key_lists_bytes,
    /// Bytes that there are for them.
    key_lists_bytes_max,
    /// Entries of such lists that were dropped because there was no room: none, as long as keys yield for it.
    key_list_entries_dropped,
    /// New keys lost before their second event, because the table was full.
    keys_overwritten,
    /// Hits that were counted and not kept whole, for there were five like them in the hour.
    hits_suppressed,
    /// Largest share of the requests of the last minute that a source sends, of this shard's, thousandths.
    hottest_source_permille,
    /// Listings that were not made, for the source is on the allowlist.
    listings_allowed,
    /// Listings that were not made, for the source seems to be a proxy.
    listings_real_ip_suspect,
    /// Listings that were not made, for too many sources are listed.
    listings_too_many,
    /// Listings that were not made, for too many of one batch wait to be made, or the set is full of others by hand.
    listings_no_room,
    /// Events for the correlator that were dropped, because it did not keep up.
    derived_lost,
    /// Largest scratch memory of a batch, bytes.
    scratch_bytes_peak,
    /// Bytes of the request log's and attack log's slabs together.
    arena_bytes_total,
    /// Bytes of slabs that hold places now.
    arena_bytes_used,
    /// Arrival of the oldest stored request, Unix µs; 0 if there is none.
    oldest_arrival_us,
    /// Arrival of the newest stored request, Unix µs; 0 if there is none.
    newest_arrival_us,
    /// CPU time of the shard's thread, µs.
    cpu_us,
    /// Loop turns.
    turns,
    /// Completions that came for operations long over.
    completions_stale,
    /// Times that the kernel asked to repeat a wait or a submission.
    ring_retries,
    /// Receive to ack, median of the last interval, ns.
    ack_latency_p50_ns,
    /// Receive to ack, 99th percentile of the last interval, ns.
    ack_latency_p99_ns,
    /// Receive to ack, 99.9th percentile of the last interval, ns.
    ack_latency_p999_ns,
    /// Receive to ack, largest of the last interval, ns.
    ack_latency_max_ns,
}

impl ShardStats {
    /// Oldest to newest stored request by arrival, µs: the timeframe.
    pub const fn timeframe_us(&self) -> u64 {
        // Without an oldest there is none, although a newest is remembered.
        if self.oldest_arrival_us == 0 { 0 } else { self.newest_arrival_us.saturating_sub(self.oldest_arrival_us) }
    }
}

/// What is published once an interval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShardTotals {
    /// Alerts raised, by detector.
    pub alerts: [u64; DETECTORS],
    /// Receive to ack.
    pub ack_latency: LatencyHistogram,
    /// Receive of the deciding bytes to the verdict's hand-over to the kernel.
    pub verdict_latency: LatencyHistogram,
}

/// Detectors, those of users included.
pub const DETECTORS: usize = 12;
const TOTALS: usize = DETECTORS + 2 * VALUES;

/// See the module.
#[derive(Debug, Default)]
pub struct StatsPage {
    values: SequenceLock<{ ShardStats::NAMES.len() }>,
    totals: SequenceLock<TOTALS>,
}

impl StatsPage {
    /// Publishes `stats`. Only the shard that owns the page may call this.
    pub fn publish(&self, stats: &ShardStats) {
        self.values.publish(stats.values());
    }

    /// Publishes `totals`. Only the shard that owns the page may call this.
    pub fn publish_totals(&self, totals: &ShardTotals) {
        let mut values = [0; TOTALS];
        values[..DETECTORS].copy_from_slice(&totals.alerts);
        values[DETECTORS..][..VALUES].copy_from_slice(&totals.ack_latency.values());
        values[DETECTORS + VALUES..].copy_from_slice(&totals.verdict_latency.values());
        self.totals.publish(values);
    }

    /// Reads the totals of one instant.
    pub fn read_totals(&self) -> ShardTotals {
        let values = self.totals.read();
        ShardTotals {
            alerts: std::array::from_fn(|at| values[at]),
            ack_latency: LatencyHistogram::of_values(&values[DETECTORS..][..VALUES]),
            verdict_latency: LatencyHistogram::of_values(&values[DETECTORS + VALUES..]),
        }
    }

    /// Reads the values of one instant.
    pub fn read(&self) -> ShardStats {
        ShardStats::from_values(self.values.read())
    }
}

/// Numbers that one thread writes together and any thread reads together.
#[derive(Debug)]
pub struct SequenceLock<const N: usize> {
    version: AtomicU64,
    values: [AtomicU64; N],
}

impl<const N: usize> Default for SequenceLock<N> {
    fn default() -> Self {
        Self { version: AtomicU64::new(0), values: std::array::from_fn(|_| AtomicU64::new(0)) }
    }
}

impl<const N: usize> SequenceLock<N> {
    /// Publishes `values`. Only one thread may ever call this.
    pub fn publish(&self, values: [u64; N]) {
        let version = self.version.load(Ordering::Relaxed);
        self.version.store(version.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        for (slot, value) in self.values.iter().zip(values) {
            slot.store(value, Ordering::Relaxed);
        }
        self.version.store(version.wrapping_add(2), Ordering::Release);
    }

    /// Reads the values of one instant.
    pub fn read(&self) -> [u64; N] {
        loop {
            let before = self.version.load(Ordering::Acquire);
            let mut values = [0; N];
            for (value, slot) in values.iter_mut().zip(&self.values) {
                *value = slot.load(Ordering::Relaxed);
            }
            fence(Ordering::Acquire);
            if before.is_multiple_of(2) && self.version.load(Ordering::Relaxed) == before {
                return values;
            }
            spin_loop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn readers_never_see_a_torn_page() {
        let page = Arc::new(StatsPage::default());
        let writer = std::thread::spawn({
            let page = Arc::clone(&page);
            move || {
                for n in 0..200_000u64 {
                    page.publish(&ShardStats::from_values([n; ShardStats::NAMES.len()]));
                }
            }
        });
        let mut readings = 0;
        while !writer.is_finished() {
            let values = page.read().values();
            assert!(values.iter().all(|value| *value == values[0]), "{values:?}");
            readings += 1;
        }
        writer.join().expect("the writer ends well");
        assert!(readings > 0);
        assert_eq!(page.read().records_stored, 199_999);
    }
}
