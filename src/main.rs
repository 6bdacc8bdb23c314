//! The command line `agentsandbox`.
fn main() {}
