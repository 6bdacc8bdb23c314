//! What the agent cannot do.
use agentsandbox::api::v1alpha1::LandlockMode;
use agentsandbox::init::report::Cause;
use agentsandbox::init::wire::InitEvent;
use rstest::rstest;

use crate::support::Case;

#[test]
fn the_agent_does_not_see_the_operators_variables() {
    let mut case = Case::new();
    case.environment = vec![("MINE", "kept")];
    let outcome = case.shell("env; cat /proc/1/environ 2>&1; ls /proc/1/fd 2>&1");
    assert!(outcome.stdout.contains("MINE=kept"));
    assert!(!outcome.stdout.contains("AGENTSANDBOX_"), "{}", outcome.stdout);
    assert_eq!(outcome.stdout.matches("Permission denied").count(), 2, "{}", outcome.stdout);
}

#[test]
fn writes_are_for_the_writable_mounts_only() {
    let script = "
        echo x > $DIR/writable/file && mkdir $DIR/writable/d && mv $DIR/writable/file $DIR/writable/d/ && echo inside
        echo x > /dev/null && echo device
        cat $DIR/termination-log > /dev/null && echo read
        echo x 2> /dev/null > $DIR/closed/file || echo closed
        (echo x > $DIR/termination-log) 2> /dev/null || echo log
        ln -s /x $DIR/closed/link 2> /dev/null || echo link
    ";
    let outcome = Case::new().shell(script);
    let denied = if outcome.report.landlock_abi > 0 { "closed\nlog\nlink\n" } else { "" };
    assert_eq!(outcome.stdout, format!("inside\ndevice\nread\n{denied}"), "{}", outcome.stderr);
    let InitEvent::Started(facts) = &outcome.events[0] else { panic!() };
    assert_eq!(facts.landlock_abi, outcome.report.landlock_abi);
}

/// The control of the test above: without a guard the same user may write there.
#[test]
fn the_mode_of_the_closed_directory_is_not_what_denies() {
    let mut case = Case::new();
    case.config.writable.push(case.path("closed").display().to_string());
    let outcome = case.shell("echo x > $DIR/closed/file && echo open");
    assert_eq!(outcome.stdout, "open\n", "{}", outcome.stderr);
}

#[test]
fn landlock_may_be_required() {
    let mut case = Case::new();
    case.config.landlock = LandlockMode::Required;
    let outcome = case.shell("echo ran");
    let expected =
        if outcome.report.landlock_abi > 0 { (Cause::Exited, 0) } else { (Cause::NotContained, 125) };
    assert_eq!((outcome.report.cause, outcome.code), expected, "{:?}", outcome.report);
    assert_eq!(outcome.stdout.is_empty(), expected.1 != 0);
}

#[test]
fn a_guard_that_does_not_stand_stops_it() {
    let mut case = Case::new();
    case.config.writable.push("/does/not/exist".to_owned());
    let outcome = case.shell("echo ran");
    if outcome.report.landlock_abi > 0 {
        assert_eq!((outcome.report.cause, outcome.code), (Cause::NotContained, 125));
        assert_eq!(outcome.stdout, "");
    }
}

#[rstest]
#[case::own_directory_is_none("umount $DIR/own", "own is not a mount point")]
#[case::own_directory_is_writable("mount -o remount,bind,rw $DIR/own", "own directory, is writable")]
#[case::over_it("mount --bind $DIR/own $DIR/own", "more than one thing is mounted at")]
#[case::below_it(
    "mount --bind $DIR/own/sandbox-init $DIR/own/sandbox-init",
    "is mounted below the operator's"
)]
#[case::led_elsewhere(
    "umount $DIR/writable; mv $DIR/writable $DIR/w; ln -s closed $DIR/writable; mount --bind $DIR/w $DIR/writable",
    "/closed"
)]
fn mounts_that_are_not_as_planned_stop_it(#[case] mounting: &str, #[case] told: &str) {
    let mut case = Case::new();
    mounting.clone_into(&mut case.mounting);
    let outcome = case.shell("echo ran");
    assert_eq!((outcome.report.cause, outcome.code), (Cause::NotContained, 125), "{:?}", outcome.report);
    assert!(outcome.report.message.contains(told), "{}", outcome.report.message);
    assert_eq!(outcome.stdout, "");
    assert_eq!(outcome.events.last(), Some(&InitEvent::Ended(outcome.report.clone())), "it is recorded");
}

