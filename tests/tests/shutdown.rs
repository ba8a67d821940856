//! The end of a server: Goodbye, nothing that arrived is dropped, exit code 0; and the log file that is reopened.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use postanalytics_client::{Client, Request};
use postanalytics_protocol::frames::{ControlFrame, Ping};
use postanalytics_tests::server::get;
use postanalytics_tests::{RawConnection, Server, ServerOptions, binary, eventually, free_port};
use rustix::process::{Pid, Signal, kill_process};
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const LONG: Duration = Duration::from_secs(30);

fn expect_goodbye(connection: &mut RawConnection) {
    connection.expect("Goodbye", |frame| match frame {
        ControlFrame::Goodbye(_) => Some(()),
        ControlFrame::Error(error) => panic!("an error instead of a Goodbye: {error:?}"),
        _ => None,
    });
}

#[test]
fn what_arrived_and_what_still_arrives_is_stored_and_acknowledged() {
    let mut server = Server::new();
    let mut connection = RawConnection::open(server.ingest, 1, 7);
    let mut idle = RawConnection::open(server.ingest, 2, 8);
    // 200 batches in the socket, none of them waited for.
    for sequence in 1..=200 {
        connection.send_batch(sequence, 10);
    }
    server.signal(Signal::TERM);
    let mut said_goodbye = false;
    connection.expect("the last ack", |frame| match frame {
        ControlFrame::Ack(ack) => (ack.sequence == 200).then_some(()),
        ControlFrame::Goodbye(_) => {
            said_goodbye = true;
            None
        }
        ControlFrame::Error(error) => panic!("{error:?}"),
        _ => None,
    });
    if !said_goodbye {
        expect_goodbye(&mut connection);
    }
    expect_goodbye(&mut idle);
    // What was under way when the Goodbye was sent is taken as well.
    connection.send_batch(201, 5);
    connection.expect_ack(201);
    assert!(connection.next(LONG).is_none(), "after that the connection ends");
    assert!(idle.next(LONG).is_none(), "so does one that has nothing to say");
    let status = server.wait(LONG);
    assert_eq!(status.code(), Some(0), "{status}");
    assert_eq!(server.logged("stopped").len(), 1);
}

#[test]
fn the_status_pages_say_that_it_is_not_ready_while_it_drains() {
    let mut server = Server::new();
    let mut connection = RawConnection::open(server.ingest, 1, 7);
    connection.send_batch(1, 10);
    connection.expect_ack(1);
    server.signal(Signal::TERM);
    expect_goodbye(&mut connection);
    let seen = while_talking(&mut connection, || {
        let stored = server.total("records_stored");
        (stored, server.get("/ready").0, server.get("/health").0, std::net::TcpStream::connect(server.ingest).is_err())
    });
    assert_eq!(seen, (10, 503, 200, true), "stored, /ready, /health, refused");
    drop(connection);
    assert_eq!(server.wait(LONG).code(), Some(0));
}

/// Keeps the connection busy meanwhile, so that the server goes on draining.
fn while_talking<T>(connection: &mut RawConnection, act: impl FnOnce() -> T) -> T {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut ping = Vec::new();
            Ping { token: 1 }.encode(connection.session, 0, &mut ping);
            while !over.load(Ordering::SeqCst) {
                connection.send(&ping);
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let _over = Over(&over);
        act()
    })
}

/// Says that it is over even if `act` panics.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn clients_that_are_connected_and_sending_do_not_keep_it_from_ending_well() {
    let mut server = ServerOptions::default().shards(2).start();
    let clients: Vec<Client> = (0..4).map(|_| Client::builder().server(server.ingest.to_string()).build().unwrap()).collect();
    let over = AtomicBool::new(false);
    let code = std::thread::scope(|scope| {
        let _over = Over(&over);
        for (number, client) in clients.iter().enumerate() {
            let over = &over;
            scope.spawn(move || {
                for record in 0_u64.. {
                    if over.load(Ordering::SeqCst) {
                        return;
                    }
                    let client_ip = [10, number as u8, 0, record as u8].into();
                    let _ = client.try_send(&Request { client_ip, path: b"/busy", status: 200, ..Request::default() });
                    std::thread::sleep(Duration::from_micros(500));
                }
            });
        }
        eventually("all are sending", LONG, || clients.iter().all(|client| client.counters().acked > 100));
        server.signal(Signal::TERM);
        server.wait(LONG).code()
    });
    assert_eq!(code, Some(0));
    for client in &clients {
        eventually("disconnected", LONG, || !client.status().connected);
        let counters = client.counters();
        assert!(counters.laws_hold() && counters.tnt_errors() == 0, "{counters:?}");
        assert_eq!(counters.in_flight, 0, "everything that was written was acknowledged: {counters:?}");
    }
}

