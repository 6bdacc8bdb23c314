//! What the operator tells `sandbox-init`, as JSON in the environment variable [`CONFIG_VARIABLE`].
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::api::v1alpha1::LandlockMode;

/// Longest time that SIGKILL is given; a process in uninterruptible sleep ends with `sandbox-init`'s exit. Who waits for
/// `sandbox-init` has to wait for this as well.
pub const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// Environment variable of the agent's container that holds an [`InitConfig`]. The agent itself never sees it.
pub const CONFIG_VARIABLE: &str = "AGENTSANDBOX_INIT";

/// Name of the abstract unix socket (unix(7)) on which the sidecar takes audit records: containers of one Pod share
/// the network namespace that scopes it, and it works under gVisor.
pub const AUDIT_SOCKET: &str = "agentsandbox/audit";

/// File beside `sandbox-init` with some random text that the sidecar knows as well. Whoever runs in place of
/// `sandbox-init` because something was mounted over its directory cannot read it.
pub const PROOF_FILE: &str = "proof";

/// Most bytes of the proof.
pub const MAX_PROOF: u64 = 128;

/// Orders of one sandbox.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InitConfig {
    /// The sandbox that this is, for the records.
    pub sandbox: SandboxIdentity,
    /// Wall clock time of the agent from its exec, in milliseconds.
    pub timeout_ms: u64,
    /// Time between SIGTERM and SIGKILL, in milliseconds.
    pub grace_ms: u64,
    /// `RLIMIT_NPROC` of the agent (getrlimit(2)).
    pub pids: u64,
    /// `RLIMIT_FSIZE` of the agent, where no mount may have larger files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_size_bytes: Option<u64>,
    /// What to do where the kernel has no Landlock.
    pub landlock: LandlockMode,
    /// Paths that the agent may write: every mount that is not read-only.
    #[serde(default)]
    pub writable: Vec<String>,
    /// Every mount, as it is recorded.
    #[serde(default)]
    pub mounts: Vec<MountFact>,
    /// Directory in which the operator mounted this binary; hidden from the agent's record of mounts.
    pub own_directory: String,
    /// Digest of the egress policy that the Pod was planned with.
    pub policy_digest: String,
    /// Generation of the spec that the Pod was planned with.
    pub generation: i64,
}

/// Which sandbox a record is about.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SandboxIdentity {
    /// Namespace of the AgentSandbox.
    pub namespace: String,
    /// Name of the AgentSandbox.
    pub name: String,
    /// UID of the AgentSandbox.
    pub uid: String,
}

/// A mount as it is recorded.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct MountFact {
    /// Path in the agent's container.
    pub path: String,
    /// Whether it is read-only.
    pub read_only: bool,
    /// What it is: `emptyDir`, `persistentVolumeClaim/NAME`, `configMap/NAME`, `secret/NAME`.
    pub source: String,
}
