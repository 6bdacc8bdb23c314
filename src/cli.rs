//! The command line `agentsandbox`.
use std::{path::Path, process::ExitCode};

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

use crate::{controller, crds, explain, gateway, install_check, render};

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
    /// Say which rule of an AgentSandbox allows or refuses an endpoint, and why; of a file, or of one in the cluster.
    Explain(explain::Options),
    /// Print the objects of an AgentSandbox, or why it is refused, without a cluster.
    Render(render::Options),
    /// Turn every AgentSandbox of the cluster into a contained Pod.
    Controller(Box<controller::Options>),
    /// Be the only way out of every sandbox: decide, resolve, dial and record.
    Gateway(Box<gateway::Options>),
    /// Say whether the operator's Services are ready, inside a Pod of their namespace.
    CheckInstall(install_check::Options),
    /// Print the custom resource definitions.
    Crds(crds::Options),
}

/// Runs the command that the arguments of the process name. Each command brings its own runtime, if it needs one.
pub fn main() -> ExitCode {
    match parse().command {
        Command::Controller(options) => match tokio::runtime::Runtime::new() {
            Ok(runtime) => outcome(runtime.block_on(controller::run(*options))),
            Err(error) => failed(&error),
        },
        Command::Gateway(options) => match tokio::runtime::Runtime::new() {
            Ok(runtime) => outcome(runtime.block_on(gateway::run(*options))),
            Err(error) => failed(&error),
        },
        Command::Render(options) => render::run(&options),
        Command::Explain(options) => explain::run(&options),
        Command::CheckInstall(options) => install_check::run(&options),
        Command::Crds(options) => crds::run(&options).unwrap_or_else(|error| failed(&error)),
    }
}

/// Reads the arguments. `kubectl agentsandbox` runs the file `kubectl-agentsandbox`: the same commands, and help has to
/// name what the person types.
fn parse() -> Cli {
    let called = std::env::args_os().next().unwrap_or_default();
    let plugin = Path::new(&called).file_name().is_some_and(|name| name == "kubectl-agentsandbox");
    let command = if plugin { as_plugin(Cli::command()) } else { Cli::command() };
    Cli::from_arg_matches(&command.get_matches()).unwrap_or_else(|error| error.exit())
}

/// `command` with the name that kubectl gives it, in its examples as well.
fn as_plugin(command: clap::Command) -> clap::Command {
    command.bin_name("kubectl agentsandbox").mut_subcommands(|command| {
        let Some(help) = command.get_after_long_help().map(ToString::to_string) else { return command };
        command.after_long_help(help.replace("\n  agentsandbox ", "\n  kubectl agentsandbox "))
    })
}

fn outcome<E: std::error::Error>(result: Result<(), E>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
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
