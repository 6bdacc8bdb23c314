//! Manifests that the API server refuses, with the field and what it says.
use serde_json::{Value, json};

use super::{causes, smallest, support, with};

/// (what is wrong, the object, the field that the answer names, a part of its message)
type Case = (&'static str, Value, &'static str, &'static str);

fn mount(mount: Value) -> Value {
    with(json!({"filesystem": {"mounts": [mount]}}))
}

fn at(path: &str) -> Value {
    mount(json!({"path": path, "readOnly": false, "emptyDir": {"sizeLimit": "1Mi"}}))
}

fn egress(rule: Value) -> Value {
    with(json!({"network": {"egress": [rule]}}))
}

fn env(variable: Value) -> Value {
    with(json!({"env": [variable]}))
}

fn without(field: &str) -> Value {
    let mut object = smallest();
    object["spec"].as_object_mut().unwrap().remove(field);
    object
}

fn named(name: &str) -> Value {
    let mut object = smallest();
    object["metadata"]["name"] = json!(name);
    object
}

fn whole_spec(spec: Value) -> Value {
    let mut object = smallest();
    object["spec"] = spec;
    object
}

fn program_and_time() -> Vec<Case> {
    let long = "a".repeat(201);
    vec![
        (
            "no spec",
            {
                let mut o = smallest();
                o.as_object_mut().unwrap().remove("spec");
                o
            },
            "spec",
            "equired",
        ),
        ("a null spec", whole_spec(Value::Null), "spec", ""),
        ("an empty spec", whole_spec(json!({})), "spec.image", "Required value"),
        ("a name that is too long", named(&long), "<nil>", "at most 200 characters"),
        ("no image", without("image"), "spec.image", "Required value"),
        ("an empty image", with(json!({"image": ""})), "spec.image", "at least 1 chars"),
        ("an image with a space", with(json!({"image": "a b"})), "spec.image", "without spaces"),
        ("an image that is too long", with(json!({"image": "a".repeat(513)})), "spec.image", "Too long"),
        ("an image that is a number", with(json!({"image": 5})), "spec.image", "must be of type string"),
        ("no command", without("command"), "spec.command", "Required value"),
        ("an empty command", with(json!({"command": []})), "spec.command", "at least 1 items"),
        ("a null command", with(json!({"command": null})), "spec.command", ""),
        (
            "a command that is a string",
            with(json!({"command": "/bin/sh"})),
            "spec.command",
            "must be of type array",
        ),
        ("a nameless program", with(json!({"command": [""]})), "spec.command", "must name a program"),
        ("65 command words", with(json!({"command": vec!["a"; 65]})), "spec.command", "Too many"),
        ("257 arguments", with(json!({"args": vec!["a"; 257]})), "spec.args", "Too many"),
        ("a very long argument", with(json!({"args": ["a".repeat(4097)]})), "spec.args[0]", "Too long"),
        ("an unknown field", with(json!({"privileged": true})), "", "unknown field \"spec.privileged\""),
        ("a field of a Pod", with(json!({"hostNetwork": true})), "", "unknown field \"spec.hostNetwork\""),
        (
            "a relative working directory",
            with(json!({"workingDir": "src"})),
            "spec.workingDir",
            "absolute path",
        ),
        (
            "a working directory with ..",
            with(json!({"workingDir": "/a/../b"})),
            "spec.workingDir",
            "without '..'",
        ),
        ("a negative timeout", with(json!({"timeout": "-5m"})), "spec.timeout", "duration from 1s to 168h"),
        ("a timeout of nothing", with(json!({"timeout": "0s"})), "spec.timeout", "duration from 1s to 168h"),
        ("a timeout in days", with(json!({"timeout": "1d"})), "spec.timeout", "duration from 1s to 168h"),
        (
            "a timeout that is a number",
            with(json!({"timeout": 60})),
            "spec.timeout",
            "must be of type string",
        ),
        (
            "a timeout above a week",
            with(json!({"timeout": "169h"})),
            "spec.timeout",
            "duration from 1s to 168h",
        ),
        ("an empty timeout", with(json!({"timeout": ""})), "spec.timeout", "duration from 1s to 168h"),
        (
            "too short a start",
            with(json!({"startupTimeout": "10ms"})),
            "spec.startupTimeout",
            "from 1s to 24h",
        ),
        ("too long a start", with(json!({"startupTimeout": "25h"})), "spec.startupTimeout", "from 1s to 24h"),
        (
            "a negative time to live",
            with(json!({"ttlAfterFinished": "-1s"})),
            "spec.ttlAfterFinished",
            "0s to 8760h",
        ),
        ("root", with(json!({"runAs": {"user": 0}})), "spec.runAs.user", "root is never allowed"),
        (
            "the group of root",
            with(json!({"runAs": {"group": 0}})),
            "spec.runAs.group",
            "root is never allowed",
        ),
        ("the sidecar's user", with(json!({"runAs": {"user": 65532}})), "spec.runAs.user", "the sidecar's"),
        ("a negative user", with(json!({"runAs": {"user": -1}})), "spec.runAs.user", "from 1 to 65533"),
    ]
}

fn limits_and_environment() -> Vec<Case> {
    vec![
        ("cpu 0", with(json!({"resources": {"cpu": "0"}})), "spec.resources.cpu", "at least 10m"),
        ("negative cpu", with(json!({"resources": {"cpu": "-1"}})), "spec.resources.cpu", "at least 10m"),
        ("cpu in words", with(json!({"resources": {"cpu": "one"}})), "spec.resources.cpu", "quantity"),
        (
            "no memory to start in",
            with(json!({"resources": {"memory": "15Mi"}})),
            "spec.resources.memory",
            "16Mi",
        ),
        (
            "memory in MB",
            with(json!({"resources": {"memory": "512MB"}})),
            "spec.resources.memory",
            "quantity",
        ),
        (
            "no disk",
            with(json!({"resources": {"ephemeralStorage": "0"}})),
            "spec.resources.ephemeralStorage",
            "1Mi",
        ),
        ("3 processes", with(json!({"resources": {"pids": 3}})), "spec.resources.pids", "from 4 to 32768"),
        (
            "too many processes",
            with(json!({"resources": {"pids": 40000}})),
            "spec.resources.pids",
            "from 4 to 32768",
        ),
        ("processes in words", with(json!({"resources": {"pids": "64"}})), "spec.resources.pids", "integer"),
        (
            "a request in words",
            with(json!({"resources": {"requests": {"cpu": "some"}}})),
            "spec.resources.requests.cpu",
            "quantity",
        ),
        (
            "an env name with a dash",
            env(json!({"name": "MY-KEY", "value": "a"})),
            "spec.env[0].name",
            "letters, digits",
        ),
        (
            "a reserved env name",
            env(json!({"name": "AGENTSANDBOX_INIT", "value": "a"})),
            "spec.env[0].name",
            "reserved",
        ),
        ("an env without a name", env(json!({"value": "a"})), "spec.env[0].name", "Required value"),
        (
            "a value from two places",
            env(json!({"name": "A", "value": "a", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}})),
            "spec.env[0]",
            "not both",
        ),
        (
            "a value from nowhere",
            env(json!({"name": "A", "valueFrom": {}})),
            "spec.env[0].valueFrom",
            "exactly one of",
        ),
        (
            "a value of the Pod",
            env(json!({"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}})),
            "",
            "unknown field",
        ),
        (
            "an env name twice",
            with(json!({"env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]})),
            "spec.env[1]",
            "Duplicate value",
        ),
        (
            "129 env variables",
            with(json!({"env": (0..129).map(|n| json!({"name": format!("A{n}")})).collect::<Vec<_>>()})),
            "spec.env",
            "Too many",
        ),
    ]
}

fn files() -> Vec<Case> {
    let path = "spec.filesystem.mounts[0].path";
    let many = (0..33)
        .map(|n| json!({"path": format!("/m{n}"), "readOnly": false, "emptyDir": {"sizeLimit": "1Mi"}}));
    vec![
        ("a relative mount", at("work"), path, "must be absolute"),
        ("a mount over the root", at("/"), path, ""),
        ("a mount with ..", at("/a/../etc"), path, "'.' or '..'"),
        ("a mount with .", at("/a/./b"), path, "'.' or '..'"),
        ("a mount with a trailing slash", at("/a/"), path, "trailing slashes"),
        ("a mount with a doubled slash", at("/a//b"), path, "doubled"),
        ("a mount with a colon", at("/a:b"), path, "colons"),
        ("a mount over /proc", at("/proc"), path, "/proc, /sys, /dev"),
        ("a mount below /proc", at("/proc/sys"), path, "/proc, /sys, /dev"),
        ("a mount over /sys", at("/sys/fs"), path, "/proc, /sys, /dev"),
        ("a mount over /dev", at("/dev/shm"), path, "/proc, /sys, /dev"),
        ("a mount over the operator's own", at("/.agentsandbox/x"), path, "/.agentsandbox"),
        (
            "a mount deeper than the operator's own",
            at("/a/a/a/a/a/a/a/a/a/a/a/a/a"),
            path,
            "at most 12 parts",
        ),
        (
            "a mount of nothing",
            mount(json!({"path": "/a"})),
            "spec.filesystem.mounts[0]",
            "exactly one of emptyDir",
        ),
        (
            "a mount of two things",
            mount(
                json!({"path": "/a", "readOnly": false, "emptyDir": {"sizeLimit": "1Mi"}, "secret": {"name": "s"}}),
            ),
            "spec.filesystem.mounts[0]",
            "exactly one of emptyDir",
        ),
        (
            "a Secret to write to",
            mount(json!({"path": "/a", "readOnly": false, "secret": {"name": "s"}})),
            "spec.filesystem.mounts[0]",
            "are read-only",
        ),
        (
            "an empty directory to read",
            mount(json!({"path": "/a", "emptyDir": {"sizeLimit": "1Mi"}})),
            "spec.filesystem.mounts[0]",
            "write readOnly: false",
        ),
        (
            "a folder of the node",
            mount(json!({"path": "/a", "hostPath": {"path": "/"}})),
            "",
            "unknown field",
        ),
        (
            "the same path twice",
            {
                let one = json!({"path": "/a", "readOnly": false, "emptyDir": {"sizeLimit": "1Mi"}});
                with(json!({"filesystem": {"mounts": [one, one]}}))
            },
            "spec.filesystem.mounts[1]",
            "Duplicate value",
        ),
        (
            "33 mounts",
            with(json!({"filesystem": {"mounts": many.collect::<Vec<_>>()}})),
            "spec.filesystem.mounts",
            "Too many",
        ),
        (
            "an empty directory of any size",
            mount(json!({"path": "/a", "readOnly": false, "emptyDir": {}})),
            "sizeLimit",
            "Required value",
        ),
        (
            "an empty directory of size 0",
            mount(json!({"path": "/a", "readOnly": false, "emptyDir": {"sizeLimit": "0"}})),
            "sizeLimit",
            "above 0",
        ),
        (
            "an absolute part of a claim",
            mount(json!({"path": "/a", "persistentVolumeClaim": {"claimName": "c", "subPath": "/etc"}})),
            "subPath",
            "must be relative",
        ),
        (
            "a part of a ConfigMap outside it",
            mount(json!({"path": "/a", "configMap": {"name": "c", "subPath": "a/../../b"}})),
            "subPath",
            "without '..'",
        ),
        (
            "a Landlock mode of its own",
            with(json!({"filesystem": {"landlock": "Off"}})),
            "spec.filesystem.landlock",
            "supported values",
        ),
    ]
}

fn network_and_isolation() -> Vec<Case> {
    let rule = "spec.network.egress[0]";
    let cidr = json!({"cidr": "198.51.100.0/24", "ports": [443]});
    vec![
        (
            "a rule for nothing",
            egress(json!({"ports": [443]})),
            rule,
            "exactly one of host, cidr and service",
        ),
        (
            "a rule for two things",
            egress(json!({"host": "a.example", "cidr": "198.51.100.0/24", "ports": [443]})),
            rule,
            "exactly one of host, cidr and service",
        ),
        ("a rule without ports", egress(json!({"host": "a.example"})), "ports", "Required value"),
        (
            "a rule with no port",
            egress(json!({"host": "a.example", "ports": []})),
            "ports",
            "at least 1 items",
        ),
        ("port 0", egress(json!({"host": "a.example", "ports": [0]})), "ports", "from 1 to 65535"),
        ("port 65536", egress(json!({"host": "a.example", "ports": [65536]})), "ports", "from 1 to 65535"),
        (
            "17 ports",
            egress(json!({"host": "a.example", "ports": (1..18).collect::<Vec<_>>()})),
            "ports",
            "Too many",
        ),
        (
            "an address that is no network",
            egress(json!({"cidr": "198.51.100.7", "ports": [443]})),
            "cidr",
            "write 198.51.100.7/32",
        ),
        (
            "a prefix that is too long",
            egress(json!({"cidr": "198.51.100.0/33", "ports": [443]})),
            "cidr",
            "must be a network",
        ),
        (
            "a protocol of its own",
            egress(json!({"cidr": "198.51.100.0/24", "ports": [1], "protocol": "SCTP"})),
            "protocol",
            "supported values",
        ),
        (
            "257 rules",
            with(json!({"network": {"egress": vec![cidr; 257]}})),
            "spec.network.egress",
            "Too many",
        ),
        (
            "a Service without a name",
            egress(json!({"service": {}, "ports": [80]})),
            "service.name",
            "Required value",
        ),
        (
            "an unknown mode",
            with(json!({"isolation": {"userNamespace": "Maybe"}})),
            "spec.isolation.userNamespace",
            "supported values",
        ),
        (
            "a null mode",
            with(json!({"isolation": {"userNamespace": null, "runtimeClassName": ""}})),
            "spec.isolation.runtimeClassName",
            "at least 1 chars",
        ),
    ]
}

fn hosts() -> Vec<Case> {
    let rule = "spec.network.egress[0]";
    let http = |http: Value| egress(json!({"host": "a.example", "ports": [80], "http": http}));
    vec![
        (
            "a host that is a URL",
            egress(json!({"host": "https://a.example", "ports": [443]})),
            "host",
            "must be a DNS name",
        ),
        (
            "a star within a name",
            egress(json!({"host": "a.*.example", "ports": [443]})),
            "host",
            "must be a DNS name",
        ),
        (
            "a name that ends in a dash",
            egress(json!({"host": "a-.example", "ports": [443]})),
            "host",
            "must be a DNS name",
        ),
        (
            "a name in another script",
            egress(json!({"host": "bücher.example", "ports": [443]})),
            "host",
            "must be a DNS name",
        ),
        (
            "a host that is an address",
            egress(json!({"host": "198.51.100.7", "ports": [443]})),
            "host",
            "for addresses write cidr",
        ),
        (
            "a host that some programs take for an address",
            egress(json!({"host": "0x7f.1", "ports": [443]})),
            "host",
            "end in a number",
        ),
        ("every host", egress(json!({"host": "**", "ports": [443]})), "host", "no rule means every host"),
        (
            "a host with a port",
            egress(json!({"host": "a.example:443", "ports": [443]})),
            "host",
            "without scheme, port, path or dot",
        ),
        (
            "a host over UDP",
            egress(json!({"host": "a.example", "ports": [443], "protocol": "UDP"})),
            rule,
            "a host rule takes no UDP",
        ),
        (
            "HTTP of a network",
            egress(json!({"cidr": "198.51.100.0/24", "ports": [80], "http": {}})),
            rule,
            "for host rules",
        ),
        (
            "TLS of a Service",
            egress(json!({"service": {"name": "a"}, "ports": [443], "tls": {}})),
            rule,
            "for host rules",
        ),
        (
            "HTTP and TLS in one rule",
            egress(json!({"host": "a.example", "ports": [443], "http": {}, "tls": {}})),
            rule,
            "write two rules",
        ),
        (
            "anything, and HTTP",
            egress(json!({"host": "a.example", "ports": [80], "protocol": "TCP", "http": {}})),
            rule,
            "leave http and tls out",
        ),
        ("a method in lower case", http(json!({"methods": ["get"]})), "methods", "upper case"),
        ("17 methods", http(json!({"methods": vec!["GET"; 17]})), "methods", "Too many"),
        ("a path without its slash", http(json!({"pathPrefixes": ["v1"]})), "pathPrefixes", "start with /"),
        ("a path with a query", http(json!({"pathPrefixes": ["/v1?a=b"]})), "pathPrefixes", "? or #"),
        (
            "a way to terminate TLS",
            egress(json!({"host": "a.example", "ports": [443], "tls": {"terminate": true}})),
            "",
            "unknown field",
        ),
        (
            "a limit of nothing",
            with(json!({"network": {"limits": {"egressBytes": "0"}}})),
            "spec.network.limits.egressBytes",
            "at least 1Ki",
        ),
        (
            "a limit in words",
            with(json!({"network": {"limits": {"egressBytes": "some"}}})),
            "spec.network.limits.egressBytes",
            "quantity",
        ),
    ]
}

/// What the operator could not read, were it stored.
fn what_only_the_operator_would_refuse() -> Vec<Case> {
    vec![
        (
            "an empty directory with an exponent",
            mount(json!({"path": "/a", "readOnly": false, "emptyDir": {"sizeLimit": "1e9"}})),
            "sizeLimit",
            "at most 8Pi",
        ),
        (
            "a Secret in capitals",
            mount(json!({"path": "/a", "secret": {"name": "Key"}})),
            "secret.name",
            "lower-case",
        ),
        (
            "more bytes than can be counted",
            with(json!({"network": {"limits": {"egressBytes": "9Pi"}}})),
            "spec.network.limits.egressBytes",
            "at most 8Pi",
        ),
        (
            "a Service in capitals",
            egress(json!({"service": {"name": "Model"}, "ports": [80]})),
            "service.name",
            "lower-case",
        ),
    ]
}

#[test]
fn bad_manifests_are_refused_with_the_field_and_what_to_write() {
    support::api_only("api-bad", |test| async move {
        let cases = [
            program_and_time(),
            limits_and_environment(),
            files(),
            network_and_isolation(),
            hosts(),
            what_only_the_operator_would_refuse(),
        ]
        .concat();
        assert!(cases.len() >= 40);
        let mut wrong = Vec::new();
        for (what, object, field, message) in cases {
            match test.dry_run(&object).await {
                Ok(_) => wrong.push(format!("{what}: taken")),
                Err(error) => {
                    let said = causes(&error);
                    if !said.contains(field) || !said.contains(message) {
                        wrong.push(format!("{what}: wanted `{field}` and `{message}` in:\n{said}"));
                    }
                }
            }
        }
        assert!(wrong.is_empty(), "{} manifests:\n{}", wrong.len(), wrong.join("\n\n"));
    });
}
