//! The names under which [`crate::queue`] and [`crate::shard::page`] know what they build their sharing between threads on.
//!
//! `tests/loom` compiles those two files with loom's atomics and stand-ins for the rest under the same names, and goes through
//! the orders in which two threads can meet there with two preemptions at most. So what these files share between threads they take from here.

pub(crate) use std::hint::spin_loop;
pub(crate) use std::os::unix::net::UnixStream;
pub(crate) use std::sync::atomic::{AtomicU64, Ordering, fence};

/// The ring of the queues.
pub(crate) mod rtrb {
    pub(crate) use ::rtrb::{Consumer, Producer, PushError, RingBuffer};
}
