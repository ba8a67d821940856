//! A run past the client library: pre-built frames straight to the sockets, so that the generator costs little and the
//! server is what is measured.
//!
//! Everything a server sees is as from a client: Hello, keyed routing by the topology of Welcome, sequences, the window in
//! bytes, acks. Bodies are built once and shared ([`frames`]); each send only stamps a header (sequence, time, CRC).
//! Each thread drives its sessions' connections by poll; a session has one connection per shard.
//!
//! The frames are sent lap after lap: request ids and event times repeat every lap, and the event times are those of the
//! start. A server that counts or looks up request ids, or whose figures hang on event times, is not shown realistic traffic
//! by this mode; sources, sizes and routing are.
//!
//! In an open loop, frames that the server's window or socket holds back are late by the server's doing: that is not counted
//! as the generator's lateness, but the corrected latency has it, from the intended time on. Frames that were due and never
//! sent are counted and their waiting is in the corrected latency too.
//!
//! What it does not do: reconnect or resend. A connection that breaks ends the run, for its figures would mean nothing.

mod connection;
mod frames;

pub use connection::shake_hands;

use crate::clock::{
    Schedule, WAKE_INTERVAL_NS, duration_ns, monotonic_ns, process_cpu_us, set_fine_timers, sleep_until, timespec, unix_us,
    unix_us_at,
};
use crate::machine::pin_this_thread;
use crate::measure::{Acked, Live, Outcome, Sent, ServerSide};
use crate::plan::{Mode, Plan};
use crate::run::{CATCH_UP_NS, DRAIN_TIMEOUT, START_DELAY_NS, Timing, unreachable_server, watch};
use anyhow::{Context, Result, anyhow, bail};
use connection::{Connection, STATS_END, STATS_FINAL, STATS_FROM, Turn};
use frames::FramePool;
use postanalytics_protocol::frames::{ANY_SHARD, Stats};
use rustix::event::{PollFd, PollFlags, poll};
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, Ordering};

/// Records a frame where the command line does not say.
pub const BATCH_DEFAULT: usize = 64;
/// Longest time between two looks at the clock.
const POLL_NS_MAX: u64 = 50_000_000;

/// What one thread measured.
#[derive(Debug, Default)]
pub(crate) struct Measured {
    pub(crate) sent: Sent,
    pub(crate) acked: Acked,
    pub(crate) acked_total: u64,
    pub(crate) frames_sent: u64,
}

/// Makes the run. `stop` ends it early, and it is still reported.
pub fn run(plan: &Plan, stop: &AtomicBool) -> Result<Outcome> {
    let batch = plan.batch.unwrap_or(BATCH_DEFAULT);
    let mut sessions = connect(plan, &resolve(&plan.target)?)?;
    let welcome = sessions[0][0].welcome.clone();
    let pool = FramePool::build(plan, batch, &welcome)?;
    let live = Live::default();
    let timing = Timing::starting_at(monotonic_ns() + START_DELAY_NS, plan);
    let per_connection = Schedules { plan, batch, timing, shards: u64::from(welcome.shard_count) };
    per_connection.set(&mut sessions);
    let sessions_per_thread = plan.connections / plan.threads;
    let (driven, watched) = std::thread::scope(|scope| {
        let mut threads = Vec::new();
        for (thread, sessions) in sessions.chunks_mut(sessions_per_thread).enumerate() {
            let driver = Driver { plan, thread, timing, pool: &pool, live: &live, stop };
            // One that fails ends the others: the run cannot be reconciled any more.
            threads.push(scope.spawn(move || driver.run(sessions).inspect_err(|_| stop.store(true, Ordering::Relaxed))));
        }
        let watched = watch(&timing, &live, &|| threads.iter().all(|thread| thread.is_finished()), &mut || {
            (monotonic_ns(), process_cpu_us())
        });
        let mut driven = Vec::new();
        for thread in threads {
            driven.push(thread.join().map_err(|_| anyhow!("a sending thread panicked; this is a defect of loadgen"))??);
        }
        Ok::<_, anyhow::Error>((driven, watched))
    })?;
    let mut outcome = Outcome { has_schedule: plan.mode.has_schedule(), ..Outcome::default() };
    outcome.window_from_unix_us = unix_us_at(timing.from_ns);
    outcome.window_seconds = timing.window_seconds(watched.stopped_ns.unwrap_or(u64::MAX));
    let (_, cpu_before_us) = watched.before.unwrap_or_default();
    let (_, cpu_after_us) = watched.after.unwrap_or_else(|| (monotonic_ns(), process_cpu_us()));
    outcome.own_cpu_seconds = (cpu_after_us - cpu_before_us) as f64 / 1e6;
    add_up(&mut outcome, &driven, &sessions);
    outcome.notes.extend(outcome.sent.notes());
    outcome.notes.push(format!(
        "raw: {} pre-built frames of {batch} records, at most {} distinct sources, {} shards; request ids and event times \
         repeat every lap",
        pool.len(),
        pool.sources.min(outcome.sent.generated),
        welcome.shard_count
    ));
    Ok(outcome)
}

