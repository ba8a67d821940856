//! The attacks, made of what shards report of hits, and of alerts.
//!
//! A hit within an hour of the last joins its attack, a later one starts a new attack, and an attack is cut at 24 hours. The
//! time of a hit is never before that of the last one of its attack: hits of several shards come in no strict order. Nor is it
//! after now, whatever a replay says: such an attack would never be the one that is quiet longest.
//! **Laws**: kept and suppressed are all hits, exactly; the first hit of every attack is kept, but of one that begins where
//! another was cut or forgotten, for no shard knows where that is. The table is bounded: a new attack takes the place of the one that is
//! quiet longest, closed or not; both are counted.

use super::hits::{HitReport, HitReports};
use super::partakers::{PAIRS, Partakers};
use super::samples::{Sample, Samples};
use super::sources::SpaceSaving;
use crate::analytics::alerts::Alert;
use crate::analytics::fingerprint::{Fingerprints, mix};
use crate::analytics::magnitude::Magnitude;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// A hit that comes later than this after the last starts a new attack, µs.
pub const JOIN_US: u64 = 3_600_000_000;
/// An attack is no longer than this, µs.
pub const LENGTH_US_MAX: u64 = 24 * JOIN_US;
/// Attacks that are known.
pub const ATTACKS_MAX: usize = 16_384;
/// Alerts of one behaviour whose reports are told apart: an override may hold some beside others.
const HELD_MAX: usize = 16;
/// Statuses that are told apart in an attack; what comes beyond is counted under 0.
const STATUSES_MAX: usize = 32;

/// What an attack is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Hits of a type.
    Hits(u16),
    /// Alerts of a detector, by its plan.
    Behaviour(u16),
}

/// An attack.
#[derive(Clone, Debug)]
pub struct Attack {
    /// The same for all attacks of these hits.
    pub key: u64,
    /// Of this one.
    pub id: u64,
    /// What it is made of.
    pub kind: Kind,
    /// Application.
    pub application: i32,
    /// Host, cut.
    pub host: Box<[u8]>,
    /// Template of the path, or what the scope of alerts has instead; cut.
    pub template: Box<[u8]>,
    /// Where the payloads sat, cut.
    pub point: Box<[u8]>,
    /// First hit.
    pub first_us: u64,
    /// Last hit.
    pub last_us: u64,
    /// Hits.
    pub count: u64,
    /// Of them, those blocked.
    pub blocked: u64,
    /// Hits kept whole.
    pub kept: u64,
    /// Hits that were counted only.
    pub suppressed: u64,
    /// Hits by status.
    pub statuses: BTreeMap<u16, u64>,
    /// Who takes part most.
    pub sources: SpaceSaving,
    /// How many take part.
    pub distinct_sources: Magnitude,
    /// How many payloads there were.
    pub distinct_payloads: Magnitude,
    /// Hits that stand for all.
    pub samples: Samples,
    /// Of behaviour: the alert that was reported last.
    alert: Option<Box<Alert>>,
    /// Of behaviour: what was counted of each alert that may be reported again, the newest last.
    counted: Vec<Counted>,
}

/// What was counted of an alert.
#[derive(Clone, Copy, Debug)]
struct Counted {
    plan: u16,
    first_us: u64,
    count: u64,
}

impl Counted {
    fn is_of(&self, alert: &Alert) -> bool {
        (self.plan, self.first_us) == (alert.plan, alert.first_us)
    }
}

impl Attack {
    /// Whether no hit can join it any more.
    pub const fn is_closed(&self, now_us: u64) -> bool {
        now_us > self.last_us.saturating_add(JOIN_US) || now_us >= self.first_us.saturating_add(LENGTH_US_MAX)
    }

    /// The newest alert of a behaviour.
    pub fn alert(&self) -> Option<&Alert> {
        self.alert.as_deref()
    }

    /// Whether a source is counted: it has a counter, or is in the /48 that the alerts are about.
    fn counts_source(&self, source: u64) -> bool {
        let network = self.alert().filter(|alert| alert.is_network && alert.user == 0);
        network.map_or_else(|| self.sources.contains(source), |alert| alert.source >> 16 == source >> 16)
    }

    /// Panics if a law is broken. For tests.
    pub fn invariants(&self) {
        assert_eq!(self.kept + self.suppressed, self.count, "kept + suppressed = all");
        assert_eq!(self.statuses.values().sum::<u64>(), if matches!(self.kind, Kind::Hits(_)) { self.count } else { 0 });
        assert!(self.blocked <= self.count && self.first_us <= self.last_us);
        assert!(self.last_us - self.first_us < LENGTH_US_MAX);
    }
}

