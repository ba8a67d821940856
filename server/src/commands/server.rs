//! `status` and `nodes`: the server at one instant.

use super::client::Client;
use super::table::Column::{self, Kept, Text};
use super::table::{cell, facts, table};
use super::{rows, shown};
use crate::config::ask_flags::StatusFlags;
use anyhow::Result;
use serde_json::Value;

const SHARDS: [Column; 9] = [
    Kept("SHARD", "/id"),
    Kept("CPU", "/cpu"),
    Kept("CONNECTIONS", "/connections"),
    Kept("RECEIVED", "/records_received"),
    Kept("STORED", "/records_stored"),
    Kept("LIVE", "/live_records"),
    Kept("REJECTED", "/records_rejected"),
    Kept("DUPLICATE", "/records_duplicate"),
    Kept("TIMEFRAME, s", "/timeframe_seconds"),
];

const NODES: [Column; 8] = [
    Kept("NODE", "/node"),
    Text("NAME", "/name"),
    Kept("PEER", "/peer"),
    Kept("CONNECTIONS", "/connections"),
    Kept("CLOCK BEHIND, ms", "/clock_offset_ms"),
    Text("VERSION", "/version"),
    Kept("NEWER THAN SERVER", "/outdated_server"),
    Kept("SESSION", "/session"),
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
