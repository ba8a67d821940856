//! What detectors found, on the pages and in the commands that read them: alerts, attacks, top lists, the denylist, and why.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use postanalytics_client::{Client, Request};
use postanalytics_protocol::routing::address_bytes;
use postanalytics_protocol::schema::v1::Method;
use postanalytics_protocol::{BatchBuilder, Hit, RecordFields};
use postanalytics_tests::server::{TOKEN, get};
use postanalytics_tests::{RawConnection, Server, ServerOptions, binary, eventually, skipped};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{IpAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

const LONG: Duration = Duration::from_secs(30);

/// A server whose detectors run, and the folder of its rules.
fn server(rules: &str, shards: u32) -> (Server, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rules.toml");
    std::fs::write(&file, rules).unwrap();
    let server = ServerOptions::default().shards(shards).arguments(&["--config", file.to_str().unwrap()]).start();
    (server, folder)
}

/// Any request: status code and JSON.
fn ask(server: &Server, method: &str, path: &str, token: Option<&str>, body: &str) -> (u16, Value) {
    let mut stream = TcpStream::connect(server.status).unwrap();
    stream.set_read_timeout(Some(LONG)).unwrap();
    let authorization = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: localhost\r\n{authorization}Content-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), serde_json::from_str(body).unwrap())
}

fn json_of(server: &Server, path: &str) -> Value {
    let (code, body) = server.get(path);
    assert_eq!(code, 200, "{path}: {body}");
    serde_json::from_str(&body).unwrap()
}

/// Runs a command against the server.
fn command(server: &Server, token: Option<&Path>, arguments: &[&str]) -> Output {
    let mut command = Command::new(binary("postanalytics"));
    command.args(arguments).arg("--status-url").arg(format!("http://{}", server.status));
    command.args(token.into_iter().flat_map(|token| [Path::new("--status-token-file"), token]));
    command.env_remove("POSTANALYTICS_STATUS_TOKEN_FILE").stdin(Stdio::null()).output().unwrap()
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn now_us() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_micros() as u64
}

/// Failed log-ins of a source, and what browsers fetch beside them.
fn failed_logins(server: &Server, source: [u8; 4], times: usize) {
    let client = Client::builder().server(server.ingest.to_string()).build().unwrap();
    let login = Request {
        client_ip: source.into(),
        event_us: now_us(),
        host: b"shop.example",
        method: Method::Post as u8,
        path: b"/login",
        status: 401,
        ..Request::default()
    };
    let style = Request { method: Method::Get as u8, path: b"/style.css", status: 200, ..login.clone() };
    for (at, request) in std::iter::repeat_n(&login, times).chain([&style; 3]).enumerate() {
        client.try_send(&Request { event_us: now_us() + at as u64, ..request.clone() }).unwrap();
    }
    client.flush(LONG).unwrap();
}

/// A request with a hit, in a batch of its own.
fn hit(server: &Server) {
    let mut connection = RawConnection::open(server.ingest, 1, 7);
    let mut builder = BatchBuilder::default();
    let fields = RecordFields {
        request_id: [0xcd; 16],
        client_ip: address_bytes("192.0.2.9".parse().unwrap()),
        method: 1,
        status: 403,
        host: b"shop.example",
        path: b"/item/17",
        query: b"q=QUERYSECRET",
        user_agent: b"browser\x1b[2J",
        hits: vec![Hit { attack_type: 1, severity: 200, rule_id: 7, point: b"get_q", payload: b"PAYLOADSECRET" }],
        ..RecordFields::default()
    };
    builder.push(&fields, 1 << 20).unwrap();
    let mut frame = Vec::new();
    builder.encode_frame(7, 1, 0, &mut frame);
    connection.send(&frame);
    connection.expect_ack(1);
}

