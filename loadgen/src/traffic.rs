//! Made-up but realistic traffic: the named mixes of the generator.
//!
//! Everything that costs anything (texts, their lengths, statuses) is drawn once into a [`Pool`]; a record then is a few
//! random numbers and borrowed slices, so that one core makes millions a second and the generator stays cheaper than what
//! it measures. The same seed gives the same records. Every record picks its source uniformly out of `sources` visitors,
//! each with one address and one user agent for good.
//!
//! Not here: attacks ([`crate::attack`]). A mix is the ordinary traffic in which they hide.

use clap::ValueEnum;
use fastrand::Rng;
use postanalytics_client::Request;
use postanalytics_protocol::RecordFields;
use postanalytics_protocol::routing::address_bytes;
use postanalytics_protocol::schema::v1::{Method, RECORD_BYTES, Scheme};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

/// Smallest mean size of a record that still holds a host and a path.
pub const RECORD_BYTES_MIN: usize = 240;
/// Largest mean size of a record.
pub const RECORD_BYTES_MAX: usize = 65_536;
/// Most distinct sources: the addresses stay distinct up to here.
pub const SOURCES_MAX: u32 = 1 << 24;
/// Pages of a mix; even, so that longer and shorter ones cancel out.
const PAGES: usize = 8192;
/// Longest query that padding makes; what is longer goes into the raw headers.
const PADDED_QUERY_BYTES_MAX: usize = 640;

/// A kind of ordinary traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mix {
    /// People with browsers: pages, images, scripts, referers; 200 and 304, few 404.
    Browse,
    /// Programs at JSON endpoints with object ids; all methods.
    Api,
}

/// The texts of a mix, made once and shared by all threads.
#[derive(Debug)]
pub struct Pool {
    mix: Mix,
    pages: Vec<Page>,
    user_agents: Vec<Vec<u8>>,
}

#[derive(Debug)]
struct Page {
    host: &'static [u8],
    path: Vec<u8>,
    query: Vec<u8>,
    referer: Vec<u8>,
    raw_headers: Vec<u8>,
    method: u8,
    status: u16,
    /// A browser may hold it already: sometimes answered 304.
    cacheable: bool,
    response_bytes: u32,
}

impl Pool {
    /// Draws the texts so that a record is `record_bytes` on the wire in the mean.
    pub fn new(mix: Mix, seed: u64, record_bytes: usize) -> Self {
        let mut rng = Rng::with_seed(seed);
        let texts_bytes = record_bytes.clamp(RECORD_BYTES_MIN, RECORD_BYTES_MAX) - RECORD_BYTES;
        let mut user_agents = match mix {
            Mix::Browse => browser_agents(),
            Mix::Api => program_agents(),
        };
        for agent in &mut user_agents {
            agent.truncate(texts_bytes / 3);
        }
        let agents_bytes: usize = user_agents.iter().map(Vec::len).sum();
        let page_bytes = texts_bytes - agents_bytes / user_agents.len();
        let spread = page_bytes / 8;
        let pages = (0..PAGES)
            .map(|index| {
                let mut page = match mix {
                    Mix::Browse => browse_page(&mut rng),
                    Mix::Api => api_page(&mut rng),
                };
                page.fit(if index % 2 == 0 { page_bytes + spread } else { page_bytes - spread }, &mut rng);
                page
            })
            .collect();
        Self { mix, pages, user_agents }
    }
}

/// A stream of records of one thread.
#[derive(Debug)]
pub struct Traffic {
    pool: Arc<Pool>,
    rng: Rng,
    sources: u32,
    session: [u8; 16],
    user: [u8; 8],
}

impl Traffic {
    /// A stream over `sources` visitors. Streams of different seeds share pool and visitors, and draw differently.
    pub fn new(pool: Arc<Pool>, seed: u64, sources: u32) -> Self {
        Self { pool, rng: Rng::with_seed(seed), sources: sources.clamp(1, SOURCES_MAX), session: [0; 16], user: [0; 8] }
    }

