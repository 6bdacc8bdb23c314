//! The connection to the sidecar. Every record is answered before anything else happens.
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::time::{Duration, Instant};

use super::config::AUDIT_SOCKET;
use super::wire::{InitEvent, InitRecord, MAX_ANSWER, MAX_LINE};
use crate::audit::now_ms;
use crate::egress::wire::EgressSummary;

/// Longest wait for the sidecar, to connect and for each answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why a record is not known to be kept.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// No sidecar, or it hung up.
    #[error("the audit intake cannot be reached: {0}")]
    Io(#[from] io::Error),
    /// The record has no JSON form.
    #[error("the record cannot be written as JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// The record is longer than [`MAX_LINE`].
    #[error("the record has {0} bytes, more than {MAX_LINE}")]
    TooLong(usize),
    /// The sidecar answered something else than the record's number.
    #[error("the audit intake answered {0:?}")]
    Answer(String),
}

/// The connection.
#[derive(Debug)]
pub struct Link {
    stream: UnixStream,
    sent: u64,
    proof: Option<String>,
}

impl Link {
    /// Connects to the sidecar, which was ready before this container was started. `proof` goes with the first record.
    pub fn connect(proof: Option<String>) -> Result<Self, LinkError> {
        let address = SocketAddr::from_abstract_name(AUDIT_SOCKET)?;
        let end = Instant::now() + PATIENCE;
        let stream = loop {
            match UnixStream::connect_addr(&address) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() >= end => return Err(error.into()),
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        };
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { stream, sent: 0, proof })
    }

    /// Records that the sidecar confirmed.
    pub fn confirmed(&self) -> u64 {
        self.sent
    }

    /// Sends `event` and waits for its confirmation. Returns what the sidecar says of the egress, at the end.
    pub fn send(&mut self, event: InitEvent) -> Result<Option<EgressSummary>, LinkError> {
        let id = self.sent + 1;
        let record = InitRecord { id, time: now_ms(), event, proof: self.proof.take() };
        let mut line = serde_json::to_vec(&record)?;
        line.push(b'\n');
        if line.len() > MAX_LINE {
            return Err(LinkError::TooLong(line.len()));
        }
        self.stream.write_all(&line)?;
        let answer = self.read_answer()?;
        let summary = confirm(&answer, id)?;
        self.sent = id;
        Ok(summary)
    }

    /// One line of at most [`MAX_ANSWER`] bytes, within [`PATIENCE`] in all.
    fn read_answer(&mut self) -> Result<String, LinkError> {
        let end = Instant::now() + PATIENCE;
        let mut answer = String::new();
        while answer.len() <= MAX_ANSWER {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::Error::from(io::ErrorKind::TimedOut).into());
            }
            self.stream.set_read_timeout(Some(left))?;
            let mut byte = [0];
            match self.stream.read(&mut byte) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
                Ok(_) if byte == *b"\n" => return Ok(answer),
                Ok(_) => answer.extend(byte.map(char::from)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(LinkError::Answer(answer))
    }
}

/// Whether `answer` confirms record `id`, and what it says more.
fn confirm(answer: &str, id: u64) -> Result<Option<EgressSummary>, LinkError> {
    let wrong = || LinkError::Answer(answer.to_owned());
    match answer.strip_prefix(&id.to_string()).ok_or_else(wrong)? {
        "" => Ok(None),
        rest => {
            let json = rest.strip_prefix(' ').ok_or_else(wrong)?;
            serde_json::from_str(json).map(Some).map_err(|_| wrong())
        }
    }
}

impl AsFd for Link {
    /// The socket. Between two records it has nothing to read: if it does, the sidecar is gone or broken.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_confirmation_may_go_on_with_a_summary() {
        let counted = EgressSummary { allowed: 2, denied: 1, ..EgressSummary::default() };
        let json = serde_json::to_string(&counted).unwrap();
        assert_eq!(confirm("12", 12).unwrap(), None);
        assert_eq!(confirm(&format!("12 {json}"), 12).unwrap(), Some(counted));
        for wrong in ["1", "123", "12 ", "12{}", " 12", "12 x", "13"] {
            assert!(confirm(wrong, 12).is_err(), "{wrong}");
        }
    }
}
