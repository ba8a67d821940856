//! Floods of every kind at once, and among them an attacker of every kind: sources that come once, users at whom is guessed once,
//! paths and user agents that come once, hits of which each is an attack of its own, and all of that in one record.
//!
//! What is promised: all attackers are found, nobody else is accused, memory stays as it is, and what is forgotten is counted.
//! The analysis of a shard and the correlator as a server has them, fed from memory. Alone in this file: the memory of the
//! process is measured.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use bumpalo::Bump;
use postanalytics_protocol::routing::address_bytes;
use postanalytics_protocol::schema::v1::{AttackType, FLAG_AUTH_SUCCEEDED, FLAG_BLOCKED, Method, SCHEMA};
use postanalytics_protocol::{BatchBuilder, Hit, RecordFields, ValidBatch};
use postanalytics_server::analytics::detectors::Detector;
use postanalytics_server::analytics::{Analytics, Room, Timing};
use postanalytics_server::correlator::Correlator;
use postanalytics_server::correlator::messages::{AlertFilter, Ask, CorrelatorStats, ROWS_MAX, Reply};
use postanalytics_server::shard::derived::{DerivedReceiver, DerivedSender, derived_queue};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::time::Instant;

/// Records of the flood between two events of an attacker.
const FLOOD: u64 = 150;
/// Events of each attacker, which is enough for every detector.
const STEPS: u64 = 64;
/// Between two records.
const EVERY_US: u64 = 500;
const VISITORS: u64 = 24;
const BEGIN_US: u64 = 1_700_000_000_000_000;
const SEED: u64 = 7;
const BROWSER: &[u8] = b"Mozilla/5.0 (X11; Linux x86_64; rv:130.0) Gecko/20100101 Firefox/130.0";
const TOOL: &[u8] = b"sqlmap/1.8";

/// A shard's analysis, the correlator, and what came out.
struct World {
    analytics: Analytics,
    sender: DerivedSender,
    receiver: DerivedReceiver,
    correlator: Correlator,
    scratch: Bump,
    now_us: u64,
    /// Records of the flood so far.
    flood: u64,
    /// Keys that these have made, and at most those that the others have.
    keys_of_flood: u64,
    keys_of_others_max: u64,
    /// {detector, key} of alerts.
    raised: BTreeSet<(String, String)>,
}

/// Of one record, the texts that differ from record to record.
#[derive(Default)]
struct Texts {
    path: String,
    user_agent: String,
    payload: String,
}

impl World {
    fn new(keys: usize) -> Self {
        let (sender, receiver) = derived_queue().unwrap();
        let room = Room { keys, hands_on_failures: true, reports: true, ..Room::default() };
        Self {
            analytics: Analytics::new(Arc::default(), room, SEED),
            sender,
            receiver,
            correlator: Correlator::new(Arc::default(), SEED, None),
            scratch: Bump::with_capacity(1 << 20),
            now_us: BEGIN_US,
            flood: 0,
            keys_of_flood: 0,
            keys_of_others_max: 0,
            raised: BTreeSet::new(),
        }
    }

    /// An event of every attacker of a round, if there is one, a visitor's request, and what floods between that and the next.
    fn step(&mut self, attack: Option<(u64, u64)>, number: u64) {
        let mut batch = BatchBuilder::default();
        let mut texts = Texts::default();
        if let Some((round, step)) = attack {
            for detector in Detector::ALL {
                self.push(&mut batch, attack_of(detector, round, step, &mut texts));
            }
        }
        self.push(&mut batch, visit(number, &mut texts));
        self.keys_of_others_max += 4 * batch.len() as u64;
        for _ in 0..FLOOD {
            let (record, keys) = flood_of(self.flood, &mut texts);
            self.push(&mut batch, record);
            self.flood += 1;
            self.keys_of_flood += keys;
        }
        let mut body = vec![0; batch.body_bytes()];
        batch.encode_body(&mut body);
        let valid = ValidBatch::parse(SCHEMA, batch.len() as u32, &body).unwrap();
        let timing = Timing { arrival_us: self.now_us, sent_us: self.now_us, is_replay: false };
        self.analytics.observe(&valid, timing, &[], &self.scratch);
        self.scratch.reset();
        self.tell(number);
    }

