//! Wiring of the controller: client, lease, watches, admin server, shutdown.
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use ipnet::IpNet;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::ObjectMeta;
use kube::runtime::controller::{self, Controller};
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::reflector::{ObjectRef, Store, store};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource};
use tokio::sync::{Notify, watch};

use super::backoff::Backoff;
use super::canary;
use super::certificates::Certificates;
use super::context::{Context, Guarded, Identity, Memory};
use super::crash::Crash;
use super::filled::Filled;
use super::gateway::{Finder, arrivals};
use super::lease::{Elector, Fence};
use super::looks::Looks;
use super::pod::SlimPod;
use super::reconcile::{on_error, reconcile};
use super::release::release;
use crate::api::v1alpha1::AgentSandbox;
use crate::audit::ControlPlaneLog;
use crate::client::{ClientError, client};
use crate::plan::{GatewaySettings, Settings, gateway_name, labels};
use crate::telemetry::{self, Health, LogFormat, Metrics};

const CONTROLLER: &str = "agentsandbox-controller";

/// Flags of `agentsandbox controller`.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// The operator's own image, best pinned by digest; it also holds sandbox-init and the sidecar.
    #[arg(long, env = "AGENTSANDBOX_IMAGE")]
    pub image: String,
    /// Pull policy of the operator's image in sandbox Pods.
    #[arg(long, env = "AGENTSANDBOX_IMAGE_PULL_POLICY", default_value = "IfNotPresent")]
    pub image_pull_policy: String,
    /// Time between SIGTERM and SIGKILL, such as 10s.
    #[arg(long, env = "AGENTSANDBOX_GRACE", default_value = "10s", value_parser = duration)]
    pub grace: Duration,
    /// Network that no cidr rule may open: the cluster's Pods, Services and nodes. May be repeated.
    #[arg(long = "reserved-cidr", env = "AGENTSANDBOX_RESERVED_CIDRS", value_delimiter = ',')]
    pub reserved_cidrs: Vec<IpNet>,
    /// Whether the nodes can run Pods in user namespaces.
    #[arg(long, env = "AGENTSANDBOX_USER_NAMESPACES", default_value_t = false, action = clap::ArgAction::Set)]
    pub user_namespaces: bool,
    /// Runtime class that a sandbox may ask for; any without one. May be repeated.
    #[arg(long = "runtime-class", env = "AGENTSANDBOX_RUNTIME_CLASSES", value_delimiter = ',')]
    pub runtime_classes: Vec<String>,
    /// Address of /healthz, /readyz and /metrics.
    #[arg(long, env = "AGENTSANDBOX_ADMIN_ADDRESS", default_value = "0.0.0.0:8080")]
    pub admin_address: SocketAddr,
    /// Address of the canary, which every Pod but a sandbox's must be able to reach.
    #[arg(long, env = "AGENTSANDBOX_CANARY_ADDRESS", default_value = "0.0.0.0:8444")]
    pub canary_address: SocketAddr,
    /// Name of the egress gateway's Service, in this process's own namespace.
    #[arg(long, env = "AGENTSANDBOX_GATEWAY_SERVICE", default_value = "agentsandbox-gateway")]
    pub gateway_service: String,
    /// Network that names may resolve to though the gateway refuses it by itself; shown in status. May be repeated.
    #[arg(long = "reachable-cidr", env = "AGENTSANDBOX_REACHABLE_CIDRS", value_delimiter = ',')]
    pub reachable_cidrs: Vec<IpNet>,
    /// Address and port of the cluster's DNS, which a sandbox must not reach; without it the first server that
    /// /etc/resolv.conf lists.
    #[arg(long, env = "AGENTSANDBOX_CLUSTER_DNS")]
    pub cluster_dns: Option<SocketAddr>,
    /// Form of the logs.
    #[arg(long, env = "AGENTSANDBOX_LOG_FORMAT", value_enum, default_value = "json")]
    pub log_format: LogFormat,
    /// Level of the logs, such as info or agentsandbox=debug,info.
    #[arg(long, env = "AGENTSANDBOX_LOG_LEVEL", default_value = "info")]
    pub log_level: String,
    /// Name of the Lease.
    #[arg(long, env = "AGENTSANDBOX_LEASE_NAME", default_value = CONTROLLER)]
    pub lease_name: String,
    /// Namespace of the Lease.
    #[arg(long, env = "POD_NAMESPACE", default_value = "agentsandbox-system")]
    pub namespace: String,
    /// Name of this process in the Lease; must differ between replicas.
    #[arg(long, env = "POD_NAME")]
    pub identity: String,
    /// `PriorityClass` of sandbox Pods.
    #[arg(long, env = "AGENTSANDBOX_PRIORITY_CLASS")]
    pub priority_class: Option<String>,
    /// Time after which another replica takes over.
    #[arg(long, env = "AGENTSANDBOX_LEASE_DURATION", default_value = "15s", value_parser = duration)]
    pub lease_duration: Duration,
    /// For tests: end in front of the write after this many, as if killed there.
    #[arg(long, env = "AGENTSANDBOX_EXIT_AFTER_WRITES", hide = true)]
    pub exit_after_writes: Option<u64>,
}

