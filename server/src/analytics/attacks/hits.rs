//! A shard's part in attacks: which hits are kept whole, and a small report of every hit.
//!
//! Identical are hits of the same type, point, application, endpoint, method, status and source. Of identical ones the first
//! five of an hour are kept whole, the hour beginning with the first of them; the others are counted. All identical hits come
//! to the same shard, and a new attack begins only after an hour without any, so a shard can decide this by itself. Only
//! where an attack is cut at 24 hours, or was forgotten by the correlator for want of room, it cannot: the first hit of the next may
//! be one that is only counted.
//!
//! Suppressed hits of a turn that are identical down to the payload are one report. But a hit whose hash is among the smallest
//! of its identity is reported by itself: it may be one of the samples of the attack.
//!
//! The table of identities is of fixed size. An identity that was pushed out begins anew: more is kept than had to be.

use crate::analytics::attacks::samples::SAMPLES_MAX;
use crate::analytics::fingerprint::Fingerprints;
use crate::analytics::observation::Observation;
use crate::analytics::reports::{Text, Texts};
use bumpalo::Bump;
use postanalytics_protocol::Hit;
use postanalytics_protocol::schema::v1::FLAG_BLOCKED;

/// Identical hits that are kept whole in an hour.
pub const KEPT_PER_HOUR: u32 = 5;
/// Reports that wait to be taken.
pub const HITS_MAX: usize = 2048;
const TEXTS_MAX: usize = 512 << 10;
const HOUR_US: u64 = 3_600_000_000;
/// Identities that are remembered, and ways of a set.
const IDENTITIES: usize = 8192;
const WAYS: usize = 4;
/// Places in which the reports of a turn are found again.
const RECENT: usize = 1024;

const HOST_BYTES_MAX: usize = 255;
const TEMPLATE_BYTES_MAX: usize = 512;
const POINT_BYTES_MAX: usize = 128;
const METHOD_BYTES_MAX: usize = 32;
const PAYLOAD_BYTES_MAX: usize = 256;

/// What the correlator is told of a hit, or of identical ones.
#[derive(Clone, Copy, Debug, Default)]
pub struct HitReport {
    /// Of type, application, host, template and point.
    pub key: u64,
    identity: u64,
    /// Hash by which samples are chosen.
    pub sample: u64,
    /// Of the payload.
    pub payload: u64,
    /// Id of the request, the first one's if they are several.
    pub request_id: [u64; 2],
    /// When the first was.
    pub first_us: u64,
    /// When the last was.
    pub last_us: u64,
    /// How many.
    pub count: u32,
    /// How many of them were blocked.
    pub blocked: u32,
    /// Status of the answers.
    pub status: u16,
    /// Type.
    pub attack_type: u16,
    /// Application.
    pub application: i32,
    /// Key of the source.
    pub source: u64,
    /// It is kept whole.
    pub is_kept: bool,
    /// It may be a sample, so it is one hit alone and has its payload with it.
    pub may_be_sample: bool,
    /// Host, template, point, method, payload.
    pub texts: [Text; 5],
}

/// Reports on their way.
#[derive(Clone, Debug, Default)]
pub struct HitReports {
    reports: Vec<HitReport>,
    texts: Texts,
}

impl HitReports {
    /// Room for [`HITS_MAX`]; the default has room for none.
    pub fn with_room() -> Self {
        Self { reports: Vec::with_capacity(HITS_MAX), texts: Texts::with_capacity(TEXTS_MAX) }
    }

    /// Whether nothing waits.
    pub const fn is_empty(&self) -> bool {
        self.reports.is_empty()
    }

    /// Reports that wait.
    pub const fn len(&self) -> usize {
        self.reports.len()
    }

    /// The reports, in order.
    pub fn iter(&self) -> std::slice::Iter<'_, HitReport> {
        self.reports.iter()
    }

    /// A text of a report of these.
    pub fn text(&self, text: Text) -> &[u8] {
        self.texts.get(text)
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.reports.clear();
        self.texts.clear();
    }
}

/// What is remembered of identical hits.
#[derive(Clone, Copy, Debug, Default)]
struct Identity {
    fingerprint: u64,
    /// When their hour began.
    since_us: u64,
    count: u32,
    /// The smallest hashes of this hour, upper halves, in no order.
    smallest: [u32; SAMPLES_MAX],
}

/// See the module.
#[derive(Debug)]
pub struct HitSampler {
    /// Sets of ways, newest first.
    identities: Vec<Identity>,
    /// Of reports that wait: place by fingerprint, checked when it is used.
    recent: Vec<u32>,
    /// What waits.
    pub reports: HitReports,
    /// Hits whose report found no room.
    pub lost: u64,
    /// Hits that were not kept whole.
    pub suppressed: u64,
}

/// What a hit is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fate {
    is_kept: bool,
    may_be_sample: bool,
}

impl HitSampler {
    /// Nothing is known yet.
    pub fn new() -> Self {
        Self {
            identities: vec![Identity::default(); IDENTITIES],
            recent: vec![0; RECENT],
            reports: HitReports::with_room(),
            lost: 0,
            suppressed: 0,
        }
    }

