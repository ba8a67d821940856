//! A connection that speaks the protocol byte by byte, so that a test can do what no client would.

use postanalytics_protocol::frames::{ANY_SHARD, ControlFrame, ErrorFrame, Hello, PackageVersion, StoredSequence, Welcome};
use postanalytics_protocol::{Assembler, BatchBuilder, FrameKind, HEADER_BYTES, RecordFields};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// See the module.
#[derive(Debug)]
pub struct RawConnection {
    /// The socket.
    pub stream: TcpStream,
    /// What the server said first.
    pub welcome: Welcome,
    /// The session in every frame.
    pub session: u64,
    /// The server closed the connection, or it broke.
    pub ended: bool,
    assembler: Assembler,
    received: Vec<ControlFrame>,
}

/// A Hello as a well-behaved client sends it.
pub fn hello(node: u8) -> Hello {
    Hello {
        protocol_min: 1,
        protocol_max: 1,
        schema_min: 1,
        schema_max: 1,
        package: PackageVersion::parse(env!("CARGO_PKG_VERSION")),
        node: [node; 16],
        wanted_shard: ANY_SHARD,
        replay: false,
        nonce: [0; 32],
        name: format!("node-{node}"),
    }
}

/// A whole Batch frame of `count` records, all from `source`.
pub fn batch(session: u64, sequence: u64, source: IpAddr, count: usize) -> Vec<u8> {
    let mut batch = BatchBuilder::default();
    for n in 0..count {
        let path = format!("/page/{sequence}/{n}");
        let fields = RecordFields {
            request_id: ((u128::from(session) << 64) | (u128::from(sequence) << 16) | n as u128).to_be_bytes(),
            client_ip: postanalytics_protocol::routing::address_bytes(source),
            event_us: 1_700_000_000_000_000,
            status: 200,
            path: path.as_bytes(),
            host: b"www.example.org",
            ..RecordFields::default()
        };
        batch.push(&fields, 1 << 20).unwrap();
    }
    let mut out = Vec::new();
    batch.encode_frame(session, sequence, 0, &mut out);
    out
}

/// Puts the sequence into a frame that was encoded before, and repairs the header's CRC.
pub fn restamp(frame: &mut [u8], sequence: u64) {
    frame[24..32].copy_from_slice(&sequence.to_le_bytes());
    seal_header(frame);
}

/// Repairs the CRC of a header that a test has changed.
pub fn seal_header(frame: &mut [u8]) {
    let crc = crc32fast::hash(&frame[..44]);
    frame[44..48].copy_from_slice(&crc.to_le_bytes());
}

/// Repairs both CRCs of a frame that a test has changed.
pub fn seal(frame: &mut [u8]) {
    let crc = crc32fast::hash(&frame[HEADER_BYTES..]);
    frame[40..44].copy_from_slice(&crc.to_le_bytes());
    seal_header(frame);
}

/// A source that any server with one shard takes.
pub const SOURCE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

impl RawConnection {
    /// Connects and says Hello; panics unless a Welcome comes.
    pub fn open(server: SocketAddr, node: u8, session: u64) -> Self {
        Self::try_open(server, &hello(node), session).unwrap_or_else(|error| panic!("no Welcome but {error:?}"))
    }

    /// Connects and says Hello; `Err` holds the server's Error frame, if it sent one.
    pub fn try_open(server: SocketAddr, hello: &Hello, session: u64) -> Result<Self, Option<ErrorFrame>> {
        let mut stream = TcpStream::connect_timeout(&server, Duration::from_secs(5)).map_err(|_| None)?;
        stream.set_nodelay(true).unwrap();
        let mut bytes = Vec::new();
        hello.encode(session, 0, &mut bytes);
        stream.write_all(&bytes).map_err(|_| None)?;
        let mut connection =
            Self { stream, welcome: nothing(), session, ended: false, assembler: Assembler::default(), received: Vec::new() };
        match connection.next(Duration::from_secs(10)) {
            Some(ControlFrame::Welcome(welcome)) => {
                connection.welcome = welcome;
                Ok(connection)
            }
            Some(ControlFrame::Error(error)) => Err(Some(error)),
            other => {
                assert!(other.is_none(), "neither Welcome nor Error but {other:?}");
                Err(None)
            }
        }
    }

