//! Reading stored records out of the slabs, newest first, a bounded slice per turn.

use super::messages::{Cursor, Query, QueryPage, StoredRecord};
use super::{Now, Shard};
use crate::analytics::explain::{EXPLAIN_FAILED, QUARANTINED, Standings};
use crate::analytics::{Analytics, Timing};
use crate::arena::place::{FLAG_QUARANTINED, FLAG_REPLAY};
use crate::arena::{Log, PlaceHeader, SlabHandle};
use bumpalo::Bump;
use postanalytics_protocol::{RecordView, ValidBatch};
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Bytes of places looked at in one turn. Validating them touches a third of them at most, which takes some 50 µs.
const SLICE_BYTES: u64 = 1 << 20;
/// What a look at a place or at a slab's filter counts at least: a cache miss or two.
const LOOK_BYTES: u64 = 4 << 10;
/// Between two lines about requests that cannot be explained, µs.
const FAILURES_QUIET_US: u64 = 60_000_000;

impl Shard {
    /// Takes on a query. One at a time: a second comes back at once, unanswered.
    pub fn begin_query(&mut self, query: Box<Query>) -> Option<Box<Query>> {
        if self.query.is_some() {
            return Some(query);
        }
        self.query = Some(query);
        None
    }

    /// Whether a query is under way, so that turns should not wait.
    pub const fn has_query(&self) -> bool {
        self.query.is_some()
    }

    /// Works on the query for one slice; returns it when its page is full or its search over.
    pub fn query_slice(&mut self, now: Now) -> Option<Box<Query>> {
        let mut query = self.query.take()?;
        let failed = Cell::new(0);
        let explain = Explain { analytics: &self.analytics, scratch: &self.scratch, now_us: now.wall_us, failed: &failed };
        let done = slice(&self.requests, &mut query, &explain);
        self.tell_failures(failed.get(), now);
        if done {
            return Some(query);
        }
        self.query = Some(query);
        None
    }

    /// Says that requests of a slice cannot be explained, once a minute at most.
    fn tell_failures(&mut self, requests: u64, now: Now) {
        if requests > 0 && now.monotonic_us >= self.failures_quiet_until_us {
            self.failures_quiet_until_us = now.monotonic_us + FAILURES_QUIET_US;
            tracing::error!(
                shard = self.id,
                requests,
                "/explain panicked and says explain_failed of stored requests: this is a defect, report it with the panic's line"
            );
        }
    }
}

/// What says what the detectors make of a record.
struct Explain<'a> {
    analytics: &'a Analytics,
    scratch: &'a Bump,
    now_us: u64,
    /// Records of which it panicked.
    failed: &'a Cell<u64>,
}

impl Explain<'_> {
    /// What the detectors make of a record of this frame. One of a quarantined frame would likely panic again, and what analysed
    /// well may panic with settings that came since: a question ends no process.
    fn standings(&self, header: &PlaceHeader, record: &RecordView<'_>) -> Standings {
        if header.flags & FLAG_QUARANTINED != 0 {
            return QUARANTINED;
        }
        let is_replay = header.flags & FLAG_REPLAY != 0;
        let timing = Timing { arrival_us: header.arrival_us, sent_us: header.sent_us, is_replay };
        let explain = || self.analytics.explain(record, timing, self.now_us, self.scratch);
        catch_unwind(AssertUnwindSafe(explain)).unwrap_or_else(|_| {
            self.failed.set(self.failed.get() + 1);
            EXPLAIN_FAILED
        })
    }
}

/// Returns whether the query goes back to who asked.
fn slice(log: &Log, query: &mut Query, explain: &Explain<'_>) -> bool {
    let (mut next, mut records_left) = match query.cursor {
        None => (log.newest(), u32::MAX),
        Some(cursor) => {
            let handle = SlabHandle { slab: cursor.slab, generation: cursor.generation, offset: cursor.offset };
            (Some(handle), cursor.records_left)
        }
    };
    let mut bytes_left = SLICE_BYTES;
    let mut slab_may_hold = None;
    while let Some(handle) = next {
        // Past the open ones, of which there are no more than connections: where the cursor stands must still be there in the next turn.
        if bytes_left == 0 && !log.is_open(handle) {
            query.cursor = Some(cursor(handle, records_left));
            return false;
        }
        bytes_left = bytes_left.saturating_sub(LOOK_BYTES);
        if slab_may_hold != Some(handle.slab) {
            if !log.may_hold(handle, query.source, query.since_us) {
                next = log.before_slab(handle);
                records_left = u32::MAX;
                continue;
            }
            slab_may_hold = Some(handle.slab);
        }
        if let Some((header, body)) = log.frame(handle)
            && query.since_us.is_none_or(|since_us| header.arrival_us >= since_us)
            && query.until_us.is_none_or(|until_us| header.arrival_us < until_us)
        {
            bytes_left = bytes_left.saturating_sub(u64::from(header.length));
            if let Some(left) = frame(query, &header, body, cursor(handle, records_left), explain) {
                query.cursor = Some(cursor(handle, left));
                return true;
            }
        }
        // Once the slab is recycled nothing older is left either.
        next = log.older(handle);
        records_left = u32::MAX;
    }
    query.cursor = None;
    query.page.complete = true;
    true
}

const fn cursor(handle: SlabHandle, records_left: u32) -> Cursor {
    Cursor { slab: handle.slab, generation: handle.generation, offset: handle.offset, records_left }
}

/// Looks at the first `records_left` records of the frame at `place`, last first. Returns how many are left when the page is
/// full.
fn frame(query: &mut Query, header: &PlaceHeader, body: &[u8], place: Cursor, explain: &Explain<'_>) -> Option<u32> {
    // Checked again rather than trusted: 4 ns a record, and no unsafe access.
    let Ok(batch) = ValidBatch::parse(header.schema, header.record_count, body) else { return None };
    let mut left = place.records_left.min(header.record_count);
    let is_replay = header.flags & FLAG_REPLAY != 0;
    while left > 0 {
        if query.page.stored.len() >= query.limit.min(QueryPage::RECORDS) {
            return Some(left);
        }
        if let Some(record) = batch.record(left as usize - 1)
            && matches(query, &record)
        {
            let records = &mut query.page.records;
            // A record that fills a page alone gets one.
            let is_full = !records.is_empty() && records.blob().len() + record.blob_bytes() > QueryPage::BLOB_BYTES;
            let room = postanalytics_protocol::batch::body_bytes(QueryPage::RECORDS, QueryPage::BLOB_BYTES);
            if is_full || records.push_view(&record, room).is_err() {
                return Some(left);
            }
            query.page.stored.push(StoredRecord {
                arrival_us: header.arrival_us,
                commit_index: header.commit_index,
                node: header.node,
                session: header.session,
                sent_us: header.sent_us,
                is_replay,
                place: Cursor { records_left: left, ..place },
            });
            if query.explain {
                query.page.standings.push(explain.standings(header, &record));
            }
        }
        query.page.records_scanned += 1;
        left -= 1;
    }
    None
}

fn matches(query: &Query, record: &RecordView<'_>) -> bool {
    query.source.is_none_or(|source| record.source() == source) && query.request_id.is_none_or(|id| record.request_id() == id)
}

#[cfg(test)]
mod tests;
