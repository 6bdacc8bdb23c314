//! The answer: pure.
use std::{fmt, net::IpAddr};

use ipnet::IpNet;

use super::{Endpoint, Said, Services, Target, accepted, by_address, by_name, loopback};
use crate::{
    api::v1alpha1::{AgentSandbox, EgressRule},
    policy::{
        Accepted, AddressPolicy, AppProtocol, Decision, EffectivePolicy, HostName, HostRule, PolicyWarning,
        Reason,
    },
};

/// Whether a target is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finding {
    /// A rule allows it.
    Allowed,
    /// No rule does, or nothing of the sandbox runs.
    Denied,
    /// Only the cluster knows.
    Unknown,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::Unknown => "not known",
        })
    }
}

/// The reason where the spec is refused.
pub(super) const NOT_ACCEPTED: &str = "NotAccepted";

/// What is printed, and whether the target is allowed. Its text is lines for a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Whether it is allowed.
    pub finding: Finding,
    /// What in the sandbox's rules is seldom meant.
    pub warnings: Vec<String>,
    target: String,
    reason: String,
    lines: String,
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.target, self.finding)?;
        write_line(f, "reason", &self.reason)?;
        f.write_str(&self.lines)
    }
}

impl Answer {
    pub(super) fn new(target: &Target, finding: Finding, reason: &str) -> Self {
        let (target, reason) = (target.to_string(), reason.to_owned());
        Self { finding, warnings: Vec::new(), target, reason, lines: String::new() }
    }

    /// The answer that `decision` is.
    pub(super) fn decided(target: &Target, decision: &Decision, message: &str) -> Self {
        let finding = if decision.is_allowed() { Finding::Allowed } else { Finding::Denied };
        Self::new(target, finding, &format!("{}: {message}", decision.reason))
    }

    /// Adds a line.
    pub(super) fn say(&mut self, what: &str, text: &str) {
        // Writing to a String never fails.
        let _ = write_line(&mut self.lines, what, text);
    }

    /// The operator refuses the spec for `reason` while the agent runs: the gateway follows its `host` rules all the same,
    /// and of the others the policy has those that are right, which only the operator knows.
    pub(super) fn refuse_in_part(&mut self, target: &Target, reason: &str) {
        self.say("refused", reason);
        let by_policy = matches!(target.endpoint, Endpoint::Address(address) if !loopback::has(address));
        if self.finding == Finding::Allowed && by_policy {
            self.finding = Finding::Unknown;
        }
    }

    /// Makes `reason`, for which the operator refuses the spec, the answer. What the rules themselves say stays.
    pub(super) fn refuse(&mut self, reason: &str) {
        self.finding = Finding::Denied;
        let rules = std::mem::replace(&mut self.reason, reason.to_owned());
        if !rules.starts_with(NOT_ACCEPTED) {
            self.say("rules say", &rules);
        }
    }
}

fn write_line(to: &mut impl fmt::Write, what: &str, text: &str) -> fmt::Result {
    writeln!(to, "  {:<12} {text}", format!("{what}:"))
}

/// What `sandbox` may do at `target`. `resolved` are addresses that its name leads to, and `addresses` which of them the
/// gateway dials; `services` is what was read of the cluster's Services.
pub fn answer(
    sandbox: &AgentSandbox,
    target: &Target,
    addresses: &AddressPolicy,
    resolved: &[IpAddr],
    services: &Services,
) -> Answer {
    let refusals = accepted::refusals(sandbox, addresses);
    if !refusals.is_empty() {
        return refused(sandbox, target, &refusals);
    }
    by_rules(sandbox, target, addresses, resolved, services)
}

/// What the rules say, whether or not the operator accepts all of the spec.
pub(super) fn by_rules(
    sandbox: &AgentSandbox,
    target: &Target,
    addresses: &AddressPolicy,
    resolved: &[IpAddr],
    services: &Services,
) -> Answer {
    let network = sandbox.spec.network.as_ref();
    let policy = match EffectivePolicy::of(network) {
        Ok(policy) => policy,
        Err(error) => return refused(sandbox, target, &[error.to_string()]),
    };
    let rules = network.map_or(&[][..], |n| n.egress.as_slice());
    let own = sandbox.metadata.namespace.as_deref();
    let mut warnings = PolicyWarning::all(network);
    let mut answer = match (loopback::answer(target), &target.endpoint) {
        (Some(answer), _) => answer,
        (None, Endpoint::Invalid(_, error)) => {
            let decision = Decision::deny(Reason::InvalidName, None);
            Answer::decided(target, &decision, &format!("this has {error}"))
        }
        (None, Endpoint::Address(address)) => by_address::answer(rules, own, *address, target, services),
        (None, Endpoint::Host(name)) => {
            let decision = decide(&policy, name, target);
            let rule = policy.rules().iter().find(|rule| Some(rule.index) == decision.rule);
            let message = match (&target.said, rule) {
                (Said::Udp, Some(_)) => "host rules carry TCP only; for UDP write cidr".to_owned(),
                (_, Some(rule)) if decision.reason == Reason::ProtocolNotAllowed => {
                    other_protocol(rule, name, target.port)
                }
                (_, None) => by_name::advice(rules, own, name, services)
                    .unwrap_or_else(|| decision.message(name, target.port)),
                _ => decision.message(name, target.port),
            };
            let mut answer = Answer::decided(target, &decision, &message);
            say_rule(&mut answer, rules, decision.rule);
            // Where people look: it may say that what is allowed leads nowhere.
            for warning in warnings.extract_if(.., |warning| Some(warning.rule) == decision.rule) {
                answer.say("warning", &warning.message);
            }
            if decision.is_allowed() {
                if let Some(rule) = rule {
                    answer.say("looked at", &looked_at(&rule.accepted, name, &target.said));
                }
                vet(&mut answer, addresses, resolved);
            } else {
                by_name::say_service(&mut answer, rules, own, name, services);
            }
            answer
        }
    };
    answer.say("policy", policy.digest());
    answer.warnings.extend(warnings.iter().map(ToString::to_string));
    answer
}

/// What `rule` takes instead of what was asked about.
fn other_protocol(rule: &HostRule, name: &HostName, port: u16) -> String {
    let takes = match &rule.accepted {
        Accepted::Http { .. } => "it has http: and takes plain HTTP only",
        Accepted::Tls { .. } => "it has tls: and takes TLS only",
        // The former takes anything, and refuses no protocol.
        Accepted::Anything | Accepted::TlsAndHttp => {
            "it takes TLS and plain HTTP only; with `protocol: TCP` it would take anything"
        }
    };
    format!("spec.network.egress[{}] does not take this protocol on {name}:{port}: {takes}", rule.index)
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

fn refused(sandbox: &AgentSandbox, target: &Target, refusals: &[String]) -> Answer {
    let has_pod = sandbox.status.as_ref().is_some_and(|status| status.pod_name.is_some());
    let pod = if has_pod { "" } else { ", and has no Pod" };
    let mut answer =
        Answer::new(target, Finding::Denied, &format!("{NOT_ACCEPTED}: the sandbox is refused{pod}"));
    for refusal in refusals {
        answer.say("refusal", refusal);
    }
    answer
}

pub(super) fn say_rule(answer: &mut Answer, rules: &[EgressRule], index: Option<usize>) {
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
        answer.finding = Finding::Denied;
        answer.say("refused", "AddressRefused: no address that the name leads to may be dialled");
    }
}

#[cfg(test)]
mod tests;
