//! What happens to tunnels when rules change and gateways go.
use std::time::Duration;

use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::{
    ResourceExt as _,
    api::{DeleteParams, ListParams, LogParams, Patch, PatchParams},
};
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};

use super::{all_done, host, none_done, tcp};
use crate::support::cluster::{node_is_this_machine, process_of};
use crate::support::{Test, agent, exclusive, secs, shared, wait_for};

const GATEWAY: &str = "agentsandbox-gateway";

impl Test {
    /// Pods of the gateways.
    pub async fn gateway_pods(&self) -> Vec<Pod> {
        let ours = ListParams::default().labels("app.kubernetes.io/component=gateway");
        self.system::<Pod>().list(&ours).await.unwrap().items
    }

    async fn scale_gateways(&self, replicas: i32) {
        let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
        self.system::<Deployment>().patch(GATEWAY, &PatchParams::default(), &patch).await.unwrap();
        wait_for(&format!("{replicas} gateways"), secs(120), || async {
            let ready = self.system::<Deployment>().get(GATEWAY).await.unwrap().status?.ready_replicas;
            let pods = self.gateway_pods().await.len();
            (ready.unwrap_or(0) == replicas && pods == usize::try_from(replicas).unwrap()).then_some(())
        })
        .await;
    }
}

/// E16, E25: a tunnel that the rules no longer allow is closed; one that they still allow stays.
#[test]
fn a_changed_policy_closes_what_it_no_longer_allows() {
    shared("egress-tightened", |test| async move {
        test.probe().await;
        let script = r"
import threading
def hold(name):
    try:
        stream = connect(name, 7000)
        echo(stream)
        say(open=name)
        while True:
            echo(stream)
            time.sleep(0.05)
    except (OSError, ValueError) as error:
        say(closed=name, at=time.time(), error=str(error))
for name in ('one.asbx.test', 'other.asbx.test'):
    threading.Thread(target=hold, args=(name,), daemon=True).start()
end = time.time() + 60
while time.time() < end and not os.path.exists('/nowhere'):
    time.sleep(0.2)
";
        test.agent("agent", script, &[tcp("one.asbx.test"), tcp("other.asbx.test")], json!({})).await;
        test.said("agent", "that one tunnel is open", |l| l["open"] == "one.asbx.test").await;
        test.said("agent", "that the other is open", |l| l["open"] == "other.asbx.test").await;
        let changed = std::time::SystemTime::now();
        test.change("agent", json!({"network": {"egress": [tcp("other.asbx.test")]}})).await.unwrap();
        let said = test.said("agent", "that it is closed", |l| l["closed"] == "one.asbx.test").await;
        let closed = said.iter().find(|l| l["closed"] == "one.asbx.test").unwrap()["at"].as_f64().unwrap();
        let after = closed - changed.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        eprintln!("closed {after:.3} s after the change");
        tokio::time::sleep(Duration::from_secs(2)).await;
        let said = agent::lines(&test.log("agent").await);
        assert!(!said.iter().any(|l| l["closed"] == "other.asbx.test"), "{said:#?}");
    });
}

/// A rule that is added opens without a restart.
#[test]
fn a_new_name_and_a_new_port_open_while_it_runs() {
    shared("egress-widened", |test| async move {
        test.probe().await;
        let script = "end = time.time() + 50\n\
                      while time.time() < end:\n    \
                          trial('two', lambda: http('two.asbx.test'))\n    \
                          trial('port', lambda: https('one.asbx.test'))\n    \
                          time.sleep(0.5)";
        test.agent("agent", script, &[host("one.asbx.test", &[80])], json!({})).await;
        let first = test.said("agent", "that it is refused", |l| l["probe"] == "port").await;
        none_done(&first, &["two", "port"]);
        let rules = [host("one.asbx.test", &[80, 443]), host("two.asbx.test", &[80])];
        test.change("agent", json!({"network": {"egress": rules}})).await.unwrap();
        for name in ["two", "port"] {
            test.said("agent", "that it is open now", |l| l["probe"] == name && l["ok"] == true).await;
        }
    });
}

