//! The command under a limit on open files so low that it does not reach a server.

use std::net::TcpListener;
use std::process::{Command, Stdio};

/// Runs it against a port where nobody listens. Of the files that `ulimit` leaves it has three from the start, and one for --json.
fn loadgen_under(ulimit: &str, options: &[&str]) -> String {
    let port = TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("an address").port();
    let folder = tempfile::tempdir().expect("a folder");
    let output = Command::new("sh")
        .args(["-c", &format!("ulimit {ulimit} && exec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_loadgen")])
        .args(["--target", &format!("127.0.0.1:{port}"), "--json"])
        .arg(folder.path().join("report.json"))
        .args(options)
        .stdin(Stdio::null())
        .output()
        .expect("a shell");
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(3), "{errors}");
    errors
}

#[test]
fn the_soft_limit_is_raised() {
    let errors = loadgen_under("-S -n 4", &["--raw"]);
    assert!(errors.contains("refused") && errors.contains("cannot reach a postanalytics server"), "{errors}");
}

#[test]
fn the_hard_limit_is_named_and_no_server_blamed() {
    // At 4 there is no file for a raw socket or a client's eventfd, at 5 none for a client's first socket.
    for (limit, options) in [("4", &["--raw"][..]), ("4", &[]), ("5", &[])] {
        let errors = loadgen_under(&format!("-n {limit}"), options);
        let is_named = errors.contains(&format!("may have {limit} files open")) && errors.contains("`ulimit -n`");
        assert!(is_named && !errors.contains("firewall"), "{errors}");
    }
}
