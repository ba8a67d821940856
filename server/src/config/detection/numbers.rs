//! The numbers of every detector with their defaults, and what a file may give of them.
//!
//! One table declares both, with the comment that `--print-config` writes beside each.

use super::{Wrong, in_range};
use serde::Deserialize;
use std::fmt;
use std::ops::{Range, RangeInclusive};

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

impl Response {
    /// As files write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Monitor => "monitor",
            Self::Graylist => "graylist",
            Self::Denylist => "denylist",
        }
    }
}

/// What a detector does beside raising an alert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reaction {
    /// What the filters are to do.
    pub action: Response,
    /// How long.
    pub action_us: u64,
    /// For requests to every application, not just the one that it fired in.
    pub for_all_applications: bool,
    /// Only for the session, if the alert has one, and not for the source.
    pub for_session: bool,
}

impl Default for Reaction {
    fn default() -> Self {
        Self { action: Response::Monitor, action_us: HOUR_US as u64, for_all_applications: false, for_session: false }
    }
}

/// Detectors that never list anybody.
const MONITOR_ONLY: [&str; 3] = ["user_brute_force", "user_many_sources", "crawl"];

/// What may be given for a number of events.
pub const EVENTS: RangeInclusive<i64> = 1..=256;
/// What may be given for a time.
pub(super) const TIME: RangeInclusive<i64> = 1..=31 * 24 * HOUR_US;
/// What may be given for a number of values told apart.
pub const DISTINCT: RangeInclusive<i64> = 1..=64;
const WEIGHT: RangeInclusive<i64> = 1..=1_000_000_000_000;
const ACTION_S: RangeInclusive<i64> = 60..=10 * 366 * 86_400;

/// A number or a word of a table, for who writes it down.
#[derive(Clone, Copy, Debug)]
pub(super) enum Shown {
    Number(i64),
    Switch(bool),
    Word(&'static str),
}

impl fmt::Display for Shown {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(out),
            Self::Switch(is_on) => is_on.fmt(out),
            Self::Word(word) => word.fmt(out),
        }
    }
}

