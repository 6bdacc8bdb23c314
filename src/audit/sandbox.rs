//! What happened in a sandbox, as the sidecar records it.
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::now_ms;
use super::ocsf::{Actor, App, Container, Device, Metadata, Process, Product, Record, User, VERSION};
use crate::init::config::SandboxIdentity;
use crate::init::report::{Cause, TerminationReport};
use crate::init::wire::InitEvent;

const SIDECAR: &str = "agentsandbox-sidecar";
const INIT: &str = "sandbox-init";

/// Something that the intake itself noticed.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub enum IntakeEvent {
    /// It takes records now.
    Opened,
    /// The first peer connected; from user `uid` as the socket tells.
    PeerTaken {
        /// User of the peer.
        uid: u32,
    },
    /// Someone other than the first peer connected; from user `uid` as the socket tells.
    PeerRefused {
        /// User of the peer.
        uid: u32,
    },
    /// The first peer is not `sandbox-init`; from user `uid` as the socket tells.
    PeerForeign {
        /// User of the peer.
        uid: u32,
    },
    /// The peer sent something that is no record, or hung up.
    PeerLost {
        /// What was wrong, for a person.
        detail: String,
    },
    /// The spool is full: later records are on standard output only.
    SpoolFull,
    /// It ends.
    Closed {
        /// Peers refused, recorded one by one or not.
        refused: u64,
    },
}

/// Maker of one sandbox's records.
#[derive(Clone, Debug)]
pub struct SandboxRecords {
    /// The sandbox.
    pub sandbox: SandboxIdentity,
    /// Generation of the spec that the Pod was planned with.
    pub generation: i64,
    /// Digest of the egress policy that the Pod was planned with.
    pub policy_digest: String,
    /// Host name of the Pod.
    pub hostname: String,
}

impl SandboxRecords {
    /// The record number `sequence` of what `sandbox-init` told at `time` (milliseconds since the epoch).
    pub fn of_init(&self, sequence: u64, time: i64, event: &InitEvent) -> Record {
        let metadata = self.metadata(sequence);
        match event {
            InitEvent::Started(facts) => Record {
                app: Some(App::of(&self.sandbox)),
                unmapped: json!({
                    "generation": self.generation,
                    "policy_digest": self.policy_digest,
                    "containment": facts,
                }),
                ..Record::new(6002, (3, "Start"), time, metadata, "The sandbox starts")
            },
            InitEvent::Exec { argv, arguments, truncated, user, group } => Record {
                actor: Some(Actor { app_name: INIT, user: Some(User { uid: user.to_string() }) }),
                device: Some(self.device()),
                process: Some(Process {
                    pid: 0,
                    name: argv.first().cloned().unwrap_or_default(),
                    cmd_line: command_line(argv),
                    user: Some(User { uid: user.to_string() }),
                }),
                unmapped: json!({ "arguments": arguments, "truncated": truncated, "group": group }),
                ..Record::new(1007, (1, "Launch"), time, metadata, "The agent is executed")
            },
            InitEvent::Ended(report) => self.ended(time, metadata, report),
        }
    }

    /// The record number `sequence` of what the intake noticed.
    pub fn of_intake(&self, sequence: u64, event: &IntakeEvent) -> Record {
        let (activity, severity_id, message) = match event {
            IntakeEvent::Opened => ((3, "Start"), 1, "The audit intake is open"),
            IntakeEvent::PeerTaken { .. } => ((99, "Accept"), 1, "The peer of the audit intake is accepted"),
            IntakeEvent::PeerRefused { .. } => {
                ((99, "Refuse"), 3, "A second peer of the audit intake is refused")
            }
            IntakeEvent::PeerForeign { .. } => {
                ((99, "Refuse"), 4, "The agent's first process is not sandbox-init")
            }
            IntakeEvent::PeerLost { .. } => ((99, "Lose"), 3, "The peer of the audit intake is gone"),
            IntakeEvent::SpoolFull => {
                ((99, "Gap"), 3, "The spool is full: later records are on standard output only")
            }
            IntakeEvent::Closed { .. } => ((4, "Stop"), 1, "The audit intake is closed"),
        };
        Record {
            app: Some(App::of(&self.sandbox)),
            severity_id,
            status_id: if severity_id == 1 { 1 } else { 2 },
            unmapped: json!({ "intake": event }),
            ..Record::new(6002, activity, now_ms(), self.metadata(sequence), message)
        }
    }

    fn ended(&self, time: i64, metadata: Metadata, report: &TerminationReport) -> Record {
        let good = report.cause == Cause::Exited && report.exit_code == Some(0);
        Record {
            actor: Some(Actor { app_name: INIT, user: None }),
            device: Some(self.device()),
            process: Some(Process { pid: 0, name: "agent".to_owned(), cmd_line: String::new(), user: None }),
            exit_code: report.exit_code,
            severity_id: if good { 1 } else { 2 },
            status_id: if good { 1 } else { 2 },
            status_code: Some(format!("{:?}", report.cause)),
            status_detail: Some(report.message.clone()).filter(|text| !text.is_empty()),
            unmapped: json!({ "report": report }),
            ..Record::new(1007, (2, "Terminate"), time, metadata, "The agent ended")
        }
    }

    pub(super) fn metadata(&self, sequence: u64) -> Metadata {
        Metadata {
            version: VERSION,
            uid: format!("{}-{sequence}", self.sandbox.uid),
            sequence,
            correlation_uid: self.sandbox.uid.clone(),
            profiles: &[],
            product: Product::part(SIDECAR),
        }
    }

    fn device(&self) -> Device {
        Device { hostname: self.hostname.clone(), type_id: 6, container: Container { name: "agent" } }
    }
}

/// Arguments in one line; those with other than plain characters are quoted as JSON strings.
fn command_line(argv: &[String]) -> String {
    let plain = |text: &str| {
        !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic() && !br#"'"\"#.contains(&byte))
    };
    let quoted = argv.iter().map(|argument| {
        if plain(argument) {
            argument.clone()
        } else {
            serde_json::Value::from(argument.as_str()).to_string()
        }
    });
    quoted.collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_keep_their_borders() {
        let argv = ["a b", "c", "", "d\"\n"].map(str::to_owned);
        assert_eq!(command_line(&argv), r#""a b" c "" "d\"\n""#);
    }
}
