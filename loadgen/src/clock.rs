//! Clocks, sleeping and the schedule of an open loop.
//!
//! One monotonic clock (CLOCK_MONOTONIC, ns) rules a run; everything else is derived from it. Sleeping never spins: on a
//! machine of two cores a spinning generator starves the server it measures.

use rustix::thread::clock_nanosleep_absolute;
use rustix::time::{ClockId, Timespec, clock_gettime};
use std::num::NonZeroU64;
use std::time::Duration;

/// Shortest time between two wake-ups of a pacing thread: bounds what waking costs at high rates. Records that fall due in
/// between are sent together, with their own intended times.
pub const WAKE_INTERVAL_NS: u64 = 150_000;

/// CLOCK_MONOTONIC in ns.
pub fn monotonic_ns() -> u64 {
    nanoseconds(clock_gettime(ClockId::Monotonic))
}

/// Unix time in µs.
pub fn unix_us() -> u64 {
    nanoseconds(clock_gettime(ClockId::Realtime)) / 1000
}

/// Unix time in µs at a time of the monotonic clock.
pub fn unix_us_at(monotonic: u64) -> u64 {
    let ago_us = (monotonic_ns() / 1000).cast_signed().wrapping_sub((monotonic / 1000).cast_signed());
    unix_us().saturating_add_signed(ago_us.saturating_neg())
}

/// CPU time of this process in µs, user and system.
pub fn process_cpu_us() -> u64 {
    nanoseconds(clock_gettime(ClockId::ProcessCPUTime)) / 1000
}

/// Sleeps until the monotonic clock shows `deadline_ns`. A signal may end it early; callers look at the clock anyway.
pub fn sleep_until(deadline_ns: u64) {
    let _ = clock_nanosleep_absolute(ClockId::Monotonic, &timespec(deadline_ns));
}

/// Makes this thread's sleeps end on time: the kernel's default lets them overrun by 50 µs to save wake-ups.
pub fn set_fine_timers() {
    // Refused only by a kernel without prctl; then sleeps are a little coarser, and lateness shows it.
    let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1_000));
}

/// A span or point of time in the kernel's form.
pub fn timespec(ns: u64) -> Timespec {
    Timespec { tv_sec: (ns / 1_000_000_000).cast_signed(), tv_nsec: (ns % 1_000_000_000).cast_signed() }
}

/// Nanoseconds of a duration, up to 584 years.
pub fn duration_ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn nanoseconds(time: Timespec) -> u64 {
    time.tv_sec.cast_unsigned() * 1_000_000_000 + time.tv_nsec.cast_unsigned()
}

/// When the events of one of several equal streams are due: event `n` of stream `k` of `streams` is event
/// `n * streams + k` of the whole, and those are spaced evenly. Exact, without drift.
#[derive(Clone, Copy, Debug)]
pub struct Schedule {
    start_ns: u64,
    /// Events per second of all streams together, times `scale`.
    rate: u64,
    scale: u64,
    streams: u64,
    stream: u64,
}

impl Schedule {
    /// A schedule of `rate / scale` events per second in all; `scale` lets a frame of `scale` records be an event.
    pub fn new(start_ns: u64, rate: u64, scale: u64, streams: u64, stream: u64) -> Self {
        Self { start_ns, rate: rate.max(1), scale: scale.max(1), streams: streams.max(1), stream }
    }

    /// When event `n` of this stream is due.
    pub fn due_ns(&self, n: u64) -> u64 {
        let event = u128::from(n) * u128::from(self.streams) + u128::from(self.stream);
        let after_ns = event * u128::from(self.scale) * 1_000_000_000 / u128::from(self.rate);
        self.start_ns.saturating_add(u64::try_from(after_ns).unwrap_or(u64::MAX))
    }

    /// How many events of this stream are due before `end_ns`.
    pub fn due_before(&self, end_ns: u64) -> u64 {
        let within_ns = u128::from(end_ns.saturating_sub(self.start_ns));
        let of_all = (within_ns * u128::from(self.rate)).div_ceil(u128::from(self.scale) * 1_000_000_000);
        let of_this = of_all.saturating_sub(u128::from(self.stream)).div_ceil(u128::from(self.streams));
        u64::try_from(of_this).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_interleave_evenly_and_do_not_drift() {
        let schedule = |stream| Schedule::new(1_000, 50_000, 1, 2, stream);
        assert_eq!((schedule(0).due_ns(0), schedule(1).due_ns(0), schedule(0).due_ns(1)), (1_000, 21_000, 41_000));
        assert_eq!(schedule(0).due_ns(25_000 * 3_600), 1_000 + 3_600 * 1_000_000_000);
        assert_eq!(Schedule::new(0, 3, 1, 1, 0).due_ns(3_000_000), 1_000_000_000_000_000);
        assert_eq!(Schedule::new(0, 6_400, 64, 1, 0).due_ns(1), 10_000_000);
    }

    #[test]
    fn what_is_due_before_an_end_is_what_the_due_times_say() {
        for (rate, scale, streams) in [(50_000, 1, 2), (3, 1, 1), (7, 64, 3), (999_999, 10, 4)] {
            for stream in 0..streams {
                let schedule = Schedule::new(1_000, rate, scale, streams, stream);
                for end_ns in [0, 1_000, 1_001, 21_000, 21_001, 41_000, 333_334_333, 1_000_001_000, 9_999_999_999] {
                    let due = schedule.due_before(end_ns);
                    assert!(due == 0 || schedule.due_ns(due - 1) < end_ns, "{schedule:?} {end_ns}: {due}");
                    assert!(schedule.due_ns(due) >= end_ns, "{schedule:?} {end_ns}: {due}");
                }
            }
        }
    }

    #[test]
    fn sleeping_ends_after_its_deadline() {
        set_fine_timers();
        let deadline = monotonic_ns() + 2_000_000;
        sleep_until(deadline);
        assert!(monotonic_ns() >= deadline);
    }
}
