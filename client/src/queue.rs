//! The one place where the threads of the site and the background thread meet.
//!
//! Most records come through the rings of their thread ([`crate::front`]), without a lock. Behind the rings, and for all that do
//! not go through them, there is one mutex, held only to copy some records or to swap pointers, so a `try_send` waits for
//! nobody. Records go into recycled chunks; the background thread takes whole chunks and publishes its ledger, both under the
//! same lock, so that the laws of [`Counters`] hold in every snapshot.
//!
//! A `try_send` makes no system call unless the background thread asked to be woken: it wakes by itself while there is
//! traffic, at least every 20 ms, and finds what is in the rings. So only an urgent record, or more bytes than a few batches hold beyond the rings, or the first record after a quiet
//! second writes the eventfd, at most once per sleep.
//!
//! Bound: `queue_bytes`, counted over everything accepted and not yet settled, in flight included; the last quarter is kept
//! for records with hits. When full: the new record is refused and counted (`refused_full`).

use crate::bundle::{Bundle, RECORD_COST_BYTES};
use crate::counters::{Counters, Ledger};
use crate::front::{self, Back};
use crate::request::Request;
use crate::stats::ServerStats;
use crate::status::ClientStatus;
use forkguard::atfork::Guard;
use postanalytics_protocol::EncodeError;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use thiserror::Error;

/// Strings that a chunk holds before the next one is begun.
const CHUNK_STRING_BYTES: usize = 64 * 1024;
/// Records that a chunk holds before the next one is begun.
const CHUNK_RECORDS: usize = 256;
/// Empty chunks kept for reuse.
const POOL_CHUNKS: usize = 64;
/// Bytes waiting that wake the background thread: a few batches.
const WAKE_BYTES: usize = 256 * 1024;
/// Set apart from the budget for each thread's rings: see `Queue::gate`. A quarter of the budget may be set apart so.
const FRONT_BYTES: usize = 2 * front::COST_BYTES_MAX;

/// How many there have been in this process.
static QUEUES: AtomicU64 = AtomicU64::new(0);

/// Longest time that anybody waits: a day.
const WAIT_MAX: Duration = Duration::from_secs(86_400);

/// Why a record was not taken. It is counted, except after a fork.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SendError {
    /// The queue has no room.
    #[error(
        "the queue is full: {queue_bytes} bytes wait for postanalytics, the limit is {limit}; \
             check that the server is reachable, or raise queue_bytes"
    )]
    QueueFull {
        /// Bytes in the queue, at the most: what threads have just handed over counts as if it were many short records.
        queue_bytes: usize,
        /// The limit for a record like this one; records with hits have a higher one.
        limit: usize,
    },
    /// No server would store a record so large.
    #[error("the record takes {bytes} bytes, the limit is {limit}; cap raw_body and raw_headers")]
    TooLarge {
        /// Bytes of the record.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// More hits or extensions than a record may have.
    #[error(transparent)]
    TooManyParts(EncodeError),
    /// The client is closing, or its background thread has ended.
    #[error("the client is closed")]
    Closed,
    /// This process was forked from the one that built the client.
    #[error("the client belongs to process {owner}, of which this one is a fork; build a client after fork")]
    Forked {
        /// The process that built the client.
        owner: u32,
    },
}

/// The queue, its wake-up, and the notice board between the threads.
pub(crate) struct Queue {
    /// Tells this queue from every other of the process.
    id: u64,
    /// Whether threads may use their rings. A hint, changed under the lock and rarely: some records may still come through a
    /// ring after it was shut, and half of what is set apart for rings is for these.
    gate: AtomicBool,
    state: Apart<Mutex<State>>,
    changed: Condvar,
    wake: OwnedFd,
    /// Knows without a system call whether this process is a fork of the one that built the client.
    fork_guard: Guard,
    owner: u32,
    started: Instant,
    limit_bytes: usize,
    /// The time, if it is simulated, else `u64::MAX`.
    #[cfg(feature = "simulation")]
    simulated_us: AtomicU64,
}

