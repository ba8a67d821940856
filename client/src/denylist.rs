//! Who is listed, as the servers said: read lock-free by every thread of the site, written by the background thread only.
//!
//! A server sends its whole set when a connection opens (it replaces what that shard had listed) and changes afterwards.
//! When the connection breaks the entries stay until they expire: a site under attack does not lose its list with its link.
//! Expiry is kept on the client's monotonic clock, so a step of the wall clock neither frees nor locks anybody.
//!
//! Bound: 65,536 entries per shard; more are not kept and counted (`verdicts_skipped`).

use papaya::HashMap;
use postanalytics_protocol::Source;
use postanalytics_protocol::frames::{Action, Subject, Verdict, Verdicts};
use std::collections::HashMap as Table;
use std::net::IpAddr;
use std::time::Instant;

/// Most entries of one shard.
pub const VERDICTS_PER_SHARD_MAX: usize = 65_536;
/// The application id that stands for the default application.
const APPLICATION_DEFAULT: i32 = -1;

/// The verdicts in force. Get it from [`crate::Client::denylist`].
#[derive(Debug)]
pub struct Denylist {
    entries: HashMap<Key, Entry, foldhash::fast::RandomState>,
    started: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    subject: Listed,
    /// `None`: all applications.
    application: Option<i32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Listed {
    Source(u64),
    Session(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    action: Action,
    until_us: u64,
    shard: u32,
    /// The whole set that it came with, or the one that it changed.
    set: u64,
}

impl Denylist {
    pub(crate) fn new(started: Instant) -> Self {
        Self { entries: HashMap::with_hasher(foldhash::fast::RandomState::default()), started }
    }

    /// Whether requests of this address are to be refused: listed for all applications, or for the default application.
    ///
    /// Lock-free; an address that is not listed costs two hash lookups and no look at the clock.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.lookup(address, APPLICATION_DEFAULT) == Some(Action::Denylist)
    }

    /// What to do with requests of this address to this application: the entry for all applications counts too, and the
    /// stricter one wins.
    pub fn lookup(&self, address: IpAddr, application: i32) -> Option<Action> {
        self.find(Listed::Source(Source::of(address).key()), application)
    }

    /// What to do with requests of this session to this application. [`crate::Client::hash_identity`] gives the hash.
    pub fn lookup_session(&self, session_hash: u64, application: i32) -> Option<Action> {
        self.find(Listed::Session(session_hash), application)
    }

    /// Entries; expired ones count until they are swept, every few seconds.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nobody is listed.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn find(&self, subject: Listed, application: i32) -> Option<Action> {
        if self.entries.is_empty() {
            return None;
        }
        let entries = self.entries.pin();
        let get = |application| entries.get(&Key { subject, application }).copied();
        let (one, all) = (get(Some(application)), get(None));
        if one.is_none() && all.is_none() {
            return None;
        }
        let now_us = self.started.elapsed().as_micros() as u64;
        let live = one.into_iter().chain(all).filter(|entry| entry.until_us > now_us);
        live.map(|entry| entry.action).max_by_key(|action| *action as u8)
    }

    fn insert(&self, verdict: &Verdict, action: Action, shard: u32, set: u64, until_us: u64) -> bool {
        let before = self.entries.pin().insert(Key::of(verdict), Entry { action, until_us, shard, set }).copied();
        before.is_none_or(|entry| entry.shard != shard)
    }
}

impl Key {
    const fn of(verdict: &Verdict) -> Self {
        let subject = match verdict.subject {
            Subject::Source(address) => Listed::Source(Source::of_bytes(&address).key()),
            Subject::Session(hash) => Listed::Session(hash),
        };
        Self { subject, application: verdict.application }
    }
}

/// The background thread's side: turns Verdicts frames into entries.
pub(crate) struct Lister {
    denylist: std::sync::Arc<Denylist>,
    shards: Table<u32, Shard>,
    sets: u64,
    pub(crate) skipped: u64,
    next_sweep_us: u64,
}

#[derive(Default)]
struct Shard {
    entries: usize,
    set: u64,
    /// A whole set on its way, between its first and its last frame.
    staged: Option<Table<Key, Verdict>>,
}

