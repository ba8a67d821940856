//! A client of two real servers: each source's records on one of them, and what becomes of them when one dies.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use postanalytics_client::{Client, Counters, Request};
use postanalytics_tests::{Server, ServerOptions, eventually};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const LONG: Duration = Duration::from_secs(60);
/// Their records are read back source by source, at most 1,000 each.
const SOURCES: u64 = 40;
const FLAG_MAYBE_STORED_ELSEWHERE: u64 = 128;
const DEPLOYMENT: &str = "6a1f2ef4-9a0c-4b43-8e0b-0f5a6e6b7c11";

/// A deployment: what its servers share.
struct Deployment {
    folder: TempDir,
}

impl Deployment {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("key"), "5e".repeat(32)).unwrap();
        Self { folder }
    }

    fn server(&self, number: u8) -> ServerOptions {
        let key = self.folder.path().join("key");
        let id = format!("00000000-0000-4000-8000-0000000000{number:02x}");
        let shared = ["--deployment-id", DEPLOYMENT, "--identity-key-file", key.to_str().unwrap(), "--server-id", &id];
        ServerOptions::default().shards(2).arguments(&shared)
    }
}

fn client_of(servers: &[&Server]) -> Client {
    let builder = servers.iter().fold(Client::builder(), |builder, server| builder.server(server.ingest.to_string()));
    builder.node_name("several").build().unwrap()
}

fn request(number: u64) -> Request<'static> {
    let client_ip = [10, 7, 0, (number % SOURCES) as u8].into();
    Request { request_id: u128::from(number).to_be_bytes(), client_ip, status: 200, path: b"/several", ..Request::default() }
}

/// Sends the records of these numbers, 2,000 a second.
fn send(client: &Client, numbers: std::ops::Range<u64>) {
    let start = Instant::now();
    for (at, number) in numbers.enumerate() {
        client.try_send(&request(number)).unwrap();
        std::thread::sleep(Duration::from_micros(500 * at as u64).saturating_sub(start.elapsed()));
    }
}

/// Record numbers that the server holds of a source, and which of them say that another server may have them.
fn held(server: &Server, source: u64) -> (BTreeSet<u64>, BTreeSet<u64>) {
    let (code, body) = server.get(&format!("/requests?source=10.7.0.{source}&limit=1000"));
    assert_eq!(code, 200, "{body}");
    let answer: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(answer["partial"], false);
    let rows = answer["requests"].as_array().unwrap();
    let number = |row: &Value| u64::from_str_radix(row["request_id"].as_str().unwrap(), 16).unwrap();
    let marked = rows.iter().filter(|row| row["flags"].as_u64().unwrap() & FLAG_MAYBE_STORED_ELSEWHERE != 0);
    let (all, marked) = (rows.iter().map(number).collect::<BTreeSet<u64>>(), marked.map(number).collect());
    assert_eq!(all.len(), rows.len(), "a record is stored twice by one server");
    (all, marked)
}

fn assert_all_acked(counters: &Counters, sent: u64) {
    assert!(counters.laws_hold(), "{counters:?}");
    assert_eq!((counters.offered, counters.acked, counters.tnt_errors()), (sent, sent, 0), "{counters:?}");
}

/// The servers that take records, by their places.
fn takers(client: &Client) -> Vec<usize> {
    let servers = client.status().servers;
    (0..servers.len()).filter(|at| servers[*at].takes_records).collect()
}

#[test]
fn each_source_has_one_server_in_whatever_order_they_are_given() {
    const RECORDS: u64 = 4_000;
    let deployment = Deployment::new();
    let servers = [deployment.server(1).start(), deployment.server(2).start()];
    let clients = [client_of(&[&servers[0], &servers[1]]), client_of(&[&servers[1], &servers[0]])];
    send(&clients[0], 0..RECORDS / 2);
    send(&clients[1], RECORDS / 2..RECORDS);
    for client in &clients {
        client.flush(LONG).unwrap();
        assert_all_acked(&client.counters(), RECORDS / 2);
        let stats = client.stats_of_servers(LONG).unwrap();
        let stored: Vec<u64> = stats.iter().map(|stats| stats.unwrap().stored).collect();
        assert_eq!((stored.len(), stored.iter().sum::<u64>()), (2, RECORDS / 2));
        assert_eq!(client.server_stats(LONG).unwrap().stored, RECORDS / 2);
    }
    let mut homes = BTreeMap::<usize, u64>::new();
    for source in 0..SOURCES {
        let held = [held(&servers[0], source).0.len() as u64, held(&servers[1], source).0.len() as u64];
        assert!(held.contains(&0) && held.contains(&(RECORDS / SOURCES)), "source {source} is on both: {held:?}");
        *homes.entry(usize::from(held[0] == 0)).or_default() += 1;
    }
    assert!(homes.len() == 2 && homes.values().all(|sources| *sources >= SOURCES / 5), "{homes:?}");
    servers.iter().for_each(Server::assert_laws);
}

