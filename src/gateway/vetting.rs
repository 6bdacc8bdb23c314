//! Which addresses may be dialled: what the policy says of their class, and never the gateway, its peers or the API
//! server.
use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::{PoisonError, RwLock};

use crate::policy::AddressPolicy;

/// The addresses that may be dialled.
#[derive(Debug)]
pub struct Vetting {
    policy: AddressPolicy,
    own: HashSet<IpAddr>,
    peers: RwLock<HashSet<IpAddr>>,
}

/// Addresses of a name.
#[derive(Debug, PartialEq, Eq)]
pub struct Vetted {
    /// May be dialled.
    pub good: Vec<SocketAddr>,
    /// May not, and why.
    pub bad: Vec<(IpAddr, &'static str)>,
}

impl Vetting {
    /// By `policy`, without the addresses of the gateway's `own`.
    pub fn new(policy: AddressPolicy, own: impl IntoIterator<Item = IpAddr>) -> Self {
        Self { policy, own: own.into_iter().map(|ip| ip.to_canonical()).collect(), peers: RwLock::default() }
    }

    /// These are addresses of the operator's own Pods, and not of sites.
    pub fn set_peers(&self, peers: impl IntoIterator<Item = IpAddr>) {
        let peers = peers.into_iter().map(|ip| ip.to_canonical()).collect();
        *self.peers.write().unwrap_or_else(PoisonError::into_inner) = peers;
    }

    /// Whether `address` may be dialled.
    pub fn vet(&self, address: IpAddr) -> Result<(), &'static str> {
        let peers = self.peers.read().unwrap_or_else(PoisonError::into_inner);
        let canonical = address.to_canonical();
        if self.own.contains(&canonical) || peers.contains(&canonical) {
            return Err("Operator");
        }
        self.policy.vet(address).map_err(crate::policy::AddressClass::as_str)
    }

    /// Which of `addresses` may be dialled at `port`.
    pub fn sort(&self, addresses: Vec<IpAddr>, port: u16) -> Vetted {
        let mut vetted = Vetted { good: Vec::new(), bad: Vec::new() };
        for address in addresses {
            match self.vet(address) {
                Ok(()) => vetted.good.push(SocketAddr::new(address, port)),
                Err(class) => vetted.bad.push((address, class)),
            }
        }
        vetted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_operator_is_never_reached_not_even_where_an_administrator_opened_its_range() {
        let policy = AddressPolicy { cluster: Vec::new(), reachable: vec!["10.0.0.0/8".parse().unwrap()] };
        let vetting = Vetting::new(policy, ["10.0.0.1".parse().unwrap()]);
        vetting.set_peers(["10.0.0.2".parse().unwrap()]);
        let all =
            ["10.0.0.1", "10.0.0.2", "10.0.0.3", "::ffff:10.0.0.1", "127.0.0.1", "192.168.0.1", "1.1.1.1"];
        let vetted = vetting.sort(all.iter().map(|ip| ip.parse().unwrap()).collect(), 443);
        let good: Vec<String> = vetted.good.iter().map(ToString::to_string).collect();
        assert_eq!(good, ["10.0.0.3:443", "1.1.1.1:443"]);
        let bad: Vec<&str> = vetted.bad.iter().map(|(_, class)| *class).collect();
        assert_eq!(bad, ["Operator", "Operator", "Operator", "Loopback", "Private"]);
    }
}
