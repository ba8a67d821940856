//! What detectors need of a record: template, object id, fingerprints, and what kind of request it was. What only few of them
//! need of few records is worked out when they ask, once: how often they ask is up to who sent the record. Borrows from the record and from the batch's scratch memory.

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
    fn of(path: &[u8], template_fingerprint: u64, settings: &Settings) -> Self {
        let is_login = settings.is_login(path);
        let marks = [
            (STATIC, path::is_static(path)),
            (WEIGHTLESS, path::is_weightless(path, &settings.weightless_paths)),
            (LOGIN, is_login),
            // Both are among the log-ins.
            (WP_LOGIN, is_login && ends_with_ignoring_case(path, b"/wp-login.php")),
            (TOKEN, is_login && ends_with_ignoring_case(path, b"/oauth/token")),
        ];
        let marks = marks.iter().fold(0, |marks, &(mark, is_set)| marks | if is_set { mark } else { 0 });
        Self { template_fingerprint, marks }
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

/// What was worked out of a path and is not kept for the next record with it.
#[derive(Clone, Copy, Debug)]
struct Texts<'a> {
    address: Address<'a>,
    /// Path with ids replaced, and the last id, once they were asked for.
    template: Option<(&'a [u8], Option<&'a [u8]>)>,
}

/// What the two detectors that look at nearly every request make of an observation, see [`super::Analytics::observe`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Here {
    /// Where the cell of the first that looks likely is; that of the other is beside it.
    pub position: u32,
    /// What the observation is to `forced_browsing` and to `crawl`; 0: the detector does not look at it.
    pub kinds: [u8; 2],
}

/// See the module. What is read at once for every record; the rest is read from the record when it is asked for, for most
/// records never.
#[derive(Clone, Debug)]
pub struct Observation<'a> {
    record: RecordView<'a>,
    /// Position of the record in its batch.
    pub place: u32,
    /// Application id, −1 for none.
    pub application: i32,
    /// Position of the record in the input.
    pub order: u64,
    /// When it happened, Unix µs; live, freed of the node's clock error.
    pub time_us: u64,
    /// Who.
    pub source: Source,
    /// Of source and application.
    pub source_fingerprint: u64,
    /// Of the host.
    pub host_fingerprint: u64,
    /// Of source, application and host.
    pub here_fingerprint: u64,
    /// Of the path as it came.
    pub path_fingerprint: u64,
    /// Of the user agent.
    pub user_agent_fingerprint: u64,
    /// The path's, see [`Self::look_up`].
    pub target: Target,
    /// The last id of the path, see [`Self::look_up`].
    pub object: Option<&'a Object>,
    texts: Cell<Option<&'a Texts<'a>>>,
    /// See [`Here`].
    pub here: Here,
    /// Where its other events stand in line, from and to.
    pub waiting: [u32; 2],
    /// Status of the answer, 0 if none.
    pub status: u16,
    /// Its method is GET or HEAD.
    pub is_fetch: bool,
    /// A filter blocked it, or its source was listed: its status is the filter's doing.
    pub is_listed: bool,
    /// It carries hits.
    pub has_hits: bool,
    /// The user agent names an attack tool.
    pub is_attack_tool: bool,
    /// How the attempt to log in ended, if it is one and what is remembered was asked; see [`Self::outcome`].
    pub attempt: Option<Outcome>,
}

impl<'a> Observation<'a> {
    /// What a record says by itself. The path is left to [`Self::look_up`]; what is remembered ([`Self::attempt`],
    /// [`Self::is_attack_tool`]) to the caller.
    // Inlined, so that it is written where it is to lie.
    #[inline(always)]
    pub fn of(record: &RecordView<'a>, (timing, place, order): (Timing, u32, u64), prints: &Fingerprints) -> Self {
        let (source, application) = (record.source(), record.application());
        let source_fingerprint = prints.pair(source.key(), u64::from(application.cast_unsigned()));
        let host_fingerprint = prints.bytes(record.host());
        Self {
            record: *record,
            place,
            application,
            order,
            time_us: timing.event_time_us(record.event_us()),
            source,
            source_fingerprint,
            host_fingerprint,
            here_fingerprint: prints.pair(source_fingerprint, host_fingerprint),
            path_fingerprint: prints.bytes(record.path()),
            user_agent_fingerprint: prints.bytes(record.user_agent()),
            target: Target::default(),
            object: None,
            texts: Cell::new(None),
            here: Here::default(),
            waiting: [0; 2],
            status: record.status(),
            is_fetch: match Method::from_wire(record.method()) {
                Some(method) => matches!(method, Method::Get | Method::Head),
                None => matches!(text_of_method(record), b"GET" | b"HEAD"),
            },
            is_listed: record.flags() & (FLAG_BLOCKED | FLAG_DENYLIST | FLAG_GRAYLIST) != 0,
            has_hits: record.hit_count() > 0,
            is_attack_tool: false,
            attempt: None,
        }
    }