/// E23, E24: one gateway gone is no matter, all of them gone is closed, and back is open again.
#[test]
fn gateways_may_go_and_without_any_nothing_leaves() {
    exclusive("egress-gateways", |test| async move {
        test.probe().await;
        let script = "end = time.time() + 160\n\
                      while time.time() < end:\n    \
                          trial('one', lambda: http('one.asbx.test'))\n    \
                          time.sleep(0.3)";
        test.agent("agent", script, &[host("one.asbx.test", &[80])], json!({"timeout": "3m"})).await;
        test.said("agent", "that it is open", |l| l["ok"] == true).await;
        let pods = test.gateway_pods().await;
        let first = pods[0].metadata.name.clone().unwrap();
        let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        test.system::<Pod>().delete(&first, &now).await.unwrap();
        let before = agent::lines(&test.log("agent").await).len();
        wait_for("five answers after one gateway was killed", secs(30), || async {
            let lines = agent::lines(&test.log("agent").await);
            let good = lines.iter().skip(before).filter(|l| l["ok"] == true).count();
            (good >= 5).then_some(())
        })
        .await;
        test.scale_gateways(0).await;
        let before = agent::lines(&test.log("agent").await).len();
        wait_for("three refusals without a gateway", secs(60), || async {
            let lines = agent::lines(&test.log("agent").await);
            let last: Vec<_> = lines.iter().skip(before + 1).collect();
            assert!(last.iter().all(|l| l["ok"] == false), "open without a gateway: {last:?}");
            (last.len() >= 3).then_some(())
        })
        .await;
        test.scale_gateways(2).await;
        let before = agent::lines(&test.log("agent").await).len();
        wait_for("an answer with gateways again", secs(60), || async {
            let lines = agent::lines(&test.log("agent").await);
            lines.iter().skip(before).any(|l| l["ok"] == true).then_some(())
        })
        .await;
    });
}

/// What the rule says of bytes ends it, with a reason.
#[test]
fn a_budget_of_bytes_ends_the_way_out() {
    shared("egress-bytes", |test| async move {
        test.probe().await;
        let script = "for i in range(40):\n    trial(f'one-{i}', lambda: echo(connect('one.asbx.test', 7000), b'x' * 2000))";
        let spec = json!({"network": {"limits": {"egressBytes": "32Ki"}}});
        test.agent("agent", script, &[tcp("one.asbx.test")], spec).await;
        test.finished_as("agent", "Completed").await;
        let said = agent::lines(&test.log("agent").await);
        all_done(&said, &["one-0", "one-1"]);
        none_done(&said, &["one-20", "one-39"]);
        let egress = test.status("agent").await.egress.expect("status.egress");
        assert!(egress.last_denied.is_some_and(|l| l.contains("EgressBytesExceeded")));
    });
}

/// A connection that lasts is on record before it ends: a gateway that is killed takes no record with it.
#[test]
fn a_gateway_that_is_killed_has_recorded_what_was_open() {
    exclusive("egress-killed", |test| async move {
        if !node_is_this_machine() {
            return;
        }
        test.probe().await;
        let script = r"
stream = connect('one.asbx.test', 7000)
echo(stream)
say(open=True)
try:
    while True:
        echo(stream)
        time.sleep(0.2)
except (OSError, ValueError) as error:
    say(broken=str(error))
trial('again', lambda: echo(connect('one.asbx.test', 7000)))
";
        test.agent("agent", script, &[tcp("one.asbx.test")], json!({"timeout": "3m"})).await;
        test.said("agent", "that it is open", |l| l["open"] == true).await;
        let of = test.get("agent").await.metadata.uid.unwrap();
        let records = |log: &str, activity: &str| -> Vec<Value> {
            let mut lines = agent::lines(log);
            lines.retain(|l| l["metadata"]["correlation_uid"] == of && l["activity_name"] == activity);
            lines
        };
        let gateway = wait_for("a record of the open connection", secs(30), || async {
            for pod in test.gateway_pods().await {
                let log = test.system::<Pod>().logs(&pod.name_any(), &LogParams::default()).await.ok()?;
                if !records(&log, "Open").is_empty() {
                    return Some(pod);
                }
            }
            None
        })
        .await;
        let name = gateway.name_any();
        let process = process_of("/agentsandbox", &gateway.uid().unwrap()).expect("the gateway's process");
        kill(process, Signal::SIGKILL).unwrap();
        let said = test.said("agent", "that it goes on elsewhere", |l| l["probe"] == "again").await;
        assert!(said.iter().any(|l| l["broken"].is_string()), "{said:#?}");
        all_done(&said, &["again"]);
        let before = LogParams { previous: true, ..LogParams::default() };
        let log = wait_for("the log of the one that was killed", secs(60), || async {
            test.system::<Pod>().logs(&name, &before).await.ok()
        })
        .await;
        let open = records(&log, "Open");
        assert_eq!(open.len(), 1, "{open:#?}");
        assert_eq!(open[0]["dst_endpoint"]["hostname"], "one.asbx.test");
        assert_eq!(records(&log, "Close").len() + records(&log, "Reset").len(), 0, "it had no time for that");
    });
}
