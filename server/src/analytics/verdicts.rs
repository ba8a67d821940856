//! The live verdicts of a shard: a bounded set that expires by itself.
//!
//! Entries have stable positions, so that a connection can be sent the whole set piece by piece while it changes.
//! When the set is full, the detectors' verdict that ends soonest yields; if all are by hand, the one of them that ends soonest to a
//! new one by hand, and none to a detector: its verdict is refused, and counted. Of two verdicts on the same subject and application the one by
//! hand holds; of two by detectors the stronger, then the one that ends later.

use hashbrown::HashMap;
use postanalytics_protocol::frames::{Action, Subject, Verdict};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Most live verdicts of a shard.
pub const VERDICTS_MAX: usize = 65_536;

type Key = (Subject, Option<i32>);

const OF_DETECTORS: usize = 0;
const BY_HAND: usize = 1;

/// See the module.
#[derive(Debug)]
pub struct VerdictSet {
    limit: usize,
    entries: Vec<Option<Verdict>>,
    free: Vec<u32>,
    positions: HashMap<Key, u32, foldhash::fast::RandomState>,
    /// Sources and sessions that detectors have listed, and how many verdicts of theirs are live.
    listed: HashMap<Subject, u32, foldhash::fast::RandomState>,
    /// Of detectors, and by hand. Soonest first; entries whose verdict changed meanwhile are skipped when they come up.
    expiries: [BinaryHeap<Reverse<(u64, u32)>>; 2],
    sequence: u64,
    made: u64,
    displaced: u64,
    refused: u64,
}

impl Default for VerdictSet {
    fn default() -> Self {
        Self::with_limit(VERDICTS_MAX)
    }
}

impl VerdictSet {
    /// An empty set for at most `limit` verdicts.
    pub fn with_limit(limit: usize) -> Self {
        Self {
            limit,
            entries: Vec::new(),
            free: Vec::new(),
            positions: HashMap::default(),
            listed: HashMap::default(),
            expiries: Default::default(),
            sequence: 0,
            made: 0,
            displaced: 0,
            refused: 0,
        }
    }

    /// Live verdicts.
    pub fn len(&self) -> usize {
        self.positions.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.positions.is_empty()
    }

    /// Sources and sessions that detectors have listed, each once.
    pub fn listed(&self) -> usize {
        self.listed.len()
    }

    /// Whether a verdict makes whom it is on one more of these.
    pub fn lists_another(&self, verdict: &Verdict) -> bool {
        is_of_detector(verdict) && !self.listed.contains_key(&verdict.subject)
    }

    /// Number of the last change.
    pub const fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Verdicts made: new ones, and renewals that changed something.
    pub const fn made(&self) -> u64 {
        self.made
    }

    /// Verdicts that yielded because the set was full.
    pub const fn displaced(&self) -> u64 {
        self.displaced
    }

    /// Verdicts of detectors that were not made because the set was full of others by hand.
    pub const fn refused(&self) -> u64 {
        self.refused
    }

    /// Applies a verdict (one without action takes an earlier one back). `changed` gets what every client must be told.
    pub fn apply(&mut self, verdict: Verdict, mut changed: impl FnMut(Verdict)) {
        let key = (verdict.subject, verdict.application);
        if verdict.action.is_none() {
            if self.remove(key) {
                changed(verdict);
            }
            return;
        }
        if let Some(&position) = self.positions.get(&key) {
            if self.entries[position as usize].is_some_and(|held| !replaces(&verdict, &held)) {
                return;
            }
            self.put(position, Some(verdict));
            self.expiries[which(&verdict)].push(Reverse((verdict.until_us, position)));
        } else {
            if self.positions.len() >= self.limit {
                let Some(soonest) = (0..=which(&verdict)).find_map(|which| self.pop_soonest(which, u64::MAX)) else {
                    self.refused += 1;
                    return;
                };
                self.displaced += 1;
                changed(Verdict { action: None, ..soonest });
            }
            let position = self.free.pop().unwrap_or_else(|| {
                self.entries.push(None);
                self.entries.len() as u32 - 1
            });
            self.put(position, Some(verdict));
            self.positions.insert(key, position);
            self.expiries[which(&verdict)].push(Reverse((verdict.until_us, position)));
        }
        self.sequence += 1;
        self.made += 1;
        changed(verdict);
        self.compact();
    }

    /// Forgets verdicts that ended by `now_us`. Clients do so by themselves: nothing is sent.
    pub fn expire(&mut self, now_us: u64) {
        for which in [OF_DETECTORS, BY_HAND] {
            while self.pop_soonest(which, now_us).is_some() {}
        }
    }

