//! A stored record as JSON, with or without what visitors typed in.
//!
//! 64-bit hashes and sessions are hexadecimal texts, for JSON readers that know floats only; enums are their names, or their
//! number as text if this version has no name for it.

use crate::escape::{escape, plain_json};
use crate::shard::messages::StoredRecord;
use postanalytics_protocol::RecordView;
use postanalytics_protocol::routing::address_of_bytes;
use postanalytics_protocol::schema::v1::{AttackType, Method, Scheme, TAG_METHOD};
use serde::Serialize;

/// Stands for something that is there and not shown.
pub(super) const REDACTED: &str = "***";

/// Whether raw requests, cookies and query values are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::control) enum Show {
    Everything,
    Redacted,
}

/// The beginning of a session, which tells sessions apart: whoever knows a whole one can take it over.
pub(super) fn short_session(session: u64) -> String {
    format!("{:08x}…", session >> 32)
}

/// Every field of a record, and what the server knows of it.
#[derive(Debug, Serialize)]
struct RecordJson {
    request_id: String,
    arrival: String,
    arrival_us: u64,
    commit_index: u64,
    shard: u32,
    node: String,
    session: String,
    sent_us: u64,
    replay: bool,
    event_us: u64,
    client_ip: String,
    application: i32,
    tenant: u64,
    server_port: u16,
    scheme: String,
    http_version: u8,
    method: String,
    status: u16,
    flags: u32,
    response_us: u32,
    detection_us: u32,
    request_bytes: u64,
    response_bytes: u64,
    session_hash: String,
    user_hash: String,
    host: String,
    path: String,
    query: String,
    user_agent: String,
    referer: String,
    raw_headers: String,
    raw_body: String,
    hits: Vec<HitJson>,
    extensions: Vec<ExtensionJson>,
}

#[derive(Debug, Serialize)]
struct HitJson {
    attack_type: String,
    severity: u8,
    rule_id: u32,
    point: String,
    payload: String,
}

#[derive(Debug, Serialize)]
struct ExtensionJson {
    tag: u16,
    value: String,
}

/// Writes a record.
pub(in crate::control) fn to_json(record: &RecordView<'_>, stored: &StoredRecord, shard: u32, show: Show) -> String {
    let secret = |bytes: &[u8]| match show {
        Show::Redacted if !bytes.is_empty() => REDACTED.to_owned(),
        _ => escape(bytes),
    };
    let json = RecordJson {
        request_id: hex(&record.request_id()),
        arrival: rfc_3339(stored.arrival_us),
        arrival_us: stored.arrival_us,
        commit_index: stored.commit_index,
        shard,
        node: uuid::Uuid::from_bytes(stored.node).to_string(),
        session: if show == Show::Redacted { short_session(stored.session) } else { format!("{:016x}", stored.session) },
        sent_us: stored.sent_us,
        replay: stored.is_replay,
        event_us: record.event_us(),
        client_ip: address_of_bytes(record.client_ip()).to_string(),
        application: record.application(),
        tenant: record.tenant(),
        server_port: record.server_port(),
        scheme: name_or_number(Scheme::from_wire(record.scheme()).map(Scheme::name), record.scheme()),
        http_version: record.http_version(),
        method: name_or_number(Method::from_wire(record.method()).map(Method::name), record.method()),
        status: record.status(),
        flags: record.flags(),
        response_us: record.response_us(),
        detection_us: record.detection_us(),
        request_bytes: record.request_bytes(),
        response_bytes: record.response_bytes(),
        session_hash: format!("{:016x}", record.session_hash()),
        user_hash: format!("{:016x}", record.user_hash()),
        host: escape(record.host()),
        path: if show == Show::Redacted { escape(&redact_url(record.path())) } else { escape(record.path()) },
        query: if show == Show::Redacted { escape(&redact_query(record.query())) } else { escape(record.query()) },
        user_agent: escape(record.user_agent()),
        referer: if show == Show::Redacted { escape(&redact_url(record.referer())) } else { escape(record.referer()) },
        raw_headers: secret(record.raw_headers()),
        raw_body: secret(record.raw_body()),
        hits: record
            .hits()
            .map(|hit| HitJson {
                attack_type: name_or_number(AttackType::from_wire(hit.attack_type).map(AttackType::name), hit.attack_type),
                severity: hit.severity,
                rule_id: hit.rule_id,
                point: escape(hit.point),
                // A payload is a piece of a query value, a cookie or a body.
                payload: secret(hit.payload),
            })
            .collect(),
        extensions: record
            .extensions()
            .map(|extension| ExtensionJson {
                tag: extension.tag,
                // What a tag of a later version holds is not known here, so it is not shown unasked.
                value: if extension.tag == TAG_METHOD { escape(extension.value) } else { secret(extension.value) },
            })
            .collect(),
    };
    // Plain data with text keys: there is nothing that could fail.
    plain_json(serde_json::to_string(&json).unwrap_or_default())
}

