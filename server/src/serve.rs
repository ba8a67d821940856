//! Start-up and shutdown of the whole server, in order.
//!
//! The order: log → io_uring self-test → plan → listeners bound (an address in use fails before memory is touched) → control
//! plane (status pages answer, not ready) → shards map and prefault in parallel → the correlator → connections are taken.
//! Down: first signal drains, second ends at once; the correlator ends after the shards. The main thread starts things, then
//! waits.

use crate::analytics::detectors::Detector;
use crate::analytics::settings::Settings;
use crate::analytics::{AnalyticsPlan, Reload, Room};
use crate::config::detection::DetectionConfig;
use crate::config::machine::Machine;
use crate::config::plan::{Plan, keys_of};
use crate::config::reload::{self, Change};
use crate::config::{Config, ConfigError};
use crate::control::{self, ControlConfig, ToControl, sockets};
use crate::correlator::{self, CorrelatorConfig, CorrelatorHandle};
use crate::logging::{self, LogFile};
use crate::shard::derived::derived_queue;
use crate::shard::messages::{ShardHandle, Topology};
use crate::shard::{self, ShardConfig};
use crate::{arena, process, queue, ring};
use anyhow::Context;
use postanalytics_protocol::DEFAULT_MAX_BODY_BYTES;
use postanalytics_protocol::frames::PackageVersion;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Descriptors that are no connections: status pages, handshakes' second ones, files, the control plane.
const DESCRIPTORS_BESIDE_CONNECTIONS: u64 = 256;
/// Descriptors of a shard: its ring, `/proc/self/statm`, and a pair of sockets for each of its four queues.
const DESCRIPTORS_PER_SHARD: u64 = 10;
/// Memory that the control plane's rings must be allowed to lock; glommio takes no less.
const LOCKED_BYTES_MIN: u64 = 512 << 10;

/// The correlator has this long to end after the shards.
const CORRELATOR_END_MAX: Duration = Duration::from_secs(2);

/// Between two tries to tell the control plane what its queue had no room for.
const TELL_AGAIN: Duration = Duration::from_millis(20);

/// What the main thread waits for.
enum Event {
    /// The first SIGTERM or SIGINT.
    Stop,
    /// SIGHUP.
    Reload,
    /// Something waits to be told to the control plane.
    TellAgain,
    /// The control plane is through, or something failed.
    Ended(anyhow::Result<()>),
}

/// What the control plane is still to be told, because its queue was full: of many reloads the newest, and always the stop.
#[derive(Debug, Default)]
struct ToTell {
    reload: Option<(Arc<Config>, Option<Reload>)>,
    stop: bool,
}

impl ToTell {
    const fn is_empty(&self) -> bool {
        self.reload.is_none() && !self.stop
    }

    /// Takes the place of a reload that waits still; what that one changed counts as changed by this one.
    fn reload(&mut self, config: Arc<Config>, mut analytics: Option<Reload>) {
        if let (Some((_, Some(waiting))), Some(analytics)) = (&self.reload, &mut analytics) {
            analytics.unite(waiting);
        }
        self.reload = Some((config, analytics));
    }

    /// Tells what there is room for. Before a stop no reload matters any more.
    fn tell(&mut self, to_control: &mut queue::Sender<ToControl>) {
        if self.stop {
            self.reload = None;
            self.stop = to_control.send(ToControl::Stop).is_err();
        } else if let Some((config, analytics)) = self.reload.take()
            && let Err(ToControl::Reload { config, analytics }) = to_control.send(ToControl::Reload { config, analytics })
        {
            self.reload = Some((config, analytics));
        }
    }
}

/// The next event, or that something is to be told again; `None`: nobody is left to send one.
fn next_event(events: &mpsc::Receiver<Event>) -> Option<Event> {
    match events.recv_timeout(TELL_AGAIN) {
        Ok(event) => Some(event),
        Err(mpsc::RecvTimeoutError::Timeout) => Some(Event::TellAgain),
        Err(mpsc::RecvTimeoutError::Disconnected) => None,
    }
}

