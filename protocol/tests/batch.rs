//! Laws of batches: what goes in comes out, and no bytes whatever make the reader panic or lie.

mod common;

use common::{AMPLE, any_record, body_of, only_frame};
use postanalytics_protocol::batch::flatten;
use postanalytics_protocol::schema::v1::{EXTENSIONS_MAX, HITS_MAX, RECORD_BYTES, ROOT_BYTES, Record, SCHEMA, Span};
use postanalytics_protocol::{
    Assembler, BatchBuilder, BatchError, EncodeError, Extension, FrameKind, Hit, RecordFields, ValidBatch,
};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

/// Reads everything that a valid batch offers and checks that it agrees with itself. `body_bytes` bounds the work that
/// the batch may stand for.
fn touch(batch: &ValidBatch<'_>, body_bytes: usize) {
    assert_eq!(batch.records().len(), batch.len());
    assert_eq!(batch.is_empty(), batch.record(0).is_none());
    assert!(batch.record(batch.len()).is_none());
    let mut parts = 0usize;
    let (mut builder, mut copied) = (BatchBuilder::default(), BatchBuilder::default());
    for (index, view) in batch.records().enumerate() {
        let fields = view.fields();
        let same = batch.record(index).expect("within the length");
        assert_eq!((same.request_id(), same.source()), (fields.request_id, view.source()));
        assert_eq!((view.hits().len(), view.hit_count()), (fields.hits.len(), fields.hits.len()));
        assert_eq!(view.extensions().len(), fields.extensions.len());
        assert!(fields.hits.len() <= HITS_MAX as usize && fields.extensions.len() <= EXTENSIONS_MAX as usize);
        parts += postanalytics_protocol::batch::blob_bytes(&fields);
        assert_eq!(view.blob_bytes(), postanalytics_protocol::batch::blob_bytes(&fields));
        builder.push(&fields, usize::MAX).expect("what was read can be written");
        copied.push_view(&view, usize::MAX).expect("what was read can be copied");
    }
    assert!(parts <= body_bytes, "{parts} bytes of parts out of a body of {body_bytes}");
    assert_eq!((builder.records(), builder.blob()), (copied.records(), copied.blob()));
    let mut again = vec![0; builder.body_bytes()];
    builder.encode_body(&mut again);
    let copy = ValidBatch::parse(SCHEMA, batch.len() as u32, &again).expect("what was written is valid");
    assert!(copy.records().map(|view| view.fields()).eq(batch.records().map(|view| view.fields())));
}

