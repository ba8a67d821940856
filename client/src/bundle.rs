//! Records with everything that belongs to them: the unit in which they are kept, from the queue to the ack.
//!
//! A bundle holds records flat (as the wire wants them, strings in one blob) beside what is never sent: when each was
//! accepted, its token, and user and session in clear text. Keeping those is what allows a bundle to be encoded again for
//! another server, with other shards and another identity key, after a break.

use crate::counters::Load;
use crate::request::Request;
use postanalytics_protocol::batch::{BatchBuilder, body_bytes};
use postanalytics_protocol::schema::v1::{FLAG_MAYBE_STORED_ELSEWHERE, RECORD_BYTES, Record};
use postanalytics_protocol::{HEADER_BYTES, Source};
use siphasher::sip::SipHasher24;

/// Memory of a record besides its strings.
pub(crate) const RECORD_COST_BYTES: usize = RECORD_BYTES + size_of::<Meta>();

/// What is known of a record and never sent.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Meta {
    pub(crate) accepted_us: u64,
    pub(crate) token: u64,
    blob_start: u32,
    blob_bytes: u32,
    identity_start: u32,
    session_bytes: u32,
    user_bytes: u32,
    pub(crate) urgent: bool,
    /// It was written to another server, which may have stored it.
    marked: bool,
    /// A bit for each of the client's servers that it was written to before the one that has it now, and that may still
    /// have stored it: there it does not go again.
    pub(crate) written_to: u16,
}

impl Meta {
    /// Of a record whose strings are the first. `strings`: bytes of blob, session and user.
    pub(crate) const fn new(accepted_us: u64, token: u64, urgent: bool, strings: usize, session: u32, user: u32) -> Self {
        Self {
            accepted_us,
            token,
            blob_start: 0,
            blob_bytes: strings as u32 - session - user,
            identity_start: 0,
            session_bytes: session,
            user_bytes: user,
            urgent,
            marked: false,
            written_to: 0,
        }
    }

    /// Bytes of blob, session and user.
    pub(crate) const fn string_bytes(&self) -> usize {
        (self.blob_bytes + self.session_bytes + self.user_bytes) as usize
    }
}

/// One record of a bundle, borrowed.
pub(crate) struct Item<'a> {
    pub(crate) record: &'a Record,
    pub(crate) meta: &'a Meta,
    pub(crate) blob: &'a [u8],
    pub(crate) identity: &'a [u8],
}

impl<'a> Item<'a> {
    /// `strings`: blob, session and user, one after the other.
    pub(crate) fn new(record: &'a Record, meta: &'a Meta, strings: &'a [u8]) -> Self {
        let (blob, identity) = strings.split_at(meta.blob_bytes as usize);
        Self { record, meta, blob, identity }
    }

    pub(crate) const fn source(&self) -> Source {
        Source::of_bytes(&self.record.client_ip)
    }

    pub(crate) const fn cost_bytes(&self) -> usize {
        RECORD_COST_BYTES + self.blob.len() + self.identity.len()
    }

    pub(crate) const fn load(&self) -> Load {
        Load { records: 1, marked: self.meta.marked as u64, bytes: self.cost_bytes() }
    }
}

/// Records in the order they were accepted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Bundle {
    builder: BatchBuilder,
    metas: Vec<Meta>,
    identities: Vec<u8>,
    oldest_us: u64,
    newest_us: u64,
    /// How many of them are marked.
    marked: u64,
}

impl Bundle {
    pub(crate) fn with_capacity(records: usize, blob: usize) -> Self {
        Self {
            builder: BatchBuilder::with_capacity(records, blob),
            metas: Vec::with_capacity(records),
            identities: Vec::new(),
            oldest_us: 0,
            newest_us: 0,
            marked: 0,
        }
    }

