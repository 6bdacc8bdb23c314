//! What the operator costs the API server, counted from the API server's own audit log.
use std::io::{Read, Seek, SeekFrom};

use serde_json::{Value, json};

use crate::support::{environment, exclusive, scaled, secs};

/// Writes of one sandbox's life that the operator may make: policy, Pod, and three of status.
const ALLOWED: usize = 5;

/// Length of the audit log so far, in bytes.
fn mark() -> u64 {
    std::fs::metadata(environment().audit_log()).map(|m| m.len()).unwrap_or_default()
}

/// Writes that the operator made since `mark`, other than of its lease and of events, which are not objects of a
/// sandbox. An apply that was refused or that changed nothing is counted too: it cost the same.
fn writes_since(mark: u64) -> Vec<Value> {
    let mut file = std::fs::File::open(environment().audit_log()).unwrap();
    file.seek(SeekFrom::Start(mark)).unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    let operator = format!("system:serviceaccount:{}:", environment().system_namespace());
    text.lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|event| event["user"]["username"].as_str().is_some_and(|user| user.starts_with(&operator)))
        .filter(|event| event["stage"] == "ResponseComplete")
        .filter(|event| {
            ["create", "update", "patch", "delete", "deletecollection"]
                .iter()
                .any(|verb| event["verb"] == *verb)
        })
        .filter(|event| {
            let resource = &event["objectRef"]["resource"];
            resource != "leases" && resource != "events" && !resource.is_null()
        })
        .collect()
}

fn shown(writes: &[Value]) -> Vec<String> {
    let line = |w: &Value| {
        let object = &w["objectRef"];
        format!("{} {}/{} {}", w["verb"], object["resource"], object["subresource"], object["name"])
    };
    writes.iter().map(line).collect()
}

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
