//! `postanalytics agent`: follows access logs and sends their requests to postanalytics, as a filtering node without a module.
//!
//! ```text
//!  log ──lines──▶ reader (parse, filter engine, mask) ──records──▶ client ──acknowledged numbers──▶ window ──▶ cursor of each file
//! ```
//!
//! One thread reads; the client has its own. **A cursor passes a line only when it is settled**, so a killed agent loses nothing:
//! it sends again what was not in the state file yet, under the same request ids, for an id comes from the line and its place.
//! While the server is away nothing is read beyond the window: the files are the buffer.

mod file;
pub(crate) mod line;
mod log;
mod name;
mod state;
#[cfg(test)]
mod tests;
mod window;

#[cfg(feature = "fuzzing")]
pub use line::fuzzing::agent_line;

use crate::config::LogFormat;
use crate::config::flags::AgentFlags;
use anyhow::{Context, Result, bail};
use line::{Reader, Taken};
use log::{Begin, Line, Log};
use postanalytics_client::{Client, Counters, SendError};
use postanalytics_filter::{Engine, MaskConfig, Masker, Scratch};
use signal_hook::consts::{SIGINT, SIGTERM};
use siphasher::sip128::{Hasher128, SipHasher13};
use state::StateFile;
use std::hash::Hasher;
use std::net::Ipv6Addr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use window::{QUEUE_BYTES, Window};

/// How often logs without new lines are looked at.
const POLL: Duration = Duration::from_millis(200);
/// How often the state is written; a killed agent sends again at most so much.
const WRITE: Duration = Duration::from_secs(1);
/// How often the numbers are told, and each kind of trouble.
const TELL: Duration = Duration::from_secs(60);
/// Lines of a log that are read before the next log has its turn.
const LINES_PER_TURN: usize = 1024;
/// How long the end may take.
const END: Duration = Duration::from_secs(10);
/// With --once: how long nothing may be acknowledged.
const STUCK: Duration = Duration::from_secs(30);
/// How long the client keeps a record for a server that is away. Longer than anybody leaves it away.
const RECORD_TIME_LIMIT: Duration = Duration::from_secs(86_400);
const CLIENT_ENDED: &str = "the client's thread has ended, see above: this is a defect; what was not acknowledged is sent again by the agent that starts next";
/// Longest file of --mask.
const MASK_BYTES_MAX: u64 = 1 << 20;

/// What was read since the start.
#[derive(Clone, Copy, Debug, Default)]
struct Numbers {
    lines: u64,
    sent: u64,
    with_hits: u64,
    malformed: u64,
    too_long: u64,
    refused: u64,
}

struct Agent {
    logs: Vec<Log>,
    reader: Reader,
    client: Client,
    acked: Arc<Mutex<Vec<u64>>>,
    window: Window,
    state: StateFile,
    numbers: Numbers,
    told: Told,
    /// It ends when what was there at the start is read and settled.
    once: bool,
    /// With it: what could not be read.
    failure: Option<anyhow::Error>,
}

/// When each kind of trouble was last told: none keeps another from being told.
#[derive(Clone, Copy, Debug, Default)]
struct Told {
    line: Option<Instant>,
    log: Option<Instant>,
    state: Option<Instant>,
}

/// Runs until it is told to end, or with --once to the end of the logs.
pub(crate) fn run(flags: &AgentFlags) -> Result<()> {
    let format = if flags.log == "json" { LogFormat::Json } else { LogFormat::Text };
    crate::logging::start_with(format, None)?;
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGTERM, SIGINT] {
        // A second one ends it at once.
        signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(&stop))
            .context("signals cannot be caught")?;
        signal_hook::flag::register(signal, Arc::clone(&stop)).context("signals cannot be caught")?;
    }
    let mut agent = Agent::new(flags)?;
    let outcome = agent.follow(&stop);
    agent.end(outcome)
}

