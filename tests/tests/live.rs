//! The detectors live, over sockets, on traffic that stays away from every threshold: the alerts of the independent oracle.
//! And frames that come twice, which change nothing.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use postanalytics_client::{Client, Hit, Request};
use postanalytics_protocol::routing::address_bytes;
use postanalytics_protocol::schema::v1::{AttackType, FLAG_AUTH_SUCCEEDED, FLAG_BLOCKED, Method};
use postanalytics_protocol::{BatchBuilder, RecordFields};
use postanalytics_tests::{RawConnection, ServerOptions, eventually, skipped, whole_lines};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const ORACLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/oracle");
const TOOLS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../server/config/attack_tools.txt");
const LONG: Duration = Duration::from_secs(60);

fn python(arguments: &[&str]) -> Option<String> {
    let output = Command::new("python3").current_dir(ORACLE).args(arguments).output().ok()?;
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap())
}

fn json_lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What must be equal live: (detector, key, scope).
fn identity(alert: &Value) -> [String; 3] {
    ["detector", "key", "scope"].map(|name| alert[name].to_string())
}

/// Sends a record of the generator, its time moved by `shift_us`.
fn send(client: &Client, record: &Value, shift_us: i64) {
    let text = |name: &str| record[name].as_str().unwrap_or("");
    let (path, query) = text("path").split_once('?').unwrap_or((text("path"), ""));
    let of_hit = |hit: &'static str, payload| Hit {
        attack_type: AttackType::from_name(hit).unwrap() as u16,
        point: b"get_q",
        payload,
        ..Hit::default()
    };
    let names = ["sqli", "xss", "rce"];
    let hits: Vec<Hit<'_>> = record["hits"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|hit| {
            let name = names.into_iter().find(|name| hit["type"] == *name).unwrap();
            of_hit(name, hit["payload"].as_str().unwrap().as_bytes())
        })
        .collect();
    let succeeded = if text("outcome") == "succeeded" { FLAG_AUTH_SUCCEEDED } else { 0 };
    let blocked = if record["flags"].as_array().is_some_and(|flags| !flags.is_empty()) { FLAG_BLOCKED } else { 0 };
    let request = Request {
        client_ip: text("ip").parse().unwrap(),
        event_us: (record["event_us"].as_i64().unwrap() + shift_us).cast_unsigned(),
        method: Method::ALL.iter().find(|method| method.name() == text("method")).map_or(0, |method| *method as u8),
        status: record["status"].as_u64().unwrap() as u16,
        flags: succeeded | blocked,
        user: text("user").as_bytes(),
        path: path.as_bytes(),
        query: query.as_bytes(),
        user_agent: text("user_agent").as_bytes(),
        hits: &hits,
        ..Request::default()
    };
    client.try_send(&request).unwrap();
}

fn alerts_raised(events: &Path) -> Vec<Value> {
    json_lines(&whole_lines(events)).into_iter().filter(|line| line["event"] == "alert_raised").collect()
}

#[test]
fn alerts_over_sockets_are_those_of_the_oracle() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let Some(text) = python(&["generate.py", "--scenario", "apart"]) else {
        return skipped("alerts_over_sockets_are_those_of_the_oracle", "there is no python3");
    };
    std::fs::write(path("records.jsonl"), &text).unwrap();
    let expected = python(&["oracle.py", "--format", "jsonl", "--tools", TOOLS, &path("records.jsonl")]).unwrap();
    let expected = json_lines(&expected);
    assert!(expected.len() > 25, "only {} alerts: the generator does not do what it did", expected.len());
    let records = json_lines(&text);
    compare(1, &records, &expected);
    // Hours are sent within a second: what two shards tell of a user may come to the correlator minutes of his time apart.
    let of_sources: Vec<Value> = expected.into_iter().filter(|alert| alert["key"]["kind"] != "user").collect();
    compare(2, &records, &of_sources);
}

