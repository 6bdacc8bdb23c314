//! One reconcile: gather, validate, plan, apply, status.
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::jiff::Timestamp;
use kube::runtime::controller::Action;
use kube::runtime::events::EventType;

use super::apply::{self, PodResult, PolicyResult};
use super::conditions::{ACCEPTED, FINISHED, holds};
use super::context::{Context, Guarded, Identity};
use super::deletion::deleting;
use super::ending::Ending;
use super::error::Error;
use super::finished::{end, expiry, finished, left, until};
use super::gate;
use super::gather::{Seen, gather};
use super::judge::{Judged, Wanted, digest, judge, limits};
use super::lifecycle::{Facts, Step, startup_begins, step};
use super::notices::{announce_unreadable, publish, record};
use super::pod::SlimPod;
use super::status::{self, GATEWAY_UNAVAILABLE, Inputs, Refused};
use super::write::write;
use crate::api::v1alpha1::{AgentSandbox, AgentSandboxStatus};
use crate::audit::ControlPlaneEvent;
use crate::plan::{Plan, Prepared, Settings, deadline_seconds};
use crate::telemetry::{ErrorLabels, Metrics, ResultLabels};

/// Longest time of one reconcile.
const LIMIT: Duration = Duration::from_secs(30);
/// Time after which Services, which are not watched, are looked at again for rules that hold.
const LOOK_AGAIN: Duration = Duration::from_mins(1);

/// Reconciles one sandbox. A panic is an error of this sandbox only.
pub async fn reconcile(guarded: Arc<Guarded>, context: Arc<Context>) -> Result<Action, Error> {
    let begun = Instant::now();
    let sandbox = match &guarded.0 {
        Ok(sandbox) => sandbox,
        Err(invalid) => {
            tracing::warn!(name = ?invalid.metadata.name, namespace = ?invalid.metadata.namespace,
                error = %invalid.error, "an AgentSandbox cannot be read; left alone");
            announce_unreadable(&context, invalid).await;
            return Ok(Action::await_change());
        }
    };
    let result = measured(&context.metrics, one(sandbox, &context)).await;
    context.metrics.duration.observe(begun.elapsed().as_secs_f64());
    result
}

/// Does `work` within [`LIMIT`], makes an error of a panic, and counts what came of it.
async fn measured(
    metrics: &Metrics,
    work: impl Future<Output = Result<Action, Error>>,
) -> Result<Action, Error> {
    let work = Box::pin(tokio::time::timeout(LIMIT, work));
    let result = match AssertUnwindSafe(work).catch_unwind().await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(Error::TimedOut(LIMIT)),
        Err(_) => Err(Error::Panicked),
    };
    let label = match result {
        Ok(_) => "ok",
        // An alert of its own looks for it: it is a bug, and no state of the cluster.
        Err(Error::Panicked) => "panic",
        Err(_) => "error",
    };
    metrics.reconciles.get_or_create(&ResultLabels { result: label }).inc();
    result
}

/// What to do after an error: try again, later every time.
pub fn on_error(guarded: &Guarded, error: &Error, context: &Context) -> Action {
    context.metrics.errors.get_or_create(&ErrorLabels { reason: error.reason() }).inc();
    let uid = guarded.0.as_ref().ok().and_then(|s| s.metadata.uid.as_deref()).unwrap_or_default();
    let delay = context.backoff.next(uid);
    tracing::warn!(%error, reason = error.reason(), ?delay, uid, "reconcile failed");
    Action::requeue(delay)
}

