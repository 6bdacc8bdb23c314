//! What a sandbox's start gate found. The kubelet starts the agent only after the sidecar said that the gate passed; a
//! gate that does not pass ends the sidecar, and its last words say why. The agent cannot write them.
use k8s_openapi::api::core::v1::ContainerStateTerminated;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::conditions::second;
use super::lifecycle::{bounded, started};
use super::pod::SlimPod;
use crate::api::v1alpha1::{CheckResult, ContainmentCheck, ContainmentStatus};
use crate::egress::containment::{self, GateCause, GateCheck, MAX_DETAIL, NOT_CONTAINED_CODE, NotContained};
use crate::plan::labels;

/// Reason of an ending, and of conditions, where the agent is not contained.
pub const NOT_CONTAINED: &str = "NotContained";

/// Name of the sidecar's container.
const SIDECAR: &str = "sidecar";
/// Bytes that a termination message may have; the kubelet cuts there.
const MESSAGE_LIMIT: usize = 4096;
/// Checks that status shows.
const CHECKS_LIMIT: usize = 16;

/// Why a gate does not pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// For a person.
    pub message: String,
    /// What was tried, and what came of it.
    pub checks: Vec<ContainmentCheck>,
}

/// Why the gate of `pod` did not pass the last time that it gave up; nothing once the agent started.
pub fn failure(pod: &SlimPod) -> Option<Failure> {
    if started(pod).is_some() {
        return None;
    }
    let sidecar = pod.status.init_container_statuses.iter().find(|c| c.name == SIDECAR)?;
    let states = [&sidecar.state, &sidecar.last_state];
    let (cause, failure) =
        last_words(states.into_iter().flatten().find_map(|state| state.terminated.as_ref())?)?;
    (cause == GateCause::NotContained).then_some(failure)
}

/// What the sidecar of `pod` said of a first process of the agent's that is not `sandbox-init`. It holds whatever
/// that process says of itself, and for good: a sidecar that was started again says it again.
pub fn foreign_peer(pod: &SlimPod) -> Option<String> {
    let sidecar = pod.status.init_container_statuses.iter().find(|c| c.name == SIDECAR)?;
    let states = [&sidecar.state, &sidecar.last_state];
    let mut words = states.into_iter().flatten().filter_map(|s| s.terminated.as_ref()).filter_map(last_words);
    words.find(|(cause, _)| *cause == GateCause::ForeignPeer).map(|(_, failure)| failure.message)
}

/// The words, if they are some and agree with the exit code that the kubelet saw.
fn last_words(terminated: &ContainerStateTerminated) -> Option<(GateCause, Failure)> {
    let text = terminated.message.as_deref().filter(|text| text.len() <= MESSAGE_LIMIT)?;
    let words: NotContained = serde_json::from_str(text).ok()?;
    let NotContained { cause, message, checks } = words;
    let checks = checks.into_iter().take(CHECKS_LIMIT).map(check).collect();
    let failure = Failure { message: bounded(&message), checks };
    (terminated.exit_code == i32::from(NOT_CONTAINED_CODE)).then_some((cause, failure))
}

fn check(GateCheck { name, result, detail }: GateCheck) -> ContainmentCheck {
    let detail: String = bounded(&detail).chars().take(MAX_DETAIL).collect();
    ContainmentCheck {
        name: format!("{name:?}"),
        result: match result {
            containment::CheckResult::Open => CheckResult::Open,
            containment::CheckResult::Closed => CheckResult::Closed,
            containment::CheckResult::Inconclusive => CheckResult::Inconclusive,
            containment::CheckResult::Confirmed => CheckResult::Confirmed,
        },
        detail: Some(detail).filter(|text| !text.is_empty()),
    }
}

/// What is known of the containment of `pod`: of a gate that passed, when and what it measured; of one that does not,
/// what stands in its way.
pub fn containment(pod: &SlimPod) -> Option<ContainmentStatus> {
    let annotation = |name| pod.metadata.annotations.as_ref()?.get(name).cloned();
    let targets = annotation(labels::START_GATE)?;
    let policy_digest = annotation(labels::POLICY_DIGEST);
    if let Some(started) = started(pod) {
        // The kubelet says so when the last container before the agent's is ready: the gate has just passed.
        let initialized = pod.condition("Initialized").filter(|c| c.status == "True");
        let at = initialized.and_then(|c| c.last_transition_time.as_ref()).map_or(started, |time| time.0);
        let checks = targets.split(',').filter_map(held).take(CHECKS_LIMIT).collect();
        return Some(ContainmentStatus {
            verified_at: Some(Time(second(at.min(started)))),
            policy_digest,
            checks,
        });
    }
    let Failure { checks, .. } = failure(pod)?;
    Some(ContainmentStatus { verified_at: None, policy_digest, checks })
}

