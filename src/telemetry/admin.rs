//! The admin server: `/healthz`, `/readyz`, `/metrics`, and `PUT /loglevel` from the Pod itself only.
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::extract::{ConnectInfo, DefaultBodyLimit, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use tokio::net::TcpListener;

use super::LevelHandle;

/// Whether the process is ready. It lives as long as it answers.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<AtomicBool>);

impl Health {
    /// Says whether the process is ready.
    pub fn set_ready(&self, ready: bool) {
        self.0.store(ready, Ordering::Relaxed);
    }

    /// Whether the process is ready.
    pub fn is_ready(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The metrics of a process.
pub trait Exposition: Send + Sync {
    /// All of them in the `OpenMetrics` text format.
    fn encode(&self) -> Result<String, std::fmt::Error>;
}

#[derive(Clone)]
struct Admin {
    health: Health,
    metrics: Arc<dyn Exposition>,
    level: LevelHandle,
}

/// Serves on `listener` until the process ends.
pub async fn serve(
    listener: TcpListener,
    health: Health,
    metrics: Arc<dyn Exposition>,
    level: LevelHandle,
) -> std::io::Result<()> {
    let router = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(scrape))
        .route("/loglevel", put(set_level))
        .layer(DefaultBodyLimit::max(1024))
        .with_state(Admin { health, metrics, level });
    axum::serve(listener, router.into_make_service_with_connect_info::<SocketAddr>()).await
}

async fn ready(State(admin): State<Admin>) -> Response {
    if admin.health.is_ready() {
        (StatusCode::OK, "ok\n").into_response()
    } else {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            "not ready: the watch caches are not filled, or the process is about to end\n",
        )
            .into_response()
    }
}

async fn scrape(State(admin): State<Admin>) -> Response {
    const FORM: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    match admin.metrics.encode() {
        Ok(text) => ([(header::CONTENT_TYPE, FORM)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

async fn set_level(
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    State(admin): State<Admin>,
    body: String,
) -> Response {
    if !peer.ip().to_canonical().is_loopback() {
        return (StatusCode::FORBIDDEN, "only from the Pod itself: kubectl port-forward\n").into_response();
    }
    match admin.level.set(body.trim()) {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(error) => (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response(),
    }
}
