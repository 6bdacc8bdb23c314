//! The rules of the schema, as the API server evaluates them; bounds and enums are its own to check (see `e2e/api`).
use kube::core::cel::{ValidationErrors, Validator};
use serde_json::{Value, json};

use crate::{crds, policy::EffectivePolicy};

fn object(network: &Value) -> Value {
    json!({
        "apiVersion": "agentsandbox.dev/v1alpha1", "kind": "AgentSandbox", "metadata": {"name": "agent"},
        "spec": {
            "image": "registry.example/agent:1", "command": ["/agent"], "timeout": "30m", "startupTimeout": "5m",
            "runAs": {"group": 1000}, "network": network,
            "resources": {"cpu": "1", "memory": "1Gi", "ephemeralStorage": "1Gi", "pids": 256},
        },
    })
}

fn evaluated(new: &Value, old: Option<&Value>) -> Result<(), ValidationErrors> {
    let definition = crds::definition().unwrap();
    let schema = definition.pointer("/spec/versions/0/schema/openAPIV3Schema").unwrap();
    Validator::new().validate(schema, new, old)
}

/// What the schema says of a rule, and whether there is a policy of it all the same.
fn rule(rule: &Value) -> (String, bool) {
    let network = json!({"egress": [rule]});
    let said =
        evaluated(&object(&network), None).map_or_else(|errors| format!("{errors}"), |()| String::new());
    (said, EffectivePolicy::of(Some(&serde_json::from_value(network).unwrap())).is_ok())
}

#[test]
fn good_rules_pass_the_schema_and_make_a_policy() {
    for good in [
        json!({"host": "api.example", "ports": [443]}),
        json!({"host": "*.API.example", "ports": [80, 443], "tls": {}}),
        json!({"host": "**.example", "ports": [443], "tls": {"allowEncryptedClientHello": true}}),
        json!({"host": "git.example", "ports": [22], "protocol": "TCP"}),
        json!({"host": "a.example", "ports": [80], "http": {}}),
        json!({"host": "a.example", "ports": [80], "http": {"methods": ["GET", "M-SEARCH"], "pathPrefixes": ["/", "/v1/a%20b", "/~a/b.c/"]}}),
        json!({"host": "1.2.3.example", "ports": [443]}),
        json!({"host": "xn--bcher-kva.example", "ports": [443]}),
        json!({"cidr": "198.51.100.0/24", "ports": [53], "protocol": "UDP"}),
        json!({"cidr": "198.51.100.0/24", "ports": [53], "protocol": "TCP"}),
        json!({"service": {"name": "model"}, "ports": [80]}),
    ] {
        assert_eq!(rule(&good), (String::new(), true), "{good}");
    }
}

#[test]
fn bad_rules_are_refused_by_the_schema_and_make_no_policy() {
    let http = |http: Value| json!({"host": "a.example", "ports": [80], "http": http});
    for (bad, said) in [
        (json!({"host": "a.example", "ports": [443], "protocol": "UDP"}), "takes no UDP"),
        (
            json!({"host": "a.example", "ports": [443], "protocol": "TCP", "http": {}}),
            "leave http and tls out",
        ),
        (
            json!({"host": "a.example", "ports": [443], "protocol": "TCP", "tls": {}}),
            "leave http and tls out",
        ),
        (json!({"host": "a.example", "ports": [443], "http": {}, "tls": {}}), "write two rules"),
        (json!({"cidr": "198.51.100.0/24", "ports": [443], "tls": {}}), "for host rules"),
        (json!({"service": {"name": "a"}, "ports": [443], "http": {}}), "for host rules"),
        (json!({"host": "127.0.0.1", "ports": [443]}), "for addresses write cidr"),
        (json!({"host": "127.1", "ports": [443]}), "for addresses write cidr"),
        (json!({"host": "2130706433", "ports": [443]}), "for addresses write cidr"),
        (json!({"host": "*.0x7F", "ports": [443]}), "for addresses write cidr"),
        (json!({"host": "*", "ports": [443]}), "must be a DNS name"),
        (json!({"host": "**", "ports": [443]}), "no rule means every host"),
        (json!({"host": "*.*.example", "ports": [443]}), "must be a DNS name"),
        (json!({"host": "a b", "ports": [443]}), "must be a DNS name"),
        (json!({"host": "a..b", "ports": [443]}), "must be a DNS name"),
        (json!({"host": "::1", "ports": [443]}), "must be a DNS name"),
        (json!({"host": "a.example:443", "ports": [443]}), "without scheme, port, path or dot at the end"),
        (json!({"host": "a.example\n", "ports": [443]}), "must be a DNS name"),
        (http(json!({"methods": ["get"]})), "upper case"),
        (http(json!({"methods": [""]})), "upper case"),
        (http(json!({"methods": ["GET "]})), "upper case"),
        (http(json!({"pathPrefixes": ["v1"]})), "start with /"),
        (http(json!({"pathPrefixes": [""]})), "start with /"),
        (http(json!({"pathPrefixes": ["/a//b"]})), "doubled slash"),
        (http(json!({"pathPrefixes": ["/a?b"]})), "? or #"),
        (http(json!({"pathPrefixes": ["/ü"]})), "start with /"),
    ] {
        let (told, policy) = rule(&bad);
        assert!(told.contains(said), "{bad}: {told}");
        assert!(!policy, "{bad}");
    }
}

#[test]
fn limits_are_quantities() {
    for (bytes, good) in [
        ("1Ki", true),
        ("1.5Gi", true),
        ("500M", true),
        ("1023", false),
        ("0", false),
        ("1e9", false),
        ("-1Mi", false),
    ] {
        let network = json!({"limits": {"egressBytes": bytes}});
        assert_eq!(evaluated(&object(&network), None).is_ok(), good, "{bytes}");
        let policy = EffectivePolicy::of(Some(&serde_json::from_value(network).unwrap()));
        assert_eq!(policy.is_ok(), good, "{bytes}");
    }
}

#[test]
fn the_environment_of_a_running_agent_does_not_change() {
    let with = |value: bool| object(&json!({"proxyEnvironment": value}));
    let mut without = object(&json!({}));
    assert!(evaluated(&with(true), Some(&with(true))).is_ok());
    assert!(evaluated(&with(false), Some(&without)).is_ok());
    without["spec"].as_object_mut().unwrap().remove("network");
    assert!(evaluated(&without, Some(&with(false))).is_ok());
    for (new, old) in [(with(true), with(false)), (without.clone(), with(true)), (with(true), without)] {
        let errors = evaluated(&new, Some(&old)).unwrap_err();
        assert!(errors.to_string().contains("network.proxyEnvironment is immutable"), "{errors}");
    }
}
