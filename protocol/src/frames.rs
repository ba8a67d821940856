//! Bodies of the control frames, laid out by hand, little-endian. PROTOCOL.md has the tables.
//!
//! Every type has `encode` (appends a whole frame) and `decode` (reads a body); a body that is not what its kind asks
//! for gives [`FrameError::BadBody`].

use crate::error::{ErrorCode, FrameError};
use crate::header::{FrameHeader, FrameKind, begin_frame, finish_frame};

/// Wanted shard of a Hello that takes any.
pub const ANY_SHARD: u32 = u32::MAX;
/// Longest node name in a Hello, bytes.
pub const NODE_NAME_BYTES_MAX: usize = 255;
/// Largest body of a Hello: its fixed part and the longest name.
pub const HELLO_BODY_BYTES_MAX: u32 = 96 + 256;
/// Most sequence entries in a Welcome.
pub const WELCOME_SEQUENCES_MAX: usize = 1024;
/// Longest text of an Error frame, bytes; longer texts are cut.
pub const ERROR_TEXT_BYTES_MAX: usize = 512;
/// Most verdicts in one frame.
pub const VERDICTS_PER_FRAME_MAX: usize = 1024;

/// Version of a package, compared in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PackageVersion {
    /// Incompatible changes.
    pub major: u16,
    /// Additions.
    pub minor: u16,
    /// Repairs.
    pub patch: u16,
}

impl PackageVersion {
    /// The version of the package that compiled this, from `CARGO_PKG_VERSION`-like text; parts that are no numbers are 0.
    pub fn parse(text: &str) -> Self {
        let mut parts = text.split(['.', '-', '+']).map(|part| part.parse().unwrap_or(0));
        let mut next = || parts.next().unwrap_or(0);
        Self { major: next(), minor: next(), patch: next() }
    }
}

impl std::fmt::Display for PackageVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// First frame of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Lowest protocol version the client speaks.
    pub protocol_min: u16,
    /// Highest protocol version the client speaks.
    pub protocol_max: u16,
    /// Lowest record schema the client can send.
    pub schema_min: u16,
    /// Highest record schema the client can send.
    pub schema_max: u16,
    /// Version of the client's package.
    pub package: PackageVersion,
    /// The node, for good.
    pub node: [u8; 16],
    /// The shard wanted, [`ANY_SHARD`] for any.
    pub wanted_shard: u32,
    /// The records are a replay: their event times are kept as they are.
    pub replay: bool,
    /// Nonce for the proof of the secret; zero without secrets.
    pub nonce: [u8; 32],
    /// The node's name, for people.
    pub name: String,
}

impl Hello {
    /// Appends the frame.
    pub fn encode(&self, session: u64, sent_us: u64, out: &mut Vec<u8>) {
        let start = begin_frame(out);
        for value in [self.protocol_min, self.protocol_max, self.schema_min, self.schema_max] {
            put_u16(out, value);
        }
        put_version(out, self.package);
        out.extend_from_slice(&self.node);
        put_u32(out, self.wanted_shard);
        put_u32(out, u32::from(self.replay));
        out.extend_from_slice(&self.nonce);
        let name = cut(&self.name, NODE_NAME_BYTES_MAX);
        put_u16(out, name.len() as u16);
        out.extend_from_slice(&[0; 22]);
        out.extend_from_slice(name.as_bytes());
        finish_frame(out, start, FrameHeader::bare(FrameKind::Hello, session, 0, sent_us));
    }

    /// Reads a body.
    pub fn decode(body: &[u8]) -> Result<Self, FrameError> {
        let mut reader = Reader::new(FrameKind::Hello, body);
        let hello = Self {
            protocol_min: reader.u16()?,
            protocol_max: reader.u16()?,
            schema_min: reader.u16()?,
            schema_max: reader.u16()?,
            package: reader.version()?,
            node: reader.array()?,
            wanted_shard: reader.u32()?,
            replay: reader.flags(1)? & 1 != 0,
            nonce: reader.array()?,
            name: String::new(),
        };
        let length = usize::from(reader.u16()?);
        reader.zeros(22)?;
        if length > NODE_NAME_BYTES_MAX {
            return reader.wrong("the node name is longer than 255 bytes");
        }
        let name = reader.text(length)?;
        reader.end()?;
        Ok(Self { name, ..hello })
    }
}

