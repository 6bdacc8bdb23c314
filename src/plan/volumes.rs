//! Volumes of a sandbox's Pod: the user's own, and the operator's three.
use k8s_openapi::{
    api::core::v1::{
        ConfigMapVolumeSource, EmptyDirVolumeSource, PersistentVolumeClaimVolumeSource,
        ProjectedVolumeSource, SecretVolumeSource, ServiceAccountTokenProjection, Volume, VolumeMount,
        VolumeProjection,
    },
    apimachinery::pkg::api::resource::Quantity,
};

use super::{ValidatedMount, ValidatedSandbox};
use crate::{api::v1alpha1::Mount, egress::wire::AUDIENCE};

/// Volume that brings `sandbox-init` into the agent's container.
pub(super) const INIT: &str = "agentsandbox-init";
/// Volume in which the sidecar keeps audit records.
pub(super) const SPOOL: &str = "agentsandbox-spool";
/// Volume with the token by which the sidecar, and only it, says which Pod it is.
pub(super) const TOKEN: &str = "agentsandbox-token";
/// Directory of [`TOKEN`] in the sidecar; the file in it is [`TOKEN_FILE`].
pub(super) const TOKEN_DIRECTORY: &str = "/var/run/agentsandbox/token";

/// Directory of [`INIT`] in the sidecar.
pub(super) const INIT_DIRECTORY: &str = "/var/run/agentsandbox/init";

/// File in [`TOKEN_DIRECTORY`].
const TOKEN_FILE: &str = "token";
/// Life of the token in seconds; the kubelet writes a new one before it ends.
const TOKEN_SECONDS: i64 = 3600;

/// Files of `ConfigMaps` and Secrets are readable for the Pod's group and nobody else.
const DEFAULT_MODE: i32 = 0o440;

/// Every volume of the Pod.
pub(super) fn volumes(sandbox: &ValidatedSandbox) -> Vec<Volume> {
    let own = [empty_dir(INIT, "16Mi"), empty_dir(SPOOL, "16Mi"), token()];
    let mounts = sandbox.mounts();
    let users = mounts.iter().enumerate().map(|(index, mount)| volume(index, &mount.mount, mounts));
    own.into_iter().chain(users).collect()
}

/// The user's mounts in the agent's container.
pub(super) fn mounts(sandbox: &ValidatedSandbox) -> Vec<VolumeMount> {
    sandbox.mounts().iter().enumerate().map(|(index, mount)| volume_mount(index, mount)).collect()
}

/// A mount of one of the operator's own volumes.
pub(super) fn own_mount(volume: &str, path: &str, read_only: bool) -> VolumeMount {
    VolumeMount {
        name: volume.to_owned(),
        mount_path: path.to_owned(),
        read_only: Some(read_only),
        ..VolumeMount::default()
    }
}

/// Path of the token in the sidecar.
pub(super) fn token_file() -> String {
    format!("{TOKEN_DIRECTORY}/{TOKEN_FILE}")
}

fn name(index: usize) -> String {
    format!("mount-{index}")
}

fn token() -> Volume {
    let token = ServiceAccountTokenProjection {
        // No API server takes it: its own audience is another.
        audience: Some(AUDIENCE.to_owned()),
        expiration_seconds: Some(TOKEN_SECONDS),
        path: TOKEN_FILE.to_owned(),
        ..ServiceAccountTokenProjection::default()
    };
    Volume {
        name: TOKEN.to_owned(),
        projected: Some(ProjectedVolumeSource {
            default_mode: Some(DEFAULT_MODE),
            sources: Some(vec![VolumeProjection {
                service_account_token: Some(token),
                ..VolumeProjection::default()
            }]),
            ..ProjectedVolumeSource::default()
        }),
        ..Volume::default()
    }
}

fn empty_dir(name: &str, size: &str) -> Volume {
    Volume {
        name: name.to_owned(),
        empty_dir: Some(EmptyDirVolumeSource {
            size_limit: Some(Quantity(size.to_owned())),
            ..EmptyDirVolumeSource::default()
        }),
        ..Volume::default()
    }
}

fn volume(index: usize, mount: &Mount, all: &[ValidatedMount]) -> Volume {
    let mut volume = Volume { name: name(index), ..Volume::default() };
    if let Some(source) = &mount.empty_dir {
        return empty_dir(&volume.name, &source.size_limit);
    }
    volume.persistent_volume_claim = mount.persistent_volume_claim.as_ref().map(|source| {
        let read_only = is_only_read(&source.claim_name, all).then_some(true);
        PersistentVolumeClaimVolumeSource { claim_name: source.claim_name.clone(), read_only }
    });
    volume.config_map = mount.config_map.as_ref().map(|source| ConfigMapVolumeSource {
        name: source.name.clone(),
        default_mode: Some(DEFAULT_MODE),
        ..ConfigMapVolumeSource::default()
    });
    volume.secret = mount.secret.as_ref().map(|source| SecretVolumeSource {
        secret_name: Some(source.name.clone()),
        default_mode: Some(DEFAULT_MODE),
        ..SecretVolumeSource::default()
    });
    volume
}

/// Whether every mount of this claim is read-only. Said at the mounts alone the kubelet still gives every file of the
/// volume to the Pod's group. One claim that is mounted both ways is said nowhere else: drivers need not take both.
fn is_only_read(claim: &str, all: &[ValidatedMount]) -> bool {
    let of_claim = |mount: &&ValidatedMount| {
        mount.mount.persistent_volume_claim.as_ref().is_some_and(|source| source.claim_name == claim)
    };
    all.iter().filter(of_claim).all(|mount| mount.mount.is_read_only())
}

fn volume_mount(index: usize, valid: &ValidatedMount) -> VolumeMount {
    let mount = &valid.mount;
    let claim = mount.persistent_volume_claim.as_ref().and_then(|s| s.sub_path.clone());
    let named = mount.config_map.as_ref().or(mount.secret.as_ref()).and_then(|s| s.sub_path.clone());
    VolumeMount {
        name: name(index),
        mount_path: mount.path.clone(),
        read_only: Some(mount.is_read_only()),
        sub_path: claim.or(named),
        ..VolumeMount::default()
    }
}
