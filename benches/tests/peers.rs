//! A quick run of `peers` from end to end: the JSON has the promised keys, and every system has stored what was sent to it.
//! The program itself compares what is stored with what was sent; this test looks at the numbers again.

use postanalytics_benches::peers::install::Programs;
use postanalytics_loadgen::machine::allowed_cpus;
use serde_json::Value;
use std::process::Command;

const KEYS: [&str; 12] = [
    "system",
    "workload",
    "version",
    "records_per_second",
    "records_per_server_cpu_second",
    "p50_us",
    "p99_us",
    "p999_us",
    "bytes_per_record",
    "resident_bytes_per_record",
    "stored",
    "checksum",
];

#[test]
fn every_system_has_stored_what_was_sent() {
    if allowed_cpus().len() < 2 {
        eprintln!("SKIPPED peers: it needs two CPUs, one for the servers and one for the generator");
        return;
    }
    match Programs::find_or_fetch(true) {
        Ok(programs) if programs.are_here() => {}
        found => {
            let why = found.err().map_or_else(String::new, |error| format!(": {error:#}"));
            eprintln!("SKIPPED peers: tarantool or redis-server is not here (apt-get install tarantool redis-server){why}");
            return;
        }
    }
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("peers.json");
    let mut command = Command::new(env!("CARGO_BIN_EXE_peers"));
    command.args(["--quick", "--no-install", "--workload", "batched", "--workload", "batched_noindex", "--json"]).arg(&file);
    let output = command.output().expect("peers starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let json: Value = serde_json::from_str(&std::fs::read_to_string(&file).expect("a file")).expect("JSON");
    let lines = json.as_array().expect("an array");
    let found = |system: &str, workload: &str, path: &str| {
        let is_it = |line: &&Value| line["system"] == system && line["workload"] == workload && line["path"] == path;
        lines.iter().find(is_it).unwrap_or_else(|| panic!("no {system} {workload} {path} in {json}"))
    };
    let stores = [
        found("postanalytics", "batched", "raw"),
        found("postanalytics", "batched", "client"),
        found("tarantool", "batched", "raw"),
        found("tarantool", "batched_noindex", "raw"),
        found("redis", "batched", "raw"),
    ];
    for line in stores {
        assert!(line["stored"].as_u64().is_some_and(|rows| rows >= 20_000), "{line}");
        assert_eq!(line["checksum"], line["checksum_expected"], "{line}");
        for key in ["bytes_per_record", "resident_bytes_per_record"] {
            assert!(line[key].as_f64().is_some_and(|bytes| bytes > 400.0), "{key} in {line}");
        }
        match line["note"].as_str() {
            // The program goes on without it, and so does this test.
            Some(note) if note.contains("pidfd_getfd is refused") => {
                eprintln!("SKIPPED peers, settings of their sockets: {note}")
            }
            note => {
                assert_eq!(note, Some(""), "congestion control and TCP_NODELAY are as they should be: {line}");
                assert_eq!(line["congestion_server"], line["congestion"], "{line}");
            }
        }
    }
    let discard = found("discard", "batched", "raw");
    assert_eq!(discard["stored"], 0);
    for line in stores.into_iter().chain([discard]) {
        KEYS.iter().for_each(|key| assert!(!line[*key].is_null(), "{key} in {line}"));
        assert!(line["records_per_server_cpu_second"].as_f64().is_some_and(|rate| rate > 0.0), "{line}");
    }
    assert_eq!(stores[0]["wire_bytes_per_record"].as_f64().map(f64::round), Some(513.0), "{}", stores[0]);
}
