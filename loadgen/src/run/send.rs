//! The sending loops of a thread: open loop, closed loop, replay.
//!
//! The open loop follows absolute deadlines and sends what fell due since the last wake-up, each record with its own
//! intended time; a server that stalls, or a generator that wakes late, shows in the corrected latency. The other two keep a
//! bound on the bytes that a client holds, so that its queue never fills: whatever is offered is offered once.

use super::{Session, Timing};
use crate::clock::{Schedule, WAKE_INTERVAL_NS, monotonic_ns, set_fine_timers, sleep_until, unix_us};
use crate::machine::pin_this_thread;
use crate::measure::{Live, Sent};
use crate::plan::{Mode, Plan, Speed};
use crate::replay::LogReader;
use crate::traffic::{Pool, Traffic};
use anyhow::Result;
use fastrand::Rng;
use postanalytics_protocol::{Source, shard_of};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes that a client may hold, queued and in flight, in a closed loop or a replay: plenty to keep a server busy, and far
/// below the client's queue.
const HELD_BYTES_MAX: u64 = 8 << 20;
/// Records between two looks at clock and client.
const BURST: u64 = 64;
/// The same in a replay, whose records may be as long as a line may be.
const REPLAY_BURST: u64 = 16;
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
}

/// What a sending thread did.
#[derive(Clone, Debug, Default)]
pub(super) struct Done {
    pub(super) sent: Sent,
    pub(super) note: Option<String>,
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
            (Mode::Open { rate }, _) => Ok(Done { sent: self.open_loop(&mut traffic, *rate), note: None }),
            _ => Ok(Done { sent: self.closed_loop(&mut traffic), note: None }),
        }
    }

    fn is_over(&self, now_ns: u64) -> bool {
        now_ns >= self.timing.until_ns || self.stop.load(Ordering::Relaxed)
    }

    fn open_loop(&self, traffic: &mut Traffic, rate: u64) -> Sent {
        let schedule = Schedule::new(self.timing.start_ns, rate, 1, self.plan.threads as u64, self.thread as u64);
        let mut sent = Sent::default();
        let mut due_ns = schedule.due_ns(0);
        loop {
            let mut now_ns = monotonic_ns();
            let give_up = now_ns >= self.timing.catch_up_until_ns() || self.stop.load(Ordering::Relaxed);
            if give_up || due_ns >= self.timing.until_ns {
                return sent;
            }
            let sent_before = sent.generated;
            let unix_minus_monotonic_us = unix_us().wrapping_sub(now_ns / 1000);
            while due_ns <= now_ns && due_ns < self.timing.until_ns && now_ns < self.timing.catch_up_until_ns() {
                let session = &self.sessions[sent.generated as usize % self.sessions.len()];
                let mut request = traffic.next((due_ns / 1000).wrapping_add(unix_minus_monotonic_us));
                request.token = session.clock_us(due_ns);
                // What is refused is counted by the client, as tnt_errors.
                let _ = session.client.try_send(&request);
                sent.generated += 1;
                if due_ns >= self.timing.from_ns {
                    sent.note_lateness(due_ns / 1000, now_ns / 1000, 1);
                }
                due_ns = schedule.due_ns(sent.generated);
                if sent.generated.is_multiple_of(BURST) {
                    now_ns = monotonic_ns();
                }
            }
            self.live.generated.fetch_add(sent.generated - sent_before, Ordering::Relaxed);
            sleep_until(due_ns.max(now_ns + WAKE_INTERVAL_NS).min(self.timing.until_ns));
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
        let mut sent = Sent::default();
        // The log's clock: the latest event so far. Lines that go back in time are due at once, in their place.
        let (mut first_event_us, mut clock_us) = (None, 0u64);
        while let Some(line) = reader.next_line()? {
            let event_us = line.time_us.unwrap_or(clock_us);
            clock_us = clock_us.max(event_us);
            let first_us = *first_event_us.get_or_insert(event_us);
            if let Speed::Times(times) = speed {
                let after_ns = (clock_us.saturating_sub(first_us) as f64 * 1000.0 / times) as u64;
                self.sleep_through(self.timing.start_ns.saturating_add(after_ns));
            }
            let mut request = line.request(ids.u128(..).to_le_bytes(), event_us);
            // One source stays in one session, so that its records stay in order.
            let session = shard_of(Source::of(request.client_ip), 0, self.sessions.len() as u32);
            let session = &self.sessions[session as usize];
            if sent.generated.is_multiple_of(REPLAY_BURST) {
                self.wait_for_room();
            }
            let now_ns = monotonic_ns();
            if self.is_over(now_ns) {
                break;
            }
            request.token = session.clock_us(now_ns);
            let _ = session.client.try_send(&request);
            sent.generated += 1;
            self.live.generated.fetch_add(1, Ordering::Relaxed);
        }
        let note = format!("replay: {} lines read, {} of them no lines of an access log", reader.lines, reader.lines_unparsable);
        Ok(Done { sent, note: Some(note) })
    }

    /// Sleeps in steps short enough to notice that the run is to end.
    fn sleep_through(&self, deadline_ns: u64) {
        loop {
            let now_ns = monotonic_ns();
            if now_ns >= deadline_ns || self.is_over(now_ns) {
                return;
            }
            sleep_until(deadline_ns.min(now_ns + 50_000_000));
        }
    }

    fn wait_for_room(&self) {
        loop {
            let now_ns = monotonic_ns();
            let is_full = self.sessions.iter().any(|session| session.client.counters().queue_bytes >= HELD_BYTES_MAX);
            if !is_full || self.is_over(now_ns) {
                return;
            }
            sleep_until(now_ns + FULL_PAUSE_NS);
        }
    }
}
