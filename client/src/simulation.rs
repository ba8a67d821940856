//! The core against a server in memory, driven from a seed: every order of records, bytes, breaks and restarts that a
//! network can produce, with the laws checked after each step.
//!
//! The server here keeps the rules of the wire strictly: it panics on a skipped sequence, a record of another shard, or bytes
//! before Welcome, so the client may never send such a thing.

use crate::ack::AckedRecord;
use crate::bundle::Bundle;
use crate::config::Config;
use crate::connection::Break;
use crate::core::{Core, Now};
use crate::denylist::Denylist;
use crate::request::Request;
use postanalytics_protocol::error::ErrorCode;
use postanalytics_protocol::frames::{
    ANY_SHARD, Ack, Action, ControlFrame, ErrorFrame, Goodbye, PackageVersion, Stats, StoredSequence, Subject, Verdict, Verdicts,
    Welcome,
};
use postanalytics_protocol::header::{FrameHeader, FrameKind};
use postanalytics_protocol::routing::address_bytes;
use postanalytics_protocol::{AlignedVec, Assembler, ValidBatch, shard_of};
use proptest::prelude::*;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex};
use std::time::Instant;

const SECOND: u64 = 1_000_000;

fn config() -> Config {
    Config {
        server: "simulated:1".into(),
        host: "simulated".into(),
        port: 1,
        node: [9; 16],
        node_name: "node".into(),
        replay: false,
        queue_bytes: 100_000_000,
        batch_bytes: 2048,
        batch_records_max: 100,
        batch_records_aim: 4,
        linger_us_min: 500,
        linger_us_max: 20_000,
        connect_timeout_us: SECOND,
        record_time_limit_us: 900 * SECOND,
        congestion_control: None,
    }
}

fn address(n: u64) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from(0xc000_0200 + (n % 64) as u32))
}

/// A server process: what it stores is gone when it is.
struct Server {
    epoch: u64,
    server_id: u8,
    shards: u32,
    window_bytes: u64,
    max_body_bytes: u32,
    /// Highest sequence by (session, epoch, shard).
    sessions: BTreeMap<(u64, u64, u32), u64>,
    /// Record numbers stored.
    stored: HashSet<u64>,
    duplicate: u64,
    up: bool,
    refuse_content: bool,
    verdicts: Vec<IpAddr>,
    user_hashes: HashSet<u64>,
}

impl Server {
    fn new(epoch: u64, shards: u32) -> Self {
        Self {
            epoch,
            server_id: epoch as u8,
            shards,
            window_bytes: 16 * 1024,
            max_body_bytes: 1 << 20,
            sessions: BTreeMap::new(),
            stored: HashSet::new(),
            duplicate: 0,
            up: true,
            refuse_content: false,
            verdicts: Vec::new(),
            user_hashes: HashSet::new(),
        }
    }

    fn welcome(&self, session: u64, shard: u32) -> Welcome {
        let of_session = self.sessions.iter().filter(|((of, _, _), _)| *of == session);
        Welcome {
            package: PackageVersion::default(),
            server_id: [self.server_id; 16],
            deployment_id: [1; 16],
            epoch: self.epoch,
            shard_count: self.shards,
            shard,
            routing_seed: self.epoch,
            identity_key: [self.epoch as u8; 32],
            server_us: 0,
            window_bytes: self.window_bytes,
            max_body_bytes: self.max_body_bytes,
            protocol: 1,
            schema: 1,
            stored: of_session
                .map(|((_, epoch, shard), sequence)| StoredSequence { epoch: *epoch, shard: *shard, sequence: *sequence })
                .collect(),
        }
    }
}

/// The server's end of one connection.
#[derive(Default)]
struct Peer {
    assembler: Assembler,
    body: AlignedVec<16>,
    session: u64,
    shard: Option<u32>,
    out: Vec<u8>,
    ended: bool,
    ack: Option<u64>,
}

