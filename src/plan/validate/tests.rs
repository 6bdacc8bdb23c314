//! Every refusal, and what is not one.
use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::*;
use crate::{
    api::v1alpha1::Protocol,
    plan::{GatewaySettings, ObservedPort, ObservedService},
};

fn sandbox(spec: &Value) -> AgentSandbox {
    let mut full = json!({"image": "registry.example/agent:1", "command": ["/agent"]});
    for (key, value) in spec.as_object().unwrap() {
        full[key] = value.clone();
    }
    serde_json::from_value(json!({
        "apiVersion": "agentsandbox.dev/v1alpha1", "kind": "AgentSandbox",
        "metadata": {"name": "fix", "namespace": "team-a", "uid": "0b9c"}, "spec": full,
    }))
    .unwrap()
}

fn observed() -> Observed {
    let port = ObservedPort {
        port: 80,
        target: k8s_openapi::apimachinery::pkg::util::intstr::IntOrString::Int(8080),
        protocol: Protocol::TCP,
    };
    let model = ObservedService {
        selector: BTreeMap::from([("app".to_owned(), "model".to_owned())]),
        ports: vec![port.clone()],
    };
    let bare = ObservedService { selector: BTreeMap::new(), ports: vec![port] };
    Observed {
        services: BTreeMap::from([
            (("serving".to_owned(), "model".to_owned()), model),
            (("team-a".to_owned(), "bare".to_owned()), bare),
        ]),
        ..Observed::default()
    }
}

fn refusals(spec: &Value) -> Vec<(&'static str, String)> {
    match validate(&sandbox(spec), &observed(), &Settings::default()) {
        Ok(_) => Vec::new(),
        Err(refusals) => refusals.into_iter().map(|r| (r.reason, r.field)).collect(),
    }
}

fn mount(path: &str) -> Value {
    json!({"path": path, "readOnly": false, "emptyDir": {"sizeLimit": "1Mi"}})
}

fn egress(rule: &Value) -> Value {
    json!({"network": {"egress": [rule]}})
}

#[test]
fn good_specs_pass() {
    for spec in [
        json!({}),
        json!({"filesystem": {"mounts": [mount("/a"), mount("/ab"), mount("/b/c"), mount("/procedures"), mount(&"/d".repeat(12))]}}),
        egress(&json!({"cidr": "198.51.100.0/24", "ports": [443]})),
        egress(&json!({"cidr": "2001:db8::/48", "ports": [443], "protocol": "UDP"})),
        egress(&json!({"service": {"name": "model", "namespace": "serving"}, "ports": [80]})),
        json!({"timeout": "168h", "startupTimeout": "1s", "ttlAfterFinished": "0s"}),
        json!({"resources": {"cpu": "10m", "memory": "16Mi", "requests": {"cpu": "10m", "memory": "1Mi"}}}),
    ] {
        assert_eq!(refusals(&spec), [], "{spec}");
    }
}

