//! A filtering node: the real client, with its queue, core and background turn, on simulated sockets.

use super::books::Books;
use super::fate::{Fault, SharedFate};
use super::network::{Found, SharedNetwork, Way};
use super::server::Server;
use postanalytics_client::SendError;
use postanalytics_client::simulated::{Settings, SimulatedClient, SocketEnd, server_of};

/// Servers remember a session for at least so long.
const FORGET_US: u64 = 900_000_000;
/// Bytes read at once, and how often in one turn.
const READ_BYTES: usize = 64 * 1024;
const READS_PER_TURN: usize = 8;

#[derive(Debug)]
struct Socket {
    link: u64,
    /// `None` until it is connected, or refused, which happens at this time.
    connection: Option<usize>,
    connects_us: u64,
    /// The number of the server that it is connected to.
    server: u32,
}

/// See the module.
#[derive(Debug)]
pub struct Node {
    fate: SharedFate,
    network: SharedNetwork,
    owner: usize,
    client: SimulatedClient,
    born_us: u64,
    sockets: Vec<Socket>,
    /// Acknowledged records, and the server that said so.
    acked: Vec<(u32, u64)>,
    /// It neither reads nor writes until then.
    pub stalled_until_us: u64,
    /// It is cut off from each server until then.
    pub cut_until_us: Vec<u64>,
    failovers: u64,
    awake_us: u64,
    /// Records that it is still to send.
    pub records_left: u64,
    refused: u64,
    /// Records are given up before a stall or a break is over.
    impatient: bool,
}

impl Node {
    /// A node whose records belong to `owner` in the books.
    pub fn new(fate: &SharedFate, network: &SharedNetwork, owner: usize, servers: usize, records: u64) -> Self {
        let settings = Settings {
            node: [owner as u8 + 1; 16],
            seed: fate.number(),
            queue_bytes: [3_000, 30_000, 3_000_000, 100_000_000][fate.below(4)],
            batch_bytes: [1_000, 4_000, 60_000][fate.below(3)],
            record_time_limit_us: [900_000_000, 86_400_000_000, 20_000_000][fate.below(3)],
            servers,
        };
        let impatient = settings.record_time_limit_us < FORGET_US;
        Self {
            impatient,
            fate: fate.clone(),
            network: network.clone(),
            owner,
            client: SimulatedClient::new(&settings),
            born_us: fate.now_us(),
            sockets: Vec::new(),
            acked: Vec::new(),
            stalled_until_us: 0,
            cut_until_us: vec![0; servers],
            failovers: 0,
            awake_us: 0,
            records_left: records,
            refused: 0,
        }
    }

    /// The site offers some records.
    pub fn offer(&mut self, count: u64, books: &mut Books) {
        self.set_time();
        for _ in 0..count.min(self.records_left) {
            self.records_left -= 1;
            let content = books.next(self.owner);
            match self.client.try_send(&content.request()) {
                Ok(()) => {}
                Err(SendError::QueueFull { .. }) => {
                    self.refused += 1;
                    self.fate.happened(Fault::ClientQueueFull);
                }
                Err(error) => panic!("a record is refused: {error}"),
            }
        }
        if self.fate.once_in(40) {
            self.client.ask_stats(self.fate.now_us());
        }
        self.client.invariants();
    }

    /// A turn of the background thread, if something wakes it.
    pub fn turn(&mut self, servers: &mut [Option<&mut Server>], books: &mut Books) {
        let now_us = self.fate.now_us();
        if self.stalled_until_us > now_us || !(self.awake_us <= now_us || self.client.woken() || self.is_ready()) {
            return;
        }
        self.fate.note(0x100 + self.owner as u64, self.sockets.len() as u64);
        self.set_time();
        self.serve(servers);
        self.client.take();
        self.open_and_close();
        self.write();
        self.awake_us = now_us.saturating_add(self.client.publish());
        self.check(books);
    }

    /// When it wakes if nothing comes, µs.
    pub fn next_us(&self) -> u64 {
        let connecting = self.sockets.iter().filter(|socket| socket.connection.is_none());
        let connects = connecting.map(|socket| socket.connects_us.max(self.cut_until_us[server_of(socket.link)])).min();
        self.awake_us.min(connects.unwrap_or(u64::MAX)).max(self.stalled_until_us)
    }

    fn is_cut(&self, link: u64) -> bool {
        self.cut_until_us[server_of(link)] > self.fate.now_us()
    }

    /// Asserts what must hold at all times.
    fn check(&mut self, books: &mut Books) {
        self.client.invariants();
        for (server, number) in self.acked.drain(..) {
            books.acked(self.owner, server, number);
        }
        assert!(self.client.take_acked().is_empty(), "records are acknowledged by no server");
        let failovers = self.client.counters().failovers;
        for _ in std::mem::replace(&mut self.failovers, failovers)..failovers {
            self.fate.happened(Fault::Failover);
        }
        let error = self.client.last_error();
        for nonsense in ["no frame", "frame of session", "which may not come now", "never sent to it", "not to"] {
            assert!(!error.contains(nonsense), "a server that keeps the rules is accused: {error}");
        }
        assert!(!error.contains("refused: ") || is_expected(&error), "{error}");
    }

    /// Whether all records are settled.
    pub fn is_settled(&self) -> bool {
        let counters = self.client.counters();
        self.records_left == 0 && counters.queued + counters.in_flight == 0
    }

