//! What can happen between client and server, in any order, and what must hold whatever happens.

use super::{SECOND, World, address, config};
use crate::config::Config;
use postanalytics_protocol::error::ErrorCode;
use postanalytics_protocol::frames::{Ack, ErrorFrame, Goodbye, Ping, Verdicts};
use proptest::prelude::*;

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
            world.servers[0].up = false;
            for link in world.peers.keys().copied().collect::<Vec<_>>() {
                world.break_link(link);
            }
        }
        Op::Up => world.servers[0].up = true,
        Op::Restart { shards } => world.restart(shards),
        Op::Forget => {
            let ended = world.peers.keys().copied().collect::<Vec<_>>();
            ended.into_iter().for_each(|link| world.break_link(link));
            // A server forgets only sessions that were idle for long. One that forgets what it stored a moment ago, before it
            // acknowledged anything at all, cannot be told from one that never stored it.
            let acked = world.core.sessions_acked(0);
            world.servers[0].sessions.retain(|(session, _, shard), _| !acked.contains(&(*session, *shard)));
        }
        Op::RefuseContent => world.servers[0].refuse_content = true,
        Op::Goodbye => {
            for peer in world.peers.values_mut().filter(|peer| peer.shard.is_some()) {
                Goodbye { retry_after_ms: 300 }.encode(peer.session, 0, &mut peer.out);
            }
        }
        Op::Window { bytes } => world.servers[0].window_bytes = bytes,
        Op::MaxBody { bytes } => {
            // A limit that a server changes while batches are on their way to it would be its own fault.
            for link in world.peers.keys().copied().collect::<Vec<_>>() {
                world.break_link(link);
            }
            world.servers[0].max_body_bytes = bytes;
        }
        Op::Flush => world.core.flush(Some(world.clock_us)),
        Op::Stats => world.core.ask_stats(world.clock_us + 1),
        Op::LongPause => {
            world.servers[0].up = false;
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

    /// The end may come at any time.
    #[test]
    fn no_end_reports_lost_what_was_stored(seed: u64, shards in 1u32..5, ops in proptest::collection::vec(op(), 1..30)) {
        let mut world = World::new(seed, shards);
        for op in &ops {
            apply(&mut world, op);
        }
        world.close();
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
        prop_assert_eq!(world.servers[0].stored.len() as u64, world.sent);
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
    assert!(world.servers[0].user_hashes.len() == 1 && !world.servers[0].user_hashes.contains(&0));
    let first = crate::bundle::IdentityKey::new(&[1; 32]).hash(b"anna");
    assert!(!world.servers[0].user_hashes.contains(&first), "hashed with the new key");
}

#[test]
fn what_the_old_topology_stored_is_not_sent_again() {
    let mut world = World::new(2, 2);
    world.send(100, 100);
    for _ in 0..100 {
        world.run(1, 5000);
        if world.servers[0].stored.len() as u64 > world.core.ledger().acked {
            break;
        }
    }
    let (stored, sessions) = (world.servers[0].stored.clone(), world.servers[0].sessions.clone());
    let unacked = stored.len() as u64 - world.core.ledger().acked;
    assert!(unacked > 0, "the seed leaves something unacknowledged: {} {:?}", stored.len(), world.core.ledger());
    world.restart(3);
    // This one kept its id, its sessions and its records.
    world.servers[0].server_id = 1;
    (world.servers[0].stored, world.servers[0].sessions) = (stored, sessions);
    world.ever_stored.clear();
    world.settle();
    assert_eq!((world.servers[0].stored.len(), world.core.ledger().acked), (100, 100));
}

#[test]
fn what_another_server_says_of_the_old_topology_counts_for_nothing() {
    let mut world = World::new(2, 2);
    world.send(100, 100);
    while world.servers[0].stored.len() as u64 <= world.core.ledger().acked {
        world.run(1, 5000);
    }
    let (sessions, acked) = (world.servers[0].sessions.clone(), world.core.ledger().acked);
    world.restart(3);
    world.servers[0].sessions = sessions;
    world.settle();
    assert_eq!((world.servers[0].stored.len() as u64, world.core.ledger().acked), (100 - acked, 100));
}

#[test]
fn a_lane_that_drains_when_the_topology_changes_is_counted() {
    let mut world = World::new(21, 2);
    world.send(50, 50);
    world.settle();
    // No frame is on its way half.
    while world.peers.values().any(|peer| !peer.out.is_empty()) {
        world.run(1, 1000);
    }
    world.servers[0].cut = true;
    world.send(50, 50);
    world.core.flush(Some(u64::MAX));
    world.run(3, 1000);
    let links: Vec<u64> = world.core.wanted_links().collect();
    let [draining, other] = links[..] else { panic!("two lanes: {links:?}") };
    let now = world.now();
    let (mut goodbye, session) = (Vec::new(), world.peers[&draining].session);
    Goodbye { retry_after_ms: 0 }.encode(session, 0, &mut goodbye);
    world.core.received(draining, &goodbye, now);
    world.core.broken(other, crate::connection::Break::Closed, now);
    // It comes back to a server with other shards, before the other lane has drained.
    let link = loop {
        world.clock_us += 1000;
        world.core.advance(world.now());
        if let Some(link) = world.core.wanted_links().find(|link| *link != draining) {
            break link;
        }
    };
    assert!(world.core.wanted_links().any(|link| link == draining), "it drains still");
    world.core.connected(link, world.now());
    let mut welcome = Vec::new();
    super::Server::new(99, 3).welcome(session, 1, 0).encode(session, 0, &mut welcome);
    world.core.received(link, &welcome, world.now());
    world.core.invariants();
    let ledger = world.core.ledger();
    assert_eq!((ledger.connects, ledger.disconnects), (3, 2));
}

#[test]
fn a_refused_batch_is_lost_alone_and_leaves_an_empty_one() {
    let mut world = World::new(3, 1);
    world.servers[0].refuse_content = true;
    world.send(60, 100);
    world.settle();
    let ledger = world.core.ledger();
    assert!(ledger.lost > 0 && ledger.lost < 60 && ledger.in_doubt == 0, "{ledger:?}");
    assert_eq!(world.servers[0].stored.len() as u64 + ledger.lost, 60);
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
    world.servers[0].window_bytes = 5000;
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
    world.servers[0].sessions.clear();
    for link in world.peers.keys().copied().collect::<Vec<_>>() {
        world.break_link(link);
    }
    world.send(10, 100);
    world.settle();
    let ledger = world.core.ledger();
    assert_eq!((ledger.acked, ledger.in_doubt), (60, 0), "nothing was in flight");
}

/// A lane on which batches were stored and nothing was acknowledged yet, cut off.
fn stored_and_not_acknowledged(seed: u64) -> World {
    let config = Config { record_time_limit_us: 86_400 * SECOND, ..config() };
    let mut world = World::with(config, seed, 1);
    world.run(20, 20_000);
    world.send(50, 100);
    while world.servers[0].stored.is_empty() {
        world.core.flush(Some(u64::MAX));
        world.run(1, 100);
    }
    world.servers[0].cut = true;
    assert!(world.core.ledger().acked == 0 && world.core.ledger().in_flight > 0);
    world
}

#[test]
fn a_session_forgotten_before_anything_was_acknowledged_doubles_nothing() {
    let mut world = stored_and_not_acknowledged(18);
    let written = world.core.ledger().in_flight;
    world.run(100, 10 * SECOND);
    // The server gives the connection up early, and forgets the session after its 900 s.
    world.servers[0].sessions.clear();
    world.peers.clear();
    world.send(10, 100);
    world.settle();
    let ledger = world.core.ledger();
    assert_eq!((ledger.acked, ledger.in_doubt, ledger.lost), (60 - written, written, 0), "{ledger:?}");
}

/// The client's clock stands still meanwhile, the server's does not.
#[test]
fn a_session_forgotten_while_the_node_was_suspended_doubles_nothing() {
    let mut world = stored_and_not_acknowledged(21);
    let written = world.core.ledger().in_flight;
    world.suspended_us += 1000 * SECOND;
    world.servers[0].sessions.clear();
    world.break_links(0);
    world.send(10, 100);
    world.settle();
    let ledger = world.core.ledger();
    assert_eq!((ledger.acked, ledger.in_doubt, ledger.lost), (60 - written, written, 0), "{ledger:?}");
}

#[test]
fn a_session_that_cannot_be_forgotten_yet_goes_on() {
    let mut world = stored_and_not_acknowledged(19);
    for _ in 0..4 {
        // Again and again it is cut off for long before an acknowledgement comes.
        world.run(60, 10 * SECOND);
        world.servers[0].cut = false;
        let (connects, written) = (world.core.ledger().connects, world.core.ledger().batches_resent);
        while world.core.ledger().connects == connects || world.core.ledger().batches_resent == written {
            world.run(1, 1000);
        }
        world.servers[0].cut = true;
        if world.core.ledger().acked > 0 {
            break;
        }
    }
    world.settle();
    let ledger = world.core.ledger();
    assert_eq!((ledger.acked, ledger.in_doubt, ledger.lost), (50, 0, 0), "{ledger:?}");
}

#[test]
fn a_batch_written_a_moment_ago_is_not_in_doubt_for_the_age_of_its_records() {
    let mut world = World::new(20, 1);
    world.run(20, 20_000);
    apply(&mut world, &Op::Down);
    world.send(10, 100);
    world.run(80, 10 * SECOND);
    world.servers[0].up = true;
    while world.core.ledger().in_flight == 0 {
        world.run(1, 1000);
    }
    let written = world.core.ledger().in_flight;
    world.servers[0].cut = true;
    world.run(20, 10 * SECOND);
    let ledger = world.core.ledger();
    assert_eq!((ledger.in_flight, ledger.in_doubt), (written, 0), "accepted a thousand seconds ago, written two hundred ago");
    world.run(80, 10 * SECOND);
    assert_eq!(world.core.ledger().in_doubt, written);
    world.settle();
}

#[test]
fn verdicts_arrive_and_outlive_the_connection() {
    let mut world = World::new(7, 1);
    world.servers[0].verdicts = vec![address(1), address(2)];
    world.send(1, 1);
    world.settle();
    assert!(world.denylist.contains(address(1)) && !world.denylist.contains(address(3)));
    apply(&mut world, &Op::Down);
    assert!(world.denylist.contains(address(2)));
    world.servers[0].verdicts = vec![address(3)];
    world.servers[0].up = true;
    world.run(600, 20_000);
    assert!(!world.denylist.contains(address(1)) && world.denylist.contains(address(3)));
}

#[test]
fn a_verdict_lasts_as_long_as_the_server_says_though_its_clock_is_set() {
    const HOUR_US: u64 = 3_600 * SECOND;
    for (ahead_before_us, ahead_after_us) in [(0, 8 * HOUR_US), (8 * HOUR_US, 7 * HOUR_US)] {
        let (mut world, link) = open(17);
        let server = &mut world.servers[0];
        (server.clock_ahead_us, server.verdict_us) = (ahead_before_us, 2 * HOUR_US);
        world.break_link(link);
        world.run(50, 20_000);
        let link = world.core.wanted_links().next().expect("open again");
        // Its clock is set while the connection lasts; then it lists somebody.
        world.servers[0].clock_ahead_us = ahead_after_us;
        let now_us = world.clock_us + ahead_after_us;
        let verdicts = vec![world.servers[0].verdict(address(1), now_us)];
        let (mut bytes, session) = (Vec::new(), world.peers[&link].session);
        Verdicts { sequence: 2, begin: false, end: false, verdicts }.encode(session, now_us, &mut bytes);
        world.core.received(link, &bytes, world.now());
        let until_us = world.denylist.denied_until_us(address(1)).expect("listed");
        assert_eq!(until_us, world.clock_us + 2 * HOUR_US);
    }
}

#[test]
fn statistics_ask_every_shard() {
    let mut world = World::new(8, 4);
    world.core.ask_stats(1);
    world.run(300, 20_000);
    let (token, stats) = world.core.take_stats().expect("all answered");
    let stats = stats[0].expect("of the one server");
    assert_eq!((token, stats.shards, stats.stored), (1, 4, 4));
}

#[test]
fn statistics_asked_for_meanwhile_follow_at_once() {
    let mut world = World::new(8, 2);
    world.core.ask_stats(1);
    world.core.ask_stats(2);
    let mut tokens = Vec::new();
    for _ in 0..300 {
        world.run(1, 10_000);
        tokens.extend(world.core.take_stats().map(|(token, _)| token));
    }
    assert_eq!(tokens, [1, 2]);
}

/// A world with one open lane.
fn open(seed: u64) -> (World, u64) {
    let mut world = World::new(seed, 1);
    world.run(20, 20_000);
    let link = world.core.wanted_links().next().expect("open");
    (world, link)
}

#[test]
fn a_ping_is_answered_when_there_is_room() {
    let (mut world, link) = open(11);
    world.servers[0].window_bytes = 1 << 30;
    world.break_link(link);
    world.run(20, 200_000);
    let link = world.core.wanted_links().next().expect("open again");
    world.send(3000, 300);
    let now = world.now();
    for bundle in std::mem::take(&mut world.waiting) {
        world.core.take(&bundle, now);
    }
    world.core.flush(Some(u64::MAX));
    world.core.advance(now);
    assert!(world.core.unwritten(link).len() >= crate::connection::OUT_BYTES, "full");
    let session = world.peers[&link].session;
    let mut pings = Vec::new();
    Ping { token: 6 }.encode(session, 0, &mut pings);
    Ping { token: 7 }.encode(session, 0, &mut pings);
    world.core.received(link, &pings, now);
    world.core.advance(now);
    assert_eq!(world.core.wanted_links().next(), Some(link), "still open");
    world.settle();
    assert_eq!((world.peers[&link].pongs.as_slice(), world.core.ledger().disconnects), ([7].as_slice(), 1));
}

/// What the client does after this Error on its only lane: µs until it tries again.
fn pace_after(world: &mut World, link: u64, code: ErrorCode, sequence: u64) -> u64 {
    let mut out = Vec::new();
    ErrorFrame { code: code as u16, sequence, text: "no".into() }.encode(0, 0, &mut out);
    world.core.received(link, &out, world.now());
    world.core.deadline_us() - world.clock_us
}

#[test]
fn a_lasting_refusal_is_met_with_patience() {
    for code in [ErrorCode::Replaced, ErrorCode::UnsupportedVersion, ErrorCode::AuthenticationUnsupported] {
        let (mut world, link) = open(12);
        assert!(pace_after(&mut world, link, code, 0) >= SECOND, "{code:?}");
    }
    let (mut world, link) = open(12);
    assert!(pace_after(&mut world, link, ErrorCode::Overloaded, 0) < SECOND);
}

#[test]
fn a_refusal_of_content_in_answer_to_hello_is_about_no_batch() {
    let (mut world, link) = open(13);
    world.send(10, 100);
    let now = world.now();
    for bundle in std::mem::take(&mut world.waiting) {
        world.core.take(&bundle, now);
    }
    world.core.flush(Some(u64::MAX));
    world.core.advance(now);
    assert_eq!(world.core.ledger().in_flight, 10);
    world.break_link(link);
    world.clock_us += 10 * SECOND;
    let now = world.now();
    world.core.advance(now);
    let link = world.core.wanted_links().next().expect("tries again");
    world.core.connected(link, now);
    assert!(pace_after(&mut world, link, ErrorCode::UnsupportedSchema, 1) >= SECOND);
    assert_eq!((world.core.ledger().lost, world.core.ledger().in_flight), (0, 10));
}

#[test]
fn frames_of_another_session_end_the_connection() {
    let (mut world, link) = open(14);
    let mut ack = Vec::new();
    Ack { sequence: 0 }.encode(world.peers[&link].session ^ 1, 0, &mut ack);
    let now = world.now();
    world.core.received(link, &ack, now);
    let (status, _) = world.core.take_status().expect("changed");
    assert!(status.last_error.contains("session") && !status.connected, "{status:?}");
}

#[test]
fn a_lane_without_window_wants_no_urgent_wake_up() {
    let (mut world, _) = open(15);
    assert!(world.core.sends());
    world.send(1000, 100);
    let now = world.now();
    for bundle in std::mem::take(&mut world.waiting) {
        world.core.take(&bundle, now);
    }
    world.core.advance(now);
    assert!(!world.core.sends(), "the window is full");
    world.settle();
    assert!(world.core.sends());
}

#[test]
fn a_slow_lookup_does_not_count_as_connecting() {
    let mut world = World::new(16, 1);
    let now = world.now();
    world.core.advance(now);
    let link = world.core.wanted_links().next().expect("it connects");
    world.clock_us += 30 * SECOND;
    world.core.connecting(link, world.now());
    world.core.advance(world.now());
    assert_eq!((world.core.ledger().connect_errors, world.core.wanted_links().next()), (0, Some(link)));
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
