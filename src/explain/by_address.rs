//! What is reached by its address, past the gateway: the `NetworkPolicy` has the `cidr` and `service` rules.
use std::net::IpAddr;

use ipnet::IpNet;

use super::{
    Answer, Finding, Said, Services, Target,
    answer::say_rule,
    by_name::{full_name, key},
    services::Found,
};
use crate::{
    api::v1alpha1::{EgressRule, Protocol},
    policy::{Decision, Reason},
};

/// What the `service` rules say where the `cidr` rules do not allow.
#[derive(Default)]
struct Told {
    allowed: Option<(usize, String, Option<&'static str>)>,
    /// Index of the rule, what it says, and why the Service cannot be read.
    unknown: Option<(usize, String, Option<String>)>,
    denied: Option<(Decision, String)>,
    notes: Vec<String>,
    /// Whether a Service was read and has not the address.
    elsewhere: bool,
}

/// What `rules` say of `address`. `namespace` is the sandbox's own.
pub(super) fn answer(
    rules: &[EgressRule],
    namespace: Option<&str>,
    address: IpAddr,
    target: &Target,
    services: &Services,
) -> Answer {
    let protocol = if target.said == Said::Udp { Protocol::UDP } else { Protocol::TCP };
    let (mut decision, mut message) = by_network(rules, address, target.port, protocol);
    if decision.is_allowed() {
        let mut answer = Answer::decided(target, &decision, &message);
        say_rule(&mut answer, rules, decision.rule);
        return answer;
    }
    let told = by_service(rules, namespace, (address, i32::from(target.port), protocol), services);
    if let Some((index, message, note)) = told.allowed {
        let mut answer = Answer::decided(target, &Decision::allow(index), &message);
        say_rule(&mut answer, rules, Some(index));
        if let Some(note) = note {
            answer.say("note", note);
        }
        return answer;
    }
    if let Some((index, message, unread)) = told.unknown {
        let mut answer = Answer::new(target, Finding::Unknown, &message);
        say_rule(&mut answer, rules, Some(index));
        if let Some(unread) = unread {
            answer.say("unread", &unread);
        }
        return answer;
    }
    if decision.rule.is_none() {
        if told.elsewhere {
            "no cidr rule and no Service that a rule names has this address, and host rules are for names only"
                .clone_into(&mut message);
        }
        if let Some(denied) = told.denied {
            (decision, message) = denied;
        }
    }
    let mut answer = Answer::decided(target, &decision, &message);
    say_rule(&mut answer, rules, decision.rule);
    for note in told.notes {
        answer.say("note", &note);
    }
    answer
}

fn by_service(
    rules: &[EgressRule],
    namespace: Option<&str>,
    (address, port, protocol): (IpAddr, i32, Protocol),
    services: &Services,
) -> Told {
    let mut told = Told::default();
    for (index, rule) in rules.iter().enumerate() {
        let Some(service) = &rule.service else { continue };
        let seen = services.get(&key(service, namespace));
        let at = format!("spec.network.egress[{index}]");
        let opens = format!("{at} opens the Pods of Service {}", full_name(service, namespace));
        if rule.protocol.unwrap_or_default() != protocol {
            if matches!(seen, Some(Ok(seen)) if seen.has(address)) {
                let decision = Decision::deny(Reason::ProtocolNotAllowed, Some(index));
                told.denied.get_or_insert((decision, format!("{at} is not for {protocol:?}")));
            }
            continue;
        }
        match seen {
            None if rule.ports.contains(&port) => {
                let message =
                    format!("{opens} at port {port}; whether this address is one of them is not known here");
                told.unknown.get_or_insert((index, message, None));
            }
            None => told.notes.push(format!(
                "{opens} at its ports {:?}, whose target ports are not known here",
                rule.ports
            )),
            Some(Err(unread)) => {
                let message = format!(
                    "{opens} behind its ports {:?}; whether this address and port are of one is not known",
                    rule.ports
                );
                told.unknown.get_or_insert((index, message, Some(unread.clone())));
            }
            Some(Ok(seen)) => match seen.judge(rule, address, port) {
                Found::Open(how, note) => {
                    told.allowed = Some((index, format!("{opens}{how}"), note));
                    return told;
                }
                Found::Closed(why) => {
                    let decision = Decision::deny(Reason::PortNotAllowed, Some(index));
                    told.denied.get_or_insert((decision, format!("{opens}{why}")));
                }
                Found::Refused(why) => {
                    let message = format!(
                        "{at} opens nothing: the Service {} {why}, and the operator refuses the rule",
                        full_name(service, namespace)
                    );
                    told.denied.get_or_insert((Decision::deny(Reason::NoRule, Some(index)), message));
                }
                Found::Unknown(why) => {
                    told.unknown.get_or_insert((index, format!("{opens}{why}"), None));
                }
                Found::Elsewhere => {
                    told.elsewhere = true;
                    told.notes.push(format!("{opens}: {}", seen.told(rule).join("; ")));
                }
            },
        }
    }
    told
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
