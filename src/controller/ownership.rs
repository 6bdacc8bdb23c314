//! Whose an object is. What somebody else owns is never adopted and never touched.
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::ObjectMeta;
use serde_json::Value;

use super::context::Identity;
use crate::plan::labels;

/// Whose an object with one of our names is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The sandbox's, as it was made.
    Ours,
    /// The sandbox's, but labels or owner were taken off.
    Stripped,
    /// Somebody else's.
    Foreign,
}

/// Whose the object with `meta` is.
pub fn owner(meta: &ObjectMeta, identity: &Identity) -> Owner {
    let owners = meta.owner_references.as_deref().unwrap_or_default();
    let has = |key: &str, value: &str| {
        meta.labels.as_ref().and_then(|l| l.get(key)).is_some_and(|found| found == value)
    };
    let labelled = has(labels::SANDBOX, &identity.hash);
    let complete = labelled && has(labels::MANAGED_BY, labels::MANAGED_BY_VALUE);
    if owners.iter().any(|o| o.uid == identity.sandbox.uid) {
        return if complete { Owner::Ours } else { Owner::Stripped };
    }
    let annotation = meta.annotations.as_ref().and_then(|a| a.get(labels::NAME));
    let named = annotation.is_none_or(|name| *name == identity.sandbox.name);
    let marked = annotation.is_some() || has_finalizer(meta);
    if owners.is_empty() && labelled && named && marked { Owner::Stripped } else { Owner::Foreign }
}

/// Whether the sandbox's policy selects the Pod with `meta`.
pub fn is_selected(meta: &ObjectMeta, identity: &Identity) -> bool {
    meta.labels.as_ref().and_then(|found| found.get(labels::SANDBOX)) == Some(&identity.hash)
}

/// Whether the object with `meta` has the finalizer of our policies.
pub fn has_finalizer(meta: &ObjectMeta) -> bool {
    meta.finalizers.iter().flatten().any(|f| f == labels::POD_GONE_FINALIZER)
}

/// Whether `have` differs from `want` in anything that matters to containment.
pub fn drifted(have: &NetworkPolicy, want: &NetworkPolicy) -> bool {
    let (old, new) = (&have.metadata, &want.metadata);
    let labels_differ =
        new.labels.iter().flatten().any(|(k, v)| old.labels.as_ref().and_then(|l| l.get(k)) != Some(v));
    let annotations_differ = new
        .annotations
        .iter()
        .flatten()
        .any(|(k, v)| old.annotations.as_ref().and_then(|a| a.get(k)) != Some(v));
    let owned = |uid: &str| old.owner_references.iter().flatten().any(|o| o.uid == uid);
    let owners_differ = new.owner_references.iter().flatten().any(|o| !owned(&o.uid));
    labels_differ || annotations_differ || owners_differ || !has_finalizer(old) || form(have) != form(want)
}

/// The spec without what the API server leaves out.
fn form(policy: &NetworkPolicy) -> Value {
    let mut value = serde_json::to_value(&policy.spec).unwrap_or(Value::Null);
    prune(&mut value);
    value
}

fn prune(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.values_mut().for_each(prune);
            map.retain(|_, v| !v.is_null() && !v.as_array().is_some_and(Vec::is_empty));
        }
        Value::Array(list) => list.iter_mut().for_each(prune),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::init::config::SandboxIdentity;

    fn identity() -> Identity {
        let sandbox = SandboxIdentity { namespace: "n".into(), name: "a".into(), uid: "u".into() };
        Identity { sandbox, hash: "h".into(), object: "a-h".into() }
    }

    fn meta(value: Value) -> ObjectMeta {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn only_what_is_ours_is_ours() {
        let labels = json!({"app.kubernetes.io/managed-by": "agentsandbox", "agentsandbox.dev/sandbox": "h"});
        let by = |uid: &str| json!([{"apiVersion": "v", "kind": "k", "name": "a", "uid": uid}]);
        let name = json!({"agentsandbox.dev/name": "a"});
        for (value, want) in [
            (json!({"ownerReferences": by("u"), "labels": labels}), Owner::Ours),
            (json!({"ownerReferences": by("u")}), Owner::Stripped),
            (json!({"labels": labels, "annotations": name}), Owner::Stripped),
            (json!({"labels": labels, "finalizers": ["agentsandbox.dev/pod-gone"]}), Owner::Stripped),
            (json!({"labels": labels}), Owner::Foreign),
            (json!({"annotations": name}), Owner::Foreign),
            (json!({"labels": labels, "annotations": {"agentsandbox.dev/name": "b"}}), Owner::Foreign),
            (json!({"ownerReferences": by("x"), "labels": labels, "annotations": name}), Owner::Foreign),
            (json!({}), Owner::Foreign),
        ] {
            assert_eq!(owner(&meta(value.clone()), &identity()), want, "{value}");
        }
    }

    #[test]
    fn drift_is_what_matters_and_nothing_else() {
        let policy = |spec: Value, finalizers: Value| -> NetworkPolicy {
            serde_json::from_value(json!({"metadata": {"finalizers": finalizers}, "spec": spec})).unwrap()
        };
        let ours = json!(["agentsandbox.dev/pod-gone"]);
        let spec =
            json!({"podSelector": {"matchLabels": {"a": "b"}}, "policyTypes": ["Egress"], "egress": []});
        let want = policy(spec.clone(), ours.clone());
        let mut served = spec.clone();
        served.as_object_mut().unwrap().remove("egress");
        assert!(!drifted(&policy(served, ours.clone()), &want));
        assert!(drifted(&policy(spec.clone(), json!([])), &want));
        let mut opened = spec;
        opened["egress"] = json!([{}]);
        assert!(drifted(&policy(opened, ours), &want));
    }
}
