//! What happened to every record, in numbers that add up.
//!
//! Two laws hold in every snapshot: `offered = accepted + refused` and
//! `accepted = acked + lost + in_doubt + queued + in_flight`. They can, because the queue keeps its own numbers and the last
//! published [`Ledger`] of the background thread under one lock. The ledger is no difference of totals: every record that
//! changes its state goes through one of its methods.

/// One consistent snapshot of a client's counters. Records unless the name says otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Given to `try_send`.
    pub offered: u64,
    /// Taken into the queue.
    pub accepted: u64,
    /// Refused because the queue had no room.
    pub refused_full: u64,
    /// Refused because no server would store a record so large.
    pub refused_too_large: u64,
    /// Refused for another reason: too many hits or extensions, or the client was closing.
    pub refused_other: u64,
    /// Stored and analysed by the server.
    pub acked: u64,
    /// Given up for sure: refused by the server for their content, or never written to any before their time was over.
    pub lost: u64,
    /// Written, but it will never be known whether the server, or one before it, stored them.
    pub in_doubt: u64,
    /// Waiting to be written.
    pub queued: u64,
    /// Written and not yet acknowledged.
    pub in_flight: u64,
    /// Bytes of memory that queued and in-flight records take.
    pub queue_bytes: u64,
    /// Batches written for the first time.
    pub batches_sent: u64,
    /// Batches written again after a break.
    pub batches_resent: u64,
    /// Connections that got as far as Welcome.
    pub connects: u64,
    /// Connections that did not.
    pub connect_errors: u64,
    /// Connections that ended after Welcome. `connects` less these are there now.
    pub disconnects: u64,
    /// Error frames received.
    pub errors_received: u64,
    /// Verdicts not kept, because a shard listed more than it may.
    pub verdicts_skipped: u64,
    /// How often a server was away for so long that its records went to the others.
    pub failovers: u64,
    /// Records that were written to one server and then sent to another, because the first went away before it acknowledged
    /// them; again if that happens again. Each carries `FLAG_MAYBE_STORED_ELSEWHERE`. Of several servers together holds
    /// `acked <= stored <= acked + in_doubt + maybe_stored_elsewhere`.
    pub maybe_stored_elsewhere: u64,
}

impl Counters {
    /// Records that the queue did not take.
    pub const fn refused(&self) -> u64 {
        self.refused_full + self.refused_too_large + self.refused_other
    }

    /// Records that postanalytics did not get, or may not have got. 0 means: it got everything.
    pub const fn tnt_errors(&self) -> u64 {
        self.refused() + self.lost + self.in_doubt
    }

    /// Whether both laws hold. They always do; tests say so.
    pub const fn laws_hold(&self) -> bool {
        self.offered == self.accepted + self.refused()
            && self.accepted == self.acked + self.lost + self.in_doubt + self.queued + self.in_flight
    }
}

/// The background thread's part of the counters: what became of the records that it took from the queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ledger {
    pub(crate) queued: u64,
    pub(crate) in_flight: u64,
    pub(crate) acked: u64,
    pub(crate) lost: u64,
    pub(crate) in_doubt: u64,
    /// Memory of `queued` and `in_flight` records.
    pub(crate) bytes: usize,
    pub(crate) batches_sent: u64,
    pub(crate) batches_resent: u64,
    pub(crate) connects: u64,
    pub(crate) connect_errors: u64,
    pub(crate) disconnects: u64,
    pub(crate) errors_received: u64,
    pub(crate) failovers: u64,
    pub(crate) maybe_stored_elsewhere: u64,
    /// Of those queued: written to another server before, which may have stored them.
    pub(crate) queued_marked: u64,
}

/// What a batch or a record adds to the sums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Load {
    pub(crate) records: u64,
    /// Of these: written to another server before, which may have stored them.
    pub(crate) marked: u64,
    pub(crate) bytes: usize,
}

impl Ledger {
    /// Taken from the queue.
    pub(crate) const fn take(&mut self, records: u64, bytes: usize) {
        self.queued += records;
        self.bytes += bytes;
    }

    /// Written to a socket for the first time.
    pub(crate) const fn send(&mut self, load: Load) {
        self.queued -= load.records;
        self.queued_marked -= load.marked;
        self.in_flight += load.records;
    }

    /// Back in the queue: the server that they were written to stored nothing of them.
    pub(crate) const fn requeue(&mut self, load: Load) {
        self.in_flight -= load.records;
        self.queued += load.records;
        self.queued_marked += load.marked;
    }

    /// Back in the queue for another server, although the one that they were written to may have stored them.
    pub(crate) const fn move_on(&mut self, load: Load) {
        self.maybe_stored_elsewhere += load.records;
        self.requeue(Load { marked: load.records, ..load });
    }

    /// Acknowledged.
    pub(crate) const fn ack(&mut self, load: Load) {
        self.in_flight -= load.records;
        self.acked += load.records;
        self.bytes -= load.bytes;
    }

    /// Given up before they were written here. Those that were written elsewhere are in doubt.
    pub(crate) const fn lose_queued(&mut self, load: Load) {
        self.queued -= load.records;
        self.queued_marked -= load.marked;
        self.give_up(load);
    }

    /// Refused by the server. Those that were written elsewhere are in doubt.
    pub(crate) const fn lose_in_flight(&mut self, load: Load) {
        self.in_flight -= load.records;
        self.give_up(load);
    }

    const fn give_up(&mut self, load: Load) {
        self.lost += load.records - load.marked;
        self.in_doubt += load.marked;
        self.bytes -= load.bytes;
    }

    /// Written, outcome unknown for good.
    pub(crate) const fn doubt(&mut self, load: Load) {
        self.in_flight -= load.records;
        self.in_doubt += load.records;
        self.bytes -= load.bytes;
    }

    /// The end, also of all connections: what was never written is lost, what was written is in doubt.
    pub(crate) const fn abandon(&mut self) {
        self.disconnects = self.connects;
        self.lost += self.queued - self.queued_marked;
        self.in_doubt += self.in_flight + self.queued_marked;
        (self.queued, self.queued_marked, self.in_flight, self.bytes) = (0, 0, 0, 0);
    }
}
