//! What a filtering node says about one request, borrowed from wherever it lies there.
//!
//! Nothing here allocates for an ordinary request: the fields are copied once, into the queue.

use crate::queue::SendError;
use postanalytics_protocol::batch::{Extension, Hit, RecordFields, body_bytes, check_parts, parts_bytes};
use postanalytics_protocol::header::DEFAULT_MAX_BODY_BYTES;
use postanalytics_protocol::routing::address_bytes;
use postanalytics_protocol::schema::v1::{FLAG_AUTH_FAILED, FLAG_AUTH_SUCCEEDED, Method};
use std::net::{IpAddr, Ipv4Addr};

/// Most bytes that one record may take, strings and all: what every server takes unless it is told otherwise.
pub const RECORD_BYTES_MAX: usize = DEFAULT_MAX_BODY_BYTES as usize;

/// Endings of paths at which people log in. An attempt is reported at once, so that a verdict can follow at once.
const LOGIN_ENDINGS: [&[u8]; 16] = [
    b"/login",
    b"/login.php",
    b"/signin",
    b"/sign-in",
    b"/auth",
    b"/oauth/token",
    b"/token",
    b"/session",
    b"/sessions",
    b"/wp-login.php",
    b"/xmlrpc.php",
    b"/administrator/index.php",
    b"/user/login",
    b"/users/sign_in",
    b"/account/login",
    b"/admin/login",
];

/// One processed request. Every field has a neutral default, so name only what you know:
///
/// ```
/// use postanalytics_client::Request;
/// let request = Request { client_ip: [192, 0, 2, 7].into(), status: 404, path: b"/.env", ..Request::default() };
/// assert_eq!(request.application, -1);
/// ```
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// Unique id of the request, random.
    pub request_id: [u8; 16],
    /// Address of the visitor.
    pub client_ip: IpAddr,
    /// When the request came, Unix µs.
    pub event_us: u64,
    /// Tenant, 0 if there is one only.
    pub tenant: u64,
    /// Application id, −1 for the default application.
    pub application: i32,
    /// Time until the response was sent, µs.
    pub response_us: u32,
    /// Time that detection took, µs.
    pub detection_us: u32,
    /// Bytes of the request, headers and body.
    pub request_bytes: u64,
    /// Bytes of the response, headers and body.
    pub response_bytes: u64,
    /// `FLAG_…` bits of `postanalytics_protocol::schema::v1`.
    pub flags: u32,
    /// Port of the server that took the request.
    pub server_port: u16,
    /// Status of the response.
    pub status: u16,
    /// Number of the method (`postanalytics_protocol::schema::v1::Method`); 0: none of them.
    pub method: u8,
    /// Number of the scheme (`postanalytics_protocol::schema::v1::Scheme`); 0: not known.
    pub scheme: u8,
    /// HTTP version times ten; 0: not known.
    pub http_version: u8,
    /// Session id in clear text, empty if none. Only a keyed hash of it leaves the node.
    pub session: &'a [u8],
    /// User name in clear text, empty if none. Only a keyed hash of it leaves the node.
    pub user: &'a [u8],
    /// Host header.
    pub host: &'a [u8],
    /// Path, as received.
    pub path: &'a [u8],
    /// Query without the question mark.
    pub query: &'a [u8],
    /// User-Agent header.
    pub user_agent: &'a [u8],
    /// Referer header.
    pub referer: &'a [u8],
    /// Raw request headers; leave empty unless the operator wants them stored.
    pub raw_headers: &'a [u8],
    /// Raw request body, capped by the caller; leave empty unless the operator wants it stored.
    pub raw_body: &'a [u8],
    /// Findings of the filter.
    pub hits: &'a [Hit<'a>],
    /// Tagged values.
    pub extensions: &'a [Extension<'a>],
    /// Not sent; comes back in [`crate::AckedRecord`].
    pub token: u64,
}

impl Default for Request<'_> {
    fn default() -> Self {
        Self {
            request_id: [0; 16],
            client_ip: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            event_us: 0,
            tenant: 0,
            application: -1,
            response_us: 0,
            detection_us: 0,
            request_bytes: 0,
            response_bytes: 0,
            flags: 0,
            server_port: 0,
            status: 0,
            method: 0,
            scheme: 0,
            http_version: 0,
            session: b"",
            user: b"",
            host: b"",
            path: b"",
            query: b"",
            user_agent: b"",
            referer: b"",
            raw_headers: b"",
            raw_body: b"",
            hits: &[],
            extensions: &[],
            token: 0,
        }
    }
}

