//! The time of the pieces of a frame's way through a shard, each alone and all together, fed from memory.
//!
//! Times are per frame of 64 records of about 512 bytes; throughput is in records.

#![forbid(unsafe_code)]
#![allow(missing_docs, reason = "criterion's macros make public functions")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use postanalytics_benches::RECORDS;
use postanalytics_benches::pieces::pieces;

fn hot_path(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("frame");
    group.throughput(Throughput::Elements(u64::from(RECORDS)));
    for mut piece in pieces() {
        let mut failed = 0u64;
        group.bench_function(piece.name, |bencher| {
            bencher.iter(|| failed += u64::from((piece.run)() != RECORDS));
        });
        assert_eq!(failed, 0, "{}: every frame of the bench was handled", piece.name);
    }
    group.finish();
}

criterion_group!(benches, hot_path);
criterion_main!(benches);
