//! The objects of a file.
use std::{io::Read as _, path::Path};

use k8s_openapi::api::core::v1::Service;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::hint::hint;
use crate::{
    api::v1alpha1::{AgentSandbox, GROUP, VERSION},
    policy::shown,
};

/// Longest part of a generated name that the author writes; the API server cuts it there.
const MAX_PREFIX: usize = 58;

/// What stands for the five characters that the API server generates.
const GENERATED: &str = "00000";

/// An object of a file.
pub(crate) enum Document {
    /// A sandbox; it has a name, also where the API server would generate one.
    Sandbox(Box<AgentSandbox>),
    /// A Service.
    Service(Box<Service>),
    /// Version and kind of another.
    Other(String),
}

/// The text of `file`, or of the standard input where it is `-`.
pub(crate) fn read(file: &Path) -> Result<String, String> {
    let mut text = String::new();
    let result = if file.as_os_str() == "-" {
        std::io::stdin().read_to_string(&mut text).map(|_| ())
    } else {
        std::fs::read_to_string(file).map(|read| text = read)
    };
    result.map(|()| text).map_err(|error| format!("{}: {error}", file.display()))
}

/// The objects in `text`, those of a `v1 List` (`kubectl get -o yaml`) one by one. The error is for a person.
pub(crate) fn documents(text: &str) -> Result<Vec<Document>, String> {
    let written: Vec<Value> = serde_saphyr::from_multiple(text).map_err(|error| error.to_string())?;
    let mut all = Vec::new();
    for mut document in written.into_iter().filter(|document| !document.is_null()) {
        match document.get_mut("items").map(Value::take) {
            Some(Value::Array(items)) if is(&document, "v1", "List") => {
                all.extend(items.into_iter().map(one).collect::<Result<Vec<_>, _>>()?);
            }
            _ => all.push(one(document)?),
        }
    }
    Ok(all)
}

fn one(document: Value) -> Result<Document, String> {
    let version = format!("{GROUP}/{VERSION}");
    if is(&document, &version, "AgentSandbox") {
        let mut sandbox: AgentSandbox = object("AgentSandbox", document)?;
        let meta = &mut sandbox.metadata;
        if let (None, Some(prefix)) = (&meta.name, &meta.generate_name) {
            meta.name = Some(prefix.chars().take(MAX_PREFIX).chain(GENERATED.chars()).collect());
        }
        return Ok(Document::Sandbox(Box::new(sandbox)));
    }
    if is(&document, "v1", "Service") {
        return object("Service", document).map(|service| Document::Service(Box::new(service)));
    }
    match (text(&document, "apiVersion"), text(&document, "kind")) {
        ("", kind @ "AgentSandbox") => Err(format!("kind {kind} has no apiVersion; write {version}")),
        (other, kind @ "AgentSandbox") => {
            Err(format!("kind {kind} has apiVersion `{}`; write {version}", shown(other)))
        }
        (version, kind) => Ok(Document::Other(format!("{} {}", shown(version), shown(kind)))),
    }
}

fn is(document: &Value, version: &str, kind: &str) -> bool {
    text(document, "apiVersion") == version && text(document, "kind") == kind
}

fn text<'a>(document: &'a Value, field: &str) -> &'a str {
    document.get(field).and_then(Value::as_str).unwrap_or_default()
}

/// The object of `kind` that `document` is; the error names the field.
fn object<T: DeserializeOwned>(kind: &str, document: Value) -> Result<T, String> {
    serde_path_to_error::deserialize(document).map_err(|error| {
        let field = match error.path().to_string() {
            whole if whole == "." => String::new(),
            field => format!("{}: ", shown(&field)),
        };
        let message = error.inner().to_string();
        let hint = hint(&field, &message);
        format!("{kind}: {field}{message}{hint}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(text: &str) -> Vec<String> {
        let told = |document| match document {
            Document::Sandbox(sandbox) => format!("sandbox {}", sandbox.metadata.name.unwrap_or_default()),
            Document::Service(service) => format!("service {}", service.metadata.name.unwrap_or_default()),
            Document::Other(what) => what,
        };
        documents(text).map_or_else(|error| vec![error], |all| all.into_iter().map(told).collect())
    }

    fn sandbox(version: &str, metadata: &str) -> String {
        format!(
            "{{apiVersion: {version}, kind: AgentSandbox, metadata: {metadata}, spec: {{image: a, command: [/a]}}}}"
        )
    }

    const OURS: &str = "agentsandbox.dev/v1alpha1";

    #[test]
    fn a_list_is_its_items() {
        let sandbox = sandbox(OURS, "{name: a}");
        let service = "{apiVersion: v1, kind: Service, metadata: {name: b}}";
        let list = |items: &str| format!("{{apiVersion: v1, kind: List, metadata: {{}}, items: [{items}]}}");
        let text = format!("{}\n---\n{service}\n---\n", list(&format!("{sandbox}, {service}")));
        assert_eq!(told(&text), ["sandbox a", "service b", "service b"]);
        assert_eq!(told(&list("")), [""; 0]);
        // kubectl makes no list of lists.
        assert_eq!(told(&list(&list(&sandbox))), ["v1 List"]);
        assert_eq!(told("{apiVersion: v1, kind: List}"), ["v1 List"]);
        assert_eq!(told("{apiVersion: v1, kind: Pod, items: [a]}"), ["v1 Pod"]);
        assert_eq!(told("a"), [" "]);
    }

    #[test]
    fn another_version_is_said() {
        let said = |version: &str| told(&sandbox(version, "{name: a}"));
        let told = "kind AgentSandbox has apiVersion `agentsandbox.dev/v1`; write agentsandbox.dev/v1alpha1";
        assert_eq!(said("agentsandbox.dev/v1"), [told]);
        assert_eq!(said("''"), ["kind AgentSandbox has no apiVersion; write agentsandbox.dev/v1alpha1"]);
    }

    #[test]
    fn a_generated_name_has_a_placeholder() {
        assert_eq!(told(&sandbox(OURS, "{generateName: a-}")), ["sandbox a-00000"]);
        assert_eq!(told(&sandbox(OURS, "{generateName: a-, name: b}")), ["sandbox b"]);
        let long = told(&sandbox(OURS, &format!("{{generateName: {}}}", "a".repeat(100))));
        assert_eq!(long, [format!("sandbox {}00000", "a".repeat(58))]);
    }
}
