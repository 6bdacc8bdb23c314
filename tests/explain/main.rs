//! `agentsandbox explain` as a person runs it: on a file without any cluster, and on a sandbox of a cluster.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
mod cluster;
#[path = "../support/mod.rs"]
mod support;

use std::path::Path;

use rstest::rstest;
use serde_json::{Value, json};
use support::{PROGRAM, Ran, run};

fn explain(arguments: &[&str], input: &str) -> Ran {
    run(Path::new(PROGRAM), &[&["explain"], arguments].concat(), &[], input)
}

fn sandbox(name: &str, rules: &Value) -> Value {
    json!({
        "apiVersion": "agentsandbox.dev/v1alpha1", "kind": "AgentSandbox",
        "metadata": {"name": name, "namespace": "team-a"},
        "spec": {"image": "registry.example/agent:1", "command": ["/agent"], "network": {"egress": rules}},
    })
}

fn rules() -> Value {
    json!([
        {"host": "api.example", "ports": [443]},
        {"host": "mirror.example", "ports": [80], "http": {"methods": ["GET"], "pathPrefixes": ["/debian"]}},
    ])
}

#[rstest]
#[case("https://api.example/v1", &[], 0, "AllowedByRule")]
#[case("https://API.EXAMPLE.", &[], 0, "api.example:443 by TLS: allowed")]
#[case("https://api.example", &["--ech"], 1, "EchNotAllowed")]
#[case("tcp://api.example:443", &[], 1, "ProtocolNotAllowed")]
#[case("https://mirror.example:80", &[], 1, "mirror.example:80: it has http: and takes plain HTTP only\n")]
#[case("https://evil.example", &[], 1, "NoRule")]
#[case("http://mirror.example/debian/x", &[], 0, "AllowedByRule")]
#[case("http://mirror.example/debian/x", &["--method", "PUT"], 1, "MethodNotAllowed")]
#[case("http://mirror.example/debian/../x", &[], 1, "PathNotAllowed")]
#[case("https://api.example", &["--address", "10.0.0.1"], 1, "10.0.0.1 is refused: Private")]
#[case("https://api.example", &["--address", "10.0.0.1", "--reachable-cidr", "10.0.0.0/8"], 0, "is dialled")]
#[case("https://api.example", &["--address", "8.8.8.8", "--cluster-cidr", "8.0.0.0/8"], 1, "ClusterRange")]
fn a_file_is_answered_for(#[case] to: &str, #[case] more: &[&str], #[case] code: i32, #[case] said: &str) {
    let ran = explain(&[&["-f", "-", "--to", to], more].concat(), &sandbox("fix", &rules()).to_string());
    assert_eq!((ran.code, ran.err.as_str()), (Some(code), ""), "{}", ran.out);
    assert!(ran.out.contains(said), "{}", ran.out);
}

#[test]
fn one_of_several_is_named() {
    let two = format!("{}\n---\n{}\n", sandbox("fix", &rules()), sandbox("other", &json!([])));
    let ask = |name: &[&str]| explain(&[name, &["-f", "-", "--to", "api.example:443"]].concat(), &two);
    assert_eq!(ask(&["fix"]).code, Some(0));
    assert_eq!(ask(&["other"]).code, Some(1));
    for (name, said) in [(&["none"][..], "no AgentSandbox none"), (&[], "several AgentSandboxes")] {
        let ran = ask(name);
        assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""));
        assert!(ran.err.contains(said), "{}", ran.err);
    }
}

#[test]
fn help_names_the_exit_codes() {
    let ran = explain(&["--help"], "");
    assert_eq!(ran.code, Some(0));
    for said in ["Exit codes:\n  0  allowed\n  1  denied", "\n  2  no answer", "Examples:\n"] {
        assert!(ran.out.contains(said), "{}", ran.out);
    }
}

