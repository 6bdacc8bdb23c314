//! Where a sandbox is in its life: a pure function of what was seen and the time.
use std::collections::BTreeSet;
use std::time::Duration;

use k8s_openapi::api::core::v1::ContainerStatus;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::ending::{Ending, classify_end};
use super::gate::{self, NOT_CONTAINED};
use super::pod::SlimPod;
use crate::api::v1alpha1::{GoDuration, Mount};
use crate::init::config::KILL_PATIENCE;

/// Time that an unreachable node has before its sandboxes count as lost.
pub const NODE_PATIENCE: Duration = Duration::from_secs(40);
/// Time that the controller leaves to `sandbox-init`, which knows the deadline better.
const SLACK: Duration = Duration::from_secs(1);
/// Time that a node has to set up a Pod's volumes before they are suspected.
const SETTING_UP: Duration = Duration::from_secs(20);

/// Reason of a Pod of which nothing more is known than that it starts.
const STARTING: &str = "PodStarting";

/// What is known of a sandbox that has not finished.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// Creation of the AgentSandbox, or when its spec was accepted where that was later.
    pub created: Timestamp,
    /// The spec's mounts, of which one may be what a Pod waits for.
    pub mounts: &'a [Mount],
    /// Time from there to the start of the agent.
    pub startup_timeout: Duration,
    /// Time of the agent from its start.
    pub timeout: Duration,
    /// Time between SIGTERM and SIGKILL.
    pub grace: Duration,
    /// Whether status says that a Pod was made: without one it was deleted then.
    pub pod_expected: bool,
    /// Start of the agent as status has it, for when the Pod is gone.
    pub started: Option<Timestamp>,
    /// The sandbox's Pod.
    pub pod: Option<&'a SlimPod>,
    /// Why the policy cannot be held up any more.
    pub policy_lost: Option<&'a str>,
    /// Since when the Pod's node does not answer.
    pub node_lost_since: Option<Timestamp>,
    /// `activeDeadlineSeconds` that a Pod would be planned with now: less than the Pod's own where `timeout` was
    /// lowered.
    pub planned_deadline_seconds: i64,
    /// The time.
    pub now: Timestamp,
}

/// Where a sandbox is in its life.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// No Pod was made.
    NotCreated {
        /// When it is too late.
        until: Timestamp,
    },
    /// The Pod exists, the agent's process has not started.
    Starting {
        /// What it waits for, in one word.
        reason: &'static str,
        /// What it waits for, for a person.
        message: String,
        /// When it is too late.
        until: Timestamp,
    },
    /// The agent runs.
    Running {
        /// Since when.
        started: Timestamp,
        /// Until when it may.
        deadline: Timestamp,
        /// When to look again.
        check: Timestamp,
    },
    /// The Pod is being deleted and has not ended.
    Stopping {
        /// Start of the agent, if it did start.
        started: Option<Timestamp>,
        /// When its node counts as lost, if it does not answer.
        check: Option<Timestamp>,
    },
    /// It ended, or has to end now.
    Finished(Box<Ending>),
}

impl Step {
    /// When the step is to be looked at again though nothing changed.
    pub fn check(&self) -> Option<Timestamp> {
        match self {
            Self::NotCreated { until } | Self::Starting { until, .. } => Some(*until),
            Self::Running { check, .. } => Some(*check),
            Self::Stopping { check, .. } => *check,
            Self::Finished(_) => None,
        }
    }
}

/// Where the sandbox is.
pub fn step(facts: &Facts<'_>) -> Step {
    let Some(pod) = facts.pod else { return without_pod(facts) };
    let started = started(pod).or(facts.started);
    let by_us = |reason, message: &str| finished(Ending::by_us(reason, message, started));
    // Before anything that the container says of its end.
    if let Some(message) = gate::foreign_peer(pod) {
        return by_us(NOT_CONTAINED, &message);
    }
    if let Some(ending) = classify_end(pod) {
        return finished(ending);
    }
    if let Some(message) = facts.policy_lost {
        return by_us("PolicyLost", message);
    }
    let lost = facts.node_lost_since.map(|since| after(since, NODE_PATIENCE));
    if lost.is_some_and(|lost| facts.now >= lost) {
        return by_us("NodeLost", "the node of the Pod no longer answers");
    }
    if pod.is_deleting() {
        return Step::Stopping { started, check: lost };
    }
    match started {
        Some(started) => running(facts, pod, started),
        None => starting(facts, pod),
    }
}

