//! Several servers: who gets which source, and what becomes of its records when servers go, come back, or do not belong
//! together.

use super::{SECOND, Server, World, address, config};
use crate::config::{Config, ServerAddress};
use crate::core::{AWAY_US, BACK_US, link_number, server_of};
use crate::status::ServerStatus;
use postanalytics_protocol::Source;
use postanalytics_protocol::frames::Goodbye;
use postanalytics_protocol::routing::{server_seed, server_weight};
use proptest::prelude::*;
use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

fn config_of(count: usize) -> Config {
    let server = |n| ServerAddress { text: format!("server{n}:1"), host: format!("server{n}"), port: 1 };
    Config { servers: (0..count).map(server).collect(), ..config() }
}

/// A client of so many servers of one deployment, not connected yet.
fn world(seed: u64, count: usize) -> World {
    let mut world = World::with(config_of(count), seed, 2);
    world.servers.iter_mut().for_each(|server| server.identity_key = 1);
    world
}

/// The same, connected to all.
fn connected(seed: u64, count: usize) -> World {
    let mut world = world(seed, count);
    world.run(50, 10_000);
    assert_eq!(takers(&mut world), (0..count).collect::<Vec<_>>());
    world
}

fn statuses(world: &mut World) -> Vec<ServerStatus> {
    // Something has changed, or else there is none.
    world.core.touch_status();
    world.core.take_status().expect("touched").0.servers
}

/// Servers that take records.
fn takers(world: &mut World) -> Vec<usize> {
    let statuses = statuses(world);
    (0..statuses.len()).filter(|at| statuses[*at].takes_records).collect()
}

/// The server that a source belongs to, by the ids of those that are there.
fn owner(world: &World, among: &[usize], address: IpAddr) -> usize {
    let weight = |at: &usize| server_weight(Source::of(address), server_seed(&[world.servers[*at].server_id; 16]));
    among.iter().copied().max_by_key(weight).expect("somebody")
}

fn down(world: &mut World, at: usize) {
    world.servers[at].up = false;
    world.break_links(at);
}

/// Sends and runs for so long, 100 records a second.
fn traffic(world: &mut World, us: u64) {
    for _ in 0..us / 100_000 {
        world.send(10, 50);
        world.run(5, 20_000);
    }
}

/// Asserts that everything went to the owner of its source, and returns how many records each server has.
fn assert_owned(world: &World, among: &[usize]) -> Vec<usize> {
    for (at, server) in world.servers.iter().enumerate() {
        for (number, source) in &server.sources {
            assert_eq!(owner(world, among, *source), at, "record {number} of {source}");
        }
    }
    world.servers.iter().map(|server| server.stored.len()).collect()
}

#[test]
fn every_source_has_one_server_whatever_the_order_of_the_addresses() {
    let mut world = connected(1, 3);
    traffic(&mut world, 3 * SECOND);
    world.settle();
    let counts = assert_owned(&world, &[0, 1, 2]);
    assert!(counts.iter().all(|count| *count > 30), "{counts:?}");
    assert_eq!(world.core.ledger().acked, world.sent);

    let mut other = self::world(2, 3);
    other.servers.reverse();
    traffic(&mut other, 3 * SECOND);
    other.settle();
    let place = |world: &World| -> BTreeMap<IpAddr, u8> {
        let servers = world.servers.iter();
        servers.flat_map(|server| server.sources.iter().map(|(_, source)| (*source, server.server_id))).collect()
    };
    assert_eq!(place(&world), place(&other));
}

#[test]
fn records_wait_for_all_servers_but_not_for_long() {
    let mut world = world(3, 2);
    down(&mut world, 1);
    world.send(50, 50);
    world.run(45, 20_000);
    assert!(!world.core.routes() && statuses(&mut world)[0].connected, "the other may come within the connect timeout");
    world.run(20, 20_000);
    assert_eq!(takers(&mut world), [0]);
    world.settle();
    // It is no different from one that was away.
    assert_eq!(takers(&mut world), [0]);
    assert_eq!((world.servers[0].stored.len(), world.core.ledger().failovers), (50, 0));
}

