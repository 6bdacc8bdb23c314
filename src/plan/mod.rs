//! From a sandbox, what was seen in the cluster and the operator's settings to the objects. Pure and deterministic:
//! no I/O, no clock, no client.
mod agent;
mod held;
pub mod keyed;
pub mod labels;
pub mod names;
mod network_policy;
mod observed;
mod pod;
pub mod seal;
mod settings;
mod sidecar;
mod validate;
mod volumes;

use std::{collections::BTreeMap, marker::PhantomData};

use k8s_openapi::{
    api::{core::v1::Pod, networking::v1::NetworkPolicy},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};

pub use held::held;
pub use observed::{Foreign, Observed, ObservedPort, ObservedService};
pub use pod::deadline_seconds;
pub use settings::{GatewayReach, GatewaySettings, METADATA, Settings, gateway_name};
pub use validate::{
    Destination, MOST_SERVICES, Refusal, ValidatedMount, ValidatedRule, ValidatedSandbox, names_of_services,
    reason, validate,
};

use crate::api::v1alpha1::{GROUP, VERSION};
use crate::init::config::SandboxIdentity;

/// State of a [`Plan`] that is not in the cluster yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prepared;

/// State of a [`Plan`] whose objects are in the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Applied;

/// The objects of one sandbox. They are applied in the order of the fields: an agent never runs without its policy.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan<State> {
    /// What the agent's Pod may reach. First, always.
    pub policy: NetworkPolicy,
    /// The agent's Pod.
    pub pod: Pod,
    state: PhantomData<State>,
}

impl Plan<Prepared> {
    /// Says that both objects are in the cluster.
    pub fn into_applied(self) -> Plan<Applied> {
        let Self { policy, pod, state: PhantomData } = self;
        Plan { policy, pod, state: PhantomData }
    }
}

/// The objects of `sandbox`.
pub fn plan(sandbox: &ValidatedSandbox, settings: &Settings) -> Plan<Prepared> {
    Plan {
        policy: network_policy::build(&sandbox.marks(), sandbox.egress(), settings),
        pod: pod::build(sandbox, settings),
        state: PhantomData,
    }
}

/// What the metadata of both objects says.
struct Marks<'a> {
    identity: &'a SandboxIdentity,
    hash: &'a str,
    object_name: &'a str,
    policy_digest: &'a str,
}

/// Metadata that both objects have.
fn metadata(marks: &Marks<'_>) -> ObjectMeta {
    ObjectMeta {
        name: Some(marks.object_name.to_owned()),
        namespace: Some(marks.identity.namespace.clone()),
        labels: Some(labels::of(marks.hash)),
        annotations: Some(BTreeMap::from([(
            labels::POLICY_DIGEST.to_owned(),
            marks.policy_digest.to_owned(),
        )])),
        owner_references: Some(vec![OwnerReference {
            api_version: format!("{GROUP}/{VERSION}"),
            kind: "AgentSandbox".to_owned(),
            name: marks.identity.name.clone(),
            uid: marks.identity.uid.clone(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        }]),
        ..ObjectMeta::default()
    }
}
