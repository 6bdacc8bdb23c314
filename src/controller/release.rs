//! Lets policies go, once nothing runs under them any more. The finalizer keeps a `NetworkPolicy` until no Pod of its
//! name exists, whoever deleted it and whether or not the sandbox still exists: so this works from the policies, not
//! from the sandboxes, also after a restart.
use std::cell::LazyCell;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{StreamExt, stream};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{Patch, PatchParams};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Api, Resource, ResourceExt};
use serde_json::json;
use tokio::sync::Notify;

use super::apply::delete_pod;
use super::conditions::{FINISHED, holds};
use super::context::{Context, Guarded, Identity};
use super::error::{Doing, Error};
use super::field_managers;
use super::ownership::has_finalizer;
use super::pod::SlimPod;
use crate::plan::{labels, names};

/// Longest time between two looks, and shortest between two questions for one Pod.
const PERIOD: Duration = Duration::from_secs(5);
/// Time in which several wake-ups become one look.
const GATHER: Duration = Duration::from_millis(50);
/// Policies that are dealt with at one time.
const AT_ONCE: usize = 8;

/// Lets policies go until the process ends. `wake` says that a policy, a Pod or a sandbox changed.
pub async fn release(context: Arc<Context>, wake: Arc<Notify>) {
    let mut asked = Asked::default();
    loop {
        let _ = tokio::time::timeout(PERIOD, wake.notified()).await;
        tokio::time::sleep(GATHER).await;
        if !context.fence.holds() {
            continue;
        }
        let sandboxes = context.sandboxes.state();
        let known = LazyCell::new(|| Known::of(&sandboxes));
        let due = due(&context.policies, &context.pods, || &known, &mut asked, Instant::now());
        let orphans: Vec<_> =
            context.pods.state().into_iter().filter(|pod| is_orphan(pod, || &known)).collect();
        drop(known);
        stream::iter(due)
            .for_each_concurrent(AT_ONCE, async |policy| {
                if let Err(error) = one(&context, &policy).await {
                    tracing::warn!(%error, policy = policy.name_any(), "policy not let go; trying again");
                }
            })
            .await;
        for pod in orphans {
            if let Err(error) = delete_pod(&context, &pod).await {
                tracing::warn!(%error, pod = pod.name_any(), "Pod without a sandbox not deleted; trying again");
            }
        }
        forget(&context);
    }
}

/// The policies that may be let go as far as the caches tell, and for whose Pod the API server has not been asked just
/// now: whoever may make Pods and policies can make any number of policies that wait for a Pod of his.
fn due<'a>(
    policies: &Store<NetworkPolicy>,
    pods: &Store<SlimPod>,
    known: impl Fn() -> &'a Known,
    asked: &mut Asked,
    now: Instant,
) -> Vec<Arc<NetworkPolicy>> {
    let waiting: Vec<_> = policies.state().into_iter().filter(|policy| waits(policy)).collect();
    asked.retain(&waiting);
    let may_go = |policy: &Arc<NetworkPolicy>| {
        let key = ObjectRef::new(&policy.name_any()).within(&policy.namespace().unwrap_or_default());
        pods.get(&key).is_none() && !known().need(policy) && asked.may(policy, now)
    };
    waiting.into_iter().filter(may_go).collect()
}

/// When the API server was asked for the Pod of a policy, by the policy's UID.
#[derive(Debug, Default)]
struct Asked(HashMap<String, Instant>);

impl Asked {
    /// Whether it may be asked for the Pod of `policy`; then it counts as asked.
    fn may(&mut self, policy: &NetworkPolicy, now: Instant) -> bool {
        let uid = policy.metadata.uid.clone().unwrap_or_default();
        let lately = self.0.get(&uid).is_some_and(|at| now.saturating_duration_since(*at) < PERIOD);
        if !lately {
            self.0.insert(uid, now);
        }
        !lately
    }

    fn retain(&mut self, waiting: &[Arc<NetworkPolicy>]) {
        let uids: HashSet<&str> = waiting.iter().filter_map(|p| p.metadata.uid.as_deref()).collect();
        self.0.retain(|uid, _| uids.contains(uid.as_str()));
    }
}

