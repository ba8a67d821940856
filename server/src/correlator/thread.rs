//! The thread of the correlator: hears the shards and the control plane, asleep while neither says anything.
//!
//! It ends when every shard is gone and all they said was taken. Its work is done in bounded slices, a box of each shard and
//! one question in turn, so that neither waits long for the other.

use super::Correlator;
use super::events::EventsFile;
use super::messages::{Answer, QUESTIONS_MAX, Question};
use crate::analytics::settings::Settings;
use crate::logging::LogFile;
use crate::process::{self, panic_text};
use crate::queue::{Receiver, Sender, queue};
use crate::shard::derived::DerivedReceiver;
use anyhow::Context;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::Timespec;
use std::io::Read;
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Between ticks.
const TICK: Duration = Duration::from_secs(1);

/// What the correlator starts with.
#[derive(Debug)]
pub struct CorrelatorConfig {
    /// What detectors count.
    pub settings: Arc<Settings>,
    /// Keys its fingerprints; that of the shards.
    pub seed: u64,
    /// Its end of the queue of each shard.
    pub shards: Vec<DerivedReceiver>,
    /// The events file, if one is wanted.
    pub events: Option<LogFile>,
    /// CPUs to run on; empty: any.
    pub cpus: Vec<usize>,
}

/// The control plane's end.
#[derive(Debug)]
pub struct CorrelatorHandle {
    /// Questions to it.
    pub questions: Sender<Question>,
    /// Its answers.
    pub answers: Receiver<Answer>,
}

/// Starts the thread. It ends some time after the shards; `failed` is called if it panics.
pub fn start<F>(config: CorrelatorConfig, failed: F) -> anyhow::Result<(CorrelatorHandle, JoinHandle<()>)>
where
    F: FnOnce(anyhow::Error) + Send + 'static,
{
    let (questions_in, questions) = queue(QUESTIONS_MAX).context("no socket pair for the correlator")?;
    let (answers_in, answers) = queue(QUESTIONS_MAX).context("no socket pair for the correlator")?;
    let events = config.events.map(EventsFile::start).transpose().context("no thread for the events file")?;
    let driver = Driver {
        shards: config.shards.into_iter().map(|receiver| Shard { receiver, is_over: false }).collect(),
        questions,
        answers: answers_in,
        tick_at: Instant::now() + TICK,
    };
    let (settings, seed, cpus) = (config.settings, config.seed, config.cpus);
    let body = move || {
        process::keep_to(&cpus, "the correlator");
        // What it knew may be half changed: without it users, attacks and pages would silently be missing, so the server ends.
        let ran = catch_unwind(AssertUnwindSafe(|| driver.run(Correlator::new(settings, seed, events))));
        if let Err(panic) = ran {
            failed(anyhow::anyhow!("the correlator panicked: {}", panic_text(&*panic)));
        }
    };
    let thread = std::thread::Builder::new().name("correlator".to_owned()).spawn(body).context("no thread for the correlator")?;
    Ok((CorrelatorHandle { questions: questions_in, answers }, thread))
}

#[derive(Debug)]
struct Shard {
    receiver: DerivedReceiver,
    /// It is gone; what it said may still wait.
    is_over: bool,
}

#[derive(Debug)]
struct Driver {
    shards: Vec<Shard>,
    questions: Receiver<Question>,
    answers: Sender<Answer>,
    tick_at: Instant,
}

impl Driver {
    fn run(mut self, mut correlator: Correlator) {
        let mut questions_over = false;
        loop {
            // First whether anybody is gone, then what there is: so nothing said before is missed.
            self.shards.iter_mut().filter(|shard| !shard.is_over).for_each(|shard| shard.is_over = heard(shard.receiver.wake()));
            questions_over = questions_over || heard(self.questions.wake());
            let is_busy = self.slice(&mut correlator);
            if is_busy {
                continue;
            }
            if self.shards.iter().all(|shard| shard.is_over) {
                correlator.finish();
                return;
            }
            self.sleep(questions_over);
        }
    }

    /// A box of each shard and a question. Returns whether there was any.
    fn slice(&mut self, correlator: &mut Correlator) -> bool {
        let now_us = unix_us();
        let mut is_busy = false;
        for shard in &mut self.shards {
            if let Some(parcel) = shard.receiver.receive() {
                correlator.take(&parcel, now_us);
                shard.receiver.give_back(parcel);
                is_busy = true;
            }
        }
        if let Some(question) = self.questions.receive() {
            // The control plane asks no more than the queue has room for.
            let _ = self.answers.send(Answer { id: question.id, reply: correlator.answer(&question.ask, now_us) });
            is_busy = true;
        }
        if Instant::now() >= self.tick_at {
            self.tick_at = Instant::now() + TICK;
            correlator.tick(now_us);
        }
        is_busy
    }

    fn sleep(&self, questions_over: bool) {
        let shards = self.shards.iter().filter(|shard| !shard.is_over).map(|shard| shard.receiver.wake());
        let questions = (!questions_over).then(|| self.questions.wake());
        let mut readable: Vec<PollFd<'_>> = shards.chain(questions).map(|wake| PollFd::new(wake, PollFlags::IN)).collect();
        let left = self.tick_at.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        // Interrupted or not: all queues are looked at.
        let _ = poll(&mut readable, Some(&timeout));
    }
}

/// Reads wake-ups; returns whether the other end is gone.
fn heard(mut wake: &UnixStream) -> bool {
    let mut bytes = [0; 256];
    loop {
        match wake.read(&mut bytes) {
            Ok(0) => return true,
            Ok(count) if count == bytes.len() => {}
            _ => return false,
        }
    }
}

/// Unix time, µs.
fn unix_us() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
