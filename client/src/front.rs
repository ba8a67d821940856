//! A site thread's own way into the queue: a ring that only this thread writes.
//!
//! Under the queue's lock a call waits for cache lines that the background thread has just had, and for its own record to
//! leave the store buffer. Here it writes memory that nobody else writes, reads next to nothing that somebody else writes,
//! and returns; whoever next holds the queue's lock and cares moves the records on. The ring is `rtrb`: no lock-free code of
//! our own.
//!
//! In the ring a record is its numbers ([`Head`]) and then its strings, one after the other, handed over at once: it can be
//! seen whole or not at all.
//!
//! A thread gets a ring with its second record within [`PAUSE_US`]. It takes the locked way instead when the ring is full,
//! when the queue's gate is shut, after a pause (the background thread may sleep and want to be woken), and with records that
//! are too long for it or carry hits or extensions: those are few, and hits wake the background thread under the lock anyway.
//! The locked way first empties the ring of its thread, so that order is kept.

use crate::bundle::{Item, Meta, RECORD_COST_BYTES};
use crate::request::Request;
use crate::sync::rtrb::{Consumer, Producer, ReadChunk, RingBuffer};
use crate::sync::{Ordering, RING_BYTES, fence, thread_local};
use postanalytics_protocol::routing::address_bytes;
use postanalytics_protocol::schema::v1::{Record, Span};
use std::cell::RefCell;
use std::hint::black_box;
use std::sync::atomic::AtomicU64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of the strings of the longest record that goes this way.
const RECORD_STRING_BYTES_MAX: usize = 16 * 1024;
/// Bytes of that record in a ring.
const RECORD_BYTES_MAX: usize = HEAD_BYTES + RECORD_STRING_BYTES_MAX;
/// What a full ring counts against the queue's budget when its records have left it, at the most.
pub(crate) const COST_BYTES_MAX: usize = cost_bytes_max(RING_BYTES);
/// After a pause so long a record takes the locked way. Half the time after which the background thread no longer wakes by
/// itself: whatever goes through the rings was announced by traffic that it has seen.
pub(crate) const PAUSE_US: u64 = 500_000;

/// Clients that a thread may use by turns and still get rings for each.
const FRONTS_MAX: usize = 16;

/// How many rings there have been in this process.
static OPENED: AtomicU64 = AtomicU64::new(0);

/// A site thread's end.
struct Front {
    queue: u64,
    /// When this thread last handed a record over, on whatever way.
    last_us: u64,
    ring: Option<Producer<u8>>,
    /// Tells its ring from those of other threads.
    number: u64,
}

thread_local! {
    /// One for each client that this thread uses, and for such that are gone until it comes to a new one.
    static FRONTS: RefCell<Vec<Front>> = const { RefCell::new(Vec::new()) };
}

/// What records in a ring cost that take so many bytes there, at the most: all of them may be nothing but numbers.
pub(crate) const fn cost_bytes_max(ring_bytes: usize) -> usize {
    ring_bytes + ring_bytes / HEAD_BYTES * (RECORD_COST_BYTES - HEAD_BYTES)
}

/// Hands a record over by this thread's ring, if it has one and may. `strings`: bytes of the texts, session and user.
///
/// A site calls this rarely enough that its code has left the caches each time, so what counts is how little there is of it:
/// what is seldom (hits, extensions, long strings) is elsewhere.
#[inline]
pub(crate) fn push(queue: u64, request: &Request<'_>, now_us: u64, urgent: bool, strings: usize) -> bool {
    with(|fronts| {
        let Some(front) = fronts.iter_mut().find(|front| front.queue == queue) else { return false };
        if now_us.saturating_sub(front.last_us) >= PAUSE_US || strings > RECORD_STRING_BYTES_MAX || !request.is_plain() {
            return false;
        }
        let Some(ring) = &mut front.ring else { return false };
        let bytes = HEAD_BYTES + strings;
        if ring.cached_slots() < bytes && ring.slots() < bytes {
            return false;
        }
        // Made before the ring is written to: stores become visible in order, and those to the ring may have to wait for
        // lines that the other end has read. Behind them these would fill the store buffer, and the call would wait, too.
        let head = black_box(Head::new(request, now_us, urgent));
        let Ok(mut chunk) = ring.write_chunk(bytes) else { return false };
        match chunk.as_mut_slices() {
            (room, []) => {
                if let Some((place, room)) = room.split_first_chunk_mut::<HEAD_BYTES>() {
                    place.copy_from_slice(head.as_bytes());
                    put_strings(room, request);
                }
            }
            (one, two) => put_around_the_end(one, two, head.as_bytes(), request),
        }
        chunk.commit_all();
        front.last_us = now_us;
        // Writes where the next record will go, if it is like this one: the lines come from the other end while the site does
        // something else.
        drop(ring.write_chunk(bytes.min(ring.cached_slots())));
        true
    })
    .unwrap_or(false)
}

