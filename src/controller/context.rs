//! What every reconcile has at hand.
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::Client;
use kube::core::DeserializeGuard;
use kube::runtime::events::Recorder;
use kube::runtime::reflector::Store;
use tokio::sync::watch;

use super::backoff::Backoff;
use super::crash::Crash;
use super::error::Error;
use super::lease::Fence;
use super::looks::Looks;
use super::pod::SlimPod;
use crate::api::v1alpha1::{AgentSandbox, AgentSandboxStatus};
use crate::audit::ControlPlaneLog;
use crate::init::config::SandboxIdentity;
use crate::plan::{Settings, names};
use crate::telemetry::Metrics;

/// An AgentSandbox as it is watched: one that cannot be read does not stop the others.
pub type Guarded = DeserializeGuard<AgentSandbox>;

/// What every reconcile has at hand.
pub struct Context {
    /// Client without retries: back-off is per object.
    pub client: Client,
    /// Settings of the operator, which change with what is found in the cluster.
    pub settings: watch::Receiver<Arc<Settings>>,
    /// Every sandbox.
    pub sandboxes: Store<Guarded>,
    /// Pods of ours.
    pub pods: Store<SlimPod>,
    /// `NetworkPolicies` of ours.
    pub policies: Store<NetworkPolicy>,
    /// Whether this process may write.
    pub fence: Fence,
    /// Metrics.
    pub metrics: Arc<Metrics>,
    /// Events.
    pub recorder: Recorder,
    /// Audit records.
    pub audit: ControlPlaneLog,
    /// Delays after failures.
    pub backoff: Backoff,
    /// When refused specs are looked at again.
    pub looks: Looks,
    /// Statuses that the watch may not have brought yet.
    pub memory: Memory,
    /// Fault injection.
    pub crash: Crash,
}

impl Context {
    /// The settings as they are now. One reconcile asks once, so that it does not mix two of them.
    pub fn settings(&self) -> Arc<Settings> {
        Arc::clone(&self.settings.borrow())
    }

    /// Whether this process may write; asked before every write.
    pub fn may_write(&self) -> Result<(), Error> {
        if !self.fence.holds() {
            return Err(Error::NotLeader);
        }
        self.crash.before_write();
        Ok(())
    }
}

/// Names of one sandbox and its objects.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The sandbox.
    pub sandbox: SandboxIdentity,
    /// Hash that tells its objects.
    pub hash: String,
    /// Name of its Pod and `NetworkPolicy`.
    pub object: String,
}

impl Identity {
    /// The names of `sandbox`.
    pub fn of(sandbox: &AgentSandbox) -> Self {
        let meta = &sandbox.metadata;
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let (namespace, name, uid) = (text(&meta.namespace), text(&meta.name), text(&meta.uid));
        let hash = names::hash(&namespace, &name, &uid);
        Self {
            object: names::object_name(&name, &hash),
            hash,
            sandbox: SandboxIdentity { namespace, name, uid },
        }
    }
}

/// The last status that this process wrote, by UID: a status that the watch has not brought yet must not be forgotten,
/// or a Pod that was ended would be made again.
#[derive(Debug, Default)]
pub struct Memory(Mutex<HashMap<String, (u64, AgentSandboxStatus)>>);

impl Memory {
    /// Remembers what the server answered to a status write.
    pub fn keep(&self, uid: &str, answer: &AgentSandbox) {
        if let (Some(version), Some(status)) = (version(answer), answer.status.clone()) {
            let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            known.insert(uid.to_owned(), (version, status));
        }
    }

    /// The newest known status of `sandbox`. Forgets what the watch has brought.
    pub fn newest(&self, uid: &str, sandbox: &AgentSandbox) -> AgentSandboxStatus {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match (known.get(uid), version(sandbox)) {
            (Some((ours, status)), Some(seen)) if *ours > seen => return status.clone(),
            (Some(_), _) => drop(known.remove(uid)),
            (None, _) => {}
        }
        sandbox.status.clone().unwrap_or_default()
    }

    /// Forgets every sandbox that `exists` does not know.
    pub fn retain(&self, exists: impl Fn(&str) -> bool) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|uid, _| exists(uid));
    }
}

/// Versions of one kind are ordered numbers (KEP-5504).
fn version(sandbox: &AgentSandbox) -> Option<u64> {
    sandbox.metadata.resource_version.as_deref()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sandbox(version: &str, pod: Option<&str>) -> AgentSandbox {
        let object = serde_json::json!({
            "apiVersion": "agentsandbox.dev/v1alpha1", "kind": "AgentSandbox",
            "metadata": {"name": "a", "namespace": "n", "uid": "u", "resourceVersion": version},
            "spec": {"image": "i", "command": ["c"]}, "status": {"podName": pod},
        });
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn a_status_that_was_written_is_not_forgotten_before_the_watch_brings_it() {
        let memory = Memory::default();
        memory.keep("u", &sandbox("10", Some("p")));
        assert_eq!(memory.newest("u", &sandbox("9", None)).pod_name.as_deref(), Some("p"));
        assert_eq!(memory.newest("u", &sandbox("11", None)).pod_name, None);
        assert_eq!(memory.newest("u", &sandbox("9", None)).pod_name, None);
    }
}
