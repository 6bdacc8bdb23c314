//! Where the cluster is: the file that the harness writes, or the caller's own environment.
use std::{collections::BTreeMap, path::PathBuf, process::Command, sync::LazyLock, time::Duration};

use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};

/// Settings of the run. A variable of the process goes before the same one of the file.
#[derive(Debug)]
pub struct Environment {
    file: BTreeMap<String, String>,
}

static ENVIRONMENT: LazyLock<Environment> = LazyLock::new(Environment::read);

/// Settings of this run.
pub fn environment() -> &'static Environment {
    &ENVIRONMENT
}

/// `limit` times `E2E_TIMEOUT_SCALE` (1 when unset).
pub fn scaled(limit: Duration) -> Duration {
    let scale = environment().get("E2E_TIMEOUT_SCALE").and_then(|text| text.parse().ok()).unwrap_or(1.0_f64);
    limit.mul_f64(scale.clamp(0.1, 100.0))
}

impl Environment {
    fn read() -> Self {
        let path = std::env::var("AGENTSANDBOX_E2E_ENV").unwrap_or_else(|_| "/run/asbx/env".to_owned());
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let file = text
            .lines()
            .map(|line| line.trim().trim_start_matches("export ").trim())
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.split_once('='))
            .map(|(key, value)| (key.to_owned(), value.trim_matches(['"', '\'']).to_owned()))
            .collect();
        Self { file }
    }

    /// A setting, if there is one.
    pub fn get(&self, key: &str) -> Option<String> {
        std::env::var(key).ok().filter(|value| !value.is_empty()).or_else(|| self.file.get(key).cloned())
    }

    /// A setting that the run cannot do without.
    pub fn need(&self, key: &str) -> String {
        self.get(key).unwrap_or_else(|| {
            panic!("{key} is neither in the environment nor in the file of the harness; run `e2e/cluster up` first")
        })
    }

    /// Folder of the harness's state: `AGENTSANDBOX_E2E_STATE`, else the one the environment file is in.
    pub fn state(&self) -> PathBuf {
        let path = std::env::var("AGENTSANDBOX_E2E_ENV").unwrap_or_else(|_| "/run/asbx/env".to_owned());
        self.get("AGENTSANDBOX_E2E_STATE").map_or_else(
            || PathBuf::from(path).parent().map(PathBuf::from).unwrap_or_default(),
            PathBuf::from,
        )
    }

    /// Network namespace of the harness's "Internet".
    pub fn world(&self) -> String {
        self.get("WORLD_NETNS").unwrap_or_else(|| "asbx-net".to_owned())
    }

    /// The API server's audit log, where the harness keeps one.
    pub fn audit_log(&self) -> PathBuf {
        self.get("AUDIT_LOG").map_or_else(|| self.state().join("audit.log"), PathBuf::from)
    }

    /// Image that agents and control Pods run in.
    pub fn agent_image(&self) -> String {
        self.need("AGENT_IMAGE")
    }

    /// Namespace of the operator.
    pub fn system_namespace(&self) -> String {
        self.get("SYSTEM_NS").unwrap_or_else(|| "agentsandbox-system".to_owned())
    }

    /// Whether a failed test's namespace is removed too.
    pub fn clean_always(&self) -> bool {
        self.get("E2E_CLEAN").as_deref() == Some("always")
    }

    /// A client. It does not retry by itself: a test must see what the server said first.
    pub async fn client(&self) -> Client {
        // Several providers may be compiled in; the project uses ring only.
        let _ = tokio_rustls::rustls::crypto::ring::default_provider().install_default();
        let kubeconfig = Kubeconfig::read_from(self.need("KUBECONFIG")).unwrap();
        let mut config =
            Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
        config.default_retry = false;
        Client::try_from(config).unwrap()
    }

    /// A command that finds the cluster: `KUBECTL` or `HELM`.
    pub fn command(&self, key: &str) -> Command {
        let mut command = Command::new(self.get(key).unwrap_or_else(|| key.to_lowercase()));
        command.env("KUBECONFIG", self.need("KUBECONFIG"));
        command
    }
}

/// Runs a command to its end, off the runtime's threads, and answers its output.
///
/// # Panics
/// When it cannot be started or fails; the message has what it wrote.
pub async fn output_of(mut command: Command) -> String {
    let shown = format!("{command:?}");
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap();
    let output = output.unwrap_or_else(|error| panic!("{shown}: {error}"));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{shown} ended with {}:\n{out}\n{err}", output.status);
    out.into_owned()
}
