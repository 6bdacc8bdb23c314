//! What sidecar and gateway say to each other, and what the sidecar says of the start. See
//! `docs/design/0007-egress.md`.
pub mod buffered;
pub mod containment;
pub mod sockets;
pub mod wire;
