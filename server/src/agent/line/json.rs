//! A line of JSON: an object with the names of NGINX's variables, of this server's records, or as Caddy writes it.

use super::{Said, address_of_hop, micros, split_at, target};
use postanalytics_client::access_log::{client_ip, method_number, parse_time, request_parts, split_port};
use postanalytics_client::{Extension, Request};
use postanalytics_protocol::schema::v1::{FLAG_CREDENTIALS, Scheme, TAG_METHOD};
use serde_json::{Map, Value};
use std::borrow::Cow;

/// What a line says, if it is one. `id` is its request's unless the line has one; `now_us` stands in for a time.
pub(crate) fn read_json<T>(line: &[u8], id: [u8; 16], now_us: u64, take: impl FnOnce(Said<'_>) -> T) -> Option<T> {
    // NGINX leaves bytes that are no UTF-8 as they are.
    let fields = Fields { all: serde_json::from_str(&String::from_utf8_lossy(line)).ok()? };
    let (text, number) = (|names: &[&str]| fields.text(names), |names: &[&str]| fields.number(names));
    // Names that mean something else, or nothing certain, in other logs.
    let is_caddy = fields.of_request().is_some();
    let of_caddy = |name: &'static str| if is_caddy { name } else { "" };

    let address = text(&["remote_addr", "client_ip", "ip", "client", "remote_ip"]);
    let line = text(&["request"]);
    let (mut method, mut path, mut query, mut version) = request_parts(line.as_bytes());
    let (own_method, uri) = (text(&["request_method", "method"]), text(&["request_uri", "uri", "path", "url"]));
    let (args, protocol) = (text(&["args", "query_string", "query"]), text(&["server_protocol", "protocol", "proto"]));
    if !own_method.is_empty() {
        method = own_method.as_bytes();
    }
    if !uri.is_empty() {
        (path, query) = split_at(uri.as_bytes(), b'?');
        query = if query.is_empty() { args.as_bytes() } else { query };
    }
    if address.is_empty() || path.is_empty() {
        return None;
    }
    if let Some(digits) = protocol.strip_prefix("HTTP/") {
        version = digits.parse::<f32>().map_or(0, |number| (number * 10.0).round() as u8);
    }
    let user = text(&["remote_user", "user", of_caddy("user_id")]);
    let (mut host, mut port) = (text(&["host", "http_host", "server_name", "vhost"]), number(&["server_port"]));
    let mut scheme = text(&["scheme"]);
    if let Some(request) = fields.of_request() {
        // What the header says: small letters and no port, or a visitor could spread over as many hosts as he likes.
        let (name, of_host) = split_port(host.as_bytes());
        host = Cow::Owned(String::from_utf8_lossy(name).to_ascii_lowercase());
        port = if port == 0 { u64::from(of_host) } else { port };
        if scheme.is_empty() {
            scheme = Cow::Borrowed(if request.contains_key("tls") { "https" } else { "http" });
        }
    }
    let referer = fields.text_or_header(&["http_referer", "referer", "referrer"], "Referer");
    let agent = fields.text_or_header(&["http_user_agent", "user_agent", "agent"], "User-Agent");
    let forwarded_for = fields.text_or_header(&["http_x_forwarded_for", "x_forwarded_for", "forwarded_for"], "X-Forwarded-For");
    let own_id = uuid::Uuid::try_parse(&text(&["request_id"])).ok().map(uuid::Uuid::into_bytes);
    let extension = Extension { tag: TAG_METHOD, value: method };
    let has_number = method.is_empty() || method_number(method) != 0;
    let request = Request {
        request_id: own_id.unwrap_or(id),
        // Old versions of Caddy have the port with it.
        client_ip: address_of_hop(address.as_bytes()).unwrap_or_else(|| client_ip(address.as_bytes())),
        event_us: json_time(
            &text(&["event_us"]),
            &text(&["msec", "time_iso8601", "time", "timestamp", "@timestamp", "ts", "time_local"]),
        )
        .unwrap_or(now_us),
        method: method_number(method),
        http_version: version,
        scheme: Scheme::from_name(&scheme).map_or(0, |scheme| scheme as u8),
        status: u16::try_from(number(&["status"])).unwrap_or(0),
        server_port: u16::try_from(port).unwrap_or(0),
        request_bytes: number(&["request_length", "request_bytes", of_caddy("bytes_read")]),
        response_bytes: number(&["bytes_sent", "body_bytes_sent", "response_bytes", of_caddy("size")]),
        response_us: micros(text(&["request_time", of_caddy("duration")]).as_bytes()).unwrap_or(0),
        flags: if user.is_empty() { 0 } else { FLAG_CREDENTIALS },
        user: user.as_bytes(),
        host: host.as_bytes(),
        path,
        query,
        user_agent: agent.as_bytes(),
        referer: referer.as_bytes(),
        extensions: if has_number { &[] } else { std::slice::from_ref(&extension) },
        ..Request::default()
    };
    Some(take(Said {
        method,
        target: Cow::Owned(target(path, query)),
        user_agent: Cow::Borrowed(request.user_agent),
        referer: Cow::Borrowed(request.referer),
        forwarded_for: forwarded_for.as_bytes(),
        request,
    }))
}

/// The fields of a line of JSON: its own, and those of the object `request` that Caddy has in it.
struct Fields {
    all: Map<String, Value>,
}

impl Fields {
    fn of_request(&self) -> Option<&Map<String, Value>> {
        self.all.get("request")?.as_object()
    }

    /// The first of these that says something.
    fn text(&self, names: &[&str]) -> Cow<'_, str> {
        let of_request = self.of_request();
        let value = |name: &str| of_request.and_then(|fields| fields.get(name)).or_else(|| self.all.get(name));
        let found = names.iter().find_map(|name| match value(name)? {
            Value::String(text) if text == "-" || text.is_empty() => None,
            Value::String(text) => Some(Cow::Borrowed(text.as_str())),
            Value::Number(number) => Some(Cow::Owned(number.to_string())),
            _ => None,
        });
        found.unwrap_or_default()
    }

    /// The same, or a header of Caddy's: a list of what came under this name.
    fn text_or_header(&self, names: &[&str], header: &str) -> Cow<'_, str> {
        let values = || self.of_request()?.get("headers")?.get(header)?.as_array();
        let Some(values) = values() else { return self.text(names) };
        match values.as_slice() {
            [Value::String(value)] => Cow::Borrowed(value),
            values => Cow::Owned(values.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", ")),
        }
    }

    fn number(&self, names: &[&str]) -> u64 {
        self.text(names).parse().unwrap_or(0)
    }
}

