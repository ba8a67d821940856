//! The client without its sockets: records, bytes and the time go in; bytes to write, wanted sockets and counters come out.
//!
//! Sans-IO, so that a test can drive it from a seed through every order of events. One owner, the background thread; no
//! clock, no locks. It rules over one [`Server`] for each that was given, and decides which of them gets a record:
//!
//! - A source belongs to the server of the highest [`server_weight`] among those that *take records*, so every node that sees
//!   the same servers sends it to the same one.
//! - At first none takes records, and they wait in the queue: until all servers are welcome, or [`Config::connect_timeout_us`]
//!   after the first is. Those that are healthy then take records. Later nothing waits so.
//! - One that is not healthy for [`AWAY_US`] while another is takes no more; when the client closes, at once if it has records. Its records go to the others; those that were
//!   written and not acknowledged are marked, for it may have stored them.
//! - It takes records again when it was healthy for [`BACK_US`]; at once if no other is to be reached.
//! - When none is to be reached, records wait in their lanes. So do those that were written to every other server before: no
//!   server gets a record twice.
//! - Servers of one client must be different ones of one deployment. One that is not is refused, with what to do about it.
//!
//! A single server takes records from its first Welcome on, whatever happens to it later.
//!
//! All lanes share one budget. A lane whose shard takes nothing, while the others do, may fill all of it with its records until
//! they are over their time limit, and then records of every shard are refused. That is a decision: shards of one server live
//! and die together, so a share for each lane would refuse records in ordinary bursts to guard against what hardly happens.

use crate::ack::{AckHook, Acks};
use crate::bundle::{Bundle, IdentityKey, Item};
use crate::config::{Config, SERVERS_MAX};
use crate::connection::Break;
use crate::counters::Ledger;
use crate::denylist::{Denylist, ListHook, Lister};
use crate::server::{Claim, Common, Health, Read, Server};
use crate::stats::ServerStats;
use crate::status::ClientStatus;
use postanalytics_protocol::frames::Welcome;
use postanalytics_protocol::routing::{server_seed, server_weight};
use std::cmp::Reverse;
use std::fmt::Write;
use std::sync::Arc;

/// Most shards of a server that this client speaks to, a lane each.
pub(crate) const SHARDS_MAX: u32 = 1024;
/// How often records over their time limit are looked for, µs.
pub(crate) const EXPIRY_US: u64 = 1_000_000;
/// A server that is not healthy for so long gives its records to the others, µs. Long enough for a connection to break and come
/// back, which loses and doubles nothing; short enough that what decides a verdict is not kept waiting.
pub(crate) const AWAY_US: u64 = 2_000_000;
/// A server that was away gets its records back when it was healthy for so long, µs.
pub(crate) const BACK_US: u64 = 30_000_000;

/// The time, read once a turn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    /// The client's monotonic clock. It stands still while the machine is suspended.
    pub(crate) clock_us: u64,
    /// `CLOCK_BOOTTIME`, which goes on then, as the clock of a server does.
    pub(crate) boot_us: u64,
    /// Unix time.
    pub(crate) unix_us: u64,
}

/// How much a server counts when servers disagree, the least first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    /// It has no connection, and is away. There is nothing to refuse.
    Gone,
    /// Nobody answers on its connections. It has no say, and may be refused.
    Silent,
    /// It is there.
    There,
    /// It takes records.
    AtWork,
}

/// A server that takes records.
#[derive(PartialEq, Eq)]
struct Member {
    number: usize,
    server_id: [u8; 16],
    seed: u64,
}

/// One request for statistics to every shard of every server.
#[derive(Default)]
struct StatsRound {
    token: u64,
    /// The highest number asked for: the next round, if one is active.
    wanted_token: u64,
    result: Option<(u64, Vec<Option<ServerStats>>)>,
}

/// Everything that the background thread knows.
pub(crate) struct Core {
    servers: Vec<Server>,
    common: Common,
    /// Those that take records.
    members: Vec<Member>,
    /// Some server is healthy and none has taken records yet: then those that are healthy take them.
    settle_us: Option<u64>,
    /// When [`Self::review`] may find something though nothing came.
    review_us: u64,
    /// Records of servers that take none may have somewhere to go now.
    moves_due: bool,
    stats: StatsRound,
    next_expiry_us: u64,
}

