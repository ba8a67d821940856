//! The denylist: who is listed, and verdicts by hand.
//!
//! Changing it needs the token, always: without `--status-token-file` nobody may. A verdict by hand goes to every shard, so
//! that it reaches every filter, whichever shards that has connections to.

use super::answer::Response;
use super::detection::no_answer;
use super::pages::not_ready;
use super::parameters::{LIMIT_MAX, Parameters, parse_source, parse_u64};
use super::record::Show;
use super::request::{Method, Request};
use crate::analytics::alerts::time_text;
use crate::analytics::detectors::Detector;
use crate::config::detection::{HOUR_US, touches};
use crate::control::ask;
use crate::control::state::{State, unix_us};
use postanalytics_protocol::Source;
use postanalytics_protocol::frames::{Action, Subject, Verdict};
use postanalytics_protocol::routing::address_bytes;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

const DURATION_S: RangeInclusive<u64> = 60..=10 * 366 * 86_400;
const DURATION_S_DEFAULT: u64 = HOUR_US as u64 / 1_000_000;

/// A verdict as shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct VerdictView {
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<String>,
    /// `null`: all.
    application: Option<i32>,
    action: &'static str,
    until: String,
    /// `null`: by hand.
    detector: Option<&'static str>,
}

impl VerdictView {
    pub(super) fn of(verdict: &Verdict) -> Self {
        let (source, session) = match verdict.subject {
            Subject::Source(bytes) => (Some(source_text(Source::of_bytes(&bytes))), None),
            Subject::Session(hash) => (None, Some(format!("{hash:016x}"))),
        };
        let detector = usize::from(verdict.detector).checked_sub(1).and_then(|at| Detector::ALL.get(at));
        Self {
            source,
            session,
            application: verdict.application,
            action: match verdict.action {
                Some(Action::Graylist) => "graylist",
                _ => "denylist",
            },
            until: time_text(verdict.until_us),
            detector: detector.map(|detector| detector.name()),
        }
    }
}

pub(super) fn source_text(source: Source) -> String {
    match source.address() {
        std::net::IpAddr::V4(address) => address.to_string(),
        std::net::IpAddr::V6(network) => format!("{network}/64"),
    }
}

/// The body of a POST.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Listing {
    source: Option<String>,
    session: Option<String>,
    application: Option<i32>,
    action: Option<String>,
    duration_s: Option<u64>,
}

/// What fuzzing drives: where a list goes on reads the same when it is written again.
#[cfg(feature = "fuzzing")]
pub(super) fn go_on(text: &str) {
    if let Ok(rank) = read_cursor(text) {
        assert_eq!(read_cursor(&cursor(rank)), Ok(rank));
    }
}

/// What fuzzing drives: a body is read, and what it says holds.
#[cfg(feature = "fuzzing")]
pub(super) fn read(body: &[u8]) {
    if let Ok((verdict, duration_us)) = verdict_of(body, 0) {
        assert!(verdict.action.is_some() && DURATION_S.contains(&(duration_us / 1_000_000)));
        assert!(subject_of(VerdictView::of(&verdict).source.as_deref(), VerdictView::of(&verdict).session.as_deref()).is_ok());
    }
}

/// The page, in all its methods.
pub(super) async fn denylist(
    state: &State,
    request: &Request,
    parameters: &Parameters<'_>,
    show: Show,
) -> Result<Response<'static>, String> {
    let is_change = matches!(request.method, Method::Post | Method::Delete);
    if is_change && let Some(refusal) = refusal(state, show) {
        return Ok(refusal);
    }
    if state.shards().is_empty() {
        return Ok(not_ready());
    }
    match request.method {
        Method::Post => add(state, &request.body).await,
        Method::Delete => remove(state, parameters).await,
        _ => list(state, parameters).await,
    }
}

