//! The one peer of the audit intake: `sandbox-init`, the first process of the agent's container.
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::egress::Egress;
use super::journal::Journal;
use super::{Options, RunError, spool};
use crate::audit::{IntakeEvent, RecordError};
use crate::egress::containment::{GateCause, NotContained};
use crate::init::config::MAX_PROOF;
use crate::init::wire::{InitEvent, InitRecord, MAX_LINE};

/// Longest wait until the peer takes its answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The one peer.
pub struct Peer {
    stream: UnixStream,
    /// User of it, as the socket tells.
    uid: u32,
    /// Bytes without a line feed yet, at most [`MAX_LINE`].
    buffer: Vec<u8>,
    /// Number of its last record.
    last: u64,
    /// Whether it told the end.
    ended: bool,
}

impl Peer {
    /// The one that `stream` leads to.
    pub fn new(stream: UnixStream, uid: u32) -> Self {
        Self { stream, uid, buffer: Vec::new(), last: 0, ended: false }
    }
}

/// What came from the peer: a line, or the reason why there will be none.
pub type Received = Result<Vec<u8>, String>;

/// Ends the sidecar, and with it the sandbox: the controller takes it from there.
pub fn foreign() -> RunError {
    let message = "the first process of the agent's container is not sandbox-init";
    RunError::NotContained(Box::new(NotContained {
        cause: GateCause::ForeignPeer,
        message: message.to_owned(),
        checks: Vec::new(),
    }))
}

/// Whether `record` proves what the first one has to: that who sent it can read the directory of `sandbox-init`.
fn proves(proof_file: Option<&Path>, record: &InitRecord) -> bool {
    let Some(path) = proof_file else { return true };
    let known = File::open(path).and_then(|file| io::read_to_string(file.take(MAX_PROOF))).ok();
    known.filter(|known| !known.is_empty()).is_some_and(|known| record.proof.as_ref() == Some(&known))
}

/// The next line of the peer, if there is one; cancel safe: what was read stays in the peer.
pub async fn next(peer: &mut Option<Peer>) -> Received {
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
pub async fn take(
    peer: &mut Option<Peer>,
    journal: &Journal,
    options: &Options,
    egress: Option<&Egress>,
    received: Received,
) -> Result<Option<Option<String>>, RunError> {
    let Some(peer) = peer else { return Ok(None) };
    let first = peer.last == 0 && options.proof_file.is_some();
    let refuse = |uid: u32| -> Result<Option<Option<String>>, RunError> {
        spool::note_foreign(&options.spool)?;
        journal.of_intake(&IntakeEvent::PeerForeign { uid })?;
        Err(foreign())
    };
    let line = match received {
        Ok(line) => line,
        Err(_) if peer.ended => return Ok(Some(None)),
        // Ours says who it is before anything else.
        Err(_) if first => return refuse(peer.uid),
        Err(detail) => return Ok(Some(Some(detail))),
    };
    let mut record: InitRecord = match serde_json::from_slice(&line) {
        Ok(record) => record,
        Err(_) if first => return refuse(peer.uid),
        Err(error) => return Ok(Some(Some(error.to_string()))),
    };
    if first && !proves(options.proof_file.as_deref(), &record) {
        return refuse(peer.uid);
    }
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
