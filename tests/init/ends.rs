//! How sandboxes end, and what is reported about it.
use std::time::Duration;

use agentsandbox::egress::wire::EgressSummary;
use agentsandbox::init::report::Cause;
use agentsandbox::init::wire::InitEvent;
use rstest::rstest;

use crate::support::{Case, Outcome, Peer, send_after};

/// The report, the exit code and the record of the end agree.
fn check(outcome: &Outcome, cause: Cause, code: i32) {
    assert_eq!(outcome.report.cause, cause, "{:?} {}", outcome.report, outcome.stderr);
    assert_eq!(outcome.code, code, "{:?}", outcome.report);
    assert_eq!(outcome.report.container_exit_code(), code);
    assert_eq!(outcome.events.last(), Some(&InitEvent::Ended(outcome.report.clone())));
    assert_eq!(usize::try_from(outcome.report.records), Ok(outcome.events.len()));
}

#[rstest]
#[case::success("exit 0", Cause::Exited, 0)]
#[case::failure("exit 3", Cause::Exited, 3)]
#[case::looks_like_a_signal("exit 137", Cause::Exited, 137)]
#[case::killed("kill -KILL $$", Cause::Signaled, 137)]
#[case::crashed("kill -SEGV $$", Cause::Signaled, 139)]
fn the_exit_code_is_the_agents(#[case] script: &str, #[case] cause: Cause, #[case] code: i32) {
    let outcome = Case::new().shell(script);
    check(&outcome, cause, code);
    assert!(outcome.report.started_at.is_some() && outcome.report.processes >= 1);
}

#[rstest]
#[case::no_such_name("no-such-program-anywhere")]
#[case::no_such_path("/no/such/program")]
#[case::a_directory("/etc")]
#[case::not_executable("/etc/passwd")]
#[case::empty("")]
fn commands_that_do_not_exist_are_told(#[case] command: &str) {
    let mut case = Case::new();
    // Without directories that are closed to the test's user, such as root's own.
    case.environment = vec![("PATH", "/usr/bin:/bin")];
    let outcome = case.run(&[command, "argument"]);
    check(&outcome, Cause::InvalidCommand, 127);
    assert!(outcome.report.message.contains("cannot execute"), "{}", outcome.report.message);
    let searched = !command.is_empty() && !command.contains('/');
    assert_eq!(
        outcome.report.message.contains("write an absolute path"),
        searched,
        "{}",
        outcome.report.message
    );
    assert_eq!(outcome.report.started_at, None);
}

#[test]
fn names_are_searched_in_the_agents_path() {
    let case = Case::new();
    let outcome = case.run(&["sh", "-c", "echo found"]);
    check(&outcome, Cause::Exited, 0);
    assert_eq!(outcome.stdout, "found\n");
}

#[test]
fn arguments_arrive_and_are_recorded() {
    let outcome = Case::new().run(&["/bin/echo", "a b", "", "$(id)"]);
    assert_eq!(outcome.stdout, "a b  $(id)\n");
    let InitEvent::Exec { argv, arguments, truncated, .. } = &outcome.events[1] else { panic!() };
    assert_eq!(argv, &["/bin/echo", "a b", "", "$(id)"]);
    assert!(*arguments == 4 && !truncated);
}

#[test]
fn the_timeout_gives_time_to_clean_up() {
    let mut case = Case::new();
    case.config.timeout_ms = 700;
    case.config.grace_ms = 10_000;
    let outcome = case.shell("trap 'echo bye; exit 0' TERM; while :; do sleep 0.05; done");
    check(&outcome, Cause::DeadlineExceeded, 124);
    assert_eq!(outcome.report.message, "the timeout of 700ms passed");
    assert_eq!((outcome.stdout.as_str(), outcome.report.exit_code), ("bye\n", Some(0)));
    assert!((700..1500).contains(&outcome.report.wall_ms), "{:?}", outcome.report);
}

#[test]
fn the_timeout_is_not_for_negotiation() {
    let mut case = Case::new();
    case.config.timeout_ms = 700;
    case.config.grace_ms = 600;
    let outcome = case.shell("trap '' TERM INT HUP; (setsid sleep 100 &) ; while :; do sleep 0.05; done");
    check(&outcome, Cause::DeadlineExceeded, 124);
    assert_eq!(outcome.report.signal, Some(9));
    assert!((1300..2200).contains(&outcome.report.wall_ms), "{:?}", outcome.report);
}

