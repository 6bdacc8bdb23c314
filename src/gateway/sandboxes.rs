//! Every sandbox of the cluster with its policy, kept by a watch.
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use kube::api::ObjectMeta;
use kube::core::DeserializeGuard;
use kube::runtime::watcher::Event;
use kube::{Resource, ResourceExt};
use serde::Deserialize;

use super::connection::Ending;
use super::limits::Limits;
use super::live::Live;
use crate::api::v1alpha1::{AgentSandbox, Network};
use crate::init::config::SandboxIdentity;
use crate::policy::EffectivePolicy;

/// An AgentSandbox as it is watched: what decides about its egress, and nothing else.
#[derive(Deserialize, Resource, Clone, Debug, Default)]
#[resource(inherit = AgentSandbox)]
pub struct SlimSandbox {
    /// Metadata.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// Part of the spec.
    #[serde(default)]
    pub spec: SlimSpec,
    /// Part of the status.
    #[serde(default)]
    pub status: Option<SlimStatus>,
}

/// Part of an AgentSandbox's status.
#[derive(Deserialize, Clone, Debug, Default)]
#[serde(rename_all = "camelCase")]
pub struct SlimStatus {
    /// UID of the Pod that the controller made.
    #[serde(default)]
    pub pod_uid: Option<String>,
}

/// Part of an AgentSandbox's spec.
#[derive(Deserialize, Clone, Debug, Default)]
pub struct SlimSpec {
    /// What the agent may reach.
    #[serde(default)]
    pub network: Option<Network>,
}

/// One that cannot be read does not stop the others.
pub type Guarded = DeserializeGuard<SlimSandbox>;

/// A sandbox and its policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sandbox {
    /// Which one.
    pub identity: SandboxIdentity,
    /// Generation of the spec.
    pub generation: i64,
    /// UID of the Pod that the controller made, once status has it. Who may create Pods can make one of that name.
    pub pod_uid: Option<String>,
    /// The policy, or why it cannot be read.
    pub policy: Result<EffectivePolicy, String>,
}

impl Sandbox {
    fn of(guarded: &Guarded) -> Option<Self> {
        let meta = guarded.meta();
        let identity = SandboxIdentity {
            namespace: meta.namespace.clone()?,
            name: meta.name.clone()?,
            uid: meta.uid.clone()?,
        };
        let policy = match &guarded.0 {
            Ok(slim) => EffectivePolicy::of(slim.spec.network.as_ref()).map_err(|error| error.to_string()),
            Err(error) => Err(error.error.clone()),
        };
        let status = guarded.0.as_ref().ok().and_then(|slim| slim.status.as_ref());
        let pod_uid = status.and_then(|status| status.pod_uid.clone());
        Some(Self { identity, generation: meta.generation.unwrap_or(1), pod_uid, policy })
    }

    /// `namespace/name`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.identity.namespace, self.identity.name)
    }

    /// Bytes that it may move in all.
    pub fn most_bytes(&self) -> i64 {
        self.policy.as_ref().ok().and_then(EffectivePolicy::bytes).unwrap_or(i64::MAX)
    }
}

/// Every sandbox.
#[derive(Debug)]
pub struct Sandboxes {
    entries: RwLock<HashMap<String, Entry>>,
    /// UIDs of the list that is being read, if one is.
    listed: Mutex<Option<HashSet<String>>>,
    limits: Limits,
}

#[derive(Debug)]
struct Entry {
    sandbox: Arc<Sandbox>,
    live: Option<Arc<Live>>,
}

impl Sandboxes {
    /// None yet.
    pub fn new(limits: Limits) -> Self {
        Self { entries: RwLock::default(), listed: Mutex::default(), limits }
    }

    /// Takes an event of the watch. A new list replaces the old state when it is complete, and not before.
    pub fn take(&self, event: Event<Guarded>) {
        match event {
            Event::Init => *self.listed() = Some(HashSet::new()),
            Event::InitApply(guarded) => {
                if let (Some(uid), Some(listed)) = (guarded.uid(), self.listed().as_mut()) {
                    listed.insert(uid);
                }
                self.put(&guarded);
            }
            Event::InitDone => {
                let listed = self.listed().take().unwrap_or_default();
                let gone: Vec<String> = {
                    let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
                    entries.keys().filter(|uid| !listed.contains(*uid)).cloned().collect()
                };
                for uid in &gone {
                    self.remove(uid);
                }
            }
            Event::Apply(guarded) => self.put(&guarded),
            Event::Delete(guarded) => {
                if let Some(uid) = guarded.uid() {
                    self.remove(&uid);
                }
            }
        }
    }

