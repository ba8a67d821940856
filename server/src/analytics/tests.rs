//! The detectors under floods of keys: memory stays flat, those who attack are still found, and what is lost is counted.

use super::*;
use crate::config::detection::DetectionConfig;
use postanalytics_protocol::{BatchBuilder, Hit, RecordFields};

const ROOM: Room = Room { keys: 16_384, alerts: None, hands_on_failures: false, shards: 1, reports: false };

fn analytics(configuration: &str) -> Analytics {
    let config = DetectionConfig::parse(configuration).expect("a configuration");
    Analytics::new(Arc::new(Settings::new(&config).expect("settings")), ROOM, 7)
}

/// Observes records as a replay does: at the times they say.
fn observe(analytics: &mut Analytics, scratch: &mut Bump, records: &[RecordFields<'_>]) {
    let mut batch = BatchBuilder::default();
    for fields in records {
        batch.push(fields, usize::MAX).expect("fits");
    }
    let mut body = vec![0; batch.body_bytes()];
    batch.encode_body(&mut body);
    let valid = ValidBatch::parse(1, records.len() as u32, &body).expect("valid");
    analytics.observe(&valid, Timing { is_replay: true, ..Timing::default() }, &[], scratch);
    scratch.reset();
}

fn v4(number: u32) -> [u8; 16] {
    std::net::Ipv4Addr::from(number).to_ipv6_mapped().octets()
}

fn request(client_ip: [u8; 16], event_us: u64, path: &str, status: u16) -> RecordFields<'_> {
    RecordFields { client_ip, event_us, method: 1, status, path: path.as_bytes(), ..RecordFields::default() }
}

/// 100 attackers, two at a time, that each ask for eight paths that are not there; around each of their requests come `flood`
/// single-use sources. Returns how many attackers were found.
fn found(analytics: &mut Analytics, flood: u32) -> usize {
    let (mut scratch, mut next_visitor, mut time_us) = (Bump::new(), 0x2000_0000, 1_000_000_000);
    for pair in 0..50 {
        for step in 0..16 {
            time_us += 500_000;
            let path = format!("/missing-{}", step / 2);
            let mut records = vec![request(v4(0x0a00_0000 + pair * 2 + step % 2), time_us, &path, 404)];
            for _ in 0..flood {
                next_visitor += 1;
                records.push(request(v4(next_visitor), time_us, "/", 200));
            }
            observe(analytics, &mut scratch, &records);
        }
    }
    let alerts = analytics.engine.alerts.take_all();
    let sources = alerts.iter().filter(|alert| alert.detector() == Detector::ForcedBrowsing).map(|alert| alert.source as u32);
    let sources: std::collections::HashSet<u32> = sources.collect();
    assert!(sources.iter().all(|source| source >> 24 == 0x0a), "a visitor was taken for an attacker");
    sources.len()
}

/// The flood has up to 500 sources for each request of an attacker, and 50 times as many keys as the table has room for. (A
/// key is forgotten if more new keys than a quarter of the table come between its first event and its second.)
#[test]
fn a_flood_of_single_use_sources_hides_no_attacker() {
    for flood in [0, 10, 100, 500] {
        let mut subject = analytics("");
        assert_eq!(found(&mut subject, flood), 100, "{flood} single-use sources for each request");
        let engine = &subject.engine;
        assert!(engine.table.live() <= engine.table.capacity());
        let lost = engine.table.probation_overwritten + engine.counters.keys_evicted;
        assert_eq!(lost > 0, flood > 0, "{flood}: what is lost is counted, {lost}");
        assert_eq!(engine.table.pool.entries_dropped, 0);
    }
}

