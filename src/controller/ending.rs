//! How a sandbox ended. The agent may write its container's termination message, so nothing in it is believed that
//! contradicts what the kubelet saw.
use k8s_openapi::api::core::v1::ContainerStateTerminated;
use k8s_openapi::jiff::Timestamp;

use super::gate::{self, NOT_CONTAINED};
use super::lifecycle::bounded;
use super::pod::SlimPod;
use crate::api::v1alpha1::{Outcome, Usage};
use crate::init::report::{Cause, REPORT_VERSION, TerminationReport};

/// Bytes that a termination message may have; the kubelet cuts there.
const MESSAGE_LIMIT: usize = 4096;

/// In place of words of `sandbox-init` that cannot be told from the agent's.
const IN_THE_LOG: &str = "the agent's container says why in its log";

/// How a sandbox ended, or why it has to end.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ending {
    /// For status.
    pub outcome: Outcome,
    /// Start of the agent, if it did start.
    pub started: Option<Timestamp>,
    /// When it ended, where the kubelet tells.
    pub finished: Option<Timestamp>,
    /// What `sandbox-init` reported, where it can be believed.
    pub report: Option<TerminationReport>,
}

impl Ending {
    /// An ending that the controller decides.
    pub fn by_us(reason: &str, message: &str, started: Option<Timestamp>) -> Self {
        let outcome =
            Outcome { reason: reason.to_owned(), message: Some(bounded(message)), ..Outcome::default() };
        Self { outcome, started, ..Self::default() }
    }
}

/// How `pod` ended, if it did.
pub fn classify_end(pod: &SlimPod) -> Option<Ending> {
    let terminated =
        pod.agent().and_then(|agent| agent.state.as_ref()).and_then(|state| state.terminated.as_ref());
    if terminated.is_none() && !pod.is_terminal() {
        return None;
    }
    let told = terminated.and_then(report_of);
    // Under another runtime the container's first process may not be out of the agent's reach: what it says of itself
    // may be the agent's word.
    let trusted = pod.spec.runtime_class_name.is_none();
    let report = if trusted { told } else { told.as_ref().map(confirmed) };
    let started = terminated.and_then(|t| t.started_at.as_ref()).map(|t| t.0);
    let finished = terminated.and_then(|t| t.finished_at.as_ref()).map(|t| t.0);
    let (reason, message) = by_pod(pod, started.is_some())
        .or_else(|| terminated.map(|t| by_container(pod, t, report.as_ref())))
        .unwrap_or_else(|| without_agent(pod));
    let code = terminated.map(|t| t.exit_code);
    let outcome = Outcome {
        reason: reason.to_owned(),
        exit_code: report.as_ref().and_then(|r| r.exit_code).or(code.filter(|_| report.is_none())),
        signal: report.as_ref().and_then(|r| r.signal).or(terminated.and_then(|t| t.signal)),
        message: Some(bounded(&message)).filter(|m| !m.is_empty()),
        usage: report.as_ref().filter(|_| trusted).map(usage),
    };
    Some(Ending { outcome, started, finished, report: report.filter(|_| trusted) })
}

/// What the kubelet says about the whole Pod comes first: it is the cause of what happened to the container.
fn by_pod(pod: &SlimPod, started: bool) -> Option<(&'static str, String)> {
    let message = pod.status.message.clone().unwrap_or_default();
    let disruption = pod.condition("DisruptionTarget").filter(|c| c.status == "True");
    match pod.status.reason.as_deref() {
        Some("Evicted") => {
            let disk = ["ephemeral", "emptydir"].iter().any(|word| message.to_lowercase().contains(word));
            Some((if disk { "DiskLimitExceeded" } else { "Evicted" }, message))
        }
        Some("DeadlineExceeded") if started => Some(("DeadlineExceeded", message)),
        Some("DeadlineExceeded") => Some(not_contained(pod).unwrap_or(("StartupTimeout", message))),
        Some("NodeLost") => Some(("NodeLost", message)),
        Some("NodeShutdown" | "Terminated" | "Preempting") => Some(("Evicted", message)),
        _ => {
            let disruption = disruption?;
            let message = disruption.message.clone().unwrap_or_default();
            match disruption.reason.as_deref() {
                Some("DeletionByTaintManager" | "DeletionByPodGC") => Some(("NodeLost", message)),
                _ => Some(("Evicted", message)),
            }
        }
    }
}