#[test]
fn alerts_are_listed_filtered_and_shown_as_a_table() {
    let (server, _rules) = server("", 2);
    failed_logins(&server, [192, 0, 2, 1], 8);
    let found = || json_of(&server, "/alerts?detector=brute_force")["alerts"].as_array().unwrap().clone();
    eventually("an alert", LONG, || found().len() == 1);
    let alert = &found()[0];
    assert_eq!((&alert["key"]["value"], &alert["level"]), (&"192.0.2.1".into(), &"critical".into()), "{alert}");
    assert_eq!(alert["scope"], json!({"host": "shop.example", "endpoint": "POST /login"}));
    assert_eq!(json_of(&server, "/alerts?source=192.0.2.1&since=15m&host=shop.example&limit=5")["alerts"][0]["id"], alert["id"]);
    for none in ["source=192.0.2.2", "until=2020-01-01T00:00:00Z", "application=5", "host=other", "detector=crawl"] {
        assert_eq!(json_of(&server, &format!("/alerts?{none}"))["alerts"], json!([]), "{none}");
    }
    for wrong in ["since=soon", "limit=0", "detectors=crawl", "detector=brut_force", "source=x", "application=x"] {
        assert_eq!(server.get(&format!("/alerts?{wrong}")).0, 400, "{wrong}");
    }
    let table = text(&command(&server, None, &["alerts", "--detector", "brute_force"]));
    let line = table.lines().nth(1).unwrap();
    assert!(table.starts_with("FIRED") && line.contains("brute_force") && line.contains("POST /login"), "{table}");
    assert_eq!(text(&command(&server, None, &["alerts", "--source", "192.0.2.2"])), "no alert\n");
    let answer: Value = serde_json::from_str(&text(&command(&server, None, &["alerts", "--json"]))).unwrap();
    assert!(answer["alerts"].as_array().unwrap().iter().any(|one| one["id"] == alert["id"]), "{answer}");
    // What detectors find is an attack too.
    let attacks = json_of(&server, "/attacks?type=brute_force");
    assert_eq!(
        (&attacks["attacks"][0]["kind"], &attacks["attacks"][0]["template"]),
        (&"behaviour".into(), &"POST /login".into()),
        "{attacks}"
    );
}

#[test]
fn attacks_have_samples_whose_payloads_need_the_token() {
    let (server, rules) = server("", 1);
    hit(&server);
    let found = || json_of(&server, "/attacks?type=sqli")["attacks"].as_array().unwrap().clone();
    eventually("an attack", LONG, || found().len() == 1);
    let attack = &found()[0];
    assert_eq!(
        (&attack["template"], &attack["point"], &attack["count"]),
        (&"/item/{id}".into(), &"get_q".into(), &1.into()),
        "{attack}"
    );
    let page = format!("/attacks/{}", attack["id"].as_str().unwrap());
    assert_eq!(json_of(&server, &page)["samples"][0]["payload"], "PAYLOADSECRET");
    let (code, open) = get(server.status, &page, None).unwrap();
    assert_eq!((code, open.contains("SECRET"), open.contains("\"***\"")), (200, false, true), "{open}");
    assert_eq!(server.get("/attacks/0000000000000bad").0, 404);
    assert_eq!(server.get("/attacks/bad").0, 400);
    assert_eq!(json_of(&server, "/attacks?source=192.0.2.9&host=shop.example")["attacks"].as_array().unwrap().len(), 1);

    let token = rules.path().join("token");
    std::fs::write(&token, TOKEN).unwrap();
    let id = attack["id"].as_str().unwrap();
    assert!(text(&command(&server, Some(&token), &["attacks", id])).contains("PAYLOADSECRET"));
    assert!(!text(&command(&server, None, &["attacks", id])).contains("PAYLOADSECRET"));
    assert!(text(&command(&server, None, &["attacks"])).contains("/item/{id}"));

    // Nothing that a peer sent commands the terminal.
    let top = text(&command(&server, None, &["top", "user-agents"]));
    assert!(top.contains("browser\\u{1b}[2J") && !top.contains('\x1b'), "{top:?}");
    assert!(text(&command(&server, None, &["requests"])).contains("/item/17"));
    let minutes = json_of(&server, "/timeline?since=1h");
    let minute = &minutes["minutes"][0];
    assert_eq!(
        (&minute["requests"], &minute["attacks"], &minute["hits"]["sqli"]),
        (&1.into(), &1.into(), &1.into()),
        "{minutes}"
    );
    for of in ["sources", "paths", "user_agents", "types"] {
        assert_eq!(json_of(&server, &format!("/top?of={of}"))["rows"][0]["count"], 1, "{of}");
    }
    for wrong in ["/top?of=cookies", "/attacks?type=sqly", "/attacks?type=SQLI"] {
        assert_eq!(server.get(wrong).0, 400, "{wrong}");
    }
}

