//! Two replicas, one leader, and what happens when it goes, freezes, or dies between two writes.
use std::time::Duration;

use agentsandbox::api::v1alpha1::{AgentSandbox, Phase};
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod, networking::v1::NetworkPolicy};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use nix::sys::signal::{Signal, kill};
use serde_json::json;

use crate::support::{
    Test,
    audit::{mark, pod_of, shown, writes_since},
    cluster::{CONTROLLER, node_is_this_machine, process_of},
    exclusive,
    sandbox::LIFE,
    secs, wait_for,
};

async fn another_leader(test: &Test, than: &str) -> String {
    wait_for("another leader", secs(60), || async {
        let now = test.leader(secs(60)).await;
        (now != than).then_some(now)
    })
    .await
}

#[test]
fn when_the_leader_is_deleted_the_other_carries_on() {
    exclusive("leaders", |test| async move {
        test.scale_operator(2).await;
        let first = test.leader(secs(60)).await;
        test.sandbox("before", "time.sleep(20)", json!({})).await;
        test.running("before").await;
        test.system::<Pod>().delete(&first, &DeleteParams::default().grace_period(0)).await.unwrap();
        test.sandbox("after", "say(hello='world')", json!({})).await;
        another_leader(&test, &first).await;
        test.finished_as("after", "Completed").await;
        test.finished_as("before", "Completed").await;
        assert_eq!(test.pods_of("before").await.len(), 1, "nothing was made twice");
        assert_eq!(test.pods_of("after").await.len(), 1, "nothing was made twice");
        test.scale_operator(2).await;
    });
}

#[test]
fn a_leader_that_was_frozen_and_thawed_writes_nothing() {
    exclusive("frozen", |test| async move {
        if !node_is_this_machine() {
            return;
        }
        test.scale_operator(2).await;
        let first = test.leader(secs(60)).await;
        let uid = test.system::<Pod>().get(&first).await.unwrap().metadata.uid.unwrap();
        let process = process_of("/agentsandbox", &uid).expect("the leader's process");
        kill(process, Signal::SIGSTOP).unwrap();
        let held =
            test.create(&crate::support::sandbox::manifest("during", "time.sleep(8)", json!({}))).await;
        // Long enough for the lease to pass on, too short for the liveness probe to end it.
        tokio::time::sleep(secs(12)).await;
        let thawed = mark();
        kill(process, Signal::SIGCONT).unwrap();
        held.unwrap();
        let second = another_leader(&test, &first).await;
        assert_ne!(first, second);
        test.sandbox("after", "say(hello='world')", json!({})).await;
        test.finished_as("during", "Completed").await;
        test.finished_as("after", "Completed").await;
        for name in ["during", "after"] {
            assert_eq!(test.pods_of(name).await.len(), 1, "nothing was made twice");
        }
        let late: Vec<_> =
            writes_since(thawed).into_iter().filter(|w| pod_of(w) == Some(first.as_str())).collect();
        assert!(late.is_empty(), "written after it had lost the lease: {:#?}", shown(&late));
        test.scale_operator(2).await;
    });
}

/// Looks for a Pod without its policy. A Pod that is there before and after the policies were listed was there all the
/// time, so that neither creation nor removal between the lists can look like one.
async fn uncovered(test: &Test) -> Option<String> {
    let ours = ListParams::default().labels("app.kubernetes.io/managed-by=agentsandbox");
    let before = test.api::<Pod>().list(&ours).await.ok()?.items;
    let policies = test.api::<NetworkPolicy>().list(&ours).await.ok()?.items;
    let after = test.api::<Pod>().list(&ours).await.ok()?.items;
    before
        .iter()
        .filter(|pod| after.iter().any(|other| other.metadata.uid == pod.metadata.uid))
        .find(|pod| policies.iter().all(|policy| policy.metadata.name != pod.metadata.name))
        .map(ResourceExt::name_any)
}

/// Gives the operator an environment variable; `None` takes it away. Waits until its Pods have it.
async fn exit_after(test: &Test, writes: Option<u64>) {
    let variable = match writes {
        Some(writes) => json!({"name": "AGENTSANDBOX_EXIT_AFTER_WRITES", "value": writes.to_string()}),
        None => json!({"name": "AGENTSANDBOX_EXIT_AFTER_WRITES", "$patch": "delete"}),
    };
    let patch =
        json!({"spec": {"template": {"spec": {"containers": [{"name": "controller", "env": [variable]}]}}}});
    // Without a rollout in which old ones and new ones lead in turn.
    test.scale_operator(0).await;
    let deployments = test.system::<Deployment>();
    deployments.patch(CONTROLLER, &PatchParams::default(), &Patch::Strategic(patch)).await.unwrap();
    test.scale_operator(2).await;
}

/// Every operator dies in front of its next write after N, again and again, until creation and deletion are through: so
/// for every write of both, one operator dies right before it and another finds what it left.
#[test]
fn an_operator_that_dies_between_any_two_writes_leaves_no_agent_without_its_policy() {
    exclusive("crash", |test| async move {
        let watching = test.clone();
        let watch = tokio::spawn(async move {
            loop {
                if let Some(pod) = uncovered(&watching).await {
                    return pod;
                }
                tokio::time::sleep(Duration::from_millis(40)).await;
            }
        });
        // Each operator has one write or a few: those are not to go to what other tests have left.
        let everywhere: Api<AgentSandbox> = Api::all(test.client.clone());
        wait_for("every other sandbox to have ended", secs(120), || async {
            let all = everywhere.list(&ListParams::default()).await.unwrap().items;
            let settled = |s: &AgentSandbox| {
                s.metadata.deletion_timestamp.is_none()
                    && s.status.as_ref().is_some_and(|status| status.outcome.is_some())
            };
            all.iter().all(settled).then_some(())
        })
        .await;
        for writes in 1..=4 {
            exit_after(&test, Some(writes)).await;
            let name = format!("agent-{writes}");
            test.sandbox(&name, "time.sleep(300)", json!({"timeout": "10m"})).await;
            // The kubelet lets a container that ends again and again wait longer each time.
            test.wait_status(&name, "that it runs", 3 * LIFE, |s| {
                (s.phase == Some(Phase::Running)).then_some(())
            })
            .await;
            assert_eq!(test.pods_of(&name).await.len(), 1, "nothing was made twice");
            let pod = test.pod_name(&name).await;
            test.delete(&name).await;
            test.gone::<AgentSandbox>(&name, LIFE).await;
            test.gone::<Pod>(&pod, 3 * LIFE).await;
            test.gone::<NetworkPolicy>(&pod, 3 * LIFE).await;
            let died = crashes(&test).await;
            assert!(died > 0 || writes > 3, "the operator died at least once with {writes} writes");
        }
        exit_after(&test, None).await;
        watch.abort();
        if let Ok(pod) = watch.await {
            panic!("{pod} ran without its policy");
        }
    });
}

/// How often containers of the operator's Pods have ended.
async fn crashes(test: &Test) -> i32 {
    let pods = test.system::<Pod>().list(&ListParams::default()).await.unwrap();
    let statuses = pods.items.into_iter().filter_map(|p| p.status?.container_statuses).flatten();
    statuses.map(|c| c.restart_count).sum()
}