#[test]
fn bad_specs_are_refused_at_their_field() {
    let files = |mounts: &[Value]| json!({"filesystem": {"mounts": mounts}});
    let claim =
        |sub: &str| json!({"path": "/w", "persistentVolumeClaim": {"claimName": "c", "subPath": sub}});
    let at = "spec.filesystem.mounts[0].path";
    for (spec, reason, field) in [
        (json!({"image": "a b"}), "InvalidSpec", "spec.image"),
        (json!({"command": []}), "InvalidSpec", "spec.command"),
        (json!({"command": [""]}), "InvalidSpec", "spec.command"),
        (json!({"args": ["a\0b"]}), "InvalidSpec", "spec.args"),
        (json!({"workingDir": "/a/../b"}), "InvalidSpec", "spec.workingDir"),
        (json!({"workingDir": "a"}), "InvalidSpec", "spec.workingDir"),
        (json!({"runAs": {"user": 0}}), "InvalidSpec", "spec.runAs.user"),
        (json!({"runAs": {"group": 65532}}), "InvalidSpec", "spec.runAs.group"),
        (json!({"env": [{"name": "1A"}]}), "InvalidSpec", "spec.env[0].name"),
        (json!({"env": [{"name": "A"}, {"name": "A"}]}), "InvalidSpec", "spec.env[1].name"),
        (json!({"env": [{"name": "AGENTSANDBOX_INIT"}]}), "ReservedEnvName", "spec.env[0].name"),
        (json!({"env": [{"name": "A", "valueFrom": {}}]}), "InvalidSpec", "spec.env[0].valueFrom"),
        (json!({"timeout": "0s"}), "InvalidSpec", "spec.timeout"),
        (json!({"timeout": "-5m"}), "InvalidSpec", "spec.timeout"),
        (json!({"startupTimeout": "25h"}), "InvalidSpec", "spec.startupTimeout"),
        (json!({"ttlAfterFinished": "1d"}), "InvalidSpec", "spec.ttlAfterFinished"),
        (json!({"resources": {"cpu": "0"}}), "InvalidSpec", "spec.resources.cpu"),
        (json!({"resources": {"memory": "1Ki"}}), "InvalidSpec", "spec.resources.memory"),
        (json!({"resources": {"ephemeralStorage": "1e9"}}), "InvalidSpec", "spec.resources.ephemeralStorage"),
        (json!({"resources": {"pids": 1}}), "InvalidSpec", "spec.resources.pids"),
        (json!({"resources": {"requests": {"cpu": "2"}}}), "InvalidSpec", "spec.resources.requests.cpu"),
        (
            json!({"resources": {"requests": {"memory": "2Gi"}}}),
            "InvalidSpec",
            "spec.resources.requests.memory",
        ),
        (files(&[mount("w")]), "InvalidSpec", at),
        (files(&[mount("/")]), "InvalidSpec", at),
        (files(&[mount("/a//b")]), "InvalidSpec", at),
        (files(&[mount("/a/")]), "InvalidSpec", at),
        (files(&[mount("/a/../b")]), "InvalidSpec", at),
        (files(&[mount("/a/./b")]), "InvalidSpec", at),
        (files(&[mount("/a:b")]), "InvalidSpec", at),
        (files(&[mount("/proc")]), "InvalidSpec", at),
        (files(&[mount("/sys/fs")]), "InvalidSpec", at),
        (files(&[mount("/dev/shm")]), "InvalidSpec", at),
        (files(&[mount("/.agentsandbox/x")]), "InvalidSpec", at),
        (files(&[mount(&"/a".repeat(13))]), "InvalidSpec", at),
        (files(&[mount("/a"), mount("/a")]), "OverlappingMounts", "spec.filesystem.mounts[1].path"),
        (files(&[mount("/a/b"), mount("/a")]), "OverlappingMounts", "spec.filesystem.mounts[1].path"),
        (files(&[json!({"path": "/a"})]), "InvalidSpec", "spec.filesystem.mounts[0]"),
        (files(&[claim("../x")]), "InvalidSpec", "spec.filesystem.mounts[0].persistentVolumeClaim.subPath"),
        (files(&[claim("/x")]), "InvalidSpec", "spec.filesystem.mounts[0].persistentVolumeClaim.subPath"),
        (
            files(&[json!({"path": "/a", "emptyDir": {"sizeLimit": "1Mi"}})]),
            "InvalidSpec",
            "spec.filesystem.mounts[0].readOnly",
        ),
        (
            files(&[json!({"path": "/a", "readOnly": false, "emptyDir": {"sizeLimit": "1025Mi"}})]),
            "InvalidSpec",
            "spec.filesystem.mounts[0].emptyDir.sizeLimit",
        ),
        (
            files(&[json!({"path": "/a", "readOnly": true, "emptyDir": {"sizeLimit": "1Mi"}})]),
            "InvalidSpec",
            "spec.filesystem.mounts[0].readOnly",
        ),
        (
            files(&[json!({"path": "/a", "readOnly": false, "secret": {"name": "s"}})]),
            "InvalidSpec",
            "spec.filesystem.mounts[0].secret",
        ),
        (
            json!({"isolation": {"userNamespace": "Required"}}),
            "UserNamespaceUnavailable",
            "spec.isolation.userNamespace",
        ),
        (json!({"isolation": {"runtimeClassName": "A b"}}), "InvalidSpec", "spec.isolation.runtimeClassName"),
    ] {
        assert_eq!(refusals(&spec), [(reason, field.to_owned())], "{spec}");
    }
}

