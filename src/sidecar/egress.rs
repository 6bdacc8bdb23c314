//! Puts the parts of the egress together and keeps them running.
//!
//! They are tasks of the one thread that takes the audit records too. What the intake does with a record ends with one
//! `fdatasync` of a few lines; records of the egress itself are written without one. A second thread would keep a slow
//! disk from delaying a tunnel, but gVisor refuses it, and a second process would cost every sandbox its memory twice.
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use tokio::task::JoinSet;

use super::budget::Budget;
use super::gate::{Gate, GateConfig, Pace};
use super::gateway::{GatewayConfig, Gateways};
use super::held::Held;
use super::journal::Journal;
use super::ledger::Ledger;
use super::listeners::{Listeners, listen};
use super::tunnel::Tunnels;
use super::{Options, RunError, dns, policy_stream, proxy, socks5};
use crate::audit::EgressEvent;
use crate::egress::containment::NotContained;
use crate::egress::wire::EgressSummary;

/// Where the sidecar listens inside the Pod.
#[derive(Clone, Copy, Debug)]
pub struct AddressPlan {
    /// The name server.
    pub dns: SocketAddr,
    /// The HTTP proxy.
    pub http: SocketAddr,
    /// The SOCKS5 proxy.
    pub socks: SocketAddr,
    /// Address of the first name.
    pub first: Ipv4Addr,
}

impl Default for AddressPlan {
    /// The resolver's configuration can name a host and no port, so that DNS has to be at 127.0.0.1:53. The proxies are not
    /// on 127.0.0.1, where the agent's own servers have every other port.
    fn default() -> Self {
        let proxies = Ipv4Addr::new(127, 64, 0, 1);
        Self {
            dns: (Ipv4Addr::LOCALHOST, 53).into(),
            http: (proxies, 3128).into(),
            socks: (proxies, 1080).into(),
            first: Ipv4Addr::new(127, 64, 1, 0),
        }
    }
}

/// The egress of one sandbox.
#[derive(Debug)]
pub struct Egress {
    ledger: Arc<Ledger>,
    gate: Arc<Gate>,
    tasks: JoinSet<Stop>,
}

/// Why a task ended.
#[derive(Debug)]
enum Stop {
    /// The gate has passed.
    Passed,
    /// The gate gave up.
    NotContained(NotContained),
    /// A record could not be kept.
    RecordLost(String),
    /// A task ended that should not.
    Ended(&'static str),
}

impl Egress {
    /// Starts it, where the Pod was planned with a gateway.
    pub async fn start(
        options: &Options,
        journal: &Journal,
        plan: &AddressPlan,
        pace: Pace,
    ) -> Result<Option<Self>, RunError> {
        let Some((gateway, gate)) = configuration(options, pace)? else { return Ok(None) };
        let held = Arc::new(Held::default());
        let budget = Arc::new(Budget::default());
        let ledger = Arc::new(Ledger::new(journal.clone(), Arc::clone(&budget)));
        let gateways = Gateways::new(&gateway, Arc::clone(&held)).map_err(RunError::Egress)?;
        let gateways = Arc::new(gateways);
        let tunnels =
            Tunnels::new(Arc::clone(&gateways), Arc::clone(&held), Arc::clone(&budget), Arc::clone(&ledger));
        let tunnels = Arc::new(tunnels);
        let listeners =
            Listeners::new(plan.first, Arc::clone(&held), Arc::clone(&ledger), Arc::clone(&tunnels));
        let listeners = Arc::new(listeners);
        let gate = Arc::new(Gate::new(gate, Arc::clone(&held)));

        let cannot = |what: &str, error: &std::io::Error| RunError::Egress(format!("{what}: {error}"));
        let (udp, tcp) = dns::bind(plan.dns).await.map_err(|error| cannot("DNS", &error))?;
        let http = listen(plan.http).map_err(|error| cannot("the HTTP proxy", &error))?;
        let socks = listen(plan.socks).map_err(|error| cannot("the SOCKS5 proxy", &error))?;

        let mut tasks = JoinSet::new();
        let mut run = |name: &'static str, task: Task| {
            tasks.spawn(async move {
                task.await;
                Stop::Ended(name)
            });
        };
        run("DNS by UDP", Box::pin(dns::serve_udp(udp, listeners.clone())));
        run("DNS by TCP", Box::pin(dns::serve_tcp(tcp, listeners.clone())));
        run("the HTTP proxy", Box::pin(proxy::serve(http, Arc::clone(&tunnels))));
        run("the SOCKS5 proxy", Box::pin(socks5::serve(socks, tunnels, listeners.clone())));
        run("the listeners", Box::pin(async move { listeners.follow().await }));
        run(
            "the spare connections",
            Box::pin({
                let gateways = Arc::clone(&gateways);
                async move { gateways.keep_spares().await }
            }),
        );
        run("the policy", Box::pin(obey(Arc::clone(&held), Arc::clone(&budget), Arc::clone(&ledger))));
        run("the budget", Box::pin(tell_exhaustion(budget, Arc::clone(&ledger))));
        run("the policy stream", Box::pin(policy_stream::follow(gateways, held, Arc::clone(&ledger))));
        tasks.spawn({
            let ledger = Arc::clone(&ledger);
            async move { Stop::RecordLost(ledger.lost().await) }
        });
        tasks.spawn({
            let (gate, ledger) = (Arc::clone(&gate), Arc::clone(&ledger));
            async move {
                match gate.run(&ledger).await {
                    Ok(()) => Stop::Passed,
                    Err(report) => Stop::NotContained(report),
                }
            }
        });
        Ok(Some(Self { ledger, gate, tasks }))
    }