async fn one(sandbox: &AgentSandbox, context: &Context) -> Result<Action, Error> {
    let identity = Identity::of(sandbox);
    let before = context.memory.newest(&identity.sandbox.uid, sandbox);
    if sandbox.metadata.deletion_timestamp.is_some() {
        return deleting(context, sandbox, &identity, &before).await;
    }
    if holds(&before.conditions, FINISHED) == Some(true) {
        return finished(context, sandbox, &identity, &before).await;
    }
    let seen = gather(context, sandbox, &before, &identity).await?;
    let exists = seen.pod.is_some() || before.pod_name.is_some();
    let settings = context.settings();
    let judged = judge(sandbox, &seen.observed, &settings, exists);
    let work =
        Work { context, settings: &settings, sandbox, identity: &identity, before: &before, seen: &seen };
    let done = Box::pin(work.apply(judged)).await?;
    let exceptions = exceptions(&settings);
    let status = status::next(&before, &done.inputs(sandbox, &identity, &exceptions));
    if status::worth_writing(&before, &status) {
        write(context, sandbox, &identity, &before, &status).await?;
    }
    if holds(&status.conditions, FINISHED) == Some(true) {
        // The cause is on record: now what still runs may be ended.
        let again = match &done.pod {
            Some(pod) => end(context, pod, &status).await?,
            None => Timestamp::MAX,
        };
        context.backoff.reset(&identity.sandbox.uid);
        context.looks.forget(&identity.sandbox.uid);
        return Ok(until(expiry(sandbox, &status).unwrap_or(Timestamp::MAX).min(again)));
    }
    Ok(work.look_again(&done))
}

/// One sandbox that has not finished.
struct Work<'a> {
    context: &'a Context,
    settings: &'a Settings,
    sandbox: &'a AgentSandbox,
    identity: &'a Identity,
    before: &'a AgentSandboxStatus,
    seen: &'a Seen,
}

/// What was done.
struct Done {
    step: Step,
    refused: Option<Refused>,
    blocked: Option<(&'static str, String)>,
    pod: Option<SlimPod>,
    policy_digest: Option<String>,
    limits: Option<crate::api::v1alpha1::LimitsStatus>,
    now: Timestamp,
}

impl Done {
    fn inputs<'a>(&'a self, sandbox: &AgentSandbox, identity: &Identity, exceptions: &'a str) -> Inputs<'a> {
        Inputs {
            generation: sandbox.metadata.generation,
            refused: self.refused.as_ref(),
            blocked: self.blocked.as_ref().map(|(reason, message)| (*reason, message.as_str())),
            step: &self.step,
            pod_name: self.pod.as_ref().map(|_| identity.object.clone()),
            pod_uid: self.pod.as_ref().and_then(|pod| pod.metadata.uid.clone()),
            node_name: self.pod.as_ref().and_then(|pod| pod.spec.node_name.clone()),
            policy_digest: self.policy_digest.clone(),
            limits: self.limits.clone(),
            containment: self.pod.as_ref().and_then(gate::containment),
            exceptions,
            warnings: status::warnings(sandbox),
            now: self.now,
        }
    }

    fn end(&mut self, reason: &str, message: &str) {
        self.step = Step::Finished(Box::new(Ending::by_us(reason, message, None)));
    }
}

impl Work<'_> {
    async fn apply(&self, judged: Judged) -> Result<Done, Error> {
        let Judged { wanted, refused } = judged;
        let now = Timestamp::now();
        let pod = self.seen.pod.as_deref().cloned();
        let step = self.step(pod.as_ref(), now);
        let limits = wanted.objects().map(|plan| limits(self.sandbox, plan));
        let mut done = Done { step, refused, blocked: None, pod, policy_digest: None, limits, now };
        match (&done.step, wanted) {
            (Step::Finished(_), _) if done.refused.is_some() && !self.exists() => {
                // A refused sandbox waits for an edit, not for its Pod.
                done.step = Step::NotCreated { until: Timestamp::MAX };
            }
            (Step::NotCreated { .. }, Wanted::Objects(plan)) => self.create(*plan, &mut done).await?,
            (Step::Finished(_), _) | (Step::NotCreated { .. }, Wanted::Policy(_)) | (_, Wanted::Nothing) => {}
            (_, Wanted::Objects(plan)) => self.hold(&plan.policy, &mut done).await?,
            (_, Wanted::Policy(policy)) => self.hold(&policy, &mut done).await?,
        }
        Ok(done)
    }

    fn exists(&self) -> bool {
        self.seen.pod.is_some() || self.before.pod_name.is_some()
    }

