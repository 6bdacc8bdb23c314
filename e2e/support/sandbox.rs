//! Makes sandboxes and waits for what becomes of them.
use std::time::Duration;

use agentsandbox::api::v1alpha1::{AgentSandbox, AgentSandboxStatus, Outcome, Phase};
use k8s_openapi::{
    api::{
        core::v1::{Event, Pod},
        networking::v1::NetworkPolicy,
    },
    apimachinery::pkg::apis::meta::v1::Condition,
};
use kube::{
    Api,
    api::{DeleteParams, ListParams, LogParams, Patch, PatchParams},
};
use serde_json::{Value, json};

use super::{Test, agent, environment, secs, wait_for};

/// Limit for a Pod to be made, scheduled, started and ended: generous, because two cores run everything.
pub const LIFE: Duration = secs(90);

/// Merges `over` into `base`, as JSON merge patch does (RFC 7386) but that a null stays.
pub fn merge(base: &mut Value, over: Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                merge(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, over) => *base = over,
    }
}

/// A small sandbox that runs `script`; `spec` is merged over it.
pub fn manifest(name: &str, script: &str, spec: Value) -> Value {
    let mut whole = json!({
        "apiVersion": "agentsandbox.dev/v1alpha1",
        "kind": "AgentSandbox",
        "metadata": {"name": name},
        "spec": {
            "image": environment().agent_image(),
            "command": agent::python(script),
            "timeout": "60s",
            "resources": {
                "cpu": "500m", "memory": "64Mi", "ephemeralStorage": "64Mi", "pids": 64,
                "requests": {"cpu": "20m", "memory": "32Mi"},
            },
        },
    });
    merge(&mut whole["spec"], spec);
    whole
}

impl Test {
    /// Objects of a kind in the test's namespace.
    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Creates an object from JSON as it is, so that no type of ours adds or drops a field; strict about unknown ones.
    pub async fn create(&self, object: &Value) -> kube::Result<Value> {
        self.post(object, false).await
    }

    /// Asks whether an object would be taken, without storing it.
    pub async fn dry_run(&self, object: &Value) -> kube::Result<Value> {
        self.post(object, true).await
    }

    async fn post(&self, object: &Value, dry_run: bool) -> kube::Result<Value> {
        let (group, plural) = match object["kind"].as_str() {
            Some("AgentSandbox") => ("apis/agentsandbox.dev/v1alpha1", "agentsandboxes"),
            Some("NetworkPolicy") => ("apis/networking.k8s.io/v1", "networkpolicies"),
            Some("Pod") => ("api/v1", "pods"),
            Some("Service") => ("api/v1", "services"),
            Some("ConfigMap") => ("api/v1", "configmaps"),
            Some("Secret") => ("api/v1", "secrets"),
            other => panic!("no path is known for the kind {other:?}"),
        };
        let dry = if dry_run { "&dryRun=All" } else { "" };
        let path = format!(
            "/{group}/namespaces/{}/{plural}?fieldValidation=Strict&fieldManager=e2e{dry}",
            self.namespace
        );
        let request = http::Request::post(path)
            .header("content-type", "application/json")
            .body(serde_json::to_vec(object).unwrap())
            .unwrap();
        self.client.request(request).await
    }

    /// Creates a sandbox that runs `script`.
    pub async fn sandbox(&self, name: &str, script: &str, spec: Value) {
        self.create(&manifest(name, script, spec)).await.unwrap();
    }

    /// The sandbox as it is now.
    pub async fn get(&self, name: &str) -> AgentSandbox {
        self.api::<AgentSandbox>().get(name).await.unwrap()
    }

    /// The status as it is now; empty where there is none.
    pub async fn status(&self, name: &str) -> AgentSandboxStatus {
        self.get(name).await.status.unwrap_or_default()
    }

    /// Changes the spec by a merge patch.
    pub async fn change(&self, name: &str, spec: Value) -> kube::Result<AgentSandbox> {
        let patch = Patch::Merge(json!({"spec": spec}));
        self.api::<AgentSandbox>().patch(name, &PatchParams::default(), &patch).await
    }

    /// Deletes the sandbox and does not wait.
    pub async fn delete(&self, name: &str) {
        self.api::<AgentSandbox>().delete(name, &DeleteParams::default()).await.unwrap();
    }

    /// Waits until the status satisfies `probe`.
    pub async fn wait_status<T>(
        &self,
        name: &str,
        what: &str,
        limit: Duration,
        probe: impl Fn(&AgentSandboxStatus) -> Option<T>,
    ) -> T {
        let api = self.api::<AgentSandbox>();
        wait_for(&format!("{name}: {what}"), limit, || async {
            let status = api.get_opt(name).await.ok().flatten()?.status?;
            probe(&status)
        })
        .await
    }

