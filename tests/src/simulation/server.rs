//! One simulated server process: the control plane in miniature, and the real loops of its shards over hostile kernels.

use super::books::{Books, number_of};
use super::fate::{Fault, SharedFate};
use super::kernel::SimulatedKernel;
use super::network::{Found, SharedNetwork, Way};
use postanalytics_protocol::frames::{ANY_SHARD, Action, ErrorFrame, Hello, PackageVersion, Subject, Verdict};
use postanalytics_protocol::routing::address_bytes;
use postanalytics_protocol::{Assembler, ErrorCode, HEADER_BYTES, Source, ValidBatch, shard_of};
use postanalytics_server::analytics::detectors::Detector;
use postanalytics_server::analytics::summary::page::{SummaryAsk, SummaryPage};
use postanalytics_server::analytics::summary::view::{TimelineFilter, TopFilter, TopOf};
use postanalytics_server::analytics::{AnalyticsPlan, Reload, Room};
use postanalytics_server::arena::{Log, SlabHandle};
use postanalytics_server::queue::{Receiver, Sender, queue};
use postanalytics_server::shard::derived::{DerivedReceiver, derived_queue};
use postanalytics_server::shard::messages::{
    ConnectionTicket, Cursor, FromShard, Handover, Query, QueryPage, ShardReload, ToShard, Topology, VerdictPage,
};
use postanalytics_server::shard::page::StatsPage;
use postanalytics_server::shard::{Driver, Shard, ShardConfig};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// The control plane tries so long to hand a connection over.
const HANDOVER_US: u64 = 1_000_000;
const HELLO_US: u64 = 5_000_000;
/// In a calm world a server drains long before ([`super::DRAIN_US`]): what is cut here would be a leak that nobody sees.
const DRAIN: Duration = Duration::from_secs(10);

/// So many handles that resolve to nothing are watched, the newest: slabs come round after a few hundred frames.
const DEAD_HANDLES_MAX: usize = 1_000;

/// A connection whose Hello is arriving.
#[derive(Debug)]
struct Greeting {
    connection: usize,
    since_us: u64,
    bytes: Vec<u8>,
}

/// A message on its way to a shard.
#[derive(Debug)]
struct Waiting {
    message: ToShard,
    since_us: u64,
}

/// One shard, and what is known of it from outside.
#[derive(Debug)]
pub struct Unit {
    shard: u32,
    driver: Driver<SimulatedKernel>,
    messages: Sender<ToShard>,
    answers: Receiver<FromShard>,
    derived: DerivedReceiver,
    page: Arc<StatsPage>,
    waiting: VecDeque<Waiting>,
    tickets: Vec<(Weak<ConnectionTicket>, usize)>,
    /// It gets no CPU until then.
    pub starved_until_us: u64,
    ended: bool,
    frames_seen: u64,
    commit_seen: u64,
    sequences: BTreeMap<([u8; 16], u64), u64>,
    /// Handles that resolve, and the CRC of their bodies.
    handles: Vec<(SlabHandle, u32)>,
    /// The newest of those that resolve to nothing any more.
    dead: VecDeque<SlabHandle>,
    cursor: Option<Cursor>,
    asked: bool,
    /// Where the next page of verdicts begins.
    verdicts_from: usize,
    asked_verdicts: bool,
    asked_summary: bool,
    /// Stored records with a hit.
    hits: u64,
    /// Commit index of the newest frame seen in the attack log.
    attacks_seen: u64,
    /// Records stored in the attack log and pushed out of it, when it was looked at last.
    attacks_counted: (u64, u64),
    /// Records seen in the attack log.
    attacked: BTreeSet<u64>,
}

/// See the module.
#[derive(Debug)]
pub struct Server {
    fate: SharedFate,
    network: SharedNetwork,
    /// Its number among the servers of this world.
    pub number: u32,
    topology: Arc<Topology>,
    /// Its shards.
    pub units: Vec<Unit>,
    greetings: Vec<Greeting>,
    nowhere: OwnedFd,
    /// Goodbye was said.
    pub draining: bool,
    /// Addresses and whether they are listed.
    verdicts: BTreeMap<IpAddr, bool>,
}

/// Totals that a report tells.
#[derive(Clone, Copy, Debug, Default)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Totals {
    pub records_stored: u64,
    pub records_duplicate: u64,
    pub records_rejected: u64,
    pub records_evicted: u64,
    pub errors_sent: u64,
    pub connections: u64,
}

