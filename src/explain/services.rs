//! What was read of the Services that rules name, and what a rule opens of one: pure. A `NetworkPolicy` matches the Pods'
//! own ports: a ClusterIP is translated before.
use std::{collections::BTreeMap, net::IpAddr};

use k8s_openapi::{
    api::{
        core::v1::{ObjectReference, Service},
        discovery::v1::EndpointSlice,
    },
    apimachinery::pkg::util::intstr::IntOrString,
};

use crate::{
    api::v1alpha1::{EgressRule, Protocol},
    plan::ObservedService,
};

/// Label of EndpointSlices that says who made them, and who makes those of Services that select Pods.
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const CONTROLLER: &str = "endpointslice-controller.k8s.io";

/// Services by namespace and name. One that is not there: nobody looked. An error: why it cannot be read.
pub type Services = BTreeMap<(String, String), Result<SeenService, String>>;

/// A Service as it was read, with the Pods that it selects.
#[derive(Debug, Clone, PartialEq)]
pub struct SeenService {
    selects: bool,
    ports: Vec<SeenPort>,
    cluster_ips: Vec<IpAddr>,
    /// Addresses that lead to it from outside the cluster.
    outside: Vec<IpAddr>,
    /// Families that it has addresses of, as `IPv4` and `IPv6`.
    families: Vec<String>,
    /// By address, or why they are not known.
    pods: Result<BTreeMap<IpAddr, Pod>, String>,
}

#[derive(Debug, Clone, PartialEq)]
struct SeenPort {
    name: String,
    /// Of the Service itself.
    port: i32,
    protocol: Protocol,
    /// Number or name of the Pods' own.
    target: IntOrString,
    node_port: Option<i32>,
}

#[derive(Debug, Clone, Default, PartialEq)]
struct Pod {
    /// Whether the Service leads to it now; the policy opens it either way.
    ready: bool,
    /// Ports of the Service that it has, each with its own number for it.
    ports: Vec<(SeenPort, i32)>,
}

/// What a rule for a Service says of an address.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// It opens it: how, and what is to be said besides.
    Open(String, Option<&'static str>),
    /// The address is of the Service; the port is not opened.
    Closed(String),
    /// The address is of the Service, for which the operator refuses the rule.
    Refused(String),
    /// The address may be of the Service.
    Unknown(String),
    /// The address is not of the Service.
    Elsewhere,
}

