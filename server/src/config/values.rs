//! Parsers of single values. Pure; every error says what was found and how to write it.

use super::ConfigError;
use ipnet::{IpNet, Ipv4Net};
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::ops::RangeInclusive;
use std::time::Duration;

/// Bytes of a gigabyte as operators of slab arenas count: 2³⁰.
pub const GIGABYTE: u64 = 1 << 30;

/// A memory size in gigabytes of 2³⁰ bytes: an integer or a decimal number with a dot.
pub fn gigabytes(text: &str) -> Result<u64, String> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let number: f64 = match text.parse() {
        Ok(number) if plain => number,
        _ => return Err("it must be a number of gigabytes such as 1.5 or 2: digits and a dot, no comma, no unit".to_owned()),
    };
    let bytes = number * GIGABYTE as f64;
    if bytes < 1.0 || bytes >= u64::MAX as f64 {
        return Err("it must be more than 0 gigabytes and fit into the address space".to_owned());
    }
    Ok(bytes as u64)
}

/// A duration with its unit: `250ms`, `10s`, `15m`, `1h`, `2d`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "it must be a whole number with a unit: ms, s, m, h or d, such as 10s".to_owned();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let milliseconds = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(wrong()),
    };
    number.checked_mul(milliseconds).map(Duration::from_millis).ok_or_else(wrong)
}

/// A duration within bounds, both taken.
pub fn duration_of_seconds(text: &str, bounds: RangeInclusive<u64>) -> Result<Duration, String> {
    let found = duration(text)?;
    if found < Duration::from_secs(*bounds.start()) || found > Duration::from_secs(*bounds.end()) {
        return Err(format!("it must be {} s to {} s", bounds.start(), bounds.end()));
    }
    Ok(found)
}

/// A count of at least 1.
pub fn count<T: TryFrom<u64>>(text: &str) -> Result<T, String> {
    let number: u64 = text.parse().map_err(|_| "it must be a whole number".to_owned())?;
    if number == 0 {
        return Err("it must be at least 1".to_owned());
    }
    T::try_from(number).map_err(|_| "it is too large".to_owned())
}

/// A yes or a no.
pub fn boolean(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "yes" | "on" => Ok(true),
        "0" | "false" | "no" | "off" => Ok(false),
        _ => Err("it must be true or false".to_owned()),
    }
}

/// An address to bind: a host and a port. Not resolved yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// A name or an IP address, IPv6 without brackets.
    pub host: String,
    /// 0: any free port.
    pub port: u16,
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

impl Address {
    /// The socket address, of what the host resolves to.
    pub fn resolve(&self) -> Result<Resolved, ConfigError> {
        let resolved = (self.host.as_str(), self.port).to_socket_addrs().and_then(|found| {
            choose(found).ok_or_else(|| std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address"))
        });
        resolved.map_err(|error| {
            ConfigError::start(format!(
                "bad host {:?} in the address to listen on ({self}): {error}; give an IP address of this machine, such as \
                 127.0.0.1, 0.0.0.0 or [::], or a name that resolves",
                self.host
            ))
        })
    }
}

/// What a host resolves to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// The one to listen on.
    pub address: SocketAddr,
    /// What else the name stands for, where nothing listens.
    pub others: Vec<SocketAddr>,
}

/// The first IPv4 address, for nodes are mostly given those; without any the first. `None`: there is no address.
fn choose(found: impl Iterator<Item = SocketAddr>) -> Option<Resolved> {
    let mut others: Vec<SocketAddr> = Vec::new();
    for address in found {
        // /etc/hosts may say a thing twice.
        if !others.contains(&address) {
            others.push(address);
        }
    }
    let at = others.iter().position(SocketAddr::is_ipv4).unwrap_or(0);
    (!others.is_empty()).then(|| Resolved { address: others.remove(at), others })
}

/// `host:port`, `[ipv6]:port`.
pub fn address(text: &str) -> Result<Address, String> {
    let wrong = || "it must be HOST:PORT, such as 127.0.0.1:3313 or [::1]:3313".to_owned();
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let host = match bare {
        // Else what is shown of it would not be read again.
        Some(inside) if !inside.contains(':') || inside.contains(['[', ']']) => return Err(wrong()),
        Some(inside) => inside,
        None if host.contains([':', '[', ']']) => return Err(wrong()),
        None => host,
    };
    if host.is_empty() || host.contains(char::is_whitespace) {
        return Err(wrong());
    }
    Ok(Address { host: host.to_owned(), port: port.parse().map_err(|_| wrong())? })
}

/// An address, or `none`.
pub fn address_or_none(text: &str) -> Result<Option<Address>, String> {
    if text == "none" { Ok(None) } else { address(text).map(Some).map_err(|error| format!("{error}, or none")) }
}

/// A network, or a single address.
pub fn network(text: &str) -> Result<IpNet, String> {
    let single = || text.parse::<IpAddr>().map(IpNet::from);
    let found = text.parse::<IpNet>().or_else(|_| single()).map_err(|_| {
        format!("{text:?} is no network: write an address such as 10.0.0.7, or a network such as 10.0.0.0/8 or 2001:db8::/32")
    })?;
    Ok(canonical(found.trunc()))
}

/// `::ffff:10.0.0.0/104` is `10.0.0.0/8`, for peers are compared as what they stand for.
fn canonical(network: IpNet) -> IpNet {
    let IpNet::V6(v6) = network else { return network };
    let v4 = v6.addr().to_ipv4_mapped().zip(v6.prefix_len().checked_sub(96));
    v4.and_then(|(address, bits)| Ipv4Net::new(address, bits).ok()).map_or(network, IpNet::V4)
}

