//! How many shards start, on which CPUs, with how much memory each. Pure: config and machine in, plan or named error out.

use super::machine::Machine;
use super::values::GIGABYTE;
use super::{Config, ConfigError};

/// Part of the memory above which an arena is warned about.
const MEMORY_PART_WARN: f64 = 0.75;
/// Part of the memory above which it is refused.
const MEMORY_PART_MAX: f64 = 0.95;
/// Part of the memory above which receive buffers are refused.
const BUFFERS_PART_MAX: f64 = 0.25;

/// Memory of a key of a shard's detectors: its cell and the tag of it, its part of the lists, and of the places of probation.
pub(crate) const KEY_BYTES: u64 = 152;

/// Keys of a shard's detectors: one for each KiB of its arena, so that their state takes about a seventh as much.
pub(crate) fn keys_of(arena_bytes: u64) -> usize {
    (arena_bytes >> 10).clamp(1 << 14, 1 << 22) as usize
}

/// Memory of the detectors' keys of all shards; none if no detector runs.
pub(crate) fn keys_bytes(config: &Config, shards: u32) -> u64 {
    if config.detection.is_none() {
        return 0;
    }
    let shards = u64::from(shards.max(1));
    (keys_of(config.arena_bytes / shards) as u64).saturating_mul(shards * KEY_BYTES)
}

/// The largest arena, in gigabytes with two decimals, that takes no more than so much together with the keys it brings.
pub(crate) fn arena_within(config: &Config, bytes: f64) -> f64 {
    let with_keys = if config.detection.is_some() { 1.0 + KEY_BYTES as f64 / 1024.0 } else { 1.0 };
    (bytes / with_keys / GIGABYTE as f64 * 100.0).floor() / 100.0
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The CPU of each shard; `None`: not pinned.
    pub cpus: Vec<Option<usize>>,
    /// CPUs left for the control plane; empty: it shares.
    pub control_cpus: Vec<usize>,
    /// Bytes of arena of each shard, whole slabs.
    pub arena_bytes_per_shard: u64,
    /// What the operator should know: fewer shards than wanted and why, an arena that takes most of the memory.
    pub remarks: Vec<String>,
}

impl Plan {
    /// Number of shards.
    pub fn shard_count(&self) -> u32 {
        self.cpus.len() as u32
    }

