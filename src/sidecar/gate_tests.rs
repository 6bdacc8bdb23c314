//! The gate, with listeners on loopback for what is open and a port without one for what is refused.
use rstest::rstest;
use tokio::net::TcpListener;

use super::*;
use crate::audit::SandboxRecords;
use crate::egress::wire::{Canary, PolicyUpdate};
use crate::init::config::SandboxIdentity;
use crate::sidecar::held::tests::update;
use crate::sidecar::journal::Journal;

const FAST: Pace = Pace {
    rounds: 3,
    every: Duration::from_millis(10),
    probe: Duration::from_millis(200),
    open: Duration::from_millis(200),
    unknown: Duration::from_millis(400),
};

struct Case {
    gate: Arc<Gate>,
    held: Arc<Held>,
    ledger: Arc<Ledger>,
    directory: tempfile::TempDir,
}

/// A port of loopback that refuses.
async fn refusing() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

/// A listener whose queue is full: it does not answer.
async fn silent() -> (SocketAddr, Vec<TcpStream>, TcpListener) {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    let mut queue = Vec::new();
    while let Ok(Ok(stream)) = timeout(Duration::from_millis(100), TcpStream::connect(address)).await {
        queue.push(stream);
    }
    (address, queue, listener)
}

fn case(api_server: SocketAddr, metadata: SocketAddr, dns: Option<SocketAddr>) -> Case {
    let directory = tempfile::tempdir().unwrap();
    let records = SandboxRecords {
        sandbox: SandboxIdentity { namespace: "n".into(), name: "s".into(), uid: "u".into() },
        generation: 2,
        policy_digest: String::new(),
        hostname: String::new(),
    };
    let journal = Journal::open(records, directory.path(), Box::new(io::sink())).unwrap();
    let ledger = Arc::new(Ledger::new(journal, Arc::default()));
    let held = Arc::new(Held::default());
    let config =
        GateConfig { api_server, dns, metadata, generation: 2, digest: "sha256:2".into(), pace: FAST };
    Case { gate: Arc::new(Gate::new(config, Arc::clone(&held))), held, ledger, directory }
}

fn told(generation: i64, canary: SocketAddr, age: u64) -> PolicyUpdate {
    PolicyUpdate {
        canary: Some(Canary { address: canary, age_ms: age * 1000 }),
        ..update(generation, &[("a.example", &[443])])
    }
}

impl Case {
    fn results(&self) -> impl Future<Output = Vec<(CheckName, CheckResult)>> {
        let gate = Arc::clone(&self.gate);
        async move { gate.round().await.into_iter().map(|check| (check.name, check.result)).collect() }
    }

    fn records(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("records.jsonl")).unwrap()
    }
}

