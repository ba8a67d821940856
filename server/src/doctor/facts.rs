//! What the doctor looks at: live values of this process and this machine, read once.
//!
//! Reading changes nothing that lasts: the self-test makes a ring and drops it, and the two listening sockets are opened as the
//! server opens them and closed at once (a client that connects in that moment is refused, as without a server). What cannot be
//! read is `None`, and judged so.

use crate::arena;
use crate::config::machine::{Machine, cgroup_folders};
use crate::config::values::Address;
use crate::config::{Config, ConfigError};
use crate::control::sockets;
use crate::logging;
use crate::ring::{self, RingFeatures};
use rustix::process::{Resource, getrlimit};
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// See the module.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Release of the kernel.
    pub kernel: String,
    /// The self-test of the ring: features, or the reason with its remedy.
    pub ring: Result<RingFeatures, String>,
    /// `kernel.io_uring_disabled`; kernels before 6.6 do not have it.
    pub io_uring_disabled: Option<u32>,
    /// `Seccomp` of /proc/self/status: 0 none, 2 a filter.
    pub seccomp_mode: Option<u32>,
    /// The kind of container this runs in.
    pub container: Option<String>,
    /// CPUs and memory allowed.
    pub machine: Machine,
    /// `MemAvailable`, bytes.
    pub memory_available_bytes: Option<u64>,
    /// What the tightest control group has left of its limit, page cache counted as left, bytes.
    pub group_room_bytes: Option<u64>,
    /// Mode of transparent huge pages: `always`, `madvise` or `never`.
    pub transparent_huge_pages: Option<String>,
    /// Reserved huge pages of 2 MiB, those in use included.
    pub huge_pages_total: u64,
    /// Those that nobody uses.
    pub huge_pages_free: u64,
    /// Hard limit on locked memory, bytes; `None`: no limit. The server raises its soft limit to it.
    pub memlock_max_bytes: Option<u64>,
    /// Soft limit on mapped addresses, bytes; `None`: no limit. The server leaves it as it is.
    pub address_space_max_bytes: Option<u64>,
    /// Hard limit on open files; `None`: no limit. The server raises its soft limit to it.
    pub open_files_max: Option<u64>,
    /// `net.core.somaxconn`.
    pub backlog_max: Option<u32>,
    /// Congestion control of new connections.
    pub congestion_control: Option<String>,
    /// Clock source of the kernel.
    pub clock_source: Option<String>,
    /// Whether the addresses can be listened to; empty without a configuration.
    pub ports: Vec<PortFact>,
    /// Why the log file cannot be written, if there is one and it cannot.
    pub log_file_error: Option<String>,
    /// The same of the file of events.
    pub events_error: Option<String>,
    /// Why the filter of the log is none, with the remedy.
    pub log_filter_error: Option<String>,
}

/// One address that the server would listen to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortFact {
    /// `--listen` or `--status`.
    pub flag: &'static str,
    /// The address.
    pub address: Address,
    /// The address bound, or why not with the remedy.
    pub bound: Result<SocketAddr, String>,
    /// Who listens on that port, as far as this user may see; empty if nobody does.
    pub holders: Vec<String>,
}

