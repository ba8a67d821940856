//! What is known of users: failed log-ins from anywhere. Keyed by the user, so one place for all shards: the correlator's.
//!
//! Shards send a small event for each failure; here they are applied in the order in which they are given.

use super::Reload;
use super::alerts::{ALL_APPLICATIONS, Alert, Alerts};
use super::detectors::{COUNTED, Detector, Event, FAILED};
use super::engine::Engine;
use super::fingerprint::Fingerprints;
use super::settings::Settings;
use std::sync::Arc;

/// A log-in of a user failed: what a shard tells of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UserFailure {
    /// Position of the record in the input.
    pub order: u64,
    /// Hash of the user.
    pub user: u64,
    /// When.
    pub time_us: u64,
    /// From which network.
    pub network: u64,
    /// The request's id.
    pub request_id: [u64; 2],
    /// Application.
    pub application: i32,
    /// The overrides that hold for the two detectors, as the record had it.
    pub ranks: [u16; 2],
}

/// The detectors of users, in the order of the table.
pub const USER_DETECTORS: [Detector; 2] = [Detector::UserBruteForce, Detector::UserManySources];

/// See the module.
#[derive(Debug)]
pub struct Users {
    settings: Arc<Settings>,
    /// Keys and alerts.
    pub engine: Engine,
    prints: Fingerprints,
}

impl Users {
    /// State for `keys` keys.
    pub fn new(settings: Arc<Settings>, keys: usize, alerts: Alerts, seed: u64) -> Self {
        Self { engine: Engine::new(Arc::clone(&settings), keys, alerts), settings, prints: Fingerprints::new(seed) }
    }

    /// Goes on with other settings; keys of the detectors that count otherwise with them are forgotten.
    pub fn reload(&mut self, reload: &Reload) {
        self.settings = Arc::clone(&reload.settings);
        self.engine.reload(Arc::clone(&reload.settings), &reload.changed);
    }

    /// Takes a failure.
    pub fn observe(&mut self, failure: &UserFailure) {
        for (detector, rank) in USER_DETECTORS.into_iter().zip(failure.ranks) {
            let plan = detector.plan(rank);
            let numbers = self.settings.numbers(plan);
            if !detector.is_enabled(numbers) {
                continue;
            }
            let application = if detector.is_across_applications(numbers) { ALL_APPLICATIONS } else { failure.application };
            let base = self.prints.pair(failure.user, application as u32 as u64);
            let event = Event {
                key: self.prints.pair(base, u64::from(plan)),
                time_us: failure.time_us,
                value: self.prints.pair(failure.network, 0),
                number: 0,
                request_id: failure.request_id,
                kind: COUNTED | FAILED,
                network: 0,
                plan,
            };
            if let Some(decided) = self.engine.take(&event, u32::MAX) {
                self.engine.fire(decided, &event, failure.order, |alert: &mut Alert| {
                    alert.application = application;
                    alert.user = failure.user;
                });
            }
        }
    }
}
