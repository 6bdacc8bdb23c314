//! Random specs: each is refused by the API server, or ends in a condition with a reason. None makes the operator spin.
use agentsandbox::api::v1alpha1::AgentSandbox;
use kube::{
    ResourceExt,
    api::{DeleteParams, ListParams},
};
use serde_json::{Value, json};

use crate::support::{environment, exclusive, sandbox::merge, secs, wait_for};

/// Specs in one run.
const SPECS: u64 = 200;
/// Specs whose Pod the node really starts: it has two cores.
const STARTED: u64 = 4;

/// A small generator of the whole run's choices (xorshift64*): the seed is printed, and `E2E_FUZZ_SEED` repeats it.
struct Choices(u64);

impl Choices {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 16
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next()).unwrap_or_default() % bound
    }

    fn of(&mut self, values: &[Value]) -> Value {
        values[self.below(values.len())].clone()
    }
}

fn rule(choices: &mut Choices) -> Value {
    choices.of(&[
        json!({"cidr": "203.0.113.0/24", "ports": [443]}),
        json!({"cidr": "0.0.0.0/0", "ports": [443]}),
        json!({"cidr": "10.244.1.0/24", "ports": [443]}),
        json!({"cidr": "203.0.113.5/24", "ports": [443]}),
        json!({"cidr": "2001:db8::/32", "ports": [1, 65535], "protocol": "UDP"}),
        json!({"cidr": "::1/128", "ports": [1]}),
        json!({"host": "api.example", "ports": [443]}),
        json!({"host": "xn--a", "ports": [443]}),
        json!({"service": {"name": "nowhere"}, "ports": [80]}),
        json!({"service": {"name": "kubernetes", "namespace": "default"}, "ports": [443]}),
        json!({"ports": []}),
        json!({"cidr": "203.0.113.0/24", "host": "a", "ports": [70000]}),
    ])
}

fn mount(choices: &mut Choices) -> Value {
    let path = [
        "/a",
        "/a/b",
        "/work space",
        "/proc/x",
        "/etc",
        "/usr/bin",
        "a",
        "/tmp",
        "/a/../b",
        "/.agentsandbox",
        "/ü",
    ];
    let mut mount = json!({"path": path[choices.below(path.len())]});
    merge(
        &mut mount,
        choices.of(&[
            json!({"emptyDir": {"sizeLimit": "1Mi"}}),
            json!({"emptyDir": {"sizeLimit": "1Mi"}, "readOnly": false}),
            json!({"emptyDir": {"sizeLimit": "1e3"}, "readOnly": false}),
            json!({"secret": {"name": "nowhere"}}),
            json!({"configMap": {"name": "Not A Name", "subPath": "a/b"}}),
            json!({"configMap": {"name": "a", "subPath": "./a"}}),
            json!({"persistentVolumeClaim": {"claimName": "nowhere", "subPath": "a//b"}, "readOnly": false}),
            json!({}),
        ]),
    );
    mount
}

