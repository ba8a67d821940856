//! One server of the client: its topology, and a lane with a connection for each of its shards. Sans-IO.
//!
//! - Before the first Welcome nothing is known of the shards: there is one slot, which asks for any, and no record is routed.
//! - Welcome of the known topology: the lane goes on behind what the server has stored. Nothing is lost, nothing doubled.
//! - Welcome of another topology (the server was restarted or has another number of shards): every record that the old one
//!   did not store is routed afresh, hashed with the new identity key.
//! - A server that forgot a session that it had acknowledged: that lane starts a new session; what was written is in doubt.
//!
//! Which records a server gets, and whether any, is decided in [`crate::core`].

use crate::ack::Acks;
use crate::bundle::{Bundle, Item};
use crate::config::Config;
use crate::connection::{Break, Connection, DRAIN_US, PINGS_MAX, Stage};
use crate::core::{AWAY_US, EXPIRY_US, Now, SHARDS_MAX, uuid};
use crate::counters::Ledger;
use crate::denylist::Lister;
use crate::lane::{Lane, Wire};
use crate::stats::ServerStats;
use crate::status::ServerStatus;
use crate::topology::{Topology, stored_of};
use postanalytics_protocol::PROTOCOL_VERSION;
use postanalytics_protocol::error::{ErrorCode, FrameError};
use postanalytics_protocol::frames::{
    ANY_SHARD, ControlFrame, ErrorFrame, Goodbye, Hello, PackageVersion, Ping, Pong, Stats, StatsRequest, Welcome,
};
use postanalytics_protocol::header::{FrameHeader, FrameKind};
use postanalytics_protocol::schema::v1::SCHEMA;

/// A server that is silent for so long although it was asked, or a lane with records that is closed for so long: not healthy.
pub(crate) const SILENT_US: u64 = 15_000_000;
/// Ids of servers that were at an address before, that are remembered.
const FORMER_IDS_MAX: usize = 4;

/// What all servers of a client share.
pub(crate) struct Common {
    pub(crate) config: Config,
    pub(crate) random: fastrand::Rng,
    pub(crate) ledger: Ledger,
    pub(crate) acks: Acks,
    pub(crate) lister: Lister,
    /// How many sockets there have been.
    pub(crate) links: u64,
    pub(crate) flush_us: Option<u64>,
    /// The request for statistics that is under way.
    pub(crate) stats_token: Option<u64>,
    pub(crate) closing: bool,
    pub(crate) last_error: String,
    pub(crate) status_changed: bool,
    pub(crate) oversize_reported: bool,
}

struct Slot {
    lane: Lane,
    connection: Connection,
}

/// What a server said of itself in its last Welcome: servers of one client must agree on the last two and differ in the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) server_id: [u8; 16],
    pub(crate) deployment_id: [u8; 16],
    pub(crate) identity_key: [u8; 32],
}

/// Whether a server can be relied on, and since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Health {
    /// A lane is open, none is silent, none that has records is closed for long.
    Up {
        since_us: u64,
    },
    Down {
        since_us: u64,
    },
}

/// What was last logged of the connection to the server: once per change, however many lanes there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reported {
    Nothing,
    Connected,
    Trouble,
}

/// What is left to do after a frame was read.
pub(crate) enum Read {
    /// There is no more.
    Nothing,
    /// There may be more.
    More,
    /// The server welcomes the connection of this slot, which is to be judged.
    Welcome(usize, Box<Welcome>),
}

/// What is logged, once per outage, of records that nobody took in time.
pub(crate) fn given_up(records: u64, limit_us: u64) -> String {
    let limit = std::time::Duration::from_micros(limit_us);
    format!(
        "{records} records were over {limit:?} old and are given up, and so will those be that get as old before a server takes \
         them (tnt_errors)"
    )
}

