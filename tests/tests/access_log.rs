//! A whole access log through everything: parser, client, two shards, and back out of `/requests`, field by field.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use postanalytics_client::access_log::{LogLine, parse_line};
use postanalytics_client::{Client, Request};
use postanalytics_server::control::http::unescape;
use postanalytics_tests::{Server, ServerOptions, skipped};
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

const NODE: [u8; 16] = [9; 16];

/// A record as the log says it and as `/requests` shows it. Both sides are turned into this by code of their own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Seen {
    request_id: String,
    client_ip: String,
    event_us: u64,
    method: String,
    host: Vec<u8>,
    path: Vec<u8>,
    query: Vec<u8>,
    user_agent: Vec<u8>,
    referer: Vec<u8>,
    http_version: u64,
    status: u64,
    server_port: u64,
    response_bytes: u64,
    flags: u64,
    user_hash: String,
    extensions: Vec<(u64, Vec<u8>)>,
    /// What an access log does not tell, with its neutral value.
    rest: String,
}

const NEUTRAL: &str = "application -1, tenant 0, scheme 0, 0 µs, 0 µs, 0 bytes, session 0000000000000000, raw , , 0 hits";

fn request_id(number: usize) -> [u8; 16] {
    (0xabcd_0000_0000_0000_u128 + number as u128).to_be_bytes()
}

/// What the record of a line must look like.
fn expected(client: &Client, line: &LogLine<'_>, request: &Request<'_>) -> Seen {
    let user_hash = if line.user.is_empty() { 0 } else { client.hash_identity(line.user).unwrap() };
    assert_eq!(user_hash == 0, line.user.is_empty(), "a user name has a hash, and only a user name");
    let is_known = request.method != 0;
    let is_other = !line.method.is_empty() && !is_known;
    Seen {
        request_id: request.request_id.iter().map(|byte| format!("{byte:02x}")).collect(),
        client_ip: request.client_ip.to_string(),
        event_us: line.time_us.unwrap(),
        method: if is_known { String::from_utf8(line.method.to_vec()).unwrap() } else { "0".to_owned() },
        host: line.virtual_host.to_vec(),
        path: line.path.to_vec(),
        query: line.query.to_vec(),
        user_agent: line.user_agent.to_vec(),
        referer: line.referer.to_vec(),
        http_version: line.http_version.into(),
        status: line.status.into(),
        server_port: line.server_port.into(),
        response_bytes: line.response_bytes,
        flags: request.flags.into(),
        user_hash: format!("{user_hash:016x}"),
        extensions: if is_other { vec![(1, line.method.to_vec())] } else { Vec::new() },
        rest: NEUTRAL.to_owned(),
    }
}

/// What `/requests` shows.
fn read_back(record: &Value) -> Seen {
    let text = |name: &str| record[name].as_str().unwrap_or_else(|| panic!("no text {name} in {record}"));
    let number = |name: &str| record[name].as_u64().unwrap_or_else(|| panic!("no number {name} in {record}"));
    let bytes = |name: &str| unescape(text(name)).unwrap_or_else(|| panic!("{name} is not escaped well in {record}"));
    let extension =
        |extension: &Value| (extension["tag"].as_u64().unwrap(), unescape(extension["value"].as_str().unwrap()).unwrap());
    assert_eq!(text("node"), "09090909-0909-0909-0909-090909090909");
    assert!(number("arrival_us") > 1_700_000_000_000_000 && number("sent_us") > 1_700_000_000_000_000, "{record}");
    Seen {
        request_id: text("request_id").to_owned(),
        client_ip: text("client_ip").to_owned(),
        event_us: number("event_us"),
        method: text("method").to_owned(),
        host: bytes("host"),
        path: bytes("path"),
        query: bytes("query"),
        user_agent: bytes("user_agent"),
        referer: bytes("referer"),
        http_version: number("http_version"),
        status: number("status"),
        server_port: number("server_port"),
        response_bytes: number("response_bytes"),
        flags: number("flags"),
        user_hash: text("user_hash").to_owned(),
        extensions: record["extensions"].as_array().unwrap().iter().map(extension).collect(),
        rest: format!(
            "application {}, tenant {}, scheme {}, {} µs, {} µs, {} bytes, session {}, raw {}, {}, {} hits",
            record["application"],
            number("tenant"),
            text("scheme"),
            number("response_us"),
            number("detection_us"),
            number("request_bytes"),
            text("session_hash"),
            text("raw_headers"),
            text("raw_body"),
            record["hits"].as_array().unwrap().len()
        ),
    }
}

