//! Wiring of the gateway: client, watches, certificate, listener, admin server, shutdown.
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use hickory_resolver::net::NetError;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Config};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::task::TaskTracker;

use super::canary::Canary;
use super::certificate::Certificates;
use super::context::Context;
use super::dial::Dialer;
use super::endpoints::{Endpoints, ServiceName};
use super::identity::Identity;
use super::notices;
use super::options::Options;
use super::pods::{Pods, SlimPod};
use super::records::Records;
use super::resolve::Resolver;
use super::sandboxes::{Guarded, Sandboxes};
use super::server::Server;
use super::sources::Sources;
use super::tokens::{ApiServer, Tokens};
use super::vetting::Vetting;
use crate::controller::Filled;
use crate::egress::wire::{CANARY_PORT, GATEWAY_PORT};
use crate::plan::labels;
use crate::policy::AddressPolicy;
use crate::telemetry::{self, GatewayMetrics, Health};

/// Time between two looks at the certificate's files, and at whether it is still valid.
const LOOK: Duration = Duration::from_secs(5);

/// Time for connections to end after they are cut off.
const LAST: Duration = Duration::from_secs(2);

/// Why the gateway could not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The logs could not be set up.
    #[error(transparent)]
    Logging(#[from] telemetry::LoggingError),
    /// There is no cluster to talk to.
    #[error("no configuration for a cluster was found: {0}")]
    Config(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The client could not be made.
    #[error("the API server cannot be used: {0}")]
    Client(#[from] Box<kube::Error>),
    /// A listener or a signal handler could not be set up.
    #[error("the process could not be set up: {0}")]
    Io(#[from] std::io::Error),
    /// The resolver could not be made.
    #[error("names cannot be resolved: {0}")]
    Resolver(#[from] NetError),
    /// TLS could not be set up.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] tokio_rustls::rustls::Error),
    /// A flag has no value of its kind.
    #[error("{0}")]
    Flag(String),
    /// A record could not be written.
    #[error("the records cannot be written, and nothing may pass unrecorded: {0}")]
    Records(String),
    /// The watches or the listener ended.
    #[error("the gateway stopped by itself")]
    Stopped,
}

/// Runs the gateway until SIGTERM or SIGINT.
pub async fn run(options: Options) -> Result<(), RunError> {
    let level = telemetry::init(options.log_format, &options.log_level)?;
    let (health, metrics) = (Health::default(), Arc::new(GatewayMetrics::default()));
    let admin = TcpListener::bind(options.admin_address).await?;
    tokio::spawn(telemetry::serve(admin, health.clone(), Arc::<GatewayMetrics>::clone(&metrics), level));
    let stop = stop_signal()?;
    futures::pin_mut!(stop);
    let listener = TcpListener::bind(options.listen).await?;
    let client = client().await?;
    let certificates = Arc::new(Certificates::new(&options.tls_directory));
    let acceptor = TlsAcceptor::from(certificates.server_config()?);
    let (notices, to_publish) = notices::channel();
    let (drain, draining) = watch::channel(false);
    let context = Arc::new(context(&options, &client, &metrics, notices, draining)?);
    let server = Server {
        context: Arc::clone(&context),
        certificates: Arc::clone(&certificates),
        places: Arc::new(Semaphore::new(options.max_connections)),
        tracker: TaskTracker::new(),
    };
    let filled = Filled::new(2);
    let around = async {
        tokio::select! {
            () = watches(&options, &client, &context, &filled) => {}
            () = notices::publish(client.clone(), &options.identity, to_publish) => {}
            () = context.canary.keep() => {}
            () = attend(&certificates, &filled, &health, &context) => {}
            () = server.run(listener, acceptor) => {}
        }
    };
    futures::pin_mut!(around);
    tokio::select! {
        () = &mut stop => {}
        () = &mut around => return Err(RunError::Stopped),
        failure = context.records.failed() => return Err(RunError::Records(failure)),
    }
    tracing::info!("draining");
    drain.send_replace(true);
    health.set_ready(false);
    let sandboxes = &context.identity.sandboxes;
    let end = async {
        sandboxes.drain_streams();
        server.tracker.close();
        // Requests are refused in this time and not left in the dark: whoever asks goes to another gateway.
        let _ = timeout(options.drain, server.tracker.wait()).await;
        sandboxes.drain();
        let _ = timeout(LAST, server.tracker.wait()).await;
        let _ = timeout(LAST, context.records.flush()).await;
    };
    tokio::select! {
        () = end => Ok(()),
        () = &mut around => Err(RunError::Stopped),
        failure = context.records.failed() => Err(RunError::Records(failure)),
    }
}

async fn client() -> Result<Client, RunError> {
    let mut config = Config::infer().await.map_err(|error| RunError::Config(Box::new(error)))?;
    // Tries of one call hide in it; whoever asked tries again.
    config.default_retry = false;
    config.connect_timeout = Some(Duration::from_secs(5));
    Ok(Client::try_from(config).map_err(Box::new)?)
}

/// Ready when the process is asked to stop.
fn stop_signal() -> std::io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
    })
}

fn service(text: Option<&String>, port: u16) -> Result<Option<ServiceName>, RunError> {
    text.map(|text| ServiceName::parse(text, port)).transpose().map_err(RunError::Flag)
}

fn context(
    options: &Options,
    client: &Client,
    metrics: &Arc<GatewayMetrics>,
    notices: notices::Notices,
    draining: watch::Receiver<bool>,
) -> Result<Context, RunError> {
    let limits = options.limits();
    let peers = service(options.peers.as_ref(), GATEWAY_PORT)?;
    let canary = service(options.canary.as_ref(), CANARY_PORT)?;
    let own = options.own_addresses.first().map(|ip| SocketAddr::new(*ip, options.listen.port()));
    let policy =
        AddressPolicy { cluster: options.cluster_cidrs.clone(), reachable: options.reachable_cidrs.clone() };
    let canaries = Endpoints::new(canary.as_ref().map_or(CANARY_PORT, |canary| canary.port));
    Ok(Context {
        identity: Identity {
            tokens: Tokens::new(Arc::new(ApiServer(client.clone())), Arc::clone(metrics)),
            pods: Arc::new(Pods::default()),
            sandboxes: Arc::new(Sandboxes::new(limits)),
        },
        sources: Sources::default(),
        limits,
        resolver: Resolver::new(&options.nameservers, limits.resolve)?,
        vetting: Vetting::new(policy, options.never_dialled()),
        dialer: Dialer::new(limits.dial),
        records: Records::start(&options.identity, std::io::stdout())?,
        notices,
        metrics: Arc::clone(metrics),
        own,
        peers: Arc::new(Endpoints::new(peers.as_ref().map_or(GATEWAY_PORT, |peers| peers.port))),
        canary: Arc::new(Canary::new(Arc::new(canaries))),
        draining,
    })
}

/// Keeps what is known of the cluster. The last state stays while the API server is away.
async fn watches(options: &Options, client: &Client, context: &Context, filled: &Filled) {
    let identity = &context.identity;
    let ours = watcher::Config::default().labels(labels::WATCH_SELECTOR);
    let pods = follow(
        filled.count(watcher(Api::<SlimPod>::all(client.clone()), ours).default_backoff()),
        context,
        |event| {
            for gone in identity.pods.take(event) {
                identity.sandboxes.pod_gone(&gone.sandbox_uid, &gone.pod_uid);
            }
        },
    );
    let all = watcher(Api::<Guarded>::all(client.clone()), watcher::Config::default());
    let sandboxes = follow(filled.count(all.default_backoff()), context, |event| {
        identity.sandboxes.take(event);
        context.metrics.sandboxes.set(i64::try_from(identity.sandboxes.len()).unwrap_or(i64::MAX));
    });
    let vet = || {
        let peers = context.peers.addresses().into_iter().chain(context.canary.endpoints().addresses());
        context.vetting.set_peers(peers);
    };
    let peers = slices(client, options.peers.as_ref(), context, |event| {
        context.peers.take(event);
        vet();
    });
    let canaries = slices(client, options.canary.as_ref(), context, |event| {
        context.canary.endpoints().take(event);
        vet();
    });
    tokio::join!(pods, sandboxes, peers, canaries);
}

async fn slices(
    client: &Client,
    name: Option<&String>,
    context: &Context,
    take: impl FnMut(watcher::Event<EndpointSlice>),
) {
    // Without a Service there is nothing to follow; the flag was checked before.
    let Ok(Some(service)) = service(name, 0) else { return std::future::pending().await };
    let api = Api::<EndpointSlice>::namespaced(client.clone(), &service.namespace);
    let config = watcher::Config::default().labels(&service.selector());
    follow(watcher(api, config).default_backoff(), context, take).await;
}

async fn follow<K>(
    events: impl Stream<Item = watcher::Result<watcher::Event<K>>>,
    context: &Context,
    mut take: impl FnMut(watcher::Event<K>),
) {
    futures::pin_mut!(events);
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => take(event),
            Err(error) => {
                context.metrics.watch_errors.inc();
                tracing::warn!(%error, "a watch failed; it is set up again, and the last state stays");
            }
        }
    }
}

/// Looks after the certificate, and says whether the gateway is ready.
async fn attend(certificates: &Certificates, filled: &Filled, health: &Health, context: &Context) {
    let mut is_filled = false;
    loop {
        match certificates.reload() {
            Ok(true) => tracing::info!("the certificate was read"),
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "the certificate was not read"),
        }
        let valid = certificates.valid_for();
        let seconds = valid.map_or(0, |valid| i64::try_from(valid.as_secs()).unwrap_or(i64::MAX));
        context.metrics.certificate_seconds.set(seconds);
        health.set_ready(is_filled && valid.is_some() && !context.is_draining());
        if is_filled {
            sleep(LOOK).await;
        } else {
            is_filled = timeout(LOOK, filled.wait()).await.is_ok();
        }
    }
}
