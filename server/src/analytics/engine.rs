//! The life of an event at its key, the same for every detector: state, clock, lateness, hold, decision, alert.
//!
//! Used by the shards for everything keyed by a source, and by the correlator for what is keyed by a user.

use super::alerts::{Alert, Alerts, EVIDENCE_MAX};
use super::detectors::{COUNTED, Detector, Event};
use super::keys::{Cell, EVIDENCE, KeyTable, Pool, clear_lists};
use super::rules::{Firing, SET, State};
use super::settings::Settings;
use crate::config::detection::Numbers;
use std::sync::Arc;

/// Progress, in thousandths, above which a key that yields is alarmed about.
const HOT: i64 = 500;
/// Keys with lists among which one must yield for room for lists.
const RIVALS: usize = 16;

/// What happened, counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Events looked at, by detector.
    pub looked: [u64; 12],
    /// Events that were late, by detector.
    pub late: [u64; 12],
    /// Alerts, by detector.
    pub fired: [u64; 12],
    /// Keys that yielded to others.
    pub keys_evicted: u64,
    /// Of them, those over half of a threshold.
    pub keys_evicted_hot: u64,
    /// Of all that yielded, those that did for the room of their lists.
    pub keys_evicted_for_lists: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Engine {
    settings: Arc<Settings>,
    /// The keys.
    pub table: KeyTable,
    /// The alerts.
    pub alerts: Alerts,
    /// What happened.
    pub counters: Counters,
    /// Where the search for a key that yields its lists goes on.
    hand: usize,
}

impl Engine {
    /// An engine for `keys` keys.
    pub fn new(settings: Arc<Settings>, keys: usize, alerts: Alerts) -> Self {
        Self { settings, table: KeyTable::new(keys), alerts, counters: Counters::default(), hand: 0 }
    }

    /// Goes on with other settings. Keys of detectors that changed are forgotten, their alerts final: what they hold was counted
    /// by other rules. If none did, which is what the rotation of a log file brings, the table is not walked.
    pub fn reload(&mut self, settings: Arc<Settings>, changed: &[Detector]) {
        self.settings = settings;
        if changed.is_empty() {
            return;
        }
        for position in 0..self.table.capacity() {
            let cell = self.table.cell(position);
            if cell.key != 0 && changed.contains(&Detector::of_plan(cell.plan)) {
                self.alerts.finish(cell.alert(), cell.key);
                self.table.remove(position);
            }
        }
        self.table.forget_probation(changed);
    }

    /// Until when a key is on hold.
    pub fn hold_until_us(&self, key: u64) -> Option<u64> {
        let cell = self.table.cell(self.table.find(key)?);
        self.alerts.hold_until_us(cell.alert(), key)
    }

    /// How near a key is to firing, in thousandths; 0 if nothing is known of it.
    pub fn progress_of(&self, key: u64, now_us: u64) -> i64 {
        let Some(position) = self.table.find(key) else { return 0 };
        let cell = self.table.cell(position);
        if !cell.is_single() {
            return Detector::of_plan(cell.plan).progress(self.settings.numbers(cell.plan), cell, &self.table.pool, now_us);
        }
        // Its one event waits to be unpacked: it is counted on a copy.
        let (event, mut pool) = (cell.event(), Pool::new(4096));
        let mut unpacked = Cell::empty(&event);
        let (detector, numbers) = (Detector::of_plan(event.plan), self.settings.numbers(event.plan));
        unpacked.clock_us = event.time_us;
        unpacked.seq = 1;
        let mut state = State { cell: &mut unpacked, pool: &mut pool };
        let _ = detector.decide(numbers, &mut state, &event, event.time_us, 0);
        detector.progress(numbers, &unpacked, &pool, now_us)
    }

