//! Version `v1alpha1` of the group `agentsandbox.dev`.
mod agent_sandbox;
mod duration;
mod egress;
mod env;
mod filesystem;
mod isolation;
mod names;
mod quantity;
mod resources;
mod status;

pub use agent_sandbox::{AgentSandbox, AgentSandboxSpec, RunAs};
pub use duration::{DurationError, GoDuration};
pub use egress::{EgressRule, HttpRule, Network, NetworkLimits, Protocol, ServiceReference, TlsRule};
pub use env::{EnvVar, EnvVarSource, KeySelector};
pub use filesystem::{ClaimSource, EmptyDirSource, Filesystem, LandlockMode, Mount, NamedSource};
pub use isolation::{Isolation, UserNamespaceMode};
pub use quantity::{QuantityError, bytes_of, millicores_of, wrong_bytes, wrong_cpu};
pub use resources::{Requests, Resources};
pub use status::{
    AgentSandboxStatus, AuditStatus, CheckResult, ContainmentCheck, ContainmentStatus, EgressStatus,
    FilesystemStatus, LimitsStatus, Outcome, Phase, PidsEnforcement, Usage,
};

/// Group of every kind of this API.
pub const GROUP: &str = "agentsandbox.dev";
/// Version of the kinds in this module.
pub const VERSION: &str = "v1alpha1";
