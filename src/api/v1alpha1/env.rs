//! Environment variables of the agent.
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::names::OBJECT_NAME;

/// One environment variable: a `value`, or where to take it from.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[x_kube(validation = Rule::new("!(has(self.value) && has(self.valueFrom))").message("write value or valueFrom, not both"))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EnvVar {
    /// Name: letters, digits and underscores, not starting with a digit; not one that the operator reserves.
    #[schemars(length(min = 1, max = 256))]
    #[x_kube(
        validation = Rule::new("self.matches('^[A-Za-z_][A-Za-z0-9_]*$')").message("env name must be letters, digits and underscores and not start with a digit"),
        validation = Rule::new("!self.startsWith('AGENTSANDBOX_')").message("env names that start with AGENTSANDBOX_ are reserved; choose another name")
    )]
    pub name: String,
    /// Literal value; `$(NAME)` is not expanded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32768))]
    pub value: Option<String>,
    /// Where the value comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_from: Option<EnvVarSource>,
}

/// Where a value comes from: exactly one of a Secret's or a ConfigMap's keys, in the sandbox's own namespace.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[x_kube(validation = Rule::new("has(self.secretKeyRef) != has(self.configMapKeyRef)").message("write exactly one of secretKeyRef and configMapKeyRef"))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EnvVarSource {
    /// A key of a Secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_key_ref: Option<KeySelector>,
    /// A key of a ConfigMap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map_key_ref: Option<KeySelector>,
}

/// One key of an object in the sandbox's own namespace.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KeySelector {
    /// Name of the object.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new(OBJECT_NAME).message("name must be lower-case letters, digits, hyphens and dots, such as my-object"))]
    pub name: String,
    /// Key in its data.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[-._A-Za-z0-9]+$') && self != '.' && !self.startsWith('..')").message("key must be letters, digits, '-', '_' and '.', such as token"))]
    pub key: String,
}