/// Runs the server until it is told to stop; `read` reads the configuration anew. Errors: why it could not start, or what
/// failed.
pub fn serve(config: Config, read: impl Fn() -> Result<Config, ConfigError>) -> anyhow::Result<()> {
    process::started();
    let log_file = logging::start(&config)?;
    log_config(&config);
    let features = ring::probe()?;
    let machine = Machine::read();
    let plan = Plan::make(&config, &machine, arena::SLAB_BYTES, arena::SLABS_MIN)?;
    log_plan(&config, &machine, &plan, &features.kernel);
    allow_locked_memory()?;
    let mut config = Arc::new(allow_descriptors(config, plan.shard_count())?);
    let listener = sockets::listen(&config.listen)?;
    let status = config.status.as_ref().map(sockets::listen).transpose()?;
    let topology = Arc::new(topology(&config, plan.shard_count())?);
    let serving = Arc::new(AtomicBool::new(false));
    let (events_in, events) = mpsc::channel();
    let events_file = config.events.as_deref().map(open_events).transpose()?;
    let files = log_file.into_iter().chain(events_file.clone()).collect();
    listen_to_signals(files, Arc::clone(&serving), events_in.clone())?;
    let control = ControlConfig {
        config: Arc::clone(&config),
        topology: Arc::clone(&topology),
        listener,
        status,
        cpus: plan.control_cpus.clone(),
    };
    let report = move |result| drop(events_in.send(Event::Ended(result)));
    let mut to_control = control::start(control, report.clone())?;
    let correlator_failed = move |error| report(Err(error));
    let (shards, correlator, correlator_thread) = start_shards(&config, &plan, &topology, events_file, correlator_failed)?;
    serving.store(true, Ordering::SeqCst);
    let ready = to_control.send(ToControl::Ready(shards, correlator));
    ready.map_err(|_| anyhow::anyhow!("the control plane does not listen"))?;
    let mut to_tell = ToTell::default();
    loop {
        let event = if to_tell.is_empty() { events.recv().ok() } else { next_event(&events) };
        match event.context("the control plane and the signals are gone")? {
            Event::TellAgain => to_tell.tell(&mut to_control),
            Event::Stop => {
                to_tell.stop = true;
                to_tell.tell(&mut to_control);
            }
            Event::Reload => {
                if let Some((read, analytics)) = reload(&config, &read) {
                    config = Arc::clone(&read);
                    to_tell.reload(read, analytics);
                    to_tell.tell(&mut to_control);
                }
            }
            Event::Ended(result) => {
                if result.is_ok() {
                    wait_for_correlator(&correlator_thread);
                    tracing::info!("stopped");
                }
                return result;
            }
        }
    }
}

/// Reads the configuration anew and says what of it holds from now on. `None`: it is wrong, and the old one stays.
fn reload(running: &Config, read: impl Fn() -> Result<Config, ConfigError>) -> Option<(Arc<Config>, Option<Reload>)> {
    let checked = read().map_err(anyhow::Error::from).and_then(|config| {
        let settings = config.detection.as_ref().map(settings_of).transpose()?;
        Ok((config, settings))
    });
    let (config, settings) = match checked {
        Ok(read) => read,
        Err(error) => {
            tracing::error!("the configuration is not reloaded, the old one goes on: {error:#}");
            return None;
        }
    };
    let reload = reload::Reload::of(running, config);
    for Change { key, old, new } in &reload.kept {
        tracing::warn!(key, old, new, "this cannot be changed while the server runs: restart it");
    }
    for Change { key, old, new } in &reload.changed {
        tracing::info!(key, old, new, "changed");
    }
    if !reload.detectors.is_empty() {
        tracing::info!(
            detectors = reload.detectors.join(" "),
            "the numbers of these detectors changed: they forget what they counted, their alerts are final"
        );
    }
    tracing::info!("configuration reloaded");
    let changed = Detector::ALL.into_iter().filter(|detector| reload.detectors.contains(&detector.name())).collect();
    let analytics = settings.filter(|_| reload.config.detection.is_some()).map(|settings| Reload { settings, changed });
    Some((Arc::new(reload.config), analytics))
}

/// What detectors count by this configuration.
pub(crate) fn settings_of(detection: &DetectionConfig) -> anyhow::Result<Arc<Settings>> {
    Ok(Arc::new(Settings::new(detection).context("the names under attack_tools cannot be searched for")?))
}

