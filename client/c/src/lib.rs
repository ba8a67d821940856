//! The client as a C library. The header, `include/postanalytics.h`, says what each call does: it is made from these comments.
//!
//! Every call goes through [`guard`]: no panic crosses the border. All reading and writing of the caller's memory is in
//! [`sized`]; here only the handle is dereferenced. Nothing is kept of what the caller passes.

#![expect(non_camel_case_types, reason = "names of the C header")]
#![expect(clippy::missing_safety_doc, reason = "the head of the header says it once for all calls")]
#![expect(unsafe_code, reason = "a C library reads what pointers point to")]

pub mod errors;
mod sized;
pub mod types;

use crate::errors::{Failure, PA_EFORK, PA_ESYSTEM, PA_OK, guard};
use crate::sized::{read, read_extensions, read_hits, slice, text, write};
use crate::types::{
    PA_FEATURE_SESSION_VERDICTS, PA_FEATURE_SEVERAL_SERVERS, PA_LIST_DENYLIST, PA_LIST_GRAYLIST, PA_LIST_NONE, pa_bytes,
    pa_config, pa_request, pa_server_status, pa_stats, pa_status,
};
use postanalytics_client::{Action, Client, ClientBuilder, Counters, Extension, Hit, Request, SERVERS_MAX, ServerStatus};
use postanalytics_protocol::schema::v1::{EXTENSIONS_MAX, HITS_MAX, Method};
use std::ffi::{CStr, c_char, c_int};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Most hits, and most extensions, of a request.
const PARTS_MAX: usize = HITS_MAX as usize;
const _: () = assert!(HITS_MAX == EXTENSIONS_MAX);
/// How long pa_client_free tries to get records out.
const FREE_TIMEOUT: Duration = Duration::from_secs(1);

/// A client: made by pa_client_new, used by any number of threads, freed by pa_client_free or pa_client_close.
pub struct pa_client {
    client: Client,
    /// The process that made it.
    owner: u32,
    /// Ids of requests that come without one begin with this and end in a count.
    id_prefix: [u8; 8],
    next_id: AtomicU64,
}

/// The version of this library, such as "0.1.0".
#[unsafe(no_mangle)]
pub extern "C" fn pa_version() -> *const c_char {
    const VERSION: &CStr = match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
        Ok(version) => version,
        Err(_) => panic!("versions hold no zero"),
    };
    VERSION.as_ptr()
}

/// What this library can do beyond its first version: PA_FEATURE_..., added up.
#[unsafe(no_mangle)]
pub extern "C" fn pa_features() -> u64 {
    PA_FEATURE_SEVERAL_SERVERS | PA_FEATURE_SESSION_VERDICTS
}

/// What a code means, in a few words. Never NULL; lives for ever.
#[unsafe(no_mangle)]
pub extern "C" fn pa_strerror(code: c_int) -> *const c_char {
    errors::meaning(code).as_ptr()
}

/// What the last call of this thread that failed has to say: cause, live value and remedy. Never NULL; empty if none failed;
/// changes with the next call that fails in this thread.
#[unsafe(no_mangle)]
pub extern "C" fn pa_last_error() -> *const c_char {
    errors::last_error()
}

/// Reads an address such as 192.0.2.7 or 2001:db8::7 into the 16 bytes of pa_request.client_ip.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pa_ip_parse(text_of_ip: *const c_char, ip: *mut u8) -> c_int {
    guard(|| {
        // SAFETY: a text, as the header asks.
        let written = unsafe { text(text_of_ip, "the address") }?.ok_or_else(|| Failure::invalid("the address is NULL"))?;
        let parsed: IpAddr = written
            .parse()
            .map_err(|_| Failure::invalid(format_args!("{written:?} is no address: write 192.0.2.7 or 2001:db8::7")))?;
        // SAFETY: room for 16 bytes, as the header asks.
        unsafe { put_ip(parsed, ip) }
    })
}

