//! What this process may use of the machine: CPUs (affinity mask, cgroup quota) and memory (machine, cgroup). Read once at start.

#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;

use std::path::{Path, PathBuf};

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// CPUs of the affinity mask, in order.
    pub cpus: Vec<usize>,
    /// CPUs' worth of time that the cgroup grants, rounded down, at least 1; `None` without a quota.
    pub cpu_quota: Option<usize>,
    /// `MemTotal` of the machine, bytes.
    pub memory_bytes: u64,
    /// `memory.max` (`memory.limit_in_bytes` in version 1) of the tightest cgroup, bytes; `None` without a limit.
    pub memory_limit_bytes: Option<u64>,
}

impl Machine {
    /// Reads the live values. What cannot be read is taken as no limit.
    pub fn read() -> Self {
        let read = |path: &Path| std::fs::read_to_string(path).unwrap_or_default();
        let own = read(Path::new("/proc/self/cgroup"));
        let quotas = cgroup_folders(&own, "cpu").into_iter().filter_map(|folder| {
            let version_1 = format!("{} {}", read(&folder.join("cpu.cfs_quota_us")), read(&folder.join("cpu.cfs_period_us")));
            parse_cpu_max(&read(&folder.join("cpu.max"))).or_else(|| parse_cpu_max(&version_1))
        });
        let limits = cgroup_folders(&own, "memory").into_iter().filter_map(|folder| {
            let of = |name: &str| read(&folder.join(name)).trim().parse().ok();
            of("memory.max").or_else(|| of("memory.limit_in_bytes"))
        });
        Self {
            cpus: allowed_cpus(),
            cpu_quota: quotas.min(),
            memory_bytes: parse_memory_total(&read(Path::new("/proc/meminfo"))).unwrap_or(u64::MAX),
            memory_limit_bytes: limits.min(),
        }
    }

    /// CPUs that may be kept busy: the affinity mask, and no more than the quota.
    pub fn cpus_allowed(&self) -> usize {
        self.cpus.len().min(self.cpu_quota.unwrap_or(usize::MAX)).max(1)
    }

    /// Bytes of memory that this process may have, and where that limit comes from.
    pub fn memory_allowed(&self) -> (u64, &'static str) {
        match self.memory_limit_bytes {
            Some(limit) if limit < self.memory_bytes => (limit, "memory.max (memory.limit_in_bytes) of the control group"),
            _ => (self.memory_bytes, "MemTotal of the machine"),
        }
    }
}

fn allowed_cpus() -> Vec<usize> {
    let Ok(set) = rustix::thread::sched_getaffinity(None) else { return vec![0] };
    let cpus: Vec<usize> = (0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect();
    if cpus.is_empty() { vec![0] } else { cpus }
}

/// The folders of our control groups for a controller, and of all above them: each may limit. A line is `0::/path` in version 2
/// and `4:cpu,cpuacct:/path` in version 1, which has a tree for each controller.
pub(crate) fn cgroup_folders(proc_self_cgroup: &str, controller: &str) -> Vec<PathBuf> {
    let mut folders = vec![PathBuf::from("/sys/fs/cgroup")];
    for line in proc_self_cgroup.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        // A path would lead out of the folder of all groups; no controller has such a name.
        if controllers.contains('/') {
            continue;
        }
        if controllers.is_empty() || controllers.split(',').any(|one| one == controller) {
            let root = Path::new("/sys/fs/cgroup").join(controllers);
            let own = root.join(path.trim_start_matches('/'));
            folders.extend(own.ancestors().take_while(|folder| folder.starts_with(&root)).map(Path::to_path_buf));
        }
    }
    folders
}

/// `max 100000` is no quota; `150000 100000` is one and a half CPUs.
fn parse_cpu_max(text: &str) -> Option<usize> {
    let mut parts = text.split_whitespace();
    let quota: u64 = parts.next()?.parse().ok()?;
    let period: u64 = parts.next()?.parse().ok()?;
    Some(usize::try_from(quota.checked_div(period)?).ok()?.max(1))
}

fn parse_memory_total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotas_round_down_to_at_least_one() {
        assert_eq!(parse_cpu_max("max 100000\n"), None);
        assert_eq!(parse_cpu_max("50000 100000\n"), Some(1));
        assert_eq!(parse_cpu_max("250000 100000\n"), Some(2));
        assert_eq!(parse_cpu_max("1 0"), None);
        assert_eq!(parse_cpu_max("-1\n 100000\n"), None);
        assert_eq!(parse_cpu_max("400000\n 100000\n"), Some(4));
        assert_eq!(parse_cpu_max(""), None);
    }

    #[test]
    fn every_group_above_is_asked() {
        let folders = cgroup_folders("0::/system.slice/a.service\n", "cpu");
        assert!(folders.contains(&PathBuf::from("/sys/fs/cgroup/system.slice/a.service")), "{folders:?}");
        assert!(folders.contains(&PathBuf::from("/sys/fs/cgroup")), "{folders:?}");
        let folders = cgroup_folders("9:name=systemd:/s\n4:memory:/a/b\n3:cpu,cpuacct:/c\n", "memory");
        let wanted = ["/sys/fs/cgroup", "/sys/fs/cgroup/memory/a/b", "/sys/fs/cgroup/memory/a", "/sys/fs/cgroup/memory"];
        assert_eq!(folders, wanted.map(PathBuf::from));
        assert_eq!(cgroup_folders("3:/etc,cpu:/a\n", "cpu").len(), 1, "nothing outside of the groups is asked");
        assert!(cgroup_folders("3:cpu,cpuacct:/c\n", "cpu").contains(&PathBuf::from("/sys/fs/cgroup/cpu,cpuacct/c")));
    }

    #[test]
    fn memory_total_is_read() {
        assert_eq!(parse_memory_total("MemTotal:       16384 kB\nMemFree: 1 kB\n"), Some(16 << 20));
        let machine = Machine { cpus: vec![0, 2, 3], cpu_quota: Some(2), memory_bytes: 100, memory_limit_bytes: Some(50) };
        assert_eq!((machine.cpus_allowed(), machine.memory_allowed().0), (2, 50));
        assert!(Machine::read().cpus_allowed() >= 1);
    }
}
