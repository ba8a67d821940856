//! Alerts: raised when a detector fires, taking further events of their key until their hold ends, then final.
//!
//! A bounded number of slots. A new alert takes a free slot, else the oldest final one's, else the one of the alert whose
//! hold ends first, which is then final early and counted. A replay lets the slots grow instead: its alerts are its output.
//! Slots keep their buffers, so nothing is allocated once they were used.
//!
//! **A hold is in the time of events**, which may be long ago: a replay, or a backlog. The wall clock ends it only for a key for
//! which no event comes any more. What ended and finds no room for its report keeps its slot until it does.

use super::detectors::{Detector, KeyKind};
use super::magnitude::Magnitude;
use super::reports::{AlertReports, REPORTS_MAX};
use postanalytics_protocol::Source;
use serde::Serialize;
use siphasher::sip::SipHasher13;
use std::collections::VecDeque;
use std::hash::Hasher;

/// Request ids kept of an alert: the first 15 and the deciding one.
pub const EVIDENCE_MAX: usize = 16;
/// Longest text that is kept of a host or an endpoint, bytes: what is longer is told apart all the same, but shown cut.
const TEXT_BYTES_MAX: usize = 2048;

/// Name of the alert that a proxy's address is seen instead of the client's.
pub const REAL_IP_SUSPECT: &str = "real_ip_suspect";
const REAL_IP_NOTE: &str = "the filter probably sees a proxy's address instead of the client's, so the source was not listed: set the real \
                            address in the filter (NGINX: set_real_ip_from and real_ip_header), or name the proxy under trusted_proxies";
/// Stands for the application of an alert of a detector that counts all of them together.
pub const ALL_APPLICATIONS: i32 = i32::MIN;

/// Where an alert is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Free,
    Held,
    /// Its hold ended, but its report found no room yet.
    Ended,
    Final,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Alert {
    stage: Stage,
    key: u64,
    /// Detector and override.
    pub plan: u16,
    /// Position of the deciding event in the input.
    pub order: u64,
    /// Events up to here only raise this alert.
    pub hold_until_us: u64,
    /// Effective time of the first event.
    pub first_us: u64,
    /// That of the deciding one.
    pub fired_us: u64,
    /// That of the last one.
    pub last_us: u64,
    /// Events looked at.
    pub count: u64,
    /// Different values among them.
    pub distinct: u64,
    /// Application, or [`ALL_APPLICATIONS`].
    pub application: i32,
    /// Key of the source, see [`Source::key`].
    pub source: u64,
    /// The key is the whole IPv6 /48 of the source.
    pub is_network: bool,
    /// Not the alert of the detector, but one that it would have listed what is probably a proxy.
    pub is_real_ip_suspect: bool,
    /// Hash of the session, 0 if it is not part of the key.
    pub session: u64,
    /// Hash of the user.
    pub user: u64,
    /// The address field, if it is no address.
    pub source_text: Vec<u8>,
    /// Host, if the key has one.
    pub host: Vec<u8>,
    /// Method and template, if the key has them.
    pub endpoint: Vec<u8>,
    /// Ids of requests.
    pub evidence: [[u64; 2]; EVIDENCE_MAX],
    /// How many.
    pub evidence_count: usize,
    magnitude: Magnitude,
    /// When the last event was looked at, by the wall clock.
    looked_us: u64,
    /// The count that was last reported.
    reported_count: u64,
}

