//! From facts and configuration to findings. Pure: nothing is read here, so every judgement can be tested from given facts.

use super::facts::{Facts, PortFact};
use super::{Finding, Judgement};
use crate::arena;
use crate::config::plan::{self, Plan};
use crate::config::values::GIGABYTE;
use crate::config::{Config, ConfigError, Source, env_file};
use crate::control::sockets::BACKLOG;
use crate::ring::UringConfig;
use crate::ring::probe::{KERNEL_MIN, is_old};
use crate::serve::{connections_of, descriptors_beside, enough_locked_memory};

/// Addresses mapped at the start beside arena and keys, measured as the least `ulimit -v` with which a server of one and of four shards
/// starts: the program, stacks, rings, and 64 MiB that glibc's allocator sets apart for a thread.
const ADDRESSES_BYTES: u64 = 184 << 20;
const ADDRESSES_PER_SHARD_BYTES: u64 = 106 << 20;
/// What a server that runs maps beyond: as much was mapped at most, without a limit, while it started.
const ADDRESSES_TO_RUN_BYTES: u64 = 256 << 20;

/// Judges everything. Without a good configuration its error is one of the findings, and what hangs on it is left out.
pub fn findings(config: Result<&Config, &ConfigError>, facts: &Facts) -> Vec<Finding> {
    let mut all = Vec::new();
    match config {
        Ok(config) => {
            all.extend([configuration(config), env_file(config), access(config)]);
            all.push(detectors(config));
            all.extend([log_file(config, facts), events(config, facts)].into_iter().flatten());
        }
        Err(error) => all.push(not_fine("configuration", error.text.clone(), "")),
    }
    all.extend(facts.log_filter_error.as_ref().map(|error| not_fine("log filter", error.clone(), "")));
    all.extend([kernel(facts), io_uring(facts)]);
    all.extend(io_uring_disabled(facts));
    all.extend(seccomp(facts));
    all.push(cpus(facts));
    let plan = config.ok().map(|config| (config, Plan::make(config, &facts.machine, arena::SLAB_BYTES, arena::SLABS_MIN)));
    let mut shards = 1;
    if let Some((config, plan)) = &plan {
        all.push(shards_planned(config, plan));
        shards = plan.as_ref().map_or(1, Plan::shard_count);
        all.push(memory(config, facts, shards));
        all.push(address_space(config, facts, shards));
        all.push(huge_pages(config, facts));
    }
    all.push(locked_memory(facts));
    if let Ok(config) = config {
        all.extend([open_files(config, facts, shards), ring_size(config, facts, shards)]);
    }
    all.extend(facts.ports.iter().map(port));
    all.extend([backlog(facts), congestion_control(facts), clock_source(facts)]);
    all
}

fn detectors(config: &Config) -> Finding {
    if config.detection.is_some() {
        return fine("detectors", "run, by --config");
    }
    let remedy = "if it is to detect, give --config FILE; an empty file means all defaults";
    warning("detectors", "none runs, and nothing is counted for top lists and timeline: there is no --config", remedy)
}

fn finding(check: &str, judgement: Judgement, value: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding { check: check.to_owned(), judgement, value: value.into(), remedy: remedy.into() }
}

fn fine(check: &str, value: impl Into<String>) -> Finding {
    finding(check, Judgement::Fine, value, "")
}

fn warning(check: &str, value: impl Into<String>, remedy: impl Into<String>) -> Finding {
    finding(check, Judgement::Warning, value, remedy)
}

fn not_fine(check: &str, value: impl Into<String>, remedy: impl Into<String>) -> Finding {
    finding(check, Judgement::NotFine, value, remedy)
}

fn gigabytes(bytes: u64) -> String {
    format!("{:.2} GB", bytes as f64 / GIGABYTE as f64)
}

/// Whether somebody asked for this value; a default gives way more easily.
fn is_stated(config: &Config, key: &str) -> bool {
    config.settings.iter().any(|setting| setting.key == key && setting.source != Source::Default)
}