/// Highest stored sequence of the session in one (epoch, shard).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredSequence {
    /// Epoch of the topology.
    pub epoch: u64,
    /// Shard within it.
    pub shard: u32,
    /// Highest contiguous sequence stored.
    pub sequence: u64,
}

/// The connection is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// Version of the server's package.
    pub package: PackageVersion,
    /// This server.
    pub server_id: [u8; 16],
    /// The deployment it belongs to.
    pub deployment_id: [u8; 16],
    /// Random id of (routing_seed, shard_count).
    pub epoch: u64,
    /// Shards of the server, at least 1.
    pub shard_count: u32,
    /// The shard this connection belongs to.
    pub shard: u32,
    /// Seed of the routing hash.
    pub routing_seed: u64,
    /// Key with which user names and session ids are hashed.
    pub identity_key: [u8; 32],
    /// The server's clock, Unix µs.
    pub server_us: u64,
    /// Bytes that may be unacknowledged on this connection.
    pub window_bytes: u64,
    /// Largest body that the server takes.
    pub max_body_bytes: u32,
    /// Protocol version chosen.
    pub protocol: u16,
    /// Record schema chosen.
    pub schema: u16,
    /// What the server has of this session: at least the entry of this connection's (epoch, shard), and what it still
    /// knows of earlier epochs. An (epoch, shard) without entry has nothing.
    pub stored: Vec<StoredSequence>,
}

impl Welcome {
    /// Appends the frame.
    pub fn encode(&self, session: u64, sent_us: u64, out: &mut Vec<u8>) {
        let start = begin_frame(out);
        put_version(out, self.package);
        out.extend_from_slice(&self.server_id);
        out.extend_from_slice(&self.deployment_id);
        put_u64(out, self.epoch);
        put_u32(out, self.shard_count);
        put_u32(out, self.shard);
        put_u64(out, self.routing_seed);
        out.extend_from_slice(&self.identity_key);
        put_u64(out, self.server_us);
        put_u64(out, self.window_bytes);
        put_u32(out, self.max_body_bytes);
        put_u16(out, self.protocol);
        put_u16(out, self.schema);
        let stored = &self.stored[..self.stored.len().min(WELCOME_SEQUENCES_MAX)];
        put_u32(out, stored.len() as u32);
        put_u32(out, 0);
        for entry in stored {
            put_u64(out, entry.epoch);
            put_u32(out, entry.shard);
            put_u32(out, 0);
            put_u64(out, entry.sequence);
        }
        finish_frame(out, start, FrameHeader::bare(FrameKind::Welcome, session, 0, sent_us));
    }

    /// Reads a body.
    pub fn decode(body: &[u8]) -> Result<Self, FrameError> {
        let mut reader = Reader::new(FrameKind::Welcome, body);
        let mut welcome = Self {
            package: reader.version()?,
            server_id: reader.array()?,
            deployment_id: reader.array()?,
            epoch: reader.u64()?,
            shard_count: reader.u32()?,
            shard: reader.u32()?,
            routing_seed: reader.u64()?,
            identity_key: reader.array()?,
            server_us: reader.u64()?,
            window_bytes: reader.u64()?,
            max_body_bytes: reader.u32()?,
            protocol: reader.u16()?,
            schema: reader.u16()?,
            stored: Vec::new(),
        };
        let count = reader.u32()? as usize;
        reader.zeros(4)?;
        if welcome.shard_count == 0 || welcome.shard >= welcome.shard_count {
            return reader.wrong("the shard is not within the shard count");
        }
        if count > WELCOME_SEQUENCES_MAX {
            return reader.wrong("more than 1024 sequences");
        }
        for _ in 0..count {
            let (epoch, shard) = (reader.u64()?, reader.u32()?);
            reader.zeros(4)?;
            welcome.stored.push(StoredSequence { epoch, shard, sequence: reader.u64()? });
        }
        reader.end()?;
        Ok(welcome)
    }
}

