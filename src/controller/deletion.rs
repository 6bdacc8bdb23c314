//! What is done about a sandbox whose deletion somebody asked for. As a rule it is gone before this is read, and the
//! garbage collector takes its Pod. A finalizer keeps the object for as long as its author likes: the agent must not run
//! on behind it, and is held to its policy until it has ended.
use std::time::Duration;

use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::jiff::Timestamp;
use kube::api::ObjectMeta;
use kube::runtime::controller::Action;

use super::apply;
use super::conditions::{FINISHED, holds};
use super::context::{Context, Identity};
use super::ending::{Ending, classify_end};
use super::error::Error;
use super::finished::has_ended;
use super::gate;
use super::gather::{Seen, gather};
use super::judge::{Judged, judge};
use super::lifecycle::Step;
use super::ownership::is_selected;
use super::pod::SlimPod;
use super::status::{self, Inputs};
use super::write::write;
use crate::api::v1alpha1::{AgentSandbox, AgentSandboxStatus};

/// Time after which the Services that rules name are looked at again.
const LOOK_AGAIN: Duration = Duration::from_mins(1);

/// Ends what still runs of `sandbox`, whose deletion somebody asked for, and says how it ended.
pub async fn deleting(
    context: &Context,
    sandbox: &AgentSandbox,
    identity: &Identity,
    before: &AgentSandboxStatus,
) -> Result<Action, Error> {
    if !is_kept(sandbox) {
        return Ok(Action::await_change());
    }
    let seen = gather(context, sandbox, before, identity).await?;
    let judged = judge(sandbox, &seen.observed, &context.settings(), true);
    let pod = seen.pod.as_deref();
    if let Some(ending) = ending(pod, before) {
        let status = ended(sandbox, before, pod, &judged, ending);
        if status::worth_writing(before, &status) {
            write(context, sandbox, identity, before, &status).await?;
        }
    }
    let running = pod.filter(|pod| !has_ended(pod));
    if let Some(pod) = running {
        if !pod.is_deleting() {
            apply::delete_pod(context, pod).await?;
        }
        if let Some(policy) = judged.wanted.into_policy() {
            confine(context, identity, &seen, pod, policy).await?;
        }
    }
    context.backoff.reset(&identity.sandbox.uid);
    Ok(running.map_or_else(Action::await_change, |_| Action::requeue(LOOK_AGAIN)))
}

/// Whether a finalizer keeps the object. `foregroundDeletion` and `orphan` are finalizers too: with the second one the
/// garbage collector leaves the Pod alone.
fn is_kept(sandbox: &AgentSandbox) -> bool {
    sandbox.metadata.finalizers.as_ref().is_some_and(|finalizers| !finalizers.is_empty())
}

/// How the sandbox ended, if it had not yet and did: by itself, or with its Pod. Without a Pod nothing ended.
fn ending(pod: Option<&SlimPod>, before: &AgentSandboxStatus) -> Option<Ending> {
    if holds(&before.conditions, FINISHED) == Some(true) {
        return None;
    }
    match pod {
        Some(pod) => classify_end(pod),
        None => before.pod_name.as_ref().map(|_| {
            let started = before.started_at.as_ref().map(|time| time.0);
            Ending::by_us("PodDeleted", "the AgentSandbox is being deleted", started)
        }),
    }
}

fn ended(
    sandbox: &AgentSandbox,
    before: &AgentSandboxStatus,
    pod: Option<&SlimPod>,
    judged: &Judged,
    ending: Ending,
) -> AgentSandboxStatus {
    let inputs = Inputs {
        generation: sandbox.metadata.generation,
        refused: judged.refused.as_ref(),
        blocked: None,
        step: &Step::Finished(Box::new(ending)),
        pod_name: pod.and_then(|pod| pod.metadata.name.clone()),
        pod_uid: pod.and_then(|pod| pod.metadata.uid.clone()),
        node_name: pod.and_then(|pod| pod.spec.node_name.clone()),
        policy_digest: None,
        limits: None,
        containment: pod.and_then(gate::containment),
        exceptions: "",
        warnings: status::warnings(sandbox),
        now: Timestamp::now(),
    };
    status::next(before, &inputs)
}

