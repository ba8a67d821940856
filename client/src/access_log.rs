//! Reads one line of an access log in the combined or common format, as Apache and NGINX write it.
//!
//! ```text
//! [syslog prefix: ] [virtual host[:port]] address ident user [time] "request line" status bytes ["referer" "user agent" …]
//! ```
//!
//! Bytes are kept as they are: `\xHH` escapes are not undone, for what an attacker sent is evidence. The parser is lenient:
//! a request line that is no request gives an empty method and the whole request line as the path; missing numbers are 0.
//! Only a line without the skeleton above (a bracketed time with something before it) is no line at all.
//!
//! An address field that is no IP address (a host name, for instance) stands for itself: its 55-bit hash becomes an address
//! below fe00::/9, which is assigned to nobody. The text itself is not kept.
//!
//! Pure functions on borrowed bytes; nothing here reads files, allocates or keeps state.

use crate::Request;
use postanalytics_protocol::Extension;
use postanalytics_protocol::schema::v1::{FLAG_CREDENTIALS, Method, TAG_METHOD};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Longest time in brackets.
const TIME_BYTES_MAX: usize = 64;

/// One line, its fields borrowed from it. A field that the log writes as `-` is empty or 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine<'a> {
    /// Leading virtual host without its port, empty if the log has none.
    pub virtual_host: &'a [u8],
    /// Port of the virtual host, 0 if not given.
    pub server_port: u16,
    /// The address field as written.
    pub address: &'a [u8],
    /// User name of HTTP Basic authentication; empty, too, where the log has `""`.
    pub user: &'a [u8],
    /// Time of the request, Unix µs; `None` if the field holds no time.
    pub time_us: Option<u64>,
    /// The request line as written.
    pub request_line: &'a [u8],
    /// The method's text, empty if the request line is no request.
    pub method: &'a [u8],
    /// Path up to the first `?`, or the whole request line if that is no request.
    pub path: &'a [u8],
    /// What follows the first `?`.
    pub query: &'a [u8],
    /// HTTP version times ten, 0 if not known.
    pub http_version: u8,
    /// Status of the response.
    pub status: u16,
    /// Bytes of the response.
    pub response_bytes: u64,
    /// Referer.
    pub referer: &'a [u8],
    /// User agent.
    pub user_agent: &'a [u8],
    /// What the log has behind the user agent, as written.
    pub rest: &'a [u8],
    /// The text of a method without a number; kept here because a request borrows its extensions.
    extension: Option<Extension<'a>>,
}

impl LogLine<'_> {
    /// The request that this line tells of. `event_us` stands in where the line has no time.
    pub fn request(&self, request_id: [u8; 16], event_us: u64) -> Request<'_> {
        Request {
            request_id,
            client_ip: client_ip(self.address),
            event_us: self.time_us.unwrap_or(event_us),
            method: method_number(self.method),
            http_version: self.http_version,
            status: self.status,
            server_port: self.server_port,
            response_bytes: self.response_bytes,
            flags: if self.user.is_empty() { 0 } else { FLAG_CREDENTIALS },
            user: self.user,
            host: self.virtual_host,
            path: self.path,
            query: self.query,
            user_agent: self.user_agent,
            referer: self.referer,
            extensions: self.extension.as_slice(),
            ..Request::default()
        }
    }
}

/// Parses one line, with or without its line end. `None`: the line has no structure of an access log.
pub fn parse_line(line: &[u8]) -> Option<LogLine<'_>> {
    let line = line.trim_ascii_end();
    let (head, time, rest) = split_at_time(line)?;
    let head = Head::parse(after_syslog_prefix(head))?;
    let (request_line, rest) = request_field(rest);
    let request = RequestLine::parse(request_line);
    let (status, rest) = next_token(rest);
    let (response_bytes, rest) = next_token(rest);
    let (referer, rest) = quoted_field(rest);
    let (user_agent, rest) = quoted_field(rest);
    let unknown_method = !request.method.is_empty() && method_number(request.method) == 0;
    Some(LogLine {
        request_line,
        virtual_host: head.virtual_host,
        server_port: head.server_port,
        address: head.address,
        user: if head.user == b"\"\"" { b"" } else { dash_is_empty(head.user) },
        time_us: time,
        method: request.method,
        path: request.path,
        query: request.query,
        http_version: request.http_version,
        status: number(status).and_then(|status| u16::try_from(status).ok()).unwrap_or(0),
        response_bytes: number(response_bytes).unwrap_or(0),
        referer: dash_is_empty(referer),
        user_agent: dash_is_empty(user_agent),
        rest,
        extension: unknown_method.then_some(Extension { tag: TAG_METHOD, value: request.method }),
    })
}

