//! One run on the client library: sessions are connected, threads send, the window is measured, everything is drained, asked
//! about and reconciled.
//!
//! Threads: the calling thread watches (live line, snapshots of client and server at both ends of the window); the sending
//! threads are in [`send`]; each session has its client's background thread, on which acknowledgements are measured.
//! Records of the warm-up count in the reconciliation and in nothing else.

mod send;
mod stream;
mod watch;

pub use watch::{CATCH_UP_NS, Timing, Watched, watch};

use crate::attack::campaign::Campaign;
use crate::attack::witness::Witness;
use crate::clock::{duration_ns, monotonic_ns, process_cpu_us, unix_us_at};
use crate::machine::pin_this_thread;
use crate::measure::{Acked, Live, Outcome, Sent, ServerSide};
use crate::open_files::used_up;
use crate::plan::{Mode, Plan};
use crate::replay::LogReader;
use crate::traffic::Pool;
use anyhow::{Result, anyhow, bail};
use postanalytics_client::{AckedRecord, BuildError, Client, ClientBuilder, ServerStats};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long connecting, asking, and the last acknowledgements may take.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const STATS_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the last records of a run may take to be acknowledged, all sessions together.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// How far the server's clock and this one may drift apart before it looks like a restart.
const UPTIME_SLACK_NS: u64 = 500_000_000;
/// Most records of a batch, as the client has it where nobody asks for more.
const BATCH_RECORDS_MAX: usize = 4096;
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
    /// When the last one came, by the client's clock.
    latest_us: AtomicU64,
    /// Locked once for each ack frame, by one thread; by others only when they are done.
    measured: Mutex<Acked>,
}

/// Client and servers at one moment.
#[derive(Clone, Default)]
struct Snapshot {
    /// When the server was asked, and when it had answered.
    asked_ns: u64,
    at_ns: u64,
    own_cpu_us: u64,
    records_sent: u64,
    batches_sent: u64,
    /// In the order in which they were given, without those that are away; none if they could not be asked.
    servers: Vec<Option<ServerStats>>,
}

/// Makes the run. `stop` ends it early, and it is still reported.
pub fn run(plan: &Plan, stop: &AtomicBool) -> Result<Outcome> {
    let mut replay = match &plan.mode {
        Mode::Replay { files, .. } => Some(LogReader::new(files)?),
        _ => None,
    };
    let live = Arc::new(Live::default());
    let campaign = Campaign::new(plan).map_err(anyhow::Error::msg)?;
    let sessions = connect(plan, &live)?;
    let witness = if campaign.is_empty() { None } else { Some(witness(plan, &campaign)?) };
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
            let sender = send::Sender { plan, thread, sessions, timing, live: &live, stop, campaign: &campaign };
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
    let mut outcome = finish(plan, sessions, &timing, &sent, start, watched);
    if let Some(witness) = witness {
        let of_threads: Vec<Vec<u64>> = sent.iter().map(|done| done.attack_records.clone()).collect();
        let attackers = campaign.attackers(&timing, outcome.window_from_unix_us, &of_threads);
        let attacks = witness.finish(attackers, plan.sources);
        outcome.notes.extend(attacks.summary.notes());
        outcome.attacks = Some(attacks);
    }
    Ok(outcome)
}

