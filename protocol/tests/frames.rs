//! Laws of the control frames: each comes out as it went in, and every byte string is a frame or a named error.

mod common;

use common::only_frame;
use postanalytics_protocol::frames::{
    Ack, Action, ControlFrame, ERROR_TEXT_BYTES_MAX, ErrorFrame, Goodbye, HELLO_BODY_BYTES_MAX, Hello, NODE_NAME_BYTES_MAX,
    PackageVersion, Ping, Pong, Stats, StatsRequest, StoredSequence, Subject, VERDICTS_PER_FRAME_MAX, Verdict, Verdicts,
    WELCOME_SEQUENCES_MAX, Welcome,
};
use postanalytics_protocol::{
    Assembler, DEFAULT_MAX_BODY_BYTES, ErrorCode, FrameError, FrameHeader, FrameKind, HEADER_BYTES, ValidBatch,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

fn any_version() -> impl Strategy<Value = PackageVersion> {
    any::<[u16; 3]>().prop_map(|[major, minor, patch]| PackageVersion { major, minor, patch })
}

fn any_hello() -> impl Strategy<Value = Hello> {
    (any::<[u16; 4]>(), any_version(), any::<[u8; 16]>(), any::<u32>(), any::<bool>(), any::<[u8; 32]>(), ".{0,60}").prop_map(
        |([protocol_min, protocol_max, schema_min, schema_max], package, node, wanted_shard, replay, nonce, name)| Hello {
            protocol_min,
            protocol_max,
            schema_min,
            schema_max,
            package,
            node,
            wanted_shard,
            replay,
            nonce,
            name,
        },
    )
}

fn any_welcome() -> impl Strategy<Value = Welcome> {
    let ids = (any_version(), any::<[u8; 16]>(), any::<[u8; 16]>(), any::<[u8; 32]>());
    let topology = (any::<u64>(), 1..=u32::MAX, any::<Index>(), any::<u64>());
    let limits = (any::<u64>(), any::<u64>(), any::<u32>(), any::<u16>(), any::<u16>());
    let entry =
        (any::<u64>(), any::<u32>(), any::<u64>()).prop_map(|(epoch, shard, sequence)| StoredSequence { epoch, shard, sequence });
    let stored = prop_oneof![9 => vec(entry.clone(), 0..5), 1 => vec(entry, WELCOME_SEQUENCES_MAX)];
    (ids, topology, limits, stored).prop_map(|(ids, (epoch, shard_count, shard, routing_seed), limits, stored)| Welcome {
        package: ids.0,
        server_id: ids.1,
        deployment_id: ids.2,
        epoch,
        shard_count,
        shard: shard.index(shard_count as usize) as u32,
        routing_seed,
        identity_key: ids.3,
        server_us: limits.0,
        window_bytes: limits.1,
        max_body_bytes: limits.2,
        protocol: limits.3,
        schema: limits.4,
        stored,
    })
}

fn any_verdict() -> impl Strategy<Value = Verdict> {
    let subject = prop_oneof![any::<[u8; 16]>().prop_map(Subject::Source), any::<u64>().prop_map(Subject::Session)];
    let action = prop_oneof![Just(None), Just(Some(Action::Graylist)), Just(Some(Action::Denylist))];
    (subject, any::<Option<i32>>(), action, any::<u64>(), any::<u16>()).prop_map(
        |(subject, application, action, until_us, detector)| Verdict { subject, application, action, until_us, detector },
    )
}

fn any_verdicts() -> impl Strategy<Value = Verdicts> {
    let verdicts = prop_oneof![9 => vec(any_verdict(), 0..6), 1 => vec(any_verdict(), VERDICTS_PER_FRAME_MAX)];
    (any::<u64>(), any::<bool>(), any::<bool>(), verdicts).prop_map(|(sequence, begin, end, verdicts)| Verdicts {
        sequence,
        begin,
        end,
        verdicts,
    })
}

fn any_stats() -> impl Strategy<Value = Stats> {
    (any::<u64>(), any::<[u64; 14]>()).prop_map(|(token, v)| Stats {
        token,
        process_cpu_us: v[0],
        process_rss_bytes: v[1],
        uptime_us: v[2],
        session_records_stored: v[3],
        session_records_duplicate: v[4],
        session_records_rejected: v[5],
        shard_records_received: v[6],
        shard_records_stored: v[7],
        shard_records_rejected: v[8],
        shard_records_duplicate: v[9],
        shard_records_live: v[10],
        shard_records_evicted: v[11],
        shard_timeframe_us: v[12],
        shard_cpu_us: v[13],
    })
}

fn any_control_frame() -> impl Strategy<Value = ControlFrame> {
    let token = any::<u64>();
    prop_oneof![
        any_hello().prop_map(ControlFrame::Hello),
        any_welcome().prop_map(ControlFrame::Welcome),
        token.prop_map(|sequence| ControlFrame::Ack(Ack { sequence })),
        any_verdicts().prop_map(ControlFrame::Verdicts),
        token.prop_map(|token| ControlFrame::StatsRequest(StatsRequest { token })),
        any_stats().prop_map(ControlFrame::Stats),
        token.prop_map(|token| ControlFrame::Ping(Ping { token })),
        token.prop_map(|token| ControlFrame::Pong(Pong { token })),
        any::<u32>().prop_map(|retry_after_ms| ControlFrame::Goodbye(Goodbye { retry_after_ms })),
        (any::<u16>(), token, ".{0,120}").prop_map(|(code, sequence, text)| ControlFrame::Error(ErrorFrame {
            code,
            sequence,
            text
        })),
    ]
}

fn encode(frame: &ControlFrame, session: u64, sent_us: u64) -> Vec<u8> {
    let mut out = Vec::new();
    match frame {
        ControlFrame::Hello(frame) => frame.encode(session, sent_us, &mut out),
        ControlFrame::Welcome(frame) => frame.encode(session, sent_us, &mut out),
        ControlFrame::Ack(frame) => frame.encode(session, sent_us, &mut out),
        ControlFrame::Verdicts(frame) => frame.encode(session, sent_us, &mut out),
        ControlFrame::StatsRequest(frame) => frame.encode(session, sent_us, &mut out),
        ControlFrame::Stats(frame) => frame.encode(session, sent_us, &mut out),
        ControlFrame::Ping(frame) => frame.encode(session, sent_us, &mut out),
        ControlFrame::Pong(frame) => frame.encode(session, sent_us, &mut out),
        ControlFrame::Goodbye(frame) => frame.encode(session, sent_us, &mut out),
        ControlFrame::Error(frame) => frame.encode(session, sent_us, &mut out),
    }
    out
}

fn header_of(kind: FrameKind, record_count: u32, body: &[u8]) -> FrameHeader {
    let bare = FrameHeader::bare(kind, 1, 2, 3);
    FrameHeader { record_count, body_bytes: body.len() as u32, body_crc: crc32fast::hash(body), ..bare }
}

/// Decodes a frame of any kind; what is no frame must have a name.
fn decode_any(header: &FrameHeader, body: &[u8]) {
    if header.kind == FrameKind::Batch {
        if let Err(error) = ValidBatch::parse(header.schema, header.record_count, body) {
            assert!(!error.code().name().is_empty() && !error.to_string().is_empty());
        }
        return;
    }
    match ControlFrame::decode(header, body) {
        // What was read can be written, and reads the same then.
        Ok(frame) => {
            let bytes = encode(&frame, header.session, header.sent_us);
            let (again, body) = only_frame(&bytes);
            assert_eq!(again.kind, header.kind);
            match (ControlFrame::decode(&again, &body), frame) {
                // Bytes that are no UTF-8 are shown as such and grow, so that a long text may be cut.
                (Ok(ControlFrame::Hello(_)), ControlFrame::Hello(_)) | (Ok(ControlFrame::Error(_)), ControlFrame::Error(_)) => {}
                (decoded, frame) => assert_eq!(decoded, Ok(frame)),
            }
        }
        Err(error) => {
            let authentication = matches!(header.kind, FrameKind::Challenge | FrameKind::Proof);
            let code = if authentication { ErrorCode::AuthenticationUnsupported } else { ErrorCode::BadBody };
            assert_eq!(error.code(), code, "{error}");
            assert!(matches!(error, FrameError::BadBody { kind, what } if kind == header.kind && !what.is_empty()), "{error}");
        }
    }
}

proptest! {
    #[test]
    fn every_control_frame_round_trips(frame in any_control_frame(), session: u64, sent_us: u64) {
        let bytes = encode(&frame, session, sent_us);
        prop_assert!(bytes.len().is_multiple_of(16));
        let (header, body) = only_frame(&bytes);
        prop_assert_eq!((header.session, header.sent_us, header.schema), (session, sent_us, 0));
        prop_assert_eq!(ControlFrame::decode(&header, &body), Ok(frame));
    }

    #[test]
    fn random_bodies_of_every_kind_decode_or_name_an_error(kind in 1u8..=13, record_count in 0u32..4, blocks in 0usize..24,
                                                           fill in vec(any::<u8>(), 24 * 16), zeros: bool) {
        let kind = FrameKind::from_wire(kind).expect("1 to 13 are kinds");
        let mut body = fill[..blocks * 16].to_vec();
        if zeros {
            // Mostly zeros: gets past the checks of reserved bytes.
            body.iter_mut().filter(|byte| **byte >= 16).for_each(|byte| *byte = 0);
        }
        decode_any(&header_of(kind, record_count, &body), &body);
    }

    #[test]
    fn mutated_frames_decode_or_name_an_error(frame in any_control_frame(),
                                              edits in vec((any::<Index>(), any::<u8>()), 1..5), count in 0u32..3) {
        let bytes = encode(&frame, 1, 2);
        let (header, mut body) = only_frame(&bytes);
        if !body.is_empty() {
            for (at, value) in edits {
                let at = at.index(body.len());
                body[at] = value;
            }
        }
        decode_any(&header, &body);
        decode_any(&FrameHeader { record_count: count, ..header }, &body);
        for kind in (1..=13).filter_map(FrameKind::from_wire) {
            decode_any(&FrameHeader { kind, ..header }, &body);
        }
    }

    #[test]
    fn truncated_and_stretched_bodies_are_refused(frame in any_control_frame()) {
        let bytes = encode(&frame, 1, 2);
        let (header, body) = only_frame(&bytes);
        for length in 0..body.len().min(2048) {
            let cut = &body[..length];
            // A cut within the padding takes nothing away; any other must be noticed.
            match ControlFrame::decode(&FrameHeader { body_bytes: length as u32, ..header }, cut) {
                Ok(decoded) => prop_assert!(decoded == frame && body[length..].iter().all(|&byte| byte == 0)),
                Err(error) => prop_assert_eq!(error.code(), ErrorCode::BadBody),
            }
        }
        let mut stretched = body.to_vec();
        stretched.resize(body.len() + 16, 0);
        let header = FrameHeader { body_bytes: stretched.len() as u32, ..header };
        prop_assert!(ControlFrame::decode(&header, &stretched).is_err());
    }

    /// A stream of frames whose bodies are damaged and whose CRCs are repaired: frames or named errors, nothing else.
    #[test]
    fn damaged_streams_end_in_frames_or_a_named_error(frames in vec(any_control_frame(), 1..5),
                                                      damage in vec((any::<Index>(), any::<u8>()), 0..4)) {
        let mut bytes: Vec<u8> = frames.iter().flat_map(|frame| encode(frame, 1, 2)).collect();
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] ^= value;
        }
        let (mut assembler, mut body, mut input) = (Assembler::default(), Vec::new(), bytes.as_slice());
        loop {
            match assembler.collect(&mut input, &mut body) {
                Ok(Some(header)) => decode_any(&header, &body),
                Ok(None) => break,
                Err(error) => {
                    prop_assert!(ErrorCode::from_wire(error.code() as u16).is_some() && !error.to_string().is_empty());
                    break;
                }
            }
        }
    }
}

