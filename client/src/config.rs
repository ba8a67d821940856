//! How to build a client, with the defaults that suit nearly everyone.

use crate::ack::AckHook;
use crate::denylist::ListHook;
use crate::{AckedRecord, Client, ListChange};
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;
use thiserror::Error;

/// Why there is no client.
#[derive(Debug, Error)]
pub enum BuildError {
    /// The address cannot be read.
    #[error("server address {address:?} is not HOST:PORT ({what}); write 127.0.0.1:3313, [::1]:3313 or name.example:3313")]
    BadAddress {
        /// The address given.
        address: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A server was given twice.
    #[error("the server {address:?} is given twice; name each server once")]
    ServerTwice {
        /// The address, as it was given the second time.
        address: String,
    },
    /// More servers than a client speaks to.
    #[error("{count} servers are given, a client speaks to at most {SERVERS_MAX}; spread the nodes over several deployments")]
    TooManyServers {
        /// How many were given.
        count: usize,
    },
    /// A setting is out of its range.
    #[error("{setting} is {value}, it must be {range}")]
    OutOfRange {
        /// Which setting.
        setting: &'static str,
        /// Its value.
        value: String,
        /// What it may be.
        range: &'static str,
    },
    /// The operating system refused a resource.
    #[error("cannot {what}: {error}; check the limits on processes and open files (ulimit -u, ulimit -n)")]
    System {
        /// What was tried.
        what: &'static str,
        /// The system's answer.
        error: std::io::Error,
    },
}

/// Most servers of a client.
pub const SERVERS_MAX: usize = 16;
/// A record notes with a bit for each of them where it was written to.
const _: () = assert!(SERVERS_MAX <= u16::BITS as usize);
/// The server of a client that was given none.
const SERVER_DEFAULT: &str = "127.0.0.1:3313";

/// Where a server is to be found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServerAddress {
    /// As it was given.
    pub(crate) text: String,
    pub(crate) host: String,
    pub(crate) port: u16,
}

/// The settings, checked.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// At least one.
    pub(crate) servers: Vec<ServerAddress>,
    pub(crate) node: [u8; 16],
    pub(crate) node_name: String,
    pub(crate) replay: bool,
    pub(crate) queue_bytes: usize,
    pub(crate) batch_bytes: usize,
    pub(crate) batch_records_max: usize,
    pub(crate) batch_records_aim: usize,
    pub(crate) linger_us_min: u64,
    pub(crate) linger_us_max: u64,
    pub(crate) connect_timeout_us: u64,
    /// After so many failed attempts in a row, so long between two of them, µs.
    pub(crate) reconnect_slow: Option<(u32, u64)>,
    pub(crate) record_time_limit_us: u64,
    pub(crate) congestion_control: Option<String>,
}

/// Builds a [`Client`]. Only the server's address has no useful default elsewhere than on the server's own host.
#[must_use = "nothing happens before build()"]
pub struct ClientBuilder {
    servers: Vec<String>,
    node: Option<[u8; 16]>,
    node_name: Option<String>,
    replay: bool,
    queue_bytes: usize,
    batch_bytes: usize,
    batch_records_max: usize,
    batch_records_aim: usize,
    linger: (Duration, Duration),
    connect_timeout: Duration,
    reconnect_slow: Option<(u32, Duration)>,
    record_time_limit: Duration,
    congestion_control: Option<String>,
    hook: AckHook,
    list_hook: ListHook,
}

impl Default for ClientBuilder {
    fn default() -> Self {
        Self {
            servers: Vec::new(),
            node: None,
            node_name: None,
            replay: false,
            queue_bytes: 100_000_000,
            batch_bytes: 64 * 1024,
            batch_records_max: 4096,
            batch_records_aim: 16,
            linger: (Duration::from_micros(200), Duration::from_millis(200)),
            connect_timeout: Duration::from_secs(1),
            reconnect_slow: None,
            record_time_limit: Duration::from_secs(900),
            congestion_control: None,
            hook: None,
            list_hook: None,
        }
    }
}

