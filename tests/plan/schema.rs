//! What the API server takes by the schema the operator reads: else a spec is refused only after it is stored, while its
//! agent runs.
use std::collections::BTreeSet;

use agentsandbox::{
    api::v1alpha1::{AgentSandbox, GoDuration, bytes_of, millicores_of},
    crds,
    plan::{Observed, Settings, names, validate},
};
use proptest::{prelude::*, string::string_regex};
use serde_json::{Value, json};

const DURATION: &str = "^([0-9]+([.][0-9]+)?(h|m|s|ms))+$";
const BYTES: &str = "^[0-9]+([.][0-9]+)?([KMGTP]i|[kMGTP])?$";
const CPU: &str = "^[0-9]+([.][0-9]+)?m?$";

/// Most characters of a duration or a quantity.
const MOST: usize = 32;

/// What the definition says of the field at `path` below `spec`; `[]` is an item of a list.
fn field(path: &str) -> Value {
    let crd = crds::definition().unwrap();
    let mut at = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    for part in path.split('.') {
        at = match part {
            "[]" => &at["items"],
            name => &at["properties"][name],
        };
    }
    assert!(at.is_object(), "{path}");
    at.clone()
}

/// Every rule of the field, in one text.
fn rules(field: &Value) -> String {
    let rules = field["x-kubernetes-validations"].as_array().unwrap();
    rules.iter().map(|rule| rule["rule"].as_str().unwrap()).collect::<Vec<_>>().join(" && ")
}

#[test]
fn the_schema_bounds_what_the_tests_below_make() {
    let amounts = [
        ("resources.cpu", CPU),
        ("resources.memory", BYTES),
        ("resources.ephemeralStorage", BYTES),
        ("network.limits.egressBytes", BYTES),
        ("filesystem.mounts.[].emptyDir.sizeLimit", BYTES),
    ];
    for (path, pattern) in amounts {
        let field = field(path);
        assert_eq!(field["maxLength"], MOST, "{path}");
        let rules = rules(&field);
        assert!(rules.contains(&format!("self.matches('{pattern}')")), "{path}: {rules}");
        // An end, since the operator counts up to 2^53.
        let most = if pattern == CPU { "1000000" } else { "8Pi" };
        assert!(rules.contains(&format!("compareTo(quantity('{most}')) <= 0")), "{path}: {rules}");
    }
    for (path, most) in [("timeout", "168h"), ("startupTimeout", "24h"), ("ttlAfterFinished", "8760h")] {
        let field = field(path);
        assert_eq!(field["maxLength"], MOST, "{path}");
        let rules = rules(&field);
        assert!(rules.contains(&format!("self.matches('{DURATION}')")), "{path}: {rules}");
        assert!(rules.contains(&format!("duration(self) <= duration('{most}')")), "{path}: {rules}");
    }
}

/// Texts that the schema takes by their form, also with more zeros and digits than a number needs.
fn written(units: &'static str, parts: usize) -> impl Strategy<Value = String> {
    let number = "(0{0,24})([0-9]{1,19})([.][0-9]{1,24})?";
    let one = string_regex(&format!("{number}{units}")).unwrap();
    proptest::collection::vec(one, 1..=parts)
        .prop_map(|all| all.concat())
        .prop_filter("too long", |text| text.len() <= MOST)
}

/// Nanoseconds of `text`, by another way: every part exactly, in units of 10^-24 of its own.
fn nanoseconds(text: &str) -> u128 {
    let mut rest = text;
    let mut total = 0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| c.is_ascii_alphabetic()).unwrap();
        let (number, tail) = rest.split_at(end);
        let next = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(next);
        let unit: u128 = match unit {
            "h" => 3_600_000_000_000,
            "m" => 60_000_000_000,
            "s" => 1_000_000_000,
            _ => 1_000_000,
        };
        let (whole, decimals) = number.split_once('.').unwrap_or((number, "0"));
        let decimals = format!("{decimals:0<24}");
        total += whole.parse::<u128>().unwrap() * unit;
        total += decimals[..24].parse::<u128>().unwrap() * unit / 10_u128.pow(24);
        rest = tail;
    }
    total
}

/// Whether `read` is `number` in whole, but for what floating point loses.
#[allow(clippy::cast_precision_loss, reason = "at most 2^53")]
fn is_about(read: i64, number: f64) -> bool {
    (read as f64 - number).abs() <= 1.0 + number / 1e14
}

