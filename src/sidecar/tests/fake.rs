//! A gateway for tests: it speaks the protocol, and decides and dials as it is told.
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use agentsandbox_wire::{ALPN, AllowedHost, Denial, PolicyUpdate};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

use super::agentsandbox_wire;

pub const NAME: &str = "agentsandbox-gateway.system.svc";

/// What is done with a `CONNECT`.
#[derive(Clone)]
pub enum Route {
    To(SocketAddr),
    /// As [`Route::To`], with bytes of the server right behind the head of the answer.
    Greets(SocketAddr, &'static [u8]),
    Deny(Denial),
    HangUp,
}

/// A certificate authority.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// The gateway.
#[derive(Clone)]
pub struct Fake {
    pub address: SocketAddr,
    /// Heads of the requests that came.
    pub heads: Arc<Mutex<Vec<String>>>,
    pub routes: Arc<Mutex<HashMap<String, Route>>>,
    /// What the policy streams tell.
    pub policy: watch::Sender<PolicyUpdate>,
    /// Connections that came, whatever became of them.
    pub connections: Arc<Mutex<usize>>,
    /// Another number ends every policy stream.
    pub epoch: watch::Sender<u32>,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() }
    }

    pub fn pem(&self) -> String {
        self.issuer.pem()
    }

    fn acceptor(&self, alpn: &[u8]) -> TlsAcceptor {
        let key = KeyPair::generate().unwrap();
        let certificate =
            CertificateParams::new(vec![NAME.to_owned()]).unwrap().signed_by(&key, &self.issuer).unwrap();
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap();
        config.alpn_protocols = vec![alpn.to_vec()];
        TlsAcceptor::from(Arc::new(config))
    }
}

pub fn update(generation: i64, hosts: &[(&str, &[u16])]) -> PolicyUpdate {
    let hosts = hosts
        .iter()
        .map(|(pattern, ports)| AllowedHost { pattern: (*pattern).into(), ports: ports.to_vec() })
        .collect();
    let digest = format!("sha256:{generation}");
    PolicyUpdate { generation, digest, hosts, bytes: None, gateways: Vec::new(), canary: None, refused: None }
}

impl Fake {
    pub async fn start(authority: &Authority, policy: PolicyUpdate) -> Self {
        Self::start_with(authority, policy, ALPN).await
    }

    pub async fn start_with(authority: &Authority, policy: PolicyUpdate, alpn: &[u8]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let fake = Self {
            address: listener.local_addr().unwrap(),
            heads: Arc::default(),
            routes: Arc::default(),
            policy: watch::Sender::new(policy),
            connections: Arc::default(),
            epoch: watch::Sender::new(0),
        };
        let (own, acceptor) = (fake.clone(), authority.acceptor(alpn));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                *own.connections.lock().unwrap() += 1;
                let (own, acceptor) = (own.clone(), acceptor.clone());
                tokio::spawn(async move { own.serve(stream, acceptor).await });
            }
        });
        fake
    }

    pub fn route(&self, target: &str, route: Route) {
        self.routes.lock().unwrap().insert(target.to_owned(), route);
    }

    /// Heads of the `CONNECT`s that came.
    pub fn connects(&self) -> Vec<String> {
        let heads = self.heads.lock().unwrap();
        heads.iter().filter(|head| head.starts_with("CONNECT ")).cloned().collect()
    }

    async fn serve(self, stream: TcpStream, acceptor: TlsAcceptor) {
        let Ok(stream) = acceptor.accept(stream).await else { return };
        let mut stream = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            match stream.read_line(&mut head).await {
                Ok(count) if count > 0 => {}
                _ => return,
            }
        }
        self.heads.lock().unwrap().push(head.clone());
        let mut words = head.split(' ');
        match (words.next(), words.next()) {
            (Some("GET"), _) => self.tell(stream).await,
            (Some("CONNECT"), Some(target)) => {
                let route = self.routes.lock().unwrap().get(target).cloned();
                let text = format!("{target} is in no rule; write host: {target}");
                let nowhere = Route::Deny(Denial { reason: "NoRule".into(), message: text });
                connect(stream, route.unwrap_or(nowhere)).await;
            }
            _ => panic!("{head}"),
        }
    }

    async fn tell<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(&self, mut stream: S) {
        let mut policies = self.policy.subscribe();
        let mut epochs = self.epoch.subscribe();
        epochs.mark_unchanged();
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        loop {
            let mut line = serde_json::to_vec(&*policies.borrow_and_update()).unwrap();
            line.push(b'\n');
            if stream.write_all(&line).await.is_err() || stream.flush().await.is_err() {
                return;
            }
            tokio::select! {
                changed = policies.changed() => if changed.is_err() { return },
                _ = epochs.changed() => return,
                () = tokio::time::sleep(std::time::Duration::from_secs(5)) => {}
            }
        }
    }
}

async fn connect<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin>(mut stream: S, route: Route) {
    match route {
        Route::HangUp => {}
        Route::Deny(denial) => {
            let body = serde_json::to_string(&denial).unwrap();
            let elsewhere = matches!(denial.reason.as_str(), "Draining" | "PolicyUnknown");
            let status = if elsewhere { "503 Service Unavailable" } else { "403 Forbidden" };
            let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            stream.write_all(answer.as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
        }
        Route::To(address) => relay(stream, address, b"").await,
        Route::Greets(address, greeting) => relay(stream, address, greeting).await,
    }
}

async fn relay<S>(mut stream: S, address: SocketAddr, greeting: &[u8])
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let mut upstream = TcpStream::connect(address).await.unwrap();
    let answer = [b"HTTP/1.1 200 OK\r\n\r\n", greeting].concat();
    let _ = stream.write_all(&answer).await;
    let _ = stream.flush().await;
    let _ = copy_bidirectional(&mut stream, &mut upstream).await;
}
