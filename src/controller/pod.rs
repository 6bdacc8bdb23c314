//! A Pod as the controller keeps it: the fields that a decision needs, so that ten thousand of them stay small.

use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodCondition, PodSpec};
use kube::Resource;
use kube::api::ObjectMeta;
use serde::Deserialize;

use crate::plan::seal::form;

/// Name of the agent's container.
pub const AGENT: &str = "agent";

/// A Pod with the fields that a decision needs.
#[derive(Deserialize, Resource, Clone, Debug, Default)]
#[resource(inherit = Pod)]
pub struct SlimPod {
    /// Metadata, without `managedFields`.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// Part of the spec.
    #[serde(default)]
    pub spec: SlimSpec,
    /// Part of the status.
    #[serde(default)]
    pub status: SlimStatus,
}

/// Part of a Pod's spec.
#[derive(Deserialize, Clone, Debug, Default)]
#[serde(from = "PodSpec")]
pub struct SlimSpec {
    /// Node that it is bound to.
    pub node_name: Option<String>,
    /// The kubelet's backstop, in seconds: tells which timeout the Pod was planned with.
    pub active_deadline_seconds: Option<i64>,
    /// Seconds from SIGTERM to SIGKILL, where the kubelet ends it.
    pub termination_grace_period_seconds: Option<i64>,
    /// Its runtime class.
    pub runtime_class_name: Option<String>,
    /// Digest of what decides what runs in it: see [`form`].
    pub form: String,
}

/// Part of a Pod's status.
#[derive(Deserialize, Clone, Debug, Default)]
#[serde(rename_all = "camelCase", default)]
pub struct SlimStatus {
    /// `Pending`, `Running`, `Succeeded`, `Failed` or `Unknown`.
    pub phase: Option<String>,
    /// Such as `Evicted`.
    pub reason: Option<String>,
    /// Message of the reason.
    pub message: Option<String>,
    /// Conditions.
    pub conditions: Vec<PodCondition>,
    /// State of the init containers and the sidecar.
    pub init_container_statuses: Vec<ContainerStatus>,
    /// State of the agent's container.
    pub container_statuses: Vec<ContainerStatus>,
}

impl From<PodSpec> for SlimSpec {
    fn from(spec: PodSpec) -> Self {
        Self {
            form: form(&spec),
            node_name: spec.node_name,
            active_deadline_seconds: spec.active_deadline_seconds,
            termination_grace_period_seconds: spec.termination_grace_period_seconds,
            runtime_class_name: spec.runtime_class_name,
        }
    }
}

impl From<Pod> for SlimPod {
    fn from(pod: Pod) -> Self {
        let (spec, status) = (pod.spec.unwrap_or_default(), pod.status.unwrap_or_default());
        let mut slim = Self {
            metadata: pod.metadata,
            spec: spec.into(),
            status: SlimStatus {
                phase: status.phase,
                reason: status.reason,
                message: status.message,
                conditions: status.conditions.unwrap_or_default(),
                init_container_statuses: status.init_container_statuses.unwrap_or_default(),
                container_statuses: status.container_statuses.unwrap_or_default(),
            },
        };
        slim.slim();
        slim
    }
}

impl SlimPod {
    /// Drops what the watch brought and no decision needs.
    pub fn slim(&mut self) {
        self.metadata.managed_fields = None;
    }

    /// State of the agent's container.
    pub fn agent(&self) -> Option<&ContainerStatus> {
        self.status.container_statuses.iter().find(|c| c.name == AGENT)
    }

    /// Every container's state, in the order in which they start.
    pub fn containers(&self) -> impl Iterator<Item = &ContainerStatus> {
        self.status.init_container_statuses.iter().chain(&self.status.container_statuses)
    }

    /// The condition of type `kind`.
    pub fn condition(&self, kind: &str) -> Option<&PodCondition> {
        self.status.conditions.iter().find(|c| c.type_ == kind)
    }

    /// Whether nothing of it runs any more, nor ever will.
    pub fn is_terminal(&self) -> bool {
        matches!(self.status.phase.as_deref(), Some("Succeeded" | "Failed"))
    }

    /// Whether somebody asked for its deletion.
    pub fn is_deleting(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }
}
