//! `status` and `nodes`: the server at one instant.

use super::client::Client;
use super::table::{Column, cell, facts, table};
use super::{rows, shown};
use crate::config::ask_flags::StatusFlags;
use anyhow::Result;
use serde_json::Value;

const SHARDS: [Column; 9] = [
    ("SHARD", "/id"),
    ("CPU", "/cpu"),
    ("CONNECTIONS", "/connections"),
    ("RECEIVED", "/records_received"),
    ("STORED", "/records_stored"),
    ("LIVE", "/live_records"),
    ("REJECTED", "/records_rejected"),
    ("DUPLICATE", "/records_duplicate"),
    ("TIMEFRAME, s", "/timeframe_seconds"),
];

const NODES: [Column; 8] = [
    ("NODE", "/node"),
    ("NAME", "/name"),
    ("PEER", "/peer"),
    ("CONNECTIONS", "/connections"),
    ("CLOCK BEHIND, ms", "/clock_offset_ms"),
    ("VERSION", "/version"),
    ("NEWER THAN SERVER", "/outdated_server"),
    ("SESSION", "/session"),
];

/// `postanalytics status`
pub(crate) fn status(flags: &StatusFlags) -> Result<String> {
    let answer = Client::new(&flags.ask)?.get("/status", &[])?;
    Ok(shown(&flags.ask, &answer, |status| {
        let megabytes = |pointer: &str| status.pointer(pointer).and_then(Value::as_u64).unwrap_or(0) >> 20;
        let fact = |pointer: &str| cell(status.pointer(pointer).unwrap_or(&Value::Null));
        let facts = facts(&[
            ("version", fact("/version")),
            ("server id", fact("/server_id")),
            ("deployment id", fact("/deployment_id")),
            ("ready", fact("/ready")),
            ("detectors run", fact("/detectors_run")),
            ("up", format!("{} s", fact("/uptime_seconds"))),
            ("CPU time", format!("{} s", fact("/cpu_seconds"))),
            ("connections", fact("/connections")),
            ("arena", format!("{} of {} MiB used", megabytes("/arena/bytes_used"), megabytes("/arena/bytes_total"))),
            ("timeframe", format!("{} s, {}", fact("/timeframe/seconds"), fact("/timeframe/level"))),
            ("arena for 900 s", format!("{} GB", fact("/timeframe/arena_gb_for_900s"))),
        ]);
        format!("{facts}\n{}", table(rows(status, "shards"), &SHARDS, "no shard runs yet"))
    }))
}

/// `postanalytics nodes`
pub(crate) fn nodes(flags: &StatusFlags) -> Result<String> {
    let answer = Client::new(&flags.ask)?.get("/status", &[])?;
    let clients = answer["clients"].clone();
    Ok(shown(&flags.ask, &clients, |clients| {
        table(clients.as_array().map_or(&[], Vec::as_slice), &NODES, "no filtering node is connected")
    }))
}
