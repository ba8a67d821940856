//! How the client stands, for people and status pages.

/// A snapshot of the connections. Get it from [`crate::Client::status`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientStatus {
    /// Whether at least one lane of any server is open.
    pub connected: bool,
    /// Lanes that are open now, of all servers together.
    pub lanes_open: u32,
    /// What went wrong last with any of them, empty if nothing ever did.
    pub last_error: String,
    /// Each server, in the order in which they were given to the builder.
    pub servers: Vec<ServerStatus>,
}

impl ClientStatus {
    /// Every connection has ended, for good.
    pub(crate) fn disconnected(&mut self) {
        (self.connected, self.lanes_open) = (false, 0);
        for server in &mut self.servers {
            (server.connected, server.takes_records, server.lanes_open) = (false, false, 0);
        }
    }
}

/// How the client stands with one server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerStatus {
    /// The server's address, as configured.
    pub address: String,
    /// Whether at least one lane is open.
    pub connected: bool,
    /// Whether the records of its sources go to it. If not, they go to the others.
    pub takes_records: bool,
    /// Version of the server's package, empty before the first connection.
    pub version: String,
    /// The server's id, zero before the first connection.
    pub id: [u8; 16],
    /// Shards of the server, 0 before the first connection.
    pub shards: u32,
    /// Lanes that are open now.
    pub lanes_open: u32,
    /// What went wrong last, empty if nothing ever did.
    pub last_error: String,
}
