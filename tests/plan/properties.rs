//! What holds for any valid sandbox.
use std::net::SocketAddr;

use agentsandbox::{
    api::v1alpha1::{EgressRule, Mount, Protocol},
    plan::{self, Plan, Prepared, keyed, labels, names},
};
use k8s_openapi::api::{core::v1::Pod, networking::v1::NetworkPolicy};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::{
    any::{Case, case, service_ports},
    restricted,
};

fn planned(case: &Case) -> Plan<Prepared> {
    let valid = plan::validate(&case.sandbox, &case.observed, &case.settings)
        .unwrap_or_else(|refusals| panic!("refused: {refusals:?}"));
    plan::plan(&valid, &case.settings)
}

fn as_json(case: &Case) -> (Value, Value) {
    let plan = planned(case);
    (serde_json::to_value(plan.policy).unwrap(), serde_json::to_value(plan.pod).unwrap())
}

fn hash(case: &Case) -> String {
    let meta = &case.sandbox.metadata;
    let text = |field: &Option<String>| field.clone().unwrap();
    names::hash(&text(&meta.namespace), &text(&meta.name), &text(&meta.uid))
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// Path, whether read-only, sub-path and the volume itself, for every mount of the container.
fn mounts_of(pod: &Value, container: &Value) -> Vec<Value> {
    let volume = |name: &Value| {
        let mut found = list(&pod["spec"]["volumes"]).iter().filter(|v| v["name"] == *name);
        let mut volume = found.next().unwrap().clone();
        assert!(found.next().is_none(), "two volumes are named {name}");
        volume.as_object_mut().unwrap().remove("name");
        volume
    };
    list(&container["volumeMounts"])
        .iter()
        .map(|m| {
            assert!(m.get("subPathExpr").is_none() && m.get("mountPropagation").is_none(), "{m}");
            let read_only = m["readOnly"].as_bool().unwrap();
            json!([m["mountPath"], read_only, m["subPath"], volume(&m["name"])])
        })
        .collect()
}

fn asked_for(mount: &Mount, all: &[Mount]) -> Value {
    let (volume, sub_path) = if let Some(source) = &mount.empty_dir {
        (json!({"emptyDir": {"sizeLimit": source.size_limit}}), None)
    } else if let Some(source) = &mount.persistent_volume_claim {
        let same = |other: &&Mount| {
            other.persistent_volume_claim.as_ref().is_some_and(|claim| claim.claim_name == source.claim_name)
        };
        let mut claim = json!({"claimName": source.claim_name});
        if all.iter().filter(same).all(|other| other.read_only.unwrap_or(true)) {
            claim["readOnly"] = json!(true);
        }
        (json!({"persistentVolumeClaim": claim}), source.sub_path.as_ref())
    } else if let Some(source) = &mount.config_map {
        (json!({"configMap": {"name": source.name, "defaultMode": 0o440}}), source.sub_path.as_ref())
    } else {
        let source = mount.secret.as_ref().unwrap();
        (json!({"secret": {"secretName": source.name, "defaultMode": 0o440}}), source.sub_path.as_ref())
    };
    json!([mount.path, mount.read_only.unwrap_or(true), sub_path, volume])
}

fn expected_rule(rule: &EgressRule, own_namespace: &str) -> Value {
    let asked_protocol = rule.protocol.unwrap_or_default();
    let protocol = match asked_protocol {
        Protocol::TCP => "TCP",
        Protocol::UDP => "UDP",
    };
    let port = |port: Value| json!({"port": port, "protocol": protocol});
    if let Some(cidr) = &rule.cidr {
        let ports: Vec<Value> = rule.ports.iter().map(|p| port(json!(p))).collect();
        return json!({"ports": ports, "to": [{"ipBlock": {"cidr": cidr}}]});
    }
    let asked = rule.service.as_ref().unwrap().namespace.as_deref();
    let namespace = asked.unwrap_or(own_namespace);
    // The one in the sandbox's own namespace hides the shared one where both are in one.
    let app = if namespace == own_namespace { "own" } else { "shared" };
    let target = |wanted: &i32| {
        service_ports()
            .into_iter()
            .find(|p| p.port == *wanted && p.protocol == asked_protocol)
            .unwrap()
            .target
    };
    let ports: Vec<Value> =
        rule.ports.iter().map(|p| port(serde_json::to_value(target(p)).unwrap())).collect();
    json!({"ports": ports, "to": [{
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
        "podSelector": {"matchLabels": {"app": app}},
    }]})
}

/// The one way out that no rule lists.
fn to_gateway(namespace: &str) -> Value {
    json!({"ports": [{"port": 8443, "protocol": "TCP"}], "to": [{
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
        "podSelector": {"matchLabels": {
            "app.kubernetes.io/name": "agentsandbox", "app.kubernetes.io/component": "gateway",
        }},
    }]})
}

/// Value of the variable `name` of a container.
fn variable<'a>(container: &'a Value, name: &str) -> Option<&'a str> {
    let mut found = list(&container["env"]).iter().filter(|v| v["name"] == name);
    let value = found.next()?["value"].as_str();
    assert!(found.next().is_none(), "{name} is set twice");
    value
}