#[test]
fn a_volume_of_the_image_is_recorded_and_cannot_be_written() {
    let mut case = Case::new();
    "mount --bind $DIR/closed $DIR/closed".clone_into(&mut case.mounting);
    let volume = case.path("closed").display().to_string();
    let outcome = case.shell("(echo x > $DIR/closed/file) 2> /dev/null || echo refused");
    let InitEvent::Started(facts) = &outcome.events[0] else { panic!() };
    // This machine has writable file systems of its own.
    assert!(facts.unlisted.contains(&volume) || facts.unlisted.len() == 16, "{facts:?}");
    assert_eq!(outcome.stdout, if facts.landlock_abi > 0 { "refused\n" } else { "" });
}

#[rstest]
#[case::kill("for s in TERM KILL INT HUP STOP USR1; do kill -$s 1; done")]
#[case::priority("python3 -c 'import os; os.setpriority(os.PRIO_PROCESS, 1, 19)'")]
#[case::priority_of_the_user("python3 -c 'import os; os.setpriority(os.PRIO_USER, os.getuid(), 19)'")]
#[case::affinity("python3 -c 'import os; os.sched_setaffinity(1, {0})'")]
#[case::limit("python3 -c 'import resource as r; r.prlimit(1, r.RLIMIT_NOFILE, (0, 0))'")]
#[case::own_priority("python3 -c 'import os; os.setpriority(os.PRIO_PROCESS, 0, 0)'")]
fn the_first_process_is_out_of_reach(#[case] attack: &str) {
    let outcome = Case::new().shell(&format!("{attack}; echo $?; sleep 0.3; echo alive; exit 5"));
    assert_eq!((outcome.report.cause, outcome.code), (Cause::Exited, 5), "{:?}", outcome.report);
    assert!(outcome.stdout.ends_with("alive\n"));
    assert!(!outcome.stdout.starts_with("0\n"), "{}", outcome.stdout);
    let refused = ["not permitted", "PermissionError", "Permission denied"];
    assert!(refused.iter().any(|text| outcome.stderr.contains(text)), "{}", outcome.stderr);
}

/// What python says of a call by its number, with arguments that would be right.
const CALL: &str = "
import ctypes, errno, fcntl, os, signal, struct, sys
def call(*arguments):
    libc = ctypes.CDLL(None, use_errno=True)
    print('done' if libc.syscall(*arguments) >= 0 else errno.errorcode[ctypes.get_errno()])
def attempt(action):
    try: action(); print('done')
    except OSError as error: print(errno.errorcode[error.errno])
directory = os.open('/proc/1', os.O_DIRECTORY)
reader, writer = os.pipe()
";

