//! Taking connections of filtering nodes: accept → allowlist → limits → Hello → hand-over to a shard.
//!
//! One task accepts; a fixed number of tasks shake hands, for every glommio task ever spawned costs a little memory for good.
//! No accept or read is ever cancelled (glommio would lose the descriptor or the bytes): accepting ends by shutting the
//! listening socket down, reading by its timeout. After the hand-over nothing here touches the socket.

use super::access::{Decision, line_to_add};
use super::handshake::{self, Outcome, Refusal};
use super::sockets::{duplicate, prepare_for_shard};
use super::state::{Refused, State, add_one, unix_us};
use crate::shard::messages::{ConnectionTicket, Handover, ToShard};
use futures_lite::{AsyncReadExt, AsyncWriteExt};
use glommio::channels::local_channel::{self, LocalReceiver, LocalSender};
use glommio::net::{AcceptedTcpStream, TcpListener, TcpStream};
use glommio::timer::Timer;
use postanalytics_protocol::ErrorCode;
use postanalytics_protocol::frames::{ANY_SHARD, ErrorFrame, Hello};
use std::net::{IpAddr, Shutdown, SocketAddr};
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Connections whose Hello is waited for at the same time.
pub(super) const HANDSHAKES_MAX: usize = 256;
/// Of these, those of one address: what one peer may hold without a word must leave room for the others.
const HANDSHAKES_PER_ADDRESS_MAX: usize = 64;
/// Accepted connections that may wait for that.
pub(super) const WAITING_MAX: usize = 1024;
/// How long a full queue to a shard is waited for before the client is sent away.
const HANDOVER_PATIENCE: Duration = Duration::from_secs(1);
/// How long a refused peer has to read why.
const FAREWELL: Duration = Duration::from_secs(1);
/// Bytes that a refused peer may still send meanwhile.
const FAREWELL_BYTES_MAX: usize = 64 << 10;
/// Pause after an accept that failed for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Pause after an accept that failed otherwise, mostly because its peer gave up.
const ACCEPT_PAUSE_SHORT: Duration = Duration::from_millis(1);

/// An accepted connection whose Hello is to be read.
#[derive(Debug)]
pub(super) struct Guest {
    stream: TcpStream,
    peer: SocketAddr,
    deadline: Instant,
}

/// The queue from the acceptor to the handshakes.
pub(super) fn guests() -> (LocalSender<Guest>, LocalReceiver<Guest>) {
    local_channel::new_bounded(WAITING_MAX)
}

/// Accepts until the server stops.
pub(super) async fn accept_all(state: Rc<State>, listener: TcpListener, guests: LocalSender<Guest>) {
    let mut spare = spare_descriptor();
    let mut last_told: Option<Instant> = None;
    while !state.stopping.get() {
        match listener.shared_accept().await {
            Ok(accepted) => take(&state, accepted.bind_to_executor(), &guests),
            Err(_) if state.stopping.get() => return,
            Err(error) => {
                let error = std::io::Error::from(error);
                add_one(&state.counters.accept_errors);
                if !is_out_of_descriptors(&error) {
                    // The peer gave up before we came to it, or memory is short: nothing that an exit would mend.
                    tracing::debug!(%error, "accept failed");
                    Timer::new(ACCEPT_PAUSE_SHORT).await;
                    continue;
                }
                if last_told.is_none_or(|at| at.elapsed() >= Duration::from_secs(1)) {
                    last_told = Some(Instant::now());
                    tracing::error!(
                        %error, open_files_max = rustix::process::getrlimit(rustix::process::Resource::Nofile).current,
                        "connections are closed unserved: too many open files; raise `ulimit -n` (LimitNOFILE= in a systemd unit)"
                    );
                }
                // The spare descriptor makes room to accept one connection and close it; left alone it would wait in the
                // backlog and its peer would believe that all is well. If descriptors are to be had again by the time one
                // comes, it is served.
                drop(spare.take());
                match listener.shared_accept().await.map(AcceptedTcpStream::bind_to_executor) {
                    Ok(stream) => {
                        spare = spare_descriptor();
                        if spare.is_some() {
                            take(&state, stream, &guests);
                        } else {
                            add_one(state.counters.refused(Refused::TooManyOpenFiles));
                            drop(stream);
                        }
                    }
                    Err(_) => drop(Timer::new(ACCEPT_PAUSE).await),
                }
                spare = spare.or_else(spare_descriptor);
            }
        }
    }
}

