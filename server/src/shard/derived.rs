//! What a shard tells the correlator: small events derived from the records, in boxes that go round.
//!
//! A shard gathers the events of its turns in buffers of its own. At the end of a turn, if there are any and a box is free,
//! it swaps the full buffers for the empty ones of the box and sends that; the correlator sends boxes back empty. So nothing
//! is allocated, and what waits is bounded by the number of boxes. While none is free, events gather until the buffers are
//! full; what comes then is dropped and counted.

use crate::analytics::attacks::hits::HitReports;
use crate::analytics::reports::AlertReports;
use crate::analytics::users::UserFailure;
use crate::analytics::{Analytics, WAITING_MAX};
use crate::queue::{Receiver, Sender, queue};
use postanalytics_protocol::frames::Verdict;

/// Boxes of a shard.
pub const BOXES: usize = 16;
/// Verdicts that wait to be told.
pub const VERDICTS_MAX: usize = 1024;
/// Clocks that wait to be told; more are told the next time.
pub const CLOCKS_MAX: usize = 256;

/// A verdict that was set or taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerdictReport {
    /// The verdict.
    pub verdict: Verdict,
    /// When, Unix µs.
    pub at_us: u64,
}

/// How far a node's clock is behind this server's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockReport {
    /// The node.
    pub node: [u8; 16],
    /// Arrival less sending, µs: the smallest of an interval, so that little of it is the way.
    pub offset_us: i64,
}

/// A box: the events of one turn or of a few.
#[derive(Debug)]
pub struct Derived {
    /// Alerts raised, raised further, final.
    pub alerts: AlertReports,
    /// Hits.
    pub hits: HitReports,
    /// Failed log-ins of users.
    pub failures: Vec<UserFailure>,
    /// Verdicts.
    pub verdicts: Vec<VerdictReport>,
    /// Clocks of nodes.
    pub clocks: Vec<ClockReport>,
}

impl Derived {
    /// An empty box of full size.
    pub fn new() -> Self {
        Self {
            alerts: AlertReports::with_room(),
            hits: HitReports::with_room(),
            failures: Vec::with_capacity(WAITING_MAX),
            verdicts: Vec::with_capacity(VERDICTS_MAX),
            clocks: Vec::with_capacity(CLOCKS_MAX),
        }
    }

    /// Forgets the events.
    pub fn clear(&mut self) {
        self.alerts.clear();
        self.hits.clear();
        self.failures.clear();
        self.verdicts.clear();
        self.clocks.clear();
    }
}

impl Default for Derived {
    fn default() -> Self {
        Self::new()
    }
}

/// The shard's end.
#[derive(Debug)]
pub struct DerivedSender {
    to: Sender<Box<Derived>>,
    back: Receiver<Box<Derived>>,
    verdicts: Vec<VerdictReport>,
    /// Verdicts that found no room, and all that was left at the end.
    lost: u64,
    clocks: Vec<ClockReport>,
}

/// The correlator's end.
#[derive(Debug)]
pub struct DerivedReceiver {
    from: Receiver<Box<Derived>>,
    back: Sender<Box<Derived>>,
}

/// The queue of a shard, all its boxes free.
pub fn derived_queue() -> std::io::Result<(DerivedSender, DerivedReceiver)> {
    let (to, from) = queue(BOXES)?;
    let (mut back_in, back) = queue(BOXES)?;
    for _ in 0..BOXES {
        // The queue has room for all of them.
        let _ = back_in.send(Box::new(Derived::new()));
    }
    let (verdicts, clocks) = (Vec::with_capacity(VERDICTS_MAX), Vec::with_capacity(CLOCKS_MAX));
    Ok((DerivedSender { to, back, verdicts, lost: 0, clocks }, DerivedReceiver { from, back: back_in }))
}

impl DerivedSender {
    /// Gathers a verdict.
    pub fn verdict(&mut self, verdict: Verdict, at_us: u64) {
        if self.is_full_of_verdicts() {
            self.lost += 1;
            return;
        }
        self.verdicts.push(VerdictReport { verdict, at_us });
    }

    /// Whether there is no room for another verdict before the next [`Self::send`].
    pub const fn is_full_of_verdicts(&self) -> bool {
        self.verdicts.len() == VERDICTS_MAX
    }

