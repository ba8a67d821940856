//! Questions of the pages to the correlator and to the shards, each answered within a deadline or not at all.
//!
//! Answers find their questions by number. A question that was given up is forgotten; its answer is dropped when it comes.

use super::state::{ShardPort, State, unix_us};
use super::{spawn, wait_for};
use crate::analytics::summary::page::{SummaryAsk, SummaryPage};
use crate::analytics::summary::view::{self, TimelineFilter, TimelineView, TopFilter, TopView};
use crate::control::sockets;
use crate::correlator::CorrelatorHandle;
use crate::correlator::messages::{Answer, Ask, QUESTIONS_MAX, Question, Reply};
use crate::queue::Sender;
use crate::shard::messages::{ToShard, VerdictPage};
use glommio::TaskQueueHandle;
use glommio::channels::local_channel::{self, LocalSender};
use glommio::timer::timeout;
use postanalytics_protocol::frames::{Subject, Verdict};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

/// Longest wait for an answer.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(2);
/// Verdicts of a page.
const VERDICTS_OF_PAGE: usize = 1024;

/// Who waits for answers of one kind.
#[derive(Debug)]
pub(super) struct Waiting<T> {
    next: Cell<u64>,
    by_id: RefCell<HashMap<u64, LocalSender<T>>>,
}

impl<T> Default for Waiting<T> {
    fn default() -> Self {
        Self { next: Cell::new(0), by_id: RefCell::default() }
    }
}

impl<T> Waiting<T> {
    /// Asks by `send`, which gets the question's number, and waits. `None`: too many wait already, it could not be sent, or
    /// no answer came.
    async fn ask(&self, send: impl FnOnce(u64) -> bool) -> Option<T> {
        if self.by_id.borrow().len() >= QUESTIONS_MAX {
            return None;
        }
        let id = self.next.get();
        self.next.set(id + 1);
        let (answer_in, answer) = local_channel::new_bounded(1);
        self.by_id.borrow_mut().insert(id, answer_in);
        let received =
            if send(id) { timeout(ANSWER_TIME_MAX, async { Ok(answer.recv().await) }).await.ok().flatten() } else { None };
        self.by_id.borrow_mut().remove(&id);
        received
    }

    /// An answer came.
    pub(super) fn answered(&self, id: u64, answer: T) {
        if let Some(waiting) = self.by_id.borrow().get(&id) {
            let _ = waiting.try_send(answer);
        }
    }
}

/// The way to the correlator.
#[derive(Debug)]
pub(super) struct CorrelatorPort {
    questions: RefCell<Sender<Question>>,
    waiting: Waiting<Answer>,
}

/// Keeps the way to the correlator, and hears its answers.
pub(super) fn open(state: &Rc<State>, handle: CorrelatorHandle, queue: TaskQueueHandle) -> anyhow::Result<()> {
    let CorrelatorHandle { questions, mut answers } = handle;
    let port = CorrelatorPort { questions: RefCell::new(questions), waiting: Waiting::default() };
    anyhow::ensure!(state.correlator.set(port).is_ok(), "the correlator was announced twice");
    let mut wake = sockets::into_glommio(answers.wake().try_clone()?);
    let state = Rc::clone(state);
    let hear = async move {
        while wait_for(&mut wake).await.is_ok() {
            while let (Some(answer), Some(port)) = (answers.receive(), state.correlator.get()) {
                port.waiting.answered(answer.id, answer);
            }
        }
    };
    spawn(hear, queue)
}

/// Asks the correlator. `None`: it is not there yet, or too busy to answer in time.
pub(super) async fn correlator(state: &State, ask: Ask) -> Option<Reply> {
    let port = state.correlator.get()?;
    let send = |id| port.questions.borrow_mut().send(Question { id, ask }).is_ok();
    port.waiting.ask(send).await.map(|answer| answer.reply)
}

/// A top list of all shards together; `None` if a shard did not answer.
pub(super) async fn top(state: &State, filter: TopFilter) -> Option<TopView> {
    let pages = summary_pages(state, SummaryAsk::Top(filter)).await?;
    Some(view::top(&filter, &pages))
}

/// A timeline of all shards together; `None` if a shard did not answer.
pub(super) async fn timeline(state: &State, filter: TimelineFilter) -> Option<TimelineView> {
    let pages = summary_pages(state, SummaryAsk::Timeline(filter)).await?;
    Some(view::timeline(&pages))
}

async fn summary_pages(state: &State, ask: SummaryAsk) -> Option<Vec<SummaryPage>> {
    let mut pages = Vec::new();
    let now_us = unix_us();
    for port in state.shards() {
        let send = |id| {
            let page = Box::new(SummaryPage::new(id, ask, now_us));
            port.messages.borrow_mut().send(ToShard::Summary(page)).is_ok()
        };
        pages.push(*port.summaries.ask(send).await?);
    }
    Some(pages)
}

/// The live verdicts of all shards, those by hand and those of detectors, on one subject or all; `None` if a shard did not answer.
pub(super) async fn verdicts(state: &State, subject: Option<Subject>) -> Option<Vec<Verdict>> {
    let mut all = Vec::new();
    for port in state.shards() {
        let mut from = Some(0);
        while let Some(position) = from {
            let page = verdict_page(port, position, subject).await?;
            all.extend_from_slice(&page.verdicts);
            from = page.next;
        }
    }
    Some(all)
}

async fn verdict_page(port: &ShardPort, from: usize, subject: Option<Subject>) -> Option<Box<VerdictPage>> {
    let send = |id| {
        let page = Box::new(VerdictPage { id, from, subject, verdicts: Vec::with_capacity(VERDICTS_OF_PAGE), next: None });
        port.messages.borrow_mut().send(ToShard::Verdicts(page)).is_ok()
    };
    port.verdicts.ask(send).await
}

/// Sets a verdict by hand, or takes it back, on every shard: a filter that has sent nothing of the source yet has no connection
/// to the shard of it. It ends `duration_us` from now. `false` if a queue is full, and then no shard has it: try again.
pub(super) fn set_verdict(state: &State, verdict: Verdict, duration_us: u64) -> bool {
    let message = || ToShard::SetVerdict { verdict, duration_us };
    // Nobody else puts anything in between.
    state.shards().iter().all(|port| port.messages.borrow().has_room())
        && state.shards().iter().all(|port| port.messages.borrow_mut().send(message()).is_ok())
}
