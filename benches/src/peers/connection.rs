//! One connection of the generator: messages out, answers in, never waiting.

use crate::peers::messages::Messages;
use crate::peers::replies::Replies;
use anyhow::{Context, Result, bail};
use postanalytics_loadgen::clock::{monotonic_ns, unix_us};
use postanalytics_protocol::{FrameHeader, HEADER_BYTES};
use socket2::{Domain, Protocol, Socket, Type};
use std::collections::VecDeque;
use std::io::{ErrorKind, IoSlice, Read, Write};
use std::net::{SocketAddr, TcpStream};

/// Bytes of messages that one write takes at most, where more are waiting.
const WRITE_BYTES: usize = 128 << 10;
/// Messages that one write takes at most.
const WRITE_MESSAGES_MAX: usize = 8;
/// Bytes that may be unanswered on a connection.
const IN_FLIGHT_BYTES_MAX: u64 = 4 << 20;

/// What each message owes, in the units of [`Replies`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owes {
    /// One answer.
    One,
    /// So many answers for each record.
    PerRecord(u64),
    /// Its bytes.
    Bytes,
    /// Nothing: it is done when it is written.
    Nothing,
}

/// How messages leave.
#[derive(Clone, Copy, Debug)]
pub struct Sending {
    /// Messages unanswered on a connection.
    pub depth: usize,
    /// Each message is a write of its own.
    pub one_a_write: bool,
    /// What a message owes.
    pub owes: Owes,
}

/// Messages that were answered.
#[derive(Clone, Copy, Debug)]
pub struct Answered {
    /// When each was to be sent.
    pub intended_ns: u64,
    /// Its records.
    pub records: u64,
}

/// A connection.
pub struct Connection {
    stream: TcpStream,
    replies: Replies,
    session: u64,
    /// Messages that are due, with their intended times and sizes; an open loop fills it.
    pub due: VecDeque<(u64, u32)>,
    outgoing: VecDeque<Outgoing>,
    in_flight: VecDeque<InFlight>,
    in_flight_bytes: u64,
    sequence: u64,
    owed: u64,
    /// The socket takes no more.
    blocked: bool,
    /// It stands in the generator's list.
    pub queued: bool,
}

struct Outgoing {
    header: [u8; HEADER_BYTES],
    header_bytes: usize,
    message: u32,
    written: usize,
    intended_ns: u64,
}

struct InFlight {
    owed: u64,
    bytes: u64,
    answered: Answered,
}

/// A connected socket with TCP_NODELAY and this congestion control, still blocking.
pub fn connect(address: SocketAddr, congestion: &str) -> Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_tcp_congestion(congestion.as_bytes()).with_context(|| {
        format!("congestion control {congestion} is not to be had; see /proc/sys/net/ipv4/tcp_available_congestion_control")
    })?;
    socket.set_tcp_nodelay(true)?;
    socket.connect(&address.into()).with_context(|| format!("cannot connect to {address}"))?;
    Ok(socket.into())
}

