//! E22, E28: what one sandbox takes is bounded, and the others have theirs.
use std::process::Command;

use k8s_openapi::api::core::v1::Pod;
use kube::{Api, api::LogParams};
use serde_json::{Value, json};

use super::{all_done, host};
use crate::support::cluster::process_of;
use crate::support::{Test, agent, secs, shared};

/// Begins connections in every way that there is and ends none of their first messages.
const SLOW: &str = r"
kinds = {
    'hello': (('one.asbx.test', 443), hello('one.asbx.test')),
    'head': (('one.asbx.test', 80), b'GET / HTTP/1.1\r\nHost: one.asbx.test\r\nX: ' + b'a' * 4000),
    'silent': (('one.asbx.test', 443), b''),
    'proxy': (PROXY, b'CONNECT one.asbx.test:443 HTTP/1.1\r\nX: ' + b'a' * 4000),
    'socks': (SOCKS, b'\5'),
}
opened = []
for kind, (place, text) in kinds.items():
    for _ in range(20 if place in (PROXY, SOCKS) else 30):
        stream = connect(*place)
        stream.setblocking(False)
        opened.append([stream, kind, text, time.monotonic()])
say(opened=len(opened))
took = {kind: [] for kind in kinds}
end = time.monotonic() + 75
while opened and time.monotonic() < end:
    for entry in list(opened):
        stream, kind, text, since = entry
        try:
            if text:
                stream.send(text[:1])
                entry[2] = text[1:]
            while stream.recv(4096):
                pass
        except BlockingIOError:
            continue
        except OSError:
            pass
        opened.remove(entry)
        took[kind].append(round(time.monotonic() - since, 1))
    time.sleep(0.3)
for kind, times in took.items():
    say(probe=kind, left=sum(1 for entry in opened if entry[1] == kind), took=[min(times, default=None), max(times, default=None)])
for entry in opened:
    entry[0].close()
trial('after', lambda: https('one.asbx.test'))
";

/// E28: nothing waits for a first message for ever, and meanwhile another sandbox is served.
#[test]
fn a_message_that_does_not_come_to_its_end_is_not_waited_for() {
    shared("egress-slow", |test| async move {
        test.probe().await;
        let rules = [host("one.asbx.test", &[80, 443])];
        let neighbour = "end = time.time() + 100\n\
                         while time.time() < end:\n    \
                             trial('one', lambda: https('one.asbx.test'))\n    \
                             time.sleep(1)";
        test.agent("neighbour", neighbour, &rules, json!({"timeout": "4m"})).await;
        test.agent("agent", SLOW, &rules, json!({"timeout": "3m"})).await;
        test.said("agent", "that it holds them", |line| line["opened"] == 130).await;
        let before = test.said("neighbour", "that it is served", |line| line["ok"] == true).await.len();
        let outcome = test.wait_status("agent", "an outcome", secs(150), |s| s.outcome.clone()).await;
        let during = agent::lines(&test.log("neighbour").await);
        let said = agent::lines(&test.log("agent").await);
        assert_eq!(outcome.reason, "Completed", "{outcome:?} {said:#?}");
        for kind in ["hello", "head", "silent", "proxy", "socks"] {
            let line = agent::probe(&said, kind);
            eprintln!("{line}");
            assert_eq!(line["left"], 0, "none is left open: {said:#?}");
        }
        // Nor was any closed at once: it was the time that ended them.
        for kind in ["hello", "head", "silent", "proxy", "socks"] {
            assert!(agent::probe(&said, kind)["took"][0].as_f64().unwrap() > 2.0, "{said:#?}");
        }
        all_done(&said, &["after"]);
        let served = during.iter().skip(before).filter(|line| line["ok"] == true).count();
        assert!(served >= 8, "the other sandbox was served {served} times: {during:#?}");
    });
}

impl Test {
    /// What a gateway recorded of the sandbox `name`.
    async fn recorded(&self, gateway: &str, name: &str) -> Vec<Value> {
        let uid = self.get(name).await.metadata.uid.unwrap();
        let pods: Api<Pod> = self.system();
        let log = pods.logs(gateway, &LogParams::default()).await.unwrap();
        let mut lines = agent::lines(&log);
        lines.retain(|line| line["metadata"]["correlation_uid"] == uid);
        lines
    }
}

