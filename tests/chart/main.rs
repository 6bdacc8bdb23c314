//! The charts as Helm renders them. Helm is needed: `e2e/cluster/build helm`; without it these tests fail.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    process::Command,
};

use agentsandbox::{
    cli::Cli,
    egress::wire::{CANARY_PORT, GATEWAY_PORT},
    plan::labels,
};
use clap::{CommandFactory, Parser};
use serde_json::Value;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Helm: `HELM`, else the cluster cache's, which is built where it is missing.
fn helm() -> PathBuf {
    if let Some(path) = std::env::var_os("HELM") {
        return path.into();
    }
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache"), PathBuf::from);
    let path = cache.join("agentsandbox-cluster/bin/helm");
    if !path.exists() {
        let built = Command::new(format!("{ROOT}/e2e/cluster/build")).arg("helm").status().unwrap();
        assert!(built.success(), "helm could not be built");
    }
    path
}

fn run(chart: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(helm())
        .args(["template", "agentsandbox", &format!("{ROOT}/charts/{chart}"), "-n", "agentsandbox-system"])
        .args(arguments)
        .output()
        .unwrap();
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    if output.status.success() { Ok(out) } else { Err(err) }
}

fn full() -> String {
    let values = format!("{ROOT}/tests/chart/full.yaml");
    run("agentsandbox", &["--values", &values]).unwrap()
}

/// Every document of the text that is not empty.
fn documents(text: &str) -> Vec<Value> {
    text.split("\n---")
        .filter(|part| part.lines().any(|line| !line.is_empty() && !line.starts_with('#') && line != "---"))
        .map(|part| {
            serde_saphyr::from_str(part.trim_start_matches("---")).unwrap_or_else(|e| panic!("{e}:\n{part}"))
        })
        .collect()
}

fn of_kind<'a>(documents: &'a [Value], kind: &str) -> Vec<&'a Value> {
    documents.iter().filter(|document| document["kind"] == kind).collect()
}

#[test]
fn default_values() {
    insta::assert_snapshot!(run("agentsandbox", &[]).unwrap());
}

#[test]
fn all_values() {
    insta::assert_snapshot!(full());
}

#[test]
fn every_document_is_an_object_of_its_own_name() {
    let documents = documents(&full());
    let mut names = BTreeSet::new();
    for document in &documents {
        for field in ["apiVersion", "kind"] {
            assert!(document[field].is_string(), "{field} of {document}");
        }
        let name = document["metadata"]["name"].as_str().unwrap();
        assert!(names.insert(format!("{} {name}", document["kind"])), "two of {name}");
    }
    let kinds: BTreeSet<&str> = documents.iter().filter_map(|document| document["kind"].as_str()).collect();
    for kind in [
        "Deployment",
        "HorizontalPodAutoscaler",
        "NetworkPolicy",
        "Pod",
        "PodDisruptionBudget",
        "PrometheusRule",
        "ServiceMonitor",
    ] {
        assert!(kinds.contains(kind), "no {kind}");
    }
}

#[test]
fn no_role_has_a_wildcard_and_secrets_are_reached_by_name_only() {
    let documents = documents(&full());
    let roles = [of_kind(&documents, "ClusterRole"), of_kind(&documents, "Role")].concat();
    assert!(roles.len() >= 4);
    let own = serde_json::json!(["agentsandbox-egress-ca", "agentsandbox-gateway-tls"]);
    for role in roles {
        let (kind, name) = (&role["kind"], role["metadata"]["name"].as_str().unwrap());
        for rule in role["rules"].as_array().unwrap() {
            let text = rule.to_string();
            assert!(!text.contains('*'), "{text}");
            assert!(!text.contains("pods/exec"), "{text}");
            if text.contains("secrets") {
                assert_eq!((kind.as_str(), name), (Some("Role"), "agentsandbox-controller"), "{text}");
                let by_name =
                    rule["resourceNames"] == own && rule["verbs"] == serde_json::json!(["get", "patch"]);
                assert!(by_name || rule["verbs"] == serde_json::json!(["create"]), "{text}");
            }
        }
    }
}

