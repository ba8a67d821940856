//! A shard of the server, driven from memory by a script: connections come and go, frames come whole, damaged or in part.
//!
//! After every step the shard's invariants hold; what it says is a stream of good frames; when everybody is gone, nothing is
//! left open.

use super::Script;
use postanalytics_protocol::frames::{ANY_SHARD, Action, ControlFrame, Hello, PackageVersion, Subject, Verdict};
use postanalytics_protocol::{Assembler, BatchBuilder, FrameHeader, FrameKind, Hit, RecordFields};
use postanalytics_server::analytics::Analytics;
use postanalytics_server::arena::Log;
use postanalytics_server::shard::messages::{ConnectionTicket, Topology};
use postanalytics_server::shard::{Command, Now, Shard, Usage};
use std::sync::Arc;
use std::time::Duration;

const LINKS: usize = 3;
const STEPS_MAX: usize = 200;

/// The client's end of a connection.
#[derive(Default)]
struct Peer {
    session: u64,
    assembler: Assembler,
    acked: u64,
    /// The rest of a frame of which only a part was sent.
    unsent: Vec<u8>,
}

struct World {
    shard: Shard,
    now: Now,
    peers: [Option<Peer>; LINKS],
}

/// See the file.
pub fn shard(data: &[u8]) {
    let mut script = Script(data);
    let mut world = World::new();
    for _ in 0..STEPS_MAX {
        if script.is_over() {
            break;
        }
        world.step(&mut script);
        world.shard.invariants();
    }
    world.turn();
    for link in 0..LINKS {
        world.gone(link);
    }
    world.turn();
    world.shard.invariants();
    let stats = world.shard.stats();
    assert_eq!((stats.connections, stats.open_places, stats.open_place_bytes), (0, 0, 0), "nobody is here any more");
}

impl World {
    fn new() -> Self {
        let topology = Topology {
            server_id: [1; 16],
            deployment_id: [2; 16],
            epoch: 3,
            shard_count: 1,
            routing_seed: 4,
            identity_key: [5; 32],
            package: PackageVersion::default(),
            max_body_bytes: 1 << 20,
        };
        let log = || Log::new(2).expect("memory for two slabs");
        let shard = Shard::new(0, Arc::new(topology), Duration::from_secs(10), log(), log(), Analytics::default());
        Self { shard, now: Now { monotonic_us: 1_000_000, wall_us: 1_700_000_000_000_000 }, peers: Default::default() }
    }

    fn step(&mut self, script: &mut Script<'_>) {
        let (what, link) = (script.u8() % 12, usize::from(script.u8()) % LINKS);
        match what {
            0 => self.connect(link, script),
            1 => {
                let length = script.u16();
                self.send(link, script.bytes(usize::from(length)));
            }
            2 => {
                let frame = framed(script);
                self.send(link, &frame);
            }
            3 | 4 => {
                let frame = good_batch(self.peers[link].as_ref().map_or(0, |peer| peer.session), script);
                let part = if what == 3 { frame.len() } else { usize::from(script.u16()) % frame.len() };
                self.send(link, &frame[..part]);
                if let Some(peer) = &mut self.peers[link] {
                    peer.unsent = frame[part..].to_vec();
                }
            }
            5 => {
                let unsent = self.peers[link].as_mut().map(|peer| std::mem::take(&mut peer.unsent));
                self.send(link, &unsent.unwrap_or_default());
            }
            6 => self.turn(),
            7 => {
                let step_us = u64::from(script.u16()) * 1000;
                self.now = Now { monotonic_us: self.now.monotonic_us + step_us, wall_us: self.now.wall_us + step_us };
                self.shard.tick(self.now);
            }
            8 if self.peers[link].is_some() => self.shard.peer_closed(link as u32),
            9 if self.peers[link].is_some() => self.shard.broken(link as u32),
            10 => {
                let (verdict, duration_us) = verdict(script);
                self.shard.set_verdict(verdict, duration_us, self.now);
            }
            11 => match script.u8() {
                255 => self.shard.drain(self.now),
                220..=254 => self.shard.merging.look(1, 1, self.now.monotonic_us),
                200..=219 => self.shard.merging.look(0, 1, self.now.monotonic_us),
                _ => {}
            },
            _ => {}
        }
    }

    fn connect(&mut self, link: usize, script: &mut Script<'_>) {
        self.gone(link);
        let (node, session) = (script.u8() % 2, 1 + u64::from(script.u8() % 2));
        let hello = Hello {
            protocol_min: 1,
            protocol_max: 1,
            schema_min: 1,
            schema_max: 1,
            package: PackageVersion::default(),
            node: [node; 16],
            wanted_shard: ANY_SHARD,
            replay: script.u8() & 1 != 0,
            nonce: [0; 32],
            name: "fuzz".to_owned(),
        };
        let peer = "127.0.0.1:9".parse().expect("an address");
        let ticket = ConnectionTicket {
            node: [node; 16],
            name: "fuzz".to_owned(),
            session,
            peer,
            package: PackageVersion::default(),
            shard: 0,
        };
        self.peers[link] = Some(Peer { session, ..Peer::default() });
        self.shard.adopt(link as u32, &hello, session, Arc::new(ticket), self.now);
    }

