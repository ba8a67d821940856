//! Records in, alerts and verdicts out. Pure: no I/O, no clock.
//!
//! - [`observation`]: what detectors need of a record; [`path`], [`settings`], [`fingerprint`], [`memo`] help it
//! - [`detectors`]: what each looks at and when it fires, on [`rules`]
//! - [`keys`]: bounded state; [`engine`]: clock, lateness, hold and alert of a key; [`alerts`]
//! - [`attacks`]: hits into attacks, and which hits are kept whole
//! - [`summary`]: counters of all requests, for pages
//! - [`users`]: what is keyed by a user and belongs to the correlator; [`reports`]: what it is told of alerts
//! - [`guards`]: whom detectors must not list
//! - [`explain`]: what they make of a record that was seen before
//! - [`verdicts`]: the sources and sessions that filters are to deny or watch
//!
//! **A batch goes through in steps, each some records behind the one before**: a record is read; what it is is looked up and counted; the
//! cells of its keys are found; their lists are asked for; its events are decided. What a step asks for comes while the others' steps are
//! taken: with a million keys the waits for memory would be most of the time, and asked for all at once the lines would wait for each
//! other. (A key that stands in the second of its buckets is found a step later, and its lists may have to be waited for.) Events are
//! decided in order; the counters of all requests, and with them what [`guards`] know of a source, are some records ahead of them, and
//! all records of a chunk while little is counted yet.
//!
//! One [`Analytics`] belongs to one shard and sees all records of its sources, in order of arrival. Everything is made when
//! the shard starts. A panic in here is caught by the shard, which quarantines the frame.

pub mod alerts;
pub mod attacks;
pub mod detectors;
pub mod engine;
pub mod explain;
pub mod fingerprint;
pub mod guards;
pub mod keys;
pub mod magnitude;
pub mod memo;
pub mod observation;
pub mod odd;
pub mod path;
pub mod reports;
pub mod rules;
pub mod settings;
pub mod summary;
pub mod users;
pub mod verdicts;

use crate::config::detection::Response;
use alerts::{ALL_APPLICATIONS, Alert, Alerts};
use attacks::hits::HitSampler;
use bumpalo::Bump;
use bumpalo::collections::Vec as BumpVec;
use detectors::{Detector, Event, KeyKind, Look, multi_payload, probing};
use engine::Engine;
use fingerprint::Fingerprints;
use guards::{Guards, Objection};
use keys::KeyTable;
use memo::Memo;
use observation::{Here, Observation, Outcome, Paths};
use odd::Odd;
use postanalytics_protocol::ValidBatch;
use postanalytics_protocol::frames::{Action, Subject, Verdict};
use postanalytics_protocol::routing::address_bytes;
use postanalytics_protocol::schema::v1::HITS_MAX;
use reports::AlertReports;
use rules::Firing;
use settings::Settings;
use std::sync::Arc;
use summary::Summary;
use users::{USER_DETECTORS, UserFailure};

/// Records after which all that are under way are taken to their end: few enough to stay in the cache.
const CHUNK: usize = 64;
/// Records from one step of a record to its next, if the batch has as many: time enough for what the step asked for to come.
const LAG: usize = 4;
/// Steps of a record after it was read.
const STEPS: usize = 4;
/// Most events of a record: one for each detector, and one for each hit.
const EVENTS_MAX: usize = Detector::ALL.len() + HITS_MAX as usize;
/// The two detectors that look at nearly every request, of a source at a host: their events are decided without standing in line,
/// if no override names them. In the order of the detectors.
const HERE: [Detector; 2] = [Detector::ForcedBrowsing, Detector::Crawl];
/// Most user agents, and most paths, that are remembered; fewer where there is room for few keys.
const USER_AGENTS_MAX: usize = 1 << 15;
const PATHS_MAX: usize = 1 << 18;
/// Sets of refusals that are remembered, each of a source at an endpoint.
const REFUSALS: usize = 16_384;
/// Refusals of a set.
const REFUSAL_WAYS: usize = 4;
/// Most events for the correlator, and most verdicts, that wait to be taken.
pub const WAITING_MAX: usize = 4096;

/// When a batch came, and what its times mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timing {
    /// When it arrived, Unix µs.
    pub arrival_us: u64,
    /// When it was sent, by the node's clock.
    pub sent_us: u64,
    /// The events keep their own times.
    pub is_replay: bool,
}

