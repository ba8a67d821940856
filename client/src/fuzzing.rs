//! What fuzzing drives of the client: see `tests/src/fuzz` of the workspace. Beside it, [`server_address`].
//!
//! A script plays the server: any bytes, frames that hold but say anything at any time, connections that come and go, and the
//! clock. After every step the core's invariants and the law of the counters hold, and what the client writes is a stream of
//! good frames that no strict server would refuse.

use crate::bundle::Bundle;
use crate::config::{BuildError, Config, ServerAddress, split_address};
use crate::connection::Break;
use crate::core::{Core, Now};
use crate::denylist::Denylist;
use crate::request::Request;
use postanalytics_protocol::frames::{ControlFrame, PackageVersion, StoredSequence, Welcome};
use postanalytics_protocol::header::{FrameHeader, FrameKind};
use postanalytics_protocol::{Assembler, ValidBatch};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Instant;

const STEPS_MAX: usize = 200;
const SECOND: u64 = 1_000_000;

/// The server's end of a connection.
#[derive(Default)]
struct Peer {
    assembler: Assembler,
    body: Vec<u8>,
    session: u64,
    /// Something was said to the client here.
    spoken: bool,
}

struct World {
    core: Core,
    denylist: Arc<Denylist>,
    peers: BTreeMap<u64, Peer>,
    clock_us: u64,
    sent: u64,
}

/// Takes a script apart: numbers and byte strings from its front, zeros and nothing past its end.
struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    fn u8(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or(0)
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.u8(), self.u8()])
    }

    fn bytes(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        taken
    }
}

/// The server's address: what is taken can be written so that it reads the same, what is not is named with the remedy.
pub fn server_address(data: &[u8]) {
    let text = &*String::from_utf8_lossy(data);
    match split_address(text) {
        Ok((host, port)) => {
            assert!(port != 0 && !host.is_empty());
            let again = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
            assert_eq!(split_address(&again).ok(), Some((host, port)));
        }
        Err(error @ BuildError::BadAddress { .. }) => {
            let message = error.to_string();
            assert!(message.contains(&format!("{text:?}")) && message.contains("127.0.0.1:3313") && !message.contains('\n'));
        }
        Err(error) => panic!("{error}"),
    }
}

/// See the file.
pub fn client(data: &[u8]) {
    let mut script = Script(data);
    let mut world = World::new();
    for _ in 0..STEPS_MAX {
        if script.0.is_empty() {
            break;
        }
        world.step(&mut script);
        world.turn();
        world.check();
    }
    let now = world.now();
    world.core.close();
    world.core.flush(Some(u64::MAX));
    world.core.advance(now);
    world.core.say_goodbye(now);
    world.write(usize::MAX);
    world.check();
}

impl World {
    fn new() -> Self {
        let config = Config {
            servers: vec![ServerAddress { text: "fuzz:1".into(), host: "fuzz".into(), port: 1 }],
            node: [9; 16],
            node_name: "node".into(),
            replay: false,
            queue_bytes: 1_000_000,
            batch_bytes: 2048,
            batch_records_max: 100,
            batch_records_aim: 4,
            linger_us_min: 500,
            linger_us_max: 20_000,
            connect_timeout_us: SECOND,
            reconnect_slow: None,
            record_time_limit_us: 900 * SECOND,
            congestion_control: None,
        };
        let denylist = Arc::new(Denylist::new(Instant::now()));
        let core = Core::new(config, 1, Some(Box::new(|records| assert!(!records.is_empty()))), Arc::clone(&denylist));
        Self { core, denylist, peers: BTreeMap::new(), clock_us: SECOND, sent: 0 }
    }

    const fn now(&self) -> Now {
        Now { clock_us: self.clock_us, boot_us: self.clock_us, unix_us: self.clock_us }
    }

    fn step(&mut self, script: &mut Script<'_>) {
        let (what, which) = (script.u8() % 10, usize::from(script.u8()));
        let link = self.peers.keys().nth(which % self.peers.len().max(1)).copied().unwrap_or(0);
        let now = self.now();
        match what {
            0 => {
                let length = script.u16();
                self.say(link, script.bytes(usize::from(length)));
            }
            1 | 2 => {
                let session = self.peers.get(&link).map_or(0, |peer| peer.session);
                let frame = framed(session, script);
                self.say(link, &frame);
            }
            3 | 4 => self.welcome(link, script),
            5 => self.records(script),
            6 => self.clock_us += u64::from(script.u16()) * 1000,
            7 => {
                self.peers.remove(&link);
                self.core.broken(link, Break::Closed, now);
            }
            8 => self.write(usize::from(script.u16())),
            _ => {
                let token = u64::from(script.u8());
                self.core.ask_stats(token);
                self.core.flush((token & 1 != 0).then_some(self.clock_us));
            }
        }
    }

