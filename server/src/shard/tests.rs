//! The shard driven from memory: every rule of the protocol's server side, without a kernel.

use super::derived::derived_queue;
use super::messages::{ConnectionTicket, Query, QueryPage, Topology};
use super::*;
use crate::arena::Log;
use postanalytics_protocol::frames::{ANY_SHARD, Action, PackageVersion, Ping, StatsRequest, Subject};
use postanalytics_protocol::{Assembler, Hit, RecordFields, Source};

pub(super) const SESSION: u64 = 77;

/// A shard and the client's ends of its connections.
pub(super) struct World {
    pub(super) shard: Shard,
    pub(super) now: Now,
    assemblers: Vec<Assembler>,
    finished: Vec<u32>,
}

pub(super) fn topology(shard_count: u32) -> Arc<Topology> {
    Arc::new(Topology {
        server_id: [1; 16],
        deployment_id: [2; 16],
        epoch: 3,
        shard_count,
        routing_seed: 4,
        identity_key: [5; 32],
        package: PackageVersion { major: 0, minor: 1, patch: 0 },
        max_body_bytes: 1 << 20,
    })
}

fn hello(node: u8) -> Hello {
    Hello {
        protocol_min: 1,
        protocol_max: 1,
        schema_min: 1,
        schema_max: 1,
        package: PackageVersion::default(),
        node: [node; 16],
        wanted_shard: ANY_SHARD,
        replay: false,
        nonce: [0; 32],
        name: "test".to_owned(),
    }
}

impl World {
    fn new(shard_count: u32) -> Self {
        Self::with_slabs(shard_count, 8)
    }

    pub(super) fn with_slabs(shard_count: u32, slabs: u64) -> Self {
        let logs = (Log::new(slabs).expect("memory"), Log::new(2).expect("memory"));
        let shard = Shard::new(0, topology(shard_count), Duration::from_secs(10), logs.0, logs.1, Analytics::default());
        let now = Now { monotonic_us: 1_000_000, wall_us: 1_700_000_000_000_000 };
        Self { shard, now, assemblers: Vec::new(), finished: Vec::new() }
    }

    pub(super) fn connect(&mut self, link: u32, node: u8, session: u64) {
        self.connect_from("127.0.0.1:9", link, node, session);
    }

    fn connect_from(&mut self, peer: &str, link: u32, node: u8, session: u64) {
        let ticket = ConnectionTicket {
            node: [node; 16],
            name: "test".to_owned(),
            session,
            peer: peer.parse().expect("an address"),
            package: PackageVersion::default(),
            shard: 0,
        };
        if self.assemblers.len() <= link as usize {
            self.assemblers.resize_with(link as usize + 1, Assembler::default);
        }
        self.assemblers[link as usize] = Assembler::default();
        self.shard.adopt(link, &hello(node), session, Arc::new(ticket), self.now);
    }

    /// Ends the turn and returns the control frames that go out on `link`.
    pub(super) fn turn(&mut self, link: u32) -> Vec<ControlFrame> {
        self.now.monotonic_us += 100;
        self.now.wall_us += 100;
        self.shard.end_turn(Usage::default(), self.now);
        self.shard.invariants();
        let mut bytes = vec![Vec::new(); self.assemblers.len()];
        while let Some(command) = self.shard.take_command() {
            let (Command::Finish(of) | Command::Close(of)) = command;
            bytes[of as usize].extend(self.shard.last_words(of));
            self.finished.push(of);
        }
        while let Some(of) = self.shard.take_dirty() {
            if let Some(outbox) = self.shard.outbox(of) {
                bytes[of as usize].append(outbox);
                self.shard.sent(of);
            }
        }
        let mut frames = Vec::new();
        let mut body = Vec::new();
        let mut input = bytes[link as usize].as_slice();
        while let Some(header) =
            self.assemblers[link as usize].collect(&mut input, &mut body).expect("the server's frames are good")
        {
            frames.push(ControlFrame::decode(&header, &body).expect("the server's frames are good"));
        }
        frames
    }

    /// Whether verdicts are still to be applied.
    fn has_verdicts(&self) -> bool {
        self.shard.verdicts_wait_us(self.now).is_some()
    }

    /// Sets a verdict for good.
    fn list(&mut self, verdict: Verdict) {
        self.shard.set_verdict(verdict, u64::MAX, self.now);
    }

    pub(super) fn send(&mut self, link: u32, bytes: &[u8]) {
        self.shard.received(link, bytes, self.now);
    }
}

fn batch_of(paths: &[&str], hits: bool) -> BatchBuilder {
    let mut batch = BatchBuilder::default();
    for (n, path) in paths.iter().enumerate() {
        let hits = if hits { vec![Hit { attack_type: 4, point: b"uri", payload: b"../", ..Hit::default() }] } else { Vec::new() };
        let fields = RecordFields {
            request_id: [n as u8; 16],
            client_ip: std::net::Ipv4Addr::new(192, 0, 2, n as u8).to_ipv6_mapped().octets(),
            path: path.as_bytes(),
            hits,
            ..RecordFields::default()
        };
        batch.push(&fields, 1 << 20).expect("fits");
    }
    batch
}

pub(super) fn frame(sequence: u64, paths: &[&str]) -> Vec<u8> {
    let mut out = Vec::new();
    batch_of(paths, false).encode_frame(SESSION, sequence, 9, &mut out);
    out
}

fn error_of(frames: &[ControlFrame]) -> Option<(ErrorCode, u64)> {
    frames.iter().find_map(|frame| match frame {
        ControlFrame::Error(error) => Some((error.known_code().expect("a known code"), error.sequence)),
        _ => None,
    })
}

fn acks_of(frames: &[ControlFrame]) -> Vec<u64> {
    frames.iter().filter_map(|frame| if let ControlFrame::Ack(ack) = frame { Some(ack.sequence) } else { None }).collect()
}

#[test]
fn batches_are_stored_and_acknowledged_once_per_turn() {
    let mut world = World::new(1);
    world.connect(0, 1, SESSION);
    let first = world.turn(0);
    assert!(matches!(&first[0], ControlFrame::Welcome(welcome) if welcome.stored[0].sequence == 0), "{first:?}");
    assert!(matches!(&first[1], ControlFrame::Verdicts(verdicts) if verdicts.begin && verdicts.end));
    let mut bytes = frame(1, &["/a", "/b"]);
    bytes.extend(frame(2, &["/c"]));
    bytes.extend(frame(3, &[]));
    for piece in bytes.chunks(7) {
        world.send(0, piece);
    }
    assert_eq!(acks_of(&world.turn(0)), [3]);
    assert_eq!(world.shard.stats().records_stored, 3);
    assert_eq!(world.turn(0), [], "nothing more to say");
}

