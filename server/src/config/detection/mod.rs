//! What the detectors count: every number of the page of definitions with its default, the overrides per application, host or
//! path, what is done when one fires, and who is never listed.
//!
//! The file is TOML. A name that is not known, a number out of its range and a contradiction are errors with line and column.
//! Each detector's table may give any of its numbers; what it leaves out keeps its default. An override gives any of
//! `application`, `host` and `path` and, for the detectors that it names, other numbers: laid over those of `[detectors]`.
//! [`DetectionConfig::to_toml`] writes a configuration down so that it reads back as it was. Pure: reads no file.

mod numbers;
mod print;

pub use numbers::*;

use super::values;
use ipnet::{IpNet, Ipv6Net};
use numbers::{GivenNumbers, TIME};
use postanalytics_protocol::Source;
use serde::Deserialize;
use std::collections::HashSet;
use std::net::IpAddr;
use std::ops::{Range, RangeInclusive};
use toml::Spanned;

/// Names of tools in the user agents that they send, one a line, lines with `#` apart.
const ATTACK_TOOLS: &str = include_str!("../../../config/attack_tools.txt");
/// Most overrides: each event is compared with all of them.
const OVERRIDES_MAX: usize = 256;
/// Most entries of a list, and most bytes of one.
const LIST_MAX: usize = 4096;
const TEXT_BYTES_MAX: usize = 1024;
/// Most values that a window may have to keep; see [`window_events_max`].
pub const WINDOW_EVENTS_MAX: i64 = 500;

/// Other numbers for a part of the traffic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Override {
    /// Only this application.
    pub application: Option<i32>,
    /// Only this host, in small letters: whatever case the nodes send.
    pub host: Option<String>,
    /// Only this path, or what is below it if it ends in `/`.
    pub path: Option<String>,
    /// The detectors that it names.
    pub detectors: Vec<&'static str>,
    /// The numbers of all; those of the detectors above count.
    pub numbers: Numbers,
}

impl Override {
    /// What it is for, as the log names it.
    fn scope(&self) -> String {
        let application = self.application.map(|application| format!("application {application}"));
        let host = self.host.as_ref().map(|host| format!("host {host}"));
        let path = self.path.as_ref().map(|path| format!("path {path}"));
        [application, host, path].into_iter().flatten().collect::<Vec<_>>().join(", ")
    }