    fn send(&mut self, link: usize, bytes: &[u8]) {
        if self.peers[link].is_some() {
            self.shard.received(link as u32, bytes, self.now);
        }
    }

    fn gone(&mut self, link: usize) {
        if self.peers[link].take().is_some() {
            self.shard.link_gone(link as u32, self.now);
        }
    }

    /// Ends the turn, and reads what the shard says to everyone.
    fn turn(&mut self) {
        self.now = Now { monotonic_us: self.now.monotonic_us + 100, wall_us: self.now.wall_us + 100 };
        self.shard.end_turn(Usage::default(), self.now);
        let mut over = Vec::new();
        while let Some(link) = self.shard.take_dirty() {
            if let Some(outbox) = self.shard.outbox(link) {
                let bytes = std::mem::take(outbox);
                self.heard(link, &bytes);
                self.shard.sent(link);
            }
        }
        while let Some(command) = self.shard.take_command() {
            let (Command::Finish(link) | Command::Close(link)) = command;
            let words = self.shard.last_words(link);
            if matches!(command, Command::Finish(_)) {
                self.heard(link, &words);
            }
            over.push(link as usize);
        }
        over.into_iter().for_each(|link| self.gone(link));
    }

    fn heard(&mut self, link: u32, bytes: &[u8]) {
        let Some(peer) = self.peers.get_mut(link as usize).and_then(Option::as_mut) else { return };
        let (mut input, mut body) = (bytes, Vec::new());
        while let Some(header) = peer.assembler.collect(&mut input, &mut body).expect("the server's frames are good") {
            if let ControlFrame::Ack(ack) = ControlFrame::decode(&header, &body).expect("the server's frames are good") {
                assert!(ack.sequence >= peer.acked, "acknowledgements are cumulative");
                peer.acked = ack.sequence;
            }
        }
    }
}

/// A frame with a header and CRCs that hold, around any body.
fn framed(script: &mut Script<'_>) -> Vec<u8> {
    let kind = FrameKind::from_wire(script.u8() % 14).unwrap_or(FrameKind::Batch);
    let (session, sequence, record_count) = (u64::from(script.u8() % 3), u64::from(script.u8()), u32::from(script.u8()));
    let length = usize::from(script.u16()) % 4096;
    let mut body = script.bytes(length).to_vec();
    body.resize(body.len().next_multiple_of(16), 0);
    let header = FrameHeader {
        schema: u16::from(kind == FrameKind::Batch),
        body_bytes: body.len() as u32,
        record_count,
        body_crc: crc32fast::hash(&body),
        ..FrameHeader::bare(kind, session, sequence, 5)
    };
    [header.encode().as_slice(), &body].concat()
}

/// A batch that holds, small or so large that a few of them recycle a slab.
fn good_batch(session: u64, script: &mut Script<'_>) -> Vec<u8> {
    let (sequence, records, what) = (u64::from(script.u8()), script.u8() % 8, script.u8());
    let raw_body = vec![what; usize::from(what) * if what & 1 != 0 { 400 } else { 1 }];
    let mut batch = BatchBuilder::default();
    for number in 0..records {
        let hits = if what & 2 != 0 {
            vec![Hit { attack_type: 4, point: b"uri", payload: b"../", ..Hit::default() }]
        } else {
            Vec::new()
        };
        let fields = RecordFields {
            request_id: [number; 16],
            client_ip: [what; 16],
            path: b"/",
            raw_body: &raw_body,
            hits,
            ..RecordFields::default()
        };
        batch.push(&fields, 1 << 20).expect("eight records of 100 kB");
    }
    let mut out = Vec::new();
    batch.encode_frame(session, sequence, 5, &mut out);
    out
}

/// A verdict, and how long it lasts, µs.
fn verdict(script: &mut Script<'_>) -> (Verdict, u64) {
    let action = [None, Some(Action::Graylist), Some(Action::Denylist)][usize::from(script.u8()) % 3];
    let subject =
        if script.u8() & 1 != 0 { Subject::Session(u64::from(script.u8())) } else { Subject::Source([script.u8(); 16]) };
    let duration_us = u64::from(script.u16()) * 1000;
    (Verdict { subject, application: (script.u8() & 1 != 0).then_some(1), action, until_us: 0, detector: 0 }, duration_us)
}