#[test]
fn one_dies_and_its_records_go_to_the_next() {
    let mut world = connected(4, 3);
    traffic(&mut world, SECOND);
    // What is in flight at that moment may be stored there.
    let victim = 1;
    while !world.servers[victim].stored.iter().any(|number| !acked(&world).contains(number)) {
        world.send(20, 50);
        world.run(1, 3000);
    }
    down(&mut world, victim);
    let stored_there = world.servers[victim].stored.clone();
    traffic(&mut world, 3 * SECOND);
    assert_eq!(takers(&mut world), [0, 2]);
    world.core.flush(Some(u64::MAX));
    world.run(100, 10_000);
    assert!(world.core.is_settled());
    let ledger = *world.core.ledger();
    assert_eq!((ledger.acked, ledger.lost, ledger.in_doubt, ledger.failovers), (world.sent, 0, 0, 1));
    // Whatever two servers have is marked on the second.
    let twice: HashSet<u64> =
        [0, 2].iter().flat_map(|at| world.servers[*at].stored.intersection(&stored_there)).copied().collect();
    let marked: HashSet<u64> = [0, 2].iter().flat_map(|at| &world.servers[*at].marked).copied().collect();
    assert!(!twice.is_empty() && twice.is_subset(&marked), "{twice:?} {marked:?}");
    assert_eq!(marked.len() as u64, ledger.maybe_stored_elsewhere);
    world.check_stored();
    // Sources of the others stayed where they were.
    for at in [0, 2] {
        for (number, source) in &world.servers[at].sources {
            let all = owner(&world, &[0, 1, 2], *source);
            assert!(all == at || all == victim, "record {number}");
            assert_eq!(owner(&world, &[0, 2], *source), at, "record {number}");
        }
    }
}

fn acked(world: &World) -> HashSet<u64> {
    world.acked.lock().expect("no panic").iter().map(|record| record.token).collect()
}

#[test]
fn it_is_back_when_it_was_healthy_for_thirty_seconds() {
    let mut world = connected(5, 2);
    down(&mut world, 0);
    traffic(&mut world, 3 * SECOND);
    assert_eq!(takers(&mut world), [1]);
    world.servers[0].up = true;
    // At most the slowest pace until it is connected.
    while !statuses(&mut world)[0].connected {
        world.run(1, 10_000);
    }
    let stored = world.servers[0].stored.len();
    traffic(&mut world, 20 * SECOND);
    // A break on the way: the time begins anew.
    world.break_links(0);
    while !statuses(&mut world)[0].connected {
        world.run(1, 10_000);
    }
    let since_us = world.clock_us;
    traffic(&mut world, 29 * SECOND + 800_000);
    assert_eq!((takers(&mut world), world.servers[0].stored.len()), (vec![1], stored), "not yet");
    assert!(world.clock_us < since_us + BACK_US);
    traffic(&mut world, 2 * SECOND);
    assert_eq!(takers(&mut world), [0, 1]);
    assert!(world.servers[0].stored.len() > stored);
    world.settle();
    let ledger = world.core.ledger();
    assert_eq!((ledger.acked, ledger.failovers), (world.sent, 1));
}

#[test]
fn a_short_break_moves_nothing() {
    let mut world = connected(6, 2);
    for at in [0, 1, 0, 1, 0] {
        traffic(&mut world, SECOND);
        down(&mut world, at);
        // The waits between attempts are still short then.
        traffic(&mut world, 200_000);
        world.servers[at].up = true;
        traffic(&mut world, AWAY_US - 300_000);
        assert_eq!(takers(&mut world), [0, 1]);
        assert!(statuses(&mut world)[at].connected);
        // They begin small again after ten seconds of health.
        traffic(&mut world, 11 * SECOND);
    }
    world.settle();
    assert_owned(&world, &[0, 1]);
    assert_eq!((world.core.ledger().maybe_stored_elsewhere, world.core.ledger().acked), (0, world.sent));
}

#[test]
fn a_connection_that_breaks_moves_nothing() {
    let mut world = connected(7, 2);
    for round in 0..20 {
        traffic(&mut world, 300_000);
        world.break_links(round % 2);
        world.run(20, 50_000);
        // The waits between attempts begin small again after ten seconds of health.
        world.run(10, SECOND);
    }
    world.settle();
    assert_owned(&world, &[0, 1]);
    let ledger = world.core.ledger();
    assert_eq!((ledger.failovers, ledger.maybe_stored_elsewhere, ledger.acked), (0, 0, world.sent));
}