#[test]
fn bad_rules_are_refused_at_their_field() {
    let rule = |field: &str| format!("spec.network.egress[0]{field}");
    for (spec, reason, field) in [
        (egress(&json!({"host": "api.example", "ports": [443]})), "DomainEgressUnavailable", rule(".host")),
        (egress(&json!({"host": "127.1", "ports": [443]})), "InvalidSpec", rule(".host")),
        (egress(&json!({"host": "api.example", "ports": [0]})), "InvalidSpec", rule(".ports")),
        (
            egress(&json!({"host": "api.example", "ports": [443], "protocol": "UDP"})),
            "InvalidSpec",
            rule(".protocol"),
        ),
        (egress(&json!({"cidr": "198.51.100.0/24", "ports": [443], "tls": {}})), "InvalidSpec", rule("")),
        (
            json!({"network": {"limits": {"egressBytes": "1"}}}),
            "InvalidSpec",
            "spec.network.limits.egressBytes".to_owned(),
        ),
        (egress(&json!({"cidr": "198.51.100.0/24", "ports": []})), "InvalidSpec", rule(".ports")),
        (egress(&json!({"cidr": "198.51.100.0/24", "ports": [0]})), "InvalidSpec", rule(".ports")),
        (egress(&json!({"cidr": "198.51.100.7", "ports": [1]})), "InvalidSpec", rule(".cidr")),
        (egress(&json!({"cidr": "198.51.100.7/24", "ports": [1]})), "InvalidSpec", rule(".cidr")),
        (egress(&json!({"cidr": "0.0.0.0/0", "ports": [1]})), "ReservedAddress", rule(".cidr")),
        (egress(&json!({"cidr": "::1/128", "ports": [1]})), "ReservedAddress", rule(".cidr")),
        (egress(&json!({"ports": [1]})), "InvalidSpec", rule("")),
        (egress(&json!({"service": {"name": "none"}, "ports": [1]})), "ServiceNotFound", rule(".service")),
        (
            egress(&json!({"service": {"name": "bare"}, "ports": [80]})),
            "ServiceNotSelectable",
            rule(".service"),
        ),
        (
            egress(&json!({"service": {"name": "model", "namespace": "serving"}, "ports": [81]})),
            "ServiceNotFound",
            rule(".ports"),
        ),
    ] {
        assert_eq!(refusals(&spec), [(reason, field)], "{spec}");
    }
}

#[test]
fn a_host_rule_needs_the_gateway_and_no_line_of_the_network_policy() {
    let gateway = GatewaySettings {
        namespace: "agentsandbox-system".to_owned(),
        reachable_cidrs: Vec::new(),
        reach: None,
    };
    let settings = Settings { gateway: Some(gateway), ..Settings::default() };
    let spec = json!({"network": {"egress": [
        {"host": "*.API.example", "ports": [443, 80]}, {"cidr": "198.51.100.0/24", "ports": [5432]},
    ]}});
    let valid = validate(&sandbox(&spec), &observed(), &settings).unwrap();
    let [host, network] = valid.egress() else { panic!("{:?}", valid.egress()) };
    assert_eq!(host.destination, Destination::Host("*.api.example".parse().unwrap()));
    assert_eq!((host.ports.len(), host.protocol), (2, Protocol::TCP));
    assert!(matches!(network.destination, Destination::Network(_)));
    let policy = crate::plan::plan(&valid, &settings).policy;
    assert!(!serde_json::to_string(&policy).unwrap().contains("api.example"), "{policy:?}");
}

#[test]
fn every_address_is_refused_with_the_way_out() {
    for cidr in ["0.0.0.0/0", "::/0"] {
        let spec = egress(&json!({"cidr": cidr, "ports": [443]}));
        let refused = validate(&sandbox(&spec), &observed(), &Settings::default()).unwrap_err();
        let way_out =
            "which no rule may open; list the networks that are needed, or name the hosts in host rules";
        assert!(refused[0].message.ends_with(way_out), "{}", refused[0].message);
    }
}

