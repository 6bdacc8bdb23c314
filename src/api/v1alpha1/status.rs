//! What the operator reports. Written by server-side apply with the operator's own field managers only.
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What became of an AgentSandbox. The conditions are the truth; `phase`, `reason` and `message` are computed from
/// them for people.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct AgentSandboxStatus {
    /// Generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Computed from the conditions, for printing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// Reason of the condition that decides the phase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Message of the condition that decides the phase.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Accepted, Contained, EgressReady, Running, Finished, Ready, Reconciling, Stalled; `docs/operations.md` lists
    /// their reasons.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Name of the agent's Pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_name: Option<String>,
    /// UID of the agent's Pod: another Pod of that name is not the agent's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_uid: Option<String>,
    /// Node that the Pod runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    /// When the agent's process started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Time>,
    /// When the agent's time is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Time>,
    /// When the agent ended, or when it was known that it never would start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at: Option<Time>,
    /// SHA-256 of the canonical form (RFC 8785) of the egress rules in force, as `sha256:<hex>`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_digest: Option<String>,
    /// How it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// How the directories are guarded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filesystem: Option<FilesystemStatus>,
    /// How the limits are enforced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<LimitsStatus>,
    /// What the audit log holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit: Option<AuditStatus>,
    /// What the start gate measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub containment: Option<ContainmentStatus>,
    /// Egress by name in numbers, once the agent ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<EgressStatus>,
}

/// Computed from the conditions, for printing and for field selectors.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Not yet accepted, or accepted and its Pod not yet made.
    Pending,
    /// Its Pod exists; the agent's process has not started.
    Starting,
    /// The agent runs.
    Running,
    /// The agent is being ended.
    Stopping,
    /// The agent ended with exit code 0.
    Succeeded,
    /// The agent ended in any other way.
    Failed,
    /// The spec was refused.
    Rejected,
}

/// How a sandbox ended.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    /// One word: Completed, AgentFailed, DeadlineExceeded, OutOfMemory and so on.
    pub reason: String,
    /// Exit code of the agent's process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Signal that ended the agent's process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// What happened, for a person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// What the agent used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<Usage>,
}

/// What the agent used, as `sandbox-init` measured it.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Usage {
    /// Wall clock time from start to end, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wall_milliseconds: Option<i64>,
    /// CPU time of the agent and all its children, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_milliseconds: Option<i64>,
    /// Largest memory of the container, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_memory_bytes: Option<i64>,
    /// Processes that `sandbox-init` reaped: the agent, and those that it did not wait for itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processes: Option<i64>,
}

/// How the directories are guarded.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct FilesystemStatus {
    /// Landlock ABI in force; 0 where the kernel has none.
    pub landlock_abi: i32,
}

/// How the limits are enforced.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct LimitsStatus {
    /// What holds the process limit.
    pub pids: PidsEnforcement,
    /// Whether the agent runs in a user namespace of its own.
    pub user_namespace: bool,
}

/// What holds the process limit. `RLIMIT_NPROC` counts per user namespace and user.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum PidsEnforcement {
    /// Exact: `RLIMIT_NPROC` in a user namespace of the sandbox's own.
    UserNamespace,
    /// Exact: `RLIMIT_NPROC` for a user that no other sandbox has.
    OwnUser,
    /// Upper bound: the user is shared with others on the node, so the agent may get fewer; never more.
    SharedUser,
    /// The runtime's own limit (gVisor): more processes end the sandbox.
    Runtime,
}

/// What the audit log holds.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct AuditStatus {
    /// Records that `sandbox-init` had taken when the agent ended: of the agent's start, its command and its end. The sidecar's
    /// own, of names and connections, are not among them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub records: Option<i64>,
}

/// What the start gate measured in the Pod's own network, before the agent was started.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ContainmentStatus {
    /// When the gate passed; not there as long as it has not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified_at: Option<Time>,
    /// Digest of the egress policy that the Pod was made with. The gateway held it, or a newer one, when the gate passed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy_digest: Option<String>,
    /// What was looked at, and what was found.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub checks: Vec<ContainmentCheck>,
}

/// One check of the start gate.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ContainmentCheck {
    /// Canary, ApiServer, Metadata, ClusterDnsTcp, ClusterDnsUdp: what must not be reachable. Gateway: what must be.
    pub name: String,
    /// What was found.
    pub result: CheckResult,
    /// What was tried, for a person.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// What a check of the start gate found.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum CheckResult {
    /// Not reachable, as it must be.
    Closed,
    /// Reachable: nobody enforces the policy.
    Open,
    /// It could not be told; which counts as open.
    Inconclusive,
    /// The gateway confirmed the policy, as it must.
    Confirmed,
}

/// Egress by name in numbers, as the sidecar counted.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct EgressStatus {
    /// Connections that were allowed and made.
    pub allowed: i64,
    /// Names and connections that were refused.
    pub denied: i64,
    /// Bytes from the agent.
    pub bytes_out: i64,
    /// Bytes to the agent.
    pub bytes_in: i64,
    /// The last refusal: name, port where one was asked for, and reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_denied: Option<String>,
}
