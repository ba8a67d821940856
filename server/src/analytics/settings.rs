//! The configuration as detectors use it: numbers by override, and what makes a login endpoint, a weightless path, a tool.

use super::detectors::Detector;
use super::path::is_path_or_below;
use crate::config::detection::{DetectionConfig, Numbers, touches};
use aho_corasick::AhoCorasick;
use ipnet::IpNet;
use postanalytics_protocol::Source;

/// What login endpoints end in.
const LOGIN_ENDINGS: &[&str] = &[
    "/login",
    "/login.php",
    "/signin",
    "/sign-in",
    "/auth",
    "/oauth/token",
    "/token",
    "/session",
    "/sessions",
    "/wp-login.php",
    "/xmlrpc.php",
    "/administrator/index.php",
    "/user/login",
    "/users/sign_in",
    "/account/login",
    "/admin/login",
];

/// A part of the traffic that has numbers of its own.
#[derive(Debug)]
struct Scope {
    application: Option<i32>,
    host: Option<Vec<u8>>,
    path: Option<Vec<u8>>,
    /// Bit n: names detector n.
    detectors: u16,
}

/// See the module.
#[derive(Debug)]
pub struct Settings {
    /// An event further behind its key's clock is late.
    pub late_us: u64,
    /// How long an endpoint's refusal is remembered.
    pub refusal_us: u64,
    /// Further paths without weight.
    pub weightless_paths: Vec<String>,
    /// The endings of login endpoints.
    login_endings: Vec<String>,
    /// The bytes that these end in: most paths end in another.
    login_last_bytes: [bool; 256],
    attack_tools: AhoCorasick,
    allowlist: Vec<IpNet>,
    trusted_proxies: Vec<IpNet>,
    /// The numbers of no override, then of each.
    numbers: Vec<Numbers>,
    scopes: Vec<Scope>,
}

impl Default for Settings {
    fn default() -> Self {
        Self::new(&DetectionConfig::default()).unwrap_or_else(|error| unreachable!("the defaults hold: {error}"))
    }
}

impl Settings {
    /// The settings of a configuration. Fails if the names of tools cannot be searched for together.
    pub fn new(config: &DetectionConfig) -> Result<Self, aho_corasick::BuildError> {
        let attack_tools = AhoCorasick::builder().ascii_case_insensitive(true).build(&config.attack_tools)?;
        let scopes = config.overrides.iter().map(|given| Scope {
            application: given.application,
            host: given.host.as_ref().map(|host| host.as_bytes().to_vec()),
            path: given.path.as_ref().map(|path| path.as_bytes().to_vec()),
            detectors: Detector::ALL.iter().filter(|one| given.detectors.contains(&one.name())).map(|one| 1 << *one as u16).sum(),
        });
        let login_endings: Vec<String> =
            LOGIN_ENDINGS.iter().map(|&ending| ending.to_owned()).chain(config.login_endpoints.clone()).collect();
        let mut login_last_bytes = [false; 256];
        for last in login_endings.iter().filter_map(|ending| ending.as_bytes().last()) {
            login_last_bytes[usize::from(last.to_ascii_lowercase())] = true;
            login_last_bytes[usize::from(last.to_ascii_uppercase())] = true;
        }
        Ok(Self {
            late_us: config.late_us,
            refusal_us: config.refusal_us,
            weightless_paths: config.weightless_paths.clone(),
            login_endings,
            login_last_bytes,
            attack_tools,
            allowlist: config.allowlist.clone(),
            trusted_proxies: config.trusted_proxies.clone(),
            numbers: std::iter::once(config.numbers).chain(config.overrides.iter().map(|given| given.numbers)).collect(),
            scopes: scopes.collect(),
        })
    }

    /// The numbers of a plan.
    #[inline]
    pub fn numbers(&self, plan: u16) -> &Numbers {
        self.numbers.get(Detector::rank_of_plan(plan)).unwrap_or(&self.numbers[0])
    }

    /// Whether parts of the traffic have numbers of their own.
    #[inline]
    pub const fn has_overrides(&self) -> bool {
        !self.scopes.is_empty()
    }

