//! Decisions in tables, and against an oracle that reads the rules as their documentation does.
use proptest::{collection, option, prelude::*, sample::select};
use serde_json::{Value, json};

use super::*;
use crate::{
    api::v1alpha1::{EgressRule, HttpRule, Protocol, TlsRule},
    policy::Verdict,
};

fn policy(rules: &Value) -> EffectivePolicy {
    EffectivePolicy::of(Some(&serde_json::from_value(json!({"egress": rules})).unwrap())).unwrap()
}

fn name(text: &str) -> HostName {
    text.parse().unwrap()
}

fn told(decision: Decision) -> (Option<usize>, Reason) {
    assert_eq!(decision.is_allowed(), decision.reason == Reason::AllowedByRule);
    (decision.rule, decision.reason)
}

#[test]
fn any_rule_that_allows_allows() {
    let policy = policy(&json!([
        {"cidr": "198.51.100.0/24", "ports": [443]},
        {"host": "api.example", "ports": [443]},
        {"host": "*.example", "ports": [80, 8080]},
        {"host": "**.example", "ports": [443]},
    ]));
    for (host, port, rule, reason) in [
        ("api.example", 443, Some(1), Reason::AllowedByRule),
        ("api.example", 80, Some(2), Reason::AllowedByRule),
        ("api.example", 22, Some(1), Reason::PortNotAllowed),
        ("a.b.example", 443, Some(3), Reason::AllowedByRule),
        ("a.b.example", 80, Some(3), Reason::PortNotAllowed),
        ("example", 443, None, Reason::NoRule),
        ("api.example.evil", 443, None, Reason::NoRule),
    ] {
        assert_eq!(told(policy.decide(&name(host), port)), (rule, reason), "{host}:{port}");
    }
}

#[test]
fn what_a_rule_takes_is_what_it_says() {
    use AppProtocol::{Http, Other, Tls};
    let policy = policy(&json!([
        {"host": "plain.example", "ports": [443]},
        {"host": "any.example", "ports": [22], "protocol": "TCP"},
        {"host": "http.example", "ports": [80], "http": {"methods": ["GET"], "pathPrefixes": ["/v1"]}},
        {"host": "tls.example", "ports": [443], "tls": {}},
        {"host": "ech.example", "ports": [443], "tls": {"allowEncryptedClientHello": true}},
        {"host": "*.example", "ports": [443], "tls": {"allowEncryptedClientHello": true}},
    ]));
    for (host, port, protocol, ech, rule, reason) in [
        ("plain.example", 443, Tls, false, Some(0), Reason::AllowedByRule),
        ("plain.example", 443, Http, false, Some(0), Reason::AllowedByRule),
        ("plain.example", 443, Other, false, Some(0), Reason::ProtocolNotAllowed),
        // Not by the rule of its own, but by the wider one.
        ("plain.example", 443, Tls, true, Some(5), Reason::AllowedByRule),
        ("any.example", 22, Other, false, Some(1), Reason::AllowedByRule),
        ("any.example", 22, Tls, true, Some(1), Reason::AllowedByRule),
        ("any.example", 23, Other, false, Some(1), Reason::PortNotAllowed),
        ("http.example", 80, Http, false, Some(2), Reason::AllowedByRule),
        ("http.example", 80, Tls, false, Some(2), Reason::ProtocolNotAllowed),
        ("tls.example", 443, Http, false, Some(3), Reason::ProtocolNotAllowed),
        ("ech.example", 443, Tls, true, Some(4), Reason::AllowedByRule),
        ("a.b", 443, Tls, false, None, Reason::NoRule),
    ] {
        let decision = policy.decide_protocol(&name(host), port, protocol, ech);
        assert_eq!(told(decision), (rule, reason), "{host}:{port} {protocol:?} {ech}");
    }
    for (host, port, method, path, rule, reason) in [
        ("plain.example", 443, "BREW", "*", Some(0), Reason::AllowedByRule),
        ("any.example", 22, "GET", "/", Some(1), Reason::AllowedByRule),
        ("http.example", 80, "GET", "/v1/a?b=c", Some(2), Reason::AllowedByRule),
        ("http.example", 80, "get", "/v1/a", Some(2), Reason::MethodNotAllowed),
        ("http.example", 80, "POST", "/v1/a", Some(2), Reason::MethodNotAllowed),
        ("http.example", 80, "GET", "/v10", Some(2), Reason::PathNotAllowed),
        ("http.example", 80, "GET", "/v1/../a", Some(2), Reason::PathNotAllowed),
        ("http.example", 81, "GET", "/v1", Some(2), Reason::PortNotAllowed),
        ("tls.example", 443, "GET", "/", Some(3), Reason::ProtocolNotAllowed),
    ] {
        let decision = policy.decide_http(&name(host), port, method, path);
        assert_eq!(told(decision), (rule, reason), "{host}:{port} {method} {path}");
    }
}

