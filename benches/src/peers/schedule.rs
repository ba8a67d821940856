//! When messages of an open loop are due.
//!
//! Two laws: evenly spaced over all connections (latency at a third of the maximum), and a fleet of filtering nodes. A node of
//! the fleet has one lane per shard of a server with eight, and each of its records goes to the lane of its source; records
//! come at random (exponential gaps), and a lane sends 200 ms after the first record that waits in it, as the client crate does
//! at such a rate. So a message holds three records in the mean.

use fastrand::Rng;

/// Filtering nodes of the fleet.
pub const FLEET_CLIENTS: usize = 1_000;
/// Lanes of each: the shards of the server that they would talk to.
pub const FLEET_LANES: usize = 8;
/// Records per second of each node.
pub const FLEET_CLIENT_RATE: u64 = 80;
/// Records per second of all.
pub const FLEET_RATE: u64 = FLEET_CLIENTS as u64 * FLEET_CLIENT_RATE;
/// How long the first record of a message waits for others: the client's longest linger, which it has at this rate.
const LINGER_NS: u64 = 200_000_000;
/// Most records of a fleet message; more within 200 ms are rare at such a rate.
pub const FLEET_BATCH_MAX: usize = 8;

/// A message that is due, ns after the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Due {
    /// When.
    pub at_ns: u64,
    /// On which connection.
    pub connection: u32,
    /// With how many records.
    pub records: u32,
}

/// `rate` records per second in messages of `size` records, evenly, over the connections in turn.
pub fn even(rate: f64, size: usize, connections: usize, span_ns: u64) -> Vec<Due> {
    let gap_ns = size as f64 * 1e9 / rate.max(1.0);
    let count = (span_ns as f64 / gap_ns) as u64;
    let due =
        |n: u64| Due { at_ns: (n as f64 * gap_ns) as u64, connection: (n % connections as u64) as u32, records: size as u32 };
    (0..count).map(due).collect()
}

/// The messages of the fleet, in the order in which they are due.
pub fn fleet(seed: u64, connections: usize, span_ns: u64) -> Vec<Due> {
    let mut rng = Rng::with_seed(seed);
    let mean_gap_ns = 1e9 * connections as f64 / FLEET_RATE as f64;
    let mut all = Vec::new();
    for connection in 0..connections as u32 {
        let gap = |rng: &mut Rng| (-(1.0 - rng.f64()).ln() * mean_gap_ns) as u64;
        let mut next_ns = gap(&mut rng);
        while next_ns < span_ns {
            let at_ns = next_ns + LINGER_NS;
            let mut records = 0;
            while next_ns <= at_ns && records < FLEET_BATCH_MAX as u32 {
                records += 1;
                next_ns += gap(&mut rng);
            }
            all.push(Due { at_ns, connection, records });
        }
    }
    all.sort_unstable();
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn even_is_even() {
        let due = even(64_000.0, 64, 4, 1_000_000_000);
        assert_eq!(due.len(), 1000);
        assert_eq!((due[5].at_ns, due[5].connection, due[5].records), (5_000_000, 1, 64));
    }

    #[test]
    fn the_fleet_keeps_its_rate_and_its_batches_are_small() {
        let due = fleet(1, FLEET_CLIENTS * FLEET_LANES, 3_000_000_000);
        // Nothing is due within the first linger, and batches that begin before the end are due after it.
        let within = || due.iter().filter(|due| (1_000_000_000..3_000_000_000).contains(&due.at_ns));
        let records: u64 = within().map(|due| u64::from(due.records)).sum();
        assert!((records as f64 / (2.0 * FLEET_RATE as f64) - 1.0).abs() < 0.02, "{records}");
        let mean = records as f64 / within().count() as f64;
        assert!((2.8..3.1).contains(&mean), "{mean}");
        assert!(due.is_sorted());
    }
}
