//! What the analysis of a shard reports of its alerts to whoever shows them: plain data in buffers of fixed size.
//!
//! An alert is reported when it is raised, when its hold ends, and between, when somebody looks through those that are held.
//! A report is the alert as it is then; the last one counts. What finds no room is counted and not reported.

use super::alerts::{Alert, EVIDENCE_MAX};

/// Reports that wait to be taken.
pub const REPORTS_MAX: usize = 256;
/// Bytes of their texts.
pub const TEXTS_MAX: usize = 128 << 10;

/// A part of the texts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Text {
    start: u32,
    length: u32,
}

/// An alert as it was.
#[derive(Clone, Copy, Debug)]
struct Report {
    is_final: bool,
    plan: u16,
    order: u64,
    hold_until_us: u64,
    first_us: u64,
    fired_us: u64,
    last_us: u64,
    count: u64,
    distinct: u64,
    application: i32,
    source: u64,
    is_network: bool,
    is_real_ip_suspect: bool,
    session: u64,
    user: u64,
    texts: [Text; 3],
    evidence: [[u64; 2]; EVIDENCE_MAX],
    evidence_count: usize,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct AlertReports {
    reports: Vec<Report>,
    texts: Texts,
    /// Reports for which there was no room.
    pub lost: u64,
}

impl AlertReports {
    /// Room for [`REPORTS_MAX`]. The default has room for none: then nothing is reported, and nothing counted as lost.
    pub fn with_room() -> Self {
        Self { reports: Vec::with_capacity(REPORTS_MAX), texts: Texts::with_capacity(TEXTS_MAX), lost: 0 }
    }

    /// Reports an alert as it is now.
    pub fn push(&mut self, alert: &Alert, is_final: bool) {
        if self.reports.capacity() == 0 {
            return;
        }
        let texts = [&alert.source_text, &alert.host, &alert.endpoint];
        if !self.has_room_for(alert) {
            self.lost += 1;
            return;
        }
        let texts = texts.map(|text| self.texts.push(text));
        self.reports.push(Report {
            is_final,
            plan: alert.plan,
            order: alert.order,
            hold_until_us: alert.hold_until_us,
            first_us: alert.first_us,
            fired_us: alert.fired_us,
            last_us: alert.last_us,
            count: alert.count,
            distinct: alert.distinct,
            application: alert.application,
            source: alert.source,
            is_network: alert.is_network,
            is_real_ip_suspect: alert.is_real_ip_suspect,
            session: alert.session,
            user: alert.user,
            texts,
            evidence: alert.evidence,
            evidence_count: alert.evidence_count,
        });
    }

    /// Whether a report of this alert would not be lost.
    pub fn has_room_for(&self, alert: &Alert) -> bool {
        let bytes = alert.source_text.len() + alert.host.len() + alert.endpoint.len();
        self.reports.capacity() == 0 || self.reports.len() < REPORTS_MAX && self.texts.has_room(bytes)
    }

    /// Reports that wait.
    pub const fn len(&self) -> usize {
        self.reports.len()
    }

    /// Reports that still find room.
    pub const fn room(&self) -> usize {
        REPORTS_MAX.saturating_sub(self.reports.len())
    }

    /// Whether nothing waits.
    pub const fn is_empty(&self) -> bool {
        self.reports.is_empty()
    }

    /// Hands all that waits over to `other`, which must be empty, and takes its buffers.
    pub fn hand_over(&mut self, other: &mut Self) {
        std::mem::swap(&mut self.reports, &mut other.reports);
        std::mem::swap(&mut self.texts, &mut other.texts);
    }

    /// Forgets what was reported.
    pub fn clear(&mut self) {
        self.reports.clear();
        self.texts.clear();
    }

    /// The alerts, in the order in which they were reported, and whether they are final.
    pub fn alerts(&self) -> impl Iterator<Item = (Alert, bool)> + '_ {
        self.reports.iter().map(|report| (self.alert(report), report.is_final))
    }

    fn alert(&self, report: &Report) -> Alert {
        let [source_text, host, endpoint] = report.texts.map(|text| self.texts.get(text).to_vec());
        let mut alert = Alert::default();
        (alert.source_text, alert.host, alert.endpoint) = (source_text, host, endpoint);
        alert.plan = report.plan;
        alert.order = report.order;
        alert.hold_until_us = report.hold_until_us;
        (alert.first_us, alert.fired_us, alert.last_us) = (report.first_us, report.fired_us, report.last_us);
        (alert.count, alert.distinct) = (report.count, report.distinct);
        alert.application = report.application;
        (alert.source, alert.is_network) = (report.source, report.is_network);
        alert.is_real_ip_suspect = report.is_real_ip_suspect;
        (alert.session, alert.user) = (report.session, report.user);
        (alert.evidence, alert.evidence_count) = (report.evidence, report.evidence_count);
        alert
    }
}

/// Texts of fixed total length.
#[derive(Clone, Debug, Default)]
pub struct Texts {
    bytes: Vec<u8>,
}

impl Texts {
    /// Room for so many bytes.
    pub fn with_capacity(bytes: usize) -> Self {
        Self { bytes: Vec::with_capacity(bytes) }
    }

    /// Whether so many more bytes find room.
    pub const fn has_room(&self, bytes: usize) -> bool {
        self.bytes.capacity() - self.bytes.len() >= bytes
    }

    /// Keeps a text, or what of it finds room.
    pub fn push(&mut self, text: &[u8]) -> Text {
        let length = text.len().min(self.bytes.capacity() - self.bytes.len());
        let start = self.bytes.len() as u32;
        self.bytes.extend_from_slice(&text[..length]);
        Text { start, length: length as u32 }
    }

    /// A text; nothing if it is not one of these.
    pub fn get(&self, text: Text) -> &[u8] {
        self.bytes.get(text.start as usize..(text.start + text.length) as usize).unwrap_or(&[])
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.bytes.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_come_out_as_they_went_in_and_what_finds_no_room_is_counted() {
        let mut reports = AlertReports::with_room();
        let mut alert = Alert::default();
        (alert.host, alert.endpoint) = (b"a.example".to_vec(), b"GET /x".to_vec());
        alert.evidence[0] = [1, 2];
        alert.evidence_count = 1;
        for count in 0..REPORTS_MAX as u64 + 3 {
            alert.count = count;
            reports.push(&alert, count % 2 == 1);
        }
        assert_eq!((reports.lost, reports.room()), (3, 0));
        let mut other = AlertReports::with_room();
        reports.hand_over(&mut other);
        assert!(reports.is_empty() && reports.lost == 3);
        let seen: Vec<(Alert, bool)> = other.alerts().collect();
        assert_eq!(seen.len(), REPORTS_MAX);
        let (third, is_final) = &seen[3];
        alert.count = 3;
        assert_eq!((third.to_json(), *is_final), (alert.to_json(), true));
        let mut none = AlertReports::default();
        none.push(&alert, true);
        assert_eq!((none.lost, none.is_empty()), (0, true));
    }

    #[test]
    fn long_texts_end_the_room_before_the_count_does() {
        let mut reports = AlertReports::with_room();
        let mut alert = Alert::default();
        (alert.host, alert.endpoint) = (vec![b'h'; 2048], vec![b'e'; 2048]);
        (0..40).for_each(|_| reports.push(&alert, false));
        assert_eq!(reports.lost, 8);
        assert!(reports.alerts().all(|(seen, _)| seen.host == alert.host && seen.endpoint == alert.endpoint));
    }
}