fn log_config(config: &Config) {
    let version = env!("CARGO_PKG_VERSION");
    tracing::info!(version, pid = std::process::id(), "starting");
    if crate::seeded::IN_THIS_BINARY {
        tracing::info!(
            "built together with the tests, whose switches are in this binary: measure one that was built by cargo build --release"
        );
    }
    for setting in &config.settings {
        tracing::info!(key = setting.key, value = %setting.value, source = %setting.source, "config");
    }
    match &config.env_file {
        Some(path) => tracing::info!(path = %path.display(), "env file read"),
        None => tracing::info!("no env file found"),
    }
    if !config.env_file_lines_skipped.is_empty() {
        tracing::warn!(
            lines = ?config.env_file_lines_skipped,
            "lines of the env file that are no KEY=value, with the quotes closed on the line, are skipped: write them so, or leave what is \
             meant for others"
        );
    }
    if !config.env_file_unknown_keys.is_empty() {
        tracing::info!(keys = config.env_file_unknown_keys.join(" "), "env file keys that mean nothing here are ignored");
    }
    if let Some(group) = &config.group {
        tracing::info!(group, "group of this node");
    }
    if let Some(node) = &config.node {
        tracing::info!(path = %node.path.display(), hostname = ?node.hostname, uuid = ?node.uuid, "node.yaml read");
        if node.has_secret {
            tracing::info!(
                "the secret in node.yaml is not used by this version: protect the port by --allow and a packet filter"
            );
        }
    }
    if config.access.insecure {
        tracing::warn!("insecure: everybody who can reach {} may send records and see verdicts", config.listen);
    }
}

fn log_plan(config: &Config, machine: &Machine, plan: &Plan, kernel: &str) {
    tracing::info!(
        kernel, cpus_allowed = ?machine.cpus, cpu_quota = ?machine.cpu_quota, memory_bytes = machine.memory_allowed().0, "machine"
    );
    for remark in &plan.remarks {
        tracing::warn!("{remark}");
    }
    tracing::info!(
        shards = plan.shard_count(), cpus = ?plan.cpus, control_cpus = ?plan.control_cpus, pinned = config.pin,
        arena_bytes_per_shard = plan.arena_bytes_per_shard, "plan"
    );
    if !config.pin {
        tracing::info!("shards are not pinned: they may share CPUs (--no-pin)");
    }
}

/// Raises the limit on open files as far as it goes, and lowers the number of connections to what it then allows. Error: that is
/// none, or they are more than a ring can serve, told before the arena is made.
fn allow_descriptors(mut config: Config, shards: u32) -> anyhow::Result<Config> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    let allowed = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    let room = connections_of(allowed, shards);
    anyhow::ensure!(
        room > 0,
        "this process may open {allowed} files (RLIMIT_NOFILE), and needs {} beside those of connections: raise it with `ulimit -Hn {}`, \
         or LimitNOFILE= in a systemd unit",
        descriptors_beside(shards),
        descriptors_beside(shards) + u64::from(config.connections_max)
    );
    if u64::from(config.connections_max) > room {
        tracing::warn!(
            connections_max = room,
            open_files_max = allowed,
            "fewer connections than {} are taken: raise `ulimit -n` (LimitNOFILE= in a systemd unit)",
            config.connections_max
        );
        config.connections_max = u32::try_from(room).unwrap_or(u32::MAX);
    }
    let most = ring::UringConfig::links_max(config.receive_buffers);
    if config.connections_max > most {
        anyhow::bail!(
            "{} connections a shard are too many for an io_uring beside {} receive buffers: give --connections-max {most} or fewer, or \
             fewer --receive-buffers",
            config.connections_max,
            config.receive_buffers
        );
    }
    Ok(config)
}

/// Connections that a limit on open files leaves room for. Without any the server does not start.
pub(crate) fn connections_of(open_files_max: u64, shards: u32) -> u64 {
    open_files_max.saturating_sub(descriptors_beside(shards))
}

/// Open files that are not for connections.
pub(crate) fn descriptors_beside(shards: u32) -> u64 {
    DESCRIPTORS_BESIDE_CONNECTIONS + DESCRIPTORS_PER_SHARD * u64::from(shards)
}

/// Raises the limit on locked memory as far as it goes: glommio does not start with too little, and does not say what to do.
fn allow_locked_memory() -> anyhow::Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Memlock);
    let _ = setrlimit(Resource::Memlock, Rlimit { current: limit.maximum, maximum: limit.maximum });
    enough_locked_memory(getrlimit(Resource::Memlock).current)
}

