//! Writes a status.
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use super::context::{Context, Identity};
use super::error::{Doing, Error};
use super::field_managers;
use super::notices::{announce, record_change};
use crate::api::v1alpha1::{AgentSandbox, AgentSandboxStatus};

/// Writes `status` after `before`: the audit record first, then the status, then the events.
pub async fn write(
    context: &Context,
    sandbox: &AgentSandbox,
    identity: &Identity,
    before: &AgentSandboxStatus,
    status: &AgentSandboxStatus,
) -> Result<(), Error> {
    context.may_write()?;
    record_change(context, sandbox, identity, before, status)?;
    let of = &identity.sandbox;
    let body = json!({
        "apiVersion": "agentsandbox.dev/v1alpha1",
        "kind": "AgentSandbox",
        "metadata": {"name": of.name, "namespace": of.namespace, "uid": of.uid},
        "status": status,
    });
    let api: Api<AgentSandbox> = Api::namespaced(context.client.clone(), &of.namespace);
    let params = PatchParams::apply(field_managers::STATUS).force();
    match api.patch_status(&of.name, &params, &Patch::Apply(&body)).await {
        Ok(answer) => context.memory.keep(&of.uid, &answer),
        Err(kube::Error::Api(status)) if status.is_not_found() => return Ok(()),
        Err(error) => return Err(error).doing("write the status"),
    }
    context.metrics.applied("AgentSandbox", "status");
    announce(context, sandbox, before, status).await;
    Ok(())
}
