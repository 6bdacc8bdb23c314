//! The kind `AgentSandbox`.
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use super::{AgentSandboxStatus, EnvVar, Filesystem, GoDuration, Isolation, Network, Resources};

/// One contained agent: what it runs, what it may read, write and reach, how long and with how much.
///
/// Everything but `timeout` (which may be lowered), `ttlAfterFinished` and the rules and limits of `network` is fixed at
/// creation.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "agentsandbox.dev",
    version = "v1alpha1",
    kind = "AgentSandbox",
    plural = "agentsandboxes",
    singular = "agentsandbox",
    shortname = "asbx",
    category = "agents",
    namespaced,
    status = "AgentSandboxStatus",
    derive = "PartialEq",
    doc = "One contained agent: what it runs, what it may read, write and reach, how long and with how much.",
    selectable = ".status.phase",
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Deadline", type_ = "string", json_path = ".status.deadline"),
    printcolumn(name = "Pod", type_ = "string", json_path = ".status.podName"),
    printcolumn(name = "Node", type_ = "string", json_path = ".status.nodeName", priority = 1),
    printcolumn(name = "Started", type_ = "date", json_path = ".status.startedAt", priority = 1),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.message", priority = 1),
    validation = Rule::new("size(self.metadata.name) <= 200")
        .message("metadata.name must be at most 200 characters; choose a shorter name"),
    validation = Rule::new("has(self.spec)").message("spec is required: write at least spec.image and spec.command")
)]
#[x_kube(
    validation = Rule::new("self.image == oldSelf.image").message("image is immutable; create a new AgentSandbox instead").field_path(".image"),
    validation = Rule::new("self.command == oldSelf.command").message("command is immutable; create a new AgentSandbox instead").field_path(".command"),
    validation = Rule::new("(has(self.args) ? self.args : []) == (has(oldSelf.args) ? oldSelf.args : [])").message("args is immutable; create a new AgentSandbox instead"),
    validation = Rule::new("has(self.env) == has(oldSelf.env) && (!has(self.env) || self.env == oldSelf.env)").message("env is immutable; create a new AgentSandbox instead"),
    validation = Rule::new("has(self.workingDir) == has(oldSelf.workingDir) && (!has(self.workingDir) || self.workingDir == oldSelf.workingDir)").message("workingDir is immutable; create a new AgentSandbox instead"),
    validation = Rule::new("self.runAs == oldSelf.runAs").message("runAs is immutable; create a new AgentSandbox instead"),
    validation = Rule::new("has(self.filesystem) == has(oldSelf.filesystem) && (!has(self.filesystem) || self.filesystem == oldSelf.filesystem)").message("filesystem is immutable; create a new AgentSandbox instead"),
    validation = Rule::new("has(self.isolation) == has(oldSelf.isolation) && (!has(self.isolation) || self.isolation == oldSelf.isolation)").message("isolation is immutable; create a new AgentSandbox instead"),
    validation = Rule::new("self.resources == oldSelf.resources").message("resources is immutable; create a new AgentSandbox instead"),
    validation = Rule::new("self.startupTimeout == oldSelf.startupTimeout").message("startupTimeout is immutable; create a new AgentSandbox instead"),
    validation = Rule::new("duration(self.timeout) <= duration(oldSelf.timeout)").message("timeout may only be lowered; create a new AgentSandbox for a longer task"),
    validation = Rule::new("(has(self.network) && has(self.network.proxyEnvironment) && self.network.proxyEnvironment) == (has(oldSelf.network) && has(oldSelf.network.proxyEnvironment) && oldSelf.network.proxyEnvironment)").message("network.proxyEnvironment is immutable; create a new AgentSandbox instead"),
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AgentSandboxSpec {
    /// Image that the agent runs in, best pinned by digest: `registry.example/agent@sha256:...`.
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(validation = Rule::new("!self.matches('[[:space:]]')").message("image must be an image reference without spaces, such as registry.example/agent@sha256:..."))]
    pub image: String,
    /// Program that the agent is, and its first arguments; not run in a shell. Required, because `sandbox-init` is
    /// the container's first process and must know what to start: the image's own entry point is not used.
    #[schemars(length(min = 1, max = 64), inner(length(max = 4096)))]
    #[x_kube(validation = Rule::new("size(self) == 0 || size(self[0]) > 0").message("command[0] must name a program, such as /usr/bin/python3"))]
    pub command: Vec<String>,
    /// Further arguments, appended to `command`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(max = 4096)))]
    pub args: Vec<String>,
    /// Environment variables of the agent.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub env: Vec<EnvVar>,
    /// Directory that the agent starts in; an absolute path. Without it the image's own is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    #[x_kube(validation = Rule::new("self.startsWith('/') && !self.contains('/../') && !self.endsWith('/..')").message("workingDir must be an absolute path without '..', such as /workspace"))]
    pub working_dir: Option<String>,
    /// User and group that the agent runs as; never 0.
    #[serde(default)]
    pub run_as: RunAs,
    /// Wall clock time that the agent has, from the start of its process. A Go duration such as `30m` or `1h30m`,
    /// from `1s` to `168h`. May be lowered while it runs, never raised.
    #[serde(default = "default_timeout")]
    #[schemars(length(max = 32))]
    #[x_kube(validation = Rule::new("self.matches('^([0-9]+([.][0-9]+)?(h|m|s|ms))+$') && duration(self) >= duration('1s') && duration(self) <= duration('168h')").message("timeout must be a duration from 1s to 168h, such as 30m or 1h30m"))]
    pub timeout: GoDuration,
    /// Time to the start of the agent's process: scheduling, image pull, start gate. It counts from the object's
    /// creation, or from when the spec was accepted where that was later.
    /// A Go duration from `1s` to `24h`.
    #[serde(default = "default_startup_timeout")]
    #[schemars(length(max = 32))]
    #[x_kube(validation = Rule::new("self.matches('^([0-9]+([.][0-9]+)?(h|m|s|ms))+$') && duration(self) >= duration('1s') && duration(self) <= duration('24h')").message("startupTimeout must be a duration from 1s to 24h, such as 5m"))]
    pub startup_timeout: GoDuration,
    /// Time after which the finished object is deleted, with its Pod and logs. A Go duration from `0s` to `8760h`;
    /// without it the object stays until somebody deletes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    #[x_kube(validation = Rule::new("self.matches('^([0-9]+([.][0-9]+)?(h|m|s|ms))+$') && duration(self) <= duration('8760h')").message("ttlAfterFinished must be a duration from 0s to 8760h, such as 1h"))]
    pub ttl_after_finished: Option<GoDuration>,
    /// What the agent may use at most.
    #[serde(default)]
    pub resources: Resources,
    /// Directories that the agent may see besides its image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filesystem: Option<Filesystem>,
    /// Endpoints that the agent may reach. Without it: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<Network>,
    /// How strongly the agent is separated from its node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolation: Option<Isolation>,
}

/// User and group of the agent's process. Files on volumes are reached through the group.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RunAs {
    /// Numeric user, 1 to 65533. Without it the operator chooses a user of the sandbox's own outside user
    /// namespaces, so that the process limit counts this sandbox alone, and 1000 inside one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self >= 1 && self <= 65533 && self != 65532").message("runAs.user must be from 1 to 65533 and not 65532 (the sidecar's); root is never allowed"))]
    pub user: Option<i64>,
    /// Numeric group, 1 to 65533.
    #[serde(default = "default_group")]
    #[x_kube(validation = Rule::new("self >= 1 && self <= 65533 && self != 65532").message("runAs.group must be from 1 to 65533 and not 65532 (the sidecar's); root is never allowed"))]
    pub group: i64,
}

impl Default for RunAs {
    fn default() -> Self {
        Self { user: None, group: default_group() }
    }
}

fn default_group() -> i64 {
    1000
}

fn default_timeout() -> GoDuration {
    GoDuration::from_text("30m")
}

fn default_startup_timeout() -> GoDuration {
    GoDuration::from_text("5m")
}
