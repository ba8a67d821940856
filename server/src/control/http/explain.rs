//! `/explain`: what is known of a source. Its stored requests are looked at anew, to say which keys of the detectors they
//! belong to, how near those are to firing now, and why requests did not count.
//!
//! What only the order of arrival tells is worked out here from the stored requests: whether one was late for its key, or
//! came while the key was on hold. Requests that were evicted are not in these counts, though they are in the levels.

use super::answer::Response;
use super::denylist::{self, VerdictView};
use super::detection::no_answer;
use super::pages::not_ready;
use super::parameters::{Parameters, parse_id, parse_source};
use super::record::{Show, shown_path};
use super::scan::{self, Looked, Wanted};
use crate::analytics::alerts::time_text;
use crate::analytics::detectors::{Detector, KeyKind};
use crate::analytics::explain::{Standing, WhyNot};
use crate::analytics::path;
use crate::config::detection::touches;
use crate::control::ask;
use crate::control::state::State;
use crate::correlator::messages::{AlertFilter, AlertView, Ask, Reply};
use crate::escape::escape;
use bumpalo::Bump;
use postanalytics_protocol::schema::v1::{Method, SCHEMA, TAG_METHOD};
use postanalytics_protocol::{RecordView, Source, ValidBatch, shard_of};
use serde::Serialize;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::ops::RangeInclusive;

/// Requests of a source after which no further page of them is looked at.
const REQUESTS_MAX: usize = 8192;
/// Requests that are counted in one go, before others of this thread have their turn.
const REQUESTS_IN_A_GO: usize = 256;
/// Most rows of an answer.
const ROWS_MAX: usize = 1000;

/// What is said of a key of a detector.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
struct Row {
    detector: &'static str,
    /// `null`: all together.
    application: Option<i32>,
    scope: Scope,
    /// How near to firing, by the rule that is nearest; `null`: the detector does not run, or the correlator knows.
    level_percent: Option<f64>,
    hold_until: Option<String>,
    /// Stored requests that the detector is about.
    requests: u64,
    counted: u64,
    not_counted: BTreeMap<&'static str, u64>,
    #[serde(skip)]
    clock_us: u64,
    /// When alerts of this key were on hold, first to last, Unix µs.
    #[serde(skip)]
    holds: Vec<RangeInclusive<u64>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
struct Scope {
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<String>,
}

/// A stored request of the source, as far as rows need it.
struct Seen {
    arrival_us: u64,
    application: i32,
    host: String,
    endpoint: String,
    standings: [Standing; Detector::ALL.len()],
}

/// The page.
pub(super) async fn explain<'a>(state: &'a State, parameters: &Parameters<'_>, show: Show) -> Result<Response<'a>, String> {
    let asked = asked(parameters)?;
    if state.shards().is_empty() {
        return Ok(not_ready());
    }
    let Some(slot) = state.take_scan_slot() else {
        return Ok(Response::error(503, "another search is under way: ask again"));
    };
    let (source, request) = match asked {
        Ok(source) => (source, Value::Null),
        Err(id) => {
            let wanted = Wanted { request_id: Some(id), limit: 1, ..Wanted::default() };
            let found = scan::scan(state, &slot, &wanted, show).await;
            let first = found.records.first().and_then(|(_, json)| serde_json::from_str::<Value>(json).ok());
            let Some(request) = first else { return Ok(not_stored(state, found.partial)) };
            (parse_source(request["client_ip"].as_str().unwrap_or_default())?, request)
        }
    };
    let topology = &state.topology;
    let shard = shard_of(source, topology.routing_seed, topology.shard_count);
    let mut seen = Vec::new();
    let looked = scan::explain(state, &slot, shard as usize, source, |lane| {
        gather(lane, &mut seen);
        seen.len() < REQUESTS_MAX
    })
    .await;
    let filter = AlertFilter { source: Some(source.key()), limit: ROWS_MAX, ..AlertFilter::default() };
    let Some(Reply::Alerts(alerts)) = ask::correlator(state, Ask::Alerts(filter)).await else { return Ok(no_answer(state)) };
    let Some(verdicts) = ask::verdicts(state, Some(denylist::subject_of_source(source))).await else {
        return Ok(no_answer(state));
    };
    let late_us = state.config().detection.as_ref().map_or(u64::MAX, |detection| detection.late_us);
    let mut rows = Rows::new(&alerts, late_us);
    // In the order of arrival: seen is newest first.
    for some in seen.rchunks(REQUESTS_IN_A_GO) {
        some.iter().rev().for_each(|request| rows.take(request));
        glommio::executor().yield_task_queue_now().await;
    }
    let mut rows = rows.finish();
    rows.iter_mut().filter_map(|row| row.scope.endpoint.as_mut()).for_each(|endpoint| shown_path(endpoint, show));
    let config = state.config();
    let (allowlist, proxies) =
        config.detection.as_ref().map(|detection| (&*detection.allowlist, &*detection.trusted_proxies)).unwrap_or_default();
    let time = |us: Option<u64>| us.filter(|us| *us > 0).map(time_text);
    let shard_oldest = state.shards().get(shard as usize).map(|port| port.page.read().oldest_arrival_us);
    let answer = json!({
        "source": denylist::source_text(source),
        "shard": shard,
        "request": request,
        "detectors_run": state.detectors_run(),
        "allowlisted": touches(allowlist, source),
        "trusted_proxy": touches(proxies, source),
        "verdicts": denylist::merged(verdicts).iter().map(VerdictView::of).collect::<Vec<_>>(),
        "stored": {
            "requests": seen.len(),
            "oldest": time(seen.last().map(|seen| seen.arrival_us)),
            "newest": time(seen.first().map(|seen| seen.arrival_us)),
            "shard_oldest": time(shard_oldest),
        },
        // Asking again helps against the first, never against the second.
        "partial": looked == Looked::InPart,
        "newest_only": looked == Looked::AtTheNewest,
        "detectors": rows,
    });
    Ok(Response::json(200, &answer).with_slot(slot))
}

/// Reads whom `/explain` is about: a source, or the sender of the request with an id.
pub(super) fn asked(parameters: &Parameters<'_>) -> Result<Result<Source, [u8; 16]>, String> {
    match (parameters.text("source"), parameters.text("request_id")) {
        (Some(source), None) => Ok(Ok(parse_source(source)?)),
        (None, Some(id)) => Ok(Err(parse_id(id).ok_or_else(|| "request_id is 32 hexadecimal digits".to_owned())?)),
        _ => Err("give source or request_id".to_owned()),
    }
}

fn not_stored(state: &State, is_partial: bool) -> Response<'static> {
    if is_partial {
        return Response::error(503, "not all stored requests could be looked at in time: ask again");
    }
    let since: Vec<String> = state
        .shards()
        .iter()
        .map(|port| match port.page.read().oldest_arrival_us {
            0 => format!("shard {} holds none", port.shard),
            oldest_us => format!("shard {} holds those since {}", port.shard, time_text(oldest_us)),
        })
        .collect();
    let text = format!("no stored request has this id: it never came, or it was evicted; {}", since.join(", "));
    Response::error(404, &text)
}

