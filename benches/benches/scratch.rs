//! What the bump arena of a turn saves: the same analysis of a batch with its scratch in a [`Bump`], and in vectors of the heap.
//!
//! Two amounts of scratch, each per frame of 64 records of which every fourth carries a hit:
//! - *hits and verdicts*, what a shard keeps today: positions of the records with hits, a verdict for each of their sources, and
//!   the Verdicts frame written from them;
//! - *a key per record*, what detectors keep besides: a copy of host and path of every record, until the turn ends.
//!
//! Both ways do the same work in the same order: the frames written are compared byte by byte before anything is measured.

#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "criterion's macros make public functions")]

use bumpalo::Bump;
use bumpalo::collections::Vec as BumpVec;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use postanalytics_benches::{RECORDS, body_of, frame_with_hits};
use postanalytics_protocol::frames::{Action, Subject, Verdict, encode_verdicts};
use postanalytics_protocol::routing::address_bytes;
use postanalytics_protocol::{Source, ValidBatch};
use std::hint::black_box;

fn verdict_on(source: Source) -> Verdict {
    let subject = Subject::Source(address_bytes(source.address()));
    Verdict { subject, application: None, action: Some(Action::Denylist), until_us: 1_000, detector: 1 }
}

fn with_bump(batch: &ValidBatch<'_>, scratch: &Bump, keys: bool, out: &mut Vec<u8>) -> usize {
    let mut key_bytes = 0;
    let mut copies: BumpVec<'_, BumpVec<'_, u8>> = BumpVec::new_in(scratch);
    let mut with_hits: BumpVec<'_, u32> = BumpVec::new_in(scratch);
    for (position, record) in batch.records().enumerate() {
        if keys {
            let (host, path) = (record.host(), record.path());
            let mut key = BumpVec::with_capacity_in(host.len() + path.len(), scratch);
            key.extend_from_slice_copy(host);
            key.extend_from_slice_copy(path);
            key_bytes += key.len();
            copies.push(key);
        }
        if record.hit_count() > 0 {
            with_hits.push(position as u32);
        }
    }
    let mut verdicts: BumpVec<'_, Verdict> = BumpVec::new_in(scratch);
    for position in &with_hits {
        verdicts.extend(batch.record(*position as usize).map(|record| verdict_on(record.source())));
    }
    encode_verdicts(1, false, false, &verdicts, 1, 0, out);
    black_box(&copies);
    key_bytes
}

fn with_heap(batch: &ValidBatch<'_>, keys: bool, out: &mut Vec<u8>) -> usize {
    let mut key_bytes = 0;
    let mut copies: Vec<Vec<u8>> = Vec::new();
    let mut with_hits: Vec<u32> = Vec::new();
    for (position, record) in batch.records().enumerate() {
        if keys {
            let (host, path) = (record.host(), record.path());
            let mut key = Vec::with_capacity(host.len() + path.len());
            key.extend_from_slice(host);
            key.extend_from_slice(path);
            key_bytes += key.len();
            copies.push(key);
        }
        if record.hit_count() > 0 {
            with_hits.push(position as u32);
        }
    }
    let mut verdicts: Vec<Verdict> = Vec::new();
    for position in &with_hits {
        verdicts.extend(batch.record(*position as usize).map(|record| verdict_on(record.source())));
    }
    encode_verdicts(1, false, false, &verdicts, 1, 0, out);
    black_box(&copies);
    key_bytes
}

fn scratch(criterion: &mut Criterion) {
    let body = body_of(frame_with_hits(1, 1, RECORDS, 4));
    let batch = ValidBatch::parse(1, RECORDS, &body).unwrap_or_else(|error| panic!("the frame is good: {error}"));
    let mut bump = Bump::with_capacity(256 << 10);
    for (name, keys) in [("hits and verdicts", false), ("a key per record besides", true)] {
        let (mut ours, mut heap) = (Vec::new(), Vec::new());
        let equal = with_bump(&batch, &bump, keys, &mut ours) == with_heap(&batch, keys, &mut heap);
        assert!(equal && ours == heap && ours.len() > 16 * 16, "both ways do the same work");
        let mut group = criterion.benchmark_group(name);
        group.throughput(Throughput::Elements(u64::from(RECORDS)));
        group.bench_function("bump", |bencher| {
            bencher.iter(|| {
                ours.clear();
                bump.reset();
                with_bump(black_box(&batch), &bump, keys, &mut ours)
            });
        });
        group.bench_function("heap", |bencher| {
            bencher.iter(|| {
                heap.clear();
                with_heap(black_box(&batch), keys, &mut heap)
            });
        });
        group.finish();
    }
}

criterion_group!(benches, scratch);
criterion_main!(benches);