#[test]
fn the_gateway_writes_nothing_but_reviews_and_events() {
    let documents = documents(&full());
    let roles = [of_kind(&documents, "ClusterRole"), of_kind(&documents, "Role")].concat();
    let mut may: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for role in roles.into_iter().filter(|role| role["metadata"]["name"] == "agentsandbox-gateway") {
        for rule in role["rules"].as_array().unwrap() {
            for resource in rule["resources"].as_array().unwrap() {
                let verbs = rule["verbs"].as_array().unwrap().iter().map(|v| v.as_str().unwrap().to_owned());
                may.entry(resource.as_str().unwrap().to_owned()).or_default().extend(verbs);
            }
        }
    }
    let reads = || vec!["get".to_owned(), "list".to_owned(), "watch".to_owned()];
    let want = BTreeMap::from([
        ("agentsandboxes".to_owned(), reads()),
        ("endpointslices".to_owned(), reads()),
        ("events".to_owned(), vec!["create".to_owned(), "patch".to_owned()]),
        ("pods".to_owned(), reads()),
        ("tokenreviews".to_owned(), vec!["create".to_owned()]),
    ]);
    assert_eq!(may, want);
}

/// Pods of the Deployment `name`.
fn pods_of<'a>(documents: &'a [Value], name: &str) -> &'a Value {
    let deployments = of_kind(documents, "Deployment");
    &deployments.into_iter().find(|d| d["metadata"]["name"] == name).unwrap()["spec"]["template"]
}

/// Whether every label of `selector` is one of `labels`.
fn selects(selector: &Value, labels: &Value) -> bool {
    let selector = selector.as_object().unwrap();
    !selector.is_empty() && selector.iter().all(|(name, value)| labels[name] == *value)
}

/// What the plan and the controller take for granted is what the chart makes.
#[test]
fn policies_services_and_ports_fit_together() {
    for text in [run("agentsandbox", &[]).unwrap(), full()] {
        let documents = documents(&text);
        let (controller, gateway) =
            (pods_of(&documents, "agentsandbox-controller"), pods_of(&documents, "agentsandbox-gateway"));
        let opened = serde_json::to_value(labels::of_gateway()).unwrap();
        assert!(selects(&opened, &gateway["metadata"]["labels"]));
        assert!(!selects(&opened, &controller["metadata"]["labels"]));
        let mut seen = BTreeSet::new();
        for service in of_kind(&documents, "Service") {
            let selector = &service["spec"]["selector"];
            let pod =
                [controller, gateway].into_iter().find(|pod| selects(selector, &pod["metadata"]["labels"]));
            let port = &service["spec"]["ports"][0];
            let ports = pod.unwrap()["spec"]["containers"][0]["ports"].as_array().unwrap();
            let target = ports.iter().find(|p| p["name"] == port["targetPort"]).unwrap();
            assert_eq!(port["port"], target["containerPort"], "{service}");
            let headless = if service["spec"]["clusterIP"] == "None" { "headless" } else { "" };
            seen.insert(format!(
                "{} {} {headless}",
                service["metadata"]["name"].as_str().unwrap(),
                port["port"]
            ));
        }
        let want = [
            format!("agentsandbox-canary {CANARY_PORT} headless"),
            "agentsandbox-controller-metrics 8080 ".to_owned(),
            format!("agentsandbox-gateway {GATEWAY_PORT} "),
            "agentsandbox-gateway-metrics 8080 ".to_owned(),
            format!("agentsandbox-gateway-peers {GATEWAY_PORT} headless"),
        ];
        assert_eq!(seen, want.into());
        for policy in of_kind(&documents, "NetworkPolicy") {
            let selector = &policy["spec"]["podSelector"]["matchLabels"];
            assert_eq!(
                [controller, gateway]
                    .iter()
                    .filter(|pod| selects(selector, &pod["metadata"]["labels"]))
                    .count(),
                1
            );
            // A sandbox must be kept off by its own policy: one that kept it off here would prove nothing.
            assert!(policy["spec"]["ingress"][0].get("from").is_none());
        }
        let secret = &gateway["spec"]["volumes"][0]["secret"];
        assert_eq!(secret["secretName"], "agentsandbox-gateway-tls");
        let grace = gateway["spec"]["terminationGracePeriodSeconds"].as_i64().unwrap();
        let drain = format!("--drain={}s", grace - 15);
        assert!(gateway["spec"]["containers"][0]["args"].as_array().unwrap().contains(&drain.into()));
    }
}

/// The command line takes what the chart writes.
#[test]
fn the_arguments_are_ones_that_the_program_takes() {
    for text in [run("agentsandbox", &[]).unwrap(), full()] {
        let documents = documents(&text);
        let deployments = of_kind(&documents, "Deployment");
        let specs = deployments.iter().map(|d| &d["spec"]["template"]["spec"]);
        let pods = of_kind(&documents, "Pod");
        let mut taken = 0;
        for spec in specs.chain(pods.iter().map(|pod| &pod["spec"])) {
            let arguments = spec["containers"][0]["args"].as_array().unwrap();
            let arguments: Vec<&str> = arguments.iter().map(|a| a.as_str().unwrap()).collect();
            taken += 1;
            if Cli::command().find_subcommand(arguments[0]).is_none() {
                assert_eq!(arguments[0], "gateway");
                continue;
            }
            // What the variables of the container say.
            let given =
                if spec["containers"][0]["name"] == "controller" { vec!["--identity=pod"] } else { vec![] };
            let line = std::iter::once("agentsandbox").chain(arguments).chain(given);
            if let Err(error) = Cli::try_parse_from(line) {
                panic!("{error}");
            }
        }
        assert_eq!(taken, 4);
    }
}

