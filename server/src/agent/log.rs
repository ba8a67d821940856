//! Follows one log through rotation: by rename (the server opens a new file), and by copy and truncate.
//!
//! A log is a row of files, oldest first. The last one has the log's name; those before it were renamed away, or are copies of
//! what was truncated, and stay until they are read to the end and all their lines are settled. So nothing is lost while the
//! server is away, however often the log is rotated meanwhile: an open file outlives its name.

use super::file::{Cursor, FileId, Found, Head, LogFile, SILENCE, made_us, open};
use super::unix_us;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::fs::{File, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

/// Most files of one log that are open. Beyond it the oldest is given up.
const FILES_MAX: usize = 100;
/// Most entries of a folder that are looked at.
const ENTRIES_MAX: usize = 10_000;
/// How far the times of files are behind the clock at most: kernels take them from the last tick. µs.
const FILE_TIME_BEHIND_US: u64 = 100_000;

/// Where a log without a cursor is read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Begin {
    /// Its first line.
    Start,
    /// The first line that comes.
    End,
}

/// How far a log is settled, as the state file keeps it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LogState {
    pub(crate) path: PathBuf,
    /// When the name was last seen to be that of the last file, Unix µs: what was made later was not seen. 0: not known.
    #[serde(default)]
    pub(crate) seen_us: u64,
    pub(crate) files: Vec<Cursor>,
}

/// A line of a log. [`Log::text`] has its text until the next line is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    /// The number of its file.
    pub(crate) serial: u64,
    pub(crate) found: Found,
}

/// A log that is followed.
#[derive(Debug)]
pub(crate) struct Log {
    pub(crate) path: PathBuf,
    files: VecDeque<LogFile>,
    next_serial: u64,
    /// When the name was last seen to be that of the last file: in Unix µs as in [`LogState`], and by the clock of this process.
    seen_us: u64,
    seen: Instant,
    /// The file that the name belongs to could not be opened; said once.
    is_missing: bool,
    /// Times that lines may have been lost.
    pub(crate) gaps: u64,
}

impl Log {
    /// Goes on at the cursor, or begins. A log that is not there yet is waited for.
    pub(crate) fn open(path: PathBuf, state: Option<&LogState>, begin: Begin) -> io::Result<Self> {
        let (seen_us, seen) = (unix_us(), Instant::now());
        let mut log = Self { path, files: VecDeque::new(), next_serial: 0, seen_us, seen, is_missing: false, gaps: 0 };
        match state {
            Some(state) => log.go_on(state)?,
            None if log.path.exists() => {
                let offset = if begin == Begin::Start { 0 } else { LogFile::end_of_lines(&log.path)? };
                let serial = log.take_serial();
                let file = LogFile::open(&log.path, offset, serial)?;
                log.files.push_back(file);
            }
            None => log.say_missing(&io::Error::from(io::ErrorKind::NotFound)),
        }
        Ok(log)
    }

    const fn take_serial(&mut self) -> u64 {
        self.next_serial += 1;
        self.next_serial
    }

    fn go_on(&mut self, state: &LogState) -> io::Result<()> {
        for cursor in &state.files {
            match find(&self.path, cursor.id, cursor.head, cursor.offset) {
                Some((file, path)) => {
                    let mut file = LogFile::of(file, cursor.offset, self.take_serial())?;
                    file.is_left = path != self.path;
                    self.files.push_back(file);
                }
                None => {
                    self.gaps += 1;
                    tracing::warn!(
                        log = %self.path.display(), offset = cursor.offset,
                        "the file in which the lines were read last is gone, or compressed: what was written to it since is lost; what \
                         was rotated after it and is not compressed is read; let the rotation keep the newest file as it is \
                         (delaycompress), and the agent run"
                    );
                }
            }
        }
        if self.files.back().is_some_and(|file| !file.is_left) {
            return Ok(());
        }
        // A state that does not say so: what was made after the last file that we know.
        let last_us = || self.files.back().map_or(self.seen_us, LogFile::made_us);
        self.seen_us = if state.seen_us > 0 { state.seen_us } else { last_us() };
        self.open_next(Instant::now())
    }

