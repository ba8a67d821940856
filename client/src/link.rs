//! Sockets: one nonblocking TCP connection per lane. The only file that talks to the network.
//!
//! SIGPIPE is never raised: the standard library writes with MSG_NOSIGNAL. Sockets are closed on exec.

use crate::config::{Config, ServerAddress};
use socket2::{Domain, Protocol, SockAddr, Socket, TcpKeepalive, Type};
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::time::Duration;

/// Unacknowledged data ends the connection after so long, even while pings cannot be told from silence.
const USER_TIMEOUT: Duration = Duration::from_secs(40);
const KEEPALIVE: Duration = Duration::from_secs(30);

/// One socket.
pub(crate) struct Link {
    /// The number that the core knows it by, which tells its server.
    pub(crate) number: u64,
    pub(crate) stream: TcpStream,
    pub(crate) connecting: bool,
    pub(crate) address: SocketAddr,
}

impl Link {
    /// Starts to connect; the socket becomes writable when that is done, one way or the other.
    fn connect(number: u64, address: SocketAddr, config: &Config) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
        socket.set_tcp_nodelay(true)?;
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE))?;
        socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
        if let Some(name) = &config.congestion_control {
            let unknown =
                |error| io::Error::other(format!("congestion control {name:?} cannot be set: {error}; try modprobe tcp_{name}"));
            socket.set_tcp_congestion(name.as_bytes()).map_err(unknown)?;
        }
        match socket.connect(&SockAddr::from(address)) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {}
            Err(error) => return Err(error),
        }
        Ok(Self { number, stream: socket.into(), connecting: true, address })
    }

    /// Whether the connection came about.
    pub(crate) fn finish_connect(&mut self) -> io::Result<()> {
        if let Some(error) = self.stream.take_error()? {
            return Err(error);
        }
        // A connection to a free local port can meet itself: TCP allows it, nobody wants it.
        if self.stream.peer_addr()? == self.stream.local_addr()? {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        self.connecting = false;
        Ok(())
    }

    /// Reads what is there; `None`: nothing now.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        nonblocking(|| self.stream.read(buffer))
    }

    /// Writes what goes; `None`: nothing now.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<Option<usize>> {
        nonblocking(|| self.stream.write(bytes))
    }
}

fn nonblocking(mut operation: impl FnMut() -> io::Result<usize>) -> io::Result<Option<usize>> {
    loop {
        match operation() {
            Ok(bytes) => return Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        }
    }
}

/// A server's addresses, tried in turn by all its lanes together.
pub(crate) struct Addresses {
    server: ServerAddress,
    known: Vec<SocketAddr>,
    next: usize,
    /// None of them has worked since they were looked up.
    stale: bool,
}

impl Addresses {
    pub(crate) const fn new(server: ServerAddress) -> Self {
        Self { server, known: Vec::new(), next: 0, stale: false }
    }

    /// Starts to connect to the next address. A name is looked up when no address of it is known or none of them worked. The
    /// system's resolver has no time limit but its own: while it is slow, nothing is sent or received and records are queued,
    /// so give an address where that matters. If it fails, the addresses known before are tried again.
    pub(crate) fn connect(&mut self, number: u64, config: &Config) -> io::Result<Link> {
        if self.known.is_empty() || std::mem::take(&mut self.stale) {
            match look_up(&self.server) {
                Ok(found) => (self.known, self.next) = (found, 0),
                Err(error) if self.known.is_empty() => return Err(error),
                Err(error) => {
                    tracing::warn!(host = self.server.host, "cannot look the server up: {error}; trying what is known")
                }
            }
        }
        let none = || io::Error::new(io::ErrorKind::NotFound, format!("{} has no address", self.server.host));
        let address = *self.known.get(self.next).ok_or_else(none)?;
        let link = Link::connect(number, address, config);
        if link.is_err() {
            self.failed(address);
        }
        link
    }

    /// The address did not work: go on to the next; after the last, look them up again. Lanes that connected to it at the same
    /// time fail at the same time, so only the first of them counts.
    pub(crate) fn failed(&mut self, address: SocketAddr) {
        if self.known.get(self.next) == Some(&address) {
            self.next = (self.next + 1) % self.known.len();
            self.stale = self.next == 0;
        }
    }
}

fn look_up(server: &ServerAddress) -> io::Result<Vec<SocketAddr>> {
    let ServerAddress { host, port, .. } = server;
    match host.parse::<IpAddr>() {
        Ok(address) => Ok(vec![SocketAddr::new(address, *port)]),
        Err(_) => Ok((host.as_str(), *port).to_socket_addrs()?.collect()),
    }
}

#[cfg(test)]
impl Addresses {
    pub(crate) fn of(known: Vec<SocketAddr>) -> Self {
        let server = ServerAddress { text: "192.0.2.1:1".into(), host: "192.0.2.1".into(), port: 1 };
        Self { known, ..Self::new(server) }
    }
}