/// Why the controller could not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The logs could not be set up.
    #[error(transparent)]
    Logging(#[from] telemetry::LoggingError),
    /// There is no client of the API server.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The lease was not given up: another replica has to wait until it ends.
    #[error("the lease was not given up: {0}")]
    Release(#[from] Box<kube::Error>),
    /// The admin server or a signal handler could not be set up.
    #[error("the process could not be set up: {0}")]
    Io(#[from] std::io::Error),
    /// Another process leads now.
    #[error("the lease was lost; the process ends so that only one writes")]
    LeaseLost,
    /// The watches ended.
    #[error("the controller stopped by itself")]
    Stopped,
}

/// A duration of the command line.
pub fn duration(text: &str) -> Result<Duration, String> {
    crate::api::v1alpha1::GoDuration::from_text(text).parse().map_err(|error| error.to_string())
}

/// Runs the controller until SIGTERM or SIGINT, or until the lease is lost.
pub async fn run(options: Options) -> Result<(), RunError> {
    let level = telemetry::init(options.log_format, &options.log_level)?;
    let (health, metrics) = (Health::default(), Arc::new(Metrics::default()));
    let listener = tokio::net::TcpListener::bind(options.admin_address).await?;
    tokio::spawn(telemetry::serve(listener, health.clone(), Arc::<Metrics>::clone(&metrics), level));
    // Before the election: a start gate needs one that answers, and only one replica leads.
    tokio::spawn(canary::serve(tokio::net::TcpListener::bind(options.canary_address).await?));
    let stop = crate::signals::stop_signal()?;
    futures::pin_mut!(stop);
    let client = client().await?;
    let fence = Fence::default();
    let mut elector = Elector::new(
        client.clone(),
        &options.namespace,
        &options.lease_name,
        &options.identity,
        options.lease_duration.max(Duration::from_secs(3)),
        fence.clone(),
    );
    // A replica that waits is ready: a rollout must not wait for it to lead. One that does not reach the API server is not.
    tokio::select! {
        () = &mut stop => return Ok(()),
        () = elector.acquire(|| health.set_ready(true)) => {}
    }
    tracing::info!(identity = options.identity, "leading");
    metrics.leader.set(1);
    let result = tokio::select! {
        () = &mut stop => Ok(()),
        () = elector.keep() => Err(RunError::LeaseLost),
        () = Box::pin(control(client, &options, fence, metrics)) => Err(RunError::Stopped),
    };
    health.set_ready(false);
    if !matches!(result, Err(RunError::LeaseLost)) {
        elector.release().await.map_err(Box::new)?;
    }
    result
}

async fn control(client: Client, options: &Options, fence: Fence, metrics: Arc<Metrics>) {
    let wake = Arc::new(Notify::new());
    let ours = || watcher::Config::default().labels(labels::WATCH_SELECTOR);
    let (pods, pod_writer) = store::<SlimPod>();
    let (policies, policy_writer) = store::<NetworkPolicy>();
    let (sandboxes, sandbox_writer) = store::<Guarded>();
    // Three caches, and the gateway.
    let filled = Filled::new(4);
    let pod_stream = filled
        .count(
            watcher(Api::<SlimPod>::all(client.clone()), ours())
                .default_backoff()
                .modify(SlimPod::slim)
                .reflect(pod_writer),
        )
        .touched_objects();
    let policy_stream = filled
        .count(
            watcher(Api::<NetworkPolicy>::all(client.clone()), ours())
                .default_backoff()
                .modify(|policy| policy.metadata.managed_fields = None)
                .reflect(policy_writer),
        )
        .touched_objects();
    let sandbox_stream = filled
        .count(
            watcher(Api::<Guarded>::all(client.clone()), watcher::Config::default())
                .default_backoff()
                .modify(|sandbox| sandbox.meta_mut().managed_fields = None)
                .reflect(sandbox_writer),
        )
        .touched_objects();
    let (settings, known) = watch::channel(Arc::new(settings(options)));
    let finding = {
        let filled = filled.clone();
        Box::pin(finder(&client, options, &fence, &metrics).keep(settings, move || filled.done()))
    };
    let context = Arc::new(Context {
        recorder: Recorder::new(
            client.clone(),
            Reporter { controller: CONTROLLER.to_owned(), instance: Some(options.identity.clone()) },
        ),
        client,
        settings: known.clone(),
        sandboxes: sandboxes.clone(),
        pods,
        policies,
        fence,
        metrics,
        audit: ControlPlaneLog::new(std::io::stdout()),
        backoff: Backoff::default(),
        looks: Looks::default(),
        memory: Memory::default(),
        crash: Crash::after(options.exit_after_writes),
    });
    let (for_pods, for_policies) = (sandboxes.clone(), sandboxes.clone());
    let controller = Controller::for_stream(waking(sandbox_stream, Arc::clone(&wake)), sandboxes.clone())
        .with_config(controller::Config::default().concurrency(8).debounce(Duration::from_millis(50)))
        .reconcile_all_on(arrivals(known))
        .watches_stream(waking(pod_stream, Arc::clone(&wake)), move |pod: SlimPod| {
            owner_of(&pod.metadata, &for_pods)
        })
        .watches_stream(waking(policy_stream, Arc::clone(&wake)), move |policy: NetworkPolicy| {
            owner_of(&policy.metadata, &for_policies)
        });
    let releasing = {
        let (context, wake, filled) = (Arc::clone(&context), Arc::clone(&wake), filled.clone());
        async move {
            filled.wait().await;
            release(context, wake).await;
        }
    };
    let running = controller
        .run(
            move |guarded, context: Arc<Context>| {
                let filled = filled.clone();
                async move {
                    filled.wait().await;
                    reconcile(guarded, context).await
                }
            },
            |guarded, error, context| on_error(&guarded, error, &context),
            context,
        )
        .for_each(|result| async move {
            match result {
                Ok(_)
                | Err(controller::Error::ObjectNotFound(_) | controller::Error::ReconcilerFailed(..)) => {}
                Err(error) => tracing::warn!(%error, "a watch failed; it is set up again"),
            }
        });
    tokio::select! {
        () = running => {}
        () = releasing => {}
        () = finding => {}
    }
}

fn finder(client: &Client, options: &Options, fence: &Fence, metrics: &Arc<Metrics>) -> Finder {
    let server_name = gateway_name(&options.namespace);
    Finder {
        client: client.clone(),
        namespace: options.namespace.clone(),
        service: options.gateway_service.clone(),
        certificates: Certificates::new(client.clone(), &options.namespace, &server_name, fence.clone()),
        server_name,
        dns: options.cluster_dns,
        resolv_conf: "/etc/resolv.conf".into(),
        metrics: Arc::clone(metrics),
    }
}

/// Passes `stream` on and wakes the release of policies with every item.
fn waking<T>(stream: impl Stream<Item = T>, wake: Arc<Notify>) -> impl Stream<Item = T> {
    stream.inspect(move |_| wake.notify_one())
}

/// The sandbox that an object belongs to: by owner, by annotation, or by hash where somebody took off the others.
fn owner_of(meta: &ObjectMeta, sandboxes: &Store<Guarded>) -> Option<ObjectRef<Guarded>> {
    let namespace = meta.namespace.as_deref()?;
    let kind = AgentSandbox::kind(&());
    let owner = meta.owner_references.iter().flatten().find(|o| o.kind == kind).map(|o| o.name.clone());
    let named = || meta.annotations.as_ref()?.get(labels::NAME)?.rsplit('/').next().map(str::to_owned);
    let name = owner.or_else(named).or_else(|| {
        let hash = meta.labels.as_ref()?.get(labels::SANDBOX)?;
        let found = sandboxes.find(|s| s.0.as_ref().is_ok_and(|s| Identity::of(s).hash == *hash))?;
        found.meta().name.clone()
    })?;
    Some(ObjectRef::new(&name).within(namespace))
}

fn settings(options: &Options) -> Settings {
    Settings {
        image: options.image.clone(),
        image_pull_policy: options.image_pull_policy.clone(),
        grace: options.grace,
        reserved_cidrs: options.reserved_cidrs.clone(),
        user_namespaces: options.user_namespaces,
        runtime_classes: Some(options.runtime_classes.clone()).filter(|classes| !classes.is_empty()),
        priority_class: options.priority_class.clone(),
        gateway: Some(GatewaySettings {
            namespace: options.namespace.clone(),
            reachable_cidrs: options.reachable_cidrs.clone(),
            reach: None,
        }),
        ..Settings::default()
    }
}