#[test]
fn a_flood_of_keys_that_come_back_is_never_silent() {
    let (mut subject, mut scratch) = (analytics(""), Bump::new());
    let path = ["/x1", "/x2", "/x3"];
    // Each of 40,000 sources fails three times in a row: over half of a threshold.
    for source in 0..40_000u32 {
        let records = path.map(|path| request(v4(0x3000_0000 + source), 1_000_000_000 + u64::from(source), path, 404));
        observe(&mut subject, &mut scratch, &records);
    }
    assert!(subject.engine.counters.keys_evicted_hot > 1000, "{:?}", subject.engine.counters);
}

#[test]
fn what_is_odd_is_analysed_and_counted() {
    let (mut subject, mut scratch) = (analytics(""), Bump::new());
    let path = format!("/{}", "x".repeat(2048));
    let hits = vec![Hit { attack_type: 60_000, severity: 1, rule_id: 1, point: b"p", payload: b"x" }];
    let ordinary = request(v4(1), 1_000_000_000, "/a", 200);
    observe(&mut subject, &mut scratch, std::slice::from_ref(&ordinary));
    assert_eq!(subject.odd, Odd::default());
    let looked = |subject: &Analytics| subject.engine.counters.looked[Detector::ForcedBrowsing as usize];
    let odd = [
        RecordFields { method: 200, path: b"/b", ..ordinary.clone() },
        RecordFields { path: path.as_bytes(), ..ordinary.clone() },
        RecordFields { event_us: u64::MAX, path: b"/c", ..ordinary.clone() },
        RecordFields { hits, ..ordinary.clone() },
    ];
    observe(&mut subject, &mut scratch, &odd);
    assert_eq!(subject.odd, Odd { times: 1, methods: 1, hit_types: 1, paths: 1 });
    assert_eq!(looked(&subject), 4, "all but the one with a hit, which that detector leaves out");
    // Live the future is now, and what is over a day old is a day old.
    for (event_us, is_impossible) in [(1 << 50, false), ((1 << 50) + 1, true), ((1 << 50) - 86_400_000_000, false), (0, true)] {
        let timing = Timing { arrival_us: 1 << 50, sent_us: 1 << 50, is_replay: false };
        assert_eq!(timing.is_impossible(event_us), is_impossible, "{event_us}");
    }
}

/// What decides at once does not wait for a second event in probation.
#[test]
fn a_detector_that_fires_at_its_first_event_does_so_when_the_table_is_crowded() {
    let (mut subject, mut scratch) = (analytics("[detectors.multi_payload]\nevents = 1"), Bump::new());
    for visitor in 0..40_000 {
        observe(&mut subject, &mut scratch, &[request(v4(0x2000_0000 + visitor), 1_000_000_000, "/", 200)]);
    }
    assert!(subject.engine.table.is_crowded());
    for attacker in 0..10 {
        let hits = vec![Hit { attack_type: 2, severity: 1, rule_id: 1, point: b"p", payload: b"x" }];
        let hit = RecordFields { hits, ..request(v4(0x0a00_0000 + attacker), 1_000_000_001, "/o", 200) };
        observe(&mut subject, &mut scratch, &[hit]);
    }
    assert_eq!(subject.engine.counters.fired[Detector::MultiPayload as usize], 10);
}

const MINUTE_US: u64 = 60_000_000;

fn login(client_ip: [u8; 16], event_us: u64, path: &str) -> RecordFields<'_> {
    RecordFields { method: 3, request_id: [event_us as u8 | 1; 16], ..request(client_ip, event_us, path, 401) }
}

/// One source fails nine times, once a minute, at each of `paths` login endpoints: two keys of nine entries each, which is one
/// failure too few for both detectors.
fn flood_with_long_lists(subject: &mut Analytics, paths: u32) {
    let mut scratch = Bump::new();
    for path in 0..paths {
        let path = format!("/p{path}x/login");
        let records: Vec<_> = (0..9).map(|step| login(v4(9), 1_000_000_000 + step * MINUTE_US, &path)).collect();
        observe(subject, &mut scratch, &records);
    }
}

