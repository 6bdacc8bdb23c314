//! `agentsandbox render` as a person runs it: exit codes, what is on which stream, and no need of a cluster.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
mod support;

use std::path::Path;

use rstest::rstest;
use serde_json::Value;
use support::{PROGRAM, Ran, run};

fn render(arguments: &[&str], input: &str) -> Ran {
    run(Path::new(PROGRAM), &[&["render"], arguments].concat(), &[], input)
}

fn sandbox(spec: &str) -> String {
    format!(
        "apiVersion: agentsandbox.dev/v1alpha1\nkind: AgentSandbox\nmetadata: {{name: fix, namespace: team-a}}\n\
         spec:\n  image: registry.example/agent:1\n  command: [/agent]\n  {spec}\n"
    )
}

fn documents(yaml: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(yaml).unwrap()
}

const MODEL: &str = "---\napiVersion: v1\nkind: Service\nmetadata: {name: model, namespace: serving}\n\
    spec: {selector: {app: model}, ports: [{port: 80, targetPort: 8080}]}\n";
const MODEL_RULE: &str = "network: {egress: [{service: {name: model, namespace: serving}, ports: [80]}]}";

#[rstest]
#[case("minimal", &[])]
#[case("research", &["--reserved-cidr", "10.244.0.0/16"])]
#[case("gvisor", &[])]
#[case("userns", &["--user-namespaces"])]
#[case("domains", &[])]
fn the_objects_of_a_sample_are_printed(#[case] sample: &str, #[case] more: &[&str]) {
    let file = format!("config/samples/{sample}.yaml");
    let ran = render(&[&["--file", file.as_str()], more].concat(), "");
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
    let kinds: Vec<Value> = documents(&ran.out).iter().map(|d| d["kind"].clone()).collect();
    assert_eq!(kinds, ["NetworkPolicy", "Pod"]);
    assert!(ran.out.starts_with("# The uid is a placeholder"), "{}", ran.out);
    assert_eq!(render(&[&["--file", file.as_str()], more].concat(), "").out, ran.out);
}

#[test]
fn the_standard_input_and_several_objects_are_read() {
    let text = format!("{}---\n{}", sandbox(""), sandbox("").replace("name: fix", "name: other"));
    let ran = render(&["-f", "-", "--image", "registry.example/operator:2"], &text);
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
    let objects = documents(&ran.out);
    assert_eq!(objects.len(), 4);
    assert_eq!(objects[1]["spec"]["initContainers"][0]["image"], "registry.example/operator:2");
}

#[test]
fn help_names_the_exit_codes() {
    let ran = render(&["--help"], "");
    assert_eq!(ran.code, Some(0));
    for said in
        ["Exit codes:\n  0  the objects", "\n  1  a sandbox is refused", "\n  2  the file", "Examples:\n"]
    {
        assert!(ran.out.contains(said), "{}", ran.out);
    }
}

/// As with kubectl: what the file says goes first.
#[test]
fn a_namespace_is_given_to_objects_that_name_none() {
    let rule = MODEL_RULE.replace(", namespace: serving", "");
    let named = format!("{}{}", sandbox(&rule), MODEL.replace("namespace: serving", "namespace: team-a"));
    let bare = named.replace(", namespace: team-a", "");
    for (text, more, namespace) in [
        (&bare, &[][..], "default"),
        (&bare, &["-n", "team-b"], "team-b"),
        (&named, &["--namespace", "team-b"], "team-a"),
    ] {
        let ran = render(&[&["-f", "-"], more].concat(), text);
        assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
        let objects = documents(&ran.out);
        assert!(objects.iter().all(|object| object["metadata"]["namespace"] == namespace), "{}", ran.out);
    }
}

#[test]
fn a_service_comes_from_the_file_or_from_an_option() {
    let from_file = render(&["-f", "-"], &format!("{}{MODEL}", sandbox(MODEL_RULE)));
    let from_option = render(&["-f", "-", "--service", "serving/model=app=model"], &sandbox(MODEL_RULE));
    for (ran, port) in [(from_file, 8080), (from_option, 80)] {
        assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
        let rule = &documents(&ran.out)[0]["spec"]["egress"][0];
        assert_eq!(rule["to"][0]["podSelector"]["matchLabels"]["app"], "model");
        assert_eq!(rule["ports"][0]["port"], port);
    }
}

