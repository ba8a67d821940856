//! An idle client costs next to nothing. Alone in its process, because it counts how often the background thread wakes.

#![forbid(unsafe_code)]

use postanalytics_client::Client;
use std::net::TcpListener;
use std::time::Duration;

/// How often the thread of this name has gone to sleep, and which signals it blocks.
fn thread_status() -> Option<(u64, String)> {
    let tasks = std::fs::read_dir("/proc/self/task").ok()?.filter_map(Result::ok);
    let statuses = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("status")).ok());
    let status = statuses.into_iter().find(|status| status.contains("\tpa-client\n"))?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(|rest| rest.trim().to_owned());
    Some((field("voluntary_ctxt_switches:")?.parse().ok()?, field("SigBlk:")?))
}

#[test]
fn an_idle_client_sleeps_with_all_signals_blocked() {
    // Accepts and never says Welcome: the client waits five seconds for that.
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let client = Client::builder().server(listener.local_addr().expect("bound").to_string()).build().expect("built");
    std::thread::sleep(Duration::from_millis(300));
    let (before, blocked) = thread_status().expect("the thread is there, by its name");
    std::thread::sleep(Duration::from_secs(2));
    let (after, _) = thread_status().expect("still there");
    assert!(after - before <= 3, "it woke {} times in two idle seconds", after - before);
    // All of 1 to 31 but SIGKILL and SIGSTOP, which nobody can block.
    let blocked = u64::from_str_radix(&blocked, 16).expect("hexadecimal");
    assert_eq!(blocked & 0x7fff_ffff, 0x7fff_ffff & !(1 << 8 | 1 << 18), "{blocked:x}");
    drop(client);
}
