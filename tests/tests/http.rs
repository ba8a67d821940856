//! The status pages: what they say, whom they answer, and that no reader of them disturbs the data plane.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use postanalytics_client::{Client, Request};
use postanalytics_protocol::frames::PackageVersion;
use postanalytics_protocol::routing::address_bytes;
use postanalytics_protocol::schema::v1::TAG_METHOD;
use postanalytics_protocol::{BatchBuilder, Extension, Hit, RecordFields};
use postanalytics_tests::server::get;
use postanalytics_tests::wire::{SOURCE, batch, hello, seal_header};
use postanalytics_tests::{RawConnection, Server, ServerOptions, eventually, skipped};
use serde_json::Value;
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_secs(30);

/// Sends bytes and reads until the server closes: status code, head, body. `None`: it closed without an answer.
fn exchange(address: SocketAddr, request: &[u8]) -> Option<(u16, String, String)> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    // A server that has heard enough may close before it has read everything.
    let _ = stream.write_all(request);
    read_answer(&mut stream)
}

fn read_answer(stream: &mut TcpStream) -> Option<(u16, String, String)> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut buffer) {
        bytes.extend_from_slice(&buffer[..count]);
    }
    let answer = String::from_utf8_lossy(&bytes).into_owned();
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let code = head.split(' ').nth(1)?.parse().ok()?;
    Some((code, head.to_owned(), body.to_owned()))
}

/// The code of a request with these header lines.
fn code_of(server: &Server, method: &str, headers: &str) -> u16 {
    let request = format!("{method} /status HTTP/1.1\r\n{headers}Connection: close\r\n\r\n");
    exchange(server.status, request.as_bytes()).unwrap().0
}

fn records(body: &str) -> Vec<Value> {
    let answer: Value = serde_json::from_str(body).unwrap();
    assert_eq!(answer["partial"], false, "{body}");
    answer["requests"].as_array().unwrap().clone()
}