    fn push(&mut self, batch: &mut BatchBuilder, mut record: RecordFields<'_>) {
        self.now_us += EVERY_US;
        record.event_us = self.now_us;
        batch.push(&record, 1 << 20).unwrap();
    }

    /// What a shard and the correlator do in a turn, and now and then.
    fn tell(&mut self, number: u64) {
        self.sender.send(&mut self.analytics);
        while let Some(derived) = self.receiver.receive() {
            let of_alert = |alert: postanalytics_server::analytics::alerts::Alert| {
                let json = alert.to_json();
                (json.detector.to_owned(), json.key.value)
            };
            self.raised.extend(derived.alerts.alerts().map(|(alert, _)| of_alert(alert)));
            self.correlator.take(&derived, self.now_us);
            self.receiver.give_back(derived);
        }
        if number.is_multiple_of(16) {
            self.analytics.engine.alerts.sweep(self.now_us);
            self.analytics.engine.alerts.report_moved();
            self.correlator.tick(self.now_us);
        }
    }

    fn stats(&mut self) -> CorrelatorStats {
        let Reply::Stats(stats) = self.correlator.answer(&Ask::Stats, self.now_us) else { panic!("it was asked for") };
        stats
    }

    /// Also those that the correlator has raised.
    fn all_raised(&mut self) -> BTreeSet<(String, String)> {
        let mut raised = self.raised.clone();
        for detector in ["user_brute_force", "user_many_sources"] {
            let filter = AlertFilter { detector: Some(detector.to_owned()), limit: ROWS_MAX, ..AlertFilter::default() };
            let Reply::Alerts(alerts) = self.correlator.answer(&Ask::Alerts(filter), self.now_us) else { panic!("they exist") };
            assert!(alerts.len() < ROWS_MAX, "more than can be asked for");
            raised.extend(alerts.into_iter().map(|view| (view.alert.detector.to_owned(), view.alert.key.value)));
        }
        raised
    }
}

fn v4(first: u8, number: u64) -> [u8; 16] {
    let [.., b, c, d] = number.to_be_bytes();
    address_bytes(IpAddr::from([first, b, c, d]))
}

/// Of whom an attack comes, and at which user, if it is at one.
fn attacker(detector: Detector, round: u64) -> u64 {
    round << 4 | detector as u64
}

fn user_of(detector: Detector, round: u64) -> u64 {
    0xa77a_0000_0000_0000 | attacker(detector, round)
}

/// The key under which an attacker is found.
fn key_of(detector: Detector, round: u64) -> String {
    match detector {
        Detector::UserBruteForce | Detector::UserManySources => format!("{:016x}", user_of(detector, round)),
        _ => {
            let [.., b, c, d] = attacker(detector, round).to_be_bytes();
            format!("18.{b}.{c}.{d}")
        }
    }
}

/// One event of an attack: what its detector counts.
fn attack_of(detector: Detector, round: u64, step: u64, texts: &mut Texts) -> RecordFields<'_> {
    let number = attacker(detector, round);
    let ordinary = RecordFields { client_ip: v4(18, number), user_agent: BROWSER, host: b"shop", ..RecordFields::default() };
    let login = RecordFields { method: Method::Post as u8, status: 401, path: b"/login", ..ordinary.clone() };
    texts.path = match detector {
        Detector::ForcedBrowsing => format!("/backup-{step}x.zip"),
        Detector::ForcedBrowsingCount => format!("/old/{step}x.php"),
        Detector::Bola => format!("/api/orders/{}", 70_000 + step),
        Detector::Probing => format!("/find-{step}x"),
        _ => format!("/catalogue/thing-{step}x"),
    };
    texts.payload = format!("payload {step}");
    let get = RecordFields { method: Method::Get as u8, status: 200, path: texts.path.as_bytes(), ..ordinary };
    let hit =
        |attack_type| vec![Hit { attack_type, severity: 9, rule_id: 1, point: b"get_q", payload: texts.payload.as_bytes() }];
    match detector {
        Detector::BruteForce => login,
        Detector::BruteForceAttempts => RecordFields { status: 200, path: b"/administrator/index.php", ..login },
        // From four addresses of one network, and from as many networks as there are events.
        Detector::UserBruteForce => {
            RecordFields { user_hash: user_of(detector, round), client_ip: v4(100, (round << 8) | (step % 4)), ..login }
        }
        Detector::UserManySources => {
            RecordFields { user_hash: user_of(detector, round), client_ip: v4(101, (round * STEPS + step) << 8), ..login }
        }
        Detector::CredentialStuffing => RecordFields { user_hash: 0x57ff_0000_0000_0000 | (round * STEPS + step), ..login },
        Detector::ForcedBrowsing | Detector::ForcedBrowsingCount => RecordFields { status: 404, ..get },
        Detector::Bola | Detector::Crawl => get,
        // crlf is no probe.
        Detector::MultiPayload => RecordFields { hits: hit(AttackType::Crlf as u16), path: b"/search", ..get },
        Detector::Probing => RecordFields { hits: hit(AttackType::Sqli as u16), ..get },
        Detector::Scanner => RecordFields { user_agent: TOOL, path: b"/", ..get },
    }
}