/// What a shard's analysis has room for, and what it tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Keys; 0: no detector runs, hits are found all the same.
    pub keys: usize,
    /// Alerts, held and final; `None`: all, for a replay.
    pub alerts: Option<usize>,
    /// Failures of users are handed on.
    pub hands_on_failures: bool,
    /// Shards among which the sources are spread, this one among them.
    pub shards: u32,
    /// What becomes of alerts and hits is reported, requests are counted for pages, and of identical hits only the first of
    /// an hour are kept whole.
    pub reports: bool,
}

impl Default for Room {
    fn default() -> Self {
        Self { keys: 1 << 16, alerts: Some(1024), hands_on_failures: false, shards: 1, reports: false }
    }
}

/// Settings that take the place of others while all runs.
#[derive(Clone, Debug, Default)]
pub struct Reload {
    /// What holds from now on.
    pub settings: Arc<Settings>,
    /// Detectors that count otherwise with them.
    pub changed: Vec<Detector>,
}

impl Reload {
    /// Takes over what an earlier one changed, which never arrived: whoever hears this one alone forgets as much as with both.
    pub fn unite(&mut self, earlier: &Self) {
        for detector in &earlier.changed {
            if !self.changed.contains(detector) {
                self.changed.push(*detector);
            }
        }
    }
}

/// How to make the analysis of a shard: its memory is touched first by the thread that will use it.
#[derive(Clone, Debug, Default)]
pub struct AnalyticsPlan {
    /// What detectors count.
    pub settings: Arc<Settings>,
    /// What there is room for.
    pub room: Room,
    /// Keys the fingerprints.
    pub seed: u64,
}

impl AnalyticsPlan {
    /// Makes it.
    pub fn build(&self) -> Analytics {
        Analytics::new(Arc::clone(&self.settings), self.room, self.seed)
    }
}

/// An event that is to be decided: what its observation does not say, see [`Waiting::event`].
#[derive(Clone, Copy, Debug)]
struct Waiting {
    key: u64,
    look: Look,
    /// Where its key likely is.
    position: u32,
    plan: u16,
}

impl Waiting {
    #[inline(always)]
    fn event(&self, observation: &Observation<'_>, prints: &Fingerprints) -> Event {
        Event {
            key: self.key,
            time_us: observation.time_us,
            value: self.look.value,
            number: self.look.number,
            request_id: observation.request_id(),
            kind: self.look.kind,
            network: observation.ipv6_network().map_or(0, |network| network_slot(network, prints)),
            plan: self.plan,
        }
    }
}

/// What the analysis of one shard keeps.
#[derive(Debug)]
pub struct Analytics {
    settings: Arc<Settings>,
    prints: Fingerprints,
    seed: u64,
    room: Room,
    /// Keys and alerts.
    pub engine: Engine,
    /// Records that are odd.
    pub odd: Odd,
    /// User agents; the mark says whether one names a tool.
    user_agents: Memo<1>,
    /// Paths, and what they are: see [`observation::Target`].
    paths: Paths,
    /// Detectors that run, with no override anywhere and each application apart.
    is_plain: [bool; Detector::ALL.len()],
    /// Events of a chunk on their way.
    waiting: Vec<Waiting>,
    /// {fingerprint, time} of refusals of a source by an endpoint, the newest of a set first.
    refusals: Vec<[(u64, u64); REFUSAL_WAYS]>,
    /// Position of the next record.
    order: u64,
    /// Failures of users for the correlator, in order.
    pub failures: Vec<UserFailure>,
    /// Failures not handed on, because too many waited.
    pub failures_lost: u64,
    /// Hits for the correlator.
    pub hits: Option<HitSampler>,
    /// Counters of all requests.
    pub summary: Option<Box<Summary>>,
    /// Whom detectors must not list.
    pub guards: Guards,
    /// Verdicts to be set.
    pub listed: Vec<Verdict>,
    /// A record with this id panics, so that a test can see what becomes of it.
    #[cfg(test)]
    pub panic_at: Option<[u8; 16]>,
}

impl Default for Analytics {
    fn default() -> Self {
        Self::new(Arc::new(Settings::default()), Room::default(), 0)
    }
}

