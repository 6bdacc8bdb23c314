//! Directories that the agent may see besides its image.
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::names::OBJECT_NAME;

/// Directories of the agent and how they are guarded.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Filesystem {
    /// Volumes and where they are mounted. The image itself is always read-only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["path".into()]))]
    pub mounts: Vec<Mount>,
    /// Whether the agent may start on a node whose kernel has no Landlock. The mounts themselves are read-only
    /// either way; Landlock is the second lock.
    #[serde(default)]
    pub landlock: LandlockMode,
}

/// What to do where the kernel has no Landlock.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LandlockMode {
    /// Use what the kernel has; status says what that is.
    #[default]
    BestEffort,
    /// Do not start the agent without it.
    Required,
}

/// One volume at one path: exactly one source.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[x_kube(validation = Rule::new("[has(self.emptyDir), has(self.persistentVolumeClaim), has(self.configMap), has(self.secret)].filter(x, x).size() == 1").message("a mount needs exactly one of emptyDir, persistentVolumeClaim, configMap and secret"))]
#[x_kube(validation = Rule::new("!((has(self.configMap) || has(self.secret)) && has(self.readOnly) && !self.readOnly)").message("configMap and secret mounts are read-only; leave readOnly out or set it to true"))]
#[x_kube(validation = Rule::new("!has(self.emptyDir) || (has(self.readOnly) && !self.readOnly)").message("an emptyDir that is read-only stays empty; write readOnly: false"))]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mount {
    /// Absolute path in the agent's container, without `.`, `..` and doubled slashes.
    #[schemars(length(min = 2, max = 512))]
    #[x_kube(
        validation = Rule::new("self.matches('^(/[^/]+)+$')").message("mount path must be absolute, not /, and without doubled or trailing slashes, such as /workspace"),
        validation = Rule::new("!self.matches('/[.][.]?(/|$)')").message("mount path must not contain '.' or '..'"),
        validation = Rule::new("!self.matches('[[:cntrl:]:,]')").message("mount path must not contain control characters, colons or commas"),
        validation = Rule::new("!self.matches('^(/[^/]*){13}')").message("mount path must have at most 12 parts, such as /workspace/cache"),
        validation = Rule::new("!self.matches('^/(proc|sys|dev|[.]agentsandbox)(/|$)')").message("mounts over /proc, /sys, /dev and /.agentsandbox are not allowed; choose another path, such as /workspace")
    )]
    pub path: String,
    /// Whether the agent may only read it. Defaults to true; for an `emptyDir`, which would stay empty, it has to be false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_only: Option<bool>,
    /// An empty directory on the node that ends with the sandbox.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub empty_dir: Option<EmptyDirSource>,
    /// A PersistentVolumeClaim of the sandbox's own namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim: Option<ClaimSource>,
    /// A ConfigMap of the sandbox's own namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map: Option<NamedSource>,
    /// A Secret of the sandbox's own namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<NamedSource>,
}

impl Mount {
    /// Whether the agent may only read it: the default, and always so for ConfigMaps and Secrets.
    pub fn is_read_only(&self) -> bool {
        self.read_only.unwrap_or(true) || self.config_map.is_some() || self.secret.is_some()
    }
}

/// An empty directory, counted against `resources.ephemeralStorage`.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EmptyDirSource {
    /// Largest size, such as `256Mi`; at most `resources.ephemeralStorage`.
    #[schemars(length(min = 1, max = 32))]
    #[x_kube(validation = Rule::new("self.matches('^[0-9]+([.][0-9]+)?([KMGTP]i|[kMGTP])?$') && quantity(self).isGreaterThan(quantity('0')) && quantity(self).compareTo(quantity('8Pi')) <= 0").message("sizeLimit must be a quantity of bytes above 0 and at most 8Pi, such as 256Mi"))]
    pub size_limit: String,
}

/// A PersistentVolumeClaim, or a part of it.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClaimSource {
    /// Name of the claim.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new(OBJECT_NAME).message("claimName must be lower-case letters, digits, hyphens and dots, such as my-object"))]
    pub claim_name: String,
    /// File or folder in the volume: a relative path without `..`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(validation = Rule::new("!self.startsWith('/') && !self.matches('(^|/)[.][.](/|$)')").message("subPath must be relative and without '..', such as issue-42"))]
    pub sub_path: Option<String>,
}

/// A ConfigMap or Secret, or one key of it.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NamedSource {
    /// Name of the object.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new(OBJECT_NAME).message("name must be lower-case letters, digits, hyphens and dots, such as my-object"))]
    pub name: String,
    /// One key, mounted as a file at the path: a relative path without `..`. Where the object has no such key the kubelet mounts
    /// an empty directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(validation = Rule::new("!self.startsWith('/') && !self.matches('(^|/)[.][.](/|$)')").message("subPath must be relative and without '..', such as task.md"))]
    pub sub_path: Option<String>,
}
