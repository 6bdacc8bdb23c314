//! By which the controller knows a Pod for its own work before status names it: an annotation that only the operator can
//! make, over what of the Pod's spec decides what runs in it.
//!
//! It is over the Pod's own spec and not over what would be planned now: an operator that was upgraded between the
//! creation and the status still knows its Pod.
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{keyed, labels};
use crate::policy::digest::hex;

/// The seal of the Pod of the sandbox with this uid, whose spec has this [`form`].
pub fn seal(key: &[u8; 32], uid: &str, form: &str) -> String {
    keyed::of(key, "pod", &[uid, form])
}

/// Seals `pod`.
pub(super) fn put(pod: &mut Pod, key: &[u8; 32], uid: &str) {
    let form = form(pod.spec.as_ref().unwrap_or(&PodSpec::default()));
    let annotations = pod.metadata.annotations.get_or_insert_default();
    annotations.insert(labels::POD_DIGEST.to_owned(), seal(key, uid, &form));
}

/// SHA-256 of what the operator sets in a Pod's spec and what else could change what runs, without what the API server
/// or admission fill in or write differently: quantities, probes' numbers, tolerations, scheduling.
pub fn form(spec: &PodSpec) -> String {
    let init = spec.init_containers.iter().flatten();
    let mut value = json!({
        "containers": init.chain(&spec.containers).map(container).collect::<Vec<_>>(),
        "volumes": spec.volumes,
        "userNamespace": spec.host_users == Some(false),
        "hostNetwork": spec.host_network,
        "hostPID": spec.host_pid,
        "hostIPC": spec.host_ipc,
        "shareProcessNamespace": spec.share_process_namespace,
        // Admission writes the name that is meant where none is.
        "serviceAccountName": spec.service_account_name.as_deref().filter(|name| *name != "default"),
        "token": spec.automount_service_account_token == Some(false),
        "runtimeClassName": spec.runtime_class_name,
        "securityContext": spec.security_context,
        "restartPolicy": spec.restart_policy,
        "dnsPolicy": spec.dns_policy,
        "dnsConfig": spec.dns_config,
        "hostAliases": spec.host_aliases,
    });
    plain(&mut value);
    hex(&Sha256::digest(value.to_string()))
}

fn container(container: &Container) -> Value {
    let probes = [&container.startup_probe, &container.liveness_probe, &container.readiness_probe];
    let commands = probes.map(|probe| probe.as_ref().and_then(|probe| probe.exec.as_ref()));
    json!({
        "name": container.name,
        "image": container.image,
        "command": container.command,
        "args": container.args,
        "env": container.env,
        "envFrom": container.env_from,
        "workingDir": container.working_dir,
        "restartPolicy": container.restart_policy,
        "securityContext": container.security_context,
        "volumeMounts": container.volume_mounts,
        "volumeDevices": container.volume_devices,
        "lifecycle": container.lifecycle,
        "probes": commands,
    })
}

/// Takes off what is the same as nothing, and what is written in more than one way.
fn plain(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.remove("sizeLimit");
            map.remove("recursiveReadOnly");
            if map.get("procMount").is_some_and(|mount| mount == "Default") {
                map.remove("procMount");
            }
            map.values_mut().for_each(plain);
            // Without the word it is allowed.
            map.retain(|key, v| key == "allowPrivilegeEscalation" && v.is_boolean() || !is_nothing(v));
        }
        Value::Array(list) => list.iter_mut().for_each(plain),
        _ => {}
    }
}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> Value {
        json!({
            "containers": [{"name": "agent", "image": "i", "command": ["c"], "env": [{"name": "A", "value": ""}],
                "securityContext": {"runAsUser": 1000, "privileged": false},
                "volumeMounts": [{"name": "v", "mountPath": "/v", "readOnly": false}]}],
            "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1024Mi"}}],
            "automountServiceAccountToken": false,
        })
    }

    fn form_of(spec: Value) -> String {
        form(&serde_json::from_value(spec).unwrap())
    }

    #[test]
    fn what_the_api_server_fills_in_is_no_difference() {
        let mut served = spec();
        served["serviceAccountName"] = json!("default");
        served["schedulerName"] = json!("default-scheduler");
        served["tolerations"] = json!([{"key": "k", "operator": "Exists"}]);
        served["nodeName"] = json!("node");
        served["activeDeadlineSeconds"] = json!(1);
        served["priority"] = json!(0);
        served["hostNetwork"] = json!(false);
        served["containers"][0]["imagePullPolicy"] = json!("Always");
        served["containers"][0]["terminationMessagePath"] = json!("/dev/termination-log");
        served["containers"][0]["env"][0] = json!({"name": "A"});
        served["containers"][0]["volumeMounts"][0] = json!({"name": "v", "mountPath": "/v"});
        served["containers"][0]["securityContext"] = json!({"runAsUser": 1000, "procMount": "Default"});
        served["volumes"][0]["emptyDir"]["sizeLimit"] = json!("1Gi");
        assert_eq!(form_of(served), form_of(spec()));
    }

    #[test]
    fn what_decides_what_runs_is_a_difference() {
        let agent = "/containers/0";
        for (at, key, value) in [
            (agent, "image", json!("j")),
            (agent, "command", json!(["d"])),
            (agent, "args", json!(["d"])),
            (agent, "env", json!([])),
            (agent, "envFrom", json!([{"secretRef": {"name": "s"}}])),
            (agent, "lifecycle", json!({"postStart": {"exec": {"command": ["x"]}}})),
            (agent, "livenessProbe", json!({"exec": {"command": ["x"]}})),
            (agent, "securityContext", json!({"runAsUser": 1000, "privileged": true})),
            (agent, "securityContext", json!({"runAsUser": 1000, "allowPrivilegeEscalation": false})),
            (agent, "volumeMounts", json!([])),
            ("", "volumes", json!([{"name": "v", "hostPath": {"path": "/"}}])),
            ("", "hostNetwork", json!(true)),
            ("", "hostPID", json!(true)),
            ("", "hostUsers", json!(false)),
            ("", "serviceAccountName", json!("admin")),
            ("", "automountServiceAccountToken", json!(true)),
            ("", "shareProcessNamespace", json!(true)),
            ("", "securityContext", json!({"runAsUser": 1})),
            ("", "initContainers", json!([{"name": "x", "image": "i"}])),
        ] {
            let mut other = spec();
            let part = other.pointer_mut(at).unwrap();
            part[key] = value.clone();
            assert_ne!(form_of(other), form_of(spec()), "{key}: {value}");
        }
    }
}
