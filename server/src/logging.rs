//! The log: text or JSON, RFC 3339 UTC, to standard error or to a file that can be reopened. Under systemd's journal text
//! has no time, which the journal adds, and begins with the severity, which the journal takes off: `<6>`.
//!
//! Any thread may log; a thread of its own writes ([`lines`]), so that nobody waits for whoever reads. Lines are written whole.
//! So is what a panic says once the log is on, for a shard goes on after one: by a thread that panics nobody waits either.
//! It does not rotate files: whoever renames the file sends SIGHUP or SIGUSR1 afterwards.

mod lines;

pub(crate) use lines::{finish, last_words, lines_dropped};

use crate::config::{Config, LogFormat};
use crate::process::{panic_text, uptime};
use anyhow::Context;
use lines::LogLines;
use std::backtrace::{Backtrace, BacktraceStatus};
use std::fs::File;
use std::io::IsTerminal;
use std::os::linux::fs::MetadataExt;
use std::panic::PanicHookInfo;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::{EnvFilter, LevelFilter};
use tracing_subscriber::fmt::format::{Format, Full, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, Registry};

/// The log file, if the log goes to one. Clones write to the same.
#[derive(Clone, Debug)]
pub struct LogFile {
    path: PathBuf,
    file: Arc<Mutex<Arc<File>>>,
}

impl LogFile {
    /// Opens it for appending.
    pub fn open(path: &Path) -> std::io::Result<Self> {
        Ok(Self { path: path.to_path_buf(), file: Arc::new(Mutex::new(Arc::new(append_to(path)?))) })
    }

    /// Opens the path anew, after a rename. If that fails the old file goes on.
    pub fn reopen(&self) {
        match append_to(&self.path) {
            Ok(file) => {
                *self.file.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(file);
                tracing::info!(path = %self.path.display(), "log file reopened");
            }
            Err(error) => tracing::error!(
                path = %self.path.display(), %error,
                "the log file cannot be reopened, the old one is kept: make the path writable and send SIGHUP again"
            ),
        }
    }
}

impl<'a> MakeWriter<'a> for LogFile {
    type Writer = Arc<File>;

