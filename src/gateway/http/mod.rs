//! HTTP/1 as strictly as it can be read. See `docs/design/0007-egress.md`.
pub mod body;
pub mod head;
pub mod inspect;
pub mod request;