/// Networks between commas or spaces.
pub fn networks(text: &str) -> Result<Vec<IpNet>, String> {
    text.split([',', ' ', '\t']).filter(|part| !part.is_empty()).map(network).collect()
}

/// The group of `WALLARM_LABELS`: `group=NAME`, beside other labels between commas.
pub fn group_of_labels(text: &str) -> Option<&str> {
    text.split(',').find_map(|label| label.trim().strip_prefix("group=")).filter(|group| !group.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn gigabytes_are_integers_or_floats_with_a_dot() {
        assert_eq!(gigabytes("1"), Ok(GIGABYTE));
        assert_eq!(gigabytes("1.0"), Ok(GIGABYTE));
        assert_eq!(gigabytes("0.5"), Ok(GIGABYTE / 2));
        assert_eq!(gigabytes(".25"), Ok(GIGABYTE / 4));
        for wrong in ["", "1,5", "1GB", "1e3", "-1", "0", "0.0", "inf", "nan", "1.2.3", ".", " 1"] {
            assert!(gigabytes(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("15m"), Ok(Duration::from_secs(900)));
        for wrong in ["", "5", "s", "5 s", "-5s", "1.5s", "99999999999999999999s", "18446744073709551615d"] {
            assert!(duration(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(duration_of_seconds("1m", 1..=60), Ok(Duration::from_secs(60)));
        assert_eq!(duration_of_seconds("0s", 0..=600), Ok(Duration::ZERO));
        for wrong in ["999ms", "61s", "60001ms", "1h"] {
            assert!(duration_of_seconds(wrong, 1..=60).expect_err(wrong).contains("1 s to 60 s"), "{wrong:?}");
        }
    }

    #[test]
    fn addresses_have_host_and_port() {
        assert_eq!(address("127.0.0.1:0").expect("parses").to_string(), "127.0.0.1:0");
        assert_eq!(address("[::1]:3313").expect("parses").host, "::1");
        assert_eq!(address("[::1]:3313").expect("parses").to_string(), "[::1]:3313");
        assert_eq!(address_or_none("none"), Ok(None));
        for wrong in ["", "127.0.0.1", ":9001", "::1:3313", "a:99999", "a b:1", "[::1]", "a:", "[a]:1", "[a[::1]:1"] {
            assert!(address(wrong).is_err(), "{wrong:?}");
        }
        assert!(Address { host: "no such host".to_owned(), port: 1 }.resolve().is_err());
    }

    #[test]
    fn of_a_name_with_several_addresses_an_ipv4_one_is_taken() {
        let chosen = |texts: &[&str]| {
            let parsed = |text: &&str| text.parse::<SocketAddr>().expect("an address");
            let resolved = choose(texts.iter().map(parsed))?;
            Some((resolved.address.to_string(), resolved.others.iter().map(ToString::to_string).collect::<Vec<_>>()))
        };
        let expected = |address: &str, others: &[&str]| {
            Some((address.to_owned(), others.iter().map(|other| (*other).to_owned()).collect::<Vec<_>>()))
        };
        assert_eq!(chosen(&["[::1]:3313", "127.0.0.1:3313"]), expected("127.0.0.1:3313", &["[::1]:3313"]));
        assert_eq!(chosen(&["127.0.0.1:3313", "[::1]:3313"]), expected("127.0.0.1:3313", &["[::1]:3313"]));
        assert_eq!(chosen(&["[::1]:1", "10.0.0.1:1", "10.0.0.2:1"]), expected("10.0.0.1:1", &["[::1]:1", "10.0.0.2:1"]));
        assert_eq!(chosen(&["[::1]:1", "[::2]:1"]), expected("[::1]:1", &["[::2]:1"]));
        assert_eq!(chosen(&["127.0.0.1:1", "127.0.0.1:1"]), expected("127.0.0.1:1", &[]));
        assert_eq!(chosen(&[]), None);
    }

    #[test]
    fn networks_are_lists() {
        let found = networks("10.0.0.0/8, 192.0.2.7 2001:db8::/32").expect("parses");
        assert_eq!(found.len(), 3);
        assert_eq!(networks("10.1.2.3/8").expect("parses")[0].to_string(), "10.0.0.0/8");
        assert!(networks("10.0.0.0/33").is_err());
        for (mapped, network) in
            [("::ffff:10.0.0.0/104", "10.0.0.0/8"), ("::ffff:192.0.2.7", "192.0.2.7/32"), ("::ffff:0:0/96", "0.0.0.0/0")]
        {
            assert_eq!(networks(mapped).expect("parses")[0].to_string(), network);
        }
        assert_eq!(networks("::/0").expect("parses")[0].to_string(), "::/0");
        assert_eq!(networks("  "), Ok(Vec::new()));
    }

    #[test]
    fn labels_name_a_group() {
        assert_eq!(group_of_labels("group=edge"), Some("edge"));
        assert_eq!(group_of_labels("a=b, group=edge"), Some("edge"));
        assert_eq!(group_of_labels("group="), None);
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC*") {
            let _ = (gigabytes(&text), duration(&text), count::<u16>(&text), boolean(&text));
            let _ = (address(&text), networks(&text), group_of_labels(&text));
        }

        #[test]
        fn addresses_round_trip(v6: u128, port: u16) {
            let found = Address { host: std::net::Ipv6Addr::from(v6).to_string(), port };
            prop_assert_eq!(address(&found.to_string()), Ok(found));
        }
    }
}
