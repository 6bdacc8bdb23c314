//! First process of the agent's container.
use std::process::ExitCode;

fn main() -> ExitCode {
    agentsandbox::init::main()
}
