//! `sandbox-init` with the real sidecar.
use std::io::{Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use agentsandbox::init::config::AUDIT_SOCKET;
use agentsandbox::init::report::TerminationReport;
use agentsandbox::init::wire::{InitEvent, InitRecord};
use agentsandbox::sidecar;
use nix::sched::{CloneFlags, unshare};
use rstest::rstest;
use serde_json::Value;

fn records(directory: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(directory.join("records.jsonl")).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn wait_for(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < end, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn connect() -> UnixStream {
    UnixStream::connect_addr(&SocketAddr::from_abstract_name(AUDIT_SOCKET).unwrap()).unwrap()
}

fn options(directory: &Path) -> sidecar::Options {
    sidecar::Options {
        namespace: "n".into(),
        name: "s".into(),
        uid: "u".into(),
        generation: 1,
        policy_digest: "sha256:0".into(),
        spool: directory.to_owned(),
        proof_file: None,
        termination_log: directory.join("termination-log"),
        egress: sidecar::EgressOptions::default(),
    }
}

#[test]
fn the_first_peer_is_the_only_one() {
    std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("the tests need root");
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(sidecar::check_ready(), ExitCode::FAILURE);
        let options = options(directory.path());
        std::thread::spawn(move || sidecar::run(options));
        wait_for("ready", || sidecar::check_ready() == ExitCode::SUCCESS);
        let mut first = connect();
        wait_for("the first peer is recorded", || records(directory.path()).len() == 2);
        for _ in 0..40 {
            drop(connect());
        }
        wait_for("refusals are recorded, not all", || records(directory.path()).len() == 18);
        first.write_all(b"{\"id\":5}\n").unwrap();
        wait_for("the peer is lost", || records(directory.path()).len() == 19);
        assert_eq!(sidecar::check_ready(), ExitCode::SUCCESS);
        let records = records(directory.path());
        for (index, record) in records.iter().enumerate() {
            assert_eq!(record["metadata"]["sequence"], index + 1);
            assert_eq!(record["metadata"]["correlation_uid"], "u");
        }
        assert!(records[18]["unmapped"]["intake"]["PeerLost"].is_object());
    })
    .join()
    .unwrap();
}

fn started(proof: Option<&str>) -> String {
    let event = InitEvent::Ended(TerminationReport::default());
    let record = InitRecord { id: 1, time: 5, event, proof: proof.map(str::to_owned) };
    serde_json::to_string(&record).unwrap() + "\n"
}

#[rstest]
#[case::none(&started(None))]
#[case::wrong(&started(Some("another")))]
#[case::no_record("hello\n")]
#[case::nothing_at_all("")]
fn a_peer_that_is_not_sandbox_init_ends_it_for_good(#[case] says: &str) {
    let says = says.to_owned();
    std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("the tests need root");
        let directory = tempfile::tempdir().unwrap();
        let proof = directory.path().join("proof");
        std::fs::write(&proof, "the proof").unwrap();
        let options = sidecar::Options { proof_file: Some(proof), ..options(directory.path()) };
        let again = options.clone();
        let run = std::thread::spawn(move || sidecar::run(options));
        wait_for("ready", || sidecar::check_ready() == ExitCode::SUCCESS);
        connect().write_all(says.as_bytes()).unwrap();
        assert_eq!(run.join().unwrap().unwrap_err().exit_code(), 78);
        let last = records(directory.path()).pop().unwrap();
        assert_eq!(last["unmapped"]["intake"]["PeerForeign"]["uid"], 0, "{last}");
        let log = std::fs::read_to_string(directory.path().join("termination-log")).unwrap();
        assert!(log.starts_with(r#"{"cause":"ForeignPeer","message":"the first process"#), "{log}");
        assert_eq!(sidecar::run(again).unwrap_err().exit_code(), 78, "also when it is started again");
    })
    .join()
    .unwrap();
}

#[test]
fn sandbox_init_proves_itself() {
    std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("the tests need root");
        let directory = tempfile::tempdir().unwrap();
        let proof = directory.path().join("proof");
        std::fs::write(&proof, "the proof").unwrap();
        let options = sidecar::Options { proof_file: Some(proof), ..options(directory.path()) };
        std::thread::spawn(move || sidecar::run(options));
        wait_for("ready", || sidecar::check_ready() == ExitCode::SUCCESS);
        let mut peer = connect();
        peer.write_all(started(Some("the proof")).as_bytes()).unwrap();
        let mut answer = [0; 2];
        peer.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"1\n");
        let text = std::fs::read_to_string(directory.path().join("records.jsonl")).unwrap();
        assert!(!text.contains("the proof"), "it is no part of the record");
    })
    .join()
    .unwrap();
}