/// Sources are told apart by the whole IPv4 address or by the /64.
fn source_of(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(v6) => Ipv6Addr::from(u128::from(v6) >> 64 << 64).into(),
    }
}

/// Every stored record of these sources: one question cannot return more than 1,000.
fn all_requests(server: &Server, sources: &BTreeSet<IpAddr>) -> Vec<Seen> {
    let mut found = Vec::new();
    for source in sources {
        let (code, body) = server.get(&format!("/requests?source={source}&limit=1000"));
        assert_eq!(code, 200, "{body}");
        let answer: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(answer["partial"], false, "nothing else is scanned meanwhile");
        let records = answer["requests"].as_array().unwrap();
        assert!(records.len() < 1000, "{source} has more records than one answer holds");
        found.extend(records.iter().map(read_back));
    }
    found
}

/// Sends the lines, and expects exactly them back.
fn round_trip(lines: &[&[u8]]) {
    let server = ServerOptions::default().shards(2).start();
    let client = Client::builder().server(server.ingest.to_string()).node(NODE).build().unwrap();
    let parse = |line: &&[u8]| parse_line(line).is_some();
    assert!(lines.iter().all(parse), "every line has the structure of an access log");
    let lines: Vec<LogLine<'_>> = lines.iter().filter_map(|line| parse_line(line)).collect();
    let requests: Vec<Request<'_>> = (0..).zip(&lines).map(|(number, line)| line.request(request_id(number), 0)).collect();
    for request in &requests {
        client.try_send(request).unwrap();
    }
    client.flush(Duration::from_secs(60)).unwrap();
    let count = lines.len() as u64;
    let counters = client.counters();
    assert!(counters.laws_hold(), "{counters:?}");
    assert_eq!((counters.offered, counters.acked, counters.tnt_errors()), (count, count, 0), "{counters:?}");
    assert_eq!((server.total("records_stored"), server.total("records_duplicate")), (count, 0));
    assert_eq!(server.total("evicted_records"), 0, "all of it fits the arena");
    server.assert_laws();

    let sources = requests.iter().map(|request| source_of(request.client_ip)).collect();
    let mut wanted: Vec<Seen> = lines.iter().zip(&requests).map(|(line, request)| expected(&client, line, request)).collect();
    let mut found = all_requests(&server, &sources);
    wanted.sort_unstable();
    found.sort_unstable();
    for (wanted, found) in wanted.iter().zip(&found) {
        assert_eq!(wanted, found);
    }
    assert_eq!(wanted.len(), found.len());
    one_by_one(&server, &wanted);
    drop(client);
    server.stop();
}

/// Some of them by their id, and the newest without a filter.
fn one_by_one(server: &Server, wanted: &[Seen]) {
    for seen in wanted.iter().step_by(wanted.len().div_ceil(5)) {
        let (code, body) = server.get(&format!("/requests/{}", seen.request_id));
        let answer: Value = serde_json::from_str(&body).unwrap();
        assert_eq!((code, answer["requests"].as_array().unwrap().len()), (200, 1), "{body}");
        assert_eq!(read_back(&answer["requests"][0]), *seen);
    }
    let (_, body) = server.get("/requests?limit=1000");
    let answer: Value = serde_json::from_str(&body).unwrap();
    let records = answer["requests"].as_array().unwrap();
    assert_eq!(records.len(), wanted.len().min(1000));
    let arrivals: Vec<u64> = records.iter().map(|record| record["arrival_us"].as_u64().unwrap()).collect();
    assert!(arrivals.is_sorted_by(|newer, older| newer >= older), "newest first");
    assert!(records.iter().map(read_back).all(|seen| wanted.binary_search(&seen).is_ok()));
}