fn configuration(config: &Config) -> Finding {
    let stated: Vec<String> = config
        .settings
        .iter()
        .filter(|setting| setting.source != Source::Default)
        .map(|setting| format!("{}={} ({})", setting.key, setting.value, setting.source))
        .collect();
    let stated = if stated.is_empty() { "all defaults".to_owned() } else { stated.join(", ") };
    fine("configuration", stated)
}

fn env_file(config: &Config) -> Finding {
    const CHECK: &str = "env file";
    let Some(path) = &config.env_file else {
        return fine(CHECK, format!("none found; looked for {}", env_file::DEFAULT_PATHS.join(", ")));
    };
    let path = path.display();
    if !config.env_file_lines_skipped.is_empty() {
        let lines: Vec<String> = config.env_file_lines_skipped.iter().map(usize::to_string).collect();
        let text = format!("{path}, lines {} are no KEY=value and are skipped", lines.join(", "));
        return warning(CHECK, text, "write KEY=value, with the quotes closed on the line; leave what is meant for others");
    }
    let unknown = match config.env_file_unknown_keys.as_slice() {
        [] => String::new(),
        keys => format!(", of which {} mean nothing here", keys.join(" ")),
    };
    fine(CHECK, format!("{path}{unknown}"))
}

fn access(config: &Config) -> Finding {
    const CHECK: &str = "access";
    let host = config.listen.host.as_str();
    let is_local = matches!(host, "localhost" | "::1") || host.starts_with("127.");
    let networks: Vec<String> = config.access.networks.iter().map(ToString::to_string).collect();
    match (config.access.insecure, is_local, networks.is_empty()) {
        (true, _, _) => warning(
            CHECK,
            format!("insecure: everybody who can reach {} may send records and see verdicts", config.listen),
            "name the networks of the filtering nodes with --allow (ALLOW) instead of --insecure",
        ),
        (false, false, true) => warning(
            CHECK,
            format!("{} can be reached from outside, but only loopback is let in", config.listen),
            "name the networks of the filtering nodes: --allow 10.0.0.0/8 (ALLOW)",
        ),
        (false, true, false) => warning(
            CHECK,
            format!("{} are let in, but {} can only be reached from this machine", networks.join(", "), config.listen),
            "listen on an address of the network: --listen 0.0.0.0:3313 (HOST, PORT)",
        ),
        (false, _, true) => fine(CHECK, "loopback only"),
        (false, _, false) => fine(CHECK, format!("loopback and {}", networks.join(", "))),
    }
}

fn log_file(config: &Config, facts: &Facts) -> Option<Finding> {
    let path = config.log_file.as_ref()?;
    Some(match &facts.log_file_error {
        Some(error) => not_fine("log file", error.clone(), "give a --log-file that this user may write to"),
        None => fine("log file", path.display().to_string()),
    })
}

fn events(config: &Config, facts: &Facts) -> Option<Finding> {
    let path = config.events.as_ref()?;
    Some(match &facts.events_error {
        Some(error) => not_fine("events", error.clone(), "give --events a file that this user may write to"),
        None => fine("events", path.display().to_string()),
    })
}

fn kernel(facts: &Facts) -> Finding {
    let (major, minor) = KERNEL_MIN;
    let value = format!("Linux {}; {major}.{minor} or later is needed", facts.kernel);
    if is_old(&facts.kernel) {
        return not_fine("kernel", value, "a newer kernel, as Debian 12, Ubuntu 24.04, Amazon Linux 2023 and RHEL 10 have");
    }
    fine("kernel", value)
}

fn io_uring(facts: &Facts) -> Finding {
    match &facts.ring {
        Ok(features) => {
            let names = features.names.join(", ");
            fine("io_uring", format!("the self-test passed: receive, starve, receive again, send, cancel; features {names}"))
        }
        // The error has its remedy in itself.
        Err(error) => not_fine("io_uring", error.clone(), ""),
    }
}

