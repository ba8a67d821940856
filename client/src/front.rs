//! A site thread's own way into the queue: two rings that only this thread writes.
//!
//! Under the queue's lock a call waits for cache lines that the background thread has just had, and for its own record to
//! leave the store buffer. Here it writes memory that nobody else writes, reads next to nothing that somebody else writes,
//! and returns; whoever next holds the queue's lock and cares moves the records on. The rings are `rtrb`: no lock-free code of
//! our own.
//!
//! A thread gets rings with its second record within [`PAUSE_US`]. It takes the locked way instead when they are full, when
//! the queue's gate is shut, after a pause (the background thread may sleep and want to be woken), and with records that are
//! too long for them or carry hits or extensions: those are few, and hits wake the background thread under the lock anyway.
//! The locked way first empties the rings of its thread, so that order is kept.

use crate::bundle::{Item, Meta, RECORD_COST_BYTES};
use crate::request::Request;
use crate::sync::rtrb::{Consumer, Producer, RingBuffer};
use crate::sync::{Ordering, fence, thread_local};
use postanalytics_protocol::schema::v1::Record;
use std::cell::RefCell;
use std::hint::black_box;
use std::sync::atomic::AtomicU64;

/// Records that fit into a thread's rings.
pub(crate) const RECORDS: usize = 256;
/// Bytes of blob, session and user that fit.
const STRING_BYTES: usize = 128 * 1024;
/// The same of the longest record that goes this way.
const RECORD_STRING_BYTES_MAX: usize = 16 * 1024;
/// What full rings count against the queue's budget.
pub(crate) const COST_BYTES_MAX: usize = RECORDS * RECORD_COST_BYTES + STRING_BYTES;
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
    rings: Option<(Producer<Entry>, Producer<u8>)>,
    /// Tells its rings from those of other threads.
    number: u64,
}

#[derive(Clone, Copy, Default)]
struct Entry {
    record: Record,
    meta: Meta,
}

thread_local! {
    /// One for each client that this thread uses, and for such that are gone until it comes to a new one.
    static FRONTS: RefCell<Vec<Front>> = const { RefCell::new(Vec::new()) };
}

/// Hands a record over by this thread's rings, if it has any and may. `strings`: bytes of the texts, session and user.
///
/// A site calls this rarely enough that its code has left the caches each time, so what counts is how little there is of it:
/// what is seldom (hits, extensions, the end of the ring) is elsewhere.
#[inline]
pub(crate) fn push(queue: u64, request: &Request<'_>, now_us: u64, urgent: bool, strings: usize) -> bool {
    with(|fronts| {
        let Some(front) = fronts.iter_mut().find(|front| front.queue == queue) else { return false };
        if now_us.saturating_sub(front.last_us) >= PAUSE_US || strings > RECORD_STRING_BYTES_MAX || !request.is_plain() {
            return false;
        }
        let Some((entry_ring, string_ring)) = &mut front.rings else { return false };
        if !has_room(entry_ring, 1) || !has_room(string_ring, strings) {
            return false;
        }
        front.last_us = now_us;
        let meta = Meta::new(request, now_us, urgent, strings - request.identity_bytes());
        // Made before the rings are written to: stores become visible in order, and those to the rings may have to wait for
        // lines that the other end has read. Behind them these would fill the store buffer, and the call would wait, too.
        let entry = black_box(Entry { record: request.flat(), meta });
        let Ok(mut chunk) = string_ring.write_chunk(strings) else { return false };
        match chunk.as_mut_slices() {
            (room, []) => put_strings(room, request),
            (one, two) => put_strings_around_the_end(one, two, request),
        }
        // The record last: when it can be seen, so can its strings.
        chunk.commit_all();
        let is_pushed = entry_ring.push(entry).is_ok();
        fetch_next(entry_ring, string_ring, strings);
        is_pushed
    })
    .unwrap_or(false)
}

