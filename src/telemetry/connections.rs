//! Takes connections to the admin server. The whole cluster may open them, and the kubelet's probes must find a place.
use std::cmp::Reverse;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncWriteExt, copy, sink};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};
use tower::ServiceExt;

/// Pause after an `accept` that failed: too many open files, most likely.
const PAUSE: Duration = Duration::from_millis(50);

/// Bytes of a request that are kept at most; a longer head is refused.
const BUFFER: usize = 16 << 10;

/// What the connections to one server may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time.
    pub all: usize,
    /// Connections of one address at a time. Behind a node's address there may be more than its kubelet.
    pub each: usize,
    /// Time for a request's head.
    pub head: Duration,
    /// Time for a connection: for its one request, the answer, and until the peer has closed it.
    pub whole: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { all: 64, each: 8, head: Duration::from_secs(5), whole: Duration::from_secs(10) }
    }
}

/// Serves one request of each connection for ever.
pub async fn serve(listener: TcpListener, router: Router, limits: Limits) {
    let mut places = Places::default();
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "the admin server could not take a connection");
                sleep(PAUSE).await;
                continue;
            }
        };
        let address = peer.ip().to_canonical();
        places.make_room(address, limits);
        let router = router.clone();
        let task = tokio::spawn(async move {
            // Whoever breaks off, or is too slow, is not told so.
            let _ = timeout(limits.whole, converse(stream, peer, router, limits.head)).await;
        });
        places.0.push_back(Place { address, task: task.abort_handle() });
    }
}

/// A connection that is open, or was.
#[derive(Debug)]
struct Place {
    address: IpAddr,
    task: AbortHandle,
}

/// Every open connection, the oldest first.
#[derive(Debug, Default)]
struct Places(VecDeque<Place>);

impl Places {
    /// Ends a connection if one more of `address` would be too many: the oldest of that address, or else of the one that
    /// has most. A new one is never refused: whoever holds all places would keep the probes out.
    fn make_room(&mut self, address: IpAddr, limits: Limits) {
        self.0.retain(|place| !place.task.is_finished());
        let of = |address: IpAddr| self.0.iter().filter(|place| place.address == address).count();
        let crowd = if of(address) >= limits.each {
            Some(address)
        } else if self.0.len() >= limits.all {
            self.0.iter().map(|place| place.address).min_by_key(|address| Reverse(of(*address)))
        } else {
            None
        };
        let oldest = self.0.iter().position(|place| Some(place.address) == crowd);
        if let Some(place) = oldest.and_then(|oldest| self.0.remove(oldest)) {
            place.task.abort();
        }
    }
}

