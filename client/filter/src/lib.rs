//! Looks for attacks in one request, and masks what may not leave the node.
//!
//! ```
//! use postanalytics_filter::{Engine, RawRequest, Scratch};
//! use std::time::Duration;
//! let engine = Engine::builtin();
//! let request = RawRequest { method: b"GET", uri: b"/etc/passwd", ..RawRequest::default() };
//! let findings = engine.inspect(&request, Duration::from_secs(1), &mut Scratch::default());
//! assert_eq!(findings.hits()[0].point, b"uri");
//! ```
//!
//! One engine serves all threads; each thread has a [`Scratch`] of its own. Nothing here reads files, opens sockets or keeps
//! state of requests.
#![forbid(unsafe_code)]

#[cfg(test)]
mod cases;
mod engine;
mod findings;
mod inflate;
mod line;
mod login;
mod markup;
mod mask;
mod normalise;
mod points;
mod rules;

pub use engine::{BODY_BYTES_MAX, Engine, RawRequest, Scratch};
pub use findings::{Findings, FoundHit};
pub use line::LineFilter;
pub use login::login_user;
pub use mask::{MaskConfig, MaskError, Masker};
pub use rules::RulesError;

/// What a filtering node calls "too long" unless it is told otherwise, see [`Engine::inspect`].
pub const PROCESS_TIME_LIMIT: std::time::Duration = std::time::Duration::from_millis(1000);
