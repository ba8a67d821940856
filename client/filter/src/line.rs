//! The engine over lines of an access log.

use crate::{Engine, Findings, Masker, PROCESS_TIME_LIMIT, RawRequest, Scratch};
use foldhash::quality::RandomState;
use std::hash::BuildHasher;

/// Targets, and user agents, that are remembered as harmless, a power of two: 16 bytes each.
const REMEMBERED: usize = 1 << 15;

/// Finds in a line of an access log what a filter would have found in the request, as far as the line tells: its request line
/// and user agent. A log has no bodies and no other headers. One for each thread.
///
/// A log tells the same again and again, so targets and user agents in which nothing was found are remembered, the newer in place
/// of the older. What was found is looked at every time.
#[derive(Debug)]
pub struct LineFilter {
    engine: Engine,
    scratch: Scratch,
    targets: Harmless,
    agents: Harmless,
}

impl Default for LineFilter {
    fn default() -> Self {
        let (targets, agents) = (Harmless::default(), Harmless::default());
        Self { engine: Engine::builtin(), scratch: Scratch::default(), targets, agents }
    }
}

impl LineFilter {
    /// What masks the samples, for the texts of a line that leave the node.
    pub const fn masker(&self) -> &Masker {
        self.engine.masker()
    }

    /// What was found in a request line, as written in the log, and a user agent.
    pub fn inspect(&mut self, request_line: &[u8], user_agent: &[u8]) -> Findings {
        let uri = target(request_line);
        let (seen_target, seen_agent) = (self.targets.print(uri), self.agents.print(user_agent));
        let (knows_target, knows_agent) = (self.targets.knows(seen_target), self.agents.knows(seen_agent));
        let headers = [(&b"user-agent"[..], user_agent)];
        let request = match (knows_target, knows_agent) {
            (true, true) => return Findings::default(),
            (true, false) => RawRequest { headers: &headers, ..RawRequest::default() },
            (false, true) => RawRequest { uri, ..RawRequest::default() },
            (false, false) => RawRequest { uri, headers: &headers, ..RawRequest::default() },
        };
        let findings = self.engine.inspect(&request, PROCESS_TIME_LIMIT, &mut self.scratch);
        if findings.found.is_empty() && !findings.incomplete {
            self.targets.remember(seen_target);
            self.agents.remember(seen_agent);
        }
        findings
    }
}

/// Texts in which nothing was found, by a fingerprint of 128 bits under seeds of the process: two texts have the same with a
/// probability of some 2⁻⁶⁴ (the two halves are the same function), and who does not know the seeds cannot choose them so.
#[derive(Debug)]
struct Harmless {
    seeds: [RandomState; 2],
    prints: Vec<[u64; 2]>,
}

impl Default for Harmless {
    fn default() -> Self {
        Self { seeds: [RandomState::default(), RandomState::default()], prints: vec![[0; 2]; REMEMBERED] }
    }
}

impl Harmless {
    fn print(&self, text: &[u8]) -> [u64; 2] {
        // 0 is a free place.
        [self.seeds[0].hash_one(text) | 1, self.seeds[1].hash_one(text)]
    }

    fn knows(&self, print: [u64; 2]) -> bool {
        self.prints[Self::place(print)] == print
    }

    fn remember(&mut self, print: [u64; 2]) {
        self.prints[Self::place(print)] = print;
    }

    const fn place(print: [u64; 2]) -> usize {
        print[1] as usize & (REMEMBERED - 1)
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
    fn what_is_remembered_changes_nothing() {
        let (mut filter, mut fresh) = (LineFilter::default(), LineFilter::default());
        let (targets, agents) =
            (["/", "/a?b=c", "/etc/passwd", "/?q=<script>", "/%"], ["", "Mozilla/5.0", "sqlmap/1.8", "${jndi:ldap://a}"]);
        for round in 0..3 {
            for (target, agent) in targets.iter().flat_map(|target| agents.map(|agent| (target, agent))) {
                let line = format!("GET {target} HTTP/1.1");
                let found = filter.inspect(line.as_bytes(), agent.as_bytes()).found;
                for memory in [&mut fresh.targets, &mut fresh.agents] {
                    *memory = Harmless::default();
                }
                assert_eq!(found, fresh.inspect(line.as_bytes(), agent.as_bytes()).found, "round {round}: {line} {agent}");
            }
        }
        // More than there is room for.
        for number in 0..3 * REMEMBERED {
            let print = filter.targets.print(format!("/{number}").as_bytes());
            assert!(!filter.targets.knows(print), "{number}");
            filter.targets.remember(print);
            assert!(filter.targets.knows(print));
        }
        assert_eq!(filter.targets.prints.len(), REMEMBERED);
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