/// A rule that names a host is the gateway's: the policy opens the way to it, and no address.
#[test]
fn a_host_rule_leads_to_the_gateway_alone() {
    let text = sandbox("network: {egress: [{host: api.example, ports: [443]}], proxyEnvironment: true}");
    let ran = render(&["-f", "-", "--operator-namespace", "operators"], &text);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let objects = documents(&ran.out);
    let rules = objects[0]["spec"]["egress"].as_array().unwrap();
    assert_eq!(rules.len(), 1);
    let peer = &rules[0]["to"][0];
    assert_eq!(peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"], "operators");
    assert_eq!(peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"], "gateway");
    let agent = &objects[1]["spec"]["containers"][0];
    let variable = |name: &str| agent["env"].as_array().unwrap().iter().find(|v| v["name"] == name).cloned();
    assert_eq!(variable("HTTPS_PROXY").unwrap()["value"], "http://127.64.0.1:3128");
}

#[rstest]
#[case(
    "network: {egress: [{host: api.example, ports: [443]}]}",
    "spec.network.egress[0].host",
    "DomainEgressUnavailable"
)]
#[case(
    "network: {egress: [{cidr: 169.254.169.254/32, ports: [80]}]}",
    "spec.network.egress[0].cidr",
    "ReservedAddress"
)]
#[case(
    "network: {egress: [{cidr: 10.1.0.0/16, ports: [80]}]}",
    "spec.network.egress[0].cidr",
    "ReservedAddress"
)]
#[case(MODEL_RULE, "spec.network.egress[0].service", "ServiceNotFound")]
#[case("isolation: {userNamespace: Required}", "spec.isolation.userNamespace", "UserNamespaceUnavailable")]
#[case(
    "network: {egress: [{host: api.example., ports: [443]}]}",
    "spec.network.egress[0].host",
    "InvalidSpec"
)]
#[case("runAs: {user: 0}", "spec.runAs.user", "InvalidSpec")]
#[case("env: [{name: AGENTSANDBOX_INIT, value: x}]", "spec.env[0].name", "ReservedEnvName")]
fn a_refusal_is_said_on_standard_error(#[case] spec: &str, #[case] field: &str, #[case] reason: &str) {
    let options = ["-f", "-", "--reserved-cidr", "10.0.0.0/8,fd00::/8", "--without-gateway"];
    let ran = render(&options, &sandbox(spec));
    assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""));
    let lines: Vec<&str> = ran.err.lines().collect();
    assert_eq!(lines.len(), 1, "{}", ran.err);
    assert!(lines[0].starts_with(&format!("{field}: ")), "{}", ran.err);
    assert!(lines[0].ends_with(&format!("[{reason}]")), "{}", ran.err);
}

#[test]
fn a_host_that_leads_nowhere_is_warned_of() {
    let rules = "network: {egress: [{host: web.team.svc.cluster.local, ports: [80]}, {host: localhost, ports: [80]}]}";
    let ran = render(&["-f", "-"], &sandbox(rules));
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let lines: Vec<&str> = ran.err.lines().collect();
    assert_eq!(lines.len(), 2, "{}", ran.err);
    assert!(
        lines[0].starts_with("warning: spec.network.egress[0].host: ")
            && lines[0].contains("{name: web, namespace: team}")
    );
    assert!(lines[1].starts_with("warning: spec.network.egress[1].host: `localhost` is the sandbox itself"));
}

/// The operator knows ranges that no rule may open.
#[test]
fn a_cidr_rule_without_reserved_ranges_is_noted() {
    let text = sandbox("network: {egress: [{cidr: 198.51.100.0/24, ports: [443]}]}");
    let ran = render(&["-f", "-"], &text);
    let said = "note: no reserved ranges were given (--reserved-cidr); the operator may refuse a cidr rule\n";
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), said));
    assert_eq!(render(&["-f", "-", "--reserved-cidr", "10.0.0.0/8"], &text).err, "");
}

