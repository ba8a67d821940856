//! Batches: building them on the filtering node, reading them in place on the server.

use crate::error::BatchError;
use crate::header::{FrameHeader, FrameKind, HEADER_BYTES};
use crate::routing::Source;
use crate::schema::v1::{
    ArchivedBatch, ArchivedRecord, ArchivedSpan, Batch, EXTENSION_BYTES, EXTENSIONS_MAX, HIT_BYTES, HITS_MAX, RECORD_BYTES,
    ROOT_BYTES, Record, SCHEMA, Span,
};
use rkyv::rancor::Failure;
use rkyv::ser::Serializer;
use rkyv::ser::allocator::SubAllocator;
use rkyv::ser::writer::Buffer;
use thiserror::Error;

/// Records begin at a multiple of this in a body: a reader in another language may read them as aligned numbers.
const RECORD_ALIGNMENT: usize = 8;

/// A finding in a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hit<'a> {
    /// Number of the attack type, see [`crate::schema::v1::AttackType`].
    pub attack_type: u16,
    /// 0 (information) to 255 (worst).
    pub severity: u8,
    /// The rule that matched, 0 if none.
    pub rule_id: u32,
    /// Where the payload sat, such as `get_id` or `header_user-agent`.
    pub point: &'a [u8],
    /// A sample of the payload.
    pub payload: &'a [u8],
}

/// A tagged value that a later minor version added; unknown tags are skipped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extension<'a> {
    /// What the value is.
    pub tag: u16,
    /// Its bytes.
    pub value: &'a [u8],
}

/// Every field of a record, borrowed: what goes in and what comes out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordFields<'a> {
    /// Unique id of the request, random.
    pub request_id: [u8; 16],
    /// Address of the client, IPv4 as `::ffff:a.b.c.d`.
    pub client_ip: [u8; 16],
    /// When the request came, Unix µs by the node's clock.
    pub event_us: u64,
    /// Tenant, 0 if there is one only.
    pub tenant: u64,
    /// Keyed hash of the session id, 0 if none.
    pub session_hash: u64,
    /// Keyed hash of the user name, 0 if none.
    pub user_hash: u64,
    /// Bytes of the request, headers and body.
    pub request_bytes: u64,
    /// Bytes of the response, headers and body.
    pub response_bytes: u64,
    /// Application id, −1 for the default application.
    pub application: i32,
    /// Time until the response was sent, µs.
    pub response_us: u32,
    /// Time that detection took, µs.
    pub detection_us: u32,
    /// `FLAG_…` bits of the schema.
    pub flags: u32,
    /// Port of the server that took the request.
    pub server_port: u16,
    /// Status of the response.
    pub status: u16,
    /// Number of the method, see [`crate::schema::v1::Method`]; 0 none of them.
    pub method: u8,
    /// Number of the scheme, see [`crate::schema::v1::Scheme`]; 0 not known.
    pub scheme: u8,
    /// HTTP version times ten; 0 not known.
    pub http_version: u8,
    /// Host header.
    pub host: &'a [u8],
    /// Path, as received.
    pub path: &'a [u8],
    /// Query without the question mark.
    pub query: &'a [u8],
    /// User-Agent header.
    pub user_agent: &'a [u8],
    /// Referer header.
    pub referer: &'a [u8],
    /// Raw request headers, empty unless switched on.
    pub raw_headers: &'a [u8],
    /// Raw request body, capped, empty unless switched on.
    pub raw_body: &'a [u8],
    /// Findings.
    pub hits: Vec<Hit<'a>>,
    /// Tagged values.
    pub extensions: Vec<Extension<'a>>,
}

impl Default for RecordFields<'_> {
    fn default() -> Self {
        Self {
            request_id: [0; 16],
            client_ip: [0; 16],
            event_us: 0,
            tenant: 0,
            session_hash: 0,
            user_hash: 0,
            request_bytes: 0,
            response_bytes: 0,
            application: -1,
            response_us: 0,
            detection_us: 0,
            flags: 0,
            server_port: 0,
            status: 0,
            method: 0,
            scheme: 0,
            http_version: 0,
            host: b"",
            path: b"",
            query: b"",
            user_agent: b"",
            referer: b"",
            raw_headers: b"",
            raw_body: b"",
            hits: Vec::new(),
            extensions: Vec::new(),
        }
    }
}

