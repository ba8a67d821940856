//! What fuzzing drives of the status pages: see `tests/src/fuzz` of the workspace.

use super::pages::wanted_of;
use super::parameters::{LIMIT_MAX, Parameters, parse_id};
use super::request::{self, BODY_BYTES_MAX, HEAD_BYTES_MAX, Method};
use super::{cursor, denylist};

/// A request: nothing panics, it takes no more than it may, and reads the same whatever follows it. Its query, host, id, cursor
/// and body are read as the pages read them.
pub fn http(bytes: &[u8]) {
    let (request, taken) = match request::parse(bytes) {
        Ok(Some(found)) => found,
        Ok(None) => return assert!(bytes.len() < HEAD_BYTES_MAX + BODY_BYTES_MAX, "a request that never ends is refused"),
        Err(bad) => return assert!((400..500).contains(&bad.status) && !bad.text.is_empty()),
    };
    assert!(taken <= bytes.len().min(HEAD_BYTES_MAX + BODY_BYTES_MAX) && request.body.len() <= BODY_BYTES_MAX);
    assert!(request.body.is_empty() || matches!(request.method, Method::Post | Method::Delete));
    denylist::read(&request.body);
    assert_eq!(request::parse(&bytes[..taken]), Ok(Some((request.clone(), taken))), "what follows does not matter");
    assert!(request::parse(&bytes[..taken - 1]).is_ok_and(|found| found.is_none()), "it ends where it ends");
    assert!(request.method != Method::Get || bytes.trim_ascii_start().starts_with(b"GET"));
    let host = request.host.as_deref().unwrap_or_default();
    let ours = request::host_is_ours(host, None, None, &[]);
    assert_eq!(ours, request::host_is_ours(&host.to_ascii_uppercase(), None, None, &[]));
    assert!(!ours || host.to_ascii_lowercase().contains("localhost") || host.contains("127.") || host.contains("::"), "{host:?}");
    if let Some(text) = request.query_value("cursor") {
        cursor::go_on_with(text);
        denylist::go_on(text);
    }
    let parameters = Parameters::of(&request, &["source", "since", "limit"], 1 << 50);
    if let Ok(wanted) = parameters.and_then(|parameters| wanted_of(&parameters)) {
        assert!((1..=LIMIT_MAX).contains(&wanted.limit) && wanted.request_id.is_none());
        assert!(wanted.since_us.is_some() == request.query_value("since").is_some());
    }
    if let Some(id) = request.path.strip_prefix("/requests/").and_then(parse_id) {
        let text = format!("{:032x}", u128::from_be_bytes(id));
        assert!(request.path.to_ascii_lowercase().ends_with(&text));
    }
}
