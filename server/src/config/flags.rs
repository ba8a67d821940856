//! The command line. Values stay texts here: flags, environment and env file go through the same parsers later, so that
//! each value is read the same way wherever it stands, and an error can say where that was.

use super::ask_flags::AskCommand;
use clap::builder::RangedU64ValueParser;
use clap::{Args, Parser, Subcommand};
use std::ffi::OsStr;

const EXAMPLES: &str = "\
Examples:
  postanalytics                                       127.0.0.1:3313, 1 GB
  postanalytics --listen 0.0.0.0:3313 --allow 10.0.0.0/8
  postanalytics --shards 2 --arena 4.0 --log json
  SLAB_ALLOC_ARENA=8.0 postanalytics serve
  postanalytics --env-file /etc/postanalytics/env --log-file /var/log/postanalytics.log
  postanalytics doctor                                would it start here, as configured?
  postanalytics --print-config > postanalytics.toml   every number of the detectors, explained
  postanalytics --check-config --config postanalytics.toml
  curl -s 127.0.0.1:9001/status

Every value: flag, else environment, else env file, else default; the log names the source of each. SIGHUP reads env file, --config,
allowlist and token anew; shards, memory and ports stay as they are.";

const DOCTOR_HELP: &str = "\
Give the flags, environment and env file that the server gets. Run it as the user, in the unit or container, that the server runs in.
Nothing is changed; the ports are bound for a moment, the memory is not taken.

Exit code: 0 all is fine or there are warnings only, 1 the server would not start, or not as configured.

Examples:
  postanalytics doctor
  postanalytics doctor --listen 0.0.0.0:3313 --allow 10.0.0.0/8 --arena 4
  systemd-run --pty -p LimitMEMLOCK=8M postanalytics doctor --env-file /etc/postanalytics/env
  postanalytics doctor --json | jq '.findings[] | select(.judgement != \"fine\")'";

/// Stores and analyses the requests that filtering nodes have processed.
#[derive(Debug, Parser)]
#[command(name = "postanalytics", version, propagate_version = true, after_help = EXAMPLES, args_conflicts_with_subcommands = true)]
pub struct CommandLine {
    /// What to do; nothing is `serve`.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Flags of `serve`.
    #[command(flatten)]
    pub run: RunFlags,
}

/// The same command line for which empty variables, as a unit or a Compose file has them, are not given: clap takes them for values.
pub fn without_empty_variables(command: clap::Command, is_empty: &dyn Fn(&OsStr) -> bool) -> clap::Command {
    let forget = |argument: clap::Arg| match argument.get_env() {
        Some(name) if is_empty(name) => argument.env(None::<&'static str>),
        _ => argument,
    };
    command.mut_args(forget).mut_subcommands(|subcommand| without_empty_variables(subcommand, is_empty))
}

/// Flags of `serve`, and what to do with the configuration instead of running it.
#[derive(Clone, Debug, Default, Args)]
pub struct RunFlags {
    /// Read the whole configuration as a start would, say the first thing that is wrong with it, and exit: 0 if it is right, 2 if
    /// not
    #[arg(long, conflicts_with = "print_config")]
    pub check_config: bool,
    /// Print the configuration of the detectors as --config would read it, every value with what it means, and exit
    #[arg(long)]
    pub print_config: bool,
    /// Flags of `serve`.
    #[command(flatten)]
    pub serve: ServeFlags,
}

/// Subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the server (the default).
    #[command(after_help = EXAMPLES)]
    Serve(Box<RunFlags>),
    /// What asks a running server.
    #[command(flatten)]
    Ask(AskCommand),
    /// Run the detectors over access logs or records, and print their alerts as JSON lines
    #[command(after_help = REPLAY_EXAMPLES)]
    Replay(ReplayFlags),
    /// Say whom the detectors would have caught in logs, how fast, and what memory and shards such traffic needs
    #[command(after_help = AUDIT_EXAMPLES)]
    Audit(AuditFlags),
    /// Follow access logs and send their requests to postanalytics: a filtering node without a module
    #[command(after_help = AGENT_EXAMPLES)]
    Agent(AgentFlags),
    /// Print the completions of a shell, for example: postanalytics completions bash > /etc/bash_completion.d/postanalytics
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Say whether the server would start on this machine as configured, and what to do if not.
    #[command(after_help = DOCTOR_HELP)]
    Doctor(Box<DoctorFlags>),
    /// Print a manual page, for example: postanalytics man | man -l -
    Man {
        /// The subcommand whose page is meant; nothing is the page of the whole.
        subcommand: Option<String>,
        /// Write all pages into this folder instead: postanalytics.1, postanalytics-serve.1 and so on.
        #[arg(long, value_name = "DIR", conflicts_with = "subcommand")]
        out: Option<std::path::PathBuf>,
    },
}

