//! A server's process: started on its CPU, watched, stopped. Nothing here outlives the program: what is dropped is killed.
//!
//! **Congestion control on both sides.** Accepted sockets take it from the listener. A peer's listener cannot be configured, so
//! its descriptor is duplicated into this process (`pidfd_getfd`, allowed for one's own children) and set there. No setting of
//! the machine changes. What an accepted socket really has is read back the same way.

use anyhow::{Context, Result, bail};
use postanalytics_loadgen::machine::pin_this_thread;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, Signal, kill_process, pidfd_getfd, pidfd_open};
use socket2::SockRef;
use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const START_TIMEOUT: Duration = Duration::from_secs(60);
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// States of a socket in /proc/net/tcp.
const TCP_ESTABLISHED: &str = "01";
const TCP_LISTEN: &str = "0A";

/// A running server.
#[derive(Debug)]
pub struct ServerProcess {
    child: Child,
    name: &'static str,
}

/// What a socket of a server is set to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketSettings {
    /// Congestion control.
    pub congestion: String,
    /// Whether TCP_NODELAY is set.
    pub nodelay: bool,
}

impl ServerProcess {
    /// Starts a command pinned to a CPU and waits until its port takes connections.
    pub fn start(name: &'static str, command: &mut Command, cpu: usize, ready: SocketAddr) -> Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::null());
        // A process inherits the pinning of the thread that starts it: a short-lived pinned thread does.
        let child = std::thread::scope(|scope| {
            let starter = scope.spawn(|| {
                pin_this_thread(Some(cpu)).map_err(anyhow::Error::msg)?;
                command.spawn().with_context(|| format!("cannot start {name} ({:?})", command.get_program()))
            });
            starter.join().map_err(|_| anyhow::anyhow!("starting {name} panicked; this is a defect"))?
        })?;
        let mut server = Self { child, name };
        let start = Instant::now();
        while TcpStream::connect_timeout(&ready, Duration::from_millis(200)).is_err() {
            if let Some(ended) = server.child.try_wait()? {
                bail!("{name} ended at once ({ended}); the log in its folder says why");
            }
            if start.elapsed() > START_TIMEOUT {
                bail!("{name} does not take connections at {ready} within {} s", START_TIMEOUT.as_secs());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// CPU time of all its threads, user and system, ns.
    pub fn cpu_ns(&self) -> Result<u64> {
        let mut total = 0;
        for task in fs::read_dir(format!("/proc/{}/task", self.id())).with_context(|| format!("{} has ended", self.name))? {
            // A thread may end between the listing and the reading; what it used is lost then, and it is little.
            let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
            total += text.split_whitespace().next().and_then(|run| run.parse::<u64>().ok()).unwrap_or(0);
        }
        Ok(total)
    }

    /// Resident memory, bytes.
    pub fn resident_bytes(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS in /proc")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
    }

    /// Makes every socket that the listener at `port` accepts from now on use this congestion control.
    pub fn set_congestion(&self, port: u16, name: &str) -> Result<()> {
        let listener = self.socket(port, TCP_LISTEN)?;
        SockRef::from(&listener).set_tcp_congestion(name.as_bytes())?;
        Ok(())
    }

    /// The settings of a socket accepted at `port`.
    pub fn accepted(&self, port: u16) -> Result<SocketSettings> {
        let socket = self.socket(port, TCP_ESTABLISHED)?;
        let socket = SockRef::from(&socket);
        let name = socket.tcp_congestion()?;
        let congestion = String::from_utf8_lossy(&name).trim_end_matches('\0').to_owned();
        Ok(SocketSettings { congestion, nodelay: socket.tcp_nodelay()? })
    }

    /// A duplicate of one of its sockets, by local port and state.
    fn socket(&self, port: u16, state: &str) -> Result<OwnedFd> {
        let table = fs::read_to_string("/proc/net/tcp")?;
        let local = format!(":{port:04X}");
        let matching = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let matching = matching.filter(|columns| columns.len() > 9 && columns[1].ends_with(&local) && columns[3] == state);
        let links: Vec<String> = matching.map(|columns| format!("socket:[{}]", columns[9])).collect();
        for entry in fs::read_dir(format!("/proc/{}/fd", self.id()))? {
            let path = entry?.path();
            let is_it = |link: std::path::PathBuf| links.iter().any(|wanted| link.as_os_str() == wanted.as_str());
            if fs::read_link(&path).is_ok_and(is_it) {
                let number = path.file_name().and_then(|name| name.to_str()).context("a descriptor without a number")?.parse()?;
                let process = pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty())?;
                let socket = pidfd_getfd(&process, number, PidfdGetfdFlags::empty());
                return socket.context("pidfd_getfd is refused here (a sandbox?)");
            }
        }
        bail!("{} has no such socket at port {port}", self.name)
    }

    /// SIGTERM, and SIGKILL if that is not enough.
    pub fn stop(mut self) -> Result<()> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        let start = Instant::now();
        while start.elapsed() < STOP_TIMEOUT {
            if self.child.try_wait()?.is_some() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        // Dropping kills it.
        Ok(())
    }
}

impl Drop for ServerProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A loopback address whose port was free a moment ago.
pub fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0").context("no free port on 127.0.0.1")?.local_addr()?)
}