impl Server {
    /// Starts a server with shards of chance.
    ///
    /// `shared`: it is one of several, which all have the same identity key; half of them have an id of their place for good.
    pub fn start(fate: &SharedFate, network: &SharedNetwork, number: u32, shared: Option<usize>, small: bool) -> Self {
        let (shard_count, routing_seed) = (1 + fate.below(3) as u32, fate.number());
        let id_of_place = shared.filter(|place| place % 2 == 0).map(|place| 200 + place as u8);
        let topology = Arc::new(Topology {
            server_id: [id_of_place.unwrap_or(number as u8 + 1); 16],
            deployment_id: [1; 16],
            epoch: fate.number(),
            shard_count,
            routing_seed,
            identity_key: [if shared.is_some() { 0 } else { number as u8 + 1 }; 32],
            package: PackageVersion::default(),
            max_body_bytes: 1 << 20,
        });
        let units = (0..shard_count).map(|shard| Unit::new(fate, network, shard, &topology, small)).collect();
        let nowhere = std::fs::File::open("/dev/null").expect("/dev/null can be opened").into();
        let (fate, network) = (fate.clone(), network.clone());
        Self {
            fate,
            network,
            number,
            topology,
            units,
            greetings: Vec::new(),
            nowhere,
            draining: false,
            verdicts: BTreeMap::new(),
        }
    }

    /// Number of shards.
    pub fn shard_count(&self) -> u32 {
        self.topology.shard_count
    }

    /// The shard of a source.
    pub fn shard_of(&self, source: Source) -> u32 {
        shard_of(source, self.topology.routing_seed, self.topology.shard_count)
    }

    /// Takes a connection.
    pub fn accept(&mut self, connection: usize) {
        self.greetings.push(Greeting { connection, since_us: self.fate.now_us(), bytes: Vec::new() });
    }

    /// A turn of the control plane: reads Hellos, hands connections over.
    pub fn control(&mut self) {
        for mut greeting in std::mem::take(&mut self.greetings) {
            match self.read_hello(&mut greeting) {
                Some(Ok((hello, session))) => self.hand_over(greeting.connection, hello, session),
                Some(Err(code)) => self.refuse(greeting.connection, code),
                None => self.greetings.push(greeting),
            }
        }
        for at in 0..self.units.len() {
            self.deliver(at);
        }
    }

    fn read_hello(&self, greeting: &mut Greeting) -> Option<Result<(Hello, u64), ErrorCode>> {
        loop {
            let wanted = match greeting.bytes.get(8..12) {
                Some(length) if greeting.bytes.len() >= HEADER_BYTES => {
                    HEADER_BYTES + u32::from_le_bytes(length.try_into().expect("four")) as usize
                }
                _ => HEADER_BYTES,
            };
            if wanted > HEADER_BYTES && greeting.bytes.len() == wanted {
                let mut body = Vec::new();
                let header = Assembler::default().collect(&mut greeting.bytes.as_slice(), &mut body);
                let header = header.expect("clients send frames").expect("it is whole");
                let hello = Hello::decode(&body).expect("a Hello comes first");
                let known = hello.wanted_shard == ANY_SHARD || hello.wanted_shard < self.shard_count();
                return Some(if known { Ok((hello, header.session)) } else { Err(ErrorCode::NoSuchShard) });
            }
            let mut network = self.network.get();
            match network.look(greeting.connection, Way::Up) {
                Found::Bytes(available) => {
                    let count = available.min(wanted - greeting.bytes.len());
                    greeting.bytes.extend(network.read(greeting.connection, Way::Up, count).1);
                }
                Found::End | Found::Reset => return Some(Err(ErrorCode::HandshakeTimeout)),
                Found::Nothing if greeting.since_us + HELLO_US <= self.fate.now_us() => {
                    return Some(Err(ErrorCode::HandshakeTimeout));
                }
                Found::Nothing => return None,
            }
        }
    }