#[test]
fn a_hidden_name_is_refused_unless_a_rule_says_otherwise() {
    let policy = policy(&json!([
        {"host": "a.example", "ports": [443]}, {"host": "b.example", "ports": [443], "tls": {}},
    ]));
    for (host, rule) in [("a.example", 0), ("b.example", 1)] {
        let decision = policy.decide_protocol(&name(host), 443, AppProtocol::Tls, true);
        assert_eq!(told(decision), (Some(rule), Reason::EchNotAllowed));
    }
}

#[test]
fn no_policy_allows_nothing() {
    for policy in [EffectivePolicy::of(None).unwrap(), policy(&json!([]))] {
        assert_eq!(told(policy.decide(&name("a.example"), 443)), (None, Reason::NoRule));
        assert_eq!((policy.allowed_hosts(), policy.bytes()), (vec![], None));
        assert_eq!(policy.digest(), digest(None));
    }
}

#[test]
fn hosts_are_listed_in_the_order_of_the_rules() {
    let policy = policy(&json!([
        {"host": "B.Example", "ports": [443, 80]},
        {"service": {"name": "model"}, "ports": [80]},
        {"host": "**.a.example", "ports": [22], "protocol": "TCP"},
    ]));
    let host =
        |pattern: &str, ports: &[u16]| AllowedHost { pattern: pattern.to_owned(), ports: ports.to_vec() };
    assert_eq!(policy.allowed_hosts(), [host("b.example", &[443, 80]), host("**.a.example", &[22])]);
    assert_eq!(policy.rules()[1].index, 2);
}

#[test]
fn a_policy_with_a_bad_rule_is_none() {
    let rule = "spec.network.egress[0]";
    let many = vec!["GET"; 17];
    for (bad, field) in [
        (json!({"ports": [443]}), rule.to_owned()),
        (json!({"host": "a", "cidr": "198.51.100.0/24", "ports": [443]}), rule.to_owned()),
        (json!({"host": "127.0.0.1", "ports": [443]}), format!("{rule}.host")),
        (json!({"host": "*", "ports": [443]}), format!("{rule}.host")),
        (json!({"host": "a\u{0}b", "ports": [443]}), format!("{rule}.host")),
        (json!({"host": "a.example", "ports": []}), format!("{rule}.ports")),
        (json!({"host": "a.example", "ports": [0]}), format!("{rule}.ports")),
        (json!({"host": "a.example", "ports": [65536]}), format!("{rule}.ports")),
        (json!({"host": "a.example", "ports": [-1]}), format!("{rule}.ports")),
        (json!({"host": "a.example", "ports": (1..18).collect::<Vec<_>>()}), format!("{rule}.ports")),
        (json!({"host": "a.example", "ports": [443], "protocol": "UDP"}), format!("{rule}.protocol")),
        (
            json!({"host": "a.example", "ports": [443], "protocol": "TCP", "http": {}}),
            format!("{rule}.protocol"),
        ),
        (
            json!({"host": "a.example", "ports": [443], "protocol": "TCP", "tls": {}}),
            format!("{rule}.protocol"),
        ),
        (json!({"host": "a.example", "ports": [443], "http": {}, "tls": {}}), rule.to_owned()),
        (json!({"cidr": "198.51.100.0/24", "ports": [443], "http": {}}), rule.to_owned()),
        (json!({"service": {"name": "a"}, "ports": [443], "tls": {}}), rule.to_owned()),
        (json!({"host": "a", "ports": [80], "http": {"methods": ["get"]}}), format!("{rule}.http.methods")),
        (json!({"host": "a", "ports": [80], "http": {"methods": [""]}}), format!("{rule}.http.methods")),
        (json!({"host": "a", "ports": [80], "http": {"methods": many}}), format!("{rule}.http.methods")),
        (
            json!({"host": "a", "ports": [80], "http": {"pathPrefixes": ["a"]}}),
            format!("{rule}.http.pathPrefixes"),
        ),
        (
            json!({"host": "a", "ports": [80], "http": {"pathPrefixes": ["/.."]}}),
            format!("{rule}.http.pathPrefixes"),
        ),
    ] {
        let network = serde_json::from_value(json!({"egress": [bad]})).unwrap();
        let error = EffectivePolicy::of(Some(&network)).unwrap_err();
        assert_eq!(error.field, field, "{error}");
        assert!(error.message.len() < 300 && !error.message.chars().any(char::is_control), "{error}");
    }
    for bytes in ["0", "1023", "1e9", "-1Mi", "", "many"] {
        let network = serde_json::from_value(json!({"limits": {"egressBytes": bytes}})).unwrap();
        let error = EffectivePolicy::of(Some(&network)).unwrap_err();
        assert_eq!(error.field, "spec.network.limits.egressBytes", "{bytes}");
    }
    let network = serde_json::from_value(json!({"limits": {"egressBytes": "1Gi"}})).unwrap();
    assert_eq!(EffectivePolicy::of(Some(&network)).unwrap().bytes(), Some(1 << 30));
}

