//! The 64-byte frame header, laid out by hand so that every future version can read it.
//!
//! ```text
//!  0        4    5    6      8          12            16        24          32        40        44          48         64
//!  ┌────────┬────┬────┬──────┬──────────┬─────────────┬─────────┬───────────┬─────────┬─────────┬───────────┬──────────┐
//!  │ magic  │kind│ver.│schema│body_bytes│record_count │ session │ sequence  │ sent_us │body_crc │header_crc │ reserved │
//!  └────────┴────┴────┴──────┴──────────┴─────────────┴─────────┴───────────┴─────────┴─────────┴───────────┴──────────┘
//! ```
//!
//! All integers are little-endian. `header_crc` covers bytes 0–43 and is checked before any length is trusted.

use crate::error::FrameError;

/// Bytes of every frame header.
pub const HEADER_BYTES: usize = 64;
/// The first four bytes of every frame: `PSTA`.
pub const MAGIC: u32 = u32::from_le_bytes(*b"PSTA");
/// The protocol version this crate speaks (header byte 5).
pub const PROTOCOL_VERSION: u8 = 1;
/// Every body is a multiple of this many bytes, so that frames that follow each other stay aligned.
pub const BODY_ALIGNMENT: usize = 16;
/// Largest body a server accepts unless its Welcome says otherwise: 1 MiB.
pub const DEFAULT_MAX_BODY_BYTES: u32 = 1 << 20;
/// Bytes of the header that `header_crc` covers.
const CRC_COVERED: usize = 44;

/// What a frame is. The numbers are the wire values of header byte 4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FrameKind {
    /// Client → server, first frame of a connection.
    Hello = 1,
    /// Server → client: prove that you know the secret (refused in this version).
    Challenge = 2,
    /// Client → server: answer to a Challenge (refused in this version).
    Proof = 3,
    /// Server → client: the connection is open; topology and resume point.
    Welcome = 4,
    /// Client → server: records.
    Batch = 5,
    /// Server → client: everything up to `sequence` is stored and analysed.
    Ack = 6,
    /// Server → client: sources and sessions to deny or to watch.
    Verdicts = 7,
    /// Client → server: send me a Stats frame.
    StatsRequest = 8,
    /// Server → client: counters of the server, the shard and the session.
    Stats = 9,
    /// Either way: are you there?
    Ping = 10,
    /// Either way: answer to a Ping, same sequence.
    Pong = 11,
    /// Either way: this side sends nothing new and will close.
    Goodbye = 12,
    /// Either way: a named error; the connection closes after it.
    Error = 13,
}

impl FrameKind {
    /// The kind of a wire value, `None` if there is no such kind.
    pub const fn from_wire(value: u8) -> Option<Self> {
        Some(match value {
            1 => Self::Hello,
            2 => Self::Challenge,
            3 => Self::Proof,
            4 => Self::Welcome,
            5 => Self::Batch,
            6 => Self::Ack,
            7 => Self::Verdicts,
            8 => Self::StatsRequest,
            9 => Self::Stats,
            10 => Self::Ping,
            11 => Self::Pong,
            12 => Self::Goodbye,
            13 => Self::Error,
            _ => return None,
        })
    }
}

/// A decoded frame header. `body_crc` is what the sender says of the body; the assembler checks it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// What the frame is.
    pub kind: FrameKind,
    /// Record schema of a Batch; 0 elsewhere.
    pub schema: u16,
    /// Bytes of the body, a multiple of [`BODY_ALIGNMENT`].
    pub body_bytes: u32,
    /// Records of a Batch, entries of Verdicts; 0 elsewhere.
    pub record_count: u32,
    /// The client's session, random, drawn when the client starts.
    pub session: u64,
    /// Batch and Ack: sequence per session, epoch and shard, from 1. Verdicts: sequence per shard. Ping, Pong: token.
    pub sequence: u64,
    /// Unix time in µs at the sender when the frame was built.
    pub sent_us: u64,
    /// CRC-32 (IEEE) of the body; 0 for an empty body.
    pub body_crc: u32,
}

impl FrameHeader {
    /// A header of a frame without a body.
    pub const fn bare(kind: FrameKind, session: u64, sequence: u64, sent_us: u64) -> Self {
        Self { kind, schema: 0, body_bytes: 0, record_count: 0, session, sequence, sent_us, body_crc: 0 }
    }

