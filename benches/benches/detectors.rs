//! The detectors alone, from memory: all that the analysis of a shard does with a record that browses, per record.
//!
//! Batches of 64 records of about 390 bytes. Between two batches every record gets another visitor, path, user agent and status,
//! written over in place and not timed, so that the records lie in the cache as they do in a shard that has just received them
//! while what is known of their visitors does not. Timed are the validation of the batch and `Analytics::observe`: paths, templates
//! and their kinds, user agents against the names of tools, all detectors with their keys, clocks, evidence and alerts, and the
//! counters and top lists of all requests. Not among it: hits (no record has one), and the look-up of verdicts, which is the client's.
//!
//! A million keys are live, two for each of 500,000 visitors: forced_browsing and crawl. Each visitor is browsing, a request every
//! five seconds, through eight pages and assets of his own out of all paths; of a hundred requests two are not found. Who comes:
//! - warm: 1,000 visitors of the 500,000, so that what is known of them is in the cache
//! - all miss: every visitor in turn, so that what is known of each was last looked at 500,000 records ago

#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "criterion's macros make public functions")]

use bumpalo::Bump;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use postanalytics_protocol::schema::v1::RECORD_BYTES;
use postanalytics_protocol::{BatchBuilder, RecordFields, ValidBatch};
use postanalytics_server::analytics::{Analytics, Room, Timing, settings::Settings};
use std::sync::Arc;
use std::time::{Duration, Instant};

const RECORDS: u32 = 64;
/// A visitor's requests are this far apart.
const PAUSE_US: u64 = 5_000_000;
const START_US: u64 = 1_700_000_000_000_000;
/// Digits that are written over.
const DIGITS: usize = 7;

/// Who comes.
#[derive(Clone, Copy, Debug)]
struct Mix {
    name: &'static str,
    /// Visitors whose state is in the table.
    known: u32,
    /// Of them, those that come again.
    active: u32,
    paths: u32,
    user_agents: u32,
}

/// A batch of records that can be made those of others in place.
struct Batch {
    body: Vec<u8>,
    /// Where the digits of the path and of the user agent stand in the body, and whether the path is an asset's.
    digits: Vec<[usize; 2]>,
}

impl Batch {
    fn new() -> Self {
        let mut batch = BatchBuilder::default();
        for n in 0..RECORDS {
            let path = match n % 5 {
                0 | 1 => "/assets/v26/images/products/summer-collection/thumb-0000000.webp",
                2 => "/catalog/kitchen-and-garden/leather-goods/classic-review-0000000.php",
                _ => "/shop/category-winter/articles/running-travel-guide/page-0000000/",
            };
            let agent = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/0000000.0.0 Safari/537.36";
            let fields = RecordFields {
                request_id: [n as u8 + 1; 16],
                client_ip: std::net::Ipv4Addr::from(0x0a00_0000).to_ipv6_mapped().octets(),
                method: 1,
                status: 200,
                host: b"www.example.org",
                path: path.as_bytes(),
                query: b"page=2&sort=price",
                user_agent: agent.as_bytes(),
                referer: b"https://www.example.org/shop/category-winter/",
                ..RecordFields::default()
            };
            // A batch of 64 such records is far below the limit.
            let _ = batch.push(&fields, 1 << 20);
        }
        let mut body = vec![0; batch.body_bytes()];
        batch.encode_body(&mut body);
        // The blob follows the records.
        let at = |part: &[u8], offset: u32| {
            let zeros = part.windows(DIGITS).position(|window| window == b"0000000").unwrap_or(0);
            RECORDS as usize * RECORD_BYTES + offset as usize + zeros
        };
        let blob = batch.blob();
        let part = |span: postanalytics_protocol::schema::v1::Span| {
            at(&blob[span.offset as usize..(span.offset + span.length) as usize], span.offset)
        };
        let digits = batch.records().iter().map(|record| [part(record.path), part(record.user_agent)]).collect();
        Self { body, digits }
    }