/// Takes the records of a page over.
fn gather(lane: &scan::Lane, seen: &mut Vec<Seen>) {
    let Ok(batch) = ValidBatch::parse(SCHEMA, lane.stored.len() as u32, &lane.body) else { return };
    let scratch = Bump::new();
    for ((record, stored), standings) in batch.records().zip(&lane.stored).zip(&lane.standings) {
        seen.push(Seen {
            arrival_us: stored.arrival_us,
            application: record.application(),
            host: escape(record.host()),
            endpoint: if standings[0].has_no_key() { String::new() } else { endpoint_of(&record, &scratch) },
            standings: *standings,
        });
    }
}

/// Method and template, as alerts write them.
fn endpoint_of(record: &RecordView<'_>, scratch: &Bump) -> String {
    let other = record.extensions().find(|extension| extension.tag == TAG_METHOD).map_or(&b""[..], |extension| extension.value);
    let method = Method::from_wire(record.method()).map_or(other, |known| known.name().as_bytes());
    if method.is_empty() {
        return escape(record.path());
    }
    let (path, _) = path::normalise(record.path(), scratch);
    let (template, _) = path::template(path, scratch);
    format!("{} {}", escape(method), escape(template))
}

/// Detector, application and scope: what alerts and rows are about.
type About = (&'static str, Option<i32>, Scope);

/// A row for each key that the requests belong to.
struct Rows {
    rows: HashMap<(u8, u64), Row>,
    holds: HashMap<About, Vec<RangeInclusive<u64>>>,
    late_us: u64,
}

impl Rows {
    fn new(alerts: &[AlertView], late_us: u64) -> Self {
        let us = |text: &str| text.parse::<jiff::Timestamp>().map_or(0, |time| u64::try_from(time.as_microsecond()).unwrap_or(0));
        let mut holds: HashMap<About, Vec<RangeInclusive<u64>>> = HashMap::new();
        for AlertView { alert, .. } in alerts {
            let scope = Scope { host: alert.scope.host.clone(), endpoint: alert.scope.endpoint.clone() };
            let hold = us(&alert.fired) + 1..=us(&alert.last);
            holds.entry((alert.detector, alert.application, scope)).or_default().push(hold);
        }
        Self { rows: HashMap::new(), holds, late_us }
    }

    /// Takes a request, in the order of arrival.
    fn take(&mut self, request: &Seen) {
        for (detector, standing) in Detector::ALL.into_iter().zip(&request.standings) {
            // What the detector is not about would fill the page with nothing.
            if standing.why_not == Some(WhyNot::OtherBusiness) {
                continue;
            }
            let row = self.rows.entry((detector as u8, standing.key)).or_insert_with(|| {
                let row = row_of(detector, standing, request);
                let about = (row.detector, row.application, row.scope.clone());
                Row { holds: self.holds.get(&about).cloned().unwrap_or_default(), ..row }
            });
            row.requests += 1;
            let why_not = standing.why_not.map(WhyNot::name).or_else(|| why_in_order(row, standing, self.late_us));
            match why_not {
                Some(why) => *row.not_counted.entry(why).or_default() += 1,
                None => row.counted += 1,
            }
        }
    }

    /// Nearest to firing first.
    fn finish(self) -> Vec<Row> {
        let mut rows: Vec<Row> = self.rows.into_values().collect();
        rows.sort_by(|one, other| {
            let level = |row: &Row| row.level_percent.unwrap_or(-1.0);
            let by_level = level(other).total_cmp(&level(one));
            by_level.then_with(|| {
                let scopes = (&one.scope.host, &one.scope.endpoint).cmp(&(&other.scope.host, &other.scope.endpoint));
                one.detector.cmp(other.detector).then(scopes)
            })
        });
        rows.truncate(ROWS_MAX);
        rows
    }
}

fn row_of(detector: Detector, standing: &Standing, request: &Seen) -> Row {
    if standing.has_no_key() {
        return Row { detector: detector.name(), ..Row::default() };
    }
    let kind = detector.key_kind();
    let has_host = !matches!(kind, KeyKind::Source | KeyKind::User) && !request.host.is_empty();
    let has_endpoint = matches!(kind, KeyKind::SourceEndpoint | KeyKind::SessionEndpoint);
    Row {
        detector: detector.name(),
        application: (!standing.is_across_applications).then_some(request.application),
        scope: Scope { host: has_host.then(|| request.host.clone()), endpoint: has_endpoint.then(|| request.endpoint.clone()) },
        level_percent: standing.progress.map(|progress| progress as f64 / 10.0),
        hold_until: (standing.hold_until_us > 0).then(|| time_text(standing.hold_until_us)),
        ..Row::default()
    }
}

/// What the order of arrival tells: that an event was late for its key, or came while the key was on hold.
fn why_in_order(row: &mut Row, standing: &Standing, late_us: u64) -> Option<&'static str> {
    if standing.time_us.saturating_add(late_us) < row.clock_us {
        return Some("late");
    }
    row.clock_us = row.clock_us.max(standing.time_us);
    row.holds.iter().any(|hold| hold.contains(&row.clock_us)).then_some("on_hold")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analytics::explain::{EXPLAIN_FAILED, QUARANTINED};

    fn seen(at_us: u64, why_not: Option<WhyNot>) -> Seen {
        let standing = Standing {
            key: 5,
            time_us: at_us,
            hold_until_us: 0,
            progress: Some(250),
            why_not: Some(WhyNot::OtherBusiness),
            is_across_applications: false,
        };
        let mut standings = [standing; Detector::ALL.len()];
        standings[Detector::Crawl as usize].why_not = why_not;
        Seen { arrival_us: at_us, application: 3, host: "a".to_owned(), endpoint: "GET /".to_owned(), standings }
    }

    #[test]
    fn requests_are_counted_by_key_with_the_reason_why_not() {
        // Newest first; the last one that came is late.
        let seen = [seen(10, None), seen(1_000_000, None), seen(900_000, Some(WhyNot::Static)), seen(1000, None)];
        let mut rows = Rows::new(&[], 100_000);
        seen.iter().rev().for_each(|request| rows.take(request));
        let rows = rows.finish();
        assert_eq!(rows.len(), 1);
        let row = &rows[0];
        assert_eq!((row.detector, row.application, row.level_percent), ("crawl", Some(3), Some(25.0)));
        assert_eq!((row.scope.host.as_deref(), row.scope.endpoint.as_deref()), (Some("a"), None));
        assert_eq!((row.requests, row.counted), (4, 2));
        assert_eq!(row.not_counted, BTreeMap::from([("late", 1), ("static", 1)]));
    }

    #[test]
    fn what_was_quarantined_or_cannot_be_explained_is_told_of_each_detector_and_has_no_scope() {
        let mut rows = Rows::new(&[], 100_000);
        let standings = [QUARANTINED, QUARANTINED, EXPLAIN_FAILED];
        (0..).zip(standings).for_each(|(at_us, standings)| rows.take(&Seen { standings, ..seen(at_us, None) }));
        let rows = rows.finish();
        assert_eq!(rows.len(), Detector::ALL.len());
        for Row { application, scope, level_percent, counted, not_counted, .. } in &rows {
            assert_eq!((application, scope, level_percent, counted), (&None, &Scope::default(), &None, &0));
            assert_eq!(*not_counted, BTreeMap::from([("quarantined", 2), ("explain_failed", 1)]));
        }
    }
}
