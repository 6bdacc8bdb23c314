//! The socket on which `sandbox-init` hands over its records.
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener as StdListener};

use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};

use super::egress::{AddressPlan, Egress};
use super::gate::Pace;
use super::journal::Journal;
use super::peer::{self, Peer};
use super::{Options, READY, READY_SOCKET, RunError, pause, spool};
use crate::audit::{IntakeEvent, SandboxRecords};
use crate::init::config::AUDIT_SOCKET;

/// Refused peers that are recorded one by one; the others are counted, so that nobody floods the log.
const RECORDED_REFUSALS: u64 = 16;

/// Serves until SIGTERM.
pub async fn serve(options: Options) -> Result<(), RunError> {
    let mut terminate = signal(SignalKind::terminate())?;
    let records = SandboxRecords {
        sandbox: options.identity(),
        generation: options.generation,
        policy_digest: options.policy_digest.clone(),
        hostname: std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned(),
    };
    let journal = Journal::open(records, &options.spool, Box::new(io::stdout()))?;
    if spool::was_foreign(&options.spool)? {
        return Err(peer::foreign());
    }
    let intake = listen(AUDIT_SOCKET)?;
    journal.of_intake(&IntakeEvent::Opened)?;
    let mut egress = Egress::start(&options, &journal, &AddressPlan::default(), Pace::default()).await?;
    let ready = listen(READY_SOCKET)?;
    let mut peer: Option<Peer> = None;
    let mut refused: u64 = 0;
    loop {
        tokio::select! {
            biased;
            _ = terminate.recv() => break,
            received = peer::next(&mut peer) => {
                if let Some(lost) = peer::take(&mut peer, &journal, &options, egress.as_ref(), received).await? {
                    peer = None;
                    if let Some(detail) = lost {
                        journal.of_intake(&IntakeEvent::PeerLost { detail })?;
                    }
                }
            }
            accepted = intake.accept() => {
                // A peer that is gone already, or too many open files: the next one may be better.
                let Ok((stream, _)) = accepted else { pause().await; continue };
                let uid = stream.peer_cred().map(|peer| peer.uid())?;
                if spool::take_peer(&options.spool)? {
                    journal.of_intake(&IntakeEvent::PeerTaken { uid })?;
                    peer = Some(Peer::new(stream, uid));
                } else {
                    refused = refused.saturating_add(1);
                    if refused <= RECORDED_REFUSALS {
                        journal.of_intake(&IntakeEvent::PeerRefused { uid })?;
                    }
                }
            }
            accepted = ready.accept() => match accepted {
                // Fits into the socket's buffer; who does not read it does not want to know.
                Ok((stream, _)) => { let _ = stream.try_write(&readiness(egress.as_ref())); }
                Err(_) => pause().await,
            },
            error = failed(&mut egress) => return Err(error),
        }
    }
    if let Some(egress) = &egress {
        egress.settle();
    }
    journal.of_intake(&IntakeEvent::Closed { refused })?;
    Ok(())
}

/// [`READY`], or what the start gate waits for.
fn readiness(egress: Option<&Egress>) -> Vec<u8> {
    match egress.and_then(Egress::waiting) {
        Some(waiting) => format!("waiting: {waiting}\n").into_bytes(),
        None => READY.to_vec(),
    }
}

/// Waits until the egress cannot go on.
async fn failed(egress: &mut Option<Egress>) -> RunError {
    match egress {
        Some(egress) => egress.failed().await,
        None => std::future::pending().await,
    }
}

fn listen(name: &str) -> io::Result<UnixListener> {
    let listener = StdListener::bind_addr(&SocketAddr::from_abstract_name(name)?)?;
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener)
}
