//! What the controller did, as records on its standard output.
use std::io::Write;
use std::sync::{Mutex, PoisonError};

use serde_json::json;

use super::ocsf::{Actor, Api, ApiRequest, App, Endpoint, Metadata, Product, Record, Resource, VERSION};
use super::{RecordError, now_ms};
use crate::init::config::SandboxIdentity;

/// Name of the controller in its records.
const CONTROLLER: &str = "agentsandbox-controller";

/// Something that the controller decided or did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlPlaneEvent {
    /// The spec was found valid.
    Accepted {
        /// Digest of the egress policy.
        policy_digest: String,
    },
    /// The spec was refused.
    Refused {
        /// Reason, such as `ReservedAddress`.
        reason: String,
        /// What is wrong, for a person.
        message: String,
    },
    /// The `NetworkPolicy` was written.
    PolicyApplied {
        /// Name of the `NetworkPolicy`.
        name: String,
        /// Digest of the egress policy.
        policy_digest: String,
    },
    /// The Pod was created.
    PodCreated {
        /// Name of the Pod.
        name: String,
    },
    /// The start gate passed: before the agent was started its Pod was measured and found contained.
    Contained {
        /// Digest of the egress policy that the Pod was made with.
        policy_digest: String,
        /// When the gate passed, RFC 3339.
        verified_at: String,
        /// What was found closed, as `Name address`.
        checks: Vec<String>,
    },
    /// The sandbox ended.
    Ended {
        /// Reason, such as `Completed`.
        reason: String,
        /// What happened, for a person.
        message: String,
    },
}

/// Writer of the controller's records. Shared between tasks: a record is one write under a lock.
pub struct ControlPlaneLog {
    /// Tells the records of one process from those of the one before.
    instance: String,
    state: Mutex<State>,
}

struct State {
    sink: Box<dyn Write + Send>,
    sequence: u64,
}

impl std::fmt::Debug for ControlPlaneLog {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("ControlPlaneLog").field("instance", &self.instance).finish_non_exhaustive()
    }
}

impl ControlPlaneLog {
    /// Writes to `sink`, which is standard output except in tests.
    pub fn new(sink: impl Write + Send + 'static) -> Self {
        Self {
            instance: format!("{:x}-{:x}", now_ms(), std::process::id()),
            state: Mutex::new(State { sink: Box::new(sink), sequence: 0 }),
        }
    }

    /// Writes one line about `sandbox` at `generation` of its spec and flushes it. A record that fails has
    /// no sequence number, so that the reader sees no false gap.
    pub fn record(
        &self,
        sandbox: &SandboxIdentity,
        generation: i64,
        event: ControlPlaneEvent,
    ) -> Result<(), RecordError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let sequence = state.sequence + 1;
        let metadata = Metadata {
            version: VERSION,
            uid: format!("{CONTROLLER}-{}-{sequence}", self.instance),
            sequence,
            correlation_uid: sandbox.uid.clone(),
            profiles: &[],
            product: Product::part(CONTROLLER),
        };
        to_record(sandbox, generation, event, metadata).write_to(&mut *state.sink)?;
        state.sequence = sequence;
        Ok(())
    }
}

