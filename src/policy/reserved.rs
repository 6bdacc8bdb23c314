//! Addresses that a `cidr` rule may never open. What they are for is in one table with what names may not lead to.
use std::net::IpAddr;

use ipnet::IpNet;

use super::address::{AddressClass, blocks};

/// A reserved network that a rule overlaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reserved {
    /// The reserved network.
    pub network: IpNet,
    /// What it is, for a person.
    pub what: &'static str,
}

/// What no rule may open of this class, for a person; nothing where a rule may. Private networks and the like are
/// ordinary peers, and the cluster's own ranges are given by the operator's settings. An IPv4 address in IPv6 form is
/// refused whatever it leads to: with a translator on the way it would be a second name for what IPv4 refuses, the
/// cluster's ranges among it.
fn what(class: AddressClass) -> Option<&'static str> {
    match class {
        AddressClass::Loopback => Some("loopback"),
        AddressClass::Unspecified => Some("this host"),
        AddressClass::Multicast => Some("multicast"),
        AddressClass::LinkLocal => Some("link-local, with the cloud's metadata service"),
        AddressClass::Metadata => Some("a cloud's metadata service"),
        AddressClass::Embedded => Some("IPv4 addresses in IPv6 form, or relays for them"),
        AddressClass::ProtocolAssignment => Some("a protocol's own"),
        AddressClass::Reserved => Some("reserved and broadcast"),
        AddressClass::Global
        | AddressClass::Private
        | AddressClass::SharedNat
        | AddressClass::ClusterRange
        | AddressClass::Documentation
        | AddressClass::Benchmarking => None,
    }
}

/// The first reserved network that `network` shares an address with; `cluster` are the cluster's own ranges.
pub fn overlap(network: &IpNet, cluster: &[IpNet]) -> Option<Reserved> {
    let own = cluster.iter().map(|n| Reserved { network: *n, what: "a range of the cluster's own" });
    let fixed = blocks()
        // The rest of all addresses: what of it is given to nobody leads nowhere.
        .filter(|(network, _)| network.prefix_len() > 0)
        .filter_map(|(network, class)| Some(Reserved { network, what: what(class)? }));
    fixed.chain(own).find(|r| overlaps(&r.network, network))
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
            "::198.51.100.1/128",
            "64:ff9b::/96",
            "64:ff9b:1::/64",
            "2002:0a00::/24",
            "2001::/32",
            "192.0.0.192/32",
            "192.0.0.0/16",
            "fd00:ec2::254/128",
            "fd20:ce::254/128",
            "fd00::/8",
            "168.63.129.16/32",
            "100.100.100.200/32",
            "100.64.0.0/10",
        ] {
            assert!(reserved(text, &[]).is_some(), "{text}");
        }
    }

    #[test]
    fn peers_are_not() {
        for text in [
            "198.51.100.0/24",
            "10.0.0.0/8",
            "192.168.1.1/32",
            "2001:db8::/32",
            "fc00::/8",
            "fd12:3456::/32",
            "2a00::/12",
            "100.64.0.0/16",
            "1.0.0.0/8",
        ] {
            assert_eq!(reserved(text, &[]), None, "{text}");
        }
    }

    #[test]
    fn the_clusters_ranges_are_reserved_in_both_directions() {
        for text in ["10.0.0.0/8", "10.244.0.0/16", "10.244.3.7/32"] {
            assert_eq!(reserved(text, &["10.244.0.0/16"]), Some("a range of the cluster's own"), "{text}");
        }
        assert_eq!(reserved("10.245.0.0/16", &["10.244.0.0/16", "fd12::/16"]), None);
        // Nor in any IPv6 form.
        for text in
            ["::ffff:10.244.0.0/112", "64:ff9b::10.244.3.7/128", "2002:0af4:307::/48", "::10.244.3.7/128"]
        {
            assert!(reserved(text, &["10.244.0.0/16"]).is_some(), "{text}");
        }
    }
}
