//! `sandbox-init` as the first process of a real PID namespace, with an audit peer on the real socket.
//!
//! Needs root, `unshare` and `setpriv`. Every test has a network namespace of its own, which scopes the socket.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // A test may fail.
mod contain;
mod egress;
mod ends;
mod sidecar;
mod support;
