//! Guards of the agent's process: Landlock, seccomp and limits. All are put up in the child, before its exec.
use std::collections::BTreeMap;
use std::path::Path;

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus, Scope,
};
use nix::libc;
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter,
};

use super::sys;

/// Devices that every program may write. `/dev/shm` is not among them: it is shared with the sidecar.
const DEVICES: [&str; 6] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/tty", "/dev/ptmx", "/dev/pts"];

/// Nice value of the agent: `sandbox-init` runs when it has to, however many processes spin.
const NICE: i32 = 10;

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
    Limit(&'static str, nix::errno::Errno),
}

/// The ABI that will be in force on a kernel with `kernel`.
pub fn effective_abi(kernel: i32) -> i32 {
    kernel.min(USED_ABI)
}

/// Limits of processes and core dumps, priority and order of death.
pub fn limit(pids: u64) -> Result<(), GuardError> {
    let set = |what, resource, value| {
        setrlimit(resource, value, value).map_err(|errno| GuardError::Limit(what, errno))?;
        match getrlimit(resource) {
            Ok(limits) if limits == (value, value) => Ok(()),
            Ok(_) => Err(GuardError::Limit(what, nix::errno::Errno::EINVAL)),
            Err(errno) => Err(GuardError::Limit(what, errno)),
        }
    };
    set("RLIMIT_CORE", Resource::RLIMIT_CORE, 0)?;
    sys::set_nice(NICE).map_err(|errno| GuardError::Limit("nice", errno))?;
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

/// Programs of the filters, made before the fork.
#[derive(Debug)]
pub struct Filters(Vec<BpfProgram>);

impl Filters {
    /// Compiles them for this machine.
    pub fn compile() -> Result<Self, GuardError> {
        let seccomp = |error: seccompiler::BackendError| GuardError::Seccomp(error.to_string());
        let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(seccomp)?;
        let compile = |rules, errno: i32| -> Result<BpfProgram, GuardError> {
            let action = SeccompAction::Errno(errno.unsigned_abs());
            let filter = SeccompFilter::new(rules, SeccompAction::Allow, action, arch).map_err(seccomp)?;
            BpfProgram::try_from(filter).map_err(seccomp)
        };
        Ok(Self(vec![
            compile(no_io_uring(), libc::ENOSYS)?,
            compile(protect_first_process().map_err(seccomp)?, libc::EPERM)?,
        ]))
    }

    /// Puts them up, with `no_new_privs`. System calls of a foreign architecture end the process.
    pub fn apply(&self) -> Result<(), GuardError> {
        self.0.iter().try_for_each(|program| {
            apply_filter(program).map_err(|error| GuardError::Seccomp(error.to_string()))
        })
    }
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// `io_uring` does I/O that no filter and no record sees.
fn no_io_uring() -> Rules {
    let calls = [libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register];
    calls.into_iter().flat_map(numbers).map(|number| (number, Vec::new())).collect()
}

/// The agent may run as the user of `sandbox-init`, so the kernel would let it slow or limit it.
fn protect_first_process() -> Result<Rules, seccompiler::BackendError> {
    // Calls and the arguments that name a process.
    let by_process: [(i64, &[u8]); 18] = [
        (libc::SYS_kill, &[0]),
        (libc::SYS_tkill, &[0]),
        (libc::SYS_tgkill, &[0, 1]),
        (libc::SYS_rt_sigqueueinfo, &[0]),
        (libc::SYS_rt_tgsigqueueinfo, &[0, 1]),
        (libc::SYS_pidfd_open, &[0]),
        (libc::SYS_sched_setaffinity, &[0]),
        (libc::SYS_sched_setscheduler, &[0]),
        (libc::SYS_sched_setparam, &[0]),
        (libc::SYS_sched_setattr, &[0]),
        (libc::SYS_setpriority, &[1]),
        (libc::SYS_ioprio_set, &[1]),
        (libc::SYS_prlimit64, &[0]),
        (libc::SYS_ptrace, &[1]),
        (libc::SYS_process_vm_readv, &[0]),
        (libc::SYS_process_vm_writev, &[0]),
        (libc::SYS_migrate_pages, &[0]),
        (libc::SYS_move_pages, &[0]),
    ];
    // "All processes of a user" has this one among them.
    let by_user = [(libc::SYS_setpriority, libc::PRIO_USER.into()), (libc::SYS_ioprio_set, 3)];
    let equal = |argument, value| {
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)
            .and_then(|condition| SeccompRule::new(vec![condition]))
    };
    let mut rules = Rules::new();
    for (call, arguments) in by_process {
        for number in numbers(call) {
            for argument in arguments {
                rules.entry(number).or_default().push(equal(*argument, 1)?);
            }
        }
    }
    for (call, value) in by_user {
        for number in numbers(call) {
            rules.entry(number).or_default().push(equal(0, value)?);
        }
    }
    Ok(rules)
}

/// Numbers of a call in the native table and, on x86-64, in the x32 table, which shares the architecture.
#[cfg(target_arch = "x86_64")]
fn numbers(call: i64) -> impl Iterator<Item = i64> {
    const X32: i64 = 0x4000_0000;
    let own = match call {
        libc::SYS_ptrace => Some(521),
        libc::SYS_rt_sigqueueinfo => Some(524),
        libc::SYS_move_pages => Some(533),
        libc::SYS_rt_tgsigqueueinfo => Some(536),
        libc::SYS_process_vm_readv => Some(539),
        libc::SYS_process_vm_writev => Some(540),
        _ => None,
    };
    [Some(call), Some(call | X32), own.map(|number| number | X32)].into_iter().flatten()
}

/// Numbers of a call.
#[cfg(not(target_arch = "x86_64"))]
fn numbers(call: i64) -> impl Iterator<Item = i64> {
    std::iter::once(call)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filters_compile() {
        assert!(Filters::compile().is_ok_and(|filters| filters.0.len() == 2));
    }

    #[test]
    fn no_abi_means_no_rules() {
        assert!(restrict_files(0, &["/does/not/exist".to_owned()]).is_ok());
        assert_eq!(effective_abi(9), 6);
    }
}
