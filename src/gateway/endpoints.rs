//! The Pods behind a headless Service, from its EndpointSlices: a cluster need not have a DNS.
use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::{Mutex, PoisonError, RwLock};

use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt;
use kube::runtime::watcher::Event;

/// Most endpoints that are kept.
const MAX_ENDPOINTS: usize = 256;

/// A Service as its DNS name `NAME.NAMESPACE.svc`, with or without a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceName {
    /// Name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// Port of its Pods.
    pub port: u16,
}

impl ServiceName {
    /// Reads `NAME.NAMESPACE.svc[:PORT]`; without a port it is `port`.
    pub fn parse(text: &str, port: u16) -> Result<Self, String> {
        let bad = || format!("`{text}` is not NAME.NAMESPACE.svc, with or without a port");
        let (host, port) = match text.split_once(':') {
            Some((host, port)) => (host, u16::from_str(port).map_err(|_| bad())?),
            None => (text, port),
        };
        let mut labels = host.split('.');
        match (labels.next(), labels.next(), labels.next()) {
            (Some(name), Some(namespace), Some("svc")) if !name.is_empty() && !namespace.is_empty() => {
                Ok(Self { name: name.to_owned(), namespace: namespace.to_owned(), port })
            }
            _ => Err(bad()),
        }
    }

    /// Selects its slices.
    pub fn selector(&self) -> String {
        format!("kubernetes.io/service-name={}", self.name)
    }
}

/// The Pods behind a Service.
#[derive(Debug)]
pub struct Endpoints {
    port: u16,
    slices: RwLock<HashMap<String, Slice>>,
    listed: Mutex<Option<HashSet<String>>>,
}

#[derive(Debug, Default)]
struct Slice {
    ready: Vec<SocketAddr>,
    all: Vec<IpAddr>,
}

impl Endpoints {
    /// None yet; their port is `port`.
    pub fn new(port: u16) -> Self {
        Self { port, slices: RwLock::default(), listed: Mutex::default() }
    }

    /// Takes an event of the watch.
    pub fn take(&self, event: Event<EndpointSlice>) {
        let mut listed = self.listed.lock().unwrap_or_else(PoisonError::into_inner);
        let mut slices = self.slices.write().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Init => *listed = Some(HashSet::new()),
            Event::InitApply(slice) | Event::Apply(slice) => {
                if let Some(listed) = listed.as_mut() {
                    listed.insert(slice.name_any());
                }
                slices.insert(slice.name_any(), self.read(&slice));
            }
            Event::InitDone => {
                let listed = listed.take().unwrap_or_default();
                slices.retain(|name, _| listed.contains(name));
            }
            Event::Delete(slice) => {
                slices.remove(&slice.name_any());
            }
        }
    }

    fn read(&self, slice: &EndpointSlice) -> Slice {
        let mut read = Slice::default();
        for endpoint in slice.endpoints.iter().flatten().take(MAX_ENDPOINTS) {
            let addresses = endpoint.addresses.iter().filter_map(|address| address.parse::<IpAddr>().ok());
            read.all.extend(addresses.clone());
            let ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready) != Some(false);
            if ready {
                read.ready.extend(addresses.map(|ip| SocketAddr::new(ip, self.port)));
            }
        }
        read
    }

    /// Those that are ready, in order.
    pub fn ready(&self) -> Vec<SocketAddr> {
        let slices = self.slices.read().unwrap_or_else(PoisonError::into_inner);
        let ready: BTreeSet<SocketAddr> =
            slices.values().flat_map(|slice| slice.ready.iter().copied()).collect();
        ready.into_iter().take(MAX_ENDPOINTS).collect()
    }

    /// Addresses of all, ready or not.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let slices = self.slices.read().unwrap_or_else(PoisonError::into_inner);
        slices.values().flat_map(|slice| slice.all.iter().copied()).collect()
    }
}

#[cfg(test)]
pub mod tests {
    use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions};
    use kube::api::ObjectMeta;

    use super::*;

    /// A slice of these addresses.
    pub fn slice(name: &str, addresses: &[(&str, Option<bool>)]) -> EndpointSlice {
        let endpoint = |(address, ready): &(&str, Option<bool>)| Endpoint {
            addresses: vec![(*address).to_owned()],
            conditions: Some(EndpointConditions { ready: *ready, ..EndpointConditions::default() }),
            ..Endpoint::default()
        };
        EndpointSlice {
            metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
            address_type: "IPv4".to_owned(),
            endpoints: Some(addresses.iter().map(endpoint).collect()),
            ports: None,
        }
    }

    #[test]
    fn slices_are_one_list_of_those_that_are_ready() {
        let endpoints = Endpoints::new(8443);
        endpoints.take(Event::Apply(slice("a", &[("10.0.0.2", Some(true)), ("10.0.0.3", Some(false))])));
        endpoints.take(Event::Apply(slice("b", &[("10.0.0.1", None), ("10.0.0.2", Some(true))])));
        let ready: Vec<String> = endpoints.ready().iter().map(ToString::to_string).collect();
        assert_eq!(ready, ["10.0.0.1:8443", "10.0.0.2:8443"]);
        assert_eq!(endpoints.addresses().len(), 4);
        endpoints.take(Event::Init);
        endpoints.take(Event::InitApply(slice("b", &[("10.0.0.4", None)])));
        endpoints.take(Event::InitDone);
        assert_eq!(endpoints.ready(), ["10.0.0.4:8443".parse().unwrap()]);
        endpoints.take(Event::Delete(slice("b", &[])));
        assert!(endpoints.ready().is_empty());
    }

    #[test]
    fn services_have_a_name_and_a_namespace() {
        let service = ServiceName::parse("agentsandbox-canary.system.svc:8444", 1).unwrap();
        assert_eq!(
            service,
            ServiceName { name: "agentsandbox-canary".into(), namespace: "system".into(), port: 8444 }
        );
        assert_eq!(ServiceName::parse("a.b.svc.cluster.local", 7).unwrap().port, 7);
        for bad in ["", "a", "a.b", "a.b.c", ".b.svc", "a.b.svc:x"] {
            assert!(ServiceName::parse(bad, 1).is_err(), "{bad}");
        }
    }
}