#[test]
fn every_line_of_a_real_access_log_is_stored_and_read_back() {
    let test = "every_line_of_a_real_access_log_is_stored_and_read_back";
    let Some(folder) = std::env::var_os("POSTANALYTICS_DATA") else {
        return skipped(test, "POSTANALYTICS_DATA names no folder with access-elastic-5000.log");
    };
    let path = std::path::Path::new(&folder).join("access-elastic-5000.log");
    let log = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let lines: Vec<&[u8]> = log.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).collect();
    assert_eq!(lines.len(), 5000);
    round_trip(&lines);
}

#[test]
fn lines_of_any_bytes_are_stored_and_read_back() {
    let time = "[17/May/2015:10:05:03 +0000]";
    let mut lines: Vec<Vec<u8>> = [
        // Bytes that are no UTF-8, alone and between such that are.
        b"192.0.2.1 - - TIME \"GET /\xff\xfe\x80/\xc3\xa4?q=\xc3\x28&r=\xed\xa0\x80 HTTP/1.1\" 404 12 \"http://e/\xff\" \"\xf0\x28\x8c\xbc\"".to_vec(),
        // What looks like the escapes of the answer, with and without bytes that need them.
        b"192.0.2.1 - - TIME \"GET /\\xff\\x5c?a=\\\\x41\\\\ HTTP/1.1\" 200 12 \"-\" \"\\x\"".to_vec(),
        b"192.0.2.1 - - TIME \"GET /\\xff\xff\\ HTTP/1.1\" 200 12 \"-\" \"a\\b\xffc\"".to_vec(),
        // Control characters, quotes of JSON, a byte of 0.
        b"192.0.2.2 - - TIME \"GET /\x00\x01\x1b[31m{}'<>\x7f HTTP/1.1\" 200 12 \"-\" \"\t\"".to_vec(),
        // No request at all, as scanners send.
        b"192.0.2.3 - - TIME \"\\x16\\x03\\x01\x02\x00\xff\" 400 226 \"-\" \"-\"".to_vec(),
        // A user, with and without bytes that are no text; the same user twice.
        b"192.0.2.4 - frank TIME \"POST /login HTTP/2.0\" 302 0 \"-\" \"-\"".to_vec(),
        b"192.0.2.5 - frank TIME \"POST /login HTTP/2.0\" 302 0 \"-\" \"-\"".to_vec(),
        b"192.0.2.4 - fr\xffnk TIME \"POST /login HTTP/2.0\" 302 0 \"-\" \"-\"".to_vec(),
        // A method without a number; an address that is a name; IPv6; a virtual host.
        b"192.0.2.6 - - TIME \"PROPFIND-X /dav HTTP/1.0\" 405 7 \"-\" \"davfs2\"".to_vec(),
        b"crawler.example.org - - TIME \"HEAD / HTTP/1.0\" 200 - \"-\" \"-\"".to_vec(),
        b"2001:db8:1:2:3:4:5:6 - - TIME \"GET /six HTTP/1.1\" 200 1 \"-\" \"-\"".to_vec(),
        b"shop.example:8443 192.0.2.7 - - TIME \"GET /host HTTP/1.1\" 200 1 \"-\" \"-\"".to_vec(),
    ]
    .into_iter()
    .map(|line| replace(&line, b"TIME", time.as_bytes()))
    .collect();
    // Every byte but those that end a field or the line.
    for byte in (0..=255_u8).filter(|byte| !b"\"\\\n\r ?".contains(byte)) {
        let mut line = format!("198.51.100.{byte} - - {time} \"GET /a").into_bytes();
        line.extend([byte, byte, b'z', byte]);
        line.extend_from_slice(b"z?b HTTP/1.1\" 200 3 \"-\" \"-\"");
        lines.push(line);
    }
    let lines: Vec<&[u8]> = lines.iter().map(Vec::as_slice).collect();
    round_trip(&lines);
}

fn replace(text: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let at = text.windows(from.len()).position(|window| window == from).unwrap();
    [&text[..at], to, &text[at + from.len()..]].concat()
}
