//! Sending through the client crate: the whole way of a record, from `try_send` to the acknowledgement. The clients' background
//! threads share the generator's core.

use crate::peers::measure::Window;
use crate::peers::plan::{Plan, Workload};
use crate::peers::process::ServerProcess;
use crate::peers::records::{Corpus, Stored};
use crate::peers::schedule::{FLEET_CLIENTS, FLEET_RATE};
use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use hdrhistogram::Histogram;
use postanalytics_client::{AckedRecord, Client};
use postanalytics_loadgen::clock::{WAKE_INTERVAL_NS, duration_ns, monotonic_ns, process_cpu_us, sleep_until};
use postanalytics_loadgen::measure::{LATENCY_US_MAX, latency_histogram};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Bytes that all clients together may hold, flat out.
const HELD_BYTES_MAX: u64 = 8 << 20;
const FULL_PAUSE_NS: u64 = 100_000;
const FLUSH_TIMEOUT: Duration = Duration::from_secs(20);
/// Records between two looks at clock and client.
const BURST: u64 = 64;
/// Records of a message of the batched workload.
const BATCH: usize = 64;
/// Connections of the single workload.
const SINGLE_CLIENTS: usize = 256;

/// Clients of one server.
pub struct Clients {
    clients: Vec<Client>,
    acked: Arc<Mutex<Acked>>,
    cursor: usize,
    rng: Rng,
    /// Records acknowledged since the start.
    pub records_total: u64,
}

/// What the acknowledgements say; the token of a record is its intended send time.
struct Acked {
    records: u64,
    from_ns: u64,
    until_ns: u64,
    latency: Histogram<u64>,
}

impl Acked {
    fn take(&mut self, records: &[AckedRecord]) {
        let now_ns = monotonic_ns();
        self.records += records.len() as u64;
        for record in records.iter().filter(|record| (self.from_ns..self.until_ns).contains(&record.token)) {
            let latency_us = (now_ns.saturating_sub(record.token) / 1000).clamp(1, LATENCY_US_MAX);
            // Within the histogram's bounds nothing is refused.
            let _ = self.latency.record(latency_us);
        }
    }
}

#[derive(Clone, Copy)]
struct Mark {
    at_ns: u64,
    server_ns: u64,
    own_us: u64,
    records: u64,
    batches: u64,
}

impl Clients {
    /// The clients of a workload.
    pub fn connect(address: SocketAddr, plan: &Plan, workload: Workload) -> Result<Self> {
        let acked = Acked { records: 0, from_ns: u64::MAX, until_ns: u64::MAX, latency: latency_histogram() };
        let acked = Arc::new(Mutex::new(acked));
        let count = match workload {
            Workload::Batched | Workload::BatchedNoindex | Workload::Detectors => 1,
            Workload::Single => SINGLE_CLIENTS,
            Workload::Fleet => FLEET_CLIENTS,
        };
        let mut clients = Vec::new();
        for number in 0..count {
            let acked = Arc::clone(&acked);
            let mut builder = Client::builder()
                .server(address.to_string())
                .node_name(format!("peers-{number}"))
                .congestion_control(Some(plan.congestion.clone()))
                .on_acked(move |records| acked.lock().unwrap_or_else(PoisonError::into_inner).take(records));
            builder = match workload {
                Workload::Batched | Workload::BatchedNoindex | Workload::Detectors => {
                    builder.batch_records_aim(BATCH).batch_records_max(BATCH)
                }
                Workload::Single => builder.batch_records_max(1),
                Workload::Fleet => builder,
            };
            clients.push(builder.build().context("cannot start a client")?);
        }
        for client in &clients {
            client
                .server_stats(FLUSH_TIMEOUT)
                .with_context(|| format!("a client cannot connect: {}", client.status().last_error))?;
        }
        Ok(Self { clients, acked, cursor: 0, rng: Rng::with_seed(1), records_total: 0 })
    }

    /// Number of clients.
    pub fn count(&self) -> usize {
        self.clients.len()
    }

