//! Takes connections: TLS, a request, who asks, and then what is asked for.
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncBufRead, AsyncBufReadExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::task::TaskTracker;

use super::certificate::Certificates;
use super::context::Context;
use super::http::head;
use super::identity::Peer;
use super::refusal::{Cause, Refusal};
use super::request::{self, BadRequest, Wish};
use super::sources::Waiting;
use super::{policy_stream, tunnel, unheard};
use crate::egress::buffered::Buffered;
use crate::egress::sockets;
use crate::egress::wire::ALPN;

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
    /// Room for connections, as many as `context.limits` says.
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
            // From three quarters of the places on a new one makes room before it takes one, so that there always is some for
            // those who have something to say. Where there is none all the same another gateway may have room.
            let crowded = self.places.available_permits() <= self.context.limits.places / 4;
            let Some(waiting) = self.context.sources.enter(source.ip().to_canonical(), crowded) else {
                continue;
            };
            if crowded {
                // What has to end gets its turn to do so.
                yield_now().await;
            }
            let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else { continue };
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

type Agent = TlsStream<Buffered<TcpStream>>;

/// Why somebody is nobody.
enum Stranger {
    /// It said nothing, or not all, in its time.
    Silent,
    /// It hung up by itself before it had said anything: a probe of the port, or a spare connection that is not needed.
    Left,
    /// This gateway is about to end.
    Draining,
    /// It is refused, and told so where it can be.
    Refused(Refusal, Option<Box<Agent>>),
}

async fn serve(
    context: &Context,
    acceptor: &TlsAcceptor,
    stream: TcpStream,
    source: SocketAddr,
    waiting: Waiting,
) {
    let greeted = tokio::select! {
        biased;
        // It was counted by whoever needs the room.
        () = waiting.ended() => return,
        greeted = greet(context, acceptor, stream, &waiting) => greeted,
    };
    match greeted {
        Ok((mut agent, peer, wish)) => {
            drop(waiting);
            answer(context, &mut agent, &peer, &wish, source).await;
        }
        Err(Stranger::Silent) => waiting.silent(),
        Err(Stranger::Left) => waiting.left(),
        Err(Stranger::Draining) => {}
        Err(Stranger::Refused(refusal, agent)) => {
            if let Some(suppressed) = waiting.refused() {
                context.records.write(unheard::of_nobody(source, &refusal, suppressed)).await;
            }
            let Some(mut agent) = agent else { return };
            context.metrics.ended(false, refusal.cause.word());
            let response = refusal.response();
            tokio::select! {
                () = waiting.ended() => {}
                () = tunnel::finish(&mut *agent, &response) => {}
            }
        }
    }
}

/// Finds out who asks, and for what.
async fn greet(
    context: &Context,
    acceptor: &TlsAcceptor,
    stream: TcpStream,
    waiting: &Waiting,
) -> Result<(Box<Agent>, Peer, Wish), Stranger> {
    let _ = stream.set_nodelay(true);
    let mut agent = match timeout(context.limits.handshake, acceptor.accept(Buffered::new(stream))).await {
        Ok(Ok(agent)) => Box::new(agent),
        Ok(Err(error)) => {
            context.metrics.handshake_failures.inc();
            // Probes of ports hang up without a word.
            if error.kind() == std::io::ErrorKind::UnexpectedEof {
                return Err(Stranger::Left);
            }
            let refusal = Refusal::new(Cause::Unauthenticated, format!("no TLS handshake: {error}"));
            return Err(Stranger::Refused(refusal, None));
        }
        Err(_) => {
            context.metrics.handshake_failures.inc();
            return Err(Stranger::Silent);
        }
    };
    agent.get_mut().1.set_buffer_limit(Some(UNSENT));
    if agent.get_ref().1.alpn_protocol() != Some(ALPN) {
        let message = "another protocol was spoken than between sidecar and gateway";
        return Err(Stranger::Refused(Refusal::new(Cause::BadRequest, message), Some(agent)));
    }
    let request = match request(context, &mut *agent).await {
        Ok(request) => request,
        Err(Stranger::Refused(refusal, _)) => return Err(Stranger::Refused(refusal, Some(agent))),
        Err(other) => return Err(other),
    };
    match context.identity.authenticate(request.token.as_ref(), || waiting.may_ask()).await {
        Ok(peer) => Ok((agent, peer, request.wish)),
        Err(refusal) => Err(Stranger::Refused(refusal, Some(agent))),
    }
}

async fn answer(context: &Context, agent: &mut Agent, peer: &Peer, wish: &Wish, source: SocketAddr) {
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

/// The request.
async fn request<A: AsyncBufRead + Unpin>(
    context: &Context,
    agent: &mut A,
) -> Result<request::Request, Stranger> {
    let waited = tokio::select! {
        () = context.drained() => return Err(Stranger::Draining),
        first = timeout(context.limits.spare, agent.fill_buf()) => first,
    };
    match waited {
        Ok(Ok([_, ..])) => {}
        Ok(_) => return Err(Stranger::Left),
        Err(_) => return Err(Stranger::Silent),
    }
    let deadline = Instant::now() + context.limits.head;
    let (mut bytes, mut seen) = (Vec::new(), 0);
    let refuse =
        |error: BadRequest| Stranger::Refused(Refusal::new(Cause::BadRequest, error.to_string()), None);
    loop {
        let Ok(piece) = timeout_at(deadline, agent.fill_buf()).await else {
            let message = "the request did not come to its end in time";
            return Err(Stranger::Refused(Refusal::new(Cause::TooSlow, message), None));
        };
        let piece = match piece {
            Ok([]) | Err(_) => return Err(Stranger::Silent),
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
