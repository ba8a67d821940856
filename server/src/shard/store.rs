//! What becomes of a batch: refused by its header, a duplicate, or placed, checked, analysed, committed.

use super::connection::{Connection, Incoming, Refusal};
use super::merging::ACK_AT_ONCE_BYTES;
use super::{Now, Shard};
use crate::analytics::Timing;
use crate::arena::place::{FLAG_QUARANTINED, FLAG_REPLAY};
use crate::arena::{Log, OpenPlace, PlaceHeader, ReserveError, SlabHandle};
use crate::seeded::{self, Bug};
use bumpalo::collections::Vec as BumpVec;
use postanalytics_protocol::schema::v1::{RECORD_BYTES, SCHEMA};
use postanalytics_protocol::{BatchBuilder, ErrorCode, FrameHeader, Source, ValidBatch, shard_of};
use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A frame that is not whole after this long yields when others need its memory.
const OPEN_PATIENCE_US: u64 = 1_000_000;

/// Records that a frame counts for before it is read: what its header states, as far as its body has room for so many. The
/// number itself is the peer's to invent.
pub(super) fn believable_count(header: &FrameHeader) -> u32 {
    header.record_count.min(header.body_bytes / RECORD_BYTES as u32)
}

impl Shard {
    /// The header of a batch came: decide by it, and reserve a place.
    pub(super) fn batch_begins(&mut self, connection: &mut Connection, header: FrameHeader, now: Now) -> Result<(), Refusal> {
        let highest = self.sessions.at(connection.session).highest;
        if (1..=highest).contains(&header.sequence) && !seeded::is(Bug::LostDedup) {
            connection.incoming = Incoming::Duplicate(header);
            return Ok(());
        }
        let reserved = self.reserve(&header, highest, connection.ticket.peer.ip(), now);
        match reserved {
            Ok(place) => {
                if seeded::is(Bug::AckBeforeCommit) {
                    self.sessions.at(connection.session).highest = header.sequence;
                    if let Some(link) = self.sessions.at(connection.session).link {
                        self.owe_ack(link, connection, ACK_AT_ONCE_BYTES, now);
                    }
                }
                connection.incoming = Incoming::Batch(header, place);
                Ok(())
            }
            Err(refusal) => {
                self.count_rejected(connection, believable_count(&header));
                Err(refusal)
            }
        }
    }

    fn reserve(&mut self, header: &FrameHeader, highest: u64, peer: IpAddr, now: Now) -> Result<OpenPlace, Refusal> {
        let sequence = header.sequence;
        if sequence != highest + 1 && !(seeded::is(Bug::LostDedup) && (1..=highest).contains(&sequence)) {
            let text = format!("sequence {sequence} came, {} was expected", highest + 1);
            return Err(Refusal::of_batch(ErrorCode::SequenceGap, highest + 1, text));
        }
        if header.schema != SCHEMA {
            let text = format!("schema {} is not spoken here, only schema {SCHEMA}: upgrade this server first", header.schema);
            return Err(Refusal::of_batch(ErrorCode::UnsupportedSchema, sequence, text));
        }
        let most = believable_count(header);
        if header.record_count > most {
            let text = format!("the header states {} records, its body has room for {most}", header.record_count);
            return Err(Refusal::of_batch(ErrorCode::RecordCountMismatch, sequence, text));
        }
        loop {
            match self.requests.reserve(header.body_bytes) {
                Ok(place) => return Ok(place),
                Err(ReserveError::SlabInUse { slab, .. }) => self.end_frames_in(slab, now),
                Err(ReserveError::TooManyOpen { .. })
                    if self.end_oldest_frame(now) || self.end_frame_of_a_hoarder(peer, header.body_bytes, now) => {}
                Err(error @ ReserveError::TooManyOpen { .. }) => {
                    self.stats.connections_shed += 1;
                    return Err(Refusal::of_batch(ErrorCode::Overloaded, sequence, error.to_string()));
                }
                Err(error @ ReserveError::TooLarge { .. }) => {
                    return Err(Refusal::of_batch(ErrorCode::TooLargeToStore, sequence, error.to_string()));
                }
            }
        }
    }

    /// A slab must be recycled: ends the connections whose frame in it is still not whole. Afterwards none is open there.
    fn end_frames_in(&mut self, slab: u32, now: Now) {
        for link in 0..self.connections.len() as u32 {
            let Some(Some(connection)) = self.connections.get(link as usize) else { continue };
            if matches!(&connection.incoming, Incoming::Batch(_, place) if place.slab() == slab) {
                debug_assert!(!connection.over, "a connection that is over holds no place");
                self.stats.connections_shed += 1;
                let text =
                    "the memory that held the unfinished frame had to be recycled: it came too slowly, or the arena is too small";
                self.refuse(link, &Refusal::of_connection(ErrorCode::SlabRecycled, text), now);
            }
        }
    }

