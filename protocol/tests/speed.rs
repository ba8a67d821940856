//! How long checking a batch takes. A measurement, not a test: run it by hand, in release, on an idle machine.
//!
//! `cargo test --release -p postanalytics-protocol --test speed -- --ignored --nocapture`

use postanalytics_protocol::schema::v1::{RECORD_BYTES, SCHEMA};
use postanalytics_protocol::{BatchBuilder, Hit, RecordFields, ValidBatch};
use std::hint::black_box;
use std::time::Instant;

const RECORDS: usize = 64;
const ROUNDS: usize = 20_000;

/// A batch of records of 512 bytes each, of which the fixed part is 176.
fn batch(hits_every: usize) -> Vec<u8> {
    let mut builder = BatchBuilder::default();
    let filler = [b'a'; 512];
    for index in 0..RECORDS {
        let hit = hits_every != 0 && index % hits_every == 0;
        let path_bytes = 512 - RECORD_BYTES - 11 - 20 - 100 - if hit { 24 + 6 + 18 } else { 0 };
        let fields = RecordFields {
            host: &filler[..11],
            path: &filler[..path_bytes],
            query: &filler[..20],
            user_agent: &filler[..100],
            hits: if hit { vec![Hit { point: &filler[..6], payload: &filler[..18], ..Hit::default() }] } else { Vec::new() },
            ..RecordFields::default()
        };
        builder.push(&fields, 1 << 20).expect("fits");
    }
    let mut body = vec![0; builder.body_bytes()];
    builder.encode_body(&mut body);
    body
}

fn ns_per_record(mut work: impl FnMut()) -> f64 {
    let round = |work: &mut dyn FnMut()| {
        let start = Instant::now();
        for _ in 0..ROUNDS {
            work();
        }
        start.elapsed().as_nanos() as f64 / (ROUNDS * RECORDS) as f64
    };
    (0..7).map(|_| round(&mut work)).fold(f64::INFINITY, f64::min)
}

#[test]
#[ignore = "a measurement: run it by hand, in release"]
fn parse_ns_per_record() {
    for (what, hits_every) in [("no hits", 0), ("a hit in every 8th record", 8), ("a hit in every record", 1)] {
        let body = batch(hits_every);
        let parse = ns_per_record(|| {
            black_box(ValidBatch::parse(SCHEMA, RECORDS as u32, black_box(&body)).expect("valid"));
        });
        let crc = ns_per_record(|| {
            black_box(crc32fast::hash(black_box(&body)));
        });
        eprintln!("{what}: {} bytes a record, parse {parse:.2} ns, CRC {crc:.2} ns a record", body.len() / RECORDS);
    }
}
