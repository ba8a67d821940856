//! The control plane: one thread, on glommio, and the only user of it.
//!
//! - [`sockets`]: listeners, and the hand-over of descriptors
//! - [`access`], [`accept`], [`handshake`]: from a connection to a client that a shard may have
//! - [`http`]: the status pages
//! - [`ask`]: questions to the correlator and the shards
//! - [`state`]: what the tasks share
//!
//! It lets connections in and shows what happens; records never pass through it, except copies that `/requests` asks for.
//! No glommio type leaves this module. **Invariants**: tasks live as long as the thread (each spawn costs glommio a little
//! memory for good), nothing here panics on outside data, no accept or read is cancelled, and the executor is never torn
//! down: the process ends instead, for glommio 0.9 can abort on the way.

#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "this is the room that clippy.toml keeps glommio in")]

mod accept;
mod access;
mod ask;
mod handshake;
pub mod http;
pub mod sockets;
mod state;

use crate::analytics::Reload;
use crate::config::Config;
use crate::correlator::CorrelatorHandle;
use crate::correlator::messages::Ask;
use crate::process::{self, panic_text};
use crate::queue::{Receiver, Sender, queue};
use crate::shard::messages::{FromShard, Query, QueryPage, ShardHandle, ShardReload, ToShard, Topology};
use anyhow::Context;
use futures_lite::AsyncReadExt;
use glommio::net::UnixStream;
use glommio::timer::Timer;
use glommio::{Latency, LocalExecutorBuilder, Placement, Shares, TaskQueueHandle};
use state::{ShardPort, State};
use std::cell::{Cell, RefCell};
use std::net::{SocketAddr, TcpListener};
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Time beyond the drain deadline after which a shard is given up.
const DRAIN_SLACK: Duration = Duration::from_secs(2);
/// Memory that glommio registers with the kernel, its smallest: the control plane reads no files by it.
const IO_MEMORY_BYTES: usize = 64 << 10;
/// How long connections may wait for pages.
const LINKS_LATENCY: Duration = Duration::from_millis(5);
/// Messages of the main thread: ready, reload, stop. What finds no room it tells again.
const TO_CONTROL_MAX: usize = 4;

/// What the control plane starts with.
#[derive(Debug)]
pub struct ControlConfig {
    /// The configuration.
    pub config: Arc<Config>,
    /// What all shards have in common.
    pub topology: Arc<Topology>,
    /// Bound, for filtering nodes.
    pub listener: (TcpListener, SocketAddr),
    /// Bound, for the status pages.
    pub status: Option<(TcpListener, SocketAddr)>,
    /// CPUs to run on; empty: any.
    pub cpus: Vec<usize>,
}

/// What the main thread tells the control plane.
#[derive(Debug)]
pub enum ToControl {
    /// The shards are ready, and the correlator: take connections.
    Ready(Vec<ShardHandle>, CorrelatorHandle),
    /// Go on with this configuration, and tell the shards what concerns them.
    Reload {
        /// What holds from now on.
        config: Arc<Config>,
        /// What detectors count; `None`: none runs.
        analytics: Option<Reload>,
    },
    /// Take no more connections, drain the shards, report.
    Stop,
}

/// Starts the thread. It serves the status pages at once, and filtering nodes when the shards are ready. `ended` is called
/// when all is over: with an error if a shard or the control plane failed, and then perhaps again.
pub fn start<F>(control: ControlConfig, ended: F) -> anyhow::Result<Sender<ToControl>>
where
    F: Fn(anyhow::Result<()>) + Clone + Send + 'static,
{
    let (sender, receiver) = queue(TO_CONTROL_MAX).context("no socket pair for the control plane")?;
    let body = move || {
        process::keep_to(&control.cpus, "the control plane");
        let report = ended.clone();
        let ran = std::panic::catch_unwind(AssertUnwindSafe(|| {
            let executor = LocalExecutorBuilder::new(Placement::Unbound).name("control").io_memory(IO_MEMORY_BYTES).make();
            executor.map_err(|error| anyhow::anyhow!("glommio cannot start: {error}"))?.run(run(control, receiver, report))
        }));
        ended(ran.unwrap_or_else(|panic| Err(anyhow::anyhow!("the control plane panicked: {}", panic_text(&*panic)))));
    };
    std::thread::Builder::new().name("control".to_owned()).spawn(body).context("no thread for the control plane")?;
    Ok(sender)
}

