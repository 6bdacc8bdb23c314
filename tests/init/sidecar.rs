//! `sandbox-init` with the real sidecar.
use std::io::Write;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use agentsandbox::init::config::AUDIT_SOCKET;
use agentsandbox::sidecar;
use nix::sched::{CloneFlags, unshare};
use serde_json::Value;

fn records(directory: &std::path::Path) -> Vec<Value> {
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

#[test]
fn the_first_peer_is_the_only_one() {
    std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("the tests need root");
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(sidecar::check_ready(), ExitCode::FAILURE);
        let options = sidecar::Options {
            namespace: "n".into(),
            name: "s".into(),
            uid: "u".into(),
            generation: 1,
            policy_digest: "sha256:0".into(),
            spool: directory.path().to_owned(),
            termination_log: directory.path().join("termination-log"),
            egress: sidecar::EgressOptions::default(),
        };
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
