//! The command line of the commands that ask a running server.

use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Which server is asked, and how its answer is shown.
#[derive(Clone, Debug, Args)]
pub struct AskFlags {
    /// Where the server's pages are
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:9001", env = "POSTANALYTICS_STATUS_URL")]
    pub status_url: String,
    /// File with the server's token: shows raw requests, query values and payloads, and allows changes of the denylist
    #[arg(long, value_name = "FILE", env = "POSTANALYTICS_STATUS_TOKEN_FILE")]
    pub status_token_file: Option<PathBuf>,
    /// Print the server's JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

/// Which rows, by what most pages know.
#[derive(Clone, Debug, Args)]
pub struct RowFlags {
    /// Only this address; an IPv6 address stands for its /64
    #[arg(long, value_name = "ADDRESS")]
    pub source: Option<String>,
    /// Only this application; -1 is the default application
    #[arg(long, value_name = "ID", allow_negative_numbers = true)]
    pub application: Option<i32>,
    /// Only this host
    #[arg(long, value_name = "HOST")]
    pub host: Option<String>,
    /// Not before: how long ago, such as 15m, or a time such as 2026-01-31T12:00:00Z
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Before this time
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
    /// Most rows
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub limit: u32,
}

/// Flags of `status`, `nodes`.
#[derive(Clone, Debug, Args)]
pub struct StatusFlags {
    /// Which server.
    #[command(flatten)]
    pub ask: AskFlags,
}

/// Flags of `alerts`.
#[derive(Clone, Debug, Args)]
pub struct AlertsFlags {
    /// Only this detector
    #[arg(long, value_name = "NAME")]
    pub detector: Option<String>,
    /// Which rows.
    #[command(flatten)]
    pub rows: RowFlags,
    /// Which server.
    #[command(flatten)]
    pub ask: AskFlags,
}

/// Flags of `attacks`.
#[derive(Clone, Debug, Args)]
pub struct AttacksFlags {
    /// This attack with its samples, instead of a list
    #[arg(value_name = "ID", conflicts_with_all = ["attack_type", "source", "application", "host", "since", "until", "limit"])]
    pub id: Option<String>,
    /// Only this type of hits, such as sqli, or this detector
    #[arg(long = "type", value_name = "TYPE")]
    pub attack_type: Option<String>,
    /// Which rows.
    #[command(flatten)]
    pub rows: RowFlags,
    /// Which server.
    #[command(flatten)]
    pub ask: AskFlags,
}

/// Flags of `requests`.
#[derive(Clone, Debug, Args)]
pub struct RequestsFlags {
    /// This request, instead of a list
    #[arg(value_name = "ID", conflicts_with_all = ["source", "since", "limit"])]
    pub id: Option<String>,
    /// Only this address; an IPv6 address stands for its /64
    #[arg(long, value_name = "ADDRESS")]
    pub source: Option<String>,
    /// Not before: how long ago, such as 15m, or a time such as 2026-01-31T12:00:00Z
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Most rows
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub limit: u32,
    /// Which server.
    #[command(flatten)]
    pub ask: AskFlags,
}

/// Of what the most frequent are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TopOf {
    /// Addresses.
    Sources,
    /// Paths.
    Paths,
    /// User agents.
    UserAgents,
    /// Types of hits.
    Types,
}

/// Flags of `top`.
#[derive(Clone, Debug, Args)]
pub struct TopFlags {
    /// Of what
    #[arg(value_enum, value_name = "WHAT", default_value = "sources")]
    pub of: TopOf,
    /// Only this application; -1 is the default application
    #[arg(long, value_name = "ID", allow_negative_numbers = true)]
    pub application: Option<i32>,
    /// Most rows
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub limit: u32,
    /// Which server.
    #[command(flatten)]
    pub ask: AskFlags,
}

/// Flags of `timeline`.
#[derive(Clone, Debug, Args)]
pub struct TimelineFlags {
    /// Only this application; -1 is the default application
    #[arg(long, value_name = "ID", allow_negative_numbers = true)]
    pub application: Option<i32>,
    /// Not before: how long ago, such as 15m, or a time such as 2026-01-31T12:00:00Z
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Which server.
    #[command(flatten)]
    pub ask: AskFlags,
}

/// What to do with the denylist.
#[derive(Clone, Debug, Subcommand)]
pub enum DenylistCommand {
    /// Show who is listed, soonest to end first
    #[command(after_help = LIST_HELP)]
    List {
        /// Whom.
        #[command(flatten)]
        whom: WhomFlags,
        /// Which server.
        #[command(flatten)]
        ask: AskFlags,
    },
    /// List somebody; every connected filter knows at once (needs the token)
    #[command(after_help = ADD_HELP)]
    Add {
        /// Whom.
        #[command(flatten)]
        whom: WhomFlags,
        /// What the filters are to do
        #[arg(long, value_enum, default_value = "denylist")]
        action: Action,
        /// For how long: 1m to 3660d
        #[arg(long = "for", value_name = "DURATION", default_value = "1h")]
        duration: String,
        /// Which server.
        #[command(flatten)]
        ask: AskFlags,
    },
    /// Take somebody off the list (needs the token)
    #[command(after_help = DEL_HELP)]
    Del {
        /// Whom.
        #[command(flatten)]
        whom: WhomFlags,
        /// Which server.
        #[command(flatten)]
        ask: AskFlags,
    },
}

