//! One connection of a raw run: handshake, frames out within the window, acks in. Driven by its thread, never blocks after
//! the handshake.

use super::Measured;
use super::frames::FramePool;
use crate::clock::{Schedule, monotonic_ns, unix_us};
use crate::run::Timing;
use anyhow::{Context, Result, bail, ensure};
use postanalytics_protocol::frames::{ControlFrame, Goodbye, Hello, PackageVersion, Pong, Stats, Welcome};
use postanalytics_protocol::schema::v1::SCHEMA;
use postanalytics_protocol::{Assembler, FrameHeader, FrameKind, HEADER_BYTES, PROTOCOL_VERSION};
use socket2::{Domain, Protocol, Socket, Type};
use std::collections::VecDeque;
use std::io::{ErrorKind, IoSlice, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Which Stats answer: at the begin of the window, at its end, after everything. Their tokens are these plus one.
pub(super) const STATS_FROM: usize = 0;
pub(super) const STATS_END: usize = 1;
pub(super) const STATS_FINAL: usize = 2;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Frames that wait for the socket at once; the kernel's buffer is the real queue.
const OUTGOING_MAX: usize = 16;
/// Rounds of filling and writing in one turn, so that one connection does not keep a thread from the others.
const ROUNDS_MAX: usize = 8;

/// What a turn of the thread's loop hands to each connection.
pub(super) struct Turn<'a> {
    /// Read anew after each read from a socket and for each frame: a turn over many connections takes its time.
    pub(super) now_ns: u64,
    pub(super) unix_us: u64,
    pub(super) timing: Timing,
    /// What is due later is not sent.
    pub(super) send_until_ns: u64,
    pub(super) pool: &'a FramePool,
    pub(super) measured: &'a mut Measured,
}

/// One connection.
pub(super) struct Connection {
    stream: TcpStream,
    session: u64,
    pub(super) welcome: Welcome,
    /// When frames are due; `None`: whenever the window has room.
    pub(super) schedule: Option<Schedule>,
    /// Answers to [`Self::ask`].
    pub(super) stats: [Option<Stats>; 3],
    assembler: Assembler,
    body: Vec<u8>,
    outgoing: VecDeque<Outgoing>,
    in_flight: VecDeque<InFlight>,
    in_flight_bytes: u64,
    frames_sent: u64,
    /// Whether window or socket had no room for what was due.
    is_blocked: bool,
    /// When that was last so: lateness up to then is the server's, not the generator's.
    blocked_ns: u64,
    next_frame: usize,
    /// What was asked for last; one question at a time, for a server may answer only the latest of one turn.
    last_asked: Option<usize>,
}

/// A frame on its way into the socket.
struct Outgoing {
    header: [u8; HEADER_BYTES],
    /// Its body's place in the pool; control frames here have none.
    frame: Option<usize>,
    written: usize,
}

/// A frame that is not acknowledged yet.
struct InFlight {
    sequence: u64,
    wire_bytes: u64,
    records: u64,
    intended_ns: u64,
    sent_ns: u64,
}