impl Alert {
    /// The name that it is shown under.
    pub fn name(&self) -> &'static str {
        if self.is_real_ip_suspect { REAL_IP_SUSPECT } else { self.detector().name() }
    }

    /// Its detector.
    pub const fn detector(&self) -> Detector {
        Detector::of_plan(self.plan)
    }

    /// Keeps a text, cut at the bound.
    pub fn set_text(text: &mut Vec<u8>, parts: &[&[u8]]) {
        text.clear();
        for part in parts {
            let room = TEXT_BYTES_MAX.saturating_sub(text.len());
            text.extend_from_slice(&part[..part.len().min(room)]);
        }
    }

    /// Adds a value to those it tells apart.
    pub fn add_value(&mut self, value: u64) {
        self.magnitude.add(value);
    }

    /// When the wall clock ends its hold, if no event comes. Live that is the end of its hold. Where events are from before,
    /// they may come more slowly than they happened: it takes as much longer as they lag behind, at most a hold.
    const fn ends_by_itself_us(&self) -> u64 {
        let lag_us = self.looked_us.saturating_sub(self.last_us);
        let hold_us = self.hold_until_us.saturating_sub(self.fired_us);
        let left_us = self.hold_until_us.saturating_sub(self.last_us);
        self.looked_us.saturating_add(left_us).saturating_add(if lag_us < hold_us { lag_us } else { hold_us })
    }

    /// Takes a further event of its key, now.
    pub fn raise(&mut self, time_us: u64, value: Option<u64>, now_us: u64) {
        self.looked_us = now_us;
        self.last_us = time_us;
        self.count += 1;
        if let Some(distinct) = value.and_then(|value| self.magnitude.add(value)) {
            // The exact part may hold values from before `first`, the estimate may be low: never less than was known.
            let exact = if self.magnitude.is_exact() { self.distinct + 1 } else { 0 };
            self.distinct = self.distinct.max(exact).max(if exact == 0 { distinct } else { 0 });
        }
    }

    /// The object of the page of definitions.
    pub fn to_json(&self) -> AlertJson {
        let source = match (self.source_text.is_empty(), self.is_network) {
            (false, _) => text(&self.source_text),
            (true, is_network) => source_text(self.source, is_network),
        };
        let (kind, value) = match self.detector().key_kind() {
            KeyKind::User => ("user", format!("{:016x}", self.user)),
            KeyKind::SessionEndpoint if self.session != 0 => ("session", format!("{source} {:016x}", self.session)),
            _ => ("source", source),
        };
        let some = |bytes: &[u8]| (!bytes.is_empty()).then(|| text(bytes));
        let scope = ScopeJson { host: some(&self.host), endpoint: some(&self.endpoint) };
        let name = self.name();
        AlertJson {
            id: self.id(name, kind, &value, &scope),
            detector: name,
            key: KeyJson { kind, value },
            application: (self.application != ALL_APPLICATIONS).then_some(self.application),
            scope,
            first: time_text(self.first_us),
            fired: time_text(self.fired_us),
            last: time_text(self.last_us),
            count: self.count,
            distinct: self.distinct,
            level: if self.is_real_ip_suspect { "warning" } else { self.detector().level().name() },
            note: self.is_real_ip_suspect.then_some(REAL_IP_NOTE),
            evidence: self.evidence[..self.evidence_count].iter().map(|[high, low]| format!("{high:016x}{low:016x}")).collect(),
        }
    }

    /// The same for the same alert wherever and whenever it is raised.
    fn id(&self, detector: &str, kind: &str, value: &str, scope: &ScopeJson) -> String {
        let mut hasher = SipHasher13::new();
        for part in [detector, kind, value, scope.host.as_deref().unwrap_or(""), scope.endpoint.as_deref().unwrap_or("")] {
            hasher.write(part.as_bytes());
            hasher.write_u8(0xff);
        }
        hasher.write(&self.application.to_le_bytes());
        hasher.write(&self.first_us.to_le_bytes());
        format!("{:016x}", hasher.finish())
    }
}

/// An alert as written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "the fields are those of Alert")]
pub struct AlertJson {
    pub id: String,
    pub detector: &'static str,
    pub key: KeyJson,
    pub application: Option<i32>,
    pub scope: ScopeJson,
    pub first: String,
    pub fired: String,
    pub last: String,
    pub count: u64,
    pub distinct: u64,
    pub level: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<&'static str>,
    pub evidence: Vec<String>,
}

/// Whom it is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct KeyJson {
    pub kind: &'static str,
    pub value: String,
}