/// Forgets what is remembered of sandboxes that are gone.
fn forget(context: &Context) {
    // As they are now: one that came since the look began may be remembered already.
    let sandboxes = context.sandboxes.state();
    let uids: HashSet<&str> = sandboxes.iter().filter_map(|s| s.meta().uid.as_deref()).collect();
    context.memory.retain(|uid| uids.contains(uid));
    context.looks.retain(|uid| uids.contains(uid));
    context.backoff.retain(|uid| uids.contains(uid));
    #[allow(clippy::cast_precision_loss, reason = "a gauge of a count far below 2^52")]
    context.metrics.sandboxes.set(sandboxes.len() as f64);
}

async fn one(context: &Context, policy: &NetworkPolicy) -> Result<(), Error> {
    let meta = &policy.metadata;
    let (name, namespace) = (policy.name_any(), policy.namespace().unwrap_or_default());
    // By any other name it is none of ours, but somebody's copy of one: no Pod of a sandbox has it, and only we let it go.
    if names::hash_of(&name).is_some() {
        // The cache does not have a Pod that lost its label.
        let pods: Api<SlimPod> = Api::namespaced(context.client.clone(), &namespace);
        if pods.get_opt(&name).await.doing("read the Pod")?.is_some() {
            return Ok(());
        }
    }
    context.may_write()?;
    let others: Vec<&String> =
        meta.finalizers.iter().flatten().filter(|f| *f != labels::POD_GONE_FINALIZER).collect();
    // The version makes the list safe to replace: of a changed object the API server refuses it.
    let body = json!({"metadata": {"resourceVersion": meta.resource_version, "uid": meta.uid, "finalizers": others}});
    let params =
        PatchParams { field_manager: Some(field_managers::RELEASE.to_owned()), ..PatchParams::default() };
    let policies: Api<NetworkPolicy> = Api::namespaced(context.client.clone(), &namespace);
    match policies.patch(&name, &params, &Patch::Merge(&body)).await {
        Ok(_) => context.metrics.applied("NetworkPolicy", "release"),
        Err(kube::Error::Api(status)) if status.is_not_found() => {}
        Err(error) => return Err(error).doing("remove the finalizer of the NetworkPolicy"),
    }
    Ok(())
}

/// Whether somebody asked for the deletion of `policy` and only our finalizer keeps it.
fn waits(policy: &NetworkPolicy) -> bool {
    policy.metadata.deletion_timestamp.is_some() && has_finalizer(&policy.metadata)
}

/// By what the objects of the sandboxes that there are are known. Made once a look, and only where something asks.
#[derive(Debug, Default)]
struct Known {
    /// UIDs of those that still need their policy.
    live: HashSet<String>,
    /// Hashes of those.
    live_hashes: HashSet<String>,
    /// Hashes of all.
    hashes: HashSet<String>,
    /// Whether one cannot be read.
    unreadable: bool,
}

impl Known {
    fn of(sandboxes: &[Arc<Guarded>]) -> Self {
        let mut known = Self::default();
        for sandbox in sandboxes {
            let live = is_live(sandbox);
            if live {
                known.live.extend(sandbox.meta().uid.clone());
            }
            let Ok(readable) = &sandbox.0 else {
                known.unreadable = true;
                continue;
            };
            let hash = Identity::of(readable).hash;
            if live {
                known.live_hashes.insert(hash.clone());
            }
            known.hashes.insert(hash);
        }
        known
    }

    /// Whether a sandbox that still needs it has `policy`: by its name, its label or an owner.
    fn need(&self, policy: &NetworkPolicy) -> bool {
        let mut owners = policy.metadata.owner_references.iter().flatten();
        let label = policy.labels().get(labels::SANDBOX);
        owners.any(|owner| self.live.contains(&owner.uid))
            || label.is_some_and(|hash| self.live_hashes.contains(hash))
            || names::hash_of(&policy.name_any()).is_some_and(|hash| self.live_hashes.contains(hash))
    }
}

/// Whether the sandbox still needs its policy. One that cannot be read may.
fn is_live(guarded: &Guarded) -> bool {
    let finished = guarded.0.as_ref().ok().and_then(|s| s.status.as_ref());
    let finished = finished.is_some_and(|s| holds(&s.conditions, FINISHED) == Some(true));
    guarded.meta().deletion_timestamp.is_none() && !finished
}