/// The executor's first task: the status pages, then what the main thread says. Ends only with an error.
async fn run<F>(control: ControlConfig, mut messages: Receiver<ToControl>, ended: F) -> anyhow::Result<()>
where
    F: Fn(anyhow::Result<()>) + Clone + Send + 'static,
{
    let status_address = control.status.as_ref().map(|(_, address)| *address);
    let state = Rc::new(State::new(control.config, control.topology, status_address));
    // Connections before pages: a scraper must not make filtering nodes wait.
    let links = glommio::executor().create_task_queue(Shares::Static(1000), Latency::Matters(LINKS_LATENCY), "links");
    let pages = glommio::executor().create_task_queue(Shares::Static(100), Latency::NotImportant, "pages");
    if let Some((listener, address)) = control.status {
        let listener = Rc::new(sockets::into_glommio(listener));
        for _ in 0..http::CONNECTIONS_MAX {
            spawn(http::serve(Rc::clone(&state), Rc::clone(&listener)), pages)?;
        }
        tracing::info!(%address, "status_listening");
    }
    let mut wake: UnixStream = sockets::into_glommio(messages.wake().try_clone()?);
    // What the correlator did not take: the next one tells it too.
    let mut undelivered: Option<Reload> = None;
    loop {
        wait_for(&mut wake).await.context("the main thread is gone")?;
        while let Some(message) = messages.receive() {
            match message {
                ToControl::Ready(shards, correlator) => {
                    ask::open(&state, correlator, pages)?;
                    open(&state, shards, &control.listener.0, links, &ended)?;
                    tracing::info!(address = %control.listener.1, "listening");
                }
                ToControl::Reload { config, analytics } => {
                    let (frame_deadline, drain_deadline) = (config.frame_deadline, config.drain_deadline);
                    state.reload(config);
                    if let Some(reload) = &analytics {
                        undelivered = tell_correlator(&state, reload, undelivered).await;
                    }
                    tell_shards(&state, &ShardReload { analytics, frame_deadline, drain_deadline }).await;
                }
                ToControl::Stop => {
                    let result = drain(&state, &control.listener.0).await;
                    ended(result);
                }
            }
        }
    }
}

fn spawn(task: impl Future<Output = ()> + 'static, queue: TaskQueueHandle) -> anyhow::Result<()> {
    glommio::spawn_local_into(task, queue).map_err(|error| anyhow::anyhow!("no task: {error}"))?.detach();
    Ok(())
}

