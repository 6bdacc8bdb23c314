use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

use super::*;

#[allow(clippy::needless_pass_by_value, reason = "the calls read better")]
fn pod(status: Value) -> SlimPod {
    serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "n", "uid": "u"},
        "spec": {"nodeName": "node", "activeDeadlineSeconds": 700},
        "status": status,
    }))
    .unwrap()
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

fn facts(pod: Option<&SlimPod>, now: i64) -> Facts<'_> {
    Facts {
        created: at(0),
        mounts: &[],
        startup_timeout: Duration::from_secs(60),
        timeout: Duration::from_secs(600),
        grace: Duration::from_secs(10),
        pod_expected: pod.is_some(),
        started: None,
        pod,
        policy_lost: None,
        node_lost_since: None,
        planned_deadline_seconds: 700,
        now: at(now),
    }
}

fn running() -> Value {
    json!({"phase": "Running", "containerStatuses": [agent(&json!({"running": {"startedAt": at(10).to_string()}}))]})
}

fn agent(state: &Value) -> Value {
    json!({"name": "agent", "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": state})
}

fn ended(code: i32, reason: &str, message: &str) -> Value {
    let state = json!({"terminated": {"exitCode": code, "reason": reason, "message": message,
        "startedAt": at(10).to_string(), "finishedAt": at(20).to_string()}});
    json!({"phase": "Failed", "containerStatuses": [agent(&state)]})
}

fn report(cause: &str, code: Option<i32>, signal: Option<i32>) -> String {
    json!({"version": 1, "cause": cause, "exitCode": code, "signal": signal, "wallMs": 5, "cpuMs": 4, "processes": 3,
        "landlockAbi": 6, "userNamespace": true, "records": 9})
    .to_string()
}

fn reason_of(step: Step) -> String {
    match step {
        Step::Finished(ending) => ending.outcome.reason,
        Step::Starting { reason, .. } => format!("starting {reason}"),
        Step::NotCreated { .. } => "not created".into(),
        Step::Running { .. } => "running".into(),
        Step::Stopping { .. } => "stopping".into(),
    }
}

fn with(mut status: Value, key: &str, value: Value) -> Value {
    status[key] = value;
    status
}

#[test]
fn every_ending_has_its_reason() {
    let waiting = |reason: &str| json!({"phase": "Pending", "containerStatuses": [agent(&json!({"waiting": {"reason": reason, "message": "m"}}))]});
    let disruption = |reason: &str| json!([{"type": "DisruptionTarget", "status": "True", "reason": reason}]);
    for (status, want) in [
        (json!({"phase": "Pending"}), "starting PodStarting"),
        (waiting("ContainerCreating"), "starting PodStarting"),
        (waiting("ErrImagePull"), "starting ErrImagePull"),
        (waiting("ImagePullBackOff"), "ImagePullFailed"),
        (waiting("InvalidImageName"), "ImagePullFailed"),
        (waiting("CreateContainerConfigError"), "starting CreateContainerConfigError"),
        (
            json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]}),
            "starting Unschedulable",
        ),
        (running(), "running"),
        (ended(0, "Completed", ""), "Completed"),
        (ended(3, "Error", ""), "AgentFailed"),
        (ended(0, "Completed", &report("Exited", Some(0), None)), "Completed"),
        (ended(3, "Error", &report("Exited", Some(3), None)), "AgentFailed"),
        (ended(139, "Error", &report("Signaled", None, Some(11))), "AgentFailed"),
        (ended(124, "Error", &report("DeadlineExceeded", None, Some(15))), "DeadlineExceeded"),
        (ended(125, "Error", &report("NotContained", None, None)), "NotContained"),
        (ended(127, "Error", &report("InvalidCommand", None, None)), "InvalidCommand"),
        (ended(137, "Error", &report("OutOfMemory", None, Some(9))), "OutOfMemory"),
        (ended(125, "Error", &report("AuditLost", None, None)), "AuditLost"),
        (ended(143, "Error", &report("Terminated", None, Some(15))), "PodDeleted"),
        (ended(137, "OOMKilled", ""), "OutOfMemory"),
        (ended(128, "StartError", "no such file"), "InvalidCommand"),
        (ended(137, "ContainerStatusUnknown", ""), "NodeLost"),
        // A message that contradicts the kubelet is the agent's own and is not believed.
        (ended(3, "Error", &report("Exited", Some(0), None)), "AgentFailed"),
        (ended(0, "Completed", &report("NotContained", None, None)), "Completed"),
        (ended(0, "Completed", &report("DeadlineExceeded", None, Some(15))), "Completed"),
        (ended(137, "Error", &report("Terminated", None, Some(9))), "AgentFailed"),
        (ended(1, "Error", &report("AuditLost", None, None)), "AgentFailed"),
        (ended(3, "Error", &report("InvalidCommand", None, None)), "AgentFailed"),
        (ended(137, "Error", &report("Signaled", None, Some(i32::MAX))), "AgentFailed"),
        (ended(137, "OOMKilled", &report("Signaled", None, Some(9))), "OutOfMemory"),
        (ended(3, "Error", &"{".repeat(5000)), "AgentFailed"),
        (with(ended(137, "Error", ""), "reason", json!("Evicted")), "Evicted"),
        (
            with(
                json!({"phase": "Failed", "reason": "Evicted"}),
                "message",
                json!("Usage of EmptyDir volume \"mount-0\" exceeds the limit"),
            ),
            "DiskLimitExceeded",
        ),
        (json!({"phase": "Failed", "reason": "DeadlineExceeded"}), "StartupTimeout"),
        (with(ended(137, "Error", ""), "reason", json!("DeadlineExceeded")), "DeadlineExceeded"),
        (with(ended(137, "Error", ""), "conditions", disruption("EvictionByEvictionAPI")), "Evicted"),
        (with(ended(137, "Error", ""), "conditions", disruption("DeletionByTaintManager")), "NodeLost"),
        (json!({"phase": "Failed", "reason": "NodeAffinity"}), "AdmissionDenied"),
    ] {
        let pod = pod(status.clone());
        assert_eq!(reason_of(step(&facts(Some(&pod), 30))), want, "{status}");
    }
}

