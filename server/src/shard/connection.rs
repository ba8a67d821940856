//! One connection of a shard: what is arriving, and what waits to go out.

use super::messages::ConnectionTicket;
use crate::arena::OpenPlace;
use postanalytics_protocol::frames::ErrorFrame;
use postanalytics_protocol::{Assembler, BatchError, ErrorCode, FrameError, FrameHeader, FrameKind};
use std::sync::Arc;

/// Most bytes of a control frame's body from a client: an Error frame with the longest text.
pub const CONTROL_BODY_BYTES_MAX: u32 = 1024;
/// Most bytes that may wait for a peer that does not read.
pub const UNSENT_BYTES_MAX: usize = 1 << 20;

/// What becomes of the frame that is arriving.
#[derive(Debug)]
pub enum Incoming {
    /// Between two frames.
    Nothing,
    /// A batch, and its place: pieces of its body go there as they come, a whole one once it is analysed.
    Batch(FrameHeader, OpenPlace),
    /// A batch that is stored already: its body is skipped.
    Duplicate(FrameHeader),
    /// A control frame: its body is collected.
    Control(FrameHeader),
}

/// See the module.
#[derive(Debug)]
pub struct Connection {
    /// Who it is, shown in the status. Dropped with the connection.
    pub ticket: Arc<ConnectionTicket>,
    /// Position of its session.
    pub session: u32,
    /// The session is a replay.
    pub replay: bool,
    /// From bytes to frames.
    pub assembler: Assembler,
    /// The frame that is arriving.
    pub incoming: Incoming,
    /// Body of a control frame.
    pub control_body: Vec<u8>,
    /// Monotonic time at which the frame that is arriving began; 0 between frames.
    pub frame_since_us: u64,
    /// Monotonic time of the last bytes.
    pub received_us: u64,
    /// Smallest difference of arrival and sending of its batches since it was told last, µs.
    pub clock_offset_us: Option<i64>,
    /// Bytes to send.
    pub outbox: Vec<u8>,
    /// Bytes handed to the kernel that it has not confirmed.
    pub in_flight_bytes: usize,
    /// Monotonic time at which the first batch came for which an Ack is owed; 0: none is.
    pub ack_since_us: u64,
    /// That Ack waits for others.
    pub ack_waits: bool,
    /// Monotonic time of the last turn that brought a batch for it while it waited.
    pub ack_turn_us: u64,
    /// Number of the look at what came in before which its last batch came.
    pub seen_look: u32,
    /// A Stats frame with this token is owed.
    pub stats_due: Option<u64>,
    /// Where the verdict snapshot goes on; `None` when it is complete.
    pub snapshot_from: Option<usize>,
    /// Whether the snapshot's first frame is still to come.
    pub snapshot_begins: bool,
    /// Nothing more is read: an Error or a Goodbye ends it.
    pub over: bool,
    /// The peer said Goodbye: close once everything is sent.
    pub leaving: bool,
}

impl Connection {
    /// A connection whose Welcome is still to be sent.
    pub fn new(ticket: Arc<ConnectionTicket>, session: u32, replay: bool, max_body_bytes: u32, now_us: u64) -> Self {
        Self {
            ticket,
            session,
            replay,
            assembler: Assembler::new(max_body_bytes),
            incoming: Incoming::Nothing,
            control_body: Vec::with_capacity(CONTROL_BODY_BYTES_MAX as usize),
            frame_since_us: 0,
            received_us: now_us,
            clock_offset_us: None,
            outbox: Vec::with_capacity(4096),
            in_flight_bytes: 0,
            ack_since_us: 0,
            ack_waits: false,
            ack_turn_us: 0,
            seen_look: 0,
            stats_due: None,
            snapshot_from: Some(0),
            snapshot_begins: true,
            over: false,
            leaving: false,
        }
    }

    /// Notes when a batch was sent, by the node's clock; 0 if it does not say.
    pub fn note_clock(&mut self, sent_us: u64, arrival_us: u64) {
        if sent_us > 0 {
            let offset_us = arrival_us.cast_signed().saturating_sub(sent_us.cast_signed());
            self.clock_offset_us = Some(self.clock_offset_us.map_or(offset_us, |known| known.min(offset_us)));
        }
    }

    /// Bytes that the peer has not taken.
    pub const fn unsent_bytes(&self) -> usize {
        self.outbox.len() + self.in_flight_bytes
    }
}

/// Why a frame is refused and its connection closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Number of the Error frame.
    pub code: ErrorCode,
    /// Sequence that it carries.
    pub sequence: u64,
    /// Its text.
    pub text: String,
}

impl Refusal {
    /// A refusal that no batch is to blame for.
    pub fn of_connection(code: ErrorCode, text: impl Into<String>) -> Self {
        Self { code, sequence: 0, text: text.into() }
    }

    /// A frame of this kind may not come from a client after its Hello.
    pub fn of_unexpected(kind: FrameKind) -> Self {
        Self::of_connection(ErrorCode::UnexpectedKind, format!("a {kind:?} frame may not come from a client after its Hello"))
    }

    /// A refusal of the batch with this sequence.
    pub fn of_batch(code: ErrorCode, sequence: u64, text: impl Into<String>) -> Self {
        Self { code, sequence, text: text.into() }
    }

    /// Appends the Error frame.
    pub fn encode(&self, session: u64, sent_us: u64, out: &mut Vec<u8>) {
        ErrorFrame { code: self.code as u16, sequence: self.sequence, text: self.text.clone() }.encode(session, sent_us, out);
    }
}

impl From<FrameError> for Refusal {
    fn from(error: FrameError) -> Self {
        Self::of_connection(error.code(), error.to_string())
    }
}

impl From<(BatchError, u64)> for Refusal {
    fn from((error, sequence): (BatchError, u64)) -> Self {
        Self::of_batch(error.code(), sequence, error.to_string())
    }
}
