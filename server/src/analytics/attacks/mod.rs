//! Hits into attacks.
//!
//! - [`hits`], on a shard: which hits are kept whole, and what is told of them
//! - [`table`], on the correlator: the attacks that hits of all shards and alerts make, on [`sources`], [`partakers`] and [`samples`]
//!
//! An attack is hits of the same type, application, host, template and point. Nothing here is asked by a detector.

pub mod hits;
pub mod partakers;
pub mod samples;
pub mod sources;
pub mod table;

#[cfg(test)]
mod tests;
