//! Servers that go away and come back, and connections that are cut: nothing is lost, nothing is doubled, and the sums are
//! exact.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use postanalytics_client::{Client, Counters, Request};
use postanalytics_protocol::frames::ControlFrame;
use postanalytics_tests::{RawConnection, Server, ServerOptions, eventually};
use rustix::process::Signal;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_secs(60);
/// Sources of one client; their records are read back source by source, at most 1,000 each.
const SOURCES: u64 = 8;

/// A port outside the range from which the kernel takes ports of outgoing connections, so that it is still free when the
/// server comes back to it.
fn lasting_port() -> u16 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    loop {
        let step = NEXT.fetch_add(1, Ordering::Relaxed) * 101 + u64::from(std::process::id()) * 7;
        let port = 20_000 + (step % 10_000) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

fn two_shards_on(port: u16) -> ServerOptions {
    ServerOptions { listen: format!("127.0.0.1:{port}"), ..ServerOptions::default().shards(2) }
}

fn client_of(address: impl ToString) -> Client {
    Client::builder().server(address.to_string()).build().unwrap()
}

fn id_of(client: u8, number: u64) -> [u8; 16] {
    ((u128::from(client) << 64) | u128::from(number)).to_be_bytes()
}

/// Sends `count` records of client number `client`, 1,000 a second.
fn send_steadily(client: &Client, number: u8, count: u64) {
    let start = Instant::now();
    for record in 0..count {
        let client_ip = [10, number, 0, (record % SOURCES) as u8].into();
        let request =
            Request { request_id: id_of(number, record), client_ip, status: 200, path: b"/steady", ..Request::default() };
        client.try_send(&request).unwrap();
        let due = Duration::from_millis(record);
        std::thread::sleep(due.saturating_sub(start.elapsed()));
    }
}

/// What every client must say in the end: it lost nothing and doubts nothing.
fn assert_all_acked(counters: &Counters, sent: u64) {
    assert!(counters.laws_hold(), "{counters:?}");
    assert_eq!((counters.offered, counters.acked, counters.tnt_errors()), (sent, sent, 0), "{counters:?}");
}

/// Ends the server in the middle of the load, and starts another one in its place.
fn restart_under_load(signal: Signal) {
    const RECORDS: u64 = 3_000;
    let options = two_shards_on(lasting_port());
    let first = options.clone().start();
    let client = client_of(first.ingest);
    let (second, acked_by_first) = std::thread::scope(|scope| {
        scope.spawn(|| send_steadily(&client, 1, RECORDS));
        eventually("under load", LONG, || client.counters().acked > 500);
        if signal == Signal::KILL {
            first.kill()
        } else {
            first.stop()
        }
        eventually("disconnected", LONG, || !client.status().connected);
        let then = client.counters();
        assert!(then.laws_hold() && then.acked < RECORDS, "it must still be the middle of the load: {then:?}");
        if signal != Signal::KILL {
            assert_eq!(then.in_flight, 0, "a server that says Goodbye acknowledges what arrived before it goes: {then:?}");
        }
        eventually("records wait for a server", LONG, || client.counters().queued > 0);
        assert_eq!(client.counters().acked, then.acked, "nobody is there to acknowledge");
        (options.start(), then.acked)
    });
    client.flush(LONG).unwrap();
    let counters = client.counters();
    assert_all_acked(&counters, RECORDS);
    assert!(counters.disconnects >= 1 && counters.connects >= 2, "{counters:?}");
    assert_eq!(second.total("records_stored"), RECORDS - acked_by_first, "what the first did not acknowledge, and only that");
    assert_eq!(second.total("records_duplicate"), 0);
    second.assert_laws();
    drop(client);
    second.stop();
}

#[test]
fn a_server_killed_under_load_is_replaced_without_loss() {
    restart_under_load(Signal::KILL);
}

#[test]
fn a_server_stopped_under_load_is_replaced_without_loss() {
    restart_under_load(Signal::TERM);
}

#[test]
fn records_wait_for_a_server_that_is_away() {
    const RECORDS: u64 = 3_000;
    let port = lasting_port();
    let client = client_of(format!("127.0.0.1:{port}"));
    // It takes 3 s.
    send_steadily(&client, 1, RECORDS);
    let counters = client.counters();
    assert!(counters.laws_hold() && counters.queued == RECORDS && counters.connect_errors > 1, "{counters:?}");
    let server = two_shards_on(port).start();
    client.flush(LONG).unwrap();
    assert_all_acked(&client.counters(), RECORDS);
    assert_eq!((server.total("records_stored"), server.total("records_duplicate")), (RECORDS, 0));
    assert_stored_once(&server, 1, RECORDS);
}

#[test]
fn a_batch_sent_again_is_acknowledged_and_not_stored_again() {
    let server = Server::new();
    let mut connection = RawConnection::open(server.ingest, 1, 7);
    connection.send_batch(1, 3);
    connection.expect_ack(1);
    drop(connection);
    let mut connection = RawConnection::open(server.ingest, 1, 7);
    assert_eq!(connection.welcome.stored.iter().map(|stored| stored.sequence).max(), Some(1));
    connection.send_batch(1, 3);
    connection.send_batch(2, 2);
    connection.expect_ack(2);
    assert_eq!((server.total("records_stored"), server.total("records_duplicate")), (5, 3));
    let other = RawConnection::open(server.ingest, 1, 8);
    assert!(other.welcome.stored.iter().all(|stored| stored.sequence == 0), "another session has stored nothing");
    // A newer connection of the same session takes over; the older one hears why.
    let _newer = RawConnection::open(server.ingest, 1, 7);
    let told = connection.expect("error", |frame| if let ControlFrame::Error(error) = frame { Some(error) } else { None });
    assert_eq!(told.known_code().map(|code| code.name()), Some("replaced"));
    server.assert_laws();
}

/// Reads back every record of a client: each id once, none missing, none foreign.
fn assert_stored_once(server: &Server, number: u8, count: u64) {
    for source in 0..SOURCES {
        let (code, body) = server.get(&format!("/requests?source=10.{number}.0.{source}&limit=1000"));
        assert_eq!(code, 200, "{body}");
        let answer: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(answer["partial"], false);
        let mut found = BTreeMap::<String, u64>::new();
        for record in answer["requests"].as_array().unwrap() {
            *found.entry(record["request_id"].as_str().unwrap().to_owned()).or_default() += 1;
        }
        let wanted: BTreeSet<String> = (source..count)
            .step_by(SOURCES as usize)
            .map(|record| format!("{:032x}", u128::from_be_bytes(id_of(number, record))))
            .collect();
        assert_eq!(found.keys().cloned().collect::<BTreeSet<_>>(), wanted);
        assert!(found.values().all(|times| *times == 1), "stored more than once: {found:?}");
    }
}

/// Connections cut at any byte, in both directions, while eight clients send: the server has every record exactly once.
#[test]
fn cut_connections_to_the_same_server_lose_and_double_nothing() {
    const CLIENTS: u8 = 8;
    const RECORDS: u64 = 3_000;
    let server = ServerOptions::default().shards(2).start();
    let cuts: u64 = std::thread::scope(|scope| {
        let run = |number: u8| {
            let proxy = CuttingProxy::start(server.ingest, u64::from(number));
            let client = client_of(proxy.address);
            send_steadily(&client, number, RECORDS);
            client.flush(LONG).unwrap();
            assert_all_acked(&client.counters(), RECORDS);
            proxy.cuts()
        };
        let threads: Vec<_> = (0..CLIENTS).map(|number| scope.spawn(move || run(number))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert!(cuts >= 24, "only {cuts} connections were cut");
    assert_eq!(server.total("records_stored"), u64::from(CLIENTS) * RECORDS);
    assert_eq!(server.total("evicted_records"), 0, "all of it fits the arena");
    server.assert_laws();
    for number in 0..CLIENTS {
        assert_stored_once(&server, number, RECORDS);
    }
    server.stop();
}

/// A proxy that cuts its first connections after a random number of bytes, in a random direction.
struct CuttingProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    cuts: AtomicU64,
    stop: AtomicBool,
    streams: Mutex<Vec<TcpStream>>,
    copying: Mutex<Vec<JoinHandle<()>>>,
}

impl CuttingProxy {
    /// Connections that are cut; the later ones are left alone, so that the test ends: clients wait longer after each break.
    const CUT_CONNECTIONS: u64 = 10;
    const BYTES_UP_MAX: u64 = 40_000;
    const BYTES_DOWN_MAX: u64 = 1_500;

    fn start(server: SocketAddr, seed: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let accepting = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || accept(&listener, server, seed, &shared)
        });
        Self { address, shared, accepting: Some(accepting) }
    }

    fn cuts(&self) -> u64 {
        self.shared.cuts.load(Ordering::SeqCst)
    }
}

fn accept(listener: &TcpListener, server: SocketAddr, seed: u64, shared: &Arc<Shared>) {
    let mut random = seed;
    for connection in 0.. {
        let Ok((near, _)) = listener.accept() else { return };
        if shared.stop.load(Ordering::SeqCst) {
            return;
        }
        let Ok(far) = TcpStream::connect(server) else { continue };
        let (mut up, mut down) = (u64::MAX, u64::MAX);
        if connection < CuttingProxy::CUT_CONNECTIONS {
            match next_random(&mut random) % 2 {
                0 => up = next_random(&mut random) % CuttingProxy::BYTES_UP_MAX,
                _ => down = next_random(&mut random) % CuttingProxy::BYTES_DOWN_MAX,
            }
        }
        let mut streams = shared.streams.lock().unwrap();
        let mut copying = shared.copying.lock().unwrap();
        for (from, to, bytes) in [(&near, &far, up), (&far, &near, down)] {
            let (from, to, shared) = (from.try_clone().unwrap(), to.try_clone().unwrap(), Arc::clone(shared));
            copying.push(std::thread::spawn(move || copy(from, to, bytes, &shared)));
        }
        streams.extend([near, far]);
    }
}

/// Copies until an end closes, or until `bytes` were copied: then both ends are closed in the middle of whatever it was.
fn copy(mut from: TcpStream, mut to: TcpStream, mut bytes: u64, shared: &Shared) {
    let mut buffer = [0; 8192];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        let part = (count as u64).min(bytes) as usize;
        if to.write_all(&buffer[..part]).is_err() {
            break;
        }
        if part < count {
            shared.cuts.fetch_add(1, Ordering::SeqCst);
            break;
        }
        bytes -= part as u64;
    }
    for stream in [&from, &to] {
        let _ = stream.shutdown(Shutdown::Both);
    }
}

/// splitmix64.
fn next_random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut x = *state;
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

impl Drop for CuttingProxy {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
        for stream in self.shared.streams.lock().unwrap().iter() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        for copying in self.shared.copying.lock().unwrap().drain(..) {
            let _ = copying.join();
        }
    }
}