/// E22: one gateway holds 256 connections of a sandbox, and refuses more; another sandbox has its own.
#[test]
fn connections_of_one_sandbox_are_counted_and_one_too_many_is_refused() {
    shared("egress-crowd", |test| async move {
        let spec = json!({"timeout": "3m", "network": {"egress": [super::tcp("one.asbx.test")]}});
        for name in ["many", "few"] {
            test.sandbox(name, "time.sleep(150)", spec.clone()).await;
        }
        let mut tokens = Vec::new();
        for name in ["many", "few"] {
            test.running(name).await;
            tokens.push(test.token_of(&test.pod_name(name).await, super::identity::AUDIENCE).await);
        }
        // The sidecars have limits of their own: this one asks as a sidecar that ignores them would.
        let gateway = test.gateway_pods().await.remove(0);
        let address = gateway.status.unwrap().pod_ip.unwrap();
        let script = test.asking().await
            + &format!(
                r#"
many, few = "{}", "{}"
held, refused = [], {{}}
for i in range(300):
    try:
        held.append(tunnel(many, gateway="{address}"))
    except OSError as e:
        reason = json.loads(str(e).split("\r\n\r\n")[1])["reason"]
        refused[reason] = refused.get(reason, 0) + 1
    # Below the rate that a sandbox may open them at.
    time.sleep(0.03)
say(probe="crowd", held=len(held), refused=refused)
attempt("other", lambda: ask(few, gateway="{address}"))
for stream in held:
    stream.close()
time.sleep(2)
attempt("again", lambda: ask(many, gateway="{address}"))
"#,
                tokens[0], tokens[1]
            );
        let said = test.control("control", &script).await;
        let crowd = agent::probe(&said, "crowd");
        let (held, refused) =
            (crowd["held"].as_u64().unwrap(), crowd["refused"]["TooManyConnections"].as_u64());
        assert!((200..=256).contains(&held) && refused.is_some_and(|count| count + held == 300), "{crowd}");
        // Who has none yet gets one, and so does the first when it has let its own go.
        assert!(agent::is_done(&said, "other") && agent::is_done(&said, "again"), "{said:#?}");
        let name = gateway.metadata.name.unwrap();
        let records = test.recorded(&name, "many").await;
        let reason = |line: &Value| line["status_code"] == "TooManyConnections" && line["action_id"] == 2;
        assert!(records.iter().any(reason), "the refusal is recorded: {:#?}", records.last());
    });
}

/// Takes as many connections as there may be, sends what they take, and reads nothing of what comes back.
const STALLED: &str = r"
held, sent = [], 0
name = b''.join(bytes([len(part)]) + part for part in b'one.asbx.test'.split(b'.')) + b'\0'
query = b'\0\1\1\0\0\1\0\0\0\0\0\0' + name + b'\0\x1c\0\1'
asking = []
for i in range(32):
    stream = connect('127.0.0.1', 53)
    stream.setblocking(False)
    asking.append(stream)
for i in range(250):
    try:
        stream = connect('one.asbx.test', 7000)
        # What waits is to wait in the sidecar.
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        stream.setblocking(False)
        held.append(stream)
    except OSError:
        pass
    time.sleep(0.03)
quiet = time.monotonic()
end = quiet + 60
while time.monotonic() < end and time.monotonic() < quiet + 3:
    for stream in held:
        try:
            sent += stream.send(b'x' * 65536)
            quiet = time.monotonic()
        except BlockingIOError:
            pass
    for stream in asking:
        try:
            stream.send((struct.pack('>H', len(query)) + query) * 1000)
        except OSError:
            pass
    time.sleep(0.05)
say(stalled=len(held), sent=sent)
time.sleep(20)
for stream in held:
    stream.close()
time.sleep(3)
trial('after', lambda: echo(connect('one.asbx.test', 7000)))
";

/// E22: what stalls in the sidecar does not end it, and so not the sandbox.
#[test]
fn connections_that_stall_in_both_directions_fit_into_the_sidecar() {
    shared("egress-stalled", |test| async move {
        test.probe().await;
        let spec = json!({"timeout": "3m", "resources": {"memory": "256Mi"}});
        test.agent("agent", STALLED, &[super::tcp("one.asbx.test")], spec).await;
        let said = test.said("agent", "that nothing moves", |line| line["stalled"].is_u64()).await;
        let line = said.iter().find(|line| line["stalled"].is_u64()).unwrap();
        let uid = test.pods_of("agent").await.remove(0).metadata.uid.unwrap();
        if let Some((own, kernel)) = memory_of(&uid) {
            eprintln!("{line}; sidecar: {own} bytes resident, {kernel} in the kernel");
            assert!(kernel > 20 << 20, "they stall in the sidecar");
            assert!(own + kernel < 100 << 20, "well below the limit of 192 MiB");
        }
        assert!(line["stalled"].as_u64().unwrap() >= 200, "{line}");
        assert!(line["sent"].as_u64().unwrap() > 200 * 64 * 1024, "they took something: {line}");
        let outcome = test.wait_status("agent", "an outcome", secs(120), |s| s.outcome.clone()).await;
        assert_eq!(outcome.reason, "Completed", "{outcome:?}");
        all_done(&agent::lines(&test.log("agent").await), &["after"]);
    });
}

/// Bytes that the sidecar of the Pod with this UID has resident, and that the kernel keeps for its connections, where the
/// node is this machine. Only control groups of version 2 count the kernel's on the limit, so this adds them up.
fn memory_of(uid: &str) -> Option<(u64, u64)> {
    let process = process_of("/sandbox-sidecar", uid)?;
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let resident: u64 = line.split_whitespace().next()?.parse().ok()?;
    let number = process.to_string();
    let words = ["-t", &number, "-n", "ss", "-tampnHO"];
    let sockets = Command::new("nsenter").args(words).output().ok().filter(|done| done.status.success())?;
    let sockets = String::from_utf8_lossy(&sockets.stdout).into_owned();
    let ours = sockets.lines().filter(|line| line.contains("(\"sandbox-sid"));
    // skmem:(r1,rb2,t3,tb4,f5,w6,o7,...), see ss(8): what waits to be read, is reserved, and waits to be sent.
    let kept = |line: &str| -> u64 {
        let numbers = line.split("skmem:(").nth(1).unwrap_or_default().split([',', ')']);
        numbers.filter_map(|number| number.strip_prefix(['r', 'f', 'w'])?.parse::<u64>().ok()).sum()
    };
    Some((resident * 1024, ours.map(kept).sum()))
}
