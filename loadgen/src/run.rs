//! One run on the client library: sessions are connected, threads send, the window is measured, everything is drained, asked
//! about and reconciled.
//!
//! Threads: the calling thread watches (live line, snapshots of client and server at both ends of the window); the sending
//! threads are in [`send`]; each session has its client's background thread, on which acknowledgements are measured.
//! Records of the warm-up count in the reconciliation and in nothing else.

mod send;
mod watch;

pub use watch::{Timing, Watched, watch};

use crate::clock::{monotonic_ns, process_cpu_us};
use crate::machine::pin_this_thread;
use crate::measure::{Acked, Live, Outcome, Sent, ServerSide};
use crate::plan::{Mode, Plan};
use crate::replay::LogReader;
use crate::traffic::Pool;
use anyhow::{Context, Result, anyhow, bail};
use postanalytics_client::{AckedRecord, Client, ServerStats};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long connecting, asking, and the last acknowledgements may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const STATS_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the last records of a run may take to be acknowledged.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Time between the end of preparations and the first record, so that all threads are ready for it.
pub const START_DELAY_NS: u64 = 20_000_000;

/// One session: a client, and what its acknowledgements say.
struct Session {
    client: Client,
    /// Client clock minus CLOCK_MONOTONIC, µs.
    clock_offset_us: i64,
    acks: Arc<Acknowledgements>,
}

/// Written by the client's background thread, read at the end.
#[derive(Default)]
struct Acknowledgements {
    /// The measured window by the client's clock; nothing is measured before it is set.
    from_us: AtomicU64,
    until_us: AtomicU64,
    /// Locked once for each ack frame, by one thread; by another only after the run.
    measured: Mutex<Acked>,
}

/// Client and server at one moment.
#[derive(Clone, Copy, Default)]
struct Snapshot {
    at_ns: u64,
    own_cpu_us: u64,
    acked: u64,
    batches_sent: u64,
    server: Option<ServerStats>,
}

/// Makes the run. `stop` ends it early, and it is still reported.
pub fn run(plan: &Plan, stop: &AtomicBool) -> Result<Outcome> {
    let mut replay = match &plan.mode {
        Mode::Replay { files, .. } => Some(LogReader::new(files)?),
        _ => None,
    };
    let live = Arc::new(Live::default());
    let sessions = connect(plan, &live)?;
    let pool = Arc::new(Pool::new(plan.mix, plan.seed, plan.record_bytes));
    let start = snapshot(&sessions);
    let timing = Timing::starting_at(monotonic_ns() + START_DELAY_NS, plan);
    for session in &sessions {
        session.acks.from_us.store(session.clock_us(timing.from_ns), Ordering::Relaxed);
        session.acks.until_us.store(session.clock_us(timing.until_ns), Ordering::Relaxed);
    }
    let per_thread = plan.connections / plan.threads;
    let (sent, watched) = std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for (thread, sessions) in sessions.chunks(per_thread).enumerate() {
            let sender = send::Sender { plan, thread, sessions, timing, live: &live, stop };
            let (pool, replay) = (Arc::clone(&pool), replay.take());
            threads.push(scope.spawn(move || sender.run(pool, replay)));
        }
        let watched = watch(&timing, &live, &|| threads.iter().all(|thread| thread.is_finished()), &mut || snapshot(&sessions));
        let mut sent = Vec::new();
        for thread in threads {
            sent.push(thread.join().map_err(|_| anyhow!("a sending thread panicked; this is a defect of loadgen"))??);
        }
        Ok::<_, anyhow::Error>((sent, watched))
    })?;
    Ok(finish(plan, sessions, &timing, &sent, start, watched))
}

/// Builds the sessions, each on the CPU of the thread that will use it, and opens all their connections.
fn connect(plan: &Plan, live: &Arc<Live>) -> Result<Vec<Session>> {
    let per_thread = plan.connections / plan.threads;
    let mut sessions = Vec::new();
    for index in 0..plan.connections {
        let cpu = plan.cpu_of(index / per_thread);
        // A thread inherits the pinning of the one that starts it: a short-lived pinned thread builds the client.
        let built = std::thread::scope(|scope| {
            let builder = scope.spawn(|| {
                pin_this_thread(cpu).map_err(anyhow::Error::msg)?;
                Session::build(plan, live)
            });
            builder.join().map_err(|_| anyhow!("building a client panicked; this is a defect"))?
        });
        sessions.push(built?);
    }
    for session in &sessions {
        if session.client.server_stats(CONNECT_TIMEOUT).is_err() {
            bail!(unreachable_server(&plan.target, &session.client.status().last_error));
        }
    }
    Ok(sessions)
}

/// Why nothing can be sent, and what to look at.
pub fn unreachable_server(target: &str, error: &str) -> String {
    let error = if error.is_empty() { "it does not answer" } else { error };
    format!(
        "cannot reach a postanalytics server at {target}: {error}\n\
         check that it runs, that its log line `listening` names this address and port, that no firewall is between, \
         and that its allowlist (--allow) lets this host in"
    )
}

impl Session {
    fn build(plan: &Plan, live: &Arc<Live>) -> Result<Self> {
        let acks = Arc::new(Acknowledgements {
            from_us: AtomicU64::new(u64::MAX),
            until_us: AtomicU64::new(u64::MAX),
            ..Acknowledgements::default()
        });
        let (for_hook, live) = (Arc::clone(&acks), Arc::clone(live));
        let mut builder = Client::builder()
            .server(plan.target.as_str())
            .node_name("loadgen")
            .replay(matches!(plan.mode, Mode::Replay { .. }))
            .congestion_control(plan.congestion.clone())
            .on_acked(move |records| for_hook.take(records, &live));
        if let Some(batch) = plan.batch {
            // A batch of that many records must fit, whatever its records' sizes.
            builder = builder.batch_records_aim(batch).batch_bytes((batch * plan.record_bytes * 5 / 4).clamp(64 << 10, 1 << 20));
        }
        let client = builder.build().context("cannot start a client")?;
        let clock_offset_us = clock_offset_us(&client);
        Ok(Self { client, clock_offset_us, acks })
    }

