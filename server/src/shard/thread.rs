//! The thread of a shard: pinned, with a ring of its own, turning [`Shard`].
//!
//! A turn: submit and wait, read the clock once, drain all completions, hear the control plane, one slice of a query,
//! Acks and verdicts, return the buffers, publish the statistics. Nothing in it allocates, locks or blocks once warm.

use super::messages::{MESSAGES_MAX, Query, ShardHandle, ToShard, Topology};
use super::page::StatsPage;
use super::{Command, Now, Shard, Usage};
use crate::arena::Log;
use crate::queue::{Receiver, Sender, queue};
use crate::ring::links::Completion;
use crate::ring::{Event, Links, Uring, UringConfig};
use anyhow::{Context, anyhow, bail};
use rustix::time::{ClockId, clock_gettime};
use std::io::Read;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

/// Between ticks while somebody waits for a deadline.
const TICK_BUSY_US: u64 = 50_000;
/// Between ticks otherwise.
const TICK_IDLE_US: u64 = 1_000_000;
/// A link that is told why it ends has this long to read it.
const FINISH_US: u64 = 1_000_000;

/// What a shard is made of.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    /// Its number.
    pub shard: u32,
    /// CPU to pin it to, `None` not to pin it.
    pub cpu: Option<usize>,
    /// Its part of the arena, bytes.
    pub arena_bytes: u64,
    /// What all shards have in common.
    pub topology: Arc<Topology>,
    /// Receive buffers, a power of two.
    pub receive_buffers: u16,
    /// Bytes of each.
    pub receive_buffer_bytes: u32,
    /// Most connections.
    pub connections_max: u32,
    /// A frame that is not whole after this long ends its connection.
    pub frame_deadline: Duration,
    /// A drain ends after this long, whoever is left.
    pub drain_deadline: Duration,
}

/// A shard whose memory is being prefaulted.
#[derive(Debug)]
pub struct StartingShard {
    config: ShardConfig,
    page: Arc<StatsPage>,
    messages: Sender<ToShard>,
    answers: Receiver<Box<Query>>,
    ready: mpsc::Receiver<Ready>,
    thread: std::thread::JoinHandle<anyhow::Result<()>>,
}

#[derive(Debug)]
struct Ready {
    huge_page_bytes: u64,
}

/// Starts the thread of a shard, which maps and prefaults its memory. Start all, then wait for all: they work in parallel.
pub fn start(config: ShardConfig) -> anyhow::Result<StartingShard> {
    let page = Arc::new(StatsPage::default());
    let (messages, inbox) = queue(MESSAGES_MAX).context("cannot make the queue to a shard")?;
    let (answers_in, answers) = queue(MESSAGES_MAX).context("cannot make the queue from a shard")?;
    let (ready_in, ready) = mpsc::sync_channel(1);
    let thread = std::thread::Builder::new()
        .name(format!("pa-shard-{}", config.shard))
        .spawn({
            let (config, page) = (config.clone(), Arc::clone(&page));
            move || {
                let (mut driver, huge_page_bytes) = Driver::new(config, page, inbox, answers_in)?;
                let _ = ready_in.send(Ready { huge_page_bytes });
                driver.run()
            }
        })
        .context("cannot start the thread of a shard")?;
    Ok(StartingShard { config, page, messages, answers, ready, thread })
}

impl StartingShard {
    /// Waits until the memory is prefaulted and the shard runs. Errors: why it could not start.
    pub fn wait(self) -> anyhow::Result<ShardHandle> {
        let shard = self.config.shard;
        let Ok(ready) = self.ready.recv() else {
            return Err(match self.thread.join() {
                Ok(Err(error)) => error.context(format!("shard {shard} cannot start")),
                _ => anyhow!("shard {shard} ended while it started"),
            });
        };
        Ok(ShardHandle {
            shard,
            cpu: self.config.cpu,
            huge_pages: ready.huge_page_bytes >= self.config.arena_bytes / 2,
            page: self.page,
            messages: self.messages,
            answers: self.answers,
            thread: self.thread,
        })
    }
}

/// **Field order matters**: the ring goes first, so that the kernel lets go of what the links own.
struct Driver {
    ring: Uring,
    links: Links,
    shard: Shard,
    config: ShardConfig,
    inbox: Receiver<ToShard>,
    answers: Sender<Box<Query>>,
    page: Arc<StatsPage>,
    clock: Clock,
    completions: Vec<Completion>,
    tick_at_us: u64,
    drain_until_us: Option<u64>,
    thread_cpu_us: u64,
}

