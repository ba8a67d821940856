//! Everything that can be wrong with bytes from the wire, each with a number that travels in Error frames.

use crate::header::FrameKind;
use thiserror::Error;

/// Numbers of Error frames. PROTOCOL.md lists them with cause and remedy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum ErrorCode {
    /// The first four bytes of a frame are not `PSTA`.
    BadMagic = 1,
    /// The header's CRC does not hold.
    BadHeaderCrc = 2,
    /// The header's version is not spoken here, or none of Hello's range is.
    UnsupportedVersion = 3,
    /// No frame kind has this number.
    UnknownKind = 4,
    /// Reserved header bytes are not zero.
    ReservedNotZero = 5,
    /// The body is not a multiple of 16 bytes.
    BodyNotAligned = 6,
    /// The body is longer than Welcome allows.
    BodyTooLong = 7,
    /// The body's CRC does not hold.
    BadBodyCrc = 8,
    /// The body of a control frame is not what its kind asks for.
    BadBody = 9,
    /// A frame of this kind may not come in this state.
    UnexpectedKind = 10,
    /// Bytes came before Welcome was sent.
    PrematureBytes = 11,
    /// No common record schema.
    UnsupportedSchema = 12,
    /// The body of a Batch is no valid archive.
    BadArchive = 13,
    /// Header and archive disagree about the number of records.
    RecordCountMismatch = 14,
    /// A record points outside the blob.
    OutOfBounds = 15,
    /// A record has more hits or extensions than allowed.
    TooManyParts = 16,
    /// The parts of the records are together longer than the blob.
    PartsOverlap = 17,
    /// A record belongs to another shard.
    WrongShard = 18,
    /// A sequence was skipped.
    SequenceGap = 19,
    /// The frame carries another session than Hello.
    WrongSession = 20,
    /// The frame can never be stored in this arena.
    TooLargeToStore = 21,
    /// Hello did not come whole in time.
    HandshakeTimeout = 22,
    /// The server has no room for this now; come back later.
    Overloaded = 23,
    /// A frame was begun and not finished in time.
    FrameTimeout = 24,
    /// The slab that held the unfinished frame had to be recycled.
    SlabRecycled = 25,
    /// A newer connection of the same node, session and shard took over.
    Replaced = 26,
    /// Authentication frames are not spoken by this version.
    AuthenticationUnsupported = 27,
    /// The peer did not read what was sent to it.
    PeerTooSlow = 28,
    /// The wanted shard does not exist.
    NoSuchShard = 29,
}

impl ErrorCode {
    /// Every code, in order of its number.
    pub const ALL: [Self; 29] = [
        Self::BadMagic,
        Self::BadHeaderCrc,
        Self::UnsupportedVersion,
        Self::UnknownKind,
        Self::ReservedNotZero,
        Self::BodyNotAligned,
        Self::BodyTooLong,
        Self::BadBodyCrc,
        Self::BadBody,
        Self::UnexpectedKind,
        Self::PrematureBytes,
        Self::UnsupportedSchema,
        Self::BadArchive,
        Self::RecordCountMismatch,
        Self::OutOfBounds,
        Self::TooManyParts,
        Self::PartsOverlap,
        Self::WrongShard,
        Self::SequenceGap,
        Self::WrongSession,
        Self::TooLargeToStore,
        Self::HandshakeTimeout,
        Self::Overloaded,
        Self::FrameTimeout,
        Self::SlabRecycled,
        Self::Replaced,
        Self::AuthenticationUnsupported,
        Self::PeerTooSlow,
        Self::NoSuchShard,
    ];

    /// The code of a wire value, `None` if there is no such code.
    pub fn from_wire(value: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|code| *code as u16 == value)
    }

    /// Whether the batch itself is at fault: it will never be accepted and must not be sent again.
    pub const fn is_content(self) -> bool {
        matches!(
            self,
            Self::UnsupportedSchema
                | Self::BadArchive
                | Self::RecordCountMismatch
                | Self::OutOfBounds
                | Self::TooManyParts
                | Self::PartsOverlap
                | Self::WrongShard
                | Self::TooLargeToStore
        )
    }

    /// Name in metrics and documents.
    pub const fn name(self) -> &'static str {
        match self {
            Self::BadMagic => "bad_magic",
            Self::BadHeaderCrc => "bad_header_crc",
            Self::UnsupportedVersion => "unsupported_version",
            Self::UnknownKind => "unknown_kind",
            Self::ReservedNotZero => "reserved_not_zero",
            Self::BodyNotAligned => "body_not_aligned",
            Self::BodyTooLong => "body_too_long",
            Self::BadBodyCrc => "bad_body_crc",
            Self::BadBody => "bad_body",
            Self::UnexpectedKind => "unexpected_kind",
            Self::PrematureBytes => "premature_bytes",
            Self::UnsupportedSchema => "unsupported_schema",
            Self::BadArchive => "bad_archive",
            Self::RecordCountMismatch => "record_count_mismatch",
            Self::OutOfBounds => "out_of_bounds",
            Self::TooManyParts => "too_many_parts",
            Self::PartsOverlap => "parts_overlap",
            Self::WrongShard => "wrong_shard",
            Self::SequenceGap => "sequence_gap",
            Self::WrongSession => "wrong_session",
            Self::TooLargeToStore => "too_large_to_store",
            Self::HandshakeTimeout => "handshake_timeout",
            Self::Overloaded => "overloaded",
            Self::FrameTimeout => "frame_timeout",
            Self::SlabRecycled => "slab_recycled",
            Self::Replaced => "replaced",
            Self::AuthenticationUnsupported => "authentication_unsupported",
            Self::PeerTooSlow => "peer_too_slow",
            Self::NoSuchShard => "no_such_shard",
        }
    }
}