impl Connection {
    /// Takes over a stream after its handshake.
    pub fn new(stream: TcpStream, replies: Replies, session: u64) -> Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            replies,
            session,
            due: VecDeque::new(),
            outgoing: VecDeque::new(),
            in_flight: VecDeque::new(),
            in_flight_bytes: 0,
            sequence: 0,
            owed: 0,
            blocked: false,
            queued: false,
        })
    }

    /// The socket, to wait for.
    pub const fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Whether everything sent is answered.
    pub fn is_idle(&self) -> bool {
        self.in_flight.is_empty() && self.outgoing.is_empty() && self.due.is_empty()
    }

    /// Whether it could send now, given something to send.
    pub fn has_room(&self, sending: &Sending) -> bool {
        !self.blocked && self.in_flight.len() < sending.depth && self.in_flight_bytes < IN_FLIGHT_BYTES_MAX
    }

    /// Bytes on their way out already.
    pub fn is_writing(&self) -> bool {
        !self.blocked && !self.outgoing.is_empty()
    }

    /// The socket takes bytes again.
    pub const fn unblock(&mut self) {
        self.blocked = false;
    }

    /// Stamps messages that `next` gives (number and intended time) and writes once. Messages that owe nothing are answered at
    /// once.
    pub fn send(
        &mut self,
        messages: &Messages,
        sending: &Sending,
        mut next: impl FnMut(&mut VecDeque<(u64, u32)>) -> Option<(u32, u64)>,
        answered: &mut impl FnMut(Answered),
    ) -> Result<()> {
        let most = if sending.one_a_write { 1 } else { WRITE_MESSAGES_MAX };
        let mut waiting: usize =
            self.outgoing.iter().map(|outgoing| messages.bytes(messages.get(outgoing.message as usize)).len()).sum();
        while self.outgoing.len() < most && waiting < WRITE_BYTES && self.has_room(sending) {
            let Some((number, intended_ns)) = next(&mut self.due) else { break };
            waiting += self.stamp(messages, sending, number, intended_ns);
        }
        self.write(messages, sending, answered)
    }

    fn stamp(&mut self, messages: &Messages, sending: &Sending, number: u32, intended_ns: u64) -> usize {
        let message = messages.get(number as usize);
        self.sequence += 1;
        let mut outgoing = Outgoing { header: [0; HEADER_BYTES], header_bytes: 0, message: number, written: 0, intended_ns };
        if let Some(header) = message.header {
            let header = FrameHeader { session: self.session, sequence: self.sequence, sent_us: unix_us(), ..header };
            outgoing.header = header.encode();
            outgoing.header_bytes = HEADER_BYTES;
        }
        let bytes = outgoing.header_bytes + messages.bytes(message).len();
        self.owed += match sending.owes {
            Owes::One => 1,
            Owes::PerRecord(units) => units * u64::from(message.records),
            Owes::Bytes => bytes as u64,
            Owes::Nothing => 0,
        };
        if sending.owes != Owes::Nothing {
            let answered = Answered { intended_ns, records: u64::from(message.records) };
            self.in_flight.push_back(InFlight { owed: self.owed, bytes: bytes as u64, answered });
            self.in_flight_bytes += bytes as u64;
        }
        self.outgoing.push_back(outgoing);
        bytes
    }

    fn write(&mut self, messages: &Messages, sending: &Sending, answered: &mut impl FnMut(Answered)) -> Result<()> {
        while !self.outgoing.is_empty() {
            let mut slices = [IoSlice::new(&[]); 2 * WRITE_MESSAGES_MAX];
            let (mut count, mut wanted) = (0, 0);
            for outgoing in self.outgoing.iter().take(WRITE_MESSAGES_MAX) {
                let body = messages.bytes(messages.get(outgoing.message as usize));
                let header = &outgoing.header[outgoing.written.min(outgoing.header_bytes)..outgoing.header_bytes];
                for part in [header, &body[outgoing.written.saturating_sub(outgoing.header_bytes)..]] {
                    if !part.is_empty() {
                        slices[count] = IoSlice::new(part);
                        wanted += part.len();
                        count += 1;
                    }
                }
            }
            match self.stream.write_vectored(&slices[..count]) {
                Ok(written) => {
                    self.advance(messages, sending, written, answered);
                    if written == wanted {
                        return Ok(());
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.blocked = true;
                    return Ok(());
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("a connection broke while sending"),
            }
        }
        Ok(())
    }

    fn advance(&mut self, messages: &Messages, sending: &Sending, mut written: usize, answered: &mut impl FnMut(Answered)) {
        while let Some(first) = self.outgoing.front_mut() {
            let message = messages.get(first.message as usize);
            let left = first.header_bytes + messages.bytes(message).len() - first.written;
            if written < left {
                first.written += written;
                return;
            }
            written -= left;
            if sending.owes == Owes::Nothing {
                answered(Answered { intended_ns: first.intended_ns, records: u64::from(message.records) });
            }
            self.outgoing.pop_front();
        }
    }

    /// Reads what came and reports what it answers.
    pub fn receive(&mut self, buffer: &mut [u8], answered: &mut impl FnMut(Answered)) -> Result<()> {
        loop {
            let length = match self.stream.read(buffer) {
                Ok(0) => bail!("the server closed a connection; the log in its folder may say why"),
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error).context("a connection broke while receiving"),
            };
            if let Some(done) = self.replies.take(&buffer[..length])? {
                while let Some(message) = self.in_flight.pop_front_if(|message| message.owed <= done) {
                    self.in_flight_bytes -= message.bytes;
                    answered(message.answered);
                }
            }
            if length < buffer.len() {
                return Ok(());
            }
        }
    }

    /// When a message that is intended for now is handed over.
    pub fn now_ns() -> u64 {
        monotonic_ns()
    }
}
