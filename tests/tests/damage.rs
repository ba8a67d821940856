//! Every kind of damage to a frame, on real sockets: the named Error comes, that connection closes, nothing else is harmed.

use postanalytics_protocol::frames::ControlFrame;
use postanalytics_protocol::schema::v1::RECORD_BYTES;
use postanalytics_protocol::{
    BatchBuilder, ErrorCode, Extension, FrameHeader, FrameKind, HEADER_BYTES, Hit, RecordFields, Source, shard_of,
};
use postanalytics_tests::wire::{batch, hello, seal, seal_header};
use postanalytics_tests::{RawConnection, Server, ServerOptions, Witness, eventually};
use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::time::Duration;

/// Records of the frame that gets damaged.
const RECORDS: u32 = 2;
/// Offsets within a record, see PROTOCOL.md.
const HOST_OFFSET: usize = 104;
const HOST_LENGTH: usize = 108;
const HITS_COUNT: usize = 164;

/// A frame in which every part of the schema occurs.
fn rich_frame(session: u64, sequence: u64) -> Vec<u8> {
    let hit = Hit { attack_type: 1, severity: 9, rule_id: 942_100, point: b"get_id", payload: b"1' or '1'='1" };
    let mut batch = BatchBuilder::default();
    for n in 0..RECORDS {
        let fields = RecordFields {
            request_id: ((u128::from(session) << 64) | (u128::from(sequence) << 16) | u128::from(n)).to_be_bytes(),
            client_ip: Ipv4Addr::new(192, 0, 2, 1).to_ipv6_mapped().octets(),
            host: b"www.example.org",
            path: b"/shop/item",
            query: b"id=1%27",
            user_agent: b"curl/8",
            referer: b"https://www.example.org/",
            raw_headers: b"Accept: */*\r\n",
            raw_body: b"a=b",
            hits: vec![hit, hit],
            extensions: vec![Extension { tag: 7, value: b"seven" }],
            ..RecordFields::default()
        };
        batch.push(&fields, 1 << 20).expect("fits");
    }
    let mut frame = Vec::new();
    batch.encode_frame(session, sequence, 0, &mut frame);
    frame
}

/// A change of the frame's bytes.
type Change = fn(&mut Vec<u8>);

