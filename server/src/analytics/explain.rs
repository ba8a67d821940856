//! What the detectors make of a record that was seen before: which key it belongs to, how near that is to firing now, and why
//! the record did not count. Changes nothing that is known.

use super::detectors::{COUNTED, Detector, KeyKind, SUCCEEDED};
use super::observation::{Observation, Outcome, STATIC, WEIGHTLESS};
use super::{ALL_APPLICATIONS, Analytics, REFUSALS, Timing, network_slot};
use bumpalo::Bump;
use postanalytics_protocol::RecordView;

/// Why a record does not count for a detector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WhyNot {
    /// The detector does not run for it.
    Off,
    /// It is none of the requests that the detector is about.
    OtherBusiness,
    /// It carries a hit.
    CarriesAHit,
    /// The filter blocked it, or its source was listed: its status is the filter's doing.
    FilterActed,
    /// The path is one of a file that does not change.
    Static,
    /// The path says nothing if it is not there.
    Weightless,
    /// The status says nothing.
    StatusSaysNothing,
    /// It was no failure.
    NoFailure,
    /// It is known to have succeeded.
    Succeeded,
    /// Users are counted, and it names none.
    NoUser,
    /// The analysis of its batch failed.
    Quarantined,
    /// Its analysis did not fail, but to say now what detectors make of it did.
    ExplainFailed,
}

impl WhyNot {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::OtherBusiness => "other_business",
            Self::CarriesAHit => "carries_a_hit",
            Self::FilterActed => "filter_acted",
            Self::Static => "static",
            Self::Weightless => "weightless",
            Self::StatusSaysNothing => "status_says_nothing",
            Self::NoFailure => "no_failure",
            Self::Succeeded => "succeeded",
            Self::NoUser => "no_user",
            Self::Quarantined => "quarantined",
            Self::ExplainFailed => "explain_failed",
        }
    }
}

/// A record to a detector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Fingerprint of the key.
    pub key: u64,
    /// When the detector takes it to have happened.
    pub time_us: u64,
    /// Until when the key is on hold, 0 if it is not.
    pub hold_until_us: u64,
    /// How near the key is to firing, in thousandths; `None`: the detector does not run, or the correlator knows, not the shard.
    pub progress: Option<i64>,
    /// Why it does not count.
    pub why_not: Option<WhyNot>,
    /// The detector counts all applications together.
    pub is_across_applications: bool,
}

/// A record to all of them.
pub type Standings = [Standing; Detector::ALL.len()];

/// A record whose analysis panicked: no detector counts it, and which keys it would belong to is not asked, for that is much of
/// the code that panicked.
pub const QUARANTINED: Standings = without_keys(WhyNot::Quarantined);
/// A record that detectors may have counted: to ask which keys it belongs to panicked.
pub const EXPLAIN_FAILED: Standings = without_keys(WhyNot::ExplainFailed);

const fn without_keys(why_not: WhyNot) -> Standings {
    let standing =
        Standing { key: 0, time_us: 0, hold_until_us: 0, progress: None, why_not: Some(why_not), is_across_applications: true };
    [standing; Detector::ALL.len()]
}

impl Standing {
    /// Whether it is not known which key the record belongs to.
    pub const fn has_no_key(&self) -> bool {
        matches!(self.why_not, Some(WhyNot::Quarantined | WhyNot::ExplainFailed))
    }
}