    /// Adds a request, whose sizes have been checked.
    pub(crate) fn push(&mut self, request: &Request<'_>, accepted_us: u64, urgent: bool) {
        let blob_start = self.builder.blob().len();
        if self.builder.push(&request.fields(), usize::MAX).is_err() {
            return debug_assert!(false, "the parts of the record were checked before");
        }
        let strings = self.builder.blob().len() - blob_start + request.identity_bytes();
        let meta = Meta {
            blob_start: blob_start as u32,
            identity_start: self.identities.len() as u32,
            ..Meta::new(accepted_us, request.token, urgent, strings, request.session.len() as u32, request.user.len() as u32)
        };
        self.identities.extend_from_slice(request.session);
        self.identities.extend_from_slice(request.user);
        self.push_meta(meta);
    }

    /// Adds a record of another bundle.
    pub(crate) fn push_item(&mut self, item: &Item<'_>) {
        let meta =
            Meta { blob_start: self.builder.blob().len() as u32, identity_start: self.identities.len() as u32, ..*item.meta };
        self.builder.push_flat(*item.record, item.blob, item.meta.blob_start);
        self.identities.extend_from_slice(item.identity);
        self.push_meta(meta);
    }

    fn push_meta(&mut self, meta: Meta) {
        if self.metas.is_empty() {
            (self.oldest_us, self.newest_us) = (meta.accepted_us, meta.accepted_us);
        }
        self.oldest_us = self.oldest_us.min(meta.accepted_us);
        self.newest_us = self.newest_us.max(meta.accepted_us);
        self.marked += u64::from(meta.marked);
        self.metas.push(meta);
    }

    /// Marks every record: it was written to one server, which may have stored it, and goes to another. `server`: which of the
    /// client's that was, if it is still one of them.
    pub(crate) fn mark(&mut self, server: Option<usize>) {
        self.builder.records_mut().iter_mut().for_each(|record| record.flags |= FLAG_MAYBE_STORED_ELSEWHERE);
        let bit = server.map_or(0, |server| 1 << server);
        for meta in &mut self.metas {
            (meta.marked, meta.written_to) = (true, meta.written_to | bit);
        }
        self.marked = self.records();
    }

    /// This server has nothing any more of what was written to it.
    pub(crate) fn forget(&mut self, server: usize) {
        self.metas.iter_mut().for_each(|meta| meta.written_to &= !(1 << server));
    }

    /// Takes the records out that `goes` names.
    pub(crate) fn split(&mut self, goes: impl Fn(&Item<'_>) -> bool) -> Self {
        if self.items().all(|item| goes(&item)) {
            return std::mem::take(self);
        }
        let (mut gone, mut kept) = (Self::default(), Self::default());
        self.items().for_each(|item| if goes(&item) { gone.push_item(&item) } else { kept.push_item(&item) });
        *self = kept;
        gone
    }

    /// The records.
    pub(crate) fn items(&self) -> impl Iterator<Item = Item<'_>> {
        self.builder.records().iter().zip(&self.metas).map(|(record, meta)| {
            let (blob_start, identity_start) = (meta.blob_start as usize, meta.identity_start as usize);
            Item {
                record,
                meta,
                blob: &self.builder.blob()[blob_start..blob_start + meta.blob_bytes as usize],
                identity: &self.identities[identity_start..identity_start + (meta.session_bytes + meta.user_bytes) as usize],
            }
        })
    }

    pub(crate) fn metas(&self) -> &[Meta] {
        &self.metas
    }

    pub(crate) fn len(&self) -> usize {
        self.metas.len()
    }

    pub(crate) fn records(&self) -> u64 {
        self.metas.len() as u64
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.metas.is_empty()
    }

    /// When the oldest record was accepted.
    pub(crate) fn oldest_us(&self) -> Option<u64> {
        (!self.metas.is_empty()).then_some(self.oldest_us)
    }

    /// Whether all its records were accepted at `cutoff_us` or before.
    pub(crate) fn is_over(&self, cutoff_us: u64) -> bool {
        self.newest_us <= cutoff_us
    }

    /// Bytes of all that has no fixed length: strings, users and sessions.
    pub(crate) fn string_bytes(&self) -> usize {
        self.builder.blob().len() + self.identities.len()
    }

