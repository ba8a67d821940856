//! Who is listed, as the servers said: read lock-free by every thread of the site, written by the background thread only.
//!
//! A server sends its whole set when a connection opens (it replaces what that shard had listed) and changes afterwards.
//! When the connection breaks the entries stay until they expire: a site under attack does not lose its list with its link.
//! Expiry is kept on the client's monotonic clock, so a step of the node's wall clock neither frees nor locks anybody. After one of
//! its own clock the server sends the whole set again.
//!
//! Bound: 65,536 entries per shard of each server; more are not kept and counted (`verdicts_skipped`).

use crate::verdict_table::{Key, Listed, Until, VerdictTable};
use postanalytics_protocol::Source;
use postanalytics_protocol::frames::{Action, Subject, Verdict, Verdicts};
use postanalytics_protocol::routing::address_bytes;
use rustix::time::{ClockId, clock_gettime};
use std::collections::HashMap as Table;
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

/// Most entries of one shard.
pub const VERDICTS_PER_SHARD_MAX: usize = 65_536;
/// The application id that stands for the default application.
const APPLICATION_DEFAULT: i32 = -1;

/// A change of the denylist, as [`crate::ClientBuilder::on_listed`] hears of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListChange {
    /// Whom it is about.
    pub subject: Subject,
    /// The application it holds for, `None` for all.
    pub application: Option<i32>,
    /// What the list says from now on; `None`: nothing any more.
    pub action: Option<Action>,
}

/// What is called with changes that the denylist shows already.
pub(crate) type ListHook = Option<Box<dyn FnMut(&[ListChange]) + Send>>;

/// The verdicts in force. Get it from [`crate::Client::denylist`].
#[derive(Debug)]
pub struct Denylist {
    entries: VerdictTable,
    started: Instant,
    /// When that was by the clock of [`Denylist::coarse_us`], ns.
    started_ns: i64,
}

/// A coarse clock is behind by less than this, µs: kernels tick at least every 10 ms.
const COARSE_US: u64 = 50_000;

/// What one verdict says. Each action has its own time, and the table holds the union over all shards of all servers, so that one shard's entry neither
/// covers another's nor takes it along when it ends.
const fn until_of(action: Action, until_us: u64) -> Until {
    match action {
        Action::Denylist => Until { denylist_us: until_us, graylist_us: 0 },
        Action::Graylist => Until { denylist_us: 0, graylist_us: until_us },
    }
}

const fn action_at(until: Until, now_us: u64) -> Option<Action> {
    match until {
        _ if until.denylist_us > now_us => Some(Action::Denylist),
        _ if until.graylist_us > now_us => Some(Action::Graylist),
        _ => None,
    }
}

impl Denylist {
    pub(crate) fn new(started: Instant) -> Self {
        let started_ns = nanoseconds(ClockId::Monotonic) - started.elapsed().as_nanos() as i64;
        Self { entries: VerdictTable::new(), started, started_ns }
    }

    /// Whether requests of this address are to be refused: listed for all applications, or for the default application.
    ///
    /// Lock-free, and rarely more than one line of memory; an address that is not listed costs no look at the clock.
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
        self.entries.len() == 0
    }

    fn find(&self, subject: Listed, application: i32) -> Option<Action> {
        if self.is_empty() {
            return None;
        }
        let until = self.entries.find(subject, application)?;
        // The coarse clock is read in a quarter of the time, and without waiting for loads under way. Where it cannot tell, the other is asked.
        let coarse_us = self.coarse_us();
        let is_unsure = |until_us: u64| until_us > coarse_us && until_us - coarse_us <= COARSE_US;
        let now_us = if is_unsure(until.denylist_us) || is_unsure(until.graylist_us) {
            self.started.elapsed().as_micros() as u64
        } else {
            coarse_us
        };
        action_at(until, now_us)
    }

    /// Until when requests of this address are to be refused, µs since the start.
    #[cfg(test)]
    pub(crate) fn denied_until_us(&self, address: IpAddr) -> Option<u64> {
        let until = self.entries.find(Listed::Source(Source::of(address).key()), APPLICATION_DEFAULT)?;
        Some(until.denylist_us)
    }

    /// What the clock showed at the last tick, µs since the start.
    fn coarse_us(&self) -> u64 {
        ((nanoseconds(ClockId::MonotonicCoarse) - self.started_ns) / 1000).max(0).cast_unsigned()
    }
}