#[test]
fn duplicates_are_acknowledged_and_not_stored() {
    let mut world = World::new(1);
    world.connect(0, 1, SESSION);
    world.send(0, &frame(1, &["/a"]));
    world.turn(0);
    world.connect(1, 1, SESSION);
    let frames = world.turn(1);
    assert!(matches!(&frames[0], ControlFrame::Welcome(welcome) if welcome.stored[0].sequence == 1));
    world.send(1, &frame(1, &["/a"]));
    world.send(1, &frame(2, &["/b"]));
    assert_eq!(acks_of(&world.turn(1)), [2]);
    let stats = world.shard.stats();
    assert_eq!((stats.records_stored, stats.records_duplicate, stats.records_received), (2, 1, 3));
    // A duplicate is not read, so what its header states counts as far as its body has room.
    let mut inflated = frame(1, &["/a"]);
    inflated[12..16].fill(0xff);
    let header_crc = crc32fast::hash(&inflated[..44]);
    inflated[44..48].copy_from_slice(&header_crc.to_le_bytes());
    world.send(1, &inflated);
    assert_eq!(acks_of(&world.turn(1)), [2], "a duplicate is acknowledged whatever its header states");
    assert_eq!(world.shard.stats().records_duplicate, 2);
}

#[test]
fn a_newer_connection_of_a_session_replaces_the_older_one() {
    let mut world = World::new(1);
    world.connect(0, 1, SESSION);
    world.turn(0);
    world.send(0, &frame(1, &["/a"])[..100]);
    world.connect(1, 1, SESSION);
    assert_eq!(error_of(&world.turn(0)), Some((ErrorCode::Replaced, 0)));
    assert_eq!(world.finished, [0]);
    world.send(0, &frame(1, &["/a"])[100..]);
    assert_eq!(world.shard.stats().records_stored, 0, "nothing is heard of the older one any more");
    world.send(1, &frame(1, &["/a"]));
    world.shard.link_gone(0, world.now);
    assert_eq!(acks_of(&world.turn(1)), [1]);
}

#[test]
fn a_session_is_known_until_the_last_replaced_connection_is_gone() {
    let mut world = World::new(1);
    world.connect(0, 1, SESSION);
    world.connect(1, 1, SESSION);
    world.turn(0);
    world.shard.link_gone(1, world.now);
    // The older one takes its time to close: meanwhile the session is idle for longer than it is kept, and others come.
    world.now.monotonic_us += 2 * SESSION_IDLE_US_MIN;
    world.shard.tick(world.now);
    world.connect(1, 2, SESSION);
    assert_eq!(world.shard.stats().sessions, 2, "the first one's place is not given away");
    world.shard.link_gone(0, world.now);
    world.shard.link_gone(1, world.now);
    world.now.monotonic_us += 2 * SESSION_IDLE_US_MIN;
    world.shard.tick(world.now);
    assert_eq!(world.shard.stats().sessions, 0, "and no longer");
}

#[test]
fn every_refusal_is_named_and_harms_nobody_else() {
    let damaged = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = frame(1, &["/a", "/b"]);
        change(&mut bytes);
        bytes
    };
    let repaired = |change: &dyn Fn(&mut Vec<u8>)| {
        damaged(&|bytes| {
            change(bytes);
            let body_crc = crc32fast::hash(&bytes[64..]);
            bytes[40..44].copy_from_slice(&body_crc.to_le_bytes());
            let header_crc = crc32fast::hash(&bytes[..44]);
            bytes[44..48].copy_from_slice(&header_crc.to_le_bytes());
        })
    };
    let cases: Vec<(ErrorCode, Vec<u8>)> = vec![
        (ErrorCode::BadMagic, damaged(&|bytes| bytes[0] ^= 1)),
        (ErrorCode::BadHeaderCrc, damaged(&|bytes| bytes[20] ^= 1)),
        (ErrorCode::UnsupportedVersion, repaired(&|bytes| bytes[5] = 9)),
        (ErrorCode::UnknownKind, repaired(&|bytes| bytes[4] = 99)),
        (
            ErrorCode::UnexpectedKind,
            repaired(&|bytes| {
                bytes.truncate(64);
                bytes[4] = 6;
                bytes[8..16].fill(0)
            }),
        ),
        (
            ErrorCode::AuthenticationUnsupported,
            repaired(&|bytes| {
                bytes.truncate(64);
                bytes[4] = 3;
                bytes[8..16].fill(0)
            }),
        ),
        (ErrorCode::ReservedNotZero, repaired(&|bytes| bytes[50] = 1)),
        (ErrorCode::BodyNotAligned, repaired(&|bytes| bytes[8] |= 1)),
        (ErrorCode::BodyTooLong, repaired(&|bytes| bytes[10] = 0xff)),
        (ErrorCode::BadBodyCrc, damaged(&|bytes| bytes[70] ^= 1)),
        (ErrorCode::UnsupportedSchema, repaired(&|bytes| bytes[6] = 2)),
        // The order of PROTOCOL.md: how long a record is depends on the schema.
        (
            ErrorCode::UnsupportedSchema,
            repaired(&|bytes| {
                bytes[6] = 2;
                bytes[12..16].fill(0xff);
            }),
        ),
        (ErrorCode::WrongSession, repaired(&|bytes| bytes[16] ^= 1)),
        (ErrorCode::SequenceGap, repaired(&|bytes| bytes[24] = 5)),
        (ErrorCode::RecordCountMismatch, repaired(&|bytes| bytes[12] = 1)),
        (ErrorCode::RecordCountMismatch, repaired(&|bytes| bytes[12..16].fill(0xff))),
        (ErrorCode::BadArchive, repaired(&|bytes| bytes.iter_mut().rev().take(16).for_each(|byte| *byte = 0xee))),
        (ErrorCode::OutOfBounds, repaired(&|bytes| bytes[64 + 112 + 3] = 0xff)),
        (ErrorCode::PartsOverlap, repaired(&|bytes| bytes[64 + 104 + 4] = 2)),
    ];
    for (expected, bytes) in cases {
        let mut world = World::new(1);
        world.connect(0, 1, SESSION);
        world.connect(1, 2, SESSION);
        world.turn(0);
        world.send(0, &bytes);
        world.send(1, &frame(1, &["/fine"]));
        let (code, _) = error_of(&world.turn(0)).unwrap_or_else(|| panic!("no error for {expected:?}"));
        assert_eq!(code, expected);
        assert_eq!(world.finished, [0], "{expected:?}");
        world.send(1, &frame(2, &["/still fine"]));
        assert_eq!(acks_of(&world.turn(1)), [2], "{expected:?}");
        assert_eq!(world.shard.stats().open_places, 0);
    }
}

