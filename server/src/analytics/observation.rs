//! What detectors need of a record: template, object id, fingerprints, and what kind of request it was. What only few of them
//! need of few records is worked out when they ask, once: how often they ask is up to who sent the record. Borrows from the record and from the turn's scratch memory.

use super::Timing;
use super::fingerprint::Fingerprints;
use super::memo::Memo;
use super::path;
use super::settings::{Settings, ends_with_ignoring_case};
use bumpalo::Bump;
use postanalytics_protocol::schema::v1::{
    AttackType, FLAG_AUTH_FAILED, FLAG_AUTH_SUCCEEDED, FLAG_BLOCKED, FLAG_CREDENTIALS, FLAG_DENYLIST, FLAG_GRAYLIST, Method,
    TAG_METHOD,
};
use postanalytics_protocol::{RecordView, Source};
use std::cell::Cell;

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

/// What a path is to detectors, whoever asks for it: the same for the same path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// Fingerprint of its template.
    pub template_fingerprint: u64,
    /// [`STATIC`] and so on.
    pub marks: u8,
}

/// The path is one of a file that does not change.
pub const STATIC: u8 = 1;
/// The path says nothing if it is not there.
pub const WEIGHTLESS: u8 = 1 << 1;
/// The path is that of a login endpoint.
pub const LOGIN: u8 = 1 << 2;
/// It ends in `/wp-login.php`.
pub const WP_LOGIN: u8 = 1 << 3;
/// It ends in `/oauth/token`.
pub const TOKEN: u8 = 1 << 4;
/// It has an object id.
const OBJECT: u8 = 1 << 5;
/// That is a number.
const NUMBER: u8 = 1 << 6;

/// Paths that were seen before.
#[derive(Debug)]
pub struct Paths {
    /// Their marks, and {template}.
    targets: Memo<2>,
    /// {object, its number, 0} of those that have one.
    objects: Memo<4>,
}

impl Paths {
    /// Room for about `entries` paths, of which some have objects.
    pub fn new(entries: usize) -> Self {
        Self { targets: Memo::new(entries), objects: Memo::new(entries / 8) }
    }

    /// Brings the place of a path into the cache.
    #[inline]
    pub fn prefetch(&self, path_fingerprint: u64) {
        self.targets.prefetch(path_fingerprint);
    }

    /// Forgets all: settings changed that say what a path is.
    pub fn clear(&mut self) {
        self.targets.clear();
        self.objects.clear();
    }

    #[inline]
    fn find(&self, path_fingerprint: u64) -> Option<(Target, Option<Object>)> {
        let (marks, &[_, template_fingerprint]) = self.targets.find(path_fingerprint)?;
        let target = Target { template_fingerprint, marks };
        if marks & OBJECT == 0 {
            return Some((target, None));
        }
        let (_, &[_, fingerprint, number, _]) = self.objects.find(path_fingerprint)?;
        Some((target, Some(Object { fingerprint, number: (marks & NUMBER != 0).then_some(number) })))
    }

    fn put(&mut self, path_fingerprint: u64, target: Target, object: Option<Object>) {
        let of_object = object.map_or(0, |object| OBJECT | if object.number.is_some() { NUMBER } else { 0 });
        if self.targets.find(path_fingerprint).is_none() {
            self.targets.put(path_fingerprint, target.marks | of_object, [0, target.template_fingerprint]);
        }
        if let Some(Object { fingerprint, number }) = object {
            self.objects.put(path_fingerprint, 0, [0, fingerprint, number.unwrap_or(0), 0]);
        }
    }
}

impl Target {
    fn of(path: &[u8], template: &[u8], settings: &Settings, prints: &Fingerprints) -> Self {
        let marks = [
            (STATIC, path::is_static(path)),
            (WEIGHTLESS, path::is_weightless(path, &settings.weightless_paths)),
            (LOGIN, settings.is_login(path)),
            (WP_LOGIN, ends_with_ignoring_case(path, b"/wp-login.php")),
            (TOKEN, ends_with_ignoring_case(path, b"/oauth/token")),
        ];
        let marks = marks.iter().fold(0, |marks, &(mark, is_set)| marks | if is_set { mark } else { 0 });
        Self { template_fingerprint: prints.bytes(template), marks }
    }

    /// Whether it has a mark, or one of several.
    #[inline]
    pub const fn is(self, mark: u8) -> bool {
        self.marks & mark != 0
    }
}

/// The object id of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Object {
    /// Its fingerprint.
    pub fingerprint: u64,
    /// As a number, if it is one.
    pub number: Option<u64>,
}