    /// Unfinished frames take all they may: ends the connection whose frame began first, if that was a while ago. Returns
    /// whether there was one. (Among frames that all just began, those that came first go on, or none would be finished.)
    fn end_oldest_frame(&mut self, now: Now) -> bool {
        let open = self.connections.iter().enumerate().filter_map(|(link, connection)| {
            let connection = connection.as_ref()?;
            matches!(connection.incoming, Incoming::Batch(..)).then_some((connection.frame_since_us, link as u32))
        });
        let oldest = open.min().filter(|(since_us, _)| since_us + OPEN_PATIENCE_US <= now.monotonic_us);
        let Some((_, link)) = oldest else { return false };
        self.stats.connections_shed += 1;
        let text = "unfinished frames take all the memory that they may, and this one began first";
        self.refuse(link, &Refusal::of_connection(ErrorCode::Overloaded, text), now);
        true
    }

    /// Unfinished frames take all they may: ends the largest one of the source that has the most in them, if that is over twice what
    /// the source of `peer` has with a frame of `body_bytes` more. Returns whether there was one. So whoever begins frames and does
    /// not finish them shuts nobody else out, however often he begins anew. By source, for a host has all addresses of a /64.
    fn end_frame_of_a_hoarder(&mut self, peer: IpAddr, body_bytes: u32, now: Now) -> bool {
        let (newcomer, mut own) = (Source::of(peer), u64::from(body_bytes));
        let open_places = self.requests.usage().open_places as usize;
        let mut held: BumpVec<(Source, u32, u32)> = BumpVec::with_capacity_in(open_places, &self.scratch);
        for (link, connection) in (0..).zip(&self.connections) {
            let Some(connection) = connection else { continue };
            let Incoming::Batch(header, _) = &connection.incoming else { continue };
            let source = Source::of(connection.ticket.peer.ip());
            if source == newcomer {
                own += u64::from(header.body_bytes);
            } else {
                held.push((source, header.body_bytes, link));
            }
        }
        // There may be thousands. Sorted, those of a source stand side by side, its largest one last.
        held.sort_unstable();
        let sources = held.chunk_by(|(one, ..), (other, ..)| one == other);
        let sums = sources.filter_map(|frames| {
            let (_, _, largest) = frames.last()?;
            Some((frames.iter().map(|(_, bytes, _)| u64::from(*bytes)).sum::<u64>(), *largest))
        });
        let hoarder = sums.max().filter(|(sum, _)| *sum > 2 * own);
        drop(held);
        self.reset_scratch();
        let Some((_, link)) = hoarder else { return false };
        self.stats.connections_shed += 1;
        let text = "unfinished frames take all the memory that they may, and this address (or its /64) has the most of them";
        self.refuse(link, &Refusal::of_connection(ErrorCode::Overloaded, text), now);
        true
    }

    /// How many bytes from the begin of a torn body are read once it is put together: all of them by detectors, else the records, which stand
    /// first, and not the texts behind them.
    pub(super) fn read_soon(&self, header: &FrameHeader) -> usize {
        if self.analytics.reads_texts() { usize::MAX } else { header.record_count as usize * RECORD_BYTES }
    }

    /// The body of a batch is there and its CRC holds: check, analyse, commit. `whole` is a body that is still to be put into its
    /// place: last, for analysis reads it while it is in the caches, and nobody reads the place so soon.
    pub(super) fn store(
        &mut self,
        connection: &mut Connection,
        header: &FrameHeader,
        place: OpenPlace,
        whole: Option<&[u8]>,
        now: Now,
    ) -> Result<(), Refusal> {
        let stored = PlaceHeader {
            record_count: header.record_count,
            commit_index: self.commit_index + 1,
            arrival_us: now.wall_us,
            sent_us: header.sent_us,
            session: header.session,
            sequence: header.sequence,
            node: connection.ticket.node,
            body_crc: header.body_crc,
            schema: header.schema,
            flags: if connection.replay { FLAG_REPLAY } else { 0 },
            ..PlaceHeader::default()
        };
        let analysed = self.check_and_analyse(header, &place, whole, stored);
        self.reset_scratch();
        match analysed {
            Ok(quarantined) => {
                if let Some(body) = whole {
                    self.requests.fill(&place, 0, body, 0);
                }
                let flags = stored.flags | if quarantined { FLAG_QUARANTINED } else { 0 };
                let handle = self.requests.commit(place, PlaceHeader { flags, ..stored });
                self.witness(handle);
            }
            Err(refusal) => {
                self.requests.void(place);
                self.count_rejected(connection, header.record_count);
                return Err(refusal);
            }
        }
        connection.note_clock(header.sent_us, now.wall_us);
        self.commit_index += 1;
        self.stats.frames_stored += 1;
        self.stats.records_received += u64::from(header.record_count);
        let session = self.sessions.at(connection.session);
        session.highest = header.sequence;
        session.records_stored += u64::from(header.record_count);
        Ok(())
    }

