//! `postanalytics doctor` and the generated documents, with the real binary: what it says must be what the server then does.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use postanalytics_tests::{ServerOptions, binary, free_port, skipped};
use serde_json::Value;
use std::net::TcpListener;
use std::process::{Command, Output, Stdio};

/// Runs the binary without what this machine's environment and files would add.
fn postanalytics(arguments: &[&str]) -> Output {
    let mut command = Command::new(binary("postanalytics"));
    for name in ["HOST", "PORT", "ALLOW", "SLAB_ALLOC_ARENA", "TARANTOOL_MEMORY_GB", "WALLARM_LABELS"] {
        command.env_remove(name);
    }
    command.args(arguments).stdin(Stdio::null()).output().unwrap()
}

/// `doctor` with ports of this test and a small arena, which later flags may change.
fn doctor(flags: &[&str]) -> Output {
    let (listen, status) = (format!("--listen=127.0.0.1:{}", free_port()), format!("--status=127.0.0.1:{}", free_port()));
    let mut all = vec!["doctor", "--env-file=/dev/null", "--node-yaml=/dev/null"];
    for (name, default) in
        [("--listen", &listen[..]), ("--status", &status), ("--arena", "--arena=0.0625"), ("--shards", "--shards=1")]
    {
        if !flags.iter().any(|flag| flag.starts_with(name)) {
            all.push(default);
        }
    }
    postanalytics(&[&all[..], flags].concat())
}

fn text_of(output: &Output) -> String {
    format!("{}\n{}{}", output.status, String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn finding<'a>(report: &'a Value, check: &str) -> &'a Value {
    let all = report["findings"].as_array().unwrap();
    all.iter().find(|finding| finding["check"] == check).unwrap_or_else(|| panic!("no {check} in {report}"))
}

#[test]
fn where_a_server_starts_nothing_is_wrong() {
    let output = doctor(&["--json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text_of(&output)));
    assert_eq!(output.status.code(), Some(0), "{report}");
    assert_ne!(report["judgement"], "not_fine");
    for check in [
        "kernel",
        "io_uring",
        "CPUs",
        "plan",
        "memory",
        "huge pages",
        "RLIMIT_AS",
        "RLIMIT_MEMLOCK",
        "RLIMIT_NOFILE",
        "clock source",
    ] {
        assert_ne!(finding(&report, check)["value"], "", "{report}");
    }
    let text = doctor(&[]);
    assert!(text_of(&text).contains("the server would start as configured"), "{}", text_of(&text));
    assert!(!text.stdout.contains(&0x1b), "a pipe gets no colours");
    // And so it is.
    ServerOptions::default().start().stop();
}

#[test]
fn a_taken_port_is_named_with_its_holder() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    for flag in ["--listen", "--status"] {
        let output = doctor(&["--json", &format!("{flag}=127.0.0.1:{port}")]);
        assert_eq!(output.status.code(), Some(1), "{}", text_of(&output));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let found = finding(&report, &format!("port {port}"));
        assert_eq!(found["judgement"], "not_fine");
        assert!(found["value"].as_str().unwrap().contains("Address already in use"), "{found}");
        assert!(found["remedy"].as_str().unwrap().contains(&format!("(pid {})", std::process::id())), "{found}");
    }
    drop(taken);
    let one = format!("127.0.0.1:{}", free_port());
    let twice = doctor(&[&format!("--listen={one}"), &format!("--status={one}")]);
    assert_eq!(twice.status.code(), Some(1), "one address for both: {}", text_of(&twice));
}

#[test]
fn a_bad_arena_is_told_before_the_server_stumbles_over_it() {
    for (arena, word) in
        [("--arena=1,5", "no comma"), ("--arena=0.001", "too small"), ("--arena=100000", "larger than the memory")]
    {
        let output = doctor(&[arena]);
        assert_eq!(output.status.code(), Some(1), "{}", text_of(&output));
        assert!(text_of(&output).contains("NOT FINE") && text_of(&output).contains(word), "{}", text_of(&output));
        assert!(text_of(&output).contains("kernel"), "the machine is judged all the same: {}", text_of(&output));
    }
    let fewer = doctor(&["--arena=0.0625", "--shards=8", "--no-pin"]);
    assert_eq!(fewer.status.code(), Some(1), "fewer shards than asked for: {}", text_of(&fewer));
}

#[test]
fn a_file_of_events_that_cannot_be_written_is_found_as_the_server_finds_it() {
    let folder = tempfile::tempdir().unwrap();
    for (events, word) in [(folder.path().to_path_buf(), "is a folder"), (folder.path().join("none/events"), "No such file")] {
        let events = format!("--events={}", events.display());
        let output = doctor(&[&events, "--json"]);
        assert_eq!(output.status.code(), Some(1), "{}", text_of(&output));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let found = finding(&report, "events");
        assert!(found["judgement"] == "not_fine" && found["value"].as_str().unwrap().contains(word), "{found}");
        let server = postanalytics(&[
            "--env-file=/dev/null",
            "--node-yaml=/dev/null",
            "--listen=127.0.0.1:0",
            "--status=127.0.0.1:0",
            "--arena=0.0625",
            "--shards=1",
            &events,
        ]);
        assert_eq!(server.status.code(), Some(1), "{}", text_of(&server));
    }
    let good = folder.path().join("events");
    let output = doctor(&[&format!("--events={}", good.display()), "--json"]);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&finding(&report, "events")["judgement"], good.exists()), (&Value::from("fine"), false), "{report}");
}

