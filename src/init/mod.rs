//! `sandbox-init`: the first process of the agent's container. Small, and without an async runtime.
pub mod config;
pub mod report;
pub mod wire;
