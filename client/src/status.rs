//! How the client stands, for people and status pages.

/// A snapshot of the connection. Get it from [`crate::Client::status`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientStatus {
    /// Whether at least one lane is open.
    pub connected: bool,
    /// The server's address, as configured.
    pub server: String,
    /// Version of the server's package, empty before the first connection.
    pub server_version: String,
    /// The server, zero before the first connection.
    pub server_id: [u8; 16],
    /// Shards of the server, 0 before the first connection.
    pub shards: u32,
    /// Lanes that are open now.
    pub lanes_open: u32,
    /// What went wrong last, empty if nothing ever did.
    pub last_error: String,
}
