//! What `/requests?source=` takes over a full arena, and what it costs those who send records meanwhile.
//!
//! Starts a server of its own with one shard, fills its arena with `loadgen --raw --saturate`, then measures three kinds of
//! source (with few records, with about one in every thousandth, with none), idle and at half of the maximum just found. One
//! JSON object on standard output. Everything runs on loopback and ends with this program.
//!
//! A query is asked every 50 ms; latencies of the sender are loadgen's, from the intended send time. On two cores, loadgen,
//! the control plane and this program share the one that the shard leaves. Senders are other machines in truth, so loadgen
//! is started with `nice -n -15` (which takes root; without, their latencies contain each other's turns, and `generator_bound`
//! says so). With `--fifo` it has the core whenever it wants it: its latencies are then those of machines of their own, and the queries
//! wait for what it leaves. `server_ack_us` is what the shard took from its turn's begin to the Ack, by its own histogram, whose
//! bounds are powers of two, warm-up included: the senders are not in it, nor is what waits in the sockets while a turn with a slice of
//! a query goes on, which is as long as that turn. What it does not do: judge the figures.

#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "the result goes to standard output")]

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use postanalytics_client::{Client, Request};
use postanalytics_loadgen::traffic::source_address;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The source with many records.
const MANY: IpAddr = IpAddr::V4(Ipv4Addr::new(203, 0, 113, 77));
/// A source without records: loadgen has none of this network.
const NONE: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 1));
/// Between the starts of two queries.
const QUERY_INTERVAL: Duration = Duration::from_millis(50);
/// Sources that a lap of loadgen's frames holds at least.
const SOURCES: u32 = 100_000;

/// Measures /requests?source= over a full arena, idle and with ingest at half of its maximum.
#[derive(Debug, Parser)]
struct Arguments {
    /// The server to start [default: the one beside this program]
    #[arg(long, value_name = "FILE")]
    server: Option<PathBuf>,
    /// The load generator [default: the one beside this program]
    #[arg(long, value_name = "FILE")]
    loadgen: Option<PathBuf>,
    /// Arena in GB
    #[arg(long, default_value_t = 1.0)]
    arena: f64,
    /// Seconds that each phase is measured
    #[arg(long, default_value_t = 6)]
    seconds: u64,
    /// CPU that loadgen is pinned to; the server's shard takes another
    #[arg(long, default_value_t = 0)]
    cpu: usize,
    /// Let loadgen have its CPU before all others (chrt --fifo 1, as root): shows what queries cost senders, not how fast they are
    #[arg(long)]
    fifo: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let bench = Bench::start(&arguments)?;
    // After the server was started, which is to see all CPUs.
    ensure!(core_affinity::set_for_current(core_affinity::CoreId { id: arguments.cpu }), "cannot pin to CPU {}", arguments.cpu);
    let max = bench.load(&["--saturate"], arguments.seconds)?;
    let records_per_second = max["records_per_second"].as_f64().context("loadgen states records_per_second")?;
    let rate = format!("{}/s", (records_per_second / 2.0) as u64);
    let stop = AtomicBool::new(false);
    let result = std::thread::scope(|scope| {
        let many = scope.spawn(|| bench.send_many(records_per_second / 2000.0, &stop));
        let measured = bench.phases(&rate, arguments.seconds);
        stop.store(true, Ordering::Relaxed);
        // Without its records the source with many would be one with none.
        many.join().unwrap_or_else(|_| bail!("the thread of the source with many records panicked"))?;
        measured
    });
    let (without, idle, (with, under_load)) = result?;
    let status = bench.status()?;
    let json = json!({
        "arena_gb": arguments.arena,
        "records_live": status["totals"]["live_records"],
        "records_per_second_max": records_per_second as u64,
        "records_per_server_cpu_second_max": max["records_per_server_cpu_second"],
        "ingest_rate": rate,
        "ingest_without_queries": ingest(&without),
        "ingest_with_queries": ingest(&with),
        "queries_idle": idle,
        "queries_under_load": under_load,
    });
    println!("{}", serde_json::to_string_pretty(&json)?);
    Ok(())
}

/// What a run of loadgen says of the ingest.
fn ingest(run: &Value) -> Value {
    json!({
        "client_us": run["latency_us"]["corrected"], "server_ack_us": run["server_ack_us"], "records_per_second": run["records_per_second"],
        "generator_bound": run["generator_bound"], "reconciled": run["reconciled"],
    })
}