    /// The client's clock at a time of the monotonic clock.
    fn clock_us(&self, monotonic_ns: u64) -> u64 {
        (monotonic_ns / 1000).saturating_add_signed(self.clock_offset_us)
    }
}

/// Client clock minus CLOCK_MONOTONIC, µs. One reading is not enough: this thread may be interrupted between the two clocks,
/// and often is, for the client's thread is just starting. The closest pair of several counts.
fn clock_offset_us(client: &Client) -> i64 {
    let pair = |_| {
        let before_ns = monotonic_ns();
        let client_us = client.clock_us();
        let after_ns = monotonic_ns();
        (after_ns - before_ns, client_us.cast_signed() - (before_ns.midpoint(after_ns) / 1000).cast_signed())
    };
    (0..16).map(pair).min().map_or(0, |(_, offset_us)| offset_us)
}

impl Acknowledgements {
    fn take(&self, records: &[AckedRecord], live: &Live) {
        let (from_us, until_us) = (self.from_us.load(Ordering::Relaxed), self.until_us.load(Ordering::Relaxed));
        let mut measured = self.measured.lock().unwrap_or_else(PoisonError::into_inner);
        for record in records {
            if (from_us..until_us).contains(&record.acked_us) {
                measured.in_window += 1;
            }
            // The token is the intended send time.
            if record.token >= from_us {
                let corrected_us = record.acked_us.saturating_sub(record.token);
                measured.record(corrected_us, record.acked_us.saturating_sub(record.accepted_us), 1);
            }
        }
        live.acked.fetch_add(records.len() as u64, Ordering::Relaxed);
    }
}

fn snapshot(sessions: &[Session]) -> Snapshot {
    let server = sessions.first().and_then(|session| session.client.server_stats(STATS_TIMEOUT).ok());
    let mut snapshot = Snapshot { at_ns: monotonic_ns(), own_cpu_us: process_cpu_us(), server, ..Snapshot::default() };
    for session in sessions {
        let counters = session.client.counters();
        snapshot.acked += counters.acked;
        snapshot.batches_sent += counters.batches_sent;
    }
    snapshot
}

/// Drains the sessions, asks the server about them, closes them and adds everything up.
fn finish(
    plan: &Plan,
    sessions: Vec<Session>,
    timing: &Timing,
    sent: &[send::Done],
    start: Snapshot,
    watched: Watched<Snapshot>,
) -> Outcome {
    let mut outcome = Outcome { has_schedule: matches!(plan.mode, Mode::Open { .. }), ..Outcome::default() };
    let mut total = Sent::default();
    for done in sent {
        total.merge(&done.sent);
        outcome.notes.extend(done.note.clone());
    }
    outcome.sent = total;
    for session in &sessions {
        if let Err(error) = session.client.flush(DRAIN_TIMEOUT) {
            outcome
                .notes
                .push(format!("not everything was acknowledged at the end: {error}; {}", session.client.status().last_error));
        }
    }
    // A replay without a duration is measured from its first record to its last acknowledgement.
    let after = watched.after.unwrap_or_else(|| snapshot(&sessions));
    let before = if timing.from_ns == timing.start_ns { start } else { watched.before.unwrap_or(start) };
    outcome.window_seconds = timing.window_seconds(watched.stopped_ns.unwrap_or(after.at_ns));
    outcome.own_cpu_seconds = (after.own_cpu_us - before.own_cpu_us) as f64 / 1e6;
    let batches = after.batches_sent - before.batches_sent;
    outcome.mean_batch_records = if batches == 0 { 0.0 } else { (after.acked - before.acked) as f64 / batches as f64 };
    outcome.server = server_side(&sessions, &before, &after, &mut outcome.notes);
    for session in sessions {
        let counters = session.client.close(CLOSE_TIMEOUT);
        if !counters.laws_hold() {
            outcome.broken.push(format!("the client's counters do not add up: {counters:?}"));
        }
        outcome.acked_total += counters.acked;
        outcome.tnt_errors += counters.tnt_errors();
        outcome.in_doubt += counters.in_doubt;
        outcome.acked.merge(&session.acks.measured.lock().unwrap_or_else(PoisonError::into_inner));
    }
    outcome
}

fn server_side(sessions: &[Session], before: &Snapshot, after: &Snapshot, notes: &mut Vec<String>) -> Option<ServerSide> {
    let mut side = ServerSide::default();
    for session in sessions {
        let stats = session
            .client
            .server_stats(STATS_TIMEOUT)
            .inspect_err(|error| notes.push(format!("server statistics: {error}")))
            .ok()?;
        side.stored += stats.stored;
        side.duplicate += stats.duplicate;
        side.rss_bytes = side.rss_bytes.max(stats.rss_bytes);
        if stats.rejected > 0 {
            notes.push(format!("the server rejected {} records of one session", stats.rejected));
        }
    }
    match (before.server, after.server) {
        (Some(before), Some(after)) if after.uptime_us >= before.uptime_us => {
            side.cpu_seconds = after.cpu_us.saturating_sub(before.cpu_us) as f64 / 1e6;
            side.stored_in_window = after.shard_records_stored.saturating_sub(before.shard_records_stored);
        }
        _ => notes.push("the server's CPU time is not known: it could not be asked at both ends, or was restarted".to_owned()),
    }
    Some(side)
}

#[cfg(test)]
mod tests;