impl Peer {
    fn frame(&mut self, header: &FrameHeader, server: &mut Server) {
        match header.kind {
            FrameKind::Batch => return self.batch(header, server),
            FrameKind::Hello => {}
            _ => assert!(self.shard.is_some(), "{:?} before Welcome", header.kind),
        }
        match ControlFrame::decode(header, &self.body).expect("the client sends frames") {
            ControlFrame::Hello(hello) => {
                let shard = if hello.wanted_shard == ANY_SHARD { server.shards - 1 } else { hello.wanted_shard };
                self.session = header.session;
                if shard >= server.shards {
                    return self.error(ErrorCode::NoSuchShard, 0);
                }
                self.shard = Some(shard);
                server.sessions.entry((self.session, server.epoch, shard)).or_default();
                server.welcome(self.session, shard).encode(self.session, 0, &mut self.out);
                let deny = |address: &IpAddr| Verdict {
                    subject: Subject::Source(address_bytes(*address)),
                    application: None,
                    action: Some(Action::Denylist),
                    until_us: 1 << 60,
                    detector: 0,
                };
                let mine = |address: &&IpAddr| shard_of((**address).into_source(), server.epoch, server.shards) == shard;
                let verdicts = server.verdicts.iter().filter(mine).map(deny).collect();
                Verdicts { sequence: 1, begin: true, end: true, verdicts }.encode(self.session, 0, &mut self.out);
            }
            ControlFrame::StatsRequest(request) => {
                let stats = Stats { token: request.token, session_records_stored: 1, ..Stats::default() };
                stats.encode(self.session, 0, &mut self.out);
            }
            ControlFrame::Ping(_) | ControlFrame::Pong(_) | ControlFrame::Goodbye(_) => {}
            frame => panic!("a client does not send {frame:?}"),
        }
    }

    fn batch(&mut self, header: &FrameHeader, server: &mut Server) {
        let shard = self.shard.expect("no batch before Welcome");
        let highest = server.sessions.get_mut(&(self.session, server.epoch, shard)).expect("Hello made it");
        assert_eq!(header.session, self.session);
        assert!(header.sequence <= *highest + 1, "sequence {} after {highest}: a gap", header.sequence);
        assert!(header.body_bytes <= server.max_body_bytes);
        let batch = ValidBatch::parse(header.schema, header.record_count, &self.body).expect("a valid batch");
        if header.sequence <= *highest {
            server.duplicate += batch.len() as u64;
        } else if server.refuse_content && !batch.is_empty() {
            server.refuse_content = false;
            return self.error(ErrorCode::OutOfBounds, header.sequence);
        } else {
            *highest = header.sequence;
            for record in batch.records() {
                assert_eq!(shard_of(record.source(), server.epoch, server.shards), shard, "a record of another shard");
                let number = u64::from_le_bytes(record.request_id()[..8].try_into().expect("8 bytes"));
                assert!(server.stored.insert(number), "record {number} stored twice");
                server.user_hashes.insert(record.user_hash());
            }
        }
        self.ack = Some(*highest);
    }

    fn error(&mut self, code: ErrorCode, sequence: u64) {
        ErrorFrame { code: code as u16, sequence, text: "no".into() }.encode(self.session, 0, &mut self.out);
        self.ended = true;
    }
}

trait IntoSource {
    fn into_source(self) -> postanalytics_protocol::Source;
}

impl IntoSource for IpAddr {
    fn into_source(self) -> postanalytics_protocol::Source {
        postanalytics_protocol::Source::of(self)
    }
}

/// Client, server and what lies between them.
struct World {
    core: Core,
    denylist: Arc<Denylist>,
    acked: Arc<Mutex<Vec<AckedRecord>>>,
    server: Server,
    /// Records that any server process has ever stored.
    ever_stored: HashSet<u64>,
    peers: HashMap<u64, Peer>,
    waiting: Vec<Bundle>,
    random: fastrand::Rng,
    clock_us: u64,
    sent: u64,
    epochs: u64,
}

impl World {
    fn new(seed: u64, shards: u32) -> Self {
        Self::with(config(), seed, shards)
    }

    fn with(config: Config, seed: u64, shards: u32) -> Self {
        let denylist = Arc::new(Denylist::new(Instant::now()));
        let acked = Arc::new(Mutex::new(Vec::new()));
        let keep = Arc::clone(&acked);
        let hook = move |records: &[AckedRecord]| keep.lock().expect("no panic").extend_from_slice(records);
        Self {
            core: Core::new(config, seed, Some(Box::new(hook)), Arc::clone(&denylist)),
            denylist,
            acked,
            server: Server::new(1, shards),
            ever_stored: HashSet::new(),
            peers: HashMap::new(),
            waiting: Vec::new(),
            random: fastrand::Rng::with_seed(seed),
            clock_us: 0,
            sent: 0,
            epochs: 1,
        }
    }

