//! The generator: one thread, one epoll, every system the same way.
//!
//! Flat out, connections with room send one write each in turn, so that however a server answers it sees the same pattern. In
//! an open loop messages become due by a schedule, wait if a connection has no room, and keep their intended time.

use crate::peers::connection::{Answered, Connection, Sending};
use crate::peers::measure::Window;
use crate::peers::messages::Messages;
use crate::peers::process::ServerProcess;
use crate::peers::schedule::Due;
use anyhow::{Context, Result, bail};
use postanalytics_loadgen::clock::{duration_ns, monotonic_ns, process_cpu_us, timespec};
use postanalytics_loadgen::measure::LATENCY_US_MAX;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

/// Connections that send between two looks at the answers.
const SENDS_A_TURN: usize = 32;
/// Shortest wait for what is due: bounds what waking costs.
const WAKE_NS: u64 = 30_000;
const WAIT_NS_MAX: u64 = 20_000_000;
/// Messages unanswered on the one connection of a run in order.
const IN_ORDER_DEPTH: usize = 256;
const EVENTS: usize = 256;
const BUFFER_BYTES: usize = 64 << 10;
const DRAIN_TIMEOUT: Duration = Duration::from_secs(20);

/// What decides when messages are sent.
pub enum Pace<'a> {
    /// As much as is taken, in messages of so many records.
    Full(usize),
    /// A schedule, from the first warm-up to the end of the window.
    Schedule(&'a [Due]),
}

/// All connections to one server.
pub struct Generator {
    epoll: OwnedFd,
    connections: Vec<Connection>,
    messages: Arc<Messages>,
    sending: Sending,
    ready: VecDeque<u32>,
    /// The next message of each size.
    cursors: Vec<usize>,
    /// Records answered since the start.
    pub records_total: u64,
    /// Numbers of the messages sent, where they are to be remembered.
    sent: Option<Vec<u32>>,
    buffer: Vec<u8>,
    events: Vec<epoll::Event>,
}

struct Progress {
    from_ns: u64,
    until_ns: u64,
    records: u64,
    messages: u64,
    window: Window,
}

impl Progress {
    fn answered(&mut self, now_ns: u64, answered: Answered) {
        self.records += answered.records;
        self.messages += 1;
        if (self.from_ns..self.until_ns).contains(&answered.intended_ns) {
            let latency_us = (now_ns.saturating_sub(answered.intended_ns) / 1000).clamp(1, LATENCY_US_MAX);
            // Within the histogram's bounds nothing is refused.
            let _ = self.window.latency.record_n(latency_us, answered.records);
        }
    }
}

/// Both ends of a window.
#[derive(Clone, Copy)]
struct Mark {
    at_ns: u64,
    server_ns: u64,
    own_us: u64,
    records: u64,
    messages: u64,
}

impl Mark {
    fn now(server: &ServerProcess, progress: &Progress) -> Result<Self> {
        Ok(Self {
            at_ns: monotonic_ns(),
            server_ns: server.cpu_ns()?,
            own_us: process_cpu_us(),
            records: progress.records,
            messages: progress.messages,
        })
    }
}

