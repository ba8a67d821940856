//! What the tests of this directory share: records that own their parts, strategies that draw them, hex files.

#![allow(dead_code, reason = "each test binary uses its part of this")]

use postanalytics_protocol::schema::v1::{EXTENSIONS_MAX, HITS_MAX};
use postanalytics_protocol::{Assembler, BatchBuilder, Extension, FrameHeader, Hit, RecordFields};
use proptest::collection::vec;
use proptest::prelude::*;
use std::path::Path;

/// Room enough that no builder of these tests is ever full.
pub(crate) const AMPLE: usize = 1 << 20;

/// Attack type, severity, rule, point, payload.
type OwnedHit = (u16, u8, u32, Vec<u8>, Vec<u8>);

/// A record that owns its parts, for strategies cannot borrow.
#[derive(Clone, Debug)]
pub(crate) struct OwnedRecord {
    request_id: [u8; 16],
    client_ip: [u8; 16],
    numbers: [u64; 6],
    application: i32,
    words: [u32; 3],
    halves: [u16; 2],
    bytes: [u8; 3],
    texts: [Vec<u8>; 7],
    hits: Vec<OwnedHit>,
    extensions: Vec<(u16, Vec<u8>)>,
}

impl OwnedRecord {
    /// The record as the protocol crate takes it.
    pub(crate) fn fields(&self) -> RecordFields<'_> {
        let [event_us, tenant, session_hash, user_hash, request_bytes, response_bytes] = self.numbers;
        let [response_us, detection_us, flags] = self.words;
        let [server_port, status] = self.halves;
        let [method, scheme, http_version] = self.bytes;
        let [host, path, query, user_agent, referer, raw_headers, raw_body] = &self.texts;
        RecordFields {
            request_id: self.request_id,
            client_ip: self.client_ip,
            event_us,
            tenant,
            session_hash,
            user_hash,
            request_bytes,
            response_bytes,
            application: self.application,
            response_us,
            detection_us,
            flags,
            server_port,
            status,
            method,
            scheme,
            http_version,
            host,
            path,
            query,
            user_agent,
            referer,
            raw_headers,
            raw_body,
            hits: self
                .hits
                .iter()
                .map(|(attack_type, severity, rule_id, point, payload)| Hit {
                    attack_type: *attack_type,
                    severity: *severity,
                    rule_id: *rule_id,
                    point,
                    payload,
                })
                .collect(),
            extensions: self.extensions.iter().map(|(tag, value)| Extension { tag: *tag, value }).collect(),
        }
    }
}

/// Any record the schema allows, of moderate size.
pub(crate) fn any_record() -> impl Strategy<Value = OwnedRecord> {
    let text = || vec(any::<u8>(), 0..40);
    let hit = (any::<u16>(), any::<u8>(), any::<u32>(), vec(any::<u8>(), 0..12), vec(any::<u8>(), 0..24));
    let hits = prop_oneof![4 => vec(hit.clone(), 0..4), 1 => vec(hit, HITS_MAX as usize)];
    let extension = (any::<u16>(), vec(any::<u8>(), 0..16));
    let extensions = prop_oneof![4 => vec(extension.clone(), 0..4), 1 => vec(extension, EXTENSIONS_MAX as usize)];
    let numbers = (any::<[u64; 6]>(), any::<i32>(), any::<[u32; 3]>(), any::<[u16; 2]>(), any::<[u8; 3]>());
    let texts = (text(), text(), text(), text(), text(), text(), text());
    (any::<[u8; 16]>(), any::<[u8; 16]>(), numbers, texts, hits, extensions).prop_map(
        |(request_id, client_ip, (numbers, application, words, halves, bytes), (a, b, c, d, e, f, g), hits, extensions)| {
            OwnedRecord {
                request_id,
                client_ip,
                numbers,
                application,
                words,
                halves,
                bytes,
                texts: [a, b, c, d, e, f, g],
                hits,
                extensions,
            }
        },
    )
}

/// The only frame in `bytes`: its header, and its body.
pub(crate) fn only_frame(bytes: &[u8]) -> (FrameHeader, Vec<u8>) {
    let mut input = bytes;
    let mut body = Vec::new();
    let header = Assembler::default().collect(&mut input, &mut body).expect("a good frame").expect("a whole frame");
    assert!(input.is_empty(), "bytes follow the frame");
    (header, body)
}

/// The body of a batch of these records.
pub(crate) fn body_of(records: &[OwnedRecord]) -> Vec<u8> {
    let mut builder = BatchBuilder::default();
    for record in records {
        builder.push(&record.fields(), AMPLE).expect("there is ample room");
    }
    let mut body = vec![0; builder.body_bytes()];
    builder.encode_body(&mut body);
    body
}

/// Bytes of a file of hex text; white space is for people.
pub(crate) fn read_hex(path: &Path) -> Vec<u8> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let digits: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let digit =
        |byte: u8| char::from(byte).to_digit(16).unwrap_or_else(|| panic!("{}: a character is no hex digit", path.display()));
    assert!(digits.len().is_multiple_of(2), "{}: an odd number of hex digits", path.display());
    digits.chunks_exact(2).map(|pair| (digit(pair[0]) << 4 | digit(pair[1])) as u8).collect()
}

/// Hex text of bytes, 16 a line.
pub(crate) fn hex_lines(bytes: &[u8]) -> String {
    let line = |row: &[u8]| row.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ");
    bytes.chunks(16).map(|row| line(row) + "\n").collect()
}