    /// Whether all that `other` fits is fitted by this one as well.
    fn covers(&self, other: &Self) -> bool {
        let is_below =
            |wide: &String, narrow: &String| wide == narrow || wide.ends_with('/') && narrow.starts_with(wide.as_str());
        self.application.is_none_or(|application| other.application == Some(application))
            && self.host.as_ref().is_none_or(|host| other.host.as_ref() == Some(host))
            && self.path.as_ref().is_none_or(|path| other.path.as_ref().is_some_and(|narrow| is_below(path, narrow)))
    }
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DetectionConfig {
    /// An event further behind its key's clock is late.
    pub late_us: u64,
    /// A line further ahead of its file's clock is dropped by a replay.
    pub ahead_us: u64,
    /// How long an endpoint's refusal is remembered.
    pub refusal_us: u64,
    /// Sources that are never listed, whatever they do.
    pub allowlist: Vec<IpNet>,
    /// Proxies that speak for others: never listed by a detector.
    pub trusted_proxies: Vec<IpNet>,
    /// Endings of further login endpoints.
    pub login_endpoints: Vec<String>,
    /// Further paths without weight: equal, or below one that ends in `/`.
    pub weightless_paths: Vec<String>,
    /// Names of attack tools.
    pub attack_tools: Vec<String>,
    /// The numbers.
    pub numbers: Numbers,
    /// Other numbers for parts of the traffic; the first that fits and names the detector holds.
    pub overrides: Vec<Override>,
}

impl Default for DetectionConfig {
    fn default() -> Self {
        let tools = ATTACK_TOOLS.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        Self {
            late_us: 120 * SECOND_US as u64,
            ahead_us: 24 * HOUR_US as u64,
            refusal_us: HOUR_US as u64,
            allowlist: Vec::new(),
            trusted_proxies: Vec::new(),
            login_endpoints: Vec::new(),
            weightless_paths: Vec::new(),
            attack_tools: tools.map(str::to_owned).collect(),
            numbers: Numbers::default(),
            overrides: Vec::new(),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    late_us: Option<Spanned<i64>>,
    ahead_us: Option<Spanned<i64>>,
    refusal_us: Option<Spanned<i64>>,
    allowlist: Vec<Spanned<String>>,
    trusted_proxies: Vec<Spanned<String>>,
    login_endpoints: Vec<Spanned<String>>,
    weightless_paths: Vec<Spanned<String>>,
    attack_tools: Option<Vec<Spanned<String>>>,
    detectors: GivenNumbers,
    overrides: Vec<Spanned<GivenOverride>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct GivenOverride {
    application: Option<i32>,
    host: Option<Spanned<String>>,
    path: Option<Spanned<String>>,
    #[serde(default)]
    detectors: GivenNumbers,
}

/// Where something is wrong, and what.
type Wrong = (Range<usize>, String);

impl DetectionConfig {
    /// Reads a configuration. The error is one for people: line, column, cause and remedy.
    pub fn parse(text: &str) -> Result<Self, String> {
        let file: File = toml::from_str(text).map_err(|error| {
            error.span().map_or_else(|| error.message().to_owned(), |span| at(text, span.start, error.message()))
        })?;
        Self::of(&file, text).map_err(|(span, message)| at(text, span.start, &message))
    }

    /// Detectors that count otherwise than with `old`, by name: their numbers changed, or parts of the traffic that have
    /// their own.
    pub fn changed_detectors(&self, old: &Self) -> Vec<&'static str> {
        // With their positions: a key is kept under the position of the override that holds for it.
        let of = |config: &Self, name: &str| -> Vec<(usize, Override)> {
            config.overrides.iter().cloned().enumerate().filter(|(_, one)| one.detectors.contains(&name)).collect()
        };
        let is_same = |name: &str, (at, one): &(usize, Override), (other_at, other): &(usize, Override)| {
            at == other_at && one.covers(other) && other.covers(one) && !one.numbers.differ(&other.numbers, name)
        };
        let differ = |name: &str| {
            let (new, old_ones) = (of(self, name), of(old, name));
            let same_overrides =
                new.len() == old_ones.len() && new.iter().zip(&old_ones).all(|(one, other)| is_same(name, one, other));
            !same_overrides || self.numbers.differ(&old.numbers, name)
        };
        Numbers::DETECTORS.iter().copied().filter(|name| differ(name)).collect()
    }

    /// Values that no detector counts by, or all do, and that are other than in `old`: name, old value, new value. Of lists
    /// the new value says what came and what went.
    pub fn changed_values(&self, old: &Self) -> Vec<(String, String, String)> {
        let mut all = Vec::new();
        for (name, old, new) in [
            ("late_us", old.late_us, self.late_us),
            ("ahead_us", old.ahead_us, self.ahead_us),
            ("refusal_us", old.refusal_us, self.refusal_us),
        ] {
            if old != new {
                all.push((name.to_owned(), old.to_string(), new.to_string()));
            }
        }
        let texts = |networks: &[IpNet]| networks.iter().map(ToString::to_string).collect::<Vec<_>>();
        let lists = [
            ("allowlist", texts(&old.allowlist), texts(&self.allowlist)),
            ("trusted_proxies", texts(&old.trusted_proxies), texts(&self.trusted_proxies)),
            ("login_endpoints", old.login_endpoints.clone(), self.login_endpoints.clone()),
            ("weightless_paths", old.weightless_paths.clone(), self.weightless_paths.clone()),
            ("attack_tools", old.attack_tools.clone(), self.attack_tools.clone()),
        ];
        for (name, old, new) in lists {
            all.extend(list_change(&old, &new).map(|(old, new)| (name.to_owned(), old, new)));
        }
        for detector in Numbers::DETECTORS {
            let (old, new) = (old.numbers.reaction_lines(detector), self.numbers.reaction_lines(detector));
            all.extend(reaction_changes(&format!("detectors.{detector}"), old, new));
        }
        // Of one that came or went, what holds in its place else: the numbers for all.
        let known = |one: &Override| old.overrides.iter().find(|known| known.scope() == one.scope());
        let stayed_or_came =
            self.overrides.iter().map(|one| (one, known(one).map_or(&old.numbers, |known| &known.numbers), &one.numbers));
        let is_gone = |one: &&Override| !self.overrides.iter().any(|new| new.scope() == one.scope());
        let went = old.overrides.iter().filter(is_gone).map(|one| (one, &one.numbers, &self.numbers));
        for (one, was, is) in stayed_or_came.chain(went) {
            let also = known(one).map_or(&[][..], |known| &known.detectors[..]);
            for detector in Numbers::DETECTORS.iter().filter(|name| one.detectors.contains(name) || also.contains(name)) {
                let (was, is) = (was.reaction_lines(detector), is.reaction_lines(detector));
                all.extend(reaction_changes(&format!("override of {}: detectors.{detector}", one.scope()), was, is));
            }
        }
        all
    }

    fn of(file: &File, text: &str) -> Result<Self, Wrong> {
        let mut config = Self {
            allowlist: networks("allowlist", &file.allowlist)?,
            trusted_proxies: networks("trusted_proxies", &file.trusted_proxies)?,
            login_endpoints: paths("login_endpoints", &file.login_endpoints)?,
            weightless_paths: paths("weightless_paths", &file.weightless_paths)?,
            ..Self::default()
        };
        if let Some(tools) = &file.attack_tools {
            config.attack_tools = texts("attack_tools", tools, |name| match name.trim() {
                "" => Err("an empty name would be found in every user agent: remove it".to_owned()),
                _ => Ok(name.to_owned()),
            })?;
        }
        for (name, given, value) in [
            ("late_us", &file.late_us, &mut config.late_us),
            ("ahead_us", &file.ahead_us, &mut config.ahead_us),
            ("refusal_us", &file.refusal_us, &mut config.refusal_us),
        ] {
            if let Some(given) = given {
                *value = in_range(name, given, TIME)? as u64;
            }
        }
        file.detectors.lay_over(&mut config.numbers)?;
        check(&config.numbers).map_err(|contradiction| {
            (file.detectors.span_of(contradiction.detector, contradiction.names).unwrap_or(0..0), contradiction.text)
        })?;
        if let Some(one_more) = file.overrides.get(OVERRIDES_MAX) {
            return Err((one_more.span(), format!("{} overrides, at most {OVERRIDES_MAX} are taken", file.overrides.len())));
        }
        for given in &file.overrides {
            let read = config.read_override(given)?;
            let hidden_by = |earlier: &Override, name: &&str| earlier.detectors.contains(name) && earlier.covers(&read);
            for (earlier, place) in config.overrides.iter().zip(&file.overrides) {
                if let Some(name) = read.detectors.iter().find(|name| hidden_by(earlier, name)) {
                    let line = line_and_column(text, place.span().start).0;
                    let text = format!(
                        "this override never holds for {name}: the one of line {line} comes first and fits all that this one fits; put \
                         this one before it, or remove one of them"
                    );
                    return Err((given.span(), text));
                }
            }
            config.overrides.push(read);
        }
        config.check_actions(file)?;
        Ok(config)
    }

    /// An action of a detector that does not run, unless an override makes it run and takes the action over.
    fn check_actions(&self, file: &File) -> Result<(), Wrong> {
        let text = |name: &str, action: Response| {
            format!(
                "{name} does not run here (enabled = false), so nothing would ever follow from action = \"{}\": remove one of them",
                action.name()
            )
        };
        let runs_somewhere =
            |name: &&str| self.overrides.iter().any(|one| one.detectors.contains(name) && one.numbers.running(name).0);
        for name in Numbers::DETECTORS {
            let (is_enabled, action) = self.numbers.running(name);
            if !is_enabled && action != Response::Monitor && !runs_somewhere(name) {
                return Err((file.detectors.span_of(name, &["action"]).unwrap_or(0..0), text(name, action)));
            }
        }
        for (one, given) in self.overrides.iter().zip(&file.overrides) {
            for name in &one.detectors {
                let ((is_enabled, action), (_, of_all)) = (one.numbers.running(name), self.numbers.running(name));
                // An action that is that of all need not be meant for here.
                if !is_enabled && action != Response::Monitor && action != of_all {
                    let span = given.get_ref().detectors.span_of(name, &["action"]);
                    return Err((span.unwrap_or_else(|| given.span()), text(name, action)));
                }
            }
        }
        Ok(())
    }

    fn read_override(&self, place: &Spanned<GivenOverride>) -> Result<Override, Wrong> {
        let (span, given) = (place.span(), place.get_ref());
        let mut numbers = self.numbers;
        given.detectors.lay_over(&mut numbers)?;
        check(&numbers).map_err(|contradiction| {
            let found = given.detectors.span_of(contradiction.detector, contradiction.names);
            (found.unwrap_or_else(|| span.clone()), contradiction.text)
        })?;
        let read = Override {
            application: given.application,
            host: given.host.as_ref().map(host).transpose()?,
            path: given.path.as_ref().map(|given| path("path", given)).transpose()?,
            detectors: given.detectors.named(),
            numbers,
        };
        if read.application.is_none() && read.host.is_none() && read.path.is_none() {
            let text =
                "an override without application, host and path would hold for everything: write its numbers under [detectors]";
            return Err((span, text.to_owned()));
        }
        if read.detectors.is_empty() {
            let text = "an override that names no detector does nothing: add a table such as overrides.detectors.brute_force";
            return Err((span, text.to_owned()));
        }
        if let Some(name) = read.detectors.iter().find(|name| numbers.is_across_applications(name) && read.application.is_some())
        {
            let text = format!(
                "{name} is to count all applications together, and this override is for one of them: give it across_applications = false \
                 here, or no application"
            );
            return Err((given.detectors.span_of(name, &["across_applications"]).unwrap_or(span), text));
        }
        Ok(read)
    }
}

/// Most entries of a list that a line of the log names.
const ENTRIES_TOLD_MAX: usize = 20;

/// How many entries a list had, and how many it has, with what came and what went; `None`: the same entries.
fn list_change(old: &[String], new: &[String]) -> Option<(String, String)> {
    let told = |word: &str, entries: &[String], others: &[String]| {
        let others: HashSet<&String> = others.iter().collect();
        let only: Vec<&str> = entries.iter().filter(|entry| !others.contains(entry)).map(String::as_str).collect();
        let more = only.len().saturating_sub(ENTRIES_TOLD_MAX);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let named = only.iter().take(ENTRIES_TOLD_MAX).copied().collect::<Vec<_>>().join(" ");
        if only.is_empty() { String::new() } else { format!("; {word}: {named}{more}") }
    };
    let (came, went) = (told("new", new, old), told("gone", old, new));
    let count = |entries: &[String]| format!("{} entries", entries.len());
    (!came.is_empty() || !went.is_empty()).then(|| (count(old), format!("{}{came}{went}", count(new))))
}

/// Lines of a detector's reaction that differ.
fn reaction_changes(
    table: &str,
    old: Vec<(String, String)>,
    new: Vec<(String, String)>,
) -> impl Iterator<Item = (String, String, String)> {
    let differ = old.into_iter().zip(new).filter(|(old, new)| old != new);
    differ.map(move |((name, old), (_, new))| (format!("{table}.{name}"), old, new))
}

/// Whether one of these networks holds a source or, smaller than an IPv6 /64, lies in it.
pub fn touches(networks: &[IpNet], source: Source) -> bool {
    let touches = |network: &IpNet| match (network, source.address()) {
        (IpNet::V6(network), IpAddr::V6(address)) => {
            network.contains(&address) || Ipv6Net::new(address, 64).is_ok_and(|source| source.contains(network))
        }
        (network, address) => network.contains(&address),
    };
    networks.iter().any(touches)
}

/// Most values that a window beside a leaky rule can hold before the leaky rule fires: what leaks away within the window and
/// what the level holds, and the values that the leaky rule counted earlier and does not count anew.
pub const fn window_events_max(window_us: i64, events: i64, leak_us: i64, distinct_last: i64) -> i64 {
    window_us / leak_us + events + distinct_last + 2
}

/// Numbers that cannot hold together.
struct Contradiction {
    detector: &'static str,
    names: &'static [&'static str],
    text: String,
}

/// What would contradict itself.
fn check(numbers: &Numbers) -> Result<(), Contradiction> {
    let (stuffing, bola) = (&numbers.credential_stuffing, &numbers.bola);
    let of_stuffing =
        window_events_max(stuffing.shared_window_us, stuffing.burst_events, stuffing.burst_leak_us, stuffing.burst_distinct_last);
    let of_bola = window_events_max(bola.range_window_us, bola.events, bola.leak_us, bola.distinct_last);
    let held: [(_, &'static [&'static str], _); 2] = [
        ("credential_stuffing", &["shared_window_us", "burst_leak_us"], of_stuffing),
        ("bola", &["range_window_us", "leak_us"], of_bola),
    ];
    for (detector, names, events) in held {
        if events > WINDOW_EVENTS_MAX {
            let text = format!(
                "{detector}: {events} values may be in {window} before the leaky rule fires, at most {WINDOW_EVENTS_MAX} are kept: shorten \
                 {window} or lengthen {leak}",
                window = names[0],
                leak = names[1]
            );
            return Err(Contradiction { detector, names, text });
        }
    }
    if bola.range_spread < bola.range_events - 1 {
        let text = format!(
            "bola: {} different ids never lie within a range of {} (range_spread is the largest less the smallest): give range_spread = {} \
             at least, or fewer range_events",
            bola.range_events,
            bola.range_spread,
            bola.range_events - 1
        );
        return Err(Contradiction { detector: "bola", names: &["range_spread", "range_events"], text });
    }
    for detector in Numbers::DETECTORS {
        if let Some((action_us, hold_us)) = numbers.listing(detector)
            && action_us < hold_us
        {
            let text = format!(
                "{detector}: what follows ends after action_s = {}, and while an alert is held, for hold_us = {hold_us}, no other is raised \
                 that would list again: an attacker who goes on is free for the rest; give action_s = {} at least, or a shorter hold_us",
                action_us / SECOND_US as u64,
                hold_us.div_ceil(SECOND_US as u64)
            );
            return Err(Contradiction { detector, names: &["action_s", "hold_us", "action"], text });
        }
    }
    Ok(())
}

/// A list of texts, each read by `read`.
fn texts<T>(name: &str, given: &[Spanned<String>], read: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, Wrong> {
    if let Some(one_more) = given.get(LIST_MAX) {
        return Err((one_more.span(), format!("{name} has {} entries, at most {LIST_MAX} are taken", given.len())));
    }
    let read = |entry: &Spanned<String>| match entry.get_ref() {
        text if text.len() > TEXT_BYTES_MAX => Err(format!("{} bytes, at most {TEXT_BYTES_MAX} are taken", text.len())),
        text => read(text),
    };
    given.iter().map(|entry| read(entry).map_err(|text| (entry.span(), format!("{name}: {text}")))).collect()
}

fn networks(name: &str, given: &[Spanned<String>]) -> Result<Vec<IpNet>, Wrong> {
    texts(name, given, values::network)
}

fn paths(name: &str, given: &[Spanned<String>]) -> Result<Vec<String>, Wrong> {
    let read = |text: &str| match text.starts_with('/') {
        true => Ok(text.to_owned()),
        false => Err(format!("{text:?} is no path: begin it with /")),
    };
    texts(name, given, read)
}

fn path(name: &str, given: &Spanned<String>) -> Result<String, Wrong> {
    paths(name, std::slice::from_ref(given)).map(|mut one| one.pop().unwrap_or_default())
}

/// The host of an override, in small letters. What no node sends would never hold, and nobody would notice. A port may be what it wants:
/// NGINX and the agent of a combined log send none, a client that passes the Host header on does.
fn host(given: &Spanned<String>) -> Result<String, Wrong> {
    let text = given.get_ref();
    let wrong = if text.is_empty() {
        "host is empty: give one, or leave it out".to_owned()
    } else if text.contains('*') {
        format!("host {text:?} would never hold, hosts are compared whole: write an override for each host")
    } else if text.contains('/') || text.contains(|letter: char| letter.is_whitespace() || letter.is_control()) {
        format!("host {text:?} is no host: give its name alone, such as shop.example.com")
    } else {
        return Ok(text.to_ascii_lowercase());
    };
    Err((given.span(), wrong))
}

fn in_range(name: &str, given: &Spanned<i64>, range: RangeInclusive<i64>) -> Result<i64, Wrong> {
    let value = *given.get_ref();
    if range.contains(&value) {
        return Ok(value);
    }
    Err((given.span(), format!("{name} = {value} is out of range: give {} to {}", range.start(), range.end())))
}

fn at(text: &str, offset: usize, message: &str) -> String {
    let (line, column) = line_and_column(text, offset);
    format!("line {line}, column {column}: {message}")
}

fn line_and_column(text: &str, offset: usize) -> (usize, usize) {
    let before = &text[..offset.min(text.len())];
    let line = before.bytes().filter(|&byte| byte == b'\n').count() + 1;
    let column = before.chars().rev().take_while(|&character| character != '\n').count() + 1;
    (line, column)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_given_is_the_default() {
        assert_eq!(DetectionConfig::parse(""), Ok(DetectionConfig::default()));
    }

    #[test]
    fn overrides_are_laid_over_the_file() {
        let text = "[detectors.crawl]\nevents = 9\n[detectors.scanner]\naction = 'denylist'\naction_s = 60\nhold_us = 60000000\n\
                    [[overrides]]\nhost = 'b'\n[overrides.detectors.crawl]\nleak_us = 7\n";
        let config = DetectionConfig::parse(text).expect("it is right");
        let crawl = Crawl { events: 9, ..Crawl::default() };
        assert_eq!(config.numbers.crawl, crawl);
        assert_eq!(
            config.numbers.scanner.reaction,
            Reaction { action: Response::Denylist, action_us: 60_000_000, for_all_applications: false, for_session: false }
        );
        assert_eq!(config.overrides[0].numbers.crawl, Crawl { leak_us: 7, ..crawl });
        assert_eq!(config.overrides[0].detectors, ["crawl"]);
    }

    #[test]
    fn the_filter_knows_every_tool_by_its_user_agent_as_well() {
        let mut filter = postanalytics_filter::LineFilter::default();
        let mut is_scanner = |agent: &str| {
            let found = filter.inspect(b"GET / HTTP/1.1", agent.as_bytes()).found;
            found.iter().any(|hit| hit.attack_type.name() == "scanner")
        };
        for tool in DetectionConfig::default().attack_tools {
            assert!(is_scanner(&format!("Mozilla/5.0 {}", tool.to_uppercase())), "{tool}");
        }
        assert!(!is_scanner("Mozilla/5.0 (X11; Linux x86_64; rv:133.0) Gecko/20100101 Firefox/133.0"));
    }

    #[test]
    fn what_may_mean_something_is_no_contradiction() {
        for text in [
            "[detectors.bola]\nrange_spread = 29",
            "[detectors.scanner]\nenabled = false\naction_s = 600",
            // As long as the hold; shorter where nothing follows.
            "[detectors.scanner]\naction = 'denylist'\naction_s = 300",
            "[detectors.scanner]\naction_s = 60",
            "[detectors.scanner]\naction_s = 60\n[[overrides]]\nhost = 'b'\ndetectors.scanner = { action = 'denylist', action_s = 300 }",
            // It runs for one host, with the action of all; or for all but one.
            "[detectors.scanner]\nenabled = false\naction = 'denylist'\n[[overrides]]\nhost = 'b'\ndetectors.scanner.enabled = true",
            "[detectors.scanner]\naction = 'denylist'\n[[overrides]]\nhost = 'b'\ndetectors.scanner.enabled = false",
        ] {
            let config = DetectionConfig::parse(text).expect(text);
            assert_eq!(DetectionConfig::parse(&config.to_toml()).as_ref(), Ok(&config), "{text}");
        }
    }

    #[test]
    fn another_action_makes_no_detector_count_otherwise() {
        let parse = |text: &str| DetectionConfig::parse(text).expect("it is right");
        let old = parse("[[overrides]]\nhost = 'b'\ndetectors.scanner.events = 3");
        let new = parse(
            "[detectors.scanner]\naction = 'denylist'\naction_s = 600\n[[overrides]]\nhost = 'b'\n\
             detectors.scanner = { events = 3, action = 'graylist' }\n",
        );
        assert_eq!(new.changed_detectors(&old), [""; 0]);
        let told = |new: &DetectionConfig, old: &DetectionConfig| {
            new.changed_values(old).into_iter().map(|(name, old, new)| format!("{name}: {old} -> {new}")).collect::<Vec<_>>()
        };
        assert_eq!(
            told(&new, &old),
            [
                "detectors.scanner.action: monitor -> denylist",
                "detectors.scanner.action_s: 3600 -> 600",
                "override of host b: detectors.scanner.action: monitor -> graylist",
                "override of host b: detectors.scanner.action_s: 3600 -> 600",
            ]
        );
        assert_eq!(told(&old, &old), [""; 0]);
        // By what they are for, not by their place; where one came or went, what holds for all is the other side.
        let [a, b] = ["a", "b"].map(|host| {
            let action = if host == "a" { "monitor" } else { "denylist" };
            format!("[[overrides]]\nhost = '{host}'\ndetectors.scanner.action = '{action}'\n")
        });
        let [alone, both, turned] = [a.clone(), format!("{a}{b}"), format!("{b}{a}")].map(|text| parse(&text));
        assert_eq!(told(&turned, &both), [""; 0]);
        assert_eq!(told(&turned, &alone), ["override of host b: detectors.scanner.action: monitor -> denylist"]);
        assert_eq!(told(&alone, &turned), ["override of host b: detectors.scanner.action: denylist -> monitor"]);
        let (old, new) = (
            parse("late_us = 1\nallowlist = ['10.0.0.1', '10.0.0.2']\nlogin_endpoints = ['/a', '/b']"),
            parse(
                "late_us = 2\nallowlist = ['10.0.0.2', '10.0.0.3']\nlogin_endpoints = ['/b', '/a']\ntrusted_proxies = ['10.0.0.4']",
            ),
        );
        assert_eq!(
            told(&new, &old),
            [
                "late_us: 1 -> 2",
                "allowlist: 2 entries -> 2 entries; new: 10.0.0.3/32; gone: 10.0.0.1/32",
                "trusted_proxies: 0 entries -> 1 entries; new: 10.0.0.4/32",
            ]
        );
        assert_eq!(parse("[detectors.scanner]\nevents = 3").changed_detectors(&parse("")), ["scanner"]);
        assert_eq!(parse("[detectors.scanner]\nenabled = false").changed_detectors(&parse("")), ["scanner"]);
    }

    #[test]
    fn errors_name_line_and_column() {
        for (text, expected) in [
            ("a = 1", "line 1, column 1: unknown field `a`"),
            ("[detectors.crawl]\nburst = 1", "line 2, column 1: unknown field `burst`"),
            ("[detectors.crawl]\nevents = 0", "line 2, column 10: events = 0 is out of range"),
            ("[detectors.crawl]\naction = 'denylist'", "line 2, column 10: crawl can only monitor"),
            ("[detectors.bola]\nleak_us = 1", "line 2, column 11: bola: 60"),
            ("[[overrides]]\nhost='b'\n[overrides.detectors.bola]\nleak_us = 1", "line 4, column 11: bola: 60"),
            ("[detectors.crawl]\naction = 'deny'", "line 2, column 10: unknown variant"),
            ("[detectors.crawl]\nenabled = 1", "line 2, column 11: invalid type"),
            ("[detectors.bola]\nrange_spread = 28", "line 2, column 16: bola: 30 different ids never lie within a range of 28"),
            ("[detectors.bola]\nrange_events = 39", "line 2, column 16: bola: 39 different ids"),
            (
                "[[overrides]]\nhost='b'\n[overrides.detectors.bola]\nrange_spread = 0",
                "line 4, column 16: bola: 30 different ids never lie",
            ),
            (
                "[detectors.scanner]\nenabled = false\naction = 'denylist'",
                "line 3, column 10: scanner does not run here (enabled = false)",
            ),
            (
                "[[overrides]]\nhost='b'\n[overrides.detectors.scanner]\nenabled = false\naction = 'graylist'",
                "line 5, column 10: scanner does not run here (enabled = false)",
            ),
            (
                "[detectors.scanner]\naction = 'denylist'\naction_s = 299",
                "line 3, column 12: scanner: what follows ends after action_s = 299, and while an alert is held, for hold_us = 300000000",
            ),
            ("[detectors.scanner]\naction = 'graylist'\nhold_us = 3600000001", "line 3, column 11: scanner: what follows"),
            (
                "[detectors.scanner]\naction_s = 60\n[[overrides]]\nhost='b'\n[overrides.detectors.scanner]\naction = 'denylist'",
                "line 6, column 10: scanner: what follows",
            ),
            (
                "[detectors.scanner]\naction='denylist'\n[[overrides]]\nhost='b'\n[overrides.detectors.scanner]\nevents = 9\naction_s = 60",
                "line 7, column 12: scanner: what follows",
            ),
            (
                "[detectors.scanner]\nenabled = false\naction = 'denylist'\naction_s = 60\n[[overrides]]\nhost = 'b'\n\
                 [overrides.detectors.scanner]\nenabled = true",
                "line 5, column 1: scanner: what follows",
            ),
            ("[[overrides]]\nhosts = 'b'", "line 2, column 1: unknown field `hosts`"),
            ("late_us = 0", "line 1, column 11: late_us = 0 is out of range"),
            ("\nallowlist = ['10.0.0.0/8', '10.0.0.0/33']", "line 2, column 28: allowlist: \"10.0.0.0/33\" is no network"),
            ("trusted_proxies = ['proxy']", "line 1, column 20: trusted_proxies: \"proxy\" is no network"),
            ("login_endpoints = ['']", "line 1, column 20: login_endpoints: \"\" is no path"),
            ("attack_tools = [' ']", "line 1, column 17: attack_tools: an empty name"),
            ("[[overrides]]\nhost = ''\ndetectors.crawl.events = 1", "line 2, column 8: host is empty"),
            (
                "[[overrides]]\nhost = '*.example.com'\ndetectors.crawl.events = 1",
                "line 2, column 8: host \"*.example.com\" would never hold, hosts are compared whole",
            ),
            ("[[overrides]]\nhost = 'https://a'\ndetectors.crawl.events = 1", "line 2, column 8: host \"https://a\" is no host"),
            ("[[overrides]]\nhost = 'a '\ndetectors.crawl.events = 1", "line 2, column 8: host \"a \" is no host"),
            (
                "[[overrides]]\nhost='b'\ndetectors.crawl.events=1\n\n[[overrides]]\nhost='B'\ndetectors.crawl.events=2",
                "line 5, column 1: this override never holds for crawl: the one of line 1",
            ),
            ("[[overrides]]\npath = 'a'\ndetectors.crawl.events = 1", "line 2, column 8: path: \"a\" is no path"),
            ("[[overrides]]\nhost = 'b'\n", "line 1, column 1: an override that names no detector"),
            (
                "[[overrides]]\nhost='b'\ndetectors.crawl.events=1\n\n[[overrides]]\nhost='b'\npath='/a'\ndetectors.crawl.events=2",
                "line 5, column 1: this override never holds for crawl: the one of line 1",
            ),
            (
                "[[overrides]]\napplication=1\ndetectors.crawl.across_applications=true",
                "line 3, column 37: crawl is to count all applications together",
            ),
            ("late_us = 1\nlate_us = 2", "line 2, column 1"),
            ("[[overrides]]\nhost = 'b'\n[overrides.detectors]\n", "line 1, column 1: an override that names no detector"),
            ("x = [", "line 1, column"),
        ] {
            let error = DetectionConfig::parse(text).expect_err("it is wrong");
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