/// Fills `room` with the strings, one after the other.
#[inline]
fn put_strings(mut room: &mut [u8], request: &Request<'_>) {
    for string in request.strings() {
        // Most are empty.
        if !string.is_empty()
            && let Some((place, rest)) = std::mem::take(&mut room).split_at_mut_checked(string.len())
        {
            place.copy_from_slice(string);
            room = rest;
        }
    }
    debug_assert!(room.is_empty(), "the strings have the length that was said");
}

#[cold]
fn put_around_the_end(one: &mut [u8], two: &mut [u8], head: &[u8], request: &Request<'_>) {
    let bytes = head.iter().chain(request.strings().into_iter().flatten());
    one.iter_mut().chain(two).zip(bytes).for_each(|(place, byte)| *place = *byte);
}

/// The numbers of a record and the lengths of its strings, as they lie in a ring.
#[derive(Clone, Copy, FromBytes, Immutable, IntoBytes, KnownLayout)]
#[repr(C)]
struct Head {
    request_id: [u8; 16],
    client_ip: [u8; 16],
    event_us: u64,
    tenant: u64,
    request_bytes: u64,
    response_bytes: u64,
    accepted_us: u64,
    token: u64,
    application: i32,
    response_us: u32,
    detection_us: u32,
    flags: u32,
    server_port: u16,
    status: u16,
    method: u8,
    scheme: u8,
    http_version: u8,
    urgent: u8,
    lengths: [u16; 9],
    zeros: [u8; 6],
}

/// Bytes of a record's numbers in a ring.
const HEAD_BYTES: usize = size_of::<Head>();

impl Head {
    #[inline]
    fn new(request: &Request<'_>, accepted_us: u64, urgent: bool) -> Self {
        debug_assert!(request.is_plain(), "its blob would hold more than texts");
        Self {
            request_id: request.request_id,
            client_ip: address_bytes(request.client_ip),
            event_us: request.event_us,
            tenant: request.tenant,
            request_bytes: request.request_bytes,
            response_bytes: request.response_bytes,
            accepted_us,
            token: request.token,
            application: request.application,
            response_us: request.response_us,
            detection_us: request.detection_us,
            flags: request.flags,
            server_port: request.server_port,
            status: request.status,
            method: request.method,
            scheme: request.scheme,
            http_version: request.http_version,
            urgent: u8::from(urgent),
            lengths: request.strings().map(|string| string.len() as u16),
            zeros: [0; 6],
        }
    }

    /// The record, whose blob is its texts one after the other: what [`postanalytics_protocol::batch::flatten`] makes.
    fn record(&self) -> Record {
        let mut offset = 0;
        let [host, path, query, user_agent, referer, raw_headers, raw_body, _, _] = self.lengths.map(|length| {
            let span = Span { offset, length: length.into() };
            offset += span.length;
            span
        });
        let nothing = Span { offset: raw_body.offset + raw_body.length, length: 0 };
        Record {
            request_id: self.request_id,
            client_ip: self.client_ip,
            event_us: self.event_us,
            tenant: self.tenant,
            session_hash: 0,
            user_hash: 0,
            request_bytes: self.request_bytes,
            response_bytes: self.response_bytes,
            application: self.application,
            response_us: self.response_us,
            detection_us: self.detection_us,
            flags: self.flags,
            server_port: self.server_port,
            status: self.status,
            method: self.method,
            scheme: self.scheme,
            http_version: self.http_version,
            zero: 0,
            host,
            path,
            query,
            user_agent,
            referer,
            raw_headers,
            raw_body,
            hits: nothing,
            extensions: nothing,
        }
    }