/// Where it happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct ScopeJson {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The address of a source, or its network: `192.0.2.1`, `2001:db8:1:2::/64`, `2001:db8:1::/48`.
pub fn source_text(key: u64, is_network: bool) -> String {
    if key >> 32 == 0xffff_ffff {
        return std::net::Ipv4Addr::from(key as u32).to_string();
    }
    let (network, bits) = if is_network { (key >> 16 << 16, 48) } else { (key, 64) };
    format!("{}/{bits}", std::net::Ipv6Addr::from(u128::from(network) << 64))
}

/// RFC 3339, UTC, with µs.
pub fn time_text(time_us: u64) -> String {
    let time = i64::try_from(time_us).ok().and_then(|time_us| jiff::Timestamp::from_microsecond(time_us).ok());
    time.map_or_else(String::new, |time| format!("{time:.6}"))
}

/// See the module.
#[derive(Debug)]
pub struct Alerts {
    slots: Vec<Alert>,
    free: Vec<u32>,
    /// Oldest first.
    finals: VecDeque<u32>,
    slots_max: usize,
    keeps_all: bool,
    /// The wall clock, Unix µs.
    now_us: u64,
    /// The slot that is next to be reported if it moved, so that all have their turn.
    next_to_report: usize,
    /// Alerts that were final before their hold ended, for want of slots.
    pub cut_short: u64,
    /// What became of alerts, for whoever shows them; no room for any unless somebody makes some.
    pub reports: AlertReports,
}

impl Alerts {
    /// Room for `slots` alerts, made now.
    pub fn bounded(slots: usize) -> Self {
        let buffers = || Alert {
            host: Vec::with_capacity(64),
            endpoint: Vec::with_capacity(256),
            magnitude: Magnitude::with_room(),
            ..Alert::default()
        };
        Self {
            slots: (0..slots).map(|_| buffers()).collect(),
            free: (0..slots as u32).rev().collect(),
            finals: VecDeque::with_capacity(slots),
            slots_max: slots,
            keeps_all: false,
            now_us: 0,
            next_to_report: 0,
            cut_short: 0,
            reports: AlertReports::default(),
        }
    }

    /// Keeps every alert, for [`Self::take_all`].
    pub fn unbounded() -> Self {
        Self { keeps_all: true, slots_max: u32::MAX as usize - 1, ..Self::bounded(0) }
    }

    /// From now on events are looked at at this time.
    pub const fn begin(&mut self, now_us: u64) {
        self.now_us = now_us;
    }

    /// The time of [`Self::begin`].
    pub const fn now_us(&self) -> u64 {
        self.now_us
    }

    /// The alert that a cell's number means, if it is still that of this key and takes events.
    pub fn held(&mut self, number: u32, key: u64) -> Option<&mut Alert> {
        let alert = self.slots.get_mut((number as usize).checked_sub(1)?)?;
        (alert.stage == Stage::Held && alert.key == key).then_some(alert)
    }

    /// Until when the alert of this number holds its key.
    pub fn hold_until_us(&self, number: u32, key: u64) -> Option<u64> {
        let alert = self.get(number)?;
        (alert.stage == Stage::Held && alert.key == key).then_some(alert.hold_until_us)
    }

    /// An alert by its number.
    pub fn get(&self, number: u32) -> Option<&Alert> {
        self.slots.get((number as usize).checked_sub(1)?)
    }

    /// A slot for a new alert of `key`, empty, and its number.
    pub fn open(&mut self, key: u64) -> (u32, &mut Alert) {
        let slot = self.find_slot();
        let alert = &mut self.slots[slot as usize];
        alert.stage = Stage::Held;
        alert.key = key;
        alert.looked_us = self.now_us;
        alert.evidence_count = 0;
        alert.is_network = false;
        (alert.session, alert.user, alert.source) = (0, 0, 0);
        for buffer in [&mut alert.source_text, &mut alert.host, &mut alert.endpoint] {
            buffer.clear();
        }
        alert.magnitude.clear();
        (slot + 1, alert)
    }