#[derive(Default)]
struct State {
    /// The threads' rings. What is in them is offered, accepted and queued, and counted so when it is taken out or when somebody
    /// asks.
    fronts: Vec<Back>,
    /// Full chunks, oldest first.
    chunks: VecDeque<Bundle>,
    /// The chunk that records go to now; the newest.
    current: Bundle,
    pool: Vec<Bundle>,
    waiting: u64,
    waiting_bytes: usize,
    urgent_waiting: bool,
    wake_on: WakeOn,
    closed: bool,
    ledger: Ledger,
    /// The site's part of the counters; the background thread's part is `ledger`.
    offered: u64,
    accepted: u64,
    refused_full: u64,
    refused_too_large: u64,
    refused_other: u64,
    lost_unsent: u64,
    verdicts_skipped: u64,
    orders: Orders,
    settled_until_us: u64,
    stats: (u64, Vec<Option<ServerStats>>),
    status: ClientStatus,
    identity_key: Option<crate::bundle::IdentityKey>,
    finished: bool,
    /// Threads of the site that wait for a notice: without any, none is given.
    waiters: u32,
}

/// Shares no cache line with its neighbours (two lines, which the processor fetches together).
#[repr(align(128))]
struct Apart<T>(T);

/// What wakes the background thread from the sleep that it is in.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct WakeOn {
    /// Any record.
    pub(crate) any: bool,
    /// An urgent record.
    pub(crate) urgent: bool,
    /// A few batches of records.
    pub(crate) bytes: bool,
}

/// What the site asks of the background thread.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Orders {
    /// Send what was accepted until then without waiting for company; set until that is settled.
    pub(crate) flush_us: Option<u64>,
    /// Highest number of a request for statistics.
    pub(crate) stats_token: u64,
    /// Finish until then.
    pub(crate) close_us: Option<u64>,
}

/// What the background thread tells the site at the end of a turn.
pub(crate) struct Notice<'a> {
    pub(crate) ledger: &'a Ledger,
    pub(crate) verdicts_skipped: u64,
    /// If somebody waits for a flush: when the oldest record was accepted that the background thread has and that is not
    /// settled; `u64::MAX` without any.
    pub(crate) oldest_us: Option<u64>,
    pub(crate) stats: Option<(u64, Vec<Option<ServerStats>>)>,
    pub(crate) status: Option<(ClientStatus, Option<crate::bundle::IdentityKey>)>,
}

impl Queue {
    pub(crate) fn new(limit_bytes: usize) -> Result<Self, Errno> {
        Ok(Self {
            id: QUEUES.fetch_add(1, Ordering::Relaxed),
            gate: AtomicBool::new(true),
            state: Apart(Mutex::new(State::default())),
            changed: Condvar::new(),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            fork_guard: Guard::try_new().map_err(|error| Errno::from_raw_os_error(error.code().get()))?,
            owner: std::process::id(),
            started: Instant::now(),
            limit_bytes,
            #[cfg(feature = "simulation")]
            simulated_us: AtomicU64::new(u64::MAX),
        })
    }

    /// µs since the client was built.
    pub(crate) fn clock_us(&self) -> u64 {
        #[cfg(feature = "simulation")]
        match self.simulated_us.load(Ordering::Relaxed) {
            u64::MAX => {}
            clock_us => return clock_us,
        }
        self.started.elapsed().as_micros() as u64
    }

    /// Stops the clock, and sets it.
    #[cfg(feature = "simulation")]
    pub(crate) fn set_clock_us(&self, clock_us: u64) {
        self.simulated_us.store(clock_us, Ordering::Relaxed);
    }

    pub(crate) const fn started(&self) -> Instant {
        self.started
    }

    /// The process that built the client, if this is another one: nothing of the client but its denylist may be used here.
    /// Only a `fork` that runs the handlers of `pthread_atfork` is seen, as the C library's does.
    pub(crate) fn forked_from(&self) -> Option<u32> {
        // A guard tells once only, so a copy is asked.
        self.fork_guard.clone().detected_fork().then_some(self.owner)
    }

    /// Copies the record into the queue.
    #[inline]
    pub(crate) fn try_send(&self, request: &Request<'_>) -> Result<(), SendError> {
        // Before the lock: in a forked child the lock may be held for ever by a thread that does not exist there.
        if let Some(owner) = self.forked_from() {
            return Err(SendError::Forked { owner });
        }
        let accepted_us = self.clock_us();
        let urgent = request.is_urgent();
        let strings = request.strings().iter().fold(0, |sum: usize, string| sum.saturating_add(string.len()));
        if !self.gate.load(Ordering::Relaxed) || !front::push(self.id, request, accepted_us, urgent, strings) {
            return self.try_send_locked(request, accepted_us, urgent);
        }
        if urgent {
            self.press();
        }
        Ok(())
    }