/// The client that waits for verdicts.
fn witness(plan: &Plan, campaign: &Campaign) -> Result<Witness> {
    let timing = Timing { start_ns: 0, from_ns: 0, until_ns: u64::MAX };
    Witness::connect(plan, &campaign.attackers(&timing, 0, &[]))
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

/// Why a client cannot be started.
pub(crate) fn no_client(error: &BuildError) -> anyhow::Error {
    let text = format!("cannot start a client: {error}");
    anyhow!(used_up(&text).unwrap_or(text))
}

/// Why nothing can be sent, and what to look at: the server, unless it is loadgen that cannot open a connection.
pub fn unreachable_server(target: &str, error: &str) -> String {
    if let Some(text) = used_up(error) {
        return text;
    }
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
        let mut builder = plan
            .targets
            .iter()
            .fold(Client::builder(), ClientBuilder::server)
            .node_name("loadgen")
            .replay(matches!(plan.mode, Mode::Replay { .. }))
            .congestion_control(plan.congestion.clone())
            .on_acked(move |records| for_hook.take(records, &live));
        if let Some(batch) = plan.batch {
            // A batch of that many records must fit, whatever its records' sizes.
            builder = builder
                .batch_records_aim(batch)
                .batch_records_max(batch.max(BATCH_RECORDS_MAX))
                .batch_bytes((batch * plan.record_bytes * 5 / 4).clamp(64 << 10, 1 << 20));
        }
        let client = builder.build().map_err(|error| no_client(&error))?;
        let clock_offset_us = clock_offset_us(&client);
        Ok(Self { client, clock_offset_us, acks })
    }

    /// The client's clock at a time of the monotonic clock.
    fn clock_us(&self, monotonic_ns: u64) -> u64 {
        (monotonic_ns / 1000).saturating_add_signed(self.clock_offset_us)
    }

    /// When the last acknowledgement came, by the monotonic clock; 0 if none did.
    fn latest_ack_ns(&self) -> u64 {
        match self.acks.latest_us.load(Ordering::Relaxed) {
            0 => 0,
            latest_us => latest_us.saturating_add_signed(-self.clock_offset_us).saturating_mul(1000),
        }
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
        let latest_us = records.iter().map(|record| record.acked_us).max().unwrap_or(0);
        self.latest_us.fetch_max(latest_us, Ordering::Relaxed);
        live.acked.fetch_add(records.len() as u64, Ordering::Relaxed);
    }
}

fn snapshot(sessions: &[Session]) -> Snapshot {
    let asked_ns = monotonic_ns();
    let asked = sessions.first().and_then(|session| session.client.stats_of_servers(STATS_TIMEOUT).ok());
    let servers = asked.unwrap_or_default();
    let mut snapshot = Snapshot { asked_ns, at_ns: monotonic_ns(), own_cpu_us: process_cpu_us(), servers, ..Snapshot::default() };
    for session in sessions {
        let counters = session.client.counters();
        snapshot.records_sent += counters.acked + counters.in_flight + counters.in_doubt;
        snapshot.batches_sent += counters.batches_sent;
    }
    snapshot
}

impl Snapshot {
    /// Whether a server was restarted between this and a later snapshot: it is up for less than the time between them
    /// longer than it was.
    fn is_restarted(&self, later: &Self) -> bool {
        // However long each answer took to come, so much time has passed at least.
        let elapsed_us = later.asked_ns.saturating_sub(self.at_ns).saturating_sub(UPTIME_SLACK_NS) / 1000;
        let pairs = self.servers.iter().zip(&later.servers);
        let mut pairs = pairs.filter_map(|(before, after)| Some((before.as_ref()?, after.as_ref()?)));
        self.servers.len() == later.servers.len()
            && pairs.any(|(before, after)| after.uptime_us < before.uptime_us.saturating_add(elapsed_us))
    }

    /// All servers together, if all could be asked.
    fn sum(&self) -> Option<ServerStats> {
        let all = self.servers.iter().copied().collect::<Option<Vec<ServerStats>>>().filter(|all| !all.is_empty())?;
        let mut sum = ServerStats::default();
        all.iter().for_each(|stats| sum.add_server(stats));
        Some(sum)
    }
}

/// What is left of the time for something that all sessions share.
fn left_until(deadline_ns: u64) -> Duration {
    Duration::from_nanos(deadline_ns.saturating_sub(monotonic_ns()))
}

