//! The status pages: a small HTTP/1.1 server for GET, and the pages.
//!
//! - [`request`]: parsing and guards
//! - [`status`], [`metrics`]: the server at one instant
//! - [`scan`], [`record`], [`escape`]: stored records
//!
//! Limits: 64 connections at once, 8 KiB of headers, 5 s a request. What does not fit waits in the kernel's backlog. No page
//! changes anything. It is not meant for the open internet: no TLS, and one token for one right.

mod escape;
mod metrics;
mod record;
mod request;
mod scan;
mod status;

pub use escape::{escape, unescape};

use super::state::{State, add_one};
use futures_lite::{AsyncReadExt, AsyncWriteExt};
use glommio::net::{TcpListener, TcpStream};
use glommio::timer::Timer;
use record::Show;
use request::{Bad, Request};
use scan::{Found, Wanted};
use serde_json::{Value, json};
use std::net::IpAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Connections served at once.
pub(super) const CONNECTIONS_MAX: usize = 64;
/// Time for a request to come whole, and again for its answer to be read.
const DEADLINE: Duration = Duration::from_secs(5);
/// Bytes written between two looks at the clock.
const WRITE_BYTES: usize = 64 << 10;
/// Records of `/requests` unless asked for otherwise.
const LIMIT_DEFAULT: usize = 100;
/// Most records of `/requests`.
const LIMIT_MAX: usize = 1000;
/// Pause after an accept that failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What is answered.
#[derive(Debug)]
struct Response {
    status: u16,
    content_type: &'static str,
    body: String,
}

impl Response {
    fn json(status: u16, body: &Value) -> Self {
        Self { status, content_type: "application/json", body: format!("{body}\n") }
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
        let allow = if self.status == 405 { "Allow: GET\r\n" } else { "" };
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
            Ok(accepted) => serve_connection(&state, accepted.bind_to_executor()).await,
            // Too many open files, or a peer that is gone: the next try may do better.
            Err(_) => drop(Timer::new(ACCEPT_PAUSE).await),
        }
    }
}

async fn serve_connection(state: &State, mut stream: TcpStream) {
    let mut pending = Vec::with_capacity(1024);
    loop {
        let (response, keep_alive) = match read_request(&mut stream, &mut pending).await {
            Ok(Some(request)) => (answer(state, &request).await, request.keep_alive),
            Ok(None) => return,
            Err(bad) => (Response::error(bad.status, &bad.text), false),
        };
        add_one(&state.counters.http_requests);
        if write_response(&mut stream, &response, keep_alive).await.is_err() || !keep_alive {
            let _ = stream.shutdown(std::net::Shutdown::Write).await;
            return;
        }
    }
}

/// The next request; `None` when the peer is done.
async fn read_request(stream: &mut TcpStream, pending: &mut Vec<u8>) -> Result<Option<Request>, Bad> {
    let deadline = Instant::now() + DEADLINE;
    let mut buffer = [0; 2048];
    loop {
        if let Some((request, taken)) = request::parse(pending)? {
            pending.drain(..taken);
            return Ok(Some(request));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        let _ = stream.set_read_timeout(Some(left.max(Duration::from_millis(1))));
        match stream.read(&mut buffer).await {
            Ok(0) => return Ok(None),
            Ok(bytes) if !left.is_zero() => pending.extend_from_slice(&buffer[..bytes]),
            _ if pending.is_empty() => return Ok(None),
            _ => return Err(Bad { status: 408, text: "the request did not come whole within 5 s".to_owned() }),
        }
    }
}

async fn write_response(stream: &mut TcpStream, response: &Response, keep_alive: bool) -> std::io::Result<()> {
    let deadline = Instant::now() + DEADLINE;
    let head = response.head(keep_alive);
    for chunk in std::iter::once(head.as_bytes()).chain(response.body.as_bytes().chunks(WRITE_BYTES)) {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(std::io::ErrorKind::TimedOut.into());
        }
        let _ = stream.set_write_timeout(Some(left));
        stream.write_all(chunk).await?;
    }
    Ok(())
}