#[test]
fn a_believed_report_fills_outcome_and_usage() {
    let pod = pod(ended(3, "Error", &report("Exited", Some(3), None)));
    let Step::Finished(ending) = step(&facts(Some(&pod), 30)) else { panic!() };
    assert_eq!(ending.outcome.exit_code, Some(3));
    assert_eq!(ending.outcome.usage.unwrap().cpu_milliseconds, Some(4));
    assert_eq!((ending.started, ending.finished), (Some(at(10)), Some(at(20))));
    assert_eq!(ending.report.unwrap().landlock_abi, 6);
}

#[test]
fn under_a_runtime_class_only_what_the_kubelet_confirms_is_taken() {
    let of = |status: Value| {
        let mut pod = pod(status);
        pod.spec.runtime_class_name = Some("gvisor".into());
        let Step::Finished(ending) = step(&facts(Some(&pod), 30)) else { panic!() };
        (ending.outcome, ending.report)
    };
    let said = |cause: &str, code, signal| {
        let mut report: Value = serde_json::from_str(&report(cause, code, signal)).unwrap();
        report["message"] = json!("the agent's own words");
        report.to_string()
    };
    let reason = |outcome: &crate::api::v1alpha1::Outcome| outcome.reason.clone();
    let (outcome, report) = of(ended(124, "Error", &said("DeadlineExceeded", Some(0), None)));
    assert_eq!(
        (reason(&outcome).as_str(), outcome.exit_code, outcome.usage),
        ("DeadlineExceeded", None, None)
    );
    assert_eq!((outcome.message, report), (None, None));
    // Where nothing of the report can be shown, it is in the log.
    for (code, cause) in [(125, "NotContained"), (127, "InvalidCommand")] {
        let (outcome, _) = of(ended(code, "Error", &said(cause, None, None)));
        assert_eq!(reason(&outcome), cause);
        assert!(outcome.message.is_some_and(|message| message.contains("in its log")));
    }
    let (outcome, _) = of(ended(139, "Error", &said("Signaled", None, Some(11))));
    assert_eq!((reason(&outcome).as_str(), outcome.signal), ("AgentFailed", Some(11)));
    let (outcome, report) = of(ended(3, "Error", &said("Exited", Some(3), None)));
    assert_eq!((reason(&outcome).as_str(), outcome.exit_code, report), ("AgentFailed", Some(3), None));
    let (outcome, _) = of(ended(137, "Error", &said("Terminated", None, None)));
    assert_eq!((reason(&outcome).as_str(), outcome.exit_code), ("AgentFailed", Some(137)));
}

#[test]
fn a_report_of_a_container_that_the_kernel_ended_is_dropped() {
    let pod = pod(ended(137, "OOMKilled", &report("OutOfMemory", None, Some(9))));
    let Step::Finished(ending) = step(&facts(Some(&pod), 30)) else { panic!() };
    assert_eq!((ending.outcome.exit_code, ending.outcome.usage, ending.report), (Some(137), None, None));
}