/// The answer of `render` and of the operator: what no sandbox comes of is allowed nothing.
#[rstest]
#[case(&json!({"network": {"egress": [{"host": "api.example", "ports": [443]}, {"cidr": "203.0.113.10/24", "ports": [443]}]}}), "spec.network.egress[1].cidr: 203.0.113.10/24 has host bits")]
#[case(&json!({"resources": {"memory": "256MB"}}), "spec.resources.memory: ")]
#[case(&json!({"timeout": "5 minutes"}), "spec.timeout: ")]
#[case(&json!({"resources": {"pids": 1}}), "spec.resources.pids: ")]
#[case(&json!({"runAs": {"user": 0}}), "spec.runAs.user: ")]
#[case(&json!({"filesystem": {"mounts": [{"path": "/a", "readOnly": false, "emptyDir": {"sizeLimit": "1Mi"}}, {"path": "/a/b", "readOnly": false, "emptyDir": {"sizeLimit": "1Mi"}}]}}), "[OverlappingMounts]")]
fn what_is_refused_is_allowed_nothing(#[case] spec: &Value, #[case] refusal: &str) {
    let mut object = sandbox("fix", &rules());
    for (field, value) in spec.as_object().unwrap() {
        object["spec"][field] = value.clone();
    }
    let ran = explain(&["-f", "-", "--to", "https://api.example"], &object.to_string());
    assert_eq!((ran.code, ran.err.as_str()), (Some(1), ""), "{}", ran.out);
    assert!(ran.out.starts_with("api.example:443 by TLS: denied\n"), "{}", ran.out);
    assert!(ran.out.contains("the sandbox is refused, and has no Pod\n"), "{}", ran.out);
    assert!(ran.out.contains("  refusal:     spec.") && ran.out.contains(refusal), "{}", ran.out);
}

/// The operator knows ranges that no rule may open; the option is called as in `render`, too.
#[test]
fn a_cidr_rule_without_reserved_ranges_is_noted() {
    let object = sandbox("fix", &json!([{"cidr": "10.1.0.0/16", "ports": [443]}])).to_string();
    let note = "  note:        no reserved ranges were given (--cluster-cidr); the operator may refuse a cidr rule\n";
    let asked = ["-f", "-", "--to", "10.1.2.3:443"];
    let ran = explain(&asked, &object);
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{}", ran.out);
    assert!(ran.out.contains(note), "{}", ran.out);
    for option in ["--cluster-cidr", "--reserved-cidr"] {
        let ran = explain(&[&asked[..], &[option, "10.0.0.0/8"]].concat(), &object);
        assert_eq!(ran.code, Some(1), "{}", ran.err);
        assert!(!ran.out.contains(note) && ran.out.contains("10.1.0.0/16 overlaps"), "{}", ran.out);
    }
    let without = sandbox("fix", &rules()).to_string();
    assert!(!explain(&["-f", "-", "--to", "https://api.example"], &without).out.contains("note:"));
}

/// It may be accepted where nodes have user namespaces and the Service is there.
#[test]
fn what_only_a_cluster_knows_refuses_nothing() {
    let service = json!({"service": {"name": "model"}, "ports": [80]});
    let mut object = sandbox("fix", &json!([{"host": "api.example", "ports": [443]}, service]));
    object["spec"]["isolation"] = json!({"userNamespace": "Required"});
    let ask = |to: &str| explain(&["-f", "-", "--to", to], &object.to_string());
    assert_eq!(ask("https://api.example").code, Some(0));
    let ran = ask("10.0.0.1:80");
    assert_eq!((ran.code, ran.err.as_str()), (Some(2), ""));
    assert!(ran.out.starts_with("10.0.0.1:80: not known\n"), "{}", ran.out);
    assert!(ran.out.contains("Service team-a/model at port 80"), "{}", ran.out);
}

/// Of the rule that decides beside it, of others on standard error.
#[test]
fn a_rule_that_is_seldom_meant_is_warned_of() {
    let rules = json!([
        {"host": "**.co.uk", "ports": [443]}, {"host": "kubernetes.default.svc", "ports": [443]},
    ]);
    let ask = |to: &str| explain(&["-f", "-", "--to", to], &sandbox("fix", &rules).to_string());
    for (to, own, other) in [
        (
            "https://a.co.uk",
            "`**.co.uk` means every name",
            "egress[1].host: `kubernetes.default.svc` is a name",
        ),
        (
            "https://kubernetes.default.svc",
            "`kubernetes.default.svc` is a name of",
            "egress[0].host: `**.co.uk` means",
        ),
    ] {
        let ran = ask(to);
        assert_eq!(ran.code, Some(0));
        assert!(ran.out.contains(&format!("  warning:     {own}")), "{}", ran.out);
        assert!(ran.err.starts_with("warning: spec.network.") && ran.err.contains(other), "{}", ran.err);
        assert_eq!(ran.err.lines().count(), 1, "{}", ran.err);
    }
    assert_eq!(ask("https://api.example").err.lines().count(), 2);
}