/// Why a record cannot go into a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum EncodeError {
    /// The batch would be longer than allowed.
    #[error("the batch would have {would_be} bytes, the limit is {limit}")]
    TooLong {
        /// Bytes of the body with this record.
        would_be: usize,
        /// The limit given.
        limit: usize,
    },
    /// More hits or extensions than the schema allows.
    #[error("{found} {part} in one record, the limit is {limit}")]
    TooManyParts {
        /// `hits` or `extensions`.
        part: &'static str,
        /// How many there were.
        found: usize,
        /// How many there may be.
        limit: u32,
    },
}

/// Bytes that the body of a batch of `records` records with `blob` bytes of blob has.
pub const fn body_bytes(records: usize, blob: usize) -> usize {
    records * RECORD_BYTES + blob.next_multiple_of(16) + ROOT_BYTES
}

/// Appends the strings of a record to `blob` and returns the record that points at them. `fields.hits` and
/// `fields.extensions` must be within the limits of the schema ([`check_parts`]).
pub fn flatten(fields: &RecordFields<'_>, blob: &mut Vec<u8>) -> Record {
    let mut put = |bytes: &[u8]| {
        let offset = blob.len() as u32;
        blob.extend_from_slice(bytes);
        Span { offset, length: bytes.len() as u32 }
    };
    let (host, path, query) = (put(fields.host), put(fields.path), put(fields.query));
    let (user_agent, referer) = (put(fields.user_agent), put(fields.referer));
    let (raw_headers, raw_body) = (put(fields.raw_headers), put(fields.raw_body));
    let hits = put_hits(blob, fields.hits.iter().copied());
    let extensions = put_extensions(blob, fields.extensions.iter().copied());
    Record {
        request_id: fields.request_id,
        client_ip: fields.client_ip,
        event_us: fields.event_us,
        tenant: fields.tenant,
        session_hash: fields.session_hash,
        user_hash: fields.user_hash,
        request_bytes: fields.request_bytes,
        response_bytes: fields.response_bytes,
        application: fields.application,
        response_us: fields.response_us,
        detection_us: fields.detection_us,
        flags: fields.flags,
        server_port: fields.server_port,
        status: fields.status,
        method: fields.method,
        scheme: fields.scheme,
        http_version: fields.http_version,
        zero: 0,
        host,
        path,
        query,
        user_agent,
        referer,
        raw_headers,
        raw_body,
        hits,
        extensions,
    }
}

/// Bytes of blob that [`flatten`] appends for a record with these parts.
pub fn blob_bytes(fields: &RecordFields<'_>) -> usize {
    let texts = fields.host.len() + fields.path.len() + fields.query.len() + fields.user_agent.len() + fields.referer.len();
    let raw = fields.raw_headers.len() + fields.raw_body.len();
    texts + raw + parts_bytes(&fields.hits, &fields.extensions)
}

/// Bytes of blob of these hits and extensions.
pub fn parts_bytes(hits: &[Hit<'_>], extensions: &[Extension<'_>]) -> usize {
    let hits: usize = hits.iter().map(|hit| HIT_BYTES + hit.point.len() + hit.payload.len()).sum();
    let extensions: usize = extensions.iter().map(|extension| EXTENSION_BYTES + extension.value.len()).sum();
    hits + extensions
}

/// Checks the limits of the schema on hits and extensions.
pub const fn check_parts(hits: usize, extensions: usize) -> Result<(), EncodeError> {
    if hits > HITS_MAX as usize {
        return Err(EncodeError::TooManyParts { part: "hits", found: hits, limit: HITS_MAX });
    }
    if extensions > EXTENSIONS_MAX as usize {
        return Err(EncodeError::TooManyParts { part: "extensions", found: extensions, limit: EXTENSIONS_MAX });
    }
    Ok(())
}

