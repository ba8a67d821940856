//! Limits that hold: receive buffers, connections, memory, frame sizes. What is over a limit is refused by name and counted.

use postanalytics_protocol::frames::{ControlFrame, ErrorFrame};
use postanalytics_protocol::{BatchBuilder, ErrorCode, FrameHeader, FrameKind, HEADER_BYTES, Hit, RecordFields};
use postanalytics_tests::wire::{SOURCE, batch, hello, restamp, seal};
use postanalytics_tests::{RawConnection, Server, ServerOptions, Witness, eventually, skipped};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);
/// The smallest arena that a shard takes: 16 slabs for requests and 4 for attacks, 2 MiB each.
const SMALLEST_ARENA_GB: f64 = 40.0 / 1024.0;

/// A frame of `records` records with long paths, about `record_bytes` each.
fn large_frame(session: u64, records: usize, record_bytes: usize) -> Vec<u8> {
    let path = vec![b'a'; record_bytes];
    let mut batch = BatchBuilder::default();
    for _ in 0..records {
        let fields = RecordFields {
            client_ip: Ipv4Addr::new(192, 0, 2, 1).to_ipv6_mapped().octets(),
            path: &path,
            ..RecordFields::default()
        };
        batch.push(&fields, 1 << 20).expect("fits");
    }
    let mut frame = Vec::new();
    batch.encode_frame(session, 1, 0, &mut frame);
    frame
}

#[test]
fn two_receive_buffers_are_backpressure_and_lose_nothing() {
    let server = ServerOptions::default().arguments(&["--receive-buffers", "2", "--receive-buffer-bytes", "1024"]).start();
    let (connections, frames, records) = (8, 40, 50);
    let senders: Vec<_> = (0..connections)
        .map(|session| {
            let ingest = server.ingest;
            std::thread::spawn(move || {
                let mut connection = RawConnection::open(ingest, 1, session);
                let mut frame = large_frame(session, records, 256);
                for sequence in 1..=frames {
                    restamp(&mut frame, sequence);
                    connection.send(&frame);
                }
                connection.expect_ack(frames);
            })
        })
        .collect();
    for sender in senders {
        sender.join().expect("every batch is acknowledged");
    }
    assert_eq!(server.total("records_stored"), connections * frames * records as u64);
    assert!(server.metric("postanalytics_receive_starved_total") > 0.0, "two buffers for eight connections run out");
    server.assert_laws();
    server.stop();
}

/// A link that waited for a buffer and then has nothing to say completes nothing: the others that wait must not wait for it.
#[test]
fn links_that_starved_and_fell_silent_hold_up_nobody() {
    let server = ServerOptions::default().arguments(&["--receive-buffers", "2", "--receive-buffer-bytes", "1024"]).start();
    let mut connections: Vec<_> = (0..150).map(|session| RawConnection::open(server.ingest, 1, session)).collect();
    // All at once, so that nearly all of them starve.
    for connection in &mut connections {
        let mut frame = large_frame(connection.session, 20, 256);
        restamp(&mut frame, 1);
        connection.send(&frame);
    }
    for connection in &mut connections {
        connection.expect_ack(1);
    }
    assert!(server.metric("postanalytics_receive_starved_total") > 0.0);
    for connection in connections.iter_mut().rev() {
        connection.send_batch(2, 1);
        connection.expect_ack(2);
    }
    server.stop();
}

#[test]
fn a_thousand_connections_at_once_are_all_served() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    if getrlimit(Resource::Nofile).current.is_some_and(|files| files < 1_500) {
        return skipped(
            "a_thousand_connections_at_once_are_all_served",
            "fewer than 1,500 open files are allowed (ulimit -n -H)",
        );
    }
    let server = Server::new();
    let mut connections: Vec<_> = (0..1_000).map(|session| RawConnection::open(server.ingest, 1, session)).collect();
    assert_eq!(server.status_json()["connections"], 1_000);
    // Frames come in pieces, all thousand in the middle of one at the same time.
    let frame = batch(0, 1, SOURCE, 5);
    let of = |session: u64, sequence: u64| {
        let mut frame = frame.clone();
        frame[16..24].copy_from_slice(&session.to_le_bytes());
        restamp(&mut frame, sequence);
        frame
    };
    for sequence in 1..=3 {
        for part in [0..200, 200..frame.len()] {
            for (session, connection) in (0..).zip(&mut connections) {
                connection.send(&of(session, sequence)[part.clone()]);
            }
        }
    }
    connections.iter_mut().for_each(|connection| connection.expect_ack(3));
    assert_eq!(server.total("records_stored"), 1_000 * 3 * 5);
    assert_eq!(server.metric("postanalytics_sessions"), 1_000.0);
    server.assert_laws();
    drop(connections);
    eventually("all are gone", PATIENCE, || server.metric("postanalytics_connections") == 0.0);
    server.stop();
}

