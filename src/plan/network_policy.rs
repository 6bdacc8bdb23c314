//! The policy of one sandbox: nothing in, and out only what the rules say and, where there is one, to the gateway.
use std::collections::BTreeMap;

use k8s_openapi::{
    api::networking::v1::{
        IPBlock, NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyPeer, NetworkPolicyPort,
        NetworkPolicySpec,
    },
    apimachinery::pkg::{
        apis::meta::v1::{LabelSelector, ObjectMeta},
        util::intstr::IntOrString,
    },
};

use super::{Destination, Marks, Settings, ValidatedRule, labels, metadata};
use crate::{api::v1alpha1::Protocol, egress::wire::GATEWAY_PORT};

/// Label that the API server puts on every namespace, with its name as the value.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// The policy of the sandbox with these marks that opens what `egress` says.
pub(super) fn build(marks: &Marks<'_>, egress: &[ValidatedRule], settings: &Settings) -> NetworkPolicy {
    let gateway = settings.gateway.as_ref().map(|gateway| to_gateway(&gateway.namespace));
    NetworkPolicy {
        metadata: ObjectMeta {
            finalizers: Some(vec![labels::POD_GONE_FINALIZER.to_owned()]),
            ..metadata(marks)
        },
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(LabelSelector {
                match_labels: Some(labels::selecting(marks.hash)),
                match_expressions: None,
            }),
            policy_types: Some(vec!["Ingress".to_owned(), "Egress".to_owned()]),
            ingress: Some(Vec::new()),
            egress: Some(egress.iter().filter_map(rule).chain(gateway).collect()),
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

/// The way to the gateway. By its Pods: the address of a Service is translated before policies are looked at.
fn to_gateway(namespace: &str) -> NetworkPolicyEgressRule {
    NetworkPolicyEgressRule {
        ports: Some(vec![NetworkPolicyPort {
            port: Some(IntOrString::Int(i32::from(GATEWAY_PORT))),
            protocol: Some("TCP".to_owned()),
            end_port: None,
        }]),
        to: Some(vec![pods(namespace, labels::of_gateway())]),
    }
}

fn peer(destination: &Destination) -> Option<NetworkPolicyPeer> {
    Some(match destination {
        Destination::Host(_) => return None,
        Destination::Network(network) => NetworkPolicyPeer {
            ip_block: Some(IPBlock { cidr: network.to_string(), except: None }),
            ..NetworkPolicyPeer::default()
        },
        Destination::Pods { namespace, selector } => pods(namespace, selector.clone()),
    })
}

fn pods(namespace: &str, selector: BTreeMap<String, String>) -> NetworkPolicyPeer {
    let labels = |labels| LabelSelector { match_labels: Some(labels), match_expressions: None };
    NetworkPolicyPeer {
        namespace_selector: Some(labels(BTreeMap::from([(NAMESPACE_NAME.to_owned(), namespace.to_owned())]))),
        pod_selector: Some(labels(selector)),
        ip_block: None,
    }
}
