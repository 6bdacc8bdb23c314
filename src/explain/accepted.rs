//! Whether there is a sandbox at all: the operator's own checks, as far as they need no cluster.
use std::collections::BTreeMap;

use crate::{
    api::v1alpha1::AgentSandbox,
    plan::{self, GatewaySettings, Observed, ObservedService, Settings, names_of_services},
    policy::AddressPolicy,
    render,
};

/// Why the operator refuses `sandbox`, one line each. What only the cluster knows is taken to be as the sandbox needs it:
/// its Services are there, and nodes have user namespaces.
pub(super) fn refusals(sandbox: &AgentSandbox, addresses: &AddressPolicy) -> Vec<String> {
    let mut sandbox = sandbox.clone();
    render::complete(&mut sandbox, "default");
    let own = sandbox.metadata.namespace.as_deref().unwrap_or_default();
    let services = names_of_services(sandbox.spec.network.as_ref(), own).into_iter().map(|key| {
        let selector = BTreeMap::from([("app".to_owned(), "unknown".to_owned())]);
        let ports = render::ports_of_rules(&sandbox, &key.1);
        (key, ObservedService { selector, ports })
    });
    let observed = Observed { services: services.collect(), ..Observed::default() };
    let settings = Settings {
        reserved_cidrs: addresses.cluster.clone(),
        user_namespaces: true,
        gateway: Some(GatewaySettings {
            namespace: "agentsandbox-system".to_owned(),
            reachable_cidrs: addresses.reachable.clone(),
            reach: None,
        }),
        ..Settings::default()
    };
    let refusals = plan::validate(&sandbox, &observed, &settings).err().unwrap_or_default();
    refusals.iter().map(ToString::to_string).collect()
}
