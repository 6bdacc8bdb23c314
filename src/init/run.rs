//! `sandbox-init run`: contains, executes and ends the agent, and reports.
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::Path;
use std::time::Duration;

use nix::sys::prctl;
use nix::unistd::{getgid, getpid, getuid};

use super::config::{CONFIG_VARIABLE, InitConfig, MAX_PROOF, PROOF_FILE};
use super::facts::{self, CpuFacts, MemoryFacts, since_boot};
use super::filters::Filters;
use super::guard::effective_abi;
use super::launch::{Launch, LaunchError};
use super::link::Link;
use super::mounts;
use super::report::{Cause, TerminationReport};
use super::supervise::{End, Ending, supervise, take_signals};
use super::sys;
use super::wire::{InitEvent, MAX_ARGUMENT_BYTES, StartFacts};
use crate::api::v1alpha1::{GoDuration, LandlockMode};
use crate::audit::{now_ms, rfc3339};

/// Exit code where not even a report could be written.
const NO_REPORT: i32 = 125;

/// Runs `command` as the agent and returns the exit code of the container.
pub fn run(command: &[OsString], termination_log: &Path) -> i32 {
    // Signals and limits below are for every process of the PID namespace: elsewhere that is the whole machine.
    if getpid().as_raw() != 1 {
        return fail("sandbox-init run works only as the first process of a container");
    }
    // The agent may run as the same user: no ptrace, and no /proc/1/{environ,mem,fd} for it.
    if let Err(errno) = prctl::set_dumpable(false) {
        return fail(&format!("PR_SET_DUMPABLE: {errno}"));
    }
    // Opened before the agent could put something else there.
    let mut log = match OpenOptions::new().write(true).open(termination_log) {
        Ok(log) => log,
        Err(error) => return fail(&format!("cannot open {}: {error}", termination_log.display())),
    };
    let report = contained(command, &termination_log.to_string_lossy()).unwrap_or_else(|stopped| *stopped.0);
    if let Err(error) = write_report(&mut log, &report) {
        return fail(&format!("cannot write {}: {error}", termination_log.display()));
    }
    if !matches!(report.cause, Cause::Exited | Cause::Signaled) {
        say(&format!("{:?}: {}", report.cause, report.message));
    }
    report.container_exit_code()
}

/// The report of an agent that never ran. Boxed: it is the error of many results.
struct Stopped(Box<TerminationReport>);

fn contained(command: &[OsString], termination_log: &str) -> Result<TerminationReport, Stopped> {
    let mut report = TerminationReport { user_namespace: facts::in_user_namespace(), ..Default::default() };
    let not_contained =
        |report: &TerminationReport, message: String| stop(report, Cause::NotContained, &message);
    let config = read_config().map_err(|message| not_contained(&report, message))?;
    let kernel_abi = sys::landlock_abi();
    report.landlock_abi = effective_abi(kernel_abi);
    let (memory, cpu) = (MemoryFacts::open(), CpuFacts::open());
    let signals = take_signals().map_err(|errno| not_contained(&report, format!("signals: {errno}")))?;
    let mut link = Link::connect(read_proof(&config))
        .map_err(|error| stop(&report, Cause::AuditLost, &error.to_string()))?;

    let mounted = mounts::look(&config, termination_log);
    let ending = prepare(command, &config, &report, mounted, &mut link).and_then(|launch| {
        let (begin, begin_ms) = (since_boot(), now_ms());
        report.started_at = rfc3339(begin_ms);
        let main = launch.start().map_err(|error| {
            // It never ran, so it has no start.
            report.started_at = None;
            refused(&report, &error)
        })?;
        let timeout = Duration::from_millis(config.timeout_ms);
        let grace = Duration::from_millis(config.grace_ms);
        let ending = supervise(main, &signals, &link, begin.saturating_add(timeout), grace)
            .map_err(|errno| not_contained(&report, format!("supervision: {errno}")));
        report.wall_ms = milliseconds(since_boot().saturating_sub(begin));
        ending
    });
    let mut finished = match ending {
        Ok(ending) => conclude(report, &ending, &config, memory.kills()),
        Err(stopped) => *stopped.0,
    };
    finished.cpu_ms = cpu.milliseconds();
    finished.peak_memory_bytes = memory.peak();
    Ok(hand_over(finished, &mut link))
}

/// Everything before the fork: the records that the agent must not run without, and its guards.
fn prepare(
    command: &[OsString],
    config: &InitConfig,
    report: &TerminationReport,
    mounted: Result<Vec<String>, String>,
    link: &mut Link,
) -> Result<Launch, Stopped> {
    let not_contained = |message: &str| stop(report, Cause::NotContained, message);
    let unlisted = mounted.as_ref().cloned().unwrap_or_default();
    // Landlock refuses to write there, as everywhere else.
    let open = unlisted.first().filter(|_| report.landlock_abi == 0).cloned();
    let start = StartFacts {
        mounts: config.mounts.clone(),
        timeout_ms: config.timeout_ms,
        grace_ms: config.grace_ms,
        pids: config.pids,
        landlock_abi: report.landlock_abi,
        user_namespace: report.user_namespace,
        unlisted,
    };
    for event in [InitEvent::Started(start), exec_event(command)] {
        link.send(event).map_err(|error| stop(report, Cause::AuditLost, &error.to_string()))?;
    }
    mounted.map_err(|message| not_contained(&message))?;
    if config.landlock == LandlockMode::Required && report.landlock_abi == 0 {
        return Err(not_contained("the spec requires Landlock, which the kernel does not have"));
    }
    if let Some(path) = open {
        let why =
            "is writable and no mount of the spec lists it; the kernel has no Landlock that would refuse it";
        return Err(not_contained(&format!("{path} {why}")));
    }
    let filters = Filters::compile().map_err(|error| not_contained(&error.to_string()))?;
    Launch::new(command, config, report.landlock_abi, filters).map_err(|error| refused(report, &error))
}