/// The server under measurement; ends when dropped.
struct Bench {
    server: Child,
    loadgen: PathBuf,
    ingest: SocketAddr,
    status: SocketAddr,
    cpu: usize,
    fifo: bool,
    folder: tempfile::TempDir,
}

type Phases = (Value, Value, (Value, Value));

impl Bench {
    fn start(arguments: &Arguments) -> Result<Self> {
        let beside = |given: &Option<PathBuf>, name: &str| match given {
            Some(path) => Ok(path.clone()),
            None => anyhow::Ok(std::env::current_exe()?.with_file_name(name)),
        };
        let (program, loadgen) = (beside(&arguments.server, "postanalytics")?, beside(&arguments.loadgen, "loadgen")?);
        let (ingest, status) = (free_address()?, free_address()?);
        let folder = tempfile::tempdir()?;
        let mut command = Command::new(&program);
        command.args(["--listen", &ingest.to_string(), "--status", &status.to_string(), "--shards", "1"]);
        command.args(["--env-file", "/dev/null", "--node-yaml", "/dev/null"]);
        command.args(["--arena", &arguments.arena.to_string(), "--log-file"]).arg(folder.path().join("server.log"));
        let server = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}: build it with cargo build --release --bins", program.display()))?;
        let bench = Self { server, loadgen, ingest, status, cpu: arguments.cpu, fifo: arguments.fifo, folder };
        let begun = Instant::now();
        while !get(status, "/ready").is_ok_and(|body| body.contains("true")) {
            ensure!(begun.elapsed() < Duration::from_secs(60), "the server was not ready within 60 s");
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(bench)
    }

    /// Without queries, then queries alone, then both.
    fn phases(&self, rate: &str, seconds: u64) -> Result<Phases> {
        let without = self.load(&["--rate", rate], seconds)?;
        let totals = &self.status()?["totals"];
        ensure!(totals["evicted_records"].as_u64() > Some(0), "the arena is not full: {totals}");
        let begun = Instant::now();
        let idle = self.queries(&|| begun.elapsed() < Duration::from_secs(seconds))?;
        let over = AtomicBool::new(false);
        let both = std::thread::scope(|scope| {
            let queries = scope.spawn(|| self.queries(&|| !over.load(Ordering::Relaxed)));
            let with = self.load(&["--rate", rate], seconds);
            over.store(true, Ordering::Relaxed);
            let queries = queries.join().unwrap_or_else(|_| bail!("the thread of the queries panicked"));
            anyhow::Ok((with?, queries?))
        })?;
        Ok((without, idle, both))
    }

    /// One run of loadgen; its JSON, and what the server took for its Acks.
    fn load(&self, mode: &[&str], seconds: u64) -> Result<Value> {
        let json = self.folder.path().join("result.json");
        let mut command = Command::new("nice");
        command.args(["-n", "-15"]);
        // Not at its maximum: then nobody else would ever have the core.
        if self.fifo && mode.contains(&"--rate") {
            command = Command::new("chrt");
            command.args(["--fifo", "1"]);
        }
        command.arg(&self.loadgen);
        command.args(["--target", &self.ingest.to_string(), "--raw", "--congestion", "cubic", "--warmup", "1s"]);
        command.args(["--pin", "--cpus", &self.cpu.to_string(), "--duration", &format!("{seconds}s"), "--json"]);
        let before = self.acks()?;
        let output = command.arg(&json).args(mode).stdin(Stdio::null()).output().context("cannot start loadgen")?;
        ensure!(output.status.success(), "loadgen: {}", String::from_utf8_lossy(&output.stderr));
        let mut run = read_json(&json)?;
        let buckets: Vec<(f64, u64)> =
            self.acks()?.into_iter().zip(before).map(|((bound, after), (_, before))| (bound, after - before)).collect();
        let acks = buckets.last().map_or(0, |(_, count)| *count);
        let within = |part: f64| buckets.iter().find(|(_, count)| *count as f64 >= acks as f64 * part).map(|(us, _)| *us);
        run["server_ack_us"] = json!({ "acks": acks, "p50": within(0.5), "p99": within(0.99), "p999": within(0.999) });
        Ok(run)
    }

