//! The answer: pure.
use std::{fmt::Write as _, net::IpAddr};

use ipnet::IpNet;

use super::{Endpoint, Said, Target};
use crate::{
    api::v1alpha1::{AgentSandbox, EgressRule, Protocol},
    policy::{Accepted, AddressPolicy, AppProtocol, Decision, EffectivePolicy, HostName, Reason, reserved},
};

/// What is printed, and whether the target is allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Whether it is allowed.
    pub allowed: bool,
    /// Lines for a person.
    pub text: String,
    /// What in the sandbox's rules is seldom meant.
    pub warnings: Vec<String>,
}

impl Answer {
    fn new(target: &Target, decision: &Decision, message: &str) -> Self {
        let verdict = if decision.is_allowed() { "allowed" } else { "denied" };
        let text = format!("{target}: {verdict}\n");
        let mut answer = Self { allowed: decision.is_allowed(), text, warnings: Vec::new() };
        answer.say("reason", &format!("{}: {message}", decision.reason));
        answer
    }

    /// Adds a line.
    pub(super) fn say(&mut self, what: &str, text: &str) {
        // Writing to a String never fails.
        let _ = writeln!(self.text, "  {:<12} {text}", format!("{what}:"));
    }
}

/// What `sandbox` may do at `target`. `resolved` are addresses that its name leads to, and `addresses` which of them the
/// gateway dials.
pub fn answer(
    sandbox: &AgentSandbox,
    target: &Target,
    addresses: &AddressPolicy,
    resolved: &[IpAddr],
) -> Answer {
    let network = sandbox.spec.network.as_ref();
    let policy = match EffectivePolicy::of(network) {
        Ok(policy) => policy,
        Err(error) => {
            let message = format!("the sandbox is refused, and has no Pod: {error}");
            return Answer::new(target, &Decision::deny(Reason::NoRule, None), &message);
        }
    };
    let rules = network.map_or(&[][..], |n| n.egress.as_slice());
    let mut answer = match &target.endpoint {
        Endpoint::Invalid(_, error) => {
            let decision = Decision::deny(Reason::InvalidName, None);
            Answer::new(target, &decision, &format!("this has {error}"))
        }
        Endpoint::Address(address) => by_address(rules, *address, target, &addresses.cluster),
        Endpoint::Host(name) => {
            let decision = decide(&policy, name, target);
            let message = match target.said {
                Said::Udp if decision.rule.is_some() => {
                    "host rules carry TCP only; for UDP write cidr".to_owned()
                }
                _ => decision.message(name, target.port),
            };
            let mut answer = Answer::new(target, &decision, &message);
            say_rule(&mut answer, rules, decision.rule);
            if decision.is_allowed() {
                if let Some(rule) = policy.rules().iter().find(|rule| Some(rule.index) == decision.rule) {
                    answer.say("looked at", &looked_at(&rule.accepted, name, &target.said));
                }
                vet(&mut answer, addresses, resolved);
            } else if let Some(hint) = service_hint(rules, name) {
                answer.say("note", &hint);
            }
            answer
        }
    };
    answer.say("policy", policy.digest());
    answer.warnings.extend(policy.warnings().iter().map(ToString::to_string));
    answer
}

fn decide(policy: &EffectivePolicy, name: &HostName, target: &Target) -> Decision {
    let port = target.port;
    match &target.said {
        Said::Nothing => policy.decide(name, port),
        Said::Tls { ech } => policy.decide_protocol(name, port, AppProtocol::Tls, *ech),
        Said::Tcp => policy.decide_protocol(name, port, AppProtocol::Other, false),
        Said::Http { method, path } => {
            let opened = policy.decide_protocol(name, port, AppProtocol::Http, false);
            if opened.is_allowed() { policy.decide_http(name, port, method, path) } else { opened }
        }
        Said::Udp => {
            let opened = policy.decide(name, port);
            let reason = if opened.is_allowed() { Reason::ProtocolNotAllowed } else { opened.reason };
            Decision::deny(reason, opened.rule)
        }
    }
}