fn to_record(
    sandbox: &SandboxIdentity,
    generation: i64,
    event: ControlPlaneEvent,
    metadata: Metadata,
) -> Record {
    let time = now_ms();
    let of_sandbox = || resource("AgentSandbox", &sandbox.namespace, &sandbox.name, Some(&sandbox.uid));
    let call = |activity, operation: &'static str, message: &str, resources| Record {
        actor: Some(Actor { app_name: CONTROLLER, user: None }),
        api: Some(Api { operation, request: ApiRequest { uid: generation.to_string() } }),
        src_endpoint: Some(Endpoint::named(CONTROLLER)),
        resources,
        ..Record::new(6003, activity, time, metadata.clone(), message)
    };
    match event {
        ControlPlaneEvent::Accepted { policy_digest } => Record {
            unmapped: json!({ "generation": generation, "policy_digest": policy_digest }),
            ..call((99, "Admit"), "admit", "The spec is accepted", vec![of_sandbox()])
        },
        ControlPlaneEvent::Refused { reason, message } => Record {
            severity_id: 3,
            status_id: 2,
            status_code: Some(reason),
            status_detail: Some(message),
            unmapped: json!({ "generation": generation }),
            ..call((99, "Admit"), "admit", "The spec is refused", vec![of_sandbox()])
        },
        ControlPlaneEvent::PolicyApplied { name, policy_digest } => {
            let policy = resource("NetworkPolicy", &sandbox.namespace, &name, None);
            Record {
                unmapped: json!({ "generation": generation, "policy_digest": policy_digest }),
                ..call((1, "Create"), "apply", "The egress policy is in place", vec![policy, of_sandbox()])
            }
        }
        ControlPlaneEvent::PodCreated { name } => {
            let pod = resource("Pod", &sandbox.namespace, &name, None);
            Record {
                unmapped: json!({ "generation": generation }),
                ..call((1, "Create"), "create", "The Pod is created", vec![pod, of_sandbox()])
            }
        }
        ControlPlaneEvent::Contained { policy_digest, verified_at, checks } => Record {
            unmapped: json!({
                "generation": generation,
                "policy_digest": policy_digest,
                "verified_at": verified_at,
                "checks": checks,
            }),
            ..call((99, "Verify"), "verify", "The containment was measured", vec![of_sandbox()])
        },
        ControlPlaneEvent::Ended { reason, message } => {
            let completed = reason == "Completed";
            Record {
                app: Some(App::of(sandbox)),
                severity_id: if completed { 1 } else { 2 },
                status_id: if completed { 1 } else { 2 },
                status_code: Some(reason),
                status_detail: Some(message).filter(|text| !text.is_empty()),
                unmapped: json!({ "generation": generation }),
                ..Record::new(6002, (4, "Stop"), time, metadata, "The sandbox ended")
            }
        }
    }
}

fn resource(kind: &'static str, namespace: &str, name: &str, uid: Option<&str>) -> Resource {
    Resource { name: name.to_owned(), namespace: namespace.to_owned(), kind, uid: uid.map(str::to_owned) }
}

#[cfg(test)]
mod tests {
    use super::super::sink::Sink;
    use super::*;

    #[test]
    fn every_event_is_one_canonical_line_in_order() {
        let sink = Sink::default();
        let log = ControlPlaneLog::new(sink.clone());
        let sandbox = SandboxIdentity { namespace: "team".into(), name: "one\n".into(), uid: "u-1".into() };
        let text = || "a\nb".to_owned();
        let events = [
            (ControlPlaneEvent::Accepted { policy_digest: text() }, 600_399, 1),
            (ControlPlaneEvent::Refused { reason: text(), message: text() }, 600_399, 2),
            (ControlPlaneEvent::PolicyApplied { name: text(), policy_digest: text() }, 600_301, 1),
            (ControlPlaneEvent::PodCreated { name: text() }, 600_301, 1),
            (
                ControlPlaneEvent::Contained {
                    policy_digest: text(),
                    verified_at: text(),
                    checks: vec!["Canary".into(), text()],
                },
                600_399,
                1,
            ),
            (ControlPlaneEvent::Ended { reason: "Completed".into(), message: text() }, 600_204, 1),
            (ControlPlaneEvent::Ended { reason: "AgentFailed".into(), message: text() }, 600_204, 2),
        ];
        for (event, ..) in events.clone() {
            log.record(&sandbox, 3, event).unwrap();
        }
        let records = sink.records();
        assert_eq!(records.len(), events.len());
        for (index, (value, (_, type_uid, status_id))) in records.iter().zip(&events).enumerate() {
            assert_eq!(value["metadata"]["sequence"], index + 1);
            assert_eq!(value["metadata"]["version"], "1.8.0");
            assert_eq!(value["metadata"]["correlation_uid"], "u-1");
            assert_eq!(value["type_uid"], *type_uid);
            assert_eq!(value["status_id"], *status_id);
            assert_eq!(value["unmapped"]["generation"], 3);
        }
    }
}
