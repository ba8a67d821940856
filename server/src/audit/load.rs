//! How much the traffic of the logs is: its busiest quarter of an hour, and the arena that would hold it.
//!
//! The rule: records a second of the busiest [`TIMEFRAME_SECONDS`], times bytes a stored record, times that time, are the
//! requests to keep; the attack log is a fifth of the arena, and the slab that is recycled next is not counted on. Bytes are
//! those that the records take in the arena in frames of [`FRAME_RECORDS`], as the client library aims at. A log has less to
//! tell of a request than a filter: hits, sessions and, mostly, hosts are missing.

use crate::analytics::alerts::time_text;
use crate::arena::place::PLACE_HEADER_BYTES;
use crate::arena::{SLAB_BYTES, SLABS_MIN};
use crate::config::plan::keys_of;
use crate::config::values::GIGABYTE;
use postanalytics_protocol::RecordFields;
use postanalytics_protocol::batch::{blob_bytes, body_bytes};
use serde::Serialize;
use std::collections::BTreeMap;

/// The time that stored requests should cover, seconds: below it a timeframe is warned about.
pub const TIMEFRAME_SECONDS: u64 = 900;
/// Records that a client aims at in a frame.
const FRAME_RECORDS: u64 = 16;
/// Records a second that one shard is planned for, all detectors on: a third of what one was measured to take, so that bursts
/// have room (docs/performance.md).
const SHARD_RECORDS_PER_SECOND: f64 = 250_000.0;
const MINUTE_US: u64 = 60_000_000;
const TIMEFRAME_MINUTES: u64 = TIMEFRAME_SECONDS / 60;

/// Records and bytes of each minute of the logs.
#[derive(Debug, Default)]
pub struct Load {
    minutes: BTreeMap<u64, (u64, u64)>,
    from_us: Option<u64>,
    until_us: u64,
    /// The frame that is being filled.
    frame_records: u64,
    frame_blob_bytes: u64,
    records: u64,
    /// Bytes of full frames in the arena, and their records.
    stored_bytes: u64,
    stored_records: u64,
}

/// What the traffic needs, as `--json` writes it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Needs {
    /// Begin of the busiest 15 minutes, RFC 3339.
    pub busiest_from: String,
    pub busiest_records: u64,
    pub busiest_records_per_second: f64,
    /// Of the busiest minute.
    pub peak_records_per_second: f64,
    pub bytes_per_stored_record: f64,
    pub timeframe_seconds: u64,
    pub shards: u32,
    /// `--arena` that holds the busiest 15 minutes.
    pub arena_gb: f64,
    /// How long the default of 1 GB would cover at that rate.
    pub default_arena_seconds: f64,
    /// Keys of detectors over all files, and those that such an arena has room for.
    pub keys: u64,
    pub keys_max: u64,
}

impl Load {
    /// Takes a record.
    pub fn add(&mut self, fields: &RecordFields<'_>) {
        let minute = self.minutes.entry(fields.event_us / MINUTE_US).or_default();
        minute.0 += 1;
        self.records += 1;
        self.from_us = Some(self.from_us.map_or(fields.event_us, |from_us| from_us.min(fields.event_us)));
        self.until_us = self.until_us.max(fields.event_us);
        self.frame_records += 1;
        self.frame_blob_bytes += blob_bytes(fields) as u64;
        if self.frame_records == FRAME_RECORDS {
            self.end_frame();
        }
    }

    fn end_frame(&mut self) {
        let body_bytes = body_bytes(self.frame_records as usize, self.frame_blob_bytes as usize);
        self.stored_bytes += (PLACE_HEADER_BYTES + body_bytes) as u64;
        self.stored_records += self.frame_records;
        (self.frame_records, self.frame_blob_bytes) = (0, 0);
    }

    /// Times of the earliest and the latest record, RFC 3339; empty without any.
    pub fn period(&self) -> (String, String) {
        self.from_us.map_or_else(Default::default, |from_us| (time_text(from_us), time_text(self.until_us)))
    }