fn name_or_number(name: Option<&str>, number: impl std::fmt::Display) -> String {
    name.map_or_else(|| number.to_string(), str::to_owned)
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn rfc_3339(unix_us: u64) -> String {
    let timestamp = i64::try_from(unix_us).ok().and_then(|us| jiff::Timestamp::from_microsecond(us).ok());
    timestamp.map(|timestamp| timestamp.to_string()).unwrap_or_default()
}

/// Longest name of a query value that is shown.
const QUERY_NAME_BYTES_MAX: usize = 64;

/// A query whose names are kept and whose values are not. A part without `=` may be a value, so it goes too; so does one that
/// does not look like a name, or is followed by nothing but `=`, as base64 is.
fn redact_query(query: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(query.len());
    for (index, part) in query.split(|byte| matches!(byte, b'&' | b';')).enumerate() {
        if index > 0 {
            out.push(b'&');
        }
        match part.iter().position(|byte| *byte == b'=') {
            Some(end) if is_query_name(&part[..end]) && part[end..].iter().any(|byte| *byte != b'=') => {
                out.extend_from_slice(&part[..=end]);
            }
            Some(_) => {}
            None if part.is_empty() => continue,
            None => {}
        }
        out.extend_from_slice(REDACTED.as_bytes());
    }
    out
}

fn is_query_name(name: &[u8]) -> bool {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'[' | b']' | b'-');
    name.len() <= QUERY_NAME_BYTES_MAX && name.iter().all(plain)
}

/// A URL or path whose query values are not kept, nor user and password before its host, nor its fragment, which may hold tokens.
pub(super) fn redact_url(url: &[u8]) -> Vec<u8> {
    let url = url.split(|byte| *byte == b'#').next().unwrap_or_default();
    let (address, query) = match url.iter().position(|byte| *byte == b'?') {
        Some(at) => (&url[..at], Some(&url[at + 1..])),
        None => (url, None),
    };
    let mut out = Vec::with_capacity(url.len());
    let host_at = address.windows(2).position(|pair| pair == b"//").map_or(0, |at| at + 2);
    let (before, host) = address.split_at(host_at);
    let host_bytes = host.iter().position(|byte| *byte == b'/').unwrap_or(host.len());
    let user_end = host[..host_bytes].iter().rposition(|byte| *byte == b'@').filter(|_| host_at > 0);
    out.extend_from_slice(before);
    if user_end.is_some() {
        out.extend_from_slice(REDACTED.as_bytes());
    }
    out.extend_from_slice(&host[user_end.unwrap_or(0)..]);
    if let Some(query) = query {
        out.push(b'?');
        out.extend_from_slice(&redact_query(query));
    }
    out
}

