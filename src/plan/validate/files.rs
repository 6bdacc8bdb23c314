//! Mounts.
use super::{Refusals, reason, text::object_name};
use crate::{
    api::v1alpha1::{Filesystem, Mount, bytes_of, wrong_bytes},
    plan::keyed::MOST_PARTS,
    policy::shown,
};

/// A mount that passed every check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValidatedMount {
    /// As the user wrote it; exactly one source is set.
    pub mount: Mount,
    /// What it is: `emptyDir`, `persistentVolumeClaim/NAME`, `configMap/NAME`, `secret/NAME`.
    pub source: String,
}

/// Directories that no mount may cover: what runtimes mount themselves, and the operator's own.
const GUARDED: [&str; 4] = ["/proc", "/sys", "/dev", "/.agentsandbox"];

/// Checks the mounts; `disk` is what the agent may write in all.
pub(super) fn check(
    filesystem: Option<&Filesystem>,
    disk: &str,
    refusals: &mut Refusals,
) -> Vec<ValidatedMount> {
    let mounts = filesystem.map_or(&[][..], |f| f.mounts.as_slice());
    refusals.check(mounts.len() <= 32, "spec.filesystem.mounts", "must be at most 32 mounts");
    let mut valid = Vec::new();
    for (index, mount) in mounts.iter().enumerate() {
        let field = format!("spec.filesystem.mounts[{index}]");
        check_path(&mount.path, &format!("{field}.path"), refusals);
        let earlier = mounts.iter().take(index).find(|other| overlap(&other.path, &mount.path));
        if let Some(earlier) = earlier {
            refusals.add(
                reason::OVERLAPPING_MOUNTS,
                format!("{field}.path"),
                format!(
                    "{} and {} overlap; mount at paths of which none is inside another",
                    shown(&earlier.path),
                    shown(&mount.path)
                ),
            );
        }
        check_size(mount, disk, &field, refusals);
        if let Some(source) = check_source(mount, &field, refusals) {
            valid.push(ValidatedMount { mount: mount.clone(), source });
        }
    }
    valid
}

fn check_path(path: &str, field: &str, refusals: &mut Refusals) {
    let parts = path.strip_prefix('/').map(|rest| rest.split('/'));
    let absolute = path.len() <= 512 && parts.is_some_and(|mut p| p.all(|part| !part.is_empty()));
    refusals.check(
        absolute,
        field,
        "must be absolute, not /, at most 512 bytes and without doubled or trailing slashes, such as /workspace",
    );
    refusals.check(
        !path.split('/').any(|part| part == "." || part == ".."),
        field,
        "must not contain '.' or '..'",
    );
    refusals.check(
        !path.chars().any(|c| c.is_control() || c == ':' || c == ','),
        field,
        "must not contain control characters, colons or commas",
    );
    refusals.check(
        path.matches('/').count() <= MOST_PARTS,
        field,
        &format!("must have at most {MOST_PARTS} parts, such as /workspace/cache"),
    );
    refusals.check(
        !GUARDED.iter().any(|guarded| inside(path, guarded)),
        field,
        "mounts over /proc, /sys, /dev and /.agentsandbox are not allowed; choose another path, such as /workspace",
    );
}

/// Whether `path` is `directory` or in it.
fn inside(path: &str, directory: &str) -> bool {
    path.strip_prefix(directory).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn overlap(a: &str, b: &str) -> bool {
    inside(a, b) || inside(b, a)
}

/// The kubelet counts every emptyDir on the limit of the whole: one that is larger could never be filled.
fn check_size(mount: &Mount, disk: &str, field: &str, refusals: &mut Refusals) {
    let Some(size) = mount.empty_dir.as_ref().map(|source| &source.size_limit) else { return };
    let (Ok(bytes), Ok(most)) = (bytes_of(size), bytes_of(disk)) else { return };
    refusals.check(
        bytes <= most,
        &format!("{field}.emptyDir.sizeLimit"),
        &format!("must be at most resources.ephemeralStorage ({disk}), on which it counts; raise that or write less"),
    );
}

/// The mount's one source, as it is recorded.
fn check_source(mount: &Mount, field: &str, refusals: &mut Refusals) -> Option<String> {
    let mut found = Vec::new();
    if let Some(source) = &mount.empty_dir {
        let limit = bytes_of(&source.size_limit);
        refusals.check(
            matches!(limit, Ok(bytes) if bytes > 0),
            &format!("{field}.emptyDir.sizeLimit"),
            &wrong_bytes(&source.size_limit, "above 0", "256Mi"),
        );
        refusals.check(
            mount.read_only == Some(false),
            &format!("{field}.readOnly"),
            "an emptyDir that is read-only stays empty; write readOnly: false",
        );
        found.push("emptyDir".to_owned());
    }
    if let Some(source) = &mount.persistent_volume_claim {
        let field = format!("{field}.persistentVolumeClaim");
        object_name(&source.claim_name, &format!("{field}.claimName"), refusals);
        check_sub_path(source.sub_path.as_deref(), &field, refusals);
        found.push(format!("persistentVolumeClaim/{}", source.claim_name));
    }
    for (source, kind) in [(&mount.config_map, "configMap"), (&mount.secret, "secret")] {
        let Some(source) = source else { continue };
        let field = format!("{field}.{kind}");
        object_name(&source.name, &format!("{field}.name"), refusals);
        check_sub_path(source.sub_path.as_deref(), &field, refusals);
        refusals.check(
            mount.read_only != Some(false),
            &field,
            "configMap and secret mounts are read-only; leave readOnly out or set it to true",
        );
        found.push(format!("{kind}/{}", source.name));
    }
    refusals.check(
        found.len() == 1,
        field,
        "a mount needs exactly one of emptyDir, persistentVolumeClaim, configMap and secret",
    );
    found.pop()
}

fn check_sub_path(sub_path: Option<&str>, field: &str, refusals: &mut Refusals) {
    let Some(path) = sub_path else { return };
    let fine = !path.is_empty()
        && path.len() <= 512
        && !path.starts_with('/')
        && !path.split('/').any(|part| part == "..")
        && !path.chars().any(char::is_control);
    refusals.check(fine, &format!("{field}.subPath"), "must be relative and without '..', such as issue-42");
}