/// Answers one request of `peer`, and waits until it has closed the connection.
async fn converse(
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    head: Duration,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    // An answer that nobody reads goes with its connection. The kernel would keep it for minutes.
    stream.set_zero_linger()?;
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        let router = router.clone();
        async move { Ok::<_, Infallible>(router.oneshot(request).await.unwrap_or_else(|never| match never {})) }
    });
    let parts = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head)
        .keep_alive(false)
        .max_buf_size(BUFFER)
        .serve_connection(TokioIo::new(stream), service)
        .without_shutdown()
        .await?;
    let mut stream = parts.io.into_inner();
    stream.shutdown().await?;
    copy(&mut stream, &mut sink()).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use rstest::rstest;
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpSocket;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    /// Bytes of a large answer: more than the kernel takes.
    const LARGE: usize = 64 << 20;

    const PATIENT: Limits = Limits { all: 4, each: 2, head: LONG, whole: LONG };

    /// Address of a server with `limits` that has something small and something large.
    async fn server(limits: Limits) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new()
            .route("/small", get(|| async { "ok\n" }))
            .route("/large", get(|| async { "x".repeat(LARGE) }));
        tokio::spawn(serve(listener, router, limits));
        address
    }

    /// A connection to `server` from 127.0.0.`from`.
    async fn connect(server: SocketAddr, from: u8) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from(([127, 0, 0, from], 0))).unwrap();
        socket.connect(server).await.unwrap()
    }

    /// What `stream` is answered.
    async fn ask(stream: &mut TcpStream, path: &str) -> std::io::Result<String> {
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).await?;
        let mut answer = String::new();
        timeout(LONG, stream.read_to_string(&mut answer)).await.unwrap()?;
        Ok(answer)
    }

    /// Waits until the server has ended `stream` without an answer.
    async fn ended(stream: &mut TcpStream) {
        let mut answer = Vec::new();
        let _ = timeout(LONG / 2, stream.read_to_end(&mut answer)).await.expect("it is open still");
        assert!(!answer.starts_with(b"HTTP/1.1 200"));
    }

    #[tokio::test]
    async fn an_answer_is_whole_and_the_last_of_its_connection() {
        let server = server(Limits::default()).await;
        let small = ask(&mut connect(server, 1).await, "/small").await.unwrap();
        assert!(small.starts_with("HTTP/1.1 200 OK\r\n") && small.ends_with("\r\n\r\nok\n"), "{small}");
        assert!(small.contains("\r\nconnection: close\r\n"), "{small}");
        let large = ask(&mut connect(server, 1).await, "/large").await.unwrap();
        assert!(large.len() > LARGE, "{}", large.len());
    }

    #[rstest]
    #[case::nothing("")]
    #[case::a_part("GET /small HTTP/1.1\r\nHost: a\r\n")]
    #[tokio::test]
    async fn a_slow_head_is_ended(#[case] head: &str) {
        let server = server(Limits { head: Duration::from_millis(50), ..PATIENT }).await;
        let mut slow = connect(server, 1).await;
        slow.write_all(head.as_bytes()).await.unwrap();
        ended(&mut slow).await;
    }

    #[rstest]
    #[case::longer_than_the_kernel_takes("/large")]
    #[case::sent_but_never_closed("/small")]
    #[tokio::test]
    async fn an_answer_that_is_not_read_is_given_up(#[case] path: &str) {
        let server = server(Limits { whole: Duration::from_millis(100), ..PATIENT }).await;
        let mut lazy = connect(server, 1).await;
        lazy.write_all(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n").as_bytes()).await.unwrap();
        let given_up = async {
            while lazy.write_all(b" ").await.is_ok() {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(LONG / 2, given_up).await.expect("it is open still");
        let mut rest = Vec::new();
        let _ = lazy.read_to_end(&mut rest).await;
        assert!(rest.len() < LARGE, "the kernel kept it");
    }

    #[tokio::test]
    async fn a_head_has_an_end() {
        let server = server(PATIENT).await;
        let mut stream = connect(server, 1).await;
        let long = format!("GET /small HTTP/1.1\r\nA: {}\r\n\r\n", "a".repeat(BUFFER));
        let _ = stream.write_all(long.as_bytes()).await;
        ended(&mut stream).await;
    }

    #[tokio::test]
    async fn one_address_cannot_take_all_places() {
        let server = server(PATIENT).await;
        let other = connect(server, 2).await;
        let mut first = connect(server, 1).await;
        let (second, third) = (connect(server, 1).await, connect(server, 1).await);
        ended(&mut first).await;
        for mut served in [other, second, third] {
            assert!(ask(&mut served, "/small").await.unwrap().ends_with("ok\n"));
        }
    }

    #[tokio::test]
    async fn who_has_most_makes_room_for_one_more() {
        let server = server(PATIENT).await;
        let (single, another) = (connect(server, 2).await, connect(server, 3).await);
        let (mut first, second) = (connect(server, 1).await, connect(server, 1).await);
        let probe = connect(server, 4).await;
        ended(&mut first).await;
        for mut served in [probe, single, another, second] {
            assert!(ask(&mut served, "/small").await.unwrap().ends_with("ok\n"));
        }
    }
}