    /// Makes the records those of requests number `first` and following.
    fn write(&mut self, mix: Mix, first: u64) {
        for (place, number) in (0..RECORDS as usize).zip(first..) {
            // A prime: neighbours in time are no neighbours in number.
            let visitor = (number * 7_919_777 % u64::from(mix.active)) as u32;
            let visit = number / u64::from(mix.active);
            let draw = mixed((u64::from(visitor) << 8) | (visit % 8));
            let record = &mut self.body[place * RECORD_BYTES..][..RECORD_BYTES];
            record[..8].copy_from_slice(&number.to_le_bytes());
            record[28..32].copy_from_slice(&(0x0b00_0000 + visitor).to_be_bytes());
            let status: u16 = if draw % 100 < 2 { 404 } else { 200 };
            record[98..100].copy_from_slice(&status.to_le_bytes());
            let numbers = [(draw >> 8) as u32 % (mix.paths / 3), visitor % mix.user_agents];
            for (at, number) in self.digits[place].into_iter().zip(numbers) {
                let mut number = number;
                for digit in self.body[at..at + DIGITS].iter_mut().rev() {
                    *digit = b'0' + (number % 10) as u8;
                    number /= 10;
                }
            }
        }
    }
}

/// The finaliser of splitmix64.
const fn mixed(mut x: u64) -> u64 {
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A shard's analysis that is fed.
struct Subject {
    analytics: Analytics,
    scratch: Bump,
    batch: Batch,
    number: u64,
    time_ns: u64,
}

impl Subject {
    fn new(keys: usize) -> Self {
        let room = Room { keys, reports: true, ..Room::default() };
        let analytics = Analytics::new(Arc::new(Settings::default()), room, 3);
        Self { analytics, scratch: Bump::with_capacity(1 << 20), batch: Batch::new(), number: 0, time_ns: 0 }
    }

    /// A batch; how long it took.
    fn observe(&mut self, mix: Mix) -> Duration {
        self.batch.write(mix, self.number);
        self.number += u64::from(RECORDS);
        self.time_ns += PAUSE_US * 1000 * u64::from(RECORDS) / u64::from(mix.active);
        let timing = Timing { arrival_us: START_US + self.time_ns / 1000, sent_us: 0, is_replay: false };
        let begun = Instant::now();
        if let Ok(batch) = ValidBatch::parse(1, RECORDS, &self.batch.body) {
            self.analytics.observe(&batch, timing, &[], &self.scratch);
        }
        let took = begun.elapsed();
        self.analytics.listed.clear();
        self.scratch.reset();
        took
    }
}

fn detectors(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("detectors");
    group.throughput(Throughput::Elements(u64::from(RECORDS)));
    let million = Mix {
        name: "all miss, 1,000,000 live keys, 1,000 paths",
        known: 500_000,
        active: 500_000,
        paths: 1_000,
        user_agents: 500,
    };
    let (paths, user_agents) = (100_000, 10_000);
    for mix in [
        Mix { name: "warm, 1,000,000 live keys, 1,000 paths", active: 1_000, ..million },
        Mix { name: "warm, 1,000,000 live keys, 100,000 paths", active: 1_000, paths, user_agents, ..million },
        Mix { name: "200,000 live keys, 100,000 paths", known: 100_000, active: 100_000, paths, user_agents },
        million,
        Mix { name: "all miss, 1,000,000 live keys, 100,000 paths", paths, user_agents, ..million },
    ] {
        let mut subject = Subject::new(2_000_000);
        // Every visitor is known by all of his pages; then those that come again get warm.
        let all = Mix { active: mix.known, ..mix };
        for (mix, rounds) in [(all, 8), (mix, if mix.active == mix.known { 0 } else { 20 })] {
            let batches = u64::from(mix.active) * rounds / u64::from(RECORDS);
            (0..batches).for_each(|_| {
                subject.observe(mix);
            });
        }
        let engine = &subject.analytics.engine;
        let alerts: u64 = engine.counters.fired.iter().sum();
        eprintln!(
            "{} keys, {} MB of lists, {} entries dropped, {alerts} alerts",
            engine.table.live(),
            engine.table.pool.used_bytes() >> 20,
            engine.table.pool.entries_dropped
        );
        group.bench_function(mix.name, |bencher| bencher.iter_custom(|count| (0..count).map(|_| subject.observe(mix)).sum()));
    }
    group.finish();
}

criterion_group!(benches, detectors);
criterion_main!(benches);
