//! What was found in one request.

use postanalytics_protocol::Hit;
use postanalytics_protocol::schema::v1::AttackType;
use std::time::Duration;

/// Most hits of one request; the rest adds nothing to what these tell. (The wire takes 64.)
pub(crate) const HITS_MAX: usize = 16;
/// Severity of a request that took too long.
const OVERLIMIT_SEVERITY: u8 = 50;
/// Longest payload sample and longest name of a point, bytes.
pub(crate) const SAMPLE_BYTES_MAX: usize = 256;

/// What was found in one request. Owned, for a node finds before it answers and tells after. Without hits it holds no memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Findings {
    /// At most 16, one for each pair of type and point, in the order in which they were found.
    pub found: Vec<FoundHit>,
    /// Inspection was given up because it took longer than the limit; then the last hit is of type `overlimit_res`.
    pub overlimit: bool,
    /// The request was not looked at in whole: too many points, too deeply nested, too long, or a body that was cut.
    pub incomplete: bool,
    /// Time that it took.
    pub elapsed: Duration,
}

impl Findings {
    /// The hits as a record takes them. Masked, see [`crate::Masker`].
    pub fn hits(&self) -> Vec<Hit<'_>> {
        self.found.iter().map(FoundHit::as_hit).collect()
    }

    /// Notes that inspection took too long.
    pub(crate) fn set_overlimit(&mut self) {
        self.overlimit = true;
        self.found.truncate(HITS_MAX - 1);
        self.found.push(FoundHit {
            attack_type: AttackType::OverlimitRes,
            severity: OVERLIMIT_SEVERITY,
            rule_id: 0,
            point: b"request".to_vec(),
            payload: Vec::new(),
        });
    }

    /// `detection_us` of a record.
    pub fn elapsed_us(&self) -> u32 {
        u32::try_from(self.elapsed.as_micros()).unwrap_or(u32::MAX)
    }
}

/// One hit. Everything in it may leave the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundHit {
    /// What kind of attack.
    pub attack_type: AttackType,
    /// 0 (information) to 255 (worst).
    pub severity: u8,
    /// Number of the rule that matched, 0 for `overlimit_res`.
    pub rule_id: u32,
    /// Where the payload sat, such as `uri`, `get_id`, `header_user-agent`, `post_json_user_name`; at most 256 bytes.
    pub point: Vec<u8>,
    /// The payload, decoded, with a little of what stands around it; at most 256 bytes.
    pub payload: Vec<u8>,
}

impl FoundHit {
    /// The hit as a record takes it.
    pub fn as_hit(&self) -> Hit<'_> {
        Hit {
            attack_type: self.attack_type as u16,
            severity: self.severity,
            rule_id: self.rule_id,
            point: &self.point,
            payload: &self.payload,
        }
    }
}