/// Twenty attackers fail ten times each, once in 59 s, one after the other in each round. Returns how many were found.
fn found_by_windows(subject: &mut Analytics, from_us: u64) -> usize {
    let mut scratch = Bump::new();
    for step in 0..10 {
        let attempt = |attacker: u32| login(v4(0x0a00_0000 + attacker), from_us + step * 59_000_000, "/login");
        let records: Vec<_> = (0..20).map(attempt).collect();
        observe(subject, &mut scratch, &records);
    }
    let alerts = subject.engine.alerts.take_all();
    alerts.iter().filter(|alert| alert.detector() == Detector::BruteForce && alert.source as u32 >> 24 == 0x0a).count()
}

/// What lists need is part of how full a table is: a source whose few keys have long lists blinds no detector that needs lists.
#[test]
fn a_flood_of_long_lists_hides_no_attacker_and_is_counted() {
    let mut subject = analytics("");
    flood_with_long_lists(&mut subject, 4_000);
    let table = &subject.engine.table;
    assert!(table.live() * 2 < table.capacity(), "there is room for keys: {} of {}", table.live(), table.capacity());
    let counters = subject.engine.counters;
    assert!(counters.keys_evicted_for_lists > 1000, "{counters:?}");
    assert!(counters.keys_evicted_hot > 100, "one failure away for one of the two detectors: {counters:?}");
    assert_eq!(found_by_windows(&mut subject, 1_000_000_000 + 20 * 60 * MINUTE_US), 20);
    assert_eq!(subject.engine.table.pool.entries_dropped, 0);
}

/// The same if the pool was used up by lists of the smallest size: what one that grows needs is made of them.
#[test]
fn a_flood_of_short_lists_hides_no_attacker() {
    let mut subject = Analytics::new(Arc::default(), Room { keys: 1 << 17, ..ROOM }, 7);
    let mut scratch = Bump::new();
    // Two log-ins each: a set and a list of attempts for credential stuffing, windows for the others.
    for source in 0..40_000 {
        let records = [0, 1].map(|step| login(v4(0x2000_0000 + source), 1_000_000_000 + step * MINUTE_US, "/login"));
        observe(&mut subject, &mut scratch, &records);
    }
    assert!(subject.engine.counters.keys_evicted_for_lists > 1000, "{:?}", subject.engine.counters);
    assert_eq!(found_by_windows(&mut subject, 1_000_000_000 + 2 * MINUTE_US), 20);
    assert_eq!(subject.engine.table.pool.entries_dropped, 0);
}

/// A value that could not be kept would be new each time that it comes.
#[test]
fn a_flood_of_long_lists_makes_no_attacker_of_a_visitor() {
    let mut subject = analytics("");
    flood_with_long_lists(&mut subject, 4_000);
    let mut scratch = Bump::new();
    for step in 0..8 {
        for visitor in 0..3_000 {
            let time_us = 1_000_000_000 + 40 * 60 * MINUTE_US + step * 20_000_000;
            observe(&mut subject, &mut scratch, &[request(v4(0x3000_0000 + visitor), time_us, "/logo-old.png", 404)]);
        }
    }
    assert_eq!(subject.engine.counters.fired.iter().sum::<u64>(), 0);
}

/// Whatever sizes of lists came and went before.
#[test]
fn below_four_fifths_of_the_room_for_lists_no_key_yields() {
    let mut subject = analytics("");
    let bytes = subject.engine.table.pool.bytes();
    let mut time_us = 1_000_000_000;
    let mut scratch = Bump::new();
    for round in 0..6u32 {
        // Of each visitor as many failures as the round says; a day later they are forgotten when they come again.
        let mut source = 0;
        while subject.engine.table.pool.used_bytes() * 5 < bytes * 4 - 5 * 64 * 1024 && source < 1_500 {
            let of_this = 1 + (round + source) % 8;
            for step in 0..of_this {
                let record = login(v4(0x2000_0000 + source), time_us + u64::from(step) * MINUTE_US, "/login");
                observe(&mut subject, &mut scratch, &[record]);
            }
            source += 1;
        }
        assert!(source > 100, "round {round} has room for {source}");
        time_us += 24 * 60 * MINUTE_US;
    }
    let counters = subject.engine.counters;
    assert_eq!((counters.keys_evicted, subject.engine.table.pool.entries_dropped), (0, 0), "{counters:?}");
}