async fn answer(state: &State, request: &Request) -> Response {
    let configured = state.config.status.as_ref().map(|address| address.host.as_str());
    let host = request.host.as_deref().unwrap_or_default();
    if !request::host_is_ours(host, state.status_address, configured, &state.config.status_hosts) {
        return Response::error(421, "the Host header is not one of this server's: allow a name with --status-host NAME");
    }
    if !request.is_get {
        return Response::error(405, "only GET is answered here");
    }
    match request.path.as_str() {
        "/health" => Response::json(200, &json!({ "status": "alive" })),
        "/ready" => {
            let ready = state.ready();
            Response::json(if ready { 200 } else { 503 }, &json!({ "ready": ready }))
        }
        "/metrics" => {
            Response { status: 200, content_type: "text/plain; version=0.0.4; charset=utf-8", body: metrics::metrics(state) }
        }
        "/status" => Response::json(200, &status::status(state)),
        "/requests" => match wanted_of(request) {
            Ok(wanted) => requests(state, request, &wanted).await,
            Err(text) => Response::error(400, &text),
        },
        path => match path.strip_prefix("/requests/").map(parse_id) {
            Some(Some(id)) => one_request(state, request, id).await,
            Some(None) => Response::error(400, "the id of a request is 32 hexadecimal digits"),
            None => Response::error(404, "there are /health, /ready, /metrics, /status, /requests and /requests/ID"),
        },
    }
}

async fn one_request(state: &State, request: &Request, id: [u8; 16]) -> Response {
    let wanted = Wanted { request_id: Some(id), limit: LIMIT_DEFAULT, ..Wanted::default() };
    match show_for(state, request) {
        Ok(show) => match scan::scan(state, &wanted, show).await {
            found if found.records.is_empty() && !found.partial => Response::error(404, "no stored request has this id"),
            found => response_of(&found),
        },
        Err(response) => response,
    }
}

async fn requests(state: &State, request: &Request, wanted: &Wanted) -> Response {
    match show_for(state, request) {
        Ok(show) => response_of(&scan::scan(state, wanted, show).await),
        Err(response) => response,
    }
}

fn response_of(found: &Found) -> Response {
    let records: Vec<&str> = found.records.iter().map(|(_, json)| json.as_str()).collect();
    let body = format!("{{\"requests\":[{}],\"partial\":{}}}\n", records.join(","), found.partial);
    Response { status: 200, content_type: "application/json", body }
}

/// Whether the request may see everything. A wrong token is an error rather than a poorer answer.
fn show_for(state: &State, request: &Request) -> Result<Show, Response> {
    match (&state.config.status_token, &request.bearer) {
        (Some(token), Some(given)) if request::equal_in_constant_time(token.as_bytes(), given.as_bytes()) => Ok(Show::Everything),
        (Some(_), Some(_)) => Err(Response::error(401, "the token is not that of --status-token-file")),
        _ => Ok(Show::Redacted),
    }
}

/// Reads `source`, `limit` and `since`.
fn wanted_of(request: &Request) -> Result<Wanted, String> {
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
    if let Ok(seconds) = text.parse::<f64>()
        && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
    {
        return Ok((seconds * 1e6) as u64);
    }
    if let Ok(ago) = crate::config::values::duration(text) {
        return Ok(now_us.saturating_sub(u64::try_from(ago.as_micros()).unwrap_or(u64::MAX)));
    }
    match text.parse::<jiff::Timestamp>() {
        Ok(timestamp) => Ok(u64::try_from(timestamp.as_microsecond()).unwrap_or(0)),
        Err(_) => {
            Err(format!("since {text:?} must be a time such as 2026-01-31T12:00:00Z, Unix seconds, or a duration such as 15m"))
        }
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
        for bad in ["limit=0", "limit=1001", "limit=x", "source=a", "since=yesterday", "since=-1"] {
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
    fn heads_are_whole() {
        let head = Response::error(405, "no").head(true);
        assert!(head.starts_with("HTTP/1.1 405 Method Not Allowed\r\n") && head.contains("Allow: GET\r\n"));
        assert!(head.ends_with("\r\n\r\n") && head.contains("Connection: keep-alive"));
    }
}
