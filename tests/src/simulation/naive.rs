//! A client of somebody else: it keeps to PROTOCOL.md and to nothing more.
//!
//! After a break it sends all that is not acknowledged again without heeding what Welcome says is stored, and now and then
//! even what was acknowledged. Both are allowed, and only so the server's dropping of duplicates is put to the test.

use super::books::Books;
use super::fate::{Fault, SharedFate};
use super::network::{Found, SharedNetwork, Way};
use super::server::Server;
use postanalytics_protocol::frames::{ANY_SHARD, ControlFrame, Hello, PackageVersion};
use postanalytics_protocol::{Assembler, BatchBuilder, ErrorCode};
use std::collections::VecDeque;

/// What a shard may forget is not sent again.
const FORGET_US: u64 = 890_000_000;

#[derive(Debug)]
struct Sent {
    sequence: u64,
    numbers: Vec<u64>,
    frame: Vec<u8>,
    first_us: u64,
}

#[derive(Debug, Default)]
struct Lane {
    connection: usize,
    welcomed: bool,
    ended: bool,
    assembler: Assembler,
    body: Vec<u8>,
    out: VecDeque<u8>,
}

/// See the module.
#[derive(Debug)]
pub struct Naive {
    fate: SharedFate,
    network: SharedNetwork,
    owner: usize,
    lane: Option<Lane>,
    retry_us: u64,
    session: u64,
    next_sequence: u64,
    acked_sequence: u64,
    in_flight: VecDeque<Sent>,
    /// The last one acknowledged.
    last: Option<Vec<u8>>,
    shard: Option<u32>,
    /// The server that it last spoke to.
    server: u32,
    /// It neither reads nor writes until then.
    pub stalled_until_us: u64,
    /// Records that it is still to send.
    pub records_left: u64,
    in_doubt: u64,
}

impl Naive {
    /// A client whose records belong to `owner` in the books.
    pub fn new(fate: &SharedFate, network: &SharedNetwork, owner: usize, records: u64) -> Self {
        Self {
            fate: fate.clone(),
            network: network.clone(),
            owner,
            lane: None,
            retry_us: 0,
            session: fate.number(),
            next_sequence: 1,
            acked_sequence: 0,
            in_flight: VecDeque::new(),
            last: None,
            shard: None,
            server: 0,
            stalled_until_us: 0,
            records_left: records,
            in_doubt: 0,
        }
    }

    /// Whether everything is acknowledged or given up.
    pub fn is_settled(&self) -> bool {
        self.records_left == 0 && self.in_flight.is_empty()
    }

    /// Asserts what must hold once all is settled.
    pub fn check_end(&self, books: &Books) {
        let sums = books.sums(self.owner, &[self.server]);
        assert!(sums.here <= sums.acked + self.in_doubt, "stored ≤ acked + in doubt: {sums:?} {}", self.in_doubt);
    }

    /// Which of so many servers it speaks to.
    pub const fn seat(&self, seats: usize) -> usize {
        self.owner % seats
    }

    /// When it goes on if nothing comes, µs.
    pub fn next_us(&self) -> u64 {
        if self.lane.is_none() && !self.is_settled() { self.retry_us.max(self.stalled_until_us) } else { u64::MAX }
    }

    /// How it stands, for a failure.
    pub fn describe(&self) -> String {
        format!(
            "{} left, {} in flight, lane {:?}",
            self.records_left,
            self.in_flight.len(),
            self.lane.as_ref().map(|lane| lane.welcomed)
        )
    }

    /// Reads, thinks, writes.
    pub fn turn(&mut self, server: Option<&mut Server>, books: &mut Books) {
        let now_us = self.fate.now_us();
        if self.stalled_until_us > now_us {
            return;
        }
        if self.lane.is_none() {
            return self.connect(server, now_us);
        }
        self.read(server.as_deref(), books);
        if self.lane.as_ref().is_some_and(|lane| lane.welcomed && !lane.ended) {
            if let Some(server) = server {
                self.send(server, books);
            }
            self.write();
        } else if self.lane.as_ref().is_some_and(|lane| !lane.ended) {
            self.write();
        }
        if let Some(lane) = self.lane.take_if(|lane| lane.ended) {
            self.network.get().close_client(lane.connection);
            self.retry_us = now_us + 1_000 + self.fate.below(500_000) as u64;
        }
    }

    fn connect(&mut self, server: Option<&mut Server>, now_us: u64) {
        let Some(server) = server.filter(|_| self.retry_us <= now_us && !self.is_settled()) else { return };
        if self.server != server.number || self.in_flight.front().is_some_and(|sent| sent.first_us + FORGET_US < now_us) {
            self.begin_anew(server.number);
        }
        let connection = self.network.get().connect();
        server.accept(connection);
        let hello = Hello {
            protocol_min: 1,
            protocol_max: 1,
            schema_min: 1,
            schema_max: 1,
            package: PackageVersion::default(),
            node: [self.owner as u8 + 1; 16],
            wanted_shard: self.shard.unwrap_or(ANY_SHARD),
            replay: false,
            nonce: [0; 32],
            name: "naive".to_owned(),
        };
        let mut bytes = Vec::new();
        hello.encode(self.session, self.fate.wall_us(), &mut bytes);
        self.lane = Some(Lane { connection, out: bytes.into(), ..Lane::default() });
    }

