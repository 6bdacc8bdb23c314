//! Numbers records and keeps them: on standard output and in the spool.
use std::io::{self, Write};
use std::path::Path;

use super::spool::Spool;
use crate::audit::{IntakeEvent, Record, RecordError, SandboxRecords};
use crate::init::wire::InitRecord;

/// The journal of one sandbox.
pub struct Journal {
    records: SandboxRecords,
    sequence: u64,
    spool: Option<Spool>,
    output: Box<dyn Write>,
}

impl Journal {
    /// Goes on after the last record of the spool in `directory`.
    pub fn open(records: SandboxRecords, directory: &Path, output: Box<dyn Write>) -> io::Result<Self> {
        let (spool, sequence) = Spool::open(directory)?;
        Ok(Self { records, sequence, spool: Some(spool), output })
    }

    /// Keeps what `sandbox-init` told.
    pub fn of_init(&mut self, record: &InitRecord) -> Result<(), RecordError> {
        let sequence = self.sequence + 1;
        self.keep(sequence, &self.records.of_init(sequence, record.time, &record.event))
    }

    /// Keeps what the intake noticed.
    pub fn of_intake(&mut self, event: &IntakeEvent) -> Result<(), RecordError> {
        let sequence = self.sequence + 1;
        self.keep(sequence, &self.records.of_intake(sequence, event))
    }

    fn keep(&mut self, sequence: u64, record: &Record) -> Result<(), RecordError> {
        let line = record.to_line()?;
        self.print(&line)?;
        self.sequence = sequence;
        let Some(mut spool) = self.spool.take() else { return Ok(()) };
        if matches!(spool.append(&line, false), Ok(true)) {
            self.spool = Some(spool);
            return Ok(());
        }
        // The spool is full, or its volume is: standard output goes on, and says so.
        let sequence = self.sequence + 1;
        let gap = self.records.of_intake(sequence, &IntakeEvent::SpoolFull).to_line()?;
        self.print(&gap)?;
        self.sequence = sequence;
        // A volume that takes nothing more ends without the note.
        let _ = spool.append(&gap, true);
        Ok(())
    }

    fn print(&mut self, line: &[u8]) -> Result<(), RecordError> {
        self.output.write_all(line)?;
        self.output.flush()?;
        Ok(())
    }
}
