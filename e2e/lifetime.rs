//! How sandboxes end, and what status says of it.
use std::{
    process::Command,
    time::{Duration, Instant},
};

use agentsandbox::api::v1alpha1::{AgentSandbox, Phase};
use k8s_openapi::api::{core::v1::Pod, networking::v1::NetworkPolicy};
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;

use crate::support::{
    agent, environment, environment::output_of, exclusive, sandbox::manifest, scaled, secs, shared,
};

/// An agent that ends at SIGTERM only if it is told to: it says each second that it lives.
const ENDLESS: &str = "while True:\n    say(alive=True)\n    time.sleep(1)";
/// One that does not listen.
const STUBBORN: &str = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nwhile True:\n    say(alive=True)\n    time.sleep(1)";

#[test]
fn completed() {
    shared("completed", |test| async move {
        let said = test.run("agent", "say(hello='world')", json!({})).await;
        assert_eq!(said, [json!({"hello": "world"})]);
        let status = test.status("agent").await;
        assert_eq!(status.phase, Some(Phase::Succeeded));
        let outcome = status.outcome.unwrap();
        assert_eq!(outcome.exit_code, Some(0));
        let usage = outcome.usage.expect("sandbox-init measured what the agent used");
        assert!(usage.wall_milliseconds.unwrap() > 0 && usage.cpu_milliseconds.unwrap() > 0, "{usage:?}");
        assert_eq!(status.observed_generation, test.get("agent").await.metadata.generation);
        assert!(status.started_at.is_some() && status.finished_at.is_some() && status.node_name.is_some());
        let finished = test.wait_condition("agent", "Finished", "True", secs(5)).await;
        assert_eq!(finished.reason, "Completed");
    });
}

#[test]
fn agent_failed_with_its_exit_code() {
    shared("agent-failed", |test| async move {
        test.sandbox("agent", "sys.exit(7)", json!({})).await;
        let outcome = test.finished_as("agent", "AgentFailed").await;
        assert_eq!(outcome.exit_code, Some(7));
        assert_eq!(test.status("agent").await.phase, Some(Phase::Failed));
    });
}

#[test]
fn agent_failed_with_its_signal() {
    shared("agent-signal", |test| async move {
        test.sandbox("agent", "os.kill(os.getpid(), 11)", json!({})).await;
        let outcome = test.finished_as("agent", "AgentFailed").await;
        assert_eq!(outcome.signal, Some(11), "{outcome:?}");
    });
}

#[test]
fn deadline_exceeded() {
    shared("deadline", |test| async move {
        test.sandbox("agent", ENDLESS, json!({"timeout": "6s"})).await;
        let outcome = test.finished_as("agent", "DeadlineExceeded").await;
        let wall = outcome.usage.and_then(|usage| usage.wall_milliseconds);
        assert!(wall.is_none_or(|ms| (5_900..9_000).contains(&ms)), "{wall:?} ms");
    });
}

#[test]
fn deadline_exceeded_by_an_agent_that_ignores_sigterm() {
    shared("stubborn", |test| async move {
        test.sandbox("agent", STUBBORN, json!({"timeout": "4s"})).await;
        let outcome = test.finished_as("agent", "DeadlineExceeded").await;
        let wall = outcome.usage.and_then(|usage| usage.wall_milliseconds);
        assert!(wall.is_none_or(|ms| ms < 20_000), "it was killed after the grace: {wall:?} ms");
    });
}

#[test]
fn the_record_of_a_stubborn_agent_with_little_cpu_stays() {
    shared("stubborn-slow", |test| async move {
        let script = "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nsay(alive=True)\nwhile True:\n    pass";
        let spec = json!({"timeout": "4s", "resources": {"cpu": "50m", "requests": {"cpu": "20m"}}});
        test.sandbox("agent", script, spec).await;
        test.finished_as("agent", "DeadlineExceeded").await;
        let pod = test.pod_name("agent").await;
        tokio::time::sleep(secs(5)).await;
        let kept = test.api::<Pod>().get(&pod).await.unwrap().metadata;
        assert_eq!(kept.deletion_timestamp, None, "the Pod stays");
        let records = agent::lines(&test.pod_log(&pod, "sidecar").await);
        let last = records.iter().find(|record| record["message"] == "The agent ended");
        let last = last.unwrap_or_else(|| panic!("and so does its record, to the end: {records:#?}"));
        assert_eq!(last["status_code"], "DeadlineExceeded", "{last:#}");
    });
}