/// An address is reached past the gateway: the `NetworkPolicy` has the `cidr` rules.
fn by_address(rules: &[EgressRule], address: IpAddr, target: &Target, cluster: &[IpNet]) -> Answer {
    let protocol = if target.said == Said::Udp { Protocol::UDP } else { Protocol::TCP };
    let mut nearest = None;
    for (index, rule) in rules.iter().enumerate() {
        let network = rule.cidr.as_deref().and_then(|cidr| cidr.parse::<IpNet>().ok());
        let Some(network) = network.filter(|network| network.contains(&address)) else { continue };
        let at = format!("spec.network.egress[{index}]");
        let (decision, message) = if let Some(reserved) = reserved::overlap(&network, cluster) {
            let message = format!(
                "the sandbox is refused, and has no Pod: {at} overlaps {} ({}), which no rule may open",
                reserved.network, reserved.what
            );
            (Decision::deny(Reason::NoRule, Some(index)), message)
        } else if !rule.ports.contains(&i32::from(target.port)) {
            (Decision::deny(Reason::PortNotAllowed, Some(index)), format!("{at} lists other ports"))
        } else if rule.protocol.unwrap_or_default() != protocol {
            (Decision::deny(Reason::ProtocolNotAllowed, Some(index)), format!("{at} is not for {protocol:?}"))
        } else {
            let decision = Decision::allow(index);
            (
                decision,
                format!("{at} opens {network}, past the gateway; nothing of what is said is looked at"),
            )
        };
        if decision.is_allowed() {
            nearest = Some((decision, message));
            break;
        }
        nearest.get_or_insert((decision, message));
    }
    let (decision, message) = nearest.unwrap_or_else(|| {
        let message = "no cidr rule has this address, and host rules are for names only".to_owned();
        (Decision::deny(Reason::NoRule, None), message)
    });
    let mut answer = Answer::new(target, &decision, &message);
    say_rule(&mut answer, rules, decision.rule);
    answer
}

fn say_rule(answer: &mut Answer, rules: &[EgressRule], index: Option<usize>) {
    let Some((index, rule)) = index.and_then(|index| rules.get(index).map(|rule| (index, rule))) else {
        return;
    };
    let json = serde_json::to_string(rule).unwrap_or_default();
    // JSON escapes control characters of ASCII only.
    let plain = |c: char| if c.is_ascii() { c.to_string() } else { c.escape_unicode().to_string() };
    let json: String = json.chars().map(plain).collect();
    answer.say("rule", &format!("spec.network.egress[{index}] {json}"));
}

fn looked_at(accepted: &Accepted, name: &HostName, said: &Said) -> String {
    let tls = format!("the server name of the TLS hello has to be {name}");
    let http = format!("the host of every HTTP request has to be {name}");
    match (accepted, said) {
        (Accepted::Anything, _) => "nothing of what is said, for the rule has protocol: TCP".to_owned(),
        (Accepted::Tls { ech: true }, _) => {
            format!("{tls}, or stand in front of an encrypted one that nobody can check")
        }
        (Accepted::Tls { ech: false }, _) | (Accepted::TlsAndHttp, Said::Tls { .. }) => tls,
        (Accepted::Http { .. }, _) => format!("{http}, and method and path have to be the rule's"),
        (Accepted::TlsAndHttp, Said::Http { .. }) => http,
        (Accepted::TlsAndHttp, _) => format!("{tls}, or {http}; nothing else passes"),
    }
}

/// What happens after the name was resolved.
fn vet(answer: &mut Answer, addresses: &AddressPolicy, resolved: &[IpAddr]) {
    let list = |nets: &[IpNet]| nets.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let AddressPolicy { cluster, reachable } = addresses;
    let mut text = "the gateway dials global ones".to_owned();
    if !reachable.is_empty() {
        text.push_str(&format!("; also {} (the administrator's exceptions)", list(reachable)));
    }
    if !cluster.is_empty() {
        text.push_str(&format!("; none of {} (the cluster's own)", list(cluster)));
    }
    answer.say("addresses", &text);
    let mut passed = resolved.is_empty();
    for address in resolved {
        match addresses.vet(*address) {
            Ok(()) => {
                passed = true;
                answer.say("address", &format!("{address} is dialled"));
            }
            Err(class) => answer.say("address", &format!("{address} is refused: {class}")),
        }
    }
    if !passed {
        answer.allowed = false;
        answer.text = answer.text.replacen(": allowed\n", ": denied\n", 1);
        answer.say("refused", "AddressRefused: no address that the name leads to may be dialled");
    }
}

