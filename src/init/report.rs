//! What `sandbox-init` says at the end, as JSON in the container's termination message (at most 4096 bytes).
use serde::{Deserialize, Serialize};

use crate::egress::wire::EgressSummary;

/// Form of the report that this build writes.
pub const REPORT_VERSION: u32 = 1;

/// Why the agent ended, from the view of the container's first process.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The agent's process exited by itself.
    Exited,
    /// The agent's process was ended by a signal that `sandbox-init` did not send.
    Signaled,
    /// The timeout passed.
    DeadlineExceeded,
    /// A signal from outside, whichever: the Pod is being deleted.
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
    /// CPU time of all processes of the container, in milliseconds; by its cgroup, where there is one.
    pub cpu_ms: i64,
    /// Largest memory of the container in bytes, where the kernel tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_memory_bytes: Option<i64>,
    /// Processes that `sandbox-init` reaped: those of the agent that the agent did not wait for itself.
    pub processes: i64,
    /// Landlock ABI in force; 0 where the kernel has none.
    pub landlock_abi: i32,
    /// Whether the container is in a user namespace of its own (`/proc/self/uid_map` is not the whole range).
    pub user_namespace: bool,
    /// Records handed to the sidecar.
    pub records: i64,
    /// What went through the sidecar, as it counted; not where it carries no egress.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<EgressSummary>,
}

impl Default for TerminationReport {
    fn default() -> Self {
        Self {
            version: REPORT_VERSION,
            cause: Cause::NotContained,
            exit_code: None,
            signal: None,
            message: String::new(),
            started_at: None,
            wall_ms: 0,
            cpu_ms: 0,
            peak_memory_bytes: None,
            processes: 0,
            landlock_abi: 0,
            user_namespace: false,
            records: 0,
            egress: None,
        }
    }
}

impl TerminationReport {
    /// Exit code with which `sandbox-init` ends after this report. A container that ended with another one was
    /// ended by something else, and what its termination message says may be the agent's word.
    pub fn container_exit_code(&self) -> i32 {
        let end = self.exit_code.or(self.signal.map(|signal| signal.saturating_add(128)));
        match self.cause {
            Cause::Exited | Cause::Signaled => end.unwrap_or(125),
            Cause::DeadlineExceeded => 124,
            Cause::Terminated => 143,
            Cause::InvalidCommand => 127,
            Cause::OutOfMemory => 137,
            Cause::NotContained | Cause::AuditLost => 125,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_code_follows_from_the_report() {
        let report =
            |cause, exit_code, signal| TerminationReport { cause, exit_code, signal, ..Default::default() };
        assert_eq!(report(Cause::Exited, Some(3), None).container_exit_code(), 3);
        assert_eq!(report(Cause::Signaled, None, Some(11)).container_exit_code(), 139);
        // A report that is read may have any number in it.
        assert_eq!(report(Cause::Signaled, None, Some(i32::MAX)).container_exit_code(), i32::MAX);
        assert_eq!(report(Cause::DeadlineExceeded, Some(0), None).container_exit_code(), 124);
        assert_eq!(report(Cause::Terminated, None, Some(9)).container_exit_code(), 143);
    }
}
