//! What the operator must not touch, and what it must put right.
use agentsandbox::api::v1alpha1::AgentSandbox;
use k8s_openapi::api::{
    core::v1::{Namespace, Pod},
    networking::v1::NetworkPolicy,
};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams},
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::{
    Test,
    agent::lines,
    exclusive,
    internet::{ALLOWED, DENIED, ECHO},
    sandbox::{LIFE, manifest},
    secs, shared, wait_for,
};

const ENDLESS: &str = "while True:\n    say(alive=True)\n    time.sleep(1)";

/// The name that a sandbox's Pod and policy get, from the description of it and not from the operator's code.
fn name_of(namespace: &str, name: &str, uid: &str) -> String {
    let digest = Sha256::digest(format!("{namespace}/{name}/{uid}"));
    let hex = digest.iter().take(16).fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
    format!("{name}-{hex}")
}

/// Makes a sandbox while the operator is down, an object of the name that its Pod and policy would have, and starts
/// the operator again.
async fn with_taken_name(test: &Test, taken: impl Fn(&str) -> Value) -> String {
    test.scale_operator(0).await;
    let made = test.create(&manifest("agent", ENDLESS, json!({}))).await.unwrap();
    let name = name_of(&test.namespace, "agent", made["metadata"]["uid"].as_str().unwrap());
    test.create(&taken(&name)).await.unwrap();
    test.scale_operator(2).await;
    name
}

#[test]
fn a_foreign_pod_of_our_name_is_not_touched() {
    exclusive("foreign-pod", |test| async move {
        let name = with_taken_name(&test, |name| {
            json!({
                "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"whose": "mine"}},
                "spec": {
                    "securityContext": {"runAsNonRoot": true, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
                    "terminationGracePeriodSeconds": 0,
                    "containers": [{
                        "name": "mine", "image": crate::support::environment().agent_image(), "command": ["/bin/sleep", "600"],
                        "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
                    }],
                },
            })
        })
        .await;
        let before = test.api::<Pod>().get(&name).await.unwrap();
        let condition = test.wait_condition("agent", "Accepted", "False", secs(40)).await;
        assert_eq!(condition.reason, "NameConflict", "{condition:?}");
        test.delete("agent").await;
        test.gone::<AgentSandbox>("agent", secs(30)).await;
        tokio::time::sleep(secs(3)).await;
        let after = test.api::<Pod>().get(&name).await.unwrap();
        assert_eq!(after.metadata.uid, before.metadata.uid);
        assert_eq!(after.metadata.labels, before.metadata.labels);
        assert_eq!(after.metadata.owner_references, None, "not adopted");
        assert_eq!(after.metadata.deletion_timestamp, None, "not deleted");
    });
}

#[test]
fn a_foreign_pod_with_our_owner_and_labels_is_not_adopted() {
    exclusive("foreign-owned", |test| async move {
        test.scale_operator(0).await;
        let made = test.create(&manifest("agent", ENDLESS, json!({}))).await.unwrap();
        let uid = made["metadata"]["uid"].as_str().unwrap();
        let name = name_of(&test.namespace, "agent", uid);
        let hash = name.strip_prefix("agent-").unwrap();
        test.create(&json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": name,
                "labels": {"app.kubernetes.io/managed-by": "agentsandbox", "agentsandbox.dev/sandbox": hash},
                "annotations": {"agentsandbox.dev/name": format!("{}/agent", test.namespace)},
                "ownerReferences": [{"apiVersion": "agentsandbox.dev/v1alpha1", "kind": "AgentSandbox", "name": "agent",
                    "uid": uid, "controller": true}],
            },
            "spec": {
                "securityContext": {"runAsNonRoot": true, "runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}},
                "terminationGracePeriodSeconds": 0,
                "containers": [{
                    "name": "agent", "image": crate::support::environment().agent_image(), "command": ["/bin/sleep", "600"],
                    "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
                }],
            },
        }))
        .await
        .unwrap();
        test.scale_operator(2).await;
        let condition = test.wait_condition("agent", "Accepted", "False", secs(40)).await;
        assert_eq!(condition.reason, "NameConflict", "{condition:?}");
        let status = test.status("agent").await;
        assert_eq!((status.pod_name, status.pod_uid, status.started_at), (None, None, None));
    });
}