/// See the module.
pub(crate) struct Server {
    /// Its place among the servers, as they were given.
    number: usize,
    /// Its own: should two addresses lead to one server, it must not take their connections for the same.
    session: u64,
    address: String,
    topology: Option<Topology>,
    /// Ids of servers that were at this address before the one of now, the last of them last.
    former_ids: Vec<[u8; 16]>,
    /// One of them came back after another.
    in_turn: bool,
    slots: Vec<Slot>,
    answers: Vec<Option<Stats>>,
    reported: Reported,
    /// Since the last connection it was logged that records are given up.
    told_given_up: bool,
    last_error: String,
    /// Whether records of its sources go to it.
    pub(crate) takes_records: bool,
    pub(crate) health: Health,
    pub(crate) claim: Option<Claim>,
    /// Why it may not take part, in words, if it may not.
    pub(crate) clash: Option<String>,
}

impl Server {
    pub(crate) fn new(number: usize, session: u64, config: &Config) -> Self {
        Self {
            number,
            session,
            address: config.servers[number].text.clone(),
            topology: None,
            former_ids: Vec::new(),
            in_turn: false,
            slots: vec![Slot { lane: Lane::new(session, config), connection: Connection::default() }],
            answers: Vec::new(),
            reported: Reported::Nothing,
            told_given_up: false,
            last_error: String::new(),
            takes_records: false,
            health: Health::Down { since_us: 0 },
            claim: None,
            clash: None,
        }
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) const fn topology(&self) -> Option<&Topology> {
        self.topology.as_ref()
    }

    pub(crate) const fn is_up(&self) -> bool {
        matches!(self.health, Health::Up { .. })
    }