    fn hand_over(&mut self, connection: usize, hello: Hello, session: u64) {
        let shard = match hello.wanted_shard {
            ANY_SHARD => self.fate.below(self.units.len()) as u32,
            shard => shard,
        };
        let socket = rustix::io::dup(self.nowhere.as_fd()).expect("a descriptor");
        self.network.get().bind(socket.as_raw_fd(), connection);
        let ticket = Arc::new(ConnectionTicket {
            node: hello.node,
            name: hello.name.clone(),
            session,
            peer: SocketAddr::from(([127, 0, 0, 1], 9)),
            package: hello.package,
            shard,
        });
        self.units[shard as usize].tickets.push((Arc::downgrade(&ticket), connection));
        self.tell(shard as usize, ToShard::Adopt(Handover { socket, hello, session, ticket }));
    }

    fn refuse(&self, connection: usize, code: ErrorCode) {
        let mut bytes = Vec::new();
        ErrorFrame { code: code as u16, sequence: 0, text: "no".into() }.encode(0, 0, &mut bytes);
        let mut network = self.network.get();
        let _ = network.write(connection, Way::Down, &bytes);
        network.close_server(connection);
    }

    /// Puts a message into the queue to a shard, or before it.
    fn tell(&mut self, shard: usize, message: ToShard) {
        let since_us = self.fate.now_us();
        self.units[shard].waiting.push_back(Waiting { message, since_us });
        self.deliver(shard);
    }

    fn deliver(&mut self, shard: usize) {
        let now_us = self.fate.now_us();
        let unit = &mut self.units[shard];
        let mut refused = Vec::new();
        while let Some(Waiting { message, since_us }) = unit.waiting.pop_front() {
            let Err(message) = unit.messages.send(message) else {
                unit.driver.parts().0.message();
                continue;
            };
            self.fate.happened(Fault::ControlQueueFull);
            match message {
                ToShard::Adopt(handover) if since_us + HANDOVER_US <= now_us => {
                    let ticket = Arc::downgrade(&handover.ticket);
                    let of = unit.tickets.iter().position(|(other, _)| other.ptr_eq(&ticket));
                    refused.extend(of.map(|at| unit.tickets.swap_remove(at).1));
                }
                message => {
                    unit.waiting.push_front(Waiting { message, since_us });
                    break;
                }
            }
        }
        refused.into_iter().for_each(|connection| self.refuse(connection, ErrorCode::Overloaded));
    }

    /// Says something to a shard: a verdict by hand, or a query; if it is `talkative` also what else there is to say.
    pub fn order(&mut self, books: &Books, talkative: bool) {
        let shard = self.fate.below(self.units.len());
        if talkative && self.fate.once_in(2) {
            match self.fate.below(3) {
                0 => self.reload(shard),
                1 => self.ask_verdicts(shard),
                _ => self.ask_summary(shard),
            }
            return;
        }
        if self.fate.once_in(2) {
            // An address has one shard only, as it has in reality.
            let number = self.fate.below(200) as u32;
            let address = IpAddr::V4(Ipv4Addr::from(0xc612_0000 + number));
            let shard = self.shard_of(Source::of(address)) as usize;
            let listed = !self.fate.once_in(3);
            self.verdicts.insert(address, listed);
            let action = listed.then_some(Action::Denylist);
            let subject = Subject::Source(address_bytes(address));
            let verdict = Verdict { subject, application: None, action, until_us: 0, detector: 0 };
            for _ in 0..1 + self.fate.below(4) {
                self.tell(shard, ToShard::SetVerdict { verdict, duration_us: 1 << 60 });
            }
        } else if !std::mem::replace(&mut self.units[shard].asked, true) {
            let source =
                self.fate.once_in(2).then(|| super::books::Content::new(self.fate.below(64) as u64, books.long).source());
            let cursor = self.units[shard].cursor.filter(|_| !self.fate.once_in(3));
            let limit = 1 + self.fate.below(100);
            let query = Query {
                id: 1,
                source,
                request_id: None,
                since_us: None,
                limit,
                until_us: None,
                explain: false,
                cursor,
                page: QueryPage::default(),
            };
            self.tell(shard, ToShard::Query(Box::new(query)));
        }
    }

    fn reload(&mut self, shard: usize) {
        let changed = vec![Detector::ALL[self.fate.below(Detector::ALL.len())]];
        let analytics = Some(Reload { settings: Arc::default(), changed });
        let frame_deadline = Duration::from_secs(1 + self.fate.below(10) as u64);
        self.tell(shard, ToShard::Reload(Box::new(ShardReload { analytics, frame_deadline, drain_deadline: DRAIN })));
    }

