//! What an open loop of a thread sends next: ordinary records at the rate of the run, and those of attackers at theirs.

use super::send::Sender;
use crate::attack::campaign::{AttackStream, Campaign};
use crate::attack::requests::Requests;
use crate::clock::Schedule;
use crate::traffic::Traffic;
use postanalytics_client::Request;
use std::net::IpAddr;
use std::ops::Range;

/// See the module.
pub(super) struct Stream<'a> {
    traffic: Traffic,
    schedule: Schedule,
    /// Ordinary records sent.
    ordinary: u64,
    attacks: Vec<AttackStream>,
    requests: Requests,
    campaign: &'a Campaign,
}

impl<'a> Stream<'a> {
    pub(super) fn new(traffic: Traffic, rate: u64, sender: &Sender<'a>, seed: u64) -> Self {
        let (threads, thread) = (sender.plan.threads, sender.thread);
        Self {
            traffic,
            schedule: Schedule::new(sender.timing.start_ns, rate, 1, threads as u64, thread as u64),
            ordinary: 0,
            attacks: sender.campaign.streams(thread, sender.timing.from_ns),
            requests: Requests::new(!seed),
            campaign: sender.campaign,
        }
    }

    /// When the next record is due.
    pub(super) fn due_ns(&self) -> u64 {
        self.attacks.iter().map(AttackStream::due_ns).fold(self.schedule.due_ns(self.ordinary), u64::min)
    }

    /// The next record, and a number that tells its session: the same for all records of an attacker.
    pub(super) fn next(&mut self, event_us: u64) -> (u64, Request<'_>) {
        let due_ns = self.schedule.due_ns(self.ordinary);
        let attack = self.attacks.iter_mut().min_by_key(|attack| attack.due_ns()).filter(|attack| attack.due_ns() < due_ns);
        let Some(attack) = attack else {
            self.ordinary += 1;
            return (self.ordinary - 1, self.traffic.next(event_us));
        };
        let turn = attack.take();
        let source: IpAddr = self.campaign.address(turn.attacker);
        (u64::from(turn.attacker), self.requests.next(attack.kind, turn, source, event_us))
    }

    /// What is due before a time and was not sent, with its schedule.
    pub(super) fn unsent_before(&self, end_ns: u64) -> Vec<(Schedule, Range<u64>)> {
        let ordinary = (self.schedule, self.ordinary..self.schedule.due_before(end_ns).max(self.ordinary));
        let of_attack = |attack: &AttackStream| (*attack.schedule(), attack.unsent_before(end_ns));
        std::iter::once(ordinary).chain(self.attacks.iter().map(of_attack)).collect()
    }

    /// Records sent of each attack.
    pub(super) fn attack_records(&self) -> Vec<u64> {
        self.attacks.iter().map(|attack| attack.sent).collect()
    }
}
