//! The agent's own container: `sandbox-init` first, and under it what the user asked for.
use k8s_openapi::{
    api::core::v1::{
        ConfigMapKeySelector, Container, EnvVar, EnvVarSource, ResourceRequirements, SecretKeySelector,
    },
    apimachinery::pkg::api::resource::Quantity,
};

use super::{Settings, ValidatedSandbox, pod, volumes};
use crate::{
    api::v1alpha1,
    init::config::{CONFIG_VARIABLE, InitConfig, MountFact},
};

/// The sidecar's HTTP proxy in the agent's own network namespace. Not on 127.0.0.1, where every port is the agent's.
const HTTP_PROXY: &str = "http://127.64.0.1:3128";
/// The sidecar's SOCKS5 proxy. `socks5h`: it is asked by name, and no client resolves one by itself.
const SOCKS_PROXY: &str = "socks5h://127.64.0.1:1080";
/// What the agent reaches without a proxy: itself.
const NO_PROXY: &str = "localhost,127.0.0.0/8,::1";

/// The container `agent`.
pub(super) fn container(sandbox: &ValidatedSandbox, settings: &Settings) -> Container {
    let spec = sandbox.spec();
    let directory = sandbox.own_directory();
    let own = [format!("{directory}/sandbox-init"), "run".to_owned(), "--".to_owned()];
    let users = spec.command.iter().chain(&spec.args).map(|text| pod::literal(text));
    let mut mounts = vec![volumes::own_mount(volumes::INIT, directory, true)];
    mounts.extend(volumes::mounts(sandbox));
    Container {
        name: "agent".to_owned(),
        image: Some(spec.image.clone()),
        command: Some(own.into_iter().chain(users).collect()),
        env: Some(env(sandbox, settings)),
        working_dir: spec.working_dir.clone(),
        resources: Some(resources(&spec.resources)),
        security_context: Some(pod::security_context(sandbox.user())),
        termination_message_path: Some("/dev/termination-log".to_owned()),
        termination_message_policy: Some("File".to_owned()),
        volume_mounts: Some(mounts),
        ..Container::default()
    }
}

fn env(sandbox: &ValidatedSandbox, settings: &Settings) -> Vec<EnvVar> {
    let orders = EnvVar {
        name: CONFIG_VARIABLE.to_owned(),
        // Strings and numbers only, so that it cannot fail; `sandbox-init` refuses to start on anything else.
        value: Some(pod::literal(&serde_json::to_string(&orders(sandbox, settings)).unwrap_or_default())),
        value_from: None,
    };
    let users = sandbox.spec().env.iter().map(|variable| EnvVar {
        name: variable.name.clone(),
        value: match variable.value_from {
            Some(_) => None,
            None => Some(pod::literal(variable.value.as_deref().unwrap_or_default())),
        },
        value_from: variable.value_from.as_ref().map(source),
    });
    std::iter::once(orders).chain(users).chain(proxies(sandbox)).collect()
}

/// Variables by which many programs find a proxy, where the sandbox asks for them. Both spellings: some programs read
/// one only. What the user set is left alone.
fn proxies(sandbox: &ValidatedSandbox) -> Vec<EnvVar> {
    let spec = sandbox.spec();
    if !spec.network.as_ref().is_some_and(|network| network.proxy_environment) {
        return Vec::new();
    }
    let all = [
        ("HTTP_PROXY", HTTP_PROXY),
        ("HTTPS_PROXY", HTTP_PROXY),
        ("ALL_PROXY", SOCKS_PROXY),
        ("NO_PROXY", NO_PROXY),
    ];
    all.into_iter()
        .flat_map(|(name, value)| [(name.to_owned(), value), (name.to_lowercase(), value)])
        .filter(|(name, _)| spec.env.iter().all(|variable| variable.name != *name))
        .map(|(name, value)| EnvVar { name, value: Some(value.to_owned()), value_from: None })
        .collect()
}

fn source(source: &v1alpha1::EnvVarSource) -> EnvVarSource {
    EnvVarSource {
        secret_key_ref: source.secret_key_ref.as_ref().map(|s| SecretKeySelector {
            name: s.name.clone(),
            key: s.key.clone(),
            optional: None,
        }),
        config_map_key_ref: source.config_map_key_ref.as_ref().map(|s| ConfigMapKeySelector {
            name: s.name.clone(),
            key: s.key.clone(),
            optional: None,
        }),
        ..EnvVarSource::default()
    }
}

fn orders(sandbox: &ValidatedSandbox, settings: &Settings) -> InitConfig {
    let spec = sandbox.spec();
    let mounts = sandbox.mounts();
    InitConfig {
        sandbox: sandbox.identity().clone(),
        timeout_ms: milliseconds(sandbox.timeout()),
        grace_ms: milliseconds(settings.grace),
        pids: u64::try_from(spec.resources.pids).unwrap_or_default(),
        file_size_bytes: largest_file(sandbox),
        landlock: spec.filesystem.as_ref().map(|f| f.landlock).unwrap_or_default(),
        writable: mounts.iter().filter(|m| !m.mount.is_read_only()).map(|m| m.mount.path.clone()).collect(),
        mounts: mounts
            .iter()
            .map(|m| MountFact {
                path: m.mount.path.clone(),
                read_only: m.mount.is_read_only(),
                source: m.source.clone(),
            })
            .collect(),
        own_directory: sandbox.own_directory().to_owned(),
        policy_digest: sandbox.policy_digest().to_owned(),
        generation: sandbox.generation(),
    }
}

/// Most bytes of one file: what the disk limits allow anyway, but at once and also where the kubelet does not look,
/// such as files that were unlinked. A writable claim has its own size, which nobody knows here.
fn largest_file(sandbox: &ValidatedSandbox) -> Option<u64> {
    let writable = || sandbox.mounts().iter().map(|m| &m.mount).filter(|mount| !mount.is_read_only());
    if writable().any(|mount| mount.persistent_volume_claim.is_some()) {
        return None;
    }
    let of_mounts = writable().filter_map(|mount| mount.empty_dir.as_ref()).map(|source| &source.size_limit);
    let sizes = of_mounts.chain([&sandbox.spec().resources.ephemeral_storage]);
    sizes.filter_map(|text| v1alpha1::bytes_of(text).ok()).max().and_then(|bytes| u64::try_from(bytes).ok())
}

fn resources(limits: &v1alpha1::Resources) -> ResourceRequirements {
    let requests = limits.requests.as_ref();
    let cpu = requests.and_then(|r| r.cpu.as_ref()).unwrap_or(&limits.cpu);
    let memory = requests.and_then(|r| r.memory.as_ref()).unwrap_or(&limits.memory);
    let of = |cpu: &str, memory: &str| -> std::collections::BTreeMap<String, Quantity> {
        pod::quantities([("cpu", cpu), ("memory", memory), ("ephemeral-storage", &limits.ephemeral_storage)])
    };
    ResourceRequirements {
        requests: Some(of(cpu, memory)),
        limits: Some(of(&limits.cpu, &limits.memory)),
        claims: None,
    }
}

fn milliseconds(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
