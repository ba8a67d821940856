//! Requests through the engine that looks for attacks.

use super::Script;
use flate2::Compression;
use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
use postanalytics_filter::{Engine, Findings, LineFilter, MaskConfig, Masker, RawRequest, Scratch};
use std::cell::RefCell;
use std::io::Write;
use std::sync::OnceLock;
use std::time::Duration;

/// In a header that is masked whole.
const SECRET: &[u8] = b"Basic kQ9x2Zp7Vw4s";
/// Another one of the same length.
const OTHER_SECRET: &[u8] = b"Basic tW3m8Yb5Lc1d";

/// Whatever a request holds, its hits are few and short, do not depend on what was looked at before, and show nothing of a
/// masked header. What masking gives is masked. What is found in a body is found in it when it is packed, too. A line of a log
/// has the hits of its request, whatever lines came before it.
pub fn filter(data: &[u8]) {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    let engine = ENGINE.get_or_init(Engine::builtin);
    let mut script = Script(data);
    let names: [&[u8]; 6] = [b"content-type", b"cookie", b"user-agent", b"referer", b"x-any", b"x-api-key"];
    let length = usize::from(script.u16()) % 1024;
    let uri = script.bytes(length);
    let mut headers: Vec<(&[u8], &[u8])> = vec![(b"X-Api-Key", SECRET), (b"Authorization", SECRET)];
    for _ in 0..script.u8() % 4 {
        let name = names[usize::from(script.u8()) % names.len()];
        let length = usize::from(script.u8());
        headers.push((name, script.bytes(length)));
    }
    let request = RawRequest { method: b"POST", uri, headers: &headers, body: script.0, body_truncated: false };
    let mut scratch = Scratch::default();
    let limit = Duration::from_secs(60);
    let first = engine.inspect(&request, limit, &mut scratch);
    let second = engine.inspect(&request, limit, &mut scratch);
    assert_eq!((&first.found, first.incomplete), (&second.found, second.incomplete), "a scratch that was used");
    assert!(first.found.len() <= 16);
    for hit in &first.found {
        assert!(hit.point.len() <= 256 && hit.payload.len() <= 256, "{hit:?}");
    }
    // An input may have learnt a secret, and show it by itself: what is found must be the same whatever the secret is.
    let mut others = headers.clone();
    (others[0].1, others[1].1) = (OTHER_SECRET, OTHER_SECRET);
    let other = engine.inspect(&RawRequest { headers: &others, ..request }, limit, &mut scratch);
    assert!(first.incomplete || other.incomplete || first.found == other.found, "{first:?} is not {other:?}");
    packed(engine, &request, &first, &mut scratch);
    line(engine, uri, request.body, &mut scratch);
    for text in [uri, request.body] {
        let masked = engine.masker().text(text);
        assert!(masked.len() <= 4 * text.len() + 3);
        let _ = engine.masker().text(&masked);
    }
}

/// Rules of somebody's own: an error says what is wrong, and what was read looks at requests.
pub fn rules(data: &[u8]) {
    match Engine::from_toml(&String::from_utf8_lossy(data)) {
        Ok(engine) => {
            let uri = b"/a?id=1%20union%20select&x=../../etc/passwd";
            let request = RawRequest { method: b"GET", uri, ..RawRequest::default() };
            let found = engine.inspect(&request, Duration::from_secs(60), &mut Scratch::default());
            assert!(found.found.len() <= 16);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// Masking of somebody's own, names in the first line, and what it masks in the rest: a value of a parameter with such a name does
/// not show.
pub fn masking(data: &[u8]) {
    let (names, text) = data.split_at(data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len()));
    let names = String::from_utf8_lossy(names);
    let names: Vec<String> = names.split(',').take(64).map(str::to_owned).collect();
    let config = MaskConfig { headers: names.clone(), parameters: names.clone(), card_numbers: data.len().is_multiple_of(2) };
    let Ok(masker) = Masker::new(&config) else {
        let is_odd = |name: &String| name.is_empty() || name.bytes().any(|byte| !byte.is_ascii_alphanumeric());
        return assert!(names.iter().any(is_odd), "letters and digits are a name: {names:?}");
    };
    assert!(masker.text(text).len() <= 4 * text.len() + 3);
    for name in &names {
        if name.bytes().any(|byte| !byte.is_ascii_alphanumeric()) {
            continue;
        }
        let query = [name.as_bytes(), b"=kQ9x2Zp7Vw4s&z=1"].concat();
        let masked = masker.text(&query);
        assert!(!masked.windows(12).any(|bytes| bytes == b"kQ9x2Zp7Vw4s"), "{}", String::from_utf8_lossy(&masked));
    }
}

/// The body as if it was packed, and packed. `plain`: what was found in it as it is.
fn packed(engine: &Engine, request: &RawRequest<'_>, plain: &Findings, scratch: &mut Scratch) {
    let mut inspect = |coding: &[u8], body: &[u8]| {
        let mut headers = request.headers.to_vec();
        headers.push((b"Content-Encoding", coding));
        engine.inspect(&RawRequest { headers: &headers, body, ..*request }, Duration::from_secs(60), scratch)
    };
    // Not to be taken for packed unless it is.
    let both = inspect(b"gzip, deflate", request.body);
    assert!(
        both.incomplete != request.body.is_empty() && both.found == plain.found || plain.incomplete,
        "{both:?} is not {plain:?}"
    );
    inspect(b"gzip", request.body);
    inspect(b"deflate", request.body);
    if request.body.is_empty() {
        return;
    }
    let (gzip, zlib) = (GzEncoder::new(Vec::new(), Compression::fast()), ZlibEncoder::new(Vec::new(), Compression::fast()));
    let bare = DeflateEncoder::new(Vec::new(), Compression::best());
    for (coding, packed) in [
        (&b"gzip"[..], pack(gzip, request.body, GzEncoder::finish)),
        (b"deflate", pack(zlib, request.body, ZlibEncoder::finish)),
        (b"deflate", pack(bare, request.body, DeflateEncoder::finish)),
    ] {
        let found = inspect(coding, &packed);
        let has = |hit| found.found.contains(hit);
        let is_full = plain.found.len() == 16 || found.found.len() == 16;
        assert!(is_full || found.incomplete || plain.found.iter().all(has), "{plain:?} is not in {found:?}");
    }
}

fn pack<E: Write>(mut encoder: E, text: &[u8], finish: impl Fn(E) -> std::io::Result<Vec<u8>>) -> Vec<u8> {
    encoder.write_all(text).and_then(|()| finish(encoder)).expect("memory takes everything")
}

/// A target and a user agent as a line of a log has them.
fn line(engine: &Engine, target: &[u8], agent: &[u8], scratch: &mut Scratch) {
    thread_local! {
        static LINES: RefCell<LineFilter> = RefCell::default();
    }
    let headers = [(&b"user-agent"[..], agent)];
    let request = RawRequest { uri: target, headers: &headers, ..RawRequest::default() };
    let expected = engine.inspect(&request, Duration::from_secs(60), scratch);
    let request_line = [b"GET ", target, b" HTTP/1.1"].concat();
    LINES.with_borrow_mut(|lines| {
        for _ in 0..2 {
            let found = lines.inspect(&request_line, agent);
            assert!(found.incomplete || expected.incomplete || found.found == expected.found, "{found:?} is not {expected:?}");
        }
        let _ = lines.inspect(target, agent);
    });
}
