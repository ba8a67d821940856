//! `alerts`, `attacks`, `requests`, `top`, `timeline`: what was found, as tables.

use super::client::{Client, encoded};
use super::table::Column::{self, Kept, Text};
use super::table::{cell, facts, plain, table};
use super::{none_of, rows, shown};
use crate::config::ask_flags::{AlertsFlags, AttacksFlags, RequestsFlags, RowFlags, TimelineFlags, TopFlags, TopOf};
use anyhow::Result;
use serde_json::Value;

const ALERTS: [Column; 10] = [
    Kept("FIRED", "/fired"),
    Kept("LEVEL", "/level"),
    Kept("DETECTOR", "/detector"),
    Kept("KEY", "/key/value"),
    Kept("APPLICATION", "/application"),
    Text("HOST", "/scope/host"),
    Text("ENDPOINT", "/scope/endpoint"),
    Kept("COUNT", "/count"),
    Kept("DISTINCT", "/distinct"),
    Kept("FINAL", "/final"),
];

const ATTACKS: [Column; 11] = [
    Kept("ID", "/id"),
    Kept("LAST", "/last"),
    Kept("TYPE", "/type"),
    Kept("APPLICATION", "/application"),
    Text("HOST", "/host"),
    Text("TEMPLATE", "/template"),
    Text("POINT", "/point"),
    Kept("KEY", "/key"),
    Kept("COUNT", "/count"),
    Kept("BLOCKED", "/blocked"),
    Kept("SOURCES", "/distinct_sources"),
];

const SAMPLES: [Column; 7] = [
    Kept("TIME", "/time"),
    Kept("SOURCE", "/source"),
    Text("METHOD", "/method"),
    Kept("STATUS", "/status"),
    Kept("BLOCKED", "/blocked"),
    Text("PAYLOAD", "/payload"),
    Kept("REQUEST", "/request_id"),
];

const SOURCES: [Column; 3] = [Kept("SOURCE", "/source"), Kept("COUNT", "/count"), Kept("LESS BY AT MOST", "/error")];

const REQUESTS: [Column; 9] = [
    Kept("ARRIVED", "/arrival"),
    Kept("SOURCE", "/client_ip"),
    Text("METHOD", "/method"),
    Kept("STATUS", "/status"),
    Text("HOST", "/host"),
    Text("PATH", "/path"),
    Text("HITS", "/hits"),
    Kept("SHARD", "/shard"),
    Kept("ID", "/request_id"),
];

const TOP: [Column; 3] = [Kept("COUNT", "/count"), Kept("LESS BY AT MOST", "/error"), Text("VALUE", "/value")];

const MINUTES: [Column; 9] = [
    Kept("MINUTE", "/time"),
    Kept("REQUESTS", "/requests"),
    Kept("WITH HITS", "/attacks"),
    Kept("BLOCKED", "/blocked"),
    Kept("STATUSES", "/statuses"),
    Kept("HITS", "/hits"),
    Kept("P50, ms", "/response_p50_ms"),
    Kept("P90, ms", "/response_p90_ms"),
    Kept("P99, ms", "/response_p99_ms"),
];

