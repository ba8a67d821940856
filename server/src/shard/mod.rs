//! One shard: connections, sessions, the two logs and the analysis of one share of the sources.
//!
//! Sans-IO: bytes, messages and `now` come in, bytes to send and [`Command`]s go out. [`thread`] drives it with a ring,
//! tests drive it from memory. One shard lives on one thread; nothing here is shared but the statistics page.
//!
//! **Invariants.** A batch is stored, analysed and acknowledged, or refused with a named error, or a duplicate: never two
//! of these. An Ack goes out only after the batch is committed and analysed. A session has one connection at a time.
//! Nothing in [`Shard::received`] allocates once buffers have grown to their size.

mod alarms;
pub mod connection;
pub mod derived;
pub mod histogram;
pub mod merging;
pub mod messages;
pub mod page;
mod query;
pub mod session;
mod store;
pub mod thread;

#[cfg(test)]
mod tests;

pub use thread::{Driver, ShardConfig, StartingShard, start};

use crate::analytics::Analytics;
use crate::analytics::settings::Settings;
use crate::analytics::summary::page::SummaryPage;
use crate::analytics::verdicts::VerdictSet;
use crate::arena::Log;
use alarms::Alarms;
use bumpalo::Bump;
use bumpalo::collections::Vec as BumpVec;
use connection::{CONTROL_BODY_BYTES_MAX, Connection, Incoming, Refusal, UNSENT_BYTES_MAX};
use derived::{ClockReport, DerivedSender};
use hdrhistogram::Histogram;
use merging::{ACK_AT_ONCE_BYTES, ACK_WAIT_US, Merging};
use messages::{ConnectionTicket, Query, ShardReload, Topology, VerdictPage};
use page::{ShardStats, ShardTotals};
use postanalytics_protocol::frames::{
    Ack, ControlFrame, Goodbye, Hello, Pong, Stats, StoredSequence, Subject, VERDICTS_PER_FRAME_MAX, Verdict, Welcome,
    encode_verdicts,
};
use postanalytics_protocol::schema::v1::SCHEMA;
use postanalytics_protocol::{BatchBuilder, ErrorCode, FrameHeader, FrameKind, PROTOCOL_VERSION, Source, Step};
use session::{SessionKey, Sessions};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// Bytes that a client may have unacknowledged on one connection.
pub const WINDOW_BYTES: u64 = 4 << 20;
/// Most scratch memory of a batch.
const SCRATCH_BYTES_MAX: usize = 64 << 20;
/// A session without connection is kept at least this long: as long as a client may resend.
const SESSION_IDLE_US_MIN: u64 = 900_000_000;
/// A connection that is silent this long after Goodbye has nothing more to say.
const DRAIN_QUIET_US: u64 = 250_000;
/// Changes of verdicts that are applied in one turn: what they take of a connection's outbox is below a quarter of its limit.
const VERDICTS_PER_TURN_MAX: usize = 4096;
/// What is left of many changes waits this long for peers that still have to read what came before. Then they are too slow.
const VERDICTS_PATIENCE_US: u64 = 250_000;

/// By so much more than the time that passed wall time has gone on at a turn: the clock was set, and all verdicts hold for another time.
const CLOCK_STEP_US: u64 = 1_000_000;

/// Between two publications of the ack latencies.
const INTERVAL_US: u64 = 1_000_000;
/// Lines about closed connections in an interval; more would let a peer flood the log.
const LOG_LINES_PER_INTERVAL: u32 = 20;

/// The time, read once per turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// For deadlines, µs.
    pub monotonic_us: u64,
    /// Unix time, µs, never going back.
    pub wall_us: u64,
}

/// What the driver is to do with a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Send what is in the outbox, then close politely.
    Finish(u32),
    /// Close at once.
    Close(u32),
}

/// Use of the process and the thread, for Stats frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time of the process, µs.
    pub process_cpu_us: u64,
    /// Resident memory of the process, bytes.
    pub process_rss_bytes: u64,
    /// CPU time of the shard's thread, µs.
    pub thread_cpu_us: u64,
    /// Since the server started, µs.
    pub uptime_us: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Shard {
    id: u32,
    topology: Arc<Topology>,
    frame_deadline_us: u64,
    requests: Log,
    attacks: Log,
    /// Records with hits on their way to the attack log.
    attack_batch: BatchBuilder,
    analytics: Analytics,
    verdicts: VerdictSet,
    sessions: Sessions,
    connections: Vec<Option<Box<Connection>>>,
    connection_count: u64,
    commit_index: u64,
    /// Memory of a batch, or of what is written at the end of a turn: positions of hits, outgoing verdicts.
    scratch: Bump,
    /// Verdicts that are still to be applied. More than a turn applies are there only after a reload that takes many back.
    verdict_inbox: VecDeque<Verdict>,
    /// Those of them by which detectors list somebody, renewals too: while some are left over, the guards count rather too many.
    listings_left: usize,
    /// Monotonic time until which changes that were left over wait for peers that are still reading; 0 if none were.
    verdicts_wait_until_us: u64,
    /// Links that owe an Ack or a Stats frame at the end of this turn.
    replies: Vec<u32>,
    /// One of them owes a Stats frame.
    stats_owed: bool,
    /// Whether turns and Acks wait.
    pub merging: Merging,
    /// Links that owe an Ack that waits, or did when they came here.
    waiting: Vec<u32>,
    /// Monotonic time at which the first of them came.
    waiting_since_us: u64,
    /// Since when the Acks that this turn sends were owed, of those that had waited.
    waited_since_us: Vec<u64>,
    /// Links with bytes in their outbox.
    dirty: Vec<u32>,
    /// Links that get the verdict snapshot.
    snapshots: Vec<u32>,
    commands: VecDeque<Command>,
    query: Option<Box<Query>>,
    /// Monotonic time until which no more is said of requests that cannot be explained.
    failures_quiet_until_us: u64,
    /// The way to the correlator; `None`: nobody wants to know.
    derived: Option<DerivedSender>,
    alarms: Alarms,
    draining: bool,
    /// Wall time less monotonic time at the last turn, µs.
    wall_ahead_us: u64,
    stats: ShardStats,
    /// Lines about closed connections that may still be logged in this interval.
    log_lines_left: u32,
    /// Monotonic time at which the ack latencies are published and begun anew, and log lines are allowed again.
    interval_ends_us: u64,
    ack_latency: Histogram<u64>,
    totals: ShardTotals,
    /// An interval is over: the totals are to be published.
    totals_due: bool,
    /// Verdicts of detectors that were decided and written in this turn.
    verdicts_written: u64,
    /// For the simulation: copies of what was committed, if it wants them. A frame may be evicted in the turn it came in.
    #[cfg(feature = "simulation")]
    pub committed: Option<Vec<(crate::arena::SlabHandle, crate::arena::PlaceHeader, Vec<u8>)>>,
}

