//! What the operator was told at its start that the objects depend on.
use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use ipnet::IpNet;

/// Settings of the operator that a plan depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The operator's own image, which also holds `sandbox-init` and the sidecar.
    pub image: String,
    /// Pull policy of [`Settings::image`].
    pub image_pull_policy: String,
    /// Time between SIGTERM and SIGKILL.
    pub grace: Duration,
    /// Networks that no `cidr` rule may open: the cluster's Pods, Services and nodes.
    pub reserved_cidrs: Vec<IpNet>,
    /// Whether the nodes can run Pods in user namespaces.
    pub user_namespaces: bool,
    /// Runtime classes that a sandbox may ask for; any where there is no list.
    pub runtime_classes: Option<Vec<String>>,
    /// `PriorityClass` of sandbox Pods.
    pub priority_class: Option<String>,
    /// Added to the kubelet's own deadline, so that it is only the backstop of the others.
    pub startup_slack: Duration,
    /// The egress gateway; without one no rule may name a host.
    pub gateway: Option<GatewaySettings>,
    /// Key of what only the operator may be able to derive: see [`super::keyed`]. It comes with
    /// [`GatewaySettings::reach`]; no Pod is made before.
    pub directory_key: [u8; 32],
}

/// The egress gateway, the only way to what a `host` rule names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewaySettings {
    /// Namespace of its Pods: the operator's own. What policies open depends on it alone.
    pub namespace: String,
    /// Networks that a name may resolve to though the gateway refuses them by itself: the administrator's exceptions.
    pub reachable_cidrs: Vec<IpNet>,
    /// How a sidecar reaches it. Unknown until the operator has found it: no Pod may be made before, since its
    /// sidecar would not start.
    pub reach: Option<GatewayReach>,
}

/// How a sidecar reaches the gateway, and what its start gate must find closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayReach {
    /// Cluster IP and port of its Service.
    pub address: SocketAddr,
    /// Name in its certificate.
    pub server_name: String,
    /// Certificates of the authorities that may have signed that certificate, PEM.
    pub authorities: String,
    /// The API server, as Pods reach it.
    pub api_server: SocketAddr,
    /// The cluster's DNS, where it has one.
    pub dns: Option<SocketAddr>,
    /// The cloud's metadata service.
    pub metadata: SocketAddr,
}

/// Where clouds have their metadata service.
pub const METADATA: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)), 80);

/// Name of the gateway in `namespace` in its certificate.
pub fn gateway_name(namespace: &str) -> String {
    format!("agentsandbox-gateway.{namespace}.svc")
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            image: "agentsandbox:dev".to_owned(),
            image_pull_policy: "IfNotPresent".to_owned(),
            grace: Duration::from_secs(10),
            reserved_cidrs: Vec::new(),
            user_namespaces: false,
            runtime_classes: None,
            priority_class: None,
            startup_slack: Duration::from_secs(30),
            gateway: None,
            directory_key: [0; 32],
        }
    }
}
