//! Peers that stop: in the middle of a frame, of a Hello, of reading, of living. Each costs only itself.

use postanalytics_protocol::frames::{Ping, StatsRequest};
use postanalytics_protocol::{ErrorCode, HEADER_BYTES};
use postanalytics_tests::wire::{SOURCE, batch, hello};
use postanalytics_tests::{RawConnection, Server, ServerOptions, Witness, eventually};
use socket2::SockRef;
use std::io::{ErrorKind, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(15);

#[test]
fn a_frame_that_stops_halfway_is_given_up_after_the_deadline() {
    let server = ServerOptions::default().arguments(&["--frame-deadline", "1s"]).start();
    let witness = Witness::start(server.ingest);
    let frame = batch(7, 1, SOURCE, 10);
    // In the body, and in the header, where no place is open yet.
    for (stop_at, places) in [(frame.len() / 2, 1.0), (HEADER_BYTES / 2, 0.0)] {
        let void = server.metric("postanalytics_places_void_total");
        let mut connection = RawConnection::open(server.ingest, 1, 7);
        connection.send(&frame[..stop_at]);
        if places > 0.0 {
            eventually("the frame has its place", PATIENCE, || server.metric("postanalytics_places_open") >= places);
        }
        assert_eq!(connection.expect_error().code, ErrorCode::FrameTimeout as u16);
        witness.assert_served();
        assert_eq!(server.metric("postanalytics_places_void_total"), void + places);
    }
    let stored = witness.stop();
    assert_eq!(server.metric("postanalytics_places_open"), 0.0);
    assert_eq!(server.metric("postanalytics_connections_shed_total"), 2.0);
    assert_eq!(server.total("records_stored"), stored);
    server.assert_laws();
    server.stop();
}

#[test]
fn a_frame_that_comes_slowly_but_in_time_is_taken() {
    let server = ServerOptions::default().arguments(&["--frame-deadline", "20s"]).start();
    let mut connection = RawConnection::open(server.ingest, 1, 7);
    for sequence in 1..=3 {
        for piece in batch(7, sequence, SOURCE, 2).chunks(7) {
            connection.send(piece);
            std::thread::sleep(Duration::from_millis(2));
        }
        connection.expect_ack(sequence);
    }
    assert_eq!(server.total("records_stored"), 6);
    server.stop();
}

#[test]
fn a_hello_that_stops_halfway_is_refused_within_the_deadline() {
    let server = Server::new();
    let witness = Witness::start(server.ingest);
    let mut bytes = Vec::new();
    hello(1).encode(7, 0, &mut bytes);
    let mut silent = RawConnection::silent(TcpStream::connect(server.ingest).expect("a connection"), 7);
    let mut halfway = RawConnection::silent(TcpStream::connect(server.ingest).expect("a connection"), 7);
    halfway.send(&bytes[..bytes.len() - 1]);
    for connection in [&mut silent, &mut halfway] {
        assert_eq!(connection.expect_error().code, ErrorCode::HandshakeTimeout as u16);
    }
    assert_eq!(server.metric("postanalytics_handshake_errors_total{code=\"handshake_timeout\"}"), 2.0);
    witness.assert_served();
    witness.stop();
    server.stop();
}

/// Writes frames without reading anything until the server ends the connection; how many bytes went out. Panics if the
/// server still holds the connection after a while.
fn flood(connection: &mut RawConnection, frames: &[u8]) -> usize {
    connection.stream.set_nonblocking(true).expect("a socket option");
    let (start, mut sent) = (Instant::now(), 0);
    loop {
        match connection.stream.write(&frames[sent % frames.len()..]) {
            Ok(count) => sent += count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(Duration::from_millis(5)),
            Err(_) => return sent,
        }
        assert!(start.elapsed() < 2 * PATIENCE, "a peer that reads nothing is still served after {sent} bytes");
    }
}

#[test]
fn a_peer_that_never_reads_is_closed_as_too_slow_within_bounded_memory() {
    let server = Server::new();
    let witness = Witness::start(server.ingest);
    let before = server.resident_bytes();
    let mut connection = RawConnection::open(server.ingest, 1, 7);
    let mut frames = Vec::new();
    for token in 0..512 {
        Ping { token }.encode(7, 0, &mut frames);
        StatsRequest { token }.encode(7, 0, &mut frames);
    }
    let sent = flood(&mut connection, &frames);
    let closed = || server.logged("connection closed").iter().any(|line| line["error"] == ErrorCode::PeerTooSlow.name());
    eventually("it is closed as too slow", PATIENCE, closed);
    eventually("the connection is gone", PATIENCE, || server.metric("postanalytics_connections") == 1.0);
    let grown = server.resident_bytes().saturating_sub(before);
    // Twice the limit for what waits and what is being sent, each grown by doubling and rounded up to huge pages.
    assert!(grown < 16 << 20, "{grown} bytes more after {sent} bytes of frames whose answers were not read");
    witness.assert_served();
    witness.stop();
    server.assert_laws();
    server.stop();
}

#[test]
fn a_client_killed_in_the_middle_of_a_frame_resends_and_is_stored_once() {
    let server = Server::new();
    let witness = Witness::start(server.ingest);
    let mut first = RawConnection::open(server.ingest, 1, 7);
    first.send_batch(1, 5);
    first.expect_ack(1);
    drop(first);
    let source = "198.51.100.1".parse().expect("an address");
    let frame = batch(7, 2, source, 50);
    for round in 1..=10 {
        let mut connection = RawConnection::open(server.ingest, 1, 7);
        assert_eq!(connection.next_sequence(), 2, "the first batch is known, the broken one is not");
        connection.send(&frame[..frame.len() / 2]);
        eventually("the frame has its place", PATIENCE, || {
            server.metric("postanalytics_places_open") + server.metric("postanalytics_places_void_total") >= f64::from(round)
        });
        // The kernel of a killed process answers with a reset.
        SockRef::from(&connection.stream).set_linger(Some(Duration::ZERO)).expect("a socket option");
        drop(connection);
        eventually("the place is void", PATIENCE, || server.metric("postanalytics_places_void_total") == f64::from(round));
    }
    let mut again = RawConnection::open(server.ingest, 1, 7);
    again.send(&batch(7, 1, SOURCE, 5));
    again.send(&frame);
    again.expect_ack(2);
    let stored = witness.stop() + 55;
    assert_eq!((server.total("records_stored"), server.total("records_duplicate")), (stored, 5));
    assert_eq!(server.metric("postanalytics_places_open"), 0.0);
    let (_, page) = server.get("/requests?limit=1000&source=198.51.100.1");
    for n in 0..50 {
        assert_eq!(page.matches(&format!("\"/page/2/{n}\"")).count(), 1, "record {n} of the resent batch is there once");
    }
    server.assert_laws();
    server.stop();
}

#[test]
fn a_newer_connection_of_the_same_session_takes_over() {
    let server = Server::new();
    let witness = Witness::start(server.ingest);
    let mut older = RawConnection::open(server.ingest, 1, 7);
    older.send_batch(1, 1);
    older.expect_ack(1);
    // Half a frame, which the newer connection sends anew.
    let frame = batch(7, 2, SOURCE, 3);
    older.send(&frame[..100]);
    eventually("the frame has its place", PATIENCE, || server.metric("postanalytics_places_open") >= 1.0);
    let mut newer = RawConnection::open(server.ingest, 1, 7);
    assert_eq!(older.expect_error().code, ErrorCode::Replaced as u16);
    assert_eq!(newer.next_sequence(), 2);
    newer.send(&frame);
    newer.expect_ack(2);
    // Another node with the same number is another session.
    let mut other = RawConnection::open(server.ingest, 2, 7);
    assert_eq!(other.next_sequence(), 1);
    other.send_batch(1, 1);
    other.expect_ack(1);
    newer.send_batch(3, 1);
    newer.expect_ack(3);
    let stored = witness.stop() + 6;
    assert_eq!(server.total("records_stored"), stored);
    server.assert_laws();
    server.stop();
}
