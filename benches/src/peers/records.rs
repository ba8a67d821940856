//! What is sent: records of about 512 bytes on our wire, each of a source of its own, and the checksum of what is stored.
//!
//! The numbers come from the load generator's ordinary traffic; the texts are cut and padded to host, path of 80 bytes, user
//! agent of 110 bytes, query, referer, point and payload sample. Point and payload travel as extensions in our records, not
//! as a hit: a hit is also copied to the attack log and sent without waiting for company, which no peer does.
//!
//! Every system gets the same content in 14 fields (its numbers that nobody asks for alone packed into one), so the hash of a
//! row is the same wherever it is read back. A checksum is the sum of the hashes: the order of rows does not matter.

use postanalytics_client::Request;
use postanalytics_loadgen::traffic::{Mix, Pool, Traffic, record_fields, source_address};
use postanalytics_protocol::routing::address_bytes;
use postanalytics_protocol::{Extension, RecordFields, RecordView};
use siphasher::sip::SipHasher13;
use std::hash::Hasher;
use std::sync::Arc;

/// Distinct sources, and records: each source has one.
pub const SOURCES: u32 = 131_072;
/// Sources of the corpus that browses.
pub const BROWSING_SOURCES: u32 = 100_000;
/// Its records, user agents and paths: a source has one user agent and two or three paths.
const BROWSING_RECORDS: u32 = 262_144;
const BROWSING_AGENTS: u32 = 10_000;
const BROWSING_PATHS: u32 = 100_000;
/// Bytes of the texts together: with 176 fixed bytes and the table of extensions a record is 512 bytes on our wire.
const TEXT_BYTES: usize = 312;
const PATH_BYTES: usize = 80;
const USER_AGENT_BYTES: usize = 110;
const QUERY_BYTES: usize = 24;
const PAYLOAD_BYTES: usize = 48;
const POINT: &[u8] = b"get_q_value";
/// Tags of the extensions that carry point and payload.
const TAG_POINT: u16 = 900;
const TAG_PAYLOAD: u16 = 901;
/// Bytes of the packed numbers.
pub const REST_BYTES: usize = 56;
/// When all records were made, Unix µs: the same in every run, so that checksums can be compared between runs.
const EVENT_US: u64 = 1_760_000_000_000_000;

/// Names of the 14 fields, as the peers that name them have them.
pub const FIELD_NAMES: [&str; 14] =
    ["id", "ip", "time", "status", "method", "took", "host", "path", "query", "agent", "referer", "point", "payload", "rest"];

/// The content of one record in the form that all systems share.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "as in RecordFields")]
pub struct Row<'a> {
    pub request_id: &'a [u8],
    pub client_ip: &'a [u8],
    pub event_us: u64,
    pub status: u64,
    pub method: u64,
    pub response_us: u64,
    /// Host, path, query, user agent, referer, point, payload.
    pub texts: [&'a [u8]; 7],
    /// The other numbers, packed.
    pub rest: &'a [u8],
}

impl Row<'_> {
    /// The hash of this content.
    pub fn hash(&self) -> u64 {
        let mut hasher = SipHasher13::new_with_keys(0x7065_6572_735f_3031, 0x726f_7773);
        let mut take = |bytes: &[u8]| {
            hasher.write(&(bytes.len() as u32).to_le_bytes());
            hasher.write(bytes);
        };
        take(self.request_id);
        take(self.client_ip);
        for number in [self.event_us, self.status, self.method, self.response_us] {
            take(&number.to_le_bytes());
        }
        self.texts.iter().for_each(|text| take(text));
        take(self.rest);
        hasher.finish()
    }
}

/// One record of the corpus, owned.
#[derive(Clone, Debug)]
pub struct Record {
    fields: Request<'static>,
    host: Vec<u8>,
    path: Vec<u8>,
    query: Vec<u8>,
    user_agent: Vec<u8>,
    referer: Vec<u8>,
    payload: Vec<u8>,
    request_id: [u8; 16],
    client_ip: [u8; 16],
    rest: [u8; REST_BYTES],
}

impl Record {
    /// A record of a request, with this path and user agent.
    fn new(request: &Request<'_>, number: u32, path: Vec<u8>, user_agent: Vec<u8>) -> Self {
        let (mut query, mut payload) = (request.query.to_vec(), b"1' or sleep(5)-- ".to_vec());
        fit(&mut query, QUERY_BYTES, number);
        fit(&mut payload, PAYLOAD_BYTES, number);
        let mut referer = request.referer.to_vec();
        let taken = request.host.len() + PATH_BYTES + USER_AGENT_BYTES + QUERY_BYTES + PAYLOAD_BYTES + POINT.len();
        fit(&mut referer, TEXT_BYTES - taken, number);
        let fields = Request {
            request_id: request.request_id,
            client_ip: request.client_ip,
            event_us: request.event_us,
            tenant: u64::from(number % 7),
            application: request.application,
            response_us: request.response_us,
            detection_us: request.detection_us,
            request_bytes: request.request_bytes,
            response_bytes: request.response_bytes,
            flags: request.flags,
            server_port: request.server_port,
            status: request.status,
            method: request.method,
            scheme: request.scheme,
            http_version: request.http_version,
            ..Request::default()
        };
        let client_ip = address_bytes(request.client_ip);
        let rest = pack_rest(&RecordFields {
            tenant: fields.tenant,
            request_bytes: fields.request_bytes,
            response_bytes: fields.response_bytes,
            application: fields.application,
            detection_us: fields.detection_us,
            flags: fields.flags,
            server_port: fields.server_port,
            scheme: fields.scheme,
            http_version: fields.http_version,
            ..RecordFields::default()
        });
        let (request_id, host) = (request.request_id, request.host.to_vec());
        Self { fields, host, path, query, user_agent, referer, payload, request_id, client_ip, rest }
    }