    /// An urgent record lies in a ring.
    #[cold]
    fn press(&self) {
        let mut state = self.lock();
        state.urgent_waiting = true;
        self.wake_if(state, |wake_on| wake_on.urgent);
    }

    #[cold]
    fn try_send_locked(&self, request: &Request<'_>, accepted_us: u64, urgent: bool) -> Result<(), SendError> {
        let checked = request.checked_blob_bytes();
        let mut state = self.lock();
        // What this thread sent before comes before this.
        state.drain_own(self.id);
        let accepted = self.accept(&mut state, request, checked, accepted_us, urgent);
        if accepted.is_ok()
            && front::took_the_locked_way(self.id, accepted_us)
            && self.limit_bytes / 4 >= (state.fronts.len() + 1) * FRONT_BYTES
        {
            state.fronts.extend(front::open(self.id));
        }
        let waiting_bytes = state.waiting_bytes;
        self.set_gate(&state);
        self.wake_if(state, |wake| wake.any || wake.urgent && urgent || wake.bytes && waiting_bytes >= WAKE_BYTES);
        accepted
    }

    /// Wakes the background thread, if it asked for that.
    fn wake_if(&self, mut state: MutexGuard<'_, State>, asked: impl FnOnce(WakeOn) -> bool) {
        if asked(state.wake_on) {
            state.wake_on = WakeOn::default();
            drop(state);
            self.wake();
        }
    }

    /// Whether there is room for ordinary records even if all rings were full, and were filled again before all threads see
    /// that they must not be.
    fn set_gate(&self, state: &State) {
        let used = state.waiting_bytes + state.ledger.bytes + state.fronts.len() * FRONT_BYTES;
        let open = !state.closed && used <= self.limit_bytes - self.limit_bytes / 4;
        if self.gate.load(Ordering::Relaxed) != open {
            self.gate.store(open, Ordering::Relaxed);
        }
    }

    /// Copies the record into the newest chunk.
    fn accept(
        &self,
        state: &mut State,
        request: &Request<'_>,
        checked: Result<usize, SendError>,
        accepted_us: u64,
        urgent: bool,
    ) -> Result<(), SendError> {
        state.offered += 1;
        let blob = match checked {
            _ if state.closed => {
                state.refused_other += 1;
                return Err(SendError::Closed);
            }
            Ok(blob) => blob,
            Err(error) => {
                let counter = if matches!(error, SendError::TooLarge { .. }) {
                    &mut state.refused_too_large
                } else {
                    &mut state.refused_other
                };
                *counter += 1;
                return Err(error);
            }
        };
        let string_bytes = blob + request.identity_bytes();
        let cost = RECORD_COST_BYTES + string_bytes;
        let limit = if request.hits.is_empty() { self.limit_bytes - self.limit_bytes / 4 } else { self.limit_bytes };
        let in_fronts: usize = state.fronts.iter().map(Back::cost_bytes_max).sum();
        let queue_bytes = state.waiting_bytes + state.ledger.bytes + in_fronts;
        if queue_bytes + cost > limit {
            state.refused_full += 1;
            return Err(SendError::QueueFull { queue_bytes, limit });
        }
        state.chunk_for(blob, string_bytes).push(request, accepted_us, urgent);
        state.accepted += 1;
        state.waiting += 1;
        state.waiting_bytes += cost;
        state.urgent_waiting |= urgent;
        Ok(())
    }

    /// One consistent snapshot. In a forked child, where there is none, all zero.
    pub(crate) fn counters(&self) -> Counters {
        if self.forked_from().is_some() { Counters::default() } else { self.lock().counters() }
    }

    pub(crate) fn status(&self) -> ClientStatus {
        if self.forked_from().is_some() { ClientStatus::default() } else { self.lock().status.clone() }
    }

    pub(crate) fn hash_identity(&self, clear: &[u8]) -> Option<u64> {
        if self.forked_from().is_some() { None } else { self.lock().identity_key.map(|key| key.hash(clear)) }
    }

