//! Bugs that the simulation of `tests/` must find: proof that its oracles can fail.
//!
//! A call site asks [`is`] whether its bug is switched on. Without the cargo feature `simulation` the answer is a constant
//! `false` and the bug is not in the binary. With it (as the `tests` crate wants, and so `cargo test --workspace` for all) the
//! switch is off on every thread but the one that called [`set`]: servers run as ever.

/// Whether the switches are in this binary: it is not the one that is shipped, and nothing to measure.
pub const IN_THIS_BINARY: bool = cfg!(feature = "simulation");

/// A bug that can be switched on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bug {
    /// A batch is acknowledged when its header came.
    AckBeforeCommit,
    /// A batch that is stored already is stored again.
    LostDedup,
    /// A link's slot is free before the final completions of its operations.
    SlotFreedEarly,
    /// A buffer whose bytes nobody wants is not given back.
    BufferKept,
    /// A receive whose completion came without `F_MORE` is taken to go on.
    LostMoreIgnored,
    /// A partial send goes on at the wrong byte.
    PartialSendSkips,
    /// A server that drains closes no links: they stay in use until its deadline cuts them.
    SlotLeaked,
    /// A handle to a slab that was recycled resolves as soon as there is a frame at its offset again.
    HandleRevived,
    /// The first record with hits of a batch is not copied to the attack log.
    AttackNotKept,
}

impl Bug {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::AckBeforeCommit,
        Self::LostDedup,
        Self::SlotFreedEarly,
        Self::BufferKept,
        Self::LostMoreIgnored,
        Self::PartialSendSkips,
        Self::SlotLeaked,
        Self::HandleRevived,
        Self::AttackNotKept,
    ];

    /// Its name on a command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::AckBeforeCommit => "ack-before-commit",
            Self::LostDedup => "lost-dedup",
            Self::SlotFreedEarly => "slot-freed-early",
            Self::BufferKept => "buffer-kept",
            Self::LostMoreIgnored => "lost-more-ignored",
            Self::PartialSendSkips => "partial-send-skips",
            Self::SlotLeaked => "slot-leaked",
            Self::HandleRevived => "handle-revived",
            Self::AttackNotKept => "attack-not-kept",
        }
    }
}

#[cfg(feature = "simulation")]
mod switch {
    use super::Bug;
    use std::cell::Cell;

    thread_local! {
        static ON: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    /// Switches a bug on for this thread, or all of them off.
    pub fn set(bug: Option<Bug>) {
        ON.set(bug);
    }

    #[inline]
    pub(crate) fn is(bug: Bug) -> bool {
        ON.get() == Some(bug)
    }
}

#[cfg(feature = "simulation")]
pub(crate) use switch::is;
#[cfg(feature = "simulation")]
pub use switch::set;

/// Whether this bug is switched on: never, in this build.
#[cfg(not(feature = "simulation"))]
pub(crate) const fn is(_: Bug) -> bool {
    false
}