/// Without --config nothing is found or counted: an empty answer says so, rather than that nothing happened.
#[test]
fn without_detectors_commands_say_that_none_runs() {
    let server = ServerOptions::default().start();
    failed_logins(&server, [192, 0, 2, 7], 12);
    for page in ["/status", "/alerts", "/top", "/timeline", "/explain?source=192.0.2.7"] {
        assert_eq!(json_of(&server, page)["detectors_run"], false, "{page}");
    }
    for command_line in [&["alerts"][..], &["top", "paths"], &["timeline"], &["explain", "192.0.2.7"]] {
        let said = text(&command(&server, None, command_line));
        assert!(said.contains("no detector runs") && said.contains("--config"), "{command_line:?}: {said}");
    }
    let explained = json_of(&server, "/explain?source=192.0.2.7");
    let row = explained["detectors"].as_array().unwrap().iter().find(|row| row["detector"] == "brute_force").unwrap();
    assert_eq!((&row["level_percent"], &row["counted"], &row["not_counted"]), (&Value::Null, &0.into(), &json!({ "off": 12 })));
    server.stop();
    let (server, _rules) = self::server("", 1);
    assert_eq!(json_of(&server, "/status")["detectors_run"], true);
    assert!(text(&command(&server, None, &["alerts"])).contains("no alert"));
    server.stop();
}

