//! The hostile kernel under a shard: it stands where io_uring stands, keeps its promises, and nothing beyond them.
//!
//! Promises kept: completions of one operation come in order; a multishot receive goes on until a completion without
//! `F_MORE`; a buffer is the kernel's until a completion names it; memory of a send is read until its completion.
//! Everything else is left to fate. **Oracles** here: one receive and one send a socket, memory of a send unchanged until its
//! completion, buffers given back once and in the turn that got them, bytes consumed in the order of the stream, sends that
//! go on where the last one stopped.

use super::fate::{Fault, SharedFate};
use super::network::{Found, SharedNetwork, Way};
use postanalytics_server::ring::links::{Completion, Operation, WAKE_USER_DATA};
use postanalytics_server::ring::{Kernel, Links, UringConfig, tolerate};
use rustix::io::Errno;
use rustix::time::ClockId;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

const F_BUFFER: u32 = 1;
const F_MORE: u32 = 2;

/// Who may touch a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Kernel,
    /// Named by a completion that the shard has not seen.
    Completion,
    Shard,
    /// Given back, not shown to the kernel yet.
    Returned,
}

#[derive(Debug)]
struct Buffer {
    bytes: Vec<u8>,
    owner: Owner,
    connection: usize,
    /// Position of its bytes in the stream.
    at: u64,
}

#[derive(Debug)]
enum Work {
    Receive,
    Send { bytes: Vec<u8>, sent: usize },
}

/// An operation in the submission queue or in flight.
#[derive(Debug)]
struct Flight {
    user_data: u64,
    socket: RawFd,
    /// What the socket stood for when the kernel saw the operation.
    connection: Option<usize>,
    work: Work,
}

/// A completion that waits to be seen.
#[derive(Debug)]
struct Posted {
    ready_us: u64,
    completion: Completion,
}

/// Memory that the kernel may still read.
#[derive(Debug)]
struct Lent {
    user_data: u64,
    link: u32,
    address: usize,
    bytes: Vec<u8>,
}

/// See the module.
pub struct SimulatedKernel {
    fate: SharedFate,
    network: SharedNetwork,
    queued: Vec<Flight>,
    in_flight: Vec<Flight>,
    posted: Vec<Posted>,
    buffers: Vec<Buffer>,
    free: VecDeque<u16>,
    lent: Vec<Lent>,
    /// What the next send of a connection must begin with: the rest of the last one.
    rests: BTreeMap<usize, Vec<u8>>,
    /// How far the shard has consumed each stream.
    consumed: RefCell<BTreeMap<usize, u64>>,
    watching: bool,
    woken: bool,
    retries: u64,
    /// When the shard last asked for its CPU time, and what it was.
    processor: Cell<(u64, u64)>,
    asleep_until_us: u64,
    /// Or until so many completions are there.
    awaited: usize,
    /// Whether to let time pass in [`Kernel::enter`]: nobody else does.
    pub alone: bool,
}

impl std::fmt::Debug for SimulatedKernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sends = |flight: &Flight| (flight.user_data, flight.connection, matches!(flight.work, Work::Send { .. }));
        f.debug_struct("SimulatedKernel")
            .field("in_flight", &self.in_flight.iter().map(sends).collect::<Vec<_>>())
            .field("posted", &self.posted)
            .field("free", &self.free.len())
            .finish_non_exhaustive()
    }
}

impl SimulatedKernel {
    /// A kernel with buffers of this size.
    pub fn new(fate: SharedFate, network: SharedNetwork, config: UringConfig) -> Self {
        let buffer = |_| Buffer { bytes: Vec::new(), owner: Owner::Kernel, connection: 0, at: 0 };
        Self {
            fate,
            network,
            queued: Vec::new(),
            in_flight: Vec::new(),
            posted: Vec::new(),
            buffers: (0..config.buffers)
                .map(buffer)
                .map(|of| Buffer { bytes: vec![0; config.buffer_bytes as usize], ..of })
                .collect(),
            free: (0..config.buffers).collect(),
            lent: Vec::new(),
            rests: BTreeMap::new(),
            consumed: RefCell::default(),
            watching: false,
            woken: false,
            retries: 0,
            processor: Cell::default(),
            asleep_until_us: 0,
            awaited: 1,
            alone: false,
        }
    }

