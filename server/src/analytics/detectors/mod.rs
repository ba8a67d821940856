//! The detectors, each in a file of its own: which observations it looks at, and when it fires.
//!
//! Two halves that meet in an [`Event`]: `look` says what an observation is to the detector, `decide` what the event does to
//! the state of its key. Between them lie the key table, the key's clock and the hold of an alert, the same for all: see
//! [`super::engine`]. Pure functions on plain state.

mod bola;
mod brute_force;
mod brute_force_attempts;
mod crawl;
mod credential_stuffing;
mod forced_browsing;
mod forced_browsing_count;
pub mod multi_payload;
pub mod probing;
mod scanner;
mod user_brute_force;
mod user_many_sources;

use super::keys::Pool;
use super::keys::cell::Cell;
use super::observation::Observation;
use super::rules::{self, Firing, SET, State, WINDOW};
use crate::config::detection::{Numbers, Reaction};

/// The value counts.
pub const COUNTED: u32 = 1;
/// An attempt or a request that failed.
pub const FAILED: u32 = 2;
/// An attempt that succeeded.
pub const SUCCEEDED: u32 = 4;
/// The value is a number.
pub const IS_NUMBER: u32 = 8;

/// What a detector looks at, once for each key: plain data, also when it waits for a second one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// Fingerprint of the key.
    pub key: u64,
    /// Its time, before the key's clock has its say.
    pub time_us: u64,
    /// Fingerprint of the value that is to be distinct.
    pub value: u64,
    /// The value as a number.
    pub number: u64,
    /// The request's id, zero if it has none.
    pub request_id: [u64; 2],
    /// What it is: [`COUNTED`] and so on.
    pub kind: u32,
    /// See [`super::keys::KeyTable::network_slot`].
    pub network: u16,
    /// Detector and override.
    pub plan: u16,
}

/// What an observation is to a detector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Look {
    /// Fingerprint of the value that is to be distinct.
    pub value: u64,
    /// The value as a number.
    pub number: u64,
    /// What it is.
    pub kind: u32,
}

/// What keys of a detector are made of, beside the application.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// A source.
    Source,
    /// A source at a host.
    SourceHost,
    /// A source at an endpoint.
    SourceEndpoint,
    /// A source, and its session if it has one, at an endpoint.
    SessionEndpoint,
    /// A user.
    User,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Worth knowing.
    Info,
    /// Worth a look.
    Warning,
    /// An attack.
    Critical,
}

impl Level {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }
}

/// Declares the detectors in the order of the page of definitions, which is the order in which they look.
macro_rules! detectors {
    ($($number:literal $name:ident $module:ident $key:ident $level:ident;)*) => {
        /// Each detector. Its number plus one stands in verdicts.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum Detector { $(#[doc = concat!("`", stringify!($module), "`")] $name = $number,)* }

        impl Detector {
            /// Every one, in order.
            pub const ALL: [Self; 12] = [$(Self::$name,)*];

            /// Its name.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($module),)* }
            }

            /// What its keys are made of.
            pub const fn key_kind(self) -> KeyKind {
                match self { $(Self::$name => KeyKind::$key,)* }
            }

            /// How bad its alerts are.
            pub const fn level(self) -> Level {
                match self { $(Self::$name => Level::$level,)* }
            }

            /// How long its alerts take further events.
            pub const fn hold_us(self, numbers: &Numbers) -> u64 {
                match self { $(Self::$name => numbers.$module.hold_us as u64,)* }
            }

            /// Whether it runs.
            pub const fn is_enabled(self, numbers: &Numbers) -> bool {
                match self { $(Self::$name => numbers.$module.enabled,)* }
            }

            /// Whether it counts all applications together.
            pub const fn is_across_applications(self, numbers: &Numbers) -> bool {
                match self { $(Self::$name => numbers.$module.across_applications,)* }
            }

            /// What follows its alerts.
            pub const fn reaction(self, numbers: &Numbers) -> Reaction {
                match self { $(Self::$name => numbers.$module.reaction,)* }
            }

            /// Takes an event into the state of its key; `state.cell.seq` counts it already.
            #[inline]
            pub fn decide(self, numbers: &Numbers, state: &mut State<'_>, event: &Event, time_us: u64, elapsed_us: u64) -> Option<Firing> {
                match self { $(Self::$name => $module::decide(&numbers.$module, state, event, time_us, elapsed_us),)* }
            }

            /// How near to firing a key is at `now_us`, in thousandths; more if a rule is exceeded.
            pub fn progress(self, numbers: &Numbers, cell: &Cell, pool: &Pool, now_us: u64) -> i64 {
                match self { $(Self::$name => $module::progress(&numbers.$module, cell, pool, now_us),)* }
            }

            /// Whether one event alone can fire, so that it may not be put aside until a second comes.
            pub const fn may_fire_at_once(self, numbers: &Numbers) -> bool {
                match self { $(Self::$name => $module::may_fire_at_once(&numbers.$module),)* }
            }
        }
    };
}

