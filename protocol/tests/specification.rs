//! PROTOCOL.md and the code say the same. Where these tests fail, the page is the contract with programs in other
//! languages: change it on purpose, or not at all.

mod common;

use common::read_hex;
use postanalytics_protocol::error::ErrorCode;
use postanalytics_protocol::frames::{
    ERROR_TEXT_BYTES_MAX, HELLO_BODY_BYTES_MAX, NODE_NAME_BYTES_MAX, VERDICTS_PER_FRAME_MAX, WELCOME_SEQUENCES_MAX,
};
use postanalytics_protocol::header::{BODY_ALIGNMENT, DEFAULT_MAX_BODY_BYTES, FrameKind, HEADER_BYTES, MAGIC};
use postanalytics_protocol::schema::v1;
use std::mem::offset_of;
use std::path::{Path, PathBuf};

fn crate_directory() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn page() -> String {
    let path = crate_directory().join("../PROTOCOL.md");
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn source(name: &str) -> String {
    let path = crate_directory().join("src").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn assert_says(page: &str, needle: &str) {
    assert!(page.contains(needle), "PROTOCOL.md does not say: {needle}");
}

/// The code of a source file without comments and white space, so that only real changes count.
fn code_of(source: &str) -> String {
    let code = source.lines().map(|line| line.split("//").next().unwrap_or_default());
    code.flat_map(str::chars).filter(|character| !character.is_whitespace()).collect()
}

#[test]
fn the_schema_does_not_change_without_the_page() {
    let fingerprint = crc32fast::hash(code_of(&source("schema/v1.rs")).as_bytes());
    assert_says(&page(), &format!("`{fingerprint:#010x}`"));
}

#[test]
fn every_error_code_is_explained() {
    let page = page();
    for code in ErrorCode::ALL {
        let row = format!("| {} | `{}` | ", code as u16, code.name());
        let line = page.lines().find(|line| line.starts_with(&row)).unwrap_or_else(|| panic!("PROTOCOL.md has no row {row}"));
        let fate = line.split('|').nth(4).map(str::trim);
        assert_eq!(fate, Some(if code.is_content() { "lost" } else { "kept" }), "{line}");
    }
}

#[test]
fn every_kind_is_listed() {
    let page = page();
    for value in 0..=u8::MAX {
        if let Some(kind) = FrameKind::from_wire(value) {
            assert_says(&page, &format!("\n| {value} | {kind:?} | "));
        }
    }
    assert_says(&page, &format!("{MAGIC:#010x}"));
}

#[test]
fn every_wire_number_is_listed() {
    let page = page();
    let methods = v1::Method::ALL.iter().map(|value| (*value as u16, value.name()));
    let schemes = v1::Scheme::ALL.iter().map(|value| (*value as u16, value.name()));
    let attacks = v1::AttackType::ALL.iter().map(|value| (*value as u16, value.name()));
    for (number, name) in methods.chain(schemes).chain(attacks) {
        assert_says(&page, &format!("{number} `{name}`"));
    }
}

/// Every flag and tag of the schema has its row; one that is new in the code is found by its name there.
#[test]
fn every_flag_and_tag_is_listed() {
    let page = page();
    let flags = [
        ("FLAG_BLOCKED", v1::FLAG_BLOCKED),
        ("FLAG_DENYLIST", v1::FLAG_DENYLIST),
        ("FLAG_GRAYLIST", v1::FLAG_GRAYLIST),
        ("FLAG_AUTH_FAILED", v1::FLAG_AUTH_FAILED),
        ("FLAG_AUTH_SUCCEEDED", v1::FLAG_AUTH_SUCCEEDED),
        ("FLAG_OVERLIMIT", v1::FLAG_OVERLIMIT),
        ("FLAG_CREDENTIALS", v1::FLAG_CREDENTIALS),
        ("FLAG_MAYBE_STORED_ELSEWHERE", v1::FLAG_MAYBE_STORED_ELSEWHERE),
    ];
    for (name, flag) in flags {
        assert_says(&page, &format!("| {} | {flag} | `{name}` | ", flag.trailing_zeros()));
    }
    assert_says(&page, &format!("| {} | `TAG_METHOD` | ", v1::TAG_METHOD));
    for name in constants_of("schema/v1.rs") {
        assert_says(&page, &format!("`{name}`"));
    }
}

/// Names of the public constants of a source file, less those that are no limit or number of the wire.
fn constants_of(file: &str) -> Vec<String> {
    let source = source(file);
    let names =
        source.lines().filter_map(|line| line.strip_prefix("pub const ")?.split_once(':').map(|(name, _)| name.to_owned()));
    names
        .filter(|name| !["SCHEMA", "ANY_SHARD", "MAGIC", "PROTOCOL_VERSION"].contains(&name.as_str()))
        .filter(|name| !name.contains("fn "))
        .collect()
}

#[test]
fn every_limit_is_listed() {
    let page = page();
    let limits = [
        ("HEADER_BYTES", HEADER_BYTES),
        ("BODY_ALIGNMENT", BODY_ALIGNMENT),
        ("DEFAULT_MAX_BODY_BYTES", DEFAULT_MAX_BODY_BYTES as usize),
        ("HELLO_BODY_BYTES_MAX", HELLO_BODY_BYTES_MAX as usize),
        ("NODE_NAME_BYTES_MAX", NODE_NAME_BYTES_MAX),
        ("WELCOME_SEQUENCES_MAX", WELCOME_SEQUENCES_MAX),
        ("ERROR_TEXT_BYTES_MAX", ERROR_TEXT_BYTES_MAX),
        ("VERDICTS_PER_FRAME_MAX", VERDICTS_PER_FRAME_MAX),
        ("RECORD_BYTES", v1::RECORD_BYTES),
        ("ROOT_BYTES", v1::ROOT_BYTES),
        ("HIT_BYTES", v1::HIT_BYTES),
        ("EXTENSION_BYTES", v1::EXTENSION_BYTES),
        ("HITS_MAX", v1::HITS_MAX as usize),
        ("EXTENSIONS_MAX", v1::EXTENSIONS_MAX as usize),
    ];
    for (name, value) in limits {
        assert_says(&page, &format!("\n| `{name}` | {value} | "));
    }
    for name in constants_of("header.rs").into_iter().chain(constants_of("frames.rs")) {
        assert_says(&page, &format!("`{name}`"));
    }
}

#[test]
fn the_record_table_has_the_offsets_of_the_code() {
    let page = page();
    macro_rules! rows {
        ($($field:ident)*) => { [$((stringify!($field), offset_of!(v1::ArchivedRecord, $field)),)*] };
    }
    let rows = rows! {
        request_id client_ip event_us tenant session_hash user_hash request_bytes response_bytes application response_us
        detection_us flags server_port status method scheme http_version zero host path query user_agent referer
        raw_headers raw_body hits extensions
    };
    let record = page.split("\n## 8. Record").nth(1).expect("PROTOCOL.md has a section 8");
    for (field, offset) in rows {
        assert_says(record, &format!("\n| {offset} | `{field}` | "));
    }
}

#[test]
fn the_stats_table_has_the_fields_in_order() {
    let page = page();
    let frames = source("frames.rs");
    let values = frames.split("const fn values").nth(1).and_then(|rest| rest.split(']').nth(1)).expect("Stats has values");
    let fields: Vec<&str> = values.split("self.").skip(1).filter_map(|text| text.split(',').next()).collect();
    assert_eq!(fields.len(), 14);
    for (index, field) in fields.into_iter().enumerate() {
        assert_says(&page, &format!("\n| {} | `{field}` | ", index * 8));
    }
}

#[test]
fn the_routing_vectors_are_those_of_the_code() {
    const GOLDEN: [(&str, u64, u64, u32, u32); 6] = include!("../testdata/routing.golden");
    let page = page();
    for (address, seed, hash, of_4, of_7) in GOLDEN {
        let seed = if seed < 10 { seed.to_string() } else { format!("{seed:#018x}") };
        assert_says(&page, &format!("\n| {address} | {seed} | {hash:#018x} | {of_4} | {of_7} |"));
    }
}

#[test]
fn the_golden_frames_on_the_page_are_those_of_the_files() {
    let page = page();
    let blocks: Vec<&str> = page.split("\n```hex ").skip(1).collect();
    assert_eq!(blocks.len(), 6, "hello, welcome, ack, error, batch-v1-empty, batch-v1");
    for block in blocks {
        let (name, rest) = block.split_once('\n').expect("a block has lines");
        let (lines, _) = rest.split_once("```").expect("a block ends");
        let words = lines.lines().flat_map(|line| line.split('│').next().unwrap_or_default().split_whitespace());
        let bytes: Vec<u8> = words.map(|word| u8::from_str_radix(word, 16).expect("two hex digits")).collect();
        let file: PathBuf = crate_directory().join("testdata").join(format!("{name}.hex"));
        assert!(bytes == read_hex(&file), "the frame {name} on the page is not that of {}", file.display());
    }
}

/// Links within the page lead somewhere.
#[test]
fn links_within_the_page_hold() {
    let page = page();
    let anchor = |heading: &str| -> String {
        let kept = heading.chars().filter(|character| character.is_alphanumeric() || " -_".contains(*character));
        kept.collect::<String>().to_lowercase().replace(' ', "-")
    };
    let anchors: Vec<String> =
        page.lines().filter(|line| line.starts_with('#')).map(|line| anchor(line.trim_start_matches('#').trim())).collect();
    for link in page.split("](#").skip(1).filter_map(|rest| rest.split(')').next()) {
        assert!(anchors.iter().any(|anchor| anchor == link), "no heading has the anchor #{link}");
    }
}