impl Connection {
    /// Connects and shakes hands, blocking.
    pub(super) fn open(address: SocketAddr, session: u64, wanted_shard: u32, congestion: Option<&str>) -> Result<Self> {
        let socket =
            Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP)).context("cannot make a socket")?;
        if let Some(name) = congestion {
            socket.set_tcp_congestion(name.as_bytes()).with_context(|| {
                format!("congestion control {name} is not to be had; see /proc/sys/net/ipv4/tcp_available_congestion_control")
            })?;
        }
        socket.connect_timeout(&address.into(), HANDSHAKE_TIMEOUT)?;
        socket.set_tcp_nodelay(true)?;
        let mut stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(HANDSHAKE_TIMEOUT))?;
        let (welcome, assembler, body) = shake_hands(&mut stream, session, wanted_shard, "loadgen --raw")?;
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            session,
            welcome,
            schedule: None,
            stats: [None; 3],
            assembler,
            body,
            outgoing: VecDeque::with_capacity(OUTGOING_MAX + 4),
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            frames_sent: 0,
            is_blocked: false,
            blocked_ns: 0,
            // Sessions begin at different frames, so that they do not all send the same sources at once.
            next_frame: session as usize >> 8,
            last_asked: None,
        })
    }

    /// The socket, to wait for.
    pub(super) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Reads what came, sends what may go.
    pub(super) fn turn(&mut self, turn: &mut Turn<'_>, sending: bool, buffer: &mut [u8]) -> Result<()> {
        self.receive(turn, buffer)?;
        for _ in 0..ROUNDS_MAX {
            if sending {
                self.fill(turn);
            }
            if self.outgoing.is_empty() || !self.write(turn.pool)? {
                break;
            }
        }
        Ok(())
    }

    /// Asks the server for its statistics.
    pub(super) fn ask(&mut self, which: usize) {
        self.last_asked = Some(which);
        self.push_control(FrameHeader::bare(FrameKind::StatsRequest, self.session, which as u64 + 1, unix_us()));
    }

    /// Asks for the last statistics, once, after everything sent is acknowledged and every question answered.
    pub(super) fn ask_finally(&mut self) {
        let is_answered = self.last_asked.is_none_or(|which| self.stats[which].is_some());
        if self.in_flight.is_empty() && self.outgoing.is_empty() && is_answered && !self.is_done() {
            self.ask(STATS_FINAL);
        }
    }

    /// Whether the last statistics came.
    pub(super) fn is_done(&self) -> bool {
        self.stats[STATS_FINAL].is_some()
    }

    pub(super) fn wants_to_write(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// When the next frame is scheduled; `None` without a schedule.
    pub(super) fn scheduled_ns(&self) -> Option<u64> {
        self.schedule.map(|schedule| schedule.due_ns(self.frames_sent))
    }

    /// Counts what was due before `send_until_ns` and is not going to be sent any more.
    pub(super) fn count_unsent(&self, send_until_ns: u64, now_ns: u64, from_ns: u64, pool: &FramePool, measured: &mut Measured) {
        let Some(schedule) = self.schedule else { return };
        let due = schedule.due_before(send_until_ns).max(self.frames_sent);
        let frame_records = pool.of_shard(self.welcome.shard).first().map_or(0, |frame| u64::from(frame.header.record_count));
        let records = (due - self.frames_sent).saturating_mul(frame_records);
        *(if self.is_blocked { &mut measured.sent.held_back } else { &mut measured.sent.unsent }) += records;
        measured.acked.record_unsent_events(&schedule, self.frames_sent..due, frame_records, from_ns, now_ns);
    }

    /// When to wake for the next frame; `None` without a schedule, or as long as an ack has to come first.
    pub(super) fn next_due_ns(&self) -> Option<u64> {
        self.scheduled_ns().filter(|_| self.in_flight_bytes < self.welcome.window_bytes)
    }

    /// Says goodbye. A peer that is gone already does not matter any more.
    pub(super) fn close(&mut self) {
        let mut bytes = Vec::new();
        Goodbye::default().encode(self.session, unix_us(), &mut bytes);
        let _ = self.stream.write_all(&bytes);
        let _ = self.stream.shutdown(std::net::Shutdown::Write);
    }

    fn push_control(&mut self, header: FrameHeader) {
        self.outgoing.push_back(Outgoing { header: header.encode(), frame: None, written: 0 });
    }

    /// Stamps frames that are due, as far as window and queue have room.
    fn fill(&mut self, turn: &mut Turn<'_>) {
        let frames = turn.pool.of_shard(self.welcome.shard);
        if self.is_blocked {
            // Room came only now, if it came.
            self.blocked_ns = monotonic_ns();
        }
        while self.outgoing.len() < OUTGOING_MAX {
            turn.now_ns = monotonic_ns();
            let intended_ns = self.scheduled_ns().unwrap_or(turn.now_ns);
            let index = self.next_frame % frames.len();
            let frame = &frames[index];
            // A window smaller than a frame still lets one through.
            let fits = self.in_flight.is_empty() || self.in_flight_bytes + frame.wire_bytes() <= self.welcome.window_bytes;
            let is_past_end = self.schedule.is_some() && intended_ns >= turn.send_until_ns;
            if intended_ns > turn.now_ns || is_past_end {
                // Not behind, so nothing is held back but what still waits for the socket.
                self.is_blocked &= is_past_end || !self.outgoing.is_empty();
                return;
            }
            if !fits {
                self.is_blocked = true;
                return;
            }
            self.is_blocked = false;
            self.frames_sent += 1;
            self.next_frame = index + 1;
            let records = u64::from(frame.header.record_count);
            let header = FrameHeader { session: self.session, sequence: self.frames_sent, sent_us: turn.unix_us, ..frame.header };
            self.outgoing.push_back(Outgoing { header: header.encode(), frame: Some(index), written: 0 });
            self.in_flight_bytes += frame.wire_bytes();
            let wire_bytes = frame.wire_bytes();
            self.in_flight.push_back(InFlight {
                sequence: self.frames_sent,
                wire_bytes,
                records,
                intended_ns,
                sent_ns: turn.now_ns,
            });
            turn.measured.sent.generated += records;
            turn.measured.frames_sent += 1;
            if self.schedule.is_some() && intended_ns >= turn.timing.from_ns {
                let could_ns = intended_ns.max(self.blocked_ns);
                turn.measured.sent.note_lateness(could_ns / 1000, turn.now_ns / 1000, records);
            }
        }
    }

    /// Writes what the socket takes. `false`: it takes no more now.
    fn write(&mut self, pool: &FramePool) -> Result<bool> {
        let frames = pool.of_shard(self.welcome.shard);
        while !self.outgoing.is_empty() {
            let mut slices = [IoSlice::new(&[]); 2 * OUTGOING_MAX];
            let mut count = 0;
            for outgoing in self.outgoing.iter().take(OUTGOING_MAX) {
                for part in outgoing.rest(frames).into_iter().filter(|part| !part.is_empty()) {
                    slices[count] = IoSlice::new(part);
                    count += 1;
                }
            }
            match self.stream.write_vectored(&slices[..count]) {
                Ok(written) => self.advance(written, frames),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.is_blocked = true;
                    return Ok(false);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("the connection to shard {} broke", self.welcome.shard));
                }
            }
        }
        Ok(true)
    }

    fn advance(&mut self, mut written: usize, frames: &[super::frames::Frame]) {
        while let Some(first) = self.outgoing.front_mut() {
            let left: usize = first.rest(frames).iter().map(|part| part.len()).sum();
            if written < left {
                first.written += written;
                return;
            }
            written -= left;
            self.outgoing.pop_front();
        }
    }

    fn receive(&mut self, turn: &mut Turn<'_>, buffer: &mut [u8]) -> Result<()> {
        loop {
            let length = match self.stream.read(buffer) {
                Ok(0) => bail!("the server closed the connection to shard {}; its log says why", self.welcome.shard),
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => {
                    return Err(error).with_context(|| format!("the connection to shard {} broke", self.welcome.shard));
                }
            };
            turn.now_ns = monotonic_ns();
            let mut input = &buffer[..length];
            while let Some(header) = self.assembler.collect(&mut input, &mut self.body)? {
                self.take(&header, turn)?;
            }
            if length < buffer.len() {
                return Ok(());
            }
        }
    }

    fn take(&mut self, header: &FrameHeader, turn: &mut Turn<'_>) -> Result<()> {
        match ControlFrame::decode(header, &self.body)? {
            ControlFrame::Ack(ack) => self.acknowledge(ack.sequence, turn),
            ControlFrame::Stats(stats) => {
                let which = stats.token.wrapping_sub(1);
                let place = usize::try_from(which).ok().and_then(|which| self.stats.get_mut(which));
                *place.with_context(|| format!("statistics came that nobody asked for (token {})", stats.token))? = Some(stats);
                Ok(())
            }
            ControlFrame::Ping(ping) => {
                let pong = Pong { token: ping.token };
                self.push_control(FrameHeader::bare(FrameKind::Pong, self.session, pong.token, turn.unix_us));
                Ok(())
            }
            ControlFrame::Verdicts(_) | ControlFrame::Pong(_) => Ok(()),
            ControlFrame::Goodbye(_) => bail!("the server is shutting down; run again when it is up"),
            ControlFrame::Error(error) => bail!("the server refused: {} (code {})", error.text, error.code),
            other => bail!("the server sent a frame that only clients send: {other:?}"),
        }
    }

    /// Takes a cumulative ack: it may only move forward, and only up to what was sent.
    fn acknowledge(&mut self, sequence: u64, turn: &mut Turn<'_>) -> Result<()> {
        let oldest = self.in_flight.front().map_or(self.frames_sent + 1, |frame| frame.sequence);
        ensure!(
            sequence <= self.frames_sent && sequence + 1 >= oldest,
            "shard {} acknowledged sequence {sequence}; it had acknowledged {} of the {} sent",
            self.welcome.shard,
            oldest - 1,
            self.frames_sent
        );
        let timing = turn.timing;
        while let Some(frame) = self.in_flight.pop_front_if(|frame| frame.sequence <= sequence) {
            self.in_flight_bytes -= frame.wire_bytes;
            turn.measured.acked_total += frame.records;
            if (timing.from_ns..timing.until_ns).contains(&turn.now_ns) {
                turn.measured.acked.in_window += frame.records;
            }
            if frame.intended_ns >= timing.from_ns {
                let since_us = |then_ns: u64| turn.now_ns.saturating_sub(then_ns) / 1000;
                turn.measured.acked.record(since_us(frame.intended_ns), since_us(frame.sent_ns), frame.records);
            }
        }
        Ok(())
    }
}