    /// The shared form.
    pub fn row(&self) -> Row<'_> {
        Row {
            request_id: &self.request_id,
            client_ip: &self.client_ip,
            event_us: self.fields.event_us,
            status: u64::from(self.fields.status),
            method: u64::from(self.fields.method),
            response_us: u64::from(self.fields.response_us),
            texts: [&self.host, &self.path, &self.query, &self.user_agent, &self.referer, POINT, &self.payload],
            rest: &self.rest,
        }
    }

    /// Calls `send` with this record as the client crate takes it.
    pub fn with_request<R>(&self, token: u64, send: impl FnOnce(&Request<'_>) -> R) -> R {
        let extensions = self.extensions();
        send(&Request {
            host: &self.host,
            path: &self.path,
            query: &self.query,
            user_agent: &self.user_agent,
            referer: &self.referer,
            extensions: &extensions,
            token,
            ..self.fields
        })
    }

    /// This record as it goes into a batch.
    pub fn fields(&self) -> RecordFields<'_> {
        RecordFields {
            host: &self.host,
            path: &self.path,
            query: &self.query,
            user_agent: &self.user_agent,
            referer: &self.referer,
            extensions: self.extensions().to_vec(),
            ..record_fields(&self.fields)
        }
    }

    fn extensions(&self) -> [Extension<'_>; 2] {
        [Extension { tag: TAG_POINT, value: POINT }, Extension { tag: TAG_PAYLOAD, value: &self.payload }]
    }
}

/// The hash of a record that was read back from our server.
pub fn hash_of_view(view: &RecordView<'_>) -> u64 {
    let fields = view.fields();
    let extension =
        |tag: u16| fields.extensions.iter().find(|extension| extension.tag == tag).map_or(&b""[..], |found| found.value);
    let row = Row {
        request_id: &fields.request_id,
        client_ip: &fields.client_ip,
        event_us: fields.event_us,
        status: u64::from(fields.status),
        method: u64::from(fields.method),
        response_us: u64::from(fields.response_us),
        texts: [
            fields.host,
            fields.path,
            fields.query,
            fields.user_agent,
            fields.referer,
            extension(TAG_POINT),
            extension(TAG_PAYLOAD),
        ],
        rest: &pack_rest(&fields),
    };
    row.hash()
}

fn pack_rest(fields: &RecordFields<'_>) -> [u8; REST_BYTES] {
    let mut rest = [0; REST_BYTES];
    let longs = [fields.tenant, fields.session_hash, fields.user_hash, fields.request_bytes, fields.response_bytes];
    for (place, long) in rest.chunks_exact_mut(8).zip(longs) {
        place.copy_from_slice(&long.to_le_bytes());
    }
    rest[40..44].copy_from_slice(&fields.application.to_le_bytes());
    rest[44..48].copy_from_slice(&fields.detection_us.to_le_bytes());
    rest[48..52].copy_from_slice(&fields.flags.to_le_bytes());
    rest[52..54].copy_from_slice(&fields.server_port.to_le_bytes());
    rest[54] = fields.scheme;
    rest[55] = fields.http_version;
    rest
}

/// The same, leaving the file's extension at the end: what is an image or a style sheet stays one.
fn fit_path(path: &mut Vec<u8>, number: u32) {
    let file = path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
    let extension = path.iter().rposition(|byte| *byte == b'.').filter(|at| *at > file && path.len() - at <= 6);
    let extension = extension.map(|at| path.split_off(at)).unwrap_or_default();
    fit(path, PATH_BYTES - extension.len(), number);
    path.extend(extension);
}

/// Cuts or pads a text to `bytes`, with something of the record's own at the end.
fn fit(text: &mut Vec<u8>, bytes: usize, number: u32) {
    let tail = format!("{number:06x}");
    text.truncate(bytes.saturating_sub(tail.len()));
    let missing = bytes.saturating_sub(text.len() + tail.len());
    text.extend(std::iter::repeat_n(b"abcdefghijklmnop"[number as usize % 16], missing));
    text.extend_from_slice(&tail.as_bytes()[..tail.len().min(bytes - text.len())]);
}

/// All records that are sent, lap after lap, and the hash of each.
#[derive(Debug)]
pub struct Corpus {
    /// The records, each of another source.
    pub records: Vec<Record>,
    hashes: Vec<u64>,
}