/// A path or template that was escaped before, as it may be shown: for what was no request it is the whole line.
pub(super) fn shown_path(text: &mut String, show: Show) {
    if show == Show::Redacted {
        // All that it looks for is ASCII, so what it leaves is text still.
        *text = String::from_utf8_lossy(&redact_url(text.as_bytes())).into_owned();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use postanalytics_protocol::{BatchBuilder, Extension, Hit, RecordFields, ValidBatch, schema::v1::SCHEMA};
    use proptest::prelude::*;

    fn json_of(fields: &RecordFields<'_>, show: Show) -> serde_json::Value {
        let mut batch = BatchBuilder::default();
        batch.push(fields, 1 << 20).expect("fits");
        let mut body = vec![0; batch.body_bytes()];
        batch.encode_body(&mut body);
        let valid = ValidBatch::parse(SCHEMA, 1, &body).expect("valid");
        let stored = StoredRecord {
            arrival_us: 1_700_000_000_000_001,
            commit_index: 5,
            node: [1; 16],
            session: 0xabc,
            sent_us: 9,
            is_replay: true,
            place: crate::shard::messages::Cursor { slab: 0, generation: 1, offset: 64, records_left: 1 },
        };
        let text = to_json(&valid.record(0).expect("one"), &stored, 3, show);
        serde_json::from_str(&text).expect("JSON")
    }

    fn fields() -> RecordFields<'static> {
        RecordFields {
            request_id: [0xab; 16],
            client_ip: "::ffff:192.0.2.1".parse::<std::net::Ipv6Addr>().expect("an address").octets(),
            method: 1,
            scheme: 9,
            session_hash: u64::MAX,
            path: b"/a\xff",
            query: b"user=ann&flag&x=1=2",
            referer: b"https://a/b?token=t#f",
            raw_headers: b"Cookie: a=b",
            raw_body: b"secret",
            hits: vec![Hit { attack_type: 1, severity: 9, rule_id: 4, point: b"get_id", payload: b"1'--" }],
            extensions: vec![Extension { tag: TAG_METHOD, value: b"PURGE" }, Extension { tag: 77, value: b"new" }],
            ..RecordFields::default()
        }
    }

    #[test]
    fn everything_is_shown_with_the_token() {
        let json = json_of(&fields(), Show::Everything);
        assert_eq!(json["request_id"], "ab".repeat(16));
        assert_eq!((&json["client_ip"], &json["method"], &json["scheme"]), (&"192.0.2.1".into(), &"GET".into(), &"9".into()));
        assert_eq!((&json["path"], &json["session_hash"]), (&"/a\\xff".into(), &"ffffffffffffffff".into()));
        assert_eq!((&json["query"], &json["raw_headers"]), (&"user=ann&flag&x=1=2".into(), &"Cookie: a=b".into()));
        assert_eq!((&json["hits"][0]["attack_type"], &json["hits"][0]["payload"]), (&"sqli".into(), &"1'--".into()));
        assert_eq!((&json["extensions"][0]["value"], &json["extensions"][1]["value"]), (&"PURGE".into(), &"new".into()));
        assert_eq!((&json["shard"], &json["arrival"]), (&3.into(), &"2023-11-14T22:13:20.000001Z".into()));
        assert_eq!(json["replay"], true);
    }

    #[test]
    fn what_visitors_typed_in_is_redacted() {
        let json = json_of(&fields(), Show::Redacted);
        assert_eq!(json["query"], "user=***&***&x=***");
        assert_eq!(json["referer"], "https://a/b?token=***");
        for field in ["raw_headers", "raw_body"] {
            assert_eq!(json[field], REDACTED);
        }
        assert_eq!((&json["hits"][0]["payload"], &json["hits"][0]["point"]), (&REDACTED.into(), &"get_id".into()));
        assert_eq!((&json["extensions"][0]["value"], &json["extensions"][1]["value"]), (&"PURGE".into(), &REDACTED.into()));
        let empty = json_of(&RecordFields::default(), Show::Redacted);
        assert_eq!((&empty["raw_body"], &empty["query"]), (&"".into(), &"".into()));
    }

    #[test]
    fn lines_that_were_no_request_are_redacted_and_their_escapes_stay() {
        let shown = |text: &str, show| {
            let mut text = text.to_owned();
            shown_path(&mut text, show);
            text
        };
        let line = "\\x16GET /a?token=secret HTTP/1.1";
        assert_eq!(shown(line, Show::Redacted), "\\x16GET /a?token=***");
        assert_eq!(shown(line, Show::Everything), line);
        assert_eq!(shown("GET /päth/{id}", Show::Redacted), "GET /päth/{id}");
    }

    #[test]
    fn what_is_no_name_goes_and_so_do_users_in_urls() {
        let long = [b"a".repeat(65), b"=1".to_vec()].concat();
        let cases: [(&[u8], &[u8]); 7] = [
            (b"a[b].c-d_e=1&x=2", b"a[b].c-d_e=***&x=***"),
            (b"c2VjcmV0==", b"***"),
            (b"c2VjcmV0=&b=1", b"***&b=***"),
            (&long, b"***"),
            (b"a%20b=1", b"***"),
            (b"a=b=c", b"a=***"),
            (b"=1", b"=***"),
        ];
        for (query, shown) in cases {
            assert_eq!(redact_query(query), shown, "{}", String::from_utf8_lossy(query));
        }
        let urls: [(&[u8], &[u8]); 6] = [
            (b"https://ann:pw@shop.example/a@b?c=d", b"https://***@shop.example/a@b?c=***"),
            (b"https://a@b@shop.example?c=d@e", b"https://***@shop.example?c=***"),
            (b"//ann:pw@shop.example", b"//***@shop.example"),
            (b"/login?password=x&y", b"/login?password=***&***"),
            (b"/ann@example.com", b"/ann@example.com"),
            (b"", b""),
        ];
        for (url, shown) in urls {
            assert_eq!(redact_url(url), shown, "{}", String::from_utf8_lossy(url));
        }
    }

    proptest! {
        #[test]
        fn no_query_value_survives(values in proptest::collection::vec("[A-Z]{4,8}", 1..5)) {
            let query = values.iter().map(|value| format!("n={value}")).collect::<Vec<_>>().join("&");
            let redacted = String::from_utf8(redact_query(query.as_bytes())).expect("text");
            prop_assert!(values.iter().all(|value| !redacted.contains(value.as_str())), "{}", redacted);
        }
    }
}