#[test]
fn a_foreign_policy_of_our_name_is_not_touched() {
    exclusive("foreign-policy", |test| async move {
        let name = with_taken_name(&test, |name| {
            json!({
                "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": name},
                "spec": {"podSelector": {"matchLabels": {"whose": "mine"}}, "policyTypes": ["Egress"], "egress": [{}]},
            })
        })
        .await;
        let before = test.api::<NetworkPolicy>().get(&name).await.unwrap();
        let condition = test.wait_condition("agent", "Accepted", "False", secs(40)).await;
        assert_eq!(condition.reason, "NameConflict", "{condition:?}");
        assert!(test.pods_of("agent").await.is_empty(), "no Pod without our own policy");
        test.delete("agent").await;
        test.gone::<AgentSandbox>("agent", secs(30)).await;
        tokio::time::sleep(secs(3)).await;
        let after = test.api::<NetworkPolicy>().get(&name).await.unwrap();
        assert_eq!((after.spec, after.metadata.uid), (before.spec, before.metadata.uid));
        assert_eq!(after.metadata.owner_references, None, "not adopted");
    });
}

#[test]
fn an_edited_policy_is_repaired() {
    shared("policy-edited", |test| async move {
        let script = format!(
            "while True:\n    tcp('denied', '{DENIED}', {ECHO}, tries=1, wait=1)\n    time.sleep(0.5)"
        );
        let rule = json!({"cidr": format!("{ALLOWED}/32"), "ports": [ECHO]});
        test.sandbox("agent", &script, json!({"network": {"egress": [rule]}})).await;
        test.running("agent").await;
        let before = test.policy("agent").await;
        let name = before.metadata.name.clone().unwrap();
        let open = Patch::Merge(json!({"spec": {"egress": [{}]}}));
        test.api::<NetworkPolicy>().patch(&name, &PatchParams::default(), &open).await.unwrap();
        wait_for("the policy to be repaired", secs(20), || async {
            let now = test.api::<NetworkPolicy>().get(&name).await.unwrap();
            (now.spec == before.spec).then_some(())
        })
        .await;
        let seen = lines(&test.log("agent").await).len();
        wait_for("the agent to be held again", LIFE, || async {
            let said = lines(&test.log("agent").await);
            let last: Vec<_> = said.iter().skip(seen).rev().take(3).collect();
            (last.len() == 3 && last.iter().all(|line| line["open"] == false)).then_some(())
        })
        .await;
    });
}

#[test]
fn a_deleted_policy_is_made_again_or_ends_the_sandbox() {
    shared("policy-deleted", |test| async move {
        test.sandbox("agent", ENDLESS, json!({})).await;
        test.running("agent").await;
        let policy = test.policy("agent").await;
        let name = policy.metadata.name.clone().unwrap();
        test.api::<NetworkPolicy>().delete(&name, &DeleteParams::default()).await.unwrap();
        // Somebody with that much power also removes the finalizer.
        let bare = Patch::Merge(json!({"metadata": {"finalizers": null}}));
        let _ = test.api::<NetworkPolicy>().patch(&name, &PatchParams::default(), &bare).await;
        wait_for("a policy again, or the end", secs(40), || async {
            if test.status("agent").await.outcome.is_some() {
                return Some(());
            }
            let now = test.api::<NetworkPolicy>().get_opt(&name).await.unwrap()?;
            let whole = now.metadata.deletion_timestamp.is_none() && now.metadata.uid != policy.metadata.uid;
            (whole && now.spec == policy.spec).then_some(())
        })
        .await;
    });
}

