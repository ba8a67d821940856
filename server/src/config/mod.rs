//! Configuration: command line, environment, env file, node.yaml → one plain [`Config`].
//!
//! Flags win over the environment, that over the env file, that over defaults; node.yaml gives the address only, and may not
//! contradict HOST and PORT. Everything is read once, before any thread starts. It does not look at the network.

pub mod ask_flags;
pub mod detection;
pub mod env_file;
pub mod flags;
mod layers;
pub mod machine;
pub mod node_yaml;
pub mod plan;
pub mod reload;
pub mod values;

pub use layers::{Setting, Source};

use detection::DetectionConfig;
use env_file::{Chosen, EnvFile};
use flags::ServeFlags;
use ipnet::IpNet;
use layers::{Key, Layers, bad_value};
use node_yaml::NodeYaml;
use std::ffi::OsString;
use std::io::Read;
use std::os::linux::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use values::Address;

/// Why the server does not start: cause, live value, remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct ConfigError {
    /// For people.
    pub text: String,
    /// The command line is at fault (exit code 2).
    pub is_usage: bool,
}

impl ConfigError {
    /// The command line is at fault.
    pub fn usage(text: impl Into<String>) -> Self {
        Self { text: text.into(), is_usage: true }
    }

    /// Something else is.
    pub fn start(text: impl Into<String>) -> Self {
        Self { text: text.into(), is_usage: false }
    }
}

/// Format of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Who may connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// Networks let in beside loopback.
    pub networks: Vec<IpNet>,
    /// Everybody is let in.
    pub insecure: bool,
}

/// What servers of the same nodes have in common.
#[derive(Clone, PartialEq, Eq)]
pub struct Deployment {
    /// Its id.
    pub id: [u8; 16],
    /// The key with which nodes hash identities.
    pub identity_key: [u8; 32],
}

impl std::fmt::Debug for Deployment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Deployment").field("id", &self.id).finish_non_exhaustive()
    }
}

/// What the server does, with nothing left open.
#[derive(Clone, Debug)]
pub struct Config {
    /// Address for filtering nodes.
    pub listen: Address,
    /// Address of the status pages.
    pub status: Option<Address>,
    /// Names under which the status address may be asked for.
    pub status_hosts: Vec<String>,
    /// The token that unlocks raw requests.
    pub status_token: Option<String>,
    /// Shards wanted; `None`: the default.
    pub shards: Option<u32>,
    /// Pin each shard to a CPU of its own.
    pub pin: bool,
    /// Bytes of the arena.
    pub arena_bytes: u64,
    /// Who may connect.
    pub access: Access,
    /// Connections in total.
    pub connections_max: u32,
    /// Connections per address.
    pub connections_per_address_max: u32,
    /// Receive buffers per shard.
    pub receive_buffers: u16,
    /// Bytes of each.
    pub receive_buffer_bytes: u32,
    /// How long a frame may take.
    pub frame_deadline: Duration,
    /// How long the end may take.
    pub drain_deadline: Duration,
    /// Id of this server; `None`: random.
    pub server_id: Option<[u8; 16]>,
    /// What it has in common with the other servers of its nodes; `None`: random.
    pub deployment: Option<Deployment>,
    /// What the detectors count, and what follows; `None`: they do not run.
    pub detection: Option<DetectionConfig>,
    /// Format of the log.
    pub log_format: LogFormat,
    /// Log to this file.
    pub log_file: Option<PathBuf>,
    /// Write alerts and verdicts to this file.
    pub events: Option<PathBuf>,
    /// Group of the node, from WALLARM_LABELS.
    pub group: Option<String>,
    /// The env file that was read.
    pub env_file: Option<PathBuf>,
    /// Numbers of its lines that were skipped, for they are no `KEY=value`.
    pub env_file_lines_skipped: Vec<usize>,
    /// Keys of it that mean nothing here.
    pub env_file_unknown_keys: Vec<String>,
    /// The node.yaml that was read.
    pub node: Option<NodeYaml>,
    /// Every value with its source, for the log.
    pub settings: Vec<Setting>,
}