    /// Finds out what the path is. `known` are the paths that were seen before, if any are kept.
    #[inline(always)]
    pub fn look_up(&mut self, settings: &Settings, prints: &Fingerprints, known: Option<&mut Paths>, scratch: &'a Bump) {
        // The whole line of what is no request is another path than the same text in a request.
        let known = known.filter(|_| self.is_request());
        match known.as_ref().and_then(|known| known.find(self.path_fingerprint)) {
            Some((target, None)) => self.target = target,
            Some((target, Some(object))) => (self.target, self.object) = (target, Some(&*scratch.alloc(object))),
            None => self.work_out(settings, prints, known, scratch),
        }
    }

    /// What a path is that was not seen before, and what came of it on the way.
    #[inline(never)]
    fn work_out(&mut self, settings: &Settings, prints: &Fingerprints, known: Option<&mut Paths>, scratch: &'a Bump) {
        let (path, _) = self.path_and_query(scratch);
        let (template, id) = self.template_and_id(scratch);
        let is_as_it_came = std::ptr::eq(template, self.record.path());
        let template_fingerprint = if is_as_it_came { self.path_fingerprint } else { prints.bytes(template) };
        self.target = Target::of(path, template_fingerprint, settings);
        let object = id.map(|id| Object { fingerprint: prints.bytes(id), number: path::number_of(id) });
        self.object = object.map(|object| &*scratch.alloc(object));
        if let Some(known) = known {
            known.put(self.path_fingerprint, self.target, object);
        }
    }

    /// The record.
    pub const fn record(&self) -> &RecordView<'a> {
        &self.record
    }

    /// The method's text, empty if it was no request.
    pub fn method(&self) -> &'a [u8] {
        match Method::from_wire(self.record.method()) {
            Some(method) => method.name().as_bytes(),
            None => text_of_method(&self.record),
        }
    }

    #[inline]
    fn is_request(&self) -> bool {
        Method::from_wire(self.record.method()).is_some() || !text_of_method(&self.record).is_empty()
    }

    /// The address field as text, if it is no address.
    pub fn source_text(&self) -> &'a [u8] {
        self.record.extension(TAG_SOURCE_TEXT).unwrap_or_default()
    }

    /// The request's id.
    #[inline]
    pub fn request_id(&self) -> [u64; 2] {
        let id = u128::from_be_bytes(self.record.request_id());
        [(id >> 64) as u64, id as u64]
    }

    /// One of its hits is of a type that probing counts.
    pub fn is_probe(&self) -> bool {
        self.has_hits && self.record.hits().any(|hit| is_probe(hit.attack_type))
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
        if let Some(known) = self.texts.get() {
            return known.address;
        }
        let address = address(&self.record, self.is_request(), scratch);
        self.texts.set(Some(scratch.alloc(Texts { address, template: None })));
        address
    }

    /// Path with ids replaced.
    pub fn template(&self, scratch: &'a Bump) -> &'a [u8] {
        self.template_and_id(scratch).0
    }

    fn template_and_id(&self, scratch: &'a Bump) -> (&'a [u8], Option<&'a [u8]>) {
        if let Some(template) = self.texts.get().and_then(|known| known.template) {
            return template;
        }
        let address = self.path_and_query(scratch);
        let template = path::template(address.0, scratch);
        self.texts.set(Some(scratch.alloc(Texts { address, template: Some(template) })));
        template
    }

    /// Of method, host and template.
    pub fn endpoint_fingerprint(&self, prints: &Fingerprints) -> u64 {
        prints.pair(prints.pair(prints.bytes(self.method()), self.host_fingerprint), self.target.template_fingerprint)
    }

    /// Of path and query.
    pub fn address_fingerprint(&self, prints: &Fingerprints, scratch: &'a Bump) -> u64 {
        let (path, query) = self.path_and_query(scratch);
        prints.pair(prints.bytes(path), prints.bytes(query))
    }

    /// Whether this is an attempt to log in.
    #[inline]
    pub fn is_attempt(&self) -> bool {
        let is_login = self.target.is(LOGIN) && matches!(self.method(), b"POST" | b"PUT");
        is_login || self.status == 401 && self.record.flags() & FLAG_CREDENTIALS != 0
    }

    /// How the attempt ended; `was_refused`: this endpoint refused this source within the last hour.
    pub fn outcome(&self, was_refused: bool) -> Outcome {
        match self.record.flags() & (FLAG_AUTH_FAILED | FLAG_AUTH_SUCCEEDED) {
            FLAG_AUTH_FAILED => return Outcome::Failed,
            FLAG_AUTH_SUCCEEDED => return Outcome::Succeeded,
            _ => {}
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
    pub fn network(&self) -> u64 {
        if !self.source_text().is_empty() {
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
fn address<'a>(record: &RecordView<'a>, is_request: bool, scratch: &'a Bump) -> Address<'a> {
    if !is_request {
        return (record.path(), record.query());
    }
    let (path, query) = path::normalise(record.path(), scratch);
    (path, if record.query().is_empty() { query } else { record.query() })
}

/// The text of a method that has no number; empty if there is none.
#[inline(never)]
fn text_of_method<'a>(record: &RecordView<'a>) -> &'a [u8] {
    record.extension(TAG_METHOD).unwrap_or_default()
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
