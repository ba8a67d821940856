//! Keyed routing: which shard keeps what is known about a source.
//!
//! Everything of one source goes to one shard, so that shard counts it exactly and without locks. The seed comes with
//! Welcome; without it nobody can aim addresses at one shard.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Who sent a request, as far as routing and statistics tell sources apart: the IPv4 address, or the /64 of an IPv6 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Source(u64);

/// IPv4 sources live below an IPv6 prefix that no unicast address has (ffff:ffff::/32 is multicast space).
const IPV4_PREFIX: u64 = 0xffff_ffff_0000_0000;

impl Source {
    /// The source of an address in its wire form: 16 bytes, IPv4 as `::ffff:a.b.c.d`.
    #[inline]
    pub const fn of_bytes(address: &[u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *address;
        let high = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
        let low = u64::from_be_bytes([i, j, k, l, m, n, o, p]);
        if high == 0 && low >> 32 == 0xffff { Self(IPV4_PREFIX | (low & 0xffff_ffff)) } else { Self(high) }
    }

    /// The source of an address.
    pub fn of(address: IpAddr) -> Self {
        Self::of_bytes(&address_bytes(address))
    }

    /// The source with this [`Self::key`].
    pub const fn of_key(key: u64) -> Self {
        Self(key)
    }

    /// The number that routing and state tables use.
    pub const fn key(self) -> u64 {
        self.0
    }

    /// The address (IPv4), or the first address of the /64 (IPv6).
    pub fn address(self) -> IpAddr {
        if self.0 & IPV4_PREFIX == IPV4_PREFIX {
            IpAddr::V4(Ipv4Addr::from((self.0 & 0xffff_ffff) as u32))
        } else {
            IpAddr::V6(Ipv6Addr::from(u128::from(self.0) << 64))
        }
    }
}

/// The wire form of an address: 16 bytes, IPv4 as `::ffff:a.b.c.d`.
pub fn address_bytes(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// The address of a wire form; IPv4-mapped addresses come back as IPv4.
pub fn address_of_bytes(bytes: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(bytes).to_canonical()
}

/// Seeded 64-bit hash of a source: two rounds of the splitmix64 finaliser (Steele, Lea, Flood 2014, variant 13 of Stafford),
/// with the seed going in before each.
#[inline]
pub const fn hash64(source: Source, seed: u64) -> u64 {
    mix(mix(source.0 ^ seed).wrapping_add(seed))
}

/// The shard of a source: the hash scaled to `shard_count` by the high half of the product, so every shard gets an equal share.
///
/// `shard_count` must be at least 1.
#[inline]
pub const fn shard_of(source: Source, routing_seed: u64, shard_count: u32) -> u32 {
    ((hash64(source, routing_seed) as u128 * shard_count as u128) >> 64) as u32
}

/// The seed of a server for [`server_weight`]. It comes from the server's id alone, so every node has the same, and it has
/// nothing to do with any routing seed: which server a source goes to says nothing of its shard there.
pub const fn server_seed(server_id: &[u8; 16]) -> u64 {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *server_id;
    let high = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
    let low = u64::from_be_bytes([i, j, k, l, m, n, o, p]);
    mix(mix(high ^ SERVER_SALT).wrapping_add(low))
}

/// The bytes of `rendezvs`.
const SERVER_SALT: u64 = u64::from_be_bytes(*b"rendezvs");

/// Rendezvous hashing: of several servers a source goes to the one that has the greatest weight for it; of equal ones, to
/// that with the greatest id. A server that goes or comes moves its own sources and no others.
#[inline]
pub const fn server_weight(source: Source, server_seed: u64) -> u64 {
    hash64(source, server_seed)
}

#[inline]
const fn mix(mut x: u64) -> u64 {
    x ^= x >> 30;
    x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x ^= x >> 27;
    x = x.wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Source {
        Source::of(text.parse().expect("an address"))
    }

    /// Golden vectors: also in PROTOCOL.md. They may never change within protocol version 1.
    #[test]
    fn golden_vectors() {
        for (address, seed, hash, of_4, of_7) in GOLDEN {
            let source = source(address);
            assert_eq!(hash64(source, seed), hash, "{address} {seed:#x}: {:#018x}", hash64(source, seed));
            assert_eq!((shard_of(source, seed, 4), shard_of(source, seed, 7)), (of_4, of_7), "{address}");
            assert_eq!(shard_of(source, seed, 1), 0);
        }
    }

    const GOLDEN: [(&str, u64, u64, u32, u32); 6] = include!("../testdata/routing.golden");

    #[test]
    fn sources_keep_ipv6_to_64_bits_and_ipv4_whole() {
        assert_eq!(source("2001:db8:1:2:3:4:5:6"), source("2001:db8:1:2::1"));
        assert_ne!(source("2001:db8:1:2::1"), source("2001:db8:1:3::1"));
        assert_ne!(source("192.0.2.1"), source("192.0.2.2"));
        assert_eq!(source("::ffff:192.0.2.1"), source("192.0.2.1"));
        assert_eq!(source("192.0.2.1").address().to_string(), "192.0.2.1");
        assert_eq!(source("2001:db8:1:2:3::1").address().to_string(), "2001:db8:1:2::");
    }

    /// Golden vectors: also in PROTOCOL.md.
    #[test]
    fn servers_of_sources() {
        let ids: [[u8; 16]; 3] = [[0xb0; 16], std::array::from_fn(|n| n as u8), [0; 16]];
        let seeds = ids.map(|id| server_seed(&id));
        assert_eq!(seeds, SERVER_SEEDS, "{seeds:#x?}");
        for (address, weights) in SERVER_WEIGHTS {
            let found = seeds.map(|seed| server_weight(source(address), seed));
            assert_eq!(found, weights, "{address}: {found:#x?}");
        }
    }

    const SERVER_SEEDS: [u64; 3] = [0xa471_eba5_b8d1_d91e, 0x4baa_1295_7b1f_860c, 0x8cf2_2ecd_1d28_bdcf];
    const SERVER_WEIGHTS: [(&str, [u64; 3]); 2] = [
        ("192.0.2.1", [0x3ea0_e220_e809_1c81, 0x7430_c44d_e2b2_f211, 0x8bb4_dd2b_8af2_e763]),
        ("2001:db8:1:2::", [0x46bd_4fca_2b38_e9a5, 0xdf23_70b7_7b9e_a9cc, 0x7751_1b7a_a015_8849]),
    ];

    #[test]
    fn a_server_that_goes_moves_its_own_sources_only() {
        let seeds: Vec<u64> = (0..4u8).map(|n| server_seed(&[n; 16])).collect();
        let best = |source, among: &[u64]| among.iter().copied().max_by_key(|seed| server_weight(source, *seed));
        let (mut counts, mut shards) = ([0u32; 4], [0u32; 4]);
        for n in 0..40_000u32 {
            let source = Source::of(IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + n)));
            let of_all = best(source, &seeds);
            let without = best(source, &seeds[1..]);
            assert!(of_all == Some(seeds[0]) || of_all == without);
            let server = seeds.iter().position(|seed| Some(*seed) == of_all).expect("one of them");
            counts[server] += 1;
            shards[shard_of(source, 7, 4) as usize] += u32::from(server == 0);
        }
        assert!(counts.iter().all(|count| (9_500..10_500).contains(count)), "{counts:?}");
        assert!(shards.iter().all(|count| (2_300..2_700).contains(count)), "one server's sources are spread evenly: {shards:?}");
    }

    #[test]
    fn shares_are_even() {
        let mut counts = [0u32; 8];
        for n in 0..80_000u32 {
            counts[shard_of(Source::of(IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + n))), 7, 8) as usize] += 1;
        }
        assert!(counts.iter().all(|count| (9_500..10_500).contains(count)), "{counts:?}");
    }
}
