//! A line of a log as a request: what it says, what the filter engine finds in it, and what may leave the node.

#[cfg(feature = "fuzzing")]
pub(super) mod fuzzing;
mod json;

use crate::config::flags::LineFormat;
use ipnet::IpNet;
pub(crate) use json::read_json;
use postanalytics_client::access_log::{parse_line, unescaped_quotes};
use postanalytics_client::{Client, Request, SendError};
use postanalytics_filter::{Engine, MaskConfig, Masker, PROCESS_TIME_LIMIT, RawRequest, Scratch};
use postanalytics_protocol::schema::v1::FLAG_OVERLIMIT;
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
pub(crate) struct Said<'a> {
    pub(crate) request: Request<'a>,
    pub(crate) method: &'a [u8],
    /// Target, user agent and referer as the visitor sent them, without what the log escapes.
    pub(crate) target: Cow<'a, [u8]>,
    pub(crate) user_agent: Cow<'a, [u8]>,
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

/// A line of a log as it may be shown: without secrets, nor the cookies that a log in JSON may have. Before it is cut, for half a secret
/// is not known as one.
pub(crate) fn masked_line(line: &[u8]) -> Vec<u8> {
    let mut config = MaskConfig::default();
    config.parameters.push("cookie".to_owned());
    // The names are ours; should they ever be no pattern, nothing is shown.
    Masker::new(&config).map_or_else(|_| b"(not shown)".to_vec(), |masker| masker.text(line).into_owned())
}

/// An address, with or without port.
pub(crate) fn address_of_hop(hop: &[u8]) -> Option<IpAddr> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_shown_without_cookies_too() {
        for line in [
            r#"{"http_cookie":"abc=hunter22; remember_me=hunter23","status":200}"#,
            r#"{"headers":{"Cookie":["abc=hunter22"],"Authorization":["Basic hunter23"]},"uri":"/?token=hunter24"}"#,
        ] {
            let shown = String::from_utf8(masked_line(line.as_bytes())).expect("a text");
            assert!(!shown.contains("hunter"), "{shown}");
        }
    }

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
