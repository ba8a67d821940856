//! Records that say what cannot be, or what is not known: analysed as far as it makes sense, and counted here.

use super::Timing;
use postanalytics_protocol::RecordView;
use postanalytics_protocol::schema::v1::{AttackType, Method, TAG_METHOD};

/// Longest path that is shown whole, bytes.
const PATH_BYTES_MAX: usize = 2048;

/// Records by what is odd about them; one may be counted under several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Odd {
    /// They happened after they were sent, over a day before, or in a time that no calendar has: the nearest that can be is taken.
    pub times: u64,
    /// Their method is none that the schema knows: it is told apart by its text, or not at all.
    pub methods: u64,
    /// They carry a hit of a type that the schema does not know.
    pub hit_types: u64,
    /// Their path is longer than is shown.
    pub paths: u64,
}

impl Odd {
    /// Looks at a record.
    #[inline]
    pub fn count(&mut self, record: &RecordView<'_>, timing: Timing) {
        self.times += u64::from(timing.is_impossible(record.event_us()));
        self.paths += u64::from(record.path().len() > PATH_BYTES_MAX);
        if Method::from_wire(record.method()).is_none() {
            self.methods += u64::from(has_method(record));
        }
        if record.hit_count() > 0 {
            let is_unknown = record.hits().any(|hit| AttackType::from_wire(hit.attack_type).is_none());
            self.hit_types += u64::from(is_unknown);
        }
    }

    /// Those of another shard, too.
    pub const fn add(&mut self, other: Self) {
        self.times += other.times;
        self.methods += other.methods;
        self.hit_types += other.hit_types;
        self.paths += other.paths;
    }
}

/// What is no request at all has no method, and that is not odd.
fn has_method(record: &RecordView<'_>) -> bool {
    record.method() != 0 || record.extensions().any(|extension| extension.tag == TAG_METHOD && !extension.value.is_empty())
}