fn refusal(state: &State, show: Show) -> Option<Response<'static>> {
    if state.config().status_token.is_none() {
        let text = "the denylist can be changed with a token only, and this server has none: start it with --status-token-file FILE \
                    (make one with `head -c 24 /dev/urandom | base64`)";
        return Some(Response::error(403, text));
    }
    (show != Show::Everything).then(|| {
        Response::error(
            401,
            "the denylist can be changed with the token of --status-token-file only: Authorization: Bearer TOKEN",
        )
    })
}

async fn list(state: &State, parameters: &Parameters<'_>) -> Result<Response<'static>, String> {
    let Wanted { subject, application, limit, after } = wanted_of(parameters)?;
    let Some(verdicts) = ask::verdicts(state, subject).await else { return Ok(no_answer(state)) };
    let fits = |verdict: &Verdict| {
        application.is_none_or(|application| verdict.application.is_none_or(|of| of == application))
            && after.is_none_or(|after| rank(verdict) > after)
    };
    let mut found = merged(verdicts);
    found.retain(fits);
    let is_partial = found.len() > limit;
    found.truncate(limit);
    let next = found.last().filter(|_| is_partial).map(|verdict| cursor(rank(verdict)));
    let views: Vec<VerdictView> = found.iter().map(VerdictView::of).collect();
    Ok(Response::json(200, &json!({ "denylist": views, "partial": is_partial, "next": next })))
}

/// Which verdicts a GET asks for.
pub(super) struct Wanted {
    subject: Option<Subject>,
    application: Option<i32>,
    pub(super) limit: usize,
    after: Option<Rank>,
}

/// Reads what a GET takes.
pub(super) fn wanted_of(parameters: &Parameters<'_>) -> Result<Wanted, String> {
    Ok(Wanted {
        subject: subject_of(parameters.text("source"), parameters.text("session"))?,
        application: parameters.application()?,
        limit: if parameters.text("limit").is_some() { parameters.limit()? } else { LIMIT_MAX },
        after: parameters.text("cursor").map(read_cursor).transpose()?,
    })
}

/// Reads whom a DELETE takes off; of no application: of all.
pub(super) fn unwanted_of(parameters: &Parameters<'_>) -> Result<(Subject, Option<i32>), String> {
    let subject = subject_of(parameters.text("source"), parameters.text("session"))?;
    let subject = subject.ok_or_else(|| "whom? Give source or session in the query".to_owned())?;
    if parameters.is_blank("application") {
        return Err("application is empty: leave it out for all applications, or give its number".to_owned());
    }
    Ok((subject, parameters.application()?))
}

/// Whom a verdict on a source is on.
pub(super) fn subject_of_source(source: Source) -> Subject {
    Subject::Source(address_bytes(source.address()))
}

/// Whom and what a verdict is about: a source, or a session, and an application.
type Key = (Result<u64, u64>, Option<i32>);
/// The order in which verdicts are shown: soonest to end first.
type Rank = (u64, Key);

fn key(verdict: &Verdict) -> Key {
    let subject = match verdict.subject {
        Subject::Source(bytes) => Ok(Source::of_bytes(&bytes).key()),
        Subject::Session(hash) => Err(hash),
    };
    (subject, verdict.application)
}

fn rank(verdict: &Verdict) -> Rank {
    (verdict.until_us, key(verdict))
}

/// Where a list goes on: after the verdict of this rank, whether that still holds or not.
fn cursor((until_us, (subject, application)): Rank) -> String {
    let (kind, subject) = match subject {
        Ok(source) => ("source", source),
        Err(session) => ("session", session),
    };
    let application = application.map_or_else(|| "all".to_owned(), |application| application.to_string());
    format!("{until_us:x}.{kind}.{subject:x}.{application}")
}

/// Reads what [`cursor`] wrote.
fn read_cursor(text: &str) -> Result<Rank, String> {
    let wrong = || "cursor must be `next` of an answer of this server: begin again without it".to_owned();
    let [until, kind, subject, application] = text.split('.').collect::<Vec<_>>()[..] else { return Err(wrong()) };
    let number = |text: &str| u64::from_str_radix(text, 16).map_err(|_| wrong());
    let subject = match kind {
        "source" => Ok(number(subject)?),
        "session" => Err(number(subject)?),
        _ => return Err(wrong()),
    };
    let application = match application {
        "all" => None,
        application => Some(application.parse().map_err(|_| wrong())?),
    };
    Ok((number(until)?, (subject, application)))
}

/// Each once, whatever number of shards has it; the one that ends last counts. Soonest to end first.
pub(super) fn merged(verdicts: Vec<Verdict>) -> Vec<Verdict> {
    let mut by_key: BTreeMap<Key, Verdict> = BTreeMap::new();
    for verdict in verdicts {
        let held = by_key.entry(key(&verdict)).or_insert(verdict);
        if held.until_us < verdict.until_us {
            *held = verdict;
        }
    }
    let mut merged: Vec<Verdict> = by_key.into_values().collect();
    merged.sort_by_key(rank);
    merged
}

async fn add(state: &State, body: &[u8]) -> Result<Response<'static>, String> {
    let (verdict, duration_us) = verdict_of(body, unix_us())?;
    if let (Subject::Source(bytes), Some(detection)) = (verdict.subject, &state.config().detection)
        && touches(&detection.allowlist, Source::of_bytes(&bytes))
    {
        return Ok(Response::error(409, "this source is on the allowlist, which comes first: take it off that, and send SIGHUP"));
    }
    if !ask::set_verdict(state, verdict, duration_us) {
        return Ok(no_answer(state));
    }
    tracing::info!(verdict = ?VerdictView::of(&verdict), "listed by hand");
    Ok(Response::json(200, &VerdictView::of(&verdict)))
}

