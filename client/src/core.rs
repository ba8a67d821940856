//! The client without its sockets: records, bytes and the time go in; bytes to write, wanted sockets and counters come out.
//!
//! Sans-IO, so that a test can drive it from a seed through every order of events. One owner, the background thread; no
//! clock, no locks. It rules over one [`Lane`] and one [`Connection`] per shard of the server:
//!
//! - Before the first Welcome nothing is known of the shards: there is one slot, which asks for any, and no record is routed.
//! - Welcome of the known topology: the lane goes on behind what the server has stored. Nothing is lost, nothing doubled.
//! - Welcome of another topology (the server was restarted or has another number of shards): every record that the old one
//!   did not store is routed afresh, hashed with the new identity key.
//! - A server that forgot a session that it had acknowledged: that lane starts a new session; what was written is in doubt.
//!
//! All lanes share one budget. A lane whose shard takes nothing, while the others do, may fill all of it with its records until
//! they are over their time limit, and then records of every shard are refused. That is a decision: shards of one server live
//! and die together, so a share for each lane would refuse records in ordinary bursts to guard against what hardly happens.

use crate::ack::{AckHook, Acks};
use crate::bundle::{Bundle, IdentityKey, Item};
use crate::config::Config;
use crate::connection::{Break, Connection, DRAIN_US, PINGS_MAX, Stage};
use crate::counters::Ledger;
use crate::denylist::{Denylist, ListHook, Lister};
use crate::lane::{Lane, Wire};
use crate::stats::ServerStats;
use crate::status::{ClientStatus, ServerStatus};
use crate::topology::{Topology, stored_of};
use postanalytics_protocol::PROTOCOL_VERSION;
use postanalytics_protocol::error::{ErrorCode, FrameError};
use postanalytics_protocol::frames::{
    ANY_SHARD, ControlFrame, ErrorFrame, Goodbye, Hello, PackageVersion, Ping, Pong, Stats, StatsRequest, Welcome,
};
use postanalytics_protocol::header::{FrameHeader, FrameKind};
use postanalytics_protocol::schema::v1::SCHEMA;
use std::sync::Arc;

/// Most shards of a server that this client speaks to, a lane each.
pub(crate) const SHARDS_MAX: u32 = 1024;
/// How often records over their time limit are looked for, µs.
const EXPIRY_US: u64 = 1_000_000;

/// The time, read once a turn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    /// The client's monotonic clock.
    pub(crate) clock_us: u64,
    /// Unix time.
    pub(crate) unix_us: u64,
}

struct Slot {
    lane: Lane,
    connection: Connection,
}

/// One request for statistics to every shard.
#[derive(Default)]
struct StatsRound {
    token: u64,
    /// The highest number asked for: the next round, if one is active.
    wanted_token: u64,
    active: bool,
    answers: Vec<Option<Stats>>,
    result: Option<(u64, ServerStats)>,
}

/// Everything that the background thread knows.
pub(crate) struct Core {
    config: Config,
    random: fastrand::Rng,
    session: u64,
    topology: Option<Topology>,
    slots: Vec<Slot>,
    ledger: Ledger,
    acks: Acks,
    lister: Lister,
    links: u64,
    flush_us: Option<u64>,
    stats: StatsRound,
    closing: bool,
    next_expiry_us: u64,
    last_error: String,
    status_changed: bool,
    oversize_reported: bool,
    reported: Reported,
}

/// What was last logged of the connection to the server: once per change, however many lanes there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reported {
    Nothing,
    Connected,
    Trouble,
}

