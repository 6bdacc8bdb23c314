//! What the suites share: the cluster they run against, the operator installed in it, a namespace per test, the
//! "Internet", and what to print when a test fails.
pub mod agent;
pub mod audit;
pub mod cluster;
pub mod diagnostics;
pub mod environment;
pub mod image;
pub mod install;
pub mod internet;
pub mod sandbox;

use std::{panic::resume_unwind, sync::LazyLock, time::Duration};

use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api, Client,
    api::{DeleteParams, PostParams},
};
use serde_json::json;
use tokio::{runtime::Runtime, sync::RwLock};

pub use environment::{environment, scaled};

/// Longest time of one test, unscaled.
const TEST_LIFE: Duration = Duration::from_mins(8);

/// One runtime for all tests: a client's connections belong to the runtime they were made in.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
});

/// Ordinary tests hold it for reading; a test that disturbs the operator all others use holds it for writing.
static OPERATOR: RwLock<()> = RwLock::const_new(());

/// One test's own part of the cluster.
#[derive(Clone)]
pub struct Test {
    /// Client of the cluster.
    pub client: Client,
    /// Namespace of this test; it enforces Pod Security `restricted`.
    pub namespace: String,
}

impl Test {
    /// A namespace of its own.
    async fn in_namespace_for(name: &str) -> Self {
        let client = environment().client().await;
        Self { namespace: make_namespace(&client, name).await, client }
    }
}

/// Runs a test beside others.
pub fn shared<F, Fut>(name: &str, body: F)
where
    F: FnOnce(Test) -> Fut,
    Fut: Future<Output = ()> + Send + 'static,
{
    RUNTIME.block_on(async {
        let _turn = OPERATOR.read().await;
        run(name, body).await;
    });
}

/// Runs a test that nothing else may run beside, because it stops, counts or kills the operator.
pub fn exclusive<F, Fut>(name: &str, body: F)
where
    F: FnOnce(Test) -> Fut,
    Fut: Future<Output = ()> + Send + 'static,
{
    RUNTIME.block_on(async {
        let _turn = OPERATOR.write().await;
        run(name, body).await;
    });
}

/// Runs a test that needs the CRDs and no operator.
pub fn api_only<F, Fut>(name: &str, body: F)
where
    F: FnOnce(Test) -> Fut,
    Fut: Future<Output = ()> + Send + 'static,
{
    RUNTIME.block_on(async {
        install::definitions().await;
        in_namespace(name, body).await;
    });
}

async fn run<F, Fut>(name: &str, body: F)
where
    F: FnOnce(Test) -> Fut,
    Fut: Future<Output = ()> + Send + 'static,
{
    install::operator().await;
    internet::serve().await;
    in_namespace(name, body).await;
}

/// Makes the test's namespace, runs the test in it, prints what helps when it fails, and removes the namespace when it
/// does not (a failed test's namespace stays for a look, unless `E2E_CLEAN=always`).
async fn in_namespace<F, Fut>(name: &str, body: F)
where
    F: FnOnce(Test) -> Fut,
    Fut: Future<Output = ()> + Send + 'static,
{
    let test = Test::in_namespace_for(name).await;
    let task = tokio::spawn(body(test.clone()));
    let ended = tokio::time::timeout(scaled(TEST_LIFE), task).await;
    let failure: Option<Box<dyn std::any::Any + Send>> = match ended {
        Ok(Ok(())) => None,
        Ok(Err(panic)) => Some(panic.into_panic()),
        Err(_) => Some(Box::new(format!("{name} did not end in {TEST_LIFE:?}")) as _),
    };
    if let Some(panic) = &failure {
        // The runtime's threads belong to the test that started it: what they print is not shown with this one.
        let said =
            panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref().copied());
        eprintln!("\n{name}: {}", said.unwrap_or("it panicked without a text"));
        diagnostics::print(&test).await;
    }
    if failure.is_none() || environment().clean_always() {
        let namespaces: Api<Namespace> = Api::all(test.client.clone());
        let _ = namespaces.delete(&test.namespace, &DeleteParams::background()).await;
    }
    if let Some(panic) = failure {
        resume_unwind(panic);
    }
}

async fn make_namespace(client: &Client, name: &str) -> String {
    let namespace: Namespace = serde_json::from_value(json!({
        "metadata": {
            "generateName": format!("e2e-{name}-"),
            "labels": {
                "agentsandbox.dev/e2e": "true",
                "pod-security.kubernetes.io/enforce": "restricted",
            },
        },
    }))
    .unwrap();
    let made = Api::all(client.clone()).create(&PostParams::default(), &namespace).await.unwrap();
    made.metadata.name.unwrap()
}

/// Asks `probe` every quarter of a second until it answers.
///
/// # Panics
/// When `limit` (scaled) passed without an answer; `what` says what was waited for.
pub async fn wait_for<T, F, Fut>(what: &str, limit: Duration, mut probe: F) -> T
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Option<T>>,
{
    let end = tokio::time::Instant::now() + scaled(limit);
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(tokio::time::Instant::now() < end, "waited {limit:?} (scaled) for {what}");
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
}

/// Seconds, for time limits that read as a number.
pub const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}
