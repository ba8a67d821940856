//! The records of one shard on their way: batches being filled, sealed, written, acknowledged. Sans-IO.
//!
//! ```text
//!   records ──▶ batcher ──▶ ready ──▶ in_flight: written on this connection │ to be written again ──▶ acked
//!               (queued)   (queued)              0 ........ on_wire ........ len
//! ```
//!
//! A batch gets its sequence when it is first written, and keeps it until it is settled: that is what lets the server drop
//! what it already has. A batch whose records were given up stays in its place, empty, because the server takes no gap.
//!
//! Bounds: everything here counts against the queue's budget; `on_wire` is bounded by the window of Welcome.

use crate::ack::Acks;
use crate::batcher::{BatchLimits, Batcher, TooLong};
use crate::bundle::{Bundle, IdentityKey, Item};
use crate::config::Config;
use crate::core::Now;
use crate::counters::Ledger;
use std::collections::VecDeque;

/// A server may have forgotten a session that has had no connection for 900 s. Less a little, for its connections may have ended
/// before the client's.
const FORGET_US: u64 = 890_000_000;

/// Delivery to one shard.
pub(crate) struct Lane {
    session: u64,
    batcher: Batcher,
    ready: VecDeque<Bundle>,
    in_flight: VecDeque<Written>,
    /// How many of `in_flight` were written on the present connection, and their bytes.
    on_wire: usize,
    on_wire_bytes: u64,
    next_sequence: u64,
    acked_sequence: u64,
    /// When the session's first batch was last written, by [`Now::boot_us`]. If the server has any of the session, it had it then
    /// or later.
    begun_us: u64,
}

/// A batch with a sequence.
struct Written {
    sequence: u64,
    bundle: Bundle,
    /// When it was first written.
    first_us: u64,
    /// Bytes of the frame as it was last written.
    frame_bytes: u64,
}

/// How a lane writes on its present connection.
pub(crate) struct Wire<'a> {
    pub(crate) window_bytes: u64,
    pub(crate) key: &'a IdentityKey,
}

/// The server knows less of the session than it acknowledged, or more than it was sent; or it knows nothing, and may have
/// forgotten what it stored.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Forgotten;

/// Records that lanes have, counted afresh; and their connections that were welcomed.
#[cfg(any(test, feature = "fuzzing", feature = "simulation"))]
#[derive(Default)]
pub(crate) struct Held {
    pub(crate) queued: u64,
    pub(crate) queued_marked: u64,
    pub(crate) in_flight: u64,
    pub(crate) bytes: usize,
    pub(crate) connections: u64,
}

#[cfg(any(test, feature = "fuzzing", feature = "simulation"))]
impl std::ops::AddAssign for Held {
    fn add_assign(&mut self, other: Self) {
        self.queued += other.queued;
        self.queued_marked += other.queued_marked;
        self.in_flight += other.in_flight;
        self.bytes += other.bytes;
        self.connections += other.connections;
    }
}

impl Lane {
    pub(crate) fn new(session: u64, config: &Config) -> Self {
        Self {
            session,
            batcher: Batcher::new(config),
            ready: VecDeque::new(),
            in_flight: VecDeque::new(),
            on_wire: 0,
            on_wire_bytes: 0,
            next_sequence: 1,
            acked_sequence: 0,
            begun_us: 0,
        }
    }

    pub(crate) const fn session(&self) -> u64 {
        self.session
    }

    /// Adds a record that is to be sent.
    pub(crate) fn push(&mut self, item: &Item<'_>, limits: &BatchLimits, now_us: u64) -> Result<(), TooLong> {
        if let Some(sealed) = self.batcher.push(item, limits, now_us)? {
            self.ready.push_back(sealed);
        }
        Ok(())
    }

    /// Whether a batch that is not full would be written if it were sealed now. While not, it had better go on filling.
    pub(crate) fn would_write(&self, wire: &Wire<'_>) -> bool {
        let idle = self.ready.is_empty() && self.on_wire == self.in_flight.len();
        idle && self.has_room(self.batcher.open().frame_bytes(), wire.window_bytes)
    }

    const fn has_room(&self, frame_bytes: u64, window_bytes: u64) -> bool {
        self.on_wire_bytes == 0 || self.on_wire_bytes + frame_bytes <= window_bytes
    }

    /// When a batch wants to be written that now waits for company.
    pub(crate) fn due_us(&self, wire: &Wire<'_>) -> Option<u64> {
        self.batcher.due_us().filter(|_| self.would_write(wire))
    }

    /// How long records of this lane wait for company at present.
    pub(crate) const fn linger_us(&self) -> u64 {
        self.batcher.linger_us()
    }