/// One of some people who read, meet a dead link now and then, and mistype a password.
fn visit(number: u64, texts: &mut Texts) -> RecordFields<'_> {
    let (visitor, turn) = (number % VISITORS, number / VISITORS);
    // A turn is two seconds: a password is mistyped once in a quarter of an hour.
    let (status, path) = match turn % 450 {
        11 => (401, "/login".to_owned()),
        12 => (302, "/login".to_owned()),
        turn if turn % 20 == 7 => (404, "/dead-link-x".to_owned()),
        _ => (200, format!("/articles/{}x", (turn * 7 + visitor) % 90)),
    };
    texts.path = path;
    RecordFields {
        client_ip: v4(19, visitor),
        user_hash: if texts.path == "/login" { 0xbeef_0000 + visitor } else { 0 },
        flags: if status == 302 { FLAG_AUTH_SUCCEEDED } else { 0 },
        method: if texts.path == "/login" { Method::Post as u8 } else { Method::Get as u8 },
        status,
        host: b"shop",
        path: texts.path.as_bytes(),
        user_agent: BROWSER,
        ..RecordFields::default()
    }
}

/// A record of the flood, and the keys of the shard that it makes: its source never comes again.
fn flood_of(number: u64, texts: &mut Texts) -> (RecordFields<'_>, u64) {
    let client_ip = if number.is_multiple_of(2) {
        address_bytes(IpAddr::from((0x2000_0000 + number as u32).to_be_bytes()))
    } else {
        // Each in a /48 of its own.
        address_bytes(IpAddr::from(Ipv6Addr::new(
            0x2a00 + (number >> 32) as u16,
            (number >> 16) as u16,
            number as u16,
            1,
            0,
            0,
            0,
            1,
        )))
    };
    *texts = Texts { path: format!("/p{number}x"), user_agent: format!("Agent/{number}"), payload: format!("p{number}") };
    let user_hash = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let get = RecordFields {
        client_ip,
        method: Method::Get as u8,
        status: 200,
        host: b"shop",
        path: b"/",
        user_agent: BROWSER,
        ..RecordFields::default()
    };
    let login = RecordFields { method: Method::Post as u8, status: 401, path: b"/login", ..get.clone() };
    match number % 6 {
        // forced_browsing and crawl look at it.
        0 => (get, 2),
        // The first of them, and the three that count log-ins by source.
        1 => (RecordFields { user_hash, ..login }, 4),
        2 => (RecordFields { status: 404, path: texts.path.as_bytes(), ..get }, 3),
        3 => (RecordFields { user_agent: texts.user_agent.as_bytes(), ..get }, 2),
        // multi_payload, probing and crawl; a new attack.
        4 => {
            let attack_type = AttackType::Sqli as u16;
            let hits = vec![Hit { attack_type, severity: 9, rule_id: 1, point: b"get_q", payload: texts.payload.as_bytes() }];
            (RecordFields { status: 403, flags: FLAG_BLOCKED, hits, path: texts.path.as_bytes(), ..get }, 3)
        }
        _ => {
            texts.path.push_str("/login");
            let (path, user_agent) = (texts.path.as_bytes(), texts.user_agent.as_bytes());
            (RecordFields { user_hash, path, user_agent, ..login }, 4)
        }
    }
}

