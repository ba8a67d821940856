//! Whether Acks of small batches wait for the next batches of their connections, and turns for the next messages.
//!
//! To send an Ack costs the kernel more than to take a record in, and so does to go to sleep and wake again: a shard that has much to
//! do gets more done with its processor if it takes and answers several messages at once. One that is not busy would win nothing,
//! nor one whose connections have a batch now and then, and one whose peers wait for their Acks before they go on would lose.

/// Most that an Ack waits, µs, and the turn in which it goes out.
pub const ACK_WAIT_US: u64 = 2_000;
/// The Ack of a batch of so many bytes waits for none: it is cheap beside the batch, and the peer's window is worth more.
pub const ACK_AT_ONCE_BYTES: u32 = 16 << 10;
/// Most that a turn waits for more messages than one, µs, if the last turn had any.
pub const GATHER_US: u64 = 100;
/// Most messages that it waits for; more gain no more.
pub const GATHER_MAX: usize = 16;
/// From this part of its processor on a shard is busy.
const BUSY_PERCENT: u64 = 75;
/// Below this part it is not any more.
const IDLE_PERCENT: u64 = 60;
/// The same where most batches are small: they cost about half as much while Acks and turns wait.
const IDLE_PERCENT_SMALL: u64 = 35;
/// Acks that would have been sent without waiting where four are sent with it; if there are fewer, Acks wait no more.
const DUE_PER_FOUR_SENT: u64 = 5;
/// If twice in a row fewer batches than this part of those before it began come in, both are given up: peers wait for them.
const SLOWER_PERCENT: u64 = 75;
/// Below this part they have just ended.
const ENDED_PERCENT: u64 = 5;
/// Until it is tried again, µs, or until the rate of batches is another one by this factor.
const AGAIN_US: u64 = 10_000_000;
const OTHER_RATE: u64 = 3;
/// Until Acks wait again that saved nothing, µs.
const ACKS_AGAIN_US: u64 = 2_000_000;

/// See the module. Looked at in intervals of some 100 ms.
#[derive(Debug, Default)]
pub struct Merging {
    turns_wait: bool,
    acks_wait: bool,
    /// Acks since the last look that would have been sent if none waited: one per connection and turn.
    pub due: u64,
    /// Those of them that were.
    pub sent: u64,
    /// Batches since the last look whose Acks may wait for others.
    pub small: u64,
    /// And those whose Acks may not.
    pub large: u64,
    /// Batches a second when turns began to wait.
    rate_before: u64,
    /// The same of the time when that was given up, if it was.
    rate_given_up: Option<u64>,
    /// Whether fewer came when it was last looked.
    was_slower: bool,
    /// Monotonic time before which turns do not wait again.
    again_us: u64,
    /// The same for Acks.
    acks_again_us: u64,
}

impl Merging {
    /// Whether turns wait for several messages.
    pub const fn turns_wait(&self) -> bool {
        self.turns_wait
    }

    /// Whether Acks wait for others.
    pub const fn acks_wait(&self) -> bool {
        self.acks_wait
    }

    /// Decides anew. `used_us` of `passed_us` since the last look the shard's thread was running.
    pub fn look(&mut self, used_us: u64, passed_us: u64, now_us: u64) {
        let from_percent = match self.turns_wait {
            false => BUSY_PERCENT,
            true if self.small > self.large => IDLE_PERCENT_SMALL,
            true => IDLE_PERCENT,
        };
        let is_busy = used_us * 100 >= passed_us * from_percent;
        let rate = (self.small + self.large) * 1_000_000 / passed_us.max(1);
        let percent = |part: u64| self.rate_before * part / 100;
        let is_slower = self.turns_wait && (percent(ENDED_PERCENT)..percent(SLOWER_PERCENT)).contains(&rate);
        if is_slower && self.was_slower {
            (self.again_us, self.rate_given_up) = (now_us + AGAIN_US, Some(self.rate_before));
        } else if self.rate_given_up.is_some_and(|of| rate > of * OTHER_RATE || rate * OTHER_RATE < of) {
            // These are other peers, or they do something else.
            (self.again_us, self.rate_given_up) = (0, None);
        }
        if self.acks_wait && is_busy && self.due * 4 < self.sent * DUE_PER_FOUR_SENT {
            self.acks_again_us = now_us + ACKS_AGAIN_US;
        }
        if !self.turns_wait {
            self.rate_before = rate;
        }
        // Peers that wait make the shard idle: whether they do is seen at the next look.
        self.turns_wait = (is_busy || is_slower) && now_us >= self.again_us;
        self.acks_wait = self.turns_wait && now_us >= self.acks_again_us;
        self.was_slower = is_slower;
        (self.due, self.sent, self.small, self.large) = (0, 0, 0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
            (merging.small, merging.large) = (small, large);
            merging.look(used_us, 100_000, 0);
            assert_eq!((merging.turns_wait(), merging.acks_wait()), (on, on), "{small} {large} {used_us}");
        }
    }

    #[test]
    fn acks_that_save_nothing_wait_no_more_and_later_again() {
        let mut merging = Merging::default();
        let mut look = |due, sent, used_us, now_us| {
            (merging.due, merging.sent) = (due, sent);
            merging.look(used_us, 100, now_us);
            (merging.turns_wait(), merging.acks_wait())
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
        let mut merging = Merging::default();
        let mut look = |batches, used_us, now_us| {
            merging.small = batches;
            merging.look(used_us, 100_000, now_us);
            assert_eq!(merging.turns_wait(), merging.acks_wait());
            merging.turns_wait()
        };
        assert!(look(1000, 100_000, 0));
        // The peers are slower, and so the shard has less to do.
        assert!(look(749, 20_000, 100_000));
        assert!(look(750, 80_000, 200_000), "once is nothing");
        assert!(look(749, 20_000, 300_000));
        assert!(!look(700, 80_000, 400_000));
        assert!(!look(1000, 100_000, 10_399_999));
        assert!(look(1000, 100_000, 10_400_000));
        // They have ended: it may begin again at once.
        assert!(!look(49, 3_000, 10_500_000));
        assert!(look(2000, 100_000, 10_600_000));
        assert!(look(1500, 100_000, 10_700_000), "it is what was there before it began that counts");
        assert!(look(1499, 100_000, 10_800_000) && !look(1499, 100_000, 10_900_000));
        // Others may not wait for it.
        assert!(!look(6000, 100_000, 11_000_000) && !look(667, 100_000, 11_100_000));
        assert!(look(6001, 100_000, 11_200_000));
        assert!(look(3000, 100_000, 11_300_000) && !look(3000, 100_000, 11_400_000));
        assert!(!look(2001, 100_000, 11_500_000) && look(2000, 100_000, 11_600_000));
    }
}