/// Takes the 4 or 16 bytes of an address in network order, as in_addr and in6_addr hold them, into pa_request.client_ip.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pa_ip_from_bytes(bytes: *const u8, length: usize, ip: *mut u8) -> c_int {
    guard(|| {
        // SAFETY: so many bytes, as the header asks.
        let bytes = unsafe { slice(bytes, length, "the address") }?;
        let parsed = match (<[u8; 4]>::try_from(bytes), <[u8; 16]>::try_from(bytes)) {
            (Ok(v4), _) => IpAddr::from(v4),
            (_, Ok(v6)) => IpAddr::from(v6),
            _ => return Err(Failure::invalid(format_args!("an address has 4 or 16 bytes, not {length}"))),
        };
        // SAFETY: room for 16 bytes, as the header asks.
        unsafe { put_ip(parsed, ip) }
    })
}

/// The number of a method for pa_request.method, 0 if it has none: send its text as extension PA_TAG_METHOD then.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pa_method(name: pa_bytes) -> c_int {
    guard(|| {
        // SAFETY: so many bytes, as the header asks.
        let name = unsafe { name.get("the method") }?;
        Ok(Method::ALL.iter().find(|method| method.name().as_bytes() == name).map_or(0, |method| c_int::from(*method as u8)))
    })
}

/// Makes a client and starts its thread. It does not wait for a connection: records are queued until there is one. config may
/// be NULL: defaults. *client is NULL if it fails.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pa_client_new(config: *const pa_config, client: *mut *mut pa_client) -> c_int {
    guard(|| {
        if client.is_null() || !client.is_aligned() {
            return Err(Failure::invalid("there is no place for the client: pass the address of a pa_client *"));
        }
        // SAFETY: not NULL, aligned, and writable as the header asks.
        unsafe { client.write(std::ptr::null_mut()) };
        let builder = if config.is_null() {
            Client::builder()
        } else {
            // SAFETY: a structure as the header asks, and its pointers are what their comments say.
            unsafe { builder_of(&read(config)?) }?
        };
        let mut id_prefix = [0; 8];
        getrandom::fill(&mut id_prefix)
            .map_err(|error| Failure::new(PA_ESYSTEM, format_args!("cannot get random bytes: {error}")))?;
        let made =
            Box::new(pa_client { client: builder.build()?, owner: std::process::id(), id_prefix, next_id: AtomicU64::new(1) });
        // SAFETY: as above.
        unsafe { client.write(Box::into_raw(made)) };
        Ok(PA_OK)
    })
}

/// Copies the request into the queue and returns. Never waits; what it does not take is counted.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pa_client_send(client: *const pa_client, request: *const pa_request) -> c_int {
    guard(|| {
        // SAFETY: handle and structure are what the header asks for.
        unsafe { send(handle(client)?, &read(request)?) }
    })
}

/// Waits until every record taken so far is acknowledged, lost or in doubt.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pa_client_flush(client: *const pa_client, timeout_ms: u64) -> c_int {
    guard(|| {
        // SAFETY: a handle, as the header asks.
        unsafe { handle(client) }?.client.flush(Duration::from_millis(timeout_ms))?;
        Ok(PA_OK)
    })
}

/// Fills in the counters; stats->struct_size is to be set before.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pa_client_stats(client: *const pa_client, stats: *mut pa_stats) -> c_int {
    guard(|| {
        // SAFETY: handle and structure are what the header asks for.
        unsafe { write(stats, &stats_of(&own_handle(client)?.client.counters())) }?;
        Ok(PA_OK)
    })
}

/// Fills in how the client stands; status->struct_size is to be set before.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pa_client_status(client: *const pa_client, status: *mut pa_status) -> c_int {
    guard(|| {
        // SAFETY: handle and structure are what the header asks for.
        unsafe { write(status, &status_of(&own_handle(client)?.client)) }?;
        Ok(PA_OK)
    })
}

/// The same for one of its servers, the first being number 0, in the order of pa_config.servers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pa_client_server_status(client: *const pa_client, number: u32, status: *mut pa_server_status) -> c_int {
    guard(|| {
        // SAFETY: a handle, as the header asks.
        let servers = unsafe { own_handle(client) }?.client.status().servers;
        let server = servers.get(number as usize);
        let server = server.ok_or_else(|| {
            Failure::invalid(format_args!("there is no server {number}: the client has {}, the first is 0", servers.len()))
        })?;
        // SAFETY: a structure as the header asks.
        unsafe { write(status, &server_status_of(server)) }?;
        Ok(PA_OK)
    })
}

