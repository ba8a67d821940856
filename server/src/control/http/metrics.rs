//! `/metrics`: Prometheus text. Labels are shard numbers and names of this program only; nothing that a peer sent.
//!
//! prometheus-client writes OpenMetrics, where a counter's type line leaves `_total` out; Prometheus' own text format has it
//! in both. So counters are declared under their full name here and their values written without a suffix of its making.

use super::status;
use crate::analytics::detectors::Detector;
use crate::analytics::users::USER_DETECTORS;
use crate::control::ask;
use crate::control::state::{Refused, State};
use crate::correlator::messages::{Ask, CorrelatorStats, Reply};
use crate::shard::histogram::LatencyHistogram;
use crate::shard::page::{ShardStats, ShardTotals};
use crate::{logging, process};
use postanalytics_protocol::ErrorCode;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

/// A value with its label, such as `shard` and `0`, if it has one.
type Sample = (Option<(&'static str, String)>, f64);

#[derive(Debug)]
struct Family {
    name: &'static str,
    help: &'static str,
    samples: Vec<Sample>,
}

/// A histogram of each shard.
#[derive(Debug)]
struct HistogramFamily {
    name: &'static str,
    help: &'static str,
    shards: Vec<LatencyHistogram>,
}

/// All values of one scrape.
#[derive(Debug)]
struct Snapshot {
    families: Vec<Family>,
    histograms: Vec<HistogramFamily>,
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        for family in &self.families {
            let kind = if family.name.ends_with("_total") { MetricType::Counter } else { MetricType::Gauge };
            let mut metric = encoder.encode_descriptor(family.name, family.help, None, kind)?;
            for (label, value) in &family.samples {
                match label {
                    Some(label) => metric.encode_family(&std::slice::from_ref(label))?.encode_gauge(value)?,
                    None => metric.encode_gauge(value)?,
                }
            }
        }
        for family in &self.histograms {
            let mut metric = encoder.encode_descriptor(family.name, family.help, None, MetricType::Histogram)?;
            for (shard, histogram) in family.shards.iter().enumerate() {
                let label = [("shard", shard.to_string())];
                let (sum, count, buckets) = (histogram.sum_seconds(), histogram.count(), histogram.buckets());
                let label = label.as_slice();
                metric.encode_family(&label)?.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
            }
        }
        Ok(())
    }
}

/// A value of a shard: metric, help, and how to get it from the page.
type ShardFamily = (&'static str, &'static str, fn(&ShardStats) -> f64);

const SHARD_FAMILIES: [ShardFamily; 58] = [
    ("postanalytics_connections", "Connections open now", |s| s.connections as f64),
    ("postanalytics_connections_adopted_total", "Connections that shards took over", |s| s.connections_adopted as f64),
    ("postanalytics_connections_shed_total", "Connections closed for frames that stayed unfinished", |s| {
        s.connections_shed as f64
    }),
    ("postanalytics_records_received_total", "Records of whole batches; received = stored + rejected + duplicate", |s| {
        s.records_received as f64
    }),
    ("postanalytics_records_stored_total", "Records stored; stored = live + evicted", |s| s.records_stored as f64),
    ("postanalytics_records_rejected_total", "Records of batches refused for content or order", |s| s.records_rejected as f64),
    ("postanalytics_records_duplicate_total", "Records of batches stored before", |s| s.records_duplicate as f64),
    ("postanalytics_records_live", "Records in the request log now", |s| s.records_live as f64),
    ("postanalytics_records_evicted_total", "Records whose slab was recycled", |s| s.records_evicted as f64),
    ("postanalytics_attack_records_stored_total", "Records copied to the attack log", |s| s.attack_records_stored as f64),
    ("postanalytics_attack_records_live", "Records in the attack log now", |s| s.attack_records_live as f64),
    ("postanalytics_stored_bytes_total", "Bytes committed to the request log", |s| s.bytes_stored as f64),
    ("postanalytics_frames_stored_total", "Batches stored", |s| s.frames_stored as f64),
    ("postanalytics_frames_quarantined_total", "Batches whose analysis failed", |s| s.frames_quarantined as f64),
    ("postanalytics_errors_sent_total", "Error frames that shards sent", |s| s.errors_sent as f64),
    ("postanalytics_places_open", "Frames being received now", |s| s.open_places as f64),
    ("postanalytics_places_open_bytes", "Bytes reserved for frames being received", |s| s.open_place_bytes as f64),
    ("postanalytics_places_void_total", "Frames begun and never committed", |s| s.places_void as f64),
    ("postanalytics_receive_starved_total", "Times that a connection waited for receive buffers", |s| s.receive_starved as f64),
    ("postanalytics_sessions", "Sessions known", |s| s.sessions as f64),
    ("postanalytics_verdicts_live", "Verdicts in force", |s| s.verdicts_live as f64),
    ("postanalytics_verdicts_total", "Verdicts made: new ones, and renewals", |s| s.verdicts_made as f64),
    ("postanalytics_verdicts_displaced_total", "Verdicts that yielded because the set was full", |s| s.verdicts_displaced as f64),
    ("postanalytics_alerts_raised_total", "Alerts raised", |s| s.alerts_raised as f64),
    ("postanalytics_alerts_cut_short_total", "Alerts final before their hold ended, for want of room", |s| {
        s.alerts_cut_short as f64
    }),
    ("postanalytics_events_late_total", "Events that came too late for the key's clock", |s| s.events_late as f64),
    ("postanalytics_records_time_impossible_total", "Records of the future or from over a day ago, as of then analysed", |s| {
        s.records_time_impossible as f64
    }),
    ("postanalytics_records_method_unknown_total", "Records of a method that is not known", |s| s.records_method_unknown as f64),
    ("postanalytics_records_hit_type_unknown_total", "Records with a hit of a type that is not known", |s| {
        s.records_hit_type_unknown as f64
    }),
    ("postanalytics_records_path_long_total", "Records with a path of over 2048 bytes", |s| s.records_path_long as f64),
    ("postanalytics_keys_live", "Keys that detectors have state of", |s| s.keys_live as f64),
    ("postanalytics_keys_max", "Keys that detectors have room for", |s| s.keys_max as f64),
    ("postanalytics_keys_evicted_total", "Keys that yielded to others", |s| s.keys_evicted as f64),
    ("postanalytics_keys_evicted_hot_total", "Keys over half of a threshold that yielded", |s| s.keys_evicted_hot as f64),
    ("postanalytics_keys_evicted_for_lists_total", "Keys that yielded for the room of their lists", |s| {
        s.keys_evicted_for_lists as f64
    }),
    ("postanalytics_key_lists_bytes", "Bytes of the lists of keys in use", |s| s.key_lists_bytes as f64),
    ("postanalytics_key_lists_max_bytes", "Bytes that there are for lists of keys", |s| s.key_lists_bytes_max as f64),
    ("postanalytics_key_list_entries_dropped_total", "Entries of lists of keys dropped for want of room: stays 0", |s| {
        s.key_list_entries_dropped as f64
    }),
    ("postanalytics_keys_overwritten_total", "New keys refused: lost before their second event", |s| s.keys_overwritten as f64),
    ("postanalytics_hits_suppressed_total", "Hits like five others of the hour, counted and not kept whole", |s| {
        s.hits_suppressed as f64
    }),
    ("postanalytics_hottest_source_share", "Largest share of a source of the requests of the last minute of its shard", |s| {
        s.hottest_source_permille as f64 / 1e3
    }),
    ("postanalytics_listings_allowed_total", "Listings not made for the allowlist", |s| s.listings_allowed as f64),
    ("postanalytics_listings_real_ip_suspect_total", "Listings not made for what seems to be a proxy", |s| {
        s.listings_real_ip_suspect as f64
    }),
    ("postanalytics_listings_too_many_total", "Listings not made while too many sources are listed", |s| {
        s.listings_too_many as f64
    }),
    (
        "postanalytics_listings_no_room_total",
        "Listings not made while too many of one batch wait, or for a set full of others by hand",
        |s| s.listings_no_room as f64,
    ),
    ("postanalytics_derived_lost_total", "Events for the correlator that were dropped", |s| s.derived_lost as f64),
    ("postanalytics_scratch_peak_bytes", "Largest scratch memory of a batch", |s| s.scratch_bytes_peak as f64),
    ("postanalytics_arena_bytes", "Bytes of the arena", |s| s.arena_bytes_total as f64),
    ("postanalytics_arena_used_bytes", "Bytes of slabs that hold records", |s| s.arena_bytes_used as f64),
    ("postanalytics_timeframe_seconds", "Oldest to newest stored request by arrival", |s| s.timeframe_us() as f64 / 1e6),
    ("postanalytics_shard_cpu_seconds_total", "CPU time of the shard", |s| s.cpu_us as f64 / 1e6),
    ("postanalytics_shard_turns_total", "Turns of the shard's loop", |s| s.turns as f64),
    ("postanalytics_completions_stale_total", "Completions of operations long over", |s| s.completions_stale as f64),
    ("postanalytics_ring_retries_total", "Waits and submissions that the kernel asked to repeat", |s| s.ring_retries as f64),
    ("postanalytics_ack_latency_p50_seconds", "Receive to ack, median of the last interval", |s| {
        s.ack_latency_p50_ns as f64 / 1e9
    }),
    ("postanalytics_ack_latency_p99_seconds", "Receive to ack, 99th percentile of the last interval", |s| {
        s.ack_latency_p99_ns as f64 / 1e9
    }),
    ("postanalytics_ack_latency_p999_seconds", "Receive to ack, 99.9th percentile of the last interval", |s| {
        s.ack_latency_p999_ns as f64 / 1e9
    }),
    ("postanalytics_ack_latency_max_seconds", "Receive to ack, longest of the last interval", |s| {
        s.ack_latency_max_ns as f64 / 1e9
    }),
];

/// A value of the correlator.
type CorrelatorFamily = (&'static str, &'static str, fn(&CorrelatorStats) -> u64);

const CORRELATOR_FAMILIES: [CorrelatorFamily; 15] = [
    ("postanalytics_alerts_kept", "Alerts that /alerts can show", |s| s.alerts_kept),
    ("postanalytics_alerts_forgotten_total", "Alerts that yielded to newer ones", |s| s.alerts_forgotten),
    ("postanalytics_user_alerts_raised_total", "Alerts about users", |s| s.user_alerts_raised),
    ("postanalytics_user_alerts_lost_total", "Reports of alerts about users that were dropped", |s| s.user_alerts_lost),
    ("postanalytics_user_keys_live", "Keys of users that detectors have state of, up to two a user", |s| s.user_keys_live),
    ("postanalytics_user_keys_max", "Keys of users that detectors have room for, up to two a user", |s| s.user_keys_max),
    ("postanalytics_user_keys_evicted_total", "Keys of users that yielded to others", |s| s.user_keys_evicted),
    ("postanalytics_user_keys_evicted_hot_total", "Keys of users over half of a threshold that yielded", |s| {
        s.user_keys_evicted_hot
    }),
    ("postanalytics_user_keys_overwritten_total", "New keys of users, two a user, lost before their second event", |s| {
        s.user_keys_overwritten
    }),
    ("postanalytics_attacks_live", "Attacks that /attacks can show", |s| s.attacks_live),
    ("postanalytics_attacks_forgotten_total", "Attacks that yielded to newer ones", |s| s.attacks_forgotten),
    ("postanalytics_attacks_cut_short_total", "Attacks forgotten although hits could still join them", |s| s.attacks_cut_short),
    (
        "postanalytics_attack_sources_forgotten_total",
        "Fingerprints of sources beyond 32 of an attack that yielded to newer ones",
        |s| s.attack_sources_forgotten,
    ),
    ("postanalytics_events_written_total", "Lines written to the events file", |s| s.events_written),
    ("postanalytics_events_lost_total", "Lines for the events file that were dropped", |s| s.events_lost),
];

/// The page.
pub(in crate::control) async fn metrics(state: &State) -> String {
    let correlator = ask::correlator(state, Ask::Stats).await;
    let stats: Vec<ShardStats> = state.shards().iter().map(|shard| shard.page.read()).collect();
    let mut families = server_families(state, &stats);
    for (name, help, value) in SHARD_FAMILIES {
        let of_shard = |(shard, stats)| (Some(("shard", format!("{shard}"))), value(stats));
        families.push(Family { name, help, samples: (0u32..).zip(&stats).map(of_shard).collect() });
    }
    let totals: Vec<ShardTotals> = state.shards().iter().map(|shard| shard.page.read_totals()).collect();
    let of_users = match &correlator {
        Some(Reply::Stats(stats)) => Some(stats),
        _ => None,
    };
    families.push(alerts_by_detector(&totals, of_users));
    if let Some(Reply::Clocks(clocks)) = ask::correlator(state, Ask::Clocks).await {
        let largest_us = clocks.iter().map(|(_, offset_us)| offset_us.unsigned_abs()).max().unwrap_or(0);
        families.push(Family {
            name: "postanalytics_node_clock_offset_max_seconds",
            help: "Largest offset of a node's clock, either way; /status says whose",
            samples: vec![(None, largest_us as f64 / 1e6)],
        });
    }
    if let Some(Reply::Stats(correlator)) = correlator {
        families.extend(CORRELATOR_FAMILIES.iter().map(|(name, help, value)| Family {
            name,
            help,
            samples: vec![(None, value(&correlator) as f64)],
        }));
    }
    // A family without samples would be a declaration of nothing.
    families.retain(|family| !family.samples.is_empty());
    render(Snapshot { families, histograms: histograms(&totals) })
}

/// Those of users are the correlator's: they are left out while it does not answer.
fn alerts_by_detector(totals: &[ShardTotals], of_users: Option<&CorrelatorStats>) -> Family {
    let of_detector = |detector: &Detector| {
        let count: u64 = totals.iter().filter_map(|shard| shard.alerts.get(*detector as usize)).sum();
        (Some(("detector", detector.name().to_owned())), count as f64)
    };
    let of_sources = Detector::ALL.iter().filter(|detector| !USER_DETECTORS.contains(detector));
    let mut samples: Vec<Sample> = if totals.is_empty() { Vec::new() } else { of_sources.map(of_detector).collect() };
    for detector in USER_DETECTORS {
        let count = of_users.map(|stats| match detector {
            Detector::UserBruteForce => stats.user_brute_force_alerts,
            _ => stats.user_many_sources_alerts,
        });
        samples.extend(count.map(|count| (Some(("detector", detector.name().to_owned())), count as f64)));
    }
    Family { name: "postanalytics_alerts_total", help: "Alerts raised", samples }
}

fn histograms(totals: &[ShardTotals]) -> Vec<HistogramFamily> {
    if totals.is_empty() {
        return Vec::new();
    }
    vec![
        HistogramFamily {
            name: "postanalytics_ack_latency_seconds",
            help: "Receive to ack",
            shards: totals.iter().map(|shard| shard.ack_latency).collect(),
        },
        HistogramFamily {
            name: "postanalytics_time_to_verdict_seconds",
            help: "Receive of the deciding bytes to the hand-over of the verdict to the kernel",
            shards: totals.iter().map(|shard| shard.verdict_latency).collect(),
        },
    ]
}

fn render(snapshot: Snapshot) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(snapshot));
    let mut page = String::new();
    // Writing into a String does not fail.
    let _ = text::encode_registry(&mut page, &registry);
    page
}

