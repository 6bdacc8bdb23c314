//! The command line `agentsandbox`.
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::{crds, render};

/// Runs AI agents, each contained in a Pod of its own.
#[derive(Debug, Parser)]
#[command(name = "agentsandbox", version, propagate_version = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Print the objects of an AgentSandbox, or why it is refused, without a cluster.
    Render(render::Options),
    /// Print the custom resource definitions.
    Crds(crds::Options),
}

/// Runs the command that the arguments of the process name.
#[allow(clippy::unused_async, reason = "the controller and the sidecar are")]
pub async fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Render(options) => render::run(&options),
        Command::Crds(options) => crds::run(&options).unwrap_or_else(|error| failed(&error)),
    }
}

#[allow(clippy::print_stderr, reason = "the last words of a process, when there may be no log")]
fn failed(error: &dyn std::error::Error) -> ExitCode {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        cause = inner.source();
    }
    eprintln!("agentsandbox: {text}");
    ExitCode::FAILURE
}
