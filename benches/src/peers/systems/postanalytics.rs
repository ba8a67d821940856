//! Our own server: one pinned shard, and the whole way of a record. Its process is this very program, started with a hidden
//! subcommand that calls the server's own `run`.
//!
//! **Reading back.** The status pages show 8 MiB at most, so the surviving records are read where they lie: out of the slabs in
//! the server's memory (`/proc/PID/mem`, allowed for one's own children), by the layout that `arena/place.rs` documents. Every
//! body is validated again. The number of rows found must be the number that the server says are live.

use super::{ReadBack, Start};
use crate::peers::connection::{Connection, connect as connect_socket};
use crate::peers::measure::ratio;
use crate::peers::plan::{Plan, Workload};
use crate::peers::process::ServerProcess;
use crate::peers::records::{BROWSING_SOURCES, Record, Stored, hash_of_view};
use crate::peers::replies::Replies;
use anyhow::{Context, Result, bail, ensure};
use postanalytics_loadgen::machine::GIT_COMMIT;
use postanalytics_loadgen::raw::shake_hands;
use postanalytics_protocol::frames::ANY_SHARD;
use postanalytics_protocol::{BatchBuilder, DEFAULT_MAX_BODY_BYTES, FrameHeader, HEADER_BYTES, ValidBatch};
use postanalytics_server::arena::place::{PLACE_HEADER_BYTES, STATE_COMMITTED, STATE_OPEN, STATE_VOID};
use postanalytics_server::arena::{PlaceHeader, SLAB_BYTES, split_slabs};
use serde_json::Value;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::time::{Duration, Instant};

/// The hidden subcommand that runs the server.
pub const SUBCOMMAND: &str = "postanalytics-server";
/// Where the first place of a slab stands: behind a header and the filter of its sources. A test holds it against a log.
const FIRST_PLACE: usize = 64 + (16 << 10);
const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// Bytes of the smallest record, to bound how many fit.
const RECORD_BYTES_MIN: u64 = 512;

pub(super) fn command(at: &Start<'_>) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args([SUBCOMMAND, "serve", "--shards", "1", "--arena-dir", "none", "--env-file", "/dev/null"]);
    command.args(["--node-yaml", "/dev/null", "--arena", &at.plan.arena_gb.to_string()]);
    command.args(["--listen", &at.address.to_string(), "--status", &at.other.to_string()]);
    let connections = (at.connections + 100).to_string();
    command.args(["--connections-max", &connections, "--connections-per-address-max", &connections]);
    command.args(&at.plan.server_option);
    command.arg("--log-file").arg(at.folder.join("server.log"));
    if at.workload == Workload::Detectors {
        // An empty file: every detector, as it is by default.
        let config = at.folder.join("detectors.toml");
        File::create(&config)?;
        command.arg("--config").arg(config);
    }
    // The defaults are measured, whatever the environment says.
    for name in ["HOST", "PORT", "ALLOW", "SLAB_ALLOC_ARENA", "TARANTOOL_MEMORY_GB"] {
        command.env_remove(name);
    }
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"POSTANALYTICS_")) {
        command.env_remove(name);
    }
    command.stderr(File::create(at.folder.join("stderr.log"))?);
    Ok(command)
}