fn nanoseconds(clock: ClockId) -> i64 {
    let time = clock_gettime(clock);
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}

const fn key_of(verdict: &Verdict) -> Key {
    let subject = match verdict.subject {
        Subject::Source(address) => Listed::Source(Source::of_bytes(&address).key()),
        Subject::Session(hash) => Listed::Session(hash),
    };
    Key { subject, application: verdict.application }
}

/// A time of a server that sent at `sent_us`, by the client's clock, which shows `now_us`.
const fn clock_us(server_us: u64, sent_us: u64, now_us: u64) -> u64 {
    now_us.saturating_add(server_us.saturating_sub(sent_us)).saturating_sub(sent_us.saturating_sub(server_us))
}

fn subject_of(key: Key) -> Subject {
    match key.subject {
        Listed::Source(key) => Subject::Source(address_bytes(Source::of_key(key).address())),
        Listed::Session(hash) => Subject::Session(hash),
    }
}

/// A shard of a server: the place of the server among those of the client, and the number of the shard.
type ShardOf = (usize, u32);

/// The background thread's side: turns Verdicts frames into entries. It keeps a table per shard of each server; what the threads
/// of the site read is their union.
pub(crate) struct Lister {
    denylist: std::sync::Arc<Denylist>,
    shards: Table<ShardOf, Shard>,
    pub(crate) skipped: u64,
    next_sweep_us: u64,
    hook: ListHook,
    /// The hook has panicked and is gone.
    pub(crate) panicked: bool,
}

#[derive(Default)]
struct Shard {
    listed: Table<Key, Until>,
    /// A whole set on its way, between its first and its last frame.
    staged: Option<Table<Key, Until>>,
    /// What is listed is of a server process that is no more.
    is_former: bool,
}

/// How often expired entries are swept, µs.
const SWEEP_US: u64 = 10_000_000;

impl Lister {
    pub(crate) fn new(denylist: std::sync::Arc<Denylist>) -> Self {
        Self { denylist, shards: Table::new(), skipped: 0, next_sweep_us: SWEEP_US, hook: None, panicked: false }
    }

    /// Whom to tell of changes.
    pub(crate) fn tell(&mut self, hook: ListHook) {
        self.hook = hook;
    }

    /// Applies a frame, which the server sent at `sent_us` by its clock. That clock may be set at any time, so each frame says for
    /// itself how long its entries hold.
    pub(crate) fn apply(&mut self, of: ShardOf, frame: &Verdicts, sent_us: u64, now_us: u64) {
        let shard = self.shards.entry(of).or_default();
        if frame.begin {
            shard.staged = Some(Table::new());
        }
        let mut changed = Vec::new();
        let staging = shard.staged.is_some();
        let table = shard.staged.as_mut().unwrap_or(&mut shard.listed);
        let mut swept = false;
        for verdict in &frame.verdicts {
            let key = key_of(verdict);
            if !staging {
                changed.push(key);
            }
            let Some(action) = verdict.action else {
                table.remove(&key);
                continue;
            };
            let full = |table: &Table<Key, Until>| table.len() >= VERDICTS_PER_SHARD_MAX && !table.contains_key(&key);
            if full(table) && !std::mem::replace(&mut swept, true) {
                // What has expired takes nobody's place.
                table.retain(|_, until| action_at(*until, now_us).is_some());
            }
            if full(table) {
                self.skipped += 1;
            } else {
                table.insert(key, until_of(action, clock_us(verdict.until_us, sent_us, now_us)));
            }
        }
        if frame.end
            && let Some(set) = shard.staged.take()
        {
            changed.extend(set.keys());
            changed.extend(std::mem::replace(&mut shard.listed, set).into_keys());
            shard.is_former = false;
            // The other shards' lanes open when they have records, perhaps never.
            for (_, former) in self.shards.iter_mut().filter(|((server, _), shard)| *server == of.0 && shard.is_former) {
                former.is_former = false;
                changed.extend(std::mem::take(&mut former.listed).into_keys());
            }
        }
        let changes: Vec<ListChange> = changed.into_iter().filter_map(|key| self.publish(key, now_us)).collect();
        if let Some(hook) = self.hook.as_mut().filter(|_| !changes.is_empty()) {
            // As with acknowledgements: a hook that panicked is never called again, and the thread ends when it has published.
            if catch_unwind(AssertUnwindSafe(|| hook(&changes))).is_err() {
                (self.hook, self.panicked) = (None, true);
            }
        }
    }

