//! The structures and numbers of the header.
//!
//! Every structure that may grow begins with its size and has a size that is a multiple of 8, fields added at its end only: so
//! a caller's older structure never ends within a field. Zero is the default of every field but `application`, which stands
//! in front of where any version may end.

use std::ffi::{c_char, c_int};

/// Bytes of any kind, a text without the zero at its end for instance. data may be NULL if length is 0.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct pa_bytes {
    /// Where they begin.
    pub data: *const c_char,
    /// How many.
    pub length: usize,
}

/// How a client is made. A field that is zero takes the default that is told with it.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct pa_config {
    /// sizeof(pa_config)
    pub struct_size: usize,
    /// Texts "HOST:PORT", IPv6 addresses in brackets. Default: 127.0.0.1:3313 alone.
    pub servers: *const *const c_char,
    /// How many servers.
    pub servers_length: usize,
    /// 16 bytes, this node's id, the same after every restart. Default: random.
    pub node_id: *const u8,
    /// This node's name, for people. Default: the host's name.
    pub node_name: *const c_char,
    /// Memory that records may take until they are settled, a quarter of it for records with hits alone.
    /// 65,536 or more. Default: 100,000,000.
    pub queue_bytes: u64,
    /// A batch is sent when the next record would make it longer. 1,024 to 1,048,576. Default: 65,536.
    pub batch_bytes: u64,
    /// A batch is sent when it has so many records. 1 to 65,536. Default: 4,096.
    pub batch_records_max: u64,
    /// Waiting adapts so that a batch has about so many records. 1 to 65,536. Default: 16.
    pub batch_records_aim: u64,
    /// Least time that an ordinary record waits for company, microseconds. 10 to 1,000,000. Default: 200, or the longest
    /// if that is shorter.
    pub linger_us_min: u64,
    /// Longest such time. One with a hit, a login attempt or a 4xx never waits. Default: 200,000, or the least if that is
    /// longer.
    pub linger_us_max: u64,
    /// How long a connection may take to come about, milliseconds. 1 to 60,000. Default: 1,000.
    pub connect_timeout_ms: u64,
    /// How long a record is kept for a server that does not answer, milliseconds: until it is written, and once more until
    /// it is acknowledged. 1 to 86,400,000. Default: 900,000.
    pub record_time_limit_ms: u64,
    /// Not 0: the records are a replay, whose event times the server is to keep.
    pub replay: u32,
    /// 0.
    pub reserved: u32,
}

/// A finding of the filter.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct pa_hit {
    /// sizeof(pa_hit), the same in all hits of a request.
    pub struct_size: usize,
    /// Where the payload sat, such as get_id or header_user-agent.
    pub point: pa_bytes,
    /// A sample of the payload.
    pub payload: pa_bytes,
    /// The rule that matched, 0 if none.
    pub rule_id: u32,
    /// PA_ATTACK_...
    pub attack_type: u16,
    /// 0 (information) to 255 (worst).
    pub severity: u8,
    /// 0.
    pub reserved: u8,
}

/// A tagged value. This structure never grows.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct pa_extension {
    /// What the value is: PA_TAG_...
    pub tag: u16,
    /// Its bytes.
    pub value: pa_bytes,
}

/// A processed request. What is not known stays zero, but for application: PA_REQUEST_INIT.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct pa_request {
    /// sizeof(pa_request)
    pub struct_size: usize,
    /// Address of the visitor as IPv6, an IPv4 address as ::ffff:a.b.c.d; see pa_ip_parse and pa_ip_from_bytes.
    pub client_ip: [u8; 16],
    /// Unique id of the request. All zero: the library makes one.
    pub request_id: [u8; 16],
    /// Application id, -1 for the default application. Mind that 0 is the application 0.
    pub application: i32,
    /// PA_FLAG_..., added up.
    pub flags: u32,
    /// When the request came, microseconds since 1970. 0: now.
    pub event_us: u64,
    /// Tenant, 0 if there is one only.
    pub tenant: u64,
    /// Bytes of the request, headers and body.
    pub request_bytes: u64,
    /// Bytes of the response, headers and body.
    pub response_bytes: u64,
    /// Time until the response was sent, microseconds.
    pub response_us: u32,
    /// Time that detection took, microseconds.
    pub detection_us: u32,
    /// Port of the server that took the request.
    pub server_port: u16,
    /// Status of the response.
    pub status: u16,
    /// Number of the method, see pa_method; 0 with the extension PA_TAG_METHOD for one that has none.
    pub method: u8,
    /// PA_SCHEME_...
    pub scheme: u8,
    /// HTTP version times ten: 11 is HTTP/1.1.
    pub http_version: u8,
    /// 0.
    pub reserved: u8,
    /// Host header.
    pub host: pa_bytes,
    /// Path, as received.
    pub path: pa_bytes,
    /// Query without the question mark.
    pub query: pa_bytes,
    /// User-Agent header.
    pub user_agent: pa_bytes,
    /// Referer header.
    pub referer: pa_bytes,
    /// Session id in clear text. Only a keyed hash of it leaves the node.
    pub session: pa_bytes,
    /// User name in clear text. Only a keyed hash of it leaves the node.
    pub user: pa_bytes,
    /// Raw request headers; leave empty unless the operator wants them stored.
    pub raw_headers: pa_bytes,
    /// Raw request body, capped by the caller; leave empty unless the operator wants it stored.
    pub raw_body: pa_bytes,
    /// Findings of the filter, at most 64.
    pub hits: *const pa_hit,
    /// How many.
    pub hits_length: usize,
    /// Tagged values, at most 64.
    pub extensions: *const pa_extension,
    /// How many.
    pub extensions_length: usize,
}