impl Facts {
    /// Reads everything. Without a configuration what depends on it is left out.
    pub fn read(config: Option<&Config>) -> Self {
        let error_of = |path: fn(&Config) -> Option<&Path>| config.and_then(path).and_then(file_error);
        Self {
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            ring: ring::probe().map_err(|error| error.to_string()),
            io_uring_disabled: number("/proc/sys/kernel/io_uring_disabled"),
            seccomp_mode: text("/proc/self/status").and_then(|status| field(&status, "Seccomp:")),
            container: container(),
            machine: Machine::read(),
            memory_available_bytes: text("/proc/meminfo")
                .and_then(|text| field::<u64>(&text, "MemAvailable:"))
                .map(|kib| kib << 10),
            group_room_bytes: group_room(),
            transparent_huge_pages: text("/sys/kernel/mm/transparent_hugepage/enabled").as_deref().and_then(chosen),
            huge_pages_total: number("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages").unwrap_or(0),
            huge_pages_free: number("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages").unwrap_or(0),
            memlock_max_bytes: getrlimit(Resource::Memlock).maximum,
            address_space_max_bytes: getrlimit(Resource::As).current,
            open_files_max: getrlimit(Resource::Nofile).maximum,
            backlog_max: number("/proc/sys/net/core/somaxconn"),
            congestion_control: text("/proc/sys/net/ipv4/tcp_congestion_control"),
            clock_source: text("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
            ports: config.map(ports).unwrap_or_default(),
            log_file_error: error_of(|config| config.log_file.as_deref()),
            events_error: error_of(|config| config.events.as_deref()),
            log_filter_error: logging::check_filter().err().map(|error| error.to_string()),
        }
    }

    /// Bytes of reserved huge pages that the arena could take.
    pub fn huge_bytes_free(&self) -> u64 {
        self.huge_pages_free.saturating_mul(arena::SLAB_BYTES)
    }
}

fn text(path: impl AsRef<Path>) -> Option<String> {
    std::fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

fn number<T: std::str::FromStr>(path: impl AsRef<Path>) -> Option<T> {
    text(path)?.parse().ok()
}

/// The number after a name at the begin of a line, as in /proc/meminfo and /proc/self/status.
fn field<T: std::str::FromStr>(text: &str, name: &str) -> Option<T> {
    text.lines().find_map(|line| line.strip_prefix(name))?.split_whitespace().next()?.parse().ok()
}

/// The word in brackets: `always [madvise] never`.
fn chosen(text: &str) -> Option<String> {
    Some(text.split_once('[')?.1.split_once(']')?.0.to_owned())
}

fn container() -> Option<String> {
    if Path::new("/.dockerenv").exists() {
        return Some("docker".to_owned());
    }
    if Path::new("/run/.containerenv").exists() {
        return Some("podman".to_owned());
    }
    if std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() {
        return Some("kubernetes".to_owned());
    }
    std::env::var("container").ok().filter(|kind| !kind.is_empty())
}

/// Limit less use, of the control group that has least; what is page cache can be dropped and counts as left.
fn group_room() -> Option<u64> {
    let own = text("/proc/self/cgroup").unwrap_or_default();
    cgroup_folders(&own, "memory").iter().filter_map(|folder| group_room_of(folder)).min()
}

fn group_room_of(folder: &Path) -> Option<u64> {
    let of = |new: &str, old: &str| number::<u64>(folder.join(new)).or_else(|| number(folder.join(old)));
    let limit = of("memory.max", "memory.limit_in_bytes")?;
    let used = of("memory.current", "memory.usage_in_bytes")?;
    let statistics = text(folder.join("memory.stat")).unwrap_or_default();
    let cache: u64 = ["active_file ", "inactive_file "].iter().filter_map(|name| field::<u64>(&statistics, name)).sum();
    Some(limit.saturating_sub(used.saturating_sub(cache)))
}

/// Opens both addresses as the server does, both at a time, so that one cannot take the other's.
fn ports(config: &Config) -> Vec<PortFact> {
    let wanted = [("--listen", Some(&config.listen)), ("--status", config.status.as_ref())];
    let wanted: Vec<_> = wanted.into_iter().filter_map(|(flag, address)| Some((flag, address?.clone()))).collect();
    let opened: Vec<_> = wanted.iter().map(|(_, address)| sockets::listen(address)).collect();
    let bound: Vec<Result<SocketAddr, ConfigError>> =
        opened.iter().map(|opened| opened.as_ref().map(|(_, bound)| *bound).map_err(Clone::clone)).collect();
    // Closed before anybody is looked for: our own socket is not a holder.
    drop(opened);
    let fact = |((flag, address), bound): ((&'static str, Address), Result<SocketAddr, ConfigError>)| {
        // An address that this machine does not have, or a port that needs a capability, is held by nobody.
        let is_taken = bound.as_ref().is_err_and(|error| error.text.contains(sockets::IN_USE));
        let mut holders = if is_taken { holders_of(address.port) } else { Vec::new() };
        if is_taken && holders.is_empty() && config.status.as_ref().is_some_and(|status| status.port == config.listen.port) {
            holders.push("--listen of this very configuration".to_owned());
        }
        PortFact { flag, address, bound: bound.map_err(|error| error.text), holders }
    };
    wanted.into_iter().zip(bound).map(fact).collect()
}

/// The processes that listen on a port, by /proc: `nginx (pid 812)`. Those of other users only root may see.
fn holders_of(port: u16) -> Vec<String> {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"].map(|path| text(path).unwrap_or_default());
    let sockets: BTreeSet<(u64, u32)> = tables.iter().flat_map(|table| listeners(table, port)).collect();
    let links: Vec<PathBuf> = sockets.iter().map(|(inode, _)| PathBuf::from(format!("socket:[{inode}]"))).collect();
    let mut holders = BTreeSet::new();
    for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(id) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let mut descriptors = std::fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten();
        if descriptors.any(|descriptor| std::fs::read_link(descriptor.path()).is_ok_and(|link| links.contains(&link))) {
            holders.insert(format!("{} (pid {id})", text(process.path().join("comm")).unwrap_or_default()));
        }
    }
    if holders.is_empty() {
        holders.extend(
            sockets.iter().map(|(_, user)| format!("a process of user id {user}, which only that user and root may see")),
        );
    }
    holders.into_iter().collect()
}

/// Inode and user id of the sockets in state LISTEN (0A) on a port, in the text of /proc/net/tcp or tcp6.
fn listeners(table: &str, port: u16) -> Vec<(u64, u32)> {
    let suffix = format!(":{port:04X}");
    let of_line = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let listens = words.get(1)?.ends_with(&suffix) && *words.get(3)? == "0A";
        listens.then_some((words.get(9)?.parse().ok()?, words.get(7)?.parse().ok()?))
    };
    table.lines().skip(1).filter_map(of_line).collect()
}

/// As far as can be told without making the file.
fn file_error(path: &Path) -> Option<String> {
    use rustix::fs::{Access, access};
    let checked = if path.exists() {
        if path.is_dir() {
            return Some(format!("{} is a folder", path.display()));
        }
        access(path, Access::WRITE_OK)
    } else {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        access(folder, Access::WRITE_OK | Access::EXEC_OK)
    };
    checked.err().map(|error| format!("{} cannot be written: {}", path.display(), std::io::Error::from(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_the_kernel_are_read() {
        assert_eq!(chosen("always [madvise] never").as_deref(), Some("madvise"));
        assert_eq!(chosen("always"), None);
        assert_eq!(field::<u32>("Name:\tx\nSeccomp:\t2\nSeccomp_filters:\t1\n", "Seccomp:"), Some(2));
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
                     0: 0100007F:0CF1 00000000:0000 0A 00000000:00000000 00:00000000 00000000   998        0 4711 1 0 100 0 0 10 0\n\
                     1: 0100007F:0CF1 0100007F:9999 01 00000000:00000000 00:00000000 00000000   998        0 4712 1 0 100 0 0 10 0\n\
                     2: 0100007F:2329 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4713 1 0 100 0 0 10 0\n";
        assert_eq!(listeners(table, 3313), [(4711, 998)]);
        assert_eq!(listeners(table, 9001), [(4713, 0)]);
        assert!(listeners(table, 80).is_empty() && listeners("", 80).is_empty());
    }

    #[test]
    fn the_room_of_a_group_is_limit_less_use_without_cache() {
        let folder = tempfile::tempdir().expect("a folder");
        let put = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).expect("written");
        put("memory.max", "max\n");
        put("memory.current", "600\n");
        assert_eq!(group_room_of(folder.path()), None);
        put("memory.max", "1000\n");
        put("memory.stat", "anon 400\ninactive_file 150\nactive_file 50\n");
        assert_eq!(group_room_of(folder.path()), Some(600));
    }

    #[test]
    fn a_listener_of_this_process_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let holders = holders_of(listener.local_addr().expect("an address").port());
        assert!(holders.iter().any(|holder| holder.contains(&format!("(pid {})", std::process::id()))), "{holders:?}");
    }

    #[test]
    fn a_holder_is_named_only_where_one_is_the_cause() {
        use crate::config::flags::ServeFlags;
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("an address").port();
        let flags = |listen: String| ServeFlags {
            listen: Some(listen),
            status: Some("none".to_owned()),
            env_file: Some("/dev/null".to_owned()),
            node_yaml: Some("/dev/null".to_owned()),
            ..ServeFlags::default()
        };
        let of = |listen: String| ports(&Config::resolve(&flags(listen), &|_| None).expect("a good configuration")).remove(0);
        let taken = of(format!("127.0.0.1:{port}"));
        assert!(taken.bound.is_err() && !taken.holders.is_empty(), "{taken:?}");
        // An address for documentation, which no machine has.
        let elsewhere = of(format!("203.0.113.1:{port}"));
        assert!(elsewhere.bound.is_err() && elsewhere.holders.is_empty(), "{elsewhere:?}");
    }

    #[test]
    fn a_log_file_that_cannot_be_written_is_found_before_it_is_made() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("server.log");
        assert_eq!((file_error(&path), path.exists()), (None, false));
        assert!(file_error(&folder.path().join("missing/server.log")).expect("no folder").contains("missing/server.log"));
        assert!(file_error(folder.path()).expect("a folder").contains("is a folder"));
    }
}
