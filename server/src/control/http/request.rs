//! Requests to the status pages: parsing and the guards on them. Pure: bytes in, a request or a named refusal out.

use crate::escape::hexadecimal;
use std::net::{IpAddr, SocketAddr};

/// Longest head of a request.
pub(in crate::control) const HEAD_BYTES_MAX: usize = 8 << 10;
/// Most headers of a request.
const HEADERS_MAX: usize = 64;
/// Longest body of a request.
pub(in crate::control) const BODY_BYTES_MAX: usize = 4 << 10;

/// Methods that are told apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::control) enum Method {
    Get,
    Head,
    Post,
    Delete,
    #[default]
    Other,
}

impl Method {
    fn of(name: &str) -> Self {
        match name {
            "GET" => Self::Get,
            "HEAD" => Self::Head,
            "POST" => Self::Post,
            "DELETE" => Self::Delete,
            _ => Self::Other,
        }
    }

    pub(in crate::control) const fn name(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Delete => "DELETE",
            Self::Other => "another",
        }
    }

    /// Whether requests of this method may have a body.
    const fn takes_body(self) -> bool {
        matches!(self, Self::Post | Self::Delete)
    }
}

/// A request, as far as we care.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::control) struct Request {
    pub(in crate::control) method: Method,
    /// Path without query, percent signs as they came.
    pub(in crate::control) path: String,
    /// Names and values of the query, decoded.
    pub(in crate::control) query: Vec<(String, String)>,
    pub(in crate::control) host: Option<String>,
    /// Token of an `Authorization: Bearer`.
    pub(in crate::control) bearer: Option<String>,
    pub(in crate::control) keep_alive: bool,
    pub(in crate::control) body: Vec<u8>,
}

/// What is answered instead, and then the connection closes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::control) struct Bad {
    pub(in crate::control) status: u16,
    pub(in crate::control) text: String,
}

fn bad(status: u16, text: &str) -> Bad {
    Bad { status, text: text.to_owned() }
}

impl Request {
    /// The first value of a name in the query that is not empty.
    pub(in crate::control) fn query_value(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, value)| key == name && !value.is_empty()).map(|(_, value)| value.as_str())
    }
}

/// Parses a request, body and all, at the start of `bytes`; the number is that of the bytes it took. `None`: more bytes are
/// needed.
pub(in crate::control) fn parse(bytes: &[u8]) -> Result<Option<(Request, usize)>, Bad> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut parsed = httparse::Request::new(&mut headers);
    let head_bytes = match parsed.parse(&bytes[..bytes.len().min(HEAD_BYTES_MAX)]) {
        Ok(httparse::Status::Complete(head_bytes)) => head_bytes,
        Ok(httparse::Status::Partial) if bytes.len() >= HEAD_BYTES_MAX => {
            return Err(bad(431, "the headers are longer than 8 KiB"));
        }
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(bad(431, "more than 64 headers")),
        Err(error) => return Err(Bad { status: 400, text: format!("this is no HTTP request: {error}") }),
    };
    let (authority, target) = split_target(parsed.path.unwrap_or_default());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut request = Request {
        method: Method::of(parsed.method.unwrap_or_default()),
        path: path.to_owned(),
        query: parse_query(query),
        keep_alive: parsed.version == Some(1),
        ..Request::default()
    };
    let mut body_bytes = None;
    for header in parsed.headers.iter() {
        apply_header(&mut request, header, &mut body_bytes)?;
    }
    if let Some(authority) = authority {
        // As proxies ask; the name in it counts instead of the Host header.
        request.host = Some(authority.to_owned());
    }
    let end = head_bytes + body_bytes.unwrap_or(0);
    let Some(body) = bytes.get(head_bytes..end) else { return Ok(None) };
    request.body = body.to_vec();
    Ok(Some((request, end)))
}

/// `http://host:port/path` is split into host and path; any other target is a path.
fn split_target(target: &str) -> (Option<&str>, &str) {
    let scheme = ["http://", "https://"]
        .into_iter()
        .find(|scheme| target.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme)));
    let Some(scheme) = scheme else { return (None, target) };
    let rest = &target[scheme.len()..];
    match rest.find(['/', '?']) {
        Some(end) if rest[end..].starts_with('/') => (Some(&rest[..end]), &rest[end..]),
        Some(end) => (Some(&rest[..end]), "/"),
        None => (Some(rest), "/"),
    }
}