fn is_out_of_descriptors(error: &std::io::Error) -> bool {
    let code = error.raw_os_error().map(rustix::io::Errno::from_raw_os_error);
    matches!(code, Some(rustix::io::Errno::MFILE | rustix::io::Errno::NFILE))
}

fn spare_descriptor() -> Option<OwnedFd> {
    std::fs::File::open("/dev/null").ok().map(OwnedFd::from)
}

/// Lets a connection in, or not.
fn take(state: &State, stream: TcpStream, guests: &LocalSender<Guest>) {
    add_one(&state.counters.accepted);
    // A peer that is already gone has no address.
    let Ok(peer) = stream.peer_addr() else { return add_one(&state.counters.gone_before_hello) };
    let address = peer.ip().to_canonical();
    let decision = state.gate.borrow_mut().decide(address);
    if decision != Decision::LetIn {
        add_one(state.counters.refused(Refused::NotAllowed));
        return tell_refused(address, decision);
    }
    let load = state.load(address);
    let config = state.config();
    let (total_max, address_max) = (config.connections_max, config.connections_per_address_max);
    if load.total >= total_max as usize {
        let text = format!("{total_max} connections are open, the limit (--connections-max): come back later");
        return turn_away(state, &stream, Refused::ConnectionsMax, text);
    }
    if load.of_address >= address_max as usize {
        let text = format!("{address_max} connections of {address} are open, the limit (--connections-per-address-max)");
        return turn_away(state, &stream, Refused::ConnectionsPerAddressMax, text);
    }
    if state.handshakes_of(address) >= HANDSHAKES_PER_ADDRESS_MAX {
        let text = format!(
            "{HANDSHAKES_PER_ADDRESS_MAX} connections of {address} have not said Hello yet, the limit: \
             say Hello, or come back later"
        );
        return turn_away(state, &stream, Refused::HandshakesPerAddressMax, text);
    }
    let guest = Guest { stream, peer: SocketAddr::new(address, peer.port()), deadline: Instant::now() + handshake::DEADLINE };
    state.begin_handshake(address);
    if guests.try_send(guest).is_err() {
        // The stream went down with the error; its peer sees the connection close.
        state.end_handshake(address);
        add_one(state.counters.refused(Refused::HandshakesMax));
    }
}

pub(super) fn tell_refused(peer: IpAddr, decision: Decision) {
    if decision == Decision::Refuse {
        return;
    }
    tracing::warn!(
        %peer, add = %line_to_add(peer),
        "connection refused: this network is not on the allowlist; to let it in, start the server with {}", line_to_add(peer)
    );
    if decision == Decision::RefuseAndTellLast {
        tracing::warn!(
            "connections of more networks are refused than are logged; postanalytics_connections_refused_total counts them"
        );
    }
}

/// Says Overloaded as far as the socket takes it at once, and closes.
fn turn_away(state: &State, stream: &TcpStream, reason: Refused, text: String) {
    add_one(state.counters.refused(reason));
    add_one(state.counters.error(ErrorCode::Overloaded));
    if let Ok(socket) = duplicate(stream) {
        let frame = error_frame(&Refusal::new(ErrorCode::Overloaded, text));
        let flags = rustix::net::SendFlags::DONTWAIT | rustix::net::SendFlags::NOSIGNAL;
        let _ = rustix::net::send(&socket, &frame, flags);
    }
}

fn error_frame(refusal: &Refusal) -> Vec<u8> {
    let mut frame = Vec::new();
    ErrorFrame { code: refusal.code as u16, sequence: 0, text: refusal.text.clone() }.encode(0, unix_us(), &mut frame);
    frame
}