fn server_families(state: &State, stats: &[ShardStats]) -> Vec<Family> {
    let one = |name, help, value: f64| Family { name, help, samples: vec![(None, value)] };
    let counters = &state.counters;
    let refused = |reason: Refused| (Some(("reason", reason.name().to_owned())), counters.refused(reason).get() as f64);
    let errors = |code: ErrorCode| (Some(("code", code.name().to_owned())), counters.error(code).get() as f64);
    let version = env!("CARGO_PKG_VERSION").to_owned();
    vec![
        Family {
            name: "postanalytics_build_info",
            help: "Version of the server",
            samples: vec![(Some(("version", version)), 1.0)],
        },
        one("postanalytics_uptime_seconds", "Time since start", process::uptime().as_secs_f64()),
        one("postanalytics_ready", "1 when connections are taken", f64::from(u8::from(state.ready()))),
        one("postanalytics_shards", "Shards", state.topology.shard_count.into()),
        one("postanalytics_process_cpu_seconds_total", "CPU time of the process", process::cpu_time().as_secs_f64()),
        one("postanalytics_process_resident_memory_bytes", "Resident memory", process::resident_bytes() as f64),
        one("postanalytics_process_open_fds", "Open descriptors", open_descriptors() as f64),
        one("postanalytics_process_max_fds", "Most open descriptors", descriptors_max() as f64),
        one(
            "postanalytics_timeframe_min_seconds",
            "Smallest timeframe of a shard; 0 while one is empty",
            status::timeframe_seconds(stats),
        ),
        one(
            "postanalytics_timeframe_level",
            "0 ok, 1 warning below 900 s, 2 critical below 300 s; judged by shards that have evicted",
            f64::from(status::level(stats) as u8),
        ),
        one(
            "postanalytics_arena_wanted_bytes",
            "Arena that would hold 900 s at the present rate; 0 while there is too little to go by",
            status::arena_gigabytes_for_fine(stats) * crate::config::values::GIGABYTE as f64,
        ),
        one(
            "postanalytics_accept_errors_total",
            "Accepts that failed, most for peers that gave up",
            counters.accept_errors.get() as f64,
        ),
        one("postanalytics_connections_accepted_total", "Connections accepted", counters.accepted.get() as f64),
        one("postanalytics_connections_handed_over_total", "Connections handed to a shard", counters.handed_over.get() as f64),
        one(
            "postanalytics_connections_gone_total",
            "Peers that left before their Hello",
            counters.gone_before_hello.get() as f64,
        ),
        Family {
            name: "postanalytics_connections_refused_total",
            help: "Connections refused before their Hello; not_allowed also counts those to the status pages",
            samples: Refused::ALL.into_iter().map(refused).collect(),
        },
        Family {
            name: "postanalytics_handshake_errors_total",
            help: "Error frames sent before the hand-over",
            samples: ErrorCode::ALL.into_iter().map(errors).collect(),
        },
        one("postanalytics_http_requests_total", "Requests to the status pages", counters.http_requests.get() as f64),
        one(
            "postanalytics_log_lines_dropped_total",
            "Lines of the log dropped, because whoever reads it does not keep up",
            logging::lines_dropped() as f64,
        ),
    ]
}

