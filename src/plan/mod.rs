//! From a sandbox, what was seen in the cluster and the operator's settings to the objects. Pure and deterministic:
//! no I/O, no clock, no client.
mod agent;
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

pub use observed::{Foreign, Observed, ObservedPort, ObservedService};
pub use settings::{GatewayReach, GatewaySettings, METADATA, Settings, gateway_name};
pub use validate::{
    Destination, Refusal, ValidatedMount, ValidatedRule, ValidatedSandbox, names_of_services, reason,
    validate,
};

use crate::api::v1alpha1::{GROUP, VERSION};

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
        policy: network_policy::build(sandbox, settings),
        pod: pod::build(sandbox, settings),
        state: PhantomData,
    }
}

/// Metadata that both objects have.
fn metadata(sandbox: &ValidatedSandbox) -> ObjectMeta {
    ObjectMeta {
        name: Some(sandbox.object_name().to_owned()),
        namespace: Some(sandbox.identity().namespace.clone()),
        labels: Some(labels::of(sandbox.hash())),
        annotations: Some(BTreeMap::from([(
            labels::POLICY_DIGEST.to_owned(),
            sandbox.policy_digest().to_owned(),
        )])),
        owner_references: Some(vec![OwnerReference {
            api_version: format!("{GROUP}/{VERSION}"),
            kind: "AgentSandbox".to_owned(),
            name: sandbox.identity().name.clone(),
            uid: sandbox.identity().uid.clone(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        }]),
        ..ObjectMeta::default()
    }
}
