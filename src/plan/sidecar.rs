//! The native sidecar: start gate, way to the gateway, audit intake.
use std::net::SocketAddr;

use k8s_openapi::api::core::v1::{Container, EnvVar, ExecAction, Probe, ResourceRequirements};

use super::{GatewayReach, Settings, ValidatedSandbox, pod, volumes};
use crate::egress::containment::CheckName;

/// The container `sidecar`.
pub(super) fn container(sandbox: &ValidatedSandbox, settings: &Settings) -> Container {
    Container {
        name: "sidecar".to_owned(),
        restart_policy: Some("Always".to_owned()),
        command: Some(vec!["/agentsandbox".to_owned(), "sidecar".to_owned()]),
        env: Some(env(sandbox, settings)),
        resources: Some(resources()),
        startup_probe: Some(Probe {
            exec: Some(ExecAction {
                command: Some(vec!["/agentsandbox".to_owned(), "check-ready".to_owned()]),
            }),
            period_seconds: Some(1),
            timeout_seconds: Some(2),
            failure_threshold: Some(probes(sandbox, settings)),
            ..Probe::default()
        }),
        termination_message_policy: Some("File".to_owned()),
        volume_mounts: Some(vec![
            volumes::own_mount(volumes::SPOOL, "/spool", false),
            volumes::own_mount(volumes::TOKEN, volumes::TOKEN_DIRECTORY, true),
        ]),
        ..pod::operator_container(settings)
    }
}

/// Probes that may fail before the kubelet ends the sidecar and starts it anew. One a second, and never fewer than the
/// sandbox has time to start: the gate itself gives up long before and says why, which the kubelet could not.
fn probes(sandbox: &ValidatedSandbox, settings: &Settings) -> i32 {
    let most = sandbox.startup_timeout().saturating_add(settings.startup_slack);
    i32::try_from(pod::seconds(most)).unwrap_or(i32::MAX)
}

fn env(sandbox: &ValidatedSandbox, settings: &Settings) -> Vec<EnvVar> {
    let identity = sandbox.identity();
    let mut facts = vec![
        ("NAMESPACE", identity.namespace.clone()),
        ("NAME", identity.name.clone()),
        ("UID", identity.uid.clone()),
        ("GENERATION", sandbox.generation().to_string()),
        ("POLICY_DIGEST", sandbox.policy_digest().to_owned()),
    ];
    if let Some(reach) = reach(settings) {
        facts.extend([
            ("TOKEN_FILE", volumes::token_file()),
            ("GATEWAY", reach.address.to_string()),
            ("GATEWAY_NAME", reach.server_name.clone()),
            ("GATEWAY_CA", reach.authorities.clone()),
            ("GATE_API_SERVER", reach.api_server.to_string()),
            ("GATE_METADATA", reach.metadata.to_string()),
        ]);
        facts.extend(reach.dns.map(|dns| ("GATE_DNS", dns.to_string())));
    }
    let variable = |(name, value): (&str, String)| EnvVar {
        name: format!("AGENTSANDBOX_{name}"),
        value: Some(pod::literal(&value)),
        value_from: None,
    };
    facts.into_iter().map(variable).collect()
}

/// How the gateway is reached, where that is known.
pub(super) fn reach(settings: &Settings) -> Option<&GatewayReach> {
    settings.gateway.as_ref()?.reach.as_ref()
}

/// What the start gate looks at, for the annotation [`super::labels::START_GATE`]. The canary is the one that the
/// gateway names then.
pub(super) fn gate(reach: &GatewayReach) -> String {
    let mut targets = vec![
        format!("{:?}", CheckName::Canary),
        target(CheckName::ApiServer, reach.api_server),
        target(CheckName::Metadata, reach.metadata),
    ];
    if let Some(dns) = reach.dns {
        targets.extend([CheckName::ClusterDnsTcp, CheckName::ClusterDnsUdp].map(|name| target(name, dns)));
    }
    targets.push(target(CheckName::Gateway, reach.address));
    targets.join(",")
}

fn target(name: CheckName, address: SocketAddr) -> String {
    format!("{name:?}={address}")
}

/// More than the other containers of the operator's have: every byte of the agent's goes through it.
fn resources() -> ResourceRequirements {
    let disk = ("ephemeral-storage", "48Mi");
    ResourceRequirements {
        requests: Some(pod::quantities([("cpu", "10m"), ("memory", "32Mi"), disk])),
        limits: Some(pod::quantities([("cpu", "500m"), ("memory", "64Mi"), disk])),
        claims: None,
    }
}
