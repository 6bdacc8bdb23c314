//! Lets policies go, once nothing runs under them any more. The finalizer keeps a `NetworkPolicy` until no Pod of its
//! name exists, whoever deleted it and whether or not the sandbox still exists: so this works from the policies, not
//! from the sandboxes, also after a restart.
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
        for policy in context.policies.state() {
            let meta = &policy.metadata;
            if meta.deletion_timestamp.is_some()
                && has_finalizer(meta)
                && let Err(error) = one(&context, &policy).await
            {
                tracing::warn!(%error, policy = policy.name_any(), "policy not let go; trying again");
            }
        }
        for pod in context.pods.state() {
            if is_orphan(&context, &pod)
                && let Err(error) = delete_pod(&context, &pod).await
            {
                tracing::warn!(%error, pod = pod.name_any(), "Pod without a sandbox not deleted; trying again");
            }
        }
        let sandboxes = context.sandboxes.state();
        context.memory.retain(|uid| sandboxes.iter().any(|s| s.meta().uid.as_deref() == Some(uid)));
        #[allow(clippy::cast_precision_loss, reason = "a gauge of a count far below 2^52")]
        context.metrics.sandboxes.set(sandboxes.len() as f64);
    }
}

async fn one(context: &Context, policy: &NetworkPolicy) -> Result<(), Error> {
    let meta = &policy.metadata;
    let (name, namespace) = (policy.name_any(), policy.namespace().unwrap_or_default());
    let hash = policy.labels().get(labels::SANDBOX).map(String::as_str).unwrap_or_default();
    let uids: Vec<&str> = meta.owner_references.iter().flatten().map(|o| o.uid.as_str()).collect();
    if context.sandboxes.find(|s| is_of(s, hash, &uids) && is_live(s)).is_some() {
        return Ok(());
    }
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
fn is_orphan(context: &Context, pod: &SlimPod) -> bool {
    let unowned = pod.metadata.owner_references.as_ref().is_none_or(Vec::is_empty);
    let marked = pod.annotations().contains_key(labels::NAME) && !pod.is_deleting();
    let Some(hash) = pod.labels().get(labels::SANDBOX).filter(|_| unowned && marked) else { return false };
    context.sandboxes.find(|s| is_of(s, hash, &[]) || s.0.is_err()).is_none()
}