/// Whether `pod` lost its owner and then its sandbox: the garbage collector does not see it.
fn is_orphan<'a>(pod: &SlimPod, known: impl FnOnce() -> &'a Known) -> bool {
    let unowned = pod.metadata.owner_references.as_ref().is_none_or(Vec::is_empty);
    let marked = pod.annotations().contains_key(labels::NAME) && !pod.is_deleting();
    let Some(hash) = pod.labels().get(labels::SANDBOX).filter(|_| unowned && marked) else { return false };
    let known = known();
    !known.unreadable && !known.hashes.contains(hash)
}

#[cfg(test)]
mod tests {
    use kube::core::DeserializeGuard;
    use kube::runtime::watcher::Event;
    use serde_json::{Value, json};

    use super::*;
    use crate::api::v1alpha1::AgentSandbox;

    fn sandbox(uid: &str, more: &Value) -> Arc<Guarded> {
        let mut object = json!({
            "apiVersion": "agentsandbox.dev/v1alpha1", "kind": "AgentSandbox",
            "metadata": {"name": "a", "namespace": "n", "uid": uid},
            "spec": {"image": "i", "command": ["c"]},
        });
        for (key, value) in more.as_object().unwrap() {
            if key == "deletionTimestamp" {
                object["metadata"][key] = value.clone();
            } else {
                object[key] = value.clone();
            }
        }
        Arc::new(serde_json::from_value::<DeserializeGuard<AgentSandbox>>(object).unwrap())
    }

    fn hash(uid: &str) -> String {
        crate::plan::names::hash("n", "a", uid)
    }

    fn policy(meta: &Value) -> NetworkPolicy {
        serde_json::from_value(json!({"metadata": meta})).unwrap()
    }

    fn deleted() -> Value {
        json!({"deletionTimestamp": "2027-01-01T00:00:00Z"})
    }

    fn finished(status: &str) -> Value {
        json!({"status": {"conditions": [{"type": "Finished", "status": status, "reason": "r", "message": "",
            "lastTransitionTime": "2027-01-01T00:00:00Z"}]}})
    }

    #[test]
    fn only_a_policy_that_waits_for_us_alone_is_let_go() {
        let finalizers = json!(["agentsandbox.dev/pod-gone"]);
        let at = "2027-01-01T00:00:00Z";
        for (meta, want) in [
            (json!({"finalizers": finalizers, "deletionTimestamp": at}), true),
            (json!({"finalizers": finalizers}), false),
            (json!({"finalizers": ["other/one"], "deletionTimestamp": at}), false),
            (json!({"deletionTimestamp": at}), false),
        ] {
            assert_eq!(waits(&policy(&meta)), want, "{meta}");
        }
    }

    /// A policy named `name` that waits to be let go.
    fn waiting(name: &str) -> NetworkPolicy {
        policy(&json!({"name": name, "namespace": "n", "uid": format!("uid of {name}"),
            "deletionTimestamp": "2027-01-01T00:00:00Z", "finalizers": ["agentsandbox.dev/pod-gone"]}))
    }

    fn filled<K>(objects: impl IntoIterator<Item = K>) -> Store<K>
    where
        K: Resource<DynamicType = ()> + Clone + 'static,
    {
        let (store, mut writer) = kube::runtime::reflector::store();
        for object in objects {
            writer.apply_watcher_event(&Event::Apply(object));
        }
        store
    }

    fn names(policies: &[Arc<NetworkPolicy>]) -> Vec<String> {
        let mut names: Vec<_> = policies.iter().map(|policy| policy.name_any()).collect();
        names.sort();
        names
    }

    #[test]
    fn for_one_policy_the_api_server_is_asked_every_five_seconds_at_most() {
        let (policies, pods) = (filled([waiting("a"), waiting("b")]), filled([]));
        let (mut asked, begun, known) = (Asked::default(), Instant::now(), Known::default());
        let mut look = |policies: &Store<NetworkPolicy>, ms: u64| {
            let now = begun + Duration::from_millis(ms);
            names(&due(policies, &pods, || &known, &mut asked, now))
        };
        assert_eq!(look(&policies, 0), ["a", "b"]);
        for ms in (50..5000).step_by(50) {
            assert_eq!(look(&policies, ms), [""; 0]);
        }
        // A new one need not wait for that.
        let more = filled([waiting("a"), waiting("c")]);
        assert_eq!(look(&more, 4990), ["c"]);
        assert_eq!(look(&more, 5000), ["a"]);
        // What does not wait any more is forgotten.
        assert_eq!(asked.0.len(), 2);
    }

