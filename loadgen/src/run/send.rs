//! The sending loops of a thread: open loop, closed loop, replay.
//!
//! The open loop follows absolute deadlines and sends what fell due since the last wake-up, each record with its own
//! intended time; a server that stalls, or a generator that wakes late, shows in the corrected latency. A replay that is timed
//! has intended times too. What was due and is not sent within the time to catch up is counted, and its waiting with it.
//! Closed loop and replay keep a bound on the bytes that a client holds, so that its queue never fills: whatever is offered
//! is offered once.

use super::stream::Stream;
use super::{Session, Timing};
use crate::attack::campaign::Campaign;
use crate::clock::{WAKE_INTERVAL_NS, monotonic_ns, set_fine_timers, sleep_until, unix_us};
use crate::machine::pin_this_thread;
use crate::measure::{Acked, Live, Sent};
use crate::plan::{Mode, Plan, Speed};
use crate::replay::{LogClock, LogReader};
use crate::traffic::{Pool, Traffic};
use anyhow::{Result, bail};
use fastrand::Rng;
use postanalytics_client::Request;
use postanalytics_filter::LineFilter;
use postanalytics_protocol::{Source, shard_of};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};

/// Bytes that a client may hold, queued and in flight, in a closed loop or a replay: plenty to keep a server busy, and far
/// below the client's queue.
const HELD_BYTES_MAX: u64 = 8 << 20;
/// Records between two looks at clock and client.
const BURST: u64 = 64;
/// The same in a replay, whose records may be as long as a line may be.
const REPLAY_BURST: u64 = 16;
/// Longest sleep, so that a thread notices that the run is to end.
const SLEEP_NS_MAX: u64 = 50_000_000;
/// Pause of a closed loop whose clients are all full.
const FULL_PAUSE_NS: u64 = 100_000;

/// One sending thread and the sessions that are its own.
pub(super) struct Sender<'a> {
    pub(super) plan: &'a Plan,
    pub(super) thread: usize,
    pub(super) sessions: &'a [Session],
    pub(super) timing: Timing,
    pub(super) live: &'a Live,
    pub(super) stop: &'a AtomicBool,
    pub(super) campaign: &'a Campaign,
}

/// What a sending thread did.
#[derive(Clone, Debug, Default)]
pub(super) struct Done {
    pub(super) sent: Sent,
    /// Records of each attack.
    pub(super) attack_records: Vec<u64>,
    pub(super) note: Option<String>,
    /// When nothing more was due.
    pub(super) ended_ns: u64,
}

