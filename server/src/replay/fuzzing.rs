//! What fuzzing drives of the files that a replay reads: see `tests/src/fuzz` of the workspace.

use super::lines::{LINE_BYTES_MAX, Lines};
use super::record::{self, request};
use crate::config::flags::LineFormat;
use crate::escape::escape;
use flate2::Compression;
use flate2::write::GzEncoder;
use postanalytics_filter::LineFilter;
use postanalytics_protocol::schema::v1::SCHEMA;
use postanalytics_protocol::{BatchBuilder, RecordFields, ValidBatch};
use std::cell::RefCell;
use std::io::{Cursor, Write};

/// A file: its lines are those of the text, plain or packed, none longer than the bound; of a packed file that ends early those
/// before its end, and an error. What a line says is a record that can be sent, and reads as it was written.
pub fn replay_lines(bytes: &[u8]) {
    thread_local! {
        static FILTER: RefCell<LineFilter> = RefCell::default();
    }
    let (what, text) = bytes.split_first().map_or((0, bytes), |(what, text)| (*what, text));
    cut(usize::from(what), text);
    for line in text.split(|&byte| byte == b'\n').take(16) {
        for format in [LineFormat::Combined, LineFormat::Jsonl] {
            let _ = FILTER.with_borrow_mut(|filter| record::read(format, line, Some(filter), sendable));
        }
        for format in [LineFormat::Combined, LineFormat::Jsonl, LineFormat::EscapedJsonl] {
            let _ = record::read(format, line, None, sendable);
        }
    }
    written(text);
}

/// `what`: how the text is packed and damaged, and now and then that it is long.
fn cut(what: usize, text: &[u8]) {
    let text = match what {
        63 | 126 if !text.is_empty() => text.repeat((LINE_BYTES_MAX + what) / text.len()),
        _ => text.to_vec(),
    };
    if text.starts_with(&[0x1f, 0x8b]) {
        lines(text);
        return;
    }
    let mut expected: Vec<&[u8]> = text.split(|&byte| byte == b'\n').collect();
    expected.pop_if(|last| last.is_empty());
    let expected: Vec<_> = expected
        .into_iter()
        .map(|line| {
            if line.len() >= LINE_BYTES_MAX {
                return (Vec::new(), true);
            }
            let end = line.iter().rposition(|&byte| byte != b'\r').map_or(0, |at| at + 1);
            (line[..end].to_vec(), false)
        })
        .collect();
    assert_eq!(lines(text.clone()), (expected.clone(), true));
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    let packed = encoder.write_all(&text).and_then(|()| encoder.finish());
    let mut packed = packed.expect("memory takes all");
    assert_eq!(lines(packed.clone()), (expected.clone(), true));
    let at = what * 7 % packed.len();
    if what.is_multiple_of(2) {
        packed.truncate(at);
        let (found, is_whole) = lines(packed);
        assert!(at < 2 || !is_whole && expected.starts_with(&found), "a file that ends early says so");
    } else {
        packed[at] ^= 1 << (what / 2 % 8);
        lines(packed);
    }
}

/// All lines of a file, and whether it came to its end.
fn lines(file: Vec<u8>) -> (Vec<(Vec<u8>, bool)>, bool) {
    let mut lines = Lines::of(Cursor::new(file), "the file".to_owned()).expect("memory is read");
    let mut found = Vec::new();
    loop {
        match lines.next() {
            Ok(Some((line, is_too_long))) => {
                assert!(line.len() < LINE_BYTES_MAX && (line.is_empty() || !is_too_long));
                found.push((line.to_vec(), is_too_long));
            }
            Ok(None) => return (found, true),
            Err(error) => {
                assert!(format!("{error:#}").contains("the file"));
                return (found, false);
            }
        }
    }
}

/// What was read fits into a batch as it is.
fn sendable(fields: &RecordFields<'_>) {
    let mut batch = BatchBuilder::with_capacity(1, 1 << 10);
    batch.push(fields, 1 << 30).expect("no more parts than a record may have");
    let mut body = vec![0; batch.body_bytes()];
    batch.encode_body(&mut body);
    let batch = ValidBatch::parse(SCHEMA, 1, &body).expect("our own batch");
    let record = batch.record(0).expect("it has one");
    assert_eq!((record.path(), record.hits().count(), record.event_us()), (fields.path, fields.hits.len(), fields.event_us));
}

/// What is written of these bytes says these bytes.
fn written(bytes: &[u8]) {
    let text = &*String::from_utf8_lossy(bytes);
    for (format, written, expected) in
        [(LineFormat::EscapedJsonl, escape(bytes), bytes), (LineFormat::Jsonl, text.to_owned(), text.as_bytes())]
    {
        let line = serde_json::json!({ "event_us": 5, "ip": "192.0.2.7", "path": written, "hits": [{ "payload": written }] })
            .to_string();
        let seen = record::read(format, line.as_bytes(), None, |fields| {
            assert_eq!((fields.path, fields.hits[0].payload), (expected, expected));
        });
        assert!(seen.is_ok(), "{line}");
    }
    if !bytes.is_empty() {
        assert_eq!(request(&[b"GET ", bytes, b" HTTP/1.1"].concat()), Some((&b"GET"[..], bytes)));
    }
}
