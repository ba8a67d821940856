//! Every judgement, from given facts.

use super::*;
use crate::config::flags::ServeFlags;
use crate::config::machine::Machine;
use crate::config::values::address;
use crate::ring::RingFeatures;

/// A machine on which everything is fine.
fn facts() -> Facts {
    Facts {
        kernel: "6.8.0-41-generic".to_owned(),
        ring: Ok(RingFeatures { kernel: "6.8.0-41-generic".to_owned(), names: vec!["NODROP"] }),
        io_uring_disabled: Some(0),
        seccomp_mode: Some(0),
        container: None,
        machine: Machine { cpus: vec![0, 1, 2, 3], cpu_quota: None, memory_bytes: 8 * GIGABYTE, memory_limit_bytes: None },
        memory_available_bytes: Some(7 * GIGABYTE),
        group_room_bytes: None,
        transparent_huge_pages: Some("madvise".to_owned()),
        huge_pages_total: 0,
        huge_pages_free: 0,
        memlock_max_bytes: Some(8 << 20),
        address_space_max_bytes: None,
        open_files_max: Some(1 << 20),
        backlog_max: Some(4096),
        congestion_control: Some("cubic".to_owned()),
        clock_source: Some("tsc".to_owned()),
        ports: vec![free("127.0.0.1:3313")],
        log_file_error: None,
        events_error: None,
        log_filter_error: None,
    }
}

fn free(text: &str) -> PortFact {
    let bound = text.parse().expect("an address");
    PortFact { flag: "--listen", address: address(text).expect("an address"), bound: Ok(bound), holders: Vec::new() }
}

fn flags() -> ServeFlags {
    let none = || Some("/dev/null".to_owned());
    ServeFlags { env_file: none(), node_yaml: none(), config: none(), ..ServeFlags::default() }
}

fn judged(flags: &ServeFlags, facts: &Facts) -> Vec<Finding> {
    findings(Config::resolve(flags, &|_| None).as_ref(), facts)
}

/// The finding of a check, with its judgement and all its words.
fn one(check: &str, flags: &ServeFlags, facts: &Facts) -> (Judgement, String) {
    let found = judged(flags, facts);
    let finding = found.iter().find(|finding| finding.check == check).unwrap_or_else(|| panic!("no {check} in {found:?}"));
    (finding.judgement, format!("{} → {}", finding.value, finding.remedy))
}

#[track_caller]
fn expect(check: &str, judgement: Judgement, words: &[&str], flags: &ServeFlags, facts: &Facts) {
    let (found, text) = one(check, flags, facts);
    assert_eq!(found, judgement, "{check}: {text}");
    for word in words {
        assert!(text.contains(word), "{word:?} is missing: {text}");
    }
}

#[test]
fn on_a_good_machine_all_is_fine() {
    let found = judged(&flags(), &facts());
    assert!(found.iter().all(|finding| finding.judgement == Judgement::Fine && finding.remedy.is_empty()), "{found:#?}");
    let checks =
        ["configuration", "env file", "access", "kernel", "io_uring", "kernel.io_uring_disabled", "CPUs", "plan", "memory"];
    for check in checks.iter().chain(&["huge pages", "RLIMIT_MEMLOCK", "RLIMIT_NOFILE", "ring size", "port 3313", "clock source"])
    {
        assert!(found.iter().any(|finding| finding.check == *check), "{check} is missing");
    }
}

#[test]
fn whatever_is_not_fine_or_worth_a_warning_says_what_to_do() {
    let bad = Facts {
        kernel: "5.15.0".to_owned(),
        ring: Err("io_uring is switched off. Remedy: switch it on".to_owned()),
        io_uring_disabled: Some(2),
        seccomp_mode: Some(2),
        container: Some("docker".to_owned()),
        machine: Machine { cpus: vec![0], cpu_quota: Some(1), ..facts().machine },
        memory_available_bytes: Some(1 << 20),
        transparent_huge_pages: None,
        memlock_max_bytes: Some(64 << 10),
        open_files_max: Some(1024),
        backlog_max: Some(128),
        clock_source: Some("hpet".to_owned()),
        ports: vec![PortFact { bound: Err("failed to bind: in use; stop it".to_owned()), ..free("127.0.0.1:3313") }],
        ..facts()
    };
    for finding in judged(&flags(), &bad) {
        // These are told by the error of the server, which has its remedy in itself.
        let has_remedy = match finding.check.as_str() {
            "io_uring" => finding.value.contains("Remedy: switch it on"),
            "port 3313" => finding.value.contains("stop it"),
            "RLIMIT_MEMLOCK" => finding.value.contains("raise it"),
            _ => !finding.remedy.is_empty(),
        };
        assert!(finding.judgement == Judgement::Fine || has_remedy, "{finding:?}");
    }
    let of = |judgement| judged(&flags(), &bad).into_iter().filter(|finding| finding.judgement == judgement).count();
    assert_eq!((of(Judgement::NotFine), of(Judgement::Warning)), (6, 6), "{:#?}", judged(&flags(), &bad));
}