#[test]
fn a_batch_with_a_record_of_another_shard_is_refused_whole() {
    let mut world = World::new(2);
    world.connect(0, 1, SESSION);
    world.turn(0);
    let strangers = (0..64u8).map(|n| std::net::Ipv4Addr::new(192, 0, 2, n).to_ipv6_mapped().octets());
    let stranger = strangers.into_iter().find(|address| shard_of_source(address) == 1).expect("half of them");
    let mut batch = BatchBuilder::default();
    batch.push(&RecordFields { client_ip: stranger, ..RecordFields::default() }, 1 << 20).expect("fits");
    let mut bytes = Vec::new();
    batch.encode_frame(SESSION, 1, 0, &mut bytes);
    world.send(0, &bytes);
    assert_eq!(error_of(&world.turn(0)), Some((ErrorCode::WrongShard, 1)));
    let stats = world.shard.stats();
    assert_eq!((stats.records_received, stats.records_rejected, stats.records_stored), (1, 1, 0));
}

fn shard_of_source(address: &[u8; 16]) -> u32 {
    postanalytics_protocol::shard_of(Source::of_bytes(address), 4, 2)
}

#[test]
fn an_unfinished_frame_ends_at_its_deadline_or_when_its_slab_is_needed() {
    let mut world = World::with_slabs(1, 4);
    world.connect(0, 1, SESSION);
    world.connect(1, 2, SESSION);
    world.turn(0);
    world.send(0, &frame(1, &["/slow"])[..100]);
    world.turn(0);
    world.now.monotonic_us += 9_000_000;
    world.shard.tick(world.now);
    assert_eq!(error_of(&world.turn(0)), None);
    let path = "x".repeat(900_000);
    for sequence in 1..=9 {
        world.send(1, &frame(sequence, &[&path]));
        if sequence < 6 {
            assert_eq!(error_of(&world.turn(0)), None, "{sequence}");
        }
    }
    assert_eq!(error_of(&world.turn(0)), Some((ErrorCode::SlabRecycled, 0)));
    world.connect(2, 3, SESSION);
    world.turn(2);
    world.send(2, &frame(1, &["/slow"])[..10]);
    world.now.monotonic_us += 11_000_000;
    world.shard.tick(world.now);
    assert_eq!(error_of(&world.turn(2)), Some((ErrorCode::FrameTimeout, 0)), "also in the middle of a header");
}

#[test]
fn a_panic_in_the_analysis_costs_a_mark_and_nothing_else() {
    let mut world = World::new(1);
    world.connect(0, 1, SESSION);
    world.turn(0);
    world.shard.analytics().panic_at = Some([1; 16]);
    world.send(0, &frame(1, &["/a", "/b"]));
    world.send(0, &frame(2, &["/c"]));
    assert_eq!(acks_of(&world.turn(0)), [2]);
    let stats = world.shard.stats();
    assert_eq!((stats.frames_quarantined, stats.records_stored), (1, 3));
    let log = world.shard.requests();
    let newest = log.newest().expect("two frames");
    let flags = [newest, log.older(newest).expect("two frames")].map(|handle| log.frame(handle).expect("committed").0.flags);
    assert_eq!(flags, [0, crate::arena::place::FLAG_QUARANTINED], "the mark is on the batch that it is about");
}

#[test]
fn a_record_that_panics_when_it_is_explained_is_told_apart_from_those_whose_analysis_did() {
    use crate::analytics::explain::{EXPLAIN_FAILED, QUARANTINED};
    let mut world = World::new(1);
    world.connect(0, 1, SESSION);
    world.turn(0);
    world.shard.analytics().panic_at = Some([1; 16]);
    world.send(0, &frame(1, &["/a", "/b"]));
    world.send(0, &frame(2, &["/c", "/d", "/e"]));
    assert_eq!(world.shard.stats().frames_quarantined, 1);
    // The third record would panic now, though its batch was analysed well; so would those of the first batch.
    world.shard.analytics().panic_at = Some([2; 16]);
    let query = Query {
        id: 1,
        source: None,
        request_id: None,
        since_us: None,
        limit: 10,
        until_us: None,
        explain: true,
        cursor: None,
        page: QueryPage::new(),
    };
    assert!(world.shard.begin_query(Box::new(query)).is_none());
    let page = world.shard.query_slice(world.now).expect("one slice").page;
    let known = [QUARANTINED, EXPLAIN_FAILED];
    let found: Vec<_> = page.standings.iter().map(|standings| known.iter().position(|one| one == standings)).collect();
    assert_eq!(found, [Some(1), None, None, Some(0), Some(0)]);
    let quiet_until_us = world.now.monotonic_us + 60_000_000;
    assert_eq!(world.shard.failures_quiet_until_us, quiet_until_us, "it is said, and no more for a minute");
}

#[test]
fn records_with_hits_go_to_the_attack_log_too() {
    let mut world = World::new(1);
    world.connect(0, 1, SESSION);
    let mut bytes = Vec::new();
    batch_of(&["/a", "/b", "/c"], true).encode_frame(SESSION, 1, 0, &mut bytes);
    world.send(0, &bytes);
    world.send(0, &frame(2, &["/d"]));
    world.turn(0);
    let stats = world.shard.stats();
    assert_eq!((stats.records_live, stats.attack_records_live), (4, 3));
    let (_, body) = world.shard.attacks.frame(world.shard.attacks.newest().expect("a frame")).expect("committed");
    let batch = postanalytics_protocol::ValidBatch::parse(1, 3, body).expect("a good copy");
    let last = batch.record(2).expect("three");
    assert_eq!((last.path(), last.hits().next().expect("a hit").payload), (&b"/c"[..], &b"../"[..]));
}

