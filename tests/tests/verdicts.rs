//! Verdicts from a shard to the denylist of real clients. They are set by hand through the
//! interface of a shard that runs in this process; the test does what the control plane does: accept, read Hello, hand over.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use postanalytics_client::{Action, Client};
use postanalytics_protocol::frames::{ControlFrame, PackageVersion, Subject, Verdict};
use postanalytics_protocol::routing::address_bytes;
use postanalytics_protocol::{Assembler, DEFAULT_MAX_BODY_BYTES};
use postanalytics_server::analytics::AnalyticsPlan;
use postanalytics_server::queue::Sender;
use postanalytics_server::shard::messages::{ConnectionTicket, Handover, ShardHandle, ToShard, Topology};
use postanalytics_server::shard::page::StatsPage;
use postanalytics_server::shard::{self, ShardConfig};
use postanalytics_tests::eventually;
use std::io::Read;
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(30);
const ATTACKER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 66));
const NEIGHBOUR: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 67));

/// One shard and a small stand-in for the control plane.
struct RunningShard {
    address: SocketAddr,
    shared: Arc<Mutex<Shared>>,
    page: Arc<StatsPage>,
    accepting: Option<JoinHandle<()>>,
    shard: Option<JoinHandle<anyhow::Result<()>>>,
}

struct Shared {
    messages: Sender<ToShard>,
    /// Second descriptors of the sockets handed over, to break them.
    sockets: Vec<TcpStream>,
    turns_away: bool,
    stop: bool,
}

impl RunningShard {
    fn start() -> Self {
        let topology = Topology {
            server_id: [1; 16],
            deployment_id: [2; 16],
            epoch: 3,
            shard_count: 1,
            routing_seed: 4,
            identity_key: [5; 32],
            package: PackageVersion::parse(env!("CARGO_PKG_VERSION")),
            max_body_bytes: DEFAULT_MAX_BODY_BYTES,
        };
        let config = ShardConfig {
            analytics: AnalyticsPlan::default(),
            shard: 0,
            cpu: None,
            arena_bytes: 64 << 20,
            topology: Arc::new(topology),
            receive_buffers: 16,
            receive_buffer_bytes: 16 << 10,
            connections_max: 64,
            frame_deadline: Duration::from_secs(10),
            drain_deadline: Duration::from_secs(10),
        };
        let ShardHandle { page, messages, thread, .. } = shard::start(config, None).unwrap().wait().unwrap();
        let shared = Arc::new(Mutex::new(Shared { messages, sockets: Vec::new(), turns_away: false, stop: false }));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let accepting = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || accept(&listener, &shared)
        });
        Self { address, shared, page, accepting: Some(accepting), shard: Some(thread) }
    }

    fn client(&self) -> Client {
        Client::builder().server(self.address.to_string()).build().unwrap()
    }

    /// Sets verdicts, whose end counts from now; a shard's queue is bounded, so it may take a few tries.
    fn set(&self, verdicts: impl IntoIterator<Item = Verdict>) {
        for verdict in verdicts {
            let duration_us = verdict.until_us;
            let send = || self.shared.lock().unwrap().messages.send(ToShard::SetVerdict { verdict, duration_us }).is_ok();
            eventually("room in the queue to the shard", LONG, send);
        }
    }

    /// Breaks all connections, and takes no new ones.
    fn go_away(&self) {
        let mut shared = self.shared.lock().unwrap();
        shared.turns_away = true;
        for socket in shared.sockets.drain(..) {
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    fn come_back(&self) {
        self.shared.lock().unwrap().turns_away = false;
    }
}

impl Drop for RunningShard {
    fn drop(&mut self) {
        self.shared.lock().unwrap().stop = true;
        let _ = TcpStream::connect(self.address);
        let _ = self.accepting.take().map(JoinHandle::join);
        eventually("drain", LONG, || self.shared.lock().unwrap().messages.send(ToShard::Drain).is_ok());
        let ended = self.shard.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            ended.unwrap().unwrap().unwrap();
        }
    }
}

