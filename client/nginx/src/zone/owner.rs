//! Who a slot of the zone belongs to, and the records that its owners had; and who buries an owner that was killed.
//!
//! `tests/loom` compiles this file with loom's atomics.

use super::atomic::{
    AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

/// An owner: the pid of the worker, 0 if there is none, in the lower half; above it, how many owners were killed.
const PID: u64 = u32::MAX as u64;
const KILLED: u64 = PID + 1;
/// Beside the pid of whoever counts the records of a killed worker. The kernel gives no pid that has this bit.
const BURYING: u64 = 1 << 31;

/// See the module. All zero is its state at the beginning.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Owner {
    word: AtomicU64,
    /// Records that the client took, those that the server has, and those that the client has given up. The rest it still holds.
    pub accepted: AtomicU64,
    pub acked: AtomicU64,
    pub given_up: AtomicU64,
    /// Records that killed workers held.
    pub lost: AtomicU64,
}

impl Owner {
    /// Moves in, if nobody is there.
    pub fn claim(&self, pid: u32) -> bool {
        let word = self.word.load(Relaxed);
        word & PID == 0 && self.word.compare_exchange(word, word | u64::from(pid), Acquire, Relaxed).is_ok()
    }

    /// Moves out.
    pub fn release(&self) {
        self.word.fetch_and(!PID, Release);
    }

    /// Whether a worker is there that is not being buried.
    pub fn is_there(&self) -> bool {
        let word = self.word.load(Relaxed);
        word & PID != 0 && word & BURYING == 0
    }

    /// How many owners were killed.
    pub fn killed(&self) -> u64 {
        self.word.load(Relaxed) / KILLED
    }

    /// Frees the slot if its worker is no more, and counts what he had not got rid of.
    pub fn bury(&self, own: u32, lives: impl Fn(u32) -> bool) {
        if let Some(word) = self.begin_burial(own, lives) {
            self.count_lost();
            self.end_burial(word);
        }
    }

    /// Takes the slot of a worker that is no more, or over from whoever was killed at its burial: nobody else may do it, and nobody
    /// may move in, until all is counted.
    pub(super) fn begin_burial(&self, own: u32, lives: impl Fn(u32) -> bool) -> Option<u64> {
        let word = self.word.load(Relaxed);
        let pid = (word & PID & !BURYING) as u32;
        // One's own pid can only be that of a former process: nobody is called in the middle of a burial.
        let is_over = pid != 0 && (!lives(pid) || word & BURYING != 0 && pid == own);
        let taken = word & !PID | BURYING | u64::from(own);
        (is_over && self.word.compare_exchange(word, taken, Acquire, Relaxed).is_ok()).then_some(taken)
    }

    /// Counts what is neither settled nor counted: a second time adds nothing.
    pub(super) fn count_lost(&self) {
        let gone = self.acked.load(Relaxed) + self.given_up.load(Relaxed) + self.lost.load(Relaxed);
        self.lost.fetch_add(self.accepted.load(Relaxed).saturating_sub(gone), Relaxed);
    }

    /// Counts the death and frees the slot, in one step.
    pub(super) fn end_burial(&self, word: u64) {
        let _ = self.word.compare_exchange(word, (word & !PID).wrapping_add(KILLED), Release, Relaxed);
    }
}

/// The place of a number that is not 0 among those that are taken in order of their first coming. `None`: all are taken.
pub fn place_of(places: &[AtomicU64], wanted: u64) -> Option<usize> {
    places.iter().position(|place| match place.load(Relaxed) {
        0 => place.compare_exchange(0, wanted, Relaxed, Relaxed).is_ok() || place.load(Relaxed) == wanted,
        taken => taken == wanted,
    })
}
