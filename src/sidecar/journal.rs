//! Numbers records and keeps them: on standard output and in the spool.
use std::io::{self, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use super::spool::{Care, Spool};
use crate::audit::{EgressEvent, IntakeEvent, Record, RecordError, SandboxRecords};
use crate::init::wire::InitRecord;

/// The journal of one sandbox. Its clones are the same journal: intake and egress number their records in one row.
#[derive(Clone)]
pub struct Journal {
    state: Arc<Mutex<State>>,
}

struct State {
    records: SandboxRecords,
    sequence: u64,
    spool: Option<Spool>,
    output: Box<dyn Write + Send>,
}

impl std::fmt::Debug for Journal {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Journal").finish_non_exhaustive()
    }
}

impl Journal {
    /// Goes on after the last record of the spool in `directory`.
    pub fn open(
        records: SandboxRecords,
        directory: &Path,
        output: Box<dyn Write + Send>,
    ) -> io::Result<Self> {
        let (spool, sequence) = Spool::open(directory)?;
        let state = State { records, sequence, spool: Some(spool), output };
        Ok(Self { state: Arc::new(Mutex::new(state)) })
    }

    /// Keeps what `sandbox-init` told. It is on the disk when this returns.
    pub fn of_init(&self, record: &InitRecord) -> Result<(), RecordError> {
        self.keep(Care::Now, |records, sequence| records.of_init(sequence, record.time, &record.event))
    }

    /// Keeps what the intake noticed. It is on the disk when this returns.
    pub fn of_intake(&self, event: &IntakeEvent) -> Result<(), RecordError> {
        self.keep(Care::Now, |records, sequence| records.of_intake(sequence, event))
    }

    /// Keeps what the sidecar noticed of the agent's egress. Nobody waits for the disk.
    pub fn of_egress(&self, event: &EgressEvent) -> Result<(), RecordError> {
        self.keep(Care::Later, |records, sequence| records.of_egress(sequence, event))
    }

    fn keep(
        &self,
        care: Care,
        record: impl FnOnce(&SandboxRecords, u64) -> Record,
    ) -> Result<(), RecordError> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let sequence = state.sequence + 1;
        let line = record(&state.records, sequence).to_line()?;
        state.print(&line)?;
        state.sequence = sequence;
        let Some(mut spool) = state.spool.take() else { return Ok(()) };
        if matches!(spool.append(&line, care), Ok(true)) {
            state.spool = Some(spool);
            return Ok(());
        }
        // The spool is full, or its volume is: standard output goes on, and says so.
        let sequence = state.sequence + 1;
        let gap = state.records.of_intake(sequence, &IntakeEvent::SpoolFull).to_line()?;
        state.print(&gap)?;
        state.sequence = sequence;
        // A volume that takes nothing more ends without the note.
        let _ = spool.append(&gap, Care::Last);
        Ok(())
    }
}

impl State {
    fn print(&mut self, line: &[u8]) -> Result<(), RecordError> {
        self.output.write_all(line)?;
        self.output.flush()?;
        Ok(())
    }
}