    /// Since when it counts as away, or will if it stays as it is.
    pub(crate) const fn away_us(&self) -> Option<u64> {
        match self.health {
            Health::Down { since_us } => Some(since_us.saturating_add(AWAY_US)),
            Health::Up { .. } => None,
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        self.slots.iter().any(|slot| slot.connection.is_open())
    }

    /// Whether a lane is open whose server cannot be dead for long.
    pub(crate) fn is_alive(&self, now_us: u64) -> bool {
        self.slots.iter().any(|slot| slot.connection.is_open() && !slot.connection.is_silent(SILENT_US, now_us))
    }

    /// Looks how it is.
    pub(crate) fn look(&mut self, now_us: u64) {
        let silent = |slot: &Slot| slot.connection.is_silent(SILENT_US, now_us);
        let stuck = |slot: &Slot| {
            let closed_us = slot.connection.closed_us().map(|closed_us| closed_us.saturating_add(SILENT_US));
            closed_us.is_some_and(|until_us| until_us <= now_us) && slot.lane.has_records()
        };
        let is_up = self.is_open() && !self.slots.iter().any(|slot| silent(slot) || stuck(slot));
        self.health = match (is_up, self.health) {
            (true, Health::Down { .. }) => Health::Up { since_us: now_us },
            (false, Health::Up { .. }) => Health::Down { since_us: now_us },
            (_, same) => same,
        };
    }

    /// When [`Self::look`] may see something else though nothing came, µs.
    pub(crate) fn look_us(&self, now_us: u64) -> u64 {
        let when = |slot: &Slot| {
            let closed_us = slot.connection.closed_us().filter(|_| slot.lane.has_records());
            let since_us = closed_us.or_else(|| slot.connection.is_asked().then_some(slot.connection.heard_us));
            since_us.map(|since_us| since_us.saturating_add(SILENT_US)).filter(|&at_us| at_us > now_us)
        };
        self.slots.iter().filter_map(when).min().unwrap_or(u64::MAX)
    }

    /// Whether an urgent record would leave at once.
    pub(crate) fn sends(&self) -> bool {
        let Some(topology) = &self.topology else { return false };
        self.slots.iter().any(|slot| {
            let wire = Wire { window_bytes: slot.connection.window_bytes, key: &topology.key };
            slot.connection.is_open() && slot.connection.has_room() && slot.lane.would_write(&wire)
        })
    }

    /// Gives a record to the lane of its shard. Only once the topology is known.
    pub(crate) fn route(&mut self, item: &Item<'_>, common: &mut Common, now: Now) {
        let Some(topology) = &self.topology else { return debug_assert!(false, "its shards are not known") };
        let shard = topology.shard_of(item.source());
        if self.slots[shard].lane.push(item, &topology.limits, now.clock_us).is_err() {
            common.ledger.lose_queued(item.load());
            if !std::mem::replace(&mut common.oversize_reported, true) {
                let (bytes, limit) = (item.blob.len(), topology.limits.body_bytes_max);
                tracing::warn!(
                    bytes,
                    limit,
                    "a record is larger than the server takes and is lost; cap raw_body, or raise the server's limit"
                );
            }
        }
    }

    /// Takes records out, for other servers: of those that were written here the ones that may go to another, marked, and all
    /// that were not.
    pub(crate) fn evacuate(&mut self, goes: impl Fn(&Item<'_>) -> bool, ledger: &mut Ledger) -> Vec<Bundle> {
        let number = Some(self.number);
        self.slots.iter_mut().flat_map(|slot| slot.lane.evacuate(number, &goes, ledger)).collect()
    }

    /// That server has nothing any more of what was written to it.
    pub(crate) fn forget(&mut self, other: usize) {
        self.slots.iter_mut().for_each(|slot| slot.lane.forget(other));
    }

    /// A new request for statistics has begun.
    pub(crate) fn start_stats(&mut self) {
        self.answers = vec![None; self.slots.len()];
    }

    /// What its shards answered, if all of them did.
    pub(crate) fn stats(&self) -> Option<ServerStats> {
        let all = self.topology.is_some() && self.answers.iter().all(Option::is_some);
        all.then(|| {
            let mut sum = ServerStats::default();
            self.answers.iter().flatten().for_each(|stats| sum.add(stats));
            sum
        })
    }

    /// Says Goodbye on every open lane: nothing new goes out there any more.
    pub(crate) fn say_goodbye(&mut self, common: &mut Common, now: Now) {
        for Slot { lane, connection } in &mut self.slots {
            if let Stage::Open { since_us } = connection.stage {
                Goodbye { retry_after_ms: 0 }.encode(lane.session(), now.unix_us, connection.out());
                let until_us = now.clock_us + DRAIN_US;
                connection.stage = Stage::Draining { since_us, until_us, retry_after_us: 0 };
                common.status_changed = true;
            }
        }
    }

    /// Timers and new connections.
    pub(crate) fn check_timers(&mut self, common: &mut Common, now: Now) {
        for at in 0..self.slots.len() {
            self.check_timer(at, common, now);
        }
    }

    /// Encodes what may be written, as far as there is room ahead of the sockets. Returns whether anything was.
    pub(crate) fn fill(&mut self, common: &mut Common, now: Now) -> bool {
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
            let unanswered = self.answers.get(at).is_some_and(Option::is_none);
            if let Some(token) = common.stats_token.filter(|&token| unanswered && connection.stats_asked != token) {
                connection.stats_asked = token;
                StatsRequest { token }.encode(lane.session(), now.unix_us, connection.out());
                filled = true;
            }
            let wire = Wire { window_bytes: connection.window_bytes, key: &topology.key };
            while connection.has_room() && lane.write_next(&wire, common.flush_us, now, &mut common.ledger, connection.out()) {
                filled = true;
            }
        }
        filled
    }

    /// When there is something to do even if nothing happens; and whether it has records.
    pub(crate) fn deadline_us(&self, config: &Config) -> (u64, bool) {
        let mut deadline_us = u64::MAX;
        let mut records = false;
        for slot in &self.slots {
            let timer_us = slot.connection.deadline_us(config.connect_timeout_us);
            // A full buffer ahead of the socket is no reason to wake: the socket will say when it takes more.
            let writable = self.topology.as_ref().filter(|_| slot.connection.is_open() && slot.connection.has_room());
            let due_us = writable
                .and_then(|topology| slot.lane.due_us(&Wire { window_bytes: slot.connection.window_bytes, key: &topology.key }));
            deadline_us = timer_us.into_iter().chain(due_us).fold(deadline_us, u64::min);
            records |= slot.lane.has_records();
        }
        (deadline_us, records)
    }

    /// The shortest time that records wait for company on any open lane.
    pub(crate) fn linger_us(&self) -> Option<u64> {
        let open = self.slots.iter().filter(|slot| slot.connection.is_open());
        open.map(|slot| slot.lane.linger_us()).min()
    }

    /// The numbers of the sockets to keep.
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
    pub(crate) fn connected(&mut self, link: u64, config: &Config, now: Now) {
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
            node: config.node,
            wanted_shard,
            replay: config.replay,
            nonce: [0; 32],
            name: config.node_name.clone(),
        };
        hello.encode(lane.session(), now.unix_us, connection.out());
    }

