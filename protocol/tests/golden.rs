//! Golden frames: the bytes of one frame of every kind, in hex, in `testdata`. They are the wire as other programs speak
//! it and may never change within protocol version 1 and schema 1. PROTOCOL.md says what is in them, and shows three.

mod common;

use common::{AMPLE, hex_lines, only_frame, read_hex};
use postanalytics_protocol::frames::{
    ANY_SHARD, Ack, Action, ControlFrame, ErrorFrame, Goodbye, Hello, PackageVersion, Ping, Pong, Stats, StatsRequest,
    StoredSequence, Subject, Verdict, Verdicts, Welcome,
};
use postanalytics_protocol::routing::address_bytes;
use postanalytics_protocol::schema::v1::{
    AttackType, FLAG_AUTH_FAILED, FLAG_BLOCKED, FLAG_CREDENTIALS, FLAG_GRAYLIST, Method, SCHEMA, Scheme, TAG_METHOD,
};
use postanalytics_protocol::{BatchBuilder, ErrorCode, Extension, FrameKind, Hit, RecordFields, ValidBatch};
use std::path::PathBuf;

const SESSION: u64 = 0x1122_3344_5566_7788;
const SENT_US: u64 = 1_700_000_000_000_000;

fn path_of(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata").join(format!("{name}.hex"))
}

fn check(name: &str, bytes: &[u8]) {
    let golden = read_hex(&path_of(name));
    assert!(golden == bytes, "{name}.hex is not what is encoded now:\n{}", hex_lines(bytes));
}

/// The bytes of `first`, `first + 1`, …
fn counting<const N: usize>(first: u8) -> [u8; N] {
    std::array::from_fn(|index| first + index as u8)
}

fn address(text: &str) -> [u8; 16] {
    address_bytes(text.parse().expect("an address"))
}

fn control_frames() -> Vec<(&'static str, ControlFrame)> {
    let hello = Hello {
        protocol_min: 1,
        protocol_max: 1,
        schema_min: 1,
        schema_max: 1,
        package: PackageVersion { major: 0, minor: 1, patch: 2 },
        node: counting(0xa0),
        wanted_shard: ANY_SHARD,
        replay: true,
        nonce: [0; 32],
        name: "node-1".to_owned(),
    };
    let welcome = Welcome {
        package: PackageVersion { major: 0, minor: 1, patch: 3 },
        server_id: counting(0xb0),
        deployment_id: counting(0xc0),
        epoch: 0x0e0e_0e0e_0e0e_0e0e,
        shard_count: 4,
        shard: 2,
        routing_seed: 0xfeed_face_cafe_beef,
        identity_key: counting(0),
        server_us: 1_700_000_000_500_000,
        window_bytes: 4_194_304,
        max_body_bytes: 1_048_576,
        protocol: 1,
        schema: 1,
        stored: vec![
            StoredSequence { epoch: 0x0e0e_0e0e_0e0e_0e0e, shard: 2, sequence: 41 },
            StoredSequence { epoch: 0x0d0d_0d0d_0d0d_0d0d, shard: 0, sequence: 7 },
        ],
    };
    let verdicts = Verdicts {
        sequence: 9,
        begin: true,
        end: false,
        verdicts: vec![
            Verdict {
                subject: Subject::Source(address("192.0.2.1")),
                application: None,
                action: Some(Action::Denylist),
                until_us: 1_700_000_600_000_000,
                detector: 3,
            },
            Verdict {
                subject: Subject::Session(0x0123_4567_89ab_cdef),
                application: Some(-1),
                action: Some(Action::Graylist),
                until_us: 1_700_000_060_000_000,
                detector: 0,
            },
            Verdict {
                subject: Subject::Source(address("2001:db8:1:2::")),
                application: Some(42),
                action: None,
                until_us: 0,
                detector: 3,
            },
        ],
    };
    let stats = Stats {
        token: 77,
        process_cpu_us: 1,
        process_rss_bytes: 2,
        uptime_us: 3,
        session_records_stored: 4,
        session_records_duplicate: 5,
        session_records_rejected: 6,
        shard_records_received: 7,
        shard_records_stored: 8,
        shard_records_rejected: 9,
        shard_records_duplicate: 10,
        shard_records_live: 11,
        shard_records_evicted: 12,
        shard_timeframe_us: 13,
        shard_cpu_us: 14,
    };
    let gap = ErrorFrame { code: ErrorCode::SequenceGap as u16, sequence: 42, text: "batch 44 came, 42 was expected".to_owned() };
    vec![
        ("hello", ControlFrame::Hello(hello)),
        ("welcome", ControlFrame::Welcome(welcome)),
        ("ack", ControlFrame::Ack(Ack { sequence: 42 })),
        ("verdicts", ControlFrame::Verdicts(verdicts)),
        ("stats-request", ControlFrame::StatsRequest(StatsRequest { token: 77 })),
        ("stats", ControlFrame::Stats(stats)),
        ("ping", ControlFrame::Ping(Ping { token: 0x5057 })),
        ("pong", ControlFrame::Pong(Pong { token: 0x5057 })),
        ("goodbye", ControlFrame::Goodbye(Goodbye { retry_after_ms: 1500 })),
        ("error", ControlFrame::Error(gap)),
    ]
}