/// Waits until the other end of a queue said something; an error when it is gone.
async fn wait_for(wake: &mut UnixStream) -> std::io::Result<()> {
    let mut bytes = [0; 256];
    loop {
        match wake.read(&mut bytes).await {
            Ok(0) => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// The shards are ready: watches them, and takes connections.
fn open<F>(
    state: &Rc<State>,
    shards: Vec<ShardHandle>,
    listener: &TcpListener,
    links: TaskQueueHandle,
    ended: &F,
) -> anyhow::Result<()>
where
    F: Fn(anyhow::Result<()>) + Clone + Send + 'static,
{
    let (mut ports, mut watched) = (Vec::new(), Vec::new());
    for handle in shards {
        ports.push(ShardPort {
            shard: handle.shard,
            cpu: handle.cpu,
            huge_pages: handle.huge_pages,
            page: handle.page,
            messages: RefCell::new(handle.messages),
            idle_query: RefCell::new(Some(Box::new(blank_query()))),
            verdicts: ask::Waiting::default(),
            summaries: ask::Waiting::default(),
            ended: Cell::new(false),
        });
        watched.push((handle.answers, handle.thread));
    }
    anyhow::ensure!(state.shards.set(ports).is_ok(), "the shards were announced twice");
    for (index, (answers, thread)) in watched.into_iter().enumerate() {
        spawn(watch(Rc::clone(state), index, answers, thread, ended.clone()), links)?;
    }
    let (guests_in, guests) = accept::guests();
    let guests = Rc::new(guests);
    for _ in 0..accept::HANDSHAKES_MAX {
        spawn(accept::shake_hands(Rc::clone(state), Rc::clone(&guests)), links)?;
    }
    let listener = sockets::into_glommio(listener.try_clone()?);
    spawn(accept::accept_all(Rc::clone(state), listener, guests_in), links)
}

fn blank_query() -> Query {
    Query {
        id: 0,
        source: None,
        request_id: None,
        since_us: None,
        limit: 0,
        until_us: None,
        explain: false,
        cursor: None,
        page: QueryPage::new(),
    }
}

/// Takes a shard's answers for as long as it lives, and reports how it ended.
async fn watch<F>(
    state: Rc<State>,
    index: usize,
    mut answers: Receiver<FromShard>,
    thread: JoinHandle<anyhow::Result<()>>,
    ended: F,
) where
    F: Fn(anyhow::Result<()>),
{
    let Some(port) = state.shards().get(index) else { return };
    if let Ok(wake) = answers.wake().try_clone() {
        let mut wake: UnixStream = sockets::into_glommio(wake);
        while wait_for(&mut wake).await.is_ok() {
            while let Some(answer) = answers.receive() {
                match answer {
                    FromShard::Query(query) if query.id == state.scan_id.get() && state.scan_running.get() => {
                        let _ = state.answers.0.try_send((index, query));
                    }
                    FromShard::Query(query) => drop(port.idle_query.replace(Some(query))),
                    FromShard::Verdicts(page) => port.verdicts.answered(page.id, page),
                    FromShard::Summary(page) => port.summaries.answered(page.id, page),
                }
            }
        }
    }
    // The shard let go of its end of the queue, so it is about to end; its memory may take a moment to go.
    while !thread.is_finished() {
        Timer::new(Duration::from_millis(2)).await;
    }
    port.ended.set(true);
    let shard = port.shard;
    match thread.join() {
        Ok(Ok(())) if state.stopping.get() => {}
        Ok(Ok(())) => ended(Err(anyhow::anyhow!("shard {shard} ended although nobody asked it to"))),
        Ok(Err(error)) => ended(Err(error.context(format!("shard {shard} failed")))),
        Err(panic) => ended(Err(anyhow::anyhow!("shard {shard} panicked: {}", panic_text(&*panic)))),
    }
}

/// Tells the correlator of a configuration, and what an earlier one changed that it did not take. Returns what it did not take now.
async fn tell_correlator(state: &State, reload: &Reload, undelivered: Option<Reload>) -> Option<Reload> {
    let mut reload = reload.clone();
    if let Some(earlier) = undelivered {
        reload.unite(&earlier);
    }
    if ask::correlator(state, Ask::Reload(reload.clone())).await.is_some() {
        return None;
    }
    tracing::error!("the correlator did not take the new configuration, the shards do: send SIGHUP again");
    Some(reload)
}

/// Hands every shard what concerns it of a configuration, waiting for those whose queue is full.
async fn tell_shards(state: &State, reload: &ShardReload) {
    let mut to_tell: Vec<&ShardPort> = state.shards().iter().collect();
    loop {
        let tell = |port: &&ShardPort| port.messages.borrow_mut().send(ToShard::Reload(Box::new(reload.clone()))).is_err();
        to_tell.retain(|port| !port.ended.get() && tell(port));
        if to_tell.is_empty() {
            return;
        }
        Timer::new(Duration::from_millis(5)).await;
    }
}

/// Takes no more connections, lets the shards finish what arrived, and waits for them.
async fn drain(state: &State, listener: &TcpListener) -> anyhow::Result<()> {
    if state.stopping.replace(true) {
        return Ok(());
    }
    // Ends the pending accept without cancelling it, and refuses what comes from now on.
    let _ = rustix::net::shutdown(listener, rustix::net::Shutdown::Both);
    let drain_deadline = state.config().drain_deadline;
    let give_up = Instant::now() + drain_deadline + DRAIN_SLACK;
    let mut to_tell: Vec<&ShardPort> = state.shards().iter().collect();
    tracing::info!(shards = to_tell.len(), deadline = ?drain_deadline, "draining");
    loop {
        to_tell.retain(|port| port.messages.borrow_mut().send(ToShard::Drain).is_err());
        let left: Vec<u32> = state.shards().iter().filter(|port| !port.ended.get()).map(|port| port.shard).collect();
        if left.is_empty() {
            tracing::info!("drained");
            return Ok(());
        }
        anyhow::ensure!(
            Instant::now() < give_up,
            "shards {left:?} did not finish within the drain deadline of {drain_deadline:?} and {DRAIN_SLACK:?} more: they are given up; \
             clients will send again what was not acknowledged"
        );
        Timer::new(Duration::from_millis(5)).await;
    }
}