detectors! {
    0 BruteForce brute_force SourceEndpoint Critical;
    1 BruteForceAttempts brute_force_attempts SourceEndpoint Warning;
    2 UserBruteForce user_brute_force User Warning;
    3 CredentialStuffing credential_stuffing Source Critical;
    4 UserManySources user_many_sources User Warning;
    5 ForcedBrowsing forced_browsing SourceHost Warning;
    6 ForcedBrowsingCount forced_browsing_count SourceHost Warning;
    7 Bola bola SessionEndpoint Warning;
    8 MultiPayload multi_payload Source Critical;
    9 Scanner scanner Source Warning;
    10 Probing probing Source Critical;
    11 Crawl crawl SourceHost Info;
}

/// Plans of one override: 16 numbers, of which the detectors take 12.
const PLANS_PER_RANK: u16 = 16;

impl Detector {
    /// The number of this detector under an override: rank 0 is none, 1 the first.
    pub const fn plan(self, rank: u16) -> u16 {
        rank * PLANS_PER_RANK + self as u16
    }

    /// The detector of a plan.
    pub const fn of_plan(plan: u16) -> Self {
        // As long as the remainder can be, so that nothing is left to check.
        const OF_PLAN: [Detector; PLANS_PER_RANK as usize] = {
            let mut detectors = [Detector::BruteForce; PLANS_PER_RANK as usize];
            let mut plan = 0;
            while plan < Detector::ALL.len() {
                detectors[plan] = Detector::ALL[plan];
                plan += 1;
            }
            detectors
        };
        OF_PLAN[(plan % PLANS_PER_RANK) as usize]
    }

    /// The override of a plan.
    pub const fn rank_of_plan(plan: u16) -> usize {
        (plan / PLANS_PER_RANK) as usize
    }

    /// What an observation is to this detector; `None` if it does not look at it. Hits, probes and users are apart.
    #[inline]
    pub fn look(self, observation: &Observation<'_>) -> Option<Look> {
        match self {
            Self::BruteForce => brute_force::look(observation),
            Self::BruteForceAttempts => brute_force_attempts::look(observation),
            Self::CredentialStuffing => credential_stuffing::look(observation),
            Self::ForcedBrowsing => forced_browsing::look(observation),
            Self::ForcedBrowsingCount => forced_browsing_count::look(observation),
            Self::Bola => bola::look(observation),
            Self::Scanner => scanner::look(observation),
            Self::Crawl => crawl::look(observation),
            Self::MultiPayload | Self::Probing | Self::UserBruteForce | Self::UserManySources => None,
        }
    }

    /// Whether alerts say how many different values they are about.
    pub const fn counts_distinct(self) -> bool {
        !matches!(self, Self::BruteForce | Self::BruteForceAttempts | Self::UserBruteForce | Self::Scanner)
    }

