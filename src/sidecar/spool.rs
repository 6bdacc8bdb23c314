//! The records on disk, bounded.
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

/// File of the records.
const RECORDS: &str = "records.jsonl";

/// File that exists once a peer was accepted. It outlives a restart of the container.
const TAKEN: &str = "peer-accepted";

/// File that exists once a peer could not prove to be `sandbox-init`.
const FOREIGN: &str = "peer-foreign";

/// Most bytes of records; the volume has 16 MiB.
const LIMIT: u64 = 12 * 1024 * 1024;

/// Bytes beyond [`LIMIT`] for the record that says that it was reached.
const RESERVE: u64 = 8 * 1024;

/// Bytes at the end in which the last whole record is found: more than the longest record.
const TAIL: u64 = 512 * 1024;

/// How a line is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Care {
    /// On the disk when it returns.
    Now,
    /// On the disk with the next that must be there.
    Later,
    /// As [`Care::Now`], and it may use the last bytes.
    Last,
}

/// The spool.
#[derive(Debug)]
pub struct Spool {
    file: File,
    size: u64,
    limit: u64,
}

impl Spool {
    /// Opens the spool in `directory`; returns it with the largest sequence number at its end.
    pub fn open(directory: &Path) -> io::Result<(Self, u64)> {
        Self::open_with(directory, LIMIT)
    }

    fn open_with(directory: &Path, limit: u64) -> io::Result<(Self, u64)> {
        let mut file =
            OpenOptions::new().read(true).append(true).create(true).open(directory.join(RECORDS))?;
        let size = file.metadata()?.len();
        file.seek(SeekFrom::Start(size.saturating_sub(TAIL)))?;
        let mut tail = Vec::new();
        (&mut file).take(TAIL).read_to_end(&mut tail)?;
        let mut spool = Self { file, size, limit };
        if tail.last().is_some_and(|byte| *byte != b'\n') {
            // A record that a crash cut: what follows must not become part of it.
            spool.write(b"\n")?;
        }
        Ok((spool, last_sequence(&tail)))
    }

    /// Appends `line`; tells whether there was room.
    pub fn append(&mut self, line: &[u8], care: Care) -> io::Result<bool> {
        let limit = if care == Care::Last { self.limit + RESERVE } else { self.limit };
        let length = u64::try_from(line.len()).unwrap_or(u64::MAX);
        if self.size.saturating_add(length) > limit {
            return Ok(false);
        }
        self.write(line)?;
        if care != Care::Later {
            self.file.sync_data()?;
        }
        Ok(true)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.size = self.size.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        Ok(())
    }
}

/// Takes the one place for a peer of the sandbox's whole life; tells whether it was free.
pub fn take_peer(directory: &Path) -> io::Result<bool> {
    match OpenOptions::new().write(true).create_new(true).open(directory.join(TAKEN)) {
        Ok(file) => file.sync_all().map(|()| true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

/// Keeps in mind that the peer was none of ours, for when the container is started again.
pub fn note_foreign(directory: &Path) -> io::Result<()> {
    File::create(directory.join(FOREIGN))?.sync_all()
}

/// Whether [`note_foreign`] was called in the sandbox's life.
pub fn was_foreign(directory: &Path) -> io::Result<bool> {
    directory.join(FOREIGN).try_exists()
}

fn last_sequence(tail: &[u8]) -> u64 {
    let sequence = |line: &[u8]| {
        let record: serde_json::Value = serde_json::from_slice(line).ok()?;
        record.pointer("/metadata/sequence")?.as_u64()
    };
    tail.split(|byte| *byte == b'\n').filter_map(sequence).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sequence_goes_on_after_a_crash() {
        let directory = tempfile::tempdir().unwrap();
        let (mut spool, sequence) = Spool::open(directory.path()).unwrap();
        assert_eq!(sequence, 0);
        assert!(spool.append(b"{\"metadata\":{\"sequence\":7}}\n{\"metadata\":{\"seq", Care::Now).unwrap());
        let (mut spool, sequence) = Spool::open(directory.path()).unwrap();
        assert_eq!(sequence, 7);
        assert!(spool.append(b"next\n", Care::Later).unwrap());
        let text = std::fs::read_to_string(directory.path().join(RECORDS)).unwrap();
        assert!(text.ends_with("{\"metadata\":{\"seq\nnext\n"));
    }

    #[test]
    fn a_full_spool_has_room_for_the_gap_only() {
        let directory = tempfile::tempdir().unwrap();
        let (mut spool, _) = Spool::open_with(directory.path(), 10).unwrap();
        assert!(spool.append(b"123456789\n", Care::Now).unwrap());
        assert!(!spool.append(b"\n", Care::Now).unwrap());
        assert!(spool.append(b"gap\n", Care::Last).unwrap());
        assert!(!spool.append(&vec![b'x'; 10_000], Care::Last).unwrap());
    }

    #[test]
    fn there_is_one_peer() {
        let directory = tempfile::tempdir().unwrap();
        assert!(take_peer(directory.path()).unwrap());
        assert!(!take_peer(directory.path()).unwrap());
    }
}
