//! What the end-to-end tests share: the real server as a process of its own, HTTP to its status port, and raw connections
//! that speak the protocol byte by byte.
//!
//! Every test has its own server on ports that the kernel picks. Processes end with the value that started them. Test
//! support may panic: a panic is how a test fails.

#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a panic is how a test fails")]

pub mod fuzz;
pub mod server;
pub mod simulation;
pub mod wire;
pub mod witness;

pub use server::{Server, ServerOptions, binary, client_example, free_port, library_folder, skipped};
pub use wire::RawConnection;
pub use witness::Witness;

use std::time::{Duration, Instant};

/// The lines of a file that somebody writes to; the last one may be on its way still, and is left out then. Empty if there is no file.
pub fn whole_lines(path: &std::path::Path) -> String {
    let mut text = std::fs::read_to_string(path).unwrap_or_default();
    text.truncate(text.rfind('\n').map_or(0, |end| end + 1));
    text
}

/// Asks `condition` every 20 ms until it holds; panics with `what` after `limit`.
pub fn eventually(what: &str, limit: Duration, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
