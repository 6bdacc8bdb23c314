//! Which addresses a name may lead to.
use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// What an address is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AddressClass {
    /// An ordinary public address.
    Global,
    /// The machine itself.
    Loopback,
    /// No address, or "this network".
    Unspecified,
    /// A group of machines.
    Multicast,
    /// The machine's own link.
    LinkLocal,
    /// A cloud's metadata, credentials or resolver.
    Metadata,
    /// A private network: RFC 1918, unique local, site-local.
    Private,
    /// Shared by the customers of a provider (RFC 6598).
    SharedNat,
    /// The cluster's own: Pods, Services, nodes.
    ClusterRange,
    /// For documentation.
    Documentation,
    /// For benchmarks of devices (RFC 2544).
    Benchmarking,
    /// An IPv6 address that leads to an IPv4 one: mapped, compatible, NAT64, 6to4, Teredo.
    Embedded,
    /// A protocol's own, such as anycast for translators and relays.
    ProtocolAssignment,
    /// Given to nobody.
    Reserved,
}

impl AddressClass {
    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Global => "Global",
            Self::Loopback => "Loopback",
            Self::Unspecified => "Unspecified",
            Self::Multicast => "Multicast",
            Self::LinkLocal => "LinkLocal",
            Self::Metadata => "Metadata",
            Self::Private => "Private",
            Self::SharedNat => "SharedNat",
            Self::ClusterRange => "ClusterRange",
            Self::Documentation => "Documentation",
            Self::Benchmarking => "Benchmarking",
            Self::Embedded => "Embedded",
            Self::ProtocolAssignment => "ProtocolAssignment",
            Self::Reserved => "Reserved",
        }
    }

    /// Whether not even an administrator can open it.
    pub fn is_never_reachable(self) -> bool {
        matches!(
            self,
            Self::Loopback | Self::Unspecified | Self::Multicast | Self::LinkLocal | Self::Metadata
        )
    }
}

impl fmt::Display for AddressClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

type Block<Net> = (Net, AddressClass);

const fn v4(a: u8, b: u8, c: u8, d: u8, bits: u8, class: AddressClass) -> Block<Ipv4Net> {
    (Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), bits), class)
}

const fn v6(segments: [u16; 8], bits: u8, class: AddressClass) -> Block<Ipv6Net> {
    let [s0, s1, s2, s3, s4, s5, s6, s7] = segments;
    (Ipv6Net::new_assert(Ipv6Addr::new(s0, s1, s2, s3, s4, s5, s6, s7), bits), class)
}

/// The first block that holds an address says its class. The whole of the IANA IPv4 special-purpose registry, multicast,
/// and the metadata services of clouds. Also what the registry calls globally reachable is refused: none of it is a site.
const V4: [Block<Ipv4Net>; 23] = [
    v4(169, 254, 169, 254, 32, AddressClass::Metadata),
    v4(100, 100, 100, 200, 32, AddressClass::Metadata),
    v4(168, 63, 129, 16, 32, AddressClass::Metadata),
    v4(192, 0, 0, 192, 32, AddressClass::Metadata),
    v4(0, 0, 0, 0, 8, AddressClass::Unspecified),
    v4(10, 0, 0, 0, 8, AddressClass::Private),
    v4(100, 64, 0, 0, 10, AddressClass::SharedNat),
    v4(127, 0, 0, 0, 8, AddressClass::Loopback),
    v4(169, 254, 0, 0, 16, AddressClass::LinkLocal),
    v4(172, 16, 0, 0, 12, AddressClass::Private),
    v4(192, 0, 0, 0, 24, AddressClass::ProtocolAssignment),
    v4(192, 0, 2, 0, 24, AddressClass::Documentation),
    v4(192, 31, 196, 0, 24, AddressClass::ProtocolAssignment),
    v4(192, 52, 193, 0, 24, AddressClass::ProtocolAssignment),
    v4(192, 88, 99, 0, 24, AddressClass::Embedded),
    v4(192, 168, 0, 0, 16, AddressClass::Private),
    v4(192, 175, 48, 0, 24, AddressClass::ProtocolAssignment),
    v4(198, 18, 0, 0, 15, AddressClass::Benchmarking),
    v4(198, 51, 100, 0, 24, AddressClass::Documentation),
    v4(203, 0, 113, 0, 24, AddressClass::Documentation),
    v4(224, 0, 0, 0, 4, AddressClass::Multicast),
    // Also the broadcast address.
    v4(240, 0, 0, 0, 4, AddressClass::Reserved),
    v4(0, 0, 0, 0, 0, AddressClass::Global),
];