    /// What most events of most visitors come down to, without the rest of [`Self::take`]: whether all there was to do is done.
    ///
    /// - `forced_browsing`: the template is known. The clock moves, the event is counted.
    /// - `crawl`: the key holds one event, and that has leaked away. The new one takes its place.
    #[inline(always)]
    pub fn take_quickly(&mut self, event: &Event, likely: u32) -> bool {
        let detector = Detector::of_plan(event.plan);
        let numbers = self.settings.numbers(event.plan);
        if self.table.pool.is_short() {
            return false;
        }
        let Some((cell, pool)) = self.table.cell_of(likely, event.key) else { return false };
        let Some(elapsed_us) = event.time_us.checked_sub(cell.clock_us) else { return false };
        match detector {
            Detector::ForcedBrowsing => {
                let is_known = cell.has_lists() && pool.get(cell.list(SET)).contains(&event.value);
                if !is_known || elapsed_us >= numbers.forced_browsing.empty_after_us as u64 {
                    return false;
                }
                cell.clock_us = event.time_us;
                cell.seq = cell.seq.wrapping_add(1).max(1);
                if wants_evidence(detector, cell) && event.request_id != [0, 0] {
                    keep_evidence(&mut State { cell, pool }, detector, event.request_id);
                }
            }
            Detector::Crawl if cell.is_single() && elapsed_us >= numbers.crawl.leak_us as u64 => cell.put_single(event),
            _ => return false,
        }
        self.counters.looked[detector as usize] += 1;
        true
    }

    /// Takes an event, whose key is likely at a position. If it decides, [`Self::fire`] is to be called next.
    #[inline(always)]
    pub fn take(&mut self, event: &Event, likely: u32) -> Option<(usize, Firing)> {
        // Nearly all events are of these two: each has a copy of what follows, in which the detector is known.
        match Detector::of_plan(event.plan) {
            Detector::ForcedBrowsing => self.take_of(Detector::ForcedBrowsing, event, likely),
            Detector::Crawl => self.take_of(Detector::Crawl, event, likely),
            detector => {
                let event = *event;
                self.take_other(detector, &event, likely)
            }
        }
    }

    #[inline(never)]
    fn take_other(&mut self, detector: Detector, event: &Event, likely: u32) -> Option<(usize, Firing)> {
        self.take_of(detector, event, likely)
    }

    #[inline(always)]
    fn take_of(&mut self, detector: Detector, event: &Event, likely: u32) -> Option<(usize, Firing)> {
        let position = match self.table.find_from(likely, event.key) {
            Some(position) => position,
            None => {
                // A copy, so that the event itself can stay in registers.
                let event = *event;
                self.enter(detector, &event)?
            }
        };
        if self.table.pool.is_short() {
            self.make_room(position, event.time_us);
        }
        let (cell, pool) = self.table.cell_and_pool(position);
        let numbers = self.settings.numbers(event.plan);
        if starts_anew(detector, numbers, cell, pool, event) {
            self.counters.looked[detector as usize] += 1;
            return None;
        }
        let mut view = View { numbers, late_us: self.settings.late_us, alerts: &mut self.alerts, cell, pool };
        if view.cell.is_single() {
            let first = view.cell.event();
            *view.cell = Cell::empty(&first);
            // One event alone does not fire, or it would not have been put aside; it was counted as looked at then.
            let _ = view.look(detector, &first);
        }
        match view.look(detector, event) {
            Looked::Late => {
                self.counters.late[detector as usize] += 1;
                None
            }
            Looked::At(firing) => {
                self.counters.looked[detector as usize] += 1;
                firing.map(|firing| (position, firing))
            }
        }
    }

    /// Makes a place for a key that has none; `None` if there is nothing more to do with its event now.
    #[inline(never)]
    fn enter(&mut self, detector: Detector, event: &Event) -> Option<usize> {
        if detector.may_fire_at_once(self.settings.numbers(event.plan)) {
            return Some(self.insert(Cell::empty(event), event.time_us));
        }
        if self.table.is_crowded() {
            let first = self.table.probation(event)?;
            return Some(self.insert(Cell::single(&first), event.time_us));
        }
        self.insert(Cell::single(event), event.time_us);
        self.counters.looked[detector as usize] += 1;
        None
    }

