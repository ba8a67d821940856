//! The lines that are not settled yet, in the order in which they were read: the cursor of a file goes no further than the first
//! of them.
//!
//! Bound: so many lines and so many bytes. When it is full no line is read: the file is the buffer. The client's queue is larger
//! than that, so that it never refuses a record.

use std::collections::VecDeque;

/// Most lines.
const LINES_MAX: usize = 65_536;
/// Most bytes of records.
const BYTES_MAX: usize = 32 << 20;
/// Memory for the client's queue, of which ordinary records may take three quarters, less what it sets apart.
pub(super) const QUEUE_BYTES: usize = 100_000_000;

#[derive(Debug)]
struct Outstanding {
    log: usize,
    serial: u64,
    end: u64,
    bytes: usize,
    is_settled: bool,
}

/// See the head of this file.
#[derive(Debug, Default)]
pub(super) struct Window {
    /// Number of the first line.
    first: u64,
    lines: VecDeque<Outstanding>,
    bytes: usize,
}

impl Window {
    pub(super) fn is_full(&self) -> bool {
        self.lines.len() >= LINES_MAX || self.bytes >= BYTES_MAX
    }

    pub(super) fn len(&self) -> usize {
        self.lines.len()
    }

    /// The number of the next line.
    pub(super) fn next(&self) -> u64 {
        self.first + self.lines.len() as u64
    }

    /// Adds a line that ends at `end` of a file, and whose record takes so many bytes; one without a record is settled.
    pub(super) fn push(&mut self, log: usize, serial: u64, end: u64, record_bytes: Option<usize>) {
        let bytes = record_bytes.unwrap_or(0);
        self.bytes += bytes;
        self.lines.push_back(Outstanding { log, serial, end, bytes, is_settled: record_bytes.is_none() });
    }

    /// The line with this number is acknowledged.
    pub(super) fn settle(&mut self, number: u64) {
        let at = number.checked_sub(self.first).and_then(|at| usize::try_from(at).ok());
        if let Some(line) = at.and_then(|at| self.lines.get_mut(at)) {
            line.is_settled = true;
        }
    }

    /// All are: acknowledged, or lost and counted by the client.
    pub(super) fn settle_all(&mut self) {
        self.lines.iter_mut().for_each(|line| line.is_settled = true);
    }

    /// Takes the settled lines from the front: `(log, serial, end)`.
    pub(super) fn drain(&mut self, mut take: impl FnMut(usize, u64, u64)) {
        while let Some(line) = self.lines.pop_front_if(|line| line.is_settled) {
            self.first += 1;
            self.bytes -= line.bytes;
            take(line.log, line.serial, line.end);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_never_passes_a_line_that_is_not_settled() {
        let mut window = Window::default();
        for n in 0..4 {
            assert_eq!(window.next(), n);
            window.push(0, 1, 10 * (n + 1), (n != 1).then_some(100));
        }
        let mut ends = Vec::new();
        window.settle(2);
        window.drain(|_, _, end| ends.push(end));
        assert!(ends.is_empty());
        window.settle(0);
        window.settle(0);
        window.settle(99);
        window.drain(|_, _, end| ends.push(end));
        assert_eq!((ends.as_slice(), window.len(), window.bytes), (&[10, 20, 30][..], 1, 100));
        window.settle_all();
        window.drain(|_, _, end| ends.push(end));
        assert_eq!((ends.last(), window.next(), window.bytes), (Some(&40), 4, 0));
    }

    #[test]
    fn it_is_full_by_lines_or_bytes() {
        let mut window = Window::default();
        window.push(0, 1, 1, Some(BYTES_MAX - 1));
        assert!(!window.is_full());
        window.push(0, 1, 2, Some(1));
        assert!(window.is_full());
        let mut window = Window::default();
        (0..LINES_MAX as u64).for_each(|n| window.push(0, 1, n, None));
        assert!(window.is_full());
    }
}
