//! What detectors need of a record, worked out once: normalised path, template, object id, fingerprints, and what kind of
//! request it was. Borrows from the record and from the turn's scratch memory.

use super::Timing;
use super::fingerprint::Fingerprints;
use super::path;
use super::settings::{Settings, ends_with_ignoring_case};
use bumpalo::Bump;
use postanalytics_protocol::schema::v1::{
    AttackType, FLAG_AUTH_FAILED, FLAG_AUTH_SUCCEEDED, FLAG_BLOCKED, FLAG_CREDENTIALS, FLAG_DENYLIST, FLAG_GRAYLIST, Method,
    TAG_METHOD,
};
use postanalytics_protocol::{RecordView, Source};

/// Extension of records that a replay makes: the text of an address field that is no address. Filters do not send it.
pub const TAG_SOURCE_TEXT: u16 = 0xff01;

/// The largest time that is believed, year 2255: sums with windows stay far from overflow.
const TIME_US_MAX: u64 = 9_000_000_000_000_000;
const DAY_US: u64 = 86_400_000_000;

/// How an attempt to log in ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It did not.
    Failed,
    /// It did.
    Succeeded,
    /// Nobody said.
    Unknown,
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Observation<'a> {
    /// When it happened, Unix µs; live, freed of the node's clock error.
    pub time_us: u64,
    /// Who.
    pub source: Source,
    /// The address field as text, if it is no address.
    pub source_text: &'a [u8],
    /// Application id, −1 for none.
    pub application: i32,
    /// Hash of the session, 0 if none.
    pub session: u64,
    /// Hash of the user, 0 if none.
    pub user: u64,
    /// Status of the answer, 0 if none.
    pub status: u16,
    /// The method's text, empty if it was no request.
    pub method: &'a [u8],
    /// Host, empty if not known.
    pub host: &'a [u8],
    /// Path, normalised.
    pub path: &'a [u8],
    /// Path with ids replaced.
    pub template: &'a [u8],
    /// The last id.
    pub object: Option<&'a [u8]>,
    /// The request's id.
    pub request_id: [u64; 2],
    /// A filter blocked it, or its source was listed: its status is the filter's doing.
    pub is_listed: bool,
    /// It carries hits.
    pub has_hits: bool,
    /// One of them is of a type that probing counts.
    pub is_probe: bool,
    /// The path is one of a file that does not change.
    pub is_static: bool,
    /// The path says nothing if it is not there.
    pub is_weightless: bool,
    /// The user agent names an attack tool.
    pub is_attack_tool: bool,
    /// How the attempt to log in ended, if it is one and what is remembered was asked; see [`Self::outcome`].
    pub attempt: Option<Outcome>,
    /// Of source and application.
    pub source_fingerprint: u64,
    /// Of the host.
    pub host_fingerprint: u64,
    /// Of the template.
    pub template_fingerprint: u64,
    /// Of method, host and template.
    pub endpoint_fingerprint: u64,
    /// Of the object id.
    pub object_fingerprint: u64,
    /// Of path and query.
    pub address_fingerprint: u64,
    credentials: bool,
    said: Outcome,
}

impl<'a> Observation<'a> {
    /// Works a record out. What is remembered of earlier ones ([`Self::attempt`], [`Self::is_attack_tool`]) is left open.
    pub fn of(record: &RecordView<'a>, timing: Timing, settings: &Settings, prints: &Fingerprints, scratch: &'a Bump) -> Self {
        let flags = record.flags();
        let (mut method, mut source_text) =
            (Method::from_wire(record.method()).map_or(&b""[..], |known| known.name().as_bytes()), &b""[..]);
        for extension in record.extensions() {
            match extension.tag {
                TAG_METHOD if method.is_empty() => method = extension.value,
                TAG_SOURCE_TEXT => source_text = extension.value,
                _ => {}
            }
        }
        // What is no request has no path to normalise: the whole line stands for it.
        let (path, query) = if method.is_empty() { (record.path(), &b""[..]) } else { path::normalise(record.path(), scratch) };
        let query = if record.query().is_empty() { query } else { record.query() };
        let (template, object) = path::template(path, scratch);
        let is_probe = record.hits().any(|hit| is_probe(hit.attack_type));
        let (source, application) = (record.source(), record.application());
        let host_fingerprint = prints.bytes(record.host());
        let template_fingerprint = prints.bytes(template);
        let request_id = record.request_id();
        let half = |start: usize| u64::from_be_bytes(std::array::from_fn(|at| request_id[start + at]));
        Self {
            time_us: timing.event_time_us(record.event_us()),
            source,
            source_text,
            application,
            session: record.session_hash(),
            user: record.user_hash(),
            status: record.status(),
            method,
            host: record.host(),
            path,
            template,
            object,
            request_id: [half(0), half(8)],
            is_listed: flags & (FLAG_BLOCKED | FLAG_DENYLIST | FLAG_GRAYLIST) != 0,
            has_hits: record.hit_count() > 0,
            is_probe,
            is_static: path::is_static(path),
            is_weightless: path::is_weightless(path, &settings.weightless_paths),
            is_attack_tool: false,
            attempt: None,
            source_fingerprint: prints.pair(source.key(), application as u32 as u64),
            host_fingerprint,
            template_fingerprint,
            endpoint_fingerprint: prints.pair(prints.pair(prints.bytes(method), host_fingerprint), template_fingerprint),
            object_fingerprint: object.map_or(0, |object| prints.bytes(object)),
            address_fingerprint: if is_probe { prints.pair(prints.bytes(path), prints.bytes(query)) } else { 0 },
            credentials: flags & FLAG_CREDENTIALS != 0,
            said: match (flags & FLAG_AUTH_FAILED != 0, flags & FLAG_AUTH_SUCCEEDED != 0) {
                (true, false) => Outcome::Failed,
                (false, true) => Outcome::Succeeded,
                _ => Outcome::Unknown,
            },
        }
    }

