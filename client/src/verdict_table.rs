//! What the threads of a site read of the denylist: a flat hash table that they look into without a lock, and without writing.
//!
//! ```text
//! line 64 B   two places: { tag │ subject │ denylist until │ graylist until }, 8 B each
//! ```
//!
//! Entries of a subject for all applications and for one of them begin at the same line, so that a look-up finds both there, at
//! the price of one cache line for nearly all. A place that has its subject and tag keeps them: what is listed no more stays with
//! both times 0, and is left out when the table is next built anew, in other memory, once half of its places are taken.
//!
//! **Readers never wait.** They read the number of the table, look, and look again only if by then the number is another one: memory
//! of an older table may be in use again. A writer that is stopped midway stops none of them. Writers take a lock among themselves.
//! Memory of a table is kept for the next of its size; no more than two of each size ever are.

use crate::sync::{AtomicU64, AtomicUsize, LINES_BITS_MIN, Mutex, OnceLock, Ordering, RandomState, fence};
use std::hash::BuildHasher;
use std::sync::PoisonError;

/// Two memories for each power of two.
const MEMORIES: usize = 2 * 32;
/// Bits of the table's number that say which memory it is in.
const MEMORY_BITS: u32 = 6;

/// What is listed: whom, and for which application.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) subject: Listed,
    /// `None`: all applications.
    pub(crate) application: Option<i32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Listed {
    Source(u64),
    Session(u64),
}

impl Listed {
    const fn number(self) -> u64 {
        match self {
            Self::Source(number) | Self::Session(number) => number,
        }
    }

    /// Bits of a tag; never 0, which is a free place.
    const fn bits(self) -> u64 {
        match self {
            Self::Source(_) => 1 << 33,
            Self::Session(_) => 1 << 34,
        }
    }
}

impl Key {
    const fn tag(self) -> u64 {
        let of_application = match self.application {
            Some(application) => 1 << 32 | application.cast_unsigned() as u64,
            None => 0,
        };
        self.subject.bits() | of_application
    }

    const fn of(tag: u64, number: u64) -> Self {
        let subject = if tag & 1 << 34 != 0 { Listed::Session(number) } else { Listed::Source(number) };
        let application = if tag & 1 << 32 != 0 { Some((tag as u32).cast_signed()) } else { None };
        Self { subject, application }
    }
}

/// Until when a key is listed, for each action, µs; 0: not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Until {
    pub(crate) denylist_us: u64,
    pub(crate) graylist_us: u64,
}

impl Until {
    pub(crate) fn union(self, other: Self) -> Self {
        Self { denylist_us: self.denylist_us.max(other.denylist_us), graylist_us: self.graylist_us.max(other.graylist_us) }
    }

    const fn is_never(self) -> bool {
        self.denylist_us == 0 && self.graylist_us == 0
    }
}

#[derive(Debug, Default)]
struct Place {
    tag: AtomicU64,
    subject: AtomicU64,
    denylist_until_us: AtomicU64,
    graylist_until_us: AtomicU64,
}

impl Place {
    fn key(&self) -> Option<Key> {
        let tag = self.tag.load(Ordering::Acquire);
        (tag != 0).then(|| Key::of(tag, self.subject.load(Ordering::Relaxed)))
    }

    /// The denylist is read before and after: whoever moves a key from one list to the other sets the later time first.
    #[inline]
    fn until(&self) -> Until {
        let before_us = self.denylist_until_us.load(Ordering::Acquire);
        let graylist_us = self.graylist_until_us.load(Ordering::Acquire);
        let denylist_us = if before_us == 0 { self.denylist_until_us.load(Ordering::Acquire) } else { before_us };
        Until { denylist_us, graylist_us }
    }

    /// For writers.
    fn set(&self, until: Until) {
        let set = [(&self.denylist_until_us, until.denylist_us), (&self.graylist_until_us, until.graylist_us)];
        set.iter().filter(|(_, until_us)| *until_us != 0).for_each(|(at, until_us)| at.store(*until_us, Ordering::Release));
        set.iter().filter(|(_, until_us)| *until_us == 0).for_each(|(at, _)| at.store(0, Ordering::Release));
    }

    /// For writers, of a free place.
    fn take(&self, key: Key, until: Until) {
        self.subject.store(key.subject.number(), Ordering::Relaxed);
        self.set(until);
        self.tag.store(key.tag(), Ordering::Release);
    }
}

#[derive(Debug, Default)]
#[repr(align(64))]
struct Line([Place; 2]);

