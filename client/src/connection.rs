//! One connection of a lane: how far it has come, what it has to write, what its peer last said. Sans-IO.
//!
//! ```text
//!   Idle ──first use──▶ Connecting ──TCP──▶ Greeting ──Welcome──▶ Open ──Goodbye──▶ Draining
//!                          ▲   │               │                   │                  │
//!                          └── Backoff ◀───────┴───────────────────┴──────────────────┘
//! ```

use postanalytics_protocol::Assembler;
use postanalytics_protocol::error::FrameError;
use postanalytics_protocol::header::{FrameHeader, FrameKind};
use thiserror::Error;

/// Longest wait for Welcome, µs.
pub(crate) const WELCOME_US: u64 = 5_000_000;
/// Silence after which the peer is asked whether it is there, µs.
pub(crate) const PING_US: u64 = 10_000_000;
/// Unanswered questions after which it is not.
pub(crate) const PINGS_MAX: u32 = 3;
/// How long acknowledgements are awaited after the server's Goodbye, µs.
pub(crate) const DRAIN_US: u64 = 1_000_000;
/// A connection that lasted so long was healthy: the next wait starts small again, µs.
const HEALTHY_US: u64 = 10_000_000;
const BACKOFF_US_MIN: u64 = 50_000;
const BACKOFF_US_MAX: u64 = 5_000_000;
/// Longest wait that a server may ask for, µs.
const RETRY_AFTER_US_MAX: u64 = 60_000_000;
/// Bytes that are encoded ahead of the socket.
pub(crate) const OUT_BYTES: usize = 256 * 1024;

/// How far a connection has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Never used.
    #[default]
    Idle,
    /// Broken; to be tried again then.
    Backoff { until_us: u64 },
    /// The socket is connecting.
    Connecting { since_us: u64 },
    /// Hello is written, Welcome awaited.
    Greeting { since_us: u64 },
    /// Batches go out.
    Open { since_us: u64 },
    /// The server said Goodbye: nothing new goes out, acknowledgements still come in.
    Draining { since_us: u64, until_us: u64, retry_after_us: u64 },
}

/// Why a connection ended.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub(crate) enum Break {
    #[error("cannot connect: {0}")]
    Connect(String),
    #[error("cannot connect within {0} ms")]
    ConnectTimeout(u64),
    #[error("the server accepted the connection and did not welcome us within 5 s")]
    WelcomeTimeout,
    #[error("the connection broke: {0}")]
    Broken(String),
    #[error("the server closed the connection")]
    Closed,
    #[error("the server did not answer for 40 s")]
    Silent,
    #[error("the server said goodbye")]
    Goodbye,
    #[error("the server sent what is no frame: {0}")]
    Frame(FrameError),
    #[error("the server sent a {0:?} frame, which may not come now")]
    Unexpected(FrameKind),
    #[error(
        "the server wants authentication, which this version does not speak; upgrade the client or allow this node by address"
    )]
    Authentication,
    #[error("the server refused: {name}: {text}")]
    Refused {
        name: String,
        text: String,
        /// It will say the same again: come back at the slowest pace.
        slow: bool,
    },
    #[error("the server sent a frame of session {got:016x}, ours is {ours:016x}; something between mixes up connections")]
    WrongSession { ours: u64, got: u64 },
    #[error("the server acknowledged sequence {0}, which was never sent to it")]
    AckOfNothing(u64),
    #[error("the server welcomed us to shard {got}, not to {wanted}")]
    WrongShard { wanted: u32, got: u32 },
    #[error("the server states {0} shards, this client speaks to at most {max}", max = crate::core::SHARDS_MAX)]
    TooManyShards(u32),
    #[error("the server has forgotten our session; starting a new one")]
    SessionForgotten,
    #[error("the server's topology has changed")]
    TopologyChanged,
    #[error(
        "two servers answer at this address, {ours} and {got}, as behind a load balancer: records go to the first only; give \
         each server by an address of its own"
    )]
    TwoServers { ours: String, got: String },
    /// Ends no connection: where one lane is all there is, only the other server can be had.
    #[error(
        "two servers answer at this address in turn, {ours} and {got}, as behind a load balancer: each sees a part of what a source \
         does; give each server by an address of its own"
    )]
    InTurn { ours: String, got: String },
    /// It may not take part together with the others.
    #[error("{0}")]
    Clash(String),
}

