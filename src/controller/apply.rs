//! Makes the objects of a sandbox, the policy always before the Pod, and puts right what others changed.
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::Api;
use kube::api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions};
use kube::core::Status;
use serde_json::{Value, json};

use super::context::{Context, Identity};
use super::error::{Doing, Error};
use super::field_managers;
use super::gather::get_pod;
use super::ownership::{Known, Owner, drifted, has_finalizer, owner, owner_of_pod};
use super::pod::SlimPod;

/// What became of a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyResult {
    /// It was as it should be.
    Unchanged,
    /// It was made.
    Created,
    /// It was changed to what it should be.
    Repaired,
    /// Somebody else's policy has its name.
    Taken,
    /// It is being deleted; what it says is as it should be.
    Lost,
}

/// What became of a Pod.
#[derive(Clone, Debug)]
pub enum PodResult {
    /// It was made, or had been made before.
    Made(Box<SlimPod>),
    /// Somebody else's Pod has its name.
    Taken,
    /// The cluster refuses it for good.
    Denied(String),
    /// The cluster refuses it for now.
    NotYet(&'static str, String),
}

/// Makes `want`, or changes `have` to it.
pub async fn policy(
    context: &Context,
    identity: &Identity,
    have: Option<&NetworkPolicy>,
    want: &NetworkPolicy,
) -> Result<PolicyResult, Error> {
    let api: Api<NetworkPolicy> = Api::namespaced(context.client.clone(), &identity.sandbox.namespace);
    if let Some(have) = have {
        return put_right(context, &api, have, want).await;
    }
    context.may_write()?;
    match api.create(&post(), want).await {
        Ok(_) => {
            context.metrics.applied("NetworkPolicy", "create");
            Ok(PolicyResult::Created)
        }
        Err(kube::Error::Api(status)) if status.is_already_exists() => {
            let have = api.get(&identity.object).await.doing("read the NetworkPolicy")?;
            match owner(&have.metadata, identity) {
                Owner::Foreign => Ok(PolicyResult::Taken),
                Owner::Ours | Owner::Stripped => put_right(context, &api, &have, want).await,
            }
        }
        Err(error) => Err(error).doing("create the NetworkPolicy"),
    }
}

async fn put_right(
    context: &Context,
    api: &Api<NetworkPolicy>,
    have: &NetworkPolicy,
    want: &NetworkPolicy,
) -> Result<PolicyResult, Error> {
    // Our finalizer keeps one that is being deleted for as long as its Pod exists: it holds until then.
    let lost = have.metadata.deletion_timestamp.is_some();
    // Without that finalizer it is gone in a moment, and none can be added any more.
    if !drifted(have, want) || (lost && !has_finalizer(&have.metadata)) {
        return Ok(if lost { PolicyResult::Lost } else { PolicyResult::Unchanged });
    }
    let mut body = want.clone();
    // Of another object with this name the API server then refuses the change.
    body.metadata.uid.clone_from(&have.metadata.uid);
    if let Some(spec) = body.spec.as_mut() {
        // An empty list is owned only where it is written: left out, it would keep what somebody else put there.
        spec.egress.get_or_insert_default();
        spec.ingress.get_or_insert_default();
    }
    context.may_write()?;
    let name = have.metadata.name.as_deref().unwrap_or_default();
    let params = PatchParams::apply(field_managers::OBJECTS).force();
    api.patch(name, &params, &Patch::Apply(&body)).await.doing("repair the NetworkPolicy")?;
    context.metrics.applied("NetworkPolicy", "repair");
    Ok(if lost { PolicyResult::Lost } else { PolicyResult::Repaired })
}

/// Makes the Pod `want`.
pub async fn pod(
    context: &Context,
    identity: &Identity,
    key: &[u8; 32],
    want: &Pod,
) -> Result<PodResult, Error> {
    context.may_write()?;
    let api: Api<Pod> = Api::namespaced(context.client.clone(), &identity.sandbox.namespace);
    match api.create(&post(), want).await {
        Ok(pod) => {
            context.metrics.applied("Pod", "create");
            Ok(PodResult::Made(Box::new(pod.into())))
        }
        Err(kube::Error::Api(status)) if status.is_already_exists() => {
            let found = get_pod(context, identity).await?;
            Ok(match found {
                Some(pod) if owner_of_pod(&pod, identity, Known::Not(key)) != Owner::Foreign => {
                    PodResult::Made(Box::new(pod))
                }
                Some(_) => PodResult::Taken,
                None => PodResult::NotYet("PodExists", "the Pod's name was just given up".to_owned()),
            })
        }
        Err(kube::Error::Api(status)) => match refusal(&status) {
            Some(result) => Ok(result),
            None => Err(Error::Api { action: "create the Pod", status }),
        },
        Err(error) => Err(error).doing("create the Pod"),
    }
}

/// Whether a refusal of the API server is the cluster's policy, and for good.
fn refusal(status: &Status) -> Option<PodResult> {
    let message = status.message.clone();
    if message.contains("exceeded quota") || message.contains("failed quota") {
        return Some(PodResult::NotYet("QuotaExceeded", message));
    }
    if message.contains("is being terminated") {
        return Some(PodResult::NotYet("NamespaceTerminating", message));
    }
    // Our own missing permission is the operator's fault, not the sandbox's.
    let ours =
        message.contains("cannot create resource") || message.contains("cannot set blockOwnerDeletion");
    let webhook = message.contains("denied the request");
    // The words of the API server, of etcd, and of the API server's client of etcd. Not every exhausted resource is
    // meant: a full etcd says so too, and that passes.
    let large = status.code == 413
        || ["request is too large", "larger than max"].iter().any(|words| message.contains(words));
    let denied = webhook || large || matches!(status.code, 400 | 403 | 422);
    (denied && !ours).then_some(PodResult::Denied(message))
}

/// Puts back what the Pod lost of its labels and owner, which are those of `want`: without its label no policy selects
/// it.
pub async fn repair_pod(
    context: &Context,
    identity: &Identity,
    have: &SlimPod,
    want: &ObjectMeta,
) -> Result<(), Error> {
    context.may_write()?;
    let api: Api<SlimPod> = Api::namespaced(context.client.clone(), &identity.sandbox.namespace);
    let body = repair_body(identity, have, want);
    let params = PatchParams::apply(field_managers::REPAIR).force();
    api.patch(&identity.object, &params, &Patch::Apply(&body)).await.doing("repair the Pod")?;
    context.metrics.applied("Pod", "repair");
    Ok(())
}

fn repair_body(identity: &Identity, have: &SlimPod, want: &ObjectMeta) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": identity.object,
            "namespace": identity.sandbox.namespace,
            "uid": have.metadata.uid,
            "labels": want.labels,
            "ownerReferences": want.owner_references,
        },
    })
}

