//! The policy as the gateway told it last, and what is known of the connection to the gateway.
use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::egress::wire::{AllowedHost, PolicyUpdate};
use crate::policy::{HostName, HostPattern};

/// Most gateways that are kept of an update.
const MAX_GATEWAYS: usize = 16;

/// A policy. Immutable: another one takes its place.
#[derive(Debug, Default)]
pub struct Policy {
    /// Generation of the spec that it was computed from.
    pub generation: i64,
    /// Its digest.
    pub digest: String,
    /// Bytes that the sandbox may move.
    pub bytes: Option<i64>,
    /// Patterns that this version does not understand: what they name stays closed.
    pub unknown: usize,
    hosts: Vec<AllowedHost>,
    exact: HashMap<HostName, BTreeSet<u16>>,
    patterns: Vec<(HostPattern, Vec<u16>)>,
}

/// Ports at which a name may be reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allowed {
    /// The ports, at least one.
    pub ports: BTreeSet<u16>,
    /// Whether a rule has this very name.
    pub exact: bool,
}

impl Policy {
    /// The policy of `update`.
    pub fn of(update: &PolicyUpdate) -> Self {
        let mut policy = Self {
            generation: update.generation,
            digest: update.digest.clone(),
            bytes: update.bytes,
            hosts: update.hosts.clone(),
            ..Self::default()
        };
        for host in &update.hosts {
            match host.pattern.parse() {
                Ok(HostPattern::Exact(name)) => policy.exact.entry(name).or_default().extend(&host.ports),
                Ok(pattern) => policy.patterns.push((pattern, host.ports.clone())),
                Err(_) => policy.unknown += 1,
            }
        }
        policy
    }

    /// Whether `update` says the same.
    pub fn is(&self, update: &PolicyUpdate) -> bool {
        self.generation == update.generation
            && self.digest == update.digest
            && self.bytes == update.bytes
            && self.hosts == update.hosts
    }

    /// How many hosts there are.
    pub fn hosts(&self) -> usize {
        self.hosts.len()
    }

    /// The ports of `name`, if it may be reached.
    pub fn allowed(&self, name: &HostName) -> Option<Allowed> {
        let own = self.exact.get(name);
        let mut ports = own.cloned().unwrap_or_default();
        let matching = self.patterns.iter().filter(|(pattern, _)| pattern.matches(name));
        ports.extend(matching.flat_map(|(_, ports)| ports));
        // Nobody can listen there.
        ports.remove(&0);
        (!ports.is_empty()).then_some(Allowed { ports, exact: own.is_some() })
    }

    /// Whether `name` may be reached at `port`.
    pub fn allows(&self, name: &HostName, port: u16) -> bool {
        self.allowed(name).is_some_and(|allowed| allowed.ports.contains(&port))
    }
}

/// What is known of the connection to the gateway.
#[derive(Clone, Debug, Default)]
pub struct Link {
    /// Whether the policy stream stands.
    pub up: bool,
    /// When the gateway spoke last.
    pub heard: Option<Instant>,
    /// The canary, and when a gateway reached it last.
    pub canary: Option<(SocketAddr, Instant)>,
    /// Gateways that can be reached.
    pub gateways: Vec<SocketAddr>,
    /// What was wrong last, for a person.
    pub trouble: String,
}

/// Both. It keeps the last policy while no gateway can be reached.
#[derive(Debug)]
pub struct Held {
    policy: watch::Sender<Option<Arc<Policy>>>,
    link: watch::Sender<Link>,
}

impl Default for Held {
    fn default() -> Self {
        Self { policy: watch::Sender::new(None), link: watch::Sender::new(Link::default()) }
    }
}

impl Held {
    /// The policy, once there is one.
    pub fn policy(&self) -> Option<Arc<Policy>> {
        self.policy.borrow().clone()
    }

    /// Tells of every other policy.
    pub fn policies(&self) -> watch::Receiver<Option<Arc<Policy>>> {
        self.policy.subscribe()
    }

    /// What is known of the connection.
    pub fn link(&self) -> Link {
        self.link.borrow().clone()
    }

    /// Takes what the gateway told.
    pub fn take(&self, update: &PolicyUpdate) {
        let now = Instant::now();
        let reached = |age_ms| now.checked_sub(Duration::from_millis(age_ms));
        let link = Link {
            up: true,
            heard: Some(now),
            canary: update.canary.and_then(|canary| Some((canary.address, reached(canary.age_ms)?))),
            gateways: update.gateways.iter().copied().take(MAX_GATEWAYS).collect(),
            trouble: String::new(),
        };
        self.link.send_replace(link);
        let known = self.policy.borrow().as_ref().is_some_and(|policy| policy.is(update));
        if !known {
            self.policy.send_replace(Some(Arc::new(Policy::of(update))));
        }
    }

    /// The stream broke.
    pub fn lose(&self, trouble: &str) {
        self.link.send_modify(|link| {
            link.up = false;
            trouble.clone_into(&mut link.trouble);
        });
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn update(generation: i64, hosts: &[(&str, &[u16])]) -> PolicyUpdate {
        PolicyUpdate {
            generation,
            digest: format!("sha256:{generation}"),
            hosts: hosts
                .iter()
                .map(|(pattern, ports)| AllowedHost { pattern: (*pattern).into(), ports: ports.to_vec() })
                .collect(),
            bytes: None,
            gateways: Vec::new(),
            canary: None,
            refused: None,
        }
    }

    pub fn name(text: &str) -> HostName {
        text.parse().unwrap()
    }

    #[test]
    fn ports_of_all_rules_add_up() {
        let policy = Policy::of(&update(
            1,
            &[
                ("a.example", &[443]),
                ("*.example", &[80]),
                ("a.example", &[22]),
                ("?", &[1]),
                ("b.example", &[]),
            ],
        ));
        let allowed =
            |text| policy.allowed(&name(text)).map(|a| (a.ports.into_iter().collect::<Vec<_>>(), a.exact));
        assert_eq!(allowed("a.example"), Some((vec![22, 80, 443], true)));
        assert_eq!(allowed("b.example"), Some((vec![80], true)));
        assert_eq!(allowed("c.example"), Some((vec![80], false)));
        assert_eq!(allowed("a.c.example"), None);
        assert_eq!(policy.unknown, 1);
        assert!(policy.allows(&name("A.example."), 443) && !policy.allows(&name("c.example"), 443));
    }

    #[test]
    fn the_last_policy_stays_when_the_gateway_goes() {
        let held = Held::default();
        let mut policies = held.policies();
        held.take(&update(1, &[("a.example", &[443])]));
        assert!(policies.has_changed().unwrap());
        policies.mark_unchanged();
        held.take(&update(1, &[("a.example", &[443])]));
        held.lose("gone");
        assert!(!policies.has_changed().unwrap());
        assert_eq!(held.policy().unwrap().generation, 1);
        assert!(!held.link().up);
    }
}