    /// A message was put into the shard's queue.
    pub fn message(&mut self) {
        self.woken = true;
    }

    /// Whether the shard would wake now.
    pub fn wakes(&mut self) -> bool {
        self.progress();
        let now_us = self.fate.now_us();
        let ready = self.posted.iter().filter(|posted| posted.ready_us <= now_us).count();
        let wakes = self.asleep_until_us <= now_us || ready >= self.awaited;
        if !wakes && ready > 0 {
            self.fate.happened(Fault::Gathered);
        }
        wakes
    }

    /// When the shard wakes if nothing happens, µs.
    pub fn next_us(&self) -> u64 {
        let mut ready_us: Vec<u64> = self.posted.iter().map(|posted| posted.ready_us).collect();
        ready_us.sort_unstable();
        ready_us.get(self.awaited - 1).map_or(self.asleep_until_us, |ready_us| self.asleep_until_us.min(*ready_us))
    }

    /// Asserts that the shard holds no buffer: every turn gives back what it got.
    pub fn check_turn(&self) {
        let held = self.buffers.iter().position(|buffer| matches!(buffer.owner, Owner::Shard | Owner::Returned));
        assert_eq!(held, None, "a buffer was not given back in the turn that got it");
    }

    /// Asserts that nothing is left: no operation in flight, every buffer the kernel's.
    pub fn check_end(&self) {
        assert!(self.queued.is_empty() && self.in_flight.is_empty(), "operations outlive their links: {:?}", self.in_flight);
        assert!(self.lent.is_empty(), "memory is lent for ever");
        let left = self.posted.iter().filter(|posted| posted.completion.user_data != WAKE_USER_DATA).count();
        assert_eq!(left, 0, "completions that nobody sees");
        assert_eq!(self.free.len(), self.buffers.len(), "not every buffer came back");
    }

    /// Lets every operation go as far as it can.
    fn progress(&mut self) {
        if self.watching && self.woken {
            self.woken = false;
            self.watching = !self.fate.strikes(Fault::WatchEnded);
            let flags = if self.watching { F_MORE } else { 0 };
            self.post(Completion { user_data: WAKE_USER_DATA, result: 1, flags });
        }
        for mut flight in std::mem::take(&mut self.in_flight) {
            let going_on = match (&mut flight.work, flight.connection) {
                // The socket was closed before the kernel saw the operation.
                (_, None) => {
                    self.post(Completion { user_data: flight.user_data, result: -Errno::BADF.raw_os_error(), flags: 0 });
                    false
                }
                (Work::Receive, Some(connection)) => self.receive(flight.user_data, connection),
                (Work::Send { bytes, sent }, Some(connection)) => match self.send(connection, bytes, sent) {
                    Some(result) => {
                        self.sent(connection, bytes, result);
                        self.post(Completion { user_data: flight.user_data, result, flags: 0 });
                        false
                    }
                    None => true,
                },
            };
            if going_on {
                self.in_flight.push(flight);
            }
        }
    }