/// As [`V4`]; of the rest only 2000::/3 is given to anybody.
const V6: [Block<Ipv6Net>; 26] = [
    v6([0xfd00, 0xec2, 0, 0, 0, 0, 0, 0], 32, AddressClass::Metadata),
    v6([0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254], 128, AddressClass::Metadata),
    v6([0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42], 128, AddressClass::Metadata),
    v6([0, 0, 0, 0, 0, 0, 0, 1], 128, AddressClass::Loopback),
    v6([0, 0, 0, 0, 0, 0, 0, 0], 128, AddressClass::Unspecified),
    v6([0, 0, 0, 0, 0, 0, 0, 0], 96, AddressClass::Embedded),
    v6([0, 0, 0, 0, 0, 0xffff, 0, 0], 96, AddressClass::Embedded),
    v6([0, 0, 0, 0, 0xffff, 0, 0, 0], 96, AddressClass::Embedded),
    v6([0x64, 0xff9b, 0, 0, 0, 0, 0, 0], 96, AddressClass::Embedded),
    v6([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48, AddressClass::Embedded),
    v6([0x100, 0, 0, 0, 0, 0, 0, 0], 64, AddressClass::ProtocolAssignment),
    v6([0x100, 0, 0, 1, 0, 0, 0, 0], 64, AddressClass::ProtocolAssignment),
    v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 32, AddressClass::Embedded),
    v6([0x2001, 2, 0, 0, 0, 0, 0, 0], 48, AddressClass::Benchmarking),
    v6([0x2001, 0, 0, 0, 0, 0, 0, 0], 23, AddressClass::ProtocolAssignment),
    v6([0x2001, 0xdb8, 0, 0, 0, 0, 0, 0], 32, AddressClass::Documentation),
    v6([0x2002, 0, 0, 0, 0, 0, 0, 0], 16, AddressClass::Embedded),
    v6([0x2620, 0x4f, 0x8000, 0, 0, 0, 0, 0], 48, AddressClass::ProtocolAssignment),
    v6([0x3fff, 0, 0, 0, 0, 0, 0, 0], 20, AddressClass::Documentation),
    v6([0x5f00, 0, 0, 0, 0, 0, 0, 0], 16, AddressClass::ProtocolAssignment),
    v6([0xfc00, 0, 0, 0, 0, 0, 0, 0], 7, AddressClass::Private),
    v6([0xfe80, 0, 0, 0, 0, 0, 0, 0], 10, AddressClass::LinkLocal),
    v6([0xfec0, 0, 0, 0, 0, 0, 0, 0], 10, AddressClass::Private),
    v6([0xff00, 0, 0, 0, 0, 0, 0, 0], 8, AddressClass::Multicast),
    v6([0x2000, 0, 0, 0, 0, 0, 0, 0], 3, AddressClass::Global),
    v6([0, 0, 0, 0, 0, 0, 0, 0], 0, AddressClass::Reserved),
];

/// Both tables, for [`super::reserved`].
pub(super) fn blocks() -> impl Iterator<Item = (IpNet, AddressClass)> {
    let v4 = V4.into_iter().map(|(net, class)| (IpNet::V4(net), class));
    v4.chain(V6.into_iter().map(|(net, class)| (IpNet::V6(net), class)))
}

impl AddressClass {
    /// What `address` is for, the cluster's own ranges aside. An IPv6 address that leads to an IPv4 one that is never
    /// reachable has that one's class.
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => of_v4(address),
            IpAddr::V6(address) => match embedded(address).map(of_v4) {
                Some(inner) if inner.is_never_reachable() => inner,
                Some(_) => Self::Embedded,
                None => of_v6(address),
            },
        }
    }
}

fn of_v4(address: Ipv4Addr) -> AddressClass {
    let block = V4.iter().find(|(net, _)| net.contains(&address));
    block.map_or(AddressClass::Reserved, |(_, class)| *class)
}

fn of_v6(address: Ipv6Addr) -> AddressClass {
    let block = V6.iter().find(|(net, _)| net.contains(&address));
    block.map_or(AddressClass::Reserved, |(_, class)| *class)
}

/// The IPv4 address that an address of class [`AddressClass::Embedded`] leads to, and one of an ISATAP interface under any
/// prefix (RFC 5214, section 6.1) where it is not global.
fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let inner = |[a, b, c, d]: [u8; 4]| Ipv4Addr::new(a, b, c, d);
    match (of_v6(address), address.segments()) {
        // Teredo (RFC 4380) has it inverted at the end, 6to4 (RFC 3056) behind its prefix, all others at the end.
        (AddressClass::Embedded, [0x2001, 0, .., high, low]) => Some(inner(pair(!high, !low))),
        (AddressClass::Embedded, [0x2002, high, low, ..] | [.., high, low]) => Some(inner(pair(high, low))),
        (AddressClass::Global, [_, _, _, _, 0 | 0x200, 0x5efe, high, low]) => {
            Some(inner(pair(high, low))).filter(|inner| of_v4(*inner) != AddressClass::Global)
        }
        _ => None,
    }
}

fn pair(high: u16, low: u16) -> [u8; 4] {
    let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
    [a, b, c, d]
}

/// Which addresses may be dialled for a name, after it was resolved. A sandbox cannot change it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AddressPolicy {
    /// Ranges of the cluster's Pods, Services and nodes.
    pub cluster: Vec<IpNet>,
    /// Ranges that an administrator opened although they are not global.
    pub reachable: Vec<IpNet>,
}

impl AddressPolicy {
    /// Whether `address` may be dialled: a global one outside the cluster, or one that an administrator opened. Loopback,
    /// unspecified, multicast, link-local and metadata addresses never pass, in whatever form they come.
    ///
    /// # Errors
    /// The class for which it is refused.
    pub fn vet(&self, address: IpAddr) -> Result<(), AddressClass> {
        let class = AddressClass::of(address);
        if class.is_never_reachable() {
            return Err(class);
        }
        let within = |nets: &[IpNet]| nets.iter().any(|net| net.contains(&address));
        if within(&self.reachable) {
            return match address {
                // What it leads to has to pass as well, or the exception would be one for all of IPv4.
                IpAddr::V6(v6) => embedded(v6).map_or(Ok(()), |inner| self.vet(inner.into())),
                IpAddr::V4(_) => Ok(()),
            };
        }
        if within(&self.cluster) {
            return Err(AddressClass::ClusterRange);
        }
        if class == AddressClass::Global { Ok(()) } else { Err(class) }
    }
}

#[cfg(test)]
mod tests;
