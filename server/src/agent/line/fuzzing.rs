//! What fuzzing drives of the lines that the agent reads: see `tests/src/fuzz` of the workspace.

use super::json::json_time;
use super::*;
use postanalytics_client::access_log::method_number;
use std::net::SocketAddr;

/// A line of either format: what it says is a request, and whom it names its visitor is its address or a hop. What a log writes
/// of a target, an address or a time reads as it was.
pub fn agent_line(bytes: &[u8]) {
    for format in [LineFormat::Combined, LineFormat::Jsonl] {
        read(format, bytes, [7; 16], 9, |said| holds(&said));
    }
    let more = MoreFields::of(bytes);
    assert!(more.forwarded_for.is_empty() || bytes.as_ptr_range().contains(&more.forwarded_for.as_ptr()));
    assert_eq!(unescaped(&escaped(bytes)), bytes);
    assert!(unescaped(bytes).len() <= bytes.len());
    let number = bytes.iter().take(16).fold(0, |number, byte| number << 8 | u128::from(*byte));
    let address = IpAddr::from(number.to_be_bytes());
    for address in [address, IpAddr::from((number as u32).to_be_bytes())] {
        let written = [address.to_string(), format!("[{address}]"), SocketAddr::new(address, 443).to_string()];
        assert!(written.iter().all(|text| address_of_hop(text.as_bytes()) == Some(address)), "{address}");
    }
    let us = number as u32;
    assert_eq!(micros(format!("{}.{:06}", us / 1_000_000, us % 1_000_000).as_bytes()), Some(us));
    assert_eq!(json_time(&(number as u64).to_string(), ""), Some(number as u64));
    let text = &*String::from_utf8_lossy(bytes);
    let _ = (micros(bytes), json_time(text, text), json_time("", text));
    json(text);
}

fn holds(said: &Said<'_>) {
    let request = &said.request;
    assert_eq!(request.method, method_number(said.method));
    assert_eq!(request.extensions.is_empty(), said.method.is_empty() || request.method != 0);
    assert!(said.target.len() <= request.path.len() + 1 + request.query.len());
    let hops: Vec<IpAddr> =
        said.forwarded_for.split(|&byte| byte == b',').filter_map(|hop| address_of_hop(hop.trim_ascii())).collect();
    let everyone = ["0.0.0.0/0", "::/0"].map(|network| network.parse::<IpNet>().expect("a network"));
    assert_eq!(visitor(&[], request.client_ip, said.forwarded_for), request.client_ip);
    for trusted in [&everyone[..1], &everyone[1..], &everyone] {
        let visitor = visitor(trusted, request.client_ip, said.forwarded_for);
        assert!(visitor == request.client_ip || hops.contains(&visitor), "{visitor}");
    }
}

/// As NGINX writes a text, and Apache, in turns.
fn escaped(bytes: &[u8]) -> Vec<u8> {
    let mut text = Vec::new();
    for (number, &byte) in bytes.iter().enumerate() {
        match byte {
            b'"' | b'\\' if number % 2 == 0 => text.extend([b'\\', byte]),
            b' '..=b'~' if !matches!(byte, b'"' | b'\\') => text.push(byte),
            _ => text.extend(format!("\\x{byte:02X}").bytes()),
        }
    }
    text
}

/// A line that NGINX writes with `escape=json`.
fn json(text: &str) {
    let uri = format!("/{text}");
    let line = serde_json::json!({ "remote_addr": "192.0.2.7", "request_uri": uri, "http_user_agent": text, "request": text });
    let seen = read(LineFormat::Jsonl, line.to_string().as_bytes(), [7; 16], 9, |said| {
        holds(&said);
        assert!([said.request.path, b"?", said.request.query].concat().starts_with(uri.as_bytes()));
        assert_eq!(said.request.user_agent, if text == "-" { b"" } else { text.as_bytes() });
        assert_eq!((said.request.client_ip, said.request.event_us), (IpAddr::from([192, 0, 2, 7]), 9));
    });
    assert!(seen.is_some());
}