impl Analytics {
    /// The analysis of a shard. `seed` keys its fingerprints.
    pub fn new(settings: Arc<Settings>, room: Room, seed: u64) -> Self {
        let mut alerts = room.alerts.map_or_else(Alerts::unbounded, Alerts::bounded);
        if room.reports {
            alerts.reports = AlertReports::with_room();
        }
        Self {
            prints: Fingerprints::new(seed),
            seed,
            room,
            engine: Engine::new(Arc::clone(&settings), room.keys, alerts),
            is_plain: are_plain(&settings),
            settings,
            odd: Odd::default(),
            user_agents: Memo::new((room.keys / 8).min(USER_AGENTS_MAX)),
            paths: Paths::new((room.keys / 2).min(PATHS_MAX)),
            waiting: Vec::with_capacity(if room.keys == 0 { 0 } else { CHUNK * EVENTS_MAX }),
            refusals: vec![[(0, 0); REFUSAL_WAYS]; REFUSALS],
            order: 0,
            failures: Vec::with_capacity(if room.hands_on_failures { WAITING_MAX } else { 0 }),
            failures_lost: 0,
            hits: room.reports.then(HitSampler::new),
            summary: (room.reports && room.keys > 0).then(Box::default),
            guards: Guards::new(room.shards),
            listed: Vec::with_capacity(64),
            #[cfg(test)]
            panic_at: None,
        }
    }

    /// The same analysis, of which nothing is known. What waited to be told is lost, and counted so.
    pub fn afresh(&self) -> Self {
        let mut fresh = Self::new(Arc::clone(&self.settings), self.room, self.seed);
        // Counters only grow.
        fresh.engine.counters = self.engine.counters;
        fresh.engine.table.probation_overwritten = self.engine.table.probation_overwritten;
        fresh.engine.table.pool.entries_dropped = self.engine.table.pool.entries_dropped;
        fresh.odd = self.odd;
        fresh.engine.alerts.cut_short = self.engine.alerts.cut_short;
        let reports = &self.engine.alerts.reports;
        fresh.engine.alerts.reports.lost = reports.lost + reports.len() as u64;
        fresh.failures_lost = self.failures_lost + self.failures.len() as u64;
        fresh.guards.objections = self.guards.objections;
        fresh.guards.listed = self.guards.listed;
        if let (Some(fresh), Some(known)) = (&mut fresh.hits, &self.hits) {
            (fresh.lost, fresh.suppressed) = (known.lost + known.reports.len() as u64, known.suppressed);
        }
        fresh
    }

    /// Goes on with other settings; keys of the detectors that count otherwise with them are forgotten.
    pub fn reload(&mut self, reload: &Reload) {
        self.settings = Arc::clone(&reload.settings);
        self.is_plain = are_plain(&self.settings);
        // What is known of user agents may be of other tools, that of paths of other log-ins.
        self.user_agents.clear();
        self.paths.clear();
        self.engine.reload(Arc::clone(&reload.settings), &reload.changed);
    }

    /// Whether host, path and the like of every record are read, not the fixed fields alone.
    pub const fn reads_texts(&self) -> bool {
        self.room.keys > 0
    }