    /// The 64 bytes of this header, with its CRC.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0u8; HEADER_BYTES];
        bytes[0..4].copy_from_slice(&MAGIC.to_le_bytes());
        bytes[4] = self.kind as u8;
        bytes[5] = PROTOCOL_VERSION;
        bytes[6..8].copy_from_slice(&self.schema.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.body_bytes.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.record_count.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.session.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.sent_us.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.body_crc.to_le_bytes());
        let crc = crc32fast::hash(&bytes[..CRC_COVERED]);
        bytes[44..48].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads a header. `max_body_bytes` is the limit that the Welcome of this connection stated.
    ///
    /// Checked in this order: magic, header CRC, version, kind, reserved bytes, body alignment, body limit.
    pub fn decode(bytes: &[u8; HEADER_BYTES], max_body_bytes: u32) -> Result<Self, FrameError> {
        let magic = u32_at(bytes, 0);
        if magic != MAGIC {
            return Err(FrameError::BadMagic { found: magic });
        }
        let computed = crc32fast::hash(&bytes[..CRC_COVERED]);
        let stated = u32_at(bytes, 44);
        if computed != stated {
            return Err(FrameError::BadHeaderCrc { stated, computed });
        }
        if bytes[5] != PROTOCOL_VERSION {
            return Err(FrameError::UnsupportedVersion { found: bytes[5] });
        }
        let kind = FrameKind::from_wire(bytes[4]).ok_or(FrameError::UnknownKind { found: bytes[4] })?;
        if bytes[48..].iter().any(|&byte| byte != 0) {
            return Err(FrameError::ReservedNotZero);
        }
        let body_bytes = u32_at(bytes, 8);
        if !(body_bytes as usize).is_multiple_of(BODY_ALIGNMENT) {
            return Err(FrameError::BodyNotAligned { body_bytes });
        }
        if body_bytes > max_body_bytes {
            return Err(FrameError::BodyTooLong { body_bytes, max_body_bytes });
        }
        Ok(Self {
            kind,
            schema: u16::from_le_bytes([bytes[6], bytes[7]]),
            body_bytes,
            record_count: u32_at(bytes, 12),
            session: u64_at(bytes, 16),
            sequence: u64_at(bytes, 24),
            sent_us: u64_at(bytes, 32),
            body_crc: u32_at(bytes, 40),
        })
    }
}

/// Starts a frame in `out`: room for the header, which [`finish_frame`] fills in.
pub(crate) fn begin_frame(out: &mut Vec<u8>) -> usize {
    let start = out.len();
    out.resize(start + HEADER_BYTES, 0);
    start
}

/// Pads the body that stands after `start`, then writes length, CRC and header.
pub(crate) fn finish_frame(out: &mut Vec<u8>, start: usize, mut header: FrameHeader) {
    let body_start = start + HEADER_BYTES;
    let padded = (out.len() - body_start).next_multiple_of(BODY_ALIGNMENT);
    out.resize(body_start + padded, 0);
    header.body_bytes = padded as u32;
    header.body_crc = crc32fast::hash(&out[body_start..]);
    out[start..body_start].copy_from_slice(&header.encode());
}

fn u32_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn u64_at(bytes: &[u8; HEADER_BYTES], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn header() -> FrameHeader {
        FrameHeader {
            kind: FrameKind::Batch,
            schema: 1,
            body_bytes: 4096,
            record_count: 8,
            session: 0x1122_3344_5566_7788,
            sequence: 42,
            sent_us: 1_700_000_000_000_000,
            body_crc: 0xdead_beef,
        }
    }

    proptest! {
        #[test]
        fn every_header_round_trips(kind in 1u8..=13, schema: u16, blocks in 0u32..65_536, record_count: u32,
                                    session: u64, sequence: u64, sent_us: u64, body_crc: u32) {
            let kind = FrameKind::from_wire(kind).expect("1 to 13 are kinds");
            let header = FrameHeader { kind, schema, body_bytes: blocks * 16, record_count, session, sequence, sent_us, body_crc };
            prop_assert_eq!(FrameHeader::decode(&header.encode(), DEFAULT_MAX_BODY_BYTES), Ok(header));
        }

        #[test]
        fn any_64_bytes_decode_or_name_an_error(bytes in proptest::array::uniform32(any::<u8>()), more in proptest::array::uniform32(any::<u8>())) {
            let mut all = [0u8; 64];
            all[..32].copy_from_slice(&bytes);
            all[32..].copy_from_slice(&more);
            if let Err(error) = FrameHeader::decode(&all, DEFAULT_MAX_BODY_BYTES) {
                prop_assert!(!error.to_string().is_empty());
            }
        }
    }

    #[test]
    fn every_single_bit_flip_is_noticed() {
        let good = header().encode();
        for bit in 0..HEADER_BYTES * 8 {
            let mut bad = good;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(FrameHeader::decode(&bad, DEFAULT_MAX_BODY_BYTES).is_err(), "bit {bit} went unnoticed");
        }
    }

    #[test]
    fn limits_are_named() {
        let mut long = header();
        long.body_bytes = DEFAULT_MAX_BODY_BYTES + 16;
        assert!(matches!(FrameHeader::decode(&long.encode(), DEFAULT_MAX_BODY_BYTES), Err(FrameError::BodyTooLong { .. })));
        long.body_bytes = 17;
        assert!(matches!(FrameHeader::decode(&long.encode(), DEFAULT_MAX_BODY_BYTES), Err(FrameError::BodyNotAligned { .. })));
    }
}
