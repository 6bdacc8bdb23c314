//! What is reached by its address, past the gateway: the `NetworkPolicy` has the `cidr` rules.
use std::net::IpAddr;

use ipnet::IpNet;

use super::{Answer, Said, Target, answer::say_rule};
use crate::{
    api::v1alpha1::{EgressRule, Protocol},
    policy::{Decision, Reason},
};

/// What `rules` say of `address`.
pub(super) fn answer(rules: &[EgressRule], address: IpAddr, target: &Target) -> Answer {
    let protocol = if target.said == Said::Udp { Protocol::UDP } else { Protocol::TCP };
    let (decision, message) = by_network(rules, address, target.port, protocol);
    let mut answer = Answer::decided(target, &decision, &message);
    say_rule(&mut answer, rules, decision.rule);
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