/// Flags of `doctor`: those of `serve`, so that the configuration judged is the one that would be started.
#[derive(Clone, Debug, Default, Args)]
pub struct DoctorFlags {
    /// Print one JSON object instead of lines for people.
    #[arg(long)]
    pub json: bool,
    /// Flags of `serve`.
    #[command(flatten)]
    pub serve: ServeFlags,
}

const REPLAY_EXAMPLES: &str = "\
Examples:
  postanalytics replay /var/log/nginx/access.log
  postanalytics replay --config rules.toml access.log.2.gz access.log.1 access.log > alerts.jsonl
  postanalytics replay --format jsonl --shards 4 records.jsonl
  postanalytics replay --from-server http://127.0.0.1:9001 --last 15m --config rules.toml --status-token-file /etc/postanalytics/token";

/// What the lines of a replay are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LineFormat {
    /// Access log of NGINX or Apache, combined or common, with or without syslog prefix and virtual host.
    Combined,
    /// JSON, an object a line: records, rows of /requests, or an access log as NGINX or Caddy writes it.
    Jsonl,
    /// The same with texts escaped as on the pages of a server.
    #[value(skip)]
    EscapedJsonl,
}

/// Keys of a replay: less would be no state, and more have no place in its fingerprints.
fn keys() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1 << 10..=1 << 28)
}

/// Flags of `replay`.
#[derive(Clone, Debug, Args)]
pub struct ReplayFlags {
    /// What the lines are
    #[arg(long, value_enum, default_value = "combined")]
    pub format: LineFormat,
    /// Numbers of the detectors and overrides, TOML; the defaults without
    #[arg(long, value_name = "FILE")]
    pub config: Option<std::path::PathBuf>,
    /// Threads that share the sources; the alerts are the same with any number
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub shards: u32,
    /// Keys that have room in the state, about 160 bytes each with the room for their lists; more than are live keep every alert
    /// exact; 1024 to 268435456
    #[arg(long, value_name = "N", default_value_t = 1 << 20, value_parser = keys())]
    pub keys: usize,
    /// Take an access log as it is: do not look for attacks in its lines. With them, multi_payload and probing have hits to
    /// count, and detectors that leave out requests with hits do so, as on a server
    #[arg(long)]
    pub no_filter: bool,
    /// Files, plain or gzip, read one after the other
    #[arg(value_name = "FILE", required_unless_present = "from_server", conflicts_with = "from_server")]
    pub files: Vec<std::path::PathBuf>,
    /// The requests that a running server still holds, instead of files: prints how its alerts differ from those of --config
    #[arg(long, value_name = "URL", conflicts_with = "format")]
    pub from_server: Option<String>,
    /// How far back they and the alerts go, by the clock of this machine
    #[arg(long, value_name = "DURATION", default_value = "15m", requires = "from_server", conflicts_with = "files")]
    pub last: String,
    /// File with the server's token: without it, query values and payloads are hidden
    #[arg(long, value_name = "FILE", env = "POSTANALYTICS_STATUS_TOKEN_FILE")]
    pub status_token_file: Option<std::path::PathBuf>,
}

const AUDIT_EXAMPLES: &str = "\
Examples:
  postanalytics audit /var/log/nginx/access.log
  postanalytics audit access.log.2.gz access.log.1 access.log
  postanalytics audit --config rules.toml access.log        with the numbers and overrides of a server
  postanalytics audit --format jsonl --json records.jsonl > findings.json

Nothing is sent anywhere and no server is needed. `postanalytics replay` prints the alerts themselves.";

/// Flags of `audit`.
#[derive(Clone, Debug, Args)]
pub struct AuditFlags {
    /// What the lines are
    #[arg(long, value_enum, default_value = "combined")]
    pub format: LineFormat,
    /// Numbers of the detectors and overrides, TOML; the defaults without
    #[arg(long, value_name = "FILE")]
    pub config: Option<std::path::PathBuf>,
    /// Threads that share the sources; the findings are the same with any number
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub shards: u32,
    /// Keys that have room in the state, about 160 bytes each with the room for their lists; more than are live keep every alert
    /// exact; 1024 to 268435456
    #[arg(long, value_name = "N", default_value_t = 1 << 20, value_parser = keys())]
    pub keys: usize,
    /// Write one JSON object with everything instead of the page
    #[arg(long)]
    pub json: bool,
    /// Files, plain or gzip, read one after the other
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<std::path::PathBuf>,
}