fn put_hits<'a>(blob: &mut Vec<u8>, hits: impl ExactSizeIterator<Item = Hit<'a>>) -> Span {
    put_table(blob, hits, HIT_BYTES, |hit, blob, at| {
        let point = put_span(blob, hit.point);
        let payload = put_span(blob, hit.payload);
        blob[at..at + 2].copy_from_slice(&hit.attack_type.to_le_bytes());
        blob[at + 2] = hit.severity;
        blob[at + 4..at + 8].copy_from_slice(&hit.rule_id.to_le_bytes());
        write_span(blob, at + 8, point);
        write_span(blob, at + 16, payload);
    })
}

fn put_extensions<'a>(blob: &mut Vec<u8>, extensions: impl ExactSizeIterator<Item = Extension<'a>>) -> Span {
    put_table(blob, extensions, EXTENSION_BYTES, |extension, blob, at| {
        let value = put_span(blob, extension.value);
        blob[at..at + 2].copy_from_slice(&extension.tag.to_le_bytes());
        write_span(blob, at + 4, value);
    })
}

fn put_table<T>(
    blob: &mut Vec<u8>,
    entries: impl ExactSizeIterator<Item = T>,
    entry_bytes: usize,
    put: impl Fn(T, &mut Vec<u8>, usize),
) -> Span {
    let (table, count) = (blob.len(), entries.len());
    blob.resize(table + count * entry_bytes, 0);
    for (index, entry) in entries.enumerate() {
        put(entry, blob, table + index * entry_bytes);
    }
    Span { offset: table as u32, length: count as u32 }
}

fn put_span(blob: &mut Vec<u8>, bytes: &[u8]) -> Span {
    let offset = blob.len() as u32;
    blob.extend_from_slice(bytes);
    Span { offset, length: bytes.len() as u32 }
}

fn write_span(blob: &mut [u8], at: usize, span: Span) {
    blob[at..at + 4].copy_from_slice(&span.offset.to_le_bytes());
    blob[at + 4..at + 8].copy_from_slice(&span.length.to_le_bytes());
}

/// A batch being built. Reuse it: [`BatchBuilder::clear`] keeps the memory.
#[derive(Clone, Debug, Default)]
pub struct BatchBuilder {
    batch: Batch,
}

impl BatchBuilder {
    /// An empty batch with room for `records` records and `blob` bytes of blob, so that building it allocates nothing.
    pub fn with_capacity(records: usize, blob: usize) -> Self {
        Self { batch: Batch { records: Vec::with_capacity(records), blob: Vec::with_capacity(blob) } }
    }

    /// Adds a record, unless the body would then be longer than `limit` bytes.
    pub fn push(&mut self, fields: &RecordFields<'_>, limit: usize) -> Result<(), EncodeError> {
        check_parts(fields.hits.len(), fields.extensions.len())?;
        let would_be = body_bytes(self.batch.records.len() + 1, self.batch.blob.len() + blob_bytes(fields));
        if would_be > limit {
            return Err(EncodeError::TooLong { would_be, limit });
        }
        let record = flatten(fields, &mut self.batch.blob);
        self.batch.records.push(record);
        Ok(())
    }

    /// Adds a record that is already flat. `blob` must be just the parts of this record in the order [`flatten`] writes
    /// them, with the record's spans relative to a blob in which this one starts at `blob_start`.
    ///
    /// The tables of hits and extensions hold offsets of their own; they are rebased here.
    pub fn push_flat(&mut self, mut record: Record, blob: &[u8], blob_start: u32) {
        let base = self.batch.blob.len() as u32;
        self.batch.blob.extend_from_slice(blob);
        let rebase = |offset: u32| offset.wrapping_sub(blob_start).wrapping_add(base);
        let spans = [
            &mut record.host,
            &mut record.path,
            &mut record.query,
            &mut record.user_agent,
            &mut record.referer,
            &mut record.raw_headers,
            &mut record.raw_body,
            &mut record.hits,
            &mut record.extensions,
        ];
        for span in spans {
            span.offset = rebase(span.offset);
        }
        let blob = &mut self.batch.blob;
        let mut rebase_at = |at: usize| {
            if let Some(bytes) = blob.get_mut(at..at + 4) {
                let offset = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
                bytes.copy_from_slice(&rebase(offset).to_le_bytes());
            }
        };
        for hit in 0..record.hits.length as usize {
            let at = record.hits.offset as usize + hit * HIT_BYTES;
            rebase_at(at + 8);
            rebase_at(at + 16);
        }
        for extension in 0..record.extensions.length as usize {
            rebase_at(record.extensions.offset as usize + extension * EXTENSION_BYTES + 4);
        }
        self.batch.records.push(record);
    }