#[test]
fn an_end_has_words_where_the_report_has_none() {
    let said = |status: Value| {
        let pod = pod(status);
        let Step::Finished(ending) = step(&facts(Some(&pod), 30)) else { panic!() };
        ending.outcome.message.unwrap_or_default()
    };
    let exited = |code: i32| ended(code, "Error", &report("Exited", Some(code), None));
    assert_eq!(said(exited(0)), "the agent ended with exit code 0");
    assert_eq!(said(exited(3)), "the agent ended with exit code 3");
    assert_eq!(said(ended(0, "Completed", "")), "the agent ended with exit code 0");
    let killed = ended(139, "Error", &report("Signaled", None, Some(11)));
    assert_eq!(said(killed), "the agent was ended by signal 11");
}

#[test]
fn a_pod_that_hangs_before_its_first_container_is_told_with_what_it_mounts() {
    let mounts: Vec<Mount> = serde_json::from_value(json!([
        {"path": "/a", "configMap": {"name": "nope"}}, {"path": "/b", "secret": {"name": "x"}},
        {"path": "/c", "persistentVolumeClaim": {"claimName": "data"}}, {"path": "/d", "secret": {"name": "x"}},
        {"path": "/e", "readOnly": false, "emptyDir": {"sizeLimit": "1Mi"}},
    ]))
    .unwrap();
    let bound = |since: i64, state: Value| {
        json!({"phase": "Pending", "containerStatuses": [agent(&state)], "conditions": [
            {"type": "PodScheduled", "status": "True", "lastTransitionTime": at(since).to_string()}]})
    };
    let creating = || json!({"waiting": {"reason": "ContainerCreating"}});
    let said = |status: Value, mounts: &[Mount]| {
        let pod = pod(status);
        let Step::Finished(ending) = step(&Facts { mounts, ..facts(Some(&pod), 60) }) else { panic!() };
        assert_eq!(ending.outcome.reason, "StartupTimeout");
        ending.outcome.message.unwrap()
    };
    let events = "the Pod was still being set up on its node after 1m \
        (kubectl get events -n n --field-selector involvedObject.name=p says what it waited for)";
    assert_eq!(
        said(bound(40, creating()), &mounts),
        format!(
            "{events}; does everything exist that it mounts: configMap nope, persistentVolumeClaim data, secret x?"
        )
    );
    assert_eq!(said(bound(40, creating()), &[]), events);
    // Not long enough, or past the volumes.
    assert_eq!(said(bound(41, creating()), &mounts), "the Pod is being set up on its node");
    let mut begun = bound(2, creating());
    begun["initContainerStatuses"] = json!([{"name": "init", "image": "i", "imageID": "", "ready": false,
        "restartCount": 0, "state": {"terminated": {"exitCode": 0}}}]);
    assert_eq!(said(begun, &mounts), "the Pod is being set up on its node");
}

#[test]
fn a_healed_spec_has_its_whole_time_to_start() {
    let accepted = |status: &str, at: Timestamp| {
        serde_json::from_value(json!({"type": "Accepted", "status": status, "reason": "R", "message": "m",
            "lastTransitionTime": at.to_string()}))
        .unwrap()
    };
    let (refused, healed): (Condition, Condition) = (accepted("False", at(0)), accepted("True", at(400)));
    let mut made = pod(json!({"phase": "Pending"}));
    made.metadata.creation_timestamp = Some(Time(at(399)));
    for (condition, pod, now, begins) in [
        (None, None, 5, 0),
        (Some(&refused), None, 399, 399),
        (Some(&refused), Some(&made), 400, 399),
        (Some(&healed), Some(&made), 401, 400),
    ] {
        assert_eq!(startup_begins(at(0), condition, pod, at(now)), at(begins));
    }
}

#[test]
fn time_ends_what_does_not_end_itself() {
    let waiting = pod(json!({"phase": "Pending"}));
    assert_eq!(reason_of(step(&facts(Some(&waiting), 59))), "starting PodStarting");
    assert_eq!(reason_of(step(&facts(Some(&waiting), 60))), "StartupTimeout");
    let pulling = json!({"phase": "Pending", "containerStatuses": [agent(&json!({"waiting": {"reason": "ErrImagePull", "message": "m"}}))]});
    assert_eq!(reason_of(step(&facts(Some(&pod(pulling)), 60))), "ImagePullFailed");
    assert_eq!(reason_of(step(&facts(None, 59))), "not created");
    assert_eq!(reason_of(step(&facts(None, 60))), "StartupTimeout");
    // Started at 10, 600 s, 10 s grace, 10 s for SIGKILL, 2 s slack.
    let live = pod(running());
    let Step::Running { deadline, check, .. } = step(&facts(Some(&live), 631)) else { panic!() };
    assert_eq!((deadline, check), (at(610), at(632)));
    assert_eq!(reason_of(step(&facts(Some(&live), 632))), "DeadlineExceeded");
    let lowered =
        Facts { planned_deadline_seconds: 600, timeout: Duration::from_secs(500), ..facts(Some(&live), 510) };
    let Step::Running { check, .. } = step(&lowered) else { panic!() };
    assert_eq!(check, at(511));
    assert_eq!(reason_of(step(&Facts { now: at(511), ..lowered })), "DeadlineExceeded");
}