fn add_up(outcome: &mut Outcome, driven: &[Measured], sessions: &[Vec<Connection>]) {
    let mut frames = 0;
    for measured in driven {
        outcome.sent.merge(&measured.sent);
        outcome.acked.merge(&measured.acked);
        outcome.acked_total += measured.acked_total;
        frames += measured.frames_sent;
    }
    outcome.mean_batch_records = if frames == 0 { 0.0 } else { outcome.sent.generated as f64 / frames as f64 };
    let mut side = ServerSide::default();
    for stats in sessions.iter().flatten().filter_map(|connection| connection.stats[STATS_FINAL]) {
        side.stored += stats.session_records_stored;
        side.duplicate += stats.session_records_duplicate;
        side.rss_bytes = side.rss_bytes.max(stats.process_rss_bytes);
    }
    // The connections of the first session, one per shard, are asked at both ends of the window.
    let ends = |which: usize| sessions[0].iter().map(|connection| connection.stats[which]).collect::<Option<Vec<Stats>>>();
    if let (Some(from), Some(end)) = (ends(STATS_FROM), ends(STATS_END)) {
        let stored = |stats: &[Stats]| stats.iter().map(|stats| stats.shard_records_stored).sum::<u64>();
        let cpu_us = |stats: &[Stats]| stats.iter().map(|stats| stats.process_cpu_us).max().unwrap_or(0);
        side.stored_in_window = stored(&end).saturating_sub(stored(&from));
        side.cpu_seconds = cpu_us(&end).saturating_sub(cpu_us(&from)) as f64 / 1e6;
    } else {
        outcome.notes.push("the server's CPU time is not known: the run ended before its measured window did".to_owned());
    }
    outcome.server = Some(side);
}

fn resolve(target: &str) -> Result<Vec<SocketAddr>> {
    let addresses =
        target.to_socket_addrs().with_context(|| format!("--target {target}: write it as host:port or [IPv6]:port"))?;
    Ok(addresses.collect())
}

/// Opens every session: any shard first, which tells the topology, then the others. A name that has several addresses is one
/// server: the first address that takes a connection has them all.
fn connect(plan: &Plan, mut addresses: &[SocketAddr]) -> Result<Vec<Vec<Connection>>> {
    let open = |address, session, shard| Connection::open(address, session, shard, plan.congestion.as_deref());
    let unreachable = |error: anyhow::Error| anyhow!(unreachable_server(&plan.target, &format!("{error:#}")));
    let mut sessions: Vec<Vec<Connection>> = Vec::new();
    for _ in 0..plan.connections {
        let session = fastrand::u64(1..);
        let (at, first) = first_that_opens(addresses, |address| open(address, session, ANY_SHARD)).map_err(unreachable)?;
        addresses = &addresses[at..=at];
        let welcome = first.welcome.clone();
        let mut connections = vec![first];
        for shard in (0..welcome.shard_count).filter(|&shard| shard != welcome.shard) {
            connections.push(open(addresses[0], session, shard).map_err(unreachable)?);
        }
        connections.sort_by_key(|connection| connection.welcome.shard);
        let epochs = sessions.iter().flatten().chain(&connections).map(|connection| connection.welcome.epoch);
        if epochs.into_iter().any(|epoch| epoch != welcome.epoch) {
            bail!("the server changed its topology while connections were opened; start again");
        }
        sessions.push(connections);
    }
    Ok(sessions)
}

/// Tries the addresses in turn. The place of the one that works, and what it opens; if none does, why the last one does not.
fn first_that_opens<T>(addresses: &[SocketAddr], open: impl Fn(SocketAddr) -> Result<T>) -> Result<(usize, T)> {
    let mut last = anyhow!("the name has no address");
    for (at, &address) in addresses.iter().enumerate() {
        match open(address) {
            Ok(opened) => return Ok((at, opened)),
            Err(error) if addresses.len() > 1 => last = error.context(format!("{address}, the last of its addresses tried")),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Spreads an open loop's rate evenly over all connections.
struct Schedules<'a> {
    plan: &'a Plan,
    batch: usize,
    timing: Timing,
    shards: u64,
}

impl Schedules<'_> {
    fn set(&self, sessions: &mut [Vec<Connection>]) {
        let Mode::Open { rate } = self.plan.mode else { return };
        let streams = sessions.len() as u64 * self.shards;
        for (stream, connection) in sessions.iter_mut().flatten().enumerate() {
            connection.schedule = Some(Schedule::new(self.timing.start_ns, rate, self.batch as u64, streams, stream as u64));
        }
    }
}

/// One sending thread.
struct Driver<'a> {
    plan: &'a Plan,
    thread: usize,
    timing: Timing,
    pool: &'a FramePool,
    live: &'a Live,
    stop: &'a AtomicBool,
}

