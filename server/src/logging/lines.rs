//! Lines of the log on their way out.
//!
//! A thread of its own writes them: a reader of standard error that stops, a disk that hangs, a journal that is restarted stop
//! nobody who logs, a shard least of all. What finds no room is dropped and counted, as is what cannot be written, and once
//! the others are written a line says how many. (`tracing-appender` does much of it, but says nothing where lines are
//! missing, and brings a calendar along for the rotation of files, which is not wanted here.)

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tracing_subscriber::fmt::MakeWriter;

/// Lines that wait to be written.
const LINES_MAX: usize = 8192;
/// At the end the process waits this long for them.
const FINISH_MAX: Duration = Duration::from_secs(1);

/// The log of the process, once it is on.
static LOG: OnceLock<LogLines> = OnceLock::new();

#[derive(Debug)]
enum Message {
    Line(Vec<u8>),
    /// Tell that all before this is written.
    Finish(SyncSender<()>),
}

/// The way to the thread that writes. Clones lead to the same.
#[derive(Clone, Debug)]
pub(super) struct LogLines {
    messages: SyncSender<Message>,
    dropped: Arc<AtomicU64>,
}

impl LogLines {
    /// Starts the thread, which writes to `out` for as long as the process lives, and calls `say` with how many were dropped.
    pub(super) fn start<W>(out: W, say: fn(u64)) -> std::io::Result<Self>
    where
        W: for<'a> MakeWriter<'a> + Send + 'static,
    {
        let (messages, waiting) = sync_channel(LINES_MAX);
        let dropped = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&dropped);
        std::thread::Builder::new().name("log".to_owned()).spawn(move || write_all(&out, &waiting, &counted, say))?;
        Ok(Self { messages, dropped })
    }

    /// From now on [`finish`] and [`lines_dropped`] are about this one.
    pub(super) fn of_process(&self) {
        LOG.get_or_init(|| self.clone());
    }

    /// Waits until all is written, but no longer than this. Whether it is.
    fn finish(&self, within: Duration) -> bool {
        let give_up = Instant::now() + within;
        let (done, is_done) = sync_channel(1);
        let mut message = Message::Finish(done);
        while let Err(TrySendError::Full(back)) = self.messages.try_send(message) {
            if Instant::now() >= give_up {
                return false;
            }
            message = back;
            std::thread::sleep(Duration::from_millis(2));
        }
        is_done.recv_timeout(give_up.saturating_duration_since(Instant::now())).is_ok()
    }
}

impl<'a> MakeWriter<'a> for LogLines {
    type Writer = &'a Self;

