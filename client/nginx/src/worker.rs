//! What a worker process has: a client, scratch for the filter, a slot in the zone, and a timer that tells the zone what the
//! client counted.
//!
//! It is made after the fork (`init_process`) and used by the worker's one thread; the client has a thread of its own, with all
//! signals blocked.

use crate::conf::MainConf;
use crate::logging;
use crate::nginx::{self, Level, guard};
use crate::zone::{ClientState, Counter, SlotNumber, Zone};
use ngx::ffi;
use postanalytics_client::{Action, Client, Counters, Request, SendError};
use postanalytics_filter::{Engine, Findings, RawRequest, Scratch};
use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::ptr::null_mut;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// How long records may take to get out when the worker ends.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// How old the zone's knowledge of the client is at most while it has records, ms.
const BUSY_MS: usize = 100;
/// Else. Verdicts come on the lanes that are open: as often it is seen to that all of them are.
const IDLE_MS: usize = 2000;
/// How often a full queue is told.
const FULL_EVERY: Duration = Duration::from_secs(10);
/// Least memory for a worker's records: less the client does not take.
const QUEUE_BYTES_MIN: usize = 64 * 1024;

static WORKER: AtomicPtr<Worker> = AtomicPtr::new(null_mut());

pub struct Worker {
    /// `None`: no server is named, or `failed`.
    client: Option<Client>,
    /// Servers are named, and the client could not be made.
    failed: bool,
    engine: Arc<Engine>,
    scratch: RefCell<Scratch>,
    random: RefCell<fastrand::Rng>,
    zone: &'static Zone,
    slot: SlotNumber,
    /// Of the client's `tnt_errors`, what the zone knows.
    told_errors: Cell<u64>,
    told_given_up: Cell<u64>,
    told_elsewhere: Cell<u64>,
    told_full: Cell<Option<Instant>>,
    timer: *mut Timer,
}

/// A timer of NGINX, and the connection that NGINX's debug log wants to see behind every event.
struct Timer {
    event: ffi::ngx_event_t,
    connection: ffi::ngx_connection_t,
    busy: bool,
}

/// Calls `body` with this process's worker, if it is one and filters.
pub fn with<T>(body: impl FnOnce(&Worker) -> T) -> Option<T> {
    // SAFETY: the one thread of the process that NGINX calls us on made it and takes it away, never while it is used: neither
    // `init_process` nor `exit_process` is called from within another callback.
    unsafe { WORKER.load(Relaxed).as_ref() }.map(body)
}

/// A callback has panicked.
pub fn count_panic() {
    with(|worker| worker.count(None, Counter::Panics, 1));
}

/// Makes this process's worker.
///
/// # Safety
/// The zone outlives the process's use of it: it is mapped as long as the process runs.
pub unsafe fn start(main: &MainConf, engine: &Arc<Engine>, zone: &'static Zone, workers: usize) {
    logging::start();
    let slot = zone.claim(std::process::id(), nginx::lives);
    if slot.is_shared() {
        nginx::log(
            Level::Warn,
            "wallarm: more workers than the counters have places for; if one is killed its records are not counted",
        );
    }
    let client = if main.servers.is_empty() { None } else { build_client(main, workers, zone, slot) };
    let failed = client.is_none() && !main.servers.is_empty();
    zone.set_client(
        slot,
        match (&client, failed) {
            (Some(_), _) => ClientState::There,
            (None, true) => ClientState::Failed,
            (None, false) => ClientState::None,
        },
    );
    // SAFETY: plain C structures, for which all zero is a value.
    let timer = Box::into_raw(Box::new(unsafe { std::mem::zeroed::<Timer>() }));
    // SAFETY: it was just made, and is freed by [`stop`] only.
    unsafe {
        (*timer).connection.fd = -1;
        let event = &raw mut (*timer).event;
        (*event).data = (&raw mut (*timer).connection).cast();
        (*event).handler = Some(tick);
        (*event).log = (*ffi::ngx_cycle).log;
        // A worker that is to end does not wait for it.
        (*event).set_cancelable(1);
    }
    let worker = Worker {
        client,
        failed,
        engine: Arc::clone(engine),
        scratch: RefCell::default(),
        random: RefCell::new(fastrand::Rng::new()),
        zone,
        slot,
        told_errors: Cell::new(0),
        told_given_up: Cell::new(0),
        told_elsewhere: Cell::new(0),
        told_full: Cell::new(None),
        timer,
    };
    worker.open_lanes();
    // SAFETY: as above.
    unsafe { ffi::ngx_add_timer(&raw mut (*timer).event, IDLE_MS) };
    WORKER.store(Box::into_raw(Box::new(worker)), Relaxed);
}

fn build_client(main: &MainConf, workers: usize, zone: &'static Zone, slot: SlotNumber) -> Option<Client> {
    let queue_bytes = (main.queue_bytes() / workers.max(1)).max(QUEUE_BYTES_MIN);
    // From the client's thread, as soon as they are known: if this worker is killed, nothing counts as lost that was not.
    let mut builder = Client::builder().queue_bytes(queue_bytes).on_acked(move |records| zone.acked(slot, records.len()));
    for server in &main.servers {
        builder = builder.server(server);
    }
    if let Some((attempts, interval)) = main.reconnect() {
        builder = builder.reconnect_slowly(attempts, interval);
    }
    if let Some(id) = main.node.id {
        builder = builder.node(id);
    }
    if let Some(name) = &main.node.name {
        builder = builder.node_name(name);
    }
    match builder.build() {
        Ok(client) => Some(client),
        Err(error) => {
            nginx::log(
                Level::Error,
                &format!("wallarm: no connection to postanalytics: {error}; requests are served, and lost for it (tnt_errors)"),
            );
            None
        }
    }
}

