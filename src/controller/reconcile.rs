//! One reconcile: gather, validate, plan, apply, status.
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{Patch, PatchParams};
use kube::runtime::controller::Action;
use kube::runtime::events::EventType;
use serde_json::json;

use super::apply::{self, PodResult, PolicyResult};
use super::conditions::{ACCEPTED, FINISHED, holds};
use super::context::{Context, Guarded, Identity};
use super::ending::Ending;
use super::error::{Doing, Error};
use super::field_managers;
use super::gate;
use super::gather::{Seen, gather};
use super::judge::{Judged, digest, judge, limits};
use super::lifecycle::{Facts, Step, after, step};
use super::notices::{announce, announce_unreadable, publish, record, record_change};
use super::pod::SlimPod;
use super::status::{self, GATEWAY_UNAVAILABLE, Inputs, Refused};
use crate::api::v1alpha1::{AgentSandbox, AgentSandboxStatus};
use crate::audit::ControlPlaneEvent;
use crate::plan::{Plan, Prepared, Settings};
use crate::telemetry::{ErrorLabels, ResultLabels};

/// Longest time of one reconcile.
const LIMIT: Duration = Duration::from_secs(30);
/// Time after which Services and foreign objects, which are not watched, are looked at again.
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
    let work = Box::pin(tokio::time::timeout(LIMIT, one(sandbox, &context)));
    let result = match AssertUnwindSafe(work).catch_unwind().await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(Error::TimedOut(LIMIT)),
        Err(_) => Err(Error::Panicked),
    };
    let label = if result.is_ok() { "ok" } else { "error" };
    context.metrics.reconciles.get_or_create(&ResultLabels { result: label }).inc();
    context.metrics.duration.observe(begun.elapsed().as_secs_f64());
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
    if sandbox.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let identity = Identity::of(sandbox);
    let before = context.memory.newest(&identity.sandbox.uid, sandbox);
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
        work.write(&status).await?;
    }
    if holds(&status.conditions, FINISHED) == Some(true) {
        // The cause is on record: now what still runs may be ended.
        if let Some(pod) = done.pod.as_ref().filter(|pod| runs(pod)) {
            apply::delete_pod(context, pod).await?;
        }
        context.backoff.reset(&identity.sandbox.uid);
        return Ok(expiry(sandbox, &status).map_or_else(Action::await_change, until));
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
            node_name: self.pod.as_ref().and_then(|pod| pod.spec.node_name.clone()),
            policy_digest: self.policy_digest.clone(),
            limits: self.limits.clone(),
            containment: self.pod.as_ref().and_then(gate::containment),
            exceptions,
            now: self.now,
        }
    }

    fn end(&mut self, reason: &str, message: &str) {
        self.step = Step::Finished(Box::new(Ending::by_us(reason, message, None)));
    }
}

