//! A log: slabs filled one after the other, the oldest recycled whole when the ring is full.
//!
//! A frame gets its place when its header is accepted, is filled piece by piece, and is committed or made void. Places of
//! several connections are open side by side and commit in any order. **Invariants** (checked by [`Log::invariants`]):
//! places of a slab do not overlap and lie between the slab's header and its fill level; a slab with open places is never
//! recycled; `records_stored = records_live + records_evicted`; a handle resolves only to the frame it was made for.
//!
//! A search goes newest first, place by place, and leaves out slabs that cannot hold what it looks for ([`Log::may_hold`]).

use super::filter::{self, FILTER_BYTES, SourceFilter};
use super::mapping::{Mapping, prefetch};
use super::place::{PLACE_HEADER_BYTES, PlaceHeader, STATE_COMMITTED, STATE_OFFSET, STATE_OPEN, STATE_VOID};
use super::{SLAB_BYTES, split_slabs};
use crate::seeded::{self, Bug};
use postanalytics_protocol::Source;
use std::io;
use thiserror::Error;

/// Where the filter of a slab begins; before it a later file format has room for a header.
const FILTER_OFFSET: usize = 64;
/// Bytes at the start of a slab that hold no place, so that offset 0 can mean "none".
const SLAB_HEADER_BYTES: u32 = (FILTER_OFFSET + FILTER_BYTES) as u32;
/// Open places may take this fraction of a log.
const OPEN_FRACTION: u64 = 8;

/// Why no place could be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[expect(missing_docs, reason = "the messages say what each field is")]
pub enum ReserveError {
    #[error("a frame of {body_bytes} bytes does not fit into a slab of {SLAB_BYTES} bytes")]
    TooLarge { body_bytes: u32 },
    #[error("unfinished frames take {open_bytes} of the {limit_bytes} bytes they may take")]
    TooManyOpen { open_bytes: u64, limit_bytes: u64 },
    #[error("slab {slab} is next to be recycled and still has {open_places} unfinished frames")]
    SlabInUse { slab: u32, open_places: u32 },
}

/// A place being filled. Give it back by [`Log::commit`] or [`Log::void`].
///
/// How much of it is filled is known to whoever fills it.
#[derive(Debug)]
#[must_use = "an open place must be committed or made void"]
pub struct OpenPlace {
    slab: u32,
    offset: u32,
    body_bytes: u32,
    /// Offset of the place before it in the slab, 0 for none.
    previous: u32,
}

impl OpenPlace {
    /// The slab it lies in.
    pub const fn slab(&self) -> u32 {
        self.slab
    }

    /// Bytes of header and body.
    const fn length(&self) -> u32 {
        PLACE_HEADER_BYTES as u32 + self.body_bytes
    }
}

/// Where a committed frame lies. Fails closed: once the slab is recycled it resolves to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlabHandle {
    /// Slab.
    pub slab: u32,
    /// Generation of the slab when the handle was made.
    pub generation: u64,
    /// Offset of the place in the slab.
    pub offset: u32,
}

