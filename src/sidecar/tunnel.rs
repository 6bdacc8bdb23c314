//! Tunnels through a gateway to one name and port each.
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::budget::{Budget, Counted, Meter};
use super::gateway::{Gateways, Wire, denial};
use super::held::Held;
use super::kernel_buffers::{self, narrow};
use super::ledger::Ledger;
use crate::egress::buffered::Buffered;
use crate::egress::wire::{BYTES_HEADER, Denial, VIA_HEADER};
use crate::policy::HostName;

/// Tunnels at once; the gateway has a limit of its own.
const MAX_TUNNELS: usize = 256;

/// Time without a byte after which a tunnel is closed; longer than the gateway's, which tells first.
const IDLE: Duration = Duration::from_mins(16);

/// How the agent asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    /// By an address that DNS gave it.
    Transparent,
    /// By `CONNECT` to the HTTP proxy.
    HttpConnect,
    /// By a request to the HTTP proxy.
    Http,
    /// By SOCKS5.
    Socks5,
}

impl Via {
    /// As the protocol has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Transparent => "transparent",
            Self::HttpConnect => "http-connect",
            Self::Http => "http",
            Self::Socks5 => "socks5",
        }
    }
}

/// What a tunnel leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Name.
    pub name: HostName,
    /// Port, not 0.
    pub port: u16,
}

impl std::fmt::Display for Target {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}:{}", self.name, self.port)
    }
}

/// Maker of tunnels.
#[derive(Debug)]
pub struct Tunnels {
    gateways: Arc<Gateways>,
    held: Arc<Held>,
    budget: Arc<Budget>,
    ledger: Arc<Ledger>,
    room: Arc<Semaphore>,
}

/// A tunnel. Its bytes count.
#[derive(Debug)]
pub struct Tunnel {
    /// From the gateway.
    pub reader: Buffered<ReadHalf<Counted<Wire>>>,
    /// To the gateway.
    pub writer: WriteHalf<Counted<Wire>>,
    /// Ends it from outside.
    pub watch: Watch,
}

/// What ends a tunnel from outside.
#[derive(Debug)]
pub struct Watch {
    target: Target,
    meter: Arc<Meter>,
    held: Arc<Held>,
    _place: OwnedSemaphorePermit,
}

impl Tunnels {
    /// Makes tunnels through `gateways`.
    pub fn new(gateways: Arc<Gateways>, held: Arc<Held>, budget: Arc<Budget>, ledger: Arc<Ledger>) -> Self {
        Self { gateways, held, budget, ledger, room: Arc::new(Semaphore::new(MAX_TUNNELS)) }
    }

    /// Opens a tunnel. The gateway decides; its refusal is counted and recorded here.
    pub async fn open(&self, target: &Target, via: Via) -> Result<Tunnel, Denial> {
        let place = self.admit(target).inspect_err(|denial| self.refuse(&target.to_string(), via, denial))?;
        let opened = Box::pin(self.ask(target, via, place)).await;
        match &opened {
            Ok(_) => self.ledger.allowed(),
            Err(denial) => self.note(&target.to_string(), via, denial),
        }
        opened
    }

    /// Whether there are so many that a further connection has to make do with little memory.
    pub fn are_many(&self) -> bool {
        kernel_buffers::are_many(&self.room, MAX_TUNNELS)
    }

    /// Counts and records a refusal that was decided here.
    pub fn refuse(&self, target: &str, via: Via, denial: &Denial) {
        self.note(target, via, denial);
        self.ledger.not_told(target, &denial.reason);
    }

    fn note(&self, target: &str, via: Via, denial: &Denial) {
        if is_failure(&denial.reason) {
            self.ledger.connection_failed(target, via.as_str(), &denial.reason);
        } else {
            self.ledger.connection_refused(target, via.as_str(), &denial.reason);
        }
    }