    fn find_slot(&mut self) -> u32 {
        if let Some(slot) = self.free.pop() {
            return slot;
        }
        if self.slots.len() < self.slots_max {
            self.slots.push(Alert::default());
            return self.slots.len() as u32 - 1;
        }
        if let Some(slot) = self.finals.pop_front() {
            return slot;
        }
        let soonest = self.slots.iter().enumerate().min_by_key(|(_, alert)| alert.hold_until_us);
        let slot = soonest.map_or(0, |(slot, _)| slot);
        self.cut_short += u64::from(self.slots[slot].stage == Stage::Held);
        self.reports.push(&self.slots[slot], true);
        slot as u32
    }

    /// Reports an alert that was just raised and described.
    pub fn raised(&mut self, number: u32) {
        if let Some(alert) = (number as usize).checked_sub(1).and_then(|slot| self.slots.get_mut(slot)) {
            alert.reported_count = alert.count;
            self.reports.push(alert, false);
        }
    }

    /// Reports beside an alert that its source seems to be a proxy, and was not listed.
    pub fn report_suspect(&mut self, number: u32) {
        if let Some(alert) = (number as usize).checked_sub(1).and_then(|slot| self.slots.get_mut(slot)) {
            alert.is_real_ip_suspect = true;
            self.reports.push(alert, true);
            alert.is_real_ip_suspect = false;
        }
    }

    /// Reports those held whose count moved, as far as half of the room goes: the rest is for what happens.
    pub fn report_moved(&mut self) {
        let first = self.next_to_report;
        for slot in (first..self.slots.len()).chain(0..first) {
            let alert = &mut self.slots[slot];
            if alert.stage != Stage::Held || alert.count == alert.reported_count {
                continue;
            }
            if self.reports.room() <= REPORTS_MAX / 2 || !self.reports.has_room_for(alert) {
                self.next_to_report = slot;
                return;
            }
            alert.reported_count = alert.count;
            self.reports.push(alert, false);
        }
    }

    /// The hold of an alert ended: it is final, as soon as there is room to say so.
    pub fn finish(&mut self, number: u32, key: u64) {
        if let Some(alert) = self.held(number, key) {
            alert.stage = Stage::Ended;
            self.report_end(number - 1);
        }
    }

    /// Reports that an alert is final; returns whether there was room.
    fn report_end(&mut self, slot: u32) -> bool {
        let alert = &mut self.slots[slot as usize];
        if !self.reports.has_room_for(alert) {
            return false;
        }
        alert.stage = Stage::Final;
        self.reports.push(alert, true);
        if !self.keeps_all {
            self.finals.push_back(slot);
        }
        true
    }

    /// Makes final what ended by `now_us`, as far as there is room to report it; returns whether that was all. Live, where keys
    /// may never come back.
    pub fn sweep(&mut self, now_us: u64) -> bool {
        let mut is_all = true;
        for slot in 0..self.slots.len() as u32 {
            let alert = &mut self.slots[slot as usize];
            if alert.stage == Stage::Held && alert.ends_by_itself_us() <= now_us {
                alert.stage = Stage::Ended;
            }
            if alert.stage == Stage::Ended {
                is_all &= self.report_end(slot);
            }
        }
        is_all
    }

    /// Every alert there is, in no order.
    pub fn take_all(&mut self) -> Vec<Alert> {
        let mut all = std::mem::take(&mut self.slots);
        all.retain(|alert| alert.stage != Stage::Free);
        self.free.clear();
        self.finals.clear();
        all
    }
}

