//! `sandbox-init install`: brings the binary into the volume that the agent's container mounts.
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use super::config::PROOF_FILE;

/// Random bytes of the proof.
const PROOF_BYTES: usize = 32;

/// Copies this binary to `target` with mode 0555, and puts a new proof beside it. At no time is there a part of one
/// of them under its name.
pub fn install(target: &Path) -> io::Result<()> {
    if let Some(directory) = target.parent() {
        fs::create_dir_all(directory)?;
    }
    let mut random = [0; PROOF_BYTES];
    File::open("/dev/urandom")?.read_exact(&mut random)?;
    let proof: String = crate::policy::digest::hex(&random);
    put(&target.with_file_name(PROOF_FILE), 0o444, &mut proof.as_bytes())?;
    put(target, 0o555, &mut File::open("/proc/self/exe")?)
}

fn put(target: &Path, mode: u32, content: &mut impl Read) -> io::Result<()> {
    let mut name = target.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
    name.push(format!(".{}", std::process::id()));
    let temporary = target.with_file_name(name);
    let result = write(&temporary, mode, content).and_then(|()| fs::rename(&temporary, target));
    if result.is_err() {
        // The first error is the one that matters; there may be nothing to remove.
        let _ = fs::remove_file(&temporary);
    }
    result
}

fn write(temporary: &Path, mode: u32, content: &mut impl Read) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(temporary)?;
    io::copy(content, &mut file)?;
    file.flush()?;
    file.set_permissions(Permissions::from_mode(mode))?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn program_and_proof_are_there_and_can_be_put_again() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("own/sandbox-init");
        let mut proofs = Vec::new();
        for _ in 0..2 {
            install(&target).unwrap();
            proofs.push(fs::read_to_string(target.with_file_name(PROOF_FILE)).unwrap());
        }
        assert!(proofs[0].len() == 2 * PROOF_BYTES && proofs[0] != proofs[1]);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&target), mode(&target.with_file_name(PROOF_FILE))), (0o555, 0o444));
        assert_eq!(fs::read_dir(target.parent().unwrap()).unwrap().count(), 2);
    }
}
