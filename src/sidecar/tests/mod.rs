//! The whole egress over real sockets, with a gateway of its own.
mod connections;
pub(super) mod fake;
mod limits;
mod plain_http;
mod policy;
mod with_gateway;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use self::fake::{Authority, Fake, NAME, Route, update};
use super::egress::{AddressPlan, Egress};
use super::gate::Pace;
use super::journal::Journal;
use super::{EgressOptions, Options};
use crate::audit::SandboxRecords;
use crate::egress::wire as agentsandbox_wire;
use crate::egress::wire::{Denial, PolicyUpdate};

/// A sandbox's egress, and the gateway that it has.
struct Case<G = Fake> {
    gateway: G,
    egress: Egress,
    plan: AddressPlan,
    directory: tempfile::TempDir,
}

/// A part of 127.0.0.0/8 of its own, so that tests can run side by side.
pub(super) fn plan() -> AddressPlan {
    static NEXT: AtomicU8 = AtomicU8::new(0);
    let process = u8::try_from(std::process::id() % 150).unwrap();
    let own = |last| Ipv4Addr::new(127, 100 + process, NEXT.load(Ordering::Relaxed), last);
    NEXT.fetch_add(1, Ordering::Relaxed);
    AddressPlan {
        dns: (own(1), 5300).into(),
        http: (own(1), 3128).into(),
        socks: (own(1), 1080).into(),
        first: own(10),
    }
}

impl Case {
    async fn new(policy: PolicyUpdate) -> Self {
        let authority = Authority::new();
        let gateway = Fake::start(&authority, policy).await;
        let case = Self::start(&authority.pem(), gateway.address, gateway).await;
        case.has_policy().await;
        case
    }
}

impl<G> Case<G> {
    /// With `gateway` at `service`, whose certificate is signed by `authority`.
    async fn start(authority: &str, service: SocketAddr, gateway: G) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let token = directory.path().join("token");
        std::fs::write(&token, "the-token").unwrap();
        let options = Options {
            namespace: "n".into(),
            name: "s".into(),
            uid: "u".into(),
            generation: 1,
            policy_digest: "sha256:1".into(),
            spool: directory.path().to_owned(),
            proof_file: None,
            termination_log: directory.path().join("termination-log"),
            egress: EgressOptions {
                gateway: Some(service),
                gateway_ca: Some(authority.to_owned()),
                gateway_name: Some(NAME.to_owned()),
                token_file: Some(token),
                gate_api_server: Some("127.0.0.1:1".parse().unwrap()),
                gate_dns: None,
                gate_metadata: Some("127.0.0.1:1".parse().unwrap()),
            },
        };
        let records = SandboxRecords {
            sandbox: options.identity(),
            generation: 1,
            policy_digest: options.policy_digest.clone(),
            hostname: String::new(),
        };
        let journal = Journal::open(records, directory.path(), Box::new(io::sink())).unwrap();
        let plan = plan();
        let egress = Egress::start(&options, &journal, &plan, Pace::default()).await.unwrap().unwrap();
        Self { gateway, egress, plan, directory }
    }

    fn records(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("records.jsonl")).unwrap()
    }

    async fn has_policy(&self) {
        until("the policy arrives", || self.records().contains("PolicyTaken")).await;
    }

    /// Asks our DNS for an address.
    async fn resolve(&self, name: &str) -> Result<Ipv4Addr, ResponseCode> {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let mut query = Message::new(1, MessageType::Query, OpCode::Query);
        query.add_query(Query::query(Name::from_ascii(format!("{name}.")).unwrap(), RecordType::A));
        socket.send_to(&query.to_vec().unwrap(), self.plan.dns).await.unwrap();
        let mut buffer = [0; 512];
        let length = soon(socket.recv(&mut buffer)).await.unwrap();
        let reply = Message::from_vec(&buffer[..length]).unwrap();
        match reply.answers.first().map(|answer| &answer.data) {
            Some(RData::A(address)) => Ok(address.0),
            _ => Err(reply.metadata.response_code),
        }
    }

    /// Connects as an agent does that knows nothing of a proxy.
    async fn dial(&self, name: &str, port: u16) -> io::Result<TcpStream> {
        soon(TcpStream::connect((self.resolve(name).await.unwrap(), port))).await
    }
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), future).await.expect("it takes too long")
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..1000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what}");
}

/// A server that says everything again.
async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut reader, mut writer) = stream.split();
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
                let _ = writer.shutdown().await;
            });
        }
    });
    address
}

/// Sends `text` and its end, and reads to the end.
async fn exchange(stream: &mut TcpStream, text: &[u8]) -> io::Result<Vec<u8>> {
    soon(async {
        stream.write_all(text).await?;
        stream.shutdown().await?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await?;
        Ok(answer)
    })
    .await
}
