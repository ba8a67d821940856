//! One file of a log: its lines, and how it is known again.
//!
//! A file is known by device and inode, and by a hash of its first bytes: an inode may be given to another file, and a file that
//! was truncated, or copied, keeps or loses its inode. Lines begin with a time, so the first bytes of two logs differ.

use serde::{Deserialize, Serialize};
use siphasher::sip::SipHasher13;
use std::fs::File;
use std::hash::Hasher;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Longest line; a longer one is counted and skipped.
pub(crate) const LINE_BYTES_MAX: usize = 256 * 1024;
/// Bytes read at a time.
const READ_BYTES: usize = 64 * 1024;
/// First bytes by which a file is known again.
const HEAD_BYTES_MAX: u64 = 1024;
/// A file that was renamed away is still written to until the server opens the new one: it is done after so much silence, counted
/// from when its new name was seen at the earliest.
pub(crate) const SILENCE: Duration = Duration::from_secs(5);

/// Which file of the system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileId {
    pub(crate) device: u64,
    pub(crate) inode: u64,
}

/// A hash of the first bytes of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Head {
    bytes: u64,
    hash: u64,
}

/// A file and how far it is settled, as the state file keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cursor {
    #[serde(flatten)]
    pub(crate) id: FileId,
    /// Lines before this are settled.
    pub(crate) offset: u64,
    pub(crate) head: Head,
}

/// A line that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// Where it stands in the buffer, without its end.
    pub(crate) text: Range<usize>,
    /// It was too long, and is not there.
    pub(crate) is_too_long: bool,
    /// Position in the file at which it begins.
    pub(crate) begin: u64,
    /// Position in the file behind it.
    pub(crate) end: u64,
}

/// How compressed files begin: gzip, compress, zstd, xz.
const COMPRESSED: [&[u8]; 4] = [b"\x1f\x8b", b"\x1f\x9d", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\0"];

/// Whether a file begins as no log does.
pub(crate) fn is_compressed(file: &File) -> io::Result<bool> {
    let mut first = [0; 10];
    // A folder has no bytes to read; what it is, is told elsewhere.
    let read = if file.metadata()?.is_file() { file.read_at(&mut first, 0)? } else { 0 };
    // A line of a log may begin with the host that a visitor named, so not with the three letters of bzip2 alone.
    let is_bzip2 = first.starts_with(b"BZh") && &first[4..] == b"1AY&SY";
    Ok(is_bzip2 || COMPRESSED.iter().any(|magic| first[..read].starts_with(magic)))
}

/// A file that is read.
#[derive(Debug)]
pub(crate) struct LogFile {
    pub(crate) serial: u64,
    pub(crate) id: FileId,
    file: File,
    head: Head,
    /// Position behind the last line that was found.
    read: u64,
    /// Lines before this are settled.
    settled: u64,
    /// The bytes from `buffer_at` on; those before `begin` were found, those before `scanned` hold no line end.
    buffer: Vec<u8>,
    buffer_at: u64,
    begin: usize,
    scanned: usize,
    is_skipping: bool,
    /// Nothing is read behind this.
    until: u64,
    /// When bytes last came, or it was left.
    written: Instant,
    /// Its name belongs to another file: nobody opens it again.
    pub(crate) is_left: bool,
    /// Read to its end.
    is_done: bool,
    /// Size and time of change when it was last compared.
    seen: (u64, i64, i64),
}

/// Opens a file. One that is no file, such as a pipe that nobody writes to, does not hold us up.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    File::options().read(true).custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed()).open(path)
}

/// When a file was made, Unix µs. Where the file system does not tell, when it was last written to.
pub(crate) fn made_us(metadata: &std::fs::Metadata) -> u64 {
    let made = metadata.created().or_else(|_| metadata.modified());
    made.ok().and_then(|made| made.duration_since(UNIX_EPOCH).ok()).map_or(0, |made| made.as_micros() as u64)
}

impl FileId {
    pub(crate) fn of(metadata: &std::fs::Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }
}