    /// Asserts what must hold once all is settled. What a server stored that is gone is gone with it: records that were to be
    /// sent again to the next one and were given up before count as lost.
    pub fn check_end(&self, servers: &[&Server], books: &Books) {
        let counters = self.client.counters();
        let numbers: Vec<u32> = servers.iter().map(|server| server.number).collect();
        let sums = books.sums(self.owner, &numbers);
        assert_eq!((counters.acked, counters.refused_full), (sums.acked, self.refused), "{counters:?}");
        assert!(sums.here <= sums.acked + counters.in_doubt, "stored ≤ acked + in doubt: {counters:?}, {sums:?}");
        assert!(
            sums.copies_here <= sums.acked + counters.in_doubt + counters.maybe_stored_elsewhere,
            "stored ≤ acked + in doubt + sent again elsewhere: {counters:?}, {sums:?}"
        );
        assert!(servers.len() > 1 || counters.failovers == 0, "{counters:?}");
        let limited = counters.lost + counters.in_doubt;
        assert!(
            self.impatient || books.forgets || limited == 0,
            "records are lost without need: {counters:?}, {}",
            self.client.last_error()
        );
        let (open, of) = self.client.lanes();
        if open == of && of > 0 {
            let all = || servers.iter().flat_map(|server| server.verdicts());
            for (address, _) in all() {
                let listed = all().any(|(other, listed)| other == address && *listed);
                assert_eq!(self.client.denylist().contains(*address), listed, "the verdict on {address}");
            }
        }
    }

    /// How it stands, for a failure.
    pub fn describe(&self) -> String {
        format!("{:?}, sockets {:?}, {}", self.client.counters(), self.sockets, self.client.last_error())
    }

    fn set_time(&mut self) {
        self.client.set_time(self.fate.now_us() - self.born_us, self.fate.wall_us());
    }

    fn is_ready(&self) -> bool {
        let now_us = self.fate.now_us();
        self.sockets.iter().filter(|socket| !self.is_cut(socket.link)).any(|socket| match socket.connection {
            None => socket.connects_us <= now_us,
            Some(connection) => {
                let mut network = self.network.get();
                network.look(connection, Way::Down) != Found::Nothing
                    || !self.client.unwritten(socket.link).is_empty() && network.takes(connection, Way::Up)
            }
        })
    }

    fn serve(&mut self, servers: &mut [Option<&mut Server>]) {
        for at in 0..self.sockets.len() {
            let Socket { link, connection, connects_us, server } = self.sockets[at];
            if self.is_cut(link) {
                continue;
            }
            if let Some(connection) = connection {
                self.read(link, connection, server);
            } else if connects_us <= self.fate.now_us() {
                match servers[server_of(link)].as_mut().filter(|_| !self.fate.strikes(Fault::Refused)) {
                    None => self.client.ended(link, SocketEnd::Refused),
                    Some(server) => {
                        let connection = self.network.get().connect();
                        server.accept(connection);
                        (self.sockets[at].connection, self.sockets[at].server) = (Some(connection), server.number);
                        self.client.connected(link);
                    }
                }
            }
        }
    }

    fn read(&mut self, link: u64, connection: usize, server: u32) {
        for _ in 0..READS_PER_TURN {
            let found = self.network.get().look(connection, Way::Down);
            match found {
                Found::Nothing => return,
                Found::End => return self.client.ended(link, SocketEnd::Closed),
                Found::Reset => return self.client.ended(link, SocketEnd::Reset),
                Found::Bytes(available) => {
                    let mut count = available.min(READ_BYTES);
                    if self.fate.is_hostile() && self.fate.once_in(4) {
                        count = 1 + self.fate.below(count);
                    }
                    let (_, bytes) = self.network.get().read(connection, Way::Down, count.min(available));
                    self.client.received(link, &bytes);
                    self.acked.extend(self.client.take_acked().into_iter().map(|number| (server, number)));
                }
            }
        }
    }

    fn open_and_close(&mut self) {
        let wanted = self.client.wanted_links();
        for socket in self.sockets.extract_if(.., |socket| !wanted.contains(&socket.link)) {
            if let Some(connection) = socket.connection {
                self.network.get().close_client(connection);
            }
        }
        for link in wanted {
            if self.sockets.iter().all(|socket| socket.link != link) {
                let connects_us = self.fate.now_us() + self.fate.below(2_000) as u64;
                self.sockets.push(Socket { link, connection: None, connects_us, server: 0 });
                self.client.connecting(link);
            }
        }
    }

    fn write(&mut self) {
        for _ in 0..16 {
            for at in 0..self.sockets.len() {
                let Socket { link, connection: Some(connection), server, .. } = self.sockets[at] else { continue };
                if self.is_cut(link) {
                    continue;
                }
                while !self.client.unwritten(link).is_empty() {
                    let written = self.network.get().write(connection, Way::Up, self.client.unwritten(link));
                    match written {
                        Ok(0) => break,
                        Ok(count) => self.client.wrote(link, count),
                        Err(_) => {
                            self.read(link, connection, server);
                            self.client.ended(link, SocketEnd::Reset);
                        }
                    }
                }
            }
            if !self.client.fill() {
                return;
            }
        }
    }
}

/// Whether a server that keeps the rules may say so to a client that keeps them.
fn is_expected(error: &str) -> bool {
    let expected =
        ["replaced", "overloaded", "no_such_shard", "frame_timeout", "slab_recycled", "handshake_timeout", "peer_too_slow"];
    expected.iter().any(|name| error.contains(name))
}