impl Break {
    /// The least time to wait before the next attempt, µs.
    pub(crate) const fn wait_us(&self) -> u64 {
        match self {
            Self::Refused { slow: true, .. } | Self::Authentication | Self::Clash(_) => BACKOFF_US_MAX,
            _ => 0,
        }
    }
}

/// The connection of one lane, and what is to be known between two of them.
pub(crate) struct Connection {
    pub(crate) stage: Stage,
    /// Number of the socket that the thread is to keep for it.
    pub(crate) link: u64,
    pub(crate) window_bytes: u64,
    pub(crate) pings_unanswered: u32,
    pub(crate) heard_us: u64,
    /// The number of the request for statistics that was written last.
    pub(crate) stats_asked: u64,
    /// The shard wanted does not exist any more: ask for any.
    pub(crate) ask_any: bool,
    /// The token of the server's last Ping, until it is answered: when there is room.
    pub(crate) pong_owed: Option<u64>,
    attempts: u32,
    /// When it was last open, or first wanted.
    closed_us: u64,
    assembler: Assembler,
    body: Vec<u8>,
    out: Vec<u8>,
    out_written: usize,
}

impl Default for Connection {
    fn default() -> Self {
        Self {
            stage: Stage::Idle,
            link: 0,
            window_bytes: 0,
            pings_unanswered: 0,
            heard_us: 0,
            stats_asked: 0,
            ask_any: false,
            pong_owed: None,
            attempts: 0,
            closed_us: 0,
            assembler: Assembler::default(),
            body: Vec::new(),
            out: Vec::new(),
            out_written: 0,
        }
    }
}

impl Connection {
    /// The socket that this connection is to have, if any.
    pub(crate) const fn wanted_link(&self) -> Option<u64> {
        match self.stage {
            Stage::Idle | Stage::Backoff { .. } => None,
            _ => Some(self.link),
        }
    }

    pub(crate) const fn is_open(&self) -> bool {
        matches!(self.stage, Stage::Open { .. })
    }

    /// Whether the server has welcomed it, and it has not ended since.
    pub(crate) const fn is_welcomed(&self) -> bool {
        matches!(self.stage, Stage::Open { .. } | Stage::Draining { .. })
    }

    /// Since when it is not open although it is wanted; `None` while it is open, or nobody wants it.
    pub(crate) const fn closed_us(&self) -> Option<u64> {
        match self.stage {
            Stage::Idle | Stage::Open { .. } => None,
            _ => Some(self.closed_us),
        }
    }

    /// Whether the peer was asked whether it is there, and has not answered yet.
    pub(crate) const fn is_asked(&self) -> bool {
        self.is_open() && self.pings_unanswered > 0
    }

    /// Whether it has said nothing for so long although it was asked.
    pub(crate) const fn is_silent(&self, silent_us: u64, now_us: u64) -> bool {
        self.is_asked() && now_us >= self.heard_us.saturating_add(silent_us)
    }

    /// Begins anew, with a new socket.
    pub(crate) fn connect(&mut self, link: u64, now_us: u64) {
        if self.stage == Stage::Idle {
            self.closed_us = now_us;
        }
        self.stage = Stage::Connecting { since_us: now_us };
        self.link = link;
        self.pong_owed = None;
        self.assembler = Assembler::default();
        self.out.clear();
        (self.out_written, self.pings_unanswered, self.stats_asked) = (0, 0, 0);
    }

    /// Ends it, and waits with full jitter before the next one: after so many failed attempts as `slow` says, as long as it
    /// says, give or take a quarter. `random` is uniform over all u64.
    pub(crate) fn back_off(&mut self, now_us: u64, retry_after_us: u64, slow: Option<(u32, u64)>, random: u64) {
        if let Stage::Open { since_us } | Stage::Draining { since_us, .. } = self.stage {
            self.closed_us = now_us;
            if now_us.saturating_sub(since_us) >= HEALTHY_US {
                self.attempts = 0;
            }
        }
        let ceiling_us = (BACKOFF_US_MIN << self.attempts.min(20)).min(BACKOFF_US_MAX);
        self.attempts = self.attempts.saturating_add(1);
        let wait_us = match slow {
            Some((attempts, interval_us)) if self.attempts > attempts => interval_us / 4 * 3 + random % (interval_us / 2),
            _ => random % ceiling_us,
        };
        let wait_us = wait_us.max(1000).max(retry_after_us.min(RETRY_AFTER_US_MAX));
        self.stage = Stage::Backoff { until_us: now_us.saturating_add(wait_us) };
        self.out.clear();
        self.out_written = 0;
    }

