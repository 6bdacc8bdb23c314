//! What every connection has at hand.
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::sync::watch;

use super::canary::Canary;
use super::dial::Dialer;
use super::endpoints::Endpoints;
use super::freshness::Freshness;
use super::identity::Identity;
use super::limits::Limits;
use super::memory::Memory;
use super::notices::Notices;
use super::records::Records;
use super::resolve::Resolver;
use super::sources::Sources;
use super::tunnels::Tunnels;
use super::unheard::Unheard;
use super::vetting::Vetting;
use crate::telemetry::GatewayMetrics;

/// What every connection has at hand.
#[derive(Debug)]
pub struct Context {
    /// Who asks.
    pub identity: Identity,
    /// Who has not said who it is.
    pub sources: Sources,
    /// What one sandbox may use.
    pub limits: Limits,
    /// Room for connections to servers.
    pub tunnels: Tunnels,
    /// Whether memory is short.
    pub memory: Memory,
    /// From names to addresses.
    pub resolver: Resolver,
    /// Which addresses may be dialled.
    pub vetting: Vetting,
    /// To servers.
    pub dialer: Dialer,
    /// Records.
    pub records: Records,
    /// Refusals that have none.
    pub unheard: Unheard,
    /// Events.
    pub notices: Notices,
    /// Metrics.
    pub metrics: Arc<GatewayMetrics>,
    /// Whether the watches stand.
    pub freshness: Freshness,
    /// This gateway as sandboxes reach it, if it knows.
    pub own: Option<SocketAddr>,
    /// All gateways.
    pub peers: Arc<Endpoints>,
    /// What sandboxes must not reach.
    pub canary: Arc<Canary>,
    /// Whether this gateway is about to end.
    pub draining: watch::Receiver<bool>,
}

impl Context {
    /// Gateways that can be reached, this one first.
    pub fn gateways(&self) -> Vec<SocketAddr> {
        let others = self.peers.ready().into_iter().filter(|peer| Some(*peer) != self.own);
        self.own.into_iter().chain(others).collect()
    }

    /// Whether this gateway is about to end.
    pub fn is_draining(&self) -> bool {
        *self.draining.borrow()
    }

    /// Ready when it is about to end.
    pub async fn drained(&self) {
        let mut draining = self.draining.clone();
        if draining.wait_for(|draining| *draining).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