    /// Returns whether the receive goes on.
    fn receive(&mut self, user_data: u64, connection: usize) -> bool {
        loop {
            let end = |result: i32| Completion { user_data, result, flags: 0 };
            let found = self.network.get().look(connection, Way::Up);
            let available = match found {
                Found::Nothing => return true,
                Found::Bytes(available) => available,
                Found::End | Found::Reset => {
                    let result = if found == Found::End { 0 } else { -Errno::CONNRESET.raw_os_error() };
                    if !self.free.is_empty() && self.fate.strikes(Fault::BufferForNothing) {
                        let buffer = self.pick(connection, 0, &[]);
                        self.post(Completion { flags: F_BUFFER | u32::from(buffer) << 16, ..end(result) });
                    } else {
                        self.post(end(result));
                    }
                    return false;
                }
            };
            if self.fate.strikes(Fault::ReceiveRetry) {
                let errno = if self.fate.once_in(2) { Errno::INTR } else { Errno::AGAIN };
                self.post(end(-errno.raw_os_error()));
                return false;
            }
            if self.fate.strikes_rarely(Fault::ReceiveFailed, 8) {
                let errno = if self.fate.once_in(2) { Errno::NOMEM } else { Errno::TIMEDOUT };
                self.post(end(-errno.raw_os_error()));
                return false;
            }
            if self.free.is_empty() || self.fate.is_hostile() && self.fate.once_in(64) {
                self.fate.happened(Fault::NoBuffers);
                self.post(end(-Errno::NOBUFS.raw_os_error()));
                return false;
            }
            let mut count = available.min(self.buffers[0].bytes.len());
            if count > 1 && self.fate.strikes(Fault::ShortRead) {
                count = 1 + self.fate.below(count - 1);
            }
            let (at, bytes) = self.network.get().read(connection, Way::Up, count);
            let buffer = self.pick(connection, at, &bytes);
            let more = !self.fate.strikes(Fault::LostMore);
            let flags = F_BUFFER | u32::from(buffer) << 16 | if more { F_MORE } else { 0 };
            self.post(Completion { user_data, result: count as i32, flags });
            if !more {
                return false;
            }
        }
    }

    fn pick(&mut self, connection: usize, at: u64, bytes: &[u8]) -> u16 {
        let Some(number) = self.free.pop_front() else { unreachable!("asked before") };
        let buffer = &mut self.buffers[usize::from(number)];
        assert_eq!(buffer.owner, Owner::Kernel);
        buffer.bytes[..bytes.len()].copy_from_slice(bytes);
        (buffer.owner, buffer.connection, buffer.at) = (Owner::Completion, connection, at);
        number
    }

    /// Returns the result once the send is over.
    fn send(&self, connection: usize, bytes: &[u8], sent: &mut usize) -> Option<i32> {
        if *sent == 0 && self.fate.strikes(Fault::SendRetry) {
            let errno = if self.fate.once_in(2) { Errno::INTR } else { Errno::AGAIN };
            return Some(-errno.raw_os_error());
        }
        if *sent == 0 && self.fate.strikes_rarely(Fault::SendFailed, 4) {
            let errno = if self.fate.once_in(2) { Errno::NOMEM } else { Errno::NOBUFS };
            return Some(-errno.raw_os_error());
        }
        let mut rest = &bytes[*sent..];
        let partial = rest.len() > 1 && self.fate.tries(Fault::PartialSend);
        if partial {
            rest = &rest[..1 + self.fate.below(rest.len() - 1)];
        }
        match self.network.get().write(connection, Way::Down, rest) {
            Ok(count) => *sent += count,
            Err(_) if *sent == 0 => {
                let errno = if self.fate.once_in(2) { Errno::PIPE } else { Errno::CONNRESET };
                return Some(-errno.raw_os_error());
            }
            Err(_) => return Some(*sent as i32),
        }
        if partial && *sent > 0 {
            self.fate.happened(Fault::PartialSend);
            return Some(*sent as i32);
        }
        (*sent == bytes.len()).then_some(*sent as i32)
    }

    /// Remembers what is left of a send that ended in the middle.
    fn sent(&mut self, connection: usize, bytes: &[u8], result: i32) {
        self.rests.insert(connection, bytes[result.max(0) as usize..].to_vec());
    }

    fn post(&mut self, completion: Completion) {
        let now_us = self.fate.now_us();
        let late = self.fate.strikes(Fault::LateCompletion);
        let delay_us = if late { self.fate.below(50_000) as u64 } else { 0 };
        let same = |posted: &&Posted| posted.completion.user_data == completion.user_data;
        // Completions of one operation stay in order.
        let after_us = self.posted.iter().rev().find(same).map_or(0, |posted| posted.ready_us);
        self.posted.push(Posted { ready_us: after_us.max(now_us + delay_us), completion });
    }

