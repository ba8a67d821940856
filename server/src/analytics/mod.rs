//! Records in, alerts and verdicts out. Pure: no I/O, no clock.
//!
//! - [`observation`]: what detectors need of a record; [`path`], [`settings`], [`fingerprint`] help it
//! - [`detectors`]: what each looks at and when it fires, on [`rules`]
//! - [`keys`]: bounded state; [`engine`]: clock, lateness, hold and alert of a key; [`alerts`]
//! - [`attacks`]: hits into attacks, and which hits are kept whole
//! - [`summary`]: counters of all requests, for pages
//! - [`users`]: what is keyed by a user and belongs to the correlator; [`reports`]: what it is told of alerts
//! - [`guards`]: whom detectors must not list
//! - [`explain`]: what they make of a record that was seen before
//! - [`verdicts`]: the sources and sessions that filters are to deny or watch
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
pub mod observation;
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
use detectors::{Detector, Event, KeyKind, Look, multi_payload};
use engine::Engine;
use fingerprint::Fingerprints;
use guards::{Guards, Objection};
use keys::KeyTable;
use observation::{Observation, Outcome};
use postanalytics_protocol::frames::{Action, Subject, Verdict};
use postanalytics_protocol::routing::address_bytes;
use postanalytics_protocol::{RecordView, ValidBatch};
use reports::AlertReports;
use settings::Settings;
use std::sync::Arc;
use summary::Summary;
use users::{USER_DETECTORS, UserFailure};

/// User agents whose tools are remembered.
const USER_AGENTS: usize = 4096;
/// Refusals that are remembered, each a source at an endpoint.
const REFUSALS: usize = 16_384;
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
    /// What becomes of alerts and hits is reported, requests are counted for pages, and of identical hits only the first of
    /// an hour are kept whole.
    pub reports: bool,
}

impl Default for Room {
    fn default() -> Self {
        Self { keys: 1 << 16, alerts: Some(1024), hands_on_failures: false, reports: false }
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

/// What the analysis of one shard keeps.
#[derive(Debug)]
pub struct Analytics {
    settings: Arc<Settings>,
    prints: Fingerprints,
    seed: u64,
    room: Room,
    /// Keys and alerts.
    pub engine: Engine,
    /// {fingerprint of a user agent with its lowest bit replaced by whether it names a tool}, by its high bits.
    user_agents: Vec<u64>,
    /// {fingerprint, time} of refusals of a source by an endpoint, two ways a place, the newer first.
    refusals: Vec<[(u64, u64); 4]>,
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
            settings,
            user_agents: vec![0; USER_AGENTS],
            refusals: vec![[(0, 0); 4]; REFUSALS],
            order: 0,
            failures: Vec::with_capacity(if room.hands_on_failures { WAITING_MAX } else { 0 }),
            failures_lost: 0,
            hits: room.reports.then(HitSampler::new),
            summary: (room.reports && room.keys > 0).then(Box::default),
            guards: Guards::default(),
            listed: Vec::with_capacity(64),
            #[cfg(test)]
            panic_at: None,
        }
    }

    /// The same analysis, of which nothing is known.
    pub fn afresh(&self) -> Self {
        let mut fresh = Self::new(Arc::clone(&self.settings), self.room, self.seed);
        // Counters only grow.
        fresh.engine.counters = self.engine.counters;
        fresh.engine.alerts.cut_short = self.engine.alerts.cut_short;
        fresh.engine.alerts.reports.lost = self.engine.alerts.reports.lost;
        fresh.failures_lost = self.failures_lost;
        fresh.guards.objections = self.guards.objections;
        if let (Some(fresh), Some(known)) = (&mut fresh.hits, &self.hits) {
            (fresh.lost, fresh.suppressed) = (known.lost, known.suppressed);
        }
        fresh
    }

