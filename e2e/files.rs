//! What the agent can read and write.
use serde_json::{Value, json};

use crate::support::{
    Test,
    agent::{is_done, probe},
    shared,
};

/// EACCES of Landlock and EROFS of a read-only mount are both refusals; which comes first is the kernel's affair.
fn refused(lines: &[Value], name: &str) {
    let line = probe(lines, name);
    assert!(line["ok"] == false && [1, 13, 30].contains(&line["errno"].as_i64().unwrap_or(0)), "{lines:#?}");
}

fn scratch(path: &str) -> Value {
    json!({"path": path, "readOnly": false, "emptyDir": {"sizeLimit": "8Mi"}})
}

async fn config_map(test: &Test, name: &str) {
    let object = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name},
        "data": {"task.md": "do the task", "other.md": "not this one"},
    });
    test.create(&object).await.unwrap();
}

#[test]
fn write_outside_mounts_is_denied() {
    shared("write-outside", |test| async move {
        let script = r"
attempt('inside', write('/workspace/a'))
attempt('inside read', read('/workspace/a'))
for path in ['/a', '/tmp/a', '/etc/passwd', '/usr/bin/a', '/home/a', '/var/tmp/a', '/dev/shm/a', '/.agentsandbox/a']:
    attempt(path, write(path))
attempt('mkdir', lambda: os.mkdir('/opt/a'))
attempt('proc', write('/proc/sys/kernel/hostname'))
";
        let mounts = json!({"filesystem": {"mounts": [scratch("/workspace")]}});
        let said = test.run("agent", script, mounts).await;
        assert!(is_done(&said, "inside"), "{said:#?}");
        assert_eq!(probe(&said, "inside read")["value"], "x");
        for path in ["/a", "/etc/passwd", "/usr/bin/a", "/home/a", "/dev/shm/a", "mkdir", "proc"] {
            assert!(!is_done(&said, path), "{path}: {said:#?}");
        }
        for path in ["/tmp/a", "/var/tmp/a", "/.agentsandbox/a"] {
            assert!(!is_done(&said, path), "{path}: {said:#?}");
        }
        // The control: a Pod without these guards may write at least to /tmp and /dev/shm.
        let control = test
            .control("control", "attempt('tmp', write('/tmp/a'))\nattempt('shm', write('/dev/shm/a'))")
            .await;
        assert!(is_done(&control, "tmp") && is_done(&control, "shm"), "{control:#?}");
    });
}

#[test]
fn read_only_mount_cannot_be_written() {
    shared("read-only", |test| async move {
        config_map(&test, "data").await;
        let mounts = json!({"filesystem": {"mounts": [
            {"path": "/data", "configMap": {"name": "data"}},
            scratch("/workspace"),
        ]}});
        let script = "attempt('write', write('/data/a'))\nattempt('list', lambda: os.listdir('/data'))\n\
                      attempt('control', write('/workspace/a'))";
        let said = test.run("agent", script, mounts).await;
        refused(&said, "write");
        assert!(is_done(&said, "list") && is_done(&said, "control"), "{said:#?}");
    });
}

#[test]
fn config_map_and_secret_are_read_and_not_written() {
    shared("sources", |test| async move {
        config_map(&test, "task").await;
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "key"}, "stringData": {"token": "s3cret"},
        });
        test.create(&secret).await.unwrap();
        let spec = json!({
            "filesystem": {"mounts": [
                {"path": "/task", "configMap": {"name": "task"}},
                {"path": "/key", "secret": {"name": "key"}},
            ]},
            "env": [
                {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "key", "key": "token"}}},
                {"name": "TASK", "valueFrom": {"configMapKeyRef": {"name": "task", "key": "task.md"}}},
                {"name": "PLAIN", "value": "$(TOKEN) stays"},
            ],
        });
        let script = "attempt('task', read('/task/task.md'))\nattempt('key', read('/key/token'))\n\
                      attempt('write task', write('/task/task.md'))\nattempt('write key', write('/key/new'))\n\
                      say(probe='env', token=os.environ['TOKEN'], task=os.environ['TASK'], plain=os.environ['PLAIN'],\n\
                          own=[k for k in os.environ if k.startswith('AGENTSANDBOX')])";
        let said = test.run("agent", script, spec).await;
        assert_eq!(probe(&said, "task")["value"], "do the task");
        assert_eq!(probe(&said, "key")["value"], "s3cret");
        refused(&said, "write task");
        refused(&said, "write key");
        let env = probe(&said, "env");
        assert_eq!((&env["token"], &env["task"]), (&json!("s3cret"), &json!("do the task")));
        assert_eq!(env["plain"], "$(TOKEN) stays", "a literal value is literal");
        assert_eq!(env["own"], json!([]), "the operator's own orders are not the agent's to see");
    });
}

#[test]
fn sub_path_mounts_one_key_and_nothing_beside_it() {
    shared("sub-path", |test| async move {
        config_map(&test, "task").await;
        let mounts = json!({"filesystem": {"mounts": [
            {"path": "/task/only.md", "configMap": {"name": "task", "subPath": "task.md"}},
        ]}});
        let script = "attempt('file', read('/task/only.md'))\nattempt('folder', lambda: os.listdir('/task'))";
        let said = test.run("agent", script, mounts).await;
        assert_eq!(probe(&said, "file")["value"], "do the task");
        assert_eq!(probe(&said, "folder")["value"], json!(["only.md"]));
    });
}

#[test]
fn status_says_which_landlock_is_in_force() {
    shared("landlock", |test| async move {
        let abi = |status: agentsandbox::api::v1alpha1::AgentSandboxStatus| {
            status.filesystem.expect("status.filesystem").landlock_abi
        };
        test.run("best-effort", "pass", json!({})).await;
        let found = abi(test.status("best-effort").await);
        assert!(found >= 0);
        let spec = json!({"filesystem": {"landlock": "Required", "mounts": [scratch("/workspace")]}});
        let script = "attempt('inside', write('/workspace/a'))\nattempt('outside', write('/dev/shm/a'))\n\
                      say(probe='privileges', none=[l.split()[1] for l in open('/proc/self/status') if l.startswith('NoNewPrivs')][0])";
        if found > 0 {
            let said = test.run("required", script, spec).await;
            assert!(is_done(&said, "inside"));
            refused(&said, "outside");
            assert_eq!(probe(&said, "privileges")["none"], "1", "no_new_privs is set");
        } else {
            test.sandbox("required", script, spec).await;
            test.finished_as("required", "NotContained").await;
        }
    });
}

#[test]
fn a_secret_that_is_not_there_ends_the_start() {
    shared("no-secret", |test| async move {
        let spec = json!({
            "startupTimeout": "10s",
            "filesystem": {"mounts": [{"path": "/key", "secret": {"name": "nowhere"}}]},
        });
        test.sandbox("agent", "pass", spec).await;
        test.finished_as("agent", "StartupTimeout").await;
    });
}

#[test]
fn there_is_no_credential_of_the_cluster_in_the_agents_container() {
    shared("no-token", |test| async move {
        let script = "attempt('token', read('/var/run/secrets/kubernetes.io/serviceaccount/token'))\n\
                      say(probe='env', names=[k for k in os.environ if k.startswith('KUBERNETES')])\n\
                      say(probe='user', uid=os.getuid(), gid=os.getgid())";
        let said = test.run("agent", script, json!({})).await;
        assert!(!is_done(&said, "token"));
        let user = probe(&said, "user");
        assert!(user["uid"].as_i64().unwrap() != 0 && user["gid"].as_i64().unwrap() != 0, "{user}");
    });
}
