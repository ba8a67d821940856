//! A line of a log as a request: what it says, what the filter engine finds in it, and what may leave the node.

#[cfg(feature = "fuzzing")]
pub(super) mod fuzzing;

use crate::config::flags::LineFormat;
use ipnet::IpNet;
use postanalytics_client::access_log::{
    client_ip, method_number, parse_line, parse_time, request_parts, split_port, unescaped_quotes,
};
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
    /// Target, user agent and referer as the visitor sent them, without what the log escapes.
    target: Cow<'a, [u8]>,
    user_agent: Cow<'a, [u8]>,
    referer: Cow<'a, [u8]>,
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
        let all: [(&[u8], &[u8]); 3] = [(b"host", request.host), (b"user-agent", &said.user_agent), (b"referer", &said.referer)];
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
    Some(take(Said {
        request,
        method: line.method,
        target: Cow::Owned(target),
        user_agent: unescaped(line.user_agent),
        referer: unescaped(line.referer),
        forwarded_for: more.forwarded_for,
    }))
}

fn target(path: &[u8], query: &[u8]) -> Vec<u8> {
    if query.is_empty() { path.to_vec() } else { [path, b"?", query].concat() }
}

/// What a log format has behind the user agent, such as `"$http_x_forwarded_for" $request_time`, in any order: the first quoted
/// field that ends in an address, and the first number with a point, which are seconds.
///
/// What a visitor wrote stands in quotes, its own quotes escaped, so that no text of his begins a field. An address without
/// quotes is another one, such as `$upstream_addr`.
#[derive(Default)]
struct MoreFields<'a> {
    forwarded_for: &'a [u8],
    request_us: u32,
}

impl<'a> MoreFields<'a> {
    fn of(mut rest: &'a [u8]) -> Self {
        let mut more = Self::default();
        while !rest.trim_ascii_start().is_empty() {
            let (name, value, after) = field(rest.trim_ascii_start());
            rest = after;
            match value {
                Some(text) if name.is_empty() && more.forwarded_for.is_empty() && ends_in_address(text) => {
                    more.forwarded_for = text;
                }
                _ => {
                    let number = value.unwrap_or(name);
                    let number = memchr::memchr(b'=', number).map_or(number, |at| &number[at + 1..]);
                    if more.request_us == 0 && number.contains(&b'.') {
                        more.request_us = micros(number).unwrap_or(0);
                    }
                }
            }
        }
        more
    }
}

fn ends_in_address(text: &[u8]) -> bool {
    let last = text.rsplit(|&byte| byte == b',').next().unwrap_or_default();
    address_of_hop(last.trim_ascii()).is_some()
}

/// What stands before the quotes of a field, what is in them, if it has any, and what follows it. One that does not end in a
/// quote, a line that was cut, has nothing in them.
fn field(text: &[u8]) -> (&[u8], Option<&[u8]>, &[u8]) {
    let (token, after) = split_at(text, b' ');
    let Some(at) = unescaped_quotes(token).next() else { return (token, None, after) };
    let (name, inside) = (&text[..at], &text[at + 1..]);
    match unescaped_quotes(inside).next() {
        Some(end) => (name, Some(&inside[..end]), &inside[end + 1..]),
        None => (name, Some(b""), b""),
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

/// The fields of a line of JSON: its own, and those of the object `request` that Caddy has in it.
struct Fields {
    all: Map<String, Value>,
}

impl Fields {
    fn of_request(&self) -> Option<&Map<String, Value>> {
        self.all.get("request")?.as_object()
    }

    /// The first of these that says something.
    fn text(&self, names: &[&str]) -> Cow<'_, str> {
        let of_request = self.of_request();
        let value = |name: &str| of_request.and_then(|fields| fields.get(name)).or_else(|| self.all.get(name));
        let found = names.iter().find_map(|name| match value(name)? {
            Value::String(text) if text == "-" || text.is_empty() => None,
            Value::String(text) => Some(Cow::Borrowed(text.as_str())),
            Value::Number(number) => Some(Cow::Owned(number.to_string())),
            _ => None,
        });
        found.unwrap_or_default()
    }

    /// The same, or a header of Caddy's: a list of what came under this name.
    fn text_or_header(&self, names: &[&str], header: &str) -> Cow<'_, str> {
        let values = || self.of_request()?.get("headers")?.get(header)?.as_array();
        let Some(values) = values() else { return self.text(names) };
        match values.as_slice() {
            [Value::String(value)] => Cow::Borrowed(value),
            values => Cow::Owned(values.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", ")),
        }
    }

    fn number(&self, names: &[&str]) -> u64 {
        self.text(names).parse().unwrap_or(0)
    }
}