/// Offline a Service that nobody named is no mistake in the rule.
#[test]
fn a_service_that_is_not_there_is_asked_for() {
    let ran = render(&["-f", "-"], &sandbox(MODEL_RULE));
    assert!(
        ran.err.contains("pass --service or put the Service into the file [ServiceNotFound]"),
        "{}",
        ran.err
    );
}

#[test]
fn every_refusal_is_said_and_the_others_objects_are_printed() {
    let bad = sandbox("runAs: {user: 0, group: 0}").replace("name: fix", "name: bad");
    let ran = render(&["-f", "-"], &format!("{bad}---\n{}", sandbox("")));
    assert_eq!(ran.code, Some(1));
    assert_eq!(ran.err.lines().count(), 2, "{}", ran.err);
    assert!(ran.err.lines().all(|line| line.starts_with("team-a/bad: spec.runAs.")), "{}", ran.err);
    assert_eq!(documents(&ran.out).len(), 2);
}

#[rstest]
#[case::empty("", "no AgentSandbox")]
#[case::no_yaml("a: [", "agentsandbox render: ")]
#[case::another_kind("apiVersion: v1\nkind: Pod\n", "v1 Pod is neither")]
#[case::another_version(
    "apiVersion: agentsandbox.dev/v2\nkind: AgentSandbox\n",
    "kind AgentSandbox has apiVersion `agentsandbox.dev/v2`; write agentsandbox.dev/v1alpha1\n"
)]
#[case::a_field_that_is_not(
    "apiVersion: agentsandbox.dev/v1alpha1\nkind: AgentSandbox\nmetadata: {name: a}\nspec: {image: a, command: [/a], hostNetwork: true}\n",
    "hostNetwork"
)]
#[case::a_number_for_a_string(
    "apiVersion: agentsandbox.dev/v1alpha1\nkind: AgentSandbox\nmetadata: {name: a}\nspec: {image: a, command: [/a], resources: {cpu: 1}}\n",
    "AgentSandbox: spec.resources.cpu: invalid type: integer `1`, expected a string; write it in quotes"
)]
#[case::a_string_for_a_number(
    "apiVersion: agentsandbox.dev/v1alpha1\nkind: AgentSandbox\nmetadata: {name: a}\nspec: {image: a, command: [/a], network: {egress: [{host: a.example, ports: [https]}]}}\n",
    "AgentSandbox: spec.network.egress[0].ports[0]: invalid type: string \"https\", expected i32; write a number, such as 443; there are no ranges of ports\n"
)]
#[case::a_field_that_is_missing(
    "apiVersion: agentsandbox.dev/v1alpha1\nkind: AgentSandbox\nmetadata: {name: a}\nspec: {command: [/a]}\n",
    "AgentSandbox: spec: missing field `image`"
)]
#[case::a_number_for_a_time(
    "apiVersion: agentsandbox.dev/v1alpha1\nkind: AgentSandbox\nmetadata: {name: a}\nspec: {image: a, command: [/a], timeout: 5}\n",
    "AgentSandbox: spec.timeout: invalid type: integer `5`, expected a string; write it with a unit: 5m or 5s\n"
)]
#[case::a_number_for_a_list(
    "apiVersion: agentsandbox.dev/v1alpha1\nkind: AgentSandbox\nmetadata: {name: a}\nspec: {image: a, command: [/a], network: {egress: [{host: a.example, ports: 443}]}}\n",
    "spec.network.egress[0].ports: invalid type: integer `443`, expected a sequence; write a list, such as [443]\n"
)]
#[case::a_word_for_a_list(
    "apiVersion: agentsandbox.dev/v1alpha1\nkind: AgentSandbox\nmetadata: {name: a}\nspec: {image: a, command: /a}\n",
    "spec.command: invalid type: string \"/a\", expected a sequence; write a list: its values between [ and ]\n"
)]
fn what_is_no_sandbox_is_unreadable(#[case] text: &str, #[case] said: &str) {
    let ran = render(&["-f", "-"], text);
    assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""));
    assert!(ran.err.contains(said), "{}", ran.err);
}

