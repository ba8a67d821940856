//! The header in front of every stored frame.
//!
//! ```text
//!  0        4       8          12             16           24            32           40
//!  ┌────────┬───────┬──────────┬──────────────┬────────────┬─────────────┬────────────┬─────────┐
//!  │ length │ state │ previous │ record_count │ generation │commit_index │ arrival_us │ sent_us │
//!  ├────────┴───────┼──────────┴──────────────┼────────────┴─────────────┼──────┬─────┬─────────┤
//!  │ 48 session     │ 56 sequence             │ 64 node, 16 bytes        │80 crc│84 sc│86 flags │  88 zero, to 96
//!  └────────────────┴─────────────────────────┴──────────────────────────┴──────┴─────┴─────────┘
//! ```
//!
//! `length` (header and body) is written before the body, `state` last, so that whoever reads the memory after the
//! process died finds only whole frames. `previous` is the offset of the place before it in the same slab, 0 for none.

/// Bytes of the header.
pub const PLACE_HEADER_BYTES: usize = 96;

/// State of a place: bytes are still coming.
pub const STATE_OPEN: u32 = 1;
/// State of a place: whole, checked, counted.
pub const STATE_COMMITTED: u32 = 2;
/// State of a place: given up; its bytes mean nothing.
pub const STATE_VOID: u32 = 3;

/// Flag: the analysis of this frame panicked.
pub const FLAG_QUARANTINED: u16 = 1;
/// Flag: the session is a replay, event times are kept.
pub const FLAG_REPLAY: u16 = 2;

/// Offset of `state` in the header.
pub const STATE_OFFSET: usize = 4;

/// A place's header, decoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PlaceHeader {
    /// Bytes of header and body.
    pub length: u32,
    /// `STATE_…`.
    pub state: u32,
    /// Offset of the place before this one in the slab, 0 for none.
    pub previous: u32,
    /// Records in the frame.
    pub record_count: u32,
    /// Generation of the slab.
    pub generation: u64,
    /// Order of analysis on this shard, from 1.
    pub commit_index: u64,
    /// When the frame was whole, Unix µs, never going back.
    pub arrival_us: u64,
    /// The sender's clock when it sent the frame, Unix µs.
    pub sent_us: u64,
    /// Session that sent it.
    pub session: u64,
    /// Its sequence.
    pub sequence: u64,
    /// Node that sent it.
    pub node: [u8; 16],
    /// CRC-32 of the body.
    pub body_crc: u32,
    /// Record schema of the body.
    pub schema: u16,
    /// `FLAG_…`.
    pub flags: u16,
}

impl PlaceHeader {
    /// The bytes of this header.
    pub fn encode(&self) -> [u8; PLACE_HEADER_BYTES] {
        let mut bytes = [0; PLACE_HEADER_BYTES];
        bytes[0..4].copy_from_slice(&self.length.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.state.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.previous.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.record_count.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.generation.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.commit_index.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.arrival_us.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.sent_us.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.session.to_le_bytes());
        bytes[56..64].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[64..80].copy_from_slice(&self.node);
        bytes[80..84].copy_from_slice(&self.body_crc.to_le_bytes());
        bytes[84..86].copy_from_slice(&self.schema.to_le_bytes());
        bytes[86..88].copy_from_slice(&self.flags.to_le_bytes());
        bytes
    }

    /// Reads a header.
    pub fn decode(bytes: &[u8; PLACE_HEADER_BYTES]) -> Self {
        let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        let mut node = [0; 16];
        node.copy_from_slice(&bytes[64..80]);
        Self {
            length: u32_at(0),
            state: u32_at(4),
            previous: u32_at(8),
            record_count: u32_at(12),
            generation: u64_at(16),
            commit_index: u64_at(24),
            arrival_us: u64_at(32),
            sent_us: u64_at(40),
            session: u64_at(48),
            sequence: u64_at(56),
            node,
            body_crc: u32_at(80),
            schema: u16::from_le_bytes([bytes[84], bytes[85]]),
            flags: u16::from_le_bytes([bytes[86], bytes[87]]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_round_trip() {
        let header = PlaceHeader {
            length: 0x0102_0304,
            state: STATE_COMMITTED,
            previous: 160,
            record_count: 64,
            generation: 9,
            commit_index: 10,
            arrival_us: 11,
            sent_us: 12,
            session: 13,
            sequence: 14,
            node: *b"0123456789abcdef",
            body_crc: 15,
            schema: 1,
            flags: FLAG_QUARANTINED | FLAG_REPLAY,
        };
        assert_eq!(PlaceHeader::decode(&header.encode()), header);
    }
}
