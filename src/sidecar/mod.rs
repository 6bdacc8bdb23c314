//! The native sidecar of every sandbox: start gate, audit intake, and the agent's only way to names outside.
//!
//! It has one thread, also under gVisor and with few processes allowed: its writes block, which is what holds
//! the agent back until its records are kept.
mod accept;
mod budget;
mod dns;
mod egress;
mod forward;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod gate;
mod gateway;
mod held;
mod http1;
mod intake;
mod journal;
mod kernel_buffers;
mod ledger;
mod listeners;
mod names;
mod peer;
mod policy_stream;
mod proxy;
mod relay;
mod socks5;
mod spool;
#[cfg(test)]
mod tests;
mod token;
mod tunnel;

use std::io::{self, Read, Write};
use std::net::SocketAddr as IpSocketAddr;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use crate::audit::RecordError;
use crate::egress::containment::{NOT_CONTAINED_CODE, NotContained};
use crate::init::config::SandboxIdentity;

/// Name of the abstract unix socket that answers [`READY`] once the intake is open and the start gate has passed.
const READY_SOCKET: &str = "agentsandbox/ready";

/// Answer of a sidecar that is ready.
const READY: &[u8] = b"ready\n";

/// Longest answer of one that is not.
const MAX_ANSWER: u64 = 1024;

/// The program `sandbox-sidecar`: a sandbox's Pod holds no more code of ours than it needs.
#[derive(clap::Parser, Debug)]
#[command(name = "sandbox-sidecar", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    order: Order,
}

/// What to do.
#[derive(clap::Subcommand, Debug)]
enum Order {
    /// Take the audit records of one sandbox and carry its egress, inside its Pod.
    Run(Box<Options>),
    /// Say by the exit code whether the one that runs in this Pod is ready.
    CheckReady,
}

/// The program `sandbox-sidecar`.
pub fn main() -> ExitCode {
    match <Cli as clap::Parser>::parse().order {
        Order::Run(options) => match run(*options) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                let _ = writeln!(io::stderr(), "sandbox-sidecar: {error}");
                ExitCode::from(error.exit_code())
            }
        },
        Order::CheckReady => check_ready(),
    }
}

/// Options of `sandbox-sidecar run`.
#[derive(clap::Args, Clone, Debug)]
pub struct Options {
    /// Namespace of the `AgentSandbox`.
    #[arg(long, env = "AGENTSANDBOX_NAMESPACE")]
    pub namespace: String,
    /// Name of the `AgentSandbox`.
    #[arg(long, env = "AGENTSANDBOX_NAME")]
    pub name: String,
    /// UID of the `AgentSandbox`.
    #[arg(long, env = "AGENTSANDBOX_UID")]
    pub uid: String,
    /// Generation of the spec that the Pod was planned with.
    #[arg(long, env = "AGENTSANDBOX_GENERATION")]
    pub generation: i64,
    /// Digest of the egress policy that the Pod was planned with.
    #[arg(long, env = "AGENTSANDBOX_POLICY_DIGEST")]
    pub policy_digest: String,
    /// Directory of the spool: a volume of this container alone.
    #[arg(long, default_value = "/spool")]
    pub spool: PathBuf,
    /// File with the text by which `sandbox-init` proves itself; without one it need not.
    #[arg(long, env = "AGENTSANDBOX_PROOF_FILE")]
    pub proof_file: Option<PathBuf>,
    /// File that the container runtime takes the termination message from.
    #[arg(long, default_value = "/dev/termination-log")]
    pub termination_log: PathBuf,
    /// Egress to names.
    #[command(flatten)]
    pub egress: EgressOptions,
}

/// How to reach the gateways, and what must not be reached. Without a gateway there is no egress to names and no gate.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct EgressOptions {
    /// Address of the gateways' Service.
    #[arg(long, env = "AGENTSANDBOX_GATEWAY")]
    pub gateway: Option<IpSocketAddr>,
    /// Certificates that the gateways' is signed by, PEM.
    #[arg(long, env = "AGENTSANDBOX_GATEWAY_CA", hide_env_values = true)]
    pub gateway_ca: Option<String>,
    /// Name in the gateways' certificate.
    #[arg(long, env = "AGENTSANDBOX_GATEWAY_NAME")]
    pub gateway_name: Option<String>,
    /// File with the Pod's token for the gateways.
    #[arg(long, env = "AGENTSANDBOX_TOKEN_FILE")]
    pub token_file: Option<PathBuf>,
    /// Address of the API server, which the start gate wants closed.
    #[arg(long, env = "AGENTSANDBOX_GATE_API_SERVER")]
    pub gate_api_server: Option<IpSocketAddr>,
    /// Address of the cluster's DNS, which the start gate wants closed.
    #[arg(long, env = "AGENTSANDBOX_GATE_DNS")]
    pub gate_dns: Option<IpSocketAddr>,
    /// Address of the cloud's metadata service, which the start gate wants closed.
    #[arg(long, env = "AGENTSANDBOX_GATE_METADATA", default_value = "169.254.169.254:80")]
    pub gate_metadata: Option<IpSocketAddr>,
}

impl Options {
    fn identity(&self) -> SandboxIdentity {
        SandboxIdentity { namespace: self.namespace.clone(), name: self.name.clone(), uid: self.uid.clone() }
    }
}

/// Why the sidecar ends with an error. The first process of the agent's container then ends the agent.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The runtime or a socket failed.
    #[error("the audit intake failed: {0}")]
    Io(#[from] io::Error),
    /// A record could not be written to standard output.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The egress cannot start or go on.
    #[error("egress: {0}")]
    Egress(String),
    /// The start gate gave up, or the agent has another first process than ours.
    #[error("not contained: {}", .0.message)]
    NotContained(Box<NotContained>),
}

impl RunError {
    /// Exit code with which the sidecar ends.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NotContained(_) => NOT_CONTAINED_CODE,
            _ => 1,
        }
    }
}

/// Works until SIGTERM. Blocks, and brings its own runtime: not to be called from within another.
pub fn run(options: Options) -> Result<(), RunError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    let log = options.termination_log.clone();
    let result = runtime.block_on(intake::serve(options));
    if let Err(RunError::NotContained(report)) = &result {
        // The kubelet starts it again; what it says stays in the container's last state.
        let text = serde_json::to_vec(report.as_ref()).unwrap_or_default();
        if let Err(error) = std::fs::write(&log, text) {
            let _ = writeln!(io::stderr(), "sandbox-sidecar: {}: {error}", log.display());
        }
    }
    result
}

/// After an `accept` that failed: too many open files, most likely.
async fn pause() {
    tokio::time::sleep(Duration::from_millis(50)).await;
}

/// Whether the sidecar of this Pod takes records and the start gate has passed, as the exit code of a startup probe.
/// What it waits for goes to standard error, from where the kubelet takes it into an event.
pub fn check_ready() -> ExitCode {
    let answer = match ask_ready() {
        Ok(answer) if answer == READY => return ExitCode::SUCCESS,
        Ok(answer) => String::from_utf8_lossy(&answer).into_owned(),
        Err(error) => format!("the sidecar: {error}\n"),
    };
    let _ = io::stderr().write_all(answer.as_bytes());
    ExitCode::FAILURE
}

fn ask_ready() -> io::Result<Vec<u8>> {
    let stream = UnixStream::connect_addr(&SocketAddr::from_abstract_name(READY_SOCKET)?)?;
    stream.set_read_timeout(Some(Duration::from_millis(500)))?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer)?;
    Ok(answer)
}
