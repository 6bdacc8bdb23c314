//! Starts the servers of the "Internet" where they do not run yet, and the addresses that they have.
use std::{
    fs::File,
    net::IpAddr,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Mutex,
};

use serde::Deserialize;
use tokio::sync::OnceCell;

use super::{environment, secs, wait_for};

/// The address that rules allow in the tests.
pub const ALLOWED: &str = "203.0.113.10";
/// An address that no rule allows.
pub const DENIED: &str = "203.0.113.11";
/// One more, for rules that come and go.
pub const OTHER: &str = "198.51.100.10";
/// Where clouds serve credentials of the node; here the "Internet" does, so that "refused" means something.
pub const METADATA: &str = "169.254.169.254";
/// TCP port that sends back what it gets.
pub const ECHO: u16 = 7000;
/// UDP port that sends back what it gets.
pub const ECHO_UDP: u16 = 7001;

const ADDRESSES: [&str; 5] = [ALLOWED, DENIED, "203.0.113.12", OTHER, METADATA];

static STARTED: OnceCell<()> = OnceCell::const_new();
/// The servers end when the pipe to them closes, which it does with this process.
static SERVERS: Mutex<Option<Child>> = Mutex::new(None);

#[derive(Deserialize)]
struct Ready {
    pid: u32,
    addresses: Vec<IpAddr>,
}

/// Serves every address of the tests that nobody serves yet.
///
/// With `E2E_INTERNET=external` it is somebody else's matter (a cluster that is not the harness's own).
pub async fn serve() {
    STARTED
        .get_or_init(|| async {
            if environment().get("E2E_INTERNET").as_deref() == Some("external") {
                return;
            }
            let state = environment().state();
            // Two suites at one time must not both start them. The lock is held until the servers are ready.
            let lock = File::create(state.join("internet.lock")).unwrap();
            let lock =
                tokio::task::spawn_blocking(move || lock.lock().map(|()| lock)).await.unwrap().unwrap();
            let mine = "internet-e2e.ready";
            let served: Vec<IpAddr> =
                ["internet.ready", mine].iter().flat_map(|name| served_by(&state.join(name))).collect();
            let missing: Vec<&str> =
                ADDRESSES.into_iter().filter(|a| !served.contains(&a.parse().unwrap())).collect();
            if missing.is_empty() {
                return;
            }
            let namespace = format!("--net=/run/netns/{}", environment().world());
            for address in &missing {
                // It exists already for all but the metadata address.
                let add = ["ip", "addr", "add", &format!("{address}/32"), "dev", "lo"].map(str::to_owned);
                let _ = Command::new("nsenter").arg(&namespace).args(add).stderr(Stdio::null()).status();
            }
            // Where the harness's own servers run, their CA stays the one in ca.pem.
            let ca = if served.is_empty() { "ca.pem" } else { "ca-e2e.pem" };
            let site = state.join("www");
            if !site.exists() {
                std::fs::create_dir(&site).unwrap();
                let script = concat!(env!("CARGO_MANIFEST_DIR"), "/e2e/egress/site.py");
                let made = Command::new("python3").arg(script).arg(&site).status().unwrap();
                assert!(made.success(), "{script} made no files");
            }
            let mut servers = Command::new("nsenter");
            servers.args([&namespace, env!("CARGO_BIN_EXE_e2e-internet"), "--while-stdin-open"]);
            if let Some(program) = environment().get("GIT_SSH").filter(|_| served.is_empty()) {
                servers.args(["--git-ssh", &program]);
            }
            let child = servers
                .args(["--redis", "--ready-file", mine, "--ca-file", ca, "--state-dir"])
                .arg(&state)
                .arg("--files")
                .arg(&site)
                .args(&missing)
                .stdin(Stdio::piped())
                .spawn()
                .unwrap();
            *SERVERS.lock().unwrap() = Some(child);
            wait_for("the Internet's servers", secs(20), || async {
                (!served_by(&state.join(mine)).is_empty()).then_some(())
            })
            .await;
            drop(lock);
        })
        .await;
}

/// Addresses that a ready file names, if the process that wrote it lives.
fn served_by(ready: &Path) -> Vec<IpAddr> {
    let Ok(text) = std::fs::read_to_string(ready) else { return Vec::new() };
    let Ok(ready) = serde_json::from_str::<Ready>(&text) else { return Vec::new() };
    let alive = std::fs::read_to_string(format!("/proc/{}/cmdline", ready.pid))
        .is_ok_and(|line| line.contains("e2e-internet"));
    if alive { ready.addresses } else { Vec::new() }
}