#[test]
fn one_ipv6_network_takes_no_more_than_its_share_and_is_then_one_key() {
    let (mut subject, mut scratch) = (analytics("[detectors.forced_browsing]\naction = 'denylist'"), Bump::new());
    let address = |subnet: u128| std::net::Ipv6Addr::from(0x2001_0db8_0007 << 80 | subnet << 64 | 1).octets();
    for subnet in 0..20_000 {
        observe(&mut subject, &mut scratch, &[request(address(subnet), 1_000_000_000, "/", 200)]);
    }
    let share = subject.engine.table.capacity() / 64;
    assert!((share..share + 8).contains(&subject.engine.table.live()), "{} of {share}", subject.engine.table.live());
    // Four paths from four further /64s: one key by now.
    for (subnet, path) in (30_000..).zip(["/a", "/b", "/c", "/d", "/e", "/f", "/g", "/h", "/i", "/j", "/k", "/l"]) {
        observe(&mut subject, &mut scratch, &[request(address(subnet), 1_000_000_001, path, 404)]);
    }
    let alerts = subject.engine.alerts.take_all();
    let alert = alerts.iter().find(|alert| alert.detector() == Detector::ForcedBrowsing).expect("the network is found");
    assert_eq!(alert.to_json().key.value, "2001:db8:7::/48");
    let listed: Vec<_> = subject.listed.iter().map(|verdict| verdict.subject).collect();
    let last = alert.source;
    assert!(last >> 16 == 0x2001_0db8_0007 && (30_000..30_012).contains(&(last & 0xffff)), "{last:x}");
    assert!(
        listed.contains(&Subject::Source(address_bytes(std::net::Ipv6Addr::from(u128::from(last) << 64).into()))),
        "the /64 that decided"
    );
}

#[test]
fn evidence_is_the_first_fifteen_and_the_deciding_one() {
    let (mut subject, mut scratch) = (analytics(""), Bump::new());
    for step in 0..20u8 {
        let mut login = request(v4(5), 1_000_000_000 + u64::from(step) * 29_000_000, "/login", 200);
        login.method = 3;
        login.request_id = [step + 1; 16];
        observe(&mut subject, &mut scratch, &[login]);
    }
    let alerts = subject.engine.alerts.take_all();
    let json = alerts.iter().find(|alert| alert.detector() == Detector::BruteForceAttempts).expect("an alert").to_json();
    let expected: Vec<String> = (1..=15).chain([20u8]).map(|id| format!("{id:02x}").repeat(16)).collect();
    assert_eq!((json.evidence, json.count), (expected, 20));
}

#[test]
fn without_room_for_keys_no_detector_runs_and_hits_are_found() {
    use super::{Analytics, Room, Timing};
    use bumpalo::Bump;
    use postanalytics_protocol::{BatchBuilder, HEADER_BYTES, Hit, RecordFields, ValidBatch};
    let mut builder = BatchBuilder::default();
    for number in 0..40 {
        let path = format!("/{number}");
        let hits = if number == 7 { vec![Hit::default()] } else { Vec::new() };
        let fields = RecordFields { status: 404, method: 1, path: path.as_bytes(), hits, ..RecordFields::default() };
        builder.push(&fields, 1 << 20).expect("fits");
    }
    let mut frame = Vec::new();
    builder.encode_frame(1, 1, 1, &mut frame);
    let batch = ValidBatch::parse(1, 40, &frame[HEADER_BYTES..]).expect("a batch");
    let alerts = |keys| {
        let mut analytics = Analytics::new(Default::default(), Room { keys, ..Room::default() }, 1);
        let scratch = Bump::new();
        assert_eq!(analytics.observe(&batch, Timing::default(), &[], &scratch).as_slice(), &[7]);
        analytics.engine.counters.fired.iter().sum::<u64>()
    };
    assert_eq!((alerts(0), alerts(1 << 16) > 0), (0, true));
}

