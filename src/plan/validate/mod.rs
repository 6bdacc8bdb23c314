//! Whether a sandbox may be planned. It repeats what the schema of the custom resource says where that matters for
//! containment, because objects also come from files that no API server has seen, and says what no schema can.
mod egress;
mod files;
mod limits;
mod right;
mod sandbox;
mod size;
mod text;

pub use egress::{Destination, MOST_SERVICES, ValidatedRule, names_of_services};
pub use files::ValidatedMount;
pub(super) use right::right;
pub use sandbox::ValidatedSandbox;
pub(super) use size::fits;

use super::{Foreign, Observed, Settings, keyed, names};
use crate::{
    api::v1alpha1::{AgentSandbox, AgentSandboxSpec, UserNamespaceMode},
    init::config::SandboxIdentity,
    policy,
};

/// Reasons of refusals, as they appear in the condition `Accepted`.
pub mod reason {
    /// The spec contradicts the schema.
    pub const INVALID_SPEC: &str = "InvalidSpec";
    /// A rule names a host, and the operator has no egress gateway to keep it.
    pub const DOMAIN_EGRESS_UNAVAILABLE: &str = "DomainEgressUnavailable";
    /// A `cidr` overlaps addresses that no rule may open.
    pub const RESERVED_ADDRESS: &str = "ReservedAddress";
    /// A rule names a Service, or a port of one, that does not exist.
    pub const SERVICE_NOT_FOUND: &str = "ServiceNotFound";
    /// A rule names a Service that selects no Pods.
    pub const SERVICE_NOT_SELECTABLE: &str = "ServiceNotSelectable";
    /// Two mounts are at one path, or one inside the other.
    pub const OVERLAPPING_MOUNTS: &str = "OverlappingMounts";
    /// An environment variable has a name that the operator reserves.
    pub const RESERVED_ENV_NAME: &str = "ReservedEnvName";
    /// A user namespace is required and not to be had.
    pub const USER_NAMESPACE_UNAVAILABLE: &str = "UserNamespaceUnavailable";
    /// The administrator does not allow that runtime class.
    pub const RUNTIME_CLASS_NOT_ALLOWED: &str = "RuntimeClassNotAllowed";
    /// An object with the name of ours is somebody else's.
    pub const NAME_CONFLICT: &str = "NameConflict";
}

/// One reason why a sandbox is not planned.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message} [{reason}]")]
pub struct Refusal {
    /// One word of [`reason`].
    pub reason: &'static str,
    /// Path of the field, such as `spec.network.egress[0].cidr`.
    pub field: String,
    /// What is wrong and what to write instead; text of the user's is cut and escaped.
    pub message: String,
}

/// Collects refusals.
#[derive(Default)]
pub(super) struct Refusals(Vec<Refusal>);

impl Refusals {
    fn add(&mut self, reason: &'static str, field: impl Into<String>, message: impl Into<String>) {
        self.0.push(Refusal { reason, field: field.into(), message: message.into() });
    }

    fn invalid(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.add(reason::INVALID_SPEC, field, message);
    }

    fn check(&mut self, fine: bool, field: &str, message: &str) {
        if !fine {
            self.invalid(field, message);
        }
    }
}