/// Everything up to `sequence` is stored and analysed. Cumulative; no body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    /// Highest contiguous sequence of the session, epoch and shard.
    pub sequence: u64,
}

/// Are you there? No body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ping {
    /// Comes back in the Pong.
    pub token: u64,
}

/// Yes. No body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pong {
    /// Token of the Ping.
    pub token: u64,
}

/// Asks for a Stats frame. No body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatsRequest {
    /// Comes back in the Stats.
    pub token: u64,
}

macro_rules! bare_frames {
    ($($name:ident . $field:ident;)*) => { $(
        impl $name {
            /// Appends the frame.
            pub fn encode(&self, session: u64, sent_us: u64, out: &mut Vec<u8>) {
                out.extend_from_slice(&FrameHeader::bare(FrameKind::$name, session, self.$field, sent_us).encode());
            }

            /// Reads it from its header; there must be no body.
            pub fn decode(header: &FrameHeader) -> Result<Self, FrameError> {
                if header.body_bytes != 0 {
                    return Err(FrameError::BadBody { kind: FrameKind::$name, what: "there must be no body" });
                }
                Ok(Self { $field: header.sequence })
            }
        }
    )* };
}

bare_frames! { Ack.sequence; Ping.token; Pong.token; StatsRequest.token; }

/// What a listed source or session is in for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Action {
    /// Watch more closely.
    Graylist = 1,
    /// Refuse.
    Denylist = 2,
}

/// Whom a verdict is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Subject {
    /// A source: IPv4 address (mapped), or the first address of the /64.
    Source([u8; 16]),
    /// A session, by its keyed hash.
    Session(u64),
}

/// One entry of a Verdicts frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// Whom it is about.
    pub subject: Subject,
    /// The application it holds for, `None` for all.
    pub application: Option<i32>,
    /// What to do; `None` takes an earlier verdict on the same subject and application back.
    pub action: Option<Action>,
    /// When it ends, Unix µs by the server's clock.
    pub until_us: u64,
    /// The detector that made it, 0 by hand.
    pub detector: u16,
}

/// A part of the verdicts of one shard. A new connection gets the whole set in frames from `begin` to `end`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdicts {
    /// Per-shard sequence of the last change that this frame reflects.
    pub sequence: u64,
    /// First frame of a whole set.
    pub begin: bool,
    /// Last frame of a whole set: swap now.
    pub end: bool,
    /// The entries.
    pub verdicts: Vec<Verdict>,
}

impl Verdicts {
    /// Appends the frame of `verdicts`, at most [`VERDICTS_PER_FRAME_MAX`].
    pub fn encode(&self, session: u64, sent_us: u64, out: &mut Vec<u8>) {
        encode_verdicts(self.sequence, self.begin, self.end, &self.verdicts, session, sent_us, out);
    }

    /// Reads a body and the header that came with it.
    pub fn decode(header: &FrameHeader, body: &[u8]) -> Result<Self, FrameError> {
        let mut reader = Reader::new(FrameKind::Verdicts, body);
        let flags = reader.flags(3)?;
        let count = reader.u32()?;
        reader.zeros(8)?;
        if count as usize > VERDICTS_PER_FRAME_MAX || count != header.record_count {
            return reader.wrong("the count is over 1024, or not that of the header");
        }
        let mut verdicts = Vec::with_capacity(count as usize);
        for _ in 0..count {
            verdicts.push(decode_verdict(&mut reader)?);
        }
        reader.end()?;
        Ok(Self { sequence: header.sequence, begin: flags & 1 != 0, end: flags & 2 != 0, verdicts })
    }
}

