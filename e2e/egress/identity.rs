//! Who may speak to a gateway: the sidecar of a living sandbox and nobody else.
use k8s_openapi::api::{
    authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
    core::v1::{Pod, Secret, Service, ServiceAccount},
};
use kube::api::PostParams;
use serde_json::json;

use super::{all_done, host, none_done, tcp, tried};
use crate::support::{Test, agent, secs, shared, wait_for};

/// What the tokens of sidecars are for.
pub const AUDIENCE: &str = "agentsandbox-gateway";

impl Test {
    /// A token as the sidecar of the sandbox has one.
    pub async fn token_of(&self, pod: &str, audience: &str) -> String {
        let uid = self.api::<Pod>().get(pod).await.unwrap().metadata.uid;
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: Some(vec![audience.to_owned()]),
                expiration_seconds: Some(600),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".into()),
                    kind: Some("Pod".into()),
                    name: Some(pod.to_owned()),
                    uid,
                }),
                ..TokenRequestSpec::default()
            }),
            ..TokenRequest::default()
        };
        let accounts = self.api::<ServiceAccount>();
        let answer =
            accounts.create_token_request("default", &PostParams::default(), &request).await.unwrap();
        answer.status.unwrap().token.unwrap()
    }

    /// Functions that ask a gateway for tunnels as a sidecar does, from any Pod: `tunnel` keeps one, `ask` lets it go.
    pub async fn asking(&self) -> String {
        let service = self.system::<Service>().get("agentsandbox-gateway").await.unwrap();
        let address = service.spec.unwrap().cluster_ip.unwrap();
        let secret = self.system::<Secret>().get("agentsandbox-egress-ca").await.unwrap();
        let authority = String::from_utf8(secret.data.unwrap()["ca.crt"].0.clone()).unwrap();
        let namespace = crate::support::environment().system_namespace();
        format!(
            r#"
import ssl
context = ssl.create_default_context(cadata={authority:?})
context.set_alpn_protocols(["agentsandbox-egress/1"])
def tunnel(token, target="one.asbx.test:7000", gateway="{address}"):
    stream = socket.create_connection((gateway, 8443), 10)
    s = context.wrap_socket(stream, server_hostname="agentsandbox-gateway.{namespace}.svc")
    s.sendall(f"CONNECT {{target}} HTTP/1.1\r\nHost: {{target}}\r\nAuthorization: Bearer {{token}}\r\nX-AgentSandbox-Via: transparent\r\nX-AgentSandbox-Bytes: 0\r\n\r\n".encode())
    answer = b""
    while part := s.recv(4096):
        answer += part
        if answer.startswith(b"HTTP/1.1 200") and answer.endswith(b"\r\n\r\n"):
            return s
    s.close()
    raise OSError(answer.decode())
def ask(token, **more):
    tunnel(token, **more).close()
"#
        )
    }
}

/// One line for each token: whether it gets a tunnel to `one.asbx.test`.
fn each(tokens: &[(&str, &str)]) -> String {
    tokens.iter().fold(String::new(), |script, (name, token)| {
        script + &format!("attempt('{name}', lambda: ask('{token}'))\n")
    })
}

