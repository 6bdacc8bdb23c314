//! Whose an object is. What somebody else owns is never adopted and never touched.
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::ObjectMeta;
use serde_json::Value;

use super::context::Identity;
use super::pod::SlimPod;
use crate::api::v1alpha1::{AgentSandboxStatus, GROUP, VERSION};
use crate::plan::{labels, seal};

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
    if owners.iter().any(|reference| is_ours(reference, identity)) {
        return if complete { Owner::Ours } else { Owner::Stripped };
    }
    let annotation = meta.annotations.as_ref().and_then(|a| a.get(labels::NAME));
    let full = || format!("{}/{}", identity.sandbox.namespace, identity.sandbox.name);
    let named = annotation.is_none_or(|name| *name == full());
    let marked = annotation.is_some() || has_finalizer(meta);
    if owners.is_empty() && labelled && named && marked { Owner::Stripped } else { Owner::Foreign }
}

/// Whether `reference` is the one that the operator writes: anybody may name the sandbox as one owner among others.
fn is_ours(reference: &OwnerReference, identity: &Identity) -> bool {
    reference.uid == identity.sandbox.uid
        && reference.name == identity.sandbox.name
        && reference.kind == "AgentSandbox"
        && reference.api_version == format!("{GROUP}/{VERSION}")
        && reference.controller == Some(true)
}

/// What is known of the sandbox's Pod besides its name, which others can foretell.
#[derive(Clone, Copy, Debug)]
pub enum Known<'a> {
    /// Its UID: status has it.
    Uid(&'a str),
    /// That there is one: status was written by an operator that recorded no UID.
    Made,
    /// Nothing yet. One that exists was made by this operator just before it ended, and then has the seal of this key.
    Not(&'a [u8; 32]),
}

impl<'a> Known<'a> {
    /// What `status` knows; `key` is the operator's.
    pub fn from_status(status: &'a AgentSandboxStatus, key: &'a [u8; 32]) -> Self {
        match (&status.pod_uid, &status.pod_name) {
            (Some(uid), _) => Self::Uid(uid),
            (None, Some(_)) => Self::Made,
            (None, None) => Self::Not(key),
        }
    }
}

/// Whose the Pod `pod` with the name of ours is.
pub fn owner_of_pod(pod: &SlimPod, identity: &Identity, known: Known<'_>) -> Owner {
    let by_marks = owner(&pod.metadata, identity);
    match known {
        // Whatever was taken off it, or put on: it is the agent's.
        Known::Uid(uid) if pod.metadata.uid.as_deref() == Some(uid) => match by_marks {
            Owner::Ours => Owner::Ours,
            Owner::Stripped | Owner::Foreign => Owner::Stripped,
        },
        Known::Uid(_) => Owner::Foreign,
        Known::Made => by_marks,
        Known::Not(key) => {
            let seal = seal::seal(key, &identity.sandbox.uid, &pod.spec.form);
            let found = pod.metadata.annotations.as_ref().and_then(|a| a.get(labels::POD_DIGEST));
            if found == Some(&seal) { by_marks } else { Owner::Foreign }
        }
    }
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
        let reference = |uid: &str| {
            json!({"apiVersion": "agentsandbox.dev/v1alpha1", "kind": "AgentSandbox", "name": "a",
            "uid": uid, "controller": true})
        };
        let by = |uid: &str| json!([reference(uid)]);
        let but = |key: &str, value: Value| {
            let mut reference = reference("u");
            reference[key] = value;
            json!([reference])
        };
        let name = json!({"agentsandbox.dev/name": "n/a"});
        for (value, want) in [
            (json!({"ownerReferences": by("u"), "labels": labels}), Owner::Ours),
            (json!({"ownerReferences": by("u")}), Owner::Stripped),
            (json!({"labels": labels, "annotations": name}), Owner::Stripped),
            (json!({"labels": labels, "finalizers": ["agentsandbox.dev/pod-gone"]}), Owner::Stripped),
            (json!({"labels": labels}), Owner::Foreign),
            (json!({"annotations": name}), Owner::Foreign),
            (json!({"labels": labels, "annotations": {"agentsandbox.dev/name": "n/b"}}), Owner::Foreign),
            (json!({"ownerReferences": by("x"), "labels": labels, "annotations": name}), Owner::Foreign),
            (json!({"ownerReferences": but("controller", json!(false)), "labels": labels}), Owner::Foreign),
            (json!({"ownerReferences": but("kind", json!("Other")), "labels": labels}), Owner::Foreign),
            (json!({"ownerReferences": but("apiVersion", json!("v1")), "labels": labels}), Owner::Foreign),
            (json!({"ownerReferences": but("name", json!("b")), "labels": labels}), Owner::Foreign),
            (json!({}), Owner::Foreign),
        ] {
            assert_eq!(owner(&meta(value.clone()), &identity()), want, "{value}");
        }
    }

    #[test]
    fn a_pod_is_known_by_its_uid_and_before_that_by_its_seal() {
        let key = [7; 32];
        let owned = json!([{"apiVersion": "agentsandbox.dev/v1alpha1", "kind": "AgentSandbox", "name": "a", "uid": "u",
            "controller": true}]);
        let pod = |owners: &Value, image: &str, sealed: Option<&str>| -> SlimPod {
            let labels =
                json!({"app.kubernetes.io/managed-by": "agentsandbox", "agentsandbox.dev/sandbox": "h"});
            let mut pod: SlimPod = serde_json::from_value(json!({
                "metadata": {"name": "a-h", "uid": "p", "labels": labels, "ownerReferences": owners},
                "spec": {"containers": [{"name": "agent", "image": image}]},
            }))
            .unwrap();
            if let Some(uid) = sealed {
                let seal = seal::seal(&key, uid, &pod.spec.form);
                pod.metadata.annotations = Some([(labels::POD_DIGEST.to_owned(), seal)].into());
            }
            pod
        };
        let of = |pod: &SlimPod, known| owner_of_pod(pod, &identity(), known);
        let (sealed, bare) = (pod(&owned, "i", Some("u")), pod(&owned, "i", None));
        assert_eq!(of(&sealed, Known::Not(&key)), Owner::Ours);
        assert_eq!(of(&sealed, Known::Not(&[8; 32])), Owner::Foreign);
        assert_eq!(of(&bare, Known::Not(&key)), Owner::Foreign);
        assert_eq!(of(&pod(&owned, "i", Some("v")), Known::Not(&key)), Owner::Foreign);
        // A seal that was taken from the sandbox's own Pod is worth nothing on another one.
        let mut copied = pod(&owned, "j", None);
        copied.metadata.annotations.clone_from(&sealed.metadata.annotations);
        assert_eq!(of(&copied, Known::Not(&key)), Owner::Foreign);
        assert_eq!(of(&bare, Known::Made), Owner::Ours);
        assert_eq!(of(&bare, Known::Uid("p")), Owner::Ours);
        assert_eq!(of(&sealed, Known::Uid("q")), Owner::Foreign);
        let taken_off = pod(&json!([]), "i", None);
        assert_eq!(of(&taken_off, Known::Uid("p")), Owner::Stripped);
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