#[test]
fn verdicts_reach_everyone_in_the_same_turn_and_newcomers_whole() {
    let mut world = World::new(1);
    world.connect(0, 1, SESSION);
    world.turn(0);
    let verdict = |session| Verdict {
        subject: Subject::Session(session),
        application: None,
        action: Some(Action::Denylist),
        until_us: u64::MAX,
        detector: 0,
    };
    world.list(verdict(5));
    let frames = world.turn(0);
    assert!(matches!(&frames[..], [ControlFrame::Verdicts(pushed)] if pushed.verdicts == [verdict(5)] && !pushed.begin));
    for session in 6..3_000 {
        world.list(verdict(session));
    }
    world.turn(0);
    world.connect(1, 2, SESSION);
    let mut found = Vec::new();
    let mut marks = Vec::new();
    for _ in 0..5 {
        for frame in world.turn(1) {
            if let ControlFrame::Verdicts(part) = frame {
                found.extend(part.verdicts);
                marks.push((part.begin, part.end));
            }
        }
    }
    assert_eq!(found.len(), 2_995);
    assert_eq!(marks, [(true, false), (false, false), (false, true)]);
}

#[test]
fn when_the_clock_is_set_forward_everyone_gets_the_whole_set_again() {
    const HOUR_US: u64 = 3_600_000_000;
    let mut world = World::new(1);
    world.connect(0, 1, SESSION);
    world.turn(0);
    let verdict = |session| Verdict {
        subject: Subject::Session(session),
        application: None,
        action: Some(Action::Denylist),
        until_us: world.now.wall_us,
        detector: 0,
    };
    let (short, long) = (verdict(1), verdict(2));
    // By hand a verdict lasts from now on, by the clock of the shard.
    world.shard.set_verdict(short, HOUR_US, world.now);
    world.shard.set_verdict(long, 10 * HOUR_US, world.now);
    let [short, long] =
        [(short, 1), (long, 10)].map(|(verdict, hours)| Verdict { until_us: world.now.wall_us + hours * HOUR_US, ..verdict });
    let frames = world.turn(0);
    assert!(matches!(&frames[..], [ControlFrame::Verdicts(pushed)] if pushed.verdicts == [short, long]), "{frames:?}");
    world.now.wall_us += 100_000;
    assert!(world.turn(0).is_empty(), "a clock that is a little late is not set");
    world.now.wall_us += 8 * HOUR_US;
    let frames = world.turn(0);
    let is_whole = |set: &postanalytics_protocol::frames::Verdicts| set.begin && set.end && set.verdicts == [long];
    assert!(matches!(&frames[..], [ControlFrame::Verdicts(set)] if is_whole(set)), "{frames:?}");
    assert!(world.turn(0).is_empty(), "once");
}

#[test]
fn pings_stats_and_goodbyes_are_answered() {
    let mut world = World::new(1);
    world.connect(0, 1, SESSION);
    world.send(0, &frame(1, &["/a", "/b"]));
    world.turn(0);
    let mut bytes = Vec::new();
    Ping { token: 8 }.encode(SESSION, 0, &mut bytes);
    StatsRequest { token: 9 }.encode(SESSION, 0, &mut bytes);
    world.send(0, &bytes);
    assert!(world.shard.wants_usage());
    let frames = world.turn(0);
    assert!(matches!(frames[0], ControlFrame::Pong(Pong { token: 8 })));
    assert!(matches!(frames[1], ControlFrame::Stats(stats) if stats.token == 9 && stats.session_records_stored == 2));
    let mut bytes = Vec::new();
    Goodbye::default().encode(SESSION, 0, &mut bytes);
    world.send(0, &bytes);
    world.turn(0);
    world.turn(0);
    assert_eq!(world.finished, [0]);
}

#[test]
fn a_drain_says_goodbye_and_ends_when_all_are_gone() {
    let mut world = World::new(1);
    world.connect(0, 1, SESSION);
    world.turn(0);
    world.shard.drain(world.now);
    assert!(matches!(world.turn(0)[..], [ControlFrame::Goodbye(_)]));
    world.send(0, &frame(1, &["/late"]));
    assert_eq!(acks_of(&world.turn(0)), [1], "what arrives is still stored and acknowledged");
    assert!(!world.shard.is_drained());
    world.now.monotonic_us += DRAIN_QUIET_US;
    world.shard.tick(world.now);
    world.turn(0);
    world.turn(0);
    assert_eq!(world.finished, [0]);
    world.shard.link_gone(0, world.now);
    assert!(world.shard.is_drained());
}

#[test]
fn who_has_said_goodbye_is_told_none() {
    let mut world = World::new(1);
    world.connect(0, 1, SESSION);
    world.turn(0);
    let mut bytes = frame(1, &["/last"]);
    Goodbye::default().encode(SESSION, 0, &mut bytes);
    world.send(0, &bytes);
    world.shard.drain(world.now);
    assert!(matches!(world.turn(0)[..], [ControlFrame::Ack(Ack { sequence: 1 })]));
    world.turn(0);
    assert_eq!(world.finished, [0]);
}

#[test]
fn queries_find_newest_first_page_by_page() {
    let mut world = World::new(1);
    world.connect(0, 1, SESSION);
    world.turn(0);
    for sequence in 1..=50 {
        let paths: Vec<String> = (0..100).map(|n| format!("/{sequence}/{n}")).collect();
        let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
        world.send(0, &frame(sequence, &paths));
        world.turn(0);
    }
    let query = |limit, source| {
        Box::new(Query {
            id: 1,
            source,
            request_id: None,
            since_us: None,
            limit,
            until_us: None,
            explain: false,
            cursor: None,
            page: QueryPage::new(),
        })
    };
    let mut found = Vec::new();
    let mut next = Some(query(300, None));
    while let Some(asked) = next.take() {
        assert!(world.shard.begin_query(asked).is_none());
        assert!(world.shard.begin_query(query(1, None)).is_some(), "one at a time");
        let mut slices = 0;
        let answer = loop {
            slices += 1;
            if let Some(answer) = world.shard.query_slice(Now::default()) {
                break answer;
            }
        };
        assert!(slices < 10);
        for record in answer.page.records.records() {
            let path = record.path.offset as usize..(record.path.offset + record.path.length) as usize;
            found.push(String::from_utf8(answer.page.records.blob()[path].to_vec()).expect("text"));
        }
        if !answer.page.complete {
            next = Some(Box::new(Query { page: QueryPage::new(), ..*answer }));
        }
    }
    let expected: Vec<String> =
        (1..=50).rev().flat_map(|sequence| (0..100).rev().map(move |n| format!("/{sequence}/{n}"))).collect();
    assert_eq!(found, expected);

    let source = Source::of("192.0.2.7".parse().expect("an address"));
    assert!(world.shard.begin_query(query(1000, Some(source))).is_none());
    let answer = loop {
        if let Some(answer) = world.shard.query_slice(Now::default()) {
            break answer;
        }
    };
    assert!(answer.page.complete);
    assert_eq!((answer.page.stored.len(), answer.page.records_scanned), (50, 5_000));
}

