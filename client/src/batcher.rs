//! From records to batches: how many wait for how long.
//!
//! A batch is sealed when it is full (it has all the records that it may have, or the next one would make it too long), when a
//! record in it is urgent, or when its oldest record has waited `linger`. The linger
//! follows the rate of the lane, so that a batch holds about as many records as the configuration aims at: at high rates
//! records wait little because company comes soon, at low rates they wait at most the upper limit.

use crate::bundle::{Bundle, Item};
use crate::config::Config;
use postanalytics_protocol::batch::body_bytes;

/// Strings of a batch up to which its memory is kept for the next one.
const KEPT_BYTES: usize = 128 * 1024;

/// How large a batch may be: what the configuration wants and the server takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BatchLimits {
    /// Bytes of a body that holds more than one record.
    pub(crate) body_bytes: usize,
    /// Bytes of any body.
    pub(crate) body_bytes_max: usize,
    pub(crate) records_max: usize,
}

/// The server takes no record so large. It is lost.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooLong;

/// The batch of one lane that is being filled.
#[derive(Default)]
pub(crate) struct Batcher {
    open: Bundle,
    urgent: bool,
    /// It has as many records as it may.
    full: bool,
    linger: Linger,
}

impl Batcher {
    pub(crate) fn new(config: &Config) -> Self {
        Self { open: Bundle::default(), urgent: false, full: false, linger: Linger::new(config) }
    }

    /// Adds a record. Returns the batch that it did not fit in any more, if there was one.
    pub(crate) fn push(&mut self, item: &Item<'_>, limits: &BatchLimits, now_us: u64) -> Result<Option<Bundle>, TooLong> {
        if body_bytes(1, item.blob.len()) > limits.body_bytes_max {
            return Err(TooLong);
        }
        let full = self.full || self.open.body_bytes_with(item) > limits.body_bytes;
        let sealed = (full && !self.open.is_empty()).then(|| self.seal(now_us));
        self.open.push_item(item);
        self.urgent |= item.meta.urgent;
        self.full = self.open.len() >= limits.records_max;
        Ok(sealed)
    }

    /// Closes the batch and starts the next one.
    pub(crate) fn seal(&mut self, now_us: u64) -> Bundle {
        if let Some(oldest_us) = self.open.oldest_us().filter(|_| !self.urgent) {
            self.linger.sealed(self.open.len() as u64, now_us.saturating_sub(oldest_us));
        }
        (self.urgent, self.full) = (false, false);
        // A copy has no spare room, which many small batches in flight would otherwise hold.
        let sealed = self.open.clone();
        if self.open.string_bytes() > KEPT_BYTES {
            self.open = Bundle::default();
        } else {
            self.open.clear();
        }
        sealed
    }

    /// When the batch is to be sealed if nothing more comes; `None` if it is empty.
    pub(crate) fn due_us(&self) -> Option<u64> {
        let oldest_us = self.open.oldest_us()?;
        Some(if self.urgent || self.full { 0 } else { oldest_us.saturating_add(self.linger.now_us) })
    }

    pub(crate) const fn linger_us(&self) -> u64 {
        self.linger.now_us
    }

    pub(crate) const fn open(&self) -> &Bundle {
        &self.open
    }

    pub(crate) const fn open_mut(&mut self) -> &mut Bundle {
        &mut self.open
    }

    pub(crate) fn take(&mut self) -> Bundle {
        (self.urgent, self.full) = (false, false);
        std::mem::take(&mut self.open)
    }
}

/// How long the oldest record of a batch waits for company.
#[derive(Clone, Copy, Debug, Default)]
struct Linger {
    now_us: u64,
    min_us: u64,
    max_us: u64,
    aim: u64,
}

impl Linger {
    fn new(config: &Config) -> Self {
        let (min_us, max_us) = (config.linger_us_min, config.linger_us_max);
        Self { now_us: min_us, min_us, max_us, aim: config.batch_records_aim.min(config.batch_records_max) as u64 }
    }