/// Counters of a client, records unless the name says otherwise. One consistent snapshot: offered = accepted + refused,
/// accepted = acked + lost + in_doubt + queued + in_flight, tnt_errors = refused + lost + in_doubt.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct pa_stats {
    /// sizeof(pa_stats), set by the caller.
    pub struct_size: usize,
    /// What postanalytics did not get, or may not have got. 0: it got everything.
    pub tnt_errors: u64,
    /// Given to pa_client_send.
    pub offered: u64,
    /// Taken into the queue.
    pub accepted: u64,
    /// Not taken: the sum of the next three.
    pub refused: u64,
    /// The queue had no room.
    pub refused_full: u64,
    /// No server would store a record so large.
    pub refused_too_large: u64,
    /// Too many hits or extensions, or the client was closing.
    pub refused_other: u64,
    /// Stored and analysed by a server.
    pub acked: u64,
    /// Given up for sure.
    pub lost: u64,
    /// Written, but it will never be known whether a server stored them.
    pub in_doubt: u64,
    /// Waiting to be written.
    pub queued: u64,
    /// Written and not yet acknowledged.
    pub in_flight: u64,
    /// Bytes of memory that queued and in-flight records take.
    pub queue_bytes: u64,
    /// Batches written for the first time.
    pub batches_sent: u64,
    /// Batches written again after a break.
    pub batches_resent: u64,
    /// Connections that came about.
    pub connects: u64,
    /// Connections that did not.
    pub connect_errors: u64,
    /// Connections that ended.
    pub disconnects: u64,
    /// Errors that a server told.
    pub errors_received: u64,
    /// Verdicts not kept, for a server listed more than it may.
    pub verdicts_skipped: u64,
    /// How often a server was away for so long that its records went to the others.
    pub failovers: u64,
    /// Records that were sent to another server after one that may have stored them went away.
    pub maybe_stored_elsewhere: u64,
    /// Panics that were caught at the border of this library since the process started. Not 0 is a defect; please report it.
    pub panics_caught: u64,
}

/// How a client stands, for people and status pages. Texts are cut where they do not fit, and end in a zero.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct pa_status {
    /// sizeof(pa_status), set by the caller.
    pub struct_size: usize,
    /// Whether at least one lane of any server is open: 1 or 0.
    pub connected: u32,
    /// Lanes that are open now, of all servers together.
    pub lanes_open: u32,
    /// Servers, each of which pa_client_server_status tells of. 0 until the client's thread has begun.
    pub servers: u32,
    /// Entries of the denylist.
    pub listed: u32,
    /// What went wrong last, empty if nothing ever did.
    pub last_error: [c_char; 512],
}

/// How a client stands with one server.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct pa_server_status {
    /// sizeof(pa_server_status), set by the caller.
    pub struct_size: usize,
    /// Whether at least one lane is open: 1 or 0.
    pub connected: u32,
    /// Whether the records of its sources go to it: 1 or 0. If not, they go to the others.
    pub takes_records: u32,
    /// Shards of the server, 0 before the first connection.
    pub shards: u32,
    /// Lanes that are open now.
    pub lanes_open: u32,
    /// Its id, zero before the first connection.
    pub id: [u8; 16],
    /// Its address, as configured.
    pub address: [c_char; 256],
    /// Version of its package, empty before the first connection.
    pub version: [c_char; 32],
    /// What went wrong last with it, empty if nothing ever did.
    pub last_error: [c_char; 512],
}

/// What pa_denylist_lookup finds: nothing.
pub const PA_LIST_NONE: c_int = 0;
/// What pa_denylist_lookup finds: to be refused.
pub const PA_LIST_DENYLIST: c_int = 1;
/// What pa_denylist_lookup finds: to be challenged or slowed down, as the site likes.
pub const PA_LIST_GRAYLIST: c_int = 2;

/// pa_features: pa_config.servers may name several.
pub const PA_FEATURE_SEVERAL_SERVERS: u64 = 1;
/// pa_features: pa_denylist_lookup_session.
pub const PA_FEATURE_SESSION_VERDICTS: u64 = 2;

/// Scheme http.
pub const PA_SCHEME_HTTP: u8 = 1;
/// Scheme https.
pub const PA_SCHEME_HTTPS: u8 = 2;
/// Scheme ws.
pub const PA_SCHEME_WS: u8 = 3;
/// Scheme wss.
pub const PA_SCHEME_WSS: u8 = 4;