    fn ask_verdicts(&mut self, shard: usize) {
        if std::mem::replace(&mut self.units[shard].asked_verdicts, true) {
            return;
        }
        let (from, room) = (self.units[shard].verdicts_from, [1, 7, 300][self.fate.below(3)]);
        let page = VerdictPage { id: 2, from, subject: None, verdicts: Vec::with_capacity(room), next: None };
        self.tell(shard, ToShard::Verdicts(Box::new(page)));
    }

    fn ask_summary(&mut self, shard: usize) {
        if std::mem::replace(&mut self.units[shard].asked_summary, true) {
            return;
        }
        let of = [TopOf::Sources, TopOf::Paths, TopOf::UserAgents, TopOf::Types];
        let ask = match of.get(self.fate.below(of.len() + 1)) {
            Some(of) => SummaryAsk::Top(TopFilter { of: *of, application: None, limit: 10 }),
            None => SummaryAsk::Timeline(TimelineFilter { application: None, since_us: None }),
        };
        self.tell(shard, ToShard::Summary(Box::new(SummaryPage::new(3, ask, self.fate.wall_us()))));
    }

    /// Asserts that no connection is held whose client is gone, and no link without a connection.
    pub fn check_rest(&mut self) {
        let network = self.network.get();
        for unit in &mut self.units {
            for (_, connection) in &unit.tickets {
                assert!(network.is_open(*connection), "connection {connection} is held though its client is long gone");
            }
            let (_, links, core) = unit.driver.parts();
            assert_eq!(links.in_use(), unit.tickets.len(), "links in use, and connections");
            let mut page = VerdictPage { id: 0, from: 0, subject: None, verdicts: Vec::with_capacity(1_000), next: None };
            core.list_verdicts(&mut page);
            let found: BTreeSet<[u8; 16]> = page.verdicts.iter().map(address_of).collect();
            assert_eq!((found.len(), page.next), (page.verdicts.len(), None), "a verdict is there twice");
            let of_shard = |address: IpAddr| {
                shard_of(Source::of(address), self.topology.routing_seed, self.topology.shard_count) == unit.shard
            };
            let listed = self.verdicts.iter().filter(|(address, listed)| **listed && of_shard(**address));
            assert_eq!(
                found,
                listed.map(|(address, _)| address_bytes(*address)).collect(),
                "the verdicts of shard {}",
                unit.shard
            );
        }
    }

    /// Says Goodbye to all.
    pub fn drain(&mut self) {
        self.draining = true;
        for greeting in std::mem::take(&mut self.greetings) {
            self.network.get().close_server(greeting.connection);
        }
        for shard in 0..self.units.len() {
            self.tell(shard, ToShard::Drain);
        }
    }

    /// Whether all shards have ended.
    pub fn is_drained(&self) -> bool {
        self.units.iter().all(|unit| unit.ended)
    }

    /// A turn of a shard, if its kernel wakes it.
    pub fn turn(&mut self, shard: usize, books: &mut Books) {
        let unit = &mut self.units[shard];
        if unit.ended || unit.starved_until_us > self.fate.now_us() || !unit.driver.parts().0.wakes() {
            return;
        }
        self.fate.note(shard as u64, 1);
        unit.ended = unit.driver.wake().expect("the loop goes on");
        if unit.driver.acks_wait() {
            self.fate.happened(Fault::AckWaited);
        }
        unit.check(&self.fate, self.number, &self.topology, books);
        unit.hear(self.number, &self.topology, &self.verdicts, books);
        self.close_forgotten(shard);
        if self.units[shard].ended {
            self.cut(shard);
        } else {
            self.units[shard].driver.sleep().expect("the loop goes on");
        }
    }

    /// Sockets whose tickets are gone are closed.
    fn close_forgotten(&mut self, shard: usize) {
        let mut network = self.network.get();
        self.units[shard].tickets.retain(|(ticket, connection)| {
            let held = ticket.strong_count() > 0;
            if !held {
                network.close_server(*connection);
            }
            held
        });
    }

    /// Ends a shard: nothing of it may be left.
    fn cut(&mut self, shard: usize) {
        let unit = &mut self.units[shard];
        unit.ended = true;
        unit.driver.parts().0.alone = true;
        unit.driver.cut().expect("the loop goes on");
        let (kernel, links, _) = unit.driver.parts();
        assert_eq!(links.in_use(), 0, "links are left at the end");
        kernel.check_end();
        unit.waiting.clear();
        // What was never adopted lies in the queue, which goes with the thread.
        let unadopted = std::mem::take(&mut unit.tickets);
        unadopted.into_iter().for_each(|(_, connection)| self.network.get().close_server(connection));
    }

