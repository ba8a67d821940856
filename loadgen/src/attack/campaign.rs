//! Who attacks and when: fixed before the run by the command line and the seed.
//!
//! An attack's records are due evenly at its rate, from the begin of the measured time on. Attackers come in groups of
//! [`AT_ONCE`], whose records alternate; when a group is through, the next begins. So verdicts fall due all through the run,
//! and each attacker is quick even if many come one after the other. Attackers belong to sending threads as visitors'
//! records do; one attacker stays in one session, so that his records arrive in order.

use super::{ATTACKERS_MAX, AttackSpec, Kind, rules};
use crate::clock::Schedule;
use crate::plan::Plan;
use crate::run::Timing;
use serde::Serialize;
use std::io::{self, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Attackers of a thread who are at it at the same time.
const AT_ONCE: u64 = 8;
/// Share of the measured time in which attacks without a rate are through.
const TIME_SHARE: f64 = 0.8;

/// All attacks of a run.
#[derive(Clone, Debug)]
pub struct Campaign {
    attacks: Vec<Attack>,
    threads: u64,
    seed: u64,
}

#[derive(Clone, Copy, Debug)]
struct Attack {
    spec: AttackSpec,
    rate: u64,
    /// Number of its first attacker among those of all attacks.
    first: u32,
}

/// Which record of whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// The attacker's number in the run.
    pub attacker: u32,
    /// Position of the record among his.
    pub record: u32,
}

/// One attacker, as `--truth` writes him.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "README has the table")]
pub struct Attacker {
    pub attack: String,
    pub source: IpAddr,
    /// Intended send time of his first record, Unix µs.
    pub first_us: u64,
    /// Which of his records decides, from 1, and its intended send time; `None`: no rule fires at this rate.
    pub deciding_record: Option<u32>,
    pub deciding_us: Option<u64>,
    /// Records sent before the run ended.
    pub records_sent: u32,
    /// The deciding one among them, by the monotonic clock.
    #[serde(skip)]
    pub decided_ns: Option<u64>,
}

impl Campaign {
    /// The attacks of a plan; refuses more attackers than there are addresses.
    pub fn new(plan: &Plan) -> Result<Self, String> {
        let (mut attacks, mut first) = (Vec::new(), 0u32);
        let seconds = plan.duration.map_or(10.0, |duration| duration.as_secs_f64());
        for &spec in &plan.attacks {
            let rate = spec.rate.unwrap_or_else(|| (spec.records() as f64 / (seconds * TIME_SHARE)).ceil().max(1.0) as u64);
            attacks.push(Attack { spec, rate, first });
            first = first.saturating_add(spec.sources);
        }
        if first > ATTACKERS_MAX {
            return Err(format!("--attack: {first} attackers in all; there are addresses for {ATTACKERS_MAX}"));
        }
        Ok(Self { attacks, threads: plan.threads as u64, seed: plan.seed })
    }

    /// Whether nobody attacks.
    pub fn is_empty(&self) -> bool {
        self.attacks.is_empty()
    }

    /// The part of each attack that a thread sends.
    pub fn streams(&self, thread: usize, from_ns: u64) -> Vec<AttackStream> {
        let stream = |attack: &Attack| AttackStream {
            kind: attack.spec.kind,
            schedule: Schedule::new(from_ns, attack.rate, 1, self.threads, thread as u64),
            first: attack.first,
            thread: thread as u64,
            threads: self.threads,
            attackers: u64::from(attack.spec.sources).saturating_sub(thread as u64).div_ceil(self.threads),
            sent: 0,
        };
        self.attacks.iter().map(stream).collect()
    }

