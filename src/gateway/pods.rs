//! Every Pod of a sandbox, kept by a watch: a token is only as good as its Pod is alive.
use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError, RwLock};

use k8s_openapi::api::core::v1::Pod;
use kube::Resource;
use kube::api::ObjectMeta;
use kube::runtime::watcher::Event;
use serde::Deserialize;

use crate::api::v1alpha1::AgentSandbox;

/// A Pod as it is watched.
#[derive(Deserialize, Resource, Clone, Debug, Default)]
#[resource(inherit = Pod)]
pub struct SlimPod {
    /// Metadata.
    #[serde(default)]
    pub metadata: ObjectMeta,
    /// Part of the status.
    #[serde(default)]
    pub status: SlimStatus,
}

/// Part of a Pod's status.
#[derive(Deserialize, Clone, Debug, Default)]
pub struct SlimStatus {
    /// `Pending`, `Running`, `Succeeded`, `Failed` or `Unknown`.
    #[serde(default)]
    pub phase: Option<String>,
}

/// What is known of a Pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodFacts {
    /// Its UID.
    pub uid: String,
    /// UID of the sandbox that owns it.
    pub sandbox_uid: String,
    /// Name of the sandbox that owns it.
    pub sandbox_name: String,
    /// Whether nothing of it runs any more, nor ever will.
    pub ended: bool,
}

impl PodFacts {
    fn of(pod: &SlimPod) -> Option<(Key, Self)> {
        let meta = &pod.metadata;
        let key = (meta.namespace.clone()?, meta.name.clone()?);
        let (kind, version) = (AgentSandbox::kind(&()), AgentSandbox::api_version(&()));
        let owner = meta.owner_references.iter().flatten().find(|owner| {
            owner.controller == Some(true) && owner.kind == kind && owner.api_version == version
        })?;
        let facts = Self {
            uid: meta.uid.clone()?,
            sandbox_uid: owner.uid.clone(),
            sandbox_name: owner.name.clone(),
            ended: matches!(pod.status.phase.as_deref(), Some("Succeeded" | "Failed")),
        };
        Some((key, facts))
    }
}

/// Namespace and name.
type Key = (String, String);

/// A Pod that ended: its sandbox's UID and its own.
#[derive(Debug, PartialEq, Eq)]
pub struct Gone {
    /// UID of the sandbox.
    pub sandbox_uid: String,
    /// UID of the Pod.
    pub pod_uid: String,
}

/// Every Pod of a sandbox.
#[derive(Debug, Default)]
pub struct Pods {
    facts: RwLock<HashMap<Key, PodFacts>>,
    /// Keys of the list that is being read, if one is.
    listed: Mutex<Option<HashSet<Key>>>,
}

impl Pods {
    /// The Pod `name` of `namespace`.
    pub fn find(&self, namespace: &str, name: &str) -> Option<PodFacts> {
        let key = (namespace.to_owned(), name.to_owned());
        self.facts.read().unwrap_or_else(PoisonError::into_inner).get(&key).cloned()
    }

    /// Takes an event of the watch and says which Pods ended by it.
    pub fn take(&self, event: Event<SlimPod>) -> Vec<Gone> {
        let mut listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        let mut facts = self.facts.write().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Init => {
                *listed = Some(HashSet::new());
                Vec::new()
            }
            Event::InitApply(pod) | Event::Apply(pod) => {
                let Some((key, new)) = PodFacts::of(&pod) else { return Vec::new() };
                if let Some(listed) = listed.as_mut() {
                    listed.insert(key.clone());
                }
                let (uid, ended) = (new.uid.clone(), new.ended);
                let old = facts.insert(key, new);
                old.filter(|old| !old.ended && (ended || old.uid != uid)).map(gone).into_iter().collect()
            }
            Event::InitDone => {
                let listed = listed.take().unwrap_or_default();
                let missing: Vec<Key> = facts.keys().filter(|key| !listed.contains(*key)).cloned().collect();
                missing.iter().filter_map(|key| facts.remove(key)).map(gone).collect()
            }
            Event::Delete(pod) => {
                let Some((key, old)) = PodFacts::of(&pod) else { return Vec::new() };
                // The name may be another Pod's by now.
                if facts.get(&key).is_some_and(|facts| facts.uid == old.uid) {
                    facts.remove(&key);
                }
                vec![gone(old)]
            }
        }
    }
}

fn gone(facts: PodFacts) -> Gone {
    Gone { sandbox_uid: facts.sandbox_uid, pod_uid: facts.uid }
}

#[cfg(test)]
pub mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

    use super::*;

    /// A Pod `name` of `team-a`, owned by the sandbox `fix`.
    pub fn pod(name: &str, uid: &str, phase: &str) -> SlimPod {
        SlimPod {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                namespace: Some("team-a".to_owned()),
                uid: Some(uid.to_owned()),
                owner_references: Some(vec![OwnerReference {
                    api_version: AgentSandbox::api_version(&()).into_owned(),
                    kind: "AgentSandbox".to_owned(),
                    name: "fix".to_owned(),
                    uid: "s-1".to_owned(),
                    controller: Some(true),
                    block_owner_deletion: Some(true),
                }]),
                ..ObjectMeta::default()
            },
            status: SlimStatus { phase: Some(phase.to_owned()) },
        }
    }

    fn uids(gone: &[Gone]) -> Vec<&str> {
        gone.iter().map(|gone| gone.pod_uid.as_str()).collect()
    }

    #[test]
    fn the_end_of_a_pod_is_told_once_in_whatever_form_it_comes() {
        let pods = Pods::default();
        assert!(pods.take(Event::Apply(pod("a", "1", "Running"))).is_empty());
        assert_eq!(uids(&pods.take(Event::Apply(pod("a", "1", "Succeeded")))), ["1"]);
        assert!(pods.take(Event::Apply(pod("a", "1", "Succeeded"))).is_empty());
        assert!(pods.find("team-a", "a").unwrap().ended);
        // Another Pod of the name, without the watch having told of the end of the first.
        pods.take(Event::Apply(pod("b", "2", "Running")));
        assert_eq!(uids(&pods.take(Event::Apply(pod("b", "3", "Running")))), ["2"]);
        pods.take(Event::Delete(pod("b", "2", "Running")));
        assert_eq!(pods.find("team-a", "b").unwrap().uid, "3");
        assert_eq!(uids(&pods.take(Event::Delete(pod("b", "3", "Running")))), ["3"]);
        assert_eq!(pods.find("team-a", "b"), None);
    }

    #[test]
    fn what_a_new_list_misses_is_gone() {
        let pods = Pods::default();
        pods.take(Event::Apply(pod("a", "1", "Running")));
        pods.take(Event::Apply(pod("b", "2", "Running")));
        pods.take(Event::Init);
        pods.take(Event::InitApply(pod("a", "1", "Running")));
        assert!(pods.find("team-a", "b").is_some());
        assert_eq!(uids(&pods.take(Event::InitDone)), ["2"]);
    }

    #[test]
    fn a_pod_without_a_sandbox_is_nobodys() {
        let pods = Pods::default();
        let mut orphan = pod("a", "1", "Running");
        orphan.metadata.owner_references.as_mut().unwrap()[0].controller = None;
        pods.take(Event::Apply(orphan));
        assert_eq!(pods.find("team-a", "a"), None);
    }
}