fn apply_header(request: &mut Request, header: &httparse::Header<'_>, body_bytes: &mut Option<usize>) -> Result<(), Bad> {
    let value = std::str::from_utf8(header.value).unwrap_or_default().trim();
    if header.name.eq_ignore_ascii_case("host") {
        if request.host.replace(value.to_owned()).is_some() {
            return Err(bad(400, "more than one Host header"));
        }
    } else if header.name.eq_ignore_ascii_case("connection") {
        let has = |word: &str| value.split(',').any(|part| part.trim().eq_ignore_ascii_case(word));
        request.keep_alive = (request.keep_alive || has("keep-alive")) && !has("close");
    } else if header.name.eq_ignore_ascii_case("authorization") {
        let token = value.split_once(' ').filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"));
        request.bearer = token.map(|(_, token)| token.trim().to_owned());
    } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
        return Err(bad(411, "a body in pieces is not taken: give Content-Length"));
    } else if header.name.eq_ignore_ascii_case("content-length") {
        let length = content_length(value)?;
        // Two that differ are how requests are smuggled past others that read the first (RFC 9112, 6.3).
        if body_bytes.replace(length).is_some_and(|earlier| earlier != length) {
            return Err(bad(400, "more than one Content-Length"));
        }
        if length > 0 && !request.method.takes_body() {
            return Err(bad(413, "a body is taken with POST and DELETE only"));
        }
    }
    Ok(())
}

fn content_length(value: &str) -> Result<usize, Bad> {
    if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(bad(400, "Content-Length is no number"));
    }
    // What does not fit a number is too long as well.
    match value.parse() {
        Ok(length) if length <= BODY_BYTES_MAX => Ok(length),
        _ => Err(bad(413, "the body is longer than 4 KiB")),
    }
}

fn parse_query(query: &str) -> Vec<(String, String)> {
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).map(|(name, value)| (decode(name), decode(value))).collect()
}

/// Percent-decoding. What is no escape stays as it is; so does `+`, which stands in time zones here, and spaces never do.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let escaped = after.get(..2).and_then(hexadecimal);
        match (first, escaped) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &after[2..];
                continue;
            }
            (byte, _) => bytes.push(byte),
        }
        rest = after;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Whether the Host header is one of ours. A name of somebody else means that a browser was lured here (DNS rebinding).
pub(in crate::control) fn host_is_ours(
    host: &str,
    status: Option<SocketAddr>,
    configured: Option<&str>,
    names: &[String],
) -> bool {
    let name = host_name(host).to_ascii_lowercase();
    if let Ok(address) = name.parse::<IpAddr>() {
        let address = address.to_canonical();
        // Bound to all addresses, each is the status address; an address cannot be rebound.
        return address.is_loopback()
            || status.is_some_and(|own| own.ip().is_unspecified() || own.ip().to_canonical() == address);
    }
    // A dot at the end says that the name is whole.
    let name = name.strip_suffix('.').unwrap_or(&name);
    if name.is_empty() {
        return false;
    }
    let is_configured = configured.is_some_and(|own| own.trim_end_matches('.').eq_ignore_ascii_case(name));
    let is_named = names.iter().any(|own| own.trim_end_matches('.').eq_ignore_ascii_case(name));
    name == "localhost" || name.ends_with(".localhost") || is_configured || is_named
}

/// The name of a Host header, without port and brackets.
fn host_name(host: &str) -> &str {
    if let Some(rest) = host.strip_prefix('[') {
        return rest.split(']').next().unwrap_or_default();
    }
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) && !name.contains(':') => name,
        _ => host,
    }
}