/// A target of the annotation: the gate passes only where every one of them was found closed, and the gateway confirmed
/// the policy.
fn held(target: &str) -> Option<ContainmentCheck> {
    let (name, address) = target.split_once('=').unwrap_or((target, ""));
    let word = (1..=32).contains(&name.len()) && name.chars().all(|c| c.is_ascii_alphanumeric());
    let result = if name == "Gateway" { CheckResult::Confirmed } else { CheckResult::Closed };
    let detail: String = bounded(address).chars().take(MAX_DETAIL).collect();
    word.then(|| ContainmentCheck {
        name: name.to_owned(),
        result,
        detail: Some(detail).filter(|text| !text.is_empty()),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const WORDS: &str = r#"{"cause":"NotContained","message":"canary 10.1.2.3:8444 is reachable from the Pod",
        "checks":[{"name":"Canary","result":"Open","detail":"10.1.2.3:8444"},
        {"name":"ClusterDnsUdp","result":"Closed","detail":""}]}"#;

    fn ended(code: i32, message: &str) -> Value {
        json!({"terminated": {"exitCode": code, "message": message}})
    }

    fn pod(state: &Value, last: &Value, agent: &Value) -> SlimPod {
        let container = |name: &str, state: &Value, last: &Value| {
            json!({"name": name, "image": "i", "imageID": "", "ready": false, "restartCount": 1,
                "state": state, "lastState": last})
        };
        serde_json::from_value(json!({
            "metadata": {"name": "p", "annotations": {
                "agentsandbox.dev/policy-digest": "sha256:d",
                "agentsandbox.dev/start-gate": "Canary,ApiServer=10.96.0.1:443,Gateway=10.96.0.20:8443",
            }},
            "status": {
                "conditions": [{"type": "Initialized", "status": "True", "lastTransitionTime": "2027-01-01T00:00:05Z"}],
                "initContainerStatuses": [container("install", &json!({}), &json!({})), container("sidecar", state, last)],
                "containerStatuses": [container("agent", agent, &json!({}))],
            },
        }))
        .unwrap()
    }

    #[test]
    fn the_last_end_of_the_sidecar_tells_why_the_gate_does_not_pass() {
        let (none, waiting) = (json!({}), json!({"waiting": {"reason": "CrashLoopBackOff"}}));
        let running = json!({"running": {"startedAt": "2027-01-01T00:00:06Z"}});
        let fails = |pod: &SlimPod| failure(pod).map(|f| f.message);
        let want = Some("canary 10.1.2.3:8444 is reachable from the Pod".to_owned());
        assert_eq!(fails(&pod(&ended(78, WORDS), &none, &none)), want);
        assert_eq!(fails(&pod(&waiting, &ended(78, WORDS), &waiting)), want);
        assert_eq!(fails(&pod(&running, &ended(78, WORDS), &waiting)), want);
        // It ended otherwise since, it never ended, or the agent runs.
        assert_eq!(fails(&pod(&ended(101, "panic"), &ended(78, WORDS), &none)), None);
        assert_eq!(fails(&pod(&running, &none, &none)), None);
        assert_eq!(fails(&pod(&running, &ended(78, WORDS), &running)), None);
        let found = failure(&pod(&ended(78, WORDS), &none, &none)).unwrap().checks;
        assert_eq!(
            serde_json::to_value(found).unwrap(),
            json!([
                {"name": "Canary", "result": "Open", "detail": "10.1.2.3:8444"}, {"name": "ClusterDnsUdp", "result": "Closed"},
            ])
        );
    }

    #[test]
    fn last_words_of_another_form_are_not_read() {
        let words =
            |checks: Value| json!({"cause": "NotContained", "message": "m", "checks": checks}).to_string();
        let check = |name: &str, result: &str| json!([{"name": name, "result": result, "detail": "d"}]);
        for (code, text) in [
            (0, WORDS),
            (1, WORDS),
            (78, ""),
            (78, "not JSON"),
            (78, r#"{"cause":"Other","message":"m","checks":[]}"#),
            (78, r#"{"cause":"NotContained","checks":[]}"#),
            (78, &words(check("Another", "Open"))),
            (78, &words(check("Canary", "Perhaps"))),
            (78, &format!(r#"{{"cause":"NotContained","message":"{}","checks":[]}}"#, "m".repeat(4096))),
        ] {
            assert_eq!(failure(&pod(&ended(code, text), &json!({}), &json!({}))), None, "{text}");
        }
        let long =
            format!(r#"{{"cause":"NotContained","message":"{}\u001b","checks":[]}}"#, "m".repeat(3900));
        let found = failure(&pod(&ended(78, &long), &json!({}), &json!({}))).unwrap();
        assert_eq!(found.message, "m".repeat(512));
        let many = words(vec![json!({"name": "Canary", "result": "Open", "detail": ""}); 50].into());
        assert_eq!(
            failure(&pod(&ended(78, &many), &json!({}), &json!({}))).unwrap().checks.len(),
            CHECKS_LIMIT
        );
    }

    #[test]
    fn a_gate_that_passed_is_told_with_its_time_and_targets() {
        let running = json!({"running": {"startedAt": "2027-01-01T00:00:06Z"}});
        let passed = pod(&running, &json!({}), &running);
        assert_eq!(
            serde_json::to_value(containment(&passed).unwrap()).unwrap(),
            json!({"verifiedAt": "2027-01-01T00:00:05Z", "policyDigest": "sha256:d", "checks": [
                {"name": "Canary", "result": "Closed"},
                {"name": "ApiServer", "result": "Closed", "detail": "10.96.0.1:443"},
                {"name": "Gateway", "result": "Confirmed", "detail": "10.96.0.20:8443"},
            ]})
        );
        let failing = containment(&pod(&ended(78, WORDS), &json!({}), &json!({}))).unwrap();
        assert_eq!((failing.verified_at, failing.checks.len()), (None, 2));
        assert_eq!(containment(&pod(&running, &json!({}), &json!({}))), None);
        // A Pod that was made without a gate measured nothing.
        let mut ungated = passed;
        ungated.metadata.annotations = None;
        assert_eq!(containment(&ungated), None);
    }
}