    /// Appends the next batch to `out`: one to be written again, else a new one. A batch with records from `flush_us` or
    /// before does not wait for company. Returns whether there was one.
    pub(crate) fn write_next(
        &mut self,
        wire: &Wire<'_>,
        flush_us: Option<u64>,
        now: Now,
        ledger: &mut Ledger,
        out: &mut Vec<u8>,
    ) -> bool {
        let again = self.on_wire < self.in_flight.len();
        if !again {
            let due = self.batcher.due_us().is_some_and(|due_us| due_us <= now.clock_us);
            let flushed = self.batcher.open().oldest_us() <= flush_us && !self.batcher.open().is_empty();
            if (due || flushed) && self.would_write(wire) {
                self.ready.push_back(self.batcher.seal(now.clock_us));
            }
            let (on_wire, window) = (self.on_wire_bytes, wire.window_bytes);
            let fits = |bundle: &mut Bundle| on_wire == 0 || on_wire + bundle.frame_bytes() <= window;
            let Some(bundle) = self.ready.pop_front_if(fits) else { return false };
            ledger.send(bundle.load());
            let (sequence, first_us) = (self.next_sequence, now.clock_us);
            self.in_flight.push_back(Written { sequence, bundle, first_us, frame_bytes: 0 });
            self.next_sequence += 1;
        }
        let room =
            self.in_flight.get(self.on_wire).is_some_and(|next| self.has_room(next.bundle.frame_bytes(), wire.window_bytes));
        let Some(next) = self.in_flight.get_mut(self.on_wire).filter(|_| room) else { return false };
        next.bundle.encode(wire.key, self.session, next.sequence, now.unix_us, out);
        next.frame_bytes = next.bundle.frame_bytes();
        if next.sequence == 1 {
            self.begun_us = now.boot_us;
        }
        self.on_wire += 1;
        self.on_wire_bytes += next.frame_bytes;
        *(if again { &mut ledger.batches_resent } else { &mut ledger.batches_sent }) += 1;
        true
    }

    /// The server has everything up to `sequence`. `Err`: it was never sent so much on this connection.
    pub(crate) fn acked(&mut self, sequence: u64, now: Now, ledger: &mut Ledger, acks: &mut Acks) -> Result<(), Forgotten> {
        let highest = self.on_wire.checked_sub(1).map_or(self.acked_sequence, |last| self.in_flight[last].sequence);
        if sequence > highest {
            return Err(Forgotten);
        }
        self.settle(sequence, now, ledger, acks);
        Ok(())
    }

    fn settle(&mut self, sequence: u64, now: Now, ledger: &mut Ledger, acks: &mut Acks) {
        while let Some(written) = self.in_flight.pop_front_if(|written| written.sequence <= sequence) {
            if self.on_wire > 0 {
                self.on_wire -= 1;
                self.on_wire_bytes -= written.frame_bytes;
            }
            ledger.ack(written.bundle.load());
            acks.collect(&written.bundle, now.clock_us);
        }
        self.acked_sequence = self.acked_sequence.max(sequence);
        acks.deliver();
    }

    /// The connection is gone; what was written on it will be written again.
    pub(crate) const fn disconnected(&mut self) {
        self.on_wire = 0;
        self.on_wire_bytes = 0;
    }

    /// A new connection to the same topology, whose server has everything up to `stored` of this session.
    pub(crate) fn resume(&mut self, stored: u64, now: Now, ledger: &mut Ledger, acks: &mut Acks) -> Result<(), Forgotten> {
        if stored < self.acked_sequence || stored >= self.next_sequence {
            return Err(Forgotten);
        }
        // It acknowledged nothing, so only the time tells whether it never got anything or has forgotten all.
        if stored == 0 && !self.in_flight.is_empty() && now.boot_us.saturating_sub(self.begun_us) >= FORGET_US {
            return Err(Forgotten);
        }
        self.settle(stored, now, ledger, acks);
        Ok(())
    }

    /// The server has forgotten the session: what was written and not acknowledged is in doubt, the rest goes on from
    /// sequence 1 in a new session.
    pub(crate) fn restart(&mut self, session: u64, ledger: &mut Ledger) {
        for written in self.in_flight.drain(..) {
            ledger.doubt(written.bundle.load());
        }
        self.disconnected();
        (self.session, self.next_sequence, self.acked_sequence) = (session, 1, 0);
    }

    /// The server refused the content of this batch: its records are lost, an empty batch takes its place.
    pub(crate) fn refuse(&mut self, sequence: u64, ledger: &mut Ledger) -> u64 {
        let Some(written) = self.in_flight.iter_mut().find(|written| written.sequence == sequence) else { return 0 };
        let refused = std::mem::take(&mut written.bundle);
        ledger.lose_in_flight(refused.load());
        refused.records()
    }

    /// Gives up on batches first written at `cutoff_us` or before, which are in doubt and leave an empty one in their place, and
    /// on records that were accepted by then and never written, which are lost. Returns how many records.
    pub(crate) fn expire(&mut self, cutoff_us: u64, ledger: &mut Ledger) -> u64 {
        let mut expired = 0;
        for written in self.in_flight.iter_mut().filter(|written| written.first_us <= cutoff_us) {
            let over = std::mem::take(&mut written.bundle);
            expired += over.records();
            ledger.doubt(over.load());
        }
        let waiting = self.ready.iter_mut().chain([self.batcher.open_mut()]);
        for bundle in waiting {
            let gone = bundle.expire(cutoff_us);
            ledger.lose_queued(gone);
            expired += gone.records;
        }
        self.ready.retain(|bundle| !bundle.is_empty());
        expired
    }

