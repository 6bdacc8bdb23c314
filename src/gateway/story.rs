//! What is known of one connection of an agent, for its records.
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use super::identity::Peer;
use super::relay::Meter;
use super::request::Connect;
use crate::audit::{NetworkEvent, NetworkOutcome, now_ms};
use crate::policy::Reason;

/// Numbers of the connections of this process, by which the records of one belong together.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// What is known of a connection, for its records.
#[derive(Debug)]
pub struct Story<'a> {
    /// Generation and digest of the policy that decided.
    pub policy: Option<(i64, String)>,
    /// Index of the rule; `usize::MAX` for none.
    pub rule: Arc<AtomicUsize>,
    /// The address that was dialled.
    pub address: Option<SocketAddr>,
    /// What the first bytes were.
    pub protocol: Option<&'static str>,
    /// Requests that went on.
    pub requests: Option<u64>,
    /// What is to say of its addresses.
    pub detail: Option<String>,
    /// Bytes that were moved.
    pub meter: Arc<Meter>,
    /// When it began.
    pub clock: Instant,
    number: u64,
    started: i64,
    peer: &'a Peer,
    wish: &'a Connect,
    source: SocketAddr,
}

/// What a record says of how a connection is, or how it ended.
#[derive(Debug)]
pub struct Judgement {
    /// How it is.
    pub outcome: NetworkOutcome,
    /// One word.
    pub reason: &'static str,
    /// For a person.
    pub detail: Option<String>,
    /// Index of the rule, where it is another than the one that let it begin.
    pub rule: Option<usize>,
    /// Refusals of the same kind before this one that have no record.
    pub suppressed: u64,
}

impl Judgement {
    /// It goes on.
    pub fn open() -> Self {
        let reason = Reason::AllowedByRule.as_str();
        Self { outcome: NetworkOutcome::Open, reason, detail: None, rule: None, suppressed: 0 }
    }
}

impl<'a> Story<'a> {
    /// `peer` asks from `source` for what `wish` says.
    pub fn begin(peer: &'a Peer, wish: &'a Connect, source: SocketAddr) -> Self {
        Self {
            policy: None,
            rule: Arc::new(AtomicUsize::new(usize::MAX)),
            address: None,
            protocol: None,
            requests: None,
            detail: None,
            meter: Arc::default(),
            clock: Instant::now(),
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            started: now_ms(),
            peer,
            wish,
            source,
        }
    }

    /// The record of it, as it is now.
    pub fn event(&self, judgement: Judgement) -> NetworkEvent {
        let (host, port) = match &self.wish.target {
            Ok((name, port)) => (name.to_string(), Some(*port)),
            Err(_) => (self.wish.written.clone(), None),
        };
        let signed = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        let own = Some(self.rule.load(Ordering::Relaxed)).filter(|rule| *rule != usize::MAX);
        let details = [self.detail.clone(), judgement.detail];
        NetworkEvent {
            connection: Some(self.number),
            sandbox: Some(self.peer.sandbox.identity.clone()),
            pod: Some(self.peer.pod.clone()),
            policy: self.policy.clone(),
            source: self.source,
            via: Some(self.wish.via),
            host: Some(host),
            port,
            address: self.address,
            protocol: self.protocol,
            outcome: judgement.outcome,
            rule: judgement.rule.or(own),
            reason: judgement.reason,
            detail: details.into_iter().flatten().reduce(|all, more| format!("{all}; {more}")),
            bytes_out: signed(self.meter.outward()),
            bytes_in: signed(self.meter.inward()),
            requests: self.requests,
            started: self.started,
            duration: i64::try_from(self.clock.elapsed().as_millis()).unwrap_or(i64::MAX),
            suppressed: judgement.suppressed,
        }
    }
}
