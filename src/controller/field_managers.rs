//! Names under which the controller writes. One writer, one name: the API server then says who set a field.

/// Creates and repairs `NetworkPolicies` and Pods.
pub const OBJECTS: &str = "agentsandbox/controller";
/// Puts labels and owner back on Pods that lost them.
pub const REPAIR: &str = "agentsandbox/repair";
/// Writes the status of sandboxes.
pub const STATUS: &str = "agentsandbox/status";
/// Removes the finalizer of `NetworkPolicies`.
pub const RELEASE: &str = "agentsandbox/release";
/// Writes the Lease.
pub const LEASE: &str = "agentsandbox/lease";
/// Writes the Secrets of the gateway's certificates.
pub const CERTIFICATES: &str = "agentsandbox/certificates";