#[test]
fn a_bad_configuration_is_a_finding_and_the_machine_is_judged_all_the_same() {
    let flags = ServeFlags { arena: Some("1,5".to_owned()), ..flags() };
    expect("configuration", Judgement::NotFine, &["--arena", "1,5"], &flags, &facts());
    expect("kernel", Judgement::Fine, &["6.8.0", "6.1"], &flags, &facts());
    assert!(!judged(&flags, &facts()).iter().any(|finding| finding.check == "memory"));
}

#[test]
fn whether_detectors_run() {
    expect("detectors", Judgement::Fine, &["--config"], &flags(), &facts());
    let without = ServeFlags { config: None, ..flags() };
    expect("detectors", Judgement::Warning, &["none runs", "--config FILE"], &without, &facts());
}

#[test]
fn kernel_and_ring() {
    let flags = flags();
    expect(
        "kernel",
        Judgement::NotFine,
        &["5.15.0", "6.1", "Debian 12"],
        &flags,
        &Facts { kernel: "5.15.0".to_owned(), ..facts() },
    );
    let broken = Facts { ring: Err("no ring".to_owned()), io_uring_disabled: Some(2), seccomp_mode: Some(2), ..facts() };
    expect("io_uring", Judgement::NotFine, &["no ring"], &flags, &broken);
    expect("kernel.io_uring_disabled", Judgement::NotFine, &["2:", "sysctl -w"], &flags, &broken);
    expect("seccomp", Judgement::Warning, &["io_uring_setup", "seccomp="], &flags, &broken);
    let group = Facts { io_uring_disabled: Some(1), ..facts() };
    expect("kernel.io_uring_disabled", Judgement::Warning, &["1:"], &flags, &group);
    let container = Facts { seccomp_mode: Some(2), container: Some("docker".to_owned()), ..facts() };
    expect("seccomp", Judgement::Fine, &["docker", "lets io_uring through"], &flags, &container);
}

#[test]
fn cpus_and_shards() {
    let with = |cpus: usize, quota| Machine { cpus: (0..cpus).collect(), cpu_quota: quota, ..facts().machine };
    let quota = Facts { machine: with(8, Some(1)), ..facts() };
    expect("CPUs", Judgement::Warning, &["1 allowed", "quota of 1"], &flags(), &quota);
    let three = ServeFlags { shards: Some("3".to_owned()), ..flags() };
    expect("plan", Judgement::Fine, &["3 shards", "CPUs 1, 2, 3"], &three, &facts());
    expect("plan", Judgement::NotFine, &["3 shards", "--no-pin"], &three, &Facts { machine: with(2, None), ..facts() });
    // Fewer than were asked for is not as configured; fewer than could be is only worth knowing.
    let small = |shards: Option<&str>| ServeFlags { arena: Some("0.1".to_owned()), shards: shards.map(str::to_owned), ..flags() };
    expect("plan", Judgement::NotFine, &["instead of 4", "larger --arena"], &small(Some("4")), &facts());
    expect("plan", Judgement::Warning, &["instead of 3"], &small(None), &facts());
}

#[test]
fn memory_is_held_against_what_is_available_here_and_in_the_group() {
    let with_detectors = |gigabytes: &str| ServeFlags { arena: Some(gigabytes.to_owned()), ..flags() };
    let arena = |gigabytes: &str| ServeFlags { config: None, ..with_detectors(gigabytes) };
    let available = |gigabytes: u64| Facts { memory_available_bytes: Some(gigabytes * GIGABYTE), ..facts() };
    expect("memory", Judgement::Fine, &["4.00 GB", "MemAvailable"], &arena("4"), &available(7));
    expect("memory", Judgement::NotFine, &["3.00 GB available", "--arena", "at most 2.24"], &arena("4"), &available(3));
    expect("memory", Judgement::Warning, &["--arena"], &arena("3.9"), &available(4));
    let group = Facts { group_room_bytes: Some(2 * GIGABYTE), ..available(7) };
    expect("memory", Judgement::NotFine, &["2.00 GB left in the control group"], &arena("4"), &group);
    expect("plan", Judgement::NotFine, &["larger than the memory"], &arena("9"), &facts());
    // Of 4 GB, detectors need another 0.59.
    expect("memory", Judgement::Fine, &[], &arena("4"), &available(5));
    expect("memory", Judgement::Warning, &["keys of 607 MiB", "at most 3.25"], &with_detectors("4"), &available(5));
    // Reserved huge pages are not part of MemAvailable, and the arena lies on them.
    expect("memory", Judgement::Fine, &[], &arena("4"), &Facts { huge_pages_free: 2048, ..available(1) });
}

