//! The real sidecar with a gateway: start gate, names, and what it says at the end. In a network namespace in which
//! nothing but loopback can be reached.
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use agentsandbox::egress::wire as agentsandbox_wire;
use agentsandbox::egress::wire::{Canary, EgressSummary, PolicyUpdate};
use agentsandbox::init::config::AUDIT_SOCKET;
use agentsandbox::init::report::TerminationReport;
use agentsandbox::init::wire::{InitEvent, InitRecord};
use agentsandbox::sidecar::{self, EgressOptions, Options, RunError};
use fake::{Authority, Fake, NAME, Route, update};
use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RData, RecordType};
use nix::sched::{CloneFlags, unshare};

#[allow(dead_code, reason = "the sidecar's own tests use the rest of it")]
#[path = "../../src/sidecar/tests/fake.rs"]
mod fake;

/// Runs `test` in a network namespace with a gateway of `policy`; it gets the options of a sidecar.
fn in_namespace(policy: PolicyUpdate, test: impl FnOnce(Options, Fake) + Send + 'static) {
    std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("the tests need root");
        assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
        let authority = Authority::new();
        let (sender, receiver) = std::sync::mpsc::channel();
        let pem = authority.pem();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                sender.send(Fake::start(&authority, policy).await).unwrap();
                std::future::pending::<()>().await;
            });
        });
        let gateway = receiver.recv().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        std::fs::write(path.join("token"), "the-token").unwrap();
        let options = Options {
            namespace: "n".into(),
            name: "s".into(),
            uid: "u".into(),
            generation: 1,
            policy_digest: "sha256:1".into(),
            spool: path.to_owned(),
            proof_file: None,
            termination_log: path.join("termination-log"),
            egress: EgressOptions {
                gateway: Some(gateway.address),
                gateway_ca: Some(pem),
                gateway_name: Some(NAME.to_owned()),
                token_file: Some(path.join("token")),
                gate_api_server: Some("192.0.2.1:443".parse().unwrap()),
                gate_dns: Some("192.0.2.2:53".parse().unwrap()),
                gate_metadata: Some("169.254.169.254:80".parse().unwrap()),
            },
        };
        test(options, gateway);
    })
    .join()
    .unwrap();
}

fn with_canary(address: &str) -> PolicyUpdate {
    let canary = Canary { address: address.parse().unwrap(), age_ms: 3000 };
    PolicyUpdate { canary: Some(canary), ..update(1, &[("a.example", &[443])]) }
}

fn records(directory: &Path) -> String {
    std::fs::read_to_string(directory.join("records.jsonl")).unwrap_or_default()
}

fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(15);
    while !condition() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn resolve(name: &str) -> Option<Ipv4Addr> {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut query = Message::new(1, MessageType::Query, OpCode::Query);
    query.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    socket.send_to(&query.to_vec().unwrap(), "127.0.0.1:53").unwrap();
    let mut buffer = [0; 512];
    let length = socket.recv(&mut buffer).unwrap();
    let reply = Message::from_vec(&buffer[..length]).unwrap();
    reply.answers.first().map(|answer| match &answer.data {
        RData::A(address) => address.0,
        other => panic!("{other}"),
    })
}

#[test]
fn a_sandbox_gets_out_by_name_and_its_counters_come_back() {
    in_namespace(with_canary("192.0.2.3:8444"), |options, gateway| {
        let spool = options.spool.clone();
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        gateway.route("a.example:443", Route::To(server.local_addr().unwrap()));
        let run = std::thread::spawn(move || sidecar::run(options));
        wait_for("the gate passes", || sidecar::check_ready() == ExitCode::SUCCESS);
        assert!(records(&spool).contains("GatePassed"));
        assert!(gateway.heads.lock().unwrap()[0].contains("Authorization: Bearer the-token\r\n"));

        assert_eq!(resolve("b.example."), None);
        let address = resolve("a.example.").unwrap();
        assert_eq!(address, Ipv4Addr::new(127, 64, 1, 0));
        let mut agent = TcpStream::connect(SocketAddr::from((address, 443))).unwrap();
        agent.write_all(b"hello").unwrap();
        let (mut stream, _) = server.accept().unwrap();
        let mut buffer = [0; 5];
        stream.read_exact(&mut buffer).unwrap();
        stream.write_all(b"hi").unwrap();
        agent.read_exact(&mut buffer[..2]).unwrap();
        assert_eq!(&buffer, b"hillo");
        for proxy in ["127.64.0.1:3128", "127.64.0.1:1080"] {
            TcpStream::connect(proxy).unwrap();
        }

        let address = std::os::unix::net::SocketAddr::from_abstract_name(AUDIT_SOCKET).unwrap();
        let mut init = UnixStream::connect_addr(&address).unwrap();
        let event = InitEvent::Ended(TerminationReport::default());
        let line = serde_json::to_string(&InitRecord { id: 1, time: 5, event, proof: None }).unwrap();
        init.write_all(format!("{line}\n").as_bytes()).unwrap();
        let mut answer = String::new();
        while !answer.ends_with('\n') {
            let mut byte = [0];
            init.read_exact(&mut byte).unwrap();
            answer.push(byte[0].into());
        }
        let summary: EgressSummary = serde_json::from_str(answer.strip_prefix("1 ").unwrap()).unwrap();
        let expected = EgressSummary {
            allowed: 1,
            denied: 1,
            bytes_out: 5,
            bytes_in: 2,
            last_denied: Some("b.example NoRule".to_owned()),
        };
        assert_eq!(summary, expected);
        assert!(records(&spool).contains(r#""egress":{"allowed":1,"bytesIn":2,"bytesOut":5,"denied":1"#));
        assert!(!run.is_finished());
    });
}

#[test]
fn an_open_canary_keeps_the_agent_from_starting() {
    in_namespace(with_canary("127.0.0.1:18444"), |options, _gateway| {
        let _canary = TcpListener::bind("127.0.0.1:18444").unwrap();
        let log = options.termination_log.clone();
        let run = std::thread::spawn(move || sidecar::run(options));
        let began = Instant::now();
        while !run.is_finished() {
            assert_eq!(sidecar::check_ready(), ExitCode::FAILURE);
            std::thread::sleep(Duration::from_millis(200));
            assert!(began.elapsed() < Duration::from_secs(40));
        }
        assert!(began.elapsed() > Duration::from_secs(19), "{:?}", began.elapsed());
        let error = run.join().unwrap().unwrap_err();
        assert!(matches!(error, RunError::NotContained(_)) && error.exit_code() == 78);
        let message = std::fs::read_to_string(log).unwrap();
        let start = r#"{"cause":"NotContained","message":"canary 127.0.0.1:18444 is reachable from the Pod","checks":[{"name":"Canary","result":"Open","detail":"#;
        assert!(message.starts_with(start), "{message}");
    });
}