/// An object with the names of NGINX's variables, of this server's records, or as Caddy writes it.
fn read_json<T>(line: &[u8], id: [u8; 16], now_us: u64, take: impl FnOnce(Said<'_>) -> T) -> Option<T> {
    // NGINX leaves bytes that are no UTF-8 as they are.
    let fields = Fields { all: serde_json::from_str(&String::from_utf8_lossy(line)).ok()? };
    let (text, number) = (|names: &[&str]| fields.text(names), |names: &[&str]| fields.number(names));
    // Names that mean something else, or nothing certain, in other logs.
    let is_caddy = fields.of_request().is_some();
    let of_caddy = |name: &'static str| if is_caddy { name } else { "" };

    let address = text(&["remote_addr", "client_ip", "ip", "client", "remote_ip"]);
    let line = text(&["request"]);
    let (mut method, mut path, mut query, mut version) = request_parts(line.as_bytes());
    let (own_method, uri) = (text(&["request_method", "method"]), text(&["request_uri", "uri", "path", "url"]));
    let (args, protocol) = (text(&["args", "query_string", "query"]), text(&["server_protocol", "protocol", "proto"]));
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
    let user = text(&["remote_user", "user", of_caddy("user_id")]);
    let (mut host, mut port) = (text(&["host", "http_host", "server_name", "vhost"]), number(&["server_port"]));
    let mut scheme = text(&["scheme"]);
    if let Some(request) = fields.of_request() {
        // What the header says: small letters and no port, or a visitor could spread over as many hosts as he likes.
        let (name, of_host) = split_port(host.as_bytes());
        host = Cow::Owned(String::from_utf8_lossy(name).to_ascii_lowercase());
        port = if port == 0 { u64::from(of_host) } else { port };
        if scheme.is_empty() {
            scheme = Cow::Borrowed(if request.contains_key("tls") { "https" } else { "http" });
        }
    }
    let referer = fields.text_or_header(&["http_referer", "referer", "referrer"], "Referer");
    let agent = fields.text_or_header(&["http_user_agent", "user_agent", "agent"], "User-Agent");
    let forwarded_for = fields.text_or_header(&["http_x_forwarded_for", "x_forwarded_for", "forwarded_for"], "X-Forwarded-For");
    let own_id = uuid::Uuid::try_parse(&text(&["request_id"])).ok().map(uuid::Uuid::into_bytes);
    let extension = Extension { tag: TAG_METHOD, value: method };
    let has_number = method.is_empty() || method_number(method) != 0;
    let request = Request {
        request_id: own_id.unwrap_or(id),
        // Old versions of Caddy have the port with it.
        client_ip: address_of_hop(address.as_bytes()).unwrap_or_else(|| client_ip(address.as_bytes())),
        event_us: json_time(
            &text(&["event_us"]),
            &text(&["msec", "time_iso8601", "time", "timestamp", "@timestamp", "ts", "time_local"]),
        )
        .unwrap_or(now_us),
        method: method_number(method),
        http_version: version,
        scheme: Scheme::from_name(&scheme).map_or(0, |scheme| scheme as u8),
        status: u16::try_from(number(&["status"])).unwrap_or(0),
        server_port: u16::try_from(port).unwrap_or(0),
        request_bytes: number(&["request_length", "request_bytes", of_caddy("bytes_read")]),
        response_bytes: number(&["bytes_sent", "body_bytes_sent", "response_bytes", of_caddy("size")]),
        response_us: micros(text(&["request_time", of_caddy("duration")]).as_bytes()).unwrap_or(0),
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
    Some(take(Said {
        method,
        target: Cow::Owned(target(path, query)),
        user_agent: Cow::Borrowed(request.user_agent),
        referer: Cow::Borrowed(request.referer),
        forwarded_for: forwarded_for.as_bytes(),
        request,
    }))
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
        let more = MoreFields::of(br#" rt="0.25" a.b c="x 6.6.6.6" "0.5" "203.0.113.9""#);
        assert_eq!((more.forwarded_for, more.request_us), (&b"203.0.113.9"[..], 250_000));
    }

    /// Whatever he writes into X-Forwarded-For or another header, a visitor does not choose his own address.
    #[test]
    fn a_visitor_does_not_choose_his_address() {
        let proxies: [IpNet; 1] = ["10.0.0.0/8".parse().expect("a network")];
        for (more, visitor) in [
            (r#""x\" 6.6.6.6 , 203.0.113.9""#, "203.0.113.9"),
            (r#""x\", 203.0.113.9""#, "203.0.113.9"),
            (r#""x\\" 6.6.6.6\" "203.0.113.9""#, "203.0.113.9"),
            (r#""x\" \"6.6.6.6\" , 203.0.113.9""#, "203.0.113.9"),
            // Addresses that are no header of the visitor's proxy.
            (r#"10.0.0.5:8080 "203.0.113.9""#, "203.0.113.9"),
            (r#"6.6.6.6 "203.0.113.9""#, "203.0.113.9"),
            // Named fields with spaces in them: what is in their quotes begins no field.
            (r#"cookie="a " 6.6.6.6 "203.0.113.9""#, "203.0.113.9"),
            (r#"cookie="a \"6.6.6.6\" " "203.0.113.9""#, "203.0.113.9"),
            (r#"xff="6.6.6.6""#, "10.0.0.1"),
            // Cut.
            (r#""203.0.113.9"#, "10.0.0.1"),
        ] {
            let line = format!(r#"10.0.0.1 - - [17/May/2015:10:05:03 +0000] "GET / HTTP/1.1" 200 5 "-" "ua" {more}"#);
            let found = read(LineFormat::Combined, line.as_bytes(), [1; 16], 9, |said| {
                super::visitor(&proxies, said.request.client_ip, said.forwarded_for).to_string()
            });
            assert_eq!(found.as_deref(), Some(visitor), "{more}");
        }
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

    /// JSON says what was sent; a backslash in it is one of the visitor's.
    #[test]
    fn texts_of_json_are_decoded_once() {
        let line =
            br#"{"remote_addr":"1.2.3.4","request":"GET /\\x41 HTTP/1.1","http_user_agent":"\\x3C\\\\","http_referer":"\\\""}"#;
        let seen = read(LineFormat::Jsonl, line, [1; 16], 9, |said| {
            assert_eq!((said.user_agent.as_ref(), said.referer.as_ref()), (&br"\x3C\\"[..], &br#"\""#[..]));
            assert_eq!(said.target.as_ref(), br"/\x41");
        });
        assert!(seen.is_some());
        let line = br#"1.2.3.4 - - [17/May/2015:10:05:03 +0000] "GET / HTTP/1.1" 200 5 "\x41" "\x3C\"""#;
        let seen = read(LineFormat::Combined, line, [1; 16], 9, |said| {
            assert_eq!((said.user_agent.as_ref(), said.referer.as_ref()), (&b"<\""[..], &b"A"[..]));
            assert_eq!((said.request.user_agent, said.request.referer), (&br#"\x3C\""#[..], &br"\x41"[..]));
        });
        assert!(seen.is_some());
    }

    #[test]
    fn json_as_caddy_writes_it() {
        let caddy = r#"{"level":"info","ts":1646861401.5241024,"logger":"http.log.access.log0","msg":"handled request",
            "request":{"remote_ip":"10.0.0.1","remote_port":"41342","client_ip":"203.0.113.9","proto":"HTTP/2.0","method":"POST",
            "host":"Shop.Example:8443","uri":"/login?next=%2F","headers":{"User-Agent":["curl/7.82.0"],"Accept":["*/*"],
            "X-Forwarded-For":["6.6.6.6, 203.0.113.9","203.0.113.10"],"Referer":["https://shop.example/"],
            "Authorization":["REDACTED"]},"tls":{"resumed":false,"version":772,"cipher_suite":4865,"proto":"h2",
            "server_name":"shop.example"}},"bytes_read":42,"user_id":"bob","duration":0.000929675,"size":10900,"status":401,
            "resp_headers":{"Server":["Caddy"],"Content-Type":["text/html; charset=utf-8"]}}"#;
        let seen = read(LineFormat::Jsonl, caddy.as_bytes(), [1; 16], 9, |said| {
            let request = &said.request;
            assert_eq!((said.method, said.target.as_ref()), (&b"POST"[..], &b"/login?next=%2F"[..]));
            assert_eq!((request.client_ip.to_string().as_str(), request.event_us / 1000), ("203.0.113.9", 1_646_861_401_524));
            assert_eq!((request.host, request.server_port, request.scheme), (&b"shop.example"[..], 8443, 2));
            assert_eq!((request.http_version, request.status, request.user), (20, 401, &b"bob"[..]));
            assert_eq!((request.request_bytes, request.response_bytes, request.response_us), (42, 10_900, 930));
            assert_eq!((request.user_agent, request.referer), (&b"curl/7.82.0"[..], &b"https://shop.example/"[..]));
            assert_eq!(said.forwarded_for, b"6.6.6.6, 203.0.113.9, 203.0.113.10");
        });
        assert!(seen.is_some());
        // Before 2.7 there is no client_ip, before 2.5 the port is with the address; without TLS there is no such object.
        for (address, found) in
            [(r#""remote_ip":"192.0.2.7""#, "192.0.2.7"), (r#""remote_addr":"[2001:db8::1]:443""#, "2001:db8::1")]
        {
            let line = format!(r#"{{"request":{{{address},"method":"GET","host":"a","uri":"/","headers":{{}}}},"status":200}}"#);
            let seen = read(LineFormat::Jsonl, line.as_bytes(), [1; 16], 9, |said| {
                assert_eq!((said.request.client_ip.to_string().as_str(), said.request.scheme), (found, 1));
                assert_eq!((said.request.user_agent, said.forwarded_for), (&b""[..], &b""[..]));
            });
            assert!(seen.is_some());
        }
        // Names that only Caddy has mean nothing in other logs.
        let other = br#"{"remote_addr":"1.2.3.4","uri":"/","duration":5,"size":7,"user_id":"x","proto":"HTTP/1.1"}"#;
        let seen = read(LineFormat::Jsonl, other, [1; 16], 9, |said| {
            let request = &said.request;
            assert_eq!((request.response_us, request.response_bytes, request.user), (0, 0, &b""[..]));
        });
        assert!(seen.is_some());
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