#[test]
fn a_bad_host_says_what_to_write() {
    for (host, said) in [
        ("api.example.", "`api.example.` has a dot at the end; write `api.example`"),
        ("*.example.", "`*.example.` has a dot at the end; write `*.example`"),
        (
            "api*.example",
            "`api*.example` has a * elsewhere than alone before the first dot; write the exact name (api.example), *.example for one label before it, or **.example for any number of labels",
        ),
        (
            "user@api.example",
            "`user@api.example` has the character '@'; write the exact name (api.example), *.",
        ),
        ("a\nb", "`a\\nb` has the character '\\n'; write the exact name"),
        ("10.0.0.1", "host names end in a label that is no number; for addresses write cidr"),
    ] {
        let network = serde_json::from_value(json!({"egress": [{"host": host, "ports": [443]}]})).unwrap();
        let error = EffectivePolicy::of(Some(&network)).unwrap_err();
        assert!(error.message.contains(said), "{error}");
    }
}

#[test]
fn every_refusal_says_what_to_do() {
    let asked = name("api.example");
    for reason in [
        Reason::NoRule,
        Reason::PortNotAllowed,
        Reason::ProtocolNotAllowed,
        Reason::EchNotAllowed,
        Reason::MethodNotAllowed,
        Reason::PathNotAllowed,
        Reason::NameMismatch,
        Reason::Malformed,
    ] {
        let text = Decision::deny(reason, Some(3)).message(&asked, 443);
        assert!(text.contains("api.example") && text.len() < 300, "{text}");
    }
    let text = Decision::deny(Reason::NoRule, None).message(&asked, 443);
    assert!(text.ends_with("adds {host: api.example, ports: [443]} to spec.network.egress"), "{text}");
}

/// A rule for it would get a warning and lead nowhere.
#[test]
fn nobody_is_told_to_write_a_host_rule_that_does_not_help() {
    for (host, said) in [
        ("localhost", "a host rule would not help: it is the sandbox itself"),
        ("kubernetes.default.svc", "write service: {name: kubernetes, namespace: default} instead of host"),
        (
            "db",
            "it has no dot, and the gateway uses no search domains; write the full name, or for a Service",
        ),
    ] {
        let text = Decision::deny(Reason::NoRule, None).message(&name(host), 443);
        assert!(text.contains(said) && !text.contains("adds {host") && text.len() < 300, "{text}");
    }
}

/// What one rule says of one request, as the documentation of the fields puts it.
fn naive_allows(rule: &EgressRule, host: &str, port: u16, said: &Said) -> bool {
    let Some(pattern) = &rule.host else { return false };
    let labels: Vec<&str> = host.split('.').collect();
    let wanted: Vec<&str> = pattern.split('.').collect();
    let named = match wanted[0] {
        "*" => labels.len() == wanted.len() && labels[1..] == wanted[1..],
        "**" => labels.len() >= wanted.len() && labels[labels.len() - wanted.len() + 1..] == wanted[1..],
        _ => labels == wanted,
    };
    if !named || !rule.ports.iter().any(|p| *p == i32::from(port)) {
        return false;
    }
    if rule.protocol == Some(Protocol::TCP) {
        return true;
    }
    match said {
        Said::Nothing => true,
        Said::Tls(ech) => {
            rule.http.is_none()
                && (!ech || rule.tls.as_ref().is_some_and(|tls| tls.allow_encrypted_client_hello))
        }
        Said::Http => rule.tls.is_none(),
        Said::Other => false,
        Said::Request(method, path) => {
            let of = |http: &HttpRule| {
                let method_fine = http.methods.is_empty() || http.methods.iter().any(|m| m == method);
                let under = |prefix: &String| {
                    let (path, prefix) = (path.split('/'), prefix.split('/'));
                    let prefix: Vec<&str> = prefix.filter(|s| !s.is_empty()).collect();
                    path.skip(1).take(prefix.len()).collect::<Vec<_>>() == prefix
                };
                method_fine && (http.path_prefixes.is_empty() || http.path_prefixes.iter().any(under))
            };
            rule.tls.is_none() && rule.http.as_ref().is_none_or(of)
        }
    }
}