/// The filter blocked the request.
pub const PA_FLAG_BLOCKED: u32 = 1;
/// The source was on the denylist.
pub const PA_FLAG_DENYLIST: u32 = 2;
/// The source was on the graylist.
pub const PA_FLAG_GRAYLIST: u32 = 4;
/// An authentication attempt failed.
pub const PA_FLAG_AUTH_FAILED: u32 = 8;
/// An authentication attempt succeeded.
pub const PA_FLAG_AUTH_SUCCEEDED: u32 = 16;
/// Processing took longer than the node's limit.
pub const PA_FLAG_OVERLIMIT: u32 = 32;
/// The request carried credentials.
pub const PA_FLAG_CREDENTIALS: u32 = 64;

/// Extension: the text of a method that has no number.
pub const PA_TAG_METHOD: u16 = 1;

/// Attack type: undefined.
pub const PA_ATTACK_UNDEFINED: u16 = 0;
/// Attack type: SQL injection.
pub const PA_ATTACK_SQLI: u16 = 1;
/// Attack type: cross-site scripting.
pub const PA_ATTACK_XSS: u16 = 2;
/// Attack type: remote code execution.
pub const PA_ATTACK_RCE: u16 = 3;
/// Attack type: path traversal.
pub const PA_ATTACK_PTRAV: u16 = 4;
/// Attack type: CRLF injection.
pub const PA_ATTACK_CRLF: u16 = 5;
/// Attack type: NoSQL injection.
pub const PA_ATTACK_NOSQLI: u16 = 6;
/// Attack type: server-side request forgery.
pub const PA_ATTACK_SSRF: u16 = 7;
/// Attack type: server-side includes.
pub const PA_ATTACK_SSI: u16 = 8;
/// Attack type: LDAP injection.
pub const PA_ATTACK_LDAPI: u16 = 9;
/// Attack type: XML external entity.
pub const PA_ATTACK_XXE: u16 = 10;
/// Attack type: mail injection.
pub const PA_ATTACK_MAIL_INJECTION: u16 = 11;
/// Attack type: vulnerability scanner.
pub const PA_ATTACK_SCANNER: u16 = 12;
/// Attack type: open redirect.
pub const PA_ATTACK_REDIR: u16 = 13;
/// Attack type: information leak.
pub const PA_ATTACK_INFOLEAK: u16 = 14;
/// Attack type: brute force.
pub const PA_ATTACK_BRUTE: u16 = 15;
/// Attack type: forced browsing.
pub const PA_ATTACK_DIRBUST: u16 = 16;
/// Attack type: broken object level authorization.
pub const PA_ATTACK_BOLA: u16 = 17;
/// Attack type: credential stuffing.
pub const PA_ATTACK_CREDENTIAL_STUFFING: u16 = 18;
/// Attack type: processing over the time limit.
pub const PA_ATTACK_OVERLIMIT_RES: u16 = 19;
/// Attack type: data bomb.
pub const PA_ATTACK_DATA_BOMB: u16 = 20;
/// Attack type: virtual patch.
pub const PA_ATTACK_VPATCH: u16 = 21;
/// Attack type: API abuse.
pub const PA_ATTACK_API_ABUSE: u16 = 22;
/// Attack type: invalid XML.
pub const PA_ATTACK_INVALID_XML: u16 = 23;
/// Attack type: mass assignment.
pub const PA_ATTACK_MASS_ASSIGNMENT: u16 = 24;

#[cfg(test)]
mod tests {
    use super::*;
    use postanalytics_protocol::schema::v1::{self, AttackType, Scheme};

    #[test]
    fn numbers_are_those_of_the_protocol() {
        let flags = [
            (PA_FLAG_BLOCKED, v1::FLAG_BLOCKED),
            (PA_FLAG_DENYLIST, v1::FLAG_DENYLIST),
            (PA_FLAG_GRAYLIST, v1::FLAG_GRAYLIST),
            (PA_FLAG_AUTH_FAILED, v1::FLAG_AUTH_FAILED),
            (PA_FLAG_AUTH_SUCCEEDED, v1::FLAG_AUTH_SUCCEEDED),
            (PA_FLAG_OVERLIMIT, v1::FLAG_OVERLIMIT),
            (PA_FLAG_CREDENTIALS, v1::FLAG_CREDENTIALS),
        ];
        assert!(flags.iter().all(|(ours, theirs)| ours == theirs), "{flags:?}");
        assert_eq!(PA_TAG_METHOD, v1::TAG_METHOD);
        let schemes = [PA_SCHEME_HTTP, PA_SCHEME_HTTPS, PA_SCHEME_WS, PA_SCHEME_WSS];
        assert_eq!(schemes.map(Some), [0, 1, 2, 3].map(|at| Scheme::ALL.get(at).map(|scheme| *scheme as u8)));
        // By name: the constants stand in the header as they stand here.
        let header = include_str!("../include/postanalytics.h");
        for attack in AttackType::ALL {
            let wanted = format!("#define PA_ATTACK_{} {}\n", attack.name().to_uppercase(), *attack as u16);
            assert!(header.contains(&wanted), "{wanted}");
        }
        assert_eq!(header.matches("#define PA_ATTACK_").count(), AttackType::ALL.len());
    }
}
