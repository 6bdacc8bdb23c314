//! The status that follows from what was seen and done: pure; the caller writes it if it differs.
use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use super::conditions::{
    ACCEPTED, CONTAINED, EGRESS_READY, FINISHED, READY, RECONCILING, RUNNING, STALLED, Stand,
    VALID_WITH_WARNINGS, second, set,
};
use super::ending::Ending;
use super::gate::NOT_CONTAINED;
use super::lifecycle::{Step, bounded};
use crate::api::v1alpha1::{
    AgentSandbox, AgentSandboxStatus, AuditStatus, ContainmentStatus, EgressStatus, FilesystemStatus,
    LimitsStatus, Outcome, Phase,
};
use crate::egress::wire::EgressSummary;
use crate::policy::PolicyWarning;

/// Reason why a Pod is not made, and why the egress is not ready: nobody knows yet where the gateway is.
pub const GATEWAY_UNAVAILABLE: &str = "GatewayUnavailable";

/// Reason and message while the agent runs.
const AGENT_RUNNING: &str = "AgentRunning";
const AGENT_RUNS: &str = "the agent runs";

/// Reason of the phase while the agent runs and its spec is refused.
pub const SPEC_REFUSED: &str = "SpecRefused";

/// Characters of the last refusal that status shows.
const LAST_DENIED: usize = 300;

/// Why the spec is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// One word.
    pub reason: String,
    /// For a person: all refusals.
    pub message: String,
    /// Whether an edit, or a change in the cluster, can heal it.
    pub heals: bool,
}

/// What a status is made of.
#[derive(Clone, Debug)]
pub struct Inputs<'a> {
    /// Generation of the spec.
    pub generation: Option<i64>,
    /// Why the spec is refused, if it is.
    pub refused: Option<&'a Refused>,
    /// Why the Pod could not be made though the spec is accepted.
    pub blocked: Option<(&'a str, &'a str)>,
    /// Where the sandbox is in its life.
    pub step: &'a Step,
    /// Name of its Pod, once there is one.
    pub pod_name: Option<String>,
    /// UID of its Pod.
    pub pod_uid: Option<String>,
    /// Node of its Pod.
    pub node_name: Option<String>,
    /// Digest of the egress policy in force.
    pub policy_digest: Option<String>,
    /// How the limits are enforced.
    pub limits: Option<LimitsStatus>,
    /// What the start gate found, as far as the Pod tells.
    pub containment: Option<ContainmentStatus>,
    /// Networks that names may resolve to by the administrator's exception, for a person; empty without any.
    pub exceptions: &'a str,
    /// What the spec says and seldom means, for a person; empty without any.
    pub warnings: String,
    /// The time.
    pub now: Timestamp,
}

/// What `sandbox`'s spec says and seldom means, for a person.
pub fn warnings(sandbox: &AgentSandbox) -> String {
    let all = PolicyWarning::all(sandbox.spec.network.as_ref());
    let all: Vec<String> = all.iter().map(ToString::to_string).collect();
    bounded(&all.join("; "))
}

/// What decides the phase.
struct Verdict<'a> {
    phase: Phase,
    reason: &'a str,
    message: Cow<'a, str>,
}

/// The status after `before`.
pub fn next(before: &AgentSandboxStatus, inputs: &Inputs<'_>) -> AgentSandboxStatus {
    let mut status = before.clone();
    status.observed_generation = inputs.generation;
    status.pod_name = inputs.pod_name.clone().or(status.pod_name);
    status.pod_uid = inputs.pod_uid.clone().or(status.pod_uid);
    status.node_name = inputs.node_name.clone().or(status.node_name);
    status.policy_digest = inputs.policy_digest.clone().or(status.policy_digest);
    status.limits = inputs.limits.clone().or(status.limits);
    if verified(&status).is_none() {
        status.containment = inputs.containment.clone().or(status.containment);
    }
    match inputs.step {
        Step::Running { started, deadline, .. } => {
            status.started_at = Some(time(*started));
            status.deadline = Some(time(*deadline));
        }
        Step::Finished(ending) => finish(&mut status, ending, inputs.now),
        Step::Stopping { started, .. } => status.started_at = started.map(time).or(status.started_at),
        Step::NotCreated { .. } | Step::Starting { .. } => {
            if let Some(refused) = inputs.refused.filter(|r| !r.heals && status.pod_name.is_none()) {
                finish(&mut status, &Ending::by_us("Rejected", &refused.message, None), inputs.now);
            }
        }
    }
    let outcome = status.outcome.clone();
    let verdict = verdict(inputs, outcome.as_ref(), status.pod_name.is_some());
    let stands = stands(inputs, &verdict, &status);
    status.conditions = set(&before.conditions, &stands, inputs.generation, inputs.now);
    status.phase = Some(verdict.phase);
    status.reason = Some(verdict.reason.to_owned());
    status.message = Some(verdict.message.into_owned());
    status
}

