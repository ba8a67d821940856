//! Whether Acks of small batches wait for the next batches of their connections.
//!
//! To send an Ack costs the kernel more than to take a record in, so a shard that has more small batches than it can take gets more
//! done if it answers several at once. One that is not busy would win nothing, nor one whose connections have a batch now and then.

/// Most that an Ack waits, µs, and the turn in which it goes out.
pub const ACK_WAIT_US: u64 = 2_000;
/// The Ack of a batch of so many bytes waits for none: it is cheap beside the batch, and the peer's window is worth more.
pub const ACK_AT_ONCE_BYTES: u32 = 16 << 10;
/// From this part of its processor on a shard is busy.
const BUSY_PERCENT: u64 = 75;
/// Below this part it is not any more: the same batches cost less of it while Acks wait.
const IDLE_PERCENT: u64 = 50;
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
        let from_percent = if self.on { IDLE_PERCENT } else { BUSY_PERCENT };
        let is_busy = used_us * 100 >= passed_us * from_percent;
        let pays = !self.on || self.due * 4 >= self.sent * DUE_PER_FOUR_SENT;
        if is_busy && !pays {
            self.again_us = now_us + AGAIN_US;
        }
        self.on = is_busy && pays && now_us >= self.again_us;
        (self.due, self.sent) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_on_at_three_quarters_and_off_at_half() {
        let mut merging = Merging::default();
        for (used_us, on) in [(74_999, false), (75_000, true), (50_000, true), (49_999, false), (74_999, false), (100_000, true)]
        {
            merging.look(used_us, 100_000, 0);
            assert_eq!(merging.is_on(), on, "{used_us}");
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