    fn now(&self) -> Now {
        Now { clock_us: self.clock_us, unix_us: self.clock_us }
    }

    fn send(&mut self, count: u64, bytes: usize) {
        let mut bundle = Bundle::default();
        let path = vec![b'p'; bytes];
        for _ in 0..count {
            let mut request_id = [0; 16];
            request_id[..8].copy_from_slice(&self.sent.to_le_bytes());
            let client_ip = address(self.random.u64(..));
            let request = Request { request_id, client_ip, path: &path, user: b"anna", token: self.sent, ..Request::default() };
            bundle.push(&request.fields(), &request, self.clock_us, self.sent.is_multiple_of(7));
            self.sent += 1;
        }
        self.waiting.push(bundle);
    }

    /// One turn of the thread, in which sockets move as many bytes as chance has it.
    fn turn(&mut self) {
        let now = self.now();
        let mut links: Vec<u64> = self.peers.keys().copied().collect();
        links.sort_unstable();
        for link in links {
            self.exchange(link, now);
        }
        if self.core.routes() {
            for bundle in std::mem::take(&mut self.waiting) {
                self.core.take(&bundle, now);
            }
        }
        self.core.advance(now);
        self.sockets(now);
        self.check();
    }

    fn exchange(&mut self, link: u64, now: Now) {
        let Some(peer) = self.peers.get_mut(&link) else { return };
        let down = self.random.usize(0..=peer.out.len());
        let arrived: Vec<u8> = peer.out.drain(..down).collect();
        self.core.received(link, &arrived, now);
        if peer.ended && peer.out.is_empty() {
            self.core.broken(link, Break::Closed, now);
            return;
        }
        let up = self.random.usize(0..=self.core.unwritten(link).len());
        let mut bytes = &self.core.unwritten(link)[..up];
        while !peer.ended {
            let Some(header) = peer.assembler.collect(&mut bytes, &mut peer.body).expect("the client sends frames") else {
                break;
            };
            peer.frame(&header, &mut self.server);
        }
        // Acks are cumulative: they may come late, and the same one twice.
        for _ in 0..self.random.u32(0..3) {
            if let Some(sequence) = peer.ack.filter(|_| !peer.ended) {
                Ack { sequence }.encode(peer.session, 0, &mut peer.out);
            }
        }
        let welcomed = (peer.session, peer.shard);
        self.core.wrote(link, up);
        // The server closes the older connection of the same session and shard.
        let replaced = |(other, peer): (&u64, &Peer)| {
            (*other < link && (peer.session, peer.shard) == welcomed && welcomed.1.is_some()).then_some(*other)
        };
        let older: Vec<u64> = self.peers.iter().filter_map(replaced).collect();
        for link in older {
            self.break_link(link);
        }
    }

    /// Keeps the sockets that the core wants.
    fn sockets(&mut self, now: Now) {
        let wanted: Vec<u64> = self.core.wanted_links().collect();
        self.peers.retain(|link, _| wanted.contains(link));
        for link in wanted {
            if self.peers.contains_key(&link) {
            } else if self.server.up {
                self.peers.insert(link, Peer::default());
                self.core.connected(link, now);
            } else {
                self.core.broken(link, Break::Connect("down".into()), now);
            }
        }
    }

    fn break_link(&mut self, link: u64) {
        if self.peers.remove(&link).is_some() {
            let now = self.now();
            self.core.broken(link, Break::Closed, now);
        }
    }

    fn restart(&mut self, shards: u32) {
        self.epochs += 1;
        self.ever_stored.extend(&self.server.stored);
        let verdicts = std::mem::take(&mut self.server.verdicts);
        self.server = Server { verdicts, ..Server::new(self.epochs, shards) };
        for link in self.peers.keys().copied().collect::<Vec<_>>() {
            self.break_link(link);
        }
    }

    fn stored(&self) -> HashSet<u64> {
        self.server.stored.union(&self.ever_stored).copied().collect()
    }

