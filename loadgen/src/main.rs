//! The command `loadgen`: parse, run, report, exit code.
#![forbid(unsafe_code)]

use anyhow::{Context, Result};
use clap::{CommandFactory, Parser, error::ErrorKind};
use postanalytics_loadgen::measure::Outcome;
use postanalytics_loadgen::plan::{Arguments, Command, Plan, RunArguments};
use postanalytics_loadgen::report::{Report, write_hgrm};
use postanalytics_loadgen::{machine, raw, run};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, atomic::AtomicBool};

const EXIT_BROKEN: u8 = 1;
const EXIT_COULD_NOT_RUN: u8 = 3;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = match arguments.command {
        Some(command) => side_command(&command),
        None => load(&arguments.run),
    };
    done.unwrap_or_else(|error| {
        eprintln!("loadgen: {error:#}");
        ExitCode::from(EXIT_COULD_NOT_RUN)
    })
}

fn side_command(command: &Command) -> Result<ExitCode> {
    let mut definition = Arguments::command();
    // Into memory first: the generators panic when a pipe is closed.
    let mut text = Vec::new();
    match command {
        Command::Completions { shell } => clap_complete::generate(*shell, &mut definition, "loadgen", &mut text),
        Command::Man => clap_mangen::Man::new(definition).render(&mut text)?,
    }
    std::io::stdout().write_all(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn load(arguments: &RunArguments) -> Result<ExitCode> {
    let plan = Plan::from_arguments(arguments, &machine::allowed_cpus())
        .unwrap_or_else(|error| Arguments::command().error(ErrorKind::ValueValidation, error).exit());
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        // The first ends the run and reports it; the second ends the program.
        signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&stop))?;
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    // Before the run: a file that cannot be written is not worth a run's time.
    let files = Files::create(arguments)?;
    let outcome = if plan.raw { raw::run(&plan, &stop)? } else { run::run(&plan, &stop)? };
    let (report, broken) = Report::new(&plan.target, &outcome);
    files.write(&report, &outcome)?;
    let json_on_stdout = arguments.json.as_deref().is_some_and(|file| file.as_os_str() == "-");
    let mut out: Box<dyn Write> =
        if json_on_stdout { Box::new(std::io::stderr().lock()) } else { Box::new(std::io::stdout().lock()) };
    writeln!(out, "{}", report.table(&outcome))?;
    if !outcome.has_schedule {
        writeln!(out, "no send times are intended in this mode: both latency columns are measured from the hand-over")?;
    }
    if report.generator_bound {
        let percent = 100.0 * outcome.sent.late_share();
        let unsent = match outcome.sent.unsent {
            0 => String::new(),
            unsent => format!(", and {unsent} due records were never sent"),
        };
        writeln!(
            out,
            "generator-bound: {percent:.1} % of the sends were more than 1 ms late{unsent}: the latencies are not the server's"
        )?;
    }
    let notes = outcome.notes.iter().map(|note| format!("note: {note}"));
    for line in notes.chain(broken.iter().map(|law| format!("NOT RECONCILED: {law}"))) {
        writeln!(out, "{line}")?;
    }
    let mut is_fine = broken.is_empty();
    for assertion in &arguments.assert {
        if let Some(found) = assertion.broken(&report) {
            writeln!(out, "BROKEN: {assertion} (found {found})")?;
            is_fine = false;
        }
    }
    Ok(if is_fine { ExitCode::SUCCESS } else { ExitCode::from(EXIT_BROKEN) })
}

/// Where the result goes besides the terminal.
struct Files {
    json: Option<Box<dyn Write>>,
    hgrm: Option<File>,
}

impl Files {
    fn create(arguments: &RunArguments) -> Result<Self> {
        let create = |file: &Path| {
            File::create(file).with_context(|| format!("cannot write {}; does its folder exist, for this user?", file.display()))
        };
        let json: Option<Box<dyn Write>> = match arguments.json.as_deref() {
            Some(file) if file.as_os_str() == "-" => Some(Box::new(std::io::stdout())),
            Some(file) => Some(Box::new(create(file)?)),
            None => None,
        };
        Ok(Self { json, hgrm: arguments.hgrm.as_deref().map(create).transpose()? })
    }

    fn write(self, report: &Report, outcome: &Outcome) -> Result<()> {
        if let Some(mut out) = self.json {
            report.write_json(&mut out).context("cannot write the --json file")?;
        }
        if let Some(file) = self.hgrm {
            let mut out = BufWriter::new(file);
            let histogram = if outcome.has_schedule { &outcome.acked.corrected } else { &outcome.acked.uncorrected };
            write_hgrm(histogram, &mut out).and_then(|()| out.flush()).context("cannot write the --hgrm file")?;
        }
        Ok(())
    }
}
