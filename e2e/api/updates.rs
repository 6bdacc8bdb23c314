//! What may change in a stored object.
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};

use super::{causes, support, with};
use agentsandbox::api::v1alpha1::AgentSandbox;

fn stored() -> Value {
    with(json!({
        "args": ["a"],
        "env": [{"name": "A", "value": "1"}],
        "timeout": "10m",
        "filesystem": {"mounts": [{"path": "/a", "readOnly": false, "emptyDir": {"sizeLimit": "1Mi"}}]},
        "network": {"egress": [{"cidr": "198.51.100.0/24", "ports": [443]}]},
    }))
}

#[test]
fn only_time_and_network_may_change() {
    support::api_only("api-updates", |test| async move {
        // One object, outside the reach of an operator that may run: it is never accepted, its Service is nowhere.
        let mut object = stored();
        object["spec"]["network"]["egress"][0] = json!({"service": {"name": "nowhere"}, "ports": [443]});
        test.create(&object).await.unwrap();
        let api: Api<AgentSandbox> = test.api();
        let dry = PatchParams { dry_run: true, ..PatchParams::default() };

        let refused = [
            ("image", json!({"image": "registry.example/agent:2"}), "image is immutable"),
            ("command", json!({"command": ["/bin/false"]}), "command is immutable"),
            ("args", json!({"args": ["b"]}), "args is immutable"),
            ("args, removed", json!({"args": null}), "args is immutable"),
            ("env", json!({"env": [{"name": "A", "value": "2"}]}), "env is immutable"),
            ("env, removed", json!({"env": null}), "env is immutable"),
            ("workingDir, added", json!({"workingDir": "/a"}), "workingDir is immutable"),
            ("runAs", json!({"runAs": {"user": 7}}), "runAs is immutable"),
            ("mounts", json!({"filesystem": {"mounts": []}}), "filesystem is immutable"),
            ("landlock", json!({"filesystem": {"landlock": "Required"}}), "filesystem is immutable"),
            ("filesystem, removed", json!({"filesystem": null}), "filesystem is immutable"),
            (
                "isolation, added",
                json!({"isolation": {"userNamespace": "Disabled"}}),
                "isolation is immutable",
            ),
            ("memory", json!({"resources": {"memory": "2Gi"}}), "resources is immutable"),
            ("startupTimeout", json!({"startupTimeout": "6m"}), "startupTimeout is immutable"),
            (
                "proxyEnvironment, set",
                json!({"network": {"proxyEnvironment": true}}),
                "network.proxyEnvironment is immutable",
            ),
            ("timeout, raised", json!({"timeout": "11m"}), "timeout may only be lowered"),
            ("timeout, raised by removal", json!({"timeout": null}), "timeout may only be lowered"),
        ];
        for (what, spec, message) in refused {
            let patch = Patch::Merge(json!({"spec": spec}));
            let answer = api.patch("agent", &dry, &patch).await;
            let said = causes(&answer.expect_err(what));
            assert!(said.contains(message), "{what}: {said}");
        }

        let taken = [
            ("timeout, lowered", json!({"timeout": "9m"})),
            ("timeout, said otherwise", json!({"timeout": "600s"})),
            ("rules, changed", json!({"network": {"egress": [{"cidr": "203.0.113.0/24", "ports": [1]}]}})),
            (
                "rules, changed to a host",
                json!({"network": {"egress": [{"host": "a.example", "ports": [443]}]}}),
            ),
            ("rules, removed", json!({"network": null})),
            ("limits, added", json!({"network": {"limits": {"egressBytes": "1Gi"}}})),
            ("ttlAfterFinished, added", json!({"ttlAfterFinished": "5m"})),
        ];
        for (what, spec) in taken {
            let patch = Patch::Merge(json!({"spec": spec}));
            if let Err(error) = api.patch("agent", &dry, &patch).await {
                panic!("{what}: {}", causes(&error));
            }
        }
    });
}

#[test]
fn status_is_not_written_with_the_object() {
    support::api_only("api-status", |test| async move {
        let mut object = stored();
        object["status"] = json!({"phase": "Succeeded"});
        let made = test.dry_run(&object).await.unwrap();
        assert!(made.get("status").is_none(), "{made}");
    });
}