    /// Adds a record read in place elsewhere, unless the body would then be longer than `limit` bytes. Allocates nothing
    /// while the capacity lasts.
    pub fn push_view(&mut self, view: &RecordView<'_>, limit: usize) -> Result<(), EncodeError> {
        let would_be = body_bytes(self.batch.records.len() + 1, self.batch.blob.len() + view.blob_bytes());
        if would_be > limit {
            return Err(EncodeError::TooLong { would_be, limit });
        }
        let blob = &mut self.batch.blob;
        let [host, path, query] = [view.host(), view.path(), view.query()].map(|bytes| put_span(blob, bytes));
        let [user_agent, referer] = [view.user_agent(), view.referer()].map(|bytes| put_span(blob, bytes));
        let [raw_headers, raw_body] = [view.raw_headers(), view.raw_body()].map(|bytes| put_span(blob, bytes));
        let record = Record {
            request_id: view.request_id(),
            client_ip: view.client_ip(),
            event_us: view.event_us(),
            tenant: view.tenant(),
            session_hash: view.session_hash(),
            user_hash: view.user_hash(),
            request_bytes: view.request_bytes(),
            response_bytes: view.response_bytes(),
            application: view.application(),
            response_us: view.response_us(),
            detection_us: view.detection_us(),
            flags: view.flags(),
            server_port: view.server_port(),
            status: view.status(),
            method: view.method(),
            scheme: view.scheme(),
            http_version: view.http_version(),
            zero: 0,
            host,
            path,
            query,
            user_agent,
            referer,
            raw_headers,
            raw_body,
            hits: put_hits(blob, view.hits()),
            extensions: put_extensions(blob, view.extensions()),
        };
        self.batch.records.push(record);
        Ok(())
    }

    /// Records in it.
    pub fn len(&self) -> usize {
        self.batch.records.len()
    }

    /// Whether it has no record.
    pub fn is_empty(&self) -> bool {
        self.batch.records.is_empty()
    }

    /// The records, to fill in hashes before encoding.
    pub fn records_mut(&mut self) -> &mut [Record] {
        &mut self.batch.records
    }

    /// The records.
    pub fn records(&self) -> &[Record] {
        &self.batch.records
    }

    /// What the spans of the records point into.
    pub fn blob(&self) -> &[u8] {
        &self.batch.blob
    }

    /// Bytes of the body that [`Self::encode_frame`] will write.
    pub fn body_bytes(&self) -> usize {
        body_bytes(self.batch.records.len(), self.batch.blob.len())
    }

    /// Empties it and keeps its memory.
    pub fn clear(&mut self) {
        self.batch.records.clear();
        self.batch.blob.clear();
    }

    /// Appends the whole frame to `out`, whose length must be a multiple of 16 (frames only).
    pub fn encode_frame(&self, session: u64, sequence: u64, sent_us: u64, out: &mut Vec<u8>) {
        assert!(out.len().is_multiple_of(16), "frames start at multiples of 16");
        let start = out.len();
        out.resize(start + HEADER_BYTES, 0);
        let length = self.body_bytes();
        out.resize(start + HEADER_BYTES + length, 0);
        let (header, body) = out[start..].split_at_mut(HEADER_BYTES);
        self.encode_body(body);
        let frame_header = FrameHeader {
            kind: FrameKind::Batch,
            schema: SCHEMA,
            body_bytes: length as u32,
            record_count: self.batch.records.len() as u32,
            session,
            sequence,
            sent_us,
            body_crc: crc32fast::hash(body),
        };
        header.copy_from_slice(&frame_header.encode());
    }