impl Driver<'_> {
    fn run(&self, sessions: &mut [Vec<Connection>]) -> Result<Measured> {
        pin_this_thread(self.plan.cpu_of(self.thread)).map_err(anyhow::Error::msg)?;
        set_fine_timers();
        sleep_until(self.timing.start_ns);
        let mut measured = Measured::default();
        let mut buffer = vec![0; 64 << 10];
        let mut window_ends = vec![(self.timing.from_ns, STATS_FROM), (self.timing.until_ns, STATS_END)];
        let mut give_up_ns = u64::MAX;
        let mut sending = true;
        let mut send_until_ns = self.timing.until_ns;
        loop {
            let now_ns = monotonic_ns();
            if self.stop.load(Ordering::Relaxed) {
                // What is due by now is still sent, as at the planned end.
                send_until_ns = send_until_ns.min(now_ns);
            }
            if sending && is_over(sessions, send_until_ns, now_ns) {
                sending = false;
                give_up_ns = now_ns + duration_ns(DRAIN_TIMEOUT);
                for connection in sessions.iter().flatten() {
                    connection.count_unsent(send_until_ns, now_ns, self.timing.from_ns, self.pool, &mut measured);
                }
            }
            // Only the first session is asked, see add_up(); asking at the end waits for what is sent already.
            while let Some(&(_, which)) = window_ends.first().filter(|end| end.0 <= now_ns || !sending) {
                window_ends.remove(0);
                if self.thread == 0 {
                    sessions[0].iter_mut().for_each(|connection| connection.ask(which));
                }
            }
            let mut turn =
                Turn { now_ns, unix_us: unix_us(), timing: self.timing, send_until_ns, pool: self.pool, measured: &mut measured };
            let before = (turn.measured.sent.generated, turn.measured.acked_total);
            let mut is_done = !sending;
            for connection in sessions.iter_mut().flatten() {
                connection.turn(&mut turn, sending, &mut buffer)?;
                if !sending {
                    connection.ask_finally();
                }
                is_done &= connection.is_done();
            }
            self.live.generated.fetch_add(measured.sent.generated - before.0, Ordering::Relaxed);
            self.live.acked.fetch_add(measured.acked_total - before.1, Ordering::Relaxed);
            if is_done {
                break;
            }
            if now_ns > give_up_ns {
                bail!("the server did not acknowledge everything within {} s of the end", DRAIN_TIMEOUT.as_secs());
            }
            wait(sessions, sending, now_ns, window_ends.first().map_or(u64::MAX, |end| end.0))?;
        }
        sessions.iter_mut().flatten().for_each(Connection::close);
        Ok(measured)
    }
}

/// Whether sending is over. An open loop that is behind still sends what was due before the end.
fn is_over(sessions: &[Vec<Connection>], send_until_ns: u64, now_ns: u64) -> bool {
    let is_behind = |connection: &Connection| connection.scheduled_ns().is_some_and(|due_ns| due_ns < send_until_ns);
    let is_late = now_ns >= send_until_ns.saturating_add(CATCH_UP_NS);
    is_late || now_ns >= send_until_ns && !sessions.iter().flatten().any(is_behind)
}

/// Waits until a socket is ready or something falls due.
fn wait(sessions: &[Vec<Connection>], sending: bool, now_ns: u64, boundary_ns: u64) -> Result<()> {
    let mut wake_ns = boundary_ns.min(now_ns + POLL_NS_MAX);
    let mut files: Vec<PollFd<'_>> = Vec::with_capacity(sessions.len());
    for connection in sessions.iter().flatten() {
        if let Some(due_ns) = connection.next_due_ns().filter(|_| sending) {
            wake_ns = wake_ns.min(due_ns.max(now_ns + WAKE_INTERVAL_NS));
        }
        let wanted = if connection.wants_to_write() { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        files.push(PollFd::new(connection.stream(), wanted));
    }
    match poll(&mut files, Some(&timespec(wake_ns.saturating_sub(now_ns)))) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error).context("poll"),
    }
}

#[cfg(test)]
mod tests;
