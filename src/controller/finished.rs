//! What is done about a sandbox that has finished: what still runs is ended, its policy is held until then, and the
//! object is deleted when its time is over.
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::runtime::controller::Action;

use super::apply;
use super::context::{Context, Identity};
use super::error::{Doing, Error};
use super::gather::{Seen, gather};
use super::judge::judge;
use super::lifecycle::after;
use super::pod::SlimPod;
use crate::api::v1alpha1::{AgentSandbox, AgentSandboxStatus};

/// A finished sandbox: ends what still runs, and deletes it when its time is over.
pub async fn finished(
    context: &Context,
    sandbox: &AgentSandbox,
    identity: &Identity,
    status: &AgentSandboxStatus,
) -> Result<Action, Error> {
    let seen = gather(context, sandbox, status, identity).await?;
    if let Some(pod) = seen.pod.as_deref() {
        if runs(pod) {
            apply::delete_pod(context, pod).await?;
        }
        if !has_ended(pod) {
            confine(context, sandbox, identity, &seen, pod).await?;
        }
    }
    context.backoff.reset(&identity.sandbox.uid);
    let Some(expiry) = expiry(sandbox, status) else { return Ok(Action::await_change()) };
    if expiry > Timestamp::now() {
        return Ok(until(expiry));
    }
    context.may_write()?;
    let api: Api<AgentSandbox> = Api::namespaced(context.client.clone(), &identity.sandbox.namespace);
    match api.delete(&identity.sandbox.name, &apply::only(sandbox.metadata.uid.clone())).await {
        Ok(_) => context.metrics.applied("AgentSandbox", "delete"),
        Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {}
        Err(error) => return Err(error).doing("delete the finished AgentSandbox"),
    }
    Ok(Action::await_change())
}

/// Holds the policy, and the label by which it selects the Pod, while the agent of a finished sandbox runs out its
/// grace.
async fn confine(
    context: &Context,
    sandbox: &AgentSandbox,
    identity: &Identity,
    seen: &Seen,
    pod: &SlimPod,
) -> Result<(), Error> {
    let Some(plan) = judge(sandbox, &seen.observed, &context.settings(), true).plan else { return Ok(()) };
    if seen.pod_stripped {
        apply::repair_pod(context, identity, pod, &plan.pod).await?;
    }
    apply::policy(context, identity, seen.policy.as_deref(), &plan.policy).await?;
    Ok(())
}

/// Whether the agent of `pod` still runs, or still could, and nobody asked for its end.
pub fn runs(pod: &SlimPod) -> bool {
    !has_ended(pod) && !pod.is_deleting()
}

/// Whether the agent of `pod` has ended, or never can start.
pub fn has_ended(pod: &SlimPod) -> bool {
    pod.agent().and_then(|a| a.state.as_ref()).is_some_and(|s| s.terminated.is_some()) || pod.is_terminal()
}

/// When a finished sandbox is to be deleted.
pub fn expiry(sandbox: &AgentSandbox, status: &AgentSandboxStatus) -> Option<Timestamp> {
    let ttl = sandbox.spec.ttl_after_finished.as_ref()?.parse().ok()?;
    Some(after(status.finished_at.as_ref()?.0, ttl))
}

/// Waits until `time`.
pub fn until(time: Timestamp) -> Action {
    left(time).map_or_else(Action::await_change, Action::requeue)
}

/// Time from now to `time`, at least 10 ms; `None` for the end of time.
pub fn left(time: Timestamp) -> Option<Duration> {
    let left = Duration::try_from(time.duration_since(Timestamp::now())).unwrap_or(Duration::ZERO);
    (time != Timestamp::MAX).then(|| left.max(Duration::from_millis(10)))
}