impl Driver {
    fn new(
        config: ShardConfig,
        page: Arc<StatsPage>,
        inbox: Receiver<ToShard>,
        answers: Sender<Box<Query>>,
    ) -> anyhow::Result<(Self, u64)> {
        if let Some(cpu) = config.cpu
            && !core_affinity::set_for_current(core_affinity::CoreId { id: cpu })
        {
            bail!("cannot pin to CPU {cpu}: it is not allowed to this process. Remedy: fewer --shards, or --no-pin");
        }
        let megabytes = config.arena_bytes >> 20;
        let (mut requests, mut attacks) =
            Log::pair(config.arena_bytes).with_context(|| format!("cannot map {megabytes} MiB for records"))?;
        for log in [&mut requests, &mut attacks] {
            let memory = log.memory();
            memory.prefault().with_context(|| format!("cannot get {megabytes} MiB of memory. Remedy: a smaller --arena"))?;
        }
        let huge_page_bytes = requests.memory().huge_page_bytes() + attacks.memory().huge_page_bytes();
        let size = UringConfig {
            buffers: config.receive_buffers,
            buffer_bytes: config.receive_buffer_bytes,
            links_max: config.connections_max,
        };
        let mut ring = Uring::new(size).context("cannot set up io_uring")?;
        ring.watch(inbox.wake())?;
        let shard = Shard::new(config.shard, Arc::clone(&config.topology), config.frame_deadline, requests, attacks);
        let driver = Self {
            ring,
            links: Links::default(),
            shard,
            inbox,
            answers,
            page,
            clock: Clock::new(),
            completions: Vec::with_capacity(size.completions() as usize),
            tick_at_us: 0,
            drain_until_us: None,
            thread_cpu_us: 0,
            config,
        };
        Ok((driver, huge_page_bytes))
    }

    fn run(&mut self) -> anyhow::Result<()> {
        let mut now = self.clock.now();
        loop {
            self.ring.submit(&mut self.links)?;
            let wait = self.wait(now);
            self.ring.enter(wait)?;
            now = self.clock.now();
            self.turn(now)?;
            if self.shard.is_drained() && self.links.in_use() == 0 {
                return Ok(());
            }
            if self.drain_until_us.is_some_and(|until_us| until_us <= now.monotonic_us) {
                tracing::warn!(
                    shard = self.config.shard,
                    connections = self.links.in_use(),
                    "drain deadline passed, connections cut"
                );
                return Ok(());
            }
        }
    }

    fn turn(&mut self, now: Now) -> anyhow::Result<()> {
        let mut completions = std::mem::take(&mut self.completions);
        self.ring.completions(&mut completions);
        for completion in completions.drain(..) {
            self.complete(completion, now)?;
        }
        self.completions = completions;
        if let Some(query) = self.shard.query_slice() {
            // The queue has room for every query: one is under way at a time.
            let _ = self.answers.send(query);
        }
        if now.monotonic_us >= self.tick_at_us {
            self.tick(now);
        }
        let usage = if self.shard.wants_usage() { self.usage() } else { Usage::default() };
        let acks = self.shard.end_turn(usage, now);
        self.carry_out(now);
        self.ring.publish_buffers();
        if self.links.has_starved() {
            self.links.rearm_starved(self.ring.buffers_free());
        }
        self.publish();
        if acks > 0 {
            let took_us = self.clock.now().monotonic_us - now.monotonic_us;
            self.shard.acked(acks, took_us * 1000);
        }
        Ok(())
    }

    fn complete(&mut self, completion: Completion, now: Now) -> anyhow::Result<()> {
        match self.links.complete(completion) {
            Event::Received { link, buffer, length } => {
                self.shard.received(link, self.ring.filled(buffer, length), now);
                self.ring.give_back(buffer);
            }
            Event::Discard { buffer } => {
                self.ring.filled(buffer, 0);
                self.ring.give_back(buffer);
            }
            Event::Sent { link } => self.shard.sent(link),
            Event::Ended { link, .. } => self.shard.peer_gone(link),
            Event::Wake => {
                if Uring::watch_ended(&completion) {
                    self.ring.watch(self.inbox.wake())?;
                }
                self.hear(now);
            }
            Event::Nothing => {}
        }
        Ok(())
    }

