//! The requests that a running server still holds, replayed against another configuration, and how its alerts differ.
//!
//! They come page by page, newest first, and are replayed from memory, oldest first, as the records that any replay reads:
//! what visitors sent gets into no file. Their times are those by which the server counted: freed of the clock error of their
//! node, or as they are where a session of the server replayed a log.
//!
//! Compared are the alerts that fired from the beginning of `--last` until the newest request that was fetched, in number too. Not compared
//! is `real_ip_suspect`, which needs the traffic of a whole shard. Alerts of the server may rest on requests that it does not
//! hold any more.

use super::{Summary, configuration, run};
use crate::analytics::alerts::{AlertJson, REAL_IP_SUSPECT, time_text};
use crate::commands::client::Client;
use crate::config::flags::{LineFormat, ReplayFlags};
use crate::escape::plain_json;
use anyhow::{Context, Result, bail};
use postanalytics_protocol::schema::v1::TAG_METHOD;
use serde_json::{Value, json};
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::io::Write;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Most requests that are fetched: some 500 MB.
const RECORDS_MAX: usize = 1_000_000;
/// Rows of a page.
const PAGE: usize = 1000;
/// An event is not taken for older than this, as in the server.
const AGE_US_MAX: u64 = 86_400_000_000;
/// Times in a row that a busy server is asked again, and the pause before: longer than a search and its answer may take.
const TRIES_MAX: u32 = 30;
const PAUSE: Duration = Duration::from_millis(500);

/// A request as a line of a replay, and its place in the order of arrival.
struct Line {
    order: (u64, u64),
    text: String,
}

/// What was fetched, newest first.
#[derive(Default)]
struct Fetched {
    lines: Vec<Line>,
    /// Why this is not all that was asked for.
    cut: Option<String>,
}

/// Runs the command.
pub(super) fn replay(flags: &ReplayFlags, url: &str) -> Result<()> {
    let config = configuration(flags.config.as_deref())?;
    let last =
        crate::config::values::duration(&flags.last).map_err(|wrong| anyhow::anyhow!("--last {:?}: {wrong}", flags.last))?;
    let token =
        flags.status_token_file.as_deref().map(|path| crate::config::read_small_file(path, 4096).map_err(anyhow::Error::msg));
    let token = token.transpose()?.map(|token| token.trim().to_owned());
    if token.is_none() {
        eprintln!(
            "query values and payloads are hidden without the token (--status-token-file): probing and multi_payload may differ"
        );
    }
    let client = Client::of(url, token)?;
    // Once, so that pages and alerts begin at the same time.
    let now_us = micros(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default());
    let since_us = now_us.saturating_sub(micros(last));
    let Fetched { mut lines, cut } = fetch(&client, since_us)?;
    // Newest first within a moment as well.
    lines.reverse();
    lines.sort_by_key(|line| line.order);
    let until_us = lines.last().map_or(now_us, |line| line.order.0) + 1;
    let of_server = ReplayFlags { format: LineFormat::EscapedJsonl, ..flags.clone() };
    // The server counts an event however long after the one before.
    let (summary, found) = run(&of_server, &config, u64::MAX, |reader| {
        let mut clock_us = None;
        lines.iter().try_for_each(|line| reader.line(line.text.as_bytes(), &mut clock_us))
    })?;
    let fired = found.sorted.iter().filter(|alert| (since_us..until_us).contains(&alert.fired_us));
    let replayed: Vec<AlertJson> = fired.map(|alert| alert.to_json()).collect();
    let mut raised = Vec::new();
    let is_whole = alerts(&client, since_us, until_us, &mut raised)?;
    print_difference(&replayed, &raised, &summary)?;
    if let Some(cut) = cut {
        eprintln!("not all requests were replayed: {cut}");
    }
    if !is_whole {
        eprintln!("not all alerts of the server were compared: {PAGE} and more fired in one microsecond");
    }
    Ok(())
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// The server's alerts that fired in a time. It lists so many at most, not by the time they fired: so a time with more is
/// halved. Returns whether that got all.
fn alerts(client: &Client, since_us: u64, until_us: u64, found: &mut Vec<Value>) -> Result<bool> {
    let query = [("since", time_text(since_us)), ("until", time_text(until_us)), ("limit", PAGE.to_string())];
    let mut page = client.get("/alerts", &query)?;
    let rows = page["alerts"].as_array_mut().map(std::mem::take).unwrap_or_default();
    let is_whole = rows.len() < PAGE;
    let middle_us = since_us.midpoint(until_us);
    if !is_whole && middle_us > since_us {
        let later = alerts(client, middle_us, until_us, found)?;
        return Ok(alerts(client, since_us, middle_us, found)? && later);
    }
    found.extend(rows.into_iter().filter(|alert| alert["detector"] != REAL_IP_SUSPECT));
    Ok(is_whole)
}

/// What only one of both has, as JSON lines; how many are the same, on standard error.
fn print_difference(replayed: &[AlertJson], raised: &[Value], summary: &Summary) -> Result<()> {
    let replayed: Vec<Value> = replayed.iter().map(serde_json::to_value).collect::<Result<_, _>>()?;
    let (ours, theirs) = difference(&replayed, raised);
    let same = replayed.len() - ours.len();
    let mut out = std::io::stdout().lock();
    for (only, alerts) in [("replay", &ours), ("server", &theirs)] {
        for alert in alerts {
            writeln!(out, "{}", plain_json(json!({ "only": only, "alert": alert }).to_string()))?;
        }
    }
    eprintln!(
        "{} requests of the server replayed, {} unreadable, {} ahead of the clock: {same} alerts in both, {} with this configuration \
         only, {} of the server only; its alerts may rest on requests that it does not hold any more",
        summary.lines,
        summary.unreadable,
        summary.ahead,
        ours.len(),
        theirs.len()
    );
    Ok(())
}

/// What each has that the other has not: by detector, key, application and scope, and how many of each.
fn difference<'a>(ours: &'a [Value], theirs: &'a [Value]) -> (Vec<&'a Value>, Vec<&'a Value>) {
    let (mut only_ours, mut only_theirs) = (Vec::new(), Vec::new());
    let (ours, mut theirs) = (by_what(ours), by_what(theirs));
    for (what, ours) in ours {
        let (mine, others) = surplus(ours, theirs.remove(&what).unwrap_or_default());
        only_ours.extend(mine);
        only_theirs.extend(others);
    }
    only_theirs.extend(theirs.into_values().flatten());
    (only_ours, only_theirs)
}