#[rstest]
#[case(&["--file", "config/samples/absent.yaml"], "config/samples/absent.yaml")]
#[case(&["--file", "-", "--service", "model"], "NAMESPACE/NAME=KEY=VALUE")]
#[case(&["--file", "-", "--reserved-cidr", "10.0.0.0/99"], "--reserved-cidr")]
#[case(&[], "--file")]
fn wrong_options_are_unreadable(#[case] arguments: &[&str], #[case] said: &str) {
    let ran = render(arguments, &sandbox(""));
    assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""));
    assert!(ran.err.contains(said), "{}", ran.err);
}

#[rstest]
#[case(
    "{host: a.example, ports: [8000-8100]}",
    "ports[0]",
    "; write a number, such as 443; there are no ranges of ports"
)]
#[case(
    "{host: a.example, ports: [{port: 443}]}",
    "ports[0]",
    "; write a number, such as 443; there are no ranges of ports"
)]
#[case("{service: web, ports: [80]}", "service", "; write {name: web}")]
#[case("pypi.org", "", "; write {host: pypi.org, ports: [443]}")]
#[case("'https://a b'", "", "; write {host: pypi.org, ports: [443]}")]
#[case("{host: [a.example, b.example], ports: [443]}", "host", "; write one rule for each")]
#[case("{cidr: [10.0.0.0/8], ports: [443]}", "cidr", "; write one rule for each")]
fn a_rule_of_another_shape_is_told_the_right_one(
    #[case] rule: &str,
    #[case] field: &str,
    #[case] said: &str,
) {
    let ran = render(&["-f", "-"], &sandbox(&format!("network: {{egress: [{rule}]}}")));
    assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""));
    let dot = if field.is_empty() { "" } else { "." };
    assert!(ran.err.contains(&format!("spec.network.egress[0]{dot}{field}: invalid type: ")), "{}", ran.err);
    assert!(ran.err.ends_with(&format!("{said}\n")), "{}", ran.err);
}

/// What `kubectl get -o yaml` prints, and what `kubectl create` takes.
#[test]
fn a_list_and_a_generated_name_are_read() {
    let item = sandbox(MODEL_RULE).replace("name: fix", "generateName: fix-");
    let items = [item.as_str(), MODEL.trim_start_matches("---\n")].map(|item| {
        let lines: Vec<_> = item.lines().map(|line| format!("  {line}")).collect();
        lines.join("\n").replacen("  ", "- ", 1)
    });
    let ran = render(&["-f", "-"], &format!("apiVersion: v1\nkind: List\nitems:\n{}\n", items.join("\n")));
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
    let objects = documents(&ran.out);
    assert_eq!(objects.len(), 2);
    assert!(objects[1]["metadata"]["name"].as_str().unwrap().starts_with("fix-00000-"), "{}", ran.out);
}

/// kubectl reads YAML 1.1, in which these are no strings unless they are quoted.
#[test]
fn words_that_yaml_would_take_for_something_else_are_quoted() {
    let words =
        ["yes", "on", "off", "n", "null", "~", "true", "12", "0x1F", "1e3", ".5", "0o7", "007", "2001-01-01"];
    let ran = render(&["-f", "-"], &sandbox(&format!("args: {}", serde_json::to_string(&words).unwrap())));
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    for word in words {
        let quoted = [format!("- \"{word}\"\n"), format!("- '{word}'\n")];
        assert!(quoted.iter().any(|q| ran.out.contains(q)), "{word} in {}", ran.out);
    }
}

#[test]
fn the_samples_directory_has_no_sample_that_is_not_rendered() {
    let count =
        std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("config/samples")).unwrap().count();
    assert_eq!(count, 5, "add the new sample to the_objects_of_a_sample_are_printed");
}
