//! Whole connections through a whole gateway. See [`super::rig`].
mod content;
mod limits;
mod records;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use kube::runtime::watcher::Event;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use super::client_hello::tests::{hello_of, hello_with, names};
use super::limits::Limits;
use super::pods::tests::pod;
use super::resolve::tests::Said;
use super::rig::{Rig, SOON, connect_request, http_server, pod_name, read_head, serve, token};
use super::sandboxes::tests::{object, rule};
use super::unheard;
use crate::api::v1alpha1::{EgressRule, Protocol};
use crate::egress::wire::{ALPN, PolicyUpdate};

fn rule_at(host: &str, port: i32) -> EgressRule {
    EgressRule { ports: vec![port], ..rule(host) }
}

fn rule_of(json: serde_json::Value) -> EgressRule {
    serde_json::from_value(json).unwrap()
}

#[tokio::test]
async fn tls_passes_to_the_name_and_is_recorded() {
    let mut rig = Rig::start(vec![rule("b.example"), rule("*.example")]).await;
    let server = rig.echo("a.example").await;
    rig.site("a.example", "198.51.100.7", 443, server);
    let mut stream = rig.tls_through("A.example.:443", "a.example").await.unwrap();
    stream.write_all(b"hello").await.unwrap();
    let mut back = [0; 5];
    stream.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"hello");
    stream.shutdown().await.unwrap();
    timeout(SOON, stream.read_to_end(&mut Vec::new())).await.unwrap().unwrap();
    let record = rig.record().await;
    for (pointer, expected) in [
        ("/activity_name", "Close"),
        ("/status_code", "AllowedByRule"),
        ("/dst_endpoint/hostname", "a.example"),
        ("/dst_endpoint/ip", "198.51.100.7"),
        ("/firewall_rule/uid", "spec.network.egress[1]"),
        ("/metadata/correlation_uid", "s-1"),
        ("/src_endpoint/uid", "p-1"),
        ("/policy/version", "1"),
        ("/unmapped/protocol", "tls"),
        ("/unmapped/via", "transparent"),
    ] {
        assert_eq!(record.pointer(pointer).and_then(|v| v.as_str()), Some(expected), "{pointer} in {record}");
    }
    assert!(record["traffic"]["bytes_out"].as_i64().unwrap() > 200, "{record}");
    assert!(record["traffic"]["bytes_in"].as_i64().unwrap() > 500, "{record}");
    rig.until_idle().await;
}

#[tokio::test]
async fn what_no_rule_allows_is_refused_with_what_to_write() {
    let mut rig = Rig::start(vec![rule("a.example")]).await;
    for (target, status, reason) in [
        ("evil.example:443", 403, "NoRule"),
        ("a.example:22", 403, "PortNotAllowed"),
        ("b.a.example:443", 403, "NoRule"),
        ("192.0.2.1:443", 403, "InvalidName"),
        ("a.example%00.evil.example:443", 403, "InvalidName"),
    ] {
        let (got, denial) = rig.connect(target).await.unwrap_err();
        assert_eq!((got, denial.reason.as_str()), (status, reason), "{target}");
        let record = rig.record().await;
        assert_eq!(record["activity_name"], "Refuse");
        assert_eq!(record["status_code"], reason);
        assert_eq!(record["status_detail"], denial.message.as_str());
    }
    let (_, denial) = rig.connect("evil.example:443").await.unwrap_err();
    assert!(denial.message.contains("{host: evil.example, ports: [443]}"), "{}", denial.message);
    // One event for all of them.
    let notice = rig.notices.try_recv().unwrap();
    assert!(notice.note.starts_with("evil.example:443 refused (NoRule)"), "{}", notice.note);
    assert!(rig.notices.try_recv().is_err());
    assert!(rig.dns.asked.lock().unwrap().is_empty(), "nothing was looked up");
}

