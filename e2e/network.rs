//! Who the agent can talk to. Every refusal has its positive control: the same probe from a plain Pod.
use serde_json::{Value, json};

use crate::support::{
    Test,
    agent::{self, is_open, probe},
    internet::{ALLOWED, DENIED, ECHO, ECHO_UDP, METADATA, OTHER},
    sandbox::merge,
    secs, shared, wait_for,
};

/// The one rule of most tests here.
fn allowed_only() -> Value {
    json!({"network": {"egress": [{"cidr": format!("{ALLOWED}/32"), "ports": [ECHO]}]}})
}

/// Finds that `script`, which makes the probe `target`, gets through in a plain Pod and not in a sandbox that may reach
/// one other address, which it does reach.
async fn refused(test: &Test, script: &str) {
    let control = test.control("control", script).await;
    assert!(is_open(&control, "target"), "the control reaches it: {control:?}");
    let script = format!("tcp('allowed', '{ALLOWED}', {ECHO}, tries=5)\n{script}");
    let said = test.run("agent", &script, allowed_only()).await;
    assert!(is_open(&said, "allowed"), "the allowed address is reached: {said:?}");
    assert!(!is_open(&said, "target"), "the target is refused: {said:?}");
}

#[test]
fn allowed_address_is_reached_and_denied_address_is_not() {
    shared("denied-address", |test| async move {
        refused(&test, &format!("tcp('target', '{DENIED}', {ECHO})")).await;
    });
}

#[test]
fn another_port_of_the_allowed_address_is_denied() {
    shared("denied-port", |test| async move {
        refused(&test, &format!("tcp('target', '{ALLOWED}', 80)")).await;
    });
}

#[test]
fn metadata_address_is_denied() {
    shared("metadata", |test| async move {
        refused(&test, &format!("tcp('target', '{METADATA}', 80)")).await;
    });
}

#[test]
fn api_server_is_denied() {
    shared("api-server", |test| async move {
        let (address, port) = test.api_server().await;
        refused(&test, &format!("tcp('target', '{address}', {port})")).await;
    });
}

#[test]
fn kubelet_is_denied() {
    shared("kubelet", |test| async move {
        let address = test.node_address().await;
        refused(&test, &format!("tcp('target', '{address}', 10250)")).await;
    });
}

#[test]
fn other_pod_is_denied() {
    shared("other-pod", |test| async move {
        let address = test.server_pod("server").await;
        refused(&test, &format!("tcp('target', '{address}', 8080)")).await;
    });
}

#[test]
fn udp_is_denied_where_tcp_is_allowed() {
    shared("udp-denied", |test| async move {
        refused(&test, &format!("udp('target', '{ALLOWED}', {ECHO_UDP})")).await;
    });
}

#[test]
fn udp_is_reached_where_a_rule_says_udp() {
    shared("udp-allowed", |test| async move {
        let rule = json!({"cidr": format!("{ALLOWED}/32"), "ports": [ECHO_UDP], "protocol": "UDP"});
        let script = format!("udp('allowed', '{ALLOWED}', {ECHO_UDP}, 8)\ntcp('tcp', '{ALLOWED}', {ECHO})");
        let said = test.run("agent", &script, json!({"network": {"egress": [rule]}})).await;
        assert!(is_open(&said, "allowed"), "{said:?}");
        assert!(!is_open(&said, "tcp"), "TCP is not opened by a rule for UDP: {said:?}");
    });
}

#[test]
fn ipv6_is_denied_where_the_cluster_has_it() {
    shared("ipv6", |test| async move {
        let server = test.server_pod("server").await;
        let pods = test.api::<k8s_openapi::api::core::v1::Pod>();
        let status = pods.get("server").await.unwrap().status.unwrap();
        let addresses = status.pod_ips.unwrap_or_default();
        let Some(six) = addresses.iter().find(|a| a.ip.contains(':')) else {
            eprintln!("this cluster gives Pods no IPv6 address ({server} only): nothing to deny");
            return;
        };
        refused(&test, &format!("tcp('target', '{}', 8080)", six.ip)).await;
    });
}