    /// Looks at every record of a batch. `orders` are their positions in the input, if that is not simply the order of calls.
    /// Returns the positions of those whose hits are to be kept whole, in `scratch`.
    pub fn observe<'scratch>(
        &mut self,
        batch: &ValidBatch<'_>,
        timing: Timing,
        orders: &[u64],
        scratch: &'scratch Bump,
    ) -> BumpVec<'scratch, u32> {
        let mut with_hits = BumpVec::new_in(scratch);
        self.engine.alerts.begin(timing.arrival_us);
        if let Some(summary) = &mut self.summary {
            summary.begin(timing.arrival_us);
            self.guards.begin(timing.arrival_us);
        }
        let room = if self.room.keys == 0 { 0 } else { CHUNK.min(batch.len()) };
        let mut chunk = BumpVec::with_capacity_in(room, scratch);
        // Of a shard that has just started guards know nothing: then all of a chunk are counted before the first is decided.
        let little_is_known = self.summary.as_ref().is_some_and(|summary| summary.hot.total() < CHUNK as u64);
        let lag = if little_is_known { CHUNK } else { LAG }.min(batch.len());
        for (place, record) in (0..).zip(batch.records()) {
            #[cfg(test)]
            assert_ne!(self.panic_at, Some(record.request_id()), "a test asked for this");
            let order = orders.get(place as usize).copied().unwrap_or(self.order);
            self.order = order + 1;
            self.odd.count(&record, timing);
            if self.room.keys == 0 && (record.hit_count() == 0 || self.hits.is_none()) {
                if record.hit_count() > 0 {
                    with_hits.push(place);
                }
                continue;
            }
            chunk.push(Observation::of(&record, (timing, place, order), &self.prints));
            if let Some(observation) = chunk.last() {
                self.prefetch_first(observation);
            }
            let newest = chunk.len() - 1;
            self.advance(&mut chunk, (newest, lag), timing, scratch, &mut with_hits);
            if chunk.len() == CHUNK {
                self.finish(&mut chunk, lag, timing, scratch, &mut with_hits);
            }
        }
        self.finish(&mut chunk, lag, timing, scratch, &mut with_hits);
        with_hits
    }

    /// Takes the records of a chunk that are still under way to their end.
    fn finish<'a>(
        &mut self,
        chunk: &mut BumpVec<'_, Observation<'a>>,
        lag: usize,
        timing: Timing,
        scratch: &'a Bump,
        with_hits: &mut BumpVec<'_, u32>,
    ) {
        if chunk.is_empty() {
            return;
        }
        for newest in chunk.len()..chunk.len() + STEPS * lag {
            self.advance(chunk, (newest, lag), timing, scratch, with_hits);
        }
        chunk.clear();
        self.waiting.clear();
    }

    /// Brings what an observation says into the cache at which place it is known.
    #[inline]
    fn prefetch_first(&self, observation: &Observation<'_>) {
        self.paths.prefetch(observation.path_fingerprint);
        self.user_agents.prefetch(observation.user_agent_fingerprint);
        self.engine.table.prefetch_tags(observation.here_fingerprint);
        if let Some(summary) = &self.summary {
            summary.prefetch(observation);
        }
    }

    /// The step of each record that is due when record `newest` of the chunk was read.
    fn advance<'a>(
        &mut self,
        chunk: &mut [Observation<'a>],
        (newest, lag): (usize, usize),
        timing: Timing,
        scratch: &'a Bump,
        with_hits: &mut BumpVec<'_, u32>,
    ) {
        if let Some(observation) = chunk.get_mut(newest.wrapping_sub(lag)) {
            self.look(observation, scratch, with_hits);
        }
        if let Some(observation) = chunk.get_mut(newest.wrapping_sub(2 * lag)) {
            self.find(observation);
        }
        if let Some(observation) = chunk.get(newest.wrapping_sub(3 * lag)) {
            self.prefetch_lists(observation);
        }
        if let Some(observation) = chunk.get(newest.wrapping_sub(STEPS * lag)) {
            self.decide(observation, timing, scratch);
        }
    }

    /// Finds out what a record is, puts its events in line, and counts it. If its hits are to be kept whole it goes to `with_hits`.
    #[inline(always)]
    fn look<'a>(&mut self, observation: &mut Observation<'a>, scratch: &'a Bump, with_hits: &mut BumpVec<'_, u32>) {
        observation.look_up(&self.settings, &self.prints, Some(&mut self.paths), scratch);
        if observation.has_hits && self.keeps_hits(observation, scratch) {
            with_hits.push(observation.place);
        }
        if self.room.keys == 0 {
            return;
        }
        observation.is_attack_tool = self.is_attack_tool(observation);
        if observation.is_attempt() {
            observation.attempt = Some(self.outcome(observation));
        }
        observation.here = self.look_here(observation);
        let first = self.waiting.len() as u32;
        self.gather(observation, scratch);
        observation.waiting = [first, self.waiting.len() as u32];
        if let Some(summary) = &mut self.summary {
            summary.count(observation, scratch);
            // Of the source alone, whatever its applications are.
            self.guards.count(self.prints.pair(observation.source.key(), 0));
        }
    }

    /// Takes the hits of a record; whether it is to be kept whole.
    #[cold]
    fn keeps_hits<'a>(&mut self, observation: &Observation<'a>, scratch: &'a Bump) -> bool {
        let Some(sampler) = &mut self.hits else { return true };
        let record = observation.record();
        let take = |kept, hit| sampler.take(observation, record.flags(), &hit, &self.prints, scratch) || kept;
        record.hits().fold(false, take)
    }

    /// What an observation is to the two detectors that look at nearly all, and where their cells are.
    #[inline(always)]
    fn look_here(&self, observation: &Observation<'_>) -> Here {
        let kind = |detector: Detector| match detector.look(observation) {
            Some(look) if self.is_plain[detector as usize] => look.kind as u8,
            _ => 0,
        };
        let kinds = [kind(HERE[0]), kind(HERE[1])];
        let first = if kinds[0] != 0 { HERE[0] } else { HERE[1] };
        let position = if kinds == [0, 0] { 0 } else { self.find_cells(key_of(observation.here_fingerprint, first.plan(0))) };
        Here { position, kinds }
    }

    /// Where a key likely is, whose tags are in the cache; its cell is on its way there.
    #[inline(always)]
    fn find_cells(&self, key: u64) -> u32 {
        let table = &self.engine.table;
        let position = table.likely_position(key);
        match position {
            u32::MAX => table.prefetch_other_tags(key),
            position => table.prefetch_cells(position),
        }
        position
    }

    /// Puts the events that an observation is to the detectors in line, in the order of the detectors.
    #[inline]
    fn gather<'a>(&mut self, observation: &Observation<'a>, scratch: &'a Bump) {
        let wait = |this: &mut Self, detector: Detector| {
            if let Some(look) = detector.look(observation) {
                this.wait(detector, look, observation, scratch);
            }
        };
        if observation.attempt.is_some() {
            wait(self, Detector::BruteForce);
            wait(self, Detector::BruteForceAttempts);
            self.hand_on(observation, scratch);
            wait(self, Detector::CredentialStuffing);
        }
        if !self.is_plain[Detector::ForcedBrowsing as usize] {
            wait(self, Detector::ForcedBrowsing);
        }
        wait(self, Detector::ForcedBrowsingCount);
        if observation.object.is_some() {
            wait(self, Detector::Bola);
        }
        if observation.has_hits {
            for hit in observation.record().hits() {
                let look = multi_payload::look(self.prints.bytes(hit.payload));
                self.wait(Detector::MultiPayload, look, observation, scratch);
            }
        }
        if observation.is_attack_tool {
            wait(self, Detector::Scanner);
        }
        if observation.is_probe() {
            let look = probing::look(observation.address_fingerprint(&self.prints, scratch));
            self.wait(Detector::Probing, look, observation, scratch);
        }
        if !self.is_plain[Detector::Crawl as usize] {
            wait(self, Detector::Crawl);
        }
    }

    /// Puts an event in line, if its detector runs.
    #[inline(never)]
    fn wait<'a>(&mut self, detector: Detector, look: Look, observation: &Observation<'a>, scratch: &'a Bump) {
        let plan = detector.plan(self.rank(detector, observation, scratch));
        let numbers = self.settings.numbers(plan);
        if !detector.is_enabled(numbers) {
            return;
        }
        let source = match detector.is_across_applications(numbers) {
            true => self.source_of(observation.source.key(), ALL_APPLICATIONS),
            false => observation.source_fingerprint,
        };
        let key = self.key(detector, plan, observation, source);
        self.engine.table.prefetch_tags(key);
        self.waiting.push(Waiting { key, look, position: u32::MAX, plan });
    }

    /// Which override holds.
    #[inline]
    fn rank<'a>(&self, detector: Detector, observation: &Observation<'a>, scratch: &'a Bump) -> u16 {
        if !self.settings.has_overrides() {
            return 0;
        }
        let (path, _) = observation.path_and_query(scratch);
        self.settings.rank(detector, observation.application, observation.host(), path)
    }

    /// Finds the cells of the events, whose tags are in the cache. Those of [`HERE`] were found with what the record is, if they stand in
    /// their first bucket.
    #[inline(always)]
    fn find(&mut self, observation: &mut Observation<'_>) {
        let Here { position, kinds } = observation.here;
        if kinds != [0, 0] && position == u32::MAX {
            let table = &self.engine.table;
            let first = if kinds[0] != 0 { HERE[0] } else { HERE[1] };
            observation.here.position = table.other_likely_position(key_of(observation.here_fingerprint, first.plan(0)));
            table.prefetch_cells(observation.here.position);
        }
        let [first, end] = observation.waiting.map(|place| place as usize);
        for place in first..end {
            self.waiting[place].position = self.find_cells(self.waiting[place].key);
        }
    }

    /// Asks for the lists of the events, or for the cells of those in line that may stand in their other bucket.
    #[inline(always)]
    fn prefetch_lists(&mut self, observation: &Observation<'_>) {
        let table = &self.engine.table;
        for which in [0, 1] {
            if observation.here.kinds[which] != 0 {
                let (key, position) = here(which, observation);
                table.prefetch_lists(position, key);
            }
        }
        let [first, end] = observation.waiting.map(|place| place as usize);
        for one in &mut self.waiting[first..end] {
            if one.position == u32::MAX {
                one.position = table.other_likely_position(one.key);
                table.prefetch_cells(one.position);
            } else {
                table.prefetch_lists(one.position, one.key);
            }
        }
    }

    /// Decides the events of a record in the order of the detectors, when what they need is in the cache.
    #[inline(always)]
    fn decide<'a>(&mut self, observation: &Observation<'a>, timing: Timing, scratch: &'a Bump) {
        let [mut next, end] = observation.waiting;
        let has_others = next < end;
        if has_others {
            let comes_before = |one: &Waiting| Detector::of_plan(one.plan) < HERE[0];
            next = self.take_others([next, end], comes_before, observation, timing, scratch);
        }
        self.take_here(0, observation, timing, scratch);
        if has_others {
            self.take_others([next, end], |_| true, observation, timing, scratch);
        }
        self.take_here(1, observation, timing, scratch);
    }

    /// Gives the engine the event that an observation is to one of the two detectors of [`HERE`].
    #[inline(always)]
    fn take_here<'a>(&mut self, which: usize, observation: &Observation<'a>, timing: Timing, scratch: &'a Bump) {
        let kind = observation.here.kinds[which];
        if kind == 0 {
            return;
        }
        let (key, position) = here(which, observation);
        let event = Event {
            key,
            time_us: observation.time_us,
            value: observation.target.template_fingerprint,
            number: 0,
            request_id: observation.request_id(),
            kind: u32::from(kind),
            network: 0,
            plan: HERE[which].plan(0),
        };
        if !self.engine.take_quickly(&event, position) {
            self.take_slowly(which, observation, timing, scratch);
        }
    }

    #[inline(never)]
    fn take_slowly<'a>(&mut self, which: usize, observation: &Observation<'a>, timing: Timing, scratch: &'a Bump) {
        let kind = u32::from(observation.here.kinds[which]);
        let look = Look { value: observation.target.template_fingerprint, number: 0, kind };
        let (key, position) = here(which, observation);
        let one = Waiting { key, look, position, plan: HERE[which].plan(0) };
        self.take(&one, observation, timing, scratch);
    }

    /// Gives the engine the first of these events in line, as far as they are wanted. Returns where it stopped.
    #[inline(never)]
    fn take_others<'a>(
        &mut self,
        [mut next, end]: [u32; 2],
        is_wanted: impl Fn(&Waiting) -> bool,
        observation: &Observation<'a>,
        timing: Timing,
        scratch: &'a Bump,
    ) -> u32 {
        while next < end
            && let Some(one) = self.waiting.get(next as usize).copied().filter(&is_wanted)
        {
            self.take(&one, observation, timing, scratch);
            next += 1;
        }
        next
    }

    /// Gives the engine an event, and makes a verdict of an alert that asks for one.
    #[inline(always)]
    fn take<'a>(&mut self, one: &Waiting, observation: &Observation<'a>, timing: Timing, scratch: &'a Bump) {
        let mut event = one.event(observation, &self.prints);
        let is_network = self.engine.table.is_network_full(event.network) && self.engine.table.find(event.key).is_none();
        if is_network {
            event.key = self.network_key(one, observation).unwrap_or(event.key);
        }
        if let Some(decided) = self.engine.take(&event, one.position) {
            self.fire(decided, (one, is_network), observation, timing, scratch);
        }
    }

    /// The /64s of a network that has its share of the table share one key.
    #[cold]
    fn network_key(&self, one: &Waiting, observation: &Observation<'_>) -> Option<u64> {
        let source = self.network_of(observation.ipv6_network()?, self.application_of(one.plan, observation));
        Some(self.key(Detector::of_plan(one.plan), one.plan, observation, source))
    }

    /// The application that an event is counted in.
    fn application_of(&self, plan: u16, observation: &Observation<'_>) -> i32 {
        let numbers = self.settings.numbers(plan);
        if Detector::of_plan(plan).is_across_applications(numbers) { ALL_APPLICATIONS } else { observation.application }
    }

    /// Makes the alert of an event that decided, and the verdict that it asks for.
    #[cold]
    fn fire<'a>(
        &mut self,
        decided: (usize, Firing),
        (one, is_network): (&Waiting, bool),
        observation: &Observation<'a>,
        timing: Timing,
        scratch: &'a Bump,
    ) {
        let (detector, application) = (Detector::of_plan(one.plan), self.application_of(one.plan, observation));
        let describe = |alert: &mut Alert| describe(alert, detector, observation, application, is_network, scratch);
        let number = self.engine.fire(decided, &one.event(observation, &self.prints), observation.order, describe);
        self.list(number, observation, timing);
    }

    /// Fingerprint of a source and its application.
    const fn source_of(&self, source: u64, application: i32) -> u64 {
        self.prints.pair(source, application as u32 as u64)
    }

    /// The same of an IPv6 /48.
    const fn network_of(&self, network: u64, application: i32) -> u64 {
        self.prints.pair(self.source_of(network, application), 48)
    }

    /// The key of an event. Those of the detectors that look at the same source and host, or endpoint, differ in their lowest bits
    /// only, and in all of them: so their cells lie side by side.
    #[inline]
    fn key(&self, detector: Detector, plan: u16, observation: &Observation<'_>, source: u64) -> u64 {
        let prints = &self.prints;
        let mut of = match detector.key_kind() {
            KeyKind::Source | KeyKind::User => source,
            KeyKind::SourceHost if source == observation.source_fingerprint => observation.here_fingerprint,
            KeyKind::SourceHost => prints.pair(source, observation.host_fingerprint),
            KeyKind::SourceEndpoint => prints.pair(source, observation.endpoint_fingerprint(prints)),
            KeyKind::SessionEndpoint => {
                prints.pair(prints.pair(source, observation.endpoint_fingerprint(prints)), observation.session())
            }
        };
        // A bucket has room for the detectors, not for all overrides as well.
        if Detector::rank_of_plan(plan) > 0 {
            of = prints.pair(of, u64::from(plan));
        }
        key_of(of, plan)
    }

    /// Makes a verdict, if the detector's action is one.
    fn list(&mut self, number: u32, observation: &Observation<'_>, timing: Timing) {
        let Some(alert) = self.engine.alerts.get(number) else { return };
        let reaction = alert.detector().reaction(self.settings.numbers(alert.plan));
        let action = match reaction.action {
            Response::Monitor => return,
            Response::Graylist => Action::Graylist,
            Response::Denylist => Action::Denylist,
        };
        // What is no address cannot be listed. Where a whole /48 is one key, its /64 that decided is.
        if !observation.source_text().is_empty() {
            return;
        }
        if self.listed.len() == WAITING_MAX {
            self.guards.objections.no_room += 1;
            return;
        }
        if let Some(summary) = &self.summary {
            let is_allowed = self.settings.is_allowlisted(observation.source);
            let is_proxy = self.settings.is_trusted_proxy(observation.source);
            let pending = self.listed.len();
            let source = observation.source.key();
            if let Some(objection) = self.guards.object(is_allowed, is_proxy, source, pending, &summary.hot) {
                if objection == Objection::RealIpSuspect {
                    self.engine.alerts.report_suspect(number);
                }
                return;
            }
        }
        // Whoever drops his cookie has another session at once, so it is the source, unless many share that.
        let subject = match alert.session {
            session if session != 0 && reaction.for_session => Subject::Session(session),
            _ => Subject::Source(address_bytes(observation.source.address())),
        };
        self.listed.push(Verdict {
            subject,
            application: Some(alert.application)
                .filter(|application| !reaction.for_all_applications && *application != ALL_APPLICATIONS),
            action: Some(action),
            until_us: timing.arrival_us + reaction.action_us,
            detector: alert.detector() as u16 + 1,
        });
    }

    /// Tells the correlator of a failed log-in.
    fn hand_on<'a>(&mut self, observation: &Observation<'a>, scratch: &'a Bump) {
        let is_failure = observation.attempt == Some(Outcome::Failed) && observation.user() != 0 && !observation.is_listed;
        if !is_failure || !self.room.hands_on_failures {
            return;
        }
        if self.failures.len() == WAITING_MAX {
            self.failures_lost += 1;
            return;
        }
        let ranks = USER_DETECTORS.map(|detector| self.rank(detector, observation, scratch));
        self.failures.push(UserFailure {
            order: observation.order,
            user: observation.user(),
            time_us: observation.time_us,
            network: observation.network(),
            request_id: observation.request_id(),
            application: observation.application,
            ranks,
        });
    }

    /// How an attempt ended. Remembers refusals: a later answer below 400 is then a success.
    fn outcome(&mut self, observation: &Observation<'_>) -> Outcome {
        let key = self.prints.pair(observation.source_fingerprint, observation.endpoint_fingerprint(&self.prints)).max(1);
        let ways = &mut self.refusals[(key >> 32) as usize % REFUSALS];
        let known = ways.iter().position(|way| way.0 == key);
        let was_refused = known.is_some_and(|way| observation.time_us < ways[way].1.saturating_add(self.settings.refusal_us));
        if matches!(observation.status, 401 | 403) && !observation.is_listed {
            let way = known.unwrap_or(ways.len() - 1);
            let latest_us = if ways[way].0 == key { ways[way].1.max(observation.time_us) } else { observation.time_us };
            ways[..=way].rotate_right(1);
            ways[0] = (key, latest_us);
        }
        observation.outcome(was_refused)
    }

    /// Whether the user agent names an attack tool; most were seen before.
    #[inline]
    fn is_attack_tool(&mut self, observation: &Observation<'_>) -> bool {
        match self.user_agents.find(observation.user_agent_fingerprint) {
            Some((mark, _)) => mark != 0,
            None => self.is_new_attack_tool(observation),
        }
    }

    #[inline(never)]
    fn is_new_attack_tool(&mut self, observation: &Observation<'_>) -> bool {
        let is_tool = self.settings.is_attack_tool(observation.record().user_agent());
        self.user_agents.put(observation.user_agent_fingerprint, u8::from(is_tool), [0]);
        is_tool
    }
}

