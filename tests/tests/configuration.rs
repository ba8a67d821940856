//! The configuration of the detectors in the hands of an operator: checked, printed, and read again by a server that runs.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use postanalytics_client::{Client, Request};
use postanalytics_tests::{Server, ServerOptions, binary, eventually};
use rustix::process::Signal;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

const LONG: Duration = Duration::from_secs(30);

fn postanalytics(arguments: &[&str]) -> Output {
    let mut command = Command::new(binary("postanalytics"));
    command.args(["--env-file=/dev/null", "--node-yaml=/dev/null"]).args(arguments).stdin(Stdio::null()).output().unwrap()
}

fn rules(folder: &Path, text: &str) -> PathBuf {
    let file = folder.join("rules.toml");
    std::fs::write(&file, text).unwrap();
    file
}

#[test]
fn what_is_printed_is_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let file = rules(
        folder.path(),
        "allowlist = ['10.0.0.0/8']\n[detectors.scanner]\naction = 'denylist'\n[[overrides]]\nhost = 'a'\ndetectors.crawl.events = 9\n",
    );
    let print = |file: &Path| {
        let output = postanalytics(&["--print-config", "--config", file.to_str().unwrap()]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let printed = print(&file);
    assert!(printed.contains("# arena = \"1.0\" (default)") && printed.contains("action = \"denylist\""), "{printed}");
    std::fs::write(&file, &printed).unwrap();
    assert_eq!(print(&file), printed, "what was printed reads the same");
    let output = postanalytics(&["--check-config", "--config", file.to_str().unwrap()]);
    assert_eq!((output.status.code(), output.stdout.starts_with(b"the configuration is right")), (Some(0), true));
}

#[test]
fn what_is_wrong_is_told_with_its_line_and_exit_code_2() {
    let folder = tempfile::tempdir().unwrap();
    let file = rules(folder.path(), "[detectors.crawl]\nevents = 0\n");
    let of_file = ["--check-config", "--config", file.to_str().unwrap()];
    for (arguments, why) in [
        (&of_file[..], "rules.toml: line 2, column 10: events = 0 is out of range"),
        (&["--check-config", "--arena", "x"], "--arena"),
    ] {
        let output = postanalytics(arguments);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), errors.contains(why)), (Some(2), true), "{errors}");
    }
}

/// A server would not start: the check says so, and so does the doctor.
#[test]
fn a_filter_of_the_log_that_is_none_is_told() {
    let filtered = |filter: &str, arguments: &[&str]| {
        let mut command = Command::new(binary("postanalytics"));
        command.args(arguments).args(["--env-file=/dev/null", "--node-yaml=/dev/null"]).stdin(Stdio::null());
        command.env("POSTANALYTICS_LOG_FILTER", filter).output().unwrap()
    };
    for (filter, code) in [("warning", 2), ("=a=b=c", 2), ("", 0), ("warn,glommio=error", 0)] {
        let output = filtered(filter, &["--check-config"]);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), errors.contains("give one of off, error, warn")), (Some(code), code == 2), "{errors}");
    }
    let output = filtered("warning", &["doctor", "--listen=127.0.0.1:0", "--status=none"]);
    let report = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.code() == Some(1) && report.contains("POSTANALYTICS_LOG_FILTER is 'warning'"), "{report}");
}

fn log_of(server: &Server) -> String {
    std::fs::read_to_string(&server.log).unwrap()
}

/// Six requests of a source by a tool, which is what the detector `scanner` looks for.
fn scan(server: &Server, source: [u8; 4]) {
    let client = Client::builder().server(server.ingest.to_string()).build().unwrap();
    for _ in 0..6 {
        let request =
            Request { client_ip: source.into(), path: b"/", status: 200, user_agent: b"sqlmap/1.7", ..Request::default() };
        client.try_send(&request).unwrap();
    }
    client.flush(LONG).unwrap();
}

#[test]
fn a_signal_reloads_all_but_what_only_a_restart_changes() {
    let folder = tempfile::tempdir().unwrap();
    let file = rules(folder.path(), "[detectors.scanner]\nevents = 100\n");
    let env = folder.path().join("env");
    std::fs::write(&env, "POSTANALYTICS_CONNECTIONS_MAX=50\n").unwrap();
    let arguments = ["--config", file.to_str().unwrap(), "--env-file", env.to_str().unwrap()];
    let server = ServerOptions::default().arguments(&arguments).start();
    scan(&server, [192, 0, 2, 1]);
    assert_eq!(server.metric("postanalytics_alerts_raised_total"), 0.0);

    rules(folder.path(), "[detectors.scanner]\nevents = 2\n[detectors.crawl]\nenabled = false\n");
    std::fs::write(&env, "POSTANALYTICS_CONNECTIONS_MAX=60\nPOSTANALYTICS_FRAME_DEADLINE=3s\n").unwrap();
    server.signal(Signal::HUP);
    eventually("reloaded", LONG, || log_of(&server).contains("configuration reloaded"));
    let log = log_of(&server);
    assert!(log.contains("this cannot be changed while the server runs") && log.contains("connections-max"), "{log}");
    assert!(log.contains("frame-deadline") && log.contains("scanner crawl"), "{log}");
    // The shard hears of it a moment after the log.
    eventually("the new threshold holds", LONG, || {
        scan(&server, [192, 0, 2, 1]);
        server.metric("postanalytics_alerts_raised_total") == 1.0
    });

    rules(folder.path(), "[detectors.scanner]\nevents = 1\nevent = 7\n");
    server.signal(Signal::HUP);
    eventually("refused", LONG, || log_of(&server).contains("the configuration is not reloaded, the old one goes on"));
    assert!(log_of(&server).contains("line 3, column 1: unknown field `event`"), "{}", log_of(&server));
    scan(&server, [192, 0, 2, 2]);
    eventually("the old threshold still holds", LONG, || server.metric("postanalytics_alerts_raised_total") == 2.0);

    // From here on it blocks: whoever reads the log is to see that.
    rules(folder.path(), "[detectors.scanner]\nevents = 2\naction = 'denylist'\n[detectors.crawl]\nenabled = false\n");
    server.signal(Signal::HUP);
    let changed =
        |line: &str| ["changed", "detectors.scanner.action", "monitor", "denylist"].iter().all(|word| line.contains(word));
    eventually("the action is told", LONG, || log_of(&server).lines().any(changed));
    server.stop();
}

#[test]
fn who_is_allowlisted_is_never_listed() {
    let folder = tempfile::tempdir().unwrap();
    let rule = "[detectors.scanner]\naction = 'denylist'\n";
    let file = rules(folder.path(), &format!("allowlist = ['192.0.2.0/24']\n{rule}"));
    let server = ServerOptions::default().arguments(&["--config", file.to_str().unwrap()]).start();
    scan(&server, [192, 0, 2, 1]);
    scan(&server, [198, 51, 100, 1]);
    eventually("two alerts", LONG, || server.metric("postanalytics_alerts_raised_total") == 2.0);
    assert_eq!(server.metric("postanalytics_verdicts_live"), 1.0);
    server.stop();
}
