//! Labelled attacks that are mixed into ordinary traffic (`--attack`), and how long the server takes to list the attackers.
//!
//! - [`Kind`] and [`AttackSpec`]: what `--attack` says
//! - [`campaign`]: who attacks, in which order, and when each record is due
//! - [`rules`]: which record of an attacker decides, by the published definitions of the detectors
//! - [`requests`]: the records themselves
//! - [`witness`]: another client, which only listens to verdicts
//!
//! Everything but the verdicts is known before the first record is sent, so the truth (`--truth`) does not depend on the
//! server, nor on the code that it judges. Attackers have addresses that documentation and benchmarks have to themselves
//! (198.18.0.0/15, 2001:db8::/32): no visitor of a mix has one of those.

pub mod campaign;
pub mod requests;
pub mod rules;
pub mod witness;

use crate::plan::parse_rate;
use clap::ValueEnum;

/// Most attackers of a run, all attacks together: their addresses stay distinct up to here.
pub const ATTACKERS_MAX: u32 = 1 << 16;
/// Attackers of an attack where the command line does not say.
const SOURCES_DEFAULT: u32 = 100;

/// What an attacker does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum)]
pub enum Kind {
    /// One user's password guessed again and again.
    BruteForce,
    /// Each user name tried once, with a stolen password.
    CredentialStuffing,
    /// Backups and admin pages looked for that are not there.
    ForcedBrowsing,
    /// Objects of others fetched one after the other by their number.
    Bola,
    /// A tool that says its name.
    Scanner,
    /// Payloads in the query that the filter recognises.
    Probing,
}

impl Kind {
    /// Its name on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Records that each attacker sends: twice what decides when they come quickly.
    pub const fn records(self) -> u32 {
        match self {
            Self::BruteForce | Self::CredentialStuffing => 12,
            Self::ForcedBrowsing => 8,
            Self::Bola => 60,
            Self::Scanner => 4,
            Self::Probing => 10,
        }
    }
}

/// One `--attack`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttackSpec {
    /// What each attacker does.
    pub kind: Kind,
    /// How many attackers.
    pub sources: u32,
    /// Records a second of all of them together; `None`: so that all of them are through before the measured time ends.
    pub rate: Option<u64>,
}

impl AttackSpec {
    /// Reads `KIND[:sources=N,rate=R]`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (name, options) = text.split_once(':').unwrap_or((text, ""));
        let kind = Kind::from_str(name.trim(), false).map_err(|_| {
            let names: Vec<String> = Kind::value_variants().iter().map(|kind| kind.name()).collect();
            format!("no attack is called '{name}'; there are {}", names.join(", "))
        })?;
        let mut spec = Self { kind, sources: SOURCES_DEFAULT, rate: None };
        for option in options.split([',', ';']).map(str::trim).filter(|option| !option.is_empty()) {
            match option.split_once('=') {
                Some(("sources", number)) => spec.sources = parse_sources(number)?,
                Some(("rate", rate)) => spec.rate = Some(parse_rate(rate)?),
                _ => return Err(format!("'{option}' is no option of an attack; write sources=N or rate=N/s")),
            }
        }
        Ok(spec)
    }

    /// Records of all attackers.
    pub fn records(&self) -> u64 {
        u64::from(self.sources) * u64::from(self.kind.records())
    }
}

fn parse_sources(text: &str) -> Result<u32, String> {
    match crate::plan::parse_count(text) {
        Some(number) if number >= 1.0 && number <= f64::from(ATTACKERS_MAX) => Ok(number as u32),
        _ => Err(format!("sources={text}: write a whole number from 1 to {ATTACKERS_MAX}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attacks_are_read_with_and_without_options() {
        let spec = |text| AttackSpec::parse(text);
        assert_eq!(spec("bola"), Ok(AttackSpec { kind: Kind::Bola, sources: 100, rate: None }));
        let wanted = AttackSpec { kind: Kind::BruteForce, sources: 2000, rate: Some(500) };
        assert_eq!(spec("brute-force:sources=2k,rate=500/s"), Ok(wanted));
        for (wrong, word) in [
            ("ddos", "credential-stuffing"),
            ("bola:sources=0", "sources=0"),
            ("bola:sources=1M", "sources=1M"),
            ("bola:rate=x", "50k/s"),
            ("bola:speed=1", "speed=1"),
        ] {
            let error = spec(wrong).expect_err("it is wrong");
            assert!(error.contains(word), "{wrong}: {error}");
        }
    }
}
