//! Reads what a decision depends on. Watches bring Pods and policies; Services and Nodes are read when needed.
//!
//! Services are not watched: a watch of every Service of the cluster costs more than reading the few that rules name
//! once a minute, and every change of the sandbox reads them anyway.
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::runtime::reflector::ObjectRef;

use super::context::{Context, Identity};
use super::error::{Doing, Error};
use super::ownership::{Known, Owner, owner, owner_of_pod};
use super::pod::SlimPod;
use crate::api::v1alpha1::{AgentSandbox, AgentSandboxStatus};
use crate::plan::{Foreign, Observed, ObservedService, names_of_services};

/// What was read.
#[derive(Debug, Default)]
pub struct Seen {
    /// What validation depends on.
    pub observed: Observed,
    /// The sandbox's Pod.
    pub pod: Option<Arc<SlimPod>>,
    /// Whether labels or owner of the Pod are gone.
    pub pod_stripped: bool,
    /// The sandbox's policy.
    pub policy: Option<Arc<NetworkPolicy>>,
    /// Why the policy cannot be held up any more.
    pub policy_lost: Option<&'static str>,
    /// Since when the Pod's node does not answer.
    pub node_lost_since: Option<Timestamp>,
}

/// Reads what a decision about `sandbox` depends on.
pub async fn gather(
    context: &Context,
    sandbox: &AgentSandbox,
    status: &AgentSandboxStatus,
    identity: &Identity,
) -> Result<Seen, Error> {
    let mut seen = Seen::default();
    pod(context, status, identity, &mut seen).await?;
    policy(context, identity, &mut seen);
    if let Some(pod) = seen.pod.clone() {
        seen.node_lost_since = node(context, &pod).await?;
    }
    for (namespace, name) in names_of_services(sandbox.spec.network.as_ref(), &identity.sandbox.namespace) {
        let services: Api<Service> = Api::namespaced(context.client.clone(), &namespace);
        if let Some(service) = services.get_opt(&name).await.doing("read a Service that a rule names")? {
            seen.observed.services.insert((namespace, name), ObservedService::from_service(&service));
        }
    }
    Ok(seen)
}

async fn pod(
    context: &Context,
    status: &AgentSandboxStatus,
    identity: &Identity,
    seen: &mut Seen,
) -> Result<(), Error> {
    let key = ObjectRef::new(&identity.object).within(&identity.sandbox.namespace);
    let mut pod = context.pods.get(&key);
    // The watch selects by label: a Pod that lost its label looks deleted, and a Pod just made may not be there yet.
    if pod.is_none() && status.pod_name.is_some() {
        pod = get_pod(context, identity).await?.map(Arc::new);
    }
    let settings = context.settings();
    let known = Known::from_status(status, &settings.directory_key);
    match pod.as_ref().map(|pod| owner_of_pod(pod, identity, known)) {
        Some(Owner::Foreign) => drop(seen.observed.foreign.insert(Foreign::PodTaken)),
        Some(owner) => {
            seen.pod_stripped = owner == Owner::Stripped;
            seen.pod = pod;
        }
        None => {}
    }
    Ok(())
}

/// The Pod with the sandbox's object name, from the API server.
pub async fn get_pod(context: &Context, identity: &Identity) -> Result<Option<SlimPod>, Error> {
    let pods: Api<SlimPod> = Api::namespaced(context.client.clone(), &identity.sandbox.namespace);
    pods.get_opt(&identity.object).await.doing("read the Pod")
}

fn policy(context: &Context, identity: &Identity, seen: &mut Seen) {
    let key = ObjectRef::new(&identity.object).within(&identity.sandbox.namespace);
    let Some(policy) = context.policies.get(&key) else { return };
    if owner(&policy.metadata, identity) == Owner::Foreign {
        if seen.pod.is_some() {
            seen.policy_lost = Some("another NetworkPolicy has the name of the sandbox's");
        } else {
            seen.observed.foreign.insert(Foreign::PolicyTaken);
        }
        return;
    }
    if policy.metadata.deletion_timestamp.is_some() {
        seen.policy_lost = Some("the NetworkPolicy was deleted, which cannot be undone");
    }
    seen.policy = Some(policy);
}

/// Since when the node of `pod` does not answer. Asks only where the Pod itself looks unhealthy.
async fn node(context: &Context, pod: &SlimPod) -> Result<Option<Timestamp>, Error> {
    let unknown = pod.status.phase.as_deref() == Some("Unknown");
    let unready = pod.condition("Ready").is_some_and(|c| c.status != "True");
    let running = pod.agent().and_then(|a| a.state.as_ref()).is_some_and(|s| s.running.is_some());
    let (Some(name), true) = (&pod.spec.node_name, unknown || (running && unready) || pod.is_deleting())
    else {
        return Ok(None);
    };
    let nodes: Api<Node> = Api::all(context.client.clone());
    let Some(node) = nodes.get_opt(name).await.doing("read the Pod's Node")? else {
        return Ok(Some(Timestamp::UNIX_EPOCH));
    };
    let conditions = node.status.and_then(|s| s.conditions).unwrap_or_default();
    let ready = conditions.iter().find(|c| c.type_ == "Ready");
    let lost = ready.filter(|c| c.status != "True").and_then(|c| c.last_transition_time.as_ref());
    Ok(lost.map(|time| time.0))
}