impl ClientBuilder {
    /// Adds a server, `host:port`; IPv6 addresses in brackets. Without any: `127.0.0.1:3313`. At most [`SERVERS_MAX`].
    ///
    /// Of several, each source's records go to one, chosen by the servers' ids: the order in which they are given does not
    /// matter, nor does it matter which node sees the source. At the start records wait until all have answered, or for
    /// [`Self::connect_timeout`] after the first has. A server without connection for 2 s, or silent for 15 s though asked, is
    /// away: its records go to the others, and come back when it was healthy for 30 s, or at once if no other is to be reached.
    ///
    /// Servers of one client share `--deployment-id` and `--identity-key-file`, and should each have a `--server-id`, or they
    /// take other sources after a restart. If they do not belong together, or are one and the same, the odd one gets nothing:
    /// the log and [`crate::ServerStatus::last_error`] say why and what to do. A name that has several addresses is one server
    /// with several ways to it: they are tried in turn. Behind each address stands one server, no load balancer.
    pub fn server(mut self, address: impl Into<String>) -> Self {
        self.servers.push(address.into());
        self
    }

    /// This node's id, the same after every restart. Default: random.
    pub fn node(mut self, node: [u8; 16]) -> Self {
        self.node = Some(node);
        self
    }

    /// This node's name, for people. Default: the host's name.
    pub fn node_name(mut self, name: impl Into<String>) -> Self {
        self.node_name = Some(name.into());
        self
    }

    /// The records are a replay: the server keeps their event times as they are. Default false.
    pub fn replay(mut self, replay: bool) -> Self {
        self.replay = replay;
        self
    }

    /// Memory that records may take until they are settled; a quarter of it is kept for records with hits. Default 100 MB. An
    /// allocator with an arena per thread, such as that of glibc, can hold as much again when a full queue is taken after a long
    /// outage: the site's threads fill one arena, the background thread the other.
    pub fn queue_bytes(mut self, bytes: usize) -> Self {
        self.queue_bytes = bytes;
        self
    }

    /// A batch is sent, at the latest, when the next record would make it longer than so many bytes; a single record may be
    /// longer. Default 64 KiB.
    pub fn batch_bytes(mut self, bytes: usize) -> Self {
        self.batch_bytes = bytes;
        self
    }

    /// A batch is sent, at the latest, when it has so many records; with 1, every record goes alone and does not wait for
    /// company. Default 4096.
    pub fn batch_records_max(mut self, records: usize) -> Self {
        self.batch_records_max = records;
        self
    }

    /// The linger adapts so that a batch has about so many records. Default 16.
    pub fn batch_records_aim(mut self, records: usize) -> Self {
        self.batch_records_aim = records;
        self
    }

    /// Range within which the time that an ordinary record waits for company adapts, 10 µs to 1 s. Default 200 µs to 200 ms:
    /// a batch costs the server as much as the storing of some fifty records, so a lane with few of them does well to wait;
    /// one with 80,000 records a second and more waits the least. A record with a hit, a login attempt or a 4xx never waits.
    pub fn linger(mut self, min: Duration, max: Duration) -> Self {
        self.linger = (min, max);
        self
    }

    /// How long a connection may take to come about. Default 1 s.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// When so many attempts in a row have failed, a lane tries again only once in `interval`, 100 ms to an hour, give or take a
    /// quarter of it. Default: attempts stay at most 5 s apart.
    pub fn reconnect_slowly(mut self, after_attempts: u32, interval: Duration) -> Self {
        self.reconnect_slow = Some((after_attempts, interval));
        self
    }

    /// How long a record is kept for a server that does not answer: until it is written, and once more until it is acknowledged.
    /// Default 900 s.
    pub fn record_time_limit(mut self, limit: Duration) -> Self {
        self.record_time_limit = limit;
        self
    }

    /// TCP congestion control of the connections, such as `bbr`; for benchmarks. Default: the system's.
    pub fn congestion_control(mut self, name: Option<String>) -> Self {
        self.congestion_control = name;
        self
    }