#[test]
fn the_operators_own_pods_are_open_to_no_rule() {
    let gateway =
        GatewaySettings { namespace: "serving".to_owned(), reachable_cidrs: Vec::new(), reach: None };
    let spec = egress(&json!({"service": {"name": "model", "namespace": "serving"}, "ports": [80]}));
    let with = |gateway| Settings { gateway, ..Settings::default() };
    assert!(validate(&sandbox(&spec), &observed(), &with(None)).is_ok());
    let refused = validate(&sandbox(&spec), &observed(), &with(Some(gateway))).unwrap_err();
    assert_eq!(refused[0].reason, "ReservedAddress");
}

#[test]
fn a_reserved_network_is_refused_with_a_way_out_that_works() {
    let settings = Settings { reserved_cidrs: vec!["10.96.0.0/16".parse().unwrap()], ..Settings::default() };
    for (cidr, way_out) in [
        ("10.0.0.0/8", "; list narrower networks that leave it out, or name the hosts in host rules"),
        ("10.96.3.0/24", "; for a workload of the cluster write service"),
        ("169.254.169.254/32", "; take the rule out"),
    ] {
        let spec = egress(&json!({"cidr": cidr, "ports": [443]}));
        let refused = validate(&sandbox(&spec), &observed(), &settings).unwrap_err();
        assert!(refused[0].message.ends_with(way_out), "{}", refused[0].message);
    }
}

#[test]
fn what_is_often_meant_is_said() {
    let gateway =
        GatewaySettings { namespace: "operators".to_owned(), reachable_cidrs: Vec::new(), reach: None };
    let settings = Settings { gateway: Some(gateway), ..Settings::default() };
    let host = |host: &str| egress(&json!({"host": host, "ports": [443]}));
    for (spec, said) in [
        (host("https://pypi.org"), "has the character ':'; leave https:// out and write ports: [443]"),
        (host("http://*.example/a"), "; leave http:// out and write ports: [80]"),
        (host("ssh://git.example"), "; leave ssh:// out and write its port into ports"),
        (host("pypi.org:443"), "; write host: pypi.org and ports: [443]"),
        (host("*"), "; no rule means every host; list the names"),
        (host("**"), "; no rule means every host; list the names"),
        (host("a*.example"), "; write the exact name (api.example)"),
        (
            egress(&json!({"host": "a.example", "cidr": "198.51.100.0/24", "ports": [443]})),
            "exactly one of host, cidr and service; make two rules of it",
        ),
        (json!({"resources": {"memory": "256m"}}), "; 256m is 256 thousandths of a byte: write 256Mi"),
        (json!({"network": {"limits": {"egressBytes": "5m"}}}), ": write 5Mi"),
        (
            json!({"resources": {"memory": "512MB"}}),
            "must be a number with Ki, Mi, Gi, k, M or G, at least 16Mi, such as 512Mi",
        ),
        (json!({"resources": {"memory": "1e9"}}), "must be a quantity without exponent, at least 16Mi"),
        (
            json!({"resources": {"cpu": "one"}}),
            "must be a number of CPUs, or of thousandths with m, at least 10m",
        ),
    ] {
        let refused = validate(&sandbox(&spec), &observed(), &settings).unwrap_err();
        assert!(refused[0].message.contains(said), "{}", refused[0].message);
    }
}

#[test]
fn host_bits_are_refused_with_what_to_write() {
    let spec = egress(&json!({"cidr": "198.51.100.7/24", "ports": [1]}));
    let refused = validate(&sandbox(&spec), &observed(), &Settings::default()).unwrap_err();
    assert_eq!(
        refused[0].message,
        "198.51.100.7/24 has host bits; write 198.51.100.0/24 for the network or 198.51.100.7/32 for the one address"
    );
}

#[test]
fn messages_are_short_and_plain_whatever_the_user_writes() {
    let long = format!("\u{1b}[2J\n{}", "x".repeat(100_000));
    let spec = json!({
        "env": [{"name": long}], "timeout": long, "isolation": {"runtimeClassName": long},
        "filesystem": {"mounts": [mount(&long), mount(&long)]},
        "network": {"egress": [{"cidr": long, "ports": [1]}, {"host": long, "ports": [1]},
            {"service": {"name": long}, "ports": [1]}]},
    });
    for refusal in validate(&sandbox(&spec), &observed(), &Settings::default()).unwrap_err() {
        assert!(refusal.message.len() < 600, "{}", refusal.message.len());
        assert!(!refusal.message.chars().any(char::is_control), "{}", refusal.message);
    }
}

