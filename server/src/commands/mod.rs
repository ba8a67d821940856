//! The subcommands that look at a configuration or ask a running server.
//!
//! - [`configuration`]: `--check-config`, `--print-config`
//! - [`server`]: `status`, `nodes`; [`found`]: `alerts`, `attacks`, `requests`, `top`, `timeline`; [`denylist`]; [`explain`]
//! - [`client`] asks, [`table`] shows
//!
//! A command makes one text of what the server answered: with `--json` the answer itself.

pub(crate) mod client;
pub(crate) mod configuration;
pub(crate) mod denylist;
pub(crate) mod explain;
pub(crate) mod found;
pub(crate) mod server;
mod table;

use crate::config::ask_flags::{AskCommand, AskFlags};
use crate::escape::plain_json;
use serde_json::Value;

/// Runs a command: what to print.
pub(crate) fn ask(command: &AskCommand) -> anyhow::Result<String> {
    match command {
        AskCommand::Status(flags) => server::status(flags),
        AskCommand::Nodes(flags) => server::nodes(flags),
        AskCommand::Alerts(flags) => found::alerts(flags),
        AskCommand::Attacks(flags) => found::attacks(flags),
        AskCommand::Requests(flags) => found::requests(flags),
        AskCommand::Top(flags) => found::top(flags),
        AskCommand::Timeline(flags) => found::timeline(flags),
        AskCommand::Denylist { command } => denylist::denylist(command),
        AskCommand::Explain(flags) => explain::explain(flags),
    }
}

/// The answer itself, or what `show` makes of it.
fn shown(flags: &AskFlags, answer: &Value, show: impl FnOnce(&Value) -> String) -> String {
    if flags.json { plain_json(format!("{answer}\n")) } else { show(answer) }
}

/// Said where nothing can be found, for nothing is looked for.
const DETECTORS_OFF: &str = "no detector runs and nothing is counted: the server was started without --config. Start it with --config \
                             FILE; an empty file means all defaults";

/// Why an answer is empty: `none`, unless no detector runs.
fn none_of<'a>(answer: &Value, none: &'a str) -> &'a str {
    if answer["detectors_run"] == false { DETECTORS_OFF } else { none }
}

/// The rows of an answer under this name.
fn rows<'a>(answer: &'a Value, name: &str) -> &'a [Value] {
    answer[name].as_array().map_or(&[], Vec::as_slice)
}
