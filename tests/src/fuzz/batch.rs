//! The archive of a batch: what passes the check can be read through every accessor, and means the same when built anew.

use postanalytics_protocol::batch::blob_bytes;
use postanalytics_protocol::schema::v1::{EXTENSIONS_MAX, HITS_MAX, SCHEMA};
use postanalytics_protocol::{BatchBuilder, RecordFields, RecordView, ValidBatch};

/// Larger than any batch made from a script.
const LIMIT: usize = 64 << 20;

/// The first byte is the record count of the header, the rest the body. 255 asks for whatever count the archive has.
pub fn batch(data: &[u8]) {
    let Some((&stated, body)) = data.split_first() else { return };
    assert!(ValidBatch::parse(SCHEMA + 1, 0, body).is_err(), "a schema that is not known");
    let parsed = match stated {
        255 => (0..=64).find_map(|count| ValidBatch::parse(SCHEMA, count, body).ok()),
        count => ValidBatch::parse(SCHEMA, u32::from(count), body).map_err(|error| assert!(!error.to_string().is_empty())).ok(),
    };
    let Some(batch) = parsed else { return };
    assert!(stated == 255 || batch.len() == usize::from(stated));
    assert_eq!(batch.is_empty(), batch.records().len() == 0);
    assert!(batch.record(batch.len()).is_none());

    let blob_bytes_all: usize = batch.records().map(|record| touch(&record)).sum();
    assert!(blob_bytes_all <= body.len(), "no byte stands for two parts");
    let (mut copied, mut built) = (BatchBuilder::default(), BatchBuilder::default());
    for record in batch.records() {
        copied.push_view(&record, LIMIT).expect("as large as the original at most");
        built.push(&record.fields(), LIMIT).expect("as large as the original at most");
    }
    assert!(reads_as(&copied, &batch) && reads_as(&built, &batch));
}

/// Reads every field, and returns the bytes of its parts.
fn touch(record: &RecordView<'_>) -> usize {
    let fields = record.fields();
    assert_eq!(fields.hits.len(), record.hit_count());
    assert!(fields.hits.len() <= HITS_MAX as usize && fields.extensions.len() <= EXTENSIONS_MAX as usize);
    assert_eq!(blob_bytes(&fields), record.blob_bytes());
    let texts = [fields.host, fields.path, fields.query, fields.user_agent, fields.referer, fields.raw_headers, fields.raw_body];
    let hits = fields.hits.iter().flat_map(|hit| [hit.point, hit.payload]);
    let every_byte = texts.into_iter().chain(hits).chain(fields.extensions.iter().map(|extension| extension.value));
    // A sum over all bytes: each is really read.
    std::hint::black_box(every_byte.flatten().fold(0u8, |sum, byte| sum.wrapping_add(*byte)));
    std::hint::black_box(record.source().address());
    record.blob_bytes()
}

fn reads_as(builder: &BatchBuilder, batch: &ValidBatch<'_>) -> bool {
    let mut body = vec![0; builder.body_bytes()];
    builder.encode_body(&mut body);
    let again = ValidBatch::parse(SCHEMA, batch.len() as u32, &body).expect("our own archive");
    let fields = |batch: &ValidBatch<'_>| -> Vec<String> { batch.records().map(|record| shown(&record.fields())).collect() };
    fields(&again) == fields(batch)
}

fn shown(fields: &RecordFields<'_>) -> String {
    format!("{fields:?}")
}
