//! Reads what a decision depends on. Watches bring Pods and policies; Services and Nodes are read when needed.
//!
//! Services are not watched: a watch of every Service of the cluster costs more than reading the few that rules name
//! once a minute, and every change of the sandbox reads them anyway. A spec that is refused without a Pod is looked at
//! ever less often, and read only as far as it takes to refuse it: it costs its author nothing.
use std::sync::Arc;

use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::jiff::Timestamp;
use kube::runtime::reflector::ObjectRef;
use kube::{Api, Client};

use super::context::{Context, Identity};
use super::error::{Doing, Error};
use super::ownership::{Known, Owner, owner, owner_of_pod};
use super::pod::SlimPod;
use crate::api::v1alpha1::{AgentSandbox, AgentSandboxStatus};
use crate::plan::{Foreign, MOST_SERVICES, Observed, ObservedService, names, names_of_services};

/// Services that are read at one time.
const READS: usize = 8;

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
    let mut seen = objects(context, status, identity).await?;
    let exists = seen.pod.is_some() || status.pod_name.is_some();
    services(&context.client, sandbox, identity, exists, &mut seen.observed).await?;
    Ok(seen)
}

/// Reads the Pod of the sandbox, its policy and, where that matters, its node.
pub async fn objects(
    context: &Context,
    status: &AgentSandboxStatus,
    identity: &Identity,
) -> Result<Seen, Error> {
    let mut seen = Seen::default();
    pod(context, status, identity, &mut seen).await?;
    policy(context, identity, &mut seen);
    if let Some(pod) = seen.pod.clone() {
        seen.node_lost_since = node(context, &pod).await?;
    }
    Ok(seen)
}

/// Reads the Services that the rules of `sandbox` name. Without its Pod the first that is missing ends that, since the
/// spec is refused then; the rules of a Pod that exists hold as far as they are right, so that all are needed.
pub async fn services(
    client: &Client,
    sandbox: &AgentSandbox,
    identity: &Identity,
    exists: bool,
    observed: &mut Observed,
) -> Result<(), Error> {
    let mut wanted = names_of_services(sandbox.spec.network.as_ref(), &identity.sandbox.namespace);
    if wanted.len() > MOST_SERVICES {
        observed.unread.extend(wanted);
        return Ok(());
    }
    // No other can be the name of an object, or a part of a URL.
    wanted.retain(|(namespace, name)| names::is_label(namespace) && names::is_label(name));
    observed.unread.extend(wanted.iter().cloned());
    let mut reads = stream::iter(wanted).map(|key| read(client, key)).buffered(READS);
    while let Some(read) = reads.next().await {
        let (key, service) = read?;
        observed.unread.remove(&key);
        match service {
            Some(service) => drop(observed.services.insert(key, service)),
            None if exists => {}
            None => break,
        }
    }
    Ok(())
}