    /// The next whole frame of the input: its header; its body is [`Self::body`].
    pub(crate) fn collect(&mut self, input: &mut &[u8]) -> Result<Option<FrameHeader>, FrameError> {
        self.assembler.collect(input, &mut self.body)
    }

    pub(crate) fn body(&self) -> &[u8] {
        &self.body
    }

    /// Where frames are appended. Only whole frames, so its length stays a multiple of 16.
    pub(crate) const fn out(&mut self) -> &mut Vec<u8> {
        &mut self.out
    }

    /// What is to be written.
    pub(crate) fn unwritten(&self) -> &[u8] {
        &self.out[self.out_written..]
    }

    /// So much of it was written.
    pub(crate) fn wrote(&mut self, bytes: usize) {
        self.out_written = (self.out_written + bytes).min(self.out.len());
        if self.out_written == self.out.len() {
            self.out.clear();
            self.out_written = 0;
        }
    }

    /// Whether more should be encoded.
    pub(crate) const fn has_room(&self) -> bool {
        self.out.len() < OUT_BYTES
    }

    /// When something is to be done if nothing comes.
    pub(crate) fn deadline_us(&self, connect_timeout_us: u64) -> Option<u64> {
        match self.stage {
            Stage::Idle => None,
            Stage::Backoff { until_us } | Stage::Draining { until_us, .. } => Some(until_us),
            Stage::Connecting { since_us } => Some(since_us + connect_timeout_us),
            Stage::Greeting { since_us } => Some(since_us + WELCOME_US),
            Stage::Open { .. } => Some(self.ping_us()),
        }
    }

    /// When to ask whether the peer is there, or to give it up.
    pub(crate) fn ping_us(&self) -> u64 {
        self.heard_us + PING_US * u64::from(self.pings_unanswered + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_five_seconds_and_shrink_after_health() {
        let mut connection = Connection::default();
        let mut wait = |stage, retry_after_us| {
            connection.stage = stage;
            connection.back_off(HEALTHY_US, retry_after_us, None, u64::MAX - 15);
            match connection.stage {
                Stage::Backoff { until_us } => until_us - HEALTHY_US,
                stage => panic!("{stage:?}"),
            }
        };
        let connecting = Stage::Connecting { since_us: 0 };
        let waits: Vec<u64> = (0..40).map(|_| wait(connecting, 0)).collect();
        assert!(waits[0] < BACKOFF_US_MIN && waits.iter().all(|&wait_us| (1000..BACKOFF_US_MAX).contains(&wait_us)), "{waits:?}");
        assert!(waits[8..].iter().any(|&wait_us| wait_us > 300_000), "{waits:?}");
        assert!(wait(Stage::Open { since_us: 0 }, 0) < BACKOFF_US_MIN);
        assert_eq!(wait(connecting, 7_000_000), 7_000_000);
    }

    #[test]
    fn after_so_many_attempts_the_pace_is_the_slow_one() {
        let mut connection = Connection::default();
        let mut wait_us = |random| {
            connection.stage = Stage::Connecting { since_us: 0 };
            connection.back_off(0, 0, Some((3, 20_000_000)), random);
            match connection.stage {
                Stage::Backoff { until_us } => until_us,
                stage => panic!("{stage:?}"),
            }
        };
        let waits: Vec<u64> = (0..6).map(|random| wait_us(random * 5_000_000)).collect();
        assert!(waits[..3].iter().all(|&wait_us| wait_us < BACKOFF_US_MAX), "{waits:?}");
        assert!(waits[3..].iter().all(|wait_us| (15_000_000..25_000_000).contains(wait_us)), "{waits:?}");
    }
}
