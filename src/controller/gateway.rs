//! Finds the egress gateway: its Service, its certificates, and what a start gate must find closed. A sandbox's Pod
//! carries all of it, so none is made before it is known.
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt, stream};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::jiff::Timestamp;
use kube::{Api, Client};
use tokio::sync::watch;

use super::certificates::{Certificates, InForce};
use super::error::{Doing, Error};
use crate::plan::{GatewayReach, GatewaySettings, METADATA, Settings};
use crate::telemetry::Metrics;

/// Time between two looks.
const PERIOD: Duration = Duration::from_secs(60);
/// Time between two looks while something is missing.
const IMPATIENCE: Duration = Duration::from_secs(5);
/// Longest time of one look.
const LIMIT: Duration = Duration::from_secs(20);
/// The API server's Service: namespace and name.
const API_SERVER: (&str, &str) = ("default", "kubernetes");
/// Port of every DNS server.
const DNS_PORT: u16 = 53;

/// What is looked for, and where.
pub struct Finder {
    /// Client.
    pub client: Client,
    /// The operator's own namespace.
    pub namespace: String,
    /// Name of the gateway's Service.
    pub service: String,
    /// Name in the gateway's certificate.
    pub server_name: String,
    /// Keeper of the certificates.
    pub certificates: Certificates,
    /// The cluster's DNS, if it is not the one of [`Finder::resolv_conf`].
    pub dns: Option<SocketAddr>,
    /// Where the process's own DNS servers are listed.
    pub resolv_conf: PathBuf,
    /// Metrics.
    pub metrics: Arc<Metrics>,
}

/// What was found, with the key that comes from the certificates, or what is missing.
type Found = Result<(GatewayReach, [u8; 32]), String>;

impl Finder {
    /// Looks for the gateway for ever and keeps `settings` up to date. Tells `looked` after the first time, whatever
    /// came of it.
    pub async fn keep(self, settings: watch::Sender<Arc<Settings>>, looked: impl FnOnce()) {
        let mut looked = Some(looked);
        loop {
            let found = tokio::time::timeout(LIMIT, self.look()).await.unwrap_or(Err(Error::TimedOut(LIMIT)));
            let known = match found {
                Ok(Ok((reach, key))) => {
                    publish(&settings, Some(reach), Some(key));
                    true
                }
                Ok(Err(missing)) => {
                    tracing::warn!(missing, "no sandbox can start: the egress gateway is not there");
                    publish(&settings, None, None);
                    false
                }
                // What was found before may still be there: only a clear answer takes it away.
                Err(error) => {
                    tracing::warn!(%error, "the egress gateway could not be looked for; trying again");
                    false
                }
            };
            if let Some(looked) = looked.take() {
                looked();
            }
            tokio::time::sleep(if known { PERIOD } else { IMPATIENCE }).await;
        }
    }

    async fn look(&self) -> Result<Found, Error> {
        // First: the gateway's Pods wait for their certificate.
        let InForce { bundle, directory_key, authority_until, leaf_until } =
            self.certificates.ensure(Timestamp::now()).await?;
        self.metrics.certificate_ends("authority", authority_until);
        self.metrics.certificate_ends("gateway", leaf_until);
        let (namespace, name) = API_SERVER;
        let (Some(address), Some(api_server)) =
            (self.cluster_ip(&self.namespace, &self.service).await?, self.cluster_ip(namespace, name).await?)
        else {
            return Ok(Err(format!(
                "the Service {}/{} or {namespace}/{name} does not exist or has no cluster IP",
                self.namespace, self.service
            )));
        };
        // A process without a list of DNS servers is in a cluster without DNS.
        let listed = tokio::fs::read_to_string(&self.resolv_conf).await.unwrap_or_default();
        let reach = GatewayReach {
            address,
            server_name: self.server_name.clone(),
            authorities: bundle,
            api_server,
            dns: self.dns.or_else(|| nameserver(&listed)),
            metadata: METADATA,
        };
        Ok(Ok((reach, directory_key)))
    }

    async fn cluster_ip(&self, namespace: &str, name: &str) -> Result<Option<SocketAddr>, Error> {
        let services: Api<Service> = Api::namespaced(self.client.clone(), namespace);
        Ok(services
            .get_opt(name)
            .await
            .doing("read a Service of the cluster's")?
            .as_ref()
            .and_then(cluster_ip))
    }
}

fn publish(settings: &watch::Sender<Arc<Settings>>, reach: Option<GatewayReach>, key: Option<[u8; 32]>) {
    settings.send_if_modified(|settings| {
        let directory_key = key.unwrap_or(settings.directory_key);
        let changed =
            |gateway: &&GatewaySettings| gateway.reach != reach || directory_key != settings.directory_key;
        let Some(gateway) = settings.gateway.as_ref().filter(changed) else { return false };
        let gateway = Some(GatewaySettings { reach, ..gateway.clone() });
        *settings = Arc::new(Settings { gateway, directory_key, ..settings.as_ref().clone() });
        true
    });
}