#[test]
fn verdicts_by_hand_reach_every_filter() {
    let (server, rules) = server("allowlist = ['192.0.2.77']", 2);
    // A filter that has a connection to one shard only, whichever that is.
    let filter = Client::builder().server(server.ingest.to_string()).build().unwrap();
    filter.try_send(&Request { client_ip: [198, 51, 100, 1].into(), path: b"/", status: 200, ..Request::default() }).unwrap();
    filter.flush(LONG).unwrap();
    let sources: Vec<IpAddr> = (1..=8).map(|last| IpAddr::from([192, 0, 2, last])).collect();
    for source in &sources {
        let (code, verdict) =
            ask(&server, "POST", "/denylist", Some(TOKEN), &json!({ "source": source, "duration_s": 600 }).to_string());
        assert_eq!(
            (code, &verdict["source"], &verdict["detector"]),
            (200, &source.to_string().into(), &Value::Null),
            "{verdict}"
        );
    }
    eventually("all are listed at the filter", LONG, || sources.iter().all(|source| filter.denylist().contains(*source)));
    assert_eq!(json_of(&server, "/denylist")["denylist"].as_array().unwrap().len(), 8, "each once");
    assert_eq!(json_of(&server, "/denylist?source=192.0.2.3")["denylist"].as_array().unwrap().len(), 1);
    let (code, removed) = ask(&server, "DELETE", "/denylist?source=192.0.2.3", Some(TOKEN), "");
    assert_eq!((code, removed["removed"].as_array().unwrap().len()), (200, 1), "{removed}");
    eventually("it is off at the filter", LONG, || !filter.denylist().contains(sources[2]));
    assert_eq!(ask(&server, "DELETE", "/denylist?source=192.0.2.3", Some(TOKEN), "").0, 404);
    assert_eq!(ask(&server, "DELETE", "/denylist?source=192.0.2.4&application=", Some(TOKEN), "").0, 400, "not: all of them");
    for (limit, rows) in [(7, 7), (2, 2), (1000, 7)] {
        let page = json_of(&server, &format!("/denylist?limit={limit}"));
        assert_eq!((page["denylist"].as_array().unwrap().len(), &page["partial"]), (rows, &(rows < 7).into()), "{page}");
    }
    let (mut listed, mut page) = (Vec::new(), json_of(&server, "/denylist?limit=2"));
    loop {
        listed.extend_from_slice(page["denylist"].as_array().unwrap());
        let Some(next) = page["next"].as_str() else { break };
        page = json_of(&server, &format!("/denylist?limit=2&cursor={next}"));
    }
    assert_eq!(listed, *json_of(&server, "/denylist")["denylist"].as_array().unwrap(), "page by page");
    assert_eq!(server.get("/denylist?cursor=7").0, 400);

    for (method, token, body, code) in [
        ("POST", None, r#"{"source": "192.0.2.3"}"#, 401),
        ("POST", Some("another-token-of-16"), r#"{"source": "192.0.2.3"}"#, 401),
        ("DELETE", None, "", 401),
        ("DELETE", Some(TOKEN), "", 400),
        ("POST", Some(TOKEN), r#"{"source": "192.0.2.77"}"#, 409),
        ("POST", Some(TOKEN), "", 400),
        ("POST", Some(TOKEN), r#"{"source": "192.0.2.3", "duration_s": 1}"#, 400),
        ("PUT", Some(TOKEN), "", 405),
    ] {
        assert_eq!(ask(&server, method, "/denylist", token, body).0, code, "{method} {body}");
    }
    let token = rules.path().join("token");
    std::fs::write(&token, TOKEN).unwrap();
    let added = text(&command(&server, Some(&token), &["denylist", "add", "2001:db8::7", "--for", "2m", "--action", "graylist"]));
    assert!(added.contains("2001:db8::/64") && added.contains("graylist") && added.contains("by hand"), "{added}");
    assert!(text(&command(&server, None, &["denylist", "list"])).contains("2001:db8::/64"));
    assert!(text(&command(&server, Some(&token), &["denylist", "del", "2001:db8::7"])).contains("taken off"));
    let refused = command(&server, None, &["denylist", "add", "192.0.2.3"]);
    let errors = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && errors.contains("--status-token-file"), "{errors}");
    server.stop();
}

#[test]
fn a_source_is_explained() {
    let (server, _rules) = server("", 2);
    failed_logins(&server, [192, 0, 2, 1], 4);
    let explained = json_of(&server, "/explain?source=192.0.2.1");
    let row = |name: &str| explained["detectors"].as_array().unwrap().iter().find(|row| row["detector"] == name).cloned();
    let brute_force = row("brute_force").unwrap();
    assert_eq!((&brute_force["requests"], &brute_force["counted"]), (&4.into(), &4.into()), "{explained}");
    let level = brute_force["level_percent"].as_f64().unwrap();
    assert!((20.0..100.0).contains(&level), "four of six: {explained}");
    assert_eq!(brute_force["scope"]["endpoint"], "POST /login");
    assert_eq!(row("crawl").unwrap()["not_counted"], json!({ "static": 3 }), "{explained}");
    assert_eq!((&explained["stored"]["requests"], &explained["partial"]), (&7.into(), &false.into()));
    failed_logins(&server, [192, 0, 2, 1], 4);
    let text_of = || text(&command(&server, None, &["explain", "192.0.2.1"]));
    eventually("held and on hold", LONG, || text_of().contains("on_hold:"));
    assert!(text_of().contains("static:6"), "{}", text_of());

    let id = json_of(&server, "/requests?limit=1")["requests"][0]["request_id"].as_str().unwrap().to_owned();
    assert_eq!(json_of(&server, &format!("/explain?request_id={id}"))["source"], "192.0.2.1");
    let (code, body) = server.get("/explain?request_id=00000000000000000000000000000bad");
    assert!(code == 404 && body.contains("holds those since"), "{body}");
    assert_eq!((server.get("/explain").0, server.get("/explain?source=1&request_id=2").0), (400, 400));
    assert_eq!(json_of(&server, "/explain?source=192.0.2.200")["detectors"], json!([]));
}

/// Two thousand requests and more, so that pages end within batches.
#[test]
fn what_a_server_holds_is_replayed_against_other_rules() {
    let (server, rules) = server("", 2);
    failed_logins(&server, [192, 0, 2, 1], 8);
    for last in 10..14 {
        failed_logins(&server, [198, 51, 100, last], 600);
    }
    eventually("alerts", LONG, || json_of(&server, "/alerts?detector=brute_force")["alerts"].as_array().unwrap().len() == 5);
    let replay = |text: &str| {
        let file = rules.path().join("other.toml");
        std::fs::write(&file, text).unwrap();
        let url = format!("http://{}", server.status);
        let arguments = ["replay", "--from-server", &url, "--last", "15m", "--config", file.to_str().unwrap()];
        let output = Command::new(binary("postanalytics")).args(arguments).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success() && errors.contains("2423 requests of the server replayed"), "{errors}");
        let lines = String::from_utf8(output.stdout).unwrap();
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>()
    };
    assert_eq!(replay(""), Vec::<Value>::new(), "the same rules find the same");
    let found = replay("[detectors.brute_force]\nenabled = false\n");
    assert_eq!(found.len(), 5, "{found:?}");
    assert!(found.iter().all(|line| line["only"] == "server" && line["alert"]["detector"] == "brute_force"), "{found:?}");
    let until = json_of(&server, "/requests?limit=1")["requests"][0]["arrival"].as_str().unwrap().to_owned();
    assert!(json_of(&server, &format!("/requests?until={until}&limit=1000"))["requests"].as_array().unwrap().len() > 500);
}

#[test]
fn nothing_is_changed_by_hand_without_a_token() {
    let folder = tempfile::tempdir().unwrap();
    let port = postanalytics_tests::free_port();
    let mut bare = Command::new(binary("postanalytics"));
    bare.args(["--listen", "127.0.0.1:0", "--no-pin", "--shards", "1", "--arena", "0.0625", "--env-file=/dev/null"]);
    bare.args(["--status", &format!("127.0.0.1:{port}"), "--node-yaml=/dev/null", "--log-file"]).arg(folder.path().join("log"));
    let mut child = bare.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
    eventually("ready", LONG, || get(address, "/ready", None).is_ok_and(|(code, _)| code == 200));
    let mut stream = TcpStream::connect(address).unwrap();
    stream.write_all(b"DELETE /denylist?source=192.0.2.1 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(answer.starts_with("HTTP/1.1 403 ") && answer.contains("--status-token-file"), "{answer}");
}

#[test]
fn commands_say_what_is_wrong() {
    let server = Server::new();
    let status = text(&command(&server, None, &["status"]));
    assert!(status.contains("timeframe") && status.contains("SHARD"), "{status}");
    assert_eq!(text(&command(&server, None, &["nodes"])), "no filtering node is connected\n");
    let wrong = command(&server, None, &["alerts", "--since", "soon"]);
    let errors = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(wrong.status.code() == Some(1) && errors.contains("since \"soon\" must be a time"), "{errors}");
    let nobody = Command::new(binary("postanalytics")).args(["status", "--status-url", "http://127.0.0.1:1"]).output().unwrap();
    let errors = String::from_utf8_lossy(&nobody.stderr).into_owned();
    assert!(nobody.status.code() == Some(1) && errors.contains("no answer from http://127.0.0.1:1"), "{errors}");
}

/// Every page answers as its description says, whatever is asked of it.
#[test]
fn the_description_holds() {
    let name = "the_description_holds";
    let (server, rules) = server("", 1);
    failed_logins(&server, [192, 0, 2, 1], 8);
    hit(&server);
    let (code, served) = server.get_without_token("/openapi.json");
    assert_eq!((code, served.as_str()), (200, include_str!("../../docs/openapi.json")));
    let Some(schemathesis) = schemathesis() else {
        return skipped(name, "schemathesis cannot be had (pip install schemathesis); only the list of pages is compared");
    };
    let output = Command::new(schemathesis)
        .arg("run")
        .arg(format!("http://{}/openapi.json", server.status))
        .args(["--url", &format!("http://{}", server.status)])
        .args([
            "-H",
            &format!("Authorization: Bearer {TOKEN}"),
            "--max-examples",
            "20",
            "--seed",
            "1",
            "--phases",
            "examples,coverage,fuzzing",
        ])
        .args(["--checks", "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"])
        .current_dir(rules.path())
        .output()
        .unwrap();
    let report = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{report}");
    server.stop();
}

/// The tool of this machine, or that of the package index in a virtual environment below the target folder.
fn schemathesis() -> Option<PathBuf> {
    let runs = |path: &Path| Command::new(path).arg("--version").output().is_ok_and(|output| output.status.success());
    if runs(Path::new("schemathesis")) {
        return Some("schemathesis".into());
    }
    let target = std::env::current_exe().unwrap().ancestors().nth(3).unwrap().to_path_buf();
    let folder = target.join("packages/schemathesis");
    let program = folder.join("bin/schemathesis");
    if runs(&program) {
        return Some(program);
    }
    std::fs::create_dir_all(folder.parent()?).ok()?;
    let made = Command::new("python3").args(["-m", "venv"]).arg(&folder).output().ok()?;
    made.status.success().then_some(())?;
    let install = Command::new("timeout")
        .args(["240"])
        .arg(folder.join("bin/pip"))
        .args(["install", "--quiet", "schemathesis==4.*"])
        .output()
        .ok()?;
    install.status.success().then_some(())?;
    runs(&program).then_some(program)
}