fn io_uring_disabled(facts: &Facts) -> Option<Finding> {
    const CHECK: &str = "kernel.io_uring_disabled";
    let remedy = "`sysctl -w kernel.io_uring_disabled=0`, and a file in /etc/sysctl.d to keep it";
    Some(match (facts.io_uring_disabled?, facts.ring.is_ok()) {
        (0, _) => fine(CHECK, "0: everybody may use io_uring"),
        (value, true) => warning(CHECK, format!("{value}: this user may use io_uring, others may not"), remedy),
        (value, false) => not_fine(CHECK, format!("{value}: io_uring is switched off for this user"), remedy),
    })
}

/// A filter alone is nothing bad, and where io_uring works it lets it through.
fn seccomp(facts: &Facts) -> Option<Finding> {
    let place = facts.container.as_ref().map_or_else(String::new, |kind| format!(", in a container ({kind})"));
    match facts.seccomp_mode {
        Some(2) if facts.ring.is_err() => Some(warning(
            "seccomp",
            format!("a filter is active{place}; it may be what forbids io_uring"),
            "allow io_uring_setup, io_uring_enter and io_uring_register in the container's seccomp profile \
             (Docker: --security-opt seccomp=PROFILE.json; Kubernetes: securityContext.seccompProfile)",
        )),
        Some(2) => Some(fine("seccomp", format!("a filter is active{place}, and it lets io_uring through"))),
        _ if facts.container.is_some() => Some(fine("seccomp", format!("no filter{place}"))),
        _ => None,
    }
}

fn cpus(facts: &Facts) -> Finding {
    let machine = &facts.machine;
    let quota = machine.cpu_quota.map_or_else(|| "no quota".to_owned(), |quota| format!("a quota of {quota}"));
    let value = format!("{} allowed: {:?} in the affinity mask, {quota}", machine.cpus_allowed(), machine.cpus);
    if machine.cpus_allowed() < 2 {
        return warning("CPUs", value, "two or more, so that the shards do not share with the control plane and the kernel");
    }
    fine("CPUs", value)
}

fn shards_planned(config: &Config, plan: &Result<Plan, ConfigError>) -> Finding {
    let plan = match plan {
        Ok(plan) => plan,
        Err(error) => return not_fine("plan", error.text.clone(), ""),
    };
    let shards = plan.shard_count();
    let plural = if shards == 1 { "" } else { "s" };
    let value = format!("{shards} shard{plural} of {} MiB, on CPUs {}", plan.arena_bytes_per_shard >> 20, cpu_list(plan));
    match plan.remarks.as_slice() {
        [] => fine("plan", value),
        remarks if config.shards.is_some_and(|wanted| wanted > shards) => not_fine("plan", value, remarks.join("; ")),
        remarks => warning("plan", value, remarks.join("; ")),
    }
}

fn cpu_list(plan: &Plan) -> String {
    let cpus: Vec<String> = plan.cpus.iter().flatten().map(usize::to_string).collect();
    if cpus.is_empty() { "of the kernel's choice".to_owned() } else { cpus.join(", ") }
}

/// Whether the arena and the detectors' keys, which are filled at start, find memory. Reserved huge pages are not part of what is available.
fn memory(config: &Config, facts: &Facts, shards: u32) -> Finding {
    const CHECK: &str = "memory";
    let buffers = u64::from(shards) * u64::from(config.receive_buffers) * u64::from(config.receive_buffer_bytes);
    let from_huge = if facts.huge_bytes_free() >= config.arena_bytes { config.arena_bytes } else { 0 };
    let keys = plan::keys_bytes(config, shards);
    let needed = config.arena_bytes - from_huge + keys + buffers;
    let (available, what) = match (facts.memory_available_bytes, facts.group_room_bytes) {
        (Some(available), Some(room)) if room < available => (room, "left in the control group"),
        (Some(available), _) => (available, "available (MemAvailable)"),
        (None, Some(room)) => (room, "left in the control group"),
        (None, None) => return warning(CHECK, "what is available cannot be read", "mount /proc"),
    };
    let value = format!(
        "the arena of {}{} and receive buffers of {} MiB need {} of the {} {what}",
        gigabytes(config.arena_bytes),
        if keys > 0 { format!(", the detectors' keys of {} MiB", keys >> 20) } else { String::new() },
        buffers >> 20,
        gigabytes(needed),
        gigabytes(available)
    );
    let fitting = plan::arena_within(config, available.saturating_sub(buffers) as f64 * 0.75);
    let remedy = format!("a smaller --arena (SLAB_ALLOC_ARENA), at most {fitting:.2}, or end what else uses the memory");
    if needed > available {
        not_fine(CHECK, value, remedy)
    } else if needed as f64 > available as f64 * 0.9 {
        warning(CHECK, value, remedy)
    } else {
        fine(CHECK, value)
    }
}

