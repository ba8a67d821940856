//! A whole deployment in one process, from one seed: real shard loops, real clients, and everything between them hostile.
//!
//! ```text
//!   node: queue → core ⇄ sockets ─┐                        ┌─ control plane in miniature ─▶ messages ─┐
//!   naive client ⇄ socket ────────┼─▶ network ⇄ kernel ⇄ Driver → links → shard → arena ◀─────────────┘
//! ```
//!
//! Real are the client's queue, core and background turn, and the server's `Driver`, links, shard, arena and queues. Simulated
//! are sockets, io_uring, clocks, and accepting connections. One thread, one source of chance ([`fate`]), no clock and no
//! socket of the system but the wake-up of a queue, so a seed always does the same; the trace says so.
//!
//! A world runs some hundred steps in which faults strike, then all faults stop, and it must come to rest: everything settled,
//! every queue empty. Then the server drains, and nothing may be left. The oracles stand beside what they watch, in [`kernel`],
//! [`server`], [`node`], [`naive`] and [`books`].
//!
//! Not simulated: TLS, HTTP, the accept limits, several servers at a time, damage to bytes (TCP's and the CRC's business).

pub mod books;
pub mod fate;
pub mod kernel;
pub mod naive;
pub mod network;
pub mod node;
pub mod run;
pub mod server;

pub use run::{Failure, Report, Summary, many, once};

use books::Books;
use fate::{Fault, SharedFate};
use naive::Naive;
use network::SharedNetwork;
use node::Node;
use server::{Server, Totals};

/// Simulated time after which a world that has not come to rest never will, µs.
const REST_US: u64 = 600_000_000;
/// Steps after which it never will.
const REST_STEPS: u64 = 300_000;
/// Most servers one after the other.
const SERVERS_MAX: u32 = 6;

/// See the module.
#[derive(Debug)]
pub struct World {
    fate: SharedFate,
    network: SharedNetwork,
    books: Books,
    server: Option<Server>,
    /// A server starts again then.
    starts_us: u64,
    servers: u32,
    small: bool,
    nodes: Vec<Node>,
    naives: Vec<Naive>,
    totals: Totals,
    steps: u64,
}

impl World {
    /// The world of a seed.
    pub fn new(seed: u64) -> Self {
        let fate = SharedFate::new(seed);
        let network = SharedNetwork::new(fate.clone());
        let long = fate.once_in(8);
        let most = if long { 80 } else { 250 };
        let small = fate.once_in(8);
        let server = Server::start(&fate, &network, 0, small);
        let (node_count, naive_count) = (1 + fate.below(3), fate.below(3));
        let records = || 10 + fate.below(most) as u64;
        let nodes = (0..node_count).map(|owner| Node::new(&fate, &network, owner, records())).collect();
        let naives = (node_count..node_count + naive_count).map(|owner| Naive::new(&fate, &network, owner, records())).collect();
        let books = Books::new(long);
        Self {
            fate,
            network,
            books,
            server: Some(server),
            starts_us: 0,
            servers: 1,
            small,
            nodes,
            naives,
            totals: Totals::default(),
            steps: 0,
        }
    }

    /// Runs it to its end. Panics if an oracle says no.
    pub fn run(&mut self) {
        for _ in 0..150 + self.fate.below(250) {
            let pass_us = match self.fate.below(40) {
                0 => self.fate.below(1_000_000),
                1..8 => self.fate.below(20_000),
                _ => self.fate.below(600),
            };
            self.fate.get().now_us += pass_us as u64;
            self.misfortunes();
            self.offer();
            self.step();
        }
        self.come_to_rest();
        self.end();
    }

    /// What befalls the world as a whole.
    fn misfortunes(&mut self) {
        let fate = self.fate.clone();
        let now_us = fate.now_us();
        if fate.strikes(Fault::Reset) {
            let open = self.network.get().open();
            if let Some(connection) = open.get(fate.below(open.len())) {
                self.network.get().reset(*connection);
            }
        }
        if fate.strikes(Fault::StalledPeer) {
            let until_us = now_us + fate.below(15_000_000) as u64;
            let victim = fate.below(self.nodes.len() + self.naives.len());
            match self.nodes.get_mut(victim) {
                Some(node) => node.stalled_until_us = until_us,
                None => self.naives[victim - self.nodes.len()].stalled_until_us = until_us,
            }
        }
        if let Some(server) = &mut self.server {
            if fate.strikes(Fault::StarvedShard) {
                let shard = fate.below(server.units.len());
                server.units[shard].starved_until_us = now_us + fate.below(3_000_000) as u64;
            }
            if fate.once_in(20) {
                server.order(&self.books);
            }
        }
        if fate.strikes(Fault::WallClockJump) {
            let hours = fate.get().random.i64(-48..48);
            fate.get().wall_ahead_us += hours * 3_600_000_000 / 7;
        }
        if fate.strikes_rarely(Fault::Suspend, 32) {
            let slept_us = if fate.once_in(3) { 1_000_000_000 } else { fate.below(60_000_000) as u64 };
            fate.get().now_us += slept_us;
            self.books.forgets |= slept_us >= 800_000_000;
        }
        self.restart();
    }

