//! Forms of names, as rules of the schema (CEL): what the operator would refuse is not stored.

/// The name of an object: a DNS subdomain (RFC 1123) in lower case.
pub(super) const OBJECT_NAME: &str =
    "self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$')";

/// The name of a Service or of a namespace: a DNS label in lower case.
pub(super) const LABEL: &str = "self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')";