/// The verdict that a body asks for, its end by the system's clock, and how long it lasts, µs.
fn verdict_of(body: &[u8], now_us: u64) -> Result<(Verdict, u64), String> {
    let listing: Listing = serde_json::from_slice(body).map_err(|error| {
        format!(
            "the body must be JSON such as {{\"source\": \"192.0.2.7\", \"duration_s\": 3600}}, with action, application or session if \
             wanted: {error}"
        )
    })?;
    let action = match listing.action.as_deref() {
        None | Some("denylist") => Action::Denylist,
        Some("graylist") => Action::Graylist,
        Some(other) => return Err(format!("action {other:?} must be denylist or graylist")),
    };
    let duration_s = listing.duration_s.unwrap_or(DURATION_S_DEFAULT);
    if !DURATION_S.contains(&duration_s) {
        return Err(format!("duration_s = {duration_s} is out of range: give {} to {}", DURATION_S.start(), DURATION_S.end()));
    }
    let subject = subject_of(listing.source.as_deref(), listing.session.as_deref())?;
    let subject = subject.ok_or_else(|| "whom? Give source or session".to_owned())?;
    let duration_us = duration_s * 1_000_000;
    let until_us = now_us + duration_us;
    Ok((Verdict { subject, application: listing.application, action: Some(action), until_us, detector: 0 }, duration_us))
}

