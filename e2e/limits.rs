//! How much the agent can use.
use agentsandbox::api::v1alpha1::PidsEnforcement;
use serde_json::{Value, json};

use crate::support::{Test, agent::probe, shared};

#[test]
fn memory_ends_as_out_of_memory() {
    shared("memory", |test| async move {
        let hog = "hog = []\nwhile True:\n    hog.append(bytearray(4 << 20))";
        test.sandbox("agent", hog, json!({})).await;
        let outcome = test.finished_as("agent", "OutOfMemory").await;
        assert!(outcome.message.is_some_and(|m| !m.is_empty()));
    });
}

#[test]
fn cpu_is_throttled() {
    shared("cpu", |test| async move {
        let busy = "end = time.monotonic() + 8\nwhile time.monotonic() < end:\n    pass";
        let spec = json!({"resources": {"cpu": "200m", "requests": {"cpu": "20m"}}});
        test.run("agent", busy, spec).await;
        let usage = test.status("agent").await.outcome.unwrap().usage.unwrap();
        let (wall, cpu) = (usage.wall_milliseconds.unwrap(), usage.cpu_milliseconds.unwrap());
        // A fifth of a core, with a margin for the start and for how coarsely the kernel hands out periods.
        assert!(cpu * 100 < wall * 40, "{cpu} ms of CPU in {wall} ms");
        // The control: without a limit the same loop uses most of a core, even beside the other tests.
        let control = format!("{busy}\nsay(probe='cpu', used=time.process_time())");
        let said = test.control("control", &control).await;
        let used = probe(&said, "cpu")["used"].as_f64().unwrap();
        assert!(used * 1000.0 > 1.5 * 8000.0 * 0.2, "the control used {used} s of 8 s");
    });
}

#[test]
fn disk_ends_as_disk_limit_exceeded() {
    shared("disk", |test| async move {
        // In files that are each smaller than one file may be.
        let fill = "for i in range(6):\n    with open(f'/workspace/{i}', 'wb') as f:\n        f.write(b'x' * (10 << 20))\n\
                    while True:\n    time.sleep(1)";
        let spec = json!({
            "timeout": "3m",
            "resources": {"ephemeralStorage": "32Mi"},
            "filesystem": {"mounts": [{"path": "/workspace", "readOnly": false, "emptyDir": {"sizeLimit": "16Mi"}}]},
        });
        test.sandbox("agent", fill, spec).await;
        // The kubelet measures every ten seconds and more, so this takes longest of all.
        let outcome = test
            .wait_status("agent", "an outcome", std::time::Duration::from_mins(3), |s| s.outcome.clone())
            .await;
        assert_eq!(outcome.reason, "DiskLimitExceeded", "{outcome:?}");
    });
}

/// The kubelet does not count a file that was unlinked: its size is what the kernel limits.
#[test]
fn one_file_is_no_larger_than_the_disk_limit() {
    shared("file-size", |test| async move {
        let script = "f = open('/workspace/a', 'wb')\nos.unlink('/workspace/a')\n\
                      attempt('within', lambda: f.truncate(31 << 20))\nattempt('beyond', lambda: f.truncate(33 << 20))";
        let spec = json!({
            "resources": {"ephemeralStorage": "32Mi"},
            "filesystem": {"mounts": [{"path": "/workspace", "readOnly": false, "emptyDir": {"sizeLimit": "16Mi"}}]},
        });
        let said = test.run("agent", script, spec).await;
        assert_eq!(probe(&said, "within")["ok"], true, "{said:?}");
        assert_eq!(probe(&said, "beyond")["errno"], 27, "EFBIG: {said:?}");
    });
}

/// Starts as many sleeping children as the kernel allows and says how many that were.
const FORKS: &str = r"
children, error = [], None
for _ in range(150):
    try:
        pid = os.fork()
    except OSError as e:
        error = e.errno
        break
    if pid == 0:
        time.sleep(60)
        os._exit(0)
    children.append(pid)
say(probe='forks', made=len(children), errno=error)
for pid in children:
    os.kill(pid, 9)
for pid in children:
    os.waitpid(pid, 0)
";

async fn forks(test: &Test, spec: Value) -> (i64, Value) {
    let said = test.run("agent", FORKS, spec).await;
    let line = probe(&said, "forks");
    (line["made"].as_i64().unwrap(), line["errno"].clone())
}

#[test]
fn processes_are_limited_exactly_in_a_user_namespace() {
    shared("pids-userns", |test| async move {
        let spec = json!({"resources": {"pids": 32}, "isolation": {"userNamespace": "Required"}});
        let (made, errno) = forks(&test, spec).await;
        assert_eq!(errno, 11, "EAGAIN after {made} processes");
        assert!((28..=32).contains(&made), "{made} children beside the agent's first process");
        let limits = test.status("agent").await.limits.expect("status.limits");
        assert_eq!(limits.pids, PidsEnforcement::UserNamespace);
        assert!(limits.user_namespace);
        let said = test.control("control", FORKS).await;
        assert!(probe(&said, "forks")["made"].as_i64().unwrap() > 100, "the control makes more: {said:?}");
    });
}

#[test]
fn processes_are_limited_exactly_for_a_user_of_its_own() {
    shared("pids-user", |test| async move {
        let spec = json!({"resources": {"pids": 32}, "isolation": {"userNamespace": "Disabled"}});
        let (made, errno) = forks(&test, spec).await;
        assert_eq!(errno, 11, "EAGAIN after {made} processes");
        assert!((28..=32).contains(&made), "{made} children beside the agent's first process");
        let limits = test.status("agent").await.limits.expect("status.limits");
        assert_eq!((limits.pids, limits.user_namespace), (PidsEnforcement::OwnUser, false));
    });
}

#[test]
fn a_shared_user_never_gets_more_and_status_says_so() {
    shared("pids-shared", |test| async move {
        let spec = json!({
            "resources": {"pids": 32}, "runAs": {"user": 2000}, "isolation": {"userNamespace": "Disabled"},
        });
        let (made, _) = forks(&test, spec).await;
        assert!(made <= 32, "{made}");
        let limits = test.status("agent").await.limits.expect("status.limits");
        assert_eq!(limits.pids, PidsEnforcement::SharedUser);
    });
}
