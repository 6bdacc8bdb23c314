//! Both registries of IANA line by line, and what an administrator may open.
use proptest::prelude::*;

use super::*;

fn policy(cluster: &[&str], reachable: &[&str]) -> AddressPolicy {
    let nets = |texts: &[&str]| texts.iter().map(|t| t.parse().unwrap()).collect();
    AddressPolicy { cluster: nets(cluster), reachable: nets(reachable) }
}

fn vet(policy: &AddressPolicy, text: &str) -> Result<(), AddressClass> {
    policy.vet(text.parse().unwrap())
}

/// <https://www.iana.org/assignments/iana-ipv4-special-registry> and multicast.
const REGISTRY_V4: [(&str, AddressClass); 28] = [
    ("0.0.0.0/8", AddressClass::Unspecified),
    ("0.0.0.0/32", AddressClass::Unspecified),
    ("10.0.0.0/8", AddressClass::Private),
    ("100.64.0.0/10", AddressClass::SharedNat),
    ("127.0.0.0/8", AddressClass::Loopback),
    ("169.254.0.0/16", AddressClass::LinkLocal),
    ("172.16.0.0/12", AddressClass::Private),
    ("192.0.0.0/24", AddressClass::ProtocolAssignment),
    ("192.0.0.0/29", AddressClass::ProtocolAssignment),
    ("192.0.0.8/32", AddressClass::ProtocolAssignment),
    ("192.0.0.9/32", AddressClass::ProtocolAssignment),
    ("192.0.0.10/32", AddressClass::ProtocolAssignment),
    ("192.0.0.170/32", AddressClass::ProtocolAssignment),
    ("192.0.0.171/32", AddressClass::ProtocolAssignment),
    ("192.0.2.0/24", AddressClass::Documentation),
    ("192.31.196.0/24", AddressClass::ProtocolAssignment),
    ("192.52.193.0/24", AddressClass::ProtocolAssignment),
    ("192.88.99.0/24", AddressClass::Embedded),
    ("192.88.99.2/32", AddressClass::Embedded),
    ("192.168.0.0/16", AddressClass::Private),
    ("192.175.48.0/24", AddressClass::ProtocolAssignment),
    ("198.18.0.0/15", AddressClass::Benchmarking),
    ("198.51.100.0/24", AddressClass::Documentation),
    ("203.0.113.0/24", AddressClass::Documentation),
    ("240.0.0.0/4", AddressClass::Reserved),
    ("255.255.255.255/32", AddressClass::Reserved),
    ("224.0.0.0/4", AddressClass::Multicast),
    ("232.0.0.0/8", AddressClass::Multicast),
];

/// <https://www.iana.org/assignments/iana-ipv6-special-registry>, multicast, and what earlier standards set aside.
const REGISTRY_V6: [(&str, AddressClass); 31] = [
    ("::1/128", AddressClass::Loopback),
    ("::/128", AddressClass::Unspecified),
    ("::ffff:0:0/96", AddressClass::Embedded),
    ("64:ff9b::/96", AddressClass::Embedded),
    ("64:ff9b:1::/48", AddressClass::Embedded),
    ("100::/64", AddressClass::ProtocolAssignment),
    ("100:0:0:1::/64", AddressClass::ProtocolAssignment),
    ("2001::/23", AddressClass::ProtocolAssignment),
    ("2001::/32", AddressClass::Embedded),
    ("2001:1::1/128", AddressClass::ProtocolAssignment),
    ("2001:1::2/128", AddressClass::ProtocolAssignment),
    ("2001:1::3/128", AddressClass::ProtocolAssignment),
    ("2001:2::/48", AddressClass::Benchmarking),
    ("2001:3::/32", AddressClass::ProtocolAssignment),
    ("2001:4:112::/48", AddressClass::ProtocolAssignment),
    ("2001:10::/28", AddressClass::ProtocolAssignment),
    ("2001:20::/28", AddressClass::ProtocolAssignment),
    ("2001:30::/28", AddressClass::ProtocolAssignment),
    ("2001:db8::/32", AddressClass::Documentation),
    ("2002::/16", AddressClass::Embedded),
    ("2620:4f:8000::/48", AddressClass::ProtocolAssignment),
    ("3fff::/20", AddressClass::Documentation),
    ("5f00::/16", AddressClass::ProtocolAssignment),
    ("fc00::/7", AddressClass::Private),
    ("fe80::/10", AddressClass::LinkLocal),
    ("fec0::/10", AddressClass::Private),
    ("ff00::/8", AddressClass::Multicast),
    ("4000::/3", AddressClass::Reserved),
    ("8000::/1", AddressClass::Reserved),
    ("200::/7", AddressClass::Reserved),
    ("::ffff:0:0:0/96", AddressClass::Embedded),
];

