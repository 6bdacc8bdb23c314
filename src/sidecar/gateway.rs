//! Connections to the egress gateways: TLS 1.3, one request each.
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::FutureExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{CipherSuite, ClientConfig, RootCertStore, version};

use super::held::Held;
use super::http1::{self, Framing, Response};
use super::kernel_buffers;
use super::token::TokenFile;
use crate::egress::buffered::Buffered;
use crate::egress::sockets::socket;
use crate::egress::wire::{ALPN, Denial};

/// Longest wait for a TCP connection. A gateway that does not answer is gone, and another one may be there.
const CONNECT: Duration = Duration::from_secs(2);

/// Longest wait for the TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(3);

/// Longest wait for the answer: the gateway resolves the name and dials within it.
const ANSWER: Duration = Duration::from_secs(30);

/// Bytes of the agent's that TLS keeps where the gateway does not read.
const TLS_BUFFER: usize = 32 * 1024;

/// Longest body of a refusal.
const MAX_DENIAL: u64 = 16 * 1024;

/// Connections that are kept ready.
const SPARES: usize = 2;

/// Time before a spare connection is made: its handshake would take the thread, and on a small node the gateway's core,
/// from the first bytes of the tunnel that took the one before.
const SETTLE: Duration = Duration::from_millis(5);

/// Age at which a spare connection is given up.
const MAX_AGE: Duration = Duration::from_secs(20);

/// Time after the last tunnel for which spares are kept: an agent that does nothing costs the gateway no handshakes.
const WARM: Duration = Duration::from_mins(1);

/// Time for which a gateway that failed comes last.
const PENALTY: Duration = Duration::from_secs(10);

/// Addresses that are tried: two gateways, and the Service, behind which there may be others.
const TRIES: usize = 3;

/// A connection.
pub type Wire = TlsStream<Buffered<TcpStream>>;

/// How to reach the gateways.
#[derive(Clone, Debug)]
pub struct GatewayConfig {
    /// Address of their Service.
    pub service: SocketAddr,
    /// Certificates that theirs is signed by, PEM.
    pub authorities: String,
    /// Name in their certificate.
    pub name: String,
    /// File with the Pod's token.
    pub token_file: PathBuf,
}

/// The gateways.
#[derive(Debug)]
pub struct Gateways {
    service: SocketAddr,
    name: ServerName<'static>,
    host: String,
    connector: Connector,
    token: TokenFile,
    held: Arc<Held>,
    state: Mutex<State>,
    used: Notify,
}

/// With a `Debug` of its own: the configuration has none worth reading.
struct Connector(TlsConnector);

impl std::fmt::Debug for Connector {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Connector")
    }
}

#[derive(Debug, Default)]
struct State {
    spares: Vec<Spare>,
    used: Option<Instant>,
    failed: HashMap<SocketAddr, Instant>,
}

#[derive(Debug)]
struct Spare {
    wire: Wire,
    made: Instant,
}