async fn read(
    client: &Client,
    (namespace, name): (String, String),
) -> Result<((String, String), Option<ObservedService>), Error> {
    let services: Api<Service> = Api::namespaced(client.clone(), &namespace);
    let found = services.get_opt(&name).await.doing("read a Service that a rule names")?;
    Ok(((namespace, name), found.as_ref().map(ObservedService::from_service)))
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use http::{Request, Response};
    use kube::client::Body;
    use serde_json::{Value, json};

    use super::*;
    use crate::plan::{Settings, reason, validate};

    fn sandbox(names: impl Iterator<Item = usize>) -> AgentSandbox {
        let rule = |n| json!({"service": {"name": format!("s{n:03}")}, "ports": [80]});
        serde_json::from_value(json!({
            "apiVersion": "agentsandbox.dev/v1alpha1", "kind": "AgentSandbox",
            "metadata": {"name": "a", "namespace": "n", "uid": "u"},
            "spec": {"image": "i", "command": ["c"], "network": {"egress": names.map(rule).collect::<Vec<_>>()}},
        }))
        .unwrap()
    }

    /// An API server that has the Services below number `there`.
    #[derive(Clone)]
    struct Server {
        there: usize,
        asked: Arc<AtomicUsize>,
        at_once: Arc<AtomicUsize>,
        most: Arc<AtomicUsize>,
    }

    impl Server {
        fn new(there: usize) -> Self {
            Self { there, asked: Arc::default(), at_once: Arc::default(), most: Arc::default() }
        }

        async fn answer(self, request: Request<Body>) -> Result<Response<Body>, Infallible> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            self.most.fetch_max(self.at_once.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(10)).await;
            self.at_once.fetch_sub(1, Ordering::Relaxed);
            let number: usize = request.uri().path().rsplit_once("/s").unwrap().1.parse().unwrap();
            let (status, body): (u16, Value) = if number < self.there {
                let spec = json!({"selector": {"app": "a"}, "ports": [{"port": 80}]});
                (200, json!({"metadata": {"name": format!("s{number:03}")}, "spec": spec}))
            } else {
                let status = json!({"kind": "Status", "status": "Failure", "code": 404, "reason": "NotFound", "message": ""});
                (404, status)
            };
            Ok(Response::builder().status(status).body(Body::from(body.to_string().into_bytes())).unwrap())
        }

        async fn read(&self, sandbox: &AgentSandbox, exists: bool) -> Observed {
            let server = self.clone();
            let service = tower::service_fn(move |request| server.clone().answer(request));
            let client = Client::new(service, "default");
            let mut observed = Observed::default();
            services(&client, sandbox, &Identity::of(sandbox), exists, &mut observed).await.unwrap();
            observed
        }
    }

    fn refused(sandbox: &AgentSandbox, observed: &Observed) -> Vec<(&'static str, String)> {
        let refusals = validate(sandbox, observed, &Settings::default()).err().unwrap_or_default();
        refusals
            .into_iter()
            .map(|refusal| (refusal.reason, format!("{} {}", refusal.field, refusal.message)))
            .collect()
    }

    #[tokio::test]
    async fn every_service_is_read_once_and_eight_at_a_time() {
        let (server, sandbox) = (Server::new(32), sandbox((0..32).chain(0..32)));
        let observed = server.read(&sandbox, false).await;
        assert_eq!((observed.services.len(), observed.unread.len()), (32, 0));
        assert_eq!((server.asked.load(Ordering::Relaxed), server.most.load(Ordering::Relaxed)), (32, READS));
        assert_eq!(refused(&sandbox, &observed), []);
    }

    #[tokio::test]
    async fn without_a_pod_the_first_that_is_missing_ends_it_and_is_named() {
        let (server, sandbox) = (Server::new(1), sandbox(0..32));
        let observed = server.read(&sandbox, false).await;
        assert!(server.asked.load(Ordering::Relaxed) <= 2 * READS);
        let [(reason, message)] = &refused(&sandbox, &observed)[..] else { panic!("one refusal") };
        assert_eq!(*reason, reason::SERVICE_NOT_FOUND);
        assert!(message.contains("egress[1].service the Service n/s001 does not exist"), "{message}");
    }

    #[tokio::test]
    async fn with_a_pod_all_are_read_since_those_that_are_there_hold() {
        let (server, sandbox) = (Server::new(31), sandbox((0..32).rev()));
        let observed = server.read(&sandbox, true).await;
        assert_eq!((observed.services.len(), observed.unread.len()), (31, 0));
        assert_eq!(refused(&sandbox, &observed).len(), 1);
    }

    #[tokio::test]
    async fn of_too_many_services_none_is_read() {
        let (server, sandbox) = (Server::new(100), sandbox(0..33));
        for exists in [false, true] {
            let observed = server.read(&sandbox, exists).await;
            assert_eq!(server.asked.load(Ordering::Relaxed), 0);
            let [(reason, message)] = &refused(&sandbox, &observed)[..] else { panic!("one refusal") };
            assert_eq!(*reason, reason::INVALID_SPEC);
            assert!(
                message.starts_with("spec.network.egress names 33 different Services; at most 32"),
                "{message}"
            );
        }
    }

    /// A question that fails would keep the policy of a Pod that exists from being held.
    #[tokio::test]
    async fn for_what_cannot_be_the_name_of_a_service_nobody_is_asked() {
        let (server, mut sandbox) = (Server::new(2), sandbox(0..3));
        for (rule, name) in sandbox.spec.network.iter_mut().flat_map(|n| &mut n.egress).zip(["s/../a", "%zz"])
        {
            rule.service.as_mut().unwrap().name = name.to_owned();
        }
        let observed = server.read(&sandbox, true).await;
        assert_eq!(server.asked.load(Ordering::Relaxed), 1);
        let reasons: Vec<_> = refused(&sandbox, &observed).into_iter().map(|(reason, _)| reason).collect();
        assert_eq!(reasons, [reason::INVALID_SPEC, reason::INVALID_SPEC, reason::SERVICE_NOT_FOUND]);
    }

    #[test]
    fn a_service_that_was_not_looked_at_never_passes() {
        let sandbox = sandbox(0..1);
        let unread = BTreeSet::from([("n".to_owned(), "s000".to_owned())]);
        let observed = Observed { unread, ..Observed::default() };
        assert_eq!(refused(&sandbox, &observed).len(), 1);
    }
}