/// Floods with so many records, with a round of attackers in each so many steps, and holds what is promised against what came.
fn interleaved(keys: usize, records: u64, steps_of_round: u64) {
    let mut world = World::new(keys);
    let (begun, steps) = (Instant::now(), records / FLOOD);
    let (mut resident, mut wanted) = (Vec::new(), BTreeSet::new());
    for number in 0..steps {
        let (round, step) = (number / steps_of_round, number % steps_of_round);
        // A round that would not come to its end has no attackers.
        let has_attackers = step < STEPS && round * steps_of_round + STEPS <= steps;
        world.step(has_attackers.then_some((round, step)), number);
        if has_attackers && step == 0 {
            wanted.extend(Detector::ALL.map(|detector| (detector.name().to_owned(), key_of(detector, round))));
        }
        if number.is_multiple_of(steps / 10) && resident.len() < 10 {
            resident.push(own_resident_bytes() >> 20);
        }
    }
    let (raised, stats) = (world.all_raised(), world.stats());
    let World { analytics, sender, keys_of_flood, keys_of_others_max, .. } = &world;
    let (table, counters) = (&analytics.engine.table, analytics.engine.counters);
    let missed: Vec<_> = wanted.difference(&raised).collect();
    let attacked: BTreeSet<&String> = wanted.iter().map(|(_, key)| key).collect();
    // By the way, an attacker may do what other detectors look for, and the four addresses of a guesser are no innocents.
    let accused: Vec<_> = raised.iter().filter(|(_, key)| !attacked.contains(key) && !key.starts_with("100.")).collect();
    #[expect(clippy::print_stdout, reason = "what it measured is what it is for")]
    {
        println!(
            "{keys_of_flood} keys of five floods at once in {:.0} s; {} live, {} evicted ({} for lists, {} hot), {} overwritten in \
             probation; {} keys of users live, {} evicted, {} overwritten; {} attacks live, {} forgotten; {} of {} attackers found, as many of \
             each detector; {} others accused; resident MiB at each tenth: {resident:?}",
            begun.elapsed().as_secs_f64(),
            table.live(),
            counters.keys_evicted,
            counters.keys_evicted_for_lists,
            counters.keys_evicted_hot,
            table.probation_overwritten,
            stats.user_keys_live,
            stats.user_keys_evicted,
            stats.user_keys_overwritten,
            stats.attacks_live,
            stats.attacks_forgotten,
            wanted.len() - missed.len(),
            wanted.len(),
            accused.len(),
        );
    }
    assert!(missed.is_empty() && accused.is_empty(), "missed {missed:?}, accused {accused:?}");
    assert_eq!((sender.lost(analytics), table.pool.entries_dropped, stats.user_alerts_lost), (0, 0, 0));
    // What was made is live, was lost and counted, or waits in probation.
    let lost = counters.keys_evicted + table.probation_overwritten;
    let (live, waiting_max) = (table.live() as u64, table.capacity() as u64 / 4);
    assert!(lost > 0 && live + lost + waiting_max >= *keys_of_flood, "{keys_of_flood} made, {live} live, {lost} lost");
    assert!(lost <= keys_of_flood + keys_of_others_max, "{lost} lost, {keys_of_flood} and at most {keys_of_others_max} made");
    // Of six records of the flood two are of a user who never comes again, at whom two detectors look.
    let users_lost = stats.user_keys_evicted + stats.user_keys_overwritten;
    assert!(stats.user_keys_live + users_lost + stats.user_keys_max / 4 >= world.flood / 6 * 4, "{stats:?}");
    assert!(users_lost > 0 && stats.attacks_forgotten > 0, "{stats:?}");
    let grown = resident[resident.len() - 1].saturating_sub(resident[resident.len() / 2]);
    assert!(grown < 8, "{grown} MiB more: {resident:?}");
}

#[test]
fn floods_of_every_kind_at_once_hide_no_attacker_of_any_kind() {
    interleaved(1 << 14, 600_000, 300);
}

/// `cargo test --release -p postanalytics-tests --test interleaved -- --ignored --nocapture`, or `tests/full floods`.
#[test]
#[ignore = "takes minutes; run it alone and in release mode"]
fn a_hundred_million_keys_of_every_kind_hide_no_attacker_of_any_kind() {
    interleaved(1 << 20, 36_000_000, 2_400);
}

fn own_resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4096
}
