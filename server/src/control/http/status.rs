//! `/status`: the server at one instant, as JSON.

use super::record;
use crate::config::values::GIGABYTE;
use crate::control::ask;
use crate::control::state::State;
use crate::correlator::messages::{Ask, Reply};
use crate::process;
use crate::shard::messages::ConnectionTicket;
use crate::shard::page::ShardStats;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Timeframe above which all is well, seconds.
const TIMEFRAME_FINE_SECONDS: f64 = 900.0;
/// Timeframe below which it is critical, seconds.
const TIMEFRAME_CRITICAL_SECONDS: f64 = 300.0;
/// Timeframe below which a shard that recycled nothing says nothing about the rate, seconds.
const YOUNG_SECONDS: f64 = 30.0;
/// Clients that the page shows; `connections` counts them all.
const CLIENTS_SHOWN: usize = 1000;

/// The page.
pub(in crate::control) async fn status(state: &State) -> Value {
    let clocks: HashMap<[u8; 16], i64> = match ask::correlator(state, Ask::Clocks).await {
        Some(Reply::Clocks(clocks)) => clocks.into_iter().collect(),
        _ => HashMap::new(),
    };
    let stats: Vec<ShardStats> = state.shards().iter().map(|shard| shard.page.read()).collect();
    let shards = state.shards().iter().zip(&stats).map(|(shard, stats)| {
        let mut entry = counts(stats, seconds(stats.timeframe_us()));
        entry["id"] = shard.shard.into();
        entry["cpu"] = shard.cpu.into();
        entry
    });
    let shards: Vec<Value> = shards.collect();
    let total = sum(&stats);
    let timeframe = timeframe_seconds(&stats);
    let tickets = state.live_tickets();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "server_id": uuid::Uuid::from_bytes(state.topology.server_id).to_string(),
        "deployment_id": uuid::Uuid::from_bytes(state.topology.deployment_id).to_string(),
        "uptime_seconds": process::uptime().as_secs_f64(),
        "ready": state.ready(),
        "detectors_run": state.detectors_run(),
        "shards": shards,
        "totals": counts(&total, timeframe),
        "arena": {
            "bytes_total": total.arena_bytes_total,
            "bytes_used": total.arena_bytes_used,
            "huge_pages": !state.shards().is_empty() && state.shards().iter().all(|shard| shard.huge_pages),
        },
        "timeframe": {
            "seconds": timeframe,
            "level": level(&stats).name(),
            "arena_gb_for_900s": arena_gigabytes_for_fine(&stats),
        },
        "connections": tickets.len(),
        "clients": clients(&tickets, state, &clocks),
        "cpu_seconds": process::cpu_time().as_secs_f64(),
    })
}

fn counts(stats: &ShardStats, timeframe_seconds: f64) -> Value {
    json!({
        "connections": stats.connections,
        "records_received": stats.records_received,
        "records_stored": stats.records_stored,
        "records_rejected": stats.records_rejected,
        "records_duplicate": stats.records_duplicate,
        "bytes_stored": stats.bytes_stored,
        "live_records": stats.records_live,
        "evicted_records": stats.records_evicted,
        "timeframe_seconds": timeframe_seconds,
    })
}

/// The sums of what the page shows.
fn sum(stats: &[ShardStats]) -> ShardStats {
    stats.iter().fold(ShardStats::default(), |sum, one| ShardStats {
        connections: sum.connections + one.connections,
        records_received: sum.records_received + one.records_received,
        records_stored: sum.records_stored + one.records_stored,
        records_rejected: sum.records_rejected + one.records_rejected,
        records_duplicate: sum.records_duplicate + one.records_duplicate,
        bytes_stored: sum.bytes_stored + one.bytes_stored,
        records_live: sum.records_live + one.records_live,
        records_evicted: sum.records_evicted + one.records_evicted,
        arena_bytes_total: sum.arena_bytes_total + one.arena_bytes_total,
        arena_bytes_used: sum.arena_bytes_used + one.arena_bytes_used,
        ..sum
    })
}

fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

/// The timeframe of the server: the smallest of its shards.
pub(in crate::control) fn timeframe_seconds(stats: &[ShardStats]) -> f64 {
    stats.iter().map(ShardStats::timeframe_us).min().map_or(0.0, seconds)
}

/// How the timeframe is judged; the number is that of the metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::control) enum Level {
    Ok = 0,
    Warning = 1,
    Critical = 2,
}