/// Why bytes are no frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum FrameError {
    #[error("bad magic {found:#010x}: this is not a postanalytics frame")]
    BadMagic { found: u32 },
    #[error("header CRC is {stated:#010x}, computed {computed:#010x}")]
    BadHeaderCrc { stated: u32, computed: u32 },
    #[error("protocol version {found} is not spoken here, only version {}", crate::header::PROTOCOL_VERSION)]
    UnsupportedVersion { found: u8 },
    #[error("no frame kind has number {found}")]
    UnknownKind { found: u8 },
    #[error("reserved header bytes are not zero")]
    ReservedNotZero,
    #[error("a body of {body_bytes} bytes is no multiple of 16")]
    BodyNotAligned { body_bytes: u32 },
    #[error("a body of {body_bytes} bytes is over the limit of {max_body_bytes}")]
    BodyTooLong { body_bytes: u32, max_body_bytes: u32 },
    #[error("body CRC is {stated:#010x}, computed {computed:#010x}")]
    BadBodyCrc { stated: u32, computed: u32 },
    #[error("the body of a {kind:?} frame is wrong: {what}")]
    BadBody { kind: FrameKind, what: &'static str },
}

impl FrameError {
    /// The number that goes into an Error frame.
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::BadMagic { .. } => ErrorCode::BadMagic,
            Self::BadHeaderCrc { .. } => ErrorCode::BadHeaderCrc,
            Self::UnsupportedVersion { .. } => ErrorCode::UnsupportedVersion,
            Self::UnknownKind { .. } => ErrorCode::UnknownKind,
            Self::ReservedNotZero => ErrorCode::ReservedNotZero,
            Self::BodyNotAligned { .. } => ErrorCode::BodyNotAligned,
            Self::BodyTooLong { .. } => ErrorCode::BodyTooLong,
            Self::BadBodyCrc { .. } => ErrorCode::BadBodyCrc,
            Self::BadBody { kind: FrameKind::Challenge | FrameKind::Proof, .. } => ErrorCode::AuthenticationUnsupported,
            Self::BadBody { .. } => ErrorCode::BadBody,
        }
    }
}

/// Why the body of a Batch frame is no batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum BatchError {
    #[error("schema {found} is not spoken here, only schema {}", crate::schema::v1::SCHEMA)]
    UnsupportedSchema { found: u16 },
    #[error("the body is no valid archive of a batch")]
    BadArchive,
    #[error("the header states {stated} records, the archive holds {found}")]
    RecordCountMismatch { stated: u32, found: usize },
    #[error("record {record} points outside the blob")]
    OutOfBounds { record: usize },
    #[error("record {record} has {found} {part}, the limit is {limit}")]
    TooManyParts { record: usize, part: &'static str, found: u32, limit: u32 },
    #[error("the parts of the records are {parts_bytes} bytes, the blob only {blob_bytes}: parts may not overlap")]
    PartsOverlap { parts_bytes: u64, blob_bytes: usize },
}

impl BatchError {
    /// The number that goes into an Error frame.
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::UnsupportedSchema { .. } => ErrorCode::UnsupportedSchema,
            Self::BadArchive => ErrorCode::BadArchive,
            Self::RecordCountMismatch { .. } => ErrorCode::RecordCountMismatch,
            Self::OutOfBounds { .. } => ErrorCode::OutOfBounds,
            Self::TooManyParts { .. } => ErrorCode::TooManyParts,
            Self::PartsOverlap { .. } => ErrorCode::PartsOverlap,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_dense_and_named_once() {
        for (index, code) in ErrorCode::ALL.into_iter().enumerate() {
            assert_eq!(code as usize, index + 1);
            assert_eq!(ErrorCode::from_wire(code as u16), Some(code));
        }
        let names: std::collections::HashSet<_> = ErrorCode::ALL.iter().map(|code| code.name()).collect();
        assert_eq!(names.len(), ErrorCode::ALL.len());
        assert_eq!(ErrorCode::from_wire(0), None);
        assert_eq!(ErrorCode::from_wire(30), None);
    }
}