const STATUS: Key = Key { flag: "status", names: &["POSTANALYTICS_STATUS"], default: "127.0.0.1:9001" };
const STATUS_HOST: Key = Key { flag: "status-host", names: &["POSTANALYTICS_STATUS_HOST"], default: "" };
const STATUS_TOKEN_FILE: Key = Key { flag: "status-token-file", names: &["POSTANALYTICS_STATUS_TOKEN_FILE"], default: "" };
const SHARDS: Key = Key { flag: "shards", names: &["POSTANALYTICS_SHARDS"], default: "0" };
const NO_PIN: Key = Key { flag: "no-pin", names: &["POSTANALYTICS_NO_PIN"], default: "false" };
const ARENA: Key = Key { flag: "arena", names: &["SLAB_ALLOC_ARENA"], default: "1.0" };
const ARENA_ALIAS: Key = Key { flag: "arena", names: &["TARANTOOL_MEMORY_GB"], default: "" };
const ARENA_DIR: Key = Key { flag: "arena-dir", names: &["POSTANALYTICS_ARENA_DIR"], default: "none" };
const ALLOW: Key = Key { flag: "allow", names: &["ALLOW"], default: "" };
const INSECURE: Key = Key { flag: "insecure", names: &["POSTANALYTICS_INSECURE"], default: "false" };
const CONNECTIONS_MAX: Key = Key { flag: "connections-max", names: &["POSTANALYTICS_CONNECTIONS_MAX"], default: "10000" };
const CONNECTIONS_PER_ADDRESS_MAX: Key =
    Key { flag: "connections-per-address-max", names: &["POSTANALYTICS_CONNECTIONS_PER_ADDRESS_MAX"], default: "4096" };
const RECEIVE_BUFFERS: Key = Key { flag: "receive-buffers", names: &["POSTANALYTICS_RECEIVE_BUFFERS"], default: "16" };
const RECEIVE_BUFFER_BYTES: Key =
    Key { flag: "receive-buffer-bytes", names: &["POSTANALYTICS_RECEIVE_BUFFER_BYTES"], default: "262144" };
const FRAME_DEADLINE: Key = Key { flag: "frame-deadline", names: &["POSTANALYTICS_FRAME_DEADLINE"], default: "10s" };
const DRAIN_DEADLINE: Key = Key { flag: "drain-deadline", names: &["POSTANALYTICS_DRAIN_DEADLINE"], default: "10s" };
const SERVER_ID: Key = Key { flag: "server-id", names: &["POSTANALYTICS_SERVER_ID"], default: "" };
const DEPLOYMENT_ID: Key = Key { flag: "deployment-id", names: &["POSTANALYTICS_DEPLOYMENT_ID"], default: "" };
const IDENTITY_KEY_FILE: Key = Key { flag: "identity-key-file", names: &["POSTANALYTICS_IDENTITY_KEY_FILE"], default: "" };
const CONFIG: Key = Key { flag: "config", names: &["POSTANALYTICS_CONFIG"], default: "" };
const LOG: Key = Key { flag: "log", names: &["POSTANALYTICS_LOG"], default: "text" };
const LOG_FILE: Key = Key { flag: "log-file", names: &["POSTANALYTICS_LOG_FILE"], default: "" };
const EVENTS: Key = Key { flag: "events", names: &["POSTANALYTICS_EVENTS"], default: "" };
const LABELS: Key = Key { flag: "labels", names: &["WALLARM_LABELS"], default: "" };
const ALL_KEYS: [&Key; 24] = [
    &STATUS,
    &STATUS_HOST,
    &STATUS_TOKEN_FILE,
    &SHARDS,
    &NO_PIN,
    &ARENA,
    &ARENA_ALIAS,
    &ARENA_DIR,
    &ALLOW,
    &INSECURE,
    &CONNECTIONS_MAX,
    &CONNECTIONS_PER_ADDRESS_MAX,
    &RECEIVE_BUFFERS,
    &RECEIVE_BUFFER_BYTES,
    &FRAME_DEADLINE,
    &DRAIN_DEADLINE,
    &SERVER_ID,
    &DEPLOYMENT_ID,
    &IDENTITY_KEY_FILE,
    &CONFIG,
    &LOG,
    &LOG_FILE,
    &EVENTS,
    &LABELS,
];
/// Names beside those of the keys.
const OTHER_NAMES: [&str; 3] = ["HOST", "PORT", "POSTANALYTICS_NODE_YAML"];
const DEFAULT_HOST: &str = "127.0.0.1";
const DEFAULT_PORT: u16 = 3313;
/// Shortest token that unlocks raw requests.
const TOKEN_BYTES_MIN: usize = 16;