fn open_descriptors() -> u64 {
    // The one that reads the folder is counted too and closed right after.
    std::fs::read_dir("/proc/self/fd").map_or(0, |entries| (entries.count() as u64).saturating_sub(1))
}

fn descriptors_max() -> u64 {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_that_of_prometheus() {
        let label = |shard: &str| Some(("shard", shard.to_owned()));
        let families = vec![
            Family { name: "a_total", help: "A", samples: vec![(label("0"), 1.0), (label("1"), 2.5)] },
            Family { name: "b_seconds", help: "B", samples: vec![(None, 3.0)] },
        ];
        let mut latency = LatencyHistogram::default();
        latency.record(20, 2);
        let histograms = vec![HistogramFamily { name: "c_seconds", help: "C", shards: vec![latency] }];
        let text = render(Snapshot { families, histograms });
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[..2], ["# HELP a_total A", "# TYPE a_total counter"]);
        assert_eq!(lines[2..4], ["a_total{shard=\"0\"} 1.0", "a_total{shard=\"1\"} 2.5"]);
        assert_eq!(lines[4..7], ["# HELP b_seconds B", "# TYPE b_seconds gauge", "b_seconds 3.0"]);
        assert_eq!(lines[7..9], ["# HELP c_seconds C", "# TYPE c_seconds histogram"]);
        for line in [
            "c_seconds_sum{shard=\"0\"} 0.00004",
            "c_seconds_count{shard=\"0\"} 2",
            "c_seconds_bucket{le=\"+Inf\",shard=\"0\"} 2",
        ] {
            assert!(lines.contains(&line), "{line} is missing: {text}");
        }
    }

    #[test]
    fn alerts_are_counted_by_every_detector() {
        let stats = CorrelatorStats { user_brute_force_alerts: 3, user_many_sources_alerts: 4, ..CorrelatorStats::default() };
        let family = alerts_by_detector(&[ShardTotals::default()], Some(&stats));
        assert_eq!(family.samples.len(), Detector::ALL.len());
        let of = |detector: Detector| {
            let sample = family.samples.iter().find(|(label, _)| label.as_ref().is_some_and(|(_, name)| name == detector.name()));
            sample.map(|(_, value)| *value)
        };
        assert_eq!((of(Detector::UserBruteForce), of(Detector::UserManySources)), (Some(3.0), Some(4.0)));
    }

    #[test]
    fn names_are_named_once() {
        let of_shards = SHARD_FAMILIES.iter().map(|family| family.0);
        let names: std::collections::HashSet<_> = of_shards.chain(CORRELATOR_FAMILIES.iter().map(|family| family.0)).collect();
        assert_eq!(names.len(), SHARD_FAMILIES.len() + CORRELATOR_FAMILIES.len());
        assert!(names.iter().all(|name| name.starts_with("postanalytics_")));
    }
}
