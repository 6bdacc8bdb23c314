//! How strongly the agent is separated from its node.
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::names::OBJECT_NAME;

/// Isolation of the agent's Pod.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Isolation {
    /// RuntimeClass of the Pod, such as `gvisor`. Without it the cluster's default runtime.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new(OBJECT_NAME).message("runtimeClassName must be lower-case letters, digits, hyphens and dots, such as my-object"))]
    pub runtime_class_name: Option<String>,
    /// Whether the Pod runs in a user namespace of its own.
    #[serde(default)]
    pub user_namespace: UserNamespaceMode,
}

/// Whether the Pod runs in a user namespace of its own (KEP-127).
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UserNamespaceMode {
    /// In one where the default runtime is used and the operator was told that nodes have it; else without.
    #[default]
    Preferred,
    /// In one, or not at all: without it the agent does not start.
    Required,
    /// Never in one.
    Disabled,
}
