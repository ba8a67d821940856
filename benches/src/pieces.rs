//! The pieces of a frame's way through a shard, each alone and all together, fed from memory.
//!
//! A piece handles one frame of [`RECORDS`] records of about 512 bytes. The input is the same every time and lies in the cache,
//! as it does in a shard that has just received it.

use crate::{RECORDS, body_of, frame, shard, stamp};
use bumpalo::Bump;
use postanalytics_protocol::{Assembler, HEADER_BYTES, ValidBatch, shard_of};
use postanalytics_server::analytics::{Analytics, Timing};
use postanalytics_server::arena::{Log, PlaceHeader};
use postanalytics_server::shard::{Now, Usage};
use std::hint::black_box;

/// One piece.
#[expect(missing_debug_implementations, reason = "closures")]
pub struct Piece {
    /// Its name.
    pub name: &'static str,
    /// Handles one frame; returns how many records that were, 0 if it failed.
    pub run: Box<dyn FnMut() -> u32>,
}

/// All pieces. Those that find no memory are missing, and said to be.
pub fn pieces() -> Vec<Piece> {
    let always = [crc(), validate(), route(), analyse(), assemble()];
    let with_memory = [arena(), source_filter(), whole_shard()];
    if with_memory.iter().any(Option::is_none) {
        eprintln!("SKIPPED arena, source filter or shard: there is no memory for 192 MiB");
    }
    always.into_iter().chain(with_memory.into_iter().flatten()).collect()
}

fn crc() -> Piece {
    let body = body_of(frame(1, 1, RECORDS));
    let wanted = crc32fast::hash(&body);
    Piece { name: "crc", run: Box::new(move || if crc32fast::hash(black_box(&body)) == wanted { RECORDS } else { 0 }) }
}

fn validate() -> Piece {
    let body = body_of(frame(1, 1, RECORDS));
    let run = move || ValidBatch::parse(1, RECORDS, black_box(&body)).map_or(0, |batch| batch.len() as u32);
    Piece { name: "validate", run: Box::new(run) }
}

/// A valid batch for the rest of the process: 33 KiB are leaked, so that a piece can hold it.
fn valid_batch() -> ValidBatch<'static> {
    let body = Box::leak(Box::new(body_of(frame(1, 1, RECORDS))));
    ValidBatch::parse(1, RECORDS, body).unwrap_or_else(|error| unreachable!("the frame is good: {error}"))
}

/// The source of every record, and the shard of eight that it belongs to.
fn route() -> Piece {
    let batch = valid_batch();
    let run = move || {
        let routed = black_box(&batch).records().map(|record| u32::from(black_box(shard_of(record.source(), 7, 8)) < 8));
        routed.sum()
    };
    Piece { name: "route", run: Box::new(run) }
}

fn analyse() -> Piece {
    let batch = valid_batch();
    let (mut analytics, mut scratch) = (Analytics::default(), Bump::new());
    let timing = Timing { arrival_us: 1_700_000_000_000_000, ..Timing::default() };
    let run = move || {
        let hits = black_box(analytics.observe(black_box(&batch), timing, &[], &scratch)).len();
        scratch.reset();
        if hits == 0 { RECORDS } else { 0 }
    };
    Piece { name: "analyse", run: Box::new(run) }
}

/// Bytes to a frame: header CRC, length, copy of the body, body CRC.
fn assemble() -> Piece {
    let frame = frame(1, 1, RECORDS);
    let (mut body, mut assembler) = (Default::default(), Assembler::default());
    let run = move || match assembler.collect(&mut black_box(frame.as_slice()), &mut body) {
        Ok(Some(header)) => header.record_count,
        _ => 0,
    };
    Piece { name: "assemble", run: Box::new(run) }
}

/// Reserve, copy, commit; the log is full after its first round, so every slab is recycled.
fn arena() -> Option<Piece> {
    let frame = frame(1, 1, RECORDS);
    let mut log = Log::new(64).ok()?;
    log.memory().prefault().ok()?;
    let run = move || {
        let body = black_box(&frame[HEADER_BYTES..]);
        let Ok(place) = log.reserve(body.len() as u32) else { return 0 };
        log.fill(&place, 0, body, 0);
        log.commit(place, PlaceHeader { record_count: RECORDS, arrival_us: 1, ..PlaceHeader::default() });
        RECORDS
    };
    Some(Piece { name: "arena append and recycle", run: Box::new(run) })
}

/// The sources of a frame into the filter of its slab, validation included, which the filter is filled along with.
fn source_filter() -> Option<Piece> {
    let frame = frame(1, 1, RECORDS);
    let body = &frame[HEADER_BYTES..];
    let mut log = Log::new(64).ok()?;
    log.memory().prefault().ok()?;
    let place = log.reserve(body.len() as u32).ok()?;
    log.fill(&place, 0, body, body.len());
    let run = move || {
        let (body, mut filter) = log.body_and_filter(&place);
        let Ok(batch) = ValidBatch::parse(1, RECORDS, black_box(body)) else { return 0 };
        batch.records().for_each(|record| filter.insert(record.source()));
        batch.len() as u32
    };
    Some(Piece { name: "validate and fill the source filter", run: Box::new(run) })
}

/// All of it: bytes in, batch stored and analysed, Ack out.
fn whole_shard() -> Option<Piece> {
    let mut now = Now { monotonic_us: 1, wall_us: 1 };
    let mut shard = shard(now)?;
    let mut frame = frame(1, 1, RECORDS);
    let mut sequence = 0;
    let run = move || {
        sequence += 1;
        now.monotonic_us += 10;
        now.wall_us += 10;
        stamp(&mut frame, sequence);
        shard.received(0, black_box(&frame), now);
        shard.end_turn(Usage::default(), now);
        while let Some(link) = shard.take_dirty() {
            if let Some(outbox) = shard.outbox(link) {
                black_box(&*outbox);
                outbox.clear();
                shard.sent(link);
            }
        }
        if shard.stats().frames_stored == sequence { RECORDS } else { 0 }
    };
    Some(Piece { name: "shard from memory: store and ack", run: Box::new(run) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_piece_does_its_work_every_time() {
        for mut piece in pieces() {
            // More than a round of the log, so that recycling is among it.
            for _ in 0..5_000 {
                assert_eq!((piece.run)(), RECORDS, "{}", piece.name);
            }
        }
    }
}
