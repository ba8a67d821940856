//! The wire of postanalytics: frames, records, routing. PROTOCOL.md specifies it; this crate is its reference.
//!
//! Sans-IO: no sockets, no clock, no threads. Bytes come in, frames or named errors go out.
//!
//! - [`header`]: the 64-byte header of every frame
//! - [`frames`]: bodies of the control frames
//! - [`batch`]: building batches, and [`ValidBatch`], the only way to read them
//! - [`assembler`]: from a byte stream to frames
//! - [`routing`]: which shard a source belongs to
//! - [`schema`]: frozen record layouts
//!
//! `unsafe` is denied; what rkyv's derive writes is its own.

pub mod assembler;
pub mod batch;
pub mod error;
pub mod frames;
pub mod header;
pub mod routing;
pub mod schema;

pub use assembler::{Assembler, Step};
pub use batch::{BatchBuilder, EncodeError, Extension, Hit, RecordFields, RecordView, ValidBatch};
pub use error::{BatchError, ErrorCode, FrameError};
pub use header::{DEFAULT_MAX_BODY_BYTES, FrameHeader, FrameKind, HEADER_BYTES, PROTOCOL_VERSION};
pub use routing::{Source, shard_of};
