//! Lets policies go, once nothing runs under them any more. The finalizer keeps a `NetworkPolicy` until no Pod of its
//! name exists, whoever deleted it and whether or not the sandbox still exists: so this works from the policies, not
//! from the sandboxes, also after a restart.
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{Patch, PatchParams};
use kube::{Api, Resource, ResourceExt};
use serde_json::json;
use tokio::sync::Notify;

use super::apply::delete_pod;
use super::conditions::{FINISHED, holds};
use super::context::{Context, Guarded, Identity};
use super::error::{Doing, Error};
use super::field_managers;
use super::ownership::has_finalizer;
use super::pod::SlimPod;
use crate::plan::labels;

/// Longest time between two looks.
const PERIOD: Duration = Duration::from_secs(5);
/// Time in which several wake-ups become one look.
const GATHER: Duration = Duration::from_millis(50);

/// Lets policies go until the process ends. `wake` says that a policy, a Pod or a sandbox changed.
pub async fn release(context: Arc<Context>, wake: Arc<Notify>) {
    loop {
        let _ = tokio::time::timeout(PERIOD, wake.notified()).await;
        tokio::time::sleep(GATHER).await;
        if !context.fence.holds() {
            continue;
        }
        let sandboxes = context.sandboxes.state();
        for policy in context.policies.state() {
            if waits(&policy)
                && !is_needed(&policy, &sandboxes)
                && let Err(error) = one(&context, &policy).await
            {
                tracing::warn!(%error, policy = policy.name_any(), "policy not let go; trying again");
            }
        }
        for pod in context.pods.state() {
            if is_orphan(&pod, &sandboxes)
                && let Err(error) = delete_pod(&context, &pod).await
            {
                tracing::warn!(%error, pod = pod.name_any(), "Pod without a sandbox not deleted; trying again");
            }
        }
        forget(&context);
    }
}

/// Forgets what is remembered of sandboxes that are gone.
fn forget(context: &Context) {
    // As they are now: one that came since the look began may be remembered already.
    let sandboxes = context.sandboxes.state();
    let uids: HashSet<&str> = sandboxes.iter().filter_map(|s| s.meta().uid.as_deref()).collect();
    context.memory.retain(|uid| uids.contains(uid));
    context.looks.retain(|uid| uids.contains(uid));
    context.backoff.retain(|uid| uids.contains(uid));
    #[allow(clippy::cast_precision_loss, reason = "a gauge of a count far below 2^52")]
    context.metrics.sandboxes.set(sandboxes.len() as f64);
}

async fn one(context: &Context, policy: &NetworkPolicy) -> Result<(), Error> {
    let meta = &policy.metadata;
    let (name, namespace) = (policy.name_any(), policy.namespace().unwrap_or_default());
    let pods: Api<SlimPod> = Api::namespaced(context.client.clone(), &namespace);
    if pods.get_opt(&name).await.doing("read the Pod")?.is_some() {
        return Ok(());
    }
    context.may_write()?;
    let others: Vec<&String> =
        meta.finalizers.iter().flatten().filter(|f| *f != labels::POD_GONE_FINALIZER).collect();
    // The version makes the list safe to replace: of a changed object the API server refuses it.
    let body = json!({"metadata": {"resourceVersion": meta.resource_version, "uid": meta.uid, "finalizers": others}});
    let params =
        PatchParams { field_manager: Some(field_managers::RELEASE.to_owned()), ..PatchParams::default() };
    let policies: Api<NetworkPolicy> = Api::namespaced(context.client.clone(), &namespace);
    match policies.patch(&name, &params, &Patch::Merge(&body)).await {
        Ok(_) => context.metrics.applied("NetworkPolicy", "release"),
        Err(kube::Error::Api(status)) if status.is_not_found() => {}
        Err(error) => return Err(error).doing("remove the finalizer of the NetworkPolicy"),
    }
    Ok(())
}

/// Whether somebody asked for the deletion of `policy` and only our finalizer keeps it.
fn waits(policy: &NetworkPolicy) -> bool {
    policy.metadata.deletion_timestamp.is_some() && has_finalizer(&policy.metadata)
}

/// Whether a sandbox that still needs it has `policy`.
fn is_needed(policy: &NetworkPolicy, sandboxes: &[Arc<Guarded>]) -> bool {
    let hash = policy.labels().get(labels::SANDBOX).map(String::as_str).unwrap_or_default();
    let owners = policy.metadata.owner_references.iter().flatten();
    let uids: Vec<&str> = owners.map(|owner| owner.uid.as_str()).collect();
    sandboxes.iter().any(|sandbox| is_of(sandbox, hash, &uids) && is_live(sandbox))
}

/// Whether the sandbox is the one with this hash or one of these UIDs.
fn is_of(guarded: &Guarded, hash: &str, uids: &[&str]) -> bool {
    let uid = guarded.meta().uid.as_deref().unwrap_or_default();
    uids.contains(&uid) || guarded.0.as_ref().is_ok_and(|sandbox| Identity::of(sandbox).hash == hash)
}

/// Whether the sandbox still needs its policy. One that cannot be read may.
fn is_live(guarded: &Guarded) -> bool {
    let finished = guarded.0.as_ref().ok().and_then(|s| s.status.as_ref());
    let finished = finished.is_some_and(|s| holds(&s.conditions, FINISHED) == Some(true));
    guarded.meta().deletion_timestamp.is_none() && !finished
}

