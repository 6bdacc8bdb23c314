//! A container as far as `sandbox-init` sees one: PID namespace, `/proc`, an audit peer, a termination log.
use std::io::{BufRead, BufReader, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use agentsandbox::api::v1alpha1::LandlockMode;
use agentsandbox::init::config::{AUDIT_SOCKET, CONFIG_VARIABLE, InitConfig, MountFact, SandboxIdentity};
use agentsandbox::init::report::TerminationReport;
use agentsandbox::init::wire::{InitEvent, InitRecord};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::Pid;

/// How the audit peer behaves.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// Confirms everything.
    Good,
    /// Confirms so many records and hangs up.
    HangsUpAfter(usize),
    /// Confirms everything, and says at the end what went through.
    Counts,
    /// Does not exist.
    Absent,
}

/// What the kubelet mounts of every sandbox.
const MOUNTS: &str = "
mount --bind $DIR/writable $DIR/writable
mount --bind $DIR/own $DIR/own
mount -o remount,bind,ro $DIR/own
";

/// A container to run.
pub struct Case {
    pub config: InitConfig,
    pub peer: Peer,
    /// User and group of all of it; root needs no limits.
    pub user: u32,
    pub environment: Vec<(&'static str, &'static str)>,
    /// Shell commands by which the runtime goes on to mount.
    pub mounting: String,
    pub directory: tempfile::TempDir,
}

/// What came of it.
pub struct Outcome {
    pub code: i32,
    pub report: TerminationReport,
    pub stdout: String,
    pub stderr: String,
    pub events: Vec<InitEvent>,
    pub took: Duration,
}

impl Case {
    pub fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("asbx-init").tempdir_in("/var/tmp").unwrap();
        std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
        for name in ["writable", "closed", "own"] {
            let path = directory.path().join(name);
            std::fs::create_dir(&path).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o777)).unwrap();
        }
        // The build directory may be closed to the user of the test.
        let copy = directory.path().join("own/sandbox-init");
        std::fs::copy(env!("CARGO_BIN_EXE_sandbox-init"), &copy).unwrap();
        std::fs::set_permissions(&copy, PermissionsExt::from_mode(0o755)).unwrap();
        std::fs::write(directory.path().join("own/proof"), "the proof").unwrap();
        let writable = directory.path().join("writable").display().to_string();
        let config = InitConfig {
            sandbox: SandboxIdentity { namespace: "n".into(), name: "s".into(), uid: "u".into() },
            timeout_ms: 20_000,
            grace_ms: 500,
            pids: 64,
            file_size_bytes: None,
            landlock: LandlockMode::BestEffort,
            writable: vec![writable.clone()],
            mounts: vec![MountFact { path: writable, read_only: false, source: "emptyDir".into() }],
            own_directory: directory.path().join("own").display().to_string(),
            policy_digest: "sha256:0".into(),
            generation: 1,
        };
        // A user of its own per test: RLIMIT_NPROC counts by user.
        let user = 200_000 + u32::from_ne_bytes(std::process::id().to_ne_bytes()) % 1000 * 1000 + next();
        Self { config, peer: Peer::Good, user, environment: Vec::new(), mounting: String::new(), directory }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Runs `/bin/sh -c script`.
    pub fn shell(self, script: &str) -> Outcome {
        self.run(&["/bin/sh", "-c", script])
    }

    /// Runs `command` to its end.
    pub fn run(self, command: &[&str]) -> Outcome {
        self.run_during(command, None::<fn(Pid)>)
    }

    /// As [`Case::run`]; `during` gets the PID of `sandbox-init` on this machine once the agent runs.
    pub fn run_with(self, command: &[&str], during: impl FnOnce(Pid) + Send + 'static) -> Outcome {
        self.run_during(command, Some(during))
    }

    fn run_during(self, command: &[&str], during: Option<impl FnOnce(Pid) + Send + 'static>) -> Outcome {
        let command: Vec<String> = command.iter().map(|text| (*text).to_owned()).collect();
        // The network namespace is the thread's, and of those that it starts.
        std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).expect("the tests need root");
            self.in_namespace(&command, during)
        })
        .join()
        .unwrap()
    }

    fn in_namespace(self, command: &[String], during: Option<impl FnOnce(Pid)>) -> Outcome {
        let events = listen(self.peer);
        let log = self.path("termination-log");
        std::fs::write(&log, "left over by someone").unwrap();
        std::fs::set_permissions(&log, PermissionsExt::from_mode(0o666)).unwrap();
        let began = Instant::now();
        let mut child = self.start(command, &log);
        let mut collected = Vec::new();
        if matches!(self.peer, Peer::Good | Peer::Counts) {
            // The agent's exec follows the second record.
            while collected.len() < 2 {
                collected.push(events.recv_timeout(Duration::from_secs(10)).expect("no record"));
            }
            // Only a command that waits for it is sure to be there still.
            if let Some(during) = during
                && let Some(pid) = first_process(&child)
            {
                during(pid);
            }
        }
        let mut stdout = child.stdout.take().unwrap();
        let reader = std::thread::spawn(move || std::io::read_to_string(&mut stdout).unwrap_or_default());
        let stderr = std::io::read_to_string(child.stderr.take().unwrap()).unwrap_or_default();
        let status = child.wait().unwrap();
        let took = began.elapsed();
        collected.extend(events.iter());
        let text = std::fs::read_to_string(&log).unwrap();
        let report = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}\n{stderr}"));
        let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap());
        Outcome { code, report, stdout: reader.join().unwrap(), stderr, events: collected, took }
    }

    fn start(&self, command: &[String], log: &Path) -> Child {
        let user = self.user.to_string();
        Command::new("unshare")
            .args(["--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-ec"])
            .arg(format!("{MOUNTS}\n{}\nexec setpriv \"$@\"", self.mounting))
            .arg("sh")
            .args(["--reuid", &user, "--regid", &user, "--clear-groups", "--"])
            .arg(self.path("own/sandbox-init"))
            .args(["run", "--termination-log"])
            .arg(log)
            .arg("--")
            .args(command)
            .env(CONFIG_VARIABLE, serde_json::to_string(&self.config).unwrap())
            .env("AGENTSANDBOX_OTHER", "hidden")
            .env("DIR", self.directory.path())
            .envs(self.environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }
}