/// How often expired entries are swept, µs.
const SWEEP_US: u64 = 10_000_000;

impl Lister {
    pub(crate) fn new(denylist: std::sync::Arc<Denylist>) -> Self {
        Self { denylist, shards: Table::new(), sets: 0, skipped: 0, next_sweep_us: SWEEP_US }
    }

    /// Applies a frame. `to_clock_us` turns the server's time into that of the client's clock.
    pub(crate) fn apply(&mut self, shard_number: u32, frame: &Verdicts, to_clock_us: impl Fn(u64) -> u64) {
        let shard = self.shards.entry(shard_number).or_default();
        if frame.begin {
            shard.staged = Some(Table::new());
        }
        let Some(staged) = &mut shard.staged else {
            for verdict in &frame.verdicts {
                change(&self.denylist, shard, shard_number, verdict, &mut self.skipped, &to_clock_us);
            }
            return;
        };
        for verdict in &frame.verdicts {
            if verdict.action.is_none() {
                staged.remove(&Key::of(verdict));
            } else if staged.len() < VERDICTS_PER_SHARD_MAX || staged.contains_key(&Key::of(verdict)) {
                staged.insert(Key::of(verdict), *verdict);
            } else {
                self.skipped += 1;
            }
        }
        if frame.end {
            self.sets += 1;
            shard.set = self.sets;
            let set = shard.staged.take().unwrap_or_default();
            // New entries first, then the old ones go: nobody is unlisted for a moment who is in both.
            for verdict in set.values() {
                if let Some(action) = verdict.action {
                    self.denylist.insert(verdict, action, shard_number, shard.set, to_clock_us(verdict.until_us));
                }
            }
            let newest = shard.set;
            self.denylist.entries.pin().retain(|_, entry| entry.shard != shard_number || entry.set == newest);
            shard.entries = set.len();
        }
    }

    /// The connection is gone: a set that was not complete is void, what is in force stays.
    pub(crate) fn disconnected(&mut self, shard: u32) {
        if let Some(shard) = self.shards.get_mut(&shard) {
            shard.staged = None;
        }
    }

    /// Removes expired entries, now and then.
    pub(crate) fn sweep(&mut self, now_us: u64) {
        if now_us < self.next_sweep_us {
            return;
        }
        self.next_sweep_us = now_us + SWEEP_US;
        if self.denylist.is_empty() {
            return;
        }
        let mut counts = Table::<u32, usize>::new();
        self.denylist.entries.pin().retain(|_, entry| {
            let live = entry.until_us > now_us;
            *counts.entry(entry.shard).or_default() += usize::from(live);
            live
        });
        for (number, shard) in &mut self.shards {
            shard.entries = counts.get(number).copied().unwrap_or_default();
        }
    }
}

/// Applies one change to the set in force.
fn change(
    denylist: &Denylist,
    shard: &mut Shard,
    number: u32,
    verdict: &Verdict,
    skipped: &mut u64,
    to_clock_us: impl Fn(u64) -> u64,
) {
    let Some(action) = verdict.action else {
        let gone = denylist.entries.pin().remove(&Key::of(verdict)).copied();
        shard.entries -= usize::from(gone.is_some_and(|entry| entry.shard == number)).min(shard.entries);
        return;
    };
    if shard.entries >= VERDICTS_PER_SHARD_MAX && !denylist.entries.pin().contains_key(&Key::of(verdict)) {
        *skipped += 1;
        return;
    }
    let new = denylist.insert(verdict, action, number, shard.set, to_clock_us(verdict.until_us));
    shard.entries += usize::from(new);
}

#[cfg(test)]
mod tests {
    use super::*;
    use postanalytics_protocol::routing::address_bytes;
    use std::sync::Arc;

    fn verdict(address: &str, application: Option<i32>, action: Option<Action>) -> Verdict {
        let address = address.parse().expect("an address");
        Verdict { subject: Subject::Source(address_bytes(address)), application, action, until_us: u64::MAX, detector: 0 }
    }

    fn frame(begin: bool, end: bool, verdicts: &[Verdict]) -> Verdicts {
        Verdicts { sequence: 1, begin, end, verdicts: verdicts.to_vec() }
    }