/// Whether `after` is worth a write. The node alone is not: it is written with the start of the agent, which comes soon.
pub fn worth_writing(before: &AgentSandboxStatus, after: &AgentSandboxStatus) -> bool {
    let node_aside = AgentSandboxStatus { node_name: before.node_name.clone(), ..after.clone() };
    node_aside != *before
}

fn finish(status: &mut AgentSandboxStatus, ending: &Ending, now: Timestamp) {
    status.started_at = ending.started.map(time).or(status.started_at.take());
    status.finished_at = Some(time(ending.finished.unwrap_or(now)));
    status.outcome = Some(ending.outcome.clone());
    if let Some(report) = &ending.report {
        status.filesystem = Some(FilesystemStatus { landlock_abi: report.landlock_abi });
        status.audit = Some(AuditStatus { records: Some(report.records) });
        status.egress = report.egress.as_ref().map(egress).or(status.egress.take());
    }
}

fn egress(summary: &EgressSummary) -> EgressStatus {
    let shown = |text: &String| bounded(text).chars().take(LAST_DENIED).collect::<String>();
    EgressStatus {
        allowed: summary.allowed.max(0),
        denied: summary.denied.max(0),
        bytes_out: summary.bytes_out.max(0),
        bytes_in: summary.bytes_in.max(0),
        last_denied: summary.last_denied.as_ref().map(shown).filter(|text| !text.is_empty()),
    }
}

/// The containment of a sandbox whose gate passed.
fn verified(status: &AgentSandboxStatus) -> Option<&ContainmentStatus> {
    status.containment.as_ref().filter(|containment| containment.verified_at.is_some())
}

fn verdict<'a>(inputs: &'a Inputs<'_>, outcome: Option<&'a Outcome>, has_pod: bool) -> Verdict<'a> {
    let of = |phase, reason, message: &'a str| Verdict { phase, reason, message: message.into() };
    if let Some(outcome) = outcome {
        let phase = match outcome.reason.as_str() {
            "Completed" => Phase::Succeeded,
            "Rejected" => Phase::Rejected,
            _ => Phase::Failed,
        };
        // The reason for people is the cause, not the word for it.
        let reason = match inputs.refused {
            Some(refused) if phase == Phase::Rejected => refused.reason.as_str(),
            _ => outcome.reason.as_str(),
        };
        return of(phase, reason, outcome.message.as_deref().unwrap_or("the agent ended"));
    }
    match (inputs.step, inputs.refused, inputs.blocked) {
        (Step::Running { .. }, Some(refused), _) => {
            let message = format!("{AGENT_RUNS}, but its spec is refused: {}", refused.message);
            Verdict { phase: Phase::Running, reason: SPEC_REFUSED, message: bounded(&message).into() }
        }
        (Step::Running { .. }, ..) => of(Phase::Running, AGENT_RUNNING, AGENT_RUNS),
        (Step::Stopping { .. }, ..) => of(Phase::Stopping, "PodDeleting", "the Pod is being deleted"),
        (Step::Starting { reason, message, .. }, ..) => of(Phase::Starting, reason, message),
        (_, Some(refused), _) if !has_pod => of(Phase::Rejected, &refused.reason, &refused.message),
        (_, _, Some((reason, message))) => of(Phase::Pending, reason, message),
        _ => of(Phase::Pending, "Pending", "the Pod is not made yet"),
    }
}

