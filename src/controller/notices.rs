//! Audit records and events of state changes. A record is written before the status that it is about, so that a crash
//! doubles it and does not lose it; an event after, and its loss is only logged.
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Resource;
use kube::api::ObjectMeta;
use kube::core::error_boundary::InvalidObject;
use kube::runtime::events::{Event, EventType};

use super::conditions::{ACCEPTED, CONTAINED, FINISHED, RUNNING, VALID_WITH_WARNINGS, holds};
use super::context::{Context, Identity};
use super::error::Error;
use super::gate::NOT_CONTAINED;
use super::lifecycle::bounded;
use crate::api::v1alpha1::{AgentSandbox, AgentSandboxStatus, ContainmentCheck, ContainmentStatus};
use crate::audit::ControlPlaneEvent;

/// Writes the audit records of the change from `before` to `after`.
pub fn record_change(
    context: &Context,
    sandbox: &AgentSandbox,
    identity: &Identity,
    before: &AgentSandboxStatus,
    after: &AgentSandboxStatus,
) -> Result<(), Error> {
    if let Some((accepted, reason, message)) = accepted(before, after) {
        let event = if accepted {
            ControlPlaneEvent::Accepted { policy_digest: after.policy_digest.clone().unwrap_or_default() }
        } else {
            ControlPlaneEvent::Refused { reason, message }
        };
        record(context, sandbox, identity, event)?;
    }
    if let (None, Some(containment)) = (verified(before), verified(after)) {
        record(context, sandbox, identity, contained(containment))?;
    }
    if let Some((reason, message)) = ended(before, after) {
        record(context, sandbox, identity, ControlPlaneEvent::Ended { reason, message })?;
    }
    Ok(())
}

/// Writes one audit record.
pub fn record(
    context: &Context,
    sandbox: &AgentSandbox,
    identity: &Identity,
    event: ControlPlaneEvent,
) -> Result<(), Error> {
    Ok(context.audit.record(&identity.sandbox, sandbox.metadata.generation.unwrap_or(1), event)?)
}

/// Publishes the events of the change from `before` to `after`.
pub async fn announce(
    context: &Context,
    sandbox: &AgentSandbox,
    before: &AgentSandboxStatus,
    after: &AgentSandboxStatus,
) {
    if let Some((is_accepted, reason, message)) = accepted(before, after)
        && (!is_accepted || reason == VALID_WITH_WARNINGS)
    {
        publish(context, sandbox, EventType::Warning, &reason, message).await;
    }
    let runs = |status: &AgentSandboxStatus| holds(&status.conditions, RUNNING) == Some(true);
    if runs(after) && !runs(before) {
        publish(context, sandbox, EventType::Normal, "AgentStarted", "the agent runs".to_owned()).await;
    }
    if let Some(message) = uncontained(before, after) {
        publish(context, sandbox, EventType::Warning, NOT_CONTAINED, message).await;
    }
    if let Some((reason, message)) = ended(before, after) {
        let kind = if reason == "Completed" { EventType::Normal } else { EventType::Warning };
        publish(context, sandbox, kind, &reason, message).await;
    }
}

/// Publishes one event about `sandbox`.
pub async fn publish(
    context: &Context,
    sandbox: &AgentSandbox,
    type_: EventType,
    reason: &str,
    note: String,
) {
    publish_about(context, &sandbox.object_ref(&()), type_, reason, note).await;
}

/// Says on an AgentSandbox that cannot be read that it is left alone, and why.
pub async fn announce_unreadable(context: &Context, invalid: &InvalidObject) {
    let note = format!("this object cannot be read and is left alone: {}", invalid.error);
    let about = reference(&invalid.metadata);
    publish_about(context, &about, EventType::Warning, "Unreadable", bounded(&note)).await;
}

fn reference(meta: &ObjectMeta) -> ObjectReference {
    ObjectReference {
        api_version: Some(AgentSandbox::api_version(&()).into_owned()),
        kind: Some(AgentSandbox::kind(&()).into_owned()),
        name: meta.name.clone(),
        namespace: meta.namespace.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        field_path: None,
    }
}

async fn publish_about(
    context: &Context,
    about: &ObjectReference,
    type_: EventType,
    reason: &str,
    note: String,
) {
    let event = Event {
        type_,
        reason: reason.to_owned(),
        note: Some(note).filter(|n| !n.is_empty()),
        action: "Reconcile".to_owned(),
        secondary: None,
    };
    if let Err(error) = context.recorder.publish(&event, about).await {
        tracing::warn!(%error, reason, "event not published");
    }
}

fn accepted(before: &AgentSandboxStatus, after: &AgentSandboxStatus) -> Option<(bool, String, String)> {
    let find = |s: &AgentSandboxStatus| s.conditions.iter().find(|c| c.type_ == ACCEPTED).cloned();
    let now = find(after)?;
    let same = find(before).is_some_and(|was| was.status == now.status && was.reason == now.reason);
    (!same).then(|| (now.status == "True", now.reason, now.message))
}

/// Containment of a sandbox whose gate passed.
fn verified(status: &AgentSandboxStatus) -> Option<&ContainmentStatus> {
    status.containment.as_ref().filter(|containment| containment.verified_at.is_some())
}

fn contained(containment: &ContainmentStatus) -> ControlPlaneEvent {
    let text = |c: &ContainmentCheck| [c.name.as_str(), c.detail.as_deref().unwrap_or_default()].join(" ");
    ControlPlaneEvent::Contained {
        policy_digest: containment.policy_digest.clone().unwrap_or_default(),
        verified_at: containment.verified_at.as_ref().map(|time| time.0.to_string()).unwrap_or_default(),
        checks: containment.checks.iter().map(|check| text(check).trim_end().to_owned()).collect(),
    }
}

/// Why the gate does not pass, once it is known and as long as the sandbox has not ended for it.
fn uncontained(before: &AgentSandboxStatus, after: &AgentSandboxStatus) -> Option<String> {
    let failing = |s: &AgentSandboxStatus| {
        s.conditions
            .iter()
            .find(|c| c.type_ == CONTAINED && c.reason == NOT_CONTAINED)
            .map(|c| c.message.clone())
    };
    failing(after).filter(|_| failing(before).is_none() && after.outcome.is_none())
}

fn ended(before: &AgentSandboxStatus, after: &AgentSandboxStatus) -> Option<(String, String)> {
    if holds(&before.conditions, FINISHED) == Some(true) {
        return None;
    }
    let outcome = after.outcome.clone()?;
    Some((outcome.reason, outcome.message.unwrap_or_default()))
}