const PROXIES: [(&str, &str); 8] = [
    ("HTTP_PROXY", "http://127.64.0.1:3128"),
    ("http_proxy", "http://127.64.0.1:3128"),
    ("HTTPS_PROXY", "http://127.64.0.1:3128"),
    ("https_proxy", "http://127.64.0.1:3128"),
    ("ALL_PROXY", "socks5h://127.64.0.1:1080"),
    ("all_proxy", "socks5h://127.64.0.1:1080"),
    ("NO_PROXY", "localhost,127.0.0.0/8,::1"),
    ("no_proxy", "localhost,127.0.0.0/8,::1"),
];

/// What the kubelet makes of an argument or a value: `$$` is one `$`, `$(NAME)` a reference. Nothing of ours may be a
/// reference.
fn expanded(text: &str) -> String {
    let mut result = String::new();
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        if character == '$' {
            match characters.peek() {
                Some('$') => drop(characters.next()),
                Some('(') => panic!("a reference in {text:?}"),
                _ => {}
            }
        }
        result.push(character);
    }
    result
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_pod_passes_the_level_restricted(case in case()) {
        let (_, pod) = as_json(&case);
        prop_assert_eq!(restricted::violations(&pod), Vec::<String>::new());
        let spec = &pod["spec"];
        // Beyond the level: nothing of the API server's, nothing to write to, no user of the node's.
        prop_assert_eq!(&spec["automountServiceAccountToken"], false);
        prop_assert_eq!(&spec["enableServiceLinks"], false);
        for absent in ["serviceAccountName", "nodeName", "hostAliases", "ephemeralContainers", "shareProcessNamespace"] {
            prop_assert!(spec.get(absent).is_none(), "{}", absent);
        }
        for container in list(&spec["initContainers"]).iter().chain(list(&spec["containers"])) {
            let context = &container["securityContext"];
            prop_assert_eq!(&context["readOnlyRootFilesystem"], true);
            prop_assert!(context["runAsUser"].as_i64().is_some_and(|user| user > 0));
            prop_assert!(container["resources"]["limits"]["memory"].is_string());
        }
    }

    #[test]
    fn the_pod_has_exactly_the_mounts_listed(case in case()) {
        let (_, pod) = as_json(&case);
        let own = keyed::directory(&case.settings.directory_key, case.sandbox.metadata.uid.as_deref().unwrap());
        prop_assert!(!own.contains(&hash(&case)));
        let small = json!({"emptyDir": {"sizeLimit": "16Mi"}});
        let token = json!({"projected": {"defaultMode": 0o440, "sources": [{"serviceAccountToken": {
            "audience": "agentsandbox-gateway", "expirationSeconds": 3600, "path": "token",
        }}]}});
        let asked = case.sandbox.spec.filesystem.iter().flat_map(|f| f.mounts.iter().map(|m| asked_for(m, &f.mounts)));
        let agent: Vec<Value> = std::iter::once(json!([own, true, null, small])).chain(asked).collect();
        let spec = &pod["spec"];
        prop_assert_eq!(list(&spec["containers"]).len(), 1);
        // Runtimes mount the deepest paths last.
        let depth = |path: &str| path.matches('/').count();
        for mount in case.sandbox.spec.filesystem.iter().flat_map(|f| &f.mounts) {
            prop_assert!(depth(&mount.path) < depth(&own));
        }
        prop_assert_eq!(list(&spec["initContainers"]).len(), 2);
        prop_assert_eq!(list(&spec["volumes"]).len(), agent.len() + 2);
        prop_assert_eq!(mounts_of(&pod, &spec["containers"][0]), agent);
        prop_assert_eq!(mounts_of(&pod, &spec["initContainers"][0]), vec![json!([own, false, null, small])]);
        prop_assert_eq!(
            mounts_of(&pod, &spec["initContainers"][1]),
            vec![
                json!(["/spool", false, null, small]),
                json!(["/var/run/agentsandbox/token", true, null, token]),
                json!(["/var/run/agentsandbox/init", true, null, {"emptyDir": {"sizeLimit": "16Mi"}}]),
            ]
        );
    }

    #[test]
    fn the_policy_selects_the_pod_and_has_exactly_the_rules(case in case()) {
        let (policy, pod) = as_json(&case);
        let namespace = case.sandbox.metadata.namespace.clone().unwrap();
        prop_assert_eq!(&policy["metadata"]["namespace"], &json!(namespace));
        prop_assert_eq!(&pod["metadata"]["namespace"], &json!(namespace));
        prop_assert_eq!(&policy["spec"]["podSelector"], &json!({"matchLabels": {(labels::SANDBOX): hash(&case)}}));
        for (label, value) in policy["spec"]["podSelector"]["matchLabels"].as_object().unwrap() {
            prop_assert_eq!(&pod["metadata"]["labels"][label], value);
        }
        prop_assert_eq!(&policy["spec"]["policyTypes"], &json!(["Ingress", "Egress"]));
        prop_assert_eq!(list(&policy["spec"]["ingress"]).len(), 0);
        // No policy knows a name: those rules are the gateway's.
        let rules = case.sandbox.spec.network.iter().flat_map(|n| &n.egress).filter(|rule| rule.host.is_none());
        let gateway = case.settings.gateway.iter().map(|gateway| to_gateway(&gateway.namespace));
        let expected: Vec<Value> = rules.map(|rule| expected_rule(rule, &namespace)).chain(gateway).collect();
        prop_assert_eq!(list(&policy["spec"]["egress"]), expected.as_slice());
        for rule in list(&policy["spec"]["egress"]) {
            // An empty list of either would mean everything.
            prop_assert!(!list(&rule["ports"]).is_empty() && !list(&rule["to"]).is_empty());
        }
    }

    #[test]
    fn names_and_labels_are_what_kubernetes_takes(case in case()) {
        let (policy, pod) = as_json(&case);
        prop_assert_eq!(&policy["metadata"]["name"], &pod["metadata"]["name"]);
        let spec = &pod["spec"];
        let objects = [&pod["metadata"], &policy["metadata"]];
        let parts = ["volumes", "containers", "initContainers"].map(|part| list(&spec[part]));
        for named in objects.into_iter().chain(parts.into_iter().flatten()) {
            let name = named["name"].as_str().unwrap();
            let inner = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
            prop_assert!(inner && (1..=63).contains(&name.len()), "{}", name);
            prop_assert!(!name.starts_with('-') && !name.ends_with('-'), "{}", name);
        }
        for meta in objects {
            for value in meta["labels"].as_object().unwrap().values() {
                prop_assert!(value.as_str().unwrap().len() <= 63);
            }
            let owner = json!([{
                "apiVersion": "agentsandbox.dev/v1alpha1", "kind": "AgentSandbox", "controller": true,
                "blockOwnerDeletion": true, "name": case.sandbox.metadata.name, "uid": case.sandbox.metadata.uid,
            }]);
            prop_assert_eq!(&meta["ownerReferences"], &owner);
        }
    }

    #[test]
    fn one_input_has_one_plan(case in case()) {
        let (one, two) = (planned(&case), planned(&case.clone()));
        prop_assert_eq!(&one, &two);
        prop_assert_eq!(serde_json::to_string(&one.pod).unwrap(), serde_json::to_string(&two.pod).unwrap());
        prop_assert_eq!(serde_json::to_string(&one.policy).unwrap(), serde_json::to_string(&two.policy).unwrap());
    }

    #[test]
    fn two_sandboxes_never_share_an_object(one in case(), two in case()) {
        prop_assume!(one.sandbox.metadata != two.sandbox.metadata);
        let (one, two) = (planned(&one), planned(&two));
        prop_assert_ne!(one.pod.metadata.name, two.pod.metadata.name);
        prop_assert_ne!(one.policy.spec.unwrap().pod_selector, two.policy.spec.unwrap().pod_selector);
    }

    #[test]
    fn the_agent_gets_the_words_that_were_written(case in case()) {
        let (_, pod) = as_json(&case);
        let agent = &pod["spec"]["containers"][0];
        let command: Vec<String> = list(&agent["command"]).iter().map(|t| expanded(t.as_str().unwrap())).collect();
        let spec = &case.sandbox.spec;
        prop_assert!(agent.get("args").is_none());
        prop_assert_eq!(&command[1..3], &["run", "--"]);
        prop_assert_eq!(&command[3..], [spec.command.as_slice(), &spec.args].concat());
        let env = list(&agent["env"]);
        let asked = spec.network.as_ref().is_some_and(|n| n.proxy_environment);
        prop_assert_eq!(env.len(), spec.env.len() + 1 + if asked { PROXIES.len() } else { 0 });
        for (name, value) in PROXIES {
            prop_assert_eq!(variable(agent, name), asked.then_some(value), "{}", name);
        }
        for (written, planned) in spec.env.iter().zip(env.iter().skip(1)) {
            prop_assert_eq!(&planned["name"], &json!(written.name));
            prop_assert_eq!(planned["valueFrom"].is_null(), written.value_from.is_none());
            if written.value_from.is_none() {
                let value = expanded(planned["value"].as_str().unwrap());
                prop_assert_eq!(value.as_str(), written.value.as_deref().unwrap_or_default());
            }
        }
    }

    #[test]
    fn the_sidecar_and_nobody_else_is_told_of_the_gateway(case in case()) {
        let (_, pod) = as_json(&case);
        let spec = &pod["spec"];
        let (install, sidecar, agent) = (&spec["initContainers"][0], &spec["initContainers"][1], &spec["containers"][0]);
        let reach = case.settings.gateway.as_ref().and_then(|gateway| gateway.reach.as_ref());
        let text = |address: SocketAddr| Some(address.to_string());
        for (name, value) in [
            ("GATEWAY", reach.and_then(|r| text(r.address))),
            ("GATEWAY_NAME", reach.map(|_| "agentsandbox-gateway.operators.svc".to_owned())),
            ("GATEWAY_CA", reach.map(|r| r.authorities.clone())),
            ("GATE_API_SERVER", reach.and_then(|r| text(r.api_server))),
            ("GATE_METADATA", reach.map(|_| "169.254.169.254:80".to_owned())),
            ("TOKEN_FILE", reach.map(|_| "/var/run/agentsandbox/token/token".to_owned())),
        ] {
            let name = format!("AGENTSANDBOX_{name}");
            prop_assert_eq!(variable(sidecar, &name).map(expanded), value, "{}", name);
            prop_assert_eq!(variable(agent, &name), None, "{}", name);
            prop_assert_eq!(variable(install, &name), None, "{}", name);
        }
        prop_assert_eq!(pod["metadata"]["annotations"].get(labels::START_GATE).is_some(), reach.is_some());
        // The kubelet does not end a sidecar whose gate is still measuring.
        let started = sidecar["startupProbe"]["failureThreshold"].as_i64().unwrap();
        prop_assert!(started >= case.sandbox.spec.startup_timeout.parse().unwrap().as_secs().try_into().unwrap());
    }

    #[test]
    fn yaml_gives_the_objects_back(case in case()) {
        let plan = planned(&case);
        let pod: Pod = serde_saphyr::from_str(&serde_saphyr::to_string(&plan.pod).unwrap()).unwrap();
        let policy: NetworkPolicy = serde_saphyr::from_str(&serde_saphyr::to_string(&plan.policy).unwrap()).unwrap();
        prop_assert_eq!(pod, plan.pod);
        // An empty list and none are one thing in YAML's reader, and `ingress: []` in the policy is checked above.
        prop_assert_eq!(policy.metadata, plan.policy.metadata);
    }
}
