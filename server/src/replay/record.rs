//! A line of a log, or a record as JSON, as a record of the wire: what a filter would have sent.
//!
//! Of JSON there are records with what a log does not tell, hits and outcomes; rows of `/requests`, whose texts are escaped; and
//! all that the agent reads.

use crate::agent::line::{Said, address_of_hop, read_json as read_said};
use crate::analytics::observation::TAG_SOURCE_TEXT;
use crate::config::flags::LineFormat;
use crate::escape::unescape;
use postanalytics_client::access_log::{client_ip, method_number, parse_ip, parse_line};
use postanalytics_filter::LineFilter;
use postanalytics_protocol::routing::address_bytes;
use postanalytics_protocol::schema::v1::{
    AttackType, FLAG_AUTH_FAILED, FLAG_AUTH_SUCCEEDED, FLAG_BLOCKED, FLAG_CREDENTIALS, FLAG_DENYLIST, FLAG_GRAYLIST, HITS_MAX,
    TAG_METHOD,
};
use postanalytics_protocol::{Extension, Hit, RecordFields};
use serde::Deserialize;
use siphasher::sip::SipHasher13;
use std::borrow::Cow;
use std::hash::Hasher;

/// Gives `take` the record of a line, or says why it is none.
///
/// A line of a log has the hits that `filter` finds; a record as JSON has its own.
pub(crate) fn read<T>(
    format: LineFormat,
    line: &[u8],
    filter: Option<&mut LineFilter>,
    take: impl FnOnce(&RecordFields<'_>) -> T,
) -> Result<T, &'static str> {
    match format {
        LineFormat::Combined => read_log_line(line, filter, take),
        LineFormat::Jsonl => read_json(line, filter, take),
        LineFormat::EscapedJsonl => match JsonRecord::of(line) {
            Some(record) => Ok(record.read(true, take)),
            None => Err("it is no row of /requests"),
        },
    }
}

fn read_log_line<T>(
    line: &[u8],
    filter: Option<&mut LineFilter>,
    take: impl FnOnce(&RecordFields<'_>) -> T,
) -> Result<T, &'static str> {
    let line = parse_line(line).ok_or(match line.trim_ascii_start() {
        [b'{', ..] => "it is JSON: give --format jsonl",
        _ => "it is no line of an access log in the combined or common format",
    })?;
    let (method, target) = request(line.request_line).unwrap_or((b"", line.request_line));
    let findings = filter.map(|filter| filter.inspect(line.request_line, line.user_agent)).unwrap_or_default();
    let mut fields = RecordFields {
        event_us: line.time_us.ok_or("its time is none")?,
        user_hash: hash_of(line.user),
        flags: if line.user.is_empty() { 0 } else { FLAG_CREDENTIALS },
        status: line.status,
        response_bytes: line.response_bytes,
        http_version: line.http_version,
        host: line.virtual_host,
        path: target,
        user_agent: line.user_agent,
        referer: line.referer,
        hits: findings.hits(),
        ..RecordFields::default()
    };
    set_method(&mut fields, method);
    set_source(&mut fields, line.address);
    Ok(take(&fields))
}

/// A record; else, or if its names say no path, what the agent reads.
fn read_json<T>(
    line: &[u8],
    filter: Option<&mut LineFilter>,
    take: impl FnOnce(&RecordFields<'_>) -> T,
) -> Result<T, &'static str> {
    let record = match JsonRecord::of(line) {
        Some(record) if record.path.is_some() || record.hits.is_some() || record.outcome.is_some() => {
            return Ok(record.read(false, take));
        }
        None if says_more(line) => {
            return Err(
                "it has hits or an outcome as a record has, but another field that is none: status a number, time RFC 3339, an address",
            );
        }
        record => record,
    };
    let mut take = Some(take);
    let said = read_said(line, [0; 16], 0, |said| {
        let taken = if said.request.event_us == 0 { None } else { take.take().map(|take| read_said_line(&said, filter, take)) };
        taken.ok_or("it has no time (event_us, time_iso8601, time, ts, msec)")
    });
    match (said, record, take) {
        (Some(said), ..) if said.is_ok() => said,
        (_, Some(record), Some(take)) => Ok(record.read(false, take)),
        (Some(said), ..) => said,
        _ if !is_object(line) => Err("it is no JSON object"),
        _ => Err("it has no address (ip, client_ip, remote_addr), or no path (path, request, request_uri)"),
    }
}