    /// Writes the archive into `body`, which must have just [`Self::body_bytes`] bytes.
    pub fn encode_body(&self, body: &mut [u8]) {
        assert_eq!(body.len(), self.body_bytes(), "the body has just the room that body_bytes states");
        write_archive(&self.batch, body);
    }
}

fn write_archive(batch: &Batch, body: &mut [u8]) {
    // Resolvers of plain records are zero-sized, so the allocator is never asked for anything.
    let mut serializer = Serializer::new(Buffer::from(body), SubAllocator::empty(), ());
    let written = rkyv::api::serialize_using::<_, Failure>(batch, &mut serializer);
    assert!(written.is_ok(), "body_bytes() gives just the room that the archive needs");
}

/// A batch whose every offset has been checked: the only way to read records. There is no other constructor than
/// [`ValidBatch::parse`].
#[derive(Clone, Copy, Debug)]
pub struct ValidBatch<'a> {
    records: &'a [ArchivedRecord],
    blob: &'a [u8],
}

impl<'a> ValidBatch<'a> {
    /// Checks the body of a Batch frame, which may lie at any address; `record_count` and `schema` are those of its header.
    pub fn parse(schema: u16, record_count: u32, body: &'a [u8]) -> Result<Self, BatchError> {
        if schema != SCHEMA {
            return Err(BatchError::UnsupportedSchema { found: schema });
        }
        let archived = rkyv::api::low::access::<ArchivedBatch, Failure>(body).map_err(|_| BatchError::BadArchive)?;
        let records = archived.records.as_slice();
        let blob = archived.blob.as_slice();
        let begin = records.as_ptr().addr() - body.as_ptr().addr();
        if !begin.is_multiple_of(RECORD_ALIGNMENT) {
            return Err(BatchError::BadArchive);
        }
        if records.len() != record_count as usize {
            return Err(BatchError::RecordCountMismatch { stated: record_count, found: records.len() });
        }
        let mut parts_bytes = 0u64;
        for (index, record) in records.iter().enumerate() {
            parts_bytes += check_record(index, record, blob)?;
        }
        // Parts that share bytes would let a small frame stand for any amount of work.
        if parts_bytes > blob.len() as u64 {
            return Err(BatchError::PartsOverlap { parts_bytes, blob_bytes: blob.len() });
        }
        Ok(Self { records, blob })
    }

    /// Number of records.
    pub const fn len(&self) -> usize {
        self.records.len()
    }

    /// Whether there is none: an empty batch only moves the sequence on.
    pub const fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// The records in the order the node saw them.
    pub fn records(&self) -> impl DoubleEndedIterator<Item = RecordView<'a>> + ExactSizeIterator + use<'a> {
        let blob = self.blob;
        self.records.iter().map(move |record| RecordView { record, blob })
    }

    /// One record, `None` past the end.
    pub fn record(&self, index: usize) -> Option<RecordView<'a>> {
        self.records.get(index).map(|record| RecordView { record, blob: self.blob })
    }
}

/// Checks one record against the blob and returns the bytes that its parts take there.
#[inline]
fn check_record(index: usize, record: &ArchivedRecord, blob: &[u8]) -> Result<u64, BatchError> {
    let limit = blob.len() as u64;
    let spans =
        [&record.host, &record.path, &record.query, &record.user_agent, &record.referer, &record.raw_headers, &record.raw_body];
    // The offset of an empty table is checked too, so that one rule holds for every part.
    let mut furthest = u64::from(record.hits.offset.to_native().max(record.extensions.offset.to_native()));
    let mut bytes = 0u64;
    for span in spans {
        let length = u64::from(span.length.to_native());
        furthest = furthest.max(u64::from(span.offset.to_native()) + length);
        bytes += length;
    }
    if furthest > limit {
        return Err(BatchError::OutOfBounds { record: index });
    }
    if record.hits.length != 0 || record.extensions.length != 0 {
        bytes += check_tables(index, record, blob)?;
    }
    Ok(bytes)
}