fn finished(ending: Ending) -> Step {
    Step::Finished(Box::new(ending))
}

fn without_pod(facts: &Facts<'_>) -> Step {
    let until = after(facts.created, facts.startup_timeout);
    let ended = |reason, message: &str| finished(Ending::by_us(reason, message, facts.started));
    if facts.pod_expected {
        ended("PodDeleted", "the Pod was deleted")
    } else if let Some(message) = facts.policy_lost {
        ended("PolicyLost", message)
    } else if facts.now >= until {
        ended("StartupTimeout", "the Pod could not be made in time")
    } else {
        Step::NotCreated { until }
    }
}

fn running(facts: &Facts<'_>, pod: &SlimPod, started: Timestamp) -> Step {
    let deadline = after(started, facts.timeout);
    let lowered = pod.spec.active_deadline_seconds.is_some_and(|own| facts.planned_deadline_seconds < own);
    // Where the timeout is the one that `sandbox-init` knows, its own report is worth waiting for: it comes after the
    // grace and after what the agent's processes take to die, which is long where they get little CPU.
    let patience = if lowered { SLACK } else { facts.grace + KILL_PATIENCE + SLACK + SLACK };
    let end = after(deadline, patience);
    if facts.now >= end {
        let message = format!("the timeout of {} passed", GoDuration::of(facts.timeout).as_str());
        return finished(Ending::by_us("DeadlineExceeded", &message, Some(started)));
    }
    let check = match facts.node_lost_since {
        Some(since) => end.min(after(since, NODE_PATIENCE)),
        None => end,
    };
    Step::Running { started, deadline, check }
}

/// When a sandbox's time to start begins. A spec that was refused at first has all of it from the edit that healed it; in
/// the pass that makes its Pod status does not say yet that it is accepted.
pub fn startup_begins(
    created: Timestamp,
    accepted: Option<&Condition>,
    pod: Option<&SlimPod>,
    now: Timestamp,
) -> Timestamp {
    match (accepted, pod) {
        (Some(c), _) if c.status == "True" => created.max(c.last_transition_time.0),
        (Some(_), Some(pod)) => {
            pod.metadata.creation_timestamp.as_ref().map_or(created, |t| created.max(t.0))
        }
        (Some(_), None) => now,
        (None, _) => created,
    }
}

fn starting(facts: &Facts<'_>, pod: &SlimPod) -> Step {
    let until = after(facts.created, facts.startup_timeout);
    let waiting = pod.containers().find_map(waiting);
    if let Some((Wait::Hopeless, message)) = waiting {
        return finished(Ending::by_us("ImagePullFailed", &message, None));
    }
    // The gate's word comes before the kubelet's, which knows only that the sidecar ended and is started again.
    let (reason, message) = match (gate::failure(pod), waiting) {
        (Some(failure), _) => (NOT_CONTAINED, failure.message),
        (None, Some((Wait::Named(reason), message))) => (reason, message),
        (None, _) => {
            unscheduled(pod).unwrap_or_else(|| (STARTING, "the Pod is being set up on its node".to_owned()))
        }
    };
    if facts.now >= until {
        let message = if reason == STARTING && hangs(facts.now, pod) { set_up(facts, pod) } else { message };
        let reason = match reason {
            NOT_CONTAINED => reason,
            // The kubelet was at it again just now; between two tries it would have said ImagePullBackOff.
            "ErrImagePull" => "ImagePullFailed",
            _ => "StartupTimeout",
        };
        return finished(Ending::by_us(reason, &message, None));
    }
    Step::Starting { reason, message, until }
}