#[test]
fn when_all_are_away_records_wait_and_the_first_to_return_gets_them() {
    let mut world = connected(8, 2);
    traffic(&mut world, SECOND);
    down(&mut world, 0);
    down(&mut world, 1);
    traffic(&mut world, 20 * SECOND);
    assert_eq!(world.core.ledger().failovers, 0, "there is nobody to fail over to");
    let before = world.servers[1].stored.len();
    world.servers[1].up = true;
    traffic(&mut world, 10 * SECOND);
    world.core.flush(Some(u64::MAX));
    world.run(50, 20_000);
    assert_eq!(takers(&mut world), [1]);
    assert!(world.core.is_settled() && world.servers[1].stored.len() > before + 2000, "{:?}", world.core.ledger());
    let ledger = world.core.ledger();
    assert_eq!((ledger.acked, ledger.lost, ledger.in_doubt, ledger.failovers), (world.sent, 0, 0, 1));

    // And the other way round: the one that serves goes while the other is on probation.
    world.servers[0].up = true;
    traffic(&mut world, 8 * SECOND);
    assert_eq!(takers(&mut world), [1]);
    down(&mut world, 1);
    traffic(&mut world, 5 * SECOND);
    assert_eq!(takers(&mut world), [0]);
    world.settle();
    assert_eq!(world.core.ledger().acked, world.sent);
}

#[test]
fn a_server_that_falls_silent_is_away_after_a_while() {
    let mut world = connected(9, 2);
    traffic(&mut world, SECOND);
    world.servers[0].cut = true;
    traffic(&mut world, 14 * SECOND);
    assert_eq!(takers(&mut world), [0, 1]);
    traffic(&mut world, 5 * SECOND);
    assert_eq!(takers(&mut world), [1]);
    world.core.flush(Some(u64::MAX));
    world.run(50, 10_000);
    assert!(world.core.is_settled(), "{:?}", world.core.ledger());
    let marked = world.core.ledger().maybe_stored_elsewhere;
    assert!(marked > 0);
    // What it was sent before it fell silent, it may still acknowledge: nothing is acknowledged twice.
    world.servers[0].cut = false;
    traffic(&mut world, 40 * SECOND);
    assert_eq!(takers(&mut world), [0, 1]);
    world.settle();
    let ledger = world.core.ledger();
    assert_eq!((ledger.acked, ledger.lost, ledger.in_doubt, ledger.maybe_stored_elsewhere), (world.sent, 0, 0, marked));
}

#[test]
fn a_goodbye_hands_over_without_a_doubt() {
    let mut world = connected(10, 2);
    traffic(&mut world, SECOND);
    for (link, peer) in world.peers.iter_mut().filter(|(link, _)| **link % 16 == 0) {
        assert_eq!(*link, link_number(*link / 16, 0));
        Goodbye { retry_after_ms: 0 }.encode(peer.session, 0, &mut peer.out);
    }
    world.run(20, 10_000);
    down(&mut world, 0);
    traffic(&mut world, 5 * SECOND);
    assert_eq!(takers(&mut world), [1]);
    world.core.flush(Some(u64::MAX));
    world.run(50, 10_000);
    let ledger = world.core.ledger();
    assert_eq!((ledger.acked, ledger.maybe_stored_elsewhere, ledger.failovers), (world.sent, 0, 1));
}

#[test]
fn a_server_that_flaps_moves_its_records_seldom() {
    let mut world = connected(11, 2);
    for _ in 0..60 {
        down(&mut world, 0);
        traffic(&mut world, 3 * SECOND);
        world.servers[0].up = true;
        traffic(&mut world, 7 * SECOND);
    }
    // It never stays for thirty seconds.
    assert_eq!((world.core.ledger().failovers, takers(&mut world)), (1, vec![1]));
    world.settle();
    assert_eq!(world.core.ledger().acked, world.sent);
}

#[test]
fn a_restart_under_another_id_takes_its_share_at_once() {
    let mut world = connected(12, 2);
    traffic(&mut world, SECOND);
    world.restart_one(0, 3);
    world.servers[0].identity_key = 1;
    world.run(100, 1000);
    assert_eq!(takers(&mut world), [0, 1]);
    world.settle();
    world.servers.iter_mut().for_each(|server| server.sources.clear());
    traffic(&mut world, SECOND);
    world.settle();
    assert_owned(&world, &[0, 1]);
    assert!(world.servers.iter().all(|server| !server.sources.is_empty()));
    let ledger = world.core.ledger();
    assert_eq!((ledger.acked, ledger.lost, ledger.in_doubt, ledger.failovers), (world.sent, 0, 0, 0));
}

/// What the status says of a server that may not take part.
fn clash_of(world: &mut World, at: usize) -> String {
    let statuses = statuses(world);
    assert!(!statuses[at].takes_records && !statuses[at].connected, "{statuses:?}");
    assert!(world.servers[at].stored.is_empty(), "no records go to the odd one");
    statuses[at].last_error.clone()
}

