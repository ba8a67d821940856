//! What this machine is, and pinning to its CPUs.

use core_affinity::CoreId;
use serde::{Deserialize, Serialize};
use std::process::{Command, Stdio};

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

/// The commit this was built from: what the build was told (`POSTANALYTICS_GIT`), or else the work tree that the binary lies
/// in; empty if it lies in none.
pub fn git_commit() -> String {
    if let Some(commit) = option_env!("POSTANALYTICS_GIT") {
        return commit.to_owned();
    }
    let folder = std::env::current_exe().ok().and_then(|file| file.parent().map(std::path::Path::to_owned));
    let Some(folder) = folder else { return String::new() };
    let output =
        Command::new("git").arg("-C").arg(folder).args(["rev-parse", "--short=12", "HEAD"]).stdin(Stdio::null()).output();
    match output {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        _ => String::new(),
    }
}
