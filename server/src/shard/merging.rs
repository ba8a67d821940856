//! Whether Acks of small batches wait for the next batches of their connections, and a turn for the next messages.
//!
//! To send an Ack costs the kernel more than to take a record in, and to go to sleep and wake again costs more than both, so a shard
//! that has more small batches than it can take gets more done if it takes and answers several at once. One that is not busy would
//! win nothing, nor one whose connections have a batch now and then.

/// Most that an Ack waits, µs, and the turn in which it goes out.
pub const ACK_WAIT_US: u64 = 2_000;
/// The Ack of a batch of so many bytes waits for none: it is cheap beside the batch, and the peer's window is worth more.
pub const ACK_AT_ONCE_BYTES: u32 = 16 << 10;
/// Most that a turn then waits for more messages than one, µs, if the last turn had any.
pub const GATHER_US: u64 = 100;
/// From this part of its processor on a shard is busy.
const BUSY_PERCENT: u64 = 75;
/// Below this part it is not any more.
const IDLE_PERCENT: u64 = 60;
/// The same where most batches are small: they cost about half as much while Acks and turns wait.
const IDLE_PERCENT_SMALL: u64 = 35;
/// Acks that would have been sent without waiting where four are sent with it; if there are fewer, it is given up.
const DUE_PER_FOUR_SENT: u64 = 5;
/// Until it is tried again, µs.
const AGAIN_US: u64 = 2_000_000;

/// See the module. Looked at in intervals of some 100 ms.
#[derive(Debug, Default)]
pub struct Merging {
    on: bool,
    /// Acks since the last look that would have been sent if none waited: one per connection and turn.
    pub due: u64,
    /// Those of them that were.
    pub sent: u64,
    /// Batches since then whose Acks wait for none.
    pub large: u64,
    /// Monotonic time before which it is not tried again.
    again_us: u64,
}

impl Merging {
    /// Whether Acks wait.
    pub const fn is_on(&self) -> bool {
        self.on
    }

    /// Decides anew. `used_us` of `passed_us` since the last look the shard's thread was running.
    pub fn look(&mut self, used_us: u64, passed_us: u64, now_us: u64) {
        let from_percent = match self.on {
            false => BUSY_PERCENT,
            true if self.due > self.large => IDLE_PERCENT_SMALL,
            true => IDLE_PERCENT,
        };
        let is_busy = used_us * 100 >= passed_us * from_percent;
        let pays = !self.on || self.due * 4 >= self.sent * DUE_PER_FOUR_SENT;
        if is_busy && !pays {
            self.again_us = now_us + AGAIN_US;
        }
        self.on = is_busy && pays && now_us >= self.again_us;
        (self.due, self.sent, self.large) = (0, 0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_on_at_three_quarters_and_off_sooner_with_large_batches() {
        let mut merging = Merging::default();
        for (due, large, used_us, on) in [
            (0, 0, 74_999, false),
            (0, 9, 75_000, true),
            (9, 8, 35_000, true),
            (9, 8, 34_999, false),
            (0, 0, 74_999, false),
            (0, 0, 100_000, true),
            (9, 9, 60_000, true),
            (9, 9, 59_999, false),
        ] {
            (merging.due, merging.large) = (due, large);
            merging.look(used_us, 100_000, 0);
            assert_eq!(merging.is_on(), on, "{due} {large} {used_us}");
        }
    }

    #[test]
    fn what_does_not_pay_is_given_up_and_tried_again_later() {
        let mut merging = Merging::default();
        let mut look = |due, sent, used_us, now_us| {
            (merging.due, merging.sent) = (due, sent);
            merging.look(used_us, 100, now_us);
            merging.is_on()
        };
        assert!(look(0, 100, 100, 0), "nothing is known yet, what goes out had waited before");
        assert!(look(125, 100, 100, 100_000));
        assert!(!look(124, 100, 100, 200_000));
        assert!(!look(0, 0, 100, 2_199_999));
        assert!(look(0, 0, 100, 2_200_000));
        assert!(look(200, 100, 100, 2_300_000), "counted anew");
        // The end of a burst is no reason to do without in the next.
        assert!(!look(0, 100, 10, 2_400_000));
        assert!(look(0, 0, 100, 2_500_000));
    }
}
