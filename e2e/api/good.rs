//! Manifests that the API server takes, and the defaults that it fills in.
use serde_json::{Value, json};

use super::{causes, smallest, support, with};

fn cases() -> Vec<(&'static str, Value)> {
    let directory = json!({"path": "/workspace", "readOnly": false, "emptyDir": {"sizeLimit": "256Mi"}});
    let many = (0..32)
        .map(|n| json!({"path": format!("/m{n}"), "readOnly": false, "emptyDir": {"sizeLimit": "1Mi"}}));
    vec![
        ("the smallest object", smallest()),
        ("a long name", {
            let mut object = smallest();
            object["metadata"]["name"] = json!("a".repeat(200));
            object
        }),
        ("a digest", with(json!({"image": format!("registry.example:5000/a/b@sha256:{}", "0".repeat(64))}))),
        ("arguments and a directory", with(json!({"args": ["-c", "x=$(y)"], "workingDir": "/workspace"}))),
        ("durations", with(json!({"timeout": "1h30m", "startupTimeout": "90s", "ttlAfterFinished": "0s"}))),
        (
            "the longest time",
            with(json!({"timeout": "168h", "startupTimeout": "24h", "ttlAfterFinished": "8760h"})),
        ),
        ("a user and a group", with(json!({"runAs": {"user": 1234, "group": 4321}}))),
        (
            "resources",
            with(json!({"resources": {
                "cpu": "10m", "memory": "16Mi", "ephemeralStorage": "1Mi", "pids": 4,
                "requests": {"cpu": "10m", "memory": "16Mi"},
            }})),
        ),
        (
            "large resources",
            with(
                json!({"resources": {"cpu": "64", "memory": "1Ti", "ephemeralStorage": "10T", "pids": 32768}}),
            ),
        ),
        ("a fraction of a core", with(json!({"resources": {"cpu": "0.5", "memory": "1.5Gi"}}))),
        (
            "environment of every kind",
            with(json!({"env": [
                {"name": "EMPTY"},
                {"name": "PLAIN", "value": "a $(b) c"},
                {"name": "_KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
                {"name": "TASK", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "task.md"}}},
            ]})),
        ),
        (
            "mounts of every kind",
            with(json!({"filesystem": {"landlock": "Required", "mounts": [
                directory,
                {"path": "/repo", "readOnly": false, "persistentVolumeClaim": {"claimName": "repo", "subPath": "issue-42"}},
                {"path": "/etc/task.md", "configMap": {"name": "c", "subPath": "task.md"}},
                {"path": "/key", "readOnly": true, "secret": {"name": "s"}},
            ]}})),
        ),
        ("32 mounts", with(json!({"filesystem": {"mounts": many.collect::<Vec<_>>()}}))),
        (
            "names that only look reserved",
            with(json!({"filesystem": {"mounts": [
                {"path": "/process", "readOnly": false, "emptyDir": {"sizeLimit": "1Mi"}},
                {"path": "/system/..a", "readOnly": false, "emptyDir": {"sizeLimit": "1Mi"}},
                {"path": "/home/dev", "readOnly": false, "emptyDir": {"sizeLimit": "1Mi"}},
            ]}})),
        ),
        ("gVisor", with(json!({"isolation": {"runtimeClassName": "gvisor", "userNamespace": "Disabled"}}))),
        ("a user namespace", with(json!({"isolation": {"userNamespace": "Required"}}))),
        ("labels and annotations", {
            let mut object = smallest();
            object["metadata"]["labels"] = json!({"team": "a"});
            object["metadata"]["annotations"] = json!({"note": "ü".repeat(1000)});
            object
        }),
    ]
}