fn accept(listener: &TcpListener, shared: &Mutex<Shared>) {
    loop {
        let (mut socket, peer) = listener.accept().unwrap();
        if shared.lock().unwrap().stop {
            return;
        }
        let Some((hello, session)) = read_hello(&mut socket) else { continue };
        let mut shared = shared.lock().unwrap();
        if shared.turns_away {
            continue;
        }
        shared.sockets.push(socket.try_clone().unwrap());
        let ticket =
            ConnectionTicket { node: hello.node, name: hello.name.clone(), session, peer, package: hello.package, shard: 0 };
        let handover = Handover { socket: socket.into(), hello, session, ticket: Arc::new(ticket) };
        shared.messages.send(ToShard::Adopt(handover)).unwrap();
    }
}

/// A client sends nothing after its Hello until it is welcome, so nothing is read ahead.
fn read_hello(socket: &mut TcpStream) -> Option<(postanalytics_protocol::frames::Hello, u64)> {
    let (mut assembler, mut body, mut buffer) = (Assembler::default(), Vec::new(), [0; 1024]);
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    loop {
        let count = socket.read(&mut buffer).ok().filter(|count| *count > 0)?;
        let mut input = &buffer[..count];
        if let Some(header) = assembler.collect(&mut input, &mut body).unwrap() {
            assert!(input.is_empty(), "a client waits for Welcome");
            socket.set_read_timeout(None).unwrap();
            return match ControlFrame::decode(&header, &body).unwrap() {
                ControlFrame::Hello(hello) => Some((hello, header.session)),
                other => panic!("no Hello but {other:?}"),
            };
        }
    }
}

/// The source goes onto the denylist, for all applications, for an hour.
fn denied(address: IpAddr) -> Verdict {
    Verdict {
        subject: Subject::Source(address_bytes(address)),
        application: None,
        action: Some(Action::Denylist),
        until_us: 3_600_000_000,
        detector: 0,
    }
}

fn taken_back(address: IpAddr) -> Verdict {
    Verdict { action: None, ..denied(address) }
}

#[test]
fn a_verdict_reaches_every_client_and_is_taken_back() {
    let shard = RunningShard::start();
    let clients = [shard.client(), shard.client(), shard.client()];
    eventually("connected", LONG, || clients.iter().all(|client| client.status().connected));
    assert!(clients.iter().all(|client| !client.denylist().contains(ATTACKER)));
    shard.set([denied(ATTACKER)]);
    eventually("denied", LONG, || clients.iter().all(|client| client.denylist().contains(ATTACKER)));
    assert!(clients.iter().all(|client| !client.denylist().contains(NEIGHBOUR)));
    assert_eq!((shard.page.read().verdicts_live, shard.page.read().verdicts_made), (1, 1));
    shard.set([taken_back(ATTACKER)]);
    eventually("no longer denied", LONG, || clients.iter().all(|client| !client.denylist().contains(ATTACKER)));
    eventually("nothing left", LONG, || shard.page.read().verdicts_live == 0);
}

#[test]
fn verdicts_hold_for_what_they_name() {
    let shard = RunningShard::start();
    let client = shard.client();
    eventually("connected", LONG, || client.status().connected);
    let session = client.hash_identity(b"stolen cookie").unwrap();
    let network: IpAddr = "2001:db8:1:2::".parse().unwrap();
    let (one_application, graylisted): (IpAddr, IpAddr) = ([192, 0, 2, 1].into(), [192, 0, 2, 2].into());
    shard.set([
        Verdict { application: Some(7), ..denied(one_application) },
        Verdict { action: Some(Action::Graylist), ..denied(graylisted) },
        Verdict { subject: Subject::Session(session), ..denied(ATTACKER) },
        denied(network),
    ]);
    let list = client.denylist();
    eventually("listed", LONG, || list.contains(network));
    assert_eq!((list.lookup(one_application, 7), list.lookup(one_application, 8)), (Some(Action::Denylist), None));
    assert!(!list.contains(one_application), "only in application 7");
    assert_eq!(list.lookup(graylisted, 1), Some(Action::Graylist));
    assert!(!list.contains(graylisted), "watched, not refused");
    assert_eq!((list.lookup_session(session, 1), list.lookup_session(session ^ 1, 1)), (Some(Action::Denylist), None));
    assert!(list.contains("2001:db8:1:2:3:4:5:6".parse().unwrap()), "the whole /64");
    assert!(!list.contains("2001:db8:1:3::1".parse().unwrap()));
    assert_eq!(list.len(), 4);
}