    /// The next completion that is ready: the first one, or with a fault the first of another operation.
    fn next_completion(&mut self) -> Option<Completion> {
        let now_us = self.fate.now_us();
        let ready: Vec<usize> = (0..self.posted.len()).filter(|at| self.posted[*at].ready_us <= now_us).collect();
        let mut at = *ready.first()?;
        if ready.len() > 1 && self.fate.tries(Fault::ReorderedCompletions) {
            let user_data = self.posted[ready[self.fate.below(ready.len())]].completion.user_data;
            let of_operation = self.posted.iter().position(|posted| posted.completion.user_data == user_data)?;
            if std::mem::replace(&mut at, of_operation) != of_operation {
                self.fate.happened(Fault::ReorderedCompletions);
            }
        }
        Some(self.posted.remove(at).completion)
    }

    /// Asserts that memory which the kernel may still read is as it was.
    fn check_lent(&self, links: &Links) {
        for lent in &self.lent {
            let now = links.sending(lent.link);
            assert!(
                now.as_ptr() as usize == lent.address && now == lent.bytes,
                "link {}: the memory of a send changed before its completion",
                lent.link
            );
        }
    }

    fn queue(&mut self, links: &Links, operation: Operation) {
        let (Operation::Receive(link) | Operation::Send(link) | Operation::Shutdown(link) | Operation::ShutdownWrite(link)) =
            operation;
        let Some(socket) = links.socket(link).map(AsRawFd::as_raw_fd) else { return };
        let (user_data, work) = match operation {
            Operation::Receive(_) => (links.receive_user_data(link), Work::Receive),
            Operation::Send(_) => {
                let (user_data, sending) = (links.send_user_data(link), links.sending(link));
                let bytes = sending.to_vec();
                assert!(!bytes.is_empty(), "link {link}: a send of nothing");
                self.lent.push(Lent { user_data, link, address: sending.as_ptr() as usize, bytes: bytes.clone() });
                (user_data, Work::Send { bytes, sent: 0 })
            }
            // As in reality these do not wait for what is queued.
            Operation::Shutdown(_) | Operation::ShutdownWrite(_) => {
                let mut network = self.network.get();
                let Some(connection) = network.of_socket(socket) else { return };
                // Of this very link: its number may have been another's, and the wake-up has one, too.
                let own = [links.receive_user_data(link), links.send_user_data(link)];
                let racing = self.posted.iter().any(|posted| own.contains(&posted.completion.user_data));
                if racing || matches!(network.look(connection, Way::Up), Found::Bytes(_)) {
                    self.fate.happened(Fault::CancelRace);
                }
                match operation {
                    Operation::Shutdown(_) => network.shut_server(connection),
                    _ => {
                        network.end(connection, Way::Down);
                    }
                }
                return;
            }
        };
        let twice = self.queued.iter().chain(&self.in_flight).any(|flight| flight.user_data == user_data);
        assert!(!twice, "link {link}: two {operation:?} at a time");
        self.queued.push(Flight { user_data, socket, connection: None, work });
    }

    /// The kernel sees what was queued.
    fn take_queued(&mut self) {
        for mut flight in std::mem::take(&mut self.queued) {
            flight.connection = self.network.get().of_socket(flight.socket);
            if let (Work::Send { bytes, .. }, Some(connection)) = (&flight.work, flight.connection)
                && let Some(rest) = self.rests.remove(&connection)
            {
                assert!(bytes.starts_with(&rest), "a send does not go on where the last one stopped");
            }
            self.in_flight.push(flight);
        }
    }
}

impl Kernel for SimulatedKernel {
    fn watch(&mut self, _: &UnixStream) -> io::Result<()> {
        assert!(!self.watching, "the wake-up is watched twice");
        self.watching = true;
        Ok(())
    }