    /// Whether there is room for a tunnel, and bytes are left.
    fn admit(&self, target: &Target) -> Result<OwnedSemaphorePermit, Denial> {
        let Ok(place) = Arc::clone(&self.room).try_acquire_owned() else {
            let text = format!("{target}: the sandbox has {MAX_TUNNELS} connections already");
            return Err(denial("TooManyConnections", text));
        };
        if self.budget.is_spent() {
            return Err(exceeded(target));
        }
        Ok(place)
    }

    /// Asks the gateway.
    async fn ask(&self, target: &Target, via: Via, place: OwnedSemaphorePermit) -> Result<Tunnel, Denial> {
        let line = format!("CONNECT {target} HTTP/1.1");
        let bytes = self.budget.total();
        let fields = format!("{VIA_HEADER}: {}\r\n{BYTES_HEADER}: {bytes}\r\n", via.as_str());
        let answer = self.gateways.request(&line, &target.to_string(), &fields).await;
        // Only now: the handshakes of new spares would take the thread from this request.
        self.gateways.note_use();
        let stream = answer?;
        let meter = Meter::new(Arc::clone(&self.budget));
        let (wire, early) = stream.into_parts();
        if self.are_many() {
            narrow(wire.get_ref().0.inner());
        }
        // What a server says first may come with the answer.
        if !meter.take_inwards(early.len()) {
            return Err(exceeded(target));
        }
        let (reader, writer) = tokio::io::split(Counted::new(wire, Arc::clone(&meter)));
        let watch = Watch { target: target.clone(), meter, held: Arc::clone(&self.held), _place: place };
        Ok(Tunnel { reader: Buffered::with(reader, early), writer, watch })
    }
}

fn exceeded(target: &Target) -> Denial {
    let text = format!("{target}: the sandbox has moved all the bytes of network.limits.egressBytes");
    denial("EgressBytesExceeded", text)
}

/// Whether nobody decided against it: it did not work.
pub fn is_failure(reason: &str) -> bool {
    matches!(
        reason,
        "GatewayUnreachable"
            | "GatewayTimeout"
            | "GatewayError"
            | "TokenUnavailable"
            | "ResolutionFailed"
            | "DialFailed"
            | "GatewayBusy"
            | "Draining"
    )
}

impl Watch {
    /// What the tunnel leads to.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Waits until the tunnel has to end: nothing goes through it, the policy allows it no more, or no more bytes may be
    /// moved.
    pub async fn over(&self) {
        let mut policies = self.held.policies();
        // Only a policy that comes now: the gateway, which has allowed it, may know a later one than is held here.
        let forbidden = async {
            while policies.changed().await.is_ok() {
                let policy = policies.borrow_and_update().clone();
                if policy.is_some_and(|policy| !policy.allows(&self.target.name, self.target.port)) {
                    return;
                }
            }
        };
        let idle = async {
            while let Some(left) = IDLE.checked_sub(self.meter.idle()).filter(|left| !left.is_zero()) {
                tokio::time::sleep(left).await;
            }
        };
        tokio::select! {
            () = forbidden => {}
            () = self.meter.budget().spent() => {}
            () = idle => {}
        }
    }
}

/// The agent's side of a connection.
#[derive(Debug)]
pub struct Agent {
    /// From the agent.
    pub reader: Buffered<OwnedReadHalf>,
    /// To the agent.
    pub writer: OwnedWriteHalf,
}

impl Agent {
    /// Both halves of `stream`.
    pub fn new(stream: TcpStream) -> Self {
        // Without it answers of a few bytes wait for one another.
        let _ = stream.set_nodelay(true);
        let (reader, writer) = stream.into_split();
        Self { reader: Buffered::new(reader), writer }
    }

    /// Ends the connection with a reset, so that the agent does not take it for a whole answer.
    pub fn reset(self) {
        let _ = self.reader.inner().as_ref().set_zero_linger();
        // Dropped, it would say that all was sent.
        self.writer.forget();
    }
}