#[test]
fn it_reads_the_env_file_that_the_server_would_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("env");
    std::fs::write(&path, "SLAB_ALLOC_ARENA=100000\n").unwrap();
    let output =
        postanalytics(&["doctor", "--env-file", path.to_str().unwrap(), "--node-yaml=/dev/null", "--listen=127.0.0.1:0"]);
    assert_eq!(output.status.code(), Some(1), "{}", text_of(&output));
    assert!(text_of(&output).contains("arena=100000 (env file SLAB_ALLOC_ARENA)"), "{}", text_of(&output));
    let wrong = postanalytics(&["doctor", "--no-such-flag"]);
    assert_eq!(wrong.status.code(), Some(2), "{}", text_of(&wrong));
}

#[test]
fn limits_are_found_as_the_server_finds_them() {
    let program = binary("postanalytics");
    let limits = [
        ("-l 64", "0.0625", "RLIMIT_MEMLOCK", "may lock 64 KiB"),
        ("-n 20", "0.0625", "RLIMIT_NOFILE", "LimitNOFILE="),
        ("-v 800000", "1", "RLIMIT_AS", "cannot map 1024 MiB"),
    ];
    for (limit, arena, check, words) in limits {
        let run = |arguments: &str| {
            let script = format!("ulimit {limit} && exec {} {arguments}", program.display());
            Command::new("sh").args(["-c", &script]).stdin(Stdio::null()).output().unwrap()
        };
        let flags = format!(
            "--env-file=/dev/null --node-yaml=/dev/null --listen=127.0.0.1:0 --status=127.0.0.1:0 --arena={arena} --shards=1"
        );
        let output = run(&format!("doctor --json {flags}"));
        let Ok(report) = serde_json::from_slice::<Value>(&output.stdout) else {
            skipped("limits_are_found_as_the_server_finds_them", &format!("no shell, or its ulimit has no {limit}"));
            continue;
        };
        assert_eq!(finding(&report, check)["judgement"], "not_fine", "{report:#}");
        assert_eq!(output.status.code(), Some(1), "{}", text_of(&output));
        let server = run(&flags);
        assert_eq!(server.status.code(), Some(1), "{}", text_of(&server));
        assert!(text_of(&server).contains(words), "{}", text_of(&server));
    }
}

#[test]
fn completions_and_manual_pages_cover_every_subcommand() {
    let folder = tempfile::tempdir().unwrap();
    for program in ["postanalytics", "loadgen"] {
        let run = |arguments: &[&str]| {
            let output = Command::new(binary(program)).args(arguments).stdin(Stdio::null()).output().unwrap();
            assert!(output.status.success(), "{program} {arguments:?}: {}", text_of(&output));
            String::from_utf8(output.stdout).unwrap()
        };
        let help = run(&["--help"]);
        // Those that the help lists, but for itself.
        let listed = help.split_once("Commands:\n").unwrap().1.lines().take_while(|line| !line.is_empty());
        let names = listed.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
        let mut subcommands: Vec<&str> = names.filter_map(|line| line.split_whitespace().next()).collect();
        subcommands.retain(|name| *name != "help");
        assert!(subcommands.len() >= 3 && subcommands.contains(&"man"), "{help}");
        for shell in ["bash", "zsh", "fish"] {
            let completions = run(&["completions", shell]);
            assert!(subcommands.iter().all(|name| completions.contains(name)), "{program} for {shell}");
        }
        run(&["man", "--out", folder.path().to_str().unwrap()]);
        let page =
            |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(page(&format!("{program}.1")).contains(program));
        for name in &subcommands {
            let whole = page(&format!("{program}-{name}.1"));
            assert!(whole.contains(&format!("{program}\\-{name}")), "{whole}");
            assert_eq!(run(&["man", name]), whole, "one page alone is the same page");
        }
        // Those of subcommands of subcommands, too; whatever does something shows how.
        for file in std::fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()) {
            let Some(name) = file.strip_prefix(&format!("{program}-")).and_then(|name| name.strip_suffix(".1")) else { continue };
            assert_eq!(run(&["man", name]), page(&file), "{file}");
            let is_shown = program == "loadgen" || matches!(name, "completions" | "man") || page(&file).contains("Examples:");
            assert!(is_shown, "{file} has no examples");
        }
        let unknown = Command::new(binary(program)).args(["man", "nothing"]).output().unwrap();
        assert!(!unknown.status.success() && text_of(&unknown).contains(subcommands[0]), "{}", text_of(&unknown));
    }
    assert!(std::fs::read_to_string(folder.path().join("postanalytics-doctor.1")).unwrap().contains("\\-\\-json"));
}
