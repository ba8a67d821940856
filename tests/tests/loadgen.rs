//! The load generator as a user runs it, against the real server: exit codes, the JSON contract, reconciliation.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use clap::Parser;
use postanalytics_server::arena::{SLAB_BYTES, SLABS_MIN};
use postanalytics_server::config::Config;
use postanalytics_server::config::flags::ServeFlags;
use postanalytics_server::config::machine::Machine;
use postanalytics_tests::{Server, ServerOptions, binary, free_port, skipped};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

fn loadgen(arguments: &[&str]) -> Output {
    Command::new(binary("loadgen")).args(arguments).stdin(Stdio::null()).output().unwrap()
}

fn text_of(output: &Output) -> String {
    format!("{}\n{}{}", output.status, String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Runs it against two shards with these options; checks everything that every run has to hold, and returns the report.
fn good_run(arguments: &[&str]) -> Value {
    let server = ServerOptions::default().shards(2).start();
    let folder = tempfile::tempdir().unwrap();
    let (json, hgrm) = (folder.path().join("report.json"), folder.path().join("report.hgrm"));
    let target = server.ingest.to_string();
    let files = ["--json", json.to_str().unwrap(), "--hgrm", hgrm.to_str().unwrap()];
    let output =
        loadgen(&[&["--target", &target, "--assert", "tnt_errors=0,in_doubt=0,reconciled=true"], &files, arguments].concat());
    assert_eq!(output.status.code(), Some(0), "{}", text_of(&output));
    assert!(text_of(&output).contains("latency p99"), "a table for people: {}", text_of(&output));
    let report: Value = serde_json::from_str(&std::fs::read_to_string(&json).unwrap()).unwrap();
    check_contract(&report);
    check_sums(&report, &server);
    let hgrm = std::fs::read_to_string(&hgrm).unwrap();
    assert!(hgrm.contains("Percentile") && hgrm.contains("#[Max"), "{hgrm}");
    server.stop();
    report
}

/// Every key of the contract, with a value of its type.
fn check_contract(report: &Value) {
    for name in ["target", "git"] {
        assert!(report[name].is_string(), "{name} in {report}");
    }
    for name in ["records_generated", "records_acked", "tnt_errors", "records_in_doubt"] {
        assert!(report[name].is_u64(), "{name} in {report}");
    }
    for name in ["records_per_second", "records_per_server_cpu_second", "mean_batch_records"] {
        assert!(report[name].is_number(), "{name} in {report}");
    }
    for name in ["generator_bound", "reconciled"] {
        assert!(report[name].is_boolean(), "{name} in {report}");
    }
    for column in ["corrected", "uncorrected"] {
        let quantiles = ["p50", "p90", "p99", "p999", "max"].map(|name| report["latency_us"][column][name].as_u64());
        assert!(quantiles.iter().all(Option::is_some) && quantiles.is_sorted(), "{column} in {report}");
    }
    for name in ["stored", "duplicate", "rss_bytes"] {
        assert!(report["server"][name].is_u64(), "server.{name} in {report}");
    }
    assert!(report["server"]["cpu_seconds"].is_number(), "{report}");
    assert!(report["server"]["rss_bytes"].as_u64() > Some(1 << 20), "{report}");
    assert!(report["machine"]["cpus"].as_u64() > Some(0) && report["machine"]["kernel"].is_string(), "{report}");
}

/// The sums, and the server's own word on them, asked past loadgen.
fn check_sums(report: &Value, server: &Server) {
    let number = |name: &str| report[name].as_u64().unwrap();
    assert!(number("records_generated") > 0, "{report}");
    assert_eq!(number("records_generated"), number("records_acked"), "{report}");
    assert_eq!((number("tnt_errors"), number("records_in_doubt")), (0, 0), "{report}");
    assert_eq!(report["server"]["stored"].as_u64().unwrap(), number("records_acked"), "{report}");
    assert_eq!(report["reconciled"], true);
    assert_eq!(server.total("records_stored"), number("records_acked"), "{report}");
    server.assert_laws();
    let status = server.status_json();
    let share = |shard: &Value| shard["records_stored"].as_u64().unwrap();
    assert!(status["shards"].as_array().unwrap().iter().all(|shard| share(shard) > 0), "both shards: {status}");
}

#[test]
fn open_loop_at_a_rate() {
    let report = good_run(&["--rate", "2k/s", "--duration", "2s", "--warmup", "0s"]);
    let generated = report["records_generated"].as_u64().unwrap();
    assert!((2_000..=4_100).contains(&generated), "2,000 a second for 2 s: {report}");
    assert!(report["latency_us"]["corrected"]["max"].as_u64() > Some(0), "{report}");
}

#[test]
fn several_clients_and_threads_with_a_warm_up() {
    let report = good_run(&[
        "--rate",
        "2k/s",
        "--duration",
        "1s",
        "--warmup",
        "1s",
        "--connections",
        "4",
        "--threads",
        "2",
        "--mix",
        "api",
        "--seed",
        "7",
    ]);
    let generated = report["records_generated"].as_u64().unwrap();
    assert!((2_000..=4_100).contains(&generated), "the warm-up counts for the sums: {report}");
}

#[test]
fn closed_loop() {
    let report = good_run(&["--saturate", "--duration", "1s", "--warmup", "0s"]);
    assert!(report["mean_batch_records"].as_f64() > Some(1.0), "{report}");
}

#[test]
fn pre_built_frames() {
    let report = good_run(&["--raw", "--saturate", "--duration", "1s", "--warmup", "0s", "--batch", "50", "--sources", "100000"]);
    assert_eq!(report["mean_batch_records"], 50.0, "{report}");
}

#[test]
fn pre_built_frames_at_a_rate() {
    good_run(&["--raw", "--rate", "5k/s", "--duration", "1s", "--warmup", "0s", "--connections", "2"]);
}

#[test]
fn a_log_is_replayed_plain_compressed_and_from_syslog() {
    let folder = tempfile::tempdir().unwrap();
    let line = |number: usize| {
        let second = number % 60;
        format!(
            "198.51.100.{} - - [17/May/2015:10:05:{second:02} +0000] \"GET /page/{number}?q=1 HTTP/1.1\" 200 12 \"-\" \"Mozilla/5.0\"\n",
            number % 50
        )
    };
    let write = |name: &str, text: String| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let plain = write("access.log", (0..400).map(line).collect());
    let syslog = write("syslog", (0..300).map(|n| format!("<190>May 17 10:05:03 web1 nginx[812]: {}", line(n))).collect());
    let broken = write("mixed.log", format!("{}this is no line of an access log\n{}", line(1), line(2)));
    let mut files = vec!["--replay", &plain, "--replay", &syslog, "--replay", &broken];
    let mut lines = 702;
    let gzip = write("old.log", (0..500).map(line).collect());
    let compressed = format!("{gzip}.gz");
    if compress(Path::new(&gzip)) {
        files.extend(["--replay", &compressed]);
        lines += 500;
    } else {
        skipped("a_log_is_replayed_plain_compressed_and_from_syslog", "there is no gzip: without the compressed log");
    }
    let report = good_run(&files);
    assert_eq!(report["records_generated"], lines, "{report}");
}

#[test]
fn secrets_of_a_log_that_is_replayed_do_not_leave() {
    let (server, folder) = (Server::new(), tempfile::tempdir().unwrap());
    let log = folder.path().join("access.log");
    let line = "198.51.100.7 - - [17/May/2015:10:05:03 +0000] \"GET /a4111-1111-1111-1111/h4rmless-path?userpass=qu3ry-pl4nted&b=h4rmless-query HTTP/1.1\" \
                200 12 \"http://bob:pl4nted-p@ss@a.example/h4rmless-referer\" \"h4rmless-agent (token=4gent-pl4nted)\"\n";
    std::fs::write(&log, line).unwrap();
    let target = server.ingest.to_string();
    let output = loadgen(&["--target", &target, "--replay", log.to_str().unwrap()]);
    assert!(output.status.success(), "{}", text_of(&output));
    assert_eq!(server.total("records_stored"), 1);
    let planted = ["4111-1111", "qu3ry-pl4nted", "pl4nted-p@ss", "4gent-pl4nted"];
    let marks = ["h4rmless-path", "h4rmless-query", "h4rmless-referer", "h4rmless-agent"];
    assert_eq!(server.holds(&[&planted[..], &marks].concat()), marks);
    let (_, page) = server.get("/requests?source=198.51.100.7");
    let page: serde_json::Value = serde_json::from_str(&page).unwrap();
    let request = &page["requests"][0];
    assert_eq!((&request["path"], &request["query"]), (&"/a***/h4rmless-path".into(), &"userpass=***&b=h4rmless-query".into()));
}

fn compress(path: &Path) -> bool {
    Command::new("gzip").arg(path).status().is_ok_and(|status| status.success())
}

#[test]
fn a_broken_assertion_is_exit_code_1() {
    let server = Server::new();
    let target = server.ingest.to_string();
    let short = ["--target", &target, "--rate", "500/s", "--duration", "1s", "--warmup", "0s"];
    for broken in ["records_acked<10", "tnt_errors=0,p50>50s"] {
        let output = loadgen(&[&short[..], &["--assert", broken]].concat());
        assert_eq!(output.status.code(), Some(1), "{}", text_of(&output));
        let said = broken.rsplit(',').next().unwrap();
        assert!(text_of(&output).contains(&format!("BROKEN: {said}")), "{}", text_of(&output));
    }
    let output = loadgen(&[&short[..], &["--assert", "records_acked>10,tnt_errors=0"]].concat());
    assert_eq!(output.status.code(), Some(0), "{}", text_of(&output));
}

#[test]
fn a_latency_that_nobody_measured_breaks_its_assertion() {
    let server = Server::new();
    let (target, folder) = (server.ingest.to_string(), tempfile::tempdir().unwrap());
    let empty = folder.path().join("empty.log");
    std::fs::write(&empty, "").unwrap();
    let output = loadgen(&["--target", &target, "--replay", empty.to_str().unwrap(), "--assert", "p99<5ms"]);
    assert_eq!(output.status.code(), Some(1), "{}", text_of(&output));
    assert!(text_of(&output).contains("BROKEN: p99<5ms (found no latency"), "{}", text_of(&output));
}

#[test]
fn a_log_is_replayed_in_its_own_time() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("access.log");
    let line = |second: u32| {
        format!("198.51.100.{second} - - [17/May/2015:10:05:{second:02} +0000] \"GET / HTTP/1.1\" 200 12 \"-\" \"-\"\n")
    };
    std::fs::write(&log, (0..60).map(line).collect::<String>()).unwrap();
    let started = Instant::now();
    let report = good_run(&["--replay", log.to_str().unwrap(), "--replay-speed", "60"]);
    assert!(started.elapsed() >= Duration::from_millis(980), "59 s at 60 times their speed: {:?}", started.elapsed());
    assert_eq!(report["records_generated"], 60, "{report}");
}

#[test]
fn a_result_that_cannot_be_written_is_said_before_the_run() {
    for option in ["--json", "--hgrm"] {
        let target = format!("127.0.0.1:{}", free_port());
        let output = loadgen(&["--target", &target, option, "/nowhere/result", "--duration", "60s"]);
        assert_eq!(output.status.code(), Some(3), "{}", text_of(&output));
        assert!(text_of(&output).contains("cannot write /nowhere/result"), "{}", text_of(&output));
    }
}

/// The report that a run with these options writes, and how it ended.
fn reported(arguments: &[&str]) -> (Output, Value) {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("report.json");
    let output = loadgen(&[arguments, &["--json", json.to_str().unwrap()]].concat());
    let text = std::fs::read_to_string(&json).unwrap_or_default();
    let report = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {}", text_of(&output)));
    (output, report)
}

/// A search ends with a rate that held three times, or says why there is none. How high it comes is this machine's affair.
#[test]
fn a_search_for_the_highest_rate_confirms_what_it_says() {
    let server = ServerOptions::default().start();
    let target = server.ingest.to_string();
    for mode in [&["--rate", "2k/s"][..], &["--raw", "--rate", "20k/s", "--batch", "16"]] {
        let times = ["--target", &target, "--duration", "200ms", "--warmup", "50ms"];
        let (output, report) = reported(&[&times[..], &["--find-max", "--slo", "p50=100ms,p99=1s"], mode].concat());
        let (found, said) = (&report["find_max"], text_of(&output));
        check_contract(&report);
        let steps = found["steps"].as_array().unwrap();
        assert_eq!(found["slo"], serde_json::json!(["p50=100ms", "p99=1s"]), "{found}");
        assert_eq!(said.matches("/s  holds").count() + said.matches("/s  does not hold").count(), steps.len(), "{said}");
        assert_eq!(output.status.code(), Some(if found["confirmed_rate"].is_u64() { 0 } else { 1 }), "{said}");
        assert!(found["bound_by"].is_string(), "no machine sends a thousand million records: {found}");
        if let Some(rate) = found["confirmed_rate"].as_u64() {
            let confirmations = &steps[steps.len() - 3..];
            let is_confirmation = |step: &Value| step["rate"] == rate && step["purpose"] == "confirm" && step["cause"].is_null();
            assert!(confirmations.iter().all(is_confirmation), "{found}");
            assert!(
                said.contains("confirmed 3 times") && report["generator_bound"] == false && report["tnt_errors"] == 0,
                "{said}"
            );
            let is_above = |step: &&Value| step["rate"].as_u64() > Some(rate) && step["cause"] == found["bound_by"];
            assert!(steps.iter().any(|step| is_above(&step)), "{found}");
        }
    }
    server.assert_laws();
}

#[test]
fn an_objective_that_nobody_can_meet_is_exit_code_1() {
    let server = Server::new();
    let target = server.ingest.to_string();
    let times = ["--target", &target, "--duration", "100ms", "--warmup", "0s", "--rate", "200/s"];
    let (output, report) = reported(&[&times[..], &["--find-max", "--slo", "p50=1us"]].concat());
    assert_eq!(output.status.code(), Some(1), "{}", text_of(&output));
    assert!(report["find_max"]["confirmed_rate"].is_null(), "{report}");
    assert!(text_of(&output).contains("no rate could be confirmed"), "{}", text_of(&output));
}

#[test]
fn two_generators_at_once_are_one_report() {
    let server = ServerOptions::default().shards(2).start();
    let (target, folder) = (server.ingest.to_string(), tempfile::tempdir().unwrap());
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let run = |name: &str, rate: &str| {
        let options = ["--target", &target, "--rate", rate, "--duration", "1s", "--warmup", "200ms", "--json", &path(name)];
        Command::new(binary("loadgen")).args(options).stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap()
    };
    let mut generators = [run("a.json", "1k/s"), run("b.json", "2k/s")];
    assert!(generators.iter_mut().all(|generator| generator.wait().unwrap().success()));
    let output = loadgen(&["merge", &path("a.json"), &path("b.json"), "--json", &path("both.json"), "--assert", "tnt_errors=0"]);
    assert_eq!(output.status.code(), Some(0), "{}", text_of(&output));
    let read = |name: &str| serde_json::from_str::<Value>(&std::fs::read_to_string(path(name)).unwrap()).unwrap();
    let (a, b, both) = (read("a.json"), read("b.json"), read("both.json"));
    check_contract(&both);
    check_sums(&both, &server);
    let max = |report: &Value| report["latency_us"]["corrected"]["max"].as_u64().unwrap();
    assert_eq!(max(&both), max(&a).max(max(&b)));
    let rate = |report: &Value| report["records_per_second"].as_f64().unwrap();
    assert!((rate(&both) - rate(&a) - rate(&b)).abs() < 0.1, "{both}");
    // A third run, later: never one load with the others.
    assert!(run("late.json", "1k/s").wait().unwrap().success());
    for (files, word) in
        [(["a.json", "late.json"], "apart"), (["a.json", "a.json"], "twice"), (["a.json", "missing.json"], "missing.json")]
    {
        let output = loadgen(&["merge", &path(files[0]), &path(files[1])]);
        assert_eq!(output.status.code(), Some(3), "{}", text_of(&output));
        assert!(text_of(&output).contains(word), "{}", text_of(&output));
    }
    server.stop();
}

const ATTACKS: [(&str, u64); 6] =
    [("brute-force", 6), ("credential-stuffing", 6), ("forced-browsing", 4), ("bola", 30), ("scanner", 2), ("probing", 5)];

#[test]
fn attackers_are_listed_by_another_client_and_visitors_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let detectors = ["brute_force", "credential_stuffing", "forced_browsing", "bola", "scanner", "probing"];
    let config: String = detectors.iter().map(|name| format!("[detectors.{name}]\naction = \"denylist\"\n")).collect();
    std::fs::write(path("rules.toml"), config).unwrap();
    let server = ServerOptions::default().shards(2).arguments(&["--config", &path("rules.toml")]).start();
    let target = server.ingest.to_string();
    let attacks: Vec<String> = ATTACKS.iter().map(|(name, _)| format!("{name}:sources=20")).collect();
    let mut arguments = vec!["--target", &target, "--rate", "2k/s", "--warmup", "1s", "--duration", "2s", "--threads", "2"];
    attacks.iter().for_each(|attack| arguments.extend(["--attack", attack]));
    let (json, truth) = (path("report.json"), path("truth.jsonl"));
    arguments.extend(["--json", &json, "--truth", &truth]);
    arguments.extend(["--assert", "attackers_not_listed=0,benign_listed=0,verdict_max>0,tnt_errors=0"]);
    let output = loadgen(&arguments);
    assert_eq!(output.status.code(), Some(0), "{}", text_of(&output));
    assert!(text_of(&output).contains("time to verdict p99"), "{}", text_of(&output));
    let report: Value = serde_json::from_str(&std::fs::read_to_string(&json).unwrap()).unwrap();
    let summary = &report["attacks"];
    assert_eq!(
        ["attackers", "listed", "undecided"].map(|name| summary[name].as_u64()),
        [Some(120), Some(120), Some(0)],
        "{report}"
    );
    let times = ["p50", "p99", "max"].map(|name| report["time_to_verdict_us"][name].as_u64().unwrap());
    assert!(times[0] > 0 && times.is_sorted(), "{report}");
    let truth: Vec<Value> =
        std::fs::read_to_string(&truth).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    for (name, record) in ATTACKS {
        let of_attack: Vec<&Value> = truth.iter().filter(|attacker| attacker["attack"] == name).collect();
        assert_eq!(of_attack.len(), 20, "{name}");
        for attacker in of_attack {
            assert_eq!((&attacker["deciding_record"], &attacker["records_sent"]), (&record.into(), &(2 * record).into()));
            assert!(attacker["first_us"].as_u64() < attacker["deciding_us"].as_u64(), "{attacker}");
        }
    }
    // The same attackers once more: they are listed already, so nothing could be measured.
    let output = loadgen(&["--target", &target, "--attack", "scanner:sources=20", "--duration", "1s", "--threads", "2"]);
    assert!(output.status.code() == Some(3) && text_of(&output).contains("another --seed"), "{}", text_of(&output));
    server.stop();
}