    /// Ends the process at once.
    pub fn kill(&mut self) {
        let connections: Vec<usize> =
            self.units.iter().flat_map(|unit| &unit.tickets).map(|(_, connection)| *connection).collect();
        let greeting = self.greetings.drain(..).map(|greeting| greeting.connection);
        connections.into_iter().chain(greeting).for_each(|connection| self.network.get().reset(connection));
        for shard in 0..self.units.len() {
            if !self.units[shard].ended {
                self.cut(shard);
            }
        }
    }

    /// Verdicts that are in force or were taken back.
    pub const fn verdicts(&self) -> &BTreeMap<IpAddr, bool> {
        &self.verdicts
    }

    /// Whether messages wait.
    pub fn is_quiet(&self) -> bool {
        self.greetings.is_empty() && self.units.iter().all(Unit::is_quiet)
    }

    /// When something happens by itself, µs.
    pub fn next_us(&mut self) -> u64 {
        let units = self.units.iter_mut().filter(|unit| !unit.ended);
        units.map(|unit| unit.driver.parts().0.next_us().max(unit.starved_until_us)).min().unwrap_or(u64::MAX)
    }

    /// How its shards stand, for a failure.
    pub fn describe(&mut self) -> Vec<String> {
        let describe = |unit: &mut Unit| {
            let (kernel, links, core) = unit.driver.parts();
            format!("{kernel:?} {links:?} {:?} {:?}", core.stats(), unit.waiting)
        };
        self.units.iter_mut().map(describe).collect()
    }

    /// Adds what it did.
    pub fn add_to(&mut self, totals: &mut Totals) {
        for unit in &mut self.units {
            let stats = unit.driver.parts().2.stats();
            totals.records_stored += stats.records_stored;
            totals.records_duplicate += stats.records_duplicate;
            totals.records_rejected += stats.records_rejected;
            totals.records_evicted += stats.records_evicted;
            totals.errors_sent += stats.errors_sent;
            totals.connections += stats.connections_adopted;
        }
    }
}

impl Unit {
    fn new(fate: &SharedFate, network: &SharedNetwork, shard: u32, topology: &Arc<Topology>, small: bool) -> Self {
        let config = ShardConfig {
            analytics: AnalyticsPlan {
                // Without detectors the texts of torn bodies go past the caches, too.
                room: Room {
                    keys: [0, 256, 256, 256][fate.below(4)],
                    reports: true,
                    hands_on_failures: true,
                    shards: topology.shard_count,
                    ..Room::default()
                },
                ..AnalyticsPlan::default()
            },
            shard,
            cpu: None,
            arena_bytes: 0,
            topology: Arc::clone(topology),
            receive_buffers: [2, 4, 16][fate.below(3)],
            receive_buffer_bytes: [256, 1024, 8192][fate.below(3)],
            connections_max: if small { 5 } else { 64 },
            frame_deadline: Duration::from_secs(1 + fate.below(10) as u64),
            drain_deadline: DRAIN,
        };
        let (messages, inbox) = queue([2, 8, 256][fate.below(3)]).expect("a socket pair");
        let (answers_in, answers) = queue(4).expect("a socket pair");
        let page = Arc::new(StatsPage::default());
        let logs = (Log::new(2).expect("4 MiB"), Log::new(2).expect("4 MiB"));
        let kernel = SimulatedKernel::new(fate.clone(), network.clone(), config.ring());
        let mut driver = Driver::new(kernel, logs, config, Arc::clone(&page), inbox, answers_in).expect("nothing can fail");
        let (derived_in, derived) = derived_queue().expect("socket pairs");
        driver.parts().2.connect_correlator(derived_in);
        driver.parts().2.committed = Some(Vec::new());
        driver.sleep().expect("nothing can fail");
        Self {
            shard,
            driver,
            messages,
            answers,
            derived,
            page,
            waiting: VecDeque::new(),
            tickets: Vec::new(),
            starved_until_us: 0,
            ended: false,
            frames_seen: 0,
            commit_seen: 0,
            sequences: BTreeMap::new(),
            handles: Vec::new(),
            dead: VecDeque::new(),
            cursor: None,
            asked: false,
            verdicts_from: 0,
            asked_verdicts: false,
            asked_summary: false,
            hits: 0,
            attacks_seen: 0,
            attacks_counted: (0, 0),
            attacked: BTreeSet::new(),
        }
    }