/// Whether `pod` lost its owner and then its sandbox: the garbage collector does not see it.
fn is_orphan(pod: &SlimPod, sandboxes: &[Arc<Guarded>]) -> bool {
    let unowned = pod.metadata.owner_references.as_ref().is_none_or(Vec::is_empty);
    let marked = pod.annotations().contains_key(labels::NAME) && !pod.is_deleting();
    let Some(hash) = pod.labels().get(labels::SANDBOX).filter(|_| unowned && marked) else { return false };
    !sandboxes.iter().any(|sandbox| is_of(sandbox, hash, &[]) || sandbox.0.is_err())
}

#[cfg(test)]
mod tests {
    use kube::core::DeserializeGuard;
    use serde_json::{Value, json};

    use super::*;
    use crate::api::v1alpha1::AgentSandbox;

    fn sandbox(uid: &str, more: &Value) -> Arc<Guarded> {
        let mut object = json!({
            "apiVersion": "agentsandbox.dev/v1alpha1", "kind": "AgentSandbox",
            "metadata": {"name": "a", "namespace": "n", "uid": uid},
            "spec": {"image": "i", "command": ["c"]},
        });
        for (key, value) in more.as_object().unwrap() {
            if key == "deletionTimestamp" {
                object["metadata"][key] = value.clone();
            } else {
                object[key] = value.clone();
            }
        }
        Arc::new(serde_json::from_value::<DeserializeGuard<AgentSandbox>>(object).unwrap())
    }

    fn hash(uid: &str) -> String {
        crate::plan::names::hash("n", "a", uid)
    }

    fn policy(meta: &Value) -> NetworkPolicy {
        serde_json::from_value(json!({"metadata": meta})).unwrap()
    }

    fn deleted() -> Value {
        json!({"deletionTimestamp": "2027-01-01T00:00:00Z"})
    }

    fn finished(status: &str) -> Value {
        json!({"status": {"conditions": [{"type": "Finished", "status": status, "reason": "r", "message": "",
            "lastTransitionTime": "2027-01-01T00:00:00Z"}]}})
    }

    #[test]
    fn only_a_policy_that_waits_for_us_alone_is_let_go() {
        let finalizers = json!(["agentsandbox.dev/pod-gone"]);
        let at = "2027-01-01T00:00:00Z";
        for (meta, want) in [
            (json!({"finalizers": finalizers, "deletionTimestamp": at}), true),
            (json!({"finalizers": finalizers}), false),
            (json!({"finalizers": ["other/one"], "deletionTimestamp": at}), false),
            (json!({"deletionTimestamp": at}), false),
        ] {
            assert_eq!(waits(&policy(&meta)), want, "{meta}");
        }
    }

    #[test]
    fn a_policy_is_needed_as_long_as_its_sandbox_may_run_something() {
        let owned = json!([{"apiVersion": "v", "kind": "AgentSandbox", "name": "a", "uid": "u"}]);
        let by_owner = policy(&json!({"ownerReferences": owned}));
        let by_hash = policy(&json!({"labels": {"agentsandbox.dev/sandbox": hash("u")}}));
        let by_none = policy(&json!({}));
        let unreadable = json!({"spec": {"image": 1}});
        for (more, want) in [
            (json!({}), true),
            (finished("False"), true),
            (finished("True"), false),
            (deleted(), false),
            // What cannot be read may still run.
            (unreadable.clone(), true),
        ] {
            let all = [sandbox("other", &json!({})), sandbox("u", &more)];
            assert_eq!(is_needed(&by_owner, &all), want, "{more}");
            assert!(!is_needed(&by_none, &all), "{more}");
        }
        assert!(is_needed(&by_hash, &[sandbox("u", &json!({}))]));
        assert!(!is_needed(&by_hash, &[sandbox("u", &finished("True"))]));
        // Another object of the same name is another sandbox.
        assert!(!is_needed(&by_hash, &[sandbox("other", &json!({}))]));
        assert!(!is_needed(&by_owner, &[]));
        assert!(!is_needed(&by_owner, &[sandbox("other", &unreadable)]));
    }

    #[test]
    fn an_orphan_is_a_pod_of_ours_that_lost_owner_and_sandbox() {
        let pod = |meta: Value| -> SlimPod { serde_json::from_value(json!({"metadata": meta})).unwrap() };
        let labels = json!({"agentsandbox.dev/sandbox": hash("u")});
        let name = json!({"agentsandbox.dev/name": "n/a"});
        let owned = json!([{"apiVersion": "v", "kind": "AgentSandbox", "name": "a", "uid": "u"}]);
        let lost = || pod(json!({"labels": labels, "annotations": name}));
        let there = [sandbox("u", &json!({}))];
        assert!(is_orphan(&lost(), &[]));
        assert!(is_orphan(&lost(), &[sandbox("other", &json!({}))]));
        assert!(!is_orphan(&lost(), &there));
        // One that cannot be read may be the one.
        assert!(!is_orphan(&lost(), &[sandbox("other", &json!({"spec": {"image": 1}}))]));
        for meta in [
            json!({"labels": labels, "annotations": name, "ownerReferences": owned}),
            json!({"labels": labels, "annotations": name, "deletionTimestamp": "2027-01-01T00:00:00Z"}),
            json!({"labels": labels}),
            json!({"annotations": name}),
        ] {
            assert!(!is_orphan(&pod(meta.clone()), &[]), "{meta}");
        }
    }
}