    fn make_writer(&'a self) -> Arc<File> {
        Arc::clone(&self.file.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn append_to(path: &Path) -> std::io::Result<File> {
    File::options().create(true).append(true).open(path)
}

/// What may narrow or widen the log. Not `RUST_LOG`: one inherited from a shell would silence the lines that say where the
/// server listens and where its values come from.
const FILTER_VARIABLE: &str = "POSTANALYTICS_LOG_FILTER";

/// Switches the log on, for `info` unless [`FILTER_VARIABLE`] says otherwise. Returns the file, if it goes to one.
pub fn start(config: &Config) -> anyhow::Result<Option<LogFile>> {
    start_with(config.log_format, config.log_file.as_deref())
}

/// The same, to a file if one is given.
pub(crate) fn start_with(format: LogFormat, file: Option<&Path>) -> anyhow::Result<Option<LogFile>> {
    let filter = filter()?;
    let (layer, file): (Box<dyn Layer<Registry> + Send + Sync>, _) = match file {
        Some(path) => {
            let file = LogFile::open(path).map_err(|error| {
                anyhow::anyhow!("cannot open the log file {}: {error}; give a path that can be written to", path.display())
            })?;
            (layer_of(format, lines_to(file.clone())?, false), Some(file))
        }
        None if format == LogFormat::Text && stderr_is_journal() => {
            let lines = lines_to(std::io::stderr)?;
            let layer = tracing_subscriber::fmt::layer().with_writer(lines).event_format(JournalFormat::new());
            (layer.boxed(), None)
        }
        None => (layer_of(format, lines_to(std::io::stderr)?, std::io::stderr().is_terminal()), None),
    };
    // A program that embeds the server may have set up a log of its own: then that one is used.
    if tracing_subscriber::registry().with(layer.with_filter(filter)).try_init().is_ok() {
        std::panic::set_hook(Box::new(log_panic));
    }
    Ok(file)
}

/// Whether [`FILTER_VARIABLE`] holds a filter, or nothing.
pub(crate) fn check_filter() -> anyhow::Result<()> {
    filter().map(drop)
}

fn filter() -> anyhow::Result<EnvFilter> {
    filter_of(&std::env::var_os(FILTER_VARIABLE).unwrap_or_default().to_string_lossy())
}

/// The filter of this text, empty for `info`, but for panics, which none hides.
///
/// A bare word is a level: [`EnvFilter`] would take `warning` for the name of a module, and log nothing but that module.
fn filter_of(text: &str) -> anyhow::Result<EnvFilter> {
    let wrong = |cause: &str| {
        anyhow::anyhow!(
            "{FILTER_VARIABLE} is '{text}', which is no filter: {cause}; give one of off, error, warn, info, debug and trace, or \
             MODULE=LEVEL, several with commas between"
        )
    };
    let parts: Vec<&str> = text.split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
    let is_level = |part: &str| part.contains(['=', '[']) || part.parse::<LevelFilter>().is_ok();
    if let Some(part) = parts.iter().find(|part| !is_level(part)) {
        return Err(wrong(&format!("'{part}' is no level")));
    }
    let parts = if parts.is_empty() { "info".to_owned() } else { parts.join(",") };
    let filter = EnvFilter::try_new(parts).map_err(|error| wrong(&error.to_string()))?;
    Ok(filter.add_directive(format!("{PANICS_TARGET}=error").parse().context("the filter of panics")?))
}

/// What panics are logged under, apart from the rest of this module.
const PANICS_TARGET: &str = "postanalytics_server::panics";

/// Panics that are logged in a second: one that comes with every record must not drown the rest.
const PANICS_PER_SECOND_MAX: u32 = 20;

/// Panics of a second.
#[derive(Debug, Default)]
struct Panics {
    /// Of the process.
    second: u64,
    in_it: u32,
    /// Not logged since the last one that was.
    unsaid: u64,
}

static PANICS: Mutex<Panics> = Mutex::new(Panics { second: 0, in_it: 0, unsaid: 0 });

impl Panics {
    /// Counts a panic. If it is to be logged: how many were not before it.
    fn count(&mut self, second: u64) -> Option<u64> {
        if self.second != second {
            (self.second, self.in_it) = (second, 0);
        }
        self.in_it = self.in_it.saturating_add(1);
        if self.in_it > PANICS_PER_SECOND_MAX {
            self.unsaid += 1;
            return None;
        }
        Some(std::mem::take(&mut self.unsaid))
    }
}

/// Logs a panic, with its backtrace if `RUST_BACKTRACE` asks for one.
fn log_panic(panic: &PanicHookInfo<'_>) {
    let Some(unsaid) = PANICS.lock().unwrap_or_else(PoisonError::into_inner).count(uptime().as_secs()) else { return };
    let (thread, location) = (std::thread::current(), panic.location());
    let backtrace = Backtrace::capture();
    tracing::error!(
        target: PANICS_TARGET,
        thread = thread.name(),
        location = location.map(tracing::field::display),
        not_logged_before = (unsaid > 0).then_some(unsaid),
        backtrace = (backtrace.status() == BacktraceStatus::Captured).then(|| tracing::field::display(&backtrace)),
        "panic: {}",
        panic_text(panic.payload())
    );
    // With the main thread the process ends, and nobody else waits for this line.
    if thread.name() == Some("main") {
        finish();
    }
}

/// The lines of this process, on their way there.
fn lines_to<W>(out: W) -> anyhow::Result<LogLines>
where
    W: for<'a> MakeWriter<'a> + Send + 'static,
{
    let lines = LogLines::start(out, lines::say_dropped).context("no thread for the log")?;
    lines.of_process();
    Ok(lines)
}

fn layer_of(format: LogFormat, lines: LogLines, colours: bool) -> Box<dyn Layer<Registry> + Send + Sync> {
    // The default timer writes RFC 3339 in UTC.
    let layer = tracing_subscriber::fmt::layer().with_writer(lines).with_ansi(colours).with_target(false);
    match format {
        LogFormat::Text => layer.boxed(),
        LogFormat::Json => layer.json().flatten_event(true).boxed(),
    }
}

/// The text format as the journal likes it.
struct JournalFormat {
    text: Format<Full, ()>,
}

impl JournalFormat {
    fn new() -> Self {
        Self { text: Format::default().without_time().with_target(false).with_ansi(false) }
    }
}

impl<S, N> FormatEvent<S, N> for JournalFormat
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> std::fmt::Result {
        // The severities of syslog.
        let severity = match *event.metadata().level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            _ => 7,
        };
        write!(writer, "<{severity}>")?;
        self.text.format_event(context, writer, event)
    }
}

/// systemd says in `JOURNAL_STREAM` which device and inode its journal socket has.
pub(crate) fn stderr_is_journal() -> bool {
    let Ok(stated) = std::env::var("JOURNAL_STREAM") else { return false };
    let Ok(metadata) = std::fs::metadata("/proc/self/fd/2") else { return false };
    stated == format!("{}:{}", metadata.st_dev(), metadata.st_ino())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn the_journal_gets_severity_and_fields_and_no_time() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("log");
        let writer = LogFile::open(&path).expect("opens");
        let layer = tracing_subscriber::fmt::layer().with_writer(writer).event_format(JournalFormat::new());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            tracing::warn!(peer = "192.0.2.1", "refused");
            tracing::info!("ready");
        });
        let text = std::fs::read_to_string(&path).expect("reads");
        assert_eq!(text, "<4> WARN refused peer=\"192.0.2.1\"\n<6> INFO ready\n");
    }

    #[test]
    fn a_panic_is_a_line_of_the_log() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("log");
        let writer = LogFile::open(&path).expect("opens");
        let layer = tracing_subscriber::fmt::layer().with_writer(writer).event_format(JournalFormat::new());
        let panics = || {
            let subscriber = tracing_subscriber::registry().with(layer);
            tracing::subscriber::with_default(subscriber, || {
                let before = std::panic::take_hook();
                std::panic::set_hook(Box::new(log_panic));
                let _ = std::panic::catch_unwind(|| panic!("{} is wrong", 5));
                std::panic::set_hook(before);
            });
        };
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("shard-0".to_owned());
            thread.spawn_scoped(scope, panics).expect("a thread").join().expect("caught");
        });
        let text = std::fs::read_to_string(&path).expect("reads");
        assert!(text.starts_with("<3>ERROR panic: 5 is wrong thread=\"shard-0\" location=server/src/logging.rs:"), "{text}");
    }

    #[test]
    fn a_filter_hides_no_panic_and_what_is_no_panic_as_it_says() {
        for (text, expected) in [
            ("off", vec!["panic"]),
            ("info", vec!["panic", "an error", "a line"]),
            ("", vec!["panic", "an error", "a line"]),
            (" , ", vec!["panic", "an error", "a line"]),
            ("ERROR", vec!["panic", "an error"]),
            ("error, glommio=warn", vec!["panic", "an error"]),
            ("glommio=warn", vec!["panic"]),
        ] {
            let folder = tempfile::tempdir().expect("a folder");
            let path = folder.path().join("log");
            let layer = tracing_subscriber::fmt::layer().with_writer(LogFile::open(&path).expect("opens"));
            let subscriber = tracing_subscriber::registry().with(layer.with_filter(filter_of(text).expect("a filter")));
            tracing::subscriber::with_default(subscriber, || {
                tracing::error!(target: PANICS_TARGET, "panic");
                tracing::error!("an error");
                tracing::info!("a line");
            });
            let logged = std::fs::read_to_string(&path).expect("reads");
            assert_eq!(logged.lines().count(), expected.len(), "{text}: {logged}");
            assert!(logged.lines().zip(expected).all(|(line, end)| line.ends_with(end)), "{text}: {logged}");
        }
        for bad in ["a=b=c", "=a=b=c", "warning", "blah", "info,postanalytics_server", "warn debug"] {
            let error = filter_of(bad).expect_err(bad).to_string();
            assert!(
                error.contains(&format!("POSTANALYTICS_LOG_FILTER is '{bad}'")) && error.contains("off, error, warn"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_flood_of_panics_is_logged_in_part() {
        let mut panics = Panics::default();
        let logged = [5, 6].map(|second| (0..25).filter_map(|_| panics.count(second)).collect::<Vec<_>>());
        // The first of the next second says how many there were meanwhile.
        assert_eq!(logged, [vec![0; 20], [vec![5], vec![0; 19]].concat()]);
    }

    #[test]
    fn a_renamed_file_is_left_and_a_failed_reopening_keeps_the_old_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let (path, renamed) = (folder.path().join("log"), folder.path().join("log.1"));
        let log = LogFile::open(&path).expect("opens");
        log.make_writer().write_all(b"one\n").expect("writes");
        std::fs::rename(&path, &renamed).expect("renames");
        log.reopen();
        log.make_writer().write_all(b"two\n").expect("writes");
        let read = |path: &Path| std::fs::read_to_string(path).expect("reads");
        assert_eq!((read(&renamed).as_str(), read(&path).as_str()), ("one\n", "two\n"));

        std::fs::remove_file(&path).expect("removes");
        std::fs::create_dir(&path).expect("a folder in the way");
        log.reopen();
        log.make_writer().write_all(b"three\n").expect("the old file is kept");
    }
}
