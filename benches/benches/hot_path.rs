//! The pieces of a frame's way through a shard, each alone and all together, fed from memory.
//!
//! Times are per frame of 64 records of about 512 bytes; throughput is in records.

#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "criterion's macros make public functions")]

use bumpalo::Bump;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use postanalytics_benches::frame;
use postanalytics_protocol::frames::{ANY_SHARD, Hello, PackageVersion};
use postanalytics_protocol::{AlignedVec, Assembler, FrameHeader, HEADER_BYTES, ValidBatch, shard_of};
use postanalytics_server::analytics::{Analytics, Timing};
use postanalytics_server::arena::{Log, PlaceHeader};
use postanalytics_server::shard::messages::{ConnectionTicket, Topology};
use postanalytics_server::shard::{Now, Shard, Usage};
use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

const RECORDS: u32 = 64;

fn aligned_body(frame: &[u8]) -> AlignedVec<16> {
    let mut body = AlignedVec::new();
    body.extend_from_slice(&frame[HEADER_BYTES..]);
    body
}

fn pieces(criterion: &mut Criterion) {
    let frame = frame(1, 1, RECORDS);
    let body = aligned_body(&frame);
    let mut group = criterion.benchmark_group("frame");
    group.throughput(Throughput::Elements(u64::from(RECORDS)));
    group.bench_function("crc", |bencher| bencher.iter(|| crc32fast::hash(black_box(&body))));
    group.bench_function("validate", |bencher| {
        bencher.iter(|| ValidBatch::parse(1, RECORDS, black_box(&body)).map(|batch| batch.len()));
    });
    group.bench_function("route", |bencher| {
        let batch = ValidBatch::parse(1, RECORDS, &body);
        bencher.iter(|| batch.iter().flat_map(ValidBatch::records).map(|record| shard_of(record.source(), 7, 8)).sum::<u32>());
    });
    group.bench_function("analyse", |bencher| {
        let batch = ValidBatch::parse(1, RECORDS, &body);
        let (mut analytics, mut scratch) = (Analytics::default(), Bump::new());
        bencher.iter(|| {
            batch.iter().for_each(|batch| drop(black_box(analytics.observe(batch, Timing::default(), &[], &scratch))));
            scratch.reset();
        });
    });
    group.bench_function("assemble", |bencher| {
        let mut body = AlignedVec::new();
        let mut assembler = Assembler::default();
        bencher.iter(|| assembler.collect(&mut black_box(frame.as_slice()), &mut body).is_ok());
    });
    group.finish();
}

fn arena(criterion: &mut Criterion) {
    let frame = frame(1, 1, RECORDS);
    let body = &frame[HEADER_BYTES..];
    let Ok(mut log) = Log::new(64) else { return };
    if log.memory().prefault().is_err() {
        return;
    }
    let mut group = criterion.benchmark_group("arena");
    group.throughput(Throughput::Elements(u64::from(RECORDS)));
    group.bench_function("append and recycle", |bencher| {
        bencher.iter(|| {
            if let Ok(mut place) = log.reserve(body.len() as u32) {
                log.fill(&mut place, body);
                log.commit(place, PlaceHeader { record_count: RECORDS, arrival_us: 1, ..PlaceHeader::default() });
            }
        });
    });
    group.finish();
}

fn shard(criterion: &mut Criterion) {
    let topology = Topology {
        server_id: [1; 16],
        deployment_id: [2; 16],
        epoch: 3,
        shard_count: 1,
        routing_seed: 4,
        identity_key: [5; 32],
        package: PackageVersion::default(),
        max_body_bytes: 1 << 20,
    };
    let (Ok(mut requests), Ok(attacks)) = (Log::new(64), Log::new(4)) else { return };
    if requests.memory().prefault().is_err() {
        return;
    }
    let mut shard = Shard::new(0, Arc::new(topology), Duration::from_secs(10), requests, attacks, Analytics::default());
    let ticket = ConnectionTicket {
        node: [1; 16],
        name: "bench".to_owned(),
        session: 1,
        peer: ([127, 0, 0, 1], 1).into(),
        package: PackageVersion::default(),
        shard: 0,
    };
    let hello = Hello {
        protocol_min: 1,
        protocol_max: 1,
        schema_min: 1,
        schema_max: 1,
        package: PackageVersion::default(),
        node: [1; 16],
        wanted_shard: ANY_SHARD,
        replay: false,
        nonce: [0; 32],
        name: "bench".to_owned(),
    };
    let mut now = Now { monotonic_us: 1, wall_us: 1 };
    shard.adopt(0, &hello, 1, Arc::new(ticket), now);
    let mut frame = frame(1, 1, RECORDS);
    let mut sequence = 0;
    let mut group = criterion.benchmark_group("shard");
    group.throughput(Throughput::Elements(u64::from(RECORDS)));
    group.bench_function("from memory, store and ack", |bencher| {
        bencher.iter(|| {
            sequence += 1;
            now.monotonic_us += 10;
            now.wall_us += 10;
            stamp(&mut frame, sequence);
            shard.received(0, &frame, now);
            shard.end_turn(Usage::default(), now);
            while let Some(link) = shard.take_dirty() {
                if let Some(outbox) = shard.outbox(link) {
                    outbox.clear();
                    shard.sent(link);
                }
            }
        });
    });
    let stats = shard.stats();
    assert_eq!(stats.records_stored, sequence * u64::from(RECORDS), "every frame of the bench was stored");
    group.finish();
}

/// Gives a frame another sequence, as a client does that sends pre-built frames.
fn stamp(frame: &mut [u8], sequence: u64) {
    let mut header = [0; HEADER_BYTES];
    header.copy_from_slice(&frame[..HEADER_BYTES]);
    if let Ok(decoded) = FrameHeader::decode(&header, u32::MAX) {
        frame[..HEADER_BYTES].copy_from_slice(&FrameHeader { sequence, ..decoded }.encode());
    }
}

criterion_group!(benches, pieces, arena, shard);
criterion_main!(benches);
