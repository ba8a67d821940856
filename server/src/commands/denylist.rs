//! `denylist list|add|del`.

use super::client::Client;
use super::table::Column::{self, Kept};
use super::table::table;
use super::{rows, shown};
use crate::config::ask_flags::{Action, DenylistCommand, WhomFlags};
use crate::config::values;
use anyhow::{Result, bail};
use serde_json::{Value, json};

const VERDICTS: [Column; 6] = [
    Kept("SOURCE", "/source"),
    Kept("SESSION", "/session"),
    Kept("APPLICATION", "/application"),
    Kept("ACTION", "/action"),
    Kept("UNTIL", "/until"),
    Kept("DETECTOR", "/detector"),
];

/// Runs the command.
pub(crate) fn denylist(command: &DenylistCommand) -> Result<String> {
    match command {
        DenylistCommand::List { whom, ask } => {
            let client = Client::new(ask)?;
            let (mut all, mut query) = (Vec::new(), query_of(whom));
            loop {
                let answer = client.get("/denylist", &query)?;
                all.extend_from_slice(rows(&answer, "denylist"));
                let Some(next) = answer["next"].as_str() else { break };
                query.retain(|(name, _)| *name != "cursor");
                query.push(("cursor", next.to_owned()));
            }
            let answer = json!({ "denylist": all, "partial": false, "next": null });
            Ok(shown(ask, &answer, |answer| verdicts(rows(answer, "denylist"), "nobody is listed")))
        }
        DenylistCommand::Add { whom, action, duration, ask } => {
            let duration = values::duration(duration).map_err(|error| anyhow::anyhow!("bad --for {duration:?}: {error}"))?;
            if whom.source.is_none() && whom.session.is_none() {
                bail!("whom? Give an address, or --session HASH");
            }
            let mut body = json!({ "duration_s": duration.as_secs(), "action": name_of(*action) });
            for (name, value) in [("source", &whom.source), ("session", &whom.session)] {
                if let Some(value) = value {
                    body[name] = value.clone().into();
                }
            }
            if let Some(application) = whom.application {
                body["application"] = application.into();
            }
            let answer = Client::new(ask)?.post("/denylist", &body)?;
            Ok(shown(ask, &answer, |verdict| verdicts(std::slice::from_ref(verdict), "")))
        }
        DenylistCommand::Del { whom, ask } => {
            let answer = Client::new(ask)?.delete("/denylist", &query_of(whom))?;
            Ok(shown(ask, &answer, |answer| format!("taken off:\n\n{}", verdicts(rows(answer, "removed"), "nobody"))))
        }
    }
}

const fn name_of(action: Action) -> &'static str {
    match action {
        Action::Denylist => "denylist",
        Action::Graylist => "graylist",
    }
}

/// A table in which "all" and "by hand" are words.
fn verdicts(found: &[Value], none: &str) -> String {
    let mut found = found.to_vec();
    for verdict in &mut found {
        for (field, word) in [("application", "all"), ("detector", "by hand")] {
            if verdict[field].is_null() {
                verdict[field] = word.into();
            }
        }
    }
    table(&found, &VERDICTS, none)
}

fn query_of(whom: &WhomFlags) -> Vec<(&'static str, String)> {
    let mut query = Vec::new();
    query.extend(whom.source.clone().map(|source| ("source", source)));
    query.extend(whom.session.clone().map(|session| ("session", session)));
    query.extend(whom.application.map(|application| ("application", application.to_string())));
    query
}
