//! The start gate: no agent's process before its own network namespace was measured.
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::json;

use super::host;
use crate::support::{agent, environment, exclusive, sandbox::LIFE, scaled, secs, shared, wait_for};

/// Whether this is the cluster that stores policies and ignores them.
fn nothing_is_enforced() -> bool {
    environment().get("CLUSTER_POLICY").as_deref() == Some("ignored")
}

/// On a cluster that stores policies and ignores them (`POLICY=ignored`) the agent never starts; on one that enforces them
/// the same agent does, which is the control.
#[test]
fn an_agent_starts_only_where_policies_are_enforced() {
    shared("gate", |test| async move {
        let ignored = nothing_is_enforced();
        let spec = json!({"startupTimeout": if ignored { "75s" } else { "3m" }});
        test.sandbox("agent", "say(marker='the agent ran')", spec).await;
        let outcome =
            test.wait_status("agent", "an outcome", secs(150), |status| status.outcome.clone()).await;
        let marked = test.log("agent").await.contains("the agent ran");
        let status = test.status("agent").await;
        let contained =
            status.conditions.iter().find(|c| c.type_ == "Contained").expect("a condition Contained");
        if ignored {
            assert!(!marked, "the agent ran though nothing held it");
            assert_eq!(outcome.reason, "NotContained", "{outcome:?}");
            assert_eq!(contained.status, "False", "{contained:?}");
            assert!(contained.message.contains("reachable"), "it says what was open: {contained:?}");
            assert!(status.started_at.is_none());
        } else {
            assert!(marked, "the control: the agent runs where policies are enforced");
            assert_eq!(outcome.reason, "Completed", "{outcome:?}");
            assert_eq!(contained.status, "True", "{contained:?}");
            let digest = status.policy_digest.expect("a digest");
            assert!(contained.message.contains(&digest), "{contained:?}");
            let containment = status.containment.expect("status.containment");
            assert!(containment.verified_at.is_some());
        }
    });
}

/// The record of the gate says what was measured.
#[test]
fn the_gate_leaves_a_record() {
    shared("gate-record", |test| async move {
        if nothing_is_enforced() {
            return;
        }
        test.probe().await;
        test.tries("trial('one', lambda: https('one.asbx.test'))", &[host("one.asbx.test", &[443])]).await;
        let pod = test.pod_name("agent").await;
        let records = agent::lines(&test.pod_log(&pod, "sidecar").await);
        let gate = records.iter().find_map(|r| r["unmapped"]["egress"]["GatePassed"]["checks"].as_array());
        let checks = gate.expect("a record of the gate");
        assert!(checks.len() >= 4 && checks.iter().all(|c| c["result"] != "Open"), "{checks:#?}");
    });
}

const MARK: &str = "say(marker='the agent ran')";

/// E20: policies add up. A tenant's that allows everything, and is there before the agent starts, is found by what it opens.
#[test]
fn an_agent_does_not_start_beside_a_policy_that_allows_everything() {
    shared("gate-allow-all", |test| async move {
        if nothing_is_enforced() {
            return;
        }
        test.sandbox("before", MARK, json!({})).await;
        test.finished_as("before", "Completed").await;
        assert!(
            test.log("before").await.contains("the agent ran"),
            "the control: without that policy it runs"
        );
        let policy = json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": "allow-all"},
            "spec": {"podSelector": {}, "policyTypes": ["Egress"], "egress": [{}]},
        });
        test.create(&policy).await.unwrap();
        test.sandbox("agent", MARK, json!({"startupTimeout": "60s"})).await;
        let outcome = test.wait_status("agent", "an outcome", secs(120), |s| s.outcome.clone()).await;
        assert_eq!(outcome.reason, "NotContained", "{outcome:?}");
        assert!(
            outcome.message.is_some_and(|message| message.contains("reachable")),
            "it says what was open"
        );
        assert_eq!(test.status("agent").await.started_at, None);
        assert!(!test.log("agent").await.contains("the agent ran"), "the agent ran though nothing held it");
    });
}

/// E20: without its label a Pod has no policy. The gate holds its agent back until it has one again, which is the control.
#[test]
fn an_agent_does_not_start_in_a_pod_without_its_label() {
    exclusive("gate-label", |test| async move {
        if nothing_is_enforced() {
            return;
        }
        // What is mounted comes later: until then the kubelet makes no network for the Pod.
        let mounts = json!([{"path": "/later", "configMap": {"name": "later"}}]);
        let spec = json!({"startupTimeout": "4m", "filesystem": {"mounts": mounts}});
        test.sandbox("agent", MARK, spec).await;
        let name = test.wait_status("agent", "a Pod", LIFE, |status| status.pod_name.clone()).await;
        // Nobody puts the label right.
        test.scale_operator(0).await;
        let pods = test.api::<Pod>();
        let strip = Patch::Merge(json!({"metadata": {"labels": {"agentsandbox.dev/sandbox": null}}}));
        pods.patch(&name, &PatchParams::default(), &strip).await.unwrap();
        let later = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "later"}, "data": {"a": "b"}});
        test.create(&later).await.unwrap();
        let found = wait_for("the gate to find something open", secs(150), || async {
            let events = test.api::<Event>().list(&ListParams::default()).await.unwrap().items;
            let told = events.into_iter().filter(|e| e.involved_object.name.as_deref() == Some(&name));
            told.filter_map(|event| event.message)
                .find(|message| message.contains("is reachable from the Pod"))
        })
        .await;
        // Longer than a gate takes that passes.
        tokio::time::sleep(scaled(secs(6))).await;
        let held = !test.pod_log(&name, "agent").await.contains("the agent ran");
        test.scale_operator(2).await;
        assert!(held, "the agent ran though nothing held it: {found}");
        let outcome = test.wait_status("agent", "an outcome", secs(120), |s| s.outcome.clone()).await;
        assert_eq!(outcome.reason, "Completed", "{outcome:?}");
        assert!(test.log("agent").await.contains("the agent ran"), "with its label it runs");
    });
}