fn refused(spec: &Value) -> BTreeSet<String> {
    let mut whole = json!({"image": "i", "command": ["c"]});
    whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    let sandbox: AgentSandbox = serde_json::from_value(json!({
        "apiVersion": "agentsandbox.dev/v1alpha1", "kind": "AgentSandbox",
        "metadata": {"name": "a", "namespace": "n", "uid": "u"}, "spec": whole,
    }))
    .unwrap();
    let refusals = validate(&sandbox, &Observed::default(), &Settings::default()).err().unwrap_or_default();
    refusals.into_iter().map(|refusal| refusal.field).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_duration_that_the_schema_takes_is_read(text in written("(h|m|s|ms)", 4)) {
        const HOUR: u128 = 3_600_000_000_000;
        let exact = nanoseconds(&text);
        // As inexact as floating point is in a part of an hour.
        let near = |bound: u128| exact.abs_diff(bound) <= 8;
        if exact <= 8760 * HOUR {
            let read = GoDuration::from_text(&text).parse();
            prop_assert!(read.is_ok(), "{}", text);
            prop_assert!(read.unwrap().as_nanos().abs_diff(exact) <= 8, "{}", text);
        }
        for (field, least, most) in
            [("timeout", 1_000_000_000, 168 * HOUR), ("startupTimeout", 1_000_000_000, 24 * HOUR), ("ttlAfterFinished", 0, 8760 * HOUR)]
        {
            let taken = (least..=most).contains(&exact);
            let refused = refused(&json!({field: text})).contains(&format!("spec.{field}"));
            prop_assert!(taken != refused || near(least) || near(most), "{}: {}", field, text);
        }
    }

    #[test]
    fn a_quantity_that_the_schema_takes_is_read(text in written("([KMGTP]i|[kMGTP])?", 1), cpu in written("m?", 1)) {
        // In f64, which is off by less than a part in 10^15.
        let number = |text: &str| text.trim_end_matches(|c: char| c.is_ascii_alphabetic()).parse::<f64>().unwrap();
        let unit = match text.trim_start_matches(|c: char| !c.is_ascii_alphabetic()) {
            "Ki" => 1024_f64, "Mi" => 1024_f64.powi(2), "Gi" => 1024_f64.powi(3), "Ti" => 1024_f64.powi(4),
            "Pi" => 1024_f64.powi(5), "k" => 1e3, "M" => 1e6, "G" => 1e9, "T" => 1e12, "P" => 1e15, _ => 1.0,
        };
        let bytes = number(&text) * unit;
        if bytes < 9.007_199_254_740_99e15 {
            let read = bytes_of(&text);
            prop_assert!(read.is_ok(), "{}", text);
            prop_assert!(is_about(read.unwrap(), bytes), "{}", text);
        }
        let cores = if cpu.ends_with('m') { number(&cpu) / 1e3 } else { number(&cpu) };
        if cores <= 1e6 {
            let read = millicores_of(&cpu);
            prop_assert!(read.is_ok(), "{}", cpu);
            prop_assert!(is_about(read.unwrap(), cores * 1e3), "{}", cpu);
        }
    }

    #[test]
    fn a_name_that_the_schema_takes_is_one(
        label in "[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?",
        name in "[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?([.][a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?){0,5}",
        key in "[-._A-Za-z0-9]{1,40}",
    ) {
        prop_assert!(names::is_label(&label) && names::is_subdomain(&name));
        if key != "." && !key.starts_with("..") {
            let from = json!({"secretKeyRef": {"name": name, "key": key}});
            prop_assert_eq!(refused(&json!({"env": [{"name": "A", "valueFrom": from}]})), BTreeSet::new());
        }
    }
}

#[test]
fn the_schema_bounds_names() {
    let label = "self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')";
    let subdomain = "self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$')";
    let key = "self.matches('^[-._A-Za-z0-9]+$') && self != '.' && !self.startsWith('..')";
    for (path, most, rule) in [
        ("network.egress.[].service.name", 63, label),
        ("network.egress.[].service.namespace", 63, label),
        ("filesystem.mounts.[].persistentVolumeClaim.claimName", 253, subdomain),
        ("filesystem.mounts.[].configMap.name", 253, subdomain),
        ("filesystem.mounts.[].secret.name", 253, subdomain),
        ("isolation.runtimeClassName", 253, subdomain),
        ("env.[].valueFrom.secretKeyRef.name", 253, subdomain),
        ("env.[].valueFrom.configMapKeyRef.key", 253, key),
    ] {
        let field = field(path);
        assert_eq!((field["maxLength"].as_u64(), rules(&field)), (Some(most), rule.to_owned()), "{path}");
    }
}
