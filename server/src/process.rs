//! What this process uses: CPU time, memory, age.

use std::fs::File;
use std::os::unix::fs::FileExt;
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

/// Keeps the calling thread on `cpus`, off those of the shards; empty: any. That it does not work is no reason not to start.
pub fn keep_to(cpus: &[usize], who: &str) {
    if cpus.is_empty() {
        return;
    }
    let mut set = rustix::thread::CpuSet::new();
    cpus.iter().for_each(|cpu| set.set(*cpu));
    if let Err(error) = rustix::thread::sched_setaffinity(None, &set) {
        tracing::warn!(%error, "{who} runs on any CPU: its affinity cannot be set");
    }
}

/// What a panic said.
pub fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no text")
}

/// CPU time of the whole process, user and system.
pub fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.cast_unsigned(), time.tv_nsec as u32)
}

/// Resident memory of the process, bytes; 0 if the kernel does not tell.
pub fn resident_bytes() -> u64 {
    ResidentMemory::new().bytes(0)
}

/// Resident memory of the process for those who may not allocate and ask often: read anew at most ten times a second.
#[derive(Debug)]
pub struct ResidentMemory {
    statm: Option<File>,
    bytes: u64,
    next_us: u64,
}

impl ResidentMemory {
    /// Nothing is read yet.
    pub fn new() -> Self {
        Self { statm: File::open("/proc/self/statm").ok(), bytes: 0, next_us: 0 }
    }

    /// Resident bytes at `now_us`, or a little before; 0 if the kernel does not tell.
    pub fn bytes(&mut self, now_us: u64) -> u64 {
        if now_us >= self.next_us {
            self.next_us = now_us + 100_000;
            self.bytes = self.read().unwrap_or(0) * rustix::param::page_size() as u64;
        }
        self.bytes
    }

    /// Pages, the second number of the file.
    fn read(&self) -> Option<u64> {
        let mut buffer = [0; 128];
        let count = self.statm.as_ref()?.read_at(&mut buffer, 0).ok()?;
        std::str::from_utf8(&buffer[..count]).ok()?.split_ascii_whitespace().nth(1)?.parse().ok()
    }
}

impl Default for ResidentMemory {
    fn default() -> Self {
        Self::new()
    }
}