impl Shard {
    /// A shard over two mapped logs.
    pub fn new(
        id: u32,
        topology: Arc<Topology>,
        frame_deadline: Duration,
        requests: Log,
        attacks: Log,
        analytics: Analytics,
    ) -> Self {
        let scratch = Bump::with_capacity(256 << 10);
        scratch.set_allocation_limit(Some(SCRATCH_BYTES_MAX));
        let ack_latency = Histogram::new_with_bounds(100, 60_000_000_000, 3);
        Self {
            id,
            topology,
            frame_deadline_us: frame_deadline.as_micros() as u64,
            requests,
            attacks,
            attack_batch: BatchBuilder::with_capacity(1024, 1 << 20),
            analytics,
            verdicts: VerdictSet::default(),
            sessions: Sessions::default(),
            connections: Vec::new(),
            connection_count: 0,
            commit_index: 0,
            scratch,
            verdict_inbox: VecDeque::with_capacity(64),
            listings_left: 0,
            verdicts_wait_until_us: 0,
            replies: Vec::with_capacity(1024),
            stats_owed: false,
            merging: Merging::default(),
            waiting: Vec::with_capacity(1024),
            waiting_since_us: 0,
            waited_since_us: Vec::with_capacity(1024),
            dirty: Vec::with_capacity(1024),
            snapshots: Vec::new(),
            commands: VecDeque::with_capacity(64),
            query: None,
            failures_quiet_until_us: 0,
            derived: None,
            alarms: Alarms::default(),
            draining: false,
            wall_ahead_us: 0,
            stats: ShardStats::default(),
            log_lines_left: LOG_LINES_PER_INTERVAL,
            interval_ends_us: 0,
            totals: ShardTotals::default(),
            totals_due: false,
            verdicts_written: 0,
            ack_latency: ack_latency.unwrap_or_else(|_| unreachable!("the bounds are constants that hold")),
            #[cfg(feature = "simulation")]
            committed: None,
        }
    }

    /// From now on the correlator is told what happens.
    pub fn connect_correlator(&mut self, derived: DerivedSender) {
        self.derived = Some(derived);
    }

    /// Adopts a connection on `link`: closes an older one of the same session, then says Welcome.
    pub fn adopt(&mut self, link: u32, hello: &Hello, session: u64, ticket: Arc<ConnectionTicket>, now: Now) {
        self.stats.connections_adopted += 1;
        self.connection_count += 1;
        let key = SessionKey { node: hello.node, session };
        let max_body_bytes = self.topology.max_body_bytes;
        let Some(position) = self.sessions.open(key) else {
            // Not part of any session: the position is never used, for the connection is over.
            let mut connection = Connection::new(ticket, u32::MAX, hello.replay, max_body_bytes, now.monotonic_us);
            let text = format!("{} sessions are known, more are not kept; come back later", self.sessions.len());
            self.end(link, &mut connection, &Refusal::of_connection(ErrorCode::Overloaded, text), now);
            self.put(link, Box::new(connection));
            return;
        };
        if let Some(older) = self.sessions.at(position).link {
            let text = "a newer connection of the same node, session and shard took over";
            self.refuse(older, &Refusal::of_connection(ErrorCode::Replaced, text), now);
        }
        let session = self.sessions.at(position);
        session.link = Some(link);
        session.connections += 1;
        let mut connection = Connection::new(ticket, position, hello.replay, max_body_bytes, now.monotonic_us);
        self.welcome(&key, position, &mut connection, now);
        self.snapshots.push(link);
        self.dirty.push(link);
        self.put(link, Box::new(connection));
        if self.draining {
            self.goodbye(link, now);
        }
    }

    /// Takes bytes of a connection.
    pub fn received(&mut self, link: u32, bytes: &[u8], now: Now) {
        let Some(mut connection) = self.take(link) else { return };
        connection.received_us = now.monotonic_us;
        let mut input = bytes;
        while !connection.over && !connection.leaving {
            let step = connection.assembler.step(&mut input).map_err(Refusal::from);
            let outcome = step.and_then(|step| match step {
                Step::NeedMore => Ok(false),
                Step::Header(header) => self.frame_begins(&mut connection, header, now).map(|()| true),
                Step::Body(came, piece) => {
                    match &connection.incoming {
                        Incoming::Batch(header, place) => self.requests.fill(place, came, piece, self.read_soon(header)),
                        Incoming::Control(_) => connection.control_body.extend_from_slice(piece),
                        Incoming::Duplicate(_) | Incoming::Nothing => {}
                    }
                    Ok(true)
                }
                Step::Whole(body) => self.frame_ends(link, &mut connection, Some(body), now).map(|()| true),
                Step::End => self.frame_ends(link, &mut connection, None, now).map(|()| true),
            });
            match outcome {
                Ok(true) => {}
                Ok(false) => break,
                Err(refusal) => self.end(link, &mut connection, &refusal, now),
            }
        }
        if connection.assembler.is_idle() {
            connection.frame_since_us = 0;
        } else if connection.frame_since_us == 0 {
            connection.frame_since_us = now.monotonic_us;
        }
        self.put(link, connection);
    }