#[cold]
fn check_tables(index: usize, record: &ArchivedRecord, blob: &[u8]) -> Result<u64, BatchError> {
    let out_of_bounds = BatchError::OutOfBounds { record: index };
    let mut bytes = 0u64;
    let tables = [
        ("hits", &record.hits, HITS_MAX, HIT_BYTES, &[8usize, 16][..]),
        ("extensions", &record.extensions, EXTENSIONS_MAX, EXTENSION_BYTES, &[4][..]),
    ];
    for (part, table, limit, entry_bytes, spans) in tables {
        let found = table.length.to_native();
        if found > limit {
            return Err(BatchError::TooManyParts { record: index, part, found, limit });
        }
        let entries = table_entries(blob, table, entry_bytes).ok_or(out_of_bounds)?;
        bytes += entries.len() as u64;
        for entry in entries.chunks_exact(entry_bytes) {
            for &at in spans {
                bytes += span_in(blob, entry, at).ok_or(out_of_bounds)?.len() as u64;
            }
        }
    }
    Ok(bytes)
}

fn table_entries<'a>(blob: &'a [u8], table: &ArchivedSpan, entry_bytes: usize) -> Option<&'a [u8]> {
    let start = table.offset.to_native() as usize;
    let length = (table.length.to_native() as usize).checked_mul(entry_bytes)?;
    blob.get(start..start.checked_add(length)?)
}

fn span_in<'a>(blob: &'a [u8], entry: &[u8], at: usize) -> Option<&'a [u8]> {
    let start = u32_in(entry, at) as usize;
    blob.get(start..start.checked_add(u32_in(entry, at + 4) as usize)?)
}

fn u32_in(entry: &[u8], at: usize) -> u32 {
    entry.get(at..at + 4).map_or(0, |bytes| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
}

/// A record read in place. Every accessor is a load or a slice; nothing is copied.
#[derive(Clone, Copy, Debug)]
pub struct RecordView<'a> {
    record: &'a ArchivedRecord,
    blob: &'a [u8],
}

