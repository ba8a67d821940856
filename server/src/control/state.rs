//! What the tasks of the control plane share. One thread owns it, so plain cells do.

use super::access::Gate;
use super::ask::{CorrelatorPort, Waiting};
use super::handshake::Refusal;
use crate::analytics::summary::page::SummaryPage;
use crate::config::Config;
use crate::queue::Sender;
use crate::shard::messages::{ConnectionTicket, Query, ToShard, Topology, VerdictPage};
use crate::shard::page::StatsPage;
use glommio::channels::local_channel::{self, LocalReceiver, LocalSender};
use postanalytics_protocol::ErrorCode;
use postanalytics_protocol::frames::PackageVersion;
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{HashMap, HashSet};
use std::hash::RandomState;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Weak};

/// Nodes with a newer package that are remembered, so that each is logged once.
const NEWER_NODES_REMEMBERED_MAX: usize = 1024;

/// Why a connection was refused before anything was read from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    NotAllowed,
    ConnectionsMax,
    ConnectionsPerAddressMax,
    HandshakesMax,
    HandshakesPerAddressMax,
    TooManyOpenFiles,
}

impl Refused {
    pub(super) const ALL: [Self; 6] = [
        Self::NotAllowed,
        Self::ConnectionsMax,
        Self::ConnectionsPerAddressMax,
        Self::HandshakesMax,
        Self::HandshakesPerAddressMax,
        Self::TooManyOpenFiles,
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::NotAllowed => "not_allowed",
            Self::ConnectionsMax => "connections_max",
            Self::ConnectionsPerAddressMax => "connections_per_address_max",
            Self::HandshakesMax => "handshakes_max",
            Self::HandshakesPerAddressMax => "handshakes_per_address_max",
            Self::TooManyOpenFiles => "too_many_open_files",
        }
    }
}

/// Counters of the control plane. They only grow.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) accepted: Cell<u64>,
    pub(super) accept_errors: Cell<u64>,
    pub(super) handed_over: Cell<u64>,
    pub(super) gone_before_hello: Cell<u64>,
    pub(super) http_requests: Cell<u64>,
    refused: [Cell<u64>; Refused::ALL.len()],
    errors: [Cell<u64>; ErrorCode::ALL.len()],
}

pub(super) fn add_one(counter: &Cell<u64>) {
    counter.set(counter.get() + 1);
}

impl Counters {
    pub(super) fn refused(&self, reason: Refused) -> &Cell<u64> {
        &self.refused[reason as usize]
    }

    pub(super) fn error(&self, code: ErrorCode) -> &Cell<u64> {
        // Codes are dense from 1; the protocol tests that.
        &self.errors[code as usize - 1]
    }
}

/// The control plane's view of a shard.
#[derive(Debug)]
pub(super) struct ShardPort {
    pub(super) shard: u32,
    pub(super) cpu: Option<usize>,
    pub(super) huge_pages: bool,
    pub(super) page: Arc<StatsPage>,
    pub(super) messages: RefCell<Sender<ToShard>>,
    /// The query of this shard while it is not under way.
    pub(super) idle_query: RefCell<Option<Box<Query>>>,
    /// Who waits for a page of its verdicts.
    pub(super) verdicts: Waiting<Box<VerdictPage>>,
    /// Who waits for a page of its counters.
    pub(super) summaries: Waiting<Box<SummaryPage>>,
    pub(super) ended: Cell<bool>,
}

/// A query that came back, and the index of its shard.
pub(super) type Answer = (usize, Box<Query>);

/// Connections now, as the limits count them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Load {
    pub(super) total: usize,
    pub(super) of_address: usize,
}

/// See the module.
#[derive(Debug)]
pub(super) struct State {
    config: RefCell<Arc<Config>>,
    pub(super) topology: Arc<Topology>,
    pub(super) status_address: Option<SocketAddr>,
    pub(super) shards: OnceCell<Vec<ShardPort>>,
    pub(super) stopping: Cell<bool>,
    pub(super) counters: Counters,
    pub(super) gate: RefCell<Gate>,
    tickets: RefCell<Vec<Weak<ConnectionTicket>>>,
    handshakes: RefCell<HashMap<IpAddr, usize>>,
    newer_nodes: RefCell<HashSet<[u8; 16]>>,
    /// Connections to the status pages that are served now.
    pub(super) pages_open: Cell<usize>,
    /// The way to the correlator, once it runs.
    pub(super) correlator: OnceCell<CorrelatorPort>,
    pub(super) scan_running: Cell<bool>,
    pub(super) scan_id: Cell<u64>,
    /// Of the cursors of searches: see there.
    pub(super) cursor_key: RandomState,
    /// Queries of the running scan that came back.
    pub(super) answers: (LocalSender<Answer>, LocalReceiver<Answer>),
}