/// Microseconds as a number; seconds or milliseconds since 1970; or a date with time as in NGINX's `$time_iso8601` or `$time_local`.
pub(super) fn json_time(event_us: &str, time: &str) -> Option<u64> {
    if let Ok(event_us) = event_us.parse() {
        return Some(event_us);
    }
    match time.parse::<f64>() {
        Ok(number) if !(0.0..1e17).contains(&number) => None,
        Ok(number) if number >= 1e14 => Some(number as u64),
        Ok(number) if number >= 1e11 => Some((number * 1e3) as u64),
        Ok(number) => Some((number * 1e6).round() as u64),
        Err(_) => parse_time(time.as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::read;
    use super::*;
    use crate::config::flags::LineFormat;

    #[test]
    fn json_as_nginx_writes_it_and_as_records_are() {
        let nginx = br#"{"time_iso8601":"2015-05-17T10:05:03+00:00","remote_addr":"1.2.3.4","request":"BREW /a?b=c HTTP/2.0","status":"404",
            "body_bytes_sent":"7","request_time":"0.250","http_user_agent":"ua","http_referer":"-","request_id":"00000000000000000000000000000007",
            "http_x_forwarded_for":"","server_protocol":"HTTP/2.0","scheme":"https","remote_user":"bob"}"#;
        let seen = read(LineFormat::Jsonl, nginx, [1; 16], 9, |said| {
            let request = &said.request;
            assert_eq!((said.method, said.target.as_ref()), (&b"BREW"[..], &b"/a?b=c"[..]));
            assert_eq!((request.status, request.response_bytes, request.response_us), (404, 7, 250_000));
            assert_eq!((request.http_version, request.scheme, request.event_us), (20, 2, 1_431_857_103_000_000));
            assert_eq!((request.request_id[15], request.extensions[0].value, request.referer), (7, &b"BREW"[..], &b""[..]));
        });
        assert!(seen.is_some());
        let record = br#"{"event_us":5,"ip":"2001:db8::1","method":"GET","path":"/x","query":"a=1","host":"h","status":200}"#;
        let seen = read(LineFormat::Jsonl, record, [1; 16], 9, |said| {
            assert_eq!((said.request.event_us, said.request.method, said.target.as_ref()), (5, 1, &b"/x?a=1"[..]));
        });
        assert!(seen.is_some());
        for none in [&b"{}"[..], b"[]", b"{\"remote_addr\":\"1.2.3.4\"}", b"1.2.3.4 - -", b"\xff"] {
            assert!(read(LineFormat::Jsonl, none, [1; 16], 9, |_| ()).is_none());
        }
        for (time, wanted) in [
            ("1431857103.5", 1_431_857_103_500_000),
            ("1431857103500", 1_431_857_103_500_000),
            ("1431857103500000", 1_431_857_103_500_000),
        ] {
            assert_eq!(json_time("", time), Some(wanted));
        }
        assert_eq!((json_time("", "-1"), json_time("", "NaN"), json_time("", "")), (None, None, None));
        // Cut anywhere, or with letters of several bytes, a time is none; a year alone would be seconds.
        let whole = "2015-05-17T10:05:03Z";
        for at in 0..whole.len() {
            assert!(at < 5 || json_time("", &whole[..at]).is_none(), "{at}");
            assert_eq!(json_time("", &format!("{}\u{1f600}", &whole[..at])), None, "{at}");
        }
    }

    #[test]
    fn json_as_caddy_writes_it() {
        let caddy = r#"{"level":"info","ts":1646861401.5241024,"logger":"http.log.access.log0","msg":"handled request",
            "request":{"remote_ip":"10.0.0.1","remote_port":"41342","client_ip":"203.0.113.9","proto":"HTTP/2.0","method":"POST",
            "host":"Shop.Example:8443","uri":"/login?next=%2F","headers":{"User-Agent":["curl/7.82.0"],"Accept":["*/*"],
            "X-Forwarded-For":["6.6.6.6, 203.0.113.9","203.0.113.10"],"Referer":["https://shop.example/"],
            "Authorization":["REDACTED"]},"tls":{"resumed":false,"version":772,"cipher_suite":4865,"proto":"h2",
            "server_name":"shop.example"}},"bytes_read":42,"user_id":"bob","duration":0.000929675,"size":10900,"status":401,
            "resp_headers":{"Server":["Caddy"],"Content-Type":["text/html; charset=utf-8"]}}"#;
        let seen = read(LineFormat::Jsonl, caddy.as_bytes(), [1; 16], 9, |said| {
            let request = &said.request;
            assert_eq!((said.method, said.target.as_ref()), (&b"POST"[..], &b"/login?next=%2F"[..]));
            assert_eq!((request.client_ip.to_string().as_str(), request.event_us / 1000), ("203.0.113.9", 1_646_861_401_524));
            assert_eq!((request.host, request.server_port, request.scheme), (&b"shop.example"[..], 8443, 2));
            assert_eq!((request.http_version, request.status, request.user), (20, 401, &b"bob"[..]));
            assert_eq!((request.request_bytes, request.response_bytes, request.response_us), (42, 10_900, 930));
            assert_eq!((request.user_agent, request.referer), (&b"curl/7.82.0"[..], &b"https://shop.example/"[..]));
            assert_eq!(said.forwarded_for, b"6.6.6.6, 203.0.113.9, 203.0.113.10");
        });
        assert!(seen.is_some());
        // Before 2.7 there is no client_ip, before 2.5 the port is with the address; without TLS there is no such object.
        for (address, found) in
            [(r#""remote_ip":"192.0.2.7""#, "192.0.2.7"), (r#""remote_addr":"[2001:db8::1]:443""#, "2001:db8::1")]
        {
            let line = format!(r#"{{"request":{{{address},"method":"GET","host":"a","uri":"/","headers":{{}}}},"status":200}}"#);
            let seen = read(LineFormat::Jsonl, line.as_bytes(), [1; 16], 9, |said| {
                assert_eq!((said.request.client_ip.to_string().as_str(), said.request.scheme), (found, 1));
                assert_eq!((said.request.user_agent, said.forwarded_for), (&b""[..], &b""[..]));
            });
            assert!(seen.is_some());
        }
        // Names that only Caddy has mean nothing in other logs.
        let other = br#"{"remote_addr":"1.2.3.4","uri":"/","duration":5,"size":7,"user_id":"x","proto":"HTTP/1.1"}"#;
        let seen = read(LineFormat::Jsonl, other, [1; 16], 9, |said| {
            let request = &said.request;
            assert_eq!((request.response_us, request.response_bytes, request.user), (0, 0, &b""[..]));
        });
        assert!(seen.is_some());
    }
}