/// Compares without stopping at the first difference, so that time does not tell how much was right.
pub(in crate::control) fn equal_in_constant_time(a: &[u8], b: &[u8]) -> bool {
    let difference = a.iter().zip(b).fold(0u8, |sum, (a, b)| std::hint::black_box(sum | (a ^ b)));
    a.len() == b.len() && difference == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parsed(text: &str) -> Request {
        parse(text.as_bytes()).expect("good").expect("whole").0
    }

    #[test]
    fn a_request_is_parsed() {
        let text = "GET /requests?source=192.0.2.1&limit=5&since=2026-01-01T00%3A00:00+01:00&x HTTP/1.1\r\nHost: localhost:9001\r\n\
                    Authorization: bearer abc\r\n\r\nGET /";
        let (request, taken) = parse(text.as_bytes()).expect("good").expect("whole");
        assert_eq!((request.path.as_str(), request.method, request.keep_alive), ("/requests", Method::Get, true));
        assert_eq!((request.query_value("source"), request.query_value("limit")), (Some("192.0.2.1"), Some("5")));
        assert_eq!(request.query_value("since"), Some("2026-01-01T00:00:00+01:00"));
        assert_eq!((request.query_value("x"), request.query_value("y")), (None, None));
        assert_eq!((request.host.as_deref(), request.bearer.as_deref()), (Some("localhost:9001"), Some("abc")));
        assert_eq!(&text[taken..], "GET /");
        assert_eq!(parse(&text.as_bytes()[..30]), Ok(None));
    }

    #[test]
    fn keep_alive_follows_version_and_header() {
        assert!(!parsed("GET / HTTP/1.0\r\n\r\n").keep_alive);
        assert!(parsed("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n").keep_alive);
        assert!(!parsed("GET / HTTP/1.1\r\nConnection: close\r\n\r\n").keep_alive);
        assert_eq!(parsed("PUT / HTTP/1.1\r\nContent-Length: 0\r\n\r\n").method, Method::Other);
        assert_eq!(parsed("HEAD / HTTP/1.1\r\n\r\n").method, Method::Head);
    }

    #[test]
    fn bodies_come_whole_or_not_at_all() {
        let text = "POST /denylist HTTP/1.1\r\nContent-Length: 4\r\n\r\nabcdGET /";
        let (request, taken) = parse(text.as_bytes()).expect("good").expect("whole");
        assert_eq!((request.method, request.body.as_slice(), &text[taken..]), (Method::Post, &b"abcd"[..], "GET /"));
        assert_eq!(parse(&text.as_bytes()[..taken - 1]), Ok(None));
        assert_eq!(parsed("DELETE / HTTP/1.1\r\n\r\n").body, b"");
        let largest = format!("POST / HTTP/1.1\r\nContent-Length: {BODY_BYTES_MAX}\r\n\r\n{}", "b".repeat(BODY_BYTES_MAX));
        assert_eq!(parsed(&largest).body.len(), BODY_BYTES_MAX);
    }

    #[test]
    fn absolute_targets_name_the_host() {
        let found = parsed("GET http://localhost:9001/requests?limit=1 HTTP/1.1\r\nHost: evil.example.com\r\n\r\n");
        assert_eq!((found.path.as_str(), found.host.as_deref()), ("/requests", Some("localhost:9001")));
        assert_eq!(found.query_value("limit"), Some("1"));
        assert_eq!(parsed("GET HTTP://a HTTP/1.1\r\n\r\n").path, "/");
    }

    #[test]
    fn limits_have_their_status() {
        let status = |text: String| parse(text.as_bytes()).expect_err("refused").status;
        assert_eq!(status(format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(HEAD_BYTES_MAX))), 431);
        assert_eq!(status(format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(65))), 431);
        assert_eq!(status("GET / HTTP/1.1\r\nContent-Length: 5\r\n\r\n".to_owned()), 413);
        assert_eq!(status("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned()), 411);
        for (length, code) in
            [("4097", 413), ("99999999999999999999999", 413), ("-1", 400), ("+1", 400), ("", 400), ("1, 1", 400)]
        {
            assert_eq!(status(format!("POST / HTTP/1.1\r\nContent-Length: {length}\r\n\r\n")), code, "{length}");
        }
        assert_eq!(status("POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n".to_owned()), 400);
        assert_eq!(status("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n".to_owned()), 400);
        assert_eq!(status("PSTA\0\0\0\r\n".to_owned()), 400);
    }

    #[test]
    fn only_our_own_names_are_hosts() {
        let status = "10.0.0.1:9001".parse().ok();
        let names = ["status.example.com".to_owned()];
        let ours = |host: &str| host_is_ours(host, status, Some("Box.Example.com"), &names);
        for good in [
            "localhost",
            "LOCALHOST:9001",
            "127.0.0.1",
            "127.0.0.1:9001",
            "[::1]:9001",
            "a.localhost",
            "10.0.0.1:9001",
            "localhost.",
            "Localhost.:9001",
        ] {
            assert!(ours(good), "{good}");
        }
        assert!(ours("status.example.com") && ours("box.example.com:80"));
        for bad in ["", ".", "evil.example.com", "localhost.evil.example.com", "10.0.0.2", "192.0.2.1:9001", "[2001:db8::1]"] {
            assert!(!ours(bad), "{bad}");
        }
        assert!(host_is_ours("192.0.2.1:9001", "0.0.0.0:9001".parse().ok(), None, &[]));
    }

    #[test]
    fn tokens_are_compared_whole() {
        assert!(equal_in_constant_time(b"abc", b"abc"));
        assert!(!equal_in_constant_time(b"abc", b"abd") && !equal_in_constant_time(b"abc", b"ab"));
        assert!(!equal_in_constant_time(b"", b"a"));
    }

    proptest! {
        #[test]
        fn nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..600), text in "\\PC*") {
            let _ = parse(&bytes);
            let _ = parse(format!("GET /{text} HTTP/1.1\r\nHost: {text}\r\n\r\n").as_bytes());
            let _ = (host_is_ours(&text, None, None, &[]), decode(&text));
        }
    }
}