/// Method, path, query and HTTP version times ten of a request line. One that is none is all path.
pub fn request_parts(line: &[u8]) -> (&[u8], &[u8], &[u8], u8) {
    let request = RequestLine::parse(line);
    (request.method, request.path, request.query, request.http_version)
}

/// The address that stands for an address field, see the head of this file.
pub fn client_ip(address: &[u8]) -> IpAddr {
    parse_ip(address).unwrap_or_else(|| stand_in(address))
}

/// The address that stands for an address field that is none.
fn stand_in(address: &[u8]) -> IpAddr {
    // FNV-1a, then its high bits folded in: stable for good, for replays of one log must give the same sources everywhere.
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for &byte in address {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash ^= hash >> 29;
    let high = 0xfe00_0000_0000_0000 | (hash & 0x007f_ffff_ffff_ffff);
    IpAddr::V6(Ipv6Addr::from(u128::from(high) << 64))
}

/// What stands before the time.
struct Head<'a> {
    virtual_host: &'a [u8],
    server_port: u16,
    address: &'a [u8],
    user: &'a [u8],
}

impl<'a> Head<'a> {
    /// User names may hold spaces, so fields cannot be counted from the end. A first field that is no address is a virtual
    /// host if another field and not the ident's usual `-` follows it.
    fn parse(head: &'a [u8]) -> Option<Self> {
        let (first, after_first) = next_token(head);
        let (second, after_second) = next_token(after_first);
        if first.is_empty() {
            return None;
        }
        let fields = || head.split(|&byte| byte == b' ').filter(|field| !field.trim_ascii().is_empty()).count();
        let has_virtual_host = second != b"-" && fields() >= 4 && parse_ip(first).is_none();
        let (virtual_host, address, rest) =
            if has_virtual_host { (first, second, after_second) } else { (&b""[..], first, after_first) };
        let (_ident, user) = next_token(rest);
        let (virtual_host, server_port) = split_port(dash_is_empty(virtual_host));
        Some(Self { virtual_host, server_port, address, user: user.trim_ascii() })
    }
}

struct RequestLine<'a> {
    method: &'a [u8],
    path: &'a [u8],
    query: &'a [u8],
    http_version: u8,
}

impl<'a> RequestLine<'a> {
    fn parse(line: &'a [u8]) -> Self {
        Self::parse_request(line).unwrap_or(Self { method: b"", path: line, query: b"", http_version: 0 })
    }

    /// `METHOD target HTTP/x.y`; a target may hold spaces; without a version it is HTTP/0.9.
    fn parse_request(line: &'a [u8]) -> Option<Self> {
        // Both are near the ends: plain loops are there before a vector is loaded.
        let space = line.iter().position(|&byte| byte == b' ')?;
        let (method, rest) = (&line[..space], line[space + 1..].trim_ascii());
        if method.is_empty() || !method.iter().all(|byte| byte.is_ascii_uppercase() || matches!(byte, b'-' | b'_')) {
            return None;
        }
        let (target, http_version) = match rest.iter().rposition(|&byte| byte == b' ') {
            Some(at) => (rest[..at].trim_ascii_end(), http_version(&rest[at + 1..])?),
            None => (rest, 9),
        };
        if target.is_empty() || target.starts_with(b"HTTP/") {
            return None;
        }
        let (path, query) = match memchr::memchr(b'?', target) {
            Some(at) => (&target[..at], &target[at + 1..]),
            None => (target, &b""[..]),
        };
        Some(Self { method, path, query, http_version })
    }
}