    /// All attackers, if each thread has sent so many records of each attack.
    pub fn attackers(&self, timing: &Timing, unix_us_at_from: u64, sent: &[Vec<u64>]) -> Vec<Attacker> {
        let unix_us = |due_ns: u64| unix_us_at_from + (due_ns - timing.from_ns) / 1000;
        let mut all = Vec::new();
        for thread in 0..self.threads as usize {
            for (number, stream) in self.streams(thread, timing.from_ns).iter().enumerate() {
                let sent = sent.get(thread).and_then(|of_thread| of_thread.get(number)).copied().unwrap_or(0);
                for local in 0..stream.attackers {
                    let events: Vec<u64> = (0..stream.kind.records()).map(|record| stream.event_of(local, record)).collect();
                    let due_ns: Vec<u64> = events.iter().map(|&event| stream.schedule.due_ns(event)).collect();
                    let times_us: Vec<u64> = due_ns.iter().map(|due_ns| due_ns / 1000).collect();
                    let deciding = rules::deciding(stream.kind, &times_us);
                    all.push(Attacker {
                        attack: stream.kind.name(),
                        source: self.address(stream.attacker(local)),
                        first_us: unix_us(due_ns[0]),
                        deciding_record: deciding.map(|record| record as u32 + 1),
                        deciding_us: deciding.map(|record| unix_us(due_ns[record])),
                        records_sent: events.iter().filter(|&&event| event < sent).count() as u32,
                        decided_ns: deciding.filter(|&record| events[record] < sent).map(|record| due_ns[record]),
                    });
                }
            }
        }
        all
    }

    /// The address of an attacker: distinct for distinct numbers; every eighth has IPv6, in a /48 of his own. The seed shifts
    /// them, so that the next run does not meet those who are listed from the last.
    pub fn address(&self, attacker: u32) -> IpAddr {
        let shifted = attacker.wrapping_add((self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u32) % ATTACKERS_MAX;
        if attacker % 8 == 7 {
            return IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, shifted as u16, 1, 0, 0, 0, 1));
        }
        // 198.18.0.0/15 is for benchmarks of networks (RFC 2544).
        IpAddr::V4(Ipv4Addr::from(0xc612_0000 | shifted))
    }
}

/// Writes the truth, one attacker a line.
pub fn write_truth(attackers: &[Attacker], out: &mut dyn Write) -> io::Result<()> {
    for attacker in attackers {
        serde_json::to_writer(&mut *out, attacker)?;
        writeln!(out)?;
    }
    out.flush()
}

/// One thread's part of an attack.
#[derive(Clone, Debug)]
pub struct AttackStream {
    /// What the attackers do.
    pub kind: Kind,
    schedule: Schedule,
    first: u32,
    thread: u64,
    threads: u64,
    attackers: u64,
    /// Records sent.
    pub sent: u64,
}

impl AttackStream {
    /// When the next record is due; `u64::MAX` when all attackers are through.
    pub fn due_ns(&self) -> u64 {
        if self.sent < self.records() { self.schedule.due_ns(self.sent) } else { u64::MAX }
    }

    /// Whose record is next. It counts as sent.
    pub fn take(&mut self) -> Turn {
        let event = self.sent;
        self.sent += 1;
        let of_group = AT_ONCE * u64::from(self.kind.records());
        let (group, within) = (event / of_group, event % of_group);
        let at_once = self.at_once(group);
        Turn { attacker: self.attacker(group * AT_ONCE + within % at_once), record: (within / at_once) as u32 }
    }

    /// Records that are due before a time and not sent.
    pub fn unsent_before(&self, end_ns: u64) -> std::ops::Range<u64> {
        self.sent..self.schedule.due_before(end_ns).min(self.records()).max(self.sent)
    }

    /// When its records are due.
    pub fn schedule(&self) -> &Schedule {
        &self.schedule
    }

    fn records(&self) -> u64 {
        self.attackers * u64::from(self.kind.records())
    }

    /// Attackers of a group; the last may be smaller.
    fn at_once(&self, group: u64) -> u64 {
        AT_ONCE.min(self.attackers.saturating_sub(group * AT_ONCE)).max(1)
    }

    /// The number in the run of an attacker of this stream.
    fn attacker(&self, local: u64) -> u32 {
        self.first + (local * self.threads + self.thread) as u32
    }

