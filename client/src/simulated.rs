//! The client as the simulation of `tests/` drives it: the real queue, core and background turn, with the time, the sockets
//! and the randomness coming in from outside. Only with the cargo feature `simulation`, which no production build enables;
//! no promise is made about this interface.
//!
//! A turn, as that of the background thread: bytes in ([`SimulatedClient::received`] and its like), [`SimulatedClient::take`],
//! sockets opened and closed, bytes out, [`SimulatedClient::publish`].

use crate::config::{Config, ServerAddress};
use crate::connection::Break;
use crate::core::{Core, Now};
use crate::queue::Queue;
use crate::thread::Driver;
use crate::{AckedRecord, Counters, Denylist, Request, SendError};
use std::sync::{Arc, Mutex, PoisonError};

/// What may differ from client to client.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Id of the node.
    pub node: [u8; 16],
    /// Of everything random.
    pub seed: u64,
    /// Bound of the queue.
    pub queue_bytes: usize,
    /// Bytes of a batch.
    pub batch_bytes: usize,
    /// Time after which a record is given up, µs.
    pub record_time_limit_us: u64,
    /// How many servers it has.
    pub servers: usize,
}

/// The server that a socket belongs to.
pub const fn server_of(link: u64) -> usize {
    crate::core::server_of(link)
}

/// How a socket ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketEnd {
    /// It never connected.
    Refused,
    /// The peer closed it.
    Closed,
    /// It broke.
    Reset,
}

/// See the module.
pub struct SimulatedClient {
    driver: Driver,
    denylist: Arc<Denylist>,
    acked: Arc<Mutex<Vec<AckedRecord>>>,
    now: Now,
    asleep_us: u64,
}

impl SimulatedClient {
    /// A client whose clock stands at 0. Panics if there is no eventfd to be had.
    pub fn new(settings: &Settings) -> Self {
        let address = |port| ServerAddress { text: format!("simulated:{port}"), host: "simulated".into(), port: port as u16 };
        let config = Config {
            servers: (1..=settings.servers).map(address).collect(),
            node: settings.node,
            node_name: format!("node {}", settings.node[0]),
            replay: false,
            queue_bytes: settings.queue_bytes,
            batch_bytes: settings.batch_bytes,
            batch_records_max: 100,
            batch_records_aim: 4,
            linger_us_min: 500,
            linger_us_max: 20_000,
            connect_timeout_us: 1_000_000,
            reconnect_slow: None,
            record_time_limit_us: settings.record_time_limit_us,
            congestion_control: None,
        };
        let queue = match Queue::new(config.queue_bytes) {
            Ok(queue) => Arc::new(queue),
            Err(error) => panic!("no eventfd: {error}"),
        };
        queue.set_clock_us(0);
        let denylist = Arc::new(Denylist::new(queue.started()));
        let acked = Arc::new(Mutex::new(Vec::new()));
        let keep = Arc::clone(&acked);
        let hook = move |records: &[AckedRecord]| keep.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(records);
        let core = Core::new(config.clone(), settings.seed, Some(Box::new(hook)), Arc::clone(&denylist));
        let driver = Driver::new(queue, core, config);
        Self { driver, denylist, acked, now: Now { clock_us: 0, boot_us: 0, unix_us: 0 }, asleep_us: 0 }
    }

    /// From now on it is then. The clock never goes back, Unix time may.
    pub fn set_time(&mut self, clock_us: u64, unix_us: u64) {
        self.now = Now { clock_us, boot_us: clock_us, unix_us };
        self.driver.queue.set_clock_us(clock_us);
    }

    /// `Client::try_send`.
    pub fn try_send(&self, request: &Request<'_>) -> Result<(), SendError> {
        self.driver.queue.try_send(request)
    }

    /// Whether the background thread was woken from its sleep.
    pub fn woken(&self) -> bool {
        rustix::io::read(self.driver.queue.wake_fd(), &mut [0u8; 8]).is_ok()
    }

    /// Asks every shard for its statistics.
    pub fn ask_stats(&mut self, token: u64) {
        self.driver.core.ask_stats(token);
    }

    /// Takes records from the queue; timers; batches to write.
    pub fn take(&mut self) {
        self.driver.take_records(self.now.clock_us - self.asleep_us, self.now);
        self.driver.core.advance(self.now);
    }

    /// Sockets that it wants: open what is new, close what is missing.
    pub fn wanted_links(&self) -> Vec<u64> {
        self.driver.core.wanted_links().collect()
    }

    /// The socket has begun to connect.
    pub fn connecting(&mut self, link: u64) {
        self.driver.core.connecting(link, self.now);
    }

    /// The socket is connected.
    pub fn connected(&mut self, link: u64) {
        self.driver.core.connected(link, self.now);
    }

    /// The socket has ended.
    pub fn ended(&mut self, link: u64, end: SocketEnd) {
        let why = match end {
            SocketEnd::Refused => Break::Connect("refused".into()),
            SocketEnd::Closed => Break::Closed,
            SocketEnd::Reset => Break::Broken("reset".into()),
        };
        self.driver.core.broken(link, why, self.now);
    }

    /// Bytes came.
    pub fn received(&mut self, link: u64, bytes: &[u8]) {
        self.driver.core.received(link, bytes, self.now);
    }

    /// What the socket is to write.
    pub fn unwritten(&self, link: u64) -> &[u8] {
        self.driver.core.unwritten(link)
    }

    /// The socket wrote so much.
    pub fn wrote(&mut self, link: u64, bytes: usize) {
        self.driver.core.wrote(link, bytes);
    }

    /// Encodes more, as far as there is room ahead of the sockets. Returns whether there was.
    pub fn fill(&mut self) -> bool {
        self.driver.core.fill(self.now)
    }

    /// Publishes the counters and goes to sleep. Returns for how long, µs, unless something comes.
    pub fn publish(&mut self) -> u64 {
        self.asleep_us = self.now.clock_us;
        self.driver.publish(self.now)
    }

    /// One consistent snapshot.
    pub fn counters(&self) -> Counters {
        self.driver.queue.counters()
    }

    /// Shards whose lanes are open, of how many.
    pub fn lanes(&self) -> (u32, u32) {
        let status = self.driver.queue.status();
        (status.lanes_open, status.servers.iter().map(|server| server.shards).sum())
    }

    /// Servers whose records go to them.
    pub fn takers(&self) -> usize {
        self.driver.queue.status().servers.iter().filter(|server| server.takes_records).count()
    }

    /// What went wrong last.
    pub fn last_error(&self) -> String {
        self.driver.queue.status().last_error
    }

    /// Who is listed.
    pub fn denylist(&self) -> &Denylist {
        &self.denylist
    }

    /// Tokens acknowledged since the last call.
    pub fn take_acked(&mut self) -> Vec<u64> {
        let mut acked = self.acked.lock().unwrap_or_else(PoisonError::into_inner);
        acked.drain(..).map(|record| record.token).collect()
    }

    /// Panics if an invariant of the core or a law is broken.
    pub fn invariants(&self) {
        self.driver.core.invariants();
        let counters = self.counters();
        assert!(counters.laws_hold(), "{counters:?}");
    }
}

impl std::fmt::Debug for SimulatedClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SimulatedClient").field("counters", &self.counters()).finish_non_exhaustive()
    }
}
