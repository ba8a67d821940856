//! Another client of the same server, a node of its own that sends nothing: when does it know that an attacker is listed?
//!
//! Its callback hears of a change as soon as `denylist().contains(address)` says so, on the thread that made it true; a
//! thread that asks again and again would add its own pause, and take a core from the server it measures.

use super::campaign::Attacker;
use crate::clock::monotonic_ns;
use crate::measure::latency_histogram;
use crate::plan::Plan;
use crate::run::{CONNECT_TIMEOUT, no_client, unreachable_server};
use crate::traffic::source_address;
use anyhow::{Result, bail};
use hdrhistogram::Histogram;
use postanalytics_client::{Action, Client, ClientBuilder, ListChange, Subject};
use postanalytics_protocol::Source;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long verdicts may be on their way when everything sent is acknowledged.
const GRACE: Duration = Duration::from_secs(1);
const LOOK_INTERVAL: Duration = Duration::from_millis(5);

/// When each source was listed first, by the monotonic clock.
type Listed = Arc<Mutex<HashMap<Source, u64>>>;

/// See the module.
pub struct Witness {
    client: Client,
    listed: Listed,
}

/// What `--json` has under `attacks`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "README has the table")]
pub struct AttackSummary {
    pub attackers: u64,
    /// The deciding record was sent, and the witness had the attacker listed.
    pub listed: u64,
    /// The same, but he was listed before that record was due.
    pub listed_early: u64,
    /// The deciding record was sent, and he was not listed.
    pub not_listed: u64,
    /// The deciding record was not sent before the end, or no rule fires at this rate.
    pub undecided: u64,
    /// Visitors who were listed.
    pub benign_listed: u64,
}

/// What came of the attacks of a run.
#[derive(Clone, Debug)]
pub struct AttackOutcome {
    /// Numbers.
    pub summary: AttackSummary,
    /// From the intended send time of the deciding record to the listing, µs.
    pub time_to_verdict: Histogram<u64>,
    /// The truth.
    pub attackers: Vec<Attacker>,
}

impl Witness {
    /// Connects to every shard; refuses to measure if one of these attackers is listed from before.
    pub fn connect(plan: &Plan, attackers: &[Attacker]) -> Result<Self> {
        let listed = Listed::default();
        let for_hook = Arc::clone(&listed);
        let client = plan
            .targets
            .iter()
            .fold(Client::builder(), ClientBuilder::server)
            .node_name("loadgen-witness")
            .congestion_control(plan.congestion.clone())
            .on_listed(move |changes| note(&for_hook, changes))
            .build()
            .map_err(|error| no_client(&error))?;
        // Opens the lanes of all shards, for verdicts come on each its own.
        if client.server_stats(CONNECT_TIMEOUT).is_err() {
            bail!(unreachable_server(&plan.target, &client.status().last_error));
        }
        let before = attackers.iter().filter(|attacker| client.denylist().contains(attacker.source)).count();
        if before > 0 {
            bail!(
                "{before} of the {} attackers are listed from an earlier run: give another --seed, or restart the server",
                attackers.len()
            );
        }
        Ok(Self { client, listed })
    }

    /// Waits a little for verdicts on their way, and adds up. `visitors` is the number of ordinary sources.
    pub fn finish(self, attackers: Vec<Attacker>, visitors: u32) -> AttackOutcome {
        let decided = || attackers.iter().filter(|attacker| attacker.decided_ns.is_some());
        let is_listed = |attacker: &Attacker| self.client.denylist().contains(attacker.source);
        let until_ns = monotonic_ns() + GRACE.as_nanos() as u64;
        while !decided().all(is_listed) && monotonic_ns() < until_ns {
            std::thread::sleep(LOOK_INTERVAL);
        }
        let mut summary = AttackSummary { attackers: attackers.len() as u64, ..AttackSummary::default() };
        summary.undecided = summary.attackers - decided().count() as u64;
        let mut time_to_verdict = latency_histogram();
        let times = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        for attacker in decided() {
            let decided_ns = attacker.decided_ns.unwrap_or(0);
            match times.get(&Source::of(attacker.source)) {
                Some(&listed_ns) => {
                    summary.listed += 1;
                    summary.listed_early += u64::from(listed_ns < decided_ns);
                    time_to_verdict.saturating_record((listed_ns.saturating_sub(decided_ns) / 1000).max(1));
                }
                None => summary.not_listed += 1,
            }
        }
        drop(times);
        let listed_visitors = (0..visitors).filter(|&visitor| self.client.denylist().contains(source_address(visitor)));
        summary.benign_listed = listed_visitors.count() as u64;
        self.client.close(GRACE);
        AttackOutcome { summary, time_to_verdict, attackers }
    }
}

impl AttackSummary {
    /// What the reader should know of it.
    pub fn notes(&self) -> Vec<String> {
        let decided = self.listed + self.not_listed;
        let mut notes = Vec::new();
        if decided > 0 && self.listed == 0 {
            notes.push(format!(
                "no verdict came for any of {decided} attackers: the server lists nobody unless it runs with --config FILE, and \
                 the file says action = \"denylist\" for the detectors of these attacks (monitor is the default)"
            ));
        }
        if self.not_listed > 0 && self.listed > 0 {
            notes.push(format!(
                "{} attackers were not listed: the file may leave their detector out, or a guard held: no source is listed while \
                 over 5 % of those of the last ten minutes are; the log and /metrics of the server tell",
                self.not_listed
            ));
        }
        if self.undecided > 0 {
            notes.push(format!(
                "{} of {} attackers sent no record that decides: the run was too short, or the rate is below every threshold",
                self.undecided, self.attackers
            ));
        }
        if self.listed_early > 0 {
            notes.push(format!(
                "{} attackers were listed before their deciding record was due: the server's numbers are not the defaults",
                self.listed_early
            ));
        }
        notes
    }
}

/// Notes when a source was listed first; only for the default application or all, as `contains` reads it.
fn note(listed: &Listed, changes: &[ListChange]) {
    let now_ns = monotonic_ns();
    let mut listed = listed.lock().unwrap_or_else(PoisonError::into_inner);
    for change in changes {
        if let (Subject::Source(address), None | Some(-1), Some(Action::Denylist)) =
            (change.subject, change.application, change.action)
        {
            listed.entry(Source::of_bytes(&address)).or_insert(now_ns);
        }
    }
}