#[test]
fn servers_of_two_deployments_are_an_error_with_a_remedy() {
    let mut world = world(13, 3);
    world.servers[0].deployment_id = 9;
    traffic(&mut world, 10 * SECOND);
    assert_eq!(takers(&mut world), [1, 2], "the two that agree");
    let error = clash_of(&mut world, 0);
    for part in ["deployment 09090909-0909-", "server1:1", "--deployment-id", "--identity-key-file"] {
        assert!(error.contains(part), "{error}");
    }
    // Repaired: it takes part after its thirty seconds.
    world.servers[0].deployment_id = 1;
    traffic(&mut world, 45 * SECOND);
    assert_eq!(takers(&mut world), [0, 1, 2]);
    world.settle();
    assert_eq!((world.core.ledger().acked, world.core.ledger().in_doubt), (world.sent, 0));
}

#[test]
fn servers_with_two_identity_keys_are_an_error_with_a_remedy() {
    let mut world = world(14, 2);
    world.servers[1].identity_key = 9;
    traffic(&mut world, 10 * SECOND);
    assert_eq!(takers(&mut world), [0], "of two, the one that was given first");
    let error = clash_of(&mut world, 1);
    assert!(error.contains("identity key") && error.contains("server0:1") && error.contains("--identity-key-file"), "{error}");
    world.settle();
    assert_eq!(world.core.ledger().acked, world.sent);
    assert!(world.denylist.is_empty());
}

#[test]
fn one_server_under_two_addresses_is_an_error_with_a_remedy() {
    let mut world = world(15, 2);
    world.servers[1].server_id = world.servers[0].server_id;
    traffic(&mut world, 10 * SECOND);
    assert_eq!(takers(&mut world), [0]);
    let error = clash_of(&mut world, 1);
    assert!(error.contains("same server as server0:1") && error.contains("once"), "{error}");
    // It is asked again and again whether it still is the same: that leaves the good connections alone.
    let (disconnects, attempts) = (world.core.ledger().disconnects, world.core.ledger().connect_errors);
    traffic(&mut world, 60 * SECOND);
    assert_eq!((world.core.ledger().disconnects, takers(&mut world)), (disconnects, vec![0]));
    assert!(world.core.ledger().connect_errors > attempts + 2);
    world.settle();
    assert_eq!(world.core.ledger().acked, world.sent);
}

#[test]
fn an_odd_one_that_appears_later_gets_no_records_and_loses_what_it_had() {
    let mut world = connected(16, 3);
    traffic(&mut world, SECOND);
    world.restart_one(2, 2);
    world.servers[2].identity_key = 9;
    traffic(&mut world, 12 * SECOND);
    assert_eq!(takers(&mut world), [0, 1]);
    assert!(clash_of(&mut world, 2).contains("identity key"));
    world.core.flush(Some(u64::MAX));
    world.run(50, 10_000);
    assert_eq!(world.core.ledger().acked, world.sent);
}

#[test]
fn of_two_that_disagree_the_one_that_works_stays() {
    for same_id in [false, true] {
        let mut world = world(21, 2);
        down(&mut world, 0);
        traffic(&mut world, 5 * SECOND);
        assert_eq!(takers(&mut world), [1]);
        // The newcomer was named first.
        if same_id {
            world.servers[0].server_id = world.servers[1].server_id;
        } else {
            world.servers[0].identity_key = 9;
        }
        world.servers[0].up = true;
        traffic(&mut world, 60 * SECOND);
        assert_eq!(takers(&mut world), [1]);
        assert!(clash_of(&mut world, 0).contains("server1:1"));
        assert_eq!((world.core.ledger().disconnects, world.core.ledger().maybe_stored_elsewhere), (0, 0));
        world.settle();
        assert_eq!(world.core.ledger().acked, world.sent);
    }
}

/// Two servers, of which this one is odd and the other works.
fn odd_and_good(seed: u64, odd: usize) -> World {
    let mut world = world(seed, 2);
    down(&mut world, odd);
    traffic(&mut world, 5 * SECOND);
    world.servers[odd].identity_key = 9;
    world.servers[odd].up = true;
    traffic(&mut world, 20 * SECOND);
    assert_eq!(takers(&mut world), [1 - odd]);
    world
}

