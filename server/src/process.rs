//! What this process uses: CPU time, memory, age.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

static STARTED: OnceLock<Instant> = OnceLock::new();

/// Notes the start of the process; the first call counts.
pub fn started() {
    STARTED.get_or_init(Instant::now);
}

/// Since [`started`].
pub fn uptime() -> Duration {
    STARTED.get_or_init(Instant::now).elapsed()
}

/// CPU time of the whole process, user and system.
pub fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.cast_unsigned(), time.tv_nsec as u32)
}

/// Resident memory of the process, bytes; 0 if the kernel does not tell.
pub fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split_whitespace().nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    pages * rustix::param::page_size() as u64
}