    /// A connection that has said nothing yet.
    pub fn silent(stream: TcpStream, session: u64) -> Self {
        stream.set_nodelay(true).unwrap();
        Self { stream, welcome: nothing(), session, ended: false, assembler: Assembler::default(), received: Vec::new() }
    }

    /// The sequence that the next batch of this session must have, by what Welcome said.
    pub fn next_sequence(&self) -> u64 {
        let here = |entry: &&StoredSequence| entry.epoch == self.welcome.epoch && entry.shard == self.welcome.shard;
        self.welcome.stored.iter().find(here).map_or(0, |entry| entry.sequence) + 1
    }

    /// Sends bytes; a broken connection is no failure here.
    pub fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// Sends a batch of `count` records.
    pub fn send_batch(&mut self, sequence: u64, count: usize) {
        let bytes = batch(self.session, sequence, SOURCE, count);
        self.send(&bytes);
    }

    /// The next frame; `None` when the connection ended or nothing came within `limit`.
    pub fn next(&mut self, limit: Duration) -> Option<ControlFrame> {
        let until = Instant::now() + limit;
        let mut buffer = [0; 65_536];
        loop {
            if !self.received.is_empty() {
                return Some(self.received.remove(0));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            self.stream.set_read_timeout(Some(left)).unwrap();
            let count = match self.stream.read(&mut buffer) {
                Ok(0) => {
                    self.ended = true;
                    return None;
                }
                Ok(count) => count,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => {
                    continue;
                }
                Err(_) => {
                    self.ended = true;
                    return None;
                }
            };
            let mut input = &buffer[..count];
            let mut body = Vec::new();
            while let Some(header) = self.assembler.collect(&mut input, &mut body).unwrap() {
                assert_ne!(header.kind, FrameKind::Batch);
                self.received.push(ControlFrame::decode(&header, &body).unwrap());
            }
        }
    }

    /// The next frame that `wanted` takes; others are skipped. Panics if none comes within 10 s.
    pub fn expect<T>(&mut self, what: &str, mut wanted: impl FnMut(ControlFrame) -> Option<T>) -> T {
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            match self.next(until.saturating_duration_since(Instant::now())) {
                Some(frame) => {
                    if let Some(found) = wanted(frame) {
                        return found;
                    }
                }
                None => panic!("no {what} within 10 s, or the connection ended before"),
            }
        }
    }

    /// Waits for the Ack of `sequence`.
    pub fn expect_ack(&mut self, sequence: u64) {
        self.expect("ack", |frame| match frame {
            ControlFrame::Ack(ack) if ack.sequence >= sequence => Some(()),
            ControlFrame::Error(error) => panic!("an error instead of an ack: {error:?}"),
            _ => None,
        });
    }

    /// Waits for an Error frame and for the end of the connection after it.
    pub fn expect_error(&mut self) -> ErrorFrame {
        let error = self.expect("error", |frame| if let ControlFrame::Error(error) = frame { Some(error) } else { None });
        assert!(self.next(Duration::from_secs(10)).is_none() && self.ended, "nothing but the end comes after an error");
        error
    }
}

fn nothing() -> Welcome {
    Welcome {
        package: PackageVersion::default(),
        server_id: [0; 16],
        deployment_id: [0; 16],
        epoch: 0,
        shard_count: 1,
        shard: 0,
        routing_seed: 0,
        identity_key: [0; 32],
        server_us: 0,
        window_bytes: 0,
        max_body_bytes: 0,
        protocol: 0,
        schema: 0,
        stored: Vec::new(),
    }
}
