//! What must hold for any bytes of an agent. See [`crate::fuzzing`].
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "to panic is how an oracle speaks"
)]
mod dns;
mod http;
mod socks5;

use std::net::Ipv4Addr;
use std::sync::Mutex;
use std::time::Instant;

pub(crate) use dns::{asked_by_dns, dns_packet};
pub(crate) use http::{Proxied, answered, asked_by_proxy, asked_by_proxy_connect, head_of, proxied, request};
pub(crate) use socks5::{asked_by_socks5, socks5};

use super::dns::Directory;
use super::names::Names;
use crate::policy::{HostName, HostPattern};

/// Allows `**.example`; none of `slow.example` has an address at the moment.
struct Rules {
    allowed: HostPattern,
    slow: HostPattern,
    names: Mutex<Names>,
    refused: Mutex<usize>,
}

impl Rules {
    /// With an address for `first.example`, 127.64.1.0.
    fn new() -> Self {
        let mut names = Names::new(Ipv4Addr::new(127, 64, 1, 0));
        names.address(&"first.example".parse().unwrap(), true, Instant::now()).unwrap();
        Self {
            allowed: "**.example".parse().unwrap(),
            slow: "**.slow.example".parse().unwrap(),
            names: Mutex::new(names),
            refused: Mutex::default(),
        }
    }
}

impl Directory for Rules {
    fn allows(&self, name: &HostName) -> Result<(), String> {
        if self.allowed.matches(name) { Ok(()) } else { Err("NoRule".to_owned()) }
    }

    fn address(&self, name: &HostName) -> Result<Ipv4Addr, String> {
        if self.slow.matches(name) {
            return Err("TooManyNewNames".to_owned());
        }
        self.names.lock().unwrap().address(name, true, Instant::now()).map_err(|_| "TooManyNames".to_owned())
    }

    fn name(&self, address: Ipv4Addr) -> Option<HostName> {
        self.names.lock().unwrap().name(address).cloned()
    }

    fn refused(&self, _: &str, _: &str, _: &str) {
        *self.refused.lock().unwrap() += 1;
    }
}

/// Whether an address is one that only the sidecar answers at: 127.64.0.0/10.
fn is_own(address: Ipv4Addr) -> bool {
    address.to_bits() >> 22 == Ipv4Addr::new(127, 64, 0, 0).to_bits() >> 22
}