impl SeenService {
    /// What of `service` and of its `slices` matters.
    pub fn of(service: &Service, slices: Result<Vec<EndpointSlice>, String>) -> Self {
        let observed = ObservedService::from_service(service);
        let spec = service.spec.clone().unwrap_or_default();
        let ports: Vec<SeenPort> = observed
            .ports
            .into_iter()
            .map(|port| {
                let is_it = |p: &&k8s_openapi::api::core::v1::ServicePort| {
                    p.port == port.port && is(p.protocol.as_deref(), port.protocol)
                };
                let whole = spec.ports.iter().flatten().find(is_it);
                SeenPort {
                    name: whole.and_then(|p| p.name.clone()).unwrap_or_default(),
                    node_port: whole.and_then(|p| p.node_port).filter(|number| *number > 0),
                    port: port.port,
                    protocol: port.protocol,
                    target: port.target,
                }
            })
            .collect();
        let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
        let ingress = balancer.and_then(|balancer| balancer.ingress.as_ref()).into_iter().flatten();
        let outside = spec.external_ips.iter().flatten().chain(ingress.filter_map(|i| i.ip.as_ref()));
        Self {
            selects: !observed.selector.is_empty(),
            // `None` is the address of a Service without one.
            cluster_ips: addresses(spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip)),
            outside: addresses(outside),
            families: spec.ip_families.unwrap_or_default(),
            pods: slices.map(|slices| {
                let own: Vec<_> = slices.into_iter().filter(|slice| is_made_for(slice, service)).collect();
                pods(&ports, service.metadata.namespace.as_deref(), &own)
            }),
            ports,
        }
    }

    /// Whether `address` is its ClusterIP or that of one of its Pods.
    pub(super) fn has(&self, address: IpAddr) -> bool {
        self.cluster_ips.contains(&address)
            || self.pods.as_ref().is_ok_and(|pods| pods.contains_key(&address))
    }

    /// The ports that `rule` opens.
    ///
    /// # Errors
    /// Why the operator refuses the rule: what the Service does not have.
    fn opened(&self, rule: &EgressRule) -> Result<Vec<&SeenPort>, String> {
        if !self.selects {
            return Err("selects no Pods".to_owned());
        }
        let protocol = rule.protocol.unwrap_or_default();
        let port = |wanted: &i32| {
            let found = self.ports.iter().find(|p| p.port == *wanted && p.protocol == protocol);
            found.ok_or_else(|| format!("has no {protocol:?} port {wanted}"))
        };
        rule.ports.iter().map(port).collect()
    }

    /// What `rule`, which names this Service, says of `address` at `port`, in words that follow the Service's name.
    pub(super) fn judge(&self, rule: &EgressRule, address: IpAddr, port: i32) -> Found {
        let opened = match self.opened(rule) {
            Ok(opened) => opened,
            Err(why) if self.has(address) => return Found::Refused(why),
            Err(_) => return Found::Elsewhere,
        };
        if self.cluster_ips.contains(&address) {
            return self.judge_cluster_ip(rule, &opened, port);
        }
        let possible = || opened.iter().any(|p| could_be(&p.target, port));
        match &self.pods {
            Ok(pods) => {
                if let Some(pod) = pods.get(&address) {
                    return pod.judge(&opened, port);
                }
            }
            Err(why) if possible() => {
                return Found::Unknown(format!("; whether this address is one of them is not known: {why}"));
            }
            Err(_) => {}
        }
        let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
        let other_family = !self.families.is_empty() && !self.families.iter().any(|f| f == family);
        if other_family && possible() {
            return Found::Unknown(format!(
                ", which has addresses of {} only; whether this is another one of such a Pod is not known",
                self.families.join(" and ")
            ));
        }
        let outside = self.outside.contains(&address) && opened.iter().any(|p| p.port == port);
        if outside || opened.iter().any(|p| p.node_port == Some(port)) {
            let what = if outside {
                "this is its address outside the cluster"
            } else {
                "this is its port on the nodes, if the address is one of theirs"
            };
            return Found::Unknown(format!(
                "; {what}: whether the policy sees the Pods behind it depends on the network plug-in"
            ));
        }
        Found::Elsewhere
    }

    fn judge_cluster_ip(&self, rule: &EgressRule, opened: &[&SeenPort], port: i32) -> Found {
        let protocol = rule.protocol.unwrap_or_default();
        let Some(asked) = self.ports.iter().find(|p| p.port == port && p.protocol == protocol) else {
            return Found::Closed(format!(
                "; this is its ClusterIP, at which it has no {protocol:?} port {port}, but {}",
                listed(opened.iter().map(|p| p.port.to_string()))
            ));
        };
        let target = shown_target(&asked.target);
        // Another port of the Service may lead to the same one of the Pods.
        let number = |pod: &Pod, port: &SeenPort| pod.ports.iter().find(|(p, _)| p == port).map(|(_, n)| *n);
        let same =
            |pod: &Pod| number(pod, asked).is_some_and(|n| opened.iter().any(|p| number(pod, p) == Some(n)));
        let behind = self.pods.as_ref().ok().filter(|pods| !pods.is_empty());
        let everywhere = behind.is_some_and(|pods| pods.values().all(same));
        let somewhere = behind.is_some_and(|pods| pods.values().any(same));
        if everywhere || opened.iter().any(|p| p.target == asked.target) {
            let idle = self.pods.as_ref().is_ok_and(|pods| !pods.values().any(|pod| pod.ready));
            return Found::Open(
                format!("; this is its ClusterIP, whose port {port} leads to {target} of the Pods"),
                idle.then_some("no Pod of the Service is ready: nobody answers now"),
            );
        }
        if somewhere {
            return Found::Unknown(format!(
                "; this is its ClusterIP, whose port {port} leads to {target} of the Pods, which the rule opens of some of them"
            ));
        }
        Found::Closed(format!(
            "; this is its ClusterIP, whose port {port} leads to {target} of the Pods, which the rule does not open"
        ))
    }

    /// What `rule` opens, for a person: for every port of the Service where it is reached.
    pub(super) fn told(&self, rule: &EgressRule) -> Vec<String> {
        let opened = match self.opened(rule) {
            Ok(opened) => opened,
            Err(why) => return vec![format!("nothing, since the Service {why}")],
        };
        let one = |port: &SeenPort| {
            let ready = |pods: &BTreeMap<IpAddr, Pod>| {
                let own = |pod: &Pod| pod.ports.iter().find(|(p, _)| p == port).map(|(_, number)| *number);
                let ready = pods.iter().filter(|(_, pod)| pod.ready);
                listed(ready.filter_map(|(address, pod)| Some(endpoint(*address, own(pod)?))))
            };
            let pods = match self.pods.as_ref().map(ready) {
                Ok(none) if none.is_empty() => "no Pod is ready now".to_owned(),
                Ok(pods) => format!("Pods {pods}"),
                Err(why) => format!("Pods at {}, by addresses not known: {why}", shown_target(&port.target)),
            };
            let front = listed(self.cluster_ips.iter().map(|address| endpoint(*address, port.port)));
            let front = if front.is_empty() { front } else { format!("ClusterIP {front}, ") };
            format!("{:?} port {} of the Service: {front}{pods}", port.protocol, port.port)
        };
        opened.into_iter().map(one).collect()
    }
}

