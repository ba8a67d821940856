//! The thread of a shard: pinned, with a ring of its own, turning [`Shard`].
//!
//! A turn: submit and wait, read the clock once, drain all completions, hear the control plane, one slice of a query,
//! Acks and verdicts, return the buffers, publish the statistics. Nothing in it allocates, locks or blocks once warm, but for a
//! line of the log, of which there are few: that is made here, and written by another thread.

use super::derived::DerivedSender;
use super::merging::GATHER_US;
use super::messages::{FromShard, MESSAGES_MAX, ShardHandle, ToShard, Topology, VerdictPage};
use super::page::StatsPage;
use super::{Command, Now, Shard, Usage};
use crate::analytics::AnalyticsPlan;
use crate::arena::Log;
use crate::process::ResidentMemory;
use crate::queue::{Receiver, Sender, queue};
use crate::ring::links::{Completion, Operation};
use crate::ring::{Event, Kernel, LinkEnd, Links, Uring, UringConfig};
use crate::seeded::{self, Bug};
use anyhow::{Context, anyhow, bail};
use rustix::time::ClockId;
use std::io::Read;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Between ticks while somebody waits for a deadline.
const TICK_BUSY_US: u64 = 50_000;
/// Between ticks otherwise.
const TICK_IDLE_US: u64 = 1_000_000;
/// Between two looks at how busy the shard is.
const LOAD_US: u64 = 100_000;
/// A link that is told why it ends has this long to read it.
const FINISH_US: u64 = 1_000_000;

/// At the end the correlator has this long to give a box back for what was gathered last.
const LAST_BOX: Duration = Duration::from_secs(1);
/// Turns that cut links have to end their operations.
const CUT_TURNS_MAX: u32 = 20;