/// Whether the control plane can start with this limit; `None` is no limit.
pub(crate) fn enough_locked_memory(allowed: Option<u64>) -> anyhow::Result<()> {
    match allowed {
        Some(bytes) if bytes < LOCKED_BYTES_MIN => anyhow::bail!(
            "this process may lock {} KiB of memory (RLIMIT_MEMLOCK), the control plane needs {} KiB: raise it with \
             `ulimit -l 8192`, LimitMEMLOCK=8M in a systemd unit, or `--ulimit memlock=8388608` for a container",
            bytes >> 10,
            LOCKED_BYTES_MIN >> 10
        ),
        _ => Ok(()),
    }
}

fn topology(config: &Config, shard_count: u32) -> anyhow::Result<Topology> {
    let uuid = |bytes| uuid::Builder::from_random_bytes(bytes).into_uuid().into_bytes();
    let (deployment_id, identity_key) = match &config.deployment {
        Some(deployment) => (deployment.id, deployment.identity_key),
        None => (uuid(random()?), random()?),
    };
    Ok(Topology {
        server_id: match config.server_id {
            Some(id) => id,
            None => uuid(random()?),
        },
        deployment_id,
        epoch: u64::from_le_bytes(random()?),
        shard_count,
        routing_seed: u64::from_le_bytes(random()?),
        identity_key,
        package: PackageVersion::parse(env!("CARGO_PKG_VERSION")),
        max_body_bytes: DEFAULT_MAX_BODY_BYTES,
    })
}

fn random<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| anyhow::anyhow!("the kernel gives no random numbers: {error}"))?;
    Ok(bytes)
}