impl Pod {
    fn judge(&self, opened: &[&SeenPort], port: i32) -> Found {
        let open = || self.ports.iter().filter(|(p, _)| opened.contains(&p));
        if let Some((of_service, _)) = open().find(|(_, number)| *number == port) {
            return Found::Open(
                format!(
                    "; this is one of them, and its port {port} is port {} of the Service",
                    of_service.port
                ),
                (!self.ready).then_some("the Pod is not ready: the Service does not lead to it now"),
            );
        }
        let own = listed(open().map(|(p, number)| format!("{number} (port {} of the Service)", p.port)));
        let own = if own.is_empty() { "none".to_owned() } else { own };
        Found::Closed(format!("; this is one of them, but what counts are the Pod's own ports: {own}"))
    }
}

/// Whether Kubernetes made `slice` for `service`. Others may have the label that it is found by.
fn is_made_for(slice: &EndpointSlice, service: &Service) -> bool {
    let owners = slice.metadata.owner_references.iter().flatten();
    let made_by = slice.metadata.labels.as_ref().and_then(|labels| labels.get(MANAGED_BY));
    made_by.is_some_and(|name| name == CONTROLLER)
        && owners.into_iter().any(|o| o.kind == "Service" && Some(&o.uid) == service.metadata.uid.as_ref())
}

/// The Pods in `slices` that are in `namespace`. Whatever else somebody put there is not the Service's.
fn pods(ports: &[SeenPort], namespace: Option<&str>, slices: &[EndpointSlice]) -> BTreeMap<IpAddr, Pod> {
    let mut found = BTreeMap::<IpAddr, Pod>::new();
    for slice in slices {
        let named = |port: &SeenPort| {
            let mut all = slice.ports.iter().flatten();
            let it = all.find(|p| {
                p.name.as_deref().unwrap_or_default() == port.name && is(p.protocol.as_deref(), port.protocol)
            });
            it.and_then(|p| p.port)
        };
        let numbers = ports.iter().filter_map(|port| match port.target {
            IntOrString::Int(number) => Some((port.clone(), number)),
            IntOrString::String(_) => Some((port.clone(), named(port)?)),
        });
        let numbers: Vec<_> = numbers.collect();
        for endpoint in slice.endpoints.iter().flatten() {
            let is_pod = |target: &ObjectReference| {
                target.kind.as_deref() == Some("Pod") && target.namespace.as_deref() == namespace
            };
            if !endpoint.target_ref.as_ref().is_some_and(is_pod) {
                continue;
            }
            let ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready) != Some(false);
            for address in addresses(&endpoint.addresses) {
                let pod = found.entry(address).or_default();
                pod.ready |= ready;
                pod.ports
                    .extend(numbers.iter().filter(|n| !pod.ports.contains(n)).cloned().collect::<Vec<_>>());
            }
        }
    }
    found
}

fn addresses<'a>(texts: impl IntoIterator<Item = &'a String>) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for address in texts.into_iter().filter_map(|text| text.parse().ok()) {
        if !found.contains(&address) {
            found.push(address);
        }
    }
    found
}

/// Whether `word` of an object is `protocol`. TCP is what it is without one.
fn is(word: Option<&str>, protocol: Protocol) -> bool {
    word.unwrap_or("TCP")
        == match protocol {
            Protocol::TCP => "TCP",
            Protocol::UDP => "UDP",
        }
}

/// Which number a name stands for only a Pod says.
fn could_be(target: &IntOrString, port: i32) -> bool {
    match target {
        IntOrString::Int(number) => *number == port,
        IntOrString::String(_) => true,
    }
}

fn shown_target(target: &IntOrString) -> String {
    match target {
        IntOrString::Int(number) => format!("port {number}"),
        IntOrString::String(name) => format!("the port named {}", crate::policy::shown(name)),
    }
}

fn endpoint(address: IpAddr, port: i32) -> String {
    if address.is_ipv6() { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

/// At most 8 of `all`, and how many more there are.
fn listed(all: impl Iterator<Item = String>) -> String {
    let all: Vec<String> = all.collect();
    let shown = all.iter().take(8).map(String::as_str).collect::<Vec<_>>().join(", ");
    match all.len().saturating_sub(8) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
mod tests;