type Query = Vec<(&'static str, String)>;

fn put(query: &mut Query, name: &'static str, value: Option<&impl ToString>) {
    query.extend(value.map(|value| (name, value.to_string())));
}

fn query_of(flags: &RowFlags) -> Query {
    let mut query = vec![("limit", flags.limit.to_string())];
    put(&mut query, "source", flags.source.as_ref());
    put(&mut query, "application", flags.application.as_ref());
    put(&mut query, "host", flags.host.as_ref());
    put(&mut query, "since", flags.since.as_ref());
    put(&mut query, "until", flags.until.as_ref());
    query
}

/// `postanalytics alerts`
pub(crate) fn alerts(flags: &AlertsFlags) -> Result<String> {
    let mut query = query_of(&flags.rows);
    put(&mut query, "detector", flags.detector.as_ref());
    let answer = Client::new(&flags.ask)?.get("/alerts", &query)?;
    Ok(shown(&flags.ask, &answer, |answer| table(rows(answer, "alerts"), &ALERTS, none_of(answer, "no alert"))))
}

/// `postanalytics attacks`
pub(crate) fn attacks(flags: &AttacksFlags) -> Result<String> {
    let client = Client::new(&flags.ask)?;
    if let Some(id) = &flags.id {
        let answer = client.get(&format!("/attacks/{}", encoded(id)), &[])?;
        return Ok(shown(&flags.ask, &answer, attack));
    }
    let mut query = query_of(&flags.rows);
    put(&mut query, "type", flags.attack_type.as_ref());
    let answer = client.get("/attacks", &query)?;
    Ok(shown(&flags.ask, &answer, |answer| attacks_table(answer, flags.rows.source.is_some())))
}

/// The list; one of a source may leave old attacks out in which it took part.
fn attacks_table(answer: &Value, is_of_source: bool) -> String {
    let mut text = table(rows(answer, "attacks"), &ATTACKS, "no attack");
    if is_of_source {
        text.push_str(
            "\nOf an attack by more than 32 sources the others are known by fingerprints: one that finds it very probably took part. \
             There is room for 1,048,576 in all, and the oldest yield; attacks on a user have no sources.\n",
        );
    }
    text
}

/// One attack: its facts, its sources, its samples.
fn attack(attack: &Value) -> String {
    let names = [
        "id",
        "kind",
        "type",
        "application",
        "host",
        "template",
        "point",
        "key",
        "first",
        "last",
        "count",
        "blocked",
        "kept",
        "suppressed",
        "statuses",
        "distinct_sources",
        "distinct_payloads",
        "closed",
    ];
    let known: Vec<(&str, String)> = names.iter().filter_map(|name| attack.get(name).map(|value| (*name, cell(value)))).collect();
    format!(
        "{}\n{}\n{}",
        facts(&known),
        table(rows(attack, "sources"), &SOURCES, "no source is kept"),
        table(rows(attack, "samples"), &SAMPLES, "no sample is kept")
    )
}

/// `postanalytics requests`
pub(crate) fn requests(flags: &RequestsFlags) -> Result<String> {
    let client = Client::new(&flags.ask)?;
    if let Some(id) = &flags.id {
        let answer = client.get(&format!("/requests/{}", encoded(id)), &[])?;
        return Ok(shown(&flags.ask, &answer, |answer| {
            let all = rows(answer, "requests").iter().map(|request| {
                let fields = request.as_object().into_iter().flatten();
                let fields: Vec<(&str, String)> = fields.map(|(name, value)| (name.as_str(), cell(value))).collect();
                facts(&fields)
            });
            all.collect::<Vec<_>>().join("\n")
        }));
    }
    let mut query = vec![("limit", flags.limit.to_string())];
    put(&mut query, "source", flags.source.as_ref());
    put(&mut query, "since", flags.since.as_ref());
    let answer = client.get("/requests", &query)?;
    Ok(shown(&flags.ask, &answer, |answer| {
        let mut found = rows(answer, "requests").to_vec();
        for request in &mut found {
            // Types are what fits a line; `requests ID` and --json show all.
            let types: Vec<Value> = rows(request, "hits").iter().map(|hit| hit["attack_type"].clone()).collect();
            request["hits"] = types.into();
        }
        let mut text = table(&found, &REQUESTS, "no request that is stored fits");
        if answer["partial"] == true {
            text.push_str(
                "Not all was looked at: another search was under way, it took too long, or too much was found. Ask again.\n",
            );
        }
        text
    }))
}

/// `postanalytics top`
pub(crate) fn top(flags: &TopFlags) -> Result<String> {
    let of = match flags.of {
        TopOf::Sources => "sources",
        TopOf::Paths => "paths",
        TopOf::UserAgents => "user_agents",
        TopOf::Types => "types",
    };
    let mut query = vec![("of", of.to_owned()), ("limit", flags.limit.to_string())];
    put(&mut query, "application", flags.application.as_ref());
    let answer = Client::new(&flags.ask)?.get("/top", &query)?;
    Ok(shown(&flags.ask, &answer, |answer| top_table(answer, of)))
}

/// The list, with since when it was counted: nothing is since never.
fn top_table(answer: &Value, of: &str) -> String {
    let table = table(rows(answer, "rows"), &TOP, none_of(answer, "nothing was counted yet"));
    match answer["since"].as_str() {
        None | Some("") => table,
        Some(since) => format!("{} of {of} since {}\n\n{table}", cell(&answer["total"]), plain(since)),
    }
}

/// `postanalytics timeline`
pub(crate) fn timeline(flags: &TimelineFlags) -> Result<String> {
    let mut query = Query::new();
    put(&mut query, "application", flags.application.as_ref());
    put(&mut query, "since", flags.since.as_ref());
    let answer = Client::new(&flags.ask)?.get("/timeline", &query)?;
    Ok(shown(&flags.ask, &answer, |answer| table(rows(answer, "minutes"), &MINUTES, none_of(answer, "no request came"))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_list_of_nothing_has_no_beginning() {
        let answer = json!({ "since": "", "total": 0, "rows": [], "detectors_run": true });
        assert_eq!(top_table(&answer, "sources"), "nothing was counted yet\n");
        let row = json!({ "value": "a", "count": 3, "error": 0 });
        let answer = json!({ "since": "2023-11-14T22:14:00.000000Z", "total": 3, "rows": [row] });
        assert!(top_table(&answer, "paths").starts_with("3 of paths since 2023-11-14T22:14:00.000000Z\n\nCOUNT"));
    }

    #[test]
    fn a_list_of_a_source_says_what_it_may_leave_out() {
        let says = |is_of_source| attacks_table(&json!({ "attacks": [] }), is_of_source).contains("more than 32 sources");
        assert_eq!([false, true].map(says), [false, true]);
    }
}
