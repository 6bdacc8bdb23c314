//! The protocol between a sandbox's sidecar and the egress gateway.
//!
//! TLS 1.3 with the protocol name [`ALPN`]; one request per connection, in the form of HTTP/1.1 (RFC 9112):
//!
//! - `CONNECT name:port HTTP/1.1`: after `200` the connection carries the agent's bytes and nothing else. Refused with a
//!   status of 400 and more and a [`Denial`] as the body.
//! - `GET /v1/policy HTTP/1.1`: after `200` a line of JSON ([`PolicyUpdate`]) at once, at every change, and at least
//!   every [`HEARTBEAT`], until either side hangs up. The sidecar writes a line of JSON ([`Refusals`]) when the Pod refused
//!   something that the gateway has not seen, at most every [`REPORT_EVERY`].
//!
//! Both carry `Authorization: Bearer TOKEN`, the Pod's projected token of audience [`AUDIENCE`], and a `CONNECT` also
//! [`VIA_HEADER`] and [`BYTES_HEADER`].
use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Application protocol name (RFC 7301) of this version.
pub const ALPN: &[u8] = b"agentsandbox-egress/1";

/// Audience of the token that names the Pod.
pub const AUDIENCE: &str = "agentsandbox-gateway";

/// Port of the gateway, on its Pods and on its Service.
pub const GATEWAY_PORT: u16 = 8443;

/// Port of the canary on the operator's Pods: any Pod but a sandbox may reach it.
pub const CANARY_PORT: u16 = 8444;

/// Longest request or answer head, in bytes.
pub const MAX_HEAD: usize = 16 * 1024;

/// Longest line of the policy stream, in bytes.
pub const MAX_UPDATE: usize = 1024 * 1024;

/// Longest line of the sidecar's on the policy stream, in bytes.
pub const MAX_REPORT: usize = 2048;

/// Shortest time between two lines of the sidecar's on the policy stream.
pub const REPORT_EVERY: Duration = Duration::from_mins(1);

/// Time between two lines of the policy stream at most.
pub const HEARTBEAT: Duration = Duration::from_secs(10);

/// Header of a `CONNECT`: how the agent asked, one of `transparent`, `http-connect`, `http`, `socks5`.
pub const VIA_HEADER: &str = "x-agentsandbox-via";

/// Header of a `CONNECT`: bytes that the sandbox has moved so far, both ways, in decimal.
pub const BYTES_HEADER: &str = "x-agentsandbox-bytes";

/// What the gateway says of a sandbox's policy. Fields that a sidecar does not know are left alone: gateways are upgraded
/// while sandboxes run, and it is they who decide.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PolicyUpdate {
    /// Generation of the spec that it was computed from.
    pub generation: i64,
    /// Its digest, see [`crate::policy::digest()`].
    pub digest: String,
    /// Every name that may be reached, with its ports, in the order of the rules.
    pub hosts: Vec<AllowedHost>,
    /// Bytes that the sandbox may move in all, both ways.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<i64>,
    /// Gateways that can be reached, this one first.
    pub gateways: Vec<SocketAddr>,
    /// An endpoint that everyone but a sandbox can reach, if this gateway reached one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<Canary>,
    /// What the gateway refused since it last said so, after it had opened the connection: for what was said on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<Refusals>,
}

/// Refusals of one side of which the other has not heard.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Refusals {
    /// How many.
    pub count: u64,
    /// The name of the last one, with its port where one was asked for.
    pub target: String,
    /// One word, see [`Denial::reason`].
    pub reason: String,
}

impl Refusals {
    /// Counts one more, which is the last from now on.
    pub fn add(&mut self, target: &str, reason: &str) {
        self.count = self.count.saturating_add(1);
        target.clone_into(&mut self.target);
        reason.clone_into(&mut self.reason);
    }
}

/// A name that may be reached.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct AllowedHost {
    /// See [`crate::policy::HostPattern`].
    pub pattern: String,
    /// Ports, 1 to 65535.
    pub ports: Vec<u16>,
}

/// An endpoint that a sandbox must not reach, and that exists.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Canary {
    /// Where it listens (TCP).
    pub address: SocketAddr,
    /// Milliseconds since the gateway reached it, when the update was sent.
    pub age_ms: u64,
}

/// Body of a refusal.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Denial {
    /// One word, see [`crate::policy::Reason`]; or `Unauthenticated`, `PolicyUnknown`, `ResolutionFailed`,
    /// `AddressRefused`, `DialFailed`, `TooManyConnections`, `EgressBytesExceeded`, `GatewayBusy` and `Draining` (ask
    /// another gateway), `BadRequest`, `TooSlow`.
    pub reason: String,
    /// For the agent: what was refused, and what the owner of the sandbox has to write to allow it.
    pub message: String,
}

/// Egress of a sandbox in numbers, as the sidecar counted.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct EgressSummary {
    /// Connections that were allowed and made. Of those, what was said on some may have been refused: those count here too.
    pub allowed: i64,
    /// Names and connections that were refused.
    pub denied: i64,
    /// Bytes from the agent.
    pub bytes_out: i64,
    /// Bytes to the agent.
    pub bytes_in: i64,
    /// The last refusal, `name:port reason`, at most 300 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_denied: Option<String>,
}
