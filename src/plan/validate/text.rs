//! Names, commands and environment.
use std::collections::BTreeSet;

use super::{Refusals, reason};
use crate::{
    api::v1alpha1::{AgentSandboxSpec, EnvVar, KeySelector},
    plan::names,
    policy::shown,
};

/// What is wrong with a user or a group.
const IDS: &str = "must be from 1 to 65533 and not 65532 (the sidecar's); root is never allowed";

pub(super) fn check(spec: &AgentSandboxSpec, refusals: &mut Refusals) {
    let image = &spec.image;
    refusals.check(
        !image.is_empty()
            && image.len() <= 512
            && !image.chars().any(|c| c.is_whitespace() || c.is_control()),
        "spec.image",
        "must be an image reference without spaces, such as registry.example/agent@sha256:...",
    );
    refusals.check(
        spec.command.first().is_some_and(|c| !c.is_empty()) && spec.command.len() <= 64,
        "spec.command",
        "must name a program and at most 63 arguments, such as [/usr/bin/python3]",
    );
    refusals.check(spec.args.len() <= 256, "spec.args", "must be at most 256 arguments");
    for (list, field) in [(&spec.command, "spec.command"), (&spec.args, "spec.args")] {
        refusals.check(
            list.iter().all(|text| text.chars().count() <= 4096 && !text.contains('\0')),
            field,
            "every argument must be at most 4096 characters and without NUL",
        );
    }
    if let Some(directory) = &spec.working_dir {
        let fine = directory.starts_with('/')
            && directory.len() <= 1024
            && !directory.split('/').any(|part| part == "..")
            && !directory.chars().any(char::is_control);
        refusals.check(fine, "spec.workingDir", "must be an absolute path without '..', such as /workspace");
    }
    let of_users = |id: i64| (1..=65_533).contains(&id) && id != 65_532;
    refusals.check(spec.run_as.user.is_none_or(of_users), "spec.runAs.user", IDS);
    refusals.check(of_users(spec.run_as.group), "spec.runAs.group", IDS);
    if let Some(class) = spec.isolation.as_ref().and_then(|i| i.runtime_class_name.as_deref()) {
        object_name(class, "spec.isolation.runtimeClassName", refusals);
    }
    check_env(&spec.env, refusals);
}

fn check_env(env: &[EnvVar], refusals: &mut Refusals) {
    refusals.check(env.len() <= 128, "spec.env", "must be at most 128 variables");
    let mut seen = BTreeSet::new();
    for (index, variable) in env.iter().enumerate() {
        let field = format!("spec.env[{index}].name");
        let name = variable.name.as_str();
        let plain = name.len() <= 256
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
            && !name.starts_with(|c: char| c.is_ascii_digit())
            && !name.is_empty();
        if !plain {
            refusals.invalid(
                &field,
                format!(
                    "`{}` must be letters, digits and underscores and not start with a digit",
                    shown(name)
                ),
            );
        }
        if name.starts_with("AGENTSANDBOX_") {
            refusals.add(
                reason::RESERVED_ENV_NAME,
                &field,
                format!(
                    "`{}`: names that start with AGENTSANDBOX_ are reserved; choose another name",
                    shown(name)
                ),
            );
        }
        if !seen.insert(name) {
            refusals.invalid(&field, format!("`{}` is written twice; leave one out", shown(name)));
        }
        check_value(variable, index, refusals);
    }
}

fn check_value(variable: &EnvVar, index: usize, refusals: &mut Refusals) {
    let value = variable.value.as_deref().unwrap_or_default();
    refusals.check(
        value.chars().count() <= 32_768 && !value.contains('\0'),
        &format!("spec.env[{index}].value"),
        "must be at most 32768 characters and without NUL",
    );
    let Some(source) = &variable.value_from else { return };
    let field = format!("spec.env[{index}].valueFrom");
    refusals.check(variable.value.is_none(), &field, "write value or valueFrom, not both");
    match (&source.secret_key_ref, &source.config_map_key_ref) {
        (Some(selector), None) => key(selector, &format!("{field}.secretKeyRef"), refusals),
        (None, Some(selector)) => key(selector, &format!("{field}.configMapKeyRef"), refusals),
        _ => refusals.invalid(&field, "write exactly one of secretKeyRef and configMapKeyRef"),
    }
}

fn key(selector: &KeySelector, field: &str, refusals: &mut Refusals) {
    object_name(&selector.name, &format!("{field}.name"), refusals);
    let key = &selector.key;
    let plain = (1..=253).contains(&key.len())
        && key.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        && key != "."
        && !key.starts_with("..");
    refusals.check(
        plain,
        &format!("{field}.key"),
        "must be letters, digits, '-', '_' and '.', such as token",
    );
}

/// Refuses what cannot be the name of an object.
pub(super) fn object_name(name: &str, field: &str, refusals: &mut Refusals) {
    if !names::is_subdomain(name) {
        refusals.invalid(
            field,
            format!(
                "`{}` must be lower-case letters, digits, hyphens and dots, such as my-object",
                shown(name)
            ),
        );
    }
}