impl Agent {
    fn new(flags: &AgentFlags) -> Result<Self> {
        let masker = match &flags.mask {
            None => Masker::new(&MaskConfig::default())?,
            Some(path) => {
                let text = crate::config::read_small_file(path, MASK_BYTES_MAX).map_err(anyhow::Error::msg)?;
                let config = toml::from_str(&text)
                    .with_context(|| format!("{}: see docs/agent.md for what it may hold", path.display()))?;
                Masker::new(&config).with_context(|| path.display().to_string())?
            }
        };
        let mut state = match &flags.state {
            Some(path) => StateFile::open(path)?,
            None => StateFile::open(&state::default_path()?)?,
        };
        // Whoever reads to the end and ends wants what is there.
        let begin = if flags.from_start || flags.once { Begin::Start } else { Begin::End };
        let absolute = |path: &PathBuf| std::path::absolute(path).with_context(|| cannot_read(path));
        let paths = flags.tail.iter().map(absolute).collect::<Result<Vec<_>>>()?;
        let mut logs: Vec<Log> = Vec::with_capacity(paths.len());
        for path in &paths {
            let mut log = open_log(path, &paths, &state, begin, flags.once)?;
            if flags.once {
                // Else a log that is written to would keep it for ever.
                log.end_here().with_context(|| format!("cannot read the log {}", path.display()))?;
            }
            if logs.iter().any(|other| other.path() == log.path()) {
                bail!("the log {} is given twice: name each log once", log.path().display());
            }
            logs.push(log);
        }
        // Where it begins is kept before a line is read: an agent that is killed at once loses nothing either.
        logs.iter_mut().for_each(|log| state.put(log.state()));
        state.write().context("the state cannot be written: give --state FILE on a disk with room")?;
        let acked = Arc::new(Mutex::new(Vec::new()));
        Ok(Self {
            client: client(flags, &state, &acked)?,
            logs,
            reader: Reader {
                format: flags.format,
                application: flags.application,
                trusted_proxies: flags.trusted_proxy.clone(),
                engine: Engine::builtin().with_masker(masker),
                scratch: Scratch::default(),
            },
            acked,
            window: Window::default(),
            state,
            numbers: Numbers::default(),
            told: Told::default(),
            once: flags.once,
            failure: None,
        })
    }

    fn follow(&mut self, stop: &AtomicBool) -> Result<()> {
        let (mut written, mut told) = (Instant::now(), Instant::now());
        let mut progress = (Instant::now(), 0);
        while !stop.load(Ordering::Relaxed) {
            let now = Instant::now();
            let settled = self.settle();
            if self.client.is_closed() {
                bail!(CLIENT_ENDED);
            }
            let mut is_idle = true;
            for number in 0..self.logs.len() {
                is_idle &= self.read(number, now)?;
            }
            if now.duration_since(written) >= WRITE {
                self.write_state()?;
                written = now;
            }
            if now.duration_since(told) >= TELL {
                self.tell("reading");
                told = now;
            }
            if self.once && is_idle {
                self.read_rests()?;
                if self.window.len() == 0 {
                    return self.failure.take().map_or(Ok(()), Err);
                }
                // Nothing more comes: what is there need not wait for company.
                let _ = self.client.flush(Duration::from_millis(100));
            }
            let done = self.numbers.lines + settled + self.client.counters().acked;
            if progress.1 != done {
                progress = (now, done);
            } else if self.once && now.duration_since(progress.0) >= STUCK {
                bail!(
                    "{} lines were read and are not acknowledged within {} s: {}; is the server reachable? They are sent again the next time",
                    self.window.len(),
                    STUCK.as_secs(),
                    self.problem()
                );
            }
            if self.window.is_full() {
                std::thread::sleep(Duration::from_millis(if settled > 0 { 5 } else { 50 }));
            } else if is_idle {
                std::thread::sleep(POLL);
            }
        }
        Ok(())
    }