    /// Bytes of the body as a Batch.
    pub(crate) fn body_bytes(&self) -> usize {
        self.builder.body_bytes()
    }

    /// Bytes of the body if a record came in addition. Users and sessions, which the body does not have, are counted too, so
    /// that they do not make a batch take more memory than it may.
    pub(crate) fn body_bytes_with(&self, item: &Item<'_>) -> usize {
        body_bytes(self.len() + 1, self.string_bytes() + item.blob.len() + item.identity.len())
    }

    /// Bytes of the whole frame.
    pub(crate) fn frame_bytes(&self) -> u64 {
        (HEADER_BYTES + self.body_bytes()) as u64
    }

    /// Memory that is counted against the budget: the sum of its records' [`Item::cost_bytes`].
    pub(crate) fn cost_bytes(&self) -> usize {
        self.len() * RECORD_COST_BYTES + self.string_bytes()
    }

    #[cfg(test)]
    pub(crate) const fn capacity_bytes(&self) -> usize {
        self.metas.capacity() * size_of::<Meta>() + self.identities.capacity()
    }

    /// Empties it and keeps its memory.
    pub(crate) fn clear(&mut self) {
        self.builder.clear();
        self.metas.clear();
        self.identities.clear();
        self.marked = 0;
    }

    /// What it adds to the sums.
    pub(crate) fn load(&self) -> Load {
        Load { records: self.records(), marked: self.marked, bytes: self.cost_bytes() }
    }

    /// Takes the records out that were accepted at `cutoff_us` or before, and returns what they were.
    pub(crate) fn expire(&mut self, cutoff_us: u64) -> Load {
        if self.oldest_us().is_none_or(|oldest_us| oldest_us > cutoff_us) {
            return Load::default();
        }
        let mut kept = Self::default();
        for item in self.items().filter(|item| item.meta.accepted_us > cutoff_us) {
            kept.push_item(&item);
        }
        let (all, left) = (self.load(), kept.load());
        *self = kept;
        Load { records: all.records - left.records, marked: all.marked - left.marked, bytes: all.bytes - left.bytes }
    }

    /// Appends the Batch frame, with users and sessions hashed with this key.
    pub(crate) fn encode(&mut self, key: &IdentityKey, session: u64, sequence: u64, sent_us: u64, out: &mut Vec<u8>) {
        if !self.identities.is_empty() {
            for (record, meta) in self.builder.records_mut().iter_mut().zip(&self.metas) {
                let start = meta.identity_start as usize;
                let (session, rest) = self.identities[start..].split_at(meta.session_bytes as usize);
                record.session_hash = key.hash(session);
                record.user_hash = key.hash(&rest[..meta.user_bytes as usize]);
            }
        }
        self.builder.encode_frame(session, sequence, sent_us, out);
    }
}

/// Hashes user names and session ids, so that they never leave the node in clear text.
///
/// SipHash-2-4 with the first 16 bytes of Welcome's identity key; nothing hashes to 0, which means "none".
#[derive(Clone, Copy)]
pub(crate) struct IdentityKey(SipHasher24);

impl IdentityKey {
    pub(crate) fn new(identity_key: &[u8; 32]) -> Self {
        let mut key = [0; 16];
        key.copy_from_slice(&identity_key[..16]);
        Self(SipHasher24::new_with_key(&key))
    }

