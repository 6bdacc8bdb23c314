//! Audit records and events of state changes. A record is written before the status that it is about, so that a crash
//! doubles it and does not lose it; an event after, and its loss is only logged.
use kube::Resource;
use kube::runtime::events::{Event, EventType};

use super::conditions::{ACCEPTED, FINISHED, RUNNING, holds};
use super::context::{Context, Identity};
use super::error::Error;
use crate::api::v1alpha1::{AgentSandbox, AgentSandboxStatus};
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
    if let Some((false, reason, message)) = accepted(before, after) {
        publish(context, sandbox, EventType::Warning, &reason, message).await;
    }
    let runs = |status: &AgentSandboxStatus| holds(&status.conditions, RUNNING) == Some(true);
    if runs(after) && !runs(before) {
        publish(context, sandbox, EventType::Normal, "AgentStarted", "the agent runs".to_owned()).await;
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
    let event = Event {
        type_,
        reason: reason.to_owned(),
        note: Some(note).filter(|n| !n.is_empty()),
        action: "Reconcile".to_owned(),
        secondary: None,
    };
    if let Err(error) = context.recorder.publish(&event, &sandbox.object_ref(&())).await {
        tracing::warn!(%error, reason, "event not published");
    }
}

fn accepted(before: &AgentSandboxStatus, after: &AgentSandboxStatus) -> Option<(bool, String, String)> {
    let find = |s: &AgentSandboxStatus| s.conditions.iter().find(|c| c.type_ == ACCEPTED).cloned();
    let now = find(after)?;
    let same = find(before).is_some_and(|was| was.status == now.status && was.reason == now.reason);
    (!same).then(|| (now.status == "True", now.reason, now.message))
}

fn ended(before: &AgentSandboxStatus, after: &AgentSandboxStatus) -> Option<(String, String)> {
    if holds(&before.conditions, FINISHED) == Some(true) {
        return None;
    }
    let outcome = after.outcome.clone()?;
    Some((outcome.reason, outcome.message.unwrap_or_default()))
}