    fn is_quiet(&self) -> bool {
        self.waiting.is_empty() && !self.asked && !self.asked_verdicts && !self.asked_summary
    }

    /// The oracles of a shard, after every turn.
    fn check(&mut self, fate: &SharedFate, server: u32, topology: &Topology, books: &mut Books) {
        let (kernel, links, core) = self.driver.parts();
        kernel.check_turn();
        links.invariants();
        let stats = core.stats();
        assert_eq!(
            stats.records_received,
            stats.records_stored + stats.records_rejected + stats.records_duplicate,
            "received = stored + rejected + duplicate"
        );
        assert_eq!(stats.records_stored, stats.records_live + stats.records_evicted, "stored = live + evicted");
        let page = self.page.read();
        assert_eq!((page.records_stored, page.records_received), (stats.records_stored, stats.records_received), "the page");
        assert_eq!(links.completions_stale, 0, "a completion for a link that is gone");
        let (new_frames, thorough) = (stats.frames_stored - self.frames_seen, fate.once_in(8));
        if thorough {
            core.invariants();
        }
        let committed = core.committed.replace(Vec::new()).expect("it was asked for");
        assert_eq!(committed.len() as u64, new_frames, "frames are counted and not committed");
        let log = core.requests();
        for (handle, header, body) in &committed {
            self.commit_seen += 1;
            assert_eq!(header.commit_index, self.commit_seen, "commit indexes are dense");
            let highest = self.sequences.entry((header.node, header.session)).or_default();
            let forgotten = books.forgets && header.sequence == 1;
            assert!(header.sequence == *highest + 1 || forgotten, "sequence {} follows {highest}", header.sequence);
            *highest = header.sequence;
            let batch = ValidBatch::parse(header.schema, header.record_count, body).expect("only valid batches are stored");
            for record in batch.records() {
                let shard = shard_of(record.source(), topology.routing_seed, topology.shard_count);
                assert_eq!(shard, self.shard, "a record of another shard");
                books.stored(server, &record);
                self.hits += u64::from(record.hit_count() > 0);
            }
            self.handles.push((*handle, crc32fast::hash(body)));
        }
        self.frames_seen = stats.frames_stored;
        if thorough {
            // A handle resolves to what it was made for, or to nothing, and then for good.
            for handle in &self.dead {
                assert!(log.frame(*handle).is_none(), "a handle resolves again: {handle:?}");
            }
            let dead = &mut self.dead;
            self.handles.retain(|(handle, crc)| {
                let Some((_, body)) = log.frame(*handle) else {
                    dead.push_back(*handle);
                    return false;
                };
                assert_eq!(crc32fast::hash(body), *crc, "a handle resolves to other bytes");
                true
            });
            dead.drain(..dead.len().saturating_sub(DEAD_HANDLES_MAX));
            let live: u64 =
                self.handles.iter().filter_map(|(handle, _)| log.frame(*handle)).map(|(of, _)| u64::from(of.record_count)).sum();
            assert_eq!(live, stats.records_live, "every live record has a frame that was seen");
        }
        self.check_attacks(server, books);
    }

    /// Every record with a hit is in the attack log, once, or is counted as one that is not kept.
    fn check_attacks(&mut self, server: u32, books: &Books) {
        let core: &Shard = self.driver.parts().2;
        let (stats, log) = (core.stats(), core.attacks());
        let (stored, suppressed) = (stats.attack_records_stored, stats.hits_suppressed);
        // Of those counted some may be kept as samples.
        assert!(
            self.hits <= stored + suppressed && stored <= self.hits,
            "kept + suppressed = all hits: {stored} + {suppressed}, {} hits",
            self.hits
        );
        let (mut place, mut fresh, mut newest) = (log.newest(), 0, self.attacks_seen);
        while let Some(handle) = place {
            place = log.older(handle);
            let Some((header, body)) = log.frame(handle) else { continue };
            if header.commit_index <= self.attacks_seen {
                break;
            }
            newest = newest.max(header.commit_index);
            let batch = ValidBatch::parse(header.schema, header.record_count, body).map(|batch| {
                for record in batch.records() {
                    let number = number_of(&record);
                    assert!(books.has_stored(server, number) && record.hit_count() > 0, "record {number} is kept as an attack");
                    assert!(self.attacked.insert(number), "record {number} is kept as an attack twice");
                    fresh += 1;
                }
            });
            assert!(batch.is_ok(), "the attack log holds batches");
        }
        let evicted = log.usage().records_evicted;
        let before = std::mem::replace(&mut self.attacks_counted, (stored, evicted));
        assert!(
            evicted > before.1 || fresh == stored - before.0,
            "{fresh} new records of {stored} - {} in the attack log",
            before.0
        );
        self.attacks_seen = newest;
    }