impl Config {
    /// Puts flags, environment and files together.
    pub fn resolve(flags: &ServeFlags, environment: &dyn Fn(&str) -> Option<OsString>) -> Result<Self, ConfigError> {
        let mut layers = Layers { environment, file: None, settings: Vec::new() };
        layers.file = read_env_file(flags, &layers)?;
        let node = read_node_yaml(flags, &layers)?;
        let listen = listen_address(flags, &mut layers, node.as_ref())?;
        let arena_bytes = match layers.below_flags(ARENA.names)? {
            None if flags.arena.is_none() && layers.below_flags(ARENA_ALIAS.names)?.is_some() => {
                layers.parse(&ARENA_ALIAS, None, values::gigabytes)?
            }
            _ => layers.parse(&ARENA, flags.arena.as_deref(), values::gigabytes)?,
        };
        let shards: u32 = layers.parse(&SHARDS, flags.shards.as_deref(), |text| {
            text.parse().map_err(|_| "it must be a whole number; 0 takes the default".to_owned())
        })?;
        layers.parse(&ARENA_DIR, flags.arena_dir.as_deref(), |text| match text {
            "none" => Ok(()),
            _ => Err("keeping the arena over restarts is not there yet: only none is taken".to_owned()),
        })?;
        let token_file = layers.text(&STATUS_TOKEN_FILE, flags.status_token_file.as_deref())?;
        let (labels, _) = layers.text(&LABELS, None)?;
        let (detection_file, _) = layers.text(&CONFIG, flags.config.as_deref())?;
        let (log_file, _) = layers.text(&LOG_FILE, flags.log_file.as_deref())?;
        let (events, source) = layers.text(&EVENTS, flags.events.as_deref())?;
        if !events.is_empty() && !log_file.is_empty() && is_same_file(Path::new(&events), Path::new(&log_file)) {
            let text = "the log is written to that file, and the lines of both would be mixed: give another file";
            return Err(bad_value(EVENTS.flag, &events, &source, text));
        }
        let config = Self {
            listen,
            status: layers.parse(&STATUS, flags.status.as_deref(), values::address_or_none)?,
            status_hosts: layers.parse(&STATUS_HOST, joined(&flags.status_host).as_deref(), |text| Ok(words(text)))?,
            status_token: if token_file.0.is_empty() { None } else { Some(read_token(Path::new(&token_file.0))?) },
            shards: (shards > 0).then_some(shards),
            pin: !layers.switch(&NO_PIN, flags.no_pin)?,
            arena_bytes,
            access: Access {
                networks: layers.parse(&ALLOW, joined(&flags.allow).as_deref(), values::networks)?,
                insecure: layers.switch(&INSECURE, flags.insecure)?,
            },
            connections_max: layers.parse(&CONNECTIONS_MAX, flags.connections_max.as_deref(), values::count)?,
            connections_per_address_max: layers.parse(
                &CONNECTIONS_PER_ADDRESS_MAX,
                flags.connections_per_address_max.as_deref(),
                values::count,
            )?,
            receive_buffers: layers.parse(&RECEIVE_BUFFERS, flags.receive_buffers.as_deref(), receive_buffers)?,
            receive_buffer_bytes: layers.parse(&RECEIVE_BUFFER_BYTES, flags.receive_buffer_bytes.as_deref(), buffer_bytes)?,
            frame_deadline: layers
                .parse(&FRAME_DEADLINE, flags.frame_deadline.as_deref(), |text| values::duration_of_seconds(text, 1..=60))?,
            drain_deadline: layers
                .parse(&DRAIN_DEADLINE, flags.drain_deadline.as_deref(), |text| values::duration_of_seconds(text, 0..=600))?,
            server_id: layers.parse(&SERVER_ID, flags.server_id.as_deref(), id)?,
            deployment: deployment(flags, &mut layers)?,
            detection: if detection_file.is_empty() { None } else { Some(read_detection(Path::new(&detection_file))?) },
            log_format: layers.parse(&LOG, flags.log.as_deref(), |text| match text {
                "text" => Ok(LogFormat::Text),
                "json" => Ok(LogFormat::Json),
                _ => Err("it must be text or json".to_owned()),
            })?,
            log_file: (!log_file.is_empty()).then(|| PathBuf::from(log_file)),
            events: (!events.is_empty()).then(|| PathBuf::from(events)),
            group: values::group_of_labels(&labels).map(str::to_owned),
            env_file: layers.file.as_ref().map(|file| file.path.clone()),
            env_file_lines_skipped: layers.file.iter().flat_map(|file| &file.lines_skipped).map(|line| line.number).collect(),
            env_file_unknown_keys: unknown_keys(layers.file.as_ref()),
            node,
            settings: Vec::new(),
        };
        Ok(Self { settings: layers.settings, ..config })
    }
}