    /// The peer sends nothing more. It may still read: it gets the Acks that it is owed.
    pub fn peer_closed(&mut self, link: u32) {
        if let Some(mut connection) = self.take(link) {
            self.give_up_frame(&mut connection);
            connection.leaving = true;
            self.dirty.push(link);
            self.put(link, connection);
        }
    }

    /// The connection broke.
    pub fn broken(&mut self, link: u32) {
        if let Some(mut connection) = self.take(link) {
            connection.over = true;
            self.give_up_frame(&mut connection);
            self.put(link, connection);
        }
        self.commands.push_back(Command::Close(link));
    }

    /// The link is closed and its number free.
    pub fn link_gone(&mut self, link: u32, now: Now) {
        let Some(mut connection) = self.take(link) else { return };
        self.give_up_frame(&mut connection);
        self.connection_count -= 1;
        if connection.session != u32::MAX {
            self.sessions.leave(connection.session, link, now.monotonic_us);
        }
    }

    /// Everything handed over by [`Self::outbox`] was sent.
    pub fn sent(&mut self, link: u32) {
        if let Some(Some(connection)) = self.connections.get_mut(link as usize) {
            connection.in_flight_bytes = 0;
            if !connection.outbox.is_empty() || connection.leaving {
                self.dirty.push(link);
            }
        }
    }

    /// Sets or takes back a verdict by hand at the end of this turn, or of a later one if very many came before. It ends `duration_us`
    /// from now by the shard's clock, which need not show what the system's does.
    pub fn set_verdict(&mut self, verdict: Verdict, duration_us: u64, now: Now) {
        self.listings_left += usize::from(is_listing(&verdict));
        self.verdict_inbox.push_back(Verdict { until_us: now.wall_us.saturating_add(duration_us), ..verdict });
    }

    /// How long the next turn may wait for the verdicts that are still to be applied, µs: not at all, but for peers that still have to
    /// read what came before. That they have read it wakes the shard. `None`: none are to be applied.
    pub fn verdicts_wait_us(&self, now: Now) -> Option<u64> {
        if self.verdict_inbox.is_empty() {
            return None;
        }
        let wait_us = self.verdicts_wait_until_us.saturating_sub(now.monotonic_us);
        Some(if wait_us > 0 && self.some_peer_reads_slowly() { wait_us } else { 0 })
    }

    /// Fills a page of the live verdicts.
    pub fn list_verdicts(&self, page: &mut VerdictPage) {
        let room = page.verdicts.capacity() - page.verdicts.len();
        page.next = self.verdicts.slice(page.from, room, |verdict| {
            if page.subject.is_none_or(|subject| verdict.subject == subject) {
                page.verdicts.push(verdict);
            }
        });
    }

    /// Fills a page of counters; if none are kept it stays empty.
    pub fn fill_summary(&self, page: &mut SummaryPage) {
        if let Some(summary) = &self.analytics.summary {
            page.fill(summary);
        }
    }

    /// Goes on with other settings and deadlines.
    pub fn reload(&mut self, reload: &ShardReload) {
        self.frame_deadline_us = reload.frame_deadline.as_micros() as u64;
        if let Some(analytics) = &reload.analytics {
            self.analytics.reload(analytics);
            self.free_exempt(&analytics.settings);
        }
    }

    /// Takes back, at the end of this turn and the next few, all verdicts on sources that are on the allowlist now, and what detectors said of
    /// those that are trusted proxies now.
    fn free_exempt(&mut self, settings: &Settings) {
        let is_freed = |verdict: &Verdict| match verdict.subject {
            Subject::Source(bytes) => {
                let source = Source::of_bytes(&bytes);
                settings.is_allowlisted(source) || verdict.detector != 0 && settings.is_trusted_proxy(source)
            }
            Subject::Session(_) => false,
        };
        self.verdict_inbox.retain(|verdict| verdict.action.is_none() || !is_freed(verdict));
        self.listings_left = self.verdict_inbox.iter().filter(|verdict| is_listing(verdict)).count();
        let waiting = self.verdict_inbox.len();
        let inbox = &mut self.verdict_inbox;
        self.verdicts.slice(0, usize::MAX, |verdict| {
            if is_freed(&verdict) {
                inbox.push_back(Verdict { action: None, ..verdict });
            }
        });
        let freed = self.verdict_inbox.len() - waiting;
        if freed > 0 {
            tracing::info!(
                shard = self.id,
                freed,
                "listed sources are on the allowlist now, or are trusted proxies that detectors had listed: they are taken off"
            );
        }
    }

    /// Says Goodbye to everyone and from now on to everyone who comes.
    pub fn drain(&mut self, now: Now) {
        self.draining = true;
        for link in 0..self.connections.len() as u32 {
            self.goodbye(link, now);
        }
    }

    /// Whether the drain is done: nobody is left.
    pub const fn is_drained(&self) -> bool {
        self.draining && self.connection_count == 0
    }

