//! Values in a query, read and bounded: another form is an error that says what there is.

use super::request::Request;
use postanalytics_protocol::Source;
use std::net::IpAddr;

/// Rows of an answer unless asked for otherwise.
pub(super) const LIMIT_DEFAULT: usize = 100;
/// Most rows of an answer.
pub(super) const LIMIT_MAX: usize = 1000;
/// Smallest bare number that is taken as a time: a smaller one was meant as something else, such as a duration.
const UNIX_SECONDS_MIN: f64 = 1e9;

/// The values of one request, at one instant.
pub(super) struct Parameters<'a> {
    request: &'a Request,
    now_us: u64,
}

impl<'a> Parameters<'a> {
    /// Another name than those known is an error: misspelt, it would find more than was asked for.
    pub(super) fn of(request: &'a Request, known: &[&str], now_us: u64) -> Result<Self, String> {
        match request.query.iter().find(|(name, _)| !known.contains(&name.as_str())) {
            Some((name, _)) if known.is_empty() => Err(format!("{name:?} is no parameter of this page: it takes none")),
            Some((name, _)) => Err(format!("{name:?} is no parameter of this page: there are {}", known.join(", "))),
            None => Ok(Self { request, now_us }),
        }
    }

    /// Whether a name is given with nothing behind it.
    pub(super) fn is_blank(&self, name: &str) -> bool {
        self.request.query.iter().any(|(key, value)| key == name && value.is_empty())
    }

    pub(super) fn text(&self, name: &str) -> Option<&'a str> {
        self.request.query_value(name)
    }

    pub(super) fn source(&self) -> Result<Option<Source>, String> {
        self.text("source").map(parse_source).transpose()
    }

    pub(super) fn application(&self) -> Result<Option<i32>, String> {
        let read = |text: &str| {
            text.parse().map_err(|_| format!("application {text:?} must be a whole number; -1 is the default application"))
        };
        self.text("application").map(read).transpose()
    }

    pub(super) fn limit(&self) -> Result<usize, String> {
        let read = |text: &str| match text.parse() {
            Ok(limit @ 1..=LIMIT_MAX) => Ok(limit),
            _ => Err(format!("limit {text:?} must be 1 to {LIMIT_MAX}")),
        };
        self.text("limit").map_or(Ok(LIMIT_DEFAULT), read)
    }

    /// A point in time, such as `since`.
    pub(super) fn time_us(&self, name: &str) -> Result<Option<u64>, String> {
        self.text(name).map(|text| parse_time(name, text, self.now_us)).transpose()
    }
}

/// An address, or an IPv6 /64 as alerts show it.
pub(super) fn parse_source(text: &str) -> Result<Source, String> {
    let wrong = || format!("source {text:?} is no IP address");
    let (address, is_network) = text.strip_suffix("/64").map_or((text, false), |address| (address, true));
    match address.parse::<IpAddr>().map_err(|_| wrong())?.to_canonical() {
        IpAddr::V4(_) if is_network => Err(wrong()),
        address => Ok(Source::of(address)),
    }
}

/// A point in time, Unix µs: RFC 3339, Unix seconds, or how long ago (`15m`).
fn parse_time(name: &str, text: &str, now_us: u64) -> Result<u64, String> {
    let wrong =
        || Err(format!("{name} {text:?} must be a time such as 2026-01-31T12:00:00Z, Unix seconds, or a duration such as 15m"));
    if let Ok(seconds) = text.parse::<f64>()
        && text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
    {
        return if seconds < UNIX_SECONDS_MIN { wrong() } else { Ok((seconds * 1e6) as u64) };
    }
    if let Ok(ago) = crate::config::values::duration(text) {
        return Ok(now_us.saturating_sub(u64::try_from(ago.as_micros()).unwrap_or(u64::MAX)));
    }
    match text.parse::<jiff::Timestamp>() {
        Ok(timestamp) => Ok(u64::try_from(timestamp.as_microsecond()).unwrap_or(0)),
        Err(_) => wrong(),
    }
}

/// 16 hexadecimal digits: a session, an attack.
pub(super) fn parse_u64(text: &str) -> Option<u64> {
    let is_hexadecimal = text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_hexadecimal.then(|| u64::from_str_radix(text, 16).ok()).flatten()
}

/// 32 hexadecimal digits: a request.
pub(super) fn parse_id(text: &str) -> Option<[u8; 16]> {
    let is_hexadecimal = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_hexadecimal.then(|| u128::from_str_radix(text, 16).ok().map(u128::to_be_bytes)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_take_three_forms() {
        let now_us = 2_000_000_000_000_000;
        let since = |text| parse_time("since", text, now_us);
        assert_eq!(since("1700000000.5"), Ok(1_700_000_000_500_000));
        assert_eq!(since("15m"), Ok(now_us - 900_000_000));
        assert_eq!(since("2023-11-14T22:13:20Z"), Ok(1_700_000_000_000_000));
        assert_eq!(since("2023-11-14T23:13:20+01:00"), Ok(1_700_000_000_000_000));
        assert!(since("900").is_err_and(|text| text.starts_with("since \"900\" must be a time")));
    }

    #[test]
    fn ids_are_hexadecimal() {
        assert_eq!(parse_id("000102030405060708090a0b0c0d0e0f").expect("good")[15], 15);
        assert_eq!(parse_id("+0102030405060708090a0b0c0d0e0f0"), None);
        assert_eq!(parse_id("00"), None);
        assert_eq!((parse_u64("00000000000000fF"), parse_u64("+0000000000000ff"), parse_u64("ff")), (Some(255), None, None));
    }

    #[test]
    fn sources_are_addresses_or_networks_of_ipv6() {
        let address = |text| parse_source(text).map(|source| source.address().to_string());
        assert_eq!(address("::ffff:192.0.2.7"), Ok("192.0.2.7".to_owned()));
        assert_eq!(
            (address("2001:db8::1"), address("2001:db8::/64")),
            (Ok("2001:db8::".to_owned()), Ok("2001:db8::".to_owned()))
        );
        assert!(address("192.0.2.7/64").is_err() && address("2001:db8::/48").is_err() && address("a").is_err());
    }
}
