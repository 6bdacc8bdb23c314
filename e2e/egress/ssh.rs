//! git over SSH: a protocol that never states a name.
use serde_json::json;

use super::{all_done, host, none_done, tried};
use crate::support::{agent, environment, shared};

/// By SOCKS, as an agent is told to, and as if it were outside. The host's key is known, and nobody is asked anything.
const CLONES: &str = r#"
import subprocess
os.chdir("/tmp")
os.environ["HOME"] = "/tmp"
SSH = "ssh -F none -o BatchMode=yes -o ConnectTimeout=10 -o UserKnownHostsFile=/probe/known_hosts -o StrictHostKeyChecking=yes"
def clone(name, into, options=""):
    p = subprocess.run(["git", "clone", "-q", f"ssh://git@{name}/repo.git", into], env={**os.environ, "GIT_SSH_COMMAND": SSH + options},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, timeout=60, text=True)
    if p.returncode:
        raise ValueError(p.stdout[-400:])
    with open(f"{into}/hello.txt") as file:
        return file.read().strip()
BY_SOCKS = " -o ProxyCommand='nc -X 5 -x 127.64.0.1:1080 %h %p'"
trial("socks", lambda: clone("one.asbx.test", "a", BY_SOCKS))
trial("plain", lambda: clone("one.asbx.test", "b"))
trial("socks-other", lambda: clone("two.asbx.test", "c", BY_SOCKS))
trial("plain-other", lambda: clone("two.asbx.test", "d"))
"#;

#[test]
fn git_clones_over_ssh_by_socks_and_only_from_the_allowed_name() {
    shared("egress-ssh", |test| async move {
        let Some(image) = environment().get("CLIENTS_IMAGE") else {
            panic!("CLIENTS_IMAGE is not set: scripts/clients-image builds it");
        };
        let key = std::fs::read_to_string(environment().state().join("ssh_host_key.pub"))
            .expect("the Internet has no SSH server: e2e/cluster/build gitssh, then e2e/cluster/up world");
        test.probe().await;
        test.add_to_probe("known_hosts", &format!("one.asbx.test,two.asbx.test {key}")).await;
        let control = "trial('banner', lambda: connect('two.asbx.test', 22).recv(4).decode())";
        let control = test.control_tries(control).await;
        assert_eq!(tried(&control, "banner"), (true, &json!("SSH-")), "the other name is served");
        let spec = json!({
            // ssh runs for nobody who is not in /etc/passwd.
            "image": image, "runAs": {"user": 33, "group": 33}, "timeout": "3m",
            "resources": {"memory": "256Mi", "pids": 64},
            "filesystem": {"mounts": [
                {"path": "/probe", "configMap": {"name": "probe"}},
                {"path": "/tmp", "readOnly": false, "emptyDir": {"sizeLimit": "32Mi"}},
            ]},
        });
        let mut rule = host("one.asbx.test", &[22]);
        rule["protocol"] = json!("TCP");
        test.agent("agent", CLONES, &[rule], spec).await;
        test.finished_as("agent", "Completed").await;
        let said = agent::lines(&test.log("agent").await);
        all_done(&said, &["socks", "plain"]);
        assert_eq!(tried(&said, "socks").1, "hello from git");
        none_done(&said, &["socks-other", "plain-other"]);
    });
}