/// See the module.
#[derive(Debug)]
pub struct AttackTable {
    limit: usize,
    attacks: HashMap<u64, Attack>,
    /// The newest attack of each key.
    open: HashMap<u64, u64>,
    /// By last hit.
    quiet: BTreeSet<(u64, u64)>,
    /// Sources that lost their counters.
    partakers: Partakers,
    /// Attacks that had to go.
    pub forgotten: u64,
    /// Of them, those that were not closed.
    pub cut_short: u64,
}

impl Default for AttackTable {
    fn default() -> Self {
        Self::with_limit(ATTACKS_MAX)
    }
}

impl AttackTable {
    /// Room for `limit` attacks.
    pub fn with_limit(limit: usize) -> Self {
        Self {
            limit,
            attacks: HashMap::new(),
            open: HashMap::new(),
            quiet: BTreeSet::new(),
            partakers: Partakers::with_room(PAIRS),
            forgotten: 0,
            cut_short: 0,
        }
    }

    /// How many are known.
    pub fn len(&self) -> usize {
        self.attacks.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.attacks.is_empty()
    }

    /// An attack by its id.
    pub fn get(&self, id: u64) -> Option<&Attack> {
        self.attacks.get(&id)
    }

    /// All, those with the newest hits first.
    pub fn newest_first(&self) -> impl Iterator<Item = &Attack> {
        self.quiet.iter().rev().filter_map(|(_, id)| self.attacks.get(id))
    }

    /// Whether a source took part in an attack: surely if that counts it, else very probably, see [`super::partakers`].
    pub fn took_part(&self, attack: &Attack, source: u64) -> bool {
        attack.counts_source(source) || self.partakers.knows(attack.id, source)
    }

    /// Fingerprints of sources of attacks that yielded to newer ones.
    pub const fn partakers_forgotten(&self) -> u64 {
        self.partakers.forgotten
    }

    /// Takes what a shard reports.
    pub fn take_hits(&mut self, reports: &HitReports, now_us: u64) {
        for report in reports.iter() {
            self.take_hit(reports, report, now_us);
        }
    }

    fn take_hit(&mut self, reports: &HitReports, report: &HitReport, now_us: u64) {
        let first_us = report.first_us.min(now_us);
        let [host, template, point, method, payload] = report.texts;
        let describe = || Attack {
            kind: Kind::Hits(report.attack_type),
            application: report.application,
            host: reports.text(host).into(),
            template: reports.text(template).into(),
            point: reports.text(point).into(),
            ..Attack::empty(report.key, first_us)
        };
        let attack = self.join(report.key, first_us, describe);
        let count = u64::from(report.count);
        let kept = if report.is_kept { count } else { 0 };
        attack.count += count;
        attack.kept += kept;
        attack.suppressed += count - kept;
        attack.blocked += u64::from(report.blocked);
        let is_told_apart = attack.statuses.len() < STATUSES_MAX || attack.statuses.contains_key(&report.status);
        *attack.statuses.entry(if is_told_apart { report.status } else { 0 }).or_default() += count;
        let uncounted = attack.sources.add(report.source, count);
        attack.distinct_sources.insert(report.source);
        attack.distinct_payloads.insert(report.payload);
        if report.may_be_sample && attack.samples.wants(report.sample) {
            attack.samples.offer(Sample {
                hash: report.sample,
                request_id: report.request_id,
                time_us: first_us,
                source: report.source,
                status: report.status,
                is_blocked: report.blocked > 0,
                method: reports.text(method).into(),
                payload: reports.text(payload).into(),
            });
        }
        let (id, before_us) = (attack.id, attack.last_us);
        let last_us = before_us.max(report.last_us.min(now_us)).min(attack.first_us + LENGTH_US_MAX - 1);
        attack.last_us = last_us;
        self.moved(id, before_us, last_us);
        uncounted.into_iter().for_each(|source| self.partakers.remember(id, source));
    }

