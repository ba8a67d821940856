//! The parser against hand-written lines, against a real log, and against any bytes.

use super::*;
use proptest::prelude::*;

const TIME_US: u64 = 1_431_857_103_000_000;

fn parsed(line: &str) -> LogLine<'_> {
    parse_line(line.as_bytes()).unwrap_or_else(|| panic!("no structure seen in: {line}"))
}

#[test]
fn combined_line_keeps_every_field() {
    let line = parsed(
        r#"83.149.9.216 - frank [17/May/2015:10:05:03 +0000] "GET /a/b.png?x=1?y=%20 HTTP/1.1" 404 203023 "http://e.com/" "Mozilla/5.0 (X)" "extra""#,
    );
    assert_eq!((line.address, line.user, line.time_us), (&b"83.149.9.216"[..], &b"frank"[..], Some(TIME_US)));
    assert_eq!((line.method, line.path, line.query), (&b"GET"[..], &b"/a/b.png"[..], &b"x=1?y=%20"[..]));
    assert_eq!((line.http_version, line.status, line.response_bytes), (11, 404, 203_023));
    assert_eq!((line.referer, line.user_agent), (&b"http://e.com/"[..], &b"Mozilla/5.0 (X)"[..]));
    let request = line.request([7; 16], 0);
    assert_eq!((request.method, request.event_us, request.flags), (Method::Get as u8, TIME_US, FLAG_CREDENTIALS));
    assert_eq!(request.client_ip.to_string(), "83.149.9.216");
    assert!(request.extensions.is_empty());
}