impl Corpus {
    /// The same records every time.
    pub fn new() -> Self {
        let pool = Arc::new(Pool::new(Mix::Browse, 1, 512));
        let mut traffic = Traffic::new(pool, 1, SOURCES);
        let record = |source| {
            debug_assert!(source_address(source) != source_address(source ^ 1), "sources are distinct");
            let request = traffic.next_of(source, EVENT_US + u64::from(source));
            let (mut path, mut user_agent) = (request.path.to_vec(), request.user_agent.to_vec());
            fit(&mut path, PATH_BYTES, source);
            fit(&mut user_agent, USER_AGENT_BYTES, source);
            Record::new(&request, source, path, user_agent)
        };
        Self::of((0..SOURCES).map(record).collect())
    }

    /// Visitors that browse, for the detectors: 100,000 sources, 10,000 user agents, 100,000 paths.
    pub fn browsing() -> Self {
        let pool = Arc::new(Pool::new(Mix::Browse, 1, 512));
        let mut traffic = Traffic::new(pool, 1, BROWSING_SOURCES);
        let mut path = |number| {
            let mut path = traffic.next_of(number, EVENT_US).path.to_vec();
            fit_path(&mut path, number);
            path
        };
        let paths: Vec<Vec<u8>> = (0..BROWSING_PATHS).map(&mut path).collect();
        let mut agent = |number| {
            let mut agent = traffic.next_of(number, EVENT_US).user_agent.to_vec();
            fit(&mut agent, USER_AGENT_BYTES, number);
            agent
        };
        let agents: Vec<Vec<u8>> = (0..BROWSING_AGENTS).map(&mut agent).collect();
        let record = |number: u32| {
            let source = number % BROWSING_SOURCES;
            let request = traffic.next_of(source, EVENT_US + u64::from(number));
            // Odd and no multiple of 5, so that all paths come before one comes again.
            let path = paths[(u64::from(number) * 7_919 % u64::from(BROWSING_PATHS)) as usize].clone();
            let user_agent = agents[(source % BROWSING_AGENTS) as usize].clone();
            Record::new(&request, number, path, user_agent)
        };
        Self::of((0..BROWSING_RECORDS).map(record).collect())
    }

    fn of(records: Vec<Record>) -> Self {
        let hashes = records.iter().map(|record| record.row().hash()).collect();
        Self { records, hashes }
    }

    /// The hash of a record.
    pub fn hash(&self, record: usize) -> u64 {
        self.hashes[record]
    }
}

impl Default for Corpus {
    fn default() -> Self {
        Self::new()
    }
}

/// Rows and the sum of their hashes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    /// Number of rows.
    pub rows: u64,
    /// Sum of the hashes, modulo 2⁶⁴.
    pub checksum: u64,
}

impl Stored {
    /// Counts one more row.
    pub fn add(&mut self, hash: u64) {
        self.rows += 1;
        self.checksum = self.checksum.wrapping_add(hash);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use postanalytics_protocol::batch::blob_bytes;
    use postanalytics_protocol::schema::v1::{RECORD_BYTES, SCHEMA};
    use postanalytics_protocol::{BatchBuilder, ValidBatch};
    use std::collections::HashSet;

    #[test]
    fn records_are_512_bytes_of_distinct_sources_and_read_back_as_they_are() {
        let corpus = Corpus::new();
        let sources: HashSet<&[u8]> = corpus.records.iter().map(|record| record.row().client_ip).collect();
        assert_eq!(sources.len(), SOURCES as usize);
        let hashes: HashSet<u64> = (0..corpus.records.len()).map(|record| corpus.hash(record)).collect();
        assert_eq!(hashes.len(), SOURCES as usize);
        let mut batch = BatchBuilder::default();
        for record in &corpus.records[..500] {
            assert_eq!(RECORD_BYTES + blob_bytes(&record.fields()), 512);
            batch.push(&record.fields(), 1 << 20).expect("fits");
        }
        let mut body = vec![0; batch.body_bytes()];
        batch.encode_body(&mut body);
        let valid = ValidBatch::parse(SCHEMA, 500, &body).expect("valid");
        for (number, view) in valid.records().enumerate() {
            assert_eq!(hash_of_view(&view), corpus.hash(number));
        }
        let mut other = corpus.records[0].row();
        other.status += 1;
        assert_ne!(other.hash(), corpus.hash(0));
    }

    #[test]
    fn those_who_browse_are_as_many_as_stated() {
        let corpus = Corpus::browsing();
        let distinct = |part: fn(&Record) -> Vec<u8>| corpus.records.iter().map(part).collect::<HashSet<_>>().len();
        assert_eq!(distinct(|record| record.client_ip.to_vec()), BROWSING_SOURCES as usize);
        assert_eq!(distinct(|record| record.path.clone()), BROWSING_PATHS as usize);
        assert_eq!(distinct(|record| record.user_agent.clone()), BROWSING_AGENTS as usize);
        assert!(corpus.records.iter().all(|record| RECORD_BYTES + blob_bytes(&record.fields()) == 512));
        let images = corpus.records.iter().filter(|record| record.path.ends_with(b".png") || record.path.ends_with(b".css"));
        assert!(images.count() > corpus.records.len() / 100, "files keep their extension");
    }
}