    /// Makes the plan. `slab_bytes` and `slabs_min` are the arena's: a shard needs that many slabs at least.
    pub fn make(config: &Config, machine: &Machine, slab_bytes: u64, slabs_min: u64) -> Result<Self, ConfigError> {
        let (memory, limit_name) = machine.memory_allowed();
        let mut remarks = Vec::new();
        let allowed = machine.cpus_allowed();
        let wanted = config.shards.map_or((allowed - 1).max(1), |shards| shards as usize);
        let fitting = usize::try_from(config.arena_bytes / slab_bytes / slabs_min).unwrap_or(usize::MAX);
        let shards = wanted.min(fitting);
        let keys_bytes = keys_bytes(config, shards as u32);
        let part = (config.arena_bytes as f64 + keys_bytes as f64) / memory.max(1) as f64;
        if part > MEMORY_PART_WARN {
            let how_much =
                if part > 1.0 { "larger than the memory".to_owned() } else { format!("{:.0} % of the memory", part * 100.0) };
            let text = format!(
                "the arena of {}{} is {how_much}: {limit_name} is {}; give a smaller --arena (SLAB_ALLOC_ARENA), \
                 at most {:.2}, for the rest of the machine and of this process need some too",
                in_gigabytes(config.arena_bytes),
                if keys_bytes > 0 { format!(" with {} for the detectors", in_gigabytes(keys_bytes)) } else { String::new() },
                in_gigabytes(memory),
                arena_within(config, memory as f64 * MEMORY_PART_WARN)
            );
            if part > MEMORY_PART_MAX {
                return Err(ConfigError::start(text));
            }
            remarks.push(text);
        }
        if config.pin && wanted > allowed {
            return Err(ConfigError::start(format!(
                "{wanted} shards are more than the {allowed} CPUs allowed to this process ({} in its affinity mask, quota {}): give \
                 --shards {allowed} or fewer, or --no-pin to let shards share CPUs",
                machine.cpus.len(),
                machine.cpu_quota.map_or_else(|| "none".to_owned(), |quota| format!("{quota} CPUs")),
            )));
        }
        if fitting == 0 {
            return Err(ConfigError::start(format!(
                "the arena of {} is too small for even one shard, which needs {slabs_min} slabs of {} MiB: give --arena {:.2} \
                 (SLAB_ALLOC_ARENA) or more",
                in_gigabytes(config.arena_bytes),
                slab_bytes >> 20,
                ((slab_bytes * slabs_min) as f64 / GIGABYTE as f64 * 100.0).ceil() / 100.0
            )));
        }
        if shards < wanted {
            remarks.push(format!(
                "starting {shards} shards instead of {wanted}: the arena of {} has room for no more, each needs {} MiB; give a \
                 larger --arena (SLAB_ALLOC_ARENA) for more shards",
                in_gigabytes(config.arena_bytes),
                (slab_bytes * slabs_min) >> 20
            ));
        }
        let buffer_bytes = u64::from(config.receive_buffers) * u64::from(config.receive_buffer_bytes);
        let buffers_bytes = buffer_bytes.saturating_mul(shards as u64);
        if buffers_bytes as f64 > memory as f64 * BUFFERS_PART_MAX {
            return Err(ConfigError::start(format!(
                "the receive buffers of {shards} shards, {} of {} bytes for each, take {}: {limit_name} is {}, of which they may \
                 have a quarter; give smaller ones or fewer (--receive-buffers, --receive-buffer-bytes), or fewer --shards",
                config.receive_buffers,
                config.receive_buffer_bytes,
                in_gigabytes(buffers_bytes),
                in_gigabytes(memory)
            )));
        }
        // The last CPUs are the shards': the first also serve interrupts, and what is left is the control plane's.
        let first = machine.cpus.len().saturating_sub(shards);
        let (control_cpus, shard_cpus) = machine.cpus.split_at(first);
        let cpus = (0..shards).map(|shard| if config.pin { shard_cpus.get(shard).copied() } else { None }).collect();
        Ok(Self {
            cpus,
            control_cpus: if config.pin { control_cpus.to_vec() } else { Vec::new() },
            arena_bytes_per_shard: config.arena_bytes / shards as u64 / slab_bytes * slab_bytes,
            remarks,
        })
    }
}

fn in_gigabytes(bytes: u64) -> String {
    format!("{:.2} GB", bytes as f64 / GIGABYTE as f64)
}

#[cfg(test)]
mod tests {
    use super::super::flags::ServeFlags;
    use super::*;

    const SLAB: u64 = 2 << 20;

    #[test]
    fn receive_buffers_must_fit_into_memory() {
        let of = |count: &str| {
            let flags = ServeFlags {
                receive_buffers: Some(count.to_owned()),
                receive_buffer_bytes: Some((16 << 20).to_string()),
                env_file: Some("/dev/null".to_owned()),
                node_yaml: Some("/dev/null".to_owned()),
                ..ServeFlags::default()
            };
            let config = Config::resolve(&flags, &|_| None).expect("a good config");
            Plan::make(&config, &machine(3, None), SLAB, 20)
        };
        assert_eq!(of("64").expect("2 of 8 GB").shard_count(), 2);
        let error = of("128").expect_err("4 of 8 GB");
        assert!(error.text.contains("take 4.00 GB") && error.text.contains("--receive-buffers"), "{error}");
    }

    fn plan(shards: Option<u32>, arena: &str, no_pin: bool, machine: &Machine) -> Result<Plan, ConfigError> {
        let flags = ServeFlags {
            shards: shards.map(|shards| shards.to_string()),
            arena: Some(arena.to_owned()),
            no_pin,
            env_file: Some("/dev/null".to_owned()),
            node_yaml: Some("/dev/null".to_owned()),
            ..ServeFlags::default()
        };
        let config = Config::resolve(&flags, &|_| None).expect("a good config");
        Plan::make(&config, machine, SLAB, 20)
    }

