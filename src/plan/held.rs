//! The policy under which a Pod is held whose sandbox's spec is refused.
use k8s_openapi::api::networking::v1::NetworkPolicy;

use super::{Marks, Observed, Settings, names, network_policy, validate};
use crate::{
    api::v1alpha1::{AgentSandbox, Network},
    policy,
};

/// The policy that the Pod of `sandbox` has while the spec is refused: it opens what is right in `network`, and
/// where that cannot be told only what every sandbox needs.
///
/// It always is one, and nothing outside of `network` decides it: a Pod that runs must not keep a wider policy because
/// something else is wrong with its spec, be it by an edit or in the eyes of a newer operator.
pub fn held(sandbox: &AgentSandbox, observed: &Observed, settings: &Settings) -> NetworkPolicy {
    let identity = validate::identity_of(sandbox);
    let hash = names::hash(&identity.namespace, &identity.name, &identity.uid);
    let object_name = names::object_name(&identity.name, &hash);
    let build = |network: &Network, rules: &[_]| {
        let policy_digest = policy::digest(Some(network));
        let marks = Marks {
            identity: &identity,
            hash: &hash,
            object_name: &object_name,
            policy_digest: &policy_digest,
        };
        network_policy::build(&marks, rules, settings)
    };
    let (network, rules) =
        validate::right(sandbox.spec.network.as_ref(), &identity.namespace, observed, settings);
    let policy = build(&network, &rules);
    if validate::fits(&policy) { policy } else { build(&Network::default(), &[]) }
}