    /// Goes on with other settings; keys of the detectors that count otherwise with them are forgotten.
    pub fn reload(&mut self, reload: &Reload) {
        self.settings = Arc::clone(&reload.settings);
        // What is known of user agents may be of other tools.
        self.user_agents.fill(0);
        self.engine.reload(Arc::clone(&reload.settings), |detector| reload.changed.contains(&detector));
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
        if let Some(summary) = &mut self.summary {
            summary.begin(timing.arrival_us);
            self.guards.begin(timing.arrival_us);
        }
        for (position, record) in batch.records().enumerate() {
            #[cfg(test)]
            assert_ne!(self.panic_at, Some(record.request_id()), "a test asked for this");
            let order = orders.get(position).copied().unwrap_or(self.order);
            self.order = order + 1;
            let has_hits = record.hit_count() > 0;
            let mut is_kept = has_hits;
            if self.room.keys > 0 || has_hits && self.hits.is_some() {
                let observation = Observation::of(&record, timing, &self.settings, &self.prints, scratch);
                if let Some(sampler) = self.hits.as_mut().filter(|_| has_hits) {
                    let take = |kept, hit| sampler.take(&observation, record.flags(), &hit, &self.prints) || kept;
                    is_kept = record.hits().fold(false, take);
                }
                if self.room.keys > 0 {
                    self.detect(observation, &record, timing, order);
                }
            }
            if is_kept {
                with_hits.push(position as u32);
            }
        }
        with_hits
    }

    fn detect(&mut self, mut observation: Observation<'_>, record: &RecordView<'_>, timing: Timing, order: u64) {
        let user_agent = self.prints.bytes(record.user_agent());
        observation.is_attack_tool = self.is_attack_tool(record.user_agent(), user_agent);
        if let Some(summary) = &mut self.summary {
            summary.count(&observation, record, user_agent, &self.prints);
            self.guards.count(observation.source.key());
        }
        if observation.is_attempt(&self.settings) {
            observation.attempt = Some(self.outcome(&observation));
        }
        for detector in Detector::ALL {
            match detector {
                Detector::MultiPayload => {
                    for hit in record.hits() {
                        let look = multi_payload::look(self.prints.bytes(hit.payload));
                        self.take(detector, &observation, look, timing, order);
                    }
                }
                Detector::UserBruteForce => self.hand_on(&observation, order),
                // Both detectors of users get one event.
                Detector::UserManySources => {}
                _ => {
                    if let Some(look) = detector.look(&observation) {
                        self.take(detector, &observation, look, timing, order);
                    }
                }
            }
        }
    }

    /// Gives the engine what an observation is to a detector, and makes a verdict of an alert that asks for one.
    fn take(&mut self, detector: Detector, observation: &Observation<'_>, look: Look, timing: Timing, order: u64) {
        let rank = self.settings.rank(detector, observation.application, observation.host, observation.path);
        let plan = detector.plan(rank);
        let numbers = self.settings.numbers(plan);
        if !detector.is_enabled(numbers) {
            return;
        }
        let is_across = detector.is_across_applications(numbers);
        let application = if is_across { ALL_APPLICATIONS } else { observation.application };
        let network = observation.ipv6_network();
        let slot = network.map_or(0, KeyTable::network_slot);
        let source = match is_across {
            true => self.prints.pair(observation.source.key(), application as u32 as u64),
            false => observation.source_fingerprint,
        };
        let mut key = self.key(detector, plan, observation, source);
        // The /64s of a network that has its share of the table share one key.
        let is_network = self.engine.table.is_network_full(slot) && self.engine.table.find(key).is_none();
        if let Some(network) = network.filter(|_| is_network) {
            let of_network = self.prints.pair(self.prints.pair(network, application as u32 as u64), 48);
            key = self.key(detector, plan, observation, of_network);
        }
        let event = Event {
            key,
            time_us: observation.time_us,
            value: look.value,
            number: look.number,
            request_id: observation.request_id,
            kind: look.kind,
            network: slot,
            plan,
        };
        let fired = self.engine.take(&event, order, |alert| describe(alert, detector, observation, application, is_network));
        if let Some(number) = fired {
            self.list(number, observation, timing);
        }
    }

