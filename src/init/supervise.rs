//! The first process's duties while the agent runs: deadline, signals, reaping, and the link to the sidecar.
use std::os::fd::AsFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::config::KILL_PATIENCE;
use super::facts::since_boot;
use super::link::Link;
use super::report::Cause;

/// Every process of the container except this one (kill(2)).
const EVERYONE: Pid = Pid::from_raw(-1);

/// Time between two rounds of SIGKILL.
const ROUND: Duration = Duration::from_millis(10);

/// Longest sleep, so that the conversion for poll(2) cannot overflow.
const LONGEST_SLEEP: Duration = Duration::from_mins(1);

/// How the agent's process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With this exit code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

/// How it all ended.
#[derive(Debug)]
pub struct Ending {
    /// Why; never `OutOfMemory`, which others find out.
    pub cause: Cause,
    /// End of the agent's process, unless it could not be killed.
    pub end: Option<End>,
    /// Processes that were waited for.
    pub reaped: i64,
}

enum Phase {
    /// Until the deadline.
    Running(Duration),
    /// SIGTERM was sent; SIGKILL follows at this time.
    Grace(Duration),
    /// SIGKILL is being sent, until this time.
    Killing(Duration),
}

/// Blocks every signal, for [`supervise`] to read, and for the time before it runs as well.
pub fn take_signals() -> Result<SignalFd, Errno> {
    let mask = SigSet::all();
    mask.thread_block()?;
    SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
}

/// Watches the agent's process `main` until no process is left.
pub fn supervise(
    main: Pid,
    signals: &SignalFd,
    link: &Link,
    deadline: Duration,
    grace: Duration,
) -> Result<Ending, Errno> {
    let mut watch = Watch { main, grace, phase: Phase::Running(deadline), cause: None, end: None, reaped: 0 };
    loop {
        watch.advance();
        if watch.reap()? || watch.gave_up() {
            return Ok(Ending {
                cause: watch.cause.unwrap_or(Cause::Exited),
                end: watch.end,
                reaped: watch.reaped,
            });
        }
        let mut descriptors =
            [PollFd::new(signals.as_fd(), PollFlags::POLLIN), PollFd::new(link.as_fd(), PollFlags::POLLIN)];
        // Once it is being killed, the link matters no more, and one that hung up would make this spin.
        let watched = if matches!(watch.phase, Phase::Killing(_)) { 1 } else { 2 };
        let (descriptors, _) = descriptors.split_at_mut(watched);
        match poll(descriptors, watch.sleep()) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
        let link_spoke = descriptors.get(1).is_some_and(|link| link.any() == Some(true));
        if link_spoke {
            watch.kill_all(Cause::AuditLost);
        }
        while let Ok(Some(signal)) = signals.read_signal() {
            watch.take(signal.ssi_code, signal.ssi_pid);
        }
    }
}

struct Watch {
    main: Pid,
    grace: Duration,
    phase: Phase,
    cause: Option<Cause>,
    end: Option<End>,
    reaped: i64,
}

impl Watch {
    /// Does what the time asks for.
    fn advance(&mut self) {
        let now = since_boot();
        match self.phase {
            Phase::Running(deadline) if now >= deadline => self.terminate(Cause::DeadlineExceeded),
            Phase::Grace(until) if now >= until => self.phase = Phase::Killing(now + KILL_PATIENCE),
            _ => {}
        }
        if matches!(self.phase, Phase::Killing(_)) {
            send(EVERYONE, Signal::SIGKILL);
        }
    }

    /// Time until [`Watch::advance`] has something to do, rounded up to milliseconds.
    fn sleep(&self) -> PollTimeout {
        let time = match self.phase {
            Phase::Running(until) | Phase::Grace(until) => {
                until.saturating_sub(since_boot()).min(LONGEST_SLEEP)
            }
            Phase::Killing(_) => ROUND,
        };
        let milliseconds = u16::try_from(time.as_micros().div_ceil(1000)).unwrap_or(u16::MAX);
        PollTimeout::from(milliseconds)
    }

    fn gave_up(&self) -> bool {
        matches!(self.phase, Phase::Killing(until) if since_boot() >= until)
    }

    /// Waits for every process that ended; tells whether none is left.
    fn reap(&mut self) -> Result<bool, Errno> {
        loop {
            let (pid, end) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, End::Code(code)),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, End::Signal(signal as i32)),
                Ok(WaitStatus::StillAlive) => return Ok(false),
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(Errno::ECHILD) => return Ok(true),
                Err(errno) => return Err(errno),
            };
            self.reaped += 1;
            if pid == self.main {
                self.end = Some(end);
                self.kill_all(if matches!(end, End::Code(_)) { Cause::Exited } else { Cause::Signaled });
            }
        }
    }

    /// SIGTERM to everyone, then SIGKILL after the grace.
    fn terminate(&mut self, cause: Cause) {
        if matches!(self.phase, Phase::Running(_)) {
            self.cause = Some(cause);
            self.phase = Phase::Grace(since_boot() + self.grace);
            send(EVERYONE, Signal::SIGTERM);
            // A stopped process handles nothing.
            send(EVERYONE, Signal::SIGCONT);
        }
    }

    /// SIGKILL to everyone now. The first cause stands.
    fn kill_all(&mut self, cause: Cause) {
        self.cause.get_or_insert(cause);
        if !matches!(self.phase, Phase::Killing(_)) {
            self.phase = Phase::Killing(since_boot() + KILL_PATIENCE);
        }
        send(EVERYONE, Signal::SIGKILL);
    }

    /// Handles a signal to this process: one by kill(2) from outside of the PID namespace is the order to end,
    /// whichever it is, since an image may choose the one that the runtime stops it by (`STOPSIGNAL`), and nobody
    /// else has a reason to send one: there is no terminal. A sender outside has no number here. A process in here
    /// cannot claim that: `SI_USER` is the kernel's word (`rt_sigqueueinfo(2)`).
    fn take(&mut self, code: i32, sender: u32) {
        if code == libc::SI_USER && sender == 0 {
            self.terminate(Cause::Terminated);
        }
    }
}

/// Sends a signal. That nobody is there to take it is no failure.
fn send(to: Pid, signal: Signal) {
    let _ = kill(to, signal);
}
