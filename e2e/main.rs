//! End-to-end tests: a real cluster, the operator installed through its chart, real agents.
//!
//! Run with `cargo test --features e2e --test e2e`; `e2e/README.md` says what they need. Each test has a namespace of
//! its own. Whatever a test finds refused, it first or also finds open from a Pod without a policy.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test's helpers end the test, as the test itself would"
)]

#[allow(dead_code, reason = "each suite uses its part")]
mod support;

mod egress;
mod files;
mod fuzz;
mod images;
mod isolation;
mod leaders;
mod lifetime;
mod limits;
mod network;
mod reports;
mod safety;
mod writes;