    /// Gathers how a node's clock goes; returns whether there was room.
    pub fn clock(&mut self, report: ClockReport) -> bool {
        let has_room = self.clocks.len() < CLOCKS_MAX;
        if has_room {
            self.clocks.push(report);
        }
        has_room
    }

    /// Sends what was gathered, if a box is free.
    pub fn send(&mut self, analytics: &mut Analytics) {
        let alerts = &mut analytics.engine.alerts.reports;
        let has_hits = analytics.hits.as_ref().is_some_and(|sampler| !sampler.reports.is_empty());
        let is_quiet = self.verdicts.is_empty() && self.clocks.is_empty();
        if is_quiet && alerts.is_empty() && !has_hits && analytics.failures.is_empty() {
            return;
        }
        let Some(mut parcel) = self.back.receive() else { return };
        alerts.hand_over(&mut parcel.alerts);
        if let Some(sampler) = &mut analytics.hits {
            std::mem::swap(&mut sampler.reports, &mut parcel.hits);
        }
        std::mem::swap(&mut analytics.failures, &mut parcel.failures);
        std::mem::swap(&mut self.verdicts, &mut parcel.verdicts);
        std::mem::swap(&mut self.clocks, &mut parcel.clocks);
        // There are no more boxes than the queue has room for.
        let _ = self.to.send(parcel);
    }

    /// Events that were gathered and wait for a box. Clocks are no events: they are told again and again.
    pub fn waiting(&self, analytics: &Analytics) -> u64 {
        let hits = analytics.hits.as_ref().map_or(0, |sampler| sampler.reports.len());
        (self.verdicts.len() + analytics.engine.alerts.reports.len() + analytics.failures.len() + hits) as u64
    }

    /// No box will come any more: drops what waits. Returns how much that was.
    pub fn give_up(&mut self, analytics: &mut Analytics) -> u64 {
        let waiting = self.waiting(analytics);
        self.lost += waiting;
        self.verdicts.clear();
        analytics.engine.alerts.reports.clear();
        analytics.failures.clear();
        if let Some(sampler) = &mut analytics.hits {
            sampler.reports.clear();
        }
        waiting
    }

    /// Events that were dropped.
    pub const fn lost(&self, analytics: &Analytics) -> u64 {
        let hits_lost = match &analytics.hits {
            Some(sampler) => sampler.lost,
            None => 0,
        };
        self.lost + analytics.engine.alerts.reports.lost + analytics.failures_lost + hits_lost
    }
}

impl DerivedReceiver {
    /// The next box, full.
    pub fn receive(&mut self) -> Option<Box<Derived>> {
        self.from.receive()
    }

    /// Gives a box back.
    pub fn give_back(&mut self, mut parcel: Box<Derived>) {
        parcel.clear();
        // If the shard is gone, so is the use of the box.
        let _ = self.back.send(parcel);
    }

    /// Becomes readable when boxes came, and at the end when the shard is gone.
    pub fn wake(&self) -> &std::os::unix::net::UnixStream {
        self.from.wake()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analytics::alerts::Alert;
    use postanalytics_protocol::frames::Subject;

    #[test]
    fn boxes_go_round_and_what_finds_none_is_kept_then_counted() {
        let (mut sender, mut receiver) = derived_queue().expect("socket pairs");
        let mut analytics = Analytics::default();
        analytics.engine.alerts.reports = AlertReports::with_room();
        let verdict = Verdict { subject: Subject::Session(1), application: None, action: None, until_us: 0, detector: 0 };
        for round in 0..BOXES as u64 + 5 {
            let mut alert = Alert::default();
            alert.count = round;
            analytics.engine.alerts.reports.push(&alert, false);
            sender.verdict(verdict, round);
            sender.send(&mut analytics);
        }
        assert_eq!(sender.lost(&analytics), 0, "five rounds wait for a box");
        (0..VERDICTS_MAX).for_each(|_| sender.verdict(verdict, 0));
        assert_eq!(sender.lost(&analytics), 5);
        let mut seen = Vec::new();
        while let Some(parcel) = receiver.receive() {
            seen.extend(parcel.alerts.alerts().map(|(alert, _)| alert.count));
            receiver.give_back(parcel);
            sender.send(&mut analytics);
        }
        assert_eq!(seen, (0..BOXES as u64 + 5).collect::<Vec<_>>());
    }
}