/// Deletes the Pod `pod`, and no other of its name.
pub async fn delete_pod(context: &Context, pod: &SlimPod) -> Result<(), Error> {
    context.may_write()?;
    let meta = &pod.metadata;
    let api: Api<SlimPod> =
        Api::namespaced(context.client.clone(), meta.namespace.as_deref().unwrap_or_default());
    let name = meta.name.as_deref().unwrap_or_default();
    match api.delete(name, &only(meta.uid.clone())).await {
        Ok(_) => {
            context.metrics.applied("Pod", "delete");
            Ok(())
        }
        Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => Ok(()),
        Err(error) => Err(error).doing("delete the Pod"),
    }
}

/// `activeDeadlineSeconds` that has always passed.
pub const PASSED_SECONDS: i64 = 1;

/// Has the kubelet fail the Pod `pod`, and no other of its name: its agent gets SIGTERM and its grace as with a
/// deletion, and the Pod stays with its logs. The API server lets this one field of a Pod be lowered.
pub async fn fail_pod(context: &Context, pod: &SlimPod) -> Result<(), Error> {
    context.may_write()?;
    let meta = &pod.metadata;
    let api: Api<SlimPod> =
        Api::namespaced(context.client.clone(), meta.namespace.as_deref().unwrap_or_default());
    let body = json!({"metadata": {"uid": meta.uid}, "spec": {"activeDeadlineSeconds": PASSED_SECONDS}});
    let params =
        PatchParams { field_manager: Some(field_managers::OBJECTS.to_owned()), ..PatchParams::default() };
    match api.patch(meta.name.as_deref().unwrap_or_default(), &params, &Patch::Merge(&body)).await {
        Ok(_) => {
            context.metrics.applied("Pod", "fail");
            Ok(())
        }
        Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => Ok(()),
        Err(error) => Err(error).doing("lower the deadline of the Pod"),
    }
}

/// Deletion of the object with this UID only.
pub fn only(uid: Option<String>) -> DeleteParams {
    DeleteParams {
        preconditions: Some(Preconditions { uid, resource_version: None }),
        ..DeleteParams::background()
    }
}

fn post() -> PostParams {
    PostParams { field_manager: Some(field_managers::OBJECTS.to_owned()), ..PostParams::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(code: u16, message: &str) -> Status {
        let mut status = Status::failure(message, "Forbidden");
        status.code = code;
        status
    }

    #[test]
    fn a_refusal_for_good_is_told_from_one_for_now() {
        let denied = |s: &Status| matches!(refusal(s), Some(PodResult::Denied(_)));
        let later = |s: &Status| matches!(refusal(s), Some(PodResult::NotYet(..)));
        assert!(later(&status(403, "pods \"a\" is forbidden: exceeded quota: q")));
        assert!(later(&status(
            403,
            "unable to create new content in namespace n because it is being terminated"
        )));
        assert!(denied(&status(403, "violates PodSecurity \"restricted:latest\"")));
        assert!(denied(&status(500, "admission webhook \"w\" denied the request: no")));
        assert!(denied(&status(422, "Pod \"a\" is invalid")));
        assert!(denied(&status(413, "Request entity too large: limit is 3145728")));
        assert!(denied(&status(500, "etcdserver: request is too large")));
        let grpc =
            "rpc error: code = ResourceExhausted desc = trying to send message larger than max (3 vs. 2)";
        assert!(denied(&status(500, grpc)));
        assert!(refusal(&status(500, "etcdserver: mvcc: database space exceeded")).is_none());
        assert!(refusal(&status(403, "User \"x\" cannot create resource \"pods\"")).is_none());
        assert!(refusal(&status(500, "etcd is slow")).is_none());
        assert!(refusal(&status(409, "conflict")).is_none());
    }
}
