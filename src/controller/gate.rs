//! What a sandbox's start gate found. The kubelet starts the agent only after the sidecar said that the gate passed; a
//! gate that does not pass ends the sidecar, and its last words say why. The agent cannot write them.
use k8s_openapi::api::core::v1::ContainerStateTerminated;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::Deserialize;

use super::conditions::second;
use super::lifecycle::{bounded, started};
use super::pod::SlimPod;
use crate::api::v1alpha1::{CheckResult, ContainmentCheck, ContainmentStatus};
use crate::plan::labels;

/// Reason of an ending, and of conditions, where the agent is not contained.
pub const NOT_CONTAINED: &str = "NotContained";

/// Name of the sidecar's container.
const SIDECAR: &str = "sidecar";
/// Exit code of a sidecar whose gate does not pass.
const EXIT_CODE: i32 = 78;
/// Bytes that a termination message may have; the kubelet cuts there.
const MESSAGE_LIMIT: usize = 4096;
/// Checks that a gate may have.
const CHECKS_LIMIT: usize = 16;

/// Why a gate does not pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// For a person.
    pub message: String,
    /// What was tried, and what came of it.
    pub checks: Vec<ContainmentCheck>,
}

/// The sidecar's last words.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LastWords {
    cause: String,
    message: String,
    #[serde(default)]
    checks: Vec<Check>,
}

#[derive(Deserialize)]
struct Check {
    name: String,
    result: CheckResult,
    #[serde(default)]
    detail: String,
}

/// Why the gate of `pod` did not pass the last time that it gave up; nothing once the agent started.
pub fn failure(pod: &SlimPod) -> Option<Failure> {
    if started(pod).is_some() {
        return None;
    }
    let sidecar = pod.status.init_container_statuses.iter().find(|c| c.name == SIDECAR)?;
    let states = [&sidecar.state, &sidecar.last_state];
    last_words(states.into_iter().flatten().find_map(|state| state.terminated.as_ref())?)
}

fn last_words(terminated: &ContainerStateTerminated) -> Option<Failure> {
    let text = terminated.message.as_deref().filter(|text| text.len() <= MESSAGE_LIMIT)?;
    let words: LastWords = serde_json::from_str(text).ok()?;
    let fits = terminated.exit_code == EXIT_CODE
        && words.cause == NOT_CONTAINED
        && words.checks.len() <= CHECKS_LIMIT
        && words.checks.iter().all(|check| is_word(&check.name));
    fits.then(|| Failure {
        message: bounded(&words.message),
        checks: words.checks.into_iter().map(check).collect(),
    })
}

fn check(Check { name, result, detail }: Check) -> ContainmentCheck {
    let detail: String = bounded(&detail).chars().take(256).collect();
    ContainmentCheck { name, result, detail: Some(detail).filter(|text| !text.is_empty()) }
}

fn is_word(text: &str) -> bool {
    (1..=32).contains(&text.len()) && text.chars().all(|c| c.is_ascii_alphanumeric())
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
        let checks = targets.split(',').filter_map(closed).take(CHECKS_LIMIT).collect();
        return Some(ContainmentStatus {
            verified_at: Some(Time(second(at.min(started)))),
            policy_digest,
            checks,
        });
    }
    let Failure { checks, .. } = failure(pod)?;
    Some(ContainmentStatus { verified_at: None, policy_digest, checks })
}

/// A target of the annotation: the gate passes only where every one of them was found closed.
fn closed(target: &str) -> Option<ContainmentCheck> {
    let (name, address) = target.split_once('=').unwrap_or((target, ""));
    let detail = bounded(address);
    is_word(name).then(|| ContainmentCheck {
        name: name.to_owned(),
        result: CheckResult::Closed,
        detail: Some(detail).filter(|text| !text.is_empty()),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const WORDS: &str = r#"{"cause":"NotContained","message":"canary 10.1.2.3:8444 is reachable from the Pod",
        "checks":[{"name":"Canary","result":"Open","detail":"10.1.2.3:8444"},{"name":"ClusterDns","result":"Closed"}]}"#;

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
                "agentsandbox.dev/start-gate": "Canary,ApiServer=10.96.0.1:443,Metadata=169.254.169.254:80",
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
                {"name": "Canary", "result": "Open", "detail": "10.1.2.3:8444"}, {"name": "ClusterDns", "result": "Closed"},
            ])
        );
    }

    #[test]
    fn last_words_of_another_form_are_not_read() {
        let many = json!({"cause": "NotContained", "message": "m",
            "checks": vec![json!({"name": "A", "result": "Open"}); 17]});
        for (code, text) in [
            (0, WORDS),
            (78, ""),
            (78, "not JSON"),
            (78, r#"{"cause":"Other","message":"m"}"#),
            (78, r#"{"cause":"NotContained"}"#),
            (78, r#"{"cause":"NotContained","message":"m","checks":[{"name":"A B","result":"Open"}]}"#),
            (78, r#"{"cause":"NotContained","message":"m","checks":[{"name":"A","result":"Perhaps"}]}"#),
            (78, &many.to_string()),
            (78, &format!(r#"{{"cause":"NotContained","message":"{}"}}"#, "m".repeat(4096))),
        ] {
            assert_eq!(failure(&pod(&ended(code, text), &json!({}), &json!({}))), None, "{text}");
        }
        let long = format!(r#"{{"cause":"NotContained","message":"{}\u001b"}}"#, "m".repeat(4000));
        let found = failure(&pod(&ended(78, &long), &json!({}), &json!({}))).unwrap();
        assert_eq!(found.message, "m".repeat(512));
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
                {"name": "Metadata", "result": "Closed", "detail": "169.254.169.254:80"},
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