/// An item whenever the gateway was missing and is found: sandboxes wait for it.
pub fn arrivals(settings: watch::Receiver<Arc<Settings>>) -> impl Stream<Item = ()> + Send {
    let known =
        |settings: &Settings| settings.gateway.as_ref().is_some_and(|gateway| gateway.reach.is_some());
    let changes = stream::unfold((settings, false), move |(mut settings, before)| async move {
        settings.changed().await.ok()?;
        let now = known(&settings.borrow_and_update());
        Some(((now && !before).then_some(()), (settings, now)))
    });
    changes.filter_map(std::future::ready)
}

/// Cluster IP of `service` and its first TCP port.
fn cluster_ip(service: &Service) -> Option<SocketAddr> {
    let spec = service.spec.as_ref()?;
    let address: IpAddr = spec.cluster_ip.as_deref()?.parse().ok()?;
    let tcp = |protocol: &Option<String>| protocol.as_deref().is_none_or(|protocol| protocol == "TCP");
    let port = spec.ports.iter().flatten().find(|port| tcp(&port.protocol))?.port;
    Some(SocketAddr::new(address, u16::try_from(port).ok()?))
}

/// The first DNS server that a `resolv.conf` lists and that is not the machine itself.
fn nameserver(resolv_conf: &str) -> Option<SocketAddr> {
    let mut listed = resolv_conf.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()?.parse::<IpAddr>().ok())?
    });
    let address = listed.find(|address| !address.is_loopback() && !address.is_unspecified())?;
    Some(SocketAddr::new(address, DNS_PORT))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_service_is_reached_at_its_cluster_ip_and_first_tcp_port() {
        for (spec, want) in [
            (json!({"clusterIP": "10.96.0.20", "ports": [{"port": 8443}]}), Some("10.96.0.20:8443")),
            (
                json!({"clusterIP": "fd00::1", "ports": [{"port": 53, "protocol": "UDP"}, {"port": 443, "protocol": "TCP"}]}),
                Some("[fd00::1]:443"),
            ),
            (json!({"clusterIP": "None", "ports": [{"port": 8443}]}), None),
            (json!({"clusterIP": "", "ports": [{"port": 8443}]}), None),
            (json!({"clusterIP": "10.96.0.20", "ports": []}), None),
            (json!({"clusterIP": "10.96.0.20", "ports": [{"port": 70000}]}), None),
            (json!({"type": "ExternalName", "externalName": "x"}), None),
        ] {
            let service: Service = serde_json::from_value(json!({"spec": spec})).unwrap();
            assert_eq!(cluster_ip(&service).map(|a| a.to_string()).as_deref(), want, "{spec}");
        }
    }

    #[test]
    fn the_clusters_dns_is_the_first_that_is_not_loopback() {
        for (text, want) in [
            (
                "search a.svc\nnameserver 10.96.0.10\nnameserver 10.96.0.11\noptions ndots:5\n",
                Some("10.96.0.10:53"),
            ),
            ("nameserver 127.0.0.53\nnameserver\t169.254.20.10\n", Some("169.254.20.10:53")),
            ("nameserver fd00::a\n", Some("[fd00::a]:53")),
            ("nameserver 127.0.0.1\nnameserver ::1\nnameserver 0.0.0.0\n", None),
            ("# nameserver 10.0.0.1\nnameserver\nnameserver x\nnameservers 10.0.0.1\n", None),
            ("", None),
        ] {
            assert_eq!(nameserver(text).map(|a| a.to_string()).as_deref(), want, "{text}");
        }
    }

    #[tokio::test]
    async fn an_arrival_is_told_once() {
        let gateway = GatewaySettings { namespace: "n".into(), reachable_cidrs: Vec::new(), reach: None };
        let (sender, receiver) =
            watch::channel(Arc::new(Settings { gateway: Some(gateway), ..Settings::default() }));
        let reach = |bundle: &str| GatewayReach {
            address: "10.96.0.20:8443".parse().unwrap(),
            server_name: "s".into(),
            authorities: bundle.into(),
            api_server: "10.96.0.1:443".parse().unwrap(),
            dns: None,
            metadata: METADATA,
        };
        let arrivals = arrivals(receiver.clone());
        futures::pin_mut!(arrivals);
        let mut told = Vec::new();
        for step in [None, Some("a"), Some("a"), Some("b"), None, Some("b")] {
            publish(&sender, step.map(reach), step.map(|_| [7; 32]));
            let next = tokio::time::timeout(Duration::from_millis(20), arrivals.next()).await;
            told.push(next.is_ok());
        }
        assert_eq!(told, [false, true, false, false, false, true]);
        let settings = receiver.borrow().clone();
        assert_eq!(settings.gateway.as_ref().unwrap().reach, Some(reach("b")));
        assert_eq!(settings.directory_key, [7; 32]);
    }
}
