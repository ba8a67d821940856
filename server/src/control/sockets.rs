//! Sockets: how listeners are made, and the one place where descriptors pass to glommio and back.
//!
//! Not glommio's own bind: it sets SO_REUSEPORT, so that two servers would silently share a port, and panics on a bad host.

use crate::config::ConfigError;
use crate::config::values::{Address, Resolved};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::time::{Duration, Instant};

/// Connections that the kernel keeps ready while we are busy.
pub(crate) const BACKLOG: i32 = 1024;
/// How a port that somebody else has is told.
pub(crate) const IN_USE: &str = "Address already in use";
/// A port that is taken is asked for this long: of a server that was killed the kernel closes the listening sockets a little after the
/// process is gone (2 to 15 ms were measured), once it has taken the rings apart that wait for connections on them.
const PATIENCE: Duration = Duration::from_millis(500);
/// Time between two tries.
const RETRY: Duration = Duration::from_millis(5);
/// A peer that is silent this long is asked for a sign of life.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
/// Time between such questions.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// Unanswered questions until the connection counts as dead.
const KEEPALIVE_RETRIES: u32 = 3;
/// Sent bytes that are not acknowledged for this long end the connection.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(60);

/// A listening socket, and the address it really has. Waits a moment for a port that is taken.
pub fn listen(address: &Address) -> Result<(TcpListener, SocketAddr), ConfigError> {
    let Resolved { address: wanted, others } = address.resolve()?;
    if !others.is_empty() {
        let others: Vec<String> = others.iter().map(ToString::to_string).collect();
        tracing::warn!(
            host = address.host,
            listening = %wanted,
            not_listening = others.join(" "),
            "the host to listen on is a name with several addresses, and one is taken, IPv4 before IPv6: who comes to another is \
             refused. Give an address instead of the name, or [::] for all addresses of both kinds"
        );
    }
    let begun = Instant::now();
    loop {
        match open(wanted) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && begun.elapsed() < PATIENCE => std::thread::sleep(RETRY),
            opened => return opened.map_err(|error| explain(&error, wanted)),
        }
    }
}

fn open(address: SocketAddr) -> std::io::Result<(TcpListener, SocketAddr)> {
    let domain = if address.is_ipv6() { Domain::IPV6 } else { Domain::IPV4 };
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
    // A restarted server takes its port at once; a second one beside a running one still fails.
    socket.set_reuse_address(true)?;
    if let SocketAddr::V6(v6) = address {
        // [::] takes IPv4 as well, whatever net.ipv6.bindv6only says.
        socket.set_only_v6(!v6.ip().is_unspecified())?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    let listener = TcpListener::from(socket);
    let bound = listener.local_addr()?;
    Ok((listener, bound))
}

fn explain(error: &std::io::Error, address: SocketAddr) -> ConfigError {
    let cause = match error.kind() {
        ErrorKind::AddrInUse => IN_USE.to_owned(),
        ErrorKind::AddrNotAvailable => "Cannot assign requested address".to_owned(),
        ErrorKind::PermissionDenied => "Permission denied".to_owned(),
        _ => error.to_string(),
    };
    let remedy = match error.kind() {
        ErrorKind::AddrInUse => format!(
            "another process listens there (`ss -ltnp 'sport = :{}'` names it): stop it, or give another --listen or --status",
            address.port()
        ),
        ErrorKind::AddrNotAvailable => format!(
            "this machine does not have the address {} (`ip address` lists what it has): give one of those, or 0.0.0.0 or [::]",
            address.ip()
        ),
        ErrorKind::PermissionDenied => {
            "ports below 1024 need CAP_NET_BIND_SERVICE: give another port or the capability".to_owned()
        }
        _ => "give another --listen (HOST, PORT) or --status".to_owned(),
    };
    ConfigError::start(format!("failed to bind: {cause} ({address}); {remedy}"))
}

/// What every connection of a filtering node gets before its shard has it.
pub(super) fn prepare_for_shard(socket: &OwnedFd) -> std::io::Result<()> {
    let socket = SockRef::from(socket);
    // An io_uring receive on a non-blocking socket fails instead of waiting.
    socket.set_nonblocking(false)?;
    socket.set_tcp_nodelay(true)?;
    let keepalive =
        TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL).with_retries(KEEPALIVE_RETRIES);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX))
}

/// Gives a socket to glommio, whose types can only be made from a raw descriptor.
#[expect(unsafe_code, reason = "the one-line hand-over of a socket to glommio")]
pub(super) fn into_glommio<T: FromRawFd>(socket: impl Into<OwnedFd>) -> T {
    let descriptor = socket.into().into_raw_fd();
    // SAFETY: the descriptor was owned and open, `into_raw_fd` gave it up, so the new value is its only owner.
    unsafe { T::from_raw_fd(descriptor) }
}

/// A second descriptor of a socket that glommio holds, to take it back: glommio's streams cannot be unwrapped.
#[expect(unsafe_code, reason = "the one-line hand-over of a socket from glommio")]
pub(super) fn duplicate(stream: &impl AsRawFd) -> std::io::Result<OwnedFd> {
    // SAFETY: `stream` owns the descriptor and is borrowed while the borrowed descriptor lives, which is this line.
    unsafe { BorrowedFd::borrow_raw(stream.as_raw_fd()) }.try_clone_to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::values::address;

    fn parsed(text: &str) -> Address {
        address(text).expect("an address")
    }

    #[test]
    fn a_port_that_gets_free_a_little_later_is_taken() {
        let (first, bound) = listen(&parsed("127.0.0.1:0")).expect("a free port");
        let ends = std::thread::spawn(move || {
            std::thread::sleep(PATIENCE / 10);
            drop(first);
        });
        let (_second, again) = listen(&parsed(&bound.to_string())).expect("the port, once it is free");
        assert_eq!(again, bound);
        ends.join().expect("no panic");
    }

    #[test]
    fn a_second_server_on_the_port_fails_with_the_named_error() {
        let (_first, bound) = listen(&parsed("127.0.0.1:0")).expect("a free port");
        let error = listen(&parsed(&bound.to_string())).expect_err("taken");
        let start = format!("failed to bind: Address already in use ({bound}); ");
        assert!(error.text.starts_with(&start), "{error}");
    }

    #[test]
    fn foreign_addresses_say_what_operators_look_for() {
        // An address of the documentation range, which this machine does not have.
        let error = listen(&parsed("203.0.113.9:3313")).expect_err("not ours");
        assert!(error.text.starts_with("failed to bind: Cannot assign requested address (203.0.113.9:3313); "), "{error}");
    }

    #[test]
    fn the_unspecified_ipv6_address_takes_ipv4_too() {
        let Ok((_listener, bound)) = listen(&parsed("[::]:0")) else {
            eprintln!("SKIPPED: no IPv6 here");
            return;
        };
        std::net::TcpStream::connect(("127.0.0.1", bound.port())).expect("dual stack");
        std::net::TcpStream::connect(("::1", bound.port())).expect("dual stack");
    }
}
