//! The command `peers`: postanalytics, Tarantool, Redis and receive-and-discard side by side. docs/performance.md says how to
//! run it and what is equal.

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use postanalytics_benches::peers::install::Programs;
use postanalytics_benches::peers::plan::{Arguments, Plan};
use postanalytics_benches::peers::report::{self, Report};
use postanalytics_benches::peers::run;
use postanalytics_benches::peers::systems::{discard, postanalytics};
use std::ffi::OsString;
use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;

const EXIT_VOID: u8 = 1;
const EXIT_COULD_NOT_RUN: u8 = 3;

/// Side by side with other stores: one core each, the same records, the same generator, in one run.
#[derive(Debug, Parser)]
#[command(name = "peers", version, args_conflicts_with_subcommands = true)]
struct CommandLine {
    #[command(subcommand)]
    server: Option<Server>,
    #[command(flatten)]
    arguments: Arguments,
}

/// The servers that this program itself is, when it starts itself.
#[derive(Debug, Subcommand)]
enum Server {
    #[command(hide = true, name = discard::SUBCOMMAND)]
    Discard { silent: SocketAddr, answering: SocketAddr, congestion: String },
    #[command(hide = true, name = postanalytics::SUBCOMMAND, disable_help_flag = true)]
    Postanalytics {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    let line = CommandLine::parse();
    let done = match line.server {
        Some(Server::Discard { silent, answering, congestion }) => {
            discard::serve(silent, answering, &congestion).map(|()| ExitCode::SUCCESS)
        }
        Some(Server::Postanalytics { arguments }) => {
            return postanalytics_server::run([OsString::from("postanalytics")].into_iter().chain(arguments));
        }
        None => compare(&line.arguments),
    };
    done.unwrap_or_else(|error| {
        eprintln!("peers: {error:#}");
        ExitCode::from(EXIT_COULD_NOT_RUN)
    })
}

fn compare(arguments: &Arguments) -> Result<ExitCode> {
    ensure!(
        arguments.quick || !postanalytics_server::seeded::IN_THIS_BINARY,
        "this program was built together with the tests (cargo build --workspace), so the server in it has their switches on the way of every \
         frame; build it alone: cargo build --release -p postanalytics-benches --bin peers"
    );
    let mut plan = Plan::from_arguments(arguments)?;
    let programs = Programs::find_or_fetch(plan.install && plan.needs_programs())?;
    let missing = plan.leave_out_missing(&programs);
    ensure!(
        !plan.systems.is_empty(),
        "nothing is left to measure: {} is not here; install it, or give other --system",
        missing.join(", ")
    );
    let machine = report::machine();
    let outcome = run::run(&plan, &programs)?;
    let report = Report::new(&plan, &machine, &outcome.findings);
    if let Some(file) = &arguments.json {
        let json = serde_json::to_string_pretty(&report.lines)?;
        std::fs::write(file, json + "\n").with_context(|| format!("cannot write {}", file.display()))?;
    }
    let mut out = std::io::stdout().lock();
    write!(out, "{}", report.text())?;
    missing.iter().try_for_each(|name| writeln!(out, "SKIPPED {name}: it is not here"))?;
    if !outcome.failures.is_empty() {
        // What was finished is written; what failed is not in it.
        outcome.failures.iter().for_each(|failure| eprintln!("peers: failed: {failure}"));
        return Ok(ExitCode::from(EXIT_COULD_NOT_RUN));
    }
    Ok(if report.void().is_empty() { ExitCode::SUCCESS } else { ExitCode::from(EXIT_VOID) })
}