/// Alerts by detector, key, application and scope, those of one by the time they fired.
fn by_what(alerts: &[Value]) -> BTreeMap<String, Vec<&Value>> {
    let mut all = BTreeMap::<_, Vec<&Value>>::new();
    for alert in alerts {
        let what = format!("{} {} {} {}", alert["detector"], alert["key"], alert["application"], alert["scope"]);
        all.entry(what).or_default().push(alert);
    }
    all.values_mut().for_each(|of_one| of_one.sort_by(|one, other| fired(one).cmp(fired(other))));
    all
}

/// All are of one form and in UTC: their order is that of the times.
fn fired(alert: &Value) -> &str {
    alert["fired"].as_str().unwrap_or_default()
}

/// Of alerts that are about the same, what is left when as many as can be are paired: first those that fired at the same time,
/// then the others, the newest first. Their times differ where the beginning was evicted.
fn surplus<'a>(mut ours: Vec<&'a Value>, mut theirs: Vec<&'a Value>) -> (Vec<&'a Value>, Vec<&'a Value>) {
    let (mut mine, mut others) = (Vec::new(), Vec::new());
    while let (Some(one), Some(other)) = (ours.last(), theirs.last()) {
        match fired(one).cmp(fired(other)) {
            Ordering::Equal => drop((ours.pop(), theirs.pop())),
            Ordering::Greater => mine.extend(ours.pop()),
            Ordering::Less => others.extend(theirs.pop()),
        }
    }
    // Newest first, down to the oldest.
    mine.extend(ours.into_iter().rev());
    others.extend(theirs.into_iter().rev());
    let pairs = mine.len().min(others.len());
    (mine.split_off(pairs), others.split_off(pairs))
}

/// The requests since a time, page by page: each goes on where the one before ended, also one that was cut short.
fn fetch(client: &Client, since_us: u64) -> Result<Fetched> {
    let mut fetched = Fetched::default();
    let mut query = vec![("since", time_text(since_us)), ("limit", PAGE.to_string())];
    let mut tries = 0;
    loop {
        let page = client.get("/requests", &query)?;
        let next = page.get("next").context("the server's /requests cannot be paged through: is it older than this command?")?;
        let rows = page["requests"].as_array().map_or(&[][..], Vec::as_slice);
        fetched.lines.extend(rows.iter().map(line_of));
        let is_partial = page["partial"] == true;
        if fetched.lines.len() >= RECORDS_MAX {
            fetched.cut = Some(format!("over {RECORDS_MAX}, which is the most: give a shorter --last"));
            return Ok(fetched);
        }
        match next.as_str() {
            Some(next) => {
                query.retain(|(name, _)| *name != "cursor");
                query.push(("cursor", next.to_owned()));
            }
            None if is_partial && rows.is_empty() => {}
            None if is_partial => {
                fetched.cut = Some("the server could not read all that it holds".to_owned());
                return Ok(fetched);
            }
            None => return Ok(fetched),
        }
        // Nothing, but not the end: another search is under way, or a shard has no time.
        tries = if is_partial && rows.is_empty() { tries + 1 } else { 0 };
        if tries > TRIES_MAX && fetched.lines.is_empty() {
            bail!("the server is busy with other searches, or too slow: try again");
        }
        if tries > TRIES_MAX {
            fetched.cut = Some("the server was busy with other searches, or too slow: try again".to_owned());
            return Ok(fetched);
        }
        if tries > 0 {
            std::thread::sleep(PAUSE);
        }
    }
}

