//! Follows one log through rotation: by rename (the server opens a new file), and by copy and truncate.
//!
//! A log is a row of files, oldest first. The last one has the log's name; those before it were renamed away, or are copies of
//! what was truncated, and stay until they are read to the end and all their lines are settled. So nothing is lost while the
//! server is away, however often the log is rotated meanwhile: an open file outlives its name.

use super::file::{Cursor, FileId, Found, LogFile, SILENCE, is_compressed, made_us, open};
use super::name::Name;
use super::unix_us;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::fs::{File, Metadata};
use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

/// Most files of one log that are open. Beyond it the oldest is given up.
const FILES_MAX: usize = 100;
/// How far the times of files are behind the clock at most: kernels take them from the last tick. µs.
const FILE_TIME_BEHIND_US: u64 = 100_000;
/// How far they are ahead of it at most, where another machine's clock makes them. µs.
const FILE_TIME_AHEAD_US: u64 = 5_000_000;

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
    name: Name,
    files: VecDeque<LogFile>,
    /// The file that had the name when it was last seen.
    named: Option<FileId>,
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
    /// Goes on at the cursor, or begins. A log that is not there yet is waited for. `followed`: all logs that are, or will be.
    pub(crate) fn open(path: PathBuf, followed: &[PathBuf], state: Option<&LogState>, begin: Begin) -> io::Result<Self> {
        let mut log = Self {
            name: Name::new(path, followed),
            files: VecDeque::new(),
            named: None,
            next_serial: 0,
            seen_us: unix_us(),
            seen: Instant::now(),
            is_missing: false,
            gaps: 0,
        };
        match state {
            Some(state) => log.go_on(state)?,
            None if log.name.path.exists() => {
                let offset = if begin == Begin::Start { 0 } else { LogFile::end_of_lines(&log.name.path)? };
                let serial = log.take_serial();
                let file = LogFile::open(&log.name.path, offset, serial)?;
                log.named = Some(file.id);
                log.files.push_back(file);
            }
            None => log.say_missing(&io::Error::from(io::ErrorKind::NotFound)),
        }
        Ok(log)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.name.path
    }

    const fn take_serial(&mut self) -> u64 {
        self.next_serial += 1;
        self.next_serial
    }

    fn go_on(&mut self, state: &LogState) -> io::Result<()> {
        self.named = state.files.last().map(|cursor| cursor.id);
        let mut last_path = None;
        for cursor in &state.files {
            let found = self.name.find(cursor.id, cursor.head, cursor.offset);
            last_path = found.as_ref().and_then(|(_, path)| path.clone());
            match found {
                Some((file, path)) => {
                    let mut file = LogFile::of(file, cursor.offset, self.take_serial())?;
                    file.is_left = path.as_ref() != Some(&self.name.path);
                    self.files.push_back(file);
                }
                None => {
                    self.gaps += 1;
                    tracing::warn!(
                        log = %self.name.path.display(), offset = cursor.offset,
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
        if let Some(path) = last_path.filter(|path| !self.name.is_rotated(path)) {
            self.gaps += 1;
            tracing::warn!(
                log = %self.name.path.display(), file = %path.display(),
                "the log was rotated while the agent did not run, to a name that is not known as that of a rotated file: if it was \
                 rotated more than once, files between are lost; let the rotation add a number or a date to the name, or .old"
            );
        }
        // A state that does not say so: what was made after the last file that we know, or nothing.
        let named_us = || std::fs::metadata(&self.name.path).map_or(self.seen_us, |metadata| made_us(&metadata));
        let last_us = || self.files.back().map_or_else(named_us, LogFile::made_us);
        self.seen_us = if state.seen_us > 0 { state.seen_us } else { last_us() };
        self.open_next(Instant::now())
    }

    /// Opens the file that the name belongs to now, from its start. Between it and those we have come files that had the name
    /// and lost it without our seeing it. What fails, fails before anything changes: it is tried again.
    fn open_next(&mut self, now: Instant) -> io::Result<()> {
        let seen_us = unix_us();
        let current = match open(&self.name.path) {
            Ok(file) => LogFile::of(file, 0, 0)?,
            Err(error) => {
                self.say_missing(&error);
                return Ok(());
            }
        };
        let rotated = self.name.rotated();
        let (between, lost) = self.between(&rotated, &current)?;
        let before = self.files.back().filter(|file| !file.is_left).map(|file| file.id);
        let is_among = |id| rotated.iter().any(|(_, metadata)| FileId::of(metadata) == id);
        // Within this time it is rotated once only, to another folder perhaps.
        let is_long_ago = now.duration_since(self.seen) >= SILENCE;
        if is_long_ago && before.is_some_and(|id| !is_among(id)) {
            self.gaps += 1;
            tracing::warn!(
                log = %self.name.path.display(),
                "the log was rotated while nobody looked, and its old file is gone, or compressed, or has a name that is not known as \
                 that of a rotated file: if it was rotated more than once, files between are lost; let the rotation keep the newest \
                 file as it is (delaycompress), and add a number or a date to its name"
            );
        }
        self.gaps += lost;
        self.files.iter_mut().filter(|file| !file.is_left).for_each(|file| file.leave(now));
        for mut file in between.into_iter().chain([current]) {
            file.serial = self.take_serial();
            self.files.push_back(file);
        }
        (self.is_missing, self.seen_us, self.seen) = (false, seen_us, now);
        self.named = self.files.back().map(|file| file.id);
        self.bound();
        Ok(())
    }

    /// The files that were made since the name was last seen and have other names now, oldest first, and how many of them cannot
    /// be opened, or 1 if there may be some.
    fn between(&self, rotated: &[(PathBuf, Metadata)], current: &LogFile) -> io::Result<(Vec<LogFile>, u64)> {
        let (mut found, mut lost): (Vec<LogFile>, u64) = (Vec::new(), 0);
        // After they were listed: none was made later.
        let now_us = unix_us();
        // One that was truncated is the same as before and was made long ago; one that was waited for may be moved there.
        let is_other = self.named.is_some_and(|named| named != current.id);
        let next_us = if is_other { current.made_us() } else { now_us };
        let last_us = self.files.back().filter(|last| last.id != current.id).map(LogFile::made_us);
        let Some(unseen_us) = unseen_us(self.seen_us, next_us, last_us, now_us) else {
            tracing::warn!(
                log = %self.name.path.display(), seen_us = self.seen_us, next_us,
                "the log was rotated, and its new file seems older than what was seen before it: the clock was set back, or the file was \
                 moved there; if the log was rotated more than once, files between are lost; let NTP keep the clock"
            );
            return Ok((found, 1));
        };
        for (name, metadata) in rotated {
            let is_known = self.files.iter().chain([current]).any(|file| file.id == FileId::of(metadata));
            if is_known || !unseen_us.contains(&made_us(metadata)) {
                continue;
            }
            match open(name) {
                // A copy of what we have, or a second name.
                Ok(file) if self.has(&file)? || found.iter().any(|other| other.id == FileId::of(metadata)) => {}
                Ok(file) if is_compressed(&file)? => {
                    lost += 1;
                    tracing::warn!(
                        log = %self.name.path.display(), file = %name.display(),
                        "the log was rotated more than once while nobody looked, and this file of it is compressed: it is lost; let the \
                         rotation keep the newest file as it is (delaycompress)"
                    );
                }
                Ok(file) => {
                    let mut file = LogFile::of(file, 0, 0)?;
                    file.is_left = true;
                    found.push(file);
                }
                Err(error) if matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::NotFound) => {
                    lost += 1;
                    tracing::warn!(
                        log = %self.name.path.display(), file = %name.display(), %error,
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
            tracing::warn!(log = %self.name.path.display(), %error, "the log cannot be opened; it is tried again until it can");
        }
    }

    /// Looks whether the log was rotated or truncated. To be called before lines are asked for, a few times a second.
    pub(crate) fn look(&mut self, now: Instant) -> io::Result<()> {
        let seen_us = unix_us();
        let Some(current) = self.files.back_mut().filter(|file| !file.is_left) else { return self.open_next(now) };
        if current.is_other_than_it_was()? {
            let (id, head, read) = (current.id, current.head(), current.read_to());
            let copy = if head.is_empty() { None } else { self.name.find_copy(id, head, read) };
            match copy {
                Some(copy) => current.go_on_in(copy, now)?,
                None => {
                    self.gaps += 1;
                    tracing::warn!(
                        log = %self.name.path.display(), read,
                        "the log was truncated, and there is no copy of it: what was not read before is lost; rotate by rename (create) \
                         instead of copytruncate"
                    );
                    current.give_up();
                }
            }
            tracing::info!(log = %self.name.path.display(), "the log was truncated: read from its start");
            return self.open_next(now);
        }
        match std::fs::metadata(&self.name.path) {
            Ok(metadata) if FileId::of(&metadata) != current.id => {
                self.open_next(now)?;
                if !self.is_missing {
                    tracing::info!(log = %self.name.path.display(), "the log was rotated: the old file is read to its end");
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
        LogState {
            path: self.name.path.clone(),
            seen_us: self.seen_us,
            files: self.files.iter_mut().map(LogFile::cursor).collect(),
        }
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
                    log = %self.name.path.display(), files = FILES_MAX,
                    "too many rotated files wait to be read: the oldest is given up; is postanalytics away?"
                );
            }
        }
    }
}

/// When files were made that had the name after it was last seen, and lost it. `None`: that cannot be told.
///
/// All in Unix µs: `seen_us` when the name was last seen, `next_us` what the clock of the file system showed later, `last_us` when
/// the last file that we know was made, `now_us` after all of them.
pub(crate) fn unseen_us(seen_us: u64, next_us: u64, last_us: Option<u64>, now_us: u64) -> Option<RangeInclusive<u64>> {
    if next_us.saturating_add(FILE_TIME_BEHIND_US) >= seen_us {
        // What was made later than now was made, and seen, before the clock was set back.
        let end_us = now_us.max(next_us).saturating_add(FILE_TIME_AHEAD_US);
        return Some(seen_us.saturating_sub(FILE_TIME_BEHIND_US)..=end_us);
    }
    // The clock was set back since, so what was made since may have an earlier time. What was made after the last file is new, unless
    // that one is from the future, too.
    last_us.filter(|last_us| *last_us <= next_us).map(|last_us| last_us..=u64::MAX)
}
