//! The client of the API server that the operator's processes have.
use std::time::Duration;

use kube::config::InferConfigError;
use kube::{Client, Config};

/// Time for a connection to the API server: no longer than a lease's renewal or a token's review waits for its answer.
const CONNECT: Duration = Duration::from_secs(5);

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no cluster to talk to.
    #[error("no configuration for a cluster was found: {0}")]
    Config(#[source] Box<InferConfigError>),
    /// The configuration makes no client.
    #[error("the API server cannot be used: {0}")]
    Client(#[source] Box<kube::Error>),
}

/// A client of the cluster that the process runs in, or that the kubeconfig names.
pub async fn client() -> Result<Client, ClientError> {
    let mut config = Config::infer().await.map_err(|error| ClientError::Config(Box::new(error)))?;
    // Tries of one call hide in it and may repeat a create: whoever asked tries again, after a back-off of his own.
    config.default_retry = false;
    config.connect_timeout = Some(CONNECT);
    Client::try_from(config).map_err(|error| ClientError::Client(Box::new(error)))
}