#[test]
fn a_lowered_timeout_ends_it_sooner() {
    shared("lowered", |test| async move {
        test.sandbox("agent", ENDLESS, json!({"timeout": "10m"})).await;
        let before = test.running("agent").await.deadline.expect("a deadline");
        test.change("agent", json!({"timeout": "8s"})).await.unwrap();
        test.finished_as("agent", "DeadlineExceeded").await;
        let pod = test.pod_name("agent").await;
        crate::support::wait_for("the kubelet to fail the Pod in place", secs(60), || async {
            let phase = test.api::<Pod>().get(&pod).await.unwrap().status?.phase?;
            (phase == "Failed").then_some(())
        })
        .await;
        let said = agent::lines(&test.log("agent").await);
        assert!(said.iter().any(|line| line["alive"] == true), "its log stays: {said:?}");
        let after = test.status("agent").await.deadline.expect("a deadline");
        assert!(after.0 < before.0, "{after:?} is before {before:?}");
        let raised = test.change("agent", json!({"timeout": "20m"})).await.unwrap_err();
        assert!(raised.to_string().contains("timeout may only be lowered"), "{raised}");
    });
}

#[test]
fn startup_timeout_of_a_sandbox_that_fits_no_node() {
    shared("startup", |test| async move {
        let huge = json!({"startupTimeout": "5s", "resources": {"cpu": "900", "requests": {"cpu": "900"}}});
        test.sandbox("agent", "pass", huge).await;
        let outcome = test.finished_as("agent", "StartupTimeout").await;
        assert_eq!(outcome.exit_code, None);
        assert_eq!(test.status("agent").await.started_at, None, "it never started");
    });
}

#[test]
fn image_pull_failed() {
    shared("image-pull", |test| async move {
        let image = environment_without_digest() + ":does-not-exist";
        test.sandbox("agent", "pass", json!({"image": image, "startupTimeout": "80s"})).await;
        let outcome = test.finished_as("agent", "ImagePullFailed").await;
        assert!(outcome.message.is_some_and(|m| m.contains("does-not-exist")));
    });
}

fn environment_without_digest() -> String {
    let image = environment().agent_image();
    image.split('@').next().unwrap_or_default().to_owned()
}

#[test]
fn invalid_command() {
    shared("command", |test| async move {
        test.sandbox("agent", "", json!({"command": ["/no/such/program"]})).await;
        let outcome = test.finished_as("agent", "InvalidCommand").await;
        assert!(outcome.message.is_some_and(|m| m.contains("/no/such/program")));
    });
}

#[test]
fn pod_deleted_ends_the_sandbox_and_it_is_not_made_again() {
    shared("pod-deleted", |test| async move {
        test.sandbox("agent", ENDLESS, json!({})).await;
        test.running("agent").await;
        let pod = test.pod_name("agent").await;
        test.api::<Pod>().delete(&pod, &DeleteParams::default()).await.unwrap();
        test.finished_as("agent", "PodDeleted").await;
        test.gone::<Pod>(&pod, secs(60)).await;
        tokio::time::sleep(secs(3)).await;
        assert!(test.pods_of("agent").await.is_empty(), "a task is not run twice");
    });
}

#[test]
fn a_finalizer_does_not_keep_the_agent_of_a_deleted_sandbox_running() {
    shared("finalizer", |test| async move {
        let mut object = manifest("agent", ENDLESS, json!({"timeout": "10m"}));
        object["metadata"]["finalizers"] = json!(["example.test/wait"]);
        test.create(&object).await.unwrap();
        test.running("agent").await;
        let pod = test.pod_name("agent").await;
        test.delete("agent").await;
        test.finished_as("agent", "PodDeleted").await;
        test.gone::<Pod>(&pod, secs(60)).await;
        assert!(test.pods_of("agent").await.is_empty(), "no other Pod is made");
        let release = Patch::Merge(json!({"metadata": {"finalizers": null}}));
        test.api::<AgentSandbox>().patch("agent", &PatchParams::default(), &release).await.unwrap();
        test.gone::<AgentSandbox>("agent", secs(30)).await;
        test.gone::<NetworkPolicy>(&pod, secs(60)).await;
    });
}

/// What somebody else wants to know before the Pod goes is nothing to the agent, nor to the operator.
#[test]
fn a_finalizer_of_the_pod_does_not_keep_the_agent_running() {
    shared("pod-finalizer", |test| async move {
        test.sandbox("agent", ENDLESS, json!({"timeout": "10m"})).await;
        test.running("agent").await;
        let pod = test.pod_name("agent").await;
        let finalizers = |names: serde_json::Value| Patch::Merge(json!({"metadata": {"finalizers": names}}));
        let api = test.api::<Pod>();
        api.patch(&pod, &PatchParams::default(), &finalizers(json!(["example.test/wait"]))).await.unwrap();
        test.delete("agent").await;
        crate::support::wait_for("the agent to end", secs(60), || async {
            let status = api.get(&pod).await.expect("the Pod stays while somebody holds it").status?;
            let agents = status.container_statuses.unwrap_or_default();
            agents.iter().all(|c| c.state.as_ref().is_some_and(|s| s.terminated.is_some())).then_some(())
        })
        .await;
        // The operator goes on with others.
        test.run("other", "say(hello='world')", json!({})).await;
        api.patch(&pod, &PatchParams::default(), &finalizers(json!(null))).await.unwrap();
        test.gone::<Pod>(&pod, secs(60)).await;
        test.gone::<AgentSandbox>("agent", secs(60)).await;
        test.gone::<NetworkPolicy>(&pod, secs(60)).await;
    });
}

