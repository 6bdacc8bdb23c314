//! What is done about a sandbox that has finished: what still runs is ended, its policy is held until then, and the
//! object is deleted when its time is over.
use std::time::Duration;

use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::runtime::controller::Action;

use super::apply;
use super::context::{Context, Identity};
use super::error::{Doing, Error};
use super::gather::{self, Seen};
use super::judge::judge;
use super::lifecycle::after;
use super::pod::SlimPod;
use crate::api::v1alpha1::{AgentSandbox, AgentSandboxStatus};

/// Time that a kubelet has beyond a Pod's grace.
const KUBELETS_SLACK: Duration = Duration::from_secs(30);

/// A finished sandbox: ends what still runs, and deletes it when its time is over.
pub async fn finished(
    context: &Context,
    sandbox: &AgentSandbox,
    identity: &Identity,
    status: &AgentSandboxStatus,
) -> Result<Action, Error> {
    let mut seen = gather::objects(context, status, identity).await?;
    let mut again = Timestamp::MAX;
    if let Some(pod) = seen.pod.clone() {
        again = end(context, &pod, status).await?;
        if !has_ended(&pod) {
            gather::services(&context.client, sandbox, identity, true, &mut seen.observed).await?;
            confine(context, sandbox, identity, &seen, &pod).await?;
        }
    }
    context.backoff.reset(&identity.sandbox.uid);
    let expiry = expiry(sandbox, status).unwrap_or(Timestamp::MAX);
    if expiry > Timestamp::now() {
        return Ok(until(expiry.min(again)));
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

/// Ends what still runs in the Pod of a sandbox whose end `status` tells, and says when to look again whether it did.
pub async fn end(context: &Context, pod: &SlimPod, status: &AgentSandboxStatus) -> Result<Timestamp, Error> {
    match way(pod, status, Timestamp::now()) {
        Way::None => Ok(Timestamp::MAX),
        Way::Wait(until) => Ok(until),
        Way::Fail => {
            apply::fail_pod(context, pod).await?;
            Ok(kubelets_turn(pod, status))
        }
        Way::Delete => {
            apply::delete_pod(context, pod).await?;
            Ok(Timestamp::MAX)
        }
    }
}

/// How a Pod is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Nothing of it runs, or somebody asked for its deletion.
    None,
    /// The kubelet is to fail it: it stays, with its logs.
    Fail,
    /// The kubelet was asked, and has until then.
    Wait(Timestamp),
    /// It is deleted.
    Delete,
}

/// A deletion takes the logs with it. Where the time of the agent is over the kubelet can end the Pod in place, with as
/// many writes; everything else that ends a sandbox from here is either no clock or a kubelet that does not answer.
fn way(pod: &SlimPod, status: &AgentSandboxStatus, now: Timestamp) -> Way {
    if !runs(pod) {
        return Way::None;
    }
    let late = status.outcome.as_ref().is_some_and(|outcome| outcome.reason == "DeadlineExceeded");
    let until = kubelets_turn(pod, status);
    match pod.spec.active_deadline_seconds {
        _ if !late || now >= until => Way::Delete,
        Some(apply::PASSED_SECONDS) => Way::Wait(until),
        _ => Way::Fail,
    }
}

/// Until when the kubelet may take to fail `pod`.
fn kubelets_turn(pod: &SlimPod, status: &AgentSandboxStatus) -> Timestamp {
    let grace = u64::try_from(pod.spec.termination_grace_period_seconds.unwrap_or(30)).unwrap_or_default();
    let begun = status.finished_at.as_ref().map_or(Timestamp::MIN, |time| time.0);
    after(begun, Duration::from_secs(grace) + KUBELETS_SLACK)
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
    let judged = judge(sandbox, &seen.observed, &context.settings(), true);
    let Some(policy) = judged.wanted.into_policy() else { return Ok(()) };
    let mut repaired = Ok(());
    if seen.pod_stripped {
        // That it failed must not keep the policy from being held.
        repaired = apply::repair_pod(context, identity, pod, &policy.metadata).await;
    }
    apply::policy(context, identity, seen.policy.as_deref(), &policy).await?;
    repaired
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_kubelet_ends_what_ran_out_of_time_and_is_waited_for() {
        let at = |second: i64| Timestamp::from_second(1_800_000_000 + second).unwrap();
        let status = |reason: &str| -> AgentSandboxStatus {
            let status = json!({"outcome": {"reason": reason}, "finishedAt": at(0).to_string()});
            serde_json::from_value(status).unwrap()
        };
        let pod = |deadline: i64, deleting: bool, state: &str| -> SlimPod {
            let mut meta = json!({"name": "p", "uid": "u"});
            if deleting {
                meta["deletionTimestamp"] = json!("2027-01-01T00:00:00Z");
            }
            serde_json::from_value(json!({
                "metadata": meta,
                "spec": {"activeDeadlineSeconds": deadline, "terminationGracePeriodSeconds": 25},
                "status": {"phase": state},
            }))
            .unwrap()
        };
        let late = status("DeadlineExceeded");
        let (fresh, asked) = (pod(700, false, "Running"), pod(1, false, "Running"));
        assert_eq!(way(&fresh, &late, at(1)), Way::Fail);
        assert_eq!(way(&asked, &late, at(54)), Way::Wait(at(55)));
        assert_eq!(way(&asked, &late, at(55)), Way::Delete);
        // The controller was away meanwhile.
        assert_eq!(way(&fresh, &late, at(500)), Way::Delete);
        for reason in ["NodeLost", "PolicyLost", "StartupTimeout"] {
            assert_eq!(way(&fresh, &status(reason), at(1)), Way::Delete, "{reason}");
        }
        assert_eq!(way(&pod(700, true, "Running"), &late, at(1)), Way::None);
        assert_eq!(way(&pod(1, false, "Failed"), &late, at(1)), Way::None);
    }
}
