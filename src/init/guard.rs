//! Guards of the agent's process: Landlock and limits. Both are put up in the child, before its exec.
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus, Scope,
};
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::sys;

/// Devices that every program may write. `/dev/shm` is not among them: it is shared with the sidecar.
const DEVICES: [&str; 6] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/tty", "/dev/ptmx", "/dev/pts"];

/// Nice value of the agent: `sandbox-init` runs when it has to, however many processes spin.
const NICE: i32 = 10;

/// Most open files of one process of the agent: runtimes allow a million, and each is memory of the kernel's.
const MOST_FILES: u64 = 65_536;

/// Landlock ABI that the rules below use at most: 6 adds the scopes.
const USED_ABI: i32 = 6;

/// Why a guard does not stand.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// Landlock refused.
    #[error("Landlock: {0}")]
    Landlock(String),
    /// Seccomp refused.
    #[error("seccomp: {0}")]
    Seccomp(String),
    /// A limit or an attribute could not be set.
    #[error("{0}: {1}")]
    Limit(&'static str, Errno),
}

/// The ABI that will be in force on a kernel with `kernel`.
pub fn effective_abi(kernel: i32) -> i32 {
    kernel.min(USED_ABI)
}

/// Limits of processes, files and core dumps, priority and order of death.
pub fn limit(pids: u64, file_size: Option<u64>) -> Result<(), GuardError> {
    let set_both = |what, resource, soft, hard| {
        setrlimit(resource, soft, hard).map_err(|errno| GuardError::Limit(what, errno))?;
        match getrlimit(resource) {
            Ok(limits) if limits == (soft, hard) => Ok(()),
            Ok(_) => Err(GuardError::Limit(what, Errno::EINVAL)),
            Err(errno) => Err(GuardError::Limit(what, errno)),
        }
    };
    let set = |what, resource, value| set_both(what, resource, value, value);
    set("RLIMIT_CORE", Resource::RLIMIT_CORE, 0)?;
    let files = getrlimit(Resource::RLIMIT_NOFILE);
    let (soft, hard) = files.map_err(|errno| GuardError::Limit("RLIMIT_NOFILE", errno))?;
    set_both("RLIMIT_NOFILE", Resource::RLIMIT_NOFILE, soft.min(MOST_FILES), hard.min(MOST_FILES))?;
    if let Some(bytes) = file_size {
        set("RLIMIT_FSIZE", Resource::RLIMIT_FSIZE, bytes)?;
    }
    match sys::set_nice(NICE) {
        // The kernel refuses to make it less nice than it is already.
        Ok(()) | Err(Errno::EACCES) => {}
        Err(errno) => return Err(GuardError::Limit("nice", errno)),
    }
    // Files under /proc/self of a process that is not dumpable belong to root. No other process of the agent
    // exists yet that could use the moment.
    let _ = prctl::set_dumpable(true);
    // Best effort: where it fails, the kernel chooses by size.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    let _ = prctl::set_dumpable(false);
    set("RLIMIT_NPROC", Resource::RLIMIT_NPROC, pids)
}

/// Denies writes outside of `writable` and [`DEVICES`], and with ABI 6 also signals to `sandbox-init` and
/// connections to the abstract sockets of the sidecar. Reads and executions stay as the mounts allow them.
pub fn restrict_files(abi: i32, writable: &[String]) -> Result<(), GuardError> {
    let abi = match abi {
        ..=0 => return Ok(()),
        1 => ABI::V1,
        2 => ABI::V2,
        3 => ABI::V3,
        4 => ABI::V4,
        5 => ABI::V5,
        _ => ABI::V6,
    };
    landlock(abi, writable).map_err(|error| GuardError::Landlock(error.to_string()))
}

fn landlock(abi: ABI, writable: &[String]) -> Result<(), Box<dyn std::error::Error>> {
    let write = AccessFs::from_write(abi);
    let on_file = write & AccessFs::from_file(abi);
    let mut ruleset =
        Ruleset::default().set_compatibility(CompatLevel::HardRequirement).handle_access(write)?;
    let scopes = Scope::from_all(abi);
    if !scopes.is_empty() {
        ruleset = ruleset.scope(scopes)?;
    }
    let mut created = ruleset.create()?;
    for path in writable {
        let access = if Path::new(path).is_dir() { write } else { on_file };
        created = created.add_rule(PathBeneath::new(PathFd::new(path)?, access))?;
    }
    for path in DEVICES.into_iter().filter(|path| Path::new(path).exists()) {
        created = created.add_rule(PathBeneath::new(PathFd::new(path)?, on_file))?;
    }
    let status = created.restrict_self()?;
    if status.ruleset != RulesetStatus::FullyEnforced || !status.no_new_privs {
        return Err(format!("only {:?}", status.ruleset).into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_abi_means_no_rules() {
        assert!(restrict_files(0, &["/does/not/exist".to_owned()]).is_ok());
        assert_eq!(effective_abi(9), 6);
    }
}