    /// The position in the stream of an attacker's record.
    fn event_of(&self, local: u64, record: u32) -> u64 {
        let group = local / AT_ONCE;
        group * AT_ONCE * u64::from(self.kind.records()) + u64::from(record) * self.at_once(group) + local % AT_ONCE
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::Arguments;
    use crate::traffic::{SOURCES_MAX, source_address};
    use clap::Parser;
    use std::collections::{HashMap, HashSet};

    fn plan(options: &[&str]) -> Plan {
        let all = ["loadgen"].iter().chain(options);
        Plan::from_arguments(&Arguments::parse_from(all).run, &[]).expect("a plan")
    }

    fn campaign(options: &[&str]) -> Campaign {
        Campaign::new(&plan(options)).expect("a campaign")
    }

    #[test]
    fn every_attacker_sends_all_his_records_in_order_and_the_truth_knows_when() {
        let campaign = campaign(&["--attack", "probing:sources=13,rate=1k/s", "--attack", "scanner:sources=9", "--threads", "2"]);
        let timing = Timing { start_ns: 0, from_ns: 5_000_000, until_ns: u64::MAX };
        let (mut times, mut sent) = (HashMap::<u32, Vec<u64>>::new(), Vec::new());
        for thread in 0..2 {
            let mut of_thread = Vec::new();
            for mut stream in campaign.streams(thread, timing.from_ns) {
                while stream.due_ns() != u64::MAX {
                    let due_ns = stream.due_ns();
                    let turn = stream.take();
                    let times = times.entry(turn.attacker).or_default();
                    assert_eq!(turn.record as usize, times.len());
                    times.push(due_ns);
                }
                of_thread.push(stream.sent);
            }
            sent.push(of_thread);
        }
        assert_eq!(times.len(), 22);
        let attackers = campaign.attackers(&timing, 1_000_000, &sent);
        let by_address: HashMap<IpAddr, &Attacker> = attackers.iter().map(|attacker| (attacker.source, attacker)).collect();
        assert_eq!(by_address.len(), 22);
        for (number, times) in times {
            let attacker = by_address[&campaign.address(number)];
            let (attack, record) = if number < 13 { ("probing", 5) } else { ("scanner", 2) };
            assert_eq!((attacker.attack.as_str(), attacker.deciding_record), (attack, Some(record)));
            assert_eq!(attacker.decided_ns, Some(times[record as usize - 1]));
            assert_eq!(attacker.first_us, 1_000_000 + (times[0] - 5_000_000) / 1000);
            assert_eq!(attacker.records_sent as usize, times.len());
            assert!(times.is_sorted());
        }
    }

    #[test]
    fn a_run_that_ends_early_leaves_attackers_undecided() {
        let campaign = campaign(&["--attack", "brute-force:sources=2"]);
        let timing = Timing { start_ns: 0, from_ns: 0, until_ns: u64::MAX };
        let attackers = campaign.attackers(&timing, 0, &[vec![11]]);
        // The two alternate: eleven records are six of the first and five of the second.
        let seen: Vec<_> = attackers.iter().map(|attacker| (attacker.records_sent, attacker.decided_ns.is_some())).collect();
        assert_eq!(seen, [(6, true), (5, false)]);
        assert!(attackers.iter().all(|attacker| attacker.deciding_record == Some(6)), "the truth does not depend on the end");
    }

    #[test]
    fn attackers_are_no_visitors_and_another_seed_has_others() {
        let campaign = campaign(&["--attack", "bola:sources=65536"]);
        let all: HashSet<IpAddr> = (0..ATTACKERS_MAX).map(|number| campaign.address(number)).collect();
        assert_eq!(all.len(), ATTACKERS_MAX as usize);
        let other = Campaign { seed: 2, ..campaign.clone() };
        assert!((0..1000).all(|number| !(0..1000).any(|of| other.address(number) == campaign.address(of))));
        let visitors = (0..SOURCES_MAX).step_by(16).chain(0..100_000).map(source_address);
        assert!(visitors.into_iter().all(|visitor| !all.contains(&visitor)));
    }
}