    /// Called on the background thread with the records of every acknowledgement, lane by lane.
    ///
    /// Be quick in there: nothing is sent or received meanwhile, and the queue fills. `try_send` is fine. Whatever waits for the
    /// background thread is not: it waits for itself, so `flush` and `server_stats` run into their timeouts. A client that is
    /// dropped or closed in there finishes when the callback has returned, and nobody waits for that. All signals are blocked.
    /// A panic is printed and ends the background thread: the client is closed, and what is left is counted lost or in doubt.
    pub fn on_acked(mut self, hook: impl FnMut(&[AckedRecord]) + Send + 'static) -> Self {
        self.hook = Some(Box::new(hook));
        self
    }

    /// Called on the background thread with every change of the denylist that a server makes, once [`crate::Denylist`] shows it.
    /// Entries that end by their time are not told, nor those that are only to last longer.
    ///
    /// A server's verdicts come on the lanes that are open, and a lane opens with the first record for its shard;
    /// [`Client::server_stats`] opens all of them. For the callback the same holds as for [`Self::on_acked`].
    pub fn on_listed(mut self, hook: impl FnMut(&[ListChange]) + Send + 'static) -> Self {
        self.list_hook = Some(Box::new(hook));
        self
    }

    /// Starts the background thread. It does not wait for a connection: records are queued until there is one.
    pub fn build(self) -> Result<Client, BuildError> {
        let servers = servers(self.servers)?;
        let node = match self.node {
            Some(node) => node,
            None => crate::random_bytes()?,
        };
        let host_name = || rustix::system::uname().nodename().to_string_lossy().into_owned();
        let config = Config {
            servers,
            node,
            node_name: self.node_name.unwrap_or_else(host_name),
            replay: self.replay,
            queue_bytes: within("queue_bytes", self.queue_bytes, 64 * 1024, 1 << 40, "64 KiB to 1 TiB")?,
            batch_bytes: within("batch_bytes", self.batch_bytes, 1024, 1 << 20, "1 KiB to 1 MiB")?,
            batch_records_max: within("batch_records_max", self.batch_records_max, 1, 65_536, "1 to 65536")?,
            batch_records_aim: within("batch_records_aim", self.batch_records_aim, 1, 65_536, "1 to 65536")?,
            linger_us_min: micros("linger min", self.linger.0, 10, 1_000_000, "10 µs to 1 s")?,
            linger_us_max: micros("linger max", self.linger.1, 10, 1_000_000, "10 µs to 1 s")?,
            reconnect_slow: match self.reconnect_slow {
                None => None,
                Some((attempts, interval)) => {
                    Some((attempts, micros("reconnect interval", interval, 100_000, 3_600_000_000, "100 ms to 1 h")?))
                }
            },
            connect_timeout_us: micros("connect_timeout", self.connect_timeout, 1000, 60_000_000, "1 ms to 60 s")?,
            record_time_limit_us: micros("record_time_limit", self.record_time_limit, 1000, 86_400_000_000, "1 ms to 24 h")?,
            congestion_control: self.congestion_control,
        };
        if config.linger_us_min > config.linger_us_max {
            let (setting, value) = ("linger min", format!("{:?}", self.linger.0));
            return Err(BuildError::OutOfRange { setting, value, range: "no longer than linger max" });
        }
        Client::start(config, self.hook, self.list_hook)
    }
}

/// The servers that were given, or the default one: each of them once.
fn servers(given: Vec<String>) -> Result<Vec<ServerAddress>, BuildError> {
    if given.len() > SERVERS_MAX {
        return Err(BuildError::TooManyServers { count: given.len() });
    }
    let given = if given.is_empty() { vec![SERVER_DEFAULT.to_owned()] } else { given };
    let mut servers: Vec<ServerAddress> = Vec::with_capacity(given.len());
    for text in given {
        let (host, port) = split_address(&text)?;
        // Names know no case, and an address may be written in several ways.
        let canonical = |host: &str| match host.parse::<IpAddr>() {
            Ok(address) => address.to_string(),
            Err(_) => host.to_ascii_lowercase(),
        };
        if servers.iter().any(|server| (canonical(&server.host), server.port) == (canonical(&host), port)) {
            return Err(BuildError::ServerTwice { address: text });
        }
        servers.push(ServerAddress { text, host, port });
    }
    Ok(servers)
}

