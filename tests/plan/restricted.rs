//! The Pod Security Standards' level `restricted` (which contains `baseline`), control by control in the order and
//! with the field lists of <https://kubernetes.io/docs/concepts/security/pod-security-standards/>, without the
//! relaxations for user namespaces. Stricter in one place: capabilities may not be added at all.
use serde_json::{Value, json};

const CONTAINERS: [&str; 3] = ["containers", "initContainers", "ephemeralContainers"];

const VOLUMES: [&str; 8] = [
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
];

const SYSCTLS: [&str; 10] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
];

/// What in `pod` the level forbids; empty where it passes.
pub fn violations(pod: &Value) -> Vec<String> {
    let mut found = Findings::default();
    let spec = &pod["spec"];
    of_pod(pod, &mut found);
    for kind in CONTAINERS {
        for container in spec[kind].as_array().into_iter().flatten() {
            of_container(container, &spec["securityContext"], &mut found);
        }
    }
    found.0
}

#[derive(Default)]
struct Findings(Vec<String>);

impl Findings {
    /// `value` must be undefined or one of `allowed`.
    fn allow(&mut self, what: &str, value: &Value, allowed: &[Value]) {
        if !value.is_null() && !allowed.contains(value) {
            self.0.push(format!("{what} is {value}"));
        }
    }

    /// `value` must be one of `allowed`.
    fn require(&mut self, what: &str, value: &Value, allowed: &[Value]) {
        if !allowed.contains(value) {
            self.0.push(format!("{what} is {value}"));
        }
    }
}

/// Fields that a Pod's and a container's security context share.
fn of_context(context: &Value, found: &mut Findings) {
    found.allow("hostProcess", &context["windowsOptions"]["hostProcess"], &[json!(false)]);
    let profiles = [json!("RuntimeDefault"), json!("Localhost")];
    found.allow("AppArmor", &context["appArmorProfile"]["type"], &profiles);
    let types = ["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"];
    found.allow("SELinux type", &context["seLinuxOptions"]["type"], &types.map(Value::from));
    found.allow("SELinux user", &context["seLinuxOptions"]["user"], &[json!("")]);
    found.allow("SELinux role", &context["seLinuxOptions"]["role"], &[json!("")]);
    found.allow("seccomp", &context["seccompProfile"]["type"], &profiles);
    found.allow("runAsNonRoot", &context["runAsNonRoot"], &[json!(true)]);
    if context["runAsUser"] == 0 {
        found.0.push("runAsUser is 0".to_owned());
    }
}

fn of_pod(pod: &Value, found: &mut Findings) {
    let spec = &pod["spec"];
    for field in ["hostNetwork", "hostPID", "hostIPC"] {
        found.allow(field, &spec[field], &[json!(false)]);
    }
    for (name, value) in pod["metadata"]["annotations"].as_object().into_iter().flatten() {
        if name.starts_with("container.apparmor.security.beta.kubernetes.io/") {
            found.require("AppArmor annotation", value, &[json!("runtime/default")]);
        }
    }
    of_context(&spec["securityContext"], found);
    for sysctl in spec["securityContext"]["sysctls"].as_array().into_iter().flatten() {
        found.require("sysctl", &sysctl["name"], &SYSCTLS.map(Value::from));
    }
    for volume in spec["volumes"].as_array().into_iter().flatten() {
        let kinds: Vec<&str> =
            volume.as_object().unwrap().keys().map(String::as_str).filter(|k| *k != "name").collect();
        if kinds.len() != 1 || !VOLUMES.contains(&kinds[0]) {
            found.0.push(format!("volume {} is {kinds:?}", volume["name"]));
        }
    }
}

fn of_container(container: &Value, pods: &Value, found: &mut Findings) {
    let context = &container["securityContext"];
    of_context(context, found);
    found.allow("privileged", &context["privileged"], &[json!(false)]);
    found.allow("capabilities.add", &context["capabilities"]["add"], &[json!([])]);
    found.require("capabilities.drop", &context["capabilities"]["drop"], &[json!(["ALL"])]);
    found.allow("procMount", &context["procMount"], &[json!("Default")]);
    found.require("allowPrivilegeEscalation", &context["allowPrivilegeEscalation"], &[json!(false)]);
    for port in container["ports"].as_array().into_iter().flatten() {
        found.allow("hostPort", &port["hostPort"], &[json!(0)]);
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        of_handler(&container[probe], found);
    }
    for hook in ["postStart", "preStop"] {
        of_handler(&container["lifecycle"][hook], found);
    }
    // Either the container says it, or the Pod does for all of them.
    let own_or_pods = |pointer: &str| match context.pointer(pointer) {
        None | Some(Value::Null) => pods.pointer(pointer).cloned().unwrap_or_default(),
        Some(own) => own.clone(),
    };
    found.require("runAsNonRoot", &own_or_pods("/runAsNonRoot"), &[json!(true)]);
    let profiles = [json!("RuntimeDefault"), json!("Localhost")];
    found.require("seccomp", &own_or_pods("/seccompProfile/type"), &profiles);
}

