//! A line of a log as a request: what it says, what the filter engine finds in it, and what may leave the node.

#[cfg(feature = "fuzzing")]
pub(super) mod fuzzing;

use crate::config::flags::LineFormat;
use ipnet::IpNet;
use postanalytics_client::access_log::{client_ip, method_number, parse_ip, parse_line, parse_time, request_parts};
use postanalytics_client::{Client, Extension, Request, SendError};
use postanalytics_filter::{Engine, PROCESS_TIME_LIMIT, RawRequest, Scratch};
use postanalytics_protocol::schema::v1::{FLAG_CREDENTIALS, FLAG_OVERLIMIT, Scheme, TAG_METHOD};
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::net::IpAddr;

/// Memory of a record besides its texts, and of a hit besides its own; more than the client counts.
const RECORD_BYTES: usize = 320;
const HIT_BYTES: usize = 64;

/// What became of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// It is no line of this format.
    Malformed,
    /// The client has it: memory that its record takes, and hits.
    Sent { bytes: usize, hits: usize },
}

/// Turns lines into records.
pub(super) struct Reader {
    pub(super) format: LineFormat,
    pub(super) application: i32,
    /// Proxies whose X-Forwarded-For is believed.
    pub(super) trusted_proxies: Vec<IpNet>,
    pub(super) engine: Engine,
    pub(super) scratch: Scratch,
}

/// What a line says.
struct Said<'a> {
    request: Request<'a>,
    method: &'a [u8],
    /// The request target as the visitor sent it.
    target: Cow<'a, [u8]>,
    forwarded_for: &'a [u8],
}

impl Reader {
    /// Reads, inspects, masks and sends a line. `id` is its request's unless the line has one; `now_us` stands in for a time.
    pub(super) fn send(
        &mut self,
        client: &Client,
        line: &[u8],
        id: [u8; 16],
        now_us: u64,
        token: u64,
    ) -> Result<Taken, SendError> {
        let format = self.format;
        let sent = read(format, line, id, now_us, |said| self.send_said(client, said, token));
        sent.unwrap_or(Ok(Taken::Malformed))
    }

    fn send_said(&mut self, client: &Client, said: Said<'_>, token: u64) -> Result<Taken, SendError> {
        let request = said.request;
        let agent = unescaped(request.user_agent);
        let referer = unescaped(request.referer);
        let all: [(&[u8], &[u8]); 3] = [(b"host", request.host), (b"user-agent", &agent), (b"referer", &referer)];
        let headers: Vec<(&[u8], &[u8])> = all.into_iter().filter(|(_, value)| !value.is_empty()).collect();
        let raw = RawRequest { method: said.method, uri: &said.target, headers: &headers, ..RawRequest::default() };
        let findings = self.engine.inspect(&raw, PROCESS_TIME_LIMIT, &mut self.scratch);
        let hits = findings.hits();
        let masker = self.engine.masker();
        let (path, query) = (masker.text(request.path), masker.text(request.query));
        let (user_agent, referer) = (masker.text(request.user_agent), masker.text(request.referer));
        let masked = Request {
            client_ip: visitor(&self.trusted_proxies, request.client_ip, said.forwarded_for),
            application: self.application,
            detection_us: findings.elapsed_us(),
            flags: request.flags | if findings.overlimit { FLAG_OVERLIMIT } else { 0 },
            path: &path,
            query: &query,
            user_agent: &user_agent,
            referer: &referer,
            hits: &hits,
            token,
            ..request
        };
        client.try_send(&masked)?;
        let texts = [&path, &query, &user_agent, &referer].map(|text| text.len()).iter().sum::<usize>();
        let samples: usize = hits.iter().map(|hit| HIT_BYTES + hit.point.len() + hit.payload.len()).sum();
        let bytes = RECORD_BYTES + texts + samples + masked.host.len() + masked.user.len() + said.method.len();
        Ok(Taken::Sent { bytes, hits: hits.len() })
    }
}

/// The visitor's address: that of the line, unless it is a proxy's that is trusted. Then the last address of X-Forwarded-For
/// that is no such proxy, for what stands before it is the visitor's word.
fn visitor(trusted_proxies: &[IpNet], address: IpAddr, forwarded_for: &[u8]) -> IpAddr {
    let is_trusted = |address: IpAddr| trusted_proxies.iter().any(|network| network.contains(&address.to_canonical()));
    let mut visitor = address;
    let mut hops = forwarded_for.rsplit(|&byte| byte == b',');
    while is_trusted(visitor) {
        let Some(hop) = hops.next().and_then(|hop| address_of_hop(hop.trim_ascii())) else { break };
        visitor = hop;
    }
    visitor
}