fn paths(body: &str) -> Vec<String> {
    records(body).iter().map(|record| record["path"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn health_ready_and_unknown_pages() {
    let server = Server::new();
    assert_eq!(server.get_without_token("/health").0, 200);
    let (code, body) = server.get_without_token("/ready");
    assert_eq!((code, body.contains("true")), (200, true), "{body}");
    let (code, body) = server.get_without_token("/nothing");
    assert_eq!((code, body.contains("/metrics")), (404, true), "it says what there is: {body}");
    assert_eq!(server.get_without_token("/").0, 404);
}

#[test]
fn status_keeps_its_contract() {
    let server = ServerOptions::default().shards(2).start();
    let mut newer = hello(5);
    newer.package = PackageVersion { major: 99, minor: 1, patch: 2 };
    let _newer = RawConnection::try_open(server.ingest, &newer, 0xabc).unwrap();
    let client = Client::builder().server(server.ingest.to_string()).node_name("a-client").build().unwrap();
    for number in 0..1000_u16 {
        let client_ip = [10, 0, (number >> 8) as u8, number as u8].into();
        client.try_send(&Request { client_ip, path: b"/", status: 200, ..Request::default() }).unwrap();
    }
    client.flush(LONG).unwrap();
    // Tickets of connections are shown as long as they live: two lanes and the raw one.
    eventually("three connections", LONG, || server.status_json()["connections"] == 3);
    let (code, body) = server.get_without_token("/status");
    assert_eq!(code, 200, "no token is needed");
    let status: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((&status["version"], &status["ready"]), (&env!("CARGO_PKG_VERSION").into(), &true.into()));
    assert!(status["server_id"].as_str().unwrap().len() == 36 && status["uptime_seconds"].as_f64() > Some(0.0), "{status}");
    assert!(status["cpu_seconds"].as_f64() > Some(0.0), "{status}");
    check_shards(&status);
    let arena = &status["arena"];
    let (total, used) = (arena["bytes_total"].as_u64().unwrap(), arena["bytes_used"].as_u64().unwrap());
    assert!(total > 100 << 20 && used > 0 && used <= total && arena["huge_pages"].is_boolean(), "{arena}");
    let timeframe = &status["timeframe"];
    assert!(timeframe["seconds"].is_number() && timeframe["arena_gb_for_900s"].is_number(), "{timeframe}");
    assert_eq!(timeframe["level"], "ok", "nothing was evicted yet");
    check_clients(&status);
    server.assert_laws();
}

const COUNTS: [&str; 8] = [
    "connections",
    "records_received",
    "records_stored",
    "records_rejected",
    "records_duplicate",
    "bytes_stored",
    "live_records",
    "evicted_records",
];

fn check_shards(status: &Value) {
    let shards = status["shards"].as_array().unwrap();
    assert_eq!(shards.len(), 2);
    for (id, shard) in shards.iter().enumerate() {
        assert_eq!(shard["id"], id);
        assert!(shard["cpu"].is_null(), "--no-pin: {shard}");
        assert!(shard["timeframe_seconds"].as_f64() >= Some(0.0), "{shard}");
    }
    for name in COUNTS {
        let sum: u64 = shards.iter().map(|shard| shard[name].as_u64().unwrap_or_else(|| panic!("{name} in {shard}"))).sum();
        assert_eq!(status["totals"][name], sum, "{name} in {status}");
    }
    assert_eq!((&status["totals"]["records_stored"], &status["totals"]["live_records"]), (&1000.into(), &1000.into()));
    assert!(status["totals"]["timeframe_seconds"].is_number());
}

fn check_clients(status: &Value) {
    let clients = status["clients"].as_array().unwrap();
    assert_eq!(clients.len(), 2, "{status}");
    let newer = clients.iter().find(|client| client["version"] == "99.1.2").unwrap();
    assert_eq!((&newer["node"], &newer["outdated_server"]), (&"05050505-0505-0505-0505-050505050505".into(), &true.into()));
    assert_eq!(newer["session"], "00000000…", "whoever knows a whole one can take it over");
    let own = clients.iter().find(|client| client["version"] == env!("CARGO_PKG_VERSION")).unwrap();
    assert_eq!(own["outdated_server"], false);
    assert!(own["peer"].as_str().unwrap().parse::<SocketAddr>().unwrap().ip().is_loopback());
}

#[test]
fn metrics_are_what_prometheus_reads() {
    let server = ServerOptions::default().shards(2).start();
    let mut connection = RawConnection::open(server.ingest, 1, 7);
    let address = (0..).map(|n| IpAddr::from([10, 0, 0, n]));
    let seed = connection.welcome.routing_seed;
    let of_shard = |address: &IpAddr| {
        postanalytics_protocol::shard_of(postanalytics_protocol::Source::of(*address), seed, 2) == connection.welcome.shard
    };
    let address = address.into_iter().find(of_shard).unwrap();
    let bytes = batch(7, 1, address, 17);
    connection.send(&bytes);
    connection.expect_ack(1);
    let (code, text) = server.get_without_token("/metrics");
    assert_eq!(code, 200);
    let sum = |name: &str| {
        let of =
            |line: &str| line.starts_with(&format!("{name}{{")).then(|| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap());
        text.lines().filter_map(of).sum::<f64>()
    };
    assert_eq!((sum("postanalytics_records_stored_total"), sum("postanalytics_records_live")), (17.0, 17.0), "{text}");
    for line in text.lines() {
        assert!(line.starts_with("# ") || line.starts_with("postanalytics_"), "{line}");
    }
    let Some(promtool) = promtool() else {
        return skipped(
            "metrics_are_what_prometheus_reads",
            "promtool cannot be had (apt-get download prometheus); parsed by hand only",
        );
    };
    let mut check =
        Command::new(promtool).args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    check.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = check.wait_with_output().unwrap();
    assert!(output.status.success(), "{}: {}\n{text}", output.status, String::from_utf8_lossy(&output.stderr));
}

/// Prometheus' own checker: the one of this machine, or that of the Debian package, unpacked below the target folder.
fn promtool() -> Option<PathBuf> {
    let runs = |path: &Path| Command::new(path).arg("--version").output().is_ok_and(|output| output.status.success());
    if runs(Path::new("promtool")) {
        return Some("promtool".into());
    }
    // .../target/PROFILE/deps/test-0123
    let target = std::env::current_exe().unwrap().ancestors().nth(3).unwrap().to_path_buf();
    let folder = target.join("packages");
    let unpacked = folder.join("prometheus/usr/bin/promtool");
    if runs(&unpacked) {
        return Some(unpacked);
    }
    std::fs::create_dir_all(&folder).ok()?;
    // Unpacked aside and moved into place, so that a test that was ended in the middle leaves nothing half done.
    let aside = tempfile::tempdir_in(&folder).ok()?;
    let download = Command::new("timeout").args(["120", "apt-get", "download", "prometheus"]).current_dir(aside.path()).output();
    download.ok().filter(|output| output.status.success())?;
    let package = std::fs::read_dir(aside.path())
        .ok()?
        .filter_map(Result::ok)
        .find(|file| file.file_name().to_string_lossy().ends_with(".deb"))?;
    let tree = aside.path().join("tree");
    let unpack = Command::new("dpkg-deb").arg("-x").arg(package.path()).arg(&tree).output();
    unpack.ok().filter(|output| output.status.success())?;
    let _ = std::fs::rename(&tree, folder.join("prometheus"));
    runs(&unpacked).then_some(unpacked)
}

#[test]
fn what_peers_call_themselves_is_no_metric() {
    let server = Server::new();
    let mut evil = hello(6);
    evil.name = "evil\"} 1\npostanalytics_ready{a=\"\\ \u{1f4a5}".to_owned();
    let mut connection = RawConnection::try_open(server.ingest, &evil, 66).unwrap();
    // With a time of sending, by which the clock of the node is judged.
    let mut frame = batch(66, 1, [192, 0, 2, 1].into(), 1);
    frame[32..40].copy_from_slice(&1_700_000_000_000_000u64.to_le_bytes());
    seal_header(&mut frame);
    connection.send(&frame);
    connection.expect_ack(1);
    eventually("the clock is known", Duration::from_secs(10), || {
        server.metric("postanalytics_node_clock_offset_max_seconds") > 1.0
    });
    let (_, metrics) = server.get_without_token("/metrics");
    for part in ["evil", "\u{1f4a5}", "a=\"", "node-", "127.0.0.1", "/page/", "06060606"] {
        assert!(!metrics.contains(part), "{part:?} got into the metrics:\n{metrics}");
    }
    assert_eq!(metrics.lines().filter(|line| line.starts_with("postanalytics_ready")).count(), 1);
    // In the JSON of /status it is data.
    let status = server.status_json();
    let names: Vec<&str> = status["clients"].as_array().unwrap().iter().filter_map(|client| client["name"].as_str()).collect();
    assert_eq!(names, [evil.name.as_str()]);
}

#[test]
fn requests_are_found_by_source_time_limit_and_id() {
    let server = Server::new();
    let mut connection = RawConnection::open(server.ingest, 1, 7);
    let other: IpAddr = "2001:db8:1:2:3:4:5:6".parse().unwrap();
    connection.send_batch(1, 3);
    connection.expect_ack(1);
    std::thread::sleep(Duration::from_millis(20));
    connection.send(&batch(7, 2, other, 2));
    connection.expect_ack(2);

    let all = server.get("/requests").1;
    assert_eq!(paths(&all), ["/page/2/1", "/page/2/0", "/page/1/2", "/page/1/1", "/page/1/0"], "newest first");
    assert_eq!(paths(&server.get("/requests?limit=2").1), ["/page/2/1", "/page/2/0"]);
    assert_eq!(paths(&server.get(&format!("/requests?source={SOURCE}&limit=2")).1), ["/page/1/2", "/page/1/1"]);
    for same_network in ["2001:db8:1:2::", "2001:db8:1:2:ffff::9"] {
        assert_eq!(paths(&server.get(&format!("/requests?source={same_network}")).1), ["/page/2/1", "/page/2/0"]);
    }
    assert_eq!(paths(&server.get("/requests?source=::ffff:192.0.2.1").1).len(), 3, "the IPv4 address it stands for");
    assert_eq!(paths(&server.get("/requests?source=192.0.2.2").1), [""; 0]);

    let newest = records(&all)[0]["arrival"].as_str().unwrap().to_owned();
    assert_eq!(paths(&server.get(&format!("/requests?since={newest}")).1), ["/page/2/1", "/page/2/0"]);
    assert_eq!(paths(&server.get("/requests?since=1h").1).len(), 5);
    assert_eq!(paths(&server.get("/requests?since=2100-01-01T00:00:00Z").1), [""; 0]);
    assert_eq!(paths(&server.get("/requests?since=1700000000&source=2001:db8:1:2::&limit=1").1), ["/page/2/1"]);

    let id = records(&all)[3]["request_id"].as_str().unwrap().to_owned();
    assert_eq!(paths(&server.get(&format!("/requests/{id}")).1), ["/page/1/1"]);
    let (code, body) = server.get("/requests/00000000000000000000000000000bad");
    assert_eq!((code, body.contains("no stored request")), (404, true), "{body}");
    for wrong in [
        "/requests/abc",
        "/requests?limit=0",
        "/requests?limit=1001",
        "/requests?source=here",
        "/requests?since=soon",
        "/requests?since=900",
        "/requests?form=a",
        "/requests?cursor=0000000000000000-1.1.40.1-over",
    ] {
        assert_eq!(server.get(wrong).0, 400, "{wrong}");
    }
}

/// Much of one write has the same arrival, far more than a page.
#[test]
fn pages_go_on_where_the_one_before_ended() {
    let server = Server::new();
    let mut connection = RawConnection::open(server.ingest, 1, 7);
    let frames: Vec<u8> = (1..=300).flat_map(|sequence| batch(7, sequence, SOURCE, 5)).collect();
    connection.send(&frames);
    connection.expect_ack(300);
    let all = paths(&server.get("/requests?limit=1000").1);
    let (mut found, mut cursor, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let body = server.get(&format!("/requests?limit=7{cursor}")).1;
        found.extend(paths(&body));
        pages += 1;
        let answer: Value = serde_json::from_str(&body).unwrap();
        let Some(next) = answer["next"].as_str() else { break };
        cursor = format!("&cursor={next}");
        assert_eq!(server.get(&format!("/requests?limit=7{cursor}0")).0, 400, "made up");
    }
    assert_eq!((found.len(), &found[..1000]), (1500, &all[..]));
    assert_eq!(found.iter().collect::<std::collections::HashSet<_>>().len(), 1500);
    assert!(pages >= 1500 / 7, "{pages}");
}

#[test]
fn every_source_is_found_in_an_arena_that_was_recycled() {
    const FRAMES: u32 = 400;
    let server = Server::new();
    let mut connection = RawConnection::open(server.ingest, 1, 1);
    let source = |number: u32| IpAddr::from(std::net::Ipv4Addr::from(0x0a00_0000 + number));
    let raw_body = vec![b'b'; 90_000];
    for number in 1..=FRAMES {
        let mut batch = BatchBuilder::default();
        for _ in 0..2 {
            let client_ip = address_bytes(source(number));
            batch.push(&RecordFields { client_ip, raw_body: &raw_body, ..RecordFields::default() }, 1 << 20).unwrap();
        }
        let mut frame = Vec::new();
        batch.encode_frame(1, u64::from(number), 0, &mut frame);
        connection.send(&frame);
        connection.expect_ack(u64::from(number));
    }
    assert!(server.total("evicted_records") > 100, "the arena was recycled");
    let found: Vec<usize> = (1..=FRAMES)
        .map(|number| records(&server.get_without_token(&format!("/requests?source={}", source(number))).1).len())
        .collect();
    assert_eq!(found.iter().sum::<usize>() as u64, server.total("live_records"));
    let evicted = found.iter().take_while(|found| **found == 0).count();
    assert!(found[evicted..].iter().all(|found| *found == 2), "the newest, whole: {found:?}");
}

/// A record with something in every field.
fn telling_record() -> RecordFields<'static> {
    RecordFields {
        request_id: [0xcd; 16],
        client_ip: address_bytes(SOURCE),
        event_us: 1_700_000_000_000_000,
        tenant: 12,
        session_hash: 13,
        user_hash: 14,
        request_bytes: 15,
        response_bytes: 16,
        application: 17,
        response_us: 18,
        detection_us: 19,
        flags: 1,
        server_port: 443,
        status: 403,
        method: 2,
        scheme: 2,
        http_version: 20,
        host: b"shop.example",
        path: b"/login",
        query: b"user=ann&password=QUERYSECRET",
        user_agent: b"browser",
        referer: b"https://shop.example/?token=REFERERSECRET#FRAGMENTSECRET",
        raw_headers: b"Cookie: sid=HEADERSECRET",
        raw_body: b"BODYSECRET",
        hits: vec![Hit { attack_type: 1, severity: 200, rule_id: 7, point: b"get_user", payload: b"' or PAYLOADSECRET" }],
        extensions: vec![Extension { tag: TAG_METHOD, value: b"PURGE" }, Extension { tag: 999, value: b"EXTENSIONSECRET" }],
    }
}

#[test]
fn secrets_are_shown_to_who_has_the_token() {
    let server = Server::new();
    let mut connection = RawConnection::open(server.ingest, 1, 7);
    let mut builder = BatchBuilder::default();
    builder.push(&telling_record(), 1 << 20).unwrap();
    let mut bytes = Vec::new();
    builder.encode_frame(7, 1, 0, &mut bytes);
    connection.send(&bytes);
    connection.expect_ack(1);

    let secrets = ["QUERYSECRET", "REFERERSECRET", "HEADERSECRET", "BODYSECRET", "PAYLOADSECRET", "EXTENSIONSECRET"];
    let by_id = format!("/requests/{}", "cd".repeat(16));
    for page in ["/requests", &by_id] {
        let (code, open) = server.get(page);
        assert!(code == 200 && secrets.iter().all(|secret| open.contains(secret)), "{open}");
        let (code, redacted) = server.get_without_token(page);
        assert_eq!(code, 200);
        assert!(!redacted.contains("SECRET"), "{redacted}");
        let record = &records(&redacted)[0];
        assert_eq!((&record["query"], &record["raw_headers"]), (&"user=***&password=***".into(), &"***".into()));
        assert_eq!((&record["path"], &record["hits"][0]["point"]), (&"/login".into(), &"get_user".into()));
        let (code, refused) = get(server.status, page, Some("another token")).unwrap();
        assert_eq!((code, refused.contains("shop.example")), (401, false), "{refused}");
    }
    let record = &records(&server.get("/requests").1)[0];
    let numbers = [
        ("tenant", 12_u64),
        ("request_bytes", 15),
        ("response_bytes", 16),
        ("application", 17),
        ("response_us", 18),
        ("detection_us", 19),
        ("flags", 1),
        ("server_port", 443),
        ("status", 403),
        ("http_version", 20),
        ("event_us", 1_700_000_000_000_000),
    ];
    for (name, value) in numbers {
        assert_eq!(record[name], value, "{name} in {record}");
    }
    assert_eq!((&record["session_hash"], &record["user_hash"]), (&"000000000000000d".into(), &"000000000000000e".into()));
    assert_eq!((&record["client_ip"], &record["raw_body"]), (&"192.0.2.1".into(), &"BODYSECRET".into()));
    assert_eq!((&record["scheme"], &record["method"]), (&"https".into(), &"HEAD".into()), "{record}");
    assert_eq!((&record["hits"][0]["attack_type"], &record["hits"][0]["severity"]), (&"sqli".into(), &200.into()));
}

#[test]
fn only_our_own_names_are_answered() {
    let server = Server::new();
    for good in ["localhost", "127.0.0.1:9001", "[::1]"] {
        assert_eq!(code_of(&server, "GET", &format!("Host: {good}\r\n")), 200, "{good}");
    }
    for bad in ["Host: evil.example.com\r\n", "Host: 192.0.2.1\r\n", "Host: localhost.evil.example.com:9001\r\n", ""] {
        assert_eq!(code_of(&server, "GET", bad), 421, "{bad:?}");
    }
    assert_eq!(code_of(&server, "GET", "Host: localhost\r\nHost: evil.example.com\r\n"), 400);
    let named = ServerOptions::default().arguments(&["--status-host", "status.example.com"]).start();
    assert_eq!(code_of(&named, "GET", "Host: status.example.com\r\n"), 200);
}

#[test]
fn only_get_and_head_are_answered_and_headers_are_bounded() {
    let server = Server::new();
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "BREW"] {
        assert_eq!(code_of(&server, method, "Host: localhost\r\n"), 405, "{method}");
    }
    let (_, head, _) = exchange(server.status, b"POST /status HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    assert!(head.contains("Allow: GET, HEAD"), "{head}");
    let (code, head, body) = exchange(server.status, b"HEAD /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").unwrap();
    assert_eq!((code, body.as_str()), (421, ""), "guarded as GET is: {head}");
    let request = b"HEAD /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    let (code, head, body) = exchange(server.status, request).unwrap();
    let length = server.get("/health").1.len();
    assert_eq!((code, body.as_str()), (200, ""), "{head}");
    assert!(head.contains(&format!("Content-Length: {length}\r\n")), "that of GET's body: {head}");
    let request = b"GET http://localhost:9001/health HTTP/1.1\r\nHost: evil.example.com\r\nConnection: close\r\n\r\n";
    assert_eq!(exchange(server.status, request).unwrap().0, 200, "the target's own host counts");
    assert_eq!(code_of(&server, "GET", "Host: localhost\r\nContent-Length: 3\r\n"), 413);
    assert_eq!(code_of(&server, "POST", "Host: localhost\r\nContent-Length: 5000\r\n"), 413);
    let long = format!("Host: localhost\r\nX-Long: {}\r\n", "a".repeat(9 << 10));
    assert_eq!(code_of(&server, "GET", &long), 431);
    let just = format!("Host: localhost\r\nX-Long: {}\r\n", "a".repeat(7 << 10));
    assert_eq!(code_of(&server, "GET", &just), 200);
    assert_eq!(code_of(&server, "GET", &format!("Host: localhost\r\n{}", "A: b\r\n".repeat(100))), 431);
    assert_eq!(exchange(server.status, b"PSTA\0\0\0\x01\r\n\r\n").unwrap().0, 400, "no HTTP at all");
    assert_eq!(server.get("/health").0, 200);
}

#[test]
fn one_connection_takes_many_requests() {
    let server = Server::new();
    let mut stream = TcpStream::connect(server.status).unwrap();
    let one = "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let last = "GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    // In one piece, as a pipelining client does.
    stream.write_all(format!("{one}{one}{one}{last}").as_bytes()).unwrap();
    let mut answers = String::new();
    stream.read_to_string(&mut answers).unwrap();
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 4, "{answers}");
}

#[test]
fn a_connection_ends_after_a_hundred_requests_or_a_second_of_nothing() {
    let server = Server::new();
    let one = "GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let mut stream = TcpStream::connect(server.status).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    let _ = stream.write_all(one.repeat(110).as_bytes());
    let mut answers = Vec::new();
    let _ = stream.read_to_end(&mut answers);
    let answers = String::from_utf8_lossy(&answers);
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 100, "{answers}");
    assert_eq!(answers.matches("Connection: close").count(), 1, "{answers}");

    let mut stream = TcpStream::connect(server.status).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    stream.write_all(one.as_bytes()).unwrap();
    let begun = Instant::now();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("Connection: keep-alive"), "{answer}");
    assert!(begun.elapsed() < Duration::from_secs(4), "1 s, on a busy machine: {:?}", begun.elapsed());
}

