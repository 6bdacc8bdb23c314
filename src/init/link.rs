//! The connection to the sidecar. Every record is answered before anything else happens.
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::time::{Duration, Instant};

use super::config::AUDIT_SOCKET;
use super::wire::{InitEvent, InitRecord, MAX_LINE};
use crate::audit::now_ms;

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
}

impl Link {
    /// Connects to the sidecar, which was ready before this container was started.
    pub fn connect() -> Result<Self, LinkError> {
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
        Ok(Self { stream, sent: 0 })
    }

    /// Records that the sidecar confirmed.
    pub fn confirmed(&self) -> u64 {
        self.sent
    }

    /// Sends `event` and waits for its confirmation.
    pub fn send(&mut self, event: InitEvent) -> Result<(), LinkError> {
        let id = self.sent + 1;
        let mut line = serde_json::to_vec(&InitRecord { id, time: now_ms(), event })?;
        line.push(b'\n');
        if line.len() > MAX_LINE {
            return Err(LinkError::TooLong(line.len()));
        }
        self.stream.write_all(&line)?;
        let answer = self.read_answer()?;
        if answer != id.to_string() {
            return Err(LinkError::Answer(answer));
        }
        self.sent = id;
        Ok(())
    }

    /// One line of at most 32 bytes, within [`PATIENCE`] in all.
    fn read_answer(&mut self) -> Result<String, LinkError> {
        let end = Instant::now() + PATIENCE;
        let mut answer = String::new();
        while answer.len() < 32 {
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

impl AsFd for Link {
    /// The socket. Between two records it has nothing to read: if it does, the sidecar is gone or broken.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
