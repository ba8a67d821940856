//! What fuzzing drives of the status pages: see `tests/src/fuzz` of the workspace.

use super::pages::{Page, ROUTES, wanted_of};
use super::parameters::{LIMIT_MAX, Parameters, parse_id, parse_u64};
use super::request::{self, BODY_BYTES_MAX, HEAD_BYTES_MAX, Method, Request};
use super::{cursor, denylist, detection, explain};

/// When the requests come, Unix µs.
const NOW_US: u64 = 1 << 50;

/// A request: nothing panics, it takes no more than it may, and reads the same whatever follows it. Its host, cursor and
/// body are read as the pages read them, the id in its path as that of its own page, its query as by each page whose names it keeps to.
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
    for route in &ROUTES {
        if let Some(text) = route.fits(&request.path) {
            id(route.page, text);
        }
        for &(method, names) in route.methods {
            if let Ok(parameters) = Parameters::of(&request, names, NOW_US)
                && let Err(error) = query(route.page, method, &request, &parameters)
            {
                assert!(!error.is_empty() && !error.contains('\n'), "{error:?}");
            }
        }
    }
}

/// The segment that stands for `{id}`.
fn id(page: Page, text: &str) {
    let written = match page {
        Page::Request => parse_id(text).map(|id| format!("{:032x}", u128::from_be_bytes(id))),
        Page::Attack => parse_u64(text).map(|id| format!("{id:016x}")),
        _ => return,
    };
    assert!(written.is_none_or(|written| written.eq_ignore_ascii_case(text)), "{text:?}");
}

/// Reads a query as a page does: what was read is what was given, and within its bounds. The error is that of the page.
fn query(page: Page, method: Method, request: &Request, parameters: &Parameters<'_>) -> Result<(), String> {
    let is_given = |name: &str| request.query_value(name).is_some();
    match (page, method) {
        (Page::Requests, _) => {
            let wanted = wanted_of(parameters)?;
            assert!((1..=LIMIT_MAX).contains(&wanted.limit) && wanted.request_id.is_none());
            assert_eq!((wanted.since_us.is_some(), wanted.until_us.is_some()), (is_given("since"), is_given("until")));
        }
        (Page::Alerts, _) => {
            let wanted = detection::alerts_wanted(parameters)?;
            assert!((1..=LIMIT_MAX).contains(&wanted.limit));
            assert_eq!((wanted.since_us.is_some(), wanted.until_us.is_some()), (is_given("since"), is_given("until")));
            assert_eq!(
                (wanted.detector.as_deref(), wanted.source.is_some()),
                (request.query_value("detector"), is_given("source"))
            );
        }
        (Page::Attacks, _) => {
            let wanted = detection::attacks_wanted(parameters)?;
            assert!((1..=LIMIT_MAX).contains(&wanted.limit));
            assert_eq!((wanted.since_us.is_some(), wanted.until_us.is_some()), (is_given("since"), is_given("until")));
            assert_eq!((wanted.attack_type.is_some(), wanted.source.is_some()), (is_given("type"), is_given("source")));
        }
        (Page::Top, _) => {
            let wanted = detection::top_wanted(parameters)?;
            assert!((1..=LIMIT_MAX).contains(&wanted.limit));
            assert_eq!(wanted.application.is_some(), is_given("application"));
        }
        (Page::Timeline, _) => {
            let wanted = detection::timeline_wanted(parameters)?;
            assert_eq!((wanted.application.is_some(), wanted.since_us.is_some()), (is_given("application"), is_given("since")));
        }
        (Page::Denylist, Method::Delete) => {
            let (_, application) = denylist::unwanted_of(parameters)?;
            assert!(is_given("source") != is_given("session") && application.is_some() == is_given("application"));
        }
        (Page::Denylist, Method::Get) => assert!((1..=LIMIT_MAX).contains(&denylist::wanted_of(parameters)?.limit)),
        (Page::Explain, _) => assert_eq!(explain::asked(parameters)?.is_ok(), is_given("source")),
        // They take no query.
        (Page::Health | Page::Ready | Page::Metrics | Page::Status | Page::OpenApi, _) => {}
        (Page::Request | Page::Attack | Page::Denylist, _) => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Else fuzzing would pass a reader by.
    #[test]
    fn every_name_that_a_page_takes_is_read() {
        for route in &ROUTES {
            for &(method, names) in route.methods {
                for &name in names {
                    let text = format!("GET /?{name}=%3F HTTP/1.1\r\n\r\n");
                    let (request, _) = request::parse(text.as_bytes()).expect("good").expect("whole");
                    let parameters = Parameters::of(&request, names, NOW_US).expect("a name of the page");
                    let read = query(route.page, method, &request, &parameters);
                    match (route.page, name) {
                        // Any text is a host; the cursor of requests is read apart, under every code.
                        (_, "host") | (Page::Requests, "cursor") => assert_eq!(read, Ok(())),
                        // Only with whom.
                        (Page::Denylist, "application") if method == Method::Delete => assert!(read.is_err()),
                        _ => assert!(
                            read.as_ref().is_err_and(|error| error.contains(name)),
                            "{name} of {:?}: {read:?}",
                            route.page
                        ),
                    }
                }
            }
        }
    }
}