fn http_version(text: &[u8]) -> Option<u8> {
    match text.strip_prefix(b"HTTP/")? {
        [major @ b'0'..=b'9'] => Some((major - b'0') * 10),
        [major @ b'0'..=b'9', b'.', minor @ b'0'..=b'9'] => Some((major - b'0') * 10 + (minor - b'0')),
        _ => None,
    }
}

/// The number of a method, 0 if it has none.
pub fn method_number(text: &[u8]) -> u8 {
    match text {
        b"GET" => Method::Get as u8,
        b"POST" => Method::Post as u8,
        _ => Method::ALL.iter().find(|method| method.name().as_bytes() == text).map_or(0, |method| *method as u8),
    }
}

/// Finds the bracketed time: the first that a quoted field follows. A visitor writes into the fields before it (the virtual
/// host is his `Host`, the user what he says he is), and a time of his in brackets must not hide his request; a quote in these
/// fields is escaped by the log. Where no quoted field follows any time, the first bracket with a time wins over one without,
/// for a syslog tag such as `nginx[812]:` has brackets too, and then the first one that a quoted field follows.
fn split_at_time(line: &[u8]) -> Option<(&[u8], Option<u64>, &[u8])> {
    // No bracket is passed over, however many there are: each costs no more than its few bytes before it.
    for close in memchr::memchr_iter(b']', line) {
        let (before, rest) = (&line[..close], &line[close + 1..]);
        if !rest.starts_with(b" \"") {
            continue;
        }
        let from = close.saturating_sub(TIME_BYTES_MAX);
        let Some(open) = memchr::memrchr(b'[', &before[from..]).map(|at| from + at) else { continue };
        if let Some(time_us) = parse_time(&before[open + 1..]) {
            return Some((&line[..open], Some(time_us), rest));
        }
    }
    let mut fallback = None;
    // Times stand near the start; the bound keeps a hostile line of brackets from costing many times its length.
    for open in memchr::memchr_iter(b'[', line).take(16) {
        let inside = &line[open + 1..];
        let Some(close) = inside.iter().take(TIME_BYTES_MAX).position(|&byte| byte == b']') else { continue };
        let split = (&line[..open], &inside[close + 1..]);
        if let Some(time_us) = parse_time(&inside[..close]) {
            return Some((split.0, Some(time_us), split.1));
        }
        if fallback.is_none() && split.1.starts_with(b" \"") {
            fallback = Some(split);
        }
    }
    fallback.map(|(head, rest)| (head, None, rest))
}

/// `17/May/2015:10:05:03 +0000`, or RFC 3339 with any number of decimals, in Unix µs.
pub fn parse_time(text: &[u8]) -> Option<u64> {
    let two = |at: usize| Some(digit(*text.get(at)?)? * 10 + digit(*text.get(at + 1)?)?);
    let year_at = |at: usize| Some(two(at)? * 100 + two(at + 2)?);
    let is = |at: usize, byte: u8| text.get(at) == Some(&byte);
    if is(2, b'/') && is(6, b'/') && is(11, b':') && is(14, b':') && is(17, b':') && is(20, b' ') && text.len() == 26 {
        let date = days_of(year_at(7)?, month_number(&text[3..6])?, two(0)?)?;
        return time_of(date, (two(12)?, two(15)?, two(18)?), 0, offset_minutes(&text[21..])?);
    }
    let has_date = is(4, b'-') && is(7, b'-') && is(13, b':') && is(16, b':');
    if !has_date || !matches!(text.get(10)?, b'T' | b't' | b' ') {
        return None;
    }
    let date = days_of(year_at(0)?, two(5)?, two(8)?)?;
    let mut rest = text.get(19..)?;
    let mut micros = 0;
    if let Some(decimals) = rest.strip_prefix(b".") {
        let count = decimals.iter().take_while(|byte| byte.is_ascii_digit()).count();
        for place in 0..6 {
            micros = micros * 10 + decimals[..count].get(place).map_or(0, |byte| i64::from(byte - b'0'));
        }
        rest = &decimals[count..];
    }
    let offset = if matches!(rest, b"Z" | b"z") { 0 } else { offset_minutes(rest)? };
    time_of(date, (two(11)?, two(14)?, two(17)?), micros, offset)
}

