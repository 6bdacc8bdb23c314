//! The start gate: the agent starts only after the Pod's own network namespace was measured to be closed while the gateway
//! held this sandbox's policy. What cannot be measured counts as not closed.
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};
use nix::libc;
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{sleep, timeout};

use super::held::Held;
use super::ledger::Ledger;
use crate::audit::EgressEvent;
use crate::egress::containment::{CheckName, CheckResult, GateCause, GateCheck, MAX_MESSAGE, NotContained};
use crate::egress::wire::HEARTBEAT;

/// Oldest sight of the canary with which its silence means something.
const MAX_CANARY_AGE: Duration = Duration::from_mins(1);

/// What is measured, and against what.
#[derive(Clone, Debug)]
pub struct GateConfig {
    /// The API server.
    pub api_server: SocketAddr,
    /// The cluster's DNS server, where there is one that no rule allows.
    pub dns: Option<SocketAddr>,
    /// The metadata service of the cloud.
    pub metadata: SocketAddr,
    /// Generation of the spec that the Pod was planned with.
    pub generation: i64,
    /// Digest of the policy that the Pod was planned with.
    pub digest: String,
    /// Its times.
    pub pace: Pace,
}

/// Times and numbers of the gate.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Rounds in a row that have to hold.
    pub rounds: u32,
    /// Time between two rounds.
    pub every: Duration,
    /// Longest wait of a probe.
    pub probe: Duration,
    /// Time after which it gives up where something was open in the last round.
    pub open: Duration,
    /// The same where nothing was open, but not everything known to be closed.
    pub unknown: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            rounds: 3,
            every: Duration::from_secs(1),
            probe: Duration::from_secs(1),
            open: Duration::from_secs(20),
            unknown: Duration::from_secs(40),
        }
    }
}

/// The gate.
#[derive(Debug)]
pub struct Gate {
    config: GateConfig,
    held: Arc<Held>,
    /// What it waits for; `None` once it has passed.
    waiting: Mutex<Option<String>>,
}

/// What a refused connection to a target means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Refused {
    /// It is known to listen: somebody refuses for it.
    Closed,
    /// Its host answered.
    Open,
}

impl Gate {
    /// A gate that is shut.
    pub fn new(config: GateConfig, held: Arc<Held>) -> Self {
        Self { config, held, waiting: Mutex::new(Some("no round yet".to_owned())) }
    }

    /// What it waits for, for a person; `None` once it has passed.
    pub fn waiting(&self) -> Option<String> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Measures until it has passed, or gives up.
    pub async fn run(&self, ledger: &Ledger) -> Result<(), NotContained> {
        let pace = self.config.pace;
        let mut held = 0;
        let mut failing: Option<Instant> = None;
        // Before the gateway's first word no round can hold, and one takes a second.
        let _ = timeout(pace.every, self.held.policies().wait_for(Option::is_some)).await;
        loop {
            let began = Instant::now();
            let checks = self.round().await;
            let wrong = checks.iter().find(|check| check.result == CheckResult::Open);
            let wrong = wrong.or_else(|| checks.iter().find(|check| !check.holds()));
            if let Some(wrong) = wrong {
                held = 0;
                let since = *failing.get_or_insert(began);
                let patience = if wrong.result == CheckResult::Open { pace.open } else { pace.unknown };
                let message: String = wrong.detail.chars().take(MAX_MESSAGE).collect();
                if since.elapsed() >= patience {
                    ledger.record(&EgressEvent::GateFailed {
                        message: message.clone(),
                        checks: checks.clone(),
                    });
                    return Err(NotContained { cause: GateCause::NotContained, message, checks });
                }
                self.set(Some(message));
            } else {
                held += 1;
                failing = None;
                if held >= pace.rounds {
                    self.pass(ledger, checks);
                    return Ok(());
                }
                self.set(Some(format!("{held} of {} rounds", pace.rounds)));
            }
            sleep(pace.every.saturating_sub(began.elapsed())).await;
        }
    }

    fn pass(&self, ledger: &Ledger, checks: Vec<GateCheck>) {
        let policy = self.held.policy();
        let (generation, digest) =
            policy.map(|policy| (policy.generation, policy.digest.clone())).unwrap_or_default();
        ledger.record(&EgressEvent::GatePassed { generation, digest, checks });
        self.set(None);
    }

    fn set(&self, waiting: Option<String>) {
        *self.waiting.lock().unwrap_or_else(PoisonError::into_inner) = waiting;
    }

