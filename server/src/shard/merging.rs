//! Whether Acks of small batches wait for the next batches of their connections, and turns for the next messages.
//!
//! To send an Ack costs the kernel more than to take a record in, and so does to go to sleep and wake again: a shard that has much to
//! do gets more done with its processor if it takes and answers several messages at once. One that is not busy would win nothing,
//! nor one whose connections have a batch now and then, and one whose peers wait for their Acks before they go on would lose.

/// Most that an Ack waits, µs, and the turn in which it goes out.
pub const ACK_WAIT_US: u64 = 2_000;
/// The Ack of a batch of so many bytes waits for none: it is cheap beside the batch, and the peer's window is worth more.
pub const ACK_AT_ONCE_BYTES: u32 = 16 << 10;
/// Most that a turn waits for more messages than one, µs, if the last turn had any completion.
pub const GATHER_US: u64 = 100;
/// Most messages that it waits for; more gain no more.
pub const GATHER_MAX: u32 = 16;
/// From this part of its processor on a shard is busy.
const BUSY_PERCENT: u64 = 75;
/// Below this part it is not any more.
const IDLE_PERCENT: u64 = 60;
/// The same where most batches are small: they cost about half as much while Acks and turns wait.
const IDLE_PERCENT_SMALL: u64 = 35;
/// Acks that would have been sent without waiting where four are sent with it; if there are fewer, Acks wait no more.
const DUE_PER_FOUR_SENT: u64 = 5;
/// If the shard is not busy, and twice in a row less than this part of what came before it began comes in, both are given up: peers
/// wait for them.
const SLOWER_PERCENT: u64 = 75;
/// With fewer batches between two looks peers have just ended.
const ENDED_BATCHES: u64 = 20;
/// Until it is tried again, µs, or until what comes in is something else by this factor.
const AGAIN_US: u64 = 10_000_000;
const OTHER_RATE: u64 = 3;
/// Until Acks wait again that saved nothing, µs.
const ACKS_AGAIN_US: u64 = 2_000_000;

/// What came in between two looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Intake {
    /// Batches whose Acks may wait for others.
    pub small: u64,
    /// And those whose Acks may not.
    pub large: u64,
    /// Bytes of their bodies.
    pub bytes: u64,
    /// Connections that they came from.
    pub connections: u32,
}

/// See the module. Looked at in intervals of some 100 ms.
#[derive(Debug, Default)]
pub struct Merging {
    turns_wait: bool,
    acks_wait: bool,
    /// Since the last look.
    pub intake: Intake,
    /// Acks since then that would have been sent if none waited: one per connection and turn.
    pub due: u64,
    /// Those of them that were.
    pub sent: u64,
    /// Number of the last look.
    pub looks: u32,
    /// Connections from which something came before it.
    senders: u32,
    /// Bytes a second when turns began to wait.
    rate_before: u64,
    /// Whether less came when it was last looked.
    was_slower: bool,
    given_up: Option<GivenUp>,
    /// Monotonic time before which Acks do not wait again.
    acks_again_us: u64,
}

/// That turns do not wait, for peers waited for it.
#[derive(Clone, Copy, Debug)]
struct GivenUp {
    until_us: u64,
    /// Bytes a second before it had begun.
    rate: u64,
    /// Whether as much came in again since.
    is_confirmed: bool,
}

impl Merging {
    /// For how many messages turns wait, if they do.
    pub fn gathered(&self) -> Option<u32> {
        self.turns_wait.then_some(self.senders.min(GATHER_MAX))
    }

    /// Whether Acks wait for others.
    pub const fn acks_wait(&self) -> bool {
        self.acks_wait
    }

