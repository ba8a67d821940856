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
//! A quarter of the worlds have two servers at a time, which go and come each for itself, and between which the nodes divide
//! their records.
//!
//! In every other world the control plane also reloads, and reads verdicts and counters.
//!
//! Not simulated: TLS, HTTP, the accept limits, damage to bytes (TCP's and the CRC's business).

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
/// Simulated time within which a server drains when nothing fails, µs: far less than the deadline at which it cuts what is left.
const DRAIN_US: u64 = 3_000_000;
/// Most servers one after the other, at each place.
const SERVERS_MAX: u32 = 6;

/// Where one server stands at a time.
#[derive(Debug, Default)]
struct Place {
    server: Option<Server>,
    /// A server starts again then.
    starts_us: u64,
    started: u32,
}

/// See the module.
#[derive(Debug)]
pub struct World {
    fate: SharedFate,
    network: SharedNetwork,
    books: Books,
    places: Vec<Place>,
    /// How many servers there have been.
    servers: u32,
    small: bool,
    /// The control plane says and asks whatever it can, not only verdicts and queries.
    talkative: bool,
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
        let places = (0..1 + usize::from(seed % 4 == 2)).map(|_| Place::default()).collect();
        let mut world = Self {
            fate: fate.clone(),
            network: network.clone(),
            books: Books::new(long),
            places,
            servers: 0,
            small,
            // Not in every world: those of the pinned seeds stay as they were.
            talkative: seed.is_multiple_of(2),
            nodes: Vec::new(),
            naives: Vec::new(),
            totals: Totals::default(),
            steps: 0,
        };
        for place in 0..world.places.len() {
            world.start(place);
        }
        let (node_count, naive_count) = (1 + fate.below(3), fate.below(3));
        let records = || 10 + fate.below(most) as u64;
        let servers = world.places.len();
        let naives = node_count..node_count + naive_count;
        world.nodes = (0..node_count).map(|owner| Node::new(&fate, &network, owner, servers, records())).collect();
        world.naives = naives.map(|owner| Naive::new(&fate, &network, owner, records())).collect();
        world
    }

    fn start(&mut self, place: usize) {
        let shared = (self.places.len() > 1).then_some(place);
        let server = Server::start(&self.fate, &self.network, self.servers, shared, self.small);
        self.servers += 1;
        self.places[place].server = Some(server);
        self.places[place].started += 1;
    }

    fn servers(&self) -> impl Iterator<Item = &Server> {
        self.places.iter().filter_map(|place| place.server.as_ref())
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
        if fate.tries(Fault::Reset) {
            let open = self.network.get().open();
            if let Some(connection) = open.get(fate.below(open.len())) {
                self.network.get().reset(*connection);
                fate.happened(Fault::Reset);
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
        for server in self.places.iter_mut().filter_map(|place| place.server.as_mut()) {
            if fate.strikes(Fault::StarvedShard) {
                let shard = fate.below(server.units.len());
                server.units[shard].starved_until_us = now_us + fate.below(3_000_000) as u64;
            }
            if fate.once_in(20) {
                server.order(&self.books, self.talkative);
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
        if self.places.len() > 1 && fate.strikes(Fault::Partition) {
            let (node, place) = (fate.below(self.nodes.len()), fate.below(self.places.len()));
            self.nodes[node].cut_until_us[place] = now_us + fate.below(60_000_000) as u64;
        }
        for place in 0..self.places.len() {
            self.restart(place);
        }
    }

    fn restart(&mut self, place: usize) {
        let fate = self.fate.clone();
        let Place { server: Some(server), started, .. } = &mut self.places[place] else { return };
        let may_end = *started < SERVERS_MAX;
        if may_end && fate.strikes_rarely(Fault::ServerKilled, 16) {
            server.kill();
            self.stop(place);
        } else if may_end && !server.draining && fate.strikes_rarely(Fault::ServerDrained, 16) {
            server.drain();
        }
    }

    /// The server process is gone. Where there is another one, it may be away for longer.
    fn stop(&mut self, place: usize) {
        let longest_us = if self.places.len() > 1 { 40_000_000 } else { 2_000_000 };
        if let Some(mut server) = self.places[place].server.take() {
            server.add_to(&mut self.totals);
            self.places[place].starts_us = self.fate.now_us() + self.fate.below(longest_us) as u64;
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
        // The shards of all servers, one after the other.
        let mut units = Vec::new();
        for place in 0..self.places.len() {
            if self.places[place].server.is_none() && self.places[place].starts_us <= self.fate.now_us() {
                self.start(place);
            }
            if let Some(server) = &mut self.places[place].server {
                server.control();
                units.extend((0..server.units.len()).map(|shard| (place, shard)));
            }
        }
        let shards = units.len();
        let actors = shards + self.nodes.len() + self.naives.len();
        let first = self.fate.below(actors);
        for actor in (first..actors).chain(0..first) {
            if let Some((place, shard)) = units.get(actor) {
                if let Some(server) = &mut self.places[*place].server {
                    server.turn(*shard, &mut self.books);
                }
                continue;
            }
            // A server that drains accepts nobody.
            let accepting = self.places.iter_mut().map(|place| place.server.as_mut().filter(|server| !server.draining));
            let mut accepting: Vec<Option<&mut Server>> = accepting.collect();
            if let Some(naive) = actor.checked_sub(shards + self.nodes.len()) {
                let seat = self.naives[naive].seat(accepting.len());
                self.naives[naive].turn(accepting.swap_remove(seat), &mut self.books);
            } else {
                self.nodes[actor - shards].turn(&mut accepting, &mut self.books);
            }
        }
        for place in 0..self.places.len() {
            if self.places[place].server.as_ref().is_some_and(Server::is_drained) {
                self.stop(place);
            }
        }
    }

    /// Faults stop: now everything must be settled, soon.
    fn come_to_rest(&mut self) {
        self.fate.get().hostile = false;
        let now_us = self.fate.now_us();
        for node in &mut self.nodes {
            node.stalled_until_us = 0;
            node.cut_until_us.fill(0);
        }
        self.naives.iter_mut().for_each(|naive| naive.stalled_until_us = 0);
        for place in &mut self.places {
            for unit in place.server.iter_mut().flat_map(|server| &mut server.units) {
                unit.starved_until_us = 0;
            }
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
                let servers: Vec<_> = self.places.iter_mut().map(|place| place.server.as_mut().map(Server::describe)).collect();
                panic!("it never comes to rest: {nodes:#?} {naives:#?} {servers:#?}");
            }
        }
    }

    fn is_at_rest(&self) -> bool {
        let are_quiet = self.servers().all(|server| !server.draining && server.is_quiet());
        are_quiet
            && self.servers().count() == self.places.len()
            && self.nodes.iter().all(Node::is_settled)
            && self.naives.iter().all(Naive::is_settled)
    }

    /// Time passes until something happens.
    fn pass(&mut self) {
        let now_us = self.fate.now_us();
        let mut next_us = self.network.get().next_us();
        for place in &mut self.places {
            next_us = next_us.min(place.server.as_mut().map_or(place.starts_us, Server::next_us));
        }
        let nodes = self.nodes.iter().map(Node::next_us);
        next_us = nodes.chain(self.naives.iter().map(Naive::next_us)).fold(next_us, u64::min);
        self.fate.get().now_us = next_us.clamp(now_us + 200, now_us + 1_000_000);
    }

    /// The end: books are compared, the servers drain.
    fn end(&mut self) {
        // What is on its way arrives, what is closing closes.
        let until_us = self.fate.now_us() + 5_000_000;
        while self.fate.now_us() < until_us {
            self.pass();
            self.step();
        }
        self.places.iter_mut().filter_map(|place| place.server.as_mut()).for_each(Server::check_rest);
        let servers: Vec<&Server> = self.servers().collect();
        assert_eq!(servers.len(), self.places.len(), "it came to rest");
        self.nodes.iter().for_each(|node| node.check_end(&servers, &self.books));
        self.naives.iter().for_each(|naive| naive.check_end(&self.books));
        for place in 0..self.places.len() {
            self.end_one(place);
        }
    }

    fn end_one(&mut self, place: usize) {
        self.places[place].server.iter_mut().for_each(Server::drain);
        let until_us = self.fate.now_us() + DRAIN_US;
        while self.places[place].server.is_some() {
            self.pass();
            self.step();
            if self.fate.now_us() >= until_us {
                panic!("the server does not drain: {:#?}", self.places[place].server.as_mut().map(Server::describe));
            }
        }
    }
}
