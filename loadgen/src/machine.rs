//! What this machine is, and pinning to its CPUs, and which commit runs there.

use core_affinity::CoreId;
use serde::{Deserialize, Serialize};

/// The commit that this was built from, as `build.rs` found it: 12 digits, with `-dirty` if tracked files differed from it;
/// `unknown` without git or outside of the repository.
pub const GIT_COMMIT: &str = env!("POSTANALYTICS_GIT");

/// The machine that a run was made on.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Machine {
    /// CPUs that this process may use.
    pub cpus: usize,
    /// Kernel release.
    pub kernel: String,
}

impl Machine {
    /// This machine.
    pub fn here() -> Self {
        Self {
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
        }
    }
}

/// CPUs that this process may run on.
pub fn allowed_cpus() -> Vec<usize> {
    core_affinity::get_core_ids().unwrap_or_default().into_iter().map(|core| core.id).collect()
}

/// Pins the calling thread. Threads it starts afterwards inherit that.
pub fn pin_this_thread(cpu: Option<usize>) -> Result<(), String> {
    match cpu {
        Some(cpu) if !core_affinity::set_for_current(CoreId { id: cpu }) => {
            Err(format!("cannot pin a thread to CPU {cpu}: is it still in this process's affinity mask?"))
        }
        _ => Ok(()),
    }
}