#[tokio::test]
async fn nobody_passes_without_the_token_of_the_pod() {
    let mut rig = Rig::start(vec![rule("a.example")]).await;
    for (token, status) in [("bad", 401), ("away", 503)] {
        let (got, denial) = rig.connect_as("a.example:443", token, 0).await.unwrap_err();
        assert_eq!((got, denial.reason.as_str()), (status, "Unauthenticated"));
        let record = rig.record().await;
        assert_eq!(record["status_code"], "Unauthenticated");
        assert_eq!(record["metadata"].get("correlation_uid"), None);
    }
    let mut stream = rig
        .send("CONNECT a.example:443 HTTP/1.1\r\nx-agentsandbox-via: http\r\nx-agentsandbox-bytes: 0\r\n\r\n")
        .await;
    assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 401 "));
    rig.record().await;
    // An agent that speaks HTTP of its own, and one that speaks no TLS.
    let mut stream = rig.dial(&[]).await.unwrap();
    assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 400 "));
    assert_eq!(rig.record().await["status_code"], "BadRequest");
    assert!(rig.dial(b"h2").await.is_err());
    rig.record().await;
    let mut stream = TcpStream::connect(rig.address).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    stream.read_to_end(&mut Vec::new()).await.unwrap();
    assert_eq!(rig.record().await["status_code"], "Unauthenticated");
}

#[tokio::test]
async fn a_name_is_only_as_good_as_its_addresses() {
    let mut rig = Rig::start(vec![rule("**.example"), rule("localhost")]).await;
    let server = rig.echo("a.example").await;
    rig.site("a.example", "198.51.100.7", 443, server);
    for (name, addresses, class) in [
        ("metadata.example", &["169.254.169.254"][..], "Metadata"),
        ("loopback.example", &["127.0.0.1", "::1"], "Loopback"),
        ("private.example", &["10.1.2.3"], "Private"),
        ("cluster.example", &["203.0.113.5"], "ClusterRange"),
        ("mapped.example", &["::ffff:198.51.100.7"], "Embedded"),
        ("gateway.example", &["198.51.100.250"], "Operator"),
    ] {
        rig.dns.addresses(name, addresses);
        let (status, denial) = rig.connect(&format!("{name}:443")).await.unwrap_err();
        assert_eq!((status, denial.reason.as_str()), (403, "AddressRefused"), "{name}");
        assert!(denial.message.contains(class), "{}", denial.message);
        rig.record().await;
    }
    assert_eq!(rig.connect("localhost:443").await.unwrap_err().1.reason, "AddressRefused");
    rig.record().await;
    // Among good ones a bad one is passed over, and seen.
    rig.dns.addresses("mixed.example", &["10.1.2.3", "198.51.100.7"]);
    let stream = rig.tls_through("mixed.example:443", "mixed.example").await;
    assert!(stream.is_err(), "the server is of another name: but it was reached");
    let record = rig.record().await;
    assert_eq!(record["dst_endpoint"]["ip"], "198.51.100.7");
    assert!(record["status_detail"].as_str().unwrap().contains("10.1.2.3 (Private)"), "{record}");
    for (name, said) in [("broken.example", Said::Failure), ("silent.example", Said::Silence)] {
        rig.dns.say(name, said);
        let (status, denial) = rig.connect(&format!("{name}:443")).await.unwrap_err();
        assert_eq!((status, denial.reason.as_str()), (502, "ResolutionFailed"), "{name}");
        assert_eq!(rig.record().await["activity_name"], "Fail");
    }
    rig.dns.addresses("down.example", &["198.51.100.99"]);
    assert_eq!(rig.connect("down.example:443").await.unwrap_err().1.reason, "DialFailed");
}

#[tokio::test]
async fn a_changed_policy_ends_what_it_does_not_allow() {
    let mut rig = Rig::start(vec![rule("a.example"), rule("b.example")]).await;
    for (name, address) in [("a.example", "198.51.100.7"), ("b.example", "198.51.100.8")] {
        let server = rig.echo(name).await;
        rig.site(name, address, 443, server);
    }
    let mut a = rig.tls_through("a.example:443", "a.example").await.unwrap();
    let mut b = rig.tls_through("b.example:443", "b.example").await.unwrap();
    let start = Instant::now();
    rig.rules(2, vec![rule("b.example")]);
    assert!(timeout(SOON, a.read_u8()).await.unwrap().is_err());
    assert!(start.elapsed() < Duration::from_secs(1));
    let record = rig.record().await;
    assert_eq!(
        (&record["status_code"], &record["activity_name"]),
        (&"PolicyChanged".into(), &"Reset".into())
    );
    b.write_all(b"x").await.unwrap();
    assert_eq!(b.read_u8().await.unwrap(), b'x');
    // The same when the Pod ends, and when the sandbox does.
    rig.context.identity.pods.take(Event::Apply(pod(&pod_name(), "p-1", "Running")));
    let identity = &rig.context.identity;
    for gone in identity.pods.take(Event::Delete(pod(&pod_name(), "p-1", "Running"))) {
        identity.sandboxes.pod_gone(&gone.sandbox_uid, &gone.pod_uid);
    }
    assert!(timeout(SOON, b.read_u8()).await.unwrap().is_err());
    assert_eq!(rig.record().await["status_code"], "PodGone");
    assert_eq!(rig.connect("b.example:443").await.unwrap_err().0, 401, "its token is good for nothing");
}

