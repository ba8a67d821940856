//! The example of the client crate, which whoever links that crate begins with, against a real server.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use postanalytics_tests::{ServerOptions, client_example};
use serde_json::Value;
use std::path::Path;
use std::process::Command;

#[test]
fn the_example_is_short_and_works() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../client/examples/send.rs");
    assert!(std::fs::read_to_string(source).unwrap().lines().count() <= 40);
    let server = ServerOptions::default().shards(2).start();
    let output = Command::new(client_example()).arg(server.ingest.to_string()).output().unwrap();
    let (out, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let has = |line: &str| out.lines().any(|found| found.trim() == line);
    assert!(output.status.success() && has("192.0.2.7 denied: false"), "{}: {out}{errors}", output.status);
    assert!(has("acked: 1,") && has("lost: 0,") && has("in_doubt: 0,"), "{out}");
    assert_eq!(server.total("records_stored"), 1);

    let (_, page) = server.get("/requests?source=192.0.2.7");
    let page: Value = serde_json::from_str(&page).unwrap();
    let request = &page["requests"][0];
    assert_eq!((&request["host"], &request["path"]), (&"shop.example".into(), &"/.env".into()), "{page}");
    assert_eq!((&request["method"], &request["status"]), (&"GET".into(), &404.into()), "{page}");
    server.assert_laws();
}