    /// Learns from a batch: moves a quarter of the way to the time in which so many records as aimed at would have come.
    fn sealed(&mut self, records: u64, waited_us: u64) {
        let ideal_us = (waited_us.saturating_mul(self.aim) / records.max(1)).clamp(self.min_us, self.max_us);
        self.now_us = ((3 * self.now_us + ideal_us) / 4).clamp(self.min_us, self.max_us);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Request;

    const LIMITS: BatchLimits = BatchLimits { body_bytes: 4096, body_bytes_max: 8192, records_max: 10 };

    fn one(path: &[u8], accepted_us: u64, urgent: bool) -> Bundle {
        let mut bundle = Bundle::default();
        let request = Request { path, ..Request::default() };
        bundle.push(&request, accepted_us, urgent);
        bundle
    }

    fn push(batcher: &mut Batcher, record: &Bundle, now_us: u64) -> Result<Option<usize>, TooLong> {
        let item = record.items().next().expect("one");
        batcher.push(&item, &LIMITS, now_us).map(|sealed| sealed.map(|bundle| bundle.len()))
    }

    fn batcher() -> Batcher {
        let linger = Linger { now_us: 500, min_us: 500, max_us: 20_000, aim: 16 };
        Batcher { linger, ..Batcher::default() }
    }

    #[test]
    fn full_is_by_bytes_or_records_and_one_record_may_be_larger() {
        let mut batcher = batcher();
        for _ in 0..10 {
            assert_eq!(push(&mut batcher, &one(b"/", 0, false), 0), Ok(None));
        }
        assert_eq!(push(&mut batcher, &one(b"/", 0, false), 0), Ok(Some(10)));
        assert_eq!(push(&mut batcher, &one(&[b'x'; 6000], 0, false), 0), Ok(Some(1)));
        assert_eq!(push(&mut batcher, &one(&[b'x'; 9000], 0, false), 0), Err(TooLong));
        assert_eq!(batcher.open().len(), 1, "what was there stays");
        assert_eq!(push(&mut batcher, &one(b"/", 0, false), 0), Ok(Some(1)));
    }

    #[test]
    fn an_urgent_record_is_due_at_once() {
        let mut batcher = batcher();
        assert_eq!(batcher.due_us(), None);
        push(&mut batcher, &one(b"/", 1000, false), 1000).expect("fits");
        assert_eq!(batcher.due_us(), Some(1500));
        push(&mut batcher, &one(b"/", 1100, true), 1100).expect("fits");
        assert_eq!(batcher.due_us(), Some(0));
        assert_eq!(batcher.seal(1100).len(), 2);
        assert_eq!((batcher.due_us(), batcher.linger_us()), (None, 500), "urgency teaches the linger nothing");
    }

    #[test]
    fn a_batch_with_all_its_records_is_due_at_once() {
        let mut batcher = batcher();
        for n in 1..=10 {
            assert_eq!(push(&mut batcher, &one(b"/", 1000, false), 1000), Ok(None));
            assert_eq!(batcher.due_us() == Some(0), n == 10, "{n}");
        }
    }

    #[test]
    fn users_and_sessions_count_and_their_memory_is_not_kept() {
        let mut batcher = batcher();
        let mut record = Bundle::default();
        let session = vec![b's'; 200_000];
        let request = Request { session: &session, ..Request::default() };
        record.push(&request, 0, false);
        assert_eq!(push(&mut batcher, &record, 0), Ok(None));
        assert_eq!(push(&mut batcher, &record, 0), Ok(Some(1)));
        batcher.seal(0);
        assert_eq!(batcher.open().capacity_bytes(), 0);
    }

    #[test]
    fn the_linger_follows_the_rate() {
        for (gap_us, expected_us) in [(10, 500), (100, 1600), (500, 8000), (100_000, 20_000)] {
            let mut batcher = batcher();
            let mut now_us = 0;
            for _ in 0..2000 {
                now_us += gap_us;
                if batcher.due_us().is_some_and(|due_us| due_us <= now_us) {
                    batcher.seal(now_us);
                }
                push(&mut batcher, &one(b"/", now_us, false), now_us).expect("fits");
            }
            let linger_us = batcher.linger_us();
            assert!(linger_us.abs_diff(expected_us) * 5 <= expected_us, "{gap_us}: {linger_us}, not {expected_us}");
        }
    }
}
