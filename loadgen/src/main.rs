//! The command `loadgen`: parse, run, report, exit code.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, bail};
use clap::{CommandFactory, Parser, error::ErrorKind};
use postanalytics_loadgen::assertion::Assertion;
use postanalytics_loadgen::attack::campaign::write_truth;
use postanalytics_loadgen::find_max::{self, CONFIRMATIONS, End, FindMax, Purpose, Step};
use postanalytics_loadgen::measure::Outcome;
use postanalytics_loadgen::plan::{Arguments, Command, MergeArguments, Mode, Plan, RunArguments};
use postanalytics_loadgen::report::{Report, write_hgrm};
use postanalytics_loadgen::{machine, merge, open_files, raw, run};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const EXIT_BROKEN: u8 = 1;
const EXIT_COULD_NOT_RUN: u8 = 3;
/// An interrupted run is reported if it measured for so long.
const WINDOW_SECONDS_MIN: f64 = 0.1;

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
        Command::Merge(arguments) => return merge_reports(arguments),
        Command::Completions { shell } => clap_complete::generate(*shell, &mut definition, "loadgen", &mut text),
        Command::Man { out: Some(folder), .. } => {
            std::fs::create_dir_all(folder)
                .and_then(|()| clap_mangen::generate_to(definition, folder))
                .with_context(|| format!("cannot write the manual pages to {}; may this user?", folder.display()))?;
        }
        Command::Man { subcommand, out: None } => {
            definition = definition.disable_help_subcommand(true);
            definition.build();
            let page = match subcommand {
                None => definition,
                Some(name) => definition.find_subcommand(name).cloned().with_context(|| {
                    let names: Vec<&str> = definition.get_subcommands().map(clap::Command::get_name).collect();
                    format!("there is no subcommand '{name}'; there are {}", names.join(", "))
                })?,
            };
            clap_mangen::Man::new(page).render(&mut text)?;
        }
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
    open_files::raise_limit();
    // Before the run: a file that cannot be written is not worth a run's time.
    let files = Files::create(arguments)?;
    if arguments.find_max {
        return find_max(arguments, &plan, &stop, files);
    }
    let outcome = one_run(&plan, &stop)?;
    if stop.load(Ordering::Relaxed) && outcome.window_seconds < WINDOW_SECONDS_MIN {
        bail!("interrupted before the measured window began, or as it did: nothing was measured");
    }
    let (report, broken) = Report::new(&plan.target, &outcome);
    files.write(&report, Some(&outcome))?;
    let mut notes = outcome.notes;
    if !outcome.has_schedule {
        notes.insert(
            0,
            "no send times are intended in this mode: both latency columns are measured from the hand-over".to_owned(),
        );
    }
    print(&report, &notes, &unreconciled(&broken), &arguments.assert, arguments.json.as_deref())
}

fn unreconciled(laws: &[String]) -> Vec<String> {
    laws.iter().map(|law| format!("NOT RECONCILED: {law}")).collect()
}

fn one_run(plan: &Plan, stop: &AtomicBool) -> Result<Outcome> {
    if plan.raw { raw::run(plan, stop) } else { run::run(plan, stop) }
}

/// A run whose report may become the result of a search.
struct Candidate {
    report: Report,
    broken: Vec<String>,
    notes: Vec<String>,
}

/// Searches, and reports the run in the middle (by p99) of those that confirmed the result, or else the last run.
fn find_max(arguments: &RunArguments, plan: &Plan, stop: &AtomicBool, files: Files) -> Result<ExitCode> {
    let mut candidates: Vec<(u64, Purpose, Candidate)> = Vec::new();
    let mut attempt = |rate, purpose| {
        let plan = Plan { mode: Mode::Open { rate }, ..plan.clone() };
        let step = match one_run(&plan, stop) {
            _ if stop.load(Ordering::Relaxed) && !plan.raw => return Err(End::Interrupted),
            // Without a first run there is no server, or none that this can talk to.
            Err(error) if candidates.is_empty() => return Err(End::Failed(error)),
            Err(error) => {
                // A raw run that failed has told its threads to stop.
                stop.store(false, Ordering::Relaxed);
                Step::failed(rate, purpose, &error)
            }
            Ok(_) if stop.load(Ordering::Relaxed) => return Err(End::Interrupted),
            Ok(outcome) => {
                let (report, broken) = Report::new(&plan.target, &outcome);
                let step = Step::judge(rate, purpose, &report, &arguments.slo, &broken);
                candidates.push((rate, purpose, Candidate { report, broken, notes: outcome.notes }));
                step
            }
        };
        eprintln!("{step}");
        Ok(step)
    };
    let Mode::Open { rate: first } = plan.mode else { bail!("--find-max searches a rate; leave the other modes out") };
    let found =
        FindMax { slo: arguments.slo.iter().map(ToString::to_string).collect(), ..find_max::search(first, &mut attempt)? };
    let is_result =
        |(rate, purpose, _): &(u64, Purpose, Candidate)| Some(*rate) == found.confirmed_rate && *purpose == Purpose::Confirm;
    let (mut confirmed, others): (Vec<_>, Vec<_>) = candidates.into_iter().partition(is_result);
    // The last three: the same rate may have failed before.
    confirmed.drain(..confirmed.len().saturating_sub(CONFIRMATIONS));
    confirmed.sort_by_key(|(_, _, candidate)| candidate.report.latency_us.corrected.p99);
    let middle = confirmed.len() / 2;
    let chosen = confirmed.into_iter().nth(middle).or_else(|| others.into_iter().next_back());
    let (_, _, Candidate { mut report, broken, mut notes }) = chosen.context("interrupted before the first run ended")?;
    notes.push(found.summary());
    let mut broken = unreconciled(&broken);
    if found.confirmed_rate.is_none() {
        broken.push("BROKEN: no rate could be confirmed; the figures are those of the last run".to_owned());
    }
    report.find_max = Some(found);
    files.write(&report, None)?;
    print(&report, &notes, &broken, &arguments.assert, arguments.json.as_deref())
}

