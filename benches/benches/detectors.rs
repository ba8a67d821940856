//! The detectors alone, from memory: all twelve over batches of 64 records, per record.
//!
//! - warm: 100,000 sources that come back, their state in the table
//! - all miss: a million live keys, each record from a source whose state was not touched for a long time

#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "criterion's macros make public functions")]

use bumpalo::Bump;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use postanalytics_protocol::{AlignedVec, BatchBuilder, RecordFields, ValidBatch};
use postanalytics_server::analytics::{Analytics, Room, Timing, settings::Settings};
use std::net::Ipv4Addr;
use std::sync::Arc;

const RECORDS: u32 = 64;

/// Bodies of batches that browse: `sources` sources in turn, 1,000 paths, user agents of browsers.
fn bodies(sources: u32, count: u32) -> Vec<AlignedVec<16>> {
    let make = |number: u32| {
        let mut batch = BatchBuilder::default();
        for record in 0..RECORDS {
            let n = number * RECORDS + record;
            // Coprime to the number of sources, so that all come before one comes again.
            let source = (u64::from(n) * 7_919 % u64::from(sources)) as u32;
            let path = format!("/shop/category-{}/page-{}.php", n % 40, n % 1000);
            let user_agent = format!("Mozilla/5.0 (X11; Linux x86_64; rv:{0}.0) Gecko/20100101 Firefox/{0}.0", n % 500);
            let fields = RecordFields {
                client_ip: Ipv4Addr::from(0x0a00_0000 + source).to_ipv6_mapped().octets(),
                event_us: 1_700_000_000_000_000 + u64::from(n) * 10,
                method: 1,
                status: 200,
                host: b"www.example.org",
                path: path.as_bytes(),
                query: b"page=2&sort=price",
                user_agent: user_agent.as_bytes(),
                ..RecordFields::default()
            };
            // A batch of 64 such records is far below the limit.
            let _ = batch.push(&fields, 1 << 20);
        }
        let mut body = AlignedVec::new();
        body.resize(batch.body_bytes(), 0);
        batch.encode_body(&mut body);
        body
    };
    (0..count).map(make).collect()
}

fn detectors(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("detectors");
    group.throughput(Throughput::Elements(u64::from(RECORDS)));
    // Two keys a source: forced_browsing and crawl.
    for (name, sources, keys) in [
        ("warm, 1,000 sources", 1_000, 1 << 16),
        ("100,000 sources", 100_000, 1 << 19),
        ("1 million live keys", 500_000, 1 << 21),
    ] {
        let bodies = bodies(sources, sources.div_ceil(RECORDS));
        let room = Room { keys, ..Room::default() };
        let (mut analytics, mut scratch) = (Analytics::new(Arc::new(Settings::default()), room, 3), Bump::new());
        let mut next = bodies.iter().cycle();
        let mut time_us = 0;
        let mut observe = || {
            let Some(body) = next.next() else { return };
            // As live: the batch came now, so time goes on although the bodies come again.
            time_us += 640;
            let timing = Timing { arrival_us: 1_700_000_000_000_000 + time_us, sent_us: 0, is_replay: false };
            if let Ok(batch) = ValidBatch::parse(1, RECORDS, body) {
                analytics.observe(&batch, timing, &[], &scratch);
            }
            analytics.listed.clear();
            scratch.reset();
        };
        // Twice around: every key has its second event behind it.
        (0..bodies.len() * 2).for_each(|_| observe());
        group.bench_function(name, |bencher| bencher.iter(&mut observe));
    }
    group.finish();
}

criterion_group!(benches, detectors);
criterion_main!(benches);
