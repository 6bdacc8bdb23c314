//! Egress rules.
use std::collections::BTreeMap;

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{Refusals, reason};
use crate::{
    api::v1alpha1::{EgressRule, Network, Protocol, ServiceReference},
    plan::{Observed, Settings, names},
    policy::{HostPattern, HostRule, bytes_of_limits, reserved, shown},
};

/// A rule that passed every check.
#[derive(Debug, Clone, PartialEq)]
pub struct ValidatedRule {
    /// Where to.
    pub destination: Destination,
    /// Ports of the peer itself; never empty.
    pub ports: Vec<IntOrString>,
    /// Transport protocol.
    pub protocol: Protocol,
}

/// Where a rule leads to.
#[derive(Debug, Clone, PartialEq)]
pub enum Destination {
    /// Names, which the egress gateway keeps: no `NetworkPolicy` knows them.
    Host(HostPattern),
    /// A network without host bits.
    Network(IpNet),
    /// The Pods of a Service.
    Pods {
        /// Namespace of the Pods.
        namespace: String,
        /// Labels of the Pods; never empty.
        selector: BTreeMap<String, String>,
    },
}

/// Most different Services of one sandbox. They are not watched: each costs a read whenever the sandbox is looked at.
pub const MOST_SERVICES: usize = 32;

/// Namespace and name of every Service that the rules name, for gathering [`Observed`].
pub fn names_of_services(network: Option<&Network>, own_namespace: &str) -> Vec<(String, String)> {
    let rules = network.map_or(&[][..], |n| n.egress.as_slice());
    let mut found: Vec<_> =
        rules.iter().filter_map(|r| r.service.as_ref()).map(|s| key(s, own_namespace)).collect();
    found.sort();
    found.dedup();
    found
}

fn key(service: &ServiceReference, own_namespace: &str) -> (String, String) {
    (service.namespace.clone().unwrap_or_else(|| own_namespace.to_owned()), service.name.clone())
}

pub(super) fn check(
    network: Option<&Network>,
    own_namespace: &str,
    observed: &Observed,
    settings: &Settings,
    refusals: &mut Refusals,
) -> Vec<ValidatedRule> {
    let rules = network.map_or(&[][..], |n| n.egress.as_slice());
    refusals.check(rules.len() <= 256, "spec.network.egress", "must be at most 256 rules");
    let services = names_of_services(network, own_namespace);
    if services.len() > MOST_SERVICES {
        refusals.invalid(
            "spec.network.egress",
            format!(
                "names {} different Services; at most {MOST_SERVICES} may be named. Put one Service in front of several, or write cidr",
                services.len()
            ),
        );
    } else if !observed.unread.is_empty() && services.iter().all(|key| !is_missing(key, observed)) {
        // They are left out below, and a rule must never be left out in silence.
        refusals.add(reason::SERVICE_NOT_FOUND, "spec.network.egress", "not every Service was looked at");
    }
    if let Err(error) = bytes_of_limits(network.and_then(|n| n.limits.as_ref())) {
        refusals.invalid(error.field, error.message);
    }
    let mut valid = Vec::new();
    for (index, rule) in rules.iter().enumerate() {
        let field = format!("spec.network.egress[{index}]");
        let found = match HostRule::parse(index, rule) {
            Err(error) => {
                refusals.invalid(error.field, error.message);
                None
            }
            Ok(Some(rule)) => check_host(rule, settings, &field, refusals),
            Ok(None) => {
                check_ports(&rule.ports, &field, refusals);
                match (&rule.cidr, &rule.service) {
                    (Some(cidr), _) => check_cidr(cidr, rule, settings, &field, refusals),
                    (None, Some(service)) if is_operators(service, own_namespace, settings) => {
                        let message =
                            "Pods in the operator's own namespace are open to no agent; name another Service";
                        refusals.add(
                            reason::RESERVED_ADDRESS,
                            format!("{field}.service"),
                            message.to_owned(),
                        );
                        None
                    }
                    (None, Some(service)) => {
                        check_service(service, rule, own_namespace, observed, &field, refusals)
                    }
                    // Refused by `HostRule::parse`.
                    (None, None) => None,
                }
            }
        };
        valid.extend(found);
    }
    valid
}

/// No ports would mean all ports in a `NetworkPolicy`.
fn check_ports(ports: &[i32], field: &str, refusals: &mut Refusals) {
    refusals.check(
        (1..=16).contains(&ports.len()) && ports.iter().all(|p| (1..=65_535).contains(p)),
        &format!("{field}.ports"),
        "must be 1 to 16 ports from 1 to 65535, such as [443]",
    );
}