    /// Waits until everything accepted before is settled. `Err` with the number of unsettled records (newer ones included).
    /// When the background thread has ended, nothing is unsettled any more.
    pub(crate) fn flush(&self, timeout: Duration) -> Result<(), u64> {
        let deadline = Instant::now() + timeout.min(WAIT_MAX);
        let mut state = self.lock();
        let until_us = self.clock_us();
        state.orders.flush_us = state.orders.flush_us.max(Some(until_us));
        self.wake();
        loop {
            let counters = state.counters();
            let left = counters.queued + counters.in_flight;
            if left == 0 || state.settled_until_us > until_us {
                return Ok(());
            }
            let Some(waited) = self.wait(state, deadline) else { return Err(left) };
            state = waited;
        }
    }

    /// Has the background thread ask every shard for its statistics, and waits for the answers: of each server, `None` of one
    /// that is away. `Err(true)`: closed.
    pub(crate) fn server_stats(&self, timeout: Duration) -> Result<Vec<Option<ServerStats>>, bool> {
        let deadline = Instant::now() + timeout.min(WAIT_MAX);
        let mut state = self.lock();
        state.orders.stats_token += 1;
        let token = state.orders.stats_token;
        self.wake();
        loop {
            if state.stats.0 >= token {
                return Ok(state.stats.1.clone());
            }
            if state.finished {
                return Err(true);
            }
            let Some(waited) = self.wait(state, deadline) else { return Err(false) };
            state = waited;
        }
    }

    /// Takes no more records and has the background thread finish until the timeout.
    pub(crate) fn close(&self, timeout: Duration) {
        let mut state = self.lock();
        state.closed = true;
        self.set_gate(&state);
        let until_us = self.clock_us().saturating_add(timeout.min(WAIT_MAX).as_micros() as u64);
        state.orders.close_us = Some(state.orders.close_us.unwrap_or(u64::MAX).min(until_us));
        drop(state);
        self.wake();
    }

    /// For the background thread, at the start of a turn: moves the chunks into `taken`, if it can route them, gives
    /// emptied ones back, and returns what is asked of it.
    pub(crate) fn exchange(&self, route: bool, taken: &mut VecDeque<Bundle>, emptied: &mut Vec<Bundle>) -> Orders {
        let mut state = self.lock();
        state.wake_on = WakeOn::default();
        let orders = state.orders;
        if route {
            // Before the rings are emptied, one after the other: a record that comes meanwhile sets it again.
            state.urgent_waiting = false;
        }
        // What was accepted before these orders is in the rings or beyond. One thread's rings at a time: nobody waits long.
        for number in 0..state.fronts.len() {
            // What leaves with this presses nobody any more.
            let is_urgent = state.drain_front(number);
            state.urgent_waiting |= is_urgent && !route;
            drop(state);
            state = self.lock();
        }
        state.fronts.retain(|front| !front.is_done());
        if route {
            std::mem::swap(&mut state.chunks, taken);
            if !state.current.is_empty() {
                taken.push_back(std::mem::replace(&mut state.current, emptied.pop().unwrap_or_default()));
            }
            // The background thread counts these from now on; until it has published so, its ledger says it here.
            let (records, bytes) = (std::mem::take(&mut state.waiting), std::mem::take(&mut state.waiting_bytes));
            state.ledger.take(records, bytes);
        }
        let room = POOL_CHUNKS.saturating_sub(state.pool.len());
        let kept = emptied.len().min(room);
        state.pool.extend(emptied.drain(..kept));
        self.set_gate(&state);
        orders
    }

    /// For the background thread, while it cannot route: gives up on records accepted at `cutoff_us` or before. Returns how many.
    pub(crate) fn expire(&self, cutoff_us: u64) -> u64 {
        // Freed when the lock is no longer held: what is declared first is dropped last.
        let mut over = Vec::new();
        let mut state = self.lock();
        let lost = state.lost_unsent;
        while let Some(chunk) = state.chunks.pop_front_if(|chunk| chunk.is_over(cutoff_us)) {
            state.give_up(chunk.records(), chunk.cost_bytes());
            over.push(chunk);
        }
        let state = &mut *state;
        if state.chunks.is_empty() && state.current.is_over(cutoff_us) {
            over.push(std::mem::take(&mut state.current));
            state.give_up(over[over.len() - 1].records(), over[over.len() - 1].cost_bytes());
        } else {
            let oldest = state.chunks.front_mut().unwrap_or(&mut state.current);
            let gone = oldest.expire(cutoff_us);
            state.give_up(gone.records, gone.bytes);
        }
        state.lost_unsent - lost
    }