/// Takes the worker away: what is queued has a second to get out.
pub fn stop() {
    let worker = WORKER.swap(null_mut(), Relaxed);
    if worker.is_null() {
        return;
    }
    // SAFETY: [`start`] made it, and nobody has it any more.
    let mut worker = unsafe { Box::from_raw(worker) };
    // SAFETY: [`start`] made it; the timer is taken out of NGINX's tree before it is freed.
    unsafe {
        if (*worker.timer).event.timer_set() != 0 {
            ffi::ngx_del_timer(&raw mut (*worker.timer).event);
        }
        drop(Box::from_raw(worker.timer));
    }
    if let Some(client) = worker.client.take() {
        let counters = client.close(CLOSE_TIMEOUT);
        worker.tell(&counters);
    }
    logging::write();
    worker.zone.release(worker.slot);
}

unsafe extern "C" fn tick(event: *mut ffi::ngx_event_t) {
    guard((), || {
        with(|worker| {
            // First, so that it goes off again whatever becomes of the rest.
            // SAFETY: `event` is that of the worker's timer, and has just gone off.
            unsafe {
                (*worker.timer).busy = false;
                ffi::ngx_add_timer(event, IDLE_MS);
            }
            logging::write();
            if worker.publish() {
                worker.hurry();
            }
            worker.open_lanes();
        });
    });
}

impl Worker {
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    pub fn inspect(&self, request: &RawRequest<'_>, limit: Duration) -> Findings {
        // Nothing that the engine calls comes back here, so it is free.
        match self.scratch.try_borrow_mut() {
            Ok(mut scratch) => self.engine.inspect(request, limit, &mut scratch),
            Err(_) => self.engine.inspect(request, limit, &mut Scratch::default()),
        }
    }

    /// What the servers say of a source. The unspecified address stands for "not known".
    pub fn listed(&self, source: IpAddr, application: i32) -> Option<Action> {
        if source.is_unspecified() { None } else { self.client.as_ref()?.denylist().lookup(source, application) }
    }

    pub fn request_id(&self) -> [u8; 16] {
        self.random.borrow_mut().u128(..).to_ne_bytes()
    }

    /// The place of an application's counters.
    pub fn application(&self, id: i32) -> Option<usize> {
        self.zone.application(id)
    }

    pub fn count(&self, application: Option<usize>, counter: Counter, value: u64) {
        self.zone.add(self.slot, application, counter, value);
    }

    /// Hands a record to the client.
    pub fn send(&self, request: &Request<'_>) {
        let Some(client) = &self.client else {
            self.count(None, Counter::TntErrors, self.failed.into());
            return;
        };
        match client.try_send(request) {
            Ok(()) => {
                self.zone.accepted(self.slot);
                self.hurry();
            }
            Err(error) => {
                // At once, so that a worker that is killed now has told it.
                self.tell_errors(self.told_errors.get() + 1);
                if matches!(error, SendError::QueueFull { .. }) {
                    self.tell_full(&error);
                }
            }
        }
    }

    fn tell_full(&self, error: &SendError) {
        let now = Instant::now();
        if self.told_full.get().is_none_or(|told| now.duration_since(told) >= FULL_EVERY) {
            self.told_full.set(Some(now));
            let line = format!(
                "wallarm: a message will not be serialized, messages memory limit has reached: {error}; see \
                 wallarm_upstream_queue_memory_limit, of which every worker has its share"
            );
            nginx::log(Level::Error, &line);
        }
    }

    /// The zone is to know soon.
    fn hurry(&self) {
        // SAFETY: [`start`] made the timer, it lives as long as the worker, and only this thread uses it.
        unsafe {
            if !(*self.timer).busy {
                (*self.timer).busy = true;
                let event = &raw mut (*self.timer).event;
                // NGINX leaves a timer that is set for nearly that time where it is, up to 0.3 s later.
                if (*event).timer_set() != 0 {
                    ffi::ngx_del_timer(event);
                }
                ffi::ngx_add_timer(event, BUSY_MS);
            }
        }
    }

    /// Tells the zone what the client counted. Returns whether the client has records.
    pub fn publish(&self) -> bool {
        let Some(client) = &self.client else { return false };
        let counters = client.counters();
        self.tell(&counters);
        counters.queued + counters.in_flight > 0
    }

    fn tell(&self, counters: &Counters) {
        self.tell_errors(counters.tnt_errors());
        let given_up = counters.lost + counters.in_doubt;
        self.zone.given_up(self.slot, given_up - self.told_given_up.replace(given_up));
        let elsewhere = counters.maybe_stored_elsewhere;
        self.count(None, Counter::MaybeStoredElsewhere, elsewhere - self.told_elsewhere.replace(elsewhere));
    }

    fn tell_errors(&self, errors: u64) {
        let told = self.told_errors.get();
        if errors > told {
            self.count(None, Counter::TntErrors, errors - told);
            self.told_errors.set(errors);
        }
    }

    /// Has the client open the lanes that are not open: a server tells verdicts on open ones.
    fn open_lanes(&self) {
        if let Some(client) = &self.client {
            let status = client.status();
            if status.servers.iter().any(|server| !server.connected || server.lanes_open < server.shards) {
                // It is asked for and not waited for.
                let _ = client.server_stats(Duration::ZERO);
            }
        }
    }
}