/// The shards are gone: gives the correlator a moment to write what they said last.
fn wait_for_correlator(thread: &JoinHandle<()>) {
    let give_up = Instant::now() + CORRELATOR_END_MAX;
    while !thread.is_finished() {
        if Instant::now() >= give_up {
            tracing::warn!("the correlator did not end within {CORRELATOR_END_MAX:?}: the last events may not be written");
            return;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn open_events(path: &Path) -> anyhow::Result<LogFile> {
    LogFile::open(path).map_err(|error| {
        anyhow::anyhow!("cannot open the events file {}: {error}; give a path that can be written to", path.display())
    })
}

/// Starts all, then waits for all, so that they prefault side by side; then the correlator, which they tell what happens.
fn start_shards(
    config: &Config,
    plan: &Plan,
    topology: &Arc<Topology>,
    events: Option<LogFile>,
    correlator_failed: impl FnOnce(anyhow::Error) + Send + 'static,
) -> anyhow::Result<(Vec<ShardHandle>, CorrelatorHandle, JoinHandle<()>)> {
    let begun = Instant::now();
    let settings = settings_of(&config.detection.clone().unwrap_or_default())?;
    let keys = if config.detection.is_some() { keys_of(plan.arena_bytes_per_shard) } else { 0 };
    if keys == 0 {
        tracing::info!("no detector runs; an empty file as --config FILE runs them all with their defaults");
    }
    // One for all, so that what the correlator hears of different shards can be told to be the same.
    let seed = u64::from_le_bytes(random()?);
    let (mut starting, mut receivers) = (Vec::new(), Vec::new());
    for (shard, cpu) in (0..).zip(&plan.cpus) {
        let (derived, receiver) = derived_queue().context("no socket pair for the correlator")?;
        receivers.push(receiver);
        let shard = ShardConfig {
            shard,
            cpu: *cpu,
            arena_bytes: plan.arena_bytes_per_shard,
            analytics: AnalyticsPlan {
                settings: Arc::clone(&settings),
                room: Room { keys, hands_on_failures: true, shards: topology.shard_count, reports: true, ..Room::default() },
                seed,
            },
            topology: Arc::clone(topology),
            receive_buffers: config.receive_buffers,
            receive_buffer_bytes: config.receive_buffer_bytes,
            connections_max: config.connections_max,
            frame_deadline: config.frame_deadline,
            drain_deadline: config.drain_deadline,
        };
        starting.push(shard::start(shard, Some(derived))?);
    }
    let shards = starting.into_iter().map(shard::StartingShard::wait).collect::<anyhow::Result<Vec<_>>>()?;
    for shard in &shards {
        tracing::info!(shard = shard.shard, cpu = ?shard.cpu, huge_pages = shard.huge_pages, "shard ready");
    }
    tracing::info!(
        shards = shards.len(),
        arena_bytes = plan.arena_bytes_per_shard * u64::from(plan.shard_count()),
        huge_pages = shards.iter().all(|shard| shard.huge_pages),
        seconds = begun.elapsed().as_secs_f64(),
        "arena ready"
    );
    let correlator = CorrelatorConfig { settings, seed, shards: receivers, events, cpus: plan.control_cpus.clone() };
    let (correlator, thread) = correlator::start(correlator, correlator_failed)?;
    Ok((shards, correlator, thread))
}

/// A thread that waits for signals for as long as the process lives, so that the second SIGTERM ends it whatever hangs.
fn listen_to_signals(files: Vec<LogFile>, serving: Arc<AtomicBool>, events: mpsc::Sender<Event>) -> anyhow::Result<()> {
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGUSR1]).context("signals cannot be caught")?;
    let listen = move || {
        let mut stopping = false;
        for signal in signals.forever() {
            match signal {
                SIGHUP | SIGUSR1 => {
                    files.iter().for_each(LogFile::reopen);
                    if signal == SIGHUP {
                        let _ = events.send(Event::Reload);
                    } else if files.is_empty() {
                        tracing::info!(signal, "there is no file to reopen (--log-file, --events): the signal does nothing");
                    }
                }
                _ if stopping => {
                    tracing::warn!(signal, "second signal: ending at once");
                    logging::finish();
                    std::process::exit(128 + signal);
                }
                // Nothing was taken yet, so there is nothing to drain.
                _ if !serving.load(Ordering::SeqCst) => {
                    tracing::info!(signal, "stopped before it was ready");
                    logging::finish();
                    std::process::exit(0);
                }
                _ => {
                    stopping = true;
                    tracing::info!(signal, "stopping");
                    let _ = events.send(Event::Stop);
                }
            }
        }
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(listen).context("no thread for signals")?;
    Ok(())
}

/// The exit code of an error: 2 for the command line, else 1.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<ConfigError>() {
        Some(error) if error.is_usage => 2,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::flags::ServeFlags;

    #[test]
    fn too_little_locked_memory_is_named_with_its_remedy() {
        assert!(enough_locked_memory(None).is_ok() && enough_locked_memory(Some(512 << 10)).is_ok());
        let text = enough_locked_memory(Some(64 << 10)).expect_err("too little").to_string();
        for word in ["64 KiB", "512 KiB", "ulimit -l", "LimitMEMLOCK=", "--ulimit memlock"] {
            assert!(text.contains(word), "{word} is missing: {text}");
        }
    }

    #[test]
    fn of_reloads_that_find_no_room_the_newest_is_told_and_a_stop_is_never_lost() {
        let flags = ServeFlags {
            env_file: Some("/dev/null".to_owned()),
            node_yaml: Some("/dev/null".to_owned()),
            ..ServeFlags::default()
        };
        let config = Arc::new(Config::resolve(&flags, &|_| None).expect("good"));
        let (mut to_control, mut control) = queue::queue(2).expect("a socket pair");
        let mut to_tell = ToTell::default();
        for detector in Detector::ALL.into_iter().take(5) {
            to_tell.reload(Arc::clone(&config), Some(Reload { changed: vec![detector], ..Reload::default() }));
            to_tell.tell(&mut to_control);
        }
        let mut heard = || match control.receive() {
            Some(ToControl::Reload { analytics, .. }) => analytics.expect("given").changed,
            other => panic!("{other:?}"),
        };
        assert_eq!((heard(), heard()), (vec![Detector::ALL[0]], vec![Detector::ALL[1]]));
        assert!(!to_tell.is_empty());
        to_tell.tell(&mut to_control);
        assert!(to_tell.is_empty());
        assert_eq!(heard(), [Detector::ALL[4], Detector::ALL[3], Detector::ALL[2]]);
        // A full queue again, and the stop.
        for _ in 0..3 {
            to_tell.reload(Arc::clone(&config), None);
            to_tell.tell(&mut to_control);
        }
        to_tell.stop = true;
        to_tell.tell(&mut to_control);
        assert!(to_tell.stop);
        assert!(matches!(
            (control.receive(), control.receive()),
            (Some(ToControl::Reload { .. }), Some(ToControl::Reload { .. }))
        ));
        to_tell.tell(&mut to_control);
        assert!(to_tell.is_empty() && matches!(control.receive(), Some(ToControl::Stop)));
    }
}