#[test]
fn a_stripped_label_is_repaired_or_ends_the_sandbox() {
    shared("label-stripped", |test| async move {
        test.sandbox("agent", ENDLESS, json!({})).await;
        test.running("agent").await;
        let pod = test.pod_name("agent").await;
        let label =
            |pod: &Pod| pod.metadata.labels.as_ref().and_then(|l| l.get("agentsandbox.dev/sandbox").cloned());
        let before = label(&test.api::<Pod>().get(&pod).await.unwrap());
        assert!(before.is_some());
        let strip = Patch::Merge(json!({"metadata": {"labels": {"agentsandbox.dev/sandbox": null}}}));
        test.api::<Pod>().patch(&pod, &PatchParams::default(), &strip).await.unwrap();
        wait_for("the label again, or the end", secs(30), || async {
            if test.status("agent").await.outcome.is_some() {
                return Some(());
            }
            let now = test.api::<Pod>().get_opt(&pod).await.unwrap()?;
            (label(&now) == before).then_some(())
        })
        .await;
    });
}

#[test]
fn the_policy_outlives_the_pod() {
    shared("order", |test| async move {
        let slow = "import signal\nsignal.signal(signal.SIGTERM, lambda *_: None)\n".to_owned() + ENDLESS;
        test.sandbox("agent", &slow, json!({})).await;
        test.running("agent").await;
        let name = test.pod_name("agent").await;
        test.delete("agent").await;
        // As long as the Pod is there its policy is; asked in this order, so that a race cannot excuse a gap.
        wait_for("the Pod and then the policy to go", LIFE, || async {
            let policy = test.api::<NetworkPolicy>().get_opt(&name).await.unwrap();
            let pod = test.api::<Pod>().get_opt(&name).await.unwrap();
            if pod.is_some() {
                assert!(policy.is_some(), "the Pod runs without its policy");
            }
            (pod.is_none() && policy.is_none()).then_some(())
        })
        .await;
    });
}

#[test]
fn the_policy_is_there_before_the_pod() {
    shared("order-create", |test| async move {
        test.sandbox("agent", "pass", json!({})).await;
        test.finished_as("agent", "Completed").await;
        let name = test.pod_name("agent").await;
        let policy = test.api::<NetworkPolicy>().get(&name).await.unwrap().metadata;
        let pod = test.api::<Pod>().get(&name).await.unwrap().metadata;
        let version = |text: Option<String>| text.unwrap().parse::<u64>().unwrap();
        assert!(policy.creation_timestamp.unwrap().0 <= pod.creation_timestamp.unwrap().0);
        assert_ne!(version(policy.resource_version), version(pod.resource_version));
        assert_eq!(policy.owner_references.unwrap()[0].uid, pod.owner_references.unwrap()[0].uid);
    });
}

#[test]
fn deleting_the_namespace_finishes() {
    shared("namespace", |test| async move {
        for name in ["one", "two"] {
            test.sandbox(name, ENDLESS, json!({})).await;
        }
        test.running("one").await;
        let namespaces: Api<Namespace> = Api::all(test.client.clone());
        namespaces.delete(&test.namespace, &DeleteParams::default()).await.unwrap();
        wait_for("the namespace to be gone", secs(120), || async {
            namespaces.get_opt(&test.namespace).await.unwrap().is_none().then_some(())
        })
        .await;
    });
}

#[test]
fn an_object_made_again_under_its_name_is_another_sandbox() {
    shared("again", |test| async move {
        test.sandbox("agent", ENDLESS, json!({})).await;
        test.running("agent").await;
        let first = test.pod_name("agent").await;
        test.delete("agent").await;
        test.sandbox("agent", "say(second=True)", json!({})).await;
        test.finished_as("agent", "Completed").await;
        assert_ne!(test.pod_name("agent").await, first);
        test.gone::<Pod>(&first, LIFE).await;
        test.gone::<NetworkPolicy>(&first, LIFE).await;
    });
}
