//! What to write where a field has a value of another type than it should.
use crate::policy::{HostPattern, shown};

/// What to write where `field` has a value of another type than it should, as `message` says.
pub(super) fn hint(field: &str, message: &str) -> String {
    let Some((found, wanted)) =
        message.strip_prefix("invalid type: ").and_then(|text| text.rsplit_once(", expected "))
    else {
        return String::new();
    };
    // YAML takes `cpu: 1` for a number, which the API server would refuse as well.
    let bare = ["integer", "floating point", "boolean"].iter().any(|what| found.starts_with(what));
    let value = found.split('`').nth(1).filter(|_| bare);
    let is = |ends: &[&str]| ends.iter().any(|end| field.ends_with(&format!("{end}: ")));
    match (wanted, value) {
        // With quotes alone it would be refused for its unit.
        ("a string", Some(number)) if is(&["timeout", "startupTimeout", "ttlAfterFinished"]) => {
            format!("; write it with a unit: {number}m or {number}s")
        }
        ("a string", Some(_)) => "; write it in quotes".to_owned(),
        ("a string", None) if found == "sequence" && is(&[".host", ".cidr"]) => {
            "; write one rule for each".to_owned()
        }
        ("a sequence", Some(value)) => format!("; write a list, such as [{value}]"),
        ("a sequence", None) => "; write a list: its values between [ and ]".to_owned(),
        ("i32", _) if field.contains(".ports[") => {
            "; write a number, such as 443; there are no ranges of ports".to_owned()
        }
        ("struct ServiceReference", _) => format!("; write {{name: {}}}", text(found).unwrap_or("web")),
        ("struct EgressRule", _) => {
            let host = text(found).filter(|text| text.parse::<HostPattern>().is_ok());
            format!("; write {{host: {}, ports: [443]}}", host.map_or_else(|| "pypi.org".to_owned(), shown))
        }
        _ => String::new(),
    }
}

/// The text that was found, where it is one of plain words.
fn text(found: &str) -> Option<&str> {
    let text = found.strip_prefix("string \"")?.strip_suffix('"')?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.*".contains(&byte);
    ((1..=64).contains(&text.len()) && text.bytes().all(plain)).then_some(text)
}
