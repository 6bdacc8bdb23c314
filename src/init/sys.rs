//! System calls without a safe wrapper.
#![allow(unsafe_code)] // fork, _exit, rt_sigaction, setpriority, close_range and landlock_create_ruleset: each says why it is sound.
use std::io;

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::SigSet;
use nix::unistd::{ForkResult, Pid, fork};

/// Which side of a fork this is.
pub enum Side {
    /// The new process.
    Child,
    /// The old one, with the number of the new one.
    Parent(Pid),
}

/// Forks. Only for a process with one thread.
pub fn fork_single_threaded() -> Result<Side, Errno> {
    // SAFETY: no other thread exists that could hold a lock, so the child may do whatever the parent may.
    match unsafe { fork() }? {
        ForkResult::Child => Ok(Side::Child),
        ForkResult::Parent { child } => Ok(Side::Parent(child)),
    }
}

/// Ends the process at once: no exit handlers, no flushing of what the parent buffered.
pub fn exit_now(code: i32) -> ! {
    // SAFETY: _exit has no preconditions and does not return.
    unsafe { libc::_exit(code) }
}

/// Gives every signal its default action and blocks none. By the system call itself, as the C library keeps two
/// real-time signals to itself, which a container runtime may have left ignored.
pub fn reset_signals() -> Result<(), Errno> {
    /// Bytes of the kernel's `sigset_t`.
    const SET_SIZE: usize = 8;
    /// At least as long as the kernel's `struct sigaction`; zeros are `SIG_DFL` without flags.
    const DEFAULT: [u64; 8] = [0; 8];
    for signal in (1..=64).filter(|signal| ![libc::SIGKILL, libc::SIGSTOP].contains(signal)) {
        // SAFETY: the kernel only reads the action, which lives until then; the default runs no code of ours.
        let result = unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                DEFAULT.as_ptr(),
                std::ptr::null_mut::<libc::c_void>(),
                SET_SIZE,
            )
        };
        Errno::result(result)?;
    }
    SigSet::empty().thread_set_mask()
}

/// Sets the nice value of this process.
pub fn set_nice(nice: i32) -> Result<(), Errno> {
    // SAFETY: integers only; 0 is the calling process.
    Errno::result(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) }).map(drop)
}

/// Marks every descriptor from 3 up as closed by exec.
pub fn close_on_exec_from_three() -> Result<(), Errno> {
    // SAFETY: integers only; nothing is closed now, so no owner of a descriptor is cheated.
    let result = unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    Errno::result(result).map(drop)
}

/// Landlock ABI of the kernel; 0 where there is none, where it is off, and where it may not be asked.
pub fn landlock_abi() -> i32 {
    const VERSION: u32 = 1;
    // SAFETY: with this flag the kernel takes no attributes: a null pointer and the size 0.
    let abi = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<libc::c_void>(), 0_usize, VERSION)
    };
    i32::try_from(abi).unwrap_or(0).max(0)
}

/// An error of the operating system for a person.
pub fn describe(errno: i32) -> String {
    io::Error::from_raw_os_error(errno).to_string()
}
