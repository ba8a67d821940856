//! The requests that a running server still holds, replayed against another configuration, and how its alerts differ.
//!
//! They come page by page, newest first, and are written to a file that goes with the process, oldest first, as the records
//! that any replay reads. Their times are those by which the server counted: freed of the clock error of their node.

use super::{configuration, find};
use crate::analytics::alerts::{AlertJson, time_text};
use crate::commands::client::Client;
use crate::config::flags::{LineFormat, ReplayFlags};
use crate::escape::plain_json;
use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::io::{BufWriter, Write};

/// Most requests that are fetched: some 500 MB.
const RECORDS_MAX: usize = 1_000_000;
/// Rows of a page.
const PAGE: usize = 1000;
/// An event is not taken for older than this, as in the server.
const AGE_US_MAX: u64 = 86_400_000_000;

/// A request as a line of a replay, and its place in the order of arrival.
struct Line {
    order: (u64, u64),
    text: String,
}

/// Runs the command.
pub(super) fn replay(flags: &ReplayFlags, url: &str) -> Result<()> {
    let config = configuration(flags.config.as_deref())?;
    let token =
        flags.status_token_file.as_deref().map(|path| crate::config::read_small_file(path, 4096).map_err(anyhow::Error::msg));
    let client = Client::of(url, token.transpose()?.map(|token| token.trim().to_owned()))?;
    let mut lines = fetch(&client, &flags.last)?;
    // Newest first within a moment as well.
    lines.reverse();
    lines.sort_by_key(|line| line.order);
    let mut spool = tempfile::NamedTempFile::new().context("no temporary file can be made: see TMPDIR")?;
    let mut out = BufWriter::new(spool.as_file_mut());
    for line in &lines {
        writeln!(out, "{}", line.text).context("the temporary file cannot be written: see TMPDIR")?;
    }
    out.flush().context("the temporary file cannot be written: see TMPDIR")?;
    drop(out);
    let fetched = lines.len();
    drop(lines);
    let of_file = ReplayFlags { format: LineFormat::Jsonl, files: vec![spool.path().to_path_buf()], ..flags.clone() };
    let (_, found) = find(&of_file, &config)?;
    let replayed: Vec<AlertJson> = found.sorted.iter().map(|alert| alert.to_json()).collect();
    let raised = client.get("/alerts", &[("since", flags.last.clone()), ("limit", PAGE.to_string())])?;
    let raised = raised["alerts"].as_array().cloned().unwrap_or_default();
    print_difference(&replayed, &raised, fetched)
}

/// What only one of both has, as JSON lines; how many are the same, on standard error.
fn print_difference(replayed: &[AlertJson], raised: &[Value], fetched: usize) -> Result<()> {
    let replayed: Vec<Value> = replayed.iter().map(serde_json::to_value).collect::<Result<_, _>>()?;
    let (ours, theirs) = (by_what(&replayed), by_what(raised));
    let mut out = std::io::stdout().lock();
    let mut same = 0;
    for (what, alert) in &ours {
        if theirs.contains_key(what) {
            same += 1;
        } else {
            writeln!(out, "{}", plain_json(json!({ "only": "replay", "alert": alert }).to_string()))?;
        }
    }
    for (what, alert) in theirs.iter().filter(|(what, _)| !ours.contains_key(*what)) {
        debug_assert!(!what.is_empty());
        writeln!(out, "{}", plain_json(json!({ "only": "server", "alert": alert }).to_string()))?;
    }
    eprintln!(
        "{fetched} requests of the server replayed: {same} alerts in both, {} with this configuration only, {} of the server only; its \
         alerts may rest on requests that it does not hold any more",
        ours.len() - same,
        theirs.len() - same
    );
    Ok(())
}

/// Alerts by detector, key, application and scope: times differ where the beginning was evicted.
fn by_what(alerts: &[Value]) -> BTreeMap<String, &Value> {
    let what = |alert: &Value| format!("{} {} {} {}", alert["detector"], alert["key"], alert["application"], alert["scope"]);
    alerts.iter().map(|alert| (what(alert), alert)).collect()
}

/// The requests of the last time, newest first. A page may end within a batch, all of which arrived at once: so the next one
/// begins with that moment again, and what was seen of it is left out.
fn fetch(client: &Client, last: &str) -> Result<Vec<Line>> {
    let mut lines: Vec<Line> = Vec::new();
    let mut is_hidden = false;
    let mut query = vec![("since", last.to_owned()), ("limit", PAGE.to_string())];
    let mut seen: HashMap<(u64, u64), usize> = HashMap::new();
    loop {
        let page = client.get("/requests", &query)?;
        let rows = page["requests"].as_array().map_or(&[][..], Vec::as_slice);
        if page["partial"] == true && rows.is_empty() {
            bail!("the server is busy with another search, or took too long: try again");
        }
        let (before, mut again) = (lines.len(), std::mem::take(&mut seen));
        for row in rows {
            let batch = (row["shard"].as_u64().unwrap_or(0), row["commit_index"].as_u64().unwrap_or(0));
            *seen.entry(batch).or_default() += 1;
            if let Some(left) = again.get_mut(&batch).filter(|left| **left > 0) {
                *left -= 1;
                continue;
            }
            is_hidden |= row["raw_headers"] == "***" || row["query"].as_str().is_some_and(|query| query.contains("***"));
            lines.push(line_of(row));
        }
        if lines.len() >= RECORDS_MAX {
            eprintln!("only the newest {RECORDS_MAX} requests are replayed: give a shorter --last");
            break;
        }
        if rows.len() < PAGE && page["partial"] != true {
            break;
        }
        let oldest_us = rows.last().and_then(|row| row["arrival_us"].as_u64()).unwrap_or(0);
        if lines.len() == before {
            bail!("over {PAGE} requests arrived in the same moment ({}): they cannot be paged through", time_text(oldest_us));
        }
        // Of batches that arrived later nothing can come again.
        let of_oldest = rows.iter().filter(|row| row["arrival_us"].as_u64() == Some(oldest_us));
        let kept: Vec<(u64, u64)> =
            of_oldest.map(|row| (row["shard"].as_u64().unwrap_or(0), row["commit_index"].as_u64().unwrap_or(0))).collect();
        seen.retain(|batch, _| kept.contains(batch));
        query.retain(|(name, _)| *name != "until");
        query.push(("until", time_text(oldest_us + 1)));
    }
    if is_hidden {
        eprintln!(
            "query values and payloads are hidden without the token (--status-token-file): probing and multi_payload differ"
        );
    }
    Ok(lines)
}

/// A row of `/requests` as a record of a replay.
fn line_of(row: &Value) -> Line {
    let number = |name: &str| row[name].as_u64().unwrap_or(0);
    let age_us = number("sent_us").saturating_sub(number("event_us")).min(AGE_US_MAX);
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
        "event_us": number("arrival_us").saturating_sub(age_us),
        "ip": row["client_ip"],
        "method": row["method"],
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
        let bits = [FLAG_BLOCKED, FLAG_DENYLIST, FLAG_GRAYLIST, FLAG_AUTH_FAILED, FLAG_AUTH_SUCCEEDED, FLAG_CREDENTIALS];
        assert_eq!(bits.map(u32::trailing_zeros), [0, 1, 2, 3, 4, 6]);
    }
}