    /// Takes an alert as it is now: behaviour, grouped by detector, scope and key.
    pub fn take_alert(&mut self, alert: &Alert, prints: &Fingerprints, now_us: u64) {
        let key = key_of(alert, prints);
        let first_us = alert.first_us.min(now_us);
        let is_known = |attack: &Attack| attack.counted.iter().any(|known| known.is_of(alert));
        // A later report of an alert belongs to the attack that the alert is part of, whatever the time.
        let known = self.open.get(&key).copied().filter(|id| self.attacks.get(id).is_some_and(is_known));
        let describe = || Attack {
            kind: Kind::Behaviour(alert.plan),
            application: alert.application,
            host: alert.host.as_slice().into(),
            template: alert.endpoint.as_slice().into(),
            ..Attack::empty(key, first_us)
        };
        let attack = match known.and_then(|id| self.attacks.get_mut(&id)) {
            Some(attack) => attack,
            None => self.join(key, first_us, describe),
        };
        let before = attack.count_again(alert);
        let more = alert.count.saturating_sub(before);
        let evidence = alert.evidence.iter().take(alert.evidence_count);
        // What is kept of behaviour is the evidence of its alerts.
        let kept = if before == 0 { (alert.evidence_count as u64).clamp(1, more.max(1)).min(more) } else { 0 };
        attack.count += more;
        attack.kept += kept;
        attack.suppressed += more - kept;
        if alert.user == 0 {
            // All of one source, or of the /48 that is asked for as a whole: nobody else is to be remembered.
            let _ = attack.sources.add(alert.source, more);
            attack.distinct_sources.insert(alert.source);
        }
        for request_id in evidence {
            let hash = prints.pair(prints.pair(key, request_id[0]), request_id[1]);
            let source = if alert.user == 0 { alert.source } else { 0 };
            attack.samples.offer(Sample { hash, request_id: *request_id, time_us: alert.fired_us, source, ..Sample::default() });
        }
        let (id, before_us) = (attack.id, attack.last_us);
        let last_us = before_us.max(alert.last_us.min(now_us)).min(attack.first_us + LENGTH_US_MAX - 1);
        attack.last_us = last_us;
        attack.alert = Some(Box::new(alert.clone()));
        self.moved(id, before_us, last_us);
    }

    /// The attack that something of this key and time belongs to.
    fn join(&mut self, key: u64, time_us: u64, describe: impl FnOnce() -> Attack) -> &mut Attack {
        let open = self.open.get(&key).and_then(|id| self.attacks.get(id)).filter(|attack| {
            let time_us = time_us.max(attack.last_us);
            time_us - attack.last_us <= JOIN_US && time_us - attack.first_us < LENGTH_US_MAX
        });
        let (id, is_new) = match open {
            Some(attack) => (attack.id, false),
            None => (mix(key ^ time_us), true),
        };
        if is_new {
            if self.attacks.len() >= self.limit {
                self.forget_quietest(time_us);
            }
            self.open.insert(key, id);
            self.quiet.insert((time_us, id));
        }
        self.attacks.entry(id).or_insert_with(describe)
    }

    fn moved(&mut self, id: u64, before_us: u64, last_us: u64) {
        if before_us != last_us {
            self.quiet.remove(&(before_us, id));
            self.quiet.insert((last_us, id));
        }
    }

    fn forget_quietest(&mut self, now_us: u64) {
        let Some((_, id)) = self.quiet.pop_first() else { return };
        let Some(attack) = self.attacks.remove(&id) else { return };
        if self.open.get(&attack.key) == Some(&id) {
            self.open.remove(&attack.key);
        }
        self.forgotten += 1;
        self.cut_short += u64::from(!attack.is_closed(now_us));
    }
}

impl Attack {
    fn empty(key: u64, first_us: u64) -> Self {
        Self {
            key,
            id: mix(key ^ first_us),
            kind: Kind::Hits(0),
            application: 0,
            host: Box::default(),
            template: Box::default(),
            point: Box::default(),
            first_us,
            last_us: first_us,
            count: 0,
            blocked: 0,
            kept: 0,
            suppressed: 0,
            statuses: BTreeMap::new(),
            sources: SpaceSaving::default(),
            distinct_sources: Magnitude::default(),
            distinct_payloads: Magnitude::default(),
            samples: Samples::default(),
            alert: None,
            counted: Vec::new(),
        }
    }

    /// Notes what an alert has counted by now; returns what it had when it was last reported.
    fn count_again(&mut self, alert: &Alert) -> u64 {
        let known = self.counted.iter().position(|known| known.is_of(alert)).map(|at| self.counted.remove(at));
        let before = known.map_or(0, |known| known.count);
        if self.counted.len() == HELD_MAX {
            self.counted.remove(0);
        }
        self.counted.push(Counted { plan: alert.plan, first_us: alert.first_us, count: alert.count.max(before) });
        before
    }
}

/// What behaviour is grouped by.
fn key_of(alert: &Alert, prints: &Fingerprints) -> u64 {
    let text = |text: &[u8]| prints.bytes(text);
    let whom = [alert.source, alert.session, alert.user, text(&alert.source_text), u64::from(alert.is_network)];
    let scope = [text(&alert.host), text(&alert.endpoint), u64::from(alert.application.cast_unsigned())];
    whom.into_iter().chain(scope).fold(prints.pair(alert.detector() as u64, 1), |key, part| prints.pair(key, part))
}