fn is_object(line: &[u8]) -> bool {
    object(line).is_some()
}

/// Whether a line says what only records say, and what would be lost if it were read as that of a web server.
fn says_more(line: &[u8]) -> bool {
    object(line).is_some_and(|object| object.contains_key("hits") || object.contains_key("outcome"))
}

fn object(line: &[u8]) -> Option<serde_json::Map<String, serde_json::Value>> {
    serde_json::from_str(&String::from_utf8_lossy(line)).ok()
}

/// A line as a web server writes it: with the hits that `filter` finds.
fn read_said_line<T>(said: &Said<'_>, filter: Option<&mut LineFilter>, take: impl FnOnce(&RecordFields<'_>) -> T) -> T {
    let request = &said.request;
    let line = [b"GET ", said.target.as_ref(), b" HTTP/1.1"].concat();
    let findings = filter.map(|filter| filter.inspect(&line, &said.user_agent)).unwrap_or_default();
    let mut fields = RecordFields {
        request_id: request.request_id,
        event_us: request.event_us,
        client_ip: address_bytes(request.client_ip),
        user_hash: hash_of(request.user),
        flags: request.flags,
        status: request.status,
        response_bytes: request.response_bytes,
        http_version: request.http_version,
        host: request.host,
        path: request.path,
        query: request.query,
        user_agent: request.user_agent,
        referer: request.referer,
        hits: findings.hits(),
        ..RecordFields::default()
    };
    set_method(&mut fields, said.method);
    take(&fields)
}

/// `METHOD target HTTP/x[.y]`; all else is no request.
pub(super) fn request(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let blank = line.iter().position(|&byte| byte == b' ')?;
    let (method, rest) = (&line[..blank], &line[blank + 1..]);
    let last = rest.iter().rposition(|&byte| byte == b' ')?;
    let (target, version) = (&rest[..last], &rest[last + 1..]);
    let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    let is_version = match version.strip_prefix(b"HTTP/")? {
        [major] => major.is_ascii_digit(),
        [major, b'.', minor] => major.is_ascii_digit() && minor.is_ascii_digit(),
        _ => false,
    };
    (!method.is_empty() && method.iter().all(is_token) && !target.is_empty() && is_version).then_some((method, target))
}

/// A record as JSON, or a row of `/requests`. Fields of other names are not looked at.
#[derive(Debug, Deserialize)]
struct JsonRecord<'a> {
    event_us: Option<serde_json::Number>,
    #[serde(borrow)]
    time: Option<Cow<'a, str>>,
    #[serde(borrow)]
    ip: Option<Cow<'a, str>>,
    #[serde(borrow)]
    client_ip: Option<Cow<'a, str>>,
    #[serde(borrow)]
    method: Option<Cow<'a, str>>,
    #[serde(borrow)]
    path: Option<Cow<'a, str>>,
    status: Option<i64>,
    #[serde(borrow)]
    request_id: Option<Cow<'a, str>>,
    application: Option<i32>,
    #[serde(borrow)]
    host: Option<Cow<'a, str>>,
    #[serde(borrow)]
    query: Option<Cow<'a, str>>,
    #[serde(borrow)]
    user_agent: Option<Cow<'a, str>>,
    #[serde(borrow)]
    session: Option<HashText<'a>>,
    #[serde(borrow)]
    user: Option<HashText<'a>>,
    /// Of a row, where `session` is its node's.
    #[serde(borrow)]
    session_hash: Option<HashText<'a>>,
    #[serde(borrow)]
    user_hash: Option<HashText<'a>>,
    #[serde(borrow)]
    outcome: Option<Cow<'a, str>>,
    #[serde(borrow)]
    hits: Option<Vec<JsonHit<'a>>>,
    #[serde(borrow)]
    basic_user: Option<Cow<'a, str>>,
    #[serde(borrow)]
    flags: Option<JsonFlags<'a>>,
}

