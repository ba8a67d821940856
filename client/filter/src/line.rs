//! The engine over lines of an access log.

use crate::{Engine, Findings, PROCESS_TIME_LIMIT, RawRequest, Scratch};

/// Finds in a line of an access log what a filter would have found in the request, as far as the line tells: its request line
/// and user agent. A log has no bodies and no other headers. One for each thread.
#[derive(Debug)]
pub struct LineFilter {
    engine: Engine,
    scratch: Scratch,
}

impl Default for LineFilter {
    fn default() -> Self {
        Self { engine: Engine::builtin(), scratch: Scratch::default() }
    }
}

impl LineFilter {
    /// What was found in a request line, as written in the log, and a user agent.
    pub fn inspect(&mut self, request_line: &[u8], user_agent: &[u8]) -> Findings {
        let headers = [(&b"user-agent"[..], user_agent)];
        let request = RawRequest { uri: target(request_line), headers: &headers, ..RawRequest::default() };
        self.engine.inspect(&request, PROCESS_TIME_LIMIT, &mut self.scratch)
    }
}

/// What stands between method and version; a request line that is none is looked at as it is.
fn target(request_line: &[u8]) -> &[u8] {
    let Some(blank) = memchr::memchr(b' ', request_line) else { return request_line };
    let (method, rest) = (&request_line[..blank], &request_line[blank + 1..]);
    if method.is_empty() || !method.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')) {
        return request_line;
    }
    match memchr::memrchr(b' ', rest) {
        Some(last) if rest[last + 1..].starts_with(b"HTTP/") => &rest[..last],
        _ => rest,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_hits_in_its_path_its_query_and_its_agent() {
        let mut filter = LineFilter::default();
        let mut points = |uri: &str, agent: &str| -> Vec<String> {
            let found = filter.inspect(format!("GET {uri} HTTP/1.1").as_bytes(), agent.as_bytes()).found;
            found.iter().map(|hit| format!("{} {}", hit.attack_type.name(), String::from_utf8_lossy(&hit.point))).collect()
        };
        assert_eq!(points("/a?b=c", "Mozilla/5.0 (X11; Linux x86_64)"), [""; 0]);
        assert_eq!(points("/etc/passwd", "curl/8.1"), ["ptrav uri"]);
        assert_eq!(points("/a/../../../x y", ""), ["ptrav uri"]);
        assert_eq!(points(r"/a?b=\x3cscript\x3e", "sqlmap/1.8"), ["xss get_b", "scanner header_user-agent"]);
    }

    #[test]
    fn targets() {
        let lines = [
            ("GET /a b HTTP/1.1", "/a b"),
            ("GET /a", "/a"),
            ("\\x16\\x03 /a HTTP/1.1", "\\x16\\x03 /a HTTP/1.1"),
            ("-", "-"),
            ("", ""),
        ];
        for (line, expected) in lines {
            assert_eq!(target(line.as_bytes()), expected.as_bytes());
        }
    }
}