/// Whether two paths are those of one file, which need not be there yet.
fn is_same_file(one: &Path, other: &Path) -> bool {
    match (std::fs::metadata(one), std::fs::metadata(other)) {
        // Of a device, such as /dev/null, nothing is read again.
        (Ok(one), Ok(other)) => one.is_file() && (one.st_dev(), one.st_ino()) == (other.st_dev(), other.st_ino()),
        _ => std::path::absolute(one).is_ok_and(|one| std::path::absolute(other).is_ok_and(|other| one == other)),
    }
}

/// The env file: the one asked for, else the first of the usual places that exists.
fn read_env_file(flags: &ServeFlags, layers: &Layers<'_>) -> Result<Option<EnvFile>, ConfigError> {
    let named = match &flags.env_file {
        Some(path) => Some(path.clone()),
        None => layers.below_flags(&["POSTANALYTICS_ENV_FILE"])?.map(|(path, _)| path),
    };
    let found = || env_file::DEFAULT_PATHS.iter().map(Path::new).find(|path| path.exists());
    let file = match named {
        Some(path) => Some(EnvFile::read(Path::new(&path), Chosen::ByName, &known_keys())),
        None => found().map(|path| EnvFile::read(path, Chosen::ByItself, &known_keys())),
    };
    file.transpose().map_err(ConfigError::start)
}

fn read_node_yaml(flags: &ServeFlags, layers: &Layers<'_>) -> Result<Option<NodeYaml>, ConfigError> {
    let path = match &flags.node_yaml {
        Some(path) => Some(PathBuf::from(path)),
        None => match layers.below_flags(&["POSTANALYTICS_NODE_YAML"])? {
            Some((path, _)) => Some(PathBuf::from(path)),
            None => node_yaml::DEFAULT_PATHS.iter().map(PathBuf::from).find(|path| path.exists()),
        },
    };
    path.map(|path| NodeYaml::read(&path)).transpose().map_err(ConfigError::start)
}

/// `--listen`, else HOST and PORT, each for itself, else node.yaml, else the default. HOST or PORT against node.yaml is an error.
fn listen_address(flags: &ServeFlags, layers: &mut Layers<'_>, node: Option<&NodeYaml>) -> Result<Address, ConfigError> {
    if let Some(text) = &flags.listen {
        layers.note("listen", text, &Source::Flag);
        return values::address(text).map_err(|error| bad_value("listen", text, &Source::Flag, &error));
    }
    let part = |names: &'static [&'static str], key: &str, in_node: Option<String>, default: &str| {
        let stated = layers.below_flags(names)?;
        let place = node.map(|node| format!("{}.{key} of {}", node.section, node.path.display())).unwrap_or_default();
        match (stated, in_node) {
            (Some((value, source)), Some(other)) if value != other => Err(ConfigError::start(format!(
                "{} is {value:?} (from {source}) but {place} says {other:?}: take one of them out, or make them equal, or give \
                 --listen, which wins over both",
                names[0]
            ))),
            (Some(stated), _) => Ok(stated),
            (None, Some(other)) => Ok((other, Source::NodeYaml(place))),
            (None, None) => Ok((default.to_owned(), Source::Default)),
        }
    };
    let (host, host_source) = part(&["HOST"], "host", node.and_then(|node| node.host.clone()), DEFAULT_HOST)?;
    let node_port = node.and_then(|node| node.port).map(|port| port.to_string());
    let (port, port_source) = part(&["PORT"], "port", node_port, &DEFAULT_PORT.to_string())?;
    let bare_host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(&host).to_owned();
    let wrong_port = "it must be a port, 0 to 65535";
    let number = port.parse().map_err(|_| bad_value("listen", &port, &port_source, wrong_port))?;
    layers.note("host", &host, &host_source);
    layers.note("port", &port, &port_source);
    Ok(Address { host: bare_host, port: number })
}

fn receive_buffers(text: &str) -> Result<u16, String> {
    let count: u16 = values::count(text)?;
    // The kernel takes rings of 2^n entries, at most 32,768.
    if count.is_power_of_two() { Ok(count) } else { Err("it must be a power of two, such as 16".to_owned()) }
}