impl Analytics {
    /// What each detector makes of a record; levels are those at `now_us`.
    pub fn explain<'a>(&self, record: &RecordView<'a>, timing: Timing, now_us: u64, scratch: &'a Bump) -> Standings {
        #[cfg(test)]
        assert_ne!(self.panic_at, Some(record.request_id()), "a test asked for this");
        let mut observation = Observation::of(record, (timing, 0, 0), &self.prints);
        observation.look_up(&self.settings, &self.prints, None, scratch);
        observation.is_attack_tool = self.settings.is_attack_tool(record.user_agent());
        if observation.is_attempt() {
            observation.attempt = Some(observation.outcome(self.was_refused(&observation)));
        }
        Detector::ALL.map(|detector| self.standing(detector, &observation, now_us, scratch))
    }

    fn standing<'a>(&self, detector: Detector, observation: &Observation<'a>, now_us: u64, scratch: &'a Bump) -> Standing {
        let plan = detector.plan(self.rank(detector, observation, scratch));
        let numbers = self.settings.numbers(plan);
        let is_across_applications = detector.is_across_applications(numbers);
        let application = if is_across_applications { ALL_APPLICATIONS } else { observation.application };
        let mut key = self.key(detector, plan, observation, self.source_of(observation.source.key(), application));
        if let Some(network) = observation.ipv6_network()
            && self.engine.table.is_network_full(network_slot(network, &self.prints))
            && self.engine.table.find(key).is_none()
        {
            key = self.key(detector, plan, observation, self.network_of(network, application));
        }
        let is_enabled = detector.is_enabled(numbers);
        let why_not = match why_not(detector, observation) {
            Some(WhyNot::OtherBusiness) if is_enabled => Some(WhyNot::OtherBusiness),
            why_not => {
                if is_enabled && self.room.keys > 0 {
                    why_not
                } else {
                    Some(WhyNot::Off)
                }
            }
        };
        let is_here = why_not != Some(WhyNot::Off) && detector.key_kind() != KeyKind::User;
        Standing {
            key,
            time_us: observation.time_us,
            hold_until_us: self.engine.hold_until_us(key).filter(|until_us| *until_us > now_us).unwrap_or(0),
            progress: is_here.then(|| self.engine.progress_of(key, now_us)),
            why_not,
            is_across_applications,
        }
    }

    /// Whether an endpoint is remembered to have refused this source.
    fn was_refused(&self, observation: &Observation<'_>) -> bool {
        let key = self.prints.pair(observation.source_fingerprint, observation.endpoint_fingerprint(&self.prints)).max(1);
        let ways = &self.refusals[(key >> 32) as usize % REFUSALS];
        ways.iter().any(|way| way.0 == key && observation.time_us < way.1.saturating_add(self.settings.refusal_us))
    }
}

