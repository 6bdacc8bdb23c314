//! Who may speak to a gateway: the sidecar of a living sandbox and nobody else.
use k8s_openapi::api::{
    authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
    core::v1::{Pod, Secret, Service, ServiceAccount},
};
use kube::api::PostParams;
use serde_json::json;

use super::{all_done, host, none_done, tried};
use crate::support::{Test, agent, secs, shared};

const AUDIENCE: &str = "agentsandbox-gateway";

impl Test {
    /// A token as the sidecar of the sandbox has one.
    async fn token_of(&self, pod: &str, audience: &str) -> String {
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

    /// A script that asks the gateway for tunnels to `one.asbx.test` with tokens, from any Pod.
    async fn asking(&self, tokens: &[(&str, &str)]) -> String {
        let service = self.system::<Service>().get("agentsandbox-gateway").await.unwrap();
        let address = service.spec.unwrap().cluster_ip.unwrap();
        let secret = self.system::<Secret>().get("agentsandbox-egress-ca").await.unwrap();
        let authority = String::from_utf8(secret.data.unwrap()["ca.crt"].0.clone()).unwrap();
        let namespace = crate::support::environment().system_namespace();
        let mut script = format!(
            r#"
import ssl
def ask(token, target="one.asbx.test:7000"):
    context = ssl.create_default_context(cadata={authority:?})
    context.set_alpn_protocols(["agentsandbox-egress/1"])
    stream = socket.create_connection(("{address}", 8443), 5)
    with context.wrap_socket(stream, server_hostname="agentsandbox-gateway.{namespace}.svc") as s:
        s.sendall(f"CONNECT {{target}} HTTP/1.1\r\nHost: {{target}}\r\nAuthorization: Bearer {{token}}\r\nX-AgentSandbox-Via: transparent\r\nX-AgentSandbox-Bytes: 0\r\n\r\n".encode())
        answer = s.recv(200).decode()
        if not answer.startswith("HTTP/1.1 200"):
            raise OSError(answer)
        return answer.split("\r\n")[0]
"#
        );
        for (name, token) in tokens {
            script += &format!("attempt('{name}', lambda: ask('{token}'))\n");
        }
        script
    }
}

/// E17, E29: a token counts for its audience and as long as its Pod lives.
#[test]
fn a_token_counts_for_a_living_sandbox_only() {
    shared("egress-token", |test| async move {
        let rule = json!({"host": "one.asbx.test", "ports": [7000], "protocol": "TCP"});
        test.sandbox("agent", "time.sleep(100)", json!({"timeout": "2m", "network": {"egress": [rule]}}))
            .await;
        test.running("agent").await;
        let pod = test.pod_name("agent").await;
        let right = test.token_of(&pod, AUDIENCE).await;
        let wrong = test.token_of(&pod, "https://kubernetes.default.svc").await;
        test.plain_pod("stranger", "time.sleep(100)", json!({})).await;
        test.pod_address("stranger").await;
        let strangers = test.token_of("stranger", AUDIENCE).await;
        let asked = [("right", &*right), ("wrong", &*wrong), ("strangers", &*strangers), ("none", "")];
        let said = test.control("control", &test.asking(&asked).await).await;
        // The control: the token itself, from elsewhere, while its Pod lives.
        assert_eq!(agent::probe(&said, "right")["ok"], true, "{said:#?}");
        for name in ["wrong", "strangers", "none"] {
            assert_eq!(agent::probe(&said, name)["ok"], false, "{name}: {said:#?}");
        }
        test.delete("agent").await;
        test.gone::<Pod>(&pod, secs(60)).await;
        let said = test.control("replay", &test.asking(&[("replayed", &*right)]).await).await;
        assert_eq!(agent::probe(&said, "replayed")["ok"], false, "{said:#?}");
    });
}

/// The agent reaches the gateway's port, has no token, and gets nothing there.
#[test]
fn the_agent_itself_gets_nothing_from_the_gateway() {
    shared("egress-agent-gateway", |test| async move {
        let script = test.asking(&[("none", ""), ("made-up", "eyJhbGciOiJub25lIn0.e30.")]).await;
        let rule = json!({"host": "one.asbx.test", "ports": [7000], "protocol": "TCP"});
        // No limit of a line is met by the CA in the script.
        let said = test.run("agent", &script, json!({"network": {"egress": [rule]}})).await;
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