/// Whether the node has had the Pod for a while and not begun with any container: before the first it sets up the
/// volumes of all.
fn hangs(now: Timestamp, pod: &SlimPod) -> bool {
    let bound = pod.condition("PodScheduled").filter(|c| c.status == "True");
    let since = bound.and_then(|c| c.last_transition_time.as_ref());
    let begun = |container: &ContainerStatus| {
        container.state.as_ref().is_some_and(|state| state.running.is_some() || state.terminated.is_some())
    };
    since.is_some_and(|since| now >= after(since.0, SETTING_UP)) && !pod.containers().any(begun)
}

/// What a Pod that hangs may wait for. The kubelet says it in events only, which are not read: so this names what to
/// look at. The list comes last, since a message is cut.
fn set_up(facts: &Facts<'_>, pod: &SlimPod) -> String {
    let mut message = format!(
        "the Pod was still being set up on its node after {} (kubectl get events -n {} --field-selector involvedObject.name={} says what it waited for)",
        GoDuration::of(facts.startup_timeout).as_str(),
        pod.metadata.namespace.as_deref().unwrap_or_default(),
        pod.metadata.name.as_deref().unwrap_or_default(),
    );
    let sources: BTreeSet<String> = facts.mounts.iter().filter_map(source).collect();
    if !sources.is_empty() {
        let sources: Vec<String> = sources.into_iter().collect();
        message.push_str(&format!("; does everything exist that it mounts: {}?", sources.join(", ")));
    }
    message
}

/// The object that a mount needs.
fn source(mount: &Mount) -> Option<String> {
    let of = |kind: &str, name: &String| format!("{kind} {name}");
    let claim = mount.persistent_volume_claim.as_ref().map(|s| of("persistentVolumeClaim", &s.claim_name));
    let secret = mount.secret.as_ref().map(|s| of("secret", &s.name));
    mount.config_map.as_ref().map(|s| of("configMap", &s.name)).or(secret).or(claim)
}

enum Wait {
    /// It will not get better.
    Hopeless,
    /// It may.
    Named(&'static str),
}

fn waiting(container: &ContainerStatus) -> Option<(Wait, String)> {
    let waiting = container.state.as_ref()?.waiting.as_ref()?;
    let reason = waiting.reason.as_deref()?;
    let detail = waiting.message.as_deref().unwrap_or("no further message");
    let message = bounded(&format!("container {}: {reason}: {detail}", container.name));
    let wait = match reason {
        "PodInitializing" | "ContainerCreating" => return None,
        "ImagePullBackOff" | "InvalidImageName" | "ErrImageNeverPull" | "ImageInspectError" => Wait::Hopeless,
        "ErrImagePull" | "RegistryUnavailable" => Wait::Named("ErrImagePull"),
        "CreateContainerConfigError" => Wait::Named("CreateContainerConfigError"),
        "CreateContainerError" => Wait::Named("CreateContainerError"),
        "RunContainerError" => Wait::Named("RunContainerError"),
        "CrashLoopBackOff" => Wait::Named("CrashLoopBackOff"),
        _ => Wait::Named("ContainerWaiting"),
    };
    Some((wait, message))
}

fn unscheduled(pod: &SlimPod) -> Option<(&'static str, String)> {
    let condition = pod.condition("PodScheduled").filter(|c| c.status == "False")?;
    let message = condition.message.as_deref().unwrap_or("no node takes the Pod");
    Some(("Unschedulable", bounded(message)))
}

/// Start of the agent's process, as the kubelet tells it.
pub fn started(pod: &SlimPod) -> Option<Timestamp> {
    let state = pod.agent()?.state.as_ref()?;
    let running = state.running.as_ref().and_then(|r| r.started_at.as_ref());
    running.or_else(|| state.terminated.as_ref()?.started_at.as_ref()).map(|time| time.0)
}

/// `time` and `duration` later; the end of time where that does not fit.
pub fn after(time: Timestamp, duration: Duration) -> Timestamp {
    SignedDuration::try_from(duration)
        .ok()
        .and_then(|duration| time.checked_add(duration).ok())
        .unwrap_or(Timestamp::MAX)
}

/// `text` cut to what a condition's message should hold.
pub fn bounded(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() || *c == ' ').take(512).collect()
}

#[cfg(test)]
#[path = "lifecycle_tests.rs"]
mod tests;
