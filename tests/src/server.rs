//! The server under test: the real binary, a process of its own.

use serde_json::Value;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The folder with the binaries, if they are built already, in the profile of these tests: a build here would be given other
/// features than one together with the tests.
const BINARIES: &str = "POSTANALYTICS_BINARIES";

/// The path of a binary of this workspace, built in the profile of the tests.
pub fn binary(name: &str) -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let folder = || match std::env::var_os(BINARIES).map(PathBuf::from) {
        Some(folder) if folder == folder_of_tests() => folder,
        _ => built(&["--workspace", "--bins"]),
    };
    BUILT.get_or_init(folder).join(name)
}

/// Where binaries of the profile of this test lie: it is in `target[/TRIPLE]/PROFILE/deps`.
fn folder_of_tests() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().unwrap().parent().unwrap().to_path_buf()
}

/// Builds in the profile of the tests, and tells where.
fn built(selection: &[&str]) -> PathBuf {
    let folder = folder_of_tests();
    let mut build = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    build.args(["build", "--quiet", "--locked"]).args(selection).current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    let mut target = folder.parent().unwrap();
    // `tests/full asan` names a target, so that only what runs there is instrumented, not the compiler's plugins.
    if let Some(triple) = std::env::var_os("CARGO_BUILD_TARGET").filter(|triple| target.ends_with(triple)) {
        target = target.parent().unwrap();
        build.arg("--target").arg(triple);
    }
    build.arg("--target-dir").arg(target);
    if folder.ends_with("release") {
        build.arg("--release");
    }
    assert!(build.status().unwrap().success(), "cannot build {selection:?}, which is under test");
    folder
}

/// The folder that holds the C library, built as it is shipped.
pub fn library_folder() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let folder = BUILT.get_or_init(|| built(&["-p", "postanalytics-client-c"]));
    folder.clone()
}

/// The example of the client crate, built as whoever links that crate builds it.
pub fn client_example() -> PathBuf {
    built(&["-p", "postanalytics-client", "--example", "send"]).join("examples/send")
}

/// Says loudly that a test did not run, and why.
pub fn skipped(test: &str, why: &str) {
    eprintln!("SKIPPED {test}: {why}");
}

/// A port that was free a moment ago.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// How to start a server. The default: one shard, 64 MiB, not pinned, ports that the kernel picks.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Program to run.
    pub program: PathBuf,
    /// `--listen`; empty: the flag is left out.
    pub listen: String,
    /// `--shards`.
    pub shards: u32,
    /// `--arena`, gigabytes.
    pub arena_gb: f64,
    /// More arguments.
    pub arguments: Vec<String>,
    /// Environment, beside a clean one.
    pub environment: Vec<(String, String)>,
    /// Standard input and output are pipes, see [`Server::ask`].
    pub piped: bool,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            program: binary("postanalytics"),
            listen: "127.0.0.1:0".to_owned(),
            shards: 1,
            arena_gb: 0.0625,
            arguments: Vec::new(),
            environment: Vec::new(),
            piped: false,
        }
    }
}

impl ServerOptions {
    /// Adds arguments.
    #[must_use]
    pub fn arguments(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        self
    }

    /// Sets the number of shards, with 64 MiB each.
    #[must_use]
    pub fn shards(mut self, shards: u32) -> Self {
        self.shards = shards;
        self.arena_gb = 0.0625 * f64::from(shards);
        self
    }

