//! Access logs as a stream of lines: plain or gzip, file after file, lines of any length within a bound; and the log's clock,
//! which says when a line is due.

use anyhow::{Context, Result};
use flate2::read::MultiGzDecoder;
use postanalytics_client::access_log::{LogLine, parse_line};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// Longest line; a longer one is counted and skipped. Servers bound request lines at 8 to 64 KiB.
pub const LINE_BYTES_MAX: usize = 1 << 20;
const BUFFER_BYTES: usize = 128 << 10;

/// Longest gap between two lines that a timed replay waits for, in the log's time. A longer one is a clock that was wrong.
const GAP_US_MAX: u64 = 86_400_000_000;

/// The time of a log as its lines tell it: how far it is from the first line that has a time.
///
/// Lines without a time, and lines that go back in time, are due with the line before them.
#[derive(Clone, Copy, Debug, Default)]
pub struct LogClock {
    latest_us: Option<u64>,
    elapsed_us: u64,
    /// Gaps cut to a day.
    pub gaps_cut: u64,
}

impl LogClock {
    /// Goes on to a line, and tells how long after the first one it is due.
    pub fn advance(&mut self, time_us: Option<u64>) -> u64 {
        let Some(time_us) = time_us else { return self.elapsed_us };
        let latest_us = *self.latest_us.get_or_insert(time_us);
        if time_us > latest_us {
            self.elapsed_us = self.elapsed_us.saturating_add((time_us - latest_us).min(GAP_US_MAX));
            self.gaps_cut += u64::from(time_us - latest_us > GAP_US_MAX);
        }
        // A clock that was wrong by more than a day, or another log: time goes on from here.
        if time_us > latest_us || latest_us - time_us > GAP_US_MAX {
            self.latest_us = Some(time_us);
        }
        self.elapsed_us
    }

    /// Unix time that the log has reached, µs; 0 before the first line with a time.
    pub fn now_us(&self) -> u64 {
        self.latest_us.unwrap_or(0)
    }
}

/// Reads logs line by line.
#[derive(Debug)]
pub struct LogReader {
    files: VecDeque<Waiting>,
    open: Option<Open>,
    line: Vec<u8>,
    /// Lines read, empty ones not counted.
    pub lines: u64,
    /// Lines without the structure of an access log, or too long.
    pub lines_unparsable: u64,
}

struct Waiting {
    path: PathBuf,
    /// Of a pipe, open from the start: what was read of it to see what it is would not come again.
    pipe: Option<Box<dyn BufRead + Send>>,
}

struct Open {
    path: PathBuf,
    reader: Box<dyn BufRead + Send>,
}

impl LogReader {
    /// A reader over `files`, in order. Each is opened once here, so that a wrong name is an error before the run.
    pub fn new(files: &[PathBuf]) -> Result<Self> {
        let wait = |path: &PathBuf| {
            let reader = open(path)?;
            let is_file = path.metadata().is_ok_and(|metadata| metadata.is_file());
            Ok(Waiting { path: path.clone(), pipe: (!is_file).then_some(reader) })
        };
        let files = files.iter().map(wait).collect::<Result<_>>()?;
        Ok(Self { files, open: None, line: Vec::new(), lines: 0, lines_unparsable: 0 })
    }

    /// The next line that is one of an access log; `None` after the last file.
    pub fn next_line(&mut self) -> Result<Option<LogLine<'_>>> {
        loop {
            if self.open.is_none() {
                let Some(Waiting { path, pipe }) = self.files.pop_front() else { return Ok(None) };
                let reader = pipe.map_or_else(|| open(&path), Ok)?;
                self.open = Some(Open { reader, path });
            }
            let Some(open) = &mut self.open else { continue };
            self.line.clear();
            let is_whole = read_bounded_line(&mut open.reader, &mut self.line).with_context(|| {
                format!("cannot read {} after {} lines; is the file damaged?", open.path.display(), self.lines)
            })?;
            if self.line.is_empty() {
                self.open = None;
                continue;
            }
            if self.line.trim_ascii().is_empty() {
                continue;
            }
            self.lines += 1;
            if is_whole && parse_line(&self.line).is_some() {
                break;
            }
            self.lines_unparsable += 1;
        }
        // Parsed a second time: the borrow checker does not let a borrow leave a loop that goes on using its owner.
        Ok(parse_line(&self.line))
    }
}

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Waiting").field("path", &self.path).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Open {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Open").field("path", &self.path).finish_non_exhaustive()
    }
}

fn open(path: &Path) -> Result<Box<dyn BufRead + Send>> {
    let context = || format!("cannot open {}: check the name and that this user may read it", path.display());
    let mut reader = BufReader::with_capacity(BUFFER_BYTES, File::open(path).with_context(context)?);
    // The first bytes decide, not the name: rotated logs are called many things.
    let is_gzip = reader.fill_buf().with_context(context)?.starts_with(&[0x1f, 0x8b]);
    Ok(if is_gzip { Box::new(BufReader::with_capacity(BUFFER_BYTES, MultiGzDecoder::new(reader))) } else { Box::new(reader) })
}