    fn check(&self) {
        self.core.invariants();
        let ledger = self.core.ledger();
        let waiting: u64 = self.waiting.iter().map(Bundle::records).sum();
        let settled = ledger.acked + ledger.lost + ledger.in_doubt;
        assert_eq!(self.sent, settled + waiting + ledger.queued + ledger.in_flight, "{ledger:?}");
        let acked = self.acked.lock().expect("no panic");
        assert_eq!(acked.len() as u64, ledger.acked);
    }

    /// What must hold at any time of what was stored.
    fn check_stored(&self) {
        let stored = self.stored();
        let acked = self.acked.lock().expect("no panic");
        let tokens: HashSet<u64> = acked.iter().map(|record| record.token).collect();
        assert_eq!(tokens.len(), acked.len(), "no record is acknowledged twice");
        assert!(tokens.is_subset(&stored), "acked ≤ stored");
    }

    /// Lets everything calm down.
    fn settle(&mut self) {
        self.server.up = true;
        self.core.flush(Some(u64::MAX));
        for _ in 0..20_000 {
            self.clock_us += 20_000;
            self.turn();
            if self.waiting.is_empty() && self.core.is_settled() {
                self.check_stored();
                let ledger = self.core.ledger();
                let stored = self.stored().len() as u64;
                assert!(
                    ledger.acked <= stored && stored <= ledger.acked + ledger.in_doubt + self.lost_with_servers(),
                    "{ledger:?} {stored}"
                );
                return;
            }
        }
        panic!("it never calms down: {:?}", self.core.ledger());
    }

    /// Records stored by a server process that went away before it could acknowledge them.
    fn lost_with_servers(&self) -> u64 {
        let acked = self.acked.lock().expect("no panic");
        let tokens: HashSet<u64> = acked.iter().map(|record| record.token).collect();
        self.ever_stored.difference(&tokens).count() as u64
    }

    fn run(&mut self, turns: usize, step_us: u64) {
        for _ in 0..turns {
            self.clock_us += step_us;
            self.turn();
        }
    }
}

#[derive(Clone, Debug)]
enum Op {
    Send { count: u64, bytes: usize },
    Run { turns: usize, step_us: u64 },
    Break { nth: usize },
    Down,
    Up,
    Restart { shards: u32 },
    Forget,
    RefuseContent,
    Goodbye,
    Window { bytes: u64 },
    MaxBody { bytes: u32 },
    Flush,
    Stats,
    LongPause,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (1u64..40, 0usize..400).prop_map(|(count, bytes)| Op::Send { count, bytes }),
        8 => (1usize..12, 100u64..30_000).prop_map(|(turns, step_us)| Op::Run { turns, step_us }),
        3 => (0usize..8).prop_map(|nth| Op::Break { nth }),
        1 => Just(Op::Down),
        2 => Just(Op::Up),
        1 => (1u32..5).prop_map(|shards| Op::Restart { shards }),
        1 => Just(Op::Forget),
        1 => Just(Op::RefuseContent),
        1 => Just(Op::Goodbye),
        1 => (0u64..8000).prop_map(|bytes| Op::Window { bytes }),
        1 => (600u32..4000).prop_map(|blocks| Op::MaxBody { bytes: blocks / 16 * 16 }),
        1 => Just(Op::Flush),
        1 => Just(Op::Stats),
        1 => Just(Op::LongPause),
    ]
}