fn buffer_bytes(text: &str) -> Result<u32, String> {
    let bytes: u32 = values::count(text)?;
    if (256..=16 << 20).contains(&bytes) { Ok(bytes) } else { Err("it must be 256 to 16777216 bytes".to_owned()) }
}

/// Both values or none: with one alone, nodes would find that the servers do not belong together.
fn deployment(flags: &ServeFlags, layers: &mut Layers<'_>) -> Result<Option<Deployment>, ConfigError> {
    let deployment_id = layers.parse(&DEPLOYMENT_ID, flags.deployment_id.as_deref(), id)?;
    let (key_file, _) = layers.text(&IDENTITY_KEY_FILE, flags.identity_key_file.as_deref())?;
    match (deployment_id, key_file.as_str()) {
        (None, "") => Ok(None),
        (Some(id), file) if !file.is_empty() => Ok(Some(Deployment { id, identity_key: read_identity_key(Path::new(file))? })),
        (Some(_), _) => Err(ConfigError::start(
            "deployment-id is given and identity-key-file is not: servers of the same nodes share both; make a key with \
             `openssl rand -hex 32` and give all of them the same file",
        )),
        (None, file) => Err(ConfigError::start(format!(
            "identity-key-file is {file:?} and deployment-id is not given: servers of the same nodes share both; make an id with \
             `uuidgen` and give all of them the same"
        ))),
    }
}

fn read_identity_key(path: &Path) -> Result<[u8; 32], ConfigError> {
    let text = read_small_file(path, 4096).map_err(ConfigError::start)?;
    let digits = text.trim();
    let wrong = || {
        ConfigError::start(format!(
            "the identity key in {} has {} characters: it must be 64 hexadecimal digits; make one with `openssl rand -hex 32`",
            path.display(),
            digits.len()
        ))
    };
    let mut key = [0; 32];
    if digits.len() != 2 * key.len() || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(wrong());
    }
    for (byte, at) in key.iter_mut().zip((0..).step_by(2)) {
        *byte = u8::from_str_radix(&digits[at..at + 2], 16).map_err(|_| wrong())?;
    }
    Ok(key)
}

fn id(text: &str) -> Result<Option<[u8; 16]>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse::<uuid::Uuid>().map(|id| Some(id.into_bytes())).map_err(|error| format!("it must be a UUID: {error}"))
}

fn joined(parts: &[String]) -> Option<String> {
    (!parts.is_empty()).then(|| parts.join(","))
}

fn words(text: &str) -> Vec<String> {
    text.split([',', ' ']).filter(|word| !word.is_empty()).map(str::to_ascii_lowercase).collect()
}

/// What an env file may have that means something here.
fn known_keys() -> Vec<&'static str> {
    ALL_KEYS.iter().flat_map(|key| key.names).copied().chain(OTHER_NAMES).collect()
}

fn unknown_keys(file: Option<&EnvFile>) -> Vec<String> {
    file.map(|file| file.unknown_keys(&known_keys()).into_iter().map(str::to_owned).collect()).unwrap_or_default()
}

/// Reads what the detectors count; the error names the line.
fn read_detection(path: &Path) -> Result<DetectionConfig, ConfigError> {
    let text = read_small_file(path, 1 << 20).map_err(ConfigError::start)?;
    DetectionConfig::parse(&text).map_err(|error| ConfigError::start(format!("{}: {error}", path.display())))
}

fn read_token(path: &Path) -> Result<String, ConfigError> {
    let text = read_small_file(path, 4096).map_err(ConfigError::start)?;
    let token = text.trim();
    if token.len() < TOKEN_BYTES_MIN || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(ConfigError::start(format!(
            "the token in {} has {} characters: it must have at least {TOKEN_BYTES_MIN}, all printable ASCII; make one with \
             `head -c 24 /dev/urandom | base64`",
            path.display(),
            token.len()
        )));
    }
    Ok(token.to_owned())
}

/// Reads a text file of at most `bytes_max` bytes.
pub(crate) fn read_small_file(path: &Path, bytes_max: u64) -> Result<String, String> {
    let mut text = String::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(bytes_max + 1).read_to_string(&mut text));
    match read {
        Ok(bytes) if bytes as u64 > bytes_max => Err(format!("{} is longer than {bytes_max} bytes", path.display())),
        Ok(_) => Ok(text),
        Err(error) => Err(format!("cannot read {}: {error}; give a readable file", path.display())),
    }
}

#[cfg(test)]
mod tests;