/// What the records end, or a signal, before its time, is measured to what came last: the end of sending or an acknowledgement,
/// for all acknowledgements count that come before the planned end. Noticing the end, waiting for what is lost and asking the
/// server is not in it.
fn end_of_window_ns(timing: &Timing, is_stopped: bool, ended_ns: u64, latest_ack_ns: u64) -> u64 {
    if is_stopped || timing.until_ns == u64::MAX { ended_ns.max(latest_ack_ns) } else { timing.until_ns }
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
    let mut outcome = Outcome { has_schedule: plan.mode.has_schedule(), ..Outcome::default() };
    let mut total = Sent::default();
    for done in sent {
        total.merge(&done.sent);
        outcome.notes.extend(done.note.clone());
    }
    outcome.notes.extend(total.notes());
    outcome.sent = total;
    drain(&sessions, &mut outcome.notes);
    let after = watched.after.unwrap_or_else(|| snapshot(&sessions));
    let before = watched.before.filter(|_| timing.from_ns != timing.start_ns).unwrap_or_else(|| start.clone());
    outcome.window_from_unix_us = unix_us_at(timing.from_ns);
    let ended_ns = sent.iter().map(|done| done.ended_ns).max().unwrap_or(0);
    let latest_ack_ns = sessions.iter().map(Session::latest_ack_ns).max().unwrap_or(0);
    outcome.window_seconds =
        timing.window_seconds(end_of_window_ns(timing, watched.stopped_ns.is_some(), ended_ns, latest_ack_ns));
    outcome.own_cpu_seconds = (after.own_cpu_us - before.own_cpu_us) as f64 / 1e6;
    let batches = after.batches_sent - before.batches_sent;
    let records = after.records_sent.saturating_sub(before.records_sent);
    outcome.mean_batch_records = if batches == 0 { 0.0 } else { records as f64 / batches as f64 };
    outcome.server = server_side(&sessions, &before, &after, &mut outcome.notes);
    outcome.stored_is_partial = partial_reason(plan, &sessions, &start);
    outcome.notes.extend(outcome.stored_is_partial.clone());
    let deadline_ns = monotonic_ns() + duration_ns(CLOSE_TIMEOUT);
    for session in sessions {
        let counters = session.client.close(left_until(deadline_ns));
        if !counters.laws_hold() {
            outcome.broken.push(format!("the client's counters do not add up: {counters:?}"));
        }
        outcome.acked_total += counters.acked;
        outcome.tnt_errors += counters.tnt_errors();
        outcome.in_doubt += counters.in_doubt;
        outcome.maybe_stored_elsewhere += counters.maybe_stored_elsewhere;
        outcome.acked.merge(&session.acks.measured.lock().unwrap_or_else(PoisonError::into_inner));
    }
    outcome
}

/// Waits until everything sent is settled. One deadline for all sessions, or a dead server would keep the run for hours.
fn drain(sessions: &[Session], notes: &mut Vec<String>) {
    let deadline_ns = monotonic_ns() + duration_ns(DRAIN_TIMEOUT);
    let (mut failed, mut last) = (0, String::new());
    for session in sessions {
        if let Err(error) = session.client.flush(left_until(deadline_ns)) {
            failed += 1;
            last = format!("{error}; {}", session.client.status().last_error);
        }
    }
    if failed > 0 {
        notes.push(format!("not everything was acknowledged at the end, in {failed} of {} sessions: {last}", sessions.len()));
    }
}

/// Why the servers may know only part of what the sessions sent, if they may.
fn partial_reason(plan: &Plan, sessions: &[Session], start: &Snapshot) -> Option<String> {
    let breaks: u64 = sessions.iter().map(|session| session.client.counters().disconnects).sum();
    if breaks == 0 {
        return None;
    }
    let end = snapshot(sessions);
    let restarted = if start.is_restarted(&end) { ", and a server was restarted" } else { "" };
    let away = plan.targets.iter().zip(&end.servers).filter(|(_, stats)| stats.is_none()).map(|(target, _)| target.as_str());
    let away: Vec<&str> = away.collect();
    let away = if away.is_empty() { String::new() } else { format!(", and away is {}", away.join(", ")) };
    Some(format!("connections broken during the run: {breaks}{restarted}{away}"))
}

fn server_side(sessions: &[Session], before: &Snapshot, after: &Snapshot, notes: &mut Vec<String>) -> Option<ServerSide> {
    let mut side = ServerSide::default();
    let deadline_ns = monotonic_ns() + duration_ns(STATS_TIMEOUT);
    for session in sessions {
        let stats = session
            .client
            .server_stats(left_until(deadline_ns))
            .inspect_err(|error| notes.push(format!("server statistics: {error}")))
            .ok()?;
        side.stored += stats.stored;
        side.duplicate += stats.duplicate;
        side.rss_bytes = side.rss_bytes.max(stats.rss_bytes);
        if stats.rejected > 0 {
            notes.push(format!("the server rejected {} records of one session", stats.rejected));
        }
    }
    match (before.sum(), after.sum()) {
        (Some(_), Some(_)) if before.is_restarted(after) => {
            notes.push("the server's CPU time is not known: one was restarted during the measured window".to_owned());
        }
        (Some(before), Some(after)) => {
            side.cpu_seconds = after.cpu_us.saturating_sub(before.cpu_us) as f64 / 1e6;
            side.stored_in_window = after.shard_records_stored.saturating_sub(before.shard_records_stored);
        }
        _ => notes.push("the server's CPU time is not known: it could not be asked at both ends of the window".to_owned()),
    }
    Some(side)
}

#[cfg(test)]
mod tests;