/// The soft limit on addresses, which the server leaves as it is: it counts all that is mapped, huge pages and memory that is never
/// touched included.
fn address_space(config: &Config, facts: &Facts, shards: u32) -> Finding {
    const CHECK: &str = "RLIMIT_AS";
    let Some(allowed) = facts.address_space_max_bytes else { return fine(CHECK, "no limit") };
    let buffers = u64::from(config.receive_buffers) * u64::from(config.receive_buffer_bytes);
    let beside = ADDRESSES_BYTES + u64::from(shards) * (ADDRESSES_PER_SHARD_BYTES + buffers);
    let needed = config.arena_bytes + plan::keys_bytes(config, shards) + beside;
    let value = format!(
        "{} of addresses are allowed; the arena of {} and all else need {} to start, and some more to run",
        gigabytes(allowed),
        gigabytes(config.arena_bytes),
        gigabytes(needed)
    );
    let enough = needed + ADDRESSES_TO_RUN_BYTES;
    if allowed >= enough {
        return fine(CHECK, value);
    }
    let limit = format!("`ulimit -v {}` or more, best `unlimited` (LimitAS= in a systemd unit)", enough.div_ceil(1024));
    let fitting = plan::arena_within(config, allowed.saturating_sub(beside + ADDRESSES_TO_RUN_BYTES) as f64);
    let remedy = if fitting > 0.0 { format!("{limit}, or --arena (SLAB_ALLOC_ARENA) of at most {fitting:.2}") } else { limit };
    if allowed >= needed { warning(CHECK, value, remedy) } else { not_fine(CHECK, value, remedy) }
}

fn huge_pages(config: &Config, facts: &Facts) -> Finding {
    const CHECK: &str = "huge pages";
    let mode = facts.transparent_huge_pages.as_deref();
    let (reserved, needed) = (facts.huge_pages_free, config.arena_bytes / arena::SLAB_BYTES);
    // The setting counts those in use by others, too.
    let total = facts.huge_pages_total + needed.saturating_sub(reserved);
    if reserved >= needed {
        return fine(CHECK, format!("{reserved} reserved pages of 2 MiB are free, the arena takes {needed}"));
    }
    let transparent = matches!(mode, Some("always" | "madvise"));
    let value =
        format!("transparent huge pages: {}; reserved and free: {reserved} of 2 MiB", mode.unwrap_or("not in this kernel"));
    match (transparent, reserved) {
        (true, 0) => fine(CHECK, value),
        (true, _) => warning(
            CHECK,
            format!("{value}, which lie idle if no shard's part fits: the arena needs {needed}"),
            format!(
                "`sysctl -w vm.nr_hugepages={total}`, or {}, for transparent ones do as well",
                facts.huge_pages_total.saturating_sub(reserved)
            ),
        ),
        (false, _) => warning(
            CHECK,
            format!("{value}: the arena gets small pages, which costs throughput"),
            format!("`echo madvise > /sys/kernel/mm/transparent_hugepage/enabled`, or `sysctl -w vm.nr_hugepages={total}`"),
        ),
    }
}

fn locked_memory(facts: &Facts) -> Finding {
    const CHECK: &str = "RLIMIT_MEMLOCK";
    let value = facts.memlock_max_bytes.map_or_else(|| "no limit".to_owned(), |bytes| format!("{} KiB", bytes >> 10));
    match enough_locked_memory(facts.memlock_max_bytes) {
        Ok(()) => fine(CHECK, value),
        // The error has its remedy in itself.
        Err(error) => not_fine(CHECK, error.to_string(), ""),
    }
}