impl State {
    pub(super) fn new(config: Arc<Config>, topology: Arc<Topology>, status_address: Option<SocketAddr>) -> Self {
        let gate = RefCell::new(Gate::new(config.access.clone()));
        Self {
            config: RefCell::new(config),
            topology,
            status_address,
            shards: OnceCell::new(),
            stopping: Cell::new(false),
            counters: Counters::default(),
            gate,
            tickets: RefCell::default(),
            handshakes: RefCell::default(),
            newer_nodes: RefCell::default(),
            pages_open: Cell::new(0),
            correlator: OnceCell::new(),
            scan_running: Cell::new(false),
            scan_id: Cell::new(0),
            cursor_key: RandomState::new(),
            // Never more than one query per shard is under way, so the channel's length is that of the shards.
            answers: local_channel::new_unbounded(),
        }
    }

    /// The configuration that holds now.
    pub(super) fn config(&self) -> Arc<Config> {
        Arc::clone(&self.config.borrow())
    }

    /// Goes on with another configuration.
    pub(super) fn reload(&self, config: Arc<Config>) {
        *self.gate.borrow_mut() = Gate::new(config.access.clone());
        *self.config.borrow_mut() = config;
    }

    /// The shards; none until they are ready.
    pub(super) fn shards(&self) -> &[ShardPort] {
        self.shards.get().map_or(&[], Vec::as_slice)
    }

    /// Whether connections are taken.
    pub(super) fn ready(&self) -> bool {
        self.shards.get().is_some() && !self.stopping.get() && self.shards().iter().all(|shard| !shard.ended.get())
    }

    /// Whether detectors run: a reload does not change it.
    pub(super) fn detectors_run(&self) -> bool {
        self.config.borrow().detection.is_some()
    }

    /// The tickets of living connections.
    pub(super) fn live_tickets(&self) -> Vec<Arc<ConnectionTicket>> {
        let mut tickets = Vec::new();
        self.visit_tickets(|ticket| tickets.push(Arc::clone(ticket)));
        tickets
    }

    /// Shows every living ticket; forgets the others.
    fn visit_tickets(&self, mut visit: impl FnMut(&Arc<ConnectionTicket>)) {
        self.tickets.borrow_mut().retain(|ticket| ticket.upgrade().inspect(&mut visit).is_some());
    }

    pub(super) fn add_ticket(&self, ticket: &Arc<ConnectionTicket>) {
        self.tickets.borrow_mut().push(Arc::downgrade(ticket));
    }

    /// Counts a handshake that begins; [`Self::end_handshake`] must follow.
    pub(super) fn begin_handshake(&self, peer: IpAddr) {
        *self.handshakes.borrow_mut().entry(peer).or_default() += 1;
    }

    pub(super) fn end_handshake(&self, peer: IpAddr) {
        let mut handshakes = self.handshakes.borrow_mut();
        if let Some(count) = handshakes.get_mut(&peer) {
            *count -= 1;
            if *count == 0 {
                handshakes.remove(&peer);
            }
        }
    }

    /// Handshakes of this address that are under way or wait.
    pub(super) fn handshakes_of(&self, peer: IpAddr) -> usize {
        self.handshakes.borrow().get(&peer).copied().unwrap_or(0)
    }

    /// The right to scan; `None` while somebody has it.
    pub(super) fn take_scan_slot(&self) -> Option<ScanSlot<'_>> {
        // Not then_some: that would make a slot in any case, and free the other's by dropping it.
        (!self.scan_running.replace(true)).then(|| ScanSlot { state: self })
    }

    /// Connections and handshakes, all and of this address.
    pub(super) fn load(&self, peer: IpAddr) -> Load {
        let handshakes = self.handshakes.borrow();
        let mut load = Load { total: handshakes.values().sum(), of_address: handshakes.get(&peer).copied().unwrap_or(0) };
        self.visit_tickets(|ticket| {
            load.total += 1;
            load.of_address += usize::from(ticket.peer.ip().to_canonical() == peer);
        });
        load
    }

    /// The shard with the fewest connections.
    pub(super) fn least_loaded_shard(&self) -> Result<u32, Refusal> {
        let mut connections = vec![0usize; self.shards().len()];
        self.visit_tickets(|ticket| {
            if let Some(count) = connections.get_mut(ticket.shard as usize) {
                *count += 1;
            }
        });
        let least = (0u32..).zip(connections).min_by_key(|(_, count)| *count);
        least
            .map(|(shard, _)| shard)
            .ok_or_else(|| Refusal::new(ErrorCode::Overloaded, "the server is not ready yet: come back later"))
    }

    /// Whether a node's package is newer than this server's. Logs it once per node.
    pub(super) fn note_package(&self, node: [u8; 16], name: &str, package: PackageVersion) {
        if package <= self.topology.package {
            return;
        }
        let mut known = self.newer_nodes.borrow_mut();
        if known.len() < NEWER_NODES_REMEMBERED_MAX && known.insert(node) {
            tracing::warn!(
                node = %uuid::Uuid::from_bytes(node), name = ?name, node_version = %package, server_version = %self.topology.package,
                "a node's package is newer than this server: upgrade the server first"
            );
        }
    }
}

/// The right to scan, until dropped: with the answer that was written, so that answers do not pile up in memory.
#[derive(Debug)]
pub(super) struct ScanSlot<'a> {
    state: &'a State,
}

impl Drop for ScanSlot<'_> {
    fn drop(&mut self) {
        self.state.scan_running.set(false);
    }
}

/// Unix time, µs.
pub(super) fn unix_us() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