/// First, last and a middle address.
fn samples(net: IpNet) -> [IpAddr; 3] {
    let middle = match (net.network(), net.broadcast()) {
        (IpAddr::V4(a), IpAddr::V4(b)) => Ipv4Addr::from_bits(a.to_bits().midpoint(b.to_bits())).into(),
        (IpAddr::V6(a), IpAddr::V6(b)) => Ipv6Addr::from_bits(a.to_bits().midpoint(b.to_bits())).into(),
        _ => unreachable!(),
    };
    [net.network(), middle, net.broadcast()]
}

#[test]
fn every_block_of_the_registries_is_refused() {
    for (text, class) in REGISTRY_V4.into_iter().chain(REGISTRY_V6) {
        let net: IpNet = text.parse().unwrap();
        for address in samples(net) {
            let refused = AddressPolicy::default().vet(address);
            assert!(refused.is_err(), "{text} {address}");
            // Narrower blocks, and what an embedded address leads to, may say more.
            let told = refused.unwrap_err();
            let narrower = REGISTRY_V4.into_iter().chain(REGISTRY_V6).any(|(other, more)| {
                let other: IpNet = other.parse().unwrap();
                other != net && net.contains(&other) && other.contains(&address) && more == told
            });
            assert!(
                told == class
                    || narrower
                    || class == AddressClass::Embedded
                    || class == AddressClass::Reserved,
                "{text} {address} {told}"
            );
        }
        let first = AddressClass::of(samples(net)[1]);
        if class != AddressClass::Embedded && class != AddressClass::Reserved {
            assert_eq!(first, class, "{text}");
        }
    }
}

#[test]
fn ordinary_addresses_pass() {
    for text in [
        "1.1.1.1",
        "8.8.8.8",
        "9.255.255.255",
        "11.0.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "126.255.255.255",
        "128.0.0.1",
        "168.63.129.15",
        "169.253.255.255",
        "169.255.0.0",
        "172.15.255.255",
        "172.32.0.0",
        "191.255.255.255",
        "192.0.1.0",
        "192.0.3.0",
        "192.167.255.255",
        "192.169.0.0",
        "198.17.255.255",
        "198.20.0.0",
        "198.51.99.255",
        "198.51.101.0",
        "203.0.112.255",
        "203.0.114.0",
        "223.255.255.255",
        "2000::1",
        "2001:200::1",
        "2001:4860:4860::8888",
        "2001:db7:ffff::1",
        "2001:db9::1",
        "2003::1",
        "2606:4700:4700::1111",
        "2620:4f:8001::1",
        "3ffe::1",
        "3fff:1000::1",
    ] {
        assert_eq!(vet(&AddressPolicy::default(), text), Ok(()), "{text}");
    }
}

#[test]
fn an_embedded_address_is_refused_for_what_it_leads_to() {
    for (text, class) in [
        ("::ffff:8.8.8.8", AddressClass::Embedded),
        ("::ffff:10.0.0.1", AddressClass::Embedded),
        ("::ffff:127.0.0.1", AddressClass::Loopback),
        ("::ffff:169.254.169.254", AddressClass::Metadata),
        ("::ffff:0.0.0.0", AddressClass::Unspecified),
        ("::127.0.0.1", AddressClass::Loopback),
        ("::8.8.8.8", AddressClass::Embedded),
        ("::ffff:0:127.0.0.1", AddressClass::Loopback),
        ("64:ff9b::8.8.8.8", AddressClass::Embedded),
        ("64:ff9b::169.254.169.254", AddressClass::Metadata),
        ("64:ff9b:1::127.0.0.1", AddressClass::Loopback),
        ("2002:7f00:1::1", AddressClass::Loopback),
        ("2002:a9fe:a9fe::", AddressClass::Metadata),
        ("2002:808:808::1", AddressClass::Embedded),
        // 127.0.0.1 inverted.
        ("2001:0:808:808:0:0:80ff:fffe", AddressClass::Loopback),
        ("2001:0:808:808:0:0:f7f7:f7f7", AddressClass::Embedded),
        ("2600:1::5efe:10.0.0.1", AddressClass::Embedded),
        ("2600:1::200:5efe:169.254.169.254", AddressClass::Metadata),
        ("fe80::5efe:10.0.0.1", AddressClass::LinkLocal),
    ] {
        assert_eq!(vet(&AddressPolicy::default(), text), Err(class), "{text}");
    }
    assert_eq!(vet(&AddressPolicy::default(), "2600:1::5efe:8.8.8.8"), Ok(()));
}