/// Whoever asks for `model.serving` may have meant the rule for the Service of that name.
fn service_hint(rules: &[EgressRule], name: &HostName) -> Option<String> {
    let first = name.as_str().split('.').next()?;
    let index = rules.iter().position(|r| r.service.as_ref().is_some_and(|s| s.name == first))?;
    Some(format!(
        "spec.network.egress[{index}] opens the Pods of a Service of that name by their addresses; a sandbox does not resolve names of Services"
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn told(rules: &Value, to: &str, resolved: &[&str]) -> Answer {
        let sandbox = serde_json::from_value(json!({
            "apiVersion": "agentsandbox.dev/v1alpha1", "kind": "AgentSandbox", "metadata": {"name": "fix"},
            "spec": {"image": "a", "command": ["/a"], "network": {"egress": rules}},
        }));
        let addresses = AddressPolicy {
            cluster: vec!["10.244.0.0/16".parse().unwrap()],
            reachable: vec!["203.0.113.0/24".parse().unwrap()],
        };
        let resolved: Vec<IpAddr> = resolved.iter().map(|a| a.parse().unwrap()).collect();
        answer(&sandbox.unwrap(), &Target::parse(to, "POST", false).unwrap(), &addresses, &resolved)
    }

    #[test]
    fn an_answer_names_the_rule_and_what_is_looked_at() {
        let rules = json!([
            {"host": "api.example", "ports": [443]},
            {"host": "git.example", "ports": [22], "protocol": "TCP"},
            {"host": "*.example", "ports": [80], "http": {"methods": ["GET"], "pathPrefixes": ["/v1"]}},
            {"cidr": "198.51.100.0/24", "ports": [5432]},
            {"cidr": "198.51.100.0/25", "ports": [53], "protocol": "UDP"},
            {"service": {"name": "model", "namespace": "serving"}, "ports": [80]},
        ]);
        for (to, allowed, parts) in [
            (
                "https://api.example",
                true,
                &["AllowedByRule", "egress[0] {", "server name of the TLS hello has to be api.example"][..],
            ),
            ("api.example:443", true, &["nothing else passes"]),
            ("tcp://api.example:443", false, &["ProtocolNotAllowed", "protocol: TCP"]),
            ("https://api.example:444", false, &["PortNotAllowed", "adds 444"]),
            ("udp://api.example:443", false, &["ProtocolNotAllowed", "TCP only"]),
            ("tcp://git.example:22", true, &["nothing of what is said"]),
            ("http://a.example/v1", false, &["MethodNotAllowed", "egress[2]"]),
            ("https://other.test", false, &["NoRule", "{host: other.test, ports: [443]}"]),
            ("https://api.example.evil.test", false, &["NoRule"]),
            ("https://user@api.example", false, &["InvalidName", "0x40"]),
            ("https://127.1", false, &["InvalidName", "address"]),
            ("198.51.100.7:5432", true, &["egress[3]", "past the gateway"]),
            ("198.51.100.7:5433", false, &["PortNotAllowed"]),
            ("udp://198.51.100.7:53", true, &["egress[4]"]),
            ("udp://198.51.100.7:5432", false, &["ProtocolNotAllowed"]),
            ("198.51.101.7:443", false, &["NoRule", "names only"]),
            ("http://model.serving.svc", false, &["NoRule", "does not resolve names of Services"]),
        ] {
            let answer = told(&rules, to, &[]);
            assert_eq!(answer.allowed, allowed, "{}", answer.text);
            assert_eq!(answer.text.contains(": allowed\n"), allowed, "{}", answer.text);
            for part in parts.iter().chain(&["  policy:      sha256:"]) {
                assert!(answer.text.contains(part), "{to}: {part} in {}", answer.text);
            }
        }
    }

    #[test]
    fn addresses_are_vetted_after_the_name() {
        let rules = json!([{"host": "api.example", "ports": [443]}]);
        let all = told(&rules, "https://api.example", &[]);
        assert!(
            all.text.contains("also 203.0.113.0/24 (the administrator's exceptions); none of 10.244.0.0/16")
        );
        let some = told(&rules, "https://api.example", &["10.244.0.1", "203.0.113.9", "8.8.8.8"]);
        assert!(some.allowed && some.text.contains("10.244.0.1 is refused: ClusterRange"), "{}", some.text);
        assert!(some.text.contains("203.0.113.9 is dialled") && some.text.contains("8.8.8.8 is dialled"));
        let none = told(&rules, "https://api.example", &["169.254.169.254", "192.168.0.1"]);
        assert!(!none.allowed && none.text.starts_with("api.example:443 by TLS: denied\n"), "{}", none.text);
        assert!(none.text.contains("AddressRefused"), "{}", none.text);
    }

    #[test]
    fn a_policy_that_is_none_allows_nothing() {
        let answer = told(&json!([{"host": "*", "ports": [443]}]), "https://api.example", &[]);
        assert!(!answer.allowed && answer.text.contains("spec.network.egress[0].host"), "{}", answer.text);
        let answer = told(&json!([{"cidr": "10.0.0.0/8", "ports": [443]}]), "10.1.1.1:443", &[]);
        assert!(!answer.allowed && answer.text.contains("overlaps 10.244.0.0/16"), "{}", answer.text);
    }

    #[test]
    fn what_is_seldom_meant_is_a_warning() {
        let rules = json!([{"host": "api.example", "ports": [443]}, {"host": "*.github.io", "ports": [443]}]);
        let answer = told(&rules, "https://api.example", &[]);
        assert_eq!(answer.warnings.len(), 1);
        assert!(answer.warnings[0].starts_with("spec.network.egress[1].host: `*.github.io`"));
    }
}
