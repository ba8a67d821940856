//! Runs through the client library against a server in this process.

use super::*;
use crate::plan::Arguments;
use crate::report::Report;
use crate::test_server::{Fault, TestServer, serve};
use clap::Parser;
use postanalytics_client::access_log::parse_line;

fn run_against(server: &TestServer, options: &[&str]) -> (Outcome, Report, Vec<String>) {
    run_against_all(&[server], options)
}

fn run_against_all(servers: &[&TestServer], options: &[&str]) -> (Outcome, Report, Vec<String>) {
    let targets: Vec<String> = servers.iter().map(|server| server.address.to_string()).collect();
    let targets = targets.iter().flat_map(|target| ["--target", target]);
    let all = ["loadgen"].into_iter().chain(targets).chain(options.iter().copied());
    let plan = Plan::from_arguments(&Arguments::parse_from(all).run, &[]).expect("a plan");
    let outcome = run(&plan, &AtomicBool::new(false)).expect("it runs");
    let (report, broken) = Report::new(&plan.target, &outcome);
    (outcome, report, broken)
}

#[test]
fn an_open_loop_reconciles_and_keeps_its_rate() {
    let options = ["--rate", "20k/s", "--warmup", "200ms", "--duration", "500ms", "--connections", "2", "--mix", "api"];
    let (outcome, report, broken) = run_against(&serve(Fault::None), &options);
    assert!(broken.is_empty(), "{broken:?}");
    assert!((12_000..=14_010).contains(&report.records_generated), "{}", report.records_generated);
    assert_eq!(
        (report.records_acked, report.tnt_errors, report.server.stored),
        (report.records_generated, 0, report.records_generated)
    );
    // The window holds its own records only.
    assert!(outcome.acked.corrected.len() == 10_000 && outcome.acked.in_window <= 14_000);
    assert!(report.latency_us.corrected.p50 >= report.latency_us.uncorrected.p50 && report.latency_us.uncorrected.p50 > 0);
}

#[test]
fn several_servers_share_the_records_and_are_reconciled_together() {
    let servers = [serve(Fault::None), serve(Fault::None)];
    let options = ["--rate", "5k/s", "--warmup", "0", "--duration", "400ms", "--connections", "2"];
    let (outcome, report, broken) = run_against_all(&[&servers[0], &servers[1]], &options);
    assert!(broken.is_empty(), "{broken:?}");
    assert_eq!((report.records_acked, report.server.stored, report.records_generated), (2_000, 2_000, 2_000));
    assert_eq!(report.target, format!("{},{}", servers[0].address, servers[1].address));
    let kept = servers.map(|server| server.kept.lock().unwrap_or_else(PoisonError::into_inner).len());
    assert!(kept.iter().sum::<usize>() == 2_000 && kept.iter().all(|count| *count > 500), "{kept:?}");
    assert_eq!((outcome.maybe_stored_elsewhere, outcome.stored_is_partial), (0, None));

    // One of them says less than it acknowledged: that shows in the sum.
    let liar = serve(Fault::StoresLess);
    let (_, _, broken) = run_against_all(&[&serve(Fault::None), &liar], &options);
    assert!(broken.iter().any(|law| law.contains("are stored")), "{broken:?}");
}

#[test]
fn saturation_never_overflows_the_queue() {
    let options = ["--saturate", "--warmup", "100ms", "--duration", "300ms", "--threads", "2", "--batch", "64"];
    let (_, report, broken) = run_against(&serve(Fault::None), &options);
    assert!(broken.is_empty() && report.tnt_errors == 0, "{broken:?} {}", report.tnt_errors);
    assert!(report.records_generated > 1_000 && report.records_acked == report.records_generated);
}

#[test]
fn a_replay_delivers_every_line_as_it_stands() {
    let folder = tempfile::tempdir().expect("a folder");
    let (file, mut text) = (folder.path().join("access.log"), String::new());
    for number in 0..1_000 {
        let (source, second) = (number % 50, 59 - number % 60);
        text += &format!(
            "198.51.100.{source} - - [17/May/2015:10:05:{second:02} +0000] \"GET /page/{number}?n={number} HTTP/1.1\" 200 {number} \"-\" \"agent {number}\"\n"
        );
    }
    text += "not a line of a log\n";
    std::fs::write(&file, &text).expect("written");
    let server = serve(Fault::None);
    let (outcome, report, broken) = run_against(&server, &["--replay", file.to_str().expect("a path"), "--connections", "2"]);
    assert!(broken.is_empty() && report.records_generated == 1_000, "{broken:?}");
    assert!(outcome.notes.iter().any(|note| note.contains("1001 lines read, 1 of them no")), "{:?}", outcome.notes);
    assert!(outcome.acked.in_window == 1_000 && outcome.window_seconds > 0.0, "{}", outcome.window_seconds);
    let mut kept = server.kept.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let mut wanted: Vec<_> = text
        .lines()
        .filter_map(|line| parse_line(line.as_bytes()))
        .map(|line| {
            let request = line.request([0; 16], 0);
            let texts = (request.path.to_vec(), request.query.to_vec(), request.user_agent.to_vec());
            (request.event_us, request.method, texts.0, texts.1, request.status, texts.2, true)
        })
        .collect();
    kept.sort();
    wanted.sort();
    assert_eq!(kept, wanted);
}