fn of_handler(handler: &Value, found: &mut Findings) {
    for kind in ["httpGet", "tcpSocket"] {
        found.allow("host of a probe or hook", &handler[kind]["host"], &[json!("")]);
    }
}

fn set(pod: &mut Value, path: &str, to: Value) {
    let mut at = pod;
    for part in path.split('/') {
        at = match part.parse::<usize>() {
            Ok(index) => &mut at[index],
            Err(_) => &mut at[part],
        };
    }
    *at = to;
}

/// The checks above find what they are there for.
#[test]
fn every_control_is_checked() {
    let context = json!({"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}});
    let good = json!({"metadata": {}, "spec": {
        "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{"name": "agent", "securityContext": context}],
        "initContainers": [{"name": "sidecar", "securityContext": context}],
        "volumes": [{"name": "a", "emptyDir": {}}],
    }});
    assert_eq!(violations(&good), [""; 0]);
    let own = "spec/containers/0/securityContext";
    for (path, to) in [
        ("spec/hostNetwork", json!(true)),
        ("spec/hostPID", json!(true)),
        ("spec/hostIPC", json!(true)),
        ("spec/securityContext/windowsOptions", json!({"hostProcess": true})),
        ("spec/securityContext/appArmorProfile", json!({"type": "Unconfined"})),
        ("spec/securityContext/seLinuxOptions", json!({"type": "spc_t"})),
        ("spec/securityContext/seLinuxOptions", json!({"role": "sysadm_r"})),
        ("spec/securityContext/seccompProfile", json!({"type": "Unconfined"})),
        ("spec/securityContext/seccompProfile", Value::Null),
        ("spec/securityContext/runAsNonRoot", Value::Null),
        ("spec/securityContext/runAsNonRoot", json!(false)),
        ("spec/securityContext/runAsUser", json!(0)),
        ("spec/securityContext/sysctls", json!([{"name": "kernel.msgmax", "value": "1"}])),
        (
            "metadata/annotations",
            json!({"container.apparmor.security.beta.kubernetes.io/agent": "unconfined"}),
        ),
        ("spec/volumes/0", json!({"name": "a", "hostPath": {"path": "/"}})),
        ("spec/volumes/0", json!({"name": "a", "nfs": {"server": "s", "path": "/"}})),
        ("spec/volumes/0", json!({"name": "a", "emptyDir": {}, "hostPath": {"path": "/"}})),
        (&format!("{own}/privileged"), json!(true)),
        (&format!("{own}/capabilities/add"), json!(["SYS_ADMIN"])),
        (&format!("{own}/capabilities/drop"), json!([])),
        (&format!("{own}/capabilities"), Value::Null),
        (&format!("{own}/procMount"), json!("Unmasked")),
        (&format!("{own}/allowPrivilegeEscalation"), json!(true)),
        (&format!("{own}/allowPrivilegeEscalation"), Value::Null),
        (&format!("{own}/runAsNonRoot"), json!(false)),
        (&format!("{own}/runAsUser"), json!(0)),
        (&format!("{own}/seccompProfile"), json!({"type": "Unconfined"})),
        ("spec/containers/0/ports", json!([{"containerPort": 1, "hostPort": 1}])),
        ("spec/containers/0/livenessProbe", json!({"httpGet": {"host": "198.51.100.1", "port": 1}})),
        ("spec/containers/0/lifecycle", json!({"preStop": {"tcpSocket": {"host": "h", "port": 1}}})),
        ("spec/initContainers/0/securityContext", Value::Null),
        ("spec/ephemeralContainers", json!([{"name": "debug"}])),
    ] {
        let mut bad = good.clone();
        set(&mut bad, path, to.clone());
        assert_ne!(violations(&bad), [""; 0], "{path}: {to}");
    }
}
