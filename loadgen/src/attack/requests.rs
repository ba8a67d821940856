//! The records of attackers: what each sends, so that every record counts and none is like another.

use super::Kind;
use super::campaign::Turn;
use fastrand::Rng;
use postanalytics_client::{Hit, Request};
use postanalytics_protocol::schema::v1::{AttackType, FLAG_BLOCKED, Method, Scheme};
use std::fmt::Write;
use std::net::IpAddr;

const BROWSER: &[u8] = b"Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:130.0) Gecko/20100101 Firefox/130.0";
const TOOL: &[u8] = b"sqlmap/1.8.4#stable (https://sqlmap.org)";
/// The payload is always the same, or attackers who probe would be listed one record earlier for many payloads.
const HITS: &[Hit<'static>] =
    &[Hit { attack_type: AttackType::Sqli as u16, severity: 200, rule_id: 942_100, point: b"get_q", payload: b"' OR 1=1--" }];

/// Makes the records of attackers, in buffers of its own.
#[derive(Debug)]
pub struct Requests {
    rng: Rng,
    path: String,
    query: String,
    user: String,
}

impl Requests {
    /// The same seed gives the same request ids.
    pub fn new(seed: u64) -> Self {
        Self { rng: Rng::with_seed(seed), path: String::new(), query: String::new(), user: String::new() }
    }

    /// The record of a turn.
    pub fn next(&mut self, kind: Kind, turn: Turn, source: IpAddr, event_us: u64) -> Request<'_> {
        let Turn { attacker, record } = turn;
        let request_id = self.rng.u128(..).to_le_bytes();
        let Self { path, query, user, .. } = self;
        for text in [&mut *path, &mut *query, &mut *user] {
            text.clear();
        }
        // Into a string: it cannot fail.
        let _ = match kind {
            Kind::BruteForce => write!(path, "/login").and_then(|()| write!(user, "admin-{attacker}")),
            Kind::CredentialStuffing => write!(path, "/login").and_then(|()| write!(user, "stolen-{attacker}-{record}")),
            Kind::ForcedBrowsing => write!(path, "/backup-{record}-of-{attacker}.zip"),
            Kind::Bola => write!(path, "/api/v1/orders/{}", 1_000_000 + u64::from(attacker) * 1_000 + u64::from(record)),
            Kind::Scanner => write!(path, "/cgi-bin/test-{record}.cgi"),
            Kind::Probing => write!(path, "/search").and_then(|()| write!(query, "q=shoes-{record}%27%20OR%201=1--")),
        };
        let (method, status) = match kind {
            Kind::BruteForce | Kind::CredentialStuffing => (Method::Post, 401),
            Kind::ForcedBrowsing | Kind::Scanner => (Method::Get, 404),
            Kind::Bola => (Method::Get, 200),
            Kind::Probing => (Method::Get, 403),
        };
        let (hits, flags): (&[Hit<'_>], u32) = if kind == Kind::Probing { (HITS, FLAG_BLOCKED) } else { (&[], 0) };
        Request {
            request_id,
            client_ip: source,
            event_us,
            response_us: 3_000,
            detection_us: 90,
            request_bytes: 420,
            response_bytes: 900,
            server_port: 443,
            status,
            method: method as u8,
            scheme: Scheme::Https as u8,
            http_version: 11,
            flags,
            user: self.user.as_bytes(),
            host: b"www.example.com",
            path: self.path.as_bytes(),
            query: self.query.as_bytes(),
            user_agent: if kind == Kind::Scanner { TOOL } else { BROWSER },
            hits,
            ..Request::default()
        }
    }
}