    /// Shows the threads of the site what all shards together say of a key. `None`: it says what it said before.
    fn publish(&self, key: Key, now_us: u64) -> Option<ListChange> {
        let listed = self.shards.values().filter_map(|shard| shard.listed.get(&key));
        let until = listed.copied().reduce(Until::union);
        let at = |until: Option<Until>| until.and_then(|until| action_at(until, now_us));
        let (former, action) = (at(self.denylist.entries.set(key, until)), at(until));
        (former != action).then(|| ListChange { subject: subject_of(key), application: key.application, action })
    }

    /// The server was restarted, or is another one. What it listed before, in whichever shards, stays until its first whole set.
    pub(crate) fn restarted(&mut self, server: usize) {
        self.shards.iter_mut().filter(|((of, _), _)| *of == server).for_each(|(_, shard)| shard.is_former = true);
    }

    /// The connection is gone: a set that was not complete is void, what is in force stays.
    pub(crate) fn disconnected(&mut self, of: ShardOf) {
        if let Some(shard) = self.shards.get_mut(&of) {
            shard.staged = None;
        }
    }

    /// Removes expired entries, now and then.
    pub(crate) fn sweep(&mut self, now_us: u64) {
        if now_us < self.next_sweep_us {
            return;
        }
        self.next_sweep_us = now_us + SWEEP_US;
        for shard in self.shards.values_mut() {
            shard.listed.retain(|_, until| action_at(*until, now_us).is_some());
        }
        self.denylist.entries.retain(|until| action_at(until, now_us).is_some());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
        lister.apply((0, 0), &frame(true, true, &[deny("192.0.2.1"), deny("192.0.2.2")]), 0, 0);
        lister.apply((0, 1), &frame(true, true, &[deny("192.0.2.9")]), 0, 0);
        lister.apply((0, 0), &frame(true, false, &[deny("192.0.2.2")]), 0, 0);
        assert!(has(&denylist, "192.0.2.1") && has(&denylist, "192.0.2.9"), "not yet");
        lister.apply((0, 0), &frame(false, true, &[deny("192.0.2.3")]), 0, 0);
        assert!(!has(&denylist, "192.0.2.1") && has(&denylist, "192.0.2.2") && has(&denylist, "192.0.2.3"));
        assert!(has(&denylist, "192.0.2.9"), "another shard's");

        lister.apply((0, 0), &frame(true, false, &[]), 0, 0);
        lister.disconnected((0, 0));
        lister.apply((0, 0), &frame(false, false, &[deny("192.0.2.4"), verdict("192.0.2.2", None, None)]), 0, 0);
        assert!(has(&denylist, "192.0.2.3") && has(&denylist, "192.0.2.4") && !has(&denylist, "192.0.2.2"));
        assert_eq!(denylist.len(), 3);
    }

