//! Flags of `agentsandbox gateway`.
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;

use super::limits::Limits;
use crate::telemetry::LogFormat;

/// Flags of `agentsandbox gateway`.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Address on which sandboxes are served.
    #[arg(long, env = "AGENTSANDBOX_LISTEN", default_value = "0.0.0.0:8443")]
    pub listen: SocketAddr,
    /// Address of /healthz, /readyz and /metrics.
    #[arg(long, env = "AGENTSANDBOX_ADMIN_ADDRESS", default_value = "0.0.0.0:8080")]
    pub admin_address: SocketAddr,
    /// Directory with tls.crt and tls.key; read again when they change.
    #[arg(long, env = "AGENTSANDBOX_TLS_DIRECTORY", default_value = "/tls")]
    pub tls_directory: PathBuf,
    /// Network of the cluster itself: its Pods, Services and nodes. No name may lead there. May be repeated.
    #[arg(long = "cluster-cidr", env = "AGENTSANDBOX_CLUSTER_CIDRS", value_delimiter = ',')]
    pub cluster_cidrs: Vec<IpNet>,
    /// Network that names may lead to although it is not global. May be repeated.
    #[arg(long = "reachable-cidr", env = "AGENTSANDBOX_REACHABLE_CIDRS", value_delimiter = ',')]
    pub reachable_cidrs: Vec<IpNet>,
    /// Name server, as ip:port. May be repeated; without it those of /etc/resolv.conf.
    #[arg(long = "nameserver", env = "AGENTSANDBOX_NAMESERVERS", value_delimiter = ',')]
    pub nameservers: Vec<SocketAddr>,
    /// Headless Service of the gateways, such as agentsandbox-gateway-peers.agentsandbox-system.svc.
    #[arg(long, env = "AGENTSANDBOX_PEERS")]
    pub peers: Option<String>,
    /// Headless Service of the canary, such as agentsandbox-canary.agentsandbox-system.svc:8444.
    #[arg(long, env = "AGENTSANDBOX_CANARY")]
    pub canary: Option<String>,
    /// Address of this Pod. Sandboxes are told the first; none of them is ever dialled. May be repeated.
    #[arg(long = "own-address", env = "AGENTSANDBOX_OWN_ADDRESSES", value_delimiter = ',')]
    pub own_addresses: Vec<IpAddr>,
    /// Further address that is never dialled: the gateway's Service, the API server's. May be repeated.
    #[arg(long = "refused-address", env = "AGENTSANDBOX_REFUSED_ADDRESSES", value_delimiter = ',')]
    pub refused_addresses: Vec<IpAddr>,
    /// The API server's Service, as every Pod is told; never dialled.
    #[arg(long, env = "KUBERNETES_SERVICE_HOST", hide = true)]
    pub api_server: Option<IpAddr>,
    /// The gateway's Service, as its Pods are told; never dialled.
    #[arg(long, env = "AGENTSANDBOX_GATEWAY_SERVICE_HOST", hide = true)]
    pub service: Option<IpAddr>,
    /// Time that open connections have after SIGTERM.
    #[arg(long, env = "AGENTSANDBOX_DRAIN", default_value = "30s", value_parser = duration)]
    pub drain: Duration,
    /// Connections in all.
    #[arg(long, env = "AGENTSANDBOX_MAX_CONNECTIONS", default_value_t = 20_000)]
    pub max_connections: usize,
    /// Of those, connections to servers: waiting sidecars cost little, and connections that move bytes much.
    #[arg(long, env = "AGENTSANDBOX_MAX_TUNNELS", default_value_t = 4000)]
    pub max_tunnels: usize,
    /// Connections of one sandbox at a time.
    #[arg(long, env = "AGENTSANDBOX_SANDBOX_CONNECTIONS", default_value_t = 256)]
    pub sandbox_connections: usize,
    /// New connections of one sandbox a second.
    #[arg(long, env = "AGENTSANDBOX_SANDBOX_RATE", default_value_t = 50)]
    pub sandbox_rate: u32,
    /// Time for the head of a request or a TLS hello.
    #[arg(long, env = "AGENTSANDBOX_HEADER_TIMEOUT", default_value = "5s", value_parser = duration)]
    pub header_timeout: Duration,
    /// Time without a byte after which a connection is closed.
    #[arg(long, env = "AGENTSANDBOX_IDLE_TIMEOUT", default_value = "15m", value_parser = duration)]
    pub idle_timeout: Duration,
    /// Name of this process in records and events.
    #[arg(long, env = "POD_NAME", default_value = "gateway")]
    pub identity: String,
    /// Form of the logs.
    #[arg(long, env = "AGENTSANDBOX_LOG_FORMAT", value_enum, default_value = "json")]
    pub log_format: LogFormat,
    /// Level of the logs, such as info or agentsandbox=debug,info.
    #[arg(long, env = "AGENTSANDBOX_LOG_LEVEL", default_value = "info")]
    pub log_level: String,
}

impl Options {
    /// What one sandbox may use.
    pub fn limits(&self) -> Limits {
        Limits {
            places: self.max_connections,
            tunnels: self.max_tunnels,
            connections: self.sandbox_connections,
            rate: self.sandbox_rate,
            head: self.header_timeout,
            idle: self.idle_timeout,
            half_idle: self.idle_timeout.min(Limits::default().half_idle),
            ..Limits::default()
        }
    }

    /// Addresses that are never dialled.
    pub fn never_dialled(&self) -> impl Iterator<Item = IpAddr> {
        let own = self.own_addresses.iter().chain(&self.refused_addresses).copied();
        own.chain(self.api_server).chain(self.service)
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    crate::api::v1alpha1::GoDuration::from_text(text).parse().map_err(|error| error.to_string())
}
