//! Hands what a filtering node has processed to postanalytics, without ever getting in the site's way.
//!
//! ```no_run
//! use postanalytics_client::{Client, Request};
//! use std::time::Duration;
//!
//! let client = Client::builder().server("127.0.0.1:3313").build()?;
//! let request = Request { client_ip: [192, 0, 2, 7].into(), status: 200, path: b"/", ..Request::default() };
//! if client.denylist().contains(request.client_ip) {
//!     // refuse it
//! }
//! client.try_send(&request)?; // copies and returns; never waits for anybody
//! client.flush(Duration::from_secs(1))?;
//! assert_eq!(client.counters().acked, 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What you can rely on
//!
//! - **`try_send` never blocks.** It copies the record into a bounded queue and returns. When the queue is full the record is
//!   refused and counted; a quarter of the queue is kept for records with hits, so ordinary traffic cannot crowd them out.
//! - **Every record is accounted for.** [`Counters`] is one consistent snapshot in which `offered = accepted + refused` and
//!   `accepted = acked + lost + in_doubt + queued + in_flight`, always. [`Counters::tnt_errors`] of 0 means that postanalytics
//!   got everything.
//! - **Exactly once per server.** What a broken connection may have swallowed is sent again under the same number, and the
//!   server drops what it has. A break and reconnect to the same server loses and doubles nothing.
//! - **Several servers.** Each source has one of them ([`ClientBuilder::server`]); when one is away, the others get its records.
//!   Those that it may have stored are sent marked and counted ([`Counters::maybe_stored_elsewhere`]).
//! - **User names and session ids never leave the node in clear text**, only hashed with the server's key.
//! - **It stays out of the way.** One background thread, `pa-client`, with all signals blocked, and for a server given by name
//!   one more, `pa-lookup`, while the name is looked up; no async runtime, no global state, no `SIGPIPE`. The denylist is read
//!   lock-free.
//!
//! # Forking servers
//!
//! Build the client *after* `fork`, in each worker. A child that uses its parent's client gets an error, not a deadlock.
//!
//! # Beside rkyv archives of your own
//!
//! The protocol needs rkyv's feature `unaligned`, and cargo gives it to the whole build: archives of your application have no
//! padding then, those that it wrote without the feature are not read any more, and its `aligned` beside it does not build.
//!
//! # How it works inside
//!
//! `request → front → queue → core → server → batcher → lane → link → thread`: a request is copied into
//! [rings](Client::try_send) of the site's thread, without a lock; the background thread takes it from there, routes it by its
//! source to the lane of one shard of one server, and batches it with others for 200 µs to 200 ms, depending on the rate. A hit, a 4xx or an attempt to log in goes at once. Everything between queue and sockets is
//! sans-IO and is tested from a seed.

#![forbid(unsafe_code)]

pub mod access_log;
mod ack;
mod batcher;
mod bundle;
mod config;
mod connection;
mod core;
mod counters;
mod denylist;
mod front;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod lane;
mod link;
mod queue;
mod request;
mod server;
#[cfg(feature = "simulation")]
#[doc(hidden)]
pub mod simulated;
#[cfg(test)]
mod simulation;
mod stats;
mod status;
mod sync;
mod thread;
mod topology;
mod verdict_table;

pub use crate::ack::AckedRecord;
pub use crate::config::{BuildError, ClientBuilder, SERVERS_MAX};
pub use crate::counters::Counters;
pub use crate::denylist::{Denylist, ListChange, VERDICTS_PER_SHARD_MAX};
pub use crate::queue::SendError;
pub use crate::request::{RECORD_BYTES_MAX, Request};
pub use crate::stats::{ServerStats, StatsError};
pub use crate::status::{ClientStatus, ServerStatus};
pub use postanalytics_protocol::frames::{Action, Subject};
pub use postanalytics_protocol::{EncodeError, Extension, Hit};

use crate::ack::AckHook;
use crate::config::Config;
use crate::core::Core;
use crate::denylist::ListHook;
use crate::queue::Queue;
use nix::sys::signal::{SigSet, SigmaskHow};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use thiserror::Error;

/// How long a client that is dropped without [`Client::close`] tries to get its records out.
const DROP_TIMEOUT: Duration = Duration::from_secs(1);

/// Why a flush did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum FlushError {
    /// Time was over.
    #[error("{left} records are not settled yet; is a server reachable? See Client::status")]
    Timeout {
        /// Records queued or in flight, those accepted since included.
        left: u64,
    },
    /// This process was forked from the one that built the client.
    #[error("the client belongs to process {owner}, of which this one is a fork; build a client after fork")]
    Forked {
        /// The process that built the client.
        owner: u32,
    },
}

/// The connections to one postanalytics server or several, shared by all threads of the site (`Send + Sync`, put it into an `Arc`).
///
/// Dropping it waits up to a second for what is queued; [`Client::close`] lets you choose, and tells what became of it.
pub struct Client {
    queue: Arc<Queue>,
    denylist: Arc<Denylist>,
    thread: Option<JoinHandle<()>>,
}

impl Client {
    /// Starts to build a client.
    pub fn builder() -> ClientBuilder {
        ClientBuilder::default()
    }

