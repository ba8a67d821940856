//! Raw runs against a server whose faults are known.

use super::*;
use crate::plan::{Arguments, RunArguments};
use crate::report::Report;
use crate::test_server::{Fault, serve};
use clap::Parser;
use std::net::TcpListener;

fn run_against(fault: Fault, options: &[&str]) -> Result<(Outcome, Report, Vec<String>)> {
    let target = serve(fault).address.to_string();
    let all = ["loadgen", "--raw", "--record-bytes", "300", "--target", &target].into_iter().chain(options.iter().copied());
    let arguments: RunArguments = Arguments::parse_from(all).run;
    let plan = Plan::from_arguments(&arguments, &[]).map_err(anyhow::Error::msg)?;
    let outcome = run(&plan, &AtomicBool::new(false))?;
    let (report, broken) = Report::new(&plan.target, &outcome);
    Ok((outcome, report, broken))
}

#[test]
fn a_saturating_run_reconciles() {
    let options = ["--saturate", "--warmup", "100ms", "--duration", "200ms", "--connections", "2", "--threads", "2"];
    let (outcome, report, broken) = run_against(Fault::None, &options).expect("it runs");
    assert!(broken.is_empty() && report.reconciled, "{broken:?}");
    assert!(report.records_generated > 1_000 && report.server.stored == report.records_acked);
    assert!(report.mean_batch_records > 63.9 && report.records_per_second > 0.0 && report.server.cpu_seconds > 0.0);
    assert!(!outcome.acked.uncorrected.is_empty());
    let note = format!("at most {} distinct sources", report.records_generated.min(131_072));
    assert!(outcome.notes.iter().any(|text| text.contains(&note) && text.contains("repeat every lap")), "{:?}", outcome.notes);
}

#[test]
fn an_open_loop_keeps_its_rate() {
    let options = ["--rate", "20k/s", "--warmup", "0", "--duration", "500ms", "--batch", "10"];
    let (outcome, report, broken) = run_against(Fault::None, &options).expect("it runs");
    assert!(broken.is_empty(), "{broken:?}");
    // Whatever the machine does meanwhile, all that fell due is sent.
    assert_eq!(report.records_generated, 10_000);
    assert!(report.server.cpu_seconds > 0.0 && report.records_per_server_cpu_second > 0.0);
    assert!(outcome.has_schedule && outcome.sent.scheduled == report.records_generated);
    assert!(report.latency_us.corrected.p50 >= report.latency_us.uncorrected.p50);
}

#[test]
fn what_a_server_does_wrong_is_said() {
    let options = ["--rate", "10k/s", "--warmup", "0", "--duration", "100ms"];
    let (_, report, broken) = run_against(Fault::StoresLess, &options).expect("it runs");
    assert!(!report.reconciled && broken[0].contains("stored"), "{broken:?}");
    let error = |fault| format!("{:#}", run_against(fault, &options).expect_err("it cannot run"));
    assert!(error(Fault::AcksTooMuch).contains("acknowledged sequence"), "{}", error(Fault::AcksTooMuch));
    let closed = error(Fault::Closes);
    assert!(closed.contains("closed") || closed.contains("broke"), "{closed}");
}

#[test]
fn a_server_that_is_not_there_is_named_with_a_remedy() {
    let port = TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("an address").port();
    let target = format!("127.0.0.1:{port}");
    let arguments = Arguments::parse_from(["loadgen", "--raw", "--target", &target]);
    let plan = Plan::from_arguments(&arguments.run, &[]).expect("a plan");
    let error = format!("{:#}", run(&plan, &AtomicBool::new(false)).expect_err("nothing listens there"));
    assert!(error.contains(&target) && error.contains("refused") && error.contains("listening"), "{error}");
}

#[test]
fn the_addresses_of_a_name_are_tried_in_turn() {
    let arguments = Arguments::parse_from(["loadgen", "--raw", "--target", "name.example:1", "--connections", "2"]);
    let plan = Plan::from_arguments(&arguments.run, &[]).expect("a plan");
    // Nobody listens on port 1.
    let [one, other] = [2, 3].map(|host| SocketAddr::from(([127, 0, 0, host], 1)));
    let good = serve(Fault::None).address;
    assert_eq!(connect(&plan, &[one, good, other]).expect("the second one works").len(), 2);
    let error = format!("{:#}", connect(&plan, &[one, other]).err().expect("neither works"));
    assert!(error.contains("name.example") && error.contains(&other.to_string()) && error.contains("refused"), "{error}");
    assert!(!error.contains(&one.to_string()), "{error}");
}

#[test]
fn what_was_due_and_never_sent_is_counted() {
    let options = ["--rate", "1000M/s", "--warmup", "0", "--duration", "100ms", "--batch", "64"];
    let (outcome, report, broken) = run_against(Fault::None, &options).expect("it runs");
    assert!(broken.is_empty(), "{broken:?}");
    let unsent = outcome.sent.unsent + outcome.sent.held_back;
    assert_eq!(report.records_generated + unsent, 100_000_000);
    assert!(unsent > 0 && outcome.notes.iter().any(|note| note.contains("never sent")), "{:?}", outcome.notes);
    assert_eq!(outcome.acked.corrected.len(), 100_000_000);
    // The whole backlog waited for the time to catch up.
    assert!(report.latency_us.corrected.p99 > 1_000_000, "{:?}", report.latency_us);
}
