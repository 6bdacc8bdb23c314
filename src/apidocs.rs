//! Reference of the API's fields as Markdown, made from the custom resource definition.
use std::fmt::Write as _;

use serde_json::Value;

/// One table of every field of `spec` and `status` in `definition`, a `CustomResourceDefinition`.
pub fn markdown(definition: &Value) -> String {
    let mut text = String::from(
        "# API reference\n\nMade by `agentsandbox crds --docs`; `kubectl explain agentsandbox.spec` says the same.\n",
    );
    for part in ["spec", "status"] {
        let schema =
            definition.pointer(&format!("/spec/versions/0/schema/openAPIV3Schema/properties/{part}"));
        // Writing to a String never fails, here and below.
        let _ = write!(
            text,
            "\n## AgentSandbox `{part}`\n\n| Field | Type | Default | Description |\n| --- | --- | --- | --- |\n"
        );
        if let Some(schema) = schema {
            fields(schema, part, &mut text);
        }
    }
    text
}

fn fields(schema: &Value, path: &str, text: &mut String) {
    let Some(properties) = schema.get("properties").and_then(Value::as_object) else { return };
    let required = schema.get("required").and_then(Value::as_array);
    for (name, field) in properties {
        let path = format!("{path}.{name}");
        let needed = required.is_some_and(|r| r.iter().any(|v| v.as_str() == Some(name)));
        let default = match field.get("default") {
            Some(value) => format!("`{value}`"),
            None if needed => "required".to_owned(),
            None => String::new(),
        };
        let kind = field.get("type").and_then(Value::as_str).unwrap_or("any");
        let kind = match field.get("enum").and_then(Value::as_array) {
            Some(variants) => variants
                .iter()
                .filter_map(Value::as_str)
                .map(|v| format!("`{v}`"))
                .collect::<Vec<_>>()
                .join(", "),
            None => format!("{kind}{}", length(field)),
        };
        let _ = writeln!(text, "| `{path}` | {kind} | {default} | {} |", description(field));
        fields(field, &path, text);
        if let Some(items) = field.get("items") {
            fields(items, &format!("{path}[]"), text);
        }
    }
}

/// How many items a list has, where the schema bounds that.
fn length(field: &Value) -> String {
    let bound = |name: &str| field.get(name).and_then(Value::as_u64);
    match (bound("minItems"), bound("maxItems")) {
        (Some(least), Some(most)) => format!(", {least} to {most} items"),
        (None, Some(most)) => format!(", at most {most} items"),
        (Some(least), None) => format!(", at least {least} items"),
        (None, None) => String::new(),
    }
}

/// The description in one cell, with the rules that the API server checks.
fn description(field: &Value) -> String {
    let text = field.get("description").and_then(Value::as_str).unwrap_or_default();
    let rules = field.get("x-kubernetes-validations").and_then(Value::as_array);
    let rules = rules.into_iter().flatten().filter_map(|r| r.get("message")).filter_map(Value::as_str);
    let all: Vec<&str> = std::iter::once(text).chain(rules).filter(|t| !t.is_empty()).collect();
    all.join("<br>").replace('|', "\\|").split_whitespace().collect::<Vec<_>>().join(" ")
}