/// A break of the connections alone, or a restart, which without `--server-id` is one under another id.
#[test]
fn a_short_break_of_the_one_that_works_does_not_let_the_odd_one_in() {
    for (seed, restarts) in (31..41).flat_map(|seed| [(seed, false), (seed, true)]) {
        let mut world = odd_and_good(seed, 0);
        // In the very moment in which the odd one is asked again.
        while !world.peers.keys().any(|link| server_of(*link) == 0) {
            world.run(1, 10_000);
        }
        let attempts = world.core.ledger().connect_errors;
        world.servers[1].up = false;
        world.break_links(1);
        for _ in 0..1000 {
            world.send(1, 50);
            world.run(1, 1000);
            if world.core.ledger().connect_errors > attempts && !world.peers.keys().any(|link| server_of(*link) == 0) {
                break;
            }
        }
        if restarts {
            world.restart_one(1, 2);
            world.servers[1].identity_key = 1;
        }
        world.servers[1].up = true;
        assert!(world.core.ledger().connect_errors > attempts, "the odd one was welcomed, and refused");
        assert_eq!(takers(&mut world), [1]);
        traffic(&mut world, 10 * SECOND);
        assert_eq!(takers(&mut world), [1]);
        clash_of(&mut world, 0);
        world.settle();
        let ledger = world.core.ledger();
        assert_eq!((ledger.acked, ledger.failovers), (world.sent, 0));
        assert!(restarts || ledger.maybe_stored_elsewhere == 0, "{ledger:?}");
    }
}

#[test]
fn a_silent_lane_of_the_one_that_works_does_not_let_the_odd_one_in() {
    for odd in [0, 1] {
        let mut world = odd_and_good(43, odd);
        let good = 1 - odd;
        assert_eq!(statuses(&mut world)[good].lanes_open, 2);
        let lane = world.peers.keys().copied().filter(|link| server_of(*link) == good).min().expect("two are open");
        let attempts = world.core.ledger().connect_errors;
        world.links_cut.insert(lane);
        // It counts as away after 17 s; its other lane works all the time.
        traffic(&mut world, 35 * SECOND);
        assert!(world.peers.contains_key(&lane) && world.core.ledger().connect_errors > attempts + 2);
        assert_eq!(takers(&mut world), [good]);
        clash_of(&mut world, odd);
        // Now it is cut, and comes back.
        traffic(&mut world, 20 * SECOND);
        assert_eq!((takers(&mut world), statuses(&mut world)[good].lanes_open), (vec![good], 2));
        clash_of(&mut world, odd);
        world.settle();
        let ledger = world.core.ledger();
        assert_eq!((ledger.acked, ledger.failovers, ledger.maybe_stored_elsewhere), (world.sent, 0, 0));
    }
}

/// Its connections stand, but nobody answers on any.
#[test]
fn the_odd_one_takes_the_place_of_one_that_is_silent_whichever_was_named_first() {
    for odd in [0, 1] {
        let mut world = odd_and_good(44, odd);
        let good = 1 - odd;
        world.servers[good].cut = true;
        traffic(&mut world, 10 * SECOND);
        assert_eq!(takers(&mut world), [good]);
        traffic(&mut world, 20 * SECOND);
        assert_eq!(takers(&mut world), [odd]);
        // When it comes back, it is the odd one.
        world.servers[good].cut = false;
        traffic(&mut world, 60 * SECOND);
        assert_eq!(takers(&mut world), [odd]);
        assert!(!statuses(&mut world)[good].connected);
        world.settle();
        assert_eq!((world.core.ledger().acked, world.core.ledger().lost), (world.sent, 0));
    }
}

/// Records rather go to the odd one than to nobody; from then on it is the one that works.
#[test]
fn the_odd_one_takes_the_place_of_one_that_is_away() {
    let mut world = odd_and_good(41, 0);
    down(&mut world, 1);
    traffic(&mut world, 10 * SECOND);
    assert_eq!(takers(&mut world), [0]);
    world.servers[1].up = true;
    traffic(&mut world, 60 * SECOND);
    assert_eq!(takers(&mut world), [0]);
    let error = &statuses(&mut world)[1].last_error;
    assert!(error.contains("identity key") && error.contains("server0:1"), "{error}");
    world.settle();
    assert_eq!((world.core.ledger().acked, world.core.ledger().lost), (world.sent, 0));
}

/// Who waits at the first start for all servers waits no more when one that has taken records is away.
#[test]
fn when_no_other_is_to_be_reached_records_are_taken_at_once() {
    let config = Config { connect_timeout_us: 60 * SECOND, ..config_of(2) };
    let mut world = World::with(config, 42, 2);
    world.servers.iter_mut().for_each(|server| server.identity_key = 1);
    world.run(50, 10_000);
    assert_eq!(takers(&mut world), [0, 1]);
    down(&mut world, 0);
    traffic(&mut world, 3 * SECOND);
    // It is healthy again, though not for thirty seconds, when the other goes.
    world.servers[0].up = true;
    traffic(&mut world, 10 * SECOND);
    assert_eq!(takers(&mut world), [1]);
    down(&mut world, 1);
    traffic(&mut world, AWAY_US + 200_000);
    assert_eq!(takers(&mut world), [0]);
}