#[derive(Debug, Clone)]
enum Said {
    Nothing,
    Tls(bool),
    Http,
    Other,
    Request(&'static str, &'static str),
}

fn said() -> impl Strategy<Value = Said> {
    prop_oneof![
        Just(Said::Nothing),
        any::<bool>().prop_map(Said::Tls),
        Just(Said::Http),
        Just(Said::Other),
        (select(&["GET", "POST"][..]), select(&["/", "/a", "/ab", "/a/b", "/a/b/c", "/b"][..]))
            .prop_map(|(method, path)| Said::Request(method, path)),
    ]
}

fn rule() -> impl Strategy<Value = EgressRule> {
    let host = (select(&["", "*.", "**."][..]), "[ab]([.][ab]){0,2}").prop_map(|(s, b)| format!("{s}{b}"));
    let texts = |from: &'static [&'static str]| collection::vec(select(from).prop_map(str::to_owned), 0..3);
    let http = (texts(&["GET", "POST"]), texts(&["/", "/a", "/a/", "/a/b", "/b"]))
        .prop_map(|(methods, path_prefixes)| HttpRule { methods, path_prefixes });
    let kind = prop_oneof![
        Just((None, None, None)),
        Just((Some(Protocol::TCP), None, None)),
        http.prop_map(|http| (None, Some(http), None)),
        any::<bool>().prop_map(|ech| (None, None, Some(TlsRule { allow_encrypted_client_hello: ech }))),
    ];
    (option::weighted(0.9, host), collection::vec(1..4_i32, 1..3), kind).prop_map(
        |(host, ports, (protocol, http, tls))| match host {
            None => EgressRule { cidr: Some("198.51.100.0/24".to_owned()), ports, ..EgressRule::default() },
            host => EgressRule { host, ports, protocol, http, tls, ..EgressRule::default() },
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2048, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn decisions_are_those_of_the_oracle(
        rules in collection::vec(rule(), 0..6), host in "[ab]([.][ab]){0,3}", port in 1..4_u16, said in said(),
    ) {
        let network = Network { egress: rules.clone(), ..Network::default() };
        let policy = EffectivePolicy::of(Some(&network)).unwrap();
        let asked = name(&host);
        let decision = match &said {
            Said::Nothing => policy.decide(&asked, port),
            Said::Tls(ech) => policy.decide_protocol(&asked, port, AppProtocol::Tls, *ech),
            Said::Http => policy.decide_protocol(&asked, port, AppProtocol::Http, false),
            Said::Other => policy.decide_protocol(&asked, port, AppProtocol::Other, false),
            Said::Request(method, path) => policy.decide_http(&asked, port, method, path),
        };
        let first = rules.iter().position(|rule| naive_allows(rule, &host, port, &said));
        if let Some(index) = first {
            prop_assert_eq!(decision, Decision::allow(index));
        } else {
            prop_assert_eq!(decision.verdict, Verdict::Deny);
            // What goes on was allowed to begin.
            let opened = policy.decide(&asked, port);
            let early = matches!(decision.reason, Reason::NoRule | Reason::PortNotAllowed);
            prop_assert_eq!(opened.is_allowed(), !early);
            prop_assert_eq!(decision.rule.is_none(), decision.reason == Reason::NoRule);
        }
        let listed = policy.allowed_hosts().iter().any(|allowed| {
            allowed.pattern.parse::<crate::policy::HostPattern>().unwrap().matches(&asked) && allowed.ports.contains(&port)
        });
        prop_assert_eq!(listed, policy.decide(&asked, port).is_allowed());
    }
}