/// What a shard is made of.
#[derive(Clone, Debug)]
pub struct ShardConfig {
    /// Its number.
    pub shard: u32,
    /// CPU to pin it to, `None` not to pin it.
    pub cpu: Option<usize>,
    /// Its part of the arena, bytes.
    pub arena_bytes: u64,
    /// Its analysis, of which nothing is known yet.
    pub analytics: AnalyticsPlan,
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

impl ShardConfig {
    /// Size of its ring.
    pub const fn ring(&self) -> UringConfig {
        UringConfig { buffers: self.receive_buffers, buffer_bytes: self.receive_buffer_bytes, links_max: self.connections_max }
    }
}

/// A shard whose memory is being prefaulted.
#[derive(Debug)]
pub struct StartingShard {
    config: ShardConfig,
    page: Arc<StatsPage>,
    messages: Sender<ToShard>,
    answers: Receiver<FromShard>,
    ready: mpsc::Receiver<Ready>,
    thread: std::thread::JoinHandle<anyhow::Result<()>>,
}

#[derive(Debug)]
struct Ready {
    huge_page_bytes: u64,
}

/// Starts the thread of a shard, which maps and prefaults its memory. Start all, then wait for all: they work in parallel.
/// It tells the correlator by `derived`, if there is one.
pub fn start(config: ShardConfig, derived: Option<DerivedSender>) -> anyhow::Result<StartingShard> {
    let page = Arc::new(StatsPage::default());
    let (messages, inbox) = queue(MESSAGES_MAX).context("cannot make the queue to a shard")?;
    let (answers_in, answers) = queue(MESSAGES_MAX).context("cannot make the queue from a shard")?;
    let (ready_in, ready) = mpsc::sync_channel(1);
    let thread = std::thread::Builder::new()
        .name(format!("pa-shard-{}", config.shard))
        .spawn({
            let (config, page) = (config.clone(), Arc::clone(&page));
            move || {
                let (mut driver, huge_page_bytes) = pinned(config, page, inbox, answers_in)?;
                if let Some(derived) = derived {
                    driver.shard.connect_correlator(derived);
                }
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
            huge_pages: ready.huge_page_bytes >= self.config.arena_bytes,
            page: self.page,
            messages: self.messages,
            answers: self.answers,
            thread: self.thread,
        })
    }
}

/// Pins this thread, maps and prefaults the memory, sets the ring up. Returns also the bytes on huge pages.
fn pinned(
    config: ShardConfig,
    page: Arc<StatsPage>,
    inbox: Receiver<ToShard>,
    answers: Sender<FromShard>,
) -> anyhow::Result<(Driver<Uring>, u64)> {
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
    let kernel = Uring::new(config.ring()).context("cannot set up io_uring")?;
    Ok((Driver::new(kernel, (requests, attacks), config, page, inbox, answers)?, huge_page_bytes))
}

/// The loop of a shard over the kernel, or over a simulated one: static dispatch, the same code.
#[derive(Debug)]
pub struct Driver<K> {
    kernel: K,
    links: Links,
    shard: Shard,
    config: ShardConfig,
    inbox: Receiver<ToShard>,
    answers: Sender<FromShard>,
    page: Arc<StatsPage>,
    clock: Clock,
    now: Now,
    completions: Vec<Completion>,
    tick_at_us: u64,
    drain_until_us: Option<u64>,
    thread_cpu_us: u64,
    /// When it was last looked how busy the shard is, and the CPU time that it had used by then, µs.
    load: (u64, u64),
    memory: ResidentMemory,
    /// There may be more messages than were heard.
    hears_on: bool,
    /// The last turn had completions.
    had_completions: bool,
    /// Sends that the kernel was given after it. Each is a completion, most of them at once.
    sends: usize,
    /// Pages of verdicts that were asked for in this turn.
    #[expect(clippy::vec_box, reason = "they come and go as boxes")]
    verdict_pages: Vec<Box<VerdictPage>>,
}

impl<K: Kernel> Driver<K> {
    /// A shard over the request log and the attack log, not turned yet.
    pub fn new(
        mut kernel: K,
        (requests, attacks): (Log, Log),
        config: ShardConfig,
        page: Arc<StatsPage>,
        inbox: Receiver<ToShard>,
        answers: Sender<FromShard>,
    ) -> anyhow::Result<Self> {
        kernel.watch(inbox.wake())?;
        let mut clock = Clock::new();
        Ok(Self {
            links: Links::default(),
            shard: Shard::new(
                config.shard,
                Arc::clone(&config.topology),
                config.frame_deadline,
                requests,
                attacks,
                config.analytics.build(),
            ),
            inbox,
            answers,
            page,
            now: clock.now(&kernel),
            clock,
            completions: Vec::with_capacity(config.ring().completions().min(65_536) as usize),
            tick_at_us: 0,
            drain_until_us: None,
            thread_cpu_us: 0,
            load: (0, 0),
            memory: ResidentMemory::new(),
            hears_on: false,
            had_completions: false,
            sends: 0,
            verdict_pages: Vec::with_capacity(MESSAGES_MAX),
            kernel,
            config,
        })
    }

    /// Turns until drained. Whatever is left then is cut.
    fn run(mut self) -> anyhow::Result<()> {
        let ended = self.run_turns();
        let cut = self.cut();
        let untold = tell_last(&mut self.shard, LAST_BOX);
        if untold > 0 {
            tracing::warn!(
                shard = self.config.shard,
                untold,
                "the correlator took no more: the last events are not shown or written"
            );
        }
        self.publish();
        // What went wrong first says more.
        ended.and(cut)
    }

    /// Ends every operation that is in flight.
    pub fn cut(&mut self) -> anyhow::Result<()> {
        self.links.close_all();
        for _ in 0..CUT_TURNS_MAX {
            if self.links.in_use() == 0 {
                break;
            }
            self.kernel.submit(&mut self.links)?;
            self.kernel.enter(1, Duration::from_millis(10))?;
            let now = self.clock.now(&self.kernel);
            self.turn(now)?;
        }
        Ok(())
    }

    fn run_turns(&mut self) -> anyhow::Result<()> {
        loop {
            self.sleep()?;
            if self.wake()? {
                return Ok(());
            }
        }
    }