#[test]
fn idle_connections_shut_nobody_out() {
    let server = Server::new();
    let mut idle = Vec::new();
    for _ in 0..64 {
        let mut stream = TcpStream::connect(server.status).unwrap();
        stream.write_all(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        idle.push(stream);
    }
    let begun = Instant::now();
    assert_eq!(server.get("/health").0, 200);
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    drop(idle);
}

#[test]
fn answers_that_nobody_reads_do_not_pile_up() {
    let server = Server::new();
    let mut connection = RawConnection::open(server.ingest, 1, 7);
    // 20 MiB, of which an answer shows 8.
    for sequence in 1..=40 {
        let mut builder = BatchBuilder::default();
        let body = vec![b'a'; 16 << 10];
        for _ in 0..32 {
            builder.push(&RecordFields { raw_body: &body, ..telling_record() }, 2 << 20).unwrap();
        }
        let mut bytes = Vec::new();
        builder.encode_frame(7, sequence, 0, &mut bytes);
        connection.send(&bytes);
        connection.expect_ack(sequence);
    }
    let before = server.resident_bytes();
    let ask = format!(
        "GET /requests?limit=1000 HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\n\r\n",
        postanalytics_tests::server::TOKEN
    );
    let mut unread = Vec::new();
    for _ in 0..40 {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        // So that the kernel does not take the whole answer in our stead.
        socket.set_recv_buffer_size(4096).unwrap();
        socket.connect(&server.status.into()).unwrap();
        let mut stream = TcpStream::from(socket);
        stream.write_all(ask.as_bytes()).unwrap();
        unread.push(stream);
    }
    std::thread::sleep(Duration::from_secs(1));
    // Meanwhile another is told that there is nothing for it now, and so are most of the forty.
    let (code, body) = server.get("/requests?limit=1");
    assert_eq!((code, body.contains("\"partial\":true")), (200, true), "{} bytes", body.len());
    let grown = server.resident_bytes().saturating_sub(before);
    assert!(grown < 64 << 20, "{} MiB more", grown >> 20);
    drop(unread);
    eventually("the next one is whole", LONG, || server.get("/requests?limit=1").1.contains("\"partial\":false"));
}

#[test]
fn silent_peers_of_one_address_leave_room() {
    let server = Server::new();
    let silent: Vec<TcpStream> = (0..300).map(|_| TcpStream::connect(server.ingest).unwrap()).collect();
    eventually("those over the limit are sent away", LONG, || {
        server.metric("postanalytics_connections_refused_total{reason=\"handshakes_per_address_max\"}") >= 236.0
    });
    // Another address is served at once.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 9], 0)).into()).unwrap();
    socket.connect(&server.ingest.into()).unwrap();
    let mut other = TcpStream::from(socket);
    let mut bytes = Vec::new();
    hello(1).encode(9, 0, &mut bytes);
    let begun = Instant::now();
    other.write_all(&bytes).unwrap();
    other.set_read_timeout(Some(LONG)).unwrap();
    other.read_exact(&mut [0; 64]).unwrap();
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    drop(silent);
}

#[test]
fn slow_clients_are_cut() {
    let server = Server::new();
    let begun = Instant::now();
    std::thread::scope(|scope| {
        // Half a request and then silence; nothing at all; a byte now and then.
        let half = scope.spawn(|| exchange(server.status, b"GET /health HT").map(|(code, ..)| code));
        let nothing = scope.spawn(|| exchange(server.status, b"").map(|(code, ..)| code));
        let trickle = scope.spawn(|| {
            let mut stream = TcpStream::connect(server.status).unwrap();
            let start = Instant::now();
            while start.elapsed() < LONG && stream.write_all(b"G").is_ok() {
                std::thread::sleep(Duration::from_millis(100));
            }
            start.elapsed()
        });
        assert_eq!(half.join().unwrap(), Some(408));
        assert_eq!(nothing.join().unwrap(), None);
        assert!(trickle.join().unwrap() < Duration::from_secs(20), "a byte now and then does not prolong the time");
    });
    assert!(begun.elapsed() < Duration::from_secs(20), "5 s, on a busy machine: {:?}", begun.elapsed());
    assert_eq!(server.get("/health").0, 200);
}

#[test]
fn connections_are_bounded_and_do_not_disturb_ingest() {
    let server = Server::new();
    let sockets = || {
        let files = std::fs::read_dir(format!("/proc/{}/fd", server.id())).unwrap().filter_map(Result::ok);
        files
            .filter(|file| std::fs::read_link(file.path()).is_ok_and(|target| target.to_string_lossy().starts_with("socket:")))
            .count()
    };
    let mut connection = RawConnection::open(server.ingest, 1, 7);
    // The connection that asked whether the server is ready may still be closing.
    let count = || {
        std::thread::sleep(Duration::from_millis(20));
        sockets()
    };
    let before = (0..20).map(|_| count()).min().unwrap();
    let hold = || {
        let mut stream = TcpStream::connect(server.status).unwrap();
        stream.write_all(b"GET /health HT").unwrap();
        stream
    };
    let mut most = 0;
    let mut held = Vec::new();
    for _ in 0..100 {
        held.push(hold());
        most = most.max(sockets());
    }
    eventually("64 are served", LONG, || {
        most = most.max(sockets());
        most >= before + 64
    });
    connection.send_batch(1, 5);
    connection.expect_ack(1);
    for _ in 0..50 {
        most = most.max(count());
    }
    assert_eq!(most, before + 64, "the others wait in the kernel");
    // The rest waits its turn: it is answered when the slow ones were cut.
    assert_eq!(server.get("/health").0, 200);
}

#[test]
fn one_scan_at_a_time_and_ingest_goes_on() {
    let server = ServerOptions::default().shards(2).start();
    let client = Client::builder().server(server.ingest.to_string()).build().unwrap();
    let send = |number: u32| {
        let client_ip = [10, 0, (number >> 8) as u8, number as u8].into();
        client.try_send(&Request { client_ip, path: b"/scanned", status: 200, ..Request::default() }).unwrap();
    };
    // Something to scan: a search for a source that is not there looks at all of it.
    (0..50_000).for_each(send);
    client.flush(LONG).unwrap();
    let (whole, refused, sent) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(50_000));
    let until = Instant::now() + Duration::from_secs(2);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while Instant::now() < until {
                    let (code, body) = server.get("/requests?source=192.0.2.99");
                    let answer: Value = serde_json::from_str(&body).unwrap();
                    assert_eq!((code, answer["requests"].as_array().unwrap().len()), (200, 0), "{body}");
                    if answer["partial"] == true { &refused } else { &whole }.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        scope.spawn(|| {
            let mut number = 50_000;
            while Instant::now() < until {
                (number..number + 10).for_each(send);
                number += 10;
                std::thread::sleep(Duration::from_millis(5));
            }
            sent.store(number.into(), Ordering::Relaxed);
        });
    });
    client.flush(LONG).unwrap();
    let (whole, refused, sent) = (whole.into_inner(), refused.into_inner(), sent.into_inner());
    assert!(whole > 0 && refused > 0, "{whole} scans were made, {refused} said that another was running");
    let counters = client.counters();
    assert!(counters.laws_hold() && counters.tnt_errors() == 0 && counters.acked == sent, "{counters:?}");
    assert_eq!(counters.disconnects, 0, "{counters:?}");
    assert_eq!(server.total("records_stored"), sent);
    server.assert_laws();
    // None is under way any more, so the next one is whole.
    let found: BTreeSet<String> = paths(&server.get("/requests?limit=1000").1).into_iter().collect();
    assert_eq!(found, BTreeSet::from(["/scanned".to_owned()]));
}
