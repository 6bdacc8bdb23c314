//! Addresses that a `cidr` rule may never open, because they mean the Pod's own machine and not a peer.
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// A reserved network that a rule overlaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reserved {
    /// The reserved network.
    pub network: IpNet,
    /// What it is, for a person.
    pub what: &'static str,
}

const fn v4(a: u8, b: u8, bits: u8, what: &'static str) -> Reserved {
    Reserved { network: IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, 0, 0), bits)), what }
}

const fn v6(segments: [u16; 8], bits: u8, what: &'static str) -> Reserved {
    let [s0, s1, s2, s3, s4, s5, s6, s7] = segments;
    let address = Ipv6Addr::new(s0, s1, s2, s3, s4, s5, s6, s7);
    Reserved { network: IpNet::V6(Ipv6Net::new_assert(address, bits)), what }
}

/// Sources: RFC 6890 and the IANA special-purpose registries. Private and unique local networks are not here: they
/// are ordinary peers, and the cluster's own ranges are given by the operator's settings.
const FIXED: [Reserved; 10] = [
    v4(127, 0, 8, "loopback"),
    v4(169, 254, 16, "link-local, with the cloud's metadata service"),
    v4(0, 0, 8, "this host"),
    v4(224, 0, 4, "multicast"),
    v4(240, 0, 4, "reserved and broadcast"),
    v6([0, 0, 0, 0, 0, 0, 0, 1], 128, "loopback"),
    v6([0; 8], 128, "this host"),
    v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10, "link-local"),
    v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8, "multicast"),
    v6([0, 0, 0, 0, 0, 0xffff, 0, 0], 96, "IPv4 addresses in IPv6 form"),
];

/// The first reserved network that `network` shares an address with; `cluster` are the cluster's own ranges.
pub fn overlap(network: &IpNet, cluster: &[IpNet]) -> Option<Reserved> {
    let own = cluster.iter().map(|n| Reserved { network: *n, what: "a range of the cluster's own" });
    FIXED.into_iter().chain(own).find(|r| overlaps(&r.network, network))
}

fn overlaps(a: &IpNet, b: &IpNet) -> bool {
    let inside = |net: &IpNet, address: IpAddr| net.contains(&address);
    inside(a, b.network()) || inside(b, a.network())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reserved(text: &str, cluster: &[&str]) -> Option<&'static str> {
        let cluster: Vec<IpNet> = cluster.iter().map(|c| c.parse().unwrap()).collect();
        overlap(&text.parse().unwrap(), &cluster).map(|r| r.what)
    }

    #[test]
    fn what_means_this_machine_is_reserved() {
        for text in [
            "0.0.0.0/0",
            "127.0.0.1/32",
            "126.0.0.0/7",
            "169.254.169.254/32",
            "160.0.0.0/4",
            "224.0.0.251/32",
            "255.255.255.255/32",
            "0.0.0.0/32",
            "::/0",
            "::1/128",
            "fe80::1/128",
            "ff02::1/128",
            "::ffff:127.0.0.1/128",
            "::ffff:198.51.100.1/128",
        ] {
            assert!(reserved(text, &[]).is_some(), "{text}");
        }
    }

    #[test]
    fn peers_are_not() {
        for text in
            ["198.51.100.0/24", "10.0.0.0/8", "192.168.1.1/32", "2001:db8::/32", "fc00::/7", "1.0.0.0/8"]
        {
            assert_eq!(reserved(text, &[]), None, "{text}");
        }
    }

    #[test]
    fn the_clusters_ranges_are_reserved_in_both_directions() {
        for text in ["10.0.0.0/8", "10.244.0.0/16", "10.244.3.7/32"] {
            assert_eq!(reserved(text, &["10.244.0.0/16"]), Some("a range of the cluster's own"), "{text}");
        }
        assert_eq!(reserved("10.245.0.0/16", &["10.244.0.0/16", "fd00::/8"]), None);
    }
}
