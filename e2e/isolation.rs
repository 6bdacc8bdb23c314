//! How strongly the agent is separated from its node.
use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use crate::support::{
    agent::{is_done, is_open, lines, probe},
    internet::{ALLOWED, DENIED, ECHO},
    shared,
};

const UID_MAP: &str =
    "say(probe='map', map=[l.split() for l in open('/proc/self/uid_map')], uid=os.getuid())";

#[test]
fn user_namespace_required_runs_in_one_and_says_so() {
    shared("userns", |test| async move {
        let said = test.run("agent", UID_MAP, json!({"isolation": {"userNamespace": "Required"}})).await;
        let map = &probe(&said, "map")["map"][0];
        assert_ne!(map[1], "0", "the namespace's first user is not the node's root: {map}");
        assert!(test.status("agent").await.limits.expect("status.limits").user_namespace);
        let control = test.control("control", UID_MAP).await;
        assert_eq!(probe(&control, "map")["map"][0][1], "0", "a plain Pod has the node's users: {control:?}");
    });
}

#[test]
fn user_namespace_disabled_runs_in_none_and_not_as_root() {
    shared("no-userns", |test| async move {
        let said = test.run("agent", UID_MAP, json!({"isolation": {"userNamespace": "Disabled"}})).await;
        let line = probe(&said, "map");
        assert_eq!(line["map"][0][1], "0", "{line}");
        assert!(line["uid"].as_i64().unwrap() >= 100_000, "a user that nobody else has: {line}");
    });
}

#[test]
fn user_namespace_required_with_a_runtime_class_is_refused() {
    shared("userns-class", |test| async move {
        let spec = json!({"isolation": {"userNamespace": "Required", "runtimeClassName": "gvisor"}});
        test.sandbox("agent", "pass", spec).await;
        test.refused_as("agent", "UserNamespaceUnavailable").await;
    });
}

#[test]
fn gvisor_runs_the_agent_and_its_policy_holds() {
    shared("gvisor", |test| async move {
        if !test.has_gvisor().await {
            return;
        }
        let script = format!(
            "tcp('allowed', '{ALLOWED}', {ECHO}, tries=6)\ntcp('target', '{DENIED}', {ECHO})\n\
             attempt('dmesg', lambda: open('/proc/version').read())"
        );
        let control = test.control("control", &script).await;
        assert!(is_open(&control, "target"), "{control:?}");
        let spec = json!({
            "isolation": {"runtimeClassName": "gvisor"},
            "resources": {"memory": "256Mi"},
            "network": {"egress": [{"cidr": format!("{ALLOWED}/32"), "ports": [ECHO]}]},
        });
        let said = test.run("agent", &script, spec).await;
        assert!(is_open(&said, "allowed") && !is_open(&said, "target"), "{said:?}");
        let (inside, outside) = (&probe(&said, "dmesg")["value"], &probe(&control, "dmesg")["value"]);
        assert_ne!(inside, outside, "the agent sees gVisor's kernel, not the node's");
    });
}

/// gVisor lets a container signal its own first process, and has no Landlock that would scope it.
#[test]
fn gvisor_does_not_let_the_agent_stop_its_guard() {
    shared("gvisor-guard", |test| async move {
        if !test.has_gvisor().await {
            return;
        }
        let script = r"
import ctypes, fcntl, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
libc = ctypes.CDLL(None, use_errno=True)
def call(*arguments):
    if libc.syscall(*arguments) < 0:
        raise OSError(ctypes.get_errno(), '')
directory = os.open('/proc/1', os.O_DIRECTORY)
reader, writer = os.pipe()
for number in (15, 19, 9):
    attempt('kill %d' % number, lambda: os.kill(1, number))
    attempt('pidfd %d' % number, lambda: call(424, directory, number, 0, 0))
for owner in (1, -1):
    attempt('owner %d' % owner, lambda: fcntl.fcntl(reader, fcntl.F_SETOWN, owner))
attempt('signal', lambda: fcntl.fcntl(reader, 10, 9))
fcntl.fcntl(reader, fcntl.F_SETFL, fcntl.fcntl(reader, fcntl.F_GETFL) | fcntl.FASYNC)
os.write(writer, b'x')
attempt('control', lambda: fcntl.fcntl(reader, fcntl.F_SETOWN, os.getpid()))
while True:
    time.sleep(1)
";
        let spec = json!({
            "isolation": {"runtimeClassName": "gvisor"}, "resources": {"memory": "256Mi"}, "timeout": "10s",
        });
        test.sandbox("agent", script, spec).await;
        test.finished_as("agent", "DeadlineExceeded").await;
        let said = lines(&test.pod_log(&test.pod_name("agent").await, "agent").await);
        for name in ["kill", "pidfd"].map(|how| [15, 19, 9].map(|n| format!("{how} {n}"))).concat() {
            assert!(!is_done(&said, &name), "{name}: {said:#?}");
        }
        for name in ["owner 1", "owner -1", "signal"] {
            assert!(!is_done(&said, name), "{name}: {said:#?}");
        }
        assert!(is_done(&said, "control"), "{said:#?}");
    });
}

#[test]
fn the_pod_asks_for_nothing_that_restricted_forbids() {
    shared("restricted", |test| async move {
        // The namespace enforces it, so that the Pod exists is the proof; the rest is what a person would look for.
        test.run("agent", "pass", json!({})).await;
        let pod = test.api::<Pod>().get(&test.pod_name("agent").await).await.unwrap().spec.unwrap();
        assert_eq!(pod.automount_service_account_token, Some(false));
        assert_eq!((pod.host_network, pod.host_pid, pod.host_ipc), (None, None, None));
        let containers: Vec<_> = pod.init_containers.iter().flatten().chain(&pod.containers).collect();
        assert!(containers.len() >= 3, "install, sidecar and agent");
        for container in containers {
            let security = container.security_context.as_ref().unwrap();
            assert_eq!(security.read_only_root_filesystem, Some(true), "{}", container.name);
            assert_eq!(security.allow_privilege_escalation, Some(false), "{}", container.name);
        }
    });
}
