//! Finds the peers, or fetches Debian's packages of them into a folder of the build, as any user: nothing is installed, no
//! service is started. `apt-get --simulate` names the packages that are missing, `apt-get download` fetches them, `dpkg -x`
//! unpacks them.

use anyhow::{Context, Result, bail, ensure};
use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const PACKAGES: [&str; 2] = ["tarantool", "redis-server"];

/// Where the peers' programs are.
#[derive(Clone, Debug, Default)]
pub struct Programs {
    tarantool: Option<PathBuf>,
    redis: Option<PathBuf>,
    /// Where fetched packages were unpacked.
    unpacked: Option<PathBuf>,
}

impl Programs {
    /// Finds what is there.
    pub fn find() -> Self {
        let unpacked = cache().ok().filter(|folder| folder.is_dir());
        let named = |name: &str| find(name, unpacked.as_deref());
        Self { tarantool: named("tarantool"), redis: named("redis-server"), unpacked }
    }

    /// Finds the peers that are wanted, and fetches what is missing if that is wanted too.
    pub fn find_or_fetch(fetch_missing: bool) -> Result<Self> {
        let found = Self::find();
        if found.tarantool.is_some() && found.redis.is_some() || !fetch_missing {
            return Ok(found);
        }
        eprintln!("fetching Debian's packages {PACKAGES:?} …");
        fetch().with_context(|| {
            format!("cannot fetch {PACKAGES:?}; install them (apt-get install {}), or run with --no-install", PACKAGES.join(" "))
        })?;
        Ok(Self::find())
    }

    /// Tarantool's program.
    pub fn tarantool(&self) -> Result<&Path> {
        self.tarantool.as_deref().context("tarantool is not here; install the Debian package tarantool")
    }

    /// Redis' program.
    pub fn redis(&self) -> Result<&Path> {
        self.redis.as_deref().context("redis-server is not here; install the Debian package redis-server")
    }

    /// Whether both are here.
    pub const fn are_here(&self) -> bool {
        self.tarantool.is_some() && self.redis.is_some()
    }

    /// Lets a command find the libraries that were fetched.
    pub fn environment(&self, command: &mut Command) {
        if let Some(folder) = &self.unpacked {
            let libraries = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(|path| folder.join(path));
            if let Ok(paths) = env::join_paths(libraries) {
                command.env("LD_LIBRARY_PATH", paths);
            }
        }
    }

    /// Tarantool's version.
    pub fn tarantool_version(&self) -> Result<String> {
        let text = self.version_line(self.tarantool()?)?;
        Ok(text.split_whitespace().nth(1).and_then(|word| word.split('-').next()).unwrap_or(&text).to_owned())
    }

    /// Redis' version.
    pub fn redis_version(&self) -> Result<String> {
        let text = self.version_line(self.redis()?)?;
        Ok(text.split_whitespace().find_map(|word| word.strip_prefix("v=")).unwrap_or(&text).to_owned())
    }

    fn version_line(&self, program: &Path) -> Result<String> {
        let mut command = Command::new(program);
        command.arg("--version").stdin(Stdio::null());
        self.environment(&mut command);
        let output = command.output().with_context(|| format!("cannot run {}", program.display()))?;
        Ok(String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned())
    }
}

fn find(name: &str, unpacked: Option<&Path>) -> Option<PathBuf> {
    let paths = env::var_os("PATH").unwrap_or_else(|| OsString::from("/usr/bin:/bin"));
    let folders = env::split_paths(&paths).chain([PathBuf::from("/usr/bin")]);
    let folders = folders.chain(unpacked.map(|folder| folder.join("usr/bin")));
    folders.map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// Beside the build's profiles: target/peers.
fn cache() -> Result<PathBuf> {
    cache_of(&env::current_exe()?).context("this program lies in no build folder")
}

/// Programs lie in target/PROFILE, tests and benches in target/PROFILE/deps.
fn cache_of(program: &Path) -> Option<PathBuf> {
    let folder = program.parent()?;
    let profile = if folder.ends_with("deps") { folder.parent()? } else { folder };
    Some(profile.parent()?.join("peers"))
}

fn fetch() -> Result<()> {
    let folder = cache()?;
    fs::create_dir_all(&folder)?;
    let mut names = missing()?;
    if names.is_empty() {
        // Lists of packages that were never fetched; only root may.
        let _ = Command::new("apt-get").args(["update", "-q"]).stdin(Stdio::null()).stdout(Stdio::null()).status();
        names = missing()?;
    }
    ensure!(!names.is_empty(), "apt-get knows no package of these names; run `apt-get update`");
    let status = Command::new("apt-get").arg("download").args(&names).current_dir(&folder).stdin(Stdio::null()).status()?;
    ensure!(status.success(), "`apt-get download {}` failed ({status})", names.join(" "));
    for entry in fs::read_dir(&folder)? {
        let file = entry?.path();
        if file.extension().is_some_and(|extension| extension == "deb") {
            let status = Command::new("dpkg").arg("-x").arg(&file).arg(&folder).stdin(Stdio::null()).status()?;
            ensure!(status.success(), "`dpkg -x {}` failed ({status})", file.display());
            fs::remove_file(&file)?;
        }
    }
    Ok(())
}

/// The packages that installing the peers would install.
fn missing() -> Result<Vec<String>> {
    let mut command = Command::new("apt-get");
    command.args(["--simulate", "--no-install-recommends", "install"]).args(PACKAGES).stdin(Stdio::null());
    let output = match command.env("LC_ALL", "C").output() {
        Ok(output) => output,
        Err(error) => bail!("there is no apt-get here ({error}): this bench fetches on Debian and its kin only"),
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let names = text.lines().filter_map(|line| line.strip_prefix("Inst ")?.split_whitespace().next());
    Ok(names.map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_and_tests_of_a_build_have_one_folder() {
        for program in ["/build/release/peers", "/build/debug/deps/peers-1f", "/build/debug/peers"] {
            assert_eq!(cache_of(Path::new(program)), Some(PathBuf::from("/build/peers")), "{program}");
        }
        assert_eq!(cache_of(Path::new("/peers")), None);
    }
}
