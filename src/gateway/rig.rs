//! A whole gateway on loopback for the tests: real TLS, real DNS, real servers; only the API server is played.
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use kube::core::DeserializeGuard;
use kube::runtime::watcher::Event;
use prometheus_client::metrics::gauge::Gauge;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::{sleep, timeout};
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::task::TaskTracker;

use super::canary::Canary;
use super::certificate::Certificates;
use super::certificate::tests::Authority;
use super::claims::tests::token_of;
use super::context::Context;
use super::dial::Dialer;
use super::endpoints::Endpoints;
use super::freshness::Freshness;
use super::identity::Identity;
use super::limits::Limits;
use super::memory::Memory;
use super::notices::{self, Notice};
use super::pods::Pods;
use super::pods::tests::pod;
use super::records::Records;
use super::resolve::Resolver;
use super::resolve::tests::NameServer;
use super::sandboxes::Sandboxes;
use super::sandboxes::tests::object;
use super::server::{Server, listen};
use super::sources::Sources;
use super::tokens::{PodClaim, Review, Reviewer, Tokens};
use super::tunnels::Tunnels;
use super::unheard::Unheard;
use super::vetting::Vetting;
use crate::api::v1alpha1::EgressRule;
use crate::egress::wire::{ALPN, Denial};
use crate::plan::names;
use crate::policy::AddressPolicy;

/// Name of the gateway in its certificate.
pub const GATEWAY: &str = "agentsandbox-gateway.system.svc";

/// Everything has to happen within this time.
pub const SOON: Duration = Duration::from_secs(5);

/// Plays the API server, by a token's signature: `good` is of the Pod, `away` brings no answer.
struct Said;

impl Reviewer for Said {
    fn review<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Review, String>> {
        let claim = PodClaim { namespace: "team-a".into(), name: pod_name(), uid: "p-1".into() };
        Box::pin(async move {
            match token.rsplit('.').next().unwrap() {
                "good" => Ok(Review::Valid(claim)),
                "other" => {
                    let name = other_pod_name();
                    Ok(Review::Valid(PodClaim { namespace: "team-a".into(), name, uid: "p-2".into() }))
                }
                "away" => Err("connection refused".to_owned()),
                _ => Ok(Review::Invalid("the token is not valid".to_owned())),
            }
        })
    }
}

/// Name of the Pod.
pub fn pod_name() -> String {
    names::object_name("fix", &names::hash("team-a", "fix", "s-1"))
}

/// Name of the Pod of the other sandbox.
fn other_pod_name() -> String {
    names::object_name("other", &names::hash("team-a", "other", "s-2"))
}

/// A token of the Pod with this signature; `other` is the one of the other sandbox.
pub fn token(signature: &str) -> String {
    if signature == "other" {
        return token_of("team-a", &other_pod_name(), "p-2", signature);
    }
    token_of("team-a", &pod_name(), "p-1", signature)
}

/// A whole gateway.
pub struct Rig {
    pub address: SocketAddr,
    pub authority: Authority,
    pub dns: NameServer,
    pub context: Arc<Context>,
    pub drain: watch::Sender<bool>,
    pub notices: mpsc::Receiver<Notice>,
    pub tracker: TaskTracker,
    pub certificates: Arc<Certificates>,
    routes: Arc<Mutex<HashMap<SocketAddr, SocketAddr>>>,
    records: mpsc::UnboundedReceiver<Value>,
    /// Holds the certificate.
    pub directory: tempfile::TempDir,
}

/// Takes records.
struct Lines(mpsc::UnboundedSender<Value>);