/// An address, with or without port.
fn address_of_hop(hop: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(hop).ok()?;
    let bare = text.strip_prefix('[').and_then(|rest| rest.split_once(']')).map_or(text, |(address, _)| address);
    bare.parse().ok().or_else(|| text.parse::<std::net::SocketAddr>().ok().map(|address| address.ip()))
}

fn read<T>(format: LineFormat, line: &[u8], id: [u8; 16], now_us: u64, take: impl FnOnce(Said<'_>) -> T) -> Option<T> {
    match format {
        LineFormat::Combined => read_combined(line, id, now_us, take),
        LineFormat::Jsonl | LineFormat::EscapedJsonl => read_json(line, id, now_us, take),
    }
}

fn read_combined<T>(line: &[u8], id: [u8; 16], now_us: u64, take: impl FnOnce(Said<'_>) -> T) -> Option<T> {
    let line = parse_line(line)?;
    let more = MoreFields::of(line.rest);
    let request = Request { response_us: more.request_us, ..line.request(id, now_us) };
    let target = target(&unescaped(line.path), &unescaped(line.query));
    Some(take(Said { request, method: line.method, target: Cow::Owned(target), forwarded_for: more.forwarded_for }))
}

fn target(path: &[u8], query: &[u8]) -> Vec<u8> {
    if query.is_empty() { path.to_vec() } else { [path, b"?", query].concat() }
}

/// What a log format has behind the user agent, such as `"$http_x_forwarded_for" $request_time`, in any order: the first quoted
/// field that ends in an address, and the first number with a point, which are seconds.
#[derive(Default)]
struct MoreFields<'a> {
    forwarded_for: &'a [u8],
    request_us: u32,
}

impl<'a> MoreFields<'a> {
    fn of(mut rest: &'a [u8]) -> Self {
        let mut more = Self::default();
        while !rest.trim_ascii_start().is_empty() {
            rest = rest.trim_ascii_start();
            let (field, after) = match rest.strip_prefix(b"\"") {
                Some(inside) => split_at(inside, b'"'),
                None => split_at(rest, b' '),
            };
            rest = after;
            let value = field.iter().position(|&byte| byte == b'=').map_or(field, |at| &field[at + 1..]);
            let last = field.rsplit(|&byte| byte == b',').next().unwrap_or_default();
            if more.forwarded_for.is_empty() && address_of_hop(last.trim_ascii()).is_some() {
                more.forwarded_for = field;
            } else if more.request_us == 0 && value.contains(&b'.') {
                more.request_us = micros(value).unwrap_or(0);
            }
        }
        more
    }
}

fn split_at(text: &[u8], byte: u8) -> (&[u8], &[u8]) {
    memchr::memchr(byte, text).map_or((text, &b""[..]), |at| (&text[..at], &text[at + 1..]))
}

/// Seconds with decimals, in µs.
fn micros(seconds: &[u8]) -> Option<u32> {
    let seconds: f64 = std::str::from_utf8(seconds).ok()?.parse().ok()?;
    (seconds >= 0.0).then_some((seconds * 1e6).round() as u32)
}

/// What a visitor sent, from what NGINX and Apache write of it: `\xHH`, and a backslash before a quote or a backslash.
fn unescaped(text: &[u8]) -> Cow<'_, [u8]> {
    if memchr::memchr(b'\\', text).is_none() {
        return Cow::Borrowed(text);
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, after)) = rest.split_first() {
        let (byte, length) = match after {
            [b'x', high, low, ..] if first == b'\\' => match (hex(*high), hex(*low)) {
                (Some(high), Some(low)) => (high << 4 | low, 4),
                _ => (first, 1),
            },
            [next @ (b'"' | b'\\'), ..] if first == b'\\' => (*next, 2),
            _ => (first, 1),
        };
        bytes.push(byte);
        rest = &rest[length..];
    }
    Cow::Owned(bytes)
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