/// The number of a socket tells its server.
pub(crate) const fn link_number(count: u64, server: usize) -> u64 {
    count * SERVERS_MAX as u64 + server as u64
}

/// The server of a socket, by its place in [`Config::servers`].
pub(crate) const fn server_of(link: u64) -> usize {
    (link % SERVERS_MAX as u64) as usize
}

/// The server that a record goes to: of those that take records, and that it was not written to before, the one with the
/// greatest weight for its source.
fn server_for(members: &[Member], item: &Item<'_>) -> Option<usize> {
    let may = |member: &&Member| item.meta.written_to & 1 << member.number == 0;
    let weight = |member: &&Member| (server_weight(item.source(), member.seed), member.server_id);
    let found = match members {
        [only] => Some(only).filter(may),
        _ => members.iter().filter(may).max_by_key(weight),
    };
    found.map(|member| member.number)
}

impl Core {
    pub(crate) fn new(config: Config, seed: u64, hook: AckHook, denylist: Arc<Denylist>) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let servers = (0..config.servers.len()).map(|number| Server::new(number, random.u64(1..), &config)).collect();
        Self {
            servers,
            common: Common {
                config,
                random,
                ledger: Ledger::default(),
                acks: Acks::new(hook),
                lister: Lister::new(denylist),
                links: 0,
                flush_us: None,
                stats_token: None,
                closing: false,
                last_error: String::new(),
                status_changed: true,
                oversize_reported: false,
            },
            members: Vec::new(),
            settle_us: None,
            review_us: u64::MAX,
            moves_due: false,
            stats: StatsRound::default(),
            next_expiry_us: 0,
        }
    }

    /// Whether records can be given to [`Self::take`]: some server takes them.
    pub(crate) const fn routes(&self) -> bool {
        !self.members.is_empty()
    }

    /// Whether an urgent record would leave at once.
    pub(crate) fn sends(&self) -> bool {
        self.servers.iter().any(Server::sends)
    }

    /// Takes records from the queue and gives each to the lane of its server and shard.
    pub(crate) fn take(&mut self, bundle: &Bundle, now: Now) {
        self.common.ledger.take(bundle.records(), bundle.cost_bytes());
        self.place(bundle, 0, now);
    }

    /// Gives each record to the server that it belongs to; if no other may have it, to `otherwise`, which knows its shards.
    fn place(&mut self, bundle: &Bundle, otherwise: usize, now: Now) {
        for item in bundle.items() {
            let number = server_for(&self.members, &item).unwrap_or(otherwise);
            self.servers[number].route(&item, &mut self.common, now);
        }
    }

    /// The same for many. Each bundle's memory is freed when its records are placed, so that moving a full queue does not double
    /// it.
    fn place_all(&mut self, bundles: Vec<Bundle>, otherwise: usize, now: Now) {
        for bundle in bundles {
            self.place(&bundle, otherwise, now);
        }
    }

    /// Records accepted until then do not wait for company.
    pub(crate) const fn flush(&mut self, until_us: Option<u64>) {
        self.common.flush_us = until_us;
    }

    /// Asks every shard for statistics; if that is under way, once more afterwards.
    pub(crate) fn ask_stats(&mut self, token: u64) {
        self.stats.wanted_token = self.stats.wanted_token.max(token);
        self.start_stats();
    }

    fn start_stats(&mut self) {
        if self.stats.wanted_token > self.stats.token && self.common.stats_token.is_none() {
            self.stats.token = self.stats.wanted_token;
            self.common.stats_token = Some(self.stats.token);
            self.servers.iter_mut().for_each(Server::start_stats);
        }
    }

    /// No more records will come: lanes that have none stay closed.
    pub(crate) const fn close(&mut self) {
        self.common.closing = true;
    }

    /// Says Goodbye on every open lane: nothing new goes out there any more.
    pub(crate) fn say_goodbye(&mut self, now: Now) {
        self.servers.iter_mut().for_each(|server| server.say_goodbye(&mut self.common, now));
    }

    /// Does what is due: timers, new connections, batches to write. Call it at the end of every turn.
    pub(crate) fn advance(&mut self, now: Now) {
        for server in &mut self.servers {
            server.check_timers(&mut self.common, now);
        }
        self.review(now);
        if now.clock_us >= self.next_expiry_us {
            self.next_expiry_us = now.clock_us + EXPIRY_US;
            if let Some(cutoff_us) = now.clock_us.checked_sub(self.common.config.record_time_limit_us) {
                self.servers.iter_mut().for_each(|server| server.expire(cutoff_us, &mut self.common));
            }
            self.common.lister.sweep(now.clock_us);
        }
        self.finish_stats();
        self.fill(now);
    }

    /// Encodes what may be written, as far as there is room ahead of the sockets. Returns whether anything was.
    pub(crate) fn fill(&mut self, now: Now) -> bool {
        self.servers.iter_mut().fold(false, |filled, server| server.fill(&mut self.common, now) | filled)
    }

    /// When [`Self::advance`] has something to do even if nothing happens.
    pub(crate) fn deadline_us(&self) -> u64 {
        let (mut deadline_us, mut records) = (self.review_us, false);
        for server in &self.servers {
            let (server_us, has_records) = server.deadline_us(&self.common.config);
            (deadline_us, records) = (deadline_us.min(server_us), records | has_records);
        }
        if records { deadline_us.min(self.next_expiry_us) } else { deadline_us }
    }

    /// The shortest time that records wait for company on any open lane.
    pub(crate) fn linger_us(&self) -> u64 {
        self.servers.iter().filter_map(Server::linger_us).min().unwrap_or(self.common.config.linger_us_max)
    }

    /// The numbers of the sockets to keep. One that is new is to be connected, one that is missing to be closed.
    pub(crate) fn wanted_links(&self) -> impl Iterator<Item = u64> {
        self.servers.iter().flat_map(Server::wanted_links)
    }

    /// The socket has begun to connect: its time runs from now on. What came before may have been a slow lookup of its name.
    pub(crate) fn connecting(&mut self, link: u64, now: Now) {
        if let Some(server) = self.servers.get_mut(server_of(link)) {
            server.connecting(link, now);
        }
    }

    /// The socket is connected.
    pub(crate) fn connected(&mut self, link: u64, now: Now) {
        if let Some(server) = self.servers.get_mut(server_of(link)) {
            server.connected(link, &self.common.config, now);
        }
    }

    /// The socket has ended.
    pub(crate) fn broken(&mut self, link: u64, why: Break, now: Now) {
        if let Some(server) = self.servers.get_mut(server_of(link)) {
            server.broken(link, &why, &mut self.common, now);
        }
    }

    /// Bytes came. Stops reading them when they end the connection.
    pub(crate) fn received(&mut self, link: u64, mut bytes: &[u8], now: Now) {
        let number = server_of(link);
        while let Some(server) = self.servers.get_mut(number) {
            match server.read(link, &mut bytes, &mut self.common, now) {
                Read::Nothing => return,
                Read::More => {}
                Read::Welcome(at, welcome) => self.welcome(link, at, &welcome, now),
            }
        }
    }

    /// What the socket is to write.
    pub(crate) fn unwritten(&self, link: u64) -> &[u8] {
        self.servers.get(server_of(link)).map_or(&[], |server| server.unwritten(link))
    }

    /// The socket wrote so much.
    pub(crate) fn wrote(&mut self, link: u64, bytes: usize) {
        if let Some(server) = self.servers.get_mut(server_of(link)) {
            server.wrote(link, bytes);
        }
    }

    pub(crate) const fn ledger(&self) -> &Ledger {
        &self.common.ledger
    }

    pub(crate) const fn verdicts_skipped(&self) -> u64 {
        self.common.lister.skipped
    }

    /// Whether a callback of the site has panicked, after which the thread is to end.
    pub(crate) const fn hook_panicked(&self) -> bool {
        self.common.acks.panicked || self.common.lister.panicked
    }

    /// Whom to tell of changes of the denylist.
    pub(crate) fn tell_of_changes(&mut self, hook: ListHook) {
        self.common.lister.tell(hook);
    }

    /// When the oldest record that is not settled was accepted.
    pub(crate) fn oldest_us(&self) -> Option<u64> {
        self.servers.iter().filter_map(Server::oldest_us).min()
    }

    /// Whether every record is settled.
    pub(crate) const fn is_settled(&self) -> bool {
        self.common.ledger.queued + self.common.ledger.in_flight == 0
    }

    /// Statistics that have just been completed, with their number: of each server, or `None` of one that is away.
    pub(crate) const fn take_stats(&mut self) -> Option<(u64, Vec<Option<ServerStats>>)> {
        self.stats.result.take()
    }

    /// The status, if it has changed.
    pub(crate) fn take_status(&mut self) -> Option<(ClientStatus, Option<IdentityKey>)> {
        if !std::mem::replace(&mut self.common.status_changed, false) {
            return None;
        }
        let servers: Vec<_> = self.servers.iter().map(Server::status).collect();
        let lanes_open = servers.iter().map(|server| server.lanes_open).sum();
        let last_error = self.common.last_error.clone();
        // All that take records have the same.
        let known = self.members.first().map_or(0, |member| member.number);
        let key = self.servers[known].topology().map(|topology| topology.key);
        Some((ClientStatus { connected: lanes_open > 0, lanes_open, last_error, servers }, key))
    }

    /// A server welcomes a connection.
    fn welcome(&mut self, link: u64, at: usize, welcome: &Welcome, now: Now) {
        let number = server_of(link);
        let server = &mut self.servers[number];
        let epoch = server.topology().map(|topology| topology.epoch);
        let known = server.topology().map(|topology| topology.server_id);
        if let Some(ours) = known.filter(|ours| *ours != welcome.server_id && server.is_alive(now.clock_us)) {
            let why = Break::TwoServers { ours: uuid(ours), got: uuid(welcome.server_id) };
            return server.broken(link, &why, &mut self.common, now);
        }
        if self.servers.len() > 1 {
            self.judge(number, welcome, now);
        }
        let server = &mut self.servers[number];
        if server.clash.is_some() {
            return;
        }
        let displaced = match server.welcomed(at, welcome, &mut self.common, now) {
            Ok(displaced) => displaced,
            Err((why, displaced)) => {
                server.broken(link, &why, &mut self.common, now);
                displaced
            }
        };
        if self.servers.len() == 1 {
            // Not one whose first Welcome could not be followed.
            let server = &mut self.servers[number];
            server.takes_records = server.topology().is_some();
        } else if self.servers[number].topology().map(|topology| topology.epoch) != epoch {
            // Another process: what was written to the one before is not here.
            self.servers.iter_mut().for_each(|server| server.forget(number));
            self.moves_due = true;
        }
        self.choose_members();
        self.place_all(displaced, number, now);
    }

    /// Looks whether the servers that are there may take part together, now that one of them says who it is. If they
    /// disagree, those that agree with most others may; of as many, those that work already, then those given first.
    ///
    /// One that takes records works as long as any of its connections answers, and without one until it is away: neither a short
    /// break nor a restart under another id nor a lane that is stuck changes anything.
    fn judge(&mut self, number: usize, welcome: &Welcome, now: Now) {
        let Welcome { server_id, deployment_id, identity_key, .. } = *welcome;
        let claim = Claim { server_id, deployment_id, identity_key };
        let agree =
            |one: &Claim, other: &Claim| (one.deployment_id, one.identity_key) == (other.deployment_id, other.identity_key);
        let former = self.servers[number].claim.replace(claim);
        let has_changed_id = former.is_some_and(|former| former.server_id != server_id);
        let is_away = |server: &Server| server.away_us().is_some_and(|away_us| away_us <= now.clock_us);
        let standing = |(at, server): (usize, &Server)| {
            let is_same = at != number || former.is_some_and(|former| agree(&former, &claim));
            let is_alive = server.is_alive(now.clock_us);
            if server.takes_records && (is_alive || !is_away(server)) && is_same {
                Standing::AtWork
            } else if at == number || is_alive || server.clash.is_some() {
                Standing::There
            } else if server.is_open() {
                Standing::Silent
            } else {
                Standing::Gone
            }
        };
        let standings: Vec<Standing> = self.servers.iter().enumerate().map(standing).collect();
        let there = self.servers.iter().enumerate().filter(|(at, _)| standings[*at] > Standing::Gone);
        let there: Vec<(usize, Claim)> = there.filter_map(|(at, server)| Some((at, server.claim?))).collect();
        // Of one server under two addresses, the address at which it was before.
        let first_of = |claim: &Claim| {
            let same = there.iter().filter(|(_, of)| of.server_id == claim.server_id);
            same.map(|(at, _)| *at).max_by_key(|&at| (standings[at], !(at == number && has_changed_id), Reverse(at)))
        };
        let mut best: Option<((usize, bool), usize, Claim)> = None;
        for (at, claim) in &there {
            let alike = || there.iter().filter(|(_, of)| agree(of, claim)).map(|(other, of)| (*other, standings[*other], of));
            let heard = alike().filter(|(_, standing, _)| *standing >= Standing::There);
            let count = heard.filter(|(other, _, of)| first_of(of) == Some(*other)).count();
            let rank = (count, alike().any(|(_, standing, _)| standing == Standing::AtWork));
            if best.is_none_or(|(highest, ..)| rank > highest) {
                best = Some((rank, *at, *claim));
            }
        }
        let Some((_, model, model_claim)) = best else { return };
        for (at, claim) in &there {
            let first = first_of(claim).unwrap_or(*at);
            let why = if first != *at {
                let other = self.servers[first].address();
                Some(format!(
                    "this is the same server as {other} (its id is {}): name each server once, by its own address; if it is another \
                     one, give it a --server-id of its own",
                    uuid(claim.server_id)
                ))
            } else if agree(claim, &model_claim) {
                None
            } else {
                let other = self.servers[model].address();
                let mut text = String::new();
                let _ = if claim.deployment_id == model_claim.deployment_id {
                    write!(
                        text,
                        "its identity key is not that of {other}: give both the same --identity-key-file and restart them, or \
                         take one of them out"
                    )
                } else {
                    write!(
                        text,
                        "it belongs to deployment {}, {other} to {}: give both the same --deployment-id and --identity-key-file \
                         and restart them, or take one of them out",
                        uuid(claim.deployment_id),
                        uuid(model_claim.deployment_id)
                    )
                };
                Some(text)
            };
            let server = &mut self.servers[*at];
            match why {
                Some(why) if *at != number && server.clash.as_ref() == Some(&why) => {}
                Some(why) => server.expel(why, &mut self.common, now),
                None if server.clash.is_some() => server.readmit(now),
                None => {}
            }
        }
        self.choose_members();
    }

    /// Decides who takes records, from how the servers are, and moves the records of those that do not.
    fn review(&mut self, now: Now) {
        if self.servers.len() == 1 {
            return;
        }
        let now_us = now.clock_us;
        self.servers.iter_mut().for_each(|server| server.look(now_us));
        let mut next_us = self.servers.iter().map(|server| server.look_us(now_us)).min().unwrap_or(u64::MAX);
        // When the client closes, there is no time to wait for one that has records and is not there.
        let closing = self.common.closing;
        let away_us = |server: &Server| {
            server.away_us().map(|away_us| if closing && server.has_records() { away_us.min(now_us) } else { away_us })
        };
        let is_away = |server: &Server| away_us(server).is_some_and(|away_us| away_us <= now_us);
        if self.servers.iter().any(Server::is_up) && self.servers.iter().all(|server| !server.takes_records || is_away(server)) {
            let until_us = *self.settle_us.get_or_insert(now_us + self.common.config.connect_timeout_us);
            let all = self.servers.iter().all(|server| server.is_up() || server.clash.is_some());
            let is_start = self.members.is_empty();
            if !is_start || all || until_us <= now_us || self.common.closing {
                self.servers.iter_mut().filter(|server| server.is_up()).for_each(|server| server.takes_records = true);
            } else {
                next_us = next_us.min(until_us);
            }
        } else {
            self.settle_us = None;
        }
        let is_served = self.servers.iter().any(|server| server.takes_records && server.is_up());
        for server in &mut self.servers {
            match server.health {
                Health::Down { .. } if server.takes_records => {
                    let away_us = away_us(server).unwrap_or(u64::MAX);
                    if away_us > now_us {
                        next_us = next_us.min(away_us);
                    } else if is_served {
                        server.takes_records = false;
                        self.common.ledger.failovers += 1;
                        tracing::warn!(server = %server.address(), "away: its records go to the other servers");
                    }
                }
                Health::Up { since_us } if !server.takes_records => {
                    let until_us = since_us.saturating_add(BACK_US);
                    if until_us <= now_us {
                        server.takes_records = true;
                        tracing::info!(server = %server.address(), "healthy for 30 s: takes records again");
                    } else {
                        next_us = next_us.min(until_us);
                    }
                }
                _ => {}
            }
        }
        self.review_us = next_us;
        self.choose_members();
        if is_served && std::mem::take(&mut self.moves_due) {
            self.evacuate(now);
        }
    }

    /// Moves the records of servers that take none.
    fn evacuate(&mut self, now: Now) {
        for number in 0..self.servers.len() {
            let (server, members) = (&mut self.servers[number], &self.members);
            if !server.takes_records && server.has_records() {
                let goes = |item: &Item<'_>| server_for(members, item).is_some();
                let displaced = server.evacuate(goes, &mut self.common.ledger);
                self.place_all(displaced, number, now);
            }
        }
    }

    fn choose_members(&mut self) {
        let of = |(number, server): (usize, &Server)| {
            let server_id = server.topology().filter(|_| server.takes_records)?.server_id;
            Some(Member { number, server_id, seed: server_seed(&server_id) })
        };
        let members: Vec<Member> = self.servers.iter().enumerate().filter_map(of).collect();
        if members != self.members {
            self.members = members;
            self.moves_due = true;
            self.common.status_changed = true;
        }
    }

    /// Ends the round when every server has answered that is not away.
    fn finish_stats(&mut self) {
        if self.common.stats_token.is_none() || !self.routes() {
            return;
        }
        let answers: Vec<Option<ServerStats>> = self.servers.iter().map(Server::stats).collect();
        let awaited = |server: &Server| server.takes_records || server.is_up();
        if self.servers.iter().zip(&answers).any(|(server, answer)| answer.is_none() && awaited(server)) {
            return;
        }
        self.common.stats_token = None;
        self.stats.result = Some((self.stats.token, answers));
        self.start_stats();
    }

    /// The next [`Self::take_status`] tells it, changed or not.
    #[cfg(test)]
    pub(crate) const fn touch_status(&mut self) {
        self.common.status_changed = true;
    }

    /// (session, shard) of which something was acknowledged by this server.
    #[cfg(test)]
    pub(crate) fn sessions_acked(&self, server: usize) -> Vec<(u64, u32)> {
        self.servers[server].sessions_acked()
    }

    /// Asserts what must hold after every step.
    #[cfg(any(test, feature = "fuzzing", feature = "simulation"))]
    pub(crate) fn invariants(&self) {
        let mut held = crate::lane::Held::default();
        self.servers.iter().for_each(|server| held += server.invariants());
        let ledger = &self.common.ledger;
        let told = (ledger.queued, ledger.queued_marked, ledger.in_flight, ledger.bytes);
        assert_eq!((held.queued, held.queued_marked, held.in_flight, held.bytes), told, "the ledger tells what is there");
        assert_eq!(held.connections, ledger.connects - ledger.disconnects, "{ledger:?}");
        for server in &self.servers {
            assert!(!server.takes_records || server.topology().is_some() && server.clash.is_none());
        }
    }
}

/// An id as people write it.
pub(crate) fn uuid(id: [u8; 16]) -> String {
    let hex = |range: std::ops::Range<usize>| {
        id[range].iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    };
    [hex(0..4), hex(4..6), hex(6..8), hex(8..10), hex(10..16)].join("-")
}