    #[test]
    fn the_hook_hears_of_what_the_list_shows_already() {
        let (denylist, mut lister) = lists();
        let (told, list) = (Arc::new(std::sync::Mutex::new(Vec::new())), Arc::clone(&denylist));
        let keep = Arc::clone(&told);
        lister.tell(Some(Box::new(move |changes: &[ListChange]| {
            let seen = |change: &ListChange| match change.subject {
                Subject::Source(bytes) => list.lookup(postanalytics_protocol::routing::address_of_bytes(bytes), 7),
                Subject::Session(hash) => list.lookup_session(hash, 7),
            };
            keep.lock().expect("no panic").extend(changes.iter().map(|change| (*change, seen(change))));
        })));
        let deny = |address| verdict(address, None, Some(Action::Denylist));
        lister.apply((0, 0), &frame(true, false, &[deny("192.0.2.1")]), 0, 0);
        assert!(told.lock().expect("no panic").is_empty(), "a set that is not whole changes nothing");
        lister.apply((0, 0), &frame(false, true, &[]), 0, 0);
        lister.apply((0, 0), &frame(false, false, &[verdict("2001:db8:1:2::9", Some(7), Some(Action::Graylist))]), 0, 0);
        lister.apply((0, 0), &frame(false, false, &[verdict("192.0.2.1", None, None)]), 0, 0);
        // A connection that opens anew brings the whole set: of it, only what is other than before is told.
        let gray = verdict("2001:db8:1:2::9", Some(7), Some(Action::Graylist));
        lister.apply((0, 0), &frame(true, true, &[gray, deny("192.0.2.7")]), 0, 0);
        lister.apply((0, 0), &frame(true, true, &[deny("192.0.2.7")]), 0, 0);
        let source = |text: &str| Subject::Source(address_bytes(text.parse().expect("an address")));
        let change = |subject, application, action| (ListChange { subject, application, action }, action);
        let wanted = [
            change(source("192.0.2.1"), None, Some(Action::Denylist)),
            change(source("2001:db8:1:2::"), Some(7), Some(Action::Graylist)),
            change(source("192.0.2.1"), None, None),
            change(source("192.0.2.7"), None, Some(Action::Denylist)),
            change(source("2001:db8:1:2::"), Some(7), None),
        ];
        assert_eq!(*told.lock().expect("no panic"), wanted);
        lister.tell(Some(Box::new(|_| panic!("a test wants this"))));
        lister.apply((0, 0), &frame(false, false, &[deny("192.0.2.3"), deny("192.0.2.4")]), 0, 0);
        assert!(lister.panicked && has(&denylist, "192.0.2.4"), "the list is whole all the same");
        lister.apply((0, 0), &frame(false, false, &[deny("192.0.2.5")]), 0, 0);
        assert!(has(&denylist, "192.0.2.5"));
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
        lister.apply((0, 0), &frame(true, true, &entries), 0, 0);
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
        lister.apply((0, 0), &frame(true, true, &[Verdict { until_us: 1, ..old }]), 0, 0);
        std::thread::sleep(std::time::Duration::from_millis(1));
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
            lister.apply((0, 0), &frame(index == 0, false, part), 0, 0);
        }
        lister.apply((0, 0), &frame(false, true, &[]), 0, 0);
        lister.apply((0, 0), &frame(false, false, &[of(1 << 30)]), 0, 0);
        assert_eq!((denylist.len(), lister.skipped), (VERDICTS_PER_SHARD_MAX, 6));
    }

    #[test]
    fn shards_that_list_the_same_subject_do_not_touch_each_other() {
        let (denylist, mut lister) = lists();
        let session = |action| Verdict { subject: Subject::Session(99), ..verdict("::", None, action) };
        lister.apply((0, 0), &frame(true, true, &[session(Some(Action::Denylist))]), 0, 0);
        lister.apply((0, 1), &frame(true, true, &[session(Some(Action::Graylist))]), 0, 0);
        assert_eq!(denylist.lookup_session(99, 1), Some(Action::Denylist), "denylist wins, whoever came last");
        lister.apply((0, 0), &frame(false, false, &[session(None)]), 0, 0);
        assert_eq!(denylist.lookup_session(99, 1), Some(Action::Graylist), "the other shard's stays");
        lister.apply((0, 0), &frame(false, false, &[session(Some(Action::Denylist))]), 0, 0);
        lister.apply((0, 1), &frame(true, true, &[]), 0, 0);
        assert_eq!(denylist.lookup_session(99, 1), Some(Action::Denylist));
        lister.apply((0, 0), &frame(true, true, &[]), 0, 0);
        assert!(denylist.is_empty());
    }

    #[test]
    fn a_weaker_verdict_shows_when_a_stronger_one_ends() {
        let (denylist, mut lister) = lists();
        let short = Verdict { until_us: 1, ..verdict("192.0.2.1", None, Some(Action::Denylist)) };
        lister.apply((0, 0), &frame(true, true, &[short]), 0, 0);
        lister.apply((0, 1), &frame(true, true, &[verdict("192.0.2.1", None, Some(Action::Graylist))]), 0, 0);
        std::thread::sleep(std::time::Duration::from_millis(1));
        let address = "192.0.2.1".parse().expect("an address");
        assert_eq!(denylist.lookup(address, 1), Some(Action::Graylist));
    }

    /// `cargo test --release -p postanalytics-client --lib -- --ignored --nocapture denylist_cost`
    #[test]
    #[ignore = "prints timings, asserts nothing about them; run it alone and in release mode"]
    #[expect(clippy::print_stdout, reason = "the timings are what it is for")]
    fn denylist_cost() {
        const LOOKUPS: u32 = 4_000_000;
        let address = |n: u32| IpAddr::from(std::net::Ipv4Addr::from(0x0a00_0000 | n));
        let of = |n: u32| {
            let until_us = 3_600_000_000;
            Verdict { until_us, ..verdict(&address(n).to_string(), Some(-1), Some(Action::Denylist)) }
        };
        let cost = |name: &str, denylist: &Denylist, first: u32, mask: u32| {
            // Drawn before, so that drawing costs nothing; in no order, so that the caches see what a site gives them.
            let mut state = 1u32;
            let mut draw = || {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                address(first + (state >> 8 & mask))
            };
            let asked: Vec<IpAddr> = (0..1 << 20).map(|_| draw()).collect();
            let mut rounds = [0.0; 5];
            for round in &mut rounds {
                let begun = Instant::now();
                let found = (0..LOOKUPS as usize).filter(|n| denylist.contains(asked[n & ((1 << 20) - 1)])).count();
                *round = begun.elapsed().as_nanos() as f64 / f64::from(LOOKUPS);
                assert!(found == 0 || found == LOOKUPS as usize, "{name}: {found}");
            }
            rounds.sort_by(f64::total_cmp);
            println!("{name}: {:.1} ns (of 5 rounds {:.1} to {:.1})", rounds[2], rounds[0], rounds[4]);
        };
        let (denylist, mut lister) = lists();
        cost("nobody is listed", &denylist, 0, 0xffff);
        let all: Vec<Verdict> = (0..VERDICTS_PER_SHARD_MAX as u32).map(of).collect();
        for (index, part) in all.chunks(1024).enumerate() {
            lister.apply((0, 0), &frame(index == 0, false, part), 0, 0);
        }
        lister.apply((0, 0), &frame(false, true, &[]), 0, 0);
        assert_eq!(denylist.len(), VERDICTS_PER_SHARD_MAX);
        cost("65,536 listed, one of them asked for", &denylist, 0, 0xffff);
        cost("65,536 listed, another asked for", &denylist, 1 << 20, 0xffff);
        cost("65,536 listed, 16 that are asked for again and again", &denylist, 0, 0xf);
    }

    #[test]
    fn what_a_former_server_process_listed_goes_with_the_first_whole_set() {
        let (denylist, mut lister) = lists();
        let deny = |address| verdict(address, None, Some(Action::Denylist));
        lister.restarted(0);
        lister.apply((0, 3), &frame(true, true, &[deny("192.0.2.3")]), 0, 0);
        lister.apply((0, 1), &frame(true, true, &[deny("192.0.2.4"), deny("192.0.2.5")]), 0, 0);
        lister.apply((1, 1), &frame(true, true, &[deny("192.0.2.5")]), 0, 0);
        lister.restarted(0);
        // It has less shards, and one of those that there are is slower with its set.
        lister.apply((0, 1), &frame(true, false, &[deny("192.0.2.6")]), 0, 0);
        lister.apply((0, 0), &frame(true, false, &[deny("192.0.2.1")]), 0, 0);
        assert!(has(&denylist, "192.0.2.3"), "until a set is whole");
        lister.apply((0, 0), &frame(false, true, &[]), 0, 0);
        assert!(has(&denylist, "192.0.2.1") && !has(&denylist, "192.0.2.3") && !has(&denylist, "192.0.2.4"));
        assert!(has(&denylist, "192.0.2.5"), "another server's");
        lister.apply((0, 1), &frame(false, true, &[]), 0, 0);
        assert!(has(&denylist, "192.0.2.1") && has(&denylist, "192.0.2.6"));
    }

    #[test]
    fn expired_entries_take_nobodys_place() {
        let (denylist, mut lister) = lists();
        let of = |n: u32, until_us| {
            let address = std::net::Ipv4Addr::from(n).to_string();
            Verdict { until_us, ..verdict(&address, None, Some(Action::Denylist)) }
        };
        let all: Vec<Verdict> = (0..VERDICTS_PER_SHARD_MAX as u32).map(|n| of(n, 1000)).collect();
        lister.apply((0, 0), &frame(true, true, &all), 0, 0);
        lister.apply((0, 0), &frame(false, false, &[of(1 << 30, u64::MAX)]), 1000, 1000);
        assert!(lister.skipped == 0 && denylist.contains(std::net::Ipv4Addr::from(1 << 30).into()));
    }
}
