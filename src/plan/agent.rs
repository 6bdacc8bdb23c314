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

/// The container `agent`.
pub(super) fn container(sandbox: &ValidatedSandbox, settings: &Settings) -> Container {
    let spec = sandbox.spec();
    let directory = sandbox.own_directory();
    let own = [format!("{directory}/sandbox-init"), "run".to_owned(), "--".to_owned()];
    let users = spec.command.iter().chain(&spec.args).map(|text| literal(text));
    let mut mounts = vec![volumes::own_mount(volumes::INIT, &directory, true)];
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

/// `text` so that the kubelet's expansion of `$(NAME)` gives it back unchanged: the kubelet reads every `$$` as one
/// `$` (`kubernetes/third_party/forked/golang/expansion/expand.go`), so every one is doubled.
fn literal(text: &str) -> String {
    text.replace('$', "$$")
}

fn env(sandbox: &ValidatedSandbox, settings: &Settings) -> Vec<EnvVar> {
    let orders = EnvVar {
        name: CONFIG_VARIABLE.to_owned(),
        // Strings and numbers only, so that it cannot fail; `sandbox-init` refuses to start on anything else.
        value: Some(literal(&serde_json::to_string(&orders(sandbox, settings)).unwrap_or_default())),
        value_from: None,
    };
    let users = sandbox.spec().env.iter().map(|variable| EnvVar {
        name: variable.name.clone(),
        value: match variable.value_from {
            Some(_) => None,
            None => Some(literal(variable.value.as_deref().unwrap_or_default())),
        },
        value_from: variable.value_from.as_ref().map(source),
    });
    std::iter::once(orders).chain(users).collect()
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
        own_directory: sandbox.own_directory(),
        policy_digest: sandbox.policy_digest().to_owned(),
        generation: sandbox.generation(),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dollars_are_doubled() {
        assert_eq!(literal("a $(HOME) $$ b$"), "a $$(HOME) $$$$ b$$");
    }
}
