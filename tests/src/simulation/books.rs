//! What every record must look like, who sent it, which server stored it, and who was told so.

use postanalytics_client::Request;
use postanalytics_protocol::{Hit, RecordFields, RecordView, Source};
use std::net::{IpAddr, Ipv4Addr};

/// Addresses that records come from.
const ADDRESSES: u64 = 64;

/// What a record holds; its number decides all of it.
#[derive(Debug)]
pub struct Content {
    number: u64,
    path: Vec<u8>,
    raw_body: Vec<u8>,
    hit: bool,
}

impl Content {
    /// The record with this number. `long`: some have a body that fills slabs quickly.
    pub fn new(number: u64, long: bool) -> Self {
        let mut random = fastrand::Rng::with_seed(number ^ 0x5eed);
        let mut path = format!("/record/{number}/").into_bytes();
        path.resize(path.len() + random.usize(0..300), b'a' + (number % 26) as u8);
        let body_bytes = if long && random.u32(0..4) == 0 { random.usize(1..200_000) } else { 0 };
        Self { number, path, raw_body: vec![number as u8; body_bytes], hit: random.u32(0..8) == 0 }
    }

    /// Where it comes from.
    pub fn address(&self) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from(0xc000_0200 + (self.number % ADDRESSES) as u32))
    }

    /// Its source, which decides the shard.
    pub fn source(&self) -> Source {
        Source::of(self.address())
    }

    fn request_id(&self) -> [u8; 16] {
        (u128::from(self.number) | 1 << 127).to_le_bytes()
    }

    const HITS: &'static [Hit<'static>] = &[Hit { attack_type: 4, point: b"uri", payload: b"../", rule_id: 1, severity: 5 }];

    fn hits(&self) -> &'static [Hit<'static>] {
        if self.hit { Self::HITS } else { &[] }
    }

    /// As a client takes it.
    pub fn request(&self) -> Request<'_> {
        Request {
            request_id: self.request_id(),
            client_ip: self.address(),
            status: 200,
            path: &self.path,
            raw_body: &self.raw_body,
            user: b"anna",
            hits: self.hits(),
            token: self.number,
            ..Request::default()
        }
    }

    /// As a batch takes it.
    pub fn fields(&self) -> RecordFields<'_> {
        let IpAddr::V4(address) = self.address() else { unreachable!("all of them are") };
        RecordFields {
            request_id: self.request_id(),
            client_ip: address.to_ipv6_mapped().octets(),
            path: &self.path,
            raw_body: &self.raw_body,
            hits: self.hits().to_vec(),
            ..RecordFields::default()
        }
    }
}

/// The number of a stored record.
pub fn number_of(record: &RecordView<'_>) -> u64 {
    u128::from_le_bytes(record.request_id()) as u64
}

#[derive(Debug, Default, Clone, Copy)]
struct Entry {
    owner: usize,
    /// A bit for every server that stored it.
    stored: u64,
    acked: bool,
}

/// What the records of one owner come to.
#[derive(Debug, Default, Clone, Copy)]
pub struct Sums {
    /// Acknowledged, each by a server that stored it: [`Books::acked`].
    pub acked: u64,
    /// Stored by one that is there.
    pub here: u64,
    /// The same, each as often as it is stored.
    pub copies_here: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Books {
    entries: Vec<Entry>,
    /// Whether records have long bodies in this world.
    pub long: bool,
    /// Whether so much time went by that a server may have forgotten a session.
    pub forgets: bool,
}

impl Books {
    /// Empty ones.
    pub fn new(long: bool) -> Self {
        Self { long, ..Self::default() }
    }

    /// Makes up the next record.
    pub fn next(&mut self, owner: usize) -> Content {
        self.entries.push(Entry { owner, ..Entry::default() });
        Content::new(self.entries.len() as u64 - 1, self.long)
    }

    /// The number of the record made up last.
    pub fn last(&self) -> u64 {
        self.entries.len() as u64 - 1
    }

    /// A server stored it: whole, and for the first time.
    pub fn stored(&mut self, server: u32, record: &RecordView<'_>) {
        let number = number_of(record);
        let Some(entry) = self.entries.get_mut(number as usize) else { panic!("record {number} was never sent") };
        assert!(entry.stored & 1 << server == 0, "record {number} is stored twice");
        entry.stored |= 1 << server;
        let content = Content::new(number, self.long);
        let same = record.path() == content.path && record.raw_body() == content.raw_body;
        assert!(same && record.source() == content.source(), "record {number} is stored as something else");
        assert_eq!(record.hit_count(), content.hits().len(), "record {number}");
    }

    /// Whether this server stored it.
    pub fn has_stored(&self, server: u32, number: u64) -> bool {
        self.entries.get(number as usize).is_some_and(|entry| entry.stored & 1 << server != 0)
    }

    /// Its owner was told by this server that it is stored. What another server stored is no excuse.
    pub fn acked(&mut self, owner: usize, server: u32, number: u64) {
        let entry = &mut self.entries[number as usize];
        assert_eq!(entry.owner, owner, "record {number} is acknowledged to somebody else");
        assert!(!entry.acked, "record {number} is acknowledged twice");
        assert!(entry.stored & 1 << server != 0, "record {number} is acknowledged and not stored by server {server}");
        entry.acked = true;
    }

    /// What one owner's records come to; `servers` are those that are there.
    pub fn sums(&self, owner: usize, servers: &[u32]) -> Sums {
        let there = servers.iter().fold(0, |bits, server| bits | 1 << server);
        let mut sums = Sums::default();
        for entry in self.entries.iter().filter(|entry| entry.owner == owner) {
            sums.acked += u64::from(entry.acked);
            sums.here += u64::from(entry.stored & there != 0);
            sums.copies_here += u64::from((entry.stored & there).count_ones());
        }
        sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Books with one record of one owner, which server 0 stored.
    fn books() -> Books {
        let mut books = Books::new(false);
        let content = books.next(7);
        let mut builder = postanalytics_protocol::BatchBuilder::default();
        builder.push(&content.fields(), 1 << 20).expect("it fits");
        let mut frame = Vec::new();
        builder.encode_frame(1, 1, 0, &mut frame);
        let body = &frame[postanalytics_protocol::HEADER_BYTES..];
        let batch = postanalytics_protocol::ValidBatch::parse(1, 1, body).expect("a batch");
        batch.records().for_each(|record| books.stored(0, &record));
        books
    }

    #[test]
    fn who_stored_it_may_say_so() {
        let mut books = books();
        books.acked(7, 0, 0);
        assert_eq!(books.sums(7, &[0]).acked, 1);
    }

    #[test]
    #[should_panic(expected = "not stored by server 1")]
    fn what_another_server_stored_is_not_acknowledged() {
        books().acked(7, 1, 0);
    }
}