    /// Reads some lines of a log. Whether there were none.
    fn read(&mut self, number: usize, now: Instant) -> Result<bool> {
        // With --once the log is the files that it was at the start; what comes after them is for the next time.
        if !self.once
            && let Err(error) = self.logs[number].look(now)
        {
            self.unreadable(number, error);
            return Ok(true);
        }
        for _ in 0..LINES_PER_TURN {
            if self.window.is_full() {
                return Ok(false);
            }
            match self.logs[number].next_line(now) {
                Ok(Some(line)) => self.take(number, &line)?,
                Ok(None) => return Ok(true),
                Err(error) => {
                    self.unreadable(number, error);
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    fn unreadable(&mut self, number: usize, error: std::io::Error) {
        let path = self.logs[number].path().display().to_string();
        if is_due(&mut self.told.log) {
            tracing::error!(log = path, %error, "the log cannot be read; it is tried again");
        }
        if self.once && self.failure.is_none() {
            let failure = anyhow::Error::new(error);
            let context = format!("the log {path} cannot be read to its end: check its disk; what is left is read the next time");
            self.failure = Some(failure.context(context));
        }
    }

    /// What stands at the end of files that nobody writes to.
    fn read_rests(&mut self) -> Result<()> {
        for number in 0..self.logs.len() {
            while let Some(line) = self.logs[number].next_rest(SystemTime::now()) {
                self.take(number, &line)?;
            }
        }
        Ok(())
    }

    fn take(&mut self, number: usize, line: &Line) -> Result<()> {
        let log = &self.logs[number];
        let text = log.text(line);
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        let mut record_bytes = None;
        if line.found.is_too_long {
            (self.numbers.lines, self.numbers.too_long) = (self.numbers.lines + 1, self.numbers.too_long + 1);
        } else if !text.is_empty() {
            self.numbers.lines += 1;
            let id = request_id(log.path(), line.found.begin, text);
            match self.reader.send(&self.client, text, id, unix_us(), self.window.next()) {
                Ok(Taken::Sent { bytes, hits }) => {
                    record_bytes = Some(bytes);
                    self.numbers.sent += 1;
                    self.numbers.with_hits += u64::from(hits > 0);
                }
                Ok(Taken::Malformed) => self.numbers.malformed += 1,
                Err(SendError::Closed | SendError::Forked { .. }) => {
                    bail!(CLIENT_ENDED);
                }
                Err(error) => {
                    self.numbers.refused += 1;
                    tracing::debug!(%error, "a record was refused");
                }
            }
            if record_bytes.is_none() && is_due(&mut self.told.line) {
                let masked = line::masked_line(text);
                let shown = masked[..masked.len().min(200)].to_vec();
                tracing::warn!(
                    log = %log.path().display(), malformed = self.numbers.malformed, refused = self.numbers.refused,
                    line = %String::from_utf8_lossy(&shown).escape_debug(),
                    "a line was skipped: it is not of this --format, or too large to be stored"
                );
            }
        }
        self.window.push(number, line.serial, line.found.end, record_bytes);
        Ok(())
    }

    /// Moves the cursors to what is settled. How many lines were.
    fn settle(&mut self) -> u64 {
        // Before the acknowledgements are taken: what is settled now has been told by then.
        let counters = self.client.counters();
        let acked = std::mem::take(&mut *self.acked.lock().unwrap_or_else(PoisonError::into_inner));
        acked.iter().for_each(|number| self.window.settle(*number));
        if has_settled(&counters, self.client.is_closed()) {
            // Some were lost, and counted: the server refused them, or forgot a session.
            self.window.settle_all();
        }
        let mut settled = 0;
        self.window.drain(|log, serial, end| {
            settled += 1;
            self.logs[log].settle(serial, end);
        });
        settled
    }

    fn write_state(&mut self) -> Result<()> {
        for log in &mut self.logs {
            self.state.put(log.state());
        }
        if let Err(error) = self.state.write()
            && is_due(&mut self.told.state)
        {
            tracing::error!("the state cannot be written, an agent that starts now would send lines again: {error:#}");
        }
        Ok(())
    }

    fn problem(&self) -> String {
        let problem = self.client.status().last_error;
        if problem.is_empty() { "no answer".to_owned() } else { problem }
    }

    fn tell(&self, what: &str) {
        let (numbers, counters) = (self.numbers, self.client.counters());
        tracing::info!(
            lines = numbers.lines,
            sent = numbers.sent,
            with_hits = numbers.with_hits,
            acked = counters.acked,
            malformed = numbers.malformed,
            too_long = numbers.too_long,
            refused = numbers.refused,
            tnt_errors = counters.tnt_errors(),
            gaps = self.logs.iter().map(|log| log.gaps).sum::<u64>(),
            unsettled = self.window.len(),
            unread_bytes = self.logs.iter().map(Log::unread).sum::<u64>(),
            connected = self.client.status().connected,
            "{what}"
        );
    }

    /// Gets out what can be got out, and keeps how far that is.
    fn end(mut self, outcome: Result<()>) -> Result<()> {
        let _ = self.client.flush(END);
        self.settle();
        self.write_state()?;
        self.tell("done");
        let left = self.window.len();
        if left > 0 {
            tracing::warn!(
                lines = left,
                "not acknowledged in time: sent again, with the same request ids, by the agent that starts next"
            );
        }
        self.client.close(Duration::from_millis(500));
        outcome
    }
}

/// Whether the client has nothing left to be acknowledged. One that has ended has nothing either, but not because it was settled.
const fn has_settled(counters: &Counters, is_closed: bool) -> bool {
    counters.queued + counters.in_flight == 0 && !is_closed
}

fn cannot_read(path: &Path) -> String {
    format!("cannot read the log {}: check the name, and that this user may read it", path.display())
}

/// `path` and all of `followed` are absolute.
fn open_log(path: &Path, followed: &[PathBuf], state: &StateFile, begin: Begin, once: bool) -> Result<Log> {
    if once {
        std::fs::File::open(path).with_context(|| cannot_read(path))?;
    }
    let known = state.log(path);
    let from = if known.is_some() {
        "the cursor"
    } else if begin == Begin::Start {
        "its start"
    } else {
        "its end"
    };
    let log = Log::open(path.to_path_buf(), followed, known, begin).map_err(|error| {
        // What is wrong with the file itself has its own remedy.
        let is_own = error.kind() == std::io::ErrorKind::Other;
        let what = if is_own { format!("cannot follow the log {}", path.display()) } else { cannot_read(path) };
        anyhow::Error::new(error).context(what)
    })?;
    tracing::info!(log = %log.path().display(), from, "following");
    Ok(log)
}

fn client(flags: &AgentFlags, state: &StateFile, acked: &Arc<Mutex<Vec<u64>>>) -> Result<Client> {
    let acked = Arc::clone(acked);
    let node = uuid::Uuid::try_parse(&state.state.node).context("the node's id in the state file is no UUID: remove it")?;
    let mut builder =
        Client::builder().node(node.into_bytes()).queue_bytes(QUEUE_BYTES).record_time_limit(RECORD_TIME_LIMIT).on_acked(
            move |records| {
                let numbers = records.iter().map(|record| record.token);
                acked.lock().unwrap_or_else(PoisonError::into_inner).extend(numbers);
            },
        );
    for server in &flags.server {
        builder = builder.server(with_port(server));
    }
    if let Some(name) = &flags.node_name {
        builder = builder.node_name(name);
    }
    Ok(builder.build()?)
}

/// A server's address, with the usual port if it has none.
fn with_port(server: &str) -> String {
    if server.parse::<Ipv6Addr>().is_ok() {
        format!("[{server}]:3313")
    } else if server.contains(':') && !server.ends_with(']') {
        server.to_owned()
    } else {
        format!("{server}:3313")
    }
}

/// The same for a line that is sent again, another for every other line.
fn request_id(log: &Path, begin: u64, text: &[u8]) -> [u8; 16] {
    let mut hasher = SipHasher13::new();
    hasher.write(log.as_os_str().as_encoded_bytes());
    hasher.write_u64(begin);
    hasher.write(text);
    hasher.finish128().as_bytes()
}

/// Whether a minute has passed since it last was.
fn is_due(last: &mut Option<Instant>) -> bool {
    let now = Instant::now();
    let is_due = last.is_none_or(|last| now.duration_since(last) >= TELL);
    if is_due {
        *last = Some(now);
    }
    is_due
}

fn unix_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64
}