#[test]
fn no_rule_means_nothing_is_reached_and_no_name_resolves() {
    shared("no-rule", |test| async move {
        let script = format!(
            "tcp('target', '{ALLOWED}', {ECHO})\n\
             attempt('name', lambda: str(socket.getaddrinfo('kubernetes.default.svc', 443)))\n"
        );
        let control = test.control("control", &script).await;
        assert!(is_open(&control, "target"), "the control reaches it: {control:?}");
        let said = test.run("agent", &script, json!({})).await;
        assert!(!is_open(&said, "target"), "{said:?}");
        assert_eq!(probe(&said, "name")["ok"], false, "{said:?}");
    });
}

#[test]
fn nothing_reaches_the_agent() {
    shared("ingress", |test| async move {
        let script = "import threading\nthreading.Timer(25, lambda: os._exit(0)).start()\n".to_owned()
            + crate::support::agent::SERVER;
        test.sandbox("agent", &script, json!({})).await;
        let open = test.server_pod("server").await;
        test.said("agent", "that it listens", |line| line["listening"] == 8080).await;
        let agent = test.pod_address(&test.pod_name("agent").await).await;
        let probes = format!("tcp('agent', '{agent}', 8080)\ntcp('server', '{open}', 8080, tries=5)");
        let control = test.control("control", &probes).await;
        assert!(is_open(&control, "server"), "a Pod without policy is reached: {control:?}");
        assert!(!is_open(&control, "agent"), "the agent is not: {control:?}");
    });
}

/// The script of an agent that tries `target` all the time.
fn trying(target: &str) -> String {
    format!("while True:\n    tcp('target', '{target}', {ECHO}, tries=1, wait=1)\n    time.sleep(0.5)")
}

/// Waits until what the agent tries is closed, of which it has said `before` lines. Established or not, no connection made
/// after the policy took effect gets through: three refusals in a row.
async fn closed(test: &Test, before: usize) {
    wait_for("the target to be closed", secs(30), || async {
        let lines = agent::lines(&test.log("agent").await);
        let last: Vec<_> = lines.iter().skip(before).rev().take(3).collect();
        (last.len() == 3 && last.iter().all(|line| line["open"] == false)).then_some(())
    })
    .await;
}

#[test]
fn a_rule_added_while_it_runs_opens_and_removed_closes() {
    shared("rule-change", |test| async move {
        test.sandbox("agent", &trying(OTHER), allowed_only()).await;
        test.said("agent", "that the target is closed", |line| line["open"] == false).await;

        let both = json!([
            {"cidr": format!("{ALLOWED}/32"), "ports": [ECHO]},
            {"cidr": format!("{OTHER}/32"), "ports": [ECHO]},
        ]);
        test.change("agent", json!({"network": {"egress": both}})).await.unwrap();
        let before = test.said("agent", "that the target is open", |line| line["open"] == true).await.len();

        test.change("agent", allowed_only()).await.unwrap();
        closed(&test, before).await;
    });
}

#[test]
fn a_refused_edit_is_seen_while_the_agent_runs() {
    shared("refused-edit", |test| async move {
        test.sandbox("agent", "time.sleep(600)", allowed_only()).await;
        test.running("agent").await;
        let both = json!([
            {"cidr": format!("{ALLOWED}/32"), "ports": [ECHO]},
            {"cidr": "127.0.0.0/8", "ports": [80]},
        ]);
        test.change("agent", json!({"network": {"egress": both}})).await.unwrap();
        let stalled = test.wait_condition("agent", "Stalled", "True", secs(20)).await;
        assert_eq!(stalled.reason, "ReservedAddress", "{stalled:?}");
        let status = test.status("agent").await;
        assert_eq!(status.reason.as_deref(), Some("SpecRefused"), "{status:?}");
        assert!(status.message.is_some_and(|m| m.contains("spec.network.egress[1].cidr")));
        test.wait_condition("agent", "Ready", "False", secs(1)).await;

        test.change("agent", allowed_only()).await.unwrap();
        test.wait_condition("agent", "Stalled", "False", secs(20)).await;
        let status = test.running("agent").await;
        assert_eq!(status.reason.as_deref(), Some("AgentRunning"), "{status:?}");
    });
}