fn encode(frame: &ControlFrame) -> Vec<u8> {
    let mut out = Vec::new();
    match frame {
        ControlFrame::Hello(frame) => frame.encode(SESSION, SENT_US, &mut out),
        ControlFrame::Welcome(frame) => frame.encode(SESSION, SENT_US, &mut out),
        ControlFrame::Ack(frame) => frame.encode(SESSION, SENT_US, &mut out),
        ControlFrame::Verdicts(frame) => frame.encode(SESSION, SENT_US, &mut out),
        ControlFrame::StatsRequest(frame) => frame.encode(SESSION, SENT_US, &mut out),
        ControlFrame::Stats(frame) => frame.encode(SESSION, SENT_US, &mut out),
        ControlFrame::Ping(frame) => frame.encode(SESSION, SENT_US, &mut out),
        ControlFrame::Pong(frame) => frame.encode(SESSION, SENT_US, &mut out),
        ControlFrame::Goodbye(frame) => frame.encode(SESSION, SENT_US, &mut out),
        ControlFrame::Error(frame) => frame.encode(SESSION, SENT_US, &mut out),
    }
    out
}

/// Three records: one that uses every field, an IPv6 one with a method that has no number, one of defaults.
fn records() -> [RecordFields<'static>; 3] {
    let full = RecordFields {
        request_id: counting(0),
        client_ip: address("192.0.2.1"),
        event_us: 1_700_000_000_123_456,
        tenant: 7,
        session_hash: 0x0123_4567_89ab_cdef,
        user_hash: 0xfedc_ba98_7654_3210,
        request_bytes: 1_234,
        response_bytes: 56_789,
        application: 42,
        response_us: 15_000,
        detection_us: 250,
        flags: FLAG_BLOCKED | FLAG_GRAYLIST | FLAG_AUTH_FAILED | FLAG_CREDENTIALS,
        server_port: 8443,
        status: 403,
        method: Method::Post as u8,
        scheme: Scheme::Https as u8,
        http_version: 20,
        host: b"shop.example",
        path: b"/login",
        query: b"id=1%27--",
        user_agent: b"curl/8.5.0",
        referer: b"https://shop.example/",
        raw_headers: b"Host: shop.example\r\n\r\n",
        raw_body: b"user=a",
        hits: vec![
            Hit { attack_type: AttackType::Sqli as u16, severity: 200, rule_id: 1001, point: b"get_id", payload: b"1'--" },
            Hit { attack_type: AttackType::Brute as u16, severity: 60, rule_id: 0, point: b"", payload: b"" },
        ],
        extensions: vec![Extension { tag: 65_535, value: b"new" }],
    };
    let ipv6 = RecordFields {
        request_id: counting(0xf0),
        client_ip: address("2001:db8:1:2:3:4:5:6"),
        event_us: 1_700_000_000_123_457,
        status: 200,
        scheme: Scheme::Http as u8,
        http_version: 11,
        path: b"/\xff",
        extensions: vec![Extension { tag: TAG_METHOD, value: b"REPORT" }],
        ..RecordFields::default()
    };
    [full, ipv6, RecordFields::default()]
}

fn batch_frame(records: &[RecordFields<'_>], sequence: u64) -> Vec<u8> {
    let mut builder = BatchBuilder::default();
    for fields in records {
        builder.push(fields, AMPLE).expect("there is ample room");
    }
    let mut out = Vec::new();
    builder.encode_frame(SESSION, sequence, SENT_US, &mut out);
    out
}

#[test]
fn control_frames_are_as_ever() {
    for (name, frame) in control_frames() {
        check(name, &encode(&frame));
        let (header, body) = only_frame(&read_hex(&path_of(name)));
        assert_eq!((header.session, header.sent_us), (SESSION, SENT_US), "{name}");
        assert_eq!(ControlFrame::decode(&header, &body), Ok(frame), "{name}");
    }
}

#[test]
fn batches_are_as_ever() {
    for (name, records, sequence) in [("batch-v1", &records()[..], 42), ("batch-v1-empty", &[], 43)] {
        check(name, &batch_frame(records, sequence));
        let (header, body) = only_frame(&read_hex(&path_of(name)));
        assert_eq!((header.kind, header.schema, header.sequence), (FrameKind::Batch, SCHEMA, sequence));
        let batch = ValidBatch::parse(header.schema, header.record_count, &body).expect("a golden batch is valid");
        assert!(batch.records().map(|view| view.fields()).eq(records.iter().cloned()), "{name}");
    }
}