    fn make_writer(&'a self) -> &'a Self {
        self
    }
}

impl Write for &LogLines {
    /// Takes a line. Whoever logs hears of no error: there is nothing that it could do.
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        if self.messages.try_send(Message::Line(line.to_vec())).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Waits, a second at most, until what was logged is written. Call it before the process ends.
pub(crate) fn finish() {
    if let Some(log) = LOG.get() {
        log.finish(FINISH_MAX);
    }
}

/// Writes to standard error why the process ends, and waits for it as long as for the log: a reader that has stopped keeps nobody
/// from ending.
pub(crate) fn last_words(text: &str) {
    if write_within(std::io::stderr(), format!("{text}\n"), FINISH_MAX).is_err() {
        // That there are no more threads may be why it ends.
        let _ = writeln!(std::io::stderr(), "{text}");
    }
}

/// Writes a text by a thread of its own, which is waited for no longer than this. Whether all was written; an error: there is no thread.
fn write_within(mut out: impl Write + Send + 'static, text: String, within: Duration) -> std::io::Result<bool> {
    let (done, is_done) = sync_channel(1);
    let write = move || {
        let _ = done.try_send(out.write_all(text.as_bytes()).is_ok());
    };
    std::thread::Builder::new().name("last-words".to_owned()).spawn(write)?;
    Ok(is_done.recv_timeout(within).unwrap_or(false))
}

/// Lines of the log that were dropped, because its thread did not keep up or they could not be written.
pub(crate) fn lines_dropped() -> u64 {
    LOG.get().map_or(0, |log| log.dropped.load(Ordering::Relaxed))
}

/// Says in the log that lines are missing there.
pub(super) fn say_dropped(lines: u64) {
    tracing::warn!(lines, "lines of the log were dropped: whoever reads it does not keep up");
}

fn write_all(out: &impl for<'a> MakeWriter<'a>, messages: &Receiver<Message>, dropped: &AtomicU64, say: fn(u64)) {
    let (mut said, mut writes) = (0, true);
    loop {
        let message = match messages.try_recv() {
            Ok(message) => message,
            Err(TryRecvError::Disconnected) => return,
            Err(TryRecvError::Empty) => {
                let count = dropped.load(Ordering::Relaxed);
                // Not after a failure, or lines about lost lines would be lost for ever.
                if count > said && writes {
                    say(count - said);
                    said = count;
                }
                let Ok(message) = messages.recv() else { return };
                message
            }
        };
        match message {
            Message::Line(line) => {
                writes = out.make_writer().write_all(&line).is_ok();
                if !writes {
                    dropped.fetch_add(1, Ordering::Relaxed);
                }
            }
            Message::Finish(done) => drop(done.try_send(())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::sync::Mutex;

    static SAID: AtomicU64 = AtomicU64::new(0);

    fn say(lines: u64) {
        SAID.fetch_add(lines, Ordering::Relaxed);
    }

    #[test]
    fn a_reader_that_stops_stops_nobody_and_gets_the_rest_in_order() {
        const LINES: usize = LINES_MAX + 5_000;
        let (mut reader, writer) = std::io::pipe().expect("a pipe");
        let log = LogLines::start(Mutex::new(writer), say).expect("a thread");
        // A pipe takes 64 KiB; nobody reads it.
        for number in 0..LINES {
            (&log).write_all(format!("{number:0>99}\n").as_bytes()).expect("never fails");
        }
        let dropped = log.dropped.load(Ordering::Relaxed) as usize;
        assert!((1_000..5_000).contains(&dropped), "{dropped}");
        assert!(!log.finish(Duration::from_millis(10)), "it is not waited for for ever");
        let read = std::thread::spawn(move || {
            let mut text = String::new();
            reader.read_to_string(&mut text).map(|_| text)
        });
        // It is said when nothing waits, which may be after more than one of these.
        let said = (0..10_000).map(|_| {
            assert!(log.finish(Duration::from_secs(60)));
            SAID.load(Ordering::Relaxed)
        });
        assert_eq!(said.into_iter().find(|said| *said > 0), Some(dropped as u64));
        drop(log);
        let text = read.join().expect("no panic").expect("read");
        let numbers: Vec<usize> = text.lines().map(|line| line.parse().expect("whole lines")).collect();
        assert_eq!(numbers.len(), LINES - dropped);
        assert!(numbers.is_sorted_by(|one, next| one < next), "in order, whatever is missing between them");
    }

    #[test]
    fn last_words_wait_for_a_reader_but_not_for_ever() {
        let (mut reader, writer) = std::io::pipe().expect("a pipe");
        let within = |seconds, text: String| {
            let out = writer.try_clone().expect("a descriptor");
            write_within(out, text, Duration::from_secs(seconds)).expect("a thread")
        };
        assert!(within(60, "it failed\n".to_owned()));
        // A pipe takes 64 KiB; nobody reads it.
        assert!(!within(0, "x".repeat(1 << 20)));
        let mut text = [0; 10];
        reader.read_exact(&mut text).expect("read");
        assert_eq!(&text, b"it failed\n");
    }

    #[test]
    fn where_nothing_can_be_written_lines_are_counted_and_nothing_is_said_for_ever() {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let log = LogLines::start(Mutex::new(writer), |_| panic!("that would be one more")).expect("a thread");
        for _ in 0..3 {
            (&log).write_all(b"nobody hears this\n").expect("never fails");
        }
        (0..2).for_each(|_| assert!(log.finish(Duration::from_secs(60))));
        assert_eq!(log.dropped.load(Ordering::Relaxed), 3);
    }
}
