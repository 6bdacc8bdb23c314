//! What an egress policy means: host names and patterns, decisions, the digest, and the addresses that no policy may
//! open. The controller, the gateway, the sidecar and the command line all decide by this code. No I/O.
mod address;
mod decision;
pub(crate) mod digest;
mod effective;
mod host;
mod path;
mod pattern;
pub mod reserved;
mod rule;
mod shown;
mod warning;
mod wrong_host;

pub use address::{AddressClass, AddressPolicy};
pub use decision::{AppProtocol, Decision, Reason, Verdict};
pub use digest::digest;
pub use effective::EffectivePolicy;
pub use host::{HostName, HostNameError};
pub use path::PathPrefix;
pub use pattern::{HostPattern, HostPatternError};
pub use rule::{Accepted, HostRule, PolicyError, bytes_of_limits};
pub use shown::shown;
pub use warning::PolicyWarning;
pub(crate) use warning::no_help;
