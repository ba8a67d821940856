//! What the benches share: batches of realistic records, and the pieces of a frame's way through a shard; and
//! [`peers`], the comparison with other stores.
//!
//! The pieces are the same for the bench that takes times and the one that counts instructions. Each says afterwards whether
//! it did its work, so that a piece that fails early cannot look fast.

#![forbid(unsafe_code)]

pub mod peers;
pub mod pieces;

use postanalytics_protocol::frames::{ANY_SHARD, Hello, PackageVersion};
use postanalytics_protocol::{BatchBuilder, FrameHeader, HEADER_BYTES, Hit, RecordFields};
use postanalytics_server::analytics::Analytics;
use postanalytics_server::arena::Log;
use postanalytics_server::shard::messages::{ConnectionTicket, Topology};
use postanalytics_server::shard::{Now, Shard};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

/// Records of a frame in all benches.
pub const RECORDS: u32 = 64;

/// A Batch frame of `records` records of about 512 bytes each, from as many sources.
pub fn frame(session: u64, sequence: u64, records: u32) -> Vec<u8> {
    frame_with_hits(session, sequence, records, 0)
}

/// The same; of `hits_every` records one carries a hit (0: none does).
pub fn frame_with_hits(session: u64, sequence: u64, records: u32, hits_every: u32) -> Vec<u8> {
    let hits = [Hit { attack_type: 1, severity: 50, rule_id: 7, point: b"get_id", payload: b"1 union select" }];
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
            hits: if hits_every > 0 && n.is_multiple_of(hits_every) { hits.to_vec() } else { Vec::new() },
            ..RecordFields::default()
        };
        // A frame of 64 such records is far below the limit.
        let _ = batch.push(&fields, 1 << 20);
    }
    let mut out = Vec::new();
    batch.encode_frame(session, sequence, 0, &mut out);
    out
}

/// A frame's body.
pub fn body_of(mut frame: Vec<u8>) -> Vec<u8> {
    frame.split_off(HEADER_BYTES)
}

/// Gives a frame another sequence, as a client does that sends pre-built frames.
pub fn stamp(header: &mut [u8], sequence: u64) {
    let mut bytes = [0; HEADER_BYTES];
    bytes.copy_from_slice(&header[..HEADER_BYTES]);
    if let Ok(decoded) = FrameHeader::decode(&bytes, u32::MAX) {
        header[..HEADER_BYTES].copy_from_slice(&FrameHeader { sequence, ..decoded }.encode());
    }
}

/// A shard of 128 MiB, prefaulted, with one session adopted on link 0. `None`: no memory.
pub fn shard(now: Now) -> Option<Shard> {
    let package = PackageVersion::default();
    let topology = Topology {
        server_id: [1; 16],
        deployment_id: [2; 16],
        epoch: 3,
        shard_count: 1,
        routing_seed: 4,
        identity_key: [5; 32],
        package,
        max_body_bytes: 1 << 20,
    };
    let (mut requests, attacks) = (Log::new(64).ok()?, Log::new(4).ok()?);
    requests.memory().prefault().ok()?;
    let mut shard = Shard::new(0, Arc::new(topology), Duration::from_secs(10), requests, attacks, Analytics::default());
    let name = "bench".to_owned();
    let peer = ([127, 0, 0, 1], 1).into();
    let ticket = ConnectionTicket { node: [1; 16], name: name.clone(), session: 1, peer, package, shard: 0 };
    let hello = Hello {
        protocol_min: 1,
        protocol_max: 1,
        schema_min: 1,
        schema_max: 1,
        package,
        node: [1; 16],
        wanted_shard: ANY_SHARD,
        replay: false,
        nonce: [0; 32],
        name,
    };
    shard.adopt(0, &hello, 1, Arc::new(ticket), now);
    Some(shard)
}
