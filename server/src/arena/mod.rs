//! Memory for stored records: a ring of fixed-size slabs, append-only, the oldest recycled whole.
//!
//! - [`mapping`]: the memory itself, huge pages where they can be had, prefaulted; the only unsafe code of the room
//! - [`place`]: the header in front of every stored frame
//! - [`filter`]: which sources a slab may hold
//! - [`log`]: slabs in arrival order; reserve, fill, commit; newest-first reading; handles that fail closed
//!
//! Goals: O(1) append and recycling, no fragmentation, nothing freed one by one. Non-goals: indexes, persistence.
//! Threading: a log belongs to one shard and never leaves its thread.

pub mod filter;
pub mod log;
pub mod mapping;
pub mod place;

pub use filter::SourceFilter;
pub use log::{Log, LogUsage, OpenPlace, ReserveError, SlabHandle};
pub use mapping::Mapping;
pub use place::PlaceHeader;

/// Bytes of a slab.
pub const SLAB_BYTES: u64 = 2 << 20;
/// Fewest slabs of a shard's request log.
pub const REQUEST_SLABS_MIN: u64 = 16;
/// Fewest slabs of a shard's attack log.
pub const ATTACK_SLABS_MIN: u64 = 4;
/// Fewest slabs of a shard.
pub const SLABS_MIN: u64 = REQUEST_SLABS_MIN + ATTACK_SLABS_MIN;

/// How many slabs of a shard's part of the arena go to the request log and to the attack log: four to one.
pub const fn split_slabs(arena_bytes: u64) -> (u64, u64) {
    let slabs = arena_bytes / SLAB_BYTES;
    let attack = if slabs / 5 > ATTACK_SLABS_MIN { slabs / 5 } else { ATTACK_SLABS_MIN };
    (slabs.saturating_sub(attack), attack)
}