/// What filters do with whom they find on the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Action {
    /// Refuse.
    Denylist,
    /// Watch.
    Graylist,
}

/// Whom a verdict is about.
#[derive(Clone, Debug, Args)]
pub struct WhomFlags {
    /// An address; an IPv6 address stands for its /64
    #[arg(value_name = "ADDRESS", conflicts_with = "session")]
    pub source: Option<String>,
    /// A session, by the 16 hexadecimal digits of session_hash
    #[arg(long, value_name = "HASH")]
    pub session: Option<String>,
    /// In this application; without it, in all
    #[arg(long, value_name = "ID", allow_negative_numbers = true)]
    pub application: Option<i32>,
}

/// Flags of `explain`.
#[derive(Clone, Debug, Args)]
pub struct ExplainFlags {
    /// An address, or the id of a request: 32 hexadecimal digits
    #[arg(value_name = "SOURCE|REQUEST-ID")]
    pub what: String,
    /// Which server.
    #[command(flatten)]
    pub ask: AskFlags,
}

const STATUS_HELP: &str = "\
Examples:
  postanalytics status
  postanalytics status --status-url http://10.0.0.9:9001
  postanalytics status --json | jq .timeframe";

const NODES_HELP: &str = "\
Examples:
  postanalytics nodes
  postanalytics nodes --status-url http://10.0.0.9:9001
  postanalytics nodes --json";

const ALERTS_HELP: &str = "\
Examples:
  postanalytics alerts --since 15m
  postanalytics alerts --detector brute_force --source 192.0.2.7
  postanalytics alerts --json | jq '.alerts[] | select(.level == \"critical\")'";

const ATTACKS_HELP: &str = "\
Examples:
  postanalytics attacks --since 1h
  postanalytics attacks --type sqli --host shop.example.com
  postanalytics attacks 00f1e2d3c4b5a697 --status-token-file /etc/postanalytics/token";

const REQUESTS_HELP: &str = "\
Examples:
  postanalytics requests --source 192.0.2.7 --since 15m
  postanalytics requests 000102030405060708090a0b0c0d0e0f --status-token-file /etc/postanalytics/token
  postanalytics requests --limit 1000 --json | jq -r '.requests[].path' | sort | uniq -c";

const TOP_HELP: &str = "\
Examples:
  postanalytics top
  postanalytics top paths --limit 50
  postanalytics top user-agents --application 3";

const TIMELINE_HELP: &str = "\
Examples:
  postanalytics timeline
  postanalytics timeline --since 15m --application 3
  postanalytics timeline --json";

const LIST_HELP: &str = "\
Examples:
  postanalytics denylist list
  postanalytics denylist list 192.0.2.7 --json";

const ADD_HELP: &str = "\
Examples:
  postanalytics denylist add 192.0.2.7 --for 1d --status-token-file /etc/postanalytics/token
  postanalytics denylist add 2001:db8::1 --action graylist --application 3";

const DEL_HELP: &str = "\
Examples:
  postanalytics denylist del 192.0.2.7 --status-token-file /etc/postanalytics/token";

const DENYLIST_HELP: &str = "\
Changing the list needs the token that the server was started with (--status-token-file).

Examples:
  postanalytics denylist list
  postanalytics denylist add 192.0.2.7 --for 1d --status-token-file /etc/postanalytics/token
  postanalytics denylist add 2001:db8::1 --action graylist --application 3
  postanalytics denylist del 192.0.2.7";

const EXPLAIN_HELP: &str = "\
Examples:
  postanalytics explain 192.0.2.7
  postanalytics explain 000102030405060708090a0b0c0d0e0f
  postanalytics explain 192.0.2.7 --json | jq '.detectors[] | select(.level_percent > 50)'";

/// The commands.
#[derive(Clone, Debug, Subcommand)]
pub enum AskCommand {
    /// Show the state of a running server
    #[command(after_help = STATUS_HELP)]
    Status(StatusFlags),
    /// Show the filtering nodes that are connected
    #[command(after_help = NODES_HELP)]
    Nodes(StatusFlags),
    /// Show what the detectors found, newest first
    #[command(after_help = ALERTS_HELP)]
    Alerts(AlertsFlags),
    /// Show attacks: hits that belong together, and what detectors found; newest first
    #[command(after_help = ATTACKS_HELP)]
    Attacks(AttacksFlags),
    /// Show stored requests, newest first
    #[command(after_help = REQUESTS_HELP)]
    Requests(RequestsFlags),
    /// Show the most frequent sources, paths, user agents or types of hits
    #[command(after_help = TOP_HELP)]
    Top(TopFlags),
    /// Show requests, hits and answers by minute
    #[command(after_help = TIMELINE_HELP)]
    Timeline(TimelineFlags),
    /// Show who is listed, list somebody, take somebody off
    #[command(after_help = DENYLIST_HELP)]
    Denylist {
        /// What to do.
        #[command(subcommand)]
        command: DenylistCommand,
    },
    /// Say what is known of a source or a request: what is stored, how near each detector is to firing, and why requests did not
    /// count
    #[command(after_help = EXPLAIN_HELP)]
    Explain(ExplainFlags),
}