fn within(setting: &'static str, value: usize, min: usize, max: usize, range: &'static str) -> Result<usize, BuildError> {
    if (min..=max).contains(&value) {
        Ok(value)
    } else {
        Err(BuildError::OutOfRange { setting, value: value.to_string(), range })
    }
}

fn micros(setting: &'static str, value: Duration, min: u64, max: u64, range: &'static str) -> Result<u64, BuildError> {
    let us = u64::try_from(value.as_micros()).unwrap_or(u64::MAX);
    if (min..=max).contains(&us) { Ok(us) } else { Err(BuildError::OutOfRange { setting, value: format!("{value:?}"), range }) }
}

pub(crate) fn split_address(address: &str) -> Result<(String, u16), BuildError> {
    let bad = |what| BuildError::BadAddress { address: address.to_owned(), what };
    let (host, port) = address.rsplit_once(':').ok_or_else(|| bad("no port"))?;
    let port = port.parse().ok().filter(|&port| port != 0).ok_or_else(|| bad("the port is no number from 1 to 65535"))?;
    let host = match host.strip_prefix('[') {
        Some(rest) => {
            let inside = rest.strip_suffix(']').ok_or_else(|| bad("a bracket is not closed"))?;
            // A zone may follow, as in fe80::1%eth0.
            let address = inside.split_once('%').map_or(inside, |(address, _)| address);
            address.parse::<Ipv6Addr>().map_err(|_| bad("the brackets hold no IPv6 address"))?;
            inside
        }
        None if host.contains(':') => return Err(bad("an IPv6 address needs brackets")),
        None => host,
    };
    if host.is_empty() { Err(bad("no host")) } else { Ok((host.to_owned(), port)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for (address, host, port) in [
            ("127.0.0.1:3313", "127.0.0.1", 3313),
            ("[::1]:1", "::1", 1),
            ("[fe80::1%eth0]:1", "fe80::1%eth0", 1),
            ("name.example:65535", "name.example", 65535),
        ] {
            assert_eq!(split_address(address).expect("good"), (host.to_owned(), port));
        }
        for address in
            ["", "127.0.0.1", "::1", "::1:3313", "[::1:3313", "[[]:1", "[name]:1", "host:0", "host:66000", ":3313", "host:"]
        {
            let error = split_address(address).expect_err("bad").to_string();
            assert!(error.contains(&format!("{address:?}")) && error.contains("127.0.0.1:3313"), "{error}");
        }
    }

    #[test]
    fn each_server_is_given_once() {
        let of = |given: &[&str]| servers(given.iter().map(|text| (*text).to_owned()).collect());
        assert_eq!(of(&[]).expect("the default")[0].text, "127.0.0.1:3313");
        assert_eq!(of(&["a.example:1", "a.example:2", "[::1]:1"]).expect("three").len(), 3);
        for twice in [["a.example:1", "A.example:1"], ["127.0.0.1:1", "127.0.0.1:1"], ["[::1]:1", "[0:0::1]:1"]] {
            let error = of(&twice).expect_err("twice").to_string();
            assert!(error.contains(&format!("{:?}", twice[1])) && error.contains("once"), "{error}");
        }
        let many: Vec<String> = (1..=17).map(|port| format!("10.0.0.1:{port}")).collect();
        assert_eq!(servers(many[..16].to_vec()).expect("as many as may be").len(), SERVERS_MAX);
        let error = servers(many).expect_err("too many").to_string();
        assert!(error.contains("17 servers") && error.contains("at most 16"), "{error}");
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let error = ClientBuilder::default().queue_bytes(10).build().expect_err("too small").to_string();
        assert!(error.contains("queue_bytes is 10"), "{error}");
        let linger = |min, max| ClientBuilder::default().linger(Duration::from_millis(min), Duration::from_millis(max));
        let error = linger(10, 1).build().expect_err("the wrong way round").to_string();
        assert!(error.contains("linger min is 10ms, it must be no longer than linger max"), "{error}");
    }
}
