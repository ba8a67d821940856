//! Addresses: IPv6, dual stack, who is let in; and every reason for which the server does not start, said by name.

use postanalytics_tests::server::TOKEN;
use postanalytics_tests::wire::hello;
use postanalytics_tests::{RawConnection, Server, ServerOptions, binary, eventually, skipped};
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);

/// Whether this machine has IPv6 on its loopback.
fn has_ipv6() -> bool {
    std::net::TcpListener::bind("[::1]:0").is_ok()
}

fn options(listen: &str, arguments: &[&str]) -> ServerOptions {
    ServerOptions { listen: listen.to_owned(), ..ServerOptions::default() }.arguments(arguments)
}

/// Sends a batch to `address` in a session of its own and sees it acknowledged.
fn is_served(address: impl Into<SocketAddr>, session: u64) {
    let mut connection = RawConnection::open(address.into(), 1, session);
    connection.send_batch(1, 2);
    connection.expect_ack(1);
}

#[test]
fn ipv6_loopback() {
    if !has_ipv6() {
        return skipped("ipv6_loopback", "this machine has no [::1]");
    }
    let server = options("[::1]:0", &[]).start();
    assert!(server.ingest.is_ipv6(), "{}", server.ingest);
    is_served(server.ingest, 1);
    let status = server.status_json();
    assert_eq!(status["totals"]["records_stored"], 2, "{status}");
    server.stop();
}

#[test]
fn dual_stack_takes_both() {
    if !has_ipv6() {
        return skipped("dual_stack_takes_both", "this machine has no [::1]");
    }
    let server = options("[::]:0", &["--insecure"]).start();
    let port = server.ingest.port();
    is_served(([127, 0, 0, 1], port), 1);
    is_served((std::net::Ipv6Addr::LOCALHOST, port), 2);
    assert_eq!(server.total("records_stored"), 4);
    // An IPv4 peer on an IPv6 socket is shown as what it is, and counted as loopback.
    let _shown = RawConnection::open(([127, 0, 0, 1], port).into(), 2, 3);
    eventually("the peer is listed", PATIENCE, || {
        let status = server.status_json();
        let clients = status["clients"].as_array().cloned().unwrap_or_default();
        clients.iter().any(|client| client["peer"].as_str().is_some_and(|peer| peer.starts_with("127.0.0.1:")))
    });
    server.stop();
}

/// Runs a server that is not to start, and checks its exit code and that what it says has all the `words`.
fn fails_to_start(options: &ServerOptions, words: &[&str]) {
    let folder = tempfile::tempdir().expect("a folder");
    let (log, token) = (folder.path().join("server.log"), folder.path().join("token"));
    std::fs::write(&token, TOKEN).expect("a file");
    fails(&mut options.command(&log, &token), 1, words);
}

/// The server with just these arguments, and without status pages.
fn bare(arguments: &[&str]) -> Command {
    let mut command = Command::new(binary("postanalytics"));
    command.args(["--status", "none"]).args(arguments).env_remove("SLAB_ALLOC_ARENA");
    command
}

fn fails(command: &mut Command, code: i32, words: &[&str]) {
    let output = command.output().expect("the program runs");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{command:?}: {text}");
    let error = text.lines().last().unwrap_or_default();
    assert!(error.starts_with("postanalytics: error: "), "the last word is one line with the error: {text}");
    for word in words {
        assert!(error.contains(word), "{word:?} is missing: {error}");
    }
}

#[test]
fn a_second_server_on_the_port_says_who_has_it() {
    let first = Server::new();
    let address = first.ingest.to_string();
    let bound = format!("failed to bind: Address already in use ({address})");
    let remedy = format!("ss -ltnp 'sport = :{}'", first.ingest.port());
    fails_to_start(&options(&address, &[]), &[&bound, &remedy, "--listen"]);
    is_served(first.ingest, 1);
    assert_eq!(first.total("records_stored"), 2, "the first server is not disturbed");
    first.stop();
}

#[test]
fn the_port_is_free_again_at_once_after_the_end() {
    let first = Server::new();
    let address = first.ingest;
    is_served(address, 1);
    first.stop();
    let second = options(&address.to_string(), &[]).start();
    assert_eq!(second.ingest, address);
    is_served(address, 1);
    second.stop();
}

#[test]
fn addresses_that_cannot_be_had_are_named() {
    let words = "failed to bind: Cannot assign requested address (10.255.255.9:3313)";
    fails_to_start(&options("10.255.255.9:3313", &[]), &[words, "`ip address`", "0.0.0.0"]);
    fails_to_start(&options("no-such-host.invalid:3313", &[]), &["bad host \"no-such-host.invalid\"", "127.0.0.1"]);
    // The command line itself is at fault: exit code 2.
    fails(&mut bare(&["--listen", "127.0.0.1"]), 2, &["bad --listen \"127.0.0.1\"", "HOST:PORT", "127.0.0.1:3313"]);
    let mut from_environment = options("", &[]);
    from_environment.environment = vec![("HOST".to_owned(), "10.255.255.9".to_owned()), ("PORT".to_owned(), "3313".to_owned())];
    fails_to_start(&from_environment, &[words]);
}