const AGENT_EXAMPLES: &str = "\
Examples:
  postanalytics agent --tail /var/log/nginx/access.log --server 10.0.0.9
  postanalytics agent --tail /var/log/nginx/shop.log --tail /var/log/nginx/blog.log --server 10.0.0.9 --server 10.0.0.10
  postanalytics agent --tail access.log --from-start --once --state ./agent.json       all of a log, then end
  postanalytics agent --tail access.jsonl --format jsonl --trusted-proxy 10.0.0.0/8

Every line is stored once. A killed agent loses nothing: it goes on at its cursor, and the lines of its last second may come twice, with
the same request ids. While the server is away it reads on until 65,536 lines or 32 MB wait, then the files are the buffer. Rotation by
rename and by copytruncate is followed. Passwords, keys and card numbers are masked before they are sent. docs/agent.md has a unit for
systemd.";

/// Flags of `agent`.
#[derive(Clone, Debug, Args)]
pub struct AgentFlags {
    /// A log to follow (repeatable)
    #[arg(long, value_name = "FILE", required = true)]
    pub tail: Vec<std::path::PathBuf>,
    /// A postanalytics server; with several each visitor goes to one of them (repeatable) [default: 127.0.0.1:3313]
    #[arg(long, value_name = "HOST[:PORT]")]
    pub server: Vec<String>,
    /// What the lines are. combined may have more fields behind the user agent; jsonl is an object a line with the names of NGINX's
    /// variables, or of records, or as Caddy writes it
    #[arg(long, value_enum, default_value = "combined")]
    pub format: LineFormat,
    /// Begin at the start of a log that has no cursor, not at its end
    #[arg(long)]
    pub from_start: bool,
    /// Read what is there now, wait until all is acknowledged, and end: for cron and tests. Begins at the start where there is no
    /// cursor
    #[arg(long)]
    pub once: bool,
    /// Where the cursors are kept [default: agent.json in $STATE_DIRECTORY, for root in /var/lib/postanalytics, else in
    /// ~/.local/state/postanalytics]
    #[arg(long, value_name = "FILE", env = "POSTANALYTICS_AGENT_STATE")]
    pub state: Option<std::path::PathBuf>,
    /// A proxy or load balancer before the web server: for lines of its address, the last address of X-Forwarded-For that is none of
    /// these is the visitor's (repeatable)
    #[arg(long, value_name = "NET", value_parser = super::values::network)]
    pub trusted_proxy: Vec<ipnet::IpNet>,
    /// This node's name, for people [default: the host's name]
    #[arg(long, value_name = "NAME")]
    pub node_name: Option<String>,
    /// Application id of the requests; -1 is the default application
    #[arg(long, value_name = "ID", default_value_t = -1, allow_negative_numbers = true)]
    pub application: i32,
    /// What is masked in place of the built-in lists, TOML: headers, parameters, card_numbers
    #[arg(long, value_name = "FILE")]
    pub mask: Option<std::path::PathBuf>,
    /// Log as text or json
    #[arg(long, value_name = "FORMAT", default_value = "text", value_parser = ["text", "json"])]
    pub log: String,
}