/// An object with the names of NGINX's variables, or of this server's records.
fn read_json<T>(line: &[u8], id: [u8; 16], now_us: u64, take: impl FnOnce(Said<'_>) -> T) -> Option<T> {
    // NGINX leaves bytes that are no UTF-8 as they are.
    let fields: Map<String, Value> = serde_json::from_str(&String::from_utf8_lossy(line)).ok()?;
    let text = |names: &[&str]| -> Cow<'_, str> {
        let found = names.iter().find_map(|name| match fields.get(*name)? {
            Value::String(text) if text == "-" || text.is_empty() => None,
            Value::String(text) => Some(Cow::Borrowed(text.as_str())),
            Value::Number(number) => Some(Cow::Owned(number.to_string())),
            _ => None,
        });
        found.unwrap_or_default()
    };
    let number = |names: &[&str]| -> u64 { text(names).parse().unwrap_or(0) };

    let address = text(&["remote_addr", "client_ip", "ip", "client", "remote_ip"]);
    let line = text(&["request"]);
    let (mut method, mut path, mut query, mut version) = request_parts(line.as_bytes());
    let (own_method, uri) = (text(&["request_method", "method"]), text(&["request_uri", "uri", "path", "url"]));
    let (args, protocol) = (text(&["args", "query_string", "query"]), text(&["server_protocol", "protocol"]));
    if !own_method.is_empty() {
        method = own_method.as_bytes();
    }
    if !uri.is_empty() {
        (path, query) = split_at(uri.as_bytes(), b'?');
        query = if query.is_empty() { args.as_bytes() } else { query };
    }
    if address.is_empty() || path.is_empty() {
        return None;
    }
    if let Some(digits) = protocol.strip_prefix("HTTP/") {
        version = digits.parse::<f32>().map_or(0, |number| (number * 10.0).round() as u8);
    }
    let (user, host) = (text(&["remote_user", "user"]), text(&["host", "http_host", "server_name", "vhost"]));
    let (referer, agent) = (text(&["http_referer", "referer", "referrer"]), text(&["http_user_agent", "user_agent", "agent"]));
    let (forwarded_for, scheme) = (text(&["http_x_forwarded_for", "x_forwarded_for", "forwarded_for"]), text(&["scheme"]));
    let own_id = uuid::Uuid::try_parse(&text(&["request_id"])).ok().map(uuid::Uuid::into_bytes);
    let extension = Extension { tag: TAG_METHOD, value: method };
    let has_number = method.is_empty() || method_number(method) != 0;
    let request = Request {
        request_id: own_id.unwrap_or(id),
        client_ip: parse_ip(address.as_bytes()).unwrap_or_else(|| client_ip(address.as_bytes())),
        event_us: json_time(
            &text(&["event_us"]),
            &text(&["msec", "time_iso8601", "time", "timestamp", "@timestamp", "ts", "time_local"]),
        )
        .unwrap_or(now_us),
        method: method_number(method),
        http_version: version,
        scheme: Scheme::from_name(&scheme).map_or(0, |scheme| scheme as u8),
        status: u16::try_from(number(&["status"])).unwrap_or(0),
        server_port: u16::try_from(number(&["server_port"])).unwrap_or(0),
        request_bytes: number(&["request_length", "request_bytes"]),
        response_bytes: number(&["bytes_sent", "body_bytes_sent", "response_bytes"]),
        response_us: micros(text(&["request_time"]).as_bytes()).unwrap_or(0),
        flags: if user.is_empty() { 0 } else { FLAG_CREDENTIALS },
        user: user.as_bytes(),
        host: host.as_bytes(),
        path,
        query,
        user_agent: agent.as_bytes(),
        referer: referer.as_bytes(),
        extensions: if has_number { &[] } else { std::slice::from_ref(&extension) },
        ..Request::default()
    };
    let target = Cow::Owned(target(path, query));
    Some(take(Said { request, method, target, forwarded_for: forwarded_for.as_bytes() }))
}

