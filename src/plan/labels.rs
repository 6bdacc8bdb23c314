//! Labels, annotations and the finalizer by which the operator knows its own objects.
use std::collections::BTreeMap;

/// Label of every object that the operator makes.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Value of [`MANAGED_BY`].
pub const MANAGED_BY_VALUE: &str = "agentsandbox";
/// Label that ties a Pod to its `NetworkPolicy`; the value is the sandbox's hash.
pub const SANDBOX: &str = "agentsandbox.dev/sandbox";
/// Label selector of every object that the operator makes.
pub const WATCH_SELECTOR: &str = "app.kubernetes.io/managed-by=agentsandbox";
/// Annotation with the digest of the egress policy that the object was planned with.
pub const POLICY_DIGEST: &str = "agentsandbox.dev/policy-digest";
/// Annotation of the Pod with the sandbox's full name.
pub const NAME: &str = "agentsandbox.dev/name";
/// Annotation of the Pod with what its start gate looks at, as `Name=address` joined by commas; the canary has no
/// address, since the gateway names it. A Pod without this annotation has no gate.
pub const START_GATE: &str = "agentsandbox.dev/start-gate";
/// Annotation of the Pod by which the controller knows it for its own work: see [`super::seal`].
pub const POD_DIGEST: &str = "agentsandbox.dev/pod-digest";
/// Finalizer of the `NetworkPolicy`: it stays until no Pod of its name exists.
pub const POD_GONE_FINALIZER: &str = "agentsandbox.dev/pod-gone";

/// Label of the operator's own Pods with what they are a part of.
const PART: (&str, &str) = ("app.kubernetes.io/name", "agentsandbox");
/// Label of the operator's own Pods with what they do.
const COMPONENT: &str = "app.kubernetes.io/component";

/// The labels of the gateway's Pods.
pub fn of_gateway() -> BTreeMap<String, String> {
    let of = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    BTreeMap::from([of(PART), of((COMPONENT, "gateway"))])
}

/// The labels of both objects of the sandbox with this hash.
pub fn of(hash: &str) -> BTreeMap<String, String> {
    let mut labels = selecting(hash);
    labels.insert(MANAGED_BY.to_owned(), MANAGED_BY_VALUE.to_owned());
    labels
}

/// The labels by which the policy selects the Pod of the sandbox with this hash.
pub fn selecting(hash: &str) -> BTreeMap<String, String> {
    BTreeMap::from([(SANDBOX.to_owned(), hash.to_owned())])
}