/// Days from 1970-01-01 to a date; `None` if there is no such date. (Hinnant's algorithm: years begin in March.)
fn days_of(year: i64, month: i64, day: i64) -> Option<i64> {
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        2 => 28 + i64::from(is_leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if !(1..=days).contains(&day) {
        return None;
    }
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    Some(era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468)
}

/// Second 60 is a leap second: logs write it, Unix time has none and takes it for the next one.
fn time_of(days: i64, (hour, minute, second): (i64, i64, i64), micros: i64, offset_minutes: i64) -> Option<u64> {
    if hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let seconds = ((days * 24 + hour) * 60 + minute - offset_minutes) * 60 + second;
    u64::try_from(seconds * 1_000_000 + micros).ok()
}

/// `+0100` or `+01:00`.
fn offset_minutes(text: &[u8]) -> Option<i64> {
    let (sign, hours, minutes) = match *text {
        [sign @ (b'+' | b'-'), h1, h2, m1, m2] | [sign @ (b'+' | b'-'), h1, h2, b':', m1, m2] => {
            (sign, digit(h1)? * 10 + digit(h2)?, digit(m1)? * 10 + digit(m2)?)
        }
        _ => return None,
    };
    let minutes = hours * 60 + minutes;
    (hours < 24).then_some(if sign == b'-' { -minutes } else { minutes })
}

fn month_number(text: &[u8]) -> Option<i64> {
    let &[first, second, third] = text else { return None };
    let number = match [first, second, third].map(|letter| letter.to_ascii_lowercase()) {
        [b'j', b'a', b'n'] => 1,
        [b'f', b'e', b'b'] => 2,
        [b'm', b'a', b'r'] => 3,
        [b'a', b'p', b'r'] => 4,
        [b'm', b'a', b'y'] => 5,
        [b'j', b'u', b'n'] => 6,
        [b'j', b'u', b'l'] => 7,
        [b'a', b'u', b'g'] => 8,
        [b's', b'e', b'p'] => 9,
        [b'o', b'c', b't'] => 10,
        [b'n', b'o', b'v'] => 11,
        [b'd', b'e', b'c'] => 12,
        _ => return None,
    };
    Some(number)
}

const fn digit(byte: u8) -> Option<i64> {
    if byte.is_ascii_digit() { Some((byte - b'0') as i64) } else { None }
}

/// What follows a syslog prefix: `<190>May 17 10:05:03 host nginx[812]: …` (RFC 3164, the priority may be missing), or
/// `<190>1 2015-05-17T10:05:03Z host nginx 812 - - …` (RFC 5424).
fn after_syslog_prefix(head: &[u8]) -> &[u8] {
    let priority = head.strip_prefix(b"<").and_then(|rest| rest.iter().take(4).position(|&byte| byte == b'>'));
    if let Some(end) = priority
        && head[end + 2..].starts_with(b"1 ")
    {
        let mut rest = &head[end + 4..];
        // Time, host, application, process, message id.
        for _ in 0..5 {
            rest = next_token(rest).1;
        }
        let rest = after_structured_data(rest).trim_ascii_start();
        return rest.strip_prefix(b"\xef\xbb\xbf").unwrap_or(rest);
    }
    // The tag ends in a colon, and no address does that is followed by its two fields.
    if !head.contains(&b':') {
        return head;
    }
    let mut rest = head;
    while !rest.is_empty() {
        let (field, after) = next_token(rest);
        if field.ends_with(b":") && parse_ip(field).is_none() {
            return after;
        }
        rest = after;
    }
    head
}

/// What follows the structured data of RFC 5424: `-`, or elements such as `[id name="any \"text\]"]` without space between.
fn after_structured_data(text: &[u8]) -> &[u8] {
    let mut rest = text;
    while let Some(inside) = rest.strip_prefix(b"[") {
        let (mut is_quoted, mut is_escaped) = (false, false);
        let end = inside.iter().position(|&byte| {
            let is_end = byte == b']' && !is_quoted;
            is_quoted ^= byte == b'"' && !is_escaped;
            is_escaped = byte == b'\\' && !is_escaped;
            is_end
        });
        let Some(end) = end else { break };
        rest = &inside[end + 1..];
    }
    if rest.len() == text.len() { next_token(text).1 } else { rest }
}

/// The request field and what follows it. Its end is the first unescaped quote after which a status stands; a log that
/// does not escape quotes is read right that way. Without any, the first unescaped quote, or else the end of the line.
fn request_field(text: &[u8]) -> (&[u8], &[u8]) {
    let Some(inside) = text.trim_ascii_start().strip_prefix(b"\"") else { return (b"", text) };
    let is_end = |&at: &usize| match &inside[at + 1..] {
        [b' ', b'-', rest @ ..] | [b' ', b'0'..=b'9', b'0'..=b'9', b'0'..=b'9', rest @ ..] => {
            rest.first().is_none_or(|&byte| byte == b' ')
        }
        _ => false,
    };
    let end = unescaped_quotes(inside).find(is_end).or_else(|| unescaped_quotes(inside).next());
    end.map_or((inside, &b""[..]), |at| (&inside[..at], &inside[at + 1..]))
}

/// The content of a quoted field and what follows it; empty if there is none.
fn quoted_field(text: &[u8]) -> (&[u8], &[u8]) {
    let Some(inside) = text.trim_ascii_start().strip_prefix(b"\"") else { return (b"", text) };
    unescaped_quotes(inside).next().map_or((inside, &b""[..]), |at| (&inside[..at], &inside[at + 1..]))
}

/// Where quotes stand that are not escaped: one is after an odd number of backslashes.
pub fn unescaped_quotes(text: &[u8]) -> impl Iterator<Item = usize> {
    memchr::memchr_iter(b'"', text).filter(|&at| {
        let backslashes = text[..at].iter().rev().take_while(|&&byte| byte == b'\\').count();
        backslashes % 2 == 0
    })
}

/// The next field before a space, and what follows.
fn next_token(text: &[u8]) -> (&[u8], &[u8]) {
    let text = text.trim_ascii_start();
    let end = text.iter().position(|&byte| byte == b' ').unwrap_or(text.len());
    (&text[..end], text[end..].trim_ascii_start())
}

/// `host:port` in its parts, the port 0 if there is none; an IPv6 host stands in brackets.
pub fn split_port(host: &[u8]) -> (&[u8], u16) {
    let Some(colon) = host.iter().rposition(|&byte| byte == b':') else { return (host, 0) };
    match number(&host[colon + 1..]).and_then(|port| u16::try_from(port).ok()) {
        Some(port) if colon > 0 && !host[..colon].contains(&b':') || host[..colon].ends_with(b"]") => (&host[..colon], port),
        _ => (host, 0),
    }
}

/// The address that an address field is.
pub fn parse_ip(text: &[u8]) -> Option<IpAddr> {
    let other = || std::str::from_utf8(text).ok()?.parse().ok();
    parse_ipv4(text).map(IpAddr::V4).or_else(other)
}

/// Four numbers without needless zeros: most addresses of most logs, and a few times faster than what can be any address.
fn parse_ipv4(text: &[u8]) -> Option<Ipv4Addr> {
    let mut octets = [0; 4];
    let (mut octet, mut digits) = (0, 0);
    for &byte in text {
        let value: &mut u16 = octets.get_mut(octet)?;
        match byte {
            b'.' if digits > 0 => (octet, digits) = (octet + 1, 0),
            b'0'..=b'9' if digits < 3 && !(digits > 0 && *value == 0) => {
                *value = *value * 10 + u16::from(byte - b'0');
                digits += 1;
            }
            _ => return None,
        }
    }
    let [a, b, c, d] = octets.map(|octet| u8::try_from(octet).ok());
    if octet == 3 && digits > 0 { Some(Ipv4Addr::new(a?, b?, c?, d?)) } else { None }
}

fn number(text: &[u8]) -> Option<u64> {
    let add = |number: u64, &byte: &u8| number.checked_mul(10)?.checked_add(digit(byte)? as u64);
    if text.is_empty() { None } else { text.iter().try_fold(0, add) }
}

fn dash_is_empty(text: &[u8]) -> &[u8] {
    if text == b"-" { b"" } else { text }
}

#[cfg(test)]
mod tests;
