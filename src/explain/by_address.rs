//! What is reached by its address, past the gateway: the `NetworkPolicy` has the `cidr` and `service` rules.
use std::net::IpAddr;

use ipnet::IpNet;

use super::{Answer, Finding, Said, Target, answer::say_rule};
use crate::{
    api::v1alpha1::{EgressRule, Protocol, ServiceReference},
    policy::{Decision, Reason, shown},
};

/// What `rules` say of `address`. `namespace` is the sandbox's own.
pub(super) fn answer(
    rules: &[EgressRule],
    namespace: Option<&str>,
    address: IpAddr,
    target: &Target,
) -> Answer {
    let protocol = if target.said == Said::Udp { Protocol::UDP } else { Protocol::TCP };
    let (decision, message) = by_network(rules, address, target.port, protocol);
    if decision.is_allowed() {
        let mut answer = Answer::decided(target, &decision, &message);
        say_rule(&mut answer, rules, decision.rule);
        return answer;
    }
    let services: Vec<_> = rules
        .iter()
        .enumerate()
        .filter(|(_, rule)| rule.protocol.unwrap_or_default() == protocol)
        .filter_map(|(index, rule)| rule.service.as_ref().map(|service| (index, rule, service)))
        .collect();
    let port = i32::from(target.port);
    if let Some((index, _, service)) = services.iter().find(|(_, rule, _)| rule.ports.contains(&port)) {
        let message = format!(
            "spec.network.egress[{index}] opens the Pods of Service {} at port {port}; whether this address is one of them is not known here",
            full_name(service, namespace)
        );
        let mut answer = Answer::new(target, Finding::Unknown, &message);
        say_rule(&mut answer, rules, Some(*index));
        return answer;
    }
    let mut answer = Answer::decided(target, &decision, &message);
    say_rule(&mut answer, rules, decision.rule);
    for (index, rule, service) in services {
        let note = format!(
            "spec.network.egress[{index}] opens the Pods of Service {} at its ports {:?}, whose target ports are not known here",
            full_name(service, namespace),
            rule.ports
        );
        answer.say("note", &note);
    }
    answer
}

/// What the `cidr` rules say: the first that allows, else the first that has the address.
fn by_network(rules: &[EgressRule], address: IpAddr, port: u16, protocol: Protocol) -> (Decision, String) {
    let mut nearest = None;
    for (index, rule) in rules.iter().enumerate() {
        let network = rule.cidr.as_deref().and_then(|cidr| cidr.parse::<IpNet>().ok());
        let Some(network) = network.filter(|network| network.contains(&address)) else { continue };
        let at = format!("spec.network.egress[{index}]");
        let (reason, message) = if !rule.ports.contains(&i32::from(port)) {
            (Reason::PortNotAllowed, format!("{at} lists other ports"))
        } else if rule.protocol.unwrap_or_default() != protocol {
            (Reason::ProtocolNotAllowed, format!("{at} is not for {protocol:?}"))
        } else {
            let message =
                format!("{at} opens {network}, past the gateway; nothing of what is said is looked at");
            return (Decision::allow(index), message);
        };
        nearest.get_or_insert((Decision::deny(reason, Some(index)), message));
    }
    nearest.unwrap_or_else(|| {
        let message = "no cidr rule has this address, and host rules are for names only".to_owned();
        (Decision::deny(Reason::NoRule, None), message)
    })
}

fn full_name(service: &ServiceReference, own: Option<&str>) -> String {
    match service.namespace.as_deref().or(own) {
        Some(namespace) => format!("{}/{}", shown(namespace), shown(&service.name)),
        None => shown(&service.name),
    }
}