/// `None`: it counts.
fn why_not(detector: Detector, observation: &Observation<'_>) -> Option<WhyNot> {
    use Detector::{
        Bola, BruteForce, BruteForceAttempts, Crawl, CredentialStuffing, ForcedBrowsing, ForcedBrowsingCount, MultiPayload,
        Probing, Scanner, UserBruteForce, UserManySources,
    };
    let failure_only = |found: Option<Outcome>| (found != Some(Outcome::Failed)).then_some(WhyNot::NoFailure);
    let is_about = match detector {
        BruteForce | BruteForceAttempts | CredentialStuffing => observation.attempt.is_some(),
        UserBruteForce | UserManySources => observation.attempt.is_some() && observation.user() != 0,
        ForcedBrowsing | ForcedBrowsingCount => true,
        Bola => observation.object.is_some(),
        MultiPayload => observation.has_hits,
        Scanner => observation.is_attack_tool,
        Probing => observation.is_probe(),
        Crawl => observation.is_fetch,
    };
    let minds_hits = matches!(detector, BruteForce | BruteForceAttempts | ForcedBrowsing | ForcedBrowsingCount | Bola);
    let reads_status = !matches!(detector, Bola | MultiPayload | Scanner | Probing | Crawl);
    let minds_static = matches!(detector, ForcedBrowsingCount | Crawl);
    let minds_weight = matches!(detector, ForcedBrowsing | ForcedBrowsingCount);
    match detector {
        _ if !is_about => Some(WhyNot::OtherBusiness),
        _ if minds_hits && observation.has_hits => Some(WhyNot::CarriesAHit),
        _ if reads_status && observation.is_listed => Some(WhyNot::FilterActed),
        _ if minds_static && observation.target.is(STATIC) => Some(WhyNot::Static),
        _ if minds_weight && observation.target.is(WEIGHTLESS) => Some(WhyNot::Weightless),
        BruteForce | UserBruteForce | UserManySources => failure_only(observation.attempt),
        // They look at every attempt, but do not count each.
        BruteForceAttempts | CredentialStuffing => {
            let kind = detector.look(observation).map_or(0, |look| look.kind);
            let why_not = if kind & SUCCEEDED != 0 { WhyNot::Succeeded } else { WhyNot::NoUser };
            (kind & COUNTED == 0).then_some(why_not)
        }
        ForcedBrowsing => detector.look(observation).is_none().then_some(WhyNot::StatusSaysNothing),
        ForcedBrowsingCount => detector.look(observation).is_none().then_some(WhyNot::NoFailure),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analytics::{Room, settings::Settings};
    use crate::config::detection::DetectionConfig;
    use postanalytics_protocol::schema::v1::{FLAG_AUTH_FAILED, FLAG_AUTH_SUCCEEDED, FLAG_BLOCKED, Method, SCHEMA};
    use postanalytics_protocol::{BatchBuilder, Hit, RecordFields, ValidBatch};
    use std::sync::Arc;

    const TIMING: Timing = Timing { arrival_us: 1 << 50, sent_us: 1 << 50, is_replay: false };

    /// What the detectors make of a record, after it came `times` times.
    fn explained(config: &str, fields: &RecordFields<'_>, times: usize) -> Standings {
        explained_in(Room::default(), config, fields, times)
    }

    fn explained_in(room: Room, config: &str, fields: &RecordFields<'_>, times: usize) -> Standings {
        let config = DetectionConfig::parse(config).expect("it is right");
        let settings = Arc::new(Settings::new(&config).expect("built"));
        let mut analytics = Analytics::new(settings, room, 7);
        let mut builder = BatchBuilder::default();
        builder.push(fields, 1 << 20).expect("fits");
        let mut body = vec![0; builder.body_bytes()];
        builder.encode_body(&mut body);
        let batch = ValidBatch::parse(SCHEMA, 1, &body).expect("valid");
        let scratch = Bump::new();
        for _ in 0..times {
            analytics.observe(&batch, TIMING, &[], &scratch);
        }
        let before = analytics.engine.counters;
        let standings = analytics.explain(&batch.record(0).expect("one"), TIMING, TIMING.arrival_us, &scratch);
        assert_eq!(analytics.engine.counters, before, "explaining counts nothing");
        standings
    }

    fn request<'a>(path: &'a [u8], method: Method, status: u16) -> RecordFields<'a> {
        RecordFields { event_us: 1 << 50, path, method: method as u8, status, ..RecordFields::default() }
    }

    #[test]
    fn levels_are_those_of_the_key_and_holds_are_told() {
        let login = request(b"/login", Method::Post, 401);
        let of = |times| explained("", &login, times)[Detector::BruteForce as usize];
        assert_eq!((of(3).why_not, of(3).hold_until_us), (None, 0));
        assert!((500..=700).contains(&of(3).progress.expect("of a shard")), "{:?}", of(3));
        assert_eq!(of(6).hold_until_us, TIMING.arrival_us + 300_000_000);
    }

    #[test]
    fn a_detector_that_does_not_run_has_no_level() {
        let login = request(b"/login", Method::Post, 401);
        for (keys, config) in [(0, ""), (1 << 16, "detectors.brute_force.enabled = false")] {
            let standings = explained_in(Room { keys, ..Room::default() }, config, &login, 3);
            let standing = standings[Detector::BruteForce as usize];
            assert_eq!((standing.why_not, standing.progress), (Some(WhyNot::Off), None), "{keys} keys");
        }
        let standings = explained_in(Room { keys: 0, ..Room::default() }, "", &login, 3);
        assert_eq!(standings[Detector::Scanner as usize].why_not, Some(WhyNot::OtherBusiness), "it fills no page");
    }

    /// Levels in thousandths of the detector after these records, at the end.
    fn level_after(detector: Detector, records: &[RecordFields<'_>]) -> i64 {
        let mut analytics = Analytics::new(Arc::default(), Room::default(), 7);
        let mut builder = BatchBuilder::default();
        records.iter().for_each(|fields| {
            builder.push(fields, 1 << 20).expect("fits");
        });
        let mut body = vec![0; builder.body_bytes()];
        builder.encode_body(&mut body);
        let batch = ValidBatch::parse(SCHEMA, records.len() as u32, &body).expect("valid");
        let scratch = Bump::new();
        analytics.observe(&batch, TIMING, &[], &scratch);
        assert_eq!(analytics.engine.counters.fired[detector as usize], 0);
        let last = batch.record(records.len() - 1).expect("the last");
        let standings = analytics.explain(&last, TIMING, TIMING.arrival_us, &scratch);
        standings[detector as usize].progress.expect("of a shard")
    }

    #[test]
    fn levels_are_those_of_what_decides() {
        // Ids without order are no range, however many: the leaky rule is the nearer one. Of the last of them 3 are.
        let paths: Vec<String> = (0..70u64)
            .map(|n| if n < 67 { format!("/o/{}", n * n * 7919 % 1_000_003) } else { format!("/o/{}", 5000 + n) })
            .collect();
        let requests: Vec<_> = paths.iter().map(|path| request(path.as_bytes(), Method::Get, 200)).collect();
        assert_eq!(level_after(Detector::Bola, &requests), 70 * 1000 / 120);
        let steps: Vec<_> = requests[67..].to_vec();
        assert_eq!(level_after(Detector::Bola, &steps), 3 * 1000 / 30);
        // A known success empties the slower of the two rules of attempts: what came before counts for the other one only.
        let login = |status| request(b"/wp-login.php", Method::Post, status);
        let mut attempts = vec![login(200); 19];
        assert_eq!(level_after(Detector::BruteForceAttempts, &attempts), 950);
        attempts.push(login(302));
        assert_eq!(level_after(Detector::BruteForceAttempts, &attempts), 19 * 1000 / 30);
        // Nine users that failed once and then succeeded five times: a third of the failures that the rule asks for.
        let shared: Vec<_> = (0..54u64)
            .map(|n| RecordFields {
                event_us: (1 << 50) - (54 - n) * 11_000_000,
                user_hash: 1 + n / 6,
                flags: if n % 6 == 0 { FLAG_AUTH_FAILED } else { FLAG_AUTH_SUCCEEDED },
                ..request(b"/login", Method::Post, 200)
            })
            .collect();
        assert_eq!(level_after(Detector::CredentialStuffing, &shared), 900 / 3);
    }

    #[test]
    fn it_is_told_why_a_record_does_not_count() {
        let why = |config: &str, fields: &RecordFields<'_>, detector| explained(config, fields, 1)[detector as usize].why_not;
        let login = request(b"/login", Method::Post, 401);
        let hits = vec![Hit { attack_type: 1, severity: 1, rule_id: 1, point: b"p", payload: b"x" }];
        assert_eq!(why("", &login, Detector::BruteForce), None);
        assert_eq!(why("", &RecordFields { hits, ..login.clone() }, Detector::BruteForce), Some(WhyNot::CarriesAHit));
        assert_eq!(
            why("", &RecordFields { flags: FLAG_BLOCKED, ..login.clone() }, Detector::BruteForce),
            Some(WhyNot::FilterActed)
        );
        assert_eq!(why("detectors.brute_force.enabled = false", &login, Detector::BruteForce), Some(WhyNot::Off));
        assert_eq!(why("", &request(b"/login", Method::Post, 200), Detector::BruteForce), Some(WhyNot::NoFailure));
        assert_eq!(why("", &request(b"/x", Method::Get, 200), Detector::BruteForce), Some(WhyNot::OtherBusiness));
        let stuffing = Detector::CredentialStuffing;
        assert_eq!(why("", &login, stuffing), Some(WhyNot::NoUser));
        assert_eq!(why("", &RecordFields { user_hash: 5, ..login.clone() }, stuffing), None);
        let success = RecordFields { user_hash: 5, flags: FLAG_AUTH_SUCCEEDED, ..request(b"/login", Method::Post, 200) };
        assert_eq!(why("", &success, stuffing), Some(WhyNot::Succeeded));
        assert_eq!(why("", &success, Detector::BruteForceAttempts), Some(WhyNot::Succeeded));
        assert_eq!(why("", &request(b"/login", Method::Post, 200), Detector::BruteForceAttempts), None);
        assert_eq!(why("", &RecordFields { flags: FLAG_BLOCKED, ..success }, stuffing), Some(WhyNot::FilterActed));
        assert_eq!(why("", &request(b"/x.png", Method::Get, 404), Detector::Crawl), Some(WhyNot::Static));
        assert_eq!(why("", &request(b"/favicon.ico", Method::Get, 404), Detector::ForcedBrowsing), Some(WhyNot::Weightless));
        assert_eq!(why("", &request(b"/x", Method::Get, 302), Detector::ForcedBrowsing), Some(WhyNot::StatusSaysNothing));
    }
}