    /// What all of it needs. `keys` are those that the detectors had.
    pub fn needs(&mut self, keys: u64) -> Needs {
        if self.frame_records > 0 {
            self.end_frame();
        }
        let (busiest_minute, busiest_records) = self.busiest();
        // A log shorter than that is as busy as it is, but not less than over a minute.
        let span_seconds = self.from_us.map_or(0, |from_us| (self.until_us - from_us) / 1_000_000 + 1);
        let seconds = span_seconds.clamp(60, TIMEFRAME_SECONDS) as f64;
        let per_second = busiest_records as f64 / seconds;
        let peak = self.minutes.values().map(|minute| minute.0).max().unwrap_or(0) as f64 / 60.0;
        let bytes_each = if self.stored_records == 0 { 0.0 } else { self.stored_bytes as f64 / self.stored_records as f64 };
        let bytes_per_second = per_second * bytes_each;
        let shards = ((peak / SHARD_RECORDS_PER_SECOND).ceil() as u32).max(1);
        let arena_bytes = arena_bytes(bytes_per_second, shards);
        Needs {
            busiest_from: if busiest_records == 0 { String::new() } else { time_text(busiest_minute * MINUTE_US) },
            busiest_records,
            busiest_records_per_second: per_second,
            peak_records_per_second: peak,
            bytes_per_stored_record: bytes_each,
            timeframe_seconds: TIMEFRAME_SECONDS,
            shards,
            // Two decimals, upwards: what is written after --arena must hold it.
            arena_gb: (arena_bytes as f64 / GIGABYTE as f64 * 100.0).ceil() / 100.0,
            default_arena_seconds: if bytes_per_second > 0.0 { GIGABYTE as f64 * 0.8 / bytes_per_second } else { 0.0 },
            keys,
            keys_max: keys_of(arena_bytes / u64::from(shards)) as u64 * u64::from(shards),
        }
    }

    /// First minute and records of the busiest 15 minutes, the earliest of them.
    fn busiest(&self) -> (u64, u64) {
        let of_window = |first: u64| self.minutes.range(first..first + TIMEFRAME_MINUTES).map(|(_, minute)| minute.0).sum();
        let windows = self.minutes.keys().map(|&first| (first, of_window(first)));
        windows.max_by_key(|&(first, records): &(u64, u64)| (records, std::cmp::Reverse(first))).unwrap_or((0, 0))
    }
}

/// The arena that keeps so many bytes a second for the timeframe, in whole slabs of every shard.
fn arena_bytes(bytes_per_second: f64, shards: u32) -> u64 {
    let of_shard = bytes_per_second * TIMEFRAME_SECONDS as f64 / f64::from(shards);
    let request_slabs = (of_shard / SLAB_BYTES as f64).ceil() as u64 + 1;
    let slabs = (request_slabs * 5).div_ceil(4).max(SLABS_MIN);
    slabs * SLAB_BYTES * u64::from(shards)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(events: impl Iterator<Item = u64>) -> Load {
        let mut load = Load::default();
        events.for_each(|event_us| load.add(&RecordFields { event_us, path: &[b'p'; 100], ..RecordFields::default() }));
        load
    }

    #[test]
    fn the_busiest_quarter_of_an_hour_decides() {
        // One a second for an hour, and ten a second for 15 minutes in it.
        let hour = (0..3600).map(|second| 1_700_000_040_000_000 + second * 1_000_000);
        let burst = (0..9000).map(|tenth| 1_700_001_240_000_000 + tenth * 100_000);
        let needs = load(hour.chain(burst)).needs(7);
        assert_eq!((needs.busiest_records, needs.busiest_from.as_str()), (9900, "2023-11-14T22:34:00.000000Z"));
        assert!((needs.busiest_records_per_second - 11.0).abs() < 1e-9 && (needs.peak_records_per_second - 11.0).abs() < 1e-9);
        // 16 records with 100 bytes of text each, and the header of a place.
        let each = (body_bytes(16, 1600) + PLACE_HEADER_BYTES) as f64 / 16.0;
        assert!((needs.bytes_per_stored_record - each).abs() < 0.5, "{needs:?}");
        assert_eq!((needs.shards, needs.keys, needs.keys_max), (1, 7, 40_960));
        assert!((needs.arena_gb - 0.04).abs() < 1e-9, "the least that a shard needs: {needs:?}");
    }

    #[test]
    fn a_short_log_is_as_busy_as_it_is() {
        let needs = load((0..60_000).map(|number| 1_700_000_040_000_000 + number * 2_000)).needs(0);
        assert!((needs.busiest_records_per_second - 500.0).abs() < 5.0, "{needs:?}");
        let empty = load(std::iter::empty()).needs(0);
        assert_eq!((empty.busiest_records, empty.shards, empty.busiest_from.as_str()), (0, 1, ""));
    }

    #[test]
    fn an_arena_has_room_for_the_timeframe_in_its_request_logs() {
        for (bytes_per_second, shards) in [(1e3, 1), (1e6, 1), (12.34e6, 3), (1e9, 64)] {
            let bytes = arena_bytes(bytes_per_second, shards);
            let (requests, _) = crate::arena::split_slabs(bytes / u64::from(shards));
            let kept = (requests - 1) * SLAB_BYTES * u64::from(shards);
            assert!(kept as f64 >= bytes_per_second * 900.0, "{bytes_per_second} {shards}: {kept}");
        }
        assert!(arena_bytes(1e6, 1) < (1_250 << 20), "and not much more");
    }
}