#[test]
fn after_goodbye_nothing_is_read_and_nothing_can_block_the_log() {
    let mut world = World::with_slabs(1, 4);
    world.connect(0, 1, SESSION);
    world.connect(1, 2, SESSION);
    world.turn(0);
    let mut bytes = Vec::new();
    Goodbye::default().encode(SESSION, 0, &mut bytes);
    bytes.extend(&frame(1, &["/torn"])[..100]);
    world.send(0, &bytes);
    assert_eq!(world.shard.stats().open_places, 0);
    let path = "x".repeat(900_000);
    for sequence in 1..=20 {
        world.send(1, &frame(sequence, &[&path]));
        assert_eq!(acks_of(&world.turn(1)), [sequence]);
    }
}

#[test]
fn acks_of_small_batches_wait_for_others() {
    let mut world = World::new(1);
    world.connect(0, 1, SESSION);
    world.turn(0);
    world.shard.merging.look(1, 1, 0);
    assert_eq!(world.shard.acks_wait_us(world.now), None, "nothing is owed");
    // Each turn of these tests takes 100 µs.
    let turns = ACK_WAIT_US / 100;
    for sequence in 1..turns {
        world.send(0, &frame(sequence, &["/a"]));
        assert_eq!(world.turn(0), [], "{sequence}");
        assert_eq!(world.shard.acks_wait_us(world.now), Some(ACK_WAIT_US - sequence * 100));
    }
    assert_eq!(acks_of(&world.turn(0)), [turns - 1], "one for all, after its time");
    let intake = world.shard.merging.intake;
    assert_eq!((intake.small, intake.large, intake.connections), (turns - 1, 0, 1));
    assert!((40 * turns..400 * turns).contains(&intake.bytes), "{intake:?}");
    assert_eq!(world.shard.stats().records_stored, turns - 1);
    // The next one waits as long as the first, and no longer than the shard is busy.
    world.send(0, &frame(turns, &["/a"]));
    assert_eq!(world.turn(0), []);
    assert_eq!(world.shard.acks_wait_us(world.now), Some(ACK_WAIT_US - 100));
    world.shard.merging.look(0, 1, 0);
    assert_eq!(world.shard.acks_wait_us(world.now), Some(0));
    assert_eq!(acks_of(&world.turn(0)), [turns]);
}

#[test]
fn what_waits_goes_with_verdicts_and_at_the_end_and_one_ack_alone_where_something_is_large() {
    type Step = fn(&mut World, u32);
    fn batch(link: u32, sequence: u64, path: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        batch_of(&[path], false).encode_frame(SESSION + u64::from(link), sequence, 9, &mut bytes);
        bytes
    }
    let small: Step = |world, link| world.send(link, &batch(link, 2, "/small"));
    let large: Step = |world, link| world.send(link, &batch(link, 2, &"x".repeat(ACK_AT_ONCE_BYTES as usize)));
    let stats: Step = |world, link| {
        let mut bytes = Vec::new();
        StatsRequest { token: 9 }.encode(SESSION + u64::from(link), 0, &mut bytes);
        world.send(link, &bytes);
    };
    let broken: Step = |world, link| world.send(link, &[0; 64]);
    let verdict: Step = |world, _| {
        let subject = Subject::Session(1);
        world.list(Verdict { subject, application: None, action: Some(Action::Denylist), until_us: 0, detector: 0 });
    };
    let drain: Step = |world, _| world.shard.drain(world.now);
    // Whether the Ack of the connection that it happens to goes out, and that of the other.
    for (name, step, own, others) in [
        ("small", small, false, false),
        ("large", large, true, false),
        ("stats", stats, true, false),
        ("broken", broken, true, false),
        ("verdict", verdict, true, true),
        ("drain", drain, true, true),
    ] {
        for (of, goes) in [(0, own), (1, others)] {
            let mut world = World::new(1);
            for link in [0, 1] {
                world.connect(link, 1 + link as u8, SESSION + u64::from(link));
                world.turn(link);
            }
            world.shard.merging.look(1, 1, 0);
            (0..2).for_each(|link| world.send(link, &batch(link, 1, "/")));
            assert_eq!(world.turn(of), [], "{name}");
            step(&mut world, 0);
            let frames = world.turn(of);
            assert_eq!(
                acks_of(&frames),
                if goes { vec![1 + u64::from(of == 0 && name == "large")] } else { vec![] },
                "{name} {of}"
            );
            // Whatever went, the others follow in their time, and nothing is said twice.
            (2..ACK_WAIT_US / 100 - 1).for_each(|_| assert!(acks_of(&world.turn(of)).is_empty(), "{name} {of}"));
            let left = if goes { vec![] } else { vec![1 + u64::from(of == 0 && name == "small")] };
            assert_eq!(acks_of(&world.turn(of)), left, "{name} {of}");
        }
    }
}

#[test]
fn a_large_duplicate_is_acknowledged_at_once() {
    let mut world = World::new(1);
    world.connect(0, 1, SESSION);
    world.turn(0);
    let bytes = frame(1, &[&"x".repeat(ACK_AT_ONCE_BYTES as usize)]);
    world.send(0, &bytes);
    world.turn(0);
    world.shard.merging.look(1, 1, 0);
    world.send(0, &bytes);
    assert_eq!(acks_of(&world.turn(0)), [1]);
    assert_eq!((world.shard.merging.intake.small, world.shard.merging.intake.large), (0, 1));
}

#[test]
fn a_peer_that_closed_its_half_gets_the_ack_that_waits() {
    let mut world = World::new(1);
    world.connect(0, 1, SESSION);
    world.turn(0);
    world.shard.merging.look(1, 1, 0);
    world.send(0, &frame(1, &["/last"]));
    world.shard.peer_closed(0);
    for _ in 1..ACK_WAIT_US / 100 {
        assert_eq!(world.turn(0), []);
        assert!(world.finished.is_empty());
    }
    assert_eq!(acks_of(&world.turn(0)), [1]);
    world.turn(0);
    assert_eq!(world.finished, [0]);
}

#[test]
fn an_ack_that_waits_is_not_told_to_who_comes_next() {
    let mut world = World::new(1);
    world.connect(0, 1, SESSION);
    world.turn(0);
    world.shard.merging.look(1, 1, 0);
    world.send(0, &frame(1, &["/gone"]));
    assert_eq!(world.turn(0), []);
    assert!(world.shard.acks_wait_us(world.now).is_some(), "one waits");
    world.shard.broken(0);
    world.shard.link_gone(0, world.now);
    world.connect(0, 2, SESSION + 1);
    for _ in 0..2 * ACK_WAIT_US / 100 {
        assert!(acks_of(&world.turn(0)).is_empty());
    }
}