fn next() -> u32 {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(1);
    NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

/// The child of `unshare`, which executes `sh`, `setpriv` and then `sandbox-init`.
fn first_process(unshare: &Child) -> Option<Pid> {
    let id = unshare.id();
    let children = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).ok()?;
    Some(Pid::from_raw(children.split_whitespace().next()?.parse().ok()?))
}

/// Starts an audit peer; the receiver ends when the connection does.
fn listen(peer: Peer) -> Receiver<InitEvent> {
    let (sender, receiver) = channel();
    if peer == Peer::Absent {
        return receiver;
    }
    let listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(AUDIT_SOCKET).unwrap()).unwrap();
    std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let most = if let Peer::HangsUpAfter(most) = peer { most } else { usize::MAX };
        for line in BufReader::new(&stream).lines().map_while(Result::ok).take(most) {
            let record: InitRecord = serde_json::from_str(&line).unwrap();
            assert_eq!(record.proof.as_deref(), (record.id == 1).then_some("the proof"));
            let counted = peer == Peer::Counts && matches!(record.event, InitEvent::Ended(_));
            let more = if counted { r#" {"allowed":3,"denied":1,"bytesOut":5,"bytesIn":7}"# } else { "" };
            (&stream).write_all(format!("{}{more}\n", record.id).as_bytes()).unwrap();
            let _ = sender.send(record.event);
        }
        // Long enough for the agent to run.
        if most != usize::MAX {
            std::thread::sleep(Duration::from_millis(500));
        }
    });
    receiver
}

/// Sends a signal, by its number, from outside of the container, after a while.
pub fn send_after(milliseconds: u64, signal: i32) -> impl FnOnce(Pid) + Send + 'static {
    move |pid| {
        std::thread::sleep(Duration::from_millis(milliseconds));
        // By a program: the library's type has no real-time signals.
        let status = Command::new("kill").arg(format!("-{signal}")).arg(pid.to_string()).status().unwrap();
        assert!(status.success());
    }
}
