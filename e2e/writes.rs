//! What the operator costs the API server, counted from the API server's own audit log.
use serde_json::json;

use crate::support::{
    audit::{mark, shown, writes_since},
    environment, exclusive, scaled, secs,
};

/// Writes of one sandbox's life that the operator may make: policy, Pod, and three of status.
const ALLOWED: usize = 5;

#[test]
fn a_life_costs_at_most_five_writes_and_idleness_none() {
    exclusive("writes", |test| async move {
        if !environment().audit_log().exists() {
            eprintln!("this cluster's audit log cannot be read: nothing to count");
            return;
        }
        // What earlier tests left behind is still being removed: wait until that is over.
        tokio::time::sleep(scaled(secs(10))).await;
        let start = mark();
        test.sandbox("agent", "time.sleep(5)", json!({})).await;
        test.finished_as("agent", "Completed").await;
        tokio::time::sleep(scaled(secs(5))).await;
        let namespace = &test.namespace;
        let ours: Vec<_> =
            writes_since(start).into_iter().filter(|w| w["objectRef"]["namespace"] == **namespace).collect();
        assert!(!ours.is_empty(), "the audit log says what the operator wrote");
        assert!(ours.len() <= ALLOWED, "{} writes: {:#?}", ours.len(), shown(&ours));

        test.sandbox("running", "time.sleep(50)", json!({})).await;
        test.running("running").await;
        tokio::time::sleep(scaled(secs(3))).await;
        let idle = mark();
        tokio::time::sleep(secs(15)).await;
        let writes = writes_since(idle);
        assert!(writes.is_empty(), "written while nothing changed: {:#?}", shown(&writes));
    });
}