#[test]
fn one_is_killed_under_load_and_nothing_is_lost() {
    const RECORDS: u64 = 14_000;
    let deployment = Deployment::new();
    let options = deployment.server(2);
    let (first, second) = (deployment.server(1).start(), options.clone().start());
    let client = client_of(&[&first, &second]);
    let address = second.ingest;
    let before = std::thread::scope(|scope| {
        scope.spawn(|| send(&client, 0..RECORDS));
        eventually("under load", LONG, || client.counters().acked > 2_000);
        let before: Vec<BTreeSet<u64>> = (0..SOURCES).map(|source| held(&second, source).0).collect();
        second.kill();
        eventually("failed over", LONG, || takers(&client) == [0]);
        assert!(client.counters().laws_hold());
        before
    });
    client.flush(LONG).unwrap();
    let counters = client.counters();
    assert_all_acked(&counters, RECORDS);
    assert_eq!(counters.failovers, 1, "{counters:?}");
    let mut marked_records = 0;
    for source in 0..SOURCES {
        let (here, marked) = held(&first, source);
        marked_records += marked.len() as u64;
        let sent: BTreeSet<u64> = (source..RECORDS).step_by(SOURCES as usize).collect();
        // What the dead one had acknowledged is gone with it. Only its own sources moved.
        if before[source as usize].is_empty() {
            assert_eq!(here, sent, "source {source} was never on the other");
        } else {
            let lost: BTreeSet<u64> = sent.difference(&here).copied().collect();
            let twice: BTreeSet<u64> = before[source as usize].intersection(&here).copied().collect();
            assert!(marked.is_superset(&twice), "source {source}: on both without the mark {:?}", &twice - &marked);
            assert!(here.iter().all(|number| lost.iter().all(|gone| gone < number)), "source {source} moved once");
        }
    }
    assert_eq!(marked_records, counters.maybe_stored_elsewhere);
    first.assert_laws();

    // It is back at once, but its records are not: half a minute of health comes first.
    let second = ServerOptions { listen: address.to_string(), ..options }.start();
    eventually("connected again", LONG, || client.status().servers[1].connected);
    send(&client, RECORDS..RECORDS + 2_000);
    client.flush(LONG).unwrap();
    assert_all_acked(&client.counters(), RECORDS + 2_000);
    assert_eq!((takers(&client), second.total("records_stored")), (vec![0], 0));
    drop(client);
    second.stop();
    first.stop();
}

#[test]
fn servers_that_do_not_belong_together_are_told_apart() {
    let deployment = Deployment::new();
    let (first, stranger) = (deployment.server(1).start(), ServerOptions::default().shards(2).start());
    let client = client_of(&[&first, &stranger]);
    send(&client, 0..200);
    client.flush(LONG).unwrap();
    assert_all_acked(&client.counters(), 200);
    eventually("the odd one is named", LONG, || client.status().servers[1].last_error.contains("--deployment-id"));
    let status = client.status();
    assert!(status.last_error.starts_with(&stranger.ingest.to_string()), "{status:?}");
    assert!(status.servers[1].last_error.contains(DEPLOYMENT), "{status:?}");
    assert_eq!((takers(&client), first.total("records_stored"), stranger.total("records_stored")), (vec![0], 200, 0));

    // The same server twice, by two of its addresses.
    let port = first.ingest.port();
    let twice = Client::builder().server(format!("127.0.0.1:{port}")).server(format!("localhost:{port}")).build().unwrap();
    send(&twice, 200..400);
    twice.flush(LONG).unwrap();
    assert_all_acked(&twice.counters(), 200);
    eventually("named", LONG, || twice.status().servers[1].last_error.contains("same server"));
    assert_eq!((takers(&twice), first.total("records_stored")), (vec![0], 400));
}
