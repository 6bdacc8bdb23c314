//! What a person needs to see of a failed test: its objects, its events, and the logs of everything in it.
use agentsandbox::api::v1alpha1::AgentSandbox;
use k8s_openapi::api::{
    core::v1::{Event, Pod},
    networking::v1::NetworkPolicy,
};
use kube::{
    Api, ResourceExt,
    api::{ListParams, LogParams},
};
use serde::{Serialize, de::DeserializeOwned};

use super::{Test, environment};

/// Lines of each log that are printed.
const TAIL: i64 = 60;
/// Objects of each kind that are printed.
const OBJECTS: usize = 12;

/// Prints what is known of a failed test.
pub async fn print(test: &Test) {
    eprintln!("\n======== {} failed", test.namespace);
    objects::<AgentSandbox>(test, "AgentSandbox").await;
    objects::<NetworkPolicy>(test, "NetworkPolicy").await;
    objects::<Pod>(test, "Pod").await;
    events(test).await;
    let pods = test.api::<Pod>();
    for pod in pods.list(&ListParams::default()).await.map(|l| l.items).unwrap_or_default() {
        logs(&pods, &pod).await;
    }
    let system: Api<Pod> = Api::namespaced(test.client.clone(), &environment().system_namespace());
    for pod in system.list(&ListParams::default()).await.map(|l| l.items).unwrap_or_default() {
        logs(&system, &pod).await;
    }
    eprintln!("======== end of {}\n", test.namespace);
}

async fn objects<K>(test: &Test, kind: &str)
where
    K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + DeserializeOwned
        + Serialize,
{
    match test.api::<K>().list(&ListParams::default()).await {
        Ok(list) => {
            for mut object in list.items.into_iter().take(OBJECTS) {
                object.managed_fields_mut().clear();
                let yaml = serde_saphyr::to_string(&object).unwrap_or_else(|error| error.to_string());
                eprintln!("---- {kind} {}\n{yaml}", object.name_any());
            }
        }
        Err(error) => eprintln!("---- {kind}: {error}"),
    }
}

async fn events(test: &Test) {
    let Ok(list) = test.api::<Event>().list(&ListParams::default()).await else { return };
    eprintln!("---- events");
    for event in list.items {
        let object = event.involved_object;
        eprintln!(
            "{} {}/{} {}: {}",
            event.type_.unwrap_or_default(),
            object.kind.unwrap_or_default(),
            object.name.unwrap_or_default(),
            event.reason.unwrap_or_default(),
            event.message.unwrap_or_default()
        );
    }
}

async fn logs(pods: &Api<Pod>, pod: &Pod) {
    let Some(spec) = &pod.spec else { return };
    for container in spec.init_containers.iter().flatten().chain(&spec.containers) {
        let asked = LogParams {
            container: Some(container.name.clone()),
            tail_lines: Some(TAIL),
            ..LogParams::default()
        };
        match pods.logs(&pod.name_any(), &asked).await {
            Ok(text) if text.is_empty() => {}
            Ok(text) => eprintln!("---- log of {}/{}\n{text}", pod.name_any(), container.name),
            Err(error) => eprintln!("---- log of {}/{}: {}", pod.name_any(), container.name, brief(&error)),
        }
    }
}

/// The server's own message: the whole error is several hundred characters of it.
pub fn brief(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}
