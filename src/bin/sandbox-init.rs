//! First process of the agent's container.
fn main() {}