    fn restart(&mut self) {
        let fate = self.fate.clone();
        if let Some(server) = &mut self.server {
            if self.servers < SERVERS_MAX && fate.strikes_rarely(Fault::ServerKilled, 16) {
                server.kill();
                self.stop();
            } else if self.servers < SERVERS_MAX && !server.draining && fate.strikes_rarely(Fault::ServerDrained, 16) {
                server.drain();
            }
        }
    }

    /// The server process is gone.
    fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.add_to(&mut self.totals);
            self.starts_us = self.fate.now_us() + self.fate.below(2_000_000) as u64;
        }
    }

    fn offer(&mut self) {
        for node in &mut self.nodes {
            if self.fate.once_in(6) {
                let count = 1 + self.fate.below(20) as u64;
                node.offer(count, &mut self.books);
            }
        }
    }

    /// Everybody gets a turn, in an order of chance.
    fn step(&mut self) {
        self.steps += 1;
        if self.server.is_none() && self.starts_us <= self.fate.now_us() {
            self.server = Some(Server::start(&self.fate, &self.network, self.servers, self.small));
            self.servers += 1;
        }
        let shards = match &mut self.server {
            Some(server) => {
                server.control();
                server.units.len()
            }
            None => 0,
        };
        let actors = shards + self.nodes.len() + self.naives.len();
        let first = self.fate.below(actors);
        for actor in (first..actors).chain(0..first) {
            // A server that drains accepts nobody.
            let accepting = self.server.as_mut().filter(|server| !server.draining);
            if let Some(naive) = actor.checked_sub(shards + self.nodes.len()) {
                self.naives[naive].turn(accepting, &mut self.books);
            } else if let Some(node) = actor.checked_sub(shards) {
                self.nodes[node].turn(accepting, &mut self.books);
            } else if let Some(server) = &mut self.server {
                server.turn(actor, &mut self.books);
            }
        }
        if self.server.as_ref().is_some_and(Server::is_drained) {
            self.stop();
        }
    }

    /// Faults stop: now everything must be settled, soon.
    fn come_to_rest(&mut self) {
        self.fate.get().hostile = false;
        let now_us = self.fate.now_us();
        self.nodes.iter_mut().for_each(|node| node.stalled_until_us = 0);
        self.naives.iter_mut().for_each(|naive| naive.stalled_until_us = 0);
        for unit in self.server.iter_mut().flat_map(|server| &mut server.units) {
            unit.starved_until_us = 0;
        }
        let until = (now_us + REST_US, self.steps + REST_STEPS);
        for node in &mut self.nodes {
            node.offer(u64::MAX, &mut self.books);
        }
        while !self.is_at_rest() {
            self.pass();
            self.step();
            if self.fate.now_us() > until.0 || self.steps > until.1 {
                let nodes: Vec<String> = self.nodes.iter().map(Node::describe).collect();
                let naives: Vec<String> = self.naives.iter().map(Naive::describe).collect();
                let server = self.server.as_mut().map(Server::describe);
                panic!("it never comes to rest: {nodes:#?} {naives:#?} {server:#?}");
            }
        }
    }

    fn is_at_rest(&self) -> bool {
        let server = self.server.as_ref().is_some_and(|server| !server.draining && server.is_quiet());
        server && self.nodes.iter().all(Node::is_settled) && self.naives.iter().all(Naive::is_settled)
    }

    /// Time passes until something happens.
    fn pass(&mut self) {
        let now_us = self.fate.now_us();
        let mut next_us = self.network.get().next_us();
        match &mut self.server {
            Some(server) => next_us = next_us.min(server.next_us()),
            None => next_us = next_us.min(self.starts_us),
        }
        let nodes = self.nodes.iter().map(Node::next_us);
        next_us = nodes.chain(self.naives.iter().map(Naive::next_us)).fold(next_us, u64::min);
        self.fate.get().now_us = next_us.clamp(now_us + 200, now_us + 1_000_000);
    }

    /// The end: books are compared, the server drains.
    fn end(&mut self) {
        // What is on its way arrives, what is closing closes.
        let until_us = self.fate.now_us() + 5_000_000;
        while self.fate.now_us() < until_us {
            self.pass();
            self.step();
        }
        let Some(server) = &mut self.server else { unreachable!("it came to rest") };
        server.check_rest();
        for node in &self.nodes {
            node.check_end(server, &self.books);
        }
        self.naives.iter().for_each(|naive| naive.check_end(&self.books));
        server.drain();
        let until_us = self.fate.now_us() + 15_000_000;
        while self.server.is_some() {
            self.pass();
            self.step();
            if self.fate.now_us() >= until_us {
                panic!("the server never drains: {:#?}", self.server.as_mut().map(Server::describe));
            }
        }
    }
}