#[test]
fn huge_pages_transparent_reserved_or_none() {
    let with = |mode: Option<&str>, free| Facts {
        transparent_huge_pages: mode.map(str::to_owned),
        huge_pages_total: free,
        huge_pages_free: free,
        ..facts()
    };
    expect("huge pages", Judgement::Fine, &["always"], &flags(), &with(Some("always"), 0));
    expect("huge pages", Judgement::Fine, &["512 reserved", "takes 512"], &flags(), &with(Some("never"), 512));
    expect("huge pages", Judgement::Warning, &["never", "echo madvise", "nr_hugepages=512"], &flags(), &with(Some("never"), 0));
    expect("huge pages", Judgement::Warning, &["not in this kernel"], &flags(), &with(None, 0));
    expect("huge pages", Judgement::Warning, &["100 of 2 MiB", "idle"], &flags(), &with(Some("madvise"), 100));
    // The setting is the total: what others use is beside the arena's 512.
    let shared = Facts { huge_pages_total: 700, ..with(Some("madvise"), 100) };
    expect("huge pages", Judgement::Warning, &["nr_hugepages=1112`, or 600,"], &flags(), &shared);
    let shared = Facts { huge_pages_total: 700, ..with(Some("never"), 100) };
    expect("huge pages", Judgement::Warning, &["nr_hugepages=1112`"], &flags(), &shared);
}

#[test]
fn limits() {
    let locked = |bytes| Facts { memlock_max_bytes: bytes, ..facts() };
    expect("RLIMIT_MEMLOCK", Judgement::Fine, &["no limit"], &flags(), &locked(None));
    expect("RLIMIT_MEMLOCK", Judgement::NotFine, &["64 KiB", "LimitMEMLOCK="], &flags(), &locked(Some(64 << 10)));
    let few = Facts { open_files_max: Some(4096), ..facts() };
    // 4,096 less 256 less 10 for each of three shards.
    expect("RLIMIT_NOFILE", Judgement::Warning, &["3810 connections", "LimitNOFILE=", "ulimit -Hn 10286"], &flags(), &few);
    // 256 and 10 for each of three shards are needed before the first connection.
    let files = |allowed| Facts { open_files_max: Some(allowed), ..facts() };
    expect("RLIMIT_NOFILE", Judgement::NotFine, &["20 open files", "ulimit -Hn 10286"], &flags(), &files(20));
    expect("RLIMIT_NOFILE", Judgement::NotFine, &["room for 0"], &flags(), &files(286));
    expect("RLIMIT_NOFILE", Judgement::Warning, &["room for 1"], &flags(), &files(287));
    let stated = ServeFlags { connections_max: Some("10000".to_owned()), ..flags() };
    // What it advises is enough.
    expect("RLIMIT_NOFILE", Judgement::NotFine, &["ulimit -Hn 10286"], &stated, &files(200));
    expect("RLIMIT_NOFILE", Judgement::Fine, &[], &stated, &files(10_286));
    expect("RLIMIT_NOFILE", Judgement::NotFine, &["--connections-max is 10000"], &stated, &few);
    expect("RLIMIT_NOFILE", Judgement::Fine, &["no limit"], &stated, &Facts { open_files_max: None, ..facts() });
    let many = ServeFlags { connections_max: Some("30000".to_owned()), receive_buffers: Some("128".to_owned()), ..flags() };
    expect("ring size", Judgement::NotFine, &["30000 connections", "--connections-max 21781"], &many, &facts());
    expect("ring size", Judgement::Fine, &["3810 connections"], &many, &few);
}

