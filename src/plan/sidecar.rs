//! The native sidecar: start gate, way to the gateway, audit intake.
use std::net::SocketAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Container, EnvVar, ExecAction, Probe, ResourceRequirements};

use super::{GatewayReach, Settings, ValidatedSandbox, pod, volumes};
use crate::{api::v1alpha1::EgressRule, egress::containment::CheckName, init::config::PROOF_FILE};

/// The sidecar's program in the operator's image.
const PROGRAM: &str = "/sandbox-sidecar";

/// The container `sidecar`.
pub(super) fn container(sandbox: &ValidatedSandbox, settings: &Settings) -> Container {
    Container {
        name: "sidecar".to_owned(),
        restart_policy: Some("Always".to_owned()),
        command: Some(vec![PROGRAM.to_owned(), "run".to_owned()]),
        env: Some(env(sandbox, settings)),
        resources: Some(resources()),
        startup_probe: Some(Probe {
            exec: Some(ExecAction { command: Some(vec![PROGRAM.to_owned(), "check-ready".to_owned()]) }),
            period_seconds: Some(1),
            timeout_seconds: Some(2),
            failure_threshold: Some(probes(sandbox, settings)),
            ..Probe::default()
        }),
        termination_message_policy: Some("File".to_owned()),
        volume_mounts: Some(vec![
            volumes::own_mount(volumes::SPOOL, "/spool", false),
            volumes::own_mount(volumes::TOKEN, volumes::TOKEN_DIRECTORY, true),
            volumes::own_mount(volumes::INIT, volumes::INIT_DIRECTORY, true),
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
        ("PROOF_FILE", format!("{}/{PROOF_FILE}", volumes::INIT_DIRECTORY)),
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
        facts.extend(closed_dns(sandbox, reach).map(|dns| ("GATE_DNS", dns.to_string())));
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
pub(super) fn gate(sandbox: &ValidatedSandbox, reach: &GatewayReach) -> String {
    let mut targets = vec![
        format!("{:?}", CheckName::Canary),
        target(CheckName::ApiServer, reach.api_server),
        target(CheckName::Metadata, reach.metadata),
    ];
    if let Some(dns) = closed_dns(sandbox, reach) {
        targets.extend([CheckName::ClusterDnsTcp, CheckName::ClusterDnsUdp].map(|name| target(name, dns)));
    }
    targets.push(target(CheckName::Gateway, reach.address));
    targets.join(",")
}

/// The cluster's DNS, unless a rule opens it: then it is no sign that nobody enforces the policy. Of a Service nobody
/// knows here whether its Pods are the DNS servers: its port decides.
fn closed_dns(sandbox: &ValidatedSandbox, reach: &GatewayReach) -> Option<SocketAddr> {
    let opens = |rule: &EgressRule, dns: &SocketAddr| {
        let network = rule.cidr.as_ref().and_then(|cidr| cidr.parse::<IpNet>().ok());
        let there = rule.service.is_some() || network.is_some_and(|network| network.contains(&dns.ip()));
        there && rule.ports.contains(&i32::from(dns.port()))
    };
    let rules = || sandbox.spec().network.iter().flat_map(|network| &network.egress);
    reach.dns.filter(|dns| !rules().any(|rule| opens(rule, dns)))
}

fn target(name: CheckName, address: SocketAddr) -> String {
    format!("{name:?}={address}")
}

/// More than the other containers of the operator's have: every byte of the agent's goes through it, and what waits in it
/// and in the kernel counts: 85 MiB where 250 connections stall in both directions, and 140 where the agent uses up everything
/// else besides (4,096 listeners, half-said requests to the proxies, DNS by TCP).
fn resources() -> ResourceRequirements {
    let disk = ("ephemeral-storage", "48Mi");
    ResourceRequirements {
        requests: Some(pod::quantities([("cpu", "10m"), ("memory", "32Mi"), disk])),
        limits: Some(pod::quantities([("cpu", "500m"), ("memory", "192Mi"), disk])),
        claims: None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::plan::{GatewaySettings, METADATA, Observed, ObservedPort, ObservedService, plan, validate};

    fn gate_of(rules: &Value) -> String {
        let sandbox = json!({
            "apiVersion": "agentsandbox.dev/v1alpha1", "kind": "AgentSandbox",
            "metadata": {"name": "a", "namespace": "n", "uid": "u"},
            "spec": {"image": "i", "command": ["c"], "network": {"egress": rules}},
        });
        let port = |port: i32| ObservedPort {
            port,
            target: port_of(port),
            protocol: crate::api::v1alpha1::Protocol::UDP,
        };
        let service =
            ObservedService { selector: [("k".into(), "v".into())].into(), ports: vec![port(53), port(54)] };
        let observed =
            Observed { services: [(("n".into(), "dns".into()), service)].into(), ..Observed::default() };
        let reach = GatewayReach {
            address: "10.96.0.20:8443".parse().unwrap(),
            server_name: "s".into(),
            authorities: String::new(),
            api_server: "10.96.0.1:443".parse().unwrap(),
            dns: Some("10.96.0.10:53".parse().unwrap()),
            metadata: METADATA,
        };
        let gateway =
            GatewaySettings { namespace: "o".into(), reachable_cidrs: Vec::new(), reach: Some(reach) };
        let settings = Settings { gateway: Some(gateway), ..Settings::default() };
        let valid = validate(&serde_json::from_value(sandbox).unwrap(), &observed, &settings).unwrap();
        let pod = plan(&valid, &settings).pod;
        let sidecar = &pod.spec.unwrap().init_containers.unwrap()[1];
        let told = sidecar.env.iter().flatten().any(|variable| variable.name == "AGENTSANDBOX_GATE_DNS");
        let gate = pod.metadata.annotations.unwrap()[crate::plan::labels::START_GATE].clone();
        assert_eq!(told, gate.contains("ClusterDns"));
        gate
    }

    fn port_of(port: i32) -> k8s_openapi::apimachinery::pkg::util::intstr::IntOrString {
        k8s_openapi::apimachinery::pkg::util::intstr::IntOrString::Int(port)
    }

    #[test]
    fn the_gate_leaves_out_what_a_rule_opens() {
        for (rules, looked_at) in [
            (json!([]), true),
            (json!([{"cidr": "10.96.0.0/16", "ports": [54]}]), true),
            (json!([{"cidr": "10.97.0.0/16", "ports": [53]}]), true),
            (json!([{"cidr": "10.96.0.0/16", "ports": [443, 53], "protocol": "UDP"}]), false),
            (json!([{"service": {"name": "dns"}, "ports": [54], "protocol": "UDP"}]), true),
            (json!([{"service": {"name": "dns"}, "ports": [53], "protocol": "UDP"}]), false),
            (json!([{"host": "dns.example", "ports": [53], "protocol": "TCP"}]), true),
        ] {
            assert_eq!(gate_of(&rules).contains("ClusterDnsUdp=10.96.0.10:53"), looked_at, "{rules}");
        }
        assert_eq!(
            gate_of(&json!([])),
            "Canary,ApiServer=10.96.0.1:443,Metadata=169.254.169.254:80,ClusterDnsTcp=10.96.0.10:53,\
             ClusterDnsUdp=10.96.0.10:53,Gateway=10.96.0.20:8443"
        );
    }
}