impl Head {
    /// Of the first `bytes` of a file, or of what it has.
    fn of(file: &File, bytes: u64) -> io::Result<Self> {
        let mut head = [0; HEAD_BYTES_MAX as usize];
        let mut read = 0;
        while read < bytes.min(HEAD_BYTES_MAX) as usize {
            match file.read_at(&mut head[read..bytes.min(HEAD_BYTES_MAX) as usize], read as u64) {
                Ok(0) => break,
                Ok(more) => read += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let mut hasher = SipHasher13::new();
        hasher.write(&head[..read]);
        Ok(Self { bytes: read as u64, hash: hasher.finish() })
    }

    /// Whether a file begins so. One of which nothing is known begins as any.
    pub(crate) fn is_of(self, file: &File) -> io::Result<bool> {
        Ok(Self::of(file, self.bytes)? == self)
    }

    pub(crate) const fn is_empty(self) -> bool {
        self.bytes == 0
    }
}

impl LogFile {
    /// Opens a file that is to be read from `offset` on. One that is compressed is refused.
    pub(crate) fn open(path: &Path, offset: u64, serial: u64) -> io::Result<Self> {
        let file = open(path)?;
        if is_compressed(&file)? {
            return Err(io::Error::other(
                "it is compressed: unpack it and give that file, or use `postanalytics replay` or `audit`, which read gzip",
            ));
        }
        Self::of(file, offset, serial)
    }

    /// The same for one that is open.
    pub(crate) fn of(file: File, offset: u64, serial: u64) -> io::Result<Self> {
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("it is no regular file; give one that a server writes its log to"));
        }
        let head = Head::of(&file, offset)?;
        Ok(Self {
            serial,
            id: FileId::of(&metadata),
            file,
            head,
            read: offset,
            settled: offset,
            buffer: Vec::new(),
            buffer_at: offset,
            begin: 0,
            scanned: 0,
            is_skipping: false,
            until: u64::MAX,
            written: Instant::now(),
            is_left: false,
            is_done: false,
            seen: (0, 0, 0),
        })
    }

    /// Position behind the last line end of a file.
    pub(crate) fn end_of_lines(path: &Path) -> io::Result<u64> {
        let file = open(path)?;
        let mut end = file.metadata()?.len();
        let mut piece = vec![0; READ_BYTES];
        while end > 0 {
            let begin = end.saturating_sub(READ_BYTES as u64);
            let piece = &mut piece[..(end - begin) as usize];
            file.read_exact_at(piece, begin)?;
            if let Some(at) = memchr::memrchr(b'\n', piece) {
                return Ok(begin + at as u64 + 1);
            }
            end = begin;
        }
        Ok(0)
    }