impl Work<'_> {
    async fn apply(&self, judged: Judged) -> Result<Done, Error> {
        let Judged { plan, refused } = judged;
        let now = Timestamp::now();
        let pod = self.seen.pod.as_deref().cloned();
        let step = self.step(pod.as_ref(), plan.as_ref(), now);
        let limits = plan.as_ref().map(|plan| limits(self.sandbox, plan));
        let mut done = Done { step, refused, blocked: None, pod, policy_digest: None, limits, now };
        match (&done.step, plan) {
            (Step::Finished(_), _) if done.refused.is_some() && !self.exists() => {
                // A refused sandbox waits for an edit, not for its Pod.
                done.step = Step::NotCreated { until: Timestamp::MAX };
            }
            (Step::Finished(_), _) | (Step::NotCreated { .. }, None) => {}
            (Step::NotCreated { .. }, Some(plan)) => self.create(plan, &mut done).await?,
            (_, Some(plan)) => self.hold(plan, &mut done).await?,
            (_, None) if self.seen.policy.is_none() => {
                done.end("PolicyLost", "the NetworkPolicy is gone and cannot be planned again");
            }
            (_, None) => {}
        }
        Ok(done)
    }

    fn exists(&self) -> bool {
        self.seen.pod.is_some() || self.before.pod_name.is_some()
    }

    fn step(&self, pod: Option<&SlimPod>, plan: Option<&Plan<Prepared>>, now: Timestamp) -> Step {
        let spec = &self.sandbox.spec;
        let created = self.sandbox.metadata.creation_timestamp.as_ref().map_or(now, |t| t.0);
        // A spec that was refused at first gets its whole startup time from the edit that healed it.
        let accepted = self.before.conditions.iter().find(|c| c.type_ == ACCEPTED);
        let created = match accepted {
            Some(c) if c.status == "True" => created.max(c.last_transition_time.0),
            Some(_) if pod.is_none() => now,
            _ => created,
        };
        step(&Facts {
            created,
            mounts: spec.filesystem.as_ref().map_or(&[], |filesystem| filesystem.mounts.as_slice()),
            startup_timeout: spec.startup_timeout.parse().unwrap_or(Duration::from_mins(5)),
            timeout: spec.timeout.parse().unwrap_or(Duration::from_mins(30)),
            grace: self.settings.grace,
            pod_expected: self.before.pod_name.is_some(),
            started: self.before.started_at.as_ref().map(|t| t.0),
            pod,
            policy_lost: self.seen.policy_lost,
            node_lost_since: self.seen.node_lost_since,
            planned_deadline_seconds: plan
                .and_then(|p| p.pod.spec.as_ref())
                .and_then(|s| s.active_deadline_seconds),
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
            PolicyResult::Created | PolicyResult::Repaired => self.policy_applied(&plan)?,
            PolicyResult::Unchanged => {}
        }
        done.policy_digest = digest(&plan);
        match apply::pod(self.context, self.identity, &plan.pod).await? {
            PodResult::Made(pod) => {
                let event = ControlPlaneEvent::PodCreated { name: self.identity.object.clone() };
                record(self.context, self.sandbox, self.identity, event)?;
                done.step = self.step(Some(&pod), Some(&plan), done.now);
                done.pod = Some(*pod);
            }
            PodResult::Taken => self.taken("Pod", done),
            PodResult::Denied(message) => done.end("AdmissionDenied", &message),
            PodResult::NotYet(reason, message) => done.blocked = Some((reason, message)),
        }
        Ok(())
    }

    /// Holds policy and Pod to what they should be while the agent starts or runs.
    async fn hold(&self, plan: Plan<Prepared>, done: &mut Done) -> Result<(), Error> {
        let have = self.seen.policy.as_deref();
        if let (true, Some(pod)) = (self.seen.pod_stripped, done.pod.as_ref()) {
            // First: without its label no policy selects the Pod.
            apply::repair_pod(self.context, self.identity, pod, &plan.pod).await?;
            self.warn("PodRepaired", "labels or owner of the Pod were taken off; they are back").await;
        }
        match apply::policy(self.context, self.identity, have, &plan.policy).await? {
            PolicyResult::Created => {
                self.policy_applied(&plan)?;
                self.warn("PolicyRestored", "the NetworkPolicy was gone; it is back").await;
            }
            PolicyResult::Repaired => self.policy_applied(&plan)?,
            PolicyResult::Unchanged => {}
            PolicyResult::Taken => done.end("PolicyLost", "another NetworkPolicy has the sandbox's name"),
            PolicyResult::Lost => {
                done.end("PolicyLost", "the NetworkPolicy was deleted, which cannot be undone");
            }
        }
        done.policy_digest = digest(&plan);
        Ok(())
    }

    fn policy_applied(&self, plan: &Plan<Prepared>) -> Result<(), Error> {
        let name = self.identity.object.clone();
        let policy_digest = digest(plan).unwrap_or_default();
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

    /// Writes `status`: audit record first, then the status, then the events.
    async fn write(&self, status: &AgentSandboxStatus) -> Result<(), Error> {
        self.context.may_write()?;
        record_change(self.context, self.sandbox, self.identity, self.before, status)?;
        let identity = &self.identity.sandbox;
        let body = json!({
            "apiVersion": "agentsandbox.dev/v1alpha1",
            "kind": "AgentSandbox",
            "metadata": {"name": identity.name, "namespace": identity.namespace, "uid": identity.uid},
            "status": status,
        });
        let api: Api<AgentSandbox> = Api::namespaced(self.context.client.clone(), &identity.namespace);
        let params = PatchParams::apply(field_managers::STATUS).force();
        match api.patch_status(&identity.name, &params, &Patch::Apply(&body)).await {
            Ok(answer) => self.context.memory.keep(&identity.uid, &answer),
            Err(kube::Error::Api(status)) if status.is_not_found() => return Ok(()),
            Err(error) => return Err(error).doing("write the status"),
        }
        self.context.metrics.applied("AgentSandbox", "status");
        announce(self.context, self.sandbox, self.before, status).await;
        Ok(())
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
        if services || node || done.refused.is_some() {
            delays.push(LOOK_AGAIN);
        }
        delays.into_iter().min().map_or_else(Action::await_change, Action::requeue)
    }
}

/// A finished sandbox: ends what still runs, and deletes it when its time is over.
async fn finished(
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
fn runs(pod: &SlimPod) -> bool {
    !has_ended(pod) && !pod.is_deleting()
}

/// Whether the agent of `pod` has ended, or never can start.
fn has_ended(pod: &SlimPod) -> bool {
    pod.agent().and_then(|a| a.state.as_ref()).is_some_and(|s| s.terminated.is_some()) || pod.is_terminal()
}

/// Networks that names may resolve to by the administrator's exception.
fn exceptions(settings: &Settings) -> String {
    let networks = settings.gateway.iter().flat_map(|gateway| &gateway.reachable_cidrs);
    networks.map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn expiry(sandbox: &AgentSandbox, status: &AgentSandboxStatus) -> Option<Timestamp> {
    let ttl = sandbox.spec.ttl_after_finished.as_ref()?.parse().ok()?;
    Some(after(status.finished_at.as_ref()?.0, ttl))
}

fn until(time: Timestamp) -> Action {
    left(time).map_or_else(Action::await_change, Action::requeue)
}

/// Time from now to `time`, at least 10 ms; `None` for the end of time.
fn left(time: Timestamp) -> Option<Duration> {
    let left = Duration::try_from(time.duration_since(Timestamp::now())).unwrap_or(Duration::ZERO);
    (time != Timestamp::MAX).then(|| left.max(Duration::from_millis(10)))
}