    /// The next record, of a random visitor.
    #[inline]
    pub fn next(&mut self, event_us: u64) -> Request<'_> {
        let source = self.rng.u32(..self.sources);
        self.next_of(source, event_us)
    }

    /// The next record of one visitor.
    pub fn next_of(&mut self, source: u32, event_us: u64) -> Request<'_> {
        let draw = self.rng.u64(..);
        let page = &self.pool.pages[draw as usize % PAGES];
        let mut request_id = [0; 16];
        request_id[..8].copy_from_slice(&self.rng.u64(..).to_le_bytes());
        request_id[8..].copy_from_slice(&draw.to_le_bytes());
        // A quarter of the visitors is signed in: browsers with a session, programs with a user.
        let (session, user): (&[u8], &[u8]) = match (source % 4, self.pool.mix) {
            (0, Mix::Browse) => {
                hex(u64::from(source).wrapping_mul(0x9e37_79b9_7f4a_7c15), &mut self.session);
                (&self.session, b"")
            }
            (0, Mix::Api) => {
                hex(u64::from(source), &mut self.user);
                (b"", &self.user)
            }
            _ => (b"", b""),
        };
        let not_modified = page.cacheable && (draw >> 32).is_multiple_of(8);
        Request {
            request_id,
            client_ip: source_address(source),
            event_us,
            response_us: 1_500 + (draw >> 40) as u32 % 60_000,
            detection_us: 40 + (draw >> 20) as u32 % 160,
            request_bytes: 300 + (page.path.len() + page.query.len() + page.referer.len()) as u64,
            response_bytes: if not_modified { 180 } else { u64::from(page.response_bytes) },
            server_port: 443,
            status: if not_modified { 304 } else { page.status },
            method: page.method,
            scheme: Scheme::Https as u8,
            http_version: if draw.is_multiple_of(3) { 11 } else { 20 },
            session,
            user,
            host: page.host,
            path: &page.path,
            query: &page.query,
            user_agent: &self.pool.user_agents[source as usize % self.pool.user_agents.len()],
            referer: &page.referer,
            raw_headers: &page.raw_headers,
            ..Request::default()
        }
    }
}

/// The fields of a request as they go into a batch, without the hashes of session and user (only the client has the key).
pub fn record_fields<'a>(request: &Request<'a>) -> RecordFields<'a> {
    RecordFields {
        request_id: request.request_id,
        client_ip: address_bytes(request.client_ip),
        event_us: request.event_us,
        tenant: request.tenant,
        request_bytes: request.request_bytes,
        response_bytes: request.response_bytes,
        application: request.application,
        response_us: request.response_us,
        detection_us: request.detection_us,
        flags: request.flags,
        server_port: request.server_port,
        status: request.status,
        method: request.method,
        scheme: request.scheme,
        http_version: request.http_version,
        host: request.host,
        path: request.path,
        query: request.query,
        user_agent: request.user_agent,
        referer: request.referer,
        raw_headers: request.raw_headers,
        raw_body: request.raw_body,
        hits: request.hits.to_vec(),
        extensions: request.extensions.to_vec(),
        ..RecordFields::default()
    }
}

/// The address of a visitor: distinct for distinct numbers below [`SOURCES_MAX`]; every eighth has IPv6.
pub fn source_address(source: u32) -> IpAddr {
    // Multiplying by an odd number permutes the 24 bits, so neighbours in number are no neighbours in address.
    let mixed = source.wrapping_mul(0x009e_3779) & 0x00ff_ffff;
    if source % 8 == 7 {
        return IpAddr::V6(Ipv6Addr::from((0x2a00_0000_0000_0000 | u128::from(mixed) << 16) << 64 | 1));
    }
    // The first byte depends on the others only, which are distinct already: 11 to 99 are ordinary unicast addresses.
    let first = 11 + (mixed.wrapping_mul(0x9e37_79b1) >> 24) % 89;
    IpAddr::V4(Ipv4Addr::from(first << 24 | mixed))
}

impl Page {
    fn texts_bytes(&self) -> usize {
        self.host.len() + self.path.len() + self.query.len() + self.referer.len() + self.raw_headers.len()
    }