/// Writes where the next record will go, if it is like this one: the lines come from the other end while the site does
/// something else.
#[inline]
fn fetch_next(entry_ring: &mut Producer<Entry>, string_ring: &mut Producer<u8>, strings: usize) {
    if entry_ring.cached_slots() > 0 {
        drop(entry_ring.write_chunk(1));
    }
    let strings = strings.min(string_ring.cached_slots());
    drop(string_ring.write_chunk(strings));
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
fn put_strings_around_the_end(one: &mut [u8], two: &mut [u8], request: &Request<'_>) {
    let bytes = request.strings().into_iter().flatten();
    one.iter_mut().chain(two).zip(bytes).for_each(|(place, byte)| *place = *byte);
}

/// Only if what was last seen of the other end does not suffice, it is looked at again.
fn has_room<T>(ring: &Producer<T>, slots: usize) -> bool {
    ring.cached_slots() >= slots || ring.slots() >= slots
}

/// Notes that the queue has accepted a record of this thread on the locked way; one that was refused announces nothing.
/// Returns whether that happens often enough for rings of its own, and it has none.
pub(crate) fn took_the_locked_way(queue: u64, now_us: u64) -> bool {
    with(|fronts| match fronts.iter_mut().find(|front| front.queue == queue) {
        Some(front) => {
            let before_us = std::mem::replace(&mut front.last_us, now_us);
            front.rings.is_none() && now_us.saturating_sub(before_us) < PAUSE_US
        }
        None => {
            fronts.retain(|front| front.rings.as_ref().is_none_or(|(entries, _)| !entries.is_abandoned()));
            // A thread that uses more clients than that by turns gets no rings for some of them.
            if fronts.len() >= FRONTS_MAX
                && let Some(oldest) = fronts.iter().position(|front| front.rings.is_none())
            {
                fronts.remove(oldest);
            }
            fronts.push(Front { queue, last_us: now_us, rings: None, number: 0 });
            false
        }
    })
    .unwrap_or(false)
}

/// What tells this thread's rings from others', if it has any.
pub(crate) fn number(queue: u64) -> Option<u64> {
    with(|fronts| fronts.iter().find(|front| front.queue == queue && front.rings.is_some()).map(|front| front.number))?
}

/// Makes rings for this thread.
pub(crate) fn open(queue: u64) -> Option<Back> {
    with(|fronts| {
        let front = fronts.iter_mut().find(|front| front.queue == queue)?;
        let (entry_producer, entries) = RingBuffer::new(RECORDS);
        let (string_producer, strings) = RingBuffer::new(STRING_BYTES);
        front.rings = Some((entry_producer, string_producer));
        front.number = OPENED.fetch_add(1, Ordering::Relaxed);
        Some(Back { number: front.number, entries, strings, wrapped: Vec::new() })
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
    entries: Consumer<Entry>,
    strings: Consumer<u8>,
    /// The strings of a record that lie around the end of the ring.
    wrapped: Vec<u8>,
}

impl Back {
    /// Records in it now and what they cost. A record whose strings are written and which is not may count with those.
    pub(crate) fn records_and_cost(&self) -> (u64, usize) {
        let records = self.entries.slots();
        (records as u64, records * RECORD_COST_BYTES + self.strings.slots())
    }

    /// Whether nothing is in it and nothing will be: its thread has ended.
    pub(crate) fn is_done(&self) -> bool {
        let abandoned = self.entries.is_abandoned();
        // What the thread wrote before it ended has to be seen by now; rtrb's documentation promises no such order.
        fence(Ordering::Acquire);
        abandoned && self.entries.is_empty()
    }

    /// Takes out what is in it now, oldest first.
    pub(crate) fn drain(&mut self, mut each: impl FnMut(&Item<'_>)) {
        for _ in 0..self.entries.slots() {
            let Ok(Entry { record, meta }) = self.entries.pop() else { return };
            let bytes = meta.string_bytes();
            let Ok(chunk) = self.strings.read_chunk(bytes) else {
                return debug_assert!(false, "strings are written before their record");
            };
            let (one, two) = chunk.as_slices();
            let strings = if two.is_empty() {
                one
            } else {
                self.wrapped.clear();
                self.wrapped.extend_from_slice(one);
                self.wrapped.extend_from_slice(two);
                &self.wrapped
            };
            each(&Item::new(&record, &meta, strings));
            chunk.commit_all();
        }
    }
}