    fn lists() -> (Arc<Denylist>, Lister) {
        let denylist = Arc::new(Denylist::new(Instant::now()));
        (Arc::clone(&denylist), Lister::new(denylist))
    }

    fn has(denylist: &Denylist, address: &str) -> bool {
        denylist.contains(address.parse().expect("an address"))
    }

    #[test]
    fn a_whole_set_replaces_that_of_its_shard_at_its_end() {
        let (denylist, mut lister) = lists();
        let deny = |address| verdict(address, None, Some(Action::Denylist));
        lister.apply(0, &frame(true, true, &[deny("192.0.2.1"), deny("192.0.2.2")]), |us| us);
        lister.apply(1, &frame(true, true, &[deny("192.0.2.9")]), |us| us);
        lister.apply(0, &frame(true, false, &[deny("192.0.2.2")]), |us| us);
        assert!(has(&denylist, "192.0.2.1") && has(&denylist, "192.0.2.9"), "not yet");
        lister.apply(0, &frame(false, true, &[deny("192.0.2.3")]), |us| us);
        assert!(!has(&denylist, "192.0.2.1") && has(&denylist, "192.0.2.2") && has(&denylist, "192.0.2.3"));
        assert!(has(&denylist, "192.0.2.9"), "another shard's");

        lister.apply(0, &frame(true, false, &[]), |us| us);
        lister.disconnected(0);
        lister.apply(0, &frame(false, false, &[deny("192.0.2.4"), verdict("192.0.2.2", None, None)]), |us| us);
        assert!(has(&denylist, "192.0.2.3") && has(&denylist, "192.0.2.4") && !has(&denylist, "192.0.2.2"));
        assert_eq!(denylist.len(), 3);
    }

    #[test]
    fn applications_actions_and_networks() {
        let (denylist, mut lister) = lists();
        let entries = [
            verdict("192.0.2.1", Some(7), Some(Action::Denylist)),
            verdict("192.0.2.1", None, Some(Action::Graylist)),
            verdict("192.0.2.2", Some(-1), Some(Action::Denylist)),
            verdict("2001:db8:1:2::", None, Some(Action::Denylist)),
            Verdict { subject: Subject::Session(99), ..verdict("::", None, Some(Action::Denylist)) },
        ];
        lister.apply(0, &frame(true, true, &entries), |us| us);
        let one: IpAddr = "192.0.2.1".parse().expect("an address");
        assert_eq!(denylist.lookup(one, 7), Some(Action::Denylist));
        assert_eq!(denylist.lookup(one, 8), Some(Action::Graylist));
        assert!(!denylist.contains(one) && has(&denylist, "192.0.2.2") && has(&denylist, "2001:db8:1:2:3::4"));
        assert_eq!((denylist.lookup_session(99, 1), denylist.lookup_session(98, 1)), (Some(Action::Denylist), None));
    }

    #[test]
    fn entries_expire_by_themselves_and_are_swept() {
        let (denylist, mut lister) = lists();
        let old = verdict("192.0.2.1", None, Some(Action::Denylist));
        lister.apply(0, &frame(true, true, &[Verdict { until_us: 0, ..old }]), |us| us);
        assert!(!has(&denylist, "192.0.2.1") && denylist.len() == 1);
        lister.sweep(SWEEP_US);
        assert_eq!(denylist.len(), 0);
    }

    #[test]
    fn a_shard_lists_so_many_and_no_more() {
        let (denylist, mut lister) = lists();
        let of = |n: u32| verdict(&std::net::Ipv4Addr::from(n).to_string(), None, Some(Action::Denylist));
        let all: Vec<Verdict> = (0..VERDICTS_PER_SHARD_MAX as u32 + 5).map(of).collect();
        for (index, part) in all.chunks(1024).enumerate() {
            lister.apply(0, &frame(index == 0, false, part), |us| us);
        }
        lister.apply(0, &frame(false, true, &[]), |us| us);
        lister.apply(0, &frame(false, false, &[of(1 << 30)]), |us| us);
        assert_eq!((denylist.len(), lister.skipped), (VERDICTS_PER_SHARD_MAX, 6));
    }
}
