//! What is kept of a key: 80 bytes, and lists in the pool once a second event came.
//!
//! A key that was seen once keeps that event whole in its cell. The second one unpacks it: so a key that never comes back,
//! as most spoofed ones, costs its cell and nothing else.

use super::pool::List;
use crate::analytics::detectors::Event;

/// Evidence is the last list of every cell.
pub const EVIDENCE: usize = 3;

/// The alert number of a cell that holds its first event as it came.
const SINGLE: u32 = u32::MAX;

/// See the module. What `level`, `first` and the lists hold is up to the detector; 0 is empty.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cell {
    /// Fingerprint of the key, 0 if the cell is free.
    pub key: u64,
    /// Largest effective time seen.
    pub clock_us: u64,
    /// Level of a leaky rule, score of a sequential test.
    pub level: i64,
    /// Time of the first event since that was empty.
    pub first_us: u64,
    /// Number of that event, 0 if it is empty.
    pub first_seq: u32,
    /// Events looked at.
    pub seq: u32,
    /// The alert that takes further events, plus one.
    pub alert: u32,
    /// Which share of the table's networks this cell is counted in.
    pub network: u16,
    /// Detector and override.
    pub plan: u16,
    /// Sets, windows, and last the evidence.
    pub lists: [List; 4],
}

const _: () = assert!(size_of::<Cell>() == 80);

impl Cell {
    /// A cell that holds an event as it came.
    pub const fn single(event: &Event) -> Self {
        Self {
            key: event.key,
            clock_us: event.time_us,
            level: event.value as i64,
            first_us: event.number,
            first_seq: event.kind,
            seq: 1,
            alert: SINGLE,
            network: event.network,
            plan: event.plan,
            lists: [List(event.request_id[0]), List(event.request_id[1]), List(0), List(0)],
        }
    }

    /// A cell of which nothing is known.
    pub fn empty(event: &Event) -> Self {
        Self { key: event.key, network: event.network, plan: event.plan, ..Self::default() }
    }

    /// Whether it holds its first event.
    pub const fn is_single(&self) -> bool {
        self.alert == SINGLE
    }

    /// That event.
    pub const fn event(&self) -> Event {
        Event {
            key: self.key,
            time_us: self.clock_us,
            value: self.level as u64,
            number: self.first_us,
            request_id: [self.lists[0].0, self.lists[1].0],
            kind: self.first_seq,
            network: self.network,
            plan: self.plan,
        }
    }
}