    fn key(&self, detector: Detector, plan: u16, observation: &Observation<'_>, source: u64) -> u64 {
        let base = self.prints.pair(source, u64::from(plan));
        let key = match detector.key_kind() {
            KeyKind::Source | KeyKind::User => base,
            KeyKind::SourceHost => self.prints.pair(base, observation.host_fingerprint),
            KeyKind::SourceEndpoint => self.prints.pair(base, observation.endpoint_fingerprint),
            KeyKind::SessionEndpoint => {
                self.prints.pair(self.prints.pair(base, observation.endpoint_fingerprint), observation.session)
            }
        };
        // 0 is a free cell.
        key.max(1)
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
        // A whole /48 cannot be listed, nor can what is no address.
        if alert.is_network || !observation.source_text.is_empty() || self.listed.len() == WAITING_MAX {
            return;
        }
        if let Some(summary) = &self.summary {
            let is_allowed = self.settings.is_allowlisted(observation.source);
            let is_proxy = self.settings.is_trusted_proxy(observation.source);
            let pending = self.listed.len();
            let source = observation.source_fingerprint;
            if let Some(objection) = self.guards.object(is_allowed, is_proxy, source, pending, &summary.hot) {
                if objection == Objection::RealIpSuspect {
                    self.engine.alerts.report_suspect(number);
                }
                return;
            }
        }
        let subject = match alert.session {
            0 => Subject::Source(address_bytes(observation.source.address())),
            session => Subject::Session(session),
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
    fn hand_on(&mut self, observation: &Observation<'_>, order: u64) {
        let is_failure = observation.attempt == Some(Outcome::Failed) && observation.user != 0 && !observation.is_listed;
        if !is_failure || !self.room.hands_on_failures {
            return;
        }
        if self.failures.len() == WAITING_MAX {
            self.failures_lost += 1;
            return;
        }
        let rank = |detector| self.settings.rank(detector, observation.application, observation.host, observation.path);
        self.failures.push(UserFailure {
            order,
            user: observation.user,
            time_us: observation.time_us,
            network: observation.network(),
            request_id: observation.request_id,
            application: observation.application,
            ranks: USER_DETECTORS.map(rank),
        });
    }

    /// How an attempt ended. Remembers refusals: a later answer below 400 is then a success.
    fn outcome(&mut self, observation: &Observation<'_>) -> Outcome {
        let key = self.prints.pair(observation.source_fingerprint, observation.endpoint_fingerprint).max(1);
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

    /// Whether a user agent, of this fingerprint, names an attack tool; most were seen before.
    fn is_attack_tool(&mut self, user_agent: &[u8], fingerprint: u64) -> bool {
        if user_agent.is_empty() {
            return false;
        }
        let entry = &mut self.user_agents[(fingerprint >> 32) as usize % USER_AGENTS];
        if *entry | 1 != fingerprint | 1 {
            *entry = fingerprint & !1 | u64::from(self.settings.is_attack_tool(user_agent));
        }
        *entry & 1 != 0
    }
}

/// Says of a new alert whom and what it is about.
fn describe(alert: &mut Alert, detector: Detector, observation: &Observation<'_>, application: i32, is_network: bool) {
    alert.application = application;
    alert.source = observation.source.key();
    alert.is_network = is_network;
    Alert::set_text(&mut alert.source_text, &[observation.source_text]);
    let kind = detector.key_kind();
    if kind == KeyKind::SessionEndpoint {
        alert.session = observation.session;
    }
    if kind != KeyKind::Source {
        Alert::set_text(&mut alert.host, &[observation.host]);
    }
    if matches!(kind, KeyKind::SourceEndpoint | KeyKind::SessionEndpoint) {
        let blank: &[u8] = if observation.method.is_empty() { b"" } else { b" " };
        Alert::set_text(&mut alert.endpoint, &[observation.method, blank, observation.template]);
    }
}

#[cfg(test)]
mod tests;
