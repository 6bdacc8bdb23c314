//! The command line `agentsandbox`.
use std::process::ExitCode;

fn main() -> ExitCode {
    agentsandbox::cli::main()
}