    /// Waits until a condition has a status.
    pub async fn wait_condition(&self, name: &str, type_: &str, status: &str, limit: Duration) -> Condition {
        let what = format!("condition {type_}={status}");
        self.wait_status(name, &what, limit, |s| {
            s.conditions.iter().find(|c| c.type_ == type_ && c.status == status).cloned()
        })
        .await
    }

    /// Waits until the agent runs.
    pub async fn running(&self, name: &str) -> AgentSandboxStatus {
        self.wait_status(name, "phase Running", LIFE, |s| {
            assert!(s.outcome.is_none(), "{name} ended before it ran: {:?}", s.outcome);
            (s.phase == Some(Phase::Running)).then(|| s.clone())
        })
        .await
    }

    /// Waits until the sandbox has ended.
    pub async fn finished(&self, name: &str) -> Outcome {
        self.wait_status(name, "an outcome", LIFE, |s| s.outcome.clone()).await
    }

    /// Waits until the sandbox has ended for `reason`.
    ///
    /// # Panics
    /// When it ended for another.
    pub async fn finished_as(&self, name: &str, reason: &str) -> Outcome {
        let outcome = self.finished(name).await;
        assert_eq!(outcome.reason, reason, "{outcome:#?}");
        outcome
    }

    /// Waits until the spec is refused for `reason`, and that no Pod was made for it.
    pub async fn refused_as(&self, name: &str, reason: &str) -> Condition {
        let condition = self.wait_condition(name, "Accepted", "False", secs(20)).await;
        assert_eq!(condition.reason, reason, "{condition:#?}");
        assert!(!condition.message.is_empty(), "a refusal says why");
        assert!(self.pods_of(name).await.is_empty(), "a refused sandbox has no Pod");
        condition
    }

    /// Pods that the sandbox owns.
    pub async fn pods_of(&self, name: &str) -> Vec<Pod> {
        let uid = self.get(name).await.metadata.uid;
        let pods = self.api::<Pod>().list(&kube::api::ListParams::default()).await.unwrap();
        pods.items
            .into_iter()
            .filter(|p| p.metadata.owner_references.iter().flatten().any(|o| Some(&o.uid) == uid.as_ref()))
            .collect()
    }

    /// Name of the sandbox's Pod, which its policy has too; waits for it.
    pub async fn pod_name(&self, name: &str) -> String {
        self.wait_status(name, "a Pod name", secs(30), |s| s.pod_name.clone()).await
    }

    /// Waits until the sandbox's policy is there.
    pub async fn policy(&self, name: &str) -> NetworkPolicy {
        let policy = self.pod_name(name).await;
        let api = self.api::<NetworkPolicy>();
        wait_for("the policy", secs(20), || async { api.get_opt(&policy).await.unwrap() }).await
    }

    /// What the agent has printed so far; empty while its container has not started.
    pub async fn log(&self, name: &str) -> String {
        let pod = self.pod_name(name).await;
        self.pod_log(&pod, "agent").await
    }

    /// What a container has printed so far.
    pub async fn pod_log(&self, pod: &str, container: &str) -> String {
        let asked = LogParams { container: Some(container.to_owned()), ..LogParams::default() };
        self.api::<Pod>().logs(pod, &asked).await.unwrap_or_default()
    }

    /// Waits until the agent has printed a line for which `wanted` holds, and answers all lines.
    pub async fn said(&self, name: &str, what: &str, wanted: impl Fn(&Value) -> bool) -> Vec<Value> {
        wait_for(&format!("{name} to say {what}"), LIFE, || async {
            let lines = agent::lines(&self.log(name).await);
            lines.iter().any(&wanted).then_some(lines)
        })
        .await
    }

    /// Waits for an event of the sandbox `name` with this reason and text.
    pub async fn event(&self, name: &str, reason: &str, text: &str) {
        let about = ListParams::default().fields(&format!("involvedObject.name={name},reason={reason}"));
        wait_for(&format!("an event {reason} of {name} with `{text}`"), secs(30), || async {
            let events = self.api::<Event>().list(&about).await.ok()?.items;
            events.iter().any(|event| event.message.as_ref().is_some_and(|m| m.contains(text))).then_some(())
        })
        .await;
    }

    /// Runs `script` in a sandbox to its end and answers what it printed.
    ///
    /// # Panics
    /// When it does not end as `Completed`.
    pub async fn run(&self, name: &str, script: &str, spec: Value) -> Vec<Value> {
        self.sandbox(name, script, spec).await;
        self.finished_as(name, "Completed").await;
        agent::lines(&self.log(name).await)
    }

    /// Waits until an object of the test's namespace is gone.
    pub async fn gone<K>(&self, name: &str, limit: Duration)
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
            + Clone
            + std::fmt::Debug
            + serde::de::DeserializeOwned,
    {
        let api = self.api::<K>();
        wait_for(&format!("{name} to be gone"), limit, || async {
            api.get_opt(name).await.unwrap().is_none().then_some(())
        })
        .await;
    }
}