#[test]
fn each_ack_counts_with_the_time_since_its_own_first_bytes() {
    let mut world = World::new(1);
    for link in [0, 1] {
        world.connect(link, 1 + link as u8, SESSION + u64::from(link));
        world.turn(link);
    }
    world.shard.merging.look(1, 1, 0);
    let mut other = Vec::new();
    batch_of(&["/"], false).encode_frame(SESSION + 1, 1, 9, &mut other);
    let start_us = world.now.monotonic_us;
    world.send(0, &frame(1, &["/"]));
    world.now.monotonic_us += 1500;
    world.send(1, &other);
    world.now.monotonic_us += 500;
    let acks = world.shard.end_turn(Usage::default(), world.now);
    assert!(acks == 0 && world.shard.has_answered(acks), "both had waited");
    world.shard.acked(acks, world.now.monotonic_us, start_us + 2100);
    let latency = &world.shard.ack_latency;
    assert_eq!(latency.len(), 2);
    for (is, expected) in [(latency.min(), 600_000_u64), (latency.max(), 2_100_000)] {
        assert!(is.abs_diff(expected) < expected / 500, "{is} ns");
    }
    assert!(!world.shard.has_answered(0));
}

#[test]
fn a_peer_that_closed_its_half_still_gets_its_ack() {
    let mut world = World::new(1);
    world.connect(0, 1, SESSION);
    world.turn(0);
    let mut bytes = frame(1, &["/last"]);
    bytes.extend(&frame(2, &["/torn"])[..90]);
    world.send(0, &bytes);
    world.shard.peer_closed(0);
    assert_eq!(acks_of(&world.turn(0)), [1]);
    world.turn(0);
    assert_eq!(world.finished, [0]);
    assert_eq!(world.shard.stats().open_places, 0);
}

#[test]
fn a_named_error_goes_out_although_the_peer_closed_its_half() {
    let mut world = World::new(1);
    world.connect(0, 1, SESSION);
    world.turn(0);
    world.send(0, &[0; 64]);
    world.shard.peer_closed(0);
    assert_eq!(error_of(&world.turn(0)), Some((ErrorCode::BadMagic, 0)));
    assert_eq!(world.finished, [0]);
}

#[test]
fn an_error_frame_of_a_client_ends_its_stream() {
    let mut world = World::new(1);
    world.connect(0, 1, SESSION);
    world.turn(0);
    let mut bytes = Vec::new();
    for _ in 0..100 {
        Refusal::of_connection(ErrorCode::BadBody, "no").encode(SESSION, 0, &mut bytes);
    }
    bytes.extend(frame(1, &["/after"]));
    world.send(0, &bytes);
    world.turn(0);
    world.turn(0);
    assert_eq!(world.shard.stats().records_received, 0);
    assert_eq!(world.finished, [0]);
}

#[test]
fn a_change_in_the_turn_of_an_adoption_comes_within_the_whole_set() {
    let mut world = World::new(1);
    let verdict = Verdict {
        subject: Subject::Session(5),
        application: None,
        action: Some(Action::Denylist),
        until_us: u64::MAX,
        detector: 0,
    };
    world.connect(0, 1, SESSION);
    world.list(verdict);
    let frames = world.turn(0);
    assert_eq!(frames.len(), 2, "{frames:?}");
    assert!(matches!(&frames[1], ControlFrame::Verdicts(set) if set.begin && set.end && set.verdicts == [verdict]));
}

#[test]
fn a_query_over_empty_batches_is_worked_on_in_slices_too() {
    let mut world = World::new(1);
    world.connect(0, 1, SESSION);
    let mut bytes = Vec::new();
    for sequence in 1..=5_000 {
        bytes.extend(frame(sequence, &[]));
    }
    world.send(0, &bytes);
    world.turn(0);
    let query = Query {
        id: 1,
        source: None,
        request_id: None,
        since_us: None,
        limit: 10,
        until_us: None,
        explain: false,
        cursor: None,
        page: QueryPage::new(),
    };
    assert!(world.shard.begin_query(Box::new(query)).is_none());
    let slices = std::iter::repeat_with(|| world.shard.query_slice(Now::default())).position(|answer| answer.is_some());
    assert!(slices.is_some_and(|slices| (15..50).contains(&slices)), "{slices:?}");
}

#[test]
fn hoarders_of_memory_yield_to_others_after_a_while() {
    let mut world = World::with_slabs(1, 2);
    for link in 0..4 {
        world.connect(link, link as u8 + 1, SESSION);
    }
    world.turn(0);
    let path = "x".repeat(900_000);
    let large = frame(1, &[&path]);
    world.send(0, &large[..64]);
    world.send(1, &large[..64]);
    world.send(2, &large[..64]);
    assert_eq!(error_of(&world.turn(2)), Some((ErrorCode::Overloaded, 1)), "those that came first go on");
    world.now.monotonic_us += 1_100_000;
    world.send(3, &large);
    assert_eq!(acks_of(&world.turn(3)), [1]);
    assert!(world.finished.contains(&0), "the one that began first yields");
}

#[test]
fn who_hoards_memory_yields_to_another_address_at_once() {
    let mut world = World::with_slabs(1, 2);
    for link in 0..3 {
        world.connect_from("192.0.2.1:9", link, link as u8 + 1, SESSION);
    }
    world.connect_from("192.0.2.2:9", 3, 4, SESSION);
    world.turn(0);
    let [largest, large, small] = [900_000, 800_000, 600_000].map(|bytes| frame(1, &[&"x".repeat(bytes)]));
    world.send(0, &large[..64]);
    world.send(1, &largest[..64]);
    world.send(2, &small[..64]);
    assert_eq!(error_of(&world.turn(2)), Some((ErrorCode::Overloaded, 1)), "among one's own the first go on");
    world.send(3, &small);
    assert_eq!(acks_of(&world.turn(3)), [1]);
    assert_eq!(world.finished, [2, 1], "the largest of the other address yields, and it alone");
}

#[test]
fn who_hoards_memory_by_many_addresses_of_a_network_yields_too() {
    let mut world = World::with_slabs(1, 2);
    for link in 0..32 {
        world.connect_from(&format!("[2001:db8:0:7::{link:x}]:9"), link, link as u8 + 1, SESSION);
    }
    world.connect_from("[2001:db8:0:8::1]:9", 32, 33, SESSION);
    world.turn(0);
    let bytes = frame(1, &[&"x".repeat(64 << 10)]);
    for link in 0..32 {
        world.send(link, &bytes[..64]);
    }
    assert_eq!(error_of(&world.turn(31)), Some((ErrorCode::Overloaded, 1)), "among one's own the first go on");
    world.send(32, &bytes);
    assert_eq!(acks_of(&world.turn(32)), [1]);
    assert_eq!(world.finished, [31, 30], "one of the other network yields");
}