#[test]
fn long_texts_are_cut_at_a_character() {
    let mut hello = any_hello_of("é".repeat(200));
    let mut out = Vec::new();
    hello.encode(1, 2, &mut out);
    let (header, body) = only_frame(&out);
    assert!(header.body_bytes <= HELLO_BODY_BYTES_MAX);
    hello.name = "é".repeat(NODE_NAME_BYTES_MAX / 2);
    assert_eq!(Hello::decode(&body), Ok(hello));

    let mut out = Vec::new();
    ErrorFrame { code: 9, sequence: 7, text: "é".repeat(400) }.encode(1, 2, &mut out);
    let decoded = ErrorFrame::decode(&only_frame(&out).1).expect("a cut text is good");
    assert_eq!((decoded.text.len(), decoded.known_code()), (ERROR_TEXT_BYTES_MAX, Some(ErrorCode::BadBody)));
}

fn any_hello_of(name: String) -> Hello {
    Hello {
        protocol_min: 1,
        protocol_max: 1,
        schema_min: 1,
        schema_max: 1,
        package: PackageVersion::parse("1.2.3"),
        node: [7; 16],
        wanted_shard: 0,
        replay: false,
        nonce: [0; 32],
        name,
    }
}

#[test]
fn lists_are_cut_at_their_limits() {
    let verdict = Verdict { subject: Subject::Session(1), application: None, action: None, until_us: 0, detector: 0 };
    let mut out = Vec::new();
    Verdicts { sequence: 1, begin: true, end: true, verdicts: vec![verdict; VERDICTS_PER_FRAME_MAX + 1] }.encode(1, 2, &mut out);
    let (header, body) = only_frame(&out);
    assert_eq!(header.record_count as usize, VERDICTS_PER_FRAME_MAX);
    assert_eq!(Verdicts::decode(&header, &body).expect("good").verdicts.len(), VERDICTS_PER_FRAME_MAX);
    assert!(header.body_bytes <= DEFAULT_MAX_BODY_BYTES);
}

#[test]
fn authentication_is_refused_by_name() {
    for kind in [FrameKind::Challenge, FrameKind::Proof] {
        for body in [&[][..], &[0; 64]] {
            let error = ControlFrame::decode(&header_of(kind, 0, body), body).expect_err("not spoken");
            assert_eq!(error.code(), ErrorCode::AuthenticationUnsupported);
            assert!(error.to_string().contains("authentication"), "{error}");
        }
    }
}

#[test]
fn frames_without_a_body_refuse_one() {
    for kind in [FrameKind::Ack, FrameKind::Ping, FrameKind::Pong, FrameKind::StatsRequest] {
        assert!(ControlFrame::decode(&header_of(kind, 0, &[]), &[]).is_ok());
        assert!(ControlFrame::decode(&header_of(kind, 0, &[0; 16]), &[0; 16]).is_err());
    }
    assert_eq!(HEADER_BYTES, 64);
}
