//! The newest alerts of all shards and of the correlator itself.

use super::messages::{AlertFilter, AlertView, ROWS_MAX};
use crate::analytics::alerts::Alert;
use std::collections::{HashMap, VecDeque};

/// Alerts that are kept.
pub const ALERTS_MAX: usize = 16_384;

/// An alert that is kept.
#[derive(Clone, Debug)]
struct Kept {
    alert: Alert,
    is_final: bool,
}

/// What an alert is known by: the same as its id tells apart, without making the id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Name {
    plan: u16,
    application: i32,
    key: [u64; 3],
    scope: u64,
    first_us: u64,
    is_real_ip_suspect: bool,
}

/// See the module. In the order in which they were raised.
#[derive(Debug, Default)]
pub struct AlertRing {
    kept: VecDeque<Kept>,
    /// Number of the oldest one kept.
    oldest: u64,
    /// By name, the number.
    numbers: HashMap<Name, u64>,
}

impl AlertRing {
    /// Takes an alert as it is now. Returns whether it is new.
    pub fn take(&mut self, alert: Alert, is_final: bool) -> bool {
        let name = name(&alert);
        if let Some(kept) = self.numbers.get(&name).and_then(|number| self.kept.get_mut((number - self.oldest) as usize)) {
            // Reports of one alert come in order, but the last one may have been lost.
            if !kept.is_final {
                *kept = Kept { alert, is_final };
            }
            return false;
        }
        if self.kept.len() == ALERTS_MAX
            && let Some(oldest) = self.kept.pop_front()
        {
            self.oldest += 1;
            self.numbers.remove(&self::name(&oldest.alert));
        }
        self.numbers.insert(name, self.oldest + self.kept.len() as u64);
        self.kept.push_back(Kept { alert, is_final });
        true
    }

    /// How many are kept.
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// How many were, once.
    pub const fn forgotten(&self) -> u64 {
        self.oldest
    }

    /// Those that fit, newest first.
    pub fn find(&self, filter: &AlertFilter, now_us: u64) -> Vec<AlertView> {
        let fitting = self.kept.iter().rev().filter(|kept| fits(&kept.alert, filter));
        fitting.take(filter.limit.min(ROWS_MAX)).map(|kept| view(&kept.alert, kept.is_final, now_us)).collect()
    }
}

/// As shown. Whatever became of its last report: long after its hold an alert is final.
pub fn view(alert: &Alert, is_final: bool, now_us: u64) -> AlertView {
    AlertView { alert: alert.to_json(), is_final: is_final || alert.hold_until_us.saturating_add(REPORT_LAG_US) < now_us }
}

/// Reports come at most this late.
const REPORT_LAG_US: u64 = 10_000_000;

fn name(alert: &Alert) -> Name {
    use std::hash::{BuildHasher, Hasher};
    let mut hasher = foldhash::quality::FixedState::default().build_hasher();
    for text in [&alert.source_text, &alert.host, &alert.endpoint] {
        hasher.write_usize(text.len());
        hasher.write(text);
    }
    Name {
        plan: alert.plan,
        application: alert.application,
        key: [alert.source, alert.session, alert.user],
        scope: hasher.finish(),
        first_us: alert.first_us,
        is_real_ip_suspect: alert.is_real_ip_suspect,
    }
}

fn fits(alert: &Alert, filter: &AlertFilter) -> bool {
    let of_source = |wanted: u64| {
        let bits = if alert.is_network { 16 } else { 0 };
        alert.user == 0 && alert.source >> bits == wanted >> bits
    };
    filter.detector.as_ref().is_none_or(|wanted| wanted == alert.name())
        && filter.source.is_none_or(of_source)
        && filter.application.is_none_or(|wanted| wanted == alert.application)
        && filter.host.as_ref().is_none_or(|wanted| *wanted == alert.host)
        && filter.since_us.is_none_or(|since_us| alert.fired_us >= since_us)
        && filter.until_us.is_none_or(|until_us| alert.fired_us < until_us)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analytics::detectors::Detector;

    fn alert(source: u64, first_us: u64, count: u64) -> Alert {
        let mut alert = Alert::default();
        alert.plan = Detector::Crawl.plan(0);
        (alert.source, alert.first_us, alert.fired_us, alert.count) = (source, first_us, first_us, count);
        alert
    }

    fn all() -> AlertFilter {
        AlertFilter { limit: ROWS_MAX, ..AlertFilter::default() }
    }

    #[test]
    fn an_alert_is_kept_once_as_it_was_last() {
        let mut ring = AlertRing::default();
        assert!(ring.take(alert(1, 10, 5), false) && ring.take(alert(2, 11, 5), false));
        assert!(!ring.take(alert(1, 10, 9), true) && !ring.take(alert(1, 10, 7), false));
        let found = ring.find(&all(), 0);
        let seen: Vec<_> = found.iter().map(|view| (view.alert.count, view.is_final)).collect();
        assert_eq!(seen, [(5, false), (9, true)]);
        assert!(ring.find(&all(), u64::MAX).iter().all(|view| view.is_final), "their holds ended long ago");
    }

    #[test]
    fn the_oldest_is_forgotten() {
        let mut ring = AlertRing::default();
        for source in 0..ALERTS_MAX as u64 + 2 {
            ring.take(alert(source, 1, 1), true);
        }
        assert_eq!((ring.len(), ring.forgotten(), ring.numbers.len()), (ALERTS_MAX, 2, ALERTS_MAX));
        assert!(!ring.take(alert(7, 1, 1), true), "it is still known");
        assert!(ring.take(alert(0, 1, 1), true), "it is not");
    }

    #[test]
    fn filters_are_all_to_fit() {
        let mut ring = AlertRing::default();
        let mut network = alert(0x2001_0db8_0001_0002, 30, 1);
        network.is_network = true;
        network.host = b"h".to_vec();
        assert!([alert(1, 10, 1), alert(1, 20, 1), network].into_iter().all(|one| ring.take(one, true)));
        let count = |filter: AlertFilter| ring.find(&AlertFilter { limit: 9, ..filter }, 0).len();
        assert_eq!(count(AlertFilter { source: Some(1), since_us: Some(20), ..all() }), 1);
        assert_eq!(count(AlertFilter { source: Some(0x2001_0db8_0001_0009), ..all() }), 1);
        assert_eq!(count(AlertFilter { host: Some(b"h".to_vec()), ..all() }), 1);
        assert_eq!(count(AlertFilter { until_us: Some(20), ..all() }), 1);
        assert_eq!(count(AlertFilter { detector: Some("crawl".to_owned()), ..all() }), 3);
        assert_eq!(count(AlertFilter { application: Some(7), ..all() }), 0);
    }
}
