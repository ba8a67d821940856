//! Which files of a folder are a log's: by their names those that rotation made of it, and by what they are those that a cursor means.

use super::file::{FileId, Head, made_us, open};
use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::path::{Path, PathBuf};

/// Most entries of a folder that are looked at.
const ENTRIES_MAX: usize = 10_000;

/// The name of a log.
#[derive(Debug)]
pub(super) struct Name {
    pub(super) path: PathBuf,
    /// The names of other logs that are followed in its folder, and begin with its name.
    others: Vec<OsString>,
}

impl Name {
    /// `followed`: all logs that are followed.
    pub(super) fn new(path: PathBuf, followed: &[PathBuf]) -> Self {
        Self { others: others(&path, followed), path }
    }

    /// The file that a cursor means: the same one under any name of the folder, which is told, or a copy of it.
    pub(super) fn find(&self, id: FileId, head: Head, offset: u64) -> Option<(File, Option<PathBuf>)> {
        let is_it = |file: &File, metadata: &Metadata| {
            metadata.len() >= offset && head.is_of(file).unwrap_or(false) && FileId::of(metadata) == id
        };
        let named = std::fs::metadata(&self.path).ok().map(|metadata| (self.path.clone(), metadata));
        for (path, metadata) in named.into_iter().chain(neighbours(&self.path)) {
            if FileId::of(&metadata) == id
                && let Ok(file) = open(&path)
                && file.metadata().is_ok_and(|metadata| is_it(&file, &metadata))
            {
                return Some((file, Some(path)));
            }
        }
        if head.is_empty() {
            return None;
        }
        self.find_copy(id, head, offset).map(|file| (file, None))
    }

    /// A copy of a file that was truncated: another file of the folder that begins as it did and has what was read.
    pub(super) fn find_copy(&self, id: FileId, head: Head, offset: u64) -> Option<File> {
        neighbours(&self.path).find_map(|(name, metadata)| {
            let may_be = FileId::of(&metadata) != id && metadata.len() >= offset && self.is_rotated(&name);
            let file = if may_be { open(&name).ok()? } else { return None };
            head.is_of(&file).unwrap_or(false).then_some(file)
        })
    }

    /// The rotated files of the log that are not compressed, in the order in which they were made.
    pub(super) fn rotated(&self) -> Vec<(PathBuf, Metadata)> {
        let mut all: Vec<_> = neighbours(&self.path).filter(|(name, _)| self.is_rotated(name)).collect();
        all.sort_by_key(|(_, metadata)| made_us(metadata));
        all
    }

    /// Whether a file of the folder has the name of a rotated file of this log, and of no other.
    pub(super) fn is_rotated(&self, path: &Path) -> bool {
        let (Some(log), Some(name)) = (self.path.file_name(), path.file_name()) else { return false };
        let is_of_other = self.others.iter().any(|other| other == name || is_rotated_name(other, name));
        is_rotated_name(log, name) && !is_of_other
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

/// The names of the followed logs in the folder of one that begin with its name: they and their rotated files are none of its.
fn others(path: &Path, followed: &[PathBuf]) -> Vec<OsString> {
    let id = |folder: &Path| std::fs::metadata(folder).ok().map(|metadata| FileId::of(&metadata));
    let is_folder =
        |folder: &Path| path.parent().is_some_and(|own| own == folder || id(own).is_some_and(|own| id(folder) == Some(own)));
    let begins_with = |name: &OsStr| {
        let own = path.file_name().unwrap_or_default();
        name != own && name.as_encoded_bytes().starts_with(own.as_encoded_bytes())
    };
    let beside = followed.iter().filter(|other| other.parent().is_some_and(is_folder));
    beside.filter_map(|other| other.file_name()).filter(|name| begins_with(name)).map(OsStr::to_os_string).collect()
}

/// `access.log.1`, `access.log-20260131`, `access.log_2026-01-31T00:00:00Z`, `access.log.old`: what a rotation makes of a name.
/// Neither another log, such as `access.log-api`, nor a compressed file.
fn is_rotated_name(log: &OsStr, name: &OsStr) -> bool {
    let Some(rest) = name.as_encoded_bytes().strip_prefix(log.as_encoded_bytes()) else { return false };
    let is_of_date = |byte: &u8| byte.is_ascii_digit() || b"-._:TZ".contains(byte);
    let is_numbered = rest.iter().all(is_of_date) && rest.iter().any(u8::is_ascii_digit);
    rest == b".old" || (matches!(rest.first(), Some(b'.' | b'-' | b'_')) && is_numbered)
}