impl Outgoing {
    /// What is left to write: of the header, of the body.
    fn rest<'a>(&'a self, frames: &'a [super::frames::Frame]) -> [&'a [u8]; 2] {
        let body = self.frame.map_or(&[][..], |index| &frames[index].body);
        [&self.header[self.written.min(HEADER_BYTES)..], &body[self.written.saturating_sub(HEADER_BYTES)..]]
    }
}

/// Says Hello on a new blocking stream and reads Welcome, and nothing after it. The assembler and its body take what follows.
pub fn shake_hands(
    stream: &mut TcpStream,
    session: u64,
    wanted_shard: u32,
    node_name: &str,
) -> Result<(Welcome, Assembler, Vec<u8>)> {
    let hello = Hello {
        protocol_min: u16::from(PROTOCOL_VERSION),
        protocol_max: u16::from(PROTOCOL_VERSION),
        schema_min: SCHEMA,
        schema_max: SCHEMA,
        package: PackageVersion::parse(env!("CARGO_PKG_VERSION")),
        node: u128::from(session).to_be_bytes(),
        wanted_shard,
        replay: false,
        nonce: [0; 32],
        name: node_name.to_owned(),
    };
    let mut bytes = Vec::new();
    hello.encode(session, unix_us(), &mut bytes);
    stream.write_all(&bytes)?;
    let (mut assembler, mut body) = (Assembler::default(), Vec::new());
    let welcome = read_welcome(stream, &mut assembler, &mut body)?;
    ensure!(welcome.schema == SCHEMA, "the server chose record schema {}, which was not offered", welcome.schema);
    Ok((welcome, assembler, body))
}

fn read_welcome(stream: &mut TcpStream, assembler: &mut Assembler, body: &mut Vec<u8>) -> Result<Welcome> {
    // A byte-exact read keeps what follows Welcome (verdicts) for the assembler: bodies are read only as far as they go.
    let mut byte = [0; HEADER_BYTES];
    let mut wanted = HEADER_BYTES;
    loop {
        let piece = &mut byte[..wanted.min(HEADER_BYTES)];
        stream.read_exact(piece).context("no Welcome came within 5 s of Hello; is this a postanalytics server?")?;
        let mut input = &*piece;
        let header = assembler.collect(&mut input, body)?;
        let Some(header) = header else {
            wanted = 16;
            continue;
        };
        return match ControlFrame::decode(&header, body)? {
            ControlFrame::Welcome(welcome) => Ok(welcome),
            ControlFrame::Error(error) => bail!("the server refused: {} (code {})", error.text, error.code),
            other => bail!("the server answered Hello with {other:?}"),
        };
    }
}