    /// Takes a hit. Returns whether its record is to be kept whole.
    pub fn take<'a>(
        &mut self,
        observation: &Observation<'a>,
        flags: u32,
        hit: &Hit<'_>,
        prints: &Fingerprints,
        scratch: &'a Bump,
    ) -> bool {
        let of_place = prints.pair(prints.bytes(hit.point), u64::from(hit.attack_type));
        let of_scope = prints.pair(observation.host_fingerprint, observation.target.template_fingerprint);
        let key = prints.pair(prints.pair(of_place, of_scope), u64::from(observation.application.cast_unsigned()));
        let of_endpoint = prints.pair(of_place, observation.endpoint_fingerprint(prints));
        let identity =
            prints.pair(prints.pair(of_endpoint, u64::from(observation.status)), observation.source_fingerprint).max(1);
        let [high, low] = observation.request_id();
        let sample = prints.pair(prints.pair(key, high), low);
        let fate = self.decide(identity, sample, observation.time_us);
        self.suppressed += u64::from(!fate.is_kept);
        let report = HitReport {
            key,
            identity,
            sample,
            payload: prints.bytes(hit.payload),
            request_id: observation.request_id(),
            first_us: observation.time_us,
            last_us: observation.time_us,
            count: 1,
            blocked: u32::from(flags & FLAG_BLOCKED != 0),
            status: observation.status,
            attack_type: hit.attack_type,
            application: observation.application,
            source: observation.source.key(),
            is_kept: fate.is_kept,
            may_be_sample: fate.may_be_sample,
            texts: [Text::default(); 5],
        };
        if !(fate == Fate { is_kept: false, may_be_sample: false } && self.join(&report)) {
            let texts = [observation.host(), observation.template(scratch), hit.point, observation.method(), hit.payload];
            self.push(report, texts);
        }
        fate.is_kept || fate.may_be_sample
    }

    fn decide(&mut self, identity: u64, sample: u64, time_us: u64) -> Fate {
        let set = (identity >> 32) as usize % (IDENTITIES / WAYS) * WAYS;
        let ways = &mut self.identities[set..set + WAYS];
        let known = ways.iter().position(|way| way.fingerprint == identity);
        let way = known.unwrap_or(WAYS - 1);
        ways[..=way].rotate_right(1);
        let cell = &mut ways[0];
        if known.is_none() || time_us.saturating_sub(cell.since_us) >= HOUR_US {
            *cell = Identity { fingerprint: identity, since_us: time_us, count: 0, smallest: [u32::MAX; SAMPLES_MAX] };
        }
        cell.count = cell.count.saturating_add(1);
        let hash = (sample >> 32) as u32;
        // A request that comes again is told once: it is one sample.
        let is_known = cell.smallest.contains(&hash);
        let may_be_sample = match cell.smallest.iter_mut().max() {
            Some(largest) if hash < *largest && !is_known => {
                *largest = hash;
                true
            }
            _ => false,
        };
        Fate { is_kept: cell.count <= KEPT_PER_HOUR, may_be_sample }
    }

    /// Adds a suppressed hit to a report of its like, if one waits.
    fn join(&mut self, report: &HitReport) -> bool {
        let is_full = self.reports.reports.len() >= HITS_MAX / 4 * 3;
        let at = self.recent[place(report.identity)] as usize;
        let Some(earlier) = self.reports.reports.get_mut(at) else { return false };
        let is_like = earlier.identity == report.identity && !earlier.is_kept && !earlier.may_be_sample;
        // When there is little room left, different payloads are counted together: then their number is told too low.
        if !is_like || earlier.payload != report.payload && !is_full {
            return false;
        }
        earlier.count += 1;
        earlier.blocked += report.blocked;
        earlier.last_us = earlier.last_us.max(report.last_us);
        true
    }

    fn push(&mut self, mut report: HitReport, texts: [&[u8]; 5]) {
        let wants_payload = report.is_kept || report.may_be_sample;
        let bounds = [
            HOST_BYTES_MAX,
            TEMPLATE_BYTES_MAX,
            POINT_BYTES_MAX,
            METHOD_BYTES_MAX,
            if wants_payload { PAYLOAD_BYTES_MAX } else { 0 },
        ];
        let [host, template, point, method, payload] = texts;
        let cut = |text: &'_ [u8], bound: usize| text.len().min(bound);
        let parts = [host, template, point, method, payload];
        let bytes: usize = parts.iter().zip(bounds).map(|(part, bound)| cut(part, bound)).sum();
        let HitReports { reports, texts } = &mut self.reports;
        if reports.len() >= HITS_MAX.min(reports.capacity()) || !texts.has_room(bytes) {
            self.lost += 1;
            return;
        }
        for ((place, part), bound) in report.texts.iter_mut().zip(parts).zip(bounds) {
            *place = texts.push(&part[..cut(part, bound)]);
        }
        self.recent[place(report.identity)] = reports.len() as u32;
        reports.push(report);
    }
}

impl Default for HitSampler {
    fn default() -> Self {
        Self::new()
    }
}

const fn place(identity: u64) -> usize {
    identity as usize % RECENT
}
