//! Attacks beside a naive oracle: every hit kept in a list, every rule as the page of definitions says it.

use super::hits::{HitSampler, KEPT_PER_HOUR};
use super::samples::SAMPLES_MAX;
use super::table::{AttackTable, JOIN_US, LENGTH_US_MAX};
use crate::analytics::Timing;
use crate::analytics::alerts::Alert;
use crate::analytics::detectors::Detector;
use crate::analytics::fingerprint::Fingerprints;
use crate::analytics::observation::Observation;
use crate::analytics::settings::Settings;
use bumpalo::Bump;
use postanalytics_protocol::schema::v1::{FLAG_BLOCKED, SCHEMA};
use postanalytics_protocol::{BatchBuilder, Hit, RecordFields, Source, ValidBatch};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

const SHARDS: usize = 2;
const START_US: u64 = 1_700_000_000_000_000;

/// A hit of a generated stream.
#[derive(Clone, Copy, Debug)]
struct Made {
    time_us: u64,
    attack: u8,
    source: u8,
    status: u16,
    payload: u8,
    blocked: bool,
}

fn stream() -> impl Strategy<Value = Vec<Made>> {
    // Mostly quick, now and then around the hour that parts attacks, and long enough to be cut at 24 hours.
    let pause = prop_oneof![
        6 => 0u64..2_000_000,
        2 => JOIN_US / 4..JOIN_US,
        1 => JOIN_US - 1..JOIN_US + 3,
        1 => JOIN_US * 2..JOIN_US * 3,
    ];
    let hit = (pause, 0u8..3, 0u8..6, prop_oneof![Just(200u16), Just(403)], 0u8..5, any::<bool>());
    prop::collection::vec(hit, 1..300).prop_map(|hits| {
        let mut time_us = START_US;
        hits.into_iter()
            .map(|(pause_us, attack, source, status, payload, blocked)| {
                time_us += pause_us;
                Made { time_us, attack, source, status, payload, blocked }
            })
            .collect()
    })
}

/// What the oracle knows of an attack.
#[derive(Debug, Default)]
struct Naive {
    first_us: u64,
    last_us: u64,
    hits: Vec<(usize, Made)>,
}

fn naive(stream: &[Made]) -> Vec<Naive> {
    let mut attacks: BTreeMap<u8, Vec<Naive>> = BTreeMap::new();
    for (number, made) in stream.iter().enumerate() {
        let of_key = attacks.entry(made.attack).or_default();
        let joins = of_key
            .last()
            .is_some_and(|open| made.time_us - open.last_us <= JOIN_US && made.time_us - open.first_us < LENGTH_US_MAX);
        if !joins {
            of_key.push(Naive { first_us: made.time_us, ..Naive::default() });
        }
        let open = of_key.last_mut().expect("there is one");
        open.last_us = made.time_us;
        open.hits.push((number, *made));
    }
    attacks.into_values().flatten().collect()
}

/// Hits kept whole, by number: the first five of an hour that begins with the first of them.
fn naive_kept(stream: &[Made]) -> BTreeSet<usize> {
    let mut windows: HashMap<(u8, u8, u16), (u64, u32)> = HashMap::new();
    let mut kept = BTreeSet::new();
    for (number, made) in stream.iter().enumerate() {
        let window = windows.entry((made.attack, made.source, made.status)).or_insert((made.time_us, 0));
        if made.time_us - window.0 >= JOIN_US {
            *window = (made.time_us, 0);
        }
        window.1 += 1;
        if window.1 <= KEPT_PER_HOUR {
            kept.insert(number);
        }
    }
    kept
}

/// Runs a hit through the sampler of its shard.
fn sample(sampler: &mut HitSampler, made: Made, number: usize, prints: &Fingerprints) -> bool {
    let (settings, scratch) = (Settings::default(), Bump::new());
    let paths: [&[u8]; 3] = [b"/a", b"/b/7", b"/c"];
    let payloads: [&[u8]; 5] = [b"1", b"22", b"333", b"4444", b"55555"];
    let (mut client_ip, mut request_id) = ([0; 16], [0; 16]);
    client_ip[10..].copy_from_slice(&[255, 255, 192, 0, 2, made.source]);
    request_id[8..].copy_from_slice(&(number as u64).to_be_bytes());
    let hits =
        vec![Hit { attack_type: 1, severity: 9, rule_id: 1, point: b"get_id", payload: payloads[usize::from(made.payload)] }];
    let fields = RecordFields {
        request_id,
        event_us: made.time_us,
        client_ip,
        method: 1,
        status: made.status,
        flags: if made.blocked { FLAG_BLOCKED } else { 0 },
        host: b"h",
        path: paths[usize::from(made.attack)],
        hits,
        ..RecordFields::default()
    };
    let mut batch = BatchBuilder::default();
    batch.push(&fields, 1 << 20).expect("fits");
    let mut body = vec![0; batch.body_bytes()];
    batch.encode_body(&mut body);
    let batch = ValidBatch::parse(SCHEMA, 1, &body).expect("valid");
    let record = batch.record(0).expect("there is one");
    let timing = Timing { is_replay: true, ..Timing::default() };
    let mut observation = Observation::of(&record, (timing, 0, 0), prints);
    observation.look_up(&settings, prints, None, &scratch);
    let hit = record.hits().next().expect("there is one");
    sampler.take(&observation, record.flags(), &hit, prints, &scratch)
}