/// Appends a Verdicts frame without owning the entries (the server's shards keep them elsewhere).
pub fn encode_verdicts(
    sequence: u64,
    begin: bool,
    end: bool,
    verdicts: &[Verdict],
    session: u64,
    sent_us: u64,
    out: &mut Vec<u8>,
) {
    let verdicts = &verdicts[..verdicts.len().min(VERDICTS_PER_FRAME_MAX)];
    let start = begin_frame(out);
    put_u32(out, u32::from(begin) | u32::from(end) << 1);
    put_u32(out, verdicts.len() as u32);
    put_u64(out, 0);
    for verdict in verdicts {
        let (scope, address, session_hash) = match verdict.subject {
            Subject::Source(address) => (1, address, 0),
            Subject::Session(hash) => (2, [0; 16], hash),
        };
        out.extend_from_slice(&[
            verdict.action.map_or(0, |action| action as u8),
            scope,
            u8::from(verdict.application.is_none()),
            0,
        ]);
        put_u32(out, verdict.application.unwrap_or(0).cast_unsigned());
        out.extend_from_slice(&address);
        put_u64(out, session_hash);
        put_u64(out, verdict.until_us);
        put_u16(out, verdict.detector);
        out.extend_from_slice(&[0; 6]);
    }
    let mut header = FrameHeader::bare(FrameKind::Verdicts, session, sequence, sent_us);
    header.record_count = verdicts.len() as u32;
    finish_frame(out, start, header);
}

fn decode_verdict(reader: &mut Reader<'_>) -> Result<Verdict, FrameError> {
    let [action, scope, all, zero] = reader.array()?;
    let application = reader.u32()?.cast_signed();
    let address = reader.array()?;
    let session_hash = reader.u64()?;
    let until_us = reader.u64()?;
    let detector = reader.u16()?;
    reader.zeros(6)?;
    let subject = match scope {
        1 => Subject::Source(address),
        2 => Subject::Session(session_hash),
        _ => return reader.wrong("a verdict's scope is neither source nor session"),
    };
    let action = match action {
        0 => None,
        1 => Some(Action::Graylist),
        2 => Some(Action::Denylist),
        _ => return reader.wrong("a verdict's action is not known"),
    };
    if all > 1 || zero != 0 {
        return reader.wrong("reserved bits of a verdict are set");
    }
    Ok(Verdict { subject, application: (all == 0).then_some(application), action, until_us, detector })
}

/// Counters of the server, of this connection's shard, and of this connection's session on that shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names carry unit and meaning; PROTOCOL.md has the table")]
pub struct Stats {
    pub token: u64,
    pub process_cpu_us: u64,
    pub process_rss_bytes: u64,
    pub uptime_us: u64,
    pub session_records_stored: u64,
    pub session_records_duplicate: u64,
    pub session_records_rejected: u64,
    pub shard_records_received: u64,
    pub shard_records_stored: u64,
    pub shard_records_rejected: u64,
    pub shard_records_duplicate: u64,
    pub shard_records_live: u64,
    pub shard_records_evicted: u64,
    pub shard_timeframe_us: u64,
    pub shard_cpu_us: u64,
}

impl Stats {
    /// Appends the frame.
    pub fn encode(&self, session: u64, sent_us: u64, out: &mut Vec<u8>) {
        let start = begin_frame(out);
        for value in self.values() {
            put_u64(out, value);
        }
        finish_frame(out, start, FrameHeader::bare(FrameKind::Stats, session, self.token, sent_us));
    }

