//! The whole client against a small server on real sockets: threads, wake-ups, time-outs.

#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "timings are printed")]

use postanalytics_client::{AckedRecord, Client, ClientBuilder, FlushError, Request, SendError, StatsError};
use postanalytics_protocol::frames::{
    Ack, Action, ControlFrame, Goodbye, PackageVersion, Stats, StoredSequence, Subject, Verdict, Verdicts, Welcome,
};
use postanalytics_protocol::header::{FrameHeader, FrameKind};
use postanalytics_protocol::routing::address_bytes;
use postanalytics_protocol::{Assembler, ValidBatch};
use std::collections::{HashMap, HashSet};
use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_secs(20);
const SHARDS: u32 = 3;

/// What the server's threads share.
#[derive(Default)]
struct Shared {
    highest: HashMap<(u64, u32), u64>,
    stored: HashSet<u64>,
    doubled: u64,
    connections: Vec<TcpStream>,
    frames: u64,
    /// Batches that came after Goodbye.
    after_goodbye: u64,
    /// Stores, but says nothing.
    mute: bool,
    stop: bool,
}

struct Server {
    address: String,
    shared: Arc<Mutex<Shared>>,
    accepting: Option<JoinHandle<()>>,
}

impl Server {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound").to_string();
        let shared = Arc::new(Mutex::new(Shared::default()));
        let for_accept = Arc::clone(&shared);
        let accepting = std::thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.expect("accepted");
                let mut shared = lock(&for_accept);
                if shared.stop {
                    return;
                }
                shared.connections.push(stream.try_clone().expect("a descriptor"));
                drop(shared);
                let for_peer = Arc::clone(&for_accept);
                std::thread::spawn(move || Peer { stream, shared: for_peer, session: 0, shard: 0, goodbye: false }.serve());
            }
        });
        Self { address, shared, accepting: Some(accepting) }
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        lock(&self.shared)
    }

    fn break_all(&self) {
        for connection in self.shared().connections.drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared().stop = true;
        self.break_all();
        let _ = TcpStream::connect(&self.address);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

struct Peer {
    stream: TcpStream,
    shared: Arc<Mutex<Shared>>,
    session: u64,
    shard: u32,
    goodbye: bool,
}

impl Peer {
    fn serve(mut self) {
        let (mut assembler, mut body, mut buffer) = (Assembler::default(), Vec::new(), vec![0; 1 << 16]);
        while let Ok(bytes @ 1..) = self.stream.read(&mut buffer) {
            let mut input = &buffer[..bytes];
            while let Some(header) = assembler.collect(&mut input, &mut body).expect("frames") {
                let mut out = Vec::new();
                self.frame(&header, &body, &mut out);
                if self.stream.write_all(&out).is_err() {
                    return;
                }
            }
        }
    }

    fn frame(&mut self, header: &FrameHeader, body: &[u8], out: &mut Vec<u8>) {
        let mut shared = lock(&self.shared);
        shared.frames += 1;
        if header.kind == FrameKind::Batch {
            let batch = ValidBatch::parse(header.schema, header.record_count, body).expect("a batch");
            let highest = shared.highest.entry((self.session, self.shard)).or_default();
            assert!(header.sequence <= *highest + 1, "a gap");
            shared.after_goodbye += u64::from(self.goodbye);
            let highest = shared.highest.entry((self.session, self.shard)).or_default();
            if header.sequence > *highest {
                *highest = header.sequence;
                for record in batch.records() {
                    let number = u64::from_le_bytes(record.request_id()[..8].try_into().expect("8 bytes"));
                    shared.doubled += u64::from(!shared.stored.insert(number));
                }
            }
            if !shared.mute {
                Ack { sequence: header.sequence }.encode(self.session, 0, out);
            }
            return;
        }
        match ControlFrame::decode(header, body).expect("a frame") {
            ControlFrame::Hello(hello) => {
                self.session = header.session;
                self.shard = if hello.wanted_shard < SHARDS { hello.wanted_shard } else { 1 };
                let sequence = shared.highest.get(&(self.session, self.shard)).copied().unwrap_or(0);
                welcome(self.shard, sequence).encode(self.session, 0, out);
                let verdicts = if self.shard == 1 { vec![verdict([192, 0, 2, 66].into())] } else { Vec::new() };
                Verdicts { sequence: 1, begin: true, end: true, verdicts }.encode(self.session, 0, out);
            }
            ControlFrame::StatsRequest(request) => {
                let stats = Stats { token: request.token, session_records_stored: 10, process_cpu_us: 5, ..Stats::default() };
                stats.encode(self.session, 0, out);
            }
            ControlFrame::Goodbye(Goodbye { .. }) => self.goodbye = true,
            frame => panic!("not from a client: {frame:?}"),
        }
    }
}

fn welcome(shard: u32, sequence: u64) -> Welcome {
    Welcome {
        package: PackageVersion { major: 1, minor: 2, patch: 3 },
        server_id: [5; 16],
        deployment_id: [6; 16],
        epoch: 77,
        shard_count: SHARDS,
        shard,
        routing_seed: 42,
        identity_key: [8; 32],
        server_us: 0,
        window_bytes: 1 << 20,
        max_body_bytes: 1 << 20,
        protocol: 1,
        schema: 1,
        stored: vec![StoredSequence { epoch: 77, shard, sequence }],
    }
}

fn verdict(address: IpAddr) -> Verdict {
    let subject = Subject::Source(address_bytes(address));
    Verdict { subject, application: None, action: Some(Action::Denylist), until_us: u64::MAX, detector: 0 }
}

fn client(server: &Server) -> ClientBuilder {
    Client::builder().server(&server.address).node([1; 16]).node_name("test")
}

fn send(client: &Client, number: u64) -> Result<(), SendError> {
    let mut request_id = [0; 16];
    request_id[..8].copy_from_slice(&number.to_le_bytes());
    let client_ip = [198, 51, 100, (number % 250) as u8].into();
    client.try_send(&Request { request_id, client_ip, path: b"/path", status: 200, token: number, ..Request::default() })
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn records_arrive_and_are_acknowledged() {
    let server = Server::start();
    let acked = Arc::new(Mutex::new(Vec::<AckedRecord>::new()));
    let keep = Arc::clone(&acked);
    let client =
        client(&server).on_acked(move |records| keep.lock().expect("fine").extend_from_slice(records)).build().expect("built");
    for number in 0..1000 {
        send(&client, number).expect("room");
    }
    client.flush(LONG).expect("flushed");
    let counters = client.counters();
    assert!(counters.laws_hold() && counters.acked == 1000 && counters.tnt_errors() == 0, "{counters:?}");
    assert_eq!(server.shared().stored.len(), 1000);

    let acked = acked.lock().expect("fine");
    let tokens: HashSet<u64> = acked.iter().map(|record| record.token).collect();
    assert_eq!(tokens.len(), 1000);
    assert!(acked.iter().all(|record| record.accepted_us <= record.acked_us && record.acked_us <= client.clock_us()));

    let status = client.status();
    assert!(status.connected && status.servers[0].version == "1.2.3" && status.lanes_open == SHARDS, "{status:?}");
    assert_ne!(client.hash_identity(b"anna"), None);
    eventually("listed", || client.denylist().contains([192, 0, 2, 66].into()));
    assert!(!client.denylist().contains([192, 0, 2, 67].into()));
    assert_eq!(client.close(LONG).acked, 1000);
}

#[test]
fn breaks_under_load_lose_and_double_nothing() {
    let server = Server::start();
    let client = client(&server).build().expect("built");
    for round in 0..20u64 {
        for number in 0..500 {
            send(&client, round * 500 + number).expect("room");
        }
        std::thread::sleep(Duration::from_millis(10));
        server.break_all();
        assert!(client.counters().laws_hold());
    }
    client.flush(LONG).expect("flushed");
    let counters = client.counters();
    assert!(counters.laws_hold() && counters.acked == 10_000 && counters.tnt_errors() == 0, "{counters:?}");
    assert!(counters.disconnects > 0);
    let shared = server.shared();
    assert_eq!((shared.stored.len(), shared.doubled), (10_000, 0));
}

#[test]
fn without_a_server_records_wait_and_the_laws_hold() {
    let address = {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.local_addr().expect("bound").to_string()
    };
    let client = Client::builder().server(address).queue_bytes(100_000).build().expect("built");
    let mut refused = 0;
    for number in 0..1000 {
        refused += u64::from(matches!(send(&client, number), Err(SendError::QueueFull { .. })));
    }
    assert!(refused > 500);
    assert!(matches!(client.flush(Duration::from_millis(50)), Err(FlushError::Timeout { left: 1.. })));
    assert_eq!(client.server_stats(Duration::from_millis(50)), Err(StatsError::Timeout));
    eventually("an error is shown", || client.status().last_error.contains("cannot connect"));
    let counters = client.close(Duration::from_millis(10));
    assert!(counters.laws_hold() && counters.lost == counters.accepted && counters.refused_full == refused, "{counters:?}");
    assert_eq!(counters.tnt_errors(), 1000);
}

#[test]
fn statistics_are_summed_over_all_shards() {
    let server = Server::start();
    let client = client(&server).build().expect("built");
    for _ in 0..3 {
        let stats = client.server_stats(LONG).expect("answered");
        assert_eq!((stats.stored, stats.cpu_us, stats.shards), (10 * u64::from(SHARDS), 5, SHARDS));
    }
}

#[test]
fn what_was_written_and_not_acknowledged_is_in_doubt_at_the_end() {
    let server = Server::start();
    server.shared().mute = true;
    let client = client(&server).build().expect("built");
    for number in 0..10 {
        send(&client, number).expect("room");
    }
    eventually("stored", || server.shared().stored.len() == 10);
    let counters = client.close(Duration::from_millis(10));
    assert!(counters.laws_hold() && counters.in_doubt == 10 && counters.lost == 0, "{counters:?}");
}

#[test]
fn a_sleeping_thread_is_woken() {
    let server = Server::start();
    let client = client(&server).build().expect("built");
    for round in 1..=2 {
        send(&client, round).expect("room");
        eventually("woken", || client.counters().acked == round);
        std::thread::sleep(Duration::from_millis(1200));
    }
}

#[test]
fn nothing_is_stored_that_closing_calls_lost() {
    let server = Server::start();
    for round in 0..8 {
        server.shared().stored.clear();
        let client = client(&server).build().expect("built");
        eventually("connected", || client.status().connected);
        let body = vec![b'x'; 2000];
        for number in 0..10_000u64 {
            let mut request_id = [0; 16];
            request_id[..8].copy_from_slice(&number.to_le_bytes());
            client.try_send(&Request { request_id, raw_body: &body, ..Request::default() }).expect("room");
        }
        let counters = client.close(Duration::from_millis(round % 4));
        std::thread::sleep(Duration::from_millis(200));
        let shared = server.shared();
        assert!(counters.laws_hold() && shared.stored.len() as u64 <= counters.acked + counters.in_doubt, "{counters:?}");
        assert_eq!(shared.after_goodbye, 0);
    }
}

#[test]
fn dropping_a_client_sends_what_is_queued() {
    let server = Server::start();
    let client = client(&server).build().expect("built");
    for number in 0..100 {
        send(&client, number).expect("room");
    }
    drop(client);
    assert_eq!(server.shared().stored.len(), 100);
}

#[test]
fn a_panic_in_the_callback_ends_the_thread_and_not_the_laws() {
    let server = Server::start();
    let client = client(&server).on_acked(|_| panic!("on purpose")).build().expect("built");
    assert!(!client.is_closed());
    send(&client, 0).expect("room");
    eventually("published", || client.counters().acked == 1);
    assert_eq!(client.flush(LONG), Ok(()), "nothing is left to wait for");
    eventually("ended", || client.is_closed());
    assert_eq!(send(&client, 1), Err(SendError::Closed));
    let counters = client.counters();
    assert!(counters.laws_hold() && counters.in_flight == 0 && counters.refused_other >= 1, "{counters:?}");
    assert_eq!(counters.acked, 1, "what was acknowledged is, whatever the callback makes of it");
}

/// `cargo test --release -p postanalytics-client --test sockets -- --ignored --nocapture try_send_cost`,
/// with `POSTANALYTICS_SERVER=host:port` against a real server.
#[test]
#[ignore = "prints timings, asserts nothing about them; run it alone and in release mode"]
fn try_send_cost() {
    let server = Server::start();
    let address = std::env::var("POSTANALYTICS_SERVER").unwrap_or_else(|_| server.address.clone());
    let client = Client::builder().server(address).build().expect("built");
    let (path, agent) = (vec![b'p'; 150], vec![b'a'; 180]);
    let print = |name: &str, mut nanoseconds: Vec<u64>| {
        nanoseconds.sort_unstable();
        let at = |share: f64| nanoseconds[(nanoseconds.len() as f64 * share) as usize];
        println!(
            "{name}: p50 {} ns, p90 {} ns, p95 {} ns, p98 {} ns, p99 {} ns, p99.9 {} ns, max {} ns",
            at(0.5),
            at(0.9),
            at(0.95),
            at(0.98),
            at(0.99),
            at(0.999),
            at(0.999_999)
        );
    };
    // For comparison, at the same pace: the clock alone, and the cheapest of system calls.
    for (name, call) in [("clock", (|| 0) as fn() -> u32), ("getpid", || rustix::process::getpid().as_raw_pid() as u32)] {
        let mut nanoseconds = Vec::with_capacity(100_000);
        let mut next = Instant::now();
        for _ in 0..100_000 {
            while Instant::now() < next {}
            next += Duration::from_micros(20);
            let before = Instant::now();
            std::hint::black_box(call());
            nanoseconds.push(before.elapsed().as_nanos() as u64);
        }
        print(name, nanoseconds);
    }
    let paces = [("50,000/s", 20_000), ("1,000,000/s", 1000), ("as fast as it goes", 0)];
    for (name, gap) in paces.map(|(name, gap_ns)| (name, Duration::from_nanos(gap_ns))) {
        let mut nanoseconds = Vec::with_capacity(300_000);
        let mut next = Instant::now();
        for number in 0..300_000u64 {
            let client_ip = [198, 51, (number >> 8) as u8, number as u8].into();
            let request =
                Request { client_ip, path: &path, user_agent: &agent, status: 200, token: number, ..Request::default() };
            // No hint that this is a loop: a hypervisor may take the processor away for it.
            while Instant::now() < next {}
            next += gap;
            let before = Instant::now();
            let _ = client.try_send(&request);
            nanoseconds.push(before.elapsed().as_nanos() as u64);
        }
        print(name, nanoseconds);
        let _ = client.flush(LONG);
        println!("{:?}", client.counters());
    }
}