    /// Returns whether the analysis panicked: the frame is kept, marked and counted, the analysis starts afresh.
    fn check_and_analyse(
        &mut self,
        header: &FrameHeader,
        place: &OpenPlace,
        whole: Option<&[u8]>,
        stored: PlaceHeader,
    ) -> Result<bool, Refusal> {
        let (in_place, mut filter) = self.requests.body_and_filter(place);
        let body = whole.unwrap_or(in_place);
        let batch = ValidBatch::parse(header.schema, header.record_count, body)
            .map_err(|error| Refusal::from((error, header.sequence)))?;
        let topology = &self.topology;
        if topology.shard_count > 1 {
            for (position, record) in batch.records().enumerate() {
                let shard = shard_of(record.source(), topology.routing_seed, topology.shard_count);
                if shard != self.id {
                    let text = format!("record {position} belongs to shard {shard}, this is shard {}", self.id);
                    return Err(Refusal::of_batch(ErrorCode::WrongShard, header.sequence, text));
                }
            }
        }
        batch.records().for_each(|record| filter.insert(record.source()));
        let (analytics, scratch) = (&mut self.analytics, &self.scratch);
        let timing =
            Timing { arrival_us: stored.arrival_us, sent_us: stored.sent_us, is_replay: stored.flags & FLAG_REPLAY != 0 };
        match catch_unwind(AssertUnwindSafe(|| analytics.observe(&batch, timing, &[], scratch))) {
            Ok(with_hits) => {
                // They are set at the end of the turn, but no later batch may list as if they were not.
                let more = analytics.listed.iter().filter(|verdict| self.verdicts.lists_another(verdict)).count();
                analytics.guards.listed += more;
                self.listings_left += analytics.listed.len();
                self.verdict_inbox.extend(analytics.listed.drain(..));
                keep_attacks(&mut self.attacks, &mut self.attack_batch, &batch, &with_hits, stored);
                Ok(false)
            }
            Err(_) => {
                self.stats.frames_quarantined += 1;
                self.analytics = self.analytics.afresh();
                tracing::error!(
                    commit_index = stored.commit_index,
                    sequence = stored.sequence,
                    "the analysis of a batch panicked: the batch is kept and marked, the analysis starts afresh"
                );
                Ok(true)
            }
        }
    }

    /// Keeps a copy of what was committed, if somebody asked for it.
    #[cfg(feature = "simulation")]
    fn witness(&mut self, handle: SlabHandle) {
        if let (Some(seen), Some((header, body))) = (&mut self.committed, self.requests.frame(handle)) {
            seen.push((handle, header, body.to_vec()));
        }
    }

    #[cfg(not(feature = "simulation"))]
    const fn witness(&self, _: SlabHandle) {}

    fn count_rejected(&mut self, connection: &Connection, records: u32) {
        self.stats.records_received += u64::from(records);
        self.stats.records_rejected += u64::from(records);
        self.sessions.at(connection.session).records_rejected += u64::from(records);
    }
}

/// Copies the records that carry hits to the attack log, where ordinary traffic cannot push them out.
fn keep_attacks(attacks: &mut Log, copy: &mut BatchBuilder, batch: &ValidBatch<'_>, with_hits: &[u32], stored: PlaceHeader) {
    copy.clear();
    for position in with_hits.iter().skip(usize::from(seeded::is(Bug::AttackNotKept))) {
        let Some(record) = batch.record(*position as usize) else { continue };
        if copy.push_view(&record, Log::body_bytes_max() as usize / 2).is_err() {
            commit_attacks(attacks, copy, stored);
            // A record of a batch is never larger than half a slab.
            let _ = copy.push_view(&record, Log::body_bytes_max() as usize);
        }
    }
    commit_attacks(attacks, copy, stored);
}

fn commit_attacks(attacks: &mut Log, copy: &mut BatchBuilder, stored: PlaceHeader) {
    if copy.is_empty() {
        return;
    }
    // Places of this log are open only within this function, so it can always recycle and never has too much open.
    match attacks.reserve(copy.body_bytes() as u32) {
        Ok(place) => {
            let body = attacks.body_mut(&place);
            copy.encode_body(body);
            let body_crc = crc32fast::hash(body);
            let (_, mut filter) = attacks.body_and_filter(&place);
            copy.records().iter().for_each(|record| filter.insert(Source::of_bytes(&record.client_ip)));
            attacks.commit(place, PlaceHeader { record_count: copy.len() as u32, body_crc, ..stored });
        }
        Err(error) => tracing::error!(%error, records = copy.len(), "attack records are not kept apart"),
    }
    copy.clear();
}