    #[test]
    fn for_a_pod_that_the_cache_has_nobody_is_asked() {
        let pod = |namespace: &str| -> SlimPod {
            serde_json::from_value(json!({"metadata": {"name": "a", "namespace": namespace, "uid": "p"}}))
                .unwrap()
        };
        let policies = filled([waiting("a")]);
        let look = |pods: &Store<SlimPod>| {
            names(&due(&policies, pods, || unreachable!(), &mut Asked::default(), Instant::now()))
        };
        assert_eq!(look(&filled([pod("n")])), [""; 0]);
        let (other, known) = (filled([pod("other")]), Known::default());
        assert_eq!(names(&due(&policies, &other, || &known, &mut Asked::default(), Instant::now())), ["a"]);
    }

    #[test]
    fn a_policy_is_needed_as_long_as_its_sandbox_may_run_something() {
        let owned = json!([{"apiVersion": "v", "kind": "AgentSandbox", "name": "a", "uid": "u"}]);
        let by_owner = policy(&json!({"ownerReferences": owned}));
        let by_hash = policy(&json!({"labels": {"agentsandbox.dev/sandbox": hash("u")}}));
        let by_name = waiting(&crate::plan::names::object_name("a", &hash("u")));
        let by_none = policy(&json!({}));
        let is_needed =
            |policy: &NetworkPolicy, sandboxes: &[Arc<Guarded>]| Known::of(sandboxes).need(policy);
        let unreadable = json!({"spec": {"image": 1}});
        for (more, want) in [
            (json!({}), true),
            (finished("False"), true),
            (finished("True"), false),
            (deleted(), false),
            // What cannot be read may still run.
            (unreadable.clone(), true),
        ] {
            let all = [sandbox("other", &json!({})), sandbox("u", &more)];
            assert_eq!(is_needed(&by_owner, &all), want, "{more}");
            assert!(!is_needed(&by_none, &all), "{more}");
        }
        assert!(is_needed(&by_hash, &[sandbox("u", &json!({}))]));
        // Its name is what nobody can take off.
        assert!(is_needed(&by_name, &[sandbox("u", &json!({}))]));
        assert!(!is_needed(&by_name, &[sandbox("u", &deleted())]));
        assert!(!is_needed(&by_hash, &[sandbox("u", &finished("True"))]));
        // Another object of the same name is another sandbox.
        assert!(!is_needed(&by_hash, &[sandbox("other", &json!({}))]));
        assert!(!is_needed(&by_owner, &[]));
        assert!(!is_needed(&by_owner, &[sandbox("other", &unreadable)]));
    }

    #[test]
    fn an_orphan_is_a_pod_of_ours_that_lost_owner_and_sandbox() {
        let pod = |meta: Value| -> SlimPod { serde_json::from_value(json!({"metadata": meta})).unwrap() };
        let labels = json!({"agentsandbox.dev/sandbox": hash("u")});
        let name = json!({"agentsandbox.dev/name": "n/a"});
        let owned = json!([{"apiVersion": "v", "kind": "AgentSandbox", "name": "a", "uid": "u"}]);
        let lost = || pod(json!({"labels": labels, "annotations": name}));
        let there = [sandbox("u", &json!({}))];
        let is_orphan = |pod: &SlimPod, sandboxes: &[Arc<Guarded>]| {
            let known = Known::of(sandboxes);
            super::is_orphan(pod, || &known)
        };
        assert!(is_orphan(&lost(), &[]));
        assert!(is_orphan(&lost(), &[sandbox("other", &json!({}))]));
        assert!(!is_orphan(&lost(), &there));
        // One that cannot be read may be the one.
        assert!(!is_orphan(&lost(), &[sandbox("other", &json!({"spec": {"image": 1}}))]));
        for meta in [
            json!({"labels": labels, "annotations": name, "ownerReferences": owned}),
            json!({"labels": labels, "annotations": name, "deletionTimestamp": "2027-01-01T00:00:00Z"}),
            json!({"labels": labels}),
            json!({"annotations": name}),
        ] {
            assert!(!is_orphan(&pod(meta.clone()), &[]), "{meta}");
        }
    }
}