/// The overlay for kustomize names two of them by their place, since a patch cannot do otherwise.
#[test]
fn the_overlays_paths_lead_to_what_they_mean() {
    let text = std::fs::read_to_string(format!("{ROOT}/config/base/operator.yaml")).unwrap();
    let documents = documents(&text);
    let arguments = &pods_of(&documents, "agentsandbox-controller")["spec"]["containers"][0]["args"];
    assert!(arguments[1].as_str().unwrap().starts_with("--image="), "{arguments}");
    assert_eq!(arguments[4], "--user-namespaces=false");
    let overlay = std::fs::read_to_string(format!("{ROOT}/config/kustomize/kustomization.yaml")).unwrap();
    for path in ["containers.0.args.1]", "containers/0/args/4, value: \"--user-namespaces=false\""] {
        assert!(overlay.contains(path), "{path}");
    }
}

#[test]
fn exceptions_are_told_to_the_gateway_and_to_the_controller() {
    let documents = documents(&full());
    for (name, want) in [
        (
            "agentsandbox-gateway",
            vec![
                "--cluster-cidr=10.244.0.0/16,10.96.0.0/16",
                "--reachable-cidr=203.0.113.0/24,2001:db8::/32",
                "--nameserver=10.96.0.10:53",
                "--nameserver=[fd00::a]:53",
            ],
        ),
        (
            "agentsandbox-controller",
            vec![
                "--reserved-cidr=10.244.0.0/16,10.96.0.0/16",
                "--reachable-cidr=203.0.113.0/24,2001:db8::/32",
                "--cluster-dns=10.96.0.10:53",
            ],
        ),
    ] {
        let arguments = pods_of(&documents, name)["spec"]["containers"][0]["args"].as_array().unwrap();
        for argument in want {
            assert!(arguments.contains(&argument.into()), "{name}: {argument}");
        }
    }
}

/// Some clusters take Pods of the system's priority classes outside of kube-system only where a quota names the class.
#[test]
fn a_priority_class_of_the_system_has_a_quota() {
    for (class, want) in
        [("system-cluster-critical", true), ("system-node-critical", true), ("operators", false), ("", false)]
    {
        let text = run("agentsandbox", &["--set", &format!("priorityClassName={class}")]).unwrap();
        let documents = documents(&text);
        let quotas = of_kind(&documents, "ResourceQuota");
        assert_eq!(quotas.len(), usize::from(want), "{class}");
        for quota in quotas {
            let scopes = &quota["spec"]["scopeSelector"]["matchExpressions"];
            let in_class =
                serde_json::json!([{"scopeName": "PriorityClass", "operator": "In", "values": [class]}]);
            assert_eq!(scopes, &in_class);
            // The most replicas that the schema takes, of both, while two rollouts end.
            let most: u32 = quota["spec"]["hard"]["pods"].as_str().unwrap().parse().unwrap();
            assert!(most >= 3 * (10 + 100), "{most}");
        }
        for name in ["agentsandbox-controller", "agentsandbox-gateway"] {
            let used = pods_of(&documents, name)["spec"]["priorityClassName"].as_str().unwrap_or_default();
            assert_eq!(used, class, "{name}");
        }
    }
}

#[test]
fn the_controller_reaches_the_ports_that_are_given_and_no_others() {
    let controller = |documents: &[Value]| {
        let policies = of_kind(documents, "NetworkPolicy");
        let policy = policies.into_iter().find(|p| p["metadata"]["name"] == "agentsandbox-controller");
        policy.unwrap()["spec"]["egress"].clone()
    };
    let tcp = |ports: &[u16]| {
        let ports: Vec<_> =
            ports.iter().map(|port| serde_json::json!({"port": port, "protocol": "TCP"})).collect();
        serde_json::json!([{"ports": ports}])
    };
    assert_eq!(controller(&documents(&run("agentsandbox", &[]).unwrap())), tcp(&[443, 6443]));
    assert_eq!(controller(&documents(&full())), tcp(&[16443]));
}

