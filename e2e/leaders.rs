//! Two replicas, one leader, and what happens when it goes.
use k8s_openapi::api::core::v1::Pod;
use kube::api::DeleteParams;
use serde_json::json;

use crate::support::{exclusive, secs, wait_for};

#[test]
fn when_the_leader_is_deleted_the_other_carries_on() {
    exclusive("leaders", |test| async move {
        test.scale_operator(2).await;
        let first = test.leader(secs(60)).await;
        test.sandbox("before", "time.sleep(20)", json!({})).await;
        test.running("before").await;
        test.system::<Pod>().delete(&first, &DeleteParams::default().grace_period(0)).await.unwrap();
        test.sandbox("after", "say(hello='world')", json!({})).await;
        let second = wait_for("another leader", secs(60), || async {
            let now = test.leader(secs(60)).await;
            (now != first).then_some(now)
        })
        .await;
        assert_ne!(first, second);
        test.finished_as("after", "Completed").await;
        test.finished_as("before", "Completed").await;
        assert_eq!(test.pods_of("before").await.len(), 1, "nothing was made twice");
        assert_eq!(test.pods_of("after").await.len(), 1, "nothing was made twice");
        test.scale_operator(2).await;
    });
}
