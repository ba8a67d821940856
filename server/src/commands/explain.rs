//! `explain`: what is known of a source or a request.

use super::client::Client;
use super::table::Column::{self, Kept, Text};
use super::table::{cell, facts, table};
use super::{DETECTORS_OFF, rows, shown};
use crate::config::ask_flags::ExplainFlags;
use anyhow::Result;
use serde_json::Value;

const DETECTORS: [Column; 9] = [
    Kept("DETECTOR", "/detector"),
    Kept("APPLICATION", "/application"),
    Text("HOST", "/scope/host"),
    Text("ENDPOINT", "/scope/endpoint"),
    Kept("LEVEL, %", "/level_percent"),
    Kept("ON HOLD UNTIL", "/hold_until"),
    Kept("REQUESTS", "/requests"),
    Kept("COUNTED", "/counted"),
    Kept("NOT COUNTED", "/not_counted"),
];

/// Runs the command.
pub(crate) fn explain(flags: &ExplainFlags) -> Result<String> {
    let is_id = flags.what.len() == 32 && flags.what.bytes().all(|byte| byte.is_ascii_hexdigit());
    let name = if is_id { "request_id" } else { "source" };
    let answer = Client::new(&flags.ask)?.get("/explain", &[(name, flags.what.clone())])?;
    Ok(shown(&flags.ask, &answer, page))
}

fn page(answer: &Value) -> String {
    let fact = |pointer: &str| cell(answer.pointer(pointer).unwrap_or(&Value::Null));
    let mut known = vec![("source", fact("/source")), ("shard", fact("/shard"))];
    if answer["request"].is_object() {
        known.push(("request received", fact("/request/arrival")));
        known.push(("from node", fact("/request/node")));
    }
    known.extend([
        ("stored requests", fact("/stored/requests")),
        ("oldest, newest", format!("{}, {}", fact("/stored/oldest"), fact("/stored/newest"))),
        ("shard stores since", fact("/stored/shard_oldest")),
        ("on the allowlist", fact("/allowlisted")),
        ("trusted proxy", fact("/trusted_proxy")),
    ]);
    for verdict in rows(answer, "verdicts") {
        let by =
            verdict["detector"].as_str().map_or_else(|| "by hand".to_owned(), |name| format!("by {}", super::table::plain(name)));
        known.push(("listed", format!("{} until {}, {by}", cell(&verdict["action"]), cell(&verdict["until"]))));
    }
    let none = "no detector has looked at a stored request of this source";
    let mut text = format!("{}\n{}", facts(&known), table(rows(answer, "detectors"), &DETECTORS, none));
    text.push_str(
        "\nThe level is how full the nearest rule of a detector is now. The request that fills it makes the alert, a burst when it \
         flows over; then counting starts anew. Levels count requests that are not stored any more, too.\n",
    );
    if answer["detectors_run"] == false {
        text = format!("{text}\nBut {DETECTORS_OFF}.\n");
    }
    if answer["partial"] == true {
        text.push_str("Not all stored requests were looked at, there was no time: ask again.\n");
    }
    if answer["newest_only"] == true {
        text.push_str("So many were looked at, the newest; older ones may be stored, but are not counted here.\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn asking_again_is_advised_where_it_helps() {
        let says = |partial: bool, newest_only: bool| {
            let text = page(&json!({ "partial": partial, "newest_only": newest_only, "detectors_run": true }));
            (text.contains("ask again"), text.contains("not counted here"))
        };
        assert_eq!([says(false, false), says(true, false), says(false, true)], [(false, false), (true, false), (false, true)]);
    }
}
