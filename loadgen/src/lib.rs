//! Load generator of postanalytics, as a library so that tests can use its parts.
//!
//! Rooms: [`plan`] (command line to checked plan) → [`traffic`] or [`replay`] (where records come from) → [`run`] through the
//! client library, or [`raw`] past it → [`report`]; [`attack`] mixes attacks in; [`find_max`] makes many
//! runs, [`merge`] one report of several. Beside them [`assertion`], [`clock`],
//! [`machine`], [`measure`], [`open_files`].
//!
//! What it measures: latency from the *intended* send time (corrected), so that a stalled server cannot hide the requests it
//! kept waiting, side by side with the latency from the hand-over (uncorrected). What it proves: everything generated was
//! acknowledged or counted as an error, and the server stored exactly what it acknowledged.
#![forbid(unsafe_code)]

pub mod assertion;
pub mod attack;
pub mod clock;
pub mod find_max;
pub mod machine;
pub mod measure;
pub mod merge;
pub mod open_files;
pub mod plan;
pub mod raw;
pub mod replay;
pub mod report;
pub mod run;
pub mod traffic;

#[cfg(test)]
mod test_server;
