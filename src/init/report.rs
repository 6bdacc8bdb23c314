//! What `sandbox-init` says at the end, as JSON in the container's termination message (at most 4096 bytes).
use serde::{Deserialize, Serialize};

/// Why the agent ended, from the view of the container's first process.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The agent's process exited by itself.
    Exited,
    /// The agent's process was ended by a signal that `sandbox-init` did not send.
    Signaled,
    /// The timeout passed.
    DeadlineExceeded,
    /// SIGTERM from outside: the Pod is being deleted.
    Terminated,
    /// The command could not be executed.
    InvalidCommand,
    /// A guard that the spec requires (Landlock, limits) could not be put up; the agent never ran.
    NotContained,
    /// The kernel ended a process of the container for want of memory.
    OutOfMemory,
    /// The audit intake went away: nothing may run unrecorded.
    AuditLost,
}

/// The termination message.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct TerminationReport {
    /// Version of this form: 1.
    pub version: u32,
    /// Why it ended.
    pub cause: Cause,
    /// Exit code of the agent's process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Signal that ended the agent's process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// What happened, for a person; at most 512 characters.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Start of the agent's process, RFC 3339 with milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
    /// Wall clock time in milliseconds.
    pub wall_ms: i64,
    /// CPU time of all processes of the container, in milliseconds.
    pub cpu_ms: i64,
    /// Largest memory of the container in bytes, where the kernel tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_memory_bytes: Option<i64>,
    /// Processes that ended in the container.
    pub processes: i64,
    /// Landlock ABI in force; 0 where the kernel has none.
    pub landlock_abi: i32,
    /// Whether the container is in a user namespace of its own (`/proc/self/uid_map` is not the whole range).
    pub user_namespace: bool,
    /// Records handed to the sidecar.
    pub records: i64,
}