    /// For the background thread, at the end of a turn: publishes, and says what may wake it from the sleep that follows.
    /// Returns whether it may sleep at all: not if records came that should not wait.
    pub(crate) fn publish(&self, notice: Notice<'_>, routes: bool, wake_on: WakeOn) -> Sleep {
        let mut state = self.lock();
        state.ledger = *notice.ledger;
        state.verdicts_skipped = notice.verdicts_skipped;
        if let Some(oldest_us) = notice.oldest_us {
            state.drain_fronts();
            // Rings are emptied one after the other, so chunks are not in the order of time.
            let waiting_us = state.chunks.iter().chain([&state.current]).filter_map(Bundle::oldest_us).min();
            // What is accepted from now on may carry a time as early as this.
            state.settled_until_us = oldest_us.min(waiting_us.unwrap_or(u64::MAX)).min(self.clock_us());
            state.orders.flush_us = state.orders.flush_us.filter(|until_us| *until_us >= state.settled_until_us);
        }
        if let Some(stats) = notice.stats {
            state.stats = stats;
        }
        if let Some((status, key)) = notice.status {
            (state.status, state.identity_key) = (status, key);
        }
        if wake_on.any {
            // Before a long sleep: nothing that nobody announced lies in a ring.
            state.drain_fronts();
        }
        debug_assert!(state.counters().laws_hold(), "{:?}", state.ledger);
        self.set_gate(&state);
        if state.waiters > 0 {
            self.changed.notify_all();
        }
        let pressing = state.urgent_waiting && wake_on.urgent || state.waiting_bytes >= WAKE_BYTES && wake_on.bytes;
        if routes && pressing || wake_on.any && state.waiting > 0 {
            return Sleep::No;
        }
        state.wake_on = wake_on;
        if state.waiting > 0 { Sleep::RecordsWait } else { Sleep::Nothing }
    }

    /// For the background thread when it ends, however it ends: what is left is given up.
    pub(crate) fn finish(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.finished = true;
        self.set_gate(&state);
        state.ledger.abandon();
        state.give_up_all();
        state.pool.clear();
        state.status.disconnected();
        self.changed.notify_all();
    }

    /// Whether the background thread has ended.
    pub(crate) fn is_finished(&self) -> bool {
        self.forked_from().is_some() || self.lock().finished
    }

    /// What to poll for.
    pub(crate) fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Takes the wake-ups that came.
    pub(crate) fn drain_wake(&self) {
        // Nothing to read is as good as having read it.
        let _ = rustix::io::read(&self.wake, &mut [0u8; 8]);
    }

    fn wake(&self) {
        // It can only fail when the counter is at its limit, and then the thread is about to wake anyway.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics half way through a change of the state.
        self.state.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the next notice, `None` when the deadline has passed.
    fn wait<'a>(&'a self, mut state: MutexGuard<'a, State>, deadline: Instant) -> Option<MutexGuard<'a, State>> {
        let left = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
        state.waiters += 1;
        let mut state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        state.waiters -= 1;
        Some(state)
    }
}

/// How the background thread may sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sleep {
    /// Records came that should not wait.
    No,
    /// Ordinary records wait for company.
    RecordsWait,
    /// The queue is empty.
    Nothing,
}

impl State {
    /// Moves what is in the threads' rings to the chunks.
    fn drain_fronts(&mut self) {
        for number in 0..self.fronts.len() {
            self.urgent_waiting |= self.drain_front(number);
        }
    }

    /// The same for this thread's.
    fn drain_own(&mut self, queue: u64) {
        if let Some(own) = front::number(queue)
            && let Some(number) = self.fronts.iter().position(|front| front.number == own)
        {
            self.urgent_waiting |= self.drain_front(number);
        }
    }