    /// The next line, if a whole one is there. `has_next`: the web server writes to another file by now, or soon will.
    pub(crate) fn next_line(&mut self, now: Instant, has_next: bool) -> io::Result<Option<Found>> {
        if self.is_done {
            return Ok(None);
        }
        loop {
            if let Some(at) = memchr::memchr(b'\n', &self.buffer[self.scanned..]) {
                let text = self.begin..self.scanned + at;
                self.begin = text.end + 1;
                self.scanned = self.begin;
                return Ok(Some(self.found(text)));
            }
            self.scanned = self.buffer.len();
            if self.buffer.len() - self.begin > LINE_BYTES_MAX {
                self.is_skipping = true;
                self.begin = self.buffer.len();
            }
            self.buffer.drain(..self.begin);
            self.buffer_at += self.begin as u64;
            (self.begin, self.scanned) = (0, self.buffer.len());
            let had = self.buffer.len();
            let more = self.until.saturating_sub(self.buffer_at + had as u64).min(READ_BYTES as u64);
            self.buffer.resize(had + more as usize, 0);
            let read = self.file.read_at(&mut self.buffer[had..], self.buffer_at + had as u64);
            self.buffer.truncate(had + *read.as_ref().unwrap_or(&0));
            match read {
                Ok(0) if self.is_left && has_next && self.is_read_on() && now.duration_since(self.written) >= SILENCE => {
                    return Ok(self.finish());
                }
                Ok(0) => {
                    // While it is still the file that was read.
                    self.learn_head()?;
                    return Ok(None);
                }
                Ok(_) => self.written = now,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Its name belongs to another file now.
    pub(crate) fn leave(&mut self, now: Instant) {
        (self.is_left, self.written) = (true, now);
    }

    /// Nothing that is written to it from now on is read.
    pub(crate) fn end_here(&mut self) -> io::Result<()> {
        self.until = self.file.metadata()?.len();
        Ok(())
    }

    const fn is_read_on(&self) -> bool {
        self.until == u64::MAX
    }

    /// For who does not wait: finishes it if all of it was read, and neither its bytes nor its name changed for a while.
    pub(crate) fn finish_if_quiet(&mut self, now: SystemTime) -> Option<Found> {
        let metadata = self.file.metadata().ok()?;
        let since_epoch = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let changed = Duration::new(u64::try_from(metadata.ctime()).ok()?, u32::try_from(metadata.ctime_nsec()).ok()?);
        let is_read = metadata.len() <= self.buffer_at + self.buffer.len() as u64;
        if is_read && since_epoch.checked_sub(changed) >= Some(SILENCE) { self.finish() } else { None }
    }

    /// Nobody will write to it: what stands behind the last line end is a line, too.
    fn finish(&mut self) -> Option<Found> {
        if std::mem::replace(&mut self.is_done, true) {
            return None;
        }
        let text = self.begin..self.buffer.len();
        (self.begin, self.scanned) = (text.end, text.end);
        (!text.is_empty() || self.is_skipping).then(|| self.found(text))
    }

    fn found(&mut self, text: Range<usize>) -> Found {
        let is_too_long = std::mem::take(&mut self.is_skipping) || text.len() > LINE_BYTES_MAX;
        let begin = self.read;
        self.read = self.buffer_at + self.begin as u64;
        Found { text, is_too_long, begin, end: self.read }
    }

    /// The text of a line that was just found.
    pub(crate) fn text(&self, found: &Found) -> &[u8] {
        &self.buffer[found.text.clone()]
    }

    /// What was read of it is no longer there. Never so of a file that nobody shortens.
    pub(crate) fn is_other_than_it_was(&mut self) -> io::Result<bool> {
        let metadata = self.file.metadata()?;
        let seen = (metadata.len(), metadata.mtime(), metadata.mtime_nsec());
        if seen == self.seen {
            return Ok(false);
        }
        self.seen = seen;
        if metadata.len() < self.buffer_at + self.buffer.len() as u64 {
            return Ok(true);
        }
        self.learn_head()?;
        Ok(!self.head.is_of(&self.file)?)
    }

    /// Knows more of how it begins, once more was read.
    fn learn_head(&mut self) -> io::Result<()> {
        let known = self.read.min(HEAD_BYTES_MAX);
        // Only if what is known still holds: else it is another file by now.
        if known > self.head.bytes && self.head.is_of(&self.file)? {
            self.head = Head::of(&self.file, known)?;
        }
        Ok(())
    }

    /// Goes on in a copy of it.
    pub(crate) fn go_on_in(&mut self, copy: File, now: Instant) -> io::Result<()> {
        self.id = FileId::of(&copy.metadata()?);
        self.file = copy;
        self.buffer.clear();
        (self.buffer_at, self.begin, self.scanned, self.is_skipping) = (self.read, 0, 0, false);
        self.leave(now);
        Ok(())
    }

    /// What was not read of it is gone.
    pub(crate) fn give_up(&mut self) {
        self.buffer.clear();
        (self.begin, self.scanned, self.is_done, self.is_left) = (0, 0, true, true);
    }

    /// All lines that end before this are settled.
    pub(crate) fn settle(&mut self, end: u64) {
        self.settled = self.settled.max(end);
    }

    /// Nothing of it is to be read or waited for.
    pub(crate) const fn is_over(&self) -> bool {
        self.is_done && self.settled >= self.read
    }

    pub(crate) const fn is_done(&self) -> bool {
        self.is_done
    }

    pub(crate) const fn read_to(&self) -> u64 {
        self.read
    }

    pub(crate) const fn head(&self) -> Head {
        self.head
    }

    /// See [`made_us`]; 0 if it is not known.
    pub(crate) fn made_us(&self) -> u64 {
        self.file.metadata().map_or(0, |metadata| made_us(&metadata))
    }

    /// For tests: reads of it fail.
    #[cfg(test)]
    pub(crate) fn break_it(&mut self) {
        self.file = File::options().write(true).open("/dev/null").expect("opened");
        self.until = u64::MAX;
    }

    /// Bytes that were not found as lines yet.
    pub(crate) fn unread(&self) -> u64 {
        if self.is_done { 0 } else { self.file.metadata().map_or(0, |metadata| metadata.len().saturating_sub(self.read)) }
    }

    pub(crate) fn cursor(&mut self) -> Cursor {
        // Without it the file is known by less of its head.
        let _ = self.learn_head();
        Cursor { id: self.id, offset: self.settled, head: self.head }
    }
}