    /// The command, not started. Logs go to `log`.
    pub fn command(&self, log: &Path, token: &Path) -> Command {
        let mut command = Command::new(&self.program);
        if !self.listen.is_empty() {
            command.args(["--listen", &self.listen]);
        }
        command.args(["--status", "127.0.0.1:0", "--arena-dir", "none", "--no-pin"]);
        command.args(["--shards", &self.shards.to_string(), "--arena", &self.arena_gb.to_string()]);
        command.args(["--log", "json", "--log-file"]).arg(log).arg("--status-token-file").arg(token);
        command.args(&self.arguments);
        for name in ["HOST", "PORT", "ALLOW", "SLAB_ALLOC_ARENA", "TARANTOOL_MEMORY_GB", "WALLARM_LABELS"] {
            command.env_remove(name);
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        let pipe = || if self.piped { Stdio::piped() } else { Stdio::null() };
        command.stdin(pipe()).stdout(pipe()).stderr(Stdio::piped());
        command
    }

    /// Starts the server and waits until it is ready.
    pub fn start(self) -> Server {
        Server::start(self)
    }
}

/// A running server. Ends when dropped.
#[derive(Debug)]
pub struct Server {
    child: Child,
    /// Where it takes frames.
    pub ingest: SocketAddr,
    /// Where it answers HTTP.
    pub status: SocketAddr,
    /// Its log, JSON lines.
    pub log: PathBuf,
    /// The options it was started with.
    pub options: ServerOptions,
    _folder: TempDir,
}

/// The token that every server under test accepts.
pub const TOKEN: &str = "a-token-for-tests";

impl Server {
    /// Starts a server with the default options.
    pub fn new() -> Self {
        Self::start(ServerOptions::default())
    }

    fn start(options: ServerOptions) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (log, token) = (folder.path().join("server.log"), folder.path().join("token"));
        std::fs::write(&token, TOKEN).unwrap();
        let mut child = options.command(&log, &token).spawn().unwrap();
        let start = Instant::now();
        let address = |message: &str| logged(&log, message).first().map(line_address);
        let (ingest, status) = loop {
            if let (Some(ingest), Some(status)) = (address("listening"), address("status_listening"))
                && get(status, "/ready", None).is_ok_and(|(code, _)| code == 200)
            {
                break (ingest, status);
            }
            if let Some(ended) = child.try_wait().unwrap() {
                let mut text = String::new();
                child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
                panic!("the server ended with {ended}: {text}\n{}", std::fs::read_to_string(&log).unwrap_or_default());
            }
            assert!(start.elapsed() < Duration::from_secs(60), "the server is not ready within 60 s");
            std::thread::sleep(Duration::from_millis(20));
        };
        Self { child, ingest, status, log, options, _folder: folder }
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Which of these texts its memory holds: its own, not what is mapped of files.
    pub fn holds(&self, texts: &[&str]) -> Vec<String> {
        const PIECE_BYTES: u64 = 1 << 20;
        let memory = File::open(format!("/proc/{}/mem", self.id())).unwrap();
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", self.id())).unwrap();
        let overlap = texts.iter().map(|text| text.len()).max().unwrap_or(0);
        let mut found = vec![false; texts.len()];
        for line in maps.lines() {
            let fields: Vec<&str> = line.split_ascii_whitespace().collect();
            let name = fields.get(5).copied().unwrap_or_default();
            let is_file = fields[4] != "0" && !name.starts_with("/memfd:") && !name.starts_with("/dev/zero");
            if is_file || !fields[1].starts_with('r') || name.starts_with("[v") || name.starts_with("anon_inode:") {
                continue;
            }
            let (begin, end) = fields[0].split_once('-').unwrap();
            let (mut at, end) = (u64::from_str_radix(begin, 16).unwrap(), u64::from_str_radix(end, 16).unwrap());
            let mut piece = Vec::new();
            while at < end {
                let kept = piece.len().min(overlap);
                piece.drain(..piece.len() - kept);
                piece.resize(kept + (end - at).min(PIECE_BYTES) as usize, 0);
                // It may be gone by now.
                let Ok(read @ 1..) = memory.read_at(&mut piece[kept..], at) else { break };
                piece.truncate(kept + read);
                at += read as u64;
                for (text, found) in texts.iter().zip(&mut found).filter(|(_, found)| !**found) {
                    *found = memchr::memmem::find(&piece, text.as_bytes()).is_some();
                }
            }
        }
        texts.iter().zip(found).filter(|(_, found)| *found).map(|(text, _)| (*text).to_owned()).collect()
    }

    /// The log lines with this message.
    pub fn logged(&self, message: &str) -> Vec<Value> {
        logged(&self.log, message)
    }

