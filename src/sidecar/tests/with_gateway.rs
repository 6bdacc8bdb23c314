//! The sidecar with the real gateway: what either promises of the protocol, the other relies on.
use std::sync::Arc;

use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::*;
use crate::api::v1alpha1::EgressRule;
use crate::gateway::rig::{Rig, http_server, token};

fn rule(host: &str, port: i32) -> EgressRule {
    EgressRule { host: Some(host.to_owned()), ports: vec![port], ..EgressRule::default() }
}

async fn case(rules: Vec<EgressRule>) -> Case<Rig> {
    let rig = Rig::start(rules).await;
    let (pem, address) = (rig.authority.pem(), rig.address);
    let case = Case::start(&pem, address, rig).await;
    std::fs::write(case.directory.path().join("next"), token("good")).unwrap();
    std::fs::rename(case.directory.path().join("next"), case.directory.path().join("token")).unwrap();
    case.has_policy().await;
    case
}

/// TLS of the agent for `name`.
async fn tls(case: &Case<Rig>, stream: TcpStream, name: &'static str) -> io::Result<Vec<u8>> {
    let mut roots = RootCertStore::empty();
    roots.add(case.gateway.authority.certificate()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    soon(async {
        let name = ServerName::try_from(name).unwrap();
        let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        stream.write_all(b"hello").await?;
        stream.shutdown().await?;
        let mut back = Vec::new();
        stream.read_to_end(&mut back).await?;
        Ok(back)
    })
    .await
}

#[tokio::test]
async fn tls_passes_by_every_way() {
    let mut case = case(vec![rule("a.example", 7443)]).await;
    let server = case.gateway.echo("a.example").await;
    case.gateway.site("a.example", "198.51.100.7", 7443, server);
    let stream = case.dial("a.example", 7443).await.unwrap();
    assert_eq!(tls(&case, stream, "a.example").await.unwrap(), b"hello");
    let record = case.gateway.record().await;
    assert_eq!(
        (&record["status_code"], &record["unmapped"]["via"]),
        (&"AllowedByRule".into(), &"transparent".into())
    );
    // Both count the same bytes.
    let summary = case.egress.settle();
    assert_eq!(record["traffic"]["bytes_out"], summary.bytes_out);
    assert_eq!(record["traffic"]["bytes_in"], summary.bytes_in);

    let mut stream = TcpStream::connect(case.plan.http).await.unwrap();
    stream.write_all(b"CONNECT a.example:7443 HTTP/1.1\r\nHost: a.example:7443\r\n\r\n").await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(soon(stream.read_u8()).await.unwrap());
    }
    assert_eq!(tls(&case, stream, "a.example").await.unwrap(), b"hello");
    assert_eq!(case.gateway.record().await["unmapped"]["via"], "http-connect");
    assert_eq!(case.egress.settle().allowed, 2);
}

#[tokio::test]
async fn another_server_name_does_not_pass() {
    let mut case = case(vec![rule("a.example", 7443)]).await;
    let server = case.gateway.echo("b.example").await;
    case.gateway.site("a.example", "198.51.100.7", 7443, server);
    let stream = case.dial("a.example", 7443).await.unwrap();
    assert!(tls(&case, stream, "b.example").await.is_err());
    assert_eq!(case.gateway.record().await["status_code"], "NameMismatch");
    // The Pod hears of what was refused after the tunnel stood, so that its summary has it.
    let last = || case.egress.settle().last_denied;
    until("the summary has it", || last().as_deref() == Some("a.example:7443 NameMismatch")).await;
    assert_eq!(case.egress.settle().denied, 1);
}

#[tokio::test]
async fn the_owner_hears_of_what_the_pod_refused_itself() {
    let mut case = case(vec![rule("a.example", 7443)]).await;
    assert_eq!(case.resolve("evil.example").await, Err(ResponseCode::Refused));
    let notice = soon(case.gateway.notices.recv()).await.unwrap();
    assert!(notice.note.starts_with("evil.example refused in the Pod (NoRule)"), "{}", notice.note);
    // The stream goes on.
    case.gateway.rules(2, vec![rule("b.example", 7443)]);
    until("the next policy", || case.records().contains(r#""generation":2,"#)).await;
}

#[tokio::test]
async fn plain_requests_pass_the_proxy_one_after_the_other() {
    let mut case = case(vec![rule("a.example", 80)]).await;
    let (server, seen) = http_server().await;
    case.gateway.site("a.example", "198.51.100.7", 80, server);
    let mut stream = TcpStream::connect(case.plan.http).await.unwrap();
    let request = "GET http://a.example/1 HTTP/1.1\r\nHost: a.example\r\n\r\n\
                   GET http://a.example/2 HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    soon(stream.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.contains("GET /1 HTTP/1.1") && answer.ends_with("GET /2 HTTP/1.1"), "{answer}");
    assert!(seen.lock().unwrap().starts_with("GET /1 HTTP/1.1\r\nHost: a.example\r\n\r\n"));
    let record = case.gateway.record().await;
    assert_eq!(
        (&record["unmapped"]["via"], &record["unmapped"]["protocol"]),
        (&"http".into(), &"http".into())
    );
}

#[tokio::test]
async fn a_refusal_says_what_to_write() {
    let mut case = case(vec![rule("a.example", 7443)]).await;
    for (target, text) in
        [("evil.example:443", "{host: evil.example, ports: [443]}"), ("a.example:22", "PortNotAllowed")]
    {
        let mut stream = TcpStream::connect(case.plan.http).await.unwrap();
        let request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n");
        let answer = String::from_utf8(exchange(&mut stream, request.as_bytes()).await.unwrap()).unwrap();
        assert!(answer.starts_with("HTTP/1.1 403 ") && answer.contains(text), "{answer}");
        assert_eq!(case.gateway.record().await["activity_name"], "Refuse");
    }
    assert_eq!(case.egress.settle().last_denied.as_deref(), Some("a.example:22 PortNotAllowed"));
}

#[tokio::test]
async fn a_changed_policy_is_in_force_on_both_sides() {
    let case = case(vec![rule("a.example", 7443)]).await;
    let server = case.gateway.echo("a.example").await;
    case.gateway.site("a.example", "198.51.100.7", 7443, server);
    let mut stream = case.dial("a.example", 7443).await.unwrap();
    let began = std::time::Instant::now();
    case.gateway.rules(2, vec![rule("b.example", 7443)]);
    assert!(soon(stream.read(&mut [0; 1])).await.is_err());
    assert!(began.elapsed() < Duration::from_secs(1));
    until("the name is gone", || case.records().contains(r#""generation":2,"#)).await;
    assert_eq!(case.resolve("a.example").await, Err(ResponseCode::Refused));
    assert!(case.resolve("b.example").await.is_ok());
}