    /// Reads a body and the header that came with it.
    pub fn decode(header: &FrameHeader, body: &[u8]) -> Result<Self, FrameError> {
        let mut reader = Reader::new(FrameKind::Stats, body);
        let stats = Self {
            token: header.sequence,
            process_cpu_us: reader.u64()?,
            process_rss_bytes: reader.u64()?,
            uptime_us: reader.u64()?,
            session_records_stored: reader.u64()?,
            session_records_duplicate: reader.u64()?,
            session_records_rejected: reader.u64()?,
            shard_records_received: reader.u64()?,
            shard_records_stored: reader.u64()?,
            shard_records_rejected: reader.u64()?,
            shard_records_duplicate: reader.u64()?,
            shard_records_live: reader.u64()?,
            shard_records_evicted: reader.u64()?,
            shard_timeframe_us: reader.u64()?,
            shard_cpu_us: reader.u64()?,
        };
        reader.end()?;
        Ok(stats)
    }

    const fn values(&self) -> [u64; 14] {
        [
            self.process_cpu_us,
            self.process_rss_bytes,
            self.uptime_us,
            self.session_records_stored,
            self.session_records_duplicate,
            self.session_records_rejected,
            self.shard_records_received,
            self.shard_records_stored,
            self.shard_records_rejected,
            self.shard_records_duplicate,
            self.shard_records_live,
            self.shard_records_evicted,
            self.shard_timeframe_us,
            self.shard_cpu_us,
        ]
    }
}

/// This side sends nothing new and will close when what it has is acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Goodbye {
    /// How long the peer should wait before it comes back, ms; 0: as it likes.
    pub retry_after_ms: u32,
}

impl Goodbye {
    /// Appends the frame.
    pub fn encode(&self, session: u64, sent_us: u64, out: &mut Vec<u8>) {
        let start = begin_frame(out);
        put_u32(out, self.retry_after_ms);
        finish_frame(out, start, FrameHeader::bare(FrameKind::Goodbye, session, 0, sent_us));
    }

    /// Reads a body.
    pub fn decode(body: &[u8]) -> Result<Self, FrameError> {
        let mut reader = Reader::new(FrameKind::Goodbye, body);
        let goodbye = Self { retry_after_ms: reader.u32()? };
        reader.end()?;
        Ok(goodbye)
    }
}

/// A named error. The sender closes the connection after it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorFrame {
    /// Number of the error; a number this version does not know is kept.
    pub code: u16,
    /// The sequence of the refused batch; for `sequence_gap` the sequence that was expected; else 0.
    pub sequence: u64,
    /// What happened, with live values and remedy, for people.
    pub text: String,
}

impl ErrorFrame {
    /// The error's code, `None` if this version does not know it.
    pub fn known_code(&self) -> Option<ErrorCode> {
        ErrorCode::from_wire(self.code)
    }

    /// Appends the frame.
    pub fn encode(&self, session: u64, sent_us: u64, out: &mut Vec<u8>) {
        let text = cut(&self.text, ERROR_TEXT_BYTES_MAX);
        let start = begin_frame(out);
        put_u16(out, self.code);
        put_u16(out, text.len() as u16);
        put_u32(out, 0);
        put_u64(out, self.sequence);
        out.extend_from_slice(text.as_bytes());
        finish_frame(out, start, FrameHeader::bare(FrameKind::Error, session, self.sequence, sent_us));
    }

    /// Reads a body.
    pub fn decode(body: &[u8]) -> Result<Self, FrameError> {
        let mut reader = Reader::new(FrameKind::Error, body);
        let code = reader.u16()?;
        let length = usize::from(reader.u16()?);
        reader.zeros(4)?;
        let sequence = reader.u64()?;
        if length > ERROR_TEXT_BYTES_MAX {
            return reader.wrong("the text is longer than 512 bytes");
        }
        let text = reader.text(length)?;
        reader.end()?;
        Ok(Self { code, sequence, text })
    }
}

/// A control frame, whole.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each variant is the type of its name")]
pub enum ControlFrame {
    Hello(Hello),
    Welcome(Welcome),
    Ack(Ack),
    Verdicts(Verdicts),
    StatsRequest(StatsRequest),
    Stats(Stats),
    Ping(Ping),
    Pong(Pong),
    Goodbye(Goodbye),
    Error(ErrorFrame),
}