    /// Looks at deadlines. Call a few times a second.
    pub fn tick(&mut self, now: Now) {
        for link in 0..self.connections.len() as u32 {
            let Some(Some(connection)) = self.connections.get(link as usize) else { continue };
            if connection.over || connection.leaving {
                continue;
            }
            let (since_us, received_us) = (connection.frame_since_us, connection.received_us);
            if since_us != 0 && since_us + self.frame_deadline_us <= now.monotonic_us {
                let waited_ms = (now.monotonic_us - since_us) / 1000;
                let text = format!("a frame was begun {waited_ms} ms ago and is not whole");
                self.stats.connections_shed += 1;
                self.refuse(link, &Refusal::of_connection(ErrorCode::FrameTimeout, text), now);
            } else if self.draining && since_us == 0 && received_us + DRAIN_QUIET_US <= now.monotonic_us {
                self.leave(link);
            }
        }
        self.verdicts.expire(now.wall_us);
        self.analytics.engine.alerts.sweep(now.wall_us);
        let idle_us = SESSION_IDLE_US_MIN.max(self.stats().timeframe_us());
        self.sessions.sweep(now.monotonic_us.saturating_sub(idle_us));
        if now.monotonic_us >= self.interval_ends_us {
            self.interval_ends_us = now.monotonic_us + INTERVAL_US;
            self.log_lines_left = LOG_LINES_PER_INTERVAL;
            self.publish_ack_latency();
            self.tell_clocks();
            self.analytics.engine.alerts.report_moved();
            self.totals_due = true;
            self.stats.hottest_source_permille =
                self.analytics.summary.as_ref().map_or(0, |summary| summary.hot.hottest_permille());
            let stats = self.stats();
            self.alarms.look(self.id, &stats, now.monotonic_us);
        }
    }

    /// Whether [`Self::tick`] should come soon: someone is in the middle of a frame, or the drain is on.
    pub fn has_deadlines(&self) -> bool {
        self.draining || self.requests.usage().open_places > 0
    }

    /// Whether a Stats frame is owed, for which [`Self::end_turn`] needs the usage.
    pub const fn wants_usage(&self) -> bool {
        self.stats_owed
    }

    /// How long the Acks that wait may still do so, µs; `None`: none wait.
    pub fn acks_wait_us(&self, now: Now) -> Option<u64> {
        if self.waiting.is_empty() {
            return None;
        }
        // Verdicts go to everybody, with the Ack.
        let go = self.draining || !self.merging.acks_wait() || self.verdicts_wait_us(now) == Some(0);
        Some(if go { 0 } else { (self.waiting_since_us + ACK_WAIT_US).saturating_sub(now.monotonic_us) })
    }

    /// For how many messages a turn waits, if it does: not while there is more to say as soon as something was sent.
    pub fn gathered(&self) -> Option<u32> {
        self.merging.gathered().filter(|_| !self.draining && self.snapshots.is_empty())
    }

    /// Ends a turn: at most one Ack per connection, verdicts to all. Returns how many Acks are going out for what came in this turn.
    pub fn end_turn(&mut self, usage: Usage, now: Now) -> u64 {
        if self.acks_wait_us(now) == Some(0) {
            self.replies.append(&mut self.waiting);
        }
        let acks = self.write_replies(usage, now);
        self.verdicts_written = 0;
        self.write_verdicts(now);
        self.follow_clock(now);
        self.write_snapshots(now);
        self.analytics.guards.listed = self.verdicts.listed() + self.listings_left;
        if let Some(derived) = &mut self.derived {
            derived.send(&mut self.analytics);
        }
        self.stats.turns += 1;
        self.reset_scratch();
        acks
    }

    /// Tells the correlator what was gathered, if a box is free. Returns how many events still wait for one.
    pub fn tell_correlator(&mut self) -> u64 {
        let Some(derived) = &mut self.derived else { return 0 };
        derived.send(&mut self.analytics);
        derived.waiting(&self.analytics)
    }

    /// Drops the events that wait for the correlator, and counts them. Returns how many they were.
    pub fn give_up_untold(&mut self) -> u64 {
        self.derived.as_mut().map_or(0, |derived| derived.give_up(&mut self.analytics))
    }

    /// Nobody holds anything in the scratch memory. After every batch, so that the next one finds it in the cache.
    fn reset_scratch(&mut self) {
        self.stats.scratch_bytes_peak = self.stats.scratch_bytes_peak.max(self.scratch.allocated_bytes() as u64);
        self.scratch.reset();
    }

    /// Whether this turn sends Acks, or verdicts that its bytes decided: then [`Self::acked`] is to be called.
    pub fn has_answered(&self, acks: u64) -> bool {
        acks > 0 || self.verdicts_written > 0 || !self.waited_since_us.is_empty()
    }

    /// Notes how long the Acks of a turn took, from the turn that read the bytes that they answer first to here, and with them the verdicts that the bytes of
    /// this turn decided. `acks` of them answer what came since `turn_us`, the others had waited.
    pub fn acked(&mut self, acks: u64, turn_us: u64, now_us: u64) {
        let took_us = now_us.saturating_sub(turn_us);
        if acks > 0 {
            // None would still move the smallest and the largest.
            self.ack_latency.saturating_record_n(took_us * 1000, acks);
        }
        self.totals.ack_latency.record(took_us, acks);
        for since_us in self.waited_since_us.drain(..) {
            let took_us = now_us.saturating_sub(since_us);
            self.ack_latency.saturating_record(took_us * 1000);
            self.totals.ack_latency.record(took_us, 1);
        }
        self.totals.verdict_latency.record(took_us, std::mem::take(&mut self.verdicts_written));
    }

