//! The simulated network: connections of two pipes each, with bytes that take their time, ends and resets.
//!
//! TCP as both sides see it: bytes come in order or not at all, a close with unread bytes is a reset, and a reset may
//! swallow what was on its way.

use super::fate::{Fault, SharedFate};
use std::cell::{RefCell, RefMut};
use std::collections::{HashMap, VecDeque};
use std::os::fd::RawFd;
use std::rc::Rc;

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From the client to the server.
    Up,
    /// From the server to the client.
    Down,
}

/// What a reader finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// So many bytes can be read.
    Bytes(usize),
    /// Nothing yet.
    Nothing,
    /// The other side has said all it had to.
    End,
    /// The connection is reset.
    Reset,
}

/// The connection takes no bytes any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

#[derive(Debug)]
struct Pipe {
    /// Bytes on their way, with the time of their arrival.
    air: VecDeque<(u64, Vec<u8>)>,
    air_bytes: usize,
    arrived: VecDeque<u8>,
    capacity: usize,
    /// The writer has said all, which is known at this time.
    end_us: Option<u64>,
    /// The reader takes no more.
    reader_gone: bool,
    read_bytes: u64,
}

/// One connection.
#[derive(Debug)]
struct Connection {
    up: Pipe,
    down: Pipe,
    reset: bool,
    server_open: bool,
    client_open: bool,
    /// Bytes of the Hello, which the control plane read.
    hello_bytes: u64,
}

/// All connections of a world.
#[derive(Debug)]
pub struct Network {
    fate: SharedFate,
    connections: Vec<Connection>,
    /// Which connection a socket that is handed to a shard stands for.
    sockets: HashMap<RawFd, usize>,
}

/// Shared by the kernels and the clients of one world.
#[derive(Clone, Debug)]
pub struct SharedNetwork(Rc<RefCell<Network>>);

impl SharedNetwork {
    /// Without connections.
    pub fn new(fate: SharedFate) -> Self {
        Self(Rc::new(RefCell::new(Network { fate, connections: Vec::new(), sockets: HashMap::new() })))
    }

    /// The network itself.
    pub fn get(&self) -> RefMut<'_, Network> {
        self.0.borrow_mut()
    }
}

impl Pipe {
    fn new(capacity: usize) -> Self {
        Self {
            air: VecDeque::new(),
            air_bytes: 0,
            arrived: VecDeque::new(),
            capacity,
            end_us: None,
            reader_gone: false,
            read_bytes: 0,
        }
    }

    fn land(&mut self, now_us: u64) {
        while let Some((_, bytes)) = self.air.pop_front_if(|(at_us, _)| *at_us <= now_us) {
            self.air_bytes -= bytes.len();
            self.arrived.extend(bytes);
        }
    }

    fn space(&self) -> usize {
        self.capacity.saturating_sub(self.air_bytes + self.arrived.len())
    }
}

impl Network {
    /// A new connection.
    pub fn connect(&mut self) -> usize {
        let sizes = [600, 4_000, 20_000, 100_000, 300_000];
        let (up, down) = (sizes[self.fate.below(5)], sizes[self.fate.below(5)]);
        self.connections.push(Connection {
            up: Pipe::new(up),
            down: Pipe::new(down),
            reset: false,
            server_open: true,
            client_open: true,
            hello_bytes: 0,
        });
        self.connections.len() - 1
    }

    /// From now on this socket stands for the connection, and a shard reads from it.
    pub fn bind(&mut self, socket: RawFd, connection: usize) {
        self.sockets.insert(socket, connection);
        self.connections[connection].hello_bytes = self.connections[connection].up.read_bytes;
    }

    /// Where in the stream a shard began to read.
    pub fn handed_over_at(&self, connection: usize) -> u64 {
        self.connections[connection].hello_bytes
    }

    /// Whether a write would do something, if only fail.
    pub fn takes(&self, connection: usize, way: Way) -> bool {
        let of = &self.connections[connection];
        let pipe = if way == Way::Up { &of.up } else { &of.down };
        of.reset || pipe.reader_gone || pipe.end_us.is_some() || pipe.space() > 0
    }

    /// What a socket stands for.
    pub fn of_socket(&self, socket: RawFd) -> Option<usize> {
        self.sockets.get(&socket).copied()
    }