fn put_u32(frame: &mut [u8], at: usize, value: u32) {
    frame[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

fn in_header(frame: &mut [u8], at: usize, change: impl FnOnce(&mut u8)) {
    change(&mut frame[at]);
    seal_header(frame);
}

fn in_record(frame: &mut [u8], at: usize, value: u32) {
    put_u32(frame, HEADER_BYTES + at, value);
    seal(frame);
}

/// Bytes that look like nothing at all; the seed makes them the same in every run.
fn noise(frame: &mut [u8]) {
    let mut random = fastrand::Rng::with_seed(7);
    frame.iter_mut().for_each(|byte| *byte = random.u8(..));
}

/// Whole blocks off the end of the body, the header made to agree with what is left.
fn cut_and_repair(frame: &mut Vec<u8>) {
    frame.truncate(frame.len() - 32);
    let body_bytes = (frame.len() - HEADER_BYTES) as u32;
    put_u32(frame, 8, body_bytes);
    seal(frame);
}

/// Cut in the middle, with another whole frame behind.
fn cut_and_go_on(frame: &mut Vec<u8>) {
    let whole = frame.clone();
    frame.truncate(whole.len() - 48);
    frame.extend_from_slice(&whole);
}

fn becomes(frame: &mut Vec<u8>, kind: FrameKind, session: u64, body: &[u8]) {
    frame.clear();
    let schema = u16::from(kind == FrameKind::Batch);
    let header = FrameHeader { schema, body_bytes: body.len() as u32, ..FrameHeader::bare(kind, session, 1, 0) };
    frame.extend_from_slice(&header.encode());
    frame.extend_from_slice(body);
    seal(frame);
}

/// The session of every damaged frame.
const SESSION: u64 = 77;

/// Damage, and the error that must name it.
const DAMAGE: [(&str, ErrorCode, Change); 24] = [
    ("magic", ErrorCode::BadMagic, |frame| frame[0] ^= 1),
    ("random bytes", ErrorCode::BadMagic, |frame| noise(frame)),
    ("header CRC", ErrorCode::BadHeaderCrc, |frame| frame[44] ^= 1),
    ("a header byte", ErrorCode::BadHeaderCrc, |frame| frame[33] ^= 0x80),
    ("version", ErrorCode::UnsupportedVersion, |frame| in_header(frame, 5, |version| *version = 2)),
    ("kind", ErrorCode::UnknownKind, |frame| in_header(frame, 4, |kind| *kind = 99)),
    ("reserved bytes", ErrorCode::ReservedNotZero, |frame| frame[63] = 1),
    ("length no multiple of 16", ErrorCode::BodyNotAligned, |frame| in_header(frame, 8, |length| *length += 1)),
    ("oversized", ErrorCode::BodyTooLong, |frame| in_header(frame, 10, |length| *length |= 0x20)),
    ("body CRC", ErrorCode::BadBodyCrc, |frame| in_header(frame, 40, |crc| *crc ^= 1)),
    ("a body byte", ErrorCode::BadBodyCrc, |frame| frame[HEADER_BYTES + 5] ^= 1),
    ("truncated, then the next frame", ErrorCode::BadBodyCrc, cut_and_go_on),
    ("truncated and repaired", ErrorCode::BadArchive, cut_and_repair),
    ("empty body", ErrorCode::BadArchive, |frame| becomes(frame, FrameKind::Batch, SESSION, &[])),
    ("record count", ErrorCode::RecordCountMismatch, |frame| in_header(frame, 12, |count| *count -= 1)),
    ("record count beyond the body", ErrorCode::RecordCountMismatch, |frame| in_header(frame, 15, |count| *count = 0x10)),
    ("schema", ErrorCode::UnsupportedSchema, |frame| in_header(frame, 6, |schema| *schema = 2)),
    ("session", ErrorCode::WrongSession, |frame| in_header(frame, 16, |session| *session ^= 1)),
    ("sequence", ErrorCode::SequenceGap, |frame| in_header(frame, 24, |sequence| *sequence += 1)),
    ("string offset", ErrorCode::OutOfBounds, |frame| in_record(frame, HOST_OFFSET, 1 << 20)),
    ("string length", ErrorCode::OutOfBounds, |frame| in_record(frame, HOST_LENGTH, u32::MAX)),
    ("hit count", ErrorCode::TooManyParts, |frame| in_record(frame, RECORD_BYTES + HITS_COUNT, 65)),
    ("a second Hello", ErrorCode::UnexpectedKind, |frame| {
        frame.clear();
        hello(1).encode(SESSION, 0, frame);
    }),
    ("a Ping with a body", ErrorCode::BadBody, |frame| becomes(frame, FrameKind::Ping, SESSION, &[0; 16])),
];

/// Opens a connection of [`SESSION`], sends a damaged frame and returns the error that came.
fn send_damaged(server: &Server, change: Change) -> ErrorCode {
    let mut connection = RawConnection::open(server.ingest, 1, SESSION);
    let mut frame = rich_frame(SESSION, connection.next_sequence());
    change(&mut frame);
    connection.send(&frame);
    let error = connection.expect_error();
    ErrorCode::from_wire(error.code).unwrap_or_else(|| panic!("a code without a name: {error:?}"))
}

#[test]
fn each_kind_of_damage_is_named_counted_and_harms_nobody_else() {
    let server = Server::new();
    let witness = Witness::start(server.ingest);
    for (what, expected, change) in DAMAGE {
        let errors = server.metric("postanalytics_errors_sent_total");
        assert_eq!(send_damaged(&server, change), expected, "{what}");
        assert_eq!(server.metric("postanalytics_errors_sent_total"), errors + 1.0, "{what} is counted");
        witness.assert_served();
    }
    let mut session = RawConnection::open(server.ingest, 1, SESSION);
    assert_eq!(session.next_sequence(), 1, "nothing of the damaged frames was stored");
    session.send(&rich_frame(SESSION, 1));
    session.expect_ack(1);
    let stored = witness.stop() + u64::from(RECORDS);
    assert_eq!(server.total("records_stored"), stored);
    assert!(server.total("records_rejected") > 0, "batches refused for content or order are counted");
    eventually("no place stays open", Duration::from_secs(10), || server.metric("postanalytics_places_open") == 0.0);
    server.assert_laws();
    server.stop();
}

#[test]
fn damage_before_the_welcome_is_named_and_counted() {
    let server = Server::new();
    let witness = Witness::start(server.ingest);
    let refused = |bytes: &[u8], code: ErrorCode| {
        let counter = format!("postanalytics_handshake_errors_total{{code=\"{}\"}}", code.name());
        let before = server.metric(&counter);
        let mut connection = RawConnection::silent(TcpStream::connect(server.ingest).expect("a connection"), SESSION);
        connection.send(bytes);
        assert_eq!(connection.expect_error().code, code as u16, "{code:?}");
        assert_eq!(server.metric(&counter), before + 1.0, "{code:?}");
        witness.assert_served();
    };
    let mut frame = Vec::new();
    hello(1).encode(SESSION, 0, &mut frame);
    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut frame = frame.clone();
        change(&mut frame);
        frame
    };
    refused(b"GET / HTTP/1.1\r\nHost: www.example.org\r\nAccept: text/html\r\nConnection: close\r\n\r\n", ErrorCode::BadMagic);
    refused(&changed(&|frame| frame[17] ^= 1), ErrorCode::BadHeaderCrc);
    refused(&changed(&|frame| frame[HEADER_BYTES] ^= 1), ErrorCode::BadBodyCrc);
    refused(&changed(&|frame| in_header(frame, 5, |version| *version = 9)), ErrorCode::UnsupportedVersion);
    refused(&changed(&|frame| in_header(frame, 9, |length| *length = 0xf0)), ErrorCode::BodyTooLong);
    refused(&batch(SESSION, 1, Ipv4Addr::new(192, 0, 2, 1).into(), 1), ErrorCode::UnexpectedKind);
    refused(&changed(&|frame| becomes(frame, FrameKind::Proof, SESSION, &[])), ErrorCode::AuthenticationUnsupported);
    refused(&changed(&|frame| frame.extend_from_slice(&rich_frame(SESSION, 1))), ErrorCode::PrematureBytes);
    let stored = witness.stop();
    assert_eq!(server.total("records_stored"), stored);
    server.assert_laws();
    server.stop();
}

#[test]
fn a_record_of_another_shard_refuses_the_whole_batch() {
    let server = ServerOptions::default().shards(2).start();
    let mut connection = RawConnection::open(server.ingest, 1, SESSION);
    let welcome = connection.welcome.clone();
    let source_of = |shard: u32| {
        let mut sources = (1..=254).map(|host| IpAddr::V4(Ipv4Addr::new(192, 0, 2, host)));
        let found = sources.find(|source| shard_of(Source::of(*source), welcome.routing_seed, welcome.shard_count) == shard);
        found.expect("254 addresses do not all go to one shard")
    };
    connection.send(&batch(SESSION, 1, source_of(1 - welcome.shard), 3));
    let error = connection.expect_error();
    assert_eq!((error.code, error.sequence), (ErrorCode::WrongShard as u16, 1), "{error:?}");
    assert_eq!((server.total("records_stored"), server.total("records_rejected")), (0, 3));
    server.assert_laws();
    server.stop();
}

/// Flips one bit anywhere, then makes both CRCs hold for what the header then states, so that the damage gets past them.
fn flip_and_repair(stream: &mut [u8], bit: usize) {
    stream[bit / 8] ^= 1 << (bit % 8);
    let body_bytes = u32::from_le_bytes([stream[8], stream[9], stream[10], stream[11]]) as usize;
    let body = stream.get(HEADER_BYTES..HEADER_BYTES.saturating_add(body_bytes)).unwrap_or_default();
    let crc = crc32fast::hash(body);
    put_u32(stream, 40, crc);
    seal_header(stream);
}

#[test]
fn bit_flips_with_the_crc_repaired_are_accepted_or_named() {
    let server = Server::new();
    let witness = Witness::start(server.ingest);
    let frame_bits = rich_frame(0, 1).len() * 8;
    let mut random = fastrand::Rng::with_seed(20_260_725);
    let (mut accepted, mut names) = (0, std::collections::BTreeMap::new());
    for round in 0..400u64 {
        let session = 1_000 + round;
        // A third of the flips hits the header, which is small beside the body.
        let bit = if round % 3 == 0 { random.usize(..HEADER_BYTES * 8) } else { random.usize(..frame_bits) };
        // Zeros behind the frame end whatever the flip has left open: a longer body, or an accepted frame's connection.
        let mut stream = rich_frame(session, 1);
        stream.resize(stream.len() + (1 << 20) + HEADER_BYTES, 0);
        flip_and_repair(&mut stream, bit);
        let mut connection = RawConnection::open(server.ingest, 1, session);
        connection.send(&stream);
        let (mut acked, limit) = (false, Duration::from_secs(15));
        let error = loop {
            match connection.next(limit) {
                Some(ControlFrame::Ack(ack)) => acked = ack.sequence == 1,
                Some(ControlFrame::Error(error)) => break error,
                Some(_) => {}
                None => panic!("seed 20260725, bit {bit}: the connection ended without a word, or nothing came"),
            }
        };
        let code = ErrorCode::from_wire(error.code).unwrap_or_else(|| panic!("bit {bit}: {error:?}"));
        if acked {
            assert_eq!(code, ErrorCode::BadMagic, "bit {bit}: accepted, then the zeros are refused");
            accepted += u64::from(RECORDS);
        } else {
            *names.entry(code.name()).or_insert(0) += 1;
        }
        if round % 50 == 0 {
            witness.assert_served();
        }
    }
    assert!(accepted > 0 && names.len() >= 6, "the flips reach both data and structure: {accepted} records accepted, {names:?}");
    let stored = accepted + witness.stop();
    assert_eq!(server.total("records_stored"), stored, "accepted means stored, refused means not: {names:?}");
    server.assert_laws();
    server.stop();
}

#[test]
fn memory_stays_flat_under_thousands_of_damaged_frames() {
    let server = Server::new();
    let witness = Witness::start(server.ingest);
    let round = |times: usize| {
        for (_, expected, change) in DAMAGE.iter().cycle().take(times) {
            assert_eq!(send_damaged(&server, *change), *expected);
        }
    };
    round(500);
    let before = server.resident_bytes();
    round(2_500);
    let grown = server.resident_bytes().saturating_sub(before);
    assert!(grown < 2 << 20, "{grown} bytes more after 2,500 damaged frames: that is {} a frame", grown / 2_500);
    let stored = witness.stop();
    assert_eq!(server.total("records_stored"), stored);
    eventually("the connections are gone", Duration::from_secs(10), || server.metric("postanalytics_connections") == 0.0);
    assert_eq!(server.metric("postanalytics_places_open"), 0.0);
    server.assert_laws();
    server.stop();
}