fn apply(world: &mut World, op: &Op) {
    match *op {
        Op::Send { count, bytes } => world.send(count, bytes),
        Op::Run { turns, step_us } => world.run(turns, step_us),
        Op::Break { nth } => {
            let mut links: Vec<u64> = world.peers.keys().copied().collect();
            links.sort_unstable();
            if let Some(link) = links.get(nth % links.len().max(1)) {
                world.break_link(*link);
            }
        }
        Op::Down => {
            world.server.up = false;
            for link in world.peers.keys().copied().collect::<Vec<_>>() {
                world.break_link(link);
            }
        }
        Op::Up => world.server.up = true,
        Op::Restart { shards } => world.restart(shards),
        Op::Forget => {
            let ended = world.peers.keys().copied().collect::<Vec<_>>();
            ended.into_iter().for_each(|link| world.break_link(link));
            // A server forgets only sessions that were idle for long. One that forgets what it stored a moment ago, before it
            // acknowledged anything at all, cannot be told from one that never stored it.
            let acked = world.core.sessions_acked();
            world.server.sessions.retain(|(session, _, shard), _| !acked.contains(&(*session, *shard)));
        }
        Op::RefuseContent => world.server.refuse_content = true,
        Op::Goodbye => {
            for peer in world.peers.values_mut().filter(|peer| peer.shard.is_some()) {
                Goodbye { retry_after_ms: 300 }.encode(peer.session, 0, &mut peer.out);
            }
        }
        Op::Window { bytes } => world.server.window_bytes = bytes,
        Op::MaxBody { bytes } => {
            // A limit that a server changes while batches are on their way to it would be its own fault.
            for link in world.peers.keys().copied().collect::<Vec<_>>() {
                world.break_link(link);
            }
            world.server.max_body_bytes = bytes;
        }
        Op::Flush => world.core.flush(Some(world.clock_us)),
        Op::Stats => world.core.ask_stats(world.clock_us + 1),
        Op::LongPause => {
            world.server.up = false;
            for link in world.peers.keys().copied().collect::<Vec<_>>() {
                world.break_link(link);
            }
            world.run(3, 400 * SECOND);
        }
    }
    world.check();
}

proptest! {
    #[test]
    fn the_laws_hold_whatever_happens(seed: u64, shards in 1u32..5, ops in proptest::collection::vec(op(), 1..60)) {
        let mut world = World::new(seed, shards);
        for op in &ops {
            apply(&mut world, op);
        }
        world.settle();
    }

    /// Breaks alone, mid-frame and anywhere else: nothing lost, nothing doubled, nothing in doubt.
    #[test]
    fn breaks_lose_and_double_nothing(seed: u64, shards in 1u32..5, breaks in 1usize..30) {
        let mut world = World::new(seed, shards);
        for nth in 0..breaks {
            apply(&mut world, &Op::Send { count: 30, bytes: 100 });
            apply(&mut world, &Op::Run { turns: 4, step_us: 20_000 });
            apply(&mut world, &Op::Break { nth });
        }
        world.settle();
        let ledger = world.core.ledger();
        prop_assert_eq!((ledger.acked, ledger.lost, ledger.in_doubt), (world.sent, 0, 0));
        prop_assert_eq!(world.server.stored.len() as u64, world.sent);
    }
}

#[test]
fn a_restarted_server_with_other_shards_gets_what_the_old_one_did_not() {
    let mut world = World::new(1, 4);
    world.send(200, 100);
    world.run(20, 5000);
    world.restart(2);
    world.send(50, 100);
    world.settle();
    let ledger = *world.core.ledger();
    assert_eq!((ledger.acked, ledger.lost, ledger.in_doubt), (250, 0, 0));
    assert!(world.server.user_hashes.len() == 1 && !world.server.user_hashes.contains(&0));
    let first = crate::bundle::IdentityKey::new(&[1; 32]).hash(b"anna");
    assert!(!world.server.user_hashes.contains(&first), "hashed with the new key");
}

#[test]
fn what_the_old_topology_stored_is_not_sent_again() {
    let mut world = World::new(2, 2);
    world.send(100, 100);
    for _ in 0..100 {
        world.run(1, 5000);
        if world.server.stored.len() as u64 > world.core.ledger().acked {
            break;
        }
    }
    let (stored, sessions) = (world.server.stored.clone(), world.server.sessions.clone());
    let unacked = stored.len() as u64 - world.core.ledger().acked;
    assert!(unacked > 0, "the seed leaves something unacknowledged: {} {:?}", stored.len(), world.core.ledger());
    world.restart(3);
    // This one kept its sessions and its records.
    (world.server.stored, world.server.sessions) = (stored, sessions);
    world.ever_stored.clear();
    world.settle();
    assert_eq!((world.server.stored.len(), world.core.ledger().acked), (100, 100));
}

#[test]
fn a_refused_batch_is_lost_alone_and_leaves_an_empty_one() {
    let mut world = World::new(3, 1);
    world.server.refuse_content = true;
    world.send(60, 100);
    world.settle();
    let ledger = world.core.ledger();
    assert!(ledger.lost > 0 && ledger.lost < 60 && ledger.in_doubt == 0, "{ledger:?}");
    assert_eq!(world.server.stored.len() as u64 + ledger.lost, 60);
    assert_eq!(ledger.errors_received, 1);
}