/// Flags of `serve`.
#[derive(Clone, Debug, Default, Args)]
pub struct ServeFlags {
    /// Address for filtering nodes; port 0 takes any free port [env: HOST, PORT] [default: 127.0.0.1:3313]
    #[arg(long, value_name = "HOST:PORT")]
    pub listen: Option<String>,
    /// Address for /health, /ready, /metrics, /status and /requests, or none; loopback and the networks of --allow are
    /// answered [env: POSTANALYTICS_STATUS] [default: 127.0.0.1:9001]
    #[arg(long, value_name = "HOST:PORT")]
    pub status: Option<String>,
    /// A name under which the status address may be asked for (repeatable) [env: POSTANALYTICS_STATUS_HOST]
    #[arg(long, value_name = "NAME")]
    pub status_host: Vec<String>,
    /// File with the token that shows raw requests, cookies, query values and payloads on the status pages, and lets the denylist
    /// be changed there [env: POSTANALYTICS_STATUS_TOKEN_FILE]
    #[arg(long, value_name = "FILE")]
    pub status_token_file: Option<String>,
    /// Number of shards, each a pinned thread; 0: the allowed CPUs less one [env: POSTANALYTICS_SHARDS] [default: 0]
    #[arg(long, value_name = "N")]
    pub shards: Option<String>,
    /// Let shards share CPUs instead of pinning each to its own [env: POSTANALYTICS_NO_PIN]
    #[arg(long)]
    pub no_pin: bool,
    /// Memory for stored requests, gigabytes of 2^30 bytes, such as 2 or 1.5 [env: SLAB_ALLOC_ARENA, TARANTOOL_MEMORY_GB]
    /// [default: 1.0]
    #[arg(long, value_name = "GB")]
    pub arena: Option<String>,
    /// Where the arena is kept over restarts; only none for now [env: POSTANALYTICS_ARENA_DIR] [default: none]
    #[arg(long, value_name = "DIR")]
    pub arena_dir: Option<String>,
    /// A network that may connect, also to the status pages, such as 10.0.0.0/8 (repeatable); loopback always may [env: ALLOW,
    /// with commas or spaces]
    #[arg(long, value_name = "NET")]
    pub allow: Vec<String>,
    /// Let everybody connect who can reach the address [env: POSTANALYTICS_INSECURE]
    #[arg(long)]
    pub insecure: bool,
    /// Connections of filtering nodes in total [env: POSTANALYTICS_CONNECTIONS_MAX] [default: 10000]
    #[arg(long, value_name = "N")]
    pub connections_max: Option<String>,
    /// Connections of filtering nodes per address [env: POSTANALYTICS_CONNECTIONS_PER_ADDRESS_MAX] [default: 4096]
    #[arg(long, value_name = "N")]
    pub connections_per_address_max: Option<String>,
    /// Receive buffers per shard [env: POSTANALYTICS_RECEIVE_BUFFERS] [default: 16]
    #[arg(long, value_name = "N")]
    pub receive_buffers: Option<String>,
    /// Bytes of each receive buffer [env: POSTANALYTICS_RECEIVE_BUFFER_BYTES] [default: 262144]
    #[arg(long, value_name = "BYTES")]
    pub receive_buffer_bytes: Option<String>,
    /// How long a frame may take from its first byte to its last, 1s to 60s [env: POSTANALYTICS_FRAME_DEADLINE] [default: 10s]
    #[arg(long, value_name = "DURATION")]
    pub frame_deadline: Option<String>,
    /// How long the end may take after SIGTERM, up to 600s [env: POSTANALYTICS_DRAIN_DEADLINE] [default: 10s]
    #[arg(long, value_name = "DURATION")]
    pub drain_deadline: Option<String>,
    /// Id of this server; random if not given. Where nodes have several servers, their sources stay with this one over a restart
    /// only if it is given [env: POSTANALYTICS_SERVER_ID]
    #[arg(long, value_name = "UUID")]
    pub server_id: Option<String>,
    /// Id that all servers of the same nodes share; random if not given. Goes with --identity-key-file
    /// [env: POSTANALYTICS_DEPLOYMENT_ID]
    #[arg(long, value_name = "UUID")]
    pub deployment_id: Option<String>,
    /// File with 64 hexadecimal digits (`openssl rand -hex 32`), the same for all servers of the same nodes: the key with which
    /// nodes hash user names and session ids; random if not given [env: POSTANALYTICS_IDENTITY_KEY_FILE]
    #[arg(long, value_name = "FILE")]
    pub identity_key_file: Option<String>,
    /// Run the detectors, with these numbers and actions (TOML, may be empty), read again on SIGHUP. Without it none runs: they
    /// still cost more than all the rest [env: POSTANALYTICS_CONFIG]
    #[arg(long, value_name = "FILE")]
    pub config: Option<String>,
    /// Log as text or json [env: POSTANALYTICS_LOG] [default: text]. POSTANALYTICS_LOG_FILTER in the environment (off, error,
    /// warn, info, debug or trace) narrows or widens it [default: info]
    #[arg(long, value_name = "FORMAT")]
    pub log: Option<String>,
    /// Log to a file, reopened on SIGHUP and SIGUSR1, instead of to standard error [env: POSTANALYTICS_LOG_FILE]
    #[arg(long, value_name = "FILE")]
    pub log_file: Option<String>,

    /// Write alerts and verdicts to a file as JSON lines, reopened on SIGHUP and SIGUSR1 [env: POSTANALYTICS_EVENTS]
    #[arg(long, value_name = "FILE")]
    pub events: Option<String>,
    /// Read this env file instead of the first found [env: POSTANALYTICS_ENV_FILE]
    #[arg(long, value_name = "FILE")]
    pub env_file: Option<String>,
    /// Read this node.yaml instead of the first found [env: POSTANALYTICS_NODE_YAML]
    #[arg(long, value_name = "FILE")]
    pub node_yaml: Option<String>,
}
