//! A sandbox that passed every check, and what follows from it.
use std::time::Duration;

use super::{ValidatedMount, ValidatedRule, limits::Limits};
use crate::{api::v1alpha1::AgentSandboxSpec, init::config::SandboxIdentity, plan::Marks};

/// A sandbox that passed every check. Only [`super::validate`] makes one.
#[derive(Debug, Clone, PartialEq)]
pub struct ValidatedSandbox {
    pub(super) identity: SandboxIdentity,
    pub(super) hash: String,
    pub(super) object_name: String,
    pub(super) own_directory: String,
    pub(super) generation: i64,
    pub(super) policy_digest: String,
    pub(super) spec: AgentSandboxSpec,
    pub(super) limits: Limits,
    pub(super) mounts: Vec<ValidatedMount>,
    pub(super) egress: Vec<ValidatedRule>,
    pub(super) user_namespace: bool,
    pub(super) user: i64,
}

impl ValidatedSandbox {
    /// What the metadata of its objects says.
    pub(in crate::plan) fn marks(&self) -> Marks<'_> {
        Marks {
            identity: &self.identity,
            hash: &self.hash,
            object_name: &self.object_name,
            policy_digest: &self.policy_digest,
        }
    }

    /// Which sandbox it is.
    pub fn identity(&self) -> &SandboxIdentity {
        &self.identity
    }

    /// See [`crate::plan::names::hash`].
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// Name of the Pod and of the `NetworkPolicy`.
    pub fn object_name(&self) -> &str {
        &self.object_name
    }

    /// Generation of the spec; 1 where the object has none.
    pub fn generation(&self) -> i64 {
        self.generation
    }

    /// See [`crate::policy::digest()`].
    pub fn policy_digest(&self) -> &str {
        &self.policy_digest
    }

    /// The spec as the user wrote it, with defaults.
    pub fn spec(&self) -> &AgentSandboxSpec {
        &self.spec
    }

    /// Wall clock time of the agent, 1 s to 168 h.
    pub fn timeout(&self) -> Duration {
        self.limits.timeout
    }

    /// Time from creation to the start of the agent, 1 s to 24 h.
    pub fn startup_timeout(&self) -> Duration {
        self.limits.startup_timeout
    }

    /// Time from the end to the object's deletion, at most 8760 h.
    pub fn ttl_after_finished(&self) -> Option<Duration> {
        self.limits.ttl_after_finished
    }

    /// The user's mounts, in the order of the spec.
    pub fn mounts(&self) -> &[ValidatedMount] {
        &self.mounts
    }

    /// The rules, in the order of the spec.
    pub fn egress(&self) -> &[ValidatedRule] {
        &self.egress
    }

    /// Whether the Pod runs in a user namespace of its own.
    pub fn user_namespace(&self) -> bool {
        self.user_namespace
    }

    /// Runtime class of the Pod.
    pub fn runtime_class(&self) -> Option<&str> {
        self.spec.isolation.as_ref()?.runtime_class_name.as_deref()
    }

    /// User of the agent's process; never 0.
    pub fn user(&self) -> i64 {
        self.user
    }

    /// Group of the agent's process; never 0.
    pub fn group(&self) -> i64 {
        self.spec.run_as.group
    }

    /// Directory in the agent's container that holds `sandbox-init`: see [`crate::plan::keyed::directory`].
    pub fn own_directory(&self) -> &str {
        &self.own_directory
    }
}

/// The agent's user: the one asked for; in a user namespace 1000, because it is the sandbox's own anyway; outside of
/// one a user that most likely no other sandbox has, since `RLIMIT_NPROC` counts per user.
pub(super) fn user(spec: &AgentSandboxSpec, user_namespace: bool, hash: &str) -> i64 {
    const FIRST: i64 = 100_000;
    const COUNT: i64 = 1_900_000_000;
    match spec.run_as.user {
        Some(user) => user,
        None if user_namespace => 1000,
        None => {
            let bytes = hash.get(..8).and_then(|h| i64::from_str_radix(h, 16).ok()).unwrap_or_default();
            FIRST + bytes % COUNT
        }
    }
}
