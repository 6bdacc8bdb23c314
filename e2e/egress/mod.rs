//! Names, not addresses: what an agent reaches by host rules, and every way around them that is known (the numbers E1
//! to E22 are those of `docs/threat-model.md`). What is refused here is reached in the same run by a plain Pod, or by
//! the same agent in a form that is allowed.
mod addresses;
mod clients;
mod gate;
mod gateways;
mod identity;
mod limits;
mod many;
mod names;
mod node;
mod protocols;
mod ssh;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use crate::support::{Test, agent, environment, internet::ALLOWED, sandbox::merge};

const PROBE: &str = include_str!("probe.py");

/// One host rule.
pub fn host(pattern: &str, ports: &[u16]) -> Value {
    json!({"host": pattern, "ports": ports})
}

/// A rule for the echo server of one name.
pub fn tcp(name: &str) -> Value {
    json!({"host": name, "ports": [7000], "protocol": "TCP"})
}

/// The script's first lines.
fn with_probe(script: &str) -> Value {
    json!([
        "/usr/bin/python3",
        "-c",
        format!(
            "import sys; sys.path.insert(0, '/probe'); sys.dont_write_bytecode = True\nfrom probe import *\n{script}"
        ),
    ])
}

impl Test {
    /// Puts the probe and the CA of the Internet's servers into the namespace.
    pub async fn probe(&self) {
        let authority = std::fs::read_to_string(environment().state().join("ca.pem")).unwrap();
        let map = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "probe"},
            "data": {"probe.py": PROBE, "ca.pem": authority},
        });
        self.create(&map).await.unwrap();
    }

    /// Puts one more file beside the probe.
    pub async fn add_to_probe(&self, name: &str, text: &str) {
        let patch = Patch::Merge(json!({"data": {name: text}}));
        self.api::<ConfigMap>().patch("probe", &PatchParams::default(), &patch).await.unwrap();
    }

    /// Starts a sandbox that runs `script` with the probe and may reach what `rules` say.
    pub async fn agent(&self, name: &str, script: &str, rules: &[Value], spec: Value) {
        let mut whole = json!({
            "command": with_probe(script),
            "network": {"egress": rules},
            "filesystem": {"mounts": [{"path": "/probe", "configMap": {"name": "probe"}}]},
        });
        merge(&mut whole, spec);
        self.sandbox(name, "", whole).await;
    }

    /// Runs `script` with the probe in a sandbox to its end and answers what it said.
    pub async fn tries(&self, script: &str, rules: &[Value]) -> Vec<Value> {
        self.agent("agent", script, rules, json!({})).await;
        self.finished_as("agent", "Completed").await;
        agent::lines(&self.log("agent").await)
    }

    /// Runs `script` with the probe in a plain Pod, which resolves names by the Internet's own name server.
    pub async fn control_tries(&self, script: &str) -> Vec<Value> {
        let over = json!({"spec": {
            "dnsPolicy": "None", "dnsConfig": {"nameservers": [ALLOWED]},
            "volumes": [{"name": "probe", "configMap": {"name": "probe"}}],
        }});
        self.control_with("control", &with_probe(script), Some(("probe", "/probe")), over).await
    }
}

/// Whether the trial `name` could be done; what it gave, or why not. A refusal in HTTP is one too.
pub fn tried<'a>(lines: &'a [Value], name: &str) -> (bool, &'a Value) {
    let line = agent::probe(lines, name);
    let ok = line["ok"].as_bool().unwrap();
    let said = if ok { &line["value"] } else { &line["error"] };
    (ok && !said.as_str().is_some_and(|text| text.starts_with("HTTP/1.1 4")), said)
}

/// Asserts that the trials could be done.
pub fn all_done(lines: &[Value], names: &[&str]) {
    for name in names {
        let (done, said) = tried(lines, name);
        assert!(done, "{name} should be possible: {said}\n{lines:#?}");
    }
}

/// Asserts that the trials could not be done.
pub fn none_done(lines: &[Value], names: &[&str]) {
    for name in names {
        let (done, said) = tried(lines, name);
        assert!(!done, "{name} should be refused: {said}\n{lines:#?}");
    }
}
