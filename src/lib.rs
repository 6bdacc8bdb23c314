//! The `AgentSandbox` operator: one object becomes one contained agent.
//!
//! `api`, `policy` and `plan` are pure: they do no I/O and import no Kubernetes client. Everything that talks
//! to the API server lives in `controller`; everything that runs inside a sandbox's Pod in `init` and `sidecar`.
pub mod api;
pub mod apidocs;
pub mod audit;
pub mod cli;
mod client;
pub mod controller;
pub mod crds;
pub mod egress;
pub mod explain;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
pub mod gateway;
pub mod init;
pub mod install_check;
pub mod plan;
pub mod policy;
pub mod render;
pub mod sidecar;
mod signals;
pub mod telemetry;
