//! Error codes, the text of the last error, and the border that no panic crosses.

use postanalytics_client::{BuildError, FlushError, SendError};
use std::cell::Cell;
use std::ffi::{CStr, c_char, c_int};
use std::fmt::{Display, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

/// All went well.
pub const PA_OK: c_int = 0;
/// An argument cannot be used: pa_last_error says which.
pub const PA_EINVAL: c_int = -1;
/// The queue is full. The record was refused and counted.
pub const PA_EFULL: c_int = -2;
/// No server would store a record so large. It was refused and counted.
pub const PA_ETOOLARGE: c_int = -3;
/// The client is closed, or its thread has ended.
pub const PA_ECLOSED: c_int = -4;
/// The client was made by another process, of which this one is a fork: make one after fork.
pub const PA_EFORK: c_int = -5;
/// Time was over.
pub const PA_ETIMEOUT: c_int = -6;
/// The system refused a resource.
pub const PA_ESYSTEM: c_int = -7;
/// A defect of the library, stopped at its border; the call had no effect, or part of it.
pub const PA_EPANIC: c_int = -8;

/// Bytes of the text of an error, the zero at its end included.
const TEXT_BYTES: usize = 512;

thread_local! {
    // Nothing to destroy: it can be read until the thread is gone.
    static LAST_ERROR: Cell<[u8; TEXT_BYTES]> = const { Cell::new([0; TEXT_BYTES]) };
}

static PANICS: AtomicU64 = AtomicU64::new(0);

/// Why a call failed.
pub(crate) struct Failure {
    code: c_int,
}

impl Failure {
    /// Notes the text for `pa_last_error`.
    pub(crate) fn new(code: c_int, text: impl Display) -> Self {
        let mut written = Text { bytes: [0; TEXT_BYTES], length: 0 };
        // It cuts and never fails; a Display that fails has been written so far.
        let _ = write!(written, "{text}");
        LAST_ERROR.set(written.bytes);
        Self { code }
    }

    pub(crate) fn invalid(text: impl Display) -> Self {
        Self::new(PA_EINVAL, text)
    }

    #[cfg(test)]
    pub(crate) const fn code(&self) -> c_int {
        self.code
    }
}

impl From<SendError> for Failure {
    fn from(error: SendError) -> Self {
        let code = match error {
            SendError::QueueFull { .. } => PA_EFULL,
            SendError::TooLarge { .. } => PA_ETOOLARGE,
            SendError::TooManyParts(_) => PA_EINVAL,
            SendError::Closed => PA_ECLOSED,
            SendError::Forked { .. } => PA_EFORK,
        };
        Self::new(code, error)
    }
}

impl From<FlushError> for Failure {
    fn from(error: FlushError) -> Self {
        let code = match error {
            FlushError::Timeout { .. } => PA_ETIMEOUT,
            FlushError::Forked { .. } => PA_EFORK,
        };
        Self::new(code, error)
    }
}

impl From<BuildError> for Failure {
    fn from(error: BuildError) -> Self {
        let code = if matches!(error, BuildError::System { .. }) { PA_ESYSTEM } else { PA_EINVAL };
        Self::new(code, error)
    }
}

/// What a call of the header does: whatever happens in there, it returns.
pub(crate) fn guard(call: impl FnOnce() -> Result<c_int, Failure>) -> c_int {
    // A panic leaves at most a counter of the client behind its time: it keeps its state under locks that ignore poison.
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(value)) => value,
        Ok(Err(failure)) => failure.code,
        Err(_) => {
            PANICS.fetch_add(1, Ordering::Relaxed);
            Failure::new(PA_EPANIC, "a defect of libpostanalytics_client was stopped at its border; standard error has more").code
        }
    }
}

pub(crate) fn panics_caught() -> u64 {
    PANICS.load(Ordering::Relaxed)
}

pub(crate) fn last_error() -> *const c_char {
    LAST_ERROR.with(|text| text.as_ptr().cast())
}

pub(crate) const fn meaning(code: c_int) -> &'static CStr {
    match code {
        0.. => c"success",
        PA_EINVAL => c"an argument cannot be used",
        PA_EFULL => c"the queue is full: is postanalytics reachable?",
        PA_ETOOLARGE => c"the record is too large: cap raw_body and raw_headers",
        PA_ECLOSED => c"the client is closed",
        PA_EFORK => c"the client belongs to another process: make one after fork",
        PA_ETIMEOUT => c"time was over",
        PA_ESYSTEM => c"the system refused a resource",
        PA_EPANIC => c"a defect of libpostanalytics_client was stopped at its border",
        _ => c"no error code of libpostanalytics_client",
    }
}

/// A text of bounded length, with a zero at its end.
struct Text {
    bytes: [u8; TEXT_BYTES],
    length: usize,
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let mut room = (TEXT_BYTES - 1 - self.length).min(text.len());
        while !text.is_char_boundary(room) {
            room -= 1;
        }
        self.bytes[self.length..self.length + room].copy_from_slice(&text.as_bytes()[..room]);
        self.length += room;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_a_code_and_a_count() {
        let before = panics_caught();
        assert_eq!(guard(|| panic!("on purpose")), PA_EPANIC);
        assert_eq!(panics_caught(), before + 1);
        assert_eq!(guard(|| Ok(7)), 7);
    }

    #[test]
    fn long_texts_are_cut_between_letters() {
        let code = Failure::invalid("ü".repeat(TEXT_BYTES)).code();
        let bytes = LAST_ERROR.get();
        assert_eq!((code, bytes[TEXT_BYTES - 1]), (PA_EINVAL, 0));
        let text = CStr::from_bytes_until_nul(&bytes).expect("a zero").to_str().expect("whole letters");
        assert_eq!(text.len(), TEXT_BYTES - 2);
    }
}