fn conclude(
    mut report: TerminationReport,
    ending: &Ending,
    config: &InitConfig,
    memory_kills: u64,
) -> TerminationReport {
    report.cause = ending.cause;
    report.processes = ending.reaped;
    match ending.end {
        Some(End::Code(code)) => report.exit_code = Some(code),
        Some(End::Signal(signal)) => report.signal = Some(signal),
        None => {}
    }
    // SIGKILL that this process did not send, while the kernel counts a kill for want of memory.
    let killed = report.cause == Cause::Signaled && report.signal == Some(nix::libc::SIGKILL);
    if killed && memory_kills > 0 {
        report.cause = Cause::OutOfMemory;
    }
    report.message = match report.cause {
        Cause::DeadlineExceeded => {
            let timeout = GoDuration::of(Duration::from_millis(config.timeout_ms));
            format!("the timeout of {} passed", timeout.as_str())
        }
        Cause::Terminated => "a signal from outside of the container: it is being stopped".to_owned(),
        Cause::AuditLost => "the audit intake went away".to_owned(),
        _ if memory_kills > 0 => format!("the kernel ended {memory_kills} processes for want of memory"),
        _ => String::new(),
    };
    report
}

/// Records the end. What was not recorded to its end counts as unrecorded.
fn hand_over(mut report: TerminationReport, link: &mut Link) -> TerminationReport {
    let count = |records: u64| i64::try_from(records).unwrap_or(i64::MAX);
    report.records = count(link.confirmed().saturating_add(1));
    match link.send(InitEvent::Ended(report.clone())) {
        Ok(egress) => report.egress = egress,
        Err(error) => {
            report.records = count(link.confirmed());
            report.cause = Cause::AuditLost;
            report.message = cut(&error.to_string());
        }
    }
    report
}

fn read_config() -> Result<InitConfig, String> {
    let text = std::env::var(CONFIG_VARIABLE).map_err(|error| format!("{CONFIG_VARIABLE}: {error}"))?;
    serde_json::from_str(&text).map_err(|error| format!("{CONFIG_VARIABLE}: {error}"))
}

/// The proof for the sidecar. Where there is none, the sidecar says what that means.
fn read_proof(config: &InitConfig) -> Option<String> {
    let file = File::open(Path::new(&config.own_directory).join(PROOF_FILE)).ok()?;
    io::read_to_string(file.take(MAX_PROOF)).ok()
}

fn exec_event(command: &[OsString]) -> InitEvent {
    let mut left = MAX_ARGUMENT_BYTES;
    let mut truncated = false;
    let mut argv = Vec::new();
    for argument in command {
        let text = argument.to_string_lossy();
        // An empty argument costs too, so that their number is bounded as well.
        let end = text.floor_char_boundary(left.saturating_sub(1).min(text.len()));
        truncated |= end < text.len() || left == 0;
        if left == 0 {
            break;
        }
        argv.push(text.get(..end).unwrap_or_default().to_owned());
        left = left.saturating_sub(end + 1);
    }
    let (user, group) = (getuid().as_raw(), getgid().as_raw());
    InitEvent::Exec { argv, arguments: command.len(), truncated, user, group }
}

fn refused(report: &TerminationReport, error: &LaunchError) -> Stopped {
    let cause = match error {
        LaunchError::NotFound(_) | LaunchError::NotExecutable(_) => Cause::InvalidCommand,
        LaunchError::NotContained(_) | LaunchError::Fork(_) => Cause::NotContained,
    };
    stop(report, cause, &error.to_string())
}

fn stop(report: &TerminationReport, cause: Cause, message: &str) -> Stopped {
    Stopped(Box::new(TerminationReport { cause, message: cut(message), ..report.clone() }))
}

fn cut(message: &str) -> String {
    message.chars().take(512).collect()
}

fn milliseconds(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

/// Replaces what the agent may have written where nothing kept it from that.
fn write_report(log: &mut File, report: &TerminationReport) -> io::Result<()> {
    const MOST: usize = 4096;
    let mut bytes = serde_json::to_vec(report)?;
    if bytes.len() > MOST {
        bytes = serde_json::to_vec(&TerminationReport { message: String::new(), ..report.clone() })?;
    }
    log.set_len(0)?;
    log.rewind()?;
    log.write_all(&bytes)
}

fn fail(message: &str) -> i32 {
    say(message);
    NO_REPORT
}

/// Says `message` on standard error, which may be closed.
pub(super) fn say(message: &str) {
    let _ = writeln!(io::stderr(), "sandbox-init: {message}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_bounded() {
        let long = [OsString::from("a"), OsString::from("é".repeat(MAX_ARGUMENT_BYTES)), OsString::from("b")];
        let InitEvent::Exec { argv, arguments, truncated, .. } = exec_event(&long) else { panic!() };
        assert!(truncated && arguments == 3);
        assert!(argv.iter().map(String::len).sum::<usize>() <= MAX_ARGUMENT_BYTES);
        let short = [OsString::from("a"), OsString::new()];
        let InitEvent::Exec { argv, truncated, .. } = exec_event(&short) else { panic!() };
        assert!(!truncated && argv == ["a", ""]);
    }
}