    /// Whether this is an attempt to log in.
    pub fn is_attempt(&self, settings: &Settings) -> bool {
        let is_login = matches!(self.method, b"POST" | b"PUT") && settings.is_login(self.path);
        is_login || self.status == 401 && self.credentials
    }

    /// How the attempt ended; `was_refused`: this endpoint refused this source within the last hour.
    pub fn outcome(&self, was_refused: bool) -> Outcome {
        if self.said != Outcome::Unknown {
            return self.said;
        }
        match self.status {
            200 if ends_with_ignoring_case(self.path, b"/wp-login.php") => Outcome::Failed,
            302 if ends_with_ignoring_case(self.path, b"/wp-login.php") => Outcome::Succeeded,
            200 if ends_with_ignoring_case(self.path, b"/oauth/token") => Outcome::Succeeded,
            400 | 401 | 403 | 422 => Outcome::Failed,
            1..=399 if was_refused => Outcome::Succeeded,
            _ => Outcome::Unknown,
        }
    }

    /// The number by which networks are told apart: the /24, or the /48, or the text of what is no address.
    pub const fn network(&self) -> u64 {
        if !self.source_text.is_empty() {
            return self.source.key();
        }
        let host_bits = if is_ipv4(self.source) { 8 } else { 16 };
        self.source.key() >> host_bits << host_bits
    }

    /// The IPv6 /48 of the source; `None` for IPv4.
    pub const fn ipv6_network(&self) -> Option<u64> {
        if is_ipv4(self.source) { None } else { Some(self.source.key() >> 16 << 16) }
    }
}

impl Timing {
    /// When an event happened: by its own word in a replay, else by how long before it was sent the node says it was.
    pub const fn event_time_us(self, event_us: u64) -> u64 {
        if self.is_replay {
            return if event_us < TIME_US_MAX { event_us } else { TIME_US_MAX };
        }
        let age_us = self.sent_us.saturating_sub(event_us);
        self.arrival_us.saturating_sub(if age_us < DAY_US { age_us } else { DAY_US })
    }
}

const fn is_ipv4(source: Source) -> bool {
    // What `Source` puts above IPv4 addresses: no IPv6 /64 of a host begins so.
    source.key() >> 32 == 0xffff_ffff
}

fn is_probe(attack_type: u16) -> bool {
    use AttackType::{Infoleak, Ptrav, Rce, Scanner, Sqli, Xss};
    matches!(AttackType::from_wire(attack_type), Some(Ptrav | Sqli | Xss | Rce | Infoleak | Scanner))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_clock_of_a_node_moves_no_event() {
        let live = |sent_us, event_us| Timing { arrival_us: 10 * DAY_US, sent_us, is_replay: false }.event_time_us(event_us);
        // A node a year behind, a backlog of an hour, an event after its sending, one of the year 0.
        assert_eq!(live(1000, 400), 10 * DAY_US - 600);
        assert_eq!(live(20 * DAY_US, 20 * DAY_US - 3600), 10 * DAY_US - 3600);
        assert_eq!(live(1000, 2000), 10 * DAY_US);
        assert_eq!(live(9 * DAY_US, 0), 9 * DAY_US);
        let replayed = Timing { arrival_us: 10 * DAY_US, sent_us: 5, is_replay: true };
        assert_eq!((replayed.event_time_us(3), replayed.event_time_us(u64::MAX)), (3, TIME_US_MAX));
    }
}
