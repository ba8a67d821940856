//! What fuzzing drives: one ordinary function for each parser of outside data, with the properties that must hold of it.
//!
//! `tests/fuzz` makes a libFuzzer target of each (nightly Rust, see `tests/full`); `tests/tests/corpus.rs` replays what those
//! found worth keeping with plain `cargo test`. So a function takes any bytes at all, is deterministic, and panics when a
//! property does not hold. The functions of private parsers stand beside them, behind the feature `fuzzing`.

mod batch;
mod filter;
mod frames;
mod histogram;
mod logs;
mod shard;
mod texts;

pub use batch::batch;
pub use filter::{filter, masking, rules};
pub use frames::{assembler, frames};
pub use histogram::histogram;
pub use logs::log_reader;
pub use postanalytics_client::fuzzing::{client, server_address};
pub use postanalytics_server::agent_line;
pub use postanalytics_server::config::machine::fuzzing::machine;
pub use postanalytics_server::control::http::fuzzing::http;
pub use postanalytics_server::replay::fuzzing::replay_lines;
pub use shard::shard;
pub use texts::{access_log, detection, env_file, node_yaml, values};

/// What a target does with an input.
pub type Body = fn(&[u8]);

/// Name and body of every target; `tests/fuzz/corpus/NAME` is its corpus.
pub const TARGETS: [(&str, Body); 20] = [
    ("frames", frames),
    ("assembler", assembler),
    ("batch", batch),
    ("env_file", env_file),
    ("node_yaml", node_yaml),
    ("detection", detection),
    ("values", values),
    ("machine", machine),
    ("server_address", server_address),
    ("access_log", access_log),
    ("agent_line", agent_line),
    ("log_reader", log_reader),
    ("replay_lines", replay_lines),
    ("http", http),
    ("filter", filter),
    ("rules", rules),
    ("masking", masking),
    ("histogram", histogram),
    ("client", client),
    ("shard", shard),
];

/// Takes a script apart: numbers and byte strings from its front, zeros and nothing past its end.
struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    const fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    fn u8(&mut self) -> u8 {
        self.bytes(1).first().copied().unwrap_or(0)
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes([self.u8(), self.u8()])
    }

    fn bytes(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        taken
    }
}