    /// What is known of the record and never sent.
    fn meta(&self) -> Meta {
        let [.., session, user] = self.lengths;
        Meta::new(self.accepted_us, self.token, self.urgent != 0, self.string_bytes(), session.into(), user.into())
    }

    /// Bytes of its strings.
    fn string_bytes(&self) -> usize {
        self.lengths.iter().map(|length| usize::from(*length)).sum()
    }
}

/// Takes the next record off; `None`, and `bytes` as it was, if not all of it is there.
fn next<'a>(bytes: &mut &'a [u8]) -> Option<(Head, &'a [u8])> {
    let (head, rest) = Head::read_from_prefix(bytes).ok()?;
    let (strings, rest) = rest.split_at_checked(head.string_bytes())?;
    *bytes = rest;
    Some((head, strings))
}

/// Notes that the queue has accepted a record of this thread on the locked way; one that was refused announces nothing.
/// Returns whether that happens often enough for a ring of its own, and it has none.
pub(crate) fn took_the_locked_way(queue: u64, now_us: u64) -> bool {
    with(|fronts| match fronts.iter_mut().find(|front| front.queue == queue) {
        Some(front) => {
            let before_us = std::mem::replace(&mut front.last_us, now_us);
            front.ring.is_none() && now_us.saturating_sub(before_us) < PAUSE_US
        }
        None => {
            fronts.retain(|front| front.ring.as_ref().is_none_or(|ring| !ring.is_abandoned()));
            // A thread that uses more clients than that by turns gets no ring for some of them.
            if fronts.len() >= FRONTS_MAX
                && let Some(oldest) = fronts.iter().position(|front| front.ring.is_none())
            {
                fronts.remove(oldest);
            }
            fronts.push(Front { queue, last_us: now_us, ring: None, number: 0 });
            false
        }
    })
    .unwrap_or(false)
}

/// What tells this thread's ring from others', if it has one.
pub(crate) fn number(queue: u64) -> Option<u64> {
    with(|fronts| fronts.iter().find(|front| front.queue == queue && front.ring.is_some()).map(|front| front.number))?
}

/// Makes a ring for this thread.
pub(crate) fn open(queue: u64) -> Option<Back> {
    with(|fronts| {
        let front = fronts.iter_mut().find(|front| front.queue == queue)?;
        let (producer, ring) = RingBuffer::new(RING_BYTES);
        front.ring = Some(producer);
        front.number = OPENED.fetch_add(1, Ordering::Relaxed);
        Some(Back { number: front.number, ring, around_the_end: Vec::new() })
    })?
}

/// `None` while the thread ends.
fn with<T>(body: impl FnOnce(&mut Vec<Front>) -> T) -> Option<T> {
    FRONTS.try_with(|fronts| fronts.try_borrow_mut().ok().map(|mut fronts| body(&mut fronts))).ok()?
}

/// The queue's end, for whoever holds its lock.
pub(crate) struct Back {
    /// What [`number`] says on its thread.
    pub(crate) number: u64,
    ring: Consumer<u8>,
    /// A record that lies around the end of the ring, in one piece.
    around_the_end: Vec<u8>,
}

impl Back {
    /// Records in it now and what they cost.
    pub(crate) fn records_and_cost(&mut self) -> (u64, usize) {
        let (mut records, mut cost) = (0, 0);
        if let Ok(chunk) = self.ring.read_chunk(self.ring.slots()) {
            each_of(&chunk, &mut self.around_the_end, |head, _| {
                (records, cost) = (records + 1, cost + RECORD_COST_BYTES + head.string_bytes());
            });
        }
        (records, cost)
    }

    /// What the records in it now cost at the most, without a look at each.
    pub(crate) fn cost_bytes_max(&self) -> usize {
        cost_bytes_max(self.ring.slots())
    }

