//! What the control plane asks the correlator, and what it answers: plain data, with the names that the pages show.

use crate::analytics::Reload;
use crate::analytics::alerts::AlertJson;
use serde::Serialize;
use std::collections::BTreeMap;

/// Questions that wait, and answers.
pub const QUESTIONS_MAX: usize = 64;
/// Most rows of an answer.
pub const ROWS_MAX: usize = 1000;

/// A question; the answer has its number.
#[derive(Clone, Debug)]
pub struct Question {
    /// Echoed.
    pub id: u64,
    /// What is asked.
    pub ask: Ask,
}

/// What may be asked.
#[derive(Clone, Debug)]
pub enum Ask {
    /// Alerts, newest first.
    Alerts(AlertFilter),
    /// Attacks, newest first.
    Attacks(AttackFilter),
    /// One attack with its samples.
    Attack(u64),
    /// What the correlator counts of itself.
    Stats,
    /// How the clocks of nodes go.
    Clocks,
    /// To go on with other settings; answered with the counters.
    Reload(Reload),
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// Number of the question.
    pub id: u64,
    /// What is answered.
    pub reply: Reply,
}

/// What is answered to the question of the same name.
#[derive(Debug)]
pub enum Reply {
    /// Alerts.
    Alerts(Vec<AlertView>),
    /// Attacks.
    Attacks(Vec<AttackView>),
    /// The attack, if it is known.
    Attack(Option<Box<AttackDetail>>),
    /// Counters.
    Stats(CorrelatorStats),
    /// Of each node that is known, the newest: arrival less sending, µs.
    Clocks(Vec<([u8; 16], i64)>),
}

/// Which alerts: all that fit everything given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AlertFilter {
    /// Name of the detector.
    pub detector: Option<String>,
    /// Key of the source, [`postanalytics_protocol::Source::key`]; those of a whole IPv6 /48 fit every source in it.
    pub source: Option<u64>,
    /// Application id.
    pub application: Option<i32>,
    /// Host, as it was.
    pub host: Option<Vec<u8>>,
    /// Fired at or after this time, Unix µs.
    pub since_us: Option<u64>,
    /// Fired before this time, Unix µs.
    pub until_us: Option<u64>,
    /// Most rows.
    pub limit: usize,
}

/// Which attacks: all that fit everything given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AttackFilter {
    /// Type of the hits, or name of the detector.
    pub attack_type: Option<String>,
    /// Key of a source that took part. Beyond 32 sources of an attack they are known by fingerprints, of which the oldest yield;
    /// behaviour of a whole IPv6 /48 fits every source in it. Attacks on a user have no sources.
    pub source: Option<u64>,
    /// Application id.
    pub application: Option<i32>,
    /// Host, as it was.
    pub host: Option<Vec<u8>>,
    /// Last hit at or after this time, Unix µs.
    pub since_us: Option<u64>,
    /// First hit before this time, Unix µs.
    pub until_us: Option<u64>,
    /// Most rows.
    pub limit: usize,
}

/// An alert as shown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AlertView {
    /// The object of the page of definitions.
    #[serde(flatten)]
    pub alert: AlertJson,
    /// `count`, `distinct` and `last` do not change any more.
    #[serde(rename = "final")]
    pub is_final: bool,
}

/// An attack as shown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct AttackView {
    pub id: String,
    /// `hits` or `behaviour`.
    pub kind: &'static str,
    /// Type of the hits, or name of the detector.
    #[serde(rename = "type")]
    pub attack_type: String,
    /// `null`: all together.
    pub application: Option<i32>,
    pub host: String,
    /// Template of the path; of behaviour the endpoint, if its scope has one.
    pub template: String,
    /// Where the payloads sat; empty for behaviour.
    pub point: String,
    /// Whom it is about, only for behaviour.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    pub first: String,
    pub last: String,
    /// Hits; for behaviour what its alerts counted.
    pub count: u64,
    pub blocked: u64,
    /// Hits by status of the answer.
    pub statuses: BTreeMap<u16, u64>,
    /// The sources with most hits, most first.
    pub sources: Vec<AttackSource>,
    /// Different sources: exact while few, else an estimate.
    pub distinct_sources: u64,
    /// Different payloads: exact while few, else an estimate.
    pub distinct_payloads: u64,
    /// Hits kept whole; kept and suppressed are all.
    pub kept: u64,
    pub suppressed: u64,
    /// No hit can join it any more.
    pub closed: bool,
}

/// A source of an attack.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct AttackSource {
    /// Address or network.
    pub source: String,
    /// Hits, at most this many.
    pub count: u64,
    /// It may be less by this.
    pub error: u64,
}

/// An attack with its samples.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct AttackDetail {
    /// The attack.
    #[serde(flatten)]
    pub attack: AttackView,
    /// Up to 16 of its hits, by the smallest hash: independent of order.
    pub samples: Vec<Sample>,
}

/// A hit that stands for others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Sample {
    /// By which `/requests/{id}` finds it while it is stored.
    pub request_id: String,
    pub time: String,
    pub source: String,
    pub method: String,
    pub status: u16,
    pub blocked: bool,
    /// The payload, cut, as text in which unprintable bytes are escaped.
    pub payload: String,
}

/// What the correlator counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct CorrelatorStats {
    pub alerts_kept: u64,
    pub alerts_forgotten: u64,
    /// Reports of alerts of users that found no room.
    pub user_alerts_lost: u64,
    pub user_alerts_raised: u64,
    pub user_brute_force_alerts: u64,
    pub user_many_sources_alerts: u64,
    pub user_keys_live: u64,
    pub user_keys_max: u64,
    pub user_keys_evicted: u64,
    pub user_keys_evicted_hot: u64,
    /// Keys of users, two of each, at whom was guessed once, forgotten before the second time.
    pub user_keys_overwritten: u64,
    pub attacks_live: u64,
    pub attacks_forgotten: u64,
    pub attacks_cut_short: u64,
    /// Fingerprints of sources beyond 32 of an attack that yielded to newer ones. A source may be counted several times, and its attack
    /// be forgotten itself.
    pub attack_sources_forgotten: u64,
    pub events_written: u64,
    /// Lines for the events file that were dropped, because the disk did not keep up.
    pub events_lost: u64,
}
