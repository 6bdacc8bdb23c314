//! The start gate: no agent's process before its own network namespace was measured.
use serde_json::json;

use super::host;
use crate::support::{agent, environment, secs, shared};

/// On a cluster that stores policies and ignores them (`POLICY=ignored`) the agent never starts; on one that enforces them
/// the same agent does, which is the control.
#[test]
fn an_agent_starts_only_where_policies_are_enforced() {
    shared("gate", |test| async move {
        let ignored = environment().get("CLUSTER_POLICY").as_deref() == Some("ignored");
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
        if environment().get("CLUSTER_POLICY").as_deref() == Some("ignored") {
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