    /// Opens the file that the name belongs to now, from its start. Between it and those we have come files that had the name
    /// and lost it without our seeing it. What fails, fails before anything changes: it is tried again.
    fn open_next(&mut self, now: Instant) -> io::Result<()> {
        let seen_us = unix_us();
        let current = match open(&self.path) {
            Ok(file) => LogFile::of(file, 0, 0)?,
            Err(error) => {
                self.say_missing(&error);
                return Ok(());
            }
        };
        let rotated = rotated(&self.path);
        let (between, lost) = self.between(&rotated, &current)?;
        let before = self.files.back().filter(|file| !file.is_left).map(|file| file.id);
        let is_among = |id| rotated.iter().any(|(_, metadata)| FileId::of(metadata) == id);
        // Within this time it is rotated once only, to another folder perhaps.
        let is_long_ago = now.duration_since(self.seen) >= SILENCE;
        if is_long_ago && before.is_some_and(|id| !is_among(id)) {
            self.gaps += 1;
            tracing::warn!(
                log = %self.path.display(),
                "the log was rotated while nobody looked, and its old file is gone, or compressed: if it was rotated more than once, \
                 files between are lost; let the rotation keep the newest file as it is (delaycompress)"
            );
        }
        self.gaps += lost;
        self.files.iter_mut().filter(|file| !file.is_left).for_each(|file| file.leave(now));
        for mut file in between.into_iter().chain([current]) {
            file.serial = self.take_serial();
            self.files.push_back(file);
        }
        (self.is_missing, self.seen_us, self.seen) = (false, seen_us, now);
        self.bound();
        Ok(())
    }

    /// The files that were made since the name was last seen and have other names now, oldest first, and how many of them cannot
    /// be opened.
    fn between(&self, rotated: &[(PathBuf, Metadata)], current: &LogFile) -> io::Result<(Vec<LogFile>, u64)> {
        let since_us = self.seen_us.saturating_sub(FILE_TIME_BEHIND_US);
        let (mut found, mut lost): (Vec<LogFile>, u64) = (Vec::new(), 0);
        for (name, metadata) in rotated {
            let is_known = self.files.iter().chain([current]).any(|file| file.id == FileId::of(metadata));
            if is_known || made_us(metadata) < since_us {
                continue;
            }
            match open(name) {
                // A copy of what we have, or a second name.
                Ok(file) if self.has(&file)? || found.iter().any(|other| other.id == FileId::of(metadata)) => {}
                Ok(file) => {
                    let mut file = LogFile::of(file, 0, 0)?;
                    file.is_left = true;
                    found.push(file);
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::NotFound) => {
                    lost += 1;
                    tracing::warn!(
                        log = %self.path.display(), file = %name.display(), %error,
                        "the log was rotated more than once while nobody looked, and this file of it cannot be opened: it is lost"
                    );
                }
                Err(error) => return Err(error),
            }
        }
        Ok((found, lost))
    }