    /// Writes what fits. Returns how much.
    pub fn write(&mut self, connection: usize, way: Way, bytes: &[u8]) -> Result<usize, Broken> {
        let fate = self.fate.clone();
        let slow = fate.tries(Fault::SlowNetwork);
        let delay_us = fate.below(if slow { 300_000 } else { 300 }) as u64;
        let reset = self.connections[connection].reset;
        let pipe = self.pipe(connection, way);
        if reset || pipe.reader_gone || pipe.end_us.is_some() {
            return Err(Broken);
        }
        let count = bytes.len().min(pipe.space());
        if count > 0 {
            let at_us = pipe.air.back().map_or(0, |(at_us, _)| *at_us).max(fate.now_us() + delay_us);
            pipe.air.push_back((at_us, bytes[..count].to_vec()));
            pipe.air_bytes += count;
            if slow {
                fate.happened(Fault::SlowNetwork);
            }
        }
        if count < bytes.len() {
            fate.happened(Fault::SocketFull);
        }
        Ok(count)
    }

    /// What a reader would find.
    pub fn look(&mut self, connection: usize, way: Way) -> Found {
        let now_us = self.fate.now_us();
        let reset = self.connections[connection].reset;
        let pipe = self.pipe(connection, way);
        pipe.land(now_us);
        match pipe.arrived.len() {
            0 if reset => Found::Reset,
            0 if pipe.reader_gone => Found::End,
            0 if pipe.air.is_empty() && pipe.end_us.is_some_and(|end_us| end_us <= now_us) => Found::End,
            0 => Found::Nothing,
            bytes => Found::Bytes(bytes),
        }
    }

    /// Reads so many bytes, which must be there. Returns also their position in the stream.
    pub fn read(&mut self, connection: usize, way: Way, count: usize) -> (u64, Vec<u8>) {
        let pipe = self.pipe(connection, way);
        let at = pipe.read_bytes;
        pipe.read_bytes += count as u64;
        (at, pipe.arrived.drain(..count).collect())
    }

    /// The writer has nothing more to say. Returns whether that is new, on a connection that stands.
    pub fn end(&mut self, connection: usize, way: Way) -> bool {
        let (now_us, reset) = (self.fate.now_us(), self.connections[connection].reset);
        let pipe = self.pipe(connection, way);
        let is_new = pipe.end_us.is_none() && !pipe.reader_gone && !reset;
        pipe.end_us.get_or_insert(now_us);
        is_new
    }

    /// `shutdown` of both halves by the server: nothing more comes in or goes out. What came can still be read.
    pub fn shut_server(&mut self, connection: usize) {
        self.end(connection, Way::Down);
        let up = self.pipe(connection, Way::Up);
        up.reader_gone = true;
        (up.air_bytes, up.air) = (0, VecDeque::new());
    }

    /// The server closes the socket.
    pub fn close_server(&mut self, connection: usize) {
        if std::mem::take(&mut self.connections[connection].server_open) {
            self.close(connection, Way::Up);
        }
    }

    /// The client closes the socket.
    pub fn close_client(&mut self, connection: usize) {
        if std::mem::take(&mut self.connections[connection].client_open) {
            self.close(connection, Way::Down);
        }
    }

    /// Closes the socket that reads from this way: unread bytes make it a reset.
    fn close(&mut self, connection: usize, reads: Way) {
        let pipe = self.pipe(connection, reads);
        pipe.reader_gone = true;
        let unread = pipe.air_bytes + pipe.arrived.len() > 0;
        (pipe.air_bytes, pipe.air, pipe.arrived) = (0, VecDeque::new(), VecDeque::new());
        if unread {
            self.reset(connection);
        } else {
            self.end(connection, if reads == Way::Up { Way::Down } else { Way::Up });
        }
    }

    /// Resets the connection: what is on its way is lost, what arrived perhaps.
    pub fn reset(&mut self, connection: usize) {
        self.connections[connection].reset = true;
        for way in [Way::Up, Way::Down] {
            let lost = self.fate.once_in(2);
            let pipe = self.pipe(connection, way);
            (pipe.air_bytes, pipe.air) = (0, VecDeque::new());
            if lost {
                pipe.arrived.clear();
            }
        }
    }

    /// Whether both sides hold the connection.
    pub fn is_open(&self, connection: usize) -> bool {
        let connection = &self.connections[connection];
        connection.server_open && connection.client_open && !connection.reset
    }

    /// Connections that both sides hold.
    pub fn open(&self) -> Vec<usize> {
        (0..self.connections.len()).filter(|connection| self.is_open(*connection)).collect()
    }

    /// When the next bytes arrive, µs.
    pub fn next_us(&self) -> u64 {
        let pipes = self.connections.iter().flat_map(|connection| [&connection.up, &connection.down]);
        pipes.filter_map(|pipe| pipe.air.front()).map(|(at_us, _)| *at_us).min().unwrap_or(u64::MAX)
    }

    fn pipe(&mut self, connection: usize, way: Way) -> &mut Pipe {
        let connection = &mut self.connections[connection];
        match way {
            Way::Up => &mut connection.up,
            Way::Down => &mut connection.down,
        }
    }
}
