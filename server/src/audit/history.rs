//! Attackers: whom alerts are about, and what they had sent when the first was raised.

use crate::analytics::alerts::{Alert, time_text};
use crate::analytics::detectors::Detector;
use serde::Serialize;
use std::collections::HashMap;

/// Whom an alert is about. Sessions count as their source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Who {
    /// An IPv4 address or an IPv6 /64, by its key.
    Source(u64),
    /// An IPv6 /48 whose /64s had their share of the state.
    Network(u64),
    /// A user, by the hash of his name.
    User(u64),
}

/// Who is found, as `--json` writes it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Attacker {
    /// `source` or `user`: a user is not the attacker but the one attacked.
    pub kind: &'static str,
    pub value: String,
    /// Time of the first request, RFC 3339.
    pub first: String,
    /// Requests in all files.
    pub requests: u64,
    pub alerts: Vec<Caught>,
}

/// One alert on an attacker.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Caught {
    pub detector: &'static str,
    pub level: &'static str,
    pub host: Option<String>,
    pub endpoint: Option<String>,
    pub fired: String,
    /// From the first request to the alert.
    pub after_seconds: f64,
    /// Requests up to the alert, the deciding one included.
    pub after_requests: u64,
    pub count: u64,
}

/// Alerts of a detector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct DetectorCount {
    pub detector: &'static str,
    pub level: &'static str,
    pub alerts: u64,
    pub attackers: u64,
}

/// How soon attackers were found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Speed {
    pub requests_median: u64,
    pub requests_p90: u64,
    pub requests_max: u64,
    pub seconds_median: f64,
    pub seconds_p90: f64,
    pub seconds_max: f64,
}

/// What is known of one attacker while the files are read again.
#[derive(Debug, Default)]
struct History {
    /// His alerts in the order of their deciding records.
    alerts: Vec<Alert>,
    caught: Vec<Caught>,
    first_us: Option<u64>,
    requests: u64,
}

/// The attackers of all alerts.
#[derive(Debug, Default)]
pub struct Histories {
    of: HashMap<Who, History>,
    has_networks: bool,
    has_users: bool,
}

impl Histories {
    /// Those of these alerts, which are ordered by deciding record.
    pub fn of(alerts: &[Alert]) -> Self {
        let mut all = Self::default();
        for alert in alerts {
            let who = match alert {
                _ if alert.user != 0 => Who::User(alert.user),
                _ if alert.is_network => Who::Network(alert.source >> 16),
                _ => Who::Source(alert.source),
            };
            all.has_networks |= matches!(who, Who::Network(_));
            all.has_users |= matches!(who, Who::User(_));
            all.of.entry(who).or_default().alerts.push(alert.clone());
        }
        all
    }

    /// Takes the record at a position of the input.
    pub fn note(&mut self, source: u64, user: u64, event_us: u64, order: u64) {
        self.note_of(Who::Source(source), event_us, order);
        if self.has_networks {
            self.note_of(Who::Network(source >> 16), event_us, order);
        }
        if self.has_users && user != 0 {
            self.note_of(Who::User(user), event_us, order);
        }
    }

    fn note_of(&mut self, who: Who, event_us: u64, order: u64) {
        let Some(history) = self.of.get_mut(&who) else { return };
        history.requests += 1;
        let first_us = history.first_us.map_or(event_us, |first_us| first_us.min(event_us));
        history.first_us = Some(first_us);
        // One record may decide for several detectors.
        while let Some(alert) = history.alerts.get(history.caught.len()).filter(|alert| alert.order <= order) {
            let written = alert.to_json();
            history.caught.push(Caught {
                detector: written.detector,
                level: written.level,
                host: written.scope.host,
                endpoint: written.scope.endpoint,
                fired: written.fired,
                after_seconds: alert.fired_us.saturating_sub(first_us) as f64 / 1e6,
                after_requests: history.requests,
                count: alert.count,
            });
        }
    }

    /// Attackers, the gravest first; alerts by detector; how soon.
    pub fn finish(self) -> (Vec<Attacker>, Vec<DetectorCount>, Option<Speed>) {
        let mut found: Vec<(u64, Attacker)> = self.of.into_values().map(attacker).collect();
        found.sort_by_key(|(order, attacker)| (std::cmp::Reverse(gravity(attacker)), *order));
        let attackers: Vec<Attacker> = found.into_iter().map(|(_, attacker)| attacker).collect();
        let count = |detector: Detector| {
            let of =
                |attacker: &Attacker| attacker.alerts.iter().filter(|caught| caught.detector == detector.name()).count() as u64;
            DetectorCount {
                detector: detector.name(),
                level: detector.level().name(),
                alerts: attackers.iter().map(of).sum(),
                attackers: attackers.iter().filter(|attacker| of(attacker) > 0).count() as u64,
            }
        };
        let detectors = Detector::ALL.iter().map(|detector| count(*detector)).filter(|count| count.alerts > 0).collect();
        let speed = speed(&attackers);
        (attackers, detectors, speed)
    }
}

/// The attacker of a history, with the position of his first alert.
fn attacker(history: History) -> (u64, Attacker) {
    let first_alert = history.alerts.first();
    let key = first_alert.map(|alert| alert.to_json().key);
    let (kind, value) = key.map_or(("source", String::new()), |key| match key.kind {
        // The source of a session comes first.
        "session" => ("source", key.value.split(' ').next().unwrap_or_default().to_owned()),
        kind => (kind, key.value),
    });
    let attacker = Attacker {
        kind,
        value,
        first: history.first_us.map_or_else(String::new, time_text),
        requests: history.requests,
        alerts: history.caught,
    };
    (first_alert.map_or(0, |alert| alert.order), attacker)
}

/// The gravest level of his alerts.
fn gravity(attacker: &Attacker) -> usize {
    let of = |level: &str| ["info", "warning", "critical"].iter().position(|name| *name == level).unwrap_or(0);
    attacker.alerts.iter().map(|caught| of(caught.level)).max().unwrap_or(0)
}

/// Over the first alert of each attacker who is a source.
fn speed(attackers: &[Attacker]) -> Option<Speed> {
    let first = || attackers.iter().filter(|attacker| attacker.kind == "source").filter_map(|attacker| attacker.alerts.first());
    let mut requests: Vec<u64> = first().map(|caught| caught.after_requests).collect();
    let mut seconds: Vec<f64> = first().map(|caught| caught.after_seconds).collect();
    requests.sort_unstable();
    seconds.sort_unstable_by(f64::total_cmp);
    // Of so few the nearest one, upwards: at least that share is not slower.
    let at = |percent: usize| (requests.len() * percent).div_ceil(100).saturating_sub(1);
    (!requests.is_empty()).then(|| Speed {
        requests_median: requests[at(50)],
        requests_p90: requests[at(90)],
        requests_max: requests[at(100)],
        seconds_median: seconds[at(50)],
        seconds_p90: seconds[at(90)],
        seconds_max: seconds[at(100)],
    })
}