/// Sends the records to a server, and compares what it raises.
fn compare(shards: u32, records: &[Value], expected: &[Value]) {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("rules.toml"), "").unwrap();
    let server = ServerOptions::default()
        .shards(shards)
        .arguments(&["--config", &path("rules.toml"), "--events", &path("events")])
        .start();
    let client = Client::builder().server(server.ingest.to_string()).build().unwrap();
    eventually("the server's key", LONG, || client.hash_identity(b"x").is_some());
    // The server knows the hash of a user's name under its own key.
    let known = |alert: &Value| {
        let mut alert = alert.clone();
        if alert["key"]["kind"] == "user" {
            let hash = client.hash_identity(alert["key"]["value"].as_str().unwrap().as_bytes()).unwrap();
            alert["key"]["value"] = format!("{hash:016x}").into();
        }
        identity(&alert)
    };
    let expected: BTreeSet<[String; 3]> = expected.iter().map(known).collect();
    let now_us = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as i64;
    // The last is a second old, the first some hours: filters may be late, and times are theirs.
    let shift_us = now_us - 1_000_000 - records.last().unwrap()["event_us"].as_i64().unwrap();
    for record in records {
        send(&client, record, shift_us);
    }
    client.flush(LONG).unwrap();
    let compared = |alert: &Value| shards == 1 || alert["key"]["kind"] != "user";
    let found = || -> BTreeSet<[String; 3]> {
        alerts_raised(Path::new(&path("events"))).iter().filter(|alert| compared(alert)).map(identity).collect()
    };
    // However few come: what is missing is told below.
    let deadline = Instant::now() + LONG;
    while found().len() < expected.len() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
    }
    let found = found();
    let missing: Vec<_> = expected.difference(&found).collect();
    let invented: Vec<_> = found.difference(&expected).collect();
    assert!(missing.is_empty() && invented.is_empty(), "{} found; missing {missing:#?}, invented {invented:#?}", found.len());
    server.stop();
}

/// A frame of failed log-ins of one source.
fn failures(session: u64, sequence: u64, count: u64) -> Vec<u8> {
    let mut batch = BatchBuilder::default();
    for number in 0..count {
        let fields = RecordFields {
            request_id: (u128::from(sequence) << 64 | u128::from(number)).to_be_bytes(),
            client_ip: address_bytes([192, 0, 2, 1].into()),
            event_us: 1_700_000_000_000_000,
            method: Method::Post as u8,
            status: 401,
            path: b"/login",
            ..RecordFields::default()
        };
        batch.push(&fields, 1 << 20).unwrap();
    }
    let mut out = Vec::new();
    batch.encode_frame(session, sequence, 0, &mut out);
    out
}

#[test]
fn frames_that_come_twice_change_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("rules.toml");
    std::fs::write(&config, "").unwrap();
    let server = ServerOptions::default().arguments(&["--config", config.to_str().unwrap()]).start();
    let count = |name: &str| server.metric(name) as u64;
    let mut connection = RawConnection::open(server.ingest, 1, 7);
    // Five failures are within the threshold, and each comes four times: as often as a client that reconnects may send it.
    for sequence in 1..=5 {
        connection.send(&failures(7, sequence, 1));
        for _ in 0..3 {
            for again in 1..=sequence {
                connection.send(&failures(7, again, 1));
            }
        }
    }
    eventually("duplicates", LONG, || server.total("records_duplicate") == 45);
    assert_eq!((server.total("records_stored"), count("postanalytics_alerts_raised_total")), (5, 0));
    let keys = count("postanalytics_keys_live");
    connection.send(&failures(7, 6, 1));
    eventually("the alert", LONG, || count("postanalytics_alerts_raised_total") == 1);
    connection.send(&failures(7, 6, 1));
    eventually("one more duplicate", LONG, || server.total("records_duplicate") == 46);
    assert_eq!((count("postanalytics_alerts_raised_total"), count("postanalytics_keys_live")), (1, keys));
    server.assert_laws();
    server.stop();
}