    /// Hears what the control plane has to say.
    fn hear(&mut self, now: Now) {
        let mut bytes = [0; 256];
        while matches!(self.inbox.wake().read(&mut bytes), Ok(count) if count == bytes.len()) {}
        for _ in 0..MESSAGES_MAX {
            match self.inbox.receive() {
                None => return,
                Some(ToShard::Adopt(handover)) => {
                    if self.links.in_use() >= self.config.connections_max as usize {
                        tracing::warn!(shard = self.config.shard, limit = self.config.connections_max, "too many connections");
                        continue;
                    }
                    let link = self.links.open(handover.socket);
                    self.shard.adopt(link, &handover.hello, handover.session, handover.ticket, now);
                }
                Some(ToShard::Query(query)) => {
                    if let Some(refused) = self.shard.begin_query(query) {
                        let _ = self.answers.send(refused);
                    }
                }
                Some(ToShard::SetVerdict(verdict)) => self.shard.set_verdict(verdict),
                Some(ToShard::Drain) => {
                    self.drain_until_us = Some(now.monotonic_us + self.config.drain_deadline.as_micros() as u64);
                    self.shard.drain(now);
                }
            }
        }
    }

    /// Does what the shard wants of the links.
    fn carry_out(&mut self, now: Now) {
        while let Some(command) = self.shard.take_command() {
            match command {
                Command::Finish(link) => {
                    let last = self.shard.last_words(link);
                    self.links.finish(link, last, now.monotonic_us + FINISH_US);
                }
                Command::Close(link) => self.links.close(link),
            }
        }
        while let Some(link) = self.shard.take_dirty() {
            if self.links.can_send(link)
                && let Some(bytes) = self.shard.outbox(link)
            {
                self.links.send(link, bytes);
            }
        }
        // Handing over may have shown that a connection has said all it had to.
        while let Some(Command::Finish(link) | Command::Close(link)) = self.shard.take_command() {
            let last = self.shard.last_words(link);
            self.links.finish(link, last, now.monotonic_us + FINISH_US);
        }
        while let Some(link) = self.links.take_gone() {
            self.shard.link_gone(link, now);
        }
    }

    fn tick(&mut self, now: Now) {
        self.clock.re_anchor();
        self.shard.tick(now);
        self.links.tick(now.monotonic_us);
        self.thread_cpu_us = micros(ClockId::ThreadCPUTime);
        self.tick_at_us = now.monotonic_us + TICK_IDLE_US;
    }

    /// How long the next turn may wait.
    fn wait(&mut self, now: Now) -> Duration {
        if self.shard.has_query() {
            return Duration::ZERO;
        }
        if self.shard.has_deadlines() || self.links.has_deadlines() {
            self.tick_at_us = self.tick_at_us.min(now.monotonic_us + TICK_BUSY_US);
        }
        Duration::from_micros(self.tick_at_us.saturating_sub(now.monotonic_us))
    }

    fn usage(&mut self) -> Usage {
        self.thread_cpu_us = micros(ClockId::ThreadCPUTime);
        Usage {
            process_cpu_us: micros(ClockId::ProcessCPUTime),
            process_rss_bytes: crate::process::resident_bytes(),
            thread_cpu_us: self.thread_cpu_us,
            uptime_us: crate::process::uptime().as_micros() as u64,
        }
    }

    fn publish(&mut self) {
        let mut stats = self.shard.stats();
        stats.cpu_us = self.thread_cpu_us;
        stats.receive_starved = self.links.receive_starved;
        stats.completions_stale = self.links.completions_stale;
        self.page.publish(&stats);
    }
}

/// Monotonic time (suspends included) with an offset to Unix time that is corrected slowly: steps of the system's clock
/// do not move what is kept by time here.
#[derive(Debug)]
struct Clock {
    offset_us: u64,
    anchored_us: u64,
}

impl Clock {
    fn new() -> Self {
        let anchored_us = micros(ClockId::Boottime);
        Self { offset_us: micros(ClockId::Realtime).saturating_sub(anchored_us), anchored_us }
    }

    fn now(&self) -> Now {
        let monotonic_us = micros(ClockId::Boottime);
        Now { monotonic_us, wall_us: monotonic_us + self.offset_us }
    }

    /// Moves the offset towards the system's clock by at most a hundredth of the time since the last call, so that wall
    /// time never goes back.
    fn re_anchor(&mut self) {
        let monotonic_us = micros(ClockId::Boottime);
        let most = (monotonic_us - self.anchored_us) / 100;
        let true_offset = micros(ClockId::Realtime).saturating_sub(monotonic_us);
        self.offset_us = true_offset.clamp(self.offset_us.saturating_sub(most), self.offset_us + most);
        self.anchored_us = monotonic_us;
    }
}

fn micros(clock: ClockId) -> u64 {
    let time = clock_gettime(clock);
    time.tv_sec.cast_unsigned() * 1_000_000 + time.tv_nsec.cast_unsigned() / 1_000
}
