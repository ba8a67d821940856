//! One module per released schema, never changed after its release.

pub mod v1;