/// Connects from an address of this machine, says Hello, and returns the error that comes instead of a Welcome.
fn open_from(address: Ipv4Addr, server: SocketAddr, session: u64) -> Result<RawConnection, ErrorFrame> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    socket.bind(&SocketAddr::from((address, 0)).into()).expect("all of 127.0.0.0/8 is this machine");
    socket.connect(&server.into()).expect("a connection");
    let mut connection = RawConnection::silent(TcpStream::from(socket), session);
    let mut bytes = Vec::new();
    hello(1).encode(session, 0, &mut bytes);
    connection.send(&bytes);
    connection.expect("Welcome or Error", |frame| match frame {
        ControlFrame::Welcome(_) => Some(Ok(())),
        ControlFrame::Error(error) => Some(Err(error)),
        _ => None,
    })?;
    Ok(connection)
}

#[test]
fn connections_over_the_limits_are_refused_as_overloaded_and_counted() {
    let limits = ["--connections-max", "6", "--connections-per-address-max", "4"];
    let server = ServerOptions::default().arguments(&limits).start();
    let (here, there) = (Ipv4Addr::new(127, 0, 0, 1), Ipv4Addr::new(127, 0, 0, 2));
    let refused = |reason: &str| server.metric(&format!("postanalytics_connections_refused_total{{reason=\"{reason}\"}}"));
    let refuse = |from: Ipv4Addr, session: u64, words: &str| {
        let error = open_from(from, server.ingest, session).expect_err("over the limit");
        assert_eq!(error.code, ErrorCode::Overloaded as u16, "{error:?}");
        assert!(error.text.contains(words), "the error names limit and flag: {error:?}");
    };
    let mut open: Vec<_> = (0..4).map(|session| open_from(here, server.ingest, session).expect("within the limits")).collect();
    refuse(here, 50, "4 connections of 127.0.0.1 are open, the limit (--connections-per-address-max)");
    open.extend((10..12).map(|session| open_from(there, server.ingest, session).expect("another address, within the limits")));
    refuse(there, 51, "6 connections are open, the limit (--connections-max)");
    assert_eq!((refused("connections_per_address_max"), refused("connections_max")), (1.0, 1.0));
    assert_eq!(server.metric("postanalytics_handshake_errors_total{code=\"overloaded\"}"), 2.0);
    for connection in &mut open {
        connection.send_batch(1, 2);
        connection.expect_ack(1);
    }
    drop(open.pop());
    eventually("a place is free again", PATIENCE, || open_from(there, server.ingest, 60).is_ok());
    assert_eq!(server.total("records_stored"), 12);
    server.assert_laws();
    server.stop();
}

#[test]
fn a_full_arena_gives_up_the_oldest_and_keeps_the_evidence() {
    let server = ServerOptions { arena_gb: SMALLEST_ARENA_GB, ..ServerOptions::default() }.start();
    // An attack first: what has hits outlives the flood of what has none.
    let mut attack = BatchBuilder::default();
    let hits = vec![Hit { attack_type: 1, severity: 200, rule_id: 1, point: b"get_id", payload: b"' or 1=1" }];
    attack.push(&RecordFields { path: b"/attacked", hits, ..RecordFields::default() }, 1 << 20).expect("fits");
    let mut frame = Vec::new();
    attack.encode_frame(7, 1, 0, &mut frame);
    let mut connection = RawConnection::open(server.ingest, 1, 7);
    connection.send(&frame);
    connection.expect_ack(1);

    let mut frame = large_frame(7, 200, 4_000);
    let (mut sequence, mut evicted) = (1, 0);
    for round in 1..=3 {
        for n in 0..40 {
            if (round, n) == (3, 20) {
                // So that what is live spans more than a second, from which the arena for 900 s is reckoned.
                std::thread::sleep(Duration::from_millis(1_200));
            }
            sequence += 1;
            restamp(&mut frame, sequence);
            connection.send(&frame);
        }
        connection.expect_ack(sequence);
        let now_evicted = server.total("evicted_records");
        assert!(now_evicted > evicted, "round {round}: 32 MiB more than fit, so the oldest went");
        evicted = now_evicted;
        server.assert_laws();
    }
    assert_eq!(server.total("records_stored"), 1 + 3 * 40 * 200);
    assert!(server.total("live_records") * 4_000 <= 40 << 20, "what is live fits into the arena");
    let status = server.status_json();
    let timeframe = status["totals"]["timeframe_seconds"].as_f64().expect("a number");
    assert!(timeframe > 1.0 && timeframe < 300.0, "{status}");
    assert_eq!(status["timeframe"]["level"], "critical", "{status}");
    assert!(status["timeframe"]["arena_gb_for_900s"].as_f64().expect("a number") > SMALLEST_ARENA_GB, "{status}");
    assert_eq!(server.metric("postanalytics_attack_records_live"), 1.0);
    server.stop();
}

