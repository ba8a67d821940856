//! The state file: how far each log is settled, and this node's id. Replaced whole, so that it is never half written.

use super::log::LogState;
use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Longest state file.
const BYTES_MAX: u64 = 16 << 20;
/// Most logs that are kept, those that are not followed now included.
const LOGS_MAX: usize = 1024;

/// What is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct State {
    /// A UUID.
    pub(super) node: String,
    pub(super) logs: Vec<LogState>,
}

/// The state file of one running agent.
#[derive(Debug)]
pub(super) struct StateFile {
    path: PathBuf,
    pub(super) state: State,
    is_written: bool,
    /// Held as long as this agent runs.
    _lock: File,
}

/// Where the state is kept unless told: where systemd says (StateDirectory=), for root below /var/lib, else in the home folder.
pub(super) fn default_path() -> Result<PathBuf> {
    let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let folder = match variable("STATE_DIRECTORY") {
        Some(folder) => folder,
        None if rustix::process::geteuid().is_root() => PathBuf::from("/var/lib/postanalytics"),
        None => variable("XDG_STATE_HOME")
            .or_else(|| variable("HOME").map(|home| home.join(".local/state")))
            .context("there is no home folder to keep the state in: give --state FILE")?
            .join("postanalytics"),
    };
    Ok(folder.join("agent.json"))
}

fn random_uuid() -> Result<String> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| anyhow::anyhow!("the kernel gives no random numbers: {error}"))?;
    Ok(uuid::Builder::from_random_bytes(bytes).into_uuid().to_string())
}

impl StateFile {
    /// Reads it, or begins anew. No other agent may use it meanwhile.
    pub(super) fn open(path: &Path) -> Result<Self> {
        let remedy =
            || format!("cannot keep the state in {}: give --state FILE in a folder that can be written to", path.display());
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder).with_context(remedy)?;
        }
        let mut name = path.file_name().with_context(remedy)?.to_os_string();
        name.push(".lock");
        let lock = File::options().create(true).append(true).open(path.with_file_name(name)).with_context(remedy)?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            bail!("another agent uses {}: end that one, or give each a --state FILE of its own", path.display());
        }
        let state = match crate::config::read_small_file(path, BYTES_MAX) {
            Ok(text) => serde_json::from_str(&text).with_context(|| {
                format!(
                    "{} is no state of an agent: remove it to begin anew, at the end of the logs or with --from-start",
                    path.display()
                )
            })?,
            Err(_) if !path.exists() => State { node: random_uuid()?, logs: Vec::new() },
            Err(error) => bail!("{error}"),
        };
        let mut file = Self { path: path.to_path_buf(), state, is_written: false, _lock: lock };
        file.write().with_context(remedy)?;
        Ok(file)
    }

    pub(super) fn log(&self, path: &Path) -> Option<&LogState> {
        self.state.logs.iter().find(|log| log.path == path)
    }

    /// Keeps how far a log is settled.
    pub(super) fn put(&mut self, log: LogState) {
        let logs = &mut self.state.logs;
        match logs.iter_mut().find(|known| known.path == log.path) {
            Some(known) if known.files == log.files => {
                // Written with the next change: a file that is made after it changes the files.
                known.seen_us = log.seen_us;
                return;
            }
            Some(known) => *known = log,
            None => {
                // Some log that is followed no longer.
                if logs.len() >= LOGS_MAX {
                    logs.remove(0);
                }
                logs.push(log);
            }
        }
        self.is_written = false;
    }

    /// Writes it, if it changed.
    pub(super) fn write(&mut self) -> Result<()> {
        if self.is_written {
            return Ok(());
        }
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        serde_json::to_writer(&mut file, &self.state)?;
        file.write_all(b"\n")?;
        file.as_file().sync_data()?;
        file.persist(&self.path)?;
        self.is_written = true;
        Ok(())
    }
}
