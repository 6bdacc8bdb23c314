//! The whole objects of every sample: a change of what reaches the API server is a change of a file here.
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use agentsandbox::{
    api::v1alpha1::{AgentSandbox, Protocol},
    plan::{
        self, GatewayReach, GatewaySettings, METADATA, Observed, ObservedPort, ObservedService, Plan,
        Prepared, Settings,
    },
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::json;

use crate::restricted;

fn settings() -> Settings {
    Settings {
        image: "registry.example/agentsandbox:1".to_owned(),
        user_namespaces: true,
        gateway: Some(GatewaySettings {
            namespace: "agentsandbox-system".to_owned(),
            reachable_cidrs: Vec::new(),
            reach: Some(GatewayReach {
                address: "10.96.0.20:8443".parse().unwrap(),
                server_name: plan::gateway_name("agentsandbox-system"),
                authorities: "(certificates)\n".to_owned(),
                api_server: "10.96.0.1:443".parse().unwrap(),
                dns: Some("10.96.0.10:53".parse().unwrap()),
                metadata: METADATA,
            }),
        }),
        ..Settings::default()
    }
}

fn plan_of(mut sandbox: AgentSandbox, observed: &Observed) -> Plan<Prepared> {
    sandbox.metadata.uid = Some("6f1d7f4e-0000-4000-8000-000000000001".to_owned());
    sandbox.metadata.generation = Some(1);
    let valid = plan::validate(&sandbox, observed, &settings()).unwrap();
    plan::plan(&valid, &settings())
}

fn yaml(plan: &Plan<Prepared>) -> String {
    format!(
        "{}---\n{}",
        serde_saphyr::to_string(&plan.policy).unwrap(),
        serde_saphyr::to_string(&plan.pod).unwrap()
    )
}

#[test]
fn the_objects_of_every_sample() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/samples");
    let files: BTreeSet<_> =
        std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    let files: Vec<_> = files.iter().filter(|f| f.extension().is_some_and(|e| e == "yaml")).collect();
    assert!(files.len() >= 5, "{files:?}");
    for file in files {
        let text = std::fs::read_to_string(file).unwrap();
        let plan = plan_of(serde_saphyr::from_str(&text).unwrap(), &Observed::default());
        let pod = serde_json::to_value(&plan.pod).unwrap();
        assert_eq!(restricted::violations(&pod), [""; 0], "{}", file.display());
        insta::assert_snapshot!(file.file_stem().unwrap().to_str().unwrap(), yaml(&plan));
    }
}

/// A Service's Pods are selected by its selector and reached at its target ports, by number and by name.
#[test]
fn the_policy_of_a_service_rule() {
    let port = |port, target, protocol| ObservedPort { port, target, protocol };
    let service = ObservedService {
        selector: BTreeMap::from([("app".to_owned(), "model".to_owned())]),
        ports: vec![
            port(80, IntOrString::Int(8080), Protocol::TCP),
            port(443, IntOrString::String("https".to_owned()), Protocol::TCP),
        ],
    };
    let observed = Observed {
        services: BTreeMap::from([(("serving".to_owned(), "model".to_owned()), service)]),
        ..Observed::default()
    };
    let sandbox = json!({
        "apiVersion": "agentsandbox.dev/v1alpha1", "kind": "AgentSandbox",
        "metadata": {"name": "service.rule", "namespace": "team-a"},
        "spec": {"image": "registry.example/agent:1", "command": ["/agent"], "network": {"egress": [
            {"service": {"name": "model", "namespace": "serving"}, "ports": [80, 443]},
        ]}},
    });
    let plan = plan_of(serde_json::from_value(sandbox).unwrap(), &observed);
    insta::assert_snapshot!("service-rule", serde_saphyr::to_string(&plan.policy).unwrap());
}

/// The kubelet expands `$(NAME)` and reads `$$` as one `$` in commands, arguments and values: every dollar is doubled.
#[test]
fn dollars_reach_the_agent_as_they_were_written() {
    let sandbox = json!({
        "apiVersion": "agentsandbox.dev/v1alpha1", "kind": "AgentSandbox",
        "metadata": {"name": "dollars", "namespace": "team-a"},
        "spec": {
            "image": "registry.example/agent:1", "command": ["/agent", "$(PRICE)"], "args": ["$$5", "$HOME"],
            "env": [{"name": "PRICE", "value": "5"}, {"name": "TASK", "value": "cost is $(PRICE) or $$5"}],
        },
    });
    let plan = plan_of(serde_json::from_value(sandbox).unwrap(), &Observed::default());
    let agent = &plan.pod.spec.as_ref().unwrap().containers[0];
    let command = agent.command.as_ref().unwrap();
    assert_eq!(command[command.len() - 4..], ["/agent", "$$(PRICE)", "$$$$5", "$$HOME"]);
    let value = |name: &str| agent.env.iter().flatten().find(|v| v.name == name)?.value.as_deref();
    assert_eq!((value("PRICE"), value("TASK")), (Some("5"), Some("cost is $$(PRICE) or $$$$5")));
}