    /// What is to be published, once an interval.
    pub fn take_totals(&mut self) -> Option<ShardTotals> {
        let alerts = self.analytics.engine.counters.fired;
        std::mem::take(&mut self.totals_due).then_some(ShardTotals { alerts, ..self.totals })
    }

    /// Links whose outbox has bytes, or which are to be closed once it is empty.
    pub fn take_dirty(&mut self) -> Option<u32> {
        self.dirty.pop()
    }

    /// The bytes to hand over for a link; `None` if there are none. Call only when the link can send: what is returned
    /// counts as handed over.
    pub fn outbox(&mut self, link: u32) -> Option<&mut Vec<u8>> {
        let connection = self.connections.get_mut(link as usize)?.as_mut().filter(|connection| !connection.over)?;
        if connection.outbox.is_empty() {
            let owes = connection.ack_since_us > 0 || connection.stats_due.is_some() || connection.in_flight_bytes > 0;
            if connection.leaving && !owes {
                connection.over = true;
                self.commands.push_back(Command::Finish(link));
            }
            return None;
        }
        connection.in_flight_bytes = connection.outbox.len();
        Some(&mut connection.outbox)
    }

    /// The last bytes of a link that is to be finished.
    pub fn last_words(&mut self, link: u32) -> Vec<u8> {
        match self.connections.get_mut(link as usize) {
            Some(Some(connection)) => std::mem::take(&mut connection.outbox),
            _ => Vec::new(),
        }
    }

    /// What the driver is to do next.
    pub fn take_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    /// The counters now, but for those that only the driver knows.
    pub fn stats(&self) -> ShardStats {
        let (requests, attacks) = (self.requests.usage(), self.attacks.usage());
        let engine = &self.analytics.engine;
        ShardStats {
            alerts_raised: engine.counters.fired.iter().sum(),
            alerts_cut_short: engine.alerts.cut_short,
            events_late: engine.counters.late.iter().sum(),
            records_time_impossible: self.analytics.odd.times,
            records_method_unknown: self.analytics.odd.methods,
            records_hit_type_unknown: self.analytics.odd.hit_types,
            records_path_long: self.analytics.odd.paths,
            keys_live: engine.table.live() as u64,
            keys_max: engine.table.capacity() as u64,
            keys_evicted: engine.counters.keys_evicted,
            keys_evicted_hot: engine.counters.keys_evicted_hot,
            keys_evicted_for_lists: engine.counters.keys_evicted_for_lists,
            key_lists_bytes: engine.table.pool.used_bytes() as u64,
            key_list_entries_dropped: engine.table.pool.entries_dropped,
            key_lists_bytes_max: engine.table.pool.bytes() as u64,
            keys_overwritten: engine.table.probation_overwritten,
            hits_suppressed: self.analytics.hits.as_ref().map_or(0, |sampler| sampler.suppressed),
            listings_allowed: self.analytics.guards.objections.allowed,
            listings_real_ip_suspect: self.analytics.guards.objections.real_ip_suspect,
            listings_too_many: self.analytics.guards.objections.too_many,
            listings_no_room: self.analytics.guards.objections.no_room + self.verdicts.refused(),
            derived_lost: self.derived.as_ref().map_or(0, |derived| derived.lost(&self.analytics)),
            connections: self.connection_count,
            records_stored: requests.records_stored,
            bytes_stored: requests.bytes_stored,
            records_live: requests.records_live,
            records_evicted: requests.records_evicted,
            attack_records_stored: attacks.records_stored,
            attack_records_live: attacks.records_live,
            open_places: requests.open_places,
            open_place_bytes: requests.open_bytes,
            places_void: requests.places_void,
            sessions: self.sessions.len() as u64,
            verdicts_live: self.verdicts.len() as u64,
            verdicts_made: self.verdicts.made(),
            verdicts_displaced: self.verdicts.displaced(),
            arena_bytes_total: requests.bytes_total + attacks.bytes_total,
            arena_bytes_used: requests.bytes_used + attacks.bytes_used,
            oldest_arrival_us: requests.oldest_arrival_us,
            newest_arrival_us: requests.newest_arrival_us,
            ..self.stats
        }
    }

    /// The analysis, for tests.
    pub const fn analytics(&mut self) -> &mut Analytics {
        &mut self.analytics
    }

    /// The request log, for tests and simulation.
    pub const fn requests(&self) -> &Log {
        &self.requests
    }

    /// The attack log, for simulation.
    pub const fn attacks(&self) -> &Log {
        &self.attacks
    }

    /// Panics if an invariant is broken. For tests and simulation.
    pub fn invariants(&self) {
        self.requests.invariants();
        self.attacks.invariants();
        let stats = self.stats();
        let accounted = stats.records_stored + stats.records_rejected + stats.records_duplicate;
        assert_eq!(stats.records_received, accounted, "received = stored + rejected + duplicate");
        assert_eq!(stats.records_stored, stats.records_live + stats.records_evicted, "stored = live + evicted");
        let connections = self.connections.iter().flatten();
        let open = connections.filter(|connection| matches!(connection.incoming, Incoming::Batch(..))).count();
        assert_eq!(stats.open_places, open as u64, "every open place has its connection");
        let done = self.connections.iter().flatten().filter(|connection| connection.over || connection.leaving);
        for connection in done {
            assert!(matches!(connection.incoming, Incoming::Nothing), "a connection that is over holds no place");
        }
        let listings = self.verdict_inbox.iter().filter(|verdict| is_listing(verdict)).count();
        assert_eq!(self.listings_left, listings, "listings that wait");
    }

    fn take(&mut self, link: u32) -> Option<Box<Connection>> {
        self.connections.get_mut(link as usize)?.take()
    }