    /// Up to `count` verdicts from position `from` on, and the position to go on from; `None` at the end.
    pub fn slice(&self, from: usize, count: usize, mut each: impl FnMut(Verdict)) -> Option<usize> {
        let mut found = 0;
        for (position, entry) in self.entries.iter().enumerate().skip(from) {
            if found == count {
                return Some(position);
            }
            if let Some(verdict) = entry {
                each(*verdict);
                found += 1;
            }
        }
        None
    }

    /// Puts a verdict in the place of what was there.
    fn put(&mut self, position: u32, verdict: Option<Verdict>) {
        let before = std::mem::replace(&mut self.entries[position as usize], verdict);
        for verdict in verdict.iter().filter(|verdict| is_of_detector(verdict)) {
            *self.listed.entry(verdict.subject).or_default() += 1;
        }
        for Verdict { subject, .. } in before.iter().filter(|verdict| is_of_detector(verdict)) {
            match self.listed.get_mut(subject) {
                Some(count) if *count > 1 => *count -= 1,
                _ => drop(self.listed.remove(subject)),
            }
        }
    }

    fn remove(&mut self, key: Key) -> bool {
        let Some(position) = self.positions.remove(&key) else { return false };
        self.put(position, None);
        self.free.push(position);
        self.sequence += 1;
        true
    }

    /// Removes the verdict of detectors, or by hand, that ends soonest, if it ends by `limit_us`.
    fn pop_soonest(&mut self, of: usize, limit_us: u64) -> Option<Verdict> {
        while let Some(Reverse((until_us, position))) = self.expiries[of].peek().copied() {
            let current = self.entries.get(position as usize).copied().flatten();
            match current.filter(|verdict| verdict.until_us == until_us && which(verdict) == of) {
                Some(_) if until_us > limit_us => return None,
                Some(verdict) => {
                    self.expiries[of].pop();
                    self.remove((verdict.subject, verdict.application));
                    return Some(verdict);
                }
                None => {
                    self.expiries[of].pop();
                }
            }
        }
        None
    }

    /// Keeps the heaps within twice the set, however often verdicts are renewed.
    fn compact(&mut self) {
        if self.expiries.iter().map(BinaryHeap::len).sum::<usize>() > 2 * self.positions.len() + 64 {
            self.expiries.iter_mut().for_each(BinaryHeap::clear);
            for (position, entry) in (0..).zip(&self.entries) {
                if let Some(verdict) = entry {
                    self.expiries[which(verdict)].push(Reverse((verdict.until_us, position)));
                }
            }
        }
    }
}

/// Whether a detector made it, not an operator.
const fn is_of_detector(verdict: &Verdict) -> bool {
    verdict.detector != 0
}

/// Which of the heaps a verdict is in. In the order in which they yield.
const fn which(verdict: &Verdict) -> usize {
    if is_of_detector(verdict) { OF_DETECTORS } else { BY_HAND }
}

