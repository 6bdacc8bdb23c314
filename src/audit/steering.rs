//! What the sidecar itself noticed of the agent's egress. What was connected is the gateway's record.
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::ocsf::{App, Record};
use super::{SandboxRecords, now_ms};
use crate::egress::containment::GateCheck;

/// Something that the sidecar noticed.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all_fields = "camelCase")]
pub enum EgressEvent {
    /// The start gate passed: the agent may start.
    GatePassed {
        /// Generation of the policy that the gateway named.
        generation: i64,
        /// Digest of that policy.
        digest: String,
        /// Checks of the last round.
        checks: Vec<GateCheck>,
    },
    /// The start gate gave up: the agent does not start.
    GateFailed {
        /// Why, for a person.
        message: String,
        /// Checks of the last round.
        checks: Vec<GateCheck>,
    },
    /// Another policy is in force.
    PolicyTaken {
        /// Its generation.
        generation: i64,
        /// Its digest.
        digest: String,
        /// Its hosts.
        hosts: usize,
        /// Names of hosts that this version does not understand, and that stay closed.
        unknown: usize,
    },
    /// A name was asked for by DNS, and refused.
    QueryRefused {
        /// The name.
        name: String,
        /// Type of the record.
        kind: String,
        /// Why, in a word.
        reason: String,
    },
    /// A connection was asked for, and refused.
    ConnectionRefused {
        /// Name or address, and port.
        target: String,
        /// How it was asked for.
        via: String,
        /// Why, in a word.
        reason: String,
    },
    /// Refusals that were not recorded one by one.
    RefusalsCounted {
        /// How many.
        count: u64,
    },
    /// An allowed name cannot be served at one of its ports, such as when the agent has that port everywhere.
    ListenerFailed {
        /// The name.
        name: String,
        /// Where it should listen.
        address: String,
        /// What was wrong.
        detail: String,
    },
    /// The sandbox has moved all the bytes that it may move.
    BytesExceeded {
        /// Bytes moved.
        bytes: u64,
    },
}

impl SandboxRecords {
    /// The record number `sequence` of what the sidecar noticed.
    pub fn of_egress(&self, sequence: u64, event: &EgressEvent) -> Record {
        // Application Lifecycle for what concerns the sandbox, DNS Activity and Network Activity for what it asked for.
        let (class, activity, severity_id, message) = match event {
            EgressEvent::GatePassed { .. } => (6002, (99, "Contain"), 1, "The start gate passed"),
            EgressEvent::GateFailed { .. } => (6002, (99, "Contain"), 4, "The start gate gave up"),
            EgressEvent::PolicyTaken { .. } => (6002, (99, "Configure"), 1, "An egress policy is in force"),
            EgressEvent::QueryRefused { .. } => (4003, (1, "Query"), 2, "A name is refused"),
            EgressEvent::ConnectionRefused { .. } => (4001, (5, "Refuse"), 2, "A connection is refused"),
            EgressEvent::RefusalsCounted { .. } => {
                (6002, (99, "Count"), 2, "Refusals are counted without a record each")
            }
            EgressEvent::ListenerFailed { .. } => {
                (6002, (99, "Listen"), 2, "An allowed name cannot be served")
            }
            EgressEvent::BytesExceeded { .. } => (6002, (99, "Exhaust"), 3, "The egress bytes are used up"),
        };
        let status_code = match event {
            EgressEvent::QueryRefused { reason, .. } | EgressEvent::ConnectionRefused { reason, .. } => {
                Some(reason.clone())
            }
            _ => None,
        };
        Record {
            app: Some(App::of(&self.sandbox)),
            severity_id,
            status_id: if severity_id == 1 { 1 } else { 2 },
            status_code,
            unmapped: json!({ "egress": event }),
            ..Record::new(class, activity, now_ms(), self.metadata(sequence), message)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::init::config::SandboxIdentity;

    #[test]
    fn a_refusal_says_what_and_why() {
        let sandbox = SandboxIdentity { namespace: "n".into(), name: "s".into(), uid: "u".into() };
        let records =
            SandboxRecords { sandbox, generation: 1, policy_digest: String::new(), hostname: String::new() };
        let event = EgressEvent::ConnectionRefused {
            target: "a.example:443".into(),
            via: "socks5".into(),
            reason: "NoRule".into(),
        };
        let line = String::from_utf8(records.of_egress(7, &event).to_line().unwrap()).unwrap();
        assert!(
            line.contains(r#""egress":{"ConnectionRefused":{"reason":"NoRule","target":"a.example:443""#)
        );
        assert!(line.contains(r#""status_code":"NoRule""#) && line.contains(r#""type_uid":400105"#));
    }
}