impl Sender<'_> {
    pub(super) fn run(&self, pool: Arc<Pool>, replay: Option<LogReader>) -> Result<Done> {
        pin_this_thread(self.plan.cpu_of(self.thread)).map_err(anyhow::Error::msg)?;
        set_fine_timers();
        let seed = self.plan.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(self.thread as u64 + 1);
        let mut traffic = Traffic::new(pool, seed, self.plan.sources);
        sleep_until(self.timing.start_ns);
        match (&self.plan.mode, replay) {
            (Mode::Replay { speed, .. }, Some(reader)) => self.replay(reader, *speed, Rng::with_seed(seed)),
            (Mode::Open { rate }, _) => Ok(self.open_loop(Stream::new(traffic, *rate, self, seed))),
            _ => Ok(Done { sent: self.closed_loop(&mut traffic), ended_ns: monotonic_ns(), ..Done::default() }),
        }
    }

    fn is_over(&self, now_ns: u64) -> bool {
        now_ns >= self.timing.until_ns || self.stop.load(Ordering::Relaxed)
    }

    fn open_loop(&self, mut stream: Stream) -> Done {
        let (mut sent, mut timing) = (Sent::default(), self.timing);
        loop {
            let mut now_ns = monotonic_ns();
            if self.stop.load(Ordering::Relaxed) {
                // What is due by now is still sent, as at the planned end.
                timing.until_ns = timing.until_ns.min(now_ns);
            }
            let mut due_ns = stream.due_ns();
            if due_ns >= timing.until_ns {
                return Done { sent, attack_records: stream.attack_records(), note: None, ended_ns: timing.until_ns };
            }
            if now_ns >= timing.catch_up_until_ns() {
                for (schedule, unsent) in stream.unsent_before(timing.until_ns) {
                    sent.unsent += unsent.end - unsent.start;
                    self.with_measured(|acked| acked.record_unsent_events(&schedule, unsent, 1, timing.from_ns, now_ns));
                }
                return Done { sent, attack_records: stream.attack_records(), note: None, ended_ns: timing.until_ns };
            }
            let sent_before = sent.generated;
            let unix_minus_monotonic_us = unix_us().wrapping_sub(now_ns / 1000);
            while due_ns <= now_ns && due_ns < timing.until_ns && sent.generated - sent_before < BURST {
                let (stays, mut request) = stream.next((due_ns / 1000).wrapping_add(unix_minus_monotonic_us));
                let session = &self.sessions[stays as usize % self.sessions.len()];
                request.token = session.clock_us(due_ns);
                // What is refused is counted by the client, as tnt_errors.
                let _ = session.client.try_send(&request);
                sent.generated += 1;
                now_ns = monotonic_ns();
                if due_ns >= timing.from_ns {
                    sent.note_lateness(due_ns / 1000, now_ns / 1000, 1);
                }
                due_ns = stream.due_ns();
            }
            self.live.generated.fetch_add(sent.generated - sent_before, Ordering::Relaxed);
            if due_ns > now_ns {
                let wake_ns = due_ns.max(now_ns + WAKE_INTERVAL_NS).min(now_ns + SLEEP_NS_MAX);
                sleep_until(wake_ns.min(timing.until_ns));
            }
        }
    }

    /// This thread's place for what the background threads do not see.
    fn with_measured(&self, record: impl FnOnce(&mut Acked)) {
        if let Some(session) = self.sessions.first() {
            record(&mut session.acks.measured.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }

    fn closed_loop(&self, traffic: &mut Traffic) -> Sent {
        let mut sent = Sent::default();
        loop {
            let now_ns = monotonic_ns();
            if self.is_over(now_ns) {
                return sent;
            }
            let sent_before = sent.generated;
            for session in self.sessions {
                if session.client.counters().queue_bytes >= HELD_BYTES_MAX {
                    continue;
                }
                let (now_us, token) = (unix_us(), session.clock_us(monotonic_ns()));
                for _ in 0..BURST {
                    let mut request = traffic.next(now_us);
                    request.token = token;
                    let _ = session.client.try_send(&request);
                    sent.generated += 1;
                }
            }
            self.live.generated.fetch_add(sent.generated - sent_before, Ordering::Relaxed);
            if sent.generated == sent_before {
                sleep_until(now_ns + FULL_PAUSE_NS);
            }
        }
    }

    fn replay(&self, mut reader: LogReader, speed: Speed, mut ids: Rng) -> Result<Done> {
        let (mut sent, mut timing, mut clock) = (Sent::default(), self.timing, LogClock::default());
        let mut filter = LineFilter::default();
        // Until when the server's pace, not this thread's, kept records back.
        let mut blocked_ns = 0;
        let mut ended_ns = None;
        while let Some(line) = reader.next_line()? {
            let elapsed_us = clock.advance(line.time_us);
            let due_ns = match speed {
                Speed::Max => None,
                Speed::Times(times) => Some(timing.start_ns.saturating_add((elapsed_us as f64 * 1000.0 / times) as u64)),
            };
            self.sleep_through(due_ns.unwrap_or(0));
            if sent.generated.is_multiple_of(REPLAY_BURST) && self.wait_for_room() {
                blocked_ns = monotonic_ns();
            }
            let now_ns = monotonic_ns();
            if self.stop.load(Ordering::Relaxed) {
                timing.until_ns = timing.until_ns.min(now_ns);
            }
            if due_ns.unwrap_or(now_ns) >= timing.until_ns {
                ended_ns = Some(timing.until_ns);
                break;
            }
            if now_ns >= timing.catch_up_until_ns() {
                // Read on to learn how much was due; the client's queue is full, or this thread too slow.
                *(if blocked_ns > timing.until_ns { &mut sent.held_back } else { &mut sent.unsent }) += 1;
                if let Some(due_ns) = due_ns.filter(|&due_ns| due_ns >= timing.from_ns) {
                    self.with_measured(|acked| acked.record_unsent(now_ns.saturating_sub(due_ns) / 1000, 1));
                }
                continue;
            }
            let findings = filter.inspect(line.request_line, line.user_agent);
            let hits = findings.hits();
            let request = line.request(ids.u128(..).to_le_bytes(), clock.now_us());
            let masker = filter.masker();
            let (path, query) = (masker.text(request.path), masker.text(request.query));
            let (user_agent, referer) = (masker.text(request.user_agent), masker.text(request.referer));
            let mut request = Request {
                path: &path,
                query: &query,
                user_agent: &user_agent,
                referer: &referer,
                hits: &hits,
                detection_us: findings.elapsed_us(),
                ..request
            };
            // One source stays in one session, so that its records stay in order.
            let session = shard_of(Source::of(request.client_ip), 0, self.sessions.len() as u32);
            let session = &self.sessions[session as usize];
            request.token = session.clock_us(due_ns.unwrap_or(now_ns));
            let _ = session.client.try_send(&request);
            sent.generated += 1;
            if let Some(due_ns) = due_ns.filter(|&due_ns| due_ns >= timing.from_ns) {
                sent.note_lateness(due_ns.max(blocked_ns) / 1000, monotonic_ns() / 1000, 1);
            }
            self.live.generated.fetch_add(1, Ordering::Relaxed);
        }
        if sent.generated == 0 && reader.lines > 0 {
            bail!(
                "none of the {} lines read is a line of an access log: --replay takes the combined and the common format; the agent reads \
                 JSON lines, too",
                reader.lines
            );
        }
        let gaps = if clock.gaps_cut > 0 { format!(", {} gaps of more than a day", clock.gaps_cut) } else { String::new() };
        let note =
            format!("replay: {} lines read, {} of them no lines of an access log{gaps}", reader.lines, reader.lines_unparsable);
        let ended_ns = ended_ns.unwrap_or_else(monotonic_ns);
        Ok(Done { sent, note: Some(note), ended_ns, ..Done::default() })
    }

    /// Sleeps in steps short enough to notice that the run is to end.
    fn sleep_through(&self, deadline_ns: u64) {
        loop {
            let now_ns = monotonic_ns();
            if now_ns >= deadline_ns || self.is_over(now_ns) {
                return;
            }
            sleep_until(deadline_ns.min(now_ns + SLEEP_NS_MAX));
        }
    }

    /// Waits until every client holds little enough, and says whether that took any waiting. Gives up with the run.
    fn wait_for_room(&self) -> bool {
        let mut waited = false;
        loop {
            let now_ns = monotonic_ns();
            let is_full = self.sessions.iter().any(|session| session.client.counters().queue_bytes >= HELD_BYTES_MAX);
            let is_over = now_ns >= self.timing.catch_up_until_ns() || self.stop.load(Ordering::Relaxed);
            if !is_full || is_over {
                return waited || is_full;
            }
            waited = true;
            sleep_until(now_ns + FULL_PAUSE_NS);
        }
    }
}