/// Names, or the number of the wire, which only rows have.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum JsonFlags<'a> {
    Bits(u32),
    #[serde(borrow)]
    Names(Vec<Cow<'a, str>>),
}

#[derive(Debug, Deserialize)]
struct JsonHit<'a> {
    #[serde(borrow, rename = "type", alias = "attack_type")]
    attack_type: Option<Cow<'a, str>>,
    #[serde(borrow)]
    payload: Option<Cow<'a, str>>,
    #[serde(borrow)]
    point: Option<Cow<'a, str>>,
}

/// A hash as a number, as 16 hexadecimal digits, or any text, which is then hashed.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum HashText<'a> {
    Number(u64),
    #[serde(borrow)]
    Text(Cow<'a, str>),
}

impl HashText<'_> {
    fn hash(&self) -> u64 {
        match self {
            Self::Number(number) => *number,
            Self::Text(text) if text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
                u64::from_str_radix(text, 16).unwrap_or(0)
            }
            Self::Text(text) => hash_of(text.as_bytes()),
        }
    }
}

/// Tells users and sessions apart, whatever key the nodes have; of nothing 0.
fn hash_of(text: &[u8]) -> u64 {
    let mut hasher = SipHasher13::new();
    hasher.write(text);
    if text.is_empty() { 0 } else { hasher.finish().max(1) }
}

impl<'a> JsonRecord<'a> {
    /// `None`: it is none, or says no address or no time.
    fn of(line: &'a [u8]) -> Option<Self> {
        let record: Self = serde_json::from_slice(line).ok()?;
        record.source().and(record.event_us()).is_some().then_some(record)
    }

    fn source(&self) -> Option<&str> {
        self.ip.as_deref().or(self.client_ip.as_deref()).filter(|address| !matches!(*address, "" | "-"))
    }

    fn event_us(&self) -> Option<i64> {
        match (&self.event_us, &self.time) {
            // Beyond all numbers of this kind is as far as they go.
            (Some(event_us), _) => event_us.as_i64().or_else(|| event_us.as_f64().map(|event_us| event_us as i64)),
            (None, time) => Some(time.as_ref()?.parse::<jiff::Timestamp>().ok()?.as_microsecond()),
        }
    }

    /// Texts that are said to be escaped, and those of rows, are unescaped; one that [`escape`](crate::escape::escape) did not
    /// make stays.
    fn read<T>(&self, is_escaped: bool, take: impl FnOnce(&RecordFields<'_>) -> T) -> T {
        let (bits, names) = match &self.flags {
            Some(JsonFlags::Bits(bits)) => (Some(*bits), &[][..]),
            Some(JsonFlags::Names(names)) => (None, names.as_slice()),
            None => (None, &[][..]),
        };
        let text = |field: &Option<Cow<'_, str>>| -> Vec<u8> {
            let text = field.as_deref().unwrap_or_default();
            let unescaped = if is_escaped || bits.is_some() { unescape(text) } else { None };
            unescaped.unwrap_or_else(|| text.as_bytes().to_vec())
        };
        let (host, path, query, user_agent) = (text(&self.host), text(&self.path), text(&self.query), text(&self.user_agent));
        let method = text(&self.method);
        let hits = self.hits.as_deref().unwrap_or_default().iter().take(HITS_MAX as usize);
        let hits: Vec<_> = hits.map(|hit| (&hit.attack_type, text(&hit.point), text(&hit.payload))).collect();
        let has_flag = |name: &str| names.iter().any(|flag| flag == name);
        let has_credentials = has_flag("credentials") || self.basic_user.as_ref().is_some_and(|user| !user.is_empty());
        let outcome = self.outcome.as_deref();
        let flags = [
            (FLAG_BLOCKED, has_flag("blocked")),
            (FLAG_DENYLIST, has_flag("denylist")),
            (FLAG_GRAYLIST, has_flag("graylist")),
            (FLAG_CREDENTIALS, has_credentials),
            (FLAG_AUTH_FAILED, outcome == Some("failed")),
            (FLAG_AUTH_SUCCEEDED, outcome == Some("succeeded")),
        ];
        let is_set = |flag: u32, is_said: bool| is_said || bits.unwrap_or(0) & flag != 0;
        let hash = |hash: &Option<HashText<'_>>, of_record: &Option<HashText<'_>>| {
            hash.as_ref().or(of_record.as_ref()).map_or(0, HashText::hash)
        };
        let mut fields = RecordFields {
            request_id: self.request_id.as_deref().and_then(request_id).unwrap_or_default(),
            event_us: self.event_us().and_then(|event_us| u64::try_from(event_us).ok()).unwrap_or(0),
            application: self.application.unwrap_or(-1),
            session_hash: hash(&self.session_hash, &self.session),
            user_hash: hash(&self.user_hash, &self.user),
            flags: flags.iter().map(|(flag, is_said)| if is_set(*flag, *is_said) { *flag } else { 0 }).sum(),
            status: self.status.and_then(|status| u16::try_from(status).ok()).unwrap_or(0),
            host: &host,
            path: &path,
            query: &query,
            user_agent: &user_agent,
            hits: hits.iter().map(|(attack_type, point, payload)| hit(attack_type.as_deref(), point, payload)).collect(),
            ..RecordFields::default()
        };
        set_method(&mut fields, &method);
        let source = self.source().unwrap_or_default().as_bytes();
        // What writes `client_ip` may be a load balancer, with a port that is another for each connection.
        match address_of_hop(source).filter(|_| self.ip.is_none()) {
            Some(address) => fields.client_ip = address_bytes(address),
            None => set_source(&mut fields, source),
        }
        take(&fields)
    }
}