    fn step(&self, pod: Option<&SlimPod>, now: Timestamp) -> Step {
        let spec = &self.sandbox.spec;
        let created = self.sandbox.metadata.creation_timestamp.as_ref().map_or(now, |t| t.0);
        let accepted = self.before.conditions.iter().find(|c| c.type_ == ACCEPTED);
        let startup_timeout = spec.startup_timeout.parse().unwrap_or(Duration::from_mins(5));
        // One that cannot be read must not give the agent more time than it had.
        let timeout = spec
            .timeout
            .parse()
            .ok()
            .or_else(|| known_timeout(self.before))
            .unwrap_or(Duration::from_mins(30));
        step(&Facts {
            created: startup_begins(created, accepted, pod, now),
            mounts: spec.filesystem.as_ref().map_or(&[], |filesystem| filesystem.mounts.as_slice()),
            startup_timeout,
            timeout,
            grace: self.settings.grace,
            pod_expected: self.before.pod_name.is_some(),
            started: self.before.started_at.as_ref().map(|t| t.0),
            pod,
            policy_lost: self.seen.policy_lost,
            node_lost_since: self.seen.node_lost_since,
            planned_deadline_seconds: deadline_seconds(timeout, startup_timeout, self.settings),
            now,
        })
    }

    /// Makes the policy, then the Pod.
    async fn create(&self, plan: Plan<Prepared>, done: &mut Done) -> Result<(), Error> {
        if self.settings.gateway.as_ref().is_some_and(|gateway| gateway.reach.is_none()) {
            let message = "the operator has not found the egress gateway; its log says what is missing";
            done.blocked = Some((GATEWAY_UNAVAILABLE, message.to_owned()));
            return Ok(());
        }
        match apply::policy(self.context, self.identity, self.seen.policy.as_deref(), &plan.policy).await? {
            PolicyResult::Taken => {
                self.taken("NetworkPolicy", done);
                return Ok(());
            }
            PolicyResult::Lost => {
                done.end("PolicyLost", "the NetworkPolicy was deleted, which cannot be undone");
                return Ok(());
            }
            PolicyResult::Created | PolicyResult::Repaired => self.policy_applied(&plan.policy)?,
            PolicyResult::Unchanged => {}
        }
        done.policy_digest = digest(&plan.policy);
        match apply::pod(self.context, self.identity, &self.settings.directory_key, &plan.pod).await? {
            PodResult::Made(pod) => {
                let event = ControlPlaneEvent::PodCreated { name: self.identity.object.clone() };
                record(self.context, self.sandbox, self.identity, event)?;
                done.step = self.step(Some(&pod), done.now);
                done.pod = Some(*pod);
            }
            PodResult::Taken => self.taken("Pod", done),
            PodResult::Denied(message) => done.end("AdmissionDenied", &message),
            PodResult::NotYet(reason, message) => done.blocked = Some((reason, message)),
        }
        Ok(())
    }

    /// Holds policy and Pod to what they should be while the agent starts or runs.
    async fn hold(&self, policy: &NetworkPolicy, done: &mut Done) -> Result<(), Error> {
        let have = self.seen.policy.as_deref();
        let mut repaired = Ok(());
        if let (true, Some(pod)) = (self.seen.pod_stripped, done.pod.as_ref()) {
            // First: without its label no policy selects the Pod. That it failed must not keep the policy from being held.
            repaired = apply::repair_pod(self.context, self.identity, pod, &policy.metadata).await;
            if repaired.is_ok() {
                self.warn("PodRepaired", "labels or owner of the Pod were taken off; they are back").await;
            }
        }
        match apply::policy(self.context, self.identity, have, policy).await? {
            PolicyResult::Created => {
                self.policy_applied(policy)?;
                self.warn("PolicyRestored", "the NetworkPolicy was gone; it is back").await;
            }
            PolicyResult::Repaired => self.policy_applied(policy)?,
            PolicyResult::Unchanged => {}
            PolicyResult::Taken => done.end("PolicyLost", "another NetworkPolicy has the sandbox's name"),
            PolicyResult::Lost => {
                done.end("PolicyLost", "the NetworkPolicy was deleted, which cannot be undone");
            }
        }
        done.policy_digest = digest(policy);
        repaired
    }