impl std::io::Write for Lines {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        let _ = self.0.send(serde_json::from_slice(line).unwrap());
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Rig {
    /// A gateway that knows the sandbox `team-a/fix` with these rules, and its Pod.
    pub async fn start(rules: Vec<EgressRule>) -> Self {
        Self::with(Limits::default(), rules).await
    }

    /// The same with other limits.
    pub async fn with(limits: Limits, rules: Vec<EgressRule>) -> Self {
        let (authority, directory) = (Authority::new(), tempfile::tempdir().unwrap());
        authority.issue_into(directory.path(), GATEWAY, -10, 1000);
        let certificates = Arc::new(Certificates::new(directory.path()));
        certificates.reload().unwrap();
        let acceptor = TlsAcceptor::from(certificates.server_config().unwrap());
        let dns = NameServer::start().await;
        let routes: Arc<Mutex<HashMap<SocketAddr, SocketAddr>>> = Arc::default();
        let (drain, draining) = watch::channel(false);
        let (notice, notices) = notices::channel();
        let (line, records) = mpsc::unbounded_channel();
        let reachable = ["198.51.100.0/24", "2001:db8::/32"].iter().map(|net| net.parse().unwrap()).collect();
        let policy = AddressPolicy { cluster: vec!["203.0.113.0/24".parse().unwrap()], reachable };
        let connect = {
            let routes = Arc::clone(&routes);
            move |asked: SocketAddr| -> BoxFuture<'static, std::io::Result<TcpStream>> {
                let real = routes.lock().unwrap().get(&asked).copied();
                Box::pin(async move {
                    let refused = std::io::ErrorKind::ConnectionRefused;
                    TcpStream::connect(real.ok_or(refused)?).await
                })
            }
        };
        let context = Arc::new(Context {
            identity: Identity {
                tokens: Tokens::new(Arc::new(Said), Arc::default()),
                pods: Arc::new(Pods::default()),
                sandboxes: Arc::new(Sandboxes::new(limits)),
            },
            sources: Sources::new(limits.rate),
            limits,
            tunnels: Tunnels::new(limits.tunnels),
            memory: Memory::default(),
            resolver: Resolver::new(&[dns.address], Duration::from_secs(1)).unwrap(),
            vetting: Vetting::new(policy, ["198.51.100.250".parse().unwrap()]),
            dialer: Dialer::through(Duration::from_secs(1), Arc::new(connect)),
            records: Records::start("gateway-0", Lines(line)).unwrap(),
            unheard: Unheard::default(),
            notices: notice,
            metrics: Arc::default(),
            freshness: Freshness::new(Gauge::default()),
            own: Some("10.0.0.1:8443".parse().unwrap()),
            peers: Arc::new(Endpoints::new(8443)),
            canary: Arc::new(Canary::new(Arc::new(Endpoints::new(8444)))),
            draining,
        });
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let tracker = TaskTracker::new();
        let server = Server {
            context: Arc::clone(&context),
            certificates: Arc::clone(&certificates),
            places: Arc::new(Semaphore::new(limits.places)),
            tracker: tracker.clone(),
        };
        tokio::spawn(async move { server.run(listener, acceptor).await });
        let rig = Self {
            address,
            authority,
            dns,
            context,
            drain,
            notices,
            tracker,
            certificates,
            routes,
            records,
            directory,
        };
        rig.context.identity.pods.take(Event::Apply(pod(&pod_name(), "p-1", "Running")));
        rig.rules(1, rules);
        rig
    }

    /// The sandbox has these rules from now on.
    pub fn rules(&self, generation: i64, rules: Vec<EgressRule>) {
        let object = DeserializeGuard(Ok(object(generation, rules)));
        self.context.identity.sandboxes.take(Event::Apply(object));
    }

    /// There is another sandbox with these rules from now on.
    pub fn other(&self, rules: Vec<EgressRule>) {
        let mut sandbox = object(1, rules);
        (sandbox.metadata.name, sandbox.metadata.uid) = (Some("other".to_owned()), Some("s-2".to_owned()));
        sandbox.status.as_mut().unwrap().pod_uid = Some("p-2".to_owned());
        self.context.identity.sandboxes.take(Event::Apply(DeserializeGuard(Ok(sandbox))));
        let mut pod = pod(&other_pod_name(), "p-2", "Running");
        let owner = &mut pod.metadata.owner_references.as_mut().unwrap()[0];
        (owner.name, owner.uid) = ("other".to_owned(), "s-2".to_owned());
        self.context.identity.pods.take(Event::Apply(pod));
    }

    /// `name` leads to `address`, and `address` at `port` to `real`.
    pub fn site(&self, name: &str, address: &str, port: u16, real: SocketAddr) {
        self.dns.addresses(name, &[address]);
        let address: IpAddr = address.parse().unwrap();
        self.routes.lock().unwrap().insert(SocketAddr::new(address, port), real);
    }

