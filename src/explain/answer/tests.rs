//! Answers in tables.
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
    let target = Target::parse(to, "POST", false).unwrap();
    answer(&sandbox.unwrap(), &target, &addresses, &resolved, &Services::new())
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
        {"service": {"name": "cache"}, "ports": [80]},
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
        ("https://a.example:80", false, &["ProtocolNotAllowed", "it has http: and takes plain HTTP only\n"]),
        ("https://other.test", false, &["NoRule", "{host: other.test, ports: [443]}"]),
        ("https://api.example.evil.test", false, &["NoRule"]),
        ("https://user@api.example", false, &["InvalidName", "0x40"]),
        ("https://127.1", false, &["InvalidName", "address"]),
        ("198.51.100.7:5432", true, &["egress[3]", "past the gateway"]),
        ("198.51.100.7:5433", false, &["PortNotAllowed"]),
        ("udp://198.51.100.7:53", true, &["egress[4]"]),
        ("udp://198.51.100.7:5432", false, &["ProtocolNotAllowed"]),
        ("198.51.101.7:443", false, &["NoRule", "names only"]),
        (
            "http://model.serving.svc",
            false,
            &[
                "NoRule: a sandbox does not resolve names of Services; give the agent its ClusterIP (kubectl get service model -n serving)\n",
                "egress[5]",
            ],
        ),
        (
            "http://model.serving",
            false,
            &["its ClusterIP (kubectl get service model -n serving)", "egress[5]"],
        ),
        ("https://cache", false, &["its ClusterIP (kubectl get service cache)", "egress[6]"]),
        ("https://cache.a.svc.cluster.local", false, &["(kubectl get service cache -n a)", "egress[6]"]),
        ("https://cache.test", false, &["{host: cache.test, ports: [443]}"]),
        // It may be a host of the Internet.
        (
            "http://model.test",
            false,
            &["{host: model.test, ports: [80]}", "note:        spec.network.egress[5]"],
        ),
    ] {
        let answer = told(&rules, to, &[]);
        let text = answer.to_string();
        assert_eq!(answer.finding == Finding::Allowed, allowed, "{text}");
        assert_eq!(
            (text.contains(": allowed\n"), text.contains(": denied\n")),
            (allowed, !allowed),
            "{text}"
        );
        for part in parts.iter().chain(&["  policy:      sha256:"]) {
            assert!(text.contains(part), "{to}: {part} in {text}");
        }
    }
}

#[test]
fn addresses_are_vetted_after_the_name() {
    let rules = json!([{"host": "api.example", "ports": [443]}]);
    let with = |addresses: &[&str]| {
        let answer = told(&rules, "https://api.example", addresses);
        (answer.finding, answer.to_string())
    };
    let (_, text) = with(&[]);
    assert!(text.contains("also 203.0.113.0/24 (the administrator's exceptions); none of 10.244.0.0/16"));
    let (finding, text) = with(&["10.244.0.1", "203.0.113.9", "8.8.8.8"]);
    assert!(finding == Finding::Allowed && text.contains("10.244.0.1 is refused: ClusterRange"), "{text}");
    assert!(text.contains("203.0.113.9 is dialled") && text.contains("8.8.8.8 is dialled"), "{text}");
    let (finding, text) = with(&["169.254.169.254", "192.168.0.1"]);
    assert!(finding == Finding::Denied && text.starts_with("api.example:443 by TLS: denied\n"), "{text}");
    assert!(text.contains("AddressRefused"), "{text}");
}

/// What is asked about does not matter then: nothing runs.
#[test]
fn a_sandbox_that_is_refused_reaches_nothing() {
    for (rule, refusal) in [
        (json!({"host": "*", "ports": [443]}), "spec.network.egress[1].host: `*` has a *"),
        (json!({"cidr": "10.0.0.0/8", "ports": [443]}), "[1].cidr: 10.0.0.0/8 overlaps 10.244.0.0/16"),
        (json!({"cidr": "198.51.100.7/24", "ports": [443]}), "198.51.100.7/24 has host bits; write"),
    ] {
        let rules = json!([{"host": "api.example", "ports": [443]}, rule]);
        for to in ["https://api.example", "10.1.1.1:443", "198.51.100.7:443"] {
            let answer = told(&rules, to, &[]);
            let text = answer.to_string();
            assert_eq!(answer.finding, Finding::Denied, "{text}");
            let said = text.contains("NotAccepted: the sandbox is refused, and has no Pod\n");
            assert!(
                said && text.contains("  refusal:     spec.network.") && text.contains(refusal),
                "{text}"
            );
        }
    }
}

/// Which addresses the Pods of a Service have, and which ports, only the cluster knows.
#[test]
fn a_rule_for_a_service_may_open_an_address() {
    let rules = json!([
        {"host": "api.example", "ports": [443]},
        {"service": {"name": "model", "namespace": "serving"}, "ports": [80, 81]},
        {"service": {"name": "names"}, "ports": [53], "protocol": "UDP"},
        {"cidr": "198.51.100.0/24", "ports": [443]},
    ]);
    for (to, finding, said) in [
        (
            "10.244.1.7:80",
            Finding::Unknown,
            "spec.network.egress[1] opens the Pods of Service serving/model at port 80; whether this address is one of them is not known here\n",
        ),
        ("tcp://[fd00::7]:81", Finding::Unknown, "serving/model at port 81"),
        ("http://198.51.100.7", Finding::Unknown, "serving/model at port 80"),
        ("udp://10.244.1.7:53", Finding::Unknown, "egress[2] opens the Pods of Service names at port 53"),
        (
            "udp://10.244.1.7:80",
            Finding::Denied,
            "egress[2] opens the Pods of Service names at its ports [53]",
        ),
        (
            "10.244.1.7:8080",
            Finding::Denied,
            "egress[1] opens the Pods of Service serving/model at its ports [80, 81], whose target ports are not known here",
        ),
        ("198.51.100.7:443", Finding::Allowed, "egress[3] opens 198.51.100.0/24"),
    ] {
        let answer = told(&rules, to, &[]);
        let text = answer.to_string();
        assert_eq!(answer.finding, finding, "{text}");
        assert!(text.contains(said), "{to}: {text}");
        assert_eq!(text.contains(": not known\n"), finding == Finding::Unknown, "{text}");
        assert!(
            !text.contains(if finding == Finding::Unknown { "NoRule" } else { ": not known\n" }),
            "{text}"
        );
    }
}

#[test]
fn what_is_seldom_meant_is_a_warning() {
    let rules = json!([{"host": "api.example", "ports": [443]}, {"host": "*.github.io", "ports": [443]}]);
    let answer = told(&rules, "https://api.example", &[]);
    assert!(!answer.to_string().contains("warning:"), "{answer}");
    assert_eq!(answer.warnings.len(), 1);
    assert!(answer.warnings[0].starts_with("spec.network.egress[1].host: `*.github.io`"));
}
