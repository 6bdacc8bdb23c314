//! Endpoints that the agent may reach.
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the agent may reach. Nothing reaches the agent.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Network {
    /// Rules; what no rule allows is refused. May change while the agent runs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub egress: Vec<EgressRule>,
    /// Whether the agent's environment names the sidecar's proxies: `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY`,
    /// `NO_PROXY` and their lower-case forms.
    #[serde(default)]
    pub proxy_environment: bool,
}

/// One endpoint: exactly one of `host`, `cidr` and `service`, and its ports.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[x_kube(validation = Rule::new("[has(self.host), has(self.cidr), has(self.service)].filter(x, x).size() == 1").message("an egress rule needs exactly one of host, cidr and service"))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EgressRule {
    /// Host name: `api.example`, `*.example` (one label) or `**.example` (any depth). Needs the egress gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    #[x_kube(validation = Rule::new("self.matches('^([*][*]?[.])?([A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?[.])*[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?$')").message("host must be a DNS name such as api.example, *.example or **.example; for addresses write cidr"))]
    pub host: Option<String>,
    /// Network in CIDR notation without host bits, such as `198.51.100.0/24`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 3, max = 64))]
    #[x_kube(validation = Rule::new("isCIDR(self)").message("cidr must be a network such as 198.51.100.0/24; for one address write 198.51.100.7/32"))]
    pub cidr: Option<String>,
    /// A Service; its Pods are selected, not its address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceReference>,
    /// Ports, 1 to 65535. For a Service: its own ports.
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(validation = Rule::new("self.all(p, p >= 1 && p <= 65535)").message("ports must be from 1 to 65535"))]
    pub ports: Vec<i32>,
    /// Transport protocol of the ports.
    #[serde(default)]
    pub protocol: Protocol,
}

/// Transport protocol.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Protocol {
    /// Transmission Control Protocol.
    #[default]
    TCP,
    /// User Datagram Protocol.
    UDP,
}

/// A Service of this cluster.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceReference {
    /// Name of the Service.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// Namespace of the Service; without it the sandbox's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub namespace: Option<String>,
}