    /// Whether the third list of its cells is a plain number: see [`rules::COUNTER`].
    pub const fn keeps_counter(self) -> bool {
        matches!(self, Self::ForcedBrowsing | Self::ForcedBrowsingCount | Self::Bola | Self::Probing | Self::Crawl)
    }

    /// Words of an entry of its evidence: the request's id and, where windows may forget some events and keep others, the
    /// number of the event.
    pub const fn evidence_words(self) -> usize {
        if self.windows().is_empty() { 2 } else { 3 }
    }

    /// What one event adds to the only rule of this detector, if that is leaky: once it has leaked away, nothing is known.
    pub const fn only_leak_us(self, numbers: &Numbers) -> Option<u64> {
        match self {
            Self::ForcedBrowsingCount => Some(numbers.forced_browsing_count.leak_us as u64),
            Self::Probing => Some(numbers.probing.leak_us as u64),
            Self::Crawl => Some(numbers.crawl.leak_us as u64),
            _ => None,
        }
    }

    /// Where its windows are.
    pub const fn windows(self) -> &'static [usize] {
        match self {
            Self::ForcedBrowsing | Self::ForcedBrowsingCount | Self::Probing | Self::Crawl => &[],
            Self::UserManySources => &[SET, WINDOW],
            _ => &[WINDOW],
        }
    }

    /// The values that a key holds now.
    pub fn values(self, cell: &Cell, pool: &Pool, mut each: impl FnMut(u64)) {
        match self {
            Self::ForcedBrowsing | Self::ForcedBrowsingCount | Self::Probing | Self::Crawl => {
                pool.get(cell.list(SET)).iter().copied().for_each(each);
            }
            Self::CredentialStuffing | Self::Bola => {
                pool.get(cell.list(SET)).iter().copied().for_each(&mut each);
                rules::window_values(pool, cell.list(WINDOW)).for_each(each);
            }
            Self::UserManySources => {
                rules::window_values(pool, cell.list(SET)).for_each(&mut each);
                rules::window_values(pool, cell.list(WINDOW)).for_each(each);
            }
            Self::MultiPayload => rules::window_values(pool, cell.list(WINDOW)).for_each(each),
            Self::BruteForce | Self::BruteForceAttempts | Self::UserBruteForce | Self::Scanner => {}
        }
    }
}

/// A leaky rule on distinct values, alone in its row: the same for three detectors.
fn decide_leaky_distinct(
    (events, leak_us, distinct_last): (i64, i64, i64),
    state: &mut State<'_>,
    event: &Event,
    time_us: u64,
    elapsed_us: u64,
) -> Option<Firing> {
    state.leak(elapsed_us, true);
    if state.cell.level == 0 {
        state.start_counting_anew();
    }
    if !state.is_new(event.value, distinct_last) {
        return None;
    }
    state.pour(leak_us, time_us);
    state.add_one();
    state.overflows(events, leak_us).then(|| state.firing(state.cell.counter()))
}

/// How full a leaky rule is, in thousandths.
fn leaky_progress(cell: &Cell, now_us: u64, events: i64, leak_us: i64) -> i64 {
    let level = cell.level.saturating_sub_unsigned(now_us.saturating_sub(cell.clock_us)).max(0);
    level.saturating_mul(1000) / (events * leak_us).max(1)
}

/// How full a window is, in thousandths.
fn window_progress(cell: &Cell, pool: &Pool, place: usize, now_us: u64, events: i64, window_us: i64) -> i64 {
    share_of_window(rules::window_len_at(pool, cell.list(place), now_us, window_us, 0), events)
}

/// How full a window with so many entries is, in thousandths. The last event that it takes to fire is still to come: with it,
/// the window would be empty.
fn share_of_window(entries: i64, events: i64) -> i64 {
    entries.min(events - 1) * 1000 / events
}