#[tokio::test]
async fn the_policy_is_told_at_once_and_at_every_change() {
    let rig = Rig::start(vec![rule("a.example")]).await;
    let request = &format!("GET /v1/policy HTTP/1.1\r\nAuthorization: Bearer {}\r\n\r\n", token("good"));
    let mut stream = rig.send(request).await;
    assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 200 "));
    let mut lines = BufReader::new(stream).lines();
    let update: PolicyUpdate = serde_json::from_str(&lines.next_line().await.unwrap().unwrap()).unwrap();
    assert_eq!((update.generation, update.hosts[0].pattern.as_str()), (1, "a.example"));
    assert_eq!(update.gateways, ["10.0.0.1:8443".parse().unwrap()]);
    let start = Instant::now();
    rig.rules(2, vec![rule("b.example")]);
    let update: PolicyUpdate = serde_json::from_str(&lines.next_line().await.unwrap().unwrap()).unwrap();
    assert_eq!((update.generation, update.hosts[0].pattern.as_str()), (2, "b.example"));
    assert!(start.elapsed() < Duration::from_secs(1));
    let sandbox = object(2, Vec::new());
    rig.context.identity.sandboxes.take(Event::Delete(kube::core::DeserializeGuard(Ok(sandbox))));
    assert_eq!(timeout(SOON, lines.next_line()).await.unwrap().unwrap(), None);
    let mut stream = rig.send(request).await;
    assert!(read_head(&mut stream).await.starts_with("HTTP/1.1 503 "));
}

#[tokio::test]
async fn a_gateway_that_ends_sends_others_away_and_lets_open_connections_finish() {
    let mut rig = Rig::start(vec![rule("a.example")]).await;
    let server = rig.echo("a.example").await;
    rig.site("a.example", "198.51.100.7", 443, server);
    let mut open = rig.tls_through("a.example:443", "a.example").await.unwrap();
    let mut spare = rig.dial(ALPN).await.unwrap();
    let request = format!("GET /v1/policy HTTP/1.1\r\nAuthorization: Bearer {}\r\n\r\n", token("good"));
    let mut policy = rig.send(&request).await;
    read_head(&mut policy).await;
    rig.drain.send_replace(true);
    rig.context.identity.sandboxes.drain_streams();
    timeout(SOON, policy.read_to_end(&mut Vec::new())).await.unwrap().unwrap();
    assert!(timeout(SOON, spare.read_u8()).await.unwrap().is_err());
    // Whoever asked before it knew is told to go elsewhere.
    let stream = TcpStream::connect(rig.address).await.unwrap();
    drop(stream);
    open.write_all(b"x").await.unwrap();
    assert_eq!(open.read_u8().await.unwrap(), b'x');
    rig.context.identity.sandboxes.drain();
    assert!(timeout(SOON, open.read_u8()).await.unwrap().is_err());
    assert_eq!(rig.record().await["status_code"], "Draining");
    rig.tracker.close();
    timeout(SOON, rig.tracker.wait()).await.unwrap();
}

#[tokio::test]
async fn an_expired_certificate_serves_nobody() {
    let rig = Rig::start(vec![rule("a.example")]).await;
    rig.dial(ALPN).await.unwrap();
    rig.authority.issue_into(rig.directory.path(), super::rig::GATEWAY, -100, -10);
    rig.certificates.reload().unwrap();
    assert!(rig.dial(ALPN).await.is_err());
    rig.authority.issue_into(rig.directory.path(), super::rig::GATEWAY, -100, 100);
    rig.certificates.reload().unwrap();
    rig.dial(ALPN).await.unwrap();
}