/// Checks `sandbox` and works out what its objects need.
///
/// # Errors
/// Every [`Refusal`] that was found, in the order of the fields; never an empty list.
pub fn validate(
    sandbox: &AgentSandbox,
    observed: &Observed,
    settings: &Settings,
) -> Result<ValidatedSandbox, Vec<Refusal>> {
    let mut refusals = Refusals::default();
    let spec = &sandbox.spec;
    let identity = identity(sandbox, &mut refusals);
    text::check(spec, &mut refusals);
    let limits = limits::check(spec, &mut refusals);
    let mounts = files::check(spec.filesystem.as_ref(), &spec.resources.ephemeral_storage, &mut refusals);
    let egress = egress::check(spec.network.as_ref(), &identity.namespace, observed, settings, &mut refusals);
    check_runtime_class(spec, settings, &mut refusals);
    let user_namespace = user_namespace(spec, settings, &mut refusals);
    let hash = names::hash(&identity.namespace, &identity.name, &identity.uid);
    let object_name = names::object_name(&identity.name, &hash);
    for foreign in &observed.foreign {
        let kind = match foreign {
            Foreign::PodTaken => "Pod",
            Foreign::PolicyTaken => "NetworkPolicy",
        };
        refusals.add(
            reason::NAME_CONFLICT,
            "metadata.name",
            format!("a {kind} named {object_name} exists and does not belong to this sandbox; delete it or choose another name"),
        );
    }
    let Some(limits) = limits.filter(|_| refusals.0.is_empty()) else { return Err(refusals.0) };
    let valid = ValidatedSandbox {
        user: sandbox::user(spec, user_namespace, &hash),
        policy_digest: policy::digest(spec.network.as_ref()),
        generation: sandbox.metadata.generation.unwrap_or(1),
        spec: spec.clone(),
        own_directory: keyed::directory(&settings.directory_key, &identity.uid),
        identity,
        hash,
        object_name,
        limits,
        mounts,
        egress,
        user_namespace,
    };
    size::check(&valid, settings, &mut refusals);
    if refusals.0.is_empty() { Ok(valid) } else { Err(refusals.0) }
}

/// Which sandbox it is, as it says.
pub(super) fn identity_of(sandbox: &AgentSandbox) -> SandboxIdentity {
    let meta = &sandbox.metadata;
    SandboxIdentity {
        namespace: meta.namespace.clone().unwrap_or_default(),
        name: meta.name.clone().unwrap_or_default(),
        uid: meta.uid.clone().unwrap_or_default(),
    }
}

fn identity(sandbox: &AgentSandbox, refusals: &mut Refusals) -> SandboxIdentity {
    let identity = identity_of(sandbox);
    refusals.check(
        names::is_subdomain(&identity.name) && identity.name.len() <= 200,
        "metadata.name",
        "must be lower-case letters, digits, hyphens and dots, at most 200 characters, such as fix-issue-42",
    );
    refusals.check(
        names::is_label(&identity.namespace),
        "metadata.namespace",
        "must be lower-case letters, digits and hyphens, at most 63 characters, such as team-a",
    );
    let plain_uid = (1..=64).contains(&identity.uid.len())
        && identity.uid.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    refusals.check(plain_uid, "metadata.uid", "must be the one that the API server gave the object");
    identity
}

/// A runtime class may be anything that the nodes have, also one with less separation than the default.
fn check_runtime_class(spec: &AgentSandboxSpec, settings: &Settings, refusals: &mut Refusals) {
    let asked = spec.isolation.as_ref().and_then(|isolation| isolation.runtime_class_name.as_deref());
    let (Some(asked), Some(allowed)) = (asked, &settings.runtime_classes) else { return };
    if !allowed.iter().any(|class| class == asked) {
        let message = format!(
            "`{}` is not among the runtime classes that this operator allows ({}); write one of them or leave it out",
            policy::shown(asked),
            allowed.join(", ")
        );
        refusals.add(reason::RUNTIME_CLASS_NOT_ALLOWED, "spec.isolation.runtimeClassName", message);
    }
}

/// Whether the Pod gets a user namespace of its own. A runtime class may be a virtual machine or gVisor, which have
/// their own separation and do not take `hostUsers: false`.
fn user_namespace(spec: &AgentSandboxSpec, settings: &Settings, refusals: &mut Refusals) -> bool {
    let isolation = spec.isolation.clone().unwrap_or_default();
    let possible = settings.user_namespaces && isolation.runtime_class_name.is_none();
    match isolation.user_namespace {
        UserNamespaceMode::Disabled => false,
        UserNamespaceMode::Preferred => possible,
        UserNamespaceMode::Required if possible => true,
        UserNamespaceMode::Required => {
            let message = if settings.user_namespaces {
                "a user namespace is not available with a runtimeClassName; leave one of the two out"
            } else {
                "the operator was not told that nodes have user namespaces; write Preferred, or install it with controller.userNamespaces=true"
            };
            refusals.add(reason::USER_NAMESPACE_UNAVAILABLE, "spec.isolation.userNamespace", message);
            false
        }
    }
}

#[cfg(test)]
mod tests;