#[test]
fn a_replaced_connection_that_closes_late_finds_its_session() {
    let mut world = World::new(1);
    world.connect(0, 1, SESSION);
    world.turn(0);
    // One that stored nothing would be forgotten with its last connection.
    world.send(0, &frame(1, &["/a"]));
    world.turn(0);
    world.connect(1, 1, SESSION);
    world.turn(0);
    // The newer one is gone first. Then the machine sleeps longer than sessions without connection are kept.
    world.shard.link_gone(1, world.now);
    world.now.monotonic_us += 2 * SESSION_IDLE_US_MIN;
    world.shard.tick(world.now);
    world.connect(2, 2, SESSION + 1);
    world.shard.link_gone(0, world.now);
    assert_eq!(world.shard.stats().sessions, 2, "a session stays while any connection refers to it");
    world.now.monotonic_us += 2 * SESSION_IDLE_US_MIN;
    world.shard.tick(world.now);
    assert_eq!(world.shard.stats().sessions, 1);
    world.shard.invariants();
}

/// A world whose detectors have these numbers and actions.
fn world_with(configuration: &str) -> World {
    use crate::analytics::settings::Settings;
    use crate::analytics::{AnalyticsPlan, Room};
    let config = crate::config::detection::DetectionConfig::parse(configuration).expect("a configuration");
    let settings = Arc::new(Settings::new(&config).expect("settings"));
    let mut world = World::new(1);
    *world.shard.analytics() = AnalyticsPlan { settings, room: Room::default(), seed: 1 }.build();
    world
}

fn not_found(sequence: u64, path: &str, sent_us: u64, event_us: u64) -> Vec<u8> {
    let mut batch = BatchBuilder::default();
    let client_ip = "::ffff:192.0.2.1".parse::<std::net::Ipv6Addr>().expect("an address").octets();
    let fields = RecordFields { client_ip, event_us, method: 1, status: 404, path: path.as_bytes(), ..RecordFields::default() };
    batch.push(&fields, 1 << 20).expect("fits");
    let mut bytes = Vec::new();
    batch.encode_frame(SESSION, sequence, sent_us, &mut bytes);
    bytes
}

#[test]
fn the_deciding_record_lists_its_source_in_the_same_turn() {
    let mut world = world_with("[detectors.forced_browsing]\naction = 'denylist'\naction_s = 600\n");
    world.connect(0, 1, SESSION);
    world.turn(0);
    let listed = |frames: Vec<ControlFrame>| {
        frames.into_iter().find_map(|frame| match frame {
            ControlFrame::Verdicts(verdicts) => verdicts.verdicts.first().copied(),
            _ => None,
        })
    };
    // The node's clock is half a century behind and jumps about by less than two minutes: neither matters.
    for (sequence, path) in (1..).zip(["/a", "/b", "/c"]) {
        world.send(0, &not_found(sequence, path, 90_000_000 - sequence * 20_000_000, 1));
        assert_eq!(listed(world.turn(0)), None);
    }
    world.send(0, &not_found(4, "/d", 90_000_000, 80_000_000));
    let until_us = world.now.wall_us + 600_000_000;
    let verdict = listed(world.turn(0)).expect("a verdict in this turn");
    let client_ip = "::ffff:192.0.2.1".parse::<std::net::Ipv6Addr>().expect("an address").octets();
    assert_eq!((verdict.subject, verdict.application), (Subject::Source(client_ip), Some(-1)));
    assert_eq!((verdict.action, verdict.until_us, verdict.detector), (Some(Action::Denylist), until_us, 6));
    assert_eq!(world.shard.stats().alerts_raised, 1);
}

#[test]
fn who_is_allowlisted_or_a_trusted_proxy_by_a_reload_is_taken_off() {
    let mut world = world_with("");
    world.connect(0, 1, SESSION);
    world.turn(0);
    let address = |last: u8| std::net::Ipv4Addr::new(192, 0, 2, last).to_ipv6_mapped().octets();
    let verdict =
        |subject, detector| Verdict { subject, application: None, action: Some(Action::Denylist), until_us: u64::MAX, detector };
    let of_source = |last, detector| verdict(Subject::Source(address(last)), detector);
    // The allowlist comes first, whoever listed; a trusted proxy is freed of detectors.
    let freed = [of_source(1, 6), of_source(2, 0), of_source(80, 6)];
    let kept = [of_source(77, 6), of_source(78, 0), of_source(81, 0), verdict(Subject::Session(1), 6)];
    freed.into_iter().chain(kept).for_each(|verdict| world.list(verdict));
    world.turn(0);
    // Those that were found in the turn of the reload are not made.
    world.list(of_source(3, 6));
    world.list(of_source(82, 6));
    let lists = "allowlist = ['192.0.2.0/28']\ntrusted_proxies = ['192.0.2.80/30']";
    let config = crate::config::detection::DetectionConfig::parse(lists).expect("a configuration");
    let settings = Arc::new(crate::analytics::settings::Settings::new(&config).expect("settings"));
    let (frame_deadline, drain_deadline) = (Duration::from_secs(1), Duration::from_secs(1));
    let analytics = Some(crate::analytics::Reload { settings, changed: Vec::new() });
    world.shard.reload(&ShardReload { analytics, frame_deadline, drain_deadline });
    let frames = world.turn(0);
    let taken_back = freed.map(|verdict| Verdict { action: None, ..verdict });
    assert!(matches!(&frames[..], [ControlFrame::Verdicts(pushed)] if pushed.verdicts == taken_back), "{frames:?}");
    let mut page = VerdictPage { id: 0, from: 0, subject: None, verdicts: Vec::with_capacity(9), next: None };
    world.shard.list_verdicts(&mut page);
    assert_eq!(page.verdicts, kept);
}

/// Detections of nothing, with this allowlist.
pub(super) fn reload_with_allowlist(world: &mut World, network: &str) {
    let config =
        crate::config::detection::DetectionConfig::parse(&format!("allowlist = ['{network}']")).expect("a configuration");
    let settings = Arc::new(crate::analytics::settings::Settings::new(&config).expect("settings"));
    let (frame_deadline, drain_deadline) = (Duration::from_secs(1), Duration::from_secs(1));
    let analytics = Some(crate::analytics::Reload { settings, changed: Vec::new() });
    world.shard.reload(&ShardReload { analytics, frame_deadline, drain_deadline });
}

