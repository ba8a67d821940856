//! The status pages: a small HTTP/1.1 server for GET and HEAD, and the pages.
//!
//! - [`request`]: parsing and guards
//! - [`status`], [`metrics`]: the server at one instant
//! - [`scan`], [`record`]: stored records
//!
//! Limits: 64 connections at once, 8 KiB of headers, 5 s a request, 1 s between two, 100 on one connection, one scan until its
//! answer is written. What does not fit waits in the kernel's backlog. Peers are let in by the allowlist, as filtering nodes
//! are. No page changes anything. It is not meant for the open internet: no TLS, and one token for one right.

#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod metrics;
mod record;
mod request;
mod scan;
mod status;

pub use crate::escape::{escape, unescape};

use super::accept::tell_refused;
use super::access::Decision;
use super::state::{Refused, ScanSlot, State, add_one};
use futures_lite::{AsyncReadExt, AsyncWriteExt};
use glommio::net::{TcpListener, TcpStream};
use glommio::timer::Timer;
use record::Show;
use request::{Bad, Method, Request};
use scan::{Found, Wanted};
use serde_json::{Value, json};
use std::net::IpAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Connections served at once.
pub(super) const CONNECTIONS_MAX: usize = 64;
/// Time for a request to come whole, and again for its answer to be read.
const DEADLINE: Duration = Duration::from_secs(5);
/// Time that a connection may wait between two requests.
const IDLE_MAX: Duration = Duration::from_secs(1);
/// Requests of one connection.
const REQUESTS_MAX: usize = 100;
/// With fewer tasks free than this, a connection ends with its answer.
const TASKS_FREE_MIN: usize = 16;
/// Most bytes of one write.
const WRITE_BYTES: usize = 64 << 10;
/// Records of `/requests` unless asked for otherwise.
const LIMIT_DEFAULT: usize = 100;
/// Most records of `/requests`.
const LIMIT_MAX: usize = 1000;
/// Smallest bare number that is taken as a time: a smaller one was meant as something else, such as a duration.
const UNIX_SECONDS_MIN: f64 = 1e9;
/// Pause after an accept that failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What is answered.
#[derive(Debug)]
struct Response<'a> {
    status: u16,
    content_type: &'static str,
    body: String,
    /// An answer with records keeps its slot until it is written.
    _slot: Option<ScanSlot<'a>>,
}

impl Response<'_> {
    fn new(status: u16, content_type: &'static str, body: String) -> Self {
        Self { status, content_type, body, _slot: None }
    }

    fn json(status: u16, body: &Value) -> Self {
        Self::new(status, "application/json", format!("{body}\n"))
    }

    fn error(status: u16, text: &str) -> Self {
        Self::json(status, &json!({ "error": text }))
    }

    fn head(&self, keep_alive: bool) -> String {
        let reason = match self.status {
            200 => "OK",
            400 => "Bad Request",
            401 => "Unauthorized",
            404 => "Not Found",
            405 => "Method Not Allowed",
            408 => "Request Timeout",
            413 => "Content Too Large",
            421 => "Misdirected Request",
            431 => "Request Header Fields Too Large",
            _ => "Service Unavailable",
        };
        let allow = if self.status == 405 { "Allow: GET, HEAD\r\n" } else { "" };
        format!(
            "HTTP/1.1 {} {reason}\r\nContent-Type: {}\r\nContent-Length: {}\r\nConnection: {}\r\n{allow}Cache-Control: no-store\r\n\
             X-Content-Type-Options: nosniff\r\n\r\n",
            self.status,
            self.content_type,
            self.body.len(),
            if keep_alive { "keep-alive" } else { "close" }
        )
    }
}

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
    let mut first_byte_within = DEADLINE;
    for number in 1.. {
        let (response, request) = match read_request(&mut stream, &mut pending, first_byte_within).await {
            Ok(Some(request)) => (answer(state, &request).await, Some(request)),
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

async fn answer<'a>(state: &'a State, request: &Request) -> Response<'a> {
    let configured = state.config.status.as_ref().map(|address| address.host.as_str());
    let host = request.host.as_deref().unwrap_or_default();
    if !request::host_is_ours(host, state.status_address, configured, &state.config.status_hosts) {
        return Response::error(421, "the Host header is not one of this server's: allow a name with --status-host NAME");
    }
    if request.method == Method::Other {
        return Response::error(405, "only GET and HEAD are answered here");
    }
    match request.path.as_str() {
        "/health" => Response::json(200, &json!({ "status": "alive" })),
        "/ready" => {
            let ready = state.ready();
            Response::json(if ready { 200 } else { 503 }, &json!({ "ready": ready }))
        }
        "/metrics" => Response::new(200, "text/plain; version=0.0.4; charset=utf-8", metrics::metrics(state)),
        "/status" => Response::json(200, &status::status(state)),
        "/requests" => match wanted_of(request) {
            Ok(wanted) => requests(state, request, &wanted).await,
            Err(text) => Response::error(400, &text),
        },
        path => match path.strip_prefix("/requests/").map(parse_id) {
            Some(Some(id)) => {
                let wanted = Wanted { request_id: Some(id), limit: LIMIT_DEFAULT, ..Wanted::default() };
                requests(state, request, &wanted).await
            }
            Some(None) => Response::error(400, "the id of a request is 32 hexadecimal digits"),
            None => Response::error(404, "there are /health, /ready, /metrics, /status, /requests and /requests/ID"),
        },
    }
}