#[test]
fn the_largest_frame_is_stored_and_a_larger_one_refused() {
    let server = Server::new();
    let witness = Witness::start(server.ingest);
    let mut connection = RawConnection::open(server.ingest, 1, 7);
    let most = connection.welcome.max_body_bytes;
    let mut batch = BatchBuilder::default();
    let path = vec![b'a'; most as usize - 176 - 16];
    batch.push(&RecordFields { path: &path, ..RecordFields::default() }, most as usize).expect("just fits");
    let mut frame = Vec::new();
    batch.encode_frame(7, 1, 0, &mut frame);
    assert_eq!(frame.len(), HEADER_BYTES + most as usize);
    connection.send(&frame);
    connection.expect_ack(1);
    restamp(&mut frame, 2);
    frame.extend_from_slice(&[0; 16]);
    frame[8..12].copy_from_slice(&(most + 16).to_le_bytes());
    seal(&mut frame);
    connection.send(&frame);
    let error = connection.expect_error();
    assert_eq!(error.code, ErrorCode::BodyTooLong as u16);
    assert!(error.text.contains(&most.to_string()), "{error:?}");
    let stored = witness.stop() + 1;
    assert_eq!(server.total("records_stored"), stored);
    server.assert_laws();
    server.stop();
}

/// The header of a Batch whose body of 1 MiB never comes.
fn large_header(session: u64) -> Vec<u8> {
    let header = FrameHeader { schema: 1, body_bytes: 1 << 20, ..FrameHeader::bare(FrameKind::Batch, session, 1, 0) };
    header.encode().to_vec()
}

#[test]
fn unfinished_frames_take_no_more_than_their_share_of_the_arena() {
    let server = ServerOptions { arena_gb: SMALLEST_ARENA_GB, ..ServerOptions::default() }.start();
    let witness = Witness::start(server.ingest);
    let mut unfinished = Vec::new();
    let refused = loop {
        let session = 100 + unfinished.len() as u64;
        let mut connection = RawConnection::open(server.ingest, 1, session);
        let places = server.metric("postanalytics_places_open");
        connection.send(&large_header(session));
        eventually("the frame has its place, or is refused", PATIENCE, || {
            server.metric("postanalytics_places_open") > places || server.metric("postanalytics_errors_sent_total") > 0.0
        });
        if server.metric("postanalytics_errors_sent_total") > 0.0 {
            break connection.expect_error();
        }
        unfinished.push(connection);
        assert!(unfinished.len() <= 4, "more than an eighth of 32 MiB is taken by unfinished frames");
    };
    assert_eq!(refused.code, ErrorCode::Overloaded as u16, "{refused:?}");
    assert!(!unfinished.is_empty());
    witness.assert_served();
    witness.stop();
    server.assert_laws();
    drop(unfinished);
    eventually("every place is void", PATIENCE, || server.metric("postanalytics_places_open") == 0.0);
    server.stop();
}

#[test]
fn a_slab_is_recycled_over_an_unfinished_frame_and_its_connection_is_told() {
    let server =
        ServerOptions { arena_gb: SMALLEST_ARENA_GB, ..ServerOptions::default() }.arguments(&["--frame-deadline", "60s"]).start();
    let mut stalled = RawConnection::open(server.ingest, 1, 5);
    stalled.send(&large_header(5));
    eventually("the frame has its place", PATIENCE, || server.metric("postanalytics_places_open") == 1.0);
    let mut connection = RawConnection::open(server.ingest, 1, 7);
    let mut frame = large_frame(7, 200, 4_000);
    for sequence in 1..=60 {
        restamp(&mut frame, sequence);
        connection.send(&frame);
    }
    connection.expect_ack(60);
    assert_eq!(stalled.expect_error().code, ErrorCode::SlabRecycled as u16);
    assert_eq!(server.metric("postanalytics_places_open"), 0.0);
    assert_eq!(server.total("records_stored"), 60 * 200);
    server.assert_laws();
    server.stop();
}