#[test]
fn common_format_and_dashes() {
    let line = parsed(r#"2001:db8:: - - [17/May/2015:12:05:03 +0200] "HEAD / HTTP/1.0" 304 -"#);
    assert_eq!((line.time_us, line.http_version, line.status, line.response_bytes), (Some(TIME_US), 10, 304, 0));
    assert_eq!((line.user, line.referer, line.user_agent), (&b""[..], &b""[..], &b""[..]));
    assert_eq!(client_ip(line.address).to_string(), "2001:db8::");
    assert_eq!(parsed(r#"::1 - - [2015-05-17T10:05:03Z] "GET / HTTP/2.0" 200 1"#).time_us, Some(TIME_US));
    assert_eq!(parsed(r#"::1 - - [17/May/2015:02:35:03 -0730] "GET / HTTP/3" 200 1"#).time_us, Some(TIME_US));
}

#[test]
fn syslog_prefixes_are_skipped() {
    let rest = r#"192.0.2.9 - - [17/May/2015:10:05:03 +0000] "GET / HTTP/1.1" 200 5 "-" "curl""#;
    for prefix in [
        "<190>May 17 10:05:03 web nginx: ",
        "May 17 10:05:03 web nginx[812]: ",
        "2015-05-17T10:05:03.123Z web httpd: ",
        "<134>1 2015-05-17T10:05:03Z web nginx 812 - - ",
        "<134>1 2015-05-17T10:05:03Z web nginx 812 access [meta@1 zone=\"eu west\"] ",
        "<134>1 2015-05-17T10:05:03Z web nginx - - [a@1 x=\"say \\\"] \\\" y\" z=\"\"][b@1 q=\"1 2 3\"] \u{feff}",
    ] {
        let text = format!("{prefix}{rest}");
        let line = parsed(&text);
        assert_eq!((line.address, line.virtual_host, line.user_agent), (&b"192.0.2.9"[..], &b""[..], &b"curl"[..]), "{prefix}");
        assert_eq!(line.time_us, Some(TIME_US));
    }
}

#[test]
fn a_leading_virtual_host_is_the_host() {
    let line = parsed(r#"shop.example.com:8443 192.0.2.9 - - [17/May/2015:10:05:03 +0000] "GET / HTTP/1.1" 200 5"#);
    assert_eq!((line.virtual_host, line.server_port, line.address), (&b"shop.example.com"[..], 8443, &b"192.0.2.9"[..]));
    let line = parsed(r#"[::1]:80 ::1 - - [17/May/2015:10:05:03 +0000] "GET / HTTP/1.1" 200 5"#);
    assert_eq!((line.virtual_host, line.server_port, line.address), (&b"[::1]"[..], 80, &b"::1"[..]));
}

#[test]
fn an_address_that_is_none_stands_for_itself() {
    let line = parsed(r#"crawler.example.net - - [17/May/2015:10:05:03 +0000] "GET / HTTP/1.1" 200 5"#);
    assert_eq!((line.address, line.virtual_host), (&b"crawler.example.net"[..], &b""[..]));
    let IpAddr::V6(stand_in) = client_ip(line.address) else { panic!("stand-ins are IPv6") };
    assert_eq!(stand_in.octets()[0], 0xfe);
    assert!(stand_in.octets()[1] < 0x80);
    assert_ne!(client_ip(b"crawler.example.net"), client_ip(b"other.example.net"));
}

#[test]
fn an_empty_user_is_none() {
    for user in ["-", "\"\""] {
        let line = format!(r#"192.0.2.9 - {user} [17/May/2015:10:05:03 +0000] "GET / HTTP/1.1" 401 5"#);
        assert_eq!((parsed(&line).user, parsed(&line).request([0; 16], 0).flags), (&b""[..], 0), "{user}");
    }
}

#[test]
fn users_may_hold_spaces() {
    let line = parsed(r#"192.0.2.9 - John Smith [17/May/2015:10:05:03 +0000] "GET / HTTP/1.1" 401 5"#);
    assert_eq!((line.address, line.user), (&b"192.0.2.9"[..], &b"John Smith"[..]));
}

#[test]
fn what_is_no_request_is_the_path() {
    for (request_line, http_version) in [("\\x16\\x03\\x01", 0), ("-", 0), ("", 0), ("get me", 0), ("GET / FTP/1", 0)] {
        let text = format!(r#"192.0.2.9 - - [17/May/2015:10:05:03 +0000] "{request_line}" 400 5 "-" "-""#);
        let line = parsed(&text);
        assert_eq!((line.method, line.path), (&b""[..], request_line.as_bytes()));
        assert_eq!((line.http_version, line.status), (http_version, 400));
    }
    let line = parsed(r#"192.0.2.9 - - [17/May/2015:10:05:03 +0000] "GET /a b?c d HTTP/1.1" 200 5"#);
    assert_eq!((line.path, line.query), (&b"/a b"[..], &b"c d"[..]));
    assert_eq!(parsed(r#"192.0.2.9 - - [17/May/2015:10:05:03 +0000] "GET /" 200 5"#).http_version, 9);
}

#[test]
fn quotes_escaped_or_not() {
    let line = parsed(r#"192.0.2.9 - - [17/May/2015:10:05:03 +0000] "GET /\"x\x22 HTTP/1.1" 200 5 "-" "a \"b\" c""#);
    assert_eq!((line.path, line.user_agent), (&br#"/\"x\x22"#[..], &br#"a \"b\" c"#[..]));
    let line = parsed(r#"192.0.2.9 - - [17/May/2015:10:05:03 +0000] "GET /?q="x" HTTP/1.1" 200 5 "-" "b""#);
    assert_eq!((line.query, line.status, line.user_agent), (&br#"q="x""#[..], 200, &b"b"[..]));
}

#[test]
fn unknown_methods_travel_as_an_extension() {
    let line = parsed(r#"192.0.2.9 - - [17/May/2015:10:05:03 +0000] "BREW /pot HTTP/1.1" 418 5"#);
    let request = line.request([0; 16], 0);
    assert_eq!(request.method, 0);
    assert_eq!(request.extensions, [Extension { tag: TAG_METHOD, value: b"BREW" }]);
}

#[test]
fn structure_decides() {
    let line = parsed(r#"192.0.2.9 - - [yesterday] "GET / HTTP/1.1" 200 5"#);
    assert_eq!((line.time_us, line.request([0; 16], 42).event_us), (None, 42));
    assert_eq!(parsed("192.0.2.9 - - [17/May/2015:10:05:03 +0000]").status, 0);
    assert_eq!(parsed(r#"192.0.2.9 - - [17/May/2015:10:05:03 +0000] "GET /cut"#).path, b"/cut");
    for nothing in ["", "hello", "{\"json\": [1]}", "[17/May/2015:10:05:03 +0000] \"GET / HTTP/1.1\" 200 5", "# comment"] {
        assert_eq!(parse_line(nothing.as_bytes()), None, "{nothing}");
    }
}

#[test]
fn a_time_that_is_cut_is_none() {
    let whole = b"2026-01-01T00:00:00Z";
    for length in 0..whole.len() {
        assert_eq!(parse_time(&whole[..length]), None, "{length} bytes");
        let text =
            [&b"["[..], &whole[..length], b"] 192.0.2.9 - - [17/May/2015:10:05:03 +0000] \"GET / HTTP/1.1\" 200 5"].concat();
        assert_eq!(parse_line(&text).map(|line| line.time_us), Some(Some(TIME_US)), "{length} bytes");
    }
    assert_eq!(parse_time(whole), Some(1_767_225_600_000_000));
    for whole in ["2026-01-01T00:00:00.5+01:00", "17/May/2015:10:05:03 +0000"] {
        for at in 0..=whole.len() {
            // A letter of several bytes at each place, and in place of as many bytes.
            let longer = [&whole[..at], "\u{1f600}", &whole[at..]].concat();
            let same = [&whole[..at], "\u{1f600}", whole.get(at + 4..).unwrap_or_default()].concat();
            for text in [longer, same] {
                for length in 0..=text.len() {
                    assert_eq!(parse_time(&text.as_bytes()[..length]).filter(|_| length > at), None, "{text}, {length} bytes");
                }
            }
        }
    }
}

#[test]
fn a_time_of_the_visitors_own_hides_no_request() {
    let rest = r#"[17/May/2015:10:05:03 +0000] "GET /etc/passwd HTTP/1.1" 200 5 "-" "sqlmap/1.8""#;
    let brackets = "[".repeat(40);
    for head in [
        "[2026-01-01t00:00:00z] 192.0.2.9 - -",
        "192.0.2.9 - [2026-01-01t00:00:00z]",
        "192.0.2.9 - a[2026-01-01t00:00:00z]b",
        "192.0.2.9 - [17/May/2025:10:05:03 +0000] [2026-01-01t00:00:00z]",
        &format!("192.0.2.9 - {brackets}"),
        r"[2026-01-01t00:00:00z] \x22GET 192.0.2.9 - -",
    ] {
        let text = format!("{head} {rest}");
        let line = parsed(&text);
        assert_eq!((line.method, line.path, line.time_us), (&b"GET"[..], &b"/etc/passwd"[..], Some(TIME_US)), "{head}");
        assert_eq!((line.status, line.user_agent), (200, &b"sqlmap/1.8"[..]), "{head}");
    }
    // What comes behind the time is the visitor's, too.
    let line = parsed(r#"192.0.2.9 - - [17/May/2015:10:05:03 +0000] "GET /[2026-01-01t00:00:00z] "a" HTTP/1.1" 200 5"#);
    assert_eq!((line.address, line.time_us), (&b"192.0.2.9"[..], Some(TIME_US)));
}

#[test]
fn every_line_of_a_real_log() {
    let Some(folder) = std::env::var_os("POSTANALYTICS_DATA") else {
        eprintln!("SKIPPED: set POSTANALYTICS_DATA to a folder with access-elastic-5000.log to run this test");
        return;
    };
    let file = std::path::Path::new(&folder).join("access-elastic-5000.log");
    let bytes = std::fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let (mut lines, mut requests) = (0, 0);
    for text in bytes.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
        let line = parse_line(text).unwrap_or_else(|| panic!("no structure in: {}", String::from_utf8_lossy(text)));
        lines += 1;
        requests += usize::from(!line.method.is_empty());
        assert!(line.time_us.is_some() && line.status >= 200 && parse_ip(line.address).is_some());
        // Written back from its fields, the line is the line again: nothing was lost or moved.
        let target = if line.query.is_empty() { line.path.to_vec() } else { [line.path, b"?", line.query].concat() };
        let request = [b"\"", line.method, b" ", &target, b" HTTP/"].concat();
        assert!(text.windows(request.len()).any(|window| window == request));
        assert!(line.user_agent.is_empty() || text.windows(line.user_agent.len()).any(|window| window == line.user_agent));
    }
    assert_eq!((lines, requests), (5000, 5000));
}

#[test]
fn addresses_are_read_as_the_standard_library_does() {
    for text in [
        "192.0.2.9",
        "0.0.0.0",
        "255.255.255.255",
        "256.0.0.1",
        "01.2.3.4",
        "1.2.3",
        "1.2.3.4.5",
        "1..2.3",
        "1.2.3.",
        ".1.2.3",
        "1.2.3.0000",
        "1.2.3.4 ",
        "",
        "::1",
        "::ffff:1.2.3.4",
        "+1.2.3.4",
        "a.b.c.d",
    ] {
        assert_eq!(parse_ip(text.as_bytes()), text.parse().ok(), "{text}");
    }
    assert_eq!(parse_ip(b"1.2.3.\xff"), None);
}

proptest! {
    #[test]
    fn addresses_of_any_digits_are_as_well(text in "[0-9]{0,4}(\\.[0-9]{1,4}){0,4}") {
        prop_assert_eq!(parse_ip(text.as_bytes()), text.parse().ok());
    }

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        if let Some(line) = parse_line(&bytes) {
            let _ = line.request([0; 16], 0);
        }
    }

    #[test]
    fn no_damage_to_a_good_line_panics(cuts in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12), end in any::<prop::sample::Index>()) {
        let mut bytes = br#"<190>May 17 10:05:03 web nginx[8]: v:80 192.0.2.9 - u [17/May/2015:10:05:03 +0000] "GET /a?b HTTP/1.1" 200 5 "r" "u""#.to_vec();
        for (at, byte) in cuts {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(line) = parse_line(&bytes[..end.index(bytes.len())]) {
            let _ = line.request([0; 16], 0);
        }
    }
}

#[test]
fn carriage_returns_are_no_fields_before_the_time() {
    let line = parsed("\r \r a.example.com\r \r [17/May/2015:10:05:03 +0000] \"GET / HTTP/1.1\" 200 1");
    assert_eq!((line.virtual_host, line.address), (&b""[..], &b"a.example.com\r"[..]));
}
