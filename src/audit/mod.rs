//! Records of what a sandbox did and what the operator did with it: OCSF 1.8 JSON lines.
//!
//! One record is one line of canonical JSON (RFC 8785), so that equal records are equal bytes and can be hashed
//! as they stand. `metadata.correlation_uid` is the UID of the sandbox in every record, whoever wrote it.
mod control_plane;
mod network;
mod ocsf;
mod sandbox;
#[cfg(test)]
mod sink;
mod steering;
mod time;

pub use control_plane::{ControlPlaneEvent, ControlPlaneLog};
pub use network::{NetworkEvent, NetworkLog, NetworkOutcome, PodIdentity};
pub use ocsf::{
    Actor, Api, ApiRequest, App, ConnectionInfo, Container, Device, Endpoint, Metadata, Policy, Process,
    Product, Record, Resource, Rule, Traffic, User, VERSION,
};
pub use sandbox::{IntakeEvent, SandboxRecords};
pub use steering::EgressEvent;
pub use time::{now_ms, rfc3339};

/// Why a record could not be written.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The record has no JSON form.
    #[error("the record cannot be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// The sink refused the bytes.
    #[error("the record cannot be written: {0}")]
    Io(#[from] std::io::Error),
}
