//! The core against a server in memory, driven from a seed: every order of records, bytes, breaks and restarts that a
//! network can produce, with the laws checked after each step.
//!
//! The server here keeps the rules of the wire strictly: it panics on a skipped sequence, a record of another shard, or bytes
//! before Welcome, so the client may never send such a thing.

use crate::ack::AckedRecord;
use crate::bundle::Bundle;
use crate::config::{Config, ServerAddress};
use crate::connection::Break;
use crate::core::{Core, Now, server_of};
use crate::denylist::Denylist;
use crate::request::Request;
use postanalytics_protocol::error::ErrorCode;
use postanalytics_protocol::frames::{
    ANY_SHARD, Ack, Action, ControlFrame, ErrorFrame, PackageVersion, Pong, Stats, StoredSequence, Subject, Verdict, Verdicts,
    Welcome,
};
use postanalytics_protocol::header::{FrameHeader, FrameKind};
use postanalytics_protocol::routing::address_bytes;
use postanalytics_protocol::schema::v1::FLAG_MAYBE_STORED_ELSEWHERE;
use postanalytics_protocol::{Assembler, ValidBatch, shard_of};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex};
use std::time::Instant;

mod several;
mod tests;

const SECOND: u64 = 1_000_000;

pub(crate) fn config() -> Config {
    Config {
        servers: vec![ServerAddress { text: "simulated:1".into(), host: "simulated".into(), port: 1 }],
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
        reconnect_slow: None,
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
    deployment_id: u8,
    identity_key: u8,
    shards: u32,
    window_bytes: u64,
    max_body_bytes: u32,
    /// Highest sequence by (session, epoch, shard).
    sessions: BTreeMap<(u64, u64, u32), u64>,
    /// Record numbers stored.
    stored: HashSet<u64>,
    /// Of these, those that say that another server may have them.
    marked: HashSet<u64>,
    /// Record numbers with their sources.
    sources: Vec<(u64, IpAddr)>,
    duplicate: u64,
    up: bool,
    /// Nothing reaches it and nothing comes from it, and nobody is told.
    cut: bool,
    /// Every other connection reaches another server behind the same address.
    balanced: bool,
    /// Which of the two got batches.
    sides: HashSet<bool>,
    refuse_content: bool,
    /// Its clock less the world's.
    clock_ahead_us: u64,
    verdicts: Vec<IpAddr>,
    /// How long they last from when they are sent.
    verdict_us: u64,
    user_hashes: HashSet<u64>,
}

impl Server {
    fn new(epoch: u64, shards: u32) -> Self {
        Self {
            epoch,
            server_id: epoch as u8,
            deployment_id: 1,
            identity_key: epoch as u8,
            shards,
            window_bytes: 16 * 1024,
            max_body_bytes: 1 << 20,
            sessions: BTreeMap::new(),
            stored: HashSet::new(),
            marked: HashSet::new(),
            sources: Vec::new(),
            duplicate: 0,
            up: true,
            cut: false,
            balanced: false,
            sides: HashSet::new(),
            refuse_content: false,
            clock_ahead_us: 0,
            verdicts: Vec::new(),
            verdict_us: 1 << 60,
            user_hashes: HashSet::new(),
        }
    }

    /// A verdict that it makes at this time of its clock.
    fn verdict(&self, address: IpAddr, now_us: u64) -> Verdict {
        Verdict {
            subject: Subject::Source(address_bytes(address)),
            application: None,
            action: Some(Action::Denylist),
            until_us: now_us + self.verdict_us,
            detector: 0,
        }
    }

    fn welcome(&self, session: u64, shard: u32, now_us: u64) -> Welcome {
        let of_session = self.sessions.iter().filter(|((of, _, _), _)| *of == session);
        Welcome {
            package: PackageVersion::default(),
            server_id: [self.server_id; 16],
            deployment_id: [self.deployment_id; 16],
            epoch: self.epoch,
            shard_count: self.shards,
            shard,
            routing_seed: self.epoch,
            identity_key: [self.identity_key; 32],
            server_us: now_us,
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
    body: Vec<u8>,
    session: u64,
    shard: Option<u32>,
    out: Vec<u8>,
    ended: bool,
    ack: Option<u64>,
    /// The client said Goodbye.
    goodbye: bool,
    /// It reached another server than it wanted.
    is_balanced_away: bool,
    pongs: Vec<u64>,
}

impl Peer {
    fn frame(&mut self, header: &FrameHeader, server: &mut Server, clock_us: u64) {
        let now_us = clock_us + server.clock_ahead_us;
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
                let mut welcome = server.welcome(self.session, shard, now_us);
                welcome.server_id[0] ^= u8::from(self.is_balanced_away);
                welcome.encode(self.session, now_us, &mut self.out);
                let mine = |address: &&IpAddr| shard_of((**address).into_source(), server.epoch, server.shards) == shard;
                let verdicts = server.verdicts.iter().filter(mine).map(|address| server.verdict(*address, now_us)).collect();
                Verdicts { sequence: 1, begin: true, end: true, verdicts }.encode(self.session, now_us, &mut self.out);
            }
            ControlFrame::StatsRequest(request) => {
                let stats = Stats { token: request.token, session_records_stored: 1, ..Stats::default() };
                stats.encode(self.session, 0, &mut self.out);
            }
            ControlFrame::Pong(pong) => self.pongs.push(pong.token),
            ControlFrame::Goodbye(_) => self.goodbye = true,
            ControlFrame::Ping(ping) => Pong { token: ping.token }.encode(self.session, 0, &mut self.out),
            frame => panic!("a client does not send {frame:?}"),
        }
    }

    fn batch(&mut self, header: &FrameHeader, server: &mut Server) {
        let shard = self.shard.expect("no batch before Welcome");
        server.sides.insert(self.is_balanced_away);
        assert!(!self.goodbye, "no batch after Goodbye");
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
                server.sources.push((number, record.source().address()));
                server.user_hashes.insert(record.user_hash());
                if record.flags() & FLAG_MAYBE_STORED_ELSEWHERE != 0 {
                    server.marked.insert(number);
                }
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

/// Client, servers and what lies between them.
struct World {
    core: Core,
    denylist: Arc<Denylist>,
    acked: Arc<Mutex<Vec<AckedRecord>>>,
    servers: Vec<Server>,
    /// Records that any server process has ever stored.
    ever_stored: HashSet<u64>,
    peers: HashMap<u64, Peer>,
    /// Connections on which nothing arrives any more, and nobody is told.
    links_cut: HashSet<u64>,
    waiting: Vec<Bundle>,
    random: fastrand::Rng,
    clock_us: u64,
    /// How long the node was suspended, which its clock does not count.
    suspended_us: u64,
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
        let epochs = config.servers.len() as u64;
        Self {
            core: Core::new(config, seed, Some(Box::new(hook)), Arc::clone(&denylist)),
            denylist,
            acked,
            servers: (1..=epochs).map(|epoch| Server::new(epoch, shards)).collect(),
            ever_stored: HashSet::new(),
            peers: HashMap::new(),
            links_cut: HashSet::new(),
            waiting: Vec::new(),
            random: fastrand::Rng::with_seed(seed),
            clock_us: 0,
            suspended_us: 0,
            sent: 0,
            epochs,
        }
    }

    fn now(&self) -> Now {
        let unix_us = self.clock_us + self.suspended_us;
        Now { clock_us: self.clock_us, boot_us: unix_us, unix_us }
    }

    fn send(&mut self, count: u64, bytes: usize) {
        let mut bundle = Bundle::default();
        let path = vec![b'p'; bytes];
        for _ in 0..count {
            let mut request_id = [0; 16];
            request_id[..8].copy_from_slice(&self.sent.to_le_bytes());
            let client_ip = address(self.random.u64(..));
            let request = Request { request_id, client_ip, path: &path, user: b"anna", token: self.sent, ..Request::default() };
            bundle.push(&request, self.clock_us, self.sent.is_multiple_of(7));
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
        let server = &mut self.servers[server_of(link)];
        let Some(peer) = self.peers.get_mut(&link).filter(|_| !server.cut && !self.links_cut.contains(&link)) else { return };
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
            peer.frame(&header, server, now.clock_us);
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
            let id = |link| self.servers[server_of(link)].server_id;
            let older = *other < link && id(*other) == id(link);
            (older && (peer.session, peer.shard) == welcomed && welcomed.1.is_some()).then_some(*other)
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
            let server = &self.servers[server_of(link)];
            if self.peers.contains_key(&link) || server.cut {
            } else if server.up {
                let is_balanced_away = server.balanced && self.random.bool();
                self.peers.insert(link, Peer { is_balanced_away, ..Peer::default() });
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
        self.restart_one(0, shards);
    }

    /// The server's process ends, and another one takes its place.
    fn restart_one(&mut self, at: usize, shards: u32) {
        self.epochs += 1;
        let old = &mut self.servers[at];
        self.ever_stored.extend(&old.stored);
        let verdicts = std::mem::take(&mut old.verdicts);
        *old = Server { verdicts, ..Server::new(self.epochs, shards) };
        self.break_links(at);
    }

    /// Breaks all connections to a server.
    fn break_links(&mut self, at: usize) {
        let links: Vec<u64> = self.peers.keys().copied().filter(|link| server_of(*link) == at).collect();
        links.into_iter().for_each(|link| self.break_link(link));
    }

    fn stored(&self) -> HashSet<u64> {
        let now = self.servers.iter().flat_map(|server| &server.stored);
        now.chain(&self.ever_stored).copied().collect()
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
        for server in &mut self.servers {
            (server.up, server.cut) = (true, false);
        }
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
                let copies: u64 = self.servers.iter().map(|server| server.stored.len() as u64).sum();
                assert!(copies <= ledger.acked + ledger.in_doubt + ledger.maybe_stored_elsewhere, "{ledger:?} {copies}");
                return;
            }
        }
        panic!("it never calms down: {:?}", self.core.ledger());
    }

    /// Ends as the thread does when its time is over, whatever is still on its way; what it wrote by then all arrives.
    fn close(&mut self) {
        let now = self.now();
        self.core.close();
        self.core.flush(Some(u64::MAX));
        self.core.advance(now);
        self.core.say_goodbye(now);
        assert!(!self.core.fill(now), "nothing new after Goodbye");
        let links: Vec<u64> = self.peers.keys().copied().collect();
        for link in links {
            let Some(peer) = self.peers.get_mut(&link) else { continue };
            let server = &mut self.servers[server_of(link)];
            let mut bytes = self.core.unwritten(link);
            while !peer.ended {
                let frame = peer.assembler.collect(&mut bytes, &mut peer.body).expect("the client sends frames");
                let Some(header) = frame else { break };
                peer.frame(&header, server, now.clock_us);
            }
        }
        self.check_stored();
        let mut ledger = *self.core.ledger();
        ledger.abandon();
        let stored = self.stored().len() as u64;
        assert!(stored <= ledger.acked + ledger.in_doubt + self.lost_with_servers(), "{ledger:?} {stored}");
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