/// Shakes hands with one guest after the other, for ever.
pub(super) async fn shake_hands(state: Rc<State>, guests: Rc<LocalReceiver<Guest>>) {
    while let Some(mut guest) = guests.recv().await {
        let address = guest.peer.ip();
        match handshake::read_hello(&mut guest.stream, guest.deadline).await {
            Outcome::Gone => add_one(&state.counters.gone_before_hello),
            Outcome::Refused(refusal) => refuse(&state, guest, refusal).await,
            Outcome::Hello(hello, session) => {
                if let Err(refusal) = hand_over(&state, &guest, *hello, session).await {
                    refuse(&state, guest, refusal).await;
                }
            }
        }
        state.end_handshake(address);
    }
}

/// Gives the connection to its shard.
async fn hand_over(state: &State, guest: &Guest, hello: Hello, session: u64) -> Result<(), Refusal> {
    handshake::check_hello(&hello, state.topology.shard_count)?;
    let no_socket =
        |error: std::io::Error| Refusal::new(ErrorCode::Overloaded, format!("no descriptor for the connection: {error}"));
    let socket = duplicate(&guest.stream).map_err(no_socket)?;
    if rustix::io::ioctl_fionread(&socket).unwrap_or(0) > 0 {
        return Err(Refusal::new(ErrorCode::PrematureBytes, "bytes came before Welcome: wait for it after the Hello"));
    }
    prepare_for_shard(&socket).map_err(no_socket)?;
    let shard = if hello.wanted_shard == ANY_SHARD { state.least_loaded_shard()? } else { hello.wanted_shard };
    state.note_package(hello.node, &hello.name, hello.package);
    let ticket = Arc::new(ConnectionTicket {
        node: hello.node,
        name: hello.name.clone(),
        session,
        peer: guest.peer,
        package: hello.package,
        shard,
    });
    state.add_ticket(&ticket);
    deliver(state, shard, ToShard::Adopt(Handover { socket, hello, session, ticket })).await?;
    add_one(&state.counters.handed_over);
    Ok(())
}

/// Puts a message into a shard's queue, waiting a little if it is full.
async fn deliver(state: &State, shard: u32, mut message: ToShard) -> Result<(), Refusal> {
    let give_up = Instant::now() + HANDOVER_PATIENCE;
    loop {
        let port = state.shards().get(shard as usize).filter(|port| !port.ended.get() && !state.stopping.get());
        let Some(port) = port else {
            return Err(Refusal::new(ErrorCode::Overloaded, "the server is stopping: come back later"));
        };
        let sent = port.messages.borrow_mut().send(message);
        match sent {
            Ok(()) => return Ok(()),
            Err(back) => message = back,
        }
        if Instant::now() >= give_up {
            return Err(Refusal::new(
                ErrorCode::Overloaded,
                format!("shard {shard} is too busy for more connections: come back later"),
            ));
        }
        Timer::new(Duration::from_millis(2)).await;
    }
}

/// Tells the peer why, and waits a moment for it to read that: closing with unread bytes would reset the connection first.
async fn refuse(state: &State, mut guest: Guest, refusal: Refusal) {
    add_one(state.counters.error(refusal.code));
    tracing::debug!(peer = %guest.peer, code = refusal.code.name(), text = %refusal.text, "handshake refused");
    let stream = &mut guest.stream;
    let _ = stream.set_write_timeout(Some(FAREWELL));
    if stream.write_all(&error_frame(&refusal)).await.is_err() || stream.shutdown(Shutdown::Write).await.is_err() {
        return;
    }
    // A peer that said nothing for so long gets no more of our time.
    if refusal.code == ErrorCode::HandshakeTimeout {
        return;
    }
    let deadline = Instant::now() + FAREWELL;
    let (mut rest, mut read) = ([0; 1024], 0);
    while read < FAREWELL_BYTES_MAX {
        let left = deadline.saturating_duration_since(Instant::now());
        let _ = stream.set_read_timeout(Some(left.max(Duration::from_millis(1))));
        match stream.read(&mut rest).await {
            Ok(bytes) if bytes > 0 && !left.is_zero() => read += bytes,
            _ => return,
        }
    }
}
