//! The policy of one sandbox: nothing in, and out only what the rules say.
use std::collections::BTreeMap;

use k8s_openapi::{
    api::networking::v1::{
        IPBlock, NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyPeer, NetworkPolicyPort,
        NetworkPolicySpec,
    },
    apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta},
};

use super::{Destination, ValidatedRule, ValidatedSandbox, labels, metadata};
use crate::api::v1alpha1::Protocol;

/// Label that the API server puts on every namespace, with its name as the value.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// The policy of `sandbox`.
pub(super) fn build(sandbox: &ValidatedSandbox) -> NetworkPolicy {
    NetworkPolicy {
        metadata: ObjectMeta {
            finalizers: Some(vec![labels::POD_GONE_FINALIZER.to_owned()]),
            ..metadata(sandbox)
        },
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(LabelSelector {
                match_labels: Some(labels::selecting(sandbox.hash())),
                match_expressions: None,
            }),
            policy_types: Some(vec!["Ingress".to_owned(), "Egress".to_owned()]),
            ingress: Some(Vec::new()),
            egress: Some(sandbox.egress().iter().filter_map(rule).collect()),
        }),
    }
}

/// Nothing for a host rule, which the egress gateway keeps. Both lists of a rule are never empty: an empty one means
/// "everything", and `validate` refuses it.
fn rule(rule: &ValidatedRule) -> Option<NetworkPolicyEgressRule> {
    let to = vec![peer(&rule.destination)?];
    let protocol = match rule.protocol {
        Protocol::TCP => "TCP",
        Protocol::UDP => "UDP",
    };
    let ports = rule.ports.iter().map(|port| NetworkPolicyPort {
        port: Some(port.clone()),
        protocol: Some(protocol.to_owned()),
        end_port: None,
    });
    Some(NetworkPolicyEgressRule { ports: Some(ports.collect()), to: Some(to) })
}

fn peer(destination: &Destination) -> Option<NetworkPolicyPeer> {
    Some(match destination {
        Destination::Host(_) => return None,
        Destination::Network(network) => NetworkPolicyPeer {
            ip_block: Some(IPBlock { cidr: network.to_string(), except: None }),
            ..NetworkPolicyPeer::default()
        },
        Destination::Pods { namespace, selector } => NetworkPolicyPeer {
            namespace_selector: Some(LabelSelector {
                match_labels: Some(BTreeMap::from([(NAMESPACE_NAME.to_owned(), namespace.clone())])),
                match_expressions: None,
            }),
            pod_selector: Some(LabelSelector {
                match_labels: Some(selector.clone()),
                match_expressions: None,
            }),
            ip_block: None,
        },
    })
}