    /// First half of a turn: hands the operations to the kernel and waits for it.
    pub fn sleep(&mut self) -> anyhow::Result<()> {
        self.sends = self.links.operations().iter().filter(|operation| matches!(operation, Operation::Send(_))).count();
        self.kernel.submit(&mut self.links)?;
        let (completions, timeout) = self.wait(self.now);
        Ok(self.kernel.enter(completions, timeout)?)
    }

    /// Second half: reads the clock once and does all that there is to do. Returns whether the shard is drained, or its time
    /// for that is over.
    pub fn wake(&mut self) -> anyhow::Result<bool> {
        let now = self.clock.now(&self.kernel);
        self.now = now;
        self.turn(now)?;
        if self.shard.is_drained() && self.links.in_use() == 0 {
            return Ok(true);
        }
        let over = self.drain_until_us.is_some_and(|until_us| until_us <= now.monotonic_us);
        if over {
            tracing::warn!(
                shard = self.config.shard,
                connections = self.links.in_use(),
                "drain deadline passed, connections cut"
            );
        }
        Ok(over)
    }

    /// Whether Acks wait for others, for simulation.
    pub fn acks_wait(&self) -> bool {
        self.shard.acks_wait_us(self.now).is_some()
    }

    /// What it drives, for tests and simulation.
    pub const fn parts(&mut self) -> (&mut K, &Links, &mut Shard) {
        (&mut self.kernel, &self.links, &mut self.shard)
    }

    fn turn(&mut self, now: Now) -> anyhow::Result<()> {
        let mut completions = std::mem::take(&mut self.completions);
        self.kernel.completions(&mut completions)?;
        self.had_completions = !completions.is_empty();
        for completion in completions.drain(..) {
            self.complete(completion, now)?;
        }
        self.completions = completions;
        if self.hears_on {
            self.hear(now);
        }
        if let Some(query) = self.shard.query_slice(now) {
            // The queue has room for every query: one is under way at a time.
            let _ = self.answers.send(FromShard::Query(query));
        }
        if now.monotonic_us >= self.tick_at_us {
            self.tick(now);
        }
        if now.monotonic_us >= self.load.0 + LOAD_US {
            self.look_at_load(now);
        }
        let usage = if self.shard.wants_usage() { self.usage(now) } else { Usage::default() };
        let acks = self.shard.end_turn(usage, now);
        // Not before: what was set or taken back before it was asked for is applied at the end of a turn.
        for mut page in self.verdict_pages.drain(..) {
            self.shard.list_verdicts(&mut page);
            // The control plane waits for no more of them than the queue has room for.
            let _ = self.answers.send(FromShard::Verdicts(page));
        }
        self.carry_out(now);
        self.kernel.publish_buffers();
        if self.links.has_starved() {
            self.links.rearm_starved(self.kernel.buffers_free());
        }
        self.publish();
        if self.shard.has_answered(acks) {
            let ended_us = self.clock.now(&self.kernel).monotonic_us;
            self.shard.acked(acks, now.monotonic_us, ended_us);
        }
        Ok(())
    }

    fn complete(&mut self, completion: Completion, now: Now) -> anyhow::Result<()> {
        match self.links.complete(completion) {
            Event::Received { link, buffer, length } => {
                self.shard.received(link, self.kernel.filled(buffer, length)?, now);
                self.kernel.give_back(buffer);
            }
            Event::Discard { .. } if seeded::is(Bug::BufferKept) => {}
            Event::Discard { buffer } => self.kernel.give_back(buffer),
            Event::Sent { link } => self.shard.sent(link),
            Event::Ended { link, end, buffer } => {
                if let Some(buffer) = buffer {
                    self.kernel.give_back(buffer);
                }
                match end {
                    LinkEnd::PeerClosed => self.shard.peer_closed(link),
                    LinkEnd::Failed(_) => self.shard.broken(link),
                }
            }
            Event::Wake => {
                if Uring::watch_ended(&completion) {
                    self.kernel.watch(self.inbox.wake())?;
                }
                // Once a turn, whatever woke it.
                self.hears_on = true;
            }
            Event::Nothing => {}
        }
        Ok(())
    }

