//! Installs the operator once per run, as a user would: through the Helm charts.
use std::process::Command;

use agentsandbox::api::v1alpha1::AgentSandbox;
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, api::DeleteParams};
use serde_json::json;
use tokio::sync::OnceCell;

use super::{
    Test,
    environment::{environment, output_of},
    internet::ALLOWED,
    secs,
};

static DEFINITIONS: OnceCell<()> = OnceCell::const_new();
static OPERATOR: OnceCell<()> = OnceCell::const_new();

/// Installs the CRDs.
pub async fn definitions() {
    DEFINITIONS
        .get_or_init(|| async {
            if skipped() {
                return;
            }
            let mut helm = helm_install("agentsandbox-crds");
            helm.args(["--wait", "--timeout", "120s"]);
            output_of(helm).await;
        })
        .await;
}

/// Installs the CRDs and the operator, and waits until it is ready.
pub async fn operator() {
    definitions().await;
    OPERATOR
        .get_or_init(|| async {
            if skipped() {
                return;
            }
            let image = environment().need("OPERATOR_IMAGE");
            let (repository, digest) =
                image.split_once('@').expect("OPERATOR_IMAGE must be pinned by digest");
            let mut helm = helm_install("agentsandbox");
            for value in [
                format!("image.repository={repository}"),
                format!("image.digest={digest}"),
                "image.pullPolicy=IfNotPresent".to_owned(),
                "replicas=2".to_owned(),
                "controller.userNamespaces=true".to_owned(),
                "controller.logLevel=agentsandbox=debug\\,info".to_owned(),
                "controller.leaseDuration=5s".to_owned(),
            ] {
                helm.args(["--set", &value]);
            }
            for value in [
                format!("controller.reservedCidrs={}", reserved()),
                // The tests' Internet has documentation addresses, which no name may lead to otherwise.
                r#"gateway.reachableCidrs=["203.0.113.0/24","198.51.100.0/24"]"#.to_owned(),
                format!(r#"gateway.nameservers=["{ALLOWED}:53"]"#),
                // The cluster has no DNS of its own: the Internet's stands for it.
                format!(r#"controller.clusterDns="{ALLOWED}:53""#),
            ] {
                helm.args(["--set-json", &value]);
            }
            helm.args(["--wait", "--timeout", "180s"]);
            output_of(helm).await;
            serving().await;
        })
        .await;
}

/// Waits until a sandbox starts and ends well: Pods that are ready are not all that the first test needs. A controller has
/// to lead, and a gateway to have met the canary.
async fn serving() {
    // Where nothing is enforced no agent ever starts.
    if environment().get("CLUSTER_POLICY").as_deref() == Some("ignored") {
        return;
    }
    let test = Test::in_namespace_for("warm-up").await;
    let sandboxes = test.api::<AgentSandbox>();
    for attempt in 1..=3 {
        let name = format!("first-{attempt}");
        test.sandbox(&name, "pass", json!({"startupTimeout": "80s"})).await;
        let outcome =
            test.wait_status(&name, "the first sandbox to end", secs(110), |s| s.outcome.clone()).await;
        if outcome.reason == "Completed" {
            let namespaces: Api<Namespace> = Api::all(test.client.clone());
            let _ = namespaces.delete(&test.namespace, &DeleteParams::background()).await;
            return;
        }
        eprintln!("the operator does not serve yet: {outcome:?}");
        let _ = sandboxes.delete(&name, &DeleteParams::default()).await;
    }
    panic!("the operator is installed and no sandbox completes: see namespace {}", test.namespace);
}

/// Ranges of the cluster's Pods, Services and nodes, as JSON. The harness writes them with the commas escaped for helm.
fn reserved() -> String {
    let ranges = environment()
        .get("RESERVED_CIDRS")
        .unwrap_or_else(|| "10.244.0.0/16,10.96.0.0/16,192.0.2.0/24".into());
    let ranges: Vec<_> = ranges.split(',').map(|range| range.trim_end_matches('\\').trim()).collect();
    serde_json::json!(ranges).to_string()
}

/// `E2E_SKIP_INSTALL=1`: the operator under test was installed by somebody else.
fn skipped() -> bool {
    environment().get("E2E_SKIP_INSTALL").as_deref() == Some("1")
}

fn helm_install(chart: &str) -> Command {
    let mut helm = environment().command("HELM");
    let path = format!("{}/charts/{chart}", env!("CARGO_MANIFEST_DIR"));
    // Tests scale the operator and give it variables: what one that failed left is not to stay.
    helm.args([
        "upgrade",
        "--install",
        chart,
        &path,
        "--force-conflicts",
        "--create-namespace",
        "--namespace",
    ]);
    helm.arg(environment().system_namespace());
    helm
}
