//! What the detectors count: every number of the page of definitions with its default, the overrides per application, host or
//! path, and what is done when one fires.
//!
//! The file is TOML. A name that is not known, a number out of its range and a contradiction are errors with line and column.
//! Each detector's table may give any of its numbers; what it leaves out keeps its default. An override gives any of
//! `application`, `host` and `path` and, for the detectors that it names, other numbers: laid over those of `[detectors]`.
//! Pure: reads no file.

use serde::Deserialize;
use std::ops::RangeInclusive;

/// A second, in µs.
pub const SECOND_US: i64 = 1_000_000;
/// A minute, in µs.
pub const MINUTE_US: i64 = 60 * SECOND_US;
/// An hour, in µs.
pub const HOUR_US: i64 = 60 * MINUTE_US;

/// What the filters are to do with a source that a detector found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Response {
    /// Nothing: the alert is all.
    #[default]
    Monitor,
    /// Watch it.
    Graylist,
    /// Refuse it.
    Denylist,
}

/// What a detector does beside raising an alert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reaction {
    /// What the filters are to do.
    pub action: Response,
    /// How long.
    pub action_us: u64,
}

impl Default for Reaction {
    fn default() -> Self {
        Self { action: Response::Monitor, action_us: HOUR_US as u64 }
    }
}

const EVENTS: RangeInclusive<i64> = 1..=256;
const TIME: RangeInclusive<i64> = 1..=31 * 24 * HOUR_US;
const DISTINCT: RangeInclusive<i64> = 1..=64;
const WEIGHT: RangeInclusive<i64> = 1..=1_000_000_000_000;

