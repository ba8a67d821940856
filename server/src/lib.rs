//! The postanalytics server. `ARCHITECTURE.md` has the picture; [`serve`] has the order of things.
//!
//! A library, so that a test binary can run the whole server with an allocator of its own: [`run`] is all of `main`.

mod agent;
pub mod analytics;
pub mod arena;
pub mod audit;
mod commands;
pub mod config;
pub mod control;
pub mod correlator;
pub mod doctor;
mod escape;
pub mod logging;
pub mod process;
pub mod queue;
pub mod replay;
pub mod ring;
pub mod seeded;
pub mod serve;
pub mod shard;
mod sync;

#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub use agent::agent_line;

use anyhow::Context;
use clap::{CommandFactory, FromArgMatches};
use config::Config;
use config::flags::{Command, CommandLine, RunFlags, without_empty_variables};
use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

/// The `postanalytics` command: parses `arguments` (the first is the program's name), does what they say, returns the exit code.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let is_empty = |name: &OsStr| std::env::var_os(name).is_some_and(|value| value.is_empty());
    let mut command = without_empty_variables(CommandLine::command(), &is_empty);
    let parsed = command.try_get_matches_from_mut(arguments).and_then(|matches| CommandLine::from_arg_matches(&matches));
    let line = match parsed.map_err(|error| error.format(&mut command)) {
        Ok(line) => line,
        Err(error) => {
            // Help and version come this way too, with exit code 0.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let result = match line.command {
        None => run_with(line.run),
        Some(Command::Serve(flags)) => run_with(*flags),
        Some(Command::Ask(command)) => commands::ask(&command).and_then(|text| print(text.as_bytes())),
        Some(Command::Replay(flags)) => replay::replay(&flags),
        Some(Command::Agent(flags)) => agent::run(&flags),
        Some(Command::Audit(flags)) => audit::audit(&flags),
        Some(Command::Completions { shell }) => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut CommandLine::command(), "postanalytics", &mut text);
            print(&text)
        }
        Some(Command::Doctor(flags)) => {
            let report = doctor::examine(&flags.serve);
            return match print(report.render(flags.json).as_bytes()) {
                Ok(()) => report.exit_code(),
                Err(_) => ExitCode::FAILURE,
            };
        }
        Some(Command::Man { subcommand, out }) => manual(subcommand.as_deref(), out.as_deref()),
    };
    logging::finish();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let severity = if logging::stderr_is_journal() { "<3>" } else { "" };
            logging::last_words(&format!("{severity}postanalytics: error: {error:#}"));
            ExitCode::from(serve::exit_code(&error))
        }
    }
}

fn run_with(flags: RunFlags) -> anyhow::Result<()> {
    let read = move || Config::resolve(&flags.serve, &|name| std::env::var_os(name));
    if flags.check_config {
        return print(commands::configuration::check(read())?.as_bytes());
    }
    let config = read()?;
    if flags.print_config {
        return print(commands::configuration::print(&config).as_bytes());
    }
    let log_is_elsewhere = config.log_file.is_some();
    serve::serve(config, read).inspect_err(|error| {
        // Standard error gets it anyway.
        if log_is_elsewhere {
            tracing::error!("{error:#}");
        }
    })
}

/// Prints a manual page, or writes all into a folder.
fn manual(subcommand: Option<&str>, out: Option<&Path>) -> anyhow::Result<()> {
    let mut command = CommandLine::command().disable_help_subcommand(true);
    if let Some(folder) = out {
        let failed = || format!("cannot write the manual pages to {}: give a folder that can be written to", folder.display());
        std::fs::create_dir_all(folder).with_context(failed)?;
        return clap_mangen::generate_to(command, folder).with_context(failed);
    }
    command.build();
    let page = match subcommand {
        None => command,
        Some(name) => find_page(&command, name).cloned().ok_or_else(|| {
            let names: Vec<&str> = command.get_subcommands().map(clap::Command::get_name).collect();
            anyhow::anyhow!("there is no subcommand {name:?}: give one of {}", names.join(", "))
        })?,
    };
    let mut text = Vec::new();
    clap_mangen::Man::new(page).render(&mut text)?;
    print(&text)
}

/// The subcommand of a manual page: `top`, and `denylist-add` of a subcommand's own.
fn find_page<'a>(command: &'a clap::Command, name: &str) -> Option<&'a clap::Command> {
    command.get_subcommands().find_map(|subcommand| match name.strip_prefix(subcommand.get_name())? {
        "" => Some(subcommand),
        rest => find_page(subcommand, rest.strip_prefix('-')?),
    })
}

fn print(text: &[u8]) -> anyhow::Result<()> {
    match std::io::stdout().write_all(text) {
        // Who reads has read enough, as `head` does.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}