    fn put(&mut self, link: u32, connection: Box<Connection>) {
        let index = link as usize;
        if self.connections.len() <= index {
            self.connections.resize_with(index + 1, || None);
        }
        self.connections[index] = Some(connection);
    }

    fn welcome(&mut self, key: &SessionKey, position: u32, connection: &mut Connection, now: Now) {
        let topology = &self.topology;
        let sequence = self.sessions.at(position).highest;
        Welcome {
            package: topology.package,
            server_id: topology.server_id,
            deployment_id: topology.deployment_id,
            epoch: topology.epoch,
            shard_count: topology.shard_count,
            shard: self.id,
            routing_seed: topology.routing_seed,
            identity_key: topology.identity_key,
            server_us: now.wall_us,
            window_bytes: WINDOW_BYTES,
            max_body_bytes: topology.max_body_bytes,
            protocol: u16::from(PROTOCOL_VERSION),
            schema: SCHEMA,
            stored: vec![StoredSequence { epoch: topology.epoch, shard: self.id, sequence }],
        }
        .encode(key.session, now.wall_us, &mut connection.outbox);
    }

    fn frame_begins(&mut self, connection: &mut Connection, header: FrameHeader, now: Now) -> Result<(), Refusal> {
        if header.session != connection.ticket.session {
            let text =
                format!("the frame is of session {:016x}, Hello was of {:016x}", header.session, connection.ticket.session);
            return Err(Refusal::of_connection(ErrorCode::WrongSession, text));
        }
        if header.kind == FrameKind::Batch {
            return self.batch_begins(connection, header, now);
        }
        if matches!(header.kind, FrameKind::Hello | FrameKind::Welcome | FrameKind::Ack | FrameKind::Verdicts | FrameKind::Stats)
        {
            return Err(Refusal::of_unexpected(header.kind));
        }
        if header.body_bytes > CONTROL_BODY_BYTES_MAX {
            let text = format!("a control frame of {} bytes, the limit is {CONTROL_BODY_BYTES_MAX}", header.body_bytes);
            return Err(Refusal::of_connection(ErrorCode::BodyTooLong, text));
        }
        connection.control_body.clear();
        connection.incoming = Incoming::Control(header);
        Ok(())
    }

    /// The body is whole and its CRC holds. It is `whole`, or was put together where it belongs.
    fn frame_ends(&mut self, link: u32, connection: &mut Connection, whole: Option<&[u8]>, now: Now) -> Result<(), Refusal> {
        connection.frame_since_us = 0;
        match std::mem::replace(&mut connection.incoming, Incoming::Nothing) {
            Incoming::Nothing => Ok(()),
            Incoming::Batch(header, place) => {
                self.store(connection, &header, place, whole, now)?;
                self.owe_ack(link, connection, header.body_bytes, now);
                Ok(())
            }
            Incoming::Duplicate(header) => {
                let records = u64::from(store::believable_count(&header));
                self.stats.records_received += records;
                self.stats.records_duplicate += records;
                self.sessions.at(connection.session).records_duplicate += records;
                self.owe_ack(link, connection, header.body_bytes, now);
                Ok(())
            }
            Incoming::Control(header) => {
                let frame = ControlFrame::decode(&header, whole.unwrap_or(&connection.control_body))?;
                self.control_frame(link, connection, &header, frame, now)
            }
        }
    }

    fn control_frame(
        &mut self,
        link: u32,
        connection: &mut Connection,
        header: &FrameHeader,
        frame: ControlFrame,
        now: Now,
    ) -> Result<(), Refusal> {
        match frame {
            ControlFrame::Ping(ping) => {
                Pong { token: ping.token }.encode(header.session, now.wall_us, &mut connection.outbox);
                // A turn may bring a hundred thousand of them.
                if self.dirty.last() != Some(&link) {
                    self.dirty.push(link);
                }
                self.check_unsent(connection)
            }
            ControlFrame::StatsRequest(request) => {
                if connection.stats_due.replace(request.token).is_none() {
                    self.stats_owed = true;
                    self.replies.push(link);
                }
                Ok(())
            }
            ControlFrame::Pong(_) => Ok(()),
            ControlFrame::Goodbye(_) => {
                connection.leaving = true;
                self.dirty.push(link);
                Ok(())
            }
            ControlFrame::Error(error) => {
                if self.may_log() {
                    let peer = connection.ticket.peer;
                    tracing::warn!(%peer, code = error.code, text = error.text, "a client ended its connection with an error");
                }
                connection.leaving = true;
                self.dirty.push(link);
                Ok(())
            }
            ControlFrame::Hello(_)
            | ControlFrame::Welcome(_)
            | ControlFrame::Ack(_)
            | ControlFrame::Verdicts(_)
            | ControlFrame::Stats(_) => Err(Refusal::of_unexpected(header.kind)),
        }
    }

    /// Whether a line about a closed connection may be logged now.
    fn may_log(&mut self) -> bool {
        let may = self.log_lines_left > 0;
        self.log_lines_left -= u32::from(may);
        may
    }