async fn requests<'a>(state: &'a State, request: &Request, wanted: &Wanted) -> Response<'a> {
    let show = match show_for(state, request) {
        Ok(show) => show,
        Err(response) => return response,
    };
    if state.shards().is_empty() {
        return Response::error(503, "the server is not ready yet: /ready says when it is");
    }
    // One at a time, until its answer is written: others are told at once that theirs is not whole.
    let Some(slot) = state.take_scan_slot() else {
        return Response::new(200, "application/json", body_of(Found { records: Vec::new(), partial: true }));
    };
    let found = scan::scan(state, &slot, wanted, show).await;
    if wanted.request_id.is_some() && found.records.is_empty() && !found.partial {
        return Response::error(404, "no stored request has this id");
    }
    Response { _slot: Some(slot), ..Response::new(200, "application/json", body_of(found)) }
}

/// The records go one by one as they are copied, so that the answer is in memory once.
fn body_of(found: Found) -> String {
    let bytes: usize = found.records.iter().map(|(_, json)| json.len() + 1).sum();
    let mut body = String::with_capacity(bytes + 64);
    body.push_str("{\"requests\":[");
    for (index, (_, json)) in found.records.into_iter().enumerate() {
        if index > 0 {
            body.push(',');
        }
        body.push_str(&json);
    }
    body.push_str(if found.partial { "],\"partial\":true}\n" } else { "],\"partial\":false}\n" });
    body
}

/// Whether the request may see everything. A wrong token is an error rather than a poorer answer.
fn show_for(state: &State, request: &Request) -> Result<Show, Response<'static>> {
    match (&state.config.status_token, &request.bearer) {
        (Some(token), Some(given)) if request::equal_in_constant_time(token.as_bytes(), given.as_bytes()) => Ok(Show::Everything),
        (Some(_), Some(_)) => Err(Response::error(401, "the token is not that of --status-token-file")),
        _ => Ok(Show::Redacted),
    }
}

/// Reads `source`, `limit` and `since`. Another name is an error: misspelt, it would find more than was asked for.
fn wanted_of(request: &Request) -> Result<Wanted, String> {
    const KNOWN: [&str; 3] = ["source", "limit", "since"];
    if let Some((name, _)) = request.query.iter().find(|(name, _)| !KNOWN.contains(&name.as_str())) {
        return Err(format!("{name:?} is no parameter of this page: there are source, limit and since"));
    }
    let source = request.query_value("source").map(|text| {
        text.parse::<IpAddr>()
            .map(|address| postanalytics_protocol::Source::of(address.to_canonical()))
            .map_err(|_| format!("source {text:?} is no IP address"))
    });
    let limit = request.query_value("limit").map(|text| match text.parse() {
        Ok(limit @ 1..=LIMIT_MAX) => Ok(limit),
        _ => Err(format!("limit {text:?} must be 1 to {LIMIT_MAX}")),
    });
    let since_us = request.query_value("since").map(|text| parse_since(text, super::state::unix_us()));
    Ok(Wanted {
        source: source.transpose()?,
        request_id: None,
        since_us: since_us.transpose()?,
        limit: limit.transpose()?.unwrap_or(LIMIT_DEFAULT),
    })
}