impl Core {
    pub(crate) fn new(config: Config, seed: u64, hook: AckHook, denylist: Arc<Denylist>) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let session = random.u64(1..);
        let slots = vec![Slot { lane: Lane::new(session, &config), connection: Connection::default() }];
        Self {
            config,
            random,
            session,
            topology: None,
            slots,
            ledger: Ledger::default(),
            acks: Acks::new(hook),
            lister: Lister::new(denylist),
            links: 0,
            flush_us: None,
            stats: StatsRound::default(),
            closing: false,
            next_expiry_us: 0,
            last_error: String::new(),
            status_changed: true,
            oversize_reported: false,
            reported: Reported::Nothing,
        }
    }

    /// Whether records can be given to [`Self::take`]: the topology is known.
    pub(crate) const fn routes(&self) -> bool {
        self.topology.is_some()
    }

    /// Whether an urgent record would leave at once.
    pub(crate) fn sends(&self) -> bool {
        let Some(topology) = &self.topology else { return false };
        self.slots.iter().any(|slot| {
            let wire = Wire { window_bytes: slot.connection.window_bytes, key: &topology.key };
            slot.connection.is_open() && slot.connection.has_room() && slot.lane.would_write(&wire)
        })
    }

    /// Takes records from the queue and routes each to its lane.
    pub(crate) fn take(&mut self, bundle: &Bundle, now: Now) {
        self.ledger.take(bundle.records(), bundle.cost_bytes());
        bundle.items().for_each(|item| self.route(&item, now));
    }

    fn route(&mut self, item: &Item<'_>, now: Now) {
        let Some(topology) = &self.topology else { return debug_assert!(false, "routes() was asked before") };
        let shard = topology.shard_of(item.source());
        if self.slots[shard].lane.push(item, &topology.limits, now.clock_us).is_err() {
            self.ledger.lose_queued(1, item.cost_bytes());
            if !std::mem::replace(&mut self.oversize_reported, true) {
                let (bytes, limit) = (item.blob.len(), topology.limits.body_bytes_max);
                tracing::warn!(
                    bytes,
                    limit,
                    "a record is larger than the server takes and is lost; cap raw_body, or raise the server's limit"
                );
            }
        }
    }

    /// Records accepted until then do not wait for company.
    pub(crate) const fn flush(&mut self, until_us: Option<u64>) {
        self.flush_us = until_us;
    }

    /// Asks every shard for statistics; if that is under way, once more afterwards.
    pub(crate) fn ask_stats(&mut self, token: u64) {
        self.stats.wanted_token = self.stats.wanted_token.max(token);
        self.start_stats();
    }

    fn start_stats(&mut self) {
        if self.stats.wanted_token > self.stats.token && !self.stats.active {
            (self.stats.token, self.stats.active) = (self.stats.wanted_token, true);
            self.stats.answers = vec![None; self.slots.len()];
        }
    }

    /// No more records will come: lanes that have none stay closed.
    pub(crate) const fn close(&mut self) {
        self.closing = true;
    }

    /// Says Goodbye on every open lane: nothing new goes out there any more.
    pub(crate) fn say_goodbye(&mut self, now: Now) {
        for Slot { lane, connection } in &mut self.slots {
            if let Stage::Open { since_us } = connection.stage {
                Goodbye { retry_after_ms: 0 }.encode(lane.session(), now.unix_us, connection.out());
                let until_us = now.clock_us + DRAIN_US;
                connection.stage = Stage::Draining { since_us, until_us, retry_after_us: 0 };
                self.status_changed = true;
            }
        }
    }

    /// Does what is due: timers, new connections, batches to write. Call it at the end of every turn.
    pub(crate) fn advance(&mut self, now: Now) {
        for at in 0..self.slots.len() {
            self.check_timers(at, now);
        }
        if now.clock_us >= self.next_expiry_us {
            self.next_expiry_us = now.clock_us + EXPIRY_US;
            self.expire(now);
            self.lister.sweep(now.clock_us);
        }
        self.finish_stats();
        self.fill(now);
    }

    /// Encodes what may be written, as far as there is room ahead of the sockets. Returns whether anything was.
    pub(crate) fn fill(&mut self, now: Now) -> bool {
        let Some(topology) = &self.topology else { return false };
        let mut filled = false;
        for (at, slot) in self.slots.iter_mut().enumerate() {
            let (lane, connection) = (&mut slot.lane, &mut slot.connection);
            if connection.has_room()
                && let Some(token) = connection.pong_owed.take()
            {
                Pong { token }.encode(lane.session(), now.unix_us, connection.out());
                filled = true;
            }
            if !connection.is_open() {
                continue;
            }
            let unanswered = self.stats.answers.get(at).is_some_and(Option::is_none);
            if self.stats.active && unanswered && connection.stats_asked != self.stats.token {
                connection.stats_asked = self.stats.token;
                StatsRequest { token: self.stats.token }.encode(lane.session(), now.unix_us, connection.out());
                filled = true;
            }
            let wire = Wire { window_bytes: connection.window_bytes, key: &topology.key };
            while connection.has_room() && lane.write_next(&wire, self.flush_us, now, &mut self.ledger, connection.out()) {
                filled = true;
            }
        }
        filled
    }

    /// When [`Self::advance`] has something to do even if nothing happens.
    pub(crate) fn deadline_us(&self) -> u64 {
        let mut deadline_us = u64::MAX;
        let mut records = false;
        for slot in &self.slots {
            let timer_us = slot.connection.deadline_us(self.config.connect_timeout_us);
            // A full buffer ahead of the socket is no reason to wake: the socket will say when it takes more.
            let writable = self.topology.as_ref().filter(|_| slot.connection.is_open() && slot.connection.has_room());
            let due_us = writable
                .and_then(|topology| slot.lane.due_us(&Wire { window_bytes: slot.connection.window_bytes, key: &topology.key }));
            deadline_us = timer_us.into_iter().chain(due_us).fold(deadline_us, u64::min);
            records |= slot.lane.has_records();
        }
        if records { deadline_us.min(self.next_expiry_us) } else { deadline_us }
    }

    /// The shortest time that records wait for company on any open lane.
    pub(crate) fn linger_us(&self) -> u64 {
        let open = self.slots.iter().filter(|slot| slot.connection.is_open());
        open.map(|slot| slot.lane.linger_us()).min().unwrap_or(self.config.linger_us_max)
    }

    /// The numbers of the sockets to keep. One that is new is to be connected, one that is missing to be closed.
    pub(crate) fn wanted_links(&self) -> impl Iterator<Item = u64> {
        self.slots.iter().filter_map(|slot| slot.connection.wanted_link())
    }

    /// The socket has begun to connect: its time runs from now on. What came before may have been a slow lookup of its name.
    pub(crate) fn connecting(&mut self, link: u64, now: Now) {
        if let Some(at) = self.slot_of(link) {
            self.slots[at].connection.stage = Stage::Connecting { since_us: now.clock_us };
        }
    }

    /// The socket is connected.
    pub(crate) fn connected(&mut self, link: u64, now: Now) {
        let Some(at) = self.slot_of(link) else { return };
        let wanted_shard = if self.topology.is_none() || self.slots[at].connection.ask_any { ANY_SHARD } else { at as u32 };
        let Slot { lane, connection } = &mut self.slots[at];
        connection.stage = Stage::Greeting { since_us: now.clock_us };
        let hello = Hello {
            protocol_min: u16::from(PROTOCOL_VERSION),
            protocol_max: u16::from(PROTOCOL_VERSION),
            schema_min: SCHEMA,
            schema_max: SCHEMA,
            package: PackageVersion::parse(env!("CARGO_PKG_VERSION")),
            node: self.config.node,
            wanted_shard,
            replay: self.config.replay,
            nonce: [0; 32],
            name: self.config.node_name.clone(),
        };
        hello.encode(lane.session(), now.unix_us, connection.out());
    }

    /// The socket has ended.
    pub(crate) fn broken(&mut self, link: u64, why: Break, now: Now) {
        if let Some(at) = self.slot_of(link) {
            self.disconnect(at, &why, why.wait_us(), now);
        }
    }

    /// Bytes came. Stops reading them when they end the connection.
    pub(crate) fn received(&mut self, link: u64, mut bytes: &[u8], now: Now) {
        // Welcome may move the connection to another slot, or end it.
        while let Some(at) = self.slot_of(link) {
            let connection = &mut self.slots[at].connection;
            let frame = match connection.collect(&mut bytes) {
                Ok(None) => return,
                Ok(Some(header)) => ControlFrame::decode(&header, connection.body()).map(|frame| (header, frame)),
                Err(error) => Err(error),
            };
            let handled = match frame {
                Ok((header, frame)) => self.handle(at, &header, frame, now),
                Err(FrameError::BadBody { kind: FrameKind::Challenge, .. }) => Err(Break::Authentication),
                Err(error) => Err(Break::Frame(error)),
            };
            if let (Err(why), Some(at)) = (handled, self.slot_of(link)) {
                self.disconnect(at, &why, why.wait_us(), now);
            }
        }
    }

    /// What the socket is to write.
    pub(crate) fn unwritten(&self, link: u64) -> &[u8] {
        self.slot_of(link).map_or(&[], |at| self.slots[at].connection.unwritten())
    }

    /// The socket wrote so much.
    pub(crate) fn wrote(&mut self, link: u64, bytes: usize) {
        if let Some(at) = self.slot_of(link) {
            self.slots[at].connection.wrote(bytes);
        }
    }

    pub(crate) const fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    pub(crate) const fn verdicts_skipped(&self) -> u64 {
        self.lister.skipped
    }

    /// Whether a callback of the site has panicked, after which the thread is to end.
    pub(crate) const fn hook_panicked(&self) -> bool {
        self.acks.panicked || self.lister.panicked
    }

    /// Whom to tell of changes of the denylist.
    pub(crate) fn tell_of_changes(&mut self, hook: ListHook) {
        self.lister.tell(hook);
    }

    /// When the oldest record that is not settled was accepted.
    pub(crate) fn oldest_us(&self) -> Option<u64> {
        self.slots.iter().filter_map(|slot| slot.lane.oldest_us()).min()
    }

    /// Whether every record is settled.
    pub(crate) const fn is_settled(&self) -> bool {
        self.ledger.queued + self.ledger.in_flight == 0
    }

    /// Statistics that have just been completed, with their number.
    pub(crate) const fn take_stats(&mut self) -> Option<(u64, ServerStats)> {
        self.stats.result.take()
    }

    /// The status, if it has changed.
    pub(crate) fn take_status(&mut self) -> Option<(ClientStatus, Option<IdentityKey>)> {
        if !std::mem::replace(&mut self.status_changed, false) {
            return None;
        }
        let lanes_open = self.slots.iter().filter(|slot| slot.connection.is_open()).count() as u32;
        let topology = self.topology.as_ref();
        let server = ServerStatus {
            address: self.config.servers[0].text.clone(),
            connected: lanes_open > 0,
            takes_records: topology.is_some(),
            version: topology.map(|topology| topology.version.to_string()).unwrap_or_default(),
            id: topology.map(|topology| topology.server_id).unwrap_or_default(),
            shards: topology.map_or(0, |topology| topology.shard_count),
            lanes_open,
            last_error: self.last_error.clone(),
        };
        let connected = lanes_open > 0;
        let status = ClientStatus { connected, lanes_open, last_error: self.last_error.clone(), servers: vec![server] };
        Some((status, topology.map(|topology| topology.key)))
    }

    fn slot_of(&self, link: u64) -> Option<usize> {
        self.slots.iter().position(|slot| slot.connection.wanted_link() == Some(link))
    }

    fn check_timers(&mut self, at: usize, now: Now) {
        let (routed, timeout_us) = (self.topology.is_some(), self.config.connect_timeout_us);
        let Slot { lane, connection } = &mut self.slots[at];
        let deadline_us = connection.deadline_us(timeout_us);
        let due = deadline_us.is_some_and(|deadline_us| deadline_us <= now.clock_us);
        let needed = lane.has_records() || self.stats.active;
        match connection.stage {
            Stage::Idle if needed || !routed => self.connect(at, now),
            Stage::Backoff { .. } if due && (needed || !self.closing) => self.connect(at, now),
            // Looked at again a little later rather than at once.
            Stage::Backoff { .. } if due => connection.stage = Stage::Backoff { until_us: now.clock_us + EXPIRY_US },
            Stage::Connecting { .. } if due => self.disconnect(at, &Break::ConnectTimeout(timeout_us / 1000), 0, now),
            Stage::Greeting { .. } if due => self.disconnect(at, &Break::WelcomeTimeout, 0, now),
            Stage::Open { .. } if due && connection.pings_unanswered >= PINGS_MAX => self.disconnect(at, &Break::Silent, 0, now),
            Stage::Open { .. } if due => {
                connection.pings_unanswered += 1;
                let token = u64::from(connection.pings_unanswered);
                Ping { token }.encode(lane.session(), now.unix_us, connection.out());
            }
            Stage::Draining { retry_after_us, .. } if due || !lane.awaits_acks() => {
                self.disconnect(at, &Break::Goodbye, retry_after_us, now);
            }
            _ => {}
        }
    }

    fn connect(&mut self, at: usize, now: Now) {
        self.links += 1;
        self.slots[at].connection.connect(self.links, now.clock_us);
    }

    fn disconnect(&mut self, at: usize, why: &Break, retry_after_us: u64, now: Now) {
        let Slot { lane, connection } = &mut self.slots[at];
        match connection.stage {
            Stage::Idle | Stage::Backoff { .. } => return,
            Stage::Connecting { .. } | Stage::Greeting { .. } => self.ledger.connect_errors += 1,
            Stage::Open { .. } | Stage::Draining { .. } => self.ledger.disconnects += 1,
        }
        lane.disconnected();
        self.lister.disconnected(at as u32);
        connection.back_off(now.clock_us, retry_after_us, self.random.u64(..));
        if self.reported != Reported::Trouble && !self.closing {
            self.reported = Reported::Trouble;
            tracing::warn!(server = %self.config.servers[0].text, lane = at, "not connected to postanalytics: {why}; records are queued, trying again");
        }
        self.last_error = why.to_string();
        self.status_changed = true;
    }

    fn handle(&mut self, at: usize, header: &FrameHeader, frame: ControlFrame, now: Now) -> Result<(), Break> {
        let Slot { lane, connection } = &mut self.slots[at];
        (connection.heard_us, connection.pings_unanswered) = (now.clock_us, 0);
        // An Error may come before the server knows whom it speaks to.
        if header.session != lane.session() && header.kind != FrameKind::Error {
            return Err(Break::WrongSession { ours: lane.session(), got: header.session });
        }
        match (connection.stage, frame) {
            (_, ControlFrame::Error(error)) => Err(self.refused(at, &error)),
            (Stage::Greeting { .. }, ControlFrame::Welcome(welcome)) => self.welcomed(at, &welcome, now),
            (Stage::Greeting { .. }, ControlFrame::Goodbye(goodbye)) => {
                self.disconnect(at, &Break::Goodbye, u64::from(goodbye.retry_after_ms) * 1000, now);
                Ok(())
            }
            (Stage::Open { since_us }, ControlFrame::Goodbye(goodbye)) => {
                let retry_after_us = u64::from(goodbye.retry_after_ms) * 1000;
                connection.stage = Stage::Draining { since_us, until_us: now.clock_us + DRAIN_US, retry_after_us };
                self.status_changed = true;
                Ok(())
            }
            (Stage::Open { .. } | Stage::Draining { .. }, frame) => match frame {
                ControlFrame::Ack(ack) => {
                    let acked = lane.acked(ack.sequence, now, &mut self.ledger, &mut self.acks);
                    acked.map_err(|_| Break::AckOfNothing(ack.sequence))
                }
                ControlFrame::Verdicts(verdicts) => {
                    let topology = self.topology.as_ref();
                    let to_clock_us = |us| topology.map_or(us, |topology| topology.to_clock_us(us));
                    self.lister.apply(at as u32, &verdicts, now.clock_us, to_clock_us);
                    Ok(())
                }
                ControlFrame::Stats(stats) => {
                    let answer = self.stats.answers.get_mut(at);
                    if let Some(answer) = answer.filter(|_| self.stats.active && stats.token == self.stats.token) {
                        *answer = Some(stats);
                    }
                    Ok(())
                }
                ControlFrame::Ping(ping) => {
                    // A peer that asks faster than it reads gets an answer to its last question only.
                    connection.pong_owed = Some(ping.token);
                    Ok(())
                }
                ControlFrame::Pong(_) | ControlFrame::Goodbye(_) => Ok(()),
                _ => Err(Break::Unexpected(header.kind)),
            },
            (_, _) => Err(Break::Unexpected(header.kind)),
        }
    }

    fn refused(&mut self, at: usize, error: &ErrorFrame) -> Break {
        self.ledger.errors_received += 1;
        let Slot { lane, connection } = &mut self.slots[at];
        let code = error.known_code();
        // In answer to Hello a code of content is about no batch.
        let greeted = matches!(connection.stage, Stage::Open { .. } | Stage::Draining { .. });
        let content = greeted && error.sequence > 0 && code.is_some_and(ErrorCode::is_content);
        if content {
            let records = lane.refuse(error.sequence, &mut self.ledger);
            tracing::error!(
                lane = at,
                records,
                "the server refused a batch for its content, its records are lost: {}",
                error.text
            );
        }
        connection.ask_any |= code == Some(ErrorCode::NoSuchShard);
        let name = code.map_or_else(|| format!("error {}", error.code), |code| code.name().to_owned());
        // With any of these the server would answer the same again.
        let lasting = matches!(
            code,
            Some(
                ErrorCode::UnsupportedVersion
                    | ErrorCode::UnsupportedSchema
                    | ErrorCode::AuthenticationUnsupported
                    | ErrorCode::Replaced
            )
        );
        Break::Refused { name, text: error.text.clone(), slow: lasting && !content }
    }

    fn welcomed(&mut self, at: usize, welcome: &Welcome, now: Now) -> Result<(), Break> {
        if welcome.shard_count > SHARDS_MAX {
            return Err(Break::TooManyShards(welcome.shard_count));
        }
        if welcome.schema != SCHEMA || welcome.protocol != u16::from(PROTOCOL_VERSION) {
            let text = format!("it chose protocol {} and schema {}", welcome.protocol, welcome.schema);
            return Err(Break::Refused { name: "unsupported_schema".to_owned(), text, slow: true });
        }
        let known = self.topology.as_ref();
        let same = known.is_some_and(|known| known.is_of(welcome));
        if same && welcome.shard as usize != at {
            return Err(Break::WrongShard { wanted: at as u32, got: welcome.shard });
        }
        let old_epoch = known.map(|known| known.epoch);
        self.topology = Some(Topology::new(welcome, &self.config, now));
        let at = if same { at } else { self.adopt(at, welcome, old_epoch, now) };

        let session = self.random.u64(1..);
        let lane = &mut self.slots[at].lane;
        if lane.resume(stored_of(welcome, welcome.epoch, welcome.shard), now, &mut self.ledger, &mut self.acks).is_err() {
            lane.restart(session, &mut self.ledger);
            return Err(Break::SessionForgotten);
        }
        if lane.body_bytes_longest() > welcome.max_body_bytes as usize {
            // The server takes less than it did, and has stored nothing of this: batch it again.
            let bundles = lane.unwind(&mut self.ledger);
            bundles.iter().for_each(|bundle| bundle.items().for_each(|item| self.route(&item, now)));
        }
        let connection = &mut self.slots[at].connection;
        connection.stage = Stage::Open { since_us: now.clock_us };
        connection.window_bytes = welcome.window_bytes;
        connection.ask_any = false;
        self.ledger.connects += 1;
        self.status_changed = true;
        let trouble = self.slots.iter().any(|slot| matches!(slot.connection.stage, Stage::Backoff { .. }));
        if self.reported != Reported::Connected && !trouble {
            self.reported = Reported::Connected;
            tracing::info!(server = %self.config.servers[0].text, version = %welcome.package, lanes = welcome.shard_count, "connected to postanalytics");
        }
        Ok(())
    }

    /// Another topology than before: makes its lanes, moves the connection to its own, and routes every record afresh.
    fn adopt(&mut self, from: usize, welcome: &Welcome, old_epoch: Option<u64>, now: Now) -> usize {
        let lane = |_| Slot { lane: Lane::new(self.session, &self.config), connection: Connection::default() };
        let mut old = std::mem::replace(&mut self.slots, (0..welcome.shard_count).map(lane).collect());
        let at = welcome.shard as usize;
        let session = old[from].lane.session();
        self.slots[at].connection = std::mem::take(&mut old[from].connection);
        self.slots[at].lane = Lane::new(session, &self.config);
        self.stats.answers = vec![None; self.slots.len()];
        self.lister.shards_are(welcome.shard_count);
        if old_epoch.is_some() {
            tracing::warn!(server = %self.config.servers[0].text, lanes = welcome.shard_count, "{}: unacknowledged records are sent again", Break::TopologyChanged);
        }
        for (shard, slot) in old.iter_mut().enumerate() {
            self.ledger.disconnects += u64::from(slot.connection.is_open());
            self.lister.disconnected(shard as u32);
            // The Welcome speaks of one session; of another one nothing is known.
            let epoch = old_epoch.filter(|_| slot.lane.session() == session);
            let stored = epoch.map_or(0, |epoch| stored_of(welcome, epoch, shard as u32));
            for bundle in slot.lane.dissolve(stored, now, &mut self.ledger, &mut self.acks) {
                bundle.items().for_each(|item| self.route(&item, now));
            }
        }
        at
    }

    fn expire(&mut self, now: Now) {
        let Some(cutoff_us) = now.clock_us.checked_sub(self.config.record_time_limit_us) else { return };
        let expired: u64 = self.slots.iter_mut().map(|slot| slot.lane.expire(cutoff_us, &mut self.ledger)).sum();
        if expired > 0 {
            self.status_changed = true;
            self.last_error =
                format!("{expired} records were over their time limit of {} s", self.config.record_time_limit_us / 1_000_000);
        }
    }

    fn finish_stats(&mut self) {
        if self.stats.active && self.topology.is_some() && self.stats.answers.iter().all(Option::is_some) {
            let mut sum = ServerStats::default();
            self.stats.answers.drain(..).flatten().for_each(|stats| sum.add(&stats));
            self.stats.active = false;
            self.stats.result = Some((self.stats.token, sum));
            self.start_stats();
        }
    }

    /// (session, shard) of which something was acknowledged.
    #[cfg(test)]
    pub(crate) fn sessions_acked(&self) -> Vec<(u64, u32)> {
        let acked = self.slots.iter().enumerate().filter(|(_, slot)| slot.lane.acked_any());
        acked.map(|(shard, slot)| (slot.lane.session(), shard as u32)).collect()
    }

    /// Asserts what must hold after every step.
    #[cfg(any(test, feature = "fuzzing", feature = "simulation"))]
    pub(crate) fn invariants(&self) {
        let mut sums = (0, 0, 0);
        for slot in &self.slots {
            let (queued, in_flight, bytes) = slot.lane.invariants();
            sums = (sums.0 + queued, sums.1 + in_flight, sums.2 + bytes);
            assert!(
                slot.connection.is_open() || matches!(slot.connection.stage, Stage::Draining { .. }) || !slot.lane.awaits_acks()
            );
        }
        assert_eq!(sums, (self.ledger.queued, self.ledger.in_flight, self.ledger.bytes), "the ledger tells what is there");
    }
}
