//! What `sandbox-init` tells the sidecar: one JSON line each, answered by a line with the record's number. The answer to
//! [`InitEvent::Ended`] may go on with a space and an [`EgressSummary`] as JSON.
//!
//! [`EgressSummary`]: crate::egress::wire::EgressSummary
use serde::{Deserialize, Serialize};

use super::config::MountFact;
use super::report::TerminationReport;

/// Longest line in either direction, in bytes with the line feed.
pub const MAX_LINE: usize = 64 * 1024;

/// Longest answer to a record, in bytes without the line feed.
pub const MAX_ANSWER: usize = 1024;

/// Most bytes of arguments in a record, in all.
pub const MAX_ARGUMENT_BYTES: usize = 8 * 1024;

/// One record.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct InitRecord {
    /// Number of the record on this connection, from 1; the sidecar answers with it.
    pub id: u64,
    /// Milliseconds since the epoch.
    pub time: i64,
    /// What happened.
    pub event: InitEvent,
    /// With the first record: the text of [`PROOF_FILE`](super::config::PROOF_FILE).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<String>,
}

/// What happened.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub enum InitEvent {
    /// The container starts; the agent is not executed yet.
    Started(StartFacts),
    /// The agent is about to be executed.
    #[serde(rename_all = "camelCase")]
    Exec {
        /// Arguments, cut to [`MAX_ARGUMENT_BYTES`] in all.
        argv: Vec<String>,
        /// How many arguments there are.
        arguments: usize,
        /// Whether `argv` was cut.
        truncated: bool,
        /// User that it runs as.
        user: u32,
        /// Group that it runs as.
        group: u32,
    },
    /// No process of the agent is left.
    Ended(TerminationReport),
}

/// What the agent is contained by.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct StartFacts {
    /// Mounts of the user, as they were planned.
    pub mounts: Vec<MountFact>,
    /// Wall clock time of the agent in milliseconds.
    pub timeout_ms: u64,
    /// Time between SIGTERM and SIGKILL in milliseconds.
    pub grace_ms: u64,
    /// Most processes.
    pub pids: u64,
    /// Landlock ABI that is put in force; 0 for none.
    pub landlock_abi: i32,
    /// Whether the container is in a user namespace of its own.
    pub user_namespace: bool,
    /// Writable places that the spec does not list, such as volumes of the image. Landlock refuses them; without it
    /// the agent is not started.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unlisted: Vec<String>,
}
