//! Runs worlds: one seed, or many on several threads. A panic in a world is its verdict.

use super::fate::{Fault, KINDS};
use super::server::Totals;
use super::{World, fate};
use postanalytics_server::seeded::{self, Bug};
use std::cell::{Cell, RefCell};
use std::fmt;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, Once, PoisonError};

/// What a world did.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    /// Of every completion, turn and their times: equal for equal seeds.
    pub trace: u64,
    /// How often each fault struck.
    pub faults: [u64; KINDS],
    /// What all its servers did.
    pub totals: Totals,
    /// Steps it took.
    pub steps: u64,
}

/// A seed whose world broke a rule.
#[derive(Clone, Debug)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// The bug that was switched on.
    pub bug: Option<Bug>,
    /// What the oracle said.
    pub text: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seed = self.seed;
        let bug = self.bug.map_or_else(String::new, |bug| format!(" --bug {}", bug.name()));
        let replay = format!("cargo run --release -p postanalytics-tests --bin simulate -- --seed {seed}{bug}");
        write!(f, "seed {seed} (replay it with `{replay}`): {}", self.text)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "trace {:016x}, {} steps; {:?}", self.trace, self.steps, self.totals)?;
        write_faults(&self.faults, f)
    }
}

/// How often each fault struck, a line for each.
fn write_faults(faults: &[u64; KINDS], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    Fault::ALL.iter().try_for_each(|fault| writeln!(f, "{:>12}  {}", faults[*fault as usize], fault.text()))
}

/// Many worlds together.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Summary {
    pub worlds: u64,
    pub steps: u64,
    pub faults: [u64; KINDS],
    pub totals: Totals,
    pub failures: Vec<Failure>,
}

impl Default for Summary {
    fn default() -> Self {
        Self { worlds: 0, steps: 0, faults: [0; KINDS], totals: Totals::default(), failures: Vec::new() }
    }
}

impl Summary {
    /// Faults that never struck.
    pub fn missing(&self) -> Vec<&'static str> {
        Fault::ALL.iter().filter(|fault| self.faults[**fault as usize] == 0).map(|fault| fault.text()).collect()
    }

    fn add(&mut self, report: &Report) {
        self.worlds += 1;
        self.steps += report.steps;
        self.faults.iter_mut().zip(report.faults).for_each(|(sum, count)| *sum += count);
        let (sum, of) = (&mut self.totals, report.totals);
        sum.records_stored += of.records_stored;
        sum.records_duplicate += of.records_duplicate;
        sum.records_rejected += of.records_rejected;
        sum.records_evicted += of.records_evicted;
        sum.errors_sent += of.errors_sent;
        sum.connections += of.connections;
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} worlds, {} steps, {} failures; {:?}", self.worlds, self.steps, self.failures.len(), self.totals)?;
        write_faults(&self.faults, f)
    }
}

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Keeps what panics of worlds say instead of printing it; others print as ever.
fn hush() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let print = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if QUIET.get() {
                PANIC.with_borrow_mut(|first| {
                    first.get_or_insert_with(|| info.to_string());
                });
            } else {
                print(info);
            }
        }));
    });
}

/// Runs the world of a seed, with one bug switched on if asked.
pub fn once(seed: u64, bug: Option<Bug>) -> Result<Report, Failure> {
    hush();
    seeded::set(bug);
    QUIET.set(true);
    PANIC.take();
    let ran = catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::new(seed);
        world.run();
        let faults = world.fate.get().counts;
        Report { trace: world.fate.trace(), faults, totals: world.totals, steps: world.steps }
    }));
    QUIET.set(false);
    seeded::set(None);
    // Also a panic that something caught on its way is one too many.
    match (ran, PANIC.take()) {
        (Ok(report), None) => Ok(report),
        (_, text) => Err(Failure { seed, bug, text: text.unwrap_or_default() }),
    }
}

/// Runs the worlds of many seeds on so many threads, and stops at `failures_max`.
pub fn many(seeds: Range<u64>, bug: Option<Bug>, threads: usize, failures_max: usize) -> Summary {
    let next = AtomicU64::new(seeds.start);
    let summary = Mutex::new(Summary::default());
    let lock = || summary.lock().unwrap_or_else(PoisonError::into_inner);
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                while lock().failures.len() < failures_max {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    match once(seed, bug) {
                        Ok(report) => lock().add(&report),
                        Err(failure) => lock().failures.push(failure),
                    }
                }
            });
        }
    });
    let mut summary = lock().clone();
    summary.failures.sort_by_key(|failure| failure.seed);
    summary
}

const _: () = assert!(fate::KINDS == KINDS);
