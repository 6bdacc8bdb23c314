//! Endpoints that the agent may reach.
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::names::LABEL;

/// What the agent may reach. Nothing reaches the agent.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Network {
    /// Rules; what no rule allows is refused. May change while the agent runs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub egress: Vec<EgressRule>,
    /// Limits of what the egress gateway carries in all. May change while the agent runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<NetworkLimits>,
    /// Whether the agent's environment names the sidecar's proxies (`HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY`).
    /// Seldom needed: programs reach allowed names without it. Fixed at creation.
    #[serde(default)]
    pub proxy_environment: bool,
}

/// Limits of what the egress gateway carries in all.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NetworkLimits {
    /// Bytes that the agent may exchange with all hosts together, both ways, such as `500Mi`; at least `1Ki` and at
    /// most `8Pi`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32))]
    #[x_kube(validation = Rule::new("self.matches('^[0-9]+([.][0-9]+)?([KMGTP]i|[kMGTP])?$') && quantity(self).compareTo(quantity('1Ki')) >= 0 && quantity(self).compareTo(quantity('8Pi')) <= 0").message("limits.egressBytes must be a quantity of at least 1Ki and at most 8Pi, such as 500Mi"))]
    pub egress_bytes: Option<String>,
}

/// One endpoint: exactly one of `host`, `cidr` and `service`, and its ports.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[x_kube(
    validation = Rule::new("[has(self.host), has(self.cidr), has(self.service)].filter(x, x).size() == 1").message("an egress rule needs exactly one of host, cidr and service"),
    validation = Rule::new("!has(self.host) || !has(self.protocol) || self.protocol != 'UDP'").message("a host rule takes no UDP; leave protocol out for TLS and HTTP, write TCP for any other protocol, or write cidr"),
    validation = Rule::new("has(self.host) || !has(self.http) && !has(self.tls)").message("http and tls are for host rules; leave them out, or write host"),
    validation = Rule::new("!has(self.http) || !has(self.tls)").message("http is for plain HTTP and tls for TLS; write two rules, one with each"),
    validation = Rule::new("!has(self.protocol) || !has(self.host) || !has(self.http) && !has(self.tls)").message("protocol TCP takes anything; leave it out, or leave http and tls out"),
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EgressRule {
    /// Host name: `api.example`, `*.example` (one label) or `**.example` (any depth). Needs the egress gateway.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    #[x_kube(
        validation = Rule::new("self.matches('^([*][*]?[.])?([A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?[.])*[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?$')").message("host must be a DNS name without scheme, port, path or dot at the end, such as api.example, *.example or **.example; no rule means every host; for addresses write cidr"),
        validation = Rule::new("!self.matches('(^|[.])([0-9]+|0[xX][^.]*)$')").message("host must not be an address or end in a number; for addresses write cidr"),
    )]
    pub host: Option<String>,
    /// Network in CIDR notation without host bits, such as `198.51.100.0/24`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 3, max = 64))]
    #[x_kube(validation = Rule::new("isCIDR(self)").message("cidr must be a network such as 198.51.100.0/24; for one address write 198.51.100.7/32"))]
    pub cidr: Option<String>,
    /// A Service, of which all rules together may name 32; its Pods are selected, not its address. Its name does not resolve
    /// in the sandbox: give the agent the cluster IP, for example in `env`; it connects to that and the Service's port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceReference>,
    /// Up to 16 single ports, 1 to 65535; there are no ranges: for more ports write more rules. For a Service: its own ports.
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(validation = Rule::new("self.all(p, p >= 1 && p <= 65535)").message("ports must be from 1 to 65535"))]
    pub ports: Vec<i32>,
    /// See [`Protocol`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// Only for a host: the rule takes plain HTTP only, and of it only this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpRule>,
    /// Only for a host: the rule takes TLS only, in this way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsRule>,
}

/// Which requests of plain HTTP a rule takes.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRule {
    /// Methods in upper case; none means every method.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 32)))]
    #[x_kube(validation = Rule::new("self.all(m, m.matches('^[A-Z-]+$'))").message("http.methods must be in upper case, such as GET"))]
    pub methods: Vec<String>,
    /// Prefixes of the path by whole segments: `/v1` means `/v1` and `/v1/models`, not `/v10`. None means every path.
    /// A request whose path servers may read in several ways (`..`, encoded slashes) is under no prefix.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 256)))]
    #[x_kube(validation = Rule::new("self.all(p, p.matches('^/([A-Za-z0-9._~!$&*+,;=:@%-]+/?)*$'))").message("http.pathPrefixes must start with / and have no doubled slash, space, ? or #, such as /v1/models"))]
    pub path_prefixes: Vec<String>,
}

/// How a rule takes TLS.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TlsRule {
    /// Whether the client may encrypt the server name (ECH, RFC 9849), or send what looks like it (GREASE). The gateway
    /// then cannot know that the name is the one that was asked for.
    #[serde(default)]
    pub allow_encrypted_client_hello: bool,
}

/// Transport protocol of the ports; without it TCP. For a host: without it TLS or plain HTTP, whose server name or host must
/// be the name that was asked for; `TCP` is any protocol, with nothing looked at.
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
    #[x_kube(validation = Rule::new(LABEL).message("service.name must be lower-case letters, digits and hyphens, such as model"))]
    pub name: String,
    /// Namespace of the Service; without it the sandbox's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = Rule::new(LABEL).message("service.namespace must be lower-case letters, digits and hyphens, such as team-a"))]
    pub namespace: Option<String>,
}

#[cfg(test)]
mod tests;
