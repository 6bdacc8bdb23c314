//! Takes connections: TLS, a request, who asks, and then what is asked for.
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufRead, AsyncBufReadExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::task::TaskTracker;

use super::certificate::Certificates;
use super::context::Context;
use super::http::head;
use super::refusal::{Cause, Refusal};
use super::request::{self, BadRequest, Wish};
use super::sources::Waiting;
use super::{policy_stream, tunnel};
use crate::audit::{NetworkEvent, NetworkOutcome, now_ms};
use crate::egress::buffered::Buffered;
use crate::egress::sockets;
use crate::egress::wire::ALPN;

/// Time for a handshake.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// How long a connection may wait for its request: sidecars keep spare ones for 20 seconds.
const SPARE: Duration = Duration::from_secs(30);

/// Bytes that the TLS layer keeps for a peer that does not read.
const UNSENT: usize = 32 * 1024;

/// Bytes that the kernel keeps for a sidecar in each direction: enough within a cluster.
const KERNEL_BUFFER: u32 = 128 * 1024;

/// Connections that wait to be taken.
const BACKLOG: u32 = 1024;

/// Listens on `address`.
pub fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    sockets::listen(address, KERNEL_BUFFER, BACKLOG)
}

/// What the server needs besides.
#[derive(Debug)]
pub struct Server {
    /// What every connection has at hand.
    pub context: Arc<Context>,
    /// The certificate.
    pub certificates: Arc<Certificates>,
    /// Connections in all.
    pub places: Arc<Semaphore>,
    /// Every connection.
    pub tracker: TaskTracker,
}

impl Server {
    /// Takes connections for ever.
    pub async fn run(&self, listener: TcpListener, acceptor: TlsAcceptor) {
        loop {
            let (stream, source) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Such as too many open files: some may be closed soon.
                    tracing::warn!(%error, "a connection cannot be taken");
                    sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            // Whoever is too many is hung up on: another gateway may have room.
            let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else { continue };
            let Some(waiting) = self.context.sources.enter(source.ip().to_canonical()) else { continue };
            if self.certificates.valid_for().is_none() {
                continue;
            }
            let (context, acceptor) = (Arc::clone(&self.context), acceptor.clone());
            self.tracker.spawn(async move {
                Box::pin(serve(&context, &acceptor, stream, source, waiting)).await;
                drop(place);
            });
        }
    }
}

async fn serve(
    context: &Context,
    acceptor: &TlsAcceptor,
    stream: TcpStream,
    source: SocketAddr,
    waiting: Waiting,
) {
    let _ = stream.set_nodelay(true);
    let mut agent = match timeout(HANDSHAKE, acceptor.accept(Buffered::new(stream))).await {
        Ok(Ok(agent)) => agent,
        Ok(Err(error)) => {
            context.metrics.handshake_failures.inc();
            // Probes of ports hang up without a word.
            if error.kind() != std::io::ErrorKind::UnexpectedEof {
                let refusal = Refusal::new(Cause::Unauthenticated, format!("no TLS handshake: {error}"));
                record(context, source, &waiting, &refusal).await;
            }
            return;
        }
        Err(_) => {
            context.metrics.handshake_failures.inc();
            return;
        }
    };
    agent.get_mut().1.set_buffer_limit(Some(UNSENT));
    let result = if agent.get_ref().1.alpn_protocol() == Some(ALPN) {
        request(context, &mut agent).await
    } else {
        let message = "another protocol was spoken than between sidecar and gateway";
        Err(Some(Refusal::new(Cause::BadRequest, message)))
    };
    let refusal = match result {
        Ok(request) => {
            match context.identity.authenticate(request.token.as_ref(), || waiting.may_ask()).await {
                Ok(peer) => {
                    drop(waiting);
                    return answer(context, &mut agent, &peer, &request.wish, source).await;
                }
                Err(refusal) => refusal,
            }
        }
        Err(Some(refusal)) => refusal,
        Err(None) => return,
    };
    context.metrics.ended(false, refusal.cause.word());
    record(context, source, &waiting, &refusal).await;
    tunnel::finish(&mut agent, &refusal.response()).await;
}

async fn answer(
    context: &Context,
    agent: &mut TlsStream<Buffered<TcpStream>>,
    peer: &super::identity::Peer,
    wish: &Wish,
    source: SocketAddr,
) {
    match wish {
        Wish::Connect(connect) => tunnel::serve(context, agent, peer, connect, source).await,
        Wish::Policy => {
            if let Err(refusal) = policy_stream::serve(context, agent, peer).await {
                context.metrics.ended(false, refusal.cause.word());
                tunnel::finish(agent, &refusal.response()).await;
            }
        }
    }
}

/// The request. `Err(None)`: the peer left, or was asked for nothing in time; a spare connection that is not needed.
async fn request<A: AsyncBufRead + Unpin>(
    context: &Context,
    agent: &mut A,
) -> Result<request::Request, Option<Refusal>> {
    let waited = tokio::select! {
        () = context.drained() => return Err(None),
        first = timeout(SPARE, agent.fill_buf()) => first,
    };
    if !matches!(waited, Ok(Ok([_, ..]))) {
        return Err(None);
    }
    let deadline = Instant::now() + context.limits.head;
    let (mut bytes, mut seen) = (Vec::new(), 0);
    let refuse = |error: BadRequest| Some(Refusal::new(Cause::BadRequest, error.to_string()));
    loop {
        let Ok(piece) = timeout_at(deadline, agent.fill_buf()).await else {
            return Err(Some(Refusal::new(Cause::TooSlow, "the request did not come to its end in time")));
        };
        let piece = match piece {
            Ok([]) | Err(_) => return Err(None),
            Ok(piece) => piece,
        };
        let (before, length) = (bytes.len(), piece.len());
        bytes.extend_from_slice(piece);
        match head::length(&bytes, seen) {
            Ok(Some(end)) => {
                // What follows is the agent's.
                agent.consume(end.saturating_sub(before));
                bytes.truncate(end);
                return request::parse(&bytes).map_err(refuse);
            }
            Ok(None) => {
                agent.consume(length);
                seen = bytes.len();
            }
            Err(error) => return Err(refuse(error.into())),
        }
    }
}

/// Records a refusal of somebody who did not say who it is, unless there are too many of them.
async fn record(context: &Context, source: SocketAddr, waiting: &Waiting, refusal: &Refusal) {
    let Some(suppressed) = waiting.refused() else { return };
    context
        .records
        .write(NetworkEvent {
            connection: None,
            sandbox: None,
            pod: None,
            policy: None,
            source,
            via: None,
            host: None,
            port: None,
            address: None,
            protocol: None,
            outcome: NetworkOutcome::Refused,
            rule: None,
            reason: refusal.cause.word(),
            detail: Some(refusal.message.clone()),
            bytes_out: 0,
            bytes_in: 0,
            requests: None,
            started: now_ms(),
            duration: 0,
            suppressed,
        })
        .await;
}