#[test]
fn sigint_ends_it_well_too() {
    let mut server = Server::new();
    let mut connection = RawConnection::open(server.ingest, 1, 7);
    server.signal(Signal::INT);
    expect_goodbye(&mut connection);
    assert_eq!(server.wait(LONG).code(), Some(0));
}

#[test]
fn a_second_signal_ends_it_at_once() {
    let mut server = ServerOptions::default().arguments(&["--drain-deadline", "60s"]).start();
    let mut connection = RawConnection::open(server.ingest, 1, 7);
    server.signal(Signal::TERM);
    expect_goodbye(&mut connection);
    let code = while_talking(&mut connection, || {
        std::thread::sleep(Duration::from_secs(1));
        assert_eq!(server.logged("stopped").len(), 0, "somebody is talking: it waits");
        server.signal(Signal::TERM);
        server.wait(LONG).code()
    });
    assert_eq!(code, Some(128 + 15));
}

#[test]
fn somebody_who_never_stops_talking_is_cut_at_the_deadline() {
    let mut server = ServerOptions::default().arguments(&["--drain-deadline", "1s"]).start();
    let mut connection = RawConnection::open(server.ingest, 1, 7);
    let begun = Instant::now();
    server.signal(Signal::TERM);
    let code = while_talking(&mut connection, || server.wait(LONG).code());
    assert_eq!(code, Some(0));
    assert!(begun.elapsed() >= Duration::from_millis(900), "it waited for the deadline");
    assert_eq!(server.logged("drain deadline passed, connections cut").len(), 1);
}

#[test]
fn who_stops_reading_the_log_stops_nothing() {
    let port = free_port();
    let (mut reader, writer) = std::io::pipe().unwrap();
    // A page, which is less than the server says until it is ready. Nobody reads it.
    rustix::pipe::fcntl_setpipe_size(&writer, 4096).unwrap();
    let mut command = Command::new(binary("postanalytics"));
    command.args(["--listen", "127.0.0.1:0", "--status", &format!("127.0.0.1:{port}"), "--env-file=/dev/null"]);
    command.args(["--node-yaml=/dev/null", "--no-pin", "--shards", "1", "--arena", "0.0625", "--log", "json"]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(writer).spawn().unwrap();
    drop(command);
    let status = std::net::SocketAddr::from(([127, 0, 0, 1], port));
    eventually("ready", LONG, || get(status, "/ready", None).is_ok_and(|(code, _)| code == 200));
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let mut code = None;
    eventually("the end", LONG, || {
        code = child.try_wait().unwrap().map(|ended| ended.code());
        code.is_some()
    });
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(code, Some(Some(0)), "{text}");
    assert!(text.len() > 2048 && !text.contains("stopping"), "the pipe was full: {text}");
}

#[test]
fn who_stops_reading_keeps_no_server_that_fails_from_ending() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let log_file = format!("--log-file={}", folder.path().join("log").display());
    for more in [&["--no-pin"][..], &["--no-pin", log_file.as_str()]] {
        let (_reader, mut writer) = std::io::pipe().unwrap();
        // Full. Nobody reads it.
        rustix::pipe::fcntl_setpipe_size(&writer, 4096).unwrap();
        writer.write_all(&[b'\n'; 4096]).unwrap();
        let mut command = Command::new(binary("postanalytics"));
        command.args(["--listen", &taken.local_addr().unwrap().to_string(), "--env-file=/dev/null", "--node-yaml=/dev/null"]);
        command.args(["--shards", "1", "--arena", "0.0625"]).args(more);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(writer).spawn().unwrap();
        let mut code = None;
        eventually("the end", LONG, || {
            code = child.try_wait().unwrap().map(|ended| ended.code());
            code.is_some()
        });
        assert_eq!(code, Some(Some(1)), "{more:?}");
    }
    assert!(std::fs::read_to_string(folder.path().join("log")).unwrap().contains("ERROR"), "the log has why");
}

#[test]
fn the_log_file_is_reopened() {
    let server = Server::new();
    for (signal, name, earlier) in [(Signal::HUP, "server.log.1", 0), (Signal::USR1, "server.log.2", 1)] {
        let old = server.log.with_file_name(name);
        std::fs::rename(&server.log, &old).unwrap();
        server.signal(signal);
        eventually("a new log file", LONG, || server.logged("log file reopened").len() == 1);
        let before = std::fs::read_to_string(&old).unwrap();
        assert_eq!(before.matches("log file reopened").count(), earlier, "what comes after the signal goes to the new file");
    }
    let mut connection = RawConnection::open(server.ingest, 1, 7);
    connection.send_batch(1, 1);
    connection.expect_ack(1);
    server.stop();
}
