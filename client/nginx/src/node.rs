//! Who this node is, so that a server knows it again after a restart, and all its workers as one.

use siphasher::sip128::{Hasher128, SipHasher13};
use std::fs;
use std::hash::Hasher;

/// Files in which an installation of the product whose names we honour keeps the node's identity.
const NODE_YAML: [&str; 2] = ["/opt/wallarm/etc/wallarm/node.yaml", "/etc/wallarm/node.yaml"];

/// The node's id and name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// `None`: nothing tells it, so each worker draws its own.
    pub id: Option<[u8; 16]>,
    /// `None`: the host's name.
    pub name: Option<String>,
}

impl Node {
    /// From `node.yaml`, else from the machine's id.
    pub fn of_this_host() -> Self {
        let yaml = NODE_YAML.iter().find_map(|file| fs::read_to_string(file).ok()).unwrap_or_default();
        let machine = fs::read_to_string("/etc/machine-id").unwrap_or_default();
        Self::of(&yaml, machine.trim())
    }

    fn of(yaml: &str, machine: &str) -> Self {
        let field = |name: &str| {
            let mut values = yaml.lines().filter_map(|line| line.trim_start().strip_prefix(name)?.trim_start().strip_prefix(':'));
            values.next().map(|value| value.split('#').next().unwrap_or("").trim().trim_matches(['"', '\'']).to_owned())
        };
        let digits: String = field("uuid").unwrap_or_default().chars().filter(|&c| c != '-').collect();
        let uuid = (digits.len() == 32).then(|| u128::from_str_radix(&digits, 16).ok()).flatten().map(u128::to_be_bytes);
        // Hashed: the machine's id itself is nobody else's business (man machine-id).
        let hashed = (!machine.is_empty()).then(|| {
            let mut hasher = SipHasher13::new_with_key(b"a postanalytics ");
            hasher.write(machine.as_bytes());
            hasher.finish128().as_bytes()
        });
        Self { id: uuid.or(hashed), name: field("hostname").filter(|name| !name.is_empty()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn from_node_yaml_or_the_machine() {
        let yaml = "# old\nhostname: edge-1\nuuid: \"00112233-4455-6677-8899-aabbccddeeff\" # ours\nsecret: x\n";
        let node = Node::of(yaml, "m");
        assert_eq!((node.name.as_deref(), node.id.map(|id| id[1])), (Some("edge-1"), Some(0x11)));
        let nested = "api:\n  uuid: 00112233445566778899aabbccddeeff\n";
        assert_eq!(Node::of(nested, "").id, node.id);
        let machine = Node::of("uuid: short\n", "0123");
        assert!(
            machine.id.is_some() && machine.name.is_none() && machine == Node::of("", "0123") && machine != Node::of("", "4")
        );
        assert_eq!(Node::of("", ""), Node::default());
    }
}
