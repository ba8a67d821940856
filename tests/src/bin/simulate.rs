//! Runs the simulation: `--seed N` replays one world, `--seeds N` runs many and reports what struck.

use clap::Parser;
use postanalytics_server::seeded::Bug;
use postanalytics_tests::simulation::{many, once};
use std::process::ExitCode;
use std::time::Instant;

/// Runs shards, clients and control messages over a hostile simulated kernel and network.
#[derive(Debug, Parser)]
struct Arguments {
    /// Replay the world of this seed.
    #[arg(long)]
    seed: Option<u64>,
    /// Run so many worlds.
    #[arg(long, default_value_t = 2_000)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Threads.
    #[arg(long, default_value_t = std::thread::available_parallelism().map_or(1, usize::from))]
    threads: usize,
    /// Switch a bug on, to see that it is found.
    #[arg(long, value_parser = bug)]
    bug: Option<Bug>,
    /// Stop after so many failures.
    #[arg(long, default_value_t = 10)]
    failures_max: usize,
}

fn bug(name: &str) -> Result<Bug, String> {
    let names = || Bug::ALL.map(Bug::name).join(", ");
    Bug::ALL.into_iter().find(|bug| bug.name() == name).ok_or_else(|| format!("one of {}", names()))
}

#[expect(clippy::print_stdout, reason = "its report is its purpose")]
fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(seed) = arguments.seed {
        return match once(seed, arguments.bug) {
            Ok(report) => {
                print!("seed {seed}: {report}");
                ExitCode::SUCCESS
            }
            Err(failure) => {
                println!("FAILED {failure}");
                ExitCode::FAILURE
            }
        };
    }
    let start = Instant::now();
    let seeds = arguments.from..arguments.from + arguments.seeds;
    let summary = many(seeds, arguments.bug, arguments.threads, arguments.failures_max);
    print!("{summary}");
    println!("{:.1} s on {} threads", start.elapsed().as_secs_f64(), arguments.threads);
    for failure in &summary.failures {
        println!("FAILED {failure}");
    }
    let missing = summary.missing();
    if !missing.is_empty() {
        println!("never struck: {}", missing.join(", "));
    }
    if summary.failures.is_empty() && missing.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