/// A point in time, Unix µs: RFC 3339, Unix seconds, or how long ago (`15m`).
fn parse_since(text: &str, now_us: u64) -> Result<u64, String> {
    let wrong =
        || Err(format!("since {text:?} must be a time such as 2026-01-31T12:00:00Z, Unix seconds, or a duration such as 15m"));
    if let Ok(seconds) = text.parse::<f64>()
        && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
    {
        return if seconds < UNIX_SECONDS_MIN { wrong() } else { Ok((seconds * 1e6) as u64) };
    }
    if let Ok(ago) = crate::config::values::duration(text) {
        return Ok(now_us.saturating_sub(u64::try_from(ago.as_micros()).unwrap_or(u64::MAX)));
    }
    match text.parse::<jiff::Timestamp>() {
        Ok(timestamp) => Ok(u64::try_from(timestamp.as_microsecond()).unwrap_or(0)),
        Err(_) => wrong(),
    }
}

fn parse_id(text: &str) -> Option<[u8; 16]> {
    let hexadecimal = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    hexadecimal.then(|| u128::from_str_radix(text, 16).ok().map(u128::to_be_bytes)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(target: &str) -> Result<Wanted, String> {
        let text = format!("GET {target} HTTP/1.1\r\n\r\n");
        wanted_of(&request::parse(text.as_bytes()).expect("good").expect("whole").0)
    }

    #[test]
    fn queries_are_read_and_bounded() {
        let found = wanted("/requests?source=192.0.2.7&limit=5&since=1700000000").expect("good");
        assert_eq!((found.limit, found.since_us), (5, Some(1_700_000_000_000_000)));
        assert_eq!(found.source.expect("given").address().to_string(), "192.0.2.7");
        assert_eq!(wanted("/requests").expect("good"), Wanted { limit: LIMIT_DEFAULT, ..Wanted::default() });
        for bad in ["limit=0", "limit=1001", "limit=x", "source=a", "since=yesterday", "since=-1", "since=900", "form=a"] {
            assert!(wanted(&format!("/requests?{bad}")).is_err(), "{bad}");
        }
    }

    #[test]
    fn since_takes_three_forms() {
        let now_us = 2_000_000_000_000_000;
        assert_eq!(parse_since("1700000000.5", now_us), Ok(1_700_000_000_500_000));
        assert_eq!(parse_since("15m", now_us), Ok(now_us - 900_000_000));
        assert_eq!(parse_since("2023-11-14T22:13:20Z", now_us), Ok(1_700_000_000_000_000));
        assert_eq!(parse_since("2023-11-14T23:13:20+01:00", now_us), Ok(1_700_000_000_000_000));
    }

    #[test]
    fn ids_are_32_digits() {
        assert_eq!(parse_id("000102030405060708090a0b0c0d0e0f").expect("good")[15], 15);
        assert_eq!(parse_id("+0102030405060708090a0b0c0d0e0f0"), None);
        assert_eq!(parse_id("00"), None);
    }

    #[test]
    fn bodies_are_json() {
        let found = Found { records: vec![(2, "{\"a\":1}".to_owned()), (1, "{}".to_owned())], partial: false };
        assert_eq!(body_of(found), "{\"requests\":[{\"a\":1},{}],\"partial\":false}\n");
        assert_eq!(body_of(Found { records: Vec::new(), partial: true }), "{\"requests\":[],\"partial\":true}\n");
    }

    #[test]
    fn heads_are_whole() {
        let head = Response::error(405, "no").head(true);
        assert!(head.starts_with("HTTP/1.1 405 Method Not Allowed\r\n") && head.contains("Allow: GET, HEAD\r\n"));
        assert!(head.ends_with("\r\n\r\n") && head.contains("Connection: keep-alive"));
    }
}
