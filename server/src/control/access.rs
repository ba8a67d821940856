//! Who may connect, by address. Pure: an address comes in, a decision goes out; the caller logs and counts.

use crate::config::Access;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::collections::HashSet;
use std::net::IpAddr;

/// Refused networks that are remembered, so that each is logged once.
const NETWORKS_REMEMBERED_MAX: usize = 1024;

/// Decides, and remembers which refused networks were told of.
#[derive(Debug)]
pub(super) struct Gate {
    access: Access,
    told: HashSet<IpNet>,
}

/// What becomes of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// Let in.
    LetIn,
    /// Refused; log it, for this network was not told of before.
    RefuseAndTell,
    /// Refused, and the memory of told networks is full with this one: say that no more will be told of.
    RefuseAndTellLast,
    /// Refused, told of before.
    Refuse,
}

impl Gate {
    pub(super) fn new(access: Access) -> Self {
        Self { access, told: HashSet::new() }
    }

    /// Loopback is always let in; others if they are listed, or all if the server is insecure on purpose.
    pub(super) fn decide(&mut self, peer: IpAddr) -> Decision {
        let peer = peer.to_canonical();
        let listed = self.access.networks.iter().any(|network| network.contains(&peer));
        if self.access.insecure || peer.is_loopback() || listed {
            return Decision::LetIn;
        }
        if self.told.len() >= NETWORKS_REMEMBERED_MAX || !self.told.insert(network_of(peer)) {
            return Decision::Refuse;
        }
        if self.told.len() == NETWORKS_REMEMBERED_MAX { Decision::RefuseAndTellLast } else { Decision::RefuseAndTell }
    }
}

/// The network by which refused peers are told apart: /24 and /64, so that one neighbour cannot fill the log.
fn network_of(peer: IpAddr) -> IpNet {
    match peer {
        IpAddr::V4(v4) => IpNet::V4(Ipv4Net::new_assert(v4, 24).trunc()),
        IpAddr::V6(v6) => IpNet::V6(Ipv6Net::new_assert(v6, 64).trunc()),
    }
}

/// The exact words that let this peer in.
pub(super) fn line_to_add(peer: IpAddr) -> String {
    let network = IpNet::from(peer.to_canonical());
    format!("--allow {network} (or ALLOW={network} in the env file)")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::values::networks;

    fn gate(list: &str, insecure: bool) -> Gate {
        Gate::new(Access { networks: networks(list).expect("networks"), insecure })
    }

    fn decide(gate: &mut Gate, peer: &str) -> Decision {
        gate.decide(peer.parse().expect("an address"))
    }

    #[test]
    fn without_a_list_only_loopback_is_let_in() {
        let mut gate = gate("", false);
        for peer in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
            assert_eq!(decide(&mut gate, peer), Decision::LetIn, "{peer}");
        }
        assert_eq!(decide(&mut gate, "192.0.2.1"), Decision::RefuseAndTell);
        assert_eq!(decide(&mut gate, "192.0.2.2"), Decision::Refuse, "same network, told of before");
        assert_eq!(decide(&mut gate, "2001:db8::1"), Decision::RefuseAndTell);
        assert_eq!(decide(&mut gate, "2001:db8::2"), Decision::Refuse);
        assert_eq!(
            line_to_add("::ffff:192.0.2.1".parse().expect("an address")),
            "--allow 192.0.2.1/32 (or ALLOW=192.0.2.1/32 in the env file)"
        );
    }

    #[test]
    fn lists_and_insecure() {
        let mut listed = gate("10.0.0.0/8 2001:db8::/32", false);
        assert_eq!(decide(&mut listed, "10.1.2.3"), Decision::LetIn);
        assert_eq!(decide(&mut listed, "::ffff:10.1.2.3"), Decision::LetIn);
        assert_eq!(decide(&mut listed, "2001:db8:9::1"), Decision::LetIn);
        assert_eq!(decide(&mut listed, "::1"), Decision::LetIn);
        assert_eq!(decide(&mut listed, "11.0.0.1"), Decision::RefuseAndTell);
        assert_eq!(decide(&mut gate("", true), "11.0.0.1"), Decision::LetIn);
    }

    #[test]
    fn the_memory_of_refused_networks_is_bounded() {
        let mut gate = gate("", false);
        let mut last = Decision::LetIn;
        for network in 0..NETWORKS_REMEMBERED_MAX as u32 {
            last = gate.decide(IpAddr::V4((0x0b00_0001 + (network << 8)).into()));
        }
        assert_eq!(last, Decision::RefuseAndTellLast);
        assert_eq!(decide(&mut gate, "203.0.113.1"), Decision::Refuse);
        assert_eq!(gate.told.len(), NETWORKS_REMEMBERED_MAX);
    }
}