    /// Copies the record into the queue and returns. Never blocks; what it refuses is counted.
    pub fn try_send(&self, request: &Request<'_>) -> Result<(), SendError> {
        self.queue.try_send(request)
    }

    /// Waits until every record accepted so far is acknowledged, lost or in doubt; batches do not wait for company meanwhile.
    pub fn flush(&self, timeout: Duration) -> Result<(), FlushError> {
        if let Some(owner) = self.queue.forked_from() {
            return Err(FlushError::Forked { owner });
        }
        self.queue.flush(timeout).map_err(|left| FlushError::Timeout { left })
    }

    /// One consistent snapshot: the laws of [`Counters`] hold in it.
    pub fn counters(&self) -> Counters {
        self.queue.counters()
    }

    /// Who is listed.
    pub fn denylist(&self) -> &Denylist {
        &self.denylist
    }

    /// Asks every shard of every server for its statistics and sums them, those of servers that are away left out
    /// ([`Self::stats_of_servers`] tells which). Opens lanes that are not open yet.
    pub fn server_stats(&self, timeout: Duration) -> Result<ServerStats, StatsError> {
        let servers = self.stats_of_servers(timeout)?;
        let mut sum = ServerStats::default();
        servers.iter().flatten().for_each(|stats| sum.add_server(stats));
        Ok(sum)
    }

    /// The same for each server, in the order in which they were given; `None` of one that is away, its records with others.
    pub fn stats_of_servers(&self, timeout: Duration) -> Result<Vec<Option<ServerStats>>, StatsError> {
        if self.queue.forked_from().is_some() {
            return Err(StatsError::Forked);
        }
        let error = |closed| if closed { StatsError::Closed } else { StatsError::Timeout };
        self.queue.server_stats(timeout).map_err(error)
    }

    /// How the client stands, for people and status pages.
    pub fn status(&self) -> ClientStatus {
        self.queue.status()
    }

    /// Whether its background thread has ended, by a panic in a callback: it takes no more records, and those that were left are
    /// counted lost or in doubt. Asked after [`Self::counters`] it tells whether they are of a client that had not.
    pub fn is_closed(&self) -> bool {
        self.queue.is_finished()
    }

    /// The client's monotonic clock, µs since it was built: that of [`AckedRecord`].
    pub fn clock_us(&self) -> u64 {
        self.queue.clock_us()
    }

    /// The hash of a session id or user name as this server knows it, for [`Denylist::lookup_session`]. `None` before the
    /// first connection.
    pub fn hash_identity(&self, clear: &[u8]) -> Option<u64> {
        self.queue.hash_identity(clear)
    }

    /// Takes no more records, waits up to `timeout` until the others are settled, says goodbye, and ends the background thread.
    /// What was never written by then is counted lost, what was written and not acknowledged in doubt.
    pub fn close(mut self, timeout: Duration) -> Counters {
        self.shut_down(timeout);
        self.queue.counters()
    }

    fn start(config: Config, hook: AckHook, list_hook: ListHook) -> Result<Self, BuildError> {
        let system = |what| move |error: std::io::Error| BuildError::System { what, error };
        let queue = Queue::new(config.queue_bytes).map_err(|errno| system("make an eventfd")(errno.into()))?;
        let queue = Arc::new(queue);
        let denylist = Arc::new(Denylist::new(queue.started()));
        let mut core = Core::new(config.clone(), u64::from_ne_bytes(random_bytes()?), hook, Arc::clone(&denylist));
        core.tell_of_changes(list_hook);

        // A thread starts with the signals of the one that starts it: blocked here, no signal can ever run on the new one.
        let blocked = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK);
        let before = blocked.map_err(|errno| system("block signals")(errno.into()))?;
        let thread_queue = Arc::clone(&queue);
        let run = move || thread::run(thread_queue, core, config);
        let spawned = std::thread::Builder::new().name("pa-client".into()).spawn(run);
        before.thread_set_mask().map_err(|errno| system("restore the signal mask")(errno.into()))?;

        let thread = spawned.map_err(system("start the background thread"))?;
        Ok(Self { queue, denylist, thread: Some(thread) })
    }

    fn shut_down(&mut self, timeout: Duration) {
        let Some(thread) = self.thread.take() else { return };
        if self.queue.forked_from().is_some() {
            // The thread lives in the parent only; waiting for it here would never end.
            return std::mem::forget(thread);
        }
        self.queue.close(timeout);
        if thread.thread().id() == std::thread::current().id() {
            // Dropped in the callback: this thread cannot wait for itself.
            return;
        }
        // A panic in there has been printed, and what was left has been counted.
        let _ = thread.join();
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.shut_down(DROP_TIMEOUT);
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("status", &self.status()).field("counters", &self.counters()).finish()
    }
}

/// Random bytes of the operating system.
fn random_bytes<const N: usize>() -> Result<[u8; N], BuildError> {
    let mut bytes = [0; N];
    let failed = |error: getrandom::Error| BuildError::System { what: "get random bytes", error: std::io::Error::other(error) };
    getrandom::fill(&mut bytes).map_err(failed)?;
    Ok(bytes)
}