// The atomics of the models in tests/loom are larger.
const _: () = assert!(size_of::<AtomicU64>() != 8 || size_of::<Line>() == 64);

/// What writers know.
#[derive(Debug, Default)]
struct Taken {
    /// Places of the table with a tag.
    places: usize,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct VerdictTable {
    hasher: RandomState,
    /// Number of the table: how many there were before, and in its lowest bits which memory it is in.
    number: AtomicU64,
    memories: [OnceLock<Box<[Line]>>; MEMORIES],
    /// Keys that are listed.
    listed: AtomicUsize,
    taken: Mutex<Taken>,
}

impl VerdictTable {
    pub(crate) fn new() -> Self {
        let table = Self {
            hasher: RandomState::default(),
            number: AtomicU64::new(memory_of(LINES_BITS_MIN, 0) as u64),
            memories: [const { OnceLock::new() }; MEMORIES],
            listed: AtomicUsize::new(0),
            taken: Mutex::default(),
        };
        table.memory(table.number.load(Ordering::Relaxed));
        table
    }

    /// Keys that are listed, the expired ones as well until they are [swept](Self::retain).
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.listed.load(Ordering::Relaxed)
    }

    /// Until when a subject is listed for an application, or for all; `None`: it is not.
    #[inline]
    pub(crate) fn find(&self, subject: Listed, application: i32) -> Option<Until> {
        let one = Key { subject, application: Some(application) }.tag();
        let all = Key { subject, application: None }.tag();
        let home = self.hasher.hash_one(subject.number());
        loop {
            let number = self.number.load(Ordering::Acquire);
            let mut found = Until::default();
            for Line(places) in around(self.memory(number), home) {
                let mut is_end = false;
                for place in places {
                    let tag = place.tag.load(Ordering::Acquire);
                    is_end |= tag == 0;
                    if (tag == one || tag == all) && place.subject.load(Ordering::Relaxed) == subject.number() {
                        found = found.union(place.until());
                    }
                }
                if is_end {
                    break;
                }
            }
            // What was read above was read before this: see `build`.
            fence(Ordering::Acquire);
            if self.number.load(Ordering::Relaxed) == number {
                return (!found.is_never()).then_some(found);
            }
        }
    }