/// Microseconds as a number; seconds or milliseconds since 1970; or a date with time as in NGINX's `$time_iso8601` or `$time_local`.
fn json_time(event_us: &str, time: &str) -> Option<u64> {
    if let Ok(event_us) = event_us.parse() {
        return Some(event_us);
    }
    match time.parse::<f64>() {
        Ok(number) if !(0.0..1e17).contains(&number) => None,
        Ok(number) if number >= 1e14 => Some(number as u64),
        Ok(number) if number >= 1e11 => Some((number * 1e3) as u64),
        Ok(number) => Some((number * 1e6).round() as u64),
        Err(_) => parse_time(time.as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn combined_with_more_fields() {
        let line = br#"10.0.0.1 - bob [17/May/2015:10:05:03 +0000] "GET /a?q=\x22\xC3\x27 HTTP/1.1" 200 5 "-" "ua" "1.2.3.4, 5.6.7.8" 0.123 rt=7.5"#;
        let seen = read(LineFormat::Combined, line, [1; 16], 9, |said| {
            assert_eq!(said.target.as_ref(), b"/a?q=\"\xc3'");
            assert_eq!((said.request.query, said.request.response_us), (&br"q=\x22\xC3\x27"[..], 123_000));
            assert_eq!((said.forwarded_for, said.method), (&b"1.2.3.4, 5.6.7.8"[..], &b"GET"[..]));
            assert_eq!((said.request.event_us, said.request.user), (1_431_857_103_000_000, &b"bob"[..]));
        });
        assert!(seen.is_some());
        assert!(read(LineFormat::Combined, b"nonsense", [1; 16], 9, |_| ()).is_none());
        let more = MoreFields::of(br#" "-" 0.000 "0.5" "unclosed"#);
        assert_eq!((more.forwarded_for, more.request_us), (&b""[..], 500_000), "the first that is not nothing");
    }

    #[test]
    fn json_as_nginx_writes_it_and_as_records_are() {
        let nginx = br#"{"time_iso8601":"2015-05-17T10:05:03+00:00","remote_addr":"1.2.3.4","request":"BREW /a?b=c HTTP/2.0","status":"404",
            "body_bytes_sent":"7","request_time":"0.250","http_user_agent":"ua","http_referer":"-","request_id":"00000000000000000000000000000007",
            "http_x_forwarded_for":"","server_protocol":"HTTP/2.0","scheme":"https","remote_user":"bob"}"#;
        let seen = read(LineFormat::Jsonl, nginx, [1; 16], 9, |said| {
            let request = &said.request;
            assert_eq!((said.method, said.target.as_ref()), (&b"BREW"[..], &b"/a?b=c"[..]));
            assert_eq!((request.status, request.response_bytes, request.response_us), (404, 7, 250_000));
            assert_eq!((request.http_version, request.scheme, request.event_us), (20, 2, 1_431_857_103_000_000));
            assert_eq!((request.request_id[15], request.extensions[0].value, request.referer), (7, &b"BREW"[..], &b""[..]));
        });
        assert!(seen.is_some());
        let record = br#"{"event_us":5,"ip":"2001:db8::1","method":"GET","path":"/x","query":"a=1","host":"h","status":200}"#;
        let seen = read(LineFormat::Jsonl, record, [1; 16], 9, |said| {
            assert_eq!((said.request.event_us, said.request.method, said.target.as_ref()), (5, 1, &b"/x?a=1"[..]));
        });
        assert!(seen.is_some());
        for none in [&b"{}"[..], b"[]", b"{\"remote_addr\":\"1.2.3.4\"}", b"1.2.3.4 - -", b"\xff"] {
            assert!(read(LineFormat::Jsonl, none, [1; 16], 9, |_| ()).is_none());
        }
        for (time, wanted) in [
            ("1431857103.5", 1_431_857_103_500_000),
            ("1431857103500", 1_431_857_103_500_000),
            ("1431857103500000", 1_431_857_103_500_000),
        ] {
            assert_eq!(json_time("", time), Some(wanted));
        }
        assert_eq!((json_time("", "-1"), json_time("", "NaN"), json_time("", "")), (None, None, None));
        // Cut anywhere, or with letters of several bytes, a time is none; a year alone would be seconds.
        let whole = "2015-05-17T10:05:03Z";
        for at in 0..whole.len() {
            assert!(at < 5 || json_time("", &whole[..at]).is_none(), "{at}");
            assert_eq!(json_time("", &format!("{}\u{1f600}", &whole[..at])), None, "{at}");
        }
    }

    #[test]
    fn only_trusted_proxies_are_believed() {
        let address = |text: &str| text.parse::<IpAddr>().expect("an address");
        let proxies: [IpNet; 1] = ["10.0.0.0/8".parse().expect("a network")];
        for (peer, forwarded_for, visitor) in [
            ("198.51.100.1", "1.2.3.4", "198.51.100.1"),
            ("10.0.0.1", "6.6.6.6, 1.2.3.4", "1.2.3.4"),
            ("10.0.0.1", "6.6.6.6, 1.2.3.4, 10.0.0.7", "1.2.3.4"),
            ("10.0.0.1", "6.6.6.6, nonsense", "10.0.0.1"),
            ("10.0.0.1", "", "10.0.0.1"),
            ("10.0.0.1", "[2001:db8::1]:443", "2001:db8::1"),
            ("10.0.0.1", "1.2.3.4:443", "1.2.3.4"),
            ("10.0.0.1", "10.0.0.2", "10.0.0.2"),
        ] {
            let found = super::visitor(&proxies, address(peer), forwarded_for.as_bytes());
            assert_eq!(found, address(visitor), "{peer} {forwarded_for}");
        }
    }
}
