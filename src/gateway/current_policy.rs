//! The policy of this moment for one connection: asked before each step, and told to the registry before it is asked.
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::connection::Connection;
use super::first_bytes::Decide;
use super::http::inspect::Judge;
use super::live::Live;
use super::refusal::{Cause, Refusal};
use super::sandboxes::Sandbox;
use crate::policy::{AppProtocol, Decision, EffectivePolicy, HostName};

/// The policy of this moment for one connection.
#[derive(Debug, Clone)]
pub struct CurrentPolicy {
    /// Whose policy.
    pub live: Arc<Live>,
    /// The connection, as the registry knows it.
    pub connection: Arc<Connection>,
    /// Where it leads.
    pub name: HostName,
    /// At which port.
    pub port: u16,
    /// Index of the rule that allowed it last; `usize::MAX` for none.
    pub rule: Arc<AtomicUsize>,
}

impl CurrentPolicy {
    /// The sandbox as it is now.
    pub fn sandbox(&self) -> Result<Arc<Sandbox>, Refusal> {
        let message = "the sandbox is not known here any more";
        self.live.sandbox().ok_or_else(|| Refusal::new(Cause::PolicyUnknown, message))
    }

    /// Asks for the connection as such, of which nothing more is known.
    pub fn allows(&self) -> Result<(), Refusal> {
        self.ask(EffectivePolicy::decide)
    }

    /// Whether the connection may carry anything, and need not be looked into.
    pub fn allows_anything(&self) -> bool {
        let anything = || self.protocol(AppProtocol::Other, false).is_ok();
        if !anything() {
            return false;
        }
        self.connection.carries(AppProtocol::Other, false);
        // Asked again, because the policy may have changed before the registry was told what the connection carries.
        let still = anything();
        if !still {
            self.connection.carries_nothing();
        }
        still
    }

    fn protocol(&self, protocol: AppProtocol, encrypted: bool) -> Result<(), Refusal> {
        self.ask(|policy, name, port| policy.decide_protocol(name, port, protocol, encrypted))
    }

    fn ask(&self, question: impl Fn(&EffectivePolicy, &HostName, u16) -> Decision) -> Result<(), Refusal> {
        let sandbox = self.sandbox()?;
        let policy = sandbox.policy.as_ref().map_err(|error| {
            let message = format!("spec.network of the sandbox cannot be read: {error}");
            Refusal::new(Cause::PolicyUnknown, message)
        })?;
        let decision = question(policy, &self.name, self.port);
        if !decision.is_allowed() {
            return Err(Refusal::by_policy(&decision, &sandbox.full_name(), &self.name, self.port));
        }
        self.rule.store(decision.rule.unwrap_or(usize::MAX), Ordering::Relaxed);
        Ok(())
    }
}

/// What the first bytes say the connection carries.
impl Decide for CurrentPolicy {
    fn decide(&mut self, protocol: AppProtocol, encrypted: bool) -> Result<(), Refusal> {
        self.connection.carries(protocol, encrypted);
        self.protocol(protocol, encrypted)
    }
}

/// Every request of plain HTTP.
impl Judge for CurrentPolicy {
    fn judge(&mut self, method: &str, path: &str) -> Result<(), Refusal> {
        self.connection.requests(method, path);
        self.ask(|policy, name, port| policy.decide_http(name, port, method, path))
    }

    fn tells_apart(&self) -> bool {
        let sandbox = self.sandbox();
        let policy = sandbox.as_ref().ok().and_then(|sandbox| sandbox.policy.as_ref().ok());
        policy.is_none_or(|policy| policy.tells_requests_apart(&self.name, self.port))
    }
}
