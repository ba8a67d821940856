//! What counting for pages costs beside the detectors: timeline, top lists, shares, distinct sources; per record of batches of
//! 64, browsing from 100,000 sources with 10,000 user agents at 100,000 paths, with and without.

#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "criterion's macros make public functions")]

use bumpalo::Bump;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use postanalytics_protocol::{BatchBuilder, RecordFields, ValidBatch};
use postanalytics_server::analytics::{Analytics, Room, Timing};
use postanalytics_server::shard::derived::derived_queue;
use std::net::Ipv4Addr;
use std::sync::Arc;

const RECORDS: u32 = 64;
const BATCHES: u32 = 2000;

fn bodies() -> Vec<Vec<u8>> {
    let make = |number: u32| {
        let mut batch = BatchBuilder::default();
        for n in number * RECORDS..(number + 1) * RECORDS {
            let any = |of: u64, salt: u64| ((u64::from(n) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15 ^ salt << 8) >> 20) % of;
            let source = any(100_000, 1) as u32;
            let path = format!("/shop/category-{}/page-{}.php", any(40, 2), any(100_000, 3));
            let user_agent = format!("Mozilla/5.0 (X11; Linux x86_64; rv:{0}.0) Gecko/20100101 Firefox/{0}.0", any(10_000, 4));
            let fields = RecordFields {
                client_ip: Ipv4Addr::from(0x0a00_0000 + source).to_ipv6_mapped().octets(),
                event_us: 1_700_000_000_000_000,
                method: 1,
                status: 200,
                host: b"www.example.org",
                path: path.as_bytes(),
                user_agent: user_agent.as_bytes(),
                ..RecordFields::default()
            };
            // A batch of 64 such records is far below the limit.
            let _ = batch.push(&fields, 1 << 20);
        }
        let mut body = vec![0; batch.body_bytes()];
        batch.encode_body(&mut body);
        body
    };
    (0..BATCHES).map(make).collect()
}

fn summary(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("summary");
    group.throughput(Throughput::Elements(u64::from(RECORDS)));
    let bodies = bodies();
    for (name, reports) in [("detectors alone", false), ("detectors and counters", true)] {
        let room = Room { keys: 1 << 19, reports, ..Room::default() };
        let (mut analytics, mut scratch) = (Analytics::new(Arc::default(), room, 3), Bump::new());
        let (mut derived, mut receiver) = derived_queue().expect("socket pairs");
        let mut next = bodies.iter().cycle();
        let mut time_us = 0;
        let mut observe = || {
            let Some(body) = next.next() else { return };
            time_us += 640;
            let timing = Timing { arrival_us: 1_700_000_000_000_000 + time_us, sent_us: 0, is_replay: false };
            if let Ok(batch) = ValidBatch::parse(1, RECORDS, body) {
                analytics.observe(&batch, timing, &[], &scratch);
            }
            analytics.listed.clear();
            derived.send(&mut analytics);
            if let Some(parcel) = receiver.receive() {
                receiver.give_back(parcel);
            }
            scratch.reset();
        };
        (0..bodies.len() * 2).for_each(|_| observe());
        group.bench_function(name, |bencher| bencher.iter(&mut observe));
    }
    group.finish();
}

criterion_group!(benches, summary);
criterion_main!(benches);