/// How full a log is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogUsage {
    /// Records committed since start.
    pub records_stored: u64,
    /// Records in the log now.
    pub records_live: u64,
    /// Records whose slab was recycled.
    pub records_evicted: u64,
    /// Bytes of committed places since start.
    pub bytes_stored: u64,
    /// Bytes of slabs in use.
    pub bytes_used: u64,
    /// Bytes of all slabs.
    pub bytes_total: u64,
    /// Open places.
    pub open_places: u64,
    /// Bytes of open places.
    pub open_bytes: u64,
    /// Places made void since start.
    pub places_void: u64,
    /// Arrival of the oldest frame, Unix µs; 0 for none.
    pub oldest_arrival_us: u64,
    /// Arrival of the newest frame, Unix µs; 0 for none.
    pub newest_arrival_us: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Slab {
    /// 0: never used.
    generation: u64,
    used: u32,
    last: u32,
    open_places: u32,
    records: u64,
    first_arrival_us: u64,
    newest_arrival_us: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Log {
    memory: Mapping,
    slabs: Vec<Slab>,
    current: usize,
    oldest: usize,
    usage: LogUsage,
}

impl Log {
    /// The request log and the attack log of a shard with `arena_bytes`, mapped but not prefaulted.
    pub fn pair(arena_bytes: u64) -> io::Result<(Self, Self)> {
        let (request_slabs, attack_slabs) = split_slabs(arena_bytes);
        Ok((Self::new(request_slabs)?, Self::new(attack_slabs)?))
    }

    /// A log of `slabs` slabs (at least 2), mapped but not prefaulted. Errors: the memory cannot be mapped.
    pub fn new(slabs: u64) -> io::Result<Self> {
        let slabs = slabs.max(2);
        let memory = Mapping::new(slabs)?;
        let mut table = vec![Slab::default(); slabs as usize];
        table[0] = Slab { generation: 1, used: SLAB_HEADER_BYTES, ..Slab::default() };
        let usage = LogUsage { bytes_total: slabs * SLAB_BYTES, bytes_used: SLAB_BYTES, ..LogUsage::default() };
        Ok(Self { memory, slabs: table, current: 0, oldest: 0, usage })
    }

    /// The memory, to prefault it and to see what pages it got.
    pub const fn memory(&mut self) -> &mut Mapping {
        &mut self.memory
    }

    /// How full it is.
    pub const fn usage(&self) -> LogUsage {
        self.usage
    }

    /// Largest body that can be stored.
    pub const fn body_bytes_max() -> u32 {
        SLAB_BYTES as u32 - SLAB_HEADER_BYTES - PLACE_HEADER_BYTES as u32
    }

    /// Reserves a place for a body of `body_bytes` (a multiple of 16), recycling the oldest slab if need be.
    pub fn reserve(&mut self, body_bytes: u32) -> Result<OpenPlace, ReserveError> {
        if body_bytes > Self::body_bytes_max() || !body_bytes.is_multiple_of(16) {
            return Err(ReserveError::TooLarge { body_bytes });
        }
        let length = PLACE_HEADER_BYTES as u32 + body_bytes;
        // At least a slab, so that the smallest log takes the largest frame.
        let limit_bytes = (self.usage.bytes_total / OPEN_FRACTION).max(SLAB_BYTES);
        if self.usage.open_bytes + u64::from(length) > limit_bytes {
            return Err(ReserveError::TooManyOpen { open_bytes: self.usage.open_bytes, limit_bytes });
        }
        if u64::from(self.slabs[self.current].used + length) > SLAB_BYTES {
            self.advance()?;
        }
        let slab = &mut self.slabs[self.current];
        let (offset, previous) = (slab.used, slab.last);
        let header = PlaceHeader { length, state: STATE_OPEN, previous, generation: slab.generation, ..PlaceHeader::default() };
        slab.used += length;
        slab.last = offset;
        slab.open_places += 1;
        self.usage.open_places += 1;
        self.usage.open_bytes += u64::from(length);
        let at = position(self.current, offset);
        self.memory[at..at + PLACE_HEADER_BYTES].copy_from_slice(&header.encode());
        // Where the next place's header will be, on up to three lines: they come from memory while this body is checked or received.
        for line in [0, 64, PLACE_HEADER_BYTES - 1] {
            if let Some(next) = self.memory.get(at + length as usize + line) {
                prefetch(next);
            }
        }
        Ok(OpenPlace { slab: self.current as u32, offset, body_bytes, previous })
    }

    /// Writes bytes to the body of an open place, behind as many as came before; what does not fit is a bug of the caller. Only the
    /// first `read_soon` bytes of the body go through the caches.
    #[inline]
    pub fn fill(&mut self, place: &OpenPlace, came: usize, bytes: &[u8], read_soon: usize) {
        assert!(came + bytes.len() <= place.body_bytes as usize, "the body is not longer than its place");
        let at = body_position(place) + came;
        let (soon, late) = bytes.split_at(read_soon.saturating_sub(came).min(bytes.len()));
        if !soon.is_empty() {
            self.memory[at..at + soon.len()].copy_from_slice(soon);
        }
        if !late.is_empty() {
            self.memory.write_past_caches(at + soon.len(), late);
        }
    }

    /// The body of an open place, to be written in one go.
    pub fn body_mut(&mut self, place: &OpenPlace) -> &mut [u8] {
        let at = body_position(place);
        &mut self.memory[at..at + place.body_bytes as usize]
    }

    /// The body of an open place (all of it, also what is not filled yet) and the filter of its slab, which must know every
    /// source of a body that is committed: who reads the one for its sources has the other at hand.
    pub fn body_and_filter(&mut self, place: &OpenPlace) -> (&[u8], SourceFilter<'_>) {
        let (at, slab) = (body_position(place), position(place.slab as usize, 0));
        let (before, body) = self.memory[slab..at + place.body_bytes as usize].split_at_mut(at - slab);
        let Some(filter) = SourceFilter::new(&mut before[FILTER_OFFSET..SLAB_HEADER_BYTES as usize]) else {
            unreachable!("the range has just the bytes of a filter")
        };
        (body, filter)
    }

    /// Commits a place, all of which is filled. Of `header` the caller fills record count, commit index, arrival, sender and flags; length,
    /// state, previous and generation are the log's.
    pub fn commit(&mut self, place: OpenPlace, mut header: PlaceHeader) -> SlabHandle {
        let at = position(place.slab as usize, place.offset);
        header.length = place.length();
        header.state = STATE_OPEN;
        header.previous = place.previous;
        header.generation = self.slabs[place.slab as usize].generation;
        self.memory[at..at + PLACE_HEADER_BYTES].copy_from_slice(&header.encode());
        self.memory.store_release(at + STATE_OFFSET, STATE_COMMITTED);

        let slab = &mut self.slabs[place.slab as usize];
        slab.open_places -= 1;
        slab.records += u64::from(header.record_count);
        if slab.first_arrival_us == 0 {
            slab.first_arrival_us = header.arrival_us;
        }
        slab.newest_arrival_us = slab.newest_arrival_us.max(header.arrival_us);
        let usage = &mut self.usage;
        usage.open_places -= 1;
        usage.open_bytes -= u64::from(header.length);
        usage.records_stored += u64::from(header.record_count);
        usage.records_live += u64::from(header.record_count);
        usage.bytes_stored += u64::from(header.length);
        usage.newest_arrival_us = usage.newest_arrival_us.max(header.arrival_us);
        if usage.oldest_arrival_us == 0 {
            usage.oldest_arrival_us = header.arrival_us;
        }
        SlabHandle { slab: place.slab, generation: header.generation, offset: place.offset }
    }

    /// Gives up a place. If nothing came after it in its slab, its room is used again.
    pub fn void(&mut self, place: OpenPlace) {
        self.memory.store_release(position(place.slab as usize, place.offset) + STATE_OFFSET, STATE_VOID);
        let slab = &mut self.slabs[place.slab as usize];
        slab.open_places -= 1;
        // Only in the open slab, where nobody searches past the fill level: a cursor may stand on a place of an older one.
        if slab.last == place.offset && place.slab as usize == self.current {
            slab.used = place.offset;
            slab.last = place.previous;
        }
        self.usage.open_places -= 1;
        self.usage.open_bytes -= u64::from(place.length());
        self.usage.places_void += 1;
    }

    /// The newest place, in whatever state.
    pub fn newest(&self) -> Option<SlabHandle> {
        self.last_of(self.current).or_else(|| self.newest_before(self.current))
    }

    /// The place before `handle`, in whatever state; `None` at the oldest, or if the slab was recycled meanwhile.
    pub fn older(&self, handle: SlabHandle) -> Option<SlabHandle> {
        let header = self.resolve(handle)?;
        match header.previous {
            0 => self.newest_before(handle.slab as usize),
            offset => Some(SlabHandle { offset, ..handle }),
        }
    }

    /// The newest place of the slabs before that of `handle`; `None` at the oldest, or if the slab was recycled meanwhile.
    pub fn before_slab(&self, handle: SlabHandle) -> Option<SlabHandle> {
        let is_live = self.slabs.get(handle.slab as usize).is_some_and(|slab| slab.generation == handle.generation);
        is_live.then(|| self.newest_before(handle.slab as usize)).flatten()
    }

    /// Whether the slab of `handle` may hold a record of this source, and one that arrived at `since_us` or later. `true` says nothing for sure, `false` does.
    pub fn may_hold(&self, handle: SlabHandle, source: Option<Source>, since_us: Option<u64>) -> bool {
        let Some(slab) = self.slabs.get(handle.slab as usize) else { return false };
        let filter_at = position(handle.slab as usize, 0) + FILTER_OFFSET;
        let filter = &self.memory[filter_at..filter_at + FILTER_BYTES];
        since_us.is_none_or(|since_us| slab.newest_arrival_us >= since_us)
            && source.is_none_or(|source| filter::may_hold(filter, source))
    }

    /// Whether the place of `handle` is still being filled. Its room may be given back, and hold something else afterwards: nothing
    /// that is to be resolved in a later turn may stand on it.
    pub fn is_open(&self, handle: SlabHandle) -> bool {
        self.resolve(handle).is_some_and(|header| header.state == STATE_OPEN)
    }

    /// Header and body of a committed frame; `None` if it is not committed or was recycled.
    pub fn frame(&self, handle: SlabHandle) -> Option<(PlaceHeader, &[u8])> {
        let header = self.resolve(handle).filter(|header| header.state == STATE_COMMITTED)?;
        let start = position(handle.slab as usize, handle.offset) + PLACE_HEADER_BYTES;
        let end = position(handle.slab as usize, handle.offset) + header.length as usize;
        Some((header, self.memory.get(start..end)?))
    }

    /// Panics if an invariant of the module is broken. For tests and simulation: it walks every place.
    pub fn invariants(&self) {
        let (mut records, mut open_places, mut open_bytes) = (0, 0, 0);
        for (index, slab) in self.slabs.iter().enumerate() {
            let (mut offset, mut end, mut slab_records, mut slab_open) = (slab.last, slab.used, 0, 0);
            assert!(u64::from(slab.used) <= SLAB_BYTES);
            while offset != 0 {
                let header = self.header_at(position(index, offset));
                assert_eq!(header.generation, slab.generation, "a place of another generation in slab {index}");
                assert!(offset >= SLAB_HEADER_BYTES && offset + header.length <= end, "places of slab {index} overlap");
                match header.state {
                    STATE_OPEN => {
                        slab_open += 1;
                        open_bytes += u64::from(header.length);
                    }
                    STATE_COMMITTED => slab_records += u64::from(header.record_count),
                    state => assert_eq!(state, STATE_VOID),
                }
                end = offset;
                offset = header.previous;
            }
            assert_eq!((slab_records, slab_open), (slab.records, slab.open_places), "slab {index}");
            records += slab_records;
            open_places += u64::from(slab_open);
        }
        let usage = self.usage;
        assert_eq!((records, open_places, open_bytes), (usage.records_live, usage.open_places, usage.open_bytes));
        assert_eq!(usage.records_stored, usage.records_live + usage.records_evicted);
    }

    /// Opens the next slab, recycling it if it is in use.
    fn advance(&mut self) -> Result<(), ReserveError> {
        let next = (self.current + 1) % self.slabs.len();
        let recycled = self.slabs[next];
        if recycled.open_places > 0 {
            return Err(ReserveError::SlabInUse { slab: next as u32, open_places: recycled.open_places });
        }
        let generation = self.slabs[self.current].generation + 1;
        self.slabs[next] = Slab { generation, used: SLAB_HEADER_BYTES, ..Slab::default() };
        self.current = next;
        let filter_at = position(next, 0) + FILTER_OFFSET;
        self.memory[filter_at..filter_at + FILTER_BYTES].fill(0);
        if recycled.generation == 0 {
            self.usage.bytes_used += SLAB_BYTES;
            return Ok(());
        }
        self.usage.records_live -= recycled.records;
        self.usage.records_evicted += recycled.records;
        self.oldest = (next + 1) % self.slabs.len();
        self.usage.oldest_arrival_us = self.first_arrival_us();
        Ok(())
    }

    /// Arrival of the first frame of the oldest slab that has one; 0 if the log is empty.
    fn first_arrival_us(&self) -> u64 {
        let slabs = self.slabs[self.oldest..].iter().chain(&self.slabs[..self.oldest]);
        slabs.map(|slab| slab.first_arrival_us).find(|arrival_us| *arrival_us != 0).unwrap_or(0)
    }

    fn newest_before(&self, mut slab: usize) -> Option<SlabHandle> {
        let newest_generation = self.slabs[slab].generation;
        loop {
            slab = (slab + self.slabs.len() - 1) % self.slabs.len();
            let generation = self.slabs[slab].generation;
            if generation == 0 || generation >= newest_generation {
                return None;
            }
            if let Some(handle) = self.last_of(slab) {
                return Some(handle);
            }
        }
    }

    fn last_of(&self, slab: usize) -> Option<SlabHandle> {
        let Slab { generation, last, .. } = self.slabs[slab];
        (last != 0).then_some(SlabHandle { slab: slab as u32, generation, offset: last })
    }

    fn resolve(&self, handle: SlabHandle) -> Option<PlaceHeader> {
        let slab = self.slabs.get(handle.slab as usize)?;
        let inside = handle.offset >= SLAB_HEADER_BYTES && handle.offset < slab.used;
        if slab.generation != handle.generation && !seeded::is(Bug::HandleRevived) || !inside {
            return None;
        }
        let header = self.header_at(position(handle.slab as usize, handle.offset));
        // Room given back and used again differently leaves no header at an old offset.
        (header.generation == handle.generation || seeded::is(Bug::HandleRevived)).then_some(header)
    }

    fn header_at(&self, at: usize) -> PlaceHeader {
        let mut bytes = [0; PLACE_HEADER_BYTES];
        bytes.copy_from_slice(&self.memory[at..at + PLACE_HEADER_BYTES]);
        PlaceHeader::decode(&bytes)
    }
}

const fn position(slab: usize, offset: u32) -> usize {
    slab * SLAB_BYTES as usize + offset as usize
}

const fn body_position(place: &OpenPlace) -> usize {
    position(place.slab as usize, place.offset) + PLACE_HEADER_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::VecDeque;

    fn header(records: u32, arrival_us: u64) -> PlaceHeader {
        PlaceHeader { record_count: records, arrival_us, ..PlaceHeader::default() }
    }

    /// A body that is another one wherever it is shifted to.
    fn content(byte: u8, bytes: u32) -> Vec<u8> {
        (0..bytes).map(|at| byte ^ at as u8 ^ (at >> 8) as u8 ^ (at >> 16) as u8).collect()
    }

    /// A model beside the log: every committed frame in order of its place, with the number that its content is made of.
    #[test]
    fn random_operations_agree_with_a_model() {
        let mut random = fastrand::Rng::with_seed(7);
        let mut log = Log::new(5).expect("10 MiB");
        // With how much of it came already.
        let mut open: Vec<(OpenPlace, u8, usize)> = Vec::new();
        let mut committed: VecDeque<(SlabHandle, u8, u32)> = VecDeque::new();
        let mut slab_in_use = 0;
        for step in 1..30_000u64 {
            match random.u32(0..10) {
                0..5 => match log.reserve(random.u32(0..8_000) * 16) {
                    Ok(place) => {
                        let body = content(step as u8, place.body_bytes);
                        let came = random.usize(0..=body.len());
                        log.fill(&place, 0, &body[..came], random.usize(0..=body.len()));
                        open.push((place, step as u8, came));
                    }
                    Err(ReserveError::SlabInUse { slab, .. }) => {
                        slab_in_use += 1;
                        let (victims, rest): (Vec<_>, Vec<_>) = open.into_iter().partition(|(place, ..)| place.slab() == slab);
                        open = rest;
                        victims.into_iter().for_each(|(place, ..)| log.void(place));
                    }
                    Err(_) => {}
                },
                5..9 if !open.is_empty() => {
                    // Mostly the newest, so that some places stay open until their slab is needed.
                    let newest = open.len() - 1;
                    let (place, byte, came) = open.remove(if random.u8(0..50) > 0 { newest } else { random.usize(0..=newest) });
                    let body = content(byte, place.body_bytes);
                    log.fill(&place, came, &body[came..], random.usize(0..=body.len()));
                    let body_bytes = place.body_bytes;
                    committed.push_back((log.commit(place, header(1, step)), byte, body_bytes));
                }
                _ if open.len() > 5 => log.void(open.remove(random.usize(5..open.len())).0),
                _ => {}
            }
            if step % 64 == 0 {
                log.invariants();
            }
        }
        let live: Vec<_> = committed.iter().filter(|(handle, ..)| log.frame(*handle).is_some()).collect();
        assert_eq!(live.len() as u64, log.usage().records_live);
        for (handle, byte, body_bytes) in live {
            let (_, body) = log.frame(*handle).expect("live");
            assert!(body == content(*byte, *body_bytes));
        }
        let mut found = 0;
        let mut next = log.newest();
        while let Some(handle) = next {
            found += u64::from(log.frame(handle).is_some());
            next = log.older(handle);
        }
        assert_eq!(found, log.usage().records_live);
        assert!(log.usage().records_evicted > 1_000 && slab_in_use > 0, "{:?} {slab_in_use}", log.usage());
    }

    #[test]
    fn a_recycled_slab_makes_its_handles_resolve_to_nothing() {
        let mut log = Log::new(2).expect("4 MiB");
        let mut handles = Vec::new();
        for arrival_us in 1..=10 {
            let place = log.reserve(500_000 & !15).expect("room");
            log.body_mut(&place).fill(arrival_us as u8);
            handles.push(log.commit(place, header(2, arrival_us)));
        }
        log.invariants();
        assert_eq!(log.usage().records_stored, 20);
        let live: Vec<_> = handles.iter().filter(|handle| log.frame(**handle).is_some()).collect();
        assert_eq!(live.len() as u64 * 2, log.usage().records_live);
        assert!(log.usage().records_evicted > 0);
        assert_eq!(log.usage().newest_arrival_us, 10);
        assert_eq!(log.frame(*live[0]).map(|(header, _)| header.arrival_us), Some(log.usage().oldest_arrival_us));
    }

    #[test]
    fn limits_are_named() {
        let mut log = Log::new(2).expect("4 MiB");
        assert!(matches!(log.reserve(Log::body_bytes_max() + 16), Err(ReserveError::TooLarge { .. })));
        let first = log.reserve(1 << 20).expect("a slab is allowed");
        assert!(matches!(log.reserve(1 << 20), Err(ReserveError::TooManyOpen { .. })));
        log.void(first);
        log.invariants();
        assert_eq!(log.usage().open_bytes, 0);
    }

    #[test]
    fn a_torn_frame_at_the_end_gives_its_room_back() {
        let mut log = Log::new(2).expect("4 MiB");
        let first = log.reserve(1024).expect("room");
        let offset = first.offset;
        log.void(first);
        let second = log.reserve(2048).expect("room");
        assert_eq!(second.offset, offset);
        log.void(second);
    }
}
