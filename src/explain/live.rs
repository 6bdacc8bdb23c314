//! The sandbox as it is in a cluster, and the Services that its rules name.
use std::time::Duration;

use futures::{StreamExt as _, stream};
use k8s_openapi::{
    api::{core::v1::Service, discovery::v1::EndpointSlice},
    apimachinery::pkg::apis::meta::v1::Condition,
};
use kube::{
    Api, Client, Config,
    api::ListParams,
    config::{KubeConfigOptions, Kubeconfig},
};
use tokio::time::{Instant, timeout_at};

use super::{SeenService, Services, Target, answer::NOT_ACCEPTED, by_name};
use crate::{
    api::v1alpha1::{AgentSandbox, Phase},
    policy::{digest, shown},
};

/// Time that the API server has in all.
const DEADLINE: Duration = Duration::from_secs(15);

/// Services that are read at a time.
const AT_ONCE: usize = 8;

/// Reads one sandbox, and of the Services that its rules name those that an answer about `target` depends on, with the
/// rights of whoever runs the command.
pub(super) fn read(
    name: &str,
    namespace: Option<&str>,
    context: Option<String>,
    target: &Target,
) -> Result<(AgentSandbox, Services), String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    runtime.block_on(async {
        let until = Instant::now() + DEADLINE;
        let late = || format!("no answer from the API server within {DEADLINE:?}");
        let found = timeout_at(until, sandbox(name, namespace, context)).await;
        let (client, sandbox) = found.unwrap_or_else(|_| Err(late()))?;
        let client = &client;
        let services = stream::iter(by_name::needed(&sandbox, target)).map(|key| async move {
            let seen = timeout_at(until, service(client, &key.0, &key.1)).await;
            (key, seen.unwrap_or_else(|_| Err(late())))
        });
        let services = services.buffer_unordered(AT_ONCE).collect().await;
        Ok((sandbox, services))
    })
}

async fn sandbox(
    name: &str,
    namespace: Option<&str>,
    context: Option<String>,
) -> Result<(Client, AgentSandbox), String> {
    let mut config = match context {
        None => Config::infer().await.map_err(|error| no_cluster(&error))?,
        context @ Some(_) => {
            let options = KubeConfigOptions { context, ..KubeConfigOptions::default() };
            let file = Kubeconfig::read().map_err(|error| no_cluster(&error))?;
            Config::from_custom_kubeconfig(file, &options).await.map_err(|error| no_cluster(&error))?
        }
    };
    config.default_retry = false;
    let client = Client::try_from(config).map_err(|error| error.to_string())?;
    let namespace = namespace.unwrap_or_else(|| client.default_namespace()).to_owned();
    let api: Api<AgentSandbox> = Api::namespaced(client.clone(), &namespace);
    match api.get(name).await {
        Ok(sandbox) => Ok((client, sandbox)),
        Err(error) => Err(format!("{}/{}: {}", shown(&namespace), shown(name), unread(&error))),
    }
}

/// Why it is not known which cluster is meant, and what to do.
fn no_cluster(error: &impl std::fmt::Display) -> String {
    format!("{error}; set KUBECONFIG or --context, or ask of a file with -f")
}

/// A Service, and where its Pods are.
async fn service(client: &Client, namespace: &str, name: &str) -> Result<SeenService, String> {
    let services: Api<Service> = Api::namespaced(client.clone(), namespace);
    let service = services.get(name).await;
    let service = service
        .map_err(|error| format!("the Service {}/{}: {}", shown(namespace), shown(name), said(&error)))?;
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), namespace);
    let its = ListParams::default().labels(&format!("kubernetes.io/service-name={name}"));
    let listed = slices.list(&its).await;
    let listed =
        listed.map(|list| list.items).map_err(|error| format!("its EndpointSlices: {}", said(&error)));
    Ok(SeenService::of(&service, listed))
}

/// What an API server answered instead of the sandbox, and what to do.
fn unread(error: &kube::Error) -> String {
    let hint = match error {
        kube::Error::Api(status) if status.code == 404 && status.reason == "NotFound" => {
            "; is it in another namespace? -n NAMESPACE"
        }
        kube::Error::Api(status) if status.code == 404 => "; is the operator installed in this cluster?",
        _ => "",
    };
    format!("{}{hint}", said(error))
}

/// What an API server answered instead of an object.
fn said(error: &kube::Error) -> String {
    let kube::Error::Api(status) = error else { return line(&error.to_string()) };
    let said = if status.message.is_empty() { &status.reason } else { &status.message };
    line(said.trim_end())
}

/// Why the operator refuses the sandbox, where it does.
pub(super) fn refusal(sandbox: &AgentSandbox) -> Option<String> {
    let accepted = sandbox.status.iter().flat_map(|status| &status.conditions);
    let refused = accepted.into_iter().find(|c| c.type_ == "Accepted" && c.status == "False")?;
    Some(format!("{NOT_ACCEPTED}: Accepted=False, {}: {}", line(&refused.reason), line(&refused.message)))
}

