//! The API server's audit log: who wrote what.
use std::io::{Read, Seek, SeekFrom};

use serde_json::Value;

use super::environment;

/// Length of the audit log so far, in bytes.
pub fn mark() -> u64 {
    std::fs::metadata(environment().audit_log()).map(|m| m.len()).unwrap_or_default()
}

/// Writes that the operator made since `mark`, other than of its lease and of events, which are not objects of a
/// sandbox. An apply that was refused or that changed nothing is counted too: it cost the same.
pub fn writes_since(mark: u64) -> Vec<Value> {
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

/// One line for each write.
pub fn shown(writes: &[Value]) -> Vec<String> {
    let line = |w: &Value| {
        let object = &w["objectRef"];
        format!("{} {}/{} {}", w["verb"], object["resource"], object["subresource"], object["name"])
    };
    writes.iter().map(line).collect()
}

/// Name of the Pod whose token made the request.
pub fn pod_of(event: &Value) -> Option<&str> {
    event["user"]["extra"]["authentication.kubernetes.io/pod-name"][0].as_str()
}