    /// All checks at once.
    async fn round(&self) -> Vec<GateCheck> {
        use CheckName::{ApiServer, Canary, ClusterDnsTcp, ClusterDnsUdp, Metadata};
        let config = &self.config;
        let limit = config.pace.probe;
        let dns = async {
            let Some(dns) = config.dns else { return Vec::new() };
            let (tcp, udp) = tokio::join!(
                tcp(ClusterDnsTcp, "the cluster's DNS", dns, Refused::Closed, limit),
                udp(ClusterDnsUdp, dns, limit),
            );
            vec![tcp, udp]
        };
        let canary = async {
            match self.held.link().canary {
                Some((address, reached)) if reached.elapsed() <= MAX_CANARY_AGE => {
                    tcp(Canary, "canary", address, Refused::Closed, limit).await
                }
                Some((address, reached)) => {
                    let age = reached.elapsed().as_secs();
                    let text = format!("canary {address} was last reached by a gateway {age} s ago");
                    GateCheck::new(Canary, CheckResult::Inconclusive, &text)
                }
                None => {
                    let text = "no gateway has reached a canary";
                    GateCheck::new(Canary, CheckResult::Inconclusive, text)
                }
            }
        };
        let (canary, api_server, metadata, dns) = tokio::join!(
            canary,
            tcp(ApiServer, "API server", config.api_server, Refused::Closed, limit),
            tcp(Metadata, "metadata service", config.metadata, Refused::Open, limit),
            dns,
        );
        let mut checks = vec![canary, api_server, metadata];
        checks.extend(dns);
        // Last, so that the gateway is known to be there while the others were not.
        checks.push(self.gateway());
        checks
    }

    fn gateway(&self) -> GateCheck {
        let link = self.held.link();
        let fresh = link.heard.is_some_and(|heard| heard.elapsed() <= HEARTBEAT.saturating_mul(2));
        let result = match self.held.policy() {
            Some(policy) if link.up && fresh => {
                let planned = (self.config.generation, self.config.digest.as_str());
                judge_policy((policy.generation, &policy.digest), planned)
            }
            _ if link.trouble.is_empty() => Err("the egress gateway has not told the policy yet".to_owned()),
            _ => Err(link.trouble),
        };
        match result {
            Ok(text) => GateCheck::new(CheckName::Gateway, CheckResult::Confirmed, &text),
            Err(text) => GateCheck::new(CheckName::Gateway, CheckResult::Inconclusive, &text),
        }
    }
}

/// Whether the gateway's policy is that of this sandbox: the planned one, or a later one that was written since.
fn judge_policy(told: (i64, &str), planned: (i64, &str)) -> Result<String, String> {
    match told.0.cmp(&planned.0) {
        std::cmp::Ordering::Less => {
            Err(format!("the gateway has generation {}, not yet {}", told.0, planned.0))
        }
        std::cmp::Ordering::Equal if told.1 != planned.1 => {
            Err(format!("the gateway has policy {}, the Pod was planned with {}", told.1, planned.1))
        }
        _ => Ok(format!("the gateway holds generation {}, {}", told.0, told.1)),
    }
}

async fn tcp(
    name: CheckName,
    what: &str,
    address: SocketAddr,
    refused: Refused,
    limit: Duration,
) -> GateCheck {
    let (result, text) = match timeout(limit, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => {
            let _ = stream.set_zero_linger();
            (CheckResult::Open, "is reachable from the Pod".to_owned())
        }
        Ok(Err(error)) => judge_error(&error, refused),
        Err(_) => (CheckResult::Closed, "does not answer".to_owned()),
    };
    GateCheck::new(name, result, &format!("{what} {address} {text}"))
}

async fn udp(name: CheckName, address: SocketAddr, limit: Duration) -> GateCheck {
    let (result, text) = match timeout(limit, ask_dns(address)).await {
        Ok(Ok(())) => (CheckResult::Open, "answers to the Pod".to_owned()),
        // Its host has answered with a message of ICMP.
        Ok(Err(error)) => judge_error(&error, Refused::Open),
        Err(_) => (CheckResult::Closed, "does not answer".to_owned()),
    };
    GateCheck::new(name, result, &format!("the cluster's DNS {address} (UDP) {text}"))
}

/// Sends a question and waits for any answer.
async fn ask_dns(address: SocketAddr) -> io::Result<()> {
    let own: SocketAddr =
        if address.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let socket = UdpSocket::bind(own).await?;
    socket.connect(address).await?;
    // What the cluster's DNS knows by itself, so that it does not depend on others for an answer in time.
    let name = Name::from_ascii("kubernetes.default.svc.cluster.local.").map_err(io::Error::other)?;
    let mut message = Message::new(0x6173, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name, RecordType::A));
    socket.send(&message.to_vec().map_err(io::Error::other)?).await?;
    socket.recv(&mut [0; 1]).await.map(drop)
}

fn judge_error(error: &io::Error, refused: Refused) -> (CheckResult, String) {
    let result = match error.raw_os_error() {
        Some(libc::ECONNREFUSED) if refused == Refused::Open => CheckResult::Open,
        Some(
            libc::ECONNREFUSED
            | libc::ETIMEDOUT
            | libc::EHOSTUNREACH
            | libc::ENETUNREACH
            | libc::EACCES
            | libc::EPERM,
        ) => CheckResult::Closed,
        // Something of our own, such as too many open files.
        _ => CheckResult::Inconclusive,
    };
    (result, format!("answers: {error}"))
}

#[cfg(test)]
#[path = "gate_tests.rs"]
mod tests;