/// Takes no more records, waits up to timeout_ms until the others are settled, ends the thread, frees the client, and tells
/// in stats, if not NULL, what became of all. The client is gone, whatever it returns. In a forked child of the process that made it
/// it frees what the child has, tells nothing and returns PA_EFORK. client may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pa_client_close(client: *mut pa_client, timeout_ms: u64, stats: *mut pa_stats) -> c_int {
    guard(|| {
        // SAFETY: the last use of a handle that pa_client_new made, as the header asks.
        let Some(client) = (unsafe { take_handle(client) }) else { return Ok(PA_OK) };
        let fork = forked(&client);
        let counters = client.client.close(Duration::from_millis(timeout_ms));
        if let Some(failure) = fork {
            return Err(failure);
        }
        if !stats.is_null() {
            // SAFETY: a structure as the header asks.
            unsafe { write(stats, &stats_of(&counters)) }?;
        }
        Ok(PA_OK)
    })
}

/// pa_client_close with a second, and nobody to tell. client may be NULL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pa_client_free(client: *mut pa_client) {
    guard(|| {
        // SAFETY: the last use of a handle that pa_client_new made, as the header asks.
        if let Some(client) = unsafe { take_handle(client) } {
            client.client.close(FREE_TIMEOUT);
        }
        Ok(PA_OK)
    });
}

/// 1 if requests of this address to the default application are to be refused, else 0: also if the question cannot be
/// answered, for that must not stop a site. Takes no lock. Works in a forked child, whose list no longer changes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pa_denylist_contains(client: *const pa_client, ip: *const u8) -> c_int {
    let found = guard(|| {
        // SAFETY: handle and address are what the header asks for.
        let (client, ip) = unsafe { (handle(client)?, get_ip(ip)?) };
        Ok(c_int::from(client.client.denylist().contains(ip)))
    });
    found.max(0)
}

/// What to do with requests of this address to this application (-1: the default one): PA_LIST_NONE, PA_LIST_DENYLIST or
/// PA_LIST_GRAYLIST. Entries for all applications count; the stricter one wins.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pa_denylist_lookup(client: *const pa_client, ip: *const u8, application: i32) -> c_int {
    guard(|| {
        // SAFETY: handle and address are what the header asks for.
        let (client, ip) = unsafe { (handle(client)?, get_ip(ip)?) };
        Ok(list_of(client.client.denylist().lookup(ip, application)))
    })
}

/// The same for a session id in clear text. PA_LIST_NONE before the first connection, whose server says how ids are hashed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pa_denylist_lookup_session(client: *const pa_client, session: pa_bytes, application: i32) -> c_int {
    guard(|| {
        // SAFETY: handle and bytes are what the header asks for.
        let (client, session) = unsafe { (own_handle(client)?, session.get("session")?) };
        let hash = client.client.hash_identity(session);
        Ok(list_of(hash.and_then(|hash| client.client.denylist().lookup_session(hash, application))))
    })
}

const fn list_of(action: Option<Action>) -> c_int {
    match action {
        None => PA_LIST_NONE,
        Some(Action::Denylist) => PA_LIST_DENYLIST,
        Some(Action::Graylist) => PA_LIST_GRAYLIST,
    }
}

/// # Safety
///
/// `client` is NULL, or came from `pa_client_new` and is not freed while `'a` lasts.
unsafe fn handle<'a>(client: *const pa_client) -> Result<&'a pa_client, Failure> {
    // SAFETY: NULL, or a live client.
    unsafe { client.as_ref() }.ok_or_else(|| Failure::invalid("the client is NULL; did pa_client_new fail?"))
}

/// A handle, if it is of this process: a child has none of its parent's counters.
///
/// # Safety
///
/// As for [`handle`].
unsafe fn own_handle<'a>(client: *const pa_client) -> Result<&'a pa_client, Failure> {
    // SAFETY: the caller's promise.
    let client = unsafe { handle(client) }?;
    forked(client).map_or(Ok(client), Err)
}

/// What to say of a client of the process that this one is a fork of.
fn forked(client: &pa_client) -> Option<Failure> {
    let failure = || {
        Failure::new(
            PA_EFORK,
            format_args!("the client belongs to process {}, of which this one is a fork; make one after fork", client.owner),
        )
    };
    (client.owner != std::process::id()).then(failure)
}

/// # Safety
///
/// `client` is NULL, or came from `pa_client_new` and is used by nobody else, now or later.
unsafe fn take_handle(client: *mut pa_client) -> Option<Box<pa_client>> {
    // SAFETY: not NULL, so `pa_client_new` made it of a box.
    (!client.is_null()).then(|| unsafe { Box::from_raw(client) })
}