/// A row of `/requests` as a record of a replay.
fn line_of(row: &Value) -> Line {
    let number = |name: &str| row[name].as_u64().unwrap_or(0);
    let age_us = number("sent_us").saturating_sub(number("event_us")).min(AGE_US_MAX);
    let event_us = if row["replay"] == true { number("event_us") } else { number("arrival_us").saturating_sub(age_us) };
    let flags = number("flags");
    let names = [(0, "blocked"), (1, "denylist"), (2, "graylist"), (6, "credentials")];
    let flag_names: Vec<&str> = names.iter().filter(|(bit, _)| flags >> bit & 1 == 1).map(|(_, name)| *name).collect();
    let outcome = match (flags >> 3 & 1, flags >> 4 & 1) {
        (1, 0) => "failed",
        (0, 1) => "succeeded",
        _ => "unknown",
    };
    let hits: Vec<Value> = row["hits"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|hit| json!({ "type": hit["attack_type"], "payload": hit["payload"], "point": hit["point"] }))
        .collect();
    let record = json!({
        "event_us": event_us,
        "ip": row["client_ip"],
        "method": method_of(row),
        "path": row["path"],
        "status": row["status"],
        "request_id": row["request_id"],
        "application": row["application"],
        "host": row["host"],
        "query": row["query"],
        "user_agent": row["user_agent"],
        "session": row["session_hash"],
        "user": row["user_hash"],
        "outcome": outcome,
        "hits": hits,
        "flags": flag_names,
    });
    Line { order: (number("arrival_us"), number("commit_index")), text: record.to_string() }
}

/// The method of a row: one without a number of its own is in the extensions, and its name in the row is a number.
fn method_of(row: &Value) -> &str {
    let name = row["method"].as_str().unwrap_or_default();
    if !name.bytes().all(|byte| byte.is_ascii_digit()) {
        return name;
    }
    let extension = row["extensions"].as_array().into_iter().flatten().find(|extension| extension["tag"] == TAG_METHOD);
    extension.and_then(|extension| extension["value"].as_str()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use postanalytics_protocol::schema::v1::{
        FLAG_AUTH_FAILED, FLAG_AUTH_SUCCEEDED, FLAG_BLOCKED, FLAG_CREDENTIALS, FLAG_DENYLIST, FLAG_GRAYLIST,
    };

    #[test]
    fn a_row_becomes_the_record_that_it_was() {
        let flags = FLAG_BLOCKED | FLAG_AUTH_FAILED | FLAG_CREDENTIALS;
        let row = json!({ "arrival_us": 1000, "commit_index": 3, "sent_us": 50, "event_us": 40, "flags": flags, "path": "/a" });
        let line = line_of(&row);
        let record: Value = serde_json::from_str(&line.text).expect("JSON");
        assert_eq!((line.order, &record["event_us"], &record["path"]), ((1000, 3), &990.into(), &"/a".into()));
        assert_eq!((&record["flags"], &record["outcome"]), (&json!(["blocked", "credentials"]), &"failed".into()));
        let replayed = line_of(&json!({ "arrival_us": 1000, "sent_us": 50, "event_us": 40, "replay": true }));
        assert_eq!(serde_json::from_str::<Value>(&replayed.text).expect("JSON")["event_us"], 40);
        let bits = [FLAG_BLOCKED, FLAG_DENYLIST, FLAG_GRAYLIST, FLAG_AUTH_FAILED, FLAG_AUTH_SUCCEEDED, FLAG_CREDENTIALS];
        assert_eq!(bits.map(u32::trailing_zeros), [0, 1, 2, 3, 4, 6]);
    }

    #[test]
    fn alerts_about_the_same_are_compared_in_number() {
        let alert = |source: &str, fired: u32| {
            let fired = time_text(1_700_000_000_000_000 + u64::from(fired) * 1_000_000);
            json!({ "detector": "crawl", "key": { "kind": "source", "value": source }, "scope": {}, "fired": fired })
        };
        let ours = [("a", 1), ("a", 5), ("a", 9), ("b", 2), ("c", 3)].map(|(source, fired)| alert(source, fired));
        let theirs = [("d", 4), ("c", 7), ("c", 8), ("b", 1), ("a", 5)].map(|(source, fired)| alert(source, fired));
        let (only_ours, only_theirs) = difference(&ours, &theirs);
        assert_eq!(only_ours, [&ours[2], &ours[0]], "one of three is the same");
        assert_eq!(only_theirs, [&theirs[1], &theirs[0]], "the newest of two is a pair, whenever it fired");
        let (none, many) = difference(&[], &ours);
        assert!(none.is_empty() && many.len() == ours.len());
    }

    #[test]
    fn a_method_without_a_number_is_in_the_extensions() {
        let extensions = json!([{ "tag": 77, "value": "x" }, { "tag": TAG_METHOD, "value": "PURGE" }]);
        assert_eq!(method_of(&json!({ "method": "0", "extensions": extensions })), "PURGE");
        assert_eq!(method_of(&json!({ "method": "GET", "extensions": extensions })), "GET");
        assert_eq!(method_of(&json!({ "method": "0", "extensions": [] })), "");
    }
}