/// Where `--pin` says nothing of CPUs, a generator on the server's machine must not slow down what it measures.
#[test]
fn pinned_threads_leave_the_cpus_of_shards_alone_while_others_are_left() {
    let cpus_of_shards = |cpus: &[usize], shards: usize| -> Vec<usize> {
        let flags = ServeFlags {
            shards: Some(shards.to_string()),
            env_file: Some("/dev/null".to_owned()),
            node_yaml: Some("/dev/null".to_owned()),
            ..ServeFlags::default()
        };
        let config = Config::resolve(&flags, &|_| None).unwrap();
        let machine = Machine { cpus: cpus.to_vec(), cpu_quota: None, memory_bytes: 64 << 30, memory_limit_bytes: None };
        let plan = postanalytics_server::config::plan::Plan::make(&config, &machine, SLAB_BYTES, SLABS_MIN).unwrap();
        plan.cpus.into_iter().map(|cpu| cpu.expect("shards are pinned")).collect()
    };
    let arguments = postanalytics_loadgen::plan::Arguments::parse_from(["loadgen", "--pin"]);
    for cpus in [&[0, 1][..], &[0, 1, 2, 3], &[4, 5, 7, 8, 12]] {
        let plan = postanalytics_loadgen::plan::Plan::from_arguments(&arguments.run, cpus).unwrap();
        for shards in 1..=cpus.len() {
            let of_shards = cpus_of_shards(cpus, shards);
            let of_threads: Vec<usize> = (0..cpus.len() - shards).filter_map(|thread| plan.cpu_of(thread)).collect();
            assert_eq!(of_threads.len() + of_shards.len(), cpus.len());
            assert!(!of_threads.iter().any(|cpu| of_shards.contains(cpu)), "{of_threads:?} beside {of_shards:?}");
        }
    }
}

