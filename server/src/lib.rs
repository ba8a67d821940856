//! The postanalytics server. `ARCHITECTURE.md` has the picture; [`serve`] has the order of things.
//!
//! A library, so that a test binary can run the whole server with an allocator of its own: [`run`] is all of `main`.

pub mod analytics;
pub mod arena;
pub mod audit;
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

use anyhow::Context;
use clap::{CommandFactory, Parser};
use config::Config;
use config::flags::{Command, CommandLine};
use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

/// The `postanalytics` command: parses `arguments` (the first is the program's name), does what they say, returns the exit code.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let line = match CommandLine::try_parse_from(arguments) {
        Ok(line) => line,
        Err(error) => {
            // Help and version come this way too, with exit code 0.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let result = match line.command {
        None => serve_with(&line.serve),
        Some(Command::Serve(flags)) => serve_with(&flags),
        Some(Command::Replay(flags)) => replay::replay(&flags),
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
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let severity = if logging::stderr_is_journal() { "<3>" } else { "" };
            let _ = writeln!(std::io::stderr(), "{severity}postanalytics: error: {error:#}");
            ExitCode::from(serve::exit_code(&error))
        }
    }
}

fn serve_with(flags: &config::flags::ServeFlags) -> anyhow::Result<()> {
    let config = Config::resolve(flags, &|name| std::env::var_os(name))?;
    let log_is_elsewhere = config.log_file.is_some();
    serve::serve(config).inspect_err(|error| {
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
        Some(name) => command.find_subcommand(name).cloned().ok_or_else(|| {
            let names: Vec<&str> = command.get_subcommands().map(clap::Command::get_name).collect();
            anyhow::anyhow!("there is no subcommand {name:?}: give one of {}", names.join(", "))
        })?,
    };
    let mut text = Vec::new();
    clap_mangen::Man::new(page).render(&mut text)?;
    print(&text)
}

fn print(text: &[u8]) -> anyhow::Result<()> {
    Ok(std::io::stdout().write_all(text)?)
}