#[test]
fn what_is_told_and_sampled_changes_no_detection() {
    let run = |reports| {
        let settings = Arc::new(Settings::default());
        let (mut subject, mut scratch) = (Analytics::new(settings, Room { reports, ..ROOM }, 7), Bump::new());
        for step in 0..2000u32 {
            let mut hit = request(v4(step % 7), 1_000_000_000 + u64::from(step) * 300_000, "/search", 200);
            let payload = [step as u8 % 11];
            hit.hits = vec![postanalytics_protocol::Hit { attack_type: 1, payload: &payload, ..Default::default() }];
            let path = format!("/missing-{}", step % 50);
            let records = [hit, request(v4(step % 5), 1_000_000_000 + u64::from(step) * 300_000, &path, 404)];
            observe(&mut subject, &mut scratch, &records);
        }
        let mut alerts: Vec<_> = subject.engine.alerts.take_all().iter().map(|alert| alert.to_json()).collect();
        alerts.sort_by(|left, right| left.id.cmp(&right.id));
        alerts
    };
    let alerts = run(true);
    assert!(alerts.len() > 10, "{}", alerts.len());
    assert_eq!(alerts, run(false));
}

/// The analysis of one of so many shards that lists whoever scans.
fn that_lists_scanners(shards: u32) -> Analytics {
    let config = DetectionConfig::parse("[detectors.scanner]\naction = 'denylist'").expect("a configuration");
    let settings = Arc::new(Settings::new(&config).expect("settings"));
    Analytics::new(settings, Room { reports: true, alerts: Some(256), shards, ..ROOM }, 7)
}

/// Observes a request of each, all at one time. Tools scan one application, visitors go to four.
fn observe_live(subject: &mut Analytics, sources: &[[u8; 16]], user_agent: &[u8]) {
    let mut batch = BatchBuilder::default();
    for (application, source) in (0..).zip(sources) {
        let application = if user_agent == TOOL { 0 } else { application % 4 };
        let fields = RecordFields { user_agent, application, ..request(*source, 1, "/", 200) };
        batch.push(&fields, usize::MAX).expect("fits");
    }
    let mut body = vec![0; batch.body_bytes()];
    batch.encode_body(&mut body);
    let valid = ValidBatch::parse(1, sources.len() as u32, &body).expect("valid");
    let timing = Timing { arrival_us: 1_700_000_000_000_000, ..Timing::default() };
    subject.observe(&valid, timing, &[], &Bump::new());
}

const TOOL: &[u8] = b"sqlmap/1.7";
const BROWSER: &[u8] = b"Mozilla/5.0";

/// Twenty visitors, one of whom sends as much as half of them, to four applications, and two tools among what he sends.
fn with_a_hot_scanner(shards: u32) -> Analytics {
    let mut subject = that_lists_scanners(shards);
    let visitors: Vec<[u8; 16]> = (0..20).chain([99; 10]).map(v4).collect();
    observe_live(&mut subject, &visitors, BROWSER);
    observe_live(&mut subject, &[v4(99); 2], TOOL);
    subject
}

/// What is over a fifth of the requests of a shard of eight is not of all.
#[test]
fn whoever_scans_fast_is_listed_on_whatever_shard() {
    let subject = with_a_hot_scanner(8);
    assert_eq!((subject.listed.len(), subject.guards.objections), (1, guards::Objections::default()));
}