impl Level {
    const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

/// Judges the timeframe. A shard that never had to evict says nothing about the size of its arena yet.
pub(in crate::control) fn level(stats: &[ShardStats]) -> Level {
    let judged = stats.iter().filter(|stats| stats.records_evicted > 0).map(|stats| seconds(stats.timeframe_us()));
    match judged.fold(f64::INFINITY, f64::min) {
        timeframe if timeframe < TIMEFRAME_CRITICAL_SECONDS => Level::Critical,
        timeframe if timeframe < TIMEFRAME_FINE_SECONDS => Level::Warning,
        _ => Level::Ok,
    }
}

/// The arena that would hold 900 s at the present rate, gigabytes: what the fullest shard fills per second of its timeframe,
/// times 900, times the shards, for all get equal parts. 0 while there is nothing to go by.
pub(in crate::control) fn arena_gigabytes_for_fine(stats: &[ShardStats]) -> f64 {
    let bytes = stats.iter().filter_map(arena_bytes_per_second).map(|bytes| bytes * TIMEFRAME_FINE_SECONDS);
    let gigabytes = bytes.fold(0.0, f64::max) * stats.len() as f64 / GIGABYTE as f64;
    (gigabytes * 1000.0).ceil() / 1000.0
}

/// Bytes of arena that a shard fills in a second; `None` while it is too young to tell.
fn arena_bytes_per_second(stats: &ShardStats) -> Option<f64> {
    let timeframe = seconds(stats.timeframe_us());
    if stats.records_evicted > 0 {
        // The arena as it is holds this timeframe.
        return (timeframe > 0.0).then(|| stats.arena_bytes_total as f64 / timeframe);
    }
    // Nothing was recycled: what was ever stored is live. Not the slabs in use, of which each shard has one from the start.
    let (request_slabs, attack_slabs) = crate::arena::split_slabs(stats.arena_bytes_total);
    let arena_per_request_log = (request_slabs + attack_slabs) as f64 / request_slabs.max(1) as f64;
    (timeframe >= YOUNG_SECONDS).then(|| stats.bytes_stored as f64 * arena_per_request_log / timeframe)
}

/// Clients: connections of one node and session together, so many of them at most.
fn clients(tickets: &[Arc<ConnectionTicket>], state: &State, clocks: &HashMap<[u8; 16], i64>) -> Vec<Value> {
    let mut groups: BTreeMap<([u8; 16], u64), Vec<&ConnectionTicket>> = BTreeMap::new();
    for ticket in tickets {
        groups.entry((ticket.node, ticket.session)).or_default().push(ticket);
    }
    let describe = |((node, session), members): (([u8; 16], u64), Vec<&ConnectionTicket>)| {
        members.first().map(|first| {
            json!({
                "node": uuid::Uuid::from_bytes(node).to_string(),
                "name": first.name,
                "session": record::short_session(session),
                "version": first.package.to_string(),
                "peer": first.peer.to_string(),
                "connections": members.len(),
                // Arrival less sending: what the node's clock is behind this one, and the way here.
                "clock_offset_ms": clocks.get(&node).map(|offset_us| offset_us / 1000),
                "outdated_server": first.package > state.topology.package,
            })
        })
    };
    groups.into_iter().take(CLIENTS_SHOWN).filter_map(describe).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(timeframe_seconds: u64, evicted: u64, stored: u64) -> ShardStats {
        ShardStats {
            oldest_arrival_us: 1_000_000,
            newest_arrival_us: 1_000_000 + timeframe_seconds * 1_000_000,
            records_evicted: evicted,
            arena_bytes_total: GIGABYTE,
            bytes_stored: stored,
            ..ShardStats::default()
        }
    }

    #[test]
    fn a_young_server_is_ok_and_a_full_one_is_judged() {
        assert_eq!(level(&[]), Level::Ok);
        assert_eq!(level(&[shard(5, 0, 1)]), Level::Ok);
        assert_eq!(level(&[shard(901, 1, 1), shard(5, 0, 1)]), Level::Ok);
        assert_eq!(level(&[shard(901, 1, 1), shard(899, 1, 1)]), Level::Warning);
        assert_eq!(level(&[shard(901, 1, 1), shard(299, 1, 1)]), Level::Critical);
        assert_eq!(timeframe_seconds(&[shard(901, 1, 1), shard(299, 1, 1)]), 299.0);
        assert_eq!(timeframe_seconds(&[]), 0.0);
    }

    #[test]
    fn the_arena_for_900_s_follows_the_fullest_shard() {
        assert_eq!(arena_gigabytes_for_fine(&[shard(450, 1, 9 * GIGABYTE)]), 2.0);
        assert_eq!(arena_gigabytes_for_fine(&[shard(450, 1, 9 * GIGABYTE), shard(900, 1, 9 * GIGABYTE)]), 4.0);
        let flooded = ShardStats { newest_arrival_us: 1_100_000, ..shard(0, 1, GIGABYTE) };
        assert_eq!(arena_gigabytes_for_fine(&[flooded, shard(450, 1, GIGABYTE)]), 18_000.0, "0.1 s of timeframe counts too");
        assert_eq!(arena_gigabytes_for_fine(&[shard(0, 1, GIGABYTE)]), 0.0);
    }

    #[test]
    fn a_young_shard_names_no_arena_or_what_its_records_need() {
        assert_eq!(arena_gigabytes_for_fine(&[shard(29, 0, 1 << 20)]), 0.0);
        // 100 bytes a second, and a quarter of that for the attack log.
        let found = arena_gigabytes_for_fine(&[shard(30, 0, 3_000)]);
        assert!(found <= 0.001, "{found}");
        let found = arena_gigabytes_for_fine(&[shard(90, 0, GIGABYTE / 10)]);
        assert!((1.24..1.26).contains(&found), "{found}");
    }
}
