//! Reads the upstream block that names the postanalytics servers.
//!
//! NGINX parses the block, and nothing of NGINX's ever connects to these servers: the client's own links do. So what the block
//! says of connections is checked, and what means nothing here is told.

use crate::conf::Place;
use crate::nginx::{self, Level, bytes, text};
use ngx::ffi;
use postanalytics_client::SERVERS_MAX;
use std::net::SocketAddr;

/// The block as far as it matters here.
struct Block<'a> {
    name: &'a str,
    place: Place,
    keepalive: usize,
    servers: Vec<Server>,
}

struct Server {
    /// As written: an address or a name, with a port.
    name: String,
    /// NGINX found addresses for it: the first one.
    address: String,
    max_conns: usize,
    weight: usize,
    backup: bool,
    down: bool,
    unix: bool,
}

/// The addresses of the servers that the upstream block `name` lists. Warnings go to the log of `cf`. `place`: of the directive.
///
/// # Safety
/// `cf` is that of a configuration whose `http` block has been read.
pub unsafe fn servers(cf: *mut ffi::ngx_conf_t, name: &str, place: &Place) -> Result<Vec<String>, String> {
    // SAFETY: the caller's word.
    let block = unsafe { find(cf, name) };
    let block = block.ok_or_else(|| {
        format!(
            "there is no upstream block \"{name}\", which {place} names; write: upstream {name} {{ server 127.0.0.1:3313 \
             max_fails=0 fail_timeout=0 max_conns=1; keepalive 1; }}"
        )
    })?;
    let (warnings, result) = judge(&block);
    for warning in warnings {
        // SAFETY: `cf` is valid, and so is its log.
        unsafe { nginx::log_to((*cf).log, Level::Warn, &format!("wallarm: {warning}")) };
    }
    result
}

/// # Safety
/// As for [`servers`].
unsafe fn find<'a>(cf: *mut ffi::ngx_conf_t, name: &'a str) -> Option<Block<'a>> {
    // SAFETY: NGINX's http core has a main configuration for each http module by now, and `upstreams` is an array of pointers.
    let upstreams: &[*mut ffi::ngx_http_upstream_srv_conf_t] = unsafe {
        let http = (*cf).ctx.cast::<ffi::ngx_http_conf_ctx_t>();
        let main = *(*http).main_conf.add(ffi::ngx_http_upstream_module.ctx_index);
        (*main.cast::<ffi::ngx_http_upstream_main_conf_t>()).upstreams.as_slice()
    };
    for &upstream in upstreams {
        // SAFETY: NGINX keeps no null in this array; strings and arrays of the configuration live as long as its pool.
        unsafe {
            let upstream = &*upstream;
            if bytes(&upstream.host) != name.as_bytes() || upstream.servers.is_null() {
                continue;
            }
            let servers: &[ffi::ngx_http_upstream_server_t] = (*upstream.servers).as_slice();
            return Some(Block {
                name,
                place: Place { file: text_of(upstream.file_name), line: upstream.line },
                keepalive: keepalive(cf, upstream),
                servers: servers.iter().map(|server| read(server)).collect(),
            });
        }
    }
    None
}

/// # Safety
/// `file_name` is a string that ends in 0, or null.
unsafe fn text_of(file_name: *mut u8) -> String {
    if file_name.is_null() {
        return String::new();
    }
    // SAFETY: the caller's word.
    unsafe { std::ffi::CStr::from_ptr(file_name.cast()) }.to_string_lossy().into_owned()
}

/// # Safety
/// NGINX has parsed the server.
unsafe fn read(server: &ffi::ngx_http_upstream_server_t) -> Server {
    // SAFETY: NGINX has found `naddrs` addresses for it, none only for `down` ones.
    let first = unsafe { if server.naddrs == 0 { None } else { server.addrs.as_ref() } };
    let name = text(&server.name);
    let address = first.map(|first| text(&first.name)).unwrap_or_default();
    Server {
        unix: name.starts_with("unix:"),
        name,
        address,
        max_conns: server.max_conns,
        weight: server.weight,
        backup: server.backup() != 0,
        down: server.down != 0,
    }
}

/// What `keepalive` says in the block, 0 if it says nothing.
///
/// # Safety
/// As for [`servers`].
unsafe fn keepalive(cf: *mut ffi::ngx_conf_t, upstream: &ffi::ngx_http_upstream_srv_conf_t) -> usize {
    // SAFETY: `modules` is an array of pointers that ends in null. The configuration of the keepalive module is private to
    // NGINX; it has begun with the number of connections since the module exists (1.1.4), all zero where nothing is said.
    unsafe {
        let mut module = (*(*cf).cycle).modules;
        while let Some(one) = (*module).as_ref() {
            if !one.name.is_null() && std::ffi::CStr::from_ptr(one.name) == c"ngx_http_upstream_keepalive_module" {
                let conf = *upstream.srv_conf.add(one.ctx_index);
                return conf.cast::<usize>().as_ref().copied().unwrap_or(0);
            }
            module = module.add(1);
        }
    }
    0
}