/// Whether a verdict takes the place of the one that holds.
fn replaces(verdict: &Verdict, held: &Verdict) -> bool {
    let rank = |verdict: &Verdict| (verdict.action == Some(Action::Denylist), verdict.until_us);
    verdict.detector == 0 || (held.detector != 0 && rank(verdict) > rank(held))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(session: u64, until_us: u64) -> Verdict {
        Verdict { subject: Subject::Session(session), application: None, action: Some(Action::Denylist), until_us, detector: 0 }
    }

    fn sessions(set: &VerdictSet) -> Vec<u64> {
        let mut found = Vec::new();
        let mut from = Some(0);
        while let Some(at) = from {
            from = set.slice(at, 2, |verdict| {
                if let Subject::Session(session) = verdict.subject {
                    found.push(session);
                }
            });
        }
        found.sort_unstable();
        found
    }

    #[test]
    fn verdicts_expire_are_renewed_and_taken_back() {
        let mut set = VerdictSet::default();
        for session in 1..=5 {
            set.apply(verdict(session, session * 10), |_| {});
        }
        set.apply(verdict(1, 100), |_| {});
        set.apply(Verdict { action: None, ..verdict(5, 0) }, |_| {});
        assert_eq!(sessions(&set), [1, 2, 3, 4]);
        set.expire(30);
        assert_eq!(sessions(&set), [1, 4]);
        assert_eq!(set.len(), 2);
        let mut told = 0;
        set.apply(Verdict { action: None, ..verdict(77, 0) }, |_| told += 1);
        assert_eq!(told, 0, "what is not there is not taken back");
        assert_eq!(set.made(), 6, "five and a renewal");
    }

    #[test]
    fn whom_detectors_listed_is_counted_once_each() {
        let mut set = VerdictSet::default();
        let of_source = |source: u8, application, detector, until_us| Verdict {
            subject: Subject::Source([source; 16]),
            application,
            detector,
            ..verdict(0, until_us)
        };
        set.apply(of_source(1, None, 0, 90), |_| {});
        set.apply(verdict(8, 90), |_| {});
        assert_eq!(set.listed(), 0, "by hand");
        assert!(set.lists_another(&Verdict { detector: 3, ..verdict(9, 90) }));
        set.apply(Verdict { detector: 3, ..verdict(9, 90) }, |_| {});
        assert!(!set.lists_another(&Verdict { detector: 3, ..verdict(9, 90) }));
        assert_eq!(set.listed(), 1, "a session counts as well");
        for application in [Some(1), Some(2), Some(2)] {
            assert_eq!(set.lists_another(&of_source(2, application, 3, 20)), application == Some(1));
            set.apply(of_source(2, application, 3, 20), |_| {});
        }
        set.apply(of_source(3, None, 3, 50), |_| {});
        assert_eq!(set.listed(), 3, "two applications are one source");
        set.apply(Verdict { action: None, ..of_source(2, Some(1), 0, 0) }, |_| {});
        assert_eq!(set.listed(), 3, "still listed of another");
        set.expire(30);
        assert_eq!(set.listed(), 2);
    }

    #[test]
    fn a_verdict_by_hand_holds_against_detectors_and_the_stronger_of_theirs() {
        let mut set = VerdictSet::default();
        let of = |detector, action, until_us| Verdict { detector, action: Some(action), ..verdict(1, until_us) };
        let held = |set: &VerdictSet| {
            let mut found = Vec::new();
            set.slice(0, 9, |verdict| found.push((verdict.detector, verdict.action, verdict.until_us)));
            found
        };
        let (deny, gray) = (Action::Denylist, Action::Graylist);
        for (next, expected) in [
            (of(3, gray, 100), (3, gray, 100)),
            (of(4, gray, 50), (3, gray, 100)),
            (of(4, gray, 120), (4, gray, 120)),
            (of(5, deny, 60), (5, deny, 60)),
            (of(4, gray, 200), (5, deny, 60)),
            (of(0, gray, 40), (0, gray, 40)),
            (of(5, deny, 900), (0, gray, 40)),
            (of(0, deny, 30), (0, deny, 30)),
        ] {
            let mut told = 0;
            set.apply(next, |_| told += 1);
            assert_eq!(held(&set), [(expected.0, Some(expected.1), expected.2)], "{next:?}");
            let is_taken = (next.detector, next.action, next.until_us) == (expected.0, Some(expected.1), expected.2);
            assert_eq!(told, usize::from(is_taken), "clients hear of changes, and of nothing else");
        }
        set.expire(30);
        assert!(set.is_empty() && set.positions.is_empty());
    }

    #[test]
    fn a_full_set_drops_the_soonest_to_expire_and_says_so() {
        let mut set = VerdictSet::with_limit(2);
        let mut told = Vec::new();
        for (session, until_us) in [(1, 300), (2, 100), (3, 200)] {
            set.apply(verdict(session, until_us), |change| told.push((change.subject, change.action.is_some())));
        }
        assert_eq!(sessions(&set), [1, 3]);
        assert_eq!(set.displaced(), 1);
        assert!(told.contains(&(Subject::Session(2), false)));
    }

    /// Whatever detectors find, and whoever makes them find it: what an operator listed stays.
    #[test]
    fn a_full_set_keeps_what_was_listed_by_hand_from_detectors() {
        let mut set = VerdictSet::with_limit(2);
        let of_detector = |session, until_us| Verdict { detector: 3, ..verdict(session, until_us) };
        set.apply(verdict(1, 100), |_| {});
        for session in 2..5 {
            set.apply(of_detector(session, 200), |_| {});
            assert_eq!(sessions(&set), [1, session], "of detectors the soonest yields, though the other ends before");
        }
        // By hand takes the place of a detector's, first by being on the same session.
        set.apply(verdict(4, 200), |_| {});
        let mut told = 0;
        set.apply(of_detector(5, 300), |_| told += 1);
        assert_eq!((sessions(&set), told), (vec![1, 4], 0), "none is left that would yield to a detector");
        assert_eq!((set.displaced(), set.refused(), set.listed()), (2, 1, 0));
        set.apply(verdict(6, 50), |_| {});
        assert_eq!(sessions(&set), [4, 6], "by hand displaces by hand");
        set.expire(60);
        set.apply(of_detector(5, 10), |_| {});
        set.apply(verdict(7, 300), |_| {});
        assert_eq!(sessions(&set), [4, 7], "and a detector's before that");
        set.expire(1000);
        assert!(set.is_empty());
    }

    #[test]
    fn renewing_for_ever_keeps_memory_bounded() {
        let mut set = VerdictSet::with_limit(4);
        for round in 1..10_000 {
            set.apply(Verdict { detector: (round % 3) as u16, ..verdict(round % 4, round) }, |_| {});
        }
        assert!(set.expiries.iter().map(BinaryHeap::len).sum::<usize>() <= 2 * 4 + 65 && set.entries.len() <= 4);
    }
}
