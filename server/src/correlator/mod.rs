//! The correlator: what cannot be known by one shard alone.
//!
//! Failed log-ins of users, the newest alerts of all shards, attacks. Shards tell it small events ([`crate::shard::derived`]),
//! the control plane asks it ([`messages`]). [`Correlator`] is sans-IO: events, questions and `now` come in, answers and lines
//! for the events file go out. [`thread`] drives it. Detection by sources needs none of it: what it misses is counted by the
//! shards, and their alerts and verdicts are the same.

pub mod alerts;
pub mod attacks;
pub mod events;
pub mod messages;
pub mod thread;

pub use thread::{CorrelatorConfig, CorrelatorHandle, start};

use crate::analytics::alerts::{Alert, Alerts};
use crate::analytics::attacks::table::AttackTable;
use crate::analytics::detectors::Detector;
use crate::analytics::fingerprint::Fingerprints;
use crate::analytics::reports::AlertReports;
use crate::analytics::settings::Settings;
use crate::analytics::users::Users;
use crate::shard::derived::{ClockReport, Derived};
use alerts::AlertRing;
use events::{Event, EventsFile};
use messages::{Ask, CorrelatorStats, Reply};
use std::collections::HashMap;
use std::sync::Arc;

/// Keys of users of which something is known: two a user, one for each detector.
const USER_KEYS: usize = 1 << 16;
/// Alerts of users that are held.
const USER_ALERTS: usize = 1024;

/// Most reports of one failure: at each of two detectors an alert that ends, one that yields its slot and one that is raised.
const REPORTS_OF_FAILURE_MAX: usize = 6;

/// Nodes whose clocks are known.
const CLOCKS_MAX: usize = 1024;
/// A node that was not heard of for so long has none any more.
const CLOCK_KEPT_US: u64 = 900_000_000;
/// A clock that is further off is warned about.
const OFFSET_US_MAX: i64 = 2_000_000;
/// And that is not said again for so long.
const CLOCK_QUIET_US: u64 = 600_000_000;
/// Lines about sources that seem to be proxies between two ticks.
const LOG_LINES_PER_TICK: u32 = 5;

/// See the module.
#[derive(Debug)]
pub struct Correlator {
    users: Users,
    alerts: AlertRing,
    attacks: AttackTable,
    prints: Fingerprints,
    /// Empty, to be swapped with those of the users' alerts.
    reports: AlertReports,
    events: Option<EventsFile>,
    clocks: HashMap<[u8; 16], Clock>,
    /// Lines about sources that seem to be proxies that may still be logged before the next tick.
    log_lines_left: u32,
}

/// How the clock of a node goes.
#[derive(Clone, Copy, Debug)]
struct Clock {
    offset_us: i64,
    seen_us: u64,
    /// No line about it is logged before then.
    quiet_until_us: u64,
}

impl Correlator {
    /// Nothing is known yet. `seed` keys its fingerprints.
    pub fn new(settings: Arc<Settings>, seed: u64, events: Option<EventsFile>) -> Self {
        let mut user_alerts = Alerts::bounded(USER_ALERTS);
        user_alerts.reports = AlertReports::with_room();
        Self {
            users: Users::new(settings, USER_KEYS, user_alerts, seed),
            alerts: AlertRing::default(),
            attacks: AttackTable::default(),
            prints: Fingerprints::new(seed),
            reports: AlertReports::with_room(),
            events,
            clocks: HashMap::new(),
            log_lines_left: LOG_LINES_PER_TICK,
        }
    }

    /// Takes what a shard tells.
    pub fn take(&mut self, derived: &Derived, now_us: u64) {
        for (alert, is_final) in derived.alerts.alerts() {
            self.take_alert(alert, is_final, now_us);
        }
        self.attacks.take_hits(&derived.hits, now_us);
        self.users.engine.alerts.begin(now_us);
        for failure in &derived.failures {
            self.users.observe(failure);
            if self.users.engine.alerts.reports.room() < REPORTS_OF_FAILURE_MAX {
                self.take_user_alerts(now_us);
            }
        }
        self.take_user_alerts(now_us);
        derived.clocks.iter().for_each(|report| self.take_clock(*report, now_us));
        if let Some(events) = &mut self.events {
            derived.verdicts.iter().for_each(|report| events.write_verdict(report));
        }
    }

    /// Ends what ends by itself. Call once a second.
    pub fn tick(&mut self, now_us: u64) {
        self.log_lines_left = LOG_LINES_PER_TICK;
        // As often as there are more ends than a turn has room to report.
        while !self.users.engine.alerts.sweep(now_us) {
            self.take_user_alerts(now_us);
        }
        self.take_user_alerts(now_us);
        self.users.engine.alerts.report_moved();
        self.take_user_alerts(now_us);
    }

    /// Answers a question.
    pub fn answer(&mut self, ask: &Ask, now_us: u64) -> Reply {
        match ask {
            Ask::Reload(reload) => {
                self.users.reload(reload);
                Reply::Stats(self.stats())
            }
            Ask::Alerts(filter) => Reply::Alerts(self.alerts.find(filter, now_us)),
            Ask::Attacks(filter) => Reply::Attacks(attacks::find(&self.attacks, filter, now_us)),
            Ask::Attack(id) => Reply::Attack(self.attacks.get(*id).map(|attack| Box::new(attacks::detail(attack, now_us)))),
            Ask::Clocks => {
                let is_there = |clock: &Clock| clock.seen_us.saturating_add(CLOCK_KEPT_US) > now_us;
                let there = self.clocks.iter().filter(|(_, clock)| is_there(clock));
                Reply::Clocks(there.map(|(node, clock)| (*node, clock.offset_us)).collect())
            }
            Ask::Stats => Reply::Stats(self.stats()),
        }
    }

