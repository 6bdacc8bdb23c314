//! The native sidecar of every sandbox: start gate and audit intake.
//!
//! It has one thread, also under gVisor and with few processes allowed: its writes block, which is what holds
//! the agent back until its records are kept.
mod intake;
mod journal;
mod spool;

use std::io::{self, Read};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use crate::audit::RecordError;
use crate::init::config::SandboxIdentity;

/// Name of the abstract unix socket that answers [`READY`] once the intake is open.
const READY_SOCKET: &str = "agentsandbox/ready";

/// Answer of a sidecar that is ready.
const READY: &[u8] = b"ready\n";

/// Options of `agentsandbox sidecar`.
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
}

/// Takes records until SIGTERM. Blocks, and brings its own runtime: not to be called from within another.
pub fn run(options: Options) -> Result<(), RunError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    runtime.block_on(intake::serve(options))
}

/// Whether the sidecar of this Pod takes records, as the exit code of a startup probe.
pub fn check_ready() -> ExitCode {
    match ask_ready() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) | Err(_) => ExitCode::FAILURE,
    }
}

fn ask_ready() -> io::Result<bool> {
    let stream = UnixStream::connect_addr(&SocketAddr::from_abstract_name(READY_SOCKET)?)?;
    stream.set_read_timeout(Some(Duration::from_millis(500)))?;
    let mut answer = Vec::new();
    stream.take(32).read_to_end(&mut answer)?;
    Ok(answer == READY)
}
