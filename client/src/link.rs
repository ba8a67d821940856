//! Sockets: one nonblocking TCP connection per lane. The only file that talks to the network.
//!
//! SIGPIPE is never raised: the standard library writes with MSG_NOSIGNAL. Sockets are closed on exec.

use crate::config::{Config, ServerAddress};
use socket2::{Domain, Protocol, SockAddr, Socket, TcpKeepalive, Type};
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, sync_channel};
use std::time::Duration;

/// Unacknowledged data ends the connection after so long, even while pings cannot be told from silence.
const USER_TIMEOUT: Duration = Duration::from_secs(40);
const KEEPALIVE: Duration = Duration::from_secs(30);
/// How long a lookup of a name is waited for when it begins, with everything else: most are over by then. A slower one goes on by
/// itself.
const LOOKUP_WAIT: Duration = Duration::from_millis(100);

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
    /// A lookup that takes its time. There is one at most.
    lookup: Option<Receiver<Found>>,
}

/// What a lookup finds.
type Found = io::Result<Vec<SocketAddr>>;

impl Addresses {
    pub(crate) const fn new(server: ServerAddress) -> Self {
        Self { server, known: Vec::new(), next: 0, stale: false, lookup: None }
    }

    /// Starts to connect to the next address. A name is looked up when no address of it is known or none of them worked. If
    /// that fails or takes long, the addresses known before are tried again.
    pub(crate) fn connect(&mut self, number: u64, config: &Config) -> io::Result<Link> {
        if self.known.is_empty() || self.lookup.is_some() || std::mem::take(&mut self.stale) {
            match self.look_up() {
                Some(Ok(found)) => (self.known, self.next) = (found, 0),
                Some(Err(error)) if self.known.is_empty() => return Err(error),
                Some(Err(error)) => {
                    tracing::warn!(host = self.server.host, "cannot look the server up: {error}; trying what is known");
                }
                None if self.known.is_empty() => {
                    let text = format!("the lookup of {} takes long; is its name server reachable?", self.server.host);
                    return Err(io::Error::new(io::ErrorKind::TimedOut, text));
                }
                None => {}
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

    /// Looks the name up; `None` while that takes long. The system's resolver has no time limit but its own, so it is asked on a
    /// thread that nobody waits for: other servers must not wait for a name server.
    fn look_up(&mut self) -> Option<Found> {
        let (host, port) = (self.server.host.clone(), self.server.port);
        if let Ok(address) = host.parse::<IpAddr>() {
            return Some(Ok(vec![SocketAddr::new(address, port)]));
        }
        let is_new = self.lookup.is_none();
        if is_new {
            let (sender, receiver) = sync_channel(1);
            let ask = move || Ok((host.as_str(), port).to_socket_addrs()?.collect());
            // It starts with all signals blocked, as the thread has them that starts it.
            let thread = std::thread::Builder::new().name("pa-lookup".into());
            if let Err(error) = thread.spawn(move || sender.send(ask())) {
                return Some(Err(error));
            }
            self.lookup = Some(receiver);
        }
        let lookup = self.lookup.as_ref()?;
        // Every lane asks, again and again: if each waited, so would all other servers.
        let answer = if is_new {
            lookup.recv_timeout(LOOKUP_WAIT).map_err(|error| error == RecvTimeoutError::Timeout)
        } else {
            lookup.try_recv().map_err(|error| error == TryRecvError::Empty)
        };
        let is_under_way = matches!(answer, Err(true));
        if is_under_way {
            return None;
        }
        self.lookup = None;
        Some(answer.unwrap_or_else(|_| Err(io::Error::other("the lookup ended without an answer"))))
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

#[cfg(test)]
impl Addresses {
    pub(crate) fn of(known: Vec<SocketAddr>) -> Self {
        let server = ServerAddress { text: "192.0.2.1:1".into(), host: "192.0.2.1".into(), port: 1 };
        Self { known, ..Self::new(server) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(host: &str) -> Addresses {
        Addresses::new(ServerAddress { text: format!("{host}:1"), host: host.into(), port: 1 })
    }

    #[test]
    fn names_and_addresses_are_found() {
        assert_eq!(of("192.0.2.1").look_up().expect("at once").expect("an address").len(), 1);
        let mut local = of("localhost");
        let asked = || {
            local.look_up().or_else(|| {
                std::thread::sleep(LOOKUP_WAIT);
                None
            })
        };
        let found = std::iter::repeat_with(asked).take(600).flatten().next();
        let found = found.expect("within a minute").expect("it has an address");
        assert!(found.iter().all(|address| address.ip().is_loopback() && address.port() == 1), "{found:?}");
        assert!(local.lookup.is_none());
    }

    #[test]
    fn a_lookup_under_way_keeps_nobody_waiting() {
        use std::sync::atomic::{AtomicBool, Ordering};
        // Such a channel takes an answer only while somebody waits for one.
        let (sender, receiver) = sync_channel(0);
        let mut slow = Addresses { lookup: Some(receiver), ..of("name.example") };
        let config = crate::simulation::config();
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    let _ = sender.try_send(Ok(vec![SocketAddr::from(([127, 0, 0, 1], 1))]));
                    std::thread::yield_now();
                }
            });
            let attempts: Vec<_> = (1..20).map(|number| slow.connect(number, &config)).collect();
            is_over.store(true, Ordering::Relaxed);
            let errors = attempts.into_iter().filter_map(Result::err);
            assert_eq!(errors.filter(|error| error.kind() == io::ErrorKind::TimedOut).count(), 19);
        });
    }

    #[test]
    fn a_slow_lookup_is_not_waited_for_and_its_answer_is_taken_later() {
        let (sender, receiver) = sync_channel(1);
        let mut slow = Addresses { lookup: Some(receiver), ..of("name.example") };
        let config = crate::simulation::config();
        let error = slow.connect(1, &config).err().expect("nothing is known").to_string();
        assert!(error.contains("name.example") && error.contains("name server"), "{error}");
        // What was known is tried meanwhile, and the answer replaces it.
        let listeners = ["127.0.0.1:0", "127.0.0.2:0"].map(|address| std::net::TcpListener::bind(address).expect("a free port"));
        let [known, found] = listeners.each_ref().map(|listener| listener.local_addr().expect("bound"));
        slow.known = vec![known];
        assert_eq!(slow.connect(2, &config).expect("connecting").address, known);
        sender.send(Ok(vec![found])).expect("awaited");
        assert_eq!(slow.connect(3, &config).expect("connecting").address, found);
    }
}