/// Warnings, and the addresses or what is wrong.
fn judge(block: &Block<'_>) -> (Vec<String>, Result<Vec<String>, String>) {
    let Block { name, place, keepalive, servers } = block;
    let mut warnings = Vec::new();
    if *keepalive < servers.len() {
        warnings.push(format!(
            "keepalive {keepalive} of upstream \"{name}\" is less than its number of servers, {count}, in {place}; write: \
             keepalive {count};",
            count = servers.len()
        ));
    }
    let mut addresses = Vec::new();
    for server in servers {
        let written = &server.name;
        if server.unix {
            let error = format!(
                "server {written} of upstream \"{name}\": postanalytics listens on TCP only, in {place}; write HOST:3313"
            );
            return (warnings, Err(error));
        }
        if server.max_conns == 0 {
            let error = format!(
                "server {written} of upstream \"{name}\" has no max_conns, in {place}; write: server {written} max_fails=0 \
                 fail_timeout=0 max_conns=1;"
            );
            return (warnings, Err(error));
        }
        if server.weight > 1 {
            warnings
                .push(format!("weight of server {written} means nothing here: every server gets as many sources, in {place}"));
        }
        if server.backup {
            warnings
                .push(format!("backup of server {written} means nothing here: it takes its share like the others, in {place}"));
        }
        if server.down {
            continue;
        }
        // An address as NGINX read it, which has a port; a name as written, so that what it stands for may change.
        let numeric = written.parse::<SocketAddr>().is_ok() || written.parse::<std::net::IpAddr>().is_ok();
        let has_port = written.rsplit_once(':').is_some_and(|(_, port)| !port.contains(']') && port.parse::<u16>().is_ok());
        if has_port {
            let address = if numeric { server.address.clone() } else { written.to_ascii_lowercase() };
            if addresses.contains(&address) {
                let error = format!("server {written} of upstream \"{name}\" is there twice, in {place}; take one of them away");
                return (warnings, Err(error));
            }
            addresses.push(address);
        } else {
            let error = format!("server {written} of upstream \"{name}\" has no port, in {place}; write {written}:3313");
            return (warnings, Err(error));
        }
    }
    if addresses.len() > SERVERS_MAX {
        let error = format!(
            "upstream \"{name}\" has {} servers, in {place}; at most {SERVERS_MAX} can be used: spread the nodes over several \
             deployments",
            addresses.len()
        );
        return (warnings, Err(error));
    }
    if addresses.is_empty() {
        let error =
            format!("all servers of upstream \"{name}\" are down, in {place}; take `down` away from one, or wallarm_mode off");
        return (warnings, Err(error));
    }
    (warnings, Ok(addresses))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(name: &str) -> Server {
        let (name, address, unix) = (name.to_owned(), name.to_owned(), name.starts_with("unix:"));
        Server { name, address, max_conns: 1, weight: 1, backup: false, down: false, unix }
    }

    fn judged(keepalive: usize, servers: Vec<Server>) -> (Vec<String>, Result<Vec<String>, String>) {
        let place = Place { file: "/etc/nginx/a.conf".into(), line: 7 };
        judge(&Block { name: "pa", place, keepalive, servers })
    }

    #[test]
    fn the_block_of_the_operators_handbook_is_fine() {
        let (warnings, servers) = judged(2, vec![server("192.0.2.1:3313"), server("[2001:db8::1]:3313")]);
        assert!(warnings.is_empty(), "{warnings:?}");
        assert_eq!(servers.expect("fine"), ["192.0.2.1:3313", "[2001:db8::1]:3313"]);
        assert_eq!(judged(1, vec![server("pa.example:3313")]).1.expect("fine"), ["pa.example:3313"]);
    }

    #[test]
    fn errors_and_warnings_say_where_and_what_to_write() {
        let (_, error) = judged(1, vec![Server { max_conns: 0, ..server("192.0.2.1:3313") }]);
        let error = error.expect_err("no max_conns");
        assert!(error.contains("max_conns=1") && error.contains("/etc/nginx/a.conf:7"), "{error}");
        let (warnings, _) = judged(1, vec![server("192.0.2.1:3313"), server("192.0.2.2:3313")]);
        assert!(warnings[0].contains("keepalive 2;") && warnings[0].contains("/etc/nginx/a.conf:7"), "{warnings:?}");
        for (bad, remedy) in
            [("unix:/run/pa.sock", "HOST:3313"), ("192.0.2.1", "192.0.2.1:3313"), ("pa.example", "pa.example:3313")]
        {
            let error = judged(1, vec![server(bad)]).1.expect_err(bad);
            assert!(error.contains(remedy), "{error}");
        }
        for twin in [["192.0.2.1:3313", "192.0.2.1:3313"], ["pa.example:3313", "PA.example:3313"]] {
            let error = judged(2, twin.map(server).into()).1.expect_err("a twin");
            assert!(error.contains("twice, in /etc/nginx/a.conf:7; take one"), "{error}");
        }
        let many = |count: usize| (1..=count).map(|n| server(&format!("192.0.2.{n}:3313"))).collect();
        assert_eq!(judged(16, many(16)).1.expect("as many as may be").len(), 16);
        let error = judged(17, many(17)).1.expect_err("too many");
        assert!(error.contains("17 servers, in /etc/nginx/a.conf:7; at most 16"), "{error}");
        let down = || Server { down: true, ..server("192.0.2.1:3313") };
        assert!(judged(1, vec![down()]).1.is_err());
        assert_eq!(judged(2, vec![down(), server("192.0.2.2:3313")]).1.expect("one is up"), ["192.0.2.2:3313"]);
        let (warnings, _) = judged(1, vec![Server { weight: 2, backup: true, ..server("192.0.2.1:3313") }]);
        assert_eq!(warnings.len(), 2);
    }
}