#[test]
fn an_orphaning_deletion_ends_the_agent() {
    shared("orphaned", |test| async move {
        test.sandbox("agent", ENDLESS, json!({"timeout": "10m"})).await;
        test.running("agent").await;
        let pod = test.pod_name("agent").await;
        let orphan = DeleteParams {
            propagation_policy: Some(kube::api::PropagationPolicy::Orphan),
            ..DeleteParams::default()
        };
        test.api::<AgentSandbox>().delete("agent", &orphan).await.unwrap();
        test.gone::<AgentSandbox>("agent", secs(60)).await;
        test.gone::<Pod>(&pod, secs(60)).await;
    });
}

#[test]
fn evicted() {
    shared("evicted", |test| async move {
        test.sandbox("agent", ENDLESS, json!({})).await;
        test.running("agent").await;
        let pod = test.pod_name("agent").await;
        // The Eviction API marks the Pod with DisruptionTarget before it deletes it; that is what the operator reads.
        let evicted = test.api::<Pod>().evict(&pod, &kube::api::EvictParams::default()).await;
        assert!(evicted.is_ok(), "{evicted:?}");
        test.finished_as("agent", "Evicted").await;
    });
}

#[test]
fn ttl_after_finished_removes_everything() {
    shared("ttl", |test| async move {
        test.sandbox("agent", "pass", json!({"ttlAfterFinished": "4s"})).await;
        test.finished_as("agent", "Completed").await;
        let pod = test.pod_name("agent").await;
        let finished = Instant::now();
        test.gone::<AgentSandbox>("agent", secs(30)).await;
        assert!(finished.elapsed() > Duration::from_secs(2), "not before its time");
        test.gone::<Pod>(&pod, secs(60)).await;
        test.gone::<NetworkPolicy>(&pod, secs(60)).await;
    });
}

#[test]
fn a_short_task_is_recorded_as_the_sidecar_saw_it() {
    shared("audit", |test| async move {
        test.sandbox("agent", "say(hello='world')", json!({})).await;
        test.finished_as("agent", "Completed").await;
        let pod = test.pod_name("agent").await;
        let records = agent::lines(&test.pod_log(&pod, "sidecar").await);
        assert!(records.len() >= 2, "at least the start and the end: {records:#?}");
        assert!(records.iter().all(|r| r["class_uid"].is_number() && r["time"].is_number()), "{records:#?}");
    });
}

#[test]
fn deadline_while_the_operator_is_down() {
    exclusive("operator-down", |test| async move {
        let mut object = manifest("agent", ENDLESS, json!({"timeout": "12s"}));
        object["metadata"]["labels"] = json!({"test": "operator-down"});
        test.create(&object).await.unwrap();
        test.running("agent").await;
        let pod = test.pod_name("agent").await;
        test.scale_operator(0).await;
        tokio::time::sleep(scaled(secs(20))).await;
        let ended = test.api::<Pod>().get(&pod).await.unwrap().status.unwrap();
        assert_ne!(ended.phase.as_deref(), Some("Running"), "sandbox-init ended it by itself");
        test.scale_operator(2).await;
        test.finished_as("agent", "DeadlineExceeded").await;
    });
}

#[test]
fn node_lost() {
    exclusive("node-lost", |test| async move {
        let Some(up) = environment().get("CLUSTER_UP") else {
            eprintln!("the cluster is not the harness's own: its kubelet cannot be ended");
            return;
        };
        let kubelet = |verb: &str| {
            let mut command = Command::new(&up);
            command.args([verb, "kubelet"]);
            command
        };
        test.sandbox("agent", ENDLESS, json!({"timeout": "10m"})).await;
        test.running("agent").await;
        output_of(kubelet("stop")).await;
        // The control plane calls the node silent after about 50 s, and the operator has patience with it for 40 s more.
        let mut outcome = None;
        for _ in 0..scaled(secs(150)).as_secs() * 2 {
            outcome = test.status("agent").await.outcome;
            if outcome.is_some() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        // First put the node right for the tests after this one, whatever came of it.
        output_of(kubelet("start")).await;
        test.scale_operator(2).await;
        assert_eq!(outcome.expect("an outcome within 150 s").reason, "NodeLost");
    });
}