#[test]
fn a_client_that_comes_later_gets_the_whole_set() {
    const COUNT: u32 = 3_000;
    let shard = RunningShard::start();
    let address = |number: u32| IpAddr::from(std::net::Ipv4Addr::from(0x0a00_0000 + number));
    // More than one frame holds; some of them go again.
    shard.set((0..COUNT).map(|number| denied(address(number))));
    shard.set((0..COUNT).step_by(10).map(|number| taken_back(address(number))));
    eventually("all are set", LONG, || shard.page.read().verdicts_live == u64::from(COUNT) * 9 / 10);
    let client = shard.client();
    eventually("the whole set", LONG, || client.denylist().len() == COUNT as usize * 9 / 10);
    for number in 0..COUNT {
        assert_eq!(client.denylist().contains(address(number)), number % 10 != 0, "{number}");
    }
    assert!(!client.denylist().contains(address(COUNT)));
    // Later changes come after it.
    shard.set([taken_back(address(1)), denied(address(0))]);
    eventually("changed", LONG, || !client.denylist().contains(address(1)) && client.denylist().contains(address(0)));
}

#[test]
fn a_verdict_ends_when_it_says() {
    let shard = RunningShard::start();
    let client = shard.client();
    eventually("connected", LONG, || client.status().connected);
    shard.set([Verdict { until_us: 3_000_000, ..denied(ATTACKER) }, denied(NEIGHBOUR)]);
    eventually("denied", LONG, || client.denylist().contains(NEIGHBOUR));
    assert!(client.denylist().contains(ATTACKER));
    eventually("over", LONG, || !client.denylist().contains(ATTACKER));
    assert!(client.denylist().contains(NEIGHBOUR), "that one has an hour");
    // The shard has forgotten it as well, and tells nobody who comes now.
    eventually("forgotten", LONG, || shard.page.read().verdicts_live == 1);
    let later = shard.client();
    eventually("denied", LONG, || later.denylist().contains(NEIGHBOUR));
    assert!(!later.denylist().contains(ATTACKER));
    assert_eq!(later.denylist().len(), 1);
}

#[test]
fn verdicts_outlive_the_connection_and_are_replaced_by_the_next_set() {
    let shard = RunningShard::start();
    let client = shard.client();
    eventually("connected", LONG, || client.status().connected);
    let short: IpAddr = [192, 0, 2, 1].into();
    shard.set([denied(ATTACKER), denied(NEIGHBOUR), Verdict { until_us: 4_000_000, ..denied(short) }]);
    eventually("denied", LONG, || [ATTACKER, NEIGHBOUR, short].iter().all(|address| client.denylist().contains(*address)));
    shard.go_away();
    eventually("disconnected", LONG, || !client.status().connected);
    assert!([ATTACKER, NEIGHBOUR].iter().all(|address| client.denylist().contains(*address)), "kept without a connection");
    eventually("over without a connection", LONG, || !client.denylist().contains(short));
    assert!(!client.status().connected && client.denylist().contains(ATTACKER));
    // Taken back while nobody was connected: the set of the new connection does not have it.
    shard.set([taken_back(ATTACKER)]);
    eventually("taken back", LONG, || shard.page.read().verdicts_live <= 2);
    shard.come_back();
    eventually("connected again", LONG, || client.status().connected);
    eventually("the new set", LONG, || !client.denylist().contains(ATTACKER));
    assert!(client.denylist().contains(NEIGHBOUR));
}