/// A world with two connections, and a verdict by hand on each of this many sources of 10.0.0.0/8.
pub(super) fn world_with_verdicts(count: u32) -> World {
    let mut world = World::new(1);
    world.connect(0, 1, SESSION);
    world.connect(1, 2, SESSION);
    world.turn(0);
    for number in 0..count {
        let source = std::net::Ipv4Addr::from(0x0a00_0000 + number).to_ipv6_mapped().octets();
        let (subject, action) = (Subject::Source(source), Some(Action::Denylist));
        world.list(Verdict { subject, application: None, action, until_us: u64::MAX, detector: 0 });
        if number % 1000 == 0 {
            world.turn(0);
        }
    }
    world.turn(0);
    assert_eq!(world.shard.stats().verdicts_live, u64::from(count));
    world
}

#[test]
fn many_verdicts_that_a_reload_takes_back_cost_nobody_the_connection() {
    let mut world = world_with_verdicts(30_000);
    reload_with_allowlist(&mut world, "10.0.0.0/8");
    let (sender, mut receiver) = derived_queue().expect("socket pairs");
    world.shard.connect_correlator(sender);
    let (mut taken_back, mut told, mut turns) = (0, 0, 0);
    while world.has_verdicts() {
        turns += 1;
        for frame in world.turn(0) {
            match frame {
                ControlFrame::Verdicts(pushed) => taken_back += pushed.verdicts.len(),
                other => panic!("{other:?}"),
            }
        }
        while let Some(parcel) = receiver.receive() {
            told += parcel.verdicts.len();
            receiver.give_back(parcel);
        }
        assert_eq!(world.shard.verdicts_written, 0, "no bytes decided that, so there is no time to measure from");
    }
    assert_eq!((taken_back, told, turns), (30_000, 30_000, 8));
    let stats = world.shard.stats();
    assert_eq!((stats.verdicts_live, stats.derived_lost, world.finished.len()), (0, 0, 0));
}

#[test]
fn many_changes_wait_a_while_for_a_peer_that_reads_slowly_and_few_for_nobody() {
    let mut world = world_with_verdicts(30_000);
    reload_with_allowlist(&mut world, "10.0.0.0/8");
    let live = |world: &World| world.shard.stats().verdicts_live;
    // Nobody reads.
    let patience_us = VERDICTS_PATIENCE_US;
    for (expected, wait_us) in [(25_904, 0), (21_808, patience_us), (21_808, patience_us), (21_808, patience_us)] {
        world.shard.end_turn(Usage::default(), world.now);
        assert_eq!(live(&world), expected);
        assert_eq!(world.shard.verdicts_wait_us(world.now), Some(wait_us), "turns follow at once, or wait for peers");
    }
    world.now.monotonic_us += VERDICTS_PATIENCE_US;
    assert_eq!(world.shard.verdicts_wait_us(world.now), Some(0));
    world.shard.end_turn(Usage::default(), world.now);
    assert_eq!(live(&world), 17_712, "a peer that reads nothing does not stop it");
    // The outboxes are handed over and read, which wakes the shard.
    world.shard.take_dirty();
    for link in [0, 1] {
        world.shard.outbox(link).expect("bytes").clear();
        world.shard.sent(link);
    }
    assert_eq!(world.shard.verdicts_wait_us(world.now), Some(0));
    while world.has_verdicts() {
        world.turn(0);
    }
    assert_eq!((live(&world), world.finished.len()), (0, 0), "they read again in time");

    let verdict = |session| Verdict {
        subject: Subject::Session(session),
        application: None,
        action: Some(Action::Denylist),
        until_us: u64::MAX,
        detector: 0,
    };
    (0..8_000).for_each(|session| world.list(verdict(session)));
    for _ in 0..2 {
        world.shard.end_turn(Usage::default(), world.now);
    }
    assert!(!world.has_verdicts() && world.shard.some_peer_reads_slowly(), "their outboxes are over a quarter full now");
    world.list(verdict(8_000));
    world.shard.end_turn(Usage::default(), world.now);
    assert_eq!(live(&world), 8_001, "and this one waits for nobody");
}

#[test]
fn by_default_alerts_list_nobody() {
    let mut world = World::new(1);
    world.connect(0, 1, SESSION);
    for (sequence, path) in (1..).zip(["/a", "/b", "/c", "/d"]) {
        world.send(0, &not_found(sequence, path, 0, 0));
    }
    world.turn(0);
    assert_eq!((world.shard.stats().alerts_raised, world.shard.stats().verdicts_live), (1, 0));
}

/// As in a burst: thirty tools in thirty batches of one turn, among two hundred visitors.
#[test]
fn listings_of_one_turn_are_no_more_than_may_be_listed() {
    use crate::analytics::settings::Settings;
    use crate::analytics::{AnalyticsPlan, Room};
    let config = crate::config::detection::DetectionConfig::parse("[detectors.scanner]\naction = 'denylist'");
    let settings = Arc::new(Settings::new(&config.expect("a configuration")).expect("settings"));
    let mut world = World::new(1);
    *world.shard.analytics() = AnalyticsPlan { settings, room: Room { reports: true, ..Room::default() }, seed: 1 }.build();
    world.connect(0, 1, SESSION);
    world.turn(0);
    let mut sequence = 0;
    let mut send = |world: &mut World, sources: &[u8], user_agent: &[u8]| {
        let mut batch = BatchBuilder::default();
        for source in sources {
            let client_ip = std::net::Ipv4Addr::new(192, 0, 2, *source).to_ipv6_mapped().octets();
            batch.push(&RecordFields { client_ip, user_agent, status: 200, ..RecordFields::default() }, 1 << 20).expect("fits");
        }
        sequence += 1;
        let mut bytes = Vec::new();
        batch.encode_frame(SESSION, sequence, 9, &mut bytes);
        world.send(0, &bytes);
    };
    send(&mut world, &(0..200).collect::<Vec<_>>(), b"Mozilla/5.0");
    (0..30).for_each(|source| send(&mut world, &[source; 3], b"sqlmap/1.7"));
    world.turn(0);
    let stats = world.shard.stats();
    assert!((8..=12).contains(&stats.verdicts_live), "{} of 200", stats.verdicts_live);
    assert_eq!(stats.verdicts_live + stats.listings_too_many, 30);
    assert_eq!(world.shard.verdicts_written, stats.verdicts_live, "those bytes decided them");
}