    /// Records in the threads' rings, and what they cost.
    fn in_fronts(&mut self) -> (u64, usize) {
        let fronts = self.fronts.iter_mut().map(Back::records_and_cost);
        fronts.fold((0, 0), |sum, front| (sum.0 + front.0, sum.1 + front.1))
    }

    /// Moves what is in one thread's rings. Returns whether any of it is urgent.
    fn drain_front(&mut self, number: usize) -> bool {
        let Some(front) = self.fronts.get_mut(number) else { return false };
        let (mut records, mut bytes, mut urgent) = (0, 0, false);
        let (current, chunks, pool) = (&mut self.current, &mut self.chunks, &mut self.pool);
        front.drain(|item| {
            chunk_for(current, chunks, pool, item.blob.len(), item.meta.string_bytes()).push_item(item);
            records += 1;
            bytes += item.cost_bytes();
            urgent |= item.meta.urgent;
        });
        self.offered += records;
        self.accepted += records;
        self.waiting += records;
        self.waiting_bytes += bytes;
        urgent
    }

    /// All that waits is lost.
    fn give_up_all(&mut self) {
        self.drain_fronts();
        self.chunks.clear();
        self.current = Bundle::default();
        self.give_up(self.waiting, self.waiting_bytes);
    }

    /// Waiting records are lost.
    const fn give_up(&mut self, records: u64, bytes: usize) {
        self.waiting -= records;
        self.waiting_bytes -= bytes;
        self.lost_unsent += records;
    }

    fn chunk_for(&mut self, blob: usize, strings: usize) -> &mut Bundle {
        chunk_for(&mut self.current, &mut self.chunks, &mut self.pool, blob, strings)
    }

    fn counters(&mut self) -> Counters {
        if self.finished {
            // A thread may still have used its rings: it had not seen that the gate was shut.
            self.give_up_all();
        }
        let (in_fronts, in_fronts_bytes) = self.in_fronts();
        let ledger = &self.ledger;
        Counters {
            offered: self.offered + in_fronts,
            accepted: self.accepted + in_fronts,
            refused_full: self.refused_full,
            refused_too_large: self.refused_too_large,
            refused_other: self.refused_other,
            acked: ledger.acked,
            lost: ledger.lost + self.lost_unsent,
            in_doubt: ledger.in_doubt,
            queued: ledger.queued + self.waiting + in_fronts,
            in_flight: ledger.in_flight,
            queue_bytes: (ledger.bytes + self.waiting_bytes + in_fronts_bytes) as u64,
            batches_sent: ledger.batches_sent,
            batches_resent: ledger.batches_resent,
            connects: ledger.connects,
            connect_errors: ledger.connect_errors,
            disconnects: ledger.disconnects,
            errors_received: ledger.errors_received,
            verdicts_skipped: self.verdicts_skipped,
            failovers: ledger.failovers,
            maybe_stored_elsewhere: ledger.maybe_stored_elsewhere,
        }
    }
}

/// The chunk that the next record goes to, which has so many bytes of blob, and of strings in all.
fn chunk_for<'a>(
    current: &'a mut Bundle,
    chunks: &mut VecDeque<Bundle>,
    pool: &mut Vec<Bundle>,
    blob: usize,
    strings: usize,
) -> &'a mut Bundle {
    let fits = current.is_empty() || current.len() < CHUNK_RECORDS && current.string_bytes() + strings <= CHUNK_STRING_BYTES;
    if !fits {
        // As if all its records were like this one: a chunk of one long record is no longer than that.
        let records = (CHUNK_STRING_BYTES / strings.max(1)).clamp(1, CHUNK_RECORDS);
        let chunk = pool.pop().unwrap_or_else(|| Bundle::with_capacity(records, records * blob));
        chunks.push_back(std::mem::replace(current, chunk));
    }
    current
}

/// Keeps a chunk for reuse, emptied, unless there are enough, or it held so large a record that keeping its memory would not
/// pay. What is not kept is freed here, chunk by chunk, so that taking a full queue does not double it.
pub(crate) fn recycle(mut chunk: Bundle, emptied: &mut Vec<Bundle>) {
    if emptied.len() < POOL_CHUNKS && chunk.string_bytes() <= CHUNK_STRING_BYTES {
        chunk.clear();
        emptied.push(chunk);
    }
}

#[cfg(test)]
mod tests;