#[test]
fn user_namespaces_follow_the_settings_and_the_runtime() {
    let settings = Settings { user_namespaces: true, ..Settings::default() };
    let of = |isolation: Value| {
        validate(&sandbox(&json!({"isolation": isolation})), &observed(), &settings)
            .map(|v| (v.user_namespace(), v.user()))
            .map_err(|refusals| refusals[0].reason)
    };
    assert_eq!(of(json!({})), Ok((true, 1000)));
    assert_eq!(of(json!({"userNamespace": "Required"})), Ok((true, 1000)));
    assert!(matches!(of(json!({"userNamespace": "Disabled"})), Ok((false, 100_000..))));
    assert!(matches!(of(json!({"runtimeClassName": "gvisor"})), Ok((false, 100_000..))));
    let both = json!({"runtimeClassName": "gvisor", "userNamespace": "Required"});
    assert_eq!(of(both), Err("UserNamespaceUnavailable"));
}

#[test]
fn what_the_api_server_could_not_store_is_refused() {
    let variables = |count: usize, value: &str| {
        let variable = |index: usize| json!({"name": format!("A{index}"), "value": value});
        json!({"env": (0..count).map(variable).collect::<Vec<_>>()})
    };
    let (plain, dollars) = ("a".repeat(32_768), "$".repeat(32_768));
    assert_eq!(refusals(&variables(30, &plain)), []);
    assert_eq!(refusals(&variables(15, &dollars)), []);
    let refused = [("InvalidSpec", "spec.env".to_owned())];
    assert_eq!(refusals(&variables(33, &plain)), refused);
    assert_eq!(refusals(&variables(17, &dollars)), refused);
    assert_eq!(refusals(&variables(6, &"\u{1}".repeat(32_768))), refused);
    assert_eq!(refusals(&json!({"args": vec!["$".repeat(4096); 256]})), refused);

    let mut seen = observed();
    let model = seen.services.get_mut(&("serving".to_owned(), "model".to_owned())).unwrap();
    model.selector = (0..20).map(|index| (format!("{index}{}", "k".repeat(200)), "v".repeat(60))).collect();
    let rule = json!({"service": {"name": "model", "namespace": "serving"}, "ports": [80]});
    let many = sandbox(&json!({"network": {"egress": vec![rule; 256]}}));
    let refused = validate(&many, &seen, &Settings::default()).unwrap_err();
    assert_eq!(refused.iter().map(|r| r.field.as_str()).collect::<Vec<_>>(), ["spec.network"]);
}

#[test]
fn a_runtime_class_must_be_allowed_where_there_is_a_list() {
    let of = |classes: Option<&[&str]>, isolation: Value| {
        let runtime_classes = classes.map(|list| list.iter().map(|class| (*class).to_owned()).collect());
        let settings = Settings { runtime_classes, ..Settings::default() };
        let refused = validate(&sandbox(&json!({"isolation": isolation})), &observed(), &settings).err()?;
        Some((refused[0].reason, refused[0].field.clone()))
    };
    let gvisor = || json!({"runtimeClassName": "gvisor"});
    let refused = Some(("RuntimeClassNotAllowed", "spec.isolation.runtimeClassName".to_owned()));
    assert_eq!(of(None, gvisor()), None);
    assert_eq!(of(Some(&["kata", "gvisor"]), gvisor()), None);
    assert_eq!(of(Some(&["kata"]), gvisor()), refused);
    assert_eq!(of(Some(&["kata"]), json!({})), None);
}

#[test]
fn a_foreign_object_is_a_conflict() {
    let seen = Observed { foreign: BTreeSet::from([Foreign::PodTaken]), ..Observed::default() };
    let refused = validate(&sandbox(&json!({})), &seen, &Settings::default()).unwrap_err();
    assert_eq!(refused[0].reason, "NameConflict");
}