impl<'a> Request<'a> {
    /// Bytes of blob that the record takes, or why no server would store it.
    pub(crate) fn checked_blob_bytes(&self) -> Result<usize, SendError> {
        // Before hits and extensions are looked at, of which there may be any number.
        check_parts(self.hits.len(), self.extensions.len()).map_err(SendError::TooManyParts)?;
        let texts = self.host.len() + self.path.len() + self.query.len() + self.user_agent.len() + self.referer.len();
        let parts = if self.hits.is_empty() && self.extensions.is_empty() { 0 } else { parts_bytes(self.hits, self.extensions) };
        let blob = texts + self.raw_headers.len() + self.raw_body.len() + parts;
        let bytes = body_bytes(1, blob) + self.identity_bytes();
        let limit = RECORD_BYTES_MAX;
        if bytes > limit { Err(SendError::TooLarge { bytes, limit }) } else { Ok(blob) }
    }

    /// Bytes of user and session in clear text.
    pub(crate) const fn identity_bytes(&self) -> usize {
        self.session.len() + self.user.len()
    }

    /// The fields as the wire knows them, without the hashes, which only the background thread has the key for.
    #[inline]
    pub(crate) fn fields(&self) -> RecordFields<'a> {
        RecordFields {
            request_id: self.request_id,
            client_ip: address_bytes(self.client_ip),
            event_us: self.event_us,
            tenant: self.tenant,
            session_hash: 0,
            user_hash: 0,
            request_bytes: self.request_bytes,
            response_bytes: self.response_bytes,
            application: self.application,
            response_us: self.response_us,
            detection_us: self.detection_us,
            flags: self.flags,
            server_port: self.server_port,
            status: self.status,
            method: self.method,
            scheme: self.scheme,
            http_version: self.http_version,
            host: self.host,
            path: self.path,
            query: self.query,
            user_agent: self.user_agent,
            referer: self.referer,
            raw_headers: self.raw_headers,
            raw_body: self.raw_body,
            // Empty ones, as in nearly every request, allocate nothing.
            hits: self.hits.to_vec(),
            extensions: self.extensions.to_vec(),
        }
    }

    /// Whether the blob is nothing but texts: no hits, no extensions.
    #[inline]
    pub(crate) const fn is_plain(&self) -> bool {
        self.hits.is_empty() && self.extensions.is_empty()
    }

    /// The texts in the order in which they lie in the blob, without hits and extensions; then session and user.
    #[inline]
    pub(crate) const fn strings(&self) -> [&'a [u8]; 9] {
        [
            self.host,
            self.path,
            self.query,
            self.user_agent,
            self.referer,
            self.raw_headers,
            self.raw_body,
            self.session,
            self.user,
        ]
    }

    /// Whether the record may not wait for company: a hit, a 4xx, or an attempt to log in.
    pub(crate) fn is_urgent(&self) -> bool {
        !self.hits.is_empty()
            || (400..500).contains(&self.status)
            || self.flags & (FLAG_AUTH_FAILED | FLAG_AUTH_SUCCEEDED) != 0
            || self.is_login()
    }

    fn is_login(&self) -> bool {
        let sends = self.method == Method::Post as u8 || self.method == Method::Put as u8;
        sends && LOGIN_ENDINGS.iter().any(|ending| ends_with_ignoring_case(self.path, ending))
    }
}

fn ends_with_ignoring_case(path: &[u8], ending: &[u8]) -> bool {
    path.len().checked_sub(ending.len()).is_some_and(|start| path[start..].eq_ignore_ascii_case(ending))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urgent_is_what_a_verdict_may_hang_on() {
        let plain = Request { status: 200, method: Method::Get as u8, path: b"/login", ..Request::default() };
        assert!(!plain.is_urgent());
        assert!(Request { method: Method::Post as u8, ..plain.clone() }.is_urgent());
        assert!(Request { method: Method::Put as u8, path: b"/API/Sign-In", ..plain.clone() }.is_urgent());
        assert!(!Request { method: Method::Post as u8, path: b"/logins", ..plain.clone() }.is_urgent());
        assert!(Request { status: 404, ..plain.clone() }.is_urgent());
        assert!(!Request { status: 500, ..plain.clone() }.is_urgent());
        assert!(Request { flags: FLAG_AUTH_FAILED, ..plain.clone() }.is_urgent());
        assert!(Request { hits: &[Hit::default()], ..plain }.is_urgent());
    }

    #[test]
    fn limits_are_named() {
        let body = vec![0; RECORD_BYTES_MAX];
        let large = Request { raw_body: &body, ..Request::default() };
        assert!(matches!(large.checked_blob_bytes(), Err(SendError::TooLarge { .. })));
        let hits = vec![Hit::default(); 65];
        let many = Request { hits: &hits, ..Request::default() };
        assert!(matches!(many.checked_blob_bytes(), Err(SendError::TooManyParts(_))));
        let session = vec![b's'; RECORD_BYTES_MAX];
        assert!(matches!(
            Request { session: &session, ..Request::default() }.checked_blob_bytes(),
            Err(SendError::TooLarge { .. })
        ));
        assert_eq!(Request { path: b"/a", ..Request::default() }.checked_blob_bytes(), Ok(2));
    }
}