    /// Decides anew. `used_us` of `passed_us` since the last look the shard's thread was running.
    pub fn look(&mut self, used_us: u64, passed_us: u64, now_us: u64) {
        let intake = std::mem::take(&mut self.intake);
        let uses = |percent: u64| used_us * 100 >= passed_us * percent;
        let is_busy = uses(match self.turns_wait {
            false => BUSY_PERCENT,
            true if intake.small > intake.large => IDLE_PERCENT_SMALL,
            true => IDLE_PERCENT,
        });
        let rate = intake.bytes.saturating_mul(1_000_000) / passed_us.max(1);
        let has_ended = intake.small + intake.large < ENDED_BATCHES;
        let is_less_than = |before: u64| rate < before / 100 * SLOWER_PERCENT;
        let is_slower = self.turns_wait && !has_ended && !uses(BUSY_PERCENT) && is_less_than(self.rate_before);
        if is_slower && self.was_slower {
            self.given_up = Some(GivenUp { until_us: now_us + AGAIN_US, rate: self.rate_before, is_confirmed: false });
        } else if let Some(given_up) = &mut self.given_up
            && !has_ended
        {
            // If less comes without waiting, too, that was not why; and these may be other peers, or do something else.
            let was_not_why = !given_up.is_confirmed && is_less_than(given_up.rate);
            let is_other = rate / OTHER_RATE > given_up.rate || rate < given_up.rate / OTHER_RATE;
            given_up.is_confirmed = true;
            self.given_up = self.given_up.filter(|given_up| !was_not_why && !is_other && now_us < given_up.until_us);
        }
        if self.acks_wait && is_busy && self.due * 4 < self.sent * DUE_PER_FOUR_SENT {
            self.acks_again_us = now_us + ACKS_AGAIN_US;
        }
        if !self.turns_wait {
            self.rate_before = rate;
        }
        // Peers that wait make the shard idle: whether they do is seen at the next look.
        self.turns_wait = (is_busy || is_slower) && self.given_up.is_none();
        self.acks_wait = self.turns_wait && now_us >= self.acks_again_us;
        self.was_slower = is_slower;
        self.senders = intake.connections;
        self.looks = self.looks.wrapping_add(1);
        (self.due, self.sent) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a look decides after so many batches of a kibibyte.
    fn look(merging: &mut Merging, small: u64, used_percent: u64, now_ms: u64) -> bool {
        merging.intake = Intake { small, large: 0, bytes: small << 10, connections: 5 };
        merging.look(used_percent * 1000, 100_000, now_ms * 1000);
        assert_eq!(merging.gathered().is_some(), merging.acks_wait());
        merging.acks_wait()
    }

    #[test]
    fn it_goes_on_at_three_quarters_and_off_sooner_with_large_batches() {
        let mut merging = Merging::default();
        for (small, large, used_us, on) in [
            (0, 9, 74_999, false),
            (0, 9, 75_000, true),
            (9, 8, 35_000, true),
            (9, 8, 34_999, false),
            (9, 0, 74_999, false),
            (9, 0, 100_000, true),
            (9, 9, 60_000, true),
            (9, 9, 59_999, false),
        ] {
            merging.intake = Intake { small, large, bytes: 0, connections: 3 };
            merging.look(used_us, 100_000, 0);
            assert_eq!((merging.gathered(), merging.acks_wait()), (on.then_some(3), on), "{small} {large} {used_us}");
        }
        merging.intake.connections = 99;
        merging.look(1, 1, 0);
        assert_eq!(merging.gathered(), Some(GATHER_MAX));
    }

    #[test]
    fn acks_that_save_nothing_wait_no_more_and_later_again() {
        let mut merging = Merging::default();
        let mut look = |due, sent, used_us, now_us| {
            (merging.due, merging.sent) = (due, sent);
            merging.look(used_us, 100, now_us);
            (merging.gathered().is_some(), merging.acks_wait())
        };
        assert_eq!(look(0, 100, 100, 0), (true, true), "nothing is known yet, what goes out had waited before");
        assert_eq!(look(125, 100, 100, 100_000), (true, true));
        assert_eq!(look(124, 100, 100, 200_000), (true, false));
        assert_eq!(look(0, 0, 100, 2_199_999), (true, false));
        assert_eq!(look(0, 0, 100, 2_200_000), (true, true));
        assert_eq!(look(200, 100, 100, 2_300_000), (true, true), "counted anew");
        // The end of a burst is no reason to do without in the next.
        assert_eq!(look(0, 100, 10, 2_400_000), (false, false));
        assert_eq!(look(0, 0, 100, 2_500_000), (true, true));
    }

    #[test]
    fn it_is_given_up_where_peers_wait_for_it() {
        for slower in [749, 500, 100, 20] {
            let mut merging = Merging::default();
            let mut look = |small, used, now_ms| look(&mut merging, small, used, now_ms);
            assert!(look(1000, 100, 0));
            // The peers are slower, and so the shard has less to do.
            assert!(look(slower, 20, 100), "{slower}: once is nothing");
            assert!(look(750, 60, 200));
            assert!(look(slower, 20, 300));
            assert!(!look(slower, 20, 400), "{slower}");
            assert!(!look(1000, 100, 500));
            // A pause, less at its edges, changes nothing.
            assert!(!look(0, 0, 600) && !look(700, 80, 700) && !look(1000, 100, 10_399));
            assert!(look(1000, 100, 10_400), "{slower}: tried again");
        }
    }

    #[test]
    fn what_grows_less_by_itself_is_no_reason() {
        let mut merging = Merging::default();
        let mut look = |small, used, now_ms| look(&mut merging, small, used, now_ms);
        assert!(look(1000, 100, 0));
        // They have ended.
        assert!(!look(19, 3, 100));
        assert!(look(1000, 100, 200));
        // A processor that is busy all the same is what they wait for.
        assert!(look(500, 75, 300) && look(500, 75, 400) && look(500, 75, 500));
        // It looks as if they waited; without waiting no more come.
        assert!(look(500, 40, 600) && !look(500, 40, 700));
        assert!(!look(500, 60, 800));
        assert!(look(900, 80, 900), "so that was not why");
    }

    #[test]
    fn others_may_not_wait_for_it() {
        for (other, is_other) in [(3_000, false), (3_100, true), (340, false), (330, true)] {
            let mut merging = Merging::default();
            let mut look = |small, used, now_ms| look(&mut merging, small, used, now_ms);
            assert!(look(1000, 100, 0));
            assert!(look(200, 20, 100) && !look(200, 20, 200) && !look(1000, 100, 300));
            assert_eq!(look(other, 100, 400), is_other, "{other}");
        }
    }
}
