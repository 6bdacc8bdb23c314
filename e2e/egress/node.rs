//! E7: what listens on the Pod's own node. Kubernetes lets traffic between a Pod and its node pass whatever a policy says,
//! and some plug-ins take it by the word.
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};

use serde_json::json;

use super::host;
use crate::support::{
    Test,
    agent::{is_open, probe},
    environment, secs, shared, wait_for,
};

/// Where NodeLocal DNSCache listens on every node.
const NODE_LOCAL_DNS: &str = "169.254.20.10";

/// Sends back what it gets on port 53 of each address, by TCP and UDP, until its input ends.
const LISTENER: &str = r#"
import socket, sys, threading
def datagrams(s):
    while True:
        data, peer = s.recvfrom(2048)
        try:
            s.sendto(data, peer)
        except OSError as error:
            print("no way back to", peer, error, file=sys.stderr, flush=True)
def streams(s):
    while True:
        s.accept()[0].close()
for address in sys.argv[1:]:
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind((address, 53))
    threading.Thread(target=datagrams, args=(udp,), daemon=True).start()
    threading.Thread(target=streams, args=(socket.create_server((address, 53)),), daemon=True).start()
print("listening", flush=True)
sys.stdin.read()
"#;

/// Servers on the node of `cluster/up`, which has no DNS of its own; they end with the input that this holds.
fn listen(namespace: &str, addresses: &[&str]) -> Child {
    let enter = format!("--net=/run/netns/{namespace}");
    // It is there already where this test ran before.
    let add = format!("addr add {NODE_LOCAL_DNS}/32 dev lo");
    let _ = Command::new("nsenter").args([&enter, "ip"]).args(add.split(' ')).stderr(Stdio::null()).status();
    Command::new("nsenter")
        .args([&enter, "python3", "-c", LISTENER])
        .args(addresses)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Waits until it listens, and answers its output: Python may write a line in two pieces (`PYTHONUNBUFFERED`), and would end
/// at the second if nobody could read it any more.
async fn listening(child: &mut Child) -> BufReader<ChildStdout> {
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let first = tokio::task::spawn_blocking(move || {
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        (line, output)
    });
    let (line, output) = tokio::time::timeout(secs(20), first).await.unwrap().unwrap();
    assert_eq!(line, "listening\n", "it does not listen");
    output
}

#[test]
fn the_nodes_own_ports_are_no_way_out() {
    shared("egress-node", |test: Test| async move {
        test.probe().await;
        let node = test.node_address().await;
        let mut names = vec!["kubelet".to_owned()];
        let mut script = format!("tcp('kubelet', '{node}', 10250)\n");
        let own = environment().get("CLUSTER_NODE");
        let mut servers = own.as_deref().map(|namespace| listen(namespace, &[&node, NODE_LOCAL_DNS]));
        let mut output = None;
        if let Some(servers) = &mut servers {
            output = Some(listening(servers).await);
            for (name, address) in [("node", node.as_str()), ("nodelocal", NODE_LOCAL_DNS)] {
                script +=
                    &format!("tcp('{name}-tcp', '{address}', 53)\nudp('{name}-udp', '{address}', 53)\n");
                names.extend([format!("{name}-tcp"), format!("{name}-udp")]);
            }
        }
        let control = test.control("control", &script).await;
        for name in &names {
            assert!(is_open(&control, name), "a plain Pod reaches {name}: {control:#?}");
        }
        let script = format!(
            "attempt('one', lambda: socket.create_connection(('one.asbx.test', 80), 8).close())\n{script}"
        );
        let said =
            test.run("agent", &script, json!({"network": {"egress": [host("one.asbx.test", &[80])]}})).await;
        assert_eq!(probe(&said, "one")["ok"], true, "{said:#?}");
        for name in &names {
            assert!(!is_open(&said, name), "the agent reaches {name}: {said:#?}");
        }
        if let Some(mut servers) = servers {
            assert_eq!(servers.try_wait().unwrap(), None, "they listened all the time");
            drop((servers.stdin.take(), output));
            wait_for("the servers to end", secs(10), || {
                let ended = servers.try_wait().unwrap();
                async move { ended.map(drop) }
            })
            .await;
        }
    });
}
