//! Headers, control frames, and the assembler under any split.

use super::Script;
use postanalytics_protocol::frames::ControlFrame;
use postanalytics_protocol::{Assembler, DEFAULT_MAX_BODY_BYTES, FrameError, FrameHeader, FrameKind, HEADER_BYTES, Step};

/// Bytes of a header that its CRC covers, and where that stands.
const CRC_AT: usize = 44;

/// A header as it comes; then the same with magic, version and CRC put right, and the rest as the body of what it says it is.
/// What decodes encodes to a frame that decodes to the same.
pub fn frames(data: &[u8]) {
    let Some((header, body)) = data.split_first_chunk::<HEADER_BYTES>() else { return };
    if let Err(error) = FrameHeader::decode(header, DEFAULT_MAX_BODY_BYTES) {
        assert!(!error.to_string().is_empty() && !error.code().name().is_empty());
    }
    let mut repaired = *header;
    repaired[..4].copy_from_slice(b"PSTA");
    repaired[5] = 1;
    repaired[CRC_AT + 4..].fill(0);
    repaired[8..12].copy_from_slice(&(body.len() as u32).to_le_bytes());
    let crc = crc32fast::hash(&repaired[..CRC_AT]);
    repaired[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
    let header = match FrameHeader::decode(&repaired, DEFAULT_MAX_BODY_BYTES) {
        Ok(header) => header,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    assert_eq!(header.encode(), repaired, "a header has one form only");
    match ControlFrame::decode(&header, body) {
        Ok(frame) => round_trip(&header, &frame),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn round_trip(header: &FrameHeader, frame: &ControlFrame) {
    let (session, sent_us) = (header.session, header.sent_us);
    let mut out = Vec::new();
    match frame {
        ControlFrame::Hello(hello) => hello.encode(session, sent_us, &mut out),
        ControlFrame::Welcome(welcome) => welcome.encode(session, sent_us, &mut out),
        ControlFrame::Ack(ack) => ack.encode(session, sent_us, &mut out),
        ControlFrame::Verdicts(verdicts) => verdicts.encode(session, sent_us, &mut out),
        ControlFrame::StatsRequest(request) => request.encode(session, sent_us, &mut out),
        ControlFrame::Stats(stats) => stats.encode(session, sent_us, &mut out),
        ControlFrame::Ping(ping) => ping.encode(session, sent_us, &mut out),
        ControlFrame::Pong(pong) => pong.encode(session, sent_us, &mut out),
        ControlFrame::Goodbye(goodbye) => goodbye.encode(session, sent_us, &mut out),
        ControlFrame::Error(error) => error.encode(session, sent_us, &mut out),
    }
    let (mut input, mut body) = (out.as_slice(), Vec::new());
    let header = Assembler::default().collect(&mut input, &mut body).expect("our own frame").expect("a whole frame");
    assert!(input.is_empty());
    assert_eq!(ControlFrame::decode(&header, &body).as_ref(), Ok(frame));
}

/// Largest body that the assembler is told to take.
const MAX_BODY_BYTES: u32 = 1024;

/// A stream of frames, good, damaged or no frames at all, whole and in pieces: both ways give the same frames and the same
/// error in the end, and a body comes in pieces that make just its length.
pub fn assembler(data: &[u8]) {
    let mut script = Script(data);
    let cuts: Vec<u16> = (0..script.u8() % 16).map(|_| script.u16()).collect();
    let stream = stream(&mut script);
    let mut at: Vec<usize> = cuts.into_iter().map(|cut| usize::from(cut) % (stream.len() + 1)).collect();
    at.extend([0, stream.len()]);
    at.sort_unstable();
    let pieces: Vec<&[u8]> = at.windows(2).map(|pair| &stream[pair[0]..pair[1]]).collect();
    let whole = collected(&[&stream]);
    assert_eq!(whole, collected(&pieces));
    let single_bytes: Vec<&[u8]> = stream.chunks(1).collect();
    assert_eq!(whole, collected(&single_bytes));
    assert_eq!(whole, stepped(&pieces));
}

fn stream(script: &mut Script<'_>) -> Vec<u8> {
    let mut stream = Vec::new();
    while !script.is_over() && stream.len() < 1 << 16 {
        let what = script.u8();
        let length = usize::from(script.u16()) % 1500;
        let mut body = script.bytes(length).to_vec();
        if what & 0x10 != 0 {
            stream.extend(body);
            continue;
        }
        body.resize(body.len().next_multiple_of(16), 0);
        let kind = FrameKind::from_wire(what & 15).unwrap_or(FrameKind::Ping);
        let body_crc = crc32fast::hash(&body) ^ u32::from(what & 0x20 != 0);
        let header = FrameHeader { body_bytes: body.len() as u32, body_crc, ..FrameHeader::bare(kind, 7, 8, 9) };
        stream.extend(header.encode());
        if what & 0x40 != 0 {
            // One damaged byte of the header.
            let at = stream.len() - HEADER_BYTES + usize::from(script.u8()) % HEADER_BYTES;
            stream[at] ^= script.u8();
        }
        stream.extend(body);
    }
    stream
}

type Outcome = (Vec<(FrameHeader, Vec<u8>)>, Result<(), FrameError>);

fn collected(pieces: &[&[u8]]) -> Outcome {
    let (mut assembler, mut frames, mut body) = (Assembler::new(MAX_BODY_BYTES), Vec::new(), Vec::new());
    for piece in pieces {
        let mut input = *piece;
        loop {
            match assembler.collect(&mut input, &mut body) {
                Ok(Some(header)) => frames.push((header, body.to_vec())),
                Ok(None) => break,
                Err(error) => return (frames, Err(error)),
            }
        }
    }
    (frames, Ok(()))
}

/// As the server does it: step by step.
fn stepped(pieces: &[&[u8]]) -> Outcome {
    let (mut assembler, mut frames) = (Assembler::new(MAX_BODY_BYTES), Vec::new());
    let mut open: Option<(FrameHeader, Vec<u8>)> = None;
    for piece in pieces {
        let mut input = *piece;
        loop {
            match assembler.step(&mut input) {
                Ok(Step::NeedMore) => break,
                Ok(Step::Header(header)) => {
                    assert!(header.body_bytes <= MAX_BODY_BYTES);
                    assert!(open.replace((header, Vec::new())).is_none(), "a header within a frame");
                }
                Ok(Step::Body(came, piece)) => {
                    let (header, body) = open.as_mut().expect("a body has a header");
                    assert_eq!(came, body.len());
                    body.extend_from_slice(piece);
                    assert!(!piece.is_empty() && body.len() <= header.body_bytes as usize);
                }
                Ok(Step::Whole(whole)) => {
                    let (header, body) = open.take().expect("a body has a header");
                    assert!(body.is_empty() && whole.len() == header.body_bytes as usize && assembler.is_idle());
                    frames.push((header, whole.to_vec()));
                }
                Ok(Step::End) => {
                    let (header, body) = open.take().expect("an end has a beginning");
                    assert!(body.len() == header.body_bytes as usize && assembler.is_idle());
                    frames.push((header, body));
                }
                Err(error) => return (frames, Err(error)),
            }
            assert!(input.len() <= piece.len());
        }
    }
    (frames, Ok(()))
}
