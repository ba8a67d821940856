//! A client in another language, written from the protocol's description alone, against the real server.

#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

use postanalytics_tests::{ServerOptions, skipped};
use serde_json::Value;
use std::process::Command;

fn python() -> Option<&'static str> {
    let runs = |name: &&str| Command::new(name).arg("--version").output().is_ok_and(|output| output.status.success());
    ["python3"].into_iter().find(runs)
}

#[test]
fn the_python_encoder_is_understood() {
    let Some(python) = python() else { return skipped("the_python_encoder_is_understood", "there is no python3") };
    for shards in [1, 2] {
        let server = ServerOptions::default().shards(shards).start();
        let output = Command::new(python)
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/python/encoder.py"))
            .args([&server.ingest.to_string(), "--records", "2000", "--timeout", "60"])
            .output()
            .unwrap();
        let (out, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{}: {out}{errors}", output.status);
        let result: Value = serde_json::from_str(&out).unwrap();
        assert_eq!((&result["sent"], &result["acked"], &result["stored"]), (&2000.into(), &2000.into(), &2000.into()));
        let status = server.status_json();
        assert_eq!(status["totals"]["records_stored"], 2000);
        assert_eq!((&status["totals"]["records_rejected"], &status["totals"]["records_duplicate"]), (&0.into(), &0.into()));
        let of_each = status["shards"].as_array().unwrap().iter().map(|shard| shard["records_stored"].as_u64().unwrap());
        assert!(of_each.clone().all(|stored| stored > 0), "every shard got its share: {:?}", of_each.collect::<Vec<_>>());
        server.assert_laws();
        // Not only counted: what it wrote is what is read, attacks and unknown extensions as well.
        let (_, body) = server.get("/requests?limit=1000");
        let answer: Value = serde_json::from_str(&body).unwrap();
        let records = answer["requests"].as_array().unwrap();
        assert_eq!(records.len(), 1000);
        for record in records {
            assert_eq!((&record["host"], &record["user_agent"]), (&"shop.example".into(), &"encoder.py".into()), "{record}");
            assert_eq!((&record["method"], &record["query"]), (&"GET".into(), &"page=1".into()), "{record}");
        }
        let attack = records.iter().find(|record| record["status"] == 403).unwrap();
        assert_eq!(attack["hits"][0]["payload"], "1' or 1=1", "{attack}");
        assert_eq!(
            (&attack["extensions"][0]["tag"], &attack["extensions"][0]["value"]),
            (&65535.into(), &"unknown to all".into())
        );
        server.stop();
    }
}