#[test]
fn a_restart_with_another_key_does_not_evict_the_one_that_works() {
    let mut world = connected(22, 2);
    traffic(&mut world, SECOND);
    world.restart_one(0, 2);
    world.servers[0].identity_key = 9;
    traffic(&mut world, 20 * SECOND);
    assert_eq!(takers(&mut world), [1]);
    assert!(clash_of(&mut world, 0).contains("identity key"));
    world.settle();
    assert_eq!(world.core.ledger().acked, world.sent);
}

#[test]
fn an_address_that_leads_to_the_other_server_after_a_break_does_not_evict_that_one() {
    let mut world = connected(45, 2);
    traffic(&mut world, SECOND);
    world.restart_one(0, 2);
    world.servers[0].identity_key = 1;
    world.servers[0].server_id = world.servers[1].server_id;
    let disconnects = world.core.ledger().disconnects;
    traffic(&mut world, 20 * SECOND);
    assert_eq!((takers(&mut world), world.core.ledger().disconnects), (vec![1], disconnects));
    assert!(clash_of(&mut world, 0).contains("same server as server1:1"));
    world.settle();
    assert_eq!(world.core.ledger().acked, world.sent);
}

#[test]
fn a_single_server_that_restarts_under_another_id_doubts_nothing() {
    let mut world = World::with(Config { record_time_limit_us: 5 * SECOND, ..config() }, 23, 2);
    world.run(50, 10_000);
    world.servers[0].cut = true;
    world.send(50, 50);
    world.core.flush(Some(u64::MAX));
    world.run(10, 1000);
    assert!(world.core.ledger().in_flight > 0);
    world.restart(2);
    // Welcomed, but it acknowledges nothing before their time is over.
    world.servers[0].cut = false;
    world.servers[0].window_bytes = 0;
    let connects = world.core.ledger().connects;
    while world.core.ledger().connects == connects {
        world.run(1, 1000);
    }
    world.servers[0].cut = true;
    world.run(10, SECOND);
    let ledger = world.core.ledger();
    assert_eq!(ledger.maybe_stored_elsewhere, 0, "{ledger:?}");
    assert!(ledger.lost > 0, "what was not written to this one is lost: {ledger:?}");
}

#[test]
fn records_that_are_given_up_are_told_once_an_outage() {
    let lines = Lines::default();
    let text = Arc::clone(&lines.0);
    tracing::subscriber::with_default(lines, || {
        let mut world = World::with(Config { record_time_limit_us: 5 * SECOND, ..config() }, 25, 2);
        world.run(50, 10_000);
        for outage in 1..=2 {
            world.servers[0].cut = true;
            for _ in 0..3 {
                world.send(50, 50);
                world.core.flush(Some(u64::MAX));
                world.run(1000, 10_000);
            }
            let told = text.lock().expect("no panic").clone();
            let told: Vec<&str> = told.lines().filter(|line| line.contains("given up")).collect();
            assert_eq!(told.len(), outage, "{}", text.lock().expect("no panic"));
            assert!(told[0].contains("records were over 5s old and are given up") && told[0].contains("ERROR"), "{told:?}");
            world.servers[0].cut = false;
            world.run(3000, 10_000);
        }
        assert!(world.core.ledger().lost + world.core.ledger().in_doubt >= 300, "{:?}", world.core.ledger());
    });
}

/// Keeps what is logged.
#[derive(Default)]
struct Lines(Arc<Mutex<String>>);

