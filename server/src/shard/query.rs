//! Reading stored records out of the slabs, newest first, a bounded slice per turn.

use super::Shard;
use super::messages::{Cursor, Query, QueryPage, StoredRecord};
use crate::arena::{Log, PlaceHeader, SlabHandle};
use postanalytics_protocol::{RecordView, ValidBatch};

/// Records looked at in one turn.
const SLICE_RECORDS: u64 = 2_048;
/// Places looked at in one turn, also those without a record in them.
const SLICE_PLACES: u32 = 256;
/// Frames stand in the log by the time they began, which may be this much before they were whole.
const ARRIVAL_SKEW_US: u64 = 60_000_000;

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
    pub fn query_slice(&mut self) -> Option<Box<Query>> {
        let mut query = self.query.take()?;
        let done = slice(&self.requests, &mut query);
        if done {
            return Some(query);
        }
        self.query = Some(query);
        None
    }
}

/// Returns whether the query goes back to who asked.
fn slice(log: &Log, query: &mut Query) -> bool {
    let slice_end = query.page.records_scanned + SLICE_RECORDS;
    let (mut next, mut records_left) = match query.cursor {
        None => (log.newest(), u32::MAX),
        Some(cursor) => {
            let handle = SlabHandle { slab: cursor.slab, generation: cursor.generation, offset: cursor.offset };
            (Some(handle), cursor.records_left)
        }
    };
    let mut places = 0;
    while let Some(handle) = next {
        places += 1;
        if query.page.records_scanned >= slice_end || places > SLICE_PLACES {
            query.cursor = Some(cursor(handle, records_left));
            return false;
        }
        if let Some((header, body)) = log.frame(handle) {
            if query.since_us.is_some_and(|since_us| header.arrival_us + ARRIVAL_SKEW_US < since_us) {
                break;
            }
            if let Some(left) = frame(query, &header, body, records_left) {
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

/// Looks at the first `records_left` records of a frame, last first. Returns how many are left when the page is full.
fn frame(query: &mut Query, header: &PlaceHeader, body: &[u8], records_left: u32) -> Option<u32> {
    // Checked again rather than trusted: 4 ns a record, and no unsafe access.
    let Ok(batch) = ValidBatch::parse(header.schema, header.record_count, body) else { return None };
    let mut left = records_left.min(header.record_count);
    while left > 0 {
        if query.page.stored.len() >= query.limit.min(QueryPage::RECORDS) {
            return Some(left);
        }
        if let Some(record) = batch.record(left as usize - 1)
            && matches(query, header, &record)
        {
            let room = postanalytics_protocol::batch::body_bytes(QueryPage::RECORDS, QueryPage::BLOB_BYTES);
            if query.page.records.push_view(&record, room).is_err() {
                return Some(left);
            }
            query.page.stored.push(StoredRecord {
                arrival_us: header.arrival_us,
                commit_index: header.commit_index,
                node: header.node,
                session: header.session,
                sent_us: header.sent_us,
            });
        }
        query.page.records_scanned += 1;
        left -= 1;
    }
    None
}

fn matches(query: &Query, header: &PlaceHeader, record: &RecordView<'_>) -> bool {
    query.source.is_none_or(|source| record.source() == source)
        && query.request_id.is_none_or(|id| record.request_id() == id)
        && query.since_us.is_none_or(|since_us| header.arrival_us >= since_us)
}