/// The inverse of `fingerprint::mix`, which anybody can work out.
fn unmixed(mut x: u64) -> u64 {
    // Newton's iteration: each step doubles the bits that are right.
    let inverse = |of: u64| (0..6).fold(1u64, |x, _| x.wrapping_mul(2u64.wrapping_sub(of.wrapping_mul(x))));
    x ^= x >> 31 ^ x >> 62;
    x = x.wrapping_mul(inverse(0x94d0_49bb_1331_11eb));
    x ^= x >> 27 ^ x >> 54;
    x = x.wrapping_mul(inverse(0xbf58_476d_1ce4_e5b9));
    x ^ x >> 30 ^ x >> 60
}

/// Each address has a register of the HyperLogLog to itself, and the largest value that there is, were the hash that of everybody.
#[test]
fn chosen_addresses_do_not_look_like_more_sources_than_they_are() {
    assert!((0..1000).all(|x| fingerprint::mix(unmixed(x)) == x));
    let mut subject = that_lists_scanners(1);
    let visitors: Vec<[u8; 16]> = (0..1024).map(|x| (u128::from(unmixed(x)) << 64).to_be_bytes()).collect();
    visitors.chunks(256).for_each(|visitors| observe_live(&mut subject, visitors, BROWSER));
    (0..80).for_each(|tool| observe_live(&mut subject, &[v4(tool); 2], TOOL));
    let (listed, too_many) = (subject.listed.len() as u64, subject.guards.objections.too_many);
    assert!((45..=62).contains(&listed) && listed + too_many == 80, "{listed} of 1104, and {too_many}");
}

/// Networks whose keys would be counted in one slot, were the hash that of everybody.
#[test]
fn chosen_networks_do_not_count_towards_the_share_of_another() {
    let mut subject = analytics("");
    let networks = (1..).map(|n| n << 16).filter(|network| fingerprint::mix(*network) % (1 << 15) == 7);
    let hosts: Vec<String> = (0..40).map(|n| format!("host-{n}")).collect();
    for network in networks.take(8) {
        let client_ip = (u128::from(network) << 64).to_be_bytes();
        let records: Vec<_> =
            hosts.iter().map(|host| RecordFields { host: host.as_bytes(), ..request(client_ip, 1_000_000, "/", 404) }).collect();
        observe(&mut subject, &mut Bump::new(), &records);
    }
    let table = &subject.engine.table;
    assert!(table.live() >= 2 * 8 * 40 && table.live() > 2 * table.capacity() / 64, "{}", table.live());
    assert!((1..=1 << 15).all(|slot| !table.is_network_full(slot)));
}

#[test]
fn whoever_seems_to_be_a_proxy_is_reported_and_not_listed() {
    let mut subject = with_a_hot_scanner(1);
    assert!(subject.listed.is_empty() && subject.guards.objections.real_ip_suspect == 1);
    let told: Vec<_> = subject.engine.alerts.reports.alerts().map(|(alert, is_final)| (alert.to_json(), is_final)).collect();
    let names: Vec<_> = told.iter().map(|(json, is_final)| (json.detector, json.note.is_some(), *is_final)).collect();
    assert_eq!(names, [("scanner", false, false), ("real_ip_suspect", true, true)]);
    assert_ne!(told[0].0.id, told[1].0.id);
    observe_live(&mut subject, &[v4(3); 2], TOOL);
    assert_eq!(subject.listed.len(), 1, "an ordinary source is listed");
}

/// What guards know counts all of the first frame, though its first records are those that decide.
#[test]
fn a_proxy_is_not_listed_by_the_first_frame_of_a_shard_either() {
    let mut subject = that_lists_scanners(1);
    let mut batch = BatchBuilder::default();
    for (n, source) in (0..).zip([99, 99].into_iter().chain(0..30)) {
        let user_agent = if n < 2 { TOOL } else { BROWSER };
        let source = if n % 2 == 0 { 99 } else { source };
        batch.push(&RecordFields { user_agent, ..request(v4(source), 1, "/", 200) }, usize::MAX).expect("fits");
    }
    let mut body = vec![0; batch.body_bytes()];
    batch.encode_body(&mut body);
    let valid = ValidBatch::parse(1, batch.len() as u32, &body).expect("valid");
    let timing = Timing { arrival_us: 1_700_000_000_000_000, ..Timing::default() };
    subject.observe(&valid, timing, &[], &Bump::new());
    assert_eq!((subject.listed.len(), subject.guards.objections.real_ip_suspect), (0, 1));
}