/// Declares the numbers of each detector: a struct of values with the defaults, and one of what a file may give.
macro_rules! numbers {
    ($($(#[doc = $doc:literal])* $name:ident $given:ident $field:ident { $($(#[doc = $number_doc:literal])* $number:ident = $default:expr, $range:expr;)* })*) => {
        $(
            $(#[doc = $doc])*
            #[derive(Clone, Copy, Debug, PartialEq, Eq)]
            pub struct $name {
                /// Whether it runs.
                pub enabled: bool,
                /// One count for all applications together.
                pub across_applications: bool,
                /// What follows an alert.
                pub reaction: Reaction,
                $($(#[doc = $number_doc])* pub $number: i64,)*
            }

            impl Default for $name {
                fn default() -> Self {
                    Self { enabled: true, across_applications: false, reaction: Reaction::default(), $($number: $default,)* }
                }
            }

            impl $name {
                fn each(&self, mut show: impl FnMut(&str, Shown, &str)) {
                    show("enabled", Shown::Switch(self.enabled), "Whether it runs.");
                    show("across_applications", Shown::Switch(self.across_applications), "One count for all applications together.");
                    $(show(stringify!($number), Shown::Number(self.$number), concat!($($number_doc),*).trim());)*
                    let Reaction { action, action_us, for_all_applications, for_session } = self.reaction;
                    show("action", Shown::Word(action.name()), "What filters do with the source: monitor (nothing), graylist, denylist.");
                    show("action_s", Shown::Number((action_us / 1_000_000) as i64), "How long, seconds: 60 to ten years, no shorter than hold_us.");
                    show("action_for_all_applications", Shown::Switch(for_all_applications), "In every application, not just the one that it fired in.");
                    show("action_for_session", Shown::Switch(for_session), "Only the session, if the alert has one: for sources that many share.");
                }
            }

            #[derive(Clone, Debug, Default, Deserialize)]
            #[serde(deny_unknown_fields)]
            struct $given {
                enabled: Option<bool>,
                across_applications: Option<toml::Spanned<bool>>,
                $($number: Option<toml::Spanned<i64>>,)*
                action: Option<toml::Spanned<Response>>,
                action_s: Option<toml::Spanned<i64>>,
                action_for_all_applications: Option<bool>,
                action_for_session: Option<bool>,
            }

            impl $given {
                fn lay_over(&self, values: &mut $name) -> Result<(), Wrong> {
                    $(if let Some(given) = &self.$number {
                        values.$number = in_range(stringify!($number), given, $range)?;
                    })*
                    values.enabled = self.enabled.unwrap_or(values.enabled);
                    values.across_applications = self.across_applications.as_ref().map_or(values.across_applications, |given| *given.get_ref());
                    let reaction = &mut values.reaction;
                    reaction.for_all_applications = self.action_for_all_applications.unwrap_or(reaction.for_all_applications);
                    reaction.for_session = self.action_for_session.unwrap_or(reaction.for_session);
                    if let Some(given) = &self.action {
                        reaction.action = *given.get_ref();
                        if MONITOR_ONLY.contains(&stringify!($field)) && reaction.action != Response::Monitor {
                            return Err((given.span(), concat!(stringify!($field), " can only monitor: its key is no single source, or ordinary \
                                crawlers set it off; remove the action").to_owned()));
                        }
                    }
                    if let Some(given) = &self.action_s {
                        reaction.action_us = in_range("action_s", given, ACTION_S)? as u64 * 1_000_000;
                    }
                    Ok(())
                }

                fn span_of(&self, names: &[&str]) -> Option<Range<usize>> {
                    if let Some(given) = self.action_s.as_ref().filter(|_| names.contains(&"action_s")) {
                        return Some(given.span());
                    }
                    $(if let Some(given) = self.$number.as_ref().filter(|_| names.contains(&stringify!($number))) {
                        return Some(given.span());
                    })*
                    if let Some(given) = self.action.as_ref().filter(|_| names.contains(&"action")) {
                        return Some(given.span());
                    }
                    self.across_applications.as_ref().filter(|_| names.contains(&"across_applications")).map(toml::Spanned::span)
                }
            }
        )*

        /// The numbers of every detector.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Numbers { $($(#[doc = $doc])* pub $field: $name,)* }

        impl Numbers {
            /// Names of the detectors, in order.
            pub(super) const DETECTORS: &'static [&'static str] = &[$(stringify!($field)),*];

            /// What the detector of this name is.
            pub(super) fn about(detector: &str) -> &'static str {
                match detector { $(stringify!($field) => concat!($($doc),*).trim(),)* _ => "" }
            }

            /// Shows every value of a detector, with what it means.
            pub(super) fn each(&self, detector: &str, show: impl FnMut(&str, Shown, &str)) {
                match detector { $(stringify!($field) => self.$field.each(show),)* _ => {} }
            }

            /// Whether a detector counts all applications together.
            pub(super) fn is_across_applications(&self, detector: &str) -> bool {
                match detector { $(stringify!($field) => self.$field.across_applications,)* _ => false }
            }

            /// Whether the detector of this name counts otherwise there. What follows its alerts changes nothing that it knows.
            pub(super) fn differ(&self, other: &Self, detector: &str) -> bool {
                match detector {
                    $(stringify!($field) => $name { reaction: other.$field.reaction, ..self.$field } != other.$field,)*
                    _ => false,
                }
            }

            /// Every number of every detector, by both names, to be changed.
            #[cfg(feature = "simulation")]
            pub fn each_mut(&mut self, mut change: impl FnMut(&'static str, &'static str, &mut i64)) {
                $($(change(stringify!($field), stringify!($number), &mut self.$field.$number);)*)*
            }

            /// How long the detector of this name lists a source, and how long its alert is held, if it runs and lists.
            pub(super) fn listing(&self, detector: &str) -> Option<(u64, u64)> {
                match detector {
                    $(stringify!($field) if self.$field.enabled && self.$field.reaction.action != Response::Monitor => {
                        Some((self.$field.reaction.action_us, self.$field.hold_us as u64))
                    })*
                    _ => None,
                }
            }

            /// What follows the alerts of the detector of this name, as names and values of its table.
            pub(super) fn reaction_lines(&self, detector: &str) -> Vec<(String, String)> {
                let mut lines = Vec::new();
                self.each(detector, |name, value, _| {
                    if name.starts_with("action") {
                        lines.push((name.to_owned(), value.to_string()));
                    }
                });
                lines
            }

            /// Whether the detector of this name runs, and what follows its alerts.
            pub(super) fn running(&self, detector: &str) -> (bool, Response) {
                match detector {
                    $(stringify!($field) => (self.$field.enabled, self.$field.reaction.action),)*
                    _ => (false, Response::Monitor),
                }
            }
        }

        #[derive(Clone, Debug, Default, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub(super) struct GivenNumbers { $($field: Option<$given>,)* }

        impl GivenNumbers {
            pub(super) fn lay_over(&self, values: &mut Numbers) -> Result<(), Wrong> {
                $(if let Some(given) = &self.$field { given.lay_over(&mut values.$field)?; })*
                Ok(())
            }

            pub(super) fn named(&self) -> Vec<&'static str> {
                let mut names = Vec::new();
                $(if self.$field.is_some() { names.push(stringify!($field)); })*
                names
            }

            /// Where one of these numbers of a detector is given.
            pub(super) fn span_of(&self, detector: &str, names: &[&str]) -> Option<Range<usize>> {
                match detector { $(stringify!($field) => self.$field.as_ref()?.span_of(names),)* _ => None }
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