    fn say(&mut self, link: u64, bytes: &[u8]) {
        if let Some(peer) = self.peers.get_mut(&link) {
            peer.spoken = true;
        }
        let now = self.now();
        self.core.received(link, bytes, now);
    }

    /// What the thread does in a turn, the writing left to the script.
    fn turn(&mut self) {
        let now = self.now();
        self.core.advance(now);
        let wanted: Vec<u64> = self.core.wanted_links().collect();
        self.peers.retain(|link, _| wanted.contains(link));
        for link in wanted {
            if let Entry::Vacant(entry) = self.peers.entry(link) {
                entry.insert(Peer::default());
                self.core.connected(link, now);
                self.write(usize::MAX);
            }
        }
        std::hint::black_box((self.core.deadline_us(), self.core.linger_us(), self.core.sends(), self.core.take_stats()));
        std::hint::black_box((self.core.take_status(), self.denylist.contains(IpAddr::V4(Ipv4Addr::LOCALHOST))));
    }

    fn check(&self) {
        self.core.invariants();
        let ledger = self.core.ledger();
        let known = ledger.acked + ledger.lost + ledger.in_doubt + ledger.queued + ledger.in_flight;
        assert_eq!(self.sent, known, "no record is lost sight of: {ledger:?}");
        assert!(!self.core.hook_panicked());
    }

    fn welcome(&mut self, link: u64, script: &mut Script<'_>) {
        let shard_count = 1 + u32::from(script.u8() % 4);
        let stored = |script: &mut Script<'_>| StoredSequence {
            epoch: u64::from(script.u8() % 3),
            shard: u32::from(script.u8()) % shard_count,
            sequence: u64::from(script.u8()),
        };
        let welcome = Welcome {
            package: PackageVersion::default(),
            server_id: [1; 16],
            deployment_id: [1; 16],
            epoch: u64::from(script.u8() % 3),
            shard_count,
            shard: u32::from(script.u8()) % shard_count,
            routing_seed: 7,
            identity_key: [2; 32],
            server_us: u64::from(script.u16()),
            window_bytes: u64::from(script.u16()) * 16,
            max_body_bytes: u32::from(script.u16()) * 16,
            protocol: 1,
            schema: 1,
            stored: (0..script.u8() % 4).map(|_| stored(script)).collect(),
        };
        let mut frame = Vec::new();
        let session = self.peers.get(&link).map_or(0, |peer| peer.session);
        welcome.encode(session, 0, &mut frame);
        self.say(link, &frame);
    }

    fn records(&mut self, script: &mut Script<'_>) {
        let (count, length) = (script.u8() % 16, script.u16() % 4096);
        if !self.core.routes() {
            return;
        }
        let (mut bundle, path) = (Bundle::default(), vec![b'p'; usize::from(length)]);
        for number in 0..count {
            let client_ip = IpAddr::V4(Ipv4Addr::new(192, 0, 2, number));
            let request = Request { client_ip, path: &path, user: b"anna", token: self.sent, ..Request::default() };
            bundle.push(&request, self.clock_us, number == 7);
            self.sent += 1;
        }
        let now = self.now();
        self.core.take(&bundle, now);
    }

    /// The sockets take so many bytes each, and the server reads them.
    fn write(&mut self, bytes: usize) {
        for (&link, peer) in &mut self.peers {
            let unwritten = self.core.unwritten(link);
            let written = unwritten.len().min(bytes);
            let mut input = &unwritten[..written];
            while let Some(header) = peer.assembler.collect(&mut input, &mut peer.body).expect("the client's frames are good") {
                peer.session = header.session;
                if header.kind == FrameKind::Batch {
                    assert!(peer.spoken, "no batch before a Welcome");
                    ValidBatch::parse(header.schema, header.record_count, &peer.body).expect("the client's batches are good");
                } else {
                    let frame = ControlFrame::decode(&header, &peer.body).expect("the client's frames are good");
                    assert!(peer.spoken || matches!(frame, ControlFrame::Hello(_)), "{frame:?} before a Welcome");
                }
            }
            self.core.wrote(link, written);
        }
    }
}

/// A frame with a header and CRCs that hold, around any body.
fn framed(session: u64, script: &mut Script<'_>) -> Vec<u8> {
    let kind = FrameKind::from_wire(script.u8() % 14).unwrap_or(FrameKind::Ack);
    let (session, sequence) = (session ^ u64::from(script.u8() == 255), u64::from(script.u8()));
    let record_count = u32::from(script.u8());
    let length = usize::from(script.u16()) % 2048;
    let mut body = script.bytes(length).to_vec();
    body.resize(body.len().next_multiple_of(16), 0);
    let (body_bytes, body_crc) = (body.len() as u32, crc32fast::hash(&body));
    let header = FrameHeader { body_bytes, record_count, body_crc, ..FrameHeader::bare(kind, session, sequence, 5) };
    [header.encode().as_slice(), &body].concat()
}