    /// Pads or cuts the texts to `bytes` in all.
    fn fit(&mut self, bytes: usize, rng: &mut Rng) {
        let missing = bytes.saturating_sub(self.texts_bytes());
        let in_query = missing.min(PADDED_QUERY_BYTES_MAX);
        pad(&mut self.query, b"utm_source=newsletter&utm_medium=email&gclid=", in_query, rng);
        pad(&mut self.raw_headers, b"cookie: consent=all; theme=dark; _ga=", missing - in_query, rng);
        let mut surplus = self.texts_bytes().saturating_sub(bytes);
        for (text, keep) in [(&mut self.referer, 0), (&mut self.query, 0), (&mut self.path, 8)] {
            let gone = surplus.min(text.len().saturating_sub(keep));
            text.truncate(text.len() - gone);
            surplus -= gone;
        }
    }
}

/// Appends `bytes` bytes: the start of `words`, then random letters and digits as tracking ids have them.
fn pad(text: &mut Vec<u8>, words: &[u8], bytes: usize, rng: &mut Rng) {
    let end = text.len() + bytes;
    if bytes > 0 && !text.is_empty() {
        text.push(b'&');
    }
    text.extend_from_slice(&words[..words.len().min(end - text.len())]);
    while text.len() < end {
        text.push(rng.alphanumeric() as u8);
    }
}

fn browse_page(rng: &mut Rng) -> Page {
    const HOSTS: [&[u8]; 5] =
        [b"www.example.com", b"shop.example.com", b"blog.example.com", b"static.example.com", b"docs.example.org"];
    const SECTIONS: [&str; 10] =
        ["products", "catalog", "news", "articles", "category", "help", "about", "events", "downloads", "collections"];
    const WORDS: [&str; 16] = [
        "summer", "guide", "blue", "review", "linux", "kitchen", "garden", "classic", "mobile", "winter", "running", "travel",
        "coffee", "leather", "wireless", "family",
    ];
    const ASSETS: [(&str, &str); 6] = [
        ("css/main", "css"),
        ("js/app", "js"),
        ("images/hero", "jpg"),
        ("images/thumb", "webp"),
        ("fonts/inter", "woff2"),
        ("icons/set", "svg"),
    ];
    let host = HOSTS[rng.usize(..HOSTS.len())];
    let mut word = || WORDS[rng.usize(..WORDS.len())];
    let (first, second, third) = (word(), word(), word());
    let section = SECTIONS[rng.usize(..SECTIONS.len())];
    let number = rng.u32(1..100_000);
    let is_asset = rng.u8(..) < 140;
    let (path, query) = if is_asset {
        let (name, extension) = ASSETS[rng.usize(..ASSETS.len())];
        (format!("/assets/{name}-{first}-{number:05x}.{extension}"), format!("v={}", rng.u32(1..400)))
    } else if rng.u8(..) < 100 {
        (format!("/{section}/{first}-{second}-{third}"), format!("page={}&sort=popular", rng.u32(1..30)))
    } else {
        (format!("/{section}/{first}/{second}-{third}-{number}.html"), String::new())
    };
    let status = match rng.u16(..1000) {
        0..12 => 404,
        12..32 => 301,
        32..35 => 500,
        _ => 200,
    };
    Page {
        host,
        path: path.into_bytes(),
        query: query.into_bytes(),
        referer: format!("https://{}/{section}/{third}", String::from_utf8_lossy(host)).into_bytes(),
        raw_headers: Vec::new(),
        method: if rng.u8(..) < 3 { Method::Head as u8 } else { Method::Get as u8 },
        status,
        cacheable: is_asset && status == 200,
        response_bytes: rng.u32(400..180_000),
    }
}

fn api_page(rng: &mut Rng) -> Page {
    const HOSTS: [&[u8]; 2] = [b"api.example.com", b"gateway.example.com"];
    const OBJECTS: [&str; 8] = ["orders", "customers", "invoices", "devices", "messages", "payments", "carts", "shipments"];
    let object = OBJECTS[rng.usize(..OBJECTS.len())];
    let id = rng.u64(1_000_000..900_000_000);
    let one = format!("/api/v{}/{object}/{id}", rng.u8(1..4));
    let all = format!("/api/v{}/{object}", rng.u8(1..4));
    let (method, path, query, status) = match rng.u8(..100) {
        0..50 => (Method::Get, one, String::new(), 200),
        50..70 => (Method::Get, all, format!("limit=50&cursor={:016x}", rng.u64(..)), 200),
        70..85 => (Method::Post, all, String::new(), 201),
        85..92 => (Method::Put, one, String::new(), 200),
        92..95 => (Method::Patch, one, "fields=state".to_owned(), 200),
        95..98 => (Method::Delete, one, String::new(), 204),
        98 => (Method::Options, all, String::new(), 204),
        _ => (Method::Get, one, String::new(), 404),
    };
    Page {
        host: HOSTS[rng.usize(..HOSTS.len())],
        path: path.into_bytes(),
        query: query.into_bytes(),
        referer: Vec::new(),
        raw_headers: Vec::new(),
        method: method as u8,
        status,
        cacheable: false,
        response_bytes: rng.u32(60..9_000),
    }
}

