//! What an operator must know of a shard and would not look for: said in the log, each kind at most once a minute.

use super::page::ShardStats;

/// Between two lines of a kind, µs.
const QUIET_US: u64 = 60_000_000;
/// Share of a source of its shard's requests that is warned about, thousandths.
const HOT_PERMILLE: u64 = 200;

/// A counter that should stand still, and what is said when it does not.
type Kind = (fn(&ShardStats) -> u64, &'static str);

const KINDS: [Kind; 6] = [
    (
        |stats| stats.derived_lost,
        "events for the correlator were dropped: attacks and alerts are shown incompletely, detection is not touched. The CPU of \
         the correlator is too busy: give it one by fewer --shards",
    ),
    (
        |stats| stats.listings_too_many,
        "over 5 % of the sources of the last 10 minutes are listed: detectors list nobody more until it is less. Look at /denylist: \
         a detector may be too strict, or this is an attack from very many sources",
    ),
    (
        |stats| stats.keys_evicted_hot,
        "keys over half of a threshold yielded to others: attackers may be missed. A flood of keys, or the arena, which the number of \
         keys follows, is too small: raise --arena",
    ),
    (
        |stats| stats.keys_evicted_for_lists,
        "keys yielded for the room of their lists: the least near to firing are forgotten. A flood of keys that come again and again, \
         or the arena, which that room follows, is too small: raise --arena",
    ),
    (
        |stats| stats.verdicts_displaced,
        "verdicts yielded to later ones, for the set is full: shorten action_s, or let fewer detectors list sources",
    ),
    (
        |stats| stats.listings_no_room,
        "detectors listed nobody more for want of room: the set of verdicts is full of those by hand (take some back at /denylist), or \
         one batch decided thousands",
    ),
];

#[derive(Clone, Copy, Debug, Default)]
struct Said {
    count: u64,
    quiet_until_us: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Alarms {
    said: [Said; KINDS.len()],
    hot_quiet_until_us: u64,
}

impl Alarms {
    /// Looks at the counters; returns how many lines were logged.
    pub(super) fn look(&mut self, shard: u32, stats: &ShardStats, now_us: u64) -> usize {
        let mut lines = 0;
        for ((count, text), said) in KINDS.iter().zip(&mut self.said) {
            let count = count(stats);
            if count > said.count && now_us >= said.quiet_until_us {
                tracing::warn!(shard, times = count - said.count, "{text}");
                *said = Said { count, quiet_until_us: now_us + QUIET_US };
                lines += 1;
            }
        }
        if stats.hottest_source_permille > HOT_PERMILLE && now_us >= self.hot_quiet_until_us {
            self.hot_quiet_until_us = now_us + 10 * QUIET_US;
            tracing::warn!(
                shard,
                percent = stats.hottest_source_permille / 10,
                "one source sends a large share of the requests of this shard: /top shows which. If it is a proxy, set the real \
                 address in the filter; the shard's load cannot be spread"
            );
            lines += 1;
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_said_once_a_minute_with_what_came_since() {
        let mut alarms = Alarms::default();
        let stats =
            |derived_lost, hottest_source_permille| ShardStats { derived_lost, hottest_source_permille, ..ShardStats::default() };
        assert_eq!(alarms.look(0, &stats(0, 200), 1), 0);
        assert_eq!(alarms.look(0, &stats(5, 201), 2), 2);
        assert_eq!(alarms.look(0, &stats(9, 300), 3), 0);
        assert_eq!(alarms.look(0, &stats(9, 300), 3 + QUIET_US), 1);
        assert_eq!(alarms.look(0, &stats(9, 0), 3 + 3 * QUIET_US), 0, "nothing came since");
    }
}