/// Path and query, normalised.
type Address<'a> = (&'a [u8], &'a [u8]);
/// The template of a path, and its object id.
type Template<'a> = (&'a [u8], Option<&'a [u8]>);

/// What a path is, and what came of it on the way, if it had to be worked out.
type WorkedOut<'a> = (Target, Option<Object>, Option<Address<'a>>, Option<Template<'a>>);

/// See the module.
#[derive(Clone, Debug)]
pub struct Observation<'a> {
    record: RecordView<'a>,
    /// Position of the record in the input.
    pub order: u64,
    /// When it happened, Unix µs; live, freed of the node's clock error.
    pub time_us: u64,
    /// Who.
    pub source: Source,
    /// The address field as text, if it is no address.
    pub source_text: &'a [u8],
    /// Application id, −1 for none.
    pub application: i32,
    /// Status of the answer, 0 if none.
    pub status: u16,
    /// The method's text, empty if it was no request.
    pub method: &'a [u8],
    /// Its method is GET or HEAD.
    pub is_fetch: bool,
    /// The path's.
    pub target: Target,
    /// The last id of the path.
    pub object: Option<Object>,
    /// The request's id.
    pub request_id: [u64; 2],
    /// A filter blocked it, or its source was listed: its status is the filter's doing.
    pub is_listed: bool,
    /// It carries hits.
    pub has_hits: bool,
    /// One of them is of a type that probing counts.
    pub is_probe: bool,
    /// The user agent names an attack tool.
    pub is_attack_tool: bool,
    /// How the attempt to log in ended, if it is one and what is remembered was asked; see [`Self::outcome`].
    pub attempt: Option<Outcome>,
    /// Of source and application.
    pub source_fingerprint: u64,
    /// Of the host.
    pub host_fingerprint: u64,
    /// Of source, application and host.
    pub here_fingerprint: u64,
    /// Of path and user agent with the application, for the counters of all requests.
    pub summary_fingerprints: [u64; 2],
    credentials: bool,
    said: Outcome,
    /// Path and query, normalised, once they were asked for.
    address: Cell<Option<Address<'a>>>,
    /// Path with ids replaced, and the last id, once they were asked for.
    template: Cell<Option<Template<'a>>>,
}

impl<'a> Observation<'a> {
    /// Works a record out. `known` are the paths that were seen before, if any are kept. What else is remembered ([`Self::attempt`],
    /// [`Self::is_attack_tool`]) is left open.
    // Inlined, so that it is written where it is to lie.
    #[inline(always)]
    pub fn of(
        record: &RecordView<'a>,
        (timing, order, path_fingerprint): (Timing, u64, u64),
        settings: &Settings,
        prints: &Fingerprints,
        known: Option<&mut Paths>,
        scratch: &'a Bump,
    ) -> Self {
        let flags = record.flags();
        let known_method = Method::from_wire(record.method());
        let mut is_fetch = matches!(known_method, Some(Method::Get | Method::Head));
        let (mut method, mut source_text) = (known_method.map_or(&b""[..], |known| known.name().as_bytes()), &b""[..]);
        if record.extension_count() > 0 {
            for extension in record.extensions() {
                match extension.tag {
                    TAG_METHOD if method.is_empty() => {
                        method = extension.value;
                        is_fetch = matches!(method, b"GET" | b"HEAD");
                    }
                    TAG_SOURCE_TEXT => source_text = extension.value,
                    _ => {}
                }
            }
        }
        let (source, application) = (record.source(), record.application());
        let id = u128::from_be_bytes(record.request_id());
        let source_fingerprint = prints.pair(source.key(), application as u32 as u64);
        let host_fingerprint = prints.bytes(record.host());
        // The whole line of what is no request is another path than the same text in a request.
        let known = known.filter(|_| !method.is_empty());
        let found = known.as_ref().and_then(|known| known.find(path_fingerprint));
        let (target, object, address, template) = match found {
            Some((target, object)) => (target, object, None, None),
            None => work_out((record, method), path_fingerprint, settings, prints, known, scratch),
        };
        Self {
            record: *record,
            order,
            time_us: timing.event_time_us(record.event_us()),
            source,
            source_text,
            application,
            status: record.status(),
            method,
            is_fetch,
            target,
            object,
            request_id: [(id >> 64) as u64, id as u64],
            is_listed: flags & (FLAG_BLOCKED | FLAG_DENYLIST | FLAG_GRAYLIST) != 0,
            has_hits: record.hit_count() > 0,
            is_probe: record.hit_count() > 0 && record.hits().any(|hit| is_probe(hit.attack_type)),
            is_attack_tool: false,
            attempt: None,
            source_fingerprint,
            host_fingerprint,
            here_fingerprint: prints.pair(source_fingerprint, host_fingerprint),
            summary_fingerprints: [0; 2],
            credentials: flags & FLAG_CREDENTIALS != 0,
            said: match flags & (FLAG_AUTH_FAILED | FLAG_AUTH_SUCCEEDED) {
                FLAG_AUTH_FAILED => Outcome::Failed,
                FLAG_AUTH_SUCCEEDED => Outcome::Succeeded,
                _ => Outcome::Unknown,
            },
            address: Cell::new(address),
            template: Cell::new(template),
        }
    }