fn hit<'a>(attack_type: Option<&str>, point: &'a [u8], payload: &'a [u8]) -> Hit<'a> {
    // A name that is not known is a type that is not known, not the one that is called undefined.
    let known = attack_type.map_or(Some(AttackType::Undefined), AttackType::from_name);
    Hit { attack_type: known.map_or(u16::MAX, |known| known as u16), severity: 0, rule_id: 0, point, payload }
}

/// An id of 32 hexadecimal digits, with or without dashes. Others are not kept: evidence has room for 16 bytes.
fn request_id(text: &str) -> Option<[u8; 16]> {
    uuid::Uuid::try_parse(text).ok().map(uuid::Uuid::into_bytes)
}

fn set_method<'a>(fields: &mut RecordFields<'a>, method: &'a [u8]) {
    fields.method = method_number(method);
    if fields.method == 0 && !method.is_empty() {
        fields.extensions.push(Extension { tag: TAG_METHOD, value: method });
    }
}

fn set_source<'a>(fields: &mut RecordFields<'a>, address: &'a [u8]) {
    let parsed = parse_ip(address);
    if parsed.is_none() {
        fields.extensions.push(Extension { tag: TAG_SOURCE_TEXT, value: address });
    }
    fields.client_ip = address_bytes(parsed.unwrap_or_else(|| client_ip(address)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn request_lines() {
        assert_eq!(request(b"GET /a b HTTP/1.1"), Some((&b"GET"[..], &b"/a b"[..])));
        assert_eq!(request(b"m-search * HTTP/2"), Some((&b"m-search"[..], &b"*"[..])));
        for none in [&b"GET /x"[..], b"", b"-", b"GET  HTTP/1.1", b"GET / HTTP/11", b"G@T / HTTP/1.1", b"GET HTTP/1.1"] {
            assert_eq!(request(none), None, "{}", String::from_utf8_lossy(none));
        }
    }

    #[test]
    fn lines_of_a_log_have_the_hits_that_are_found_in_them() {
        let line = br#"192.0.2.7 - - [17/May/2015:10:05:03 +0000] "GET /etc/passwd HTTP/1.1" 404 5 "-" "-""#;
        let types = |fields: &RecordFields<'_>| fields.hits.iter().map(|hit| hit.attack_type).collect::<Vec<_>>();
        let found = read(LineFormat::Combined, line, Some(&mut LineFilter::default()), types);
        assert_eq!(found, Ok(vec![AttackType::Ptrav as u16]));
        assert_eq!(read(LineFormat::Combined, line, None, types), Ok(vec![]));
    }

    #[test]
    fn lines_of_a_log_are_of_the_host_and_user_that_the_agent_sends() {
        let line = |host: &str, user: &str| {
            let line = format!(r#"{host}192.0.2.7 - {user} [17/May/2015:10:05:03 +0000] "GET / HTTP/1.1" 401 5 "-" "-""#);
            let seen = |fields: &RecordFields<'_>| {
                let agent = parse_line(line.as_bytes()).expect("a line");
                let agent = agent.request([0; 16], 0);
                assert_eq!((fields.host, fields.flags, fields.user_hash == 0), (agent.host, agent.flags, agent.user.is_empty()));
                (fields.host.to_vec(), fields.user_hash)
            };
            read(LineFormat::Combined, line.as_bytes(), None, seen).expect("a record")
        };
        let (host, bob) = line("shop.example:443 ", "bob");
        assert_eq!(host, b"shop.example");
        assert_eq!([line("", "bob"), line("", "-"), line("", "\"\"")], [(vec![], bob), (vec![], 0), (vec![], 0)]);
        assert_ne!(line("", "eve").1, bob);
    }

    #[test]
    fn json_records_keep_what_they_say() {
        let line = br#"{"event_us": 5, "ip": "web", "method": "BREW", "path": "/p", "status": 200, "user": "00000000000000FF",
            "session": 7, "outcome": "failed", "flags": ["blocked", "?"], "hits": [{"type": "sqli", "payload": "x"}, {}]}"#;
        let seen = read_json(line, None, |fields| {
            assert_eq!((fields.event_us, fields.application, fields.user_hash, fields.session_hash), (5, -1, 255, 7));
            assert_eq!(fields.flags, FLAG_BLOCKED | FLAG_AUTH_FAILED);
            assert_eq!(fields.extensions[0], Extension { tag: TAG_METHOD, value: b"BREW" });
            assert_eq!(fields.extensions[1], Extension { tag: TAG_SOURCE_TEXT, value: b"web" });
            assert_eq!(fields.hits.len(), 2);
            assert_eq!((fields.hits[0].attack_type, fields.hits[0].payload), (AttackType::Sqli as u16, &b"x"[..]));
        });
        assert!(seen.is_ok());
        // Hits and outcome are never dropped for another field's sake.
        let line =
            br#"{"event_us": 5, "client_ip": "192.0.2.7:50001", "uri": "/p", "outcome": "failed", "hits": [{"type": "sqli"}]}"#;
        let seen = read_json(line, None, |fields| (fields.client_ip, fields.hits.len(), fields.extensions.len(), fields.flags));
        let address = address_bytes(std::net::Ipv4Addr::new(192, 0, 2, 7).into());
        assert_eq!(seen, Ok((address, 1, 0, FLAG_AUTH_FAILED)));
        let of_text = r#"{"event_us": 5, "ip": "192.0.2.7", "path": "/p", "status": "401", "outcome": "failed"}"#;
        for (none, cause) in [
            (of_text, "another field that is none"),
            ("", "no JSON object"),
            ("[1]", "no JSON object"),
            ("{}", "no address"),
            (r#"{"time": "yesterday"}"#, "no address"),
            (r#"{"event_us": 5, "method": "POST", "path": "/login", "status": 401}"#, "no address"),
            (r#"{"event_us": 5, "ip": "", "path": "/login"}"#, "no address"),
            (r#"{"event_us": 5, "client_ip": "-", "path": "/login"}"#, "no address"),
            (r#"{"ip": "192.0.2.7", "path": "/login"}"#, "no time"),
        ] {
            let said = read_json(none.as_bytes(), None, |_| ()).expect_err("it is none");
            assert!(said.contains(cause), "{none}: {said}");
        }
    }

    #[test]
    fn all_json_that_the_agent_reads_is_read() {
        let mut filter = LineFilter::default();
        for (line, method) in [
            // As docs/agent.md has it for NGINX: all values are texts.
            (
                r#"{"time_iso8601":"2015-05-17T10:05:03+00:00","remote_addr":"192.0.2.7","request":"POST /etc/passwd?a=b HTTP/1.1",
                "status":"401","bytes_sent":"7","request_length":"9","request_time":"0.250","host":"h","http_user_agent":"ua",
                "http_referer":"","scheme":"https","server_port":"443","remote_user":"bob","http_x_forwarded_for":"","request_id":""}"#,
                "POST",
            ),
            // Records' names for all but the path.
            (
                r#"{"time":"2015-05-17T10:05:03Z","ip":"192.0.2.7","method":"BREW","uri":"/etc/passwd?a=b","status":401,
                "host":"h","user":"bob"}"#,
                "BREW",
            ),
            (
                r#"{"ts":1431857103.0,"request":{"client_ip":"192.0.2.7","method":"PUT","host":"H:1","uri":"/etc/passwd?a=b",
                "headers":{}},"user_id":"bob","status":401}"#,
                "PUT",
            ),
        ] {
            let seen = read(LineFormat::Jsonl, line.as_bytes(), Some(&mut filter), |fields| {
                assert_eq!((fields.event_us, fields.status), (1_431_857_103_000_000, 401));
                assert_eq!((fields.path, fields.query, fields.host), (&b"/etc/passwd"[..], &b"a=b"[..], &b"h"[..]));
                assert_eq!(fields.client_ip, address_bytes([192, 0, 2, 7].into()));
                assert_eq!((fields.flags, fields.user_hash), (FLAG_CREDENTIALS, hash_of(b"bob")));
                assert_eq!(fields.hits.iter().map(|hit| hit.attack_type).collect::<Vec<_>>(), [AttackType::Ptrav as u16]);
                assert_eq!(
                    (fields.method, fields.extensions.len()),
                    (method_number(method.as_bytes()), usize::from(method == "BREW"))
                );
            });
            assert_eq!(seen, Ok(()), "{line}");
        }
        // A record without any path is one.
        assert_eq!(read_json(br#"{"event_us": 5, "ip": "192.0.2.7"}"#, None, |fields| fields.path.len()), Ok(0));
    }

    #[test]
    fn rows_of_the_server_are_records() {
        let line = br#"{"session": "0102030405060708", "event_us": 5, "client_ip": "192.0.2.7", "method": "POST", "status": 401,
            "flags": 4105, "session_hash": "00000000000000cd", "user_hash": "00000000000000ab", "path": "/a\\\\b\\xff",
            "query": "", "hits": [{"attack_type": "sqli", "severity": 1, "payload": "\\x00", "point": "get_q"}]}"#;
        let seen = read(LineFormat::Jsonl, line, None, |fields| {
            assert_eq!((fields.client_ip, fields.event_us), (address_bytes([192, 0, 2, 7].into()), 5));
            assert_eq!((fields.session_hash, fields.user_hash), (0xcd, 0xab));
            assert_eq!(fields.flags, FLAG_BLOCKED | FLAG_AUTH_FAILED, "those that detectors know");
            assert_eq!((fields.path, fields.hits[0].payload), (&b"/a\\b\xff"[..], &b"\0"[..]));
            assert_eq!(fields.hits[0].attack_type, AttackType::Sqli as u16);
        });
        assert_eq!(seen, Ok(()));
    }

    #[test]
    fn a_time_beyond_all_times_is_the_last_or_the_first_that_there_is() {
        for (text, expected) in [
            ("9223372036854775808", i64::MAX as u64),
            ("1e300", i64::MAX as u64),
            ("-5", 0),
            ("-1e300", 0),
            ("1700000000000000", 1_700_000_000_000_000),
        ] {
            let line = format!(r#"{{"event_us": {text}, "ip": "192.0.2.7", "path": "/"}}"#);
            assert_eq!(read_json(line.as_bytes(), None, |fields| fields.event_us), Ok(expected), "{text}");
        }
    }

    #[test]
    fn escaped_texts_are_unescaped_where_they_are_said_to_be() {
        let line =
            br#"{"event_us": 5, "ip": "192.0.2.7", "path": "/a\\\\b\\xff", "query": "a\\b", "hits": [{"payload": "\\x00"}]}"#;
        for (format, path, payload) in
            [(LineFormat::EscapedJsonl, &b"/a\\b\xff"[..], &b"\0"[..]), (LineFormat::Jsonl, b"/a\\\\b\\xff", b"\\x00")]
        {
            let seen = read(format, line, None, |fields| {
                assert_eq!((fields.path, fields.query, fields.hits[0].payload), (path, &b"a\\b"[..], payload));
            });
            assert!(seen.is_ok());
        }
    }
}
