//! What shards find reaches the correlator: alerts, also of users whom no shard knows alone, and verdicts, as lines of the
//! events file.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use postanalytics_protocol::routing::address_bytes;
use postanalytics_protocol::schema::v1::{FLAG_AUTH_FAILED, Method};
use postanalytics_protocol::{BatchBuilder, Hit, RecordFields, shard_of};
use postanalytics_tests::wire::hello;
use postanalytics_tests::{RawConnection, ServerOptions, eventually, whole_lines};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::time::{Duration, Instant};

const SHARDS: u32 = 2;

/// The lines of a file, once there are so many of an event; waits for them.
fn lines(path: &Path, event: &str, count: usize) -> Vec<Value> {
    let give_up = Instant::now() + Duration::from_secs(20);
    loop {
        let text = whole_lines(path);
        let all: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        let found: Vec<Value> = all.iter().filter(|line| line["event"] == event).cloned().collect();
        if found.len() >= count {
            return found;
        }
        assert!(Instant::now() < give_up, "{count} lines of {event} were expected: {all:#?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Sends each record to its shard, one batch a shard.
fn send(connections: &mut BTreeMap<u32, RawConnection>, sequence: u64, records: &[RecordFields<'_>]) {
    for (shard, connection) in connections {
        let mut batch = BatchBuilder::default();
        for fields in records {
            let source = postanalytics_protocol::Source::of_bytes(&fields.client_ip);
            if shard_of(source, connection.welcome.routing_seed, SHARDS) == *shard {
                batch.push(fields, 1 << 20).unwrap();
            }
        }
        let mut frame = Vec::new();
        batch.encode_frame(connection.session, sequence, 0, &mut frame);
        connection.stream.write_all(&frame).unwrap();
    }
}

fn of_source(address: Ipv4Addr) -> RecordFields<'static> {
    RecordFields { client_ip: address_bytes(IpAddr::V4(address)), host: b"h", method: 1, status: 200, ..RecordFields::default() }
}

#[test]
fn alerts_and_verdicts_of_all_shards_are_lines_of_the_events_file() {
    let folder = tempfile::tempdir().unwrap();
    let (config, events) = (folder.path().join("config.toml"), folder.path().join("events"));
    std::fs::write(&config, "[detectors.scanner]\naction = 'denylist'\naction_s = 600\nhold_us = 1000000\n").unwrap();
    let options = ServerOptions::default().shards(SHARDS);
    let server = options.arguments(&["--config", config.to_str().unwrap(), "--events", events.to_str().unwrap()]).start();
    let open = |shard| {
        let hello = postanalytics_protocol::frames::Hello { wanted_shard: shard, ..hello(1) };
        (shard, RawConnection::try_open(server.ingest, &hello, 7).expect("welcome"))
    };
    let mut connections: BTreeMap<u32, RawConnection> = (0..SHARDS).map(open).collect();

    // Ten scanners, some on each shard; and a user who is tried from ten networks, so from both shards.
    let hits = || vec![Hit { attack_type: 1, severity: 200, rule_id: 1, point: b"get_id", payload: b"' or 1=1" }];
    let address = |last| Ipv4Addr::new(198, 51, 100, last);
    let scanner = |last| RecordFields { user_agent: b"sqlmap/1.7", path: b"/a", hits: hits(), ..of_source(address(last)) };
    let failure = |network| RecordFields {
        method: Method::Post as u8,
        path: b"/login",
        user_hash: 77,
        status: 401,
        flags: FLAG_AUTH_FAILED,
        ..of_source(Ipv4Addr::new(203, 0, network, 1))
    };
    let records: Vec<_> = (0..10).flat_map(|n| [scanner(n), scanner(n), failure(n)]).collect();
    send(&mut connections, 1, &records);

    let raised = lines(&events, "alert_raised", 11);
    let key_of = |line: &Value| line["key"]["value"].as_str().unwrap().to_owned();
    let of = |detector: &str| -> Vec<String> {
        let mut keys: Vec<String> = raised.iter().filter(|line| line["detector"] == detector).map(key_of).collect();
        keys.sort();
        keys
    };
    let mut sources: Vec<String> = (0..10).map(|last| address(last).to_string()).collect();
    sources.sort();
    assert_eq!(of("scanner"), sources);
    assert_eq!(of("user_many_sources"), ["000000000000004d"]);
    let verdicts = lines(&events, "verdict", 10);
    assert!(verdicts.iter().all(|line| line["action"] == "denylist" && line["detector"] == "scanner"), "{verdicts:#?}");

    // Their holds end; after a rename the file begins anew.
    let finals = lines(&events, "alert_final", 10);
    assert!(finals.iter().all(|line| line["final"] == true && line["count"] == 2), "{finals:#?}");
    let renamed = folder.path().join("events.1");
    std::fs::rename(&events, &renamed).unwrap();
    server.signal(rustix::process::Signal::HUP);
    eventually("a new events file", Duration::from_secs(10), || events.exists() && server.logged("log file reopened").len() >= 2);
    send(&mut connections, 2, &[scanner(99), scanner(99)]);
    let again = lines(&events, "alert_raised", 1);
    assert_eq!(key_of(&again[0]), address(99).to_string());
    assert_eq!(server.metric("postanalytics_derived_lost_total"), 0.0);
    server.stop();
}