#[test]
fn a_stopped_agent_ends_too() {
    let mut case = Case::new();
    case.config.timeout_ms = 500;
    let outcome = case.shell("kill -STOP $$");
    check(&outcome, Cause::DeadlineExceeded, 124);
}

/// An image may choose the signal that the runtime stops it by.
#[rstest]
#[case::usual(15)]
#[case::interrupt(2)]
#[case::chosen_by_nginx(3)]
#[case::chosen_by_httpd(28)]
#[case::user_defined(10)]
#[case::without_meaning(14)]
#[case::of_a_fault(11)]
#[case::of_a_broken_pipe(13)]
#[case::real_time(37)]
fn a_signal_from_outside_ends_it(#[case] signal: i32) {
    let outcome = Case::new().run_with(&["/bin/sleep", "100"], send_after(300, signal));
    check(&outcome, Cause::Terminated, 143);
    assert_eq!(outcome.report.signal, Some(15));
    assert!(outcome.took < Duration::from_secs(5));
}

#[test]
fn an_agent_that_ignores_the_end_is_reported_too() {
    let script = "trap '' TERM USR1; while :; do sleep 0.05; done";
    let outcome = Case::new().run_with(&["/bin/sh", "-c", script], send_after(500, 10));
    check(&outcome, Cause::Terminated, 143);
    assert_eq!(outcome.report.signal, Some(9));
}

#[test]
fn what_went_through_the_sidecar_is_reported() {
    let mut case = Case::new();
    case.peer = Peer::Counts;
    let report = case.shell("exit 0").report;
    let expected =
        EgressSummary { allowed: 3, denied: 1, bytes_out: 5, bytes_in: 7, ..EgressSummary::default() };
    assert_eq!((report.cause, report.egress), (Cause::Exited, Some(expected)));
    assert_eq!(Case::new().shell("exit 0").report.egress, None);
}

#[test]
fn what_the_agent_leaves_is_ended_and_counted() {
    let script =
        "for i in 1 2 3; do (setsid sh -c 'trap \"\" TERM; exec sleep 100' >/dev/null 2>&1 &); done; exit 4";
    let outcome = Case::new().shell(script);
    check(&outcome, Cause::Exited, 4);
    // Three left over and the agent at least.
    assert!(outcome.report.processes >= 4, "{:?}", outcome.report);
    assert!(outcome.took < Duration::from_secs(5));
}

#[test]
fn the_time_of_the_processor_is_counted() {
    let outcome = Case::new().shell("i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done");
    check(&outcome, Cause::Exited, 0);
    assert!(outcome.report.cpu_ms > 20 && outcome.report.wall_ms > 20, "{:?}", outcome.report);
}

/// Children of a process that ignores SIGCHLD are waited for by nobody, and the kernel forgets what they used.
#[test]
fn time_cannot_be_hidden_by_ignoring_children() {
    let script = "
import os, signal, time
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for _ in range(3):
    if os.fork() == 0:
        end = time.process_time() + 0.2
        while time.process_time() < end: pass
        os._exit(0)
try: os.waitpid(-1, 0)
except ChildProcessError: pass
";
    let outcome = Case::new().run(&["python3", "-c", script]);
    check(&outcome, Cause::Exited, 0);
    assert!(outcome.report.cpu_ms >= 600, "{:?}", outcome.report);
}

#[rstest]
#[case::while_it_runs(Peer::HangsUpAfter(2), true)]
#[case::before_it_runs(Peer::HangsUpAfter(1), false)]
#[case::never_there(Peer::Absent, false)]
fn nothing_runs_unrecorded(#[case] peer: Peer, #[case] runs: bool) {
    let mut case = Case::new();
    case.peer = peer;
    let outcome = case.shell("echo ran; sleep 100");
    assert_eq!((outcome.report.cause, outcome.code), (Cause::AuditLost, 125), "{:?}", outcome.report);
    assert_eq!(outcome.stdout == "ran\n", runs);
    assert!(outcome.took < Duration::from_secs(15));
}
