//! Seccomp filters of the agent: what it may not ask of the kernel though it may be the user of `sandbox-init`.
//!
//! Linux drops most signals that a container sends to its own first process, and Landlock's scopes the others.
//! gVisor does neither, and an old kernel has no scopes: so every call that sends a signal is looked at here.
use std::collections::BTreeMap;

use nix::libc;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch, apply_filter,
};

use super::guard::GuardError;

/// `sandbox-init`.
const FIRST: u64 = 1;

/// The process group of [`FIRST`], as a call names it: -1, of which the kernel takes the lower half.
const FIRST_GROUP: u64 = 0xffff_ffff;

/// Programs of the filters, made before the fork.
#[derive(Debug)]
pub struct Filters(Vec<BpfProgram>);

impl Filters {
    /// Compiles them for this machine.
    pub fn compile() -> Result<Self, GuardError> {
        let seccomp = |error: BackendError| GuardError::Seccomp(error.to_string());
        let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(seccomp)?;
        let compile = |rules, errno: i32| -> Result<BpfProgram, GuardError> {
            let action = SeccompAction::Errno(errno.unsigned_abs());
            let filter = SeccompFilter::new(rules, SeccompAction::Allow, action, arch).map_err(seccomp)?;
            BpfProgram::try_from(filter).map_err(seccomp)
        };
        Ok(Self(vec![
            compile(not_there(), libc::ENOSYS)?,
            compile(protect_first_process().map_err(seccomp)?, libc::EPERM)?,
            compile(no_attributes(), libc::EOPNOTSUPP)?,
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

/// Every use of these calls.
fn always<const N: usize>(calls: [i64; N]) -> Rules {
    calls.into_iter().flat_map(numbers).map(|number| (number, Vec::new())).collect()
}

/// `io_uring` does I/O that no filter and no record sees. A pidfd names a process by a descriptor, which no filter
/// can follow, and a directory of `/proc` is as good as one. Whoever uses them falls back to kill(2) where they are
/// not there.
fn not_there() -> Rules {
    always([
        libc::SYS_io_uring_setup,
        libc::SYS_io_uring_enter,
        libc::SYS_io_uring_register,
        libc::SYS_pidfd_send_signal,
        libc::SYS_pidfd_getfd,
    ])
}

/// Extended attributes are room that no limit counts, also on files that are writable only by their mode, such as
/// the termination log. Programs that keep them go on without, as on a file system that has none.
fn no_attributes() -> Rules {
    always([
        libc::SYS_setxattr,
        libc::SYS_lsetxattr,
        libc::SYS_fsetxattr,
        libc::SYS_removexattr,
        libc::SYS_lremovexattr,
        libc::SYS_fremovexattr,
        SYS_SETXATTRAT,
        SYS_REMOVEXATTRAT,
    ])
}

/// setxattrat(2), which the C library's headers do not have yet; the same on every architecture.
const SYS_SETXATTRAT: i64 = 463;
/// removexattrat(2).
const SYS_REMOVEXATTRAT: i64 = 466;

/// The agent may run as the user of `sandbox-init`, so the kernel would let it slow, limit or signal it.
fn protect_first_process() -> Result<Rules, BackendError> {
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
    let mut rules = Rules::new();
    let mut refuse = |call: i64, arguments: &[(u8, SeccompCmpOp, u64)]| -> Result<(), BackendError> {
        let conditions = arguments.iter().map(|(argument, operator, value)| {
            SeccompCondition::new(*argument, SeccompCmpArgLen::Dword, operator.clone(), *value)
        });
        let rule = SeccompRule::new(conditions.collect::<Result<_, _>>()?)?;
        for number in numbers(call) {
            rules.entry(number).or_default().push(rule.clone());
        }
        Ok(())
    };
    let is = |argument: u8, value: u64| (argument, SeccompCmpOp::Eq, value);
    for (call, arguments) in by_process {
        arguments.iter().try_for_each(|argument| refuse(call, &[is(*argument, FIRST)]))?;
    }
    // "All processes of a user" has this one among them.
    refuse(libc::SYS_setpriority, &[is(0, libc::PRIO_USER.into())])?;
    refuse(libc::SYS_ioprio_set, &[is(0, 3)])?;
    // A descriptor's owner is signalled when there is something to read. Where the owner is behind a pointer, no
    // filter sees who it is; another signal than SIGIO is what almost nobody asks for.
    for owner in [FIRST, FIRST_GROUP] {
        refuse(libc::SYS_fcntl, &[is(1, F_SETOWN), is(2, owner)])?;
    }
    for command in [F_SETSIG, F_SETOWN_EX] {
        refuse(libc::SYS_fcntl, &[is(1, command)])?;
    }
    for request in [FIOSETOWN, SIOCSPGRP] {
        refuse(libc::SYS_ioctl, &[is(1, request)])?;
    }
    // A child that is the parent's is that of `sandbox-init`, and its end sends a signal of the agent's choice.
    let parent = u64::from(libc::CLONE_PARENT.unsigned_abs());
    refuse(libc::SYS_clone, &[(0, SeccompCmpOp::MaskedEq(parent), parent)])?;
    Ok(rules)
}

/// fcntl(2): who gets the signals of a descriptor.
const F_SETOWN: u64 = 8;
/// fcntl(2): which signal that is.
const F_SETSIG: u64 = 10;
/// fcntl(2): as [`F_SETOWN`], by a pointer.
const F_SETOWN_EX: u64 = 15;
/// ioctl(2): as [`F_SETOWN_EX`].
const FIOSETOWN: u64 = 0x8901;
/// ioctl(2): the same for sockets.
const SIOCSPGRP: u64 = 0x8902;

/// Numbers of a call in the native table and, on x86-64, in the x32 table, which shares the architecture.
#[cfg(target_arch = "x86_64")]
fn numbers(call: i64) -> impl Iterator<Item = i64> {
    const X32: i64 = 0x4000_0000;
    let own = match call {
        libc::SYS_ioctl => Some(514),
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
        assert!(Filters::compile().is_ok_and(|filters| filters.0.len() == 3));
    }
}