fn spec(choices: &mut Choices) -> Value {
    let mut spec = json!({
        "image": "registry.invalid/agent:1",
        "command": ["/bin/true"],
        "startupTimeout": "2s",
        "resources": {"cpu": "10m", "memory": "16Mi", "ephemeralStorage": "1Mi"},
    });
    for _ in 0..=choices.below(4) {
        let (mounts, rules) = (choices.below(4), choices.below(4));
        let part = match choices.below(9) {
            0 => json!({"filesystem": {"mounts": (0..mounts).map(|_| mount(choices)).collect::<Vec<_>>()}}),
            1 => json!({"network": {"egress": (0..rules).map(|_| rule(choices)).collect::<Vec<_>>()}}),
            2 => {
                json!({"timeout": choices.of(&[json!("1s"), json!("1h1m1s1ms"), json!("0.5s"), json!("1e3s"), json!(7)])})
            }
            3 => json!({"resources": {
                "cpu": choices.of(&[json!("10m"), json!("10.5m"), json!("999"), json!("0")]),
                "memory": choices.of(&[json!("16Mi"), json!("17000000"), json!("999Ti"), json!("16mi")]),
                "pids": choices.of(&[json!(4), json!(32768), json!(0)]),
            }}),
            4 => json!({"resources": {"requests": {
                "cpu": choices.of(&[json!("5m"), json!("2"), json!("0")]),
                "memory": choices.of(&[json!("1Mi"), json!("2Gi"), json!("0")]),
            }}}),
            5 => json!({"env": [{
                "name": choices.of(&[json!("A"), json!("PATH"), json!("LD_PRELOAD"), json!("1A"), json!("AGENTSANDBOX_X")]),
                "value": choices.of(&[json!("$(A)"), json!("\u{0}"), json!("ü"), json!("")]),
            }]}),
            6 => json!({"isolation": {
                "userNamespace": choices.of(&[json!("Required"), json!("Disabled"), json!("")]),
                "runtimeClassName": choices.of(&[json!("nowhere"), json!("Not A Name"), json!("gvisor")]),
            }}),
            7 => json!({"runAs": {"user": choices.of(&[json!(1), json!(65533), json!(0), json!(65532)])}}),
            _ => json!({
                "image": choices.of(&[json!("UPPER"), json!("a@sha256:1"), json!(":"), json!("registry.invalid/a/b:c")]),
                "args": choices.of(&[json!([]), json!(["\n", "$(A)", ""]), json!(["\u{0}"])]),
                "workingDir": choices.of(&[json!("/"), json!("/nowhere"), json!("x")]),
            }),
        };
        merge(&mut spec, part);
    }
    spec
}

#[test]
fn two_hundred_random_specs_end_in_a_reason() {
    // Alone: a hundred Pods that never start take the node's whole CPU for a while.
    exclusive("fuzz", |test| async move {
        let seed = environment().get("E2E_FUZZ_SEED").and_then(|s| s.parse().ok()).unwrap_or_else(|| {
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() | 1
        });
        eprintln!("E2E_FUZZ_SEED={seed}");
        let mut choices = Choices(seed);
        let (mut refused, mut stored) = (0, 0);
        for number in 0..SPECS {
            let mut object = json!({
                "apiVersion": "agentsandbox.dev/v1alpha1", "kind": "AgentSandbox",
                "metadata": {"name": format!("f{number}")}, "spec": spec(&mut choices),
            });
            if number < STARTED {
                object["spec"]["image"] = json!(environment().agent_image());
            }
            match test.create(&object).await {
                Ok(_) => stored += 1,
                Err(kube::Error::Api(status)) if status.is_invalid() || (400..500).contains(&status.code) => {
                    refused += 1;
                }
                Err(error) => panic!("{error}\n{object}"),
            }
        }
        eprintln!("{refused} refused by the API server, {stored} stored");
        let api = test.api::<AgentSandbox>();
        wait_for("every sandbox to end in a reason", secs(240), || async {
            let open: Vec<_> = api.list(&ListParams::default()).await.unwrap().items;
            let open: Vec<_> =
                open.iter().filter(|sandbox| !has_ended(sandbox)).map(ResourceExt::name_any).collect();
            if open.is_empty() {
                return Some(());
            }
            tokio::time::sleep(secs(2)).await;
            eprintln!("{} without an end yet: {:?}", open.len(), &open[..open.len().min(5)]);
            None
        })
        .await;
        // Nothing is rewritten once it has ended: the objects' versions stand still.
        let versions = || async {
            let items = api.list(&ListParams::default()).await.unwrap().items;
            items.into_iter().map(|s| (s.name_any(), s.metadata.resource_version)).collect::<Vec<_>>()
        };
        tokio::time::sleep(secs(5)).await;
        let before = versions().await;
        tokio::time::sleep(secs(10)).await;
        assert_eq!(before, versions().await, "written again after the end");
        let _ = api.delete_collection(&DeleteParams::default(), &ListParams::default()).await;
    });
}

/// Whether status says how the sandbox ended or why it was refused.
fn has_ended(sandbox: &AgentSandbox) -> bool {
    let Some(status) = &sandbox.status else { return false };
    let refused = status.conditions.iter().find(|c| c.type_ == "Accepted" && c.status == "False");
    let finished = status.conditions.iter().find(|c| c.type_ == "Finished" && c.status == "True");
    refused.or(finished).is_some_and(|condition| !condition.reason.is_empty())
}