macro_rules! number_accessors {
    ($($(#[$doc:meta])* $name:ident : $type:ty;)*) => {
        $($(#[$doc])* #[inline] pub fn $name(&self) -> $type { self.record.$name.to_native() })*
    };
}

macro_rules! bytes_accessors {
    ($($(#[$doc:meta])* $name:ident;)*) => {
        $($(#[$doc])* #[inline] pub fn $name(&self) -> &'a [u8] { self.part(&self.record.$name) })*
    };
}

impl<'a> RecordView<'a> {
    number_accessors! {
        /// When the request came, Unix µs by the node's clock.
        event_us: u64;
        /// Tenant, 0 if there is one only.
        tenant: u64;
        /// Keyed hash of the session id, 0 if none.
        session_hash: u64;
        /// Keyed hash of the user name, 0 if none.
        user_hash: u64;
        /// Bytes of the request.
        request_bytes: u64;
        /// Bytes of the response.
        response_bytes: u64;
        /// Application id, −1 for the default application.
        application: i32;
        /// Time until the response was sent, µs.
        response_us: u32;
        /// Time that detection took, µs.
        detection_us: u32;
        /// `FLAG_…` bits of the schema.
        flags: u32;
        /// Port of the server that took the request.
        server_port: u16;
        /// Status of the response.
        status: u16;
    }

    bytes_accessors! {
        /// Host header.
        host;
        /// Path, as received.
        path;
        /// Query without the question mark.
        query;
        /// User-Agent header.
        user_agent;
        /// Referer header.
        referer;
        /// Raw request headers, empty unless the node sends them.
        raw_headers;
        /// Raw request body, capped, empty unless the node sends it.
        raw_body;
    }

    /// Unique id of the request.
    #[inline]
    pub fn request_id(&self) -> [u8; 16] {
        self.record.request_id
    }

    /// Address of the client, IPv4 as `::ffff:a.b.c.d`.
    #[inline]
    pub fn client_ip(&self) -> [u8; 16] {
        self.record.client_ip
    }

    /// The source, by which records are routed and counted.
    #[inline]
    pub fn source(&self) -> Source {
        Source::of_bytes(&self.record.client_ip)
    }

    /// Number of the method, see [`crate::schema::v1::Method`].
    #[inline]
    pub fn method(&self) -> u8 {
        self.record.method
    }

    /// Number of the scheme, see [`crate::schema::v1::Scheme`].
    #[inline]
    pub fn scheme(&self) -> u8 {
        self.record.scheme
    }

    /// HTTP version times ten.
    #[inline]
    pub fn http_version(&self) -> u8 {
        self.record.http_version
    }

    /// Number of hits.
    #[inline]
    pub fn hit_count(&self) -> usize {
        self.record.hits.length.to_native() as usize
    }

    /// The findings.
    pub fn hits(&self) -> impl ExactSizeIterator<Item = Hit<'a>> + use<'a> {
        let blob = self.blob;
        let entries = table_entries(blob, &self.record.hits, HIT_BYTES).unwrap_or_default();
        entries.chunks_exact(HIT_BYTES).map(move |entry| Hit {
            attack_type: u16::from_le_bytes([entry[0], entry[1]]),
            severity: entry[2],
            rule_id: u32_in(entry, 4),
            point: span_in(blob, entry, 8).unwrap_or_default(),
            payload: span_in(blob, entry, 16).unwrap_or_default(),
        })
    }

    /// Number of tagged values.
    #[inline]
    pub fn extension_count(&self) -> usize {
        self.record.extensions.length.to_native() as usize
    }

    /// The tagged values, unknown tags included.
    pub fn extensions(&self) -> impl ExactSizeIterator<Item = Extension<'a>> + use<'a> {
        let blob = self.blob;
        let entries = table_entries(blob, &self.record.extensions, EXTENSION_BYTES).unwrap_or_default();
        entries.chunks_exact(EXTENSION_BYTES).map(move |entry| Extension {
            tag: u16::from_le_bytes([entry[0], entry[1]]),
            value: span_in(blob, entry, 4).unwrap_or_default(),
        })
    }

    /// The first value of a tag that is not empty.
    pub fn extension(&self, tag: u16) -> Option<&'a [u8]> {
        let mut of_tag = self.extensions().filter(|extension| extension.tag == tag && !extension.value.is_empty());
        of_tag.next().map(|extension| extension.value)
    }

    /// Bytes of blob that the parts of this record take.
    pub fn blob_bytes(&self) -> usize {
        let texts = self.host().len() + self.path().len() + self.query().len() + self.user_agent().len() + self.referer().len();
        let raw = self.raw_headers().len() + self.raw_body().len();
        let hits: usize = self.hits().map(|hit| HIT_BYTES + hit.point.len() + hit.payload.len()).sum();
        let extensions: usize = self.extensions().map(|extension| EXTENSION_BYTES + extension.value.len()).sum();
        texts + raw + hits + extensions
    }

    /// All fields, borrowed. Allocates for hits and extensions if there are any: not for the hot path.
    pub fn fields(&self) -> RecordFields<'a> {
        RecordFields {
            request_id: self.request_id(),
            client_ip: self.client_ip(),
            event_us: self.event_us(),
            tenant: self.tenant(),
            session_hash: self.session_hash(),
            user_hash: self.user_hash(),
            request_bytes: self.request_bytes(),
            response_bytes: self.response_bytes(),
            application: self.application(),
            response_us: self.response_us(),
            detection_us: self.detection_us(),
            flags: self.flags(),
            server_port: self.server_port(),
            status: self.status(),
            method: self.method(),
            scheme: self.scheme(),
            http_version: self.http_version(),
            host: self.host(),
            path: self.path(),
            query: self.query(),
            user_agent: self.user_agent(),
            referer: self.referer(),
            raw_headers: self.raw_headers(),
            raw_body: self.raw_body(),
            hits: self.hits().collect(),
            extensions: self.extensions().collect(),
        }
    }

    #[inline]
    fn part(&self, span: &ArchivedSpan) -> &'a [u8] {
        let start = span.offset.to_native() as usize;
        // Checked when the batch was parsed; `get` costs a compare and keeps this free of unsafe and of panics.
        self.blob.get(start..start + span.length.to_native() as usize).unwrap_or_default()
    }
}
