//! `sandbox-init install`: brings the binary into the volume that the agent's container mounts.
use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

/// Copies this binary to `target` with mode 0555. At no time is there a part of it under that name.
pub fn install(target: &Path) -> io::Result<()> {
    let mut name = target.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
    name.push(format!(".{}", std::process::id()));
    let temporary = target.with_file_name(name);
    let result = copy_to(&temporary).and_then(|()| fs::rename(&temporary, target));
    if result.is_err() {
        // The first error is the one that matters; there may be nothing to remove.
        let _ = fs::remove_file(&temporary);
    }
    result
}

fn copy_to(temporary: &Path) -> io::Result<()> {
    if let Some(directory) = temporary.parent() {
        fs::create_dir_all(directory)?;
    }
    let mut source = File::open("/proc/self/exe")?;
    let mut copy = OpenOptions::new().write(true).create_new(true).mode(0o700).open(temporary)?;
    io::copy(&mut source, &mut copy)?;
    copy.set_permissions(Permissions::from_mode(0o555))?;
    copy.sync_all()
}