/// gVisor protects the first process in no way of its own, so these have to be refused before the kernel is asked.
#[rstest]
#[case::directory_as_pidfd(
    "[call(424, directory, s, 0, 0) for s in (15, 19, 9)]",
    "ENOSYS\nENOSYS\nENOSYS\n"
)]
#[case::owner("attempt(lambda: fcntl.fcntl(reader, fcntl.F_SETOWN, 1))", "EPERM\n")]
#[case::owner_by_group("attempt(lambda: fcntl.fcntl(reader, fcntl.F_SETOWN, -1))", "EPERM\n")]
#[case::owner_by_pointer("attempt(lambda: fcntl.fcntl(reader, 15, struct.pack('ii', 1, 1)))", "EPERM\n")]
#[case::which_signal("attempt(lambda: fcntl.fcntl(reader, 10, 9))", "EPERM\n")]
#[case::owner_by_ioctl(
    "[attempt(lambda: fcntl.ioctl(reader, n, struct.pack('i', 1))) for n in (0x8901, 0x8902)]",
    "EPERM\nEPERM\n"
)]
#[case::child_of_the_parent("call(56, 0x8000 | 9, 0, 0, 0, 0)", "EPERM\n")]
#[case::queued("call(129, 1, 15, 0)", "EPERM\n")]
#[case::attributes(
    "attempt(lambda: os.setxattr(os.environ['DIR'] + '/writable', 'user.a', b'x'))",
    "ENOTSUP\n"
)]
// Controls: what programs do to themselves.
#[case::own_signals("attempt(lambda: fcntl.fcntl(reader, fcntl.F_SETOWN, os.getpid()))", "done\n")]
#[case::own_descriptor("attempt(lambda: fcntl.fcntl(reader, fcntl.F_SETFL, os.O_NONBLOCK))", "done\n")]
#[case::own_children("child = os.fork() or os._exit(0); attempt(lambda: os.waitpid(child, 0))", "done\n")]
#[cfg(target_arch = "x86_64")]
fn the_first_process_gets_no_signal_by_detours(#[case] attack: &str, #[case] expected: &str) {
    let outcome = Case::new().run(&["python3", "-c", &format!("{CALL}{attack}\nsys.exit(5)")]);
    assert_eq!(
        (outcome.report.cause, outcome.code),
        (Cause::Exited, 5),
        "{:?} {}",
        outcome.report,
        outcome.stderr
    );
    assert_eq!(outcome.stdout, expected, "{}", outcome.stderr);
}

#[test]
fn the_agent_has_a_lower_priority_and_a_session_of_its_own() {
    let script = "
        cut -d' ' -f19 /proc/$$/stat; cut -d' ' -f19 /proc/1/stat; cut -d' ' -f6 /proc/$$/stat | grep -qx $$ && echo own
        cat /proc/self/oom_score_adj; grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status; ulimit -c
        grep -E '^Sig(Ign|Blk)' /proc/self/status
    ";
    let outcome = Case::new().shell(script);
    // The machine may run the tests at a lower priority already.
    let own: i32 = outcome.stdout.lines().nth(1).unwrap().parse().unwrap();
    let nice = own.max(10);
    let expected = format!(
        "{nice}\n{own}\nown\n1000\nNoNewPrivs:\t1\nSeccomp:\t2\n0\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n"
    );
    assert_eq!(outcome.stdout, expected, "{}", outcome.stderr);
}

#[test]
fn one_file_has_a_size_and_one_process_so_many_files() {
    let script = "ulimit -Hn; trap '' XFSZ; head -c 100000 /dev/zero > $DIR/writable/small && echo small;
        head -c 300000 /dev/zero > $DIR/writable/large || echo large; wc -c < $DIR/writable/large";
    let mut case = Case::new();
    case.config.file_size_bytes = Some(200 << 10);
    let outcome = case.shell(script);
    let mut lines = outcome.stdout.lines();
    assert!(lines.next().unwrap().parse::<u64>().unwrap() <= 65_536, "{}", outcome.stdout);
    assert_eq!(lines.collect::<Vec<_>>(), ["small", "large", "204800"], "{}", outcome.stderr);
}

#[test]
fn processes_are_limited_and_a_fork_bomb_ends_in_time() {
    let mut case = Case::new();
    case.config.pids = 20;
    case.config.timeout_ms = 2000;
    let outcome = case.shell("bomb() { bomb | bomb & }; trap '' TERM; bomb; while :; do :; done");
    assert_eq!((outcome.report.cause, outcome.code), (Cause::DeadlineExceeded, 124), "{:?}", outcome.report);
    assert!(outcome.report.wall_ms < 5000, "{:?}", outcome.report);
    assert!(outcome.stderr.contains("fork"), "{}", outcome.stderr);
}
