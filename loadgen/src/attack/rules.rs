//! Which record of an attacker decides, by the published definitions of the detectors with their default numbers.
//!
//! An attacker of a [`Kind`] sends records that all count and are all distinct, so of each detector only its rules are left:
//! leaky levels, numbers in a window, and the sequential test, in which every record is a failure. This shares no code with
//! the server: it is what the server is judged by.

use super::Kind;

const SECOND_US: u64 = 1_000_000;
const MINUTE_US: u64 = 60 * SECOND_US;
/// What a failure adds to the sequential test, and the score at which it fires, in micro-nats.
const FAILURE_MICRONATS: u64 = 2_302_585;
const FIRES_AT_MICRONATS: u64 = 9_200_290;

/// The position of the record that decides, if the records come at these times, in order; `None` if no rule fires.
pub fn deciding(kind: Kind, times_us: &[u64]) -> Option<usize> {
    let leaky = |events: u64, leak_us: u64| leaky(times_us, events, leak_us);
    let window = |events: usize, window_us: u64| window(times_us, events, window_us);
    let of_rules = match kind {
        Kind::BruteForce => [leaky(5, 10 * SECOND_US), window(10, 10 * MINUTE_US), window(20, 60 * MINUTE_US)],
        // Every attempt failed, so the share that the second rule asks for is there.
        Kind::CredentialStuffing => [leaky(5, 10 * SECOND_US), window(10, 10 * MINUTE_US), None],
        Kind::ForcedBrowsing => {
            let failures = FIRES_AT_MICRONATS.div_ceil(FAILURE_MICRONATS) as usize;
            [(times_us.len() >= failures).then_some(failures - 1), leaky(10, 10 * SECOND_US), None]
        }
        // Consecutive numbers are always within the range.
        Kind::Bola => [window(30, MINUTE_US), leaky(120, SECOND_US / 2), None],
        Kind::Scanner => [window(2, MINUTE_US), None, None],
        Kind::Probing => [leaky(4, 5 * SECOND_US), None, None],
    };
    of_rules.into_iter().flatten().min()
}

/// A level that each event raises by `leak_us` and each µs lowers by one: fires above `events` times `leak_us`.
fn leaky(times_us: &[u64], events: u64, leak_us: u64) -> Option<usize> {
    let (mut level, mut before_us) = (0u64, 0u64);
    times_us.iter().position(|&time_us| {
        level = level.saturating_sub(time_us.saturating_sub(before_us)) + leak_us;
        before_us = time_us;
        level > events * leak_us
    })
}

/// So many events less than `window_us` apart, the first and the last.
fn window(times_us: &[u64], events: usize, window_us: u64) -> Option<usize> {
    let found = times_us.windows(events).position(|run| run[events - 1] - run[0] < window_us)?;
    Some(found + events - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn every(step_us: u64, count: u64) -> Vec<u64> {
        (0..count).map(|number| 1_000 + number * step_us).collect()
    }

    #[test]
    fn quick_attackers_are_decided_as_the_definitions_say() {
        for (kind, record) in [
            (Kind::BruteForce, 6),
            (Kind::CredentialStuffing, 6),
            (Kind::ForcedBrowsing, 4),
            (Kind::Bola, 30),
            (Kind::Scanner, 2),
            (Kind::Probing, 5),
        ] {
            assert_eq!(deciding(kind, &every(1_000, u64::from(kind.records()))), Some(record - 1), "{kind:?}");
            assert_eq!(deciding(kind, &every(1_000, record as u64 - 1)), None, "{kind:?}");
        }
    }

    #[test]
    fn slow_attackers_are_decided_later_or_not_at_all() {
        // The sixth leaves 60 s − 5 steps: over 50 s only below steps of 2 s.
        assert_eq!(deciding(Kind::BruteForce, &every(1_999_999, 30)), Some(5));
        assert_eq!(deciding(Kind::BruteForce, &every(2 * SECOND_US, 30)), Some(6));
        assert_eq!(deciding(Kind::BruteForce, &every(50 * SECOND_US, 30)), Some(9));
        assert_eq!(deciding(Kind::BruteForce, &every(66_666_666, 30)), Some(9));
        assert_eq!(deciding(Kind::BruteForce, &every(66_666_667, 30)), Some(19));
        assert_eq!(deciding(Kind::BruteForce, &every(200 * SECOND_US, 30)), None);
        assert_eq!(deciding(Kind::ForcedBrowsing, &every(47 * 3600 * SECOND_US, 8)), Some(3));
        assert_eq!(deciding(Kind::Bola, &every(2_068_965, 60)), Some(29));
        assert_eq!(deciding(Kind::Bola, &every(2_068_966, 60)), None);
        assert_eq!(deciding(Kind::Scanner, &every(MINUTE_US - 1, 4)), Some(1));
        assert_eq!(deciding(Kind::Scanner, &every(MINUTE_US, 4)), None);
        assert_eq!(deciding(Kind::Probing, &every(1_249_999, 10)), Some(4));
        assert_eq!(deciding(Kind::Probing, &every(5 * SECOND_US, 10)), None);
    }
}