/// Holds the policy, and the label by which it selects the Pod, until the agent has ended. Owners are left as they are:
/// with `orphan` the garbage collector takes them off, and would do so again.
async fn confine(
    context: &Context,
    identity: &Identity,
    seen: &Seen,
    pod: &SlimPod,
    mut want: NetworkPolicy,
) -> Result<(), Error> {
    let mut repaired = Ok(());
    if !is_selected(&pod.metadata, identity) {
        let owner_references = pod.metadata.owner_references.clone();
        let meta = ObjectMeta { owner_references, ..want.metadata.clone() };
        // That it failed must not keep the policy from being held.
        repaired = apply::repair_pod(context, identity, pod, &meta).await;
    }
    let policy = seen.policy.as_deref();
    if let Some(have) = policy {
        want.metadata.owner_references.clone_from(&have.metadata.owner_references);
    }
    apply::policy(context, identity, policy, &want).await?;
    repaired
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::plan::{Observed, Settings};

    fn sandbox(meta: &Value) -> AgentSandbox {
        let mut object = json!({
            "apiVersion": "agentsandbox.dev/v1alpha1", "kind": "AgentSandbox",
            "metadata": {"name": "a", "namespace": "n", "uid": "u", "deletionTimestamp": "2027-01-01T00:00:00Z"},
            "spec": {"image": "i", "command": ["c"]},
        });
        object["metadata"].as_object_mut().unwrap().extend(meta.as_object().unwrap().clone());
        serde_json::from_value(object).unwrap()
    }

    fn before(status: Value) -> AgentSandboxStatus {
        serde_json::from_value(status).unwrap()
    }

    fn pod(state: &Value) -> SlimPod {
        serde_json::from_value(json!({
            "metadata": {"name": "a-h", "namespace": "n", "uid": "p"},
            "status": {"containerStatuses": [{"name": "agent", "image": "i", "imageID": "", "ready": false,
                "restartCount": 0, "state": state}]},
        }))
        .unwrap()
    }

    #[test]
    fn only_a_finalizer_keeps_the_object() {
        for (meta, kept) in [
            (json!({}), false),
            (json!({"finalizers": []}), false),
            (json!({"finalizers": ["example.test/wait"]}), true),
            (json!({"finalizers": ["foregroundDeletion"]}), true),
            (json!({"finalizers": ["orphan"]}), true),
        ] {
            assert_eq!(is_kept(&sandbox(&meta)), kept, "{meta}");
        }
    }

    #[test]
    fn the_end_is_told_once_and_as_it_was() {
        let reason = |pod: Option<&SlimPod>, status: Value| {
            ending(pod, &before(status)).map(|ending| ending.outcome.reason)
        };
        let running = pod(&json!({"running": {"startedAt": "2027-01-01T00:00:00Z"}}));
        let exited = pod(&json!({"terminated": {"exitCode": 0, "reason": "Completed"}}));
        let made = || json!({"podName": "a-h"});
        let finished = json!({"podName": "a-h", "conditions": [{"type": "Finished", "status": "True", "reason": "r",
            "message": "", "lastTransitionTime": "2027-01-01T00:00:00Z"}]});
        assert_eq!(reason(Some(&running), made()), None);
        assert_eq!(reason(Some(&exited), made()), Some("Completed".to_owned()));
        assert_eq!(reason(None, made()), Some("PodDeleted".to_owned()));
        assert_eq!(reason(None, json!({})), None);
        assert_eq!(reason(None, finished.clone()), None);
        assert_eq!(reason(Some(&exited), finished), None);
    }

    #[test]
    fn a_status_that_says_the_end_is_not_written_again() {
        let (sandbox, before) = (sandbox(&json!({"generation": 2})), before(json!({"podName": "a-h"})));
        let judged = judge(&sandbox, &Observed::default(), &Settings::default(), true);
        let first = ended(&sandbox, &before, None, &judged, ending(None, &before).unwrap());
        assert!(status::worth_writing(&before, &first));
        assert_eq!(first.message.as_deref(), Some("the AgentSandbox is being deleted"));
        assert!(ending(None, &first).is_none());
    }
}