    /// Hears what the control plane has to say, up to the first question that takes a while to answer: one a turn, so that
    /// whoever asks for pages does not keep records waiting.
    fn hear(&mut self, now: Now) {
        self.hears_on = false;
        let mut bytes = [0; 256];
        while matches!(self.inbox.wake().read(&mut bytes), Ok(count) if count == bytes.len()) {}
        for _ in 0..MESSAGES_MAX {
            match self.inbox.receive() {
                None => return,
                Some(ToShard::Adopt(handover)) => {
                    // The control plane counts connections; this one counts links that are still closing too. The ring
                    // has no room for more, so the socket closes unserved and the client comes again.
                    if self.links.in_use() >= self.config.connections_max as usize {
                        continue;
                    }
                    let link = self.links.open(handover.socket);
                    self.shard.adopt(link, &handover.hello, handover.session, handover.ticket, now);
                }
                Some(ToShard::Query(query)) => {
                    if let Some(refused) = self.shard.begin_query(query) {
                        let _ = self.answers.send(FromShard::Query(refused));
                    }
                }
                Some(ToShard::Verdicts(page)) => self.verdict_pages.push(page),
                Some(ToShard::Summary(mut page)) => {
                    self.shard.fill_summary(&mut page);
                    let _ = self.answers.send(FromShard::Summary(page));
                    self.hears_on = true;
                    return;
                }
                Some(ToShard::SetVerdict { verdict, duration_us }) => self.shard.set_verdict(verdict, duration_us, now),
                Some(ToShard::Reload(reload)) => {
                    self.config.drain_deadline = reload.drain_deadline;
                    self.shard.reload(&reload);
                }
                Some(ToShard::Drain) => {
                    self.drain_until_us = Some(now.monotonic_us + self.config.drain_deadline.as_micros() as u64);
                    self.shard.drain(now);
                }
            }
        }
    }

