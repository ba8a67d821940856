//! What the control plane and a shard say to each other. Plain data over bounded queues, a wake-up beside them.

use super::page::StatsPage;
use crate::analytics::Reload;
use crate::analytics::explain::Standings;
use crate::analytics::summary::page::SummaryPage;
use postanalytics_protocol::frames::{Hello, PackageVersion, Subject, Verdict};
use postanalytics_protocol::{BatchBuilder, Source};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

/// Capacity of the queue to a shard, and of the queue back.
pub const MESSAGES_MAX: usize = 256;

/// To a shard.
#[derive(Debug)]
pub enum ToShard {
    /// A connection whose Hello was read and let in.
    Adopt(Handover),
    /// Read records out of the slabs. At most one is under way per shard.
    Query(Box<Query>),
    /// Read a part of the live verdicts.
    Verdicts(Box<VerdictPage>),
    /// Read a top list or a timeline.
    Summary(Box<SummaryPage>),
    /// Set or take back a verdict by hand.
    SetVerdict {
        /// Its end is set by the shard's clock.
        verdict: Verdict,
        /// How long it lasts from when the shard gets it.
        duration_us: u64,
    },
    /// Go on with these settings and deadlines.
    Reload(Box<ShardReload>),
    /// Say Goodbye, finish and acknowledge what arrived, then end the thread.
    Drain,
}

/// From a shard: what was asked of it.
#[derive(Debug)]
pub enum FromShard {
    /// A page of records.
    Query(Box<Query>),
    /// A page of verdicts.
    Verdicts(Box<VerdictPage>),
    /// A top list or a timeline.
    Summary(Box<SummaryPage>),
}

/// A part of a shard's live verdicts. The shard fills it up to its capacity.
#[derive(Debug)]
pub struct VerdictPage {
    /// Echoed.
    pub id: u64,
    /// Position to begin at, 0 at first.
    pub from: usize,
    /// Only those on this subject.
    pub subject: Option<Subject>,
    /// The verdicts. Give it capacity: the shard does not grow it beyond.
    pub verdicts: Vec<Verdict>,
    /// Position to go on from; `None` at the end.
    pub next: Option<usize>,
}

/// What a shard may be told anew of its configuration.
#[derive(Clone, Debug)]
pub struct ShardReload {
    /// What detectors count; `None`: none runs.
    pub analytics: Option<Reload>,
    /// A frame that is not whole after this long ends its connection.
    pub frame_deadline: Duration,
    /// A drain ends after this long, whoever is left.
    pub drain_deadline: Duration,
}

/// A connection on its way to its shard. The socket closes if it is never adopted.
#[derive(Debug)]
pub struct Handover {
    /// The TCP socket; just the Hello has been read from it.
    pub socket: OwnedFd,
    /// Who the client says it is.
    pub hello: Hello,
    /// The client's session, from the header of its Hello.
    pub session: u64,
    /// Lives as long as the connection; the control plane keeps a `Weak` of it.
    pub ticket: Arc<ConnectionTicket>,
}

/// What is shown of a connection. The shard drops it when the connection is gone.
#[derive(Debug)]
pub struct ConnectionTicket {
    /// Id of the node.
    pub node: [u8; 16],
    /// Name of the node.
    pub name: String,
    /// The client's session.
    pub session: u64,
    /// Address of the peer.
    pub peer: SocketAddr,
    /// Version of the client's package.
    pub package: PackageVersion,
    /// Shard that serves the connection.
    pub shard: u32,
}

