//! What fuzzing drives of the kernel's files: see `tests/src/fuzz` of the workspace.

use super::{cgroup_folders, parse_cpu_max, parse_memory_total};
use std::path::Path;

/// `/proc/self/cgroup`, `cpu.max` and `/proc/meminfo`: nothing panics, what is read can be written so that it reads the same,
/// and no folder lies outside of those of control groups.
pub fn machine(bytes: &[u8]) {
    let text = &*String::from_utf8_lossy(bytes);
    if let Some(cpus) = parse_cpu_max(text) {
        assert!(cpus >= 1);
        if let Some(quota) = cpus.checked_mul(100_000) {
            assert_eq!(parse_cpu_max(&format!("{quota} 100000\n")), Some(cpus));
        }
    }
    if let Some(bytes) = parse_memory_total(text) {
        assert_eq!(bytes % 1024, 0);
        assert_eq!(parse_memory_total(&format!("MemFree: 1 kB\nMemTotal: {} kB\n{text}", bytes / 1024)), Some(bytes));
    }
    let all = Path::new("/sys/fs/cgroup");
    for controller in ["cpu", "memory"] {
        let folders = cgroup_folders(text, controller);
        assert_eq!(folders.first().map(AsRef::as_ref), Some(all));
        assert!(folders.iter().all(|folder| folder.starts_with(all)), "{folders:?}");
        assert!(folders.len() <= 1 + text.len(), "no more than the names in the text");
        let line = "7:cpu,memory:/a/b\n";
        assert_eq!(cgroup_folders(&format!("{line}{text}"), controller).len(), folders.len() + 3, "lines stand for themselves");
    }
}
