//! Acknowledged records, handed to the callback that `ClientBuilder::on_acked` named.

use crate::bundle::Bundle;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A record that the server has stored and analysed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AckedRecord {
    /// The token of its request.
    pub token: u64,
    /// When `try_send` took it, by [`crate::Client::clock_us`].
    pub accepted_us: u64,
    /// When the acknowledgement was read, by the same clock.
    pub acked_us: u64,
}

/// What is called with the records of an acknowledgement.
pub(crate) type AckHook = Option<Box<dyn FnMut(&[AckedRecord]) + Send>>;

/// Collects the records of one acknowledgement, if anybody wants them.
#[derive(Default)]
pub(crate) struct Acks {
    hook: AckHook,
    records: Vec<AckedRecord>,
    pub(crate) panicked: bool,
}

impl Acks {
    pub(crate) const fn new(hook: AckHook) -> Self {
        Self { hook, records: Vec::new(), panicked: false }
    }

    pub(crate) fn collect(&mut self, bundle: &Bundle, acked_us: u64) {
        if self.hook.is_some() {
            let of = |meta: &crate::bundle::Meta| AckedRecord { token: meta.token, accepted_us: meta.accepted_us, acked_us };
            self.records.extend(bundle.metas().iter().map(of));
        }
    }

    /// Calls the hook. If it panics it is never called again, and the thread ends when it has published what it knows: a panic
    /// that came through here would take the counters of this turn along.
    pub(crate) fn deliver(&mut self) {
        if let Some(hook) = self.hook.as_mut().filter(|_| !self.records.is_empty()) {
            // Nothing that the hook may have left half done is used again.
            let called = catch_unwind(AssertUnwindSafe(|| hook(&self.records)));
            self.records.clear();
            if called.is_err() {
                (self.hook, self.panicked) = (None, true);
            }
        }
    }
}