    fn listed(&self) -> std::sync::MutexGuard<'_, Option<HashSet<String>>> {
        self.listed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, guarded: &Guarded) {
        let Some(sandbox) = Sandbox::of(guarded).map(Arc::new) else { return };
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        let live = match entries.get_mut(&sandbox.identity.uid) {
            // Most events are about the status.
            Some(entry) if entry.sandbox == sandbox => return,
            Some(entry) => {
                entry.sandbox = Arc::clone(&sandbox);
                entry.live.clone()
            }
            None => {
                let entry = Entry { sandbox: Arc::clone(&sandbox), live: None };
                entries.insert(sandbox.identity.uid.clone(), entry);
                None
            }
        };
        // Under the lock, so that two changes cannot overtake each other.
        if let Some(live) = live {
            live.update(Some(sandbox));
        }
    }

    fn remove(&self, uid: &str) {
        let entry = self.entries.write().unwrap_or_else(PoisonError::into_inner).remove(uid);
        if let Some(live) = entry.and_then(|entry| entry.live) {
            live.update(None);
        }
    }

    /// What the sandbox with this UID does; `None` if there is none.
    pub fn live(&self, uid: &str) -> Option<Arc<Live>> {
        if let Some(entry) = self.entries.read().unwrap_or_else(PoisonError::into_inner).get(uid)
            && let Some(live) = &entry.live
        {
            return Some(Arc::clone(live));
        }
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        let entry = entries.get_mut(uid)?;
        let new = || Arc::new(Live::new(Arc::clone(&entry.sandbox), &self.limits));
        Some(Arc::clone(entry.live.get_or_insert_with(new)))
    }

    /// A Pod of the sandbox ended.
    pub fn pod_gone(&self, sandbox_uid: &str, pod_uid: &str) {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(live) = entries.get(sandbox_uid).and_then(|entry| entry.live.as_ref()) {
            live.pod_gone(pod_uid);
        }
    }

    /// Does `what` to everything that goes on.
    pub fn each_live(&self, what: impl Fn(&Live)) {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        entries.values().filter_map(|entry| entry.live.as_ref()).for_each(|live| what(live));
    }

    /// Ends the policy streams, so that the sidecars look for another gateway.
    pub fn drain_streams(&self) {
        self.each_live(|live| live.end_streams(Ending::Draining));
    }

    /// Ends everything.
    pub fn drain(&self) {
        self.each_live(|live| live.end_all(Ending::Draining));
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries.read().unwrap_or_else(PoisonError::into_inner).len()
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::api::v1alpha1::{EgressRule, NetworkLimits};

    /// The object `team-a/fix` at `generation` with a rule for each host.
    pub fn object(generation: i64, rules: Vec<EgressRule>) -> SlimSandbox {
        SlimSandbox {
            metadata: ObjectMeta {
                name: Some("fix".to_owned()),
                namespace: Some("team-a".to_owned()),
                uid: Some("s-1".to_owned()),
                generation: Some(generation),
                ..ObjectMeta::default()
            },
            spec: SlimSpec { network: Some(Network { egress: rules, ..Network::default() }) },
            status: Some(SlimStatus { pod_uid: Some("p-1".to_owned()) }),
        }
    }

    /// A rule for `host` at port 443.
    pub fn rule(host: &str) -> EgressRule {
        EgressRule { host: Some(host.to_owned()), ports: vec![443], ..EgressRule::default() }
    }

    pub fn sandbox(generation: i64, hosts: &[&str]) -> Sandbox {
        sandbox_of(generation, hosts.iter().map(|host| rule(host)).collect())
    }

    pub fn sandbox_of(generation: i64, rules: Vec<EgressRule>) -> Sandbox {
        Sandbox::of(&DeserializeGuard(Ok(object(generation, rules)))).unwrap()
    }

    pub fn sandbox_with_bytes(generation: i64, bytes: i64) -> Sandbox {
        let mut object = object(generation, vec![rule("a.example")]);
        let limits = serde_json::json!({ "egressBytes": bytes.to_string() });
        let limits: NetworkLimits = serde_json::from_value(limits).unwrap();
        object.spec.network.as_mut().unwrap().limits = Some(limits);
        Sandbox::of(&DeserializeGuard(Ok(object))).unwrap()
    }

    fn guarded(uid: &str, generation: i64, hosts: &[&str]) -> Guarded {
        let mut object = object(generation, hosts.iter().map(|host| rule(host)).collect());
        object.metadata.uid = Some(uid.to_owned());
        DeserializeGuard(Ok(object))
    }

    #[test]
    fn a_new_list_replaces_the_old_only_when_it_is_complete() {
        let all = Sandboxes::new(Limits::default());
        all.take(Event::Init);
        all.take(Event::InitApply(guarded("1", 1, &["a.example"])));
        all.take(Event::InitApply(guarded("2", 1, &[])));
        all.take(Event::InitDone);
        let (one, two) = (all.live("1").unwrap(), all.live("2").unwrap());
        all.take(Event::Init);
        all.take(Event::InitApply(guarded("1", 2, &["b.example"])));
        assert_eq!(one.sandbox().unwrap().generation, 2);
        assert!(two.sandbox().is_some(), "the old state stays while the list is read");
        all.take(Event::InitDone);
        assert!(two.sandbox().is_none() && all.live("2").is_none());
        assert_eq!(all.len(), 1);
        all.take(Event::Delete(guarded("1", 2, &[])));
        assert!(one.sandbox().is_none() && all.len() == 0);
    }

    #[test]
    fn what_cannot_be_read_has_no_policy_and_does_not_stop_the_others() {
        let all = Sandboxes::new(Limits::default());
        let text = r#"{"metadata": {"name": "x", "namespace": "n", "uid": "1"}, "spec": {"network": {"egress": 7}}}"#;
        all.take(Event::Apply(serde_json::from_str(text).unwrap()));
        all.take(Event::Apply(guarded("2", 1, &["a..b"])));
        all.take(Event::Apply(guarded("3", 1, &["a.example"])));
        let readable = |uid: &str| all.live(uid).unwrap().sandbox().unwrap().policy.is_ok();
        assert_eq!([readable("1"), readable("2"), readable("3")], [false, false, true]);
    }

    #[test]
    fn a_change_of_the_status_is_none() {
        let all = Sandboxes::new(Limits::default());
        all.take(Event::Apply(guarded("1", 1, &["a.example"])));
        let mut changes = all.live("1").unwrap().watch();
        all.take(Event::Apply(guarded("1", 1, &["a.example"])));
        assert!(!changes.has_changed().unwrap());
        all.take(Event::Apply(guarded("1", 2, &["a.example"])));
        assert!(changes.has_changed().unwrap());
        changes.mark_unchanged();
    }
}