#[test]
fn a_run_that_its_records_end_is_measured_to_its_last_acknowledgement() {
    let until = |until_ns| Timing { start_ns: 1, from_ns: 1, until_ns };
    let seconds = |timing: Timing, is_stopped, ended_ns, latest_ack_ns| {
        timing.window_seconds(end_of_window_ns(&timing, is_stopped, ended_ns, latest_ack_ns)) * 1e9
    };
    // Without a duration: the watcher and the server's answer come later and do not count.
    assert_eq!(seconds(until(u64::MAX), false, 5, 11), 10.0);
    assert_eq!(seconds(until(u64::MAX), false, 5, 0), 4.0, "nothing was acknowledged");
    // A log that is shorter than the duration: what is acknowledged after its end counts, and so does the time.
    assert_eq!(seconds(until(101), true, 5, 11), 10.0);
    assert_eq!(seconds(until(101), true, 5, 200), 100.0);
    assert_eq!(seconds(until(101), false, 5, 11), 100.0);
}

#[test]
fn a_server_that_stores_less_breaks_the_reconciliation() {
    let options = ["--rate", "10k/s", "--warmup", "0", "--duration", "100ms"];
    let (_, report, broken) = run_against(&serve(Fault::StoresLess), &options);
    assert!(!report.reconciled && broken.len() == 1 && broken[0].contains("stored"), "{broken:?}");
}

#[test]
fn what_was_due_and_never_sent_is_counted() {
    // No machine sends that many: most of it is given up after the time to catch up.
    let options = ["--rate", "1000M/s", "--warmup", "0", "--duration", "100ms"];
    let (outcome, report, broken) = run_against(&serve(Fault::None), &options);
    assert!(broken.is_empty(), "{broken:?}");
    assert_eq!(report.records_generated + outcome.sent.unsent, 100_000_000);
    assert!(outcome.sent.unsent > 0 && outcome.sent.held_back == 0 && report.generator_bound);
    assert!(outcome.notes.iter().any(|note| note.contains("never sent")), "{:?}", outcome.notes);
    // They waited for 0.9 s at least, and they are most of what there is.
    assert!(outcome.acked.corrected.len() >= outcome.sent.unsent && report.latency_us.corrected.p50 > 900_000);
}

#[test]
fn a_timed_replay_has_intended_times() {
    let folder = tempfile::tempdir().expect("a folder");
    let (file, line) = (folder.path().join("access.log"), |time: &str| {
        format!("198.51.100.7 - - [{time}] \"GET /page HTTP/1.1\" 200 5 \"-\" \"agent\"\n")
    });
    let mut text = line("no time at all");
    text.extend((0..40).map(|second| line(&format!("17/May/2015:10:05:{second:02} +0000"))));
    text += &line("no time either");
    std::fs::write(&file, &text).expect("written");
    let started_ns = monotonic_ns();
    let options = ["--replay", file.to_str().expect("a path"), "--replay-speed", "100x"];
    let (outcome, report, broken) = run_against(&serve(Fault::None), &options);
    let elapsed_ms = (monotonic_ns() - started_ns) / 1_000_000;
    assert!(broken.is_empty() && report.records_generated == 42, "{broken:?}");
    assert!((390..20_000).contains(&elapsed_ms), "39 s at 100 times their speed took {elapsed_ms} ms");
    assert!(outcome.has_schedule && outcome.sent.scheduled == 42 && outcome.acked.corrected.len() == 42);
    assert!(report.latency_us.corrected.p50 >= report.latency_us.uncorrected.p50);
}

#[test]
fn a_batch_may_be_larger_than_the_client_has_them() {
    let options = ["--saturate", "--warmup", "0", "--duration", "100ms", "--batch", "10000"];
    let (_, report, broken) = run_against(&serve(Fault::None), &options);
    assert!(broken.is_empty() && report.records_acked > 0, "{broken:?}");
}

#[test]
fn a_restart_shows_in_the_time_that_the_server_is_up() {
    let snapshot = |asked_ms: u64, answered_ms: u64, uptime_ms: u64| Snapshot {
        asked_ns: asked_ms * 1_000_000,
        at_ns: answered_ms * 1_000_000,
        servers: vec![Some(ServerStats { uptime_us: uptime_ms * 1000, ..ServerStats::default() })],
        ..Snapshot::default()
    };
    let start = snapshot(1_000, 1_001, 5_000);
    assert!(!start.is_restarted(&snapshot(11_000, 11_001, 15_000)));
    // A slow answer is no restart; one that is longer up than before can be.
    assert!(!snapshot(1_000, 9_000, 13_000).is_restarted(&snapshot(11_000, 11_001, 15_000)));
    assert!(start.is_restarted(&snapshot(11_000, 11_001, 9_000)) && start.is_restarted(&snapshot(11_000, 11_001, 200)));
    assert!(!start.is_restarted(&Snapshot::default()));

    // Of several, one is away at one of the times: the others are compared with themselves.
    let all = |servers: &[Option<u64>], base: Snapshot| {
        let up = |ms: &Option<u64>| ms.map(|ms| ServerStats { uptime_us: ms * 1000, ..ServerStats::default() });
        Snapshot { servers: servers.iter().map(up).collect(), ..base }
    };
    let start = all(&[None, Some(90_000)], snapshot(1_000, 1_001, 0));
    assert!(!start.is_restarted(&all(&[Some(5_000), Some(100_000)], snapshot(11_000, 11_001, 0))));
    assert!(start.is_restarted(&all(&[Some(200_000), Some(3_000)], snapshot(11_000, 11_001, 0))));
}
