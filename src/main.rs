//! The command line `agentsandbox`.
use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    agentsandbox::cli::main().await
}