/// E17, E29, E30: a token counts for its audience and as long as its Pod lives, and nothing else does: what is asked here is
/// asked from one and the same address.
#[test]
fn a_token_counts_for_a_living_sandbox_only() {
    shared("egress-token", |test| async move {
        for (name, host) in
            [("agent", "one.asbx.test"), ("other", "two.asbx.test"), ("ended", "one.asbx.test")]
        {
            let script = if name == "ended" { "time.sleep(12)" } else { "time.sleep(200)" };
            test.sandbox(name, script, json!({"timeout": "4m", "network": {"egress": [tcp(host)]}})).await;
        }
        let mut tokens = Vec::new();
        for name in ["ended", "agent", "other"] {
            test.running(name).await;
            tokens.push(test.token_of(&test.pod_name(name).await, AUDIENCE).await);
        }
        let [ended, right, others] = <[String; 3]>::try_from(tokens).unwrap();
        let pod = test.pod_name("agent").await;
        let wrong = test.token_of(&pod, "https://kubernetes.default.svc").await;
        test.plain_pod("stranger", "time.sleep(200)", json!({})).await;
        test.pod_address("stranger").await;
        let strangers = test.token_of("stranger", AUDIENCE).await;
        let finished = test.pod_name("ended").await;
        wait_for("all of a Pod to end, its sidecar last", secs(90), || async {
            let phase = test.api::<Pod>().get(&finished).await.unwrap().status?.phase?;
            (phase == "Succeeded").then_some(())
        })
        .await;
        let refused = [
            ("wrong", &*wrong),
            ("strangers", &*strangers),
            ("others", &*others),
            ("ended", &*ended),
            ("garbage", "eyJhbGciOiJSUzI1NiJ9.e30.AAAA"),
            ("none", ""),
        ];
        let script = test.asking().await
            + &each(&[("right", &right)])
            + &each(&refused)
            + &format!("attempt('others-own', lambda: ask('{others}', target='two.asbx.test:7000'))\n")
            // Whom it served from this address before makes no difference.
            + &each(&[("right-again", &right)]);
        let said = test.control("control", &script).await;
        // The controls: the tokens themselves, from elsewhere, while their Pods live.
        for name in ["right", "others-own", "right-again"] {
            assert_eq!(agent::probe(&said, name)["ok"], true, "{name}: {said:#?}");
        }
        for (name, _) in refused {
            let line = agent::probe(&said, name);
            let code = match name {
                "others" => " 403 ",
                "none" => " 400 ",
                _ => " 401 ",
            };
            assert!(
                line["ok"] == false && line["error"].as_str().unwrap().contains(code),
                "{name}: {said:#?}"
            );
        }
        test.delete("agent").await;
        test.gone::<Pod>(&pod, secs(60)).await;
        let script = test.asking().await + &each(&[("replayed", &right)]);
        let said = test.control("replay", &script).await;
        assert_eq!(agent::probe(&said, "replayed")["ok"], false, "{said:#?}");
    });
}

/// The agent reaches the gateway's port, has no token, and gets nothing there.
#[test]
fn the_agent_itself_gets_nothing_from_the_gateway() {
    shared("egress-agent-gateway", |test| async move {
        let script = test.asking().await + &each(&[("none", ""), ("made-up", "eyJhbGciOiJub25lIn0.e30.")]);
        // No limit of a line is met by the CA in the script.
        let said = test.run("agent", &script, json!({"network": {"egress": [tcp("one.asbx.test")]}})).await;
        for name in ["none", "made-up"] {
            let line = agent::probe(&said, name);
            assert_eq!(line["ok"], false, "{said:#?}");
            assert!(line["error"].as_str().unwrap().contains("40"), "it was reached and refused: {line}");
        }
    });
}

/// E21: the gateway is no way to itself, to its neighbours, or to the cluster.
#[test]
fn the_gateway_leads_to_no_part_of_the_cluster() {
    shared("egress-deputy", |test| async move {
        test.probe().await;
        let script = r"
trial('one', lambda: by_proxy('one.asbx.test:80', lambda s: request(s, 'one.asbx.test')))
for name in ('agentsandbox-gateway.agentsandbox-system.svc', 'kubernetes.default.svc', 'localhost', 'private.asbx.test'):
    for port in (80, 443, 8080, 8443):
        trial(f'{name}-{port}', lambda: by_proxy(f'{name}:{port}'))
";
        let ports = [80, 443, 8080, 8443];
        let rules = [host("*.asbx.test", &ports), host("**.svc", &ports)];
        let said = test.tries(script, &rules).await;
        all_done(&said, &["one"]);
        for line in said.iter().filter(|l| l["probe"] != "one") {
            none_done(&said, &[line["probe"].as_str().unwrap()]);
        }
        assert!(tried(&said, "one").1.as_str().unwrap().contains("200"));
    });
}