    /// Takes the lane apart, in order, for another topology. What the old server stored up to `stored` counts as
    /// acknowledged, the rest is to be sent again; `elsewhere`: to another server, while the old one may have it.
    pub(crate) fn dissolve(
        &mut self,
        stored: u64,
        elsewhere: bool,
        now: Now,
        ledger: &mut Ledger,
        acks: &mut Acks,
    ) -> Vec<Bundle> {
        self.disconnected();
        self.settle(stored.min(self.next_sequence - 1), now, ledger, acks);
        if elsewhere { self.evacuate(None, |_| true, ledger) } else { self.unwind(ledger) }
    }

    /// Takes back what is not settled, to be batched again. Only while nothing is on the wire, and the server has said that
    /// it stored nothing of it.
    pub(crate) fn unwind(&mut self, ledger: &mut Ledger) -> Vec<Bundle> {
        debug_assert_eq!(self.on_wire, 0);
        let written: Vec<Bundle> = self.in_flight.drain(..).map(|written| written.bundle).collect();
        written.iter().for_each(|bundle| ledger.requeue(bundle.load()));
        self.next_sequence = self.acked_sequence + 1;
        self.with_waiting(written)
    }

    /// Takes records out, for other servers: first what was written and not acknowledged, marked, for this server (its number,
    /// if it goes on to be one of the client's) may have it; in their place the batches stay without them. Of these only those
    /// that have where to go; then all that was never written.
    pub(crate) fn evacuate(
        &mut self,
        server: Option<usize>,
        goes: impl Fn(&Item<'_>) -> bool,
        ledger: &mut Ledger,
    ) -> Vec<Bundle> {
        let mut written: Vec<Bundle> = self.in_flight.iter_mut().map(|written| written.bundle.split(&goes)).collect();
        for bundle in &mut written {
            ledger.move_on(bundle.load());
            bundle.mark(server);
        }
        self.with_waiting(written)
    }

    /// That server has nothing any more of what was written to it.
    pub(crate) fn forget(&mut self, server: usize) {
        let written = self.in_flight.iter_mut().map(|written| &mut written.bundle);
        written.chain(&mut self.ready).chain([self.batcher.open_mut()]).for_each(|bundle| bundle.forget(server));
    }

    fn with_waiting(&mut self, mut bundles: Vec<Bundle>) -> Vec<Bundle> {
        bundles.extend(self.ready.drain(..));
        bundles.push(self.batcher.take());
        bundles.retain(|bundle| !bundle.is_empty());
        bundles
    }

    /// Bytes of the longest body that is not settled.
    pub(crate) fn body_bytes_longest(&self) -> usize {
        self.bundles().map(Bundle::body_bytes).max().unwrap_or(0)
    }

    /// When the oldest record that is not settled was accepted.
    pub(crate) fn oldest_us(&self) -> Option<u64> {
        self.bundles().filter_map(Bundle::oldest_us).min()
    }

    /// Whether any record is not settled.
    pub(crate) fn has_records(&self) -> bool {
        self.bundles().any(|bundle| !bundle.is_empty())
    }

    /// Whether batches on this connection are not acknowledged.
    pub(crate) const fn awaits_acks(&self) -> bool {
        self.on_wire > 0
    }

    fn bundles(&self) -> impl Iterator<Item = &Bundle> {
        self.in_flight.iter().map(|written| &written.bundle).chain(&self.ready).chain([self.batcher.open()])
    }

    #[cfg(test)]
    pub(crate) const fn acked_any(&self) -> bool {
        self.acked_sequence > 0
    }

    /// What it has, counted afresh, after checking what must always hold.
    #[cfg(any(test, feature = "fuzzing", feature = "simulation"))]
    pub(crate) fn invariants(&self) -> Held {
        assert!(self.on_wire <= self.in_flight.len());
        let wire: u64 = self.in_flight.iter().take(self.on_wire).map(|written| written.frame_bytes).sum();
        assert_eq!(wire, self.on_wire_bytes);
        let sequences: Vec<u64> = self.in_flight.iter().map(|written| written.sequence).collect();
        let expected: Vec<u64> = (self.next_sequence - sequences.len() as u64..self.next_sequence).collect();
        assert_eq!(sequences, expected, "sequences are dense");
        assert!(self.acked_sequence < self.next_sequence);
        let waiting = || self.ready.iter().chain([self.batcher.open()]).map(Bundle::load);
        Held {
            queued: waiting().map(|load| load.records).sum(),
            queued_marked: waiting().map(|load| load.marked).sum(),
            in_flight: self.in_flight.iter().map(|written| written.bundle.records()).sum(),
            bytes: self.bundles().map(Bundle::cost_bytes).sum(),
            connections: 0,
        }
    }
}