/// # Safety
///
/// The pointers of `config` are what their comments say.
unsafe fn builder_of(config: &pa_config) -> Result<ClientBuilder, Failure> {
    if config.reserved != 0 {
        return Err(Failure::invalid("pa_config.reserved is not 0: begin with PA_CONFIG_INIT"));
    }
    let mut builder = Client::builder().replay(config.replay != 0);
    // SAFETY: so many texts.
    let servers = unsafe { slice(config.servers, config.servers_length, "servers") }?;
    if servers.len() > SERVERS_MAX {
        return Err(Failure::invalid(format_args!(
            "there are {} servers, a client speaks to at most {SERVERS_MAX}",
            servers.len()
        )));
    }
    for &server in servers {
        // SAFETY: a text.
        let address = unsafe { text(server, "a server's address") }?;
        builder = builder.server(address.ok_or_else(|| Failure::invalid("a server's address is NULL"))?);
    }
    if !config.node_id.is_null() {
        // SAFETY: 16 bytes.
        builder = builder.node(unsafe { config.node_id.cast::<[u8; 16]>().read() });
    }
    // SAFETY: a text.
    if let Some(name) = unsafe { text(config.node_name, "node_name") }? {
        builder = builder.node_name(name);
    }
    let size = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
    if config.queue_bytes != 0 {
        builder = builder.queue_bytes(size(config.queue_bytes));
    }
    if config.batch_bytes != 0 {
        builder = builder.batch_bytes(size(config.batch_bytes));
    }
    if config.batch_records_max != 0 {
        builder = builder.batch_records_max(size(config.batch_records_max));
    }
    if config.batch_records_aim != 0 {
        builder = builder.batch_records_aim(size(config.batch_records_aim));
    }
    let (linger_us_min, linger_us_max) = linger_us(config.linger_us_min, config.linger_us_max);
    builder = builder.linger(Duration::from_micros(linger_us_min), Duration::from_micros(linger_us_max));
    if config.connect_timeout_ms != 0 {
        builder = builder.connect_timeout(Duration::from_millis(config.connect_timeout_ms));
    }
    if config.record_time_limit_ms != 0 {
        builder = builder.record_time_limit(Duration::from_millis(config.record_time_limit_ms));
    }
    Ok(builder)
}

/// How long records wait for company, at least and at most; what is 0 is left to us, and never contradicts the other.
const fn linger_us(min: u64, max: u64) -> (u64, u64) {
    match (min, max) {
        (0, 0) => (200, 200_000),
        (0, max) => (if max < 200 { max } else { 200 }, max),
        (min, 0) => (min, if min > 200_000 { min } else { 200_000 }),
        both => both,
    }
}

/// # Safety
///
/// The pointers of `request` are what their comments say.
unsafe fn send(client: &pa_client, request: &pa_request) -> Result<c_int, Failure> {
    // SAFETY: hits, extensions and texts, as the caller promised, which live until the call returns.
    unsafe {
        let hits = read_hits(request.hits, request.hits_length)?;
        let extensions = read_extensions(request.extensions, request.extensions_length)?;
        let hits: Result<Vec<Hit<'_>>, Failure> = hits
            .iter()
            .map(|hit| {
                Ok(Hit {
                    attack_type: hit.attack_type,
                    severity: hit.severity,
                    rule_id: hit.rule_id,
                    point: hit.point.get("a hit's point")?,
                    payload: hit.payload.get("a hit's payload")?,
                })
            })
            .collect();
        let extensions: Result<Vec<Extension<'_>>, Failure> = extensions
            .iter()
            .map(|extension| Ok(Extension { tag: extension.tag, value: extension.value.get("an extension's value")? }))
            .collect();
        client.client.try_send(&Request {
            request_id: if request.request_id == [0; 16] { client.new_id() } else { request.request_id },
            client_ip: IpAddr::from(request.client_ip).to_canonical(),
            event_us: if request.event_us == 0 { unix_us() } else { request.event_us },
            tenant: request.tenant,
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
            session: request.session.get("session")?,
            user: request.user.get("user")?,
            host: request.host.get("host")?,
            path: request.path.get("path")?,
            query: request.query.get("query")?,
            user_agent: request.user_agent.get("user_agent")?,
            referer: request.referer.get("referer")?,
            raw_headers: request.raw_headers.get("raw_headers")?,
            raw_body: request.raw_body.get("raw_body")?,
            hits: &hits?,
            extensions: &extensions?,
            token: 0,
        })?;
    }
    Ok(PA_OK)
}