/// Declares the numbers of each detector: a struct of values with the defaults, and one of what a file may give.
macro_rules! numbers {
    ($($(#[$doc:meta])* $name:ident $given:ident $field:ident { $($(#[$number_doc:meta])* $number:ident = $default:expr, $range:expr;)* })*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug, PartialEq, Eq)]
            pub struct $name { $($(#[$number_doc])* pub $number: i64,)* /// What follows an alert.
                pub reaction: Reaction }

            impl Default for $name {
                fn default() -> Self {
                    Self { $($number: $default,)* reaction: Reaction::default() }
                }
            }

            #[derive(Clone, Debug, Default, Deserialize)]
            #[serde(deny_unknown_fields)]
            struct $given { $($number: Option<toml::Spanned<i64>>,)* action: Option<toml::Spanned<Response>>, action_s: Option<toml::Spanned<i64>> }

            impl $given {
                fn lay_over(&self, values: &mut $name) -> Result<(), Wrong> {
                    $(if let Some(given) = &self.$number {
                        values.$number = in_range(stringify!($number), given, $range)?;
                    })*
                    if let Some(given) = &self.action {
                        values.reaction.action = *given.get_ref();
                        if MONITOR_ONLY.contains(&stringify!($field)) && values.reaction.action != Response::Monitor {
                            return Err((given.span(), concat!(stringify!($field), " can only monitor: its key is no single source, or ordinary \
                                crawlers set it off; remove the action").to_owned()));
                        }
                    }
                    if let Some(given) = &self.action_s {
                        values.reaction.action_us = in_range("action_s", given, 60..=10 * 366 * 86_400)? as u64 * 1_000_000;
                    }
                    Ok(())
                }
            }
        )*

        /// The numbers of every detector.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Numbers { $($(#[$doc])* pub $field: $name,)* }

        #[derive(Clone, Debug, Default, Deserialize)]
        #[serde(deny_unknown_fields)]
        struct GivenNumbers { $($field: Option<$given>,)* }

        impl GivenNumbers {
            fn lay_over(&self, values: &mut Numbers) -> Result<(), Wrong> {
                $(if let Some(given) = &self.$field { given.lay_over(&mut values.$field)?; })*
                Ok(())
            }

            fn named(&self) -> Vec<&'static str> {
                let mut names = Vec::new();
                $(if self.$field.is_some() { names.push(stringify!($field)); })*
                names
            }
        }
    };
}

numbers! {
    /// Failed log-ins of a source at a login endpoint.
    BruteForce GivenBruteForce brute_force {
        /// Events that a burst may hold.
        burst_events = 5, EVENTS;
        /// Time in which one of them is forgotten.
        burst_leak_us = 10 * SECOND_US, TIME;
        /// Events in the medium window.
        medium_events = 10, EVENTS;
        /// The medium window.
        medium_window_us = 10 * MINUTE_US, TIME;
        /// Events in the long window.
        slow_events = 20, EVENTS;
        /// The long window.
        slow_window_us = HOUR_US, TIME;
        /// How long an alert takes further events.
        hold_us = 5 * MINUTE_US, TIME;
    }
    /// Log-ins of a source at a login endpoint that are not known to have succeeded.
    BruteForceAttempts GivenBruteForceAttempts brute_force_attempts {
        /// Events in the short window.
        fast_events = 30, EVENTS;
        /// The short window.
        fast_window_us = 30 * SECOND_US, TIME;
        /// Events in the long window since the last success.
        slow_events = 20, EVENTS;
        /// The long window.
        slow_window_us = 10 * MINUTE_US, TIME;
        /// How long an alert takes further events.
        hold_us = 5 * MINUTE_US, TIME;
    }
    /// Failed log-ins of a user, from anywhere.
    UserBruteForce GivenUserBruteForce user_brute_force {
        /// Events in the window.
        events = 10, EVENTS;
        /// The window.
        window_us = 30 * MINUTE_US, TIME;
        /// How long an alert takes further events.
        hold_us = 30 * MINUTE_US, TIME;
    }
    /// Users that a source tried.
    CredentialStuffing GivenCredentialStuffing credential_stuffing {
        /// Users that a burst may hold.
        burst_events = 5, EVENTS;
        /// Time in which one of them is forgotten.
        burst_leak_us = 10 * SECOND_US, TIME;
        /// Users that a burst tells apart.
        burst_distinct_last = 64, DISTINCT;
        /// Users in the window.
        shared_events = 10, EVENTS;
        /// The window.
        shared_window_us = 10 * MINUTE_US, TIME;
        /// Attempts of which a share must have failed.
        shared_last_attempts = 64, DISTINCT;
        /// That share.
        shared_failed_percent = 50, 0..=100;
        /// How long an alert takes further events.
        hold_us = 10 * MINUTE_US, TIME;
    }
    /// Networks from which a user failed.
    UserManySources GivenUserManySources user_many_sources {
        /// Networks in the short window.
        fast_events = 5, EVENTS;
        /// The short window.
        fast_window_us = 10 * MINUTE_US, TIME;
        /// Networks in the long window.
        slow_events = 10, EVENTS;
        /// The long window.
        slow_window_us = HOUR_US, TIME;
        /// How long an alert takes further events.
        hold_us = 30 * MINUTE_US, TIME;
    }
    /// Paths that are not there, as a sequential test.
    ForcedBrowsing GivenForcedBrowsing forced_browsing {
        /// What a failure adds.
        failure_micronats = 2_302_585, WEIGHT;
        /// What a success takes away.
        success_micronats = 641_854, WEIGHT;
        /// The score that fires.
        fires_at_micronats = 9_200_290, WEIGHT;
        /// The score that starts anew.
        reset_at_micronats = -4_605_160, -1_000_000_000_000..=-1;
        /// Templates told apart.
        distinct_last = 64, DISTINCT;
        /// Quiet time after which all is forgotten.
        empty_after_us = 48 * HOUR_US, TIME;
        /// How long an alert takes further events.
        hold_us = 5 * MINUTE_US, TIME;
    }
    /// Paths that are not there, counted.
    ForcedBrowsingCount GivenForcedBrowsingCount forced_browsing_count {
        /// Templates that a burst may hold.
        events = 10, EVENTS;
        /// Time in which one of them is forgotten.
        leak_us = 10 * SECOND_US, TIME;
        /// Templates told apart.
        distinct_last = 64, DISTINCT;
        /// How long an alert takes further events.
        hold_us = 5 * MINUTE_US, TIME;
    }
    /// Objects that a source enumerates at an endpoint.
    Bola GivenBola bola {
        /// Objects looked at together.
        range_events = 30, EVENTS;
        /// The window they must be in.
        range_window_us = 60 * SECOND_US, TIME;
        /// Largest less smallest id.
        range_spread = 37, 0..=1_000_000;
        /// Objects that a burst may hold.
        events = 120, EVENTS;
        /// Time in which one of them is forgotten.
        leak_us = SECOND_US / 2, TIME;
        /// Objects told apart.
        distinct_last = 64, DISTINCT;
        /// How long an alert takes further events.
        hold_us = 10 * MINUTE_US, TIME;
    }
    /// Payloads of a source.
    MultiPayload GivenMultiPayload multi_payload {
        /// Payloads in the window.
        events = 4, EVENTS;
        /// The window.
        window_us = HOUR_US, TIME;
        /// How long an alert takes further events.
        hold_us = HOUR_US, TIME;
    }
    /// Requests of known attack tools.
    Scanner GivenScanner scanner {
        /// Requests in the window.
        events = 2, EVENTS;
        /// The window.
        window_us = MINUTE_US, TIME;
        /// How long an alert takes further events.
        hold_us = 5 * MINUTE_US, TIME;
    }
    /// Addresses with hits of the probing types.
    Probing GivenProbing probing {
        /// Addresses that a burst may hold.
        events = 4, EVENTS;
        /// Time in which one of them is forgotten.
        leak_us = 5 * SECOND_US, TIME;
        /// Addresses told apart.
        distinct_last = 64, DISTINCT;
        /// How long an alert takes further events.
        hold_us = 5 * MINUTE_US, TIME;
    }
    /// Pages that a source fetches.
    Crawl GivenCrawl crawl {
        /// Templates that a burst may hold.
        events = 40, EVENTS;
        /// Time in which one of them is forgotten.
        leak_us = SECOND_US / 2, TIME;
        /// Templates told apart.
        distinct_last = 64, DISTINCT;
        /// How long an alert takes further events.
        hold_us = MINUTE_US, TIME;
    }
}

/// Detectors that never list anybody.
const MONITOR_ONLY: [&str; 3] = ["user_brute_force", "user_many_sources", "crawl"];
/// Most overrides: each event is compared with all of them.
const OVERRIDES_MAX: usize = 256;
/// Most values that a window may have to keep; see [`window_events_max`].
pub const WINDOW_EVENTS_MAX: i64 = 500;

/// Other numbers for a part of the traffic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Override {
    /// Only this application.
    pub application: Option<i32>,
    /// Only this host.
    pub host: Option<String>,
    /// Only this path, or what is below it if it ends in `/`.
    pub path: Option<String>,
    /// The detectors that it names.
    pub detectors: Vec<&'static str>,
    /// The numbers of all; those of the detectors above count.
    pub numbers: Numbers,
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
    /// Endings of further login endpoints.
    pub login_endpoints: Vec<String>,
    /// Further paths without weight: equal, or below one that ends in `/`.
    pub weightless_paths: Vec<String>,
    /// Names of attack tools instead of those built in.
    pub attack_tools: Option<Vec<String>>,
    /// The numbers.
    pub numbers: Numbers,
    /// Other numbers for parts of the traffic; the first that fits and names the detector holds.
    pub overrides: Vec<Override>,
}

impl Default for DetectionConfig {
    fn default() -> Self {
        Self {
            late_us: 120 * SECOND_US as u64,
            ahead_us: 24 * HOUR_US as u64,
            refusal_us: HOUR_US as u64,
            login_endpoints: Vec::new(),
            weightless_paths: Vec::new(),
            attack_tools: None,
            numbers: Numbers::default(),
            overrides: Vec::new(),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    late_us: Option<toml::Spanned<i64>>,
    ahead_us: Option<toml::Spanned<i64>>,
    refusal_us: Option<toml::Spanned<i64>>,
    login_endpoints: Vec<String>,
    weightless_paths: Vec<String>,
    attack_tools: Option<Vec<String>>,
    detectors: GivenNumbers,
    overrides: Vec<toml::Spanned<GivenOverride>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct GivenOverride {
    application: Option<i32>,
    host: Option<String>,
    path: Option<String>,
    detectors: GivenNumbers,
}

/// Where something is wrong, and what.
type Wrong = (std::ops::Range<usize>, String);

impl DetectionConfig {
    /// Reads a configuration. The error is one for people: line, column, cause and remedy.
    pub fn parse(text: &str) -> Result<Self, String> {
        let file: File = toml::from_str(text).map_err(|error| {
            error.span().map_or_else(|| error.message().to_owned(), |span| at(text, span.start, error.message()))
        })?;
        Self::of(&file).map_err(|(span, message)| at(text, span.start, &message))
    }

    fn of(file: &File) -> Result<Self, Wrong> {
        let mut config = Self {
            login_endpoints: file.login_endpoints.clone(),
            weightless_paths: file.weightless_paths.clone(),
            attack_tools: file.attack_tools.clone(),
            ..Self::default()
        };
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
        check(&config.numbers).map_err(|text| (0..0, text))?;
        if let Some(one_more) = file.overrides.get(OVERRIDES_MAX) {
            return Err((one_more.span(), format!("{} overrides, at most {OVERRIDES_MAX} are taken", file.overrides.len())));
        }
        for given in &file.overrides {
            let (span, given) = (given.span(), given.get_ref());
            let mut numbers = config.numbers;
            given.detectors.lay_over(&mut numbers)?;
            check(&numbers).map_err(|text| (span.clone(), text))?;
            if given.application.is_none() && given.host.is_none() && given.path.is_none() {
                let text = "an override without application, host and path would hold for everything: write its numbers under [detectors]";
                return Err((span, text.to_owned()));
            }
            if given.detectors.named().is_empty() {
                return Err((
                    span,
                    "an override that names no detector does nothing: add a table such as overrides.detectors.brute_force"
                        .to_owned(),
                ));
            }
            config.overrides.push(Override {
                application: given.application,
                host: given.host.clone(),
                path: given.path.clone(),
                detectors: given.detectors.named(),
                numbers,
            });
        }
        Ok(config)
    }
}

/// Most values that a window beside a leaky rule can hold before the leaky rule fires: what leaks away within the window and
/// what the level holds, and the values that the leaky rule counted earlier and does not count anew.
pub const fn window_events_max(window_us: i64, events: i64, leak_us: i64, distinct_last: i64) -> i64 {
    window_us / leak_us + events + distinct_last + 2
}

/// What would contradict itself.
fn check(numbers: &Numbers) -> Result<(), String> {
    let stuffing = &numbers.credential_stuffing;
    let held = [
        (
            "credential_stuffing",
            "shared_window_us",
            "burst_leak_us",
            window_events_max(
                stuffing.shared_window_us,
                stuffing.burst_events,
                stuffing.burst_leak_us,
                stuffing.burst_distinct_last,
            ),
        ),
        (
            "bola",
            "range_window_us",
            "leak_us",
            window_events_max(
                numbers.bola.range_window_us,
                numbers.bola.events,
                numbers.bola.leak_us,
                numbers.bola.distinct_last,
            ),
        ),
    ];
    for (detector, window, leak, events) in held {
        if events > WINDOW_EVENTS_MAX {
            return Err(format!(
                "{detector}: {events} values may be in {window} before the leaky rule fires, at most {WINDOW_EVENTS_MAX} are kept: shorten \
                 {window} or lengthen {leak}"
            ));
        }
    }
    Ok(())
}

fn in_range(name: &str, given: &toml::Spanned<i64>, range: RangeInclusive<i64>) -> Result<i64, Wrong> {
    let value = *given.get_ref();
    if range.contains(&value) {
        return Ok(value);
    }
    Err((given.span(), format!("{name} = {value} is out of range: give {} to {}", range.start(), range.end())))
}

fn at(text: &str, offset: usize, message: &str) -> String {
    let before = &text[..offset.min(text.len())];
    let line = before.bytes().filter(|&byte| byte == b'\n').count() + 1;
    let column = before.chars().rev().take_while(|&character| character != '\n').count() + 1;
    format!("line {line}, column {column}: {message}")
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
        let text = "[detectors.crawl]\nevents = 9\n[detectors.scanner]\naction = 'denylist'\naction_s = 60\n\
                    [[overrides]]\nhost = 'b'\n[overrides.detectors.crawl]\nleak_us = 7\n";
        let config = DetectionConfig::parse(text).expect("it is right");
        let crawl = Crawl { events: 9, ..Crawl::default() };
        assert_eq!(config.numbers.crawl, crawl);
        assert_eq!(config.numbers.scanner.reaction, Reaction { action: Response::Denylist, action_us: 60_000_000 });
        assert_eq!(config.overrides[0].numbers.crawl, Crawl { leak_us: 7, ..crawl });
        assert_eq!(config.overrides[0].detectors, ["crawl"]);
    }

    #[test]
    fn errors_name_line_and_column() {
        for (text, expected) in [
            ("a = 1", "line 1, column 1: unknown field `a`"),
            ("[detectors.crawl]\nburst = 1", "line 2, column 1: unknown field `burst`"),
            ("[detectors.crawl]\nevents = 0", "line 2, column 10: events = 0 is out of range"),
            ("[detectors.crawl]\naction = 'denylist'", "line 2, column 10: crawl can only monitor"),
            ("[detectors.bola]\nleak_us = 1", "bola: 60"),
            ("[[overrides]]\nhost = 'b'\n[overrides.detectors]\n", "line 1, column 1: an override that names no detector"),
            ("x = [", "line 1, column"),
        ] {
            let error = DetectionConfig::parse(text).expect_err("it is wrong");
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