    fn machine(cpus: usize, quota: Option<usize>) -> Machine {
        Machine { cpus: (0..cpus).collect(), cpu_quota: quota, memory_bytes: 8 * GIGABYTE, memory_limit_bytes: None }
    }

    #[test]
    fn the_keys_of_detectors_are_memory_as_the_arena_is() {
        let with_detectors = |arena: &str| {
            let none = || Some("/dev/null".to_owned());
            let flags = ServeFlags {
                arena: Some(arena.to_owned()),
                env_file: none(),
                node_yaml: none(),
                config: none(),
                ..ServeFlags::default()
            };
            let config = Config::resolve(&flags, &|_| None).expect("a good config");
            Plan::make(&config, &machine(4, None), SLAB, 20)
        };
        assert!(plan(None, "7", false, &machine(4, None)).is_ok());
        let error = with_detectors("7").expect_err("a gigabyte of keys").text;
        let words = ["7.00 GB", "with 1.04 GB for the detectors", "larger than the memory"];
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
        let found = with_detectors("5.5").expect("fits");
        assert!(found.remarks[0].contains("at most 5.22"), "{:?}", found.remarks);
        assert_eq!(with_detectors("5.22").expect("fits").remarks, [""; 0]);
    }

    #[test]
    fn a_key_takes_what_it_is_counted_with() {
        use crate::analytics::detectors::Event;
        use crate::analytics::keys::Cell;
        // The tag, lists with the owner of each 32 bytes, a place of probation for four keys.
        let bytes = size_of::<Cell>() + 2 + 64 + 64 / 32 * 4 + size_of::<Event>() / 4;
        assert_eq!(bytes as u64, KEY_BYTES);
        assert_eq!((keys_of(0), keys_of(1 << 30), keys_of(u64::MAX)), (1 << 14, 1 << 20, 1 << 22));
    }

    #[test]
    fn the_default_is_all_cpus_but_one() {
        let found = plan(None, "1.0", false, &machine(4, None)).expect("fits");
        assert_eq!((found.cpus, found.control_cpus), (vec![Some(1), Some(2), Some(3)], vec![0]));
        assert_eq!(found.arena_bytes_per_shard, (GIGABYTE / 3) / SLAB * SLAB);
        assert_eq!(plan(None, "1.0", false, &machine(1, None)).expect("fits").cpus, [Some(0)]);
        assert_eq!(plan(None, "1.0", false, &machine(8, Some(2))).expect("fits").cpus, [Some(7)]);
    }

    #[test]
    fn more_shards_than_cpus_need_no_pin() {
        let error = plan(Some(3), "1.0", false, &machine(2, None)).expect_err("too many");
        assert!(error.text.contains("3 shards") && error.text.contains("--no-pin"), "{error}");
        assert_eq!(plan(Some(3), "1.0", true, &machine(2, None)).expect("fits").cpus, [None, None, None]);
    }

    #[test]
    fn a_small_arena_starts_fewer_shards_and_says_so() {
        let found = plan(Some(4), "0.1", false, &machine(4, None)).expect("fits");
        assert_eq!(found.shard_count(), 2);
        assert!(found.remarks[0].contains("2 shards instead of 4"));
        let error = plan(Some(1), "0.01", false, &machine(4, None)).expect_err("too small");
        assert!(error.text.contains("--arena 0.04"), "{error}");
    }

    #[test]
    fn the_arena_must_fit_into_memory() {
        let error = plan(Some(1), "9", false, &machine(2, None)).expect_err("too large");
        assert!(error.text.contains("MemTotal") && error.text.contains("8.00 GB"), "{error}");
        let limited = Machine { memory_limit_bytes: Some(GIGABYTE), ..machine(2, None) };
        assert!(plan(Some(1), "2", false, &limited).expect_err("too large").text.contains("memory.max"));
        assert!(plan(Some(1), "0.96", false, &limited).expect_err("too large").text.contains("96 % of the memory"));
        let found = plan(Some(1), "7", false, &machine(2, None)).expect("fits");
        assert!(
            found.remarks[0].contains("88 % of the memory") && found.remarks[0].contains("at most 6.00"),
            "{:?}",
            found.remarks
        );
        assert!(plan(Some(1), "6", false, &machine(2, None)).expect("fits").remarks.is_empty());
    }
}
