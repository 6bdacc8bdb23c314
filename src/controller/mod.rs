//! The controller: gather, validate, plan, apply, status. The pure parts are next to the ones that write.
//!
//! # Permissions that it needs
//!
//! | group | resource | verbs |
//! | --- | --- | --- |
//! | `agentsandbox.dev` | agentsandboxes | get, list, watch, delete (after `ttlAfterFinished`) |
//! | `agentsandbox.dev` | agentsandboxes/status | patch |
//! | `agentsandbox.dev` | agentsandboxes/finalizers | update (where `OwnerReferencesPermissionEnforcement` is on) |
//! | core | pods | get, list, watch, create, patch, delete |
//! | core | services, nodes | get |
//! | `networking.k8s.io` | networkpolicies | get, list, watch, create, patch |
//! | `events.k8s.io` | events | create, patch |
//! | `coordination.k8s.io` | leases (own namespace) | get, create, update |
//! | core | secrets (own namespace) | create; get, patch for `agentsandbox-egress-ca` and `agentsandbox-gateway-tls` |
mod apply;
mod backoff;
mod canary;
mod certificates;
mod conditions;
mod context;
mod crash;
mod deletion;
mod ending;
mod error;
mod field_managers;
mod filled;
mod finished;
mod gate;
mod gateway;
mod gather;
mod judge;
mod lease;
mod lifecycle;
mod looks;
mod notices;
mod ownership;
mod pod;
mod reconcile;
mod release;
mod run;
mod status;
mod write;

pub use error::Error;
pub(crate) use filled::Filled;
pub use run::{Options, RunError, duration, run};