impl tracing::Subscriber for Lines {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn event(&self, event: &tracing::Event<'_>) {
        let mut line = event.metadata().level().to_string();
        event.record(&mut |_: &tracing::field::Field, value: &dyn std::fmt::Debug| line += &format!(" {value:?}"));
        *self.0.lock().expect("no panic") += &(line + "\n");
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

#[test]
fn on_close_a_server_that_is_away_gives_its_records_up_at_once() {
    let mut world = connected(24, 2);
    traffic(&mut world, SECOND);
    down(&mut world, 0);
    world.send(100, 50);
    world.core.flush(Some(u64::MAX));
    world.run(20, 1000);
    assert!(!world.core.is_settled());
    world.core.close();
    world.run(100, 1000);
    assert!(world.core.is_settled(), "{:?}", world.core.ledger());
    assert_eq!(world.core.ledger().acked, world.sent);
}

#[test]
fn two_servers_behind_one_address_are_an_error_and_the_first_is_kept() {
    for count in [1, 2] {
        let mut world = world(17, count);
        (world.servers[0].balanced, world.servers[0].shards) = (true, 8);
        let mut seen = String::new();
        for _ in 0..100 {
            traffic(&mut world, 200_000);
            let error = &statuses(&mut world)[0].last_error;
            if error.contains("two servers answer at this address") {
                seen.clone_from(error);
            }
        }
        assert!(seen.contains("load balancer") && seen.contains("address of its own"), "{seen}");
        assert_eq!(world.servers[0].sides.len(), 1, "one of the two gets all");
        world.settle();
        assert_eq!(world.core.ledger().acked, world.sent);
    }
}

#[test]
fn two_servers_that_take_turns_at_one_address_are_reported_and_a_restarted_one_is_not() {
    let reported = |world: &mut World| statuses(world)[0].last_error.contains("two servers answer at this address in turn");
    for count in [1, 2] {
        let mut world = world(30, count);
        world.servers[0].shards = 1;
        let first = world.servers[0].server_id;
        let replace = |world: &mut World, id: Option<u8>, dies_abruptly: bool| {
            let (key, now) = (world.servers[0].identity_key, world.servers[0].server_id);
            if dies_abruptly {
                // Its connections are silent for a while before they break.
                world.servers[0].cut = true;
                traffic(world, 3 * SECOND);
            }
            world.restart(1);
            (world.servers[0].identity_key, world.servers[0].server_id) = (key, id.unwrap_or(world.servers[0].server_id));
            traffic(world, 5 * SECOND);
            assert!(statuses(world)[0].connected, "from {now} to {}", world.servers[0].server_id);
        };
        traffic(&mut world, SECOND);
        // It dies and comes back as itself, then under new ids.
        for (id, dies_abruptly) in [(Some(first), false), (Some(first), true), (None, false), (None, true), (None, false)] {
            replace(&mut world, id, dies_abruptly);
            assert!(!reported(&mut world), "{:?}", statuses(&mut world)[0].last_error);
        }
        let second = world.servers[0].server_id;
        // Another comes, and the one before it comes back.
        replace(&mut world, None, false);
        assert!(!reported(&mut world));
        for id in [second, world.servers[0].server_id, second] {
            replace(&mut world, Some(id), false);
            assert!(reported(&mut world), "{:?}", statuses(&mut world)[0].last_error);
        }
        world.settle();
        let ledger = world.core.ledger();
        assert_eq!((ledger.acked, ledger.lost), (world.sent, 0), "whoever answers takes the records");
    }
}

#[test]
fn what_any_server_lists_is_listed_and_outlives_it() {
    let mut world = world(18, 2);
    (world.servers[0].verdicts, world.servers[1].verdicts) = (vec![address(1), address(2)], vec![address(2), address(3)]);
    let listed = |world: &World| (1..=4).filter(|n| world.denylist.contains(address(*n))).collect::<Vec<u64>>();
    traffic(&mut world, 5 * SECOND);
    assert_eq!(listed(&world), [1, 2, 3]);
    // Each server's set is its own: the other's new one does not touch it.
    world.servers[1].verdicts = vec![address(4)];
    world.break_links(1);
    traffic(&mut world, 5 * SECOND);
    assert_eq!(listed(&world), [1, 2, 4]);
    down(&mut world, 0);
    traffic(&mut world, 60 * SECOND);
    assert_eq!(listed(&world), [1, 2, 4], "they end by their time, not with the connection");
}

#[test]
fn statistics_tell_who_is_away() {
    let mut world = connected(19, 2);
    world.core.ask_stats(1);
    world.run(300, 20_000);
    let (_, stats) = world.core.take_stats().expect("both answered");
    assert!(stats.iter().all(|stats| stats.is_some_and(|stats| stats.shards == 2)), "{stats:?}");
    down(&mut world, 1);
    world.core.ask_stats(2);
    world.run(10, 20_000);
    assert!(world.core.take_stats().is_none(), "it may come back yet");
    world.run(150, 20_000);
    let (_, stats) = world.core.take_stats().expect("one is away");
    assert!(stats[0].is_some() && stats[1].is_none(), "{stats:?}");
}

#[test]
fn the_thread_is_never_told_to_spin() {
    let mut world = world(20, 3);
    for round in 0..900 {
        world.send(3, 50);
        match round {
            100 => down(&mut world, 1),
            200 => world.servers[0].cut = true,
            500 => world.servers[1].up = true,
            700 => world.servers[0].cut = false,
            _ => {}
        }
        world.clock_us += 50_000;
        world.turn();
        let now = world.now();
        world.core.advance(now);
        assert!(world.core.deadline_us() > world.clock_us, "round {round}: a deadline that has passed and nothing done");
    }
    world.settle();
}

#[derive(Clone, Debug)]
enum Op {
    Send { count: u64 },
    Run { turns: usize, step_us: u64 },
    Break { at: usize },
    Down { at: usize },
    Up { at: usize },
    Cut { at: usize },
    Heal { at: usize },
    Restart { at: usize, shards: u32, same_id: bool },
    Odd { at: usize },
    Even { at: usize },
    Goodbye { at: usize },
    RefuseContent { at: usize },
    LongPause,
}

fn op(count: usize) -> impl Strategy<Value = Op> {
    let at = move || 0..count;
    prop_oneof![
        8 => (1u64..40).prop_map(|count| Op::Send { count }),
        10 => (1usize..12, 100u64..600_000).prop_map(|(turns, step_us)| Op::Run { turns, step_us }),
        2 => at().prop_map(|at| Op::Break { at }),
        2 => at().prop_map(|at| Op::Down { at }),
        3 => at().prop_map(|at| Op::Up { at }),
        2 => at().prop_map(|at| Op::Cut { at }),
        3 => at().prop_map(|at| Op::Heal { at }),
        2 => (at(), 1u32..4, any::<bool>()).prop_map(|(at, shards, same_id)| Op::Restart { at, shards, same_id }),
        1 => at().prop_map(|at| Op::Odd { at }),
        1 => at().prop_map(|at| Op::Even { at }),
        1 => at().prop_map(|at| Op::Goodbye { at }),
        1 => at().prop_map(|at| Op::RefuseContent { at }),
        1 => Just(Op::LongPause),
    ]
}

fn apply(world: &mut World, op: &Op) {
    match *op {
        Op::Send { count } => world.send(count, 80),
        Op::Run { turns, step_us } => world.run(turns, step_us),
        Op::Break { at } => world.break_links(at),
        Op::Down { at } => down(world, at),
        Op::Up { at } => world.servers[at].up = true,
        Op::Cut { at } => world.servers[at].cut = true,
        Op::Heal { at } => world.servers[at].cut = false,
        Op::Restart { at, shards, same_id } => {
            let Server { server_id, deployment_id, .. } = world.servers[at];
            world.restart_one(at, shards);
            let server = &mut world.servers[at];
            (server.deployment_id, server.identity_key) = (deployment_id, 1);
            if same_id {
                server.server_id = server_id;
            }
        }
        Op::Odd { at } => {
            world.servers[at].deployment_id = 2;
            world.break_links(at);
        }
        Op::Even { at } => {
            world.servers[at].deployment_id = 1;
            world.break_links(at);
        }
        Op::Goodbye { at } => {
            for (_, peer) in world.peers.iter_mut().filter(|(link, peer)| **link % 16 == at as u64 && peer.shard.is_some()) {
                Goodbye { retry_after_ms: 300 }.encode(peer.session, 0, &mut peer.out);
            }
        }
        Op::RefuseContent { at } => world.servers[at].refuse_content = true,
        Op::LongPause => world.run(3, 400 * SECOND),
    }
    world.check();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_laws_hold_whatever_happens(seed: u64, ops in proptest::collection::vec(op(3), 1..60)) {
        let mut world = world(seed, 3);
        for op in &ops {
            apply(&mut world, op);
        }
        world.settle();
    }

    #[test]
    fn no_end_reports_lost_what_was_stored(seed: u64, ops in proptest::collection::vec(op(2), 1..40)) {
        let mut world = world(seed, 2);
        for op in &ops {
            apply(&mut world, op);
        }
        world.close();
    }

    /// Servers that only go and come, killed or cut off: nothing is lost and nothing in doubt.
    #[test]
    fn going_and_coming_loses_nothing(seed: u64, ops in proptest::collection::vec((0usize..4, 0usize..3, 1u64..8), 1..30)) {
        let mut world = connected(seed, 3);
        for (what, at, seconds) in ops {
            let op = [Op::Down { at }, Op::Cut { at }, Op::Up { at }, Op::Heal { at }][what].clone();
            apply(&mut world, &op);
            traffic(&mut world, seconds * SECOND);
        }
        world.settle();
        let ledger = world.core.ledger();
        prop_assert_eq!((ledger.acked, ledger.lost, ledger.in_doubt), (world.sent, 0, 0));
    }
}
