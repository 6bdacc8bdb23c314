//! What was seen in the cluster that the objects depend on.
use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::{api::core::v1::Service, apimachinery::pkg::util::intstr::IntOrString};

use crate::api::v1alpha1::Protocol;

/// What was seen in the cluster.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Observed {
    /// The Services that the rules name and that exist, by namespace and name.
    pub services: BTreeMap<(String, String), ObservedService>,
    /// Services that the rules name and that were not looked at, because the spec is refused anyway: another one is
    /// missing, or there are too many. Nothing is said of them.
    pub unread: BTreeSet<(String, String)>,
    /// Names of ours that somebody else's objects have.
    pub foreign: BTreeSet<Foreign>,
}

/// A name of ours that somebody else's object has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Foreign {
    /// A Pod that the sandbox does not own.
    PodTaken,
    /// A `NetworkPolicy` that the sandbox does not own.
    PolicyTaken,
}

/// What of a Service matters for a rule.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ObservedService {
    /// Labels of its Pods; empty where the Service selects none (also `ExternalName`).
    pub selector: BTreeMap<String, String>,
    /// Its TCP and UDP ports.
    pub ports: Vec<ObservedPort>,
}

/// One port of a Service.
#[derive(Debug, Clone, PartialEq)]
pub struct ObservedPort {
    /// Port of the Service itself.
    pub port: i32,
    /// Number or name of the port of its Pods.
    pub target: IntOrString,
    /// Transport protocol.
    pub protocol: Protocol,
}

impl ObservedService {
    /// What of `service` matters for a rule.
    pub fn from_service(service: &Service) -> Self {
        let Some(spec) = &service.spec else { return Self::default() };
        let external = spec.type_.as_deref() == Some("ExternalName");
        let selector = if external { BTreeMap::new() } else { spec.selector.clone().unwrap_or_default() };
        let ports = spec.ports.iter().flatten().filter_map(|p| {
            let protocol = match p.protocol.as_deref() {
                None | Some("TCP") => Protocol::TCP,
                Some("UDP") => Protocol::UDP,
                Some(_) => return None,
            };
            let target = match &p.target_port {
                // 0 and "" are the forms of "not set".
                None | Some(IntOrString::Int(0)) => IntOrString::Int(p.port),
                Some(IntOrString::String(name)) if name.is_empty() => IntOrString::Int(p.port),
                Some(target) => target.clone(),
            };
            Some(ObservedPort { port: p.port, target, protocol })
        });
        Self { selector, ports: ports.collect() }
    }
}
