//! Plain Pods (the positive controls), facts of the cluster, and what the exclusive tests do to the operator.
use std::time::Duration;

use k8s_openapi::api::{
    apps::v1::Deployment,
    coordination::v1::Lease,
    core::v1::{Node, Pod, Service},
    node::v1::RuntimeClass,
};
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::{Test, agent, environment, sandbox::LIFE, secs, wait_for};

/// Deployment of the operator, and its lease.
pub const CONTROLLER: &str = "agentsandbox-controller";

/// Whether the processes of the cluster's node can be reached, which is so where it is this machine; says so if not.
pub fn node_is_this_machine() -> bool {
    let here = environment().get("CLUSTER_NODE").is_some();
    if !here {
        eprintln!("the node is not this machine: its processes cannot be reached");
    }
    here
}

/// Process of `program` in the Pod with this UID: the cluster's node is this machine.
pub fn process_of(program: &str, uid: &str) -> Option<Pid> {
    let program = format!("{program}\0");
    std::fs::read_dir("/proc").ok()?.filter_map(Result::ok).find_map(|entry| {
        let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
        let command = std::fs::read(entry.path().join("cmdline")).ok()?;
        let cgroups = std::fs::read_to_string(entry.path().join("cgroup")).ok()?;
        let ours = command.starts_with(program.as_bytes()) && cgroups.contains(uid);
        ours.then(|| Pid::from_raw(pid))
    })
}

/// A plain Pod, with no policy, of the same image and the same restrictions as an agent's.
fn plain_pod(name: &str, command: &Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "terminationGracePeriodSeconds": 1,
            "securityContext": {
                "runAsNonRoot": true, "runAsUser": 1000, "runAsGroup": 1000,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            "containers": [{
                "name": "agent",
                "image": environment().agent_image(),
                "command": command,
                "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "192Mi"}},
                "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
            }],
        },
    })
}

impl Test {
    /// Starts a plain Pod, with no policy, of the same image and the same restrictions as an agent's.
    pub async fn plain_pod(&self, name: &str, script: &str, over: Value) {
        let mut pod = plain_pod(name, &json!(agent::python(script)));
        super::sandbox::merge(&mut pod, over);
        self.create(&pod).await.unwrap();
    }

    /// Runs `script` in a plain Pod to its end and answers what it printed: the positive control of a test.
    pub async fn control(&self, name: &str, script: &str) -> Vec<Value> {
        self.plain_pod(name, script, json!({})).await;
        self.said_at_the_end(name).await
    }

    /// The same for a whole command, with `over` merged over the Pod and a volume of it mounted.
    pub async fn control_with(
        &self,
        name: &str,
        command: &Value,
        mount: Option<(&str, &str)>,
        over: Value,
    ) -> Vec<Value> {
        let mut pod = plain_pod(name, command);
        if let Some((volume, path)) = mount {
            pod["spec"]["containers"][0]["volumeMounts"] = json!([{"name": volume, "mountPath": path}]);
        }
        super::sandbox::merge(&mut pod, over);
        self.create(&pod).await.unwrap();
        self.said_at_the_end(name).await
    }

    async fn said_at_the_end(&self, name: &str) -> Vec<Value> {
        let pods = self.api::<Pod>();
        wait_for("the control Pod to end", LIFE, || async {
            let phase = pods.get(name).await.unwrap().status?.phase?;
            assert_ne!(phase, "Failed", "the control Pod failed: {}", self.pod_log(name, "agent").await);
            (phase == "Succeeded").then_some(())
        })
        .await;
        agent::lines(&self.pod_log(name, "agent").await)
    }

    /// Starts a plain Pod that listens on 8080 and answers its address.
    pub async fn server_pod(&self, name: &str) -> String {
        self.plain_pod(name, agent::SERVER, json!({})).await;
        self.pod_address(name).await
    }

    /// Address of a running Pod; waits for it.
    pub async fn pod_address(&self, name: &str) -> String {
        let pods = self.api::<Pod>();
        wait_for(&format!("an address of {name}"), LIFE, || async {
            let status = pods.get_opt(name).await.unwrap()?.status?;
            (status.phase.as_deref() == Some("Running")).then_some(status.pod_ip?)
        })
        .await
    }

    /// Address and port of the API server's Service.
    pub async fn api_server(&self) -> (String, i32) {
        let services: Api<Service> = Api::namespaced(self.client.clone(), "default");
        let spec = services.get("kubernetes").await.unwrap().spec.unwrap();
        (spec.cluster_ip.unwrap(), spec.ports.unwrap()[0].port)
    }

    /// Internal address of a node.
    pub async fn node_address(&self) -> String {
        let nodes: Api<Node> = Api::all(self.client.clone());
        let node = nodes.list(&kube::api::ListParams::default()).await.unwrap().items.remove(0);
        let addresses = node.status.unwrap().addresses.unwrap_or_default();
        addresses.into_iter().find(|a| a.type_ == "InternalIP").unwrap().address
    }

    /// Whether the cluster has the RuntimeClass `gvisor`; says so where not.
    ///
    /// # Panics
    /// When it has to.
    pub async fn has_gvisor(&self) -> bool {
        let classes: Api<RuntimeClass> = Api::all(self.client.clone());
        if classes.get_opt("gvisor").await.unwrap().is_some() {
            return true;
        }
        assert_ne!(std::env::var("E2E_REQUIRE_GVISOR").as_deref(), Ok("1"), "no RuntimeClass gvisor");
        eprintln!("this cluster has no RuntimeClass gvisor: not tested");
        false
    }

    /// Objects of a kind in the operator's namespace.
    pub fn system<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &environment().system_namespace())
    }

    /// Scales the operator and waits until as many of its Pods are ready, and no others exist.
    pub async fn scale_operator(&self, replicas: i32) {
        let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
        self.system::<Deployment>().patch(CONTROLLER, &PatchParams::default(), &patch).await.unwrap();
        wait_for(&format!("{replicas} replicas of the operator"), secs(120), || async {
            let status = self.system::<Deployment>().get(CONTROLLER).await.unwrap().status?;
            let ready = status.ready_replicas.unwrap_or(0) == replicas;
            (ready && self.operator_pods().await.len() == usize::try_from(replicas).unwrap()).then_some(())
        })
        .await;
    }

    /// Names of the operator's Pods.
    pub async fn operator_pods(&self) -> Vec<String> {
        let pods = self.system::<Pod>().list(&kube::api::ListParams::default()).await.unwrap();
        let names = pods.items.into_iter().filter_map(|p| p.metadata.name);
        names.filter(|n| n.starts_with(CONTROLLER)).collect()
    }

    /// The Pod that holds the operator's lease; waits for one that exists.
    pub async fn leader(&self, limit: Duration) -> String {
        wait_for("a leader", limit, || async {
            let lease = self.system::<Lease>().get_opt(CONTROLLER).await.unwrap()?;
            let holder = lease.spec?.holder_identity.filter(|h| !h.is_empty())?;
            let pods = self.operator_pods().await;
            pods.into_iter().find(|pod| holder.starts_with(pod.as_str()))
        })
        .await
    }
}