fn by_container(
    pod: &SlimPod,
    terminated: &ContainerStateTerminated,
    report: Option<&TerminationReport>,
) -> (&'static str, String) {
    let code = terminated.exit_code;
    let said = || report.map(|r| r.message.clone()).unwrap_or_default();
    let said_or = |text: String| Some(said()).filter(|said| !said.is_empty()).unwrap_or(text);
    let exited = format!("the agent ended with exit code {code}");
    match terminated.reason.as_deref() {
        Some("OOMKilled") => {
            return ("OutOfMemory", "the agent used more memory than resources.memory allows".to_owned());
        }
        Some("StartError" | "ContainerCannotRun") => {
            return ("InvalidCommand", terminated.message.clone().unwrap_or_default());
        }
        Some("ContainerStatusUnknown") => {
            return ("NodeLost", "the node lost sight of the container".to_owned());
        }
        _ => {}
    }
    match report.map(|r| r.cause) {
        Some(Cause::DeadlineExceeded) => ("DeadlineExceeded", said()),
        Some(Cause::InvalidCommand) => ("InvalidCommand", said_or(IN_THE_LOG.to_owned())),
        Some(Cause::NotContained) => (NOT_CONTAINED, said_or(IN_THE_LOG.to_owned())),
        Some(Cause::OutOfMemory) => ("OutOfMemory", said()),
        Some(Cause::AuditLost) => ("AuditLost", said()),
        Some(Cause::Terminated) => ("PodDeleted", said()),
        Some(Cause::Signaled) => {
            let signal = report.and_then(|r| r.signal).unwrap_or_default();
            ("AgentFailed", said_or(format!("the agent was ended by signal {signal}")))
        }
        Some(Cause::Exited) | None if code == 0 => ("Completed", said_or(exited)),
        None if pod.is_deleting() => ("PodDeleted", "the Pod was deleted".to_owned()),
        Some(Cause::Exited) | None => ("AgentFailed", said_or(exited)),
    }
}

/// The Pod failed and its agent has no state: an init container failed, or the kubelet refused the Pod.
fn without_agent(pod: &SlimPod) -> (&'static str, String) {
    if let Some(ending) = not_contained(pod) {
        return ending;
    }
    let failed = pod.status.init_container_statuses.iter().find_map(|container| {
        let terminated = container.state.as_ref()?.terminated.as_ref()?;
        (terminated.exit_code != 0).then(|| (container.name.clone(), terminated.exit_code))
    });
    if let Some((name, code)) = failed {
        return (NOT_CONTAINED, format!("container {name} failed with exit code {code}"));
    }
    let reason = pod.status.reason.as_deref().unwrap_or("Failed");
    let message = pod.status.message.as_deref().unwrap_or("the node refused the Pod");
    ("AdmissionDenied", format!("{reason}: {message}"))
}

/// The agent never started because the start gate did not pass.
fn not_contained(pod: &SlimPod) -> Option<(&'static str, String)> {
    Some((NOT_CONTAINED, gate::failure(pod)?.message))
}

/// The report, if it is one and agrees with the exit code that the kubelet saw. What the kernel ended for want of memory
/// reported nothing: then the message is somebody else's.
fn report_of(terminated: &ContainerStateTerminated) -> Option<TerminationReport> {
    if terminated.reason.as_deref() == Some("OOMKilled") {
        return None;
    }
    let text = terminated.message.as_deref().filter(|text| text.len() <= MESSAGE_LIMIT)?;
    let report: TerminationReport = serde_json::from_str(text).ok()?;
    let agrees = report.container_exit_code() == terminated.exit_code;
    (report.version == REPORT_VERSION && agrees).then_some(report)
}

/// Of a report only what its container's exit code says as well.
fn confirmed(report: &TerminationReport) -> TerminationReport {
    let TerminationReport { cause, exit_code, signal, .. } = *report;
    TerminationReport {
        cause,
        exit_code: exit_code.filter(|_| cause == Cause::Exited),
        signal: signal.filter(|_| cause == Cause::Signaled && exit_code.is_none()),
        ..TerminationReport::default()
    }
}

fn usage(report: &TerminationReport) -> Usage {
    Usage {
        wall_milliseconds: Some(report.wall_ms.max(0)),
        cpu_milliseconds: Some(report.cpu_ms.max(0)),
        peak_memory_bytes: report.peak_memory_bytes.map(|b| b.max(0)),
        processes: Some(report.processes.max(0)),
    }
}
