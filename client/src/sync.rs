//! The names under which [`crate::front`] and [`crate::verdict_table`] know what they build their sharing between threads on.
//!
//! `tests/loom` compiles those files with loom's atomics and a stand-in for the rings under the same names, and goes through the
//! orders in which threads can meet there. So what they share between threads they take from here.

pub(crate) use foldhash::fast::RandomState;
pub(crate) use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};
pub(crate) use std::sync::{Mutex, OnceLock};
pub(crate) use std::thread_local;

/// Lines of the smallest table of verdicts, as a power of two.
pub(crate) const LINES_BITS_MIN: u32 = 6;

/// Bytes of a thread's ring.
pub(crate) const RING_BYTES: usize = 128 * 1024;

/// The ring of a thread.
pub(crate) mod rtrb {
    pub(crate) use ::rtrb::chunks::ReadChunk;
    pub(crate) use ::rtrb::{Consumer, Producer, RingBuffer};
}
