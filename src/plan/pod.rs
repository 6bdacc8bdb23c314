//! The Pod of one sandbox: `install` brings `sandbox-init`, `sidecar` is the start gate and takes the audit records,
//! `agent` runs what the user asked for. It passes the Pod Security Standards' level `restricted`.
use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::{
    api::core::v1::{
        Capabilities, Container, Pod, PodDNSConfig, PodSecurityContext, PodSpec, ResourceRequirements,
        SeccompProfile, SecurityContext, Sysctl,
    },
    apimachinery::pkg::api::resource::Quantity,
};

use super::{Settings, ValidatedSandbox, agent, labels, metadata, seal, sidecar, volumes};
use crate::init::config::KILL_PATIENCE;

/// User and group of the operator's own containers.
pub(super) const OPERATOR_USER: i64 = 65_532;
/// Seconds that the kubelet waits longer than `sandbox-init` may take before it kills.
const KUBELET_SLACK_SECONDS: i64 = 5;

/// The Pod of `sandbox`.
pub(super) fn build(sandbox: &ValidatedSandbox, settings: &Settings) -> Pod {
    let mut meta = metadata(&sandbox.marks());
    let identity = sandbox.identity();
    meta.annotations
        .get_or_insert_default()
        .insert(labels::NAME.to_owned(), format!("{}/{}", identity.namespace, identity.name));
    if let Some(reach) = sidecar::reach(settings) {
        meta.annotations
            .get_or_insert_default()
            .insert(labels::START_GATE.to_owned(), sidecar::gate(sandbox, reach));
    }
    let mut pod = Pod { metadata: meta, spec: Some(spec(sandbox, settings)), status: None };
    seal::put(&mut pod, &settings.directory_key, &identity.uid);
    pod
}

fn spec(sandbox: &ValidatedSandbox, settings: &Settings) -> PodSpec {
    let ending = ending(settings);
    PodSpec {
        restart_policy: Some("Never".to_owned()),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        host_users: sandbox.user_namespace().then_some(false),
        runtime_class_name: sandbox.runtime_class().map(str::to_owned),
        priority_class_name: settings.priority_class.clone(),
        active_deadline_seconds: Some(deadline_seconds(
            sandbox.timeout(),
            sandbox.startup_timeout(),
            settings,
        )),
        termination_grace_period_seconds: Some(ending + KUBELET_SLACK_SECONDS),
        dns_policy: Some("None".to_owned()),
        dns_config: Some(PodDNSConfig {
            nameservers: Some(vec!["127.0.0.1".to_owned()]),
            ..PodDNSConfig::default()
        }),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(OPERATOR_USER),
            run_as_group: Some(sandbox.group()),
            fs_group: Some(sandbox.group()),
            // A volume that has the group already is left as it is, also what somebody changed in it since.
            fs_group_change_policy: Some("OnRootMismatch".to_owned()),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".to_owned(),
                localhost_profile: None,
            }),
            sysctls: Some(vec![Sysctl {
                name: "net.ipv4.ip_unprivileged_port_start".to_owned(),
                value: "0".to_owned(),
            }]),
            ..PodSecurityContext::default()
        }),
        init_containers: Some(vec![install(sandbox, settings), sidecar::container(sandbox, settings)]),
        containers: vec![agent::container(sandbox, settings)],
        volumes: Some(volumes::volumes(sandbox)),
        ..PodSpec::default()
    }
}

/// Seconds that `sandbox-init` may take from SIGTERM to its own end.
fn ending(settings: &Settings) -> i64 {
    seconds(settings.grace) + seconds(KILL_PATIENCE)
}

/// `activeDeadlineSeconds` of a Pod whose agent has these times.
pub fn deadline_seconds(timeout: Duration, startup_timeout: Duration, settings: &Settings) -> i64 {
    seconds(startup_timeout) + seconds(timeout) + ending(settings) + seconds(settings.startup_slack)
}

fn install(sandbox: &ValidatedSandbox, settings: &Settings) -> Container {
    let directory = sandbox.own_directory();
    Container {
        name: "install".to_owned(),
        command: Some(vec![
            "/sandbox-init".to_owned(),
            "install".to_owned(),
            format!("{directory}/sandbox-init"),
        ]),
        volume_mounts: Some(vec![volumes::own_mount(volumes::INIT, directory, false)]),
        ..operator_container(settings)
    }
}

/// What the operator's own containers have in common. They have limits, because a namespace's quota may demand them.
pub(super) fn operator_container(settings: &Settings) -> Container {
    Container {
        image: Some(settings.image.clone()),
        image_pull_policy: Some(settings.image_pull_policy.clone()),
        security_context: Some(security_context(OPERATOR_USER)),
        resources: Some(ResourceRequirements {
            requests: Some(quantities([("cpu", "10m"), ("memory", "32Mi"), ("ephemeral-storage", "48Mi")])),
            limits: Some(quantities([("cpu", "200m"), ("memory", "32Mi"), ("ephemeral-storage", "48Mi")])),
            claims: None,
        }),
        ..Container::default()
    }
}

/// The security context of every container.
pub(super) fn security_context(user: i64) -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        capabilities: Some(Capabilities { add: None, drop: Some(vec!["ALL".to_owned()]) }),
        read_only_root_filesystem: Some(true),
        run_as_non_root: Some(true),
        run_as_user: Some(user),
        ..SecurityContext::default()
    }
}

/// A map of quantities.
pub(super) fn quantities<const N: usize>(pairs: [(&str, &str); N]) -> BTreeMap<String, Quantity> {
    pairs.into_iter().map(|(name, value)| (name.to_owned(), Quantity(value.to_owned()))).collect()
}

/// `text` so that the kubelet's expansion of `$(NAME)` gives it back unchanged: the kubelet reads every `$$` as one
/// `$` (`kubernetes/third_party/forked/golang/expansion/expand.go`), so every one is doubled.
pub(super) fn literal(text: &str) -> String {
    text.replace('$', "$$")
}

/// Whole seconds, rounded up.
pub(super) fn seconds(duration: Duration) -> i64 {
    let whole = i64::try_from(duration.as_secs()).unwrap_or(i64::MAX / 8);
    if duration.subsec_nanos() > 0 { whole.saturating_add(1) } else { whole }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dollars_are_doubled() {
        assert_eq!(literal("a $(HOME) $$ b$"), "a $$(HOME) $$$$ b$$");
    }
}