/// Waits until the arena is prefaulted.
pub(super) fn wait_ready(status: SocketAddr) -> Result<()> {
    let start = Instant::now();
    while !get(status, "/ready").is_ok_and(|(code, _)| code == 200) {
        ensure!(start.elapsed() < READY_TIMEOUT, "postanalytics is not ready within {} s", READY_TIMEOUT.as_secs());
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

pub(super) fn connect(address: SocketAddr, plan: &Plan, number: usize) -> Result<Connection> {
    let mut stream = connect_socket(address, &plan.congestion)?;
    let session = fastrand::u64(1..);
    let (_, assembler, body) = shake_hands(&mut stream, session, ANY_SHARD, &format!("peers-{number}"))?;
    Connection::new(stream, Replies::Frames { assembler: Box::new(assembler), body }, session)
}

/// A Batch frame of these records: its body, and the header to be stamped.
pub(super) fn encode(records: &[Record], out: &mut Vec<u8>) -> Result<Option<FrameHeader>> {
    let mut batch = BatchBuilder::default();
    for record in records {
        batch.push(&record.fields(), DEFAULT_MAX_BODY_BYTES as usize)?;
    }
    let mut frame = Vec::new();
    batch.encode_frame(0, 0, 0, &mut frame);
    let (header, body) = frame.split_first_chunk::<HEADER_BYTES>().context("a frame without a header: a defect")?;
    out.extend_from_slice(body);
    Ok(Some(FrameHeader::decode(header, u32::MAX)?))
}

pub(super) fn rows_max(plan: &Plan) -> u64 {
    let (request_slabs, _) = split_slabs((plan.arena_gb * f64::from(1 << 30)) as u64);
    request_slabs * SLAB_BYTES / RECORD_BYTES_MIN
}

/// A full request log has so many rows of this size at least: a record alone in its frame has a header of its place and up to 15 bytes
/// behind it, one slab was recycled just now, and of the others a quarter may be filters and ends that the next frame did not fit into.
pub(super) fn rows_min(plan: &Plan, wire_bytes: f64) -> u64 {
    let (request_slabs, _) = split_slabs((plan.arena_gb * f64::from(1 << 30)) as u64);
    let bytes = request_slabs.saturating_sub(1) * SLAB_BYTES / 4 * 3;
    ratio(bytes as f64, wire_bytes + PLACE_HEADER_BYTES as f64 + 15.0) as u64
}

pub(super) fn version() -> String {
    format!("{} {GIT_COMMIT}", env!("CARGO_PKG_VERSION"))
}

pub(super) fn read_back(process: &ServerProcess, status: SocketAddr) -> Result<ReadBack> {
    let (code, body) = get(status, "/status")?;
    ensure!(code == 200, "/status answered {code}: {body}");
    let page: Value = serde_json::from_str(&body)?;
    let number = |value: &Value| value.as_u64().with_context(|| format!("no number in {page}"));
    let (live, taken) = (number(&page["totals"]["live_records"])?, number(&page["totals"]["records_stored"])?);
    let used = number(&page["arena"]["bytes_used"])?;
    let stored = stored_records(process)?;
    ensure!(
        stored.rows == live,
        "{} records were found in the server's slabs, {live} are live by its own count; has the layout of a place changed?",
        stored.rows
    );
    Ok(ReadBack { stored, taken, bytes_per_record: ratio(used as f64, stored.rows as f64), ..ReadBack::default() })
}

/// Keys that detectors hold after all sources have come: one has room for a key a KiB of its arena.
pub(super) fn keys_min(plan: &Plan) -> f64 {
    f64::from(BROWSING_SOURCES).min(plan.arena_gb * f64::from(1 << 20) / 2.0)
}

/// Detectors that look at nothing would be fast: they must hold so many keys.
pub(super) fn detectors_were_at_work(status: SocketAddr, keys_min: f64) -> Result<()> {
    let (_, metrics) = get(status, "/metrics")?;
    let keys = metrics.lines().filter(|line| line.starts_with("postanalytics_keys_live"));
    let keys: f64 = keys.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum();
    ensure!(keys >= keys_min, "the detectors hold {keys} keys of {BROWSING_SOURCES} sources, {keys_min} at least were to be");
    Ok(())
}

/// Every committed record in the slabs of the server's memory.
fn stored_records(process: &ServerProcess) -> Result<Stored> {
    let memory = File::open(format!("/proc/{}/mem", process.id())).context("the server's memory cannot be opened")?;
    let maps = fs::read_to_string(format!("/proc/{}/maps", process.id()))?;
    let mut stored = Stored::default();
    let mut slab = vec![0; SLAB_BYTES as usize];
    for (start, end) in maps.lines().filter_map(private_range) {
        let mut at = start.next_multiple_of(SLAB_BYTES);
        while at + SLAB_BYTES <= end {
            let mut head = [0; FIRST_PLACE + PLACE_HEADER_BYTES];
            memory.read_exact_at(&mut head, at).context("the server's memory cannot be read")?;
            if first_place(&head).is_some() {
                memory.read_exact_at(&mut slab, at)?;
                records_of_slab(&slab, &mut stored)?;
            }
            at += SLAB_BYTES;
        }
    }
    Ok(stored)
}

/// Start and end of a private writable mapping without a file.
fn private_range(line: &str) -> Option<(u64, u64)> {
    let mut columns = line.split_whitespace();
    let (range, access, inode) = (columns.next()?, columns.next()?, columns.nth(2)?);
    let (start, end) = range.split_once('-')?;
    let is_file = inode != "0" && !line.contains("anon_hugepage");
    if !access.starts_with("rw-p") || is_file {
        return None;
    }
    Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
}

/// The header of a slab's first place, if these bytes begin a slab in use.
fn first_place(bytes: &[u8]) -> Option<PlaceHeader> {
    let header = PlaceHeader::decode(bytes.get(FIRST_PLACE..FIRST_PLACE + PLACE_HEADER_BYTES)?.try_into().ok()?);
    let is_state = matches!(header.state, STATE_OPEN | STATE_COMMITTED | STATE_VOID);
    (is_state && header.generation > 0 && header.previous == 0 && is_length(header.length)).then_some(header)
}

fn is_length(length: u32) -> bool {
    length.is_multiple_of(16) && (PLACE_HEADER_BYTES as u64..=SLAB_BYTES).contains(&u64::from(length))
}

/// The records of one slab: places follow each other as long as they are of the slab's generation.
fn records_of_slab(slab: &[u8], stored: &mut Stored) -> Result<()> {
    let Some(first) = first_place(slab) else { return Ok(()) };
    let (mut at, mut previous) = (FIRST_PLACE, 0);
    while let Some(bytes) = slab.get(at..at + PLACE_HEADER_BYTES) {
        let header = PlaceHeader::decode(bytes.try_into()?);
        let end = at + header.length as usize;
        let follows = header.generation == first.generation && header.previous == previous && is_length(header.length);
        if !follows || end > slab.len() {
            return Ok(());
        }
        if header.state == STATE_COMMITTED {
            let body = &slab[at + PLACE_HEADER_BYTES..end];
            let batch = ValidBatch::parse(header.schema, header.record_count, body);
            let batch = batch.map_err(|error| anyhow::anyhow!("a stored batch is not valid: {error}"))?;
            batch.records().for_each(|record| stored.add(hash_of_view(&record)));
        }
        (previous, at) = (at as u32, end);
    }
    Ok(())
}

/// GET over HTTP/1.1: status code and body.
fn get(address: SocketAddr, path: &str) -> Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let Some((head, body)) = answer.split_once("\r\n\r\n") else { bail!("no HTTP answer: {answer:?}") };
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).context("no code in an HTTP answer")?;
    Ok((code, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers::records::Corpus;
    use postanalytics_server::arena::Log;

    /// Without any peer at hand: the layout that is read here is the one that the server writes.
    #[test]
    fn what_a_log_stores_is_found_in_its_slab() {
        let corpus = Corpus::new();
        let mut log = Log::new(16).expect("memory");
        let mut expected = Stored::default();
        for frame in 0..3 {
            let numbers = frame * 64..(frame + 1) * 64;
            let mut body = Vec::new();
            let header = encode(&corpus.records[numbers.clone()], &mut body).expect("encoded").expect("a header");
            let place = log.reserve(body.len() as u32).expect("room");
            log.fill(&place, 0, &body, 0);
            let (record_count, schema) = (header.record_count, header.schema);
            log.commit(place, PlaceHeader { record_count, schema, arrival_us: 1, ..PlaceHeader::default() });
            numbers.for_each(|number| expected.add(corpus.hash(number)));
        }
        let mut found = Stored::default();
        records_of_slab(&log.memory()[..SLAB_BYTES as usize], &mut found).expect("valid");
        assert_eq!(found, expected);
    }
}
