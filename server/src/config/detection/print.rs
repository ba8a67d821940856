//! A configuration written down as TOML, every value with what it means; reading it gives the same configuration.

use super::numbers::Shown;
use super::{DetectionConfig, HOUR_US, MINUTE_US, Numbers, Override, SECOND_US};
use std::fmt::Write;

/// Column at which comments begin.
const COMMENT_COLUMN: usize = 44;

impl DetectionConfig {
    /// The configuration as TOML.
    pub fn to_toml(&self) -> String {
        let mut page = Page::default();
        page.line("late_us", &self.late_us, "An event further behind its key's clock is late: not looked at, but counted.");
        page.line("ahead_us", &self.ahead_us, "A replay drops a line further ahead of its file's clock.");
        page.line("refusal_us", &self.refusal_us, "How long a refusal (401, 403) of a source at an endpoint is remembered.");
        page.list("allowlist", &self.allowlist, "Addresses and networks that are never listed, whatever they do.");
        page.list(
            "trusted_proxies",
            &self.trusted_proxies,
            "Proxies and load balancers whose address may stand for many visitors: no detector lists them.",
        );
        page.list(
            "login_endpoints",
            &self.login_endpoints,
            "Endings of paths of login endpoints beside those built in (/login, /signin, /oauth/token, /wp-login.php and so on).",
        );
        page.list(
            "weightless_paths",
            &self.weightless_paths,
            "Paths that say nothing if they are missing, beside /favicon.ico and the like; one that ends in / with all below it.",
        );
        page.list("attack_tools", &self.attack_tools, "Names of attack tools in user agents, for the detector scanner.");
        for detector in Numbers::DETECTORS {
            page.table(&format!("detectors.{detector}"), Numbers::about(detector));
            page.numbers(&self.numbers, detector);
        }
        for one in &self.overrides {
            page.of_override(one);
        }
        page.text
    }
}

#[derive(Debug, Default)]
struct Page {
    text: String,
}

impl Page {
    // Writing into a String does not fail.
    fn line(&mut self, name: &str, value: &dyn std::fmt::Display, about: &str) {
        let begun = self.text.len();
        let _ = write!(self.text, "{name} = {value}");
        let width = (self.text.len() - begun).max(COMMENT_COLUMN);
        let blanks = begun + width - self.text.len();
        let about = match name.strip_suffix("_us").and_then(|_| value.to_string().parse().ok()) {
            Some(us) => format!("{} ({})", about.trim_end_matches('.'), span_text(us)),
            None => about.trim_end_matches('.').to_owned(),
        };
        let _ = writeln!(self.text, "{:blanks$} # {about}", "");
    }

    /// A list, one entry a line.
    fn list(&mut self, name: &str, entries: &[impl ToString], about: &str) {
        let _ = writeln!(self.text, "# {about}");
        if entries.is_empty() {
            let _ = writeln!(self.text, "{name} = []");
            return;
        }
        let _ = writeln!(self.text, "{name} = [");
        for entry in entries {
            let _ = writeln!(self.text, "    {},", quoted(&entry.to_string()));
        }
        self.text.push_str("]\n");
    }

    fn table(&mut self, name: &str, about: &str) {
        let _ = writeln!(self.text, "\n# {about}\n[{name}]");
    }

    fn numbers(&mut self, numbers: &Numbers, detector: &str) {
        numbers.each(detector, |name, value, about| match value {
            Shown::Number(number) => self.line(name, &number, about),
            Shown::Switch(is_on) => self.line(name, &is_on, about),
            Shown::Word(word) => self.line(name, &quoted(word), about),
        });
    }

    fn of_override(&mut self, one: &Override) {
        self.text.push_str("\n# Other numbers for a part of the traffic.\n[[overrides]]\n");
        if let Some(application) = one.application {
            self.line("application", &application, "Only this application.");
        }
        if let Some(host) = &one.host {
            self.line("host", &quoted(host), "Only this host.");
        }
        if let Some(path) = &one.path {
            self.line("path", &quoted(path), "Only this path, or what is below it if it ends in /.");
        }
        for detector in &one.detectors {
            self.table(&format!("overrides.detectors.{detector}"), Numbers::about(detector));
            self.numbers(&one.numbers, detector);
        }
    }
}

/// A TOML string.
fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for letter in text.chars() {
        match letter {
            '"' | '\\' => out.extend(['\\', letter]),
            letter if letter.is_control() => out.push_str(&format!("\\u{:04X}", letter as u32)),
            letter => out.push(letter),
        }
    }
    out.push('"');
    out
}

/// A time for people: `10 s`, `1 h`.
fn span_text(us: i64) -> String {
    for (unit_us, unit) in [(24 * HOUR_US, "d"), (HOUR_US, "h"), (MINUTE_US, "min"), (SECOND_US, "s"), (1000, "ms")] {
        if us >= unit_us && us % unit_us == 0 {
            return format!("{} {unit}", us / unit_us);
        }
    }
    format!("{us} µs")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The file that is shipped; make it anew with `postanalytics --print-config > server/config/postanalytics.toml`.
    const SHIPPED: &str = include_str!("../../../config/postanalytics.toml");

    #[test]
    fn the_shipped_file_explains_the_defaults() {
        let default = DetectionConfig::default();
        assert_eq!(DetectionConfig::parse(SHIPPED), Ok(default.clone()));
        assert!(SHIPPED.ends_with(&default.to_toml()), "print it anew: see the constant above");
        for line in default.to_toml().lines().filter(|line| line.contains(" = ") && !line.contains('[')) {
            assert!(line.contains(" # "), "{line} is not explained");
        }
    }

    #[test]
    fn what_is_written_reads_back_as_it_was() {
        let text = "late_us=5\nahead_us=6\nrefusal_us=7\nallowlist=['10.0.0.0/8','::1']\ntrusted_proxies=['192.0.2.1']\n\
                    login_endpoints=['/a\"\\b']\nweightless_paths=[\"/\\u0001é\"]\nattack_tools=[]\n\
                    [detectors.crawl]\nenabled=false\nacross_applications=true\naction_s=77\n\
                    [detectors.scanner]\naction='denylist'\naction_for_all_applications=true\naction_for_session=true\n\
                    [[overrides]]\nhost='b'\npath='/x/'\ndetectors.crawl.leak_us=7\n\
                    [[overrides]]\napplication=-1\ndetectors.bola.events=3\ndetectors.scanner.action='graylist'\n";
        let config = DetectionConfig::parse(text).expect("it is right");
        assert_ne!(config, DetectionConfig::default());
        assert_eq!(DetectionConfig::parse(&config.to_toml()), Ok(config.clone()), "{}", config.to_toml());
    }

    #[test]
    fn times_are_told_in_the_largest_unit_that_fits() {
        let told = [90_000_000, 3_600_000_000, 172_800_000_000, 1_500, 60_000_000].map(span_text);
        assert_eq!(told, ["90 s", "1 h", "2 d", "1500 µs", "1 min"]);
    }
}
