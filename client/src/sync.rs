//! The names under which [`crate::front`] knows what it builds its sharing between threads on.
//!
//! `tests/loom` compiles that file with loom's atomics and a stand-in for the rings under the same names, and goes through the
//! orders in which a site's thread and the holder of the queue's lock can meet there. So what it shares between threads it
//! takes from here.

pub(crate) use std::sync::atomic::{Ordering, fence};
pub(crate) use std::thread_local;

/// The rings of a thread.
pub(crate) mod rtrb {
    pub(crate) use ::rtrb::{Consumer, Producer, RingBuffer};
}
