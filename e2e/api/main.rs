//! The API: what the API server itself takes and refuses, by dry runs. Needs a cluster with the CRDs, no operator.
//!
//! What CEL cannot say (overlapping mount paths, reserved addresses) is refused by the controller; those are end-to-end
//! tests.
#![allow(clippy::needless_pass_by_value, reason = "tables read better with values")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test's helpers end the test, as the test itself would"
)]

#[allow(dead_code, reason = "each suite uses its part")]
#[path = "../support/mod.rs"]
mod support;

mod bad;
mod good;
mod updates;

use serde_json::{Value, json};

/// The smallest object.
fn smallest() -> Value {
    json!({
        "apiVersion": "agentsandbox.dev/v1alpha1",
        "kind": "AgentSandbox",
        "metadata": {"name": "agent"},
        "spec": {"image": "registry.example/agent:1", "command": ["/bin/true"]},
    })
}

/// The smallest object with `spec` merged over its own.
fn with(spec: Value) -> Value {
    let mut object = smallest();
    support::sandbox::merge(&mut object["spec"], spec);
    object
}

/// One line for each cause that the API server names, `field: message`, and its message as a whole.
fn causes(error: &kube::Error) -> String {
    let kube::Error::Api(status) = error else { return format!("not an answer of the API server: {error}") };
    let causes = status.details.iter().flat_map(|details| &details.causes);
    let lines: Vec<_> = causes.map(|cause| format!("{}: {}", cause.field, cause.message)).collect();
    format!("{}\n{}", lines.join("\n"), status.message)
}