impl Gateways {
    /// The gateways of `config`; their addresses are those that `held` was told.
    pub fn new(config: &GatewayConfig, held: Arc<Held>) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(config.authorities.as_bytes()) {
            let certificate = certificate.map_err(|error| format!("the gateway's authority: {error:?}"))?;
            roots.add(certificate).map_err(|error| format!("the gateway's authority: {error}"))?;
        }
        if roots.is_empty() {
            return Err("the gateway's authority: no certificate".to_owned());
        }
        let name = ServerName::try_from(config.name.clone()).map_err(|error| error.to_string())?;
        let mut provider = ring::default_provider();
        // The suite that every implementation has (RFC 8446, 9.1) takes a quarter less time than the default, AES-256.
        provider.cipher_suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
        let mut tls = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&version::TLS13])
            .map_err(|error| error.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![ALPN.to_vec()];
        tls.resumption = Resumption::in_memory_sessions(8);
        Ok(Self {
            service: config.service,
            name,
            host: config.name.clone(),
            connector: Connector(TlsConnector::from(Arc::new(tls))),
            token: TokenFile::new(config.token_file.clone()),
            held,
            state: Mutex::default(),
            used: Notify::new(),
        })
    }

    /// Name in the gateways' certificate.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Makes a request of `line` with `host` and `fields`, each ended by a line break, and returns the connection after
    /// the head of an answer of 200. Another gateway is tried until one has answered: before that nothing of the
    /// agent's has left.
    pub async fn request(&self, line: &str, host: &str, fields: &str) -> Result<Buffered<Wire>, Denial> {
        let token = self.token.token().map_err(|error| {
            denial("TokenUnavailable", format!("the Pod's token cannot be read: {error}"))
        })?;
        let head = format!("{line}\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\n{fields}\r\n");
        let mut last = denial("GatewayUnreachable", "no egress gateway can be reached".to_owned());
        // Not until there is none: others are made all the time.
        for _ in 0..SPARES {
            let Some(spare) = self.take_spare() else { break };
            // One that the gateway has closed meanwhile says nothing of the gateway.
            match ask(spare, head.as_bytes()).await {
                Ok(answer) => return answer,
                Err(unanswered) => last = unanswered,
            }
        }
        for address in self.candidates().into_iter().take(TRIES) {
            let answer = match Box::pin(self.connect(address)).await {
                Ok(wire) => ask(wire, head.as_bytes()).await,
                Err(error) => Err(unreachable(address, &error)),
            };
            match answer {
                Ok(answer) => return answer,
                Err(unanswered) => {
                    self.state().failed.insert(address, Instant::now());
                    last = unanswered;
                }
            }
        }
        Err(last)
    }

    /// Keeps connections ready as long as tunnels are made.
    pub async fn keep_spares(&self) {
        loop {
            let pause = {
                let mut state = self.state();
                state.spares.retain(|spare| spare.made.elapsed() < MAX_AGE);
                let warm = state.used.is_some_and(|used| used.elapsed() < WARM);
                match (warm, state.spares.len()) {
                    (true, count) if count < SPARES => None,
                    (true, _) => Some(Duration::from_secs(2)),
                    // Nothing to do before the next tunnel, but to let go of what is old.
                    (false, 0) => Some(Duration::from_hours(24)),
                    (false, _) => Some(MAX_AGE),
                }
            };
            if let Some(pause) = pause {
                let _ = timeout(pause, self.used.notified()).await;
                continue;
            }
            tokio::time::sleep(SETTLE).await;
            let address = self.candidates().into_iter().next().unwrap_or(self.service);
            if let Ok(wire) = Box::pin(self.connect(address)).await {
                self.state().spares.push(Spare { wire, made: Instant::now() });
            } else {
                self.state().failed.insert(address, Instant::now());
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }

    /// Notes that a tunnel was made, so that others may follow.
    pub fn note_use(&self) {
        self.state().used = Some(Instant::now());
        self.used.notify_one();
    }

    fn take_spare(&self) -> Option<Wire> {
        loop {
            let mut spare = {
                let mut state = self.state();
                if state.spares.is_empty() {
                    return None;
                }
                // The oldest first, so that none becomes too old unused.
                state.spares.remove(0)
            };
            let quiet = tokio::io::AsyncReadExt::read_u8(&mut spare.wire).now_or_never().is_none();
            if quiet && spare.made.elapsed() < MAX_AGE {
                return Some(spare.wire);
            }
        }
    }

    /// Addresses in the order in which they are tried: the gateways that were told, then the Service; what failed a
    /// moment ago last.
    fn candidates(&self) -> Vec<SocketAddr> {
        let mut state = self.state();
        state.failed.retain(|_, failed| failed.elapsed() < PENALTY);
        let has_failed = |address: &SocketAddr| state.failed.contains_key(address);
        let mut addresses = self.held.link().gateways;
        addresses.sort_by_key(has_failed);
        addresses.truncate(TRIES - 1);
        addresses.push(self.service);
        addresses.sort_by_key(has_failed);
        addresses.dedup();
        addresses
    }

    async fn connect(&self, address: SocketAddr) -> io::Result<Wire> {
        let socket = socket(address, kernel_buffers::TUNNEL)?;
        let stream = timeout(CONNECT, socket.connect(address)).await??;
        stream.set_nodelay(true)?;
        let mut wire =
            timeout(HANDSHAKE, self.connector.0.connect(self.name.clone(), Buffered::new(stream))).await??;
        wire.get_mut().1.set_buffer_limit(Some(TLS_BUFFER));
        if wire.get_ref().1.alpn_protocol() != Some(ALPN) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it speaks another protocol"));
        }
        Ok(wire)
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A refusal in our own words.
pub fn denial(reason: &str, message: String) -> Denial {
    Denial { reason: reason.to_owned(), message }
}

fn unreachable(address: SocketAddr, error: &io::Error) -> Denial {
    denial("GatewayUnreachable", format!("the egress gateway at {address}: {error}"))
}

/// Sends `head` and reads the answer. The outer error is one after which another gateway may be asked.
async fn ask(wire: Wire, head: &[u8]) -> Result<Result<Buffered<Wire>, Denial>, Denial> {
    let mut wire = wire;
    let lost = |error: &io::Error| denial("GatewayUnreachable", format!("the egress gateway: {error}"));
    let sent = async {
        wire.write_all(head).await?;
        wire.flush().await
    };
    match timeout(CONNECT, sent).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return Err(lost(&error)),
        Err(late) => return Err(lost(&late.into())),
    }
    let mut stream = Buffered::new(wire);
    let answer = timeout(ANSWER, async {
        let head =
            http1::read_head(&mut stream).await?.ok_or(io::Error::from(io::ErrorKind::UnexpectedEof))?;
        let response = Response::parse(&head)?;
        if response.status == 200 {
            return Ok(None);
        }
        let denial = read_denial(&mut stream, &response).await?;
        Ok(Some((response.status, denial)))
    });
    match answer.await {
        Ok(Ok(None)) => Ok(Ok(stream)),
        // It is about to end, cannot ask the API server, or does not know the sandbox: another one may.
        Ok(Ok(Some((503, denial)))) => Err(denial),
        Ok(Ok(Some((_, denial)))) => Ok(Err(denial)),
        Ok(Err(error)) => Err(lost(&error)),
        Err(_) => Ok(Err(denial("GatewayTimeout", "the egress gateway did not answer in time".to_owned()))),
    }
}

async fn read_denial(stream: &mut Buffered<Wire>, response: &Response) -> io::Result<Denial> {
    let mut body = Vec::new();
    match response.framing("CONNECT")? {
        Framing::Length(length) if length <= MAX_DENIAL => {
            http1::copy_body(stream, &mut body, Framing::Length(length)).await?;
        }
        _ => {}
    }
    let own = || denial("GatewayError", format!("the egress gateway answered {}", response.status));
    let mut read: Denial = serde_json::from_slice(&body).unwrap_or_else(|_| own());
    // It goes into heads and records.
    if read.reason.is_empty() || !read.reason.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        read.reason = own().reason;
    }
    read.reason.truncate(64);
    read.message = read.message.chars().take(1000).collect();
    Ok(read)
}