fn merge_reports(arguments: &MergeArguments) -> Result<ExitCode> {
    let read = |file: &PathBuf| Ok((file.display().to_string(), merge::read(file)?));
    let reports = arguments.files.iter().map(read).collect::<Result<Vec<_>>>()?;
    let merged = merge::merge(&reports)?;
    let json = arguments.json.as_deref();
    if let Some(mut out) = json.map(create_json).transpose()? {
        merged.write_json(&mut out).context("cannot write the --json file")?;
    }
    let unreconciled = reports.iter().filter(|(_, report)| !report.reconciled);
    let broken: Vec<String> = unreconciled.map(|(name, _)| format!("NOT RECONCILED: {name}")).collect();
    print(&merged, &merge::remarks(&merged), &broken, &arguments.assert, json)
}

/// The table, the notes, what is broken; and the exit code.
fn print(
    report: &Report,
    notes: &[String],
    broken: &[String],
    assertions: &[Assertion],
    json: Option<&Path>,
) -> Result<ExitCode> {
    let json_on_stdout = json.is_some_and(|file| file.as_os_str() == "-");
    let mut out: Box<dyn Write> =
        if json_on_stdout { Box::new(std::io::stderr().lock()) } else { Box::new(std::io::stdout().lock()) };
    writeln!(out, "{}", report.table())?;
    if report.generator_bound {
        let percent =
            if report.sends_scheduled == 0 { 0.0 } else { 100.0 * report.sends_late as f64 / report.sends_scheduled as f64 };
        let unsent = match report.records_unsent {
            0 => String::new(),
            unsent => format!(", and {unsent} due records were never sent"),
        };
        writeln!(
            out,
            "generator-bound: {percent:.1} % of the sends were more than 1 ms late{unsent}: the latencies are not the server's"
        )?;
    }
    for line in notes.iter().map(|note| format!("note: {note}")).chain(broken.iter().cloned()) {
        writeln!(out, "{line}")?;
    }
    let mut is_fine = broken.is_empty();
    for assertion in assertions {
        if let Some(found) = assertion.broken(report) {
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
    truth: Option<File>,
}

impl Files {
    fn create(arguments: &RunArguments) -> Result<Self> {
        let json = arguments.json.as_deref().map(create_json).transpose()?;
        let [hgrm, truth] = [&arguments.hgrm, &arguments.truth].map(|file| file.as_deref().map(create).transpose());
        Ok(Self { json, hgrm: hgrm?, truth: truth? })
    }

    fn write(self, report: &Report, outcome: Option<&Outcome>) -> Result<()> {
        if let Some(mut out) = self.json {
            report.write_json(&mut out).context("cannot write the --json file")?;
        }
        if let (Some(file), Some(outcome)) = (self.hgrm, outcome) {
            let mut out = BufWriter::new(file);
            let histogram = if outcome.has_schedule { &outcome.acked.corrected } else { &outcome.acked.uncorrected };
            write_hgrm(histogram, &mut out).and_then(|()| out.flush()).context("cannot write the --hgrm file")?;
        }
        if let (Some(file), Some(attacks)) = (self.truth, outcome.and_then(|outcome| outcome.attacks.as_ref())) {
            write_truth(&attacks.attackers, &mut BufWriter::new(file)).context("cannot write the --truth file")?;
        }
        Ok(())
    }
}

fn create(file: &Path) -> Result<File> {
    if file.as_os_str() == "-" {
        bail!("'-', standard output, is for --json alone; give the name of a file");
    }
    File::create(file).with_context(|| format!("cannot write {}; does its folder exist, for this user?", file.display()))
}

fn create_json(file: &Path) -> Result<Box<dyn Write>> {
    Ok(if file.as_os_str() == "-" { Box::new(std::io::stdout()) } else { Box::new(create(file)?) })
}
