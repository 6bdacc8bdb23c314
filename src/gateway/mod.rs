//! The egress gateway: the only way out of a sandbox by name. See `docs/design/0007-egress.md`.
//!
//! A connection passes, in this order: TLS ([`server`]), one request ([`request`]), who asks ([`identity`]), the
//! sandbox's limits and policy ([`live`], [`sandboxes`]), resolving ([`resolve`]), the address ([`vetting`]), dialling
//! ([`dial`]), what the agent says first ([`first_bytes`]), and then [`relay`], until either side, a limit or a change
//! of the policy ends it and one record is written ([`tunnel`]).
mod answers;
mod base64url;
mod canary;
mod certificate;
mod claims;
mod client_hello;
mod connection;
mod context;
mod crowd;
mod current_policy;
mod dial;
mod endpoints;
mod families;
mod first_bytes;
mod freshness;
mod http;
mod identity;
mod limits;
mod live;
mod memory;
mod notices;
mod options;
mod overflow;
mod pods;
mod policy_stream;
mod records;
mod refusal;
mod relay;
mod request;
mod resolve;
mod run;
mod sandboxes;
mod server;
mod sniff;
mod sources;
mod standstill;
mod story;
mod tokens;
mod tunnel;
mod tunnels;
mod unheard;
mod vetting;

#[cfg(test)]
mod end_to_end;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
#[cfg(test)]
pub(crate) mod rig;

pub use options::Options;
pub use run::{RunError, run};
