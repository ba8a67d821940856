//! From the command line to a checked plan.

use crate::peers::install::Programs;
use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use postanalytics_loadgen::machine::allowed_cpus;
use postanalytics_loadgen::plan::parse_duration;
use std::path::PathBuf;
use std::time::Duration;

/// Side by side with other stores: one core each, the same records, the same generator, in one run.
#[derive(Clone, Debug, Args)]
pub struct Arguments {
    /// Write the result as JSON
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Only these workloads (repeatable)
    #[arg(long, value_enum)]
    pub workload: Vec<Workload>,
    /// Only these systems (repeatable)
    #[arg(long, value_enum)]
    pub system: Vec<SystemKind>,
    /// Ours by pre-built messages only, not through the client crate too
    #[arg(long)]
    pub no_client: bool,
    /// Option of our server, to compare settings (repeatable): --server-option=--receive-buffers=64
    #[arg(long, value_name = "OPTION", allow_hyphen_values = true)]
    pub server_option: Vec<String>,
    /// Runs of each, of which the medians count
    #[arg(long, default_value_t = 5)]
    pub runs: usize,
    /// Length of a measured window
    #[arg(long, value_parser = parse_duration, default_value = "2s")]
    pub duration: Duration,
    /// Rows that the peers keep
    #[arg(long, default_value_t = 300_000)]
    pub rows: u64,
    /// Arena of postanalytics, gigabytes of 2^30 bytes
    #[arg(long, default_value_t = 0.5)]
    pub arena: f64,
    /// A short run, to see that everything works: its figures mean nothing
    #[arg(long)]
    pub quick: bool,
    /// Do not fetch what is missing: say what it is, and go on without it
    #[arg(long)]
    pub no_install: bool,
    /// CPU of the servers [default: the first allowed]
    #[arg(long, value_name = "N")]
    pub server_cpu: Option<usize>,
    /// CPU of the generator [default: the last allowed]
    #[arg(long, value_name = "N")]
    pub generator_cpu: Option<usize>,
    /// TCP congestion control on both sides
    #[arg(long, value_name = "NAME", default_value = "cubic")]
    pub congestion: String,
}

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[expect(missing_docs, reason = "their names")]
pub enum SystemKind {
    Postanalytics,
    Tarantool,
    Redis,
    Discard,
}

impl SystemKind {
    /// Its name in the JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Postanalytics => "postanalytics",
            Self::Tarantool => "tarantool",
            Self::Redis => "redis",
            Self::Discard => "discard",
        }
    }
}

/// What is sent, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum Workload {
    /// 64 records a message, few connections
    Batched,
    /// The same for Tarantool without its index by source, which is less work
    BatchedNoindex,
    /// 64 records a message of visitors who browse, ours with all detectors, which no peer has
    Detectors,
    /// One record a message and a write, 256 connections
    Single,
    /// 1,000 filtering nodes of 80 records a second, each with the lanes of eight shards
    Fleet,
}

impl Workload {
    /// Its name in the JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Batched => "batched",
            Self::BatchedNoindex => "batched_noindex",
            Self::Detectors => "detectors",
            Self::Single => "single",
            Self::Fleet => "fleet",
        }
    }
}

/// A checked run.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "as the options of the same names")]
pub struct Plan {
    pub workloads: Vec<Workload>,
    pub systems: Vec<SystemKind>,
    pub no_client: bool,
    pub server_option: Vec<String>,
    pub runs: usize,
    pub duration: Duration,
    pub warm_up: Duration,
    pub rows: u64,
    pub arena_gb: f64,
    pub quick: bool,
    pub install: bool,
    pub server_cpu: usize,
    pub generator_cpu: usize,
    pub congestion: String,
}

impl Plan {
    /// Checks the options.
    pub fn from_arguments(arguments: &Arguments) -> Result<Self> {
        let cpus = allowed_cpus();
        let (Some(&first), Some(&last)) = (cpus.first(), cpus.last()) else {
            anyhow::bail!("the system does not say which CPUs are allowed");
        };
        let (server_cpu, generator_cpu) = (arguments.server_cpu.unwrap_or(first), arguments.generator_cpu.unwrap_or(last));
        ensure!(
            server_cpu != generator_cpu && cpus.contains(&server_cpu) && cpus.contains(&generator_cpu),
            "the servers need a CPU (--server-cpu {server_cpu}) and the generator another (--generator-cpu {generator_cpu}), out of \
             the allowed {cpus:?}"
        );
        ensure!(arguments.runs > 0, "--runs 0: nothing would be measured");
        ensure!((10_000..=20_000_000).contains(&arguments.rows), "--rows is {}; 10,000 to 20,000,000", arguments.rows);
        let all = || <Workload as ValueEnum>::value_variants().to_vec();
        let systems = || <SystemKind as ValueEnum>::value_variants().to_vec();
        let quick = arguments.quick;
        Ok(Self {
            workloads: if arguments.workload.is_empty() { all() } else { arguments.workload.clone() },
            systems: if arguments.system.is_empty() { systems() } else { arguments.system.clone() },
            no_client: arguments.no_client,
            server_option: arguments.server_option.clone(),
            runs: if quick { 1 } else { arguments.runs },
            duration: if quick { Duration::from_millis(300) } else { arguments.duration },
            warm_up: Duration::from_millis(if quick { 50 } else { 300 }),
            rows: if quick { 20_000 } else { arguments.rows },
            arena_gb: if quick { 0.0625 } else { arguments.arena },
            quick,
            install: !arguments.no_install,
            server_cpu,
            generator_cpu,
            congestion: arguments.congestion.clone(),
        })
    }

    /// Whether programs of others take part.
    pub fn needs_programs(&self) -> bool {
        self.systems.iter().any(|system| matches!(system, SystemKind::Tarantool | SystemKind::Redis))
    }

    /// Leaves the systems out whose programs are not here, and returns their names.
    pub fn leave_out_missing(&mut self, programs: &Programs) -> Vec<&'static str> {
        let is_missing = |system: SystemKind| match system {
            SystemKind::Tarantool => programs.tarantool().is_err(),
            SystemKind::Redis => programs.redis().is_err(),
            SystemKind::Postanalytics | SystemKind::Discard => false,
        };
        let missing = self.systems.extract_if(.., |system| is_missing(*system));
        missing.map(|system| system.name()).collect()
    }

    /// Raises the limit on open files as far as the workloads need. Children inherit it.
    pub fn raise_file_limit(&self, wanted: u64) -> Result<()> {
        use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
        let limit = getrlimit(Resource::Nofile);
        if limit.current.is_some_and(|current| current < wanted) {
            let maximum = limit.maximum.map(|maximum| maximum.max(wanted));
            setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum }).with_context(|| {
                format!("{wanted} open files are needed, the limit is {:?}; raise it (ulimit -Hn)", limit.maximum)
            })?;
        }
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The smallest one.
    pub(in crate::peers) fn plan(workloads: &[Workload], systems: &[SystemKind], no_client: bool) -> Plan {
        Plan {
            workloads: workloads.to_vec(),
            systems: systems.to_vec(),
            no_client,
            server_option: Vec::new(),
            runs: 1,
            duration: Duration::from_millis(1),
            warm_up: Duration::ZERO,
            rows: 10_000,
            arena_gb: 0.0625,
            quick: true,
            install: false,
            server_cpu: 0,
            generator_cpu: 1,
            congestion: "cubic".to_owned(),
        }
    }
}