    fn trusting(&self, alpn: &[u8]) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.certificate()).unwrap();
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = if alpn.is_empty() { Vec::new() } else { vec![alpn.to_vec()] };
        TlsConnector::from(Arc::new(config))
    }

    /// A connection of a sidecar that speaks `alpn`.
    pub async fn dial(&self, alpn: &[u8]) -> std::io::Result<TlsStream<TcpStream>> {
        self.dial_from([127, 0, 0, 1], alpn).await
    }

    /// The same from another address of loopback.
    pub async fn dial_from(&self, source: [u8; 4], alpn: &[u8]) -> std::io::Result<TlsStream<TcpStream>> {
        let socket = TcpSocket::new_v4()?;
        socket.bind((source, 0).into())?;
        let stream = socket.connect(self.address).await?;
        self.trusting(alpn).connect(ServerName::try_from(GATEWAY).unwrap(), stream).await
    }

    /// Sends `request` and returns the connection.
    pub async fn send(&self, request: &str) -> TlsStream<TcpStream> {
        let mut stream = self.dial(ALPN).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    }

    /// Asks for a connection to `target`.
    pub async fn connect(&self, target: &str) -> Result<TlsStream<TcpStream>, (u16, Denial)> {
        self.connect_as(target, "good", 0).await
    }

    /// The same with another signature of the token, by a sandbox that has moved `moved` bytes.
    pub async fn connect_as(
        &self,
        target: &str,
        signature: &str,
        moved: u64,
    ) -> Result<TlsStream<TcpStream>, (u16, Denial)> {
        let mut stream = self.send(&connect_request(target, signature, moved)).await;
        let head = timeout(SOON, read_head(&mut stream)).await.unwrap();
        let status: u16 = head.split(' ').nth(1).unwrap().parse().unwrap();
        if status == 200 {
            return Ok(stream);
        }
        let mut body = String::new();
        timeout(SOON, stream.read_to_string(&mut body)).await.unwrap().unwrap();
        Err((status, serde_json::from_str(&body).unwrap()))
    }

    /// A TLS connection of the agent to `name` through a connection to `target`.
    pub async fn tls_through(
        &self,
        target: &str,
        name: &str,
    ) -> std::io::Result<TlsStream<TlsStream<TcpStream>>> {
        let stream = self.connect(target).await.unwrap();
        self.trusting(&[]).connect(ServerName::try_from(name.to_owned()).unwrap(), stream).await
    }

    /// A TLS server for `name` that sends back what it gets.
    pub async fn echo(&self, name: &str) -> SocketAddr {
        use tokio_rustls::rustls::pki_types::pem::PemObject;
        use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
        let (certificate, key) = self.authority.issue(name, -10, 1000);
        let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        serve(move |stream| {
            let acceptor = acceptor.clone();
            async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let (mut from, mut to) = tokio::io::split(stream);
                let _ = tokio::io::copy(&mut from, &mut to).await;
                let _ = to.shutdown().await;
            }
        })
        .await
    }

    /// The next record.
    pub async fn record(&mut self) -> Value {
        timeout(SOON, self.records.recv()).await.expect("there is no record").unwrap()
    }

    /// The next record, if it is written.
    pub fn record_now(&mut self) -> Option<Value> {
        self.records.try_recv().ok()
    }

    /// Waits until nothing of the sandbox is left.
    pub async fn until_idle(&self) {
        let live = self.context.identity.sandboxes.live("s-1").unwrap();
        while live.len() > 0 {
            sleep(Duration::from_millis(10)).await;
        }
    }
}

/// Text of a request for a connection.
pub fn connect_request(target: &str, signature: &str, moved: u64) -> String {
    let token = token(signature);
    format!(
        "CONNECT {target} HTTP/1.1\r\nAuthorization: Bearer {token}\r\nx-agentsandbox-via: transparent\r\nx-agentsandbox-bytes: {moved}\r\n\r\n"
    )
}

/// Reads a head, byte by byte.
pub async fn read_head(stream: &mut (impl AsyncReadExt + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

/// A server on loopback.
pub async fn serve<F>(handle: impl Fn(TcpStream) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(handle(stream));
        }
    });
    address
}

/// An HTTP server that answers each request with its request line, and keeps what it got.
pub async fn http_server() -> (SocketAddr, Arc<Mutex<String>>) {
    let got: Arc<Mutex<String>> = Arc::default();
    let seen = Arc::clone(&got);
    let address = serve(move |mut stream| {
        let seen = Arc::clone(&seen);
        async move {
            let mut head = String::new();
            while let Ok(byte) = stream.read_u8().await {
                head.push(char::from(byte));
                seen.lock().unwrap().push(char::from(byte));
                if head.ends_with("\r\n\r\n") {
                    let body = head.lines().next().unwrap();
                    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                    stream.write_all(answer.as_bytes()).await.unwrap();
                    head.clear();
                }
            }
        }
    })
    .await;
    (address, got)
}
