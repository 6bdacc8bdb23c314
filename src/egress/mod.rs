//! What sidecar and gateway say to each other. See `docs/design/0007-egress.md`.
pub mod wire;