/// Parses with the record count that the root states (if there is one) and with `record_count`; touches what is valid.
fn parse_any_way(record_count: u32, body: &[u8]) {
    let root = body.len().saturating_sub(ROOT_BYTES);
    let stated = body.get(root + 4..root + 8).map_or(0, |bytes| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
    for count in [record_count, stated] {
        match ValidBatch::parse(SCHEMA, count, body) {
            Ok(batch) => touch(&batch, body.len()),
            Err(error) => assert!(!error.to_string().is_empty() && error.code().is_content(), "{error:?}"),
        }
    }
}

/// Words that lengths and offsets go wrong with.
fn any_word() -> impl Strategy<Value = u32> {
    prop_oneof![any::<u32>(), 0u32..300, Just(u32::MAX), Just(1 << 31)]
}

fn put_u32(body: &mut [u8], at: usize, value: u32) {
    body[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

proptest! {
    #[test]
    fn what_goes_in_comes_out(records in vec(any_record(), 0..6), session: u64, sequence: u64, sent_us: u64) {
        let mut builder = BatchBuilder::with_capacity(4, 256);
        for record in &records {
            builder.push(&record.fields(), AMPLE).expect("there is ample room");
        }
        let mut frame = Vec::new();
        builder.encode_frame(session, sequence, sent_us, &mut frame);
        let (header, body) = only_frame(&frame);
        prop_assert_eq!((header.kind, header.schema), (FrameKind::Batch, SCHEMA));
        prop_assert_eq!((header.session, header.sequence, header.sent_us), (session, sequence, sent_us));
        prop_assert_eq!((body.len(), header.record_count as usize), (builder.body_bytes(), records.len()));
        let batch = ValidBatch::parse(header.schema, header.record_count, &body).expect("a built batch is valid");
        touch(&batch, body.len());
        for (record, view) in records.iter().zip(batch.records()) {
            prop_assert_eq!(record.fields(), view.fields());
        }
    }

    #[test]
    fn a_cleared_builder_is_as_new(first in vec(any_record(), 1..3), second in vec(any_record(), 0..3)) {
        let mut builder = BatchBuilder::default();
        for record in &first {
            builder.push(&record.fields(), AMPLE).expect("there is ample room");
        }
        builder.clear();
        for record in &second {
            builder.push(&record.fields(), AMPLE).expect("there is ample room");
        }
        let mut body = vec![0; builder.body_bytes()];
        builder.encode_body(&mut body);
        prop_assert!(body == *body_of(&second));
    }

    #[test]
    fn push_flat_equals_push(records in vec(any_record(), 1..5), before in 0usize..50) {
        let mut flat = BatchBuilder::default();
        for record in &records {
            // The parts of a record may have been flattened into a blob that holds others before them.
            let mut blob = vec![0xee; before];
            let flattened = flatten(&record.fields(), &mut blob);
            flat.push_flat(flattened, &blob[before..], before as u32);
        }
        let mut body = vec![0; flat.body_bytes()];
        flat.encode_body(&mut body);
        prop_assert!(body == *body_of(&records));
    }

    #[test]
    fn random_bytes_never_panic(bytes in vec(any::<u8>(), 0..600), record_count in 0u32..4) {
        parse_any_way(record_count, &bytes);
    }

    /// Random blobs under a good root reach the checks of records, which fully random bytes hardly ever do.
    #[test]
    fn random_records_never_panic(records in 0usize..4, fill in vec(any::<u8>(), 4 * RECORD_BYTES), small: bool,
                                  blob in vec(any::<u8>(), 0..400)) {
        let mut body = body_of(&[]);
        body.clear();
        body.extend_from_slice(&fill[..records * RECORD_BYTES]);
        body.extend_from_slice(&blob);
        body.resize(body.len().next_multiple_of(16), 0);
        let root = body.len();
        body.resize(root + ROOT_BYTES, 0);
        put_u32(&mut body, root, (root as u32).wrapping_neg());
        put_u32(&mut body, root + 4, records as u32);
        put_u32(&mut body, root + 8, ((records * RECORD_BYTES) as u32).wrapping_sub(root as u32 + 8));
        put_u32(&mut body, root + 12, blob.len() as u32);
        if small {
            // Spans of a few bytes, so that many records hold.
            for record in 0..records {
                for span in (104..RECORD_BYTES).step_by(8) {
                    let at = record * RECORD_BYTES + span;
                    let (offset, length) = (body[at], body[at + 4] % 8);
                    put_u32(&mut body, at, u32::from(offset));
                    put_u32(&mut body, at + 4, u32::from(length));
                }
            }
        }
        parse_any_way(records as u32, &body);
    }

    #[test]
    fn mutated_batches_never_panic(records in vec(any_record(), 0..4),
                                   edits in vec((any::<Index>(), any_word(), any::<bool>()), 1..6)) {
        let mut body = body_of(&records);
        for (at, value, whole_word) in edits {
            if whole_word {
                let word = at.index(body.len() / 4) * 4;
                put_u32(&mut body, word, value);
            } else {
                let byte = at.index(body.len());
                body[byte] ^= value as u8;
            }
        }
        parse_any_way(records.len() as u32, &body);
    }

    #[test]
    fn every_truncation_is_noticed(records in vec(any_record(), 1..3)) {
        let body = body_of(&records);
        for length in 0..body.len() {
            let cut = &body[..length];
            parse_any_way(records.len() as u32, cut);
        }
        let mut builder = BatchBuilder::default();
        builder.push(&records[0].fields(), AMPLE).expect("there is ample room");
        let mut frame = Vec::new();
        builder.encode_frame(1, 1, 1, &mut frame);
        for length in 0..frame.len() {
            let mut assembler = Assembler::default();
            let collected = assembler.collect(&mut &frame[..length], &mut Vec::new());
            prop_assert_eq!((collected, assembler.is_idle()), (Ok(None), length == 0));
        }
    }

    #[test]
    fn a_body_is_read_at_any_address(records in vec(any_record(), 0..3)) {
        let body = body_of(&records);
        let mut memory = vec![0; body.len() + 16];
        for shift in 0..16 {
            memory[shift..shift + body.len()].copy_from_slice(&body);
            let parsed = ValidBatch::parse(SCHEMA, records.len() as u32, &memory[shift..shift + body.len()]).expect("a good body");
            touch(&parsed, body.len());
            let fields: Vec<_> = records.iter().map(|record| record.fields()).collect();
            prop_assert_eq!(parsed.records().map(|record| record.fields()).collect::<Vec<_>>(), fields, "shifted by {}", shift);
        }
    }

    /// A pointer that is off by a few bytes finds no records, though there would be room for them.
    #[test]
    fn records_begin_at_a_multiple_of_eight(records in vec(any_record(), 0..3), off in 1usize..16) {
        let body = body_of(&records);
        let (before, root) = body.split_at(body.len() - ROOT_BYTES);
        let mut moved = vec![0; off];
        moved.extend_from_slice(before);
        moved.resize(before.len() + 16, 0);
        // Both pointers, of records and blob, are relative to where they stand, which is 16 bytes further on.
        for half in root.chunks(8) {
            let pointer = i32::from_le_bytes([half[0], half[1], half[2], half[3]]);
            moved.extend((pointer - 16 + off as i32).to_le_bytes());
            moved.extend_from_slice(&half[4..]);
        }
        let parsed = ValidBatch::parse(SCHEMA, records.len() as u32, &moved);
        prop_assert_eq!(parsed.map(|batch| batch.len()), if off == 8 { Ok(records.len()) } else { Err(BatchError::BadArchive) });
    }
}

fn record_with(edit: impl FnOnce(&mut Record)) -> Record {
    let mut record = Record::default();
    edit(&mut record);
    record
}

/// The body of a batch of flat records over one blob, none of it checked.
fn raw_body(records: &[Record], blob: &[u8]) -> Vec<u8> {
    let mut builder = BatchBuilder::default();
    builder.push_flat(Record::default(), blob, 0);
    for record in records {
        builder.push_flat(Record::default(), b"", 0);
        *builder.records_mut().last_mut().expect("one was added") = *record;
    }
    let mut body = vec![0; builder.body_bytes()];
    builder.encode_body(&mut body);
    body
}

fn error_of(records: &[Record], blob: &[u8]) -> Option<BatchError> {
    ValidBatch::parse(SCHEMA, records.len() as u32 + 1, &raw_body(records, blob)).err()
}

#[test]
fn parts_that_share_bytes_are_refused() {
    let path = record_with(|record| record.path = Span { offset: 0, length: 100 });
    assert_eq!(error_of(&[path], &[b'a'; 100]), None);
    let refused = error_of(&[path, path], &[b'a'; 100]);
    assert_eq!(refused, Some(BatchError::PartsOverlap { parts_bytes: 200, blob_bytes: 100 }));
    // A table of hits whose payloads are all the same bytes: the amplification that the rule is there for.
    let mut blob = vec![0u8; 24 * 64];
    for entry in blob.chunks_exact_mut(24) {
        put_u32(entry, 20, 24 * 64);
    }
    let hits = record_with(|record| record.hits = Span { offset: 0, length: 64 });
    assert!(matches!(error_of(&[hits], &blob), Some(BatchError::PartsOverlap { .. })));
}

#[test]
fn parts_outside_the_blob_are_refused() {
    let blob = [0u8; 64];
    let spans: [fn(&mut Record) -> &mut Span; 9] = [
        |record| &mut record.host,
        |record| &mut record.path,
        |record| &mut record.query,
        |record| &mut record.user_agent,
        |record| &mut record.referer,
        |record| &mut record.raw_headers,
        |record| &mut record.raw_body,
        |record| &mut record.hits,
        |record| &mut record.extensions,
    ];
    for (index, span_of) in spans.into_iter().enumerate() {
        for (offset, length) in [(65, 0), (64, 1), (u32::MAX, 1), (u32::MAX, 0), (1, u32::MAX), (u32::MAX, u32::MAX)] {
            let record = record_with(|record| *span_of(record) = Span { offset, length });
            let error = error_of(&[record], &blob);
            let too_many = index >= 7 && length == u32::MAX;
            let expected = matches!(error, Some(BatchError::OutOfBounds { record: 1 }))
                || too_many && matches!(error, Some(BatchError::TooManyParts { .. } | BatchError::OutOfBounds { .. }));
            assert!(expected, "part {index}, {offset} + {length}: {error:?}");
        }
        let at_the_end = record_with(|record| *span_of(record) = Span { offset: 64, length: 0 });
        assert_eq!(error_of(&[at_the_end], &blob), None, "an empty part may stand at the end of the blob");
    }
    // Spans inside the tables.
    for at in [8, 12, 16, 20] {
        let mut entry = [0u8; 24];
        put_u32(&mut entry, at, 65);
        let hit = record_with(|record| record.hits = Span { offset: 0, length: 1 });
        assert_eq!(error_of(&[hit], &entry), Some(BatchError::OutOfBounds { record: 1 }), "hit entry, byte {at}");
    }
    for at in [4, 8] {
        let mut entry = [0u8; 12];
        put_u32(&mut entry, at, 65);
        let extension = record_with(|record| record.extensions = Span { offset: 0, length: 1 });
        assert_eq!(error_of(&[extension], &entry), Some(BatchError::OutOfBounds { record: 1 }), "extension entry, byte {at}");
    }
}

#[test]
fn too_many_hits_or_extensions_are_refused_on_both_sides() {
    let hits = |count: u32| RecordFields { hits: vec![Hit::default(); count as usize], ..RecordFields::default() };
    let extensions =
        |count: u32| RecordFields { extensions: vec![Extension::default(); count as usize], ..RecordFields::default() };
    let mut builder = BatchBuilder::default();
    assert_eq!(builder.push(&hits(HITS_MAX), AMPLE), Ok(()));
    assert_eq!(builder.push(&extensions(EXTENSIONS_MAX), AMPLE), Ok(()));
    for (fields, part) in [(hits(HITS_MAX + 1), "hits"), (extensions(EXTENSIONS_MAX + 1), "extensions")] {
        let refused = EncodeError::TooManyParts { part, found: 65, limit: 64 };
        assert_eq!(builder.push(&fields, AMPLE), Err(refused));
    }
    assert_eq!(builder.len(), 2);
    let many = record_with(|record| record.hits.length = HITS_MAX + 1);
    let refused = BatchError::TooManyParts { record: 1, part: "hits", found: 65, limit: 64 };
    assert_eq!(error_of(&[many], &[0; 4096]), Some(refused));
    let many = record_with(|record| record.extensions.length = EXTENSIONS_MAX + 1);
    let refused = BatchError::TooManyParts { record: 1, part: "extensions", found: 65, limit: 64 };
    assert_eq!(error_of(&[many], &[0; 4096]), Some(refused));
}

#[test]
fn a_full_builder_refuses_and_stays_as_it_was() {
    let fields = RecordFields { path: &[b'a'; 100], ..RecordFields::default() };
    let mut builder = BatchBuilder::default();
    builder.push(&fields, AMPLE).expect("there is ample room");
    let would_be = postanalytics_protocol::batch::body_bytes(2, 200);
    assert_eq!(builder.push(&fields, would_be - 1), Err(EncodeError::TooLong { would_be, limit: would_be - 1 }));
    assert_eq!((builder.len(), builder.blob().len()), (1, 100));
    assert_eq!(builder.push(&fields, would_be), Ok(()));
    assert_eq!(builder.body_bytes(), would_be);
}

#[test]
fn header_and_archive_must_agree() {
    let body = body_of(&[]);
    assert_eq!(body.len(), ROOT_BYTES);
    assert!(ValidBatch::parse(SCHEMA, 0, &body).expect("an empty batch is valid").is_empty());
    let mismatch = BatchError::RecordCountMismatch { stated: 1, found: 0 };
    assert_eq!(ValidBatch::parse(SCHEMA, 1, &body).err(), Some(mismatch));
    for schema in [0, SCHEMA + 1, u16::MAX] {
        assert_eq!(ValidBatch::parse(schema, 0, &body).err(), Some(BatchError::UnsupportedSchema { found: schema }));
    }
    assert_eq!(ValidBatch::parse(SCHEMA, 0, &[]).err(), Some(BatchError::BadArchive));
}

/// Records are data: numbers that no version knows are kept, not refused.
#[test]
fn unknown_numbers_are_data() {
    let fields = RecordFields { method: 255, scheme: 255, http_version: 255, flags: u32::MAX, ..RecordFields::default() };
    let fields = RecordFields { hits: vec![Hit { attack_type: u16::MAX, ..Hit::default() }], ..fields };
    let mut builder = BatchBuilder::default();
    builder.push(&fields, AMPLE).expect("there is ample room");
    let mut frame = Vec::new();
    builder.encode_frame(1, 1, 1, &mut frame);
    let (header, body) = only_frame(&frame);
    let batch = ValidBatch::parse(header.schema, header.record_count, &body).expect("valid");
    assert_eq!(batch.record(0).expect("one record").fields(), fields);
}