    /// Acks so far that took so many microseconds or less, by the bounds of the server's histogram.
    fn acks(&self) -> Result<Vec<(f64, u64)>> {
        // The server publishes them once a second.
        std::thread::sleep(Duration::from_millis(1200));
        let page = get(self.status, "/metrics")?;
        let buckets = page.lines().filter_map(|line| line.strip_prefix("postanalytics_ack_latency_seconds_bucket{"));
        buckets
            .map(|line| {
                let (labels, count) = line.rsplit_once(' ').context("a sample has a value")?;
                let bound = labels.split("le=\"").nth(1).and_then(|rest| rest.split('"').next());
                let seconds: f64 = bound.context("a bucket has a bound")?.replace("+Inf", "inf").parse()?;
                Ok((seconds * 1e6, count.parse::<f64>()? as u64))
            })
            .collect()
    }

    /// Sends records of the source with many, evenly, until told to stop.
    fn send_many(&self, records_per_second: f64, stop: &AtomicBool) -> Result<()> {
        let client = Client::builder().server(self.ingest.to_string()).node_name("query-under-load").build()?;
        let (begun, mut sent) = (Instant::now(), 0.0);
        while !stop.load(Ordering::Relaxed) {
            while sent < begun.elapsed().as_secs_f64() * records_per_second {
                // A refusal makes it a few records fewer.
                let _ = client.try_send(&Request { client_ip: MANY, path: b"/many", status: 200, ..Request::default() });
                sent += 1.0;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Asks for the three kinds of source in turn while `go_on`.
    fn queries(&self, go_on: &dyn Fn() -> bool) -> Result<Value> {
        let mut kinds = [("few", Times::default()), ("many", Times::default()), ("none", Times::default())];
        let mut random = fastrand::Rng::with_seed(1);
        let mut due = Instant::now();
        for number in 0.. {
            if !go_on() {
                break;
            }
            let (kind, times) = &mut kinds[number % 3];
            let source = match *kind {
                "few" => source_address(random.u32(..SOURCES)),
                "many" => MANY,
                _ => NONE,
            };
            self.ask(source, times)?;
            due = (due + QUERY_INTERVAL).max(Instant::now());
            std::thread::sleep(due - Instant::now());
        }
        Ok(kinds.iter_mut().map(|(kind, times)| ((*kind).to_owned(), times.json())).collect::<serde_json::Map<_, _>>().into())
    }

    fn ask(&self, source: IpAddr, times: &mut Times) -> Result<()> {
        let begun = Instant::now();
        let body = get(self.status, &format!("/requests?source={source}&limit=1000"))?;
        times.ms.push(begun.elapsed().as_secs_f64() * 1e3);
        // Not parsed: that would take longer than the query.
        times.records += body.matches("\"arrival_us\":").count();
        times.partial += usize::from(!body.trim_end().ends_with("\"partial\":false}"));
        Ok(())
    }

    fn status(&self) -> Result<Value> {
        Ok(serde_json::from_str(&get(self.status, "/status")?)?)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// How long queries of one kind took.
#[derive(Default)]
struct Times {
    ms: Vec<f64>,
    records: usize,
    partial: usize,
}

impl Times {
    fn json(&mut self) -> Value {
        self.ms.sort_by(f64::total_cmp);
        let at = |part: f64| {
            let index = (self.ms.len() as f64 * part) as usize;
            self.ms.get(index.min(self.ms.len().saturating_sub(1))).map(|ms| (ms * 100.0).round() / 100.0)
        };
        json!({
            "queries": self.ms.len(), "p50_ms": at(0.5), "p99_ms": at(0.99), "max_ms": at(1.0),
            "records_mean": self.records as f64 / self.ms.len().max(1) as f64, "partial": self.partial,
        })
    }
}

fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

fn get(address: SocketAddr, path: &str) -> Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").with_context(|| format!("no HTTP answer: {answer:?}"))?;
    // A refusal would be a fast query.
    ensure!(head.split(' ').nth(1) == Some("200"), "GET {path} was answered {head:?}: {body}");
    Ok(body.to_owned())
}

fn read_json(path: &Path) -> Result<Value> {
    Ok(serde_json::from_slice(&std::fs::read(path)?)?)
}
