//! The only user of io_uring.
//!
//! - [`links`]: what operations each connection has in flight; pure state, no kernel
//! - [`uring`]: one ring: set-up, submission, completions
//! - [`buffers`]: the receive buffers that the kernel picks from
//! - [`probe`]: the self-test at start, and errors that say what to do
//!
//! **Invariants.** A ring is made and used on one thread. Its completion queue cannot overflow, by its size. A link has at
//! most one receive and one send in flight; memory and socket of a link live until the final completion of both. A
//! completion without `F_MORE` ends its operation, whatever its result says.
//!
//! Deliberately absent: bundles, incremental and registered buffers, zero-copy send (no gain measured, and bugs), linked
//! operations, a fallback to epoll.

#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "this is the room that clippy.toml keeps io_uring in")]

pub mod buffers;
pub mod links;
pub mod probe;
pub mod uring;

pub use links::{Event, LinkEnd, Links};
pub use probe::{RingError, RingFeatures, probe};
pub use uring::{Uring, UringConfig};
