//! The status that follows from what was seen and done: pure; the caller writes it if it differs.
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
    message: &'a str,
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
    status.message = Some(verdict.message.to_owned());
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
    let of = |phase, reason, message| Verdict { phase, reason, message };
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
        (Step::Running { .. }, ..) => of(Phase::Running, "AgentRunning", "the agent runs"),
        (Step::Stopping { .. }, ..) => of(Phase::Stopping, "PodDeleting", "the Pod is being deleted"),
        (Step::Starting { reason, message, .. }, ..) => of(Phase::Starting, reason, message),
        (_, Some(refused), _) if !has_pod => of(Phase::Rejected, &refused.reason, &refused.message),
        (_, _, Some((reason, message))) => of(Phase::Pending, reason, message),
        _ => of(Phase::Pending, "Pending", "the Pod is not made yet"),
    }
}

fn stands(inputs: &Inputs<'_>, verdict: &Verdict<'_>, status: &AgentSandboxStatus) -> [Stand; 8] {
    let finished = status.outcome.is_some();
    let Verdict { phase, reason, message } = *verdict;
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
    let stalled = matches!(phase, Phase::Failed | Phase::Rejected);
    let ready = matches!(phase, Phase::Running | Phase::Succeeded);
    let end = if finished { (reason, message) } else { ("NotFinished", "the sandbox has not ended") };
    [
        accepted,
        contained(inputs, status),
        egress_ready(inputs, status, running),
        Stand::new(RUNNING, running, reason, message),
        Stand::new(FINISHED, finished, end.0, end.1),
        Stand::new(READY, ready, reason, message),
        Stand::new(RECONCILING, working, reason, message),
        Stand::new(STALLED, stalled, reason, message),
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
mod tests {
    use super::super::conditions::holds;
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    fn inputs(step: &Step) -> Inputs<'_> {
        Inputs {
            generation: Some(1),
            refused: None,
            blocked: None,
            step,
            pod_name: None,
            pod_uid: None,
            node_name: None,
            policy_digest: None,
            limits: None,
            containment: None,
            exceptions: "",
            warnings: String::new(),
            now: at(5),
        }
    }

    #[test]
    fn the_node_alone_is_not_worth_a_write() {
        let starting = Step::Starting { reason: "PodStarting", message: "m".into(), until: at(60) };
        let before = next(&AgentSandboxStatus::default(), &inputs(&starting));
        let on_node = Inputs { node_name: Some("node".into()), ..inputs(&starting) };
        let bound = next(&before, &on_node);
        assert!(bound != before && !worth_writing(&before, &bound));
        let running = Step::Running { started: at(1), deadline: at(9), check: at(9) };
        let runs = next(&before, &Inputs { step: &running, ..on_node });
        assert!(worth_writing(&before, &runs) && runs.node_name.is_some());
    }

    #[test]
    fn the_phase_follows_the_life_and_a_status_is_a_fixed_point() {
        let refused = Refused { reason: "ReservedAddress".into(), message: "m".into(), heals: true };
        let forever = Refused { heals: false, ..refused.clone() };
        let pending = Step::NotCreated { until: at(60) };
        let starting = Step::Starting { reason: "PodStarting", message: "m".into(), until: at(60) };
        let running = Step::Running { started: at(1), deadline: at(9), check: at(9) };
        let ended = |reason| Step::Finished(Box::new(Ending::by_us(reason, "m", Some(at(1)))));
        for (step, refused, phase, ready, finished) in [
            (pending.clone(), None, Phase::Pending, false, false),
            (pending.clone(), Some(&refused), Phase::Rejected, false, false),
            (pending, Some(&forever), Phase::Rejected, false, true),
            (starting, None, Phase::Starting, false, false),
            (running.clone(), None, Phase::Running, true, false),
            (running, Some(&refused), Phase::Running, true, false),
            (Step::Stopping { started: None, check: None }, None, Phase::Stopping, false, false),
            (ended("Completed"), None, Phase::Succeeded, true, true),
            (ended("AgentFailed"), None, Phase::Failed, false, true),
        ] {
            let inputs = Inputs { refused, ..inputs(&step) };
            let status = next(&AgentSandboxStatus::default(), &inputs);
            assert_eq!(status.phase, Some(phase), "{step:?}");
            assert_eq!(status.conditions.len(), 8);
            assert_eq!(holds(&status.conditions, READY), Some(ready), "{step:?}");
            assert_eq!(holds(&status.conditions, FINISHED), Some(finished), "{step:?}");
            assert_eq!(holds(&status.conditions, ACCEPTED), Some(refused.is_none()));
            assert_eq!(status.finished_at.is_some(), finished);
            assert_eq!(next(&status, &inputs), status, "{step:?}");
        }
    }

    fn measured(at_second: Option<i64>) -> ContainmentStatus {
        ContainmentStatus {
            verified_at: at_second.map(|second| Time(at(second))),
            policy_digest: Some("sha256:d".into()),
            checks: Vec::new(),
        }
    }

    fn stand_of(status: &AgentSandboxStatus, kind: &str) -> String {
        let found = status.conditions.iter().find(|c| c.type_ == kind).unwrap();
        format!("{} {}", found.status, found.reason)
    }

    #[test]
    fn containment_is_claimed_only_where_it_was_measured() {
        let pending = Step::NotCreated { until: at(60) };
        let starting = |reason| Step::Starting { reason, message: "m".into(), until: at(60) };
        let running = Step::Running { started: at(1), deadline: at(9), check: at(9) };
        let ended = |reason| Step::Finished(Box::new(Ending::by_us(reason, "m", Some(at(1)))));
        let never = |reason| Step::Finished(Box::new(Ending::by_us(reason, "m", None)));
        let (passed, failing) = (Some(measured(Some(1))), Some(measured(None)));
        for (step, containment, contained, egress) in [
            (pending.clone(), None, "False GatePending", "False GatePending"),
            (starting("PodStarting"), None, "False GatePending", "False GatePending"),
            (starting(NOT_CONTAINED), failing.clone(), "False NotContained", "False GatePending"),
            (running.clone(), passed.clone(), "True StartGatePassed", "True GatewayReady"),
            // Made by an operator that knew no gate.
            (running.clone(), None, "False NotMeasured", "False NotMeasured"),
            (ended("Completed"), passed.clone(), "True StartGatePassed", "False Finished"),
            (ended("Completed"), None, "False NotMeasured", "False Finished"),
            // A guard of the agent's own container could not be put up after the gate had passed.
            (ended(NOT_CONTAINED), passed.clone(), "False NotContained", "False Finished"),
            (never(NOT_CONTAINED), failing, "False NotContained", "False Finished"),
            (never("StartupTimeout"), None, "False NotStarted", "False Finished"),
        ] {
            let inputs = Inputs { containment, ..inputs(&step) };
            let status = next(&AgentSandboxStatus::default(), &inputs);
            assert_eq!(stand_of(&status, CONTAINED), contained, "{step:?}");
            assert_eq!(stand_of(&status, EGRESS_READY), egress, "{step:?}");
            assert_eq!(next(&status, &inputs), status, "{step:?}");
        }
        // Once measured it stays, also when the Pod is gone or the sidecar failed later.
        let first =
            next(&AgentSandboxStatus::default(), &Inputs { containment: passed.clone(), ..inputs(&running) });
        let gone = Step::Stopping { started: None, check: None };
        for containment in [None, Some(measured(None)), Some(measured(Some(4)))] {
            let later = next(&first, &Inputs { containment, ..inputs(&gone) });
            assert_eq!(later.containment, passed);
            assert_eq!(stand_of(&later, CONTAINED), "True StartGatePassed");
        }
    }

    #[test]
    fn a_missing_gateway_is_said_and_exceptions_are_shown() {
        let pending = Step::NotCreated { until: at(60) };
        let blocked = Some((GATEWAY_UNAVAILABLE, "not found yet"));
        let status = next(&AgentSandboxStatus::default(), &Inputs { blocked, ..inputs(&pending) });
        assert_eq!(
            (status.phase, status.reason.as_deref()),
            (Some(Phase::Pending), Some(GATEWAY_UNAVAILABLE))
        );
        assert_eq!(stand_of(&status, EGRESS_READY), "False GatewayUnavailable");
        assert_eq!(stand_of(&status, ACCEPTED), "True Valid");
        let running = Step::Running { started: at(1), deadline: at(9), check: at(9) };
        let inputs =
            Inputs { containment: Some(measured(Some(1))), exceptions: "203.0.113.0/24", ..inputs(&running) };
        let status = next(&AgentSandboxStatus::default(), &inputs);
        let message = &status.conditions.iter().find(|c| c.type_ == EGRESS_READY).unwrap().message;
        assert!(message.ends_with("203.0.113.0/24"), "{message}");
    }

    #[test]
    fn a_wide_rule_is_accepted_and_said() {
        let spec = serde_json::json!({
            "metadata": {"name": "x"},
            "spec": {"image": "x", "command": ["/x"], "network": {"egress": [{"host": "*.co.uk", "ports": [443]}]}},
        });
        let warnings = warnings(&serde_json::from_value(spec).unwrap());
        let pending = Step::NotCreated { until: at(60) };
        let status = next(&AgentSandboxStatus::default(), &Inputs { warnings, ..inputs(&pending) });
        assert_eq!(stand_of(&status, ACCEPTED), "True ValidWithWarnings");
        let message = &status.conditions.iter().find(|c| c.type_ == ACCEPTED).unwrap().message;
        assert!(message.contains("spec.network.egress[0].host: `*.co.uk` means every name"), "{message}");
    }

    #[test]
    fn the_numbers_of_the_sidecar_are_bounded() {
        let summary = EgressSummary {
            allowed: 3,
            denied: -1,
            bytes_out: 5,
            bytes_in: 6,
            last_denied: Some(format!("{}\u{7}", "x".repeat(999))),
        };
        let shown = egress(&summary);
        assert_eq!((shown.allowed, shown.denied, shown.bytes_out, shown.bytes_in), (3, 0, 5, 6));
        assert_eq!(shown.last_denied, Some("x".repeat(LAST_DENIED)));
        assert_eq!(egress(&EgressSummary::default()), EgressStatus::default());
    }
}