impl Generator {
    /// A generator over these connections.
    pub fn new(connections: Vec<Connection>, messages: Arc<Messages>, sending: Sending) -> Result<Self> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        for (number, connection) in connections.iter().enumerate() {
            let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
            epoll::add(&epoll, connection.stream(), EventData::new_u64(number as u64), flags)?;
        }
        let (ready, cursors) = (VecDeque::with_capacity(connections.len()), Vec::new());
        let (buffer, events) = (vec![0; BUFFER_BYTES], Vec::with_capacity(EVENTS));
        Ok(Self { epoll, connections, messages, sending, ready, cursors, records_total: 0, sent: None, buffer, events })
    }

    /// Number of connections.
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// The messages that are sent.
    pub fn messages(&self) -> &Messages {
        &self.messages
    }

    /// Sends for `warm_up`, then measures `length`, then waits until everything is answered.
    pub fn window(&mut self, pace: &Pace<'_>, server: &ServerProcess, warm_up: Duration, length: Duration) -> Result<Window> {
        let start_ns = monotonic_ns();
        let from_ns = start_ns + duration_ns(warm_up);
        let until_ns = from_ns + duration_ns(length);
        let mut progress = Progress { from_ns, until_ns, records: 0, messages: 0, window: Window::default() };
        let (mut before, mut next_due) = (None, 0);
        self.queue_all(matches!(pace, Pace::Full(_)));
        loop {
            let now_ns = monotonic_ns();
            if before.is_none() && now_ns >= from_ns {
                before = Some(Mark::now(server, &progress)?);
            }
            if now_ns >= until_ns {
                break;
            }
            let mut wake_ns = if now_ns < from_ns { from_ns } else { until_ns };
            if let Pace::Schedule(schedule) = pace {
                next_due = self.fall_due(schedule, next_due, start_ns, now_ns);
                wake_ns = schedule.get(next_due).map_or(wake_ns, |due| wake_ns.min(start_ns + due.at_ns));
            }
            let size = if let Pace::Full(size) = pace { Some(*size) } else { None };
            self.send_some(size, &mut progress, u64::MAX)?;
            self.receive_some(wake_ns, size.is_some(), &mut progress)?;
        }
        let after = Mark::now(server, &progress)?;
        let before = before.unwrap_or(after);
        self.drain(&mut progress)?;
        self.records_total += progress.records;
        let mut window = progress.window;
        window.seconds = (after.at_ns - before.at_ns) as f64 / 1e9;
        window.records = after.records - before.records;
        window.messages = after.messages - before.messages;
        window.server_cpu_seconds = after.server_ns.saturating_sub(before.server_ns) as f64 / 1e9;
        window.own_cpu_seconds = (after.own_us - before.own_us) as f64 / 1e6;
        Ok(window)
    }

    /// Sends at least `records` records on the first connection alone and waits for all answers, so that their order is
    /// known. Returns the numbers of the messages in order.
    pub fn in_order(&mut self, records: u64, size: usize) -> Result<Vec<u32>> {
        let sending = self.sending;
        self.sending = Sending { depth: IN_ORDER_DEPTH, one_a_write: false, ..sending };
        self.sent = Some(Vec::new());
        self.ready.clear();
        self.connections.iter_mut().for_each(|connection| connection.queued = false);
        let mut progress = Progress { from_ns: u64::MAX, until_ns: u64::MAX, records: 0, messages: 0, window: Window::default() };
        let messages = records.div_ceil(size as u64);
        loop {
            let sent = self.sent.as_ref().map_or(0, |sent| sent.len() as u64);
            if sent >= messages {
                break;
            }
            self.queue(0);
            self.send_some(Some(size), &mut progress, messages - sent)?;
            self.receive_some(monotonic_ns() + WAIT_NS_MAX, true, &mut progress)?;
        }
        self.drain(&mut progress)?;
        self.sending = sending;
        self.records_total += progress.records;
        self.sent.take().context("the list of what was sent is gone: a defect")
    }

    /// Hands what is due to its connections.
    fn fall_due(&mut self, schedule: &[Due], mut next: usize, start_ns: u64, now_ns: u64) -> usize {
        while let Some(due) = schedule.get(next).filter(|due| start_ns + due.at_ns <= now_ns) {
            self.connections[due.connection as usize].due.push_back((start_ns + due.at_ns, due.records));
            self.queue(due.connection);
            next += 1;
        }
        next
    }

    fn queue(&mut self, number: u32) {
        let connection = &mut self.connections[number as usize];
        if !connection.queued {
            connection.queued = true;
            self.ready.push_back(number);
        }
    }

    fn queue_all(&mut self, wanted: bool) {
        self.ready.clear();
        for (number, connection) in self.connections.iter_mut().enumerate() {
            connection.queued = wanted;
            if wanted {
                self.ready.push_back(number as u32);
            }
        }
    }

    /// One write each for connections that may send, at most so many messages. `size`: whenever there is room; else what is due.
    fn send_some(&mut self, size: Option<usize>, progress: &mut Progress, mut messages_left: u64) -> Result<()> {
        for _ in 0..self.ready.len().min(SENDS_A_TURN) {
            let Some(number) = self.ready.pop_front() else { break };
            let connection = &mut self.connections[number as usize];
            connection.queued = false;
            let (messages, cursors, sent) = (&self.messages, &mut self.cursors, &mut self.sent);
            let next = |due: &mut VecDeque<(u64, u32)>| {
                if messages_left == 0 {
                    return None;
                }
                let (intended_ns, wanted) = match size {
                    Some(size) => (Connection::now_ns(), size),
                    None => due.pop_front().map(|(at_ns, records)| (at_ns, records as usize))?,
                };
                messages_left -= 1;
                let message = next_message(messages, cursors, wanted)?;
                sent.iter_mut().for_each(|sent| sent.push(message));
                Some((message, intended_ns))
            };
            let mut answered = |answered| progress.answered(monotonic_ns(), answered);
            connection.send(messages, &self.sending, next, &mut answered)?;
            let wants = size.is_some() || !connection.due.is_empty() || connection.is_writing();
            if wants && connection.has_room(&self.sending) {
                self.queue(number);
            }
        }
        Ok(())
    }

    /// Waits for answers and for room, not at all if there is more to send now.
    fn receive_some(&mut self, wake_ns: u64, flat_out: bool, progress: &mut Progress) -> Result<()> {
        let now_ns = monotonic_ns();
        let wait_ns = match self.ready.is_empty() {
            true => wake_ns.saturating_sub(now_ns).clamp(WAKE_NS, WAIT_NS_MAX),
            false => 0,
        };
        self.events.clear();
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut self.events), Some(&timespec(wait_ns))) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("epoll_wait"),
        }
        for position in 0..self.events.len() {
            let (number, flags) = (self.events[position].data.u64() as u32, self.events[position].flags);
            let connection = &mut self.connections[number as usize];
            if flags.contains(EventFlags::OUT) {
                connection.unblock();
            }
            if flags.intersects(EventFlags::IN | EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR) {
                let now_ns = monotonic_ns();
                connection.receive(&mut self.buffer, &mut |answered| progress.answered(now_ns, answered))?;
            }
            let wants = flat_out || !connection.due.is_empty() || connection.is_writing();
            // In a run in order only the first connection sends.
            if wants && (self.sent.is_none() || number == 0) {
                self.queue(number);
            }
        }
        Ok(())
    }

    /// Sends what is due already and waits for all answers.
    fn drain(&mut self, progress: &mut Progress) -> Result<()> {
        let deadline_ns = monotonic_ns() + duration_ns(DRAIN_TIMEOUT);
        self.queue_all(true);
        while !self.connections.iter().all(Connection::is_idle) {
            if monotonic_ns() > deadline_ns {
                bail!("not everything was answered within {} s of the end of a window", DRAIN_TIMEOUT.as_secs());
            }
            self.send_some(None, progress, u64::MAX)?;
            self.receive_some(monotonic_ns() + 1_000_000, false, progress)?;
        }
        Ok(())
    }
}

fn next_message(messages: &Messages, cursors: &mut Vec<usize>, size: usize) -> Option<u32> {
    let all = messages.of_size(size);
    if cursors.len() <= size {
        cursors.resize(size + 1, 0);
    }
    let message = all.start + cursors[size] % all.len().max(1);
    cursors[size] += 1;
    (message < all.end).then_some(message as u32)
}
