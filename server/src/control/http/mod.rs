//! The pages: a small HTTP/1.1 server.
//!
//! - [`request`]: parsing and guards; [`parameters`]: values in queries; [`answer`]: what goes back
//! - [`pages`]: which there are and who answers them
//! - [`status`], [`metrics`]: the server at one instant
//! - [`scan`], [`record`], [`cursor`]: stored records
//! - [`detection`]: alerts, attacks, top lists, timeline; [`denylist`]: verdicts, also by hand
//! - [`explain`]: what is known of a source
//!
//! Limits: 64 connections at once, 8 KiB of headers, 4 KiB of body, 5 s a request, 1 s between two, 100 on one connection, one
//! scan until its answer is written. What does not fit waits in the kernel's backlog. Peers are let in by the allowlist, as
//! filtering nodes are. Only `/denylist` changes anything, and only with the token. It is not meant for the open internet: no
//! TLS, and one token for all rights.

mod answer;
mod cursor;
mod denylist;
mod detection;
mod explain;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod metrics;
mod pages;
mod parameters;
mod record;
mod request;
mod scan;
mod status;

pub use crate::escape::{escape, unescape};

use super::accept::tell_refused;
use super::access::Decision;
use super::state::{Refused, State, add_one};
use answer::Response;
use futures_lite::{AsyncReadExt, AsyncWriteExt};
use glommio::net::{TcpListener, TcpStream};
use glommio::timer::Timer;
use request::{Bad, Method, Request};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Connections served at once.
pub(super) const CONNECTIONS_MAX: usize = 64;
/// Time for a request to come whole, and again for its answer to be read.
const DEADLINE: Duration = Duration::from_secs(5);
/// Time that a connection may wait between two requests.
const IDLE_MAX: Duration = Duration::from_secs(1);
/// Time for the first byte of a connection while few tasks are free.
const FIRST_BYTE_CROWDED: Duration = Duration::from_millis(250);
/// Requests of one connection.
const REQUESTS_MAX: usize = 100;
/// With fewer tasks free than this, a connection ends with its answer.
const TASKS_FREE_MIN: usize = 16;
/// Most bytes of one write.
const WRITE_BYTES: usize = 64 << 10;
/// Pause after an accept that failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves one connection after the other, for ever. [`CONNECTIONS_MAX`] tasks run this.
pub(super) async fn serve(state: Rc<State>, listener: Rc<TcpListener>) {
    loop {
        match listener.shared_accept().await {
            Ok(accepted) => {
                let stream = accepted.bind_to_executor();
                if is_let_in(&state, &stream) {
                    state.pages_open.set(state.pages_open.get() + 1);
                    serve_connection(&state, stream).await;
                    state.pages_open.set(state.pages_open.get() - 1);
                }
            }
            // Too many open files, or a peer that is gone: the next try may do better.
            Err(_) => drop(Timer::new(ACCEPT_PAUSE).await),
        }
    }
}

/// The allowlist counts here too: a status address that others can reach is no way around it.
fn is_let_in(state: &State, stream: &TcpStream) -> bool {
    let Ok(peer) = stream.peer_addr() else { return false };
    let address = peer.ip().to_canonical();
    let decision = state.gate.borrow_mut().decide(address);
    if decision != Decision::LetIn {
        add_one(state.counters.refused(Refused::NotAllowed));
        tell_refused(address, decision);
    }
    decision == Decision::LetIn
}

async fn serve_connection(state: &State, mut stream: TcpStream) {
    let mut pending = Vec::with_capacity(1024);
    // Who says nothing must not keep the last tasks from those who ask.
    let is_crowded = state.pages_open.get() + TASKS_FREE_MIN > CONNECTIONS_MAX;
    let mut first_byte_within = if is_crowded { FIRST_BYTE_CROWDED } else { DEADLINE };
    for number in 1.. {
        let (response, request) = match read_request(&mut stream, &mut pending, first_byte_within).await {
            Ok(Some(request)) => (pages::answer(state, &request).await, Some(request)),
            Ok(None) => return,
            Err(bad) => (Response::error(bad.status, &bad.text), None),
        };
        add_one(&state.counters.http_requests);
        let room = number < REQUESTS_MAX && state.pages_open.get() + TASKS_FREE_MIN <= CONNECTIONS_MAX;
        let keep_alive = room && request.as_ref().is_some_and(|request| request.keep_alive);
        let head_only = request.is_some_and(|request| request.method == Method::Head);
        if write_response(&mut stream, &response, keep_alive, head_only).await.is_err() || !keep_alive {
            let _ = stream.shutdown(std::net::Shutdown::Write).await;
            return;
        }
        first_byte_within = IDLE_MAX;
    }
}

/// The next request; `None` when the peer is done, or said nothing for too long.
async fn read_request(
    stream: &mut TcpStream,
    pending: &mut Vec<u8>,
    first_byte_within: Duration,
) -> Result<Option<Request>, Bad> {
    let begun = Instant::now();
    let mut buffer = [0; 2048];
    loop {
        if let Some((request, taken)) = request::parse(pending)? {
            pending.drain(..taken);
            return Ok(Some(request));
        }
        let allowed = if pending.is_empty() { first_byte_within } else { DEADLINE };
        let left = allowed.saturating_sub(begun.elapsed());
        let _ = stream.set_read_timeout(Some(left.max(Duration::from_millis(1))));
        match stream.read(&mut buffer).await {
            Ok(0) => return Ok(None),
            Ok(bytes) if !left.is_zero() => pending.extend_from_slice(&buffer[..bytes]),
            _ if pending.is_empty() => return Ok(None),
            _ => return Err(Bad { status: 408, text: "the request did not come whole within 5 s".to_owned() }),
        }
    }
}

async fn write_response(
    stream: &mut TcpStream,
    response: &Response<'_>,
    keep_alive: bool,
    head_only: bool,
) -> std::io::Result<()> {
    let deadline = Instant::now() + DEADLINE;
    let head = response.head(keep_alive);
    let body = if head_only { "" } else { response.body.as_str() };
    for mut part in [head.as_bytes(), body.as_bytes()] {
        // Single writes rather than write_all, whose timeout counts anew for each that it makes.
        while !part.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(std::io::ErrorKind::TimedOut.into());
            }
            let _ = stream.set_write_timeout(Some(left));
            match stream.write(&part[..part.len().min(WRITE_BYTES)]).await {
                Ok(0) => return Err(std::io::ErrorKind::WriteZero.into()),
                Ok(written) => part = &part[written..],
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}