impl ControlFrame {
    /// Reads any frame but a Batch (use [`crate::ValidBatch::parse`]); Challenge and Proof are refused in this version.
    pub fn decode(header: &FrameHeader, body: &[u8]) -> Result<Self, FrameError> {
        Ok(match header.kind {
            FrameKind::Hello => Self::Hello(Hello::decode(body)?),
            FrameKind::Welcome => Self::Welcome(Welcome::decode(body)?),
            FrameKind::Ack => Self::Ack(Ack::decode(header)?),
            FrameKind::Verdicts => Self::Verdicts(Verdicts::decode(header, body)?),
            FrameKind::StatsRequest => Self::StatsRequest(StatsRequest::decode(header)?),
            FrameKind::Stats => Self::Stats(Stats::decode(header, body)?),
            FrameKind::Ping => Self::Ping(Ping::decode(header)?),
            FrameKind::Pong => Self::Pong(Pong::decode(header)?),
            FrameKind::Goodbye => Self::Goodbye(Goodbye::decode(body)?),
            FrameKind::Error => Self::Error(ErrorFrame::decode(body)?),
            kind @ (FrameKind::Challenge | FrameKind::Proof) => {
                return Err(FrameError::BadBody { kind, what: "authentication is not spoken by this version" });
            }
            kind @ FrameKind::Batch => return Err(FrameError::BadBody { kind, what: "a batch is no control frame" }),
        })
    }
}

fn put_u16(out: &mut Vec<u8>, value: u16) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn put_u32(out: &mut Vec<u8>, value: u32) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn put_u64(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn put_version(out: &mut Vec<u8>, version: PackageVersion) {
    for part in [version.major, version.minor, version.patch, 0] {
        put_u16(out, part);
    }
}

/// The longest prefix of `text` within `limit` bytes that does not cut a character.
fn cut(text: &str, limit: usize) -> &str {
    &text[..text.floor_char_boundary(limit)]
}

/// Reads a body front to back; every miss is a named error.
struct Reader<'a> {
    kind: FrameKind,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    const fn new(kind: FrameKind, body: &'a [u8]) -> Self {
        Self { kind, rest: body }
    }

    const fn wrong<T>(&self, what: &'static str) -> Result<T, FrameError> {
        Err(FrameError::BadBody { kind: self.kind, what })
    }

    fn bytes(&mut self, count: usize) -> Result<&'a [u8], FrameError> {
        let Some((bytes, rest)) = self.rest.split_at_checked(count) else { return self.wrong("it is too short") };
        self.rest = rest;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], FrameError> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(N)?);
        Ok(array)
    }

    fn u16(&mut self) -> Result<u16, FrameError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32, FrameError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, FrameError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn version(&mut self) -> Result<PackageVersion, FrameError> {
        let version = PackageVersion { major: self.u16()?, minor: self.u16()?, patch: self.u16()? };
        self.zeros(2)?;
        Ok(version)
    }

    fn flags(&mut self, known: u32) -> Result<u32, FrameError> {
        let flags = self.u32()?;
        if flags & !known != 0 { self.wrong("flags are set that this version does not know") } else { Ok(flags) }
    }

    fn zeros(&mut self, count: usize) -> Result<(), FrameError> {
        if self.bytes(count)?.iter().any(|&byte| byte != 0) { self.wrong("reserved bytes are not zero") } else { Ok(()) }
    }

    fn text(&mut self, length: usize) -> Result<String, FrameError> {
        // Text is for people only: what is no UTF-8 is shown as such.
        Ok(String::from_utf8_lossy(self.bytes(length)?).into_owned())
    }

    /// Only padding, fewer than 16 zeros, may follow.
    fn end(&mut self) -> Result<(), FrameError> {
        if self.rest.len() >= 16 {
            return self.wrong("it is too long");
        }
        self.zeros(self.rest.len())
    }
}
