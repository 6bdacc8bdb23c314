//! One connection as the registry of its sandbox knows it: where it leads, what it carries, and why it ends.
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::relay::Meter;
use super::sandboxes::Sandbox;
use crate::policy::{AppProtocol, Decision, HostName};

/// Why the gateway cuts a connection off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The policy changed and does not allow it any more.
    PolicyChanged(Decision),
    /// The policy cannot be read any more.
    PolicyUnknown,
    /// The Pod ended.
    PodGone,
    /// The sandbox is deleted.
    SandboxGone,
    /// The sandbox has moved the bytes that it may.
    BytesExceeded,
    /// This gateway's memory is short, and nothing moved on the connection.
    MemoryShort,
    /// This gateway's places are short, and others of the sandbox have most of them.
    MadeRoom,
    /// This gateway ends.
    Draining,
}

impl Ending {
    /// One word of a fixed set.
    pub fn word(self) -> &'static str {
        match self {
            Self::PolicyChanged(_) => "PolicyChanged",
            Self::PolicyUnknown => "PolicyUnknown",
            Self::PodGone => "PodGone",
            Self::SandboxGone => "SandboxGone",
            Self::BytesExceeded => "EgressBytesExceeded",
            Self::MemoryShort | Self::MadeRoom => "GatewayBusy",
            Self::Draining => "Draining",
        }
    }
}

/// What is known of what a connection carries.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Stage {
    Opened,
    Protocol(AppProtocol, bool),
    Requests(Asked),
}

/// Bytes of requests that are remembered of one connection.
const MAX_ASKED: usize = 8 * 1024;

/// Requests of plain HTTP on one connection. All of them: the answer to an earlier one may still be on its way.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Asked {
    requests: Vec<(String, String)>,
    bytes: usize,
    /// Whether there were more than could be remembered.
    more: bool,
}

impl Asked {
    fn add(&mut self, method: &str, path: &str) {
        if self.more || self.requests.iter().any(|(m, p)| m == method && p == path) {
            return;
        }
        self.bytes = self.bytes.saturating_add(method.len() + path.len());
        self.more = self.bytes > MAX_ASKED;
        if !self.more {
            self.requests.push((method.to_owned(), path.to_owned()));
        }
    }
}

/// Where a connection leads.
#[derive(Debug)]
struct Target {
    name: HostName,
    port: u16,
    stage: Mutex<Stage>,
}

/// A connection or a policy stream, as the registry knows it.
#[derive(Debug)]
pub struct Connection {
    pod_uid: String,
    target: Option<Target>,
    ending: watch::Sender<Option<Ending>>,
    meter: OnceLock<Arc<Meter>>,
}

impl Connection {
    /// One of the Pod `pod_uid` to `target`; a policy stream without one.
    pub fn new(pod_uid: &str, target: Option<(HostName, u16)>) -> Self {
        let target = target.map(|(name, port)| Target { name, port, stage: Mutex::new(Stage::Opened) });
        Self { pod_uid: pod_uid.to_owned(), target, ending: watch::Sender::new(None), meter: OnceLock::new() }
    }

    /// Whether it leads anywhere; else it is a policy stream.
    pub fn is_tunnel(&self) -> bool {
        self.target.is_some()
    }

    /// Its bytes are counted here.
    pub fn measured_by(&self, meter: &Arc<Meter>) {
        // Once for each connection.
        let _ = self.meter.set(Arc::clone(meter));
    }

    /// How long nothing has moved on it; `None` where that is not known, and where it ends anyhow.
    pub fn idle(&self) -> Option<Duration> {
        let ends = self.ending.borrow().is_some();
        self.meter.get().filter(|_| !ends).map(|meter| meter.idle())
    }

    /// Whether it is of this Pod.
    pub fn is_of(&self, pod_uid: &str) -> bool {
        self.pod_uid == pod_uid
    }

    /// What it carries: a change of the policy judges by it from now on.
    pub fn carries(&self, protocol: AppProtocol, ech: bool) {
        self.set(Stage::Protocol(protocol, ech));
    }

    /// It is not known any more what it carries.
    pub fn carries_nothing(&self) {
        self.set(Stage::Opened);
    }

    /// This request is next.
    pub fn requests(&self, method: &str, path: &str) {
        let Some(target) = &self.target else { return };
        let mut stage = target.stage.lock().unwrap_or_else(PoisonError::into_inner);
        if let Stage::Requests(asked) = &mut *stage {
            asked.add(method, path);
        } else {
            let mut asked = Asked::default();
            asked.add(method, path);
            *stage = Stage::Requests(asked);
        }
    }

    fn set(&self, stage: Stage) {
        if let Some(target) = &self.target {
            *target.stage.lock().unwrap_or_else(PoisonError::into_inner) = stage;
        }
    }

    /// Cuts it off.
    pub fn end(&self, ending: Ending) {
        // The first reason stays.
        self.ending.send_if_modified(|now| {
            let first = now.is_none();
            if first {
                *now = Some(ending);
            }
            first
        });
    }

    /// Cuts it off if `sandbox`'s policy does not allow it.
    pub fn review(&self, sandbox: &Sandbox) {
        let Some(target) = &self.target else {
            if sandbox.policy.is_err() {
                self.end(Ending::PolicyUnknown);
            }
            return;
        };
        let Ok(policy) = &sandbox.policy else { return self.end(Ending::PolicyUnknown) };
        let (name, port) = (&target.name, target.port);
        let decision = match &*target.stage.lock().unwrap_or_else(PoisonError::into_inner) {
            Stage::Opened => policy.decide(name, port),
            Stage::Protocol(protocol, ech) => policy.decide_protocol(name, port, *protocol, *ech),
            // What was asked beyond that is not known: the agent asks again on a new connection.
            Stage::Requests(asked) if asked.more => return self.end(Ending::PolicyUnknown),
            Stage::Requests(asked) => {
                let decide = |(method, path): &(String, String)| policy.decide_http(name, port, method, path);
                let refused = asked.requests.iter().map(decide).find(|decision| !decision.is_allowed());
                refused.unwrap_or_else(|| policy.decide(name, port))
            }
        };
        if !decision.is_allowed() {
            self.end(Ending::PolicyChanged(decision));
        }
    }

    /// Ready when it has to end.
    pub async fn ended(&self) -> Ending {
        let mut ending = self.ending.subscribe();
        // The sender lives in `self`: the channel cannot be closed.
        match ending.wait_for(Option::is_some).await.map(|ending| *ending) {
            Ok(Some(ending)) => ending,
            Ok(None) | Err(_) => std::future::pending().await,
        }
    }
}