/// The source that an alert is about, to be listed.
pub fn listed_source(alert: &Alert) -> Source {
    let address = if alert.source >> 32 == 0xffff_ffff {
        std::net::IpAddr::V4(std::net::Ipv4Addr::from(alert.source as u32))
    } else {
        std::net::IpAddr::V6(std::net::Ipv6Addr::from(u128::from(alert.source) << 64))
    };
    Source::of(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_reused_oldest_final_first_and_the_soonest_to_end_is_cut_short() {
        let mut alerts = Alerts::bounded(2);
        let (one, _) = alerts.open(1);
        let (two, second) = alerts.open(2);
        second.hold_until_us = 5;
        alerts.held(one, 1).expect("held").hold_until_us = 9;
        assert_eq!(alerts.open(3).0, two, "its hold ends first");
        assert_eq!(alerts.cut_short, 1);
        assert!(alerts.held(two, 2).is_none() && alerts.held(two, 3).is_some());
        alerts.held(two, 3).expect("held").hold_until_us = 100;
        alerts.sweep(9);
        assert_eq!(alerts.open(4).0, one, "it was final");
        assert_eq!(alerts.cut_short, 1);
    }

    #[test]
    fn ends_that_find_no_room_are_reported_the_next_time() {
        let mut alerts = Alerts::bounded(REPORTS_MAX * 2 + 1);
        alerts.reports = AlertReports::with_room();
        let numbers: Vec<_> = (1..=REPORTS_MAX as u64 * 2 + 1).map(|key| alerts.open(key).0).collect();
        let mut reported = 0;
        for (round, is_all) in [false, false, true].into_iter().enumerate() {
            assert_eq!(alerts.sweep(1), is_all);
            reported += alerts.reports.alerts().filter(|(_, is_final)| *is_final).count();
            alerts.reports.clear();
            assert!(alerts.held(numbers[REPORTS_MAX * 2], REPORTS_MAX as u64 * 2 + 1).is_none(), "ended in round {round}");
        }
        assert_eq!((reported, alerts.reports.lost, alerts.cut_short), (REPORTS_MAX * 2 + 1, 0, 0));
    }

    #[test]
    fn all_that_moved_have_their_turn() {
        let mut alerts = Alerts::bounded(REPORTS_MAX);
        alerts.reports = AlertReports::with_room();
        let mut seen = std::collections::HashSet::new();
        for key in 1..=REPORTS_MAX as u64 {
            alerts.open(key).1.order = key;
        }
        for round in 1..=2 {
            alerts.slots.iter_mut().for_each(|alert| alert.raise(round, None, round));
            alerts.report_moved();
            seen.extend(alerts.reports.alerts().map(|(alert, _)| alert.order));
            alerts.reports.clear();
        }
        assert_eq!(seen.len(), REPORTS_MAX);
    }

    /// A hold of 300 that began at 1000, whose last event was at 1100.
    #[test]
    fn the_wall_clock_ends_the_hold_of_a_backlog_only_when_no_event_comes_for_a_while() {
        for (looked_us, ends_us) in [(1100, 1300), (1110, 1320), (1_000_000, 1_000_500)] {
            let mut alerts = Alerts::bounded(1);
            let (number, alert) = alerts.open(1);
            (alert.fired_us, alert.hold_until_us) = (1000, 1300);
            alert.raise(1100, None, looked_us);
            alerts.sweep(ends_us - 1);
            assert!(alerts.held(number, 1).is_some(), "looked at at {looked_us}");
            alerts.sweep(ends_us);
            assert!(alerts.held(number, 1).is_none(), "looked at at {looked_us}");
        }
    }

    #[test]
    fn magnitudes_are_exact_up_to_64_and_near_beyond() {
        let mut alert = Alert::default();
        for round in 0..3 {
            for value in 0..60 {
                alert.raise(round, Some(value), round);
            }
        }
        assert_eq!((alert.count, alert.distinct), (180, 60));
        for value in 0..20_000 {
            alert.raise(9, Some(value), 9);
        }
        assert!((17_000..23_000).contains(&alert.distinct), "{}", alert.distinct);
    }

    #[test]
    fn sources_are_written_as_operators_write_them() {
        assert_eq!(source_text(0xffff_ffff_c000_0201, false), "192.0.2.1");
        assert_eq!(source_text(0x2001_0db8_0001_0002, false), "2001:db8:1:2::/64");
        assert_eq!(source_text(0x2001_0db8_0001_0002, true), "2001:db8:1::/48");
        assert_eq!(time_text(1_700_000_000_000_001), "2023-11-14T22:13:20.000001Z");
    }
}