impl pa_client {
    /// An id that no other request has.
    fn new_id(&self) -> [u8; 16] {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&self.id_prefix);
        id[8..].copy_from_slice(&self.next_id.fetch_add(1, Ordering::Relaxed).to_be_bytes());
        id
    }
}

fn unix_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros() as u64
}

/// # Safety
///
/// `ip` is NULL, or points to 16 bytes.
unsafe fn get_ip(ip: *const u8) -> Result<IpAddr, Failure> {
    if ip.is_null() {
        return Err(Failure::invalid("the address is NULL"));
    }
    // SAFETY: not NULL, so 16 bytes.
    Ok(IpAddr::from(unsafe { ip.cast::<[u8; 16]>().read() }).to_canonical())
}

/// # Safety
///
/// `ip` is NULL, or has room for 16 bytes.
unsafe fn put_ip(parsed: IpAddr, ip: *mut u8) -> Result<c_int, Failure> {
    if ip.is_null() {
        return Err(Failure::invalid("there is no place for the address: pass 16 bytes"));
    }
    let bytes = match parsed {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    // SAFETY: not NULL, so room for 16 bytes.
    unsafe { ip.cast::<[u8; 16]>().write(Ipv6Addr::octets(&bytes)) };
    Ok(PA_OK)
}

fn stats_of(counters: &Counters) -> pa_stats {
    pa_stats {
        struct_size: size_of::<pa_stats>(),
        tnt_errors: counters.tnt_errors(),
        offered: counters.offered,
        accepted: counters.accepted,
        refused: counters.refused(),
        refused_full: counters.refused_full,
        refused_too_large: counters.refused_too_large,
        refused_other: counters.refused_other,
        acked: counters.acked,
        lost: counters.lost,
        in_doubt: counters.in_doubt,
        queued: counters.queued,
        in_flight: counters.in_flight,
        queue_bytes: counters.queue_bytes,
        batches_sent: counters.batches_sent,
        batches_resent: counters.batches_resent,
        connects: counters.connects,
        connect_errors: counters.connect_errors,
        disconnects: counters.disconnects,
        errors_received: counters.errors_received,
        verdicts_skipped: counters.verdicts_skipped,
        failovers: counters.failovers,
        maybe_stored_elsewhere: counters.maybe_stored_elsewhere,
        panics_caught: errors::panics_caught(),
    }
}

fn status_of(client: &Client) -> pa_status {
    let status = client.status();
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    pa_status {
        struct_size: size_of::<pa_status>(),
        connected: u32::from(status.connected),
        lanes_open: status.lanes_open,
        servers: count(status.servers.len()),
        listed: count(client.denylist().len()),
        last_error: fixed(&status.last_error),
    }
}

fn server_status_of(server: &ServerStatus) -> pa_server_status {
    pa_server_status {
        struct_size: size_of::<pa_server_status>(),
        connected: u32::from(server.connected),
        takes_records: u32::from(server.takes_records),
        shards: server.shards,
        lanes_open: server.lanes_open,
        id: server.id,
        address: fixed(&server.address),
        version: fixed(&server.version),
        last_error: fixed(&server.last_error),
    }
}

/// A text in a field of fixed size, cut between letters, with a zero at its end.
fn fixed<const N: usize>(text: &str) -> [c_char; N] {
    let mut field = [0; N];
    let text = &text[..text.floor_char_boundary(N - 1)];
    for (place, byte) in field.iter_mut().zip(text.bytes()) {
        *place = byte as c_char;
    }
    field
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_end_of_the_linger_may_be_given_alone() {
        assert_eq!(linger_us(0, 0), (200, 200_000));
        assert_eq!((linger_us(0, 100), linger_us(0, 9_000)), ((100, 100), (200, 9_000)));
        assert_eq!((linger_us(100, 0), linger_us(900_000, 0)), ((100, 200_000), (900_000, 900_000)));
        assert_eq!(linger_us(10_000, 1_000), (10_000, 1_000), "refused by the builder");
    }
}
