//! Records in, findings out. Pure: no I/O, no clock.
//!
//! - [`verdicts`]: the sources and sessions that filters are to deny or watch
//!
//! What is here now finds the records with hits; detectors come on top of it. A panic in here is caught by the
//! shard, which quarantines the frame.

pub mod verdicts;

use bumpalo::Bump;
use bumpalo::collections::Vec as BumpVec;
use postanalytics_protocol::ValidBatch;

/// What the analysis keeps: nothing yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Analytics {
    /// A record with this id panics, so that a test can see what becomes of it.
    #[cfg(test)]
    pub panic_at: Option<[u8; 16]>,
}

impl Analytics {
    /// Looks at every record of a batch. Returns the positions of those that carry hits, in `scratch`.
    pub fn observe<'scratch>(&mut self, batch: &ValidBatch<'_>, scratch: &'scratch Bump) -> BumpVec<'scratch, u32> {
        let mut with_hits = BumpVec::new_in(scratch);
        for (position, record) in batch.records().enumerate() {
            #[cfg(test)]
            assert_ne!(self.panic_at, Some(record.request_id()), "a test asked for this");
            if record.hit_count() > 0 {
                with_hits.push(position as u32);
            }
        }
        with_hits
    }
}