    fn hear(&mut self, server: u32, topology: &Topology, verdicts: &BTreeMap<IpAddr, bool>, books: &Books) {
        // One box a turn: shards fill them faster than that at times, and then wait for free ones.
        if let Some(parcel) = self.derived.receive() {
            assert!(parcel.hits.iter().all(|report| report.count > 0), "a report of nothing");
            self.derived.give_back(parcel);
        }
        while let Some(answer) = self.answers.receive() {
            let query = match answer {
                FromShard::Query(query) => query,
                FromShard::Verdicts(page) => {
                    self.hear_verdicts(&page, topology, verdicts);
                    continue;
                }
                FromShard::Summary(page) => {
                    self.hear_summary(&page);
                    continue;
                }
            };
            self.asked = false;
            self.cursor = query.cursor;
            let mut body = vec![0; query.page.records.body_bytes()];
            query.page.records.encode_body(&mut body);
            let count = query.page.records.len();
            assert_eq!(count, query.page.stored.len());
            assert!(count <= query.limit, "more than was asked for");
            let batch = ValidBatch::parse(1, count as u32, &body).expect("an answer is a batch");
            let mut numbers: Vec<u64> = batch.records().map(|record| number_of(&record)).collect();
            for record in batch.records() {
                assert!(query.source.is_none_or(|source| record.source() == source), "a record of another source");
                assert!(books.has_stored(server, number_of(&record)), "a record that this server never stored");
            }
            numbers.sort_unstable();
            numbers.dedup();
            assert_eq!(numbers.len(), count, "a record is in the answer twice");
        }
    }
}

impl Unit {
    fn hear_verdicts(&mut self, page: &VerdictPage, topology: &Topology, verdicts: &BTreeMap<IpAddr, bool>) {
        assert!(std::mem::take(&mut self.asked_verdicts) && page.id == 2, "an answer that nobody asked for");
        assert!(page.next.is_none_or(|next| next > page.from && page.verdicts.len() == page.verdicts.capacity()), "{page:?}");
        self.verdicts_from = page.next.unwrap_or(0);
        let known: BTreeSet<[u8; 16]> = verdicts.keys().map(|address| address_bytes(*address)).collect();
        for verdict in &page.verdicts {
            let address = address_of(verdict);
            let shard = shard_of(Source::of_bytes(&address), topology.routing_seed, topology.shard_count);
            assert!(known.contains(&address) && shard == self.shard, "a verdict that was never said here: {verdict:?}");
        }
    }

    fn hear_summary(&mut self, page: &SummaryPage) {
        assert!(std::mem::take(&mut self.asked_summary) && page.id == 3, "an answer that nobody asked for");
        let stored = self.driver.parts().2.stats().records_stored;
        let requests: u64 = page.cells.iter().map(|(_, _, cell)| u64::from(cell.requests)).sum();
        let attacks: u64 = page.cells.iter().map(|(_, _, cell)| u64::from(cell.attacks)).sum();
        assert!(
            requests <= stored && attacks <= self.hits,
            "{requests} requests and {attacks} attacks of {stored} and {}",
            self.hits
        );
        let listed: u64 = page.generations.iter().map(|generation| generation.total).sum();
        assert!(listed <= stored, "a top list counted {listed} of {stored}");
        for entry in &page.entries {
            let total = page.generations[entry.generation].total;
            assert!(entry.error <= entry.count && u64::from(entry.count - entry.error) <= total, "{entry:?} of {total}");
        }
    }
}

/// Whom a verdict is on; here all are on sources, said by hand.
fn address_of(verdict: &Verdict) -> [u8; 16] {
    match verdict.subject {
        Subject::Source(bytes) if verdict.detector == 0 => bytes,
        _ => panic!("nobody said this: {verdict:?}"),
    }
}