    /// The socket has ended.
    pub(crate) fn broken(&mut self, link: u64, why: &Break, common: &mut Common, now: Now) {
        if let Some(at) = self.slot_of(link) {
            self.disconnect(at, why, why.wait_us(), common, now);
        }
    }

    /// Reads the next frame of what came.
    pub(crate) fn read(&mut self, link: u64, bytes: &mut &[u8], common: &mut Common, now: Now) -> Read {
        // Welcome may move the connection to another slot, or end it.
        let Some(at) = self.slot_of(link) else { return Read::Nothing };
        let connection = &mut self.slots[at].connection;
        let frame = match connection.collect(bytes) {
            Ok(None) => return Read::Nothing,
            Ok(Some(header)) => ControlFrame::decode(&header, connection.body()).map(|frame| (header, frame)),
            Err(error) => Err(error),
        };
        let handled = match frame {
            Ok((header, frame)) => self.handle(at, &header, frame, common, now),
            Err(FrameError::BadBody { kind: FrameKind::Challenge, .. }) => Err(Break::Authentication),
            Err(error) => Err(Break::Frame(error)),
        };
        match handled {
            Ok(read) => return read,
            Err(why) => self.broken(link, &why, common, now),
        }
        Read::More
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

    /// When the oldest record that is not settled was accepted.
    pub(crate) fn oldest_us(&self) -> Option<u64> {
        self.slots.iter().filter_map(|slot| slot.lane.oldest_us()).min()
    }

    /// Whether any record is not settled.
    pub(crate) fn has_records(&self) -> bool {
        self.slots.iter().any(|slot| slot.lane.has_records())
    }

    /// How the client stands with it.
    pub(crate) fn status(&self) -> ServerStatus {
        let lanes_open = self.slots.iter().filter(|slot| slot.connection.is_open()).count() as u32;
        let topology = self.topology.as_ref();
        ServerStatus {
            address: self.address.clone(),
            connected: lanes_open > 0,
            takes_records: self.takes_records,
            version: topology.map(|topology| topology.version.to_string()).unwrap_or_default(),
            id: topology.map(|topology| topology.server_id).unwrap_or_default(),
            shards: topology.map_or(0, |topology| topology.shard_count),
            lanes_open,
            last_error: self.last_error.clone(),
        }
    }

    fn slot_of(&self, link: u64) -> Option<usize> {
        self.slots.iter().position(|slot| slot.connection.wanted_link() == Some(link))
    }

    fn check_timer(&mut self, at: usize, common: &mut Common, now: Now) {
        let (routed, timeout_us) = (self.topology.is_some(), common.config.connect_timeout_us);
        let Slot { lane, connection } = &mut self.slots[at];
        let deadline_us = connection.deadline_us(timeout_us);
        let due = deadline_us.is_some_and(|deadline_us| deadline_us <= now.clock_us);
        let needed = lane.has_records() || common.stats_token.is_some();
        match connection.stage {
            Stage::Idle if needed || !routed => self.connect(at, common, now),
            Stage::Backoff { .. } if due && (needed || !common.closing) => self.connect(at, common, now),
            // Looked at again a little later rather than at once.
            Stage::Backoff { .. } if due => connection.stage = Stage::Backoff { until_us: now.clock_us + EXPIRY_US },
            Stage::Connecting { .. } if due => self.disconnect(at, &Break::ConnectTimeout(timeout_us / 1000), 0, common, now),
            Stage::Greeting { .. } if due => self.disconnect(at, &Break::WelcomeTimeout, 0, common, now),
            Stage::Open { .. } if due && connection.pings_unanswered >= PINGS_MAX => {
                self.disconnect(at, &Break::Silent, 0, common, now);
            }
            Stage::Open { .. } if due => {
                connection.pings_unanswered += 1;
                let token = u64::from(connection.pings_unanswered);
                Ping { token }.encode(lane.session(), now.unix_us, connection.out());
            }
            Stage::Draining { retry_after_us, .. } if due || !lane.awaits_acks() => {
                self.disconnect(at, &Break::Goodbye, retry_after_us, common, now);
            }
            _ => {}
        }
    }

    fn connect(&mut self, at: usize, common: &mut Common, now: Now) {
        common.links += 1;
        self.slots[at].connection.connect(crate::core::link_number(common.links, self.number), now.clock_us);
    }

    fn disconnect(&mut self, at: usize, why: &Break, retry_after_us: u64, common: &mut Common, now: Now) {
        let Slot { lane, connection } = &mut self.slots[at];
        match connection.stage {
            Stage::Idle | Stage::Backoff { .. } => return,
            Stage::Connecting { .. } | Stage::Greeting { .. } => common.ledger.connect_errors += 1,
            Stage::Open { .. } | Stage::Draining { .. } => common.ledger.disconnects += 1,
        }
        lane.disconnected();
        common.lister.disconnected((self.number, at as u32));
        connection.back_off(now.clock_us, retry_after_us, common.config.reconnect_slow, common.random.u64(..));
        if self.reported != Reported::Trouble && !common.closing {
            self.reported = Reported::Trouble;
            tracing::warn!(server = %self.address, lane = at, "not connected to postanalytics: {why}; records are queued, trying again");
        }
        if !matches!(why, Break::Clash(_)) {
            // Whoever does not answer any more clashes with nobody.
            self.clash = None;
        }
        self.note(why.to_string(), common);
        if matches!(self.health, Health::Up { .. }) {
            // Not even for a moment: the time of its health begins anew.
            self.health = Health::Down { since_us: now.clock_us };
        }
    }

    fn note(&mut self, error: String, common: &mut Common) {
        self.last_error = error;
        common.last_error = if common.config.servers.len() > 1 {
            format!("{}: {}", self.address, self.last_error)
        } else {
            self.last_error.clone()
        };
        common.status_changed = true;
    }

    fn handle(
        &mut self,
        at: usize,
        header: &FrameHeader,
        frame: ControlFrame,
        common: &mut Common,
        now: Now,
    ) -> Result<Read, Break> {
        let Slot { lane, connection } = &mut self.slots[at];
        (connection.heard_us, connection.pings_unanswered) = (now.clock_us, 0);
        // An Error may come before the server knows whom it speaks to.
        if header.session != lane.session() && header.kind != FrameKind::Error {
            return Err(Break::WrongSession { ours: lane.session(), got: header.session });
        }
        match (connection.stage, frame) {
            (_, ControlFrame::Error(error)) => return Err(self.refused(at, &error, common)),
            (Stage::Greeting { .. }, ControlFrame::Welcome(welcome)) => return Ok(Read::Welcome(at, Box::new(welcome))),
            (Stage::Greeting { .. }, ControlFrame::Goodbye(goodbye)) => {
                self.disconnect(at, &Break::Goodbye, u64::from(goodbye.retry_after_ms) * 1000, common, now);
            }
            (Stage::Open { since_us }, ControlFrame::Goodbye(goodbye)) => {
                let retry_after_us = u64::from(goodbye.retry_after_ms) * 1000;
                connection.stage = Stage::Draining { since_us, until_us: now.clock_us + DRAIN_US, retry_after_us };
                common.status_changed = true;
            }
            (Stage::Open { .. } | Stage::Draining { .. }, frame) => match frame {
                ControlFrame::Ack(ack) => {
                    let acked = lane.acked(ack.sequence, now, &mut common.ledger, &mut common.acks);
                    acked.map_err(|_| Break::AckOfNothing(ack.sequence))?;
                }
                ControlFrame::Verdicts(verdicts) => {
                    common.lister.apply((self.number, at as u32), &verdicts, header.sent_us, now.clock_us);
                }
                ControlFrame::Stats(stats) => {
                    if let Some(answer) = self.answers.get_mut(at).filter(|_| common.stats_token == Some(stats.token)) {
                        *answer = Some(stats);
                    }
                }
                // A peer that asks faster than it reads gets an answer to its last question only.
                ControlFrame::Ping(ping) => connection.pong_owed = Some(ping.token),
                ControlFrame::Pong(_) | ControlFrame::Goodbye(_) => {}
                _ => return Err(Break::Unexpected(header.kind)),
            },
            (_, _) => return Err(Break::Unexpected(header.kind)),
        }
        Ok(Read::More)
    }

    fn refused(&mut self, at: usize, error: &ErrorFrame, common: &mut Common) -> Break {
        common.ledger.errors_received += 1;
        let Slot { lane, connection } = &mut self.slots[at];
        let code = error.known_code();
        // In answer to Hello a code of content is about no batch.
        let content = connection.is_welcomed() && error.sequence > 0 && code.is_some_and(ErrorCode::is_content);
        if content {
            let records = lane.refuse(error.sequence, &mut common.ledger);
            tracing::error!(
                server = %self.address,
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

    /// The server may not take part: all its connections end.
    pub(crate) fn expel(&mut self, text: String, common: &mut Common, now: Now) {
        if self.clash.as_ref() != Some(&text) {
            tracing::error!(server = %self.address, "no records go to this server: {text}");
        }
        self.takes_records = false;
        let why = Break::Clash(text.clone());
        for at in 0..self.slots.len() {
            self.disconnect(at, &why, why.wait_us(), common, now);
        }
        self.clash = Some(text);
    }

    /// The server may take part after all: it is asked again at once.
    pub(crate) fn readmit(&mut self, now: Now) {
        self.clash = None;
        for slot in &mut self.slots {
            if matches!(slot.connection.stage, Stage::Backoff { .. }) {
                slot.connection.stage = Stage::Backoff { until_us: now.clock_us };
            }
        }
    }

    /// Takes a Welcome, which nothing speaks against. Returns records that are to be placed afresh.
    pub(crate) fn welcomed(
        &mut self,
        at: usize,
        welcome: &Welcome,
        common: &mut Common,
        now: Now,
    ) -> Result<Vec<Bundle>, (Break, Vec<Bundle>)> {
        let refuse = |why| (why, Vec::new());
        if welcome.shard_count > SHARDS_MAX {
            return Err(refuse(Break::TooManyShards(welcome.shard_count)));
        }
        if welcome.schema != SCHEMA || welcome.protocol != u16::from(PROTOCOL_VERSION) {
            let text = format!("it chose protocol {} and schema {}", welcome.protocol, welcome.schema);
            return Err(refuse(Break::Refused { name: "unsupported_schema".to_owned(), text, slow: true }));
        }
        let known = self.topology.as_ref();
        let same = known.is_some_and(|known| known.is_of(welcome));
        if same && welcome.shard as usize != at {
            return Err(refuse(Break::WrongShard { wanted: at as u32, got: welcome.shard }));
        }
        let former = known.map(|known| (known.epoch, known.server_id));
        if let Some((_, ours)) = former.filter(|(_, ours)| *ours != welcome.server_id) {
            self.replaced(ours, welcome.server_id, common);
        }
        self.topology = Some(Topology::new(welcome, &common.config));
        let (at, mut displaced) = if same { (at, Vec::new()) } else { self.adopt(at, welcome, former, common, now) };

        let session = common.random.u64(1..);
        let lane = &mut self.slots[at].lane;
        let stored = stored_of(welcome, welcome.epoch, welcome.shard);
        if lane.resume(stored, now, &mut common.ledger, &mut common.acks).is_err() {
            lane.restart(session, &mut common.ledger);
            return Err((Break::SessionForgotten, displaced));
        }
        if lane.body_bytes_longest() > welcome.max_body_bytes as usize {
            // The server takes less than it did, and has stored nothing of this: batch it again.
            displaced.extend(lane.unwind(&mut common.ledger));
        }
        let connection = &mut self.slots[at].connection;
        connection.stage = Stage::Open { since_us: now.clock_us };
        connection.window_bytes = welcome.window_bytes;
        connection.ask_any = false;
        common.ledger.connects += 1;
        common.status_changed = true;
        let trouble = self.slots.iter().any(|slot| matches!(slot.connection.stage, Stage::Backoff { .. }));
        if self.reported != Reported::Connected && !trouble {
            self.reported = Reported::Connected;
            self.told_given_up = false;
            tracing::info!(server = %self.address, version = %welcome.package, lanes = welcome.shard_count, "connected to postanalytics");
        }
        Ok(displaced)
    }

    /// Another server is at the address. A restarted one has a new id at most; one whose id was here before has been running all
    /// the time, or took over from the other and gave back: two servers at one address, which is reported and borne.
    fn replaced(&mut self, ours: [u8; 16], got: [u8; 16], common: &mut Common) {
        if self.former_ids.contains(&got) {
            let why = Break::InTurn { ours: uuid(ours), got: uuid(got) };
            if !std::mem::replace(&mut self.in_turn, true) {
                tracing::error!(server = %self.address, "{why}");
            }
            self.note(why.to_string(), common);
        }
        self.former_ids.retain(|former| *former != ours);
        if self.former_ids.len() == FORMER_IDS_MAX {
            self.former_ids.remove(0);
        }
        self.former_ids.push(ours);
    }

    /// Another topology than before: makes its lanes, moves the connection to its own. Returns every record that the old one
    /// did not store, to be placed afresh.
    fn adopt(
        &mut self,
        from: usize,
        welcome: &Welcome,
        former: Option<(u64, [u8; 16])>,
        common: &mut Common,
        now: Now,
    ) -> (usize, Vec<Bundle>) {
        let lane = |_| Slot { lane: Lane::new(self.session, &common.config), connection: Connection::default() };
        let mut old = std::mem::replace(&mut self.slots, (0..welcome.shard_count).map(lane).collect());
        let at = welcome.shard as usize;
        let session = old[from].lane.session();
        self.slots[at].connection = std::mem::take(&mut old[from].connection);
        self.slots[at].lane = Lane::new(session, &common.config);
        self.answers = vec![None; self.slots.len()];
        common.lister.restarted(self.number);
        if former.is_some() {
            tracing::warn!(server = %self.address, lanes = welcome.shard_count, "{}: unacknowledged records are sent again", Break::TopologyChanged);
        }
        // Of another server nobody knows what it has; this one is not it. A single one was restarted without an id to keep, and
        // has nothing any more, unless there are two that take turns.
        let several = common.config.servers.len() > 1 || self.in_turn;
        let elsewhere = several && former.is_some_and(|(_, server_id)| server_id != welcome.server_id);
        let mut displaced = Vec::new();
        for (shard, slot) in old.iter_mut().enumerate() {
            common.ledger.disconnects += u64::from(slot.connection.is_welcomed());
            common.lister.disconnected((self.number, shard as u32));
            // The Welcome speaks of one session, and of what that server has: of another of either nothing is known.
            let is_known = |(_, server_id)| server_id == welcome.server_id && slot.lane.session() == session;
            let known = former.filter(|former| is_known(*former));
            let stored = known.map_or(0, |(epoch, _)| stored_of(welcome, epoch, shard as u32));
            displaced.extend(slot.lane.dissolve(stored, elsewhere, now, &mut common.ledger, &mut common.acks));
        }
        (at, displaced)
    }

    /// Gives up on records accepted at `cutoff_us` or before.
    pub(crate) fn expire(&mut self, cutoff_us: u64, common: &mut Common) {
        let expired: u64 = self.slots.iter_mut().map(|slot| slot.lane.expire(cutoff_us, &mut common.ledger)).sum();
        if expired > 0 {
            let text = given_up(expired, common.config.record_time_limit_us);
            if !std::mem::replace(&mut self.told_given_up, true) {
                tracing::error!(server = %self.address, "{text}");
            }
            self.note(text, common);
        }
    }

    /// (session, shard) of which something was acknowledged.
    #[cfg(test)]
    pub(crate) fn sessions_acked(&self) -> Vec<(u64, u32)> {
        let acked = self.slots.iter().enumerate().filter(|(_, slot)| slot.lane.acked_any());
        acked.map(|(shard, slot)| (slot.lane.session(), shard as u32)).collect()
    }

    /// Asserts what must hold after every step. Returns the sums of what its lanes have.
    #[cfg(any(test, feature = "fuzzing", feature = "simulation"))]
    pub(crate) fn invariants(&self) -> crate::lane::Held {
        let mut held = crate::lane::Held::default();
        for slot in &self.slots {
            held += slot.lane.invariants();
            held.connections += u64::from(slot.connection.is_welcomed());
            assert!(slot.connection.is_welcomed() || !slot.lane.awaits_acks());
        }
        held
    }
}