#[test]
fn the_clusters_ranges_are_refused() {
    let policy = policy(&["20.0.0.0/16", "2600:1::/32", "10.244.0.0/16"], &[]);
    for text in ["20.0.3.4", "2600:1::5", "10.244.1.1"] {
        assert_eq!(vet(&policy, text), Err(AddressClass::ClusterRange), "{text}");
    }
    assert_eq!(vet(&policy, "20.1.0.0"), Ok(()));
}

#[test]
fn an_administrator_opens_exactly_what_is_listed() {
    let policy = policy(
        &["10.0.0.0/8"],
        &["203.0.113.0/24", "10.20.0.0/16", "fd00:1::/32", "64:ff9b::/96", "100.100.0.0/16", "240.0.0.1/32"],
    );
    for text in [
        "203.0.113.7",
        "10.20.1.1",
        "fd00:1::1",
        "64:ff9b::8.8.8.8",
        "64:ff9b::10.20.1.1",
        "100.100.1.1",
        "240.0.0.1",
    ] {
        assert_eq!(vet(&policy, text), Ok(()), "{text}");
    }
    for (text, class) in [
        ("198.51.100.1", AddressClass::Documentation),
        ("10.21.0.0", AddressClass::ClusterRange),
        ("fd00:2::1", AddressClass::Private),
        ("64:ff9b::10.21.0.1", AddressClass::ClusterRange),
        ("64:ff9b::192.168.0.1", AddressClass::Private),
        ("64:ff9b::169.254.169.254", AddressClass::Metadata),
        ("::ffff:203.0.113.7", AddressClass::Embedded),
        ("100.100.100.200", AddressClass::Metadata),
        ("240.0.0.2", AddressClass::Reserved),
    ] {
        assert_eq!(vet(&policy, text), Err(class), "{text}");
    }
}

#[test]
fn some_addresses_nobody_opens() {
    let all = policy(&[], &["0.0.0.0/0", "::/0"]);
    for text in [
        "127.0.0.1",
        "127.64.1.0",
        "0.0.0.0",
        "0.1.2.3",
        "224.0.0.251",
        "239.255.255.255",
        "169.254.169.254",
        "169.254.170.2",
        "169.254.20.10",
        "168.63.129.16",
        "100.100.100.200",
        "192.0.0.192",
        "::1",
        "::",
        "fe80::1",
        "ff02::1",
        "fd00:ec2::254",
        "fd00:ec2::23",
        "fd20:ce::254",
        "fd00:42::42",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "::127.0.0.1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::a9fe:a9fe",
        "2002:a9fe:a9fe::1",
        "2001:0:808:808:0:0:5601:5601",
    ] {
        let refused = vet(&all, text).unwrap_err();
        assert!(refused.is_never_reachable(), "{text} {refused}");
    }
    for text in
        ["10.0.0.1", "100.64.0.1", "192.168.0.1", "fc00::1", "2001:db8::1", "255.255.255.255", "4000::1"]
    {
        assert_eq!(vet(&all, text), Ok(()), "{text}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// The standard library knows some of the classes.
    #[test]
    fn no_special_address_of_ipv4_passes(bits in any::<u32>()) {
        let address = Ipv4Addr::from_bits(bits);
        let special = address.is_private() || address.is_loopback() || address.is_link_local()
            || address.is_broadcast() || address.is_documentation() || address.is_multicast()
            || address.is_unspecified() || bits >> 28 == 15;
        let passes = AddressPolicy::default().vet(address.into()).is_ok();
        prop_assert!(!(special && passes), "{}", address);
        let mapped = AddressPolicy::default().vet(address.to_ipv6_mapped().into());
        prop_assert!(mapped.is_err());
    }

    #[test]
    fn only_global_unicast_of_ipv6_passes(bits in any::<u128>()) {
        let address = Ipv6Addr::from_bits(bits);
        let passes = AddressPolicy::default().vet(address.into()).is_ok();
        prop_assert!(!passes || bits >> 125 == 1, "{}", address);
    }
}