#[test]
fn who_asks_for_what_no_host_rule_opens_is_told_what_to_write() {
    for (to, said) in [
        (
            "https://web.team.svc",
            "it is a name of the cluster's own, whose addresses the gateway does not dial; for a Service write service: {name: web, namespace: team} instead of host\n",
        ),
        (
            "db:5432",
            "it has no dot, and the gateway uses no search domains; write the full name, or for a Service service: {name: db} instead of host\n",
        ),
        ("http://a.localhost", "it is the sandbox itself, whose own servers need no rule"),
    ] {
        let ran = explain(&["-f", "-", "--to", to], &sandbox("fix", &rules()).to_string());
        assert_eq!((ran.code, ran.err.as_str()), (Some(1), ""), "{}", ran.out);
        assert!(ran.out.contains(said) && ran.out.contains("  reason:      NoRule: "), "{}", ran.out);
        assert!(!ran.out.contains("its owner adds"), "{}", ran.out);
    }
}

#[rstest]
#[case(
    "localhost:8080",
    0,
    "localhost:8080: allowed\n  reason:      the sandbox's own loopback; no rule is needed\n"
)]
#[case("[::1]:8080", 0, "own loopback")]
#[case("127.64.1.7:443", 2, "127.64.1.7:443: not known\n")]
fn the_sandboxs_own_loopback_needs_no_rule(#[case] to: &str, #[case] code: i32, #[case] said: &str) {
    let ran = explain(&["-f", "-", "--to", to], &sandbox("fix", &rules()).to_string());
    assert_eq!((ran.code, ran.err.as_str()), (Some(code), ""), "{}", ran.out);
    assert!(ran.out.contains(said), "{}", ran.out);
}

#[test]
fn a_list_of_kubectl_is_read_and_another_version_is_said() {
    let with = |change: fn(&mut Value)| {
        let mut object = sandbox("fix", &rules());
        change(&mut object);
        json!({"apiVersion": "v1", "kind": "List", "items": [object, {"apiVersion": "v1", "kind": "Pod"}]})
            .to_string()
    };
    let ask = |text: &str, name: &str| explain(&[name, "-f", "-", "--to", "api.example"], text);
    let ran = ask(&with(|_| ()), "fix");
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{}", ran.out);
    assert!(ran.out.starts_with("api.example:443 by TLS: allowed\n"), "{}", ran.out);
    let generated = with(|object| object["metadata"] = json!({"generateName": "fix-"}));
    assert_eq!(ask(&generated, "fix-00000").code, Some(0));
    let ran = ask(&with(|object| object["apiVersion"] = json!("agentsandbox.dev/v1")), "fix");
    let said = "agentsandbox explain: kind AgentSandbox has apiVersion `agentsandbox.dev/v1`; write agentsandbox.dev/v1alpha1\n";
    assert_eq!((ran.code, ran.err.as_str()), (Some(2), said));
}

#[rstest]
#[case(&["--to", "https://a"], "NAME")]
#[case(&["-f", "-"], "--to")]
#[case(&["-f", "-", "--to", "tcp://a"], "no port")]
#[case(&["-f", "-", "--to", "*.pythonhosted.org:443"], "ask for one name, such as a.pythonhosted.org")]
#[case(&["-f", "-", "--to", "gopher://a:1"], "unknown scheme")]
#[case(&["-f", "absent.yaml", "--to", "https://a"], "absent.yaml")]
#[case(&["-f", "-", "--to", "https://a", "--reachable-cidr", "10.0.0.0/40"], "--reachable-cidr")]
#[case(&["-f", "-", "-n", "team-a", "--to", "https://a"], "--namespace")]
fn what_cannot_be_read_is_said(#[case] arguments: &[&str], #[case] said: &str) {
    let ran = explain(arguments, "");
    assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""), "{}", ran.err);
    assert!(ran.err.contains(said), "{}", ran.err);
}