    /// Makes the alert, described by `describe`, and starts the key anew. Returns the alert's number.
    pub fn fire(
        &mut self,
        (position, firing): (usize, Firing),
        event: &Event,
        order: u64,
        describe: impl FnOnce(&mut Alert),
    ) -> u32 {
        let detector = Detector::of_plan(event.plan);
        self.counters.fired[detector as usize] += 1;
        let (cell, pool) = self.table.cell_and_pool(position);
        let (number, alert) = self.alerts.open(cell.key);
        alert.plan = event.plan;
        alert.order = order;
        alert.first_us = firing.first_us;
        alert.fired_us = cell.clock_us;
        alert.last_us = cell.clock_us;
        alert.hold_until_us = cell.clock_us + detector.hold_us(self.settings.numbers(event.plan));
        alert.count = u64::from(cell.seq.wrapping_sub(firing.first_seq)) + 1;
        alert.distinct = if detector.counts_distinct() { u64::from(firing.distinct) } else { 0 };
        let evidence = pool.get(cell.list(EVIDENCE)).chunks_exact(detector.evidence_words());
        // {number of the event, where there are windows}, {id}.
        let kept = evidence.filter(|entry| entry.len() == 2 || entry[0] as u32 >= firing.first_seq);
        for entry in kept.take(EVIDENCE_MAX - 1) {
            alert.evidence[alert.evidence_count] = [entry[entry.len() - 2], entry[entry.len() - 1]];
            alert.evidence_count += 1;
        }
        if event.request_id != [0, 0] {
            alert.evidence[alert.evidence_count] = event.request_id;
            alert.evidence_count += 1;
        }
        detector.values(cell, pool, |value| alert.add_value(value));
        describe(alert);
        clear_lists(cell, pool);
        cell.hold(number);
        self.alerts.raised(number);
        number
    }

    /// Puts a new key in; if there is no room, the least of its rivals yields.
    fn insert(&mut self, cell: Cell, now_us: u64) -> usize {
        if let Some(position) = self.table.insert(cell) {
            return position;
        }
        let (settings, table, alerts) = (&self.settings, &self.table, &mut self.alerts);
        let mut least = (i64::MAX, u64::MAX, table.rivals(cell.key).start);
        for position in table.rivals(cell.key) {
            let rival = table.cell(position);
            let progress = progress(rival, settings, table, alerts, now_us);
            least = least.min((progress, rival.clock_us, position));
        }
        self.evict(least);
        self.table.insert(cell).unwrap_or(least.2)
    }

    /// Makes room for lists, so that what the key at a position needs for an event is there: a step, and more if there is no
    /// reserve. Lists move together as long as that frees a page; then the least of sixteen keys with lists yields.
    #[cold]
    #[inline(never)]
    fn make_room(&mut self, position: usize, now_us: u64) {
        while (self.table.move_lists_together() || self.evict_for_lists(position, now_us)) && !self.table.pool.has_reserve() {}
    }

    /// `false`: none but the key at a position has lists.
    fn evict_for_lists(&mut self, kept: usize, now_us: u64) -> bool {
        let (mut least, mut rivals) = (None, 0);
        for _ in 0..self.table.capacity() {
            self.hand = (self.hand + 1) % self.table.capacity();
            let rival = self.table.cell(self.hand);
            if self.hand == kept || !rival.has_lists() {
                continue;
            }
            let progress = progress(rival, &self.settings, &self.table, &mut self.alerts, now_us);
            let found = (progress, rival.clock_us, self.hand);
            least = Some(least.map_or(found, |least| found.min(least)));
            rivals += 1;
            if rivals == RIVALS {
                break;
            }
        }
        let Some(least) = least else { return false };
        self.counters.keys_evicted_for_lists += 1;
        self.evict(least);
        true
    }

    /// Removes the key at a position, of which is known how near it is to firing.
    fn evict(&mut self, (progress, _, position): (i64, u64, usize)) {
        self.counters.keys_evicted += 1;
        self.counters.keys_evicted_hot += u64::from(progress > HOT);
        let yielding = self.table.cell(position);
        self.alerts.finish(yielding.alert(), yielding.key);
        self.table.remove(position);
    }
}

/// What became of an event.
enum Looked {
    Late,
    At(Option<Firing>),
}

/// A key, and what it takes to look at an event of it.
struct View<'a> {
    numbers: &'a Numbers,
    late_us: u64,
    alerts: &'a mut Alerts,
    cell: &'a mut Cell,
    pool: &'a mut Pool,
}