    /// Another server, or one that may have forgotten: what was sent is in doubt.
    fn begin_anew(&mut self, server: u32) {
        self.in_doubt += self.in_flight.drain(..).map(|sent| sent.numbers.len() as u64).sum::<u64>();
        (self.server, self.shard, self.last) = (server, None, None);
        (self.session, self.next_sequence, self.acked_sequence) = (self.fate.number(), 1, 0);
    }

    fn read(&mut self, server: Option<&Server>, books: &mut Books) {
        let Some(mut lane) = self.lane.take() else { return };
        loop {
            let found = self.network.get().look(lane.connection, Way::Down);
            match found {
                Found::Nothing => break,
                Found::End | Found::Reset => {
                    lane.ended = true;
                    break;
                }
                Found::Bytes(available) => {
                    let bytes = self.network.get().read(lane.connection, Way::Down, available).1;
                    let mut input = bytes.as_slice();
                    while let Some(header) = lane.assembler.collect(&mut input, &mut lane.body).expect("the server sends frames")
                    {
                        let frame = ControlFrame::decode(&header, &lane.body).expect("the server sends frames");
                        self.hear(&mut lane, frame, server, books);
                    }
                }
            }
        }
        self.lane = Some(lane);
    }

    fn hear(&mut self, lane: &mut Lane, frame: ControlFrame, server: Option<&Server>, books: &mut Books) {
        match frame {
            ControlFrame::Welcome(welcome) => {
                if server.is_none_or(|server| server.number != self.server) {
                    lane.ended = true;
                    return;
                }
                let stored = welcome.stored.first().map_or(0, |stored| stored.sequence);
                assert!(stored < self.next_sequence, "the server knows more than was sent");
                if stored < self.acked_sequence {
                    self.begin_anew(self.server);
                    lane.ended = true;
                    return;
                }
                (lane.welcomed, self.shard) = (true, Some(welcome.shard));
                for sent in &self.in_flight {
                    lane.out.extend(&sent.frame);
                }
            }
            ControlFrame::Ack(ack) => {
                assert!(ack.sequence < self.next_sequence, "an Ack of what was never sent");
                while let Some(sent) = self.in_flight.pop_front_if(|sent| sent.sequence <= ack.sequence) {
                    self.acked_sequence = sent.sequence;
                    self.last = Some(sent.frame);
                    sent.numbers.into_iter().for_each(|number| books.acked(self.owner, self.server, number));
                }
            }
            ControlFrame::Error(error) => {
                let expected = [
                    ErrorCode::Replaced,
                    ErrorCode::Overloaded,
                    ErrorCode::NoSuchShard,
                    ErrorCode::FrameTimeout,
                    ErrorCode::SlabRecycled,
                    ErrorCode::HandshakeTimeout,
                    ErrorCode::PeerTooSlow,
                ];
                assert!(error.known_code().is_some_and(|code| expected.contains(&code)), "{error:?}");
                lane.ended = true;
            }
            ControlFrame::Goodbye(_) => lane.ended = true,
            _ => {}
        }
    }

    fn send(&mut self, server: &Server, books: &mut Books) {
        let (Some(lane), Some(shard)) = (&mut self.lane, self.shard) else { return };
        if let Some(last) = self.last.as_ref().filter(|_| self.in_flight.is_empty() && self.fate.strikes(Fault::SentTwice)) {
            lane.out.extend(last);
        }
        if self.records_left == 0 || self.in_flight.len() > 4 || !lane.out.is_empty() {
            return;
        }
        let mut batch = BatchBuilder::default();
        let mut numbers = Vec::new();
        for _ in 0..self.records_left.min(1 + self.fate.below(12) as u64) {
            let content = books.next(self.owner);
            // A record of another shard is somebody else's: this client has one lane.
            self.records_left -= 1;
            if server.shard_of(content.source()) == shard && batch.push(&content.fields(), 1 << 20).is_ok() {
                numbers.push(books.last());
            }
        }
        if numbers.is_empty() {
            return;
        }
        let (mut frame, sequence) = (Vec::new(), self.next_sequence);
        batch.encode_frame(self.session, sequence, self.fate.wall_us(), &mut frame);
        lane.out.extend(&frame);
        self.next_sequence += 1;
        self.in_flight.push_back(Sent { sequence, numbers, frame, first_us: self.fate.now_us() });
    }

    fn write(&mut self) {
        let Some(lane) = &mut self.lane else { return };
        let bytes = lane.out.make_contiguous();
        if bytes.is_empty() {
            // It goes on reading: what it is owed must still come.
            if lane.welcomed && self.fate.tries_rarely(Fault::HalfClose, 16) && self.network.get().end(lane.connection, Way::Up) {
                self.fate.happened(Fault::HalfClose);
            }
            return;
        }
        let written = self.network.get().write(lane.connection, Way::Up, bytes);
        match written {
            Ok(count) => drop(lane.out.drain(..count)),
            Err(_) => lane.ended = true,
        }
    }
}