#[test]
fn lost_pods_nodes_and_policies_end_the_sandbox() {
    let live = pod(running());
    assert_eq!(reason_of(step(&Facts { pod_expected: true, ..facts(None, 30) })), "PodDeleted");
    let lost = Facts { node_lost_since: Some(at(20)), ..facts(Some(&live), 59) };
    let Step::Running { check, .. } = step(&lost) else { panic!() };
    assert_eq!(check, at(60));
    assert_eq!(reason_of(step(&Facts { now: at(60), ..lost })), "NodeLost");
    assert_eq!(reason_of(step(&Facts { policy_lost: Some("gone"), ..facts(Some(&live), 30) })), "PolicyLost");
    let mut deleting = live;
    deleting.metadata.deletion_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(at(20)));
    assert_eq!(step(&facts(Some(&deleting), 30)), Step::Stopping { started: Some(at(10)), check: None });
    let lost = Facts { node_lost_since: Some(at(20)), ..facts(Some(&deleting), 59) };
    assert_eq!(step(&lost).check(), Some(at(60)));
    assert_eq!(reason_of(step(&Facts { now: at(60), ..lost })), "NodeLost");
}

#[test]
fn a_gate_that_does_not_pass_is_the_reason_and_at_last_the_end() {
    let words =
        json!({"cause": "NotContained", "message": "the API server is reachable", "checks": []}).to_string();
    let foreign = words.replace(r#""NotContained""#, r#""ForeignPeer""#);
    let sidecar = |state: Value, message: &str, code: i32| {
        json!([{"name": "sidecar", "image": "i", "imageID": "", "ready": false, "restartCount": 2, "state": state,
            "lastState": {"terminated": {"exitCode": code, "message": message}}}])
    };
    let crashing = || json!({"waiting": {"reason": "CrashLoopBackOff", "message": "m"}});
    let of = |phase: Value, sidecar: Value| with(phase, "initContainerStatuses", sidecar);
    let pending = || json!({"phase": "Pending"});
    let failing = pod(of(pending(), sidecar(crashing(), &words, 78)));
    let Step::Starting { reason, message, until } = step(&facts(Some(&failing), 30)) else { panic!() };
    assert_eq!((reason, message.as_str(), until), ("NotContained", "the API server is reachable", at(60)));
    // Between two tries it is the same status: no write.
    let trying =
        pod(of(pending(), sidecar(json!({"running": {"startedAt": at(29).to_string()}}), &words, 78)));
    assert_eq!(step(&facts(Some(&trying), 30)), step(&facts(Some(&failing), 30)));
    for (status, now, want) in [
        (of(pending(), sidecar(crashing(), &words, 78)), 60, "NotContained"),
        (of(pending(), sidecar(crashing(), "panic", 101)), 30, "starting CrashLoopBackOff"),
        (of(pending(), sidecar(crashing(), "panic", 101)), 60, "StartupTimeout"),
        // The controller was away, and the kubelet's own clock ended the Pod.
        (
            of(json!({"phase": "Failed", "reason": "DeadlineExceeded"}), sidecar(crashing(), &words, 78)),
            30,
            "NotContained",
        ),
        (of(json!({"phase": "Failed"}), sidecar(crashing(), &words, 78)), 30, "NotContained"),
        (of(running(), sidecar(json!({"running": {}}), &words, 78)), 30, "running"),
        // A foreign first process: whatever it says of itself, and though it runs.
        (of(running(), sidecar(json!({"running": {}}), &foreign, 78)), 30, "NotContained"),
        (of(running(), sidecar(crashing(), &foreign, 1)), 30, "running"),
        (of(pending(), sidecar(crashing(), &foreign, 78)), 30, "NotContained"),
    ] {
        let pod = pod(status.clone());
        assert_eq!(reason_of(step(&facts(Some(&pod), now))), want, "{status}");
    }
}