/// Where the keys of an IPv6 /48 are counted. Keyed, or a stranger could count his towards another's share.
#[inline]
const fn network_slot(network: u64, prints: &Fingerprints) -> u16 {
    KeyTable::network_slot(prints.pair(network, 48))
}

/// The key of a plan, of what the key is made of.
#[inline]
fn key_of(of: u64, plan: u16) -> u64 {
    // 0 is a free cell.
    (of ^ u64::from(plan)).max(1)
}

/// The key and the likely place of the event that an observation is to one of the two detectors of [`HERE`].
#[inline(always)]
fn here(which: usize, observation: &Observation<'_>) -> (u64, u32) {
    let Here { position, kinds } = observation.here;
    let is_beside = which == 1 && kinds[0] != 0 && position != u32::MAX;
    (key_of(observation.here_fingerprint, HERE[which].plan(0)), position ^ u32::from(is_beside))
}

fn are_plain(settings: &Settings) -> [bool; Detector::ALL.len()] {
    Detector::ALL.map(|detector| {
        let numbers = settings.numbers(detector.plan(0));
        !settings.has_overrides() && detector.is_enabled(numbers) && !detector.is_across_applications(numbers)
    })
}

/// Says of a new alert whom and what it is about.
fn describe<'a>(
    alert: &mut Alert,
    detector: Detector,
    observation: &Observation<'a>,
    application: i32,
    is_network: bool,
    scratch: &'a Bump,
) {
    alert.application = application;
    alert.source = observation.source.key();
    alert.is_network = is_network;
    Alert::set_text(&mut alert.source_text, &[observation.source_text()]);
    let kind = detector.key_kind();
    if kind == KeyKind::SessionEndpoint {
        alert.session = observation.session();
    }
    if kind != KeyKind::Source {
        Alert::set_text(&mut alert.host, &[observation.host()]);
    }
    if matches!(kind, KeyKind::SourceEndpoint | KeyKind::SessionEndpoint) {
        let method = observation.method();
        let blank: &[u8] = if method.is_empty() { b"" } else { b" " };
        Alert::set_text(&mut alert.endpoint, &[method, blank, observation.template(scratch)]);
    }
}

#[cfg(test)]
mod tests;
