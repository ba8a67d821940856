//! Files as lines: plain or gzip, told apart by their first two bytes, lines of any length within a bound.

use anyhow::{Context, Result};
use flate2::read::MultiGzDecoder;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

/// Longest line; a longer one is counted as unreadable.
pub(super) const LINE_BYTES_MAX: usize = 1 << 20;
const BUFFER_BYTES: usize = 256 << 10;

/// The lines of one file.
pub(crate) struct Lines {
    reader: Box<dyn BufRead>,
    /// Bytes of the reader's buffer that were handed out.
    taken: usize,
    /// A line that its buffer does not hold whole.
    line: Vec<u8>,
    name: String,
}

impl Lines {
    /// Opens a file.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let file = File::open(path).and_then(|file| Self::of(file, name.clone()));
        file.with_context(|| format!("cannot open {name}: check the name and that this user may read it"))
    }

    /// What `name` holds, from its first byte.
    pub(super) fn of(file: impl Read + 'static, name: String) -> std::io::Result<Self> {
        let mut reader = BufReader::with_capacity(BUFFER_BYTES, file);
        let is_gzip = reader.fill_buf()?.starts_with(&[0x1f, 0x8b]);
        let reader: Box<dyn BufRead> = if is_gzip {
            Box::new(BufReader::with_capacity(BUFFER_BYTES, MultiGzDecoder::new(reader)))
        } else {
            Box::new(reader)
        };
        Ok(Self { reader, taken: 0, line: Vec::new(), name })
    }

    /// The next line without its end; `None` at the end of the file. One that is too long comes as an empty text marked so.
    pub(crate) fn next(&mut self) -> Result<Option<(&[u8], bool)>> {
        let context = || format!("cannot read {}; is the file damaged?", self.name);
        self.reader.consume(std::mem::take(&mut self.taken));
        if let Some(end) = memchr::memchr(b'\n', self.reader.fill_buf().with_context(context)?) {
            self.taken = end + 1;
            return Ok(Some((without_end(&self.reader.fill_buf().with_context(context)?[..end]), false)));
        }
        self.line.clear();
        let read = (&mut self.reader).take(LINE_BYTES_MAX as u64).read_until(b'\n', &mut self.line).with_context(context)?;
        if read == 0 {
            return Ok(None);
        }
        if read == LINE_BYTES_MAX && !self.line.ends_with(b"\n") {
            self.reader.skip_until(b'\n').with_context(context)?;
            return Ok(Some((b"", true)));
        }
        Ok(Some((without_end(&self.line), false)))
    }
}

fn without_end(mut line: &[u8]) -> &[u8] {
    while let [start @ .., b'\n' | b'\r'] = line {
        line = start;
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compression, write::GzEncoder};
    use std::io::Write;

    #[test]
    fn plain_and_packed_files_give_the_same_lines_and_long_ones_are_marked() {
        let folder = tempfile::tempdir().expect("a folder");
        let text = format!("one\r\n\n{}\nlast", "x".repeat(2 * LINE_BYTES_MAX));
        let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
        packed.write_all(text.as_bytes()).expect("packed");
        for bytes in [text.clone().into_bytes(), packed.finish().expect("packed")] {
            let file = folder.path().join("log");
            std::fs::write(&file, bytes).expect("written");
            let mut lines = Lines::open(&file).expect("opened");
            let mut found = Vec::new();
            while let Some((line, is_too_long)) = lines.next().expect("read") {
                found.push((line.to_vec(), is_too_long));
            }
            assert_eq!(found, [(b"one".to_vec(), false), (vec![], false), (vec![], true), (b"last".to_vec(), false)]);
        }
    }
}