#[test]
fn every_pod_of_the_operators_own_has_the_pull_secrets() {
    let documents = documents(&full());
    let deployments = of_kind(&documents, "Deployment");
    let specs = deployments.iter().map(|d| &d["spec"]["template"]["spec"]);
    let pods = of_kind(&documents, "Pod");
    let specs: Vec<_> = specs.chain(pods.iter().map(|pod| &pod["spec"])).collect();
    assert_eq!(specs.len(), 4);
    for spec in specs {
        assert_eq!(spec["imagePullSecrets"], serde_json::json!([{"name": "regcred"}]));
    }
}

/// The rules of the Pod Security Standard "restricted" that a Pod's own fields decide.
fn assert_restricted(spec: &Value) {
    for field in ["hostNetwork", "hostPID", "hostIPC"] {
        assert!(spec[field].is_null() || spec[field] == false, "{field}");
    }
    assert_eq!(spec["securityContext"]["runAsNonRoot"], true);
    assert_ne!(spec["securityContext"]["runAsUser"], 0);
    assert_eq!(spec["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
    for volume in spec["volumes"].as_array().into_iter().flatten() {
        assert!(volume["hostPath"].is_null(), "{volume}");
    }
    for container in spec["containers"].as_array().unwrap() {
        let security = &container["securityContext"];
        assert_eq!(security["allowPrivilegeEscalation"], false);
        assert_eq!(security["capabilities"]["drop"], serde_json::json!(["ALL"]));
        assert!(security["capabilities"]["add"].is_null());
        assert!(security["privileged"].is_null());
        assert_eq!(security["readOnlyRootFilesystem"], true);
        assert!(container["resources"]["limits"]["memory"].is_string());
        for port in container["ports"].as_array().into_iter().flatten() {
            assert!(port["hostPort"].is_null());
        }
    }
}

#[test]
fn every_pod_is_restricted() {
    let documents = documents(&full());
    for deployment in of_kind(&documents, "Deployment") {
        assert_restricted(&deployment["spec"]["template"]["spec"]);
    }
    for pod in of_kind(&documents, "Pod") {
        assert_restricted(&pod["spec"]);
    }
}

#[test]
fn the_digest_goes_before_the_tag() {
    let digest = format!("sha256:{}", "a".repeat(64));
    let text = run("agentsandbox", &["--set", &format!("image.digest={digest},image.tag=other")]).unwrap();
    let documents = documents(&text);
    let image = format!("ghcr.io/agentsandbox-dev/agentsandbox@{digest}");
    for name in ["agentsandbox-controller", "agentsandbox-gateway"] {
        assert_eq!(pods_of(&documents, name)["spec"]["containers"][0]["image"], image.as_str());
    }
    let container = &pods_of(&documents, "agentsandbox-controller")["spec"]["containers"][0];
    assert!(container["args"].as_array().unwrap().contains(&format!("--image={image}").into()));
}

#[test]
fn wrong_values_are_refused() {
    for wrong in [
        "replicas=-1",
        "replica=2",
        "image.digest=latest",
        "image.pullPolicy=Sometimes",
        "controller.grace=ten",
        "controller.logLevel=very loud",
        "controller.userNamespaces=perhaps",
        "controller.reservedCidrs[0]=everything",
        "controller.reservedCidrs[0]=10.0.0.0/99",
        "controller.reservedCidrs[0]=10.0.0/24",
        "controller.reservedCidrs[0]=fd00::/129",
        "controller.clusterDns=10.96.0.10",
        "gateway.replicas=0",
        "gateway.replica=2",
        "gateway.reachableCidrs[0]=10.0.0.1",
        "gateway.reachableCidrs[0]=10.20.0.0/33",
        "gateway.nameservers[0]=dns.example",
        "gateway.drainSeconds=-1",
        "gateway.logFormat=xml",
        "gateway.autoscaling.enabled=perhaps",
        "gateway.autoscaling.maxReplicas=0",
        "imagePullSecrets[0]=regcred",
        // Without ports a rule opens all of them.
        "networkPolicy.apiServerPorts=null",
        "networkPolicy.apiServerPorts[0]=0",
    ] {
        assert!(run("agentsandbox", &["--set", wrong]).is_err(), "{wrong} was taken");
    }
}

#[test]
fn definitions_stay_when_their_release_goes() {
    let documents = documents(&run("agentsandbox-crds", &[]).unwrap());
    for document in &documents {
        assert_eq!(document["kind"], "CustomResourceDefinition");
        assert_eq!(document["metadata"]["annotations"]["helm.sh/resource-policy"], "keep");
    }
    let names: Vec<&str> =
        documents.iter().filter_map(|document| document["metadata"]["name"].as_str()).collect();
    assert_eq!(names, ["agentsandboxes.agentsandbox.dev"]);
}