/// What the API server takes for a duration and what the operator does have to be the same: an edit that only one of them
/// refuses must not keep open what it closes.
#[test]
fn an_edit_closes_what_it_removes_however_its_times_are_written() {
    shared("odd-edit", |test| async move {
        test.sandbox("agent", &trying(ALLOWED), allowed_only()).await;
        let before = test.said("agent", "that the target is open", |line| line["open"] == true).await.len();
        let edit = json!({"network": {"egress": null}, "ttlAfterFinished": "0000000000000000001h"});
        test.change("agent", edit).await.unwrap();
        closed(&test, before).await;
    });
}

#[test]
fn a_service_rule_opens_the_service_and_nothing_beside_it() {
    shared("service-rule", |test| async move {
        test.server_pod("server").await;
        let beside = test.server_pod("beside").await;
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "model"},
            "spec": {"selector": {"app": "server"}, "ports": [{"port": 80, "targetPort": 8080}]},
        });
        let made = test.create(&service).await.unwrap();
        let address = made["spec"]["clusterIP"].as_str().unwrap();
        let script = format!("tcp('service', '{address}', 80, tries=8)\ntcp('beside', '{beside}', 8080)");
        let control = test.control("control", &script).await;
        assert!(is_open(&control, "service") && is_open(&control, "beside"), "{control:?}");
        let rule = json!({"service": {"name": "model"}, "ports": [80]});
        let said = test.run("agent", &script, json!({"network": {"egress": [rule]}})).await;
        assert!(is_open(&said, "service"), "{said:?}");
        assert!(!is_open(&said, "beside"), "{said:?}");
    });
}

#[test]
fn a_service_that_is_not_there_is_refused() {
    shared("service-missing", |test| async move {
        let rule = json!({"service": {"name": "nowhere"}, "ports": [80]});
        test.sandbox("agent", "pass", json!({"network": {"egress": [rule]}})).await;
        let condition = test.refused_as("agent", "ServiceNotFound").await;
        assert!(condition.message.contains("nowhere"), "{}", condition.message);
    });
}

#[test]
fn a_service_without_selector_is_refused() {
    shared("service-external", |test| async move {
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "elsewhere"},
            "spec": {"type": "ExternalName", "externalName": "elsewhere.example"},
        });
        test.create(&service).await.unwrap();
        let rule = json!({"service": {"name": "elsewhere"}, "ports": [80]});
        test.sandbox("agent", "pass", json!({"network": {"egress": [rule]}})).await;
        test.refused_as("agent", "ServiceNotSelectable").await;
    });
}

#[test]
fn an_address_of_the_cluster_itself_is_refused() {
    shared("reserved", |test| async move {
        for (name, cidr) in
            [("pods", "10.244.0.0/24"), ("metadata", "169.254.169.254/32"), ("loopback", "127.0.0.0/8")]
        {
            let rule = json!({"cidr": cidr, "ports": [80]});
            test.sandbox(name, "pass", json!({"network": {"egress": [rule]}})).await;
            test.refused_as(name, "ReservedAddress").await;
        }
    });
}

#[test]
fn a_spec_that_is_corrected_late_has_its_whole_time_to_start() {
    shared("corrected-late", |test| async move {
        let rule = |cidr| json!({"network": {"egress": [{"cidr": cidr, "ports": [80]}]}});
        let mut spec = rule("127.0.0.0/8");
        merge(&mut spec, json!({"startupTimeout": "45s"}));
        test.sandbox("agent", "say(runs=True)", spec).await;
        test.refused_as("agent", "ReservedAddress").await;
        tokio::time::sleep(secs(46)).await;
        test.change("agent", rule("203.0.113.10/32")).await.unwrap();
        test.finished_as("agent", "Completed").await;
    });
}
