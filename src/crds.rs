//! `agentsandbox crds`: the custom resource definitions as YAML, and their reference for people.
use std::{path::PathBuf, process::ExitCode};

use kube::CustomResourceExt as _;
use serde_json::Value;

use crate::{api::v1alpha1::AgentSandbox, apidocs};

/// Formats of integers that the API server knows; it warns of every other.
const INTEGER_FORMATS: [&str; 2] = ["int32", "int64"];

/// Options of `agentsandbox crds`.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Options {
    /// Directory to write one file per kind into; without it the YAML is printed.
    #[arg(long, value_name = "DIR")]
    pub output: Option<PathBuf>,
    /// File to write the reference of the fields into, as Markdown.
    #[arg(long, value_name = "FILE")]
    pub docs: Option<PathBuf>,
}

/// Why the definitions could not be given out.
#[derive(Debug, thiserror::Error)]
pub enum CrdsError {
    /// The definition has no form in JSON or YAML.
    #[error("the definition cannot be written: {0}")]
    Form(String),
    /// A file cannot be written.
    #[error("{path}: {source}")]
    Write {
        /// Path of the file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// The definition of `AgentSandbox` as it is installed.
///
/// # Errors
/// [`CrdsError::Form`] when it cannot be serialised.
pub fn definition() -> Result<Value, CrdsError> {
    let mut crd =
        serde_json::to_value(AgentSandbox::crd()).map_err(|error| CrdsError::Form(error.to_string()))?;
    clean(&mut crd);
    Ok(crd)
}

/// File name and YAML of every definition.
///
/// # Errors
/// [`CrdsError::Form`] when one cannot be serialised.
pub fn files() -> Result<Vec<(&'static str, String)>, CrdsError> {
    let yaml = serde_saphyr::to_string(&definition()?).map_err(|error| CrdsError::Form(error.to_string()))?;
    Ok(vec![("agentsandboxes.agentsandbox.dev.yaml", format!("# Made by `agentsandbox crds`.\n{yaml}"))])
}

/// Takes out what API servers warn of or refuse: formats that they do not know, and `nullable`. Without the latter
/// the API server drops a null as if the field were not written; with it, a null in an enum is refused with 422.
fn clean(value: &mut Value) {
    match value {
        Value::Object(map) => {
            // A field of that name would be an object.
            if map.get("nullable").is_some_and(Value::is_boolean) {
                map.remove("nullable");
            }
            let unknown = map.get("type").and_then(Value::as_str) == Some("integer")
                && map.get("format").and_then(Value::as_str).is_some_and(|f| !INTEGER_FORMATS.contains(&f));
            if unknown {
                map.remove("format");
            }
            if let Some(Value::Array(variants)) = map.get_mut("enum") {
                variants.retain(|variant| !variant.is_null());
            }
            map.values_mut().for_each(clean);
        }
        Value::Array(list) => list.iter_mut().for_each(clean),
        _ => {}
    }
}

/// Writes or prints the definitions.
///
/// # Errors
/// [`CrdsError`] when a definition cannot be serialised or a file not be written.
pub fn run(options: &Options) -> Result<ExitCode, CrdsError> {
    let files = files()?;
    if let Some(directory) = &options.output {
        std::fs::create_dir_all(directory)
            .map_err(|source| CrdsError::Write { path: directory.clone(), source })?;
        for (name, yaml) in &files {
            let path = directory.join(name);
            std::fs::write(&path, yaml).map_err(|source| CrdsError::Write { path, source })?;
        }
    }
    if let Some(path) = &options.docs {
        std::fs::write(path, apidocs::markdown(&definition()?))
            .map_err(|source| CrdsError::Write { path: path.clone(), source })?;
    }
    if options.output.is_none() && options.docs.is_none() {
        use std::io::Write as _;
        for (_, yaml) in &files {
            std::io::stdout()
                .write_all(yaml.as_bytes())
                .map_err(|source| CrdsError::Write { path: "standard output".into(), source })?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn each(value: &Value, visit: &mut impl FnMut(&serde_json::Map<String, Value>)) {
        match value {
            Value::Object(map) => {
                visit(map);
                map.values().for_each(|v| each(v, visit));
            }
            Value::Array(list) => list.iter().for_each(|v| each(v, visit)),
            _ => {}
        }
    }

    #[test]
    fn the_definition_is_small_and_has_nothing_that_servers_warn_of() {
        for (name, yaml) in files().unwrap() {
            assert!(yaml.len() < 64 * 1024, "{name}: {} bytes", yaml.len());
        }
        each(&definition().unwrap(), &mut |map| {
            assert!(!map.get("nullable").is_some_and(Value::is_boolean), "{map:?}");
            assert!(!map.get("enum").and_then(Value::as_array).is_some_and(|e| e.contains(&Value::Null)));
            if let Some(format) = map.get("format").and_then(Value::as_str) {
                assert!(["int32", "int64", "date-time"].contains(&format), "{format}");
            }
        });
    }

    #[test]
    fn committed_files_are_the_generated_ones() {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        for (name, yaml) in files().unwrap() {
            let committed = std::fs::read_to_string(root.join("crds").join(name)).unwrap();
            assert!(committed == yaml, "crds/{name} is old; run `agentsandbox crds --output crds`");
        }
        let committed = std::fs::read_to_string(root.join("docs/api.md")).unwrap();
        let docs = apidocs::markdown(&definition().unwrap());
        assert!(committed == docs, "docs/api.md is old; run `agentsandbox crds --docs docs/api.md`");
    }
}