/// Steps of one record overlap with those of others, and chunks end in the middle of a batch: nothing of it shows.
#[test]
fn how_records_are_cut_into_batches_changes_nothing() {
    let config = DetectionConfig::parse("[detectors.scanner]\naction = 'denylist'").expect("a configuration");
    let settings = Arc::new(Settings::new(&config).expect("settings"));
    let texts: Vec<String> = (0..1000).map(|n| format!("/missing-{}", n % 41)).collect();
    let objects: Vec<String> = (0..1000).map(|n| format!("/api/orders/{}", 1000 + n)).collect();
    let records: Vec<RecordFields<'_>> = (0..1000u32)
        .map(|n| {
            let mut id = [0; 16];
            id[..4].copy_from_slice(&n.to_be_bytes());
            let (source, at) = (v4(n / 7 % 5), n as usize);
            let kind = match n % 7 {
                0 | 1 => request(source, 0, &texts[at], 404),
                2 => RecordFields { method: 3, user_hash: u64::from(n % 3 + 1), ..request(source, 0, "/login", 401) },
                3 => RecordFields { session_hash: u64::from(n % 2 + 1), ..request(source, 0, &objects[at], 200) },
                4 => RecordFields { user_agent: if n % 35 == 4 { TOOL } else { BROWSER }, ..request(source, 0, "/", 200) },
                5 => RecordFields {
                    hits: vec![Hit { attack_type: 2, severity: 1, rule_id: 1, point: b"p", payload: texts[at].as_bytes() }],
                    ..request(source, 0, "/search", 200)
                },
                _ => request(source, 0, &texts[at], 200),
            };
            RecordFields { request_id: id, event_us: 1_000_000_000 + u64::from(n) * 20_000, ..kind }
        })
        .collect();
    let run = |size: usize| {
        let mut subject = Analytics::new(Arc::clone(&settings), Room { hands_on_failures: true, ..ROOM }, 7);
        let mut with_hits = Vec::new();
        for (number, records) in records.chunks(size).enumerate() {
            let mut batch = BatchBuilder::default();
            records.iter().for_each(|fields| batch.push(fields, usize::MAX).expect("fits"));
            let mut body = vec![0; batch.body_bytes()];
            batch.encode_body(&mut body);
            let (valid, scratch) = (ValidBatch::parse(1, records.len() as u32, &body).expect("valid"), Bump::new());
            let kept = subject.observe(&valid, Timing { is_replay: true, ..Timing::default() }, &[], &scratch);
            with_hits.extend(kept.iter().map(|place| number * size + *place as usize));
        }
        let alerts: Vec<_> = subject.engine.alerts.take_all().iter().map(|alert| alert.to_json()).collect();
        (alerts, with_hits, format!("{:?} {:?} {:?}", subject.failures, subject.listed, subject.engine.counters))
    };
    let one_by_one = run(1);
    let mut detectors: Vec<_> = one_by_one.0.iter().map(|alert| alert.detector).collect();
    detectors.sort_unstable();
    detectors.dedup();
    assert!(detectors.len() >= 6 && one_by_one.1.len() > 100 && one_by_one.2.contains("UserFailure"), "{detectors:?}");
    for size in [2, 3, 4, 5, 16, 17, 63, 64, 65, 128, 129, 1000] {
        assert_eq!(run(size), one_by_one, "batches of {size}");
    }
}