/// Sends the stream through the samplers of two shards into a table, in turns of `turn` hits.
fn run(stream: &[Made], turn: usize) -> (AttackTable, u64) {
    let prints = Fingerprints::new(3);
    let mut samplers: Vec<HitSampler> = (0..SHARDS).map(|_| HitSampler::new()).collect();
    let mut table = AttackTable::with_limit(1000);
    for (round, hits) in stream.chunks(turn).enumerate() {
        for (at, made) in hits.iter().enumerate() {
            sample(&mut samplers[usize::from(made.source) % SHARDS], *made, round * turn + at, &prints);
        }
        for sampler in &mut samplers {
            table.take_hits(&sampler.reports, u64::MAX);
            sampler.reports.clear();
        }
    }
    let suppressed = samplers.iter().map(|sampler| sampler.suppressed).sum();
    (table, suppressed)
}

/// Also those that have no counter any more; whoever took part in another one does not.
#[test]
fn each_of_many_sources_finds_its_attack_and_no_other() {
    let hit = |source: u8| Made { time_us: START_US, attack: source % 2, source, status: 403, payload: 0, blocked: true };
    let (table, _) = run(&(0..=u8::MAX).map(hit).collect::<Vec<_>>(), 1);
    let attacks: Vec<_> = table.newest_first().collect();
    assert_eq!(attacks.len(), 2);
    for source in 0..=u8::MAX {
        let key = Source::of(IpAddr::from([192, 0, 2, source])).key();
        let found: Vec<_> = attacks.iter().filter(|attack| table.took_part(attack, key)).collect();
        let template: &[u8] = if source % 2 == 0 { b"/a" } else { b"/b/{id}" };
        assert_eq!(found.iter().map(|attack| &*attack.template).collect::<Vec<_>>(), [template], "{source}");
    }
    assert_eq!(table.partakers_forgotten(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Hit by hit, for then the order of events is that of the stream.
    #[test]
    fn attacks_are_those_of_the_oracle(stream in stream()) {
        let (table, suppressed) = run(&stream, 1);
        let mut found: Vec<_> = table.newest_first().collect();
        found.iter().for_each(|attack| attack.invariants());
        let kept = naive_kept(&stream);
        prop_assert_eq!(suppressed, (stream.len() - kept.len()) as u64);
        let mut expected = naive(&stream);
        let name = |first_us: u64, count: usize, last_us: u64| (first_us, count, last_us);
        found.sort_by_key(|attack| name(attack.first_us, attack.count as usize, attack.last_us));
        expected.sort_by_key(|attack| name(attack.first_us, attack.hits.len(), attack.last_us));
        prop_assert_eq!(found.len(), expected.len());
        for (attack, naive) in found.iter().zip(&expected) {
            let hits = || naive.hits.iter().map(|(_, made)| made);
            prop_assert_eq!((attack.first_us, attack.last_us, attack.count), (naive.first_us, naive.last_us, naive.hits.len() as u64));
            prop_assert_eq!(attack.blocked, hits().filter(|made| made.blocked).count() as u64);
            let mut statuses = BTreeMap::<u16, u64>::new();
            hits().for_each(|made| *statuses.entry(made.status).or_default() += 1);
            prop_assert_eq!(&attack.statuses, &statuses);
            prop_assert_eq!(attack.distinct_sources.estimate(), hits().map(|made| made.source).collect::<BTreeSet<_>>().len() as u64);
            prop_assert_eq!(attack.distinct_payloads.estimate(), hits().map(|made| made.payload).collect::<BTreeSet<_>>().len() as u64);
            let kept_here = naive.hits.iter().filter(|(number, _)| kept.contains(number)).count();
            prop_assert_eq!(attack.kept, kept_here as u64);
        }
    }

    /// However the stream is cut into turns: what is counted is the same, and so are the samples.
    #[test]
    fn turns_change_nothing(stream in stream(), turn in 1usize..50) {
        // Within a turn the shards are heard one after the other, so times must not part attacks there.
        let stream: Vec<Made> =
            stream.iter().enumerate().map(|(at, made)| Made { time_us: START_US + at as u64, ..*made }).collect();
        let ((one, suppressed), (other, again)) = (run(&stream, 1), run(&stream, turn));
        prop_assert_eq!(suppressed, again);
        let sum = |table: &AttackTable| {
            let mut all: Vec<_> = table.newest_first().map(|attack| {
                attack.invariants();
                let sampled: Vec<u64> = attack.samples.iter().map(|sample| sample.hash).collect();
                let distinct = (attack.distinct_sources.estimate(), attack.distinct_payloads.estimate());
                (attack.key, attack.count, attack.blocked, attack.kept, attack.statuses.clone(), distinct, sampled)
            }).collect();
            all.sort();
            all
        };
        prop_assert_eq!(sum(&one), sum(&other));
    }

    /// The samples are the hits with the smallest hashes of all, suppressed ones too.
    #[test]
    fn samples_are_the_smallest_of_all_hits(count in 1usize..400) {
        let made = Made { time_us: START_US, attack: 0, source: 0, status: 200, payload: 0, blocked: false };
        let stream: Vec<Made> = (0..count).map(|at| Made { time_us: START_US + at as u64, ..made }).collect();
        let (table, _) = run(&stream, 7);
        let attack = table.newest_first().next().expect("there is one");
        let prints = Fingerprints::new(3);
        let mut hashes: Vec<u64> = (0..count as u64).map(|number| prints.pair(prints.pair(attack.key, 0), number)).collect();
        hashes.sort_unstable();
        hashes.truncate(SAMPLES_MAX);
        prop_assert_eq!(attack.samples.iter().map(|sample| sample.hash).collect::<Vec<_>>(), hashes);
    }
}

#[test]
fn a_full_table_forgets_the_quietest_and_counts_it() {
    let prints = Fingerprints::new(3);
    let mut sampler = HitSampler::new();
    let mut table = AttackTable::with_limit(2);
    for (number, attack) in [0u8, 1, 0, 2].into_iter().enumerate() {
        let time_us = START_US + number as u64;
        let made = Made { time_us, attack, source: 0, status: 200, payload: 0, blocked: false };
        assert!(sample(&mut sampler, made, number, &prints));
        table.take_hits(&sampler.reports, u64::MAX);
        sampler.reports.clear();
    }
    assert_eq!((table.len(), table.forgotten, table.cut_short), (2, 1, 1));
    assert_eq!(table.newest_first().map(|attack| attack.count).collect::<Vec<_>>(), [1, 2]);
}

/// As from a node that gives all its requests the same id: they must not flood the correlator.
#[test]
fn requests_of_one_id_are_one_sample_and_few_reports() {
    let prints = Fingerprints::new(3);
    let mut sampler = HitSampler::new();
    for step in 0..10_000 {
        let made = Made { time_us: START_US + step, attack: 0, source: 0, status: 200, payload: 0, blocked: false };
        sample(&mut sampler, made, 7, &prints);
    }
    assert_eq!((sampler.reports.iter().len(), sampler.lost, sampler.suppressed), (6, 0, 9995));
}

/// As of a detector whose default and override both hold an alert of the same key and scope: each is reported once a second.
#[test]
fn alerts_of_two_plans_are_one_attack_and_counted_once() {
    let (prints, mut table) = (Fingerprints::new(3), AttackTable::default());
    let detector = Detector::ForcedBrowsing;
    let mut alerts = [Alert::default(), Alert::default()];
    for (rank, alert) in (0..).zip(&mut alerts) {
        (alert.plan, alert.source, alert.first_us) = (detector.plan(rank), 7, START_US);
    }
    for second in 1..=10 {
        for alert in &mut alerts {
            (alert.count, alert.last_us) = (second * 10, START_US + second * 1_000_000);
            table.take_alert(alert, &prints, u64::MAX);
        }
    }
    let attacks: Vec<_> = table.newest_first().collect();
    attacks[0].invariants();
    assert_eq!((attacks.len(), attacks[0].count), (1, 200));
}

/// As from a replay whose times are ahead.
#[test]
fn what_is_said_to_be_in_the_future_is_now() {
    let (prints, mut sampler, mut table) = (Fingerprints::new(3), HitSampler::new(), AttackTable::default());
    let made = Made { time_us: START_US * 2, attack: 0, source: 0, status: 200, payload: 0, blocked: false };
    sample(&mut sampler, made, 0, &prints);
    table.take_hits(&sampler.reports, START_US);
    let mut alert = Alert::default();
    (alert.first_us, alert.last_us, alert.count) = (START_US * 2, START_US * 3, 1);
    table.take_alert(&alert, &prints, START_US);
    assert_eq!(table.len(), 2);
    assert!(table.newest_first().all(|attack| (attack.first_us, attack.last_us) == (START_US, START_US)));
}
