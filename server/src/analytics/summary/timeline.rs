//! Counters of each application in each minute, over the last hour.
//!
//! Flat: a row of cells a minute, a column an application. The first applications seen have columns of their own; those that
//! come when all are taken share the last one. A minute is that of arrival; the row of the minute an hour ago is emptied
//! when it is taken anew. Without traffic in that minute of an hour it is not: whoever reads leaves out what is older than
//! [`oldest_us`].

use super::latency::{BUCKETS, bucket};
use postanalytics_protocol::schema::v1::AttackType;

/// Minutes that are kept.
pub const MINUTES: usize = 60;
/// Applications that are told apart, and one for all others.
pub const APPLICATIONS: usize = 32;
/// Types of hits that are told apart, and one for those not known here.
pub const TYPES: usize = AttackType::ALL.len() + 1;
/// Classes of status: those of 1xx to 5xx, before them all others.
pub const CLASSES: usize = 6;
/// A minute, µs.
pub const MINUTE_US: u64 = 60_000_000;
/// The application that a cell of others is shown as.
pub const OTHERS: i32 = i32::MIN;

/// When the oldest minute of the last hour began, Unix µs.
pub const fn oldest_us(now_us: u64) -> u64 {
    (now_us / MINUTE_US).saturating_sub(MINUTES as u64 - 1) * MINUTE_US
}

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cell {
    /// Requests.
    pub requests: u32,
    /// Requests with hits.
    pub attacks: u32,
    /// Requests that were blocked.
    pub blocked: u32,
    /// Requests by class of status.
    pub classes: [u32; CLASSES],
    /// Hits by type.
    pub types: [u32; TYPES],
    /// Requests by response time, see [`super::latency`].
    pub latencies: [u32; BUCKETS],
}

impl Cell {
    /// Nothing counted.
    pub const EMPTY: Self =
        Self { requests: 0, attacks: 0, blocked: 0, classes: [0; CLASSES], types: [0; TYPES], latencies: [0; BUCKETS] };

    /// Adds what another counted.
    pub fn merge(&mut self, other: &Self) {
        self.requests += other.requests;
        self.attacks += other.attacks;
        self.blocked += other.blocked;
        let add = |mine: &mut [u32], theirs: &[u32]| mine.iter_mut().zip(theirs).for_each(|(mine, theirs)| *mine += theirs);
        add(&mut self.classes, &other.classes);
        add(&mut self.types, &other.types);
        add(&mut self.latencies, &other.latencies);
    }
}

/// What of a request is counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted {
    /// Application.
    pub application: i32,
    /// Status of the answer.
    pub status: u16,
    /// It was blocked.
    pub is_blocked: bool,
    /// It has hits.
    pub has_hits: bool,
    /// Time until the answer, µs.
    pub response_us: u32,
}

/// See the module.
#[derive(Debug)]
pub struct Timeline {
    /// Rows one after the other.
    cells: Vec<Cell>,
    /// Minute of each row, Unix; 0: none.
    minutes: [u64; MINUTES],
    /// Applications of the columns; those from `known` on mean nothing.
    applications: [i32; APPLICATIONS],
    known: usize,
    row: usize,
    /// Column of the application that came last.
    last: usize,
}

impl Timeline {
    /// Nothing counted.
    pub fn new() -> Self {
        Self {
            cells: vec![Cell::EMPTY; MINUTES * (APPLICATIONS + 1)],
            minutes: [0; MINUTES],
            applications: [0; APPLICATIONS],
            known: 0,
            row: 0,
            last: 0,
        }
    }

    /// From now on requests of this time are counted.
    pub fn begin(&mut self, arrival_us: u64) {
        let minute = arrival_us / MINUTE_US;
        let row = minute as usize % MINUTES;
        if self.minutes[row] < minute {
            self.cells[row * (APPLICATIONS + 1)..][..=APPLICATIONS].fill(Cell::EMPTY);
            self.minutes[row] = minute;
        }
        self.row = row;
    }