/// A search through the stored records of one shard, newest first. The shard fills `page` in bounded slices between its
/// turns, and sends the query back when the page is full or the search is over.
#[derive(Debug)]
pub struct Query {
    /// Echoed, so that an answer finds its question.
    pub id: u64,
    /// Only this source.
    pub source: Option<Source>,
    /// Only this request.
    pub request_id: Option<[u8; 16]>,
    /// Only records that arrived at or after this time, Unix µs.
    pub since_us: Option<u64>,
    /// Only records that arrived before this time, Unix µs.
    pub until_us: Option<u64>,
    /// Most records to put into the page.
    pub limit: usize,
    /// Say also what the detectors make of each record.
    pub explain: bool,
    /// Where to go on; `None` from the newest. A place that was recycled meanwhile ends the search.
    pub cursor: Option<Cursor>,
    /// Where the answer goes. Give it capacity: the shard does not grow it beyond.
    pub page: QueryPage,
}

/// Records found, copied out of the slabs.
#[derive(Debug, Default)]
pub struct QueryPage {
    /// The records.
    pub records: BatchBuilder,
    /// What the server knows of each, same order.
    pub stored: Vec<StoredRecord>,
    /// What the detectors make of each, same order, if that was asked for.
    pub standings: Vec<Standings>,
    /// Records looked at.
    pub records_scanned: u64,
    /// Whether all that matches was found: nothing older is left.
    pub complete: bool,
}

impl QueryPage {
    /// Blob bytes and records that a page takes.
    pub const BLOB_BYTES: usize = 1 << 20;
    /// Records that a page takes.
    pub const RECORDS: usize = 1024;

    /// A page with room for [`Self::RECORDS`] records and [`Self::BLOB_BYTES`] of their strings.
    pub fn new() -> Self {
        Self {
            records: BatchBuilder::with_capacity(Self::RECORDS, Self::BLOB_BYTES),
            stored: Vec::with_capacity(Self::RECORDS),
            standings: Vec::new(),
            records_scanned: 0,
            complete: false,
        }
    }
}

/// What the server knows of a stored record beside its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredRecord {
    /// When it arrived, Unix µs.
    pub arrival_us: u64,
    /// Order of analysis on its shard.
    pub commit_index: u64,
    /// Node that sent it.
    pub node: [u8; 16],
    /// Session that sent it.
    pub session: u64,
    /// The node's clock when it sent the batch, Unix µs.
    pub sent_us: u64,
    /// Its session replays a log: the times of its events count as they are.
    pub is_replay: bool,
    /// From where a search goes on whose next record is this one.
    pub place: Cursor,
}

/// A place in the request log from which a search goes on to older ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// Slab.
    pub slab: u32,
    /// Generation of the slab when the cursor was made.
    pub generation: u64,
    /// Offset of the place in the slab.
    pub offset: u32,
    /// Records of that place still to look at, from its first.
    pub records_left: u32,
}

/// What all shards have in common and every Welcome says.
#[derive(Clone, Debug)]
pub struct Topology {
    /// This server.
    pub server_id: [u8; 16],
    /// The deployment it belongs to.
    pub deployment_id: [u8; 16],
    /// Random id of (routing_seed, shard_count).
    pub epoch: u64,
    /// Number of shards.
    pub shard_count: u32,
    /// Seed of the routing hash.
    pub routing_seed: u64,
    /// Key with which nodes hash user names and session ids.
    pub identity_key: [u8; 32],
    /// Version of this package.
    pub package: PackageVersion,
    /// Largest body taken.
    pub max_body_bytes: u32,
}

/// The control plane's end of a shard.
#[derive(Debug)]
pub struct ShardHandle {
    /// Number of the shard.
    pub shard: u32,
    /// CPU it is pinned to, `None` if it is not.
    pub cpu: Option<usize>,
    /// Whether its part of the arena lies on huge pages.
    pub huge_pages: bool,
    /// Its statistics.
    pub page: Arc<StatsPage>,
    /// Messages to it.
    pub messages: crate::queue::Sender<ToShard>,
    /// What it was asked, answered.
    pub answers: crate::queue::Receiver<FromShard>,
    /// Ends when the shard is drained; an error says why it ended otherwise.
    pub thread: std::thread::JoinHandle<anyhow::Result<()>>,
}