    /// A batch of so many bytes is to be acknowledged.
    fn owe_ack(&mut self, link: u32, connection: &mut Connection, body_bytes: u32, now: Now) {
        let is_large = body_bytes >= ACK_AT_ONCE_BYTES;
        let intake = &mut self.merging.intake;
        *(if is_large { &mut intake.large } else { &mut intake.small }) += 1;
        intake.bytes += u64::from(body_bytes);
        if std::mem::replace(&mut connection.seen_look, self.merging.looks) != self.merging.looks {
            intake.connections += 1;
        }
        let may_wait = self.merging.acks_wait() && !is_large;
        let is_first = connection.ack_since_us == 0;
        if is_first {
            connection.ack_since_us = now.monotonic_us.max(1);
        }
        if is_first && may_wait {
            connection.ack_waits = true;
            if self.waiting.is_empty() {
                self.waiting_since_us = now.monotonic_us;
            }
            self.waiting.push(link);
        }
        if connection.ack_waits && connection.ack_turn_us != now.monotonic_us {
            connection.ack_turn_us = now.monotonic_us;
            self.merging.due += 1;
        }
        if !may_wait {
            let waited = std::mem::take(&mut connection.ack_waits);
            self.merging.sent += u64::from(waited);
            if is_first || waited {
                self.replies.push(link);
            }
        }
    }

    fn write_replies(&mut self, usage: Usage, now: Now) -> u64 {
        let mut acks = 0;
        for at in 0..self.replies.len() {
            let link = self.replies[at];
            let Some(mut connection) = self.take(link) else { continue };
            if connection.over {
                self.put(link, connection);
                continue;
            }
            let session = connection.ticket.session;
            let since_us = std::mem::take(&mut connection.ack_since_us);
            if since_us == 0 && connection.stats_due.is_none() {
                // It waited, and went out with something else.
                self.put(link, connection);
                continue;
            }
            if since_us > 0 {
                let sequence = self.sessions.at(connection.session).highest;
                Ack { sequence }.encode(session, now.wall_us, &mut connection.outbox);
                if since_us < now.monotonic_us {
                    self.waited_since_us.push(since_us);
                } else {
                    acks += 1;
                }
                self.merging.sent += u64::from(std::mem::take(&mut connection.ack_waits));
            }
            if let Some(token) = connection.stats_due.take() {
                self.stats_frame(token, connection.session, usage).encode(session, now.wall_us, &mut connection.outbox);
            }
            self.dirty.push(link);
            if let Err(refusal) = self.check_unsent(&connection) {
                self.end(link, &mut connection, &refusal, now);
            }
            self.put(link, connection);
        }
        self.replies.clear();
        self.stats_owed = false;
        acks
    }

    fn stats_frame(&mut self, token: u64, session: u32, usage: Usage) -> Stats {
        let stats = self.stats();
        let session = self.sessions.at(session);
        Stats {
            token,
            process_cpu_us: usage.process_cpu_us,
            process_rss_bytes: usage.process_rss_bytes,
            uptime_us: usage.uptime_us,
            session_records_stored: session.records_stored,
            session_records_duplicate: session.records_duplicate,
            session_records_rejected: session.records_rejected,
            shard_records_received: stats.records_received,
            shard_records_stored: stats.records_stored,
            shard_records_rejected: stats.records_rejected,
            shard_records_duplicate: stats.records_duplicate,
            shard_records_live: stats.records_live,
            shard_records_evicted: stats.records_evicted,
            shard_timeframe_us: stats.timeframe_us(),
            shard_cpu_us: usage.thread_cpu_us,
        }
    }

    /// Applies the verdicts of this turn and tells every connection. A reload may take back tens of thousands: all at once they would
    /// be more than may wait for a peer, and every connection would be closed for being too slow. So what is over the limit of a
    /// turn follows as fast as peers read. Verdicts that come when none is left over wait for nobody.
    fn write_verdicts(&mut self, now: Now) {
        if self.verdicts_wait_us(now) != Some(0) {
            return;
        }
        // What was left over has waited for longer than this turn.
        let is_all_new = self.verdicts_wait_until_us == 0;
        {
            let mut changes = BumpVec::new_in(&self.scratch);
            let count = self.verdict_inbox.len().min(VERDICTS_PER_TURN_MAX);
            for verdict in self.verdict_inbox.drain(..count) {
                self.listings_left -= usize::from(is_listing(&verdict));
                self.verdicts.apply(verdict, |change| changes.push(change));
            }
            self.verdicts_wait_until_us = if self.verdict_inbox.is_empty() { 0 } else { now.monotonic_us + VERDICTS_PATIENCE_US };
            if is_all_new {
                self.verdicts_written = changes.iter().filter(|change| is_listing(change)).count() as u64;
            }
            if let Some(derived) = &mut self.derived {
                for change in &changes {
                    // They may be more than a box holds.
                    if derived.is_full_of_verdicts() {
                        derived.send(&mut self.analytics);
                    }
                    derived.verdict(*change, now.wall_us);
                }
            }
            for (link, connection) in self.connections.iter_mut().enumerate() {
                let Some(connection) = connection.as_mut().filter(|connection| !connection.over) else { continue };
                // Its whole set begins after this and holds the changes.
                if connection.snapshot_begins {
                    continue;
                }
                for part in changes.chunks(VERDICTS_PER_FRAME_MAX) {
                    // Past the limit it is closed below, and gets the whole set when it comes again.
                    if connection.unsent_bytes() > UNSENT_BYTES_MAX {
                        break;
                    }
                    let session = connection.ticket.session;
                    encode_verdicts(self.verdicts.sequence(), false, false, part, session, now.wall_us, &mut connection.outbox);
                }
                self.dirty.push(link as u32);
            }
        }
        self.end_slow_peers(now);
    }

    /// Whether a connection has much still to read.
    fn some_peer_reads_slowly(&self) -> bool {
        let is_slow = |connection: &Connection| !connection.over && connection.unsent_bytes() > UNSENT_BYTES_MAX / 4;
        self.connections.iter().flatten().any(|connection| is_slow(connection))
    }