    /// The hash of some clear text; 0 for none.
    pub(crate) fn hash(&self, clear: &[u8]) -> u64 {
        if clear.is_empty() { 0 } else { self.0.hash(clear).max(1) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use postanalytics_protocol::{Extension, FrameHeader, Hit, ValidBatch};

    fn bundle(count: u64) -> Bundle {
        let mut bundle = Bundle::default();
        for n in 0..count {
            let path = format!("/{}", "x".repeat(n as usize));
            let (hits, extensions) =
                ([Hit { point: b"get_id", payload: path.as_bytes(), ..Hit::default() }], [Extension { tag: 1, value: b"BREW" }]);
            let request = Request {
                path: path.as_bytes(),
                session: b"s",
                user: if n % 2 == 0 { b"" } else { b"anna" },
                hits: if n % 3 == 0 { &hits } else { &[] },
                extensions: if n % 4 == 0 { &extensions } else { &[] },
                token: n,
                ..Request::default()
            };
            bundle.push(&request, 100 + n, false);
        }
        bundle
    }

    fn read(bundle: &mut Bundle, key: &IdentityKey) -> Vec<(Vec<u8>, u64, u64, Vec<u8>)> {
        let mut frame = Vec::new();
        bundle.encode(key, 1, 2, 3, &mut frame);
        assert_eq!(frame.len() as u64, bundle.frame_bytes());
        let header = FrameHeader::decode(frame[..64].try_into().expect("64 bytes"), u32::MAX).expect("a header");
        let batch = ValidBatch::parse(header.schema, header.record_count, &frame[64..]).expect("a batch");
        let payload = |hit: Option<Hit<'_>>| hit.map(|hit| hit.payload.to_vec()).unwrap_or_default();
        let of = |r: postanalytics_protocol::RecordView<'_>| {
            (r.path().to_vec(), r.session_hash(), r.user_hash(), payload(r.hits().next()))
        };
        batch.records().map(of).collect()
    }

    #[test]
    fn records_survive_moving_and_expiring() {
        let key = IdentityKey::new(&[7; 32]);
        let mut first = bundle(20);
        let mut second = Bundle::default();
        first.items().for_each(|item| second.push_item(&item));
        let costs: usize = second.items().map(|item| item.cost_bytes()).sum();
        assert_eq!((second.cost_bytes(), second.oldest_us()), (costs, Some(100)));
        assert_eq!(read(&mut first, &key), read(&mut second, &key));

        let gone = second.expire(104);
        assert_eq!((gone.records, gone.marked), (5, 0));
        assert_eq!((second.len(), second.oldest_us(), second.cost_bytes()), (15, Some(105), costs - gone.bytes));
        assert_eq!(read(&mut first, &key)[5..], read(&mut second, &key)[..]);
        assert_eq!(second.expire(104), Load::default());

        second.mark(Some(2));
        second.items().take(3).for_each(|item| first.push_item(&item));
        assert_eq!((second.load().marked, first.load().marked), (15, 3), "a mark goes with its record");
        assert_eq!((second.expire(109).marked, second.load().marked), (5, 10));
        let gone = second.split(|item| item.meta.accepted_us < 113);
        assert_eq!((gone.len(), second.len(), second.load().marked, second.oldest_us()), (3, 7, 7, Some(113)));
        assert!(second.items().all(|item| item.meta.written_to == 4));
        second.forget(2);
        assert!(second.items().all(|item| item.meta.written_to == 0) && second.load().marked == 7);
    }

    #[test]
    fn hashes_are_those_of_the_protocol() {
        let key: [u8; 32] = std::array::from_fn(|n| n as u8);
        let input: [u8; 15] = std::array::from_fn(|n| n as u8);
        let key = IdentityKey::new(&key);
        assert_eq!(key.hash(&input), 0xa129_ca61_49be_45e5);
        assert_eq!(key.hash(b"alice"), 0x7159_e700_f53c_57a3);
        assert_eq!(key.hash(b"alice@shop.example"), 0x5fcf_0007_d48a_6b32);
    }

    #[test]
    fn identities_are_hashed_with_the_key_of_the_day() {
        let (one, two) = (IdentityKey::new(&[1; 32]), IdentityKey::new(&[2; 32]));
        let mut records = bundle(2);
        let (with_one, with_two) = (read(&mut records, &one), read(&mut records, &two));
        assert_eq!((with_one[0].1, with_one[0].2), (one.hash(b"s"), 0));
        assert_eq!(with_one[1].2, one.hash(b"anna"));
        assert_ne!(with_one[1].2, with_two[1].2);
        assert_eq!(one.hash(b""), 0);
    }
}