    /// Counts a request.
    #[inline]
    pub fn count(&mut self, counted: Counted) {
        let column = self.column(counted.application);
        let cell = &mut self.cells[self.row * (APPLICATIONS + 1) + column];
        cell.requests += 1;
        cell.attacks += u32::from(counted.has_hits);
        cell.blocked += u32::from(counted.is_blocked);
        let class = usize::from(counted.status / 100);
        cell.classes[if class < CLASSES { class } else { 0 }] += 1;
        cell.latencies[bucket(counted.response_us)] += 1;
    }

    /// Counts a hit of the request that was counted last.
    pub fn count_hit(&mut self, attack_type: u16) {
        let cell = &mut self.cells[self.row * (APPLICATIONS + 1) + self.last];
        cell.types[usize::from(attack_type).min(TYPES - 1)] += 1;
    }

    /// Minute, application and cell of all that was counted from `since_us` on, a row after the other.
    pub fn cells(&self, since_us: u64) -> impl Iterator<Item = (u64, i32, &Cell)> {
        let rows = self.minutes.iter().enumerate().filter(move |(_, minute)| **minute > 0 && **minute >= since_us / MINUTE_US);
        rows.flat_map(move |(row, minute)| {
            let of_row = self.cells[row * (APPLICATIONS + 1)..][..=APPLICATIONS].iter().enumerate();
            let counted = of_row.filter(|(_, cell)| cell.requests > 0);
            counted.map(move |(column, cell)| (*minute, self.applications.get(column).copied().unwrap_or(OTHERS), cell))
        })
    }

    fn column(&mut self, application: i32) -> usize {
        if self.last < self.known && self.applications[self.last] == application {
            return self.last;
        }
        let found = self.applications[..self.known].iter().position(|known| *known == application);
        self.last = match found {
            Some(column) => column,
            None if self.known < APPLICATIONS => {
                self.applications[self.known] = application;
                self.known += 1;
                self.known - 1
            }
            None => APPLICATIONS,
        };
        self.last
    }
}

impl Default for Timeline {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const START_US: u64 = 1_700_000_000_000_000;

    proptest! {
        #[test]
        fn every_request_is_counted_once_in_its_minute(
            requests in prop::collection::vec((0u64..40_000_000, 0i32..50, 0u16..700, any::<bool>(), 0u16..40), 1..400),
        ) {
            let mut timeline = Timeline::new();
            let (mut now_us, mut seen, mut expected) = (START_US, Vec::new(), BTreeMap::<(u64, i32), (u32, u32, u32, u32)>::new());
            for (pause_us, application, status, is_blocked, attack_type) in requests {
                now_us += pause_us;
                timeline.begin(now_us);
                timeline.count(Counted { application, status, is_blocked, has_hits: is_blocked, response_us: 9 });
                if is_blocked {
                    timeline.count_hit(attack_type);
                }
                if !seen.contains(&application) && seen.len() < APPLICATIONS {
                    seen.push(application);
                }
                let shown = if seen.contains(&application) { application } else { OTHERS };
                let cell = expected.entry((now_us / MINUTE_US, shown)).or_default();
                cell.0 += 1;
                cell.1 += u32::from(is_blocked);
                cell.2 += u32::from((200..300).contains(&status));
                cell.3 += u32::from(is_blocked && usize::from(attack_type) >= AttackType::ALL.len());
            }
            expected.retain(|(minute, _), _| minute + MINUTES as u64 > now_us / MINUTE_US);
            let of_cell = |cell: &Cell| (cell.requests, cell.blocked, cell.classes[2], cell.types[TYPES - 1]);
            let found: BTreeMap<_, _> = timeline.cells(oldest_us(now_us)).map(|(minute, application, cell)| ((minute, application), of_cell(cell))).collect();
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn cells_merge() {
        let mut one = Cell { requests: 1, classes: [1; CLASSES], ..Cell::EMPTY };
        one.merge(&Cell { requests: 2, blocked: 3, types: [4; TYPES], ..Cell::EMPTY });
        assert_eq!(one, Cell { requests: 3, blocked: 3, classes: [1; CLASSES], types: [4; TYPES], ..Cell::EMPTY });
    }
}
