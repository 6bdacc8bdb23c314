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
use super::connections::{self, Limits};

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
pub async fn serve(listener: TcpListener, health: Health, metrics: Arc<dyn Exposition>, level: LevelHandle) {
    connections::serve(listener, router(Admin { health, metrics, level }), Limits::default()).await;
}

fn router(admin: Admin) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(scrape))
        .route("/loglevel", put(set_level))
        .layer(DefaultBodyLimit::max(1024))
        .with_state(admin)
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

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use http::Request;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tower::ServiceExt;

    use super::super::Metrics;
    use super::*;

    fn admin() -> Admin {
        let (health, metrics) = (Health::default(), Arc::new(Metrics::default()));
        Admin { health, metrics, level: LevelHandle::of_nothing() }
    }

    #[tokio::test]
    async fn who_asks_over_the_network_is_answered() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let Admin { health, metrics, level } = admin();
        tokio::spawn(serve(listener, health.clone(), metrics, level));
        let ask = async |request: &str| {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        };
        let get = async |path: &str| ask(&format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")).await;
        assert!(get("/healthz").await.starts_with("HTTP/1.1 200 "));
        assert!(get("/readyz").await.starts_with("HTTP/1.1 503 "));
        health.set_ready(true);
        assert!(get("/readyz").await.starts_with("HTTP/1.1 200 "));
        let metrics = get("/metrics").await;
        assert!(metrics.contains("\r\ncontent-type: application/openmetrics-text;"), "{metrics}");
        assert!(metrics.ends_with("# EOF\n"), "{metrics}");
        let level = ask("PUT /loglevel HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\ndebug").await;
        assert!(level.starts_with("HTTP/1.1 204 "), "{level}");
    }

    #[tokio::test]
    async fn only_the_pod_itself_changes_the_level() {
        for (from, status) in [
            ("127.0.0.1:4000", StatusCode::NO_CONTENT),
            ("[::ffff:127.0.0.1]:4000", StatusCode::NO_CONTENT),
            ("10.0.0.7:4000", StatusCode::FORBIDDEN),
        ] {
            let peer = ConnectInfo(from.parse::<SocketAddr>().unwrap());
            let request = Request::put("/loglevel").extension(peer).body(Body::from("debug")).unwrap();
            assert_eq!(router(admin()).oneshot(request).await.unwrap().status(), status, "{from}");
        }
    }
}