#[tokio::test]
async fn it_passes_after_three_good_rounds_and_says_why() {
    let (metadata, _queue, _listener) = silent().await;
    let case = case(refusing().await, metadata, None);
    assert!(case.gate.waiting().is_some());
    case.held.take(&told(2, refusing().await, 5));
    case.gate.run(&case.ledger).await.unwrap();
    assert_eq!(case.gate.waiting(), None);
    let records = case.records();
    assert!(records.contains("GatePassed") && records.contains("sha256:2"), "{records}");
    assert!(records.contains(r#""name":"Canary","result":"Closed""#), "{records}");
}

#[rstest]
#[case::canary(CheckName::Canary)]
#[case::api_server(CheckName::ApiServer)]
#[case::metadata(CheckName::Metadata)]
#[case::dns(CheckName::ClusterDnsTcp)]
#[tokio::test]
async fn an_open_target_ends_it(#[case] which: CheckName) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let open = listener.local_addr().unwrap();
    let (metadata, _queue, _listener) = silent().await;
    let closed = refusing().await;
    let pick = |name| if which == name { open } else { closed };
    let dns = (which == CheckName::ClusterDnsTcp).then_some(open);
    let metadata = if which == CheckName::Metadata { open } else { metadata };
    let case = case(pick(CheckName::ApiServer), metadata, dns);
    case.held.take(&told(2, pick(CheckName::Canary), 5));
    let report = case.gate.run(&case.ledger).await.unwrap_err();
    let found = report.checks.iter().find(|check| check.name == which).unwrap();
    assert_eq!(found.result, CheckResult::Open);
    assert!(report.message.contains(&open.to_string()), "{}", report.message);
    assert!(case.gate.waiting().is_some() && case.records().contains("GateFailed"));
}

#[tokio::test]
async fn what_is_not_known_does_not_pass() {
    let (metadata, _queue, _listener) = silent().await;
    let closed = refusing().await;
    let case = case(closed, metadata, None);
    let result = |checks: &[(CheckName, CheckResult)], which| {
        checks.iter().find(|(name, _)| *name == which).unwrap().1
    };
    let inconclusive = |checks: &[_], which| assert_eq!(result(checks, which), CheckResult::Inconclusive);
    // Nothing told yet.
    let checks = case.results().await;
    inconclusive(&checks, CheckName::Canary);
    inconclusive(&checks, CheckName::Gateway);
    // A canary that nobody has reached for more than a minute, and one that nobody ever has.
    case.held.take(&told(2, closed, 61));
    inconclusive(&case.results().await, CheckName::Canary);
    case.held.take(&PolicyUpdate { canary: None, ..told(2, closed, 0) });
    inconclusive(&case.results().await, CheckName::Canary);
    // An older policy, another one, and a gateway that has gone.
    case.held.take(&told(1, closed, 5));
    inconclusive(&case.results().await, CheckName::Gateway);
    case.held.take(&PolicyUpdate { digest: "sha256:other".into(), ..told(2, closed, 5) });
    inconclusive(&case.results().await, CheckName::Gateway);
    case.held.take(&told(2, closed, 5));
    case.held.lose("gone");
    inconclusive(&case.results().await, CheckName::Gateway);
    let report = case.gate.run(&case.ledger).await.unwrap_err();
    assert_eq!(report.message, "gone");
    // A later policy than the planned one is good.
    case.held.take(&told(3, closed, 5));
    assert_eq!(result(&case.results().await, CheckName::Gateway), CheckResult::Confirmed);
}

#[tokio::test]
async fn a_bad_round_starts_the_count_again() {
    let (metadata, _queue, _listener) = silent().await;
    let case = case(refusing().await, metadata, None);
    case.held.take(&told(2, refusing().await, 5));
    let (gate, ledger) = (Arc::clone(&case.gate), Arc::clone(&case.ledger));
    let run = tokio::spawn(async move { gate.run(&ledger).await });
    for _ in 0..3 {
        while case.gate.waiting().as_deref() != Some("1 of 3 rounds") {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        case.held.lose("gone");
        while case.gate.waiting().as_deref() != Some("gone") {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        case.held.take(&told(2, refusing().await, 5));
    }
    run.await.unwrap().unwrap();
}

#[tokio::test]
async fn dns_is_asked_by_udp_as_well() {
    let answering = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let open = answering.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 512];
        while let Ok((length, peer)) = answering.recv_from(&mut buffer).await {
            assert!(Message::from_vec(&buffer[..length]).is_ok());
            answering.send_to(b"x", peer).await.unwrap();
        }
    });
    let mute = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let limit = Duration::from_millis(200);
    let result = async |address| udp(CheckName::ClusterDnsUdp, address, limit).await.result;
    assert_eq!(result(open).await, CheckResult::Open);
    assert_eq!(result(mute.local_addr().unwrap()).await, CheckResult::Closed);
    // The port is unreachable: somebody is there.
    let gone = mute.local_addr().unwrap();
    drop(mute);
    assert_eq!(result(gone).await, CheckResult::Open);
}

#[rstest]
#[case(libc::ECONNREFUSED, CheckResult::Closed, CheckResult::Open)]
#[case(libc::ETIMEDOUT, CheckResult::Closed, CheckResult::Closed)]
#[case(libc::EHOSTUNREACH, CheckResult::Closed, CheckResult::Closed)]
#[case(libc::ENETUNREACH, CheckResult::Closed, CheckResult::Closed)]
#[case(libc::EACCES, CheckResult::Closed, CheckResult::Closed)]
#[case(libc::EPERM, CheckResult::Closed, CheckResult::Closed)]
#[case(libc::EMFILE, CheckResult::Inconclusive, CheckResult::Inconclusive)]
#[case(libc::EADDRNOTAVAIL, CheckResult::Inconclusive, CheckResult::Inconclusive)]
#[case(libc::ECONNRESET, CheckResult::Inconclusive, CheckResult::Inconclusive)]
fn errors_have_one_meaning(#[case] errno: i32, #[case] listens: CheckResult, #[case] unknown: CheckResult) {
    let error = io::Error::from_raw_os_error(errno);
    assert_eq!(judge_error(&error, Refused::Closed).0, listens);
    assert_eq!(judge_error(&error, Refused::Open).0, unknown);
}