fn check_host(
    rule: HostRule,
    settings: &Settings,
    field: &str,
    refusals: &mut Refusals,
) -> Option<ValidatedRule> {
    if settings.gateway.is_none() {
        refusals.add(
            reason::DOMAIN_EGRESS_UNAVAILABLE,
            format!("{field}.host"),
            format!("`{}`: host rules need the egress gateway, which this operator does not have; write cidr or service", shown(&rule.pattern.to_string())),
        );
        return None;
    }
    Some(ValidatedRule {
        ports: rule.ports.iter().map(|port| IntOrString::Int(i32::from(*port))).collect(),
        destination: Destination::Host(rule.pattern),
        protocol: Protocol::TCP,
    })
}

fn check_cidr(
    cidr: &str,
    rule: &EgressRule,
    settings: &Settings,
    field: &str,
    refusals: &mut Refusals,
) -> Option<ValidatedRule> {
    let field = format!("{field}.cidr");
    let Ok(network) = cidr.parse::<IpNet>() else {
        let message =
            "is not a network; write it such as 198.51.100.0/24, or one address such as 198.51.100.7/32";
        refusals.invalid(field, format!("`{}` {message}", shown(cidr)));
        return None;
    };
    if network.trunc() != network {
        let one = IpNet::from(network.addr());
        refusals.invalid(
            field,
            format!(
                "{network} has host bits; write {} for the network or {one} for the one address",
                network.trunc()
            ),
        );
        return None;
    }
    if let Some(reserved) = reserved::overlap(&network, &settings.reserved_cidrs) {
        let way_out = if network.prefix_len() == 0 {
            "list the networks that are needed, or name the hosts in host rules"
        } else if !reserved.network.contains(&network) {
            "list narrower networks that leave it out, or name the hosts in host rules"
        } else if settings.reserved_cidrs.contains(&reserved.network) {
            "for a workload of the cluster write service"
        } else {
            "take the rule out"
        };
        refusals.add(
            reason::RESERVED_ADDRESS,
            field,
            format!(
                "{network} overlaps {} ({}), which no rule may open; {way_out}",
                reserved.network, reserved.what
            ),
        );
        return None;
    }
    Some(ValidatedRule {
        destination: Destination::Network(network),
        ports: rule.ports.iter().copied().map(IntOrString::Int).collect(),
        protocol: rule.protocol.unwrap_or_default(),
    })
}

/// Whether the Service was looked for and not found.
fn is_missing(key: &(String, String), observed: &Observed) -> bool {
    !observed.services.contains_key(key) && !observed.unread.contains(key)
}

/// Whether the Service is in the operator's own namespace, whose Pods serve more ports than the gateway's.
fn is_operators(service: &ServiceReference, own_namespace: &str, settings: &Settings) -> bool {
    let (namespace, _) = key(service, own_namespace);
    settings.gateway.as_ref().is_some_and(|gateway| gateway.namespace == namespace)
}

fn check_service(
    service: &ServiceReference,
    rule: &EgressRule,
    own_namespace: &str,
    observed: &Observed,
    field: &str,
    refusals: &mut Refusals,
) -> Option<ValidatedRule> {
    let key = key(service, own_namespace);
    let (namespace, name) = &key;
    let full = format!("{}/{}", shown(namespace), shown(name));
    if !names::is_label(namespace) || !names::is_label(name) {
        refusals.invalid(
            format!("{field}.service"),
            format!("`{full}` must be lower-case letters, digits and hyphens"),
        );
        return None;
    }
    let Some(seen) = observed.services.get(&key) else {
        if !is_missing(&key, observed) {
            return None;
        }
        refusals.add(
            reason::SERVICE_NOT_FOUND,
            format!("{field}.service"),
            format!("the Service {full} does not exist; create it or correct the rule"),
        );
        return None;
    };
    if seen.selector.is_empty() {
        refusals.add(
            reason::SERVICE_NOT_SELECTABLE,
            format!("{field}.service"),
            format!("the Service {full} selects no Pods; write the cidr of its endpoints instead"),
        );
        return None;
    }
    let protocol = rule.protocol.unwrap_or_default();
    let mut ports = Vec::new();
    for wanted in &rule.ports {
        match seen.ports.iter().find(|p| p.port == *wanted && p.protocol == protocol) {
            Some(port) => ports.push(port.target.clone()),
            None => refusals.add(
                reason::SERVICE_NOT_FOUND,
                format!("{field}.ports"),
                format!("the Service {full} has no {protocol:?} port {wanted}; list its own ports"),
            ),
        }
    }
    (!ports.is_empty()).then(|| ValidatedRule {
        destination: Destination::Pods { namespace: namespace.clone(), selector: seen.selector.clone() },
        ports,
        protocol,
    })
}