    fn submit(&mut self, links: &mut Links) -> io::Result<()> {
        self.check_lent(links);
        for at in 0..links.operations().len() {
            let operation = links.operations()[at];
            self.queue(links, operation);
        }
        links.drain_operations();
        Ok(())
    }

    fn enter(&mut self, completions: usize, timeout: Duration) -> io::Result<()> {
        let now_us = self.fate.now_us();
        (self.asleep_until_us, self.awaited) = (now_us, completions);
        if self.fate.strikes(Fault::EnterBusy) {
            let errno = if self.fate.once_in(2) { Errno::BUSY } else { Errno::AGAIN };
            return tolerate(Err(errno.into()), &mut self.retries);
        }
        self.take_queued();
        self.progress();
        if self.fate.strikes(Fault::EnterInterrupted) {
            return tolerate(Err(Errno::INTR.into()), &mut self.retries);
        }
        let wakes_us = now_us.saturating_add(timeout.as_micros() as u64);
        if self.alone {
            let next_us = self.posted.iter().map(|posted| posted.ready_us).min().unwrap_or(u64::MAX);
            self.fate.get().now_us = wakes_us.min(next_us).max(now_us);
        } else {
            self.asleep_until_us = wakes_us;
        }
        Ok(())
    }

    fn completions(&mut self, into: &mut Vec<Completion>) -> io::Result<()> {
        self.progress();
        while let Some(completion) = self.next_completion() {
            self.fate.note(completion.user_data, completion.result as u64 ^ u64::from(completion.flags) << 32);
            if completion.flags & F_BUFFER != 0 {
                let buffer = &mut self.buffers[(completion.flags >> 16) as usize];
                assert_eq!(buffer.owner, Owner::Completion);
                buffer.owner = Owner::Shard;
            }
            self.lent.retain(|lent| lent.user_data != completion.user_data);
            into.push(completion);
        }
        Ok(())
    }

    fn filled(&self, buffer: u16, length: u32) -> io::Result<&[u8]> {
        let buffer = &self.buffers[usize::from(buffer)];
        assert_eq!(buffer.owner, Owner::Shard, "the bytes of a buffer that is not the shard's");
        let end = buffer.at + u64::from(length);
        let first = self.network.get().handed_over_at(buffer.connection);
        let before = self.consumed.borrow_mut().insert(buffer.connection, end).unwrap_or(first);
        assert_eq!(before, buffer.at, "bytes of a connection are consumed out of order");
        Ok(&buffer.bytes[..length as usize])
    }

    fn give_back(&mut self, number: u16) {
        let buffer = &mut self.buffers[usize::from(number)];
        assert_eq!(buffer.owner, Owner::Shard, "a buffer is given back once");
        buffer.owner = Owner::Returned;
        // Whoever still reads it, reads nonsense.
        buffer.bytes.fill(0xdd);
    }

    fn publish_buffers(&mut self) {
        for (number, buffer) in self.buffers.iter_mut().enumerate() {
            if buffer.owner == Owner::Returned {
                buffer.owner = Owner::Kernel;
                self.free.push_back(number as u16);
            }
        }
    }

    fn buffers_free(&self) -> usize {
        self.buffers.iter().filter(|buffer| buffer.owner != Owner::Shard).count()
    }

    fn retries(&self) -> u64 {
        self.retries
    }

    fn clock_us(&self, clock: ClockId) -> u64 {
        match clock {
            ClockId::Realtime => self.fate.wall_us(),
            ClockId::Boottime => self.fate.now_us(),
            ClockId::ThreadCPUTime => {
                let (now_us, (asked_us, mut used_us)) = (self.fate.now_us(), self.processor.get());
                if self.fate.is_busy() {
                    used_us += now_us - asked_us;
                }
                self.processor.set((now_us, used_us));
                used_us
            }
            _ => 0,
        }
    }
}
