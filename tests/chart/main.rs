//! The charts as Helm renders them. Helm is needed: `e2e/cluster/build helm`; without it these tests fail.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]
use std::{collections::BTreeSet, path::PathBuf, process::Command};

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
    for kind in
        ["Deployment", "NetworkPolicy", "PodDisruptionBudget", "ServiceMonitor", "PrometheusRule", "Pod"]
    {
        assert!(kinds.contains(kind), "no {kind}");
    }
}

#[test]
fn no_role_has_a_wildcard_or_reads_secrets() {
    let documents = documents(&full());
    let roles = [of_kind(&documents, "ClusterRole"), of_kind(&documents, "Role")].concat();
    assert!(roles.len() >= 2);
    for role in roles {
        for rule in role["rules"].as_array().unwrap() {
            let text = rule.to_string();
            assert!(!text.contains('*'), "{text}");
            assert!(!text.contains("secrets"), "{text}");
            assert!(!text.contains("pods/exec"), "{text}");
        }
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
    let container = &of_kind(&documents, "Deployment")[0]["spec"]["template"]["spec"]["containers"][0];
    let image = format!("ghcr.io/agentsandbox-dev/agentsandbox@{digest}");
    assert_eq!(container["image"], image.as_str());
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
