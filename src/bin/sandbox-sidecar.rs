//! The native sidecar of every sandbox.
use std::process::ExitCode;

fn main() -> ExitCode {
    agentsandbox::sidecar::main()
}
