//! The socket on which `sandbox-init` hands over its records.
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener as StdListener};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

use super::egress::{AddressPlan, Egress};
use super::gate::Pace;
use super::journal::Journal;
use super::{Options, READY, READY_SOCKET, RunError, pause, spool};
use crate::audit::{IntakeEvent, RecordError, SandboxRecords};
use crate::init::config::AUDIT_SOCKET;
use crate::init::wire::{InitEvent, InitRecord, MAX_LINE};

/// Longest wait until the peer takes its answer.
const PATIENCE: Duration = Duration::from_secs(5);

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
            received = next(&mut peer) => {
                if let Some(lost) = take(&mut peer, &journal, egress.as_ref(), received).await? {
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
                    peer = Some(Peer { stream, buffer: Vec::new(), last: 0, ended: false });
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

/// The one peer.
struct Peer {
    stream: UnixStream,
    /// Bytes without a line feed yet, at most [`MAX_LINE`].
    buffer: Vec<u8>,
    /// Number of its last record.
    last: u64,
    /// Whether it told the end.
    ended: bool,
}

/// What came from the peer: a line, or the reason why there will be none.
type Received = Result<Vec<u8>, String>;

/// The next line of the peer, if there is one; cancel safe: what was read stays in the peer.
async fn next(peer: &mut Option<Peer>) -> Received {
    let Some(peer) = peer else { return std::future::pending().await };
    loop {
        if let Some(end) = peer.buffer.iter().position(|byte| *byte == b'\n') {
            let rest = peer.buffer.split_off(end + 1);
            return Ok(std::mem::replace(&mut peer.buffer, rest));
        }
        let room = MAX_LINE.saturating_sub(peer.buffer.len());
        if room == 0 {
            return Err(format!("a line of more than {MAX_LINE} bytes"));
        }
        let room = u64::try_from(room).unwrap_or(u64::MAX);
        match (&mut peer.stream).take(room).read_buf(&mut peer.buffer).await {
            Ok(0) => return Err("it hung up".to_owned()),
            Ok(_) => {}
            Err(error) => return Err(error.to_string()),
        }
    }
}

/// Keeps and confirms a line. `Some` ends the peer, with what is wrong about that.
async fn take(
    peer: &mut Option<Peer>,
    journal: &Journal,
    egress: Option<&Egress>,
    received: Received,
) -> Result<Option<Option<String>>, RunError> {
    let Some(peer) = peer else { return Ok(None) };
    let line = match received {
        Ok(line) => line,
        Err(_) if peer.ended => return Ok(Some(None)),
        Err(detail) => return Ok(Some(Some(detail))),
    };
    let mut record: InitRecord = match serde_json::from_slice(&line) {
        Ok(record) => record,
        Err(error) => return Ok(Some(Some(error.to_string()))),
    };
    if peer.ended || record.id != peer.last + 1 {
        return Ok(Some(Some(format!("record {} after {}", record.id, peer.last))));
    }
    let mut answer = record.id.to_string();
    if let InitEvent::Ended(report) = &mut record.event {
        peer.ended = true;
        report.egress = egress.map(Egress::settle);
        if let Some(summary) = &report.egress {
            answer.push(' ');
            answer.push_str(&serde_json::to_string(summary).map_err(RecordError::Json)?);
        }
    }
    answer.push('\n');
    journal.of_init(&record)?;
    peer.last = record.id;
    match timeout(PATIENCE, peer.stream.write_all(answer.as_bytes())).await {
        Ok(Ok(())) => Ok(None),
        Ok(Err(error)) => Ok(Some(Some(error.to_string()))),
        Err(_) => Ok(Some(Some("it does not take its answer".to_owned()))),
    }
}