    /// Lists a key until then, or no more; returns until when it was listed before.
    pub(crate) fn set(&self, key: Key, until: Option<Until>) -> Option<Until> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let until = until.unwrap_or_default();
        let lines = self.memory(self.number.load(Ordering::Relaxed));
        let former = match self.place_of(lines, key) {
            Some((place, true)) => {
                let former = place.until();
                place.set(until);
                former
            }
            _ if until.is_never() => return None,
            Some((place, false)) if taken.places < lines.len() => {
                place.take(key, until);
                taken.places += 1;
                Until::default()
            }
            _ => {
                self.build(&mut taken, (key, until));
                Until::default()
            }
        };
        match (former.is_never(), until.is_never()) {
            (true, false) => self.listed.fetch_add(1, Ordering::Relaxed),
            (false, true) => self.listed.fetch_sub(1, Ordering::Relaxed),
            _ => 0,
        };
        (!former.is_never()).then_some(former)
    }

    /// Lists those no more of which `is_kept` does not hold.
    pub(crate) fn retain(&self, is_kept: impl Fn(Until) -> bool) {
        let _taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        for Line(places) in self.memory(self.number.load(Ordering::Relaxed)) {
            for place in places.iter().filter(|place| !place.until().is_never() && !is_kept(place.until())) {
                place.set(Until::default());
                self.listed.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// Builds the next table, of what is listed and one more, and shows it.
    fn build(&self, taken: &mut Taken, (key, until): (Key, Until)) {
        let number = self.number.load(Ordering::Relaxed);
        let before = self.memory(number);
        let live = before.iter().flat_map(|Line(places)| places).filter_map(|place| Some((place.key()?, place.until())));
        let live: Vec<(Key, Until)> = live.filter(|(_, until)| !until.is_never()).chain([(key, until)]).collect();
        // A quarter of its places are taken at first.
        let bits = (live.len() * 2).next_power_of_two().trailing_zeros().max(LINES_BITS_MIN);
        let first = memory_of(bits, 0);
        let memory = if memory_in(number) == first { memory_of(bits, 1) } else { first };
        let lines = self.memory(memory as u64);
        // Whoever still reads this memory as that of an older table and sees any of what follows sees, by this fence and that of
        // `find`, that the number is another one.
        fence(Ordering::Release);
        lines.iter().flat_map(|Line(places)| places).for_each(|place| place.tag.store(0, Ordering::Relaxed));
        for &(key, until) in &live {
            if let Some((place, false)) = self.place_of(lines, key) {
                place.take(key, until);
            }
        }
        taken.places = live.len();
        self.number.store(((number >> MEMORY_BITS) + 1) << MEMORY_BITS | memory as u64, Ordering::Release);
    }

    /// The place of a key, and whether it has it already; else it is a free one.
    fn place_of<'a>(&self, lines: &'a [Line], key: Key) -> Option<(&'a Place, bool)> {
        let home = self.hasher.hash_one(key.subject.number());
        let mut places = around(lines, home).flat_map(|Line(places)| places).map(|place| (place, place.key()));
        places.find(|(_, known)| known.is_none_or(|known| known == key)).map(|(place, known)| (place, known.is_some()))
    }

    #[inline]
    fn memory(&self, number: u64) -> &[Line] {
        let memory = memory_in(number);
        let lines = || (0..1usize << (memory / 2)).map(|_| Line::default()).collect();
        self.memories[memory].get_or_init(lines)
    }
}

/// All lines, from the home of a hash on.
#[inline]
fn around(lines: &[Line], home: u64) -> impl Iterator<Item = &Line> {
    let (before, from) = lines.split_at(home as usize & (lines.len() - 1));
    from.iter().chain(before)
}

const fn memory_of(bits: u32, which: usize) -> usize {
    bits as usize * 2 + which
}

const fn memory_in(number: u64) -> usize {
    number as usize & (MEMORIES - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;
    use std::sync::atomic::AtomicBool;

    fn until(denylist_us: u64, graylist_us: u64) -> Until {
        Until { denylist_us, graylist_us }
    }

    proptest! {
        #[test]
        fn it_is_the_map_that_it_stands_for(steps in prop::collection::vec((0u64..600, 0i32..3, 0u64..4, 0u64..3), 0..3000)) {
            let (table, mut model) = (VerdictTable::new(), HashMap::<Key, Until>::new());
            for (step, (number, application, denylist_us, graylist_us)) in steps.into_iter().enumerate() {
                let subject = if number % 2 == 0 { Listed::Source(number / 2) } else { Listed::Session(number / 2) };
                let key = Key { subject, application: (application > 0).then_some(application) };
                let new = Some(until(denylist_us, graylist_us)).filter(|until| !until.is_never());
                let former = match new {
                    Some(until) => model.insert(key, until),
                    None => model.remove(&key),
                };
                prop_assert_eq!(table.set(key, new), former);
                if step % 1000 == 999 {
                    table.retain(|until| until.denylist_us > 1);
                    model.retain(|_, until| until.denylist_us > 1);
                }
                prop_assert_eq!(table.len(), model.len());
            }
            for number in 0..300 {
                for subject in [Listed::Source(number), Listed::Session(number)] {
                    for application in 1..4 {
                        let of = |application| model.get(&Key { subject, application }).copied().unwrap_or_default();
                        let both = of(Some(application)).union(of(None));
                        prop_assert_eq!(table.find(subject, application), (!both.is_never()).then_some(both));
                    }
                }
            }
        }
    }

    /// Readers look all the while a writer lists, moves and frees others and builds tables anew, larger, smaller and in memory
    /// that was in use before.
    #[test]
    fn readers_never_miss_who_is_listed_nor_find_who_is_not() {
        let (table, is_over) = (VerdictTable::new(), AtomicBool::new(false));
        let key = |number| Key { subject: Listed::Source(number), application: None };
        table.set(key(1), Some(until(7, 0)));
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !is_over.load(Ordering::Relaxed) {
                        let known = table.find(Listed::Source(1), 5).expect("it is on one list or the other");
                        assert!([until(7, 0), until(0, 7), until(7, 7)].contains(&known), "{known:?}");
                        assert_eq!(table.find(Listed::Source(2), 5), None);
                    }
                });
            }
            for round in 0..60u64 {
                for number in 10..10 + (1 << (round % 12)) {
                    table.set(key(round << 32 | number), Some(until(9, 0)));
                    table.set(key(1), Some(if number % 2 == 0 { until(7, 0) } else { until(0, 7) }));
                }
                table.retain(|until| until.denylist_us != 9);
            }
            is_over.store(true, Ordering::Relaxed);
        });
        assert_eq!(table.len(), 1);
    }
}