    /// Does what the shard wants of the links.
    fn carry_out(&mut self, now: Now) {
        let leaks = seeded::is(Bug::SlotLeaked) && self.drain_until_us.is_some();
        while let Some(command) = self.shard.take_command() {
            match command {
                _ if leaks => {}
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
            if leaks {
                continue;
            }
            let last = self.shard.last_words(link);
            self.links.finish(link, last, now.monotonic_us + FINISH_US);
        }
        while let Some(link) = self.links.take_gone() {
            self.shard.link_gone(link, now);
        }
    }

    fn tick(&mut self, now: Now) {
        self.shard.tick(now);
        self.links.tick(now.monotonic_us);
        self.thread_cpu_us = self.kernel.clock_us(ClockId::ThreadCPUTime);
        self.tick_at_us = now.monotonic_us + TICK_IDLE_US;
    }

    /// Lets the shard decide whether Acks and turns wait, by how busy it was.
    fn look_at_load(&mut self, now: Now) {
        self.thread_cpu_us = self.kernel.clock_us(ClockId::ThreadCPUTime);
        let (since_us, used_us) = std::mem::replace(&mut self.load, (now.monotonic_us, self.thread_cpu_us));
        let (used_us, passed_us) = (self.thread_cpu_us.saturating_sub(used_us), now.monotonic_us - since_us);
        self.shard.merging.look(used_us, passed_us, now.monotonic_us);
    }

    /// How many completions the next turn waits for, and how long at most.
    fn wait(&mut self, now: Now) -> (usize, Duration) {
        // Starved links are armed again a few at a time; some of them may have nothing to say, so no completion is sure
        // to come and lead to the next few.
        let verdicts_us = self.shard.verdicts_wait_us(now).unwrap_or(u64::MAX);
        if self.hears_on || self.shard.has_query() || verdicts_us == 0 || self.links.has_starved() {
            return (1, Duration::ZERO);
        }
        if self.shard.has_deadlines() || self.links.has_deadlines() {
            self.tick_at_us = self.tick_at_us.min(now.monotonic_us + TICK_BUSY_US);
        }
        let acks_us = self.shard.acks_wait_us(now).unwrap_or(u64::MAX);
        let wait_us = self.tick_at_us.saturating_sub(now.monotonic_us).min(verdicts_us).min(acks_us);
        match self.shard.gathered().filter(|_| self.had_completions) {
            // Who has much to say is there without being waited for.
            Some(messages) => {
                let messages = messages.min(self.config.receive_buffers.into()) as usize;
                ((messages + self.sends).max(1), Duration::from_micros(wait_us.min(GATHER_US)))
            }
            None => (1, Duration::from_micros(wait_us)),
        }
    }

    fn usage(&mut self, now: Now) -> Usage {
        self.thread_cpu_us = self.kernel.clock_us(ClockId::ThreadCPUTime);
        Usage {
            process_cpu_us: self.kernel.clock_us(ClockId::ProcessCPUTime),
            process_rss_bytes: self.memory.bytes(now.monotonic_us),
            thread_cpu_us: self.thread_cpu_us,
            uptime_us: crate::process::uptime().as_micros() as u64,
        }
    }

    fn publish(&mut self) {
        let mut stats = self.shard.stats();
        stats.cpu_us = self.thread_cpu_us;
        stats.receive_starved = self.links.receive_starved;
        stats.completions_stale = self.links.completions_stale;
        stats.ring_retries = self.kernel.retries();
        self.page.publish(&stats);
        if let Some(totals) = self.shard.take_totals() {
            self.page.publish_totals(&totals);
        }
    }
}

/// Waits for a free box, no longer than this, and tells the correlator what no turn comes to tell any more. Returns how many events
/// found none; they count as dropped.
fn tell_last(shard: &mut Shard, within: Duration) -> u64 {
    let give_up = Instant::now() + within;
    while shard.tell_correlator() > 0 {
        if Instant::now() >= give_up {
            return shard.give_up_untold();
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    0
}

/// Monotonic time (suspends included) with an offset to Unix time. Wall time follows the system's clock forward at once
/// and backward slowly, by a hundredth of the time that passes; it never goes back itself.
#[derive(Debug)]
struct Clock {
    offset_us: u64,
    anchored_us: u64,
    wall_us: u64,
}

/// Between two looks at the system's clock.
const ANCHOR_US: u64 = 100_000;

impl Clock {
    fn new() -> Self {
        Self { offset_us: 0, anchored_us: 0, wall_us: 0 }
    }

    fn now(&mut self, kernel: &impl Kernel) -> Now {
        let monotonic_us = kernel.clock_us(ClockId::Boottime);
        if monotonic_us - self.anchored_us >= ANCHOR_US {
            self.anchor(monotonic_us, kernel.clock_us(ClockId::Realtime));
        }
        self.at(monotonic_us)
    }

    fn at(&mut self, monotonic_us: u64) -> Now {
        self.wall_us = self.wall_us.max(monotonic_us + self.offset_us);
        Now { monotonic_us, wall_us: self.wall_us }
    }

    fn anchor(&mut self, monotonic_us: u64, system_us: u64) {
        let back_us_max = (monotonic_us - self.anchored_us) / 100;
        self.offset_us = system_us.saturating_sub(monotonic_us).max(self.offset_us.saturating_sub(back_us_max));
        self.anchored_us = monotonic_us;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analytics::summary::page::{SummaryAsk, SummaryPage};
    use crate::analytics::summary::view::TimelineFilter;
    use crate::ring::links::WAKE_USER_DATA;
    use crate::shard::derived::derived_queue;
    use crate::shard::merging::ACK_WAIT_US;
    use crate::shard::tests::{SESSION, World, frame, reload_with_allowlist, topology, world_with_verdicts};
    use postanalytics_protocol::frames::{Subject, Verdict};
    use std::io;
    use std::os::unix::net::UnixStream;

    /// A kernel without sockets, whose first wait fails and every later one, too, each with a text of its own.
    #[derive(Debug, Default)]
    struct LoneKernel {
        waits: Option<u32>,
        completions: Vec<Completion>,
        thread_cpu_us: u64,
    }

    impl Kernel for LoneKernel {
        fn watch(&mut self, _: &UnixStream) -> io::Result<()> {
            Ok(())
        }

        fn submit(&mut self, _: &mut Links) -> io::Result<()> {
            Ok(())
        }

        fn enter(&mut self, _: usize, _: Duration) -> io::Result<()> {
            let Some(waits) = &mut self.waits else { return Ok(()) };
            *waits += 1;
            Err(io::Error::other(format!("wait {waits} failed")))
        }

        fn completions(&mut self, into: &mut Vec<Completion>) -> io::Result<()> {
            into.append(&mut self.completions);
            Ok(())
        }

        fn filled(&self, _: u16, _: u32) -> io::Result<&[u8]> {
            Ok(&[])
        }

        fn give_back(&mut self, _: u16) {}

        fn publish_buffers(&mut self) {}

        fn buffers_free(&self) -> usize {
            0
        }

        fn retries(&self) -> u64 {
            0
        }

        fn clock_us(&self, clock: ClockId) -> u64 {
            if clock == ClockId::ThreadCPUTime { self.thread_cpu_us } else { 1_000_000 }
        }
    }

    /// A loop over this kernel, the way to it, and what it answers.
    fn driver(kernel: LoneKernel) -> (Driver<LoneKernel>, Sender<ToShard>, Receiver<FromShard>) {
        let config = ShardConfig {
            shard: 0,
            cpu: None,
            arena_bytes: 0,
            analytics: AnalyticsPlan::default(),
            topology: topology(1),
            receive_buffers: 2,
            receive_buffer_bytes: 256,
            connections_max: 4,
            frame_deadline: Duration::from_secs(1),
            drain_deadline: Duration::from_secs(1),
        };
        let (messages, inbox) = queue(MESSAGES_MAX).expect("a socket pair");
        let (answers_in, answers) = queue(MESSAGES_MAX).expect("a socket pair");
        let logs = (Log::new(2).expect("4 MiB"), Log::new(2).expect("4 MiB"));
        (Driver::new(kernel, logs, config, Arc::default(), inbox, answers_in).expect("a driver"), messages, answers)
    }

    #[test]
    fn what_went_wrong_first_is_told() {
        let (mut driver, _messages, _answers) = driver(LoneKernel { waits: Some(0), ..LoneKernel::default() });
        // A link to cut, so that the kernel is asked once more.
        driver.links.open(UnixStream::pair().expect("a socket pair").0.into());
        assert_eq!(driver.run().expect_err("it fails").to_string(), "wait 1 failed");
    }

    #[test]
    fn of_pages_that_take_a_while_one_is_filled_a_turn() {
        let (mut driver, mut messages, mut answers) = driver(LoneKernel::default());
        for id in 0..3 {
            let page = SummaryPage::new(id, SummaryAsk::Timeline(TimelineFilter::default()), 0);
            messages.send(ToShard::Summary(Box::new(page))).expect("room");
        }
        driver.kernel.completions.push(Completion { user_data: WAKE_USER_DATA, result: 1, flags: 2 });
        let mut answered = || std::iter::from_fn(|| answers.receive()).count();
        for expected in [1, 1, 1, 0] {
            driver.wake().expect("a turn");
            assert_eq!(answered(), expected);
        }
        // A wake-up that comes while there is more to hear asks for no second page in its turn.
        for id in 0..2 {
            let page = SummaryPage::new(id, SummaryAsk::Timeline(TimelineFilter::default()), 0);
            messages.send(ToShard::Summary(Box::new(page))).expect("room");
        }
        for expected in [1, 1, 0] {
            driver.kernel.completions.push(Completion { user_data: WAKE_USER_DATA, result: 1, flags: 2 });
            driver.wake().expect("a turn");
            assert_eq!(answered(), expected);
        }
    }

    #[test]
    fn who_asks_for_verdicts_sees_what_was_set_and_taken_back_before() {
        let (mut driver, mut messages, mut answers) = driver(LoneKernel::default());
        let mut listed_after = |action| {
            let subject = Subject::Session(7);
            let verdict = Verdict { subject, application: None, action, until_us: 0, detector: 0 };
            messages.send(ToShard::SetVerdict { verdict, duration_us: 1_000_000 }).expect("room");
            let page = VerdictPage { id: 1, from: 0, subject: Some(subject), verdicts: Vec::with_capacity(4), next: None };
            messages.send(ToShard::Verdicts(Box::new(page))).expect("room");
            // One wake-up for both.
            driver.kernel.completions.push(Completion { user_data: WAKE_USER_DATA, result: 1, flags: 2 });
            driver.wake().expect("a turn");
            match answers.receive() {
                Some(FromShard::Verdicts(page)) => page.verdicts.len(),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(listed_after(Some(postanalytics_protocol::frames::Action::Denylist)), 1);
        assert_eq!(listed_after(None), 0);
    }

    #[test]
    fn acks_wait_while_the_shard_uses_most_of_its_processor() {
        let (mut driver, _messages, _answers) = driver(LoneKernel::default());
        let mut world = World::with_slabs(1, 2);
        world.connect(0, 1, SESSION);
        world.turn(0);
        let mut now = world.now;
        driver.links.open(UnixStream::pair().expect("a socket pair").0.into());
        (driver.shard, driver.load) = (world.shard, (now.monotonic_us, driver.kernel.thread_cpu_us));
        let mut sequence = 0;
        // The share of the time since the last look counts; a look comes 100 ms after the last one.
        for (after_us, used_us, waits) in [
            (100_000, 74_999, false),
            (100_000, 75_000, true),
            (100_000, 35_000, true),
            (99_999, 0, true),
            (1, 0, false),
            (1_000_000, 749_999, false),
        ] {
            now.monotonic_us += after_us;
            driver.kernel.thread_cpu_us += used_us;
            driver.turn(now).expect("a turn");
            sequence += 1;
            driver.shard.received(0, &frame(sequence, &["/"]), now);
            assert_eq!(driver.shard.acks_wait_us(now), waits.then_some(ACK_WAIT_US), "{after_us} {used_us}");
            assert_eq!(driver.wait(now).1 <= Duration::from_micros(ACK_WAIT_US), waits);
        }
    }

    #[test]
    fn a_busy_shard_waits_for_a_message_of_each_sender_but_not_long() {
        let (mut driver, _messages, _answers) = driver(LoneKernel::default());
        driver.config.receive_buffers = 32;
        let mut now = driver.now;
        driver.load = (now.monotonic_us, 0);
        let gathers = |completions: usize| (completions, Duration::from_micros(GATHER_US));
        let waits = (1, Duration::from_micros(TICK_IDLE_US));
        for (senders, used_us, message, expected) in [
            (3, 100_000, true, gathers(3)),
            (3, 100_000, false, waits),
            (20, 100_000, true, gathers(16)),
            (0, 100_000, true, gathers(1)),
            (20, 0, true, waits),
        ] {
            now.monotonic_us += LOAD_US;
            driver.kernel.thread_cpu_us += used_us;
            driver.shard.merging.intake.connections = senders;
            // Of a link that is no more: nothing but a completion.
            driver.kernel.completions.extend(message.then_some(Completion { user_data: 1 << 56 | 99, result: 0, flags: 0 }));
            driver.turn(now).expect("a turn");
            driver.tick_at_us = now.monotonic_us + TICK_IDLE_US;
            assert_eq!(driver.wait(now), expected, "{senders} {used_us} {message}");
        }
        // What is sent is there at once, and no message.
        now.monotonic_us += LOAD_US;
        driver.kernel.thread_cpu_us += LOAD_US;
        driver.shard.merging.intake.connections = 20;
        driver.kernel.completions.push(Completion { user_data: 1 << 56 | 99, result: 0, flags: 0 });
        driver.turn(now).expect("a turn");
        driver.now = now;
        let link = driver.links.open(UnixStream::pair().expect("a socket pair").0.into());
        driver.links.send(link, &mut vec![1]);
        driver.sleep().expect("a turn");
        assert_eq!(driver.wait(now).0, 16 + 1);
        driver.config.receive_buffers = 2;
        assert_eq!(driver.wait(now).0, 3);
        // Who waits to hear more is not kept waiting, nor who is told why it ends.
        driver.tick_at_us = now.monotonic_us + GATHER_US / 2;
        assert_eq!(driver.wait(now).1, Duration::from_micros(GATHER_US / 2));
        driver.hears_on = true;
        assert_eq!(driver.wait(now), (1, Duration::ZERO));
        driver.hears_on = false;
        driver.shard.drain(now);
        assert_eq!(driver.wait(now).0, 1);
    }

    #[test]
    fn while_peers_are_waited_for_turns_wait_too() {
        let (mut driver, _messages, _answers) = driver(LoneKernel::default());
        let mut world = world_with_verdicts(30_000);
        reload_with_allowlist(&mut world, "10.0.0.0/8");
        // Nobody reads what the first few say.
        for _ in 0..8 {
            world.shard.end_turn(Usage::default(), world.now);
        }
        let start = world.now;
        (driver.shard, driver.tick_at_us) = (world.shard, u64::MAX);
        for (after_us, wait_us) in [(0, 250_000), (249_999, 1), (250_000, 0)] {
            let now = Now { monotonic_us: start.monotonic_us + after_us, ..start };
            assert_eq!(driver.wait(now), (1, Duration::from_micros(wait_us)));
        }
    }

    #[test]
    fn what_was_gathered_last_is_told_or_counted() {
        let (sender, mut receiver) = derived_queue().expect("socket pairs");
        let mut world = World::with_slabs(1, 2);
        world.shard.connect_correlator(sender);
        let verdict = |session| Verdict {
            subject: Subject::Session(session),
            application: None,
            action: Some(postanalytics_protocol::frames::Action::Denylist),
            until_us: 0,
            detector: 0,
        };
        // A box a turn, as long as there are any; the last two wait.
        for session in 0..crate::shard::derived::BOXES as u64 + 2 {
            world.shard.set_verdict(verdict(session), 0, Now::default());
            world.shard.end_turn(Usage::default(), Now::default());
        }
        let correlator = std::thread::spawn(move || {
            let parcel = receiver.receive().expect("all boxes are full");
            receiver.give_back(parcel);
            receiver
        });
        assert_eq!(tell_last(&mut world.shard, Duration::from_secs(60)), 0);
        let mut receiver = correlator.join().expect("no panic");
        let last = std::iter::from_fn(|| receiver.receive()).last().expect("boxes");
        assert_eq!(last.verdicts.iter().map(|report| report.verdict).collect::<Vec<_>>(), [verdict(16), verdict(17)]);

        // That box does not come back. Nor do the others.
        world.shard.set_verdict(verdict(18), 0, Now::default());
        world.shard.end_turn(Usage::default(), Now::default());
        assert_eq!(tell_last(&mut world.shard, Duration::ZERO), 1);
        assert_eq!((tell_last(&mut world.shard, Duration::ZERO), world.shard.stats().derived_lost), (0, 1), "once");
    }

    #[test]
    fn wall_time_follows_forward_at_once_backward_slowly_and_never_goes_back() {
        const HOUR_US: u64 = 3_600_000_000;
        let mut clock = Clock::new();
        clock.anchor(1_000_000, 50 * HOUR_US);
        let start = clock.at(1_000_000).wall_us;
        assert_eq!(start, 50 * HOUR_US);
        clock.anchor(2_000_000, 51 * HOUR_US);
        let mut last = clock.at(2_000_000).wall_us;
        assert_eq!(last, 51 * HOUR_US, "forward at once");
        for second in 3..=300 {
            let monotonic_us = second * 1_000_000;
            clock.anchor(monotonic_us, 50 * HOUR_US + monotonic_us);
            let wall_us = clock.at(monotonic_us).wall_us;
            assert!(wall_us > last && wall_us - last >= 980_000, "{second}: {last} to {wall_us}");
            last = wall_us;
        }
        assert!(last < 51 * HOUR_US + 298_000_000 - 2_000_000, "backward it comes nearer");
    }
}