/// Reads up to and with the next line end. `false`: the line was longer than [`LINE_BYTES_MAX`]; the rest of it is skipped.
fn read_bounded_line(mut reader: &mut dyn BufRead, line: &mut Vec<u8>) -> std::io::Result<bool> {
    (&mut reader).take(LINE_BYTES_MAX as u64).read_until(b'\n', line)?;
    let is_whole = line.len() < LINE_BYTES_MAX || line.ends_with(b"\n");
    if !is_whole {
        reader.skip_until(b'\n')?;
    }
    Ok(is_whole)
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compression, write::GzEncoder};
    use std::io::Write;
    use std::os::fd::AsRawFd;

    const LINE: &str = r#"192.0.2.9 - - [17/May/2015:10:05:03 +0000] "GET /n HTTP/1.1" 200 5 "-" "-""#;

    fn read_all(files: &[PathBuf]) -> (Vec<Vec<u8>>, u64, u64) {
        let mut reader = LogReader::new(files).expect("the files are there");
        let mut paths = Vec::new();
        while let Some(line) = reader.next_line().expect("the files can be read") {
            paths.push(line.path.to_vec());
        }
        (paths, reader.lines, reader.lines_unparsable)
    }

    #[test]
    fn plain_and_gzip_files_follow_each_other() {
        let folder = tempfile::tempdir().expect("a folder");
        let (plain, gzip) = (folder.path().join("a.log"), folder.path().join("b"));
        std::fs::write(&plain, format!("{LINE}\r\n\nno line at all\n{}", LINE.replace("/n", "/last"))).expect("written");
        // Two members, as appending to a rotated log gives.
        let mut bytes = Vec::new();
        for path in ["/first", "/second"] {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
            writeln!(encoder, "{}", LINE.replace("/n", path)).expect("encoded");
            bytes.extend(encoder.finish().expect("encoded"));
        }
        std::fs::write(&gzip, bytes).expect("written");
        let (paths, lines, unparsable) = read_all(&[plain, gzip]);
        assert_eq!(paths, [&b"/n"[..], b"/last", b"/first", b"/second"]);
        assert_eq!((lines, unparsable), (5, 1));
    }

    /// As a shell gives one for `<(zcat access.log.gz)`: its first bytes come once.
    #[test]
    fn a_pipe_is_read_from_its_first_line() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("a.log");
        std::fs::write(&file, format!("{LINE}\n")).expect("written");
        let (pipe, mut end) = std::io::pipe().expect("a pipe");
        write!(end, "{}\n{}\n", LINE.replace("/n", "/first"), LINE.replace("/n", "/second")).expect("written");
        drop(end);
        let path = PathBuf::from(format!("/proc/self/fd/{}", pipe.as_raw_fd()));
        assert_eq!(read_all(&[file, path]), (vec![b"/n".to_vec(), b"/first".to_vec(), b"/second".to_vec()], 3, 0));
    }

    #[test]
    fn a_line_over_the_bound_is_skipped_whole() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("long.log");
        let long = LINE.replace("/n", &format!("/{}", "x".repeat(2 * LINE_BYTES_MAX)));
        std::fs::write(&file, format!("{long}\n{LINE}\n")).expect("written");
        assert_eq!(read_all(&[file]), (vec![b"/n".to_vec()], 2, 1));
    }

    #[test]
    fn a_line_takes_no_more_memory_than_its_bound() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("bomb.gz");
        let mut encoder = GzEncoder::new(File::create(&file).expect("created"), Compression::fast());
        (0..8).for_each(|_| encoder.write_all(&vec![b'x'; LINE_BYTES_MAX]).expect("encoded"));
        writeln!(encoder, "\n{LINE}").expect("encoded");
        encoder.finish().expect("encoded");
        let mut reader = LogReader::new(&[file]).expect("the file is there");
        assert_eq!(reader.next_line().expect("readable").expect("the second line").path, b"/n");
        assert_eq!((reader.lines, reader.lines_unparsable), (2, 1));
        assert!(reader.line.capacity() <= 2 * LINE_BYTES_MAX, "{} bytes", reader.line.capacity());
    }

    #[test]
    fn the_clock_of_a_log_survives_what_logs_hold() {
        let (mut clock, second) = (LogClock::default(), 1_000_000);
        let start = 1_431_857_103 * second;
        assert_eq!((clock.advance(None), clock.now_us()), (0, 0));
        let mut at = |time_us| clock.advance(time_us);
        assert_eq!([at(Some(start)), at(None), at(Some(start + second))], [0, 0, second]);
        // Back a little: due at once, and no time is waited for twice.
        assert_eq!([at(Some(start)), at(Some(start + 2 * second))], [second, 2 * second]);
        // A century ahead and back again is a day at most.
        assert_eq!(at(Some(start + 3_000_000_000 * second)), 2 * second + GAP_US_MAX);
        assert_eq!([at(Some(start)), at(Some(start + second))], [2 * second + GAP_US_MAX, 3 * second + GAP_US_MAX]);
        assert_eq!((clock.gaps_cut, clock.now_us()), (1, start + second));
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = LogReader::new(&["/nowhere/access.log".into()]).expect_err("there is no such file");
        assert!(format!("{error:#}").contains("/nowhere/access.log"));
    }
}