#[test]
fn a_server_that_lists_nobody_is_told() {
    let server = Server::new();
    let target = server.ingest.to_string();
    let output = loadgen(&["--target", &target, "--attack", "scanner", "--duration", "1s", "--warmup", "0", "--rate", "100/s"]);
    let text = text_of(&output);
    assert!(output.status.code() == Some(0) && text.contains("none came") && text.contains("action = \"denylist\""), "{text}");
    server.stop();
}

#[test]
fn an_unreachable_server_is_exit_code_3_and_says_what_to_look_at() {
    let target = format!("127.0.0.1:{}", free_port());
    for mode in [&["--rate", "10/s"][..], &["--raw", "--saturate"]] {
        let output = loadgen(&[&["--target", &target, "--duration", "1s", "--warmup", "0s"], mode].concat());
        assert_eq!(output.status.code(), Some(3), "{}", text_of(&output));
        let errors = String::from_utf8_lossy(&output.stderr);
        for part in ["cannot reach a postanalytics server", &target, "listening", "--allow"] {
            assert!(errors.contains(part), "{part:?} is missing: {errors}");
        }
    }
}

#[test]
fn wrong_usage_is_exit_code_2() {
    for wrong in [
        &["--rate", "fast"][..],
        &["--assert", "p99<5k"],
        &["--assert", "p98<1"],
        &["--rate", "1/s", "--saturate"],
        &["--duration", "0"],
        &["--find-max"],
        &["--find-max", "--slo", "p99<5ms"],
        &["merge", "one.json"],
        &["--attack", "ddos"],
        &["--attack", "bola", "--saturate"],
    ] {
        let output = loadgen(wrong);
        assert_eq!(output.status.code(), Some(2), "{wrong:?}: {}", text_of(&output));
    }
    let output = loadgen(&["--target", "127.0.0.1:1", "--replay", "/nowhere/access.log"]);
    assert_eq!(output.status.code(), Some(3), "{}", text_of(&output));
    assert!(text_of(&output).contains("/nowhere/access.log"), "{}", text_of(&output));
}