/// What the operator found of the way to the gateway, and whether the Pod was contained when it was measured; also the
/// administrator's exceptions, where it names them.
pub(super) fn conditions(sandbox: &AgentSandbox) -> Vec<(String, String)> {
    let all = sandbox.status.iter().flat_map(|status| &status.conditions);
    let ours = all.filter(|condition| ["EgressReady", "Contained"].contains(&condition.type_.as_str()));
    let told = |c: &Condition| line(&format!("{}, {}: {}", c.status, c.reason, c.message));
    ours.map(|c| (c.type_.clone(), told(c))).collect()
}

/// `text` on one line, without what could forge a terminal's output.
fn line(text: &str) -> String {
    let plain = |c: char| matches!(c, '"' | '\'' | '\\') || c.escape_debug().len() == 1;
    text.chars().take(400).map(|c| if plain(c) { c } else { ' ' }).collect()
}

/// Whether there may be an agent that runs.
pub(super) fn has_agent(sandbox: &AgentSandbox) -> bool {
    matches!(phase(sandbox), Some(Phase::Starting | Phase::Running | Phase::Stopping))
}

fn phase(sandbox: &AgentSandbox) -> Option<&Phase> {
    sandbox.status.as_ref()?.phase.as_ref()
}

/// Whether the spec that was explained is the one that the operator keeps.
pub(super) fn in_force(sandbox: &AgentSandbox) -> String {
    let kept = sandbox.status.as_ref().and_then(|status| status.policy_digest.as_deref());
    match kept {
        _ if refusal(sandbox).is_some() && has_agent(sandbox) => {
            "in part: the gateway follows the host rules of a refused spec, too; of the other rules those hold that are right".to_owned()
        }
        _ if refusal(sandbox).is_some() => "no: the spec is refused, and nothing of it runs".to_owned(),
        _ if matches!(phase(sandbox), Some(Phase::Succeeded | Phase::Failed)) => "no: the sandbox has ended, and nothing of it runs".to_owned(),
        Some(kept) if kept == digest(sandbox.spec.network.as_ref()) => {
            "yes, status.policyDigest is the same".to_owned()
        }
        Some(kept) => format!(
            "not yet: status.policyDigest is {}; the gateway follows the spec within a second, the NetworkPolicy with the operator's next look",
            shown(kept)
        ),
        None => "not yet: the sandbox has no status.policyDigest; nothing runs without one".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;
    use serde_json::json;

    use super::*;

    #[test]
    fn status_says_whether_the_spec_is_in_force() {
        let sandbox = |status: serde_json::Value| -> AgentSandbox {
            serde_json::from_value(json!({
                "apiVersion": "agentsandbox.dev/v1alpha1", "kind": "AgentSandbox", "metadata": {"name": "fix"},
                "spec": {"image": "a", "command": ["/a"]}, "status": status,
            }))
            .unwrap()
        };
        assert!(in_force(&sandbox(json!({"policyDigest": digest(None)}))).starts_with("yes"));
        assert!(in_force(&sandbox(json!({"policyDigest": "sha256:0"}))).contains("is sha256:0;"));
        assert!(in_force(&sandbox(json!({}))).contains("has no status.policyDigest"));
        let ended = json!({"policyDigest": digest(None), "phase": "Failed"});
        assert!(in_force(&sandbox(ended)).starts_with("no: the sandbox has ended"));
        assert_eq!(line("a \u{1b}[2J\u{202e}b\u{2028}\u{9b}\"é\\"), "a  [2J b  \"é\\");
        let condition = |kind: &str, message: &str| json!({"type": kind, "status": "True", "reason": "R", "message": message, "lastTransitionTime": "2026-11-01T00:00:00Z"});
        let status = json!({"conditions": [condition("Ready", "a"), condition("EgressReady", "also\n203.0.113.0/24")]});
        let told = ("EgressReady".to_owned(), "True, R: also 203.0.113.0/24".to_owned());
        assert_eq!(conditions(&sandbox(status)), [told]);
    }

    #[test]
    fn an_api_server_is_quoted_by_its_message() {
        let error = |code: u16, reason: &str, message: &str| {
            let status =
                Status { code, reason: reason.to_owned(), message: message.to_owned(), ..Status::default() };
            unread(&kube::Error::Api(Box::new(status)))
        };
        let missing = "agentsandboxes.agentsandbox.dev \"fix\" not found";
        let told = format!("{missing}; is it in another namespace? -n NAMESPACE");
        assert_eq!(error(404, "NotFound", missing), told);
        let told = "404 page not found; is the operator installed in this cluster?";
        assert_eq!(error(404, "Failed to parse error data", "404 page not found\n"), told);
        assert_eq!(error(403, "Forbidden", "not\u{1b}[2J you"), "not [2J you");
        assert_eq!(error(401, "Unauthorized", ""), "Unauthorized");
    }
}