#[test]
fn addresses_are_held_against_all_that_is_mapped() {
    let arena = |gigabytes: &str| ServeFlags { arena: Some(gigabytes.to_owned()), config: None, ..flags() };
    let limit = |bytes| Facts { address_space_max_bytes: bytes, ..facts() };
    expect("RLIMIT_AS", Judgement::Fine, &["no limit"], &arena("4"), &limit(None));
    expect("RLIMIT_AS", Judgement::Fine, &["6.00 GB"], &arena("4"), &limit(Some(6 * GIGABYTE)));
    expect(
        "RLIMIT_AS",
        Judgement::NotFine,
        &["2.86 GB", "ulimit -v", "LimitAS=", "--arena"],
        &arena("4"),
        &limit(Some(3_000_000 << 10)),
    );
    // Huge pages are addresses, too.
    let huge = Facts { huge_pages_total: 4096, huge_pages_free: 4096, ..limit(Some(3 * GIGABYTE)) };
    expect("RLIMIT_AS", Judgement::NotFine, &[], &arena("4"), &huge);
    // What it advises is enough.
    let (_, text) = one("RLIMIT_AS", &arena("4"), &limit(Some(1 << 20)));
    assert!(!text.contains("SLAB_ALLOC_ARENA"), "no arena fits: {text}");
    let advised: u64 =
        text.split_once("ulimit -v ").and_then(|(_, rest)| rest.split_once('`')).expect("a number").0.parse().expect("one");
    expect("RLIMIT_AS", Judgement::Fine, &[], &arena("4"), &limit(Some(advised << 10)));
    expect("RLIMIT_AS", Judgement::Warning, &["to run"], &arena("4"), &limit(Some((advised << 10) - GIGABYTE / 8)));
    let (_, text) = one("RLIMIT_AS", &arena("4"), &limit(Some(3 * GIGABYTE)));
    let fitting = text.split_once("at most ").expect("an arena fits").1;
    expect("RLIMIT_AS", Judgement::Fine, &[], &arena(fitting), &limit(Some(3 * GIGABYTE)));
}

#[test]
fn ports_name_their_holder() {
    let taken = |holders: &[&str]| PortFact {
        bound: Err("failed to bind: Address already in use".to_owned()),
        holders: holders.iter().map(|holder| (*holder).to_owned()).collect(),
        ..free("127.0.0.1:3313")
    };
    let with = |fact| Facts { ports: vec![fact], ..facts() };
    expect("port 3313", Judgement::NotFine, &["in use", "held by nginx (pid 7)"], &flags(), &with(taken(&["nginx (pid 7)"])));
    expect("port 3313", Judgement::NotFine, &["--listen", "in use"], &flags(), &with(taken(&[])));
    expect("port 3313", Judgement::Fine, &["is free"], &flags(), &facts());
    expect("port 0", Judgement::Fine, &["any free port"], &flags(), &with(free("127.0.0.1:0")));
}

#[test]
fn access_fits_the_address() {
    let with = |listen: &str, allow: &[&str], insecure| ServeFlags {
        listen: Some(listen.to_owned()),
        allow: allow.iter().map(|network| (*network).to_owned()).collect(),
        insecure,
        ..flags()
    };
    expect("access", Judgement::Fine, &["loopback only"], &flags(), &facts());
    expect("access", Judgement::Fine, &["10.0.0.0/8"], &with("0.0.0.0:3313", &["10.0.0.0/8"], false), &facts());
    expect("access", Judgement::Warning, &["only loopback", "--allow"], &with("0.0.0.0:3313", &[], false), &facts());
    expect("access", Judgement::Warning, &["--listen 0.0.0.0"], &with("127.0.0.1:3313", &["10.0.0.0/8"], false), &facts());
    expect("access", Judgement::Warning, &["insecure"], &with("0.0.0.0:3313", &[], true), &facts());
}

#[test]
fn files_clock_and_network() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("env");
    std::fs::write(&path, "SLAB_ALLOC_ARENA=2\nOTHER=1\n").expect("written");
    let file = ServeFlags { env_file: Some(path.display().to_string()), ..flags() };
    expect("env file", Judgement::Fine, &["OTHER mean nothing"], &file, &facts());
    expect("configuration", Judgement::Fine, &["arena=2 (env file SLAB_ALLOC_ARENA)"], &file, &facts());
    let log = ServeFlags { log_file: Some("/nowhere/server.log".to_owned()), ..flags() };
    let error = Facts { log_file_error: Some("/nowhere/server.log cannot be written: no folder".to_owned()), ..facts() };
    expect("log file", Judgement::NotFine, &["/nowhere/server.log", "--log-file"], &log, &error);
    expect("log file", Judgement::Fine, &["/nowhere/server.log"], &log, &facts());
    let events = ServeFlags { events: Some("/nowhere/events".to_owned()), ..flags() };
    let error = Facts { events_error: Some("/nowhere/events cannot be written: no folder".to_owned()), ..facts() };
    expect("events", Judgement::NotFine, &["/nowhere/events", "--events"], &events, &error);
    expect("events", Judgement::Fine, &["/nowhere/events"], &events, &facts());
    let slow = Facts { clock_source: Some("hpet".to_owned()), backlog_max: Some(128), ..facts() };
    expect("clock source", Judgement::Warning, &["hpet", "tsc"], &flags(), &slow);
    expect("net.core.somaxconn", Judgement::Warning, &["128", "1024"], &flags(), &slow);
    expect("congestion control", Judgement::Fine, &["cubic"], &flags(), &facts());
}
