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

use links::Completion;
use rustix::time::ClockId;
use std::io;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// What the loop of a shard asks of the kernel: a ring and clocks. [`Uring`] asks the real one; the simulation of the tests
/// stands in its place with a hostile one.
pub trait Kernel {
    /// Waits for the wake-up socket to become readable, from now on.
    fn watch(&mut self, wake: &UnixStream) -> io::Result<()>;

    /// Queues the operations that `links` wants. They reach the kernel with the next [`Self::enter`].
    fn submit(&mut self, links: &mut Links) -> io::Result<()>;

    /// Submits what is queued and waits for so many completions, up to `timeout`. Also with a timeout of zero the kernel is
    /// entered: deferred completions appear only then.
    fn enter(&mut self, completions: usize, timeout: Duration) -> io::Result<()>;

    /// Moves all completions into `into`. Errors: the kernel named a buffer that it does not have, and nothing can be
    /// trusted any more.
    fn completions(&mut self, into: &mut Vec<Completion>) -> io::Result<()>;

    /// The bytes of a filled buffer; give it back when done. Errors: the kernel states more bytes than fit.
    fn filled(&self, buffer: u16, length: u32) -> io::Result<&[u8]>;

    /// Gives a buffer back. The kernel sees it after [`Self::publish_buffers`].
    fn give_back(&mut self, buffer: u16);

    /// Shows the kernel all buffers given back since the last call.
    fn publish_buffers(&mut self);

    /// Buffers that the kernel may fill.
    fn buffers_free(&self) -> usize;

    /// Waits and submissions that the kernel asked to repeat.
    fn retries(&self) -> u64;

    /// A clock of the system, µs.
    fn clock_us(&self, clock: ClockId) -> u64;
}

/// A timeout is no error, and what the kernel asks to repeat is repeated by the next turn and counted.
pub fn tolerate(entered: io::Result<usize>, retries: &mut u64) -> io::Result<()> {
    use rustix::io::Errno;
    match entered {
        Ok(_) => Ok(()),
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::TIME) => Ok(()),
            Some(Errno::INTR | Errno::AGAIN | Errno::BUSY) => {
                *retries += 1;
                Ok(())
            }
            _ => Err(error),
        },
    }
}
