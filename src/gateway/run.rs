//! Wiring of the gateway: client, watches, certificate, listener, admin server, shutdown.
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{Stream, StreamExt};
use hickory_resolver::net::NetError;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
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
use super::freshness::Freshness;
use super::identity::Identity;
use super::memory::{self, Memory};
use super::notices;
use super::options::Options;
use super::pods::{Pods, SlimPod};
use super::records::Records;
use super::resolve::Resolver;
use super::sandboxes::{Guarded, Sandboxes};
use super::server::{Server, listen};
use super::sources::Sources;
use super::tokens::{ApiServer, Tokens};
use super::tunnels::Tunnels;
use super::unheard::{self, Unheard};
use super::vetting::Vetting;
use crate::client::{ClientError, client};
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
    /// There is no client of the API server.
    #[error(transparent)]
    Client(#[from] ClientError),
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
    let stop = crate::signals::stop_signal()?;
    futures::pin_mut!(stop);
    let listener = listen(options.listen)?;
    let client = client().await?;
    let certificates = Arc::new(Certificates::new(&options.tls_directory));
    let acceptor = TlsAcceptor::from(certificates.server_config()?);
    let (notices, to_publish) = notices::channel();
    let (drain, draining) = watch::channel(false);
    let context = Arc::new(context(&options, &client, &metrics, notices, draining)?);
    let server = Server {
        context: Arc::clone(&context),
        certificates: Arc::clone(&certificates),
        places: Arc::new(Semaphore::new(context.limits.places)),
        tracker: TaskTracker::new(),
    };
    let tracker = server.tracker.clone();
    // A task, because the runtime's threads take their own tasks without waking another one.
    let serving = tokio::spawn(async move { server.run(listener, acceptor).await });
    let filled = Filled::new(2);
    let around = async {
        tokio::select! {
            () = watches(&options, &client, &context, &filled) => {}
            () = notices::publish(client.clone(), &options.identity, to_publish) => {}
            () = context.canary.keep() => {}
            () = context.memory.keep(Path::new(memory::CONTROL_GROUP)) => {}
            () = context.freshness.keep(&client) => {}
            () = unheard::keep(&context) => {}
            () = attend(&certificates, &filled, &health, &context) => {}
            _ = serving => {}
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
        tracker.close();
        // Requests are refused in this time and not left in the dark: whoever asks goes to another gateway.
        let _ = timeout(options.drain, tracker.wait()).await;
        sandboxes.drain();
        let _ = timeout(LAST, tracker.wait()).await;
        let _ = timeout(LAST, unheard::settle(&context, Instant::now())).await;
        let _ = timeout(LAST, context.records.flush()).await;
    };
    tokio::select! {
        () = end => Ok(()),
        () = &mut around => Err(RunError::Stopped),
        failure = context.records.failed() => Err(RunError::Records(failure)),
    }
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
        sources: Sources::new(limits.rate),
        limits,
        tunnels: Tunnels::new(limits.tunnels),
        memory: Memory::default(),
        resolver: Resolver::new(&options.nameservers, limits.resolve)?,
        vetting: Vetting::new(policy, options.never_dialled()),
        dialer: Dialer::new(limits.dial),
        records: Records::start(&options.identity, std::io::stdout())?,
        unheard: Unheard::default(),
        notices,
        metrics: Arc::clone(metrics),
        freshness: Freshness::new(metrics.stale_since.clone()),
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
                context.freshness.lost();
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Mutex;

    use clap::Parser;
    use http::{Request, Response};
    use kube::client::Body;
    use serde_json::{Value, json};

    use super::super::pods::tests::pod;
    use super::super::rig::pod_name;
    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        options: Options,
    }

    fn options(flags: &[&str]) -> Options {
        Command::parse_from([&["gateway"], flags].concat()).options
    }

    /// Answers each list with what `lists` has for its path; watches stay silent.
    fn api_server(lists: Value, asked: Arc<Mutex<BTreeSet<String>>>) -> Client {
        let service = tower::service_fn(move |request: Request<Body>| {
            let (path, query) =
                (request.uri().path().to_owned(), request.uri().query().unwrap_or("").to_owned());
            let selector = query.split('&').find(|pair| pair.starts_with("labelSelector=")).unwrap_or("");
            asked.lock().unwrap().insert(format!("{} {path} {selector}", request.method()));
            let items = lists[&path].clone();
            async move {
                if query.contains("watch=true") {
                    std::future::pending::<()>().await;
                }
                let list = json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": "7"}, "items": items});
                Ok::<_, std::convert::Infallible>(Response::new(Body::from(
                    serde_json::to_vec(&list).unwrap(),
                )))
            }
        });
        Client::new(service, "default")
    }

    #[tokio::test]
    async fn what_the_gateway_knows_it_has_from_four_watches() {
        let slice = |address: &str| json!([{"metadata": {"name": "x"}, "addressType": "IPv4", "endpoints": [{"addresses": [address]}]}]);
        let sandbox = json!([{
            "apiVersion": "agentsandbox.dev/v1alpha1", "kind": "AgentSandbox",
            "metadata": {"name": "fix", "namespace": "team-a", "uid": "s-1", "generation": 3},
            "spec": {"image": "x", "network": {"egress": [{"host": "a.example", "ports": [443]}]}},
            "status": {"phase": "Running"},
        }]);
        let owner = &pod("", "", "").metadata.owner_references.unwrap()[0];
        let pods = json!([{
            "metadata": {"name": pod_name(), "namespace": "team-a", "uid": "p-1", "ownerReferences": [owner]},
            "spec": {"containers": []}, "status": {"phase": "Running"},
        }]);
        let lists = json!({
            "/apis/agentsandbox.dev/v1alpha1/agentsandboxes": sandbox,
            "/api/v1/pods": pods,
            "/apis/discovery.k8s.io/v1/namespaces/system/endpointslices": slice("10.0.0.9"),
        });
        let asked: Arc<Mutex<BTreeSet<String>>> = Arc::default();
        let client = api_server(lists, Arc::clone(&asked));
        let options = options(&[
            "--own-address=10.0.0.1,fd00::1",
            "--peers=agentsandbox-gateway-peers.system.svc",
            "--canary=agentsandbox-canary.system.svc:8444",
            "--cluster-cidr=10.0.0.0/8",
            "--nameserver=127.0.0.1:5353",
        ]);
        let (notices, _to_publish) = notices::channel();
        let (_drain, draining) = watch::channel(false);
        let context = context(&options, &client, &Arc::default(), notices, draining).unwrap();
        let filled = Filled::new(2);
        let known = async {
            filled.wait().await;
            while context.gateways().len() < 2 || context.canary.endpoints().ready().is_empty() {
                sleep(Duration::from_millis(5)).await;
            }
        };
        let watching = watches(&options, &client, &context, &filled);
        tokio::select! {
            () = watching => panic!("the watches ended"),
            known = timeout(Duration::from_secs(5), known) => known.unwrap(),
        }
        let gateways: Vec<String> = context.gateways().iter().map(ToString::to_string).collect();
        assert_eq!(gateways, ["10.0.0.1:8443", "10.0.0.9:8443"]);
        assert_eq!(context.vetting.vet("10.0.0.9".parse().unwrap()), Err("Operator"));
        assert_eq!(context.vetting.vet("fd00::1".parse().unwrap()), Err("Operator"));
        let sandbox = context.identity.sandboxes.live("s-1").unwrap().sandbox().unwrap();
        assert_eq!((sandbox.generation, sandbox.policy.as_ref().unwrap().allowed_hosts().len()), (3, 1));
        assert_eq!(context.identity.pods.find("team-a", &pod_name()).unwrap().uid, "p-1");
        let asked = asked.lock().unwrap().clone();
        for expected in [
            "GET /api/v1/pods labelSelector=app.kubernetes.io%2Fmanaged-by%3Dagentsandbox",
            "GET /apis/agentsandbox.dev/v1alpha1/agentsandboxes ",
            "GET /apis/discovery.k8s.io/v1/namespaces/system/endpointslices labelSelector=kubernetes.io%2Fservice-name%3Dagentsandbox-canary",
            "GET /apis/discovery.k8s.io/v1/namespaces/system/endpointslices labelSelector=kubernetes.io%2Fservice-name%3Dagentsandbox-gateway-peers",
        ] {
            assert!(asked.contains(expected), "{expected} in {asked:?}");
        }
    }

    #[test]
    fn flags_are_checked_at_the_start() {
        for (text, good) in [("a.b.svc", true), ("a.b", false)] {
            assert_eq!(service(Some(&text.to_owned()), 1).is_ok(), good, "{text}");
        }
        assert_eq!(options(&["--drain=5s"]).drain, Duration::from_secs(5));
        assert_eq!(options(&["--idle-timeout=1m"]).limits().half_idle, Duration::from_mins(1));
    }
}
