//! What the client's `request.rs` takes from its queue.

use postanalytics_protocol::EncodeError;

#[derive(Debug)]
#[allow(dead_code)]
pub(crate) enum SendError {
    TooLarge { bytes: usize, limit: usize },
    TooManyParts(EncodeError),
}