fn browser_agents() -> Vec<Vec<u8>> {
    const SYSTEMS: [&str; 5] = [
        "Windows NT 10.0; Win64; x64",
        "Macintosh; Intel Mac OS X 10_15_7",
        "X11; Linux x86_64",
        "Linux; Android 14; Pixel 8",
        "iPhone; CPU iPhone OS 18_1 like Mac OS X",
    ];
    let mut agents = Vec::new();
    for system in SYSTEMS {
        for version in 118..142 {
            agents.push(format!(
                "Mozilla/5.0 ({system}) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/{version}.0.0.0 Safari/537.36"
            ));
            agents.push(format!("Mozilla/5.0 ({system}; rv:{version}.0) Gecko/20100101 Firefox/{version}.0"));
        }
    }
    agents.into_iter().map(String::into_bytes).collect()
}

fn program_agents() -> Vec<Vec<u8>> {
    const NAMES: [&str; 6] = ["okhttp", "python-requests", "axios", "Go-http-client", "ExampleApp-iOS", "ExampleApp-Android"];
    let of_name =
        |name: &'static str| (0..20).map(move |minor| format!("{name}/2.{minor}.1 (build {})", 4000 + minor).into_bytes());
    NAMES.into_iter().flat_map(of_name).collect()
}

fn hex(mut value: u64, out: &mut [u8]) {
    for byte in out.iter_mut().rev() {
        *byte = b"0123456789abcdef"[value as usize & 15];
        value >>= 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use postanalytics_protocol::batch::blob_bytes;
    use postanalytics_protocol::routing::Source;
    use std::collections::HashSet;

    #[test]
    fn records_have_the_wanted_mean_size() {
        for mix in [Mix::Browse, Mix::Api] {
            for record_bytes in [RECORD_BYTES_MIN, 320, 512, 1024, 4096] {
                let mut traffic = Traffic::new(Arc::new(Pool::new(mix, 1, record_bytes)), 2, 100_000);
                let total: usize = (0..20_000).map(|_| RECORD_BYTES + blob_bytes(&record_fields(&traffic.next(0)))).sum();
                let mean = total as f64 / 20_000.0;
                assert!((mean / record_bytes as f64 - 1.0).abs() < 0.02, "{mix:?} {record_bytes}: {mean}");
            }
        }
    }

    #[test]
    fn sources_are_distinct() {
        let sources: HashSet<Source> = (0..300_000).map(|source| Source::of(source_address(source))).collect();
        assert_eq!(sources.len(), 300_000);
    }

    #[test]
    fn the_seed_decides() {
        let pool = Arc::new(Pool::new(Mix::Browse, 1, 512));
        let ids = |seed| {
            let mut traffic = Traffic::new(Arc::clone(&pool), seed, 1000);
            (0..100).map(|_| (traffic.next(0).request_id, traffic.next(0).client_ip)).collect::<Vec<_>>()
        };
        assert_eq!(ids(7), ids(7));
        assert_ne!(ids(7), ids(8));
        let distinct: HashSet<[u8; 16]> = ids(7).into_iter().map(|(id, _)| id).collect();
        assert_eq!(distinct.len(), 100);
    }

    #[test]
    fn browsing_is_mostly_well() {
        let mut traffic = Traffic::new(Arc::new(Pool::new(Mix::Browse, 3, 512)), 3, 100_000);
        let statuses: Vec<u16> = (0..20_000).map(|_| traffic.next(0).status).collect();
        let share = |wanted: &[u16]| statuses.iter().filter(|status| wanted.contains(status)).count() as f64 / 20_000.0;
        assert!(share(&[200, 304]) > 0.94 && share(&[404]) > 0.005 && share(&[404]) < 0.02);
    }
}