    /// When wall time has stepped forward, verdicts end sooner than clients were told, and those that ended by the step are told by
    /// nobody: every connection gets the whole set again.
    fn follow_clock(&mut self, now: Now) {
        let ahead_us = now.wall_us.saturating_sub(now.monotonic_us);
        let before_us = std::mem::replace(&mut self.wall_ahead_us, ahead_us);
        if ahead_us < before_us.saturating_add(CLOCK_STEP_US) {
            return;
        }
        self.verdicts.expire(now.wall_us);
        for (link, connection) in (0..).zip(&mut self.connections) {
            let Some(connection) = connection.as_mut().filter(|connection| !connection.over) else { continue };
            if connection.snapshot_from.is_none() {
                self.snapshots.push(link);
            }
            (connection.snapshot_from, connection.snapshot_begins) = (Some(0), true);
        }
    }

    /// Sends every new connection the next piece of the whole set, as fast as it reads.
    fn write_snapshots(&mut self, now: Now) {
        let mut at = 0;
        while at < self.snapshots.len() {
            let link = self.snapshots[at];
            let connection = self.connections.get_mut(link as usize).and_then(Option::as_mut);
            let Some(connection) = connection.filter(|connection| !connection.over) else {
                self.snapshots.swap_remove(at);
                continue;
            };
            if connection.unsent_bytes() > UNSENT_BYTES_MAX / 4 {
                at += 1;
                continue;
            }
            let mut piece = BumpVec::new_in(&self.scratch);
            let from = connection.snapshot_from.unwrap_or(0);
            connection.snapshot_from = self.verdicts.slice(from, VERDICTS_PER_FRAME_MAX, |verdict| piece.push(verdict));
            let (begin, end) = (std::mem::take(&mut connection.snapshot_begins), connection.snapshot_from.is_none());
            let session = connection.ticket.session;
            encode_verdicts(self.verdicts.sequence(), begin, end, &piece, session, now.wall_us, &mut connection.outbox);
            self.dirty.push(link);
            if end {
                self.snapshots.swap_remove(at);
            } else {
                at += 1;
            }
        }
    }

    fn end_slow_peers(&mut self, now: Now) {
        for link in 0..self.connections.len() as u32 {
            let Some(Some(connection)) = self.connections.get(link as usize) else { continue };
            if let Err(refusal) = self.check_unsent(connection)
                && !connection.over
            {
                self.refuse(link, &refusal, now);
            }
        }
    }

    fn check_unsent(&self, connection: &Connection) -> Result<(), Refusal> {
        let unsent = connection.unsent_bytes();
        if unsent <= UNSENT_BYTES_MAX {
            return Ok(());
        }
        let text = format!("{unsent} bytes wait to be read, the limit is {UNSENT_BYTES_MAX}");
        Err(Refusal::of_connection(ErrorCode::PeerTooSlow, text))
    }

    fn goodbye(&mut self, link: u32, now: Now) {
        if let Some(Some(connection)) = self.connections.get_mut(link as usize)
            && !connection.over
            && !connection.leaving
        {
            Goodbye { retry_after_ms: 0 }.encode(connection.ticket.session, now.wall_us, &mut connection.outbox);
            connection.received_us = now.monotonic_us;
            self.dirty.push(link);
        }
    }

    fn leave(&mut self, link: u32) {
        if let Some(Some(connection)) = self.connections.get_mut(link as usize) {
            connection.leaving = true;
            self.dirty.push(link);
        }
    }

    /// Ends a connection that is not in hand.
    fn refuse(&mut self, link: u32, refusal: &Refusal, now: Now) {
        if let Some(mut connection) = self.take(link) {
            if !connection.over {
                self.end(link, &mut connection, refusal, now);
            }
            self.put(link, connection);
        }
    }

    /// Ends a connection with an Error frame. The Acks that it is owed go out before.
    fn end(&mut self, link: u32, connection: &mut Connection, refusal: &Refusal, now: Now) {
        connection.over = true;
        self.give_up_frame(connection);
        let session = connection.ticket.session;
        if std::mem::take(&mut connection.ack_since_us) > 0 {
            let sequence = self.sessions.at(connection.session).highest;
            Ack { sequence }.encode(session, now.wall_us, &mut connection.outbox);
        }
        refusal.encode(session, now.wall_us, &mut connection.outbox);
        self.stats.errors_sent += 1;
        if self.may_log() {
            tracing::info!(peer = %connection.ticket.peer, node = connection.ticket.name, error = refusal.code.name(),
                sequence = refusal.sequence, text = refusal.text, "connection closed");
        }
        self.commands.push_back(Command::Finish(link));
    }

    fn give_up_frame(&mut self, connection: &mut Connection) {
        if let Incoming::Batch(_, place) = std::mem::replace(&mut connection.incoming, Incoming::Nothing) {
            self.requests.void(place);
        }
    }

    /// Tells the correlator how the clocks of nodes go.
    fn tell_clocks(&mut self) {
        let Some(derived) = &mut self.derived else { return };
        for connection in self.connections.iter_mut().flatten() {
            if let Some(offset_us) = connection.clock_offset_us
                && derived.clock(ClockReport { node: connection.ticket.node, offset_us })
            {
                connection.clock_offset_us = None;
            }
        }
    }

    fn publish_ack_latency(&mut self) {
        let histogram = &self.ack_latency;
        self.stats.ack_latency_p50_ns = histogram.value_at_quantile(0.5);
        self.stats.ack_latency_p99_ns = histogram.value_at_quantile(0.99);
        self.stats.ack_latency_p999_ns = histogram.value_at_quantile(0.999);
        self.stats.ack_latency_max_ns = histogram.max();
        self.ack_latency.reset();
    }
}

/// Whether a detector lists somebody by this verdict.
const fn is_listing(verdict: &Verdict) -> bool {
    verdict.detector != 0 && verdict.action.is_some()
}
