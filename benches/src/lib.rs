//! What the benches share: batches of realistic records; and [`peers`], the comparison with other stores.

#![forbid(unsafe_code)]

pub mod peers;

use postanalytics_protocol::{BatchBuilder, RecordFields};
use std::net::Ipv4Addr;

/// A Batch frame of `records` records of about 512 bytes each, from as many sources.
pub fn frame(session: u64, sequence: u64, records: u32) -> Vec<u8> {
    let mut batch = BatchBuilder::default();
    for n in 0..records {
        let path = format!("/shop/category/{:04}/item/{n:08}/{}", sequence % 10_000, "a".repeat(48));
        let fields = RecordFields {
            client_ip: Ipv4Addr::from(0x0a00_0000 + (sequence as u32 * records + n) % 100_000).to_ipv6_mapped().octets(),
            status: 200,
            host: b"www.example.org",
            path: path.as_bytes(),
            query: b"page=2&sort=price",
            user_agent: &[b'u'; 110],
            referer: &[b'r'; 110],
            ..RecordFields::default()
        };
        // A frame of 64 such records is far below the limit.
        let _ = batch.push(&fields, 1 << 20);
    }
    let mut out = Vec::new();
    batch.encode_frame(session, sequence, 0, &mut out);
    out
}