    /// What the gate waits for; `None` once it has passed.
    pub fn waiting(&self) -> Option<String> {
        self.gate.waiting()
    }

    /// The counters. What was only counted so far is recorded.
    pub fn settle(&self) -> EgressSummary {
        self.ledger.settle();
        self.ledger.summary()
    }

    /// Waits until it cannot go on, and says why. Cancel safe.
    pub async fn failed(&mut self) -> RunError {
        loop {
            match self.tasks.join_next().await {
                Some(Ok(Stop::Passed)) => {}
                Some(Ok(Stop::NotContained(report))) => return RunError::NotContained(Box::new(report)),
                Some(Ok(Stop::RecordLost(why))) => {
                    return RunError::Egress(format!("a record is lost: {why}"));
                }
                Some(Ok(Stop::Ended(name))) => return RunError::Egress(format!("{name} ended")),
                Some(Err(error)) => return RunError::Egress(error.to_string()),
                None => return RunError::Egress("nothing runs".to_owned()),
            }
        }
    }
}

type Task = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

/// What the options say; `None` where there is no gateway.
fn configuration(options: &Options, pace: Pace) -> Result<Option<(GatewayConfig, GateConfig)>, RunError> {
    fn needed<T: Clone>(value: Option<&T>, name: &str) -> Result<T, RunError> {
        value.cloned().ok_or_else(|| RunError::Egress(format!("AGENTSANDBOX_{name} is missing")))
    }
    let egress = &options.egress;
    let Some(service) = egress.gateway else { return Ok(None) };
    let gateway = GatewayConfig {
        service,
        authorities: needed(egress.gateway_ca.as_ref(), "GATEWAY_CA")?,
        name: needed(egress.gateway_name.as_ref(), "GATEWAY_NAME")?,
        token_file: needed(egress.token_file.as_ref(), "TOKEN_FILE")?,
    };
    let gate = GateConfig {
        api_server: needed(egress.gate_api_server.as_ref(), "GATE_API_SERVER")?,
        dns: egress.gate_dns,
        metadata: needed(egress.gate_metadata.as_ref(), "GATE_METADATA")?,
        generation: options.generation,
        digest: options.policy_digest.clone(),
        pace,
    };
    Ok(Some((gateway, gate)))
}

/// Puts every policy in force and records it.
async fn obey(held: Arc<Held>, budget: Arc<Budget>, ledger: Arc<Ledger>) {
    let mut policies = held.policies();
    loop {
        let policy = policies.borrow_and_update().clone();
        if let Some(policy) = policy {
            budget.limit(policy.bytes);
            ledger.record(&EgressEvent::PolicyTaken {
                generation: policy.generation,
                digest: policy.digest.clone(),
                hosts: policy.hosts(),
                unknown: policy.unknown,
            });
        }
        if policies.changed().await.is_err() {
            return;
        }
    }
}

/// Records that all bytes are used up, every time that they are.
async fn tell_exhaustion(budget: Arc<Budget>, ledger: Arc<Ledger>) {
    loop {
        budget.spent().await;
        ledger.record(&EgressEvent::BytesExceeded { bytes: budget.total() });
        budget.refilled().await;
    }
}