    /// Which override holds for a detector: 0 for none, else its position plus one.
    #[inline]
    pub fn rank(&self, detector: Detector, application: i32, host: &[u8], path: &[u8]) -> u16 {
        if self.scopes.is_empty() {
            return 0;
        }
        let fits = |scope: &Scope| {
            scope.detectors & 1 << detector as u16 != 0
                && scope.application.is_none_or(|wanted| wanted == application)
                && scope.host.as_ref().is_none_or(|wanted| wanted.eq_ignore_ascii_case(host))
                && scope.path.as_ref().is_none_or(|wanted| is_path_or_below(path, wanted))
        };
        self.scopes.iter().position(fits).map_or(0, |position| position as u16 + 1)
    }

    /// Whether a source, or a part of it, is on the operator's allowlist.
    pub fn is_allowlisted(&self, source: Source) -> bool {
        touches(&self.allowlist, source)
    }

    /// Whether a source, or a part of it, is a proxy that speaks for others.
    pub fn is_trusted_proxy(&self, source: Source) -> bool {
        touches(&self.trusted_proxies, source)
    }

    /// Whether a path is that of a login endpoint.
    #[inline]
    pub fn is_login(&self, path: &[u8]) -> bool {
        path.last().is_some_and(|last| self.login_last_bytes[usize::from(*last)])
            && self.login_endings.iter().any(|ending| ends_with_ignoring_case(path, ending.as_bytes()))
    }

    /// Whether a user agent names an attack tool.
    pub fn is_attack_tool(&self, user_agent: &[u8]) -> bool {
        self.attack_tools.is_match(user_agent)
    }
}

/// Whether `text` ends in `ending`, ASCII case apart.
pub fn ends_with_ignoring_case(text: &[u8], ending: &[u8]) -> bool {
    text.len().checked_sub(ending.len()).is_some_and(|start| text[start..].eq_ignore_ascii_case(ending))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tools_are_found_within_user_agents_and_browsers_are_none() {
        let settings = Settings::default();
        assert!(settings.is_attack_tool(b"Mozilla/5.00 (Nikto/2.1.6)") && settings.is_attack_tool(b"SQLMAP/1.0"));
        for harmless in [
            &b"Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/120.0 Safari/537.36"[..],
            b"Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
            b"curl/8.5.0",
            b"",
        ] {
            assert!(!settings.is_attack_tool(harmless));
        }
    }

    #[test]
    fn the_first_override_that_fits_and_names_the_detector_holds() {
        let text = "[[overrides]]\nhost='B'\ndetectors.crawl.events=1\n[[overrides]]\npath='/o/'\ndetectors.scanner.events=1\n\
                    detectors.crawl.events=2\n[[overrides]]\napplication=3\ndetectors.crawl.events=3\n";
        let settings = Settings::new(&DetectionConfig::parse(text).expect("it is right")).expect("built");
        let rank =
            |application, host: &str, path: &str| settings.rank(Detector::Crawl, application, host.as_bytes(), path.as_bytes());
        assert_eq!([rank(0, "b", "/o/x"), rank(3, "c", "/o/x"), rank(3, "c", "/o"), rank(0, "", "/")], [1, 2, 3, 0]);
        assert_eq!([rank(0, "B", "/"), rank(0, "[::1]", "/")], [1, 0]);
        assert_eq!(settings.rank(Detector::Scanner, 3, b"b", b"/o/x"), 2);
        assert_eq!(settings.numbers(Detector::Crawl.plan(3)).crawl.events, 3);
    }

    #[test]
    fn networks_on_a_list_hold_sources_and_lie_in_them() {
        let config =
            DetectionConfig::parse("allowlist=['10.0.0.0/8','2001:db8::7','2001:db8:1::/48']\ntrusted_proxies=['192.0.2.1']");
        let settings = Settings::new(&config.expect("it is right")).expect("built");
        let source = |text: &str| Source::of(text.parse().expect("an address"));
        for listed in ["10.9.8.7", "2001:db8::9", "2001:db8:1:5::1"] {
            assert!(settings.is_allowlisted(source(listed)), "{listed}");
        }
        assert!(!settings.is_allowlisted(source("11.0.0.1")) && !settings.is_allowlisted(source("2001:db8:0:1::7")));
        assert!(settings.is_trusted_proxy(source("192.0.2.1")) && !settings.is_trusted_proxy(source("192.0.2.2")));
    }

    #[test]
    fn login_endpoints_are_told_by_their_ending() {
        let settings = Settings::default();
        assert!(settings.is_login(b"/API/Login") && settings.is_login(b"/x/session") && !settings.is_login(b"/login/x"));
    }
}