/// A limit that leaves no room at all keeps the server from starting; one below what was asked for is not as configured; one below
/// the default only is worth knowing.
fn open_files(config: &Config, facts: &Facts, shards: u32) -> Finding {
    const CHECK: &str = "RLIMIT_NOFILE";
    let wanted = u64::from(config.connections_max);
    let Some(allowed) = facts.open_files_max else { return fine(CHECK, "no limit") };
    let room = connections_of(allowed, shards);
    let value = format!("{allowed} open files leave room for {room} connections; --connections-max is {wanted}");
    let enough = format!("`ulimit -Hn {}` (LimitNOFILE= in a systemd unit)", wanted + descriptors_beside(shards));
    if room == 0 {
        return not_fine(CHECK, value, enough);
    }
    let remedy = format!("{enough}, or --connections-max {room}");
    if room >= wanted {
        fine(CHECK, value)
    } else if is_stated(config, "connections-max") {
        not_fine(CHECK, value, remedy)
    } else {
        warning(CHECK, value, remedy)
    }
}

/// The completion queue must hold every buffer and the ends of every link; a ring that cannot is not made.
fn ring_size(config: &Config, facts: &Facts, shards: u32) -> Finding {
    const CHECK: &str = "ring size";
    let room = facts.open_files_max.map_or(u64::MAX, |allowed| connections_of(allowed, shards));
    let (links, most) = (room.min(u64::from(config.connections_max)), u64::from(UringConfig::links_max(config.receive_buffers)));
    let value = format!(
        "{} receive buffers and {links} connections a shard; at most {most} with so many buffers",
        config.receive_buffers
    );
    if links > most {
        return not_fine(CHECK, value, format!("--connections-max {most} or fewer, or fewer --receive-buffers"));
    }
    fine(CHECK, value)
}

fn port(fact: &PortFact) -> Finding {
    let check = format!("port {}", fact.address.port);
    match &fact.bound {
        Ok(_) if fact.address.port == 0 => fine(&check, format!("{} {}: any free port", fact.flag, fact.address)),
        Ok(bound) => fine(&check, format!("{} {bound} is free", fact.flag)),
        // The error has its remedy in itself.
        Err(error) if fact.holders.is_empty() => not_fine(&check, format!("{}: {error}", fact.flag), ""),
        Err(error) => {
            not_fine(&check, format!("{}: {error}", fact.flag), format!("the port is held by {}", fact.holders.join(", ")))
        }
    }
}

fn backlog(facts: &Facts) -> Finding {
    const CHECK: &str = "net.core.somaxconn";
    match facts.backlog_max {
        Some(most) if most < BACKLOG.cast_unsigned() => warning(
            CHECK,
            format!("{most}: fewer connections can wait to be accepted than the {BACKLOG} that the server asks for"),
            format!("`sysctl -w net.core.somaxconn={BACKLOG}`, for many clients that come at once"),
        ),
        Some(most) => fine(CHECK, format!("{most}; the server asks for {BACKLOG}")),
        None => fine(CHECK, "cannot be read"),
    }
}

fn congestion_control(facts: &Facts) -> Finding {
    fine("congestion control", format!("{} (for information)", facts.congestion_control.as_deref().unwrap_or("cannot be read")))
}

/// The clock is read every turn: through the vDSO that costs nothing, by a system call it does.
fn clock_source(facts: &Facts) -> Finding {
    const CHECK: &str = "clock source";
    match facts.clock_source.as_deref() {
        Some(name @ ("tsc" | "kvm-clock" | "hyperv_clocksource_tsc_page" | "arch_sys_counter")) => {
            fine(CHECK, format!("{name}: read without a system call"))
        }
        Some(name) => warning(
            CHECK,
            format!("{name}: every reading of the clock is a system call"),
            "choose tsc if /sys/devices/system/clocksource/clocksource0/available_clocksource has it (boot with clocksource=tsc)",
        ),
        None => fine(CHECK, "cannot be read"),
    }
}

#[cfg(test)]
mod tests;