    /// Sends for `warm_up`, measures `length`, and waits until all is acknowledged. `rate`: records per second; else as many as
    /// are taken.
    pub fn window(
        &mut self,
        corpus: &Corpus,
        rate: Option<f64>,
        server: &ServerProcess,
        warm_up: Duration,
        length: Duration,
    ) -> Result<Window> {
        let start_ns = monotonic_ns();
        let from_ns = start_ns + duration_ns(warm_up);
        let until_ns = from_ns + duration_ns(length);
        {
            let mut acked = self.acked.lock().unwrap_or_else(PoisonError::into_inner);
            (acked.from_ns, acked.until_ns) = (from_ns, until_ns);
            acked.latency.reset();
        }
        let (mut before, mut sent) = (None, 0);
        loop {
            let now_ns = monotonic_ns();
            if before.is_none() && now_ns >= from_ns {
                before = Some(self.mark(server)?);
            }
            if now_ns >= until_ns {
                break;
            }
            match rate {
                Some(rate) => sent = self.send_due(corpus, rate, start_ns, now_ns, sent),
                None => self.send_flat_out(corpus, now_ns),
            }
        }
        let after = self.mark(server)?;
        let before = before.unwrap_or(after);
        self.flush()?;
        let acked = self.acked.lock().unwrap_or_else(PoisonError::into_inner);
        self.records_total = acked.records;
        Ok(Window {
            seconds: (after.at_ns - before.at_ns) as f64 / 1e9,
            records: after.records - before.records,
            messages: after.batches - before.batches,
            server_cpu_seconds: after.server_ns.saturating_sub(before.server_ns) as f64 / 1e9,
            own_cpu_seconds: (after.own_us - before.own_us) as f64 / 1e6,
            latency: acked.latency.clone(),
        })
    }

    /// Sends so many records on the first client and waits for them. Returns the records' numbers in order.
    pub fn in_order(&mut self, corpus: &Corpus, records: u64) -> Result<Vec<u32>> {
        let mut sent = Vec::with_capacity(records as usize);
        while (sent.len() as u64) < records {
            while self.clients[0].counters().queue_bytes >= HELD_BYTES_MAX {
                sleep_until(monotonic_ns() + FULL_PAUSE_NS);
            }
            for _ in 0..BURST {
                sent.push(self.cursor as u32);
                self.send(corpus, 0, 0)?;
            }
        }
        self.flush()?;
        self.records_total = self.acked.lock().unwrap_or_else(PoisonError::into_inner).records;
        Ok(sent)
    }

    /// Rows and checksum of the last of these records.
    pub fn last_of(corpus: &Corpus, sent: &[u32], rows: u64) -> Stored {
        let mut last = Stored::default();
        let count = usize::try_from(rows).unwrap_or(usize::MAX);
        sent.iter().rev().take(count).for_each(|record| last.add(corpus.hash(*record as usize)));
        last
    }

    fn send(&mut self, corpus: &Corpus, client: usize, intended_ns: u64) -> Result<()> {
        let record = &corpus.records[self.cursor];
        self.cursor = (self.cursor + 1) % corpus.records.len();
        record.with_request(intended_ns, |request| self.clients[client].try_send(request)).context("a client refused a record")
    }

    fn send_flat_out(&mut self, corpus: &Corpus, now_ns: u64) {
        let (held_max, burst) = (HELD_BYTES_MAX / self.clients.len() as u64, BURST / self.clients.len().min(16) as u64);
        let mut is_full = true;
        for client in 0..self.clients.len() {
            if self.clients[client].counters().queue_bytes < held_max {
                is_full = false;
                // What is refused shows in the totals at the end.
                (0..burst).for_each(|_| drop(self.send(corpus, client, now_ns)));
            }
        }
        if is_full {
            sleep_until(now_ns + FULL_PAUSE_NS);
        }
    }

    fn send_due(&mut self, corpus: &Corpus, rate: f64, start_ns: u64, now_ns: u64, mut sent: u64) -> u64 {
        let due_ns = |n: u64| start_ns + (n as f64 * 1e9 / rate) as u64;
        let mut burst = 0;
        while due_ns(sent) <= now_ns && burst < BURST {
            let client = self.rng.usize(..self.clients.len());
            // As above.
            let _ = self.send(corpus, client, due_ns(sent));
            sent += 1;
            burst += 1;
        }
        if due_ns(sent) > now_ns {
            sleep_until(due_ns(sent).max(now_ns + WAKE_INTERVAL_NS));
        }
        sent
    }

    fn mark(&self, server: &ServerProcess) -> Result<Mark> {
        Ok(Mark {
            at_ns: monotonic_ns(),
            server_ns: server.cpu_ns()?,
            own_us: process_cpu_us(),
            records: self.acked.lock().unwrap_or_else(PoisonError::into_inner).records,
            batches: self.clients.iter().map(|client| client.counters().batches_sent).sum(),
        })
    }

    fn flush(&self) -> Result<()> {
        for client in &self.clients {
            client.flush(FLUSH_TIMEOUT).context("a client could not settle its records")?;
            let counters = client.counters();
            ensure!(counters.tnt_errors() == 0 && counters.laws_hold(), "a client lost records: {counters:?}");
        }
        Ok(())
    }

    /// Records per second of the fleet.
    pub const fn fleet_rate() -> f64 {
        FLEET_RATE as f64
    }
}