    /// Whether nothing is in it and nothing will be: its thread has ended.
    pub(crate) fn is_done(&self) -> bool {
        let abandoned = self.ring.is_abandoned();
        // What the thread wrote before it ended has to be seen by now; rtrb's documentation promises no such order.
        fence(Ordering::Acquire);
        abandoned && self.ring.is_empty()
    }

    /// Takes out what is in it now, oldest first; a piece at a time, so that its thread soon has room again.
    pub(crate) fn drain(&mut self, mut each: impl FnMut(&Item<'_>)) {
        let mut left = self.ring.slots();
        while left > 0
            && let Ok(chunk) = self.ring.read_chunk(left.min(RECORD_BYTES_MAX))
        {
            let bytes = each_of(&chunk, &mut self.around_the_end, |head, strings| {
                each(&Item::new(&head.record(), &head.meta(), strings));
            });
            chunk.commit(bytes);
            debug_assert!(bytes > 0, "a record can be seen whole or not at all");
            left = if bytes > 0 { left - bytes } else { 0 };
        }
    }
}

/// Goes through the whole records in a chunk, oldest first, and returns their bytes. `around_the_end`: for one that lies around
/// the end of the ring.
fn each_of(chunk: &ReadChunk<'_, u8>, around_the_end: &mut Vec<u8>, mut each: impl FnMut(&Head, &[u8])) -> usize {
    let (mut one, mut two) = chunk.as_slices();
    while let Some((head, strings)) = next(&mut one) {
        each(&head, strings);
    }
    if !one.is_empty() && !two.is_empty() {
        around_the_end.clear();
        around_the_end.extend_from_slice(one);
        around_the_end.extend_from_slice(&two[..two.len().min(RECORD_BYTES_MAX)]);
        let mut joined = around_the_end.as_slice();
        if let Some((head, strings)) = next(&mut joined) {
            each(&head, strings);
            let bytes = around_the_end.len() - joined.len();
            (one, two) = (&[], &two[bytes - one.len()..]);
        }
    }
    if one.is_empty() {
        while let Some((head, strings)) = next(&mut two) {
            each(&head, strings);
        }
    }
    chunk.len() - one.len() - two.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{IpAddr, Ipv6Addr};

    #[test]
    fn a_record_comes_out_as_it_went_in() {
        let request = Request {
            request_id: [7; 16],
            client_ip: [192, 0, 2, 7].into(),
            event_us: 1,
            tenant: 2,
            application: -3,
            response_us: 4,
            detection_us: 5,
            request_bytes: 6,
            response_bytes: 7,
            flags: 8,
            server_port: 9,
            status: 10,
            method: 11,
            scheme: 12,
            http_version: 13,
            session: b"session",
            user: b"anna",
            host: b"a.example",
            path: b"/x",
            query: b"q=1",
            user_agent: b"agent",
            referer: b"ref",
            raw_headers: b"h",
            raw_body: b"body",
            hits: &[],
            extensions: &[],
            token: 14,
        };
        let request = Request { client_ip: IpAddr::V6(Ipv6Addr::LOCALHOST), ..request };
        let mut bytes = vec![0; HEAD_BYTES + request.strings().concat().len()];
        let (head, strings) = bytes.split_first_chunk_mut::<HEAD_BYTES>().expect("room");
        head.copy_from_slice(Head::new(&request, 15, true).as_bytes());
        put_strings(strings, &request);
        for end in 0..bytes.len() {
            let mut cut = &bytes[..end];
            assert!(next(&mut cut).is_none() && cut.len() == end);
        }
        let (head, strings) = next(&mut bytes.as_slice()).expect("a record");
        let mut blob = Vec::new();
        let record = postanalytics_protocol::batch::flatten(&request.fields(), &mut blob);
        assert_eq!(format!("{:?}", head.record()), format!("{record:?}"));
        let (record, meta) = (head.record(), head.meta());
        let item = Item::new(&record, &meta, strings);
        assert_eq!((item.blob, item.identity), (blob.as_slice(), b"sessionanna".as_slice()));
        assert_eq!((meta.accepted_us, meta.token, meta.urgent), (15, 14, true));
    }
}