async fn remove(state: &State, parameters: &Parameters<'_>) -> Result<Response<'static>, String> {
    let (subject, application) = unwanted_of(parameters)?;
    let Some(verdicts) = ask::verdicts(state, Some(subject)).await else { return Ok(no_answer(state)) };
    // Without an application, those for all and those for any single one.
    let fits = |verdict: &&Verdict| application.is_none() || verdict.application == application;
    let merged = merged(verdicts);
    let found: Vec<&Verdict> = merged.iter().filter(fits).collect();
    if found.is_empty() {
        return Ok(Response::error(404, "nobody like that is listed: GET /denylist shows who is"));
    }
    for verdict in &found {
        if !ask::set_verdict(state, Verdict { action: None, ..**verdict }, 0) {
            let text = "not all could be taken off, the server is busy: do it again";
            return Ok(Response::error(503, text));
        }
        tracing::info!(verdict = ?VerdictView::of(verdict), "taken off the list by hand");
    }
    let removed: Vec<VerdictView> = found.into_iter().map(VerdictView::of).collect();
    Ok(Response::json(200, &json!({ "removed": removed })))
}

fn subject_of(source: Option<&str>, session: Option<&str>) -> Result<Option<Subject>, String> {
    match (source, session) {
        (Some(_), Some(_)) => Err("give source or session, not both".to_owned()),
        (Some(source), None) => Ok(Some(subject_of_source(parse_source(source)?))),
        (None, Some(session)) => match parse_u64(session) {
            Some(0) => Err(format!("session {session:?} is how a request without a session is shown: give its source")),
            Some(hash) => Ok(Some(Subject::Session(hash))),
            None => Err(format!("session {session:?} must be the 16 hexadecimal digits of session_hash")),
        },
        (None, None) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_read_and_bounded() {
        let verdict = |body: &str| verdict_of(body.as_bytes(), 1_000_000);
        let (found, duration_us) =
            verdict(r#"{"source": "2001:db8::7", "application": 3, "action": "graylist", "duration_s": 60}"#).expect("good");
        assert_eq!((found.application, found.action, found.until_us), (Some(3), Some(Action::Graylist), 61_000_000));
        assert_eq!(duration_us, 60_000_000);
        assert_eq!(VerdictView::of(&found).source.as_deref(), Some("2001:db8::/64"));
        let (found, _) = verdict(r#"{"session": "00000000000000ff", "application": null}"#).expect("good");
        assert_eq!((found.subject, found.application, found.action), (Subject::Session(255), None, Some(Action::Denylist)));
        assert_eq!(found.until_us, 3_601_000_000);
        for (bad, why) in [
            ("", "the body must be JSON"),
            ("[]", "the body must be JSON"),
            ("{}", "whom?"),
            (r#"{"source": "192.0.2.7", "session": "00000000000000ff"}"#, "not both"),
            (r#"{"source": "shop"}"#, "no IP address"),
            (r#"{"session": "ff"}"#, "16 hexadecimal"),
            (r#"{"session": "0000000000000000"}"#, "without a session"),
            (r#"{"source": "192.0.2.7", "duration_s": 59}"#, "out of range"),
            (r#"{"source": "192.0.2.7", "duration_s": -1}"#, "the body must be JSON"),
            (r#"{"source": "192.0.2.7", "action": "allow"}"#, "must be denylist or graylist"),
            (r#"{"source": "192.0.2.7", "until": "tomorrow"}"#, "unknown field `until`"),
        ] {
            let error = verdict(bad).expect_err(bad);
            assert!(error.contains(why), "{bad}: {error}");
        }
    }

    #[test]
    fn a_list_goes_on_where_it_ended() {
        let rank_of = |subject, application| (1_700_000_000_000_000, (subject, application));
        for rank in [rank_of(Ok(7), None), rank_of(Err(u64::MAX), Some(-1)), rank_of(Ok(0), Some(i32::MIN))] {
            assert_eq!(read_cursor(&cursor(rank)), Ok(rank));
        }
        for bad in ["", "1.source.2", "1.source.2.all.3", "x.source.2.all", "1.user.2.all", "1.source.2.x"] {
            assert!(read_cursor(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_verdict_of_several_shards_is_shown_once() {
        let verdict = |session, until_us| {
            let subject = Subject::Session(session);
            Verdict { subject, application: None, action: Some(Action::Denylist), until_us, detector: 1 }
        };
        let merged = merged(vec![verdict(1, 50), verdict(2, 20), verdict(1, 70), verdict(1, 60)]);
        assert_eq!(
            merged.iter().map(|verdict| (verdict.subject, verdict.until_us)).collect::<Vec<_>>(),
            [(Subject::Session(2), 20), (Subject::Session(1), 70)]
        );
        assert_eq!(VerdictView::of(&merged[0]).detector, Some("brute_force"));
    }
}