    /// The record.
    pub const fn record(&self) -> &RecordView<'a> {
        &self.record
    }

    /// Host, empty if not known.
    pub fn host(&self) -> &'a [u8] {
        self.record.host()
    }

    /// Hash of the session, 0 if none.
    pub fn session(&self) -> u64 {
        self.record.session_hash()
    }

    /// Hash of the user, 0 if none.
    pub fn user(&self) -> u64 {
        self.record.user_hash()
    }

    /// Path and query, normalised. What is no request has no path to normalise: the whole line stands for it.
    pub fn path_and_query(&self, scratch: &'a Bump) -> (&'a [u8], &'a [u8]) {
        if let Some(known) = self.address.get() {
            return known;
        }
        let address = address(&self.record, self.method, scratch);
        self.address.set(Some(address));
        address
    }

    /// Path with ids replaced.
    pub fn template(&self, scratch: &'a Bump) -> &'a [u8] {
        self.template_and_id(scratch).0
    }

    fn template_and_id(&self, scratch: &'a Bump) -> (&'a [u8], Option<&'a [u8]>) {
        if let Some(known) = self.template.get() {
            return known;
        }
        let template = path::template(self.path_and_query(scratch).0, scratch);
        self.template.set(Some(template));
        template
    }

    /// Of method, host and template.
    pub fn endpoint_fingerprint(&self, prints: &Fingerprints) -> u64 {
        prints.pair(prints.pair(prints.bytes(self.method), self.host_fingerprint), self.target.template_fingerprint)
    }

    /// Of path and query.
    pub fn address_fingerprint(&self, prints: &Fingerprints, scratch: &'a Bump) -> u64 {
        let (path, query) = self.path_and_query(scratch);
        prints.pair(prints.bytes(path), prints.bytes(query))
    }

    /// Whether this is an attempt to log in.
    pub fn is_attempt(&self) -> bool {
        let is_login = self.target.is(LOGIN) && matches!(self.method, b"POST" | b"PUT");
        is_login || self.status == 401 && self.credentials
    }

    /// How the attempt ended; `was_refused`: this endpoint refused this source within the last hour.
    pub fn outcome(&self, was_refused: bool) -> Outcome {
        if self.said != Outcome::Unknown {
            return self.said;
        }
        match self.status {
            200 if self.target.is(WP_LOGIN) => Outcome::Failed,
            302 if self.target.is(WP_LOGIN) => Outcome::Succeeded,
            200 if self.target.is(TOKEN) => Outcome::Succeeded,
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

/// Path and query, normalised; see [`Observation::path_and_query`].
fn address<'a>(record: &RecordView<'a>, method: &[u8], scratch: &'a Bump) -> Address<'a> {
    if method.is_empty() {
        return (record.path(), record.query());
    }
    let (path, query) = path::normalise(record.path(), scratch);
    (path, if record.query().is_empty() { query } else { record.query() })
}

/// What a path is that was not seen before, and what came of it on the way.
#[inline(never)]
fn work_out<'a>(
    (record, method): (&RecordView<'a>, &[u8]),
    path_fingerprint: u64,
    settings: &Settings,
    prints: &Fingerprints,
    known: Option<&mut Paths>,
    scratch: &'a Bump,
) -> WorkedOut<'a> {
    let address = address(record, method, scratch);
    let template = path::template(address.0, scratch);
    let target = Target::of(address.0, template.0, settings, prints);
    let object = template.1.map(|id| Object { fingerprint: prints.bytes(id), number: path::number_of(id) });
    if let Some(known) = known {
        known.put(path_fingerprint, target, object);
    }
    (target, object, Some(address), Some(template))
}

impl Timing {
    /// Whether an event cannot have happened when its record says: [`Self::event_time_us`] is then the nearest time that can be.
    pub const fn is_impossible(self, event_us: u64) -> bool {
        if self.is_replay {
            return event_us == 0 || event_us > TIME_US_MAX;
        }
        event_us > self.sent_us || self.sent_us - event_us > DAY_US
    }

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