    fn policy_applied(&self, policy: &NetworkPolicy) -> Result<(), Error> {
        let name = self.identity.object.clone();
        let policy_digest = digest(policy).unwrap_or_default();
        let event = ControlPlaneEvent::PolicyApplied { name, policy_digest };
        record(self.context, self.sandbox, self.identity, event)
    }

    fn taken(&self, kind: &str, done: &mut Done) {
        let name = &self.identity.object;
        done.refused = Some(Refused {
            reason: crate::plan::reason::NAME_CONFLICT.to_owned(),
            message: format!("a {kind} named {name} exists and does not belong to this sandbox; delete it"),
            heals: true,
        });
    }

    async fn warn(&self, reason: &str, note: &str) {
        publish(self.context, self.sandbox, EventType::Warning, reason, note.to_owned()).await;
    }

    fn look_again(&self, done: &Done) -> Action {
        let uid = &self.identity.sandbox.uid;
        let mut delays: Vec<Duration> = done.step.check().and_then(left).into_iter().collect();
        if done.blocked.is_some() {
            delays.push(self.context.backoff.next(uid));
        } else {
            self.context.backoff.reset(uid);
        }
        let network = self.sandbox.spec.network.as_ref();
        let services = network.is_some_and(|n| n.egress.iter().any(|r| r.service.is_some()));
        let node = matches!(done.step, Step::Stopping { .. });
        // Where a Pod exists the rules that are right hold also while the spec is refused.
        if node || (services && (done.refused.is_none() || done.pod.is_some())) {
            delays.push(LOOK_AGAIN);
        }
        match &done.refused {
            Some(refused) => {
                let generation = self.sandbox.metadata.generation;
                delays.push(self.context.looks.next(uid, generation, &refused.message, Instant::now()));
            }
            None => self.context.looks.forget(uid),
        }
        delays.into_iter().min().map_or_else(Action::await_change, Action::requeue)
    }
}

/// The time of the agent as `status` tells it, once it runs.
fn known_timeout(status: &AgentSandboxStatus) -> Option<Duration> {
    let (started, deadline) = (status.started_at.as_ref()?, status.deadline.as_ref()?);
    Duration::try_from(deadline.0.duration_since(started.0)).ok()
}

/// Networks that names may resolve to by the administrator's exception.
fn exceptions(settings: &Settings) -> String {
    let networks = settings.gateway.iter().flat_map(|gateway| &gateway.reachable_cidrs);
    networks.map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::telemetry::Exposition as _;

    #[test]
    fn a_timeout_that_cannot_be_read_is_the_one_that_status_tells() {
        let known = |status| known_timeout(&serde_json::from_value(status).unwrap());
        let (started, deadline) = ("2027-01-01T00:00:00Z", "2027-01-01T00:01:00Z");
        let both = json!({"startedAt": started, "deadline": deadline});
        assert_eq!(known(both), Some(Duration::from_mins(1)));
        assert_eq!(known(json!({"startedAt": started})), None);
        // Turned round it is none, and no time without end.
        assert_eq!(known(json!({"startedAt": deadline, "deadline": started})), None);
    }

    #[tokio::test]
    async fn a_panic_is_an_error_of_its_own_in_the_metrics() {
        let metrics = Metrics::default();
        assert!(measured(&metrics, async { Ok(Action::await_change()) }).await.is_ok());
        assert!(measured(&metrics, async { Err(Error::NotLeader) }).await.is_err());
        let panicked = measured(&metrics, async { panic!("on purpose") }).await;
        assert!(matches!(panicked, Err(Error::Panicked)), "{panicked:?}");
        let text = metrics.encode().unwrap();
        for result in ["ok", "error", "panic"] {
            let line = format!("agentsandbox_reconcile_total{{result=\"{result}\"}} 1");
            assert!(text.contains(&line), "{text}");
        }
        // The alert looks for what is counted.
        let alerts = include_str!("../../charts/agentsandbox/templates/monitoring.yaml");
        assert!(alerts.contains("agentsandbox_reconcile_total{result=\"panic\"}"));
    }
}