    /// Writes what is to be written, at the end.
    pub fn finish(self) {
        if let Some(events) = self.events {
            events.finish();
        }
    }

    fn take_user_alerts(&mut self, now_us: u64) {
        self.users.engine.alerts.reports.hand_over(&mut self.reports);
        let reports = std::mem::take(&mut self.reports);
        reports.alerts().for_each(|(alert, is_final)| self.take_alert(alert, is_final, now_us));
        self.reports = reports;
        self.reports.clear();
    }

    fn take_clock(&mut self, report: ClockReport, now_us: u64) {
        if self.clocks.len() >= CLOCKS_MAX && !self.clocks.contains_key(&report.node) {
            // Whoever was not heard of the longest yields.
            let oldest = self.clocks.iter().min_by_key(|(_, clock)| clock.seen_us).map(|(node, _)| *node);
            oldest.map(|node| self.clocks.remove(&node));
        }
        let clock = self.clocks.entry(report.node).or_insert(Clock { offset_us: 0, seen_us: 0, quiet_until_us: 0 });
        (clock.offset_us, clock.seen_us) = (report.offset_us, now_us);
        if report.offset_us.abs() > OFFSET_US_MAX && now_us >= clock.quiet_until_us {
            clock.quiet_until_us = now_us + CLOCK_QUIET_US;
            tracing::warn!(
                node = %uuid::Uuid::from_bytes(report.node),
                offset_ms = report.offset_us / 1000,
                "the clock of a node differs from this server's by more than 2 s: detection is not touched, for it goes by arrival, but set \
                 the clock right (chrony, ntpd)"
            );
        }
    }

    fn take_alert(&mut self, alert: Alert, is_final: bool, now_us: u64) {
        if alert.is_real_ip_suspect && self.log_lines_left > 0 {
            self.log_lines_left -= 1;
            let json = alert.to_json();
            tracing::warn!(
                source = json.key.value,
                detector = alert.detector().name(),
                "real_ip_suspect: {}",
                json.note.unwrap_or_default()
            );
        }
        let view = self.events.is_some().then(|| alerts::view(&alert, is_final, now_us));
        if !alert.is_real_ip_suspect {
            self.attacks.take_alert(&alert, &self.prints, now_us);
        }
        let is_new = self.alerts.take(alert, is_final);
        if let (Some(events), Some(view)) = (&mut self.events, view) {
            if is_new {
                events.write(&Event::AlertRaised(view.clone()));
            }
            if is_final {
                events.write(&Event::AlertFinal(view));
            }
        }
    }

    fn stats(&self) -> CorrelatorStats {
        let engine = &self.users.engine;
        CorrelatorStats {
            alerts_kept: self.alerts.len() as u64,
            alerts_forgotten: self.alerts.forgotten(),
            user_alerts_lost: engine.alerts.reports.lost,
            user_alerts_raised: engine.counters.fired.iter().sum(),
            user_brute_force_alerts: engine.counters.fired[Detector::UserBruteForce as usize],
            user_many_sources_alerts: engine.counters.fired[Detector::UserManySources as usize],
            user_keys_live: engine.table.live() as u64,
            user_keys_max: engine.table.capacity() as u64,
            user_keys_evicted: engine.counters.keys_evicted,
            user_keys_evicted_hot: engine.counters.keys_evicted_hot,
            user_keys_overwritten: engine.table.probation_overwritten,
            attacks_live: self.attacks.len() as u64,
            attacks_forgotten: self.attacks.forgotten,
            attacks_cut_short: self.attacks.cut_short,
            attack_sources_forgotten: self.attacks.partakers_forgotten(),
            events_written: self.events.as_ref().map_or(0, |events| events.written()),
            events_lost: self.events.as_ref().map_or(0, |events| events.lost()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analytics::users::UserFailure;
    use messages::AlertFilter;

    #[test]
    fn a_user_tried_from_many_networks_is_an_alert_beside_those_of_shards() {
        let mut correlator = Correlator::new(Arc::default(), 1, None);
        let mut derived = Derived::new();
        let mut of_shard = Alert::default();
        of_shard.first_us = 5;
        derived.alerts.push(&of_shard, false);
        for order in 0..5 {
            let time_us = 1_000_000 * (order + 1);
            derived.failures.push(UserFailure { order, user: 7, time_us, network: order << 8, ..UserFailure::default() });
        }
        correlator.take(&derived, 6_000_000);
        let filter = AlertFilter { limit: 10, ..AlertFilter::default() };
        let Reply::Alerts(found) = correlator.answer(&Ask::Alerts(filter.clone()), 6_000_000) else { panic!("alerts") };
        assert_eq!(found.iter().map(|view| view.alert.detector).collect::<Vec<_>>(), ["user_many_sources", "brute_force"]);
        assert!(found.iter().all(|view| view.alert.key.kind != "user" || !view.is_final));
        correlator.tick(4_000_000_000);
        let Reply::Alerts(found) = correlator.answer(&Ask::Alerts(filter), 0) else { panic!("alerts") };
        assert!(found[0].is_final, "its hold ended");
        let Reply::Stats(stats) = correlator.answer(&Ask::Stats, 0) else { panic!("stats") };
        assert_eq!((stats.alerts_kept, stats.user_brute_force_alerts, stats.user_many_sources_alerts), (2, 0, 1));
    }
}