fn networks() -> Vec<(&'static str, Value)> {
    vec![
        (
            "rules of every kind",
            with(json!({"network": {"egress": [
                {"host": "api.example", "ports": [443]},
                {"host": "*.packages.example", "ports": [80, 443]},
                {"host": "**.example", "ports": [443]},
                {"host": "git.example", "ports": [22], "protocol": "TCP"},
                {"host": "mirror.example", "ports": [80], "http": {"methods": ["GET", "HEAD"], "pathPrefixes": ["/debian"]}},
                {"host": "plain.example", "ports": [80], "http": {}},
                {"host": "site.example", "ports": [443], "tls": {"allowEncryptedClientHello": true}},
                {"host": "strict.example", "ports": [443], "tls": {}},
                {"cidr": "203.0.113.0/24", "ports": [443], "protocol": "TCP"},
                {"cidr": "198.51.100.0/24", "ports": [5432], "protocol": "UDP"},
                {"cidr": "2001:db8::/32", "ports": [443]},
                {"service": {"name": "model", "namespace": "serving"}, "ports": [8080]},
                {"service": {"name": "model"}, "ports": [1, 65535]},
            ]}})),
        ),
        (
            "256 rules",
            with(json!({"network": {"egress": (0..256)
            .map(|n| json!({"cidr": format!("198.51.{n}.0/24"), "ports": (1..17).collect::<Vec<_>>()}))
            .collect::<Vec<_>>()}})),
        ),
        (
            "256 rules for hosts with everything",
            with(json!({"network": {"egress": (0..256)
            .map(|n| json!({
                "host": format!("{}{n}.example", "a".repeat(60)), "ports": (1..17).collect::<Vec<_>>(),
                "http": {
                    "methods": vec!["GET"; 16],
                    "pathPrefixes": (0..16).map(|m| format!("/{m}/{}", "a".repeat(100))).collect::<Vec<_>>(),
                },
            }))
            .collect::<Vec<_>>()}})),
        ),
        (
            "limits and the proxies' environment",
            with(json!({"network": {"limits": {"egressBytes": "500Mi"}, "proxyEnvironment": true}})),
        ),
        ("an empty network", with(json!({"network": {}}))),
        ("a null where there is a default", with(json!({"network": {"egress": null}, "timeout": null}))),
    ]
}

#[test]
fn good_manifests_are_taken() {
    support::api_only("api-good", |test| async move {
        assert!(cases().len() >= 15);
        let mut wrong = Vec::new();
        for (what, object) in [cases(), networks()].concat() {
            if let Err(error) = test.dry_run(&object).await {
                wrong.push(format!("{what}: {}", causes(&error)));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    });
}

#[test]
fn the_smallest_object_gets_its_defaults() {
    support::api_only("api-defaults", |test| async move {
        let stored = test.dry_run(&smallest()).await.unwrap();
        let spec = &stored["spec"];
        assert_eq!((&spec["timeout"], &spec["startupTimeout"]), (&json!("30m"), &json!("5m")));
        assert_eq!(spec["runAs"], json!({"group": 1000}));
        assert_eq!(
            spec["resources"],
            json!({"cpu": "1", "memory": "1Gi", "ephemeralStorage": "1Gi", "pids": 256})
        );
        assert!(spec.get("network").is_none(), "no network is no network");
        assert!(!stored.to_string().contains("null"), "{stored}");
        // A host rule without a protocol is another one than with it: nothing may fill it in.
        let rule = json!({"host": "a.example", "ports": [443]});
        let stored = test.dry_run(&with(json!({"network": {"egress": [rule]}}))).await.unwrap();
        assert_eq!(stored["spec"]["network"], json!({"egress": [rule], "proxyEnvironment": false}));
    });
}

#[test]
fn an_object_that_the_types_wrote_is_taken_again() {
    support::api_only("api-round-trip", |test| async move {
        for (what, object) in [cases(), networks()].concat() {
            let stored = test.dry_run(&object).await.unwrap();
            let mut typed: agentsandbox::api::v1alpha1::AgentSandbox =
                serde_json::from_value(stored).unwrap();
            typed.metadata = kube::api::ObjectMeta { name: typed.metadata.name, ..Default::default() };
            let written = serde_json::to_value(&typed).unwrap();
            if let Err(error) = test.dry_run(&written).await {
                panic!("{what}: {}\n{written}", causes(&error));
            }
        }
    });
}
