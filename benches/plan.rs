//! Time of the pure part of a reconciliation: checking a sandbox and making its objects, for a small sandbox and for
//! the largest that the API takes (32 mounts, 128 variables, 256 rules of 16 ports).
#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;

use agentsandbox::{
    api::v1alpha1::AgentSandbox,
    plan::{Observed, Settings, plan, validate},
};
use criterion::{Criterion, criterion_group, criterion_main};
use serde_json::{Value, json};

fn sandbox(spec: &Value) -> AgentSandbox {
    serde_json::from_value(json!({
        "apiVersion": "agentsandbox.dev/v1alpha1", "kind": "AgentSandbox",
        "metadata": {"name": "bench", "namespace": "team-a", "uid": "6f1d7f4e-0000-4000-8000-000000000001"},
        "spec": spec,
    }))
    .unwrap()
}

fn largest() -> Value {
    let mounts: Vec<Value> = (0..32)
        .map(|i| json!({"path": format!("/mount-{i}"), "readOnly": false, "emptyDir": {"sizeLimit": "1Mi"}}))
        .collect();
    let env: Vec<Value> =
        (0..128).map(|i| json!({"name": format!("NAME_{i}"), "value": "$(HOME)".repeat(8)})).collect();
    let ports: Vec<i32> = (1..=16).collect();
    let egress: Vec<Value> =
        (0..256).map(|i| json!({"cidr": format!("198.51.{i}.0/24"), "ports": ports})).collect();
    json!({
        "image": "registry.example/agent:1", "command": ["/agent"], "env": env,
        "filesystem": {"mounts": mounts}, "network": {"egress": egress},
    })
}

fn pure_part(criterion: &mut Criterion) {
    let smallest = json!({"image": "registry.example/agent:1", "command": ["/agent"]});
    let (observed, settings) = (Observed::default(), Settings::default());
    for (name, spec) in [("smallest", smallest), ("largest", largest())] {
        let sandbox = sandbox(&spec);
        let valid = validate(&sandbox, &observed, &settings).unwrap();
        criterion.bench_function(&format!("validate/{name}"), |bench| {
            bench.iter(|| validate(black_box(&sandbox), black_box(&observed), black_box(&settings)));
        });
        criterion.bench_function(&format!("plan/{name}"), |bench| {
            bench.iter(|| plan(black_box(&valid), black_box(&settings)));
        });
    }
}

criterion_group!(benches, pure_part);
criterion_main!(benches);