impl View<'_> {
    /// Clock, lateness and hold; then the detector's decision.
    #[inline(always)]
    fn look(&mut self, detector: Detector, event: &Event) -> Looked {
        let cell = &mut *self.cell;
        if event.time_us.saturating_add(self.late_us) < cell.clock_us {
            return Looked::Late;
        }
        let time_us = event.time_us.max(cell.clock_us);
        let elapsed_us = time_us - cell.clock_us;
        cell.clock_us = time_us;
        let value = (detector.counts_distinct() && event.kind & COUNTED != 0).then_some(event.value);
        if cell.alert() != 0 && self.is_held(value, time_us) {
            return Looked::At(None);
        }
        let cell = &mut *self.cell;
        cell.seq = cell.seq.wrapping_add(1).max(1);
        let mut state = State { cell, pool: self.pool };
        let firing = detector.decide(self.numbers, &mut state, event, time_us, elapsed_us);
        if firing.is_none() && event.kind & COUNTED != 0 && wants_evidence(detector, state.cell) && event.request_id != [0, 0] {
            keep_evidence(&mut state, detector, event.request_id);
        }
        Looked::At(firing)
    }

    /// Whether the alert of a key takes the event, which counts this value; else the hold is over, and the key released.
    #[inline(never)]
    fn is_held(&mut self, value: Option<u64>, time_us: u64) -> bool {
        let (cell, now_us) = (&mut *self.cell, self.alerts.now_us());
        match self.alerts.held(cell.alert(), cell.key) {
            Some(alert) if time_us < alert.hold_until_us => {
                alert.raise(time_us, value, now_us);
                return true;
            }
            _ => self.alerts.finish(cell.alert(), cell.key),
        }
        cell.release();
        false
    }
}

/// Where all that is known of a key has leaked away when an event comes, its cell holds that event alone again, as if it
/// were the first: most keys of most visitors never need a list.
#[inline(always)]
fn starts_anew(detector: Detector, numbers: &Numbers, cell: &mut Cell, pool: &mut Pool, event: &Event) -> bool {
    let Some(leak_us) = detector.only_leak_us(numbers) else { return false };
    let level = if cell.is_single() { leak_us } else { cell.level as u64 };
    if cell.alert() != 0 || event.time_us.saturating_sub(cell.clock_us) < level {
        return false;
    }
    // That is not so of an event that is late, or behind the clock with nothing left of the level.
    if event.time_us < cell.clock_us {
        return false;
    }
    if cell.has_lists() {
        clear_lists(cell, pool);
    }
    *cell = Cell::single(&Event { network: cell.network, ..*event });
    true
}

fn progress(cell: &Cell, settings: &Settings, table: &KeyTable, alerts: &mut Alerts, now_us: u64) -> i64 {
    if cell.is_single() {
        return 0;
    }
    if alerts.held(cell.alert(), cell.key).is_some_and(|alert| now_us < alert.hold_until_us) {
        return 1000;
    }
    Detector::of_plan(cell.plan).progress(settings.numbers(cell.plan), cell, &table.pool, now_us)
}

/// Whether the id of an event may be kept. Without windows, what was kept before the rule was last empty is gone already, see
/// `State::start_counting_anew`, and nothing else ever goes.
#[inline]
const fn wants_evidence(detector: Detector, cell: &Cell) -> bool {
    !detector.windows().is_empty() || cell.first_seq != 0 && !cell.has_all_evidence()
}

/// Keeps the id of a counted event, up to the number that an alert shows; ids that no rule counts any more go first. Sets and
/// windows, by which is decided, come first: evidence takes no more than half of the pool.
#[inline(never)]
fn keep_evidence(state: &mut State<'_>, detector: Detector, request_id: [u64; 2]) {
    if state.pool.is_half_full() {
        return;
    }
    if detector.windows().is_empty() {
        state.with_list(EVIDENCE, |pool, list| pool.push(list, request_id, EVIDENCE_MAX));
        return;
    }
    let (oldest, seq) = (state.oldest_seq(detector.windows()), state.cell.seq);
    state.with_list(EVIDENCE, |pool, list| {
        let stale = pool.entries::<3>(*list).iter().take_while(|entry| (entry[0] as u32) < oldest).count();
        if stale > 0 {
            pool.drop_front(list, stale * 3);
        }
        if list.words() < (EVIDENCE_MAX - 1) * 3 && oldest <= seq {
            pool.push(list, [u64::from(seq), request_id[0], request_id[1]], EVIDENCE_MAX);
        }
    });
}