    /// GET with the token; status code and body.
    pub fn get(&self, path: &str) -> (u16, String) {
        get(self.status, path, Some(TOKEN)).unwrap()
    }

    /// GET without the token.
    pub fn get_without_token(&self, path: &str) -> (u16, String) {
        get(self.status, path, None).unwrap()
    }

    /// `/status`.
    pub fn status_json(&self) -> Value {
        let (code, body) = self.get("/status");
        assert_eq!(code, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }

    /// One number of `/status`'s totals.
    pub fn total(&self, name: &str) -> u64 {
        let status = self.status_json();
        status["totals"][name].as_u64().unwrap_or_else(|| panic!("no total {name} in {status}"))
    }

    /// The sum of a metric's samples on `/metrics`; with its labels, as in `name{code="bad_magic"}`, that sample alone.
    pub fn metric(&self, name: &str) -> f64 {
        let (code, page) = self.get("/metrics");
        assert_eq!(code, 200, "{page}");
        let samples = page.lines().filter_map(|line| line.strip_prefix(name).filter(|rest| rest.starts_with([' ', '{'])));
        let values: Vec<f64> = samples.filter_map(|rest| rest.rsplit(' ').next()?.parse().ok()).collect();
        assert!(!values.is_empty(), "no metric {name} in {page}");
        values.iter().sum()
    }

    /// Writes a line to its standard input and reads one from its standard output ([`ServerOptions::piped`]).
    pub fn ask(&mut self, question: &str) -> String {
        writeln!(self.child.stdin.as_mut().unwrap(), "{question}").unwrap();
        let (mut answer, output) = (Vec::new(), self.child.stdout.as_mut().unwrap());
        while answer.last() != Some(&b'\n') {
            let mut byte = [0];
            output.read_exact(&mut byte).unwrap();
            answer.extend_from_slice(&byte);
        }
        String::from_utf8(answer).unwrap().trim_end().to_owned()
    }

    /// Asserts the server's laws on `/status`.
    pub fn assert_laws(&self) {
        let status = self.status_json();
        for part in status["shards"].as_array().unwrap().iter().chain([&status["totals"]]) {
            let number = |name: &str| part[name].as_u64().unwrap();
            let accounted = number("records_stored") + number("records_rejected") + number("records_duplicate");
            assert_eq!(number("records_received"), accounted, "received = stored + rejected + duplicate: {part}");
            assert_eq!(
                number("records_stored"),
                number("live_records") + number("evicted_records"),
                "stored = live + evicted: {part}"
            );
        }
    }

    /// Resident memory, bytes.
    pub fn resident_bytes(&self) -> u64 {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", self.id())).unwrap();
        statm.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4096
    }

    /// Sends a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let id = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(id, signal).unwrap();
    }

    /// Waits for the end; panics after `limit`.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < limit, "the server did not end within {limit:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// SIGTERM, and waits for a good end.
    pub fn stop(mut self) {
        self.signal(rustix::process::Signal::TERM);
        let status = self.wait(Duration::from_secs(20));
        assert!(status.success(), "{status}: {}", std::fs::read_to_string(&self.log).unwrap_or_default());
    }

    /// kill -9.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Default for Server {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("the server's log:\n{}", std::fs::read_to_string(&self.log).unwrap_or_default());
        }
    }
}

/// GET over HTTP/1.1: status code and body.
pub fn get(address: SocketAddr, path: &str, token: Option<&str>) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let authorization = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\n{authorization}Connection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let malformed = || std::io::Error::other(format!("no HTTP answer: {answer:?}"));
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(malformed)?;
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(malformed)?;
    Ok((code, body.to_owned()))
}

fn logged(log: &Path, message: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| message_of(line) == Some(message)).collect()
}

fn message_of(line: &Value) -> Option<&str> {
    line["message"].as_str().or_else(|| line["fields"]["message"].as_str())
}

fn line_address(line: &Value) -> SocketAddr {
    let address = line["address"].as_str().or_else(|| line["fields"]["address"].as_str());
    address.unwrap_or_else(|| panic!("no address in {line}")).parse().unwrap()
}