fn stands(inputs: &Inputs<'_>, verdict: &Verdict<'_>, status: &AgentSandboxStatus) -> [Stand; 8] {
    let finished = status.outcome.is_some();
    let Verdict { phase, reason, ref message } = *verdict;
    let accepted = match inputs.refused {
        Some(refused) => Stand::new(ACCEPTED, false, &refused.reason, &refused.message),
        None if inputs.warnings.is_empty() => Stand::new(ACCEPTED, true, "Valid", "the spec is accepted"),
        None => {
            let message = format!("the spec is accepted, but {}", inputs.warnings);
            Stand::new(ACCEPTED, true, VALID_WITH_WARNINGS, &message)
        }
    };
    let running = phase == Phase::Running;
    let working = matches!(phase, Phase::Pending | Phase::Starting | Phase::Stopping);
    // An edit that is refused is not in force, and will not be before it is corrected.
    let held = inputs.refused.filter(|_| running);
    let stalled = held.is_some() || matches!(phase, Phase::Failed | Phase::Rejected);
    let ready = held.is_none() && matches!(phase, Phase::Running | Phase::Succeeded);
    let end = if finished { (reason, &**message) } else { ("NotFinished", "the sandbox has not ended") };
    let runs = if running { (AGENT_RUNNING, AGENT_RUNS) } else { (reason, &**message) };
    let stall = held.map_or((reason, &**message), |refused| (&*refused.reason, &*refused.message));
    [
        accepted,
        contained(inputs, status),
        egress_ready(inputs, status, running),
        Stand::new(RUNNING, running, runs.0, runs.1),
        Stand::new(FINISHED, finished, end.0, end.1),
        Stand::new(READY, ready, reason, message),
        Stand::new(RECONCILING, working, reason, message),
        Stand::new(STALLED, stalled, stall.0, stall.1),
    ]
}

/// `True` from the agent's start on, and after its end: the record of what was measured.
fn contained(inputs: &Inputs<'_>, status: &AgentSandboxStatus) -> Stand {
    let stand = |holds, reason: &str, message: &str| Stand::new(CONTAINED, holds, reason, message);
    let outcome = status.outcome.as_ref();
    if let Some(outcome) = outcome.filter(|outcome| outcome.reason == NOT_CONTAINED) {
        return stand(false, NOT_CONTAINED, outcome.message.as_deref().unwrap_or_default());
    }
    if let Some((containment, at)) = verified(status).and_then(|c| c.verified_at.as_ref().map(|at| (c, at))) {
        let digest = containment.policy_digest.as_deref().unwrap_or_default();
        let message =
            format!("measured before the agent was started, at {}, under the policy {digest}", at.0);
        return stand(true, "StartGatePassed", &message);
    }
    match inputs.step {
        Step::Starting { reason: NOT_CONTAINED, message, .. } => stand(false, NOT_CONTAINED, message),
        _ if status.started_at.is_some() => {
            stand(false, "NotMeasured", "the Pod was made without a start gate")
        }
        _ if outcome.is_some() => stand(false, "NotStarted", "the agent was never started"),
        _ => {
            stand(false, "GatePending", "the start gate has not passed yet; the agent is not started before")
        }
    }
}

fn egress_ready(inputs: &Inputs<'_>, status: &AgentSandboxStatus, running: bool) -> Stand {
    let stand = |holds, reason: &str, message: &str| Stand::new(EGRESS_READY, holds, reason, message);
    match inputs.blocked {
        _ if status.outcome.is_some() => stand(false, "Finished", "the sandbox has ended"),
        _ if running && verified(status).is_some() => {
            let mut message = "the gateway confirmed the policy before the agent was started".to_owned();
            if !inputs.exceptions.is_empty() {
                message.push_str("; by the administrator's exception names may also resolve to ");
                message.push_str(inputs.exceptions);
            }
            stand(true, "GatewayReady", &bounded(&message))
        }
        _ if running => stand(false, "NotMeasured", "the Pod was made without a start gate"),
        Some((GATEWAY_UNAVAILABLE, message)) => stand(false, GATEWAY_UNAVAILABLE, message),
        _ => stand(false, "GatePending", "the gateway has not confirmed the policy yet"),
    }
}

fn time(at: Timestamp) -> Time {
    Time(second(at))
}

#[cfg(test)]
#[path = "status_tests.rs"]
mod tests;