#[test]
fn a_verdict_is_about_the_source_unless_its_session_alone_is_meant() {
    let subjects = [("", Subject::Source(v4(1))), ("action_for_session = true", Subject::Session(9))];
    for (more, expected) in subjects {
        let text = format!("[detectors.bola]\naction = 'denylist'\n{more}");
        let config = DetectionConfig::parse(&text).expect("a configuration");
        let mut subject = Analytics::new(Arc::new(Settings::new(&config).expect("settings")), ROOM, 7);
        let paths: Vec<String> = (1000..1040).map(|id| format!("/api/orders/{id}")).collect();
        let mut batch = BatchBuilder::default();
        for (path, event_us) in paths.iter().zip((1..).map(|second| second * 1_000_000)) {
            let record = RecordFields { session_hash: 9, ..request(v4(1), event_us, path, 200) };
            batch.push(&record, usize::MAX).expect("fits");
        }
        let mut body = vec![0; batch.body_bytes()];
        batch.encode_body(&mut body);
        let valid = ValidBatch::parse(1, paths.len() as u32, &body).expect("valid");
        subject.observe(&valid, Timing { is_replay: true, ..Timing::default() }, &[], &Bump::new());
        assert_eq!(subject.listed.iter().map(|verdict| verdict.subject).collect::<Vec<_>>(), [expected]);
    }
}

#[test]
fn counters_outlive_the_analysis_that_counted() {
    let mut subject = Analytics::new(Arc::default(), ROOM, 7);
    subject.engine.counters.keys_evicted = 2;
    (subject.engine.table.probation_overwritten, subject.engine.table.pool.entries_dropped) = (3, 4);
    let engine::Engine { counters, table, .. } = subject.afresh().engine;
    assert_eq!((counters.keys_evicted, table.probation_overwritten, table.pool.entries_dropped), (2, 3, 4));
}

/// Scratch memory is bounded, and a batch that needs more is quarantined and costs the shard all that it knows: so what a
/// record takes of it must not be multiplied by how many hits it has.
#[test]
fn scratch_and_room_for_events_do_not_grow_with_the_hits_of_a_record() {
    const OVERRIDE: &str = "[[overrides]]\npath='/b'\ndetectors.crawl.events=9\n";
    let config = DetectionConfig::parse(OVERRIDE).expect("a configuration");
    let mut subject = Analytics::new(Arc::new(Settings::new(&config).expect("settings")), Room { reports: true, ..ROOM }, 7);
    let payloads: Vec<String> = (0..HITS_MAX).map(|n| n.to_string()).collect();
    let hits: Vec<Hit<'_>> = payloads
        .iter()
        .map(|payload| Hit { attack_type: 2, severity: 1, rule_id: 1, point: b"p", payload: payload.as_bytes() })
        .collect();
    // Neither normal nor its own template.
    let paths: Vec<String> = (0..2 * CHUNK).map(|n| format!("/%61/{n}/{}", "x".repeat(8000))).collect();
    let mut batch = BatchBuilder::default();
    for path in &paths {
        batch.push(&RecordFields { hits: hits.clone(), ..request(v4(1), 1_000_000, path, 200) }, usize::MAX).expect("fits");
    }
    let mut body = vec![0; batch.body_bytes()];
    batch.encode_body(&mut body);
    let (scratch, room) = (Bump::new(), subject.waiting.capacity());
    let valid = ValidBatch::parse(1, paths.len() as u32, &body).expect("valid");
    subject.observe(&valid, Timing { is_replay: true, ..Timing::default() }, &[], &scratch);
    assert!(scratch.allocated_bytes() < 8 * body.len(), "{} bytes for {}", scratch.allocated_bytes(), body.len());
    assert_eq!(subject.waiting.capacity(), room);
    let waiting = subject.hits.as_ref().map_or(0, |sampler| sampler.reports.len() as u64);
    let lost = subject.afresh().hits.map_or(0, |fresh| fresh.lost);
    assert!(waiting > 0 && lost >= waiting, "{lost} of {waiting} are counted when the shard begins anew");
}