    /// Whether a file begins as one that we have.
    fn has(&self, file: &File) -> io::Result<bool> {
        for head in self.files.iter().map(LogFile::head).filter(|head| !head.is_empty()) {
            if head.is_of(file)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn say_missing(&mut self, error: &io::Error) {
        if !std::mem::replace(&mut self.is_missing, true) {
            tracing::warn!(log = %self.path.display(), %error, "the log cannot be opened; it is tried again until it can");
        }
    }

    /// Looks whether the log was rotated or truncated. To be called before lines are asked for, a few times a second.
    pub(crate) fn look(&mut self, now: Instant) -> io::Result<()> {
        let seen_us = unix_us();
        let Some(current) = self.files.back_mut().filter(|file| !file.is_left) else { return self.open_next(now) };
        if current.is_other_than_it_was()? {
            let (id, head, read) = (current.id, current.head(), current.read_to());
            let copy = if head.is_empty() { None } else { find_copy(&self.path, id, head, read) };
            match copy {
                Some(copy) => current.go_on_in(copy, now)?,
                None => {
                    self.gaps += 1;
                    tracing::warn!(
                        log = %self.path.display(), read,
                        "the log was truncated, and there is no copy of it: what was not read before is lost; rotate by rename (create) \
                         instead of copytruncate"
                    );
                    current.give_up();
                }
            }
            tracing::info!(log = %self.path.display(), "the log was truncated: read from its start");
            return self.open_next(now);
        }
        match std::fs::metadata(&self.path) {
            Ok(metadata) if FileId::of(&metadata) != current.id => {
                self.open_next(now)?;
                if !self.is_missing {
                    tracing::info!(log = %self.path.display(), "the log was rotated: the old file is read to its end");
                }
            }
            Ok(_) => (self.seen_us, self.seen) = (seen_us, now),
            // No name for a while: the server will make a new file.
            Err(_) => {}
        }
        Ok(())
    }

    /// The next line. `None`: there is none for now.
    pub(crate) fn next_line(&mut self, now: Instant) -> io::Result<Option<Line>> {
        let has_next = self.files.back().is_some_and(|file| !file.is_left);
        for file in &mut self.files {
            if let Some(found) = file.next_line(now, has_next)? {
                return Ok(Some(Line { serial: file.serial, found }));
            }
        }
        Ok(None)
    }

    /// Nothing that is written from now on is read.
    pub(crate) fn end_here(&mut self) -> io::Result<()> {
        self.files.iter_mut().try_for_each(LogFile::end_here)
    }

    /// For who does not wait for more: the unfinished last lines of files that were left some time ago.
    pub(crate) fn next_rest(&mut self, now: SystemTime) -> Option<Line> {
        let mut left = self.files.iter_mut().filter(|file| file.is_left);
        left.find_map(|file| file.finish_if_quiet(now).map(|found| Line { serial: file.serial, found }))
    }

    /// The text of the line that was found last.
    pub(crate) fn text(&self, line: &Line) -> &[u8] {
        let file = self.files.iter().find(|file| file.serial == line.serial);
        file.map_or(b"", |file| file.text(&line.found))
    }

    /// All lines of a file that end before this are settled.
    pub(crate) fn settle(&mut self, serial: u64, end: u64) {
        if let Some(file) = self.files.iter_mut().find(|file| file.serial == serial) {
            file.settle(end);
        }
        self.files.retain(|file| !file.is_over());
    }

    /// Bytes that are not read yet.
    pub(crate) fn unread(&self) -> u64 {
        self.files.iter().map(LogFile::unread).sum()
    }

    pub(crate) fn state(&mut self) -> LogState {
        self.files.retain(|file| !file.is_over());
        LogState { path: self.path.clone(), seen_us: self.seen_us, files: self.files.iter_mut().map(LogFile::cursor).collect() }
    }

    /// For tests: reads of it fail.
    #[cfg(test)]
    pub(crate) fn break_it(&mut self) {
        self.files.iter_mut().for_each(LogFile::break_it);
    }

    fn bound(&mut self) {
        while self.files.len() > FILES_MAX {
            let lost = self.files.pop_front().filter(|file| !file.is_done());
            if lost.is_some() {
                self.gaps += 1;
                tracing::error!(
                    log = %self.path.display(), files = FILES_MAX,
                    "too many rotated files wait to be read: the oldest is given up; is postanalytics away?"
                );
            }
        }
    }
}

/// The regular files of the log's folder, with their paths.
fn neighbours(path: &Path) -> impl Iterator<Item = (PathBuf, Metadata)> {
    let folder = path.parent().map(std::fs::read_dir).and_then(Result::ok);
    let entries = folder.into_iter().flatten().filter_map(Result::ok).take(ENTRIES_MAX);
    entries.filter_map(|entry| {
        let metadata = std::fs::metadata(entry.path()).ok()?;
        metadata.is_file().then(|| (entry.path(), metadata))
    })
}

/// The file that a cursor means: the same one under any name of the folder, or a copy of it.
fn find(path: &Path, id: FileId, head: Head, offset: u64) -> Option<(File, PathBuf)> {
    let is_it = |file: &File, metadata: &Metadata| {
        metadata.len() >= offset && head.is_of(file).unwrap_or(false) && FileId::of(metadata) == id
    };
    let named = std::fs::metadata(path).ok().map(|metadata| (path.to_path_buf(), metadata));
    for (path, metadata) in named.into_iter().chain(neighbours(path)) {
        if FileId::of(&metadata) == id
            && let Ok(file) = open(&path)
            && file.metadata().is_ok_and(|metadata| is_it(&file, &metadata))
        {
            return Some((file, path));
        }
    }
    if head.is_empty() {
        return None;
    }
    find_copy(path, id, head, offset).map(|file| (file, PathBuf::new()))
}

/// A copy of a file that was truncated: another file of the folder that begins as it did and has what was read.
fn find_copy(path: &Path, id: FileId, head: Head, offset: u64) -> Option<File> {
    neighbours(path).find_map(|(name, metadata)| {
        let may_be = name != path && FileId::of(&metadata) != id && metadata.len() >= offset && is_rotated_name(path, &name);
        let file = if may_be { open(&name).ok()? } else { return None };
        head.is_of(&file).unwrap_or(false).then_some(file)
    })
}

/// The rotated files of a log that are not compressed, in the order in which they were made.
fn rotated(path: &Path) -> Vec<(PathBuf, Metadata)> {
    let mut all: Vec<_> = neighbours(path).filter(|(name, _)| name != path && is_rotated_name(path, name)).collect();
    all.sort_by_key(|(_, metadata)| made_us(metadata));
    all
}

/// `access.log.1` or `access.log-20260131`, not compressed.
fn is_rotated_name(path: &Path, name: &Path) -> bool {
    let (Some(log), Some(name)) = (path.file_name(), name.file_name()) else { return false };
    let (log, name) = (log.as_encoded_bytes(), name.as_encoded_bytes());
    let is_packed = [".gz", ".bz2", ".xz", ".zst"].iter().any(|ending| name.ends_with(ending.as_bytes()));
    name.strip_prefix(log).is_some_and(|rest| matches!(rest.first(), Some(b'.' | b'-' | b'_'))) && !is_packed
}