#[test]
fn old_records_are_lost_unwritten_and_in_doubt_written() {
    let mut world = World::new(4, 1);
    world.send(10, 100);
    world.settle();
    let before = *world.core.ledger();
    world.send(10, 100);
    world.run(1, 100_000);
    apply(&mut world, &Op::Down);
    world.send(10, 100);
    world.run(2, 10_000);
    let written = world.core.ledger().in_flight;
    assert!(written > 0);
    world.run(2, 500 * SECOND);
    let ledger = *world.core.ledger();
    assert_eq!((ledger.in_doubt, ledger.lost), (written, 30 - before.acked - written));
    world.send(5, 100);
    world.settle();
    assert_eq!(world.core.ledger().acked, before.acked + 5, "the empty batches made way");
}

#[test]
fn no_more_is_written_than_the_window_allows() {
    let mut world = World::new(5, 1);
    world.server.window_bytes = 5000;
    world.run(10, 20_000);
    // The server is silent from here: its answers stay in `out`.
    world.send(500, 200);
    let now = world.now();
    for bundle in std::mem::take(&mut world.waiting) {
        world.core.take(&bundle, now);
    }
    world.core.flush(Some(u64::MAX));
    world.core.advance(now);
    let written: usize = world.core.wanted_links().map(|link| world.core.unwritten(link).len()).sum();
    assert!((2500..=5000).contains(&written), "{written}");
    assert!(world.core.ledger().queued > 400);
    world.settle();
    assert_eq!(world.core.ledger().acked, 500);
}

#[test]
fn a_forgotten_session_puts_in_doubt_what_was_written() {
    let mut world = World::new(6, 1);
    world.send(50, 100);
    world.settle();
    world.server.sessions.clear();
    for link in world.peers.keys().copied().collect::<Vec<_>>() {
        world.break_link(link);
    }
    world.send(10, 100);
    world.settle();
    let ledger = world.core.ledger();
    assert_eq!((ledger.acked, ledger.in_doubt), (60, 0), "nothing was in flight");
}

#[test]
fn verdicts_arrive_and_outlive_the_connection() {
    let mut world = World::new(7, 1);
    world.server.verdicts = vec![address(1), address(2)];
    world.send(1, 1);
    world.settle();
    assert!(world.denylist.contains(address(1)) && !world.denylist.contains(address(3)));
    apply(&mut world, &Op::Down);
    assert!(world.denylist.contains(address(2)));
    world.server.verdicts = vec![address(3)];
    world.server.up = true;
    world.run(600, 20_000);
    assert!(!world.denylist.contains(address(1)) && world.denylist.contains(address(3)));
}

#[test]
fn statistics_ask_every_shard() {
    let mut world = World::new(8, 4);
    world.core.ask_stats(1);
    world.run(300, 20_000);
    let (token, stats) = world.core.take_stats().expect("all answered");
    assert_eq!((token, stats.shards, stats.stored), (1, 4, 4));
}

#[test]
fn a_silent_server_is_given_up_and_an_idle_one_is_not() {
    let mut world = World::new(9, 1);
    world.run(20, 20_000);
    assert_eq!(world.core.ledger().connects, 1);
    let link = world.core.wanted_links().next().expect("open");
    world.clock_us += 10 * SECOND;
    let ping = |world: &mut World| {
        let now = world.now();
        world.core.advance(now);
        world.core.unwritten(link).len()
    };
    assert_eq!(ping(&mut world), 64, "a ping");
    assert_eq!(ping(&mut world), 64, "one only");
    world.clock_us += 10 * SECOND;
    assert_eq!(ping(&mut world), 128);
    world.clock_us += 20 * SECOND;
    ping(&mut world);
    ping(&mut world);
    assert_eq!(world.core.ledger().disconnects, 1);
}

#[test]
fn the_thread_is_never_told_to_spin() {
    let mut world = World::new(10, 3);
    for round in 0..200 {
        world.send(3, 50);
        if round == 100 {
            apply(&mut world, &Op::Down);
        }
        world.clock_us += 5000;
        world.turn();
        let now = world.now();
        world.core.advance(now);
        assert!(world.core.deadline_us() > world.clock_us, "round {round}: a deadline that has passed and nothing done");
    }
}
