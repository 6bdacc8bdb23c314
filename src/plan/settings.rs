//! What the operator was told at its start that the objects depend on.
use std::time::Duration;

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
    /// `PriorityClass` of sandbox Pods.
    pub priority_class: Option<String>,
    /// Added to the kubelet's own deadline, so that it is only the backstop of the others.
    pub startup_slack: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            image: "agentsandbox:dev".to_owned(),
            image_pull_policy: "IfNotPresent".to_owned(),
            grace: Duration::from_secs(10),
            reserved_cidrs: Vec::new(),
            user_namespaces: false,
            priority_class: None,
            startup_slack: Duration::from_secs(30),
        }
    }
}
