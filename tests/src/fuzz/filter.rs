//! Requests through the engine that looks for attacks.

use super::Script;
use postanalytics_filter::{Engine, RawRequest, Scratch};
use std::sync::OnceLock;
use std::time::Duration;

/// In a header that is masked whole.
const SECRET: &[u8] = b"Basic kQ9x2Zp7Vw4s";

/// Whatever a request holds, its hits are few and short, do not depend on what was looked at before, and show nothing of a
/// masked header. What masking gives is masked.
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
        assert!(!hit.payload.windows(6).any(|window| SECRET[6..].windows(6).any(|secret| secret == window)), "{hit:?}");
    }
    for text in [uri, request.body] {
        let masked = engine.masker().text(text);
        assert!(masked.len() <= 4 * text.len() + 3);
        let _ = engine.masker().text(&masked);
    }
}