#[test]
fn an_arena_or_shards_that_do_not_fit_are_named() {
    let with_arena = |arena_gb: f64| ServerOptions { arena_gb, ..ServerOptions::default() };
    fails_to_start(&with_arena(1e6), &["the arena of 1000000.00 GB is larger than the memory", "--arena", "SLAB_ALLOC_ARENA"]);
    fails_to_start(&with_arena(0.01), &["too small for even one shard", "20 slabs of 2 MiB", "--arena 0.04"]);
    for (value, remedy) in [("1,5", "1.5"), ("many", "digits and a dot"), ("0", "more than 0")] {
        let environment = vec![("SLAB_ALLOC_ARENA".to_owned(), value.to_owned())];
        let found = format!("bad SLAB_ALLOC_ARENA {value:?}");
        fails(bare(&["--listen", "127.0.0.1:0"]).envs(environment), 1, &[&found, "environment", remedy]);
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("env");
        std::fs::write(&file, format!("SLAB_ALLOC_ARENA={value}\n")).expect("a file");
        fails(bare(&["--env-file"]).arg(&file), 1, &[&found, "env file", remedy]);
    }
    // Pinned shards, which the servers of other tests are not.
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let shards = (cpus + 1).to_string();
    let words = [&format!("{shards} shards"), &format!("{cpus} CPUs"), "--no-pin"];
    fails(&mut bare(&["--listen", "127.0.0.1:0", "--arena", "0.5", "--shards", &shards]), 1, &words);
}

/// What the tests below need: a network of their own, in which this machine has an address that is not loopback.
const FOREIGN: [u8; 4] = [192, 0, 2, 1];

/// Runs an ignored test of this file in a private network namespace.
fn in_a_namespace(test: &str) {
    let prepare = "ip link set lo up && ip addr add 192.0.2.1/32 dev lo";
    let unshare = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["-rn", "sh", "-c", script]);
        command
    };
    // Not all machines let ordinary users do this.
    if !unshare(prepare).output().is_ok_and(|output| output.status.success()) {
        return skipped(test, "no private network namespace: `unshare -rn` or `ip` is missing or not allowed");
    }
    // The programs are built before: in the namespace there is no network.
    binary("postanalytics");
    let mut command = unshare(&format!("{prepare} && exec \"$0\" --exact {test} --ignored --nocapture"));
    let output = command.arg(std::env::current_exe().expect("a path")).output().expect("unshare runs");
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

/// `HOST=0.0.0.0` and a port of the kernel's choice, from the environment as operators give it.
fn everywhere(arguments: &[&str], allow: &str) -> Server {
    let mut options = options("", arguments);
    let allow = (!allow.is_empty()).then_some(("ALLOW", allow));
    let environment = [("HOST", "0.0.0.0"), ("PORT", "0")].into_iter().chain(allow);
    options.environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    options.start()
}

#[test]
fn without_an_allowlist_only_loopback_is_let_in() {
    in_a_namespace("inside_without_an_allowlist");
}

#[test]
#[ignore = "runs in a network namespace, by without_an_allowlist_only_loopback_is_let_in"]
fn inside_without_an_allowlist() {
    let server = everywhere(&[], "");
    let port = server.ingest.port();
    is_served(([127, 0, 0, 1], port), 1);
    for _ in 0..3 {
        let refused = RawConnection::try_open((FOREIGN, port).into(), &hello(1), 2);
        assert!(matches!(refused, Err(None)), "refused without a word: {refused:?}");
    }
    let line = "--allow 192.0.2.1/32 (or ALLOW=192.0.2.1/32 in the env file)";
    let told = server
        .logged(&format!("connection refused: this network is not on the allowlist; to let it in, start the server with {line}"));
    assert_eq!(told.len(), 1, "said once, with the line to add: {}", std::fs::read_to_string(&server.log).expect("a log"));
    assert_eq!(server.metric("postanalytics_connections_refused_total{reason=\"not_allowed\"}"), 3.0);
    is_served(([127, 0, 0, 1], port), 3);
    assert_eq!(server.total("records_stored"), 4);
    server.assert_laws();
    server.stop();
}

#[test]
fn an_allowlist_lets_its_networks_in() {
    in_a_namespace("inside_with_an_allowlist");
}

#[test]
#[ignore = "runs in a network namespace, by an_allowlist_lets_its_networks_in"]
fn inside_with_an_allowlist() {
    let flag = everywhere(&["--allow", "10.0.0.0/8", "--allow", "192.0.2.0/24"], "");
    is_served((FOREIGN, flag.ingest.port()), 1);
    is_served(([127, 0, 0, 1], flag.ingest.port()), 2);
    flag.stop();
    let environment = everywhere(&[], "10.0.0.0/8, 192.0.2.1");
    is_served((FOREIGN, environment.ingest.port()), 1);
    environment.stop();
    let insecure = everywhere(&["--insecure"], "");
    is_served((FOREIGN, insecure.ingest.port()), 1);
    insecure.stop();
    let elsewhere = everywhere(&["--allow", "198.51.100.0/24"], "");
    let refused = RawConnection::try_open((FOREIGN, elsewhere.ingest.port()).into(), &hello(1), 1);
    assert!(matches!(refused, Err(None)), "{refused:?}");
    elsewhere.stop();
}
